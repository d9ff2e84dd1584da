//! Two of Cairn's engines in a program that has an async runtime of its own, and nothing of Cairn's global state.
//!
//! The program keeps a disk at an offset inside a file, as a container format would: `file` below, `raw` with a window
//! above, composed by hand in a `StaticGraph`. Its own multi-threaded tokio runs the tasks; requests come from all of
//! its worker threads at once and are carried out on one I/O thread with a ring. Nothing here opens by options, reopens
//! or drains: who needs that takes the crates below `gs/` (see the other consumers).
//!
//! It writes each block of the disk from some task, reads all of them back from other tasks, closes, and then looks
//! into the file with the standard library: the disk is there, and around it nothing has changed.

use block_common::{AlignedBuf, ChildRole, Perm, RequestFlags};
use block_file_posix::{FileAccess, FilePosix, FilePosixOptions};
use block_io::{IoThread, IoThreadOptions, RequestKind, Root, StaticGraph, ThreadPool};
use block_raw::{Raw, RawOptions};
use std::error::Error;
use std::path::{Path, PathBuf};

/// Where the disk begins in the file, in bytes, and how long it is.
const OFFSET: u64 = 1 << 20;
const SIZE: u64 = 16 << 20;
const BLOCK: u64 = 4096;
const TASKS: u64 = 32;
/// What stands around the disk.
const FRAME: u8 = 0xee;

type AnyError = Box<dyn Error + Send + Sync>;

/// A file that goes when the program does, however that ends.
struct TempFile(PathBuf);

impl TempFile {
    fn new(len: u64) -> std::io::Result<Self> {
        let path = std::env::temp_dir().join(format!("cairn-engine-alone-{}", std::process::id()));
        std::fs::write(&path, vec![FRAME; len as usize])?;
        Ok(Self(path))
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What block `number` holds.
fn pattern(number: u64) -> Vec<u8> {
    (0..BLOCK).map(|i| (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (i % 8 * 8)) as u8).collect()
}

/// The graph and the entry to its top: `raw` over `file`.
async fn compose(path: &Path, thread: &IoThread, pool: ThreadPool) -> Result<(StaticGraph, Root), AnyError> {
    let mut graph = StaticGraph::new(thread.handle());
    let mut options = FilePosixOptions::new(path);
    options.access = FileAccess::ReadWrite;
    let (engine, _control) = FilePosix::open(options, pool).await?;
    let file = graph.node("file").install(engine, false).await?;

    let mut shell = graph.node("disk");
    let rights = Perm::CONSISTENT_READ | Perm::WRITE;
    let edge = shell.child(ChildRole::DATA | ChildRole::PRIMARY, rights, &file);
    let window = RawOptions { offset: OFFSET, size: Some(SIZE) };
    let (engine, _control) = shell.run(|req| async move { Ok(Raw::open(&req, edge, window).await) }).await??;
    let disk = shell.install(engine, false).await?;

    let root = graph.root("program", &disk, rights);
    Ok((graph, root))
}

/// Blocks `first`, `first + TASKS`, … as the pattern says.
async fn write_some(root: Root, first: u64) -> Result<(), AnyError> {
    let mut buf = AlignedBuf::zeroed(BLOCK as usize, 4096).into_io();
    for number in (first..SIZE / BLOCK).step_by(TASKS as usize) {
        buf.copy_from_slice(0, &pattern(number));
        let (result, back) = root.write(number * BLOCK, buf, RequestFlags::empty()).await;
        result?;
        buf = back.ok_or("the buffer did not come back")?;
    }
    Ok(())
}

async fn check_some(root: Root, first: u64) -> Result<(), AnyError> {
    let mut buf = AlignedBuf::zeroed(BLOCK as usize, 4096).into_io();
    let mut bytes = vec![0; BLOCK as usize];
    for number in (first..SIZE / BLOCK).step_by(TASKS as usize) {
        let (result, back) = root.read(number * BLOCK, buf).await;
        result?;
        buf = back.ok_or("the buffer did not come back")?;
        buf.copy_to_slice(0, &mut bytes);
        if bytes != pattern(number) {
            return Err(format!("block {number} does not hold what was written").into());
        }
    }
    Ok(())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), AnyError> {
    let file = TempFile::new(OFFSET + SIZE + OFFSET)?;
    let thread = IoThread::spawn(IoThreadOptions::named("engine-alone-io"))?;
    let (graph, root) = compose(&file.0, &thread, ThreadPool::new(4)).await?;
    println!("disk of {} MiB at {} MiB of a file", root.length()? >> 20, OFFSET >> 20);

    let writers: Vec<_> = (0..TASKS).map(|first| tokio::spawn(write_some(root.clone(), first))).collect();
    for writer in writers {
        writer.await??;
    }
    root.flush().await?;
    // Read from other tasks than wrote, across the same blocks.
    let readers: Vec<_> = (0..TASKS).rev().map(|first| tokio::spawn(check_some(root.clone(), first))).collect();
    for reader in readers {
        reader.await??;
    }
    let (result, _) = root.read(SIZE - BLOCK / 2, AlignedBuf::zeroed(BLOCK as usize, 4096).into_io()).await;
    let past_the_end = result.err().ok_or("a read past the disk's end succeeded, and the frame was seen")?;
    let (writes, reads) = (root.count(RequestKind::Write), root.count(RequestKind::Read));
    println!(
        "{} writes and {} reads from {TASKS} tasks at once; past the end: {past_the_end}",
        writes.requests, reads.requests
    );

    graph.close().await?;
    let closed = root.flush().await.err().ok_or("a closed graph took a request")?;
    println!("closed; then: {closed}");

    let bytes = std::fs::read(&file.0)?;
    let (before, rest) = bytes.split_at(OFFSET as usize);
    let (disk, after) = rest.split_at(SIZE as usize);
    if before.iter().chain(after).any(|byte| *byte != FRAME) {
        return Err("something was written around the disk".into());
    }
    if disk.chunks(BLOCK as usize).zip(0..).any(|(block, number)| block != pattern(number)) {
        return Err("the file does not hold the disk".into());
    }
    println!("every byte of the file is as it should be");
    Ok(())
}
