//! Quiescing, idling, proofs and repointing, with requests that wait in every place where a request can wait.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]

mod common;

use block_common::{ChildRole, GuestRange, IoError, Limits, RequestFlags};
use block_io::{ChangeKind, FileEngine, NodeControl, Queue, Request, Root, RootControl, WriteObserver};
use common::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};

const FAST: [bool; 2] = [false, true];

fn memory(fast: bool) -> Arc<MemState> {
    let state = MemState::new(1 << 16);
    state.fast.store(fast, Ordering::SeqCst);
    state
}

/// Requests come through both doors while the root is quiesced: none reaches the engine; all do afterwards.
fn check_held_back(fast: bool) {
    let home = thread();
    let state = memory(fast);
    let mut stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    stack.root.set_quiesced(true);
    block_on(stack.root.idle());

    let mut queue = Queue::new().expect("a queue");
    for tag in 0..10 {
        queue.submit(&root, Request::write(tag * 512, buf(512, tag as u8 + 1), RequestFlags::empty()), tag);
    }
    queue.kick();
    let mut held: Vec<_> = (10..20u64)
        .map(|at| {
            let root = root.clone();
            Box::pin(async move { root.write(at * 512, buf(512, at as u8 + 1), RequestFlags::empty()).await.0 })
        })
        .collect();
    for future in &mut held {
        assert!(future.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
    let mut done = Vec::new();
    assert_eq!(queue.wait(&mut done, Some(std::time::Duration::from_millis(30))), 0);
    assert_eq!((state.seen(), state.valve.begun()), (vec![], 0), "a request got past a quiesced root");
    assert!(stack.root.proof().is_some(), "what is held back does not count");

    stack.root.set_quiesced(false);
    while done.len() < 10 {
        queue.wait(&mut done, Some(LONG));
    }
    assert!(done.iter().all(|completed| completed.done.result.is_ok()));
    held.into_iter().for_each(|future| block_on(future).expect("it was let in"));
    for at in 0..20u64 {
        assert_eq!(lock(&state.bytes)[at as usize * 512], at as u8 + 1, "request {at} did not arrive");
    }
    eventually("idle", || root.in_flight() == 0);
}

#[test]
fn drain_1_a_quiesced_root_holds_requests_back() {
    FAST.into_iter().for_each(check_held_back);
}

/// The other requests of a root, which all take the slow path.
#[test]
fn drain_1_a_quiesced_root_holds_back_what_is_no_read_or_write() {
    let home = thread();
    let state = memory(true);
    let mut stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    stack.root.set_quiesced(true);
    assert!(is_pending(root.flush()));
    assert!(is_pending(root.zero(0, 512, RequestFlags::empty())));
    assert!(is_pending(root.discard(0, 512)));
    assert!(is_pending(root.block_status(0, 512)));
    assert!(is_pending(root.refresh_length()));
    assert!(is_pending(root.truncate(4096, block_common::Preallocation::default())));
    assert_eq!(state.valve.begun(), 0);
    // What only looks is not held back.
    assert_eq!(root.length(), Ok(1 << 16));
    stack.root.set_quiesced(false);
    // Their callers are gone; they are carried out all the same.
    eventually("all were carried out", || state.valve.ended() >= 4 && lock(&state.bytes).len() == 4096);
}

/// A slow request is in the engine: `idle` waits for it, however often it is asked and dropped half-way.
#[test]
fn drain_1_idle_waits_for_the_engine() {
    let home = thread();
    let state = memory(false);
    let mut stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    state.valve.close();
    let reader = std::thread::spawn(move || block_on(root.read(0, buf(512, 0))).0);
    eventually("it is in the engine", || state.valve.begun() == 1);
    stack.root.set_quiesced(true);
    for polls in 1..4 {
        assert!(poll_times(stack.root.idle(), polls).is_none(), "idle with a request in the engine");
        assert!(stack.root.proof().is_none());
    }
    assert_eq!((stack.root.root().in_flight(), stack.node.node().in_flight()), (1, 1));
    state.valve.open();
    block_on(stack.root.idle());
    assert_eq!(state.valve.ended(), 1);
    assert!(stack.root.proof().is_some());
    assert_eq!(reader.join().expect("no panic"), Ok(()));
}

/// The caller polled once and never again. A drain cannot wait for him.
#[test]
fn drain_4_a_drain_needs_no_caller() {
    let home = thread();
    let state = memory(false);
    let mut stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    state.valve.close();
    let mut read = Box::pin(root.read(0, buf(512, 0)));
    assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    eventually("it is in the engine", || state.valve.begun() == 1);
    stack.root.set_quiesced(true);
    state.valve.open();
    block_on(stack.root.idle());
    assert!(stack.root.proof().is_some());
    assert_eq!(block_on(read).0, Ok(()), "the result waited for its caller");
}

/// A fast request is in the kernel, which takes its time: a pipe that nobody has written to yet.
fn pipe_stack(home: &block_io::IoThreadHandle, fast: bool) -> (Stack, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let (file, _control) = host_file(reader, FileEngine::Ring, 1);
    (stack(home, Host { file, fast, limits: Limits::NONE, length: Some(4096) }, 4096), writer)
}

fn check_in_the_kernel(fast: bool) {
    use std::io::Write;
    if !block_io::ring_available() {
        return;
    }
    let home = thread();
    let (mut stack, mut writer) = pipe_stack(&home.handle(), fast);
    let root = stack.root.root();
    let mut read = Box::pin(root.read(0, buf(4, 0)));
    assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    eventually("it is under way", || stack.node.node().in_flight() > 0);
    stack.root.set_quiesced(true);
    stack.node.set_quiesced(true);
    assert!(poll_times(stack.root.idle(), 5).is_none(), "idle while the kernel has a request");
    assert!(poll_times(stack.node.idle(), 5).is_none(), "idle while the kernel has a request");
    writer.write_all(b"done").expect("the other end is open");
    block_on(stack.root.idle());
    block_on(stack.node.idle());
    assert!(stack.root.proof().is_some() && stack.node.proof().is_some());
    let (result, buf) = block_on(read);
    assert_eq!((result, bytes(&buf.expect("it comes back"))), (Ok(()), b"done".to_vec()));
}

#[test]
fn drain_4_a_request_in_the_kernel_counts_until_its_completion() {
    FAST.into_iter().for_each(check_in_the_kernel);
}

/// As above from a queue, whose thread must reap.
#[test]
fn drain_4_a_request_of_a_queue_counts_until_its_completion() {
    use std::io::Write;
    if !block_io::ring_available() {
        return;
    }
    let home = thread();
    // The queue goes after the pipe: it waits for the kernel, and a test that fails shall not hang.
    let mut queue = Queue::new().expect("a queue");
    let (mut stack, mut writer) = pipe_stack(&home.handle(), true);
    let root = stack.root.root();
    queue.submit(&root, Request::read(0, buf(4, 0)), 7);
    queue.kick();
    stack.root.set_quiesced(true);
    assert!(is_pending(stack.root.idle()));
    writer.write_all(b"done").expect("the other end is open");
    let mut done = Vec::new();
    assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
    block_on(stack.root.idle());
    assert_eq!((done[0].tag, done[0].done.result), (7, Ok(())));
}

#[test]
fn drain_1_proofs_are_of_one_quiesce() {
    let home = thread();
    let state = memory(true);
    let mut stack = mem(&home.handle(), &state);
    assert!(stack.root.proof().is_none(), "not quiesced");
    block_on(stack.root.idle());
    assert!(stack.root.proof().is_none(), "idle before it was quiesced");
    stack.root.set_quiesced(true);
    assert!(stack.root.proof().is_none(), "not seen idle since");
    let early = stack.root.idle();
    block_on(stack.root.idle());
    assert!(stack.root.proof().is_some());
    stack.root.set_quiesced(false);
    assert!(stack.root.proof().is_none(), "opened");
    stack.root.set_quiesced(true);
    block_on(early);
    assert!(stack.root.proof().is_none(), "seen idle in an earlier quiesce");
    block_on(stack.root.idle());
    assert!(stack.root.proof().is_some());
}

/// The main loop enters a quiesced node: counted, let in, and no proof meanwhile.
#[test]
fn drain_1_control_enters_while_quiesced() {
    let home = thread();
    let state = memory(true);
    let mut stack = mem(&home.handle(), &state);
    stack.node.set_quiesced(true);
    block_on(stack.node.idle());
    assert!(stack.node.proof().is_some());
    let req = stack.node.enter().expect("it is open to its control");
    assert!(stack.node.proof().is_none());
    assert!(is_pending(stack.node.idle()));
    let again = req.again();
    drop(req);
    assert!(stack.node.proof().is_none(), "a second token is a token");
    let closed = block_on(home.handle().run(async move { NodeControl::close_engine(&again).await }));
    assert_eq!(closed, Some(Ok(())));
    assert!(stack.node.proof().is_some());
    assert_eq!(state.seen(), [Seen::Flush, Seen::Close]);
}

#[test]
fn drain_3_a_root_is_repointed_when_idle_and_only_then() {
    let home = thread();
    let (old, new) = (memory(true), memory(true));
    lock(&new.bytes)[0] = 7;
    let mut stack = mem(&home.handle(), &old);
    let other = node("other", Mem(new.clone(), Limits::NONE), 1 << 16);
    let root = stack.root.root();
    assert_eq!(stack.root.repoint(Some(&other.target())), None, "not quiesced");
    stack.root.set_quiesced(true);
    assert_eq!(stack.root.repoint(Some(&other.target())), None, "not seen idle");
    block_on(stack.root.idle());
    assert_eq!(stack.root.repoint(Some(&other.target())), Some(()));
    stack.root.set_quiesced(false);
    let (result, read) = block_on(root.read(0, buf(512, 0)));
    assert_eq!((result, bytes(&read.expect("it comes back"))[0]), (Ok(()), 7));
    // The former child is not held by anything of the root's any more.
    drop(stack.node);
    assert!(old.dropped.load(Ordering::SeqCst), "the former child's engine is still there");
    stack.root.set_quiesced(true);
    block_on(stack.root.idle());
    assert_eq!(stack.root.repoint(None), Some(()));
    stack.root.set_quiesced(false);
    assert_eq!(block_on(root.read(0, buf(512, 0))).0, Err(IoError::NO_MEDIUM));
    assert_eq!(root.length(), Err(IoError::NO_MEDIUM));
}

#[test]
fn drain_3_an_edge_is_repointed_with_its_parents_proof() {
    let home = thread();
    let (old, new) = (memory(true), memory(true));
    lock(&new.bytes)[0] = 7;
    let below = node("old", Mem(old, Limits::NONE), 1 << 16);
    let instead = node("new", Mem(new, Limits::NONE), 1 << 16);
    let (mut parent, mut edge) = through(&below, true, 0, ALL);
    let root = RootControl::new("root", &home.handle(), ALL, Some(&parent.target()));
    parent.set_quiesced(true);
    block_on(parent.idle());
    edge.repoint(Some(&instead.target()), &parent.proof().expect("it is idle"));
    parent.set_quiesced(false);
    assert!(edge.child().is_some_and(|child| child.same(&instead.node())));
    let (result, read) = block_on(root.root().read(0, buf(512, 0)));
    assert_eq!((result, bytes(&read.expect("it comes back"))[0]), (Ok(()), 7));
}

#[test]
#[should_panic(expected = "with the proof of gate")]
fn drain_3_the_proof_of_another_node_is_refused() {
    let below = node("below", Mem(memory(true), Limits::NONE), 1 << 16);
    let (_parent, mut edge) = through(&below, true, 0, ALL);
    let mut stranger = NodeControl::shell("stranger");
    stranger.set_quiesced(true);
    block_on(stranger.idle());
    edge.repoint(None, &stranger.proof().expect("it is idle"));
}

/// A request is in the kernel on the old child when a careless owner repoints below it (its parent was shown to be idle, then
/// entered by its control). The child stays until the request is over.
#[test]
fn drain_3_a_former_child_outlives_its_requests() {
    let home = thread();
    let old = memory(false);
    let below = node("old", Mem(old.clone(), Limits::NONE), 1 << 16);
    let (mut parent, mut edge) = through(&below, false, 0, ALL);
    let root = RootControl::new("root", &home.handle(), ALL, Some(&parent.target()));
    old.valve.close();
    let device = root.root();
    let read = std::thread::spawn(move || block_on(device.read(0, buf(512, 0))).0);
    eventually("it is in the child", || old.valve.begun() == 1);
    // A second parent of the same child is the only way to an idle proof here: the shell below is `parent`'s namesake.
    drop(below);
    parent.set_quiesced(true);
    assert!(parent.proof().is_none());
    assert!(!old.dropped.load(Ordering::SeqCst));
    old.valve.open();
    block_on(parent.idle());
    edge.repoint(None, &parent.proof().expect("it is idle"));
    assert_eq!(read.join().expect("no panic"), Ok(()));
    eventually("the child goes with its last hold", || old.dropped.load(Ordering::SeqCst));
}

/// A drained parent still lets its control read through its edges.
#[test]
fn drain_1_requests_below_a_quiesced_node_go_on() {
    let home = thread();
    let state = memory(false);
    let mut below = node("below", Mem(state, Limits::NONE), 1 << 16);
    let shell = NodeControl::shell("parent");
    let (_writer, edge) = shell.edge(ChildRole::DATA, ALL, Some(&below.target()));
    below.set_quiesced(true);
    let req = shell.enter().expect("open");
    let read = block_on(home.handle().run(async move {
        let data = buf(512, 1);
        edge.read(&req, block_common::HostOffset(0), &data).await
    }));
    assert_eq!(read, Some(Ok(())), "only entry from outside asks the gate");
}

/// Each detour bit keeps requests off the fast path from the moment that it is set.
#[test]
fn req_2_a_detour_is_taken() {
    let home = thread();
    let state = memory(true);
    let mut stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let is_fast = |root: &Root, write: bool| {
        let result = match write {
            true => block_on(root.write(0, buf(512, 1), RequestFlags::empty())).0,
            false => block_on(root.read(0, buf(512, 1))).0,
        };
        assert_eq!(result, Ok(()));
        matches!(state.seen()[..], [Seen::Now(0, 512)])
    };
    assert!(is_fast(&root, true) && is_fast(&root, false));
    stack.node.set_detour(true);
    assert!(!is_fast(&root, true) && !is_fast(&root, false));
    stack.node.set_detour(false);
    assert!(is_fast(&root, true) && is_fast(&root, false));
    // Who observes writes sees all of them; reads are none of his business.
    struct Nobody;
    impl WriteObserver for Nobody {
        fn before(&self, _kind: ChangeKind, _range: GuestRange) {}
        fn after(&self, _kind: ChangeKind, _range: GuestRange) {}
    }
    let observers: [Arc<dyn WriteObserver>; 2] = [Arc::new(Nobody), Arc::new(Nobody)];
    for observer in &observers {
        stack.node.observe(observer.clone());
        assert!(!is_fast(&root, true) && is_fast(&root, false));
    }
    stack.node.unobserve(&observers[0]);
    assert!(!is_fast(&root, true));
    stack.node.unobserve(&observers[1]);
    assert!(is_fast(&root, true));
}

/// `settled` waits for the requests that are there, not for those that keep coming.
#[test]
fn req_2_settled_waits_for_those_from_before() {
    let home = thread();
    let state = memory(false);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    state.valve.close();
    let old = std::thread::spawn({
        let root = root.clone();
        move || block_on(root.read(0, buf(512, 0))).0
    });
    eventually("it is in the engine", || state.valve.begun() == 1);
    let mut settled = Box::pin(stack.node.settled());
    assert!(poll_times(settled.as_mut(), 3).is_none(), "a request from before is still there");
    state.fast.store(true, Ordering::SeqCst);
    for _ in 0..100 {
        assert_eq!(block_on(root.read(0, buf(512, 0))).0, Ok(()));
    }
    assert!(poll_times(settled.as_mut(), 3).is_none(), "a request from before is still there");
    // From now on there is never a moment without a request on the node.
    let (stop, more) = (Arc::new(std::sync::atomic::AtomicBool::new(false)), root.clone());
    let stopped = stop.clone();
    let busy = std::thread::spawn(move || {
        while !stopped.load(Ordering::SeqCst) {
            let _ = block_on(more.read(0, buf(512, 0)));
        }
    });
    state.valve.open();
    block_on(settled);
    stop.store(true, Ordering::SeqCst);
    busy.join().expect("no panic");
    assert_eq!(old.join().expect("no panic"), Ok(()));
}

struct Stops<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Threads send requests as fast as they can while the root is drained again and again: no request is inside a drained
/// section, none is lost.
#[test]
fn drain_1_drains_under_load() {
    for fast in FAST {
        let home = thread();
        let state = memory(fast);
        let mut stack = mem(&home.handle(), &state);
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Also when an assertion fails: the scope waits for the senders.
            let stops = Stops(&stop);
            let senders: Vec<_> = (0..3u64)
                .map(|i| {
                    let (root, stop) = (stack.root.root(), &stop);
                    scope.spawn(move || {
                        let mut queue = Queue::new().expect("a queue");
                        let (mut sent, mut done) = (0, Vec::new());
                        while !stop.load(Ordering::SeqCst) || queue.pending() > 0 {
                            while queue.pending() < 16 && !stop.load(Ordering::SeqCst) {
                                queue.submit(&root, Request::write(i * 4096, buf(512, 1), RequestFlags::empty()), sent);
                                sent += 1;
                            }
                            queue.wait(&mut done, Some(LONG));
                        }
                        assert!(done.iter().all(|completed| completed.done.result.is_ok()));
                        let mut tags: Vec<_> = done.iter().map(|completed| completed.tag).collect();
                        tags.sort_unstable();
                        assert!(tags.into_iter().eq(0..sent), "a tag was lost or came twice");
                        sent
                    })
                })
                .collect();
            for _ in 0..100 {
                stack.root.set_quiesced(true);
                block_on(stack.root.idle());
                assert!(stack.root.proof().is_some());
                let before = lock(&state.seen).len();
                assert_eq!(stack.node.node().in_flight(), 0);
                std::thread::sleep(std::time::Duration::from_micros(100));
                assert_eq!(lock(&state.seen).len(), before, "a request was inside a drained section");
                stack.root.set_quiesced(false);
            }
            drop(stops);
            let sent: u64 = senders.into_iter().map(|sender| sender.join().expect("no panic")).sum();
            assert_eq!(stack.root.root().count(block_io::RequestKind::Write).requests, sent);
        });
    }
}
