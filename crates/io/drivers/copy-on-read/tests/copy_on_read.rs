//! The copy-on-read engine over an image with a backing file, both in memory: what is copied, how much, beside whom; and what is not.

use async_trait::async_trait;
use block_common::{
    AlignedBuf, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Perm, RequestFlags,
    StatusExtent,
};
use block_copy_on_read::CopyOnRead;
use block_io::{Driver, Edge, IoThread, Queue, Req, Request, Root, StaticGraph, StaticNode};
use block_testkit::bed::{block_on, drop_after, io_thread, join_all, toy_cow};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemMode, MemOpKind, MemOptions, MemStorage, ToyFormat, Verdict};
use std::time::Duration;

const NONE: RequestFlags = RequestFlags::empty();
const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 1 << 20;

struct Bed {
    graph: StaticGraph,
    /// Through the filter.
    root: Root,
    /// Past it, to the image.
    past: Root,
    image: StaticNode,
    file: MemStorage,
    backing: MemStorage,
}

/// A filter over an image of `SIZE` bytes above `backing`.
fn bed_with(thread: &IoThread, backing: MemStorage, perm: Perm) -> Bed {
    let mut graph = StaticGraph::new(thread.handle());
    let file = MemStorage::new(MemOptions::new(1 << 16));
    block_on(async {
        let file_node = graph.node("file").install(file.driver(), false).await.expect("storage");
        let below = graph.node("backing").install(backing.driver(), false).await.expect("storage");
        let format = Some(ToyFormat::new(SIZE));
        let (image, _) = toy_cow(&mut graph, &file_node, Some(&below), format).await.expect("an image");
        let mut shell = graph.node("filter");
        let edge = shell.child(ChildRole::FILTERED_PRIMARY, perm, &image);
        let opened = shell.run(|req| async move { CopyOnRead::open(&req, edge, None).await }).await.expect("opens");
        let filter = shell.install(opened, false).await.expect("a node");
        let root = graph.root("root", &filter, Perm::all());
        let past = graph.root("past", &image, Perm::all());
        Bed { graph, root, past, image, file, backing }
    })
}

fn bed(thread: &IoThread) -> Bed {
    let content = (0..SIZE).map(|at| (at / 512 % 251) as u8 + 1).collect();
    bed_with(thread, MemStorage::with_content(MemOptions::new(SIZE), content), Perm::all())
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

fn read(root: &Root, at: u64, len: usize) -> Result<Vec<u8>, IoError> {
    let (result, buf) = block_on(root.read(at, filled(len, 0xee)));
    result?;
    let mut bytes = vec![0; len];
    buf.expect("it comes back").copy_to_slice(0, &mut bytes);
    Ok(bytes)
}

impl Bed {
    /// The clusters that the image has itself.
    fn allocated(&self) -> Vec<u64> {
        let is_there = |cluster: &u64| {
            let told = block_on(self.past.block_status(cluster * CLUSTER, CLUSTER)).expect("a status");
            assert_eq!(told.len, CLUSTER);
            told.is_allocated()
        };
        (0..SIZE / CLUSTER).filter(is_there).collect()
    }

    fn close(self) {
        block_on(self.graph.close()).expect("closed");
    }
}

#[test]
fn it_conforms_and_agrees_with_the_model() {
    let thread = io_thread(true);
    let bed = bed(&thread);
    bed.file.set_logging(false);
    bed.backing.set_logging(false);
    let second = io_thread(true);
    let options = || ModelOptions { threads: vec![thread.handle(), second.handle()], ..ModelOptions::default() };
    block_on(model::run(&bed.root, ModelOptions { requests: 2000, ..options() })).expect("the model agrees");
    run_everywhere(&bed.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
    bed.close();
}

/// Scenario: reads and writes of all sizes on two threads, over storage that carries out nothing in order.
#[test]
fn job_1_no_write_is_lost_to_a_copy() {
    let thread = io_thread(true);
    let second = io_thread(true);
    for round in 0..6 {
        let bed = bed(&thread);
        bed.file.set_logging(false);
        bed.backing.reorder(round, 3);
        let threads = vec![thread.handle(), second.handle()];
        let options = ModelOptions { threads, requests: 1500, seed: round + 1, ..ModelOptions::default() };
        block_on(model::run(&bed.root, options)).expect("the model agrees");
        bed.backing.release_all();
        bed.close();
    }
}

#[test]
fn job_1_whole_clusters_are_copied_and_once() {
    let thread = io_thread(true);
    let bed = bed(&thread);
    let expected = bed.backing.bytes(1000, 10);
    assert_eq!(read(&bed.root, 1000, 10).expect("it is there"), expected);
    assert_eq!(bed.allocated(), [0]);
    assert_eq!(read(&bed.root, 3 * CLUSTER - 1, 2).expect("it is there"), bed.backing.bytes(3 * CLUSTER - 1, 2));
    assert_eq!(bed.allocated(), [0, 2, 3]);
    // What the image has is asked of nobody else.
    bed.backing.clear_log();
    bed.file.clear_log();
    assert_eq!(
        read(&bed.root, 2 * CLUSTER, 2 * CLUSTER as usize),
        Ok(bed.backing.bytes(2 * CLUSTER, 2 * CLUSTER as usize))
    );
    assert!(bed.backing.log().is_empty());
    assert_eq!(bed.file.count(MemOpKind::Write), 0);
    bed.close();
}

/// Scenario: a copy has read its cluster and is about to write it; a guest writes there meanwhile, and so does somebody who does not come through the filter.
#[test]
fn job_1_a_copy_and_a_write_serialise() {
    let thread = io_thread(true);
    for past in [false, true] {
        let bed = bed(&thread);
        bed.backing.hold(Some(MemOpKind::Read));
        let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
        queue.submit(&bed.root, Request::read(5000, filled(512, 0)), 1);
        block_on(bed.backing.wait_held(1));
        let writer = if past { &bed.past } else { &bed.root };
        queue.submit(writer, Request::write(0, filled(CLUSTER as usize, 0xaa), NONE), 2);
        assert_eq!(queue.wait(&mut done, Some(Duration::from_millis(20))), 0, "it waits for the copy");
        bed.backing.release_all();
        while done.len() < 2 {
            queue.wait(&mut done, None);
        }
        assert!(done.iter().all(|one| one.done.result.is_ok()));
        assert_eq!(read(&bed.past, 0, CLUSTER as usize), Ok(vec![0xaa; CLUSTER as usize]), "past: {past}");
        bed.close();
    }
}

#[test]
fn job_1_copies_stop_at_the_end() {
    let thread = io_thread(true);
    let bed = bed(&thread);
    block_on(bed.root.truncate(SIZE - 1000, block_common::Preallocation::Off)).expect("shorter");
    let at = SIZE - 2000;
    assert_eq!(read(&bed.root, at, 1000), Ok(bed.backing.bytes(at, 1000)));
    assert_eq!(bed.root.length(), Ok(SIZE - 1000));
    assert_eq!(read(&bed.root, SIZE - 1500, 501), Err(IoError::OUT_OF_BOUNDS));
    bed.close();
}

/// Scenario: the backing file has data in its first cluster alone, and ends after its second.
#[test]
fn zeroes_are_copied_as_zeroes() {
    let thread = io_thread(true);
    let mut content = vec![0; 2 * CLUSTER as usize];
    content[5] = 1;
    let bed = bed_with(&thread, MemStorage::with_content(MemOptions::new(2 * CLUSTER), content), Perm::all());
    for cluster in 0..4 {
        read(&bed.root, cluster * CLUSTER, 512).expect("it can be read");
    }
    assert_eq!(bed.allocated(), [0, 1, 2, 3]);
    let is_zero = |cluster: u64| {
        let told = block_on(bed.past.block_status(cluster * CLUSTER, CLUSTER)).expect("a status");
        told.is_zero()
    };
    assert_eq!([0, 1, 2, 3].map(is_zero), [false, true, true, true]);
    bed.close();
}

#[test]
fn perm_4_copies_need_a_permission() {
    let thread = io_thread(true);
    let content = || MemStorage::with_content(MemOptions::new(SIZE), vec![7; SIZE as usize]);
    let without = bed_with(&thread, content(), Perm::CONSISTENT_READ);
    assert_eq!(read(&without.root, 0, 512), Err(IoError::NOT_PERMITTED));
    assert!(without.allocated().is_empty());
    without.close();
    let with = bed_with(&thread, content(), Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED);
    assert_eq!(read(&with.root, 0, 512), Ok(vec![7; 512]));
    assert_eq!(block_on(with.root.write(0, filled(512, 1), NONE)).0, Err(IoError::NOT_PERMITTED));
    assert_eq!(with.allocated(), [0]);
    with.close();
}

/// Scenario: below the filter is another one, which has no zero writes, and nobody may write but what is there already.
#[test]
fn perm_4_zeroes_that_are_written_out_change_nothing_either() {
    let thread = io_thread(true);
    let mut graph = StaticGraph::new(thread.handle());
    let file = MemStorage::new(MemOptions::new(1 << 16));
    let root = block_on(async {
        let file_node = graph.node("file").install(file.driver(), false).await.expect("storage");
        let (image, _) = toy_cow(&mut graph, &file_node, None, Some(ToyFormat::new(SIZE))).await.expect("an image");
        let mut shell = graph.node("between");
        let edge = shell.child(ChildRole::FILTERED_PRIMARY, Perm::WRITE_UNCHANGED, &image);
        let between = shell.install(NoZeroes(edge), false).await.expect("a node");
        let mut shell = graph.node("filter");
        let edge = shell.child(ChildRole::FILTERED_PRIMARY, Perm::WRITE_UNCHANGED, &between);
        let opened = shell.run(|req| async move { CopyOnRead::open(&req, edge, None).await }).await.expect("opens");
        let filter = shell.install(opened, false).await.expect("a node");
        graph.root("root", &filter, Perm::CONSISTENT_READ)
    });
    let nobodys = block_on(root.block_status(0, CLUSTER)).expect("a status");
    assert!(!nobodys.is_allocated());
    assert_eq!(read(&root, 0, 512), Ok(vec![0; 512]));
    assert!(block_on(root.block_status(0, CLUSTER)).expect("a status").is_allocated());
    block_on(graph.close()).expect("closed");
}

/// A filter without zero writes.
struct NoZeroes(Edge);

#[async_trait]
impl Driver for NoZeroes {
    fn format_name(&self) -> &'static str {
        "no-zeroes"
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::WRITE_UNCHANGED
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.block_status(req, HostOffset(range.offset().0), range.len()).await
    }
}

/// Scenario: there is no room for the copy, or the source cannot be read. The read fails with that; the next one, when there is, does not.
#[test]
fn a_copy_that_fails_fails_the_read() {
    let thread = io_thread(true);
    let bed = bed(&thread);
    bed.file.set_mode(MemMode::Slow);
    bed.file.set_script(|op| match op.kind {
        MemOpKind::Write | MemOpKind::Truncate => Verdict::Fail(IoError::host(28)),
        _ => Verdict::Serve,
    });
    assert_eq!(read(&bed.root, 0, 512), Err(IoError::host(28)));
    assert!(bed.allocated().is_empty());
    bed.file.clear_script();
    bed.backing.fail_nth(Some(MemOpKind::Read), 0, IoError::host(5));
    assert_eq!(read(&bed.root, 0, 512), Err(IoError::host(5)));
    assert_eq!(read(&bed.root, 0, 512), Ok(bed.backing.bytes(0, 512)));
    assert_eq!(bed.allocated(), [0]);
    bed.close();
}

/// Scenario: who asked stops waiting at every point of the way. What was begun ends; nothing is held afterwards.
#[test]
fn dropped_readers_leave_nothing_behind() {
    let thread = io_thread(true);
    let bed = bed(&thread);
    bed.backing.reorder(3, 2);
    for polls in 0..30 {
        let at = polls % (SIZE / CLUSTER) * CLUSTER;
        drop(block_on(drop_after(bed.root.read(at, filled(512, 0)), polls as usize)));
    }
    bed.backing.release_all();
    let all = (0..SIZE / CLUSTER).map(|cluster| bed.root.read(cluster * CLUSTER, filled(512, 0)));
    assert!(block_on(join_all(all)).iter().all(|(result, _)| result.is_ok()));
    assert_eq!(bed.allocated().len() as u64, SIZE / CLUSTER);
    bed.close();
}

/// Scenario: a section begins while a copy waits for its source. It waits for the copy, and the filter works on after it.
#[test]
fn drain_1_a_copy_is_waited_for() {
    let thread = io_thread(true);
    let mut bed = bed(&thread);
    bed.backing.hold(Some(MemOpKind::Read));
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    queue.submit(&bed.root, Request::read(0, filled(512, 0)), 1);
    block_on(bed.backing.wait_held(1));
    let (backing, image) = (bed.backing.clone(), bed.image.clone());
    let releaser = std::thread::spawn(move || {
        #[allow(clippy::disallowed_methods, reason = "this is a thread of the test's own")]
        std::thread::sleep(Duration::from_millis(20));
        backing.release_all();
    });
    let alone = block_on(bed.graph.run_alone(&image, |_| async {}));
    assert_eq!(alone, Ok(Some(())));
    assert!(bed.backing.held().is_empty());
    releaser.join().expect("no panic");
    assert_eq!(queue.wait(&mut done, Some(Duration::from_secs(30))), 1);
    assert_eq!(bed.allocated(), [0]);
    bed.close();
}

/// Scenario: what was copied is discarded. It is hidden, and not copied again; what the image has no more is.
#[test]
fn what_is_discarded_is_looked_at_again() {
    let thread = io_thread(true);
    let bed = bed(&thread);
    read(&bed.root, 0, 512).expect("it can be read");
    block_on(bed.root.discard(0, CLUSTER)).expect("discarded");
    let bytes = read(&bed.root, 0, 512).expect("it can be read");
    assert_eq!(bytes, read(&bed.past, 0, 512).expect("the same"));
    bed.close();
}
