//! Tables for qcow2: what `create` makes and refuses, and what `measure` says.
//!
//! The programs do the same byte for byte, holes included; what was made here passes `qemu-img check`.

use crate::support::{check_all, folder, program, skipped, theirs, words};
use std::process::Command;

/// Every kind of image.
const IMAGES: [&str; 53] = [
    "create -f qcow2 n.qcow2 1M",
    "create -f qcow2 n.qcow2 0",
    "create -f qcow2 n.qcow2 1000",
    "create -q -f qcow2 n.qcow2 1T",
    "create -f qcow2 -o compat=0.10 n.qcow2 1M",
    "create -f qcow2 -o cluster_size=512 n.qcow2 1G",
    "create -f qcow2 -o cluster_size=512,refcount_bits=64 n.qcow2 10G",
    "create -f qcow2 -o cluster_size=2M n.qcow2 1T",
    "create -f qcow2 -o preallocation=metadata n.qcow2 10M",
    "create -f qcow2 -o preallocation=metadata n.qcow2 100000",
    "create -f qcow2 -o preallocation=metadata n.qcow2 1000",
    "create -f qcow2 -o preallocation=falloc n.qcow2 100000",
    "create -f qcow2 -o preallocation=full n.qcow2 100000",
    "create -f qcow2 -o preallocation=full n.qcow2 10M",
    "create -f qcow2 -o preallocation=falloc n.qcow2 0",
    "create -f qcow2 -o preallocation=metadata,cluster_size=512 n.qcow2 10M",
    "create -f qcow2 -o preallocation=metadata,cluster_size=512,refcount_bits=64 n.qcow2 10M",
    "create -f qcow2 -o preallocation=falloc,cluster_size=512,refcount_bits=64 n.qcow2 10M",
    "create -f qcow2 -o preallocation=metadata,extended_l2=on n.qcow2 100000",
    "create -f qcow2 -o preallocation=falloc,extended_l2=on n.qcow2 10M",
    "create -f qcow2 -o data_file=d.raw n.qcow2 10M",
    "create -f qcow2 -o data_file=d.raw n.qcow2 0",
    "create -f qcow2 -o data_file=d.raw,data_file_raw=on n.qcow2 10M",
    "create -f qcow2 -o data_file=d.raw,preallocation=metadata n.qcow2 10M",
    "create -f qcow2 -o data_file=d.raw,preallocation=falloc n.qcow2 10M",
    "create -f qcow2 -o data_file=d.raw,preallocation=full n.qcow2 10M",
    "create -f qcow2 -o data_file=file:d.raw n.qcow2 1M",
    "create -f qcow2 -o data_file=d.raw,extended_l2=on,data_file_raw=on n.qcow2 10M",
    "create -f qcow2 -o compression_type=zstd,lazy_refcounts=on,refcount_bits=1 n.qcow2 1M",
    "create -f qcow2 -b a.raw -F raw n.qcow2",
    "create -f qcow2 -b a.raw -F raw -o compat=0.10 n.qcow2",
    "create -f qcow2 -b odd.raw -F raw n.qcow2 5M",
    "create -f qcow2 -b odd.raw -F raw n.qcow2",
    "create -f qcow2 -b a.raw -F raw -o extended_l2=on,preallocation=metadata n.qcow2",
    "create -f qcow2 -u -b nofile -F raw n.qcow2 1M",
    "create -f qcow2 -u -b nofile -F copy-before-write n.qcow2 1M",
    "create -f qcow2 -u -b nofile -F vmdk n.qcow2 1M",
    "create -f qcow2 -b null-co:// -F raw n.qcow2",
    "create -f qcow2 -b null-co:// -F null-co n.qcow2",
    "create -f qcow2 -b a.raw -F file n.qcow2",
    "create -f qcow2 -b json:{\"driver\":\"raw\",\"file.filename\":\"a.raw\"} -F raw n.qcow2",
    "create -f qcow2 -o backing_file=a.raw,backing_fmt=raw n.qcow2",
    "create -f qcow2 -o refcount_bits=0x10 n.qcow2 1M",
    "create -f qcow2 -o refcount_bits=010 n.qcow2 1M",
    "create -f qcow2 -o encryption=off n.qcow2 1M",
    "create -f qcow2 -o nocow=off,extent_size_hint=0 n.qcow2 1M",
    "create -f qcow2 -o data_file=a.raw n.qcow2 1M",
    "create -f qcow2 -o cluster_size=4k n.qcow2 1M",
    "create -f qcow2 -o cluster_size=8k n.qcow2 1M",
    "create -f qcow2 -o extent_size_hint=0,nocow=off,refcount_bits=16,lazy_refcounts=off,data_file_raw=off,data_file=d.raw,backing_fmt=raw,backing_file=a.raw,compat=v3,size=1M,compression_type=zlib,preallocation=off,extended_l2=off,cluster_size=64k,encryption=off n.qcow2",
    "create -f qcow2 -o preallocation=metadata,extended_l2=on n.qcow2 1000",
    "create -f qcow2 -o preallocation=metadata,extended_l2=on n.qcow2 103000",
    "create -f qcow2 -o preallocation=full,extended_l2=on n.qcow2 103000",
];

#[test]
fn qcow2_images_are_created_alike() {
    check_all("qcow2_images_are_created_alike", &IMAGES);
}

/// Sizes at which tables have to move, blocks count themselves, and the last table is not full, in clusters of every kind.
#[test]
fn tables_are_where_they_are_in_qemu_img() {
    let mut lines = Vec::new();
    for bits in [1, 8, 16, 64] {
        for (cluster, large) in [("512", 9_000_448), ("1k", 20_000_256), ("64k", 3_000_000_512u64), ("2M", 5 << 39)] {
            let line = |options: &str, size: u64| {
                format!("create -f qcow2 -o cluster_size={cluster},refcount_bits={bits},{options} n.qcow2 {size}")
            };
            lines.push(line("preallocation=off", large * 500));
            lines.push(line("preallocation=metadata", large));
            lines.push(line("preallocation=falloc", 6_400_512));
            lines.push(line("preallocation=metadata,data_file=d.raw", large / 512 / 4096 * 512 * 4096));
        }
    }
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    check_all("tables_are_where_they_are_in_qemu_img", &lines);
}

#[test]
fn created_qcow2_images_pass_a_check() {
    if theirs(&["--version"]).is_none() {
        return skipped("created_qcow2_images_pass_a_check");
    }
    // The check opens the backing file.
    for line in IMAGES.into_iter().filter(|line| !line.contains("nofile")) {
        let args = words(line);
        let dir = folder(&args);
        let run = |program: &std::path::Path, args: &[&str]| {
            let output = Command::new(program).args(args).current_dir(dir.path()).output().expect("the program starts");
            assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run(program(), &args);
        run("qemu-img".as_ref(), &["check", "-q", "-U", "-f", "qcow2", "n.qcow2"]);
    }
}

#[test]
fn qcow2_images_are_refused_alike() {
    check_all(
        "qcow2_images_are_refused_alike",
        &[
            "create -f qcow2 -b a.raw n.qcow2",
            "create -f qcow2 -b a.raw n.qcow2 1M",
            "create -f qcow2 -u -b a.raw n.qcow2",
            "create -f qcow2 -u -b nofile -F raw n.qcow2",
            "create -f qcow2 -b nofile -F raw n.qcow2",
            "create -f qcow2 -b nofile n.qcow2 1M",
            "create -f qcow2 -b a.raw -F bogus n.qcow2 1M",
            "create -f qcow2 -u -b a.raw -F bogus n.qcow2 1M",
            "create -f qcow2 -b '' -F raw n.qcow2",
            "create -f qcow2 -b n.qcow2 -F raw n.qcow2 1M",
            "create -f qcow2 -b dir -F raw n.qcow2 1M",
            "create -f qcow2 -b bogus:x -F raw n.qcow2 1M",
            "create -f qcow2 -o backing_file=a.raw n.qcow2",
            "create -f qcow2 -F raw n.qcow2 1M",
            "create -f qcow2 n.qcow2",
            "create -f qcow2 -o size=1M n.qcow2 2M",
            "create -f qcow2 -o cluster_size=1000 n.qcow2 1M",
            "create -f qcow2 -o cluster_size=0 n.qcow2 1M",
            "create -f qcow2 -o cluster_size=x n.qcow2 1M",
            "create -f qcow2 -o refcount_bits=3 n.qcow2 1M",
            "create -f qcow2 -o refcount_bits=x n.qcow2 1M",
            "create -f qcow2 -o refcount_bits=-1 n.qcow2 1M",
            "create -f qcow2 -o refcount_bits=99999999999999999999 n.qcow2 1M",
            "create -f qcow2 -o refcount_bits=8,compat=0.10 n.qcow2 1M",
            "create -f qcow2 -o lazy_refcounts=on,compat=0.10 n.qcow2 1M",
            "create -f qcow2 -o lazy_refcounts=x n.qcow2 1M",
            "create -f qcow2 -o compat=foo n.qcow2 1M",
            "create -f qcow2 -o extended_l2=on,cluster_size=8k n.qcow2 1M",
            "create -f qcow2 -o extended_l2=on,compat=v2 n.qcow2 1M",
            "create -f qcow2 -o compression_type=zstd,compat=v2 n.qcow2 1M",
            "create -f qcow2 -o compression_type=lzo n.qcow2 1M",
            "create -f qcow2 -o data_file=d.raw,compat=v2 n.qcow2 1M",
            "create -f qcow2 -o data_file_raw=on n.qcow2 1M",
            "create -f qcow2 -o data_file=d.raw,data_file_raw=on -b a.raw -F raw n.qcow2 1M",
            "create -f qcow2 -o preallocation=foo n.qcow2 1M",
            "create -f qcow2 -o preallocation=full -b a.raw -F raw n.qcow2 1M",
            "create -f qcow2 n.qcow2 7E",
            "create -f qcow2 -o cluster_size=512 n.qcow2 129G",
            "create -f qcow2 -o cluster_size=2M n.qcow2 3E",
            "create -f qcow2 -o foo=1 n.qcow2 1M",
            "create -f qcow2 nodir/n.qcow2 1M",
            "create -f qcow2 dir 1M",
            "create -f qcow2 -o data_file=nodir/d n.qcow2 1M",
            "create -f qcow2 -o data_file=dir n.qcow2 1M",
            "create -f qcow2 -o data_file=null-co:// n.qcow2 1M",
            "create -f qcow2 -o data_file= n.qcow2 1M",
            "create -f qcow2 null-co:// 1M",
            "create -f qcow2 '' 1M",
        ],
    );
}

#[test]
fn options_of_qcow2_are_listed_alike() {
    check_all("options_of_qcow2_are_listed_alike", &["create -f qcow2 -o help", "create -f qcow2 -o help n.qcow2"]);
}

#[test]
fn sizes_of_qcow2_images_are_measured_alike() {
    check_all(
        "sizes_of_qcow2_images_are_measured_alike",
        &[
            "measure -O qcow2 --size 1M",
            "measure -O qcow2 --size 0",
            "measure -O qcow2 --size 1T --output=json",
            "measure -O qcow2 -o cluster_size=512,refcount_bits=64 --size 10M",
            "measure -O qcow2 -o preallocation=full --size 1G",
            "measure -O qcow2 -o extended_l2=on --size 1T",
            "measure -O qcow2 -o data_file=d.raw --size 1G",
            "measure -O qcow2 -o cluster_size=2M --size 2E",
            "measure -O qcow2 --size 7E",
            "measure -O qcow2 -o cluster_size=100 --size 1M",
            "measure -O qcow2 -o refcount_bits=3 --size 1M",
            "measure -O qcow2 -o refcount_bits=3,preallocation=foo --size 1M",
            "measure -O qcow2 -o preallocation=foo --size 1M",
            "measure -O qcow2 -o compat=v3 --size 1M",
            "measure -O qcow2 -o compat=1.1 --size 1M",
            "measure -O qcow2 -o compat=0.10,refcount_bits=8 --size 1M",
            "measure -O qcow2 -o compat=0.10,extended_l2=on --size 1M",
            "measure -O qcow2 -o extended_l2=on,cluster_size=8k --size 1M",
            "measure -O qcow2 -o foo=1 --size 1M",
            "measure -O qcow2 -o size=3M --size 1M",
            "measure -O qcow2 -o backing_file=nofile --size 1G",
            "measure -O qcow2 -o backing_file=nofile fs.raw",
            "measure -O qcow2 -o refcount_bits=x --size 1M",
            "measure -O qcow2 fs.raw",
            "measure -O qcow2 -o cluster_size=512 fs.raw",
            "measure -O qcow2 -o cluster_size=2M fs.raw",
            "measure -O qcow2 -o preallocation=falloc fs.raw",
            "measure -O qcow2 --output=json odd.raw",
            "measure -O qcow2 null-co://",
            "measure -O qcow2 -o encryption=x --size 1M",
            "measure -O qcow2 -o nocow=on --size 1M",
            "measure -O qcow2 huge.raw",
            "measure -O qcow2 -o cluster_size=512 gaps.raw",
            "measure -O qcow2 -o cluster_size=2M gaps.raw",
            "measure -O qcow2 -o cluster_size=512 odd.raw",
            "measure -O qcow2 empty.raw",
            "measure -O qcow2 -o refcount_bits=-1 --size 1M",
        ],
    );
}

/// Scenario: what lies in a folder of its own, where the image's backing file is looked for.
#[test]
fn backing_files_are_beside_their_image() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(dir.path().join("sub")).expect("a folder");
    crate::support::sparse(&dir.path().join("sub/base.raw"), 3 << 20, &[]);
    let run = |args: &[&str]| {
        let output = Command::new(program()).args(args).current_dir(dir.path()).output().expect("the program starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let made = run(&["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "sub/n.qcow2"]);
    assert_eq!(made, (Some(0), String::new()));
    let refused = run(&["create", "-q", "-f", "qcow2", "-b", "sub/base.raw", "-F", "raw", "sub/m.qcow2"]);
    let words = "cairn-img: sub/m.qcow2: Could not open 'sub/sub/base.raw': No such file or directory\n\
                 Could not open backing image.\n";
    assert_eq!(refused, (Some(1), words.to_owned()));
    assert!(!dir.path().join("sub/m.qcow2").exists());
}

/// Scenario: the image can be made, its data file cannot.
#[test]
fn what_could_not_be_created_is_not_left() {
    let dir = tempfile::tempdir().expect("a folder");
    let output = Command::new(program())
        .args(["create", "-q", "-f", "qcow2", "-o", "data_file=nodir/data", "n.qcow2", "1M"])
        .current_dir(dir.path())
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(1));
    let left: Vec<_> = std::fs::read_dir(dir.path()).expect("a folder").collect();
    assert!(left.is_empty(), "{left:?}");
}
