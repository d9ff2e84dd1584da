//! Writing: in place where a cluster is the image's alone, else into new clusters.

use crate::cache::Entry;
use crate::image::Shared;
use crate::lookup::Source;
use crate::meta;
use crate::refcounts::{Allocated, Class};
use block_common::{IoBuf, IoError, IoResult, RequestFlags};
use block_io::Req;
use block_qcow2_format::{L1Entry, L2Entry, L2Kind, SubclusterBits};
use std::ops::Range;
use std::sync::atomic::Ordering;

/// What one allocation is for at most, in bytes.
const ALLOCATE_MAX: u64 = 8 << 20;

/// What a write does about a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// It is written where it is.
    InPlace,
    /// It has a place of its own, at this offset, which does not have all of the content.
    Fill(u64),
    /// It needs a place.
    New,
}

impl Shared {
    /// Store `buf` at `offset` of the virtual disk. `flags` are those of the write of the data.
    pub(crate) async fn write(&self, req: &Req, offset: u64, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        match self.sectors_around(offset, buf.len()) {
            None => self.write_sectors(req, offset, buf, flags).await,
            Some(all) => Box::pin(self.write_parts(req, all, offset, buf, flags)).await,
        }
    }

    /// As [`Shared::write`]; of an encrypted image whole sectors.
    pub(crate) async fn write_sectors(&self, req: &Req, offset: u64, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let mut done = 0;
        while done < buf.len() {
            let (at, left) = (offset + done as u64, (buf.len() - done) as u64);
            let slice = self.slice(req, at).await?;
            let place = slice.and_then(|slice| self.in_place(&slice, at, left));
            done += match place {
                Some((host, len)) => {
                    self.guard_data(req, host, len).await?;
                    let part = buf.slice(done, len as usize);
                    self.write_data(req, (at, host), &part, flags).await?;
                    len
                }
                None => self.write_allocating(req, at, &buf.slice(done, left as usize), flags).await?,
            } as usize;
        }
        self.write_back(req).await
    }

    /// What becomes of the cluster with this entry when it is written to.
    fn plan(&self, (entry, bits): Entry) -> Plan {
        match self.kind(entry) {
            L2Kind::Data(_) if entry.is_copied() && !self.geometry.is_extended() => Plan::InPlace,
            L2Kind::Data(_) if entry.is_copied() && bits == SubclusterBits::ALL_ALLOCATED => Plan::InPlace,
            L2Kind::Data(host) | L2Kind::ZeroAllocated(host) if entry.is_copied() => Plan::Fill(host),
            _ => Plan::New,
        }
    }

    /// Store the beginning of `buf`, where new clusters are needed. Returns how many bytes that was; none when somebody else has just
    /// made room for them.
    async fn write_allocating(&self, req: &Req, offset: u64, buf: &IoBuf, flags: RequestFlags) -> IoResult<u64> {
        let end = (offset + buf.len() as u64).min(self.slice_end(offset)).min(offset + ALLOCATE_MAX);
        let clusters = self.geometry.cluster(offset)..self.geometry.cluster(end - 1) + 1;
        let _lock = self.locks.lock(clusters.clone()).await;
        self.ensure_table(req, offset).await?;
        let slice = self.slice(req, offset).await?.ok_or(IoError::BUG)?;
        if self.in_place(&slice, offset, end - offset).is_some() {
            return Ok(0);
        }
        let first = self.entry_index(offset);
        let old = slice.get(first);
        match self.plan(old) {
            Plan::InPlace => Err(self.bad_entry(req, offset, old.0).await),
            Plan::Fill(host) if !self.geometry.is_aligned(host) => Err(self.bad_entry(req, offset, old.0).await),
            Plan::Fill(host) => {
                let place = Allocated { offset: host, clusters: 1, is_fresh: false };
                self.guard_data(req, host, self.geometry.cluster_size()).await?;
                self.fill(req, offset..end, buf, place, flags).await
            }
            Plan::New => {
                let wanted = (first..first + (clusters.end - clusters.start) as usize)
                    .take_while(|at| self.plan(slice.get(*at)) == Plan::New)
                    .count() as u64;
                let place = self.place_for(req, clusters.start, wanted).await?;
                let filled = self.fill(req, offset..end, buf, place, flags).await;
                if filled.is_err() && self.data.is_none() {
                    // Rule qcow2-4.
                    self.give_back(req, place.offset, place.clusters).await;
                }
                filled
            }
        }
    }

    /// Where new clusters go. In a data file they lie where the guest sees them.
    pub(crate) async fn place_for(&self, req: &Req, cluster: u64, wanted: u64) -> IoResult<Allocated> {
        match self.data {
            Some(_) => {
                let offset = cluster << self.geometry.cluster_bits();
                Ok(Allocated { offset, clusters: wanted, is_fresh: false })
            }
            None => self.allocate(req, wanted).await,
        }
    }

    /// Store as much of `buf` as fits into `place`, and what has to be there around it, and let the entries say so.
    async fn fill(
        &self,
        req: &Req,
        Range { start: offset, end }: Range<u64>,
        buf: &IoBuf,
        place: Allocated,
        flags: RequestFlags,
    ) -> IoResult<u64> {
        let size = self.geometry.cluster_size();
        let base = offset - self.geometry.within(offset);
        let end = end.min(base + place.clusters * size);
        let data = buf.slice(0, (end - offset) as usize);
        let around = self.around(req, offset..end).await?;
        // What was never written to is no zeroes to who decrypts it.
        let around = match place.is_fresh && !self.is_encrypted() {
            true => self.without_zeroes(req, around, offset..end).await?,
            false => around,
        };
        let merged = self.merge(req, &around, offset, &data).await?;
        let host = place.offset + (around.start - base);
        self.write_data(req, (around.start, host), &merged, flags).await?;
        // Where the new place is zeroes anyway, it counts as filled.
        let filled = self.around(req, offset..end).await?;
        self.enter(req, base, end, place, filled).await?;
        Ok(end - offset)
    }

    /// The range that has to be stored for `range` to be: up to where other entries or subclusters begin.
    async fn around(&self, req: &Req, range: Range<u64>) -> IoResult<Range<u64>> {
        let unit_of = |old: Entry| match self.carries(old) {
            true => self.geometry.cluster_size(),
            false => self.geometry.subcluster_size(),
        };
        let first = unit_of(self.entry(req, range.start).await?);
        let last = unit_of(self.entry(req, range.end - 1).await?);
        Ok(range.start - range.start % first..range.end.next_multiple_of(last))
    }

    /// Whether the cluster has content that does not stay where it is when the cluster gets another place.
    fn carries(&self, (entry, bits): Entry) -> bool {
        match self.kind(entry) {
            L2Kind::Compressed(..) => true,
            L2Kind::Data(_) => !entry.is_copied() && (!self.geometry.is_extended() || bits.any_allocated()),
            _ => false,
        }
    }

    /// `around` without the ends that read as zeroes, given that nothing but zeroes is there already.
    async fn without_zeroes(&self, req: &Req, around: Range<u64>, range: Range<u64>) -> IoResult<Range<u64>> {
        let start = if self.is_zero(req, around.start..range.start).await? { range.start } else { around.start };
        let end = if self.is_zero(req, range.end..around.end).await? { range.end } else { around.end };
        Ok(start..end)
    }

    /// Whether a range is known to read as zeroes.
    pub(crate) async fn is_zero(&self, req: &Req, range: Range<u64>) -> IoResult<bool> {
        let mut at = range.start;
        while at < range.end {
            let extent = self.find(req, at, range.end - at).await?;
            let is_zero = match (extent.source, self.backing.as_ref().filter(|backing| backing.is_attached())) {
                (Source::Zeroes(_), _) | (Source::Backing, None) => true,
                (Source::Backing, Some(backing)) => at >= backing.length(req)?,
                _ => false,
            };
            if !is_zero {
                return Ok(false);
            }
            at += extent.len;
        }
        Ok(true)
    }

    /// `data`, which begins at `offset`, with what the disk has around it.
    async fn merge(&self, req: &Req, around: &Range<u64>, offset: u64, data: &IoBuf) -> IoResult<IoBuf> {
        let (front, back) = ((offset - around.start) as usize, (around.end - offset) as usize - data.len());
        if front == 0 && back == 0 {
            return Ok(data.clone());
        }
        let merged = self.buffer(req, self.data_edge(), front + data.len() + back)?.into_io();
        self.read(req, around.start, &merged.slice(0, front)).await?;
        merged.slice(front, data.len()).copy_from(data);
        self.read(req, offset + data.len() as u64, &merged.slice(front + data.len(), back)).await?;
        Ok(merged)
    }

    /// Let the entries from `base` on say that their clusters are at `place`, and have what is in `filled`.
    async fn enter(&self, req: &Req, base: u64, end: u64, place: Allocated, filled: Range<u64>) -> IoResult<()> {
        let (size, sub) = (self.geometry.cluster_size(), self.geometry.subcluster_size());
        let count = (end - base).div_ceil(size);
        let old = self
            .change_entries(req, base, |first, slice| {
                (0..count)
                    .map(|i| {
                        let old = slice.get(first + i as usize);
                        let from = filled.start.saturating_sub(base + i * size).min(size) / sub;
                        let to = (filled.end - (base + i * size)).min(size) / sub;
                        let bits = match (self.geometry.is_extended(), self.kind(old.0)) {
                            (false, _) => SubclusterBits::default(),
                            (true, L2Kind::Compressed(..)) => SubclusterBits::ALL_ALLOCATED,
                            (true, _) => old.1.with_allocated(from as u32, (to - from) as u32),
                        };
                        slice.set(first + i as usize, (L2Entry::data(place.offset + i * size), bits));
                        old
                    })
                    .collect::<Vec<Entry>>()
            })
            .await?;
        for (i, (entry, _)) in old.into_iter().enumerate() {
            self.retire_entry(req, entry, Some(place.offset + i as u64 * size), Class::Other);
        }
        Ok(())
    }

    /// An entry has gone: what it named is nobody's, unless it is `kept`.
    pub(crate) fn retire_entry(&self, req: &Req, entry: L2Entry, kept: Option<u64>, class: Class) {
        match self.kind(entry) {
            L2Kind::Compressed(at, len) => self.retire_compressed(req, at, len, class),
            // In a data file nothing is counted.
            L2Kind::Data(host) | L2Kind::ZeroAllocated(host) if self.data.is_none() && Some(host) != kept => {
                if self.geometry.is_aligned(host) {
                    self.retire(req, host, 1, class);
                } else {
                    // It names no cluster: what it touches is somebody else's.
                    tracing::error!(
                        node = req.node_name(),
                        "Image is corrupt: Cannot free unaligned cluster {host:#x}"
                    );
                }
            }
            _ => {}
        }
    }

    /// The entry of `offset`.
    pub(crate) async fn entry(&self, req: &Req, offset: u64) -> IoResult<Entry> {
        let slice = self.slice(req, offset).await?;
        Ok(slice.map_or_else(Entry::default, |slice| slice.get(self.entry_index(offset))))
    }

    /// Change entries of the slice that has that of `offset`, which has a table. `change` is given its place there. The caller holds the clusters' locks.
    pub(crate) async fn change_entries<T>(
        &self,
        req: &Req,
        offset: u64,
        mut change: impl FnMut(usize, &mut crate::cache::SliceUpdate<'_>) -> T,
    ) -> IoResult<T> {
        loop {
            self.slice(req, offset).await?.ok_or(IoError::BUG)?;
            let first = self.entry_index(offset);
            if let Some(done) = self.cache.update(self.slice_index(offset), |slice| change(first, slice)) {
                return Ok(done);
            }
        }
    }

    /// Set the entry of `offset`, and let go of what it named before.
    pub(crate) async fn set_entry(&self, req: &Req, offset: u64, entry: Entry) -> IoResult<()> {
        let old = self
            .change_entries(req, offset, |at, slice| {
                let old = slice.get(at);
                slice.set(at, entry);
                old
            })
            .await?;
        self.retire_entry(req, old.0, None, Class::Other);
        Ok(())
    }

    /// Have an L2 table for `offset` that is the image's alone.
    pub(crate) async fn ensure_table(&self, req: &Req, offset: u64) -> IoResult<()> {
        let is_own = |entry: L1Entry| entry.table().is_some() && entry.is_copied();
        if is_own(self.l1_entry(offset)) {
            return Ok(());
        }
        let _turn = self.tables.lock().await;
        let old = self.l1_entry(offset);
        if is_own(old) {
            return Ok(());
        }
        if old.table().is_some_and(|table| !self.geometry.is_aligned(table)) {
            return Err(self.corrupt(req, format!("L2 table offset {:#x} unaligned", old.raw())).await);
        }
        let size = self.geometry.cluster_size() as usize;
        let content = match old.table() {
            None => vec![0; size],
            // A table that others have, too, was not changed since it was written.
            Some(table) => meta::read(req, &self.file, table, size).await?,
        };
        let Allocated { offset: place, .. } = self.allocate(req, 1).await?;
        if let Err(error) = meta::write(req, &self.file, place, &content).await {
            self.give_back(req, place, 1).await;
            return Err(error);
        }
        self.overlaps.add_table(place);
        let index = self.geometry.l1_index(offset);
        let l1 = self.l1.load_full();
        let Some(entry) = l1.get(index as usize) else { return Err(IoError::OUT_OF_BOUNDS) };
        entry.store(L1Entry::new(place, true).raw(), Ordering::SeqCst);
        self.lists().l1_dirty.insert(index);
        if let Some(table) = old.table() {
            self.overlaps.remove_table(table);
            self.retire(req, table, 1, Class::Other);
        }
        Ok(())
    }
}
