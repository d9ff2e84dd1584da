//! The rules of the format, one by one.

use crate::bed::{Image, NONE, buf, open, open_for, storage};
use block_common::{AlignedBuf, IoError, IoErrorKind, RequestFlags};
use block_io::IoThread;
use block_qcow2::{Header, Qcow2Options, Version};
use block_qcow2_format::{IncompatibleFeatures, RefcountBits};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};
use block_testkit::{MemOpKind, MemStorage, Verdict};

const CLUSTER: u64 = 1 << 16;
/// Where [`Format`] puts its block of counts, and where the first L2 table and the first data come to lie.
const BLOCK: u64 = 2 * CLUSTER;
const TABLE: u64 = 4 * CLUSTER;
const DATA: u64 = 5 * CLUSTER;

fn plain(thread: &IoThread, file: &MemStorage) -> Image {
    open(thread, file, None, Qcow2Options::default()).expect("opens")
}

/// An image with one cluster of ones, with `change` made to its bytes.
fn changed(thread: &IoThread, change: impl FnOnce(&mut Vec<u8>)) -> MemStorage {
    let file = storage(Format::new(8 << 20).bytes());
    let image = plain(thread, &file);
    image.write(0, &[1; CLUSTER as usize]);
    image.close().expect("closes");
    let mut bytes = file.bytes(0, file.len() as usize);
    change(&mut bytes);
    storage(bytes)
}

fn put(bytes: &mut [u8], at: u64, number: u64) {
    bytes[at as usize..at as usize + 8].copy_from_slice(&number.to_be_bytes());
}

fn set_count(bytes: &mut [u8], cluster: u64, count: u64) {
    RefcountBits::DEFAULT.set(&mut bytes[BLOCK as usize..], cluster as usize, count);
}

fn header(file: &MemStorage) -> Header {
    Header::parse(&file.bytes(0, CLUSTER as usize)).expect("a header")
}

// Scenario: a cluster and its table belong to a snapshot, too. What is written goes elsewhere, and what was there stays.
#[test]
fn qcow2_7_a_cluster_that_others_have_is_not_overwritten() {
    let thread = io_thread(true);
    for (table_is_shared, data_is_shared) in [(true, true), (false, true)] {
        let file = changed(&thread, |bytes| {
            if table_is_shared {
                put(bytes, 3 * CLUSTER, TABLE);
                set_count(bytes, 4, 2);
            }
            if data_is_shared {
                put(bytes, TABLE, DATA);
                set_count(bytes, 5, 2);
            }
        });
        let before = file.bytes(TABLE, CLUSTER as usize);
        let image = plain(&thread, &file);
        image.write(512, &[2; 512]);
        block_on(image.root.write(1024, buf(&[3; 512]), RequestFlags::FUA)).0.expect("written");
        let now = image.read(0, 2048);
        assert_eq!((now[511], now[512], now[1024], now[1536]), (1, 2, 3, 1));
        image.close().expect("closes");
        assert_eq!(file.bytes(DATA, CLUSTER as usize), [1; CLUSTER as usize]);
        assert!(!table_is_shared || file.bytes(TABLE, CLUSTER as usize) == before, "the table has changed");
        // The other's uses are none that the inspector knows.
        let report = inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
        assert_eq!(report.leaks, 1 + u64::from(table_is_shared));
    }
}

// Scenario: the counts say that an L2 table is free. It is not handed out; the image is marked, and nothing is written any more.
#[test]
fn qcow2_8_metadata_is_never_handed_out() {
    let thread = io_thread(true);
    let file = changed(&thread, |bytes| set_count(bytes, 4, 0));
    let image = plain(&thread, &file);
    let refused = block_on(image.root.write(4 * CLUSTER, buf(&[2; 512]), NONE)).0.expect_err("refused");
    assert_eq!(refused.kind(), IoErrorKind::BadImage);
    assert!(header(&file).incompatible.contains(IncompatibleFeatures::CORRUPT));
    // Rule qcow2-5: in place or not.
    file.clear_log();
    for offset in [0, 4 * CLUSTER] {
        let refused = block_on(image.root.write(offset, buf(&[2; 512]), NONE)).0.expect_err("refused");
        assert_eq!(refused.kind(), IoErrorKind::BadImage);
    }
    assert_eq!(image.read(0, 512), [1; 512]);
    assert_eq!(file.count(MemOpKind::Write), 0);
    image.close().expect("closes");
    assert_eq!(file.count(MemOpKind::Write), 0);
}

// Scenario: zeroes are acknowledged, and then the image is found corrupt. Its tables stay as they are on the disk, and whoever flushes or
// closes is told.
#[test]
fn qcow2_5_what_a_corrupt_image_has_not_stored_is_reported() {
    let thread = io_thread(true);
    let file = changed(&thread, |bytes| set_count(bytes, 4, 0));
    let image = plain(&thread, &file);
    block_on(image.root.zero(0, CLUSTER, NONE)).expect("acknowledged");
    let refused = block_on(image.root.write(4 * CLUSTER, buf(&[2; 512]), NONE)).0.expect_err("refused");
    assert_eq!(refused.kind(), IoErrorKind::BadImage);
    file.clear_log();
    let told = block_on(image.root.flush()).expect_err("not stored");
    assert_eq!(told.kind(), IoErrorKind::BadImage);
    assert!(image.close().is_err());
    assert_eq!(file.count(MemOpKind::Write), 0);
}

// Scenario: counts are lazy, and the process is killed. The image says that they are not right before any table needs them; who opens it for writing
// repairs them, and who only reads does not care. Closed in order, it says nothing.
#[test]
fn lazy_counts_are_repaired_by_who_opens_the_image_next() {
    let thread = io_thread(true);
    let options = Qcow2Options { lazy_refcounts: Some(true), ..Qcow2Options::default() };
    let file = changed(&thread, |_| {});
    let is_dirty = |bytes: &[u8]| {
        let header = Header::parse(&bytes[..CLUSTER as usize]).expect("a header");
        header.incompatible.contains(IncompatibleFeatures::DIRTY)
    };
    let image = open(&thread, &file, None, options).expect("opens");
    image.write(0, &[2; 512]);
    block_on(image.root.flush()).expect("flushed");
    assert!(!is_dirty(&file.bytes(0, file.len() as usize)), "in place: nothing is counted");
    file.clear_log();
    image.write(4 * CLUSTER, &[3; 512]);
    block_on(image.root.flush()).expect("flushed");
    let places: Vec<_> =
        file.log().into_iter().filter(|op| op.op.kind == MemOpKind::Write).map(|op| op.op.offset).collect();
    assert!(!places.contains(&BLOCK), "counts were written: {places:x?}");
    let cut = file.power_cut(|_, _| false);
    assert!(is_dirty(&cut));
    assert!(inspect(&cut, &[]).is_err(), "counts are too low");
    image.close().expect("closes");
    let closed = file.bytes(0, file.len() as usize);
    assert!(!is_dirty(&closed));
    assert_eq!(inspect(&closed, &[]).expect("an image").leaks, 0);
    let file = storage(cut);
    let reader = open_for(&thread, &file, None, options, true).expect("opens");
    assert_eq!(reader.read(4 * CLUSTER, 512), [3; 512]);
    reader.close().expect("closes");
    assert!(is_dirty(&file.bytes(0, file.len() as usize)));
    let image = open(&thread, &file, None, options).expect("opens");
    let repaired = inspect(&file.bytes(0, file.len() as usize), &[]).expect("repaired");
    assert_eq!(repaired.leaks, 0);
    image.write(5 * CLUSTER, &[4; 512]);
    assert_eq!((image.read(4 * CLUSTER, 512), image.read(0, 512)), (vec![3; 512], vec![2; 512]));
    image.close().expect("closes");
    assert_eq!(inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image").leaks, 0);
    let old = storage(Format { version: Version::V2, ..Format::new(8 << 20) }.bytes());
    let refused = open(&thread, &old, None, options).err();
    assert_eq!(
        refused.as_deref(),
        Some("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
    );
}

#[test]
fn qcow2_5_an_image_that_is_marked_corrupt_is_only_read() {
    let thread = io_thread(true);
    let file = changed(&thread, |bytes| put(bytes, 72, 2));
    let refused = open(&thread, &file, None, Qcow2Options::default()).err();
    assert_eq!(refused.as_deref(), Some("qcow2: Image is corrupt; cannot be opened read/write"));
    let image = open_for(&thread, &file, None, Qcow2Options::default(), true).expect("opens");
    assert_eq!(image.read(0, 512), [1; 512]);
    image.close().expect("closes");
}

#[test]
fn qcow2_9_unknown_autoclear_features_are_cleared_by_who_writes() {
    let thread = io_thread(true);
    let file = changed(&thread, |bytes| {
        put(bytes, 80, 1 << 40);
        put(bytes, 88, 1 << 7);
    });
    open_for(&thread, &file, None, Qcow2Options::default(), true).expect("opens").close().expect("closes");
    assert_eq!(header(&file).autoclear.bits(), 1 << 7);
    plain(&thread, &file).close().expect("closes");
    assert_eq!((header(&file).autoclear.bits(), header(&file).compatible.bits()), (0, 1 << 40));
}

// Scenario: a read is on its way to a cluster that is discarded meanwhile, flushed, and would be the next to be used. It must not see what is
// written then.
#[test]
fn qcow2_3_a_read_on_its_way_never_sees_another_clusters_data() {
    let thread = io_thread(true);
    let file = changed(&thread, |_| {});
    let image = plain(&thread, &file);
    image.read(0, 512);
    file.set_script(|op| if op.kind == MemOpKind::Read && op.offset == DATA { Verdict::Hold } else { Verdict::Serve });
    let root = image.root.clone();
    let reading = Box::pin(thread.handle().run(async move {
        let (result, buf) = root.read(0, AlignedBuf::zeroed(512, 4096).into_io()).await;
        result.map(|()| buf.expect("the buffer").to_aligned(1).to_vec())
    }));
    block_on(file.wait_held(1));
    block_on(image.root.discard(0, CLUSTER)).expect("discarded");
    for i in 1..20 {
        block_on(image.root.flush()).expect("flushed");
        image.write(i * CLUSTER, &[9; CLUSTER as usize]);
    }
    file.release_all();
    assert_eq!(block_on(reading).expect("runs"), Ok(vec![1; 512]));
    // Once it is over, the cluster is used again.
    block_on(image.root.discard(CLUSTER, CLUSTER)).expect("discarded");
    for _ in 0..3 {
        block_on(image.root.flush()).expect("flushed");
        image.write(30 * CLUSTER, &[8; 512]);
        block_on(image.root.discard(30 * CLUSTER, CLUSTER)).expect("discarded");
    }
    image.write(40 * CLUSTER, &[9; 512]);
    image.close().expect("closes");
    assert_eq!(inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image").leaks, 0);
}

// Scenario: data cannot be written, once where there is a table and once where there is none yet.
#[test]
fn qcow2_4_a_write_that_fails_gives_its_clusters_back() {
    let thread = io_thread(true);
    let file = changed(&thread, |_| {});
    let image = plain(&thread, &file);
    image.read(0, 512);
    file.set_script(|op| match op.kind {
        MemOpKind::Write if op.offset > DATA => Verdict::Fail(IoError::host(28)),
        _ => Verdict::Serve,
    });
    for offset in [CLUSTER, 2 * CLUSTER + 512] {
        for packed in [NONE, RequestFlags::WRITE_COMPRESSED] {
            let offset = if packed.is_empty() { offset } else { 8 * CLUSTER };
            let refused = block_on(image.root.write(offset, buf(&[2; CLUSTER as usize]), packed)).0;
            assert_eq!(refused, Err(IoError::host(28)));
        }
    }
    file.clear_script();
    // The next one gets them.
    let end = file.len().next_multiple_of(CLUSTER);
    image.write(CLUSTER, &[2; CLUSTER as usize]);
    assert_eq!(file.len(), end + CLUSTER);
    image.close().expect("closes");
    assert_eq!(inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image").leaks, 0);
}

// Scenario: a cluster was freed, and the flush that takes this to the disk is under way. It is not free yet: the table on the disk still names it.
#[test]
fn qcow2_2_what_was_freed_is_not_free_during_the_flush() {
    let thread = io_thread(true);
    let file = changed(&thread, |_| {});
    let image = plain(&thread, &file);
    image.write(CLUSTER, &[2; 512]);
    block_on(image.root.discard(0, CLUSTER)).expect("discarded");
    file.hold(Some(MemOpKind::Flush));
    let root = image.root.clone();
    let flushing = Box::pin(thread.handle().run(async move { root.flush().await }));
    block_on(file.wait_held(1));
    image.write(2 * CLUSTER, &[9; CLUSTER as usize]);
    let report = inspect(&file.power_cut(|_, _| true), &[]).expect("an image");
    assert_eq!(report.guest[..CLUSTER as usize], [1; CLUSTER as usize]);
    file.clear_script();
    file.release_all();
    block_on(flushing).expect("the thread lives").expect("flushed");
    image.close().expect("closes");
}

// Scenario: clusters are discarded and written for a long time. The file does not grow.
#[test]
fn qcow2_2_what_was_freed_is_used_again_after_a_flush_and_not_before() {
    let thread = io_thread(true);
    let file = changed(&thread, |_| {});
    let image = plain(&thread, &file);
    let before = file.len();
    // Not before: the table on the disk names it.
    block_on(image.root.discard(0, CLUSTER)).expect("discarded");
    image.write(CLUSTER, &[2; CLUSTER as usize]);
    let report = inspect(&file.power_cut(|_, _| true), &[]).expect("an image");
    assert_eq!(report.guest[..CLUSTER as usize], [1; CLUSTER as usize]);
    for _ in 0..50 {
        block_on(image.root.discard(CLUSTER, CLUSTER)).expect("discarded");
        block_on(image.root.flush()).expect("flushed");
        image.write(CLUSTER, &[3; CLUSTER as usize]);
        block_on(image.root.flush()).expect("flushed");
    }
    image.close().expect("closes");
    assert!(file.len() <= before + 6 * CLUSTER, "the file has grown to {:#x}", file.len());
}

/// An image whose `blocks` blocks of counts are one and the same, which says that everything is in use, but for that numbered `hole`, which it has not.
fn all_used(cluster_bits: u32, blocks: usize, hole: Option<usize>) -> MemStorage {
    let size = 1u64 << cluster_bits;
    let mut bytes = Format { cluster_bits, ..Format::new(1 << 20) }.bytes();
    bytes.resize(bytes.len().next_multiple_of(size as usize), 0);
    let block = bytes.len() as u64;
    bytes.extend([0, 1].repeat(size as usize / 2));
    let table = bytes.len() as u64;
    let entry = |number| if hole == Some(number) { 0 } else { block };
    bytes.extend((0..blocks).flat_map(|number| entry(number).to_be_bytes()));
    put(&mut bytes, 48, table);
    bytes[56..60].copy_from_slice(&((blocks as u64 * 8 / size) as u32).to_be_bytes());
    storage(bytes)
}

// Scenario: the counts call everything used, up to the end of a table of a thousand blocks with one hole. It takes a few requests to find that, and
// later ones find what was left out before.
#[test]
fn trust_3_who_looks_for_a_free_cluster_reads_little() {
    let thread = io_thread(false);
    let file = all_used(9, 1024, Some(600));
    let image = plain(&thread, &file);
    for round in 0..20 {
        file.clear_log();
        image.write(round * 1024, &[round as u8 + 1; 1024]);
        let reads = file.count(MemOpKind::Read);
        // A table, and data: each looks for itself.
        assert!(reads < if round < 2 { 2 * 264 } else { 16 }, "{reads} reads");
    }
    (0..20).for_each(|round| assert_eq!(image.read(round * 1024, 1024), [round as u8 + 1; 1024]));
    image.close().expect("closes");
}

// Scenario: there is no hole, and what lies behind the table's reach is more than the host has.
#[test]
fn trust_3_an_image_that_calls_everything_used_is_full_soon() {
    let thread = io_thread(false);
    let file = all_used(16, 1 << 17, None);
    let image = plain(&thread, &file);
    file.set_script(|op| match op.kind != MemOpKind::Read && op.offset > 1 << 30 {
        true => Verdict::Fail(IoError::host(28)),
        false => Verdict::Serve,
    });
    for _ in 0..3 {
        file.clear_log();
        let refused = block_on(image.root.write(0, buf(&[1; 512]), NONE)).0.expect_err("there is no room");
        assert_eq!(refused, IoError::host(28));
        assert!(file.log().len() < 300, "{} requests", file.log().len());
    }
}

// Scenario: a block of counts is on its way to the disk, and there is no room for it in memory. Who asks for one of its counts meanwhile is not told what
// the disk has said before.
#[test]
fn qcow2_1_a_block_of_counts_stays_in_memory_until_it_is_written() {
    let thread = io_thread(true);
    let cluster = 1024;
    let file = storage(Format { cluster_bits: 10, refcount_order: 6, ..Format::new(4 << 20) }.bytes());
    let options = Qcow2Options { refcount_cache_size: Some(0), ..Qcow2Options::default() };
    let image = open(&thread, &file, None, options).expect("opens");
    let pack = |offset: u64| {
        let data = buf(&[7; 1024]);
        block_on(image.root.write(offset, data, RequestFlags::WRITE_COMPRESSED)).0.expect("written");
    };
    // The first block's last clusters are taken, too: nobody changes it meanwhile.
    pack(200 << 10);
    image.write(0, &[1; 127 << 10]);
    file.set_script(move |op| match op.kind == MemOpKind::Write && op.offset == 2 * cluster {
        true => Verdict::Hold,
        false => Verdict::Serve,
    });
    let root = image.root.clone();
    let flushing = thread.handle().run(async move { root.flush().await });
    block_on(file.wait_held(1));
    // Counted by more blocks than there is room for.
    image.write(1 << 20, &[2; 700 << 10]);
    // Compressed data goes on where the last one ended, which the first block counts.
    pack(300 << 10);
    file.release_all();
    block_on(flushing).expect("the thread lives").expect("flushed");
    block_on(image.root.discard(0, 100 << 10)).expect("discarded");
    for byte in 3..6 {
        // A flush with nothing before it would be none.
        image.write(1 << 20, &[byte; 512]);
        block_on(image.root.flush()).expect("flushed");
    }
    image.write(0, &[3; 100 << 10]);
    image.close().expect("closes");
    let report = inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
    assert_eq!((report.leaks, report.guest[0], report.guest[1 << 20]), (0, 3, 5));
}

// Scenario: a disk of 1 TiB. Opening it reads the header, the L1 table and the table of reference counts, and nothing else.
#[test]
fn opening_reads_only_what_it_must() {
    let thread = io_thread(false);
    let file = storage(Format::new(1 << 40).bytes());
    plain(&thread, &file).close().expect("closes");
    let log = file.log();
    let read: u64 = log.iter().filter(|record| record.op.kind == MemOpKind::Read).map(|record| record.op.len).sum();
    let l1 = u64::from(header(&file).l1_size) * 8;
    assert!(read <= 3 * CLUSTER + l1, "{read} bytes");
}
