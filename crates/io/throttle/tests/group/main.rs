//! Groups by a clock that stands still until it is told otherwise: who goes when.

mod bed;
mod model;

use bed::{Bed, limits, ms};
use block_throttle::Direction::{self, Read, Write};
use block_throttle::LimitKind::*;
use block_throttle::{ManualClock, ThrottleGroup, ThrottleLimits};
use std::sync::Arc;

/// `count` requests of 4 KiB in each of `of`, one after the other of each, all at time zero: the times in milliseconds at which the first few went.
fn check_times(limits: ThrottleLimits, of: &[(Direction, usize)], expected: &[(&str, u64)]) {
    let mut bed = Bed::new(limits);
    let member = bed.member();
    for &(direction, count) in of {
        for i in 0..count {
            bed.ask(&format!("{}{i}", if direction == Read { "r" } else { "w" }), &member, direction, 4096);
        }
    }
    bed.run_all();
    assert_eq!(bed.gone(), expected, "{limits:?} {of:?}");
}

#[test]
fn requests_go_at_the_rate() {
    let times = [("r0", 0), ("r1", 0), ("r2", 100), ("r3", 200), ("r4", 300)];
    check_times(limits(&[(IopsTotal, 10, 0, 1)], 0), &[(Read, 5)], &times);
    check_times(limits(&[(IopsRead, 10, 0, 1)], 0), &[(Read, 5)], &times);
    let times = [("w0", 0), ("w1", 900), ("w2", 1900)];
    check_times(limits(&[(BpsWrite, 4096, 0, 1)], 0), &[(Write, 3)], &times);
    check_times(limits(&[(IopsTotal, 4, 0, 1)], 1024), &[(Write, 3)], &times);
}

#[test]
fn bursts_go_at_theirs() {
    let times = [("r0", 0), ("r1", 0), ("r2", 0), ("r3", 0), ("r4", 500), ("r5", 1000)];
    check_times(limits(&[(IopsTotal, 2, 3, 1)], 0), &[(Read, 6)], &times);
    let times = [("r0", 0), ("r1", 0), ("r2", 0), ("r3", 50), ("r4", 100), ("r5", 150)];
    check_times(limits(&[(IopsTotal, 10, 20, 2)], 0), &[(Read, 6)], &times);
}

#[test]
fn what_is_not_limited_does_not_wait() {
    let at_once = [("r0", 0), ("w0", 0), ("w1", 0), ("w2", 0)];
    check_times(ThrottleLimits::default(), &[(Read, 1), (Write, 3)], &at_once);
    check_times(limits(&[(IopsRead, 1, 0, 1), (BpsRead, 1, 0, 1)], 0), &[(Read, 1), (Write, 3)], &at_once);
    let bed = Bed::new(ThrottleLimits::default());
    assert!(!bed.member().is_limited());
    assert!(Bed::new(limits(&[(BpsRead, 1, 0, 1)], 0)).member().is_limited());
}

/// A request of no bytes is one request all the same.
#[test]
fn nothing_counts_as_a_request_and_as_no_byte() {
    let check = |limits, expected: &[(&str, u64)]| {
        let mut bed = Bed::new(limits);
        let member = bed.member();
        for name in ["a", "b", "c"] {
            bed.ask(name, &member, Write, 0);
        }
        bed.run_all();
        assert_eq!(bed.gone(), expected);
    };
    check(limits(&[(IopsTotal, 5, 0, 1)], 0), &[("a", 0), ("b", 100), ("c", 300)]);
    check(limits(&[(IopsTotal, 5, 0, 1)], 512), &[("a", 0), ("b", 100), ("c", 300)]);
    check(limits(&[(BpsTotal, 5, 0, 1)], 0), &[("a", 0), ("b", 0), ("c", 0)]);
}

#[test]
fn reads_and_writes_share_what_is_limited_together() {
    // They take turns, and neither has more of it.
    let times = [("r0", 0), ("r1", 100), ("w0", 300), ("r2", 500), ("w1", 700), ("w2", 900), ("w3", 1100)];
    check_times(limits(&[(IopsTotal, 5, 0, 1)], 0), &[(Read, 3), (Write, 4)], &times);
    // One that is slow does not hold up the other.
    let times = [("r0", 0), ("w0", 0), ("w1", 0), ("w2", 100), ("w3", 200), ("r1", 900), ("r2", 1900)];
    check_times(limits(&[(IopsRead, 1, 0, 1), (IopsWrite, 10, 0, 1)], 0), &[(Read, 3), (Write, 4)], &times);
}

#[test]
fn members_take_turns() {
    let mut bed = Bed::new(limits(&[(IopsTotal, 5, 0, 1)], 0));
    let [a, b, c] = [bed.member(), bed.member(), bed.member()];
    for i in 0..5 {
        bed.ask(&format!("a{i}"), &a, Read, 4096);
    }
    for i in 0..3 {
        bed.ask(&format!("b{i}"), &b, Read, 4096);
    }
    bed.ask("c0", &c, Read, 4096);
    bed.run_all();
    let order: Vec<_> = bed.gone().into_iter().map(|(name, _)| name).collect();
    // The first went at once. The rest of what came first waits for those who came later.
    assert_eq!(order, ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "b2", "a4"]);
}

/// Who comes when somebody waits gets in line, however empty the bucket is.
#[test]
fn nobody_passes_those_who_wait() {
    let mut bed = Bed::new(limits(&[(BpsTotal, 10, 0, 1)], 0));
    let [a, b] = [bed.member(), bed.member()];
    assert!(a.try_admit(Read, 101));
    assert!(!a.try_admit(Read, 1));
    bed.ask("large", &a, Read, 100);
    assert!(!b.try_admit(Read, 1));
    bed.ask("small", &b, Read, 1);
    assert_eq!(bed.run(), 0);
    // The time has come, and the timer is late: who asks sees to it that those go who wait.
    bed.clock.advance_silently(ms(10_000));
    assert!(!b.try_admit(Read, 1));
    assert_eq!(bed.run(), 1);
    assert_eq!(bed.gone(), [("large", 10_000)]);
    bed.run_all();
    assert_eq!(bed.gone(), [("small", 20_000)]);
    bed.pass(ms(200));
    assert!(b.try_admit(Write, 1) && b.try_admit(Write, 1), "a tenth of a second's worth");
    assert!(!b.try_admit(Write, 1));
}

/// Nothing is lost when a timer is late by less than what the bucket holds; and of more, or of idleness, no more is saved up than that.
#[test]
fn late_timers_cost_no_rate() {
    let mut bed = Bed::new(limits(&[(IopsTotal, 100, 0, 1)], 0));
    let member = bed.member();
    for i in 0..1000 {
        bed.ask(&i.to_string(), &member, Read, 4096);
    }
    assert_eq!(bed.gone().len(), 11);
    for _ in 0..14 {
        bed.pass(ms(70));
        assert_eq!(bed.run(), 7);
    }
    bed.pass(ms(5000));
    assert_eq!(bed.run(), 11);
    assert_eq!(member.group().waiting(), 1000 - 11 - 98 - 11);
    bed.drop_all();
    bed.pass(ms(60_000));
    assert_eq!((0..1000).filter(|_| member.try_admit(Read, 1)).count(), 11);
}

#[test]
fn other_limits_hold_at_once_for_those_who_wait_too() {
    let slow = limits(&[(IopsTotal, 5, 0, 1)], 1);
    let bed = || {
        let mut bed = Bed::new(slow);
        let member = bed.member();
        assert!(member.try_admit(Read, 1_000_000));
        for i in 0..5 {
            bed.ask(&format!("r{i}"), &member, Read, 1);
        }
        assert_eq!(bed.run(), 0);
        bed.pass(ms(1000));
        assert_eq!(bed.run(), 0);
        (bed, member)
    };
    let (mut faster, member) = bed();
    member.group().set_limits(limits(&[(IopsTotal, 10, 0, 1)], 0));
    faster.run_all();
    assert_eq!(faster.gone(), [("r0", 1000), ("r1", 1000), ("r2", 1100), ("r3", 1200), ("r4", 1300)]);

    let (mut unlimited, member) = bed();
    member.group().set_limits(ThrottleLimits::default());
    assert_eq!(unlimited.run(), 5);
    assert!(!member.is_limited() && member.try_admit(Read, u64::MAX));

    // What was let through before is forgotten, with the same limits too.
    let (mut same, member) = bed();
    member.group().set_limits(slow);
    same.run_all();
    assert_eq!(same.gone(), [("r0", 1000), ("r1", 1100), ("r2", 1300), ("r3", 1500), ("r4", 1700)]);

    let (mut slower, member) = bed();
    member.group().set_limits(limits(&[(IopsTotal, 1, 0, 1)], 0));
    slower.run_all();
    assert_eq!(slower.gone(), [("r0", 1000), ("r1", 1900), ("r2", 2900), ("r3", 3900), ("r4", 4900)]);

    let (mut other, member) = bed();
    member.group().set_limits(limits(&[(IopsWrite, 1, 0, 1)], 0));
    assert_eq!(other.run(), 5);
    assert!(member.is_limited());
}

/// Scenario: two nodes in one group have requests that wait, and one of them is drained.
#[test]
fn drain_5_who_hurries_goes_at_once_and_everybody_pays_afterwards() {
    let mut bed = Bed::new(limits(&[(IopsTotal, 10, 0, 1)], 0));
    let [drained, other] = [bed.member(), bed.member()];
    assert!(drained.try_admit(Read, 1) && drained.try_admit(Write, 1));
    for i in 0..10 {
        bed.ask(&format!("d{i}"), &drained, if i % 2 == 0 { Read } else { Write }, 4096);
    }
    for i in 0..2 {
        bed.ask(&format!("o{i}"), &other, Read, 4096);
    }
    assert_eq!(bed.run(), 0);
    drained.hurry(true);
    assert_eq!(bed.run(), 10);
    bed.gone();
    // Those that come while it lasts go as well.
    bed.ask("late", &drained, Write, 4096);
    assert_eq!(bed.gone(), [("late", 0)]);
    assert!(drained.try_admit(Read, 1) && !other.try_admit(Read, 1));
    drained.hurry(false);
    bed.ask("later", &drained, Read, 4096);
    bed.run_all();
    // The first of the others waits for the two that went in turn; those behind it for the twelve as well, but for no more than a second.
    assert_eq!(bed.gone(), [("o0", 100), ("later", 1100), ("o1", 1200)]);
}

/// Nobody waits while they go: who comes next does, for no more than a second.
#[test]
fn drain_5_what_went_out_of_turn_is_paid_for_by_who_comes_next() {
    let check = |hurried: usize, idle: u64, expected: u64| {
        let mut bed = Bed::new(limits(&[(IopsTotal, 10, 0, 1)], 0));
        let [drained, other] = [bed.member(), bed.member()];
        drained.hurry(true);
        assert!((0..hurried).all(|_| drained.try_admit(Write, 1)));
        drained.hurry(false);
        bed.pass(ms(idle));
        bed.ask("other", &other, Read, 1);
        bed.run_all();
        assert_eq!(bed.gone(), [("other", idle + expected)], "{hurried} {idle}");
    };
    check(1, 0, 0);
    check(6, 0, 500);
    check(6, 300, 200);
    check(6, 3_600_000, 0);
    check(1000, 0, 1000);
    check(1000, 400, 600);
}

/// Scenario: drains come so often that what they let go is more than the limits allow in all. Found by random operations under load: a guest's requests waited for ever.
#[test]
fn drain_5_who_does_not_hurry_gets_his_turn() {
    let both = limits(&[(IopsTotal, 100, 0, 1), (BpsWrite, 100 * 4096, 0, 1)], 0);
    let mut bed = Bed::new(both);
    let [drained, other] = [bed.member(), bed.member()];
    for i in 0..10 {
        bed.ask(&format!("r{i}"), &other, Read, 4096);
        bed.ask(&format!("w{i}"), &other, Write, 4096);
    }
    for _ in 0..25_000 {
        drained.hurry(true);
        assert!(drained.try_admit(Read, 4096) && drained.try_admit(Write, 4096));
        drained.hurry(false);
        bed.pass(ms(1));
        bed.run();
    }
    let gone = bed.gone();
    assert_eq!(gone.len(), 20, "{gone:?}");
}

#[test]
fn who_gives_up_is_not_counted_and_holds_nobody_up() {
    let check = |dropped: &[&str], expected: &[(&str, u64)]| {
        let mut bed = Bed::new(limits(&[(BpsTotal, 1000, 0, 1)], 0));
        let [a, b] = [bed.member(), bed.member()];
        assert!(a.try_admit(Read, 1100));
        bed.ask("a0", &a, Read, 500);
        bed.ask("a1", &a, Read, 500);
        bed.ask("b0", &b, Read, 500);
        bed.ask("w0", &b, Write, 500);
        assert_eq!(bed.run(), 0);
        for name in dropped {
            bed.drop(name);
        }
        bed.run_all();
        assert_eq!(bed.gone(), expected, "{dropped:?}");
        assert_eq!(a.group().waiting(), 0);
    };
    check(&[], &[("a0", 1000), ("w0", 1500), ("b0", 2000), ("a1", 2500)]);
    check(&["a0"], &[("w0", 1000), ("a1", 1500), ("b0", 2000)]);
    check(&["a1"], &[("a0", 1000), ("w0", 1500), ("b0", 2000)]);
    check(&["b0"], &[("a0", 1000), ("w0", 1500), ("a1", 2000)]);
    check(&["w0"], &[("a0", 1000), ("b0", 1500), ("a1", 2000)]);
    check(&["a0", "a1"], &[("w0", 1000), ("b0", 1500)]);
    check(&["b0", "w0", "a0"], &[("a1", 1000)]);
    check(&["a0", "a1", "b0", "w0"], &[]);
}

/// Scenario: a head that was told to go is dropped before it is polled, as with the I/O thread that it is on.
#[test]
fn the_end_of_a_thread_stops_nobody_elsewhere() {
    let mut bed = Bed::new(limits(&[(IopsTotal, 10, 0, 1)], 0));
    let [a, b] = [bed.member(), bed.member()];
    assert!(a.try_admit(Read, 1) && a.try_admit(Read, 1));
    bed.ask("a0", &a, Read, 1);
    bed.ask("b0", &b, Read, 1);
    assert_eq!(bed.run(), 0);
    bed.clock.advance(ms(100));
    bed.drop("a0");
    bed.run_all();
    assert_eq!(bed.gone(), [("b0", 100)]);
}

#[test]
fn requests_that_wait_go_to_another_group_with_their_member() {
    let mut bed = Bed::new(limits(&[(IopsTotal, 10, 0, 1)], 0));
    let [a, b] = [bed.member(), bed.member()];
    let slow = ThrottleGroup::with_clock(limits(&[(IopsTotal, 1, 0, 1)], 0), bed.clock.clock());
    let free = ThrottleGroup::with_clock(ThrottleLimits::default(), bed.clock.clock());
    assert!(a.try_admit(Read, 1) && a.try_admit(Read, 1));
    for name in ["a0", "a1", "a2"] {
        bed.ask(name, &a, Read, 1);
    }
    bed.ask("b0", &b, Read, 1);
    assert_eq!(bed.run(), 0);
    a.join(&slow);
    assert_eq!((slow.members(), slow.waiting(), bed.group.members(), bed.group.waiting()), (1, 2, 1, 1));
    bed.ask("a3", &a, Read, 1);
    bed.run();
    bed.pass(ms(1000));
    bed.run();
    // The other has the former group for itself, and the first one found the bucket empty.
    assert_eq!(bed.gone(), [("a0", 0), ("a1", 1000), ("b0", 1000)]);
    a.join(&free);
    assert_eq!(bed.run(), 2);
    assert!(!a.is_limited() && a.group().same(&free));
    a.join(&free);
    assert_eq!((free.members(), slow.members()), (1, 0));
    // What was let through stays where it was.
    a.join(&slow);
    assert!(a.is_limited() && !a.try_admit(Read, 1));
    drop(a);
    assert_eq!((free.members(), slow.members()), (0, 0));
}

/// A member that hurries does so in another group as well.
#[test]
fn drain_5_who_hurries_takes_that_along() {
    let bed = Bed::new(ThrottleLimits::default());
    let member = bed.member();
    member.hurry(true);
    let slow = ThrottleGroup::with_clock(limits(&[(IopsTotal, 1, 0, 1)], 0), ManualClock::new());
    member.join(&slow);
    assert_eq!((0..5).filter(|_| member.try_admit(Read, 1)).count(), 5);
    member.hurry(false);
    assert!(!member.try_admit(Read, 1));
}

/// Each waits without being asked again and again: once when it comes, once when it is the head, once when it goes.
#[test]
fn waiting_costs_little() {
    let mut bed = Bed::new(limits(&[(IopsTotal, 100, 0, 1)], 0));
    let members = [bed.member(), bed.member()];
    for i in 0..500 {
        bed.ask(&i.to_string(), &members[i % 2], if i % 3 == 0 { Write } else { Read }, 4096);
    }
    bed.run_all();
    assert_eq!(bed.gone().len(), 500);
    assert!(bed.polls <= 500 * 4, "{} polls", bed.polls);
}

/// Scenario: whoever is woken, or whose waker goes, comes back to the member and its group at once.
#[test]
fn nobody_is_woken_with_a_lock_held() {
    // Where one is held, the thread never ends.
    let (ended, end) = std::sync::mpsc::channel();
    let test = std::thread::spawn(move || {
        come_back();
        ended.send(()).expect("somebody waits");
    });
    end.recv_timeout(ms(30_000)).expect("it ends");
    test.join().expect("no panic");
}

fn come_back() {
    let group = ThrottleGroup::with_clock(limits(&[(IopsTotal, 1, 0, 1)], 0), ManualClock::new());
    let member = Arc::new(group.member());
    assert!(member.try_admit(Read, 1));
    type Act = fn(&ThrottleGroup, &block_throttle::ThrottleMember);
    let acts: [Act; 4] = [
        |_, member| member.hurry(true),
        |group, _| group.set_limits(limits(&[(IopsTotal, 2, 0, 1)], 0)),
        |group, member| member.join(&ThrottleGroup::with_clock(group.limits(), ManualClock::new())),
        |group, _| group.set_limits(ThrottleLimits::default()),
    ];
    for act in acts {
        let waits = bed::Wakes::new(&member);
        act(&group, &member);
        drop(waits);
        member.hurry(false);
        member.join(&group);
        group.set_limits(limits(&[(IopsTotal, 1, 0, 1)], 0));
        assert!(member.try_admit(Read, 1));
    }
}
