//! Reopening: all nodes or none, in order, while requests wait.

mod common;

use block_common::{IoError, ParentKind, Perm, PermPair};
use block_gs::{GraphResult, LeftOut, NodeRef};
use common::load::Load;
use common::{World, buffer, json_options, loose, message, poll_once};

async fn reopen(world: &World, node: &NodeRef, changes: &str) -> GraphResult<()> {
    world.gs.reopen(node, json_options(changes), LeftOut::Stays).await
}

/// Two filters, the lower one opened for the upper one, above a leaf that was, too.
const TOWER: &str = r#"{"driver": "pass", "node-name": "top", "tag": "old", "file":
    {"driver": "pass", "node-name": "mid", "file": {"driver": "leaf", "node-name": "low", "fast": true}}}"#;

#[test]
fn reopen_1_all_prepare_before_any_commits() {
    let world = World::new();
    world.run_and_close(async {
        let top = world.add(TOWER).await;
        let changes = r#"{"tag": "new", "file": {"tag": "other"}}"#;
        reopen(&world, &top, changes).await.expect("it reopens");
        // Children commit before parents (rule reopen-2).
        assert_eq!(world.leaves.reopens(), ["prepare top new", "prepare mid other", "commit mid", "commit top"]);
        // What does not change is not asked.
        reopen(&world, &top, changes).await.expect("it reopens");
        assert_eq!(world.leaves.reopens(), Vec::<String>::new());
        reopen(&world, &top, r#"{"file": {"tag": "third"}}"#).await.expect("it reopens");
        assert_eq!(world.leaves.reopens(), ["prepare mid third", "commit mid"]);
        let shown = |node: &str| {
            let info = world.info(&world.gs.find_node(node).expect("it is there"));
            info.options.lookup("tag").map(|tag| format!("{tag:?}"))
        };
        assert_eq!((shown("top"), shown("mid")), (Some("Str(\"new\")".into()), Some("Str(\"third\")".into())));
    });
}

#[test]
fn reopen_2_one_refusal_and_nothing_has_happened() {
    let world = World::new();
    world.run_and_close(async {
        let top = world.add(TOWER).await;
        let root = world.root("root", &top).await;
        let before = world.graph();
        let changes = r#"{"tag": "new", "file": {"tag": "bad"}}"#;
        assert_eq!(message(reopen(&world, &top, changes).await), "mid does not want to");
        assert_eq!(world.leaves.reopens(), ["prepare top new", "prepare mid bad", "abort top"]);
        // The last one refuses: that a node gets no writers is seen when everything is prepared.
        let changes = r#"{"tag": "new", "read-only": true}"#;
        let told = "Read-only block node 'top' cannot support read-write users";
        assert_eq!(message(reopen(&world, &top, changes).await), told);
        assert_eq!(world.leaves.reopens(), ["prepare top new", "prepare mid ", "abort top", "abort mid"]);
        // A flush that fails: nobody is asked.
        world.write(&top).await;
        world.leaf("low").fail_flush(28);
        let told = message(reopen(&world, &top, r#"{"tag": "new"}"#).await);
        assert_eq!(told, "Error flushing drive: No space left on device");
        world.leaf("low").fail_flush(0);
        assert_eq!((world.graph(), world.leaves.reopens()), (before, Vec::<String>::new()));
        assert_eq!(root.io().write(0, buffer(512), Default::default()).await.0, Ok(()));
    });
}

/// What is written while the first flush is under way is on the disk before a mode begins in which flushes do nothing. Others need not wait for that.
#[test]
fn reopen_1_what_was_written_meanwhile_is_flushed_where_modes_change() {
    let check = |changes: &str, expected: u64| {
        let world = World::new();
        world.run_and_close(async {
            let _leaf = world.add(r#"{"driver": "leaf", "node-name": "low"}"#).await;
            // By itself, so that one flush is all that comes first.
            let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "low"}"#).await;
            let low = world.leaf("low");
            world.write(&top).await;
            low.hold(true);
            let mut reopening = Box::pin(reopen(&world, &top, changes));
            assert!(poll_once(&mut reopening).await.is_none());
            world.until("the flush is in the leaf", || low.flushes() == 1).await;
            let root = world.root("root", &top).await;
            let mut write = Box::pin(root.io().write(0, buffer(512), Default::default()));
            assert!(poll_once(&mut write).await.is_none());
            world.until("the write is in the leaf", || low.in_flight() == 1).await;
            low.hold(false);
            assert_eq!(write.await.0, Ok(()));
            reopening.await.expect("it reopens");
            assert_eq!(low.flushes(), expected, "{changes}");
            world.gs.close_root(root).await;
        });
    };
    check(r#"{"tag": "new"}"#, 1);
    check(r#"{"cache": {"no-flush": true}}"#, 2);
    check(r#"{"cache": {"direct": true}}"#, 2);
}

#[test]
fn reopen_3_options_that_cannot_change_are_named() {
    let world = World::new();
    world.run_and_close(async {
        let top = world.add(TOWER).await;
        let other = world.add(r#"{"driver": "leaf", "node-name": "other"}"#).await;
        let before = world.graph();
        for (changes, told) in [
            (r#"{"driver": "leaf"}"#, "Cannot change the option 'driver'"),
            (r#"{"node-name": "x"}"#, "Cannot change the option 'node-name'"),
            (r#"{"force-share": true}"#, "Cannot change the option 'force-share'"),
            (r#"{"slow": true}"#, "Cannot change the option 'slow'"),
            (r#"{"file": {"slow": true}}"#, "Cannot change the option 'slow'"),
            (r#"{"file": {"file": {"size": 5}}}"#, "Cannot change the option 'size'"),
            (r#"{"bogus": 1}"#, "Cannot change the option 'bogus'"),
            (r#"{"file": "nobody"}"#, "Cannot find device='' nor node-name='nobody'"),
            (r#"{"file": null}"#, "Invalid parameter type for 'file', expected: BlockdevRef"),
            (r#"{"file": ["other"]}"#, "Invalid parameter type for 'file', expected: BlockdevRef"),
            (
                r#"{"detect-zeroes": "unmap"}"#,
                "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
            ),
        ] {
            assert_eq!(message(reopen(&world, &top, changes).await), told);
        }
        assert_eq!((world.graph(), world.leaves.reopens()), (before, Vec::<String>::new()));
        // As they are, they may be named.
        let same = r#"{"driver": "pass", "node-name": "top", "force-share": false, "file": "mid", "tag": "old"}"#;
        reopen(&world, &top, same).await.expect("nothing changes");
        // A node that somebody else opened is not one's own to change.
        let above = world.add(r#"{"driver": "pass", "node-name": "above", "file": "other"}"#).await;
        let told = "Cannot change the option 'file.driver'";
        assert_eq!(message(reopen(&world, &above, r#"{"file": {"read-only": true}}"#).await), told);
        reopen(&world, &above, r#"{"read-only": true}"#).await.expect("its own it is");
        assert!(above.io().is_read_only() && !other.io().is_read_only());
    });
}

#[test]
fn reopen_3_what_is_left_out_stays_or_returns_to_its_default() {
    let world = World::new();
    world.run_and_close(async {
        let top = world.add(TOWER).await;
        let changes = || json_options(r#"{"read-only": true}"#);
        world.gs.reopen(&top, changes(), LeftOut::Default).await.expect("it reopens");
        assert_eq!(world.leaves.reopens(), ["prepare top ", "prepare mid ", "commit mid", "commit top"]);
        // What its children do not say themselves they take from it.
        let all = ["top", "mid", "low"].map(|name| world.gs.find_node(name).expect("it is there"));
        assert!(all.iter().all(|node| node.io().is_read_only()));
        let root = world.gs.new_root("r", ParentKind::Backend, loose(Perm::CONSISTENT_READ), &world.gs.main_io());
        world.gs.attach_root(&root, Some(&top)).await.expect("it is only read");
        assert_eq!(root.io().write(0, buffer(512), Default::default()).await.0, Err(IoError::NOT_PERMITTED));
        let writing = PermPair::new(Perm::WRITE, Perm::all());
        assert_eq!(message(world.gs.set_root_perm(&root, writing)), "Block node 'top' is read-only");
        world.gs.reopen(&top, json_options("{}"), LeftOut::Stays).await.expect("it reopens");
        assert!(top.io().is_read_only());
        world.gs.reopen(&top, json_options("{}"), LeftOut::Default).await.expect("it reopens");
        assert!(all.iter().all(|node| !node.io().is_read_only()));
        world.gs.set_root_perm(&root, writing).expect("it may be written");
        assert_eq!(root.io().write(0, buffer(512), Default::default()).await.0, Ok(()));
    });
}

/// A node that was looked at before its format was known takes its options from the format's afterwards.
#[test]
fn an_adopted_child_follows_its_parent() {
    let world = World::new();
    world.run_and_close(async {
        let low = world.add(r#"{"driver": "leaf", "node-name": "low"}"#).await;
        let top = world.add(r#"{"driver": "pass", "node-name": "top", "file": "low"}"#).await;
        world.gs.adopt(&top, "file").expect("there is such an edge");
        reopen(&world, &top, r#"{"read-only": true}"#).await.expect("it reopens");
        assert!(low.io().is_read_only());
    });
}

/// Nothing is in flight while nodes commit, and no request is lost.
#[test]
fn reopen_1_under_load() {
    let world = World::new();
    world.run_and_close(async {
        let top = world.add(TOWER).await;
        let root = world.root("root", &top).await;
        let load = Load::start(&[root.io().clone()], 2);
        for round in 0..50 {
            let changes = format!(r#"{{"tag": "{round}", "file": {{"tag": "{round}"}}}}"#);
            reopen(&world, &top, &changes).await.expect("it reopens");
            let before = load.completed();
            world.until("requests go on", || load.completed() > before).await;
        }
        let outcome = load.stop();
        assert_eq!((outcome.completed, outcome.failed.len()), (outcome.submitted, 0));
        assert_eq!(world.leaves.reopens().len(), 200);
    });
}

/// Whoever asked for it may go: it happens as a whole.
#[test]
fn a_dropped_reopen_runs_to_its_end() {
    let world = World::new();
    world.run_and_close(async {
        let top = world.add(TOWER).await;
        drop(world.gs.reopen(&top, json_options(r#"{"tag": "new"}"#), LeftOut::Stays));
        // The next mutation comes after it.
        reopen(&world, &top, r#"{"file": {"tag": "x"}}"#).await.expect("it reopens");
        assert_eq!(world.leaves.reopens(), ["prepare top new", "commit top", "prepare mid x", "commit mid"]);
    });
}
