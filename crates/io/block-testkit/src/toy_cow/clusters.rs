//! The table in memory, and who may have which cluster of the file.
//!
//! Entries are read without a lock and changed under their cluster's lock. What is free, retired and changed stands
//! behind one short mutex. Nothing here does I/O or waits.

use super::disk::{BLOCK_ENTRIES, Geometry};
use block_io::{Access, Req};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A table entry: where a cluster lies in the file, and how it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry(u64);

/// The entry is in a place of its own on disk as well: the rest is state of this process.
const ON_DISK: u64 = !(MOVING | NEW);
const ZERO: u64 = 1;
/// The cluster is about to move: writes need its lock.
const MOVING: u64 = 2;
/// The entry is not on stable storage.
const NEW: u64 = 4;
/// Clusters are multiples of 512 bytes.
const FLAGS: u64 = 511;

impl Entry {
    /// Reads as zeroes, whatever the backing child has.
    pub(super) const ZERO: Self = Self(ZERO);

    pub(super) const fn data(host: u64) -> Self {
        Self(host)
    }

    pub(super) const fn from_disk(raw: u64) -> Self {
        Self(raw)
    }

    pub(super) const fn host(self) -> Option<u64> {
        match self.0 & !FLAGS {
            0 => None,
            host => Some(host),
        }
    }

    pub(super) const fn is_zero(self) -> bool {
        self.0 & ZERO != 0
    }

    pub(super) const fn is_moving(self) -> bool {
        self.0 & MOVING != 0
    }

    /// Whether a write may overwrite the cluster in place without further ado.
    pub(super) const fn takes(self, access: Access) -> bool {
        match access {
            Access::Read => true,
            Access::Write => self.host().is_some() && self.0 & MOVING == 0,
            Access::WriteFua => self.host().is_some() && self.0 & (MOVING | NEW) == 0,
        }
    }

    /// The entry that would follow this one in a run.
    pub(super) const fn next(self, size: u64) -> Self {
        if self.host().is_some() { Self(self.0 + size) } else { self }
    }

    /// Whether this entry says what `expected` says, however it stands.
    pub(super) const fn continues(self, expected: Self) -> bool {
        self.0 & ON_DISK == expected.0 & ON_DISK
    }
}

/// A cluster that was freed, and from when on it may be used again.
struct Retired {
    host: u64,
    epoch: u64,
    /// The flush that stores a table without it is a later one than this.
    flush: u64,
}

#[derive(Default)]
struct State {
    free: Vec<u64>,
    retired: VecDeque<Retired>,
    /// Where the file's last cluster ends.
    end: u64,
    /// Flushes that began, and of those the last one that succeeded.
    flush: u64,
    flushed: u64,
    /// Blocks of the table that were changed since they were written.
    changed: BTreeSet<u64>,
    length_changed: bool,
    /// Clusters that are marked as moving, with the epoch of the mark.
    moving: HashMap<u64, u64>,
}

/// Changes that a flush takes to disk.
pub(super) struct Changes {
    flush: u64,
    /// Blocks of the table as they were when the flush began, with their numbers.
    pub(super) blocks: Vec<(u64, Vec<u8>)>,
    /// The image's length, if that changed.
    pub(super) length: Option<u64>,
}

pub(super) struct Clusters {
    geometry: Geometry,
    table: Box<[AtomicU64]>,
    state: Mutex<State>,
    reused: AtomicU64,
    ignore_epochs: AtomicBool,
}

/// What the table does not name is free: places between clusters in use, and where the last of those ends. A file may
/// claim any length and its gaps any size, so no more places are listed than the table could use.
fn gaps(geometry: &Geometry, table: &[Entry]) -> (Vec<u64>, u64) {
    let size = geometry.cluster_size();
    let mut used: Vec<u64> = table.iter().filter_map(|entry| entry.host()).collect();
    used.sort_unstable();
    let mut free = Vec::new();
    let mut end = geometry.data_start();
    for host in used {
        let room = table.len().saturating_sub(free.len());
        free.extend((end..host).step_by(size as usize).take(room));
        end = host + size;
    }
    free.reverse();
    (free, end)
}

impl Clusters {
    /// The clusters of an image with this table.
    pub(super) fn new(geometry: Geometry, table: Vec<Entry>) -> Self {
        let (free, end) = gaps(&geometry, &table);
        let state = State { free, end, ..State::default() };
        Self {
            geometry,
            table: table.into_iter().map(|entry| AtomicU64::new(entry.0)).collect(),
            state: Mutex::new(state),
            reused: AtomicU64::new(0),
            ignore_epochs: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entry at `index`. Sequentially consistent, as are changes: a request that pinned the node after a cluster
    /// was retired must not find it here any more.
    #[inline]
    pub(super) fn get(&self, index: u64) -> Option<Entry> {
        self.table.get(usize::try_from(index).ok()?).map(|entry| Entry(entry.load(Ordering::SeqCst)))
    }

    /// Change the entry at `index`. The caller holds the cluster's lock.
    pub(super) fn set(&self, index: u64, entry: Entry) {
        let mut state = self.state();
        self.table[index as usize].store(entry.0 | NEW, Ordering::SeqCst);
        state.changed.insert(index / BLOCK_ENTRIES);
        state.moving.remove(&index);
    }

    /// Where a new cluster may be written.
    pub(super) fn allocate(&self, req: &Req) -> u64 {
        let mut state = self.state();
        let ignore = self.ignore_epochs.load(Ordering::Relaxed);
        let flushed = state.flushed;
        // Retired in order, so if the first one cannot be had, none can.
        while state
            .retired
            .front()
            .is_some_and(|retired| retired.flush < flushed && (ignore || req.epoch_passed(retired.epoch)))
        {
            let host = state.retired.pop_front().map(|retired| retired.host);
            state.free.extend(host);
        }
        if let Some(host) = state.free.pop() {
            self.reused.fetch_add(1, Ordering::Relaxed);
            return host;
        }
        let host = state.end;
        state.end += self.geometry.cluster_size();
        host
    }

    /// A cluster was allocated for nothing: no entry ever named it.
    pub(super) fn give_back(&self, host: u64) {
        self.state().free.push(host);
    }

    /// No entry names this cluster any more, but requests from before may be under way to it.
    pub(super) fn retire(&self, req: &Req, host: u64) {
        let epoch = req.epoch();
        let mut state = self.state();
        let flush = state.flush;
        state.retired.push_back(Retired { host, epoch, flush });
    }

    /// Whether the data of the cluster may be copied: it was marked, and every write from before is over. The first
    /// question marks it. The caller holds the cluster's lock.
    pub(super) fn may_move(&self, req: &Req, index: u64) -> bool {
        let marked = self.state().moving.get(&index).copied();
        let epoch = marked.unwrap_or_else(|| {
            self.table[index as usize].fetch_or(MOVING, Ordering::SeqCst);
            let epoch = req.epoch();
            self.state().moving.insert(index, epoch);
            epoch
        });
        req.epoch_passed(epoch) || self.ignore_epochs.load(Ordering::Relaxed)
    }

    /// The cluster does not move after all.
    pub(super) fn stay(&self, index: u64) {
        self.state().moving.remove(&index);
        self.table[index as usize].fetch_and(!MOVING, Ordering::SeqCst);
    }

    pub(super) fn length_changed(&self) {
        self.state().length_changed = true;
    }

    pub(super) fn has_changes(&self) -> bool {
        let state = self.state();
        state.length_changed || !state.changed.is_empty()
    }

    /// Begin a flush: copy what has changed. `None` when nothing has.
    pub(super) fn take_changes(&self, length: u64) -> Option<Changes> {
        let mut state = self.state();
        if !state.length_changed && state.changed.is_empty() {
            return None;
        }
        state.flush += 1;
        let blocks = std::mem::take(&mut state.changed).into_iter().map(|block| (block, self.block(block))).collect();
        let length = std::mem::take(&mut state.length_changed).then_some(length);
        Some(Changes { flush: state.flush, blocks, length })
    }

    /// The bytes of a block of the table, as they are to be on disk.
    fn block(&self, block: u64) -> Vec<u8> {
        let from = (block * BLOCK_ENTRIES) as usize;
        let to = (from + BLOCK_ENTRIES as usize).min(self.table.len());
        self.table[from..to].iter().flat_map(|entry| (entry.load(Ordering::SeqCst) & ON_DISK).to_le_bytes()).collect()
    }

    /// A flush is over.
    pub(super) fn stored(&self, changes: Changes, done: bool) {
        let mut state = self.state();
        if !done {
            state.changed.extend(changes.blocks.iter().map(|(block, _)| *block));
            state.length_changed |= changes.length.is_some();
            return;
        }
        state.flushed = changes.flush;
        for (block, bytes) in &changes.blocks {
            for (i, stored) in bytes.chunks_exact(8).enumerate() {
                let stored = u64::from_le_bytes(stored.try_into().expect("eight bytes"));
                let entry = &self.table[(block * BLOCK_ENTRIES) as usize + i];
                // What was changed in the meantime stays new. A place that is on disk now cannot have been freed and
                // taken again since: that would have needed this flush.
                if entry.load(Ordering::SeqCst) & ON_DISK == stored {
                    entry.fetch_and(!NEW, Ordering::SeqCst);
                }
            }
        }
    }

    pub(super) fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }

    pub(super) fn ignore_epochs(&self, ignore: bool) {
        self.ignore_epochs.store(ignore, Ordering::Relaxed);
    }
}
