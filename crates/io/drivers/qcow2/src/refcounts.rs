//! Which clusters of the file are free: reference counts in memory, and who gets which cluster.
//!
//! Counts go up when a cluster is handed out, before anything names it. They go down only when no entry on the disk names it any more
//! and no request from before is left: see [`Shared::retire`]. So what is free here is free everywhere, and a block of counts
//! may be written at any time.

use crate::image::Shared;
use crate::meta;
use crate::overlap::{MetadataKind, OverlapChecks};
use block_common::{Errno, HostOffset, IoError, IoResult};
use block_io::Req;
use block_qcow2_format::RefcountBits;
use std::collections::{BTreeMap, BTreeSet};

/// The reference count table's entries: bits 9 to 63 are an offset.
const TABLE_OFFSET: u64 = !0x1ff;
/// A reference count table is no longer than this, in bytes.
const TABLE_BYTES_MAX: u64 = 8 << 20;
/// Places in a file that an L2 entry can name end here.
const FILE_MAX: u64 = 1 << 56;
/// Who looks for a free cluster reads so many blocks at most; the next one goes on from there.
const BLOCKS_READ_MAX: u64 = 256;

/// Why a cluster was freed: that decides whether the host is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// A guest's discard or zero write.
    Request,
    /// A snapshot that was deleted, or a disk that was left for one.
    Snapshot,
    /// Anything else.
    Other,
}

/// Clusters that no entry names any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retired {
    offset: u64,
    clusters: u64,
    /// Requests from up to here may still use them.
    epoch: u64,
    class: Class,
}

#[derive(Debug)]
struct Block {
    bytes: Vec<u8>,
    dirty: bool,
    /// It is on its way to the disk, which may still have an older one.
    is_written: bool,
}

impl Block {
    /// As it is on the disk.
    fn stored(bytes: Vec<u8>) -> Self {
        Self { bytes, dirty: false, is_written: false }
    }
}

#[derive(Debug)]
pub(crate) struct Refcounts {
    bits: RefcountBits,
    cluster_bits: u32,
    /// Where blocks lie, by number.
    table: Vec<u64>,
    blocks: BTreeMap<u64, Block>,
    blocks_max: usize,
    /// Blocks that are written, and which the table on the disk does not name yet.
    unnamed: BTreeSet<u64>,
    /// Blocks without a free cluster, in memory or not.
    full: BTreeSet<u64>,
    /// No cluster before this one is free.
    free_from: u64,
    /// The next free byte of a cluster that holds compressed data, or 0.
    bytes_at: u64,
    /// What lies from here on was never written to, so it is zeroes.
    pub(crate) fresh_from: u64,
}

/// Clusters for somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allocated {
    pub(crate) offset: u64,
    pub(crate) clusters: u64,
    /// They are zeroes, and were never anything else.
    pub(crate) is_fresh: bool,
}

/// How many clusters from `first` on are free, `want` at most, as far as their blocks are in memory.
fn free_run(counts: &Refcounts, first: u64, want: u64, last: u64) -> u64 {
    let mut clusters = 1;
    while clusters < want && first + clusters < last && counts.get(first + clusters) == Some(0) {
        clusters += 1;
    }
    clusters
}

fn full() -> IoError {
    IoError::host(Errno::EFBIG.raw())
}

impl Refcounts {
    /// With the table of an image, and room for `bytes_max` bytes of blocks that are on the disk.
    pub(crate) fn new(bits: RefcountBits, cluster_bits: u32, table: Vec<u64>, bytes_max: u64, fresh_from: u64) -> Self {
        let blocks = BTreeMap::new();
        let (full, unnamed) = (BTreeSet::new(), BTreeSet::new());
        let mut counts = Self {
            bits,
            cluster_bits,
            table,
            blocks,
            blocks_max: 0,
            unnamed,
            full,
            free_from: 0,
            bytes_at: 0,
            fresh_from,
        };
        counts.set_room(bytes_max);
        counts
    }

    /// Have room for so many bytes of blocks that are on the disk.
    pub(crate) fn set_room(&mut self, bytes_max: u64) {
        self.blocks_max = usize::try_from(bytes_max >> self.cluster_bits).unwrap_or(usize::MAX).clamp(4, 1 << 20);
    }

    /// These are the table and the end of the image from now on; nothing else is known any more.
    pub(crate) fn restart(&mut self, bits: RefcountBits, table: Vec<u64>, fresh_from: u64) {
        (self.bits, self.table, self.fresh_from) = (bits, table, fresh_from);
        (self.free_from, self.bytes_at) = (0, 0);
        self.blocks.clear();
        self.unnamed.clear();
        self.full.clear();
    }

    /// The file ends here now, and so does everything that anybody uses.
    pub(crate) fn is_cut(&mut self, end: u64) {
        self.fresh_from = self.fresh_from.min(end);
    }

    /// Where there are blocks.
    pub(crate) fn places(table: &[u64]) -> impl Iterator<Item = u64> {
        table.iter().map(|entry| entry & TABLE_OFFSET).filter(|offset| *offset != 0)
    }

    fn block_bits(&self) -> u32 {
        self.bits.block_bits(self.cluster_bits)
    }

    /// The number of the block that has the count of `cluster`, and which of its counts that is.
    fn place(&self, cluster: u64) -> (u64, usize) {
        let bits = self.block_bits();
        (cluster >> bits, (cluster & ((1 << bits) - 1)) as usize)
    }

    /// The count of a cluster whose block is in memory.
    fn get(&self, cluster: u64) -> Option<u64> {
        let (block, at) = self.place(cluster);
        self.blocks.get(&block).map(|block| self.bits.get(&block.bytes, at))
    }

    fn set(&mut self, cluster: u64, count: u64) {
        let (number, at) = self.place(cluster);
        if let Some(block) = self.blocks.get_mut(&number) {
            self.bits.set(&mut block.bytes, at, count);
            block.dirty = true;
        }
        if count == 0 {
            self.full.remove(&number);
            self.free_from = self.free_from.min(cluster);
            // Compressed data goes on behind what is there only as long as that is there: the cluster may become anything now.
            if self.bytes_at >> self.cluster_bits == cluster {
                self.bytes_at = 0;
            }
        }
    }

    /// The first free cluster from `from` on whose count is in the same block, which is in memory.
    fn free_in_block(&mut self, from: u64) -> Option<u64> {
        let (number, place) = self.place(from);
        let block = self.blocks.get(&number)?;
        let found = (place..1 << self.block_bits()).find(|at| self.bits.get(&block.bytes, *at) == 0);
        if found.is_none() && (place == 0 || from <= self.free_from) {
            self.full.insert(number);
        }
        found.map(|at| (number << self.block_bits()) + at as u64)
    }

    /// Let go of blocks that are on the disk, while there are too many, beside `keep`.
    fn make_room(&mut self, keep: u64) {
        while self.blocks.len() >= self.blocks_max {
            let clean =
                self.blocks.iter().find(|(number, block)| !block.dirty && !block.is_written && **number != keep);
            let Some(number) = clean.map(|(number, _)| *number) else { return };
            self.blocks.remove(&number);
        }
    }

    fn has_dirty(&self) -> bool {
        !self.unnamed.is_empty() || self.blocks.values().any(|block| block.dirty)
    }

    /// Whether many of the blocks in memory have to stay there.
    pub(crate) fn is_crowded(&self) -> bool {
        2 * self.blocks.values().filter(|block| block.dirty).count() > self.blocks_max
    }

    /// What was changed, with its place in the file. It stays in memory until [`Refcounts::written`] says what became of it.
    fn take_dirty(&mut self) -> Vec<(u64, u64, Vec<u8>)> {
        let table = &self.table;
        let dirty = self.blocks.iter_mut().filter(|(_, block)| block.dirty);
        dirty
            .map(|(number, block)| {
                (block.dirty, block.is_written) = (false, true);
                (*number, table[*number as usize] & TABLE_OFFSET, block.bytes.clone())
            })
            .collect()
    }

    /// These blocks are on the disk, or are not and count as changed again.
    fn written(&mut self, numbers: impl Iterator<Item = u64>, done: bool) {
        for number in numbers {
            if let Some(block) = self.blocks.get_mut(&number) {
                block.is_written = false;
                block.dirty |= !done;
            }
        }
    }
}

impl Shared {
    /// Have the block in memory that counts `cluster`. `false` when there is none.
    async fn load_block(&self, req: &Req, counts: &mut Refcounts, cluster: u64) -> IoResult<bool> {
        let (number, _) = counts.place(cluster);
        if counts.blocks.contains_key(&number) {
            return Ok(true);
        }
        let Some(offset) = counts.table.get(number as usize).map(|entry| entry & TABLE_OFFSET).filter(|at| *at != 0)
        else {
            return Ok(false);
        };
        if !self.geometry.is_aligned(offset) || offset >= FILE_MAX {
            return Err(self
                .corrupt(
                    req,
                    format!("Refblock offset {offset:#x} unaligned (reftable index: {})", crate::image::hex(number)),
                )
                .await);
        }
        let bytes = meta::read(req, &self.file, offset, self.geometry.cluster_size() as usize).await?;
        counts.make_room(number);
        counts.blocks.insert(number, Block::stored(bytes));
        Ok(true)
    }

    /// Up to `want` clusters, one behind the other; at least one.
    ///
    /// # Errors
    /// What the file answered, or that it cannot become so long.
    pub(crate) async fn allocate(&self, req: &Req, want: u64) -> IoResult<Allocated> {
        let mut counts = self.refcounts.lock().await;
        let (first, clusters) = self.find_free(req, &mut counts, want).await?;
        let size = self.geometry.cluster_size();
        let offset = first * size;
        // Rule qcow2-8: a count may be wrong; what is known to be in use is not handed out.
        self.may_allocate(req, offset, clusters * size).await?;
        (first..first + clusters).for_each(|cluster| counts.set(cluster, 1));
        if counts.free_from == first {
            counts.free_from = first + clusters;
        }
        let is_fresh = offset >= counts.fresh_from;
        counts.fresh_from = counts.fresh_from.max(offset + clusters * size);
        Ok(Allocated { offset, clusters, is_fresh })
    }

    /// Whether a place that the counts call free can be given to somebody.
    async fn may_allocate(&self, req: &Req, offset: u64, len: u64) -> IoResult<()> {
        self.guard(req, offset, len, OverlapChecks::NONE).await?;
        if offset == 0 {
            // Whatever is checked: no entry can name it.
            return Err(self.corrupt(req, "Preventing invalid allocation of cluster at offset 0".into()).await);
        }
        Ok(())
    }

    /// The first free clusters, or where too many blocks would have to be read to find them, some that no block counts. They are not marked yet.
    async fn find_free(&self, req: &Req, counts: &mut Refcounts, want: u64) -> IoResult<(u64, u64)> {
        let (last, block_bits) = (FILE_MAX >> self.geometry.cluster_bits(), counts.block_bits());
        let (mut at, mut blocks_read) = (counts.free_from, 0);
        while at < last {
            let number = at >> block_bits;
            if !counts.full.contains(&number) {
                blocks_read += u64::from(!counts.blocks.contains_key(&number));
                if blocks_read > BLOCKS_READ_MAX {
                    // Rule trust-3: it costs an image's author nothing to call everything used.
                    return self.find_uncounted(req, counts, number, want).await;
                }
                if !self.load_block(req, counts, at).await? {
                    self.add_block(req, counts, at).await?;
                }
                if let Some(first) = counts.free_in_block(at) {
                    counts.free_from = first;
                    return Ok((first, free_run(counts, first, want, last)));
                }
            }
            // Nothing before it is free.
            at = (number + 1) << block_bits;
            counts.free_from = at;
        }
        Err(full())
    }

    /// Free clusters in the block before the first one that there is none for, from block `number` on, or in a new one there.
    async fn find_uncounted(&self, req: &Req, counts: &mut Refcounts, number: u64, want: u64) -> IoResult<(u64, u64)> {
        let (last, block_bits) = (FILE_MAX >> self.geometry.cluster_bits(), counts.block_bits());
        let there = counts.table.iter().skip(number as usize).take_while(|entry| *entry & TABLE_OFFSET != 0).count();
        let end = number + there as u64;
        for block in end.saturating_sub(1)..=end {
            let at = block << block_bits;
            if at >= last || counts.full.contains(&block) {
                continue;
            }
            if !self.load_block(req, counts, at).await? {
                self.add_block(req, counts, at).await?;
            }
            if let Some(first) = counts.free_in_block(at) {
                return Ok((first, free_run(counts, first, want, last)));
            }
        }
        Err(full())
    }

    /// Make a block that counts `at`, for which there is none yet; it takes that cluster. The table on the disk names it when counts are written the next time:
    /// before that nothing on the disk names what it counts, and nobody waits for the disk here.
    async fn add_block(&self, req: &Req, counts: &mut Refcounts, at: u64) -> IoResult<()> {
        let (number, place) = counts.place(at);
        if number >= counts.table.len() as u64 {
            return self.grow_table(req, counts, at).await;
        }
        let size = self.geometry.cluster_size();
        self.may_allocate(req, at * size, size).await?;
        let table_at = self.header().refcount_table_offset;
        self.guard(req, table_at + number * 8, 8, MetadataKind::RefcountTable).await?;
        let mut bytes = vec![0; size as usize];
        counts.bits.set(&mut bytes, place, 1);
        meta::write(req, &self.file, at * size, &bytes).await?;
        counts.fresh_from = counts.fresh_from.max((at + 1) * size);
        counts.table[number as usize] = at * size;
        counts.unnamed.insert(number);
        self.overlaps.add_block(at * size);
        counts.make_room(number);
        counts.blocks.insert(number, Block::stored(bytes));
        Ok(())
    }

    /// Make a longer table, which reaches `at` and what it takes itself. Everything from `at` on is uncounted, and so free.
    async fn grow_table(&self, req: &Req, counts: &mut Refcounts, at: u64) -> IoResult<()> {
        let (size, block_bits) = (self.geometry.cluster_size(), counts.block_bits());
        let wanted = ((at >> block_bits) + 1).max(counts.table.len() as u64 * 3 / 2);
        let mut table_clusters = (wanted * 8).div_ceil(size);
        let (first, blocks) = loop {
            let first = at >> block_bits;
            // Blocks count themselves and the table, too.
            let mut blocks = 1;
            while (at + table_clusters + blocks - 1) >> block_bits >= first + blocks {
                blocks += 1;
            }
            if first + blocks <= table_clusters * size / 8 {
                break (first, blocks);
            }
            table_clusters += 1;
        };
        if table_clusters * size > TABLE_BYTES_MAX || (at + table_clusters + blocks) * size > FILE_MAX {
            return Err(full());
        }
        self.may_allocate(req, at * size, (table_clusters + blocks) * size).await?;
        let mut table = counts.table.clone();
        table.resize((table_clusters * size / 8) as usize, 0);
        let mut new_blocks = Vec::new();
        for i in 0..blocks {
            let mut bytes = vec![0; size as usize];
            let covered = (first + i) << block_bits..(first + i + 1) << block_bits;
            for cluster in (at..at + table_clusters + blocks).filter(|cluster| covered.contains(cluster)) {
                counts.bits.set(&mut bytes, (cluster - covered.start) as usize, 1);
            }
            let offset = (at + table_clusters + i) * size;
            meta::write(req, &self.file, offset, &bytes).await?;
            table[(first + i) as usize] = offset;
            new_blocks.push((first + i, Block::stored(bytes)));
        }
        meta::write(req, &self.file, at * size, &meta::table_bytes(table.iter().copied())).await?;
        counts.fresh_from = counts.fresh_from.max((at + table_clusters + blocks) * size);
        self.file.flush(req).await?;
        let (old, old_clusters) = {
            let header = self.header();
            (header.refcount_table_offset, header.refcount_table_clusters)
        };
        self.change_header(req, |header| {
            header.refcount_table_offset = at * size;
            header.refcount_table_clusters = table_clusters as u32;
        })
        .await?;
        self.file.flush(req).await?;
        for (number, _) in &new_blocks {
            self.overlaps.add_block(table[*number as usize]);
        }
        counts.table = table;
        // What was flushed before the header names all of them.
        counts.unnamed.clear();
        counts.blocks.extend(new_blocks);
        self.retire(req, old, old_clusters.into(), Class::Other);
        Ok(())
    }

    /// Clusters that were handed out and that no entry has ever named are free again.
    pub(crate) async fn give_back(&self, req: &Req, offset: u64, clusters: u64) {
        let mut counts = self.refcounts.lock().await;
        if let Err(error) = self.lower(req, &mut counts, offset, clusters).await {
            tracing::warn!(offset, clusters, %error, "clusters are lost until the image is checked");
        }
    }

    /// Add one to the count of a cluster.
    pub(crate) async fn raise(&self, req: &Req, counts: &mut Refcounts, cluster: u64) -> IoResult<()> {
        let there = self.load_block(req, counts, cluster).await?;
        match counts.get(cluster).filter(|count| there && *count > 0 && *count < counts.bits.max()) {
            Some(count) => counts.set(cluster, count + 1),
            None => return Err(self.corrupt(req, format!("cluster {cluster:#x} is in use and not counted")).await),
        }
        Ok(())
    }

    /// The count of a cluster.
    pub(crate) async fn count_of(&self, req: &Req, counts: &mut Refcounts, cluster: u64) -> IoResult<u64> {
        let there = self.load_block(req, counts, cluster).await?;
        Ok(counts.get(cluster).filter(|_| there).unwrap_or(0))
    }

    /// Take one from the count of each of these clusters.
    pub(crate) async fn lower(&self, req: &Req, counts: &mut Refcounts, offset: u64, clusters: u64) -> IoResult<()> {
        let first = self.geometry.cluster(offset);
        for cluster in first..first + clusters {
            let there = self.load_block(req, counts, cluster).await?;
            match counts.get(cluster).filter(|count| there && *count > 0) {
                Some(count) => counts.set(cluster, count - 1),
                None => {
                    return Err(self.corrupt(req, format!("cluster {cluster:#x} is freed and was not in use")).await);
                }
            }
        }
        Ok(())
    }

    /// Room for `len` compressed bytes, less than a cluster. Several of them share clusters, each of which counts them.
    pub(crate) async fn allocate_bytes(&self, req: &Req, len: u64) -> IoResult<u64> {
        let size = self.geometry.cluster_size();
        let mut counts = self.refcounts.lock().await;
        let at = counts.bytes_at;
        let left = if at == 0 { 0 } else { size - self.geometry.within(at) };
        if left > 0 && self.load_block(req, &mut counts, self.geometry.cluster(at)).await? {
            let cluster = self.geometry.cluster(at);
            let shared = counts.get(cluster).filter(|count| *count > 0 && *count < counts.bits.max());
            if let (Some(count), true) = (shared, len <= left) {
                counts.set(cluster, count + 1);
                counts.bytes_at = if len == left { 0 } else { at + len };
                return Ok(at);
            }
            // On into the next cluster, if that is free.
            if let (Some(count), true) = (shared, self.load_block(req, &mut counts, cluster + 1).await?)
                && counts.get(cluster + 1) == Some(0)
                && counts.get(cluster) == Some(count)
                && self.overlap((cluster + 1) * size, size, OverlapChecks::NONE).is_none()
            {
                counts.set(cluster, count + 1);
                counts.set(cluster + 1, 1);
                counts.fresh_from = counts.fresh_from.max((cluster + 2) * size);
                counts.bytes_at = at + len;
                return Ok(at);
            }
        }
        drop(counts);
        let Allocated { offset, .. } = self.allocate(req, 1).await?;
        self.refcounts.lock().await.bytes_at = offset + len;
        Ok(offset)
    }

    /// Compressed bytes that were handed out and that no entry has ever named are free again.
    pub(crate) async fn give_back_bytes(&self, req: &Req, at: u64, len: u64) {
        let (first, last) = (self.geometry.cluster(at), self.geometry.cluster(at + len - 1));
        self.refcounts.lock().await.bytes_at = 0;
        self.give_back(req, first << self.geometry.cluster_bits(), last - first + 1).await;
    }

    /// No entry in memory names these clusters any more. They are free when the disk says so, too, and requests from before are over.
    pub(crate) fn retire(&self, req: &Req, offset: u64, clusters: u64, class: Class) {
        // Rules qcow2-2 and qcow2-3.
        self.lists().retired.push(Retired { offset, clusters, epoch: req.epoch(), class });
    }

    /// Free what no entry on the disk names any more, as far as requests from before are over. `all`: nothing is in flight.
    pub(crate) async fn free_ripe(&self, req: &Req, all: bool) -> IoResult<()> {
        let ripe = {
            let mut lists = self.lists();
            let list = std::mem::take(&mut lists.ripe);
            let (ripe, wait) =
                list.into_iter().partition::<Vec<_>, _>(|retired| all || req.epoch_passed(retired.epoch));
            lists.ripe = wait;
            ripe
        };
        for Retired { offset, clusters, class, .. } in ripe {
            let mut counts = self.refcounts.lock().await;
            if self.passes_discards(class) {
                self.discard_last(req, &mut counts, offset, clusters).await;
            }
            self.lower(req, &mut counts, offset, clusters).await?;
        }
        Ok(())
    }

    /// Tell the host of those clusters whose last user goes. They are not free yet, so nobody writes to them.
    async fn discard_last(&self, req: &Req, counts: &mut Refcounts, offset: u64, clusters: u64) {
        let first = self.geometry.cluster(offset);
        let mut last = Vec::new();
        for cluster in first..first + clusters {
            if matches!(self.load_block(req, counts, cluster).await, Ok(true)) && counts.get(cluster) == Some(1) {
                last.push(cluster);
            }
        }
        self.discard_clusters(req, last).await;
    }

    /// Tell the host that nobody needs what is in these clusters of the file. Who calls this sees to it that nobody is given them meanwhile.
    pub(crate) async fn discard_clusters(&self, req: &Req, mut clusters: Vec<u64>) {
        clusters.sort_unstable();
        clusters.dedup();
        let size = self.geometry.cluster_size();
        // What is metadata, too, by whose mistake ever, stays.
        clusters.retain(|cluster| self.overlap(cluster * size, size, OverlapChecks::NONE).is_none());
        for run in clusters.chunk_by(|a, b| a + 1 == *b) {
            let told = self.file.discard(req, HostOffset(run[0] * size), run.len() as u64 * size).await;
            if let Err(error) = told {
                // The space stays with the file, and that is all.
                tracing::debug!(%error, "freed clusters were not discarded");
            }
        }
    }

    /// Whether any count was changed since it was written.
    pub(crate) async fn has_dirty_counts(&self) -> bool {
        self.refcounts.lock().await.has_dirty()
    }

    /// Write the counts that were changed. Only one at a time does that.
    pub(crate) async fn write_counts(&self, req: &Req) -> IoResult<()> {
        let blocks = self.refcounts.lock().await.take_dirty();
        let (mut done, mut result) = (0, Ok(()));
        while let Some((_, offset, bytes)) = blocks.get(done) {
            result = match self.guard(req, *offset, bytes.len() as u64, MetadataKind::RefcountBlock).await {
                Ok(()) => meta::write(req, &self.file, *offset, bytes).await,
                Err(error) => Err(error),
            };
            if result.is_err() {
                break;
            }
            done += 1;
        }
        let mut counts = self.refcounts.lock().await;
        let numbers = |part: std::ops::Range<usize>| blocks[part].iter().map(|(number, ..)| *number);
        counts.written(numbers(0..done), true);
        counts.written(numbers(done..blocks.len()), false);
        let unnamed = counts.unnamed.clone();
        drop(counts);
        result?;
        if unnamed.is_empty() { Ok(()) } else { self.name_blocks(req, unnamed).await }
    }

    /// Let the table on the disk name these blocks, which are written.
    async fn name_blocks(&self, req: &Req, numbers: BTreeSet<u64>) -> IoResult<()> {
        self.file.flush(req).await?;
        for number in numbers {
            // A longer table may have taken this one's place meanwhile.
            let mut counts = self.refcounts.lock().await;
            let at = self.header().refcount_table_offset + number * 8;
            let entry = counts.table.get(number as usize).map_or(0, |entry| *entry).to_be_bytes();
            self.guard(req, at, 8, MetadataKind::RefcountTable).await?;
            meta::write(req, &self.file, at, &entry).await?;
            counts.unnamed.remove(&number);
        }
        Ok(())
    }
}
