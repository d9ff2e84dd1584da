//! The snapshot-access engine over a node that keeps a past, and over one that does not.

use async_trait::async_trait;
use block_common::{
    AlignedBuf, ChildRole, GuestOffset, GuestRange, IoBuf, IoError, IoResult, Perm, RequestFlags, StatusExtent,
};
use block_io::{Driver, IoThread, Req, Root, StaticGraph};
use block_snapshot_access::SnapshotAccess;
use block_testkit::bed::{block_on, io_thread};
use block_testkit::{MemOptions, MemStorage};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SIZE: u64 = 1 << 20;

/// A disk of ones whose past is twos, up to what was forgotten.
struct Keeper(Arc<AtomicU64>);

#[async_trait]
impl Driver for Keeper {
    fn format_name(&self) -> &'static str {
        "keeper"
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(SIZE)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        buf.fill(0, buf.len(), 1);
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::BUG)
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Err(IoError::BUG)
    }

    async fn block_status(&self, _req: &Req, _range: GuestRange) -> IoResult<StatusExtent> {
        Err(IoError::BUG)
    }

    async fn read_snapshot(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let forgotten = self.0.load(Ordering::Relaxed);
        if offset.0 < forgotten {
            return Err(IoError::host(13));
        }
        buf.fill(0, buf.len(), 2);
        Ok(())
    }

    async fn snapshot_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn discard_snapshot(&self, _req: &Req, range: GuestRange) -> IoResult<()> {
        self.0.fetch_max(range.end(), Ordering::Relaxed);
        Ok(())
    }
}

fn open(thread: &IoThread, below: impl Driver) -> (StaticGraph, Root) {
    let mut graph = StaticGraph::new(thread.handle());
    let root = block_on(async {
        let below = graph.node("below").install(below, false).await.expect("a node");
        let mut shell = graph.node("access");
        let file = shell.child(ChildRole::DATA | ChildRole::PRIMARY, Perm::CONSISTENT_READ, &below);
        let opened = shell.run(|req| async move { SnapshotAccess::open(&req, file).await }).await.expect("opens");
        let node = shell.install(opened, false).await.expect("a node");
        graph.root("root", &node, Perm::all())
    });
    (graph, root)
}

fn read(root: &Root, at: u64) -> IoResult<u8> {
    let (result, buf) = block_on(root.read(at, AlignedBuf::zeroed(512, 512).into_io()));
    result?;
    let mut bytes = [0; 512];
    buf.expect("it comes back").copy_to_slice(0, &mut bytes);
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    Ok(bytes[0])
}

#[test]
fn the_past_is_read_and_forgotten_and_not_written() {
    let thread = io_thread(true);
    let (graph, root) = open(&thread, Keeper(Arc::default()));
    let zeroes = AlignedBuf::zeroed(512, 512).into_io();
    assert_eq!((read(&root, 0), root.length()), (Ok(2), Ok(SIZE)));
    assert_eq!(block_on(root.block_status(0, 512)).expect("a status").len, 512);
    assert_eq!(block_on(root.write(0, zeroes, RequestFlags::empty())).0, Err(IoError::UNSUPPORTED));
    assert_eq!(block_on(root.zero(0, 512, RequestFlags::empty())), Err(IoError::UNSUPPORTED));
    assert_eq!(block_on(root.truncate(0, block_common::Preallocation::Off)), Err(IoError::UNSUPPORTED));
    assert_eq!(block_on(root.flush()), Ok(()));
    block_on(root.discard(0, 1024)).expect("forgotten");
    assert_eq!((read(&root, 512), read(&root, 1024)), (Err(IoError::host(13)), Ok(2)));
    assert_eq!(read(&root, SIZE), Err(IoError::OUT_OF_BOUNDS));
    drop(graph);
}

#[test]
fn a_node_without_a_past_says_so() {
    let thread = io_thread(true);
    let (graph, root) = open(&thread, MemStorage::new(MemOptions::new(SIZE)).driver());
    assert_eq!(read(&root, 0), Err(IoError::UNSUPPORTED));
    assert_eq!(block_on(root.block_status(0, 512)).err(), Some(IoError::UNSUPPORTED));
    block_on(root.discard(0, 512)).expect("a discard that cannot be is none");
    block_on(graph.close()).expect("closed");
}
