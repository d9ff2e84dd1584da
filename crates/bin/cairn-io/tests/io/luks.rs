//! Encrypted images: the same scripts with both programs on copies of one image. What they print is the same, and so is each byte of the images, for the key is.

use crate::support::{Ran, ours, run, sorted_reports, theirs, without_times};
use std::path::Path;
use std::process::Command;

/// One image with some data; one that ends within a sector; one with a header in another file; qcow2 images of both methods.
const MADE: [&str; 8] = [
    "create -q -f luks SECRET -o key-secret=s,iter-time=10 a 1M",
    "convert SECRET -n -f raw noise --target-image-opts driver=luks,key-secret=s,file.filename=a",
    "create -q -f luks SECRET -o key-secret=s,iter-time=10,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256 odd 1000K",
    "resize -q -f raw odd +700",
    "create -q -f luks SECRET -o key-secret=s,iter-time=10 data 256K",
    "convert SECRET -n -f raw noise --target-image-opts driver=luks,key-secret=s,file.filename=data",
    "convert SECRET -f raw -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 noise q",
    "convert SECRET -f raw -O qcow2 -o encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k noise old",
];

/// Scripts, their commands with ` ;; ` between them. A tilde in front: what asynchronous requests report may come in any order.
const SCRIPTS: &str = "
read 0 4k
read -v 0 64
read -v 511 3
read -v 65530 20
read -P 1 0 512
read 1M 1
read 1023k 2k
read 1048575 1
read 0 1M
readv -v 700 1 20 3
write -P 7 0 4k ;; read -P 7 0 4k ;; read -v 4090 12
write -P 7 100 1 ;; read -v 96 16
write -P 7 511 2 ;; read -v 500 32
write -P 7 1000 3000 ;; read -P 7 1000 3000 ;; read -v 990 10
write -P 7 0 1M ;; read -P 7 0 1M
write -P 7 33k 300k ;; read -P 7 33k 300k
write -P 7 1048570 6 ;; read -v 1048560 16
write -P 7 1048570 7
write -P 7 1M 512
write -f -P 7 0 4k
write -s pat -P 1 0 4k
writev -P 9 0 512 1k 3 ;; read -v 1530 12
writev -P 9 100k 64k 64k ;; read -P 9 100k 128k
write -z 0 4k ;; read -P 0 0 4k
write -z 100 1 ;; read -v 96 16
write -z 1000 70000 ;; read -P 0 1000 70000
write -z 0 1M ;; read -P 0 0 1M
write -z -u 64k 128k ;; read -P 0 64k 128k
write -z -u 1 1
write -z -n 0 64k
write -z -u -n 0 64k
write -z -f 0 64k
write -c 0 64k
discard 0 64k ;; read -v 0 16
discard 0 1M ;; read -v 65530 16
discard 1 1 ;; discard 1M 512
discard -q 0 4k
flush
write -q -P 3 0 4k ;; flush ;; flush
truncate 2M ;; length ;; read -v 0 16
truncate 512k ;; length ;; read 512k 1
truncate 0 ;; length ;; read 0 1
truncate 1000 ;; length
truncate 1024 ;; length ;; write -P 5 0 1024 ;; read -v 1000 24
truncate -m full 1100k ;; length
truncate -m falloc 1100k ;; length
truncate -m metadata 1100k
truncate 8E
truncate 2M ;; write -P 1 1M 1M ;; read -P 1 1M 1M ;; length
length
info
map
alloc 0
alloc 0 1M
alloc 1k 4k
alloc 1M 1
~aio_read 0 4k ;; aio_flush
~aio_read -P 1 0 4k ;; aio_flush
~aio_write -P 5 0 4k ;; aio_flush ;; read -P 5 0 4k
~aio_write -P 5 0 64k ;; aio_write -P 6 64k 128k ;; aio_write -P 7 300k 1k ;; aio_flush ;; read -P 5 0 64k ;; read -P 6 64k 128k ;; read -P 7 300k 1k
~aio_write -P 5 100 1000 ;; aio_flush ;; read -v 96 8
~aio_write -z 0 64k ;; aio_flush ;; read -P 0 0 64k
~aio_write -z -u 0 64k ;; aio_flush ;; read -P 0 0 64k
~aio_read 0 512k ;; aio_read 512k 512k ;; aio_flush
~aio_read 1M 1 ;; aio_flush
reopen -r ;; write 0 512 ;; read -v 0 16
reopen -r ;; reopen -w ;; write -P 4 0 512 ;; read -P 4 0 512
close ;; length
break read_aio x ;; read 0 512
";

/// Of the two other images.
const FEW: &str = "
read 0 4k
read -v 255k 16
write -P 7 0 100k ;; read -P 7 0 100k
write -P 7 255000 1000 ;; read -v 254990 16
write -z 1000 20000 ;; read -P 0 1000 20000
length
map
alloc 0 100k
truncate 300k ;; length
";

/// Of qcow2 images, whose clusters are there.
const WITHIN: &str = "
info
length
map
alloc 0 256k
read 0 4k
read -v 100 40
read -v 65530 20
write -P 7 0 4k ;; read -P 7 0 4k
write -P 7 1000 3000 ;; read -P 7 1000 3000 ;; read -v 990 20
write -P 7 10k 200k ;; read -P 7 10k 200k
write -P 7 511 2 ;; read -v 500 32
~aio_write -P 5 0 64k ;; aio_write -P 6 64k 128k ;; aio_flush ;; read -P 5 0 64k ;; read -P 6 64k 128k
";

fn bed(dir: &Path) {
    let mut state = 7u32;
    let noise = (0..1 << 20).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    });
    std::fs::write(dir.join("noise"), noise.take(256 << 10).collect::<Vec<u8>>()).expect("room");
    for line in MADE {
        let line = line.replace("SECRET", "--object secret,id=s,data=pw");
        let made = Command::new("qemu-img").args(line.split(' ')).current_dir(dir).output().expect("it starts");
        assert!(made.status.success(), "{line}: {made:?}");
    }
    // The header as it would be backed up; that in the image is no longer one.
    let mut bytes = std::fs::read(dir.join("data")).expect("an image");
    std::fs::write(dir.join("h"), &bytes[..bytes.len() - (256 << 10)]).expect("room");
    bytes[..4096].fill(0);
    std::fs::write(dir.join("data"), bytes).expect("room");
}

fn check(image: &str, scripts: &str) {
    let Some(their_program) = theirs() else { return };
    let made = tempfile::tempdir().expect("a directory");
    bed(made.path());
    let named = image.split(',').filter_map(|option| option.split_once("filename="));
    let names: Vec<_> = named.map(|(_, name)| name).collect();
    let mut different = Vec::new();
    for line in scripts.lines().filter(|line| !line.is_empty()) {
        let script = line.trim_start_matches('~');
        let ran = |program: &Path| {
            let dir = tempfile::tempdir().expect("a directory");
            for name in &names {
                std::fs::copy(made.path().join(name), dir.path().join(name)).expect("room");
            }
            std::fs::write(dir.path().join("pat"), "abc").expect("room");
            let options = match image.starts_with("driver=") {
                true => image.to_owned(),
                false => format!("driver=luks,key-secret=s,{image}"),
            };
            let mut args = vec!["--object", "secret,id=s,data=pw", "--image-opts"];
            args.extend(script.split(" ;; ").flat_map(|command| ["-c", command]));
            args.push(&options);
            let ran = run(program, dir.path(), &args, b"");
            let stdout = without_times(&ran.stdout);
            let stdout = if line.starts_with('~') { sorted_reports(&stdout) } else { stdout };
            let files = names.iter().map(|name| std::fs::read(dir.path().join(name)).expect("a file"));
            (Ran { stdout, ..ran }, files.collect::<Vec<_>>())
        };
        let (ours, theirs) = (ran(&ours()), ran(&their_program));
        if ours.0 != theirs.0 {
            different.push(format!("{line}\n--- ours\n{:#?}\n--- theirs\n{:#?}", ours.0, theirs.0));
        } else if ours.1 != theirs.1 {
            different.push(format!("{line}: other bytes"));
        }
    }
    assert!(different.is_empty(), "{} scripts differ:\n{}", different.len(), different.join("\n"));
}

#[test]
fn encrypted_images_are_read_and_written_alike() {
    check("file.filename=a", SCRIPTS);
}

#[test]
fn encrypted_qcow2_images_are_read_and_written_alike() {
    for name in ["q", "old"] {
        check(&format!("driver=qcow2,encrypt.key-secret=s,file.filename={name}"), WITHIN);
    }
}

#[test]
fn images_that_end_within_a_sector_and_detached_headers_are_used_alike() {
    check("file.filename=odd", FEW);
    check("file.filename=odd", "info");
    // Of that header, theirs says that it is not detached, for the data does not begin at zero (docs/differences.md).
    check("file.filename=data,header.filename=h", FEW);
}

// Scenario: key slots are changed by another program while this one has the image open.
#[test]
fn perm_5_key_slots_of_an_image_that_is_open_stay_as_they_are() {
    if theirs().is_none() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    bed(dir.path());
    let options = "driver=luks,key-secret=s,file.filename=a";
    let amend = || {
        let line = "amend --object secret,id=s,data=pw --object secret,id=n,data=new -o state=active,new-secret=n,iter-time=10";
        let mut amend = Command::new("qemu-img");
        amend.args(line.split(' ')).args(["--image-opts", options]);
        amend.current_dir(dir.path()).output().expect("it starts")
    };
    for mode in [&[][..], &["-r"]] {
        let before = std::fs::read(dir.path().join("a")).expect("an image");
        let args = [mode, &["--object", "secret,id=s,data=pw", "--image-opts", options]].concat();
        let holding = crate::locking::Holder::new(&ours(), dir.path(), &args);
        let output = amend();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("lock\nIs another process using the image [a]?"), "{error}");
        holding.quit();
        assert!(std::fs::read(dir.path().join("a")).expect("an image") == before);
    }
    assert!(amend().status.success());
}
