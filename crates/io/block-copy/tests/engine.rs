//! The copy engine, the filter and the mirror's body, over storage in memory and without a graph's owner.

use block_backend_io::{UpcallsOut, upcalls};
use block_common::{AlignedBuf, ChildRole, IoError, Limits, Perm, RequestFlags};
use block_copy::{
    Cancelled, CopyAct, CopyError, CopyOptions, JobControl, JobNote, JobOrders, MirrorAnswer, MirrorOptions,
    MirrorParts, MirrorQuestion, MirrorTop, MirrorTopControl, RunError, copy, job_control, mirror,
};
use block_io::{DirtyBitmap, IoThread, IoThreadHandle, Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemMode, MemOpKind, MemOptions, MemStorage, Rng, Verdict, seed};
use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

const CHUNK: u64 = 64 << 10;
const EIO: IoError = IoError::host(5);

/// Two nodes with a root each, and a thread.
struct Pair {
    thread: IoThread,
    graph: StaticGraph,
    source: MemStorage,
    target: MemStorage,
    from: Root,
    to: Root,
}

impl Pair {
    fn new(source: MemStorage, target: MemStorage) -> Self {
        let thread = io_thread(true);
        let mut graph = StaticGraph::new(thread.handle());
        let [from, to] = [("source", &source), ("target", &target)].map(|(name, storage)| {
            let node = block_on(graph.node(name).install(storage.driver(), false)).expect("a node");
            graph.root(name, &node, Perm::CONSISTENT_READ | Perm::WRITE)
        });
        Self { thread, graph, source, target, from, to }
    }

    /// `chunks` chunks of noise, and as many of other noise.
    fn noise(chunks: u64) -> Self {
        let size = chunks * CHUNK;
        let of = |seed| MemStorage::with_content(MemOptions::new(size), content(size, seed, 0));
        Self::new(of(1), of(2))
    }

    fn home(&self) -> IoThreadHandle {
        self.thread.handle()
    }

    fn copy(&self, options: CopyOptions) -> Result<(), RunError> {
        let (from, to) = (self.from.clone(), self.to.clone());
        let copied = async move { copy(from, to, options, &mut JobControl::unattended()).await };
        block_on(self.home().run(copied)).expect("the thread is there")
    }

    fn check_equal(&self) {
        let len = self.source.len() as usize;
        let (a, b) = (self.source.bytes(0, len), self.target.bytes(0, len));
        assert_eq!(a.iter().zip(&b).position(|(a, b)| a != b), None);
    }

    fn close(self) {
        block_on(self.graph.close()).expect("it closes");
    }
}

/// `size` bytes of noise; of each KiB, `sparse` percent are zeroes.
fn content(size: u64, seed: u64, sparse: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; size as usize];
    for piece in bytes.chunks_mut(1024).filter(|_| !rng.chance(sparse)).collect::<Vec<_>>() {
        let mut noise = Rng::new(seed ^ piece.as_ptr() as u64);
        piece.iter_mut().for_each(|byte| *byte = noise.next() as u8 | 1);
    }
    bytes
}

fn options(depth: usize) -> CopyOptions {
    CopyOptions { depth, chunk: CHUNK, ..CopyOptions::default() }
}

fn aligned(request_alignment: u32) -> Limits {
    Limits { request_alignment, memory_alignment: 512, ..Limits::NONE }
}

#[test]
fn a_copy_is_equal_whatever_the_chunks_the_zeroes_and_the_alignments() {
    let seed = seed();
    println!("CAIRN_SEED={seed:#x}");
    for (round, sparse) in [0, 30, 90, 100].into_iter().enumerate() {
        for (source_align, target_align) in [(1, 1), (512, 4096), (4096, 512)] {
            for (depth, chunk) in [(1, 4096), (3, CHUNK), (16, 1 << 20)] {
                let size = (1 << 20) + 3 * 4096;
                let limits = |align| MemOptions { limits: aligned(align), ..MemOptions::new(size) };
                let source = MemStorage::with_content(limits(source_align), content(size, seed + round as u64, sparse));
                let target = MemStorage::with_content(limits(target_align), content(size, seed + 100, 0));
                source.set_mode(if depth == 3 { MemMode::Slow } else { MemMode::Now });
                let pair = Pair::new(source, target);
                pair.copy(CopyOptions { depth, chunk, ..CopyOptions::default() }).expect("it is copied");
                pair.check_equal();
                assert_eq!(pair.target.count(MemOpKind::Flush), 1);
                pair.close();
            }
        }
    }
}

#[test]
fn zeroes_are_written_as_zeroes_or_not_at_all() {
    for target_is_zero in [false, true] {
        let source = MemStorage::with_content(MemOptions::new(1 << 20), content(1 << 20, 5, 60));
        let target = match target_is_zero {
            true => MemStorage::new(MemOptions::new(1 << 20)),
            false => MemStorage::with_content(MemOptions::new(1 << 20), content(1 << 20, 6, 0)),
        };
        let pair = Pair::new(source, target);
        pair.copy(CopyOptions { target_is_zero, ..options(4) }).expect("it is copied");
        pair.check_equal();
        let log = pair.target.log();
        let bytes = |kind| log.iter().filter(|r| r.op.kind == kind).map(|r| r.op.len).sum::<u64>();
        let zeroes = pair.source.bytes(0, 1 << 20).iter().filter(|byte| **byte == 0).count() as u64;
        assert_eq!(bytes(MemOpKind::Write), (1 << 20) - zeroes);
        assert_eq!(bytes(MemOpKind::Zero), if target_is_zero { 0 } else { zeroes });
        let may_unmap = log.iter().filter(|r| r.op.kind == MemOpKind::Zero);
        assert!(may_unmap.into_iter().all(|r| r.op.flags.contains(RequestFlags::MAY_UNMAP)));
        pair.close();
    }
}

#[test]
fn an_error_says_what_failed_and_where() {
    for (kind, act) in [(MemOpKind::Read, CopyAct::Read), (MemOpKind::Write, CopyAct::Write)] {
        for nth in 0..8 {
            let pair = Pair::noise(8);
            let storage = if kind == MemOpKind::Read { &pair.source } else { &pair.target };
            storage.fail_nth(Some(kind), nth, EIO);
            let error = CopyError { act, offset: nth * CHUNK, error: EIO };
            assert_eq!(pair.copy(options(1)), Err(error.into()));
            pair.close();
        }
    }
    let pair = Pair::noise(1);
    pair.target.fail_nth(Some(MemOpKind::Flush), 0, EIO);
    let error = pair.copy(options(1)).expect_err("the flush fails");
    assert_eq!(error.to_string(), "flushing the target at offset 0 failed: Input/output error");
    pair.close();
}

#[test]
fn no_more_chunks_are_in_flight_than_asked_for() {
    let pair = Pair::noise(16);
    pair.source.hold(Some(MemOpKind::Read));
    let (from, to) = (pair.from.clone(), pair.to.clone());
    let copied = pair.home().run(async move { copy(from, to, options(5), &mut JobControl::unattended()).await });
    block_on(pair.source.wait_held(5));
    std::thread::yield_now();
    assert_eq!(pair.source.held().len(), 5);
    pair.source.release_all();
    block_on(copied).expect("the thread is there").expect("it is copied");
    pair.check_equal();
    pair.close();
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let pair = Pair::noise(2);
    for bad in [
        CopyOptions { depth: 0, ..options(1) },
        CopyOptions { chunk: 3 << 10, ..options(1) },
        CopyOptions { chunk: 0, ..options(1) },
        CopyOptions { chunk: 1 << 30, ..options(1) },
    ] {
        assert!(matches!(pair.copy(bad), Err(RunError::Options(_))), "{bad:?}");
    }
    pair.close();
    let coarse = MemStorage::new(MemOptions { limits: aligned(4096), ..MemOptions::new(CHUNK) });
    let pair = Pair::new(MemStorage::new(MemOptions::new(CHUNK)), coarse);
    assert!(matches!(pair.copy(CopyOptions { chunk: 512, ..options(1) }), Err(RunError::Options(_))));
    pair.close();
    let pair = Pair::new(MemStorage::new(MemOptions::new(CHUNK)), MemStorage::new(MemOptions::new(512)));
    assert_eq!(pair.copy(options(1)), Err(RunError::Sizes { source_len: CHUNK, target_len: 512 }));
    pair.close();
}

#[test]
fn a_copy_pauses_goes_on_and_is_cancelled() {
    let pair = Pair::noise(32);
    pair.source.set_script(|_| Verdict::Delay(Duration::from_millis(2)));
    for cancelled in [false, true] {
        let (mut control, orders, mut notes) = job_control();
        let (from, to) = (pair.from.clone(), pair.to.clone());
        let copied = pair.home().run(async move { copy(from, to, options(2), &mut control).await });
        wait_for(|| orders.progress().current > 0);
        orders.set_paused(true);
        assert_eq!(block_on(poll_fn(|cx| notes.poll_next(cx))), Some(JobNote::Paused));
        assert_eq!(pair.from.in_flight() + pair.to.in_flight(), 0);
        let (done, ops) = (orders.progress(), pair.target.log().len());
        block_on(pair.home().run(tokio_sleep(20)));
        assert_eq!((orders.progress(), pair.target.log().len()), (done, ops));
        if cancelled {
            orders.cancel();
            assert_eq!(block_on(copied), Some(Err(Cancelled.into())));
        } else {
            orders.set_paused(false);
            assert_eq!(block_on(copied), Some(Ok(())));
            assert_eq!(orders.progress().current, 32 * CHUNK);
            pair.check_equal();
        }
    }
    pair.close();
}

async fn tokio_sleep(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "the test's own thread")]
        std::thread::sleep(Duration::from_micros(100));
    }
    panic!("it does not come about");
}

/// A filter over storage in memory.
struct Top {
    thread: IoThread,
    graph: StaticGraph,
    storage: MemStorage,
    bitmap: Arc<DirtyBitmap>,
    control: MirrorTopControl,
    root: Root,
}

impl Top {
    fn new(chunks: u64) -> Self {
        let storage = MemStorage::with_content(MemOptions::new(chunks * CHUNK), content(chunks * CHUNK, 3, 0));
        let bitmap = Arc::new(DirtyBitmap::new(chunks * CHUNK, CHUNK));
        let thread = io_thread(true);
        let mut graph = StaticGraph::new(thread.handle());
        let below = block_on(graph.node("file").install(storage.driver(), false)).expect("a node");
        let mut shell = graph.node("top");
        let edge = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &below);
        let (engine, control) = MirrorTop::new(edge, below.node().limits(), bitmap.clone());
        let top = block_on(shell.install(engine, false)).expect("a node");
        let root = graph.root("disk", &top, Perm::CONSISTENT_READ | Perm::WRITE);
        Self { thread, graph, storage, bitmap, control, root }
    }

    fn dirty(&self) -> Vec<u64> {
        (0..self.bitmap.chunks()).filter(|chunk| self.bitmap.is_dirty(*chunk)).collect()
    }

    fn clean(&self) {
        for chunk in 0..self.bitmap.chunks() {
            let _ = self.bitmap.clear(chunk);
        }
    }

    fn write(&self, offset: u64, len: usize) -> impl Future<Output = Result<(), IoError>> + use<> {
        let root = self.root.clone();
        async move { root.write(offset, AlignedBuf::zeroed(len, 512).into_io(), RequestFlags::empty()).await.0 }
    }
}

#[test]
fn the_filter_conforms_tracking_or_not() {
    for stops in [false, true] {
        let mut top = Top::new(16);
        top.storage.set_logging(false);
        if stops {
            top.control.stop();
        }
        // Its bitmap is as long as the image was.
        run_everywhere(&top.root, &ConformanceOptions { resizable: false, ..ConformanceOptions::default() });
        let second = io_thread(true);
        let threads = vec![top.thread.handle(), second.handle()];
        let options = ModelOptions { threads, requests: 3000, ..ModelOptions::default() };
        block_on(model::run(&top.root, options)).expect("the model agrees");
        block_on(top.graph.close()).expect("it closes");
    }
}

#[test]
fn req_4_the_filter_marks_a_write_before_it_starts_and_after_it_is_over() {
    let top = Top::new(8);
    top.storage.hold(Some(MemOpKind::Write));
    let writing = top.thread.handle().run(top.write(CHUNK - 512, 1024));
    block_on(top.storage.wait_held(1));
    assert_eq!(top.dirty(), [0, 1]);
    top.clean();
    top.storage.release_all();
    assert_eq!(block_on(writing), Some(Ok(())));
    assert_eq!(top.dirty(), [0, 1]);

    // The same when it fails.
    top.clean();
    top.storage.fail_nth(Some(MemOpKind::Write), 0, EIO);
    assert_eq!(block_on(top.write(3 * CHUNK, 512)), Err(EIO));
    assert_eq!(top.dirty(), [3]);
    top.storage.clear_script();

    // Every way to change the content counts, no way to look at it does.
    top.clean();
    assert_eq!(block_on(top.root.zero(4 * CHUNK, CHUNK, RequestFlags::empty())), Ok(()));
    assert_eq!(block_on(top.root.discard(6 * CHUNK, 2 * CHUNK)), Ok(()));
    assert_eq!(top.dirty(), [4, 6, 7]);
    top.clean();
    let (read, buf) = block_on(top.root.read(4 * CHUNK, AlignedBuf::zeroed(512, 512).into_io()));
    assert_eq!((read, buf.map(|buf| buf.len())), (Ok(()), Some(512)));
    assert!(block_on(top.root.block_status(4 * CHUNK, CHUNK)).expect("a status").is_zero());
    assert_eq!(block_on(top.root.flush()), Ok(()));
    assert!(top.dirty().is_empty());
    block_on(top.graph.close()).expect("it closes");
}

#[test]
fn req_4_a_write_whose_thread_ends_leaves_its_chunk_dirty() {
    let top = Top::new(4);
    top.storage.hold(Some(MemOpKind::Write));
    let writing = top.write(CHUNK, 512);
    let writing = top.thread.handle().run(writing);
    block_on(top.storage.wait_held(1));
    top.clean();
    drop(top.thread);
    assert_eq!(block_on(writing), None);
    let dirty: Vec<_> = (0..4).filter(|chunk| top.bitmap.is_dirty(*chunk)).collect();
    assert_eq!(dirty, [1]);
    drop(top.graph);
}

#[test]
fn a_filter_that_was_stopped_marks_nothing() {
    let mut top = Top::new(4);
    top.control.stop();
    assert_eq!(block_on(top.write(CHUNK, 512)), Ok(()));
    assert_eq!(block_on(top.root.zero(0, CHUNK, RequestFlags::empty())), Ok(()));
    assert!(top.dirty().is_empty());
    block_on(top.graph.close()).expect("it closes");
}

/// A mirror's body that runs, and the ends that its GS half would hold.
struct Body {
    orders: JobOrders,
    bitmap: Arc<DirtyBitmap>,
    questions: UpcallsOut<MirrorQuestion, MirrorAnswer>,
    ended: std::pin::Pin<Box<dyn Future<Output = Option<Result<(), RunError>>>>>,
}

fn start(pair: &Pair, depth: usize) -> Body {
    let bitmap = Arc::new(DirtyBitmap::new(pair.source.len(), CHUNK));
    bitmap.set_all();
    let (mut control, orders, _notes) = job_control();
    let (owner, questions) = upcalls(1);
    let parts = MirrorParts { source: pair.from.clone(), target: pair.to.clone(), bitmap: bitmap.clone(), owner };
    let options = MirrorOptions { copy: options(depth), rounds_max: Some(4) };
    let ended = Box::pin(pair.home().run(async move { mirror(parts, options, &mut control).await }));
    Body { orders, bitmap, questions, ended }
}

#[test]
fn a_mirror_asks_twice_and_holds_nothing_when_it_waits() {
    let pair = Pair::noise(16);
    let mut body = start(&pair, 4);
    let (question, ready) = block_on(body.questions.next()).expect("a question");
    assert_eq!(question, MirrorQuestion::Ready);
    pair.check_equal();
    // It goes on copying until it is answered.
    let copied = pair.target.count(MemOpKind::Write);
    body.bitmap.set_chunks(3..5);
    wait_for(|| pair.target.count(MemOpKind::Write) > copied && body.bitmap.dirty_chunks() == 0);
    ready.send(MirrorAnswer::Complete).expect("it waits");
    let (question, switch) = block_on(body.questions.next()).expect("a question");
    assert_eq!((question, pair.from.in_flight(), pair.to.in_flight()), (MirrorQuestion::Switch, 0, 0));
    assert_eq!(pair.target.count(MemOpKind::Flush), 0);
    body.bitmap.set_chunks(0..1);
    switch.send(MirrorAnswer::Drained).expect("it waits");
    assert_eq!(block_on(body.ended), Some(Ok(())));
    assert_eq!((body.bitmap.dirty_chunks(), pair.target.count(MemOpKind::Flush)), (0, 1));
    let progress = body.orders.progress();
    assert_eq!(progress.current, progress.total);
    pair.close();
}

#[test]
fn a_mirror_whose_owner_is_gone_or_answers_nonsense_ends() {
    for nonsense in [None, Some(MirrorAnswer::Drained)] {
        let pair = Pair::noise(2);
        let mut body = start(&pair, 4);
        let (_, ready) = block_on(body.questions.next()).expect("a question");
        match nonsense {
            Some(answer) => ready.send(answer).expect("it waits"),
            None => drop(ready),
        }
        assert_eq!(block_on(body.ended), Some(Err(Cancelled.into())));
        pair.close();
    }
    // Its orders are gone while it waits for an answer.
    let pair = Pair::noise(2);
    let mut body = start(&pair, 4);
    let asked = block_on(body.questions.next()).expect("a question");
    drop(body.orders);
    assert_eq!(block_on(body.ended), Some(Err(Cancelled.into())));
    drop(asked);
    pair.close();
}

#[test]
fn a_chunk_is_never_copied_twice_at_a_time() {
    let pair = Pair::noise(4);
    pair.target.hold(Some(MemOpKind::Write));
    // Room for each chunk twice.
    let mut body = start(&pair, 8);
    block_on(pair.target.wait_held(4));
    body.bitmap.set_all();
    block_on(pair.home().run(tokio_sleep(30)));
    assert_eq!((pair.target.held().len(), body.bitmap.dirty_chunks()), (4, 4));
    let first = pair.target.held()[0];
    pair.source.clear_log();
    assert!(pair.target.release(first.seq, Verdict::Serve));
    wait_for(|| pair.target.held().len() == 4);
    let reads: Vec<_> = pair.source.log().iter().map(|record| record.op.offset).collect();
    assert_eq!(reads, [first.offset]);
    pair.target.release_all();
    let (_, ready) = block_on(body.questions.next()).expect("a question");
    ready.send(MirrorAnswer::Complete).expect("it waits");
    let (_, switch) = block_on(body.questions.next()).expect("a question");
    switch.send(MirrorAnswer::Drained).expect("it waits");
    assert_eq!(block_on(body.ended), Some(Ok(())));
    pair.check_equal();
    pair.close();
}

#[test]
fn req_4_what_was_not_copied_is_still_dirty_when_a_mirror_ends_early() {
    // A chunk fails while others are in flight.
    let pair = Pair::noise(8);
    pair.target.set_script(|op| if op.offset == 2 * CHUNK { Verdict::Fail(EIO) } else { Verdict::Hold });
    let body = start(&pair, 4);
    let error = CopyError { act: CopyAct::Write, offset: 2 * CHUNK, error: EIO };
    assert_eq!(block_on(body.ended), Some(Err(error.into())));
    assert_eq!(body.bitmap.dirty_chunks(), 8);
    pair.target.release_all();
    pair.close();
    // Cancelled in the middle.
    let pair = Pair::noise(8);
    pair.target.hold(Some(MemOpKind::Write));
    let body = start(&pair, 4);
    block_on(pair.target.wait_held(4));
    assert_eq!(body.bitmap.dirty_chunks(), 4);
    body.orders.cancel();
    assert_eq!(block_on(body.ended), Some(Err(Cancelled.into())));
    assert_eq!(body.bitmap.dirty_chunks(), 8);
    pair.target.release_all();
    pair.close();
}
