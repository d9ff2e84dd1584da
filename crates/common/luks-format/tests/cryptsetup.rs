//! The other program that knows LUKS2: what it makes is understood here, and what is made here is accepted there. It works on plain files; nothing is mapped.
#![allow(clippy::disallowed_methods, reason = "a test reads and writes files of its own")]

use block_crypt::{Argon2Cost, Argon2Kind, Cipher, CipherMode, CipherSpec, Hash, IvGen, Secret, SectorCipher};
use block_luks_format::{Header2, HeaderCopy, Kdf, KdfCost, LuksError, NewHeader2, Priority, Sealed2};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use tempfile::TempDir;

const ANY: u32 = u32::MAX;
const QUICK: KdfCost = KdfCost::Pbkdf2 { hash: Hash::Sha512, iterations: 1000 };
const USUAL: CipherSpec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };

/// A file, key files beside it, and the program.
struct Bed {
    dir: TempDir,
    program: PathBuf,
}

impl Bed {
    /// `None` if there is no cryptsetup.
    fn new(test: &str) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
        let Some(program) = folders.map(|folder| folder.join("cryptsetup")).find(|program| program.is_file()) else {
            skipped(test, "cryptsetup is not installed");
            return None;
        };
        let bed = Self { dir: tempfile::tempdir().expect("there is a place for files"), program };
        for password in ["moon", "noon"] {
            std::fs::write(bed.path(password), password).expect("it can be written");
        }
        Some(bed)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The disk, `mib` MiB of what repeats rarely.
    fn disk(&self, mib: usize) -> File {
        let path = self.path("disk");
        std::fs::write(&path, plain(mib << 20)).expect("it can be written");
        File::options().read(true).write(true).open(path).expect("it is there")
    }

    fn run(&self, words: &str) -> Output {
        let mut command = Command::new(&self.program);
        command.current_dir(self.dir.path()).args(words.split_whitespace()).env("LC_ALL", "C");
        command.output().expect("it can be run")
    }

    /// What it says, if it says that all went well.
    fn good(&self, words: &str) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("it says text")
    }

    fn opens(&self, password: &str, slot: u32) -> bool {
        let words = format!("luksOpen --test-passphrase --key-file {password} --key-slot {slot} disk");
        self.run(&words).status.success()
    }
}

/// As `block_testkit` says it, which is in a tier above.
fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}");
    eprintln!("{line}");
    let Some(log) = std::env::var_os("CAIRN_SKIP_LOG") else { return };
    let log = File::options().append(true).create(true).open(log);
    log.and_then(|mut log| writeln!(log, "{line}")).expect("the skip log can be written");
}

fn plain(len: usize) -> Vec<u8> {
    (0..len as u32 / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn random(bytes: &mut [u8]) -> Result<(), LuksError> {
    let mut state = 7u64;
    for byte in bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> 56) as u8;
    }
    Ok(())
}

fn read(disk: &File, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    disk.read_exact_at(&mut bytes, at).expect("it is long enough");
    bytes
}

/// As a driver reads it: first the beginning, then as much as is wanted.
fn parsed(disk: &File) -> Result<Header2, LuksError> {
    let mut area = Vec::new();
    while let Some(wanted) = Header2::wanted(&area) {
        area = read(disk, 0, wanted);
    }
    Header2::parse(&area, false)
}

fn unlock(disk: &File, header: &Header2, slot: u32, password: &str) -> Option<Secret> {
    let place = header.material(slot)?;
    let material = read(disk, place.start, (place.end - place.start) as usize);
    header.unlock(slot, password.as_bytes(), &material, ANY).expect("it can be computed")
}

/// As a driver writes it, but for the flushes.
fn write(disk: &File, header: &Header2) {
    for copy in header.order() {
        let bytes = header.bytes(copy, random).expect("it has room");
        disk.write_all_at(&bytes, header.place(copy).start).expect("it can be written");
    }
}

fn write_sealed(disk: &File, sealed: &Sealed2, slot: u32) {
    let place = sealed.header.material(slot).expect("it has a key");
    disk.write_all_at(sealed.material.expose(), place.start).expect("it can be written");
    write(disk, &sealed.header);
}

#[test]
fn what_cryptsetup_makes_is_unlocked() {
    let Some(bed) = Bed::new("what_cryptsetup_makes_is_unlocked") else { return };
    let argon = |kind, memory| KdfCost::Argon2 { kind, cost: Argon2Cost { time: 4, memory, lanes: 1 } };
    let pbkdf2 = |hash, iterations| KdfCost::Pbkdf2 { hash, iterations };
    let (quick, slow) = ("--pbkdf-force-iterations 1000", "--pbkdf-force-iterations 4 --pbkdf-parallel 1");
    let small = "--luks2-metadata-size 64k --luks2-keyslots-size 1m --offset 8192";
    let cases = [
        (format!("--pbkdf pbkdf2 {quick} --sector-size 512"), "aes-xts-plain64", 64, pbkdf2(Hash::Sha256, 1000)),
        (
            format!("--pbkdf argon2id {slow} --pbkdf-memory 1024 --sector-size 4096"),
            "aes-xts-plain64",
            64,
            argon(Argon2Kind::Id, 1024),
        ),
        (
            format!("--pbkdf argon2i {slow} --pbkdf-memory 32 -s 256 {small}"),
            "aes-xts-plain64",
            32,
            argon(Argon2Kind::I, 32),
        ),
        (
            format!("--pbkdf pbkdf2 {quick} --hash sha512 -c aes-cbc-essiv:sha256 -s 256"),
            "aes-cbc-essiv:sha256",
            32,
            pbkdf2(Hash::Sha512, 1000),
        ),
        (
            format!("--pbkdf pbkdf2 {quick} --hash ripemd160 -c aes-cbc-plain64 -s 192"),
            "aes-cbc-plain64",
            24,
            pbkdf2(Hash::Ripemd160, 1000),
        ),
    ];
    for (options, encryption, key_len, cost) in cases {
        let disk = bed.disk(20);
        bed.good(&format!("luksFormat -q --type luks2 --label of_mine {options} disk moon"));
        bed.good(&format!("luksAddKey -q --pbkdf pbkdf2 {quick} --new-key-slot 3 --key-file moon disk noon"));
        let header = parsed(&disk).expect("it is understood");
        assert_eq!((header.label(), header.stale(), header.order_to_try()), ("of_mine", None, vec![0, 3]), "{options}");
        assert_eq!(header.slots()[&0].kdf.cost, cost, "{options}");
        assert_eq!(header.segment().encryption, encryption);
        let key = unlock(&disk, &header, 0, "moon").expect("it is the password");
        assert_eq!(key.expose().len(), key_len);
        assert_eq!(unlock(&disk, &header, 3, "noon"), Some(key), "{options}");
        assert_eq!((unlock(&disk, &header, 3, "moon"), unlock(&disk, &header, 0, "noon")), (None, None));
        let dump = bed.good("luksDump disk");
        assert!(dump.contains(header.uuid()) && dump.contains(&format!("{} [bytes]", header.segment().offset)));
        assert!(dump.contains(&format!("sector: {} [bytes]", header.segment().sector)), "{dump}");
        assert!(dump.contains(&format!("Epoch:         \t{}\n", header.seqid())), "{dump}");
    }
}

/// The program encrypts a disk that is there, which it does without a mapping, too. So sectors are numbered here as there.
#[test]
fn what_cryptsetup_encrypts_is_decrypted() {
    let test = "what_cryptsetup_encrypts_is_decrypted";
    let Some(bed) = Bed::new(test) else { return };
    for (sector, cipher) in [(512, "aes-xts-plain64"), (4096, "aes-xts-plain64"), (4096, "aes-cbc-essiv:sha256")] {
        let disk = bed.disk(18);
        let options = format!("-c {cipher} -s 256 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size {sector}");
        let words = format!("reencrypt -q --encrypt --type luks2 {options} --reduce-device-size 16M");
        let output = bed.run(&format!("{words} --key-file moon disk"));
        let error = String::from_utf8_lossy(&output.stderr);
        if error.contains("Failed to acquire reencryption lock") {
            return skipped(test, "cryptsetup may not take its lock, which is root's");
        }
        assert!(output.status.success(), "{words}: {error}");
        let header = parsed(&disk).expect("it is understood");
        let key = unlock(&disk, &header, 0, "moon").expect("it is the password");
        let segment = header.segment();
        assert_eq!((segment.sector, segment.first), (sector, 0));
        let mut data = read(&disk, segment.offset, 1 << 20);
        let spec = header.spec().expect("there is a slot");
        let cipher = SectorCipher::new(spec, key.expose()).expect("it fits");
        cipher.decrypt(segment.first, segment.sector, &mut data);
        assert!(data == plain(1 << 20), "{spec:?} with {sector}");
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let Some(bed) = Bed::new("what_is_not_supported_is_refused_by_name") else { return };
    let told = |disk: &File| parsed(disk).expect_err("it is not supported").to_string();
    let quick = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    let disk = bed.disk(40);
    bed.good(&format!(
        "reencrypt -q --encrypt --init-only --type luks2 {quick} --reduce-device-size 32M --key-file moon disk"
    ));
    let told_of_half = told(&disk);
    assert!(
        told_of_half.starts_with("LUKS2 metadata 'config.requirements.mandatory' is 'online-reencrypt"),
        "{told_of_half}"
    );
    let disk = bed.disk(20);
    bed.good(&format!("luksFormat -q --type luks2 {quick} --hash whirlpool disk moon"));
    assert_eq!(told(&disk), "Algorithm 'whirlpool' for a hash is not supported");
    let disk = bed.disk(20);
    bed.good("luksFormat -q --type luks1 --pbkdf-force-iterations 1000 disk moon");
    assert_eq!(told(&disk), "LUKS version 1 is not supported");
    // What was a header of LUKS1 has a shorter digest, and smaller areas.
    bed.good("convert -q --type luks2 disk");
    let header = parsed(&disk).expect("it is understood");
    assert!(unlock(&disk, &header, 0, "moon").is_some());
}

#[test]
fn keys_that_are_no_disks_and_tokens_are_left_alone() {
    let Some(bed) = Bed::new("keys_that_are_no_disks_and_tokens_are_left_alone") else { return };
    let quick = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
    let disk = bed.disk(20);
    bed.good(&format!("luksFormat -q --type luks2 {quick} disk moon"));
    bed.good(&format!("luksAddKey -q {quick} --new-key-slot 1 --key-file moon disk noon"));
    bed.good(&format!("luksAddKey -q {quick} --unbound --key-size 128 --key-slot 5 disk noon"));
    bed.good("token add --key-description mine --key-slot 1 disk");
    bed.good("config --priority ignore --key-slot 0 disk");
    let header = parsed(&disk).expect("it is understood");
    assert_eq!((header.order_to_try(), header.slots()[&0].priority), (vec![1], Priority::Ignore));
    assert!(!header.slots()[&5].is_for_disk && unlock(&disk, &header, 5, "noon").is_none());
    // Taking slots away here leaves what there takes for whole.
    let less = header.remove(1).expect("it is there").remove(5).expect("it is there");
    write(&disk, &less);
    let dump = bed.good("luksDump --dump-json-metadata disk");
    assert!(dump.contains(r#""key_description":"mine""#) && !dump.contains(r#""1":{"#), "{dump}");
    assert!(bed.opens("moon", 0) && !bed.opens("noon", 1));
    bed.good(&format!("luksAddKey -q {quick} --key-slot 0 --new-key-slot 1 --key-file moon disk noon"));
    assert!(unlock(&disk, &parsed(&disk).expect("it is understood"), 1, "noon").is_some());
}

#[test]
fn what_is_made_here_is_accepted() {
    let Some(bed) = Bed::new("what_is_made_here_is_accepted") else { return };
    let argon = |kind| KdfCost::Argon2 { kind, cost: Argon2Cost { time: 4, memory: 1024, lanes: 4 } };
    let old = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Essiv(Hash::Sha256)) };
    for (spec, sector, hash, cost) in [
        (USUAL, 512, Hash::Sha256, QUICK),
        (USUAL, 4096, Hash::Sha512, argon(Argon2Kind::Id)),
        (old, 2048, Hash::Sha1, argon(Argon2Kind::I)),
    ] {
        let disk = bed.disk(20);
        let mut key = Secret::zeroed(spec.key_len());
        random(key.expose_mut()).expect("it cannot fail");
        let uuid = "b9cdd2fd-9c66-4ab2-a5c4-64c4ff2c11f8".to_owned();
        let label = "of_mine".to_owned();
        let new = NewHeader2 { spec, sector, hash, uuid, label, digest_iterations: 1000, is_detached: false };
        let header = new.header(&key, random).expect("it can be made");
        write(&disk, &header);
        assert!(bed.good("luksDump disk").contains("Label:         \tof_mine"), "a header without slots is one");
        let sealed = header.seal(0, b"moon", &key, cost, random).expect("it can be sealed");
        write_sealed(&disk, &sealed, 0);
        assert!(bed.opens("moon", 0) && !bed.opens("noon", 0), "{cost:?}");
        let sealed = sealed.header.seal(31, b"noon", &key, QUICK, random).expect("it can be sealed");
        write_sealed(&disk, &sealed, 31);
        assert!(bed.opens("moon", 0) && bed.opens("noon", 31));
        // Taken away here, and given there.
        write(&disk, &sealed.header.remove(0).expect("it is there"));
        assert!(!bed.opens("moon", 0) && bed.opens("noon", 31));
        bed.good("luksAddKey -q --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file noon disk moon");
        bed.good("luksKillSlot -q --key-file moon disk 31");
        let header = parsed(&disk).expect("it is understood");
        assert_eq!(header.slots().keys().collect::<Vec<_>>(), [&0]);
        assert_eq!(unlock(&disk, &header, 0, "moon"), Some(key));
        assert!(matches!(&header.slots()[&0].kdf, Kdf { cost: KdfCost::Pbkdf2 { iterations: 1000, .. }, .. }));
        let dump = bed.good("luksDump disk");
        assert!(dump.contains(&format!("sector: {sector} [bytes]")) && dump.contains("offset: 16777216 [bytes]"));
    }
}

/// One copy is broken: both programs go by the other one, and who writes mends it.
#[test]
fn one_good_copy_is_enough_for_both() {
    let Some(bed) = Bed::new("one_good_copy_is_enough_for_both") else { return };
    for (copy, at) in [(HeaderCopy::Primary, 5000), (HeaderCopy::Secondary, 16384 + 5000), (HeaderCopy::Primary, 0)] {
        let disk = bed.disk(20);
        bed.good("luksFormat -q --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 disk moon");
        disk.write_all_at(b"broken", at).expect("it can be written");
        let header = parsed(&disk).expect("the other copy is good");
        assert_eq!(header.stale(), Some(copy));
        let key = unlock(&disk, &header, 0, "moon").expect("it is the password");
        let sealed = header.seal(1, b"noon", &key, QUICK, random).expect("it can be sealed");
        write_sealed(&disk, &sealed, 1);
        assert_eq!(parsed(&disk).map(|header| header.stale()), Ok(None));
        assert!(bed.opens("noon", 1));
        // Of what is written here, either copy is enough for the other program.
        disk.write_all_at(b"broken", at).expect("it can be written");
        assert!(bed.opens("noon", 1) && bed.opens("moon", 0), "{copy:?}");
    }
}
