//! `commit` and `rebase`: what they say, what the images show after it, and whose each cluster is, as qemu-img has it.

use crate::beds::{Beds, is_missing};
use crate::support::{program, skipped};
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

struct Bed(TempDir);

impl Bed {
    fn run(&self, program: &Path, folder: &str, words: &[&str]) -> Output {
        Command::new(program).args(words).current_dir(self.0.path().join(folder)).output().expect("the program starts")
    }

    fn must(&self, program: &str, folder: &str, words: &[&str]) -> String {
        let output = self.run(Path::new(program), folder, words);
        assert!(output.status.success(), "{program} {words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Three images on each other and one beside them, the same in both folders. The middle one is shorter than the topmost.
    fn new(options: &str) -> Self {
        let bed = Self(tempfile::tempdir().expect("a folder"));
        for folder in ["ours", "theirs"] {
            std::fs::create_dir(bed.0.path().join(folder)).expect("a folder");
            let create = |words: &[&str]| {
                drop(bed.must("qemu-img", folder, &[&["create", "-q", "-f", "qcow2", "-o", options], words].concat()))
            };
            create(&["base", "4M"]);
            create(&["-b", "base", "-F", "qcow2", "mid", "3M"]);
            create(&["-b", "mid", "-F", "qcow2", "top", "8M"]);
            create(&["other", "2M"]);
            let write = |image: &str, commands: &[&str]| {
                for command in commands {
                    drop(bed.must("qemu-io", folder, &["-f", "qcow2", "-c", command, image]));
                }
            };
            write("base", &["write -P 1 0 1M", "write -P 2 3M 1M"]);
            write("mid", &["write -P 3 64k 64k", "write -P 4 513k 5k", "write -z 256k 64k"]);
            write("top", &["write -P 5 100k 64k", "write -P 6 6M 64k", "write -z 1M 64k"]);
            write("other", &["write -P 1 0 512k", "write -P 7 1M 128k"]);
        }
        bed
    }

    /// Both do `words`, say the same, and all images show the same after it.
    fn both(&self, words: &[&str]) {
        let outcome = |output: Output| {
            let text = |bytes: &[u8]| {
                String::from_utf8_lossy(bytes).replace("cairn-img", "PROGRAM").replace("qemu-img", "PROGRAM")
            };
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let ours = outcome(self.run(program(), "ours", words));
        let theirs = outcome(self.run(Path::new("qemu-img"), "theirs", words));
        assert_eq!(ours, theirs, "{words:?}");
        for image in ["base", "mid", "top", "other"] {
            let info = |folder: &str| {
                let info = self.must("qemu-img", folder, &["info", "-f", "qcow2", image]);
                info.lines()
                    .filter(|line| line.starts_with("backing") || line.starts_with("virtual"))
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            assert_eq!(info("ours"), info("theirs"), "{words:?}: {image}");
            // Nobody opens an image on a file that is not there.
            if info("ours").contains("nothing") {
                continue;
            }
            drop(self.must("qemu-img", "ours", &["check", "-q", "-f", "qcow2", image]));
            let paths = (format!("../ours/{image}"), format!("../theirs/{image}"));
            let compared =
                self.run(Path::new("qemu-img"), "ours", &["compare", "-f", "qcow2", "-F", "qcow2", &paths.0, &paths.1]);
            assert!(compared.status.success(), "{words:?}: {image}: {compared:?}");
        }
    }

    /// Where each part of the topmost begins that comes from another image than the one before it, and from which.
    fn depths(&self, folder: &str) -> Vec<(String, String)> {
        let map = self.must("qemu-img", folder, &["map", "-f", "qcow2", "--output=json", "top"]);
        let field = |line: &str, name: &str| {
            let rest = line.split(name).nth(1).unwrap_or_default();
            rest.split([',', '}']).next().unwrap_or_default().to_owned()
        };
        let mut depths: Vec<_> = map.lines().map(|line| (field(line, "start\": "), field(line, "depth\": "))).collect();
        depths.dedup_by(|next, before| next.1 == before.1);
        depths
    }
}

fn has_qemu(test: &str) -> bool {
    let there = Command::new("qemu-img").arg("--version").output().is_ok();
    if !there {
        skipped(test);
    }
    there
}

const OPTIONS: [&str; 4] = ["cluster_size=64k", "compat=0.10", "cluster_size=4k", "extended_l2=on,cluster_size=16k"];

#[test]
fn committing_is_what_it_is_to_qemu_img() {
    if !has_qemu("committing_is_what_it_is_to_qemu_img") {
        return;
    }
    // With version 2 qemu-img cannot make the backing file longer.
    for options in OPTIONS.into_iter().filter(|options| *options != "compat=0.10") {
        let bed = Bed::new(options);
        bed.both(&["commit", "base"]);
        bed.both(&["commit", "-b", "nope", "top"]);
        bed.both(&["commit", "-d", "top"]);
        bed.both(&["commit", "top"]);
        // With subclusters qemu-img commits whole clusters all the same.
        if !options.contains("extended") {
            assert_eq!(bed.depths("ours"), bed.depths("theirs"), "{options}");
        }
        bed.both(&["commit", "-q", "-f", "qcow2", "mid"]);
        let bed = Bed::new(options);
        bed.both(&["commit", "-b", "base", "top"]);
        bed.both(&["commit"]);
    }
}

#[test]
fn rebasing_is_what_it_is_to_qemu_img() {
    if !has_qemu("rebasing_is_what_it_is_to_qemu_img") {
        return;
    }
    for options in OPTIONS {
        let bed = Bed::new(options);
        bed.both(&["rebase", "-b", "other", "top"]);
        bed.both(&["rebase", "-b", "other", "-F", "bogus", "top"]);
        bed.both(&["rebase", "-b", "nofile", "-F", "qcow2", "top"]);
        bed.both(&["rebase", "top"]);
        bed.both(&["rebase", "-b", "other", "-F", "qcow2", "top"]);
        bed.both(&["rebase", "-b", "base", "-F", "qcow2", "mid"]);
        bed.both(&["rebase", "-b", "", "mid"]);
        bed.both(&["rebase", "-u", "-b", "nothing", "-F", "qcow2", "mid"]);
        bed.both(&["rebase", "-b", "base", "-F", "qcow2", "mid"]);
        bed.both(&["rebase", "-u", "-b", "base", "-F", "qcow2", "mid"]);
        bed.both(&["rebase", "-u", "-b", "", "-F", "qcow2", "mid"]);
        bed.both(&["rebase", "-q", "-b", "", "top"]);
    }
}

// Scenario: a chain whose middle is shorter than its top, and a snapshot of it.
#[test]
fn maps_and_snapshots_of_chains_are_what_they_are_to_qemu_img() {
    if !has_qemu("maps_and_snapshots_of_chains_are_what_they_are_to_qemu_img") {
        return;
    }
    for options in OPTIONS {
        let bed = Bed::new(options);
        for folder in ["ours", "theirs"] {
            bed.must("qemu-img", folder, &["snapshot", "-c", "one", "top"]);
            bed.must("qemu-io", folder, &["-f", "qcow2", "-c", "write -P 9 0 128k", "top"]);
        }
        for words in [
            &["map", "top"][..],
            &["map", "--output=json", "top"],
            &["map", "--output=json", "-f", "qcow2", "mid"],
            &["map", "--output=json", "-s", "100k", "-l", "3M", "base"],
            &["measure", "-O", "qcow2", "top"],
            &["measure", "-l", "one", "-O", "raw", "top"],
            &["convert", "-l", "one", "-O", "raw", "top", "raw"],
            &["convert", "-l", "snapshot.name=one", "-O", "raw", "top", "raw"],
            &["convert", "-l", "snapshot.id=1,snapshot.name=two", "-O", "raw", "top", "x"],
            &["convert", "-l", "snapshot.foo=1", "-O", "raw", "top", "x"],
            &["convert", "-l", "two", "-O", "raw", "top", "x"],
            &["compare", "top", "raw"],
            &["compare", "mid", "base"],
        ] {
            bed.both(words);
        }
        bed.must("cmp", "ours", &["raw", "../theirs/raw"]);
    }
}

/// Scenario: images that say what they stand on, and not of which format that is, as old tools made them.
#[test]
fn the_format_of_a_backing_file_is_guessed_alike() {
    if is_missing("the_format_of_a_backing_file_is_guessed_alike") {
        return;
    }
    let beds = Beds::new(&[
        "qemu-img create -q -f qcow2 base 4M",
        "qemu-io -f qcow2 -c 'write -P 3 0 1M' base",
        "qemu-img create -q -f raw raw 4M",
        "qemu-io -f raw -c 'write -P 4 0 1M' raw",
        "qemu-img create -q -f qcow2 -b base -F qcow2 on-qcow2",
        "qemu-img create -q -f qcow2 -b raw -F raw on-raw",
        "qemu-img create -q -f qcow2 -b on-raw -F qcow2 top",
        "qemu-img create -q -f qcow2 -b raw -F raw bad",
    ]);
    for image in ["on-qcow2", "on-raw", "top", "bad"] {
        // The header extension that names the format becomes one that nobody knows.
        beds.patch(image, |bytes| {
            let at = bytes.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).expect("an extension");
            bytes[at..at + 4].copy_from_slice(&[1, 2, 3, 4]);
        });
    }
    for line in [
        "info --backing-chain top",
        "info --backing-chain on-qcow2",
        "map top",
        "map --output=json on-qcow2",
        "compare top raw",
        "compare on-qcow2 base",
        "convert -O raw top out.raw",
        "check top",
        "measure -O qcow2 top",
        "convert -O qcow2 on-qcow2 out",
        "rebase -f qcow2 -b base -F qcow2 top",
    ] {
        beds.both(line);
    }
    beds.compare("out");
    beds.compare("top");
    beds.theirs("qemu-io -f qcow2 -c 'write -P 5 64k 64k' on-raw");
    beds.both("commit on-raw");
    beds.both("commit on-qcow2");
    // Nobody shall make a raw image another one by writing a header into it (rule trust-1).
    beds.theirs("qemu-io -f qcow2 -c 'write -P 81 0 512' bad");
    beds.patch("bad", |bytes| {
        let at = bytes.windows(512).rposition(|sector| sector == [81; 512]).expect("the sector");
        bytes[at..at + 8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    });
    beds.both("commit bad");
    beds.both("compare -f raw -F raw raw out.raw");
}
