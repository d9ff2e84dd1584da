//! Nodes that are inserted above others, appended, and taken out again: under load, beside other sections, and refused without a trace.

mod common;

use block_common::{ParentKind, Perm, PermPair};
use block_gs::{GraphError, Users};
use common::load::Load;
use common::{World, buffer, json_options, loose, message, poll_once};

fn filter(name: &str, below: &str) -> String {
    format!(r#"{{"driver": "pass", "node-name": "{name}", "file": "{below}"}}"#)
}

#[test]
fn a_filter_is_inserted_for_those_users_that_are_meant() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let parent = world.add(&filter("parent", "disk")).await;
        let (one, two) = (world.root("one", &disk).await, world.root("two", &disk).await);
        let before = world.graph();
        let leads_to = |root| world.gs.root_node(root).expect("it leads somewhere").name().to_owned();
        let insert = |name, users| world.gs.insert_node(&disk, users, json_options(&filter(name, "disk")));

        let first = insert("first", Users::Entry(&one)).await.expect("nothing is in the way");
        assert_eq!((leads_to(&one), leads_to(&two)), ("first".into(), "disk".into()));
        let second = insert("second", Users::Parent(&parent, "file")).await.expect("nothing is in the way");
        assert_eq!(world.gs.child(&parent, "file").expect("an edge").expect("a child").name(), "second");
        let all = insert("all", Users::All).await.expect("nothing is in the way");
        assert_eq!((leads_to(&one), leads_to(&two)), ("first".into(), "all".into()));
        assert_eq!(world.info(&disk).parents, ["node 'all' (uses node 'disk' as 'file' child)"]);
        assert_eq!(one.io().read(0, buffer(512)).await.0, Ok(()));
        assert_eq!(world.leaf("disk").ended(), 1);

        for filter in [all, first, second] {
            world.gs.drop_filter(&filter).await.expect("nothing is in the way");
            world.gs.close(filter).await.expect("nobody uses it");
        }
        assert_eq!(world.graph(), before);
    });
}

#[test]
fn an_insertion_that_is_refused_leaves_nothing() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let other = world.add(r#"{"driver": "leaf", "node-name": "other"}"#).await;
        let user = world.add(&filter("user", "disk")).await;
        let root = world.root("root", &disk).await;
        let elsewhere = world.root("elsewhere", &other).await;
        let insert = async |users: Users<'_>, json: &str, expected: &str| {
            let (before, engines) = (world.graph(), world.leaves.open_count());
            assert_eq!(message(world.gs.insert_node(&disk, users, json_options(json)).await), expected);
            assert_eq!((world.graph(), world.leaves.open_count()), (before, engines), "{expected}");
        };
        let new = filter("new", "disk");
        insert(Users::All, r#"{"driver": "nope"}"#, "Parameter 'driver' does not accept value 'nope'").await;
        insert(Users::All, &filter("user", "disk"), "Duplicate nodes with node-name='user'").await;
        insert(Users::All, &filter("new", "other"), "'new' does not use node 'disk'").await;
        let inline = r#"{"driver": "pass", "node-name": "new", "file": {"driver": "leaf", "node-name": "inline"}}"#;
        insert(Users::All, inline, "'new' does not use node 'disk'").await;
        insert(Users::Parent(&user, "nope"), &new, "Node 'user' has no child 'nope'").await;
        insert(Users::Entry(&elsewhere), &new, "'elsewhere' does not use node 'disk'").await;
        // A format writes its image, and lets nobody else; the root does.
        let format = r#"{"driver": "fmt", "node-name": "new", "file": "disk"}"#;
        let (before, engines) = (world.graph(), world.leaves.open_count());
        let refused = world.gs.insert_node(&disk, Users::Parent(&user, "file"), json_options(format)).await;
        assert!(matches!(refused, Err(GraphError::Permission { .. })), "{refused:?}");
        assert_eq!((world.graph(), world.leaves.open_count()), (before, engines));
        // Seen when the users move, and not before: those who write would be above what only reads.
        let reader = r#"{"driver": "pass", "node-name": "new", "file": "disk", "read-only": true}"#;
        insert(Users::All, reader, "Block node 'new' is read-only").await;
        world.gs.set_frozen(&user, "file", true).expect("it is not");
        insert(Users::All, &new, "Cannot change frozen 'file' link from 'user' to 'disk'").await;
        world.gs.set_frozen(&user, "file", false).expect("it was");
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        world.gs.insert_node(&disk, Users::All, json_options(&new)).await.expect("nothing is in the way");
    });
}

#[test]
fn an_insertion_whose_caller_goes_away_is_whole() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "held": true}"#).await;
        let root = world.root("root", &disk).await;
        let mut slow = Box::pin(root.io().read(0, buffer(512)));
        assert!(poll_once(&mut slow).await.is_none());
        world.until("the read is there", || world.leaf("disk").in_flight() == 1).await;
        let mut inserting = Box::pin(world.gs.insert_node(&disk, Users::All, json_options(&filter("new", "disk"))));
        assert!(poll_once(&mut inserting).await.is_none());
        world.until("it waits for the read", || world.is_quiesced(&disk)).await;
        drop(inserting);
        world.leaf("disk").hold(false);
        assert_eq!(slow.await.0, Ok(()));
        world.until("it is there", || world.gs.root_node(&root).expect("it leads somewhere").name() == "new").await;
        assert!(!world.is_quiesced(&disk));
    });
}

#[test]
fn a_filter_that_is_relied_on_stays() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let low = world.add(&filter("low", "disk")).await;
        let format = world.add(r#"{"driver": "fmt", "node-name": "format", "file": "low"}"#).await;
        let before = world.graph();
        let refused = async |node, expected: &str| {
            assert_eq!(message(world.gs.drop_filter(node).await), expected);
        };
        refused(&disk, "Node 'disk' is not a filter").await;
        refused(&format, "Node 'format' is not a filter").await;
        world.gs.set_frozen(&low, "file", true).expect("it is not");
        refused(&low, "Cannot change frozen 'file' link from 'low' to 'disk'").await;
        world.gs.set_frozen(&low, "file", false).expect("it was");
        world.gs.set_frozen(&format, "file", true).expect("it is not");
        refused(&low, "Cannot change frozen 'file' link from 'format' to 'low'").await;
        world.gs.set_frozen(&format, "file", false).expect("it was");
        assert_eq!(world.graph(), before);
        // One that leads nowhere has nothing to lead its users to.
        let section = world.gs.drain(&low).await;
        world.gs.replace_child(&section, &low, "file", None).expect("nobody needs it");
        drop(section);
        refused(&low, "Node 'low' has no child 'file'").await;
        let section = world.gs.drain(&low).await;
        world.gs.replace_child(&section, &low, "file", Some(&disk)).expect("nobody is in the way");
        drop(section);
        world.gs.drop_filter(&low).await.expect("nothing is in the way");
        assert_eq!(world.gs.child(&format, "file").expect("an edge").expect("a child").name(), "disk");
    });
}

/// An overlay with a file of its own, and nothing below.
async fn overlay(world: &World, name: &str) -> block_gs::NodeRef {
    let file = format!(r#"{{"driver": "leaf", "node-name": "{name}-file", "fast": true}}"#);
    let json = format!(r#"{{"driver": "fmt", "node-name": "{name}", "file": {file}, "backing": null}}"#);
    world.open(&json).await.expect("it opens")
}

#[test]
fn an_overlay_is_appended_for_all_users() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let parent = world.add(&filter("parent", "disk")).await;
        let root = world.root("root", &disk).await;
        let top = overlay(&world, "top").await;
        world.gs.append(&top, "backing", &disk).await.expect("nothing is in the way");
        assert_eq!(world.gs.root_node(&root).expect("it leads somewhere").name(), "top");
        assert_eq!(world.gs.child(&parent, "file").expect("an edge").expect("a child").name(), "top");
        assert_eq!(world.info(&disk).parents, ["node 'top' (uses node 'disk' as 'backing' child)"]);
        // An overlay lets nobody write below it, as if it had been opened like this.
        let writer = world.gs.new_root("writer", ParentKind::Backend, loose(Perm::WRITE), &world.gs.main_io());
        world.gs.set_root_perm(&root, PermPair::new(Perm::CONSISTENT_READ, Perm::CONSISTENT_READ)).expect("alone");
        let refused = world.gs.attach_root(&writer, Some(&disk)).await;
        assert!(matches!(refused, Err(GraphError::Permission { .. })), "{refused:?}");
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        assert_eq!((world.leaf("disk").ended(), world.leaf("top-file").ended()), (0, 2), "a header and a read");
        drop(parent);
    });
}

#[test]
fn an_appending_that_is_refused_changes_nothing() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let other = world.add(r#"{"driver": "leaf", "node-name": "other"}"#).await;
        let user = world.add(&filter("user", "disk")).await;
        let root = world.root("root", &disk).await;
        let top = overlay(&world, "top").await;
        let refused = async |top, edge, below, expected: &str| {
            let before = world.graph();
            assert_eq!(message(world.gs.append(top, edge, below).await), expected);
            assert_eq!(world.graph(), before, "{expected}");
        };
        refused(&top, "nope", &disk, "Node 'top' has no child 'nope'").await;
        refused(&top, "file", &disk, "Node 'top' has a 'file' child already").await;
        refused(&top, "backing", &top, "Making 'top' a backing child of 'top' would create a cycle").await;
        world.gs.set_frozen(&user, "file", true).expect("it is not");
        refused(&top, "backing", &disk, "Cannot change frozen 'file' link from 'user' to 'disk'").await;
        world.gs.set_frozen(&user, "file", false).expect("it was");
        world.gs.set_frozen(&top, "backing", true).expect("it is not");
        refused(&top, "backing", &disk, "Cannot change frozen 'backing' link from 'top' to ''").await;
        world.gs.set_frozen(&top, "backing", false).expect("it was");
        // Somebody is on top of it already, and does not let others write; the disk's user does.
        let keeper = PermPair::new(Perm::CONSISTENT_READ, Perm::all() - Perm::WRITE);
        let keeper = world.gs.new_root("keeper", ParentKind::Job, keeper, &world.gs.main_io());
        world.gs.attach_root(&keeper, Some(&top)).await.expect("nobody is in the way");
        let before = world.graph();
        let conflict = world.gs.append(&top, "backing", &disk).await;
        assert!(matches!(&conflict, Err(GraphError::Permission { node, .. }) if node == "top"), "{conflict:?}");
        assert_eq!(world.graph(), before);
        world.gs.close_root(keeper).await;
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        world.gs.append(&top, "backing", &disk).await.expect("nothing is in the way");
        // Below itself it cannot come by way of its users either.
        refused(&top, "backing", &other, "Node 'top' has a 'backing' child already").await;
    });
}

#[test]
fn an_overlay_is_not_appended_to_the_longest_chain_there_may_be() {
    let world = World::new();
    world.run(async {
        world.add(r#"{"driver": "null-co", "node-name": "n0"}"#).await;
        for at in 1..1024 {
            world.add(&filter(&format!("n{at}"), &format!("n{}", at - 1))).await;
        }
        let bottom = world.gs.find_node("n0").expect("it is there");
        let top = overlay(&world, "top").await;
        let refused = world.gs.append(&top, "backing", &bottom).await;
        assert!(matches!(refused, Err(GraphError::TooDeep(_))), "{refused:?}");
        let middle = world.gs.find_node("n500").expect("it is there");
        world.gs.drop_filter(&middle).await.expect("nothing is in the way");
        world.gs.append(&top, "backing", &bottom).await.expect("there is room for one");
    });
    world.close();
}

#[test]
fn acts_nest_in_sections_of_others() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let root = world.root("root", &disk).await;
        let (outer, inner) = (world.gs.drain_all().await, world.gs.drain(&disk).await);
        let mut waiting = Box::pin(root.io().read(0, buffer(512)));
        assert!(poll_once(&mut waiting).await.is_none());
        let new = world.gs.insert_node(&disk, Users::All, json_options(&filter("new", "disk"))).await;
        let new = new.expect("a section holds no act up");
        let top = overlay(&world, "top").await;
        let read = world.leaf("top-file").ended();
        world.gs.append(&top, "backing", &new).await.expect("a section holds no act up");
        world.gs.drop_filter(&new).await.expect("a section holds no act up");
        world.pause().await;
        assert!(poll_once(&mut waiting).await.is_none(), "both sections go on");
        drop(outer);
        world.pause().await;
        assert!(poll_once(&mut waiting).await.is_none() && world.is_quiesced(&top), "one section goes on");
        drop(inner);
        assert_eq!(waiting.await.0, Ok(()));
        assert_eq!((world.leaf("top-file").ended(), world.leaf("disk").ended()), (read + 1, 0));
        assert_eq!(world.gs.child(&top, "backing").expect("an edge").expect("a child").name(), "disk");
    });
}

/// Requests of two threads come through two roots while `change` does its worst.
fn under_load(rounds: u32, change: impl AsyncFn(&World, u32)) {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.open(r#"{"driver": "leaf", "node-name": "disk0", "fast": true}"#).await.expect("it opens");
        let user = world.add(&filter("user", "disk0")).await;
        let (one, two) = (world.root("one", &user).await, world.root("two", &disk).await);
        drop((disk, user));
        let load = Load::start(&[one.io().clone(), two.io().clone()], 2);
        world.until("the load is there", || load.completed() > 200).await;
        for round in 0..rounds {
            let seen = load.completed();
            change(&world, round).await;
            if round % 4 == 0 {
                world.until("the load goes on", || load.completed() > seen + 20).await;
            }
        }
        load.finish();
        drop((one, two));
    });
}

#[test]
fn filters_are_inserted_and_dropped_under_load_and_no_request_is_lost() {
    for slow in [false, true] {
        under_load(100, async |world: &World, round| {
            let disk = world.gs.find_node("disk0").expect("it is there");
            let json = format!(r#"{{"driver": "pass", "node-name": "f{round}", "file": "disk0", "slow": {slow}}}"#);
            let section = if round % 3 == 0 { Some(world.gs.drain_all().await) } else { None };
            let filter = world.gs.insert_node(&disk, Users::All, json_options(&json)).await.expect("it opens");
            drop(section);
            world.gs.main().sleep(std::time::Duration::from_micros(100)).await;
            world.gs.drop_filter(&filter).await.expect("nothing is in the way");
            world.gs.close(filter).await.expect("nobody uses it");
        });
    }
}

#[test]
fn refused_acts_under_load_lose_no_request() {
    under_load(50, async |world: &World, _| {
        let disk = world.gs.find_node("disk0").expect("it is there");
        let user = world.gs.find_node("user").expect("it is there");
        world.gs.set_frozen(&user, "file", true).expect("it is not");
        let before = world.graph();
        let top = overlay(world, "top").await;
        assert!(matches!(world.gs.append(&top, "backing", &disk).await, Err(GraphError::Frozen { .. })));
        world.gs.close(top).await.expect("nobody uses it");
        let inserted = world.gs.insert_node(&disk, Users::All, json_options(&filter("new", "disk0"))).await;
        assert!(matches!(inserted, Err(GraphError::Frozen { .. })));
        assert!(matches!(world.gs.drop_filter(&user).await, Err(GraphError::Frozen { .. })));
        assert_eq!(world.graph(), before);
        world.gs.set_frozen(&user, "file", false).expect("it was");
    });
}

#[test]
fn overlays_are_appended_under_load_and_no_request_is_lost() {
    under_load(30, async |world: &World, round| {
        let below = if round == 0 { "disk0".to_owned() } else { format!("top{}", round - 1) };
        let below = world.gs.find_node(&below).expect("it is there");
        let top = overlay(world, &format!("top{round}")).await;
        world.gs.append(&top, "backing", &below).await.expect("nothing is in the way");
        assert!(!world.is_quiesced(&top));
    });
}
