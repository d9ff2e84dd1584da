//! The blkverify engine over two storages in memory: what they agree on, what not, and who hears of it.

#![allow(clippy::disallowed_methods, reason = "tests may block")]

use block_blkverify::{Blkverify, BlkverifyControl, DISAGREE, Difference, Mismatch};
use block_common::{AlignedBuf, ChildRole, IoBuf, IoError, Limits, Perm, Preallocation, RequestFlags};
use block_io::{IoThread, Root, StaticGraph};
use block_testkit::bed::{block_on, drop_after, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Verdict};
use std::sync::{Arc, Mutex};

const NONE: RequestFlags = RequestFlags::empty();

struct Opened {
    graph: StaticGraph,
    root: Root,
    control: BlkverifyControl,
    told: Arc<Mutex<Vec<Mismatch>>>,
}

impl Opened {
    fn told(&self) -> Vec<Mismatch> {
        std::mem::take(&mut *self.told.lock().expect("no panic"))
    }
}

fn open(thread: &IoThread, test: &MemStorage, raw: &MemStorage) -> Opened {
    let mut graph = StaticGraph::new(thread.handle());
    let test = block_on(graph.node("test").install(test.driver(), false)).expect("storage");
    let raw = block_on(graph.node("raw").install(raw.driver(), false)).expect("storage");
    let mut shell = graph.node("verify");
    let test = shell.child(ChildRole::DATA, Perm::all(), &test);
    let raw = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &raw);
    let (engine, control) = block_on(shell.run(|req| async move { Blkverify::open(&req, test, raw) })).expect("opens");
    let node = block_on(shell.install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    let told = Arc::<Mutex<Vec<_>>>::default();
    let tell = told.clone();
    control.report_to(move |mismatch| tell.lock().expect("no panic").push(mismatch));
    Opened { graph, root, control, told }
}

fn storages(limits: Limits, len: u64) -> (MemStorage, MemStorage) {
    let new = |limits| {
        let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(len) });
        storage.set_logging(false);
        storage
    };
    (new(limits), new(Limits::NONE))
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
        let (test, raw) = storages(limits, 1 << 20);
        let opened = open(&thread, &test, &raw);
        run_everywhere(&opened.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
        let second = io_thread(true);
        let threads = vec![opened.root.home(), second.handle()];
        test.reorder(block_testkit::seed(), 3);
        raw.reorder(block_testkit::seed() + 1, 5);
        let options = ModelOptions { threads, requests: 2000, ..ModelOptions::default() };
        block_on(model::run(&opened.root, options)).expect("the model agrees");
        test.release_all();
        raw.release_all();
        assert_eq!((opened.told(), test.len()), (Vec::new(), raw.len()));
        assert!(test.bytes(0, test.len() as usize) == raw.bytes(0, raw.len() as usize));
        block_on(opened.graph.close()).expect("closed");
    }
}

#[test]
fn a_read_that_differs_fails_and_is_told() {
    let thread = io_thread(true);
    let (test, raw) = storages(Limits::NONE, 65_536);
    let opened = open(&thread, &test, &raw);
    // Behind the filter's back.
    let mut graph = StaticGraph::new(thread.handle());
    let alone = block_on(graph.node("alone").install(raw.driver(), false)).expect("storage");
    block_on(graph.root("root", &alone, Perm::all()).write(5000, filled(10, 1), NONE)).0.expect("written");
    let (result, buf) = block_on(opened.root.read(4999, filled(30, 0xee)));
    assert_eq!(result, Err(DISAGREE));
    assert!(buf.expect("the caller's").to_aligned(1).iter().all(|byte| *byte == 0xee), "nothing of it is shown");
    let mismatch = Mismatch { is_write: false, offset: 4999, len: 30, difference: Difference::Contents(5000) };
    assert_eq!(opened.told(), [mismatch]);
    assert_eq!(mismatch.to_string(), "blkverify: read offset=4999 bytes=30 contents mismatch at offset 5000");
    block_on(opened.root.read(0, filled(5000, 0))).0.expect("there they agree");
    block_on(opened.root.write(5000, filled(10, 2), NONE)).0.expect("written to both");
    block_on(opened.root.read(4999, filled(30, 0))).0.expect("they agree again");
    // A hole in the one and data in the other are no hole.
    block_on(opened.root.write(20_000, filled(10, 3), NONE)).0.expect("written");
    let hole = MemStorage::new(MemOptions::new(65_536));
    let holed = open(&thread, &raw, &hole);
    assert!(!block_on(holed.root.block_status(20_000, 10)).expect("a status").is_zero());
    block_on(holed.graph.close()).expect("closed");
    assert!(opened.told().is_empty() && format!("{:?}", opened.control).contains("Blkverify"));
    block_on(graph.close()).expect("closed");
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: one fails, or both, with the same error or with others.
#[test]
fn results_that_differ_are_told() {
    let thread = io_thread(true);
    let (io, full) = (IoError::host(5), IoError::host(28));
    for (kind, is_write) in [(MemOpKind::Read, false), (MemOpKind::Write, true)] {
        for (of_test, of_raw) in
            [(Ok(()), Err(full)), (Err(full), Ok(())), (Err(full), Err(io)), (Err(full), Err(full)), (Ok(()), Ok(()))]
        {
            let (test, raw) = storages(Limits::NONE, 65_536);
            let opened = open(&thread, &test, &raw);
            for (storage, result) in [(&test, of_test), (&raw, of_raw)] {
                storage.set_script(move |op| match result {
                    Err(error) if op.kind == kind => Verdict::Fail(error),
                    _ => Verdict::Serve,
                });
            }
            let result = match is_write {
                true => block_on(opened.root.write(512, filled(512, 1), NONE)).0,
                false => block_on(opened.root.read(512, filled(512, 1))).0,
            };
            if of_test == of_raw {
                assert_eq!((result, opened.told()), (of_test, Vec::new()));
            } else {
                assert_eq!(result, Err(DISAGREE));
                let difference = Difference::Results(of_test, of_raw);
                assert_eq!(opened.told(), [Mismatch { is_write, offset: 512, len: 512, difference }]);
            }
            test.clear_script();
            raw.clear_script();
            block_on(opened.graph.close()).expect("closed");
        }
    }
    let mismatch = Mismatch { is_write: true, offset: 0, len: 9, difference: Difference::Results(Err(full), Ok(())) };
    assert_eq!(mismatch.to_string(), "blkverify: write offset=0 bytes=9 return value mismatch -28 != 0");
}

#[test]
fn a_copy_of_another_length_reads_as_zeroes_behind_its_end() {
    let thread = io_thread(true);
    let (test, _) = storages(Limits::NONE, 65_536);
    let (raw, _) = storages(Limits::NONE, 10_000);
    let opened = open(&thread, &test, &raw);
    assert_eq!(opened.root.length(), Ok(65_536));
    for (offset, len) in [(9000, 5000), (20_000, 100), (0, 65_536)] {
        block_on(opened.root.read(offset, filled(len, 1))).0.expect("zeroes in both");
        let status = block_on(opened.root.block_status(offset, len as u64)).expect("a status");
        assert!(status.len > 0 && status.len <= len as u64);
    }
    block_on(opened.root.truncate(20_000, Preallocation::Off)).expect("both");
    assert_eq!((test.len(), raw.len()), (20_000, 20_000));
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: a write hangs in one of the two, and the caller goes. Both are written in the end, and a drain waits for that.
#[test]
fn drain_1_a_dropped_write_is_made_on_both() {
    let thread = io_thread(true);
    let (test, raw) = storages(Limits::NONE, 65_536);
    let opened = open(&thread, &test, &raw);
    raw.hold(Some(MemOpKind::Write));
    assert!(block_on(drop_after(opened.root.write(0, filled(512, 7), NONE), 3)).is_none());
    block_on(raw.wait_held(1));
    let release = raw.clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        release.release_all();
    });
    block_on(opened.graph.close()).expect("closed");
    later.join().expect("no panic");
    assert_eq!((test.bytes(0, 512), raw.bytes(0, 512)), (vec![7; 512], vec![7; 512]));
}

/// Scenario: a write has reached one child, and hangs in the other, when both are read. That is no difference.
#[test]
fn req_1_a_write_on_its_way_is_no_difference() {
    let thread = io_thread(true);
    let (test, raw) = storages(Limits::NONE, 65_536);
    let opened = open(&thread, &test, &raw);
    raw.hold(Some(MemOpKind::Write));
    assert!(block_on(drop_after(opened.root.write(0, filled(512, 7), NONE), 3)).is_none());
    block_on(raw.wait_held(1));
    raw.set_script(|_| Verdict::Serve);
    let root = opened.root.clone();
    let reader = std::thread::spawn(move || block_on(root.read(0, filled(4096, 0))).0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    raw.release_all();
    reader.join().expect("no panic").expect("they agree");
    assert_eq!(opened.told(), []);
    block_on(opened.graph.close()).expect("closed");
}
