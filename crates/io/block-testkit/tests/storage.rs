//! The storage that tests command does what it is told, and what the suite wants of a driver.

use block_common::{AlignedBuf, IoBuf, IoError, Limits, Perm, RequestFlags};
use block_io::{IoThread, Root, StaticGraph};
use block_testkit::bed::{Way, block_on, io_thread, join_all, toy_filter};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemDiscard, MemFile, MemMode, MemOp, MemOpKind, MemOptions, MemStorage, Verdict};
use std::time::Duration;

const NONE: RequestFlags = RequestFlags::empty();

fn open(thread: &IoThread, storage: &MemStorage) -> (StaticGraph, Root) {
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("mem").install(storage.driver(), false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    (graph, root)
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 512);
    buf.fill(byte);
    buf.into_io()
}

#[test]
fn storage_conforms_in_every_mode() {
    let thread = io_thread(true);
    for (zero, discard, alignment) in
        [(true, MemDiscard::Zeroes, 1), (false, MemDiscard::Unsupported, 512), (true, MemDiscard::Nothing, 4096)]
    {
        let limits = Limits { request_alignment: alignment, memory_alignment: alignment, ..Limits::NONE };
        let storage = MemStorage::new(MemOptions { limits, zero, discard, ..MemOptions::new(3 << 20) });
        storage.set_logging(false);
        let (graph, root) = open(&thread, &storage);
        let options = ConformanceOptions { region: 300_000, ..ConformanceOptions::default() };
        run_everywhere(&root, &options);
        storage.set_mode(MemMode::Slow);
        run_everywhere(&root, &options);
        storage.reorder(options.seed, 8);
        run_everywhere(&root, &ConformanceOptions { region: 50_000, ..options });
        storage.clear_script();
        block_on(graph.close()).expect("closed");
    }
}

#[test]
fn short_transfer_limits_are_kept() {
    let thread = io_thread(true);
    let limits =
        Limits { request_alignment: 512, transfer_max: 3000, zero_max: 1024, discard_max: 512, ..Limits::NONE };
    let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(1 << 20) });
    let (graph, root) = open(&thread, &storage);
    run_everywhere(&root, &ConformanceOptions { region: 100_000, ..ConformanceOptions::default() });
    for record in storage.log() {
        let max = match record.op.kind {
            MemOpKind::Zero => 1024,
            MemOpKind::Discard => 512,
            _ => 2560,
        };
        assert!(record.op.len <= max, "{record:?}");
    }
    block_on(graph.close()).expect("closed");
}

#[test]
fn a_model_agrees_with_reordering_storage() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 20));
    let (graph, root) = open(&thread, &storage);
    let options = ModelOptions::default();
    storage.reorder(options.seed, 12);
    let report = block_on(model::run(&root, options)).expect("the model agrees");
    assert_eq!((report.done, report.failed), (4000, 0));
    let log = storage.log();
    assert!(log.windows(2).any(|pair| pair[0].op.seq > pair[1].op.seq), "nothing was reordered");
    storage.clear_script();
    block_on(graph.close()).expect("closed");
}

#[test]
fn a_model_agrees_with_storage_that_fails() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 20));
    let (graph, root) = open(&thread, &storage);
    let error = IoError::host(5);
    storage.set_script(move |op: &MemOp| match op.seq % 10 {
        3 => Verdict::Fail(error),
        7 => Verdict::FailAfter(op.len / 2, error),
        _ => Verdict::Serve,
    });
    let options = ModelOptions { may_fail: true, ..ModelOptions::default() };
    let report = block_on(model::run(&root, options)).expect("the model agrees");
    assert!(report.failed > 100, "{report:?}");
    storage.clear_script();
    block_on(graph.close()).expect("closed");
}

#[test]
fn held_requests_wait_until_released() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 16));
    let (graph, root) = open(&thread, &storage);
    storage.hold(Some(MemOpKind::Write));
    let writes = (1..=3u8).map(|i| {
        let root = root.clone();
        thread.handle().run(async move { root.write(u64::from(i) * 512, filled(512, i), NONE).await.0 })
    });
    let mut writes: Vec<_> = writes.collect();
    block_on(storage.wait_held(3));
    assert_eq!(root.in_flight(), 3);
    assert_eq!(storage.bytes(0, 4096), vec![0; 4096]);
    // Reads pass by.
    assert_eq!(block_on(root.read(512, filled(512, 9))).0, Ok(()));
    let held = storage.held();
    assert!(storage.release(held[1].seq, Verdict::Fail(IoError::host(28))));
    assert!(storage.release(held[2].seq, Verdict::FailAfter(100, IoError::host(5))));
    assert!(!storage.release(held[2].seq, Verdict::Serve));
    storage.release_all();
    let results: Vec<_> = writes.drain(..).map(|write| block_on(write).expect("it ran")).collect();
    let by_offset = |seq: usize| results[(held[seq].offset / 512 - 1) as usize];
    assert_eq!((by_offset(0), by_offset(1), by_offset(2)), (Ok(()), Err(IoError::host(28)), Err(IoError::host(5))));
    let at = held[2].offset;
    assert_eq!(storage.bytes(at + 98, 4), [(at / 512) as u8, (at / 512) as u8, 0, 0]);
    assert_eq!(storage.bytes(held[1].offset, 512), vec![0; 512]);
    block_on(graph.close()).expect("closed");
    assert_eq!(storage.count(MemOpKind::Close), 1);
}

#[test]
fn the_nth_request_fails_and_dropped_ones_do_nothing() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 16));
    let (graph, root) = open(&thread, &storage);
    storage.fail_nth(Some(MemOpKind::Write), 2, IoError::host(28));
    let results: Vec<_> = (0..4).map(|i| block_on(root.write(i * 512, filled(512, 1), NONE)).0.is_ok()).collect();
    assert_eq!(results, [true, true, false, true]);
    storage.set_script(|op| if op.kind == MemOpKind::Write { Verdict::Drop } else { Verdict::Serve });
    assert_eq!(block_on(root.write(0, filled(512, 7), NONE)).0, Ok(()));
    assert_eq!(storage.bytes(0, 512), vec![1; 512]);
    storage.set_script(|_| Verdict::Delay(Duration::from_millis(5)));
    assert_eq!(block_on(root.write(0, filled(512, 7), NONE)).0, Ok(()));
    assert_eq!(storage.bytes(0, 512), vec![7; 512]);
    storage.clear_script();
    block_on(graph.close()).expect("closed");
}

#[test]
fn a_node_below_a_filter_drains_although_callers_are_gone() {
    // Writes are held in the storage; their callers' futures are dropped; closing waits for them and finds their data.
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 16));
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("mem").install(storage.driver(), false)).expect("a node");
    let (node, control) = block_on(toy_filter(&mut graph, &node)).expect("a filter");
    let root = graph.root("root", &node, Perm::all());
    control.set_slow(true);
    storage.hold(Some(MemOpKind::Write));
    for i in 0..8u8 {
        let write = root.write(u64::from(i) * 512, filled(512, i + 1), NONE);
        assert!(block_on(block_testkit::bed::drop_after(write, 3)).is_none());
    }
    block_on(storage.wait_held(8));
    let released = storage.clone();
    let closer = std::thread::spawn(move || {
        while released.held().len() < 8 {
            std::thread::yield_now();
        }
        released.release_all();
    });
    block_on(graph.close()).expect("closed");
    closer.join().expect("joined");
    for i in 0..8u8 {
        assert_eq!(storage.bytes(u64::from(i) * 512, 512), vec![i + 1; 512]);
    }
    assert_eq!(block_on(root.write(0, filled(512, 1), NONE)).0, Err(IoError::CLOSED));
}

#[test]
fn an_ended_thread_looks_like_a_power_cut() {
    let storage = MemStorage::new(MemOptions::new(1 << 16));
    let thread = io_thread(true);
    let (graph, root) = open(&thread, &storage);
    storage.hold(None);
    let write = root.write(0, filled(512, 1), NONE);
    let gone = {
        let mut write = Box::pin(write);
        assert!(block_on(block_testkit::bed::drop_after(&mut write, 2)).is_none());
        block_on(storage.wait_held(1));
        drop(thread);
        block_on(write)
    };
    assert_eq!((gone.0, gone.1.is_none()), (Err(IoError::CANCELLED), true));
    assert_eq!(storage.held(), []);
    assert_eq!(storage.bytes(0, 512), vec![0; 512]);
    drop(graph);
}

#[test]
fn a_file_in_memory_conforms_every_way() {
    for way in Way::ALL {
        let thread = way.thread();
        let mut graph = StaticGraph::new(thread.handle());
        let pool = block_io::ThreadPool::new(4);
        let file = MemFile::new(2 << 20, way.engine, pool).expect("a memfd");
        let node = block_on(graph.node("file").install(file, false)).expect("a node");
        let root = graph.root("root", &node, Perm::all());
        run_everywhere(&root, &ConformanceOptions::default());
        block_on(model::run(&root, ModelOptions::default())).expect("the model agrees");
        block_on(graph.close()).expect("closed");
    }
}

#[test]
fn a_filter_conforms_fast_and_slow_and_counts() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(2 << 20));
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("mem").install(storage.driver(), false)).expect("a node");
    let (node, control) = block_on(toy_filter(&mut graph, &node)).expect("a filter");
    let root = graph.root("root", &node, Perm::all());
    control.count_mapped(true);
    let options = ConformanceOptions { region: 300_000, ..ConformanceOptions::default() };
    run_everywhere(&root, &options);
    let fast = control.counts();
    assert!(fast.mapped > 100 && fast.zeroes > 0 && fast.truncates > 0, "{fast:?}");
    control.set_slow(true);
    run_everywhere(&root, &options);
    let slow = control.counts();
    assert!(slow.mapped == fast.mapped && slow.reads > fast.reads + 100, "{slow:?}");
    // Switched to and fro under load.
    let model = model::run(&root, ModelOptions::default());
    let switch = async {
        for i in 0..2000 {
            control.set_slow(i % 2 == 0);
            block_testkit::bed::yield_now().await;
        }
        Ok(model::ModelReport::default())
    };
    let futures: [std::pin::Pin<Box<dyn Future<Output = _>>>; 2] = [Box::pin(model), Box::pin(switch)];
    assert!(block_on(join_all(futures)).iter().all(Result::is_ok));
    block_on(graph.close()).expect("closed");
    assert_eq!(control.counts().closes, 1);
}

/// All of an image is zeroed, and only where it is not known to read as zeroes.
#[test]
fn zero_1_a_whole_image_is_made_zero() {
    let thread = io_thread(true);
    let storage = MemStorage::with_content(MemOptions::new(1 << 20), vec![7; 1 << 20]);
    let (_graph, root) = open(&thread, &storage);
    block_on(root.zero(128 << 10, 256 << 10, NONE)).expect("zeroed");
    storage.clear_log();
    block_on(root.make_zero(NONE)).expect("zeroed");
    assert!(storage.bytes(0, 1 << 20).iter().all(|byte| *byte == 0));
    let zeroed: u64 = storage.log().iter().filter(|one| one.op.kind == MemOpKind::Zero).map(|one| one.op.len).sum();
    assert!(zeroed <= 768 << 10, "{zeroed} bytes");
    storage.clear_log();
    block_on(root.make_zero(NONE)).expect("zeroed");
    assert_eq!((storage.count(MemOpKind::Zero), storage.count(MemOpKind::Write)), (0, 0));
    // What cannot be zeroed is an error.
    let (write, _) = block_on(root.write(0, filled(512, 1), NONE));
    write.expect("written");
    storage.set_script(|op| if op.kind == MemOpKind::Zero { Verdict::Fail(IoError::host(5)) } else { Verdict::Serve });
    assert_eq!(block_on(root.make_zero(NONE)), Err(IoError::host(5)));
}
