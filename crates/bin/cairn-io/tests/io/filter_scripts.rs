//! Filters, driven by the same scripts here and by qemu-io.

use crate::differential::check_table;
use crate::support;
use std::path::Path;

#[test]
fn scripts_through_filters_do_the_same() {
    check_table(include_str!("filters.txt"), 50);
}

/// Scenario: the children of blkverify differ. qemu-io ends there; here the request fails. Both say the same, and exit with the same status.
#[test]
fn what_blkverify_finds_is_told_in_the_same_words() {
    let Some(theirs) = support::theirs() else { return };
    let images = "driver=blkverify,test.driver=file,test.filename=t.raw,raw.driver=";
    let fails = |what: &str| {
        format!("blkdebug,raw.inject-error.0.event=none,raw.inject-error.0.iotype={what},raw.inject-error.0.errno=28")
    };
    for (raw, command) in [
        ("file,raw.filename=h.raw".to_owned(), "read 0 64k"),
        ("file,raw.filename=h.raw".to_owned(), "read 4096 4096"),
        ("file,raw.filename=h.raw".to_owned(), "read 5000 10"),
        (format!("{},raw.image.driver=file,raw.image.filename=t2.raw", fails("read")), "read 0 64k"),
        (format!("{},raw.image.driver=file,raw.image.filename=t2.raw", fails("write")), "write 512 1k"),
    ] {
        let image = format!("{images}{raw}");
        let run = |program: &Path| {
            let dir = tempfile::tempdir().expect("a directory");
            support::make_files(dir.path());
            let ran = support::run(program, dir.path(), &["--image-opts", "-c", command, &image], b"");
            (ran.status, ran.stderr)
        };
        let ours = run(&support::ours());
        assert!(ours.1.starts_with("blkverify: ") && ours == run(&theirs), "{command}: {ours:?}");
    }
}
