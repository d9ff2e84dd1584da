//! `snapshot`: the same long walk over two images, one with each program. They say the same, what is in the images is the same after every step, and
//! qemu-img finds nothing wrong with ours.

use crate::support::{program, skipped};
use block_testkit::Rng;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

struct Bed(TempDir);

impl Bed {
    fn run(&self, program: &Path, words: &[&str]) -> Output {
        Command::new(program).args(words).current_dir(self.0.path()).output().expect("the program starts")
    }

    fn must(&self, program: &str, words: &[&str]) {
        let output = self.run(Path::new(program), words);
        assert!(output.status.success(), "{program} {words:?}: {output:?}");
    }

    /// The same with `a` by our program and with `b` by qemu-img.
    fn both(&self, words: &[&str]) {
        let on = |image: &'static str| {
            words.iter().map(|word| if *word == "IMAGE" { image } else { *word }).collect::<Vec<_>>()
        };
        let (ours, theirs) = (self.run(program(), &on("a")), self.run(Path::new("qemu-img"), &on("b")));
        let text = |bytes: &[u8], own: &str, image: &str| {
            String::from_utf8_lossy(bytes).replace(own, "PROGRAM").replace(&format!("'{image}'"), "'IMAGE'")
        };
        let outcome = |output: &Output, own: &str, image: &str| {
            (output.status.code(), text(&output.stdout, own, image), text(&output.stderr, own, image))
        };
        assert_eq!(outcome(&ours, "cairn-img", "a"), outcome(&theirs, "qemu-img", "b"), "{words:?}");
    }

    fn check(&self, what: &str) {
        let checked = self.run(Path::new("qemu-img"), &["check", "-f", "qcow2", "a"]);
        assert!(checked.status.success(), "after {what}: {}", String::from_utf8_lossy(&checked.stdout));
        let compared = self.run(Path::new("qemu-img"), &["compare", "-f", "qcow2", "-F", "qcow2", "a", "b"]);
        assert!(compared.status.success(), "after {what}: {compared:?}");
    }
}

fn walk(options: &str, seed: u64) {
    let bed = Bed(tempfile::tempdir().expect("a folder"));
    let mut rng = Rng::new(seed);
    for image in ["a", "b"] {
        bed.must("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, image, "3M"]);
    }
    for step in 0..40 {
        let name = format!("s{}", rng.below(0..4));
        let choice = rng.below(0..10);
        let what = format!("step {step}, {options}: choice {choice}, {name}");
        match choice {
            0..4 => {
                let (offset, len) = (rng.below(0..5000) * 512, rng.below(1..900) * 512);
                let kind = ["", "-z ", "-z -u "][rng.below(0..3) as usize];
                let pattern = if kind.is_empty() { format!("-P {} ", step + 1) } else { String::new() };
                let write = format!("write {kind}{pattern}{offset} {len}");
                for image in ["a", "b"] {
                    bed.must("qemu-io", &["-f", "qcow2", "-d", "unmap", "-c", &write, image]);
                }
            }
            // Compressed clusters share host clusters: with narrow counts the layout, which is everybody's own, decides what can be counted.
            4 if options.contains("refcount_bits") => {}
            4 => {
                let offset = format!("write -c -P {} {} 64k", step + 1, rng.below(0..40) * 65536);
                for image in ["a", "b"] {
                    // Only where nothing was written.
                    drop(bed.run(Path::new("qemu-io"), &["-f", "qcow2", "-c", &offset, image]));
                }
            }
            5 | 6 => bed.both(&["snapshot", "-c", &name, "IMAGE"]),
            7 | 8 => bed.both(&["snapshot", "-a", &name, "IMAGE"]),
            _ => bed.both(&["snapshot", "-d", &name, "IMAGE"]),
        }
        // The time of day is each image's own.
        std::fs::copy(bed.0.path().join("a"), bed.0.path().join("c")).expect("a copy");
        let [ours, theirs] =
            [program(), Path::new("qemu-img")].map(|program| bed.run(program, &["snapshot", "-f", "qcow2", "-l", "c"]));
        assert_eq!(String::from_utf8_lossy(&ours.stdout), String::from_utf8_lossy(&theirs.stdout), "{what}");
        bed.check(&what);
    }
}

#[test]
fn snapshots_are_what_they_are_to_qemu_img() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("snapshots_are_what_they_are_to_qemu_img");
    }
    for (seed, options) in [
        "cluster_size=64k",
        "cluster_size=4k,extended_l2=off",
        "cluster_size=16k,extended_l2=on",
        "compat=0.10",
        "cluster_size=512",
        "refcount_bits=2",
    ]
    .into_iter()
    .enumerate()
    {
        walk(options, seed as u64 + 7);
    }
}

#[test]
fn what_has_no_snapshots_says_so() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("what_has_no_snapshots_says_so");
    }
    let bed = Bed(tempfile::tempdir().expect("a folder"));
    for image in ["a", "b"] {
        bed.must("qemu-img", &["create", "-q", "-f", "raw", image, "1M"]);
    }
    for words in [
        &["snapshot", "-l", "-f", "raw", "IMAGE"][..],
        &["snapshot", "-c", "x", "-f", "raw", "IMAGE"],
        &["snapshot", "-a", "x", "-f", "raw", "IMAGE"],
        &["snapshot", "-d", "x", "-f", "raw", "IMAGE"],
        &["snapshot", "-l", "-c", "x", "IMAGE"],
        &["snapshot", "-c", "x", "nothing"],
        &["snapshot"],
    ] {
        bed.both(words);
    }
    for image in ["a", "b"] {
        bed.must("qemu-img", &["create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", image, "1M"]);
        bed.must("qemu-io", &["-f", "qcow2", "-c", "write 0 64k", image]);
    }
    bed.both(&["snapshot", "-c", "x", "IMAGE"]);
    bed.check("a snapshot that cannot be counted");
}
