//! qcow2 images with options of their driver: the same scripts on the same images with both programs. What they print is the same, what the image is after
//! it, and qemu-img finds nothing wrong with ours.

use crate::support::{Ran, ours, run, theirs, without_times};
use std::path::Path;
use std::process::{Command, Output};

fn qemu_img(dir: &Path, args: &[&str]) -> Output {
    Command::new("qemu-img").args(args).current_dir(dir).output().expect("qemu-img comes with qemu-io")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What is made for a script: a command line for each program that makes it, `IMG` or `IO` first.
const PLAIN: &[&str] = &["IMG create -q -f qcow2 a 8M", "IO -f qcow2 -c 'write -P 1 0 1M' a"];

fn make(dir: &Path, lines: &[&str]) {
    for line in lines {
        let line = line.replacen("IMG", "qemu-img", 1).replacen("IO", "qemu-io", 1);
        let made = Command::new("sh").args(["-c", &line]).current_dir(dir).output().expect("a shell");
        assert!(made.status.success(), "{line}: {made:?}");
    }
}

fn script(program: &Path, dir: &Path, commands: &[&str]) -> Ran {
    let args: Vec<&str> = commands.iter().flat_map(|command| ["-c", *command]).collect();
    let ran = run(program, dir, &args, b"");
    Ran { stdout: without_times(&ran.stdout), ..ran }
}

/// Both programs do the same with the image `a`, which is described by the same words after it.
fn check(made: &[&str], commands: &[&str]) {
    let Some(their_program) = theirs() else { return };
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let [our_dir, their_dir] = dirs.each_ref().map(|dir| dir.path());
    make(their_dir, made);
    for entry in std::fs::read_dir(their_dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        std::fs::copy(&path, our_dir.join(path.file_name().expect("a name"))).expect("a copy");
    }
    let (ours, theirs) = (script(&ours(), our_dir, commands), script(&their_program, their_dir, commands));
    assert_eq!(ours, theirs, "{commands:?}");
    let of = |dir: &Path, args: &[&str]| {
        let output = qemu_img(dir, args);
        (output.status.code(), text(&output.stdout))
    };
    let args = ["map", "--output=json", "-f", "qcow2", "a"];
    assert_eq!(of(our_dir, &args), of(their_dir, &args), "{commands:?}");
    let checked = of(our_dir, &["check", "-f", "qcow2", "a"]);
    assert_eq!(checked.0, Some(0), "{commands:?}: {}", checked.1);
    let allocated = |dir: &Path| {
        let du = Command::new("du").arg("-k").arg(dir.join("a")).output().expect("du");
        text(&du.stdout).split_whitespace().next().and_then(|kib| kib.parse::<i64>().ok()).expect("a number")
    };
    // A hole more or less of a cluster is the allocator's business.
    let more = allocated(our_dir) - allocated(their_dir);
    assert!(more.abs() <= 128, "{commands:?}: {more} KiB more");
}

#[test]
fn discarded_clusters_keep_their_places_alike() {
    for options in ["discard-no-unref=on,discard=unmap", "discard-no-unref=on", "discard-no-unref=off,discard=unmap"] {
        let open = format!("open -o {options} a");
        let rest = [
            "discard 64k 128k",
            "write -z -u 256k 64k",
            "write -z 384k 64k",
            "discard 515k 200k",
            "read -P 0 64k 128k",
            "flush",
            "write -P 2 64k 64k",
            "discard 0 64k",
            "read -P 2 64k 512",
            "read -P 1 192k 64k",
        ];
        let commands: Vec<&str> = [open.as_str()].into_iter().chain(rest).collect();
        check(PLAIN, &commands);
        let compressed = [PLAIN, &["IO -f qcow2 -c 'write -c -P 7 2M 64k' -c 'write -z 3M 64k' a"]].concat();
        check(&compressed, &[&open, "discard 2M 64k", "discard 3M 128k", "read -P 0 2M 64k"]);
        let subclusters = [
            "IMG create -q -f qcow2 -o extended_l2=on a 8M",
            "IO -f qcow2 -c 'write -P 1 0 192k' -c 'write -P 2 256k 4k' a",
        ];
        check(&subclusters, &[&open, "discard 0 64k", "discard 66k 2k", "discard 256k 64k", "write -z -u 128k 64k"]);
        let data_file = ["IMG create -q -f qcow2 -o data_file=d a 8M", "IO -f qcow2 -c 'write -P 1 0 256k' a"];
        check(&data_file, &[&open, "discard 64k 64k", "write -z -u 128k 64k", "read -P 0 64k 128k"]);
    }
}

// Scenario: the cluster is a snapshot's, too. Here the snapshot keeps its data.
#[test]
fn qcow2_7_discard_no_unref_leaves_snapshots_alone() {
    let Some(_) = theirs() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path(), &[PLAIN, &["IMG snapshot -c s a"]].concat());
    let open = "open -o discard-no-unref=on,discard=unmap a";
    let ran = script(&ours(), dir.path(), &[open, "discard 64k 64k", "read -P 0 64k 64k"]);
    assert_eq!(ran.status, 0, "{ran:?}");
    make(dir.path(), &["IMG check -q -f qcow2 a", "IMG snapshot -a s a", "IO -f qcow2 -c 'read -P 1 0 1M' a"]);
}

#[test]
fn options_that_make_no_sense_are_refused_alike() {
    let old = &["IMG create -q -f qcow2 -o compat=0.10 a 8M"];
    check(old, &["open -o discard-no-unref=on a"]);
    for options in [
        "discard-no-unref=maybe",
        "pass-discard-snapshot=maybe",
        "overlap-check=foo",
        "overlap-check.template=bar",
        "overlap-check.main-header=maybe",
        "overlap-check.foo=on",
    ] {
        check(PLAIN, &[&format!("open -o {options} a")]);
    }
}

/// Where metadata of the image that `qemu-img` made lies, by the name of its kind.
fn places(bytes: &[u8]) -> Vec<(&'static str, u64)> {
    let word = |at: u64| u64::from_be_bytes(bytes[at as usize..][..8].try_into().expect("eight bytes"));
    let offset = |raw: u64| raw & ((1 << 56) - 1) & !511;
    let (l1, counts, snapshots) = (word(40), word(48), word(64));
    let inactive = word(snapshots);
    vec![
        ("active-l1", l1),
        ("active-l2", offset(word(l1))),
        ("refcount-table", counts),
        ("refcount-block", offset(word(counts))),
        ("snapshot-table", snapshots),
        ("inactive-l1", inactive),
        ("inactive-l2", offset(word(inactive))),
    ]
}

// Scenario: an entry says that a guest's data lies where there is metadata. Both programs refuse the write with the same checks, mark the image, and say the
// same; ours where its log goes.
#[test]
fn qcow2_8_overlaps_are_found_alike() {
    let Some(their_program) = theirs() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let made = [PLAIN, &["IMG snapshot -c s a", "IO -f qcow2 -c 'write -P 2 0 128k' a"]].concat();
    make(dir.path(), &made);
    let path = dir.path().join("a");
    let bytes = std::fs::read(&path).expect("the image");
    let places = places(&bytes);
    let table = places[1].1 as usize;
    for (kind, place) in &places {
        for checks in [
            "overlap-check=none".to_owned(),
            "overlap-check=constant".to_owned(),
            "pass-discard-other=on".to_owned(),
            "overlap-check.template=all".to_owned(),
            format!("overlap-check.{kind}=off"),
            format!("overlap-check.template=none,overlap-check.{kind}=on"),
        ] {
            let mut outcomes = Vec::new();
            for (program, args) in [(&ours(), &["-T", "block_qcow2=error"][..]), (&their_program, &[])] {
                let mut bytes = bytes.clone();
                bytes[table + 8..table + 16].copy_from_slice(&(1 << 63 | place).to_be_bytes());
                std::fs::write(&path, bytes).expect("the image");
                let open = format!("open -o {checks} a");
                let args = [args, &["-c", &open, "-c", "write -P 9 64k 512"]].concat();
                let ran = run(program, dir.path(), &args, b"");
                let is_marked = std::fs::read(&path).expect("the image")[79] & 2 != 0;
                // The log has the node's name behind it.
                let said = ran.stderr.find("qcow2: Marking").map(|at| {
                    let line = ran.stderr[at..].lines().next().unwrap_or_default();
                    line.split(" node=").next().unwrap_or_default().to_owned()
                });
                outcomes.push((ran.status, without_times(&ran.stdout), is_marked, said));
            }
            assert_eq!(outcomes[0], outcomes[1], "{kind}, {checks}");
        }
    }
}
