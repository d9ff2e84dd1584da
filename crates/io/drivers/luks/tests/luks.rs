//! The luks driver: the suites over memory and files, what a password-less node refuses, and that nothing readable reaches the file.

#![forbid(unsafe_code)]

use block_common::{
    AlignedBuf, BlockStatus, ChildRole, IoBuf, IoError, Limits, Perm, Preallocation, RequestFlags, StatusExtent,
};
use block_crypt::{Cipher, CipherMode, CipherSpec, IvGen, SectorCipher};
use block_crypt_io::Crypt;
use block_io::{IoThread, Queue, Request, Root, StaticGraph, StaticNode, ThreadPool};
use block_luks::{Luks, LuksControl, LuksOptions};
use block_testkit::bed::{Way, block_on, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemFile, MemMode, MemOpKind, MemOptions, MemStorage, Verdict};
use std::future::poll_fn;

const NONE: RequestFlags = RequestFlags::empty();
const LENGTH: u64 = 4 << 20;

fn cipher(cipher: Cipher, mode: CipherMode) -> SectorCipher {
    let iv = (mode != CipherMode::Ecb).then_some(IvGen::Plain64);
    let spec = CipherSpec { cipher, mode, iv };
    let key: Vec<u8> = (0..spec.key_len()).map(|i| (i * 7 + 1) as u8).collect();
    SectorCipher::new(spec, &key).expect("they go together")
}

fn crypt(sector: u32) -> Crypt {
    Crypt::new(cipher(Cipher::Aes256, CipherMode::Xts), sector as usize, ThreadPool::new(2))
}

fn options(payload: u64, sector: u32) -> LuksOptions {
    LuksOptions { payload, size: None, first: 0, crypt: Some(crypt(sector)), sector }
}

struct Disk {
    graph: StaticGraph,
    root: Root,
    control: LuksControl,
}

impl Disk {
    fn over(mut graph: StaticGraph, file: &StaticNode, options: LuksOptions) -> Self {
        let mut shell = graph.node("luks");
        let edge = shell.child(ChildRole::IMAGE, Perm::all(), file);
        let opened = block_on(shell.run(|req| async move { Luks::open(&req, edge, None, options).await }));
        let (engine, control) = opened.expect("it opens");
        let node = block_on(shell.install(engine, false)).expect("it has a length");
        let root = graph.root("root", &node, Perm::all());
        Self { graph, root, control }
    }

    fn on(thread: &IoThread, storage: &MemStorage, options: LuksOptions) -> Self {
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        Self::over(graph, &file, options)
    }

    fn suites(self, more: IoThread, size: bool) {
        let options = ConformanceOptions { resizable: !size, zero_init: false, ..ConformanceOptions::default() };
        run_everywhere(&self.root, &options);
        let threads = vec![self.root.home(), more.handle()];
        let options = ModelOptions { threads, ..ModelOptions::default() };
        block_on(model::run(&self.root, options)).expect("the model agrees");
        block_on(self.graph.close()).expect("closed");
    }
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

fn storage(length: u64) -> MemStorage {
    MemStorage::with_content(MemOptions::new(0), (0..length).map(|i| (i / 512) as u8 | 1).collect())
}

#[test]
fn disks_conform_and_the_header_stays_as_it_is() {
    let thread = io_thread(true);
    for (payload, sector, size) in
        [(0, 512, None), (4096, 512, None), (2_068_480, 4096, None), (16384, 4096, Some(1 << 20)), (512, 1024, None)]
    {
        for mode in [MemMode::Now, MemMode::Slow] {
            let storage = storage(LENGTH);
            storage.set_mode(mode);
            storage.set_logging(false);
            let before = storage.bytes(0, payload as usize);
            let disk = Disk::on(&thread, &storage, LuksOptions { size, ..options(payload, sector) });
            assert_eq!(
                disk.root.length(),
                Ok(size.unwrap_or((LENGTH - payload) / u64::from(sector) * u64::from(sector)))
            );
            disk.suites(io_thread(true), size.is_some());
            assert!(storage.bytes(0, payload as usize) == before);
        }
    }
}

#[test]
fn disks_conform_over_files_every_way() {
    for way in Way::ALL {
        let thread = way.thread();
        let mut graph = StaticGraph::new(thread.handle());
        let file = MemFile::new(LENGTH, way.engine, ThreadPool::new(4)).expect("a memfd");
        let file = block_on(graph.node("file").install(file, false)).expect("a file");
        Disk::over(graph, &file, options(4096, 512)).suites(way.thread(), false);
    }
}

#[test]
fn disks_conform_over_large_blocks() {
    let thread = io_thread(true);
    for payload in [8192, 512] {
        let limits = Limits { request_alignment: 4096, memory_alignment: 4096, ..Limits::NONE };
        let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(LENGTH) });
        storage.set_logging(false);
        let disk = Disk::on(&thread, &storage, options(payload, 512));
        let alignment = disk.root.limits().expect("limits").request_alignment;
        assert_eq!(alignment, if payload == 512 { 512 } else { 4096 });
        disk.suites(io_thread(true), false);
    }
}

/// What lies in the file is what the cipher makes of the data, sector by sector, whatever way a request took.
#[test]
fn what_is_stored_is_what_the_cipher_makes() {
    let thread = io_thread(true);
    for (kind, mode) in [
        (Cipher::Aes256, CipherMode::Xts),
        (Cipher::Aes128, CipherMode::Cbc),
        (Cipher::Serpent256, CipherMode::Ctr),
        (Cipher::Cast5, CipherMode::Ecb),
    ] {
        for (sector, first) in [(512, 0), (4096, 0), (512, 0x1_0000_0000)] {
            let storage = storage(LENGTH);
            let crypt = Crypt::new(cipher(kind, mode), sector as usize, ThreadPool::new(2));
            let disk = Disk::on(&thread, &storage, LuksOptions { first, crypt: Some(crypt), ..options(8192, sector) });
            for (at, len) in [(0, 4096), (65536, 32 << 10), (131_072, 36 << 10), (1 << 20, 1 << 20)] {
                let (written, _) = block_on(disk.root.write(at, filled(len, 0x5a), NONE));
                assert_eq!(written, Ok(()));
                let mut expected = vec![0x5a; len];
                cipher(kind, mode).encrypt(first + at / 512, sector as usize, &mut expected);
                let stored = storage.bytes(8192 + at, len);
                assert!(stored == expected, "{kind:?} {mode:?}: {len} bytes at {at}");
                let (read, buf) = block_on(disk.root.read(at, filled(len, 1)));
                assert_eq!(read, Ok(()));
                assert!(buf.expect("the buffer comes back").to_aligned(1).iter().all(|byte| *byte == 0x5a));
            }
            // Zeroes are as unreadable as anything else.
            assert_eq!(block_on(disk.root.zero(0, 65536, NONE)), Ok(()));
            let mut expected = vec![0; 65536];
            cipher(kind, mode).encrypt(first, sector as usize, &mut expected);
            assert!(storage.bytes(8192, 65536) == expected);
            block_on(disk.graph.close()).expect("closed");
        }
    }
}

#[test]
fn discards_change_nothing_and_all_is_data_that_lies_nowhere() {
    let thread = io_thread(true);
    let storage = storage(LENGTH);
    let disk = Disk::on(&thread, &storage, options(4096, 512));
    let before = storage.bytes(0, LENGTH as usize);
    assert_eq!(block_on(disk.root.discard(0, 1 << 20)), Ok(()));
    assert!(storage.bytes(0, LENGTH as usize) == before);
    let status = block_on(disk.root.block_status(512, 1 << 20)).expect("it is known");
    assert_eq!(status, StatusExtent::data(1 << 20));
    assert!(!status.status.contains(BlockStatus::ZERO));
    let refused = block_on(disk.root.zero(0, 512, RequestFlags::NO_FALLBACK));
    assert_eq!(refused, Err(IoError::UNSUPPORTED));
    block_on(disk.graph.close()).expect("closed");
}

#[test]
fn a_disk_whose_key_is_not_known_is_described_and_not_read() {
    let thread = io_thread(true);
    let storage = storage(LENGTH);
    let disk = Disk::on(&thread, &storage, LuksOptions { crypt: None, ..options(4096, 512) });
    assert_eq!(disk.root.length(), Ok(LENGTH - 4096));
    let (read, _) = block_on(disk.root.read(0, filled(512, 0)));
    assert_eq!(read, Err(IoError::NOT_PERMITTED));
    let (written, _) = block_on(disk.root.write(0, filled(512, 0), NONE));
    assert_eq!(written, Err(IoError::NOT_PERMITTED));
    assert!(disk.control.options().crypt.is_none());
    block_on(disk.graph.close()).expect("closed");
}

#[test]
fn lengths_are_whole_sectors_and_follow_the_file() {
    let thread = io_thread(true);
    let storage = storage(8192 + 700);
    let disk = Disk::on(&thread, &storage, options(8192, 512));
    assert_eq!(disk.root.length(), Ok(1024));
    // The part of a sector at the end is read as if the file had zeroes behind it, and completed by a write.
    let mut expected = storage.bytes(8192, 700);
    expected.resize(1024, 0);
    cipher(Cipher::Aes256, CipherMode::Xts).decrypt(0, 512, &mut expected);
    let (read, buf) = block_on(disk.root.read(0, filled(1024, 1)));
    assert_eq!(read, Ok(()));
    assert!(buf.expect("the buffer comes back").to_aligned(1)[..] == expected[..]);
    let (written, _) = block_on(disk.root.write(512, filled(512, 3), NONE));
    assert_eq!((written, storage.len()), (Ok(()), 8192 + 1024));
    assert_eq!(block_on(disk.root.truncate(1 << 20, Preallocation::Off)), Ok(()));
    assert_eq!((storage.len(), disk.root.length()), (8192 + (1 << 20), Ok(1 << 20)));
    // What was added is noise, unless somebody wants zeroes.
    let byte_sum = |at: u64| {
        let (read, buf) = block_on(disk.root.read(at, filled(4096, 1)));
        assert_eq!(read, Ok(()));
        buf.expect("the buffer comes back").to_aligned(1).iter().map(|byte| u64::from(*byte)).sum::<u64>()
    };
    assert!(byte_sum(1 << 19) > 0);
    assert_eq!(block_on(disk.root.grow_zeroed(2 << 20)), Ok(()));
    assert!(byte_sum((1 << 20) - 4096) > 0 && byte_sum(1 << 20) == 0 && byte_sum((2 << 20) - 4096) == 0);
    block_on(disk.graph.close()).expect("closed");

    // What was cut off is told of, before anybody reads noise.
    for cut in [LuksOptions { size: Some(4 << 20), ..options(8192, 512) }, options(16 << 20, 512)] {
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        let mut shell = graph.node("luks");
        let edge = shell.child(ChildRole::IMAGE, Perm::all(), &file);
        let opened = block_on(shell.run(|req| async move { Luks::open(&req, edge, None, cut).await }));
        let installed = block_on(shell.install(opened.expect("it opens").0, false));
        assert_eq!(installed.map(drop), Err(IoError::host(5)));
        block_on(graph.close()).expect("closed");
    }
    let fixed = LuksOptions { size: Some(1 << 20), ..options(8192, 512) };
    let disk = Disk::on(&thread, &storage, fixed);
    assert_eq!(disk.root.length(), Ok(1 << 20));
    assert_eq!(block_on(disk.root.truncate(2 << 20, Preallocation::Off)), Err(IoError::UNSUPPORTED));
    block_on(disk.graph.close()).expect("closed");
}

/// A long request is several requests to the file: the error of one of them is told once all have ended.
#[test]
fn errors_of_pieces_are_told() {
    let thread = io_thread(true);
    let storage = storage(LENGTH);
    let disk = Disk::on(&thread, &storage, options(4096, 512));
    for kind in [MemOpKind::Read, MemOpKind::Write] {
        for nth in [0, 3] {
            storage.fail_nth(Some(kind), nth, IoError::host(5));
            let result = match kind {
                MemOpKind::Read => block_on(disk.root.read(0, filled(2 << 20, 0))).0,
                _ => block_on(disk.root.write(0, filled(2 << 20, 0), NONE)).0,
            };
            assert_eq!(result, Err(IoError::host(5)), "{kind:?} {nth}");
            storage.clear_script();
        }
    }
    block_on(disk.graph.close()).expect("closed");
}

// Scenario: whoever asked for a long request goes away when some of its pieces are under way. These end; what is stored is old or new, sector by sector, and the disk goes on.
#[test]
fn long_requests_that_are_dropped_end_by_themselves() {
    const LEN: usize = 2 << 20;
    let thread = io_thread(true);
    for held in [1, 2] {
        let storage = storage(LENGTH);
        storage.set_mode(MemMode::Slow);
        let disk = Disk::on(&thread, &storage, options(4096, 512));
        let old = storage.bytes(4096, LEN);
        let mut new = vec![0x5a; LEN];
        cipher(Cipher::Aes256, CipherMode::Xts).encrypt(0, 512, &mut new);
        for kind in [MemOpKind::Read, MemOpKind::Write] {
            storage.hold(Some(kind));
            block_on(async {
                let request = async {
                    match kind {
                        MemOpKind::Read => drop(disk.root.read(0, filled(LEN, 0)).await),
                        _ => drop(disk.root.write(0, filled(LEN, 0x5a), NONE).await),
                    }
                };
                let mut request = Box::pin(request);
                let mut waiting = Box::pin(storage.wait_held(held));
                poll_fn(|cx| {
                    assert!(request.as_mut().poll(cx).is_pending());
                    waiting.as_mut().poll(cx).map(drop)
                })
                .await;
                drop(request);
            });
            assert!(disk.root.in_flight() > 0, "pieces are under way");
            storage.release_all();
            storage.clear_script();
            while disk.root.in_flight() > 0 {
                std::thread::yield_now();
            }
        }
        let stored = storage.bytes(4096, LEN);
        let pieces = stored.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
        let count = pieces.map(|(is, (old, new))| {
            assert!(is == old || is == new);
            usize::from(is == new)
        });
        assert!(count.sum::<usize>() >= held * (128 << 10) / 512);
        let (written, _) = block_on(disk.root.write(0, filled(LEN, 0x5a), NONE));
        assert!(written.is_ok() && storage.bytes(4096, LEN) == new);
        block_on(disk.graph.close()).expect("closed");
    }
}

// Scenario: the file has no room for some of the pieces. The error is told, and the disk goes on.
#[test]
fn a_full_file_is_told_of() {
    let thread = io_thread(true);
    let storage = storage(LENGTH);
    let disk = Disk::on(&thread, &storage, options(4096, 512));
    storage.set_script(|op| match op.kind == MemOpKind::Write && op.offset > 1 << 20 {
        true => Verdict::FailAfter(512, IoError::host(28)),
        false => Verdict::Serve,
    });
    let (written, _) = block_on(disk.root.write(0, filled(2 << 20, 0x5a), NONE));
    assert_eq!(written, Err(IoError::host(28)));
    storage.clear_script();
    let (read, buf) = block_on(disk.root.read(0, filled(64 << 10, 1)));
    assert!(read.is_ok() && buf.is_some_and(|buf| buf.to_aligned(1).iter().all(|byte| *byte == 0x5a)));
    block_on(disk.graph.close()).expect("closed");
}

/// When all processors have long requests of their own, each thread decrypts what it reads: from the page cache piece by piece, else what came in one piece.
#[test]
fn long_reads_of_many_threads_are_what_was_written() {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for way in Way::ALL {
        for sector in [512, 4096] {
            let thread = way.thread();
            let mut graph = StaticGraph::new(thread.handle());
            let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).expect("a file");
            let file = MemFile::over(file.into(), LENGTH, way.engine, ThreadPool::new(4)).expect("it grows");
            let file = block_on(graph.node("file").install(file, false)).expect("a file");
            let disk = Disk::over(graph, &file, options(8192, sector));
            let length = disk.root.length().expect("a length");
            let byte = |at: u64| (at / 512 * 31 + at / 131_072 + at % 512) as u8;
            let data: Vec<u8> = (0..length).map(byte).collect();
            let all = AlignedBuf::zeroed(length as usize, 4096).into_io();
            all.copy_from_slice(0, &data);
            block_on(disk.root.write(0, all, NONE)).0.expect("written");
            let root = &disk.root;
            let check = |number: u64| {
                let mut queue = Queue::new().expect("a queue");
                let mut done = Vec::new();
                for round in 0..30 {
                    let places = [(0, 1 << 20), (1 << 20, 100 << 10), (69_632, 36 << 10), (512 << 10, 1_044_480)];
                    let (at, len) = places[(round + number as usize) % places.len()];
                    let buf = AlignedBuf::zeroed(len, 4096).into_io();
                    queue.submit(root, Request::read(at, buf), at);
                    while queue.wait(&mut done, None) == 0 {}
                    let completed = done.pop().expect("one");
                    completed.done.result.expect("read");
                    let read = completed.done.buf.expect("its buffer").to_aligned(1);
                    assert!(read[..] == data[at as usize..at as usize + len], "{way:?} {sector}: {len} bytes at {at}");
                }
            };
            std::thread::scope(|scope| {
                for number in 0..=processors as u64 {
                    scope.spawn({
                        let check = &check;
                        move || check(number)
                    });
                }
            });
            block_on(disk.graph.close()).expect("closed");
        }
    }
}
