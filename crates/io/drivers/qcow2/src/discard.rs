//! Discards.
//!
//! A cluster that is discarded is let go of, or, with `discard-no-unref`, keeps its place and reads as zeroes. The host is told when the entries on the disk
//! say so.

use crate::cache::Entry;
use crate::image::Shared;
use crate::overlap::OverlapChecks;
use crate::refcounts::Class;
use block_common::{GuestRange, HostOffset, IoResult};
use block_io::Req;
use block_qcow2_format::{L2Entry, L2Kind, SubclusterBits, Version};
use std::ops::Range;

/// Clusters of the disk, one behind the other, that keep their places, and have nothing there that anybody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Emptied {
    guest: u64,
    host: u64,
    clusters: u64,
}

impl Shared {
    /// Free whole clusters. Parts of one stay as they are.
    pub(crate) async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        let size = self.geometry.cluster_size();
        let from = range.offset().0.next_multiple_of(size);
        let is_end = range.end() == self.length();
        let to = if is_end { range.end() } else { range.end() - range.end() % size };
        if from >= to || self.data_is_raw() {
            return Ok(());
        }
        let has_backing = self.backing.as_ref().is_some_and(|backing| backing.is_attached());
        // What shows through must not: version 2 cannot say zero.
        let gone = match (self.version, has_backing) {
            (Version::V2, true) => return Ok(()),
            (Version::V2, false) => (L2Entry::EMPTY, SubclusterBits::default()),
            (Version::V3, _) if self.geometry.is_extended() => (L2Entry::EMPTY, SubclusterBits::ALL_ZERO),
            (Version::V3, _) => (L2Entry::ZERO, SubclusterBits::default()),
        };
        let keeps_places = self.keeps_places();
        let discarded = |old: Entry| match self.kind(old.0) {
            // What shows what is below is something, too.
            L2Kind::Unallocated if has_backing => gone,
            L2Kind::Unallocated | L2Kind::Zero => old,
            L2Kind::Data(host) | L2Kind::ZeroAllocated(host) if keeps_places && self.geometry.is_aligned(host) => {
                self.emptied(old.0, host)
            }
            _ => gone,
        };
        self.change_all(req, from..to, discarded).await?;
        self.write_back(req).await
    }

    /// Let the entries of whole clusters become empty: what is below the image shows.
    pub(crate) async fn clear(&self, req: &Req, from: u64, to: u64) -> IoResult<()> {
        self.change_all(req, from..to, |_| Entry::default()).await
    }

    /// What the entry of a cluster at `host` becomes that keeps its place and reads as zeroes. A place that others have, too, stays one.
    pub(crate) fn emptied(&self, entry: L2Entry, host: u64) -> Entry {
        if self.geometry.is_extended() {
            return (entry, SubclusterBits::ALL_ZERO);
        }
        (L2Entry::zero_allocated(host).with_copied(entry.is_copied()), SubclusterBits::default())
    }

    /// Let the entries of whole clusters become what `change` makes of them; those that it leaves as they are cost nothing.
    async fn change_all(&self, req: &Req, range: Range<u64>, change: impl Fn(Entry) -> Entry) -> IoResult<()> {
        let needs_table = change(Entry::default()) != Entry::default();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(self.slice_end(at));
            let clusters = self.geometry.cluster(at)..self.geometry.cluster(end - 1) + 1;
            let count = (clusters.end - clusters.start) as usize;
            let _lock = self.locks.lock(clusters).await;
            if !needs_table && self.slice(req, at).await?.is_none() {
                at = end;
                continue;
            }
            self.ensure_table(req, at).await?;
            let changed = self
                .change_entries(req, at, |first, slice| {
                    let mut changed = Vec::new();
                    for i in 0..count {
                        let old = slice.get(first + i);
                        let new = change(old);
                        if new != old {
                            slice.set(first + i, new);
                            changed.push((i as u64, old, new));
                        }
                    }
                    changed
                })
                .await?;
            for (i, old, new) in changed {
                self.empty_entry(req, at + i * self.geometry.cluster_size(), old.0, new.0, true);
            }
            at = end;
        }
        Ok(())
    }

    /// The entry of the cluster at `guest` has changed at a guest's request: what it named is let go of, or has other content. The host `may_know` of what is
    /// nothing but zeroes now.
    pub(crate) fn empty_entry(&self, req: &Req, guest: u64, old: L2Entry, new: L2Entry, may_know: bool) {
        let place = |entry| match self.kind(entry) {
            L2Kind::Data(host) | L2Kind::ZeroAllocated(host) => Some(host),
            _ => None,
        };
        let kept = place(new);
        self.retire_entry(req, old, kept, Class::Request);
        let stays = kept.is_some() || self.data.is_some();
        let is_told = may_know && stays && self.passes_discards(Class::Request);
        if let Some(host) = place(old).filter(|host| is_told && self.geometry.is_aligned(*host)) {
            self.note_emptied(guest, host);
        }
    }

    fn note_emptied(&self, guest: u64, host: u64) {
        let size = self.geometry.cluster_size();
        let mut lists = self.lists();
        match lists.emptied.last_mut() {
            Some(last) if (guest, host) == (last.guest + last.clusters * size, last.host + last.clusters * size) => {
                last.clusters += 1;
            }
            _ => lists.emptied.push(Emptied { guest, host, clusters: 1 }),
        }
    }

    /// Tell the host of clusters that keep their places, as far as there is still nothing there. Their entries on the disk say so.
    pub(crate) async fn discard_emptied(&self, req: &Req) {
        let size = self.geometry.cluster_size();
        let emptied = std::mem::take(&mut self.lists().emptied_ripe);
        for Emptied { guest, host, clusters } in emptied {
            // Who fills one of them waits, so that what it writes is not discarded.
            let first = self.geometry.cluster(guest);
            let _lock = self.locks.lock(first..first + clusters).await;
            let mut run = None;
            for i in 0..=clusters {
                let (guest, at) = (guest + i * size, host + i * size);
                let is_free =
                    i < clusters && (self.data.is_some() || self.overlap(at, size, OverlapChecks::NONE).is_none());
                let mut is_empty = is_free && self.is_empty_at(req, guest, at).await;
                if is_empty && !self.is_stable_at(req, guest).await {
                    // It was filled and emptied once more since. The disk's entry may still be the one in between, which somebody may come to read.
                    self.lists().emptied.push(Emptied { guest, host: at, clusters: 1 });
                    is_empty = false;
                }
                match (run, is_empty) {
                    (None, true) => run = Some(i),
                    (Some(from), false) => {
                        let told = self.data_edge().discard(req, HostOffset(host + from * size), (i - from) * size);
                        if let Err(error) = told.await {
                            // The space stays with the file, and that is all.
                            tracing::debug!(%error, "emptied clusters were not discarded");
                        }
                        run = None;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Whether the entry of the cluster at `guest` is on the disk as it is.
    async fn is_stable_at(&self, req: &Req, guest: u64) -> bool {
        match self.slice(req, guest).await {
            Ok(slice) => slice.is_none_or(|slice| slice.is_stable()),
            Err(_) => false,
        }
    }

    /// Whether the place `host` belongs to the cluster at `guest`, to nobody else, and nobody reads what is there.
    async fn is_empty_at(&self, req: &Req, guest: u64, host: u64) -> bool {
        let Ok((entry, bits)) = self.entry(req, guest).await else { return false };
        match self.kind(entry) {
            L2Kind::Data(at) if self.geometry.is_extended() => {
                at == host && entry.is_copied() && bits == SubclusterBits::ALL_ZERO
            }
            L2Kind::ZeroAllocated(at) => at == host && entry.is_copied(),
            // In a data file a place is the cluster's own, whether its entry says so or not.
            L2Kind::Unallocated | L2Kind::Zero => self.data.is_some(),
            L2Kind::Data(_) | L2Kind::Compressed(..) => false,
        }
    }
}
