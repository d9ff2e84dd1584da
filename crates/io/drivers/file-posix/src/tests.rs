//! What only the inside shows: what is remembered of refusals, of failed syncs, and of alignments.

#![allow(clippy::disallowed_methods, reason = "a test file in memory does not block")]

use super::*;
use block_common::Perm;
use block_io::{Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread, skipped};
use rustix::fs::{MemfdFlags, SealFlags};

fn memfd(len: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a memfd");
    rustix::fs::ftruncate(&fd, len).expect("truncated");
    fd
}

fn with(options: FilePosixOptions, work: impl FnOnce(&Root, &Arc<Shared>)) {
    let thread = io_thread(true);
    let (engine, _control) = block_on(FilePosix::open(options, ThreadPool::new(2))).expect("opened");
    let shared = engine.0.clone();
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("file").install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    work(&root, &shared);
    let _ = block_on(graph.close());
}

fn on_memfd(fd: OwnedFd) -> FilePosixOptions {
    FilePosixOptions { access: FileAccess::ReadWrite, fd: Some(fd), ..FilePosixOptions::new("memfd") }
}

#[test]
fn zero_2_only_what_holds_for_good_is_remembered() {
    let host = |errno: Errno| Err(IoError::host(errno.raw()));
    assert_eq!(verdict(Ok(())), Ok((true, false)));
    assert_eq!(verdict(host(Errno::ENOTSUP)), Ok((false, true)));
    assert_eq!(verdict(host(Errno::ENOSYS)), Ok((false, true)));
    assert_eq!(verdict(host(Errno::EINVAL)), Ok((false, false)));
    for errno in [Errno::ENOSPC, Errno::EIO, Errno::EPERM] {
        assert_eq!(verdict(host(errno)), Err(IoError::host(errno.raw())));
    }
}

#[test]
fn zero_2_a_refused_offload_falls_back_to_written_zeroes() {
    let flags = RequestFlags::empty();
    with(on_memfd(memfd(1 << 20)), |root, shared| {
        let buf = block_common::AlignedBuf::zeroed(8192, 512).into_io();
        buf.fill(0, 8192, 7);
        block_on(root.write(0, buf, flags)).0.expect("written");
        // As a file system would be that cannot.
        shared.zero_range.missing.store(true, Ordering::Relaxed);
        shared.punch_hole.missing.store(true, Ordering::Relaxed);
        assert_eq!(block_on(root.zero(512, 512, RequestFlags::NO_FALLBACK)), Err(IoError::UNSUPPORTED));
        assert_eq!(block_on(root.zero(512, 512, RequestFlags::MAY_UNMAP)), Ok(()));
        assert_eq!(block_on(root.discard(4096, 4096)), Ok(()));
        let (result, buf) = block_on(root.read(0, block_common::AlignedBuf::zeroed(8192, 512).into_io()));
        result.expect("read");
        let data = buf.expect("the buffer comes back").to_aligned(1);
        assert_eq!((data[511], data[512], data[1023], data[1024], data[4096]), (7, 0, 0, 7, 7));
    });
}

#[test]
fn zero_2_an_offload_that_fails_for_another_reason_is_an_error() {
    // A sealed file refuses to change with EPERM, which no fallback helps.
    let fd = memfd(1 << 20);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::WRITE).expect("sealed");
    with(on_memfd(fd), |root, shared| {
        let result = block_on(root.zero(0, 4096, RequestFlags::MAY_UNMAP));
        assert_eq!(result, Err(IoError::host(Errno::EPERM.raw())));
        assert!(!shared.punch_hole.missing.load(Ordering::Relaxed));
    });
}

#[test]
fn flush_1_a_lost_sync_is_not_forgotten() {
    with(on_memfd(memfd(4096)), |root, shared| {
        assert_eq!(block_on(root.flush()), Ok(()));
        let write =
            || block_on(root.write(0, block_common::AlignedBuf::zeroed(512, 1).into_io(), RequestFlags::empty())).0;
        assert_eq!(write(), Ok(()));
        shared.remember(Err(IoError::CLOSED));
        assert_eq!(block_on(root.flush()), Ok(()), "no sync was attempted, so none was lost");
        shared.remember(Err(IoError::host(Errno::EIO.raw())));
        assert_eq!(write(), Ok(()));
        for _ in 0..2 {
            assert_eq!(block_on(root.flush()), Err(IoError::host(Errno::EIO.raw())));
        }
    });
}

#[test]
fn without_flushes_nothing_is_synced() {
    let options = FilePosixOptions { no_flush: true, ..on_memfd(memfd(4096)) };
    with(options, |root, shared| {
        shared.remember(Err(IoError::host(Errno::EIO.raw())));
        assert_eq!(
            block_on(root.write(0, block_common::AlignedBuf::zeroed(512, 1).into_io(), RequestFlags::empty())).0,
            Ok(())
        );
        assert_eq!(block_on(root.flush()), Ok(()));
    });
}

#[test]
fn stat_1_a_hole_that_ends_inside_a_block_is_data() {
    let check = |is_data, extent, len, expected| {
        assert_eq!(content(FileExtent { is_data, len: extent }, 512, len), expected, "{extent} of {len}");
    };
    check(false, 511, 4096, (BlockStatus::DATA, 512));
    check(false, 512, 4096, (BlockStatus::ZERO, 512));
    check(false, 700, 4096, (BlockStatus::ZERO, 700));
    check(false, u64::MAX, 4096, (BlockStatus::ZERO, 4096));
    check(false, 100, 100, (BlockStatus::ZERO, 100));
    check(true, 1, 4096, (BlockStatus::DATA, 512));
    check(true, u64::MAX, 4096, (BlockStatus::DATA, 4096));
}

/// Whether the page cache has the file's first page.
fn is_cached(fd: &OwnedFd) -> bool {
    let mut byte = [0];
    let mut bufs = [std::io::IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(fd, &mut bufs, 0, rustix::io::ReadWriteFlags::NOWAIT).is_ok()
}

#[test]
fn an_invalidated_file_is_read_anew_if_it_is_wanted() {
    for drop_cache in [true, false] {
        let file: OwnedFd = tempfile::tempfile().expect("a file").into();
        let again = file.try_clone().expect("a descriptor");
        rustix::io::pwrite(&file, &[7; 1 << 16], 0).expect("written");
        let options = FilePosixOptions { drop_cache, ..on_memfd(file) };
        with(options, |_, shared| {
            assert!(is_cached(&again));
            let (thread, node) = (io_thread(true), block_io::NodeControl::shell("file"));
            node.install(Box::new(FilePosix(shared.clone())), 1 << 16, false);
            let (engine, req) = (FilePosix(shared.clone()), node.enter().expect("it is open"));
            let done = block_on(thread.handle().run(async move { engine.invalidate_cache(&req).await }));
            assert_eq!(done, Some(Ok(())));
            // Asked once: who asks may make the kernel read ahead.
            let is_cached = is_cached(&again);
            if drop_cache && is_cached {
                skipped("an_invalidated_file_is_read_anew_if_it_is_wanted", "a file system that is a page cache");
            } else {
                assert_eq!(is_cached, !drop_cache);
            }
        });
    }
}
