//! How large the file of a new image will be, before there is one.

use crate::layout::refcount_bits;
use crate::{Bitmap, Geometry, LayoutError, RefcountBits};
use std::ops::Range;

/// What of a new image says how large its file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasureOptions {
    geometry: Geometry,
    refcount: RefcountBits,
    /// Bytes of the encryption's header, in whole clusters.
    crypto: u64,
}

/// Bytes that the file of a new image takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// As it is written at first.
    pub required: u64,
    /// With every cluster allocated.
    pub fully_allocated: u64,
}

impl MeasureOptions {
    /// Clusters of `cluster_size` bytes, L2 entries that are `extended`, reference counts of `bits` bits.
    ///
    /// # Errors
    /// Sizes that cannot be.
    pub fn new(cluster_size: u64, extended: bool, bits: u64) -> Result<Self, LayoutError> {
        let order = cluster_size.checked_ilog2().filter(|_| cluster_size.is_power_of_two());
        let order = order.filter(|order| Geometry::CLUSTER_BITS.contains(order)).ok_or(LayoutError::ClusterSize)?;
        let geometry = Geometry::new(order, extended).map_err(|_| LayoutError::ClusterSizeExtended)?;
        Ok(Self { geometry, refcount: refcount_bits(bits)?, crypto: 0 })
    }

    /// The same with an encryption header of `len` bytes, key material included. As in the field, what counts its clusters is not counted.
    ///
    /// # Errors
    /// [`LayoutError::SizeTooBig`].
    pub fn with_encryption_header(self, len: u64) -> Result<Self, LayoutError> {
        let crypto = len.checked_next_multiple_of(self.geometry.cluster_size()).filter(|len| *len <= i64::MAX as u64);
        Ok(Self { crypto: crypto.ok_or(LayoutError::SizeTooBig)?, ..self })
    }

    /// The width of reference counts.
    pub fn refcount(&self) -> RefcountBits {
        self.refcount
    }

    /// Counts clusters that hold data.
    pub fn used_clusters(&self) -> UsedClusters {
        UsedClusters { geometry: self.geometry, end: 0, count: 0 }
    }

    /// What bitmaps with names of so many bytes, and of these granularities, take beside that, in bytes, for a disk of `size` bytes.
    pub fn bitmaps(&self, size: u64, bitmaps: impl Iterator<Item = (usize, u64)>) -> u64 {
        let (mut clusters, mut directory) = (0, 0);
        for (name, granularity) in bitmaps {
            let bits = Bitmap::table_entries_for(size, granularity.max(1).ilog2() as u8, &self.geometry);
            clusters += bits + self.geometry.clusters_for(bits * 8);
            directory += Bitmap::entry_len(name);
        }
        (clusters + self.geometry.clusters_for(directory)) << self.geometry.cluster_bits()
    }

    /// The file of an image of `size` bytes, of whose clusters `used` hold data.
    ///
    /// # Errors
    /// [`LayoutError::SizeTooBig`].
    pub fn measure(&self, size: u64, used: u64) -> Result<Measured, LayoutError> {
        let geometry = &self.geometry;
        if size > geometry.size_max() {
            return Err(LayoutError::SizeTooBig);
        }
        let clusters = geometry.clusters_for(size);
        let l2 = geometry.l1_entries_for(size);
        let l1 = geometry.clusters_for(l2 * 8);
        // The header is a cluster as well.
        let tables = 1 + l1 + l2;
        let counts = 1 << self.refcount.block_bits(geometry.cluster_bits());
        let (mut blocks, mut refcounts) = (0, 0);
        loop {
            let needed = (clusters + tables + refcounts).div_ceil(counts);
            if needed == blocks {
                break;
            }
            blocks = needed;
            refcounts = blocks + geometry.clusters_for(blocks * 8);
        }
        let bytes = |clusters: u64| {
            let bytes = clusters.checked_mul(geometry.cluster_size())?.checked_add(self.crypto)?;
            (bytes <= i64::MAX as u64).then_some(bytes)
        };
        let all = bytes(tables + refcounts + clusters).ok_or(LayoutError::SizeTooBig)?;
        let required = bytes(tables + refcounts + used.min(clusters)).ok_or(LayoutError::SizeTooBig)?;
        Ok(Measured { required, fully_allocated: all })
    }
}

/// How many clusters hold data, of ranges that are told in their order.
#[derive(Clone, Debug)]
pub struct UsedClusters {
    geometry: Geometry,
    /// The first cluster that has not been counted.
    end: u64,
    count: u64,
}

impl UsedClusters {
    /// These bytes are data.
    pub fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (first, end) = (self.geometry.cluster(range.start).max(self.end), self.geometry.clusters_for(range.end));
        self.count += end.saturating_sub(first);
        self.end = self.end.max(end);
    }

    /// How many clusters hold data.
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cluster_size: u64, extended: bool, bits: u64, size: u64, expected: (u64, u64)) {
        let options = MeasureOptions::new(cluster_size, extended, bits).expect("sizes");
        let measured = options.measure(size, 0).expect("not too large");
        assert_eq!((measured.required, measured.fully_allocated), expected, "{size} in clusters of {cluster_size}");
    }

    /// The numbers are those of qemu-img 10.0.2.
    #[test]
    fn files_are_as_large_as_their_tables() {
        check(65536, false, 16, 0, (196_608, 196_608));
        check(65536, false, 16, 1000, (327_680, 393_216));
        check(65536, false, 16, 1 << 40, (168_034_304, 1_099_679_662_080));
        check(65536, true, 16, 1 << 40, (302_252_032, 1_099_813_879_808));
        check(65536, false, 1, 1 << 40, (136_577_024, 1_099_648_204_800));
        check(512, false, 16, 10 << 20, (209_920, 10_695_680));
        check(512, false, 64, 10 << 20, (339_456, 10_825_216));
        check(512, false, 64, 128 << 30, (4_432_415_744, 141_871_369_216));
        check(2 << 20, false, 16, 1 << 61, (10_995_174_998_016, 2_305_854_004_388_691_968));
        let small = MeasureOptions::new(512, false, 16).expect("sizes");
        assert_eq!(small.measure((128 << 30) + 1, 0), Err(LayoutError::SizeTooBig));
    }

    /// The numbers are those of qemu-img 10.0.2, whose header for a key of 64 bytes has 0x1f9000 bytes, and for one of 32 bytes 0x101000.
    #[test]
    fn the_encryption_header_takes_whole_clusters() {
        let check = |cluster_size, extended, len, size, expected| {
            let options = MeasureOptions::new(cluster_size, extended, 16).expect("sizes");
            let options = options.with_encryption_header(len).expect("not too long");
            let measured = options.measure(size, 0).expect("not too large");
            assert_eq!((measured.required, measured.fully_allocated), expected, "{size} in clusters of {cluster_size}");
        };
        check(65536, false, 0x1f9000, 0, (2_293_760, 2_293_760));
        check(65536, false, 0x1f9000, 1 << 40, (170_131_456, 1_099_681_759_232));
        check(65536, false, 0x101000, 1 << 20, (1_441_792, 2_490_368));
        check(65536, true, 0x1f9000, 1 << 40, (304_349_184, 1_099_815_976_960));
        check(512, false, 0x1f9000, 64 << 20, (3_406_336, 70_515_200));
        check(2 << 20, false, 0x1f9000, 1 << 20, (12_582_912, 14_680_064));
        let options = MeasureOptions::new(512, false, 16).expect("sizes");
        assert_eq!(options.with_encryption_header(u64::MAX), Err(LayoutError::SizeTooBig));
        let most = options.with_encryption_header(i64::MAX as u64 - 511).expect("it fits");
        assert_eq!(most.measure(1 << 20, 0), Err(LayoutError::SizeTooBig));
    }

    #[test]
    fn a_cluster_is_counted_once() {
        let options = MeasureOptions::new(512, false, 16).expect("sizes");
        let mut used = options.used_clusters();
        for range in [0..1, 1..2, 510..512, 600..600, 1023..1025, 4096..8192] {
            used.add(range);
        }
        assert_eq!(used.count(), 1 + 2 + 8);
    }
}
