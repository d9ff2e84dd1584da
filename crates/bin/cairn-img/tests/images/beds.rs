//! Two folders with the same images, one for each program: what they say, and what is in the images afterwards, is the same.

use crate::support::{program, skipped, words};
use block_testkit::qcow2::{Found, inspect};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Two folders with the same images: ours and theirs.
pub(crate) struct Beds([TempDir; 2]);

impl Beds {
    pub(crate) fn new(prepare: &[&str]) -> Self {
        let beds = Self([(), ()].map(|()| tempfile::tempdir().expect("a folder")));
        prepare.iter().for_each(|line| beds.theirs(line));
        beds
    }

    /// The folders.
    pub(crate) fn folders(&self) -> [&Path; 2] {
        [self.0[0].path(), self.0[1].path()]
    }

    /// Let QEMU's programs do the same in both.
    pub(crate) fn theirs(&self, line: &str) {
        let (program, line) = line.split_once(' ').expect("a program and its words");
        for folder in &self.0 {
            let output = Command::new(program).args(split(line)).current_dir(folder.path()).output().expect("starts");
            assert!(output.status.success(), "{program} {line}: {output:?}");
        }
    }

    /// Let each program do it in its own folder.
    pub(crate) fn both(&self, line: &str) {
        let run = |program: &Path, folder: &TempDir, own: &str| {
            let output = Command::new(program).args(split(line)).current_dir(folder.path()).output().expect("starts");
            // QEMU forgets to end the line of a warning.
            let text =
                |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(own, "PROGRAM").replace("to fix.\n", "to fix.");
            let text = |bytes: &[u8]| nameless(&text(bytes));
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let ours = run(program(), &self.0[0], "cairn-img");
        let theirs = run(Path::new("qemu-img"), &self.0[1], "qemu-img");
        assert_eq!(ours, theirs, "{line}");
    }

    /// Let ours do it alone, and end with `status`.
    pub(crate) fn ours(&self, line: &str, status: i32) {
        let output = Command::new(program()).args(split(line)).current_dir(self.0[0].path()).output().expect("starts");
        assert_eq!(output.status.code(), Some(status), "{line}: {output:?}");
    }

    /// The bitmaps in both are the same, and nothing is wrong with the images.
    pub(crate) fn check(&self, image: &str) {
        let [ours, theirs] = [0, 1].map(|at| {
            let path = self.0[at].path().join(image);
            let report = inspect(&std::fs::read(&path).expect("an image"), &[]);
            let report = report.unwrap_or_else(|error| panic!("{image}, {at}: {error}"));
            assert!(at == 1 || report.leaks == 0, "{image}: {} leaks", report.leaks);
            report.bitmaps
        });
        assert!(ours == theirs, "{image}: {:?}, {:?}", names(&ours), names(&theirs));
    }

    /// What is in both is the same, what qemu-img tells of them too, and it finds nothing wrong with ours.
    pub(crate) fn compare(&self, image: &str) {
        let run = |line: &str, at: usize| {
            let folder = self.0[at].path();
            let output = Command::new("qemu-img").args(split(line)).current_dir(folder).output().expect("starts");
            assert!(output.status.success(), "{line}: {output:?}");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let own = |line: &&str| {
                !["disk size", "file length"].iter().any(|what| line.contains(what))
                    && !line.starts_with(char::is_numeric)
            };
            text.lines().filter(own).map(|line| line.to_owned() + "\n").collect::<String>()
        };
        run(&format!("check -q -f qcow2 {image}"), 0);
        let info = format!("info -f qcow2 {image}");
        assert_eq!(run(&info, 0), run(&info, 1));
        let theirs = self.0[1].path().join(image);
        run(&format!("compare -q -f qcow2 -F qcow2 {image} {}", theirs.display()), 0);
    }

    /// What lies where in the disk, and in which of the chain's images, is the same.
    pub(crate) fn map(&self, image: &str) {
        let map = |at: usize| {
            let mut qemu_img = Command::new("qemu-img");
            let output = qemu_img.args(["map", "--output=json", image]).current_dir(self.0[at].path()).output();
            let output = output.expect("starts");
            assert!(output.status.success(), "{image}: {output:?}");
            let extents: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).expect("JSON");
            let place = |mut extent: serde_json::Value| {
                if let Some(place) = extent.get_mut("offset") {
                    *place = true.into();
                }
                extent
            };
            extents.into_iter().map(place).collect::<Vec<_>>()
        };
        assert_eq!(joined(map(0)), joined(map(1)), "{image}");
    }

    /// Change bytes of an image in both.
    pub(crate) fn patch(&self, image: &str, change: impl Fn(&mut Vec<u8>)) {
        for folder in &self.0 {
            let path = folder.path().join(image);
            let mut bytes = std::fs::read(&path).expect("an image");
            change(&mut bytes);
            std::fs::write(path, bytes).expect("room");
        }
    }
}

/// Extents that are alike count as one: that they do not lie beside each other in the file is nobody's business.
fn joined(extents: Vec<serde_json::Value>) -> Vec<(u64, serde_json::Value)> {
    let mut all: Vec<(u64, serde_json::Value)> = Vec::new();
    for mut extent in extents {
        let len = extent["length"].as_u64().unwrap_or_default();
        extent["start"] = 0.into();
        extent["length"] = 0.into();
        match all.last_mut() {
            Some((total, last)) if *last == extent => *total += len,
            _ => all.push((len, extent)),
        }
    }
    all
}

fn names(found: &[Found]) -> Vec<(&str, u64)> {
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
pub(crate) fn nameless(text: &str) -> String {
    let mut parts = text.split("#block");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "#block" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

pub(crate) fn is_missing(test: &str) -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        skipped(test);
    }
    missing
}
