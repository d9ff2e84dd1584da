//! Filters that copy, `copy-on-read`, `copy-before-write` and `snapshot-access`: the same scripts on the same images with both programs. They say the same, and leave the
//! same behind: what every image holds, and which parts of it.

use crate::support::{Ran, ours, run, theirs, without_times};
use block_testkit::{Rng, seed};
use std::path::Path;
use std::process::Command;

/// A chain of three images: `top` has its third cluster, `mid` its second and zeroes in its fourth, and `base` ends before them.
const CHAIN: &[&str] = &[
    "qemu-img create -q -f raw base 600k",
    "qemu-io -f raw -c 'write -P 1 0 100k' -c 'write -P 2 300k 300k' base",
    "qemu-img create -q -f qcow2 -b base -F raw mid 1M",
    "qemu-io -f qcow2 -c 'write -P 3 64k 64k' -c 'write -z 192k 64k' mid",
    "qemu-img create -q -f qcow2 -b mid -F qcow2 top 1M",
    "qemu-io -f qcow2 -c 'write -P 4 128k 64k' top",
];
const COR: &str = r#"{"driver":"copy-on-read","file":{"driver":"qcow2","file":{"driver":"file","filename":"top"}}}"#;

/// A source that is half full, and targets of several kinds.
const SOURCE: &[&str] = &[
    "qemu-img create -q -f raw source 1M",
    "qemu-io -f raw -c 'write -P 1 0 512k' source",
    "qemu-img create -q -f raw raw 1M",
    "qemu-img create -q -f qcow2 top 1M",
    "qemu-img create -q -f qcow2 -o cluster_size=2M large 1M",
];

fn make(dir: &Path, lines: &[&str]) {
    for line in lines {
        let made = Command::new("sh").args(["-c", line]).current_dir(dir).output().expect("a shell");
        assert!(made.status.success(), "{line}: {made:?}");
    }
}

/// Numbers of nodes, and what is said of one that is only read.
fn without_names(text: &str) -> String {
    let mut words = Vec::new();
    for line in text.lines() {
        // Whose tables could not be written is not said here.
        if line.contains("Failed to flush the ") {
            continue;
        }
        let line = match line.split_once("Block node '") {
            Some((start, rest)) => format!("{start}Block node{}", rest.split_once('\'').map_or("", |(_, end)| end)),
            None => line.to_owned(),
        };
        words.push(line);
    }
    words.join("\n")
}

/// What qemu-img says of an image, but for where its clusters lie.
fn told(dir: &Path, image: &str) -> Vec<String> {
    let format = if matches!(image, "raw" | "source") { "raw" } else { "qcow2" };
    let args = ["map", "--output=json", "-f", format, image];
    let output = Command::new("qemu-img").args(args).current_dir(dir).output().expect("qemu-img comes with qemu-io");
    let map = String::from_utf8_lossy(&output.stdout).into_owned();
    map.lines().map(|line| line.split(", \"offset\"").next().unwrap_or_default().to_owned()).collect()
}

/// Extents that differ in nothing but their place are one, and so are those that an image does not have itself: what the host says of a hole below depends on who
/// has read it.
fn joined(map: Vec<String>) -> Vec<(u64, u64, String)> {
    let mut extents: Vec<(u64, u64, String)> = Vec::new();
    for line in map {
        let number = |key: &str| -> u64 {
            let rest = line.split_once(key).map_or("", |(_, rest)| rest);
            rest.split(',').next().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
        };
        let (start, len) = (number("\"start\":"), number("\"length\":"));
        let rest = line.split_once("\"depth\": ").map_or("", |(_, rest)| rest);
        let rest = if rest.starts_with('0') { rest.trim_end_matches([',', '}', ']']) } else { "below" }.to_owned();
        match extents.last_mut() {
            Some(last) if last.2 == rest && last.0 + last.1 == start => last.1 += len,
            _ => extents.push((start, len, rest)),
        }
    }
    extents
}

/// Run both programs with `args` and `commands` on what `made` makes, and compare, the images `left` too.
fn check(made: &[&str], args: &[&str], commands: &[&str], left: &[&str]) {
    let Some(their_program) = theirs() else { return };
    let run_one = |program: &Path| {
        let dir = tempfile::tempdir().expect("a directory");
        make(dir.path(), made);
        let (image, options) = args.split_last().map_or((None, args), |(image, options)| (Some(*image), options));
        let mut all: Vec<&str> = options.to_vec();
        all.extend(commands.iter().flat_map(|command| ["-c", *command]));
        let image = image.map(|image| if image.starts_with('{') { format!("json:{image}") } else { image.to_owned() });
        all.extend(image.as_deref().filter(|image| !image.is_empty()));
        let ran = run(program, dir.path(), &all, b"");
        let (stdout, stderr) = (without_names(&without_times(&ran.stdout)), without_names(&ran.stderr));
        (Ran { stdout, stderr, ..ran }, dir)
    };
    let ((ours, our_dir), (theirs, their_dir)) = (run_one(&ours()), run_one(&their_program));
    assert_eq!(ours, theirs, "{args:?} {commands:?}");
    for image in left {
        let (our_map, their_map) = (joined(told(our_dir.path(), image)), joined(told(their_dir.path(), image)));
        assert!(!their_map.is_empty());
        assert_eq!(our_map, their_map, "{image}: {args:?} {commands:?}");
        let (ours, theirs) = (our_dir.path().join(image), their_dir.path().join(image));
        let compared = Command::new("qemu-img").arg("compare").args([&ours, &theirs]).output().expect("it starts");
        assert!(compared.status.success(), "{image}: {args:?} {commands:?}: {compared:?}");
    }
}

#[test]
fn copies_are_those_of_qemu_io() {
    let with_bottom = |bottom: &str| {
        let base = match bottom {
            "base" => r#","backing":{"driver":"raw","node-name":"m","file":{"driver":"file","filename":"base"}}"#,
            _ => r#","node-name":"m""#,
        };
        format!(
            r#"{{"driver":"copy-on-read","bottom":"m","file":{{"driver":"qcow2","file":{{"driver":"file","filename":"top"}},
            "backing":{{"driver":"qcow2","file":{{"driver":"file","filename":"mid"}}{base}}}}}}}"#
        )
    };
    let (mid, base) = (with_bottom("mid"), with_bottom("base"));
    for range in ["0 100", "0 70000", "0 1M", "1000 300k", "600k 1", "700k 300k", "64k 64k"] {
        let read = format!("read {range}");
        for args in [&[COR][..], &[mid.as_str()], &[base.as_str()], &["-C", "-f", "qcow2", "top"]] {
            check(CHAIN, args, &[&read, "map"], &["top", "mid"]);
        }
    }
}

#[test]
fn everything_else_goes_through_copy_on_read() {
    let commands = [
        "read 0 100k",
        "info",
        "length",
        "alloc 0 1M",
        "write -P 7 0 100k",
        "read -P 7 0 100k",
        "write -z 128k 64k",
        "discard 256k 64k",
        "truncate 2M",
        "length",
        "read -P 0 1M 1M",
        "write -c -P 3 0 64k",
        "flush",
        "map",
    ];
    let cor = COR.replacen('{', r#"{"discard":"unmap","#, 1);
    check(CHAIN, &[&cor], &commands, &["top"]);
    check(CHAIN, &["-C", "-d", "unmap", "-f", "qcow2", "top"], &commands, &["top"]);
    check(CHAIN, &["-C", "-f", "qcow2", "top"], &["write -b -P 3 0 64k", "read -b -P 3 0 64k"], &["top"]);
    check(CHAIN, &["-C", "-s", "-f", "qcow2", "top"], &["read 0 100k", "map"], &["top"]);
    check(CHAIN, &["-C", "-r", "-f", "qcow2", "top"], &["read 0 100k"], &["top"]);
    check(CHAIN, &["-r", COR], &["read 0 100k"], &["top"]);
    check(CHAIN, &[""], &["open -C top", "read 0 64k", "map"], &["top"]);
    for (more, at) in [("bottom\":\"nope", 1), ("bottom\":\"x", 1), ("node-name\":\"x", 2)] {
        let options = COR.replacen('{', &format!("{{\"{more}\","), 1);
        let above = format!(r#"{{"driver":"copy-on-read","bottom":"x","file":{options}}}"#);
        check(CHAIN, &[if at == 1 { &options } else { &above }], &["read 0 1k"], &["top"]);
    }
    check(CHAIN, &[r#"{"driver":"copy-on-read"}"#], &["read 0 1k"], &[]);
    let raw = r#"{"driver":"copy-on-read","file":{"driver":"raw","file":{"driver":"file","filename":"base"}}}"#;
    check(CHAIN, &[raw], &["read 0 1k", "map"], &["top"]);
}

#[test]
fn clusters_and_pieces_are_those_of_qemu_io() {
    for options in ["cluster_size=64k", "extended_l2=on,cluster_size=128k", "cluster_size=2M", "cluster_size=512"] {
        let create = format!("qemu-img create -q -f qcow2 -o {options} -b base -F raw top 40M");
        let made = [
            "qemu-img create -q -f raw base 40M",
            "qemu-io -f raw -c 'write -P 1 0 64k' -c 'write -P 1 39M 1M' base",
            &create,
        ];
        for command in ["read 1000 10", "read 39M 5k", "read 1000 39M", "read 40000000 1"] {
            check(&made, &[COR], &[command], &["top"]);
        }
    }
    let odd = [
        "qemu-img create -q -f raw base 1000000",
        "qemu-io -f raw -c 'write -P 1 0 1000000' base",
        "qemu-img create -q -f qcow2 -b base -F raw top",
    ];
    check(&odd, &[COR], &["read 999000 1000", "read 0 1000000"], &["top"]);
}

/// An error of the image is an error of the read that it was to be filled by.
#[test]
fn a_failed_copy_is_told_as_by_qemu_io() {
    for (event, more) in
        [("none", r#","once":true"#), ("none", ""), ("cor_write", ""), ("pwritev", ""), ("write_aio", "")]
    {
        let options = format!(
            r#"{{"driver":"copy-on-read","file":{{"driver":"blkdebug","inject-error":[{{"event":"{event}","errno":28,"iotype":"write"{more}}}],
            "image":{{"driver":"qcow2","file":{{"driver":"file","filename":"top"}}}}}}}}"#
        );
        check(CHAIN, &[&options], &["read 0 1k", "read 0 1k"], &["top"]);
    }
}

/// Scenario: images of a chain with writes, zeroes and holes at random places are read at random places.
#[test]
fn random_reads_copy_as_those_of_qemu_io() {
    let seed = seed();
    println!("CAIRN_SEED={seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..6 {
        let mut lines = vec![format!("qemu-img create -q -f raw base {}k", rng.below(1..1500))];
        let sizes = ["512", "4k", "64k"];
        for (name, below, format) in [("mid", "base", "raw"), ("top", "mid", "qcow2")] {
            let size = sizes[rng.below(0..3) as usize];
            lines.push(format!("qemu-img create -q -f qcow2 -o cluster_size={size} -b {below} -F {format} {name} 1M"));
        }
        for (name, format) in [("base", "raw"), ("mid", "qcow2"), ("top", "qcow2")] {
            let mut line = format!("qemu-io -f {format}");
            for _ in 0..rng.below(1..6) {
                let zero = if rng.chance(30) { "-z" } else { "-P 9" };
                let at = rng.below(0..900);
                line += &format!(" -c 'write {zero} {at}k {}k'", rng.below(1..124));
            }
            // Some of it may lie past the end.
            lines.push(line + &format!(" {name} >/dev/null 2>&1 || true"));
        }
        let made: Vec<&str> = lines.iter().map(String::as_str).collect();
        let reads: Vec<_> =
            (0..4).map(|_| format!("read {} {}", rng.below(0..1 << 19), rng.below(1..1 << 19))).collect();
        let commands: Vec<&str> = reads.iter().map(String::as_str).collect();
        check(&made, &[COR], &commands, &["top"]);
    }
}

fn cbw(target: &str, more: &str) -> String {
    let target = match target {
        "raw" => r#"{"driver":"raw","file":{"driver":"file","filename":"raw"}}"#.to_owned(),
        name => format!(r#"{{"driver":"qcow2","file":{{"driver":"file","filename":"{name}"}}}}"#),
    };
    let source = r#"{"driver":"raw","file":{"driver":"file","filename":"source"}}"#;
    format!(r#"{{"driver":"copy-before-write","discard":"unmap","file":{source},"target":{target}{more}}}"#)
}

#[test]
fn points_in_time_are_kept_as_by_qemu_io() {
    let commands = [
        "write -P 9 1k 1k",
        "write -P 9 600k 1k",
        "discard 128k 64k",
        "write -z 256k 200k",
        "write -P 7 1k 64k",
        "read -P 7 1k 64k",
        "flush",
        "truncate 2M",
        "length",
    ];
    for (target, more) in [
        ("top", ""),
        ("large", ""),
        ("raw", ""),
        ("top", r#","min-cluster-size":131072"#),
        ("top", r#","min-cluster-size":1"#),
        ("top", r#","min-cluster-size":0"#),
        ("raw", r#","min-cluster-size":1048576"#),
        ("top", r#","cbw-timeout":60"#),
    ] {
        check(SOURCE, &[&cbw(target, more)], &commands, &[target, "source"]);
    }
    for more in [
        r#","min-cluster-size":3"#,
        r#","on-cbw-error":"x""#,
        r#","cbw-timeout":-1"#,
        r#","cbw-timeout":4294967296"#,
        r#","bitmap":"x""#,
        r#","bitmap":{"node":"x"}"#,
        r#","bitmap":{"node":"x","name":"y"}"#,
    ] {
        check(SOURCE, &[&cbw("raw", more)], &["read 0 1k"], &[]);
    }
    check(SOURCE, &["-r", &cbw("raw", "")], &["read 0 1k"], &["source"]);
}

#[test]
fn what_gives_way_is_what_gives_way_in_qemu_io() {
    let bad = |image: &str, kind: &str, more: &str| {
        format!(
            r#"{{"driver":"blkdebug","image":{{"driver":"raw","file":{{"driver":"file","filename":"{image}"}}}},
            "inject-error":[{{"event":"none","errno":28,"iotype":"{kind}"{more}}}]}}"#
        )
    };
    let commands =
        ["write -P 9 1k 1k", "write -P 9 64k 1k", "read -P 9 1k 1k", "read -P 9 64k 1k", "write -P 9 1k 1k", "flush"];
    for policy in ["break-guest-write", "break-snapshot"] {
        for once in [r#","once":true"#, ""] {
            let source = r#"{"driver":"raw","file":{"driver":"file","filename":"source"}}"#;
            for (source, target) in [
                (source.to_owned(), bad("raw", "write", once)),
                (
                    bad("source", "read", once),
                    r#"{"driver":"raw","file":{"driver":"file","filename":"raw"}}"#.to_owned(),
                ),
                (
                    bad("source", "block-status", once),
                    r#"{"driver":"raw","file":{"driver":"file","filename":"raw"}}"#.to_owned(),
                ),
            ] {
                // What the guest reads may fail, too: those of the source are not asked.
                let commands = if source.contains(r#""read""#) { &commands[..2] } else { &commands[..] };
                let options = format!(
                    r#"{{"driver":"copy-before-write","on-cbw-error":"{policy}","file":{source},"target":{target}}}"#
                );
                check(SOURCE, &[&options], commands, &["source"]);
            }
        }
    }
}

#[test]
fn the_past_is_seen_as_by_qemu_io() {
    let access = format!(r#"{{"driver":"snapshot-access","discard":"unmap","file":{}}}"#, cbw("raw", ""));
    check(SOURCE, &[&access], &["map", "alloc 0 1M", "length", "read -P 1 0 512k", "read -P 0 512k 512k"], &["source"]);
    let commands = [
        "discard 0 64k",
        "read 0 1k",
        "map",
        "read 64k 1k",
        "write 0 1k",
        "write -z 0 1k",
        "flush",
        "alloc 0 1M",
        "discard 65k 130k",
        "read 64k 64k",
        "read 128k 1k",
        "read 192k 64k",
        "discard 960k 64k",
        "read 1023k 1k",
        "truncate 2M",
    ];
    check(SOURCE, &[&access], &commands, &["source", "raw"]);
    let none = r#"{"driver":"snapshot-access","file":{"driver":"raw","file":{"driver":"file","filename":"source"}}}"#;
    check(SOURCE, &[none], &["read 0 1k", "alloc 0 1k", "length"], &["source"]);
}
