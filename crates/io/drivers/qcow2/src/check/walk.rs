//! What a check knows as it goes, and the references that are not in L2 tables: header, L1 tables, snapshot table, encryption header, bitmaps.

use super::counts::Counts;
use super::refcounts::Refcounts;
use super::snapshots::Snapshots;
use super::storage::{Image, entry};
use super::tables::Tables;
use super::{CheckError, Repair, Report, Watch};
use block_qcow2_format::{Bitmap, BitmapCluster, BitmapTableEntry, Geometry, Header, IncompatibleFeatures};
use std::collections::HashSet;
use std::fmt;

/// Tables are read in pieces of this many bytes.
pub(super) const PIECE: u64 = 1 << 20;

/// A check under way.
pub(super) struct Walk<'a> {
    pub(super) image: Image<'a>,
    pub(super) header: Header,
    pub(super) repair: Repair,
    pub(super) report: Report,
    /// References that were found.
    pub(super) counts: Counts,
    /// Clusters that are referred to more often than a count can say.
    pub(super) overflown: HashSet<u64>,
    /// One past the last cluster that is in the file, or that somebody refers to.
    pub(super) clusters: u64,
    pub(super) refcounts: Refcounts,
    pub(super) snapshots: Snapshots,
    pub(super) tables: Tables,
    /// Something was written.
    pub(super) wrote: bool,
    /// Entries of all tables that say that a cluster is zeroes.
    pub(super) zero_clusters: u64,
    bitmaps: Vec<(Bitmap, Vec<u64>)>,
    /// Clusters of metadata other than L2 tables, in order and apart: first one, and one past the last one.
    protected: Vec<(u64, u64)>,
    watch: &'a mut dyn Watch,
}

impl<'a> Walk<'a> {
    pub(super) fn new(image: Image<'a>, header: Header, repair: Repair, watch: &'a mut dyn Watch) -> Self {
        let counts = || Counts::new(header.refcount_bits, header.geometry.cluster_bits());
        let clusters = header.geometry.clusters_for(image.len());
        Self {
            counts: counts(),
            refcounts: Refcounts::new(counts()),
            image,
            repair,
            report: Report::default(),
            overflown: HashSet::new(),
            clusters,
            snapshots: Snapshots::default(),
            tables: Tables::default(),
            wrote: false,
            zero_clusters: 0,
            bitmaps: Vec::new(),
            protected: Vec::new(),
            watch,
            header,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    pub(super) fn cluster_size(&self) -> u64 {
        self.header.geometry.cluster_size()
    }

    /// Whether guest data lies in a file of its own, whose clusters nobody counts.
    pub(super) fn has_data_file(&self) -> bool {
        self.header.incompatible.contains(IncompatibleFeatures::DATA_FILE)
    }

    pub(super) fn say(&mut self, text: fmt::Arguments<'_>) {
        self.watch.message(text);
    }

    pub(super) fn progress(&mut self, done: u64, total: u64) {
        self.watch.progress(done, total);
    }

    /// Something is wrong, `times` over.
    pub(super) fn corrupt(&mut self, times: u64, text: fmt::Arguments<'_>) {
        self.watch.message(text);
        self.report.corruptions += times;
    }

    /// Something is so wrong that it is not looked at. What it refers to is not known, so nothing may be freed.
    pub(super) fn not_seen(&mut self, text: fmt::Arguments<'_>) {
        self.watch.message(format_args!("ERROR {text}; nothing is repaired"));
        self.report.check_errors += 1;
        self.repair = Repair::None;
    }

    /// `times` references to the clusters of `len` bytes at `offset`.
    pub(super) fn refer(&mut self, offset: u64, len: u64, times: u64) -> Result<(), CheckError> {
        if len == 0 {
            return Ok(());
        }
        // The file's last cluster need not be whole.
        let limit = self.image.len().saturating_add(self.cluster_size() - 1);
        let Some(end) = offset.checked_add(len).filter(|end| *end <= limit) else {
            self.corrupt(
                times,
                format_args!(
                    "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
                     offset {offset:#x} size {len:#x}"
                ),
            );
            return Ok(());
        };
        let geometry = self.geometry();
        let (first, last) = (geometry.cluster(offset), geometry.cluster(end - 1));
        for cluster in first..=last {
            let over = self.counts.add(cluster, times)?;
            if over > 0 {
                self.overflow(cluster, over);
            }
        }
        self.clusters = self.clusters.max(last + 1);
        Ok(())
    }

    #[cold]
    fn overflow(&mut self, cluster: u64, times: u64) {
        self.overflown.insert(cluster);
        let offset = cluster << self.geometry().cluster_bits();
        self.corrupt(
            times,
            format_args!(
                "ERROR: overflow cluster offset={offset:#x}\nUse qemu-img amend to increase the refcount entry width \
                 or qemu-img convert to create a clean copy if the image cannot be opened for writing"
            ),
        );
    }

    /// Every reference that there is, in the field's order.
    pub(super) async fn count_all(&mut self) -> Result<(), CheckError> {
        self.refer(0, self.cluster_size(), 1)?;
        self.count_active_l1().await?;
        self.count_snapshot_l1s().await?;
        self.count_l2().await?;
        if self.header.snapshots > 0 {
            self.refer(self.header.snapshots_offset, self.snapshots.bytes, 1)?;
        }
        if let Some((offset, len)) = self.header.crypto {
            self.refer(offset, len, 1)?;
        }
        self.count_bitmaps()?;
        self.count_refcounts()
    }

    /// The bitmap directory and all tables, for whoever cannot understand them cannot tell what is in use.
    pub(super) async fn load_bitmaps(&mut self) -> Result<(), CheckError> {
        let Some(extension) = self.header.bitmaps else { return Ok(()) };
        let directory = self.image.read(extension.directory_offset, extension.directory_size).await?;
        let bitmaps = Bitmap::parse_directory(&directory, &extension, &self.geometry())?;
        // Tables do not lie over each other: there cannot be more of them than there is file.
        let mut left = self.image.len().min(super::MEMORY_MAX / 8);
        for bitmap in bitmaps {
            let bytes = u64::from(bitmap.table_size) * 8;
            left = left.checked_sub(bytes).ok_or_else(|| CheckError::BitmapTable(bitmap.name_text()))?;
            let clusters = self.bitmap_clusters(&bitmap).await?;
            self.bitmaps.push((bitmap, clusters));
        }
        Ok(())
    }

    /// Where the clusters of `bitmap` lie.
    async fn bitmap_clusters(&mut self, bitmap: &Bitmap) -> Result<Vec<u64>, CheckError> {
        let bytes = u64::from(bitmap.table_size) * 8;
        let (mut clusters, mut at) = (Vec::new(), 0);
        while at < bytes {
            let len = (bytes - at).min(PIECE);
            // The table begins at a cluster, and its end was checked.
            let table = self.image.read(bitmap.table_offset.saturating_add(at), len).await?;
            for index in 0..table.len() / 8 {
                match BitmapTableEntry::from_raw(entry(&table, index)).cluster(&self.geometry()) {
                    Some(BitmapCluster::Data(offset)) => clusters.push(offset),
                    Some(_) => {}
                    None => return Err(CheckError::BitmapTable(bitmap.name_text())),
                }
            }
            at += len;
        }
        Ok(clusters)
    }

    fn count_bitmaps(&mut self) -> Result<(), CheckError> {
        let Some(extension) = self.header.bitmaps else { return Ok(()) };
        self.refer(extension.directory_offset, extension.directory_size, 1)?;
        for (bitmap, clusters) in std::mem::take(&mut self.bitmaps) {
            self.refer(bitmap.table_offset, u64::from(bitmap.table_size) * 8, 1)?;
            for offset in clusters {
                self.refer(offset, self.cluster_size(), 1)?;
            }
        }
        Ok(())
    }

    /// Note where metadata lies that no repair of a table may write over (rule qcow2-8).
    pub(super) fn protect(&mut self) {
        let (geometry, header) = (self.geometry(), &self.header);
        let cluster_size = geometry.cluster_size();
        let mut regions = vec![
            (0, cluster_size),
            (header.l1_offset, u64::from(header.l1_size) * 8),
            (header.refcount_table_offset, u64::from(header.refcount_table_clusters) * cluster_size),
            (header.snapshots_offset, self.snapshots.bytes),
        ];
        regions.extend(header.crypto);
        regions.extend(header.bitmaps.map(|bitmaps| (bitmaps.directory_offset, bitmaps.directory_size)));
        regions.extend(self.bitmaps.iter().map(|(bitmap, _)| (bitmap.table_offset, u64::from(bitmap.table_size) * 8)));
        regions.extend(self.snapshots.list.iter().map(|one| (one.l1_offset, u64::from(one.l1_size) * 8)));
        regions.extend(self.refcounts.blocks().map(|(_, offset)| (offset, cluster_size)));
        let mut clusters: Vec<_> = regions
            .into_iter()
            .filter(|(_, len)| *len > 0)
            .map(|(offset, len)| (geometry.cluster(offset), geometry.cluster(offset.saturating_add(len - 1)) + 1))
            .collect();
        clusters.sort_unstable();
        for (first, end) in clusters {
            match self.protected.last_mut() {
                Some((_, last)) if first <= *last => *last = end.max(*last),
                _ => self.protected.push((first, end)),
            }
        }
    }

    /// Whether the L2 table at `offset` may be written to: it lies in a cluster, and not over other metadata.
    pub(super) fn may_write_table(&self, offset: u64) -> bool {
        let cluster = self.geometry().cluster(offset);
        let before = self.protected.partition_point(|(first, _)| *first <= cluster);
        let is_free = before == 0 || self.protected[before - 1].1 <= cluster;
        is_free && self.geometry().is_aligned(offset) && offset < self.image.len()
    }

    /// Whether the active L1 table may be written to: nobody else refers to where it lies.
    pub(super) fn may_write_l1(&mut self) -> bool {
        let (geometry, bytes) = (self.geometry(), u64::from(self.header.l1_size) * 8);
        let first = geometry.cluster(self.header.l1_offset);
        let end = geometry.clusters_for(bytes) + first;
        self.header.l1_offset.saturating_add(bytes) <= self.image.len()
            && (first..end).all(|cluster| self.counts.get(cluster) == 1 && !self.overflown.contains(&cluster))
    }
}
