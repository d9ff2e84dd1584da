//! Conversions from and to qcow2 images of every kind, both ways: what one program writes, the other one reads, byte for byte, and finds right.

use crate::beds::{Beds, is_missing};
use crate::support::{program, skipped};
use block_testkit::Rng;
use std::path::Path;
use std::process::{Command, Output};
use tempfile::TempDir;

/// Options of the target, and of the command.
const KINDS: [(&str, &[&str]); 14] = [
    ("", &[]),
    ("", &["-c"]),
    ("compat=0.10", &[]),
    ("compat=0.10", &["-c"]),
    ("cluster_size=512", &[]),
    ("cluster_size=4k", &["-c"]),
    ("cluster_size=2M", &["-c"]),
    ("compression_type=zstd", &["-c"]),
    ("extended_l2=on", &[]),
    ("extended_l2=on,cluster_size=16k", &["-c"]),
    ("refcount_bits=1", &["-c"]),
    ("refcount_bits=64", &["-W", "-m", "16"]),
    ("preallocation=metadata", &[]),
    ("data_file=data.raw,data_file_raw=on", &[]),
];

struct Bed(TempDir);

impl Bed {
    /// With `src.raw`: data that shrinks, data that does not, and holes; its last sector is half a cluster's.
    fn new() -> Self {
        let bed = Self(tempfile::tempdir().expect("a folder"));
        let mut rng = Rng::new(11);
        let mut bytes = vec![0u8; (5 << 20) + 1536];
        bytes[..1 << 20].iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 100 % 251) as u8);
        bytes[2 << 20..3 << 20].iter_mut().for_each(|byte| *byte = rng.below(0..256) as u8);
        bytes[(4 << 20) + 700..(4 << 20) + 9000].fill(7);
        let end = bytes.len();
        bytes[end - 512..].fill(9);
        std::fs::write(bed.0.path().join("src.raw"), bytes).expect("a source");
        bed
    }

    fn run(&self, program: &Path, words: &[&str]) -> Output {
        Command::new(program).args(words).current_dir(self.0.path()).output().expect("the program starts")
    }

    fn must(&self, program: &Path, words: &[&str]) {
        let output = self.run(program, words);
        assert!(output.status.success(), "{} {words:?}: {output:?}", program.display());
    }

    fn len(&self, name: &str) -> u64 {
        std::fs::metadata(self.0.path().join(name)).expect("a file").len()
    }
}

#[test]
fn what_one_program_converts_the_other_one_reads() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("what_one_program_converts_the_other_one_reads");
    }
    let (ours, theirs) = (program(), Path::new("qemu-img"));
    let bed = Bed::new();
    for (options, flags) in KINDS {
        for (writer, reader) in [(ours, theirs), (theirs, ours)] {
            let mut words = vec!["convert", "-f", "raw", "-O", "qcow2"];
            if !options.is_empty() {
                words.extend(["-o", options]);
            }
            words.extend(flags);
            bed.must(writer, &[&words[..], &["src.raw", "image"]].concat());
            bed.must(theirs, &["check", "-q", "-f", "qcow2", "image"]);
            bed.must(reader, &["compare", "-f", "raw", "-F", "qcow2", "src.raw", "image"]);
            bed.must(reader, &["convert", "-f", "qcow2", "-O", "raw", "image", "back.raw"]);
            bed.must(Path::new("cmp"), &["src.raw", "back.raw"]);
            let name = if writer == ours { "ours" } else { "theirs" };
            std::fs::rename(bed.0.path().join("image"), bed.0.path().join(name)).expect("renamed");
        }
        let (ours, theirs) = (bed.len("ours"), bed.len("theirs"));
        // A cluster more may be at the end of one that differs a little.
        assert!(
            ours * 100 <= theirs * 102 + (65536 * 100),
            "{options} {flags:?}: {ours} bytes, qemu-img's has {theirs}"
        );
    }
}

#[test]
fn what_cannot_be_compressed_says_so() {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        return skipped("what_cannot_be_compressed_says_so");
    }
    let bed = Bed::new();
    for words in [
        &["convert", "-c", "-O", "raw", "src.raw", "x"][..],
        &["convert", "-c", "-O", "qcow2", "-o", "preallocation=full", "src.raw", "x"],
        &["convert", "-c", "-O", "qcow2", "-o", "data_file=d.raw", "src.raw", "x"],
        &["convert", "-O", "qcow2", "-B", "src.raw", "src.raw", "x"],
    ] {
        let [ours, theirs] = [program(), Path::new("qemu-img")].map(|program| {
            let output = bed.run(program, words);
            let text =
                String::from_utf8_lossy(&output.stderr).replace("cairn-img", "PROGRAM").replace("qemu-img", "PROGRAM");
            (output.status.code(), text)
        });
        assert_eq!(ours, theirs, "{words:?}");
    }
}

/// Scenario: the target stands on a file that the source stands on as well, or on one of the same content.
#[test]
fn what_the_backing_file_has_is_not_copied() {
    if is_missing("what_the_backing_file_has_is_not_copied") {
        return;
    }
    let beds = Beds::new(&[
        "qemu-img create -q -f qcow2 base 4M",
        "qemu-io -f qcow2 -c 'write -P 1 0 1M' base",
        "qemu-img create -q -f qcow2 -b base -F qcow2 top",
        "qemu-io -f qcow2 -c 'write -P 3 100k 30k' -c 'write -z 1M 64k' -c 'write -P 0 3200k 64k' -c 'write -P 4 4090k 6k' top",
        "qemu-img convert -O raw base same.raw",
        "qemu-img create -q -f qcow2 -b base -F qcow2 there",
    ]);
    for (line, made) in [
        ("-O qcow2 -B base -F qcow2 top o1", "o1"),
        ("-O qcow2 -o backing_file=base,backing_fmt=qcow2 top o2", "o2"),
        ("-O qcow2 -B same.raw -F raw top o3", "o3"),
        ("-c -O qcow2 -B base -F qcow2 top o4", "o4"),
        ("-S 0 -O qcow2 -B base -F qcow2 top o5", "o5"),
        ("-O qcow2 -o extended_l2=on -B base -F qcow2 top o6", "o6"),
        ("-n -O qcow2 -B base -F qcow2 top there", "there"),
        ("-O qcow2 -B base -F qcow2 top base o7", ""),
        ("-O qcow2 -B nothere -F qcow2 top o7", ""),
        ("-O qcow2 -B base top o7", ""),
        ("-O raw -B base -F qcow2 top o7", ""),
    ] {
        beds.both(&format!("convert {line}"));
        if !made.is_empty() {
            beds.compare(made);
            beds.map(made);
        }
    }
}

/// Where the target's backing file is not the one right below the source, qemu-img loses what the images between have.
#[test]
fn what_is_between_a_source_and_the_backing_file_is_copied() {
    if is_missing("what_is_between_a_source_and_the_backing_file_is_copied") {
        return;
    }
    let beds = Beds::new(&[
        "qemu-img create -q -f qcow2 base 4M",
        "qemu-io -f qcow2 -c 'write -P 1 0 1M' base",
        "qemu-img create -q -f qcow2 -b base -F qcow2 mid",
        "qemu-io -f qcow2 -c 'write -P 2 512k 512k' mid",
        "qemu-img create -q -f qcow2 -b mid -F qcow2 top",
        "qemu-io -f qcow2 -c 'write -P 3 2M 64k' top",
    ]);
    beds.ours("convert -O qcow2 -B base -F qcow2 top out", 0);
    beds.ours("compare top out", 0);
    beds.ours("convert -c -O qcow2 -B ./base -F qcow2 top out", 0);
    beds.ours("compare top out", 0);
}
