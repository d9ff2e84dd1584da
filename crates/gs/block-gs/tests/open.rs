//! Opening: children by value and by reference, what they inherit, names, failures half-way, and who is waited for.

mod common;

use async_trait::async_trait;
use block_common::options::{DriverKind, Value};
use block_common::{ChildName, ChildRole, DetectZeroes, DiscardMode, OptionReader, ParentKind, Perm, PermPair};
use block_gs::{CommonOptions, DriverType, GraphError, GraphResult, NoControl, OpenContext, Opened};
use block_io::GateState;
use block_null::{Null, NullOptions};
use common::drivers::LeafControl;
use common::{World, dotted, image_opts, json_options, loose, message, poll_once};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

#[test]
fn children_are_opened_with_their_parent_or_found_by_name() {
    let world = World::new();
    world.run_and_close(async {
        world.add(r#"{"driver": "leaf", "node-name": "base", "size": 4096}"#).await;
        let top = r#"{"driver": "fmt", "node-name": "top", "backing": "base",
                      "file": {"driver": "pass", "file": {"driver": "leaf", "node-name": "inner", "size": 8192}}}"#;
        let top = world.add(top).await;
        let info = world.info(&top);
        assert_eq!((info.driver, info.length, info.read_only, info.monitor_owned), ("fmt", 8192, false, true));
        let children: BTreeMap<_, _> =
            info.children.iter().map(|(edge, child, _)| (&**edge, child.as_deref())).collect();
        assert_eq!(children["backing"], Some("base"));
        let filter = children["file"].expect("it has a file").to_owned();
        assert!(filter.starts_with("#block"), "{filter}");
        let filter = world.gs.find_node(&filter).expect("it can be found by the name it was given");
        assert_eq!(world.info(&filter).children[0].1.as_deref(), Some("inner"));
        assert_eq!(
            world.info(&filter).parents,
            [format!("node 'top' (uses node '{}' as 'file' child)", filter.name())]
        );
        // The children of their parent alone: nobody else holds them.
        assert!(!world.info(&filter).monitor_owned);
        // In the order of opening.
        let names: Vec<_> = world.gs.nodes().into_iter().map(|node| node.name).collect();
        assert_eq!(names, ["base", "inner", filter.name(), "top"]);
        assert_eq!(
            world.gs.child(&top, "file").expect("there is such an edge").expect("a child").name(),
            filter.name()
        );
    });
}

#[test]
fn the_three_ways_of_writing_options_open_the_same() {
    let world = World::new();
    world.run_and_close(async {
        let ways = [
            json_options(
                r#"{"driver": "pass", "node-name": "a", "file": {"driver": "leaf", "size": 65536, "read-only": true}}"#,
            ),
            dotted("pass,node-name=b,file.driver=leaf,file.size=65536,file.read-only=on"),
            image_opts("driver=pass,node-name=c,file.driver=leaf,file.size=64k,file.read-only=on"),
        ];
        let mut opened = Vec::new();
        for options in ways {
            opened.push(world.gs.open(options).await.expect("it opens"));
        }
        for node in &opened {
            assert_eq!(world.info(node).length, 65536);
            let child = world.gs.child(node, "file").expect("an edge").expect("a child");
            assert!(world.info(&child).read_only && !world.info(node).read_only);
        }
    });
}

#[test]
fn an_absent_or_null_child_is_an_edge_that_leads_nowhere() {
    let world = World::new();
    world.run_and_close(async {
        for (name, backing) in [("a", ""), ("b", r#""backing": null,"#)] {
            let json = format!(r#"{{"driver": "fmt", "node-name": "{name}", {backing} "file": {{"driver": "leaf"}}}}"#);
            let node = world.open(&json).await.expect("it opens");
            assert!(world.gs.child(&node, "backing").expect("the edge is there").is_none());
        }
    });
}

/// Remembers what its nodes were opened with.
struct Spy(Rc<RefCell<BTreeMap<String, CommonOptions>>>);

#[async_trait(?Send)]
impl DriverType for Spy {
    fn name(&self) -> &'static str {
        "spy"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        self.0.borrow_mut().insert(context.node_name(), context.common());
        for (name, role) in [("file", ChildRole::IMAGE), ("backing", ChildRole::COW)] {
            drop(context.optional_child(options, ChildName::from(name), role).await?);
        }
        let (engine, _) = Null::new(NullOptions::default());
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

#[test]
fn children_inherit_modes_unless_they_say_otherwise() {
    let world = World::new();
    let seen = Rc::new(RefCell::new(BTreeMap::new()));
    world.gs.register(Rc::new(Spy(seen.clone())));
    world.run_and_close(async {
        let json = r#"{"driver": "spy", "node-name": "top", "auto-read-only": true, "detect-zeroes": "on",
            "cache": {"direct": true},
            "file": {"driver": "spy", "node-name": "file", "cache": {"no-flush": true},
                     "file": {"driver": "spy", "node-name": "own", "auto-read-only": false, "cache": {"direct": false}}},
            "backing": {"driver": "spy", "node-name": "backing",
                        "file": {"driver": "spy", "node-name": "below"}}}"#;
        let top = world.open(json).await.expect("it opens");
        let seen = seen.borrow();
        let top_modes = CommonOptions {
            auto_read_only: true,
            detect_zeroes: DetectZeroes::On,
            cache_direct: true,
            ..CommonOptions::default()
        };
        assert_eq!(seen["top"], top_modes);
        // Zeroes are looked for where it was asked for; discards were let through above or are the driver's own.
        let file = CommonOptions {
            detect_zeroes: DetectZeroes::Off,
            discard: DiscardMode::Unmap,
            cache_no_flush: true,
            ..top_modes
        };
        assert_eq!(seen["file"], file);
        assert_eq!(seen["own"], CommonOptions { auto_read_only: false, cache_direct: false, ..file });
        // A backing file is read, and so is what is below it.
        let backing = CommonOptions { read_only: true, auto_read_only: false, cache_no_flush: false, ..file };
        assert_eq!(seen["backing"], backing);
        assert_eq!(seen["below"], backing);
        drop(top);
    });
}

#[test]
fn a_backing_file_may_be_opened_for_writing_expressly() {
    let world = World::new();
    world.run_and_close(async {
        let json = r#"{"driver": "fmt", "node-name": "top", "file": {"driver": "leaf"},
                       "backing": {"driver": "leaf", "node-name": "base", "read-only": false}}"#;
        let _top = world.add(json).await;
        assert!(!world.info(&world.gs.find_node("base").expect("it is there")).read_only);
    });
}

#[test]
fn a_node_shows_the_options_it_was_opened_with_and_its_children_by_name() {
    let world = World::new();
    world.run_and_close(async {
        let json = r#"{"driver": "fmt", "node-name": "top", "cache": {"direct": true}, "backing": null,
                       "file": {"driver": "leaf", "node-name": "inner", "size": 4096}}"#;
        let top = world.add(json).await;
        let options = world.info(&top).options;
        let shown =
            r#"{"driver": "fmt", "node-name": "top", "cache": {"direct": true}, "backing": null, "file": "inner"}"#;
        assert_eq!(options.to_string(), shown);
        let inner = world.info(&world.gs.find_node("inner").expect("it is there")).options;
        assert_eq!(inner.lookup("size"), Some(&Value::Int(4096u64.into())));
    });
}

#[test]
fn a_failure_anywhere_leaves_the_graph_as_it_was() {
    let world = World::new();
    world.run_and_close(async {
        world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let before = world.graph();
        let inner = r#"{"driver": "pass", "node-name": "p", "file": {"driver": "leaf", "node-name": "l"}}"#;
        let cases = [
            (format!(r#"{{"driver": "fmt", "fail": "first", "file": {inner}}}"#), "failed as asked: first"),
            (format!(r#"{{"driver": "fmt", "fail": "header", "file": {inner}}}"#), "Could not read the header: Input/output error"),
            (format!(r#"{{"driver": "fmt", "fail": "last", "backing": "base", "file": {inner}}}"#), "failed as asked: last"),
            // The engine exists when its options are found to be too many.
            (format!(r#"{{"driver": "fmt", "file": {inner}, "bogus": 1}}"#), "Parameter 'bogus' is unexpected"),
            (r#"{"driver": "leaf", "bogus": 1}"#.into(), "Parameter 'bogus' is unexpected"),
            (r#"{"driver": "leaf", "node-name": "l", "fail-length": true}"#.into(), "Could not refresh total sector count: Input/output error"),
            (r#"{"driver": "leaf", "node-name": "l", "fail-open": true}"#.into(), "Could not open leaf 'l'"),
            // The second child fails, the first one goes.
            (format!(r#"{{"driver": "fmt", "file": {inner}, "backing": {{"driver": "leaf", "fail-length": true, "node-name": "m"}}}}"#),
             "Could not refresh total sector count: Input/output error"),
            (format!(r#"{{"driver": "fmt", "file": {inner}, "backing": "nowhere"}}"#),
             "Cannot find device='nowhere' nor node-name='nowhere'"),
            // Both ways lead to the same file, which one grows and the other reads.
            (r#"{"driver": "fmt", "file": {"driver": "fmt", "node-name": "g", "file": "base"},
                 "backing": {"driver": "fmt", "node-name": "h", "file": "base"}}"#.into(),
             "Permission conflict on node 'base': permissions 'resize' are both required by node 'g' (uses node 'base' as 'file' child) \
              and unshared by node 'h' (uses node 'base' as 'file' child)."),
            (format!(r#"{{"driver": "fmt", "file": {{"driver": "leaf", "read-only": true, "node-name": "ro"}}, "backing": {inner}}}"#),
             "Block node 'ro' is read-only"),
        ];
        for (json, expected) in cases {
            assert_eq!(message(world.open(&json).await), expected, "{json}");
            // Not in its own time: when the caller hears of it, it is done.
            assert_eq!(world.graph(), before, "{json}");
            assert_eq!(world.leaves.open_count(), 1, "{json}");
        }
    });
}

#[test]
fn a_failure_is_told_when_everything_that_was_opened_is_closed() {
    let world = World::new();
    world.run_and_close(async {
        let held = r#"{"driver": "leaf", "node-name": "l", "held": true}"#;
        // A child that is complete; the engine of the node itself, which flushes its child.
        let cases = [
            format!(r#"{{"driver": "fmt", "file": {held}, "backing": "nowhere"}}"#),
            format!(r#"{{"driver": "pass", "file": {held}, "bogus": 1}}"#),
        ];
        for json in cases {
            let mut opening = Box::pin(world.open(&json));
            assert!(poll_once(&mut opening).await.is_none());
            world.until("the leaf is there", || world.leaves.open_count() == 1).await;
            world.until("it is being closed", || world.leaf("l").flushes() == 1).await;
            assert!(poll_once(&mut opening).await.is_none());
            world.leaf("l").hold(false);
            assert!(opening.await.is_err());
            assert!(world.gs.nodes().is_empty());
        }
    });
}

#[test]
fn an_engine_that_does_not_make_it_is_closed_with_its_error_swallowed() {
    let world = World::new();
    world.run(async {
        let json = r#"{"driver": "leaf", "node-name": "l", "fail-close": 5, "fail-flush": 28, "bogus": 1}"#;
        assert_eq!(message(world.open(json).await), "Parameter 'bogus' is unexpected");
        assert_eq!(world.leaf("l").closes(), 1);
        // A child's error is told by whoever waits next.
        let json =
            r#"{"driver": "fmt", "fail": "last", "file": {"driver": "leaf", "node-name": "l", "fail-close": 5}}"#;
        assert_eq!(message(world.open(json).await), "failed as asked: last");
        assert_eq!(message(world.gs.settle().await), "Closing node 'l' failed: Input/output error");
    });
    world.close();
}

#[test]
fn names_are_free_again_as_soon_as_the_last_reference_is_dropped() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.open(r#"{"driver": "leaf", "node-name": "a"}"#).await.expect("it opens");
        let old = world.leaf("a");
        old.hold(true);
        drop(node);
        // Its flush hangs; the name is another node's meanwhile.
        assert!(matches!(world.gs.find_node("a"), Err(GraphError::NotFound(_))));
        let node = world.open(r#"{"driver": "leaf", "node-name": "a", "size": 512}"#).await.expect("the name is free");
        assert_eq!(world.gs.nodes().len(), 2);
        old.hold(false);
        world.gs.settle().await.expect("it closes");
        assert_eq!(world.info(&world.gs.find_node("a").expect("the new one")).length, 512);
        drop(node);
    });
}

#[test]
fn backends_and_nodes_share_one_name_space() {
    let world = World::new();
    world.run_and_close(async {
        let root = world.gs.new_root("drive0", ParentKind::Backend, loose(Perm::empty()), &world.gs.main_io());
        let unnamed = world.gs.new_root("", ParentKind::Backend, loose(Perm::empty()), &world.gs.main_io());
        let job = world.gs.new_root("job0", ParentKind::Job, loose(Perm::empty()), &world.gs.main_io());
        let json = r#"{"driver": "leaf", "node-name": "drive0"}"#;
        assert_eq!(message(world.open(json).await), "node-name=drive0 is conflicting with a device id");
        world.open(r#"{"driver": "leaf", "node-name": "job0"}"#).await.expect("jobs have names of their own");
        drop(root);
        world.open(json).await.expect("the name is free");
        drop((unnamed, job));
    });
}

#[test]
fn users_on_their_way_out_are_waited_for() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let first = world.open(r#"{"driver": "fmt", "node-name": "first", "file": "base"}"#).await.expect("it opens");
        let second = r#"{"driver": "fmt", "node-name": "second", "file": "base"}"#;
        assert!(matches!(world.open(second).await, Err(GraphError::Permission { .. })));
        // As in a program that waits for nothing: dropped, and the next one at once.
        drop(first);
        let second = world.open(second).await.expect("the first one is gone by then");
        let exclusive = world.gs.new_root("x", ParentKind::Backend, PermPair::EXCLUSIVE, &world.gs.main_io());
        assert!(matches!(world.gs.attach_root(&exclusive, Some(&base)).await, Err(GraphError::Permission { .. })));
        drop(second);
        world.gs.attach_root(&exclusive, Some(&base)).await.expect("nobody else is there by then");
        drop(exclusive);
        world.open(r#"{"driver": "fmt", "node-name": "third", "file": "base"}"#).await.expect("it is gone by then");
    });
}

#[test]
fn a_closing_that_hangs_elsewhere_does_not_hold_up_a_refusal() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let other = world.open(r#"{"driver": "leaf", "node-name": "other"}"#).await.expect("it opens");
        world.leaf("other").hold(true);
        drop(other);
        let format = world.open(r#"{"driver": "fmt", "file": "base"}"#).await.expect("it opens");
        assert!(matches!(world.open(r#"{"driver": "fmt", "file": "base"}"#).await, Err(GraphError::Permission { .. })));
        assert!(matches!(world.gs.close(base).await, Err(GraphError::InUse(name)) if name == "base"));
        world.leaf("other").hold(false);
        drop(format);
    });
}

#[test]
fn a_node_that_is_opened_on_a_drained_one_reads_its_header_and_stays_closed() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let guard = world.gs.drain(&base).await;
        let top = world.open(r#"{"driver": "fmt", "node-name": "top", "file": "base"}"#).await.expect("it opens");
        assert_eq!(world.leaf("base").ended(), 1, "the header was read");
        assert!(world.is_quiesced(&top) && guard.covers(&top));
        drop(guard);
        assert!(!world.is_quiesced(&top));
    });
}

#[test]
fn nothing_is_repointed_while_a_header_is_read_through_it() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "base"}"#).await;
        let guard = world.gs.drain(&filter).await;
        world.leaf("base").hold(true);
        let opening = world.open(r#"{"driver": "fmt", "node-name": "top", "file": "filter"}"#);
        world.until("the header is being read", || world.leaf("base").in_flight() == 1).await;
        assert!(matches!(
            world.gs.replace_child(&guard, &filter, "file", None),
            Err(GraphError::NotDrained(name)) if name == "filter"
        ));
        // A section that begins now, or is asked again, waits for it.
        let mut again = Box::pin(guard.settled());
        let mut all = Box::pin(world.gs.drain_all());
        world.pause().await;
        assert!(poll_once(&mut again).await.is_none() && poll_once(&mut all).await.is_none());
        world.leaf("base").hold(false);
        let top = opening.await.expect("it opens");
        again.await;
        drop(all.await);
        assert!(world.gs.replace_child(&guard, &filter, "file", Some(&base)).is_ok());
        drop(top);
    });
}

#[test]
fn a_node_under_construction_is_nobodys_business() {
    let world = World::new();
    world.run_and_close(async {
        world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        world.leaf("base").hold(true);
        let opening = world.open(r#"{"driver": "fmt", "node-name": "top", "file": "base"}"#);
        world.until("the header is being read", || world.leaf("base").in_flight() == 1).await;
        assert_eq!(world.gs.nodes().len(), 1);
        assert!(world.gs.find_node("top").is_err());
        // Its child has no user yet, but a reference: it cannot be closed.
        let base = world.gs.find_node("base").expect("it is there");
        assert!(matches!(world.gs.close(base).await, Err(GraphError::InUse(_))));
        world.leaf("base").hold(false);
        opening.await.expect("it opens");
    });
}

#[test]
fn the_control_half_is_its_drivers_and_may_use_the_graph() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let seen = world.gs.with_control(&node, |control: &mut LeafControl| {
            // Looks at the graph, changes it, drops references: it is not borrowed.
            let guard = world.gs.drain_all();
            drop(guard);
            world.gs.set_monitor_owned(&node, true);
            control.0.began() + world.gs.nodes().len() as u64
        });
        assert_eq!(seen.expect("it is a leaf"), 1);
        assert!(world.gs.with_control(&node, |_: &mut NoControl| ()).is_err());
    });
}

#[test]
fn a_node_is_closed_to_io_after_its_end() {
    let world = World::new();
    let io = world.run_and_close(async {
        let node = world.open(r#"{"driver": "leaf", "node-name": "a"}"#).await.expect("it opens");
        node.io().clone()
    });
    assert!(io.state().contains(GateState::CLOSED));
}
