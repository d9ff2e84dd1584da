//! Rounds: everyone runs once in each, one after the other, and the order changes from round to round.
//!
//! Numbers are nanoseconds per request throughout.

use anyhow::{Result, bail};
use std::time::Duration;

/// Somebody who is measured.
pub(crate) trait Contender {
    /// For tables.
    fn name(&self) -> &str;

    /// How many requests a first attempt is made of.
    fn first(&self) -> u64 {
        2000
    }

    /// Carry out `count` requests and tell how long they took, start-up excluded.
    ///
    /// # Errors
    /// It could not.
    fn run(&mut self, count: u64) -> Result<Duration>;
}

/// A contender with a number of requests that takes it long enough.
struct Prepared<'a> {
    contender: &'a mut dyn Contender,
    count: u64,
}

/// How much longer than asked a calibrated run is meant to last, so that few runs of a noisy machine are too short.
const MARGIN: f64 = 1.25;
/// More attempts at a run that is long enough are not made.
const ATTEMPTS: usize = 12;

/// The number of requests for a run of `target`.
fn calibrate(contender: &mut dyn Contender, target: Duration) -> Result<u64> {
    let mut count = contender.first();
    for _ in 0..ATTEMPTS {
        let took = contender.run(count)?;
        if took >= target {
            return Ok(count);
        }
        // A run that was far too short says little about its speed.
        let factor = target.as_secs_f64() / took.as_secs_f64().max(1e-4) * MARGIN;
        count = (count as f64 * factor.clamp(1.2, 50.0)).ceil() as u64;
    }
    bail!("{} takes no time, however many requests it gets", contender.name())
}

impl Prepared<'_> {
    fn run(&mut self, target: Duration) -> Result<f64> {
        for _ in 0..ATTEMPTS {
            let took = self.contender.run(self.count)?;
            // Three quarters of the target are what the bars' authors asked for, see `--seconds`.
            if took >= target.mul_f64(0.75) {
                return Ok(took.as_nanos() as f64 / self.count as f64);
            }
            self.count = (self.count as f64 * MARGIN).ceil() as u64;
        }
        bail!("{} gets faster and faster", self.contender.name())
    }
}

/// Run `contenders` in `rounds` rounds. Everyone but the first also runs a second time in each: against itself.
/// Returns the times of each contender, then those second times, the first contender's being empty.
pub(crate) fn alternate(
    contenders: &mut [&mut dyn Contender],
    rounds: usize,
    target: Duration,
) -> Result<(Vec<Vec<f64>>, Vec<Vec<f64>>)> {
    let mut prepared = Vec::new();
    for contender in contenders {
        let count = calibrate(&mut **contender, target)?;
        prepared.push(Prepared { contender: &mut **contender, count });
    }
    let all = prepared.len();
    let (mut first, mut second) = (vec![Vec::new(); all], vec![Vec::new(); all]);
    // Each of (who, which time); the neighbours of one and the same come together, as pairs should.
    let turns: Vec<(usize, bool)> = (0..all).map(|i| (i, false)).chain((1..all).map(|i| (i, true))).collect();
    for round in 0..rounds {
        for (who, again) in order(&turns, round) {
            let time = prepared[who].run(target)?;
            let times = if again { &mut second } else { &mut first };
            times[who].push(time);
        }
    }
    Ok((first, second))
}

/// The turns of a round: another one begins each time, and every second round runs backwards.
fn order(turns: &[(usize, bool)], round: usize) -> Vec<(usize, bool)> {
    let mut order = turns.to_vec();
    order.rotate_left(round / 2 % turns.len());
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Clock {
        name: &'static str,
        ns: u64,
        runs: Vec<u64>,
    }

    impl Contender for Clock {
        fn name(&self) -> &str {
            self.name
        }

        fn run(&mut self, count: u64) -> Result<Duration> {
            self.runs.push(count);
            Ok(Duration::from_nanos(self.ns * count))
        }
    }

    fn clock(name: &'static str, ns: u64) -> Clock {
        Clock { name, ns, runs: Vec::new() }
    }

    #[test]
    fn everyone_gets_runs_that_are_long_enough() {
        let (mut fast, mut slow) = (clock("fast", 100), clock("slow", 3000));
        let target = Duration::from_millis(300);
        let (first, second) = alternate(&mut [&mut fast, &mut slow], 11, target).unwrap();
        assert_eq!((first[0].len(), first[1].len(), second[0].len(), second[1].len()), (11, 11, 0, 11));
        assert!(first[0].iter().all(|ns| *ns == 100.0) && first[1].iter().all(|ns| *ns == 3000.0));
        assert!(fast.runs.iter().rev().take(11).all(|count| count * 100 >= 300_000_000));
        assert!(slow.runs.iter().rev().take(22).all(|count| (300_000_000..900_000_000).contains(&(count * 3000))));
    }

    #[test]
    fn every_turn_stands_everywhere() {
        let turns = [(0, false), (1, false), (1, true)];
        for place in 0..3 {
            let seen: std::collections::BTreeSet<_> = (0..6).map(|round| order(&turns, round)[place]).collect();
            assert_eq!(seen.len(), 3, "place {place}");
        }
    }

    #[test]
    fn one_that_takes_no_time_is_an_error() {
        assert!(calibrate(&mut clock("nothing", 0), Duration::from_millis(1)).is_err());
    }
}
