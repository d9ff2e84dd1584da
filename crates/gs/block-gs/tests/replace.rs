//! Repointing: what it needs, what it refuses, and that no request is lost or sees the old child again, under load.

mod common;

use block_common::{IoError, ParentKind, Perm, PermPair};
use block_gs::{GraphError, GraphResult};
use common::load::Load;
use common::{World, buffer, loose, message};

/// The change is refused with `expected`, and nothing has changed.
fn refused(world: &World, result: GraphResult<()>, before: &[String], expected: &str) {
    assert_eq!(message(result), expected);
    assert_eq!(world.graph(), before, "{expected}");
}

#[test]
fn a_child_is_replaced_where_it_was_drained() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.open(r#"{"driver": "leaf", "node-name": "a"}"#).await.expect("it opens");
        let b = world.open(r#"{"driver": "leaf", "node-name": "b"}"#).await.expect("it opens");
        let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "a"}"#).await;
        let root = world.root("root", &top).await;
        let guard = world.gs.drain(&top).await;
        world.gs.replace_child(&guard, &top, "file", Some(&b)).expect("it is drained");
        drop(guard);
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        assert_eq!((world.leaf("a").ended(), world.leaf("b").ended()), (0, 1));
        assert!(world.info(&a).parents.is_empty());
        assert_eq!(world.info(&b).parents, ["node 'top' (uses node 'b' as 'file' child)"]);
        // The old one closes when its last user leaves; nobody asks it for anything but its flush.
        drop((a, b));
        world.gs.settle().await.expect("it closes");
        assert_eq!((world.leaf("a").closes(), world.leaf("b").closes()), (1, 0));
        assert!(world.leaf("a").is_dropped(), "nobody holds its memory");
        // Nowhere, and back.
        let b = world.gs.find_node("b").expect("top holds it");
        let guard = world.gs.drain(&top).await;
        world.gs.replace_child(&guard, &top, "file", None).expect("it is drained");
        drop(guard);
        assert_eq!(root.io().read(0, buffer(512)).await.0, Err(IoError::NO_MEDIUM));
        let guard = world.gs.drain(&top).await;
        world.gs.replace_child(&guard, &top, "file", Some(&b)).expect("it is drained");
        drop(guard);
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
    });
}

#[test]
fn a_change_needs_the_guard_of_a_section_that_covers_it() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let mid = world.add(r#"{"driver": "pass", "node-name": "mid", "file": "a"}"#).await;
        let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "mid"}"#).await;
        let before = world.graph();
        let elsewhere = world.gs.drain(&b).await;
        let drained_b = world.graph();
        refused(
            &world,
            world.gs.replace_child(&elsewhere, &mid, "file", Some(&b)),
            &drained_b,
            "node 'mid' is not drained",
        );
        refused(&world, world.gs.replace_node(&elsewhere, &mid, &a), &drained_b, "node 'top' is not drained");
        // Somebody else drains it; this guard still does not say so.
        let other = world.gs.drain(&a).await;
        let drained = world.graph();
        refused(
            &world,
            world.gs.replace_child(&elsewhere, &mid, "file", Some(&b)),
            &drained,
            "node 'mid' is not drained",
        );
        // A section above the parent does not cover it.
        let above = world.gs.drain(&top).await;
        refused(&world, world.gs.replace_child(&above, &mid, "file", Some(&b)), &drained, "node 'mid' is not drained");
        // A section that has not begun yet is no guard: it has only a future. One of the child's covers its parents.
        world.gs.replace_child(&other, &mid, "file", Some(&b)).expect("covered from below");
        world.gs.replace_child(&elsewhere, &mid, "file", Some(&a)).expect("by now it is above b");
        drop((elsewhere, other, above));
        assert_eq!(world.graph(), before);
    });
}

#[test]
fn reopen_4_a_frozen_edge_is_not_repointed() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "a"}"#).await;
        let root = world.root("root", &a).await;
        world.gs.set_frozen(&top, "file", true).expect("it is not");
        let frozen = "Cannot change frozen 'file' link from 'top' to 'a'";
        let guard = world.gs.drain_all().await;
        let before = world.graph();
        refused(&world, world.gs.set_frozen(&top, "file", true), &before, frozen);
        refused(&world, world.gs.replace_child(&guard, &top, "file", Some(&b)), &before, frozen);
        refused(&world, world.gs.replace_child(&guard, &top, "file", None), &before, frozen);
        // All users or none: the root stays as well.
        refused(&world, world.gs.replace_node(&guard, &a, &b), &before, frozen);
        assert_eq!(world.gs.root_node(&root).expect("it leads somewhere").name(), "a");
        world.gs.set_frozen(&top, "file", false).expect("it was");
        world.gs.replace_node(&guard, &a, &b).expect("nothing is frozen");
        assert_eq!(world.gs.root_node(&root).expect("it leads somewhere").name(), "b");
    });
}

#[test]
fn reopen_4_no_change_makes_a_cycle() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let mid = world.add(r#"{"driver": "fmt", "node-name": "mid", "file": "a"}"#).await;
        let low = world.add(r#"{"driver": "pass", "node-name": "low", "file": "mid"}"#).await;
        let top = world.add(r#"{"driver": "fmt", "node-name": "top", "file": {"driver": "leaf", "node-name": "t"}, "backing": "low"}"#).await;
        let guard = world.gs.drain_all().await;
        let before = world.graph();
        let to = |parent, edge, child| world.gs.replace_child(&guard, parent, edge, Some(child));
        // As the storage daemon says it.
        refused(&world, to(&mid, "file", &mid), &before, "Making 'mid' a file child of 'mid' would create a cycle");
        refused(&world, to(&mid, "backing", &top), &before, "Making 'top' a backing child of 'mid' would create a cycle");
        refused(&world, to(&mid, "file", &low), &before, "Making 'low' a file child of 'mid' would create a cycle");
        refused(&world, to(&mid, "nope", &a), &before, "Node 'mid' has no child 'nope'");
        // Giving a node's users to one above it leaves out those that would be below themselves.
        world.gs.replace_node(&guard, &mid, &top).expect("nobody is left to be moved");
        assert_eq!(world.graph(), before);
        drop(a);
    });
}

#[test]
fn a_refused_permission_leaves_everything_as_it_was() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let root = world.root("root", &a).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "a"}"#).await;
        let _upper = world.root("upper", &filter).await;
        let keeper = PermPair::new(Perm::CONSISTENT_READ, Perm::CONSISTENT_READ);
        let keeper = world.gs.new_root("keeper", ParentKind::Job, keeper, &world.gs.main_io());
        world.gs.attach_root(&keeper, Some(&b)).await.expect("nobody is there");
        let guard = world.gs.drain_all().await;
        let before = world.graph();
        assert!(matches!(world.gs.replace_node(&guard, &a, &b), Err(GraphError::Permission { .. })));
        assert!(matches!(
            world.gs.replace_child(&guard, &filter, "file", Some(&b)),
            Err(GraphError::Permission { .. })
        ));
        assert_eq!(world.graph(), before);
        drop(guard);
        // Requests go where they went.
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        assert_eq!((world.leaf("a").ended(), world.leaf("b").ended()), (1, 0));
    });
}

#[test]
fn a_filter_is_inserted_above_a_node_for_all_its_users() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let parent = world.add(r#"{"driver": "pass", "node-name": "parent", "file": "a"}"#).await;
        let root = world.root("root", &a).await;
        let before = world.graph();
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "a"}"#).await;
        let guard = world.gs.drain(&a).await;
        world.gs.replace_node(&guard, &a, &filter).expect("it is drained");
        // They are still above what is drained.
        assert!(world.is_quiesced(&parent) && guard.covers(&parent));
        drop(guard);
        assert_eq!(world.gs.root_node(&root).expect("it leads somewhere").name(), "filter");
        assert_eq!(world.info(&a).parents, ["node 'filter' (uses node 'a' as 'file' child)"]);
        // And dropped again; those who leave its section are open at once.
        let guard = world.gs.drain(&filter).await;
        world.gs.replace_node(&guard, &filter, &a).expect("it is drained");
        assert!(!world.is_quiesced(&parent) && world.is_quiesced(&filter));
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        drop(guard);
        world.gs.close(filter).await.expect("nobody uses it");
        assert_eq!(world.graph(), before);
    });
}

/// Two roots under load from two threads, while `change` does its worst `rounds` times.
fn under_load(rounds: u32, change: impl AsyncFn(&World, u32)) {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.open(r#"{"driver": "leaf", "node-name": "disk0", "fast": true}"#).await.expect("it opens");
        let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "disk0"}"#).await;
        let (one, two) = (world.root("one", &top).await, world.root("two", &disk).await);
        drop(disk);
        let load = Load::start(&[one.io().clone(), two.io().clone()], 2);
        world.until("the load is there", || load.completed() > 200).await;
        for round in 0..rounds {
            let seen = load.completed();
            change(&world, round).await;
            if round % 4 == 0 {
                world.until("the load goes on", || load.completed() > seen + 20).await;
            }
        }
        let outcome = load.finish();
        println!("{rounds} rounds, {} requests, longest gap {:?}", outcome.completed, outcome.longest_gap);
        drop((one, two));
    });
}

#[test]
fn filters_come_and_go_under_load_and_no_request_is_lost() {
    for slow in [false, true] {
        under_load(100, async |world: &World, round| {
            let disk = world.gs.find_node("disk0").expect("it is there");
            let json = format!(r#"{{"driver": "pass", "node-name": "f{round}", "file": "disk0", "slow": {slow}}}"#);
            let filter = world.open(&json).await.expect("it opens");
            let guard = world.gs.drain(&disk).await;
            world.gs.replace_node(&guard, &disk, &filter).expect("it is drained");
            drop(guard);
            world.gs.main().sleep(std::time::Duration::from_micros(100)).await;
            let guard = world.gs.drain(&filter).await;
            world.gs.replace_node(&guard, &filter, &disk).expect("it is drained");
            drop(guard);
            world.gs.close(filter).await.expect("nobody uses it");
        });
    }
}

#[test]
fn leaves_are_exchanged_under_load_and_the_old_ones_never_used_again() {
    under_load(100, async |world: &World, round| {
        let old = world.gs.find_node(&format!("disk{round}")).expect("it is there");
        let json = format!(r#"{{"driver": "leaf", "node-name": "disk{}", "fast": {}}}"#, round + 1, round % 3 > 0);
        let new = world.open(&json).await.expect("it opens");
        let engine = world.leaf(old.name());
        let guard = world.gs.drain(&old).await;
        world.gs.replace_node(&guard, &old, &new).expect("it is drained");
        let seen = engine.began();
        drop(guard);
        // Closes with requests to the new one in flight. A stray request would be noticed: see `run_and_close`.
        world.gs.close(old).await.expect("nobody uses it");
        assert_eq!((engine.began(), engine.ended(), engine.closes()), (seen, seen, 1));
    });
}

#[test]
fn media_are_exchanged_under_load() {
    // Each root on its own: the other one's requests go on.
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a", "fast": true}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b", "fast": false}"#).await;
        let (one, two) = (world.root("one", &a).await, world.root("two", &a).await);
        let load = Load::start(&[one.io().clone(), two.io().clone()], 2);
        for round in 0..200 {
            let (root, node) = (if round % 2 == 0 { &one } else { &two }, if round % 4 < 2 { &b } else { &a });
            world.gs.attach_root(root, Some(node)).await.expect("nobody is in the way");
        }
        // On a busy machine the exchanges may be over before the load has begun.
        while load.completed() == 0 {
            world.gs.main().sleep(std::time::Duration::from_millis(1)).await;
        }
        load.finish();
    });
}

#[test]
fn a_medium_that_is_taken_out_under_load_fails_requests_cleanly() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a", "fast": true}"#).await;
        let root = world.gs.new_root("root", ParentKind::Backend, loose(Perm::all()), &world.gs.main_io());
        let load = Load::start(&[root.io().clone()], 2);
        for _ in 0..100 {
            world.gs.attach_root(&root, Some(&a)).await.expect("nobody is in the way");
            world.gs.main().sleep(std::time::Duration::from_micros(100)).await;
            world.gs.attach_root(&root, None).await.expect("detaching is always allowed");
        }
        let seen = load.completed();
        world.until("requests find no medium", || load.completed() > seen + 100).await;
        let outcome = load.stop();
        assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
        let errors: Vec<_> = outcome.failed.keys().copied().collect();
        assert_eq!(errors, [IoError::NO_MEDIUM.errno().raw()], "the only error there is");
    });
}
