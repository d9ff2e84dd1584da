//! The other program that knows encrypted images, on whole files: what it formats and encrypts is opened and read here, and what is written here it decrypts to the same bytes;
//! both agree on key slots after each change. It works on plain files, without a mapping; for that, its reencryption of whole files stands in.

use crate::support::{data, program, skipped_because};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Bytes of the disks' data.
const LEN: usize = 1 << 20;
const QUICK: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
const ARGON2: &str = "--pbkdf argon2id --pbkdf-force-iterations 4 --pbkdf-parallel 1 --pbkdf-memory 1024";
const PASSWORDS: [&str; 3] = ["moon", "noon", "soon"];

/// A folder with files that have passwords, and what is encrypted.
struct Bed {
    dir: TempDir,
    cryptsetup: PathBuf,
    plain: Vec<u8>,
}

impl Bed {
    /// `None` if there is no cryptsetup.
    fn new(test: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let Some(cryptsetup) = folders.map(|folder| folder.join("cryptsetup")).find(|program| program.is_file()) else {
            skipped_because(test, "cryptsetup is not installed");
            return None;
        };
        let bed = Self { dir: tempfile::tempdir().expect("a folder"), cryptsetup, plain: data(LEN) };
        for password in PASSWORDS {
            std::fs::write(bed.path(password), password).expect("room");
        }
        std::fs::write(bed.path("plain"), &bed.plain).expect("room");
        Some(bed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, program: &Path, words: &str) -> Output {
        let mut command = Command::new(program);
        command.args(words.split_whitespace()).current_dir(self.dir.path()).env("LC_ALL", "C");
        command.output().expect("it starts")
    }

    /// What cryptsetup does. `None` if it may not, which is root's alone.
    fn try_cryptsetup(&self, test: &str, words: &str) -> Option<String> {
        let output = self.run(&self.cryptsetup, words);
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("Failed to acquire reencryption lock") {
            skipped_because(test, "cryptsetup may not take its lock, which is root's");
            return None;
        }
        assert!(output.status.success(), "{words}: {error}");
        assert!(!error.contains("WARNING"), "{words}: {error}");
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn cryptsetup(&self, words: &str) -> String {
        self.try_cryptsetup("", words).expect("it needs no lock")
    }

    /// What cairn-img does with the passwords as secrets of their own names; `IMAGE` before an image is what opens it with the first one.
    fn img(&self, words: &str) -> Output {
        let (command, rest) = words.split_once(' ').expect("a command and words");
        let secrets: String = PASSWORDS.iter().map(|word| format!("--object secret,id={word},data={word} ")).collect();
        let rest = rest.replace("IMAGE", "driver=luks,key-secret=moon,file.filename=");
        self.run(program(), &format!("{command} {secrets}{rest}"))
    }

    fn good(&self, words: &str) -> String {
        let output = self.img(words);
        assert!(output.status.success(), "{words}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What cairn-img says when it refuses.
    fn refused(&self, words: &str) -> String {
        let output = self.img(words);
        assert_eq!(output.status.code(), Some(1), "{words}: {output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A file of that many zeroes.
    fn file(&self, name: &str, mib: u64) {
        std::fs::File::create(self.path(name)).and_then(|file| file.set_len(mib << 20)).expect("room");
    }

    fn copy(&self, from: &str, to: &str) {
        std::fs::copy(self.path(from), self.path(to)).expect("room");
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).expect("a file")
    }

    /// Whether a file begins with what was to be encrypted.
    fn is_plain(&self, name: &str) -> bool {
        self.bytes(name).starts_with(&self.plain)
    }

    /// What the slots of a file's header open to, as cryptsetup finds out by trying them.
    fn slots(&self, file: &str) -> Vec<(u32, &'static str)> {
        let dump = self.cryptsetup(&format!("luksDump {file}"));
        let enabled = dump.lines().filter_map(|line| {
            let of_luks1 = line.strip_prefix("Key Slot ").and_then(|rest| rest.strip_suffix(": ENABLED"));
            of_luks1.or_else(|| line.strip_suffix(": luks2"))?.trim().parse().ok()
        });
        let tried = enabled.flat_map(|slot| PASSWORDS.map(|password| (slot, password)));
        let opens = |slot: &(u32, &str)| {
            let words = format!("luksOpen --test-passphrase --key-file {} --key-slot {} {file}", slot.1, slot.0);
            self.run(&self.cryptsetup, &words).status.success()
        };
        tried.filter(opens).collect()
    }
}

/// Let cryptsetup decrypt a file of LUKS2 where it lies, with the header in another one or, to be moved there, in its beginning.
fn decrypt(bed: &Bed, test: &str, file: &str, header: &str) -> Option<()> {
    let words = format!("reencrypt -q --decrypt --force-offline-reencrypt --key-file moon --header {header} {file}");
    bed.try_cryptsetup(test, &words).map(drop)
}

#[test]
fn what_is_written_to_its_images_it_decrypts() {
    let test = "what_is_written_to_its_images_it_decrypts";
    let Some(bed) = Bed::new(test) else { return };
    for (at, options) in [
        format!("--type luks2 {QUICK} --sector-size 512"),
        format!("--type luks2 {ARGON2} --sector-size 4096"),
        format!("--type luks2 {QUICK} --sector-size 4096 -s 256"),
        format!("--type luks2 {QUICK} --sector-size 512 -c aes-cbc-essiv:sha256 -s 256"),
        format!("--type luks2 {QUICK} --sector-size 4096 -c aes-cbc-essiv:sha256 -s 256"),
        "--type luks1 --pbkdf-force-iterations 1000".to_owned(),
        "--type luks1 --pbkdf-force-iterations 1000 -c aes-xts-plain64 -s 256".to_owned(),
        "--type luks1 --pbkdf-force-iterations 1000 -c aes-cbc-essiv:sha256 -s 256".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let is_old = options.contains("luks1");
        let (file, header) = (format!("a{at}"), format!("h{at}"));
        bed.file(&file, if is_old { 4 } else { 18 });
        bed.cryptsetup(&format!("luksFormat -q {options} {file} moon"));
        bed.good(&format!("convert -n -f raw plain --target-image-opts IMAGE{file}"));
        assert!(bed.good(&format!("convert --image-opts IMAGE{file} -O raw out")).is_empty() && bed.is_plain("out"));
        if is_old {
            // It does not decrypt these without a mapping; with the other header the data is the same.
            bed.cryptsetup(&format!("convert -q --type luks2 {file}"));
            bed.good(&format!("convert --image-opts IMAGE{file} -O raw out"));
            assert!(bed.is_plain("out"), "{options}");
        }
        let Some(()) = decrypt(&bed, test, &file, &header) else { return };
        assert!(bed.is_plain(&file), "{options}");
        std::fs::remove_file(bed.path(&file)).expect("it is there");
    }
}

#[test]
fn what_it_encrypts_is_read() {
    let test = "what_it_encrypts_is_read";
    let Some(bed) = Bed::new(test) else { return };
    for (cost, options) in [
        (QUICK, "--sector-size 512"),
        (QUICK, "--sector-size 512 -c aes-cbc-essiv:sha256 -s 256"),
        (ARGON2, "--sector-size 4096"),
        (QUICK, "--sector-size 4096 -s 256"),
    ] {
        let mut bytes = bed.plain.clone();
        bytes.resize(17 << 20, 0);
        std::fs::write(bed.path("a"), bytes).expect("room");
        let words = "reencrypt -q --encrypt --type luks2 --reduce-device-size 16M --key-file moon";
        let Some(_) = bed.try_cryptsetup(test, &format!("{words} {cost} {options} a")) else { return };
        assert!(!bed.is_plain("a"));
        bed.good("convert --image-opts IMAGEa -O raw out");
        assert!(bed.is_plain("out"), "{options}");
        // The same with LUKS1's header before it.
        if cost == QUICK && options.contains("512") {
            bed.cryptsetup("convert -q --type luks1 a");
            bed.good("convert --image-opts IMAGEa -O raw out");
            assert!(bed.is_plain("out"), "{options}");
        }
    }
}

#[test]
fn headers_may_be_detached() {
    let test = "headers_may_be_detached";
    let Some(bed) = Bed::new(test) else { return };
    let image = |data: &str| format!("IMAGE{data},header.filename=h");
    // Encrypted there, read here, of both versions.
    bed.copy("plain", "data");
    let words = "reencrypt -q --encrypt --type luks2 --sector-size 512 --key-file moon --header h data";
    let Some(_) = bed.try_cryptsetup(test, &format!("{words} {QUICK}")) else { return };
    for version in [2, 1] {
        if version == 1 {
            bed.cryptsetup("convert -q --type luks1 h");
        }
        bed.good(&format!("convert --image-opts {} -O raw out", image("data")));
        assert!(bed.bytes("out") == bed.plain, "LUKS{version}");
        // A password more, in a header that is no longer than it has to be.
        bed.good(&format!(
            "amend -o state=active,new-secret=noon,iter-time=10,keyslot=1 --image-opts {}",
            image("data")
        ));
        assert_eq!(bed.slots("h"), [(0, "moon"), (1, "noon")]);
        bed.good(&format!("amend -o state=inactive,keyslot=1 --image-opts {}", image("data")));
        assert_eq!(bed.slots("h"), [(0, "moon")]);
    }
    // Written here, decrypted there.
    bed.cryptsetup("convert -q --type luks2 h");
    std::fs::write(bed.path("data"), vec![0; LEN]).expect("room");
    bed.good(&format!("convert -n -f raw plain --target-image-opts {}", image("data")));
    let Some(()) = decrypt(&bed, test, "data", "h") else { return };
    assert!(bed.bytes("data") == bed.plain);
    // Made here with a header of its own.
    bed.good(
        "create -q -f luks -o key-secret=moon,iter-time=10,detached-header=on,cipher-mode=cbc,ivgen-alg=plain64 h",
    );
    std::fs::write(bed.path("data"), vec![0; LEN]).expect("room");
    bed.good(&format!("convert -n -f raw plain --target-image-opts {}", image("data")));
    assert_eq!(bed.slots("h"), [(0, "moon")]);
    assert!(bed.cryptsetup("luksDump h").contains("cbc-plain64"));
}

#[test]
fn what_is_created_here_it_opens_and_decrypts() {
    let test = "what_is_created_here_it_opens_and_decrypts";
    let Some(bed) = Bed::new(test) else { return };
    for (options, cipher, size) in [
        ("", "aes-xts-plain64", 512),
        ("cipher-alg=aes-128,", "aes-xts-plain64", 256),
        ("cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512,", "aes-cbc-essiv:sha256", 256),
    ] {
        bed.good(&format!("create -q -f luks -o key-secret=moon,{options}iter-time=10 a 1M"));
        bed.good("convert -n -f raw plain --target-image-opts IMAGEa");
        let dump = bed.cryptsetup("luksDump a");
        let (name, mode) = cipher.split_once('-').expect("a mode");
        assert!(dump.contains(&format!("Cipher name:   \t{name}\nCipher mode:   \t{mode}\n")), "{dump}");
        let info = bed.good("info a");
        let uuid = info.lines().find_map(|line| line.trim().strip_prefix("uuid: ")).expect("a name");
        assert!(dump.contains(uuid) && dump.contains(&format!("MK bits:       \t{size}\n")), "{dump}");
        assert_eq!(bed.slots("a"), [(0, "moon")]);
        // It decrypts no LUKS1 without a mapping: the key that it finds is given to a header that it makes for the data alone.
        bed.cryptsetup("luksDump -q --dump-volume-key --volume-key-file key --key-file moon a");
        let offset = dump.lines().find_map(|line| line.strip_prefix("Payload offset:")).expect("an offset");
        let offset: usize = offset.trim().parse().expect("a number");
        std::fs::write(bed.path("data"), &bed.bytes("a")[offset * 512..]).expect("room");
        let words = format!("luksFormat -q --type luks2 {QUICK} --sector-size 512 -c {cipher} -s {size}");
        bed.cryptsetup(&format!("{words} --volume-key-file key --header h data moon"));
        let Some(()) = decrypt(&bed, test, "data", "h") else { return };
        assert!(bed.bytes("data") == bed.plain, "{options}");
        for name in ["a", "h", "key"] {
            std::fs::remove_file(bed.path(name)).expect("it is there");
        }
    }
}

#[test]
fn both_agree_on_key_slots_after_each_change() {
    let Some(bed) = Bed::new("both_agree_on_key_slots_after_each_change") else { return };
    let luks1 = "luksFormat -q --type luks1 --pbkdf-force-iterations 1000 a moon".to_owned();
    for format in [
        luks1,
        format!("luksFormat -q --type luks2 {QUICK} a moon"),
        format!("luksFormat -q --type luks2 {ARGON2} a moon"),
    ] {
        bed.file("a", 17);
        bed.cryptsetup(&format);
        bed.good("convert -n -f raw plain --target-image-opts IMAGEa");
        let amend = |options: &str| bed.good(&format!("amend {options} --image-opts IMAGEa"));
        let (moon, noon, soon) = ("moon", "noon", "soon");
        amend("-o state=active,new-secret=noon,iter-time=10");
        assert_eq!(bed.slots("a"), [(0, moon), (1, noon)], "{format}");
        amend("-o state=active,new-secret=noon,keyslot=5,iter-time=10");
        assert_eq!(bed.slots("a"), [(0, moon), (1, noon), (5, noon)], "{format}");
        let error = bed.refused("amend -o state=active,new-secret=soon,keyslot=5,iter-time=10 --image-opts IMAGEa");
        assert!(error.contains("Refusing to overwrite active keyslot 5"), "{error}");
        amend("--force -o state=active,new-secret=soon,keyslot=5,iter-time=10");
        assert_eq!(bed.slots("a"), [(0, moon), (1, noon), (5, soon)], "{format}");
        amend("-o state=inactive,old-secret=noon");
        assert_eq!(bed.slots("a"), [(0, moon), (5, soon)], "{format}");
        // What it changes is seen here, what it added is erased here.
        bed.cryptsetup(&format!("luksAddKey -q {QUICK} --key-file moon a noon"));
        bed.cryptsetup("luksKillSlot -q --key-file moon a 5");
        assert_eq!(bed.slots("a"), [(0, moon), (1, noon)], "{format}");
        amend("-o state=inactive,keyslot=1");
        // The only one, replaced.
        amend("--force -o state=active,new-secret=soon,keyslot=0,iter-time=10");
        assert_eq!(bed.slots("a"), [(0, soon)], "{format}");
        let image = "driver=luks,key-secret=soon,file.filename=a";
        bed.good(&format!("convert --image-opts {image} -O raw out"));
        assert!(bed.is_plain("out"), "{format}");
        let error = bed.refused("convert --image-opts IMAGEa -O raw out");
        assert!(error.contains("Invalid password, cannot unlock any keyslot"), "{error}");
        // Both copies are as they should be, which it says when it writes.
        bed.cryptsetup(&format!("luksAddKey -q {QUICK} --key-file soon a moon"));
        bed.good(&format!("amend --force -o state=inactive,keyslot=0 --image-opts {image}"));
        assert_eq!(bed.slots("a"), [(1, moon)], "{format}");
    }
}

#[test]
fn luks2_is_told_of() {
    let Some(bed) = Bed::new("luks2_is_told_of") else { return };
    bed.file("a", 17);
    let uuid = "b9cdd2fd-9c66-4ab2-a5c4-64c4ff2c11f8";
    bed.cryptsetup(&format!("luksFormat -q --type luks2 {ARGON2} --uuid {uuid} --sector-size 4096 a moon"));
    bed.cryptsetup(&format!("luksAddKey -q {QUICK} --new-key-slot 2 --key-file moon a noon"));
    let text = bed.good("info -f luks a");
    let iterations = text.lines().find_map(|line| line.trim().strip_prefix("master key iters: ")).expect("a line");
    let from = text.find("Format specific").expect("it is there");
    let upto = text.find("Child node").expect("it is there");
    let expected = format!(
        "Format specific information:
    ivgen alg: plain64
    detached header: false
    hash alg: sha256
    cipher alg: aes-256
    uuid: {uuid}
    cipher mode: xts
    slots:
        [0]:
            active: true
            iters: 4
            key offset: 32768
            stripes: 4000
            kdf: argon2id
            memory: 1024
        [1]:
            active: false
        [2]:
            active: true
            iters: 1000
            key offset: 290816
            stripes: 4000
            kdf: pbkdf2
    payload offset: 16777216
    master key iters: {iterations}
    version: 2
    sector size: 4096
"
    );
    assert_eq!(text[from..upto], expected);
    assert!(text.starts_with("image: a\nfile format: luks\nvirtual size: 1 MiB (1048576 bytes)\n"), "{text}");
    assert!(text.contains("encrypted: yes\n"));
    let json: serde_json::Value = serde_json::from_str(&bed.good("info --output=json a")).expect("JSON");
    assert_eq!(
        (&json["format"], &json["encrypted"], &json["virtual-size"]),
        (&"luks".into(), &true.into(), &LEN.into())
    );
    let told = &json["format-specific"]["data"];
    let slot = serde_json::json!({
        "active": true, "iters": 4, "key-offset": 32768, "stripes": 4000, "kdf": "argon2id", "memory": 1024
    });
    assert_eq!((&told["slots"][0], &told["slots"][1]), (&slot, &serde_json::json!({ "active": false })));
    assert_eq!((&told["version"], &told["sector-size"], &told["uuid"]), (&2.into(), &4096.into(), &uuid.into()));
    assert_eq!(&told["master-key-iters"].to_string(), iterations);
}

#[test]
fn one_good_copy_is_enough_and_an_amended_header_has_two() {
    let Some(bed) = Bed::new("one_good_copy_is_enough_and_an_amended_header_has_two") else { return };
    bed.file("good", 17);
    bed.cryptsetup(&format!("luksFormat -q --type luks2 {QUICK} good moon"));
    bed.good("convert -n -f raw plain --target-image-opts IMAGEgood");
    for at in [0, 9, 5000, 16384, 16384 + 5000] {
        let mut bytes = bed.bytes("good");
        bytes[at..at + 6].copy_from_slice(b"broken");
        std::fs::write(bed.path("a"), &bytes).expect("room");
        bed.good("convert --image-opts IMAGEa -O raw out");
        assert!(bed.is_plain("out"), "{at}");
        assert!(bed.bytes("a") == bytes, "who reads mends nothing");
        bed.good("amend -o state=active,new-secret=noon,iter-time=10 --image-opts IMAGEa");
        // Either copy is enough again.
        for copy in [5000, 16384 + 5000] {
            let mut bytes = bed.bytes("a");
            bytes[copy..copy + 6].copy_from_slice(b"broken");
            std::fs::write(bed.path("b"), bytes).expect("room");
            assert_eq!(bed.slots("b"), [(0, "moon"), (1, "noon")], "{at}, {copy}");
        }
        let output = bed.run(&bed.cryptsetup, "luksDump --debug a");
        let told = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success()
                && !told.contains("Secondary LUKS2 header requires")
                && !told.contains("checksum failed"),
            "{told}"
        );
    }
    // Neither is good.
    let mut bytes = bed.bytes("good");
    for at in [5000, 16384 + 5000] {
        bytes[at..at + 6].copy_from_slice(b"broken");
    }
    std::fs::write(bed.path("a"), &bytes).expect("room");
    let error = bed.refused("info -f luks a");
    assert!(error.starts_with("cairn-img: Could not open 'a': ") && error.lines().count() == 1, "{error}");
}

#[test]
fn what_cannot_be_opened_is_told() {
    let test = "what_cannot_be_opened_is_told";
    let Some(bed) = Bed::new(test) else { return };
    let cut = |from: &str, len: usize| std::fs::write(bed.path("cut"), &bed.bytes(from)[..len]).expect("room");
    let told = |words: &str| {
        let error = bed.refused(words);
        let (_, error) = error.split_once("': ").expect("what could not be opened");
        error.trim_end().to_owned()
    };
    bed.file("two", 17);
    bed.cryptsetup(&format!("luksFormat -q --type luks2 {QUICK} two moon"));
    bed.file("one", 3);
    bed.cryptsetup("luksFormat -q --type luks1 --pbkdf-force-iterations 1000 one moon");
    let wrong = "convert -O raw --image-opts driver=luks,key-secret=soon,file.filename=FILE out";
    for (file, material) in [("one", 4096), ("two", 32768)] {
        assert_eq!(told(&wrong.replace("FILE", file)), "Invalid password, cannot unlock any keyslot");
        cut(file, material + 1000);
        assert_eq!(told("convert -O raw --image-opts IMAGEcut out"), "Keyslot 0 key material has a wrong length");
        cut(file, 100);
        assert_eq!(told("info -f luks cut"), "LUKS header is truncated: 100 bytes");
        cut(file, 6000);
        let cut_off = match file {
            "one" => "Could not refresh total sector count: Input/output error",
            _ => "LUKS header is truncated: 6000 bytes",
        };
        assert_eq!(told("info -f luks cut"), cut_off);
    }
    // What has begun to be encrypted is another program's business.
    bed.file("half", 36);
    let words = "reencrypt -q --encrypt --init-only --type luks2 --reduce-device-size 32M --key-file moon";
    let Some(_) = bed.try_cryptsetup(test, &format!("{words} {QUICK} half")) else { return };
    for words in [
        "info half",
        "convert -O raw --image-opts IMAGEhalf out",
        "amend -o state=inactive,keyslot=0 --image-opts IMAGEhalf",
    ] {
        let expected =
            "LUKS2 metadata 'config.requirements.mandatory' is 'online-reencrypt-v2', which is not supported";
        assert_eq!(told(words), expected, "{words}");
    }
}
