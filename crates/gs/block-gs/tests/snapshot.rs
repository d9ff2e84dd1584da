//! Overlays on live nodes and changes of bitmaps, several at once: all of them happen, or none, wherever the one stands that cannot be.

mod common;

use block_common::{OpType, ParentKind, Perm};
use block_gs::{BitmapAct, BitmapOptions, DrainGuard, GlobalState, NodeRef, Step, StepError};
use common::load::Load;
use common::{World, buffer, loose, poll_once};

/// An overlay with a file of its own, and nothing below.
async fn overlay(world: &World, name: &str) -> NodeRef {
    let file = format!(r#"{{"driver": "leaf", "node-name": "{name}-file", "fast": true}}"#);
    let json = format!(r#"{{"driver": "fmt", "node-name": "{name}", "file": {file}, "backing": null}}"#);
    world.open(&json).await.expect("it opens")
}

/// As whoever changes several things does it.
async fn change(gs: &GlobalState, steps: Vec<Step>) -> Result<(), StepError> {
    let sections: Vec<DrainGuard> = gs.drain_for(&steps).await?;
    gs.change_all(&sections, &steps)
}

fn put(overlay: &NodeRef, node: &NodeRef) -> Step {
    Step::Overlay { node: node.clone(), overlay: overlay.clone() }
}

fn act(node: &NodeRef, name: &str, act: BitmapAct) -> Step {
    Step::Bitmap { node: node.clone(), name: name.into(), act }
}

fn add(node: &NodeRef, name: &str) -> Step {
    Step::AddBitmap { node: node.clone(), options: BitmapOptions::new(name) }
}

fn bitmaps(world: &World, node: &NodeRef) -> Vec<(String, u64, bool, bool)> {
    let all = world.gs.bitmaps(node).expect("the node is there");
    all.into_iter().map(|bitmap| (bitmap.name, bitmap.count, bitmap.recording, bitmap.busy)).collect()
}

#[test]
fn overlays_come_together_and_find_what_the_earlier_ones_leave() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let root = world.root("root", &disk).await;
        // A job's entry is to the node that it was begun on.
        let job = world.gs.new_root("job", ParentKind::Job, loose(Perm::CONSISTENT_READ), &world.gs.main_io());
        world.gs.attach_root(&job, Some(&disk)).await.expect("nobody is in the way");
        let (first, second) = (overlay(&world, "first").await, overlay(&world, "second").await);
        change(&world.gs, vec![put(&first, &disk), put(&second, &first)]).await.expect("nothing is in the way");
        assert_eq!(world.gs.root_node(&root).expect("it leads somewhere").name(), "second");
        assert_eq!(world.gs.root_node(&job).expect("it leads somewhere").name(), "disk");
        assert_eq!(world.info(&first).parents, ["node 'second' (uses node 'first' as 'backing' child)"]);
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        assert!(!world.is_quiesced(&disk), "the sections are over");
        world.gs.close_root(job).await;
    });
}

#[test]
fn what_cannot_be_an_overlay_is_told() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let other = world.add(r#"{"driver": "leaf", "node-name": "other", "fast": true}"#).await;
        let root = world.root("root", &disk).await;
        let (top, used) = (overlay(&world, "top").await, overlay(&world, "used").await);
        let user = world.root("user", &used).await;
        let refused = async |steps: Vec<Step>, expected: &str| {
            let before = world.graph();
            let error = change(&world.gs, steps).await.expect_err(expected);
            assert_eq!(error.to_string(), expected);
            assert_eq!(world.graph(), before, "{expected}");
        };
        refused(vec![put(&other, &disk)], "The overlay does not support backing images").await;
        refused(vec![put(&used, &disk)], "The overlay is already in use").await;
        refused(vec![put(&top, &top)], "Making 'top' a backing child of 'top' would create a cycle").await;
        refused(vec![put(&top, &disk), put(&top, &other)], "The overlay already has a backing image").await;
        let busy = "Node 'disk' is busy: node is used as backing hd of 'top' (operation 'external-snapshot')";
        refused(vec![put(&top, &disk), put(&used, &disk)], busy).await;
        let blocker = world.gs.block_op(&disk, OpType::ExternalSnapshot, "a job is at it");
        let error = change(&world.gs, vec![put(&top, &disk)]).await.expect_err("it is blocked");
        assert!(error.to_string().starts_with("Node 'disk' is busy: a job is at it"), "{error}");
        drop(blocker);
        change(&world.gs, vec![put(&top, &disk)]).await.expect("nothing is in the way");
        refused(vec![put(&used, &disk)], busy).await;
        refused(vec![put(&top, &other)], "The overlay is already in use").await;
        for (op, is_free) in [(OpType::DriveDel, false), (OpType::Resize, false), (OpType::BackupSource, true)] {
            assert_eq!(world.gs.check_op(&disk, op).is_ok(), is_free, "{op}");
        }
        drop((root, user));
    });
}

#[test]
fn reopen_4_a_frozen_edge_keeps_every_overlay_off() {
    let world = World::new();
    world.run_and_close(async {
        let [one, two] =
            ["one", "two"].map(|name| format!(r#"{{"driver": "leaf", "node-name": "{name}", "fast": true}}"#));
        let (one, two) = (world.add(&one).await, world.add(&two).await);
        let user = world.add(r#"{"driver": "fmt", "node-name": "user", "file": "two", "backing": null}"#).await;
        let tops = [overlay(&world, "top1").await, overlay(&world, "top2").await];
        world.gs.set_frozen(&user, "file", true).expect("it is not");
        for turned in [false, true] {
            let mut steps = vec![add(&one, "new"), put(&tops[0], &one), put(&tops[1], &two)];
            if turned {
                steps.reverse();
            }
            let before = world.graph();
            let error = change(&world.gs, steps).await.expect_err("it is frozen");
            assert_eq!(error.to_string(), "Cannot change frozen 'file' link from 'user' to 'two'");
            assert_eq!(world.graph(), before);
            assert!(bitmaps(&world, &one).is_empty());
        }
        world.gs.set_frozen(&user, "file", false).expect("it was");
        change(&world.gs, vec![put(&tops[0], &one), put(&tops[1], &two)]).await.expect("nothing is in the way");
        drop(user);
    });
}

/// One of several fails at every place that it can stand at: whatever the others were, everything is as it was.
#[test]
fn perm_2_one_that_fails_anywhere_undoes_the_others() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let other = world.add(r#"{"driver": "leaf", "node-name": "other", "fast": true}"#).await;
        let root = world.root("root", &disk).await;
        for name in ["cleared", "going", "off", "merged", "source", "both"] {
            world.gs.add_bitmap(&disk, BitmapOptions::new(name)).await.expect("it is added");
        }
        world.gs.add_bitmap(&disk, BitmapOptions { disabled: true, ..BitmapOptions::new("on") }).await.expect("added");
        world.write(&disk).await;
        world.gs.clear_bitmap(&disk, "merged").expect("it is there");
        let (top, more) = (overlay(&world, "top").await, overlay(&world, "more").await);
        let good = || {
            vec![
                act(&disk, "cleared", BitmapAct::Clear),
                put(&top, &disk),
                act(&disk, "going", BitmapAct::Remove),
                act(&disk, "on", BitmapAct::Enable),
                act(&disk, "off", BitmapAct::Disable),
                add(&disk, "new"),
                act(&disk, "merged", BitmapAct::Merge(vec![(disk.clone(), "source".into())])),
                act(&disk, "new", BitmapAct::Clear),
                // What one leaves the other one takes for what was.
                act(&disk, "both", BitmapAct::Clear),
                act(&disk, "both", BitmapAct::Merge(vec![(disk.clone(), "source".into())])),
            ]
        };
        let (graph, before) = (world.graph(), bitmaps(&world, &disk));
        let bad: [(&str, fn(&NodeRef, &NodeRef) -> Step); 4] = [
            ("Dirty bitmap 'nope' not found", |disk, _| act(disk, "nope", BitmapAct::Clear)),
            ("Bitmap already exists: cleared", |disk, _| add(disk, "cleared")),
            ("The overlay does not support backing images", |disk, other| put(other, disk)),
            // This one the graph refuses, after all else.
            ("Making 'more' a backing child of 'more' would create a cycle", |_, more| put(more, more)),
        ];
        for (expected, bad) in bad {
            for place in 0..=good().len() {
                let mut steps = good();
                let second = if expected.starts_with("Making") { &more } else { &other };
                steps.insert(place, bad(if expected.contains("support") { &more } else { &disk }, second));
                let error = change(&world.gs, steps).await.expect_err(expected);
                assert_eq!(error.to_string(), expected, "at {place}");
                assert_eq!((world.graph(), bitmaps(&world, &disk)), (graph.clone(), before.clone()), "at {place}");
            }
        }
        // What goes is nobody's until it is gone.
        for (name, next) in [("going", act(&disk, "going", BitmapAct::Clear)), ("cleared", add(&disk, "cleared"))] {
            let error = change(&world.gs, vec![act(&disk, name, BitmapAct::Remove), next]).await.expect_err("busy");
            assert!(matches!(error, StepError::Bitmap(_)), "{error}");
        }
        assert_eq!(bitmaps(&world, &disk), before);
        change(&world.gs, good()).await.expect("nothing is in the way");
        assert_eq!(world.gs.root_node(&root).expect("it leads somewhere").name(), "top");
        let names: Vec<_> = bitmaps(&world, &disk).into_iter().map(|(name, ..)| name).collect();
        assert_eq!(names, ["cleared", "off", "merged", "source", "both", "on", "new"]);
        let of = |name: &str| world.gs.bitmap(&disk, name).expect("it is there").info();
        assert_eq!((of("cleared").count, of("merged").count), (0, of("source").count));
        assert!(of("source").count > 0 && of("on").recording && !of("off").recording && of("new").recording);
    });
}

#[test]
fn a_failed_flush_keeps_an_overlay_off() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let top = overlay(&world, "top").await;
        world.write(&disk).await;
        world.leaf("disk").fail_flush(5);
        let before = world.graph();
        let error = change(&world.gs, vec![put(&top, &disk)]).await.expect_err("it cannot be flushed");
        assert_eq!((error.to_string(), world.graph()), ("An IO error has occurred".into(), before));
        world.leaf("disk").fail_flush(0);
        change(&world.gs, vec![put(&top, &disk)]).await.expect("nothing is in the way");
    });
}

/// Sections of others go on around it, and requests that wait find the overlay.
#[test]
fn drain_1_overlays_come_inside_sections_of_others() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let root = world.root("root", &disk).await;
        let top = overlay(&world, "top").await;
        let (outer, inner) = (world.gs.drain_all().await, world.gs.drain(&disk).await);
        let mut waiting = Box::pin(root.io().read(0, buffer(512)));
        assert!(poll_once(&mut waiting).await.is_none());
        let read = world.leaf("top-file").ended();
        change(&world.gs, vec![put(&top, &disk)]).await.expect("nothing is in the way");
        drop(outer);
        world.pause().await;
        assert!(poll_once(&mut waiting).await.is_none(), "the other section goes on");
        drop(inner);
        waiting.await.0.expect("it goes on");
        assert_eq!((world.leaf("top-file").ended(), world.leaf("disk").ended()), (read + 1, 0));
    });
}

/// Two threads read and write all the while: overlay upon overlay comes, some do not, and no request is lost.
#[test]
fn overlays_come_under_load() {
    let world = World::new();
    world.run_and_close(async {
        let mut top = world.add(r#"{"driver": "leaf", "node-name": "o0", "fast": true}"#).await;
        let root = world.root("root", &top).await;
        let load = Load::start(&[root.io().clone()], 2);
        for round in 1..60 {
            let next = overlay(&world, &format!("o{round}")).await;
            if round % 3 == 0 {
                // The second one of the set cannot be: nor is the first.
                let error = change(&world.gs, vec![put(&next, &top), act(&top, "nope", BitmapAct::Clear)]).await;
                error.expect_err("there is no such bitmap");
                assert!(world.gs.root_node(&root).expect("it leads somewhere").same(&top));
            }
            change(&world.gs, vec![put(&next, &top), add(&next, "b")]).await.expect("nothing is in the way");
            top = next;
            let dirty = || world.gs.bitmap(&top, "b").is_ok_and(|bitmap| bitmap.info().count > 0);
            world.until("the load goes on, and its writes are recorded", dirty).await;
        }
        load.finish();
    });
}
