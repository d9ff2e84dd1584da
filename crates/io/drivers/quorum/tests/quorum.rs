//! The quorum engine over storages in memory: who wins, who is told of, what is rewritten.

#![allow(clippy::disallowed_methods, reason = "tests may block")]

use block_common::{AlignedBuf, ChildRole, IoBuf, IoError, IoResult, Limits, Perm, RequestFlags};
use block_io::{IoThread, Root, StaticGraph};
use block_quorum::{NO_QUORUM, Quorum, QuorumOp, QuorumOptions, ReadPattern, Told};
use block_testkit::bed::{block_on, drop_after, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Verdict};
use std::sync::{Arc, Mutex};

const NONE: RequestFlags = RequestFlags::empty();

struct Opened {
    graph: StaticGraph,
    root: Root,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Opened {
    fn told(&self) -> Vec<Told> {
        std::mem::take(&mut *self.told.lock().expect("no panic"))
    }

    fn read(&self, offset: u64, len: usize) -> IoResult<Vec<u8>> {
        let (result, buf) = block_on(self.root.read(offset, filled(len, 0xee)));
        result.map(|()| buf.expect("a buffer").to_aligned(1).to_vec())
    }

    fn write(&self, offset: u64, len: usize, byte: u8) -> IoResult<()> {
        block_on(self.root.write(offset, filled(len, byte), NONE)).0
    }
}

fn options(threshold: usize) -> QuorumOptions {
    QuorumOptions { threshold, pattern: ReadPattern::Quorum, verify: false, rewrite: false }
}

fn open(thread: &IoThread, storages: &[MemStorage], options: QuorumOptions) -> IoResult<Opened> {
    let mut graph = StaticGraph::new(thread.handle());
    let mut below = Vec::new();
    for (at, storage) in storages.iter().enumerate() {
        below.push(block_on(graph.node(&format!("c{at}")).install(storage.driver(), false)).expect("storage"));
    }
    let mut shell = graph.node("quorum");
    let children = below.iter().map(|child| shell.child(ChildRole::DATA, Perm::all(), child)).collect();
    let (engine, control) = block_on(shell.run(|req| async move { Quorum::open(&req, children, options).await }))?;
    let node = block_on(shell.install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    let told = Arc::<Mutex<Vec<_>>>::default();
    let tell = told.clone();
    control.report_to(move |what| tell.lock().expect("no panic").push(what));
    Ok(Opened { graph, root, told })
}

/// Storages that hold these bytes, each all over.
fn storages(bytes: &[u8]) -> Vec<MemStorage> {
    let new = |byte: &u8| {
        let storage = MemStorage::with_content(MemOptions::new(0), vec![*byte; 65_536]);
        storage.set_logging(false);
        storage
    };
    bytes.iter().map(new).collect()
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

fn bad(child: usize, op: QuorumOp, error: Option<i32>, offset: u64, len: u64) -> Told {
    Told::Bad { node: format!("c{child}"), op, error: error.map(IoError::host), offset, len }
}

fn fail(storage: &MemStorage, kind: MemOpKind, errno: i32) {
    if errno != 0 {
        storage
            .set_script(move |op| if op.kind == kind { Verdict::Fail(IoError::host(errno)) } else { Verdict::Serve });
    }
}

#[test]
fn it_conforms() {
    let thread = io_thread(true);
    for (count, limits, pattern) in [
        (1, Limits::NONE, ReadPattern::Quorum),
        (3, Limits::NONE, ReadPattern::Quorum),
        (3, Limits { request_alignment: 512, memory_alignment: 512, ..Limits::NONE }, ReadPattern::Quorum),
        (2, Limits::NONE, ReadPattern::Fifo),
    ] {
        let new = |at: usize| {
            let limits = if at == 0 { limits } else { Limits::NONE };
            let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(1 << 20) });
            storage.set_logging(false);
            storage
        };
        let storages: Vec<_> = (0..count).map(new).collect();
        let wanted = QuorumOptions { pattern, rewrite: pattern == ReadPattern::Quorum, ..options(count) };
        let opened = open(&thread, &storages, wanted).expect("opens");
        let suite = ConformanceOptions { region: 300_000, resizable: false, ..ConformanceOptions::default() };
        run_everywhere(&opened.root, &suite);
        let second = io_thread(true);
        let threads = vec![opened.root.home(), second.handle()];
        storages.iter().zip(1..).for_each(|(storage, at)| storage.reorder(block_testkit::seed() + at, 4));
        let options = ModelOptions { threads, requests: 1000, ..ModelOptions::default() };
        block_on(model::run(&opened.root, options)).expect("the model agrees");
        storages.iter().for_each(MemStorage::release_all);
        assert_eq!(opened.told(), []);
        block_on(opened.graph.close()).expect("closed");
    }
}

/// Scenario: one of three fails now and then, another time. Nobody above notices, and what it missed is written to it when it is read.
#[test]
fn the_model_agrees_while_one_child_fails() {
    let thread = io_thread(true);
    let storages = storages(&[0, 0, 0]);
    let opened = open(&thread, &storages, QuorumOptions { rewrite: true, ..options(2) }).expect("opens");
    let mut count = 0u32;
    storages[1].set_script(move |_| {
        count += 1;
        if count.is_multiple_of(3) { Verdict::Fail(IoError::host(5)) } else { Verdict::Serve }
    });
    let second = io_thread(true);
    let threads = vec![opened.root.home(), second.handle()];
    let options = ModelOptions { threads, requests: 2000, len: 65_536, ..ModelOptions::default() };
    block_on(model::run(&opened.root, options)).expect("the model agrees");
    assert!(opened.told().iter().all(|told| matches!(told, Told::Bad { node, .. } if node == "c1")));
    storages[1].clear_script();
    opened.read(0, 65_536).expect("read");
    let all = storages[0].bytes(0, 65_536);
    assert!(storages[1].bytes(0, 65_536) == all && storages[2].bytes(0, 65_536) == all);
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn what_enough_children_have_is_read() {
    let thread = io_thread(true);
    let losers = |at: &[usize]| at.iter().map(|at| bad(*at, QuorumOp::Read, None, 512, 100)).collect::<Vec<_>>();
    let failure = vec![Told::Failure { offset: 512, len: 100 }];
    for (have, threshold, wanted, told) in [
        (&[7, 7, 7][..], 3, Ok(7), vec![]),
        (&[7, 8, 7], 2, Ok(7), losers(&[1])),
        (&[7, 8, 8], 1, Ok(8), losers(&[0])),
        (&[7, 8, 9], 1, Ok(9), losers(&[0, 1])),
        (&[7, 8, 9], 2, Err(NO_QUORUM), failure.clone()),
        (&[7, 8, 7], 3, Err(NO_QUORUM), failure),
        (&[7, 8, 7, 8, 9], 2, Ok(8), losers(&[0, 2, 4])),
    ] {
        let storages = storages(have);
        let opened = open(&thread, &storages, options(threshold)).expect("opens");
        assert_eq!(opened.read(512, 100), wanted.map(|byte: u8| vec![byte; 100]), "{have:?} {threshold}");
        assert_eq!(opened.told(), told, "{have:?} {threshold}");
        assert!(storages.iter().zip(have).all(|(storage, byte)| storage.bytes(512, 100) == vec![*byte; 100]));
        block_on(opened.graph.close()).expect("closed");
    }
}

#[test]
fn the_error_that_most_have_is_theirs() {
    let thread = io_thread(true);
    for (errors, threshold, wanted) in [
        ([28, 0, 0], 2, Ok(())),
        ([28, 0, 5], 2, Err(5)),
        ([28, 28, 5], 1, Err(28)),
        ([5, 28, 28], 1, Err(28)),
        ([5, 28, 0], 1, Ok(())),
    ] {
        for (kind, op) in [
            (MemOpKind::Read, QuorumOp::Read),
            (MemOpKind::Write, QuorumOp::Write),
            (MemOpKind::Zero, QuorumOp::Write),
            (MemOpKind::Flush, QuorumOp::Flush),
        ] {
            let storages = storages(&[7, 7, 7]);
            let opened = open(&thread, &storages, options(threshold)).expect("opens");
            opened.write(8192, 1, 7).expect("something to flush");
            storages.iter().zip(errors).for_each(|(storage, errno)| fail(storage, kind, errno));
            let (offset, len) = if op == QuorumOp::Flush { (0, 0) } else { (512, 512) };
            let result = match kind {
                MemOpKind::Read => opened.read(512, 512).map(drop),
                MemOpKind::Write => opened.write(512, 512, 1),
                MemOpKind::Zero => block_on(opened.root.zero(512, 512, NONE)),
                _ => block_on(opened.root.flush()),
            };
            assert_eq!(result, wanted.map_err(IoError::host), "{kind:?} {errors:?}");
            let failing = errors.iter().enumerate().filter(|(_, errno)| **errno != 0);
            let mut told: Vec<_> = failing.map(|(at, errno)| bad(at, op, Some(*errno), offset, len)).collect();
            if wanted.is_err() && op != QuorumOp::Flush {
                told.push(Told::Failure { offset, len });
            }
            assert_eq!(opened.told(), told, "{kind:?} {errors:?}");
            storages.iter().for_each(MemStorage::clear_script);
            block_on(opened.graph.close()).expect("closed");
        }
    }
}

#[test]
fn the_first_that_answers_is_believed() {
    let thread = io_thread(true);
    for (errors, wanted) in [([0, 0, 0], Ok(1)), ([28, 0, 0], Ok(2)), ([28, 5, 0], Ok(3)), ([28, 28, 5], Err(5))] {
        let storages = storages(&[1, 2, 3]);
        let opened =
            open(&thread, &storages, QuorumOptions { pattern: ReadPattern::Fifo, ..options(2) }).expect("opens");
        storages.iter().zip(errors).for_each(|(storage, errno)| fail(storage, MemOpKind::Read, errno));
        assert_eq!(opened.read(0, 100), wanted.map(|byte| vec![byte; 100]).map_err(IoError::host));
        let failing = errors.iter().enumerate().filter(|(_, errno)| **errno != 0);
        let told: Vec<_> = failing.map(|(at, errno)| bad(at, QuorumOp::Read, Some(*errno), 0, 100)).collect();
        assert_eq!(opened.told(), told);
        storages.iter().for_each(MemStorage::clear_script);
        block_on(opened.graph.close()).expect("closed");
    }
}

#[test]
fn the_outvoted_are_rewritten_where_they_can_be() {
    let thread = io_thread(true);
    let storages = storages(&[7, 8, 7, 9]);
    let opened = open(&thread, &storages, QuorumOptions { rewrite: true, ..options(2) }).expect("opens");
    fail(&storages[3], MemOpKind::Write, 28);
    assert_eq!(opened.read(512, 100), Ok(vec![7; 100]));
    assert_eq!(opened.told(), [1, 3].map(|at| bad(at, QuorumOp::Read, None, 512, 100)));
    let have = storages[1].bytes(511, 102);
    assert!(have[0] == 8 && have[101] == 8 && have[1..101].iter().all(|byte| *byte == 7));
    assert_eq!(storages[3].bytes(512, 100), [9; 100]);
    storages[3].clear_script();
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: a read sees that one child is bad while a write is on its way to all. What that writes stays, and no child is told of for it.
#[test]
fn req_1_a_rewrite_does_not_undo_a_write() {
    let thread = io_thread(true);
    let storages = storages(&[7, 8, 7]);
    let opened = open(&thread, &storages, QuorumOptions { rewrite: true, ..options(2) }).expect("opens");
    // The first write hangs in one child, so that the rewrite has to wait for it.
    storages[0].hold(Some(MemOpKind::Write));
    assert!(block_on(drop_after(opened.root.write(0, filled(512, 1), NONE), 3)).is_none());
    block_on(storages[0].wait_held(1));
    storages[0].set_script(|_| Verdict::Serve);
    let (root, held) = (opened.root.clone(), storages[0].clone());
    let reader = std::thread::spawn(move || block_on(root.read(0, filled(4096, 0))).0);
    std::thread::sleep(std::time::Duration::from_millis(50));
    held.release_all();
    reader.join().expect("no panic").expect("two agree");
    let disk = opened.read(0, 4096).expect("read");
    assert!(disk[..512].iter().all(|byte| *byte == 1) && disk[512..].iter().all(|byte| *byte == 7));
    assert!(storages.iter().all(|storage| storage.bytes(0, 4096) == disk));
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn two_that_have_to_agree_are_told_apart() {
    let thread = io_thread(true);
    let storages = storages(&[7, 7]);
    let opened = open(&thread, &storages, QuorumOptions { verify: true, ..options(2) }).expect("opens");
    assert_eq!(opened.read(0, 100), Ok(vec![7; 100]));
    fail(&storages[1], MemOpKind::Write, 28);
    assert_eq!(opened.write(300, 1, 9), Err(IoError::host(28)));
    opened.told();
    assert_eq!(opened.read(256, 100), Err(NO_QUORUM));
    assert_eq!(opened.told(), [Told::Mismatch("quorum: offset=256 bytes=100 contents mismatch at offset 300".into())]);
    storages[1].clear_script();
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn stat_1_zeroes_are_where_all_children_have_some() {
    let thread = io_thread(true);
    let storages = storages(&[0, 0, 7]);
    let opened = open(&thread, &storages, options(2)).expect("opens");
    assert!(!block_on(opened.root.block_status(0, 4096)).expect("a status").is_zero());
    block_on(opened.root.zero(0, 4096, RequestFlags::NO_FALLBACK)).expect("all can");
    let status = block_on(opened.root.block_status(0, 65_536)).expect("a status");
    assert!(status.is_zero() && status.len == 4096, "{status:?}");
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn children_of_other_lengths_are_refused() {
    let thread = io_thread(true);
    let longer = MemStorage::new(MemOptions::new(65_537));
    let all = [storages(&[1]), vec![longer]].concat();
    assert_eq!(open(&thread, &all, options(1)).err(), Some(IoError::host(5)));
}

/// Scenario: a write hangs in one child, and its caller goes. All are written in the end.
#[test]
fn drain_1_a_dropped_write_reaches_all() {
    let thread = io_thread(true);
    let storages = storages(&[7, 7, 7]);
    let opened = open(&thread, &storages, options(2)).expect("opens");
    storages[2].hold(Some(MemOpKind::Write));
    assert!(block_on(drop_after(opened.root.write(0, filled(512, 1), NONE), 3)).is_none());
    block_on(storages[2].wait_held(1));
    let release = storages[2].clone();
    let later = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(30));
        release.release_all();
    });
    block_on(opened.graph.close()).expect("closed");
    later.join().expect("no panic");
    assert!(storages.iter().all(|storage| storage.bytes(0, 512) == [1; 512]));
}
