//! Checking and repairing images that were made by hand and damaged byte by byte: what is found, what a repair makes of it, what a power cut in
//! the middle of it leaves, and that nothing that an image says brings a check down.
//!
//! What the field's own tools say of the same damages is compared in cairn-img's tests.

#![forbid(unsafe_code)]

use block_common::{ChildRole, IoError, Perm};
use block_io::{IoThread, StaticGraph};
use block_qcow2::check::{CheckError, Repair, Report, Storage, Watch, check};
use block_qcow2_format::{Header, L1Entry, L2Entry, RefcountBits, Snapshot};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Rng, Verdict, seed};
use std::fmt;

const CLUSTER: usize = 4096;
/// Data clusters of the disk, half of them in each of two L2 tables.
const DATA: usize = 24;
const ENTRIES: usize = CLUSTER / 8;

// Where things lie, in clusters.
const REFTABLE: usize = 1;
const REFBLOCK: usize = 2;
const L1: usize = 3;
const SNAPSHOTS: usize = 4;
const SNAPSHOT_L1: usize = 5;
/// The table that the snapshot shares with the disk.
const L2_SHARED: usize = 6;
const L2_OWN: usize = 7;
const FIRST_DATA: usize = 8;
const END: usize = FIRST_DATA + DATA;

/// An image with a snapshot.
#[derive(Clone)]
struct Image(Vec<u8>);

impl Image {
    fn new() -> Self {
        let mut image = Self(vec![0; END * CLUSTER]);
        let put32 = |bytes: &mut [u8], at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        let header = &mut image.0;
        header[..4].copy_from_slice(b"QFI\xfb");
        for (at, value) in [(4, 3), (20, 12), (36, 2), (56, 1), (60, 1), (96, 4), (100, 104)] {
            put32(header, at, value);
        }
        let places = [(24, 4 << 20), (40, L1 * CLUSTER), (48, REFTABLE * CLUSTER), (64, SNAPSHOTS * CLUSTER)];
        for (at, value) in places {
            image.put(at, value as u64);
        }
        image.put(REFTABLE * CLUSTER, (REFBLOCK * CLUSTER) as u64);
        let snapshot = Snapshot {
            l1_offset: (SNAPSHOT_L1 * CLUSTER) as u64,
            l1_size: 1,
            id: b"1".to_vec(),
            name: b"before".to_vec(),
            disk_size: Some(4 << 20),
            ..Snapshot::default()
        };
        let bytes = snapshot.to_bytes();
        image.0[SNAPSHOTS * CLUSTER..SNAPSHOTS * CLUSTER + bytes.len()].copy_from_slice(&bytes);
        let offset = |cluster: usize| (cluster * CLUSTER) as u64;
        image.put(SNAPSHOT_L1 * CLUSTER, L1Entry::new(offset(L2_SHARED), false).raw());
        image.put(L1 * CLUSTER, L1Entry::new(offset(L2_SHARED), false).raw());
        image.put(L1 * CLUSTER + 8, L1Entry::new(offset(L2_OWN), true).raw());
        for i in 0..DATA {
            let cluster = FIRST_DATA + i;
            image.0[cluster * CLUSTER..(cluster + 1) * CLUSTER].fill(i as u8 + 1);
            let (table, copied) = if i < DATA / 2 { (L2_SHARED, false) } else { (L2_OWN, true) };
            let entry = L2Entry::data(offset(cluster)).with_copied(copied);
            image.put(table * CLUSTER + (i * 7 % ENTRIES) * 8, entry.raw());
        }
        for cluster in 0..END {
            let is_shared = cluster == L2_SHARED || (FIRST_DATA..FIRST_DATA + DATA / 2).contains(&cluster);
            image.set_count(cluster, if is_shared { 2 } else { 1 });
        }
        image
    }

    fn put(&mut self, at: usize, value: u64) {
        self.0[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn number(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.0[at..at + 8].try_into().expect("8 bytes"))
    }

    fn set_count(&mut self, cluster: usize, count: u64) {
        RefcountBits::DEFAULT.set(&mut self.0[REFBLOCK * CLUSTER..(REFBLOCK + 1) * CLUSTER], cluster, count);
    }

    /// The first entry of the disk's own table.
    fn own_entry(&self) -> usize {
        L2_OWN * CLUSTER + (DATA / 2 * 7 % ENTRIES) * 8
    }

    /// What the disk and the snapshot read as: one byte for each cluster, for each is full of the same.
    fn content(&self) -> Vec<u8> {
        let header = Header::parse(&self.0[..CLUSTER]).expect("a header");
        let snapshot = Snapshot::parse(&self.0[header.snapshots_offset as usize..]).expect("a snapshot").0;
        let mut content = Vec::new();
        for (l1, entries) in [(header.l1_offset, header.l1_size), (snapshot.l1_offset, snapshot.l1_size)] {
            for entry in 0..entries as usize {
                let table = L1Entry::from_raw(self.number(l1 as usize + entry * 8)).table().expect("a table") as usize;
                content.extend((0..ENTRIES).map(|index| {
                    let entry = self.number(table + index * 8);
                    let offset = (entry & 0x00ff_ffff_ffff_f000) as usize;
                    if offset == 0 || entry & 1 != 0 { 0 } else { self.0[offset] }
                }));
            }
        }
        content
    }

    fn storage(&self) -> MemStorage {
        MemStorage::with_content(MemOptions { journal: true, ..MemOptions::new(0) }, self.0.clone())
    }
}

/// What is said, and no end of it.
#[derive(Default)]
struct Lines(Vec<String>);

impl Watch for Lines {
    fn message(&mut self, text: fmt::Arguments<'_>) {
        if self.0.len() < 1000 {
            self.0.push(text.to_string());
        }
    }
}

struct Bed {
    thread: IoThread,
}

impl Bed {
    fn new() -> Self {
        Self { thread: io_thread(true) }
    }

    fn check(&self, storage: &MemStorage, repair: Repair) -> (Result<Report, CheckError>, Vec<String>) {
        let mut graph = StaticGraph::new(self.thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        let mut shell = graph.node("image");
        let edge = shell.child(ChildRole::IMAGE, Perm::all(), &file);
        let checked = block_on(shell.run(|req| async move {
            let mut lines = Lines::default();
            let checked = check(Storage::Edge(&req, &edge), repair, &mut lines).await;
            Ok((checked, lines.0))
        }));
        checked.expect("it ran")
    }

    /// Check `image`, repair it, and check it again. What the checks found, what was repaired, and what became of the image.
    fn repair(&self, image: &Image, repair: Repair) -> (Report, Report, Image) {
        let storage = image.storage();
        let found = self.check(&storage, Repair::None).0.expect("it can be checked");
        let repaired = self.check(&storage, repair).0.expect("it can be repaired");
        (found, repaired, Image(storage.bytes(0, storage.len() as usize)))
    }

    fn is_clean(&self, image: &Image) -> bool {
        let (report, lines) = self.check(&image.storage(), Repair::None);
        let report = report.expect("it can be checked");
        let is_clean = (report.corruptions, report.leaks, report.check_errors) == (0, 0, 0);
        assert_eq!(is_clean, lines.is_empty(), "{report:?} {lines:?}");
        is_clean
    }
}

#[test]
fn an_image_that_is_right_is_left_alone() {
    let (bed, image) = (Bed::new(), Image::new());
    assert!(bed.is_clean(&image));
    let (found, repaired, after) = bed.repair(&image, Repair::All);
    assert_eq!(found, repaired);
    assert_eq!((found.total_clusters, found.allocated_clusters), (1024, DATA as u64));
    assert_eq!(found.image_end, (END * CLUSTER) as u64);
    assert!(after.0 == image.0, "nothing was written");
}

/// A damage: its name, what does it, errors and leaks that are found.
type Damage = (&'static str, fn(&mut Image), (u64, u64));

/// What can be repaired without a loss.
const DAMAGES: [Damage; 13] = [
    ("counted too often", |image| image.set_count(END - 1, 3), (1, 1)),
    ("counted although nobody has it", |image| image.put(image.own_entry(), 0), (0, 1)),
    ("counted too rarely", |image| image.set_count(FIRST_DATA, 1), (2, 0)),
    ("not counted", |image| image.set_count(END - 1, 0), (2, 0)),
    ("not counted, and another too often", not_and_too_often, (3, 1)),
    ("the header is not counted", |image| image.set_count(0, 0), (1, 0)),
    ("there is no block", |image| image.put(REFTABLE * CLUSTER, 0), (31 + 1 + 12, 0)),
    ("a block lies behind the end", |image| image.put(REFTABLE * CLUSTER + 8, 1 << 30), (1, 0)),
    ("a block is another's", |image| image.put(REFTABLE * CLUSTER + 8, (L1 * CLUSTER) as u64), (2, 0)),
    ("the same entry twice", twice, (1, 1)),
    ("a flag is missing", |image| image.put(image.own_entry(), image.number(image.own_entry()) ^ 1 << 63), (1, 0)),
    ("zeroes between clusters", |image| image.put(image.own_entry(), image.number(image.own_entry()) | 0x201), (2, 0)),
    ("a snapshot's size is missing", |image| image.0[SNAPSHOTS * CLUSTER + 39] = 8, (1, 0)),
];

fn not_and_too_often(image: &mut Image) {
    image.set_count(END - 1, 0);
    image.set_count(END - 2, 2);
}

fn twice(image: &mut Image) {
    let at = image.own_entry();
    image.put(at + 56, image.number(at));
}

#[test]
fn what_is_wrong_is_found_and_repaired() {
    let bed = Bed::new();
    for (name, damage, (corruptions, leaks)) in DAMAGES {
        let mut image = Image::new();
        damage(&mut image);
        let (found, repaired, after) = bed.repair(&image, Repair::All);
        assert_eq!((found.corruptions, found.leaks, found.check_errors), (corruptions, leaks, 0), "{name}");
        assert!(repaired.corruptions_fixed + repaired.leaks_fixed > 0, "{name}: {repaired:?}");
        assert_eq!((repaired.corruptions, repaired.leaks), (0, 0), "{name}");
        assert!(bed.is_clean(&after), "{name}");
        assert!(after.content() == image.content(), "{name}");
    }
}

/// Scenario: freeing leaks is asked for. What is counted too rarely stays as it is, and where that is zero nothing is done at all.
#[test]
fn leaks_are_freed_and_nothing_else_is_done() {
    let bed = Bed::new();
    let mut image = Image::new();
    image.set_count(END - 1, 3);
    image.set_count(FIRST_DATA, 1);
    let (_, repaired, after) = bed.repair(&image, Repair::Leaks);
    assert_eq!((repaired.leaks_fixed, repaired.corruptions_fixed, repaired.corruptions), (1, 0, 2));
    image.set_count(END - 1, 1);
    assert!(after.0 == image.0);
    image.set_count(END - 1, 0);
    let storage = image.storage();
    let (refused, lines) = bed.check(&storage, Repair::Leaks);
    assert_eq!(refused, Err(CheckError::NeedsRebuild));
    assert_eq!(lines.last().map(String::as_str), Some("ERROR need to rebuild refcount structures"));
    assert!(storage.bytes(0, image.0.len()) == image.0);
}

/// Scenario: a power cut left counts where the file was to grow. Nothing of that is in the file, so nothing is told; but what is repaired has no leaks when it
/// grows.
#[test]
fn counts_past_the_end_go_with_a_repair() {
    let bed = Bed::new();
    for is_wrong in [false, true] {
        let right = Image::new();
        let mut image = right.clone();
        image.set_count(END, 1);
        image.set_count(END + 5, 2);
        image.set_count(ENTRIES, 1);
        if is_wrong {
            image.set_count(END - 1, 3);
        }
        for repair in [Repair::Leaks, Repair::All] {
            let (found, repaired, mut after) = bed.repair(&image, repair);
            let leaks = u64::from(is_wrong);
            assert_eq!((found.leaks, repaired.leaks_fixed, found.image_end), (leaks, leaks, (END * CLUSTER) as u64));
            assert!(after.0 == right.0 || is_wrong && repair == Repair::All, "{repair:?}");
            after.0.resize((END + 10) * CLUSTER, 0);
            assert!(bed.is_clean(&after));
        }
        image.0.resize((END + 10) * CLUSTER, 0);
        assert!(!bed.is_clean(&image), "they are leaks in a longer file");
    }
}

/// Scenario: the bits that say that an image is dirty or corrupt, with and without a reason.
#[test]
fn qcow2_5_the_headers_bits_go_when_their_reasons_have_gone() {
    let bed = Bed::new();
    for (reserved, repair, left) in
        [(false, Repair::All, 0), (false, Repair::Leaks, 0), (false, Repair::None, 3), (true, Repair::All, 2)]
    {
        let mut image = Image::new();
        image.put(72, 3);
        if reserved {
            // Nobody knows what a reserved bit means: it stays.
            image.put(image.own_entry(), image.number(image.own_entry()) | 4);
        }
        let (_, _, after) = bed.repair(&image, repair);
        assert_eq!(after.number(72), left, "{repair:?}");
    }
}

/// Scenario: the image lies on a device, which has room behind the image and does not get longer.
#[test]
fn what_is_new_finds_room_on_a_device() {
    let bed = Bed::new();
    for (name, damage, _) in DAMAGES {
        let mut image = Image::new();
        damage(&mut image);
        let content = image.content();
        image.0.resize(image.0.len() + 64 * CLUSTER, 0xee);
        let storage = image.storage();
        storage.set_script(|op| match op.kind {
            MemOpKind::Truncate => Verdict::Fail(IoError::UNSUPPORTED),
            _ => Verdict::Serve,
        });
        bed.check(&storage, Repair::All).0.unwrap_or_else(|error| panic!("{name}: {error}"));
        let after = Image(storage.bytes(0, storage.len() as usize));
        assert_eq!(after.0.len(), image.0.len(), "{name}");
        assert!(bed.is_clean(&after), "{name}");
        assert!(after.content() == content, "{name}: another content");
    }
}

/// Different rests of what was not flushed.
const CUTS: usize = 12;

/// Scenario: the n-th operation of a repair is its last, and of what was not flushed any part is on the medium. Whatever is there reads as before,
/// and is repaired by another run.
#[test]
fn qcow2_2_a_power_cut_leaves_an_image_that_can_be_repaired() {
    let (bed, seed) = (Bed::new(), seed());
    let mut rng = Rng::new(seed);
    for (name, damage, _) in DAMAGES {
        let mut image = Image::new();
        damage(&mut image);
        let content = image.content();
        let too_low = |image: &Image| {
            let lines = bed.check(&image.storage(), Repair::None).1;
            lines.into_iter().filter(|line| line.starts_with("ERROR cluster")).collect::<Vec<_>>()
        };
        let before = too_low(&image);
        for nth in 0..10_000 {
            let storage = image.storage();
            storage.fail_nth(None, nth, IoError::host(5));
            let ended = bed.check(&storage, Repair::All).0.is_ok();
            for _ in 0..CUTS {
                let cut = Image(storage.power_cut(|_, _| rng.below(0..2) == 0));
                let where_ = format!("{name}, operation {nth}, seed {seed}");
                assert!(cut.content() == content, "{where_}: another content");
                let lower = too_low(&cut).into_iter().find(|line| !before.contains(line));
                assert_eq!(lower, None, "{where_}: counted too rarely, and was not before");
                let again = cut.storage();
                bed.check(&again, Repair::All).0.unwrap_or_else(|error| panic!("{where_}: {error}"));
                let after = Image(again.bytes(0, again.len() as usize));
                assert!(bed.is_clean(&after), "{where_}");
                assert!(after.content() == content, "{where_}: repaired into another content");
            }
            if ended {
                assert!(nth > 5, "the failure was seen");
                break;
            }
        }
    }
}

/// Scenario: numbers anywhere in the metadata are what they cannot be, several at a time. The check ends, and so does a repair, and what a repair
/// leaves can be checked again.
#[test]
fn trust_3_no_image_brings_a_check_down() {
    let (bed, seed) = (Bed::new(), seed());
    let mut rng = Rng::new(seed);
    let interesting =
        [0, 1, 2, 0x1ff, 0x200, 0xfff, 0x1000, 0x1001, 1 << 31, 1 << 55, 1 << 56, 1 << 62, 1 << 63, u64::MAX];
    for round in 0..400 {
        let mut image = Image::new();
        for _ in 0..=rng.below(0..6) {
            // The header's first bytes are tested elsewhere; most changes to them are refused.
            let at = if rng.below(0..4) == 0 {
                24 + rng.below(0..80)
            } else {
                512 + rng.below(0..(FIRST_DATA * CLUSTER - 520) as u64)
            };
            let at = match rng.below(0..3) {
                // Where something stands.
                0 => [L1, SNAPSHOT_L1, REFTABLE, SNAPSHOTS, L2_OWN, L2_SHARED][rng.below(0..6) as usize] * CLUSTER,
                _ => at as usize,
            };
            let value = match rng.below(0..4) {
                0 => rng.next(),
                1 => rng.below(0..END as u64 + 4) * CLUSTER as u64,
                2 => (rng.below(0..END as u64 + 4) * CLUSTER as u64) | interesting[rng.below(0..14) as usize],
                _ => interesting[rng.below(0..14) as usize],
            };
            image.put(at, value);
        }
        for repair in [Repair::None, Repair::Leaks, Repair::All] {
            let storage = image.storage();
            let (checked, _) = bed.check(&storage, repair);
            assert!(storage.len() < 64 << 20, "round {round}, seed {seed}: the image grew without bounds");
            if checked.is_ok() {
                let (again, _) = bed.check(&storage, Repair::None);
                assert!(again.is_ok(), "round {round}, seed {seed}, {repair:?}: {again:?}");
            }
        }
    }
}

/// Scenario: an image whose tables are all the same one, and snapshots that are all the same, as often as the header can say. What they
/// refer to counts as often as that, and the check is over soon.
#[test]
fn trust_3_tables_that_are_referred_to_often_are_walked_once() {
    let bed = Bed::new();
    let mut image = Image::new();
    let l1 = image.0.len();
    let entries = 100_000;
    image.0.resize(l1 + (entries * 8usize).next_multiple_of(CLUSTER), 0);
    for index in 0..entries {
        image.put(l1 + index * 8, (L2_OWN * CLUSTER) as u64);
    }
    image.put(40, l1 as u64);
    image.0[36..40].copy_from_slice(&(entries as u32).to_be_bytes());
    let report = bed.check(&image.storage(), Repair::None).0.expect("it can be checked");
    // The table and what its entries refer to have more references than 16 bits can count, and fewer on disk; no L1 entry has the flag that
    // the counts on disk ask for; nobody counts the L1 table's own clusters.
    let (clusters, entries) = (1 + DATA as u64 / 2, entries as u64);
    let expected = (entries - 65535) * clusters + clusters + entries + (entries * 8).div_ceil(CLUSTER as u64);
    assert_eq!(report.corruptions, expected);
}
