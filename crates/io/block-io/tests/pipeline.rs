//! What the core does between a request and its driver: padding, order among requests, flushes, status, observers.

#![allow(clippy::disallowed_methods, reason = "tests sleep")]

mod common;

use async_trait::async_trait;
use block_common::{
    BlockStatus, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Preallocation,
    RequestFlags, StatusExtent,
};
use block_io::{
    ChangeKind, Driver, Edge, EdgeWriter, NodeControl, Queue, Req, Request, Root, RootControl, WriteObserver,
};
use common::*;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NONE: RequestFlags = RequestFlags::empty();
const FAST: [bool; 2] = [false, true];

fn memory(len: usize, fast: bool) -> Arc<MemState> {
    let state = MemState::new(len);
    state.fast.store(fast, Ordering::SeqCst);
    state
}

fn blocks(alignment: u32) -> Limits {
    Limits { request_alignment: alignment, ..Limits::NONE }
}

fn read(root: &Root, offset: u64, len: usize) -> Vec<u8> {
    let (result, back) = block_on(root.read(offset, buf(len, 0xee)));
    assert_eq!(result, Ok(()), "{offset}+{len}");
    bytes(&back.expect("it comes back"))
}

fn write(root: &Root, offset: u64, len: usize, byte: u8) -> Result<(), IoError> {
    block_on(root.write(offset, buf(len, byte), NONE)).0
}

// Padding.

/// Any request on a node of blocks does what it would do on one without.
#[test]
fn req_1_random_requests_of_any_alignment() {
    let home = thread();
    let mut random = Random::new();
    for alignment in [512, 4096] {
        let len = 300_000u64.next_multiple_of(alignment.into());
        let state = memory(len as usize, true);
        state.zero_supported.store(true, Ordering::SeqCst);
        let limits =
            Limits { zero_alignment: 2 * alignment, zero_max: 20_000, transfer_max: 70_000, ..blocks(alignment) };
        let stack = mem_limited(&home.handle(), &state, limits);
        let root = stack.root.root();
        let mut model = vec![0; len as usize];
        for i in 0..1500u64 {
            let longest = if random.next(10) == 0 { 200_000 } else { 3 * u64::from(alignment) };
            let count = random.next(longest) + 1;
            let offset = random.next(len - count + 1);
            let range = offset as usize..(offset + count) as usize;
            match random.next(4) {
                0 => assert!(read(&root, offset, count as usize) == model[range], "{offset}+{count}"),
                1 => {
                    let flags = [NONE, RequestFlags::MAY_UNMAP][random.next(2) as usize];
                    assert_eq!(block_on(root.zero(offset, count, flags)), Ok(()));
                    model[range].fill(0);
                }
                _ => {
                    assert_eq!(write(&root, offset, count as usize, i as u8), Ok(()));
                    model[range].fill(i as u8);
                }
            }
            for seen in state.seen() {
                let (Seen::Read(at, len) | Seen::Write(at, len, _) | Seen::Now(at, len)) = seen else { continue };
                assert!((at | len as u64).is_multiple_of(alignment.into()), "{at}+{len} is no block");
                assert!(len <= 70_000 || matches!(seen, Seen::Now(..)), "{len} is too long");
            }
        }
        assert!(*lock(&state.bytes) == model);
    }
}

/// Scenario: many write a few bytes each, next to each other, so that several share a block; others write whole blocks beside them.
/// Nobody's bytes are lost.
#[test]
fn req_1_neighbours_in_a_block_keep_their_bytes() {
    let (homes, count) = ([thread(), thread_without_ring()], 64 * 100);
    for (yields, fast) in [(0, true), (3, false), (3, true)] {
        let state = memory(count * 64, fast);
        state.yields.store(yields, Ordering::SeqCst);
        let stack = mem_limited(&homes[0].handle(), &state, blocks(512));
        std::thread::scope(|scope| {
            for part in 0..4 {
                let root = stack.root.root();
                scope.spawn(move || {
                    let mut queue = Queue::new().expect("a queue");
                    let mut done = Vec::new();
                    for i in (part..count).step_by(4) {
                        let byte = (i % 251) as u8 + 1;
                        // Every tenth block is somebody's alone.
                        let own = i / 8 % 10 == 9;
                        if own && i % 8 == 0 {
                            queue.submit(&root, Request::write(i as u64 * 64, buf(512, byte), NONE), 0);
                        } else if !own {
                            queue.submit(&root, Request::write(i as u64 * 64, buf(64, byte), NONE), 0);
                        }
                        while queue.pending() > 16 {
                            queue.wait(&mut done, Some(LONG));
                        }
                    }
                    while queue.pending() > 0 {
                        assert!(queue.wait(&mut done, Some(LONG)) > 0, "a request hangs");
                    }
                    assert!(done.iter().all(|one| one.done.result == Ok(())));
                });
            }
        });
        let content = lock(&state.bytes);
        for i in 0..count {
            let first = if i / 8 % 10 == 9 { i & !7 } else { i };
            let expected = (first % 251) as u8 + 1;
            assert!(content[i * 64..][..64].iter().all(|byte| *byte == expected), "part {i}, yields {yields}");
        }
    }
}

/// What is read around a write is not read twice, and not at all where the blocks are whole or past the end.
#[test]
fn req_1_only_what_is_missing_is_read() {
    let home = thread();
    let state = memory(4096, false);
    let stack = mem_limited(&home.handle(), &state, blocks(512));
    let root = stack.root.root();
    let seen = |offset, len| {
        assert_eq!(write(&root, offset, len, 1), Ok(()));
        state.seen()
    };
    let (reading, writing) = (|at| Seen::Read(at, 512), |at, len| Seen::Write(at, len, NONE));
    assert_eq!(seen(512, 1024), [writing(512, 1024)]);
    assert_eq!(seen(512, 1), [reading(512), writing(512, 512)]);
    assert_eq!(seen(600, 100), [reading(512), writing(512, 512)]);
    // Two neighbours are read at once, two ends of something longer each by itself.
    assert_eq!(seen(600, 600), [Seen::Read(512, 1024), writing(512, 1024)]);
    assert_eq!(seen(600, 1000), [reading(512), reading(1536), writing(512, 1536)]);
    assert_eq!(seen(512, 600), [reading(1024), writing(512, 1024)]);
    assert_eq!(seen(600, 936), [reading(512), writing(512, 1024)]);
}

/// Nothing is nothing, wherever it is.
#[test]
fn req_1_empty_requests_do_nothing() {
    let home = thread();
    let state = memory(4096, false);
    let stack = mem_limited(&home.handle(), &state, blocks(512));
    let root = stack.root.root();
    for at in [0, 100, 512, 4096] {
        assert_eq!((write(&root, at, 0, 1), read(&root, at, 0).len()), (Ok(()), 0));
        assert_eq!((block_on(root.zero(at, 0, NONE)), block_on(root.discard(at, 0))), (Ok(()), Ok(())));
    }
    assert_eq!(state.seen(), []);
    assert_eq!(write(&root, 4097, 0, 1), Err(IoError::OUT_OF_BOUNDS));
}

/// Of a discard that does not fill blocks only the whole ones go, and a zero write that may not fall back is refused.
#[test]
fn zero_1_parts_of_blocks() {
    let home = thread();
    let state = memory(8192, false);
    state.zero_supported.store(true, Ordering::SeqCst);
    let limits = Limits { zero_alignment: 1024, discard_alignment: 1024, ..blocks(512) };
    let stack = mem_limited(&home.handle(), &state, limits);
    let root = stack.root.root();
    assert_eq!(block_on(root.discard(100, 2600)), Ok(()));
    assert_eq!(state.seen(), [Seen::Discard(512, 512), Seen::Discard(1024, 1024), Seen::Discard(2048, 512)]);
    assert_eq!(block_on(root.discard(100, 800)), Ok(()));
    assert_eq!(state.seen(), []);
    assert_eq!(block_on(root.zero(512, 2048, NONE)), Ok(()));
    assert_eq!(state.seen(), [Seen::Zero(512, 512, NONE), Seen::Zero(1024, 1024, NONE), Seen::Zero(2048, 512, NONE)]);
    let strict = RequestFlags::NO_FALLBACK;
    assert_eq!(block_on(root.zero(100, 1000, strict)), Err(IoError::UNSUPPORTED));
    assert_eq!(state.seen(), []);
    assert_eq!(block_on(root.zero(1024, 1024, strict)), Ok(()));
    assert_eq!(state.seen(), [Seen::Zero(1024, 1024, strict)]);
    // What is left before and after whole blocks is written, and what is around it stays.
    lock(&state.bytes).fill(7);
    assert_eq!(block_on(root.zero(100, 2000, NONE)), Ok(()));
    let (reading, writing) = (|at| Seen::Read(at, 512), |at, len| Seen::Write(at, len, NONE));
    let seen = [reading(0), writing(0, 1024), Seen::Zero(1024, 1024, NONE), reading(2048), writing(2048, 512)];
    assert_eq!(state.seen(), seen);
    assert!(lock(&state.bytes).iter().enumerate().all(|(at, byte)| (*byte == 0) == (100..2100).contains(&at)));
}

// Order.

/// A serialising request waits for those that overlap it, whichever way they took; what does not overlap it, or need not wait for
/// those that it waits for, passes by.
#[test]
fn req_2_who_waits_for_whom() {
    let home = thread();
    let state = memory(65536, false);
    let stack = mem_limited(&home.handle(), &state, blocks(512));
    let root = stack.root.root();
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    let begun = |count: usize| eventually("they begin", || state.valve.begun() == count);
    let stays = |count: usize| {
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(state.valve.begun(), count, "somebody did not wait");
    };
    state.valve.close();
    queue.submit(&root, Request::read(0, buf(4096, 0)), 1);
    begun(1);
    // Overlaps the read: waits. Its blocks are 512..1024.
    queue.submit(&root, Request::write(600, buf(100, 1), NONE), 2);
    stays(1);
    // Overlaps both, but is not in the way of the one that is under way.
    queue.submit(&root, Request::read(512, buf(512, 0)), 3);
    begun(2);
    // Beside them.
    queue.submit(&root, Request::write(8192, buf(512, 1), NONE), 4);
    begun(3);
    // Waits for the reads, as the first one does.
    queue.submit(&root, Request::write(700, buf(100, 2), NONE), 5);
    stays(3);
    state.valve.open();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    assert!(done.iter().all(|one| one.done.result == Ok(())));
    let back = done.iter().find(|one| one.tag == 3).and_then(|one| one.done.buf.as_ref()).expect("it comes back");
    assert_eq!(bytes(back)[88..188], [0; 100], "the write came before the read");
    assert_eq!(read(&root, 600, 100), [1; 100]);
    assert_eq!(stack.node.node().state(), block_io::GateState::empty());
}

/// Who waits is passed by others, but not by all that come.
#[test]
fn req_2_who_waits_is_not_passed_for_ever() {
    let home = thread();
    let state = memory(65536, false);
    let stack = mem_limited(&home.handle(), &state, blocks(512));
    let root = stack.root.root();
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    state.valve.close();
    queue.submit(&root, Request::read(0, buf(512, 0)), 0);
    eventually("it begins", || state.valve.begun() == 1);
    queue.submit(&root, Request::write(100, buf(100, 1), NONE), 1);
    for tag in 2..42 {
        queue.submit(&root, Request::read(0, buf(512, 0)), tag);
    }
    eventually("some pass", || state.valve.begun() == 17);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state.valve.begun(), 17, "sixteen have passed, and no more do");
    state.valve.open();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    let written = |tag: u64| {
        let back = done.iter().find(|one| one.tag == tag).and_then(|one| one.done.buf.as_ref()).expect("it comes back");
        bytes(back)[100..200] == [1; 100]
    };
    assert!((2..18).all(|tag| !written(tag)) && (18..42).all(written), "the write was passed by others than the first");
}

/// A flag makes any request serialise: a write of whole blocks that must not meet another one.
#[test]
fn req_2_a_flag_serialises() {
    let home = thread();
    let state = memory(65536, false);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let mut queue = Queue::new().expect("a queue");
    state.valve.close();
    queue.submit(&root, Request::write(0, buf(4096, 1), NONE), 1);
    queue.submit(&root, Request::write(0, buf(4096, 2), RequestFlags::SERIALISING), 2);
    queue.submit(&root, Request::write(0, buf(4096, 3), NONE), 3);
    eventually("two begin", || state.valve.begun() == 2);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state.valve.begun(), 2, "the serialising one did not wait");
    state.valve.open();
    let mut done = Vec::new();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    assert_eq!(done.iter().map(|one| one.tag).collect::<Vec<_>>(), [1, 3, 2]);
    assert_eq!(read(&root, 0, 4096), [2; 4096]);
}

/// Those who took the fast path before a serialising request came are waited for, or it would write back what they have changed.
#[test]
fn req_2_a_serialising_request_waits_for_the_fast_ones() {
    let home = thread();
    let state = memory(4096, true);
    let stack = mem_limited(&home.handle(), &state, blocks(512));
    let root = stack.root.root();
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    std::thread::scope(|scope| {
        // The driver has the write, and cannot get at the bytes.
        let bytes = lock(&state.bytes);
        let fast = scope.spawn(|| {
            let mut queue = Queue::new().expect("a queue");
            queue.submit(&root, Request::write(0, buf(512, 1), NONE), 0);
            assert_eq!(queue.wait(&mut Vec::new(), Some(LONG)), 1);
        });
        eventually("it is there", || lock(&state.seen).contains(&Seen::Now(0, 512)));
        queue.submit(&root, Request::write(100, buf(10, 2), NONE), 1);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(state.valve.begun(), 0, "somebody did not wait");
        drop(bytes);
        fast.join().expect("no panic");
    });
    assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
    assert_eq!(done[0].done.result, Ok(()));
    let expected = [vec![1; 100], vec![2; 10], vec![1; 402]].concat();
    assert_eq!(lock(&state.bytes)[..512], expected);
}

// Flushes.

/// However many ask at once, those who come while one flush runs share the next; without writes there is none.
#[test]
fn flush_1_flushes_are_shared() {
    let home = thread();
    let state = memory(4096, false);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let flushes = || state.seen().iter().filter(|seen| **seen == Seen::Flush).count();
    assert_eq!((block_on(root.flush()), flushes()), (Ok(()), 0));
    assert_eq!(write(&root, 0, 512, 1), Ok(()));
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    let begun = state.valve.begun();
    state.valve.close();
    for tag in 0..10 {
        queue.submit(&root, Request::flush(), tag);
    }
    eventually("the first begins", || state.valve.begun() == begun + 1);
    // A write that ends meanwhile is not covered by it: the next flush is.
    state.fast.store(true, Ordering::SeqCst);
    assert_eq!(write(&root, 512, 512, 1), Ok(()));
    for tag in 10..20 {
        queue.submit(&root, Request::flush(), tag);
    }
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state.valve.begun(), begun + 1, "two flushes at once");
    state.valve.open();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    assert!(done.iter().all(|one| one.done.result == Ok(())));
    assert_eq!(flushes(), 2);
    assert_eq!((block_on(root.flush()), flushes()), (Ok(()), 0));
}

/// A flush that fails has failed for everybody who waited for it, and the next one is made.
#[test]
fn flush_1_an_error_is_everybodys() {
    let home = thread();
    let state = memory(4096, false);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    assert_eq!(write(&root, 0, 512, 1), Ok(()));
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    let begun = state.valve.begun();
    state.valve.close();
    *lock(&state.fails) = Some(IoError::host(libc::EIO));
    for tag in 0..10 {
        queue.submit(&root, Request::flush(), tag);
    }
    eventually("one begins", || state.valve.begun() == begun + 1);
    std::thread::sleep(Duration::from_millis(20));
    state.valve.open();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    assert!(done.iter().all(|one| one.done.result == Err(IoError::host(libc::EIO))), "{done:?}");
    *lock(&state.fails) = None;
    state.seen();
    assert_eq!(block_on(root.flush()), Ok(()));
    assert_eq!(state.seen(), [Seen::Flush]);
}

// Status.

/// A question may begin and end within a block.
#[test]
fn stat_1_questions_of_any_alignment() {
    let home = thread();
    let state = memory(65536, true);
    *lock(&state.status) =
        Some(StatusExtent::mapped(BlockStatus::DATA | BlockStatus::ALLOCATED, 1024, HostOffset(512)));
    let stack = mem_limited(&home.handle(), &state, blocks(512));
    let status = |at, len| block_on(stack.root.root().block_status(at, len)).expect("it can be told");
    let extent = status(700, 4000);
    assert_eq!((extent.len, extent.host_offset), (836, Some(HostOffset(700))));
    assert_eq!(status(700, 100).len, 100);
}

/// What a leaf has said of data is not asked again, until something may have made less of it.
#[test]
fn stat_2_data_is_remembered_until_it_may_go() {
    let home = thread();
    let state = memory(65536, false);
    state.leaf.store(true, Ordering::SeqCst);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let data = |len, at| StatusExtent::mapped(BlockStatus::DATA | BlockStatus::ALLOCATED, len, HostOffset(at));
    let is_now = |extent| *lock(&state.status) = Some(extent);
    // What is told, and how often the driver was asked.
    let status = |at, len| {
        let before = state.valve.begun();
        let extent = block_on(root.block_status(at, len)).expect("it can be told");
        (extent, state.valve.begun() - before)
    };
    is_now(data(8192, 512));
    assert_eq!(status(4096, 1024), (data(1024, 512), 1));
    assert_eq!(status(5096, 100), (data(100, 1512), 0));
    assert_eq!(status(12_287, 100), (data(1, 8703), 0));
    assert_eq!(status(12_288, 100), (data(100, 512), 1));
    assert_eq!(write(&root, 12_288, 512, 1), Ok(()));
    assert_eq!(status(12_288, 100), (data(100, 512), 0));
    type Change<'a> = &'a dyn Fn() -> IoResult<()>;
    let changes: [(&str, Change<'_>); 4] = [
        ("zero", &|| block_on(root.zero(0, 512, NONE))),
        ("discard", &|| block_on(root.discard(0, 512))),
        ("truncate", &|| block_on(root.truncate(60_000, Preallocation::Off))),
        ("ioctl", &|| block_on(root.ioctl(1, buf(8, 0))).or(Ok(()))),
    ];
    for (what, change) in changes {
        is_now(data(8192, 0));
        status(0, 512);
        assert_eq!(status(0, 512), (data(512, 0), 0), "{what}");
        assert_eq!(change(), Ok(()), "{what}");
        is_now(StatusExtent::zero(8192));
        assert_eq!(status(0, 512), (StatusExtent::zero(512), 1), "{what}");
        // Zeroes are not remembered: a write makes data of them, and forgets nothing.
        is_now(data(8192, 0));
        assert_eq!(status(0, 512), (data(512, 0), 1), "{what}");
    }
    // Who has children does not know when they change.
    state.leaf.store(false, Ordering::SeqCst);
    assert_eq!(status(0, 512).1, 1);
    assert_eq!(status(0, 512).1, 1);
}

/// An answer that was on its way while data went is told, and not remembered.
#[test]
fn stat_2_a_late_answer_is_not_remembered() {
    let home = thread();
    let state = memory(65536, false);
    state.leaf.store(true, Ordering::SeqCst);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    state.valve.close();
    let asked = root.clone();
    let asking = std::thread::spawn(move || block_on(asked.block_status(0, 512)).map(drop));
    eventually("it is asked", || state.valve.begun() == 1);
    queue.submit(&root, Request::zero(0, 512, NONE), 1);
    eventually("it is zeroed", || state.valve.begun() == 2);
    state.valve.open();
    assert_eq!((queue.wait(&mut done, Some(LONG)), asking.join().expect("no panic")), (1, Ok(())));
    *lock(&state.status) = Some(StatusExtent::zero(512));
    assert_eq!(block_on(root.block_status(0, 512)), Ok(StatusExtent::zero(512)));
}

// Backing files.

/// A layer that hides what its backing file has, and knows nothing of it: where it grows, that comes to light.
struct Over {
    own: Mem,
    backing: Edge,
}

#[async_trait]
impl Driver for Over {
    fn format_name(&self) -> &'static str {
        "over"
    }

    fn limits(&self) -> Limits {
        self.own.limits()
    }

    fn backing(&self) -> Option<&Edge> {
        Some(&self.backing)
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.own.length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.own.read(req, offset, buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.own.write(req, offset, buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.own.zero(req, range, flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.own.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.own.block_status(req, range).await
    }

    async fn truncate(&self, req: &Req, len: u64, _preallocation: Preallocation) -> IoResult<()> {
        let below = self.backing.length(req)?.min(len) as usize;
        let mut bytes = lock(&self.own.0.bytes);
        if bytes.len() < below {
            bytes.resize(below, 0x55);
        }
        bytes.resize(len as usize, 0);
        Ok(())
    }
}

fn over(below: &NodeControl, own: &Arc<MemState>) -> (NodeControl, EdgeWriter) {
    let shell = NodeControl::shell("over");
    let (writer, backing) = shell.edge(ChildRole::COW, READ, Some(&below.target()));
    let length = lock(&own.bytes).len() as u64;
    shell.install(Box::new(Over { own: Mem(own.clone(), Limits::NONE), backing }), length, false);
    (shell, writer)
}

/// Where a backing file reaches past the old end, nobody ever sees what it has there.
#[test]
fn trunc_1_what_a_backing_file_has_stays_hidden() {
    let home = thread();
    let below = node("below", Mem(memory(16_384, true), Limits::NONE), 16_384);
    let state = memory(4096, false);
    state.zero_supported.store(true, Ordering::SeqCst);
    let (node, _writer) = over(&below, &state);
    let control = RootControl::new("root", &home.handle(), ALL, Some(&node.target()));
    let root = control.root();
    assert_eq!(block_on(root.truncate(8192, Preallocation::Off)), Ok(()));
    assert_eq!(state.seen(), [Seen::Zero(4096, 4096, NONE)]);
    assert_eq!(read(&root, 0, 8192), [0; 8192]);
    // A read that comes before the zeroes waits for them.
    let begun = state.valve.begun();
    state.valve.close();
    let growing = root.clone();
    let growing = std::thread::spawn(move || block_on(growing.truncate(20_000, Preallocation::Off)));
    eventually("it is zeroed", || state.valve.begun() == begun + 1);
    let reading = root.clone();
    let reading = std::thread::spawn(move || read(&reading, 12_000, 8000));
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state.valve.begun(), begun + 1, "it did not wait");
    state.valve.open();
    assert_eq!(growing.join().expect("no panic"), Ok(()));
    assert_eq!(reading.join().expect("no panic"), [0; 8000]);
    assert_eq!(state.seen()[1], Seen::Zero(8192, 8192, NONE), "only what the backing file has");
}

/// What cannot be hidden is cut off again.
#[test]
fn trunc_1_what_cannot_be_hidden_does_not_come() {
    let home = thread();
    let below = node("below", Mem(memory(16_384, true), Limits::NONE), 16_384);
    let state = memory(4096, false);
    state.zero_supported.store(true, Ordering::SeqCst);
    let (node, _writer) = over(&below, &state);
    let control = RootControl::new("root", &home.handle(), ALL, Some(&node.target()));
    let root = control.root();
    *lock(&state.fails) = Some(IoError::host(libc::ENOSPC));
    assert_eq!(block_on(root.truncate(8192, Preallocation::Off)), Err(IoError::host(libc::ENOSPC)));
    assert_eq!((root.length(), lock(&state.bytes).len()), (Ok(4096), 4096));
    *lock(&state.fails) = None;
    assert_eq!(block_on(root.truncate(8192, Preallocation::Off)), Ok(()));
    assert_eq!(read(&root, 0, 8192), [0; 8192]);
}

/// A backing file is asked up to its end, whatever the layer above thinks of its length.
#[test]
fn stat_1_a_backing_file_ends_where_it_ends() {
    let home = thread();
    let below = node("below", Mem(memory(5000, true), Limits::NONE), 5000);
    let state = memory(65536, true);
    let (node, _writer) = over(&below, &state);
    let control = RootControl::new("root", &home.handle(), ALL, Some(&node.target()));
    let root = control.root();
    let status = |at, len| {
        let told = block_on(root.chain_status(at, len)).expect("it can be told");
        (told.extent.status.difference(BlockStatus::EOF), told.extent.len, told.depth)
    };
    let (data, zero) = (BlockStatus::DATA | BlockStatus::ALLOCATED, BlockStatus::ZERO);
    *lock(&state.status) = Some(StatusExtent::unallocated(1 << 40));
    assert_eq!(status(0, 65536), (data, 5000, Some(1)));
    assert_eq!(status(100, 200), (data, 200, Some(1)));
    assert_eq!(status(4999, 2), (data, 1, Some(1)));
    assert_eq!(status(5000, 65536 - 5000), (zero, 65536 - 5000, None));
    *lock(&state.status) = Some(StatusExtent::data(1 << 40));
    assert_eq!(status(4999, 2), (data, 2, Some(0)));
}

// Observers.

/// What an observer was told: before or after, what, where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Before(ChangeKind, u64, u64),
    After(ChangeKind, u64, u64),
    Resized(u64),
}

#[derive(Default)]
struct Notes(Mutex<Vec<Told>>);

impl WriteObserver for Notes {
    fn before(&self, kind: ChangeKind, range: GuestRange) {
        lock(&self.0).push(Told::Before(kind, range.offset().0, range.len()));
    }

    fn after(&self, kind: ChangeKind, range: GuestRange) {
        lock(&self.0).push(Told::After(kind, range.offset().0, range.len()));
    }

    fn resized(&self, len: u64) {
        lock(&self.0).push(Told::Resized(len));
    }
}

/// Every change is told before it begins and after it is over, also one that fails.
#[test]
fn req_4_observers_see_every_change() {
    use ChangeKind::{Discard, Resize, Write};
    let home = thread();
    for fast in FAST {
        let state = memory(8192, fast);
        let mut stack = mem_limited(&home.handle(), &state, blocks(512));
        let notes = Arc::new(Notes::default());
        stack.node.observe(notes.clone());
        block_on(stack.node.settled());
        let root = stack.root.root();
        let seen = || std::mem::take(&mut *lock(&notes.0));
        let both = |kind, offset, len| vec![Told::Before(kind, offset, len), Told::After(kind, offset, len)];
        assert_eq!((write(&root, 512, 512, 1), seen()), (Ok(()), both(Write, 512, 512)));
        assert_eq!((write(&root, 600, 1, 1), seen()), (Ok(()), both(Write, 600, 1)));
        assert_eq!((block_on(root.zero(0, 700, NONE)), seen()), (Ok(()), both(Write, 0, 700)));
        assert_eq!((block_on(root.discard(0, 1024)), seen()), (Ok(()), both(Discard, 0, 1024)));
        let told = [both(Resize, 4096, 4096), vec![Told::Resized(4096)]].concat();
        assert_eq!((block_on(root.truncate(4096, Preallocation::Off)), seen()), (Ok(()), told));
        assert_eq!((read(&root, 0, 512).len(), seen()), (512, vec![]));
        *lock(&state.fails) = Some(IoError::host(libc::ENOSPC));
        assert_eq!((write(&root, 512, 512, 1), seen()), (Err(IoError::host(libc::ENOSPC)), both(Write, 512, 512)));
    }
}

// What a wait may bring.

/// A request waits for a truncation that takes away its range: it is refused, and brings nothing back.
#[test]
fn trunc_1_who_waited_for_a_shrink_is_past_the_end() {
    let home = thread();
    for write in [true, false] {
        let state = memory(16_384, false);
        let stack = mem(&home.handle(), &state);
        let root = stack.root.root();
        let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
        state.valve.close();
        let shrink = home.handle().run({
            let root = root.clone();
            async move { root.truncate(4096, Preallocation::Off).await }
        });
        eventually("it is in the driver", || state.valve.begun() == 1);
        let request = if write { Request::write(8192, buf(512, 1), NONE) } else { Request::read(8192, buf(512, 1)) };
        queue.submit(&root, request, 1);
        std::thread::sleep(Duration::from_millis(10));
        state.valve.open();
        assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
        assert_eq!(block_on(shrink), Some(Ok(())));
        assert_eq!(done[0].done.result, Err(IoError::OUT_OF_BOUNDS));
        assert_eq!((lock(&state.bytes).len(), root.length()), (4096, Ok(4096)));
    }
}

/// Of truncations one at a time is in the driver, whichever way they go.
#[test]
fn trunc_1_one_truncation_at_a_time() {
    let home = thread();
    for (first, second) in [(8192, 2048), (2048, 8192), (8192, 16_384), (2048, 1024)] {
        let state = memory(4096, false);
        let stack = mem(&home.handle(), &state);
        state.valve.close();
        let truncate = |len| {
            let root = stack.root.root();
            home.handle().run(async move { root.truncate(len, Preallocation::Off).await })
        };
        let first_one = truncate(first);
        eventually("it is in the driver", || state.valve.begun() == 1);
        let second_one = truncate(second);
        std::thread::sleep(Duration::from_millis(10));
        assert_eq!(state.valve.begun(), 1, "both are in the driver");
        state.valve.open();
        assert_eq!((block_on(first_one), block_on(second_one)), (Some(Ok(())), Some(Ok(()))));
        assert_eq!((lock(&state.bytes).len() as u64, stack.root.root().length()), (second, Ok(second)));
    }
}
