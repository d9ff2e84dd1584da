//! Runs cairn-io and qemu-io on copies of the same files and compares what they print, how they end, and what the files
//! hold.

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The name that both programs go by, so that messages are the same.
pub(crate) const NAME: &str = "qemu-io";

/// How long a script may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A run of one program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    /// The exit status, or the signal that ended it as a negative number.
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program that is tested.
pub(crate) fn ours() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_cairn-io"))
}

/// The program that it is compared with. Where there is none, that is noted.
pub(crate) fn theirs() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join("qemu-io")).find(|path| path.is_file());
    if found.is_none() {
        block_testkit::bed::skipped("a comparison with qemu-io", "it is not installed");
    }
    found
}

/// Make the files that scripts work on.
pub(crate) fn make_files(dir: &Path) {
    let write = |name: &str, bytes: &[u8]| std::fs::write(dir.join(name), bytes).expect("a file");
    let sparse = |name: &str, data: &[(u64, u8, usize)]| {
        let file = std::fs::File::create(dir.join(name)).expect("a file");
        file.set_len(1 << 20).expect("a length");
        for &(at, byte, len) in data {
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![byte; len], at).expect("data");
        }
    };
    sparse("t.raw", &[(65536, b'x', 65536), (262_144, b'y', 4096)]);
    sparse("t2.raw", &[(65536, b'x', 65536), (262_144, b'y', 4096)]);
    sparse("h.raw", &[(4096, b'h', 4096)]);
    sparse("ro.raw", &[]);
    write("odd.raw", &b"abc".repeat(333));
    write("odd2.raw", &b"abc".repeat(333));
    write("empty.raw", b"");
    make_logs(&write);
    write("pat", b"abc");
    write("pat0", b"");
    write("pat1", &[b'Z'; 1000]);
    write("all", &(0..=255).collect::<Vec<u8>>());
    write("qcow2.hdr", b"QFI\xfb\0\0\0\x03");
    write("head.hdr", b"QF");
    write("tail.hdr", b"I\xfb\0\0\0\x03");
    std::fs::create_dir(dir.join("dir")).expect("a directory");
}

/// Make the images that scripts work on, with the tools that are compared with.
fn make_images(dir: &Path, their_io: &Path) {
    make_files(dir);
    let img = their_io.with_file_name("qemu-img");
    let run = |program: &Path, args: &str| {
        let status = Command::new(program).args(args.split(' ')).current_dir(dir).stdout(Stdio::null()).status();
        assert!(status.expect("it starts").success(), "{args}");
    };
    for (name, options) in [
        ("t", "-f qcow2"),
        ("x", "-f qcow2 -o extended_l2=on"),
        ("v2", "-f qcow2 -o compat=0.10"),
        ("s", "-f qcow2"),
        ("d", "-f qcow2 -o data_file=d.data"),
    ] {
        run(&img, &format!("create -q {options} {name}.qcow2 1M"));
        run(&img, &format!("convert -n -O qcow2 t.raw {name}.qcow2"));
    }
    run(&img, "convert -c -O qcow2 t.raw c.qcow2");
    run(&img, "create -q -f qcow2 -b t.qcow2 -F qcow2 b.qcow2");
    run(&img, "snapshot -c one s.qcow2");
    // An L2 entry that points between clusters, and counts that were not written.
    run(&img, "convert -O qcow2 t.raw bad.qcow2");
    let path = dir.join("bad.qcow2");
    let mut bytes = std::fs::read(&path).expect("an image");
    let number = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight"));
    let l1 = number(&bytes, 40) as usize;
    let l2 = (number(&bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    bytes[l2 + 8..l2 + 16].copy_from_slice(&0x8000_0000_0005_0200u64.to_be_bytes());
    std::fs::write(path, bytes).expect("room");
    run(&img, "create -q -f qcow2 -o lazy_refcounts=on dirty.qcow2 1M");
    let mut killed = Command::new(their_io);
    killed.args(["-c", "write -q 0 256k", "-c", "abort", "dirty.qcow2"]).current_dir(dir).stderr(Stdio::null());
    assert!(!killed.status().expect("it starts").success());
}

/// What two images have that is not equal: their content, or what they say of it.
fn image_difference(their_io: &Path, theirs: &Path, ours: &Path) -> Option<String> {
    let img = their_io.with_file_name("qemu-img");
    let output = |args: &[&std::ffi::OsStr]| {
        let output = Command::new(&img).args(args).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (compare, strict) = ("compare".as_ref(), "-s".as_ref());
    let compared = output(&[compare, strict, theirs.as_os_str(), ours.as_os_str()]);
    let checked = output(&["check".as_ref(), ours.as_os_str()]);
    let is_good = compared.0 == Some(0) && checked.0 == Some(0);
    (!is_good).then(|| format!("{compared:?}, {checked:?}"))
}

/// Run `program` in `dir`, and give it `stdin`.
pub(crate) fn run(program: &Path, dir: &Path, args: &[&str], stdin: &[u8]) -> Ran {
    let mut command = Command::new(program);
    command.arg0(NAME).args(args).current_dir(dir).env_remove("RUST_LOG").env("LC_ALL", "C");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    // It may end before it has read everything.
    let _ = input.write_all(stdin);
    drop(input);
    let id = child.id();
    let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let watch = {
        let (done, args) = (done.clone(), args.join(" "));
        std::thread::spawn(move || {
            let begin = Instant::now();
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if begin.elapsed() > PATIENCE {
                    println!("took too long: {args}");
                    let _ = Command::new("kill").arg("-9").arg(id.to_string()).status();
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(100));
            }
        })
    };
    let output = child.wait_with_output().expect("the program ends");
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    watch.thread().unpark();
    watch.join().expect("nothing in it panics");
    let status = output.status.code().unwrap_or_else(|| -output.status.signal().unwrap_or(0));
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { status, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// `text` without what depends on the time that requests took, but with the shape of it.
pub(crate) fn without_times(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.split('\n') {
        let fields: Vec<&str> = line.split(',').collect();
        lines.push(match line.split_once(" ops; ") {
            Some((start, times)) => format!("{start} ops; {}", shape(times)),
            None if fields.len() == 5 && fields[1] == "1" => {
                format!("{},1,{}", fields[0], shape(&fields[2..].join(",")))
            }
            None => line.to_owned(),
        });
    }
    lines.join("\n")
}

/// Numbers become `#`, units become `U`.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for c in text.chars() {
        match c {
            '0'..='9' | '.' if shape.ends_with('#') => {}
            '0'..='9' => shape.push('#'),
            _ => shape.push(c),
        }
    }
    // Long times are written in another way. Some of theirs are: they do not set all their clocks.
    shape = shape.replace("#:#:#", "# sec");
    for unit in ["bytes/", "KiB/", "MiB/", "GiB/", "TiB/"] {
        shape = shape.replace(unit, "U/");
    }
    shape
}

/// The reports in `text`, each with the lines that belong to it, in an order that does not depend on when they were
/// printed.
pub(crate) fn sorted_reports(text: &str) -> String {
    let mut reports = vec![String::new()];
    for line in text.split_inclusive('\n') {
        let report = reports.last_mut().expect("there is always one");
        report.push_str(line);
        if line.contains(" ops; ") || line.contains(" failed: ") {
            reports.push(String::new());
        }
    }
    reports.sort();
    reports.concat()
}

/// A place with the same files for each program.
pub(crate) struct Bench {
    ours: tempfile::TempDir,
    theirs: tempfile::TempDir,
    /// The images that every script's are copies of.
    files: tempfile::TempDir,
    their_program: PathBuf,
}

impl Bench {
    /// `None` if there is nothing to compare with.
    pub(crate) fn new() -> Option<Self> {
        let their_program = theirs()?;
        let (ours, theirs) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let files = tempfile::tempdir().expect("a directory");
        make_images(files.path(), &their_program);
        Some(Self { ours, theirs, files, their_program })
    }

    fn copy_images(&self, to: &Path) {
        for entry in std::fs::read_dir(self.files.path()).expect("a directory") {
            let entry = entry.expect("an entry");
            if !to.join(entry.file_name()).exists() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
            }
        }
    }

    /// Run both programs. Returns what is different, or nothing.
    pub(crate) fn compare(&self, args: &[&str], stdin: &[u8], any_order: bool) -> Option<String> {
        let run = |program: &Path, dir: &Path| {
            let dir = tempfile::tempdir_in(dir).expect("a directory");
            make_files(dir.path());
            if args.iter().any(|arg| arg.ends_with(".qcow2")) {
                self.copy_images(dir.path());
            }
            let ran = run(program, dir.path(), args, stdin);
            let mut stdout = without_times(&ran.stdout);
            if any_order {
                stdout = sorted_reports(&stdout);
            }
            (Ran { stdout, ..ran }, dir)
        };
        let (ours, our_dir) = run(&ours(), self.ours.path());
        let (theirs, their_dir) = run(&self.their_program, self.theirs.path());
        let mut different = Vec::new();
        if ours != theirs {
            different.push(format!("theirs: {}\nours:   {}", show(&theirs), show(&ours)));
        }
        for entry in std::fs::read_dir(their_dir.path()).expect("a directory") {
            let entry = entry.expect("an entry");
            if !entry.file_type().expect("a type").is_file() {
                continue;
            }
            let read = |path: PathBuf| std::fs::read(path).expect("a file");
            let (theirs, ours) = (read(entry.path()), read(our_dir.path().join(entry.file_name())));
            if theirs != ours && entry.path().extension().is_some_and(|extension| extension == "qcow2") {
                // Where clusters lie is each program's own business.
                let ours = our_dir.path().join(entry.file_name());
                different.extend(image_difference(&self.their_program, &entry.path(), &ours));
                continue;
            }
            if theirs != ours {
                let at = theirs.iter().zip(&ours).position(|(theirs, ours)| theirs != ours);
                let name = entry.file_name();
                different.push(format!(
                    "{name:?}: theirs has {} bytes, ours {}, first difference at {at:?}",
                    theirs.len(),
                    ours.len()
                ));
            }
        }
        (!different.is_empty())
            .then(|| format!("{args:?} < {:?}\n{}\n", String::from_utf8_lossy(stdin), different.join("\n")))
    }
}

fn show(ran: &Ran) -> String {
    format!("exit {}\n--- stdout\n{}--- stderr\n{}---", ran.status, ran.stdout, ran.stderr)
}

/// Logs of writes, as dm-log-writes has them: with entries, without, and some that are none.
fn make_logs(write: &impl Fn(&str, &[u8])) {
    let superblock = |magic: u64, version: u64, entries: u64, sector: u32| {
        let numbers = [magic, version, entries].map(u64::to_le_bytes).concat();
        let mut bytes = [numbers, sector.to_le_bytes().to_vec()].concat();
        bytes.resize(sector.max(512) as usize, 0);
        bytes
    };
    let magic = 0x6a_7366_7773_6872;
    let entry = |sector: u64, count: u64, flags: u64, size: usize| {
        let mut bytes = [sector, count, flags, 0].map(u64::to_le_bytes).concat();
        bytes.resize(size, 0);
        bytes
    };
    let data = vec![b'L'; 1024];
    let first = [superblock(magic, 1, 3, 512), entry(4, 2, 0, 512), data, entry(8, 8, 4, 512), entry(0, 0, 1, 512)];
    write("log1.raw", &first.concat());
    write("log2.raw", &[superblock(magic, 1, 1, 4096), entry(0, 1, 0, 4096), vec![b'M'; 9000]].concat());
    write("badmagic.raw", &superblock(1, 1, 0, 512));
    write("badversion.raw", &superblock(magic, 2, 0, 512));
    write("badsector.raw", &superblock(magic, 1, 0, 100));
}
