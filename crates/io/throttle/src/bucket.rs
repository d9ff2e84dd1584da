//! Leaky buckets: what is served goes in, time lets it out, and whoever finds one too full waits. Arithmetic; whose turn it is is not known here.

use crate::group::Direction;
use crate::limits::{Limit, LimitKind, LimitSettings};

const SECOND_NS: f64 = 1e9;

/// Without bursts, and within one second of a burst, this many parts of a second may come at once: with less, requests that come beside each other would wait
/// for no reason.
const AT_ONCE: f64 = 10.0;

/// What goes out of turn fills a bucket no further than it leaks out in this many seconds.
const OWED_MAX: f64 = 1.0;

/// What one limit has let through.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Bucket {
    /// What is in it, in bytes or requests.
    level: f64,
    /// The same for the rate of a burst, where one is longer than a second.
    burst: f64,
    /// What went out of turn since somebody waits, and is not in it yet.
    owed: f64,
}

impl Bucket {
    fn leak(&mut self, limit: &Limit, ns: u64) {
        let out = |rate: u64| rate as f64 * ns as f64 / SECOND_NS;
        self.level = (self.level - out(limit.rate)).max(0.0);
        self.burst = (self.burst - out(limit.max)).max(0.0);
    }

    /// For how many nanoseconds it must leak until the next request may go.
    fn wait_ns(&self, limit: &Limit) -> u64 {
        if limit.rate == 0 {
            return 0;
        }
        let wait = until(self.level, size(limit), limit.rate);
        if limit.max_length > 1 { wait.max(until(self.burst, burst_size(limit), limit.max)) } else { wait }
    }

    /// Put in what is owed.
    fn settle(&mut self, limit: &Limit) {
        let owed = std::mem::take(&mut self.owed);
        if owed > 0.0 {
            let most = size(limit) + limit.rate as f64 * OWED_MAX;
            self.level = (self.level + owed).min(most.max(self.level));
            if limit.max_length > 1 {
                let most = burst_size(limit) + limit.max as f64 * OWED_MAX;
                self.burst = (self.burst + owed).min(most.max(self.burst));
            }
        }
    }

    fn add(&mut self, limit: &Limit, units: f64) {
        if limit.rate > 0 {
            self.level += units;
        }
        if limit.max_length > 1 {
            self.burst += units;
        }
    }
}

/// How full a bucket may be for another request to go.
fn size(limit: &Limit) -> f64 {
    match limit.max {
        0 => limit.rate as f64 / AT_ONCE,
        max => max as f64 * limit.max_length as f64,
    }
}

/// The same for the rate of a burst.
fn burst_size(limit: &Limit) -> f64 {
    limit.max as f64 / AT_ONCE
}

/// How long, in nanoseconds, `level` takes to come down to `size`. What takes no whole nanosecond is there.
fn until(level: f64, size: f64, rate: u64) -> u64 {
    let ns = (level - size) / rate as f64 * SECOND_NS;
    if ns < 1.0 { 0 } else { ns.ceil() as u64 }
}

/// The buckets of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Buckets([Bucket; 6]);

/// The limits that a request in a direction is under.
fn kinds(direction: Direction) -> [LimitKind; 4] {
    match direction {
        Direction::Read => [LimitKind::BpsTotal, LimitKind::BpsRead, LimitKind::IopsTotal, LimitKind::IopsRead],
        Direction::Write => [LimitKind::BpsTotal, LimitKind::BpsWrite, LimitKind::IopsTotal, LimitKind::IopsWrite],
    }
}

impl Buckets {
    /// `ns` nanoseconds pass, during which somebody waits in a direction or not.
    pub(crate) fn leak(&mut self, limits: &LimitSettings, ns: u64, waits: [bool; 2]) {
        for kind in LimitKind::ALL {
            let concerns = |direction: &Direction| waits[*direction as usize] && kinds(*direction).contains(&kind);
            let bucket = &mut self.0[kind as usize];
            if !Direction::BOTH.iter().any(concerns) {
                bucket.settle(&limits[kind]);
            }
            bucket.leak(&limits[kind], ns);
        }
    }

    /// How many nanoseconds the next request in a direction has to wait.
    pub(crate) fn wait_ns(&self, limits: &LimitSettings, direction: Direction) -> u64 {
        kinds(direction).iter().map(|kind| self.0[*kind as usize].wait_ns(&limits[*kind])).max().unwrap_or(0)
    }

    /// A request of `bytes` is let through, and what went out of turn before it is paid for.
    pub(crate) fn add(&mut self, limits: &LimitSettings, direction: Direction, bytes: u64) {
        for (kind, units) in units(limits, direction, bytes) {
            let bucket = &mut self.0[kind as usize];
            bucket.add(&limits[kind], units);
            bucket.settle(&limits[kind]);
        }
    }

    /// A request of `bytes` goes out of turn. Who waits at the head of a line does not wait the longer for it: those do that come after him. However many go,
    /// somebody else gets his turn now and then.
    pub(crate) fn add_out_of_turn(&mut self, limits: &LimitSettings, direction: Direction, bytes: u64) {
        for (kind, units) in units(limits, direction, bytes) {
            if limits[kind].rate > 0 {
                self.0[kind as usize].owed += units;
            }
        }
    }
}

/// What a request of `bytes` is to the limits that it is under.
fn units(limits: &LimitSettings, direction: Direction, bytes: u64) -> [(LimitKind, f64); 4] {
    let requests = match limits.iops_size {
        0 => 1.0,
        size => (bytes as f64 / size as f64).max(1.0),
    };
    kinds(direction).map(|kind| (kind, if kind.is_bps() { bytes as f64 } else { requests }))
}

#[cfg(test)]
mod tests {
    use super::Direction::*;
    use super::LimitKind::*;
    use super::*;

    const MS: u64 = 1_000_000;

    fn limits(of: &[(LimitKind, u64, u64, u64)], iops_size: u64) -> LimitSettings {
        let mut settings = LimitSettings::default();
        settings.iops_size = iops_size;
        for &(kind, rate, max, max_length) in of {
            settings[kind] = Limit { rate, max, max_length };
        }
        settings
    }

    /// The waits, in milliseconds, of requests that come one after the other as soon as they may.
    fn check(of: &[(LimitKind, u64, u64, u64)], iops_size: u64, requests: &[(Direction, u64)], expected: &[u64]) {
        let limits = limits(of, iops_size);
        let mut buckets = Buckets::default();
        let waits = requests.iter().map(|&(direction, bytes)| {
            let wait = buckets.wait_ns(&limits, direction);
            buckets.leak(&limits, wait, [false; 2]);
            assert_eq!(buckets.wait_ns(&limits, direction), 0);
            buckets.add(&limits, direction, bytes);
            wait / MS
        });
        assert_eq!(waits.collect::<Vec<_>>(), expected, "{limits:?}");
    }

    /// As `qemu-io` measures it with the same limits, above null.
    #[test]
    fn a_tenth_of_a_second_comes_at_once() {
        check(&[(IopsTotal, 10, 0, 1)], 0, &[(Read, 4096); 5], &[0, 0, 100, 100, 100]);
        check(&[(IopsTotal, 20, 0, 1)], 0, &[(Read, 4096); 6], &[0, 0, 0, 50, 50, 50]);
        check(&[(IopsTotal, 5, 0, 1)], 0, &[(Write, 0); 4], &[0, 100, 200, 200]);
        check(&[(BpsWrite, 1 << 20, 0, 1)], 0, &[(Write, 1 << 20), (Write, 4096), (Write, 4096)], &[0, 900, 3]);
    }

    #[test]
    fn a_burst_comes_at_once_or_at_its_rate() {
        let mut eleven = vec![0; 11];
        eleven.extend([100, 100]);
        check(&[(IopsTotal, 10, 10, 1)], 0, &[(Read, 1); 13], &eleven);
        check(&[(IopsTotal, 10, 20, 2)], 0, &[(Read, 1); 6], &[0, 0, 0, 50, 50, 50]);
        check(&[(IopsTotal, 10, 40, 2)], 0, &[(Read, 1); 8], &[0, 0, 0, 0, 0, 25, 25, 25]);
    }

    /// 100 a second, 2000 for a minute: as it leaks meanwhile it lasts for three seconds more.
    #[test]
    fn a_burst_lasts_as_long_as_its_bucket_is_not_full() {
        let limits = limits(&[(IopsTotal, 100, 2000, 60)], 0);
        let mut buckets = Buckets::default();
        // As fast as it goes, until the burst is over: how many, and in how many nanoseconds.
        let burst = |buckets: &mut Buckets| {
            let (mut served, mut ns) = (0u64, 0);
            while buckets.wait_ns(&limits, Read) < 5 * MS {
                let wait = buckets.wait_ns(&limits, Read);
                buckets.leak(&limits, wait, [false; 2]);
                buckets.add(&limits, Read, 1);
                (served, ns) = (served + 1, ns + wait);
            }
            (served, ns)
        };
        let (served, ns) = burst(&mut buckets);
        assert_eq!(ns / (1000 * MS), 63);
        assert_eq!(served, 120_000 + ns / (10 * MS) + 1);
        // Ten seconds without a request let a thousand come again.
        buckets.leak(&limits, 10_000 * MS, [false; 2]);
        let (served, ns) = burst(&mut buckets);
        assert_eq!(served, 1000 + ns / (10 * MS));
    }

    #[test]
    fn large_requests_count_as_many() {
        let requests = [(Read, 8192), (Read, 4096), (Read, 6144), (Read, 512), (Read, 512)];
        check(&[(IopsTotal, 5, 0, 1)], 4096, &requests, &[0, 300, 200, 300, 200]);
    }

    #[test]
    fn directions_have_buckets_of_their_own_and_one_together() {
        let apart = [(IopsRead, 5, 0, 1), (IopsWrite, 2, 0, 1)];
        check(&apart, 0, &[(Read, 1), (Read, 1), (Write, 1), (Write, 1), (Read, 1)], &[0, 100, 0, 400, 0]);
        check(&[(IopsTotal, 5, 0, 1)], 0, &[(Read, 1), (Write, 1), (Read, 1)], &[0, 100, 200]);
        check(&[(BpsRead, 10, 0, 1)], 0, &[(Read, 100), (Write, 1 << 40), (Write, 1), (Read, 1)], &[0, 0, 0, 9900]);
    }

    /// The slower of two limits counts.
    #[test]
    fn bytes_and_requests_are_limited_beside_each_other() {
        check(&[(IopsTotal, 5, 0, 1), (BpsTotal, 4096, 0, 1)], 0, &[(Read, 4096); 3], &[0, 900, 1000]);
        check(&[(IopsTotal, 5, 0, 1), (BpsTotal, 1 << 40, 0, 1)], 0, &[(Read, 4096); 3], &[0, 100, 200]);
    }

    #[test]
    fn extremes_neither_overflow_nor_stick() {
        let slow = limits(&[(BpsTotal, 1, 0, 1)], 0);
        let mut buckets = Buckets::default();
        buckets.add(&slow, Write, u64::MAX);
        assert_eq!(buckets.wait_ns(&slow, Write), u64::MAX);
        buckets.leak(&slow, u64::MAX, [false; 2]);
        assert!(buckets.wait_ns(&slow, Read) > 0);
        let fast = limits(&[(BpsTotal, 1_000_000_000_000_000, 0, 1)], 0);
        let mut buckets = Buckets::default();
        buckets.add(&fast, Write, 100_000_000_000_001);
        // Less than a nanosecond.
        assert_eq!(buckets.wait_ns(&fast, Write), 0);
        // Nothing is limited, and nothing is kept.
        let none = LimitSettings::default();
        let mut buckets = Buckets::default();
        buckets.add(&none, Read, u64::MAX);
        assert_eq!((buckets, buckets.wait_ns(&none, Read)), (Buckets::default(), 0));
    }
}
