//! The blkdebug engine over storage in memory: what it lets through, what it makes fail, whom it stops.

use block_blkdebug::{Blkdebug, BlkdebugControl, BlkdebugLimits, InjectError, IoKind, LimitsError, Rule, Stop};
use block_common::{AlignedBuf, ChildRole, DebugEvent, IoBuf, IoError, Limits, Perm, RequestFlags};
use block_io::{IoThread, Queue, Request, Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOptions, MemStorage};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const NONE: RequestFlags = RequestFlags::empty();
const LONG: Duration = Duration::from_secs(30);

struct Opened {
    graph: StaticGraph,
    root: Root,
    control: BlkdebugControl,
}

fn open(
    thread: &IoThread,
    storage: &MemStorage,
    limits: BlkdebugLimits,
    rules: Vec<Rule>,
) -> Result<Opened, LimitsError> {
    let mut graph = StaticGraph::new(thread.handle());
    let below = block_on(graph.node("image").install(storage.driver(), false)).expect("storage");
    let mut shell = graph.node("blkdebug");
    let image = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &below);
    let made = block_on(shell.run(|req| async move {
        let below = image.limits(&req)?;
        Ok(Blkdebug::new(image, below, limits, rules))
    }));
    let (engine, control) = made.expect("it runs")?;
    let node = block_on(shell.install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    Ok(Opened { graph, root, control })
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

fn error(event: DebugEvent, errno: i32) -> InjectError {
    InjectError { event, state: None, kind: None, errno, sector: None, once: false, immediately: false }
}

#[test]
fn it_conforms_with_any_limits() {
    let thread = io_thread(true);
    let pages = BlkdebugLimits { align: Some(4096), max_transfer: Some(8192), ..BlkdebugLimits::default() };
    let odd = BlkdebugLimits {
        opt_write_zero: Some(1536),
        max_write_zero: Some(3072),
        opt_discard: Some(15_360),
        max_discard: Some(15_360),
        ..BlkdebugLimits::default()
    };
    for limits in [BlkdebugLimits::default(), pages, odd] {
        let below = Limits { request_alignment: 512, memory_alignment: 512, ..Limits::NONE };
        let storage = MemStorage::new(MemOptions { limits: below, ..MemOptions::new(1 << 20) });
        storage.set_logging(false);
        conforms(open(&thread, &storage, limits, Vec::new()).expect("they make sense"));
    }
}

/// Scenario: the blocks are larger than those of the image, which ends within one.
#[test]
fn it_conforms_over_an_odd_end() {
    let thread = io_thread(true);
    for align in [512, 4096] {
        let storage = MemStorage::new(MemOptions { grows: false, ..MemOptions::new((1 << 20) - 4096 + 777) });
        storage.set_logging(false);
        let limits = BlkdebugLimits { align: Some(align), ..BlkdebugLimits::default() };
        conforms(open(&thread, &storage, limits, Vec::new()).expect("they make sense"));
    }
}

/// The suite from everywhere, and the model from two threads.
fn conforms(opened: Opened) {
    run_everywhere(&opened.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
    let second = io_thread(true);
    let threads = vec![opened.root.home(), second.handle()];
    let options = ModelOptions { threads, requests: 2000, ..ModelOptions::default() };
    block_on(model::run(&opened.root, options)).expect("the model agrees");
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn requests_of_a_kind_fail_at_a_sector() {
    let thread = io_thread(true);
    let kinds = [IoKind::Read, IoKind::Write, IoKind::WriteZeroes, IoKind::Discard, IoKind::BlockStatus];
    for kind in kinds {
        let rule = InjectError { kind: Some(kind), sector: Some(8), ..error(DebugEvent::None, 28) };
        let storage = MemStorage::new(MemOptions::new(65_536));
        let opened = open(&thread, &storage, BlkdebugLimits::default(), vec![Rule::InjectError(rule)]).expect("opens");
        let root = &opened.root;
        let results = |at| {
            [
                block_on(root.read(at, filled(512, 0))).0,
                block_on(root.write(at, filled(512, 1), NONE)).0,
                block_on(root.zero(at, 512, NONE)),
                block_on(root.discard(at, 512)),
                block_on(root.block_status(at, 512)).map(drop),
            ]
        };
        assert_eq!(results(0), [Ok(()); 5]);
        let expected = kinds.map(|other| if other == kind { Err(IoError::host(28)) } else { Ok(()) });
        assert_eq!(results(4096), expected, "{kind}");
        block_on(opened.graph.close()).expect("closed");
    }
}

/// A stopped request stands still, tells so, and goes on; those that are stopped under another name do not.
#[test]
fn breakpoints_stop_requests() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(65_536));
    let opened = open(&thread, &storage, BlkdebugLimits::default(), Vec::new()).expect("opens");
    let (root, control) = (&opened.root, &opened.control);
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = reports.clone();
    control.report_to(move |stop| {
        let line = match stop {
            Stop::Suspended(tag) => [b"+", tag].concat(),
            Stop::Resuming(tag) => [b"-", tag].concat(),
        };
        told.lock().expect("no panic").push(String::from_utf8(line).expect("text"));
    });
    control.set_breakpoint(DebugEvent::Pwritev, b"A");
    control.set_breakpoint(DebugEvent::Pwritev, b"B");
    control.set_breakpoint(DebugEvent::PwritevDone, b"C");
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    queue.submit(root, Request::write(0, filled(512, 7), NONE), 1);
    queue.submit(root, Request::read(4096, filled(512, 0)), 2);
    block_on(control.stopped(b"A"));
    assert!(control.is_stopped(b"A") && control.is_stopped(b"B") && !control.is_stopped(b"C"));
    assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
    assert_eq!(done[0].tag, 2, "reads are not stopped");
    assert!(control.resume(b"A") && !control.resume(b"A"));
    assert_eq!(queue.wait(&mut done, Some(Duration::from_millis(10))), 0, "B is in its way");
    assert!(!control.remove_breakpoint(b"B"), "it has stopped somebody, who goes on now");
    block_on(control.stopped(b"C"));
    assert_eq!(storage.bytes(0, 512), [7; 512]);
    assert!(control.resume(b"C"));
    assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
    assert_eq!(*reports.lock().expect("no panic"), ["+B", "+A", "-A", "-B", "+C", "-C"]);
    control.set_breakpoint(DebugEvent::Pwritev, b"D");
    assert!(control.remove_breakpoint(b"D") && !control.remove_breakpoint(b"D"));
    assert_eq!(block_on(root.write(0, filled(512, 7), NONE)).0, Ok(()));
    block_on(opened.graph.close()).expect("closed");
}

/// The end of the thread takes a stopped request along: nobody is stopped any more.
#[test]
fn a_stopped_request_goes_with_its_thread() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(65_536));
    let opened = open(&thread, &storage, BlkdebugLimits::default(), Vec::new()).expect("opens");
    opened.control.set_breakpoint(DebugEvent::Pwritev, b"A");
    let (root, control) = (opened.root.clone(), opened.control.clone());
    let write = thread.handle().run(async move { root.write(0, filled(512, 7), NONE).await.0 });
    block_on(control.stopped(b"A"));
    drop(thread);
    assert_eq!(block_on(write), None);
    assert!(!control.is_stopped(b"A") && !control.resume(b"A"));
}
