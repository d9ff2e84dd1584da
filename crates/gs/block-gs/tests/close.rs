//! Closing: in which order, what is waited for, who is told of errors, and what whoever is left holding gets.

mod common;

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    BlockStatus, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, OptionReader, ParentKind, Perm,
    RequestFlags, StatusExtent,
};
use block_gs::{DriverType, Event, GraphError, GraphResult, NoControl, NodeRef, OpenContext, Opened};
use block_io::{Driver, GateState, Req};
use common::load::Load;
use common::{World, buffer, loose, message, poll_once};
use std::rc::Rc;

const ENOSPC: IoError = IoError::host(28);

async fn open(world: &World, json: &str) -> NodeRef {
    world.open(json).await.expect(json)
}

#[test]
fn close_1_parents_close_before_their_children() {
    let world = World::new();
    world.run_and_close(async {
        let json = r#"{"driver": "fmt", "node-name": "top", "file": {"driver": "leaf", "node-name": "a"},
                       "backing": {"driver": "pass", "node-name": "mid", "file": {"driver": "leaf", "node-name": "b"}}}"#;
        let top = open(&world, json).await;
        let (a, b) = (world.leaf("a"), world.leaf("b"));
        world.write(&top).await;
        a.hold(true);
        drop(top);
        world.until("the top's flush is in its file", || a.flushes() == 1).await;
        world.pause().await;
        assert_eq!((a.closes(), b.closes(), world.gs.nodes().len()), (0, 0, 4));
        a.hold(false);
        world.gs.settle().await.expect("it closes");
        // The top's flush, and its own; what is below `backing` is only read.
        assert_eq!((a.flushes(), a.closes(), b.flushes(), b.closes()), (2, 1, 0, 1));
        assert!(world.gs.nodes().is_empty());
    });
}

#[test]
fn a_child_that_somebody_else_uses_stays() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let top = open(&world, r#"{"driver": "pass", "node-name": "top", "file": "base"}"#).await;
        world.gs.close(top).await.expect("it closes");
        assert_eq!((world.leaf("base").closes(), world.gs.nodes().len()), (0, 1));
        assert!(world.info(&base).parents.is_empty());
    });
}

#[test]
fn close_2_a_failed_flush_is_told_by_close_and_as_an_event() {
    let world = World::new();
    world.run(async {
        let mut events = world.gs.take_events().expect("nobody took them");
        let node = open(&world, r#"{"driver": "leaf", "node-name": "a", "fail-flush": 28}"#).await;
        assert_eq!(message(world.gs.close(node).await), "Closing node 'a' failed: No space left on device");
        assert_eq!(events.try_next(), Some(Event::CloseFailed { node: "a".into(), error: ENOSPC }));
        // Told once; closed all the same.
        world.gs.settle().await.expect("nothing is left to be told");
        assert_eq!(world.leaf("a").closes(), 1);
        // The close itself; of both errors the first.
        let node = open(&world, r#"{"driver": "leaf", "node-name": "b", "fail-close": 5}"#).await;
        assert_eq!(message(world.gs.close(node).await), "Closing node 'b' failed: Input/output error");
        let node = open(&world, r#"{"driver": "leaf", "node-name": "c", "fail-close": 5, "fail-flush": 28}"#).await;
        assert_eq!(message(world.gs.close(node).await), "Closing node 'c' failed: No space left on device");
        assert_eq!(world.leaf("c").closes(), 1);
        // One that cannot have been written is not flushed.
        let node = open(&world, r#"{"driver": "leaf", "node-name": "d", "fail-flush": 28, "read-only": true}"#).await;
        world.gs.close(node).await.expect("no flush, no error");
        assert_eq!((world.leaf("d").flushes(), world.leaf("d").closes()), (0, 1));
        // A child's, when it goes with its parent.
        let json =
            r#"{"driver": "pass", "node-name": "top", "file": {"driver": "leaf", "node-name": "e", "fail-close": 5}}"#;
        let node = open(&world, json).await;
        assert_eq!(message(world.gs.close(node).await), "Closing node 'e' failed: Input/output error");
    });
    world.close();
}

#[test]
fn close_2_errors_of_nodes_that_were_just_dropped_are_told_by_settle_and_close_all() {
    let world = World::new();
    world.run(async {
        for name in ["a", "b"] {
            drop(open(&world, &format!(r#"{{"driver": "leaf", "node-name": "{name}", "fail-close": 5}}"#)).await);
        }
        assert_eq!(message(world.gs.settle().await), "Closing node 'a' failed: Input/output error");
        world.gs.settle().await.expect("it was told");
        drop(open(&world, r#"{"driver": "leaf", "node-name": "c", "fail-close": 5}"#).await);
        world.pause().await;
        world.add(r#"{"driver": "leaf", "node-name": "d", "fail-flush": 28}"#).await;
        assert_eq!(message(world.gs.close_all().await), "Closing node 'c' failed: Input/output error");
        assert!(world.gs.nodes().is_empty());
        world.gs.close_all().await.expect("all is closed, and was told");
    });
    world.close();
}

#[test]
fn close_2_an_error_is_told_to_who_closed_that_node() {
    let world = World::new();
    world.run(async {
        let bad = open(&world, r#"{"driver": "leaf", "node-name": "bad", "fail-close": 5}"#).await;
        let good = open(&world, r#"{"driver": "leaf", "node-name": "good"}"#).await;
        drop(bad);
        world.pause().await;
        world.gs.close(good).await.expect("that was another node");
        assert_eq!(message(world.gs.settle().await), "Closing node 'bad' failed: Input/output error");
    });
    world.close();
}

#[test]
fn a_closing_that_hangs_holds_up_nobody_else() {
    let world = World::new();
    world.run_and_close(async {
        let hangs = open(&world, r#"{"driver": "leaf", "node-name": "hangs"}"#).await;
        world.leaf("hangs").hold(true);
        drop(hangs);
        world.pause().await;
        let other = open(&world, r#"{"driver": "leaf", "node-name": "other"}"#).await;
        let gs = world.gs.clone();
        let closing = world.gs.main().spawn(async move { gs.close(other).await });
        world.until("the other one is closed", || world.leaf("other").closes() == 1).await;
        closing.join().await.expect("it closes");
        let mut settling = Box::pin(world.gs.settle());
        world.pause().await;
        assert!(poll_once(&mut settling).await.is_none());
        world.leaf("hangs").hold(false);
        settling.await.expect("all is closed");
    });
}

#[test]
fn a_node_in_use_is_not_closed() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let top = open(&world, r#"{"driver": "pass", "node-name": "top", "file": "base"}"#).await;
        let before = world.graph();
        // As the storage daemon says it.
        assert_eq!(message(world.gs.close(base.clone()).await), "Block device base is in use");
        drop(top.clone());
        let second = world.gs.find_node("top").expect("it is there");
        assert_eq!(message(world.gs.close(top).await), "Block device top is in use");
        assert_eq!(world.graph(), before, "the monitor still has what it had");
        // The last one, and the monitor's own.
        world.gs.close(second).await.expect("nobody else uses it");
        world.gs.close(base).await.expect("nobody else uses it");
        assert!(world.gs.nodes().is_empty());
    });
}

#[test]
fn the_monitors_reference_is_one_like_others() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        drop(node);
        world.gs.settle().await.expect("nothing closes");
        let node = world.gs.find_node("a").expect("the monitor holds it");
        world.gs.set_monitor_owned(&node, true);
        assert!(world.info(&node).monitor_owned);
        world.gs.set_monitor_owned(&node, false);
        drop(node);
        world.gs.settle().await.expect("it closes");
        assert!(world.gs.nodes().is_empty());
    });
}

#[test]
fn requests_in_flight_finish_before_their_node_closes() {
    let world = World::new();
    world.run_and_close(async {
        let node = open(&world, r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let root = world.root("root", &node).await;
        let leaf = world.leaf("a");
        leaf.hold(true);
        let io = root.io().clone();
        let requests: Vec<_> = (0..20)
            .map(|_| {
                let io = io.clone();
                world.gs.main().spawn(async move { io.write(0, buffer(512), RequestFlags::empty()).await.0 })
            })
            .collect();
        world.until("they are in the leaf", || leaf.in_flight() == 20).await;
        drop((node, root));
        world.pause().await;
        assert_eq!((leaf.closes(), leaf.flushes()), (0, 0));
        // New ones are refused at once.
        assert_eq!(io.read(0, buffer(512)).await.0, Err(IoError::CLOSED));
        leaf.hold(false);
        for request in requests {
            assert_eq!(request.join().await, Ok(()));
        }
        world.gs.settle().await.expect("it closes");
        assert_eq!((leaf.ended(), leaf.closes(), leaf.strays()), (20, 1, 0));
    });
}

#[test]
fn roots_go_under_load_and_no_request_meets_a_closing_engine() {
    let world = World::new();
    world.run_and_close(async {
        let mut served = 0;
        for round in 0..60 {
            let json = format!(r#"{{"driver": "leaf", "node-name": "a", "fast": {}}}"#, round % 2 == 0);
            let node = open(&world, &json).await;
            let root = world.root("root", &node).await;
            let load = Load::start(&[root.io().clone()], 2);
            world.until("the load is there", || load.completed() > 20).await;
            let leaf = world.leaf("a");
            if round % 3 == 0 {
                world.gs.close_root(root).await;
                assert_eq!(leaf.in_flight(), 0);
                world.gs.close(node).await.expect("nobody uses it");
                assert_eq!(leaf.closes(), 1);
            } else {
                drop((root, node));
            }
            let outcome = load.stop();
            assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
            let errors: Vec<_> = outcome.failed.keys().copied().collect();
            assert!(errors.iter().all(|errno| *errno == IoError::CLOSED.errno().raw()), "{errors:?}");
            served += leaf.ended();
            world.gs.settle().await.expect("it closes");
            // Looked at for every one when everything is closed: nothing came after the close.
            assert_eq!(leaf.strays(), 0);
        }
        assert!(served > 1000);
    });
}

#[test]
fn close_1_a_device_that_still_holds_its_half_gets_errors() {
    let world = World::new();
    world.run(async {
        let json = r#"{"driver": "pass", "node-name": "top", "file": {"driver": "leaf", "node-name": "a"}}"#;
        let node = world.add(json).await;
        let root = world.root("drive", &node).await;
        let (device, io) = (root.io().clone(), node.io().clone());
        let load = Load::start(std::slice::from_ref(&device), 2);
        world.until("the load is there", || load.completed() > 100).await;
        drop(node);
        world.gs.close_all().await.expect("everything closes");
        assert!(world.gs.nodes().is_empty());
        let outcome = load.stop();
        assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
        // Its half answers, whatever it is asked.
        assert_eq!(device.read(0, buffer(512)).await.0, Err(IoError::CLOSED));
        assert_eq!(device.write(0, buffer(512), RequestFlags::empty()).await.0, Err(IoError::CLOSED));
        assert_eq!(device.flush().await, Err(IoError::CLOSED));
        assert_eq!(device.length(), Err(IoError::CLOSED));
        assert!(!device.is_attached() && device.limits().is_err());
        assert!(io.state().contains(GateState::CLOSED));
        // Neither half holds what was below.
        assert!(world.leaf("a").is_dropped());
        // The GS half is as dead, and cannot be brought back.
        assert!(world.gs.root_node(&root).is_none());
        assert!(matches!(world.open(json).await, Err(GraphError::ShuttingDown)));
        drop(root);
    });
    world.close();
}

#[test]
fn close_1_what_is_left_open_is_named() {
    let world = World::new();
    world.run(async {
        let kept = world
            .add(r#"{"driver": "pass", "node-name": "kept", "file": {"driver": "leaf", "node-name": "below"}}"#)
            .await;
        world.add(r#"{"driver": "leaf", "node-name": "other"}"#).await;
        let left = world.gs.close_all().await.expect_err("somebody holds one");
        assert_eq!(left.to_string(), "nodes are left open: below, kept");
        assert!(matches!(left, GraphError::LeftOpen(names) if names == ["below", "kept"]));
        assert_eq!((world.leaf("other").closes(), world.leaf("below").closes()), (1, 0));
        let root = world.gs.new_root("late", ParentKind::Job, loose(Perm::all()), &world.gs.main_io());
        assert!(matches!(world.gs.attach_root(&root, Some(&kept)).await, Err(GraphError::ShuttingDown)));
        drop(kept);
        world.gs.close_all().await.expect("nobody holds anything");
    });
    world.close();
}

#[test]
fn close_1_a_node_that_is_being_opened_fails() {
    let world = World::new();
    world.run(async {
        world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let leaf = world.leaf("base");
        leaf.hold(true);
        let first = world.open(r#"{"driver": "fmt", "node-name": "first", "file": "base"}"#);
        let second = world.open(r#"{"driver": "fmt", "node-name": "second", "file": {"driver": "leaf"}}"#);
        world.until("the header is being read", || leaf.in_flight() == 1).await;
        let mut closing = Box::pin(world.gs.close_all());
        world.pause().await;
        assert!(poll_once(&mut closing).await.is_none());
        leaf.hold(false);
        assert!(matches!(first.await, Err(GraphError::ShuttingDown)));
        assert!(matches!(second.await, Err(GraphError::ShuttingDown)));
        closing.await.expect("everything closes");
        assert!(world.gs.nodes().is_empty());
    });
    world.close();
}

#[test]
fn a_medium_does_not_get_in_behind_the_back_of_close_all() {
    let world = World::new();
    world.run(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let root = world.root("root", &a).await;
        let leaf = world.leaf("a");
        leaf.hold(true);
        let (io, gs) = (root.io().clone(), world.gs.clone());
        let request = world.gs.main().spawn(async move { io.read(0, buffer(512)).await.0 });
        world.until("the request is in the leaf", || leaf.in_flight() == 1).await;
        // Waits for the request, as does the end of everything; what is looked up before the wait is not what is there after it.
        let exchange = world.gs.main().spawn(async move {
            let result = gs.attach_root(&root, Some(&b)).await;
            drop(b);
            (result, root)
        });
        world.pause().await;
        let gs = world.gs.clone();
        let closing = world.gs.main().spawn(async move { gs.close_all().await });
        drop(a);
        world.pause().await;
        leaf.hold(false);
        assert_eq!(request.join().await, Ok(()));
        let (result, root) = exchange.join().await;
        assert!(matches!(result, Err(GraphError::ShuttingDown)));
        // It was held by the one who exchanged, at the moment of the check or not.
        let _ = closing.join().await;
        drop(root);
        world.gs.close_all().await.expect("nobody holds anything");
    });
    world.close();
}

#[test]
fn io_handles_of_a_closed_node_hold_no_memory_but_its_own() {
    let world = World::new();
    world.run_and_close(async {
        let json = r#"{"driver": "pass", "node-name": "top", "file":
            {"driver": "pass", "node-name": "mid", "file": {"driver": "leaf", "node-name": "a"}}}"#;
        let node = open(&world, json).await;
        let io = node.io().clone();
        assert!(!io.state().contains(GateState::CLOSED));
        world.gs.close(node).await.expect("nobody uses it");
        assert_eq!(io.state() & GateState::CLOSED, GateState::CLOSED);
        assert!(world.leaf("a").is_dropped());
        assert_eq!((io.name(), io.driver()), ("top", Some("pass")));
    });
}

/// Panics when it is closed.
struct Rude;

#[async_trait]
impl Driver for Rude {
    fn format_name(&self) -> &'static str {
        "rude"
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(4096)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf) -> IoResult<()> {
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Ok(())
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::mapped(BlockStatus::DATA, range.len(), HostOffset(range.offset().0)))
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        panic!("on purpose: a driver's bug")
    }
}

struct RudeType;

#[async_trait(?Send)]
impl DriverType for RudeType {
    fn name(&self) -> &'static str {
        "rude"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, _context: &mut OpenContext<'_>, _options: &mut OptionReader) -> GraphResult<Opened> {
        Ok(Opened { engine: Box::new(Rude), control: Box::new(NoControl), read_only: false })
    }
}

#[test]
fn a_driver_that_panics_in_its_close_is_one_that_failed_to() {
    let world = World::new();
    world.gs.register(Rc::new(RudeType));
    world.run(async {
        world.add(r#"{"driver": "leaf", "node-name": "other"}"#).await;
        let node = open(&world, r#"{"driver": "rude", "node-name": "rude"}"#).await;
        assert_eq!(message(world.gs.close(node).await), "Closing node 'rude' failed: Operation canceled");
        assert_eq!(world.gs.nodes().len(), 1);
        assert!(open(&world, r#"{"driver": "leaf"}"#).await.io().state().is_empty());
    });
    world.close();
}
