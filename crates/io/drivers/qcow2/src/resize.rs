//! Another length of the virtual disk.

use crate::cache::Entry;
use crate::image::Shared;
use crate::meta;
use crate::refcounts::{Allocated, Class};
use block_common::{AlignedBuf, Errno, HostOffset, IoError, IoResult, Preallocation, RequestFlags};
use block_io::Req;
use block_qcow2_format::{L2Entry, SubclusterBits, Version};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What one allocation is for at most, in bytes.
const PREALLOCATE_MAX: u64 = 64 << 20;

/// A write that makes the disk longer makes it a multiple of this many bytes.
const SECTOR: u64 = 512;

/// Why an image that was `old` bytes long could not be made `new` ones, in the field's words.
pub fn resize_failure(error: IoError, old: u64, new: u64, preallocation: Preallocation) -> String {
    match error {
        IoError::UNSUPPORTED if new < old && preallocation != Preallocation::Off => {
            "Preallocation can't be used for shrinking an image".into()
        }
        IoError::UNSUPPORTED => "Can't resize a v2 image which has snapshots".into(),
        error if error.errno() == Errno::EFBIG => format!("Failed to grow the L1 table: {error}"),
        error => format!("Could not resize the image: {error}"),
    }
}

/// What the field's tools have against a length, which the format has not: theirs are whole sectors.
pub fn refuse_length(len: u64) -> Option<String> {
    (!len.is_multiple_of(SECTOR)).then(|| format!("The new size must be a multiple of {SECTOR}"))
}

impl Shared {
    /// Make the image reach `end`, if it does not yet: a write whose parent may resize ends there.
    pub(crate) async fn reach(&self, req: &Req, end: u64) -> IoResult<()> {
        if end <= self.length() {
            return Ok(());
        }
        let _turn = self.resizing.lock().await;
        if end > self.length() {
            self.grow(req, end.next_multiple_of(SECTOR), Preallocation::Off).await
        } else {
            Ok(())
        }
    }

    /// Make the disk `len` bytes long. What it has more then gets places as `preallocation` says.
    pub(crate) async fn resize(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let _turn = self.resizing.lock().await;
        if !self.may_resize() && len != self.length() {
            return Err(IoError::UNSUPPORTED);
        }
        match (len >= self.length(), preallocation) {
            (true, _) => self.grow(req, len, preallocation).await,
            (false, Preallocation::Off) => self.shrink(req, len).await,
            (false, _) => Err(IoError::UNSUPPORTED),
        }
    }

    async fn grow(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let old = self.length();
        if len > self.geometry.size_max() {
            return Err(IoError::host(Errno::EFBIG.raw()));
        }
        // What comes into view must be zero before it does (rule trunc-1), on the disk as well.
        let tail = old.next_multiple_of(self.geometry.cluster_size()).min(len);
        if old < tail && !self.is_zero(req, old..tail).await? {
            let zeroes = AlignedBuf::zeroed((tail - old) as usize, 4096).into_io();
            self.write(req, old, &zeroes, RequestFlags::empty()).await?;
        }
        // A machine's state that no snapshot has would be taken for the disk's. After a power cut, too: whatever made it zero may still be in memory.
        if self.clear_vmstate(req, u64::MAX).await? || old < tail {
            self.flush(req).await?;
        }
        let entries = self.geometry.l1_entries_for(len);
        if entries > self.l1.load().len() as u64 {
            self.grow_l1(req, entries).await?;
        }
        let size = self.geometry.cluster_size();
        let new = old.next_multiple_of(size)..len.next_multiple_of(size);
        let done = async {
            if preallocation != Preallocation::Off {
                self.preallocate(req, new.clone(), preallocation).await?;
            }
            if let Some(data) = self.data.as_ref()
                && data.refresh_length(req).await? < len
            {
                data.truncate(req, len, Preallocation::Off).await?;
            }
            self.change_header(req, |header| header.size = len).await
        };
        if let Err(error) = done.await {
            if preallocation != Preallocation::Off {
                // The disk keeps its length, and nothing behind its end.
                self.clear(req, new.start, new.end).await?;
                self.flush(req).await?;
            }
            return Err(error);
        }
        self.set_length(len);
        Ok(())
    }

    /// Give a range of whole clusters, which nobody can see yet, places in the file.
    async fn preallocate(&self, req: &Req, range: Range<u64>, how: Preallocation) -> IoResult<()> {
        let (size, mut at) = (self.geometry.cluster_size(), range.start);
        let mut end = 0;
        while at < range.end {
            let to = range.end.min(self.slice_end(at)).min(at + PREALLOCATE_MAX);
            let clusters = self.geometry.cluster(at)..self.geometry.cluster(to - 1) + 1;
            let _lock = self.locks.lock(clusters.clone()).await;
            self.ensure_table(req, at).await?;
            let place = self.place_for(req, clusters.start, clusters.end - clusters.start).await?;
            let count = place.clusters;
            let entry = match self.make_zero(req, at, place, how).await {
                Ok(entry) => entry,
                Err(error) => {
                    if self.data.is_none() {
                        self.give_back(req, place.offset, count).await;
                    }
                    return Err(error);
                }
            };
            let enter = |first: usize, slice: &mut crate::cache::SliceUpdate<'_>| {
                for i in 0..count {
                    slice.set(first + i as usize, entry(place.offset + i * size));
                }
            };
            self.change_entries(req, at, enter).await?;
            at += count * size;
            end = end.max(place.offset + count * size);
        }
        // The places are in the file, even those that nothing was written to.
        if end > self.data_edge().refresh_length(req).await? {
            self.data_edge().truncate(req, end, Preallocation::Off).await?;
        }
        self.write_back(req).await
    }

    /// Let new clusters for what is at `at` of the disk read as zeroes. Returns what makes their entries, by their offsets.
    async fn make_zero(&self, req: &Req, at: u64, place: Allocated, how: Preallocation) -> IoResult<fn(u64) -> Entry> {
        let edge = self.data_edge();
        let bytes = place.clusters * self.geometry.cluster_size();
        let is_alone = match self.backing.as_ref().filter(|backing| backing.is_attached()) {
            Some(backing) => backing.length(req)? <= at,
            None => true,
        };
        let is_behind = edge.refresh_length(req).await? <= place.offset;
        if how == Preallocation::Metadata {
            // What was never written to is zeroes, if nobody asks what lies below.
            let is_zero = is_alone && (place.is_fresh || is_behind) && !self.is_encrypted();
            match (self.geometry.is_extended(), self.version) {
                // Subclusters that are not there show what is below.
                (true, _) if !is_alone => return Ok(|at| (L2Entry::data(at), SubclusterBits::ALL_ZERO)),
                (true, _) => return Ok(|at| (L2Entry::data(at), SubclusterBits::default())),
                (false, _) if is_zero => return Ok(|at| (L2Entry::data(at), SubclusterBits::default())),
                (false, Version::V3) => return Ok(|at| (L2Entry::zero_allocated(at), SubclusterBits::default())),
                (false, Version::V2) => {}
            }
        }
        if is_behind {
            edge.truncate(req, place.offset + bytes, how).await?;
        } else {
            edge.zero(req, HostOffset(place.offset), bytes, RequestFlags::empty()).await?;
        }
        if self.is_encrypted() && self.version == Version::V2 {
            self.write_zeroes(req, at, place.offset, bytes).await?;
        }
        Ok(match (self.geometry.is_extended(), self.is_encrypted() && self.version >= Version::V3) {
            (true, false) => |at| (L2Entry::data(at), SubclusterBits::ALL_ALLOCATED),
            (false, false) => |at| (L2Entry::data(at), SubclusterBits::default()),
            // There is room, and what is there is no zeroes to who decrypts it.
            (true, true) => |at| (L2Entry::data(at), SubclusterBits::ALL_ZERO),
            (false, true) => |at| (L2Entry::zero_allocated(at), SubclusterBits::default()),
        })
    }

    /// Move the L1 table to where there is room for `entries` of them.
    pub(crate) async fn grow_l1(&self, req: &Req, entries: u64) -> IoResult<()> {
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
        self.clear_vmstate(req, u64::MAX).await?;
        self.set_length(len);
        let done = async {
            let from = len.next_multiple_of(size);
            if from < old.next_multiple_of(size) {
                self.clear(req, from, old.next_multiple_of(size)).await?;
            }
            self.flush(req).await?;
            self.change_header(req, |header| header.size = len).await?;
            match &self.data {
                Some(data) if data.refresh_length(req).await? > len => {
                    data.truncate(req, len, Preallocation::Off).await
                }
                _ => Ok(()),
            }
        };
        let done = done.await;
        if done.is_err() {
            self.set_length(old);
        }
        done
    }
}
