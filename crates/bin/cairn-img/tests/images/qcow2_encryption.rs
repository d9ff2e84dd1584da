//! Encryption within qcow2 images: the same with each program, and each reads what the other wrote.

use crate::beds::{Beds, is_missing};
use crate::support::{data, program};
use std::path::Path;
use std::process::Command;

const SECRETS: &str = "--object secret,id=s,data=pw --object secret,id=n,data=new --object secret,id=w,data=wrong";
const OPEN: &str = "--image-opts driver=qcow2,encrypt.key-secret=s,file.filename=";
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
const OLD: &str = "encrypt.format=aes,encrypt.key-secret=s";

/// Each line with both programs, with what its capitals stand for.
fn both(beds: &Beds, lines: &[&str]) {
    for line in lines {
        let (command, rest) = line.split_once(' ').expect("a command and its words");
        let rest = rest.replace("OPEN", OPEN).replace("LUKS", LUKS).replace("OLD", OLD);
        let secrets = if rest.starts_with("-f qcow2") { "" } else { SECRETS };
        beds.both(&format!("{command} {secrets} {rest}"));
    }
}

#[test]
fn images_are_created_and_refused_alike() {
    if is_missing("images_are_created_and_refused_alike") {
        return;
    }
    let beds = Beds::new(&["qemu-img create -q -f qcow2 plain 1M"]);
    let lines = [
        "create -o LUKS -f qcow2 a 64M",
        "create -o encryption=on -f qcow2 b 64M",
        "create -o encryption=on,encrypt.key-secret=s -f qcow2 b 64M",
        "info -U b",
        "info --output=json b",
        "create -o encryption=on,LUKS -f qcow2 c 64M",
        "create -o encryption=off,OLD -f qcow2 c 64M",
        "create -o OLD,encrypt.iter-time=10 -f qcow2 d 64M",
        "create -o encrypt.format=foo,encrypt.key-secret=s -f qcow2 d 64M",
        "create -o encrypt.key-secret=s -f qcow2 d 64M",
        "create -o encrypt.format=luks -f qcow2 d 64M",
        "create -o encrypt.format=aes -f qcow2 d 64M",
        "create -o encrypt.format=luks,encrypt.key-secret=x -f qcow2 d 64M",
        "create -o LUKS,encrypt.cipher-alg=foo -f qcow2 d 64M",
        "create -o LUKS,encrypt.hash-alg=foo -f qcow2 d 64M",
        "create -o LUKS,encrypt.cipher-alg=foo,compat=xx -f qcow2 d 64M",
        "create -o LUKS,preallocation=xx,encrypt.cipher-alg=foo -f qcow2 d 64M",
        "create -o encrypt.format=luks,cluster_size=3 -f qcow2 d 64M",
        "create -o OLD -f qcow2 d -b a -F qcow2",
        "measure -O qcow2 -o LUKS --size 64M",
        "measure -O qcow2 -o LUKS,cluster_size=4k --size 1G",
        "measure -O qcow2 -o LUKS plain",
        "measure -O qcow2 -o encrypt.format=luks --size 64M",
        "measure -O qcow2 -o encrypt.format=luks,encrypt.key-secret=x --size 64M",
        "measure -O qcow2 -o OLD --size 64M",
        "map OPENa,encrypt.format=aes",
        "map OPENa,encrypt.format=luks",
        "map --output=json OPENa",
        "map OPENb",
        "map OPENb,encrypt.format=luks",
        "map --image-opts driver=qcow2,encrypt.key-secret=w,file.filename=a",
        "map --image-opts driver=qcow2,encrypt.key-secret=x,file.filename=a",
        "map --image-opts driver=qcow2,encrypt.key-secret=w,file.filename=b",
        "map --image-opts driver=qcow2,encrypt.format=luks,file.filename=a",
        "map OPENa,encrypt.foo=1",
        "map OPENplain",
        "map OPENplain,encrypt.format=luks",
        "map a",
        "map -f qcow2 b",
        "convert -O raw a r",
        "convert OPENa -O raw r",
        "convert -O qcow2 -c -o LUKS r e",
        "convert -O qcow2 -c -o LUKS,preallocation=full r e",
        "convert -O qcow2 -o encrypt.format=luks r e",
        "convert -O qcow2 -o OLD r e",
        "dd -O qcow2 if=a of=f",
        "snapshot -l a",
        "snapshot -c x OPENa",
        "snapshot -l OPENa",
        "resize a 130M",
        "resize OPENa 130M",
        "check OPENa",
    ];
    both(&beds, &lines);
    // What is random, or the hashing of a password that takes as long as it takes, is left out.
    for image in ["a", "b", "c", "d"] {
        let told = |program: &Path, folder: &Path| {
            let output = Command::new(program).args(["info", image]).current_dir(folder).output().expect("it starts");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let is_chance = |line: &&str| ["uuid", "iters", "disk size", "1  "].iter().any(|word| line.contains(word));
            text.lines().filter(|line| !is_chance(line)).map(|line| line.to_owned() + "\n").collect::<String>()
        };
        let [mine, yours] = beds.folders();
        let text = told(program(), mine);
        assert_eq!(text, told(Path::new("qemu-img"), mine), "{image}");
        assert_eq!(text, told(program(), yours), "{image}");
        assert_eq!(text, told(Path::new("qemu-img"), yours), "{image}");
    }
}

#[test]
fn key_slots_are_changed_alike() {
    if is_missing("key_slots_are_changed_alike") {
        return;
    }
    let create = format!("qemu-img create -q {SECRETS} -o {LUKS} -f qcow2 a 64M");
    let old = format!("qemu-img create -q {SECRETS} -o {OLD} -f qcow2 old 64M");
    let beds = Beds::new(&[&create, &old, "qemu-img create -q -f qcow2 plain 1M"]);
    let lines = [
        "amend -o encrypt.format=luks OPENa",
        "amend -o encrypt.cipher-alg=aes-128 OPENa",
        "amend -o encrypt.state=bogus OPENa",
        "amend -o encrypt.new-secret=n OPENa",
        "amend -o encrypt.state=active OPENa",
        "amend -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10,compat=0.10 OPENa",
        "map --image-opts driver=qcow2,encrypt.key-secret=n,file.filename=a",
        "amend -o encrypt.state=active,encrypt.keyslot=8,encrypt.new-secret=s OPENa",
        "amend -o encrypt.state=inactive,encrypt.keyslot=1 OPENa",
        "map --image-opts driver=qcow2,encrypt.key-secret=n,file.filename=a",
        "amend -o encrypt.state=inactive,encrypt.keyslot=0 OPENa",
        "amend -o encrypt.state=active,encrypt.new-secret=n,encrypt.iter-time=10,size=128M OPENa",
        "amend -o encrypt.state=inactive,encrypt.old-secret=s OPENa",
        "map --image-opts driver=qcow2,encrypt.key-secret=s,file.filename=a",
        "map --image-opts driver=qcow2,encrypt.key-secret=n,file.filename=a",
        "amend -o encrypt.state=active,encrypt.new-secret=n OPENold",
        "amend -o encrypt.state=active,encrypt.new-secret=n plain",
        "amend -o encryption=off OPENa",
        "check --image-opts driver=qcow2,encrypt.key-secret=n,file.filename=a",
    ];
    both(&beds, &lines);
}

fn run(program: impl AsRef<std::ffi::OsStr>, folder: &Path, line: &str) {
    let line = line.replace("LUKS", LUKS).replace("OLD", OLD);
    let words: Vec<_> = line.split(' ').map(|word| word.replace('#', " ")).collect();
    let output = Command::new(program).args(words).current_dir(folder).output().expect("it starts");
    assert!(output.status.success(), "{line}: {output:?}");
}

/// What the program reads from an image whose options these are.
fn content(program: impl AsRef<std::ffi::OsStr>, folder: &Path, image: &str) -> Vec<u8> {
    run(program, folder, &format!("convert {SECRETS} --image-opts {image} -O raw content"));
    std::fs::read(folder.join("content")).expect("an image")
}

/// Both programs read the same, and qemu-img finds nothing wrong.
fn agree(folder: &Path, image: &str) -> Vec<u8> {
    let ours = content(program(), folder, image);
    assert!(ours == content("qemu-img", folder, image), "{image}");
    run("qemu-img", folder, &format!("check -q {SECRETS} --image-opts {image}"));
    ours
}

#[test]
fn what_one_writes_the_other_reads() {
    if is_missing("what_one_writes_the_other_reads") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let plain = data(3 << 20);
    std::fs::write(folder.join("plain"), &plain).expect("room");
    for options in ["LUKS", "OLD", "LUKS,extended_l2=on,cluster_size=128k", "LUKS,compat=0.10,cluster_size=4k"] {
        for (maker, name) in [(program(), "mine"), (Path::new("qemu-img"), "yours")] {
            let image = format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}");
            run(maker, folder, &format!("convert {SECRETS} -f raw -O qcow2 -o {options} plain {name}"));
            assert!(agree(folder, &image) == plain, "{options}");
            // An overlay that is encrypted otherwise: parts of clusters are copied up, and encrypted anew.
            let over = if options == "OLD" { "LUKS" } else { "OLD" };
            let below = format!("-b {name} -F qcow2");
            run(maker, folder, &format!("create -q {SECRETS} -f qcow2 -o {over} {below} over"));
            let both = "driver=qcow2,encrypt.key-secret=s,file.filename=over,backing.driver=qcow2,\
                        backing.encrypt.key-secret=s,backing.file.filename="
                .to_owned()
                + name;
            let write = format!("{SECRETS} --image-opts {both} -c write#-P#9#70000#5000 -c write#-z#1M#100k");
            run("qemu-io", folder, &write);
            let mut expected = plain.clone();
            expected[70000..75000].fill(9);
            expected[1 << 20..(1 << 20) + (100 << 10)].fill(0);
            assert!(agree(folder, &both) == expected, "{options}");
            // A snapshot shares clusters; what is written after it lies elsewhere.
            run(maker, folder, &format!("snapshot {SECRETS} -c one --image-opts {both}"));
            run("qemu-io", folder, &format!("{SECRETS} --image-opts {both} -c write#-P#5#65536#100000"));
            let mut changed = expected.clone();
            changed[65536..165_536].fill(5);
            assert!(agree(folder, &both) == changed, "{options}");
            run(program(), folder, &format!("snapshot {SECRETS} -a one --image-opts {both}"));
            assert!(agree(folder, &both) == expected, "{options}");
            // The shorter form: the image says what it stands on, the options what opens that.
            let short = "driver=qcow2,encrypt.key-secret=s,file.filename=over,backing.encrypt.key-secret=s";
            assert!(agree(folder, short) == expected, "{options}");
            run(program(), folder, &format!("commit -q {SECRETS} --image-opts {short}"));
            assert!(agree(folder, &image) == expected, "{options}");
            run("qemu-io", folder, &format!("{SECRETS} --image-opts {short} -c write#-P#6#1M#10k"));
            expected[1 << 20..(1 << 20) + (10 << 10)].fill(6);
            run("qemu-img", folder, &format!("commit -q {SECRETS} --image-opts {short}"));
            assert!(agree(folder, &image) == expected, "{options}");
            for file in [name, "over"] {
                std::fs::remove_file(folder.join(file)).expect("it is there");
            }
        }
    }
}

/// Nothing of what was written can be found in the files.
#[test]
fn nothing_readable_is_stored() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let words: Vec<u8> = b"what nobody is to read ".iter().copied().cycle().take(1 << 20).collect();
    std::fs::write(folder.join("plain"), &words).expect("room");
    let luks = LUKS.replace("encrypt.", "").replace("format=luks,", "");
    for (format, options) in [("qcow2", LUKS), ("qcow2", OLD), ("luks", luks.as_str())] {
        run(program(), folder, &format!("convert {SECRETS} -f raw -O {format} -o {options} plain image"));
        let stored = std::fs::read(folder.join("image")).expect("an image");
        assert!(!stored.windows(16).any(|window| window == &words[..16]), "{format} {options}");
    }
}
