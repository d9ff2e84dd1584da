//! `amend`: the same with each program, in two folders.

use crate::beds::{Beds, is_missing};

fn amend(beds: &Beds, options: &[&str]) {
    for options in options {
        beds.both(&format!("amend -o '{options}' a"));
        beds.compare("a");
    }
}

#[test]
fn options_are_taken_and_refused_alike() {
    if is_missing("options_are_taken_and_refused_alike") {
        return;
    }
    let beds = Beds::new(&["qemu-img create -q -f qcow2 a 64M", "qemu-io -f qcow2 -c 'write 0 1M' a"]);
    amend(
        &beds,
        &[
            "compat=0.10",
            "compat=1.1",
            "compat=v3",
            "compat=xx",
            "lazy_refcounts=on",
            "lazy_refcounts=off",
            "compat=0.10,lazy_refcounts=on",
            "refcount_bits=1",
            "refcount_bits=64",
            "refcount_bits=16",
            "refcount_bits=7",
            "refcount_bits=8,compat=0.10",
            "size=128M",
            "size=32M",
            "size=64M",
            "backing_file=b.raw,backing_fmt=raw",
            "backing_file=",
            "backing_fmt=raw",
            "cluster_size=64k",
            "extended_l2=on",
            "compression_type=zstd",
            "data_file=x",
            "data_file_raw=on",
            "encryption=on",
            "nothing=1",
            "size=xx",
            "compat=0.10",
            "refcount_bits=32",
            "lazy_refcounts=on",
            "compat=1.1,lazy_refcounts=on",
            "compat=0.10",
            "compat=1.1,refcount_bits=64,lazy_refcounts=on,size=3M",
            "size=513",
            "size=8E",
            "size=1E",
            "encrypt.state=active",
            "lazy_refcounts=x",
            "refcount_bits=x",
            "refcount_bits=0",
            "refcount_bits=128",
            "compat=",
            "size=",
            "refcount_bits=16,,x",
        ],
    );
    for line in [
        "",
        "a",
        "-o size=2M",
        "-o size=2M a b",
        "-o size=2M nothere",
        "-f xx -o size=2M a",
        "-o help",
        "-f qcow2 -o help",
        "-f raw -o help",
        "-o help a",
        "-o size=128M -t xx a",
        "-o size=128M --image-opts driver=qcow2,file.filename=a",
        "-f qcow2 --image-opts -o size=2M a",
        "-o size=128M -p a",
        "-q -p -o size=128M a",
        "-o lazy_refcounts=on -o size=130M a",
        "--force -o size=130M a",
    ] {
        beds.both(&format!("amend {line}"));
        beds.compare("a");
    }
}

#[test]
fn images_of_every_kind_are_amended_alike() {
    if is_missing("images_of_every_kind_are_amended_alike") {
        return;
    }
    let old = ["compat=0.10"];
    let zeroes =
        "qemu-io -f qcow2 -c 'write -z 0 64k' -c 'write 64k 64k' -c 'write -z 64k 64k' -c 'write -z -u 960k 64k' a";
    let kinds: [(&[&str], &[&str]); 9] = [
        (&["qemu-img create -q -f qcow2 a 1M", zeroes], &old),
        (
            &[
                "qemu-img create -q -f raw b.raw 1M",
                "qemu-io -f raw -c 'write 0 1M' b.raw",
                "qemu-img create -q -f qcow2 -b b.raw -F raw a 1M",
                zeroes,
            ],
            &["compat=0.10", "compat=1.1"],
        ),
        (
            &[
                "qemu-img create -q -f qcow2 a 1M",
                "qemu-io -f qcow2 -c 'write 0 64k' a",
                "qemu-img snapshot -c s a",
                "qemu-io -f qcow2 -c 'write 0 128k' a",
                "qemu-img snapshot -c s2 a",
            ],
            &["compat=0.10", "refcount_bits=8,compat=1.1", "refcount_bits=1", "refcount_bits=2"],
        ),
        (
            &[
                "qemu-img create -q -f qcow2 -o compat=0.10 a 1M",
                "qemu-io -f qcow2 -c 'write 0 64k' a",
                "qemu-img snapshot -c s a",
            ],
            &["compat=1.1,size=2M", "compat=0.10"],
        ),
        (&["qemu-img create -q -f qcow2 -o extended_l2=on a 1M"], &["compat=0.10", "refcount_bits=64"]),
        (&["qemu-img create -q -f qcow2 -o refcount_bits=8 a 1M"], &old),
        (
            &["qemu-img create -q -f qcow2 -o data_file=dd,data_file_raw=on a 1M"],
            &["compat=0.10", "data_file_raw=on", "data_file_raw=off", "data_file_raw=on"],
        ),
        (
            &[
                "qemu-img create -q -f qcow2 -o cluster_size=4k a 64M",
                "qemu-io -f qcow2 -c 'write 0 1M' -c 'write -z 30M 1M' -c 'write 62M 2M' a",
            ],
            // With some widths qemu-img comes to no end.
            &["refcount_bits=8", "refcount_bits=32", "refcount_bits=16"],
        ),
        (
            &[
                "qemu-img create -q -f qcow2 -o cluster_size=2M a 64M",
                "qemu-io -f qcow2 -c 'write 0 1M' -c 'write 62M 2M' a",
            ],
            &["size=4G", "compat=0.10"],
        ),
    ];
    for (made, options) in kinds {
        amend(&Beds::new(made), options);
    }
    // The name alone: whether there is such a file is nobody's business here.
    let beds = Beds::new(&["qemu-img create -q -f qcow2 -o data_file=dd a 1M"]);
    for line in ["amend -o data_file=ee a", "info a", "amend -o size=2M a"] {
        beds.both(line);
    }
}
