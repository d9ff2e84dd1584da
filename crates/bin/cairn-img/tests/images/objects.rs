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

/// Groups in both spellings, and each rule about what goes together, with what is told first of several mistakes.
#[test]
fn throttle_groups_are_made_and_refused_alike() {
    let properties = [
        "",
        "x-iops-total=100",
        "limits.iops-total=100",
        "limits.bps-read=1,x-iops-total=0x10",
        "x-iops-total=020,x-iops-size=4096",
        "x-bps-total=1,x-bps-read=1",
        "limits.iops-total=1,limits.iops-write=1",
        "x-bps-total-max=10,x-bps-read-max=30",
        "x-bps-total=1,x-bps-read=1,x-iops-size=4096",
        "x-iops-total=1,x-iops-read=1,x-bps-total=1000000000000001",
        "x-bps-total=1000000000000001,x-iops-size=4096",
        "x-bps-read=1000000000000001,x-bps-total-max-length=0",
        "x-iops-size=4096",
        "limits.iops-size=4096,limits.bps-total=3",
        "x-iops-total=1000000000000000",
        "x-iops-total=1000000000000001",
        "limits.iops-total=-1",
        "x-iops-total=-1",
        "x-iops-total=100,x-iops-total-max=1000000000000001",
        "x-iops-total-max=100",
        "x-iops-total=100,x-iops-total-max=50",
        "x-iops-total=100,x-iops-total-max=100",
        "x-iops-total=100,x-iops-total-max-length=2",
        "x-iops-total=100,x-iops-total-max-length=1",
        "x-iops-total=100,x-iops-total-max-length=0",
        "x-iops-total=100,x-iops-total-max=200,x-iops-total-max-length=4294967295",
        "limits.iops-total=100,limits.iops-total-max=200,limits.iops-total-max-length=4294967296",
        "limits.bps-total-max-length=-1,limits.bps-total=1,limits.bps-total-max=2",
        "limits.bps-total-max-length=-1",
        "x-bps-total=10,x-bps-total-max=500000000000000,x-bps-total-max-length=2",
        "x-bps-total=10,x-bps-total-max=500000000000001,x-bps-total-max-length=2",
        "x-bps-total-max=100000000000000,x-bps-total-max-length=50",
        "x-bps-total=900000000000000,x-bps-total-max=800000000000000,x-bps-total-max-length=50",
        "x-iops-total=10,x-iops-total-max=5,x-bps-read-max=3",
        "x-bps-read=10,x-bps-read-max=5,x-bps-write-max=4",
        "x-iops-total-max=5,x-bps-write-max-length=0",
        "x-iops-read-max=5,x-iops-write-max-length=0",
        "x-iops-write-max=5,x-iops-read-max-length=0",
        "x-bps-total=abc",
        "x-bps-total=1k",
        "limits.bps-total=",
        "limits.bps-total=1.5",
        "limits.bps-total=9223372036854775808",
        "x-bps-read=-1,x-bps-total=abc",
        "x-bps-read=-1,x-bogus=2",
        "x-iops-total=-1,limits.bogus=1,x-bps-read=abc",
        "limits.bogus=1",
        "limits=1",
        "limits=help",
        "limits.=3",
        "limits.iops-total.x=3",
        "x-iops-total.x=3",
        "iops-total=1",
    ];
    let mut described: Vec<String> = properties
        .iter()
        .map(|properties| match *properties {
            "" => "throttle-group,id=g".into(),
            properties => format!("throttle-group,id=g,{properties}"),
        })
        .collect();
    let others = [
        "throttle-group",
        "throttle-group,x-iops-total=abc",
        "throttle-group,id=1a,x-iops-total=-1",
        "throttle-group,id=1a,x-bogus=1",
        "throttle-group,help",
        "throttle-group,id=g,x-bogus=1,help",
        "throttle-group,id=g throttle-group,id=g",
        "throttle-group,id=g throttle-group,id=g,x-iops-total-max=3",
        "throttle-group,id=g throttle-group,id=g,x-iops-total=-1",
        "secret,id=g,data=x throttle-group,id=g",
        r#"{"qom-type":"throttle-group","id":"g","limits":{"iops-total":100,"bps-read":3}}"#,
        r#"{"qom-type":"throttle-group","id":"g","limits":{}}"#,
        r#"{"qom-type":"throttle-group","id":"g","limits":null}"#,
        r#"{"qom-type":"throttle-group","id":"g","limits":3}"#,
        r#"{"qom-type":"throttle-group","id":"g","limits":{"iops-total":"100"}}"#,
        r#"{"qom-type":"throttle-group","id":"g","limits":{"iops-total":true}}"#,
        r#"{"qom-type":"throttle-group","id":"g","limits":{"iops-bogus":1}}"#,
        r#"{"qom-type":"throttle-group","id":"g","x-iops-total":100}"#,
        r#"{"qom-type":"throttle-group","id":"g","x-iops-total":100.5}"#,
        r#"{"qom-type":"throttle-group","id":"g","x-iops-total":null}"#,
        r#"{"qom-type":"throttle-group","id":"g","x-iops-total":18446744073709551616}"#,
    ];
    described.extend(others.map(str::to_owned));
    check("throttle_groups_are_made_and_refused_alike", &described.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Nodes that are members of a group, and what is told of those that cannot be.
#[test]
fn throttled_images_are_opened_alike() {
    let group = "--object throttle-group,id=g";
    let above = "driver=throttle,throttle-group=g,file.driver";
    let lines = [
        format!("info {group} --image-opts {above}=raw,file.file.driver=file,file.file.filename=a.raw"),
        format!("info {group},x-bps-read=1 --image-opts {above}=null-co"),
        format!("info {group} --image-opts {above}=null-co,bogus=1"),
        format!("info {group} --image-opts {above}=nope"),
        format!("info {group} --image-opts driver=throttle,throttle-group=g"),
        format!("info {group} --image-opts driver=throttle,throttle-group=,file.driver=null-co"),
        "info --image-opts driver=throttle".into(),
        "info --image-opts driver=throttle,file.driver=null-co".into(),
        "info --image-opts driver=throttle,throttle-group=g,file.driver=null-co".into(),
        "info --object secret,id=g,data=x --image-opts driver=throttle,throttle-group=g,file.driver=null-co".into(),
        "info -f throttle a.raw".into(),
        format!("info {group} throttle:a.raw"),
        r#"info json:{"driver":"throttle","throttle-group":3,"file":{"driver":"null-co"}}"#.into(),
        format!("map {group} --image-opts {above}=file,file.filename=a.raw"),
        format!("convert {group},x-bps-total=1000000000 --image-opts {above}=file,file.filename=a.raw -O raw n.raw"),
        format!(
            "compare {group},x-iops-read=1000000 --image-opts {above}=file,file.filename=a.raw {above}=file,file.filename=a.raw"
        ),
        format!(
            "convert {group},x-bps-write=1000000000 -n --target-image-opts -f raw hole.raw {above}=file,file.filename=a.raw"
        ),
        format!("create {group} -f throttle n 1M"),
        format!("create {group} -f raw throttle:n 1M"),
        "create -f raw quorum:n 1M".into(),
        "create -f raw blkdebug:n 1M".into(),
    ];
    check_all("throttled_images_are_opened_alike", &lines.each_ref().map(String::as_str));
}
