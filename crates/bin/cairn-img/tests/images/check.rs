//! `check`: images of every kind, made by qemu-img, damaged byte by byte, and given to both programs. Both find the same and repair the
//! same, in the same words; where ours repairs more, `differences.md` says so and this file has it apart. What ours has repaired is right in
//! qemu-img's eyes, and reads as before.

use crate::support::{program, skipped};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

const COPIED: u64 = 1 << 63;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An image: its name, its creation options, its size, what is done with it.
pub(crate) type Kind = (&'static str, &'static str, &'static str, &'static [&'static str]);

const WRITES: &[&str] = &["io write -P1 0 256k", "io write -P2 1M 64k"];
const COMPRESSED: &[&str] = &[
    "io write -P1 0 256k",
    "io write -c -P2 1M 64k",
    "io write -c -P3 2M 64k",
    "io write -z 4M 64k",
    "io write -P4 0 4k",
];
const LARGE: &[&str] = &["io write -P1 0 4M", "io write -c -P2 8M 2M", "io write -z 6M 2M"];
const SNAPSHOTS: &[&str] = &[
    "io write -P1 0 256k",
    "io write -P2 1M 64k",
    "img snapshot -c one a.qcow2",
    "io write -P3 0 64k",
    "img snapshot -c two a.qcow2",
    "io write -P4 64k 64k",
];
const BITMAPS: &[&str] = &[
    "io write -P1 0 256k",
    "img bitmap --add a.qcow2 a",
    "img bitmap --add -g 512 a.qcow2 b",
    "img bitmap --disable a.qcow2 b",
    "io write -P2 2M 64k",
];

pub(crate) const KINDS: [Kind; 12] = [
    ("plain", "", "12M", WRITES),
    ("version 2", "compat=0.10", "12M", SNAPSHOTS),
    ("counts of 1 bit", "refcount_bits=1,cluster_size=4k", "12M", WRITES),
    ("counts of 2 bits", "refcount_bits=2", "12M", WRITES),
    ("counts of 4 bits", "refcount_bits=4", "12M", SNAPSHOTS),
    ("counts of 8 bits", "refcount_bits=8,cluster_size=2M", "12M", LARGE),
    ("counts of 32 bits", "refcount_bits=32,compression_type=zstd", "12M", COMPRESSED),
    ("counts of 64 bits", "refcount_bits=64,cluster_size=512", "12M", COMPRESSED),
    ("subclusters", "extended_l2=on,cluster_size=16k", "12M", COMPRESSED),
    ("snapshots", "", "12M", SNAPSHOTS),
    ("bitmaps", "", "12M", BITMAPS),
    ("a data file", "data_file=data.raw", "12M", WRITES),
];

/// A folder with an image.
pub(crate) struct Bed {
    dir: TempDir,
}

impl Bed {
    /// `None` where there is no qemu-img.
    pub(crate) fn new((_, options, size, acts): Kind) -> Option<Self> {
        let bed = Self { dir: tempfile::tempdir().expect("a folder") };
        let options = if options.is_empty() { vec![] } else { vec!["-o", options] };
        let create = [&["create", "-q", "-f", "qcow2"][..], &options, &["a.qcow2", size]].concat();
        Command::new("qemu-img").arg("--version").output().ok()?;
        bed.run("qemu-img", &create);
        for act in acts {
            match act.split_once(' ').expect("a verb") {
                ("io", command) => drop(bed.run("qemu-io", &["-f", "qcow2", "-c", command, "a.qcow2"])),
                (_, words) => drop(bed.run("qemu-img", &words.split(' ').collect::<Vec<_>>())),
            }
        }
        Some(bed)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn try_run(&self, program: &Path, words: &[&str]) -> Output {
        Command::new(program).args(words).current_dir(self.dir.path()).output().expect("the program starts")
    }

    pub(crate) fn run(&self, program: &str, words: &[&str]) -> Output {
        let output = self.try_run(Path::new(program), words);
        assert!(output.status.success(), "{program} {words:?}: {output:?}");
        output
    }

    /// A copy of the image, damaged.
    fn damaged(&self, damage: &Damage) {
        std::fs::copy(self.path("a.qcow2"), self.path("b.qcow2")).expect("a copy");
        (damage.act)(&mut Bytes::open(&self.path("b.qcow2")));
    }

    /// What `program` says of the damaged copy, which stays as the program leaves it.
    fn check(&self, program: &Path, damage: &Damage, words: &[&str]) -> Outcome {
        self.damaged(damage);
        let output = self.try_run(program, &[&["check"], words, &["b.qcow2"]].concat());
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            // Advice that names qemu-img is the same from both.
            let own = |text: &str, name: &str| {
                text.replace(&format!("{name}: "), "PROGRAM: ").replace(&format!("{name} check"), "PROGRAM check")
            };
            own(&own(&text, "qemu-img"), "cairn-img")
        };
        Outcome { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// All that an image holds, its snapshots included.
    fn content(&self, image: &str) -> Vec<Vec<u8>> {
        let names = ["one", "two"].map(|name| ["-l", name]);
        let all = [&[][..], &names[0], &names[1]];
        let read = |snapshot: &[&str]| {
            let words =
                [&["convert", "-t", "unsafe", "-f", "qcow2", "-O", "raw"], snapshot, &[image, "out.raw"]].concat();
            let output = self.try_run(Path::new("qemu-img"), &words);
            output.status.success().then(|| std::fs::read(self.path("out.raw")).expect("an image"))
        };
        all.into_iter().filter_map(read).collect()
    }
}

#[derive(Debug, PartialEq)]
struct Outcome {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

/// An image's bytes, and where its tables are.
struct Bytes {
    file: File,
    l1: u64,
    l2: u64,
    /// Bytes of an L2 entry.
    step: u64,
    table: u64,
    block: u64,
    bits: u32,
    cluster_bits: u64,
}

impl Bytes {
    fn open(path: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).open(path).expect("an image");
        let mut bytes = Self { file, l1: 0, l2: 0, step: 8, table: 0, block: 0, bits: 16, cluster_bits: 0 };
        (bytes.l1, bytes.table, bytes.cluster_bits) = (bytes.get(40), bytes.get(48), bytes.get(16) & 0xffff);
        (bytes.l2, bytes.block) = (bytes.get(bytes.l1) & OFFSET, bytes.get(bytes.table));
        if bytes.get(0) & 0xffff == 3 {
            bytes.bits = 1 << (bytes.get(92) & 7);
            bytes.step = if bytes.get(72) & 16 != 0 { 16 } else { 8 };
        }
        bytes
    }

    fn get(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, at).expect("bytes");
        u64::from_be_bytes(bytes)
    }

    fn put(&self, at: u64, value: u64) {
        self.file.write_all_at(&value.to_be_bytes(), at).expect("room");
    }

    fn change(&self, at: u64, change: impl FnOnce(u64) -> u64) {
        self.put(at, change(self.get(at)));
    }

    fn put32(&self, at: u64, value: u32) {
        self.file.write_all_at(&value.to_be_bytes(), at).expect("room");
    }

    /// The place of an L2 entry.
    fn entry(&self, index: u64) -> u64 {
        self.l2 + index * self.step
    }

    /// The cluster in which the first entry's data lies.
    fn cluster(&self) -> u64 {
        (self.get(self.entry(0)) & OFFSET) >> self.cluster_bits
    }

    /// Let a cluster's count be `count`, or as much as there is room for.
    fn set_count(&self, cluster: u64, count: u64) {
        if self.bits >= 8 {
            let len = self.bits as usize / 8;
            let bytes = count.to_be_bytes();
            self.file.write_all_at(&bytes[8 - len..], self.block + cluster * len as u64).expect("room");
            return;
        }
        let (at, mask) = (cluster * u64::from(self.bits), (1u8 << self.bits) - 1);
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, self.block + at / 8).expect("a byte");
        let count = count.min(mask.into()) as u8;
        byte[0] = byte[0] & !(mask << (at % 8)) | count << (at % 8);
        self.file.write_all_at(&byte, self.block + at / 8).expect("room");
    }
}

/// How alike the two programs are.
#[derive(Clone, Copy, PartialEq)]
enum Alike {
    /// To the letter.
    Wholly,
    /// But for the image's end, after new reference counts were written.
    ButForTheEnd,
    /// But for what repairing all does: ours goes further.
    ButForAll,
}

struct Damage {
    name: &'static str,
    act: fn(&mut Bytes),
    alike: Alike,
    /// The guest reads the same afterwards.
    harmless: bool,
}

const fn damage(name: &'static str, act: fn(&mut Bytes), alike: Alike, harmless: bool) -> Damage {
    Damage { name, act, alike, harmless }
}

/// Damages that any image can have.
fn any_damages() -> Vec<Damage> {
    use Alike::{ButForAll, ButForTheEnd, Wholly};
    vec![
        damage("none", |_| (), Wholly, true),
        damage("dirty and corrupt bits", dirty, Wholly, true),
        damage("a count that is too high", |image| image.set_count(image.cluster(), 3), Wholly, true),
        damage("a count of zero", |image| image.set_count(image.cluster(), 0), Wholly, true),
        damage("no refcount block", |image| image.put(image.table, 0), ButForTheEnd, true),
        damage("the header's count is zero", |image| image.set_count(0, 0), Wholly, true),
        damage(
            "the L2 table's count is wrong",
            |image| image.set_count(image.l2 >> image.cluster_bits, 2),
            Wholly,
            true,
        ),
        damage(
            "a refcount block between clusters",
            |image| image.change(image.table, |block| block | 0x200),
            ButForAll,
            true,
        ),
        damage(
            "reserved bits of the refcount table",
            |image| image.change(image.table, |block| block | 1),
            ButForAll,
            true,
        ),
        damage("a refcount block behind the end", |image| image.put(image.table + 8, 1 << 40), ButForAll, true),
        damage("a refcount block that is the L1 table", |image| image.put(image.table + 8, image.l1), Wholly, true),
        damage("data behind the end", |image| image.put(image.entry(0), COPIED | 1 << 40), Wholly, false),
        damage("data between clusters", |image| image.change(image.entry(0), |entry| entry | 0x200), Wholly, false),
        damage("zeroes between clusters", |image| image.change(image.entry(0), |entry| entry | 0x201), Wholly, false),
        damage("an entry twice", |image| image.put(image.entry(1), image.get(image.entry(0))), Wholly, false),
        damage("an entry that is its own table", |image| image.put(image.entry(0), image.l2 | COPIED), Wholly, false),
        damage("reserved bits of an L2 entry", |image| image.change(image.entry(0), |entry| entry | 4), Wholly, false),
        damage("a flag is missing", |image| image.change(image.entry(0), |entry| entry & !COPIED), Wholly, false),
        damage(
            "a compressed cluster with a flag",
            |image| image.put(image.entry(0), 3 << 62 | image.l2),
            Wholly,
            false,
        ),
        damage(
            "a compressed cluster behind the end",
            |image| image.put(image.entry(0), 1 << 62 | 1 << 30),
            Wholly,
            false,
        ),
        damage("an L1 entry's flag is missing", |image| image.change(image.l1, |entry| entry & !COPIED), Wholly, true),
        damage("reserved bits of an L1 entry", |image| image.change(image.l1, |entry| entry | 4), Wholly, false),
        damage("an L2 table behind the end", |image| image.put(image.l1, COPIED | 1 << 40), Wholly, false),
        damage("no L2 table", |image| image.put(image.l1, 0), Wholly, false),
    ]
}

/// Where there are feature bits.
fn dirty(image: &mut Bytes) {
    if image.get(0) & 0xffff == 3 {
        image.change(72, |bits| bits | 3);
    }
}

/// Damages of the snapshot table, which `image.get(64)` says the place of.
fn snapshot_damages() -> Vec<Damage> {
    use Alike::{ButForTheEnd, Wholly};
    vec![
        damage("its L1 table between clusters", |image| image.change(image.get(64), |l1| l1 | 0x200), Wholly, false),
        damage("its L1 table behind the end", |image| image.put(image.get(64), 1 << 40), Wholly, false),
        damage("its L1 table too large", |image| image.put32(image.get(64) + 8, 1 << 28), Wholly, false),
        damage("an L1 entry behind the end", |image| image.put(image.get(image.get(64)), 1 << 40), Wholly, false),
        damage(
            "reserved bits of an L1 entry",
            |image| image.change(image.get(image.get(64)), |entry| entry | 1),
            Wholly,
            false,
        ),
        damage("too much extra data", |image| image.put32(image.get(64) + 36, 2000), ButForTheEnd, false),
        damage("one snapshot more", |image| image.put32(60, 3), Wholly, true),
        damage("one snapshot less", |image| image.put32(60, 1), Wholly, false),
        damage("no snapshots", |image| image.put32(60, 0), Wholly, false),
    ]
}

fn modes() -> [Vec<&'static str>; 3] {
    [vec![], vec!["-r", "leaks"], vec!["-r", "all"]]
}

/// The text without the line about the image's end.
fn without_end(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with("Image end offset")).collect::<Vec<_>>().join("\n")
}

/// What differs between the two programs, or between an image before and after ours repaired it.
fn differences(bed: &Bed, kind: &str, damage: &Damage, content: &[Vec<u8>]) -> Vec<String> {
    let mut found = Vec::new();
    for mode in modes() {
        let (theirs, ours) = (bed.check(Path::new("qemu-img"), damage, &mode), bed.check(program(), damage, &mode));
        let repairs_all = mode.ends_with(&["all"]);
        // Bitmaps leave gaps, which qemu-img fills; and it writes them when it closes the image, unless what was wrong is in its way.
        let alike = if kind == "bitmaps" && damage.alike == Alike::Wholly { Alike::ButForTheEnd } else { damage.alike };
        let is_alike = match alike {
            Alike::Wholly => ours == theirs,
            Alike::ButForTheEnd if repairs_all => {
                ours.status == theirs.status && without_end(&ours.stdout) == without_end(&theirs.stdout)
            }
            Alike::ButForAll if repairs_all => ours.status == Some(0),
            // The driver that qemu-img uses tells of what it meets as well.
            Alike::ButForTheEnd | Alike::ButForAll => {
                let others = ["Lost persistent bitmaps", "Failed to flush"];
                let is_drivers =
                    |line: &&str| line.starts_with("qcow2: ") || others.iter().any(|words| line.contains(words));
                let their_lines: Vec<_> = theirs.stderr.lines().filter(|line| !is_drivers(line)).collect();
                (ours.status, &ours.stdout) == (theirs.status, &theirs.stdout) && ours.stderr.lines().eq(their_lines)
            }
        };
        let name = format!("{kind}, {}, {mode:?}", damage.name);
        if !is_alike {
            found.push(format!("{name}\n--- cairn-img\n{ours:?}\n--- qemu-img\n{theirs:?}"));
        }
        if repairs_all && ours.status == Some(0) {
            let again = bed.try_run(Path::new("qemu-img"), &["check", "-f", "qcow2", "b.qcow2"]);
            if !again.status.success() {
                found.push(format!("{name}: qemu-img finds afterwards: {again:?}"));
            }
            if damage.harmless && bed.content("b.qcow2") != content {
                found.push(format!("{name}: another content"));
            }
        }
    }
    found
}

fn compare(test: &str, kind: Kind, damages: Vec<Damage>) {
    let Some(bed) = Bed::new(kind) else { return skipped(test) };
    let content = bed.content("a.qcow2");
    let all: Vec<_> = damages.iter().flat_map(|damage| differences(&bed, kind.0, damage, &content)).collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn qcow2_images_of_every_kind_are_checked_alike() {
    for (kind, count) in KINDS.into_iter().zip([10].into_iter().chain(std::iter::repeat(5))) {
        let damages = any_damages().into_iter().take(count);
        compare("qcow2_images_of_every_kind_are_checked_alike", kind, damages.collect());
    }
}

#[test]
fn entries_that_cannot_be_are_found_alike() {
    for kind in [KINDS[0], KINDS[8]] {
        compare("entries_that_cannot_be_are_found_alike", kind, any_damages().into_iter().skip(10).collect());
    }
}

#[test]
fn snapshots_are_checked_alike() {
    compare("snapshots_are_checked_alike", KINDS[9], snapshot_damages());
}

/// Scenario: results as JSON, with every field that there is.
#[test]
fn results_are_printed_alike() {
    let act: fn(&mut Bytes) = |image| {
        image.set_count(image.cluster(), 3);
        image.change(image.entry(3), |entry| entry | 0x200);
    };
    let damage = damage("several", act, Alike::Wholly, false);
    for kind in [KINDS[0], KINDS[6]] {
        let Some(bed) = Bed::new(kind) else { return skipped("results_are_printed_alike") };
        for words in [
            "--output=json",
            "--output=human",
            "--output=json -r all",
            "--output=json -r leaks",
            "-q",
            "-q -r all",
            "-q --output=json",
            "-f qcow2 -U",
            "-T none",
            "--cache=writethrough --repair=all",
            "-f raw",
            "-f raw -r all",
        ] {
            let words: Vec<_> = words.split(' ').collect();
            let theirs = bed.check(Path::new("qemu-img"), &damage, &words);
            assert_eq!(bed.check(program(), &damage, &words), theirs, "{words:?}");
        }
        for words in ["driver=qcow2,file.filename=b.qcow2", "file.filename=b.qcow2", "driver=raw,file.filename=b.qcow2"]
        {
            let run = |program: &Path| {
                let output = bed.try_run(program, &["check", "-q", "--image-opts", words]);
                (output.status.code(), output.stdout)
            };
            assert_eq!(run(program()), run(Path::new("qemu-img")), "{words}");
        }
    }
}

#[test]
fn mistakes_on_the_command_line_are_told_alike() {
    crate::support::check_all(
        "mistakes_on_the_command_line_are_told_alike",
        &[
            "check",
            "check a.raw a.raw",
            "check nothing.qcow2",
            "check a.raw",
            "check -f raw a.raw",
            "check -r all a.raw",
            "check -f raw --output=json a.raw",
            "check -f qcow2 a.raw",
            "check -f nonsense a.raw",
            "check -r some a.raw",
            "check -T some a.raw",
            "check --output=some a.raw",
            "check --image-opts -f raw a.raw",
            "check -U -r all -f raw a.raw",
            "check -x a.raw",
            "check -r",
        ],
    );
}

/// Scenario: an image without a fault, with a snapshot and a bitmap. qemu-img 10.0.2 loses the snapshot when it is told to repair it.
#[test]
fn a_repair_leaves_the_snapshots_of_an_image_with_bitmaps() {
    const ACTS: &[&str] = &[WRITES[0], "img snapshot -c one a.qcow2", "img bitmap --add a.qcow2 a"];
    let kind = ("both", "", "12M", ACTS);
    let Some(bed) = Bed::new(kind) else { return skipped("a_repair_leaves_the_snapshots_of_an_image_with_bitmaps") };
    let damage = damage("none", |_| (), Alike::Wholly, true);
    for mode in modes() {
        assert_eq!(bed.check(program(), &damage, &mode).status, Some(0));
        let before = std::fs::read(bed.path("a.qcow2")).expect("an image");
        assert!(std::fs::read(bed.path("b.qcow2")).expect("an image") == before, "{mode:?}");
    }
}
