//! An image's fixed sizes.

use crate::FormatError;

/// How an image is divided: everything that follows from cluster size, kind of L2 entries and virtual size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u32,
    extended: bool,
}

impl Geometry {
    /// Cluster sizes: 512 bytes to 2 MiB.
    pub const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
    /// With subclusters, clusters are at least this large.
    pub const EXTENDED_CLUSTER_BITS_MIN: u32 = 14;
    /// The longest L1 table, in bytes.
    pub const L1_BYTES_MAX: u64 = 32 << 20;

    /// Clusters of `1 << cluster_bits` bytes; `extended` L2 entries have a bit for each of 32 subclusters.
    ///
    /// # Errors
    /// A cluster size that cannot be.
    pub fn new(cluster_bits: u32, extended: bool) -> Result<Self, FormatError> {
        if !Self::CLUSTER_BITS.contains(&cluster_bits) {
            return Err(FormatError::ClusterBits(cluster_bits));
        }
        if extended && cluster_bits < Self::EXTENDED_CLUSTER_BITS_MIN {
            return Err(FormatError::ClusterBitsExtended(cluster_bits));
        }
        Ok(Self { cluster_bits, extended })
    }

    /// The binary logarithm of the cluster size.
    #[inline]
    pub const fn cluster_bits(&self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster.
    #[inline]
    pub const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have subclusters.
    #[inline]
    pub const fn is_extended(&self) -> bool {
        self.extended
    }

    /// Bytes of an L2 entry.
    #[inline]
    pub const fn l2_entry_size(&self) -> u64 {
        if self.extended { 16 } else { 8 }
    }

    /// The binary logarithm of the number of entries of an L2 table, which fills a cluster.
    #[inline]
    pub const fn l2_bits(&self) -> u32 {
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// Entries of an L2 table.
    #[inline]
    pub const fn l2_entries(&self) -> u64 {
        1 << self.l2_bits()
    }

    /// Bytes of a subcluster: of a cluster, where there are none.
    #[inline]
    pub const fn subcluster_size(&self) -> u64 {
        if self.extended { self.cluster_size() >> 5 } else { self.cluster_size() }
    }

    /// The index of the cluster that `offset` lies in.
    #[inline]
    pub const fn cluster(&self, offset: u64) -> u64 {
        offset >> self.cluster_bits
    }

    /// Where in its cluster `offset` lies.
    #[inline]
    pub const fn within(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    /// Whether `offset` is where a cluster begins.
    #[inline]
    pub const fn is_aligned(&self, offset: u64) -> bool {
        self.within(offset) == 0
    }

    /// How many clusters `bytes` take.
    #[inline]
    pub const fn clusters_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// The L1 index that leads to `offset` of the guest.
    #[inline]
    pub const fn l1_index(&self, offset: u64) -> u64 {
        offset >> (self.cluster_bits + self.l2_bits())
    }

    /// Entries that an L1 table needs for `size` bytes.
    pub const fn l1_entries_for(&self, size: u64) -> u64 {
        size.div_ceil(1 << (self.cluster_bits + self.l2_bits()))
    }

    /// The longest virtual disk, in bytes, whose L1 table can be.
    pub const fn size_max(&self) -> u64 {
        let entries = Self::L1_BYTES_MAX / 8;
        let bits = self.cluster_bits + self.l2_bits();
        // 22 bits of entries and 21 + 18 of what one of them maps: 61.
        let bytes = entries << bits;
        // Offsets are signed in this field.
        if bytes > i64::MAX as u64 { i64::MAX as u64 } else { bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_follow_from_the_cluster_size() {
        let plain = Geometry::new(16, false).expect("64 KiB");
        assert_eq!((plain.l2_entries(), plain.l2_entry_size(), plain.subcluster_size()), (8192, 8, 65536));
        assert_eq!(
            (plain.l1_entries_for(1 << 40), plain.l1_index((512 << 20) - 1), plain.l1_index(512 << 20)),
            (2048, 0, 1)
        );
        let extended = Geometry::new(16, true).expect("64 KiB");
        assert_eq!((extended.l2_entries(), extended.l2_entry_size(), extended.subcluster_size()), (4096, 16, 2048));
        assert_eq!(Geometry::new(21, false).expect("2 MiB").size_max(), 1 << 61);
    }

    #[test]
    fn other_cluster_sizes_are_refused() {
        assert_eq!(Geometry::new(8, false), Err(FormatError::ClusterBits(8)));
        assert_eq!(Geometry::new(22, false), Err(FormatError::ClusterBits(22)));
        assert_eq!(Geometry::new(13, true), Err(FormatError::ClusterBitsExtended(13)));
    }
}
