//! Images whose data lies in a file of its own.

use crate::bed::{buf, storage};
use block_common::{ChildRole, Perm, RequestFlags};
use block_io::{IoThread, Root, StaticGraph, ThreadPool};
use block_qcow2::{Qcow2, Qcow2Children, Qcow2Options};
use block_qcow2_format::{Header, IncompatibleFeatures};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, cipher};
use block_testkit::{MemOpKind, MemStorage, Rng, Verdict};
use std::sync::{Arc, Mutex, PoisonError};

const DISK: u64 = 1 << 20;
const CLUSTER: usize = 4096;

/// The bytes of an empty image that names a data file.
fn format() -> Vec<u8> {
    let mut bytes = Format { cluster_bits: 12, ..Format::new(DISK) }.bytes();
    let mut header = Header::parse(&bytes[..CLUSTER]).expect("a header");
    header.incompatible |= IncompatibleFeatures::DATA_FILE;
    header.data_file = Some(b"data".to_vec());
    // Names of features leave no room for it.
    header.features = Vec::new();
    let head = header.to_bytes().expect("a header");
    bytes[..CLUSTER].fill(0);
    bytes[..head.len()].copy_from_slice(&head);
    bytes
}

/// Open it, let `work` use it, close it.
fn with_image<T>(thread: &IoThread, file: &MemStorage, data: &MemStorage, work: impl FnOnce(&Root) -> T) -> T {
    let mut graph = StaticGraph::new(thread.handle());
    let [file, data] = [("file", file), ("data", data)]
        .map(|(name, storage)| block_on(graph.node(name).install(storage.driver(), false)).expect("a node"));
    let mut shell = graph.node("qcow2");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), &file);
    let data = shell.child(ChildRole::DATA, Perm::all(), &data);
    let open = |req| async move {
        let header = Qcow2::read_header(&req, &file).await.expect("a header");
        let children = Qcow2Children { file, data: Some(data), backing: None, cipher: cipher(&header) };
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

fn read(root: &Root) -> Vec<u8> {
    let (result, buf_) = block_on(root.read(0, buf(&vec![0; DISK as usize])));
    result.expect("read");
    buf_.expect("the buffer").to_aligned(1).to_vec()
}

fn write(root: &Root, cluster: usize, clusters: usize, byte: u8) {
    let data = buf(&vec![byte; clusters * CLUSTER]);
    block_on(root.write((cluster * CLUSTER) as u64, data, RequestFlags::empty())).0.expect("written");
}

// Scenario: the power fails at any request to either file, while clusters are written anew, overwritten, zeroed and discarded. What was flushed is there; what
// came later is, or is not, sector by sector.
#[test]
fn qcow2_1_a_power_cut_with_a_data_file_loses_nothing_that_was_flushed() {
    let thread = io_thread(false);
    let (file, data) = (storage(format()), storage(vec![0; DISK as usize]));
    let found: Arc<Mutex<Vec<[Vec<u8>; 2]>>> = Arc::default();
    with_image(&thread, &file, &data, |root| {
        write(root, 0, 40, 1);
        block_on(root.flush()).expect("flushed");
        let rng = Arc::new(Mutex::new(Rng::new(3)));
        for watched in [&file, &data] {
            let (file, data, all, rng) = (file.clone(), data.clone(), found.clone(), rng.clone());
            watched.set_script(move |op| {
                if op.kind != MemOpKind::Read {
                    let mut rng = rng.lock().unwrap_or_else(PoisonError::into_inner);
                    for keep in [0, 50, 100] {
                        let cut = [&file, &data].map(|storage| storage.power_cut(|_, _| rng.chance(keep)));
                        all.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
                    }
                }
                Verdict::Serve
            });
        }
        // Over what there is, into what was never written, and gone.
        write(root, 4, 4, 2);
        write(root, 100, 8, 3);
        let at = |cluster: usize| (cluster * CLUSTER) as u64;
        block_on(root.zero(at(10), at(4), RequestFlags::MAY_UNMAP)).expect("zeroed");
        block_on(root.discard(at(20), at(4))).expect("discarded");
        block_on(root.flush()).expect("flushed");
        write(root, 20, 2, 4);
        write(root, 200, 3, 5);
        block_on(root.flush()).expect("flushed");
        [&file, &data].into_iter().for_each(MemStorage::clear_script);
    });
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    assert!(found.len() > 20, "only {} images", found.len());
    for (nth, [file, data]) in found.into_iter().enumerate() {
        let seen = with_image(&thread, &storage(file), &storage(data), read);
        for (number, sector) in seen.chunks(512).enumerate() {
            let may: &[u8] = match number * 512 / CLUSTER {
                4..8 => &[1, 2],
                10..14 => &[1, 0],
                20..22 => &[1, 0, 4],
                22..24 => &[1, 0],
                0..40 => &[1],
                100..108 => &[0, 3],
                200..203 => &[0, 5],
                _ => &[0],
            };
            assert!(may.iter().any(|byte| sector.iter().all(|b| b == byte)), "image {nth}, sector {number}");
        }
    }
}
