//! What is durable when.
//!
//! A flush takes the changes of the tables as they are, then: counts, a flush of the file, tables, a flush of the file. So whatever a
//! table on the disk names was there, and was counted, before (rule qcow2-1). Clusters that these tables no longer name are free after it
//! (rule qcow2-2); their counts go down in memory then, and reach the disk with a later flush: a power cut in between leaks them.

use crate::cache::DirtySlice;
use crate::image::Shared;
use crate::meta;
use crate::overlap::MetadataKind;
use block_common::IoResult;
use block_io::Req;
use block_qcow2_format::IncompatibleFeatures;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

impl Shared {
    /// Bring everything that is over to stable storage.
    pub(crate) async fn flush(&self, req: &Req) -> IoResult<()> {
        let turn = self.flushing.lock().await;
        self.store(req).await?;
        if self.is_corrupt() {
            return Ok(());
        }
        if let Err(error) = self.free_ripe(req, false).await {
            tracing::warn!(%error, "freed clusters stay in use until the image is checked");
        }
        // Locks of ranges come before the flush's turn.
        drop(turn);
        self.discard_emptied(req).await;
        Ok(())
    }

    /// Write tables because there are too many changed ones in memory.
    pub(crate) async fn write_back(&self, req: &Req) -> IoResult<()> {
        if !self.cache.is_crowded() {
            return Ok(());
        }
        let _turn = self.flushing.lock().await;
        if self.cache.is_crowded() { self.store(req).await } else { Ok(()) }
    }

    async fn store(&self, req: &Req) -> IoResult<()> {
        // Rule qcow2-5: of an image that was found corrupt nothing is written any more, and nobody is told that it was.
        if self.is_corrupt() {
            return if self.waits_for_flush() { self.writable() } else { self.flush_files(req).await };
        }
        // In this order: what is retired was taken out of the tables before it was retired.
        let retired = std::mem::take(&mut self.lists().retired);
        let emptied = std::mem::take(&mut self.lists().emptied);
        let slices = self.cache.take_dirty();
        let entries = std::mem::take(&mut self.lists().l1_dirty);
        // Entries that are made from now on may lead to tables that are not on the disk yet: they wait for the next flush.
        let sectors = self.l1_sectors(&entries);
        let stored = self.store_all(req, &slices, &sectors).await;
        self.cache.written(&slices, stored.is_ok());
        let mut lists = self.lists();
        match stored {
            Ok(()) => {
                lists.ripe.extend(retired);
                lists.emptied_ripe.extend(emptied);
            }
            Err(_) => {
                lists.retired.extend(retired);
                lists.emptied.extend(emptied);
                lists.l1_dirty.extend(entries);
            }
        }
        stored
    }

    async fn store_all(&self, req: &Req, slices: &[DirtySlice], l1_sectors: &[(u64, Vec<u8>)]) -> IoResult<()> {
        if self.is_lazy() && !self.refcounts.lock().await.is_crowded() {
            self.mark_dirty(req).await?;
        } else {
            self.write_counts(req).await?;
        }
        if !slices.is_empty() || !l1_sectors.is_empty() {
            self.flush_files(req).await?;
            for slice in slices {
                self.write_slice(req, slice).await?;
            }
            let l1 = self.header().l1_offset;
            for (at, bytes) in l1_sectors {
                self.guard(req, l1 + at, bytes.len() as u64, MetadataKind::ActiveL1).await?;
                meta::write(req, &self.file, l1 + at, bytes).await?;
            }
        }
        self.flush_files(req).await
    }

    /// Let the image say that its counts are not what they should be. That is on the disk with the next flush, before the tables that are written after it.
    async fn mark_dirty(&self, req: &Req) -> IoResult<()> {
        let is_marked = self.header().incompatible.contains(IncompatibleFeatures::DIRTY);
        if is_marked || !self.has_dirty_counts().await {
            return Ok(());
        }
        self.change_header(req, |header| header.incompatible |= IncompatibleFeatures::DIRTY).await
    }

    /// Whether the disk's tables are not what was acknowledged.
    fn waits_for_flush(&self) -> bool {
        self.cache.has_dirty() || !self.lists().l1_dirty.is_empty()
    }

    async fn flush_files(&self, req: &Req) -> IoResult<()> {
        if let Some(data) = &self.data {
            data.flush(req).await?;
        }
        self.file.flush(req).await
    }

    async fn write_slice(&self, req: &Req, slice: &DirtySlice) -> IoResult<()> {
        let index = slice.index();
        // A slice that was changed has a table of its own.
        let Some(table) = self.l1_entry(index << self.slice_bits()).table() else { return Ok(()) };
        let place = self.slice_place(table, index);
        for (at, bytes) in &slice.parts {
            self.guard(req, place + at, bytes.len() as u64, MetadataKind::ActiveL2).await?;
            meta::write(req, &self.file, place + at, bytes).await?;
        }
        Ok(())
    }

    /// The sectors of the L1 table that have these entries, as they are now, with their places in the table.
    fn l1_sectors(&self, entries: &BTreeSet<u64>) -> Vec<(u64, Vec<u8>)> {
        const SECTOR_ENTRIES: u64 = 64;
        let l1 = self.l1.load_full();
        let sectors: BTreeSet<u64> = entries.iter().map(|entry| entry / SECTOR_ENTRIES).collect();
        let bytes = |sector: u64| {
            let from = (sector * SECTOR_ENTRIES) as usize;
            let to = (from + SECTOR_ENTRIES as usize).min(l1.len());
            let entries = l1[from.min(to)..to].iter().map(|entry| entry.load(Ordering::SeqCst));
            (from as u64 * 8, meta::table_bytes(entries))
        };
        sectors.into_iter().map(bytes).collect()
    }

    /// Write out everything. Nothing is in flight.
    pub(crate) async fn close(&self, req: &Req) -> IoResult<()> {
        self.closed.store(true, Ordering::Relaxed);
        if req.is_read_only() {
            return Ok(());
        }
        // Bitmaps may have changed without a write.
        if self.bitmaps().is_any() && self.writable().is_ok() {
            self.claim(req).await?;
        }
        if self.claimed.load(Ordering::Acquire) {
            self.store_everything(req).await
        } else {
            self.flush_files(req).await
        }
    }

    /// Have the image on the disk as a whole, for whoever opens it next. Nothing is in flight.
    pub(crate) async fn store_everything(&self, req: &Req) -> IoResult<()> {
        self.store(req).await?;
        if self.is_corrupt() {
            return Ok(());
        }
        self.store_bitmaps(req).await?;
        // What the bitmaps had before is free now.
        let retired = std::mem::take(&mut self.lists().retired);
        self.lists().ripe.extend(retired);
        self.discard_emptied(req).await;
        // Only leaks are left to be lost.
        let freed = self.free_ripe(req, true).await;
        if self.has_dirty_counts().await {
            self.write_counts(req).await?;
            self.file.flush(req).await?;
        }
        if self.header().incompatible.contains(IncompatibleFeatures::DIRTY) {
            self.change_header(req, |header| header.incompatible -= IncompatibleFeatures::DIRTY).await?;
            self.file.flush(req).await?;
        }
        freed
    }
}
