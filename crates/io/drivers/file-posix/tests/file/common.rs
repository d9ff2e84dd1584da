//! What the tests of the file driver share: a directory on a real file system, and graphs over a file in it.

use block_common::{AlignedBuf, IoBuf, Perm};
use block_file_posix::{FileAccess, FileError, FilePosix, FilePosixControl, FilePosixOptions};
use block_io::{IoThread, Root, StaticGraph, StaticNode, ThreadPool};
use block_testkit::bed::{Way, block_on, skipped};
use std::path::Path;

/// A directory next to the build's output, which is on a disk and not in memory.
pub(crate) fn dir() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory")
}

pub(crate) fn pool() -> ThreadPool {
    ThreadPool::new(4)
}

/// A file that can be written.
pub(crate) fn options(path: &Path, direct: bool) -> FilePosixOptions {
    FilePosixOptions { access: FileAccess::ReadWrite, direct, ..FilePosixOptions::new(path) }
}

pub(crate) fn open(options: FilePosixOptions) -> Result<(FilePosix, FilePosixControl), FileError> {
    block_on(FilePosix::open(options, pool()))
}

/// As [`open`], or `None` where the host has no O_DIRECT for it.
pub(crate) fn open_or_skip(test: &str, options: FilePosixOptions) -> Option<(FilePosix, FilePosixControl)> {
    match open(options) {
        Err(error @ (FileError::DirectUnsupported { .. } | FileError::DirectAlignment { .. })) => {
            skipped(test, &error.to_string());
            None
        }
        opened => Some(opened.unwrap_or_else(|error| panic!("{error}"))),
    }
}

pub(crate) fn create(path: &Path, size: u64) {
    block_on(block_file_posix::create(path, size, block_common::Preallocation::Off, &pool())).expect("created");
}

/// A graph of one file, and an entry to it.
pub(crate) struct Opened {
    pub(crate) thread: IoThread,
    pub(crate) graph: StaticGraph,
    pub(crate) node: StaticNode,
    pub(crate) root: Root,
}

pub(crate) fn graph(way: Way, engine: FilePosix) -> Opened {
    let thread = way.thread();
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("file").install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    Opened { thread, graph, node, root }
}

impl Opened {
    pub(crate) fn close(self) {
        block_on(self.graph.close()).expect("closed");
    }
}

pub(crate) fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

pub(crate) fn read(root: &Root, offset: u64, len: usize) -> Vec<u8> {
    let (result, buf) = block_on(root.read(offset, filled(len, 0xee)));
    result.expect("read");
    buf.expect("the buffer comes back").to_aligned(1).to_vec()
}
