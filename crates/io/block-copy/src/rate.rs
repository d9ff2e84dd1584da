//! A speed limit: so many bytes a second, counted when work starts.
//!
//! Pure arithmetic on instants; who waits, and on which timer, is the caller's business.

use std::time::{Duration, Instant};

/// Time that was not used is made up for, up to this much.
const SLICE: Duration = Duration::from_millis(100);

/// A speed limit in bytes a second.
#[derive(Clone, Debug, Default)]
pub struct RateLimit {
    /// Zero: no limit.
    bytes_per_second: u64,
    /// When what was started so far is paid for.
    free_at: Option<Instant>,
}

impl RateLimit {
    /// At most `bytes_per_second`; 0 is no limit. Another speed than before forgets what is owed.
    pub fn set_speed(&mut self, bytes_per_second: u64) {
        if self.bytes_per_second != bytes_per_second {
            *self = Self { bytes_per_second, free_at: None };
        }
    }

    /// How long to wait at `now` before the next piece may start.
    #[doc(alias = "block_job_ratelimit_get_delay")]
    pub fn delay(&self, now: Instant) -> Duration {
        self.free_at.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// `bytes` start at `now`: whoever comes next waits for as long as they take.
    pub fn charge(&mut self, now: Instant, bytes: u64) {
        if self.bytes_per_second == 0 {
            return;
        }
        let earliest = now.checked_sub(SLICE).unwrap_or(now);
        let start = self.free_at.map_or(now, |at| at.max(earliest));
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_second);
        // A year is for ever, and does not overflow an instant.
        let nanos = nanos.min(365 * 24 * 3600 * 1_000_000_000);
        self.free_at = Some(start + Duration::from_nanos(nanos as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(speed: u64) -> RateLimit {
        let mut limit = RateLimit::default();
        limit.set_speed(speed);
        limit
    }

    #[test]
    fn without_a_limit_nobody_waits() {
        let (mut limit, now) = (limit(0), Instant::now());
        limit.charge(now, u64::MAX);
        assert_eq!(limit.delay(now), Duration::ZERO);
    }

    #[test]
    fn the_first_piece_goes_at_once_and_the_second_pays_for_it() {
        let (mut limit, now) = (limit(1000), Instant::now());
        assert_eq!(limit.delay(now), Duration::ZERO);
        limit.charge(now, 500);
        assert_eq!(limit.delay(now), Duration::from_millis(500));
        assert_eq!(limit.delay(now + Duration::from_millis(499)), Duration::from_millis(1));
        assert_eq!(limit.delay(now + Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn a_late_timer_costs_no_speed_and_idleness_saves_none_up() {
        let (mut limit, now) = (limit(1000), Instant::now());
        limit.charge(now, 500);
        limit.charge(now + Duration::from_millis(510), 500);
        assert_eq!(limit.delay(now + Duration::from_millis(510)), Duration::from_millis(490));
        let later = now + Duration::from_secs(100);
        limit.charge(later, 500);
        assert_eq!(limit.delay(later), Duration::from_millis(400));
    }

    #[test]
    fn extremes_neither_overflow_nor_stick() {
        let (mut limit, now) = (limit(1), Instant::now());
        limit.charge(now, u64::MAX);
        assert!(limit.delay(now) > Duration::from_secs(1 << 20));
        limit.set_speed(0);
        assert_eq!(limit.delay(now), Duration::ZERO);
    }
}
