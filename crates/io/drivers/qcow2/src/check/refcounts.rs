//! The reference counts on disk: read, compared with what was counted, and set right where they lie.

use super::counts::Counts;
use super::storage::entry;
use super::walk::Walk;
use super::{CheckError, Repair};
use block_qcow2_format::RefcountBits;
use std::collections::{BTreeMap, BTreeSet};

/// Low bits of a refcount table entry, which have to be zero.
const RESERVED: u64 = 0x1ff;
/// So many clusters without a count are named one by one.
const NAMED_MAX: u64 = 65536;

/// What the reference count table and its blocks say.
pub(super) struct Refcounts {
    /// The table, entry by entry.
    table: Vec<u64>,
    counts: Counts,
    /// Blocks that lie between clusters, or where nothing can lie: they are not looked into.
    unreadable: BTreeSet<u64>,
    /// Counts on disk are others than they were.
    pub(super) changed: bool,
    /// What is wrong with table and blocks: new ones are right.
    corruptions: u64,
    /// They cannot be set right where they lie.
    is_broken: bool,
    /// Clusters of table and blocks, as they were counted.
    own: Vec<u64>,
}

impl Refcounts {
    pub(super) fn new(counts: Counts) -> Self {
        Self {
            table: Vec::new(),
            counts,
            unreadable: BTreeSet::new(),
            changed: false,
            corruptions: 0,
            is_broken: false,
            own: Vec::new(),
        }
    }

    /// The blocks that there are: number, and offset, wherever that is.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (u64, u64)> {
        let blocks = self.table.iter().enumerate().map(|(index, entry)| (index as u64, entry & !RESERVED));
        blocks.filter(|(_, offset)| *offset != 0)
    }
}

impl Walk<'_> {
    /// The binary logarithm of how many counts a block has.
    pub(super) fn block_bits(&self) -> u32 {
        self.header.refcount_bits.block_bits(self.geometry().cluster_bits())
    }

    /// The count of `cluster` on disk, if it can be read.
    #[inline]
    pub(super) fn count_on_disk(&mut self, cluster: u64) -> Option<u64> {
        let unreadable = &self.refcounts.unreadable;
        if !unreadable.is_empty() && unreadable.contains(&(cluster >> self.block_bits())) {
            return None;
        }
        Some(self.refcounts.counts.get(cluster))
    }

    /// Read table and blocks. What is wrong with them is told in its turn.
    pub(super) async fn load_refcounts(&mut self) -> Result<(), CheckError> {
        let (geometry, cluster_size) = (self.geometry(), self.cluster_size());
        // The header's parser has bounded it.
        let bytes = u64::from(self.header.refcount_table_clusters) * cluster_size;
        let table = self.image.read(self.header.refcount_table_offset, bytes).await?;
        self.refcounts.table = (0..table.len() / 8).map(|index| entry(&table, index)).collect();
        let mut at: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut unreadable = BTreeSet::new();
        for (index, offset) in self.refcounts.blocks() {
            // Offsets are signed in this field.
            if !geometry.is_aligned(offset) || offset > i64::MAX as u64 {
                unreadable.insert(index);
            } else if offset < self.image.len() {
                at.entry(offset).or_default().push(index);
            }
        }
        self.refcounts.unreadable = unreadable;
        let (page_bytes, page_bits) = (self.counts.page_bytes(), self.counts.page_bits());
        let pages_bits = self.block_bits() - page_bits;
        let at: Vec<_> = at.into_iter().collect();
        for batch in at.chunks(((8 << 20) / cluster_size).max(1) as usize) {
            let offsets: Vec<_> = batch.iter().map(|(offset, _)| *offset).collect();
            let blocks = self.image.read_many(&offsets, cluster_size).await?;
            for ((_, indexes), block) in batch.iter().zip(&blocks) {
                let pages = block.chunks_exact(page_bytes).enumerate();
                for (page, bytes) in pages.filter(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
                    for index in indexes {
                        self.refcounts.counts.put((index << pages_bits) + page as u64, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The clusters of table and blocks, and what is wrong with the table.
    pub(super) fn count_refcounts(&mut self) -> Result<(), CheckError> {
        let (geometry, cluster_size) = (self.geometry(), self.cluster_size());
        let before = self.report.corruptions;
        let (offset, clusters) = (self.header.refcount_table_offset, u64::from(self.header.refcount_table_clusters));
        self.refer(offset, clusters * cluster_size, 1)?;
        let is_there = self.report.corruptions == before;
        let first = geometry.cluster(offset);
        self.refcounts.own.extend((first..first + clusters).filter(|_| is_there));
        for index in 0..self.refcounts.table.len() {
            let raw = self.refcounts.table[index];
            let (block, cluster) = (raw & !RESERVED, geometry.cluster(raw & !RESERVED));
            if raw & RESERVED != 0 {
                self.corrupt(1, format_args!("ERROR refcount table entry {index} has reserved bits set"));
            } else if !geometry.is_aligned(block) {
                let text = "is not cluster aligned; refcount table entry corrupted";
                self.corrupt(1, format_args!("ERROR refcount block {index} {text}"));
            } else if block == 0 {
                continue;
            } else if cluster >= self.clusters {
                let repairs = self.repair == Repair::All;
                let verb = if repairs { "Repairing" } else { "ERROR" };
                self.corrupt(1, format_args!("{verb} refcount block {index} is outside image"));
                // By itself it is no reason for not freeing leaked clusters.
                self.refcounts.is_broken |= repairs;
                continue;
            } else {
                self.refer(block, cluster_size, 1)?;
                self.refcounts.own.push(cluster);
                let count = self.counts.get(cluster);
                if count == 1 && !self.overflown.contains(&cluster) {
                    continue;
                }
                self.corrupt(1, format_args!("ERROR refcount block {index} refcount={count}"));
            }
            self.refcounts.is_broken = true;
        }
        self.refcounts.corruptions = self.report.corruptions - before;
        Ok(())
    }

    /// Compare the counts, and repair them.
    pub(super) async fn settle_refcounts(&mut self) -> Result<(), CheckError> {
        let before = self.report;
        self.compare(Repair::None)?;
        let is_wrong = self.report.leaks + self.report.corruptions > 0;
        match (self.repair, self.refcounts.is_broken) {
            (Repair::None, _) => Ok(()),
            (Repair::Leaks, true) => {
                self.say(format_args!("ERROR need to rebuild refcount structures"));
                Err(CheckError::NeedsRebuild)
            }
            (Repair::All, true) => {
                self.say(format_args!("Rebuilding refcount structure"));
                let found = self.report;
                self.rebuild_refcounts(0).await?;
                self.report = before;
                self.report.leaks_fixed += found.leaks;
                self.report.corruptions -= self.refcounts.corruptions;
                self.report.corruptions_fixed +=
                    found.corruptions - before.corruptions + std::mem::take(&mut self.refcounts.corruptions);
                Ok(())
            }
            (repair, false) => {
                let mut pages = BTreeSet::new();
                if is_wrong {
                    self.report = before;
                    pages = self.compare(repair)?;
                }
                pages.extend(self.free_past_end()?);
                self.put_pages(pages).await
            }
        }
    }

    /// Count clusters past the file's end that nobody refers to no more, in memory; the pages come back. A power cut leaves such counts where the file was to grow. Nothing is said
    /// of them, for they take no place; but they would when the file grows.
    fn free_past_end(&mut self) -> Result<BTreeSet<u64>, CheckError> {
        let page_bits = self.counts.page_bits();
        let pages_bits = self.block_bits() - page_bits;
        let mut changed = BTreeSet::new();
        for key in self.refcounts.counts.keys() {
            let (first, end) = (key << page_bits, (key + 1) << page_bits);
            if end <= self.clusters || self.refcounts.unreadable.contains(&(key >> pages_bits)) {
                continue;
            }
            for cluster in first.max(self.clusters)..end {
                if self.refcounts.counts.get(cluster) > 0 && self.counts.get(cluster) == 0 {
                    self.refcounts.counts.set(cluster, 0)?;
                    changed.insert(key);
                }
            }
        }
        Ok(changed)
    }

    /// Say which counts are wrong. Those that `repair` is to change are changed in memory; their pages come back.
    fn compare(&mut self, repair: Repair) -> Result<BTreeSet<u64>, CheckError> {
        let page_bits = self.counts.page_bits();
        let pages_bits = self.block_bits() - page_bits;
        let mut keys = self.counts.keys();
        keys.extend(self.refcounts.counts.keys());
        keys.sort_unstable();
        keys.dedup();
        let mut changed = BTreeSet::new();
        self.without_counts();
        for key in keys {
            let is_unreadable = self.refcounts.unreadable.contains(&(key >> pages_bits));
            let first = key << page_bits;
            if first >= self.clusters || is_unreadable || self.is_same(key) {
                continue;
            }
            for cluster in first..self.clusters.min(first + (1 << page_bits)) {
                let (on_disk, counted) = (self.refcounts.counts.get(cluster), self.counts.get(cluster));
                if on_disk != counted && self.wrong_count(cluster, on_disk, counted, repair) {
                    self.refcounts.counts.set(cluster, counted)?;
                    changed.insert(key);
                }
            }
        }
        Ok(changed)
    }

    /// Whether no count of a page differs.
    fn is_same(&self, key: u64) -> bool {
        let is_zero = |page: &[u8]| page.iter().all(|byte| *byte == 0);
        match (self.counts.page(key), self.refcounts.counts.page(key)) {
            (Some(counted), Some(on_disk)) => counted == on_disk,
            (Some(page), None) | (None, Some(page)) => is_zero(page),
            (None, None) => true,
        }
    }

    /// Tell of a count that is wrong. Whether it is to be repaired in its place.
    fn wrong_count(&mut self, cluster: u64, on_disk: u64, counted: u64, repair: Repair) -> bool {
        let is_leak = on_disk > counted;
        // A cluster that counts as free may be somebody else's at any time: that is repaired as a whole, and elsewhere.
        self.refcounts.is_broken |= on_disk == 0;
        let repairs = on_disk != 0 && if is_leak { repair.writes() } else { repair == Repair::All };
        let verb = match (repairs, is_leak) {
            (true, _) => "Repairing",
            (false, true) => "Leaked",
            (false, false) => "ERROR",
        };
        self.say(format_args!("{verb} cluster {cluster} refcount={on_disk} reference={counted}"));
        let report = &mut self.report;
        let counter = match (repairs, is_leak) {
            (true, true) => &mut report.leaks_fixed,
            (true, false) => &mut report.corruptions_fixed,
            (false, true) => &mut report.leaks,
            (false, false) => &mut report.corruptions,
        };
        *counter += 1;
        repairs
    }

    /// Tell of the clusters whose counts cannot be read.
    fn without_counts(&mut self) {
        let (block_bits, clusters) = (self.block_bits(), self.clusters);
        let mut named = 0;
        for block in std::mem::take(&mut self.refcounts.unreadable) {
            let first = block << block_bits;
            let end = clusters.min(first.saturating_add(1 << block_bits)).max(first);
            for cluster in (first..end).take((NAMED_MAX - named) as usize) {
                self.say(format_args!("Can't get refcount for cluster {cluster}: Input/output error"));
                named += 1;
            }
            self.report.check_errors += end - first;
            self.refcounts.unreadable.insert(block);
        }
    }

    /// Write pages of counts to where their blocks lie.
    pub(super) async fn put_pages(&mut self, pages: BTreeSet<u64>) -> Result<(), CheckError> {
        if pages.is_empty() {
            return Ok(());
        }
        // Counts go down only after the entries that referred to the clusters have gone (rule qcow2-2).
        self.image.flush().await?;
        let pages_bits = self.block_bits() - self.counts.page_bits();
        for key in pages {
            let block = self.refcounts.table.get((key >> pages_bits) as usize).copied().unwrap_or(0) & !RESERVED;
            let Some(page) = self.refcounts.counts.page(key).filter(|_| block != 0) else {
                return Err(CheckError::NeedsRebuild);
            };
            let within = (key & ((1 << pages_bits) - 1)) * page.len() as u64;
            self.image.write(block + within, page).await?;
        }
        (self.wrote, self.refcounts.changed) = (true, true);
        self.image.flush().await
    }

    /// Let the counts of `count` clusters from `first` on be one, on disk and here. `false` when there is no block for one of them: then nothing
    /// was changed.
    pub(super) async fn count_new(&mut self, first: u64, count: u64) -> Result<bool, CheckError> {
        let block_bits = self.block_bits();
        let is_there = |cluster: u64| {
            let block = self.refcounts.table.get((cluster >> block_bits) as usize);
            block.is_some_and(|block| *block != 0)
        };
        if !(first..first + count).all(is_there) {
            return Ok(false);
        }
        let mut pages = BTreeSet::new();
        for cluster in first..first + count {
            self.counts.set(cluster, 1)?;
            self.refcounts.counts.set(cluster, 1)?;
            pages.insert(cluster >> self.counts.page_bits());
        }
        self.put_pages(pages).await?;
        Ok(true)
    }

    /// One reference less to each cluster of `len` bytes at `offset`, which were counted once for them.
    pub(super) async fn forget(&mut self, offset: u64, len: u64) -> Result<(), CheckError> {
        let (geometry, mut pages) = (self.geometry(), BTreeSet::new());
        for cluster in geometry.cluster(offset)..geometry.clusters_for(offset + len) {
            if self.take_reference(cluster)? {
                let count = self.counts.get(cluster);
                self.refcounts.counts.set(cluster, count)?;
                pages.insert(cluster >> self.counts.page_bits());
            }
        }
        self.put_pages(pages).await
    }

    /// One reference less to `cluster`, unless nobody knows how many there are.
    fn take_reference(&mut self, cluster: u64) -> Result<bool, CheckError> {
        let count = self.counts.get(cluster);
        let is_known = count > 0 && !self.overflown.contains(&cluster);
        if is_known {
            self.counts.set(cluster, count - 1)?;
        }
        Ok(is_known)
    }

    /// Count table and blocks as they are on disk no more, for others take their place. Their clusters, and what was counted.
    pub(super) fn forget_own(&mut self) -> Result<BTreeMap<u64, u64>, CheckError> {
        let mut old = BTreeMap::new();
        for cluster in std::mem::take(&mut self.refcounts.own) {
            let count = self.counts.get(cluster);
            old.entry(cluster).or_insert(count);
            self.take_reference(cluster)?;
        }
        Ok(old)
    }

    /// From now on counts are so wide, and these are those that were counted. They have to be [rebuilt](Self::rebuild_refcounts) next.
    pub(super) fn set_width(&mut self, bits: RefcountBits, counts: Counts) {
        self.header.refcount_bits = bits;
        self.refcounts.counts = Counts::new(bits, self.geometry().cluster_bits());
        self.counts = counts;
    }

    /// From now on the counts on disk are those that were counted, and `table` names their blocks.
    pub(super) fn take_rebuilt(&mut self, table: Vec<u64>, own: Vec<u64>) {
        self.refcounts = Refcounts {
            changed: true,
            own,
            corruptions: self.refcounts.corruptions,
            table,
            ..Refcounts::new(self.counts.clone())
        };
        self.wrote = true;
    }

    /// The end of the last cluster that is counted, here or on disk.
    pub(super) fn image_end(&self) -> u64 {
        let pages_bits = self.block_bits() - self.counts.page_bits();
        let mut keys = self.counts.keys();
        keys.extend(self.refcounts.counts.keys());
        keys.sort_unstable();
        let last = keys.iter().rev().find_map(|key| {
            let is_unreadable = self.refcounts.unreadable.contains(&(key >> pages_bits));
            let first = key << self.counts.page_bits();
            let end = self.clusters.min(first.saturating_add(1 << self.counts.page_bits()));
            let count = |page: Option<&[u8]>, cluster: u64| {
                page.map_or(0, |page| self.header.refcount_bits.get(page, (cluster - first) as usize))
            };
            (first..end).rev().filter(|_| !is_unreadable).find(|cluster| {
                count(self.counts.page(*key), *cluster) > 0 || count(self.refcounts.counts.page(*key), *cluster) > 0
            })
        });
        (last.unwrap_or(0) + 1) << self.geometry().cluster_bits()
    }
}
