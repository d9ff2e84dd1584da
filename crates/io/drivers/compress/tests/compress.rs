//! The compress engine over the toy format's stand-in: storage that takes compressed writes, with clusters.

use async_trait::async_trait;
use block_common::{
    AlignedBuf, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Perm, Preallocation,
    RequestFlags, StatusExtent,
};
use block_compress::Compress;
use block_io::{Driver, Edge, IoThread, Req, Root, StaticGraph};
use block_testkit::bed::{block_on, drop_after, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOpKind, MemOptions, MemStorage};
use std::sync::{Arc, Mutex};

const NONE: RequestFlags = RequestFlags::empty();
const CLUSTER: u64 = 4096;

/// What was written, and how.
type Writes = Arc<Mutex<Vec<(u64, usize, RequestFlags)>>>;

/// A format whose clusters lie where they are: it notes which writes come compressed.
struct Clusters {
    file: Edge,
    compresses: bool,
    writes: Writes,
}

#[async_trait]
impl Driver for Clusters {
    fn format_name(&self) -> &'static str {
        "clusters"
    }

    fn write_flags(&self) -> RequestFlags {
        if self.compresses { RequestFlags::WRITE_COMPRESSED | RequestFlags::FUA } else { RequestFlags::FUA }
    }

    fn clusters(&self, _req: &Req) -> Option<block_io::Clusters> {
        Some(block_io::Clusters { cluster: CLUSTER, subcluster: CLUSTER })
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.writes.lock().expect("no panic").push((offset.0, buf.len(), flags));
        self.file.write(req, HostOffset(offset.0), buf, flags & RequestFlags::FUA).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.file.zero(req, HostOffset(range.offset().0), range.len(), flags & RequestFlags::FUA).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.file.truncate(req, len, preallocation).await
    }
}

struct Opened {
    graph: StaticGraph,
    root: Root,
    writes: Writes,
}

fn open(thread: &IoThread, storage: &MemStorage, compresses: bool) -> IoResult<Opened> {
    let mut graph = StaticGraph::new(thread.handle());
    let below = block_on(graph.node("file").install(storage.driver(), false)).expect("storage");
    let mut shell = graph.node("image");
    let (file, writes) = (shell.child(ChildRole::IMAGE, Perm::all(), &below), Writes::default());
    let image =
        block_on(shell.install(Clusters { file, compresses, writes: writes.clone() }, false)).expect("an image");
    let mut shell = graph.node("compress");
    let file = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &image);
    let engine = block_on(shell.run(|req| async move { Compress::open(&req, file) }))?;
    let node = block_on(shell.install(engine, false))?;
    let root = graph.root("root", &node, Perm::all());
    Ok(Opened { graph, root, writes })
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

#[test]
fn it_conforms() {
    let thread = io_thread(true);
    for limits in [Limits::NONE, Limits { request_alignment: 512, memory_alignment: 512, ..Limits::NONE }] {
        for size in [1 << 20, (1 << 20) + 1536] {
            let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(size) });
            storage.set_logging(false);
            let opened = open(&thread, &storage, true).expect("it compresses");
            run_everywhere(&opened.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
            let second = io_thread(true);
            let threads = vec![opened.root.home(), second.handle()];
            let options = ModelOptions { threads, requests: 2000, ..ModelOptions::default() };
            block_on(model::run(&opened.root, options)).expect("the model agrees");
            block_on(opened.graph.close()).expect("closed");
        }
    }
}

/// Nobody who reads a sector wants a cluster.
#[test]
fn reads_are_what_they_are_to_the_child() {
    let thread = io_thread(true);
    let limits = Limits { request_alignment: 512, memory_alignment: 512, ..Limits::NONE };
    let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(1 << 20) });
    let opened = open(&thread, &storage, true).expect("it compresses");
    let told = opened.root.limits().map(|limits| (limits.request_alignment, limits.reads()));
    assert_eq!(told, Ok((CLUSTER as u32, 1)));
    for (offset, len, expected) in [(512, 1024, (512, 1024)), (CLUSTER + 1, 3, (CLUSTER, 512))] {
        storage.clear_log();
        block_on(opened.root.read(offset, filled(len, 1))).0.expect("it is there");
        let reads = storage.log().into_iter().filter(|record| record.op.kind == MemOpKind::Read);
        assert_eq!(reads.map(|record| (record.op.offset, record.op.len)).collect::<Vec<_>>(), [expected]);
    }
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn the_model_agrees_over_storage_that_reorders_and_fails() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 20));
    storage.set_logging(false);
    let opened = open(&thread, &storage, true).expect("it compresses");
    storage.reorder(block_testkit::seed(), 4);
    let options = ModelOptions { requests: 1000, ..ModelOptions::default() };
    block_on(model::run(&opened.root, options)).expect("the model agrees");
    storage.release_all();
    let mut count = 0u32;
    storage.set_script(move |_| {
        count += 1;
        if count.is_multiple_of(7) {
            block_testkit::Verdict::Fail(IoError::host(28))
        } else {
            block_testkit::Verdict::Serve
        }
    });
    let options = ModelOptions { requests: 1000, may_fail: true, ..ModelOptions::default() };
    block_on(model::run(&opened.root, options)).expect("the model agrees");
    storage.clear_script();
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: writes of a part of a cluster, of one, of several, to an odd end. The child sees whole clusters, compressed, all of them.
#[test]
fn every_write_is_one_of_whole_compressed_clusters() {
    let thread = io_thread(true);
    let storage = MemStorage::with_content(MemOptions::new(0), vec![7; 10_000]);
    let opened = open(&thread, &storage, true).expect("it compresses");
    for (offset, len) in [(0, 1), (0, 4096), (100, 5000), (4096, 4096), (9999, 1)] {
        opened.writes.lock().expect("no panic").clear();
        block_on(opened.root.write(offset, filled(len, 1), NONE)).0.expect("written");
        let mut at = offset / CLUSTER * CLUSTER;
        for (start, len, flags) in std::mem::take(&mut *opened.writes.lock().expect("no panic")) {
            assert_eq!(start, at, "of {offset}");
            assert!(flags.contains(RequestFlags::WRITE_COMPRESSED));
            at += len as u64;
            assert!(at.is_multiple_of(CLUSTER) || at == 10_000, "{at} of {offset}");
        }
        assert!(at >= offset + len as u64);
        block_on(opened.root.write(0, filled(10_000, 7), NONE)).0.expect("written");
    }
    assert_eq!(storage.bytes(0, 10_000), [7; 10_000]);
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: a write that has to be stable. The storage below can do it itself, so it is given no flush, and the flag.
#[test]
fn flush_2_a_stable_write_stays_one() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions { journal: true, ..MemOptions::new(65_536) });
    let opened = open(&thread, &storage, true).expect("it compresses");
    block_on(opened.root.write(0, filled(8192, 5), RequestFlags::FUA)).0.expect("written");
    block_on(opened.root.write(12_388, filled(100, 6), RequestFlags::FUA)).0.expect("written");
    let left = storage.power_cut(|_, _| false);
    assert_eq!(left[..8192], [5; 8192]);
    assert_eq!(left[12_388..12_488], [6; 100]);
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn what_cannot_compress_is_refused() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(65_536));
    assert_eq!(open(&thread, &storage, false).err(), Some(IoError::UNSUPPORTED));
}

#[test]
fn asking_for_compression_oneself_is_refused() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(65_536));
    let opened = open(&thread, &storage, true).expect("it compresses");
    let result = block_on(opened.root.write(0, filled(4096, 1), RequestFlags::WRITE_COMPRESSED)).0;
    assert_eq!(result, Err(IoError::UNSUPPORTED));
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: the caller goes away in the middle of a write of half a cluster. It is carried out, and nothing around it changes.
#[test]
fn a_dropped_write_is_carried_out() {
    let thread = io_thread(true);
    let storage = MemStorage::with_content(MemOptions::new(0), vec![7; 65_536]);
    let opened = open(&thread, &storage, true).expect("it compresses");
    storage.hold(Some(MemOpKind::Write));
    assert!(block_on(drop_after(opened.root.write(100, filled(200, 1), NONE), 3)).is_none());
    block_on(storage.wait_held(1));
    storage.release_all();
    block_on(opened.root.flush()).expect("flushed");
    let bytes = block_on(opened.root.read(0, filled(4096, 0))).1.expect("a buffer").to_aligned(1);
    assert!(
        bytes[..100].iter().chain(&bytes[300..]).all(|byte| *byte == 7)
            && bytes[100..300].iter().all(|byte| *byte == 1)
    );
    block_on(opened.graph.close()).expect("closed");
}
