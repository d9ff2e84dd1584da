//! What the core does between a request and its driver: padding, order among requests, flushes, status, observers.

#![allow(clippy::disallowed_methods, reason = "tests sleep")]

mod common;

use block_common::{BlockStatus, GuestRange, HostOffset, IoError, Limits, Preallocation, RequestFlags, StatusExtent};
use block_io::{Queue, Request, Root, WriteObserver};
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
    assert_eq!(seen(600, 600), [reading(512), reading(1024), writing(512, 1024)]);
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
}

// Order.

/// A serialising request waits for those that overlap it, whichever way they took, and later ones wait for it; what does not overlap
/// passes by.
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
    // Overlaps both, and came later: waits, though reads do not wait for reads.
    queue.submit(&root, Request::read(512, buf(512, 0)), 3);
    // Beside them.
    queue.submit(&root, Request::write(8192, buf(512, 1), NONE), 4);
    begun(2);
    stays(2);
    state.valve.open();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    assert!(done.iter().all(|one| one.done.result == Ok(())));
    let back = done.iter().find(|one| one.tag == 3).and_then(|one| one.done.buf.as_ref()).expect("it comes back");
    assert_eq!(bytes(back)[88..188], [1; 100], "the read came before the write");
    assert_eq!(stack.node.node().state(), block_io::GateState::empty());
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
    eventually("one begins", || state.valve.begun() == 1);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(state.valve.begun(), 1);
    state.valve.open();
    let mut done = Vec::new();
    while queue.pending() > 0 {
        assert!(queue.wait(&mut done, Some(LONG)) > 0);
    }
    assert_eq!(done.iter().map(|one| one.tag).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(read(&root, 0, 4096), [3; 4096]);
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

// Observers.

#[derive(Default)]
struct Notes(Mutex<Vec<(bool, u64, u64)>>);

impl WriteObserver for Notes {
    fn before(&self, range: GuestRange) {
        lock(&self.0).push((true, range.offset().0, range.len()));
    }

    fn after(&self, range: GuestRange) {
        lock(&self.0).push((false, range.offset().0, range.len()));
    }
}

/// Every change is told before it begins and after it is over, also one that fails.
#[test]
fn req_4_observers_see_every_change() {
    let home = thread();
    for fast in FAST {
        let state = memory(8192, fast);
        let mut stack = mem_limited(&home.handle(), &state, blocks(512));
        let notes = Arc::new(Notes::default());
        stack.node.observe(notes.clone());
        block_on(stack.node.settled());
        let root = stack.root.root();
        let seen = || std::mem::take(&mut *lock(&notes.0));
        let both = |offset, len| vec![(true, offset, len), (false, offset, len)];
        assert_eq!((write(&root, 512, 512, 1), seen()), (Ok(()), both(512, 512)));
        assert_eq!((write(&root, 600, 1, 1), seen()), (Ok(()), both(600, 1)));
        assert_eq!((block_on(root.zero(0, 700, NONE)), seen()), (Ok(()), both(0, 700)));
        assert_eq!((block_on(root.discard(0, 1024)), seen()), (Ok(()), both(0, 1024)));
        assert_eq!((block_on(root.truncate(4096, Preallocation::Off)), seen()), (Ok(()), both(4096, 4096)));
        assert_eq!((read(&root, 0, 512).len(), seen()), (512, vec![]));
        *lock(&state.fails) = Some(IoError::host(libc::ENOSPC));
        assert_eq!((write(&root, 512, 512, 1), seen()), (Err(IoError::host(libc::ENOSPC)), both(512, 512)));
    }
}
