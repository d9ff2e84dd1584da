//! The blklogwrites engine over storage in memory: what its log says, to whoever carries it out again.

use block_blklogwrites::{Blklogwrites, LogError, LogOptions, OpenError, SectorSize};
use block_common::{AlignedBuf, ChildRole, IoBuf, IoError, IoResult, Perm, RequestFlags};
use block_io::{IoThread, Root, StaticGraph};
use block_testkit::bed::{block_on, drop_after, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Verdict};
use std::num::NonZeroU64;

const NONE: RequestFlags = RequestFlags::empty();
const FLUSH: u64 = 1;
const DISCARD: u64 = 4;

struct Opened {
    graph: StaticGraph,
    root: Root,
}

fn options(sector: u64, interval: u64) -> LogOptions {
    let begin = (sector > 0).then(|| SectorSize::new(sector).expect("a size"));
    LogOptions { begin, super_interval: NonZeroU64::new(interval).expect("some") }
}

fn open(thread: &IoThread, file: &MemStorage, log: &MemStorage, options: LogOptions) -> Result<Opened, OpenError> {
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("file").install(file.driver(), false)).expect("storage");
    let log = block_on(graph.node("log").install(log.driver(), false)).expect("storage");
    let mut shell = graph.node("logs");
    let file = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &file);
    let log = shell.child(ChildRole::METADATA, Perm::all(), &log);
    let made = block_on(shell.run(|req| async move { Ok(Blklogwrites::open(&req, file, log, options).await) }));
    let node = block_on(shell.install(made.expect("it runs")?, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    Ok(Opened { graph, root })
}

fn storage(len: u64) -> MemStorage {
    let storage = MemStorage::new(MemOptions::new(len));
    storage.set_logging(false);
    storage
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

fn write(root: &Root, offset: u64, len: usize, byte: u8) -> IoResult<()> {
    block_on(root.write(offset, filled(len, byte), NONE)).0
}

/// First sector, number of sectors, flags, data.
type Entry = (u64, u64, u64, Vec<u8>);

/// What the log in `bytes` has; its first entries, if it says that there are more.
fn entries(bytes: &[u8]) -> Vec<Entry> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    if bytes.is_empty() {
        return Vec::new();
    }
    assert_eq!((number(0), number(8)), (0x6a_7366_7773_6872, 1));
    let (count, sector) = (number(16), (number(20) >> 32) as usize);
    let (mut at, mut all) = (sector, Vec::new());
    for _ in 0..count {
        let (first, sectors, flags) = (number(at), number(at + 8), number(at + 16));
        assert!(number(at + 24) == 0 && bytes[at + 32..at + sector].iter().all(|byte| *byte == 0));
        at += sector;
        let len = if flags & DISCARD == 0 { sectors as usize * sector } else { 0 };
        all.push((first, sectors, flags, bytes[at..at + len].to_vec()));
        at += len;
    }
    all
}

fn log_of(log: &MemStorage) -> Vec<Entry> {
    entries(&log.bytes(0, log.len() as usize))
}

/// Carry a log out on a disk of zeroes.
fn replay(entries: &[Entry], len: usize, sector: usize) -> Vec<u8> {
    let mut disk = vec![0; len.next_multiple_of(sector)];
    for (first, count, flags, data) in entries {
        let at = *first as usize * sector;
        match flags {
            &DISCARD => disk[at..at + *count as usize * sector].fill(0),
            _ => disk[at..at + data.len()].copy_from_slice(data),
        }
    }
    disk.truncate(len);
    disk
}

#[test]
fn it_conforms() {
    let thread = io_thread(true);
    for (sector, len) in [(512, 1 << 20), (4096, (1 << 20) + 512)] {
        let (file, log) = (storage(len), storage(0));
        let opened = open(&thread, &file, &log, options(sector, 7)).expect("opens");
        run_everywhere(&opened.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
        block_on(opened.graph.close()).expect("closed");
    }
}

/// Scenario: random work from two threads, file and log reorder. Who carries out the log has the disk.
#[test]
fn the_log_is_the_disk() {
    let thread = io_thread(true);
    for (sector, interval) in [(512, 1), (4096, 4096)] {
        let (file, log) = (storage(1 << 20), storage(0));
        let opened = open(&thread, &file, &log, options(sector, interval)).expect("opens");
        file.reorder(block_testkit::seed(), 4);
        log.reorder(block_testkit::seed() + 1, 4);
        let second = io_thread(true);
        let threads = vec![opened.root.home(), second.handle()];
        let options = ModelOptions { threads, requests: 1000, request_max: 65_536, ..ModelOptions::default() };
        block_on(model::run(&opened.root, options)).expect("the model agrees");
        file.release_all();
        log.release_all();
        block_on(opened.graph.close()).expect("closed");
        let entries = log_of(&log);
        assert!(entries.last().is_some_and(|last| last.2 == FLUSH), "it was closed");
        assert!(replay(&entries, 1 << 20, sector as usize) == file.bytes(0, 1 << 20));
    }
}

#[test]
fn the_model_agrees_while_file_and_log_fail() {
    let thread = io_thread(true);
    let (file, log) = (storage(1 << 20), storage(0));
    let opened = open(&thread, &file, &log, options(512, 3)).expect("opens");
    for storage in [&file, &log] {
        let mut count = 0u32;
        storage.set_script(move |_| {
            count += 1;
            if count.is_multiple_of(11) { Verdict::FailAfter(600, IoError::host(28)) } else { Verdict::Serve }
        });
    }
    let options = ModelOptions { requests: 1000, may_fail: true, ..ModelOptions::default() };
    block_on(model::run(&opened.root, options)).expect("the model agrees");
    file.clear_script();
    log.clear_script();
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: a write begins and ends while a flush is under way. The flush does not vouch for it, so its mark comes before.
#[test]
fn flush_1_a_mark_vouches_for_what_ended_before_its_flush() {
    let thread = io_thread(true);
    let (file, log) = (storage(65_536), storage(0));
    let opened = open(&thread, &file, &log, options(512, 1)).expect("opens");
    write(&opened.root, 0, 512, 1).expect("written");
    file.hold(Some(MemOpKind::Flush));
    let flushing = opened.root.flush();
    let other = opened.root.clone();
    let held = file.clone();
    let writer = std::thread::spawn(move || {
        block_on(held.wait_held(1));
        write(&other, 512, 512, 2).expect("written");
        held.release_all();
    });
    block_on(flushing).expect("flushed");
    writer.join().expect("no panic");
    let shapes: Vec<_> = log_of(&log).into_iter().map(|(first, count, flags, _)| (first, count, flags)).collect();
    assert_eq!(shapes, [(0, 1, 0), (0, 0, FLUSH), (1, 1, 0)]);
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: the entry of a write hangs while a later one is written, and the superblock with it. It does not tell of what is not there.
#[test]
fn the_superblock_tells_of_what_is_there() {
    let thread = io_thread(true);
    let (file, log) = (storage(65_536), storage(0));
    let opened = open(&thread, &file, &log, options(512, 1)).expect("opens");
    log.hold(Some(MemOpKind::Write));
    assert!(block_on(drop_after(opened.root.write(0, filled(512, 1), NONE), 3)).is_none());
    block_on(log.wait_held(1));
    let first = log.held()[0].seq;
    log.set_script(|_| Verdict::Serve);
    write(&opened.root, 4096, 512, 2).expect("written");
    assert_eq!(log_of(&log).len(), 0);
    assert!(log.release(first, Verdict::Serve));
    block_on(opened.root.flush()).expect("flushed");
    assert_eq!(log_of(&log).len(), 3);
    block_on(opened.graph.close()).expect("closed");
}

#[test]
fn a_failed_flush_marks_nothing() {
    let thread = io_thread(true);
    let (file, log) = (storage(65_536), storage(0));
    let opened = open(&thread, &file, &log, options(512, 1)).expect("opens");
    write(&opened.root, 0, 512, 1).expect("written");
    file.fail_nth(Some(MemOpKind::Flush), 0, IoError::host(5));
    assert_eq!(block_on(opened.root.flush()), Err(IoError::host(5)));
    assert!(log_of(&log).iter().all(|entry| entry.2 == 0));
    block_on(opened.root.flush()).expect("flushed");
    assert!(log_of(&log).last().is_some_and(|entry| entry.2 == FLUSH));
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: the log's disk is full. Whoever writes is told, and the log is good up to there.
#[test]
fn a_full_log_fails_its_writes() {
    let thread = io_thread(true);
    let file = storage(65_536);
    let log = MemStorage::new(MemOptions { grows: false, ..MemOptions::new(4096) });
    let opened = open(&thread, &file, &log, options(512, 1)).expect("opens");
    write(&opened.root, 0, 1024, 1).expect("there is room");
    assert_eq!(write(&opened.root, 0, 4096, 2), Err(IoError::host(28)));
    assert_eq!(log_of(&log), [(0, 2, 0, vec![1; 1024])]);
    assert_eq!(block_on(opened.graph.close()), Err(IoError::host(28)), "nor is there room for the mark");
}

#[test]
fn a_log_is_gone_on_with() {
    let thread = io_thread(true);
    let (file, log) = (storage(65_536), storage(0));
    for round in 0..3u8 {
        let sector = if round == 0 { 4096 } else { 0 };
        let opened = open(&thread, &file, &log, options(sector, 100)).expect("opens");
        assert_eq!(opened.root.limits().expect("limits").request_alignment, 4096);
        write(&opened.root, u64::from(round) * 4096, 100, round + 1).expect("written");
        block_on(opened.root.discard(32_768, 4096)).expect("discarded");
        block_on(opened.graph.close()).expect("closed");
        assert_eq!(log_of(&log).len(), 3 * (usize::from(round) + 1));
    }
    assert!(replay(&log_of(&log), 65_536, 4096) == file.bytes(0, 65_536));
    // One that is empty has default sectors.
    let opened = open(&thread, &file, &storage(0), options(0, 100)).expect("opens");
    assert_eq!(opened.root.limits().expect("limits").request_alignment, 512);
    block_on(opened.graph.close()).expect("closed");
}

/// Logs from strangers: counts and lengths that no log has end the search, and nothing is allocated for them.
#[test]
fn trust_3_a_log_that_makes_no_sense_is_refused() {
    let thread = io_thread(true);
    let head = |entries: u64, sector: u32| {
        let numbers = [0x6a_7366_7773_6872, 1, entries].map(u64::to_le_bytes).concat();
        let mut bytes = [numbers, sector.to_le_bytes().to_vec()].concat();
        bytes.resize(512, 0);
        bytes
    };
    let entry = |count: u64| {
        let mut bytes = [0, count, 0, 0].map(u64::to_le_bytes).concat();
        bytes.resize(512, 0);
        bytes
    };
    for (bytes, error) in [
        (vec![0; 4096], LogError::Magic),
        (vec![1; 10], LogError::Magic),
        (head(0, 100), LogError::SectorSize(100)),
        (head(u64::MAX, 512), LogError::Ends(0)),
        ([head(u64::MAX, 512), vec![0; 5120]].concat(), LogError::Ends(10)),
        ([head(2, 512), entry(1 << 40)].concat(), LogError::Ends(1)),
        ([head(2, 512), entry(u64::MAX)].concat(), LogError::Ends(1)),
        ([head(1, 512), entry(1 << 54)].concat(), LogError::Ends(1)),
    ] {
        let log = MemStorage::with_content(MemOptions::new(0), bytes);
        let opened = open(&thread, &storage(65_536), &log, options(0, 1));
        assert_eq!(opened.err(), Some(OpenError::Log(error)));
    }
    let log = MemStorage::with_content(MemOptions::new(0), head(0, 512));
    log.set_script(|_| Verdict::Fail(IoError::host(5)));
    assert_eq!(open(&thread, &storage(512), &log, options(0, 1)).err(), Some(OpenError::Io(IoError::host(5))));
}

/// Scenario: the storage of the file cuts the power when a mark is on the log's. All that the log has before the mark is on the file.
#[test]
fn flush_2_what_a_mark_vouches_for_is_on_the_disk() {
    let thread = io_thread(true);
    let new = |len| MemStorage::new(MemOptions { journal: true, ..MemOptions::new(len) });
    let (file, log) = (new(65_536), new(0));
    let opened = open(&thread, &file, &log, options(512, 4096)).expect("opens");
    for at in 0..20u64 {
        write(&opened.root, at * 1024, 1024, at as u8 + 1).expect("written");
        let fua = block_on(opened.root.write(at * 1024, filled(512, 99), RequestFlags::FUA)).0;
        fua.expect("written");
        let (disk, log) = (file.power_cut(|_, _| false), log.power_cut(|_, _| false));
        let entries = entries(&log);
        let last = entries.iter().rposition(|entry| entry.2 == FLUSH).map_or(0, |last| last + 1);
        assert!(last > 0, "the write before was not flushed, so this one makes a mark");
        let wanted = replay(&entries[..last], 65_536, 512);
        assert!(disk[..wanted.len()] == wanted[..]);
    }
    block_on(opened.graph.close()).expect("closed");
}
