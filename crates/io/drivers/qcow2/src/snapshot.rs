//! Internal snapshots: taking, going back to, and deleting them.
//!
//! Nothing else is in flight. Caches are written and forgotten first; the work is done on the tables on the disk, and what counts switches
//! with one write of the header: before it, clusters are counted too often at most, and after it, too.

use crate::image::{Qcow2Control, Shared};
use crate::meta;
use crate::overlap::{MetadataKind, OverlapChecks};
use crate::refcounts::Class;
use block_common::{Errno, IoError, IoResult, Preallocation};
use block_io::Req;
use block_qcow2_format::{Geometry, L1Entry, L2Entry, L2Kind, Snapshot, Version};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

/// Ids and names are no longer than this, in bytes.
const TEXT_MAX: usize = u16::MAX as usize;

/// Why a snapshot could not be taken, gone back to, or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFailure {
    /// There is none with this id or name.
    #[error("snapshot not found")]
    NotFound,
    /// There are as many as the format allows.
    #[error("{}", Errno::EFBIG)]
    TooMany,
    /// Its bitmaps would know nothing of what changes.
    #[error("Device has active dirty bitmaps")]
    Bitmaps,
    /// The name is too long.
    #[error("{}", Errno::EINVAL)]
    Name,
    /// The table in the image is none.
    #[error("{}", Errno::EINVAL)]
    Table,
    /// What storage answered, or that a reference count is too narrow.
    #[error(transparent)]
    Io(#[from] IoError),
}

impl SnapshotFailure {
    /// The error number that the field's tools tell.
    pub fn errno(self) -> Errno {
        match self {
            Self::NotFound => Errno::ENOENT,
            Self::TooMany => Errno::EFBIG,
            Self::Name | Self::Table | Self::Bitmaps => Errno::EINVAL,
            Self::Io(error) => error.errno(),
        }
    }
}

/// A snapshot that is to be taken: what its entry tells beside the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Its name.
    pub name: Vec<u8>,
    /// When it is taken: seconds and nanoseconds since 1970.
    pub date: (u32, u32),
    /// Bytes of the machine's state, which was stored before. The snapshot has it from then on, and the disk does not.
    pub vm_state_size: u64,
    /// How long the machine has run, in nanoseconds.
    pub vm_clock_nanoseconds: u64,
    /// How many instructions it has executed, where they are counted.
    pub icount: Option<u64>,
}

/// Which snapshot is meant.
#[doc(alias = "bdrv_snapshot_find")]
#[doc(alias = "bdrv_snapshot_find_by_id_and_name")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotKey {
    /// The one with this id, or else with this name.
    IdOrName(Vec<u8>),
    /// The one with this id and this name, as far as they are given.
    Both(Option<Vec<u8>>, Option<Vec<u8>>),
}

impl SnapshotKey {
    fn find<'a>(&self, snapshots: &'a [Snapshot]) -> Result<&'a Snapshot, SnapshotFailure> {
        let fits = |snapshot: &&Snapshot| match self {
            Self::IdOrName(_) => false,
            Self::Both(id, name) => {
                id.as_ref().is_none_or(|id| *id == snapshot.id)
                    && name.as_ref().is_none_or(|name| *name == snapshot.name)
            }
        };
        match self {
            Self::IdOrName(text) => find(snapshots, text).map(|at| &snapshots[at]),
            Self::Both(..) => snapshots.iter().find(fits).ok_or(SnapshotFailure::NotFound),
        }
    }
}

impl Qcow2Control {
    /// Let an image that is only read show the disk as it was when a snapshot was taken. `req` is as for [`Qcow2Control::create_snapshot`]; the node's length has to
    /// be refreshed after it.
    ///
    /// # Errors
    /// As [`Qcow2Control::create_snapshot`]; [`IoError::NOT_PERMITTED`] for an image that can be written.
    #[doc(alias = "bdrv_snapshot_load_tmp")]
    #[doc(alias = "bdrv_snapshot_load_tmp_by_id_or_name")]
    pub async fn load_snapshot(&self, req: &Req, key: &SnapshotKey) -> Result<(), SnapshotFailure> {
        self.0.load_snapshot(req, key).await
    }

    /// The snapshots of the image, in the order of its table.
    ///
    /// # Errors
    /// [`SnapshotFailure`], where the table cannot be read or is none.
    #[doc(alias = "bdrv_snapshot_list")]
    pub async fn snapshots(&self, req: &Req) -> Result<Vec<Snapshot>, SnapshotFailure> {
        self.0.read_snapshots(req).await
    }

    /// Take a snapshot. `req` is a token on the node, beside which nothing is in flight.
    ///
    /// # Errors
    /// [`SnapshotFailure`]; the image is then as it was, but for clusters that may be lost until it is checked.
    #[doc(alias = "bdrv_snapshot_create")]
    pub async fn create_snapshot(&self, req: &Req, new: NewSnapshot) -> Result<(), SnapshotFailure> {
        self.0.create_snapshot(req, new).await
    }

    /// Let the disk be as it was when the snapshot with this id, or else name, was taken, and as long. `req` is as for
    /// [`Qcow2Control::create_snapshot`]; the node's length has to be refreshed after it.
    ///
    /// # Errors
    /// As [`Qcow2Control::create_snapshot`].
    #[doc(alias = "bdrv_snapshot_goto")]
    pub async fn apply_snapshot(&self, req: &Req, id_or_name: &[u8]) -> Result<(), SnapshotFailure> {
        self.0.apply_snapshot(req, id_or_name).await
    }

    /// Delete the snapshot with this id, or else name. `req` is as for [`Qcow2Control::create_snapshot`].
    ///
    /// # Errors
    /// As [`Qcow2Control::create_snapshot`].
    #[doc(alias = "bdrv_snapshot_delete")]
    pub async fn delete_snapshot(&self, req: &Req, id_or_name: &[u8]) -> Result<(), SnapshotFailure> {
        self.0.delete_snapshot(req, id_or_name).await
    }
}

/// The place of the snapshot with this id, or else with this name.
fn find(snapshots: &[Snapshot], id_or_name: &[u8]) -> Result<usize, SnapshotFailure> {
    let by_id = snapshots.iter().position(|snapshot| snapshot.id == id_or_name);
    let found = by_id.or_else(|| snapshots.iter().position(|snapshot| snapshot.name == id_or_name));
    found.ok_or(SnapshotFailure::NotFound)
}

/// An id that no snapshot has: the number after the highest.
fn next_id(snapshots: &[Snapshot]) -> Vec<u8> {
    let number = |snapshot: &Snapshot| std::str::from_utf8(&snapshot.id).ok()?.parse::<u64>().ok();
    let last = snapshots.iter().filter_map(number).max().unwrap_or(0);
    last.saturating_add(1).to_string().into_bytes()
}

impl Shared {
    pub(crate) async fn read_snapshots(&self, req: &Req) -> Result<Vec<Snapshot>, SnapshotFailure> {
        let (count, offset) = {
            let header = self.header();
            (header.snapshots, header.snapshots_offset)
        };
        if count == 0 {
            return Ok(Vec::new());
        }
        let there = self.file.length(req)?.saturating_sub(offset).min(Snapshot::TABLE_MAX);
        // Most tables are short.
        let mut len = there.min(u64::from(count) * 256);
        loop {
            let bytes = meta::read(req, &self.file, offset, len as usize).await?;
            match Snapshot::parse_table(&bytes, count) {
                Ok((snapshots, _)) => return Ok(snapshots),
                Err(_) if len < there => len = (len * 4).min(there),
                Err(_) => return Err(SnapshotFailure::Table),
            }
        }
    }

    /// Have everything on the disk and nothing in memory.
    async fn settle(&self, req: &Req) -> IoResult<()> {
        self.claim(req).await?;
        self.flush(req).await?;
        self.free_ripe(req, true).await?;
        self.store_counts(req).await?;
        self.cache.clear();
        Ok(())
    }

    /// Have the counts on the disk. A COPIED flag goes there only after the count that it stands for: who finds it may rely on it.
    async fn store_counts(&self, req: &Req) -> IoResult<()> {
        self.write_counts(req).await?;
        self.file.flush(req).await
    }

    async fn create_snapshot(&self, req: &Req, new: NewSnapshot) -> Result<(), SnapshotFailure> {
        if self.data.is_some() {
            return Err(IoError::UNSUPPORTED.into());
        }
        let mut snapshots = self.read_snapshots(req).await?;
        if snapshots.len() >= 65536 {
            return Err(SnapshotFailure::TooMany);
        }
        if new.name.len() > TEXT_MAX {
            return Err(SnapshotFailure::Name);
        }
        self.settle(req).await?;
        let l1 = self.l1_now();
        self.check_room(req, &l1).await?;
        // Whoever writes to the disk from now on writes elsewhere, whatever becomes of the rest.
        let l1: Vec<u64> = l1.into_iter().map(|entry| L1Entry::from_raw(entry).table().unwrap_or(0)).collect();
        self.count_all(req, &l1, true).await?;
        self.mark_copied(req).await?;
        let place = self.new_table(req, &meta::table_bytes(l1.iter().copied())).await?;
        snapshots.push(Snapshot {
            l1_offset: place,
            l1_size: l1.len() as u32,
            id: next_id(&snapshots),
            name: new.name,
            date_seconds: new.date.0,
            date_nanoseconds: new.date.1,
            vm_state_size: new.vm_state_size,
            vm_clock_nanoseconds: new.vm_clock_nanoseconds,
            disk_size: Some(self.length()),
            icount: new.icount,
            ..Snapshot::default()
        });
        self.list(req, &snapshots).await?;
        self.settle(req).await?;
        if new.vm_state_size == 0 {
            return Ok(());
        }
        self.clear_vmstate(req, new.vm_state_size).await?;
        Ok(self.settle(req).await?)
    }

    async fn delete_snapshot(&self, req: &Req, id_or_name: &[u8]) -> Result<(), SnapshotFailure> {
        let mut snapshots = self.read_snapshots(req).await?;
        let gone = snapshots.remove(find(&snapshots, id_or_name)?);
        self.settle(req).await?;
        let l1 = self.l1_of(req, &gone).await?;
        // Nobody names it any more before its clusters are free.
        self.list(req, &snapshots).await?;
        self.count_all(req, &l1, false).await?;
        self.free_table(req, gone.l1_offset, u64::from(gone.l1_size) * 8);
        self.store_counts(req).await?;
        self.mark_copied(req).await?;
        Ok(self.settle(req).await?)
    }

    async fn apply_snapshot(&self, req: &Req, id_or_name: &[u8]) -> Result<(), SnapshotFailure> {
        if !self.bitmaps().is_empty() {
            return Err(SnapshotFailure::Bitmaps);
        }
        let snapshots = self.read_snapshots(req).await?;
        let snapshot = &snapshots[find(&snapshots, id_or_name)?];
        let size = snapshot.disk_size.unwrap_or_else(|| self.length());
        let entries = self.geometry.l1_entries_for(size);
        if size > self.geometry.size_max() {
            return Err(SnapshotFailure::Table);
        }
        self.settle(req).await?;
        let old = self.l1_now();
        let (old_offset, old_size) = {
            let header = self.header();
            (header.l1_offset, header.l1_size)
        };
        let mut l1 = self.l1_of(req, snapshot).await?;
        self.check_room(req, &l1).await?;
        self.count_all(req, &l1, true).await?;
        l1.resize(l1.len().max(entries as usize), 0);
        let place = self.new_table(req, &meta::table_bytes(l1.iter().copied())).await?;
        self.store_counts(req).await?;
        self.change_header(req, |header| {
            header.l1_offset = place;
            header.l1_size = l1.len() as u32;
            header.size = size;
        })
        .await?;
        self.file.flush(req).await?;
        self.take_l1(&l1);
        self.set_length(size);
        self.count_all(req, &old, false).await?;
        self.free_table(req, old_offset, u64::from(old_size) * 8);
        self.store_counts(req).await?;
        self.mark_copied(req).await?;
        Ok(self.settle(req).await?)
    }

    async fn load_snapshot(&self, req: &Req, key: &SnapshotKey) -> Result<(), SnapshotFailure> {
        if self.writable().is_ok() {
            return Err(IoError::NOT_PERMITTED.into());
        }
        let snapshots = self.read_snapshots(req).await?;
        let snapshot = key.find(&snapshots)?;
        let size = snapshot.disk_size.unwrap_or_else(|| self.length());
        if size > self.geometry.size_max() {
            return Err(SnapshotFailure::Table);
        }
        let l1 = self.l1_of(req, snapshot).await?;
        self.shows_snapshot.store(true, Ordering::Relaxed);
        self.take_l1(&l1);
        self.set_length(size);
        Ok(())
    }

    /// The active L1 table's entries.
    fn l1_now(&self) -> Vec<u64> {
        self.l1.load().iter().map(|entry| entry.load(Ordering::SeqCst)).collect()
    }

    /// The tables that a snapshot's L1 table names.
    async fn l1_of(&self, req: &Req, snapshot: &Snapshot) -> Result<Vec<u64>, SnapshotFailure> {
        let bytes = u64::from(snapshot.l1_size) * 8;
        if bytes > Geometry::L1_BYTES_MAX || !self.geometry.is_aligned(snapshot.l1_offset) {
            return Err(SnapshotFailure::Table);
        }
        let l1 = meta::read_table(req, &self.file, snapshot.l1_offset, snapshot.l1_size as usize).await?;
        Ok(l1.into_iter().map(|entry| L1Entry::from_raw(entry).table().unwrap_or(0)).collect())
    }

    /// A place for a table with this content, written.
    async fn new_table(&self, req: &Req, bytes: &[u8]) -> IoResult<u64> {
        let clusters = self.geometry.clusters_for((bytes.len() as u64).max(1));
        let place = self.allocate_all(req, clusters).await?;
        meta::write(req, &self.file, place, bytes).await?;
        Ok(place)
    }

    fn free_table(&self, req: &Req, offset: u64, bytes: u64) {
        if bytes > 0 && offset > 0 {
            self.retire(req, offset, self.geometry.clusters_for(bytes), Class::Snapshot);
        }
    }

    /// Let the header name a table of these snapshots. Everything that they name is on the disk before it does.
    async fn list(&self, req: &Req, snapshots: &[Snapshot]) -> Result<(), SnapshotFailure> {
        let (old, old_count) = {
            let header = self.header();
            (header.snapshots_offset, header.snapshots)
        };
        let old_len: u64 = self.read_snapshots(req).await?.iter().map(snapshot_len).sum();
        let bytes: Vec<u8> = snapshots.iter().flat_map(Snapshot::to_bytes).collect();
        if bytes.len() as u64 > Snapshot::TABLE_MAX {
            return Err(SnapshotFailure::TooMany);
        }
        let place = if snapshots.is_empty() { 0 } else { self.new_table(req, &bytes).await? };
        self.store_counts(req).await?;
        self.change_header(req, |header| {
            header.snapshots = snapshots.len() as u32;
            header.snapshots_offset = place;
        })
        .await?;
        self.file.flush(req).await?;
        if old_count > 0 {
            self.free_table(req, old, old_len);
        }
        self.find_inactive(req).await
    }

    /// Whether every cluster that these tables name can be counted again as often as they name it.
    async fn check_room(&self, req: &Req, l1: &[u64]) -> IoResult<()> {
        let max = self.header().refcount_bits.max();
        let mut counts = self.refcounts.lock().await;
        // Compressed data shares clusters: how often those were named that cannot be counted twice as often as they are.
        let mut named: BTreeMap<u64, u64> = BTreeMap::new();
        for table in l1.iter().filter_map(|entry| L1Entry::from_raw(*entry).table()) {
            let clusters = self.clusters_below(req, table).await?;
            for cluster in clusters {
                let count = self.count_of(req, &mut counts, cluster).await?;
                // Nothing is named more often than it is counted.
                if count > max / 2 {
                    let times = named.entry(cluster).or_default();
                    *times += 1;
                    if *times > max - count {
                        return Err(IoError::INVALID);
                    }
                }
            }
        }
        Ok(())
    }

    /// Count every cluster that these tables name once more, or once less.
    async fn count_all(&self, req: &Req, l1: &[u64], more: bool) -> IoResult<()> {
        let mut counts = self.refcounts.lock().await;
        for table in l1.iter().filter_map(|entry| L1Entry::from_raw(*entry).table()) {
            let mut freed = Vec::new();
            for cluster in self.clusters_below(req, table).await? {
                if more {
                    self.raise(req, &mut counts, cluster).await?;
                    continue;
                }
                self.lower(req, &mut counts, cluster << self.geometry.cluster_bits(), 1).await?;
                if self.count_of(req, &mut counts, cluster).await? == 0 {
                    freed.push(cluster);
                }
            }
            // The header on the disk leads to none of them, and nobody is given one while the counts are held.
            if self.passes_discards(Class::Snapshot) {
                self.discard_clusters(req, freed).await;
            }
        }
        Ok(())
    }

    /// Let the active L1 table name nothing, and free what it named; what lies at the end of the file is cut off. Nothing is in flight. A power cut leaves some
    /// tables and leaks others.
    pub(crate) async fn drop_tables(&self, req: &Req) -> IoResult<()> {
        self.settle(req).await?;
        let (old, size) = (self.l1_now(), self.geometry.cluster_size());
        let (offset, bytes) = (self.header().l1_offset, vec![0; old.len() * 8]);
        if old.iter().all(|entry| *entry == 0) {
            return Ok(());
        }
        self.guard(req, offset, bytes.len() as u64, MetadataKind::ActiveL1).await?;
        meta::write(req, &self.file, offset, &bytes).await?;
        self.file.flush(req).await?;
        self.take_l1(&vec![0; old.len()]);
        let mut counts = self.refcounts.lock().await;
        let mut freed = BTreeSet::new();
        for table in old.iter().filter_map(|entry| L1Entry::from_raw(*entry).table()) {
            for cluster in self.clusters_below(req, table).await? {
                self.lower(req, &mut counts, cluster * size, 1).await?;
                if self.count_of(req, &mut counts, cluster).await? == 0 {
                    freed.insert(cluster);
                }
            }
        }
        // The tables on the disk lead to none of them, and nobody is given one while the counts are held.
        let there = self.file.refresh_length(req).await?;
        let mut end = there.div_ceil(size);
        while freed.last().is_some_and(|last| last + 1 == end) {
            freed.pop_last();
            end -= 1;
        }
        if end < there.div_ceil(size) && self.file.truncate(req, end * size, Preallocation::Off).await.is_ok() {
            counts.is_cut(end * size);
        }
        if self.passes_discards(Class::Snapshot) {
            self.discard_clusters(req, freed.into_iter().collect()).await;
        }
        drop(counts);
        self.store_counts(req).await
    }

    /// A table's cluster, and those that its entries name; one that several compressed clusters share as often as they do.
    async fn clusters_below(&self, req: &Req, table: u64) -> IoResult<Vec<u64>> {
        if !self.geometry.is_aligned(table) {
            return Err(self.corrupt(req, format!("L2 table offset {table:#x} unaligned")).await);
        }
        let mut clusters = vec![self.geometry.cluster(table)];
        for entry in self.table_words(req, table).await?.into_iter().map(L2Entry::from_raw) {
            match self.kind(entry) {
                L2Kind::Data(host) | L2Kind::ZeroAllocated(host) => {
                    if !self.geometry.is_aligned(host) {
                        return Err(self.bad_entry(req, 0, entry).await);
                    }
                    clusters.push(self.geometry.cluster(host));
                }
                L2Kind::Compressed(at, len) => {
                    clusters.extend(self.geometry.cluster(at)..=self.geometry.cluster(at + len - 1));
                }
                L2Kind::Unallocated | L2Kind::Zero => {}
            }
        }
        Ok(clusters)
    }

    /// The entries of a table, without their bits of subclusters.
    async fn table_words(&self, req: &Req, table: u64) -> IoResult<Vec<u64>> {
        let words = meta::read_table(req, &self.file, table, (self.geometry.cluster_size() / 8) as usize).await?;
        let each = (self.geometry.l2_entry_size() / 8) as usize;
        Ok(words.into_iter().step_by(each).collect())
    }

    /// Let each entry of the active tables say whether it is its cluster's only user.
    async fn mark_copied(&self, req: &Req) -> IoResult<()> {
        let mut counts = self.refcounts.lock().await;
        let mut l1 = self.l1_now();
        let entry_size = self.geometry.l2_entry_size();
        for l1_entry in &mut l1 {
            let Some(table) = L1Entry::from_raw(*l1_entry).table() else { continue };
            let is_own = self.count_of(req, &mut counts, self.geometry.cluster(table)).await? == 1;
            *l1_entry = L1Entry::new(table, is_own).raw();
            let words = meta::read_table(req, &self.file, table, (self.geometry.cluster_size() / 8) as usize).await?;
            let (mut now, each) = (words.clone(), (entry_size / 8) as usize);
            for word in now.iter_mut().step_by(each) {
                let entry = L2Entry::from_raw(*word);
                if let L2Kind::Data(host) | L2Kind::ZeroAllocated(host) = self.kind(entry) {
                    let is_own = self.count_of(req, &mut counts, self.geometry.cluster(host)).await? == 1;
                    *word = entry.with_copied(is_own).raw();
                }
            }
            // A table that others have, too, says the same to them: of what they share nobody is the only user.
            if now != words {
                let own = OverlapChecks::NONE.with(MetadataKind::ActiveL2, true).with(MetadataKind::InactiveL2, true);
                self.guard(req, table, self.geometry.cluster_size(), own).await?;
                meta::write(req, &self.file, table, &meta::table_bytes(now)).await?;
            }
        }
        let offset = self.header().l1_offset;
        if l1 != self.l1_now() {
            self.guard(req, offset, l1.len() as u64 * 8, MetadataKind::ActiveL1).await?;
            meta::write(req, &self.file, offset, &meta::table_bytes(l1.iter().copied())).await?;
        }
        self.file.flush(req).await?;
        drop(counts);
        self.take_l1(&l1);
        Ok(())
    }

    /// These are the active L1 table's entries from now on.
    fn take_l1(&self, l1: &[u64]) {
        self.replace_l1(l1.to_vec());
        self.cache.clear();
    }

    /// Whether the disk may get another length while there are snapshots: version 2 does not keep theirs.
    pub(crate) fn may_resize(&self) -> bool {
        self.version >= Version::V3 || self.header().snapshots == 0
    }
}

fn snapshot_len(snapshot: &Snapshot) -> u64 {
    snapshot.to_bytes().len() as u64
}
