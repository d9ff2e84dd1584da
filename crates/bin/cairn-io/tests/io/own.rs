//! What cairn-io does that qemu-io does not: the differences of `docs/differences.md`, and what needs no comparison.

use crate::support::{Ran, make_files, run, without_times};
use std::path::Path;
use std::process::Command;

/// Run a script on fresh files and check all that comes of it.
fn check(args: &[&str], commands: &[&str], status: i32, stdout: &str, stderr: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    make_files(dir.path());
    check_in(dir.path(), args, commands, status, stdout, stderr);
}

fn check_in(dir: &Path, args: &[&str], commands: &[&str], status: i32, stdout: &str, stderr: &str) {
    let commands = commands.iter().flat_map(|command| ["-c", command]);
    let args: Vec<&str> = args.iter().copied().chain(commands).collect();
    let ran = run(&crate::support::ours(), dir, &args, b"");
    let ran = Ran { stdout: without_times(&ran.stdout), ..ran };
    assert_eq!(ran, Ran { status, stdout: stdout.into(), stderr: stderr.into() }, "{args:?}");
}

#[test]
fn lengths_are_exact() {
    let raw = &["-f", "raw", "odd.raw"];
    check(raw, &["length", "map"], 0, "999 bytes\n999 bytes (0x3e7) bytes     allocated at offset 0 bytes (0x0)\n", "");
    check(raw, &["read 998 2"], 1, "read failed: Input/output error\n", "");
    check(raw, &["truncate 700", "length"], 0, "700 bytes\n", "");
    check(&["--image-opts", "driver=null-co,size=1025"], &["length"], 0, "1.001 KiB\n", "");
}

#[test]
fn nobody_waits_for_breakpoints_that_cannot_be_hit() {
    let told = "Could not wait for breakpoint a: Operation not supported\n";
    check(&["-f", "raw", "t.raw"], &["wait_break a"], 1, told, "");
}

#[test]
fn what_crashes_qemu_io_does_not_crash_us() {
    let raw = &["-f", "raw", "t.raw"];
    let report = "read 8/8 bytes at offset 0\n8 bytes, 1 ops; # sec (# U/sec and # ops/sec)\n";
    check(raw, &["aio_read -r 0 4 4", "aio_flush"], 0, report, "");
    check(raw, &["zone_report 0 4294967295"], 1, "zone report failed: Operation not supported\n", "");
    let told = "pattern verification range exceeds end of read data\n";
    check(raw, &["read -P 0 -s 7E -l 7E 0 4"], 1, told, "");
}

#[test]
fn every_signal_ends_the_program_that_would() {
    check(&[], &["help quit", "sigraise 10", "help quit"], -10, "quit -- exit the program\n", "");
}

#[test]
fn memory_that_is_not_there_fails_the_command_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    make_files(dir.path());
    let script = format!(
        "ulimit -v 1500000; exec {} -f raw -c 'read 0 2000M' -c length t.raw",
        crate::support::ours().display()
    );
    let output = Command::new("sh").args(["-c", &script]).current_dir(dir.path()).output().expect("a shell");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        text(&output.stderr),
        "cairn-io: failed to allocate 2097152000 bytes at alignment 4096: Cannot allocate memory\n"
    );
    assert_eq!((text(&output.stdout).as_str(), output.status.code()), ("1 MiB\n", Some(1)));
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    check(
        &["--object", "authz-simple,id=s"],
        &["help quit"],
        1,
        "",
        "qemu-io: Object type 'authz-simple' is not supported\n",
    );
}

#[test]
fn temporary_images_leave_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    make_files(dir.path());
    let before = std::fs::read(dir.path().join("t.raw")).expect("a file");
    let run = |folder: &str| {
        let mut command = Command::new(crate::support::ours());
        let args = ["-s", "-f", "raw", "-c", "write -q -P 7 0 1k", "-c", "read -q -P 7 0 1k", "t.raw"];
        let output = command.args(args).current_dir(dir.path()).env("TMPDIR", folder).output().expect("it starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let temporary = tempfile::tempdir().expect("a directory");
    let folder = temporary.path().to_str().expect("UTF-8");
    assert_eq!(run(folder), (Some(0), String::new()));
    assert_eq!(temporary.path().read_dir().expect("a directory").count(), 0);
    assert!(std::fs::read(dir.path().join("t.raw")).expect("a file") == before);
    let told = "cairn-io: can't open device t.raw: Could not open temporary file '/nowhere/cairn.XXXXXX': No such file or directory\n";
    assert_eq!(run("/nowhere"), (Some(1), told.into()));
}

#[test]
fn the_program_says_what_it_is() {
    check(&["-V"], &[], 0, concat!("qemu-io version ", env!("CARGO_PKG_VERSION"), "\n"), "");
    let dir = tempfile::tempdir().expect("a directory");
    let help = run(&crate::support::ours(), dir.path(), &["--help"], b"");
    assert!(help.stdout.starts_with("Usage: qemu-io [OPTIONS]... [-c STRING]... [file]\nCairn disk exerciser\n"));
    assert!(help.status == 0 && help.stderr.is_empty());
}

#[test]
fn events_can_be_logged() {
    let dir = tempfile::tempdir().expect("a directory");
    make_files(dir.path());
    check_in(dir.path(), &["-T", "block_gs=trace,file=log", "-f", "raw", "t.raw"], &["length"], 0, "1 MiB\n", "");
    assert!(dir.path().join("log").is_file());
    let told = "qemu-io: Could not open trace file 'dir': Is a directory (os error 21)\n";
    check_in(dir.path(), &["-T", "file=dir", "-f", "raw", "t.raw"], &["length"], 1, "", told);
}

#[test]
fn a_file_whose_name_is_not_text_is_refused() {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(b"a\xff");
    let output = Command::new(crate::support::ours()).arg(name).output().expect("the program runs");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(told, "cairn-io: 'a\u{fffd}' is not valid UTF-8\n");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_reader_that_went_away_stops_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    make_files(dir.path());
    let script = format!(
        "{} -f raw -c 'sleep 100' -c length -c 'write -P 7 0 1' t.raw | true",
        crate::support::ours().display()
    );
    Command::new("sh").args(["-c", &script]).current_dir(dir.path()).status().expect("a shell");
    assert_eq!(std::fs::read(dir.path().join("t.raw")).expect("the image")[0], 7);
}
