//! Requests of every kind on every kind of image.

use crate::bed::{NONE, buf, open, open_for, storage};
use block_common::{Errno, IoError, Preallocation, RequestFlags};
use block_qcow2::Qcow2Options;
use block_qcow2_format::{CompressionType, Header, L1Entry, L2Entry, Version};
use block_testkit::MemOpKind;
use block_testkit::bed::{block_on, io_thread};
use block_testkit::conformance::{self, ConformanceOptions};
use block_testkit::model::{self, ModelOptions};
use block_testkit::qcow2::{Format, inspect};

/// One image of each kind.
fn formats(size: u64) -> Vec<Format> {
    let new = Format::new(size);
    vec![
        new,
        Format { version: Version::V2, ..new },
        Format { cluster_bits: 9, ..new },
        Format { cluster_bits: 12, refcount_order: 0, ..new },
        Format { cluster_bits: 12, refcount_order: 6, ..new },
        Format { cluster_bits: 21, ..new },
        Format { cluster_bits: 14, extended: true, ..new },
        Format { cluster_bits: 16, extended: true, compression: CompressionType::Zstd, ..new },
        Format { crypt_method: 2, ..new },
        Format { crypt_method: 2, cluster_bits: 9, ..new },
        Format { crypt_method: 2, cluster_bits: 14, extended: true, ..new },
        Format { crypt_method: 2, cluster_bits: 12, version: Version::V2, ..new },
        Format { crypt_method: 1, cluster_bits: 12, ..new },
    ]
}

#[test]
fn images_of_every_kind_conform() {
    let thread = io_thread(true);
    for format in formats(4 << 20) {
        for backing in [None, Some(vec![0x5a; 700 << 10])] {
            let file = storage(format.bytes());
            let below = backing.clone().map(storage);
            let image = open(&thread, &file, below.as_ref(), Qcow2Options::default()).expect("opens");
            // With a backing file, what a discard of version 2 leaves is that of the backing file.
            conformance::run_everywhere(&image.root, &ConformanceOptions::default());
            image.close().expect("closes");
            let report = inspect(&file.bytes(0, file.len() as usize), &backing.unwrap_or_default());
            assert_eq!(report.unwrap_or_else(|error| panic!("{format:?}: {error}")).leaks, 0, "{format:?}");
        }
    }
}

#[test]
fn a_model_agrees_with_images_of_every_kind() {
    let threads = [io_thread(true), io_thread(true)];
    for format in formats(2 << 20) {
        // Two slices of the smallest kind: they are let go of and read again all the time.
        let options =
            Qcow2Options { l2_cache_size: Some(1024), l2_cache_entry_size: Some(512), ..Qcow2Options::default() };
        let file = storage(format.bytes());
        let image = open(&threads[0], &file, None, options).expect("opens");
        let handles = threads.iter().map(|thread| thread.handle()).collect();
        let load = ModelOptions { threads: handles, len: 2 << 20, ..ModelOptions::default() };
        block_on(model::run(&image.root, load)).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        image.close().expect("closes");
        let report = inspect(&file.bytes(0, file.len() as usize), &[]);
        assert_eq!(report.unwrap_or_else(|error| panic!("{format:?}: {error}")).leaks, 0, "{format:?}");
    }
}

#[test]
fn compressed_clusters_are_written_and_read_and_overwritten() {
    let thread = io_thread(true);
    for format in formats(16 << 20).into_iter().filter(|format| format.crypt_method == 0) {
        let size = 1usize << format.cluster_bits;
        let file = storage(format.bytes());
        let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        let packed = |from: usize| (0..3 * size).map(|i| ((i + from) / 11 % 250) as u8).collect::<Vec<u8>>();
        let (first, second) = (packed(0), packed(77));
        block_on(image.root.write(0, buf(&first), RequestFlags::WRITE_COMPRESSED)).0.expect("written");
        block_on(image.root.write(3 * size as u64, buf(&second), RequestFlags::WRITE_COMPRESSED)).0.expect("written");
        assert!(image.read(0, 6 * size) == [first, second.clone()].concat(), "{format:?}");
        image.write(size as u64 + 100, &[7; 50]);
        let mut now = image.read(0, 6 * size);
        assert_eq!(now[size + 100..size + 150], [7; 50]);
        now[size + 100..size + 150].copy_from_slice(&packed(0)[size + 100..size + 150]);
        assert!(now == [packed(0), second].concat(), "{format:?}: a write around which a cluster was unpacked");
        block_on(image.root.discard(3 * size as u64, 3 * size as u64)).expect("discarded");
        assert_eq!(image.read(3 * size as u64, 3 * size), vec![0; 3 * size]);
        image.close().expect("closes");
        let report =
            inspect(&file.bytes(0, file.len() as usize), &[]).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!((report.leaks, report.compressed), (0, 2), "{format:?}");
    }
}

// Scenario: a run of clusters of which one does not shrink and one was written before; then such a run while the file's writes fail, each in its turn.
#[test]
fn runs_of_compressed_clusters_are_stored_together_and_leave_nothing_behind() {
    let thread = io_thread(true);
    let size = 65536;
    let mut rng = block_testkit::Rng::new(7);
    let noise: Vec<u8> = (0..size).map(|_| rng.below(0..256) as u8).collect();
    let text: Vec<u8> = (0..size).map(|i| (i / 11 % 250) as u8).collect();
    let run = [&text[..], &text, &noise, &text, &text].concat();
    let file = storage(Format::new(4 << 20).bytes());
    let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    image.write(9 * size as u64, &[1; 512]);
    file.clear_log();
    block_on(image.root.write(0, buf(&run), RequestFlags::WRITE_COMPRESSED)).0.expect("written");
    let written = file.log().iter().filter(|record| record.op.kind == MemOpKind::Write).count();
    assert!(written <= 4, "two runs and a cluster, and at most a table: {written} writes");
    assert!(image.read(0, run.len()) == run);
    // Five clusters, of which the last was written: those before it go back.
    let refused = block_on(image.root.write(5 * size as u64, buf(&run), RequestFlags::WRITE_COMPRESSED)).0;
    assert_eq!(refused, Err(IoError::host(Errno::EIO.raw())));
    image.close().expect("closes");
    let report = inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
    assert_eq!((report.leaks, report.compressed, &report.guest[..run.len()]), (0, 6, &run[..]));
    for nth in 1.. {
        let file = storage(Format::new(4 << 20).bytes());
        let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        image.write(9 * size as u64, &[1; 512]);
        file.fail_nth(Some(MemOpKind::Write), nth, IoError::host(Errno::ENOSPC.raw()));
        let result = block_on(image.root.write(0, buf(&run), RequestFlags::WRITE_COMPRESSED)).0;
        file.clear_script();
        image.close().expect("closes");
        let report = inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
        assert_eq!(report.leaks, 0, "write {nth} fails: {result:?}");
        if result.is_ok() {
            assert!(nth > 2, "no write failed");
            break;
        }
    }
}

#[test]
fn trunc_1_what_was_cut_off_does_not_come_back() {
    let thread = io_thread(true);
    for format in formats(1 << 20) {
        let file = storage(format.bytes());
        let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
        image.write(0, &[3; 1 << 20]);
        block_on(image.root.truncate(100 << 9, Preallocation::Off)).expect("shorter");
        block_on(image.root.truncate(40 << 20, Preallocation::Off)).expect("longer");
        assert_eq!(image.root.length(), Ok(40 << 20));
        assert_eq!(image.read(0, 100 << 9), vec![3; 100 << 9]);
        assert!(image.read(100 << 9, 1 << 20).iter().all(|byte| *byte == 0), "{format:?}");
        image.write((40 << 20) - 512, &[4; 512]);
        image.close().expect("closes");
        let report =
            inspect(&file.bytes(0, file.len() as usize), &[]).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!((report.leaks, report.guest.len(), report.guest[(40 << 20) - 1]), (0, 40 << 20, 4), "{format:?}");
    }
}

#[test]
fn flush_2_fua_brings_the_tables_along() {
    let thread = io_thread(true);
    let file = storage(Format::new(8 << 20).bytes());
    let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    // Allocated without FUA, overwritten with it: the second write must not bypass the tables.
    image.write(0, &[1; 512]);
    block_on(image.root.write(0, buf(&[2; 512]), RequestFlags::FUA)).0.expect("written");
    let report = inspect(&file.power_cut(|_, _| false), &[]).expect("an image");
    assert_eq!(report.guest[..512], [2; 512]);
    block_on(image.root.write(0, buf(&[3; 512]), NONE)).0.expect("written");
    image.close().expect("closes");
}

// Scenario: an entry says that its compressed data goes on for longer than it does, over that of several others. All of it is read at once.
#[test]
fn trust_3_compressed_data_may_be_said_to_be_longer_than_it_is() {
    let thread = io_thread(false);
    let (file, size) = (storage(Format::new(1 << 20).bytes()), 65536);
    let image = open(&thread, &file, None, Qcow2Options::default()).expect("opens");
    for cluster in 0..8u8 {
        let data = buf(&vec![cluster + 1; size]);
        block_on(image.root.write(u64::from(cluster) * size as u64, data, RequestFlags::WRITE_COMPRESSED))
            .0
            .expect("written");
    }
    image.close().expect("closes");
    let header = Header::parse(&file.bytes(0, size)).expect("a header");
    let word = |at: u64| u64::from_be_bytes(file.bytes(at, 8).try_into().expect("eight bytes"));
    let table = L1Entry::from_raw(word(header.l1_offset)).table().expect("a table");
    let (offset_bits, _) = L2Entry::compressed_bits(&header.geometry);
    let longer = (word(table) + (100 << offset_bits)).to_be_bytes();
    let mut bytes = file.bytes(0, file.len() as usize);
    bytes[table as usize..table as usize + 8].copy_from_slice(&longer);
    let file = storage(bytes);
    let image = open_for(&thread, &file, None, Qcow2Options::default(), true).expect("opens");
    let read = image.read(0, 8 * size);
    assert!(read.iter().enumerate().all(|(at, byte)| usize::from(*byte) == at / size + 1));
    image.close().expect("closes");
}
