//! What the main loop asks of nodes by itself: flushes of all of them, the storage that they take; and walks down the graph.

mod common;

use block_common::{IoError, ParentKind, Perm, PermPair};
use block_gs::GraphError;
use common::{World, loose, message, poll_once};

#[test]
fn every_node_that_was_written_is_flushed() {
    let world = World::new();
    world.run(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a", "fast": true}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b", "fast": true}"#).await;
        world.add(r#"{"driver": "leaf", "node-name": "ro", "read-only": true, "fail-flush": 5}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "a"}"#).await;
        let flushes = || (world.leaf("a").flushes(), world.leaf("b").flushes());
        world.gs.flush_all().await.expect("nothing was written");
        assert_eq!(flushes(), (0, 0));
        world.write(&filter).await;
        world.write(&b).await;
        world.gs.flush_all().await.expect("it flushes");
        assert_eq!(flushes(), (1, 1), "once, though the filter flushes it as well");
        // One that fails keeps the others from nothing.
        world.leaf("a").fail_flush(28);
        world.write(&filter).await;
        world.write(&b).await;
        assert_eq!(message(world.gs.flush_all().await), "Could not flush 'filter': No space left on device");
        assert_eq!(world.leaf("b").flushes(), 2);
        world.leaf("a").fail_flush(0);
        // A drained section holds nothing up, and waits for what is under way.
        world.write(&b).await;
        world.leaf("b").hold(true);
        let mut flushing = Box::pin(world.gs.flush_all());
        assert!(poll_once(&mut flushing).await.is_none());
        let mut drained = Box::pin(world.gs.drain(&b));
        world.pause().await;
        assert!(poll_once(&mut flushing).await.is_none());
        assert!(poll_once(&mut drained).await.is_none());
        world.leaf("b").hold(false);
        flushing.await.expect("it flushes");
        let section = drained.await;
        world.gs.flush_all().await.expect("a section holds nothing up");
        drop((section, a));
    });
    world.close();
}

#[test]
fn a_node_that_cannot_tell_its_storage_says_so() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "disk"}"#).await;
        for node in [&disk, &filter] {
            let expected = format!("Could not get the allocated size of '{}': {}", node.name(), IoError::UNSUPPORTED);
            assert_eq!(message(world.gs.allocated_size(node).await), expected);
        }
    });
}

#[test]
fn walks_skip_filters_and_follow_what_stands_for_a_node() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let low = world.add(r#"{"driver": "pass", "node-name": "low", "file": "disk"}"#).await;
        let format = world.add(r#"{"driver": "fmt", "node-name": "format", "file": "low"}"#).await;
        let mid = world.add(r#"{"driver": "pass", "node-name": "mid", "file": "format"}"#).await;
        let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "mid"}"#).await;
        for (from, to) in [(&top, &format), (&mid, &format), (&format, &format), (&low, &disk), (&disk, &disk)] {
            assert!(world.gs.skip_filters(from).same(to), "{from:?}");
        }
        let mut chain = vec![top.clone()];
        while let Some(child) = world.gs.primary_child(chain.last().expect("one")).expect("it is there") {
            chain.push(child);
        }
        let names: Vec<_> = chain.iter().map(block_gs::NodeRef::name).collect();
        assert_eq!(names, ["top", "mid", "format", "low", "disk"]);
        let section = world.gs.drain(&low).await;
        world.gs.replace_child(&section, &low, "file", None).expect("nobody is in the way");
        drop(section);
        assert!(world.gs.skip_filters(&low).same(&low));
    });
}

/// What the edge called `file` of a node asks for and shares.
fn asked(world: &World, node: &block_gs::NodeRef) -> PermPair {
    world.info(node).children.iter().find(|(name, ..)| name == "file").expect("there is such an edge").2
}

// Scenario: an act of a driver's own needs more than its users do, is refused where that is in somebody's way, and gives it back.
#[test]
fn an_act_asks_for_more_and_gives_it_back() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "disk"}"#).await;
        let before = world.graph();
        let writes = PermPair::new(Perm::WRITE, Perm::all() - Perm::WRITE);
        let act = world.gs.ask_more(&filter, "file", writes).expect("nobody is in the way");
        let during = asked(&world, &filter);
        assert!(during.perm.contains(Perm::WRITE) && !during.shared.contains(Perm::WRITE), "{during}");
        // One at a time, and who comes then is refused as if a user asked for it.
        let second = world.gs.ask_more(&filter, "file", writes);
        assert!(matches!(&second, Err(GraphError::InUse(node)) if node == "filter"), "{second:?}");
        let other = world.gs.new_root("other", ParentKind::Backend, loose(Perm::WRITE), &world.gs.main_io());
        let refused = message(world.gs.attach_root(&other, Some(&disk)).await);
        assert_eq!(
            refused,
            "Permission conflict on node 'disk': permissions 'write' are both required by block device 'other' (uses node 'disk' as 'root' child) \
             and unshared by node 'filter' (uses node 'disk' as 'file' child)."
        );
        // What its users ask for beside comes and goes without it.
        let reader = world.root("reader", &filter).await;
        world.gs.close_root(reader).await;
        assert!(asked(&world, &filter).perm.contains(Perm::WRITE));
        drop(act);
        assert_eq!(world.graph(), before);
        world.gs.attach_root(&other, Some(&disk)).await.expect("it is over");
        // Now somebody else is first.
        let before = world.graph();
        let refused = message(world.gs.ask_more(&filter, "file", writes));
        assert_eq!(
            refused,
            "Permission conflict on node 'disk': permissions 'write' are both required by block device 'other' (uses node 'disk' as 'root' child) \
             and unshared by node 'filter' (uses node 'disk' as 'file' child)."
        );
        assert_eq!(world.graph(), before, "nothing has changed");
        drop(world.gs.ask_more(&filter, "file", loose(Perm::WRITE)).expect("who shares it gets it"));
        world.gs.close_root(other).await;
        let missing = world.gs.ask_more(&filter, "backing", writes);
        assert!(matches!(missing, Err(GraphError::NoSuchEdge { .. })), "{missing:?}");
    });
}

#[test]
fn an_act_on_a_read_only_file_is_refused_and_one_outlives_its_node() {
    let world = World::new();
    world.run_and_close(async {
        world.add(r#"{"driver": "leaf", "node-name": "ro", "read-only": true}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "ro", "read-only": true}"#).await;
        let before = world.graph();
        assert_eq!(message(world.gs.ask_more(&filter, "file", loose(Perm::WRITE))), "Block node 'ro' is read-only");
        assert_eq!(world.graph(), before);
        // The act still has the node when everybody else has let it go.
        let act = world.gs.ask_more(&filter, "file", loose(Perm::CONSISTENT_READ)).expect("reading is allowed");
        world.gs.set_monitor_owned(&filter, false);
        drop(filter);
        drop(act);
        world.gs.settle().await.expect("it closes");
        assert_eq!(world.gs.nodes().len(), 1);
    });
}
