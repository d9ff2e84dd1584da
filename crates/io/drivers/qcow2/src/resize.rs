//! Another length of the virtual disk.

use crate::image::Shared;
use crate::meta;
use crate::refcounts::Class;
use block_common::{AlignedBuf, Errno, IoError, IoResult};
use block_io::Req;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

impl Shared {
    /// Make the image reach `end`, if it does not yet: a write whose parent may resize ends there.
    pub(crate) async fn reach(&self, req: &Req, end: u64) -> IoResult<()> {
        if end <= self.length() {
            return Ok(());
        }
        let _turn = self.resizing.lock().await;
        if end > self.length() { self.grow(req, end.next_multiple_of(512)).await } else { Ok(()) }
    }

    /// Make the disk `len` bytes long.
    pub(crate) async fn resize(&self, req: &Req, len: u64) -> IoResult<()> {
        let _turn = self.resizing.lock().await;
        if !self.may_resize() && len != self.length() {
            return Err(IoError::UNSUPPORTED);
        }
        if len >= self.length() { self.grow(req, len).await } else { self.shrink(req, len).await }
    }

    async fn grow(&self, req: &Req, len: u64) -> IoResult<()> {
        let old = self.length();
        if len > self.geometry.size_max() {
            return Err(IoError::host(Errno::EFBIG.raw()));
        }
        // What comes into view must be zero before it does (rule trunc-1).
        let tail = old.next_multiple_of(self.geometry.cluster_size()).min(len);
        if old < tail && !self.is_zero(req, old..tail).await? {
            let zeroes = AlignedBuf::zeroed((tail - old) as usize, 4096).into_io();
            self.write(req, old, &zeroes).await?;
        }
        let entries = self.geometry.l1_entries_for(len);
        if entries > self.l1.load().len() as u64 {
            self.grow_l1(req, entries).await?;
        }
        self.change_header(req, |header| header.size = len).await?;
        self.set_length(len);
        Ok(())
    }

    /// Move the L1 table to where there is room for `entries` of them.
    async fn grow_l1(&self, req: &Req, entries: u64) -> IoResult<()> {
        let _turn = self.tables.lock().await;
        // Nobody writes single entries meanwhile.
        let _flush = self.flushing.lock().await;
        let wanted = self.geometry.clusters_for(entries * 8);
        let place = self.allocate_all(req, wanted).await?;
        let old = self.l1.load_full();
        let mut table: Vec<u64> = old.iter().map(|entry| entry.load(Ordering::SeqCst)).collect();
        table.resize(entries as usize, 0);
        let bytes = meta::table_bytes(table.iter().copied());
        let (old_offset, old_size) = {
            let header = self.header();
            (header.l1_offset, header.l1_size)
        };
        let moved = async {
            // What it names is on the disk before it is.
            self.write_counts(req).await?;
            meta::write(req, &self.file, place, &bytes).await?;
            self.file.flush(req).await?;
            self.change_header(req, |header| {
                header.l1_offset = place;
                header.l1_size = entries as u32;
            })
            .await?;
            self.file.flush(req).await
        };
        if let Err(error) = moved.await {
            // The header may name the new table or the old one: both stay.
            tracing::warn!(%error, "an L1 table was not moved; its new place is lost until the image is checked");
            return Err(error);
        }
        self.l1.store(Arc::new(table.into_iter().map(AtomicU64::new).collect()));
        if old_size > 0 {
            self.retire(req, old_offset, self.geometry.clusters_for(u64::from(old_size) * 8), Class::Other);
        }
        Ok(())
    }

    /// So many clusters, one behind the other.
    pub(crate) async fn allocate_all(&self, req: &Req, wanted: u64) -> IoResult<u64> {
        let mut tries = Vec::new();
        let place = loop {
            match self.allocate(req, wanted).await {
                Ok(found) if found.clusters == wanted => break Ok(found.offset),
                Ok(found) => tries.push(found),
                Err(error) => break Err(error),
            }
        };
        for found in tries {
            self.give_back(req, found.offset, found.clusters).await;
        }
        place
    }

    async fn shrink(&self, req: &Req, len: u64) -> IoResult<()> {
        let old = self.length();
        let size = self.geometry.cluster_size();
        self.set_length(len);
        let done = async {
            let from = len.next_multiple_of(size);
            if from < old.next_multiple_of(size) {
                self.clear(req, from, old.next_multiple_of(size)).await?;
            }
            self.flush(req).await?;
            self.change_header(req, |header| header.size = len).await
        };
        let done = done.await;
        if done.is_err() {
            self.set_length(old);
        }
        done
    }
}
