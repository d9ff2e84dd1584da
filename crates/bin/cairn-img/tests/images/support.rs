//! A folder of images, what a program makes of it, and the comparison of two programs.

use rustix::fs::SeekFrom;
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Bytes that no two blocks share.
pub(crate) fn data(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// A sparse file of `len` bytes with data at some places.
pub(crate) fn sparse(path: &Path, len: u64, pieces: &[(u64, &[u8])]) {
    let file = File::create(path).expect("a file");
    file.set_len(len).expect("a length");
    for (at, bytes) in pieces {
        file.write_all_at(bytes, *at).expect("room");
    }
}

/// A file system as it may look: a superblock, tables with gaps, some files.
fn file_system(noise: &[u8]) -> Vec<(u64, &[u8])> {
    let piece = |i: u64| {
        let from = (i * 7919 % 1000) as usize * 512;
        let len = if i.is_multiple_of(3) { 100 } else { (i as usize * 4096) % 70_000 + 1 };
        (i * 260_000 / 512 * 512 + i % 2 * 512, &noise[from..from + len])
    };
    (0..40).map(piece).collect()
}

/// Zeroes of every length between data.
fn gaps() -> Vec<u8> {
    let mut gaps = vec![0; 320 << 10];
    let mut at = 0;
    for i in 0..60 {
        gaps[at..at + 5].copy_from_slice(format!("gap{i:02}").as_bytes());
        at += 512 * (i % 20 + 1);
    }
    gaps
}

/// Make the image called `name` at `path`.
fn make(name: &str, path: &Path) {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| data(3 * MIB as usize));
    match name {
        "a.raw" => sparse(path, MIB, &[(0, &noise[..MIB as usize])]),
        "odd.raw" => sparse(path, 1_000_000, &[(0, &noise[..1_000_000])]),
        "one.raw" => sparse(path, 1, &[(0, b"x")]),
        "empty.raw" => sparse(path, 0, &[]),
        "hole.raw" => sparse(path, MIB, &[]),
        "zeroes.raw" => sparse(path, 3 * MIB, &[(0, &vec![0; 3 * MIB as usize])]),
        "huge.raw" => sparse(path, 1 << 40, &[((1 << 39) + 4096, b"far away"), ((1 << 40) - 1, b"z")]),
        "fs.raw" => sparse(path, 11 * MIB, &file_system(noise)),
        // As long as the one before, and different at its end.
        "fs2.raw" => sparse(path, 11 * MIB, &[&file_system(noise)[..], &[(11 * MIB - 1000, b"x")]].concat()),
        "gaps.raw" => sparse(path, (320 << 10) + 700, &[(0, &gaps())]),
        "target.raw" => sparse(path, 12 * MIB, &[0, 3, 6, 9].map(|mib| (mib * MIB, noise.as_slice()))),
        "header.qcow2" => sparse(path, 4096, &[(0, b"QFI\xfb\0\0\0\x03")]),
        _ => std::fs::create_dir(path).expect("a folder"),
    }
}

const NAMES: [&str; 13] = [
    "a.raw",
    "dir",
    "empty.raw",
    "fs.raw",
    "fs2.raw",
    "gaps.raw",
    "header.qcow2",
    "hole.raw",
    "huge.raw",
    "odd.raw",
    "one.raw",
    "target.raw",
    "zeroes.raw",
];

/// A folder with the images that a command line names.
pub(crate) fn folder(args: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for name in NAMES.iter().filter(|name| args.iter().any(|arg| arg.contains(**name))) {
        make(name, &dir.path().join(name));
    }
    dir
}

/// A file: its length, its extents of data, and a sum of what they hold.
#[derive(Debug, PartialEq)]
struct Content {
    len: u64,
    extents: Vec<(u64, u64)>,
    sum: u64,
}

impl Content {
    fn of(path: &Path) -> Self {
        let file = File::open(path).expect("a file");
        // Space that was never written to counts as data while zeroes wait for it in the page cache.
        file.sync_all().expect("synced");
        let len = file.metadata().expect("its length").len();
        let (mut extents, mut hasher, mut at) = (Vec::new(), DefaultHasher::new(), 0);
        while let Ok(start) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
            let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).expect("an end");
            extents.push((start, end));
            at = end;
        }
        // Only now: what the host reads ahead of that, it counts as data from then on.
        for &(start, end) in &extents {
            let mut bytes = vec![0; (end - start) as usize];
            file.read_exact_at(&mut bytes, start).expect("data");
            hasher.write(&bytes);
        }
        Self { len, extents, sum: hasher.finish() }
    }
}

/// What a program did.
#[derive(PartialEq)]
pub(crate) struct Outcome {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: Option<i32>,
    files: BTreeMap<PathBuf, Content>,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "status {:?}\n{}{}", self.status, self.stdout, self.stderr)?;
        self.files.iter().try_for_each(|(path, content)| writeln!(f, "{}: {content:?}", path.display()))
    }
}

/// The files of a folder, but for those that are as [`folder`] made them.
fn files(dir: &Path, before: &BTreeMap<PathBuf, std::time::SystemTime>) -> BTreeMap<PathBuf, Content> {
    let is_new = |path: &PathBuf| before.get(path) != modified(path).as_ref();
    let paths = std::fs::read_dir(dir).expect("a folder").map(|entry| entry.expect("an entry").path());
    let name = |path: &Path| PathBuf::from(path.file_name().expect("a name"));
    paths.filter(|path| path.is_file()).filter(is_new).map(|path| (name(&path), Content::of(&path))).collect()
}

fn modified(path: &Path) -> Option<std::time::SystemTime> {
    path.metadata().and_then(|stat| stat.modified()).ok()
}

/// What `program`, which lies at `path`, does in a folder of its own.
fn run(program: &str, path: &Path, args: &[&str]) -> Outcome {
    let dir = folder(args);
    let entries = std::fs::read_dir(dir.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
    let before = entries.filter_map(|path| Some((path.clone(), modified(&path)?))).collect();
    let output = Command::new(path).args(args).current_dir(dir.path()).stdin(Stdio::null()).output();
    let output = output.expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(program, "PROGRAM");
    Outcome {
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
        status: output.status.code(),
        files: files(dir.path(), &before),
    }
}

/// Our own program.
pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_cairn-img"))
}

/// What cairn-img does.
pub(crate) fn ours(args: &[&str]) -> Outcome {
    run("cairn-img", program(), args)
}

/// What qemu-img does, or `None` where it is not installed.
pub(crate) fn theirs(args: &[&str]) -> Option<Outcome> {
    Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().ok()?;
    Some(run("qemu-img", Path::new("qemu-img"), args))
}

/// Say that there is nothing to compare with.
pub(crate) fn skipped(test: &str) {
    skipped_because(test, "qemu-img is not installed");
}

/// Say that a test could not be run here, and why.
pub(crate) fn skipped_because(test: &str, reason: &str) {
    block_testkit::bed::skipped(test, reason);
}

/// The words of a line, which stand between single spaces; `''` is an empty one.
pub(crate) fn words(line: &str) -> Vec<&str> {
    line.split(' ').map(|word| if word == "''" { "" } else { word }).collect()
}

/// Both do the same with every line.
pub(crate) fn check_all(test: &str, lines: &[&str]) {
    let mut different = Vec::new();
    for line in lines {
        let args = words(line);
        let Some(theirs) = theirs(&args) else { return skipped(test) };
        let ours = ours(&args);
        if ours != theirs {
            different.push(format!("{line}\n--- cairn-img\n{ours:?}--- qemu-img\n{theirs:?}"));
        }
    }
    assert!(different.is_empty(), "{} of {} lines differ:\n{}", different.len(), lines.len(), different.join("\n"));
}
