//! A small random number generator whose sequence never changes, so that a seed from an old log still means the same
//! run.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

/// The environment variable that overrides the seeds of randomised tests.
const SEED_VARIABLE: &str = "CAIRN_SEED";

/// The seed of this run: that of the environment (decimal, or hexadecimal after `0x`), else a new one.
///
/// # Panics
/// When the variable holds no number: running with another seed than the one asked for would prove nothing.
pub fn seed() -> u64 {
    let Ok(text) = std::env::var(SEED_VARIABLE) else { return RandomState::new().hash_one(0) };
    let number = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    number.unwrap_or_else(|_| panic!("{SEED_VARIABLE}={text} is no number"))
}

/// How to run with `seed` again, for messages.
pub(crate) fn again(seed: u64) -> String {
    format!("{SEED_VARIABLE}={seed:#x}")
}

/// SplitMix64: passes what tests of randomness there are, and is four lines long.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The sequence that belongs to `seed`.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number of the range, which is not empty. The bias of the remainder does not matter at the ranges of tests.
    pub const fn below(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True in `percent` of all cases.
    pub const fn chance(&mut self, percent: u64) -> bool {
        self.next() % 100 < percent
    }

    /// A generator of its own, for something that runs beside this one.
    pub const fn fork(&mut self) -> Self {
        Self(self.next())
    }
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fill `bytes`, which stand at `offset`, with what the write called `stamp` puts there: data that tells whose it is
/// and where it belongs.
pub(crate) fn stamp(stamp: u64, offset: u64, bytes: &mut [u8]) {
    let mut at = 0;
    while at < bytes.len() {
        let place = offset + at as u64;
        let word = mix(stamp ^ mix(place / 8)).to_le_bytes();
        let skip = (place % 8) as usize;
        let n = (8 - skip).min(bytes.len() - at);
        bytes[at..at + n].copy_from_slice(&word[skip..skip + n]);
        at += n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_sequence() {
        let mut rng = Rng::new(42);
        assert_eq!([rng.next(), rng.next()], [0xbdd7_3226_2feb_6e95, 0x28ef_e333_b266_f103]);
        assert!((0..1000).all(|_| (5..9).contains(&rng.below(5..9))));
    }

    #[test]
    fn a_stamp_does_not_depend_on_how_it_is_cut() {
        let mut whole = [0; 100];
        stamp(7, 1003, &mut whole);
        let mut cut = [0; 100];
        stamp(7, 1003, &mut cut[..13]);
        stamp(7, 1016, &mut cut[13..]);
        assert_eq!(whole, cut);
        stamp(8, 1003, &mut cut);
        assert_ne!(whole, cut);
    }
}
