//! Bad surroundings: what is no image, who may not, full and read-only file systems, devices. Each scene is a shell script that both
//! programs get, in a mount namespace and a folder of their own; both say the same, end the same, and leave the same behind.

use crate::support::{data, program, skipped_because, sparse};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// What is in every folder.
fn furnish(dir: &Path) {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    let noise = NOISE.get_or_init(|| data(1 << 20));
    sparse(&dir.join("a.raw"), 1 << 20, &[(0, noise)]);
    sparse(&dir.join("long.raw"), 6 << 20, &[(0, &noise[5000..70_000]), (5 << 20, &noise[7000..9000])]);
    sparse(&dir.join("odd.raw"), 1000, &[(0, &noise[..1000])]);
    sparse(&dir.join("hole.raw"), 1 << 20, &[]);
}

/// A device over a file of 4 MiB of noise. It is given back at once, and gone when the shell that holds it is.
const DEVICE: &str = "
    cat a.raw a.raw a.raw a.raw > .backing
    L=$(losetup --find --show $READ_ONLY .backing)
    exec 9< $L
    losetup --detach $L
";

/// Everything that takes an image, with FILE for it.
const EVERYTHING: [&str; 14] = [
    "info FILE",
    "map FILE",
    "measure FILE",
    "convert FILE n.raw",
    "convert -n a.raw FILE",
    "convert a.raw FILE",
    "compare a.raw FILE",
    "compare FILE a.raw",
    "dd if=FILE of=n.raw",
    "dd if=a.raw of=FILE",
    "resize -f raw FILE 2M",
    "create FILE 1M",
    "bench -c 1 -t bogus FILE",
    "bench -w -c 1 -o 4E FILE",
];

/// Names of loop devices, which are others each time, and of programs.
fn general(text: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(text).replace(name, "PROGRAM");
    let mut parts = text.split("/dev/loop");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + "LOOP" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// What `program` does with `line` after `setup`: status, output, and sums of what there is then.
fn run(program: &Path, name: &str, setup: &str, line: &str) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().expect("a folder");
    furnish(dir.path());
    let script = format!(
        "set -e\n{setup}\nset +e\n\
         $AS $PROGRAM {line}\nstatus=$?\n\
         for file in * */*; do if test -f \"$file\" && test ! -L \"$file\"; then cksum \"$file\"; fi; done\n\
         if test \"$L\"; then cksum $L; fi\nexit $status"
    );
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", &script]).env("PROGRAM", program).current_dir(dir.path()).stdin(Stdio::null());
    let output = shell.output().expect("a shell");
    (output.status.code(), general(&output.stdout, name), general(&output.stderr, name))
}

/// Both do the same with every line after `setup`.
fn check(test: &str, setup: &str, lines: &[&str]) {
    let can = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if !can("qemu-img", &["--version"]) {
        return skipped_because(test, "qemu-img is not installed");
    }
    if !can("unshare", &["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]) {
        return skipped_because(test, "no mount namespace to be had");
    }
    let has_device = setup.contains("losetup");
    if has_device && !can("sh", &["-c", "L=$(losetup --read-only --find --show /proc/self/exe) && losetup --detach $L"])
    {
        return skipped_because(test, "no loop device to be had");
    }
    let mut different = Vec::new();
    for line in lines {
        let ours = run(program(), "cairn-img", setup, line);
        let theirs = run(Path::new("qemu-img"), "qemu-img", setup, line);
        if ours != theirs {
            different.push(format!("{line}\n--- cairn-img\n{ours:#?}\n--- qemu-img\n{theirs:#?}"));
        }
    }
    assert!(different.is_empty(), "after {setup}: {} lines differ:\n{}", different.len(), different.join("\n"));
}

/// Everything that takes an image, with this one.
fn check_everything(test: &str, setup: &str, file: &str) {
    let lines = EVERYTHING.map(|line| line.replace("FILE", file));
    check(test, setup, &lines.each_ref().map(String::as_str));
}

#[test]
fn what_is_no_image() {
    let test = "what_is_no_image";
    check_everything(test, "", "nofile");
    check_everything(test, "", "nodir/nofile");
    check_everything(test, "", "a.raw/nofile");
    check_everything(test, "mkdir d", "d");
    check_everything(test, "ln -s nowhere link", "link");
    check_everything(test, "ln -s link link", "link");
    check_everything(test, "", &"n".repeat(300));
    check_everything(test, "", "foo:bar");
    check_everything(test, "", "file:");
    check_everything(test, "", "host_device:a.raw");
    check_everything(test, "", "''");
}

/// Opening a pipe for reading waits in qemu-img for its other end.
#[test]
fn pipes_and_sockets() {
    let test = "pipes_and_sockets";
    let writers = ["convert a.raw pipe", "dd if=a.raw of=pipe", "create pipe 1M"];
    check(test, "mkfifo pipe", &writers);
    let socket = "perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local => \"socket\", Listen => 1)'; test -S socket";
    check_everything(test, socket, "socket");
}

#[test]
fn character_devices() {
    for device in ["/dev/null", "/dev/zero", "/dev/full"] {
        check_everything("character_devices", "", device);
    }
    check("character_devices", "", &["create /dev/null 0", "create /dev/tty 1M", "convert a.raw file:/dev/null"]);
}

#[test]
fn who_may_not() {
    let test = "who_may_not";
    let nobody = "chmod 755 .; AS='setpriv --reuid 65534 --regid 65534 --clear-groups'";
    let lines = EVERYTHING.map(|line| line.replace("FILE", "secret.raw"));
    let lines: Vec<_> = lines.iter().map(String::as_str).chain(["info a.raw", "convert -n long.raw a.raw"]).collect();
    if !program_is_public() {
        return skipped_because(test, "the program lies where only root looks");
    }
    check(test, &format!("cp a.raw secret.raw; chmod 600 secret.raw; {nobody}"), &lines);
    check(test, &format!("mkdir s; cp a.raw s; chmod 700 s; {nobody}"), &["info s/a.raw", "create s/n.raw 1M"]);
    check(test, &format!("cp a.raw secret.raw; chmod 444 secret.raw; {nobody}"), &lines);
}

fn program_is_public() -> bool {
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program()).arg("--version");
    nobody.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Who holds the image is another program: qemu-io for ours, and ours for itself.
#[test]
fn locked_images() {
    let test = "locked_images";
    // It waits for its second command to come, with the image open.
    let held = |how: &str| {
        format!(
            "mkfifo commands; : > .said; qemu-io {how} a.raw < commands > .said & exec 8> commands; \
             echo 'read 0 512' >&8; until grep -q ops .said; do sleep 0.01; done"
        )
    };
    let lines = [
        "info a.raw",
        "info -U a.raw",
        "map a.raw",
        "map -U a.raw",
        "measure a.raw",
        "convert a.raw n.raw",
        "convert -U a.raw n.raw",
        "convert -n long.raw a.raw",
        "convert odd.raw a.raw",
        "compare a.raw long.raw",
        "compare -U a.raw long.raw",
        "dd if=a.raw of=n.raw",
        "dd -U if=a.raw of=n.raw",
        "dd if=odd.raw of=a.raw",
        "resize -f raw a.raw 2M",
        "create a.raw 1M",
        "bench -c 1 -t bogus a.raw",
    ];
    if Command::new("qemu-io").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skipped_because(test, "qemu-io is not installed");
    }
    check(test, &held("-f raw"), &lines);
    check(test, &held("-f raw -r"), &lines);
}

/// Where qemu-img prints a size that no file can have, it prints a negative one; that is left out.
#[test]
fn sizes_that_are_none() {
    let sizes =
        ["-1", "-1M", "-0x1", "1e3", "0x", "16E", "18446744073709551616", "8E", "9223372036854775808", "nan", " 1"];
    let mut lines = Vec::new();
    for size in sizes {
        lines.push(format!("create n.raw -- '{size}'"));
        lines.push(format!("create n.raw '{size}'"));
        lines.push(format!("resize -f raw a.raw '{size}'"));
        lines.push(format!("resize -f raw a.raw '+{size}'"));
        lines.push(format!("measure --size '{size}'"));
        lines.push(format!("convert -S '{size}' a.raw n.raw"));
        lines.push(format!("dd bs='{size}' if=odd.raw of=n.raw"));
        lines.push(format!("dd count='{size}' if=odd.raw of=n.raw"));
        lines.push(format!("map --start-offset='{size}' a.raw"));
        lines.push(format!("map --max-length='{size}' a.raw"));
        if !size.starts_with(['8', '9']) {
            lines.push(format!("create -o size='{size}' n.raw"));
            lines.push(format!("info --image-opts driver=raw,offset='{size}',file.filename=a.raw"));
        }
    }
    check("sizes_that_are_none", "", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Pieces are smaller here than in qemu-img: it is told of a later byte, so that nothing but the first one may be full.
#[test]
fn full_and_read_only_file_systems() {
    let test = "full_and_read_only_file_systems";
    let small = "mkdir fs; mount -t tmpfs -o size=64k none fs; truncate -s 2M fs/x.raw";
    check(
        test,
        small,
        &[
            "convert -m 1 odd.raw fs/x.raw",
            "create fs/n.raw 2M",
            "create -o preallocation=full fs/n.raw 1M",
            "create -o preallocation=falloc fs/n.raw 1M",
            "resize -f raw --preallocation=full fs/x.raw 3M",
            "resize -f raw --preallocation=falloc fs/x.raw 3M",
            "convert -o preallocation=full a.raw fs/n.raw",
            "convert -o preallocation=falloc a.raw fs/n.raw",
            "dd if=a.raw of=fs/n.raw bs=1M",
            "dd if=odd.raw of=fs/n.raw",
            "resize -f raw fs/x.raw 3M",
        ],
    );
    let full = "mkdir fs; mount -t tmpfs -o size=8k none fs; truncate -s 2M fs/x.raw; head -c 8k a.raw > fs/y.raw";
    check(test, full, &["convert a.raw fs/n.raw", "convert -n a.raw fs/x.raw", "convert -n -W a.raw fs/x.raw"]);
    let read_only = "mkdir fs; mount -t tmpfs none fs; cp a.raw fs/x.raw; mount -o remount,ro fs";
    check_everything(test, read_only, "fs/x.raw");
    check_everything(test, read_only, "fs/nofile");
    // An ext4 that is too small, over a file.
    let ext4 = "truncate -s 1M disk; PATH=$PATH:/usr/sbin mke2fs -q -F -t ext4 disk 2> /dev/null; mkdir fs; \
                L=$(losetup --find --show disk); mount $L fs; losetup --detach $L; L=; rm disk";
    check(test, ext4, &["create fs/n.raw 1G", "dd if=odd.raw of=fs/n.raw", "create fs/n.raw 1E"]);
}

#[test]
fn images_are_created_on_devices_alike() {
    check(
        "images_are_created_on_devices_alike",
        DEVICE,
        &[
            "create $L 1M",
            "create -q -f raw $L 4M",
            "create $L 4194304",
            "create $L 4194305",
            "create $L 5M",
            "create $L 0",
            "create $L",
            "create -f host_device $L 1M",
            "create -f host_device $L 5M",
            "create -f file $L 1M",
            "create -o preallocation=off $L 1M",
            "create -o preallocation=full $L 1M",
            "create -o preallocation=full $L 5M",
            "create -o preallocation=falloc $L 1M",
            "create -o preallocation=bogus $L 1M",
            "create -o nocow=off $L 1M",
            "create -f host_device -o nocow=off $L 1M",
            "create -o extent_size_hint=1M $L 1M",
            "create -o foo=1 $L 1M",
            "create -o size=1M $L",
            "create host_device:$L 1M",
            "create file:$L 1M",
            "create -o help $L",
            "create -f host_device -o help",
            "create -f host_device -o help $L",
            "create -f host_device -o help a.raw",
            "create -o help host_device:$L",
            "create -f host_device a.raw 1M",
            "create -f host_device n.raw 1M",
            "create host_device:n.raw 1M",
            "convert a.raw $L",
            "convert odd.raw $L",
            "convert hole.raw $L",
            "convert hole.raw a.raw odd.raw $L",
            "convert long.raw $L",
            "convert -O host_device a.raw $L",
            "convert -O host_device a.raw n.raw",
            "convert -n a.raw $L",
            "convert -n -O host_device a.raw $L",
            "convert -n long.raw $L",
            "convert -n --target-is-zero hole.raw $L",
            "convert -S 0 hole.raw $L",
            "convert -W -m 3 a.raw $L",
            "convert -t none a.raw $L",
            "convert -C a.raw $L",
            "convert -o preallocation=off a.raw $L",
            "convert -o preallocation=full a.raw $L",
            "convert -o size=2M a.raw $L",
            "convert $L n.raw",
            "convert $L $L",
            "convert -n $L $L",
            "dd if=a.raw of=$L",
            "dd if=long.raw of=$L",
            "dd if=$L of=n.raw",
            "dd -O host_device if=a.raw of=$L",
            "resize -f raw $L 4M",
            "resize -f raw $L 5M",
            "resize -f raw --shrink $L 1M",
            "resize -f raw $L 1M",
            "resize -f raw --preallocation=full $L 5M",
            "info $L",
            "info -f raw --output=json $L",
            "info -f host_device $L",
            "info host_device:$L",
            "map $L",
            "map --output=json $L",
            "measure $L",
            "compare $L .backing",
        ],
    );
}

#[test]
fn devices_that_refuse() {
    let test = "devices_that_refuse";
    let lines = EVERYTHING.map(|line| line.replace("FILE", "$L"));
    let lines = lines.each_ref().map(String::as_str);
    check(test, &format!("READ_ONLY=--read-only; {DEVICE}"), &lines);
    // The file below is shorter than the device by now: what lies past its end cannot be read.
    let short = format!("{DEVICE} truncate -s 64k .backing");
    check(test, &short, &["convert -S 0 -m 1 $L n.raw", "dd if=$L of=n.raw bs=4M", "info $L", "create $L 1M"]);
}

/// Scenario: errors of blkdebug stand for a broken disk.
#[test]
fn salvage_leaves_zeroes() {
    let broken = |rules: &str| {
        format!(
            "json:'{{\"driver\":\"raw\",\"file\":{{\"driver\":\"blkdebug\",{rules},\"image\":{{\"driver\":\"file\",\"filename\":\"a.raw\"}}}}}}'"
        )
    };
    let error = |more: &str| format!("\"inject-error\":[{{\"event\":\"none\",\"iotype\":\"read\",\"errno\":5{more}}}]");
    let mut lines = Vec::new();
    for more in [",\"sector\":0", ",\"sector\":77", ",\"sector\":2047", ",\"once\":true", ",\"sector\":3000"] {
        let source = broken(&error(more));
        lines.push(format!("convert --salvage {source} n.raw"));
        lines.push(format!("convert --salvage -S 0 {source} n.raw"));
        lines.push(format!("convert --salvage -q {source} n.raw"));
        lines.push(format!("convert --salvage -W -m 1 {source} odd.raw n.raw"));
    }
    check("salvage_leaves_zeroes", "", &lines.iter().map(String::as_str).collect::<Vec<_>>());
}
