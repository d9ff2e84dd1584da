//! Throttled nodes in a graph, by a clock that stands still: whatever is drained, closed or reopened does not wait for limits (rule drain-5), and afterwards they
//! hold again.

#![forbid(unsafe_code)]

mod bed;
mod groups;
mod random;

use bed::{Bed, asks, buf, none, run};
use block_common::{IoError, Options, ParentKind, Perm, PermPair};
use block_gs::{GraphError, LeftOut, NodeRef, RootRef};
use block_testkit::MemOpKind;
use std::time::Duration;

/// `throttle` in group `g` over `mem`, with a root.
async fn throttled(bed: &Bed) -> (NodeRef, NodeRef, RootRef) {
    let mem = bed.mem("mem").await;
    let node = bed.add(r#"{"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "mem"}"#).await;
    let root = bed.root("root", &node).await;
    (mem, node, root)
}

#[test]
fn drain_5_no_drain_waits_for_limits() {
    run(async |bed| {
        let (mem, node, root) = throttled(&bed).await;
        let above = bed.add(r#"{"driver": "raw", "node-name": "above", "file": "t"}"#).await;
        let top = bed.root("top", &above).await;
        for drained in 0..5 {
            bed.full();
            let waiting = [bed.requests(&root), bed.requests(&top)];
            bed.until(|| bed.group.waiting() == 10).await;
            let guard = match drained {
                0 => bed.gs.drain(&mem).await,
                1 => bed.gs.drain(&node).await,
                2 => bed.gs.drain_all().await,
                3 => {
                    let first = bed.gs.drain(&above).await;
                    let second = bed.gs.drain(&mem).await;
                    drop(first);
                    second
                }
                _ => {
                    // Above it only: what came through the other root waits on.
                    let guard = bed.gs.drain(&above).await;
                    let (waits, went) = (bed.group.waiting(), top.io().in_flight());
                    assert!(waits <= 5 && went == 0, "{waits} wait");
                    bed.gs.set_throttle_limits("g", none()).expect("they change");
                    guard
                }
            };
            for done in waiting {
                assert_eq!(done.join().await, [Ok(()); 5]);
            }
            assert_eq!((bed.group.waiting(), bed.clock.now()), (0, Duration::ZERO));
            drop(guard);
            bed.limited();
        }
    });
}

/// What went out of turn is paid for.
#[test]
fn drain_5_limits_hold_again_after_a_section() {
    run(async |bed| {
        let (_, node, root) = throttled(&bed).await;
        assert!(asks(&bed.group, 1) && asks(&bed.group, 1));
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        let guard = bed.gs.drain(&node).await;
        let held = bed.requests(&root);
        drop(guard);
        assert_eq!(waiting.join().await, [Ok(()); 5]);
        bed.until(|| bed.group.waiting() == 5).await;
        // Seven at ten a second, in a bucket of one.
        bed.until(|| bed.clock.next() == Some(Duration::from_millis(600))).await;
        bed.clock.advance(Duration::from_millis(600));
        bed.until(|| bed.group.waiting() == 4).await;
        bed.gs.set_throttle_limits("g", none()).expect("they change");
        assert_eq!(held.join().await, [Ok(()); 5]);
    });
}

/// Scenario: A has the file X and the backing file T, which is throttled. Draining X waits for requests of A that are in T, which nobody drains.
#[test]
fn drain_5_requests_in_another_branch_hurry() {
    run(async |bed| {
        let (_, t, beside) = throttled(&bed).await;
        let x = bed.image("x").await;
        let a = bed.add(r#"{"driver": "qcow2", "node-name": "a", "file": "x", "backing": "t"}"#).await;
        let root = bed.root_with("a", &a, PermPair::new(Perm::CONSISTENT_READ, Perm::all())).await;
        bed.full();
        let read = bed.read(&root);
        bed.until(|| bed.group.waiting() == 1).await;
        let other = bed.read(&beside);
        bed.until(|| bed.group.waiting() == 2).await;
        let guard = bed.gs.drain(&x).await;
        assert!(!guard.covers(&t), "it is not drained");
        assert_eq!(read.join().await, Ok(()));
        assert_eq!(other.join().await, Ok(()), "it could not be told from the other");
        // While the section lasts, those who are not drained are throttled as ever.
        let other = bed.read(&beside);
        bed.until(|| bed.group.waiting() == 1).await;
        drop(guard);
        assert_eq!(bed.group.waiting(), 1);
        drop(bed.gs.drain(&t).await);
        assert_eq!(other.join().await, Ok(()));
    });
}

/// Scenario: the storage does not answer, so that the section does not begin; those who come to the throttle meanwhile go at once. It is given up, and they wait again.
#[test]
fn drain_5_who_hurries_does_so_as_long_as_somebody_waits_for_it() {
    run(async |bed| {
        let (mem, t, root) = throttled(&bed).await;
        let above = bed.add(r#"{"driver": "raw", "node-name": "above", "file": "t"}"#).await;
        let top = bed.root("top", &above).await;
        bed.storage("mem").hold(Some(MemOpKind::Read));
        bed.full();
        let first = bed.read(&top);
        bed.until(|| bed.group.waiting() == 1).await;
        let outer = bed.gs.drain(&above);
        bed.until(|| bed.storage("mem").held().len() == 1).await;
        // Another root's requests share the way.
        let second = bed.read(&root);
        bed.until(|| bed.storage("mem").held().len() == 2).await;
        // A section within a section changes nothing, nor does its end.
        let inner = bed.gs.drain(&above);
        drop(inner);
        let third = bed.read(&root);
        bed.until(|| bed.storage("mem").held().len() == 3).await;
        drop(outer);
        let fourth = bed.read(&root);
        bed.until(|| bed.group.waiting() == 1).await;
        assert_eq!(bed.storage("mem").held().len(), 3);
        bed.storage("mem").clear_script();
        bed.storage("mem").release_all();
        for read in [first, second, third] {
            assert_eq!(read.join().await, Ok(()));
        }
        assert_eq!(bed.group.waiting(), 1);
        drop(bed.gs.drain(&mem).await);
        assert_eq!(fourth.join().await, Ok(()));
        drop(t);
    });
}

/// Scenario: two nodes in one group, and one of them is drained.
#[test]
fn drain_5_another_member_of_the_group_waits_on() {
    run(async |bed| {
        let (_, node, root) = throttled(&bed).await;
        bed.mem("mem2").await;
        let two = bed.add(r#"{"driver": "throttle", "node-name": "t2", "throttle-group": "g", "file": "mem2"}"#).await;
        let other = bed.root("other", &two).await;
        assert!(asks(&bed.group, 1) && asks(&bed.group, 1));
        let [first, second] = [bed.requests(&root), bed.requests(&other)];
        bed.until(|| bed.group.waiting() == 10).await;
        drop(bed.gs.drain(&node).await);
        assert_eq!(first.join().await, [Ok(()); 5]);
        assert_eq!(bed.group.waiting(), 5);
        // Who is next waits no longer for it. Those behind him pay for the others.
        bed.until(|| bed.clock.next() == Some(Duration::from_millis(100))).await;
        bed.clock.advance(Duration::from_millis(100));
        bed.until(|| bed.clock.next() == Some(Duration::from_millis(600))).await;
        assert_eq!(bed.group.waiting(), 4);
        drop(bed.gs.drain_all().await);
        assert_eq!(second.join().await, [Ok(()); 5]);
    });
}

/// Scenario: requests wait, and their root, or the node, or everything is closed.
#[test]
fn drain_5_closing_does_not_wait_for_limits() {
    run(async |bed| {
        let (mem, node, root) = throttled(&bed).await;
        bed.full();
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        bed.gs.close_root(root).await;
        assert_eq!(waiting.join().await, [Ok(()); 5]);

        let root = bed.root("root", &node).await;
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        bed.gs.attach_root(&root, None).await.expect("the medium goes");
        assert_eq!(waiting.join().await, [Ok(()); 5]);

        // Nobody holds the node but its user.
        bed.gs.attach_root(&root, Some(&node)).await.expect("it comes back");
        bed.gs.set_monitor_owned(&node, false);
        drop(node);
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        drop(root);
        bed.gs.settle().await.expect("it closes");
        assert_eq!(waiting.join().await, [Ok(()); 5]);
        assert!(bed.gs.find_node("t").is_err());
        bed.gs.remove_object("g").expect("nobody uses it");
        drop(mem);
    });
}

/// As `quit` does.
#[test]
fn drain_5_the_end_does_not_wait_for_limits() {
    run(async |bed| {
        let (mem, node, root) = throttled(&bed).await;
        bed.full();
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        drop((mem, node));
        bed.gs.close_all().await.expect("it ends");
        assert_eq!(waiting.join().await, [Ok(()); 5]);
        assert_eq!(bed.clock.now(), Duration::ZERO);
        assert_eq!(root.io().read(0, buf(512)).await.0, Err(IoError::CLOSED));
    });
}

/// Scenario: an image whose metadata is written when it is closed, through a throttle.
#[test]
fn drain_5_what_is_written_while_closing_does_not_wait() {
    run(async |bed| {
        bed.image("x").await;
        bed.add(r#"{"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "x"}"#).await;
        bed.gs.set_throttle_limits("g", none()).expect("they change");
        let image = bed.add(r#"{"driver": "qcow2", "node-name": "image", "file": "t"}"#).await;
        let root = bed.root("root", &image).await;
        root.io().write(0, buf(65_536), Default::default()).await.0.expect("it is written");
        bed.gs.close_root(root).await;
        bed.limited();
        bed.full();
        let written = bed.storage("x").count(MemOpKind::Write);
        bed.gs.close(image).await.expect("it closes");
        assert!(bed.storage("x").count(MemOpKind::Write) > written, "there was something to write");
        assert_eq!(bed.clock.now(), Duration::ZERO);
    });
}

/// Scenario: an image is opened over a throttled node, whose requests go to the header; a section waits for them.
#[test]
fn drain_5_headers_are_read_at_once_where_a_section_waits() {
    run(async |bed| {
        bed.image("x").await;
        let t = bed.add(r#"{"driver": "throttle", "node-name": "t", "throttle-group": "g", "file": "x"}"#).await;
        let open = || bed.gs.open(Options::parse_json(r#"{"driver": "qcow2", "file": "t"}"#).expect("options"));
        bed.full();
        // Otherwise it waits as others do.
        let opening = bed.gs.main().spawn(open());
        bed.until(|| bed.group.waiting() == 1).await;
        let guard = bed.gs.drain(&t).await;
        let image = opening.join().await.expect("it opens");
        bed.gs.close(image).await.expect("it closes");
        // In a section that has begun.
        let image = open().await.expect("it opens");
        bed.gs.close(image).await.expect("it closes");
        drop(guard);
        assert_eq!(bed.clock.now(), Duration::ZERO);
    });
}

/// Scenario: requests wait, and the node is to be in another group.
#[test]
fn drain_5_a_reopen_does_not_wait_for_limits() {
    run(async |bed| {
        let (_, node, root) = throttled(&bed).await;
        bed.add_group("h", "iops-total=5").await;
        bed.full();
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        bed.reopen(&node, r#"{"throttle-group": "h"}"#).await.expect("it is reopened");
        assert_eq!(waiting.join().await, [Ok(()); 5]);
        assert_eq!(bed.group.members(), 0);
        let refused = |id: &str| bed.gs.remove_object(id).expect_err("in use").to_string();
        assert_eq!(refused("h"), "object 'h' is in use, can not be deleted");
        bed.gs.remove_object("g").expect("nobody uses it");
        // Other options leave the group as it is.
        bed.reopen(&node, r#"{"read-only": true}"#).await.expect_err("it has a writer");
        assert_eq!(bed.gs.throttle_group("h").expect("it is there").group().members(), 1);
        let error = bed.reopen(&node, r#"{"throttle-group": "nope"}"#).await.expect_err("there is none");
        assert_eq!(error.to_string(), "Throttle group 'nope' does not exist");
        let options =
            Options::parse_json(r#"{"driver": "throttle", "node-name": "t", "file": "mem"}"#).expect("options");
        let error = bed.gs.reopen(&node, options, LeftOut::Default).await.expect_err("it is missing");
        assert_eq!(error.to_string(), "Parameter 'throttle-group' is missing");
        assert!(matches!(error, GraphError::Options(_)));
    });
}

/// A root that nobody drains keeps its requests waiting, whatever else is drained.
#[test]
fn who_is_not_waited_for_does_not_hurry() {
    run(async |bed| {
        let (_, _, root) = throttled(&bed).await;
        let other = bed.mem("other").await;
        let unused = bed.gs.new_root("unused", ParentKind::Backend, PermPair::NONE, &bed.gs.main_io());
        bed.full();
        let waiting = bed.requests(&root);
        bed.until(|| bed.group.waiting() == 5).await;
        drop(bed.gs.drain(&other).await);
        drop(bed.gs.drain_root(&unused).await);
        bed.gs.close(other).await.expect("it closes");
        bed.pause().await;
        assert_eq!(bed.group.waiting(), 5);
        drop(bed.gs.drain_root(&root).await);
        assert_eq!(waiting.join().await, [Ok(()); 5]);
    });
}
