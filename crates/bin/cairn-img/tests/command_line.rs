//! Command lines given to cairn-img and to the installed qemu-img: same output, same errors, same exit status, same
//! bytes in the file. Where the two differ, the difference is written down here, with its reason in
//! docs/differences.md.

#![allow(clippy::disallowed_methods, reason = "tests run programs and look at files")]

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const MIB: usize = 1 << 20;

/// Bytes that no two blocks share.
fn data(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A folder with the files that command lines name.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("a.raw"), data(MIB)).expect("a file");
    std::fs::write(dir.path().join("empty.raw"), b"").expect("a file");
    std::fs::create_dir(dir.path().join("dir")).expect("a folder");
    let mut qcow2 = b"QFI\xfb\0\0\0\x03".to_vec();
    qcow2.resize(4096, 0);
    std::fs::write(dir.path().join("header.qcow2"), qcow2).expect("a file");
    dir
}

/// What a program did.
#[derive(PartialEq)]
struct Outcome {
    stdout: String,
    stderr: String,
    status: Option<i32>,
    /// Of a.raw, afterwards.
    bytes: Vec<u8>,
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = self.bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        write!(f, "status {:?}\n{}{}a.raw: {sum:x}", self.status, self.stdout, self.stderr)
    }
}

/// The text with what may differ replaced: the program's name and the time that a run took.
fn normalised(text: &[u8], program: &str) -> String {
    let text = String::from_utf8_lossy(text).replace(program, "PROGRAM");
    let line = |line: &str| match line.strip_prefix("Run completed in ").and_then(|rest| rest.split_once(' ')) {
        Some((time, rest)) => {
            assert!(time.parse::<f64>().is_ok() && time.split_once('.').is_some_and(|(_, ms)| ms.len() == 3), "{line}");
            format!("Run completed in TIME {rest}\n")
        }
        None => format!("{line}\n"),
    };
    text.lines().map(line).collect()
}

fn run(program: &str, path: &Path, args: &[&str]) -> Outcome {
    let dir = folder();
    let output = Command::new(path).args(args).current_dir(dir.path()).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start {program}: {error}"));
    Outcome {
        stdout: normalised(&output.stdout, program),
        stderr: normalised(&output.stderr, program),
        status: output.status.code(),
        bytes: std::fs::read(dir.path().join("a.raw")).expect("the file"),
    }
}

fn ours(args: &[&str]) -> Outcome {
    run("cairn-img", Path::new(env!("CARGO_BIN_EXE_cairn-img")), args)
}

/// What qemu-img does, or `None` where it is not installed.
fn theirs(args: &[&str]) -> Option<Outcome> {
    Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().ok()?;
    Some(run("qemu-img", Path::new("qemu-img"), args))
}

/// Say that there is nothing to compare with.
fn skipped(test: &str) {
    block_testkit::bed::skipped(test, "qemu-img is not installed");
}

/// Both do the same. `false` when there is nobody to compare with.
fn check(args: &[&str]) -> bool {
    let Some(theirs) = theirs(args) else { return false };
    let ours = ours(args);
    assert!(ours == theirs, "{args:?}\n--- cairn-img\n{ours:?}\n--- qemu-img\n{theirs:?}");
    true
}

/// Both do the same with every line; the words of each stand between single spaces.
fn check_all(test: &str, lines: &[&str]) {
    for line in lines {
        if !check(&line.split(' ').collect::<Vec<_>>()) {
            return skipped(test);
        }
    }
}

#[test]
fn the_program_is_called_as_its_model() {
    check_all(
        "the_program_is_called_as_its_model",
        &[
            "foo",
            "-x",
            "--foo",
            "-T",
            "--trace",
            "-- bench",
            "-",
            "BENCH",
            "--help=1",
            "bench",
            "bench a b",
            "bench -- a.raw -c",
            "bench a b --flush-interval 3",
        ],
    );
    if !check(&[]) || !check(&[""]) {
        skipped("the_program_is_called_as_its_model");
    }
}

#[test]
fn options_are_found_as_getopt_finds_them() {
    check_all(
        "options_are_found_as_getopt_finds_them",
        &[
            "bench -x a.raw",
            "bench -c",
            "bench --count",
            "bench -wd",
            "bench -c 5 -d",
            "bench --foo a.raw",
            "bench --foo=1 a.raw",
            "bench --c 1 a.raw",
            "bench --f raw a.raw",
            "bench --fo raw",
            "bench --cou 1 a.raw",
            "bench --form raw -c 1 a.raw",
            "bench --write=1 a.raw",
            "bench --image-opts=x",
            "bench --help=1",
            "bench --object secret,id=a,data=b a.raw",
            "bench -wqx -fraw a.raw",
            "bench -wqc5 -fraw a.raw",
            "bench a.raw -c 1",
            "bench -c 1 -c 2 a.raw",
            "bench -c -d a.raw",
            "bench --count= a.raw",
            "bench --count=1 -f raw a.raw",
            "bench -q -c 1 a.raw",
            "bench --p 1",
        ],
    );
}

#[test]
fn numbers_are_read_as_they_are() {
    let texts = [
        "0",
        "1",
        "-1",
        "1k",
        "1.5",
        "1.5k",
        "0x10",
        "abc",
        "",
        "512",
        "2147483648",
        "9223372036854775807",
        "9223372036854775808",
        "1e",
        "8E",
        "0x",
        "255",
        "256",
        " 5",
        "+5",
        "5 ",
        "-0",
        "-1k",
        "-x",
        "010",
        "08",
    ];
    for option in ["-c", "-d", "-o", "-s", "-S", "--pattern", "--flush-interval"] {
        for text in texts {
            // The last one counts; a small one keeps runs short.
            let count: &[&str] = if option == "-c" { &[] } else { &["-c", "1"] };
            let args = [&["bench", "-w", "-f", "raw"], count, &[option, text, "a.raw"]].concat();
            if !check(&args) {
                return skipped("numbers_are_read_as_they_are");
            }
        }
    }
}

#[test]
fn the_first_mistake_counts() {
    check_all(
        "the_first_mistake_counts",
        &[
            "bench -t bogus -c abc a.raw",
            "bench -c abc -t bogus a.raw",
            "bench -t bogus a b",
            "bench -t bogus -h",
            "bench -c abc -h",
            "bench -i bogus -c abc a.raw",
            "bench --foo -c abc",
            "bench --flush-interval 5 -d 10 -w --image-opts -f x a.raw",
            "bench --image-opts -f x",
            "bench --image-opts -f raw driver=null-co",
            "bench --flush-interval 3 -d 4 -c 1 a.raw",
            "bench -w --flush-interval 4 -d 5 nofile",
            "bench --flush-interval 4 nofile",
            "bench -U -w a.raw",
        ],
    );
}

#[test]
fn modes_are_named_as_they_are() {
    for cache in ["writeback", "none", "off", "directsync", "writethrough", "unsafe", "bogus", "", "WRITEBACK"] {
        let read = check(&["bench", "-c", "3", "-t", cache, "-f", "raw", "a.raw"]);
        if !read || !check(&["bench", "-w", "--pattern", "7", "-c", "3", "-t", cache, "-f", "raw", "a.raw"]) {
            return skipped("modes_are_named_as_they_are");
        }
    }
    for aio in ["threads", "native", "io_uring", "bogus", ""] {
        check(&["bench", "-c", "1", "-i", aio, "a.raw"]);
        check(&["bench", "-c", "1", "-i", aio, "-t", "none", "a.raw"]);
    }
    check_all(
        "modes_are_named_as_they_are",
        &[
            "bench -n -c 1 a.raw",
            "bench -n -t none -c 1 a.raw",
            "bench -n -t directsync -c 1 -f raw a.raw",
            "bench -n -i threads -c 1 a.raw",
            "bench -i threads -n -c 1 a.raw",
            "bench -n -i bogus a.raw",
            "bench -n -i io_uring -t none -c 1 a.raw",
            "bench -t none -i threads -U -c 1 a.raw",
            "bench -c 1 -U a.raw",
        ],
    );
}

#[test]
fn images_are_opened_or_refused_alike() {
    check_all(
        "images_are_opened_or_refused_alike",
        &[
            "bench -c 1 header.qcow2",
            "bench -f qcow2 -c 1 a.raw",
            "bench -c 1 nofile",
            "bench -w -c 1 nofile",
            "bench -f raw nofile",
            "bench -c 1 -w dir",
            "bench -f bogus -c 1 a.raw",
            "bench -f  -c 1 a.raw",
            "bench -f file -c 1 a.raw",
            "bench -c 1 empty.raw",
            "bench -c 1 -s 1 empty.raw",
            "bench -c 5 -d 5 -f raw empty.raw",
            "bench -w -c 1 -f raw empty.raw",
            "bench -f raw a.raw",
            "bench a.raw",
            "bench -c 1 null-co://",
            "bench -c 1 -f null-co null-co://",
            "bench -c 1 null-co:x",
            "bench -c 1 bogus:x",
            "bench -c 1 json:{}",
            "bench -c 1 json:{",
            "bench -c 1 json:{\"driver\":\"null-co\"}",
            "bench -c 1 json:{\"driver\":\"null-co\",\"size\":100}",
            "bench -c 1 json:{\"driver\":\"bogus\"}",
            "bench -c 1 file:a.raw",
            "bench -c 1 -f raw json:{\"driver\":\"raw\",\"file\":{\"driver\":\"null-co\"}}",
            "bench --image-opts -c 1 driver=null-co",
            "bench --image-opts -c 1 driver=null-co,read-zeroes",
            "bench --image-opts -c 1 driver=raw,file.driver=file,file.filename=a.raw",
            "bench --image-opts -c 1 driver=raw,file.driver=file,file.filename=a.raw,foo=1",
            "bench --image-opts -c 1 driver=raw,file.driver=file,file.filename=a.raw,size=0",
            "bench --image-opts -c 1 driver=raw,file.driver=file,file.filename=a.raw,offset=2M",
        ],
    );
}

/// Who has no rights to anything here.
const NOBODY: u32 = 65534;

#[test]
fn a_file_that_may_not_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let dir = folder();
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("permissions");
    };
    let secret = dir.path().join("secret.raw");
    std::fs::write(&secret, b"secret").expect("a file");
    allow(&secret, 0o000);
    // Root may read everything: then somebody else has to try, with a program that he can reach.
    let is_root = std::fs::File::open(&secret).is_ok();
    let ours = dir.path().join("cairn-img");
    if is_root {
        allow(dir.path(), 0o755);
        std::fs::copy(env!("CARGO_BIN_EXE_cairn-img"), &ours).expect("room");
    }
    let ours = if is_root { ours.as_path() } else { Path::new(env!("CARGO_BIN_EXE_cairn-img")) };
    let name = secret.to_str().expect("a name");
    for (program, path) in [("cairn-img", ours), ("qemu-img", Path::new("qemu-img"))] {
        let mut command = Command::new(path);
        command.args(["bench", name]).stdin(Stdio::null());
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        let Ok(output) = command.output() else {
            assert_eq!(program, "qemu-img", "our own program starts");
            return skipped("a_file_that_may_not_be_read_is_named");
        };
        let message = format!("PROGRAM: Could not open '{name}': Could not open '{name}': Permission denied\n");
        assert_eq!(normalised(&output.stderr, program), message);
    }
}

#[test]
fn perm_5_an_image_that_somebody_holds_is_refused_with_a_hint() {
    let dir = folder();
    // As somebody does who writes and does not share that: the bytes are QEMU's.
    let held = std::fs::File::open(dir.path().join("a.raw")).expect("the image");
    for byte in [101, 201] {
        let (l_type, l_whence) = (libc::F_RDLCK as i16, libc::SEEK_SET as i16);
        let lock = libc::flock { l_type, l_whence, l_start: byte, l_len: 1, l_pid: 0 };
        nix::fcntl::fcntl(&held, nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)).expect("locked");
    }
    for (program, path) in [("cairn-img", env!("CARGO_BIN_EXE_cairn-img")), ("qemu-img", "qemu-img")] {
        let bench = |args: &[&str]| Command::new(path).arg("bench").args(args).current_dir(dir.path()).output();
        let Ok(refused) = bench(&["-c", "1", "-w", "-f", "raw", "a.raw"]) else {
            assert_eq!(program, "qemu-img", "our own program starts");
            return skipped("perm_5_an_image_that_somebody_holds_is_refused_with_a_hint");
        };
        let message = "PROGRAM: Could not open 'a.raw': Failed to get \"write\" lock\n\
                       Is another process using the image [a.raw]?\n";
        assert_eq!((normalised(&refused.stderr, program).as_str(), refused.status.code()), (message, Some(1)));
        let reading = bench(&["-c", "1", "-f", "raw", "a.raw"]).expect("it started before");
        assert!(reading.status.success(), "reading a raw image minds nobody");
    }
}

#[test]
fn writing_to_a_guessed_format_warns() {
    check_all(
        "writing_to_a_guessed_format_warns",
        &[
            "bench -c 1 -w a.raw",
            "bench -w -c 1 null-co://",
            "bench -w -c 1 file:a.raw",
            "bench -w -c 1 empty.raw",
            "bench -w -c 1 json:{\"file\":{\"driver\":\"file\",\"filename\":\"a.raw\"}}",
        ],
    );
}

#[test]
fn requests_past_the_end_fail() {
    check_all(
        "requests_past_the_end_fail",
        &[
            "bench -c 1 -o 1M a.raw",
            "bench -q -c 1 -o 1M a.raw",
            "bench -c 4 -d 1 -f raw -o 1044481 a.raw",
            "bench -c 6 -d 2 -f raw -s 300k a.raw",
            "bench -c 4 -d 4 -s 1M -o 1 -f raw a.raw",
            "bench -o 0x7fffffffffffffff -c 1 a.raw",
            "bench -s 64M -d 16 -c 1 a.raw",
        ],
    );
}

/// Scenario: writes of one byte value at places that depend on how offsets wrap around at the end, unaligned ones
/// among them. Only where every write went tells one from another.
#[test]
fn writes_change_the_same_bytes() {
    check_all(
        "writes_change_the_same_bytes",
        &[
            "bench -w -f raw -c 3 a.raw",
            "bench -w -f raw --pattern 0x5a -d 8 -c 1000 -s 4096 -o 8k -S 12k a.raw",
            "bench -w -f raw --pattern 3 -c 6 -d 1 -S 700k a.raw",
            "bench -w -f raw --pattern 9 -c 5 -d 2 -S 3M -o 4k a.raw",
            "bench -w -f raw --pattern 9 -c 5 -s 1 -S 2147483647 a.raw",
            "bench -w -f raw --pattern 9 -c 4 -s 512k a.raw",
            "bench -w -f raw --pattern 9 -c 400 -d 3 -s 3000 -S 5001 -o 77 -i threads a.raw",
            "bench -w -f raw --pattern 255 -d 8 -c 300 -t writethrough -S 12k a.raw",
            "bench -w -f raw --pattern 255 -d 8 -c 300 -t unsafe -S 12k a.raw",
            "bench -w -f raw --pattern 1 -d 8 -c 300 -t none -n -o 8k -S 12k a.raw",
            "bench -w -f raw --pattern 1 -d 8 -c 300 -t directsync -o 8k -S 12k a.raw",
            "bench -w -f raw --pattern 7 -d 1 -c 3 -s 511 -t none a.raw",
            "bench -w -f raw --pattern 7 -d 16 -c 2000 -s 511 -t none a.raw",
            "bench -d 1 -c 3 -s 511 -t none a.raw",
            "bench -c 3 -w --pattern 9 --image-opts driver=raw,file.driver=file,file.filename=a.raw,offset=4k,size=12k",
        ],
    );
}

#[test]
fn flushes_come_between_writes() {
    check_all(
        "flushes_come_between_writes",
        &[
            "bench -w -f raw --pattern 5 --flush-interval 4 -d 4 -c 17 a.raw",
            "bench -w -f raw --pattern 5 --flush-interval 7 -d 3 -c 100 -s 3000 -o 77 -S 5001 a.raw",
            "bench -w -f raw --pattern 5 --flush-interval 7 -d 3 -c 100 -s 3000 -o 77 -S 5001 --no-drain a.raw",
            "bench -w -f raw --pattern 5 --flush-interval 1 -d 1 -c 5 --no-drain a.raw",
            "bench -w -f raw --pattern 5 --flush-interval 100 -c 1 a.raw",
            "bench -w -f raw --no-drain -c 1 a.raw",
            "bench --no-drain -c 1 a.raw",
            "bench --flush-interval 0 -c 1 a.raw",
            "bench --pattern 3 -c 1 a.raw",
        ],
    );
}

/// What cairn-img prints and returns where it does not do the same as qemu-img. A line that no longer differs belongs
/// above.
fn check_known(line: &str, status: i32, stderr: &str) {
    let args: Vec<_> = line.split(' ').collect();
    let ours = ours(&args);
    assert_eq!((ours.status, ours.stderr.as_str()), (Some(status), stderr), "{line}");
    if let Some(theirs) = theirs(&args) {
        assert!(ours != theirs, "{line}: the same as qemu-img by now");
    }
}

#[test]
fn known_differences() {
    let try_help = "Try 'PROGRAM --help' for more info\n";
    // qemu-img's help names the option, its parser does not know it.
    check_known("bench --quiet -c 1 a.raw", 0, "");
    // Of two mistakes the other one is told, where one of them is no option at all.
    let no_such_option = "PROGRAM bench: unrecognized option '--foo'\nTry 'PROGRAM bench --help' for more info\n";
    check_known("bench -c abc --foo", 1, no_such_option);
    // An equals sign between a short option and its value.
    check_known("bench -c=5 -f raw a.raw", 0, "");
    // Memory for the buffers: qemu-img aborts.
    check_known("bench -s 64M -d 32 -c 75000 a.raw", 1, "PROGRAM: Could not allocate 32 buffers of 67108864 bytes\n");
    assert_eq!(ours(&["-h"]).status, Some(0));
    assert_eq!(ours(&["bench", "--help"]).status, Some(0));
    assert_eq!(ours(&["nonsense"]).stderr, format!("PROGRAM: Command not found: nonsense\n{try_help}"));
    let version = ours(&["--version"]);
    assert_eq!((version.status, version.stderr.as_str()), (Some(0), ""));
    assert_eq!(version.stdout, format!("PROGRAM version {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_log_can_be_seen() {
    let dir = folder();
    let log = dir.path().join("log");
    let trace = format!("block_gs=trace,file={}", log.display());
    let outcome = ours(&["-T", &trace, "bench", "-c", "1", "a.raw"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""));
    assert!(log.exists(), "a log is made");
    let outcome = ours(&["-T", "enable=[", "bench", "-c", "1", "a.raw"]);
    assert_eq!(outcome.status, Some(0));
    assert!(outcome.stderr.starts_with("PROGRAM: warning: trace filter '['"), "{}", outcome.stderr);
}
