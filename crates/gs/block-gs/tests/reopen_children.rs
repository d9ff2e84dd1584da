//! Reopening nodes with other children: one or several at once, refused or not, while requests go on.

mod common;

use block_common::{ParentKind, Perm, PermPair};
use block_gs::{GraphResult, LeftOut, NodeRef};
use common::load::Load;
use common::{World, buffer, json_options, message};

/// Reopen nodes by their names, as `blockdev-reopen` does.
async fn reopen(world: &World, changes: &[(&str, &str)], left_out: LeftOut) -> GraphResult<()> {
    let named = |(node, changes): &(&str, &str)| Ok((world.gs.find_node(node)?, json_options(changes)));
    let nodes = changes.iter().map(named).collect::<GraphResult<Vec<_>>>()?;
    world.gs.reopen_all(nodes, left_out).await
}

/// Formats called `names`, each above a leaf of its own.
async fn formats<const N: usize>(world: &World, names: [&str; N]) -> [NodeRef; N] {
    let mut nodes = Vec::new();
    for name in names {
        let json = format!(
            r#"{{"driver": "fmt", "node-name": "{name}", "file": {{"driver": "leaf", "node-name": "{name}-file"}}}}"#
        );
        nodes.push(world.add(&json).await);
    }
    nodes.try_into().expect("as many as names")
}

/// What is at the edge called `edge` of `node`, and what the node says of it.
fn child(world: &World, node: &NodeRef, edge: &str) -> (Option<String>, String) {
    let found = world.gs.child(node, edge).expect("there is such an edge");
    let shown = world.info(node).options.lookup(edge).map(|value| format!("{value:?}"));
    (found.map(|child| child.name().to_owned()), shown.unwrap_or_default())
}

#[test]
fn reopen_3_a_backing_file_comes_goes_and_has_to_be_named() {
    let world = World::new();
    world.run_and_close(async {
        let [top, a, b] = formats(&world, ["top", "a", "b"]).await;
        let to = async |json: &str| reopen(&world, &[("top", json)], LeftOut::Default).await;
        to(r#"{}"#).await.expect("there is none to be named");
        to(r#"{"backing": "a"}"#).await.expect("it gets one");
        assert_eq!(child(&world, &top, "backing"), (Some("a".into()), "Str(\"a\")".into()));
        assert_eq!(world.info(&a).parents, ["node 'top' (uses node 'a' as 'backing' child)"]);
        assert_eq!(message(to(r#"{}"#).await), "backing is missing for 'top'");
        to(r#"{"backing": "a"}"#).await.expect("nothing changes");
        to(r#"{"backing": "b"}"#).await.expect("it gets another one");
        assert!(world.info(&a).parents.is_empty());
        assert_eq!(message(to(r#"{"backing": "c"}"#).await), "Cannot find device='' nor node-name='c'");
        // What is left out may stay.
        reopen(&world, &[("top", r#"{"slow": false}"#)], LeftOut::Stays).await.expect_err("that option is fixed");
        reopen(&world, &[("top", r#"{"read-only": true}"#)], LeftOut::Stays).await.expect("it reopens");
        assert_eq!(child(&world, &top, "backing").0.as_deref(), Some("b"));
        to(r#"{"backing": null}"#).await.expect("it loses it");
        assert_eq!(child(&world, &top, "backing"), (None, "Null".into()));
        assert!(world.info(&b).parents.is_empty() && !top.io().is_read_only());
    });
}

#[test]
fn another_file_is_what_is_read() {
    let world = World::new();
    world.run_and_close(async {
        let old = r#"{"driver": "pass", "node-name": "top", "file": {"driver": "leaf", "node-name": "old"}}"#;
        let top = world.add(old).await;
        let new = world.add(r#"{"driver": "leaf", "node-name": "new", "size": 4096}"#).await;
        let root = world.root("root", &top).await;
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        reopen(&world, &[("top", r#"{"file": "new"}"#)], LeftOut::Stays).await.expect("it reopens");
        assert_eq!(root.io().read(0, buffer(512)).await.0, Ok(()));
        assert_eq!((world.leaf("old").ended(), world.leaf("new").ended(), top.io().length()), (1, 1, 4096));
        // The one that was opened for it goes with its last user, and the other one is nobody's to change.
        world.gs.settle().await.expect("it closes");
        assert_eq!(world.leaf("old").closes(), 1);
        let changes = [("top", r#"{"file": {"read-only": true}}"#)];
        let told = message(reopen(&world, &changes, LeftOut::Stays).await);
        assert_eq!(told, "Cannot change the option 'file.driver'");
        reopen(&world, &[("top", r#"{"read-only": true}"#)], LeftOut::Stays).await.expect_err("somebody writes");
        world.gs.close_root(root).await;
        reopen(&world, &[("top", r#"{"read-only": true}"#)], LeftOut::Stays).await.expect("nobody writes");
        assert!(top.io().is_read_only() && !new.io().is_read_only());
    });
}

#[test]
fn reopen_4_no_reopen_makes_a_cycle() {
    let world = World::new();
    world.run_and_close(async {
        let [a, b, c] = formats(&world, ["a", "b", "c"]).await;
        let before = world.graph();
        let refused = async |changes: &[(&str, &str)], told: &str| {
            assert_eq!(message(reopen(&world, changes, LeftOut::Stays).await), told);
            assert_eq!(world.graph(), before);
        };
        let below =
            |parent: &str, child: &str| format!("Making '{child}' a backing child of '{parent}' would create a cycle");
        refused(&[("a", r#"{"backing": "a"}"#)], &below("a", "a")).await;
        let both = [("a", r#"{"backing": "b"}"#), ("b", r#"{"backing": "a"}"#)];
        refused(&both, &below("b", "a")).await;
        let three = [("a", r#"{"backing": "b"}"#), ("b", r#"{"backing": "c"}"#), ("c", r#"{"backing": "a"}"#)];
        refused(&three, &below("c", "a")).await;
        // None of these makes one alone.
        reopen(&world, &three[..2], LeftOut::Stays).await.expect("a chain");
        let chain = [("a", r#"{"backing": null}"#), ("b", r#"{"backing": "a"}"#), ("c", r#"{"backing": "b"}"#)];
        // In any order: what counts is what comes of it.
        for turn in 0..3 {
            let mut upside_down = chain;
            upside_down.rotate_left(turn);
            reopen(&world, &upside_down, LeftOut::Stays).await.expect("a chain, upside down");
            assert_eq!(
                [&a, &b, &c].map(|node| child(&world, node, "backing").0),
                [None, Some("a".into()), Some("b".into())]
            );
            let back = [("c", r#"{"backing": null}"#), ("a", r#"{"backing": "b"}"#), ("b", r#"{"backing": "c"}"#)];
            reopen(&world, &back, LeftOut::Stays).await.expect("and back");
        }
    });
}

#[test]
fn reopen_4_a_frozen_edge_stays() {
    let world = World::new();
    world.run_and_close(async {
        let [top, a, _b] = formats(&world, ["top", "a", "b"]).await;
        reopen(&world, &[("top", r#"{"backing": "a"}"#)], LeftOut::Stays).await.expect("it reopens");
        world.gs.set_frozen(&top, "backing", true).expect("nobody else did");
        let before = world.graph();
        for changes in [r#"{"backing": "b"}"#, r#"{"backing": null}"#] {
            let all = [("a", r#"{"read-only": true}"#), ("top", changes)];
            let told = message(reopen(&world, &all, LeftOut::Stays).await);
            assert_eq!(told, "Cannot change frozen 'backing' link from 'top' to 'a'");
            assert_eq!(world.graph(), before);
        }
        reopen(&world, &[("top", r#"{"backing": "a"}"#)], LeftOut::Stays).await.expect("it is as it was");
        world.gs.set_frozen(&top, "backing", false).expect("it is ours");
        reopen(&world, &[("top", r#"{"backing": null}"#)], LeftOut::Stays).await.expect("it reopens");
        assert!(world.info(&a).parents.is_empty());
    });
}

/// Scenario: one of several nodes cannot be reopened, for a reason that is found early, or last. None of them is.
#[test]
fn reopen_1_several_nodes_or_none() {
    let world = World::new();
    world.run_and_close(async {
        let [top, _a, _b] = formats(&world, ["top", "a", "b"]).await;
        let root = world.root("root", &top).await;
        let only =
            world.gs.new_root("only", ParentKind::Job, PermPair::new(Perm::WRITE, Perm::empty()), &world.gs.main_io());
        let spare = world.add(r#"{"driver": "leaf", "node-name": "spare"}"#).await;
        world.gs.attach_root(&only, Some(&spare)).await.expect("nobody is there");
        let filter = world.add(r#"{"driver": "pass", "node-name": "f", "tag": "old", "file": "b-file"}"#).await;
        let before = world.graph();
        let first = ("top", r#"{"backing": "a"}"#);
        for (second, told) in [
            (("b", r#"{"file": "nobody"}"#), "Cannot find device='' nor node-name='nobody'"),
            (("b", r#"{"bogus": 1}"#), "Cannot change the option 'bogus'"),
            (("f", r#"{"tag": "bad"}"#), "f does not want to"),
            (
                ("top", r#"{"backing": "a", "read-only": true}"#),
                "Read-only block node 'top' cannot support read-write users",
            ),
            (
                ("b", r#"{"file": "spare"}"#),
                "Permission conflict on node 'spare': permissions 'consistent read, write, resize' are both required by node 'b' \
                 (uses node 'spare' as 'file' child) and unshared by block job 'only' (uses node 'spare' as 'root' child).",
            ),
        ] {
            assert_eq!(message(reopen(&world, &[first, second], LeftOut::Stays).await), told);
            assert_eq!(world.graph(), before, "{told}");
        }
        assert_eq!(root.io().write(0, buffer(512), Default::default()).await.0, Ok(()));
        drop(filter);
        // Of a node that is there twice the last one counts.
        let twice = [first, ("top", r#"{"backing": "b"}"#)];
        reopen(&world, &twice, LeftOut::Stays).await.expect("it reopens");
        assert_eq!(child(&world, &top, "backing").0.as_deref(), Some("b"));
        world.gs.close_root(only).await;
    });
}

/// Scenario: a node and the child that was opened for it are both named, in either order.
#[test]
fn a_child_that_is_named_has_what_it_is_given_and_its_parents_rest() {
    let world = World::new();
    world.run_and_close(async {
        let top = r#"{"driver": "pass", "node-name": "top", "file": {"driver": "pass", "node-name": "mid", "file": {"driver": "leaf", "node-name": "low"}}}"#;
        let top = world.add(top).await;
        let mid = world.gs.find_node("mid").expect("it is there");
        for turn in 0..2 {
            let mut both = [("top", r#"{"read-only": true}"#), ("mid", r#"{"tag": "x", "read-only": false}"#)];
            both.rotate_left(turn);
            reopen(&world, &both, LeftOut::Stays).await.expect("it reopens");
            assert!(top.io().is_read_only() && !mid.io().is_read_only(), "{turn}");
            reopen(&world, &[("mid", r#"{}"#)], LeftOut::Default).await.expect("it reopens");
            assert!(mid.io().is_read_only(), "it takes that from the one that it was opened for");
            reopen(&world, &[("top", r#"{}"#)], LeftOut::Default).await.expect("it reopens");
            assert!(!top.io().is_read_only() && !mid.io().is_read_only());
        }
    });
}

#[test]
fn reopen_3_what_has_no_default_is_named() {
    let world = World::new();
    world.run_and_close(async {
        world.add(r#"{"driver": "leaf", "node-name": "low", "size": 4096}"#).await;
        let told = message(reopen(&world, &[("low", r#"{}"#)], LeftOut::Default).await);
        assert_eq!(told, "Option 'size' cannot be reset to its default value");
        reopen(&world, &[("low", r#"{"size": 4096, "read-only": true}"#)], LeftOut::Default).await.expect("it reopens");
    });
}

/// A chain may not become too long, however many changes make it so.
#[test]
fn chains_stay_short_enough() {
    let world = World::new();
    world.run_and_close(async {
        let chain = async |name: &str, len: usize| {
            let mut node = world.add(&format!(r#"{{"driver": "leaf", "node-name": "{name}-0"}}"#)).await;
            for at in 1..len {
                let json = format!(r#"{{"driver": "pass", "node-name": "{name}-{at}", "file": "{}"}}"#, node.name());
                node = world.add(&json).await;
            }
            node
        };
        chain("a", 400).await;
        chain("b", 400).await;
        chain("c", 400).await;
        let before = world.graph();
        let both = [("a-1", r#"{"file": "b-399"}"#), ("b-1", r#"{"file": "c-399"}"#)];
        let told = message(reopen(&world, &both, LeftOut::Stays).await);
        assert!(told.ends_with("would be on top of a chain of more than 1024 nodes"), "{told}");
        assert_eq!(world.graph(), before);
        reopen(&world, &both[..1], LeftOut::Stays).await.expect("that is short enough");
        let told = message(reopen(&world, &both[1..], LeftOut::Stays).await);
        assert!(told.ends_with("would be on top of a chain of more than 1024 nodes"), "{told}");
        // One goes, and another one comes.
        let instead = [("a-1", r#"{"file": "a-0"}"#), ("b-1", r#"{"file": "c-399"}"#)];
        reopen(&world, &instead, LeftOut::Stays).await.expect("that is short enough");
    });
}

/// Scenario: a filter is put below a node and taken out again, and its file changes places with another one, while two threads write and read. No request is lost, and none
/// meets a child that it should not.
#[test]
fn reopen_1_children_change_under_load() {
    let world = World::new();
    world.run_and_close(async {
        let top =
            r#"{"driver": "pass", "node-name": "top", "file": {"driver": "leaf", "node-name": "low", "fast": true}}"#;
        let top = world.add(top).await;
        world.add(r#"{"driver": "leaf", "node-name": "other", "fast": true}"#).await;
        let low = world.gs.find_node("low").expect("it is there");
        world.gs.set_monitor_owned(&low, true);
        world.add(r#"{"driver": "pass", "node-name": "filter", "file": "low"}"#).await;
        let root = world.root("root", &top).await;
        let load = Load::start(&[root.io().clone()], 2);
        for file in ["filter", "other", "low"].iter().cycle().take(60) {
            let json = format!(r#"{{"file": "{file}"}}"#);
            reopen(&world, &[("top", json.as_str())], LeftOut::Stays).await.expect("it reopens");
            let before = load.completed();
            world.until("requests go on", || load.completed() > before).await;
        }
        let outcome = load.stop();
        assert_eq!((outcome.completed, outcome.failed.len()), (outcome.submitted, 0));
    });
}
