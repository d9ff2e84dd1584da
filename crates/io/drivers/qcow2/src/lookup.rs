//! Where a guest's byte lies.

use crate::cache::Slice;
use crate::image::Shared;
use block_common::{BlockStatus, GuestRange, HostOffset, IoResult, StatusExtent};
use block_io::{Access, Mapping, Req};
use block_qcow2_format::{L1Entry, L2Entry, L2Kind, SubclusterBits, SubclusterState};
use std::sync::Arc;

/// What a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// In the data file, from this offset on.
    File(u64),
    /// Zeroes; perhaps with a place of their own.
    Zeroes(Option<u64>),
    /// The backing file's.
    Backing,
    /// A compressed cluster: where it is, and how many bytes at most.
    Compressed(u64, u64),
    /// No entry can say what this one says.
    Bad(L2Entry),
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) source: Source,
    pub(crate) len: u64,
}

impl Extent {
    /// Whether `next` goes on where this one ends.
    fn is_continued_by(self, next: Source) -> bool {
        match (self.source, next) {
            (Source::File(a), Source::File(b)) | (Source::Zeroes(Some(a)), Source::Zeroes(Some(b))) => {
                a + self.len == b
            }
            (Source::Zeroes(None), Source::Zeroes(None)) | (Source::Backing, Source::Backing) => true,
            _ => false,
        }
    }
}

/// The table is not in memory.
pub(crate) struct NotCached;

impl Shared {
    /// The number of the slice that has the entry of `offset`.
    #[inline]
    pub(crate) fn slice_index(&self, offset: u64) -> u64 {
        offset >> self.slice_bits()
    }

    /// Which entry of its slice `offset` has.
    #[inline]
    pub(crate) fn entry_index(&self, offset: u64) -> usize {
        (self.geometry.cluster(offset) & ((1 << (self.slice_bits() - self.geometry.cluster_bits())) - 1)) as usize
    }

    /// Where the slice that has the entry of `offset` ends, as an offset of the guest's.
    #[inline]
    pub(crate) fn slice_end(&self, offset: u64) -> u64 {
        (self.slice_index(offset) + 1).saturating_mul(1 << self.slice_bits())
    }

    /// What the entry says of the cluster.
    #[inline]
    pub(crate) fn kind(&self, entry: L2Entry) -> L2Kind {
        if self.data.is_some() { entry.kind_in_data_file(&self.geometry) } else { entry.kind(&self.geometry) }
    }

    /// What `len` bytes at `offset` are, at most, which lie in one cluster or in one subcluster run of it. Returns how many.
    #[inline]
    fn piece(&self, (entry, bits): (L2Entry, SubclusterBits), offset: u64, len: u64) -> Extent {
        let within = self.geometry.within(offset);
        let len = len.min(self.geometry.cluster_size() - within);
        let kind = self.kind(entry);
        let place = match kind {
            L2Kind::Data(host) | L2Kind::ZeroAllocated(host) if !self.geometry.is_aligned(host) => {
                return Extent { source: Source::Bad(entry), len };
            }
            L2Kind::Data(host) | L2Kind::ZeroAllocated(host) => Some(host + within),
            L2Kind::Compressed(at, bytes) => return Extent { source: Source::Compressed(at, bytes), len },
            L2Kind::Unallocated | L2Kind::Zero => None,
        };
        if self.geometry.is_extended() {
            return self.subclusters((entry, bits), within, len, place);
        }
        let source = match (kind, place) {
            (L2Kind::Data(_), Some(host)) => Source::File(host),
            (L2Kind::Zero | L2Kind::ZeroAllocated(_), place) => Source::Zeroes(place),
            _ => Source::Backing,
        };
        Extent { source, len }
    }

    fn subclusters(
        &self,
        (entry, bits): (L2Entry, SubclusterBits),
        within: u64,
        len: u64,
        place: Option<u64>,
    ) -> Extent {
        let size = self.geometry.subcluster_size();
        let first = (within / size) as u32;
        let (state, count) = bits.run(first);
        let len = len.min((u64::from(first) + u64::from(count)) * size - within);
        let source = match (state, place) {
            (SubclusterState::Allocated, Some(host)) => Source::File(host),
            (SubclusterState::Zero, place) => Source::Zeroes(place),
            (SubclusterState::Unallocated, _) => Source::Backing,
            _ => Source::Bad(entry),
        };
        Extent { source, len }
    }

    /// What the bytes at `offset` are, and for how many of `len` that holds. `None` while the entry is being changed.
    #[inline]
    pub(crate) fn extent(&self, slice: &Slice, offset: u64, len: u64) -> Option<Extent> {
        let end = offset.saturating_add(len).min(self.slice_end(offset));
        let mut extent = self.piece(slice.try_get(self.entry_index(offset))?, offset, end - offset);
        if matches!(extent.source, Source::Compressed(..) | Source::Bad(_)) {
            return Some(extent);
        }
        while offset + extent.len < end {
            let at = offset + extent.len;
            let Some(entry) = slice.try_get(self.entry_index(at)) else { break };
            let next = self.piece(entry, at, end - at);
            if !extent.is_continued_by(next.source) {
                break;
            }
            extent.len += next.len;
        }
        Some(extent)
    }

    /// Where a write of `len` bytes at `offset` may overwrite what is there, and how many of them. `None` where it may not.
    #[inline]
    pub(crate) fn in_place(&self, slice: &Slice, offset: u64, len: u64) -> Option<(u64, u64)> {
        let end = offset.saturating_add(len).min(self.slice_end(offset));
        let mut found: Option<(u64, u64)> = None;
        let mut at = offset;
        while at < end {
            let entry = slice.try_get(self.entry_index(at));
            // Rule qcow2-7: whoever else has the cluster keeps it as it is.
            let Some(entry) = entry.filter(|(entry, _)| entry.is_copied()) else { break };
            let piece = self.piece(entry, at, end - at);
            let Source::File(host) = piece.source else { break };
            match &mut found {
                None => found = Some((host, piece.len)),
                Some((first, total)) if *first + *total == host => *total += piece.len,
                Some(_) => break,
            }
            at += piece.len;
        }
        found
    }

    /// The L1 entry that leads to `offset`; none past the table's end.
    #[inline]
    pub(crate) fn l1_entry(&self, offset: u64) -> L1Entry {
        let l1 = self.l1.load();
        let index = self.geometry.l1_index(offset) as usize;
        L1Entry::from_raw(l1.get(index).map_or(0, |entry| entry.load(std::sync::atomic::Ordering::SeqCst)))
    }

    /// Where the L2 table of `offset` ends, as an offset of the guest's.
    fn table_end(&self, offset: u64) -> u64 {
        let bits = self.geometry.cluster_bits() + self.geometry.l2_bits();
        ((offset >> bits) + 1).saturating_mul(1 << bits)
    }

    /// As [`Shared::extent`], from what is in memory.
    #[inline]
    fn cached_extent(&self, offset: u64, len: u64) -> Result<Option<Extent>, NotCached> {
        let index = self.slice_index(offset);
        let slice = self.cache.fast(index);
        match slice.as_deref().filter(|slice| slice.index() == index) {
            Some(slice) => {
                slice.touch();
                Ok(self.extent(slice, offset, len))
            }
            None if self.l1_entry(offset).raw() == 0 => {
                let len = len.min(self.table_end(offset) - offset);
                Ok(Some(Extent { source: Source::Backing, len }))
            }
            None => Err(NotCached),
        }
    }

    #[inline]
    pub(crate) fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        let (offset, len) = (range.offset().0, range.len());
        if access.is_write() {
            return self.map_write(access, offset, len);
        }
        let Ok(Some(Extent { source, len })) = self.cached_extent(offset, len) else { return Mapping::Slow };
        match source {
            Source::File(host) => self.map_data(access, (offset, host), (range.len(), len)),
            Source::Zeroes(_) => Mapping::Zeroes { len },
            Source::Backing => match &self.backing {
                // The core sees by itself where the backing file ends.
                Some(edge) if edge.is_attached() => Mapping::Child { edge, offset: HostOffset(offset), len },
                _ => Mapping::Zeroes { len },
            },
            Source::Compressed(..) | Source::Bad(_) => Mapping::Slow,
        }
    }

    #[inline]
    fn map_write(&self, access: Access, offset: u64, len: u64) -> Mapping<'_> {
        let index = self.slice_index(offset);
        let slice = self.cache.fast(index);
        let Some(slice) = slice.as_deref().filter(|slice| slice.index() == index) else { return Mapping::Slow };
        // What is written through must be found again: the entries have to be on the disk.
        if !self.is_plain() || access == Access::WriteFua && !slice.is_stable() {
            return Mapping::Slow;
        }
        slice.touch();
        match self.in_place(slice, offset, len) {
            // Rule qcow2-8: where metadata may be, somebody has to look.
            Some((host, there)) if self.data.is_some() || !self.overlaps.may_touch(host, there) => {
                self.map_data(access, (offset, host), (len, there))
            }
            _ => Mapping::Slow,
        }
    }

    /// Guest data of `guest` that lies at `host`: `wanted` bytes, of which so many lie together.
    #[inline]
    fn map_data(&self, access: Access, (guest, host): (u64, u64), (wanted, len): (u64, u64)) -> Mapping<'_> {
        let (edge, offset) = (self.data_edge(), HostOffset(host));
        match &self.encryption {
            None => Mapping::Child { edge, offset, len },
            Some(encryption) => match encryption.at_once(access, (guest, host), wanted) {
                Some(at) => Mapping::Recoded { edge, offset, len, at },
                None => Mapping::Slow,
            },
        }
    }

    /// The slice that has the entry of `offset`, from memory or from the file. `None` where there is no table.
    ///
    /// # Errors
    /// What the file answered, or a table that cannot be where it is said to be.
    pub(crate) async fn slice(&self, req: &Req, offset: u64) -> IoResult<Option<Arc<Slice>>> {
        let index = self.slice_index(offset);
        loop {
            if let Some(slice) = self.cache.get(index) {
                return Ok(Some(slice));
            }
            let Some(table) = self.l1_entry(offset).table() else { return Ok(None) };
            if !self.geometry.is_aligned(table) {
                return Err(self
                    .corrupt(
                        req,
                        format!(
                            "L2 table offset {table:#x} unaligned (L1 index: {})",
                            crate::image::hex(self.geometry.l1_index(offset))
                        ),
                    )
                    .await);
            }
            let _loading = self.loading.lock(index..index + 1).await;
            if let Some(slice) = self.cache.get(index) {
                return Ok(Some(slice));
            }
            let bytes =
                crate::meta::read(req, &self.file, self.slice_place(table, index), self.slice_bytes() as usize).await?;
            // A table is moved under the same lock, so what was read is what counts.
            if self.l1_entry(offset).table() == Some(table) {
                return Ok(Some(self.cache.insert(index, &bytes)));
            }
        }
    }

    /// Where in the file the slice with this number lies, whose table is at `table`.
    pub(crate) fn slice_place(&self, table: u64, index: u64) -> u64 {
        table + (index & (self.geometry.cluster_size() / self.slice_bytes() - 1)) * self.slice_bytes()
    }

    /// As [`Shared::extent`], for who can wait.
    ///
    /// # Errors
    /// As [`Shared::slice`].
    pub(crate) async fn find(&self, req: &Req, offset: u64, len: u64) -> IoResult<Extent> {
        match self.slice(req, offset).await? {
            None => Ok(Extent { source: Source::Backing, len: len.min(self.table_end(offset) - offset) }),
            Some(slice) => loop {
                if let Some(extent) = self.extent(&slice, offset, len) {
                    return Ok(extent);
                }
                std::hint::spin_loop();
            },
        }
    }

    pub(crate) async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let offset = range.offset().0;
        let Extent { source, len } = self.find(req, offset, range.len()).await?;
        let allocated = BlockStatus::ALLOCATED;
        Ok(match source {
            // Nobody can read it where it lies.
            Source::File(_) if self.is_encrypted() => StatusExtent::data(len),
            Source::File(host) => StatusExtent::mapped(BlockStatus::DATA | allocated, len, HostOffset(host)),
            Source::Zeroes(_) if self.is_encrypted() => StatusExtent::zero(len),
            Source::Zeroes(Some(host)) => StatusExtent::mapped(BlockStatus::ZERO | allocated, len, HostOffset(host)),
            Source::Zeroes(None) => StatusExtent::zero(len),
            Source::Compressed(..) => StatusExtent::new(BlockStatus::DATA | allocated | BlockStatus::COMPRESSED, len),
            Source::Backing => match self.backing.as_ref().filter(|backing| backing.is_attached()) {
                None => StatusExtent::new(BlockStatus::ZERO, len),
                Some(backing) => match backing.length(req)?.saturating_sub(offset) {
                    0 => StatusExtent::new(BlockStatus::ZERO, len),
                    there => StatusExtent::unallocated(len.min(there)),
                },
            },
            Source::Bad(entry) => return Err(self.bad_entry(req, offset, entry).await),
        })
    }
}
