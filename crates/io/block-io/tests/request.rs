//! What the pipeline does with a request before and after the driver: bounds, permissions, limits, splitting, fallbacks,
//! flags, status.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]

mod common;

use block_common::{
    BlockStatus, ChildRole, HostOffset, IoError, IoResult, Limits, Perm, PermPair, Preallocation, RequestFlags,
    StatusExtent,
};
use block_io::{
    IoThread, IoThreadOptions, NodeControl, Queue, Req, Request, RequestKind, Root, RootControl, StaticGraph,
};
use common::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const LENGTH: u64 = 1 << 16;
const NONE: RequestFlags = RequestFlags::empty();
const FAST: [bool; 2] = [false, true];

fn memory(fast: bool) -> Arc<MemState> {
    let state = MemState::new(LENGTH as usize);
    state.fast.store(fast, Ordering::SeqCst);
    state
}

fn read(root: &Root, offset: u64, len: usize) -> IoResult<()> {
    block_on(root.read(offset, buf(len, 0))).0
}

fn write(root: &Root, offset: u64, len: usize) -> IoResult<()> {
    block_on(root.write(offset, buf(len, 1), NONE)).0
}

// Where requests come from.

fn check_round_trip(home: &IoThread, fast: bool, run: impl Fn(Root) -> IoResult<Vec<u8>>) {
    let state = memory(fast);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    assert_eq!(run(root.clone()), Ok(vec![9; 1000]));
    assert_eq!(lock(&state.bytes)[99..1101], [vec![0], vec![9; 1000], vec![0]].concat());
    eventually("idle", || root.in_flight() == 0 && stack.node.node().in_flight() == 0);
    let (reads, writes) = (root.count(RequestKind::Read), root.count(RequestKind::Write));
    assert_eq!((reads.requests, reads.bytes, reads.failed), (1, 1000, 0));
    assert_eq!((writes.requests, writes.bytes, writes.failed), (1, 1000, 0));
}

async fn round_trip(root: Root) -> IoResult<Vec<u8>> {
    let (result, back) = root.write(100, buf(1000, 9), NONE).await;
    result?;
    let back = back.expect("the buffer comes back");
    back.fill(0, 1000, 0);
    let (result, back) = root.read(100, back).await;
    result.map(|()| bytes(&back.expect("the buffer comes back")))
}

/// The same request from a thread without any runtime, from two I/O threads, and from a runtime with threads of its own.
#[test]
fn requests_come_from_any_thread() {
    let (home, other) = (thread(), thread());
    for fast in FAST {
        check_round_trip(&home, fast, |root| block_on(round_trip(root)));
        check_round_trip(&home, fast, |root| block_on(home.handle().run(round_trip(root))).expect("it ended"));
        check_round_trip(&home, fast, |root| block_on(other.handle().run(round_trip(root))).expect("it ended"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
        check_round_trip(&home, fast, |root| runtime.block_on(runtime.spawn(round_trip(root))).expect("no panic"));
    }
}

#[test]
fn many_tasks_of_a_threaded_runtime_share_a_root() {
    let home = thread();
    let state = memory(false);
    state.yields.store(1, Ordering::SeqCst);
    let stack = mem(&home.handle(), &state);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().expect("a runtime");
    let tasks: Vec<_> = (0..64u64)
        .map(|i| {
            let root = stack.root.root();
            runtime.spawn(async move { root.write(i * 512, buf(512, i as u8), NONE).await.0 })
        })
        .collect();
    tasks.into_iter().for_each(|task| assert_eq!(runtime.block_on(task).expect("no panic"), Ok(())));
    assert!((0..64).all(|i| lock(&state.bytes)[i * 512 + 511] == i as u8));
}

#[test]
fn a_static_graph_serves_and_closes_parents_first() {
    let home = thread();
    let state = memory(true);
    let mut graph = StaticGraph::new(home.handle());
    let bottom = block_on(graph.node("bottom").install(Mem(state.clone(), Limits::NONE), false)).expect("it opens");
    let mut shell = graph.node("top");
    let edge = shell.child(ChildRole::DATA, Perm::all(), &bottom);
    let top = block_on(shell.install(Through { edge, shift: 4096, fast: true }, false)).expect("it opens");
    let root = graph.root("root", &top, Perm::all());
    assert_eq!(root.length(), Ok(LENGTH - 4096));
    assert_eq!(write(&root, 0, 512), Ok(()));
    assert_eq!(state.seen(), [Seen::Now(4096, 512)]);
    assert_eq!(block_on(graph.close()), Ok(()));
    assert_eq!(state.seen(), [Seen::Flush, Seen::Flush, Seen::Close], "the parent's flush, then the node's own");
    assert_eq!(read(&root, 0, 512), Err(IoError::CLOSED));
}

// Bounds.

/// The same limits for both paths and all kinds.
fn check_bounds(fast: bool, through_parent: bool) {
    let home = thread();
    let state = memory(fast);
    let below = node("below", Mem(state.clone(), Limits::NONE), LENGTH);
    let (parent, _writer) = through(&below, fast, 0, ALL);
    let top = if through_parent { parent.target() } else { below.target() };
    let control = RootControl::new("root", &home.handle(), ALL, Some(&top));
    let root = control.root();
    let bad = [
        (LENGTH, 1),
        (LENGTH - 511, 512),
        (LENGTH + 512, 0),
        (u64::MAX, 1),
        (u64::MAX - 511, 512),
        (i64::MAX as u64, 1),
        (i64::MAX as u64 - 511, 512),
        (1 << 63, 512),
        (u64::MAX, 0),
    ];
    for (offset, len) in bad {
        let (result, back) = block_on(root.read(offset, buf(len, 0)));
        assert_eq!(
            (result, back.map(|back| back.len())),
            (Err(IoError::OUT_OF_BOUNDS), Some(len)),
            "{offset:#x}+{len}"
        );
        let (result, back) = block_on(root.write(offset, buf(len, 1), NONE));
        assert_eq!(
            (result, back.map(|back| back.len())),
            (Err(IoError::OUT_OF_BOUNDS), Some(len)),
            "{offset:#x}+{len}"
        );
        assert_eq!(block_on(root.zero(offset, len as u64, NONE)), Err(IoError::OUT_OF_BOUNDS), "{offset:#x}+{len}");
        assert_eq!(block_on(root.discard(offset, len as u64)), Err(IoError::OUT_OF_BOUNDS), "{offset:#x}+{len}");
        let status = block_on(root.block_status(offset, len.max(1) as u64));
        assert_eq!(status, Err(IoError::OUT_OF_BOUNDS), "{offset:#x}+{len}");
    }
    assert_eq!(block_on(root.zero(1, u64::MAX, NONE)), Err(IoError::OUT_OF_BOUNDS));
    assert_eq!(block_on(root.discard(512, u64::MAX - 511)), Err(IoError::OUT_OF_BOUNDS));
    assert_eq!(state.seen(), [], "a request past the end reached the driver");
    assert_eq!(lock(&state.bytes).len() as u64, LENGTH);
    for (offset, len) in [(LENGTH - 512, 512), (0, LENGTH as usize), (LENGTH, 0), (0, 0)] {
        assert_eq!(read(&root, offset, len), Ok(()), "{offset:#x}+{len}");
        assert_eq!(write(&root, offset, len), Ok(()), "{offset:#x}+{len}");
        assert_eq!(block_on(root.zero(offset, len as u64, NONE)), Ok(()), "{offset:#x}+{len}");
        assert_eq!(block_on(root.discard(offset, len as u64)), Ok(()), "{offset:#x}+{len}");
    }
}

#[test]
fn req_3_requests_stay_within_the_node() {
    for fast in FAST {
        check_bounds(fast, false);
        check_bounds(fast, true);
    }
}

/// The same from a queue.
#[test]
fn req_3_a_queue_checks_bounds() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let stack = mem(&home.handle(), &state);
        let root = stack.root.root();
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&root, Request::read(LENGTH - 1, buf(2, 0)), 1);
        queue.submit(&root, Request::write(u64::MAX, buf(2, 0), NONE), 2);
        let mut done = Vec::new();
        while queue.pending() > 0 {
            queue.wait(&mut done, Some(LONG));
        }
        assert!(done.iter().all(|one| one.done.result == Err(IoError::OUT_OF_BOUNDS) && one.done.buf.is_some()));
        assert_eq!((done.len(), state.seen()), (2, vec![]));
        assert_eq!((root.count(RequestKind::Read).failed, root.count(RequestKind::Write).failed), (1, 1));
    }
}

/// What an engine asks of its children is checked as well.
#[test]
fn req_3_requests_stay_within_the_child() {
    let home = thread();
    let below = node("below", Mem(memory(true), Limits::NONE), LENGTH);
    let shell = NodeControl::shell("parent");
    let without_resize = PermPair { perm: Perm::WRITE | Perm::CONSISTENT_READ, shared: Perm::all() };
    let (_writer, edge) = shell.edge(ChildRole::DATA, without_resize, Some(&below.target()));
    let req = shell.enter().expect("open");
    let results = block_on(home.handle().run(async move {
        let mut results = Vec::new();
        for offset in [LENGTH - 1, LENGTH, 1 << 63, u64::MAX] {
            results.push(edge.read(&req, HostOffset(offset), &buf(2, 0)).await);
            results.push(edge.write(&req, HostOffset(offset), &buf(2, 0), NONE).await);
            results.push(edge.zero(&req, HostOffset(offset), 2, NONE).await);
            results.push(edge.discard(&req, HostOffset(offset), 2).await);
            results.push(edge.block_status(&req, HostOffset(offset), 2).await.map(drop));
        }
        results
    }));
    let results = results.expect("no panic");
    assert!(results.len() == 20 && results.iter().all(Result::is_err), "{results:?}");
}

/// With the resize permission an edge's writes extend the child, and its length is known at once.
#[test]
fn writes_through_an_edge_may_extend() {
    let home = thread();
    let state = memory(true);
    let below = node("below", Mem(state.clone(), Limits::NONE), LENGTH);
    let shell = NodeControl::shell("parent");
    let (_writer, edge) = shell.edge(ChildRole::DATA, ALL, Some(&below.target()));
    let req = shell.enter().expect("open");
    let work = async move {
        edge.write(&req, HostOffset(LENGTH), &buf(512, 3), NONE).await?;
        edge.zero(&req, HostOffset(LENGTH + 512), 512, NONE).await?;
        edge.read(&req, HostOffset(LENGTH + 512), &buf(512, 0)).await?;
        edge.length(&req)
    };
    assert_eq!(block_on(home.handle().run(work)), Some(Ok(LENGTH + 1024)));
    assert_eq!(below.node().length(), LENGTH + 1024);
}

// Alignment and limits.

fn limits(request_alignment: u32, transfer_max: u32) -> Limits {
    Limits { request_alignment, transfer_max, ..Limits::NONE }
}

#[test]
fn req_1_what_is_misaligned_never_reaches_the_driver() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let stack = mem_limited(&home.handle(), &state, limits(512, 0));
        let root = stack.root.root();
        for (offset, len) in [(1, 512), (0, 511), (511, 1), (256, 512)] {
            let _ =
                (read(&root, offset, len), write(&root, offset, len), block_on(root.zero(offset, len as u64, NONE)));
            let _ = block_on(root.discard(offset, len as u64));
            for seen in state.seen() {
                let (offset, len) = match seen {
                    Seen::Read(offset, len) | Seen::Write(offset, len, _) | Seen::Now(offset, len) => {
                        (offset, len as u64)
                    }
                    Seen::Zero(offset, len, _) | Seen::Discard(offset, len) => (offset, len),
                    Seen::Flush | Seen::Close => (0, 0),
                };
                assert!(offset % 512 == 0 && len % 512 == 0, "{offset}+{len} is misaligned");
            }
        }
        assert_eq!((read(&root, 512, 1024), write(&root, 512, 1024)), (Ok(()), Ok(())));
    }
}

#[test]
fn long_requests_are_split_to_the_limit() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let stack = mem_limited(&home.handle(), &state, limits(512, 4096 + 100));
        let root = stack.root.root();
        let (result, _) = block_on(root.write(512, buf(10_240, 5), NONE));
        assert_eq!(result, Ok(()));
        let expected = [(512, 4096), (4608, 4096), (8704, 2048)];
        assert_eq!(state.seen(), expected.map(|(offset, len)| Seen::Write(offset, len, NONE)));
        let (result, back) = block_on(root.read(512, buf(10_240, 0)));
        assert_eq!((result, bytes(&back.expect("it comes back"))), (Ok(()), vec![5; 10_240]));
        assert_eq!(state.seen(), expected.map(|(offset, len)| Seen::Read(offset, len)));
        // Within the limit, the fast path takes it.
        assert_eq!(read(&root, 0, 4096), Ok(()));
        assert_eq!(state.seen(), if fast { [Seen::Now(0, 4096)] } else { [Seen::Read(0, 4096)] });
    }
}

/// A piece that fails ends the request.
#[test]
fn a_split_request_stops_at_the_first_error() {
    let home = thread();
    let state = memory(false);
    *lock(&state.fails) = Some(IoError::host(libc::EIO));
    let stack = mem_limited(&home.handle(), &state, limits(1, 4096));
    assert_eq!(write(&stack.root.root(), 0, 16384), Err(IoError::host(libc::EIO)));
    assert_eq!(state.seen().len(), 1);
    assert_eq!(stack.root.root().count(RequestKind::Write).failed, 1);
}

/// Limits that are no multiple of the alignment are rounded down: no piece is misaligned.
#[test]
fn req_3_pieces_of_zeroes_and_discards_are_aligned() {
    let home = thread();
    let state = memory(true);
    state.zero_supported.store(true, Ordering::SeqCst);
    let odd = Limits { request_alignment: 512, zero_max: 1500, discard_max: 700, transfer_max: 300, ..Limits::NONE };
    let stack = mem_limited(&home.handle(), &state, odd);
    let root = stack.root.root();
    assert_eq!(block_on(root.zero(512, 2560, NONE)), Ok(()));
    assert_eq!(
        state.seen(),
        [(512, 1024), (1536, 1024), (2560, 512)].map(|(offset, len)| Seen::Zero(offset, len, NONE))
    );
    assert_eq!(block_on(root.discard(0, 1024)), Ok(()));
    assert_eq!(state.seen(), [(0, 512), (512, 512)].map(|(offset, len)| Seen::Discard(offset, len)));
    assert_eq!(read(&root, 0, 1024), Ok(()), "a limit below one block is one block");
    assert_eq!(state.seen(), [Seen::Read(0, 512), Seen::Read(512, 512)]);
}

// Permissions.

#[test]
fn perm_4_no_write_without_a_permission_on_the_root() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let mut stack = mem(&home.handle(), &state);
        let root = stack.root.root();
        stack.root.set_perm(READ);
        assert!(!root.is_writable());
        assert_eq!(write(&root, 0, 512), Err(IoError::NOT_PERMITTED));
        assert_eq!(block_on(root.zero(0, 512, NONE)), Err(IoError::NOT_PERMITTED));
        assert_eq!(block_on(root.discard(0, 512)), Err(IoError::NOT_PERMITTED));
        assert_eq!(block_on(root.truncate(0, Preallocation::default())), Err(IoError::NOT_PERMITTED));
        assert_eq!((state.seen(), read(&root, 0, 512)), (vec![], Ok(())));
        state.seen();
        // Writing what is there already is a permission of its own.
        stack.root.set_perm(PermPair { perm: Perm::WRITE_UNCHANGED, shared: Perm::all() });
        assert_eq!(write(&root, 0, 512), Err(IoError::NOT_PERMITTED));
        assert_eq!(block_on(root.write(0, buf(512, 0), RequestFlags::WRITE_UNCHANGED)).0, Ok(()));
        stack.root.set_perm(ALL);
        assert!(root.is_writable());
        assert_eq!(write(&root, 0, 512), Ok(()));
    }
}

#[test]
fn perm_4_no_write_without_a_permission_on_an_edge() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let below = node("below", Mem(state.clone(), Limits::NONE), LENGTH);
        let (parent, mut edge) = through(&below, fast, 0, READ);
        let control = RootControl::new("root", &home.handle(), ALL, Some(&parent.target()));
        let root = control.root();
        assert_eq!(write(&root, 0, 512), Err(IoError::NOT_PERMITTED));
        assert_eq!(block_on(root.zero(0, 512, NONE)), Err(IoError::NOT_PERMITTED));
        assert_eq!((state.seen(), read(&root, 0, 512)), (vec![], Ok(())));
        edge.set_perm(ALL);
        assert_eq!(write(&root, 0, 512), Ok(()));
    }
}

#[test]
fn perm_4_a_read_only_node_takes_no_write() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let stack = mem(&home.handle(), &state);
        let root = stack.root.root();
        stack.node.set_read_only(true);
        assert!(!root.is_writable());
        assert_eq!(write(&root, 0, 512), Err(IoError::READ_ONLY));
        assert_eq!(block_on(root.zero(0, 512, NONE)), Err(IoError::READ_ONLY));
        assert_eq!(block_on(root.discard(0, 512)), Err(IoError::READ_ONLY));
        assert_eq!(block_on(root.truncate(0, Preallocation::default())), Err(IoError::READ_ONLY));
        assert_eq!(block_on(root.flush()), Ok(()));
        assert_eq!(state.seen(), [], "nothing may have been written, so there is nothing to flush");
        stack.node.set_read_only(false);
        assert_eq!(write(&root, 0, 512), Ok(()));
    }
}

// Zeroes and discards.

#[test]
fn zero_1_zeroes_are_written_where_the_driver_has_no_better_way() {
    let home = thread();
    let state = memory(false);
    lock(&state.bytes).fill(9);
    let stack = mem_limited(&home.handle(), &state, limits(512, 1024));
    let root = stack.root.root();
    assert_eq!(block_on(root.zero(512, 2560, RequestFlags::MAY_UNMAP)), Ok(()));
    let written = [(512, 1024), (1536, 1024), (2560, 512)].map(|(offset, len)| Seen::Write(offset, len, NONE));
    assert_eq!(state.seen(), [&[Seen::Zero(512, 2560, RequestFlags::MAY_UNMAP)], &written[..]].concat());
    let bytes = lock(&state.bytes);
    assert!(bytes[..512].iter().chain(&bytes[3072..]).all(|byte| *byte == 9));
    assert!(bytes[512..3072].iter().all(|byte| *byte == 0));
}

#[test]
fn zero_1_no_fallback_means_none() {
    let home = thread();
    let state = memory(true);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    assert_eq!(block_on(root.zero(0, 512, RequestFlags::NO_FALLBACK)), Err(IoError::UNSUPPORTED));
    assert_eq!(state.seen(), [Seen::Zero(0, 512, RequestFlags::NO_FALLBACK)]);
    state.zero_supported.store(true, Ordering::SeqCst);
    assert_eq!(block_on(root.zero(0, 512, RequestFlags::NO_FALLBACK)), Ok(()));
}

/// Zero writes that fall back in large pieces are bounded in memory.
#[test]
fn zero_1_the_fallback_writes_a_mebibyte_at_a_time() {
    let home = thread();
    let state = MemState::new(3 << 20);
    let stack = mem(&home.handle(), &state);
    assert_eq!(block_on(stack.root.root().zero(0, 5 << 19, NONE)), Ok(()));
    let lengths: Vec<_> = state.seen().into_iter().skip(1).collect();
    let mebibyte = 1 << 20;
    assert_eq!(
        lengths,
        [
            Seen::Write(0, mebibyte, NONE),
            Seen::Write(1 << 20, mebibyte, NONE),
            Seen::Write(2 << 20, mebibyte / 2, NONE)
        ]
    );
}

#[test]
fn a_discard_that_nobody_supports_is_done() {
    let home = thread();
    let state = memory(true);
    *lock(&state.fails) = Some(IoError::UNSUPPORTED);
    let stack = mem_limited(&home.handle(), &state, Limits { discard_max: 4096, ..Limits::NONE });
    assert_eq!(block_on(stack.root.root().discard(0, 16384)), Ok(()));
    assert_eq!(state.seen(), [Seen::Discard(0, 4096)], "one answer is enough");
    *lock(&state.fails) = Some(IoError::host(libc::EIO));
    assert_eq!(block_on(stack.root.root().discard(0, 16384)), Err(IoError::host(libc::EIO)));
}

// Flags.

/// FUA reaches the leaf from the root, through a parent on either path, in every piece and in written zeroes.
#[test]
fn flush_2_fua_reaches_the_leaf() {
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let below = node("below", Mem(state.clone(), limits(512, 4096)), LENGTH);
        let (parent, _writer) = through(&below, fast, 0, ALL);
        for top in [below.target(), parent.target()] {
            let control = RootControl::new("root", &home.handle(), ALL, Some(&top));
            let root = control.root();
            let fua = RequestFlags::FUA;
            assert_eq!(block_on(root.write(0, buf(512, 1), fua)).0, Ok(()));
            assert_eq!(state.seen(), [Seen::Write(0, 512, fua)]);
            assert_eq!(block_on(root.write(0, buf(8192, 1), fua)).0, Ok(()));
            assert_eq!(state.seen(), [Seen::Write(0, 4096, fua), Seen::Write(4096, 4096, fua)]);
            assert_eq!(block_on(root.zero(0, 512, fua)), Ok(()));
            assert_eq!(state.seen(), [Seen::Zero(0, 512, fua), Seen::Write(0, 512, fua)]);
            assert_eq!(write(&root, 0, 512), Ok(()));
            assert!(!format!("{:?}", state.seen()).contains("FUA"), "FUA comes from its caller alone");
        }
    }
}

/// From a queue, on the fast path, FUA is not lost either.
#[test]
fn flush_2_fua_from_a_queue() {
    let home = thread();
    let state = memory(true);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let mut queue = Queue::new().expect("a queue");
    queue.submit(&root, Request::write(0, buf(512, 1), RequestFlags::FUA), 1);
    assert_eq!(queue.wait(&mut Vec::new(), Some(LONG)), 1);
    assert_eq!(state.seen(), [Seen::Write(0, 512, RequestFlags::FUA)]);
}

/// What a driver does not carry out itself, the core does after it, or refuses; a driver never sees a flag that it has not
/// asked for.
#[test]
fn flush_2_flags_that_a_driver_does_not_know() {
    let (fua, compressed, none) = (RequestFlags::FUA, RequestFlags::WRITE_COMPRESSED, RequestFlags::empty());
    let home = thread();
    for fast in FAST {
        let state = memory(fast);
        let below = node("below", Mem(state.clone(), limits(512, 4096)), LENGTH);
        let (parent, _writer) = through(&below, fast, 0, ALL);
        for top in [below.target(), parent.target()] {
            let control = RootControl::new("root", &home.handle(), ALL, Some(&top));
            let root = control.root();
            let write = |len, flags| block_on(root.write(0, buf(len, 1), flags)).0;
            *lock(&state.write_flags) = none;
            assert_eq!(write(8192, fua), Ok(()));
            assert_eq!(state.seen(), [Seen::Write(0, 4096, none), Seen::Write(4096, 4096, none), Seen::Flush]);
            assert_eq!(block_on(root.zero(0, 512, fua)), Ok(()));
            assert_eq!(state.seen(), [Seen::Zero(0, 512, none), Seen::Write(0, 512, none), Seen::Flush]);
            assert_eq!(write(4096, compressed), Err(IoError::UNSUPPORTED));
            assert_eq!(state.seen(), []);
            *lock(&state.write_flags) = RequestFlags::all();
            for flag in [compressed, compressed | fua, RequestFlags::SERIALISING] {
                assert_eq!(write(512, flag), Ok(()));
                assert_eq!(state.seen(), [Seen::Write(0, 512, flag)]);
            }
        }
    }
}

#[test]
fn flush_1_a_flush_reaches_the_driver_and_its_error_the_caller() {
    let home = thread();
    let state = memory(true);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    assert_eq!(write(&root, 0, 512), Ok(()));
    assert_eq!(block_on(root.flush()), Ok(()));
    assert_eq!(state.seen(), [Seen::Now(0, 512), Seen::Flush]);
    assert_eq!(write(&root, 0, 512), Ok(()));
    *lock(&state.fails) = Some(IoError::host(libc::EIO));
    // It stays to be done, until it is done well.
    for _ in 0..2 {
        state.seen();
        assert_eq!(block_on(root.flush()), Err(IoError::host(libc::EIO)));
        assert_eq!(state.seen(), [Seen::Flush]);
    }
    let counted = root.count(RequestKind::Flush);
    assert_eq!((counted.requests, counted.failed), (1, 2));
}

// Status.

fn check_status(alignment: u32, answer: StatusExtent, expected: StatusExtent) {
    let home = thread();
    let state = memory(true);
    *lock(&state.status) = Some(answer);
    let stack = mem_limited(&home.handle(), &state, limits(alignment, 0));
    assert_eq!(block_on(stack.root.root().block_status(512, 1024)), Ok(expected), "{answer:?}");
}

/// An answer may be cut, and an odd one rounded; what is not known to be a hole is never called one.
#[test]
fn stat_1_answers_are_aligned_within_the_range_and_safe() {
    let zero = BlockStatus::ZERO | BlockStatus::ALLOCATED;
    check_status(1, StatusExtent::zero(1024), StatusExtent::zero(1024));
    check_status(1, StatusExtent::zero(1 << 40), StatusExtent::zero(1024));
    check_status(1, StatusExtent::new(zero | BlockStatus::EOF, 4096), StatusExtent::zero(1024));
    check_status(1, StatusExtent::new(zero | BlockStatus::EOF, 1024), StatusExtent::zero(1024));
    check_status(1, StatusExtent::zero(100), StatusExtent::zero(100));
    check_status(512, StatusExtent::zero(700), StatusExtent::zero(512));
    check_status(512, StatusExtent::zero(100), StatusExtent::data(512));
    check_status(512, StatusExtent::unallocated(100), StatusExtent::data(512));
    check_status(512, StatusExtent::zero(0), StatusExtent::data(512));
    let mapped = StatusExtent::mapped(BlockStatus::DATA, 700, HostOffset(512));
    check_status(512, mapped, StatusExtent::mapped(BlockStatus::DATA, 512, HostOffset(512)));
}

/// Only the core knows whose end it is: it says so of the last bytes and of no others.
#[test]
fn stat_1_the_end_is_told() {
    let home = thread();
    let stack = mem(&home.handle(), &memory(true));
    let status = |at, len| block_on(stack.root.root().block_status(at, len)).expect("it can be told");
    for (at, len, is_end) in [(0, LENGTH, true), (0, LENGTH - 1, false), (LENGTH - 1, 1, true), (0, 512, false)] {
        let extent = status(at, len);
        assert_eq!((extent.len, extent.status.contains(BlockStatus::EOF)), (len, is_end), "{at}+{len}");
    }
}

#[test]
fn stat_1_an_empty_question_has_no_answer() {
    let home = thread();
    let stack = mem(&home.handle(), &memory(true));
    assert_eq!(block_on(stack.root.root().block_status(512, 0)), Err(IoError::INVALID));
}

// Lengths and limits as they change.

#[test]
fn a_truncated_node_knows_its_length() {
    let home = thread();
    let stack = mem(&home.handle(), &memory(true));
    let root = stack.root.root();
    assert_eq!(block_on(root.truncate(LENGTH * 2, Preallocation::default())), Ok(()));
    assert_eq!((root.length(), read(&root, LENGTH * 2 - 1, 1)), (Ok(LENGTH * 2), Ok(())));
    assert!(block_on(root.truncate(1 << 63, Preallocation::default())).is_err());
    assert_eq!(block_on(root.truncate(512, Preallocation::default())), Ok(()));
    assert_eq!(read(&root, 512, 1), Err(IoError::OUT_OF_BOUNDS));
    assert_eq!(block_on(root.refresh_length()), Ok(512));
}

/// An edge is of one node: a request on another is a bug, and told so.
#[test]
fn an_edge_refuses_the_request_of_another_node() {
    let home = thread();
    let below = node("below", Mem(memory(true), Limits::NONE), LENGTH);
    let (owner, stranger) = (NodeControl::shell("owner"), NodeControl::shell("stranger"));
    let (_writer, edge) = owner.edge(ChildRole::DATA, ALL, Some(&below.target()));
    let req: Req = stranger.enter().expect("open");
    let result = block_on(home.handle().run(async move { edge.read(&req, HostOffset(0), &buf(512, 0)).await }));
    assert_eq!(result, Some(Err(IoError::BUG)));
}

#[test]
fn a_thread_without_io_uring_serves_as_well() {
    let home = IoThread::spawn(IoThreadOptions { ring: false, ..IoThreadOptions::named("home") }).expect("a thread");
    for fast in FAST {
        check_round_trip(&home, fast, |root| block_on(round_trip(root)));
    }
}
