//! Nothing is left behind by what was opened, refused, drained and closed, nor by whole block layers.

#![allow(clippy::disallowed_methods, reason = "looks at the process's own memory")]

mod common;

use block_common::{ParentKind, Perm};
use block_gs::{GlobalOptions, GlobalState, MainLoop};
use common::{World, buffer, drivers, json_options, loose};

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
fn memory_does_not_grow() {
    // One after the other: the memory is the whole process's.
    with_what_was_opened_and_closed();
    with_block_layers_that_come_and_go();
}

fn with_what_was_opened_and_closed() {
    let world = World::new();
    check_growth("nodes, roots, sections, refusals", 700, |i| {
        world.run(async {
            let json = format!(
                r#"{{"driver": "fmt", "node-name": "top{i}", "file": {{"driver": "null-co", "node-name": "file{i}"}}}}"#
            );
            let node = world.open(&json).await.expect("it opens");
            let refused =
                format!(r#"{{"driver": "fmt", "fail": "last", "file": {{"driver": "null-co", "node-name": "x{i}"}}}}"#);
            assert!(world.open(&refused).await.is_err());
            let root =
                world.gs.new_root(&format!("r{i}"), ParentKind::Backend, loose(Perm::all()), &world.gs.main_io());
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

fn with_block_layers_that_come_and_go() {
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
