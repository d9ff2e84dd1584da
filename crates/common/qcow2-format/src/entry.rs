//! Entries of the L1 and L2 tables: where a guest cluster lies, and what of it.

use crate::geometry::Geometry;

/// Subclusters of a cluster with an extended entry.
pub const SUBCLUSTERS: u32 = 32;

/// Bits 9 to 55: a place in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: whoever holds this entry is the cluster's only one.
const COPIED: u64 = 1 << 63;
/// Bit 62: a compressed cluster.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0, in version 3 without subclusters: reads as zeroes.
const ZERO: u64 = 1;

/// An entry of an L1 table (specification: "L1 table entry").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(u64);

impl L1Entry {
    /// The number as it stands in the table.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// A table at `offset`, of which this is the only user if `copied`.
    pub const fn new(offset: u64, copied: bool) -> Self {
        Self(offset | if copied { COPIED } else { 0 })
    }

    /// The number as it stands in the table.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Where the L2 table lies, if there is one. Not checked: it may lie anywhere.
    pub const fn table(self) -> Option<u64> {
        match self.0 & OFFSET {
            0 => None,
            offset => Some(offset),
        }
    }

    /// Whether the table's reference count is exactly one.
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Bits that have to be zero and are not.
    pub const fn reserved(self) -> u64 {
        self.0 & !(OFFSET | COPIED)
    }
}

/// The first 64 bits of an entry of an L2 table (specification: "L2 table entry").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry(u64);

/// What an L2 entry says of its cluster. Offsets are in bytes of the data file, or of the image for compressed data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L2Kind {
    /// Nothing here: the backing file's content, or zeroes.
    Unallocated,
    /// Reads as zeroes, without a place.
    Zero,
    /// Reads as zeroes, with a place that is kept for it.
    ZeroAllocated(u64),
    /// Data, one to one.
    Data(u64),
    /// Compressed data: it begins at the first number and has so many bytes at most.
    Compressed(u64, u64),
}

impl L2Entry {
    /// Unallocated.
    pub const EMPTY: Self = Self(0);
    /// Reads as zeroes, without a place. Not with subclusters.
    pub const ZERO: Self = Self(ZERO);

    /// The number as it stands in the table.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number as it stands in the table.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Data at `offset` that nobody else refers to.
    #[inline]
    pub const fn data(offset: u64) -> Self {
        Self(offset | COPIED)
    }

    /// Zeroes, with a place at `offset` that nobody else refers to. Not with subclusters.
    pub const fn zero_allocated(offset: u64) -> Self {
        Self(offset | COPIED | ZERO)
    }

    /// Compressed data in `len` bytes at `offset`, or `None` if the entry has no room for that: see [`L2Entry::compressed_bits`].
    pub fn compressed(geometry: &Geometry, offset: u64, len: u64) -> Option<Self> {
        let (offset_bits, size_bits) = Self::compressed_bits(geometry);
        let last = offset.checked_add(len.checked_sub(1)?)?;
        let sectors = (last >> 9) - (offset >> 9);
        if offset >> offset_bits != 0 || sectors >> size_bits != 0 {
            return None;
        }
        Some(Self(COMPRESSED | sectors << offset_bits | offset))
    }

    /// How many bits of a compressed entry are its offset, and how many the number of further sectors.
    pub const fn compressed_bits(geometry: &Geometry) -> (u32, u32) {
        let size_bits = geometry.cluster_bits() - 8;
        (62 - size_bits, size_bits)
    }

    /// What it says. `Zero` kinds do not occur with subclusters, whose bits say that.
    #[inline]
    pub fn kind(self, geometry: &Geometry) -> L2Kind {
        if self.0 & COMPRESSED != 0 {
            let (offset_bits, size_bits) = Self::compressed_bits(geometry);
            let offset = self.0 & ((1 << offset_bits) - 1);
            let sectors = (self.0 >> offset_bits) & ((1 << size_bits) - 1);
            return L2Kind::Compressed(offset, (sectors + 1) * 512 - offset % 512);
        }
        let zero = !geometry.is_extended() && self.0 & ZERO != 0;
        match (self.0 & OFFSET, zero) {
            (0, false) => L2Kind::Unallocated,
            (0, true) => L2Kind::Zero,
            (offset, false) => L2Kind::Data(offset),
            (offset, true) => L2Kind::ZeroAllocated(offset),
        }
    }

    /// As [`L2Entry::kind`], for a data file in which data lies at the guest's own offsets: zero is a place there as well, and only the
    /// COPIED bit tells a cluster at zero from none.
    #[inline]
    pub fn kind_in_data_file(self, geometry: &Geometry) -> L2Kind {
        match self.kind(geometry) {
            L2Kind::Unallocated if self.is_copied() => L2Kind::Data(0),
            L2Kind::Zero if self.is_copied() => L2Kind::ZeroAllocated(0),
            other => other,
        }
    }

    /// Whether the cluster's reference count is exactly one, so that it may be overwritten.
    #[inline]
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The same, with another COPIED bit.
    #[must_use]
    pub const fn with_copied(self, copied: bool) -> Self {
        Self(if copied { self.0 | COPIED } else { self.0 & !COPIED })
    }

    /// Bits that have to be zero and are not.
    pub const fn reserved(self, geometry: &Geometry) -> u64 {
        if self.0 & COMPRESSED != 0 {
            return 0;
        }
        let zero = if geometry.is_extended() { 0 } else { ZERO };
        self.0 & !(OFFSET | COPIED | zero)
    }
}

/// What one subcluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubclusterState {
    /// The backing file's content.
    Unallocated,
    /// Zeroes.
    Zero,
    /// In the cluster's place.
    Allocated,
    /// Allocated and zero at once: the image is corrupt.
    Invalid,
}

/// The second 64 bits of an extended L2 entry (specification: "Extended L2 Entries"): 32 bits "allocated", 32 bits "reads as zeroes".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubclusterBits(u64);

impl SubclusterBits {
    /// Every subcluster in its place.
    pub const ALL_ALLOCATED: Self = Self(0xffff_ffff);
    /// Every subcluster zero.
    pub const ALL_ZERO: Self = Self(0xffff_ffff << 32);

    /// The number as it stands in the table.
    #[inline]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The number as it stands in the table.
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// What the subcluster at `index` is.
    #[inline]
    pub const fn state(self, index: u32) -> SubclusterState {
        match (self.0 >> index & 1 != 0, self.0 >> (index + SUBCLUSTERS) & 1 != 0) {
            (false, false) => SubclusterState::Unallocated,
            (true, false) => SubclusterState::Allocated,
            (false, true) => SubclusterState::Zero,
            (true, true) => SubclusterState::Invalid,
        }
    }

    /// For how many subclusters from `index` on the state is the same.
    #[inline]
    pub fn run(self, index: u32) -> (SubclusterState, u32) {
        let state = self.state(index);
        let len = (index..SUBCLUSTERS).take_while(|i| self.state(*i) == state).count();
        (state, len as u32)
    }

    /// Bits for `count` subclusters from `first` on.
    const fn mask(first: u32, count: u32) -> u64 {
        (((1 << count) - 1) << first) & 0xffff_ffff
    }

    /// The same with `count` subclusters from `first` on in their place.
    #[must_use]
    pub const fn with_allocated(self, first: u32, count: u32) -> Self {
        let mask = Self::mask(first, count);
        Self((self.0 | mask) & !(mask << 32))
    }

    /// The same with `count` subclusters from `first` on zero.
    #[must_use]
    pub const fn with_zero(self, first: u32, count: u32) -> Self {
        let mask = Self::mask(first, count);
        Self((self.0 & !mask) | mask << 32)
    }

    /// The same with `count` subclusters from `first` on unallocated.
    #[must_use]
    pub const fn with_unallocated(self, first: u32, count: u32) -> Self {
        let mask = Self::mask(first, count);
        Self(self.0 & !(mask | mask << 32))
    }

    /// Whether any subcluster is in its place.
    pub const fn any_allocated(self) -> bool {
        self.0 & 0xffff_ffff != 0
    }

    /// Whether a subcluster is allocated and zero at once.
    pub const fn is_invalid(self) -> bool {
        self.0 & (self.0 >> 32) & 0xffff_ffff != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(bits: u32) -> Geometry {
        Geometry::new(bits, false).expect("a cluster size")
    }

    #[test]
    fn entries_say_where_a_cluster_lies() {
        let g = geometry(16);
        let kind = |raw| L2Entry::from_raw(raw).kind(&g);
        assert_eq!(kind(0), L2Kind::Unallocated);
        assert_eq!(kind(1), L2Kind::Zero);
        assert_eq!(kind(1 << 63 | 0x50000), L2Kind::Data(0x50000));
        assert_eq!(kind(1 << 63 | 0x50001), L2Kind::ZeroAllocated(0x50000));
        assert_eq!(L2Entry::from_raw(1 << 63).kind_in_data_file(&g), L2Kind::Data(0));
        assert_eq!(L2Entry::from_raw(0x2).reserved(&g), 2);
        let extended = Geometry::new(16, true).expect("a cluster size");
        assert_eq!(L2Entry::from_raw(0x50001).kind(&extended), L2Kind::Data(0x50000));
        assert_eq!(L2Entry::from_raw(0x50001).reserved(&extended), 1);
    }

    #[test]
    fn compressed_entries_count_sectors() {
        for bits in Geometry::CLUSTER_BITS {
            let g = geometry(bits);
            let entry = L2Entry::compressed(&g, 0x1_0003, 700).expect("it fits");
            // From 3 bytes into a sector, 700 bytes end in the second one.
            assert_eq!(entry.kind(&g), L2Kind::Compressed(0x1_0003, 1021));
            let longest = L2Entry::compressed(&g, 511, g.cluster_size() * 2 - 511).expect("it fits");
            assert_eq!(longest.kind(&g), L2Kind::Compressed(511, g.cluster_size() * 2 - 511));
        }
        assert_eq!(L2Entry::compressed(&geometry(21), 1 << 60, 5), None);
        assert_eq!(L2Entry::compressed(&geometry(16), 0, 0), None);
    }

    #[test]
    fn subclusters_have_one_state_each() {
        let bits = SubclusterBits::default().with_allocated(0, 3).with_zero(3, 29);
        assert_eq!(bits.run(0), (SubclusterState::Allocated, 3));
        assert_eq!(bits.run(3), (SubclusterState::Zero, 29));
        assert_eq!(bits.with_allocated(0, 32), SubclusterBits::ALL_ALLOCATED);
        assert_eq!(bits.with_zero(0, 32), SubclusterBits::ALL_ZERO);
        assert_eq!(bits.with_unallocated(0, 32), SubclusterBits::default());
        assert!(SubclusterBits::from_raw(1 | 1 << 32).is_invalid() && !bits.is_invalid());
    }
}
