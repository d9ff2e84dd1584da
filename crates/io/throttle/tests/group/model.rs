//! Random requests, limits, members, drops and times: nobody is forgotten, and no limit is passed.

use crate::bed::{Bed, limits, ms};
use block_throttle::Direction::{Read, Write};
use block_throttle::LimitKind::IopsTotal;
use block_throttle::ThrottleGroup;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// A generator of numbers that are random enough (splitmix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// In no window have more gone than the size of the bucket, one more, and what leaks in the time.
fn check_rate(gone: &VecDeque<u64>, rate: u64, why: &str) {
    for (i, from) in gone.iter().enumerate() {
        for (n, to) in gone.iter().skip(i).enumerate().step_by(7) {
            let allowed = rate as f64 / 10.0 + 1.0 + (to - from + 1) as f64 * rate as f64 / 1000.0;
            assert!(
                n as f64 + 1.0 <= allowed + 1.0,
                "{why}: {} requests in {} ms at {rate} a second",
                n + 1,
                to - from
            );
        }
    }
}

#[test]
fn no_limit_is_passed_and_nobody_is_forgotten() {
    let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = seed.map_or(0..60, |seed: u64| seed..seed + 1);
    for seed in seeds {
        let why = format!("CAIRN_SEED={seed}");
        let mut rng = Rng(seed);
        let rate = 1 + rng.below(300);
        let mut bed = Bed::new(limits(&[(IopsTotal, rate, 0, 1)], 0));
        let mut members: Vec<_> = (0..1 + rng.below(4)).map(|_| bed.member()).collect();
        let mut gone = VecDeque::new();
        for _ in 0..400 {
            let member = members[rng.below(members.len() as u64) as usize].clone();
            match rng.below(20) {
                0..10 => {
                    let direction = if rng.below(2) == 0 { Read } else { Write };
                    bed.ask("request", &member, direction, rng.below(1 << 20));
                }
                10..12 => drop(bed.drop_one(rng.below(1000) as usize)),
                12 => members.push(bed.member()),
                13..17 => {
                    // When they were let go is when they are polled.
                    bed.run();
                    let nanos = if rng.below(2) == 0 { 200 << 20 } else { 1 << 20 };
                    bed.pass(Duration::from_nanos(rng.below(nanos)));
                    bed.run();
                }
                _ => drop(bed.run()),
            }
            gone.extend(bed.gone().into_iter().map(|(_, at)| at));
        }
        bed.run_all();
        gone.extend(bed.gone().into_iter().map(|(_, at)| at));
        assert_eq!((bed.waiting(), bed.group.waiting()), (0, 0), "{why}");
        check_rate(&gone, rate, &why);
        drop(members);
        assert_eq!(bed.group.members(), 0, "{why}");
    }
}

/// The same with everything that lets requests go out of turn: other groups, other limits, hurry. Here it is about nobody being forgotten.
#[test]
fn whatever_happens_to_a_group_nobody_is_forgotten() {
    for seed in 0..150 {
        let mut rng = Rng(seed);
        let mut bed = Bed::new(limits(&[(IopsTotal, 1 + rng.below(50), 0, 1)], 0));
        let slow = ThrottleGroup::with_clock(limits(&[(IopsTotal, 1, 0, 1)], 0), bed.clock.clock());
        let groups = [bed.group.clone(), slow];
        let members: Vec<_> = (0..3).map(|_| bed.member()).collect();
        let mut asked = 0;
        let mut dropped = 0;
        let mut gone = 0;
        for _ in 0..300 {
            let member: Arc<_> = members[rng.below(3) as usize].clone();
            match rng.below(20) {
                0..8 => {
                    bed.ask("request", &member, if rng.below(2) == 0 { Read } else { Write }, rng.below(1 << 20));
                    asked += 1;
                }
                8..10 => dropped += usize::from(bed.drop_one(rng.below(1000) as usize)),
                10 => member.hurry(rng.below(2) == 0),
                11..13 => member.join(&groups[rng.below(2) as usize]),
                13 => groups[rng.below(2) as usize].set_limits(match rng.below(4) {
                    0 => Default::default(),
                    _ => limits(&[(IopsTotal, 1 + rng.below(50), 0, 1)], rng.below(2) << 16),
                }),
                14..17 => bed.pass(ms(rng.below(300))),
                _ => drop(bed.run()),
            }
            gone += bed.gone().len();
        }
        bed.run_all();
        gone += bed.gone().len();
        assert_eq!(asked, gone + dropped, "seed {seed}");
        assert_eq!((groups[0].waiting(), groups[1].waiting()), (0, 0), "seed {seed}");
    }
}
