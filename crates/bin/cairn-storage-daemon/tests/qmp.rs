//! Conversations with the daemon beside qemu-storage-daemon: the same commands, the same answers; and what only a monitor does, over sockets.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests start programs, talk to them, and look at files"
)]

mod beside;

use beside::{OURS, PATIENCE, THEIRS, has_theirs, image, in_time, talk};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Without what is never the same.
fn comparable(mut value: Value) -> Value {
    if let Some(object) = value.as_object_mut() {
        object.remove("timestamp");
        if let Some(version) = object.get_mut("QMP").and_then(|greeting| greeting.get_mut("version")) {
            version["package"] = "".into();
        }
        if let Some(package) = object.get_mut("return").and_then(|answer| answer.get_mut("package")) {
            *package = "".into();
        }
    }
    value
}

/// Both daemons are told `commands`, and answer the same.
fn alike(test: &str, commands: &[&str]) {
    if !has_theirs(test) {
        return;
    }
    let mut told = Vec::new();
    for program in [THEIRS, OURS] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        for args in
            ["create -q -f qcow2 a.qcow2 1M", "create -q -f qcow2 -b a.qcow2 -F qcow2 t.qcow2", "create -q r.raw 2M"]
        {
            image(dir.path(), args);
        }
        let input = format!("{}\n{}\n", commands.join("\n"), r#"{"execute": "quit"}"#);
        let (lines, output) = talk(program, dir.path(), &[], &input);
        told.push((lines.into_iter().map(comparable).collect::<Vec<_>>(), output));
    }
    let (ours, theirs) = (told.pop().expect("two"), told.pop().expect("two"));
    for (at, (our, their)) in ours.0.iter().zip(&theirs.0).enumerate() {
        assert_eq!(our, their, "line {at} of what is answered to {commands:#?}");
    }
    assert_eq!((ours.0.len(), ours.1.status.code()), (theirs.0.len(), theirs.1.status.code()), "{ours:?} {theirs:?}");
}

const CAPABILITIES: &str = r#"{"execute": "qmp_capabilities"}"#;

#[test]
fn what_is_no_command_is_told() {
    alike(
        "what_is_no_command_is_told",
        &[
            "foo",
            r#"{"execute": "query-version"}"#,
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["bogus"]}}"#,
            r#"{"execute": "qmp_capabilities", "arguments": {"enable": [5]}}"#,
            r#"{"exec-oob": "query-version", "id": 1}"#,
            r#"{"execute": "qmp_capabilities", "id": {"a": [null]}}"#,
            r#"{"execute": "qmp_capabilities"}"#,
            r#"[1]{"x": 1}{"execute": 5}{"exec-oob": 5}{"execute": "query-version", "arguments": 5}"#,
            r#"{"execute": "query-version", "arguments": {"x": 1}}"#,
            r#"{"execute": "query-version", "foo": 1, "id": null} 5 "abc""#,
            r#"{'execute': 'query-version', 'id': 'a'} {"a": } ]"#,
            r#"{"execute": "query-version", "control": {"id": 1}}"#,
            r#"{"execute": "quit", "execute": "query-jobs"}"#,
            r#"{}"#,
            r#"{"execute": "nope", "id": [1, {"a": 2}]}"#,
            "{\"execute\": \"query-version\"\n\n}",
        ],
    );
}

#[test]
fn nothing_overtakes() {
    let enable = r#"{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}"#;
    let overtaking = r#"{"exec-oob": "query-version", "id": 1}{"exec-oob": "query-jobs", "id": 2}"#;
    // qemu-storage-daemon says the same, and does not end when it is told to quit in that mode.
    let quit = r#"{"execute": "quit"}"#;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let (lines, _) = talk(OURS, dir.path(), &[], &[enable, overtaking, quit].join("\n"));
    let refused = |id: u32, name: &str| {
        let desc = format!("The command {name} does not support OOB");
        json!({ "id": id, "error": { "class": "GenericError", "desc": desc } })
    };
    let done = json!({ "return": {} });
    assert_eq!(lines[1..], [done.clone(), refused(1, "query-version"), refused(2, "query-jobs"), done]);
}

#[test]
fn nodes_come_and_go() {
    alike(
        "nodes_come_and_go",
        &[
            CAPABILITIES,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n", "size": 1048576, "read-zeroes": true}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "n"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "null-co", "node-name": "1bad"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"node-name": "x"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "bogus", "node-name": "x"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "x"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "x", "file": "nope"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "x", "file": "n", "bogus": 1}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "x", "file": "n"}}"#,
            r#"{"execute": "blockdev-del", "arguments": {"node-name": "n"}}"#,
            r#"{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "a.qcow2", "node-name": "af"}}}"#,
            r#"{"execute": "blockdev-del", "arguments": {"node-name": "af"}}"#,
            r#"{"execute": "blockdev-del", "arguments": {"node-name": "x"}}"#,
            r#"{"execute": "blockdev-del", "arguments": {"node-name": "x"}}"#,
            r#"{"execute": "blockdev-del", "arguments": {"node-name": "n"}}"#,
            r#"{"execute": "blockdev-del"}"#,
            r#"{"execute": "blockdev-del", "arguments": {"node-name": 5}}"#,
            r#"{"execute": "block_resize", "arguments": {"node-name": "q", "size": 2097152}}"#,
            r#"{"execute": "block_resize", "arguments": {"node-name": "nope", "size": 2097152}}"#,
            r#"{"execute": "block_resize", "arguments": {"device": "nope", "size": 2097152}}"#,
            r#"{"execute": "block_resize", "arguments": {"device": "q", "size": 2097152}}"#,
            r#"{"execute": "block_resize", "arguments": {"device": "nope", "node-name": "q", "size": 2097152}}"#,
            r#"{"execute": "blockdev-snapshot-sync", "arguments": {"device": "q", "snapshot-file": "x"}}"#,
            r#"{"execute": "block_resize", "arguments": {"size": 2097152}}"#,
            r#"{"execute": "block_resize", "arguments": {"node-name": "q"}}"#,
            r#"{"execute": "block_resize", "arguments": {"node-name": "q", "size": -1}}"#,
            r#"{"execute": "block_resize", "arguments": {"node-name": "q", "size": 1000}}"#,
            r#"{"execute": "block_resize", "arguments": {"node-name": "q", "size": 1048576}}"#,
            r#"{"execute": "block-set-write-threshold", "arguments": {"node-name": "q", "write-threshold": 4096}}"#,
            r#"{"execute": "block-set-write-threshold", "arguments": {"node-name": "nope", "write-threshold": 4096}}"#,
            r#"{"execute": "block-set-write-threshold", "arguments": {"node-name": "q", "write-threshold": 0}}"#,
        ],
    );
}

/// As [`reopen`], of the overlay in the test's folder.
fn reopen_t(backing: &str) -> String {
    reopen(&format!(r#"{{"driver": "qcow2", "node-name": "t", "file": "tf"{backing}}}"#))
}

fn reopen(options: &str) -> String {
    format!(r#"{{"execute": "blockdev-reopen", "arguments": {{"options": [{options}]}}}}"#)
}

#[test]
fn reopen_3_nodes_are_reopened_alike() {
    let add = |name: &str, more: &str| {
        let [file, node] = [
            format!(r#"{{"driver": "file", "node-name": "{name}f", "filename": "{name}.qcow2"}}"#),
            format!(r#"{{"driver": "qcow2", "node-name": "{name}", "file": "{name}f"{more}}}"#),
        ]
        .map(|options| format!(r#"{{"execute": "blockdev-add", "arguments": {options}}}"#));
        format!("{file}\n{node}")
    };
    let null = |name: &str| {
        format!(
            r#"{{"execute": "blockdev-add", "arguments": {{"driver": "null-co", "node-name": "{name}", "size": 1048576}}}}"#
        )
    };
    let commands = [
        CAPABILITIES.to_owned(),
        add("a", r#", "read-only": true"#),
        add("t", r#", "backing": "a""#),
        null("n"),
        null("n2"),
        r#"{"execute": "blockdev-add", "arguments": {"driver": "raw", "node-name": "r", "file": "n"}}"#.to_owned(),
        r#"{"execute": "blockdev-add", "arguments": {"driver": "blkdebug", "node-name": "bd", "image": "n"}}"#
            .to_owned(),
        reopen_t(""),
        reopen_t(r#", "backing": null"#),
        reopen_t(""),
        reopen_t(r#", "backing": "a""#),
        reopen_t(r#", "backing": "a", "lazy-refcounts": true"#),
        reopen_t(r#", "backing": "t""#),
        reopen_t(r#", "backing": "nope""#),
        reopen_t(r#", "backing": """#),
        reopen_t(r#", "backing": {"driver": "qcow2", "node-name": "a", "file": "af"}"#),
        reopen_t(r#", "backing": "a", "read-only": true"#),
        reopen(r#"{"driver": "qcow2", "node-name": "a", "file": "af", "read-only": true, "backing": "t"}"#),
        reopen(r#"{"driver": "qcow2", "node-name": "nope", "file": "tf", "backing": "a"}"#),
        reopen(r#"{"driver": "qcow2", "file": "tf", "backing": "a"}"#),
        reopen(
            r#"{"driver": "qcow2", "node-name": "t", "file": "tf", "backing": "a"}, {"driver": "raw", "node-name": "r", "file": "nope"}"#,
        ),
        reopen(r#"{"driver": "raw", "node-name": "r", "file": "n2"}"#),
        reopen(r#"{"driver": "raw", "node-name": "r", "file": "r"}"#),
        reopen(r#"{"driver": "raw", "node-name": "r", "file": "n2", "offset": 2097152}"#),
        reopen(r#"{"driver": "blkdebug", "node-name": "bd", "image": "n2"}"#),
        reopen(r#"{"driver": "blkdebug", "node-name": "bd", "image": "n"}"#),
        reopen(r#"{"driver": "null-co", "node-name": "n", "size": 5}"#),
        reopen(r#"{"driver": "null-co", "node-name": "n"}"#),
        reopen(r#"{"driver": "file", "node-name": "tf", "filename": "a.qcow2"}"#),
        reopen(r#"{"driver": "file", "node-name": "tf", "filename": "t.qcow2", "locking": "off"}"#),
        reopen("5"),
        r#"{"execute": "blockdev-reopen", "arguments": {"options": 5}}"#.to_owned(),
        r#"{"execute": "blockdev-reopen"}"#.to_owned(),
    ];
    alike("reopen_3_nodes_are_reopened_alike", &commands.each_ref().map(String::as_str));
}

#[test]
fn bitmaps_are_kept_alike() {
    let bitmap = |act: &str, arguments: &str| {
        format!(r#"{{"execute": "block-dirty-bitmap-{act}", "arguments": {{{arguments}}}}}"#)
    };
    let commands = [
        CAPABILITIES.to_owned(),
        r#"{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "q", "file": {"driver": "file", "filename": "a.qcow2", "node-name": "af"}}}"#.into(),
        bitmap("add", r#""node": "q", "name": "b""#),
        bitmap("add", r#""node": "q", "name": "b""#),
        bitmap("add", r#""node": "q", "name": """#),
        bitmap("add", r#""node": "q""#),
        bitmap("add", r#""node": "q", "name": "g", "granularity": 513"#),
        bitmap("add", r#""node": "q", "name": "g", "granularity": "x""#),
        bitmap("add", r#""node": "q", "name": "p", "persistent": true, "disabled": true"#),
        bitmap("add", r#""node": "nope", "name": "p""#),
        bitmap("add", r#""node": "af", "name": "p", "persistent": true"#),
        bitmap("remove", r#""node": "q", "name": "zz""#),
        bitmap("clear", r#""node": "q", "name": "b""#),
        bitmap("clear", r#""node": "nope", "name": "b""#),
        bitmap("enable", r#""node": "q", "name": "p""#),
        bitmap("disable", r#""node": "q", "name": "p""#),
        bitmap("merge", r#""node": "q", "target": "b", "bitmaps": ["p"]"#),
        bitmap("merge", r#""node": "q", "target": "b", "bitmaps": ["zz"]"#),
        bitmap("merge", r#""node": "q", "target": "b", "bitmaps": [{"node": "q", "name": "p"}]"#),
        bitmap("merge", r#""node": "q", "target": "zz", "bitmaps": ["p"]"#),
        bitmap("merge", r#""node": "q", "target": "b", "bitmaps": [{"node": "q"}]"#),
        bitmap("merge", r#""node": "q", "target": "b""#),
        bitmap("remove", r#""node": "q", "name": "p""#),
        bitmap("remove", r#""node": "q", "name": "b", "more": 1"#),
    ];
    alike("bitmaps_are_kept_alike", &commands.each_ref().map(String::as_str));
}

#[test]
fn jobs_and_objects_that_are_not_there() {
    let verb = |verb: &str, key: &str| format!(r#"{{"execute": "{verb}", "arguments": {{"{key}": "nope"}}}}"#);
    let object = |arguments: &str| format!(r#"{{"execute": "object-add", "arguments": {{{arguments}}}}}"#);
    let mut commands = vec![
        CAPABILITIES.to_owned(),
        r#"{"execute": "query-jobs"}{"execute": "query-block-jobs"}"#.into(),
        object(r#""qom-type": "secret", "id": "s", "data": "abc""#),
        object(r#""qom-type": "secret", "id": "s", "data": "abc""#),
        object(r#""qom-type": "bogus", "id": "s2""#),
        object(r#""id": "s2""#),
        r#"{"execute": "object-del", "arguments": {"id": "s"}}{"execute": "object-del", "arguments": {"id": "s"}}{"execute": "object-del"}"#.into(),
    ];
    commands.extend(
        ["pause", "resume", "cancel", "complete", "dismiss", "finalize"].map(|act| verb(&format!("job-{act}"), "id")),
    );
    for (act, key) in [
        ("pause", "device"),
        ("resume", "device"),
        ("cancel", "device"),
        ("complete", "device"),
        ("dismiss", "id"),
        ("finalize", "id"),
    ] {
        commands.push(verb(&format!("block-job-{act}"), key));
    }
    commands.push(r#"{"execute": "block-job-set-speed", "arguments": {"device": "nope", "speed": 0}}"#.into());
    alike("jobs_and_objects_that_are_not_there", &commands.iter().map(String::as_str).collect::<Vec<_>>());
}

/// What a command line is refused for, and that it is carried out in order.
#[test]
fn command_lines_are_refused_alike() {
    if !has_theirs("command_lines_are_refused_alike") {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    for line in [
        "--bogus",
        "foo",
        "--blockdev",
        "--blockdev driver=bogus,node-name=x",
        "--blockdev driver=null-co",
        "--blockdev driver=raw,node-name=x,file=n --blockdev driver=null-co,node-name=n",
        r#"--blockdev {"driver":"null-co""#,
        "--monitor nope",
        "--chardev nope",
        "--chardev bogus,id=x",
        "--chardev stdio",
        "--chardev stdio,id=a --chardev stdio,id=b",
        "--chardev socket,id=a,path=/nonexistent/x,server=on,wait=off",
        "--chardev socket,id=a,path=s,server=on,wait=off,bogus=1",
        "--object bogus",
        "--object secret",
        "--object secret,id=s",
        "--pidfile /nonexistent/p",
        "--chardev null,id=n --monitor n --monitor n",
    ] {
        let said = [OURS, THEIRS].map(|program| {
            let mut daemon = Command::new(program);
            daemon.current_dir(dir.path()).args(line.split(' ')).stdin(Stdio::null());
            daemon.stdout(Stdio::piped()).stderr(Stdio::piped());
            let output = in_time(daemon.spawn().expect(program));
            let error = String::from_utf8(output.stderr).expect("text").replace(program, "daemon");
            (error.replace("cairn-storage-daemon", "daemon"), output.status.code())
        });
        assert_eq!(said[0], said[1], "{line}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).expect("a directory").count(), 0, "sockets and pid files are gone");
}

/// A daemon that is talked to over a socket.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

struct Client {
    to: UnixStream,
    from: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Daemon {
    fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut command = Command::new(OURS);
        command.current_dir(dir.path()).args(["--chardev", "socket,id=m,path=s,server=on,wait=off", "--monitor", "m"]);
        let child = command.args(options).stdin(Stdio::null()).spawn().expect("the daemon starts");
        Self { child, dir }
    }

    fn connect(&self) -> Client {
        let (path, end) = (self.dir.path().join("s"), Instant::now() + PATIENCE);
        // A path may be too long for a socket.
        let stream = loop {
            match connect_in(self.dir.path(), &path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > end => panic!("no connection: {error}"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        let from = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut client = Client { to: stream, from, events: Vec::new() };
        assert!(client.line().get("QMP").is_some());
        client
    }

    fn end(mut self) {
        let end = Instant::now() + PATIENCE;
        while self.child.try_wait().expect("a child").is_none() {
            assert!(Instant::now() < end, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(self.child.wait().expect("a child").success());
        assert!(!self.dir.path().join("s").exists(), "its socket is gone");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connect by way of the folder's descriptor.
fn connect_in(dir: &Path, path: &Path) -> std::io::Result<UnixStream> {
    use std::os::fd::AsRawFd as _;
    if path.as_os_str().len() < 100 {
        return UnixStream::connect(path);
    }
    let dir = std::fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/s", dir.as_raw_fd()))
}

impl Client {
    fn line(&mut self) -> Value {
        let mut line = String::new();
        assert!(self.from.read_line(&mut line).expect("it answers") > 0, "the daemon has hung up");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    }

    fn say(&mut self, command: &str, arguments: &Value) -> Value {
        let command = json!({ "execute": command, "arguments": arguments });
        self.to.write_all(command.to_string().as_bytes()).expect("it reads");
        loop {
            let line = self.line();
            if line.get("event").is_none() {
                return line;
            }
            self.events.push(line);
        }
    }

    fn done(&mut self, command: &str, arguments: &Value) {
        assert_eq!(self.say(command, arguments), json!({ "return": {} }), "{command} {arguments}");
    }
}

/// Clients come one after the other, each with a negotiation of its own; what one added the next one finds.
#[test]
fn clients_come_and_go() {
    let daemon = Daemon::start(&["--blockdev", "driver=null-co,node-name=n,size=1M"]);
    let mut first = daemon.connect();
    let told = first.say("query-jobs", &json!({}));
    assert_eq!(told["error"]["class"], "CommandNotFound");
    first.done("qmp_capabilities", &json!({}));
    first.done("blockdev-add", &json!({ "driver": "raw", "node-name": "r", "file": "n" }));
    // In the middle of a command, and in the middle of many.
    first.to.write_all(br#"{"execute": "blockdev-del", "arguments": {"node-na"#).expect("it reads");
    drop(first);
    let mut second = daemon.connect();
    second.to.write_all(&CAPABILITIES.as_bytes().repeat(2000)).expect("it reads");
    drop(second);
    let mut third = daemon.connect();
    third.done("qmp_capabilities", &json!({}));
    third.done("blockdev-del", &json!({ "node-name": "r" }));
    third.done("quit", &json!({}));
    daemon.end();
}

/// Events reach those who negotiated, and no one else.
#[test]
fn events_are_told() {
    let daemon = Daemon::start(&["--chardev", "socket,id=o,path=other,server=on,wait=off", "--monitor", "o"]);
    let mut client = daemon.connect();
    client.done("qmp_capabilities", &json!({}));
    client.done("blockdev-add", &json!({ "driver": "null-co", "node-name": "n", "size": 1 << 20 }));
    client.done("block-set-write-threshold", &json!({ "node-name": "n", "write-threshold": 4096 }));
    assert!(client.events.is_empty());
    client.done("quit", &json!({}));
    daemon.end();
}

/// Malformed, over-long and deep input costs an error, and the conversation goes on.
#[test]
fn trust_3_what_a_client_sends_cannot_hurt() {
    let daemon = Daemon::start(&[]);
    let mut client = daemon.connect();
    client.done("qmp_capabilities", &json!({}));
    let mut said = |bytes: &[u8]| {
        client.to.write_all(bytes).expect("it reads");
        client.line()["error"]["desc"].as_str().expect("an error").to_owned()
    };
    assert!(said(&[b'['; 300].iter().chain(&[b']'; 300]).copied().collect::<Vec<_>>()).contains("deep"));
    let long = format!(r#"{{"execute": "{}"}}"#, "x".repeat(3 << 20));
    assert!(said(long.as_bytes()).contains("long"), "too long");
    assert_eq!(said(b"{\"execute\": \"\xff\"}"), "JSON parse error, invalid UTF-8 sequence in string");
    assert!(said(br#"{"execute": "\ud800"}"#).starts_with("JSON parse error"));
    let many = format!(r#"{{"execute": "query-jobs", "arguments": {{"a": [{}1]}}}}"#, "1,".repeat(70_000));
    assert!(said(many.as_bytes()).contains("more than 65536"));
    client.done("quit", &json!({}));
    daemon.end();
}

/// Into the background, with a file that says which process it is, and out by a signal.
#[test]
fn it_goes_into_the_background_and_ends_by_a_signal() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let run = |options: &str| {
        let mut daemon = Command::new(OURS);
        daemon.current_dir(dir.path()).args(options.split(' ')).stdin(Stdio::null());
        in_time(daemon.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts"))
    };
    let failed = run("--daemonize --blockdev driver=null-co");
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).ends_with("'node-name' must be specified for the root node\n"));
    let started = run("--daemonize --pidfile pid --chardev socket,id=m,path=s,server=on,wait=off --monitor m");
    assert!(started.status.success(), "{started:?}");
    let pid: i32 = std::fs::read_to_string(dir.path().join("pid")).expect("a file").trim().parse().expect("a number");
    // A second one does not get the file.
    let second = run("--pidfile pid");
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    connect_in(dir.path(), &dir.path().join("s")).expect("it listens");
    let pid = rustix::process::Pid::from_raw(pid).expect("a number");
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is there");
    let end = Instant::now() + PATIENCE;
    while dir.path().join("pid").exists() || dir.path().join("s").exists() {
        assert!(Instant::now() < end, "it does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}
