//! Rule qcow2-8, kind by kind: a damaged image says that something else lies where there is metadata. What is checked is not overwritten, and the image is
//! marked; what is not checked is.

use crate::bed::{Image, NONE, buf, open, storage};
use block_common::{IoErrorKind, RequestFlags};
use block_io::{IoThread, KeptBitmap, NodeBitmap};
use block_qcow2::{Header, MetadataKind, NewSnapshot, OverlapChecks, Qcow2Options};
use block_qcow2_format::{IncompatibleFeatures, RefcountBits, Snapshot};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::Format;
use block_testkit::{MemOpKind, MemStorage};
use std::sync::Arc;

const CLUSTER: u64 = 1 << 16;
const DISK: u64 = 8 << 20;

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: u64, number: u64) {
    bytes[at as usize..][..8].copy_from_slice(&number.to_be_bytes());
}

fn header(bytes: &[u8]) -> Header {
    Header::parse(&bytes[..CLUSTER as usize]).expect("a header")
}

fn options(checks: OverlapChecks) -> Qcow2Options {
    Qcow2Options { overlap_checks: checks, ..Qcow2Options::default() }
}

fn only(kind: MetadataKind) -> OverlapChecks {
    OverlapChecks::NONE.with(kind, true)
}

fn all_but(kind: MetadataKind) -> OverlapChecks {
    OverlapChecks::ALL.with(kind, false)
}

/// An image with everything: two clusters of data, a snapshot with tables of its own, a bitmap.
fn whole(thread: &IoThread) -> Vec<u8> {
    let file = storage(Format::new(DISK).bytes());
    let image = open(thread, &file, None, Qcow2Options::default()).expect("opens");
    image.write(0, &[1; CLUSTER as usize]);
    let bits = Arc::new(NodeBitmap::try_new(DISK, 65536).expect("it is small"));
    let kept = KeptBitmap { name: "b".into(), granularity: 65536, recording: true, bits };
    image.control.keep_bitmaps(&[kept]).expect("there is room");
    image.close().expect("closes");
    let new = NewSnapshot { name: b"s".to_vec(), ..NewSnapshot::default() };
    crate::bed::alone(thread, &file, |req, control| async move {
        control.create_snapshot(&req, new).await.expect("there is room");
    });
    let image = open(thread, &file, None, Qcow2Options::default()).expect("opens");
    image.write(0, &[2; 2 * CLUSTER as usize]);
    image.close().expect("closes");
    let mut bytes = file.bytes(0, file.len() as usize);
    bytes.resize(bytes.len().next_multiple_of(CLUSTER as usize), 0);
    bytes
}

/// Where metadata of a kind lies.
fn place(bytes: &[u8], kind: MetadataKind) -> u64 {
    let header = header(bytes);
    let offset = |raw: u64| raw & ((1 << 56) - 1) & !511;
    let (snapshots, _) = Snapshot::parse_table(&bytes[header.snapshots_offset as usize..], 1).expect("a snapshot");
    match kind {
        MetadataKind::MainHeader => 0,
        MetadataKind::ActiveL1 => header.l1_offset,
        MetadataKind::ActiveL2 => offset(word(bytes, header.l1_offset)),
        MetadataKind::RefcountTable => header.refcount_table_offset,
        MetadataKind::RefcountBlock => offset(word(bytes, header.refcount_table_offset)),
        MetadataKind::SnapshotTable => header.snapshots_offset,
        MetadataKind::InactiveL1 => snapshots[0].l1_offset,
        MetadataKind::InactiveL2 => offset(word(bytes, snapshots[0].l1_offset)),
        MetadataKind::BitmapDirectory => header.bitmaps.expect("a bitmap").directory_offset,
    }
}

fn is_marked(file: &MemStorage) -> bool {
    header(&file.bytes(0, CLUSTER as usize)).incompatible.contains(IncompatibleFeatures::CORRUPT)
}

/// A write to a place is refused, and the image marked, with these checks; without them it is written.
fn check(
    thread: &IoThread,
    bytes: &[u8],
    (at, write): (u64, &dyn Fn(&Image) -> Result<(), block_common::IoError>),
    kind: MetadataKind,
    checks: &[(OverlapChecks, bool)],
) {
    for (checks, refused) in checks {
        let file = storage(bytes.to_vec());
        let before = file.bytes(at, CLUSTER as usize);
        let image = open(thread, &file, None, options(*checks)).expect("opens");
        let result = write(&image);
        if *refused {
            let kind_of_error = result.err().map(|error| error.kind());
            assert_eq!(kind_of_error, Some(IoErrorKind::BadImage), "{kind:?}, {checks:?}");
            assert!(is_marked(&file), "{kind:?}");
            let changed = (0..CLUSTER as usize).filter(|i| file.bytes(at, CLUSTER as usize)[*i] != before[*i]).count();
            // In the header the mark itself, in the bitmaps' directory that they are in use.
            assert!(changed <= 1, "{kind:?}: {changed} bytes");
            file.clear_log();
            block_on(image.root.write(4 << 20, buf(&[9; 512]), NONE)).0.expect_err("nothing is written any more");
            assert_eq!(file.count(MemOpKind::Write), 0);
        } else {
            assert_eq!((result, is_marked(&file)), (Ok(()), false), "{kind:?}, {checks:?}");
        }
        let _ = image.close();
    }
}

// Scenario: an entry says that a guest's data lies where there is metadata, and that it may be overwritten. In place, with FUA or without, and as a part of a
// cluster of zeroes.
#[test]
fn qcow2_8_data_in_place_of_metadata_is_not_written() {
    let thread = io_thread(true);
    let bytes = whole(&thread);
    for kind in MetadataKind::EACH.into_iter().filter(|kind| *kind != MetadataKind::MainHeader) {
        let at = place(&bytes, kind);
        for zero in [0, 1] {
            let mut bytes = bytes.clone();
            let table = place(&bytes, MetadataKind::ActiveL2);
            put(&mut bytes, table + 8, 1 << 63 | at | zero);
            for flags in [NONE, RequestFlags::FUA] {
                let write = |image: &Image| {
                    // The table is in memory: the fast way would be open.
                    image.read(0, 512);
                    block_on(image.root.write(CLUSTER, buf(&[9; 512]), flags)).0
                };
                // What overwrites tables that are in use would fail in another way.
                let is_harmless = !flags.contains(RequestFlags::FUA) && zero == 0;
                let off = [(all_but(kind), false), (OverlapChecks::NONE, false)];
                let mut checks = vec![(only(kind), true), (OverlapChecks::ALL, true)];
                checks.extend(off.into_iter().filter(|_| is_harmless));
                check(&thread, &bytes, (at, &write), kind, &checks);
            }
        }
    }
}

// Scenario: the counts say that metadata is free. It is not handed out.
#[test]
fn qcow2_8_metadata_is_not_handed_out_kind_by_kind() {
    let thread = io_thread(true);
    let bytes = whole(&thread);
    for kind in MetadataKind::EACH {
        let at = place(&bytes, kind);
        let mut bytes = bytes.clone();
        let block = place(&bytes, MetadataKind::RefcountBlock);
        let all = bytes.len() / CLUSTER as usize;
        let counts = &mut bytes[block as usize..];
        // It is the only one.
        for cluster in (0..all).filter(|cluster| RefcountBits::DEFAULT.get(counts, *cluster) == 0).collect::<Vec<_>>() {
            RefcountBits::DEFAULT.set(counts, cluster, 1);
        }
        RefcountBits::DEFAULT.set(counts, (at / CLUSTER) as usize, 0);
        for packed in [NONE, RequestFlags::WRITE_COMPRESSED] {
            let write = |image: &Image| block_on(image.root.write(2 << 20, buf(&[9; CLUSTER as usize]), packed)).0;
            // Nobody can have cluster 0, whatever is checked.
            let is_free = kind == MetadataKind::MainHeader;
            let checks = [
                (only(kind), true),
                (OverlapChecks::ALL, true),
                (all_but(kind), is_free),
                (OverlapChecks::NONE, is_free),
            ];
            check(&thread, &bytes, (at, &write), kind, &checks);
        }
    }
}

// Scenario: an L1 entry says that an L2 table lies where other metadata does. What is changed in memory does not reach the disk.
#[test]
fn qcow2_8_a_table_in_place_of_other_metadata_is_not_written() {
    let thread = io_thread(true);
    let whole = whole(&thread);
    for kind in MetadataKind::EACH.into_iter().filter(|kind| {
        !matches!(kind, MetadataKind::MainHeader | MetadataKind::ActiveL2 | MetadataKind::BitmapDirectory)
    }) {
        let at = place(&whole, kind);
        let mut bytes = whole.clone();
        // A table of zeroes, as far as this entry of it is concerned: the second half of the cluster.
        let l1 = header(&bytes).l1_offset;
        put(&mut bytes, l1, 1 << 63 | at);
        let write = |image: &Image| {
            block_on(image.root.discard(6 << 20, CLUSTER)).and_then(|()| {
                block_on(image.root.write(6 << 20, buf(&[9; 512]), NONE)).0?;
                block_on(image.root.flush())
            })
        };
        check(&thread, &bytes, (at, &write), kind, &[(only(kind), true), (OverlapChecks::ALL, true)]);
    }
}

// Scenario: blocks of counts that were made since the image was opened are metadata like those from before.
#[test]
fn qcow2_8_new_blocks_of_counts_are_metadata() {
    let thread = io_thread(true);
    let format = Format { cluster_bits: 9, ..Format::new(4 << 20) };
    let file = storage(format.bytes());
    let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    image.write(0, &[1; 1 << 20]);
    image.close().expect("closes");
    let bytes = file.bytes(0, file.len() as usize);
    let blocks = |bytes: &[u8]| {
        let at = Header::parse(&bytes[..512]).expect("a header").refcount_table_offset;
        (0..).map(|i| word(bytes, at + i * 8)).take_while(|block| *block != 0).collect::<Vec<u64>>()
    };
    let old = blocks(&bytes);
    // Where the next ones come to lie.
    let grow = |file: &MemStorage| {
        let image = open(&thread, file, None, Qcow2Options::default()).expect("opens");
        image.write(1 << 20, &[1; 1 << 20]);
        image
    };
    let trial = storage(bytes.clone());
    grow(&trial).close().expect("closes");
    let new = blocks(&trial.bytes(0, trial.len() as usize));
    assert!(new.len() > old.len() + 2, "{old:x?}, {new:x?}");
    // An entry says that a guest's data lies there.
    let mut bytes = bytes;
    let l1 = Header::parse(&bytes[..512]).expect("a header").l1_offset;
    let table = word(&bytes, l1) & !(1 << 63);
    put(&mut bytes, table, 1 << 63 | new[old.len() + 1]);
    let image = grow(&storage(bytes));
    let refused = block_on(image.root.write(0, buf(&[9; 512]), NONE)).0.expect_err("refused");
    assert_eq!(refused.kind(), IoErrorKind::BadImage);
    let _ = image.close();
}

// Scenario: what is checked costs a look into memory. An image with a snapshot is written in place without a request more than the write.
#[test]
fn a_write_in_place_is_one_request() {
    let thread = io_thread(true);
    let file = storage(whole(&thread));
    let image = open(&thread, &file, None, options(OverlapChecks::ALL)).expect("opens");
    image.write(0, &[3; 512]);
    file.clear_log();
    for _ in 0..10 {
        image.write(512, &[4; 512]);
    }
    assert_eq!(file.log().len(), 10);
    image.close().expect("closes");
}
