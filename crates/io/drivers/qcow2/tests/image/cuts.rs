//! Power cuts that once left something wrong, each at its place and without chance.

use crate::bed::{Image, open, storage};
use block_common::Preallocation;
use block_io::IoThread;
use block_qcow2::{NewSnapshot, Qcow2Options};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect_torn};
use block_testkit::{MemOpKind, MemStorage, Rng, Verdict};
use std::sync::{Arc, Mutex, PoisonError};

const DISK: u64 = 1 << 20;

fn plain(thread: &IoThread, file: &MemStorage) -> Image {
    open(thread, file, None, Qcow2Options::default()).expect("opens")
}

/// What may be left when the power fails before any of the requests that `work` makes.
fn cuts(file: &MemStorage, work: impl FnOnce()) -> Vec<Vec<u8>> {
    let found: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let (all, asked, mut rng) = (found.clone(), file.clone(), Rng::new(1));
    file.set_script(move |op| {
        if op.kind != MemOpKind::Read {
            let images = [0, 50, 100].map(|keep| asked.power_cut(|_, _| rng.chance(keep)));
            all.lock().unwrap_or_else(PoisonError::into_inner).extend(images);
        }
        Verdict::Serve
    });
    work();
    file.clear_script();
    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(found.len() > 5, "only {} images", found.len());
    std::mem::take(&mut found)
}

// Scenario: the power fails while a snapshot is deleted, or applied. No entry says that it alone has a cluster that is counted twice: whoever believes it
// writes to what another one has.
#[test]
fn qcow2_7_a_cut_while_snapshots_change_leaves_no_flag_without_its_count() {
    let thread = io_thread(false);
    for applies in [false, true] {
        let file = storage(Format { cluster_bits: 12, ..Format::new(DISK) }.bytes());
        let mut image = plain(&thread, &file);
        image.write(0, &[1; 40_000]);
        let new = NewSnapshot { name: b"a".to_vec(), ..NewSnapshot::default() };
        let taken = image.alone(|req, control| async move { control.create_snapshot(&req, new).await });
        block_on(taken).expect("there is room");
        image.write(8192, &[2; 8192]);
        let images = cuts(&file, || {
            let changed = image.alone(|req, control| async move {
                if applies {
                    control.apply_snapshot(&req, b"a").await
                } else {
                    control.delete_snapshot(&req, b"a").await
                }
            });
            block_on(changed).expect("it is there");
        });
        for (nth, bytes) in images.into_iter().enumerate() {
            inspect_torn(&bytes, &[]).unwrap_or_else(|error| panic!("applies: {applies}, image {nth}: {error}"));
        }
        image.close().expect("closes");
    }
}

// Scenario: a disk is shortened within a cluster, flushed, lengthened, and the power fails. What came into view is zero, whatever was there before.
#[test]
fn trunc_1_a_cut_while_a_disk_grows_shows_nothing_that_was_cut_off() {
    let thread = io_thread(false);
    for is_zeroed in [false, true] {
        let file = storage(Format::new(DISK).bytes());
        let image = plain(&thread, &file);
        let short = DISK - 40_960;
        image.write(DISK - 65536, &[1; 65536]);
        block_on(image.root.truncate(short, Preallocation::Off)).expect("shortened");
        block_on(image.root.flush()).expect("flushed");
        if is_zeroed {
            // Zero it is already, but only in memory.
            let flags = block_common::RequestFlags::MAY_UNMAP;
            block_on(image.root.zero(DISK - 65536, short - (DISK - 65536), flags)).expect("zeroed");
        }
        let grow = || block_on(image.root.truncate(DISK, Preallocation::Off)).expect("lengthened");
        for (nth, bytes) in cuts(&file, || {
            grow();
            block_on(image.root.flush()).expect("flushed");
        })
        .into_iter()
        .enumerate()
        {
            let report = inspect_torn(&bytes, &[]).expect("an image");
            let seen = report.guest.get(short as usize..).unwrap_or_default();
            assert!(seen.iter().all(|byte| *byte == 0), "zeroed: {is_zeroed}, image {nth}: old data is seen");
        }
        image.close().expect("closes");
    }
}

// Scenario: clusters are allocated until blocks of counts are full, and the table of them, too; flushes come now and then. The table names no block before that
// is on the disk, and nothing is named that no block counts.
#[test]
fn qcow2_1_a_cut_while_blocks_of_counts_are_made_leaves_everything_counted() {
    let thread = io_thread(false);
    let file = storage(Format { cluster_bits: 9, refcount_order: 6, ..Format::new(4 << 20) }.bytes());
    let image = plain(&thread, &file);
    let byte = |cluster: usize| (cluster % 251) as u8 + 1;
    let write = |clusters: std::ops::Range<usize>| {
        let data: Vec<u8> = clusters.clone().flat_map(|cluster| [byte(cluster); 512]).collect();
        image.write(clusters.start as u64 * 512, &data);
    };
    write(0..3700);
    block_on(image.root.flush()).expect("flushed");
    let images = cuts(&file, || {
        for round in 0..3 {
            (0..12).map(|n| 3700 + (round * 12 + n) * 16).for_each(|first| write(first..first + 16));
            block_on(image.root.flush()).expect("flushed");
        }
    });
    for (nth, bytes) in images.into_iter().enumerate() {
        let report = inspect_torn(&bytes, &[]).unwrap_or_else(|error| panic!("image {nth}: {error}"));
        let is_fine = |(at, sector): (usize, &[u8])| sector.iter().all(|b| at >= 3700 && *b == 0 || *b == byte(at));
        assert!(report.guest.chunks(512).enumerate().all(is_fine), "image {nth}");
    }
    image.close().expect("closes");
    let report = block_testkit::qcow2::inspect(&file.bytes(0, file.len() as usize), &[]).expect("an image");
    assert_eq!(report.leaks, 0);
}
