//! Mutations: one after the other, to their end whoever asked, and a panic wedges nobody.

mod common;

use block_gs::NodeRef;
use common::{World, poll_once};
use std::cell::{Cell, RefCell};
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::time::Duration;

#[test]
fn mutations_run_in_the_order_of_asking_and_one_at_a_time() {
    let world = World::new();
    world.run_and_close(async {
        let log = Rc::new(RefCell::new(Vec::new()));
        let running = Rc::new(Cell::new(0));
        let mut asked = Vec::new();
        for i in 0..20u64 {
            let (log, running) = (log.clone(), running.clone());
            asked.push(world.gs.mutate(move |gs| async move {
                running.set(running.get() + 1);
                assert_eq!(running.get(), 1, "one at a time");
                // The first ones take longest.
                gs.main().sleep(Duration::from_micros(1000 - 50 * i)).await;
                log.borrow_mut().push(i);
                running.set(0);
                i
            }));
        }
        // Polled from the last to the first: asking is what counts.
        for (i, future) in asked.into_iter().enumerate().rev() {
            assert_eq!(future.await, i as u64);
        }
        assert_eq!(*log.borrow(), (0..20).collect::<Vec<_>>());
    });
}

#[test]
fn opening_takes_its_turn() {
    let world = World::new();
    world.run_and_close(async {
        let gate = Rc::new(tokio::sync::Notify::new());
        let inner = gate.clone();
        let first = world.gs.mutate(move |_| async move { inner.notified().await });
        let mut second = Box::pin(world.open(r#"{"driver": "leaf", "node-name": "a"}"#));
        assert!(poll_once(&mut second).await.is_none());
        world.pause().await;
        assert!(world.gs.nodes().is_empty() && poll_once(&mut second).await.is_none());
        // Looking, draining and closing need no turn.
        drop(world.gs.drain_all().await);
        world.gs.settle().await.expect("nothing to close");
        gate.notify_one();
        first.await;
        second.await.expect("it opens");
    });
}

#[test]
fn a_caller_who_goes_away_stops_nothing() {
    let world = World::new();
    world.run_and_close(async {
        let done = Rc::new(Cell::new(0));
        let count = |delay| {
            let done = done.clone();
            world.gs.mutate(move |gs| async move {
                gs.main().sleep(Duration::from_millis(delay)).await;
                done.set(done.get() + 1);
            })
        };
        // Never polled; polled while it runs; polled while it waits for its turn.
        drop(count(1));
        let mut running = Box::pin(count(5));
        assert!(poll_once(&mut running).await.is_none());
        let mut waiting = Box::pin(count(1));
        assert!(poll_once(&mut waiting).await.is_none());
        world.gs.main().sleep(Duration::from_millis(3)).await;
        drop((running, waiting));
        // The next one's turn comes after all of them.
        let seen = done.clone();
        assert_eq!(world.gs.mutate(move |_| async move { seen.get() }).await, 3);
    });
}

#[test]
fn a_node_that_nobody_waited_for_is_opened_and_closed() {
    let world = World::new();
    world.run_and_close(async {
        drop(world.open(r#"{"driver": "fmt", "node-name": "a", "file": {"driver": "leaf", "node-name": "b"}}"#));
        world.gs.mutate(|_| async {}).await;
        world.gs.settle().await.expect("it closes");
        assert!(world.gs.nodes().is_empty());
        assert_eq!((world.leaves.count(), world.leaf("b").closes()), (1, 1));
    });
}

#[test]
fn the_turn_is_held_for_the_whole_mutation_with_all_that_it_waits_for() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let root = world.root("root", &base).await;
        let held = base.clone();
        drop(base);
        // As a snapshot is made: open the overlay, drain, look again, commit.
        let insert = |gs: block_gs::GlobalState, name: String| async move {
            let options =
                common::json_options(&format!(r#"{{"driver": "pass", "node-name": "{name}", "file": "base"}}"#));
            let filter = gs.open_in_mutation(options).await.expect("it opens");
            let base = gs.find_node("base").expect("it is there");
            let guard = gs.drain(&base).await;
            gs.replace_node(&guard, &base, &filter).expect("it is drained");
            drop(guard);
            filter
        };
        let asked: Vec<_> = (0..5)
            .map(|i| {
                let name = format!("f{i}");
                world.gs.mutate(move |gs| insert(gs, name))
            })
            .collect();
        let mut filters: Vec<NodeRef> = Vec::new();
        for future in asked {
            filters.push(future.await);
        }
        // Each came in between the ones before it and the base.
        let mut down = Vec::new();
        let mut at = world.gs.root_node(&root).expect("it leads somewhere");
        while let Ok(Some(next)) = world.gs.child(&at, "file") {
            down.push(at.name().to_owned());
            at = next;
        }
        assert_eq!((down, at.name()), (vec!["f0".into(), "f1".into(), "f2".into(), "f3".into(), "f4".into()], "base"));
        drop(held);
    });
}

#[test]
fn a_panic_comes_out_of_the_loop_and_the_next_ones_turn_comes() {
    let world = World::new();
    let (bad, good) = (world.gs.mutate(|_| async { panic!("on purpose") }), world.gs.mutate(|_| async { 5 }));
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run(async { pending::<()>().await })));
    let message = panicked.expect_err("the panic comes out");
    assert_eq!(message.downcast_ref::<&str>(), Some(&"on purpose"));
    world.run_and_close(async {
        assert_eq!(good.await, 5);
        world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
    });
    // Whoever waits for it hears of it.
    assert!(catch_unwind(AssertUnwindSafe(|| world.main.run(bad))).is_err());
}

#[test]
fn a_mutation_that_was_not_begun_goes_with_the_loop() {
    let world = World::new();
    let touched = Rc::new(Cell::new(false));
    let seen = touched.clone();
    let waiting = world.gs.mutate(|_| pending::<()>());
    drop(world.gs.mutate(move |_| async move { seen.set(true) }));
    world.main.turn();
    let World { gs, main, .. } = world;
    drop(main);
    assert_eq!(Rc::strong_count(&touched), 1, "what it captured is gone");
    assert!(!touched.get());
    drop((waiting, gs));
}
