//! Changes of live nodes beside qemu-storage-daemon: overlays, transactions, snapshots inside images, names of backing files, jobs that create and amend. The same
//! commands (in the `.qmp` files here), the same answers, the same events, and images of which `qemu-img` says the same.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and look at files"
)]

#[path = "../beside/mod.rs"]
mod beside;
mod create;
mod jobs;
mod members;

use block_testkit::bed::skipped;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_cairn-storage-daemon");
pub(crate) const THEIRS: &str = "qemu-storage-daemon";
const PATIENCE: Duration = Duration::from_secs(60);

/// What a daemon said, and what is in its folder.
#[derive(Debug)]
pub(crate) struct Talk {
    /// All of it, in order.
    pub(crate) lines: Vec<Value>,
    pub(crate) answers: Vec<Value>,
    pub(crate) events: Vec<Value>,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) fn has_theirs(test: &str) -> bool {
    let found = Command::new(THEIRS).arg("--version").output().is_ok();
    if !found {
        skipped(test, "qemu-storage-daemon is not installed");
    }
    found
}

fn image(dir: &Path, args: &str) {
    let output = Command::new("qemu-img").current_dir(dir).args(args.split(' ')).output().expect("qemu-img");
    assert!(output.status.success(), "{args}: {output:?}");
}

/// A folder with a few images.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for args in [
        "create -q -f qcow2 a.qcow2 1M",
        "create -q -f qcow2 -b a.qcow2 -F qcow2 t.qcow2",
        "create -q r.raw 2M",
        "create -q -f qcow2 o.qcow2 1M",
        "create -q -f qcow2 p.qcow2 1M",
        "create -q -f qcow2 big.qcow2 2M",
        "create -q -f qcow2 d.qcow2 50M",
        "bitmap --add d.qcow2 b",
        "bitmap --add -g 512 d.qcow2 fine",
        "bench -q -f qcow2 -w -c 100 -s 3000 -S 370000 d.qcow2",
    ] {
        image(dir.path(), args);
    }
    dir
}

impl Talk {
    fn of(lines: Vec<Value>, dir: tempfile::TempDir) -> Self {
        let lines: Vec<_> = lines.into_iter().map(comparable).collect();
        let (events, answers) = lines.iter().cloned().partition(|line: &Value| line.get("event").is_some());
        Self { lines, answers, events, dir }
    }
}

/// Tell a daemon the commands of `script`, one a line, each when the one before was answered and the job that it started, if it did, is over. However slow the machine is, they come in
/// the same states.
pub(crate) fn converse(program: &str, script: &str) -> Talk {
    let dir = folder();
    let mut daemon = beside::Conversation::begin(program, dir.path(), &[]);
    for line in script.lines() {
        let command: Value = serde_json::from_str(line).expect("JSON");
        let starts = command["execute"] == "blockdev-create" || command["execute"] == "x-blockdev-amend";
        let before = daemon.lines.len();
        let is_done = daemon.answer(line).get("return").is_some();
        if let (true, Some(job)) = (starts && is_done, command["arguments"]["job-id"].as_str()) {
            let is_end = |line: &Value| line["data"]["id"] == job && line["data"]["status"] == "concluded";
            daemon.until(|lines| lines[before..].iter().any(is_end));
        }
    }
    let mut lines = daemon.quit();
    // What comes at the end is no answer to the script.
    let quit = lines.iter().rposition(|line| line.get("return").is_some());
    quit.map(|at| lines.remove(at));
    Talk::of(lines, dir)
}

/// Tell a daemon the commands of `script`, one a line, in such a folder; `gap` after each.
pub(crate) fn talk(program: &str, script: &str, gap: Duration) -> Talk {
    let dir = folder();
    let mut daemon = Command::new(program);
    daemon.current_dir(dir.path()).args(["--chardev", "stdio,id=m", "--monitor", "m"]);
    let mut daemon = daemon.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect(program);
    let mut to = daemon.stdin.take().expect("a pipe");
    let ends = [r#"{"execute": "qmp_capabilities"}"#, r#"{"execute": "quit"}"#];
    for line in ends[..1].iter().copied().chain(script.lines()).chain(ends[1..].iter().copied()) {
        to.write_all(format!("{line}\n").as_bytes()).expect("it reads");
        std::thread::sleep(gap);
    }
    drop(to);
    let end = Instant::now() + PATIENCE;
    while daemon.try_wait().expect("a child").is_none() {
        if Instant::now() > end {
            daemon.kill().expect("a child");
            panic!("the daemon hangs: {:?}", daemon.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = daemon.wait_with_output().expect("a child");
    assert!(output.status.success(), "{program}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    // Theirs tells of images that it creates as a tool would.
    let lines = text.lines().filter(|line| !line.starts_with("Formatting '"));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{line}: {error}")));
    Talk::of(lines.skip(2).collect(), dir)
}

/// Without what is never the same.
fn comparable(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.remove("timestamp");
        if let Some(snapshot) = object.get_mut("return").and_then(Value::as_object_mut) {
            for key in ["date-sec", "date-nsec", "vm-clock-sec", "vm-clock-nsec"] {
                snapshot.remove(key);
            }
        }
    }
    value
}

/// What `qemu-img` says of an image, without what depends on how it is stored.
fn told(dir: &Path, name: &str) -> Value {
    let mut info = Command::new("qemu-img");
    let output = info.current_dir(dir).args(["info", "-U", "--output", "json", name]).output().expect("qemu-img");
    let mut told: Value = serde_json::from_slice(&output.stdout).unwrap_or(json!("none"));
    if let Some(told) = told.as_object_mut() {
        for key in ["actual-size", "children", "snapshots"] {
            told.remove(key);
        }
    }
    told
}

/// Both daemons are told `script`, answer the same, and leave the same `images`.
fn alike(test: &str, script: &str, images: &[&str]) {
    if !has_theirs(test) {
        return;
    }
    let [ours, theirs] = [OURS, THEIRS].map(|program| talk(program, script, Duration::ZERO));
    for ((our, their), line) in ours.answers.iter().zip(&theirs.answers).zip(script.lines()) {
        assert_eq!(our, their, "{line}");
    }
    assert_eq!(ours.answers.len(), theirs.answers.len());
    for name in images {
        assert_eq!(told(ours.dir.path(), name), told(theirs.dir.path(), name), "{name}");
    }
}

const OVERLAYS: [&str; 9] = ["n1", "n2", "n3", "n4", "n5", "n6", "n7", "n8", "n9"];

#[test]
fn overlays_are_put_on_alike() {
    alike("overlays_are_put_on_alike", include_str!("overlays.qmp"), &["a.qcow2", "t.qcow2", "o.qcow2", "n3.qcow2"]);
}

#[test]
fn bitmaps_have_the_same_hashes() {
    alike("bitmaps_have_the_same_hashes", include_str!("hashes.qmp"), &["d.qcow2"]);
}

#[test]
fn chains_grow_alike() {
    let images = OVERLAYS.map(|name| format!("{name}.qcow2"));
    alike("chains_grow_alike", include_str!("chains.qmp"), &images.each_ref().map(String::as_str));
}

#[test]
fn transactions_and_snapshots_inside_images_are_alike() {
    let images = ["a.qcow2", "t.qcow2", "o.qcow2", "big.qcow2", "p.qcow2"];
    alike("transactions_and_snapshots_inside_images_are_alike", include_str!("transactions.qmp"), &images);
}

#[test]
fn actions_are_refused_alike() {
    alike("actions_are_refused_alike", include_str!("refusals.qmp"), &["o.qcow2", "p.qcow2", "r.raw"]);
}

/// The format that is written is another one on purpose: that of what the image stands on.
#[test]
fn names_of_backing_files_are_changed_alike() {
    alike("names_of_backing_files_are_changed_alike", include_str!("backing.qmp"), &["o.qcow2", "big.qcow2"]);
    alike("names_of_backing_files_are_changed_alike", include_str!("backing2.qmp"), &["t.qcow2"]);
    let ours = talk(OURS, include_str!("backing.qmp"), Duration::ZERO);
    assert_eq!(told(ours.dir.path(), "t.qcow2")["backing-filename-format"], "raw");
    assert_eq!(told(ours.dir.path(), "t.qcow2")["backing-filename"], "y");
}

/// What is refused that the field does, and by which words.
#[test]
fn what_is_not_built_is_refused_by_name() {
    let script = r#"{"execute":"blockdev-add","arguments":{"driver":"qcow2","node-name":"t","file":{"driver":"file","filename":"t.qcow2"},"backing":null}}
{"execute":"blockdev-snapshot-sync","arguments":{"snapshot-file":"n.qcow2","node-name":"t","snapshot-node-name":"n"}}
{"execute":"blockdev-snapshot-sync","arguments":{"snapshot-file":"n.qcow2","node-name":"t","snapshot-node-name":"n","format":"vmdk"}}
{"execute":"transaction","arguments":{"actions":[{"type":"blockdev-backup","data":{"device":"t","target":"x","sync":"full"}}]}}
{"execute":"transaction","arguments":{"actions":[{"type":"drive-backup","data":{}}]}}"#;
    let told = talk(OURS, script, Duration::ZERO);
    let said: Vec<_> = told.answers.iter().filter_map(|answer| answer["error"]["desc"].as_str()).collect();
    assert_eq!(
        said,
        [
            "Node 't' has no file name of its own that an overlay could keep; create the overlay and use mode 'existing'",
            "Image format 'vmdk' is not supported",
            "Action 'blockdev-backup' is not supported",
            "Action 'drive-backup' is not supported",
        ]
    );
    assert!(!told.dir.path().join("n.qcow2").exists());
}
