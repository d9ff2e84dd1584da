//! Ends of things while requests are about: engines that panic, I/O threads that stop, roots and nodes that close.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]

mod common;

use block_common::{IoError, Limits, RequestFlags};
use block_io::{Completed, FileEngine, IoThread, NodeControl, Queue, Request, Root, RootControl};
use common::*;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const NONE: RequestFlags = RequestFlags::empty();
const FAST: [bool; 2] = [false, true];

fn memory(fast: bool) -> Arc<MemState> {
    let state = MemState::new(1 << 16);
    state.fast.store(fast, Ordering::SeqCst);
    state
}

fn finish(queue: &mut Queue) -> Vec<Completed> {
    let (mut done, begin) = (Vec::new(), Instant::now());
    while queue.pending() > 0 {
        queue.wait(&mut done, Some(Duration::from_secs(1)));
        assert!(begin.elapsed() < LONG, "{} tags never came back", queue.pending());
    }
    done
}

fn read(root: &Root) -> Result<(), IoError> {
    block_on(root.read(0, buf(512, 0))).0
}

// Engines that panic.

#[test]
fn trust_3_an_engine_that_panics_cancels_its_request_alone() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let stack = mem(&home.handle(), &state);
        let root = stack.root.root();
        assert_eq!(block_on(root.write(0, buf(512, 0), Default::default())).0, Ok(()));
        state.panics.store(true, Ordering::SeqCst);
        assert_eq!(read(&root), Err(IoError::CANCELLED));
        if !fast {
            assert_eq!(block_on(root.flush()), Err(IoError::CANCELLED));
        }
        eventually("its pins are gone", || root.in_flight() == 0 && stack.node.node().in_flight() == 0);
        state.panics.store(false, Ordering::SeqCst);
        assert_eq!(read(&root), Ok(()), "the thread serves on");
    }
}

/// The tag of a request whose driver panicked on the home thread comes back.
#[test]
fn drain_4_a_tag_survives_its_engines_panic() {
    let home = thread();
    let state = memory(false);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    state.panics.store(true, Ordering::SeqCst);
    let mut queue = Queue::new().expect("a queue");
    for tag in 0..10 {
        queue.submit(&root, Request::read(0, buf(512, 0)), tag);
    }
    let done = finish(&mut queue);
    assert_eq!(done.len(), 10);
    assert!(done.iter().all(|one| one.done.result == Err(IoError::CANCELLED)));
    eventually("idle", || root.in_flight() == 0);
}

/// On the fast path a queue runs the driver on the caller's own thread, and so does its panic. The queue stays usable.
#[test]
fn drain_4_a_panic_in_submit_leaves_the_queue_whole() {
    let home = thread();
    let state = memory(true);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    state.panics.store(true, Ordering::SeqCst);
    let mut queue = Queue::new().expect("a queue");
    let panicked = catch_unwind(AssertUnwindSafe(|| queue.submit(&root, Request::read(0, buf(512, 0)), 1)));
    assert!(panicked.is_err());
    assert_eq!((queue.pending(), root.in_flight(), stack.node.node().in_flight()), (0, 0, 0));
    state.panics.store(false, Ordering::SeqCst);
    queue.submit(&root, Request::read(0, buf(512, 0)), 2);
    assert_eq!(finish(&mut queue).iter().map(|one| one.tag).collect::<Vec<_>>(), [2]);
}

// I/O threads that stop.

/// Requests wait in the engine, in front of a quiesced root and in the thread's own queue; the thread stops.
#[test]
fn close_1_a_thread_that_stops_cancels_what_waits() {
    let home = thread();
    let (state, held) = (memory(false), memory(true));
    state.valve.close();
    let stack = mem(&home.handle(), &state);
    let mut quiesced = mem(&home.handle(), &held);
    quiesced.root.set_quiesced(true);
    let (root, closed_root) = (stack.root.root(), quiesced.root.root());
    let callers: Vec<_> = (0..4)
        .map(|i| {
            let root = if i % 2 == 0 { root.clone() } else { closed_root.clone() };
            std::thread::spawn(move || read(&root))
        })
        .collect();
    let mut queue = Queue::new().expect("a queue");
    for tag in 0..4 {
        queue.submit(if tag % 2 == 0 { &root } else { &closed_root }, Request::read(0, buf(512, 0)), tag);
    }
    eventually("they are in the engine", || state.valve.begun() == 4);
    // One more, which may not have begun when the thread stops.
    queue.submit(&root, Request::read(0, buf(512, 0)), 4);
    drop(home);
    for caller in callers {
        assert_eq!(caller.join().expect("no panic"), Err(IoError::CANCELLED));
    }
    let done = finish(&mut queue);
    assert!(done.len() == 5 && done.iter().all(|one| one.done.result == Err(IoError::CANCELLED)), "{done:?}");
    assert_eq!((root.in_flight(), closed_root.in_flight(), stack.node.node().in_flight()), (0, 0, 0));
    // From now on there is nobody to run anything.
    assert_eq!(read(&root), Err(IoError::CANCELLED));
    queue.submit(&root, Request::read(0, buf(512, 0)), 5);
    assert_eq!(finish(&mut queue)[0].done.result, Err(IoError::CANCELLED));
    let mut root_control = stack.root;
    root_control.set_quiesced(true);
    block_on(root_control.idle());
}

/// Threads hand tasks to an I/O thread while it stops: each is run or dropped, none is kept.
#[test]
fn close_1_tasks_that_race_with_the_end_are_not_kept() {
    for _ in 0..50 {
        let home = thread();
        let (given, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        struct Counted(Arc<AtomicUsize>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let (handle, given, ended) = (home.handle(), given.clone(), ended.clone());
                scope.spawn(move || {
                    for _ in 0..200 {
                        given.fetch_add(1, Ordering::SeqCst);
                        let counted = Counted(ended.clone());
                        // Holds its own thread's handle, as a request holds its root.
                        let held = handle.clone();
                        handle.spawn(async move {
                            std::future::pending::<()>().await;
                            drop((counted, held));
                        });
                    }
                });
            }
            std::thread::sleep(Duration::from_micros(50));
            drop(home);
        });
        assert_eq!(given.load(Ordering::SeqCst), ended.load(Ordering::SeqCst), "tasks were neither run nor dropped");
    }
}

/// The kernel has requests when the thread stops: their buffers and pins stay until it is done, and stopping waits for it.
#[test]
fn close_1_a_thread_that_stops_waits_for_the_kernel() {
    use std::io::Write;
    if !block_io::ring_available() {
        return;
    }
    for fast in FAST {
        let home = thread();
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let (file, _control) = host_file(reader, FileEngine::Ring, 1);
        let stack = stack(&home.handle(), Host { file, fast, limits: Limits::NONE, length: Some(4096) }, 4096);
        let root = stack.root.root();
        let caller = std::thread::spawn({
            let root = root.clone();
            move || block_on(root.read(0, buf(4, 0)))
        });
        eventually("it is under way", || stack.node.node().in_flight() > 0);
        std::thread::sleep(Duration::from_millis(10));
        let stopped = Arc::new(AtomicBool::new(false));
        let stopper = std::thread::spawn({
            let stopped = stopped.clone();
            move || {
                drop(home);
                stopped.store(true, Ordering::SeqCst);
            }
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!stopped.load(Ordering::SeqCst), "the kernel still has a buffer");
        // The engine's own future has gone with the thread's tasks; the core's request has not.
        assert_eq!(stack.node.node().in_flight(), u64::from(fast));
        writer.write_all(b"late").expect("the other end is open");
        stopper.join().expect("no panic");
        let (result, _) = caller.join().expect("no panic");
        assert_eq!(result, if fast { Ok(()) } else { Err(IoError::CANCELLED) });
        assert_eq!((root.in_flight(), stack.node.node().in_flight()), (0, 0));
    }
}

/// A thread that is dropped by one of its own tasks does not wait for itself.
#[test]
fn close_1_a_thread_may_be_dropped_on_itself() {
    let home = thread();
    let handle = home.handle();
    let (send, receive) = std::sync::mpsc::channel();
    handle.spawn(async move {
        drop(home);
        send.send(()).expect("the test waits");
    });
    receive.recv_timeout(LONG).expect("no deadlock");
    // It ends all the same.
    eventually("the thread has ended", || block_on(handle.run(async {})).is_none());
}

#[test]
fn a_task_runs_to_its_end_without_its_caller() {
    let home = thread();
    let ran = Arc::new(AtomicBool::new(false));
    let flag = ran.clone();
    drop(home.handle().run(async move {
        tokio::task::yield_now().await;
        flag.store(true, Ordering::SeqCst);
    }));
    eventually("it ran", || ran.load(Ordering::SeqCst));
    assert_eq!(block_on(home.handle().run(async { panic!("told to") })), None::<()>);
    assert_eq!(block_on(home.handle().run(async { 7 })), Some(7));
}

/// A thread whose tasks never let it sleep submits and completes requests all the same.
#[test]
fn a_busy_thread_serves_requests() {
    use std::os::unix::fs::OpenOptionsExt;
    for flags in [0, libc::O_DIRECT] {
        let home = thread();
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; 1 << 16]).expect("room");
        let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).expect("it is there");
        let (file, _control) = host_file(file, FileEngine::Ring, 4096);
        let stack = stack(&home.handle(), Host { file, fast: true, limits: Limits::NONE, length: None }, 1 << 16);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        home.handle().spawn(async move {
            while !stopped.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
        });
        let root = stack.root.root();
        for _ in 0..20 {
            assert_eq!(block_on(root.read(0, buf(4096, 0))).0, Ok(()), "O_DIRECT: {}", flags != 0);
        }
        stop.store(true, Ordering::SeqCst);
    }
}

/// A thread that is given new tasks without end takes completions all the same: requests whose futures are dropped come like that while a drain
/// holds them back, and it waits for those.
#[test]
fn drain_5_a_flooded_thread_serves_requests() {
    use std::os::unix::fs::OpenOptionsExt;
    let home = thread();
    let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let path = dir.path().join("file");
    std::fs::write(&path, vec![1; 1 << 16]).expect("room");
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path).expect("it is there");
    let (file, _control) = host_file(file, FileEngine::Ring, 4096);
    let stack = stack(&home.handle(), Host { file, fast: true, limits: Limits::NONE, length: None }, 1 << 16);
    let stop = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let waiting = Arc::new(AtomicUsize::new(0));
            while !stop.load(Ordering::SeqCst) {
                if waiting.load(Ordering::Relaxed) < 10_000 {
                    waiting.fetch_add(1, Ordering::Relaxed);
                    let over = waiting.clone();
                    home.handle().spawn(async move {
                        over.fetch_sub(1, Ordering::Relaxed);
                    });
                }
            }
        });
        let root = stack.root.root();
        for _ in 0..20 {
            assert_eq!(block_on(root.read(0, buf(4096, 0))).0, Ok(()));
        }
        stop.store(true, Ordering::SeqCst);
    });
}

/// A thread that only sleeps between completions is woken by each, at once or by an interrupt, with and without polling.
#[test]
fn a_sleeping_thread_is_woken_by_completions() {
    use block_io::IoThreadOptions;
    use std::os::unix::fs::OpenOptionsExt;
    for poll_max in [Duration::ZERO, Duration::from_micros(32), Duration::from_millis(5)] {
        let home = IoThread::spawn(IoThreadOptions { poll_max, ..IoThreadOptions::named("home") }).expect("a thread");
        let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
        let path = dir.path().join("file");
        std::fs::write(&path, vec![1; 1 << 16]).expect("room");
        for flags in [0, libc::O_DIRECT] {
            let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(&path).expect("it is there");
            for engine in [FileEngine::Ring, FileEngine::Threads] {
                for fast in FAST {
                    let (file, _control) = host_file(file.try_clone().expect("a descriptor"), engine, 4096);
                    let host = Host { file, fast, limits: Limits::NONE, length: None };
                    let stack = stack(&home.handle(), host, 1 << 16);
                    for at in 0..16 {
                        assert_eq!(block_on(stack.root.root().read(at * 4096, buf(4096, 0))).0, Ok(()));
                    }
                }
            }
        }
    }
}

// Roots and nodes that close.

#[test]
fn close_1_a_root_without_its_control_is_closed() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let Stack { node, root: mut control } = mem(&home.handle(), &state);
        let root = control.root();
        control.set_quiesced(true);
        let held: Vec<_> = (0..2)
            .map(|_| {
                let root = root.clone();
                std::thread::spawn(move || read(&root))
            })
            .collect();
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&root, Request::read(0, buf(512, 0)), 1);
        std::thread::sleep(Duration::from_millis(5));
        drop(control);
        held.into_iter().for_each(|caller| assert_eq!(caller.join().expect("no panic"), Err(IoError::CLOSED)));
        queue.submit(&root, Request::write(0, buf(512, 0), NONE), 2);
        assert!(finish(&mut queue).iter().all(|one| one.done.result == Err(IoError::CLOSED) && one.done.buf.is_some()));
        assert_eq!(read(&root), Err(IoError::CLOSED));
        assert_eq!(block_on(root.flush()), Err(IoError::CLOSED));
        assert_eq!(block_on(root.block_status(0, 512)), Err(IoError::CLOSED));
        assert_eq!(root.length(), Err(IoError::CLOSED));
        assert!(!root.is_attached() && !root.is_writable());
        assert_eq!((state.seen(), state.valve.begun()), (vec![], 0));
        drop(node);
    }
}

#[test]
fn close_1_a_root_that_was_shut_is_closed() {
    let home = thread();
    let mut stack = mem(&home.handle(), &memory(true));
    let root = stack.root.root();
    stack.root.shut();
    assert_eq!((read(&root), root.limits().map(drop)), (Err(IoError::CLOSED), Err(IoError::CLOSED)));
}

/// A node that was closed below its parents, with or without its control.
fn check_closed_node(fast: bool, close: impl Fn(NodeControl) -> Option<NodeControl>) {
    let home = thread();
    let state = memory(fast);
    let below = node("below", Mem(state.clone(), Limits::NONE), 1 << 16);
    let (parent, _writer) = through(&below, fast, 0, ALL);
    let direct = RootControl::new("direct", &home.handle(), ALL, Some(&below.target()));
    let above = RootControl::new("above", &home.handle(), ALL, Some(&parent.target()));
    let _kept = close(below);
    for root in [direct.root(), above.root()] {
        assert_eq!(read(&root), Err(IoError::CLOSED));
        assert_eq!(block_on(root.write(0, buf(512, 0), NONE)).0, Err(IoError::CLOSED));
        assert_eq!(block_on(root.zero(0, 512, NONE)), Err(IoError::CLOSED));
        assert_eq!(block_on(root.flush()), Err(IoError::CLOSED));
        assert_eq!(block_on(root.block_status(0, 512)), Err(IoError::CLOSED));
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&root, Request::read(0, buf(512, 0)), 1);
        assert_eq!(finish(&mut queue)[0].done.result, Err(IoError::CLOSED));
    }
    assert_eq!((state.seen(), state.valve.begun()), (vec![], 0), "a closed node's driver was asked");
}

#[test]
fn close_1_a_closed_node_answers_closed() {
    for fast in FAST {
        check_closed_node(fast, |mut node| {
            node.shut();
            Some(node)
        });
        check_closed_node(fast, |node| {
            drop(node);
            None
        });
    }
}

#[test]
fn close_1_a_node_without_an_engine_answers_closed() {
    let home = thread();
    let shell = NodeControl::shell("shell");
    let control = RootControl::new("root", &home.handle(), ALL, Some(&shell.target()));
    assert_eq!(block_on(control.root().flush()), Ok(()), "a shell is read-only: there is nothing to flush");
    assert_eq!(read(&control.root()), Err(IoError::CLOSED), "and nobody knows how long it is");
    assert_eq!(block_on(control.root().refresh_length()), Err(IoError::CLOSED));
    let mut shut = shell;
    shut.shut();
    assert_eq!(shut.enter().map(drop), Err(IoError::CLOSED));
}

/// The engine goes with the last hold on its node, not before.
#[test]
fn close_1_an_engine_goes_with_its_last_request() {
    let home = thread();
    let state = memory(false);
    let Stack { node, root: control } = mem(&home.handle(), &state);
    state.valve.close();
    let root = control.root();
    let caller = std::thread::spawn(move || read(&root));
    eventually("it is in the engine", || state.valve.begun() == 1);
    drop((node, control));
    std::thread::sleep(Duration::from_millis(5));
    assert!(!state.dropped.load(Ordering::SeqCst), "a request is in the engine");
    state.valve.open();
    assert_eq!(caller.join().expect("no panic"), Ok(()));
    eventually("the engine is gone", || state.dropped.load(Ordering::SeqCst));
}
