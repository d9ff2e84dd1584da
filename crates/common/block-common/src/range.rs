//! Offsets and ranges, in newtypes that cannot be swapped.
//!
//! Each layer of a graph has its own address space. Seen from one node, a *guest* offset counts in what the node shows
//! to its parents, a *host* offset in what its child shows to it. Going down an edge turns the one into the other, and
//! that is the only conversion there is. Clusters and other on-disk units are newtypes of the formats themselves.

use crate::{IoError, IoResult};
use std::fmt;

/// The largest length of a node and the largest end of a request: 2^63 - 1 bytes (rule req-3).
pub const LENGTH_MAX: u64 = i64::MAX as u64;

/// Bytes from the start of what a node shows to its parents.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestOffset(pub u64);

/// Bytes from the start of what a child shows to the node that is being looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct HostOffset(pub u64);

impl HostOffset {
    /// The same place as the child itself counts it: one step down an edge.
    pub const fn descend(self) -> GuestOffset {
        GuestOffset(self.0)
    }
}

impl fmt::Debug for GuestOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {:#x}", self.0)
    }
}

impl fmt::Debug for HostOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {:#x}", self.0)
    }
}

/// A range of guest bytes whose end does not exceed [`LENGTH_MAX`]: checked once, when it is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestRange {
    offset: u64,
    len: u64,
}

impl GuestRange {
    /// The `len` bytes at `offset`.
    ///
    /// # Errors
    /// [`IoError::INVALID`] when the end exceeds 2^63 - 1.
    #[doc(alias = "bdrv_check_request")]
    #[doc(alias = "bdrv_check_qiov_request")]
    pub const fn new(offset: u64, len: u64) -> IoResult<Self> {
        match offset.checked_add(len) {
            Some(end) if end <= LENGTH_MAX => Ok(Self { offset, len }),
            _ => Err(IoError::INVALID),
        }
    }

    /// First byte.
    pub const fn offset(self) -> GuestOffset {
        GuestOffset(self.offset)
    }

    /// Length in bytes.
    pub const fn len(self) -> u64 {
        self.len
    }

    /// Whether the range has no bytes.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// One past the last byte.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    /// Whether offset and length are multiples of `alignment`, a power of two.
    pub const fn is_aligned(self, alignment: u32) -> bool {
        (self.offset | self.len) & (alignment as u64 - 1) == 0
    }

    /// Whether the two ranges share a byte.
    pub const fn overlaps(self, other: Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }

    /// The part of this range from `start` bytes in, at most `len` bytes long.
    pub fn slice(self, start: u64, len: u64) -> Self {
        let start = start.min(self.len);
        Self { offset: self.offset + start, len: len.min(self.len - start) }
    }

    /// The smallest range of whole blocks of `alignment` (a power of two) bytes around this one.
    ///
    /// # Errors
    /// [`IoError::INVALID`] when rounding up leaves 2^63.
    pub fn align_out(self, alignment: u32) -> IoResult<Self> {
        let mask = u64::from(alignment) - 1;
        let offset = self.offset & !mask;
        let end = self.end().checked_add(mask).ok_or(IoError::INVALID)? & !mask;
        Self::new(offset, end - offset)
    }
}

impl fmt::Debug for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {:#x}+{:#x}", self.offset, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, len: u64) -> GuestRange {
        GuestRange::new(offset, len).expect("a valid range")
    }

    #[test]
    fn req_3_ranges_end_before_two_to_the_63() {
        assert!(GuestRange::new(LENGTH_MAX, 0).is_ok());
        assert!(GuestRange::new(LENGTH_MAX, 1).is_err());
        assert!(GuestRange::new(u64::MAX, 2).is_err());
        assert!(range(LENGTH_MAX - 1, 1).align_out(512).is_err());
    }

    #[test]
    fn overlap_is_by_bytes() {
        assert!(range(0, 10).overlaps(range(9, 1)));
        assert!(!range(0, 10).overlaps(range(10, 1)));
        assert!(!range(5, 0).overlaps(range(5, 0)));
    }

    #[test]
    fn slices_stay_inside() {
        assert_eq!(range(100, 10).slice(4, 100), range(104, 6));
        assert_eq!(range(100, 10).slice(40, 1), range(110, 0));
        assert_eq!(range(513, 10).align_out(512), Ok(range(512, 512)));
    }
}
