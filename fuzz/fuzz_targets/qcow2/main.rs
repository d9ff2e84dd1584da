//! Images that are almost right: a good one of some kind, with numbers of the fuzzer's choice in places of the fuzzer's choice. It is described, opened, read,
//! written, closed, checked and repaired: nothing panics, nothing takes for ever, and no memory is taken because an image says so.
//!
//! What is done with an open image runs on its I/O thread as one piece: what an execution costs is the engine's work, not the way from thread to thread.
#![no_main]

mod seeds;

use block_common::{AlignedBuf, ChildRole, IoError, Perm, Preallocation, RequestFlags};
use block_io::{IoThread, Root, StaticGraph, ThreadPool};
use block_qcow2::check::{Repair, Storage, Watch, check};
use block_qcow2::info::ImageInfo;
use block_qcow2::{Qcow2, Qcow2Children, Qcow2Error, Qcow2Options};
use block_qcow2_format::{CompressionType, Encryption, Layout, NewImage, Step, Version};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::cipher;
use block_testkit::{MemOpKind, MemOptions, MemStorage, Verdict};
use libfuzzer_sys::fuzz_target;
use std::fmt;
use std::sync::OnceLock;

const NONE: RequestFlags = RequestFlags::empty();
const SIZE: u64 = 512 << 10;
/// There is no more room than this, in bytes.
const ROOM: u64 = 4 << 20;
/// A request, at most.
const PIECE: u64 = 64 << 10;

struct Bed {
    thread: IoThread,
    pool: ThreadPool,
    images: Vec<Vec<u8>>,
}

fn bed() -> &'static Bed {
    static BED: OnceLock<Bed> = OnceLock::new();
    BED.get_or_init(|| {
        let (thread, pool) = (io_thread(false), ThreadPool::new(1));
        let new = NewImage { size: SIZE, cluster_size: 4096, ..NewImage::default() };
        let luks = || Some(Encryption::Luks { len: 5000, bytes: vec![0xc5; 700] });
        let kinds = [
            new.clone(),
            NewImage { version: Version::V2, ..new.clone() },
            NewImage { cluster_size: 16384, extended_l2: true, ..new.clone() },
            NewImage { cluster_size: 512, refcount_bits: 1, compression: CompressionType::Zstd, ..new.clone() },
            NewImage { refcount_bits: 64, ..new.clone() },
            NewImage { encryption: luks(), ..new.clone() },
            NewImage { encryption: luks(), version: Version::V2, cluster_size: 512, ..new.clone() },
            NewImage { encryption: Some(Encryption::Aes), ..new },
        ];
        let mut bed = Bed { thread, pool, images: Vec::new() };
        bed.images = kinds.into_iter().map(|kind| filled(&bed, kind)).collect();
        bed
    })
}

/// An image with data, compressed data and zeroes.
fn filled(bed: &Bed, kind: NewImage) -> Vec<u8> {
    let size = kind.cluster_size;
    let layout = Layout::new(kind).expect("an image");
    let mut bytes = vec![0; layout.length() as usize];
    for step in layout.steps() {
        if let Step::Write { offset, bytes: part } = step {
            bytes[offset as usize..offset as usize + part.len()].copy_from_slice(&part);
        }
    }
    let storage = storage(bytes);
    with_image(bed, &storage, Work::Fill(size));
    storage.bytes(0, storage.len() as usize)
}

fn storage(bytes: Vec<u8>) -> MemStorage {
    let storage = MemStorage::with_content(MemOptions::new(bytes.len() as u64), bytes);
    storage.set_logging(false);
    storage.set_script(|op| match op.offset.saturating_add(op.len) > ROOM {
        true if op.kind != MemOpKind::Read => Verdict::Fail(IoError::host(28)),
        _ => Verdict::Serve,
    });
    storage
}

/// What is done with an open image.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Put something into it, whose clusters have so many bytes.
    Fill(u64),
    /// Read it, having opened it for that only.
    Look,
    /// Change it.
    Change,
}

/// Open the image, if it can be, work on it, and close it. Tells whether it could be opened.
fn with_image(bed: &Bed, storage: &MemStorage, work: Work) -> bool {
    let read_only = work == Work::Look;
    let (home, pool) = (bed.thread.handle(), bed.pool.clone());
    let mut graph = StaticGraph::new(home.clone());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let mut shell = graph.node("qcow2");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), &file);
    let open = |req| async move {
        let opened = async {
            let header = Qcow2::read_header(&req, &file).await?;
            let children = Qcow2Children { file, data: None, backing: None, cipher: cipher(&header) };
            let options = Qcow2Options { l2_cache_size: Some(8192), ..Qcow2Options::default() };
            let (engine, control) = Qcow2::open(&req, children, header, options, read_only, pool).await?;
            drop(control.read_crypto(&req, 100, 4000).await);
            if work == Work::Change {
                let _ = control.write_crypto(&req, 700, &[9; 512]).await;
            }
            Ok::<_, Qcow2Error>(engine)
        };
        Ok(opened.await.ok())
    };
    let mut is_open = false;
    if let Ok(Some(engine)) = block_on(shell.run(open))
        && let Ok(node) = block_on(shell.install(engine, read_only))
    {
        let root = graph.root("root", &node, Perm::all());
        is_open = true;
        let run = home.run(async move {
            match work {
                Work::Fill(size) => fill(&root, size).await,
                Work::Look => look(&root).await,
                Work::Change => change(&root).await,
            }
        });
        block_on(run).expect("nothing panics");
    }
    // An image that is wrong may not close well.
    let _ = block_on(graph.close());
    is_open
}

fn zeroes(len: u64) -> block_common::IoBuf {
    AlignedBuf::zeroed(len as usize, 4096).into_io()
}

async fn fill(root: &Root, size: u64) {
    let some = zeroes(5 * size);
    some.fill(0, 5 * size as usize - 100, 7);
    drop(root.write(0, some, NONE).await);
    drop(root.write(8 * size, zeroes(size), RequestFlags::WRITE_COMPRESSED).await);
    drop(root.write(9 * size, zeroes(size), RequestFlags::WRITE_COMPRESSED).await);
    let _ = root.zero(size, size, RequestFlags::MAY_UNMAP).await;
}

async fn look(root: &Root) {
    let Ok(len) = root.length() else { return };
    drop(root.read(0, zeroes(len.min(PIECE))).await);
    let last = len.saturating_sub(PIECE);
    drop(root.read(last, zeroes(len - last)).await);
    let mut at = 0;
    for _ in 0..100 {
        match root.block_status(at, len.saturating_sub(at).max(1)).await {
            Ok(extent) if at < len => at += extent.len.max(1),
            _ => break,
        }
    }
}

async fn change(root: &Root) {
    look(root).await;
    for offset in [0, 1000 << 7, 3 << 17] {
        let data = zeroes(3 << 12);
        data.fill(0, 3 << 12, 9);
        drop(root.write(offset, data, NONE).await);
        let _ = root.zero(offset + 8192, 65536, RequestFlags::MAY_UNMAP).await;
        let _ = root.discard(offset, 1 << 15).await;
    }
    let _ = root.flush().await;
    let _ = root.truncate(3 << 18, Preallocation::Off).await;
    let _ = root.truncate(1 << 18, Preallocation::Off).await;
    look(root).await;
}

struct Quiet;

impl Watch for Quiet {
    fn message(&mut self, _: fmt::Arguments<'_>) {}
}

/// Everything that is done with an image.
fn all(bed: &Bed, bytes: Vec<u8>) {
    for work in [Work::Look, Work::Change] {
        with_image(bed, &storage(bytes.clone()), work);
    }
    let storage = storage(bytes);
    let mut graph = StaticGraph::new(bed.thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let root = graph.root("root", &file, Perm::all());
    let run = bed.thread.handle().run(async move {
        drop(ImageInfo::read(Storage::Root(&root)).await);
        for repair in [Repair::None, Repair::Leaks, Repair::All, Repair::None] {
            drop(check(Storage::Root(&root), repair, &mut Quiet).await);
        }
    });
    block_on(run).expect("nothing panics");
    let _ = block_on(graph.close());
}

/// The image that an input stands for.
fn image(bed: &Bed, input: &[u8]) -> Option<Vec<u8>> {
    let (kind, patches) = input.split_first()?;
    let mut bytes = bed.images[usize::from(*kind) % bed.images.len()].clone();
    for patch in patches.chunks(11) {
        let [low, high, len, value @ ..] = patch else { break };
        // Every byte of the first clusters, and any eighth of what follows.
        let place = usize::from(u16::from_le_bytes([*low, *high]));
        let place = if len & 0x80 == 0 { place % bytes.len() } else { place * 8 % bytes.len() };
        let len = usize::from(len & 0x7f).min(value.len()).min(bytes.len() - place);
        bytes[place..place + len].copy_from_slice(&value[..len]);
    }
    // Large tables are allowed, and take their time: few inputs get them.
    if *kind < seeds::WITH_LARGE {
        for (field, most) in LARGE {
            let count = u32::from_be_bytes(bytes[field..field + 4].try_into().expect("four bytes"));
            if count > most {
                bytes[field..field + 4].copy_from_slice(&(count % (most + 1)).to_be_bytes());
            }
        }
    }
    Some(bytes)
}

/// Where the header has the sizes of the active L1 table and of the reference table and the number of snapshots, and what is not large.
const LARGE: [(usize, u32); 3] = [(36, 256), (56, 4), (60, 16)];

/// Write the seeds where the environment says, and see to it that those which are to be refused are.
fn sow() {
    let bed = bed();
    let Some(folder) = std::env::var_os("CAIRN_SEEDS") else { return };
    for (kind, good) in bed.images.iter().enumerate() {
        for seed in seeds::all(kind as u8, good) {
            let bytes = image(bed, &seed.input).expect("an image");
            let is_open = with_image(bed, &storage(bytes), Work::Look);
            assert!(!is_open || !seed.is_refused, "seed {} of kind {kind} can be opened", seed.name);
            let path = std::path::Path::new(&folder).join(format!("seed-{kind}-{}", seed.name));
            std::fs::write(path, seed.input).expect("a seed is written");
        }
    }
}

fuzz_target!(init: sow(), |input: &[u8]| {
    let bed = bed();
    if let Some(bytes) = image(bed, input) {
        all(bed, bytes);
    }
});
