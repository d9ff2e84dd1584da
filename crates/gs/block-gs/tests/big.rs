//! Many nodes, and many of everything in turn: it is fast (the times are printed, not judged), and nothing is left behind.

#![allow(clippy::disallowed_methods, reason = "looks at the process's own memory")]

mod common;

use block_common::{ParentKind, Perm};
use block_gs::{GlobalOptions, GlobalState, MainLoop};
use common::{World, buffer, drivers, json_options, loose};
use std::time::Instant;

/// Open, ask, drain, change and close `count` nodes that `json` describes; print how long each took.
fn measure(what: &str, count: usize, json: impl Fn(usize) -> String) {
    let world = World::new();
    let mut times = Vec::new();
    let mut begin = Instant::now();
    let mut lap = |name: &str| {
        times.push(format!("{name} {:.1} ms", begin.elapsed().as_secs_f64() * 1e3));
        begin = Instant::now();
    };
    world.run(async {
        let mut last = None;
        for i in 0..count {
            last = Some(world.add(&json(i)).await);
        }
        lap("open");
        assert_eq!(world.gs.nodes().len(), count);
        lap("list");
        for i in 0..count {
            world.gs.find_node(&format!("n{i}")).expect("it is there");
        }
        lap("find");
        let root = world.root("root", &last.expect("there is one")).await;
        lap("attach");
        let shallow = world.gs.find_node("n50").expect("it is there");
        world.gs.attach_root(&root, Some(&shallow)).await.expect("nobody is in the way");
        assert_eq!(root.io().read(0, buffer(4096)).await.0, Ok(()));
        lap("attach and read");
        let bottom = world.gs.find_node("n0").expect("it is there");
        drop(world.gs.drain(&bottom).await);
        drop(world.gs.drain_all().await);
        lap("drain twice");
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "n0"}"#).await;
        let guard = world.gs.drain(&bottom).await;
        world.gs.replace_node(&guard, &bottom, &filter).expect("it is drained");
        drop(guard);
        lap("insert a filter at the bottom");
    });
    world.run(async { world.gs.close_all().await }).expect("everything closes");
    lap("close");
    println!("{what} of {count}: {}", times.join(", "));
    world.close();
}

#[test]
fn a_thousand_nodes_beside_each_other() {
    measure("nodes", 1000, |i| format!(r#"{{"driver": "null-co", "node-name": "n{i}"}}"#));
}

#[test]
fn a_thousand_nodes_on_one() {
    measure("users of one node", 1000, |i| match i {
        0 => r#"{"driver": "null-co", "node-name": "n0"}"#.into(),
        _ => format!(r#"{{"driver": "pass", "node-name": "n{i}", "file": "n0"}}"#),
    });
}

#[test]
fn a_thousand_nodes_on_top_of_each_other() {
    measure("a chain", 1000, |i| match i {
        0 => r#"{"driver": "null-co", "node-name": "n0"}"#.into(),
        _ => format!(r#"{{"driver": "pass", "node-name": "n{i}", "file": "n{}"}}"#, i - 1),
    });
}

/// Resident pages of this process.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("the second number")
}

/// `work` over and over takes no more memory the last times than the first times.
fn check_growth(what: &str, rounds: usize, mut work: impl FnMut(usize)) {
    (0..rounds).for_each(&mut work);
    let before = resident();
    (0..rounds * 3).for_each(&mut work);
    let grown = resident().saturating_sub(before) * 4;
    println!("{what}: {grown} KiB more after {} rounds", rounds * 3);
    assert!(grown < 3 * 1024, "{what}: {grown} KiB");
}

#[test]
fn memory_does_not_grow_with_what_was_opened_and_closed() {
    let world = World::new();
    check_growth("nodes, roots, sections, refusals", 700, |i| {
        world.run(async {
            let json = format!(r#"{{"driver": "fmt", "node-name": "top{i}", "file": {{"driver": "null-co", "node-name": "file{i}"}}}}"#);
            let node = world.open(&json).await.expect("it opens");
            let refused = format!(r#"{{"driver": "fmt", "fail": "last", "file": {{"driver": "null-co", "node-name": "x{i}"}}}}"#);
            assert!(world.open(&refused).await.is_err());
            let root = world.gs.new_root(&format!("r{i}"), ParentKind::Backend, loose(Perm::all()), &world.gs.main_io());
            world.gs.attach_root(&root, Some(&node)).await.expect("nobody is in the way");
            drop(root.io().read(0, buffer(512)).await);
            drop(world.gs.drain(&node).await);
            drop(world.gs.drain_all());
            drop(world.gs.mutate(|_| async {}));
            drop(root);
            drop(node);
            world.gs.settle().await.expect("it closes");
        });
    });
    // Failed closings that nobody asks about are not remembered for ever either: see `CLOSE_ERRORS_MAX`.
    world.close();
}

#[test]
fn block_layers_come_and_go_on_one_loop() {
    let main = MainLoop::new().expect("descriptors");
    check_growth("block layers", 100, |i| {
        let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
        drivers::register(&gs);
        if i % 2 == 0 {
            let node = main.run(gs.open(json_options(r#"{"driver": "null-co"}"#))).expect("it opens");
            drop(node);
            main.run(gs.close_all()).expect("everything closes");
        }
        drop(gs);
        main.turn();
    });
}
