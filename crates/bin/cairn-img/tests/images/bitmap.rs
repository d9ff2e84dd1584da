//! `bitmap`, and bitmaps in `convert`, `measure`, `resize`, `snapshot`: the same with each program, in two folders. They say the same, and the bitmaps are
//! the same after every step.

use crate::support::{program, skipped, words};
use block_testkit::qcow2::inspect;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Two folders with the same images: ours and theirs.
struct Beds([TempDir; 2]);

impl Beds {
    fn new(prepare: &[&str]) -> Self {
        let beds = Self([(), ()].map(|()| tempfile::tempdir().expect("a folder")));
        prepare.iter().for_each(|line| beds.theirs(line));
        beds
    }

    /// Let QEMU's programs do the same in both.
    fn theirs(&self, line: &str) {
        let (program, line) = line.split_once(' ').expect("a program and its words");
        for folder in &self.0 {
            let output = Command::new(program).args(split(line)).current_dir(folder.path()).output().expect("starts");
            assert!(output.status.success(), "{program} {line}: {output:?}");
        }
    }

    /// Let each program do it in its own folder.
    fn both(&self, line: &str) {
        let run = |program: &Path, folder: &TempDir, own: &str| {
            let output = Command::new(program).args(split(line)).current_dir(folder.path()).output().expect("starts");
            let text = |bytes: &[u8]| nameless(&String::from_utf8_lossy(bytes).replace(own, "PROGRAM"));
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let ours = run(program(), &self.0[0], "cairn-img");
        let theirs = run(Path::new("qemu-img"), &self.0[1], "qemu-img");
        assert_eq!(ours, theirs, "{line}");
    }

    /// The bitmaps in both are the same, and nothing is wrong with the images.
    fn check(&self, image: &str) {
        let [ours, theirs] = [0, 1].map(|at| {
            let path = self.0[at].path().join(image);
            let report = inspect(&std::fs::read(&path).expect("an image"), &[]);
            let report = report.unwrap_or_else(|error| panic!("{image}, {at}: {error}"));
            assert!(at == 1 || report.leaks == 0, "{image}: {} leaks", report.leaks);
            report.bitmaps
        });
        assert!(ours == theirs, "{image}: {:?}, {:?}", names(&ours), names(&theirs));
    }

    /// Change bytes of an image in both.
    fn patch(&self, image: &str, change: impl Fn(&mut Vec<u8>)) {
        for folder in &self.0 {
            let path = folder.path().join(image);
            let mut bytes = std::fs::read(&path).expect("an image");
            change(&mut bytes);
            std::fs::write(path, bytes).expect("room");
        }
    }
}

fn names(found: &[block_testkit::qcow2::Found]) -> Vec<(&str, u64)> {
    found.iter().map(|found| (found.name.as_str(), found.granularity)).collect()
}

/// Words; those between apostrophes belong together.
fn split(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate();
    let quoted = |(at, part): (usize, &str)| match at % 2 {
        1 => vec![part.to_owned()],
        _ => words(part.trim()).into_iter().filter(|word| !word.is_empty()).map(str::to_owned).collect(),
    };
    parts.flat_map(quoted).collect()
}

/// A node that nobody named is called something else each time.
fn nameless(text: &str) -> String {
    let mut parts = text.split("#block");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "#block" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

fn is_missing(test: &str) -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        skipped(test);
    }
    missing
}

#[test]
fn bitmaps_are_made_and_changed_alike() {
    if is_missing("bitmaps_are_made_and_changed_alike") {
        return;
    }
    let beds = Beds::new(&[
        "qemu-img create -q -f qcow2 a 64M",
        "qemu-io -f qcow2 -c 'write 0 1M' a",
        "qemu-img create -q -f qcow2 -o compat=0.10 v2 64M",
        "qemu-img create -q -f qcow2 -o cluster_size=512 s 2G",
        "qemu-img create -q -f qcow2 -o cluster_size=2M l 2G",
        "qemu-img create -q -f raw r 1M",
        "qemu-img create -q -f qcow2 big 60T",
        "qemu-img create -q -f qcow2 y 32M",
    ]);
    let lines = "--add a a
--add a a
--add -g 1k a b
--add --disable a c
--add -g 3k a d
--add -g 256 a d
--add -g 4G a d
--remove a z
--clear a z
--enable a z
--disable a z
--merge z a a
--merge a a z
--merge b a a
a a
--add a
--add
--add a x y
--add --add a x2
--clear -g 64k a a
--add --remove a q
--remove --add a c
--add --merge b a q
--clear --disable --merge b --enable a a
-b a --add a q2
-F qcow2 --add a q2
-b nothere --merge b a a
-b nothere -F raw --merge b a a
-f raw --add a q
-f xx --add a q
--add nothere q
-g 1k --remove a q
--remove a q
--add v2 a
--add -f raw r a
--add -g 512 big a
--add -g 8k big a
--add s a
--add l a

a a -g xyz
--add a zz -g xyz
--add a zz -g -1
--add a zz -g 0
--add a zz -g 1.5k
--image-opts -f qcow2 --add a z
--merge
--zap a z
--ad a y
--ad --gran 1k a y2
--rem a y
--add -q a y
--clear -g 1k
--add -F qcow2
--add -b x
-g 1k --image-opts -f x --clear
--image-opts -f x --add a
--add y a
--merge a -b a y a
--add --image-opts driver=qcow2,file.filename=y b2
--add=1 a v
--add a ''";
    for line in lines.lines() {
        beds.both(&format!("bitmap {line}"));
        for image in ["a", "y", "l"] {
            beds.check(image);
        }
    }
    beds.check("s");
    beds.both("info -U v2 --output=json");
}

#[test]
fn bitmaps_record_and_are_copied_alike() {
    if is_missing("bitmaps_record_and_are_copied_alike") {
        return;
    }
    let beds = Beds::new(&[
        "qemu-img create -q -f qcow2 a 64M",
        "qemu-img create -q -f qcow2 e 64M",
        "qemu-img create -q -f qcow2 x 64M",
        "qemu-img bitmap --add x a",
        "qemu-img create -q -f qcow2 -o compat=0.10 v2 64M",
        "qemu-img create -q -f raw r 1M",
    ]);
    beds.both("bitmap --add a a");
    beds.both("bitmap --add -g 4k --disable a b");
    beds.theirs("qemu-io -f qcow2 -c 'write 0 1M' -c 'write 8M 64k' -c 'discard 20M 1M' -c 'write -z 63M 64k' a");
    beds.check("a");
    for line in ["--enable a b", "--merge b a a", "--merge a a b", "--disable a b"] {
        beds.both(&format!("bitmap {line}"));
        beds.theirs("qemu-io -f qcow2 -c 'write 1M 512' -c 'write 50M 5k' a");
        beds.check("a");
    }
    for line in ["a", "--output=json a", "-o cluster_size=512 a", "-o compat=0.10 a", "v2", "e", "r", "-f raw a"] {
        beds.both(&format!("measure -O qcow2 {line}"));
    }
    beds.both("measure -O raw a");
    for (line, made) in [
        ("--bitmaps -O qcow2 a o", "o"),
        ("--bitmaps -c -O qcow2 -o cluster_size=4k a o1", "o1"),
        ("--bitmaps -O raw a o.raw", ""),
        ("--skip-broken-bitmaps -O qcow2 a o2", ""),
        ("--bitmaps -O qcow2 r o2", ""),
        ("--bitmaps -O qcow2 -o compat=0.10 a o3", ""),
        ("--bitmaps -O qcow2 a a o4", ""),
        ("--bitmaps -O raw r r o4", ""),
        ("--bitmaps -O qcow2 v2 o4", ""),
        ("-n --bitmaps -O qcow2 a e", "e"),
        ("-n --bitmaps -O qcow2 a x", ""),
    ] {
        beds.both(&format!("convert {line}"));
        if !made.is_empty() {
            beds.check(made);
        }
    }
    beds.both("snapshot -c s a");
    beds.both("convert --bitmaps -l s -O qcow2 a o5");
    beds.check("o5");
    for line in ["-a s a", "-a nothere a", "-d s a"] {
        beds.both(&format!("snapshot {line}"));
    }
    beds.check("a");
    beds.both("resize --shrink a 32M");
    beds.check("a");
}

/// Scenario: the process that had the image open was killed.
#[test]
fn bitmaps_in_use_are_refused_alike() {
    if is_missing("bitmaps_in_use_are_refused_alike") {
        return;
    }
    let beds = Beds::new(&[
        "qemu-img create -q -f qcow2 a 64M",
        "qemu-img bitmap --add a a",
        "qemu-img bitmap --add -g 4k a b",
        "qemu-io -f qcow2 -c 'write 0 1M' a",
    ]);
    beds.patch("a", |bytes| {
        let header = block_qcow2::Header::parse(&bytes[..65536]).expect("a header");
        let directory = header.bitmaps.expect("bitmaps").directory_offset as usize;
        bytes[directory + 15] |= 1;
    });
    for line in ["--clear a a", "--enable a a", "--disable a a", "--merge a a b", "--merge b a a", "--add a a"] {
        beds.both(&format!("bitmap {line}"));
        beds.check("a");
    }
    for line in [
        "resize a 128M",
        "resize a 16M",
        "convert --bitmaps -O qcow2 a o",
        "convert --bitmaps --skip-broken-bitmaps -O qcow2 a o",
        "measure -O qcow2 a",
    ] {
        beds.both(line);
    }
    beds.check("o");
    beds.both("bitmap --remove a a");
    beds.check("a");
    beds.both("bitmap --remove a b");
    beds.check("a");
}
