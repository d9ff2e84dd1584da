//! Draining: what is closed, what is waited for, what is not, and how it ends.

mod common;

use block_common::{IoError, ParentKind, Perm, RequestFlags};
use block_gs::NodeRef;
use block_io::GateState;
use common::load::Load;
use common::{World, buffer, loose, poll_once};
use std::future::Future;
use std::pin::Pin;

/// `leaf` below `mid` below `top`, all slow, and the three of them.
async fn chain(world: &World) -> [NodeRef; 3] {
    let leaf = world.add(r#"{"driver": "leaf", "node-name": "leaf"}"#).await;
    let mid = world.add(r#"{"driver": "pass", "node-name": "mid", "file": "leaf", "slow": true}"#).await;
    let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "mid", "slow": true}"#).await;
    [leaf, mid, top]
}

type Reading = Pin<Box<dyn Future<Output = Result<(), IoError>>>>;

/// A read that is under way as soon as this is polled.
fn read(root: &block_io::Root) -> Reading {
    let root = root.clone();
    Box::pin(async move { root.read(0, buffer(512)).await.0 })
}

#[test]
fn drain_1_every_gate_above_is_closed_before_anything_is_waited_for() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, mid, top] = chain(&world).await;
        let beside = world.add(r#"{"driver": "pass", "node-name": "beside", "file": {"driver": "leaf"}}"#).await;
        let root = world.root("root", &top).await;
        let other = world.root("other", &beside).await;
        let closed = |root: &block_gs::RootRef| root.io().state().contains(GateState::QUIESCED);

        // Before the first poll.
        let drain = world.gs.drain(&mid);
        assert!(world.is_quiesced(&mid) && world.is_quiesced(&top) && closed(&root));
        assert!(!world.is_quiesced(&leaf) && !world.is_quiesced(&beside) && !closed(&other));
        let guard = drain.await;
        assert!(guard.covers(&mid) && guard.covers(&top) && !guard.covers(&leaf) && !guard.covers(&beside));
        drop(guard);
        assert!(!world.is_quiesced(&mid) && !world.is_quiesced(&top) && !closed(&root));

        // While a request is in flight: nothing gets past the root.
        world.leaf("leaf").hold(true);
        let mut first = read(root.io());
        assert!(poll_once(&mut first).await.is_none());
        world.until("the request is in the leaf", || world.leaf("leaf").in_flight() == 1).await;
        let mut drain = Box::pin(world.gs.drain(&leaf));
        assert!(poll_once(&mut drain).await.is_none());
        let mut second = read(root.io());
        assert!(poll_once(&mut second).await.is_none());
        world.pause().await;
        assert_eq!(world.leaf("leaf").began(), 1, "the second one waits at the root");
        assert!(poll_once(&mut drain).await.is_none());
        world.leaf("leaf").hold(false);
        let guard = drain.await;
        assert_eq!((world.leaf("leaf").began(), world.leaf("leaf").in_flight()), (1, 0));
        assert_eq!((leaf.io().in_flight(), mid.io().in_flight(), top.io().in_flight()), (0, 0, 0));
        assert_eq!(first.await, Ok(()));
        drop(guard);
        assert_eq!(second.await, Ok(()));
    });
}

#[test]
fn drain_1_sections_nest_and_overlap_in_any_order() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, mid, top] = chain(&world).await;
        let root = world.root("root", &top).await;
        let is_open = || root.io().state() == GateState::empty();
        for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
            let mut guards = [
                Some(world.gs.drain(&leaf).await),
                Some(world.gs.drain(&leaf).await),
                Some(world.gs.drain_all().await),
                Some(world.gs.drain(&top).await),
            ];
            for (at, i) in order.into_iter().enumerate() {
                let mut waiting = read(root.io());
                assert!(poll_once(&mut waiting).await.is_none());
                world.pause().await;
                assert!(!is_open() && world.leaf("leaf").in_flight() == 0);
                guards[i] = None;
                // The last one opens; whatever is left below covers the top as well.
                assert_eq!(is_open(), at == 3);
                assert!(at < 3 || waiting.await.is_ok());
            }
            assert!(!world.is_quiesced(&leaf) && !world.is_quiesced(&mid) && !world.is_quiesced(&top));
        }
    });
}

#[test]
fn drain_1_a_node_is_busy_as_long_as_anything_it_started_is() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, mid, top] = chain(&world).await;
        let root = world.root("root", &top).await;
        world.leaf("leaf").hold(true);
        let reading = world.gs.main().spawn(read(root.io()));
        world.until("the request is in the leaf", || world.leaf("leaf").in_flight() == 1).await;
        // Two levels above where the request is.
        let mut top_drain = Box::pin(world.gs.drain(&top));
        let mut mid_drain = Box::pin(world.gs.drain(&mid));
        let mut leaf_drain = Box::pin(world.gs.drain(&leaf));
        world.pause().await;
        assert!(poll_once(&mut top_drain).await.is_none());
        assert!(poll_once(&mut mid_drain).await.is_none());
        assert!(poll_once(&mut leaf_drain).await.is_none());
        world.leaf("leaf").hold(false);
        drop((leaf_drain.await, mid_drain.await, top_drain.await));
        assert_eq!(reading.join().await, Ok(()));
    });
}

#[test]
fn drain_1_a_drain_of_everything_is_that() {
    let world = World::new();
    world.run_and_close(async {
        let nodes = chain(&world).await;
        let alone = world.add(r#"{"driver": "leaf", "node-name": "alone"}"#).await;
        let root = world.root("root", &nodes[2]).await;
        let empty = world.gs.new_root("empty", ParentKind::Backend, loose(Perm::all()), &world.gs.main_io());
        let guard = world.gs.drain_all().await;
        assert!(nodes.iter().chain([&alone]).all(|node| world.is_quiesced(node) && guard.covers(node)));
        assert!([&root, &empty].iter().all(|root| root.io().state().contains(GateState::QUIESCED)));
        // What comes now is closed from the start, and covered.
        let late = world.add(r#"{"driver": "leaf", "node-name": "late"}"#).await;
        let late_root = world.gs.new_root("late", ParentKind::Backend, loose(Perm::all()), &world.gs.main_io());
        assert!(world.is_quiesced(&late) && guard.covers(&late));
        assert!(late_root.io().state().contains(GateState::QUIESCED));
        drop(guard);
        assert!(!world.is_quiesced(&late) && late_root.io().state().is_empty());
    });
}

#[test]
fn a_drain_that_is_given_up_is_undone() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, _, top] = chain(&world).await;
        let root = world.root("root", &top).await;
        // Never polled.
        drop(world.gs.drain(&leaf));
        assert!(!world.is_quiesced(&top));
        world.leaf("leaf").hold(true);
        let mut first = read(root.io());
        assert!(poll_once(&mut first).await.is_none());
        world.until("the request is in the leaf", || world.leaf("leaf").in_flight() == 1).await;
        // While it waits; one that goes on waiting keeps the gates closed.
        let mut given_up = Box::pin(world.gs.drain(&leaf));
        let mut kept = Box::pin(world.gs.drain(&leaf));
        assert!(poll_once(&mut given_up).await.is_none() && poll_once(&mut kept).await.is_none());
        let mut second = read(root.io());
        assert!(poll_once(&mut second).await.is_none());
        drop(given_up);
        world.pause().await;
        assert!(world.is_quiesced(&top) && world.leaf("leaf").began() == 1);
        drop(kept);
        assert!(!world.is_quiesced(&top));
        world.until("the second one goes on", || world.leaf("leaf").in_flight() == 2).await;
        world.leaf("leaf").hold(false);
        assert_eq!((first.await, second.await), (Ok(()), Ok(())));
    });
}

#[test]
fn parents_that_attach_to_a_drained_node_are_closed() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, _, top] = chain(&world).await;
        let guard = world.gs.drain(&leaf).await;
        let late = world.gs.new_root("late", ParentKind::Backend, loose(Perm::all()), &world.gs.main_io());
        assert!(late.io().state().is_empty(), "it leads nowhere");
        world.gs.attach_root(&late, Some(&top)).await.expect("attaching does not wait for the section's end");
        assert!(late.io().state().contains(GateState::QUIESCED));
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "top"}"#).await;
        assert!(world.is_quiesced(&filter) && guard.covers(&filter));
        let mut reading = read(late.io());
        assert!(poll_once(&mut reading).await.is_none());
        world.pause().await;
        assert_eq!(world.leaf("leaf").began(), 0);
        // One that is taken away is open again, and its request finds nothing.
        world.gs.attach_root(&late, None).await.expect("detaching neither");
        assert!(late.io().state().is_empty());
        assert_eq!(reading.await, Err(IoError::NO_MEDIUM));
        drop(guard);
        assert!(!world.is_quiesced(&filter));
    });
}

#[test]
fn nodes_may_go_while_they_are_drained() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, ..] = chain(&world).await;
        let filter =
            world.open(r#"{"driver": "pass", "node-name": "filter", "file": "leaf"}"#).await.expect("it opens");
        let (below, above) = (world.gs.drain(&leaf).await, world.gs.drain(&filter).await);
        world.gs.close(filter).await.expect("closing does not wait for the section's end");
        assert!(world.gs.find_node("filter").is_err());
        drop(above);
        assert!(world.is_quiesced(&leaf));
        // The drained node itself, with all above it.
        let alone = world.open(r#"{"driver": "leaf", "node-name": "alone"}"#).await.expect("it opens");
        let guard = world.gs.drain(&alone).await;
        world.gs.close(alone).await.expect("it closes");
        guard.settled().await;
        drop((guard, below));
        assert!(!world.is_quiesced(&leaf));
        // A root, too.
        let root = world.root("root", &leaf).await;
        let guard = world.gs.drain_root(&root).await;
        world.gs.close_root(root).await;
        drop(guard);
    });
}

#[test]
fn a_drain_waits_for_the_flush_of_a_node_that_is_being_closed_above() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, ..] = chain(&world).await;
        let filter =
            world.open(r#"{"driver": "pass", "node-name": "filter", "file": "leaf"}"#).await.expect("it opens");
        world.write(&filter).await;
        world.leaf("leaf").hold(true);
        drop(filter);
        world.until("the flush is in the leaf", || world.leaf("leaf").flushes() == 1).await;
        let mut drain = Box::pin(world.gs.drain(&leaf));
        world.pause().await;
        assert!(poll_once(&mut drain).await.is_none(), "the filter's flush is on the leaf");
        world.leaf("leaf").hold(false);
        let guard = drain.await;
        assert_eq!(leaf.io().in_flight(), 0);
        // And one that begins within the section does not wait for its end.
        let filter =
            world.open(r#"{"driver": "pass", "node-name": "filter", "file": "leaf"}"#).await.expect("it opens");
        world.gs.close(filter).await.expect("it closes");
        drop(guard);
    });
}

#[test]
fn callers_who_do_not_poll_hold_up_no_drain() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, _, top] = chain(&world).await;
        let root = world.root("root", &top).await;
        world.leaf("leaf").hold(true);
        let mut readings: Vec<_> = (0..40).map(|_| read(root.io())).collect();
        for reading in &mut readings {
            assert!(poll_once(reading).await.is_none());
        }
        world.until("all are in the leaf", || world.leaf("leaf").in_flight() == 40).await;
        // Half of the callers go away, the others stay and do nothing.
        readings.truncate(20);
        world.leaf("leaf").hold(false);
        drop(world.gs.drain(&leaf).await);
        assert_eq!(world.leaf("leaf").ended(), 40);
        for reading in readings {
            assert_eq!(reading.await, Ok(()));
        }
    });
}

#[test]
fn drain_4_requests_that_are_held_back_are_not_counted_and_all_resume() {
    let world = World::new();
    world.run_and_close(async {
        let [leaf, mid, top] = chain(&world).await;
        let root = world.root("root", &top).await;
        let guard = world.gs.drain(&leaf).await;
        let mut held = Vec::new();
        for i in 0..100 {
            let root = root.io().clone();
            let request = async move {
                match i % 4 {
                    0 => root.write(0, buffer(512), RequestFlags::empty()).await.0,
                    1 => root.flush().await,
                    2 => root.block_status(0, 512).await.map(drop),
                    _ => root.read(0, buffer(512)).await.0,
                }
            };
            held.push(world.gs.main().spawn(request));
        }
        world.pause().await;
        assert_eq!(root.io().in_flight(), 0);
        assert_eq!((world.leaf("leaf").began(), world.leaf("leaf").flushes()), (0, 0));
        // They keep no other section from beginning, and none of them slips through between two.
        let next = world.gs.drain_all().await;
        drop(guard);
        world.pause().await;
        assert_eq!(world.leaf("leaf").began() + mid.io().in_flight() + top.io().in_flight(), 0);
        drop(next);
        for request in held {
            assert_eq!(request.join().await, Ok(()));
        }
        assert_eq!((world.leaf("leaf").ended(), world.leaf("leaf").flushes()), (50, 25));
    });
}

#[test]
fn drain_5_requests_that_are_held_back_keep_nothing_from_ending() {
    let world = World::new();
    world.run(async {
        let [leaf, _, top] = chain(&world).await;
        let root = world.root("root", &top).await;
        let guard = world.gs.drain(&leaf).await;
        let held: Vec<_> = (0..10).map(|_| world.gs.main().spawn(read(root.io()))).collect();
        world.pause().await;
        // A section of the same, of the root alone, a change of what the root leads to.
        drop(world.gs.drain(&leaf).await);
        drop(world.gs.drain_root(&root).await);
        let other = world.add(r#"{"driver": "leaf", "node-name": "other"}"#).await;
        world.gs.attach_root(&root, Some(&other)).await.expect("nothing is in flight");
        for request in held {
            assert_eq!(request.join().await, Ok(()));
        }
        assert_eq!((world.leaf("leaf").began(), world.leaf("other").ended()), (0, 10));
        // And the end of everything, with a section that is still there.
        world.gs.attach_root(&root, Some(&top)).await.expect("nothing is in flight");
        let held: Vec<_> = (0..10).map(|_| world.gs.main().spawn(read(root.io()))).collect();
        world.pause().await;
        drop((other, top, leaf));
        world.gs.close_all().await.expect("everything closes");
        for request in held {
            assert_eq!(request.join().await, Err(IoError::CLOSED));
        }
        drop(guard);
    });
    world.close();
}

#[test]
fn sections_of_one_root_are_its_own_business() {
    let world = World::new();
    world.run_and_close(async {
        let [.., top] = chain(&world).await;
        let (one, two) = (world.root("one", &top).await, world.root("two", &top).await);
        let guard = world.gs.drain_root(&one).await;
        assert!(!world.is_quiesced(&top) && !guard.covers(&top));
        let mut held = read(one.io());
        assert!(poll_once(&mut held).await.is_none());
        assert_eq!(read(two.io()).await, Ok(()));
        assert!(poll_once(&mut held).await.is_none());
        drop(guard);
        assert_eq!(held.await, Ok(()));
    });
}

#[test]
fn drain_1_and_4_hold_under_load_from_two_threads() {
    for (fast, slow) in [(true, false), (true, true), (false, false)] {
        let world = World::new();
        world.run_and_close(async {
            let json = format!(r#"{{"driver": "leaf", "node-name": "leaf", "fast": {fast}}}"#);
            let leaf = world.add(&json).await;
            let json = format!(r#"{{"driver": "pass", "node-name": "top", "file": "leaf", "slow": {slow}}}"#);
            let top = world.add(&json).await;
            let (one, two) = (world.root("one", &top).await, world.root("two", &leaf).await);
            let load = Load::start(&[one.io().clone(), two.io().clone()], 2);
            world.until("the load is there", || load.completed() > 100).await;
            for i in 0..60 {
                let guard = match i % 3 {
                    0 => world.gs.drain(&leaf).await,
                    1 => world.gs.drain_all().await,
                    _ => {
                        // One after the other, with no gap between.
                        let first = world.gs.drain(&leaf).await;
                        let second = world.gs.drain(&leaf).await;
                        drop(first);
                        second
                    }
                };
                let engine = world.leaf("leaf");
                let before = engine.began();
                assert_eq!(engine.ended(), before, "a request is in the leaf");
                for node in [&leaf, &top] {
                    assert_eq!(node.io().in_flight(), 0);
                }
                world.gs.main().sleep(std::time::Duration::from_micros(200)).await;
                assert_eq!(engine.began(), before, "a request got through");
                drop(guard);
                if i % 5 == 0 {
                    let seen = load.completed();
                    world.until("the load goes on", || load.completed() > seen + 50).await;
                }
            }
            let outcome = load.finish();
            assert_eq!(outcome.completed, world.leaf("leaf").ended());
        });
    }
}

#[test]
fn drain_3_many_at_once_do_not_wait_for_each_other() {
    let world = World::new();
    world.run_and_close(async {
        let nodes = chain(&world).await;
        let root = world.root("root", &nodes[2]).await;
        let load = Load::start(&[root.io().clone()], 1);
        let mut sections = Vec::new();
        for i in 0..50 {
            let (gs, node) = (world.gs.clone(), nodes[i % 3].clone());
            sections.push(world.gs.main().spawn(async move {
                for k in 0..10u64 {
                    let guard =
                        if (i as u64 + k).is_multiple_of(4) { gs.drain_all().await } else { gs.drain(&node).await };
                    gs.main().sleep(std::time::Duration::from_micros(k * 10)).await;
                    drop(guard);
                }
            }));
        }
        for section in sections {
            section.join().await;
        }
        assert!(!world.is_quiesced(&nodes[0]) && !world.is_quiesced(&nodes[2]));
        let seen = load.completed();
        world.until("the load goes on", || load.completed() > seen + 50).await;
        load.finish();
    });
}
