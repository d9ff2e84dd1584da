//! What tools do with images: copying them one behind the other, and comparing them, over storage that fails and reorders.

use block_common::{IoError, Limits, Perm, RequestFlags};
use block_copy::{
    CopyAct, CopyError, Difference, Padded, SparseNote, SparseOptions, compare, data_bytes, first_data, sparse_copy,
};
use block_io::{IoThread, Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Rng, Verdict, seed};
use std::sync::{Arc, Mutex};

const EIO: IoError = IoError::host(5);
const PIECE: u64 = SparseOptions::CHUNK;

/// Images, each with a root, on a thread.
struct Bed {
    thread: IoThread,
    graph: StaticGraph,
    roots: Vec<Root>,
}

impl Bed {
    fn new(images: &[&MemStorage]) -> Self {
        let thread = io_thread(true);
        let mut graph = StaticGraph::new(thread.handle());
        let mut root = |(at, storage): (usize, &&MemStorage)| {
            let name = format!("image{at}");
            let node = block_on(graph.node(&name).install(storage.driver(), false)).expect("a node");
            graph.root(&name, &node, Perm::CONSISTENT_READ | Perm::WRITE)
        };
        let roots = images.iter().enumerate().map(&mut root).collect();
        Self { thread, graph, roots }
    }

    fn padded(&self, at: usize) -> Padded {
        Padded::new(self.roots[at].clone()).expect("a length")
    }

    /// Copy all but the last image to the last one. What was told meanwhile comes with the result.
    fn copy(&self, options: SparseOptions) -> (Result<(), CopyError>, Vec<SparseNote>) {
        let sources = (0..self.roots.len() - 1).map(|at| self.padded(at)).collect();
        let target = self.roots.last().expect("a target").clone();
        let notes = Arc::new(Mutex::new(Vec::new()));
        let noted = notes.clone();
        let note = move |note| noted.lock().expect("nobody panicked").push(note);
        let copied = self.thread.handle().run(sparse_copy(sources, target, options, note));
        let copied = block_on(copied).expect("the thread is there");
        let notes = std::mem::take(&mut *notes.lock().expect("nobody panicked"));
        (copied, notes)
    }

    fn close(self) {
        block_on(self.graph.close()).expect("it closes");
    }
}

fn options() -> SparseOptions {
    SparseOptions {
        offload: false,
        depth: 4,
        sparse: 4096,
        target_is_zero: false,
        in_order: false,
        salvage: false,
        speed: 0,
        flags: RequestFlags::empty(),
    }
}

/// Noise with runs of zeroes of all lengths.
fn content(len: u64, rng: &mut Rng) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    let mut at = 0;
    while at < bytes.len() {
        let end = bytes.len().min(at + 1 + rng.below(0..40_000) as usize);
        if rng.chance(60) {
            bytes[at..end].iter_mut().for_each(|byte| *byte = rng.next() as u8);
        }
        at = end;
    }
    bytes
}

fn storage(content: Vec<u8>) -> MemStorage {
    MemStorage::with_content(MemOptions::new(content.len() as u64), content)
}

fn noise(len: u64) -> Vec<u8> {
    (0..len).map(|at| (at / 512 % 255) as u8 + 1).collect()
}

/// Scenario: images of odd lengths go behind each other, into one that held other data, whatever completes first.
#[test]
fn images_follow_each_other_whatever_completes_first() {
    let seed = seed();
    println!("CAIRN_SEED={seed:#x}");
    let mut rng = Rng::new(seed);
    for round in 0..24 {
        let sources: Vec<_> = (0..3).map(|_| content(1 + rng.below(0..3 * PIECE), &mut rng)).collect();
        let mut expected = Vec::new();
        for source in &sources {
            expected.extend(source);
            expected.resize(expected.len().next_multiple_of(512), 0);
        }
        let len = expected.len() as u64;
        let sources: Vec<_> = sources.into_iter().map(storage).collect();
        let target_is_zero = round % 4 == 0;
        let target = storage(if target_is_zero { vec![0; len as usize] } else { noise(len) });
        if round % 3 == 0 {
            target.reorder(seed + round, 4);
            sources[1].reorder(seed + round, 4);
        }
        let bed = Bed::new(&sources.iter().chain([&target]).collect::<Vec<_>>());
        let sparse = [0, 512, 4096, 12288][round as usize % 4];
        let depth = 1 + rng.below(0..16) as usize;
        let (copied, notes) =
            bed.copy(SparseOptions { depth, sparse, target_is_zero, in_order: round % 2 == 0, ..options() });
        assert_eq!(copied, Ok(()));
        assert!(target.bytes(0, len as usize) == expected, "round {round}");
        let sum = |wanted: fn(&SparseNote) -> Option<u64>| notes.iter().filter_map(wanted).sum::<u64>();
        let data = sum(|note| if let SparseNote::Copied(bytes) = note { Some(*bytes) } else { None });
        let zeroes = sum(|note| if let SparseNote::Skipped(bytes) = note { Some(*bytes) } else { None });
        let parts: Vec<_> = (0..3).map(|at| bed.padded(at)).collect();
        let counted = bed.thread.handle().run(async move { data_bytes(&parts, false).await });
        assert_eq!(block_on(counted).expect("the thread is there"), Ok(data));
        assert_eq!(data + zeroes, len);
        bed.close();
    }
}

#[test]
fn zeroes_that_the_target_has_are_not_written() {
    let source = storage(vec![0; 3 * PIECE as usize]);
    let target = storage(vec![0; 3 * PIECE as usize]);
    let bed = Bed::new(&[&source, &target]);
    assert_eq!(bed.copy(SparseOptions { target_is_zero: true, ..options() }).0, Ok(()));
    assert_eq!((target.count(MemOpKind::Write), target.count(MemOpKind::Zero)), (0, 0));
    assert_eq!(bed.copy(SparseOptions { sparse: 0, ..options() }).0, Ok(()));
    assert_eq!((target.count(MemOpKind::Write), target.count(MemOpKind::Zero)), (3, 0));
    bed.close();
}

/// Scenario: one sector cannot be read.
#[test]
fn what_cannot_be_read_is_an_error_or_zeroes() {
    let bad = PIECE + 1024;
    let len = 3 * PIECE;
    let fail = move |op: &block_testkit::MemOp| match op.kind == MemOpKind::Read && op.overlaps(bad, 512) {
        true => Verdict::Fail(EIO),
        false => Verdict::Serve,
    };
    for in_order in [false, true] {
        let (source, target) = (storage(noise(len)), storage(vec![7; len as usize]));
        source.set_script(fail);
        let bed = Bed::new(&[&source, &target]);
        let (copied, _) = bed.copy(SparseOptions { in_order, ..options() });
        assert_eq!(copied, Err(CopyError { act: CopyAct::Read, offset: PIECE, error: EIO }));
        let (copied, notes) = bed.copy(SparseOptions { in_order, salvage: true, ..options() });
        assert_eq!(copied, Ok(()));
        let lost: Vec<_> = notes.into_iter().filter(|note| matches!(note, SparseNote::Lost(..))).collect();
        assert_eq!(lost, [SparseNote::Lost(bad, EIO)]);
        let mut expected = noise(len);
        expected[bad as usize..bad as usize + 512].fill(0);
        assert!(target.bytes(0, len as usize) == expected);
        bed.close();
    }
}

/// Scenario: the disk gets full. Requests in flight are over when the error comes.
#[test]
fn a_write_that_fails_ends_the_copy() {
    for in_order in [false, true] {
        let len = 20 * PIECE;
        let (source, target) = (storage(noise(len)), storage(vec![0; len as usize]));
        target.fail_nth(Some(MemOpKind::Write), 5, IoError::host(28));
        let bed = Bed::new(&[&source, &target]);
        let (copied, _) = bed.copy(SparseOptions { in_order, ..options() });
        let error = copied.expect_err("a write failed");
        assert_eq!((error.act, error.error), (CopyAct::Write, IoError::host(28)));
        assert_eq!(bed.roots[1].in_flight(), 0);
        assert!(target.count(MemOpKind::Write) < 20);
        bed.close();
    }
}

fn compared(a: Vec<u8>, b: Vec<u8>, reorder: bool) -> Option<Difference> {
    let (a, b) = (storage(a), storage(b));
    if reorder {
        a.reorder(1, 8);
        b.reorder(2, 8);
    }
    let bed = Bed::new(&[&a, &b]);
    let (first, second) = (bed.padded(0), bed.padded(1));
    let found = bed.thread.handle().run(async move {
        let common = first.len().min(second.len());
        let found = compare(&first, &second, 0..common, false, |_| {}).await?;
        match found {
            Some(found) => Ok(Some(found)),
            None if first.len() > common => first_data(&first, false, common..first.len(), |_| {}).await,
            None => first_data(&second, true, common..second.len(), |_| {}).await,
        }
    });
    let found = block_on(found).expect("the thread is there");
    bed.close();
    found.expect("nothing fails")
}

#[test]
fn the_first_difference_is_found() {
    let seed = seed();
    println!("CAIRN_SEED={seed:#x}");
    let mut rng = Rng::new(seed);
    for round in 0..40 {
        let a = content(1 + rng.below(0..3 << 20), &mut rng);
        assert_eq!(compared(a.clone(), a.clone(), round % 2 == 0), None);
        let mut b = a.clone();
        let mut first = u64::MAX;
        for _ in 0..1 + rng.below(0..5) {
            let at = rng.below(0..a.len() as u64);
            if b[at as usize] == a[at as usize] {
                b[at as usize] ^= 0x80;
                first = first.min(at / 512 * 512);
            }
        }
        assert_eq!(compared(a.clone(), b, round % 2 == 0), Some(Difference::Content(first)));
        // A longer one that has nothing but zeroes there, and one that has more.
        let mut longer = a.clone();
        longer.resize(a.len().next_multiple_of(512) + 100_000, 0);
        assert_eq!(compared(a.clone(), longer.clone(), false), None);
        let end = longer.len() as u64;
        *longer.last_mut().expect("bytes") = 1;
        assert_eq!(compared(longer, a, false), Some(Difference::Content((end - 1) / 512 * 512)));
    }
}

#[test]
fn an_error_behind_a_difference_is_not_told() {
    let len = 1 << 20;
    let run = |different: usize| {
        let mut other = noise(len);
        other[different] ^= 1;
        let (a, b) = (storage(noise(len)), storage(other));
        a.set_script(|op| match op.kind == MemOpKind::Read && op.overlaps(500_000, 1) {
            true => Verdict::Fail(EIO),
            false => Verdict::Serve,
        });
        let bed = Bed::new(&[&a, &b]);
        let (first, second) = (bed.padded(0), bed.padded(1));
        let found = async move { compare(&first, &second, 0..first.len(), false, |_| {}).await };
        let found = block_on(bed.thread.handle().run(found)).expect("the thread is there");
        bed.close();
        found
    };
    assert_eq!(run(1000), Ok(Some(Difference::Content(512))));
    let error = run(900_000).expect_err("a read fails");
    assert_eq!((error.act, error.is_second, error.error), (CopyAct::Read, false, EIO));
}

/// Scenario: an image with an odd end is read and mapped up to whole sectors.
#[test]
fn odd_ends_are_filled_up() {
    let image = storage(noise(1000));
    let bed = Bed::new(&[&image]);
    let padded = bed.padded(0);
    assert_eq!((padded.len(), bed.roots[0].limits().expect("limits")), (1024, Limits::NONE));
    let read = bed.thread.handle().run(async move {
        let buf = block_common::AlignedBuf::zeroed(1024, 512).into_io();
        buf.fill(0, 1024, 9);
        let buf = padded.read(0, buf).await.expect("a read");
        let rest = padded.status(1000, 24).await.expect("a status");
        (buf.to_aligned(1).to_vec(), rest.is_zero(), rest.len)
    });
    let (bytes, zero, len) = block_on(read).expect("the thread is there");
    let mut expected = noise(1000);
    expected.resize(1024, 0);
    assert_eq!((bytes == expected, zero, len), (true, true, 24));
    bed.close();
}
