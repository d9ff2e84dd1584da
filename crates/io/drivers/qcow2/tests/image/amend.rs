//! Amending: other widths of reference counts, other versions, whatever goes wrong meanwhile.

use crate::bed::{Image, alone, open, storage};
use block_common::{IoError, IoResult, Perm};
use block_io::{IoThread, StaticGraph};
use block_qcow2::check::{AmendError, Amendment, Storage, Watch, amend};
use block_qcow2::{Header, NewSnapshot, Qcow2Options, Version};
use block_qcow2_format::{CompatibleFeatures, RefcountBits};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, inspect};
use block_testkit::{MemStorage, Rng};

const DISK: u64 = 1 << 20;

struct Silent;

impl Watch for Silent {
    fn message(&mut self, _: std::fmt::Arguments<'_>) {}
}

fn amended(thread: &IoThread, file: &MemStorage, change: &Amendment) -> Result<(), AmendError> {
    amended_then(thread, file, change, || {})
}

/// `then` sees the file before anybody flushes it.
fn amended_then(
    thread: &IoThread,
    file: &MemStorage,
    change: &Amendment,
    then: impl FnOnce(),
) -> Result<(), AmendError> {
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("file").install(file.driver(), false)).expect("a node");
    let root = graph.root("amend", &node, Perm::all());
    let change = change.clone();
    let run = thread.handle().run(async move { amend(Storage::Root(&root), &change, &mut Silent).await });
    let result = block_on(run).expect("the thread lives");
    then();
    // After a failure there is nothing to flush.
    let _: IoResult<()> = block_on(graph.close());
    result
}

fn plain(thread: &IoThread, file: &MemStorage) -> Image {
    open(thread, file, None, Qcow2Options::default()).expect("opens")
}

fn all(file: &MemStorage) -> Vec<u8> {
    file.bytes(0, file.len() as usize)
}

fn header(bytes: &[u8]) -> Header {
    Header::parse(&bytes[..bytes.len().min(1 << 21)]).expect("a header")
}

fn made(thread: &IoThread, format: Format) -> MemStorage {
    let file = storage(format.bytes());
    let image = plain(thread, &file);
    image.write(0, &[1; 100_000]);
    image.write(DISK - 5000, &[2; 5000]);
    image.close().expect("closes");
    file
}

fn is_content(guest: &[u8]) -> bool {
    let (first, rest) = guest.split_at(100_000);
    let (zeroes, last) = rest.split_at(rest.len() - 5000);
    first.iter().all(|byte| *byte == 1) && zeroes.iter().all(|byte| *byte == 0) && last.iter().all(|byte| *byte == 2)
}

fn width(order: u32) -> Amendment {
    Amendment { refcount_bits: RefcountBits::new(order).ok(), ..Amendment::default() }
}

#[test]
fn reference_counts_get_any_width() {
    let thread = io_thread(true);
    for cluster_bits in [9, 12, 16] {
        let file = made(&thread, Format { cluster_bits, ..Format::new(DISK) });
        for order in [0, 6, 3, 1, 5, 2, 4, 0] {
            amended(&thread, &file, &width(order)).expect("amended");
            assert_eq!(header(&all(&file)).refcount_bits.order(), order);
            let report = inspect(&all(&file), &[]).unwrap_or_else(|error| panic!("{cluster_bits}, {order}: {error}"));
            assert!(report.leaks == 0 && is_content(&report.guest), "{cluster_bits}, {order}");
            // It works.
            let image = plain(&thread, &file);
            image.write(300_000, &[0; 10_000]);
            image.close().expect("closes");
            assert_eq!(inspect(&all(&file), &[]).expect("an image").leaks, 0);
        }
        // All of it behind the end, each time: what was there before is free, and used again.
        assert!(file.len() < 2 * DISK + (40 << cluster_bits), "{cluster_bits}: {:#x}", file.len());
    }
}

// Scenario: a cluster belongs to two snapshots and the disk.
#[test]
fn counts_that_do_not_fit_are_named() {
    let thread = io_thread(true);
    let file = made(&thread, Format::new(DISK));
    for name in ["a", "b"] {
        let new = NewSnapshot { name: name.into(), ..NewSnapshot::default() };
        let taken = alone(&thread, &file, |req, control| async move { control.create_snapshot(&req, new).await });
        taken.expect("taken");
    }
    let before = all(&file);
    let refused = amended(&thread, &file, &width(0)).expect_err("refused").to_string();
    let expected = "Cannot decrease refcount entry width to 1 bits: Cluster at offset 0x40000 has a refcount of 3";
    assert_eq!(refused, expected);
    assert!(all(&file) == before);
    amended(&thread, &file, &width(1)).expect("there is room for three");
}

#[test]
fn versions_go_up_and_down() {
    let thread = io_thread(true);
    let file = made(&thread, Format { version: Version::V2, ..Format::new(DISK) });
    let to = |version| Amendment { version: Some(version), ..Amendment::default() };
    let lazy = |lazy| Amendment { lazy_refcounts: Some(lazy), ..Amendment::default() };
    assert_eq!(amended(&thread, &file, &lazy(true)), Err(AmendError::Lazy));
    assert_eq!(amended(&thread, &file, &width(3)), Err(AmendError::Width));
    amended(&thread, &file, &to(Version::V2)).expect("nothing to do");
    amended(&thread, &file, &Amendment { lazy_refcounts: Some(true), ..to(Version::V3) }).expect("amended");
    let now = header(&all(&file));
    assert_eq!((now.version, now.compatible), (Version::V3, CompatibleFeatures::LAZY_REFCOUNTS));
    assert!(!now.features.is_empty());
    assert!(is_content(&inspect(&all(&file), &[]).expect("an image").guest));
    // Zeroes have no place in version 2.
    let image = plain(&thread, &file);
    block_on(image.root.zero(0, 65536, block_common::RequestFlags::empty())).expect("zeroed");
    image.close().expect("closes");
    assert_eq!(amended(&thread, &file, &to(Version::V2)), Err(AmendError::DowngradeZeroes));
    alone(&thread, &file, |req, control| async move { control.expand_zeroes(&req).await }).expect("expanded");
    amended(&thread, &file, &to(Version::V2)).expect("amended");
    let now = header(&all(&file));
    assert_eq!((now.version, now.features.len()), (Version::V2, 0));
    let report = inspect(&all(&file), &[]).expect("an image");
    assert_eq!((report.leaks, report.guest[0], report.guest[65536]), (0, 0, 1));
    for (format, error) in [
        (Format { cluster_bits: 14, extended: true, ..Format::new(DISK) }, AmendError::DowngradeFeatures(0x10)),
        (
            Format { compression: block_qcow2_format::CompressionType::Zstd, ..Format::new(DISK) },
            AmendError::DowngradeFeatures(8),
        ),
        (Format { refcount_order: 3, ..Format::new(DISK) }, AmendError::DowngradeWidth),
    ] {
        assert_eq!(amended(&thread, &made(&thread, format), &to(Version::V2)), Err(error));
    }
}

// Scenario: any request fails, or the power does, while reference counts get another width or the version goes up. The image is what it was or what it was to be.
#[test]
fn qcow2_2_what_fails_while_an_image_is_amended_leaves_it_valid() {
    let (thread, mut rng) = (io_thread(true), Rng::new(1));
    let changes = [
        (Format { cluster_bits: 9, ..Format::new(DISK) }, width(6)),
        (Format { cluster_bits: 12, ..Format::new(DISK) }, width(0)),
        (
            Format { version: Version::V2, cluster_bits: 12, ..Format::new(DISK) },
            Amendment { version: Some(Version::V3), lazy_refcounts: Some(true), ..width(6) },
        ),
    ];
    for (format, change) in changes {
        let original = all(&made(&thread, format));
        for nth in 0.. {
            let file = storage(original.clone());
            file.fail_nth(None, nth, IoError::host(28));
            let mut cuts = Vec::new();
            let ended = amended_then(&thread, &file, &change, || {
                cuts.extend([0, 30, 50, 70, 100].map(|keep| (keep, file.power_cut(|_, _| rng.chance(keep)))));
            });
            // Some failures are not the end of it.
            let is_over = file.log().len() as u64 <= nth;
            file.clear_script();
            for (keep, cut) in cuts {
                let report = inspect(&cut, &[]);
                let report = report.unwrap_or_else(|error| panic!("{format:?}, request {nth}, {keep} %: {error}"));
                assert!(is_content(&report.guest), "{format:?}, request {nth}, {keep} %");
            }
            if is_over {
                assert!(ended.is_ok() && nth > 15, "only {nth} requests");
                break;
            }
            amended(&thread, &file, &change).expect("once more");
            let report = inspect(&all(&file), &[]).expect("an image");
            assert!(report.leaks == 0 || change.refcount_bits.is_none(), "{format:?}, request {nth}");
        }
    }
}

// Scenario: the name of the backing file, which begins or ends behind the first sector, becomes another one, and the power fails at any request of
// that. The image has the one or the other.
#[test]
fn qcow2_1_a_power_cut_while_the_backing_file_changes_leaves_one_of_both() {
    let (thread, mut rng) = (io_thread(true), Rng::new(7));
    let name = |letter: u8, len| Some((vec![letter; len], Some(b"raw".to_vec())));
    for (before, after) in
        [(name(b'a', 30), name(b'b', 800)), (name(b'a', 700), name(b'b', 650)), (name(b'a', 900), None)]
    {
        let file = made(&thread, Format { cluster_bits: 12, ..Format::new(DISK) });
        let mut put = |file: &MemStorage, nth: u64, to: Option<(Vec<u8>, Option<Vec<u8>>)>| {
            let (file_, mut rng) = (file.clone(), rng.fork());
            alone(&thread, file, move |req, control| async move {
                file_.fail_nth(None, nth, IoError::host(28));
                let changed = control.change_backing(&req, to).await;
                let cuts = [0, 30, 50, 70, 100].map(|keep| file_.power_cut(|_, _| rng.chance(keep)));
                file_.clear_script();
                (changed, cuts)
            })
        };
        put(&file, u64::MAX, before.clone()).0.expect("changed");
        let original = all(&file);
        for nth in 0.. {
            let file = storage(original.clone());
            let (changed, cuts) = put(&file, nth, after.clone());
            for cut in cuts {
                let header = header(&cut);
                let now = header.backing_file.map(|name| (name, header.backing_format));
                assert!(now == before || now == after, "request {nth}");
                assert!(now == after || changed.is_err(), "request {nth}");
            }
            if changed.is_ok() {
                assert!(nth > 3, "only {nth} requests");
                break;
            }
        }
    }
}
