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
    // Where new clusters go is the allocator's business, once it was begun anew.
    let is_reopened = commands.iter().any(|command| command.contains("reopen"));
    let map = |dir: &Path| {
        let (status, map) = of(dir, &["map", "--output=json", "-f", "qcow2", "a"]);
        let place = |line: &str| line.split(", \"offset\"").next().unwrap_or_default().to_owned();
        let lines = map.lines().map(|line| if is_reopened { place(line) } else { line.to_owned() });
        (status, lines.collect::<Vec<_>>())
    };
    let (our_map, their_map) = (map(our_dir), map(their_dir));
    assert!(is_reopened || our_map == their_map, "{commands:?}: {our_map:?}, {their_map:?}");
    if is_reopened {
        let their_image = their_dir.join("a").display().to_string();
        let compared = of(our_dir, &["compare", "-f", "qcow2", "-F", "qcow2", "a", &their_image]);
        assert_eq!((compared.0, our_map.0), (Some(0), their_map.0), "{commands:?}: {}", compared.1);
    }
    let checked = of(our_dir, &["check", "-f", "qcow2", "a"]);
    assert_eq!(checked.0, Some(0), "{commands:?}: {}", checked.1);
    if !commands.iter().any(|command| command.contains("discard=unmap")) {
        return;
    }
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
            for program in [&ours(), &their_program] {
                let mut bytes = bytes.clone();
                bytes[table + 8..table + 16].copy_from_slice(&(1 << 63 | place).to_be_bytes());
                std::fs::write(&path, bytes).expect("the image");
                let open = format!("open -o {checks} a");
                let ran = run(program, dir.path(), &["-c", &open, "-c", "write -P 9 64k 512"], b"");
                let is_marked = std::fs::read(&path).expect("the image")[79] & 2 != 0;
                outcomes.push((ran.status, without_times(&ran.stdout), is_marked, ran.stderr));
            }
            assert_eq!(outcomes[0], outcomes[1], "{kind}, {checks}");
        }
    }
}

#[test]
fn reopen_1_an_image_is_reopened_alike() {
    let bitmap = [PLAIN, &["qemu-img bitmap --add a b", "qemu-img snapshot -c s a"]].concat();
    let scripts: &[&[&str]] = &[
        &[
            "open a",
            "reopen -r",
            "write -P 2 0 64k",
            "read -P 1 0 64k",
            "reopen -w",
            "write -P 2 0 64k",
            "read -P 2 0 64k",
        ],
        &["open -r a", "reopen -w", "write -P 3 64k 64k", "reopen -r", "read -P 3 64k 64k", "write 0 512"],
        &[
            "open a",
            "write -P 4 2M 64k",
            "reopen -r",
            "read -P 4 2M 64k",
            "reopen -w",
            "write -P 5 3M 64k",
            "discard 0 64k",
        ],
        &["open a", "reopen -o lazy-refcounts=on", "write 4M 64k", "reopen -o lazy-refcounts=off", "write 5M 64k"],
        &[
            "open a",
            "reopen -o l2-cache-size=1M",
            "write -P 9 2M 64k",
            "reopen -o cache-size=2M,refcount-cache-size=1M",
            "reopen -o cache-size=1M,refcount-cache-size=2M",
            "reopen -o l2-cache-entry-size=512",
            "read -P 9 2M 64k",
            "write -P 8 3M 64k",
            "reopen -o l2-cache-entry-size=1000",
            "reopen -o cache-clean-interval=0",
            "reopen -o cache-clean-interval=7",
            "reopen -o cache-clean-interval=5000000000",
            "reopen -o cache-clean-interval=x",
            "reopen -o pass-discard-request=on",
            "reopen -o pass-discard-snapshot=off,pass-discard-other=on",
            "reopen -o overlap-check=all",
            "write -P 7 4M 64k",
            "reopen -o overlap-check=foo",
            "reopen -o overlap-check.template=none",
            "reopen -o discard-no-unref=on",
            "discard 128k 64k",
            "reopen -o bogus=1",
            "reopen -o file.filename=b",
            "reopen -o driver=raw",
            "read -P 7 4M 64k",
            "read -P 8 3M 64k",
            "read -P 9 2M 64k",
        ],
    ];
    for commands in scripts {
        check(PLAIN, commands);
        check(&bitmap, commands);
    }
    let old = &["IMG create -q -f qcow2 -o compat=0.10 a 8M"];
    check(old, &["open a", "reopen -o lazy-refcounts=on", "reopen -o discard-no-unref=on", "write 0 64k"]);
    let backed = &["IMG create -q -f raw b 8M", "IMG create -q -f qcow2 -b b -F raw a"];
    check(backed, &["open a", "reopen -r", "reopen -w", "write 0 64k", "reopen -o lazy-refcounts=on", "write 64k 512"]);
    let data_file = ["IMG create -q -f qcow2 -o data_file=d a 8M", "IO -f qcow2 -c 'write -P 1 0 256k' a"];
    check(&data_file, &["open a", "reopen -r", "write 0 512", "reopen -w", "write -P 3 64k 64k", "read -P 3 64k 64k"]);
}

/// What our program does with the image that `made` makes; then qemu-img finds nothing wrong with it.
fn reopen(made: &[&str], commands: &[&str], expect: &[&str]) -> Option<Vec<u8>> {
    theirs()?;
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path(), made);
    let ran = script(&ours(), dir.path(), commands);
    let told: Vec<&str> =
        ran.stdout.lines().chain(ran.stderr.lines()).filter(|line| !line.contains(" ops; ")).collect();
    assert_eq!(told, expect, "{commands:?}");
    let checked = qemu_img(dir.path(), &["check", "-f", "qcow2", "a"]);
    assert_eq!(checked.status.code(), Some(0), "{commands:?}: {}", text(&checked.stdout));
    Some(std::fs::read(dir.path().join("a")).expect("the image"))
}

/// Flags of the only bitmap of an image: bit 0 says that it is in use.
fn bitmap_flags(dir: &Path) -> String {
    let info = text(&qemu_img(dir, &["info", "-U", "-f", "qcow2", "a"]).stdout);
    let from = info.find("bitmaps:").expect("a bitmap");
    let to = info[from..].find("name:").expect("its name");
    info[from..from + to].split_whitespace().collect::<Vec<_>>().join(" ")
}

// Scenario: a reopen is refused when everything is prepared, for somebody writes, or because an option makes no sense. The image is written on as before.
#[test]
fn reopen_2_a_refused_reopen_leaves_an_image_as_it_was() {
    let bitmap = [PLAIN, &["qemu-img bitmap --add a b"]].concat();
    let wrote = |len: u64, at: u64| format!("wrote {len}/{len} bytes at offset {at}");
    let commands = [
        "open a",
        "write -P 2 2M 64k",
        "reopen -o read-only=on",
        "write -P 3 3M 64k",
        "reopen -r -o l2-cache-entry-size=1000",
        "write -P 4 4M 64k",
        "read -P 2 2M 64k",
    ];
    let expect = [
        wrote(65536, 2 << 20),
        wrote(65536, 3 << 20),
        wrote(65536, 4 << 20),
        "read 65536/65536 bytes at offset 2097152".to_owned(),
        "qemu-io: Read-only block node '#block002' cannot support read-write users".to_owned(),
        "qemu-io: L2 cache entry size must be a power of two between 512 and the cluster size (65536)".to_owned(),
    ];
    let expect: Vec<&str> = expect.iter().map(String::as_str).collect();
    reopen(&bitmap, &commands, &expect);
}

// Scenario: bitmaps are in use from the first write on, until the image is only read.
#[test]
fn qcow2_6_reopening_lets_go_of_bitmaps_and_takes_them_again() {
    let Some(_) = theirs() else { return };
    let bitmap = [PLAIN, &["qemu-img bitmap --add a b"]].concat();
    for (commands, flags) in [
        (&["open a", "reopen -r", "abort"][..], "bitmaps: [0]: flags: [0]: auto"),
        (&["open a", "write 0 512", "reopen -r", "abort"], "bitmaps: [0]: flags: [0]: auto"),
        (&["open -r a", "reopen -w", "abort"], "bitmaps: [0]: flags: [0]: auto"),
        (&["open -r a", "reopen -w", "write 0 512", "abort"], "bitmaps: [0]: flags: [0]: in-use [1]: auto"),
        (&["open a", "reopen -r", "reopen -w", "discard 0 64k", "abort"], "bitmaps: [0]: flags: [0]: in-use [1]: auto"),
        (&["open a", "reopen -o read-only=on", "abort"], "bitmaps: [0]: flags: [0]: auto"),
        (&["open a", "reopen -o read-only=on", "write 0 512", "abort"], "bitmaps: [0]: flags: [0]: in-use [1]: auto"),
        (&["open a", "reopen -r", "reopen -w", "write 0 512", "quit"], "bitmaps: [0]: flags: [0]: auto"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        make(dir.path(), &bitmap);
        script(&ours(), dir.path(), commands);
        assert_eq!(bitmap_flags(dir.path()), flags, "{commands:?}");
    }
}

/// What is told of the repair of an image with one cluster that is not counted.
const REPAIRED: &str = "ERROR cluster 5 refcount=0 reference=1
Rebuilding refcount structure
Repairing cluster 1 refcount=1 reference=0
Repairing cluster 2 refcount=1 reference=0";

// Scenario: an image was not closed, and is opened for reading. Before it is written it is repaired; qemu-io 10.0.2 writes to it as it is, and counts one cluster
// for two.
#[test]
fn qcow2_5_a_dirty_image_is_repaired_before_it_is_written() {
    let dirty = [
        "IMG create -q -f qcow2 -o lazy_refcounts=on a 8M",
        "IO -f qcow2 -c 'write -P 1 0 64k' -c flush -c abort a 2>/dev/null; true",
    ];
    let commands =
        ["open -r a", "read -P 1 0 64k", "reopen -w", "write -P 2 64k 64k", "read -P 1 0 64k", "read -P 2 64k 64k"];
    let read = |at: u64| format!("read 65536/65536 bytes at offset {at}");
    let wrote = "wrote 65536/65536 bytes at offset 65536".into();
    let mut expect = vec![read(0), wrote, read(0), read(65536)];
    expect.extend(REPAIRED.lines().map(str::to_owned));
    reopen(&dirty, &commands, &expect.iter().map(String::as_str).collect::<Vec<_>>());
}

// Scenario: an image is marked as corrupt. It is read, and not reopened for writing; qemu-io 10.0.2 does so.
#[test]
fn qcow2_5_a_corrupt_image_is_not_reopened_for_writing() {
    let Some(_) = theirs() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path(), PLAIN);
    let path = dir.path().join("a");
    let mut bytes = std::fs::read(&path).expect("the image");
    bytes[79] |= 2;
    std::fs::write(&path, &bytes).expect("the image");
    let ran = script(&ours(), dir.path(), &["open -r a", "reopen -w", "read -P 1 0 64k", "write 0 512"]);
    let told = "qemu-io: qcow2: Image is corrupt; cannot be opened read/write\nqemu-io: Block node is read-only\n";
    assert_eq!((ran.status, ran.stderr.as_str()), (1, told));
    assert!(std::fs::read(&path).expect("the image") == bytes);
}

// Scenario: features that whoever writes has to clear are cleared by the first write after a reopen.
#[test]
fn qcow2_9_a_reopened_image_is_cleared_of_unknown_features() {
    let unknown = [PLAIN, &["printf '\\200' | dd of=a bs=1 seek=95 conv=notrunc 2>/dev/null"]].concat();
    let feature = |commands: &[&str], expect: &[&str]| reopen(&unknown, commands, expect).map(|bytes| bytes[95]);
    let Some(only_read) = feature(&["open -r a", "reopen -w", "reopen -r"], &[]) else { return };
    assert_eq!(only_read, 0x80);
    let wrote = "wrote 512/512 bytes at offset 0";
    assert_eq!(feature(&["open -r a", "reopen -w", "write 0 512"], &[wrote]), Some(0));
}

// Scenario: the first write after a reopen cannot say in the image that it is written. It fails, and nothing has changed; the next one does it.
#[test]
fn qcow2_6_who_cannot_claim_an_image_does_not_write_to_it() {
    let Some(_) = theirs() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path(), &[PLAIN, &["qemu-img bitmap --add a b"]].concat());
    let node = "driver=qcow2,file.driver=blkdebug,file.image.driver=file,file.image.filename=a,\
                file.inject-error.0.event=none,file.inject-error.0.iotype=write,file.inject-error.0.once=on";
    for (more, stdout) in [
        (&[][..], "write failed: Input/output error\n"),
        (
            &["-c", "write -P 3 64k 512", "-c", "read -P 3 64k 512", "-c", "read -P 1 0 64k"],
            "write failed: Input/output error\nwrote 512/512 bytes at offset 65536\nread 512/512 bytes at offset 65536\n\
             read 65536/65536 bytes at offset 0\n",
        ),
    ] {
        let args = [&["-r", "--image-opts", "-c", "reopen -w", "-c", "write -P 2 0 512"], more, &[node]].concat();
        let ran = run(&ours(), dir.path(), &args, b"");
        let told: String = ran.stdout.split_inclusive('\n').filter(|line| !line.contains(" ops; ")).collect();
        assert_eq!((told.as_str(), ran.stderr.as_str()), (stdout, ""));
        let content = run(&ours(), dir.path(), &["-r", "-f", "qcow2", "-c", "read -P 1 0 512", "a"], b"");
        assert_eq!(content.status, 0, "{content:?}");
    }
    assert_eq!(qemu_img(dir.path(), &["check", "-f", "qcow2", "a"]).status.code(), Some(0));
    assert_eq!(bitmap_flags(dir.path()), "bitmaps: [0]: flags: [0]: auto");
}
