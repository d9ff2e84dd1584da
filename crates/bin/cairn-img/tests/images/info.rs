//! Tables for `info`.

use crate::check::{Bed, KINDS};
use crate::support::{check_all, program, skipped};
use std::path::Path;

#[test]
fn images_are_described_alike() {
    check_all(
        "images_are_described_alike",
        &[
            "info a.raw",
            "info odd.raw",
            "info --output=json odd.raw",
            "info -f raw fs.raw",
            "info empty.raw",
            "info --output json empty.raw",
            "info one.raw",
            "info hole.raw",
            "info huge.raw",
            "info --output=human huge.raw",
            "info -U odd.raw",
            "info ./odd.raw",
            "info file:odd.raw",
            "info dir/../odd.raw",
            "info --backing-chain odd.raw",
            "info -b --output json odd.raw",
            "info -f file odd.raw",
            "info --output=json -f file odd.raw",
            "info null-co://",
            "info -f raw null-co://",
            "info -f null-co null-co://",
            "info --output json null-co://",
            "info --image-opts driver=raw,file.driver=file,file.filename=odd.raw",
            "info --image-opts driver=raw,file.filename=odd.raw",
            "info --image-opts file.filename=odd.raw",
            "info --image-opts driver=file,filename=odd.raw",
            "info --image-opts driver=raw,file.driver=file,file.filename=odd.raw,offset=512,size=1024",
            "info --output=json --image-opts driver=raw,file.driver=file,file.filename=odd.raw,offset=512",
            "info --image-opts driver=null-co,size=1000,read-zeroes=on",
            "info --output json --image-opts driver=raw,file.driver=null-co,file.size=1000",
            "info --image-opts driver=raw,file.driver=raw,file.file.driver=file,file.file.filename=odd.raw",
            "info --output=json --image-opts driver=raw,file.driver=raw,file.file.driver=file,file.file.filename=odd.raw",
            "info json:{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
            "info json:{\"driver\":\"raw\",\"size\":512,\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
            "info --output=json json:{\"driver\":\"raw\",\"size\":512,\"file\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}}",
        ],
    );
}

#[test]
fn describing_is_refused_alike() {
    check_all(
        "describing_is_refused_alike",
        &[
            "info",
            "info a.raw odd.raw",
            "info nofile",
            "info dir",
            "info ''",
            "info a:b",
            "info -f bogus odd.raw",
            "info --output=foo odd.raw",
            "info --image-opts -f raw odd.raw",
            "info --image-opts odd.raw",
            "info --image-opts file=odd.raw",
            "info -x",
            "info --output",
            "info -f",
            "info json:{}",
            "info header.qcow2",
            "info -f qcow2 odd.raw",
        ],
    );
}

const IMAGE: &str = "\"image\":{\"driver\":\"file\",\"filename\":\"odd.raw\"}";

#[test]
fn blkdebug_nodes_are_described_alike() {
    let options = [
        "",
        "\"align\":512,",
        "\"max-transfer\":4096,\"align\":4096,",
        "\"opt-write-zero\":512,\"max-write-zero\":65536,\"opt-discard\":512,\"max-discard\":4096,",
        "\"config\":\"\",",
        "\"inject-error\":[{\"event\":\"none\",\"errno\":5,\"iotype\":\"write\"}],",
        "\"inject-error\":[{\"event\":\"read_aio\",\"state\":2,\"sector\":3,\"once\":true,\"immediately\":true}],",
        "\"align\":512,\"set-state\":[{\"event\":\"read_aio\",\"state\":1,\"new_state\":2}],",
    ];
    let mut lines: Vec<String> = [
        "info blkdebug::odd.raw",
        "info -f raw blkdebug::odd.raw",
        "info blkdebug:nofile:odd.raw",
        "info blkdebug::blkdebug::odd.raw",
        "info blkdebug::null-co://",
        "info --image-opts driver=blkdebug,image.driver=file,image.filename=odd.raw",
        "info --image-opts driver=blkdebug,image.filename=odd.raw",
        "info --image-opts driver=raw,file.driver=blkdebug,file.image.filename=odd.raw",
        "info --image-opts driver=raw,size=1k,offset=2k,file.driver=blkdebug,file.align=512,file.image.filename=odd.raw",
        "info --image-opts driver=blkdebug,image.driver=raw,image.file.driver=file,image.file.filename=odd.raw",
        "info --image-opts driver=blkdebug,image.driver=raw,image.size=512,image.file.driver=file,image.file.filename=odd.raw",
        "info --image-opts driver=blkdebug,image.driver=null-co,image.size=4096",
        "info --output=json --image-opts driver=raw,file.driver=blkdebug,file.image.driver=null-co",
    ]
    .map(String::from)
    .into();
    for options in options {
        let node = format!("{{\"driver\":\"blkdebug\",{options}{IMAGE}}}");
        lines.push(format!("info json:{node}"));
        lines.push(format!("info --output=json json:{node}"));
        lines.push(format!("info json:{{\"driver\":\"raw\",\"file\":{node}}}"));
        lines.push(format!("map --output=json json:{{\"driver\":\"raw\",\"offset\":512,\"file\":{node}}}"));
    }
    check_all("blkdebug_nodes_are_described_alike", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

/// What both programs say of an image in the bed's folder, which is the same.
fn described_alike(bed: &Bed, words: &str) {
    let run = |program: &Path, name: &str| {
        let output = bed.try_run(program, &[&["info"][..], &words.split(' ').collect::<Vec<_>>()].concat());
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(name, "PROGRAM");
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    assert_eq!(run(program(), "cairn-img"), run(Path::new("qemu-img"), "qemu-img"), "info {words}");
}

#[test]
fn qcow2_images_of_every_kind_are_described_alike() {
    for kind in KINDS {
        let Some(bed) = Bed::new(kind) else { return skipped("qcow2_images_of_every_kind_are_described_alike") };
        described_alike(&bed, "a.qcow2");
        described_alike(&bed, "--output=json -f qcow2 a.qcow2");
    }
    let Some(bed) = Bed::new(KINDS[9]) else { return };
    for words in [
        "-U --image-opts driver=qcow2,file.filename=a.qcow2",
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"a.qcow2\"}}",
        "-f raw a.qcow2",
        "blkdebug::a.qcow2",
    ] {
        described_alike(&bed, words);
    }
}

/// Scenario: overlays, one on another, with backing files that are there, are not, or are the overlay itself.
#[test]
fn chains_of_backing_files_are_described_alike() {
    let Some(bed) = Bed::new(KINDS[0]) else { return skipped("chains_of_backing_files_are_described_alike") };
    std::fs::create_dir(bed.path("dir")).expect("a folder");
    for (name, backing, format) in [
        ("b.qcow2", "a.qcow2", "qcow2"),
        ("dir/c.qcow2", "../b.qcow2", "qcow2"),
        ("lost.qcow2", "nothing.raw", "raw"),
        ("one.qcow2", "two.qcow2", "qcow2"),
        ("two.qcow2", "one.qcow2", "qcow2"),
    ] {
        bed.run("qemu-img", &["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, name, "12M"]);
    }
    bed.run("qemu-img", &["snapshot", "-c", "one", "b.qcow2"]);
    for name in ["b.qcow2", "dir/c.qcow2", "lost.qcow2", "one.qcow2"] {
        for options in ["-U", "--output=json", "--backing-chain", "--backing-chain --output=json"] {
            described_alike(&bed, &format!("{options} {name}"));
        }
    }
}
