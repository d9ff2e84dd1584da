//! The same scripts on cairn-io and on qemu-io: same output, same exit status, same bytes in the image.
//!
//! Where the two differ on purpose is in `docs/differences.md`, and in `own.rs`.

use crate::support::Bench;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A line of the table.
struct Script {
    args: Vec<String>,
    /// Reports may come in any order.
    any_order: bool,
    /// The two programs are known to differ.
    differs: bool,
}

fn table(text: &str) -> Vec<Script> {
    let mut all = Vec::new();
    let (mut options, mut image) = (Vec::new(), None);
    for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(head) = line.strip_prefix('[') {
            let (before, after) = head.strip_suffix(']').expect("a bracket").split_once('|').expect("a bar");
            options = before.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
            image = Some(after.trim().to_owned()).filter(|image| image != "-");
            continue;
        }
        let differs = line.starts_with('!');
        let any_order = line.starts_with('~');
        let script = line.trim_start_matches(['~', '!']);
        let mut args = options.clone();
        for command in script.split(" ;; ") {
            args.extend(["-c".to_owned(), command.to_owned()]);
        }
        args.extend(image.clone());
        all.push(Script { args, any_order, differs });
    }
    all
}

/// Arguments, input, and whether reports may come in any order.
type Run = (Vec<String>, Vec<u8>, bool);

/// Where the two programs differ, for each of `runs`.
fn differences(bench: &Bench, runs: &[Run]) -> Vec<Option<String>> {
    let next = AtomicUsize::new(0);
    let found: Vec<_> = runs.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|&at| at < runs.len()) {
                    let (args, stdin, any_order) = &runs[at];
                    let args: Vec<&str> = args.iter().map(String::as_str).collect();
                    *found[at].lock().expect("no panic") = bench.compare(&args, stdin, *any_order);
                }
            });
        }
    });
    found.into_iter().map(|found| found.into_inner().expect("no panic")).collect()
}

/// Compare all runs, and tell about all that differ.
fn check(runs: &[Run]) {
    let Some(bench) = Bench::new() else { return };
    let different: Vec<_> = differences(&bench, runs).into_iter().flatten().collect();
    assert!(different.is_empty(), "{} of {} scripts differ:\n{}", different.len(), runs.len(), different.join("\n"));
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn every_script_of_the_table_does_the_same() {
    check_table(include_str!("scripts.txt"), 600);
}

/// Compare the scripts of a table, of which more than `at_least` are alike.
pub(crate) fn check_table(text: &str, at_least: usize) {
    let (differ, alike): (Vec<_>, Vec<_>) = table(text).into_iter().partition(|script| script.differs);
    assert!(alike.len() > at_least, "the table has been read");
    let runs = |scripts: Vec<Script>| -> Vec<Run> {
        scripts.into_iter().map(|script| (script.args, b"length\n".to_vec(), script.any_order)).collect()
    };
    check(&runs(alike));
    let Some(bench) = Bench::new() else { return };
    let differ = runs(differ);
    for (run, difference) in differ.iter().zip(differences(&bench, &differ)) {
        assert!(difference.is_some(), "alike by now: take the mark away from {:?} in scripts.txt", run.0);
    }
}

#[test]
fn commands_from_a_pipe_are_prompted_for() {
    let long = [b"x".repeat(5000), b"\nlength\n".to_vec()].concat();
    let many = [b"length ".repeat(3000), b"\nlength\n".to_vec()].concat();
    let inputs: [&[u8]; 24] = [
        b"",
        b"length\n",
        b"length",
        b"length\nlength\n",
        b"bogus\nlength\n",
        b"bogus\nquit\n",
        b"quit\nlength\n",
        b"\n\n",
        b"   \n",
        b"length\r\n",
        b"\0length\nlength\n",
        b"len\0gth\nlength\n",
        b"\xff\xfe\n",
        b"read\t0\t1\n",
        b"help read\n",
        b"read -v 0 4\n",
        b"close\nlength\n",
        b"read 2M 1\nlength\n",
        b"sleep 1\nlength\n",
        b"read 0 1;length\n",
        b"#comment\n",
        b"length\nabort\n",
        b"length\nsigraise 15\n",
        b"write -q -P 9 0 512\nflush\nclose\nopen -r t.raw\nread -v 500 20\n",
    ];
    let mut scripts = Vec::new();
    for input in inputs.into_iter().chain([long.as_slice(), &many]) {
        scripts.push((words(&["-f", "raw", "t.raw"]), input.to_vec(), false));
    }
    scripts.push((Vec::new(), b"length\nopen -o driver=raw t.raw\nlength\n".to_vec(), false));
    scripts.push((words(&["-f", "raw", "nofile"]), b"length\n".to_vec(), false));
    check(&scripts);
}

#[test]
fn odd_arguments_are_taken_alike() {
    let mut scripts = Vec::new();
    for command in [
        "length\n",
        "read 0 1\n",
        "length\t",
        "  length",
        "",
        " ",
        "alloc \t5",
        "alloc 5\t",
        "alloc -1\t",
        "read -P \t5 0 1",
    ] {
        scripts.push((words(&["-f", "raw", "-c", command, "t.raw"]), Vec::new(), false));
    }
    for args in [
        &["-f", "raw", "-c", "length", ""][..],
        &["--image-opts", "-c", "length", ""],
        &["-c", "length", ""],
        &["t.raw", "-f", "raw", "-c", "length"],
        &["--", "-r"],
        &["--forma", "raw", "--cmd=length", "t.raw"],
        &["-rfraw", "-clength", "t.raw"],
        &["-i", "threads", "-i", "bogus"],
        &["-t", "bogus", "-V"],
        &["--image-opts", "-f", "raw"],
        &["--object", "bogus,id=s"],
        &["--object", "secret"],
        &["--object", ""],
        &["--object", "{"],
        &["--object", "iothread,id=s"],
        &["--object", "secret,id=1,data=x"],
        &["--object", "secret,id=s,file=nope"],
        &["--object", "secret,id=s,file=dir"],
        &["--object", "secret,id=s,data=x", "--object", "secret,id=s,data=x"],
        &["--object", "secret,id=s,data=x,keyid=m", "--object", "secret,id=m,data=x"],
        &["--object", "secret,help", "-z"],
        &["--object", "secret,help", "-c", "length", "t.raw"],
        &["--object", "bogus", "-z"],
        &["--object", "secret,id=s", "-t", "bogus"],
        &["-t", "bogus", "--object", "secret,id=s"],
        &["-T", "file=/nonexistent/trace", "--object", "secret,id=s"],
        &["--object", "bogus", "-h"],
        &["--object", "bogus", "-V"],
        &["--object", "secret,id=s", "a", "b"],
        &["--object=secret,id=s,data=x", "--image-opts", "-f", "raw"],
        &["--obj", "secret,id=s,data=x", "-t", "bogus"],
        &["--force-shar"],
        &["--i"],
    ] {
        scripts.push((words(args), Vec::new(), false));
    }
    check(&scripts);
}

#[test]
fn a_bad_command_line_is_refused_in_the_same_words() {
    let Some(theirs) = crate::support::theirs() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    for args in [
        &["-z"][..],
        &["--bogus"],
        &["--bogus=1"],
        &["--c"],
        &["--c=1"],
        &["--n"],
        &["--f"],
        &["--d"],
        &["--cmd"],
        &["-c"],
        &["-f"],
        &["-T"],
        &["--help=x"],
        &["--re=1"],
        &["-rz"],
        &["-g"],
        &["-x"],
        &["a", "b"],
        &["--image-opts", "-f", "raw", "a", "b"],
        &["-h"],
        &["-hV"],
        &["--object", "secret,id=s,data=x", "-z"],
        &["--object", "secret,id=s,data=x", "-h"],
        &["-z", "--object", "bogus"],
        &["-h", "--object", "bogus"],
    ] {
        // What follows is the usage, which names the program that it is.
        let run = |program| {
            let ran = crate::support::run(program, dir.path(), args, b"");
            let first = ran.stdout.lines().next().unwrap_or_default().to_owned();
            (ran.status, first, ran.stderr)
        };
        assert_eq!(run(&crate::support::ours()), run(&theirs), "{args:?}");
    }
}

#[test]
fn what_is_deallocated_is_the_same() {
    use std::os::unix::fs::MetadataExt;
    let Some(theirs) = crate::support::theirs() else { return };
    for (options, command) in [
        (&[][..], "discard 0 512k"),
        (&["-d", "unmap"], "discard 0 512k"),
        (&["-d", "ignore"], "discard 0 512k"),
        (&[], "write -z 0 512k"),
        (&[], "write -zu 0 512k"),
        (&["-d", "off"], "write -zu 0 512k"),
        (&[], "aio_write -zu 0 512k"),
        (&[], "aio_write -z 0 512k"),
        (&[], "write -P 0 0 512k"),
        (&[], "truncate 512k"),
        (&[], "truncate -m falloc 2M"),
        (&[], "truncate -m off 2M"),
    ] {
        let blocks = |program| {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("full.raw");
            let file = std::fs::File::create(&path).expect("a file");
            std::os::unix::fs::FileExt::write_all_at(&file, &[b'f'; 1 << 20], 0).expect("data");
            file.sync_all().expect("a sync");
            let args = [&["-f", "raw"], options, &["-c", command, "full.raw"]].concat();
            assert_eq!(crate::support::run(program, dir.path(), &args, b"").status, 0, "{args:?}");
            file.sync_all().expect("a sync");
            file.metadata().expect("a file").blocks()
        };
        assert_eq!(blocks(&crate::support::ours()), blocks(&theirs), "{options:?} {command}");
    }
}

/// Commands at random, most of them good.
struct Generator(StdRng);

impl Generator {
    fn one_of<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.0.random_range(0..of.len())]
    }

    fn maybe<'a>(&mut self, word: &'a str, of_ten: u32) -> &'a str {
        if self.0.random_range(0..10) < of_ten { word } else { "" }
    }

    /// A number of bytes up to `max`, in one of the ways to write one.
    fn number(&mut self, max: u64) -> String {
        let bytes = match self.0.random_range(0..4) {
            0 => self.0.random_range(0..=max),
            1 => self.0.random_range(0..=max) & !511,
            2 => self.0.random_range(0..=max.min(8192)),
            _ => [0, 1, 511, 512, 513, 4095, 4096, 65536][self.0.random_range(0..8)].min(max),
        };
        match self.0.random_range(0..12) {
            0 if bytes.is_multiple_of(1024) => format!("{}k", bytes / 1024),
            1 => format!("{bytes:#x}"),
            2 if bytes.is_multiple_of(512) => format!("{}.5k", bytes / 1024),
            3 => self
                .one_of(&["x", "-1", "1.5", "3G", "9E", "2M", "1048576", "1k1", "+7", "0b", "18446744073709551616"])
                .into(),
            _ => bytes.to_string(),
        }
    }

    fn pattern(&mut self) -> String {
        match self.0.random_range(0..12) {
            0 => self.one_of(&["x", "256", "-1", "0x100", "08"]).into(),
            1 => format!("{:#x}", self.0.random::<u8>()),
            2 => format!("0{:o}", self.0.random::<u8>()),
            3 => "0".into(),
            4 => "0x78".into(),
            5 => "205".into(),
            _ => self.0.random::<u8>().to_string(),
        }
    }

    fn command(&mut self) -> Vec<String> {
        let (at, len) = (self.number(1 << 20), self.number(100_000));
        let more = if self.0.random_range(0..3) == 0 { self.number(2000) } else { String::new() };
        let report = self.one_of(&["", "", "", "-q", "-C", "-Cq", "-Z"]);
        let pattern = format!("-P {}", self.pattern());
        let fua = self.maybe("-f", 2);
        let command = match self.0.random_range(0..16) {
            0 | 1 => {
                let (start, pattern_len) = (self.number(3000), self.number(3000));
                let (pattern, dump) = (self.maybe(&pattern, 5), self.maybe("-v", 2));
                let start = format!("-s {start}");
                let pattern_len = format!("-l {pattern_len}");
                let (start, pattern_len) = (self.maybe(&start, 2), self.maybe(&pattern_len, 2));
                let dumped = if dump.is_empty() { len } else { self.number(200) };
                let other = self.one_of(&["", "", "", "", "-r", "-b", "-p"]);
                format!(
                    "read {report} {pattern} {start} {pattern_len} {dump} {other} {at} {dumped} {}",
                    self.maybe("7", 1)
                )
            }
            2 => format!("readv {report} {} {} {at} {len} {more}", self.maybe(&pattern, 5), self.maybe("-r", 2)),
            3 | 4 => {
                let source = self.one_of(&["", "-s pat", "-s pat1", "-s all", "-s pat0", "-s nofile"]);
                let other = self.one_of(&["", "", "", "", "-r", "-b", "-c", "-u", "-n", "-p"]);
                format!("write {report} {fua} {source} {} {other} {at} {len}", self.maybe(&pattern, 5))
            }
            5 => {
                format!("write {report} {fua} {} {at} {len}", self.one_of(&["-z", "-zu", "-zn", "-znu", "-zr", "-zc"]))
            }
            6 => format!("writev {report} {fua} {} {at} {len} {more}", self.maybe(&pattern, 7)),
            7 => format!("aio_read {report} {} {at} {len} {more}", self.maybe(&pattern, 5)),
            8 => format!("aio_write {report} {fua} {} {at} {len} {more}", self.maybe(&pattern, 5)),
            9 => format!("aio_write {report} {} {at} {len}", self.one_of(&["-z", "-zu", "-zf", "-zi", "-u"])),
            10 => format!("discard {report} {at} {len}"),
            11 => format!("alloc {at} {len}"),
            12 => self.one_of(&["map", "length", "info", "flush", "bogus", "help bogus", "close 1"]).into(),
            13 => {
                let sectors = self.0.random_range(0..4096u64);
                format!("truncate {} {}", self.one_of(&["", "-m off", "-m falloc", "-m full"]), sectors * 512)
            }
            14 => "close".into(),
            _ => format!("zone_open {at} {len}"),
        };
        if command == "close" {
            return vec![command, "open -o driver=raw t.raw".into()];
        }
        // What is under way together is carried out in any order; so nothing is.
        vec![command, "aio_flush".into()]
    }
}

#[test]
fn random_scripts_do_the_same() {
    let from_environment = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = from_environment("CAIRN_SEED").unwrap_or_else(|| rand::rng().random());
    let runs = from_environment("CAIRN_IO_RUNS").unwrap_or(60);
    println!("CAIRN_SEED={seed} CAIRN_IO_RUNS={runs}");
    let mut generator = Generator(StdRng::seed_from_u64(seed));
    let mut scripts = Vec::new();
    for _ in 0..runs {
        let mut args = words(&["-f", "raw"]);
        for _ in 0..generator.0.random_range(1..25) {
            for command in generator.command() {
                args.extend(["-c".into(), command]);
            }
        }
        args.push("t.raw".into());
        scripts.push((args, Vec::new(), false));
    }
    check(&scripts);
}
