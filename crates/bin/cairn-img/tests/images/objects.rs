//! `--object`: what is made and what is refused, in every command, as qemu-img does it.

use crate::support::{check_all, ours, words};

/// A master key, what openssl makes of "letmein" with it, and the initialisation vector.
const MASTER: &str = "--object secret,id=m,format=base64,data=BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
const LETMEIN: &str = "8M6ybS9236/Kv2RAf/0mMw==";
const IV: &str = "CQkJCQkJCQkJCQkJCQkJCQ==";

/// Both do the same with `create` and each of these descriptions, which stand between single spaces where there are several.
fn check(test: &str, described: &[&str]) {
    let line = |texts: &&str| {
        let objects: Vec<_> = texts.split(' ').map(|text| format!("--object {text}")).collect();
        format!("create -q {} n.raw 1M", objects.join(" "))
    };
    let lines: Vec<_> = described.iter().map(line).collect();
    check_all(test, &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn every_command_makes_objects_first() {
    let mut lines = Vec::new();
    for (before, after) in [
        ("amend", "-f qcow2 -o lazy_refcounts=on a.raw"),
        ("bitmap", "--add -f raw nope b"),
        ("check", "-f raw a.raw"),
        ("commit", "-f raw a.raw"),
        ("compare", "-f raw -F raw a.raw hole.raw"),
        ("convert", "-f raw a.raw n.raw"),
        ("create", "-o help n.raw"),
        ("dd", "-f raw if=a.raw of=n.raw"),
        ("info", "-f raw a.raw"),
        ("map", "-f raw a.raw"),
        ("measure", "-f raw a.raw"),
        ("measure", "--size 1M"),
        ("rebase", "-u -f raw nope"),
        ("resize", "-f raw a.raw +1M"),
        ("snapshot", "-l hole.raw"),
        ("bench", "-c 1 -f raw a.raw"),
    ] {
        for object in ["secret,id=s,data=x", "secret,id=s", "secret,help"] {
            lines.push(format!("{before} --object {object} {after}"));
            lines.push(format!("{before} {after} --object {object}"));
        }
        lines.push(format!("{before} --object secret,id=s,data=x"));
        lines.push(format!("{before} --object secret,id=s,file=nope"));
    }
    check_all("every_command_makes_objects_first", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn the_option_is_read_as_qemu_img_reads_it() {
    check_all(
        "the_option_is_read_as_qemu_img_reads_it",
        &[
            "info --object=secret,id=s,data=x -f raw a.raw",
            "info --obj secret,id=s,data=x -f raw a.raw",
            "info --object secret,id=s,data=x -f raw a.raw --object secret,id=t,data=y",
            "info --object",
            "info --object ''",
            "info --object= a.raw",
            "info --object -x a.raw",
            "info --foo --object secret,id=s a.raw",
            "info --object secret,id=s,data=x --foo",
            "info --object secret,id=s -f raw --image-opts a.raw",
            "info --object secret,id=s a.raw hole.raw",
            "compare -T bogus --object secret,id=s a.raw hole.raw",
            "convert -t bogus --object secret,id=s a.raw n.raw",
            "create -o help --object secret,id=s",
            "create --object secret,help -o help",
            "create --object secret,help --object secret,id=s",
            "create --object secret,id=s --object secret,help",
            "create --object secret,id=s,data=x --object secret,help",
        ],
    );
}

#[test]
fn secrets_are_described_as_to_qemu_img() {
    check(
        "secrets_are_described_as_to_qemu_img",
        &[
            "secret,id=s,data=x",
            "secret,id=s,data=",
            "secret,id=s,data=x,,y",
            "secret,id=s,data=x,",
            "secret,id=s,data=x,data=y",
            "secret,id=s,data=help",
            "secret,id=s,data=x,format=raw",
            "secret,id=s,data=YQ==,format=base64",
            "secret,id=s,data=,format=base64",
            "secret,id=s,data=aä",
            "secret,id=s.a-b_c,data=y",
            "secret,id=s,file=one.raw",
            "secret,id=s,file=empty.raw",
            "secret,id=s,file=a.raw",
            "secret,id=s,file=/dev/null",
            "id=s,qom-type=secret,data=x",
            "foo,qom-type=secret,id=s,data=x",
            "secret,id=s,data=x secret,id=t,data=x",
            r#"{"qom-type":"secret","id":"s","data":"x"}"#,
            r#"{"qom-type":"secret","id":"s","data":"a\u0000b\u00e4"}"#,
            "{'qom-type':'secret','id':'s','data':'x'}",
            "secret,help",
            "secret,?",
            "secret,id=s,help",
            "secret,format=hex,help",
            "secret,foo=1,help",
            "qom-type=secret,help",
        ],
    );
}

#[test]
fn bad_descriptions_are_refused_alike() {
    check(
        "bad_descriptions_are_refused_alike",
        &[
            "secret",
            "secret,id=s",
            "secret,data=x",
            "id=s,data=x",
            "secret,id=s,data=x,file=y",
            "secret,id=s,file=nope",
            "secret,id=s,file=",
            "secret,id=s,file=dir",
            "secret,id=s,file=one.raw/",
            "secret,id=s,data=a-b_,format=base64",
            "secret,id=s,file=one.raw,format=hex",
            "secret,id=s,data=x,format=",
            "secret,id=s,data=x,format=RAW",
            "secret,id=s,data=x,foo=1",
            "secret,id=s,bar=1,foo=2,data=x",
            "secret,id=s,format",
            "secret,id=s,-=1,data=x",
            "secret,id=s,data=x,loaded=on",
            "secret,id=s,data=x,dat=y",
            "secret,id=s,data.x=y",
            "secret,id.a=s,data=y",
            "secret,id=s,data=x,help.a=1",
            "secret,id=1s,data=y",
            "secret,id=,data=y",
            "secret,id=ä,data=y",
            "secret,id=#block1,data=y",
            "secret,id=1,foo=1",
            "secret,id=1,foo=1,format=hex",
            "secret,foo=1,format=hex",
            "secret,id=s,data=x secret,id=s,data=x",
            "secret,id=s,data=x secret,id=s,file=nope",
            "secret,qom-type=foo,id=s",
            "secret.a,id=s",
            "qom-type.a=secret,id=s",
            "qom-type=help",
            "help=1",
            "help,secret",
            ",help",
            ",",
            "foo",
            "foo,id=x",
            "iothread",
            "iothread,id=i",
            "can-bus,id=i",
            "[]",
            "{",
            "{}",
            r#"{"qom-type":"secret"}"#,
            r#"{"id":"s","data":"x"}"#,
            r#"{"qom-type":"secret","id":"s","data":1}"#,
            r#"{"qom-type":"secret","id":"s","data":null}"#,
            r#"{"qom-type":"secret","id":"s","data":{"a":"b"}}"#,
            r#"{"qom-type":"secret","id":"s","data":"x","data":"y"}"#,
            r#"{"qom-type":"secret","id":"s","da.ta":"x"}"#,
            r#"{"qom-type":"secret","id":"s","data":"x","help":"x"}"#,
            r#"{"qom-type":"secret","id":"s","data":"x","loaded":true}"#,
            r#"{"qom-type":"secret","id":1,"data":"x"}"#,
            r#"{"qom-type":1,"id":"s","data":"x"}"#,
            r#"{"qom-type":"foo","id":"s","data":"x"}"#,
            r#"{"qom-type":"secret","id":"s","data":"x"}x"#,
        ],
    );
}

#[test]
fn secrets_are_decrypted_alike() {
    let with = |more: &str| format!("create -q {MASTER} --object secret,id=s,{more} n.raw 1M");
    let good = format!("data={LETMEIN},format=base64");
    let lines = [
        with(&format!("keyid=m,iv={IV},{good}")),
        with(&format!("keyid=m,{good}")),
        with(&format!("keyid=m,iv=,{good}")),
        with(&format!("keyid=m,iv=AAAA,{good}")),
        with(&format!("keyid=m,iv={IV}AAAA,{good}").replace("==AAAA", "AA")),
        with(&format!("keyid=m,iv=--,{good}")),
        with(&format!("keyid=m,iv={IV},data={LETMEIN}")),
        with(&format!("keyid=m,iv={IV},data=AAAA,format=base64")),
        with(&format!("keyid=m,iv={IV},data=!!,format=base64")),
        with("keyid=m,iv=AAAA,data=!!,format=base64"),
        with("keyid=m,data=!!,format=base64"),
        with(&format!("keyid=nope,iv=!!,{good}")),
        with(&format!("keyid=,iv={IV},{good}")),
        with(&format!("keyid=s,iv={IV},{good}")),
        with(&format!("keyid=m,iv={IV},file=nope")),
        with("keyid=nope,iv=!!,file=nope"),
        with("keyid=nope"),
        format!("create -q --object secret,id=s,keyid=m,iv={IV},{good} {MASTER} n.raw 1M"),
        format!("create -q --object secret,id=m,data=x --object secret,id=s,keyid=m,iv=!!,{good} n.raw 1M"),
    ];
    check_all("secrets_are_decrypted_alike", &lines.each_ref().map(String::as_str));
}

/// Whatever goes wrong, and whatever is logged.
#[test]
fn no_secret_is_printed() {
    for object in [
        "secret,id=s,data=hunter2",
        "secret,id=1,data=hunter2",
        "secret,id=s,data=hunter2,file=x",
        "secret,id=s,data=hunter2,format=base64",
        "secret,id=s,data=hunter2,foo=1",
        "secret,id=s,data=x,hunter2",
        "secret,id=s,data=x,y,hunter2,,",
        "secret,data=hunter2",
        "throttle-group,id=s,data=hunter2",
        r#"{"qom-type":"secret","id":"s","data":"hunter2"#,
        r#"{"qom-type":"secret","id":"s","data":hunter2}"#,
        r#"{"qom-type":"secret","id":"s","data":["hunter2"]}"#,
    ] {
        for line in
            ["-T trace info --object OBJECT -f raw a.raw", "info --object OBJECT", "create --object OBJECT n 1M"]
        {
            let args = words(line);
            let args: Vec<_> = args.into_iter().map(|word| if word == "OBJECT" { object } else { word }).collect();
            let outcome = ours(&args);
            assert!(!format!("{outcome:?}").contains("hunter2"), "{object}\n{outcome:?}");
        }
    }
}
