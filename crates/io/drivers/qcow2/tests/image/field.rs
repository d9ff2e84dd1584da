//! Encrypted images of the field's tools are read and written here, and those that are made here are read and checked by them: `qemu-img`, `qemu-io`.

use crate::bed::{NONE, buf, storage};
use block_common::{AlignedBuf, ChildRole, Perm};
use block_crypt::{Cipher, CipherMode, CipherSpec, Hash, IvGen, Secret, SectorCipher};
use block_io::{IoThread, Root, StaticGraph, ThreadPool};
use block_luks_format::{Header1, LuksError, NewHeader1};
use block_qcow2::{Qcow2, Qcow2Children, Qcow2Options};
use block_qcow2_format::{Allocate, Encryption, Header, Layout, NewImage, Step, Version};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::{MemStorage, Rng};
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const DISK: usize = 1 << 20;
/// Longer than a key of the method of old.
const PASSWORD: &str = "a password of many words";
const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=1";
const AES: &str = "encrypt.format=aes,encrypt.key-secret=s";

fn has_tools() -> bool {
    let has = Command::new("qemu-io").arg("--version").output().is_ok()
        && Command::new("qemu-img").arg("--version").output().is_ok();
    if !has {
        block_testkit::bed::skipped("encrypted images of others", "qemu-img and qemu-io are not installed");
    }
    has
}

/// A folder with an image, which the field's tools work on.
struct Field {
    dir: TempDir,
}

impl Field {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, tool: &str, arguments: &[&str]) -> String {
        let secret = format!("secret,id=s,data={PASSWORD}");
        let (verb, rest) = arguments.split_at(usize::from(tool == "qemu-img"));
        let mut command = Command::new(tool);
        command.current_dir(&self.dir).args(verb).args(["--object", &secret]).args(rest);
        let output = command.output().expect("it runs");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !text.contains("verification failed"), "{tool} {arguments:?}: {text}");
        text.into_owned()
    }

    /// `qemu-img` with the image `i` and its key behind these arguments.
    fn image(&self, arguments: &[&str]) -> String {
        let image = ["--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=i"];
        self.run("qemu-img", &[arguments, &image].concat())
    }

    fn io(&self, commands: &[&str]) {
        let image = ["--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=i"];
        let commands: Vec<&str> = commands.iter().flat_map(|command| ["-c", *command]).collect();
        self.run("qemu-io", &[&commands[..], &image].concat());
    }

    /// What the image's disk has, and whether all of the image is in order.
    fn disk(&self) -> Vec<u8> {
        assert!(self.image(&["check"]).contains("No errors were found"));
        let image = ["--image-opts", "driver=qcow2,encrypt.key-secret=s,file.filename=i", "out"];
        self.run("qemu-img", &[&["convert", "-O", "raw"], &image[..]].concat());
        read(&self.path("out"))
    }
}

#[allow(clippy::disallowed_methods, reason = "a test's own file")]
fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("a file")
}

#[allow(clippy::disallowed_methods, reason = "a test's own file")]
fn write(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("a file");
}

fn all(file: &MemStorage) -> Vec<u8> {
    file.bytes(0, file.len() as usize)
}

fn header(bytes: &[u8]) -> Header {
    Header::parse(&bytes[..bytes.len().min(1 << 21)]).expect("a header")
}

/// What encrypts the data of an image with that password.
fn unlocked(bytes: &[u8]) -> SectorCipher {
    let header = header(bytes);
    if header.crypt_method == 1 {
        let spec = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Plain64) };
        return SectorCipher::new(spec, &PASSWORD.as_bytes()[..16]).expect("a cipher");
    }
    let (at, len) = header.crypto.expect("a header for keys");
    let bytes = &bytes[at as usize..(at + len) as usize];
    let luks = Header1::parse(bytes, true).expect("a header");
    let material = luks.material(0);
    let key = luks.unlock(0, PASSWORD.as_bytes(), &bytes[material.start as usize..material.end as usize]);
    let key = key.expect("the material").expect("the password");
    SectorCipher::new(luks.spec, key.expose()).expect("a cipher")
}

/// Open it, let `work` use it, close it.
fn with_image<T>(
    thread: &IoThread,
    [file, data, backing]: [Option<&MemStorage>; 3],
    work: impl FnOnce(&Root) -> T,
) -> T {
    let cipher = unlocked(&all(file.expect("a file")));
    let mut graph = StaticGraph::new(thread.handle());
    let [file, data, backing] =
        [("file", file, false), ("data", data, false), ("backing", backing, true)].map(|(name, storage, read_only)| {
            storage.map(|storage| block_on(graph.node(name).install(storage.driver(), read_only)).expect("a node"))
        });
    let mut shell = graph.node("qcow2");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), &file.expect("a file"));
    let data = data.map(|data| shell.child(ChildRole::DATA, Perm::all(), &data));
    let backing = backing.map(|backing| shell.child(ChildRole::COW, Perm::CONSISTENT_READ, &backing));
    let open = |req| async move {
        let header = Qcow2::read_header(&req, &file).await.expect("a header");
        let children = Qcow2Children { file, data, backing, cipher: Some(cipher) };
        let opened = Qcow2::open(&req, children, header, Qcow2Options::default(), false, ThreadPool::new(2)).await;
        Ok(opened.expect("opens").0)
    };
    let engine = block_on(shell.run(open)).expect("it runs");
    let node = block_on(shell.install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    let done = work(&root);
    drop((root, node));
    block_on(graph.close()).expect("closes");
    done
}

fn disk(root: &Root) -> Vec<u8> {
    let (result, buf) = block_on(root.read(0, AlignedBuf::zeroed(DISK, 4096).into_io()));
    result.expect("read");
    buf.expect("the buffer").to_aligned(1).to_vec()
}

fn put(root: &Root, model: &mut [u8], at: usize, len: usize, byte: u8) {
    block_on(root.write(at as u64, buf(&vec![byte; len]), NONE)).0.expect("written");
    model[at..at + len].fill(byte);
}

/// Who makes an image.
enum Maker<'a> {
    /// `qemu-img`, with these options.
    Field(&'a str),
    /// This project, for that takes no seconds.
    Here(NewImage),
}

/// An image is written to by `qemu-io`, then here, and read by both.
fn check(thread: &IoThread, maker: Maker<'_>) {
    let field = Field::new();
    let (options, has_data, has_backing) = match &maker {
        Maker::Field(options) => (options.to_string(), options.contains("data_file"), options.contains("backing_file")),
        Maker::Here(image) => (format!("{image:?}"), image.data_file.is_some(), image.backing_file.is_some()),
    };
    let mut model = vec![0; DISK];
    if has_backing {
        model[..DISK / 2].fill(0xbb);
        write(&field.path("below"), &model[..DISK / 2]);
    }
    match maker {
        Maker::Field(options) => {
            field.run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", options, "i", "1M"]);
        }
        Maker::Here(image) => {
            write(&field.path("i"), &made(image));
            if has_data {
                write(&field.path("data"), &vec![0; DISK]);
            }
        }
    }
    field.io(&["write -P 1 0 70k", "write -P 2 200k 3k", "write -P 3 900k 64k"]);
    for (at, len, byte) in [(0, 70, 1), (200, 3, 2), (900, 64, 3)] {
        model[at << 10..(at + len) << 10].fill(byte);
    }
    let snapshot = model.clone();
    if !has_data {
        field.io(&["write -b -P 8 0 70k"]);
        field.image(&["snapshot", "-c", "one"]);
    }
    field.io(&["write -P 4 10k 1k", "write -z 384k 64k"]);
    model[10 << 10..11 << 10].fill(4);
    model[384 << 10..448 << 10].fill(0);

    let file = storage(read(&field.path("i")));
    let data = has_data.then(|| storage(read(&field.path("data"))));
    let below = has_backing.then(|| storage(read(&field.path("below"))));
    with_image(thread, [Some(&file), data.as_ref(), below.as_ref()], |root| {
        assert!(disk(root) == model, "{options}: what qemu-io wrote");
        put(root, &mut model, 5 << 10, 512, 5);
        put(root, &mut model, 100 << 10, 200 << 10, 6);
        put(root, &mut model, 400 << 10, 3 << 10, 7);
        put(root, &mut model, DISK - 512, 512, 8);
        block_on(root.zero(901 << 10, 2 << 10, NONE)).expect("zeroes");
        model[901 << 10..903 << 10].fill(0);
        block_on(root.discard(960 << 10, 4 << 10)).expect("discarded");
        if !has_data {
            block_on(root.save_vmstate(512, buf(&[9; 4096]))).expect("stored");
        }
        let now = disk(root);
        // What a discard leaves is nobody's business but its own.
        model[960 << 10..964 << 10].copy_from_slice(&now[960 << 10..964 << 10]);
        assert!(now == model, "{options}");
    });
    write(&field.path("i"), &all(&file));
    if let Some(data) = &data {
        write(&field.path("data"), &all(data));
    }
    assert!(field.disk() == model, "{options}: what was written here");
    if !has_data {
        field.io(&["read -b -P 9 512 4k"]);
        field.image(&["snapshot", "-a", "one"]);
        assert!(field.disk() == snapshot, "{options}: the snapshot");
        field.io(&["read -b -P 8 0 70k"]);
    }
}

#[test]
fn encrypted_images_of_others_are_read_and_written() {
    if !has_tools() {
        return;
    }
    let (thread, mut rng) = (io_thread(true), Rng::new(6));
    check(&thread, Maker::Field(LUKS));
    for more in ["", ",compat=0.10,backing_file=below,backing_fmt=raw", ",data_file=data,cluster_size=4k"] {
        check(&thread, Maker::Field(&format!("{AES}{more}")));
    }
    let image = NewImage { size: DISK as u64, ..NewImage::default() };
    let backed =
        NewImage { backing_file: Some(b"below".to_vec()), backing_format: Some(b"raw".to_vec()), ..image.clone() };
    let xts = CipherMode::Xts;
    for (image, cipher, mode, iv) in [
        (NewImage { cluster_size: 512, ..backed.clone() }, Cipher::Aes128, xts, IvGen::Plain64),
        (
            NewImage { cluster_size: 16 << 10, extended_l2: true, ..image.clone() },
            Cipher::Serpent256,
            xts,
            IvGen::Plain,
        ),
        (NewImage { cluster_size: 32 << 10, extended_l2: true, ..backed }, Cipher::Aes256, xts, IvGen::Plain64),
        (
            NewImage { version: Version::V2, cluster_size: 4096, ..image.clone() },
            Cipher::Aes256,
            CipherMode::Cbc,
            IvGen::Essiv(Hash::Sha256),
        ),
        (NewImage { data_file: Some(b"data".to_vec()), ..image }, Cipher::Twofish256, xts, IvGen::Plain64),
    ] {
        let encryption = Some(new_header(CipherSpec { cipher, mode, iv: Some(iv) }, &mut rng));
        check(&thread, Maker::Here(NewImage { encryption, ..image }));
    }
}

/// A LUKS header with that password, and how long it is.
fn new_header(spec: CipherSpec, rng: &mut Rng) -> Encryption {
    let mut random = |bytes: &mut [u8]| {
        bytes.iter_mut().for_each(|byte| *byte = rng.below(0..256) as u8);
        Ok::<_, LuksError>(())
    };
    let mut key = Secret::zeroed(spec.key_len());
    random(key.expose_mut()).expect("numbers");
    let uuid = "5f0c7a4e-8c1f-4d5b-9e4f-0d3c2b1a0f9e".into();
    let new = NewHeader1 { spec, hash: Hash::Sha256, uuid, digest_iterations: 1000, is_detached: false };
    let mut header = new.header(&key, &mut random).expect("a header");
    let sealed = header.seal(0, PASSWORD.as_bytes(), &key, 1000, &mut random).expect("a slot");
    header.slots[0].state = sealed.state;
    let material = header.material(0);
    let mut bytes = vec![0; material.end as usize];
    bytes[..Header1::LEN].copy_from_slice(&header.bytes());
    bytes[material.start as usize..].copy_from_slice(sealed.material.expose());
    Encryption::Luks { len: header.payload_offset(), bytes }
}

/// The file as its steps make it.
fn made(image: NewImage) -> Vec<u8> {
    let layout = Layout::new(image).expect("an image");
    let mut bytes = vec![0; layout.length() as usize];
    for step in layout.steps() {
        if let Step::Write { offset, bytes: part } = step {
            bytes[offset as usize..offset as usize + part.len()].copy_from_slice(&part);
        }
    }
    bytes
}

// Scenario: images of every kind are laid out here and by qemu-img: they differ in what the header for keys says only.
#[test]
fn encrypted_images_that_are_made_here_are_those_of_others() {
    if !has_tools() {
        return;
    }
    let (thread, mut rng) = (io_thread(true), Rng::new(7));
    let image = NewImage { size: DISK as u64, ..NewImage::default() };
    let spec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
    let tables = NewImage { cluster_size: 512, allocate: Allocate::Tables, ..image.clone() };
    let full = NewImage { version: Version::V2, cluster_size: 4096, allocate: Allocate::Space, ..image.clone() };
    // It takes qemu-img seconds to make a LUKS header, whatever it is told.
    let kinds = [
        ("", image, true),
        (",cluster_size=512,preallocation=metadata", tables, true),
        (",compat=0.10,cluster_size=4k,preallocation=full", full, false),
    ];
    for (more, image, with_luks) in kinds {
        let luks = with_luks.then(|| (LUKS, new_header(spec, &mut rng)));
        for (method, encryption) in luks.into_iter().chain([(AES, Encryption::Aes)]) {
            let field = Field::new();
            let new = NewImage { encryption: Some(encryption), ..image.clone() };
            let is_zero = Layout::new(new.clone()).expect("an image").is_zero();
            let ours = made(new);
            field.run("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &format!("{method}{more}"), "i", "1M"]);
            let mut theirs = read(&field.path("i"));
            if let Some((at, len)) = header(&theirs).crypto {
                let place = at as usize..(at + len) as usize;
                theirs[place.clone()].copy_from_slice(&ours[place]);
            }
            assert!(ours == theirs, "{method}{more}");
            let file = storage(ours);
            let model = with_image(&thread, [Some(&file), None, None], |root| {
                let mut model = disk(root);
                assert_eq!(model.iter().all(|byte| *byte == 0), is_zero);
                put(root, &mut model, 1 << 10, 100 << 10, 1);
                put(root, &mut model, 500 << 10, 5 << 9, 2);
                assert!(disk(root) == model);
                model
            });
            write(&field.path("i"), &all(&file));
            assert!(field.disk() == model, "{method}{more}");
        }
    }
}
