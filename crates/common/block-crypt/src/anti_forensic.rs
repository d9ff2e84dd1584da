//! The anti-forensic split of LUKS: a key is spread over so much that all of it has to be there to have any of it.

use crate::hash::Hash;
use crate::secret::Secret;

/// `key` spread over `stripes` times as many bytes. `random` fills what it is given.
pub fn af_split<E>(
    hash: Hash,
    key: &[u8],
    stripes: usize,
    mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Secret, E> {
    let len = key.len();
    let mut split = Secret::zeroed(len * stripes.max(1));
    let (noise, last) = split.expose_mut().split_at_mut(len * (stripes.max(1) - 1));
    random(noise)?;
    let folded = fold(hash, noise, len);
    last.iter_mut().zip(key).zip(folded.expose()).for_each(|((to, key), folded)| *to = key ^ folded);
    Ok(split)
}

/// The key of `len` bytes that was spread over `split`, which is as many times as long as it had stripes.
///
/// # Panics
/// `split` is no multiple of `len`, or empty.
pub fn af_merge(hash: Hash, split: &[u8], len: usize) -> Secret {
    assert!(
        len > 0 && !split.is_empty() && split.len().is_multiple_of(len),
        "{} bytes of stripes of {len}",
        split.len()
    );
    let (noise, last) = split.split_at(split.len() - len);
    let mut key = fold(hash, noise, len);
    key.expose_mut().iter_mut().zip(last).for_each(|(to, last)| *to ^= last);
    key
}

/// Each stripe is added to what came of those before it, and that is diffused.
fn fold(hash: Hash, stripes: &[u8], len: usize) -> Secret {
    let mut folded = Secret::zeroed(len);
    for stripe in stripes.chunks_exact(len.max(1)) {
        folded.expose_mut().iter_mut().zip(stripe).for_each(|(to, byte)| *to ^= byte);
        diffuse(hash, folded.expose_mut());
    }
    folded
}

/// Every piece as long as the hash is replaced by the hash of its number and itself.
fn diffuse(hash: Hash, bytes: &mut [u8]) {
    for (number, piece) in bytes.chunks_mut(hash.len()).enumerate() {
        let hashed = Secret::new(hash.digest(&[&(number as u32).to_be_bytes(), piece]));
        piece.copy_from_slice(&hashed.expose()[..piece.len()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    proptest! {
        #[test]
        fn what_is_split_is_merged(key in prop::collection::vec(any::<u8>(), 1..100), stripes in 1usize..20, which in 0usize..6, seed: u64) {
            let hash = Hash::ALL[which];
            let mut state = seed;
            let random = |bytes: &mut [u8]| {
                bytes.iter_mut().for_each(|byte| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    *byte = (state >> 56) as u8;
                });
                Ok::<(), Infallible>(())
            };
            let split = af_split(hash, &key, stripes, random).expect("it cannot fail");
            prop_assert_eq!(split.expose().len(), key.len() * stripes);
            let merged = af_merge(hash, split.expose(), key.len());
            prop_assert_eq!(merged.expose(), &key[..]);
            // Any bit that is another makes another key.
            let mut other = split.clone();
            let at = seed as usize % other.expose().len();
            other.expose_mut()[at] ^= 1;
            let merged = af_merge(hash, other.expose(), key.len());
            prop_assert_ne!(merged.expose(), &key[..]);
        }
    }

    #[test]
    fn without_random_numbers_nothing_is_split() {
        assert_eq!(af_split(Hash::Sha1, b"key", 4, |_| Err("none")).expect_err("none"), "none");
    }
}
