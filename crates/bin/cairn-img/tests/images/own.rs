//! What there is no qemu-img for, or what it cannot be asked: full disks, limits of the host, programs that watch.

use crate::support::{data, ours, program, sparse};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Run our program in `dir`, where no file may get longer than `max` bytes.
fn limited(dir: &Path, max: u64, args: &[&str]) -> Output {
    let mut command = Command::new("prlimit");
    command.arg(format!("--fsize={max}")).arg(program()).args(args).current_dir(dir).stdin(Stdio::null());
    // The signal that comes with the limit is inherited as ignored, as a shell's `trap ''` does it.
    let mut shell = Command::new("sh");
    let line: Vec<_> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    shell.arg0("sh").arg("-c").arg(format!("trap '' XFSZ; exec {}", line.join(" "))).current_dir(dir);
    shell.output().expect("a shell")
}

fn check_limited(max: u64, args: &[&str], stderr: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    sparse(&dir.path().join("big.raw"), 3 << 20, &[(0, &data(3 << 20))]);
    sparse(&dir.path().join("there.raw"), 3 << 20, &[]);
    let output = limited(dir.path(), max, args);
    assert_eq!(String::from_utf8_lossy(&output.stderr), stderr, "{args:?}");
    assert_eq!(output.status.code(), Some(1), "{args:?}");
    assert!(!dir.path().join("n.qcow2").exists(), "{args:?}: half an image is left");
}

#[test]
fn a_file_that_gets_too_long_is_told() {
    let max = 1 << 20;
    check_limited(
        max,
        &["convert", "big.raw", "n.raw"],
        "cairn-img: n.raw: error while converting raw: Could not resize file: File too large\n",
    );
    check_limited(
        max,
        &["convert", "-n", "-m", "1", "big.raw", "there.raw"],
        "cairn-img: error while writing at byte 1048576: File too large\n",
    );
    check_limited(
        max,
        &["dd", "if=big.raw", "of=n.raw", "bs=64k"],
        "cairn-img: n.raw: error while creating output image: Could not resize file: File too large\n",
    );
    check_limited(
        max,
        &["create", "-q", "n.raw", "2M"],
        "cairn-img: n.raw: The image size is too large for file format 'raw'\n",
    );
    for mode in ["metadata", "falloc", "full"] {
        let options = format!("preallocation={mode}");
        check_limited(
            max,
            &["create", "-q", "-f", "qcow2", "-o", &options, "n.qcow2", "2M"],
            "cairn-img: n.qcow2: The image size is too large for file format 'qcow2' (try using a larger cluster size)\n",
        );
    }
    check_limited(
        max,
        &["resize", "-q", "-f", "raw", "big.raw", "4M"],
        "cairn-img: Could not resize file: File too large\n",
    );
}

/// Scenario: a program wants to know how far a conversion has come.
#[test]
fn programs_can_watch() {
    let outcome = ours(&["convert", "--progress=json", "fs.raw", "n.raw"]);
    assert_eq!((outcome.status, outcome.stderr.as_str()), (Some(0), ""));
    let lines: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
    let done: Vec<_> = lines.iter().map(|line| line["done"].as_u64().expect("bytes")).collect();
    assert!(done.is_sorted() && done.len() > 2, "{done:?}");
    let (first, last) = (&lines[0], &lines[lines.len() - 1]);
    assert_eq!((&first["percent"], &last["percent"]), (&0.0.into(), &100.0.into()));
    assert_eq!(last["done"], last["total"]);
}

/// Scenario: a conversion that takes two seconds is asked how it goes.
#[test]
fn a_signal_asks_for_progress() {
    let dir = tempfile::tempdir().expect("a folder");
    sparse(&dir.path().join("big.raw"), 2 << 20, &[(0, &data(2 << 20))]);
    let mut command = Command::new(program());
    command.args(["convert", "-r", "1M", "big.raw", "n.raw"]).current_dir(dir.path()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program");
    std::thread::sleep(std::time::Duration::from_millis(900));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.starts_with("    (") && text.ends_with("/100%)\n"), "{text}");
}
