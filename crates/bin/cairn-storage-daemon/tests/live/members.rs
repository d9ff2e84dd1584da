//! Children that are added to a quorum and removed from it, beside qemu-storage-daemon.

use crate::beside::Conversation;
use crate::{OURS, THEIRS, has_theirs};
use serde_json::{Value, json};

fn disk(name: &str) -> Value {
    json!({ "driver": "null-co", "node-name": name, "size": 1 << 20, "read-zeroes": true })
}

fn quorum(name: &str, children: &[&str], more: Value) -> Value {
    let mut options = json!({ "driver": "quorum", "node-name": name, "vote-threshold": 1, "children": children });
    options.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    options
}

/// The edges from `node`: their names, what they lead to, and what they ask and share.
fn children(daemon: &mut Conversation, node: &str) -> Vec<Value> {
    let graph = daemon.done("x-debug-query-block-graph", json!({}));
    let list = |key: &str| graph[key].as_array().expect("a list").clone();
    let name = |id: &Value| {
        list("nodes").iter().find(|node| node["id"] == *id).map(|node| node["name"].clone()).expect("a node")
    };
    let own = list("edges").into_iter().filter(|edge| name(&edge["parent"]) == node);
    own.map(|edge| json!([edge["name"], name(&edge["child"]), edge["perm"], edge["shared-perm"]])).collect()
}

/// The answers to `script`, with the children of `q` after each, what it is called, and which nodes there are.
fn run(program: &str, script: &[Value]) -> Vec<[Value; 4]> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut daemon = Conversation::begin(program, dir.path(), &["--object", "throttle-group,id=tg"]);
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        daemon.done("blockdev-add", disk(name));
    }
    daemon.done("blockdev-add", json!({ "driver": "raw", "node-name": "r", "file": "g" }));
    daemon.done("blockdev-add", quorum("q", &["a", "b", "c"], json!({ "vote-threshold": 2 })));
    daemon.done("blockdev-add", json!({ "driver": "throttle", "node-name": "t", "throttle-group": "tg", "file": "q" }));
    let tell = |change: &Value| {
        let command = change["execute"].as_str().unwrap_or("x-blockdev-change");
        let arguments = change.get("execute").map_or(change, |_| &change["arguments"]);
        let answer = daemon.answer(&json!({ "execute": command, "arguments": arguments }).to_string());
        let nodes = daemon.done("query-named-block-nodes", json!({ "flat": true }));
        let nodes = nodes.as_array().expect("a list");
        let name = nodes.iter().find(|node| node["node-name"] == "q").map(|node| node["file"].clone());
        let name = name.as_ref().and_then(|name| serde_json::from_str(name.as_str()?.strip_prefix("json:")?).ok());
        let mut names: Vec<_> = nodes.iter().map(|node| node["node-name"].to_string()).collect();
        names.sort();
        [answer, children(&mut daemon, "q").into(), name.unwrap_or_default(), names.into()]
    };
    let told = script.iter().map(tell).collect();
    daemon.quit();
    told
}

#[test]
fn children_come_and_go_alike() {
    if !has_theirs("children_come_and_go_alike") {
        return;
    }
    let add = |options: Value| json!({ "execute": "blockdev-add", "arguments": options });
    let with = |node: &str| json!({ "parent": "q", "node": node });
    let without = |number: usize| json!({ "parent": "q", "child": format!("children.{number}") });
    let script = [
        json!({}),
        json!({ "parent": "q" }),
        json!({ "parent": "q", "node": "d", "child": "children.0" }),
        json!({ "parent": "nope" }),
        json!({ "parent": "q", "child": 5 }),
        json!({ "parent": "q", "x": 5 }),
        json!({ "parent": "q", "child": "a" }),
        with("nope"),
        with("q"),
        with("g"),
        without(7),
        json!({ "parent": "a", "node": "d" }),
        json!({ "parent": "a", "child": "file" }),
        json!({ "parent": "r", "node": "d" }),
        json!({ "parent": "r", "child": "file" }),
        json!({ "parent": "r", "node": "a" }),
        // The numbers of those that went before others are not given again, that of the last one is.
        with("d"),
        with("d"),
        without(1),
        without(1),
        with("e"),
        without(4),
        without(3),
        with("e"),
        without(0),
        without(2),
        with("t"),
        with("b"),
        // What was opened for the quorum goes with its place.
        add(quorum("own", &["f"], json!({ "children": [disk("own0"), disk("own1")] }))),
        json!({ "parent": "own", "child": "children.0" }),
        json!({ "parent": "own", "child": "children.1" }),
        add(json!({ "driver": "quorum", "node-name": "two", "vote-threshold": 2, "blkverify": true,
            "children": [disk("two0"), disk("two1")] })),
        json!({ "parent": "two", "node": "f" }),
        json!({ "parent": "two", "child": "children.0" }),
        json!({ "execute": "blockdev-reopen", "arguments": { "options": [quorum("q", &["a"], json!({}))] } }),
        add(json!({ "driver": "quorum", "node-name": "n", "vote-threshold": 1 })),
        add(quorum("n", &[], json!({}))),
        add(quorum("n", &[], json!({ "children": 5 }))),
        add(quorum("n", &[], json!({ "children": {} }))),
    ];
    let (ours, theirs) = (run(OURS, &script), run(THEIRS, &script));
    for ((our, their), change) in ours.iter().zip(&theirs).zip(&script) {
        assert_eq!(our, their, "{change}");
    }
    let last = ours.last().expect("there are some");
    assert_eq!(last[1].as_array().map(Vec::len), Some(3), "{last:?}");
}

/// Scenario: a disk gets a third copy that holds nothing, and loses the first one, while it is written to and read. What is written then is on all that there are; with a threshold
/// of two, the new one is outvoted where it has nothing yet.
#[test]
fn drain_1_children_come_and_go_under_load() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for name in ["0", "1", "2"] {
        std::fs::File::create(dir.path().join(name)).and_then(|file| file.set_len(1 << 20)).expect("a file");
    }
    let options = ["--chardev", "socket,id=g,path=guest,server=on,wait=off", "--monitor", "g"];
    let mut daemon = Conversation::begin(OURS, dir.path(), &options);
    for name in ["0", "1", "2"] {
        let file = json!({ "driver": "file", "filename": name });
        daemon.done("blockdev-add", json!({ "driver": "raw", "node-name": format!("n{name}"), "file": file }));
    }
    daemon.done("blockdev-add", quorum("q", &["n0", "n1"], json!({ "vote-threshold": 2 })));
    daemon.done("device_add", json!({ "driver": "disk", "id": "hd", "drive": "q" }));
    let io = |request: &str| json!({ "command-line": format!("qemu-io -d hd \"{request}\"") });
    assert_eq!(daemon.done("human-monitor-command", io("write -q -P 1 0 256k")), "");
    let guest = std::thread::spawn({
        let socket = dir.path().join("guest");
        move || {
            use std::io::{BufRead as _, BufReader, Write as _};
            let mut to = std::os::unix::net::UnixStream::connect(socket).expect("it listens");
            let mut from = BufReader::new(to.try_clone().expect("a socket")).lines();
            let mut answer = |command: &Value| {
                to.write_all(format!("{command}\n").as_bytes()).expect("it reads");
                loop {
                    let line: Value = serde_json::from_str(&from.next().expect("a line").expect("text")).expect("JSON");
                    if line.get("return").is_some() || line.get("error").is_some() {
                        return line;
                    }
                }
            };
            answer(&json!({ "execute": "qmp_capabilities" }));
            for round in 0..200 {
                let at = 256 + round % 64 * 4;
                for request in [format!("write -q -P {} {at}k 4k", round % 250), "read -q -P 1 0 16k".to_owned()] {
                    let said = answer(&json!({ "execute": "human-monitor-command",
                        "arguments": { "command-line": format!("qemu-io -d hd \"{request}\"") } }));
                    assert_eq!(said["return"], "", "{request}");
                }
            }
        }
    });
    while !guest.is_finished() {
        daemon.done("x-blockdev-change", json!({ "parent": "q", "node": "n2" }));
        daemon.done("x-blockdev-change", json!({ "parent": "q", "child": "children.2" }));
    }
    guest.join().expect("the guest has what it wrote");
    daemon.done("x-blockdev-change", json!({ "parent": "q", "node": "n2" }));
    daemon.done("x-blockdev-change", json!({ "parent": "q", "child": "children.0" }));
    assert_eq!(daemon.done("human-monitor-command", io("write -q -P 9 512k 64k")), "");
    // Two are left, and they have to agree: where only one has data they do not.
    assert_eq!(daemon.done("human-monitor-command", io("read -q -P 9 512k 64k")), "");
    assert_ne!(daemon.done("human-monitor-command", io("read -q -P 1 0 4k")), "");
    daemon.done("blockdev-del", json!({ "node-name": "n0" }));
    daemon.quit();
    let read = |name: &str| std::fs::read(dir.path().join(name)).expect("a file")[512 << 10..576 << 10].to_vec();
    assert!([read("1"), read("2")].iter().all(|bytes| bytes.iter().all(|byte| *byte == 9)));
    assert!(read("0").iter().all(|byte| *byte != 9));
}
