//! A thousand nodes: how long it takes to open them, to ask about them, to drain, change and close them is printed, not judged.

mod common;

use common::{World, buffer};
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
        world.gs.drop_filter(&filter).await.expect("nothing is in the way");
        lap("drop it again");
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
