//! What a node knows about a range without reading it: block status.
//!
//! The vocabulary only; asking, clamping and caching is the request pipeline's work. Rule stat-1 holds for every answer:
//! calling zeroes data is safe, calling data a hole never is.

use crate::HostOffset;
use bitflags::bitflags;
use std::fmt;

bitflags! {
    /// Status of a range. Several hold at once: `ZERO | ALLOCATED` is an explicit zero cluster of an overlay, `ZERO` alone
    /// comes from below it.
    #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
    pub struct BlockStatus: u16 {
        /// Reading has to look at storage for the data. Without this and without [`BlockStatus::ZERO`] the content is
        /// unknown at this layer: ask the backing chain.
        const DATA = 1 << 0;
        /// Reads as zeroes.
        const ZERO = 1 << 1;
        /// [`StatusExtent::host_offset`] says where in the child the raw bytes are, one to one.
        const OFFSET_VALID = 1 << 2;
        /// This layer decides the content, not its backing file.
        const ALLOCATED = 1 << 3;
        /// The range ends where the node ends.
        const EOF = 1 << 4;
        /// The child that [`StatusExtent::host_offset`] points into may know better what is data and what is zero: ask it
        /// too. For drivers, not for their callers.
        const RECURSE = 1 << 5;
        /// The answer is the child's at [`StatusExtent::host_offset`], and the caller should ask there instead. For
        /// drivers, not for their callers.
        const RAW = 1 << 6;
        /// Stored compressed: there is no one-to-one place in the child.
        const COMPRESSED = 1 << 7;
    }
}

impl fmt::Debug for BlockStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() { f.write_str("NONE") } else { bitflags::parser::to_writer(self, f) }
    }
}

/// Status of the first `len` bytes of the range that was asked about: they share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StatusExtent {
    /// What holds for them.
    pub status: BlockStatus,
    /// How many bytes, counted from the start of the question; more than none, unless the question begins at the node's end.
    pub len: u64,
    /// Where the first of them lies in the child that has them; given exactly when `status` contains
    /// [`BlockStatus::OFFSET_VALID`].
    pub host_offset: Option<HostOffset>,
}

impl StatusExtent {
    /// `len` bytes with a status that says nothing of a place: drops [`BlockStatus::OFFSET_VALID`].
    pub const fn new(status: BlockStatus, len: u64) -> Self {
        Self { status: status.difference(BlockStatus::OFFSET_VALID), len, host_offset: None }
    }

    /// `len` bytes that lie at `host_offset` of the child.
    pub const fn mapped(status: BlockStatus, len: u64, host_offset: HostOffset) -> Self {
        Self { status: status.union(BlockStatus::OFFSET_VALID), len, host_offset: Some(host_offset) }
    }

    /// Plain data of this layer, without a place: always a safe answer.
    pub const fn data(len: u64) -> Self {
        Self::new(BlockStatus::DATA.union(BlockStatus::ALLOCATED), len)
    }

    /// Zeroes that this layer decided on.
    pub const fn zero(len: u64) -> Self {
        Self::new(BlockStatus::ZERO.union(BlockStatus::ALLOCATED), len)
    }

    /// Nothing known at this layer: the backing chain decides.
    pub const fn unallocated(len: u64) -> Self {
        Self::new(BlockStatus::empty(), len)
    }

    /// The first `len` bytes of the extent, or all of it if it is shorter. A shortened extent does not end the node.
    pub const fn truncated(self, len: u64) -> Self {
        if len >= self.len {
            return self;
        }
        Self { len, status: self.status.difference(BlockStatus::EOF), ..self }
    }

    /// Whether the bytes read as zeroes.
    pub const fn is_zero(self) -> bool {
        self.status.contains(BlockStatus::ZERO)
    }

    /// Whether this layer, not its backing file, decides the bytes.
    pub const fn is_allocated(self) -> bool {
        self.status.contains(BlockStatus::ALLOCATED)
    }

    /// Whether `other`, asked at this extent's end, goes on where this one stops: same status, and next to it on the child
    /// if both are mapped.
    pub fn is_continued_by(self, other: Self) -> bool {
        let place = match (self.host_offset, other.host_offset) {
            (None, None) => true,
            (Some(here), Some(there)) => here.0.checked_add(self.len) == Some(there.0),
            _ => false,
        };
        place && self.status == other.status.difference(BlockStatus::EOF)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_and_its_bit_go_together() {
        let status = BlockStatus::DATA | BlockStatus::OFFSET_VALID;
        assert_eq!(StatusExtent::new(status, 10).status, BlockStatus::DATA);
        let mapped = StatusExtent::mapped(BlockStatus::DATA, 10, HostOffset(512));
        assert!(mapped.status.contains(BlockStatus::OFFSET_VALID) && mapped.host_offset == Some(HostOffset(512)));
        assert_eq!(format!("{:?} {:?}", mapped.status, BlockStatus::empty()), "DATA | OFFSET_VALID NONE");
    }

    #[test]
    fn a_shortened_extent_is_not_the_end() {
        let end = StatusExtent::new(BlockStatus::ZERO | BlockStatus::EOF, 10);
        assert_eq!(end.truncated(10), end);
        assert_eq!(end.truncated(4), StatusExtent::new(BlockStatus::ZERO, 4));
    }

    #[test]
    fn neighbours_continue_each_other() {
        let first = StatusExtent::mapped(BlockStatus::DATA, 10, HostOffset(512));
        assert!(first.is_continued_by(StatusExtent::mapped(BlockStatus::DATA | BlockStatus::EOF, 1, HostOffset(522))));
        assert!(!first.is_continued_by(StatusExtent::mapped(BlockStatus::DATA, 1, HostOffset(523))));
        assert!(!first.is_continued_by(StatusExtent::new(BlockStatus::DATA, 1)));
        assert!(StatusExtent::zero(1).is_continued_by(StatusExtent::zero(1)));
        assert!(!StatusExtent::zero(1).is_continued_by(StatusExtent::data(1)));
    }
}
