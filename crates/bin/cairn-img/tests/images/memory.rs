//! However large images are, what is kept in memory of them is not.

use crate::support::{data, program};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// The most memory that `cairn-img` may have at a time, in KiB.
const KIB_MAX: u64 = 64 << 10;

/// The most memory that a run had at a time, in KiB, as far as was seen.
fn peak(dir: &Path, line: &str) -> u64 {
    let mut command = Command::new(program());
    command.args(line.split(' ')).current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.spawn().expect("it starts");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().expect("it is ours").is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()).and_then(|number| number.parse().ok());
        // It only grows while the process is there.
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(child.wait().expect("it ended").success(), "{line}");
    peak
}

#[test]
fn memory_does_not_grow_with_the_image() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let noise = data(1 << 20);
    let image = std::fs::File::create(dir.path().join("a.raw")).expect("a file");
    image.set_len(16 << 30).expect("a length");
    // A long run of data, many short ones, and a hole after each.
    for at in 0..200 {
        image.write_all_at(&noise, at << 20).expect("room");
    }
    for at in 0..5000 {
        image.write_all_at(&noise[..4096], (1 << 30) + (at << 20)).expect("room");
    }
    for line in [
        "convert -O raw a.raw b.raw",
        "compare a.raw b.raw",
        "convert -S 0 -m 16 -W -n -t none -T none -O raw a.raw b.raw --target-is-zero",
        "convert -n -C -O raw a.raw b.raw",
        "map --output=json a.raw",
        "measure -O raw a.raw",
    ] {
        // Zeroes are written as such: not here, where that would take the time and the room of all of it.
        if line.contains("-S 0") {
            std::fs::File::create(dir.path().join("b.raw")).and_then(|file| file.set_len(300 << 20)).expect("a file");
            image.set_len(300 << 20).expect("a length");
        }
        let peak = peak(dir.path(), line);
        assert!(peak > 0 && peak < KIB_MAX, "{line}: {peak} KiB");
    }
}

// Scenario: an image whose tables take 64 MiB, read everywhere. The caches have their default sizes.
#[test]
fn tables_of_a_large_image_are_not_all_kept() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    peak(dir.path(), "create -q -f qcow2 -o preallocation=metadata,cluster_size=16k a.qcow2 128G");
    let peak = peak(dir.path(), "bench -f qcow2 -d 32 -c 20000 -S 6815744 a.qcow2");
    assert!(peak > 0 && peak < KIB_MAX, "{peak} KiB");
}
