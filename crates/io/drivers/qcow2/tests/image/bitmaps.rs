//! Persistent bitmaps: what is on the disk while an image is open and after it was closed, whatever goes wrong in between.

use crate::bed::{Image, NONE, buf, open, open_for, storage};
use block_common::IoError;
use block_io::{IoThread, KeptBitmap, NodeBitmap};
use block_qcow2::{Qcow2Options, Version};
use block_qcow2_format::{AutoclearFeatures, BitmapFlags, Header};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, Found, inspect};
use block_testkit::{MemStorage, Rng, Verdict};
use std::sync::Arc;

const DISK: u64 = 4 << 20;

fn plain(thread: &IoThread, file: &MemStorage) -> Image {
    open(thread, file, None, Qcow2Options::default()).expect("opens")
}

fn bitmap(name: &str, granularity: u64, recording: bool) -> KeptBitmap {
    let bits = NodeBitmap::try_new(DISK, granularity).expect("it is small");
    KeptBitmap { name: name.into(), granularity, recording, bits: Arc::new(bits) }
}

fn set(bitmap: &KeptBitmap, rng: &mut Rng) {
    let chunks = DISK / bitmap.granularity;
    let mut runs = vec![0..chunks / 3, chunks - 1..chunks];
    for _ in 0..rng.below(0..20) {
        let from = rng.below(0..chunks);
        runs.push(from..from + rng.below(0..chunks / 8 + 1));
    }
    match rng.below(0..4) {
        0 => {}
        1 => bitmap.bits.with(|bits| bits.set_all()),
        _ => runs.into_iter().for_each(|run| bitmap.bits.with(|bits| bits.set_chunks(run))),
    }
}

/// What is to be found of a bitmap.
fn expected(bitmap: &KeptBitmap) -> Found {
    let mut bits = vec![0; (DISK / bitmap.granularity).div_ceil(8) as usize];
    bitmap.bits.with(|now| now.bits_from(0, &mut bits));
    let flags = if bitmap.recording { BitmapFlags::AUTO } else { BitmapFlags::empty() };
    Found { name: bitmap.name.clone(), flags, granularity: bitmap.granularity, bits }
}

fn all(file: &MemStorage) -> Vec<u8> {
    file.bytes(0, file.len() as usize)
}

/// A closed image with some bitmaps.
fn made(thread: &IoThread, format: Format, rng: &mut Rng) -> (MemStorage, Vec<KeptBitmap>) {
    let file = storage(format.bytes());
    let image = plain(thread, &file);
    image.write(1 << 20, &[1; 100_000]);
    let kept = vec![bitmap("a", 512, true), bitmap("another one", 65536, false), bitmap("c", 4096, true)];
    kept.iter().for_each(|bitmap| set(bitmap, rng));
    image.control.keep_bitmaps(&kept).expect("there is room");
    image.close().expect("closes");
    (file, kept)
}

#[test]
fn what_is_kept_is_found_again() {
    let (thread, mut rng) = (io_thread(true), Rng::new(1));
    for (cluster_bits, refcount_order) in [(9, 4), (9, 0), (12, 6), (16, 4), (21, 4)] {
        for _ in 0..4 {
            let format = Format { cluster_bits, refcount_order, ..Format::new(DISK) };
            let (file, kept) = made(&thread, format, &mut rng);
            let report = inspect(&all(&file), &[]).expect("an image");
            assert_eq!(report.leaks, 0, "{format:?}");
            assert!(report.bitmaps == kept.iter().map(expected).collect::<Vec<_>>(), "{format:?}");
            // Once more, with less.
            let image = plain(&thread, &file);
            let mut found = image.control.kept_bitmaps();
            let same = |(found, kept): (&KeptBitmap, &KeptBitmap)| {
                assert!(expected(found) == expected(kept), "{format:?}: {}", kept.name);
            };
            found.iter().zip(&kept).for_each(same);
            drop(found.remove(1));
            set(&found[1], &mut rng);
            image.control.keep_bitmaps(&found).expect("there is room");
            image.close().expect("closes");
            let report = inspect(&all(&file), &[]).expect("an image");
            assert_eq!(report.leaks, 0, "{format:?}");
            assert!(report.bitmaps == found.iter().map(expected).collect::<Vec<_>>(), "{format:?}");
            // Nothing is left of the last one.
            let image = plain(&thread, &file);
            image.control.keep_bitmaps(&[]).expect("nothing to keep");
            image.close().expect("closes");
            let bytes = all(&file);
            let header = Header::parse(&bytes[..1 << cluster_bits]).expect("a header");
            assert_eq!((header.bitmaps, header.autoclear), (None, AutoclearFeatures::empty()));
            let report = inspect(&bytes, &[]).expect("an image");
            assert_eq!((report.leaks, report.bitmaps), (0, Vec::new()), "{format:?}");
        }
    }
}

// Scenario: the process is killed while it has the image open. Whoever opens it next knows that the bits are not what was written; the bitmap
// can only be removed.
#[test]
fn qcow2_6_bitmaps_are_in_use_while_the_image_is_open() {
    let (thread, mut rng) = (io_thread(true), Rng::new(2));
    let (file, kept) = made(&thread, Format::new(DISK), &mut rng);
    let before = inspect(&all(&file), &[]).expect("an image").bitmaps;
    let image = plain(&thread, &file);
    // Nothing was written yet, and nobody asked for a flush.
    let cut = file.power_cut(|_, _| false);
    let found = inspect(&cut, &[]).expect("an image").bitmaps;
    for (found, before) in found.iter().zip(&before) {
        assert_eq!(found.flags, before.flags | BitmapFlags::IN_USE);
        assert_eq!(found.bits, before.bits);
    }
    image.close().expect("closes");
    let file = storage(cut);
    for _ in 0..2 {
        let image = plain(&thread, &file);
        assert!(image.control.kept_bitmaps().iter().all(|bitmap| bitmap.bits.is_lost()));
        image.write(0, &[2; 512]);
        image.close().expect("closes");
        let report = inspect(&all(&file), &[]).expect("an image");
        assert_eq!((report.bitmaps.as_slice(), report.leaks), (found.as_slice(), 0));
    }
    let image = plain(&thread, &file);
    let mut kept_now = image.control.kept_bitmaps();
    drop(kept_now.remove(0));
    kept_now.push(bitmap("a", 512, true));
    image.control.keep_bitmaps(&kept_now).expect("there is room");
    image.close().expect("closes");
    let report = inspect(&all(&file), &[]).expect("an image");
    assert_eq!(report.leaks, 0);
    assert_eq!(report.bitmaps.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["another one", "c", "a"]);
    assert_eq!(report.bitmaps[2].flags, BitmapFlags::AUTO);
    drop(kept);
}

// Scenario: an image is only read.
#[test]
fn qcow2_6_who_only_reads_leaves_bitmaps_alone() {
    let (thread, mut rng) = (io_thread(true), Rng::new(3));
    let (file, kept) = made(&thread, Format::new(DISK), &mut rng);
    let before = all(&file);
    let image = open_for(&thread, &file, None, Qcow2Options::default(), true).expect("opens");
    assert!(image.control.kept_bitmaps().iter().map(expected).eq(kept.iter().map(expected)));
    image.close().expect("closes");
    assert!(all(&file) == before);
}

// Scenario: every request of opening, closing and storing fails in turn. Afterwards the image is valid, and a bitmap has its bits or says that it has not.
#[test]
fn qcow2_6_what_fails_leaves_no_wrong_bits() {
    let thread = io_thread(true);
    for cluster_bits in [9, 16] {
        for errno in [5, 28] {
            for nth in 0.. {
                let mut rng = Rng::new(4);
                let (file, _) = made(&thread, Format { cluster_bits, ..Format::new(DISK) }, &mut rng);
                file.clear_log();
                file.fail_nth(None, nth, IoError::host(errno));
                let opened = open(&thread, &file, None, Qcow2Options::default());
                let mut kept = Vec::new();
                let mut is_well = false;
                if let Ok(image) = opened {
                    kept = image.control.kept_bitmaps();
                    // The guest has written.
                    kept[0].bits.with(|bits| bits.set_chunks(5..6));
                    kept[1].bits.with(|bits| bits.set_all());
                    let written = block_on(image.root.write(5 * 512, buf(&[9; 512]), NONE)).0;
                    is_well = image.close().is_ok() && written.is_ok();
                }
                let is_over = file.log().len() as u64 <= nth;
                file.clear_script();
                let told = |error| panic!("{cluster_bits}, request {nth}: {error}");
                let report = inspect(&all(&file), &[]).unwrap_or_else(told);
                for (found, kept) in report.bitmaps.iter().zip(&kept) {
                    let is_right = *found == expected(kept);
                    assert!(is_right || found.flags.contains(BitmapFlags::IN_USE), "{cluster_bits}, request {nth}");
                    assert!(is_right || !is_well, "{cluster_bits}, request {nth}");
                }
                let image = plain(&thread, &file);
                image.close().expect("closes");
                if is_over {
                    assert!(is_well && nth > 10, "only {nth} requests");
                    break;
                }
            }
        }
    }
}

// Scenario: the power fails at any request of closing, and any sectors of what was not flushed are there.
#[test]
fn qcow2_6_a_power_cut_while_bitmaps_are_stored_leaves_no_wrong_bits() {
    let thread = io_thread(true);
    for cluster_bits in [9, 12] {
        for nth in 1.. {
            let mut rng = Rng::new(100 + nth);
            let (file, _) = made(&thread, Format { cluster_bits, ..Format::new(DISK) }, &mut rng);
            let image = plain(&thread, &file);
            let kept = image.control.kept_bitmaps();
            kept[0].bits.with(|bits| bits.set_chunks(5..6));
            image.write(5 * 512, &[9; 512]);
            let mut left = nth;
            file.set_script(move |_| {
                left = left.saturating_sub(1);
                if left == 0 { Verdict::Hold } else { Verdict::Serve }
            });
            let mut closing = Box::pin(async move { image.close_later().await });
            let mut held = Box::pin(file.wait_held(1));
            let is_over = block_on(std::future::poll_fn(|cx| {
                use std::future::Future;
                use std::task::Poll;
                match closing.as_mut().poll(cx) {
                    Poll::Ready(closed) => {
                        closed.expect("closes");
                        Poll::Ready(true)
                    }
                    Poll::Pending => held.as_mut().poll(cx).map(|_| false),
                }
            }));
            for keep in [0, 30, 70, 100] {
                let bytes = file.power_cut(|_, _| rng.chance(keep));
                let told = |error| panic!("{cluster_bits}, request {nth}, {keep} %: {error}");
                let report = inspect(&bytes, &[]).unwrap_or_else(told);
                assert_eq!(report.bitmaps.len(), kept.len());
                for (found, kept) in report.bitmaps.iter().zip(&kept) {
                    let is_right = *found == expected(kept);
                    assert!(
                        is_right || found.flags.contains(BitmapFlags::IN_USE),
                        "{cluster_bits}, request {nth}, {keep} %: bitmap '{}' has wrong bits",
                        kept.name
                    );
                    assert!(is_right || !is_over);
                }
                let again = storage(bytes);
                plain(&thread, &again).close().expect("closes");
            }
            file.release_all();
            drop(held);
            if is_over {
                assert!(nth > 10, "only {nth} requests");
                break;
            }
            block_on(closing).expect("closes");
        }
    }
}

// Scenario: an old program, which knows nothing of bitmaps, has written to the image, and cleared the bit that says that they are as of the last write.
#[test]
fn qcow2_6_bitmaps_that_others_have_ignored_are_forgotten() {
    let (thread, mut rng) = (io_thread(true), Rng::new(5));
    let (file, _) = made(&thread, Format::new(DISK), &mut rng);
    let mut bytes = all(&file);
    bytes[88..96].fill(0);
    let file = storage(bytes);
    let image = plain(&thread, &file);
    assert!(image.control.kept_bitmaps().is_empty());
    image.control.keep_bitmaps(&[bitmap("new", 65536, true)]).expect("there is room");
    image.close().expect("closes");
    let report = inspect(&all(&file), &[]).expect("an image");
    assert_eq!(report.bitmaps, [expected(&bitmap("new", 65536, true))]);
    assert!(report.leaks > 0, "what the old ones had is found by a check");
}

#[test]
fn an_image_says_which_bitmaps_it_cannot_keep() {
    let thread = io_thread(true);
    let refused = |format: Format, kept: &[KeptBitmap]| {
        let file = storage(format.bytes());
        let image = plain(&thread, &file);
        let told = image.control.keep_bitmaps(kept).expect_err("refused");
        assert!(image.control.kept_bitmaps().is_empty());
        image.close().expect("closes");
        told
    };
    let one = [bitmap("a", 65536, true)];
    let v2 = Format { version: Version::V2, ..Format::new(DISK) };
    assert_eq!(refused(v2, &one), "Cannot store dirty bitmaps in qcow2 v2 files");
    let large = Format { cluster_bits: 16, ..Format::new(1 << 46) };
    let fine = [KeptBitmap { bits: Arc::new(NodeBitmap::lost(512)), ..bitmap("a", 512, true) }];
    let space = "Too much space will be occupied by the bitmap. Use larger granularity";
    assert_eq!(refused(large, &fine), space);
    let many: Vec<_> = (0..65536).map(|number| bitmap(&number.to_string(), 1 << 31, true)).collect();
    assert_eq!(refused(Format::new(DISK), &many), "Maximum number of persistent bitmaps is already reached");
    let names: Vec<_> = (0..65000).map(|number| bitmap(&format!("{number:01023}"), 1 << 31, true)).collect();
    assert_eq!(refused(Format::new(DISK), &names), "Not enough space in the bitmap directory");
}

/// Scenario: the directory or a table makes no sense.
#[test]
fn trust_3_bitmaps_that_make_no_sense_are_refused() {
    let (thread, mut rng) = (io_thread(true), Rng::new(6));
    let (file, _) = made(&thread, Format::new(DISK), &mut rng);
    let bytes = all(&file);
    let list = Header::parse(&bytes[..65536]).expect("a header").bitmaps.expect("bitmaps").directory_offset as usize;
    let table = u64::from_be_bytes(bytes[list..list + 8].try_into().expect("eight")) as usize;
    let refused = |change: &dyn Fn(&mut [u8])| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        let before = bytes.clone();
        let file = storage(bytes);
        let told = open(&thread, &file, None, Qcow2Options::default()).err().expect("refused");
        assert!(all(&file) == before, "nothing was written");
        told
    };
    let put = |bytes: &mut [u8], at: usize, number: u64| bytes[at..at + 8].copy_from_slice(&number.to_be_bytes());
    assert_eq!(refused(&|bytes| bytes[list + 11] = 2), "Could not read bitmap 'a' from image: Invalid argument");
    assert_eq!(
        refused(&|bytes| put(bytes, table, 0x50001)),
        "Could not read bitmap_table table from image for bitmap 'a': Invalid argument"
    );
    assert_eq!(refused(&|bytes| bytes[list + 17] = 8), "Bitmap 'a' doesn't satisfy the constraints");
    assert_eq!(refused(&|bytes| bytes[list + 23] = 4), "Bitmap extra data is not supported");
    // A name that is no text.
    assert_eq!(
        refused(&|bytes| bytes[list + 24] = 0xff),
        "Could not read bitmap '\u{fffd}' from image: Invalid argument"
    );
    // A table that is longer than the file, of a bitmap whose bits nobody would read.
    let (file, _) = made(&thread, Format { cluster_bits: 9, ..Format::new(DISK) }, &mut rng);
    let mut bytes = all(&file);
    let list = Header::parse(&bytes[..512]).expect("a header").bitmaps.expect("bitmaps").directory_offset as usize;
    bytes[list + 8..list + 16].copy_from_slice(&(1 << 52 | 1u64).to_be_bytes());
    let told = open(&thread, &storage(bytes), None, Qcow2Options::default()).err();
    assert_eq!(told.as_deref(), Some("Could not read bitmap 'a' from image: Invalid argument"));
}
