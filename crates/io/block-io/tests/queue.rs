//! Queues, as a device thread with an event loop of its own uses them: tags come back exactly once whatever happens.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]

mod common;

use block_common::{IoError, Limits, RequestFlags};
use block_io::{Completed, FileEngine, IoThread, Queue, Request, Root};
use common::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const NONE: RequestFlags = RequestFlags::empty();

/// What an event loop does: poll(2) the event, acknowledge, reap. No call of the queue's that waits.
fn poll_and_reap(queue: &mut Queue, done: &mut Vec<Completed>) {
    queue.kick();
    if queue.reap(done) > 0 {
        return;
    }
    let limit = Timespec { tv_sec: LONG.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&queue.event(), PollFlags::IN)], Some(&limit)).expect("poll(2)");
    assert_eq!(ready, 1, "the event did not wake the loop with {} requests pending", queue.pending());
    queue.acknowledge();
    queue.reap(done);
}

fn finish(queue: &mut Queue, done: &mut Vec<Completed>) {
    let begin = Instant::now();
    while queue.pending() > 0 {
        poll_and_reap(queue, done);
        assert!(begin.elapsed() < LONG, "{} requests never came back", queue.pending());
    }
}

fn tags(done: &[Completed]) -> Vec<u64> {
    let mut tags: Vec<_> = done.iter().map(|completed| completed.tag).collect();
    tags.sort_unstable();
    tags
}

fn temporary(len: u64, flags: i32) -> std::fs::File {
    // Not in /tmp, which may be a tmpfs that knows no O_DIRECT.
    let dir = tempfile::tempdir_in("/var/tmp").expect("a folder");
    let path = dir.path().join("file");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .expect("a file");
    file.set_len(len).expect("room");
    file
}

fn host(home: &IoThread, file: std::fs::File, engine: FileEngine, fast: bool, alignment: u32) -> Stack {
    let length = file.metadata().expect("it is open").len();
    let (file, _control) = host_file(file, engine, alignment);
    let limits = Limits { request_alignment: alignment, ..Limits::NONE };
    stack(&home.handle(), Host { file, fast, limits, length: None }, length)
}

/// Every way in which a request of a queue may be carried out wakes a plain event loop: at once, by the ring from the page
/// cache, by an interrupt (O_DIRECT), by a pool's thread, on the home thread.
fn check_event(stack: &Stack) {
    let root = stack.root.root();
    let mut queue = Queue::new().expect("a queue");
    let mut done = Vec::new();
    for tag in 0..20 {
        queue.submit(&root, Request::write(tag * 4096, buf(4096, tag as u8), NONE), tag);
        finish(&mut queue, &mut done);
    }
    for tag in 20..40 {
        queue.submit(&root, Request::read((tag - 20) * 4096, buf(4096, 0xff)), tag);
    }
    queue.submit(&root, Request::flush(), 40);
    finish(&mut queue, &mut done);
    assert_eq!(tags(&done), (0..41).collect::<Vec<_>>());
    for completed in done {
        assert_eq!(completed.done.result, Ok(()), "{}", completed.tag);
        if (20..40).contains(&completed.tag) {
            let data = bytes(&completed.done.buf.expect("the buffer comes back"));
            assert!(data.iter().all(|byte| *byte == completed.tag as u8 - 20), "{}", completed.tag);
        }
    }
    eventually("nothing is in flight", || root.in_flight() == 0);
}

#[test]
fn the_event_wakes_a_plain_loop() {
    let home = thread();
    check_event(&mem(&home.handle(), &MemState::fast(1 << 20)));
    check_event(&mem(&home.handle(), &MemState::new(1 << 20)));
    for engine in [FileEngine::Ring, FileEngine::Threads] {
        for fast in [true, false] {
            check_event(&host(&home, temporary(1 << 20, 0), engine, fast, 1));
            check_event(&host(&home, temporary(1 << 20, libc::O_DIRECT), engine, fast, 4096));
        }
    }
}

/// The event is not readable for ever after.
#[test]
fn an_idle_queue_does_not_wake_its_loop() {
    let home = thread();
    let stack = host(&home, temporary(1 << 20, 0), FileEngine::Ring, true, 1);
    let root = stack.root.root();
    let mut queue = Queue::new().expect("a queue");
    let mut done = Vec::new();
    for tag in 0..100 {
        queue.submit(&root, Request::read(0, buf(4096, 0)), tag);
    }
    queue.submit(&root, Request::flush(), 100);
    finish(&mut queue, &mut done);
    queue.acknowledge();
    queue.reap(&mut done);
    let none = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&queue.event(), PollFlags::IN)], Some(&none)).expect("poll(2)"), 0);
    assert_eq!(queue.wait(&mut done, None), 0, "nothing is pending, so there is nothing to wait for");
}

/// A read of which the kernel does a part (the file ends inside it) is gone on with though nobody kicks.
#[test]
fn a_short_transfer_goes_on_by_itself() {
    let home = thread();
    let file = temporary(6000, 0);
    let (host, _control) = host_file(file, FileEngine::Ring, 1);
    let stack =
        stack(&home.handle(), Host { file: host, fast: true, limits: Limits::NONE, length: Some(16384) }, 16384);
    let mut queue = Queue::new().expect("a queue");
    let mut done = Vec::new();
    queue.submit(&stack.root.root(), Request::read(0, buf(16384, 0xff)), 1);
    queue.kick();
    let begin = Instant::now();
    while queue.reap(&mut done) == 0 {
        assert!(begin.elapsed() < LONG, "the rest of the read was never submitted");
    }
    assert_eq!(bytes(done[0].done.buf.as_ref().expect("it comes back")), vec![0; 16384]);
}

/// More requests than the ring has entries, submitted without reaping once.
#[test]
fn thousands_of_requests_without_reaping() {
    let home = thread();
    for flags in [0, libc::O_DIRECT] {
        let stack = host(&home, temporary(1 << 20, flags), FileEngine::Ring, true, 4096);
        let root = stack.root.root();
        let mut queue = Queue::new().expect("a queue");
        for tag in 0..3000 {
            queue.submit(&root, Request::read((tag % 256) * 4096, buf(4096, 1)), tag);
        }
        queue.kick();
        let mut done = Vec::new();
        finish(&mut queue, &mut done);
        assert_eq!(tags(&done), (0..3000).collect::<Vec<_>>());
        assert!(done.iter().all(|one| one.done.result.is_ok()));
    }
}

/// Reads, writes, zeroes, discards and flushes on several roots, fast and slow by turns, with drains in between.
#[test]
fn drain_4_each_tag_comes_back_once_under_a_random_mix() {
    let home = thread();
    let (first, second) = (MemState::fast(1 << 16), MemState::new(1 << 16));
    second.yields.store(2, Ordering::SeqCst);
    let mut stacks = [
        mem(&home.handle(), &first),
        mem(&home.handle(), &second),
        host(&home, temporary(1 << 16, 0), FileEngine::Ring, true, 1),
        host(&home, temporary(1 << 16, 0), FileEngine::Threads, true, 1),
        host(&home, temporary(1 << 16, 0), FileEngine::Ring, false, 1),
    ];
    let roots: Vec<Root> = stacks.iter().map(|stack| stack.root.root()).collect();
    let mut random = Random::new();
    let mut queue = Queue::new().expect("a queue");
    let (mut done, mut sent, mut expect_error) = (Vec::new(), 0, Vec::new());
    for round in 0..2000 {
        first.fast.store(random.next(2) == 0, Ordering::SeqCst);
        for _ in 0..random.next(8) {
            let root = &roots[random.next(roots.len() as u64) as usize];
            let (offset, len) = (random.next(1 << 16), random.next(4096));
            let bad = offset + len > 1 << 16;
            let request = match random.next(6) {
                0 | 1 => Request::read(offset, buf(len as usize, 0)),
                2 | 3 => Request::write(offset, buf(len as usize, 1), NONE),
                4 => Request::discard(offset, len),
                _ => Request::flush(),
            };
            expect_error.push(bad && request.kind() != block_io::RequestKind::Flush);
            queue.submit(root, request, sent);
            sent += 1;
        }
        match random.next(4) {
            0 => queue.kick(),
            1 => drop(queue.reap(&mut done)),
            2 => drop(queue.wait(&mut done, Some(Duration::ZERO))),
            _ => {}
        }
        if round % 100 == 0 {
            let drained = &mut stacks[random.next(5) as usize].root;
            let quiesced = !drained.is_quiesced();
            drained.set_quiesced(quiesced);
        }
    }
    stacks.iter_mut().for_each(|stack| stack.root.set_quiesced(false));
    finish(&mut queue, &mut done);
    assert_eq!(tags(&done), (0..sent).collect::<Vec<_>>());
    for one in &done {
        let expected = if expect_error[one.tag as usize] { Err(IoError::OUT_OF_BOUNDS) } else { Ok(()) };
        assert_eq!(one.done.result, expected, "request {}", one.tag);
    }
    stacks.iter().for_each(|stack| eventually("idle", || stack.root.root().in_flight() == 0));
}

/// A queue goes while requests are under way: it waits for what the kernel has, and what is elsewhere ends by itself.
#[test]
fn drain_4_a_queue_that_is_dropped_leaves_nothing_behind() {
    let home = thread();
    let state = MemState::new(1 << 16);
    let stacks = [
        mem(&home.handle(), &state),
        host(&home, temporary(1 << 20, libc::O_DIRECT), FileEngine::Ring, true, 4096),
        host(&home, temporary(1 << 20, 0), FileEngine::Threads, true, 1),
        host(&home, temporary(1 << 20, 0), FileEngine::Ring, false, 1),
    ];
    for kick in [false, true] {
        state.valve.close();
        let mut queue = Queue::new().expect("a queue");
        for tag in 0..100u64 {
            let root = stacks[tag as usize % 4].root.root();
            queue.submit(&root, Request::write((tag % 16) * 4096, buf(4096, 1), NONE), tag);
        }
        if kick {
            queue.kick();
        }
        drop(queue);
        assert_eq!(stacks[1].root.root().in_flight(), 0, "the ring's requests were waited for");
        assert_eq!(stacks[2].root.root().in_flight(), 0, "the pool's requests were waited for");
        state.valve.open();
        for stack in &stacks {
            let count = || stack.root.root().count(block_io::RequestKind::Write);
            let sent = 25 * (1 + u64::from(kick));
            // Idle is not enough: what went to the home thread may not have begun there.
            eventually("all are over", || count().requests + count().failed >= sent);
            assert_eq!((count().requests, count().failed), (sent, 0));
            eventually("idle", || stack.root.root().in_flight() == 0);
        }
    }
}

/// The waiting call, with every kind of engine and of timeout.
#[test]
fn waiting_without_an_event_loop() {
    let home = thread();
    let state = MemState::new(1 << 16);
    for stack in [
        mem(&home.handle(), &state),
        host(&home, temporary(1 << 16, libc::O_DIRECT), FileEngine::Ring, true, 4096),
        host(&home, temporary(1 << 16, 0), FileEngine::Threads, true, 1),
    ] {
        for timeout in [None, Some(LONG)] {
            let mut queue = Queue::new().expect("a queue");
            let mut done = Vec::new();
            for tag in 0..16 {
                queue.submit(&stack.root.root(), Request::read(0, buf(4096, 0)), tag);
            }
            while queue.pending() > 0 {
                assert!(queue.wait(&mut done, timeout) > 0, "it returned early");
            }
            assert_eq!(tags(&done), (0..16).collect::<Vec<_>>());
        }
    }
    let state = MemState::new(4096);
    state.valve.close();
    let stack = mem(&home.handle(), &state);
    let mut queue = Queue::new().expect("a queue");
    let mut done = Vec::new();
    queue.submit(&stack.root.root(), Request::read(0, buf(512, 0)), 0);
    let begin = Instant::now();
    assert_eq!(queue.wait(&mut done, Some(Duration::from_millis(20))), 0);
    assert!(begin.elapsed() >= Duration::from_millis(20));
    state.valve.open();
    assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
}

/// Two threads with a queue each, on one root.
#[test]
fn two_queues_share_a_root() {
    let home = thread();
    let stack = host(&home, temporary(1 << 20, 0), FileEngine::Ring, true, 1);
    std::thread::scope(|scope| {
        for part in 0..2u64 {
            let root = stack.root.root();
            scope.spawn(move || {
                let mut queue = Queue::new().expect("a queue");
                let mut done = Vec::new();
                for tag in 0..1000 {
                    let offset = (part * 128 + tag % 128) * 4096;
                    queue.submit(&root, Request::write(offset, buf(4096, part as u8 + 1), NONE), tag);
                    if tag % 32 == 0 {
                        finish(&mut queue, &mut done);
                    }
                }
                finish(&mut queue, &mut done);
                assert_eq!(tags(&done), (0..1000).collect::<Vec<_>>());
            });
        }
    });
    assert_eq!(stack.root.root().count(block_io::RequestKind::Write).requests, 2000);
    let _ = Arc::new(());
}
