//! Images that are almost right: a good one of some kind, with numbers of the fuzzer's choice in places of the fuzzer's choice. It is described, opened, read,
//! written, closed, checked and repaired: nothing panics, nothing takes for ever, and no memory is taken because an image says so.
#![no_main]

use block_common::{AlignedBuf, ChildRole, IoError, Perm, RequestFlags};
use block_io::{IoThread, Root, StaticGraph, ThreadPool};
use block_qcow2::check::{Repair, Storage, Watch, check};
use block_qcow2::info::ImageInfo;
use block_qcow2::{Qcow2, Qcow2Children, Qcow2Options};
use block_qcow2_format::{CompressionType, Layout, NewImage, Step, Version};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::{MemOptions, MemStorage, Verdict};
use libfuzzer_sys::fuzz_target;
use std::fmt;
use std::sync::OnceLock;

const SIZE: u64 = 2 << 20;
/// There is no more room than this, in bytes.
const ROOM: u64 = 16 << 20;

struct Bed {
    thread: IoThread,
    pool: ThreadPool,
    images: Vec<Vec<u8>>,
}

fn bed() -> &'static Bed {
    static BED: OnceLock<Bed> = OnceLock::new();
    BED.get_or_init(|| {
        let mut bed = Bed { thread: io_thread(false), pool: ThreadPool::new(1), images: Vec::new() };
        let new = NewImage { size: SIZE, cluster_size: 4096, ..NewImage::default() };
        let kinds = [
            new.clone(),
            NewImage { version: Version::V2, ..new.clone() },
            NewImage { cluster_size: 16384, extended_l2: true, ..new.clone() },
            NewImage { cluster_size: 512, refcount_bits: 1, compression: CompressionType::Zstd, ..new.clone() },
            NewImage { refcount_bits: 64, ..new },
        ];
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
    with_image(bed, &storage, false, |root| {
        let data = |len: u64| AlignedBuf::zeroed(len as usize, 4096).into_io();
        let some = data(5 * size);
        some.fill(0, 5 * size as usize - 100, 7);
        drop(block_on(root.write(0, some, RequestFlags::empty())));
        drop(block_on(root.write(8 * size, data(size), RequestFlags::WRITE_COMPRESSED)));
        drop(block_on(root.write(9 * size, data(size), RequestFlags::WRITE_COMPRESSED)));
        let _ = block_on(root.zero(size, size, RequestFlags::MAY_UNMAP));
    });
    storage.bytes(0, storage.len() as usize)
}

fn storage(bytes: Vec<u8>) -> MemStorage {
    let storage = MemStorage::with_content(MemOptions::new(bytes.len() as u64), bytes);
    storage.set_logging(false);
    storage.set_script(|op| match op.offset.saturating_add(op.len) > ROOM {
        true if op.kind != block_testkit::MemOpKind::Read => Verdict::Fail(IoError::host(28)),
        _ => Verdict::Serve,
    });
    storage
}

/// Open the image, if it can be, let `work` use it, and close it.
fn with_image(bed: &Bed, storage: &MemStorage, read_only: bool, work: impl FnOnce(&Root)) {
    let mut graph = StaticGraph::new(bed.thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let mut shell = graph.node("qcow2");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), &file);
    let pool = bed.pool.clone();
    let open = |req| async move {
        let opened = async {
            let header = Qcow2::read_header(&req, &file).await?;
            let children = Qcow2Children { file, data: None, backing: None };
            let options = Qcow2Options { l2_cache_size: Some(8192), ..Qcow2Options::default() };
            Qcow2::open(&req, children, header, options, read_only, pool).await
        };
        Ok(opened.await.ok())
    };
    if let Ok(Some((engine, _))) = block_on(shell.run(open))
        && let Ok(node) = block_on(shell.install(engine, read_only))
    {
        let root = graph.root("root", &node, Perm::all());
        work(&root);
    }
    // An image that is wrong may not close well.
    let _ = block_on(graph.close());
}

struct Quiet;

impl Watch for Quiet {
    fn message(&mut self, _: fmt::Arguments<'_>) {}
}

fn look(root: &Root) {
    let buf = |len| AlignedBuf::zeroed(len, 4096).into_io();
    let Ok(len) = root.length() else { return };
    let some = len.min(1 << 20);
    drop(block_on(root.read(0, buf(some as usize))));
    let last = len.saturating_sub(1 << 16);
    drop(block_on(root.read(last, buf((len - last) as usize))));
    let mut at = 0;
    for _ in 0..200 {
        match block_on(root.block_status(at, len.saturating_sub(at).max(1))) {
            Ok(extent) if at < len => at += extent.len.max(1),
            _ => break,
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let bed = bed();
    let Some((kind, patches)) = input.split_first() else { return };
    let mut bytes = bed.images[usize::from(*kind) % bed.images.len()].clone();
    for patch in patches.chunks(11) {
        let [low, high, len, value @ ..] = patch else { break };
        // Every byte of the first clusters, and any eighth of what follows.
        let place = usize::from(u16::from_le_bytes([*low, *high]));
        let place = if len & 0x80 == 0 { place % bytes.len() } else { place * 8 % bytes.len() };
        let len = usize::from(len & 0x7f).min(value.len()).min(bytes.len() - place);
        bytes[place..place + len].copy_from_slice(&value[..len]);
    }
    for read_only in [true, false] {
        let storage = storage(bytes.clone());
        with_image(bed, &storage, read_only, |root| {
            look(root);
            if !read_only {
                let data = AlignedBuf::zeroed(3 << 12, 4096).into_io();
                data.fill(0, 3 << 12, 9);
                for offset in [0, 1000 << 9, 3 << 19] {
                    drop(block_on(root.write(offset, data.slice(0, 3 << 12), RequestFlags::empty())));
                    let _ = block_on(root.zero(offset + 8192, 65536, RequestFlags::MAY_UNMAP));
                    let _ = block_on(root.discard(offset, 1 << 17));
                }
                let _ = block_on(root.flush());
                let _ = block_on(root.truncate(3 << 20, block_common::Preallocation::Off));
                let _ = block_on(root.truncate(1 << 20, block_common::Preallocation::Off));
                look(root);
            }
        });
    }
    let storage = storage(bytes);
    let mut graph = StaticGraph::new(bed.thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let root = graph.root("root", &file, Perm::all());
    let inner = root.clone();
    let run = bed.thread.handle().run(async move {
        drop(ImageInfo::read(Storage::Root(&inner)).await);
        for repair in [Repair::None, Repair::Leaks, Repair::All, Repair::None] {
            drop(check(Storage::Root(&inner), repair, &mut Quiet).await);
        }
    });
    block_on(run).expect("nothing panics");
    drop(root);
    let _ = block_on(graph.close());
});
