//! What a point in time consists of by now: which clusters are still where they were, which were copied, who is copying or reading which.
//!
//! Plain bookkeeping: nothing here does I/O. Whoever is at work on clusters has a place here, and goes with it when it is dropped. Bits are changed under one short
//! lock; they may be looked at without it.

use block_common::{Errno, GuestRange, IoError, IoErrorKind, IoResult};
use block_io::DirtyBitmap;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What is not kept, or not any more, cannot be read.
const NOT_KEPT: IoError = IoError::new(Errno::EACCES, IoErrorKind::Gone);
/// One copy is of at most so many bytes, or of one cluster.
const COPY_MAX: u64 = 1 << 20;

/// A point in time, in clusters. The same value serves guest writes, who copy before they write, and readers of the point in time.
///
/// A cluster that is kept is in one of three states: *to be copied* (nobody has changed it in the source), *being copied* (the same, and
/// somebody has a place), *copied* (read it from the target). It only goes forward. One that is not kept is none of them.
pub struct CbwState {
    length: u64,
    /// Clusters that must be copied before they change.
    to_copy: DirtyBitmap,
    /// Clusters that can be read.
    kept: DirtyBitmap,
    /// Clusters that are in the target.
    copied: DirtyBitmap,
    /// How many reads of the source are under way.
    source_reads: AtomicUsize,
    places: Mutex<Places>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    copies: BTreeMap<u64, Range<u64>>,
    reads: BTreeMap<u64, Reading>,
    /// Why nothing can be read any more.
    broken: Option<IoError>,
}

#[derive(Debug)]
struct Reading {
    clusters: Range<u64>,
    of_source: bool,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

impl Places {
    fn ticket(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn is_copying(&self, clusters: &Range<u64>) -> bool {
        self.copies.values().any(|other| overlap(other, clusters))
    }
}

impl CbwState {
    /// The point in time of `length` bytes in clusters of `cluster` bytes; of those, what is dirty in `wanted`, or all. `None` when there is no memory for its bits, or
    /// more than 2^32 clusters.
    ///
    /// # Panics
    /// When `cluster` is not a power of two.
    pub fn new(length: u64, cluster: u64, wanted: Option<&DirtyBitmap>) -> Option<Self> {
        let to_copy = DirtyBitmap::try_new(length, cluster)?;
        let kept = DirtyBitmap::try_new(length, cluster)?;
        match wanted {
            Some(wanted) => to_copy.merge(wanted),
            None => to_copy.set_all(),
        }
        kept.merge(&to_copy);
        Some(Self {
            length,
            to_copy,
            kept,
            copied: DirtyBitmap::try_new(length, cluster)?,
            source_reads: AtomicUsize::new(0),
            places: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// How many bytes the disk had at the point in time.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The size of a cluster in bytes: a power of two.
    pub fn cluster_size(&self) -> u64 {
        self.to_copy.granularity()
    }

    /// How many bytes have not been copied, in whole clusters, as of no particular moment.
    pub fn bytes_to_copy(&self) -> u64 {
        self.to_copy.dirty_bytes()
    }

    /// How many bytes are in the target, in whole clusters, as of no particular moment.
    pub fn bytes_copied(&self) -> u64 {
        self.copied.dirty_bytes()
    }

    /// Why the point in time is lost, if it is.
    pub fn broken(&self) -> Option<IoError> {
        self.places().broken
    }

    /// Give the point in time up: what was to be copied need not be, and whoever reads gets an error.
    pub fn break_off(&self, why: IoError) {
        let mut places = self.places();
        places.broken.get_or_insert(why);
        self.to_copy.clear_all();
        drop(places);
        self.changed.notify_waiters();
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The clusters that a range touches, as far as there were any.
    pub(crate) fn clusters(&self, range: GuestRange) -> Range<u64> {
        let size = self.cluster_size();
        let end = range.end().min(self.length).div_ceil(size);
        (range.offset().0 / size).min(end)..if range.is_empty() { 0 } else { end }
    }

    /// The clusters that lie within a range; the last one may end with the disk.
    fn whole_clusters(&self, range: GuestRange) -> Range<u64> {
        let size = self.cluster_size();
        let end = if range.end() >= self.length { self.to_copy.chunks() } else { range.end() / size };
        range.offset().0.div_ceil(size).min(end)..end
    }

    /// The bytes of clusters.
    pub(crate) fn bytes(&self, clusters: &Range<u64>) -> Range<u64> {
        self.to_copy.bytes(clusters)
    }

    /// Whether a range may be changed at once: nothing of it has to be copied, and no reader of the source would see it change. Never waits.
    ///
    /// A read of the source that is under way began before the last cluster of the range was copied or given up, so it is counted by then.
    #[inline]
    pub(crate) fn may_change(&self, range: GuestRange) -> bool {
        let mut clusters = self.clusters(range);
        !clusters.any(|cluster| self.to_copy.is_dirty(cluster)) && self.source_reads.load(Ordering::Acquire) == 0
    }

    /// A place for copying the first of `clusters` that have to be, and neighbours of theirs. Waits for those that others are copying; `None` when nothing is left.
    pub(crate) async fn next_copy(&self, clusters: &Range<u64>) -> Option<Copying<'_>> {
        loop {
            let changed = self.changed.notified();
            {
                let mut places = self.places();
                if places.broken.is_some() {
                    return None;
                }
                if let Some(run) = self.run_to_copy(&places, clusters) {
                    let ticket = places.ticket();
                    places.copies.insert(ticket, run.clone());
                    return Some(Copying { state: self, ticket, clusters: run });
                }
                if !places.is_copying(clusters) {
                    return None;
                }
            }
            changed.await;
        }
    }

    fn run_to_copy(&self, places: &Places, clusters: &Range<u64>) -> Option<Range<u64>> {
        let is_free = |cluster: u64| !places.is_copying(&(cluster..cluster + 1));
        let start = self.to_copy.next_dirty(clusters.start, |cluster| cluster >= clusters.end || is_free(cluster))?;
        let most = (COPY_MAX >> self.cluster_size().trailing_zeros()).max(1);
        let end = clusters.end.min(start.saturating_add(most));
        if start >= end {
            return None;
        }
        let more = (start + 1..end).take_while(|cluster| self.to_copy.is_dirty(*cluster) && is_free(*cluster));
        Some(start..start + 1 + more.count() as u64)
    }

    /// Wait for the reads of the source that touch `clusters` (rule job-3). None begins there any more when this is called.
    pub(crate) async fn source_reads_over(&self, clusters: &Range<u64>) {
        self.reads_over(|reading| reading.of_source && overlap(&reading.clusters, clusters)).await;
    }

    async fn reads_over(&self, in_the_way: impl Fn(&Reading) -> bool) {
        loop {
            let changed = self.changed.notified();
            if !self.places().reads.values().any(&in_the_way) {
                return;
            }
            changed.await;
        }
    }

    /// A place for reading the start of a range, which is neither copied nor given up while it is held, and where from.
    ///
    /// # Errors
    /// The range does not lie within the disk as it was; it is not kept; or nothing is any more.
    pub(crate) fn read(&self, range: GuestRange) -> IoResult<ReadPlace<'_>> {
        if range.end() > self.length {
            return Err(IoError::OUT_OF_BOUNDS);
        }
        let clusters = self.clusters(range);
        let mut places = self.places();
        if places.broken.is_some() || clusters.clone().any(|cluster| !self.kept.is_dirty(cluster)) {
            return Err(NOT_KEPT);
        }
        let of_source = !self.copied.is_dirty(clusters.start);
        let same = clusters.clone().take_while(|cluster| self.copied.is_dirty(*cluster) != of_source).count() as u64;
        let clusters = clusters.start..clusters.start + same;
        let len = self.bytes(&clusters).end.min(range.end()).saturating_sub(range.offset().0);
        let ticket = places.ticket();
        places.reads.insert(ticket, Reading { clusters, of_source });
        if of_source {
            self.source_reads.fetch_add(1, Ordering::AcqRel);
        }
        Ok(ReadPlace { state: self, ticket, of_source, len })
    }

    /// Forget what lies within a range, when nobody copies it, and wait for its readers. Returns the clusters.
    pub(crate) async fn forget(&self, range: GuestRange) -> Range<u64> {
        let clusters = self.whole_clusters(range);
        loop {
            let changed = self.changed.notified();
            {
                let places = self.places();
                if !places.is_copying(&clusters) {
                    for cluster in clusters.clone() {
                        self.kept.clear(cluster);
                        self.to_copy.clear(cluster);
                        self.copied.clear(cluster);
                    }
                    break;
                }
            }
            changed.await;
        }
        self.reads_over(|reading| overlap(&reading.clusters, &clusters)).await;
        clusters
    }
}

impl fmt::Debug for CbwState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (size, places) = (self.cluster_size(), self.places());
        write!(f, "CbwState(clusters of {size}, to copy {:?}, copied {:?}, {places:?})", self.to_copy, self.copied)
    }
}

/// Clusters that one request copies. Dropped without [`Copying::done`], they are still to be copied.
#[derive(Debug)]
pub(crate) struct Copying<'a> {
    state: &'a CbwState,
    ticket: u64,
    clusters: Range<u64>,
}

impl Copying<'_> {
    pub(crate) fn clusters(&self) -> &Range<u64> {
        &self.clusters
    }

    /// They are in the target.
    pub(crate) fn done(self) {
        let places = self.state.places();
        if places.broken.is_none() {
            self.state.copied.set_chunks(self.clusters.clone());
            for cluster in self.clusters.clone() {
                self.state.to_copy.clear(cluster);
            }
        }
        drop(places);
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.state.places().copies.remove(&self.ticket);
        self.state.changed.notify_waiters();
    }
}

/// Clusters that one request reads.
#[derive(Debug)]
pub(crate) struct ReadPlace<'a> {
    state: &'a CbwState,
    ticket: u64,
    /// Whether the source has them, or else the target.
    pub(crate) of_source: bool,
    /// How many bytes.
    pub(crate) len: u64,
}

impl Drop for ReadPlace<'_> {
    fn drop(&mut self) {
        self.state.places().reads.remove(&self.ticket);
        if self.of_source {
            self.state.source_reads.fetch_sub(1, Ordering::AcqRel);
        }
        self.state.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    fn now<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    fn range(start: u64, end: u64) -> GuestRange {
        GuestRange::new(start, end - start).expect("a range")
    }

    fn state(wanted: Option<&DirtyBitmap>) -> CbwState {
        CbwState::new(1000, 64, wanted).expect("it is small")
    }

    #[test]
    fn a_cluster_is_copied_once_and_by_one() {
        let state = state(None);
        assert_eq!(state.clusters(range(63, 130)), 0..3);
        assert_eq!(state.clusters(range(990, 5000)), 15..16);
        assert!(state.clusters(range(1024, 5000)).is_empty() && state.clusters(range(5, 5)).is_empty());
        let first = now(state.next_copy(&(1..3))).flatten().expect("there is something to copy");
        assert_eq!(*first.clusters(), 1..3);
        let other = now(state.next_copy(&(0..4))).flatten().expect("what nobody copies");
        assert_eq!(*other.clusters(), 0..1);
        assert!(now(state.next_copy(&(1..2))).is_none(), "it waits");
        first.done();
        assert!(now(state.next_copy(&(1..3))).expect("done").is_none());
        drop(other);
        assert!(now(state.next_copy(&(0..1))).flatten().is_some(), "it was not done");
        assert!(state.may_change(range(64, 192)) && !state.may_change(range(64, 193)));
        assert_eq!((state.bytes_copied(), state.bytes_to_copy()), (128, 14 * 64));
    }

    #[test]
    fn job_3_a_reader_of_the_source_is_waited_for() {
        let state = state(None);
        let reading = state.read(range(10, 70)).expect("it is kept");
        assert!(reading.of_source && reading.len == 60);
        now(state.next_copy(&(0..2))).flatten().expect("both").done();
        assert!(!state.may_change(range(0, 10)));
        assert!(now(state.source_reads_over(&(1..2))).is_none());
        assert!(now(state.source_reads_over(&(2..3))).is_some());
        drop(reading);
        assert!(state.may_change(range(0, 10)) && now(state.source_reads_over(&(1..2))).is_some());
        // Copied and not: one after the other.
        let reading = state.read(range(10, 1000)).expect("it is kept");
        assert!(!reading.of_source && reading.len == 118);
        assert!(now(state.source_reads_over(&(0..16))).is_some(), "the target is not changed");
    }

    #[test]
    fn what_is_forgotten_or_was_never_wanted_is_not_kept() {
        let wanted = DirtyBitmap::new(1000, 128);
        wanted.set(range(128, 129));
        let state = state(Some(&wanted));
        assert_eq!(state.bytes_to_copy(), 128);
        assert!(state.read(range(128, 256)).is_ok());
        assert_eq!(state.read(range(127, 256)).err(), Some(NOT_KEPT));
        assert_eq!(state.read(range(900, 1001)).err(), Some(IoError::OUT_OF_BOUNDS));
        let reading = state.read(range(200, 201)).expect("it is kept");
        assert!(now(state.forget(range(128, 256))).is_none(), "somebody reads");
        assert_eq!(state.read(range(200, 201)).err(), Some(NOT_KEPT));
        drop(reading);
        assert_eq!(now(state.forget(range(129, 1000))), Some(3..16));
        assert!(now(state.next_copy(&(0..16))).expect("done").is_none());
    }

    #[test]
    fn a_point_in_time_that_is_lost_holds_nobody_up() {
        let state = state(None);
        let copying = now(state.next_copy(&(0..1))).flatten().expect("there is something to copy");
        state.break_off(IoError::host(28));
        assert!(state.may_change(range(0, 1000)) && now(state.next_copy(&(0..1))).expect("done").is_none());
        copying.done();
        assert_eq!(state.read(range(0, 1)).err(), Some(NOT_KEPT));
        assert_eq!((state.broken(), state.bytes_copied()), (Some(IoError::host(28)), 0));
    }
}
