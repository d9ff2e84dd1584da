//! Requests that fail, below both programs in the same way: blkdebug injects the errors, and both end the same and say the same.
//!
//! Failing flushes are not here: qemu-img does not tell of them. Neither are errors in the middle of images, which are told with the
//! start of a piece, compare's words for block status, and the status of a second source, which qemu-img asks for before it copies the
//! first.

use crate::support::{check_all, ours, skipped, theirs, words};

const READERS: [&str; 11] = [
    "info BROKEN",
    "map BROKEN",
    "measure BROKEN",
    "convert -m 1 BROKEN n.raw",
    "convert -m 1 -S 0 BROKEN n.raw",
    "convert -m 1 -W BROKEN one.raw n.raw",
    "convert -m 1 one.raw BROKEN n.raw",
    "compare BROKEN a.raw",
    "compare a.raw BROKEN",
    "compare -s BROKEN fs.raw",
    "dd bs=1M if=BROKEN of=n.raw",
];

const WRITERS: [&str; 10] = [
    "convert -n -m 1 one.raw BROKEN",
    "convert -n -m 1 -W one.raw BROKEN",
    "convert -n -m 1 -S 0 one.raw BROKEN",
    "convert -n -m 1 -t none hole.raw BROKEN",
    "convert -n -m 1 -W hole.raw BROKEN",
    "convert -n -m 1 -S 4k one.raw hole.raw BROKEN",
    "convert -n -m 1 -C one.raw BROKEN",
    "resize BROKEN 2M",
    "resize --shrink BROKEN 512k",
    "resize --preallocation=full BROKEN 2M",
];

/// A raw image whose requests of this kind fail.
fn broken(image: &str, kind: &str, errno: u32, more: &str) -> String {
    format!(
        "json:{{\"driver\":\"raw\",\"file\":{{\"driver\":\"blkdebug\",\"inject-error\":[{{\"event\":\"none\",\"iotype\":\"{kind}\",\
         \"errno\":{errno}{more}}}],\"image\":{{\"driver\":\"file\",\"filename\":\"{image}\"}}}}}}"
    )
}

fn check(test: &str, lines: &[&str], kinds: &[&str]) {
    let mut all = Vec::new();
    for kind in kinds {
        for errno in [5, 22, 28, 95] {
            for more in ["", ",\"once\":true", ",\"sector\":0", ",\"sector\":1,\"immediately\":true"] {
                let broken = broken("a.raw", kind, errno, more);
                let differs = |line: &str| line.starts_with("compare") || line.contains("one.raw BROKEN");
                let works = |line: &&&str| *kind != "block-status" || !differs(line);
                all.extend(lines.iter().filter(works).map(|line| line.replace("BROKEN", &broken)));
            }
        }
    }
    check_all(test, &all.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn failing_reads_are_told_alike() {
    check("failing_reads_are_told_alike", &READERS, &["read", "block-status"]);
}

#[test]
fn failing_writes_are_told_alike() {
    check("failing_writes_are_told_alike", &WRITERS, &["write", "write-zeroes", "discard"]);
}

// Scenario: compressing reads several clusters at a time. The error is that of the one which cannot be read. What else the target has by then is a matter of which was first.
#[test]
fn a_cluster_that_cannot_be_compressed_is_told_alike() {
    for sector in [0, 1, 400, 520, 1000, 1500, 2040] {
        let broken = broken("a.raw", "read", 5, &format!(",\"sector\":{sector}"));
        for more in ["-m 1", "-m 1 -o cluster_size=4k", "--salvage"] {
            let line = format!("convert -c {more} -O qcow2 {broken} new.qcow2");
            let Some(theirs) = theirs(&words(&line)) else {
                return skipped("a_cluster_that_cannot_be_compressed_is_told_alike");
            };
            let ours = ours(&words(&line));
            assert_eq!((ours.status, ours.stderr), (theirs.status, theirs.stderr), "{line}");
        }
    }
}
