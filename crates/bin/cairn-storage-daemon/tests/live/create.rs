//! Images that are created in nodes beside qemu-storage-daemon: with a data file or a header of their own, in nodes that are opened for that, and where there is no space.

use crate::beside::Conversation;
use crate::{OURS, THEIRS, has_theirs, told};
use serde_json::{Value, json};
use std::path::Path;

/// What a daemon has become of a job that is told `options`: the error, if there was one, and that it answers at once for options that make no sense.
fn create(daemon: &mut Conversation, number: usize, options: &Value) -> Value {
    let id = format!("j{number}");
    let command = json!({ "execute": "blockdev-create", "arguments": { "job-id": id, "options": options } });
    let answer = daemon.answer(&command.to_string());
    if answer.get("return").is_none() {
        return answer;
    }
    let is_end = |line: &Value| line["data"]["id"] == id.as_str() && line["data"]["status"] == "concluded";
    daemon.until(|lines| lines.iter().any(is_end));
    let jobs = daemon.done("query-jobs", json!({}));
    let job = jobs.as_array().and_then(|jobs| jobs.iter().find(|job| job["id"] == id.as_str())).expect("it stays");
    let error = job["error"].clone();
    daemon.done("job-dismiss", json!({ "id": id }));
    error
}

/// A daemon that has the files `x`, `y` and `z` as nodes of these names, of which the last two hold something.
fn begin(program: &str, dir: &Path) -> Conversation {
    std::fs::write(dir.join("x"), []).expect("a file");
    for name in ["y", "z"] {
        std::fs::write(dir.join(name), vec![7; 3 << 19]).expect("a file");
    }
    let mut daemon = Conversation::begin(program, dir, &["--object", "secret,id=s,data=abc"]);
    for name in ["x", "y", "z"] {
        daemon.done("blockdev-add", json!({ "driver": "file", "node-name": name, "filename": name }));
    }
    daemon
}

fn names(daemon: &mut Conversation) -> Vec<String> {
    let nodes = daemon.done("query-named-block-nodes", json!({ "flat": true }));
    let mut names: Vec<_> =
        nodes.as_array().expect("a list").iter().map(|node| node["node-name"].to_string()).collect();
    names.sort();
    names
}

fn qcow2(more: Value) -> Value {
    let mut options = json!({ "driver": "qcow2", "file": "x", "size": 1_024_000 });
    options.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    options
}

fn luks(more: Value) -> Value {
    let mut options = json!({ "driver": "luks", "size": 1 << 20, "key-secret": "s", "iter-time": 10 });
    options.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    options
}

/// Both daemons are told to create all of these, with the same ends, the same images, files of the same length, and no other nodes than before.
fn alike(test: &str, all: &[Value]) {
    if !has_theirs(test) {
        return;
    }
    let dirs = [(); 2].map(|()| tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory"));
    let [mut ours, mut theirs] = [0, 1].map(|at| begin([OURS, THEIRS][at], dirs[at].path()));
    for (number, options) in all.iter().enumerate() {
        let [our, their] = [&mut ours, &mut theirs].map(|daemon| create(daemon, number, options));
        assert_eq!(our, their, "{options}");
        let [our, their] = dirs.each_ref().map(|dir| {
            let length = |name: &str| dir.path().join(name).metadata().expect("a file").len();
            (told(dir.path(), "x"), [length("y"), length("z")])
        });
        assert_eq!(our, their, "{options}");
    }
    assert_eq!(names(&mut ours), names(&mut theirs));
    ours.quit();
    theirs.quit();
    for dir in &dirs {
        let check = std::process::Command::new("qemu-img").current_dir(dir.path()).args(["check", "x"]).output();
        assert!(check.expect("qemu-img").status.success());
    }
}

#[test]
fn images_with_data_files_are_created_alike() {
    alike(
        "images_with_data_files_are_created_alike",
        &[
            qcow2(json!({ "data-file-raw": true })),
            qcow2(json!({ "data-file": "nope" })),
            qcow2(json!({ "data-file": "y", "version": "v2" })),
            qcow2(json!({ "data-file": "y", "data-file-raw": true, "backing-file": "b", "backing-fmt": "raw" })),
            qcow2(json!({ "data-file": 5 })),
            qcow2(json!({ "data-file": "y", "data-file-raw": true })),
            qcow2(json!({ "data-file": "y" })),
            qcow2(json!({ "data-file": "y", "data-file-raw": true, "preallocation": "full" })),
            qcow2(json!({ "data-file": { "driver": "file", "filename": "y" } })),
            qcow2(json!({ "file": {} })),
            qcow2(json!({ "file": { "driver": 5 } })),
            qcow2(json!({ "file": null })),
            qcow2(json!({ "file": { "driver": "file", "filename": "x", "node-name": "x" } })),
            qcow2(json!({ "file": { "driver": "file", "filename": "/nonexistent/x" } })),
            qcow2(json!({ "file": { "driver": "file", "filename": "x", "node-name": "own" } })),
            qcow2(json!({ "file": { "driver": "raw", "file": "x" } })),
        ],
    );
}

#[test]
fn headers_of_their_own_are_created_alike() {
    let small = qcow2(json!({}));
    alike(
        "headers_of_their_own_are_created_alike",
        &[
            small.clone(),
            luks(json!({})),
            luks(json!({ "header": 5 })),
            luks(json!({ "header": { "driver": 5 } })),
            luks(json!({ "header": "nope", "file": "z" })),
            luks(json!({ "header": "y", "file": "z", "key-secret": "nope" })),
            luks(json!({ "header": "y", "file": "z", "size": 1000 })),
            luks(json!({ "header": "y", "file": "z", "preallocation": "full" })),
            luks(json!({ "header": "y", "file": "z", "preallocation": "metadata" })),
            luks(json!({ "header": "y", "file": "z" })),
            luks(json!({ "header": "y", "file": "z", "size": -1 })),
            luks(json!({ "header": "y" })),
            luks(json!({ "file": { "driver": "file", "filename": "z", "node-name": "own" } })),
            luks(json!({ "file": "z", "header": { "driver": "file", "filename": "/nonexistent" } })),
            small,
        ],
    );
}

/// Scenario: what cannot be written, first nothing and then the header, and a file that may not become as long as it should. Each job ends with an error, and the daemon goes on with
/// the nodes that it had.
#[test]
fn job_4_jobs_on_full_disks_end_with_errors() {
    if !has_theirs("job_4_jobs_on_full_disks_end_with_errors") {
        return;
    }
    let [ours, theirs] = [OURS, THEIRS].map(|program| {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut daemon = begin(program, dir.path());
        let mut ends = Vec::new();
        for (name, rule) in [
            ("all", json!({ "event": "none", "iotype": "write", "errno": 28 })),
            ("first", json!({ "event": "none", "iotype": "write", "errno": 28, "sector": 1 })),
        ] {
            let node = json!({ "driver": "blkdebug", "node-name": name, "image": "x", "inject-error": [rule] });
            daemon.done("blockdev-add", node);
            let inside = json!({ "format": "luks", "key-secret": "s", "iter-time": 10 });
            for options in [
                qcow2(json!({ "file": name })),
                qcow2(json!({ "file": name, "preallocation": "metadata" })),
                qcow2(json!({ "file": name, "preallocation": "full" })),
                qcow2(json!({ "file": name, "encrypt": inside })),
                luks(json!({ "file": name })),
                luks(json!({ "file": name, "preallocation": "full" })),
            ] {
                ends.push((options.clone(), create(&mut daemon, ends.len(), &options)));
            }
        }
        let limit = rustix::process::Rlimit { current: Some(1 << 18), maximum: Some(1 << 18) };
        let daemon_id = rustix::process::Pid::from_raw(daemon.id() as i32).expect("a process");
        rustix::process::prlimit(Some(daemon_id), rustix::process::Resource::Fsize, limit).expect("it is ours");
        for mode in ["off", "falloc"] {
            let options = json!({ "driver": "file", "filename": "w", "size": 1 << 20, "preallocation": mode });
            ends.push((options.clone(), create(&mut daemon, ends.len(), &options)));
        }
        let named = names(&mut daemon);
        assert!(daemon.done("query-jobs", json!({})).as_array().is_some_and(Vec::is_empty));
        daemon.quit();
        (ends, named)
    });
    for (our, their) in ours.0.iter().zip(&theirs.0) {
        assert_eq!(our, their);
    }
    assert_eq!(ours, theirs);
}

/// One node cannot be both halves of an image; where the field makes one of them, it is not both.
#[test]
fn halves_of_an_image_are_two_nodes() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let mut daemon = begin(OURS, dir.path());
    daemon.done("blockdev-add", json!({ "driver": "raw", "node-name": "ry", "file": "y" }));
    for (number, options) in [
        qcow2(json!({ "file": "y", "data-file": "y" })),
        qcow2(json!({ "file": "y", "data-file": "ry" })),
        luks(json!({ "file": "ry", "header": "y" })),
    ]
    .iter()
    .enumerate()
    {
        let error = create(&mut daemon, number, options);
        assert!(error.as_str().is_some_and(|said| said.starts_with("Permission conflict on node 'y'")), "{error}");
    }
    // Nothing of it has been touched.
    assert_eq!(std::fs::read(dir.path().join("y")).expect("a file"), vec![7; 3 << 19]);
    daemon.quit();
}
