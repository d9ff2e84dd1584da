//! `bitmap`, and bitmaps in `convert`, `measure`, `resize`, `snapshot`: the same with each program, in two folders. They say the same, and the bitmaps are
//! the same after every step.

use crate::beds::{Beds, is_missing};

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

/// Scenario: a program that knows nothing of bitmaps changed the image.
#[test]
fn stale_bitmaps_are_told_of_alike() {
    if is_missing("stale_bitmaps_are_told_of_alike") {
        return;
    }
    let beds = Beds::new(&["qemu-img create -q -f qcow2 a 64M", "qemu-img bitmap --add a b"]);
    beds.patch("a", |bytes| bytes[88..96].fill(0));
    beds.both("map a");
    beds.both("info a --output=json");
    beds.both("check a");
    beds.both("snapshot -l a");
    beds.both("measure -O raw a");
    beds.both("convert -O raw a raw");
    beds.both("convert -O qcow2 --bitmaps a copy");
    beds.both("bitmap --remove a b");
    // Nothing is left of them now.
    beds.both("map a");
}
