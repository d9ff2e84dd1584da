//! What a monitor can be asked, member by member beside qemu-storage-daemon.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and look at files"
)]

mod beside;

use beside::{OURS, THEIRS, has_theirs, image, talk};
use serde_json::{Value, json};
use std::path::Path;

const SECRET: [&str; 2] = ["--object", "secret,id=s,data=abc"];

/// A command as a client writes it.
fn says(command: &str, arguments: &Value) -> String {
    json!({ "execute": command, "arguments": arguments }).to_string()
}

fn add(options: Value) -> String {
    says("blockdev-add", &options)
}

/// Names that programs make up are forgotten, and names of options become what they say; what has no order is brought into one.
fn comparable(value: &Value) -> Value {
    match value {
        Value::String(text) if text.starts_with("#block") => "made up".into(),
        Value::String(text) => match text.strip_prefix("json:") {
            // What is too long is cut off.
            Some(options) if options.ends_with("...") => options.into(),
            Some(options) => serde_json::from_str(options).unwrap_or_else(|error| panic!("{text}: {error}")),
            None => value.clone(),
        },
        Value::Array(list) => {
            let mut list: Vec<_> = list.iter().map(comparable).collect();
            list.sort_by_key(Value::to_string);
            list.into()
        }
        Value::Object(map) => {
            let mut map: Vec<_> = map.iter().map(|(key, value)| (key.clone(), comparable(value))).collect();
            map.sort_by(|(one, _), (other, _)| one.cmp(other));
            map.into_iter().collect()
        }
        _ => value.clone(),
    }
}

/// Both programs are told `commands` in `dir`, one after the other, and answer the same, in any order.
fn alike(dir: &Path, commands: &[String]) -> Vec<Value> {
    let input =
        format!("{}\n{}\n{}\n", r#"{"execute": "qmp_capabilities"}"#, commands.join("\n"), r#"{"execute": "quit"}"#);
    let [theirs, ours] = [THEIRS, OURS].map(|program| {
        let (lines, output) = talk(program, dir, &SECRET, &input);
        assert!(output.status.success(), "{program}: {output:?}");
        let is_answer = |line: &Value| line.get("event").is_none() && line.get("QMP").is_none();
        lines.into_iter().filter(is_answer).collect::<Vec<_>>()
    });
    for ((our, their), command) in ours[1..].iter().zip(&theirs[1..]).zip(commands) {
        let (our, their) = (comparable(our), comparable(their));
        if let (Some(our), Some(their)) = (our["return"].as_array(), their["return"].as_array()) {
            for (our, their) in our.iter().zip(their) {
                assert_eq!(our, their, "{command}");
            }
        }
        assert_eq!(our, their, "{command}");
    }
    assert_eq!(ours.len(), theirs.len());
    ours
}

fn file(name: &str, path: &str) -> Value {
    json!({ "driver": "file", "node-name": name, "filename": path })
}

/// Images of every kind that tells something of itself: a chain with a snapshot and a bitmap, encrypted ones, an old one.
fn images(dir: &Path) {
    for args in [
        "create -q -f qcow2 a.qcow2 1M",
        "create -q -f qcow2 -b a.qcow2 -F qcow2 t.qcow2",
        "snapshot -c s1 t.qcow2",
        "bitmap --add t.qcow2 bm",
        "create -q -f qcow2 -o compat=0.10,cluster_size=4k old.qcow2 100k",
        "create -q -f qcow2 -o data_file=d.raw,data_file_raw=on,extended_l2=on,compression_type=zstd,lazy_refcounts=on d.qcow2 1M",
        "create -q r.raw 2M",
        "create -q odd.raw 1000",
        "create -q --object secret,id=s,data=abc -f luks -o key-secret=s,iter-time=10 l.luks 1M",
        "create -q --object secret,id=s,data=abc -f qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 e.qcow2 1M",
    ] {
        image(dir, args);
    }
}

/// Every node of many kinds, once with and once without the chains.
#[test]
fn named_nodes_are_told_alike() {
    if !has_theirs("named_nodes_are_told_alike") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    images(dir.path());
    let null = |name: &str| add(json!({ "driver": "null-co", "node-name": name, "size": 1 << 20 }));
    let qcow2 = |name: &str, path: &str| json!({ "driver": "qcow2", "node-name": name, "read-only": true, "file": file(&format!("{name}-file"), path) });
    let with = |mut options: Value, more: Value| {
        let more = more.as_object().expect("an object").clone();
        options.as_object_mut().expect("an object").extend(more);
        add(options)
    };
    let group = json!({ "qom-type": "throttle-group", "id": "tg", "limits": { "iops-total": 1000 } });
    let commands = [
        add(qcow2("q", "t.qcow2")),
        add(qcow2("old", "old.qcow2")),
        add(qcow2("d", "d.qcow2")),
        with(qcow2("e", "e.qcow2"), json!({ "encrypt": { "format": "luks", "key-secret": "s" } })),
        with(qcow2("bnull", "t.qcow2"), json!({ "backing": null })),
        add(json!({ "driver": "raw", "node-name": "base", "read-only": true, "file": file("base-file", "r.raw") })),
        with(qcow2("bover", "t.qcow2"), json!({ "backing": "base" })),
        with(qcow2("bsame", "t.qcow2"), json!({ "backing": qcow2("b4", "a.qcow2") })),
        with(qcow2("abase", "a.qcow2"), json!({ "backing": "base" })),
        add(json!({ "driver": "luks", "node-name": "l", "key-secret": "s", "file": file("l-file", "l.luks") })),
        add(json!({ "driver": "raw", "node-name": "odd", "file": file("odd-file", "odd.raw") })),
        add(json!({
            "driver": "raw", "node-name": "window", "offset": 512, "size": 1024, "detect-zeroes": "on", "file": "base",
            "cache": { "direct": false, "no-flush": true }, "read-only": true
        })),
        add(json!({ "driver": "qcow2", "node-name": "onraw", "read-only": true, "file": {
            "driver": "raw", "node-name": "onraw-raw", "file": file("onraw-file", "a.qcow2") } })),
        null("n"),
        null("n2"),
        null("n3"),
        add(json!({ "driver": "null-co", "node-name": "plain" })),
        add(json!({ "driver": "raw", "node-name": "rn", "file": "n" })),
        add(json!({ "driver": "blkdebug", "node-name": "bd", "image": "n" })),
        add(json!({ "driver": "copy-on-read", "node-name": "cor", "file": "odd" })),
        add(json!({ "driver": "copy-on-read", "node-name": "cor2", "file": "cor" })),
        add(json!({ "driver": "preallocate", "node-name": "pre", "file": "rn" })),
        add(json!({ "driver": "quorum", "node-name": "quo", "vote-threshold": 1, "children": ["n2", "n3"] })),
        says("object-add", &group),
        add(json!({ "driver": "throttle", "node-name": "thr", "throttle-group": "tg", "file": "base" })),
        add(json!({ "driver": "throttle", "node-name": "thr2", "throttle-group": "tg", "file": "thr" })),
        says("query-named-block-nodes", &json!({})),
        says("query-named-block-nodes", &json!({ "flat": true })),
        says("query-named-block-nodes", &json!({ "flat": 5 })),
        says("query-named-block-nodes", &json!({ "bogus": 1 })),
    ];
    let ours = alike(dir.path(), &commands);
    assert!(ours[commands.len() - 3]["return"].as_array().is_some_and(|nodes| nodes.len() > 30), "{ours:?}");
}

/// What is written to, with bitmaps and a threshold; how long files have become by then is each program's own business.
/// Scenario: names that have more options than a name has room for, and images over others than they name, each of which is asked for its name by all above.
#[test]
fn long_chains_are_told_alike() {
    if !has_theirs("long_chains_are_told_alike") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let raw = |number: u32| {
        add(
            json!({"driver": "raw", "node-name": format!("n{number}"), "offset": 0, "size": 1 << 20, "file": format!("n{}", number - 1)}),
        )
    };
    let mut commands = vec![add(json!({"driver": "null-co", "node-name": "n0", "size": 1 << 20}))];
    commands.extend((1..85).map(raw));
    commands.push(add(json!({"driver": "null-co", "node-name": "q0", "size": 1 << 20})));
    for number in 1..=20 {
        let name = format!("q{number}.qcow2");
        image(dir.path(), &format!("create -q -f qcow2 {name} 1M"));
        let backing = format!("q{}", number - 1);
        let options = json!({"driver": "qcow2", "node-name": format!("q{number}"), "file": file(&format!("f{number}"), &name), "backing": backing});
        commands.push(add(options));
    }
    commands.push(says("query-named-block-nodes", &json!({"flat": true})));
    alike(dir.path(), &commands);
}

#[test]
fn nodes_that_change_are_told_alike() {
    if !has_theirs("nodes_that_change_are_told_alike") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    images(dir.path());
    let bitmap = |name: &str, more: Value| {
        let mut arguments = json!({ "node": "q", "name": name });
        arguments.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        says("block-dirty-bitmap-add", &arguments)
    };
    let commands = [
        add(json!({ "driver": "qcow2", "node-name": "q", "discard": "unmap", "detect-zeroes": "unmap",
            "file": file("f", "t.qcow2") })),
        bitmap("b1", json!({})),
        bitmap("b2", json!({ "granularity": 4096, "disabled": true })),
        says("block-set-write-threshold", &json!({ "node-name": "q", "write-threshold": 4096 })),
        says("query-named-block-nodes", &json!({})),
    ];
    let dirs = [tempfile::tempdir_in(dir.path()).expect("a directory"), tempfile::tempdir_in(dir.path()).expect("one")];
    let told = [THEIRS, OURS].iter().zip(&dirs).map(|(program, to)| {
        for name in ["a.qcow2", "t.qcow2"] {
            std::fs::copy(dir.path().join(name), to.path().join(name)).expect("a copy");
        }
        let input = format!(
            "{}\n{}\n{}\n",
            r#"{"execute": "qmp_capabilities"}"#,
            commands.join("\n"),
            r#"{"execute": "quit"}"#
        );
        let (lines, _) = talk(program, to.path(), &SECRET, &input);
        let nodes = lines.iter().find_map(|line| line["return"].as_array()).unwrap_or_else(|| panic!("{lines:?}"));
        let mut nodes = nodes.clone();
        for node in &mut nodes {
            let image = node["image"].as_object_mut().expect("an object");
            image.remove("actual-size");
            if image["format"] == "file" {
                image.remove("virtual-size");
            }
            if let Some(below) = image.get_mut("backing-image").and_then(Value::as_object_mut) {
                below.remove("actual-size");
            }
        }
        comparable(&nodes.into())
    });
    let told: Vec<_> = told.collect();
    for (their, our) in told[0].as_array().expect("a list").iter().zip(told[1].as_array().expect("a list")) {
        assert_eq!(our, their);
    }
    assert_eq!(told[1], told[0]);
}

/// The graph, with the numbers that nodes have in it replaced by their names.
#[test]
fn the_graph_is_told_alike() {
    if !has_theirs("the_graph_is_told_alike") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    images(dir.path());
    let commands = [
        add(json!({ "driver": "file", "node-name": "af", "filename": "a.qcow2", "read-only": true })),
        add(json!({ "driver": "qcow2", "node-name": "a", "file": "af", "read-only": true })),
        add(json!({ "driver": "qcow2", "node-name": "t", "file": file("tf", "t.qcow2"), "backing": "a" })),
        add(json!({ "driver": "raw", "node-name": "r", "file": file("rf", "r.raw") })),
        add(json!({ "driver": "copy-on-read", "node-name": "cor", "file": "r" })),
        says("x-debug-query-block-graph", &json!({})),
        says("query-block-exports", &json!({})),
        says("query-block-exports", &json!({ "x": 1 })),
    ];
    let input =
        format!("{}\n{}\n{}\n", r#"{"execute": "qmp_capabilities"}"#, commands.join("\n"), r#"{"execute": "quit"}"#);
    let [theirs, ours] = [THEIRS, OURS].map(|program| {
        let (lines, _) = talk(program, dir.path(), &SECRET, &input);
        let named = |mut line: Value| {
            let names = |line: &Value| -> Vec<(Value, Value)> {
                let nodes = line["return"]["nodes"].as_array();
                nodes.into_iter().flatten().map(|node| (node["id"].clone(), node["name"].clone())).collect()
            };
            let names = names(&line);
            let name = |id: &Value| names.iter().find(|(of, _)| of == id).expect("a node").1.clone();
            if !line["return"].is_object() {
                return comparable(&line);
            }
            for edge in line["return"]["edges"].as_array_mut().into_iter().flatten() {
                let edge_of = name(&edge["parent"]);
                (edge["parent"], edge["child"]) = (edge_of.clone(), name(&edge["child"]));
                // Below a backing file that is only read, this program lets others write to the file as much as above it.
                if let Some(shared) = edge["shared-perm"].as_array_mut().filter(|_| edge_of == "a") {
                    shared.retain(|perm| perm != "write");
                }
            }
            for node in line["return"]["nodes"].as_array_mut().into_iter().flatten() {
                node["id"] = 0.into();
            }
            comparable(&line)
        };
        lines.into_iter().skip(1).map(named).collect::<Vec<_>>()
    });
    for (our, their) in ours.iter().zip(&theirs) {
        assert_eq!(our, their);
    }
    assert_eq!(ours.len(), theirs.len());
}

/// Threads, limits, and what there is to see of them by path.
#[test]
fn objects_are_told_alike() {
    if !has_theirs("objects_are_told_alike") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let thread = |id: &str, more: Value| {
        let mut arguments = json!({ "qom-type": "iothread", "id": id });
        arguments.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        says("object-add", &arguments)
    };
    let home = |arguments: Value| says("x-blockdev-set-iothread", &arguments);
    let get = |path: &str, property: &str| says("qom-get", &json!({ "path": path, "property": property }));
    let set = |path: &str, property: &str, value: Value| {
        says("qom-set", &json!({ "path": path, "property": property, "value": value }))
    };
    let limits = json!({ "iops-total": 1000, "bps-read": 4096, "bps-read-max": 8192, "iops-size": 512 });
    let commands = [
        thread("io0", json!({})),
        thread("io0", json!({})),
        thread(
            "io1",
            json!({ "poll-max-ns": 5, "poll-grow": 0, "poll-shrink": 0, "aio-max-batch": 0, "thread-pool-max": 64 }),
        ),
        thread("io2", json!({ "poll-max-ns": -1 })),
        thread("io2", json!({ "poll-max-ns": "x" })),
        thread("io2", json!({ "thread-pool-min": 9, "thread-pool-max": 8 })),
        thread("io2", json!({ "aio-max-batch": -4 })),
        thread("io2", json!({ "bogus": 1 })),
        thread("1bad", json!({})),
        says("object-add", &json!({ "qom-type": "throttle-group", "id": "tg", "limits": limits })),
        add(json!({ "driver": "null-co", "node-name": "n", "size": 1 << 20 })),
        home(json!({ "node-name": "n", "iothread": "io0" })),
        home(json!({ "node-name": "nope", "iothread": "io0" })),
        home(json!({ "node-name": "n", "iothread": "nope" })),
        home(json!({ "node-name": "n", "iothread": "tg" })),
        home(json!({ "node-name": "n", "iothread": 5 })),
        home(json!({ "node-name": "n" })),
        home(json!({ "iothread": null })),
        home(json!({ "node-name": "n", "iothread": "io0", "force": 5 })),
        home(json!({ "node-name": "n", "iothread": "io0", "force": true })),
        home(json!({ "node-name": "n", "iothread": null })),
        says("qom-list", &json!({ "path": "/objects" })),
        says("qom-list", &json!({ "path": "objects/" })),
        says("qom-list", &json!({ "path": "/objects/io0" })),
        says("qom-list", &json!({ "path": "io0" })),
        says("qom-list", &json!({ "path": "/objects/s" })),
        says("qom-list", &json!({ "path": "/objects/tg" })),
        says("qom-list", &json!({ "path": "/objects/nope" })),
        says("qom-list", &json!({ "path": "/io0" })),
        says("qom-list", &json!({ "path": "" })),
        says("qom-list", &json!({})),
        get("/objects/io1", "poll-max-ns"),
        set("/objects/io1", "poll-max-ns", 7.into()),
        get("/objects/io1", "poll-max-ns"),
        get("/objects/io1", "thread-pool-max"),
        get("/objects/io1", "type"),
        get("/objects/io1", "nope"),
        get("/objects/nope", "type"),
        get("/objects", "type"),
        get("/objects", "io1"),
        get("/objects", "nope"),
        get("/", "objects"),
        get("/objects/tg", "limits"),
        get("/objects/tg", "x-iops-total"),
        set("/objects/tg", "limits", json!({ "iops-total": 7 })),
        set("/objects/tg", "limits", json!({ "iops-total": -7 })),
        set("/objects/tg", "limits", 5.into()),
        get("/objects/tg", "limits"),
        set("/objects/tg", "x-iops-total", 5.into()),
        set("/objects/io1", "poll-max-ns", (-1).into()),
        set("/objects/io1", "poll-max-ns", "x".into()),
        set("/objects/io1", "nope", 1.into()),
        set("/objects/s", "type", "x".into()),
        set("/objects/s", "nope", "x".into()),
        set("/objects", "io1", 1.into()),
        set("/objects/nope", "type", 1.into()),
        says("qom-set", &json!({ "path": "/objects/io1", "property": "poll-max-ns" })),
        says("object-del", &json!({ "id": "io0" })),
        says("object-del", &json!({ "id": "io1" })),
        says("object-del", &json!({ "id": "io1" })),
    ];
    alike(dir.path(), &commands);
}

/// What qemu-storage-daemon does not do, or does otherwise: it has no list of threads, lets those go that somebody uses, takes what has no effect here, and tells passwords.
#[test]
fn threads_in_use_stay_and_nothing_is_ignored() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let thread = |more: Value| {
        let mut arguments = json!({ "qom-type": "iothread", "id": "io" });
        arguments.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        says("object-add", &arguments)
    };
    let home = |thread: Value| says("x-blockdev-set-iothread", &json!({ "node-name": "r", "iothread": thread }));
    let commands = [
        thread(json!({ "poll-grow": 3 })),
        thread(json!({ "poll-shrink": 2 })),
        thread(json!({ "aio-max-batch": 4 })),
        thread(json!({ "thread-pool-max": 8 })),
        thread(json!({ "poll-grow": 2 })),
        says("query-iothreads", &json!({})),
        add(json!({ "driver": "null-co", "node-name": "n", "size": 1 << 20 })),
        add(json!({ "driver": "raw", "node-name": "r", "file": "n" })),
        home("io".into()),
        says("object-del", &json!({ "id": "io" })),
        says("blockdev-del", &json!({ "node-name": "r" })),
        says("object-del", &json!({ "id": "io" })),
        says("blockdev-del", &json!({ "node-name": "n" })),
        says("object-del", &json!({ "id": "io" })),
        says("query-iothreads", &json!({})),
        says("qom-get", &json!({ "path": "s", "property": "data" })),
        says("qom-set", &json!({ "path": "s", "property": "data", "value": "x" })),
    ];
    let input =
        format!("{}\n{}\n{}\n", r#"{"execute": "qmp_capabilities"}"#, commands.join("\n"), r#"{"execute": "quit"}"#);
    let (lines, _) = talk(OURS, dir.path(), &SECRET, &input);
    let answers: Vec<_> = lines[2..].iter().filter(|line| line.get("event").is_none()).collect();
    let said = |at: usize| match answers[at]["error"]["desc"].as_str() {
        Some(desc) => desc.to_owned(),
        None => answers[at]["return"].to_string(),
    };
    assert_eq!(said(0), "Property 'poll-grow' with the value 3 is not supported");
    for (at, property) in [(1, "poll-shrink"), (2, "aio-max-batch"), (3, "thread-pool-max")] {
        assert!(said(at).starts_with(&format!("Property '{property}' with the value")), "{}", said(at));
    }
    assert_eq!(said(4), "{}");
    let threads = answers[5]["return"].as_array().expect("a list");
    assert_eq!((threads.len(), &threads[0]["id"], &threads[0]["poll-max-ns"]), (1, &"io".into(), &32768.into()));
    assert!(threads[0]["thread-id"].as_u64().is_some_and(|number| number > 1), "{threads:?}");
    let in_use = "object 'io' is in use, can not be deleted";
    let expected = ["{}", "{}", "{}", in_use, "{}", in_use, "{}", "{}", "[]"];
    for (at, expected) in (6..).zip(expected) {
        assert_eq!(said(at), expected, "{}", commands[at]);
    }
    assert_eq!(said(15), "Property 'secret.data' is not told");
    assert_eq!(said(16), "Property cannot be set after initialization");
}

/// Lines for people: what the I/O exerciser prints is the answer. qemu-storage-daemon has no such command; a system emulator prints the same, and answers with nothing.
#[test]
fn people_exercise_nodes() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let line = |line: &str| says("human-monitor-command", &json!({ "command-line": line }));
    let help = |what: &str| format!("qemu-io: {what}\r\nTry \"help qemu-io\" for more information\r\n");
    let cases: Vec<(String, String)> = [
        (r#"qemu-io n "length""#, "1 MiB\r\n".to_owned()),
        (r#"qemu-io n "read -q -P 0 0 4k""#, String::new()),
        (r#"qemu-io n "write -q 0 4M""#, "write failed: Input/output error\r\n".to_owned()),
        (r#"qemu-io n "aio_write -q 0 4k""#, String::new()),
        ("qemu-io n bogus", "command \"bogus\" not found\r\n".to_owned()),
        ("qemu-io n close", "command \"close\" not found\r\n".to_owned()),
        ("qemu-io n abort", "command \"abort\" not found\r\n".to_owned()),
        ("qemu-io n \"\"", String::new()),
        ("qemu-io ro \"write 0 4k\"", "Block node is read-only\r\n".to_owned()),
        ("qemu-io nope length", "Error: Cannot find device='' nor node-name='nope'\r\n".to_owned()),
        ("qemu-io -d n length", "Error: Device 'n' not found\r\n".to_owned()),
        ("qemu-io", help("block device name expected")),
        ("qemu-io n", help("string expected")),
        ("qemu-io n length foo", help("extraneous characters at the end of line")),
        ("info block", "unknown command: 'info block'\r\n".to_owned()),
        ("", String::new()),
    ]
    .into_iter()
    .map(|(text, expected)| (line(text), expected))
    .collect();
    let nodes = [
        add(json!({ "driver": "null-co", "node-name": "n", "size": 1 << 20, "read-zeroes": true })),
        add(json!({ "driver": "null-co", "node-name": "ro", "read-only": true })),
    ];
    let shown = line(r#"qemu-io n "read -v 0 16""#);
    let file = line(r#"qemu-io n "write -s /dev/zero 0 4k""#);
    // Whoever used the node has gone by the time that it is answered.
    let gone = says("blockdev-del", &json!({ "node-name": "n" }));
    let commands = nodes.into_iter().chain(cases.iter().map(|(line, _)| line.clone())).chain([shown, file, gone]);
    let commands: Vec<_> = commands.collect();
    let input =
        format!("{}\n{}\n{}\n", r#"{"execute": "qmp_capabilities"}"#, commands.join("\n"), r#"{"execute": "quit"}"#);
    let (lines, _) = talk(OURS, dir.path(), &[], &input);
    let answers = &lines[4..];
    for ((line, expected), answer) in cases.iter().zip(answers) {
        assert_eq!(answer["return"], *expected, "{line}: {answer}");
    }
    let shown = answers[cases.len()]["return"].as_str().expect("text");
    assert!(shown.starts_with("00000000:  00 00") && shown.contains("\r\nread 16/16 bytes at offset 0\r\n"), "{shown}");
    assert_eq!(answers[cases.len() + 1]["return"], "source files are not supported on a node of somebody else's\r\n");
    assert_eq!(answers[cases.len() + 2], json!({ "return": {} }));
}
