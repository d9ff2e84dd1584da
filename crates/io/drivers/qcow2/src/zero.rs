//! Zero writes.

use crate::cache::Entry;
use crate::image::Shared;
use block_common::{GuestRange, IoError, IoResult, RequestFlags};
use block_io::Req;
use block_qcow2_format::{L2Entry, L2Kind, SubclusterBits, Version};

impl Shared {
    /// Make whole clusters, or subclusters, read as zeroes. Parts of one are written by the core.
    pub(crate) async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        let (from, to) = (range.offset().0, range.end());
        let unit = self.geometry.subcluster_size();
        let is_whole = from.is_multiple_of(unit) && (to.is_multiple_of(unit) || to == self.length());
        if !is_whole || self.data_is_raw() {
            return if self.is_zero(req, from..to).await? { Ok(()) } else { Err(IoError::UNSUPPORTED) };
        }
        let has_backing = match self.backing.as_ref().filter(|backing| backing.is_attached()) {
            Some(backing) => from < backing.length(req)?,
            None => false,
        };
        // Version 2 has no zeroes: what is not there is zero, unless there is something below.
        if self.version == Version::V2 && has_backing {
            return Err(IoError::UNSUPPORTED);
        }
        let unmap = flags.contains(RequestFlags::MAY_UNMAP);
        let mut at = from;
        while at < to {
            let end = to.min(self.slice_end(at));
            self.zero_in_slice(req, at, end, unmap).await?;
            at = end;
        }
        self.write_back(req).await
    }

    async fn zero_in_slice(&self, req: &Req, from: u64, to: u64, unmap: bool) -> IoResult<()> {
        let (size, unit) = (self.geometry.cluster_size(), self.geometry.subcluster_size());
        let clusters = self.geometry.cluster(from)..self.geometry.cluster(to - 1) + 1;
        let count = (clusters.end - clusters.start) as usize;
        let _lock = self.locks.lock(clusters).await;
        let is_v2 = self.version == Version::V2;
        if is_v2 && self.slice(req, from).await?.is_none() {
            return Ok(());
        }
        self.ensure_table(req, from).await?;
        let base = from - self.geometry.within(from);
        let (changed, stopped) = self
            .change_entries(req, from, |first, slice| {
                let mut changed = Vec::new();
                for i in 0..count {
                    let start = base + i as u64 * size;
                    let part = (from.max(start) - start) / unit..(to.min(start + size) - start).div_ceil(unit);
                    let old = slice.get(first + i);
                    match self.zeroed(old, part.start as u32, (part.end - part.start) as u32, unmap) {
                        Some(new) if new != old => {
                            slice.set(first + i, new);
                            changed.push((start, old.0, new.0));
                        }
                        Some(_) => {}
                        None => return (changed, true),
                    }
                }
                (changed, false)
            })
            .await?;
        for (guest, old, new) in changed {
            self.empty_entry(req, guest, old, new, unmap);
        }
        // The core writes all of it again, which is no harm.
        if stopped { Err(IoError::UNSUPPORTED) } else { Ok(()) }
    }

    /// What an entry becomes when `count` of its subclusters from `first` on are zero. `None` when no entry can say that.
    fn zeroed(&self, (entry, bits): Entry, first: u32, count: u32, unmap: bool) -> Option<Entry> {
        let none = SubclusterBits::default();
        if self.version == Version::V2 {
            return Some((L2Entry::EMPTY, none));
        }
        let kind = self.kind(entry);
        // The place stays if it may and is nobody else's, or if all places stay.
        let keeps = !unmap && entry.is_copied() || self.keeps_places();
        if !self.geometry.is_extended() {
            return Some(match kind {
                L2Kind::Data(host) | L2Kind::ZeroAllocated(host) if keeps => self.emptied(entry, host),
                _ => (L2Entry::ZERO, none),
            });
        }
        let is_whole = count == block_qcow2_format::SUBCLUSTERS;
        match kind {
            L2Kind::Compressed(..) if !is_whole => None,
            L2Kind::Data(_) if is_whole && keeps => Some((entry, SubclusterBits::ALL_ZERO)),
            _ if is_whole => Some((L2Entry::EMPTY, SubclusterBits::ALL_ZERO)),
            _ => Some((entry, bits.with_zero(first, count))),
        }
    }
}
