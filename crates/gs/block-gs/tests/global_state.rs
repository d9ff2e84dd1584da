//! The capability: bound to its thread, and independent of every other one in the process.

mod common;

use block_common::{ParentKind, Perm};
use block_gs::{DrainGuard, Event, GlobalState, GraphError, MainHandle, MainLoop, NodeRef, RootRef, Ticket};
use common::load::Load;
use common::{World, loose, message};
use std::cell::Cell;

/// Does not compile when `$type` implements `$trait`: then there are two candidates for `some`.
macro_rules! assert_not {
    ($($type:ty: $trait:path),* $(,)?) => {$(
        const _: fn() = || {
            trait Ambiguous<A> {
                fn some() {}
            }
            impl<T: ?Sized> Ambiguous<()> for T {}
            struct Twice;
            impl<T: ?Sized + $trait> Ambiguous<Twice> for T {}
            let _ = <$type as Ambiguous<_>>::some;
        };
    )*};
}

assert_not! {
    GlobalState: Send, GlobalState: Sync,
    MainLoop: Send, MainLoop: Sync,
    MainHandle: Send, MainHandle: Sync,
    NodeRef: Send, NodeRef: Sync,
    RootRef: Send, RootRef: Sync,
    DrainGuard: Send, DrainGuard: Sync,
    Ticket: Send,
    DrainGuard: Clone, RootRef: Clone,
}

#[test]
fn block_layers_on_several_threads_do_not_know_each_other() {
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                let world = World::new();
                world.run_and_close(async {
                    // The same names everywhere.
                    let node = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
                    let root = world.root("drive", &node).await;
                    let load = Load::start(&[root.io().clone()], 1);
                    for _ in 0..50 {
                        let guard = world.gs.drain_all().await;
                        world.pause().await;
                        drop(guard);
                    }
                    load.finish();
                    assert_eq!(world.gs.nodes().len(), 1);
                });
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("no panic");
    }
}

#[test]
fn two_block_layers_on_one_loop_do_not_know_each_other() {
    let one = World::new();
    let two = World::on(MainLoop::new().expect("descriptors"));
    let (a, b) = (
        one.run(async { one.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await }),
        two.run(async { two.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await }),
    );
    assert!(!a.same(&b));
    // A drain here is none there.
    one.run(async {
        let guard = one.gs.drain_all().await;
        assert!(one.is_quiesced(&a) && !two.is_quiesced(&b));
        drop(guard);
        assert!(!one.is_quiesced(&a));
    });
    assert_eq!(one.gs.take_events().is_some(), two.gs.take_events().is_some());
    drop((a, b));
    one.close();
    assert_eq!(two.gs.nodes().len(), 1);
    two.close();
}

#[test]
fn handles_of_another_block_layer_name_nothing_here() {
    let (one, two) = (World::new(), World::new());
    one.run(async {
        let a = one.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let filter = one.add(r#"{"driver": "pass", "node-name": "f", "file": "a"}"#).await;
        let root = one.root("drive", &filter).await;
        let foreign = two.gs.clone();
        let (b, other) = two.run(async {
            let b = two.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
            let other = two.gs.new_root("drive", ParentKind::Backend, loose(Perm::all()), &two.gs.main_io());
            (b, other)
        });
        let before = (one.graph(), two.graph());

        let guard = one.gs.drain(&filter).await;
        let not_found = "Cannot find device='a' nor node-name='a'";
        assert_eq!(message(one.gs.replace_child(&guard, &filter, "file", Some(&b))), not_found);
        assert_eq!(message(one.gs.replace_node(&guard, &filter, &b)), not_found);
        assert_eq!(message(one.gs.replace_node(&guard, &b, &filter)), not_found);
        assert_eq!(message(one.gs.child(&b, "file")), not_found);
        assert_eq!(message(one.gs.node_info(&b)), not_found);
        assert_eq!(message(one.gs.set_frozen(&b, "file", true)), not_found);
        assert_eq!(message(one.gs.with_control(&b, |_: &mut common::drivers::LeafControl| ())), not_found);
        assert_eq!(message(one.gs.attach_root(&root, Some(&b)).await), not_found);
        assert!(matches!(one.gs.attach_root(&other, Some(&a)).await, Err(GraphError::ShuttingDown)));
        assert_eq!(message(one.gs.close(b.clone()).await), not_found);
        assert!(one.gs.check_root(&other).is_err() && two.gs.check_root(&other).is_ok());
        one.gs.set_monitor_owned(&b, false);

        // A guard of one proves nothing to the other.
        let stranger = foreign.drain_all().await;
        drop(guard);
        assert!(matches!(one.gs.replace_child(&stranger, &filter, "file", None), Err(GraphError::NotDrained(_))));
        let both = one.gs.drain(&filter).await;
        assert!(matches!(one.gs.replace_child(&stranger, &filter, "file", None), Err(GraphError::NotDrained(_))));
        assert!(!stranger.covers(&filter) && both.covers(&filter));
        drop((stranger, both));

        // A drain of a node that is not ours drains nothing.
        let nothing = one.gs.drain(&b).await;
        assert!(!nothing.covers(&b) && !one.is_quiesced(&a) && !two.is_quiesced(&b));
        drop(nothing);
        assert_eq!((one.graph(), two.graph()), before);
    });
    one.close();
    two.close();
}

#[test]
fn extensions_are_one_of_a_type_for_each_block_layer() {
    #[derive(Default)]
    struct Mine(Cell<u32>);
    let (one, two) = (World::new(), World::new());
    one.gs.extension::<Mine>().0.set(7);
    assert_eq!(one.gs.extension::<Mine>().0.get(), 7);
    assert_eq!(two.gs.extension::<Mine>().0.get(), 0);
}

#[test]
fn drivers_are_known_by_their_names() {
    let world = World::new();
    assert_eq!(world.gs.driver_names(), ["fmt", "leaf", "null-co", "pass"]);
    assert_eq!(message(world.gs.driver("qcow9").map(|_| ())), "Unknown driver 'qcow9'");
}

#[test]
fn events_are_heard_in_order_and_cost_no_more_than_stated() {
    let world = World::new();
    let sender = world.gs.event_sender();
    let event = |exceeded| Event::WriteThreshold { node: "n".into(), exceeded, threshold: 0 };
    // Nobody listens: the oldest are lost, the newest are kept.
    for i in 0..10_000 {
        sender.send(event(i));
    }
    let mut events = world.gs.take_events().expect("the first caller gets it");
    assert!(world.gs.take_events().is_none());
    let mut count = 0;
    let mut last = None;
    while let Some(next) = events.try_next() {
        (count, last) = (count + 1, Some(next));
    }
    assert!(count < 5000);
    assert_eq!(last, Some(event(9999)));
    // From another thread, to one who waits.
    let heard = world.run(async {
        let waiting = world.gs.main().spawn(async move { (events.next().await, events) });
        world.pause().await;
        let inner = sender.clone();
        std::thread::spawn(move || inner.send(event(1))).join().expect("no panic");
        let (heard, events) = waiting.join().await;
        // After the listener is gone, events are forgotten.
        drop(events);
        sender.send(event(2));
        heard
    });
    assert_eq!(heard, Some(event(1)));
}

#[test]
fn events_end_with_the_last_who_can_tell() {
    let main = MainLoop::new().expect("descriptors");
    let world = World::on(main);
    let World { gs, main, .. } = world;
    let mut events = gs.take_events().expect("events");
    let sender = gs.event_sender();
    drop(gs);
    sender.send(Event::Resized { node: "n".into(), length: 1 });
    std::thread::spawn(move || drop(sender)).join().expect("no panic");
    let (first, second) = main.run(async { (events.next().await, events.next().await) });
    assert_eq!((first, second), (Some(Event::Resized { node: "n".into(), length: 1 }), None));
}

#[test]
fn a_block_layer_that_is_dropped_open_is_a_power_cut() {
    let world = World::new();
    let leaf = world.run(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let root = world.root("drive", &node).await;
        // The device outlives the block layer.
        (world.leaf("a"), root.io().clone())
    });
    let World { gs, main, .. } = world;
    let (leaf, root) = leaf;
    drop(gs);
    main.turn();
    assert_eq!((leaf.flushes(), leaf.closes()), (0, 0), "no I/O");
    let result = main.run(root.flush());
    assert!(result.is_err(), "{result:?}");
    drop(root);
    assert!(leaf.is_dropped());
    drop(main);
}

#[test]
fn a_long_chain_that_is_dropped_open_goes() {
    let world = World::new();
    world.run(async {
        world.add(r#"{"driver": "leaf", "node-name": "n0"}"#).await;
        for i in 1..1000 {
            let below = i - 1;
            world.add(&format!(r#"{{"driver": "pass", "node-name": "n{i}", "file": "n{below}"}}"#)).await;
        }
    });
    let leaf = world.leaf("n0");
    let World { gs, main, .. } = world;
    drop(gs);
    main.turn();
    assert!(leaf.is_dropped());
}
