//! Loom models of gates, pins, epochs and links: every interleaving of a few threads, and every value that a weak memory
//! may show them.
//!
//! `RUSTFLAGS="--cfg loom" cargo test --release -p block-io --lib loom` runs them. The code under test is the code that
//! ships; only atomics, locks and the choice of a shard are loom's (see `sync`). Most models of two threads are explored in full, the
//! others up to a number of involuntary switches: see [`ALL`], [`FOUR`] and [`THREE`]. What protects data is shown by loom's cells, which fail a model when two threads may be
//! in one at once; that a model can see a bug at all is shown by models that leave the protection out and must fail.

#![allow(unsafe_code, reason = "loom's cells are accessed through raw pointers, and loom checks each access")]

use crate::gate::{GateState, Gated, Pin, Way};
use crate::link::Link;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Arc, use_shard};
use loom::cell::UnsafeCell;
use loom::future::block_on;
use loom::thread::{self, JoinHandle};
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::AtomicU32 as PlainCounter;
use std::task::{Context, Poll, Waker};

/// Every interleaving: for nearly all models of two threads.
const ALL: Option<usize> = None;
/// Four involuntary switches, beside those where a thread waits, ends or yields: for models of three threads.
const FOUR: Option<usize> = Some(4);
/// Three, for those of three long threads.
const THREE: Option<usize> = Some(3);

fn check(preemptions: Option<usize>, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    // CI has one switch less where they are counted: `cargo xtask long` has them all.
    let is_quick = std::env::var_os("CAIRN_LOOM_QUICK").is_some();
    builder.preemption_bound = preemptions.map(|count| if is_quick { count - 1 } else { count });
    builder.check(model);
}

/// Start a thread that counts its pins in `shard`.
fn on<T: 'static>(shard: usize, work: impl FnOnce() -> T + 'static) -> JoinHandle<T> {
    thread::spawn(move || {
        use_shard(shard);
        work()
    })
}

fn join<T>(thread: JoinHandle<T>) -> T {
    thread.join().expect("a modelled thread does not panic")
}

/// Data that only one thread at a time may touch; loom fails the model otherwise.
struct Exclusive(UnsafeCell<u32>);

// SAFETY: loom checks each access, which is what the models are for.
unsafe impl Send for Exclusive {}
// SAFETY: as above.
unsafe impl Sync for Exclusive {}

impl Exclusive {
    fn new(value: u32) -> Self {
        Self(UnsafeCell::new(value))
    }

    fn read(&self) -> u32 {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.0.with(|value| unsafe { *value })
    }

    fn write(&self, to: u32) {
        // SAFETY: loom checks that nobody else is here.
        self.0.with_mut(|value| unsafe { *value = to });
    }
}

/// A gated value that notices being used after its end, and ending twice.
struct Value {
    alive: Exclusive,
    drops: std::sync::Arc<PlainCounter>,
}

impl Value {
    fn gated() -> (Gated<Self>, std::sync::Arc<PlainCounter>) {
        let drops = std::sync::Arc::new(PlainCounter::new(0));
        let value = Self { alive: Exclusive::new(1), drops: drops.clone() };
        (Gated::new_with(|_| value), drops)
    }

    fn touch(&self) {
        assert_eq!(self.alive.read(), 1, "used after its end");
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.touch();
        self.alive.write(0);
        self.drops.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

fn count(drops: &PlainCounter) -> u32 {
    drops.load(std::sync::atomic::Ordering::Relaxed)
}

fn gate() -> Gated<()> {
    Gated::new_with(|_| ())
}

fn enter<T>(gate: &Gated<T>) -> Pin<T> {
    gate.enter(GateState::empty()).expect("nothing is refused")
}

/// Poll `future` once, with a waker that wakes nobody.
fn poll_once<F: Future>(future: F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

// Requests against a quiesce.

/// A request either is counted before the quiesce, and waited for, or sees it: after `idle` nobody is inside.
#[test]
fn loom_drain_1_nobody_is_inside_an_idle_gate() {
    check(ALL, || {
        let gate = gate();
        let inside = Arc::new(Exclusive::new(0));
        let request = {
            let (gate, inside) = (gate.clone(), inside.clone());
            on(1, move || {
                if let Ok(pin) = gate.enter(GateState::QUIESCED) {
                    inside.write(1);
                    drop(pin);
                }
            })
        };
        gate.set_state(GateState::QUIESCED);
        block_on(gate.idle());
        inside.write(2);
        join(request);
        assert!(gate.is_idle());
    });
}

/// As above with a request in each shard.
#[test]
fn loom_drain_1_two_requests() {
    check(FOUR, || {
        let gate = gate();
        let inside = Arc::new([Exclusive::new(0), Exclusive::new(0)]);
        let requests = [0, 1].map(|shard| {
            let (gate, inside) = (gate.clone(), inside.clone());
            on(shard, move || {
                if let Ok(pin) = gate.enter(GateState::QUIESCED) {
                    inside[shard].write(1);
                    drop(pin);
                }
            })
        });
        gate.set_state(GateState::QUIESCED);
        block_on(gate.idle());
        inside.iter().for_each(|cell| cell.write(2));
        requests.into_iter().for_each(join);
    });
}

/// Without asking at the entry, the model sees it.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_drain_1_the_model_sees_an_entry_that_does_not_ask() {
    check(ALL, || {
        let gate = gate();
        let inside = Arc::new(Exclusive::new(0));
        let request = {
            let (gate, inside) = (gate.clone(), inside.clone());
            on(1, move || {
                let pin = enter(&gate);
                inside.write(1);
                drop(pin);
            })
        };
        gate.set_state(GateState::QUIESCED);
        block_on(gate.idle());
        inside.write(2);
        join(request);
    });
}

/// A pin that began on one thread ends on another: it is still waited for, and the waiter is woken.
#[test]
fn loom_drain_4_a_pin_ends_on_another_thread() {
    check(ALL, || {
        let gate = gate();
        let inside = Arc::new(Exclusive::new(0));
        let pin = enter(&gate);
        let request = {
            let inside = inside.clone();
            on(1, move || {
                inside.write(1);
                drop(pin);
            })
        };
        gate.set_state(GateState::QUIESCED);
        block_on(gate.idle());
        inside.write(2);
        join(request);
    });
}

/// A request hands its hold to another token, made on a thread of another shard, and lets go of its own: the hand-over is never
/// out of the count, though `idle` looks at one shard after the other.
#[test]
fn loom_drain_4_a_token_is_handed_on_to_another_thread() {
    check(FOUR, || {
        let gate = gate();
        let inside = Arc::new(Exclusive::new(0));
        use_shard(1);
        let first = enter(&gate);
        let request = {
            let inside = inside.clone();
            on(0, move || {
                let second = first.again();
                drop(first);
                inside.write(1);
                drop(second);
            })
        };
        gate.set_state(GateState::QUIESCED);
        block_on(gate.idle());
        inside.write(2);
        join(request);
    });
}

/// One of two who wait gives up: the other is still woken.
#[test]
fn loom_drain_1_a_cancelled_wait_leaves_the_others() {
    check(THREE, || {
        let gate = gate();
        let pin = enter(&gate);
        gate.set_state(GateState::QUIESCED);
        let gives_up = {
            let gate = gate.clone();
            on(1, move || poll_once(gate.idle()).is_ready())
        };
        let request = on(0, move || drop(pin));
        block_on(gate.idle());
        let _ = join(gives_up);
        join(request);
        assert!(gate.is_idle());
    });
}

// Requests that a quiesce holds back.

/// Whoever waits for a gate to open is let in, however the opening falls in with his registration.
#[test]
fn loom_drain_4_a_held_request_is_woken() {
    check(ALL, || {
        let gate = gate();
        gate.set_state(GateState::QUIESCED);
        let held = {
            let gate = gate.clone();
            on(1, move || block_on(gate.enter_when_open()).map(drop))
        };
        gate.clear_state(GateState::QUIESCED);
        assert_eq!(join(held), Ok(()));
    });
}

/// A gate that is closed for good answers those who wait.
#[test]
fn loom_close_1_a_held_request_is_refused_by_closing() {
    check(ALL, || {
        let gate = gate();
        gate.set_state(GateState::QUIESCED);
        let held = {
            let gate = gate.clone();
            on(1, move || block_on(gate.enter_when_open()).map(drop))
        };
        gate.set_state(GateState::CLOSED);
        assert!(join(held).is_err());
    });
}

/// A drain ends and the next begins: the request that the first one held back is inside or held back by the second.
#[test]
fn loom_drain_4_a_released_request_counts_before_the_next_drain() {
    check(FOUR, || {
        let gate = gate();
        let inside = Arc::new(Exclusive::new(0));
        gate.set_state(GateState::QUIESCED);
        let held = {
            let (gate, inside) = (gate.clone(), inside.clone());
            on(1, move || {
                let pin = block_on(gate.enter_when_open()).expect("it opens in the end");
                inside.write(1);
                drop(pin);
            })
        };
        gate.clear_state(GateState::QUIESCED);
        gate.set_state(GateState::QUIESCED);
        block_on(gate.idle());
        inside.write(2);
        gate.clear_state(GateState::QUIESCED);
        join(held);
    });
}

// The detour bits.

/// A request on the fast path was counted before the bit was set, or sees it.
#[test]
fn loom_req_2_a_fast_request_is_counted_or_sees_the_detour() {
    check(ALL, || {
        let gate = gate();
        let fast = Arc::new(Exclusive::new(0));
        let request = {
            let (gate, fast) = (gate.clone(), fast.clone());
            on(1, move || {
                let pin = enter(&gate);
                if !pin.seen().contains(GateState::SERIALISING) {
                    fast.write(1);
                }
                drop(pin);
            })
        };
        gate.set_state(GateState::SERIALISING);
        block_on(gate.idle());
        fast.write(2);
        join(request);
    });
}

/// A request on the slow path keeps the others away, and waits for those of them that came before: it is counted itself
/// meanwhile, and not waited for.
#[test]
fn loom_req_2_a_serialising_request_waits_for_fast_ones() {
    check(ALL, || {
        let gate = gate();
        let range = Arc::new(Exclusive::new(0));
        let request = {
            let (gate, range) = (gate.clone(), range.clone());
            on(0, move || {
                let pin = enter(&gate);
                if !pin.seen().contains(GateState::SERIALISING) {
                    range.write(1);
                }
                drop(pin);
            })
        };
        use_shard(1);
        let slow = gate.enter_slowly(GateState::empty()).expect("nothing is refused");
        slow.set_detour(GateState::SERIALISING);
        block_on(slow.fast_idle());
        range.write(2);
        slow.clear_detour(GateState::SERIALISING);
        drop(slow);
        join(request);
    });
}

/// Two fast requests, one after the other: whichever missed the state is waited for.
#[test]
fn loom_req_2_a_serialising_request_among_many() {
    check(THREE, || {
        let gate = gate();
        let range = Arc::new(Exclusive::new(0));
        let requests = {
            let (gate, range) = (gate.clone(), range.clone());
            on(0, move || {
                for _ in 0..2 {
                    let pin = enter(&gate);
                    if !pin.seen().contains(GateState::SERIALISING) {
                        range.write(1);
                    }
                    drop(pin);
                }
            })
        };
        use_shard(1);
        let slow = gate.enter_slowly(GateState::empty()).expect("nothing is refused");
        slow.set_detour(GateState::SERIALISING);
        block_on(slow.fast_idle());
        range.write(2);
        drop(slow);
        join(requests);
    });
}

/// As above, waiting for the requests of that moment alone.
#[test]
fn loom_req_2_whoever_missed_the_detour_has_passed() {
    check(FOUR, || {
        let gate = gate();
        let fast = Arc::new(Exclusive::new(0));
        let request = {
            let (gate, fast) = (gate.clone(), fast.clone());
            on(1, move || {
                let pin = enter(&gate);
                if !pin.seen().contains(GateState::DETOUR) {
                    fast.write(1);
                }
                drop(pin);
            })
        };
        gate.set_state(GateState::DETOUR);
        block_on(gate.passed());
        fast.write(2);
        join(request);
    });
}

// The end of a gated value.

/// The last handle and the last pin go at the same time: the value goes once, and not before both.
#[test]
fn loom_close_1_the_last_handle_and_the_last_pin() {
    check(ALL, || {
        let (gate, drops) = Value::gated();
        let pin = enter(&gate);
        let request = on(1, move || {
            pin.touch();
            drop(pin);
        });
        drop(gate);
        join(request);
        assert_eq!(count(&drops), 1);
    });
}

/// Two pins of two shards go at the same time as the last handle.
#[test]
fn loom_close_1_two_pins_in_two_shards() {
    check(FOUR, || {
        let (gate, drops) = Value::gated();
        let requests = [0, 1].map(|shard| {
            use_shard(shard);
            let pin = enter(&gate);
            on(1 - shard, move || {
                pin.touch();
                drop(pin);
            })
        });
        drop(gate);
        requests.into_iter().for_each(join);
        assert_eq!(count(&drops), 1);
    });
}

/// A pin makes another while the last handle goes.
#[test]
fn loom_close_1_a_pin_makes_another() {
    check(ALL, || {
        let (gate, drops) = Value::gated();
        let pin = enter(&gate);
        let request = on(1, move || {
            let other = pin.again();
            drop(pin);
            other.touch();
        });
        drop(gate);
        join(request);
        assert_eq!(count(&drops), 1);
    });
}

/// Handles go on two threads, one after having entered.
#[test]
fn loom_close_1_two_handles() {
    check(ALL, || {
        let (gate, drops) = Value::gated();
        let other = gate.clone();
        let request = on(1, move || {
            let pin = enter(&other);
            drop(other);
            pin.touch();
        });
        drop(gate);
        join(request);
        assert_eq!(count(&drops), 1);
    });
}

/// Somebody waits, on a handle of his own, while everything else goes.
#[test]
fn loom_close_1_a_waiter_and_the_last_pin() {
    check(ALL, || {
        let (gate, drops) = Value::gated();
        let pin = enter(&gate);
        gate.set_state(GateState::QUIESCED);
        let waiter = on(1, move || block_on(gate.idle()));
        pin.touch();
        drop(pin);
        join(waiter);
        assert_eq!(count(&drops), 1);
    });
}

// Links: repointing against following.

struct Family {
    parent: Gated<()>,
    link: Link<Value>,
}

fn family() -> (Arc<Family>, Gated<Value>, std::sync::Arc<PlainCounter>) {
    let parent = gate();
    let (child, drops) = Value::gated();
    let link = Link::new(parent.id(), Some(&child));
    (Arc::new(Family { parent, link }), child, drops)
}

fn follow(family: &Family) {
    let request = enter(&family.parent);
    if let Some(child) = family.link.follow(&request, Way::Fast).expect("its own parent") {
        // The child's pin keeps it from here on.
        drop(request);
        child.touch();
    }
}

/// A child that was repointed away from is not freed while a request may still reach it.
#[test]
fn loom_drain_3_a_former_child_outlives_those_who_may_follow() {
    check(ALL, || {
        let (family, child, drops) = family();
        let request = {
            let family = family.clone();
            on(1, move || follow(&family))
        };
        family.link.repoint(None, Some(&family.parent));
        drop(child);
        family.link.collect(&family.parent);
        join(request);
        // With the request gone, nothing holds the child.
        family.link.collect(&family.parent);
        assert_eq!(count(&drops), 1);
    });
}

/// As above from one child to another, with two requests.
#[test]
fn loom_drain_3_requests_find_one_child_or_the_other() {
    check(FOUR, || {
        let (family, child, drops) = family();
        let (next, next_drops) = Value::gated();
        let requests = [0, 1].map(|shard| {
            let family = family.clone();
            on(shard, move || follow(&family))
        });
        family.link.repoint(Some(&next), Some(&family.parent));
        drop((child, next));
        family.link.collect(&family.parent);
        requests.into_iter().for_each(join);
        family.link.collect(&family.parent);
        assert_eq!((count(&drops), count(&next_drops)), (1, 0));
        drop(family);
        assert_eq!(count(&next_drops), 1);
    });
}

/// Somebody else moves the parent's epoch on meanwhile, as an engine that reuses clusters does.
#[test]
fn loom_drain_3_the_parents_epoch_moves_meanwhile() {
    check(THREE, || {
        let (family, child, drops) = family();
        let request = {
            let family = family.clone();
            on(1, move || follow(&family))
        };
        let engine = {
            let family = family.clone();
            on(0, move || family.parent.epoch_passed(0))
        };
        family.link.repoint(None, Some(&family.parent));
        drop(child);
        family.link.collect(&family.parent);
        join(request);
        let _ = join(engine);
        family.link.collect(&family.parent);
        assert_eq!(count(&drops), 1);
    });
}

/// With the former child let go at once, the model sees it. (Its end is played, by a write to it: the memory stays.)
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_drain_3_the_model_sees_a_child_that_goes_at_once() {
    check(ALL, || {
        let (family, child, _drops) = family();
        let request = {
            let family = family.clone();
            on(1, move || follow(&family))
        };
        family.link.repoint(None, Some(&family.parent));
        child.alive.write(1);
        join(request);
    });
}

// Clusters: what a lease refers to is not reused under it.

const NOWHERE: usize = usize::MAX;
const MINE: u32 = 1;
const FOREIGN: u32 = 2;

/// An engine in small: one table entry that points to the one cluster of its storage.
struct Image {
    gate: Gated<()>,
    entry: AtomicUsize,
    cluster: Exclusive,
}

impl Image {
    fn new() -> Arc<Self> {
        Arc::new(Self { gate: gate(), entry: AtomicUsize::new(0), cluster: Exclusive::new(MINE) })
    }

    /// Where the guest's data is, for as long as a pin from before the question is held.
    fn look_up(&self) -> Option<&Exclusive> {
        (self.entry.load(Ordering::Acquire) != NOWHERE).then_some(&self.cluster)
    }

    fn read(&self) {
        let lease = enter(&self.gate);
        if let Some(cluster) = self.look_up() {
            assert_eq!(cluster.read(), MINE, "foreign data");
        }
        drop(lease);
    }

    /// Clear the entry, then retire the cluster.
    fn discard(&self) -> u64 {
        self.entry.store(NOWHERE, Ordering::Release);
        self.gate.epoch()
    }

    fn allocate(&self, retired: u64) {
        if self.gate.epoch_passed(retired) {
            self.cluster.write(FOREIGN);
        }
    }
}

fn reader(image: &Arc<Image>, shard: usize) -> JoinHandle<()> {
    let image = image.clone();
    on(shard, move || image.read())
}

/// A cluster that is discarded and allocated anew never shows its new data to a reader who found it before.
#[test]
fn loom_qcow2_3_a_cluster_is_not_reused_under_a_lease() {
    check(ALL, || {
        let image = Image::new();
        let reader = reader(&image, 1);
        let retired = image.discard();
        image.allocate(retired);
        join(reader);
        // Nobody is left who could be in the way.
        assert!(image.gate.epoch_passed(retired));
    });
}

/// As above with a reader in each shard.
#[test]
fn loom_qcow2_3_two_readers() {
    check(FOUR, || {
        let image = Image::new();
        let readers = [0, 1].map(|shard| reader(&image, shard));
        let retired = image.discard();
        image.allocate(retired);
        readers.into_iter().for_each(join);
    });
}

/// Somebody else moves the epoch on, from a scan that he began before the cluster was discarded, past a reader who loaded
/// the epoch long before he pins: what two epochs would miss.
#[test]
fn loom_qcow2_3_a_stale_reader_and_a_stale_scan() {
    check(THREE, || {
        let image = Image::new();
        let reader = reader(&image, 1);
        let others = {
            let image = image.clone();
            on(0, move || image.gate.epoch_passed(0))
        };
        let retired = image.discard();
        image.allocate(retired);
        join(reader);
        let _ = join(others);
    });
}

/// The allocating request holds a pin of its own, as requests do.
#[test]
fn loom_qcow2_3_an_allocation_within_a_request() {
    check(ALL, || {
        let image = Image::new();
        let reader = reader(&image, 1);
        let retired = {
            let _request = enter(&image.gate);
            image.discard()
        };
        let request = enter(&image.gate);
        if request.epoch_passed(retired) {
            image.cluster.write(FOREIGN);
        }
        drop(request);
        join(reader);
    });
}

/// A lease that is handed from token to token holds the cluster as the first one did, however far the epoch has moved. The
/// threads take turns of their own accord here, which does not count as a switch.
#[test]
fn loom_qcow2_3_a_lease_that_is_handed_on() {
    check(ALL, || {
        let image = Image::new();
        let reader = {
            let image = image.clone();
            on(1, move || {
                let mut lease = enter(&image.gate);
                let found = image.look_up();
                for _ in 0..2 {
                    thread::yield_now();
                    lease = lease.again();
                }
                thread::yield_now();
                if let Some(cluster) = found {
                    assert_eq!(cluster.read(), MINE, "foreign data");
                }
            })
        };
        let retired = image.discard();
        for _ in 0..2 {
            let _ = image.gate.epoch_passed(retired);
            thread::yield_now();
        }
        image.allocate(retired);
        join(reader);
    });
}

/// With the check for the epoch left out, the model sees it.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_qcow2_3_the_model_sees_reuse_without_epochs() {
    check(ALL, || {
        let image = Image::new();
        let reader = reader(&image, 1);
        let _ = image.discard();
        image.cluster.write(FOREIGN);
        join(reader);
    });
}

/// With the cluster looked up before the pin, the model sees it.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_qcow2_3_the_model_sees_a_late_pin() {
    check(ALL, || {
        let image = Image::new();
        let reader = {
            let image = image.clone();
            on(1, move || {
                let found = image.look_up();
                let lease = enter(&image.gate);
                if let Some(cluster) = found {
                    assert_eq!(cluster.read(), MINE, "foreign data");
                }
                drop(lease);
            })
        };
        let retired = image.discard();
        image.allocate(retired);
        join(reader);
    });
}
