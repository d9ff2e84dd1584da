//! Discards.

use crate::cache::Entry;
use crate::image::Shared;
use crate::refcounts::Class;
use block_common::{GuestRange, HostOffset, IoResult};
use block_io::Req;
use block_qcow2_format::{L2Entry, L2Kind, SubclusterBits, Version};

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
        self.clear(req, from, to, gone).await?;
        self.write_back(req).await
    }

    /// Tell the host of those of these clusters, the first of which is at `base` of the disk, that nothing names any more, in a data file: they stay
    /// where they are, so nobody else has to be waited for.
    pub(crate) async fn discard_data(&self, req: &Req, base: u64, named: impl Iterator<Item = bool>) {
        let Some(data) = self.data.as_ref().filter(|_| self.passes_discards(Class::Request)) else { return };
        let size = self.geometry.cluster_size();
        let mut run = base..base;
        for was_named in named.chain([false]) {
            if was_named {
                run.end += size;
                continue;
            }
            if !run.is_empty() {
                let told = data.discard(req, HostOffset(run.start), run.end - run.start).await;
                if let Err(error) = told {
                    tracing::debug!(%error, "freed clusters were not discarded");
                }
            }
            run = run.end + size..run.end + size;
        }
    }

    /// Let the entries of whole clusters that name something become `gone`.
    pub(crate) async fn clear(&self, req: &Req, from: u64, to: u64, gone: Entry) -> IoResult<()> {
        let covers = gone != Entry::default() && self.backing.as_ref().is_some_and(|backing| backing.is_attached());
        let mut at = from;
        while at < to {
            let end = to.min(self.slice_end(at));
            let clusters = self.geometry.cluster(at)..self.geometry.cluster(end - 1) + 1;
            let count = (clusters.end - clusters.start) as usize;
            let _lock = self.locks.lock(clusters).await;
            if !covers && self.slice(req, at).await?.is_none() {
                at = end;
                continue;
            }
            self.ensure_table(req, at).await?;
            let old = self
                .change_entries(req, at, |first, slice| {
                    let mut old = Vec::new();
                    for i in first..first + count {
                        let entry = slice.get(i);
                        let is_named = !matches!(self.kind(entry.0), L2Kind::Unallocated | L2Kind::Zero);
                        // To whoever cuts the disk off, zeroes are something, too; and what shows what is below must not.
                        if entry != gone && (is_named || covers || gone == Entry::default()) {
                            slice.set(i, gone);
                            old.push(entry.0);
                        } else {
                            old.push(L2Entry::EMPTY);
                        }
                    }
                    old
                })
                .await?;
            if gone != Entry::default() {
                let named =
                    old.iter().map(|entry| matches!(self.kind(*entry), L2Kind::Data(_) | L2Kind::ZeroAllocated(_)));
                self.discard_data(req, at, named).await;
            }
            old.into_iter().for_each(|entry| self.retire_entry(req, entry, None, Class::Request));
            at = end;
        }
        Ok(())
    }
}
