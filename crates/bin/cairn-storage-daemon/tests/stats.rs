//! What nodes were asked for, and what became of it, beside qemu-storage-daemon: its nodes are written to through NBD exports, ours through the monitor.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and look at files"
)]

mod beside;

use beside::{Conversation, OURS, THEIRS, has_theirs, image};
use serde_json::{Value, json};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

/// What is written to: every kind of node that passes requests on, transforms them, makes several of one, or lets them fail.
const WRITTEN: [&str; 8] = ["cor", "r", "l", "thr", "d", "quo", "bd", "cbw"];

const REQUESTS: [&str; 9] = [
    "write -q 4k 4k",
    "write -q 128k 1000",
    "write -q -z 256k 64k",
    "write -q -zu 512k 64k",
    "discard -q 640k 64k",
    "discard -q 0 64k",
    "discard -q 700k 1000",
    "write -q 0 512",
    "read -q 900k 64k",
];

fn file(name: &str, path: &str) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": path, "discard": "unmap" })
}

fn disk(name: &str) -> Value {
    json!({ "driver": "null-co", "node-name": name, "size": 1 << 20 })
}

fn nodes() -> [Value; 11] {
    let fails = json!([{ "event": "none", "iotype": "write", "errno": 5, "sector": 0 }]);
    [
        json!({ "driver": "qcow2", "node-name": "t", "discard": "unmap", "file": file("tf", "t.qcow2"),
            "backing": { "driver": "qcow2", "node-name": "a", "file": file("af", "a.qcow2") } }),
        json!({ "driver": "raw", "node-name": "r", "discard": "unmap", "file": file("rf", "r.raw") }),
        json!({ "driver": "luks", "node-name": "l", "key-secret": "s", "file": file("lf", "l.luks") }),
        json!({ "driver": "throttle", "node-name": "thr", "throttle-group": "tg", "discard": "unmap", "file": disk("n") }),
        json!({ "driver": "copy-on-read", "node-name": "cor", "discard": "unmap", "file": "t" }),
        json!({ "driver": "qcow2", "node-name": "d", "discard": "unmap", "file": file("df", "d.qcow2") }),
        json!({ "driver": "blkdebug", "node-name": "bd", "image": disk("n5"), "inject-error": fails }),
        json!({ "driver": "blkverify", "node-name": "bv", "raw": disk("x1"), "test": disk("x2") }),
        json!({ "driver": "copy-before-write", "node-name": "cbw", "discard": "unmap", "file": disk("z1"), "target": disk("z2") }),
        json!({ "driver": "snapshot-access", "node-name": "sa", "file": "cbw" }),
        json!({ "driver": "quorum", "node-name": "quo", "discard": "unmap", "vote-threshold": 1,
            "children": [disk("n2"), disk("n3")] }),
    ]
}

fn images(dir: &Path) {
    for args in [
        "create -q -f qcow2 a.qcow2 1M",
        "create -q -f qcow2 -b a.qcow2 -F qcow2 t.qcow2",
        "create -q r.raw 2M",
        "create -q --object secret,id=s,data=abc -f luks -o key-secret=s,iter-time=10 l.luks 1M",
        "create -q -f qcow2 -o data_file=d.raw,data_file_raw=on d.qcow2 1M",
    ] {
        image(dir, args);
    }
}

/// A name for nodes without one, and nothing of how a format uses its files: where clusters and tables are, and when the host hears of discards.
fn comparable(node: &mut Value, is_in_qcow2: bool) {
    let is_qcow2 = ["t", "d"].iter().any(|name| node["node-name"] == *name);
    if node["node-name"].as_str().is_some_and(|name| name.starts_with('#')) {
        node["node-name"] = "made up".into();
    }
    if is_in_qcow2 || ["tf", "df", "made up"].iter().any(|name| node["node-name"] == *name) {
        node["stats"]["wr_highest_offset"] = 0.into();
        let counts = node["driver-specific"].as_object_mut().expect("counts");
        counts.values_mut().filter(|count| count.is_u64()).for_each(|count| *count = 0.into());
    }
    if let Some(parent) = node.get_mut("parent") {
        comparable(parent, is_qcow2);
    }
}

fn told(daemon: &mut Conversation) -> Vec<Value> {
    let all = daemon.done("query-blockstats", json!({ "query-nodes": true }));
    let mut all = all.as_array().expect("a list").clone();
    all.iter_mut().for_each(|node| comparable(node, false));
    // Which one of parent and child comes first is each program's own.
    all.sort_by_key(|node| node["node-name"].to_string());
    all
}

/// What a daemon tells of all nodes after each request.
fn run(program: &str) -> Vec<(String, Vec<Value>)> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    images(dir.path());
    let objects = ["--object", "secret,id=s,data=abc", "--object", "throttle-group,id=tg"];
    let mut daemon = Conversation::begin(program, dir.path(), &objects);
    for node in nodes() {
        daemon.done("blockdev-add", node);
    }
    let mut all = vec![("at first".to_owned(), told(&mut daemon))];
    if program == THEIRS {
        daemon.done("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": "s" } } }));
    }
    for node in WRITTEN {
        if program == THEIRS {
            let export = json!({ "type": "nbd", "id": node, "node-name": node, "name": node, "writable": true });
            daemon.done("block-export-add", export);
        }
        for request in REQUESTS {
            if program == THEIRS {
                let uri = format!("nbd+unix:///{node}?socket=s");
                let args = ["-f", "raw", "-d", "unmap", "-t", "writeback", &uri, "-c", request];
                Command::new("qemu-io").current_dir(dir.path()).args(args).output().expect("qemu-io");
            } else {
                let line = format!("qemu-io {node} \"{request}\"");
                daemon.done("human-monitor-command", json!({ "command-line": line }));
            }
            all.push((format!("{node}: {request}"), told(&mut daemon)));
        }
    }
    daemon.quit();
    all
}

#[test]
fn what_nodes_were_asked_for_is_told_alike() {
    if !has_theirs("what_nodes_were_asked_for_is_told_alike") {
        return;
    }
    let (ours, theirs) = (run(OURS), run(THEIRS));
    for ((after, our), (_, their)) in ours.iter().zip(&theirs) {
        for (our, their) in our.iter().zip(their) {
            assert_eq!(our, their, "{after}");
        }
        assert_eq!(our.len(), their.len());
    }
    assert_eq!(ours.len(), theirs.len());
    let (_, last) = ours.last().expect("there are some");
    let node = |name: &str| last.iter().find(|node| node["node-name"] == name).expect("it is there");
    assert_eq!(node("rf")["driver-specific"]["discard-bytes-ok"], 132_072);
    assert_eq!(node("t")["stats"]["wr_highest_offset"], 589_824);
}

/// Scenario: a file that was sealed after it was opened. Its discards and writes fail, and are told of.
#[test]
fn requests_that_fail_are_told_alike() {
    if !has_theirs("requests_that_fail_are_told_alike") {
        return;
    }
    let run = |program: &str| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let memory = rustix::fs::memfd_create("sealed", rustix::fs::MemfdFlags::ALLOW_SEALING).expect("memory");
        let memory = std::fs::File::from(memory);
        memory.write_all_at(&[7; 65_536], 0).expect("it is long enough");
        let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&memory));
        let mut daemon = Conversation::begin(program, dir.path(), &[]);
        daemon.done("blockdev-add", file("m", &path));
        rustix::fs::fcntl_add_seals(&memory, rustix::fs::SealFlags::WRITE).expect("nobody has it mapped");
        if program == THEIRS {
            daemon.done("nbd-server-start", json!({ "addr": { "type": "unix", "data": { "path": "s" } } }));
            daemon.done("block-export-add", json!({ "type": "nbd", "id": "e", "node-name": "m", "writable": true }));
        }
        for request in ["discard -q 0 4k", "write -q 8k 4k"] {
            if program == THEIRS {
                let args = ["-f", "raw", "-d", "unmap", "nbd+unix:///m?socket=s", "-c", request];
                Command::new("qemu-io").current_dir(dir.path()).args(args).output().expect("qemu-io");
            } else {
                daemon.done("human-monitor-command", json!({ "command-line": format!("qemu-io m \"{request}\"") }));
            }
        }
        let told = told(&mut daemon);
        daemon.quit();
        told
    };
    let (ours, theirs) = (run(OURS), run(THEIRS));
    assert_eq!(ours, theirs);
    assert_eq!(ours[0]["driver-specific"]["discard-nb-failed"], 1);
    assert_eq!(ours[0]["stats"]["wr_highest_offset"], 12_288);
}

/// A device is told of with all that its medium stands on, and its counts are beside those of its node.
#[test]
fn devices_are_told_with_what_their_media_stand_on() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    image(dir.path(), "create -q -f qcow2 a.qcow2 1M");
    image(dir.path(), "create -q -f qcow2 -b a.qcow2 -F qcow2 t.qcow2");
    let mut daemon = Conversation::begin(OURS, dir.path(), &[]);
    daemon.done(
        "blockdev-add",
        json!({ "driver": "qcow2", "node-name": "t", "file": file("tf", "t.qcow2"),
            "backing": { "driver": "qcow2", "node-name": "a", "file": file("af", "a.qcow2") } }),
    );
    daemon.done("blockdev-add", json!({ "driver": "copy-on-read", "node-name": "cor", "file": "t" }));
    daemon.done("device_add", json!({ "driver": "disk", "id": "hd", "drive": "cor" }));
    daemon.done("device_add", json!({ "driver": "cd", "id": "cd" }));
    daemon.done("human-monitor-command", json!({ "command-line": "qemu-io -d hd \"write -q 64k 8k\"" }));
    let told = daemon.done("query-blockstats", json!({}));
    let [hd, cd] = [&told[0], &told[1]];
    assert_eq!([&hd["qdev"], &hd["node-name"], &cd["qdev"]], ["hd", "cor", "cd"]);
    assert_eq!((&hd["stats"]["wr_highest_offset"], &hd["stats"]["wr_operations"]), (&json!(73_728), &json!(1)));
    assert_eq!((hd.get("backing"), &hd["parent"]["node-name"]), (None, &json!("t")));
    let top = &hd["parent"];
    assert_eq!((&top["stats"]["wr_highest_offset"], &top["stats"]["wr_operations"]), (&json!(73_728), &json!(0)));
    assert_eq!([&top["parent"]["node-name"], &top["backing"]["parent"]["node-name"]], ["tf", "af"]);
    assert_eq!(top["backing"]["node-name"], "a");
    assert_eq!((cd.get("parent"), &cd["stats"]["wr_highest_offset"]), (None, &json!(0)));
    daemon.quit();
}
