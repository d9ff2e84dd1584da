//! What lies at a key slot's place: a key, split and encrypted. It is the same in both versions.

use crate::error::LuksError;
use block_crypt::{CipherSpec, Hash, Secret, SectorCipher, af_merge, af_split};

/// How many times as long as a key its material is in all headers that are made today.
pub(crate) const STRIPES: u32 = 4000;
/// Material is whole sectors: bytes.
pub(crate) const SECTOR: u64 = SectorCipher::UNIT as u64;

/// Bytes of the material of a key of `key_len` bytes.
pub(crate) fn len(key_len: usize) -> u64 {
    (key_len as u64 * u64::from(STRIPES)).next_multiple_of(SECTOR)
}

/// The key of `key_len` bytes in `material`, which has [`len`] bytes, if `derived` is what it was encrypted with; otherwise something else.
pub(crate) fn open(
    spec: CipherSpec,
    derived: &Secret,
    hash: Hash,
    material: &[u8],
    key_len: usize,
) -> Result<Secret, LuksError> {
    let mut split = Secret::new(material.to_vec());
    SectorCipher::new(spec, derived.expose())?.decrypt(0, SectorCipher::UNIT, split.expose_mut());
    Ok(af_merge(hash, &split.expose()[..key_len * STRIPES as usize], key_len))
}

/// The material of `key`, encrypted with `derived`. What is behind the last stripe is random.
pub(crate) fn seal<E: From<LuksError>>(
    spec: CipherSpec,
    derived: &Secret,
    hash: Hash,
    key: &Secret,
    mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
) -> Result<Secret, E> {
    let split = af_split(hash, key.expose(), STRIPES as usize, &mut random)?;
    let mut material = Secret::zeroed(len(key.expose().len()) as usize);
    let (data, rest) = material.expose_mut().split_at_mut(split.expose().len());
    data.copy_from_slice(split.expose());
    random(rest)?;
    let cipher = SectorCipher::new(spec, derived.expose()).map_err(LuksError::from)?;
    cipher.encrypt(0, SectorCipher::UNIT, material.expose_mut());
    Ok(material)
}

/// Bytes that tests can have again.
#[cfg(test)]
pub(crate) fn random(seed: u64) -> impl FnMut(&mut [u8]) -> Result<(), LuksError> {
    let mut state = seed;
    move |bytes| {
        bytes.iter_mut().for_each(|byte| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        });
        Ok(())
    }
}
