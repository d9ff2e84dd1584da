//! Reference counts: numbers of 1 to 64 bits in blocks of a cluster each.

use crate::FormatError;

/// The width of an image's reference counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefcountBits(u32);

impl RefcountBits {
    /// The width of version 2: 16 bits.
    pub const DEFAULT: Self = Self(4);

    /// `1 << order` bits.
    ///
    /// # Errors
    /// More than 64.
    pub fn new(order: u32) -> Result<Self, FormatError> {
        if order > 6 { Err(FormatError::RefcountOrder(order)) } else { Ok(Self(order)) }
    }

    /// The binary logarithm of the width.
    pub const fn order(self) -> u32 {
        self.0
    }

    /// The width in bits.
    pub const fn bits(self) -> u32 {
        1 << self.0
    }

    /// The largest count.
    pub const fn max(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// The binary logarithm of how many counts a block of `1 << cluster_bits` bytes has.
    pub const fn block_bits(self, cluster_bits: u32) -> u32 {
        cluster_bits + 3 - self.0
    }

    /// The count at `index` of a block; zero past its end.
    pub fn get(self, block: &[u8], index: usize) -> u64 {
        match self.0 {
            0..=2 => {
                let at = index << self.0;
                let byte = block.get(at / 8).copied().unwrap_or(0);
                // Counts of less than a byte stand from the least significant bit on.
                u64::from(byte >> (at % 8)) & self.max()
            }
            _ => {
                let len = 1usize << (self.0 - 3);
                let bytes = index.checked_mul(len).and_then(|at| block.get(at..at + len));
                bytes.map_or(0, |bytes| bytes.iter().fold(0, |count, byte| count << 8 | u64::from(*byte)))
            }
        }
    }

    /// Set the count at `index` of a block to `count`, which is at most [`RefcountBits::max`].
    ///
    /// # Panics
    /// When the block has no such count: that is the caller's bug.
    pub fn set(self, block: &mut [u8], index: usize, count: u64) {
        debug_assert!(count <= self.max(), "{count} takes more than {} bits", self.bits());
        match self.0 {
            0..=2 => {
                let at = index << self.0;
                let mask = (self.max() as u8) << (at % 8);
                let byte = &mut block[at / 8];
                *byte = *byte & !mask | (count as u8) << (at % 8) & mask;
            }
            _ => {
                let len = 1usize << (self.0 - 3);
                block[index * len..(index + 1) * len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_every_width_stand_beside_each_other() {
        for order in 0..=6 {
            let bits = RefcountBits::new(order).expect("a width");
            let mut block = vec![0; 512];
            let n = 1usize << bits.block_bits(9);
            let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & bits.max();
            (0..n).for_each(|i| bits.set(&mut block, i, value(i)));
            (0..n).for_each(|i| assert_eq!(bits.get(&block, i), value(i), "width {}, {i}", bits.bits()));
            assert_eq!(bits.get(&block, n), 0);
        }
        assert_eq!(RefcountBits::new(7), Err(FormatError::RefcountOrder(7)));
    }

    #[test]
    fn wide_counts_are_big_endian_and_narrow_ones_begin_at_the_low_bit() {
        let mut block = vec![0; 8];
        RefcountBits::DEFAULT.set(&mut block, 1, 0x1234);
        assert_eq!(block, [0, 0, 0x12, 0x34, 0, 0, 0, 0]);
        let mut block = vec![0; 2];
        RefcountBits::new(0).expect("one bit").set(&mut block, 9, 1);
        assert_eq!(block, [0, 2]);
    }
}
