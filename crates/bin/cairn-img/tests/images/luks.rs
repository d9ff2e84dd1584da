//! Encrypted images: what each program makes the other opens, and both say the same of them.

use crate::beds::{Beds, is_missing, nameless};
use crate::support::{check_all, ours, program, skipped_because};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

const SECRET: &str = "--object secret,id=s,data=pw";
const OPEN: &str = "--image-opts driver=luks,key-secret=s,file.filename=";

fn run(program: impl AsRef<std::ffi::OsStr>, folder: &Path, line: &str) -> Output {
    let words = line.split(' ').filter(|word| !word.is_empty());
    Command::new(program).args(words).current_dir(folder).output().expect("it starts")
}

/// Let a program do something that goes well.
fn good(program: impl AsRef<std::ffi::OsStr>, folder: &Path, line: &str) -> String {
    let output = run(program, folder, line);
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_cannot_be_created_is_refused_alike() {
    let lines = [
        "create -f luks -o help",
        "create -f luks -o help a.luks",
        "create -f luks a.luks 1M",
        "create -f luks SECRET -o key-secret=s a.luks",
        "create -f luks SECRET -o key-secret=x a.luks 1M",
        "create -f luks SECRET -o key-secret=s,cipher-alg=foo a.luks 1M",
        "create -f luks SECRET -o key-secret=s,cipher-mode=foo a.luks 1M",
        "create -f luks SECRET -o key-secret=s,ivgen-alg=foo a.luks 1M",
        "create -f luks SECRET -o key-secret=s,ivgen-hash-alg=foo a.luks 1M",
        "create -f luks SECRET -o key-secret=s,hash-alg=foo a.luks 1M",
        "create -f luks SECRET -o cipher-alg=foo,hash-alg=foo a.luks 1M",
        "create -f luks SECRET -o key-secret=s,iter-time=x a.luks 1M",
        "create -f luks SECRET -o key-secret=s,foo=1 a.luks 1M",
        "create -f luks SECRET -o key-secret=s,iter-time=10,preallocation=xx a.luks 1M",
        "create -f luks -b a.raw -F raw SECRET -o key-secret=s,iter-time=10 a.luks",
        "create -f luks -F raw SECRET -o key-secret=s,iter-time=10 a.luks 1M",
        "create -f luks SECRET -o key-secret=s,iter-time=10 a.luks 8E",
        "create -f luks SECRET -o key-secret=s,iter-time=10 a.luks 7E",
        "create -f luks SECRET -o key-secret=s,iter-time=10 dir/a/b.luks 1M",
        "create -q -f luks SECRET -o key-secret=s,iter-time=10 dir 1M",
        "measure -O luks --size 1G",
        "measure SECRET -O luks -o key-secret=s --size 1G",
        "measure SECRET -O luks -o key-secret=s --output=json --size 1000",
        "measure SECRET -O luks -o key-secret=s,cipher-alg=aes-128 --size 1000",
        "measure SECRET -O luks -o key-secret=s,cipher-mode=cbc --size 0",
        "measure SECRET -O luks -o key-secret=s fs.raw",
        "measure SECRET -O luks -o key-secret=s odd.raw",
        "measure SECRET -O luks -o key-secret=x --size 1G",
        "measure SECRET -O luks -o key-secret=s,cipher-alg=foo --size 1G",
        "convert -O luks a.raw b.luks",
        "convert SECRET -c -O luks -o key-secret=s,iter-time=10 a.raw b.luks",
        "convert -n -O luks a.raw target.raw",
        "dd -O luks if=a.raw of=b.luks",
        "info -f luks a.raw",
        "info --image-opts driver=luks,file.filename=a.raw",
        "info --image-opts driver=luks,file.filename=one.raw",
        "info --image-opts driver=luks,key-secret=s,file.filename=a.raw",
        "info --image-opts driver=luks",
        "map -f luks a.raw",
        "check -f luks a.raw",
        "check SECRET --image-opts driver=luks,key-secret=s,file.filename=a.raw",
        "snapshot -l --image-opts driver=luks,file.filename=a.raw",
        "compare -f luks a.raw a.raw",
        "resize -f luks a.raw 2M",
        "amend -f luks -o help",
        "amend -f luks -o state=active a.raw",
        "amend SECRET -o foo=1 --image-opts driver=luks,key-secret=s,file.filename=a.raw",
    ]
    .map(|line| line.replace("SECRET", SECRET));
    let lines: Vec<_> = lines.iter().map(String::as_str).collect();
    check_all("what_cannot_be_created_is_refused_alike", &lines);
}

/// Ciphers with their modes, generators and hashes.
const ALGORITHMS: [&str; 14] = [
    "hash-alg=sha256",
    "cipher-alg=aes-128",
    "cipher-alg=aes-192,cipher-mode=xts",
    "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256",
    "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=plain",
    "cipher-alg=aes-256,cipher-mode=ctr",
    "cipher-alg=aes-256,cipher-mode=ecb",
    "cipher-alg=serpent-256,hash-alg=sha1",
    "cipher-alg=serpent-128,cipher-mode=cbc",
    "cipher-alg=twofish-256,hash-alg=ripemd160",
    "cipher-alg=twofish-128,cipher-mode=cbc,hash-alg=sha512",
    "cipher-alg=cast5-128,cipher-mode=cbc,hash-alg=sha224",
    "ivgen-alg=essiv,hash-alg=sha384",
    "cipher-alg=aes-256,ivgen-alg=plain64,ivgen-hash-alg=sha1",
];

/// What is told of an image, without what is another one each time, or depends on the host's blocks.
fn told(program: impl AsRef<std::ffi::OsStr>, folder: &Path, image: &str) -> String {
    let text = good(program, folder, &format!("info {image}"));
    let is_chance = |line: &&str| ["uuid", "iters", "disk size"].iter().any(|word| line.contains(word));
    text.lines().filter(|line| !is_chance(line)).map(|line| line.to_owned() + "\n").collect()
}

#[test]
fn what_either_makes_the_other_opens() {
    if is_missing("what_either_makes_the_other_opens") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let data = crate::support::data(3 << 20);
    std::fs::write(folder.join("plain"), &data).expect("room");
    for (at, algorithms) in ALGORITHMS.iter().enumerate() {
        let options = format!("-o key-secret=s,iter-time=10,{algorithms}");
        let [mine, yours] = ["mine", "yours"].map(|name| format!("{name}{at}"));
        let convert = |to: &str| format!("convert {SECRET} -f raw -O luks {options} plain {to}");
        good(program(), folder, &convert(&mine));
        good("qemu-img", folder, &convert(&yours));
        // Both say the same of both.
        let text = told(program(), folder, &mine);
        assert_eq!(text, told("qemu-img", folder, &mine), "{algorithms}");
        assert_eq!(text.replace(&mine, &yours), told("qemu-img", folder, &yours), "{algorithms}");
        let json = |program: &Path| good(program, folder, &format!("info --output=json {yours}"));
        assert_eq!(json(program()), json(Path::new("qemu-img")), "{algorithms}");
        // And read both.
        for image in [&mine, &yours] {
            for (name, program) in [("by-cairn", program()), ("by-qemu", Path::new("qemu-img"))] {
                good(program, folder, &format!("convert {SECRET} {OPEN}{image} -O raw {name}"));
                assert!(std::fs::read(folder.join(name)).expect("an image") == data, "{name} {image}: {algorithms}");
            }
        }
        // Whoever writes to the other's image.
        let write = |at: &str| format!("-c write#-P#7#{at}#70000 {SECRET} {OPEN}");
        for (image, at) in [(&yours, "100k"), (&mine, "1M")] {
            let line = write(at);
            let words: Vec<_> = line.split(' ').map(|word| word.replace('#', " ")).collect();
            let last = words.len() - 1;
            let mut qemu_io = Command::new("qemu-io");
            qemu_io.args(&words[..last]).arg(format!("{}{image}", words[last])).current_dir(folder);
            let output = qemu_io.output().expect("it starts");
            assert!(output.status.success(), "{output:?}");
            good(program(), folder, &format!("convert {SECRET} {OPEN}{image} -O raw read"));
            good("qemu-img", folder, &format!("convert {SECRET} {OPEN}{image} -O raw expected"));
            let [read, expected] = ["read", "expected"].map(|name| std::fs::read(folder.join(name)).expect("an image"));
            assert!(read == expected && read != data, "{image}: {algorithms}");
        }
        let same = format!("compare {SECRET} {OPEN}{mine} driver=luks,key-secret=s,file.filename={yours}");
        for program in [program(), Path::new("qemu-img")] {
            assert_eq!(run(program, folder, &same).status.code(), Some(1), "{algorithms}");
        }
        for image in [&mine, &yours] {
            std::fs::remove_file(folder.join(image)).expect("it is there");
        }
    }
}

#[test]
fn images_are_used_alike() {
    if is_missing("images_are_used_alike") {
        return;
    }
    let create = format!("qemu-img create -q -f luks {SECRET} -o key-secret=s,iter-time=10 a 1M");
    let beds = Beds::new(&[&create, "qemu-img create -q -f qcow2 q 2M"]);
    let two = format!("{SECRET} --object secret,id=w,data=wrong");
    for line in [
        "map OPENa",
        "map --output=json OPENa",
        "map OPENa,offset=1",
        "map --image-opts driver=luks,key-secret=x,file.filename=a",
        "map --image-opts driver=luks,key-secret=w,file.filename=a",
        "map --image-opts driver=luks,file.filename=a",
        "map -f luks a",
        "map a",
        "check OPENa",
        "check -f luks a",
        "snapshot -l OPENa",
        "snapshot -c s OPENa",
        "commit OPENa",
        "bitmap --add OPENa b",
        "rebase -b '' OPENa",
        "resize OPENa 2M",
        "map OPENa",
        "resize OPENa 1M",
        "resize --shrink OPENa 1M",
        "resize --preallocation=full OPENa 1500k",
        "resize --preallocation=metadata OPENa 3M",
        "resize OPENa +512",
        "resize OPENa 7E",
        "resize -f luks a 2M",
        "convert -n OPENa --target-image-opts driver=null-co,size=8M",
        "convert OPENa -O qcow2 b",
        "compare OPENa driver=qcow2,file.filename=b",
        "measure -O qcow2 OPENa",
        "measure -O luks -o key-secret=s OPENa",
        "amend -o state=inactive -f luks a",
        "amend -o size=1M OPENa",
        "amend -o cipher-alg=aes-128 OPENa",
        "amend -o nothing=1 OPENa",
        "amend -o state=bogus OPENa",
        "amend -o iter-time=10 OPENa",
        "amend -o help OPENa",
        "create -q -f qcow2 -b a -F luks c",
        "create -q -f qcow2 -b a -F luks c 1M",
    ] {
        let mut words = line.splitn(2, ' ');
        let (command, rest) = (words.next().expect("a command"), words.next().unwrap_or_default());
        // Few of qemu-img's commands know no objects.
        beds.both(&format!("{command} {two} {}", rest.replace("OPEN", OPEN)));
    }
}

/// The slots of the image in each folder that have a key.
fn slots(folder: &Path, image: &str) -> Vec<usize> {
    let json: Value =
        serde_json::from_str(&good("qemu-img", folder, &format!("info --output=json {image}"))).expect("JSON");
    let slots = json["format-specific"]["data"]["slots"].as_array().expect("slots").clone();
    slots.iter().enumerate().filter(|(_, slot)| slot["active"] == true).map(|(at, _)| at).collect()
}

#[test]
fn key_slots_are_changed_alike() {
    if is_missing("key_slots_are_changed_alike") {
        return;
    }
    let create = format!("qemu-img create -q -f luks {SECRET} -o key-secret=s,iter-time=10 a 1M");
    let prepare = [&create, &create.replace(" a ", " b "), &create.replace(" a ", " c ")];
    let beds = Beds::new(&prepare.map(String::as_str));
    let secrets = format!(
        "{SECRET} --object secret,id=n,data=new --object secret,id=m,data=more --object secret,id=w,data=wrong"
    );
    for (image, options) in [
        ("a", "state=active,new-secret=n,iter-time=10"),
        ("a", "state=active,new-secret=n,keyslot=5,iter-time=10"),
        ("a", "state=active,new-secret=m,keyslot=5,iter-time=10"),
        ("a --force", "state=active,new-secret=m,keyslot=5,iter-time=10"),
        ("a", "state=active,new-secret=m,keyslot=8"),
        ("a", "state=active,new-secret=m,keyslot=-1"),
        ("a", "state=active,new-secret=m,keyslot=x"),
        ("a", "state=active,new-secret=zz"),
        ("a", "state=active"),
        ("a", "state=active,keyslot=3"),
        ("a", "new-secret=n"),
        ("a", "state=inactive"),
        ("a", "state=inactive,keyslot=7"),
        ("a", "state=inactive,keyslot=8"),
        ("a", "state=inactive,old-secret=w"),
        ("a", "state=inactive,old-secret=zz"),
        ("a", "state=inactive,old-secret=n"),
        ("a", "state=inactive,keyslot=0,old-secret=w"),
        ("a", "state=active,new-secret=n,old-secret=w,iter-time=10"),
        ("a", "state=active,new-secret=n,old-secret=m,iter-time=0"),
        ("a", "state=inactive,keyslot=0,old-secret=s"),
        ("a", "state=active,new-secret=n"),
        ("b", "state=inactive,keyslot=0"),
        ("b", "state=inactive,old-secret=s"),
        ("b", "state=inactive,keyslot=0,iter-time=5"),
        ("b", "state=inactive,keyslot=0,new-secret=n"),
        ("b --force", "state=inactive,keyslot=0"),
        ("c", "state=active,new-secret=s,iter-time=10"),
        ("c", "state=inactive,old-secret=s"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c", "state=active,new-secret=n,iter-time=10"),
        ("c --force", "state=inactive,old-secret=s"),
    ] {
        let (name, force) = image.split_once(' ').unwrap_or((image, ""));
        beds.both(&format!("amend {secrets} {force} -o {options} {OPEN}{name}"));
        let [mine, yours] = beds.folders();
        assert_eq!(slots(mine, name), slots(yours, name), "{options}");
        // Whoever knows a password that is left opens it.
        for (id, at) in [("n", 1), ("m", 5)] {
            let open = format!("map {secrets} --image-opts driver=luks,key-secret={id},file.filename={name}");
            let [ours, theirs] = [mine, yours].map(|folder| run("qemu-img", folder, &open).status.code());
            assert_eq!(ours, theirs, "{id} {at} after {options}");
        }
    }
}

#[test]
fn a_detached_header_belongs_to_another_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::write(folder.join("data"), vec![0; 1 << 20]).expect("room");
    let create = format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10,detached-header=on h");
    good(program(), folder, &create);
    let image = "driver=luks,key-secret=s,file.filename=data,header.filename=h";
    std::fs::write(folder.join("plain"), crate::support::data(1 << 20)).expect("room");
    let fill = format!("convert {SECRET} -n -f raw plain --target-image-opts {image}");
    good(program(), folder, &fill);
    let compare = format!("compare {SECRET} --image-opts {image} driver=raw,file.filename=plain");
    good(program(), folder, &compare);
    let text = good(program(), folder, &format!("info {SECRET} --image-opts {image}"));
    assert!(text.contains("detached header: true") && text.contains("payload offset: 0"), "{text}");
    // A password is added to the header; the data stays as it is.
    let before = std::fs::read(folder.join("data")).expect("a file");
    let new = "--object secret,id=n,data=new";
    good(
        program(),
        folder,
        &format!("amend {SECRET} {new} -o state=active,new-secret=n,iter-time=10 --image-opts {image}"),
    );
    good(program(), folder, &format!("amend {SECRET} {new} -o state=inactive,keyslot=0 --image-opts {image}"));
    let image = image.replace("key-secret=s", "key-secret=n");
    let compare = format!("compare {new} --image-opts {image} driver=raw,file.filename=plain");
    good(program(), folder, &compare);
    assert!(std::fs::read(folder.join("data")).expect("a file") == before);
    assert_eq!(run(program(), folder, &compare.replace("data=new", "data=pw")).status.code(), Some(2));
    if !is_missing("a_detached_header_belongs_to_another_file") {
        good("qemu-img", folder, &compare);
        let info = format!("info {new} --image-opts {image}");
        assert_eq!(good(program(), folder, &info), good("qemu-img", folder, &info));
    }
}

/// A program that has an image open until it is told otherwise.
struct Holder(std::process::Child);

impl Holder {
    /// Returns when the image is open.
    fn new(folder: &Path, words: &str) -> Self {
        let mut qemu_io = Command::new("qemu-io");
        qemu_io.args(words.split_whitespace()).current_dir(folder).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = qemu_io.spawn().expect("qemu-io comes with qemu-img");
        child.stdin.as_mut().expect("a pipe").write_all(b"length\n").expect("it reads commands");
        let answer = BufReader::new(child.stdout.take().expect("a pipe")).lines().next();
        assert!(answer.is_some_and(|line| line.is_ok_and(|line| line.contains("MiB"))), "it is not open");
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It ends with its input.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

// Scenario: somebody else has the image open when its key slots are to be changed.
#[test]
fn perm_5_key_slots_of_an_image_in_use_stay_as_they_are() {
    if is_missing("perm_5_key_slots_of_an_image_in_use_stay_as_they_are") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    good(program(), folder, &format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10 a 1M"));
    for mode in ["", "-r"] {
        let before = std::fs::read(folder.join("a")).expect("an image");
        let holder = Holder::new(folder, &format!("{mode} {SECRET} {OPEN}a"));
        for options in
            ["state=active,new-secret=n,iter-time=10", "state=inactive,keyslot=0", "state=inactive,old-secret=s"]
        {
            let amend = format!("amend --force {SECRET} --object secret,id=n,data=new -o {options} {OPEN}a");
            let told = |program: &Path, name: &str| {
                let output = run(program, folder, &amend);
                assert_eq!(output.status.code(), Some(1), "{output:?}");
                String::from_utf8_lossy(&output.stderr).replace(name, "PROGRAM")
            };
            let ours = told(program(), "cairn-img");
            assert!(ours.contains("lock\nIs another process using the image [a]?"), "{ours}");
            assert_eq!(ours, told(Path::new("qemu-img"), "qemu-img"), "{mode} {options}");
        }
        drop(holder);
        assert!(std::fs::read(folder.join("a")).expect("an image") == before, "{mode}");
    }
    good(
        program(),
        folder,
        &format!("amend {SECRET} --object secret,id=n,data=new -o state=active,new-secret=n,iter-time=10 {OPEN}a"),
    );
}

// Scenario: the file may not be written. Nothing happens, and that is told.
#[test]
fn key_slots_of_a_read_only_file_stay_as_they_are() {
    if is_missing("key_slots_of_a_read_only_file_stay_as_they_are") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    good(program(), folder, &format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10 a 1M"));
    let before = std::fs::read(folder.join("a")).expect("an image");
    let amend = |more: &str| {
        let line = format!(
            "amend {SECRET} --object secret,id=n,data=new -o state=active,new-secret=n,iter-time=10 {OPEN}a{more}"
        );
        let told = |program: &Path, name: &str| {
            let output = run(program, folder, &line);
            (output.status.code(), nameless(&String::from_utf8_lossy(&output.stderr)).replace(name, "PROGRAM"))
        };
        let (ours, theirs) = (told(program(), "cairn-img"), told(Path::new("qemu-img"), "qemu-img"));
        // Ours says which node it is.
        assert_eq!(ours.1.replace("node '#block'", "node"), theirs.1, "{more}");
        assert!(ours.0 == Some(1) && theirs.0 == Some(1), "{ours:?}");
    };
    amend(",file.read-only=on");
    amend(",read-only=on,file.read-only=on");
    assert!(std::fs::read(folder.join("a")).expect("an image") == before);
}

// Scenario: the file system is full in the middle of a conversion, or of a change of key slots in a sparse header.
#[test]
fn full_file_systems_are_told_of() {
    let test = "full_file_systems_are_told_of";
    let mount = Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !mount.is_ok_and(|output| output.status.success()) {
        return skipped_because(test, "no mount namespace to be had");
    }
    if is_missing(test) {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    std::fs::create_dir(folder.join("fs")).expect("room");
    std::fs::write(folder.join("plain"), crate::support::data(1 << 20)).expect("room");
    let n = "--object secret,id=n,data=new";
    for (size, line, status) in [
        // Header and first slot fit, the data does not.
        ("256k", format!("convert {SECRET} -f raw -O luks -o key-secret=s,iter-time=10 plain fs/a"), 1),
        ("64k", format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10 fs/a 1M"), 1),
        ("64k", format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10,preallocation=full fs/a 1M"), 1),
        ("64k", format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10,preallocation=falloc fs/a 1M"), 1),
        ("300k", format!("create -q -f luks {SECRET} -o key-secret=s,iter-time=10 fs/a 1M"), 0),
    ] {
        let script = |name: &str| {
            format!("mount -t tmpfs -o size={size} none fs && {name} {line}; status=$?; ls fs; exit $status")
        };
        let told = |program: &Path, name: &str| {
            let mut shell = Command::new("unshare");
            let output = shell.args(["--mount", "sh", "-c", &script("$PROGRAM")]).env("PROGRAM", program);
            let output = output.current_dir(folder).output().expect("a shell");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(name, "PROGRAM");
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let (ours, theirs) = (told(program(), "cairn-img"), told(Path::new("qemu-img"), "qemu-img"));
        assert_eq!(ours.0, Some(status), "{line}: {ours:?}");
        assert_eq!(ours, theirs, "{line}");
    }
    // No room for a second slot's material: the first password goes on opening it, and the second one opens it when there is room.
    let script = format!(
        "set -e; mount -t tmpfs -o size=300k none fs
         $PROGRAM create -q -f luks {SECRET} -o key-secret=s,iter-time=10 fs/a 1M
         if $PROGRAM amend {SECRET} {n} -o state=active,new-secret=n,iter-time=10 {OPEN}fs/a; then exit 5; fi
         $PROGRAM convert {SECRET} {OPEN}fs/a -O raw out
         mount -o remount,size=10m fs
         $PROGRAM amend {SECRET} {n} -o state=active,new-secret=n,iter-time=10 {OPEN}fs/a
         $PROGRAM amend {SECRET} {n} -o state=inactive,keyslot=0 {OPEN}fs/a
         $PROGRAM convert {n} --image-opts driver=luks,key-secret=n,file.filename=fs/a -O raw out"
    );
    let mut shell = Command::new("unshare");
    let output = shell.args(["--mount", "sh", "-c", &script]).env("PROGRAM", program()).current_dir(folder).output();
    let output = output.expect("a shell");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && error.contains("No space left on device"), "{error}");
}

#[test]
fn what_only_this_program_refuses_is_named() {
    let refused = |options: &str, words: &str| {
        let line = format!("create -q {SECRET} -f luks -o key-secret=s,iter-time=10,{options} a.luks 1M");
        let outcome = ours(&crate::support::words(&line));
        assert!(outcome.status == Some(1) && outcome.stderr.contains(words), "{options}: {outcome:?}");
    };
    refused("hash-alg=md5", "Algorithm 'md5' for a hash is not supported");
    refused("cipher-alg=sm4", "Algorithm 'sm4' for a cipher is not supported");
    refused("cipher-alg=cast5-128", "Cipher 'cast5-128' has blocks that are too short for mode 'xts'");
    refused("iter-time=99999999999", "larger than 4294967295: Numerical result out of range");
    refused("iter-time=-1", "too large to scale: Numerical result out of range");
    let line = format!("create -q {SECRET} -f luks -o key-secret=s,iter-time=10,size=18446744073709551615 a.luks");
    let outcome = ours(&crate::support::words(&line));
    assert!(outcome.status == Some(1) && outcome.stderr.contains("file size is too large"), "{outcome:?}");
}
