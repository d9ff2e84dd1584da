//! The preallocate engine over storage in memory: how far the storage grows, what is seen of that, and what is left of it in the end.

use block_common::{AlignedBuf, ChildRole, IoBuf, IoError, Limits, Perm, Preallocation, RequestFlags};
use block_io::{IoThread, Root, StaticGraph, StaticNode};
use block_preallocate::{Preallocate, PreallocateControl, PreallocateOptions};
use block_testkit::bed::{block_on, drop_after, io_thread, join_all};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOpKind, MemOptions, MemStorage, ToySparse, Verdict};

const NONE: RequestFlags = RequestFlags::empty();
/// The disk of the format above.
const DISK: u64 = 1 << 20;

struct Opened {
    graph: StaticGraph,
    /// To the filter itself.
    root: Root,
    /// To a format above it, whose writes may go past the end.
    disk: Root,
    filter: StaticNode,
    control: PreallocateControl,
}

fn open_with(thread: &IoThread, storage: &MemStorage, options: PreallocateOptions, perm: Perm) -> Opened {
    let mut graph = StaticGraph::new(thread.handle());
    let below = block_on(graph.node("file").install(storage.driver(), false)).expect("storage");
    let mut shell = graph.node("preallocate");
    let file = shell.child(ChildRole::FILTERED_PRIMARY, perm, &below);
    let made = block_on(shell.run(|req| async move {
        let limits = file.limits(&req)?;
        Ok(Preallocate::new(file, limits, options))
    }));
    let (engine, control) = made.expect("it runs");
    let filter = block_on(shell.install(engine, false)).expect("a node");
    let mut shell = graph.node("disk");
    let file = shell.child(ChildRole::IMAGE, perm, &filter);
    let above = block_on(shell.install(ToySparse::new(file, DISK), false)).expect("a node");
    let root = graph.root("root", &filter, Perm::all());
    let disk = graph.root("disk", &above, Perm::all());
    Opened { graph, root, disk, filter, control }
}

fn open(thread: &IoThread, storage: &MemStorage, align: u64, size: u64) -> Opened {
    open_with(thread, storage, PreallocateOptions { align, size }, Perm::all())
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

fn write(root: &Root, offset: u64, len: usize, byte: u8) {
    block_on(root.write(offset, filled(len, byte), NONE)).0.expect("written");
}

fn read(root: &Root, offset: u64, len: usize) -> Vec<u8> {
    let (result, buf) = block_on(root.read(offset, filled(len, 0xee)));
    result.expect("read");
    buf.expect("a buffer").to_aligned(1).to_vec()
}

/// How long the filter is for those above it.
fn length(opened: &Opened) -> u64 {
    block_on(opened.root.refresh_length()).expect("a length")
}

fn zeroed(storage: &MemStorage) -> Vec<(u64, u64)> {
    let log = storage.log().into_iter();
    log.filter(|record| record.op.kind == MemOpKind::Zero).map(|record| (record.op.offset, record.op.len)).collect()
}

#[test]
fn it_conforms() {
    let thread = io_thread(true);
    for limits in [Limits::NONE, Limits { request_alignment: 512, memory_alignment: 512, ..Limits::NONE }] {
        let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(1 << 20) });
        storage.set_logging(false);
        let opened = open(&thread, &storage, 4096, 65_536);
        run_everywhere(&opened.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
        let options = ModelOptions { requests: 1000, ..ModelOptions::default() };
        block_on(model::run(&opened.root, options)).expect("the model agrees");
        block_on(opened.graph.close()).expect("closed");
    }
}

/// Scenario: a disk whose file is empty at first is written at random, by two threads, while the storage reorders and fails. It holds what was written, and the file ends
/// with it.
#[test]
fn the_model_agrees_while_the_file_grows() {
    let thread = io_thread(true);
    for (size, limits) in [
        (0, Limits::NONE),
        (9000, Limits { request_alignment: 512, memory_alignment: 512, ..Limits::NONE }),
        (40_000, Limits::NONE),
    ] {
        let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(1024) });
        storage.set_logging(false);
        let opened = open(&thread, &storage, 4096, size);
        storage.reorder(block_testkit::seed(), 4);
        let second = io_thread(true);
        let threads = vec![opened.root.home(), second.handle()];
        let options = ModelOptions { threads, requests: 1500, len: DISK, ..ModelOptions::default() };
        block_on(model::run(&opened.disk, options)).expect("the model agrees");
        storage.release_all();
        let mut count = 0u32;
        storage.set_script(move |_| {
            count += 1;
            if count.is_multiple_of(7) { Verdict::FailAfter(700, IoError::host(28)) } else { Verdict::Serve }
        });
        let options = ModelOptions { requests: 1000, len: DISK, may_fail: true, ..ModelOptions::default() };
        block_on(model::run(&opened.disk, options)).expect("the model agrees");
        storage.clear_script();
        let end = length(&opened);
        block_on(opened.graph.close()).expect("closed");
        assert_eq!(storage.len(), end);
    }
}

/// The lengths are those that QEMU 10.0.2 gives its files: the end of what is written and `prealloc-size`, rounded up to `prealloc-align`.
#[test]
fn the_file_grows_ahead_and_ends_with_the_data() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1000));
    let opened = open(&thread, &storage, 4096, 10_000);
    write(&opened.disk, 0, 1000, 1);
    assert_eq!((length(&opened), storage.len()), (1000, 1000), "within the file nothing grows");
    write(&opened.disk, 2000, 100, 2);
    assert_eq!((length(&opened), storage.len()), (2100, 12_288), "2100 + 10000, in pages");
    write(&opened.disk, 2100, 10_000, 3);
    assert_eq!((length(&opened), storage.len()), (12_100, 12_288), "there was room");
    write(&opened.disk, 12_100, 200, 4);
    assert_eq!((length(&opened), storage.len()), (12_300, 24_576), "there was not");
    assert_eq!(zeroed(&storage), [(1000, 11_288), (12_288, 12_288)]);
    let all = [vec![1; 1000], vec![0; 1000], vec![2; 100], vec![3; 10_000], vec![4; 200], vec![0; 100]].concat();
    assert_eq!(read(&opened.disk, 0, 12_400), all);
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.bytes(0, storage.len() as usize), all[..12_300]);
}

#[test]
fn zeroes_are_there_already() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let opened = open(&thread, &storage, 4096, 65_536);
    block_on(opened.disk.zero(4096, 4096, RequestFlags::FUA)).expect("zeroed");
    assert_eq!((length(&opened), zeroed(&storage)), (8192, vec![(0, 73_728)]));
    block_on(opened.disk.zero(8192, 10_000, NONE)).expect("zeroed");
    assert_eq!((length(&opened), zeroed(&storage).len()), (18_192, 1), "nothing had to be done");
    write(&opened.disk, 20_000, 100, 1);
    block_on(opened.disk.zero(19_000, 2000, NONE)).expect("zeroed");
    assert_eq!((length(&opened), zeroed(&storage).len()), (21_000, 2), "somebody has written there");
    write(&opened.disk, 20_900, 10, 1);
    block_on(opened.disk.zero(20_900, 10, NONE)).expect("zeroed");
    assert_eq!(read(&opened.disk, 0, 30_000), vec![0; 30_000]);
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.len(), 21_000);
}

/// Scenario: the storage is full, or cannot allocate. Writes are as they would be without the filter.
#[test]
fn where_nothing_can_be_allocated_writes_go_through() {
    let thread = io_thread(true);
    for (zero, errno) in [(true, 28), (true, 5), (false, 0)] {
        let storage = MemStorage::new(MemOptions { zero, ..MemOptions::new(0) });
        if zero {
            let part = move |kind| {
                if kind == MemOpKind::Zero { Verdict::FailAfter(5000, IoError::host(errno)) } else { Verdict::Serve }
            };
            storage.set_script(move |op| part(op.kind));
        }
        let opened = open(&thread, &storage, 4096, 65_536);
        write(&opened.disk, 100, 100, 1);
        write(&opened.disk, 50, 300, 2);
        assert_eq!(length(&opened), 350);
        assert_eq!(read(&opened.disk, 0, 400), [vec![0; 50], vec![2; 300], vec![0; 50]].concat());
        block_on(opened.graph.close()).expect("closed");
        assert_eq!(storage.len(), 350);
    }
}

/// Scenario: a write past the end fails half-way, and then the disk grows over it. What the write left is not seen.
#[test]
fn trunc_1_what_a_failed_write_left_does_not_come_to_light() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(4096));
    let opened = open(&thread, &storage, 4096, 65_536);
    write(&opened.disk, 4096, 10, 1);
    storage.set_script(|op| {
        if op.kind == MemOpKind::Write { Verdict::FailAfter(500, IoError::host(28)) } else { Verdict::Serve }
    });
    let failed = block_on(opened.disk.write(8192, filled(1000, 9), NONE)).0;
    assert_eq!(failed, Err(IoError::host(28)));
    storage.clear_script();
    assert_eq!(length(&opened), 4106);
    block_on(opened.root.truncate(20_000, Preallocation::Off)).expect("it grows");
    assert_eq!((length(&opened), storage.len()), (20_000, 20_000));
    assert_eq!(read(&opened.root, 4106, 15_894), vec![0; 15_894]);
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.len(), 20_000);
}

/// Scenario: a write that failed half-way past the data, and then zeroes over it: they are not there already.
#[test]
fn zero_1_zeroes_over_a_failed_write_are_written() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let opened = open(&thread, &storage, 4096, 65_536);
    write(&opened.disk, 0, 10, 1);
    storage.set_script(|op| {
        if op.kind == MemOpKind::Write { Verdict::FailAfter(500, IoError::host(5)) } else { Verdict::Serve }
    });
    assert!(block_on(opened.disk.write(8192, filled(1000, 9), NONE)).0.is_err());
    storage.clear_script();
    block_on(opened.disk.zero(8192, 1000, NONE)).expect("zeroed");
    assert_eq!(read(&opened.disk, 8192, 1000), vec![0; 1000]);
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn lengths_change_to_the_byte() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1000));
    let opened = open(&thread, &storage, 4096, 65_536);
    for to in [5000, 300, 70_000, 0, 12] {
        write(&opened.disk, length(&opened).max(900), 1000, 1);
        assert!(opened.control.has_surplus() && storage.len() > length(&opened));
        block_on(opened.root.truncate(to, Preallocation::Off)).expect("another length");
        assert_eq!((length(&opened), storage.len()), (to, to));
    }
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.len(), 12);
}

/// Scenario: those above may write, but nobody may resize. The file is left alone.
#[test]
fn perm_4_without_the_permission_nothing_grows() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1000));
    let opened = open_with(&thread, &storage, PreallocateOptions::default(), Perm::all().difference(Perm::RESIZE));
    write(&opened.disk, 0, 1000, 1);
    assert!(block_on(opened.disk.write(900, filled(1000, 9), NONE)).0.is_err());
    assert!(!opened.control.has_surplus() && zeroed(&storage).is_empty());
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.len(), 1000);
}

#[test]
fn a_cut_is_not_the_end() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let mut opened = open(&thread, &storage, 4096, 65_536);
    write(&opened.disk, 0, 10, 1);
    assert!(opened.control.has_surplus());
    storage.fail_nth(Some(MemOpKind::Truncate), 0, IoError::host(5));
    let control = opened.control.clone();
    let cut =
        block_on(opened.graph.run_alone(&opened.filter, |req| control.cut(req))).expect("it runs").expect("it ends");
    assert_eq!(cut, Err(IoError::host(5)));
    assert!(opened.control.has_surplus() && length(&opened) == 10);
    let cut =
        block_on(opened.graph.run_alone(&opened.filter, |req| control.cut(req))).expect("it runs").expect("it ends");
    assert_eq!((cut, storage.len(), opened.control.has_surplus()), (Ok(()), 10, false));
    write(&opened.disk, 100, 10, 2);
    assert_eq!((length(&opened), storage.len()), (110, 69_632));
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.len(), 110);
}

/// Scenario: while the storage takes its time to allocate, others write past the end as well, and one of them goes away. Nobody's data is zeroed.
#[test]
fn req_2_what_is_allocated_is_not_what_somebody_writes() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let opened = open(&thread, &storage, 512, 1000);
    storage.hold(Some(MemOpKind::Zero));
    assert!(block_on(drop_after(opened.disk.write(0, filled(600, 1), NONE), 3)).is_none());
    block_on(storage.wait_held(1));
    let others = (1..40u64).map(|at| opened.disk.write(at * 600, filled(600, at as u8 + 1), NONE));
    let releases = async {
        storage.release_all();
        storage.reorder(block_testkit::seed(), 3);
    };
    block_on(async {
        let (mut others, mut releases) = (std::pin::pin!(join_all(others)), std::pin::pin!(releases));
        let mut released = false;
        std::future::poll_fn(|cx| {
            let done = others.as_mut().poll(cx);
            if !std::mem::replace(&mut released, true) {
                let _ = releases.as_mut().poll(cx);
            }
            done.map(|done| assert!(done.into_iter().all(|(result, _)| result.is_ok())))
        })
        .await;
    });
    storage.release_all();
    block_on(opened.disk.flush()).expect("flushed");
    for at in 0..40u64 {
        assert_eq!(read(&opened.disk, at * 600, 600), vec![at as u8 + 1; 600], "{at}");
    }
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(storage.len(), 24_000);
}

#[test]
fn odd_options_are_refused_or_taken() {
    let options = |align, size| PreallocateOptions { align, size }.checked().is_ok();
    assert!(!options(3, 0) && !options(511, 0) && options(512, 0) && options(1536, 0) && options(0, 0));
    let thread = io_thread(true);
    // What no file can be long enough for is not allocated.
    for (align, size) in [(0, 0), (512, 0), (1 << 63, 0), (512, u64::MAX), (u64::MAX - 511, 1), (512, i64::MAX as u64)]
    {
        let storage = MemStorage::new(MemOptions::new(0));
        let opened = open(&thread, &storage, align, size);
        write(&opened.disk, 100, 100, 1);
        assert_eq!(length(&opened), 200);
        block_on(opened.graph.close()).expect("closed");
        assert_eq!(storage.len(), 200);
    }
}

/// Scenario: nothing can be allocated for one write past the end, and then there is space again. What that write has written stays.
#[test]
fn req_2_what_was_written_without_room_stays() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let opened = open(&thread, &storage, 512, 10_000);
    storage.fail_nth(Some(MemOpKind::Zero), 0, IoError::host(28));
    write(&opened.disk, 5000, 1000, 1);
    write(&opened.disk, 7000, 1000, 2);
    assert_eq!((length(&opened), storage.len()), (8000, 18_432));
    assert_eq!(read(&opened.disk, 5000, 3000), [vec![1; 1000], vec![0; 1000], vec![2; 1000]].concat());
    block_on(opened.graph.close()).expect("closed");
}
