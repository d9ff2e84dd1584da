//! Jobs that create and amend: their answers, their events, what they end with, and what they leave.

use crate::{OURS, THEIRS, converse, has_theirs, talk};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

/// Long enough for a job to end before the next command.
const GAP: Duration = Duration::from_millis(80);

/// The events by job: those of two may come in any order.
fn by_job(events: &[Value]) -> BTreeMap<String, Vec<(String, String)>> {
    let mut all: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in events {
        let text = |key: &str| event["data"][key].as_str().unwrap_or_default().to_owned();
        all.entry(text("id")).or_default().push((event["event"].to_string(), text("status")));
    }
    all
}

#[test]
fn jobs_that_create_and_amend_are_alike() {
    if !has_theirs("jobs_that_create_and_amend_are_alike") {
        return;
    }
    let script = include_str!("jobs.qmp");
    let [ours, theirs] = [OURS, THEIRS].map(|program| converse(program, script));
    for ((our, their), line) in ours.answers.iter().zip(&theirs.answers).zip(script.lines()) {
        assert_eq!(our, their, "{line}");
    }
    assert_eq!(ours.answers.len(), theirs.answers.len());
    // Those that are left when the daemon ends are dismissed there.
    let without_end = |events: &[Value]| {
        let mut all = by_job(events);
        all.values_mut().for_each(|events| events.retain(|(_, status)| status != "null"));
        all
    };
    assert_eq!(without_end(&ours.events), without_end(&theirs.events));
}

/// What a command brings about is told before it is answered, and what comes later, after: for jobs that are over at once, for one that fails, and for one that stays
/// where it is for a while. Verbs and queries are answered alike in each of their states.
#[test]
fn events_come_in_the_same_order() {
    if !has_theirs("events_come_in_the_same_order") {
        return;
    }
    // The limits that hold the last job up are lifted at the end: theirs look at that later than ours.
    let [ours, theirs] = [OURS, THEIRS].map(|program| {
        let mut lines = talk(program, include_str!("order.qmp"), GAP).lines;
        let last = lines.iter().position(|line| line["id"] == 36).expect("it answers");
        lines.truncate(last + 1);
        lines
    });
    for (our, their) in ours.iter().zip(&theirs) {
        assert_eq!(our, their, "{ours:#?}");
    }
    assert_eq!(ours.len(), theirs.len());
}

/// A job that writes 64 KiB at a time through a limit of 1000 bytes a second is in the way of the daemon's end for no minute.
#[test]
fn drain_5_quitting_waits_for_no_limits() {
    let script = [
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","node-name":"f","filename":"r.raw"}}"#,
        r#"{"execute":"object-add","arguments":{"qom-type":"throttle-group","id":"g","limits":{"bps-write":1000}}}"#,
        r#"{"execute":"blockdev-add","arguments":{"driver":"throttle","node-name":"t","throttle-group":"g","file":"f"}}"#,
        r#"{"execute":"blockdev-create","arguments":{"job-id":"s","options":{"driver":"qcow2","file":"t","size":1048576}}}"#,
        r#"{"execute":"query-jobs"}"#,
    ];
    let begin = std::time::Instant::now();
    let ours = talk(OURS, &script.join("\n"), GAP);
    assert_eq!(ours.answers[4]["return"][0]["status"], "running");
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    let ends: Vec<_> = ours.events.iter().filter_map(|event| event["data"]["status"].as_str()).collect();
    assert!(ends.contains(&"concluded"), "{ends:?}");
}

/// Key slots change while the node is in use. The field's daemon dies of that, so that its tools have to say what they think of the image.
#[test]
fn key_slots_are_changed_by_a_job() {
    let add = r#"{"execute":"object-add","arguments":{"qom-type":"secret","id":"ID","data":"DATA"}}"#;
    let amend = |id: &str, options: &str, force: bool| {
        format!(
            r#"{{"execute":"x-blockdev-amend","arguments":{{"job-id":"{id}","node-name":"l","force":{force},"options":{{"driver":"luks",{options}}}}}}}"#
        )
    };
    let script = [
        add.replace("ID", "s").replace("DATA", "abc"),
        add.replace("ID", "s2").replace("DATA", "abcd"),
        r#"{"execute":"blockdev-create","arguments":{"job-id":"c1","options":{"driver":"file","filename":"x","size":0}}}"#.into(),
        r#"{"execute":"blockdev-add","arguments":{"driver":"file","filename":"x","node-name":"x"}}"#.into(),
        r#"{"execute":"blockdev-create","arguments":{"job-id":"c2","options":{"driver":"luks","file":"x","size":1048576,"key-secret":"s","iter-time":10}}}"#.into(),
        r#"{"execute":"blockdev-add","arguments":{"driver":"luks","node-name":"l","file":"x","key-secret":"s"}}"#.into(),
        amend("a1", r#""state":"active","new-secret":"s2","iter-time":10"#, false),
        amend("a2", r#""state":"inactive","keyslot":0"#, false),
        amend("a3", r#""state":"inactive","keyslot":1"#, false),
        amend("a4", r#""state":"active""#, false),
        r#"{"execute":"query-jobs"}"#.into(),
    ];
    let ours = converse(OURS, &script.join("\n"));
    let jobs = ours.answers[10]["return"].as_array().expect("jobs").iter();
    let ends: BTreeMap<_, _> = jobs.map(|job| (job["id"].as_str().expect("an id"), job["error"].as_str())).collect();
    assert_eq!((ends["c1"], ends["c2"], ends["a1"], ends["a2"]), (None, None, None, None));
    assert_eq!(ends["a4"], Some("'new-secret' is required to activate a keyslot"));
    assert!(
        ends["a3"].is_some_and(|error| error.starts_with("Attempt to erase the only active keyslot 1")),
        "{ends:?}"
    );
    for (password, opens) in [("abcd", true), ("abc", false)] {
        let secret = format!("secret,id=k,data={password}");
        let source = "driver=luks,file.filename=x,key-secret=k";
        let args = ["convert", "--object", &secret, "--image-opts", source, "-O", "raw", "plain.raw"];
        let output = Command::new("qemu-img").current_dir(ours.dir.path()).args(args).output().expect("qemu-img");
        assert_eq!(output.status.success(), opens, "{output:?}");
    }
}

/// An image is created in a node that held something else, and nothing of that shows.
#[test]
fn what_is_created_in_a_node_is_an_image() {
    let script = r#"{"execute":"object-add","arguments":{"qom-type":"secret","id":"s","data":"abc"}}
{"execute":"blockdev-add","arguments":{"driver":"file","filename":"r.raw","node-name":"x"}}
{"execute":"blockdev-create","arguments":{"job-id":"c1","options":{"driver":"qcow2","file":"x","size":1048576,"encrypt":{"format":"luks","key-secret":"s","iter-time":10},"preallocation":"metadata"}}}
{"execute":"blockdev-create","arguments":{"job-id":"c2","options":{"driver":"qcow2","file":"x","size":3145728,"cluster-size":4096,"version":"v2","backing-file":"a.qcow2","backing-fmt":"qcow2"}}}
{"execute":"query-jobs"}"#;
    let ours = converse(OURS, script);
    assert!(
        ours.answers[4]["return"].as_array().expect("jobs").iter().all(|job| job.get("error").is_none()),
        "{ours:?}"
    );
    for args in [&["check", "r.raw"][..], &["compare", "-q", "-f", "qcow2", "-F", "qcow2", "r.raw", "a.qcow2"]] {
        let output = Command::new("qemu-img").current_dir(ours.dir.path()).args(args).output().expect("qemu-img");
        assert!(output.status.success(), "{output:?}");
    }
}
