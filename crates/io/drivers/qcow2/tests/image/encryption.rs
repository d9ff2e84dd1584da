//! Encrypted images: what is stored, what is told of it, what nobody may do without the key. Requests, power cuts and machines' states are tried on such images where
//! they are tried on all others.

use crate::bed::{NONE, alone, buf, open, open_over, open_with, storage};
use block_common::{AlignedBuf, BlockStatus, Errno, IoErrorKind, Perm, Preallocation, RequestFlags};
use block_io::{IoThread, KeptBitmap, NodeBitmap, StaticGraph, ThreadPool};
use block_qcow2::check::{Amendment, Repair, Report, Storage, Watch, amend, check};
use block_qcow2::{Header, NewSnapshot, Qcow2Options};
use block_qcow2_format::{RefcountBits, Version};
use block_testkit::bed::{Way, block_on, io_thread};
use block_testkit::qcow2::{Format, cipher, inspect};
use block_testkit::{MemFile, MemOpKind, MemStorage};
use std::sync::Arc;

const DISK: u64 = 1 << 20;
/// What is looked for in files.
const WORD: &[u8; 16] = b"nobody sees this";

struct Silent;

impl Watch for Silent {
    fn message(&mut self, _: std::fmt::Arguments<'_>) {}
}

fn formats() -> Vec<Format> {
    let new = Format { crypt_method: 2, ..Format::new(DISK) };
    vec![
        new,
        Format { cluster_bits: 9, ..new },
        Format { cluster_bits: 14, extended: true, ..new },
        Format { cluster_bits: 12, version: Version::V2, ..new },
        Format { crypt_method: 1, cluster_bits: 12, ..new },
    ]
}

fn all(file: &MemStorage) -> Vec<u8> {
    file.bytes(0, file.len() as usize)
}

fn header(file: &MemStorage) -> Header {
    Header::parse(&file.bytes(0, (file.len() as usize).min(1 << 16))).expect("a header")
}

fn words(len: usize) -> Vec<u8> {
    WORD.repeat(len / WORD.len())
}

fn checked(thread: &IoThread, file: &MemStorage, repair: Repair) -> Report {
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("file").install(file.driver(), false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    let run = async move { check(Storage::Root(&root), repair, &mut Silent).await };
    let report = block_on(thread.handle().run(run)).expect("the thread lives").expect("a report");
    block_on(graph.close()).expect("closes");
    report
}

// Scenario: short requests go past the engine, which recodes what they carry; long ones through it. Each sees what the other wrote, over files every way.
#[test]
fn both_ways_make_the_same_of_the_data() {
    for way in Way::ALL {
        for format in formats() {
            let thread = way.thread();
            let mut graph = StaticGraph::new(thread.handle());
            let bytes = format.bytes();
            let file = MemFile::new(bytes.len() as u64, way.engine, ThreadPool::new(4)).expect("a memfd");
            let node = block_on(graph.node("file").install(file, false)).expect("a node");
            let root = graph.root("root", &node, Perm::all());
            block_on(root.write(0, buf(&bytes), NONE)).0.expect("written");
            let image = open_over(graph, &node, None, Qcow2Options::default(), false, cipher).expect("opens");
            let mut expected = vec![0; DISK as usize];
            let mut write = |at: usize, len: usize, byte: u8| {
                let data: Vec<u8> = (0..len).map(|i| byte ^ (i / 3) as u8).collect();
                let home = image.root.home();
                let (to, data) = (image.root.clone(), {
                    expected[at..at + len].copy_from_slice(&data);
                    buf(&data)
                });
                // From the thread that the file belongs to, where nothing is in the way of the fast one.
                let written = block_on(home.run(async move { to.write(at as u64, data, NONE).await.0 }));
                written.expect("the thread lives").expect("written");
            };
            // What is allocated is written in place from then on.
            write(0, 512 << 10, 1);
            write(4096, 4096, 2);
            write(130_048, 512, 3);
            write(65_536, 32 << 10, 4);
            write(300 << 10, 100 << 10, 5);
            let stored = {
                let (read, buf) = block_on(root.read(0, AlignedBuf::zeroed(512 << 10, 4096).into_io()));
                read.expect("read");
                buf.expect("the buffer").to_aligned(1)
            };
            for (at, len) in
                [(0, 1 << 20), (4096, 4096), (3584, 5120), (130_048, 512), (64 << 10, 32 << 10), (299 << 10, 8 << 10)]
            {
                let (from, home) = (image.root.clone(), image.root.home());
                let read = async move { from.read(at, AlignedBuf::zeroed(len, 4096).into_io()).await };
                let (read, buf) = block_on(home.run(read)).expect("the thread lives");
                read.expect("read");
                let got = buf.expect("the buffer").to_aligned(1);
                assert!(got[..] == expected[at as usize..at as usize + len], "{format:?} {len} bytes at {at}");
                assert!(image.read(at, len) == got[..], "{format:?} {len} bytes at {at}");
            }
            assert!(!stored.windows(16).any(|window| window == &expected[4096..4112]), "{format:?}");
            drop(root);
            image.close().expect("closes");
        }
    }
}

// Scenario: writes that fill clusters and parts of them, over nothing, over a backing file, over a snapshot's clusters; zeroes; a machine's state.
#[test]
fn nothing_of_a_guest_is_seen_in_the_file() {
    let thread = io_thread(true);
    for format in formats() {
        let (file, below) = (storage(format.bytes()), storage(words(DISK as usize / 2)));
        let write = |at: u64, len: usize| {
            let image = open(&thread, &file, Some(&below), Qcow2Options::default()).expect("opens");
            // The second time in place.
            image.write(at, &words(len));
            image.write(at, &words(len));
            let read = image.read(0, DISK as usize);
            let half = DISK as usize / 2;
            assert!(read[..half] == words(half) && read[at as usize..at as usize + len] == words(len), "{format:?}");
            image.close().expect("closes");
        };
        write(512, 512);
        write(200 << 10, 150 << 10);
        write(700 << 10, 4096);
        let new = NewSnapshot { name: b"s".to_vec(), ..NewSnapshot::default() };
        alone(&thread, &file, |req, control| async move { control.create_snapshot(&req, new).await }).expect("taken");
        write(201 << 10, 1024);
        write(700 << 10, 1024);
        let image = open(&thread, &file, Some(&below), Qcow2Options::default()).expect("opens");
        block_on(image.root.save_vmstate(100, buf(&words(70_000)))).expect("stored");
        let state = block_on(image.root.load_vmstate(100, AlignedBuf::zeroed(70_000, 4096).into_io())).expect("loaded");
        assert!(state.to_aligned(1).to_vec() == words(70_000));
        let before = block_on(image.root.load_vmstate(0, AlignedBuf::zeroed(100, 4096).into_io())).expect("loaded");
        assert!(before.to_aligned(1).to_vec() == [0; 100]);
        image.close().expect("closes");
        let bytes = all(&file);
        assert!(!bytes.windows(WORD.len()).any(|part| part == WORD), "{format:?}");
        let report = inspect(&bytes, &words(DISK as usize / 2)).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!(report.leaks, 0, "{format:?}");
        assert!(report.guest[700 << 10..704 << 10] == words(4096) && report.snapshots[0].guest == report.guest);
        let found = checked(&thread, &file, Repair::All);
        assert_eq!((found.leaks, found.corruptions, found.check_errors), (0, 0, 0), "{format:?}");
        assert!(all(&file) == bytes, "a check has nothing to repair");
    }
}

#[test]
fn compressed_writes_are_refused_and_compressed_clusters_are_read() {
    let thread = io_thread(true);
    // Compressed by who does not know that the image is encrypted, as in the field.
    let plain = storage(Format::new(DISK).bytes());
    let image = open(&thread, &plain, None, Qcow2Options::default()).expect("opens");
    block_on(image.root.write(0, buf(&words(1 << 16)), RequestFlags::WRITE_COMPRESSED)).0.expect("written");
    image.close().expect("closes");
    let mut bytes = all(&plain);
    bytes[35] = 1;
    let file = storage(bytes);
    let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    let refused = block_on(image.root.write(1 << 16, buf(&words(1 << 16)), RequestFlags::WRITE_COMPRESSED)).0;
    assert_eq!(refused.expect_err("refused").errno(), Errno::ENOTSUP);
    image.write(1 << 9, &[7; 512]);
    let mut now = words(1 << 16);
    now[1 << 9..1 << 10].fill(7);
    assert!(image.read(0, 1 << 16) == now, "what was around the write is encrypted by now");
    image.close().expect("closes");
    let report = inspect(&all(&file), &[]).expect("an image");
    assert!((report.compressed, report.leaks) == (0, 0) && report.guest[..1 << 16] == now);
}

#[test]
fn block_status_has_no_place_that_somebody_could_read() {
    let thread = io_thread(true);
    for format in formats() {
        let file = storage(format.bytes());
        let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        let cluster = 1 << format.cluster_bits;
        image.write(0, &words(2 * cluster));
        block_on(image.root.zero(0, cluster as u64, NONE)).expect("zeroes");
        let status = |at: u64| block_on(image.root.block_status(at, cluster as u64)).expect("a status");
        let (zero, data) = (status(0), status(cluster as u64));
        assert_eq!((zero.host_offset, data.host_offset), (None, None), "{format:?}");
        if format.version == Version::V3 {
            assert_eq!(zero.status, BlockStatus::ZERO | BlockStatus::ALLOCATED);
        }
        assert_eq!((data.status, data.len), (BlockStatus::DATA | BlockStatus::ALLOCATED, cluster as u64));
        image.close().expect("closes");
    }
}

// Scenario: somebody has the image and not the key.
#[test]
fn without_a_key_an_image_is_described_and_no_more() {
    let thread = io_thread(true);
    for format in formats() {
        let file = storage(format.bytes());
        let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        image.write(0, &words(4096));
        image.close().expect("closes");
        let before = all(&file);
        let locked = |read_only| open_with(&thread, &file, None, Qcow2Options::default(), read_only, |_| None);
        let error = locked(false).err().expect("not for writing");
        assert_eq!(error, "Parameter 'encrypt.key-secret' is required for cipher");
        let mut image = locked(true).expect("opens");
        let refused = block_on(image.root.read(0, buf(&[0; 4096]))).0.expect_err("refused");
        assert_eq!((refused.errno(), refused.kind()), (Errno::EPERM, IoErrorKind::Caller));
        assert!(image.read(512 << 10, 4096).iter().all(|byte| *byte == 0), "what was never written is no secret");
        assert!(block_on(image.root.write(0, buf(&[0; 512]), NONE)).0.is_err());
        assert!(block_on(image.root.truncate(2 << 20, Preallocation::Off)).is_err());
        let info = block_on(image.alone(|req, control| async move { control.info(&req).await })).expect("told");
        assert!(info.is_encrypted());
        let reopened = block_on(image.alone(|req, control| async move {
            control.prepare_reopen(&req, Qcow2Options::default(), false).await.map(drop)
        }));
        assert_eq!(reopened.expect_err("refused").to_string(), error);
        image.close().expect("closes");
        assert!(all(&file) == before);
    }
    let plain = storage(Format::new(DISK).bytes());
    let with_key = Format { crypt_method: 2, ..Format::new(DISK) }.bytes();
    let key = move |_: &Header| cipher(&Header::parse(&with_key[..1 << 16]).expect("a header"));
    let error = open_with(&thread, &plain, None, Qcow2Options::default(), true, key).err().expect("refused");
    assert_eq!(error, "No encryption in image header, but a key is given");
}

// Scenario: key slots are changed while the image is in use; everything else that writes headers leaves them where they are.
#[test]
fn the_header_for_keys_is_read_and_written_within_its_bounds() {
    let thread = io_thread(true);
    for format in formats().into_iter().filter(|format| format.crypt_method == 2) {
        let file = storage(format.bytes());
        let mut image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        let (at, len) = image.control.crypto_header().expect("it has one");
        assert_eq!((at % (1 << format.cluster_bits), len), (0, 1100));
        file.clear_log();
        let done = block_on(image.alone(|req, control| async move {
            assert_eq!(control.read_crypto(&req, 0, 1 << 20).await.expect("read"), [0xc5; 1100]);
            assert_eq!(control.read_crypto(&req, 1000, 10).await.expect("read"), [0xc5; 10]);
            assert!(control.read_crypto(&req, 5000, 10).await.expect("read").is_empty());
            assert!(control.read_crypto(&req, u64::MAX, usize::MAX).await.is_err());
            for (at, len) in [(1099, 2), (1100, 1), (u64::MAX, 1), (0, 1101)] {
                let refused = control.write_crypto(&req, at, &vec![0; len]).await.expect_err("refused");
                assert_eq!(refused.errno(), Errno::EINVAL);
            }
            control.write_crypto(&req, 600, &[1; 500]).await.expect("written");
            control.read_crypto(&req, 599, 501).await.expect("read")
        }));
        assert!(done[0] == 0xc5 && done[1..] == [1; 500]);
        let log = file.log();
        let last = log.iter().rfind(|record| !matches!(record.op.kind, MemOpKind::Read | MemOpKind::Status));
        assert!(matches!(last.map(|record| record.op.kind), Some(MemOpKind::Flush)), "it is on the disk");
        block_on(image.alone(|req, control| async move { control.write_crypto(&req, 600, &[0xc5; 500]).await }))
            .expect("written");
        image.write(0, &words(4096));
        if format.version == Version::V3 {
            let bits = Arc::new(NodeBitmap::try_new(DISK, 65536).expect("it is small"));
            let kept = KeptBitmap { name: "b".into(), granularity: 65536, recording: true, bits };
            image.control.keep_bitmaps(&[kept]).expect("there is room");
        }
        block_on(image.root.truncate(40 << 20, Preallocation::Off)).expect("longer");
        image.close().expect("closes");
        alone(&thread, &file, |req, control| async move {
            control.change_backing(&req, Some((b"x".to_vec(), Some(b"raw".to_vec())))).await.expect("named");
            let new = NewSnapshot { name: b"s".to_vec(), ..NewSnapshot::default() };
            control.create_snapshot(&req, new).await.expect("taken");
        });
        if format.version == Version::V3 {
            let mut graph = StaticGraph::new(thread.handle());
            let node = block_on(graph.node("file").install(file.driver(), false)).expect("a node");
            let root = graph.root("amend", &node, Perm::all());
            let change = Amendment { refcount_bits: RefcountBits::new(5).ok(), ..Amendment::default() };
            let run = async move { amend(Storage::Root(&root), &change, &mut Silent).await };
            block_on(thread.handle().run(run)).expect("the thread lives").expect("amended");
            block_on(graph.close()).expect("closes");
        }
        let report = inspect(&all(&file), &[]).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!((header(&file).crypto, report.leaks), (Some((at, len)), 0));
        assert_eq!(report.guest[..4096], words(4096));
    }
    let plain = storage(Format::new(DISK).bytes());
    let mut image = open(&thread, &plain, None, Qcow2Options::default()).expect("opens");
    assert_eq!(image.control.crypto_header(), None);
    let refused = block_on(image.alone(|req, control| async move { control.write_crypto(&req, 0, &[1]).await }));
    assert_eq!(refused.expect_err("refused").errno(), Errno::EINVAL);
    image.close().expect("closes");
}

// Scenario: the counts call the clusters of the header for keys free, or the image says that this header is where its own is.
#[test]
fn qcow2_8_the_header_for_keys_is_metadata() {
    let thread = io_thread(true);
    let format = Format { crypt_method: 2, cluster_bits: 9, ..Format::new(DISK) };
    let mut bytes = format.bytes();
    let (at, len) = Header::parse(&bytes[..512]).expect("a header").crypto.expect("a place");
    for cluster in at / 512..(at + len).div_ceil(512) {
        RefcountBits::DEFAULT.set(&mut bytes[1024..1536], cluster as usize, 0);
    }
    let damaged = storage(bytes.clone());
    let image = open(&thread, &damaged, None, Qcow2Options::default()).expect("opens");
    let refused = block_on(image.root.write(0, buf(&[9; 512]), NONE)).0.expect_err("refused");
    assert_eq!(refused.kind(), IoErrorKind::BadImage);
    image.close().expect("closes");
    assert!(damaged.bytes(at, len as usize).iter().all(|byte| *byte == 0xc5));
    // A check knows better, and a repair counts them.
    let found = checked(&thread, &storage(bytes.clone()), Repair::None);
    assert_eq!((found.corruptions, found.leaks), (3, 0));
    let file = storage(bytes);
    assert_eq!(checked(&thread, &file, Repair::All).corruptions_fixed, 3);
    let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    image.write(0, &words(4096));
    image.close().expect("closes");
    assert_eq!(inspect(&all(&file), &[]).expect("an image").guest[..4096], words(4096));

    let mut bytes = format.bytes();
    let place = bytes.windows(4).position(|part| part == 0x0537_be77u32.to_be_bytes()).expect("an extension");
    bytes[place + 8..place + 16].fill(0);
    let file = storage(bytes.clone());
    let mut image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    let refused = block_on(image.alone(|req, control| async move { control.write_crypto(&req, 4, &[9; 8]).await }));
    assert_eq!(refused.expect_err("refused").kind(), IoErrorKind::BadImage);
    image.close().expect("closes");
    assert_eq!(file.bytes(0, 32), bytes[..32]);
}

// Scenario: lengths that are no whole sectors, as no tool of the field makes them.
#[test]
fn trunc_1_a_disk_may_end_within_a_sector() {
    let thread = io_thread(true);
    for format in formats() {
        let size = 100_000 + 77;
        let file = storage(Format { size, ..format }.bytes());
        let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        image.write(99_000, &vec![5; (size - 99_000) as usize]);
        image.write(size - 1, &[6]);
        let read = image.read(98_000, (size - 98_000) as usize);
        assert!(read[..1000].iter().all(|byte| *byte == 0) && read[1000..2076].iter().all(|byte| *byte == 5));
        assert_eq!(read[2076], 6);
        block_on(image.root.truncate(99_501, Preallocation::Off)).expect("shorter");
        block_on(image.root.truncate(300_000, Preallocation::Off)).expect("longer");
        let read = image.read(99_000, 201_000);
        assert!(read[..501].iter().all(|byte| *byte == 5) && read[501..].iter().all(|byte| *byte == 0), "{format:?}");
        image.close().expect("closes");
        let report = inspect(&all(&file), &[]).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert!(report.guest[99_000..] == read);
    }
}
