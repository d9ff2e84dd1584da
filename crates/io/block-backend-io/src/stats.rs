//! What is counted of a device's requests: how many, how long they took, in intervals and in histograms.
//!
//! A device says when a request begins and how it ends ([`BackendStats::start`]); nothing is measured behind its back, and a device that wants no
//! clock to be read says nothing. [`BackendIo::request`](crate::BackendIo::request) does it for those that use it.

use block_io::RequestKind;
use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The most boundaries that a histogram may have: more than any user looks at, and not so many that counting a request takes long.
pub const BOUNDARIES_MAX: usize = 1024;

/// The kinds of requests that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[doc(alias = "BlockAcctType")]
pub enum AcctKind {
    /// Reads.
    Read,
    /// Writes, of zeroes, too.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Unmap,
}

/// All kinds.
pub const ACCT_KINDS: [AcctKind; 4] = [AcctKind::Read, AcctKind::Write, AcctKind::Flush, AcctKind::Unmap];

impl From<RequestKind> for AcctKind {
    fn from(kind: RequestKind) -> Self {
        match kind {
            RequestKind::Read => Self::Read,
            RequestKind::Write | RequestKind::Zero => Self::Write,
            RequestKind::Discard => Self::Unmap,
            RequestKind::Flush => Self::Flush,
        }
    }
}

/// Which requests that came to nothing count for times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcctSettings {
    /// Requests that were refused: they count as an access, for [`StatsSnapshot::idle`].
    pub account_invalid: bool,
    /// Requests that failed: how long they took counts, and that there was an access.
    pub account_failed: bool,
}

impl Default for AcctSettings {
    fn default() -> Self {
        Self { account_invalid: true, account_failed: true }
    }
}

/// What was counted of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcctCount {
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Requests that succeeded.
    pub operations: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that were refused, as past the end of the medium.
    pub invalid: u64,
    /// Requests that were merged into others.
    pub merged: u64,
    /// How long all of them took.
    pub time: Duration,
}

/// Latencies of one kind within an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Latency {
    /// The shortest; zero without requests.
    pub min: Duration,
    /// The longest.
    pub max: Duration,
    /// Their mean.
    pub average: Duration,
    /// How many requests were under way on average.
    pub queue_depth: f64,
}

/// What an interval saw. Of the last requests, whose ends lie at least half of the interval back and at most all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct IntervalStats {
    /// The interval's length.
    pub length: Duration,
    /// In the order of [`ACCT_KINDS`].
    pub latency: [Latency; ACCT_KINDS.len()],
}

/// How many requests took how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    /// Where the bins meet, in nanoseconds: strictly rising.
    pub boundaries: Vec<u64>,
    /// How many requests took less than the first boundary, less than the second, …, and as long as the last one or longer.
    pub bins: Vec<u64>,
}

/// Boundaries of a histogram that do not rise, or are too many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("boundaries must rise, begin above 0, and be at most {BOUNDARIES_MAX}")]
pub struct BadBoundaries;

impl Histogram {
    fn new(boundaries: Vec<u64>) -> Result<Self, BadBoundaries> {
        let rises = boundaries.is_sorted_by(|one, other| one < other) && boundaries.first() != Some(&0);
        if !rises || boundaries.len() > BOUNDARIES_MAX {
            return Err(BadBoundaries);
        }
        let bins = vec![0; boundaries.len() + 1];
        Ok(Self { boundaries, bins })
    }

    fn add(&mut self, took: Duration) {
        let ns = nanoseconds(took);
        let bin = self.boundaries.partition_point(|boundary| *boundary <= ns);
        self.bins[bin] += 1;
    }
}

/// All that was counted, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsSnapshot {
    /// In the order of [`ACCT_KINDS`].
    pub counts: [AcctCount; ACCT_KINDS.len()],
    /// How long ago the last request ended; `None` before the first.
    pub idle: Option<Duration>,
    /// The end of the highest write so far, in bytes.
    pub wr_highest_offset: u64,
    /// What settings these were counted by.
    pub settings: AcctSettings,
    /// In the order in which they were asked for.
    pub intervals: Vec<IntervalStats>,
    /// In the order of [`ACCT_KINDS`]; `None` for kinds without one.
    pub histograms: [Option<Histogram>; ACCT_KINDS.len()],
}

impl StatsSnapshot {
    /// What was counted of `kind`.
    pub fn count(&self, kind: AcctKind) -> &AcctCount {
        &self.counts[kind as usize]
    }
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    operations: AtomicU64,
    failed: AtomicU64,
    invalid: AtomicU64,
    merged: AtomicU64,
    time_ns: AtomicU64,
}

/// What ended within some time.
#[derive(Clone, Copy, Default)]
struct Window {
    begin: Duration,
    count: u64,
    sum: Duration,
    min: Duration,
    max: Duration,
}

impl Window {
    fn add(&mut self, took: Duration) {
        self.min = if self.count == 0 { took } else { self.min.min(took) };
        self.max = self.max.max(took);
        self.sum += took;
        self.count += 1;
    }
}

/// Two windows that begin half of their length apart: the older one always covers at least half of it.
struct Interval {
    length: Duration,
    windows: [VecDeque<Window>; ACCT_KINDS.len()],
}

impl Interval {
    fn new(length: Duration) -> Self {
        Self { length, windows: Default::default() }
    }

    /// The windows of a kind at `now`, the older one first.
    fn turn(&mut self, kind: AcctKind, now: Duration) -> &mut VecDeque<Window> {
        let half = (self.length / 2).max(Duration::from_nanos(1));
        let windows = &mut self.windows[kind as usize];
        let step = |at: Duration| at.as_nanos() / half.as_nanos();
        // Where the clock's halves begin does not depend on when somebody looks.
        let current = step(now);
        windows.retain(|window| step(window.begin) + 1 >= current);
        if windows.back().is_none_or(|window| step(window.begin) != current) {
            let into = u64::try_from(now.as_nanos() % half.as_nanos()).unwrap_or(0);
            windows.push_back(Window { begin: now - Duration::from_nanos(into), ..Window::default() });
        }
        windows
    }

    fn add(&mut self, kind: AcctKind, now: Duration, took: Duration) {
        if let Some(window) = self.turn(kind, now).back_mut() {
            window.add(took);
        }
    }

    fn latency(&mut self, kind: AcctKind, now: Duration) -> Latency {
        let windows = self.turn(kind, now);
        let seen = now - windows.front().map_or(now, |window| window.begin);
        let full = windows.iter().filter(|window| window.count > 0);
        let (count, sum) = full.clone().fold((0, Duration::ZERO), |(n, sum), one| (n + one.count, sum + one.sum));
        Latency {
            min: full.clone().map(|window| window.min).min().unwrap_or_default(),
            max: full.map(|window| window.max).max().unwrap_or_default(),
            average: Duration::from_nanos(nanoseconds(sum) / u64::max(count, 1)),
            queue_depth: if seen.is_zero() { 0.0 } else { sum.as_secs_f64() / seen.as_secs_f64() },
        }
    }
}

/// What is not just added up.
#[derive(Default)]
struct Details {
    intervals: Vec<Interval>,
    histograms: [Option<Histogram>; ACCT_KINDS.len()],
}

struct Shared {
    begin: Instant,
    counters: [Counters; ACCT_KINDS.len()],
    /// Nanoseconds since `begin`, plus one.
    last_access: AtomicU64,
    highest_write: AtomicU64,
    account_invalid: AtomicBool,
    account_failed: AtomicBool,
    /// Whether `details` has anything: most backends have nothing there, and take no lock.
    is_detailed: AtomicBool,
    details: Mutex<Details>,
}

/// The statistics of a backend. Clones are the same.
#[derive(Clone)]
#[doc(alias = "BlockAcctStats")]
pub struct BackendStats(Arc<Shared>);

/// A request that was begun, to be told how it ended. One that is dropped has failed.
#[must_use = "a request that is dropped has failed"]
#[doc(alias = "BlockAcctCookie")]
pub struct Accounting {
    stats: BackendStats,
    kind: AcctKind,
    bytes: u64,
    begin: Duration,
    is_over: bool,
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Default for BackendStats {
    fn default() -> Self {
        let settings = AcctSettings::default();
        Self(Arc::new(Shared {
            begin: Instant::now(),
            counters: Default::default(),
            last_access: AtomicU64::new(0),
            highest_write: AtomicU64::new(0),
            account_invalid: AtomicBool::new(settings.account_invalid),
            account_failed: AtomicBool::new(settings.account_failed),
            is_detailed: AtomicBool::new(false),
            details: Mutex::default(),
        }))
    }
}

impl BackendStats {
    fn now(&self) -> Duration {
        self.0.begin.elapsed()
    }

    fn details(&self) -> MutexGuard<'_, Details> {
        self.0.details.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self) -> AcctSettings {
        AcctSettings {
            account_invalid: self.0.account_invalid.load(Ordering::Relaxed),
            account_failed: self.0.account_failed.load(Ordering::Relaxed),
        }
    }

    /// A request of `bytes` bytes begins.
    #[doc(alias = "block_acct_start")]
    pub fn start(&self, kind: AcctKind, bytes: u64) -> Accounting {
        self.start_at(kind, bytes, self.now())
    }

    fn start_at(&self, kind: AcctKind, bytes: u64, begin: Duration) -> Accounting {
        Accounting { stats: self.clone(), kind, bytes, begin, is_over: false }
    }

    /// A request was refused before it was one.
    #[doc(alias = "block_acct_invalid")]
    pub fn invalid(&self, kind: AcctKind) {
        self.0.counters[kind as usize].invalid.fetch_add(1, Ordering::Relaxed);
        if self.settings().account_invalid {
            self.accessed(self.now());
        }
    }

    /// `count` requests were merged into others.
    #[doc(alias = "block_acct_merge_done")]
    pub fn merged(&self, kind: AcctKind, count: u64) {
        self.0.counters[kind as usize].merged.fetch_add(count, Ordering::Relaxed);
    }

    /// Something up to `end` bytes was written.
    pub(crate) fn wrote_to(&self, end: u64) {
        self.0.highest_write.fetch_max(end, Ordering::Relaxed);
    }

    fn accessed(&self, now: Duration) {
        self.0.last_access.fetch_max(nanoseconds(now).saturating_add(1), Ordering::Relaxed);
    }

    fn end(&self, kind: AcctKind, bytes: Option<u64>, begin: Duration, now: Duration) {
        let counters = &self.0.counters[kind as usize];
        match bytes {
            Some(bytes) => {
                counters.bytes.fetch_add(bytes, Ordering::Relaxed);
                counters.operations.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                counters.failed.fetch_add(1, Ordering::Relaxed);
                if !self.0.account_failed.load(Ordering::Relaxed) {
                    return;
                }
            }
        }
        let took = now.saturating_sub(begin);
        counters.time_ns.fetch_add(nanoseconds(took), Ordering::Relaxed);
        self.accessed(now);
        if self.0.is_detailed.load(Ordering::Acquire) {
            let mut details = self.details();
            details.intervals.iter_mut().for_each(|interval| interval.add(kind, now, took));
            if let Some(histogram) = &mut details.histograms[kind as usize] {
                histogram.add(took);
            }
        }
    }

    /// Count by these settings from now on.
    #[doc(alias = "block_acct_setup")]
    pub fn set_settings(&self, settings: AcctSettings) {
        self.0.account_invalid.store(settings.account_invalid, Ordering::Relaxed);
        self.0.account_failed.store(settings.account_failed, Ordering::Relaxed);
    }

    /// Keep latencies of intervals of these lengths, from now on; those of other lengths are given up.
    #[doc(alias = "block_acct_add_interval")]
    pub fn set_intervals(&self, lengths: &[Duration]) {
        self.change(|details| details.intervals = lengths.iter().map(|length| Interval::new(*length)).collect());
    }

    /// Keep a histogram of the latencies of `kind`, with these boundaries in nanoseconds, from now on; none with `None`.
    ///
    /// # Errors
    /// [`BadBoundaries`]; the old histogram stays then.
    #[doc(alias = "block_latency_histogram_set")]
    #[doc(alias = "block_latency_histograms_clear")]
    pub fn set_histogram(&self, kind: AcctKind, boundaries: Option<Vec<u64>>) -> Result<(), BadBoundaries> {
        let histogram = boundaries.map(Histogram::new).transpose()?;
        self.change(|details| details.histograms[kind as usize] = histogram);
        Ok(())
    }

    fn change(&self, change: impl FnOnce(&mut Details)) {
        let mut details = self.details();
        change(&mut details);
        let is_detailed = !details.intervals.is_empty() || details.histograms.iter().any(Option::is_some);
        self.0.is_detailed.store(is_detailed, Ordering::Release);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> StatsSnapshot {
        self.snapshot_at(self.now())
    }

    fn snapshot_at(&self, now: Duration) -> StatsSnapshot {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = std::array::from_fn(|kind| {
            let of = &self.0.counters[kind];
            AcctCount {
                bytes: load(&of.bytes),
                operations: load(&of.operations),
                failed: load(&of.failed),
                invalid: load(&of.invalid),
                merged: load(&of.merged),
                time: Duration::from_nanos(load(&of.time_ns)),
            }
        });
        let last = load(&self.0.last_access).checked_sub(1).map(Duration::from_nanos);
        let mut details = self.details();
        let intervals = details.intervals.iter_mut().map(|interval| IntervalStats {
            length: interval.length,
            latency: ACCT_KINDS.map(|kind| interval.latency(kind, now)),
        });
        let intervals = intervals.collect();
        StatsSnapshot {
            counts,
            idle: last.map(|last| now.saturating_sub(last)),
            wr_highest_offset: load(&self.0.highest_write),
            settings: self.settings(),
            intervals,
            histograms: details.histograms.clone(),
        }
    }
}

impl Accounting {
    /// It has succeeded.
    #[doc(alias = "block_acct_done")]
    pub fn done(self) {
        let now = self.stats.now();
        self.over(true, now);
    }

    /// It has failed.
    #[doc(alias = "block_acct_failed")]
    pub fn failed(self) {
        drop(self);
    }

    fn over(mut self, is_done: bool, now: Duration) {
        self.is_over = true;
        self.stats.end(self.kind, is_done.then_some(self.bytes), self.begin, now);
    }
}

impl Drop for Accounting {
    fn drop(&mut self) {
        if !self.is_over {
            self.stats.end(self.kind, None, self.begin, self.stats.now());
        }
    }
}

impl fmt::Debug for BackendStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl fmt::Debug for Accounting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Accounting({:?}, {} bytes)", self.kind, self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// A request from `begin` to `end`, in milliseconds.
    fn request(stats: &BackendStats, kind: AcctKind, begin: u64, end: u64) {
        stats.start_at(kind, 4096, ms(begin)).over(true, ms(end));
    }

    #[test]
    fn requests_are_counted_by_kind_and_end() {
        let stats = BackendStats::default();
        request(&stats, AcctKind::Read, 0, 2);
        stats.start_at(AcctKind::Write, 512, ms(1)).over(false, ms(4));
        drop(stats.start(AcctKind::Write, 512));
        stats.invalid(AcctKind::Unmap);
        stats.merged(AcctKind::Write, 3);
        let seen = stats.snapshot();
        let read = AcctCount { bytes: 4096, operations: 1, time: ms(2), ..AcctCount::default() };
        assert_eq!(seen.count(AcctKind::Read), &read);
        let write = seen.count(AcctKind::Write);
        assert_eq!((write.bytes, write.operations, write.failed, write.merged), (0, 0, 2, 3));
        assert!(write.time >= ms(3));
        assert_eq!(seen.count(AcctKind::Unmap).invalid, 1);
        assert_eq!(seen.idle.map(|idle| idle < Duration::from_secs(60)), Some(true));
    }

    #[test]
    fn failed_requests_may_be_left_out_of_times() {
        let stats = BackendStats::default();
        stats.set_settings(AcctSettings { account_invalid: false, account_failed: false });
        stats.start_at(AcctKind::Read, 1, ms(0)).over(false, ms(9));
        stats.invalid(AcctKind::Read);
        let seen = stats.snapshot();
        let expected = AcctCount { failed: 1, invalid: 1, ..AcctCount::default() };
        assert_eq!((seen.count(AcctKind::Read), seen.idle), (&expected, None));
    }

    #[test]
    fn a_histogram_has_its_boundaries_in_the_upper_bin() {
        let stats = BackendStats::default();
        stats.set_histogram(AcctKind::Read, Some(vec![10, 50])).expect("they rise");
        for took in [0, 9, 10, 49, 50, 1000] {
            let begin = stats.start_at(AcctKind::Read, 1, ms(0));
            begin.over(true, Duration::from_nanos(took));
        }
        let seen = |stats: &BackendStats| stats.snapshot().histograms[AcctKind::Read as usize].clone();
        assert_eq!(seen(&stats), Some(Histogram { boundaries: vec![10, 50], bins: vec![2, 2, 2] }));
        for bad in [vec![10, 10], vec![10, 5], vec![0, 5], vec![1; BOUNDARIES_MAX + 1]] {
            assert_eq!(stats.set_histogram(AcctKind::Read, Some(bad)), Err(BadBoundaries));
        }
        assert!(seen(&stats).is_some(), "a histogram went for boundaries that were refused");
        stats.set_histogram(AcctKind::Read, None).expect("none is allowed");
        assert_eq!(seen(&stats), None);
    }

    #[test]
    fn an_interval_forgets_what_is_older() {
        let stats = BackendStats::default();
        stats.set_intervals(&[ms(1000)]);
        let read = |now| stats.snapshot_at(ms(now)).intervals[0].latency[AcctKind::Read as usize];
        assert_eq!(read(0), Latency::default());
        request(&stats, AcctKind::Read, 0, 100);
        request(&stats, AcctKind::Read, 100, 400);
        let seen = read(400);
        assert_eq!((seen.min, seen.max, seen.average), (ms(100), ms(300), ms(200)));
        assert!((seen.queue_depth - 1.0).abs() < 0.01, "{seen:?}");
        request(&stats, AcctKind::Read, 550, 600);
        assert_eq!((read(999).min, read(999).max), (ms(50), ms(300)));
        // The first half is over by then.
        assert_eq!((read(1000).min, read(1000).max), (ms(50), ms(50)));
        assert_eq!(read(1600), Latency::default());
    }
}
