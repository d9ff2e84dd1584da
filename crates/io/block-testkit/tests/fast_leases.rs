//! Leases on the fast path: requests that were mapped down to a host file and not yet given to the kernel.
//!
//! A [`Queue`] starts what it is given, pins and all, but submits only when it is kicked: so a request can be held
//! between its mapping and its I/O for as long as a test likes, while the image changes under it.

use block_common::{AlignedBuf, IoBuf, IoError, Perm, RequestFlags};
use block_io::{Completed, FileEngine, IoThread, Queue, Request, Root, StaticGraph, ThreadPool, ring_available};
use block_testkit::bed::{block_on, io_thread, skipped, toy_cow, toy_filter, yield_now};
use block_testkit::{MemFile, TOY_RELOCATE, ToyCowControl, ToyFilterControl, ToyFormat};

const CLUSTER: u64 = 4096;

struct Image {
    _thread: IoThread,
    graph: StaticGraph,
    root: Root,
    control: ToyCowControl,
    filter: ToyFilterControl,
}

/// An image on a file below a filter, with its first eight clusters allocated, filled with their number plus one, and
/// flushed.
fn image() -> Image {
    let thread = io_thread(true);
    let mut graph = StaticGraph::new(thread.handle());
    let file = MemFile::new(0, FileEngine::Ring, ThreadPool::new(2)).expect("a memfd");
    let file = block_on(graph.node("file").install(file, false)).expect("a file");
    let (below, filter) = block_on(toy_filter(&mut graph, &file)).expect("a filter");
    let format = ToyFormat { length: 1 << 20, length_max: 1 << 20, cluster_size: CLUSTER };
    let (node, control) = block_on(toy_cow(&mut graph, &below, None, Some(format))).expect("an image");
    let root = graph.root("root", &node, Perm::all());
    let image = Image { _thread: thread, graph, root, control, filter };
    (0..8).for_each(|i| image.write(i, i as u8 + 1));
    block_on(image.root.flush()).expect("flushed");
    image
}

impl Image {
    fn write(&self, index: u64, byte: u8) {
        let written = block_on(self.root.write(index * CLUSTER, filled(byte), RequestFlags::empty())).0;
        assert_eq!(written, Ok(()));
    }

    fn first_byte(&self, index: u64) -> u8 {
        let (result, buf) = block_on(self.root.read(index * CLUSTER, filled(0xee)));
        result.expect("read");
        buf.expect("the buffer comes back").to_aligned(1)[0]
    }

    /// Free the first cluster, make that durable, and allocate others.
    fn free_and_allocate(&self) {
        block_on(self.root.discard(0, CLUSTER)).expect("discarded");
        block_on(self.root.flush()).expect("flushed");
        (8..16).for_each(|i| self.write(i, 0x99));
    }

    fn relocate(&self, index: u64) -> Result<(), IoError> {
        let mut argument = AlignedBuf::zeroed(8, 8);
        argument.copy_from_slice(&index.to_le_bytes());
        block_on(self.root.ioctl(TOY_RELOCATE, argument.into_io()))
    }

    fn close(self) {
        block_on(self.graph.close()).expect("closed");
    }
}

fn filled(byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(CLUSTER as usize, 4096);
    buf.fill(byte);
    buf.into_io()
}

/// Kick, and wait for the one request that was submitted.
fn finish(queue: &mut Queue) -> Completed {
    let mut done = Vec::new();
    assert_eq!(queue.wait(&mut done, None), 1);
    let completed = done.pop().expect("one");
    assert_eq!(completed.done.result, Ok(()));
    completed
}

fn without_ring(test: &str) -> bool {
    let none = !ring_available();
    if none {
        skipped(test, "no io_uring: a queue does not hold requests before it is kicked");
    }
    none
}

#[test]
fn qcow2_3_like_a_mapped_read_never_sees_another_clusters_data() {
    if without_ring("qcow2_3_like_a_mapped_read_never_sees_another_clusters_data") {
        return;
    }
    let check = |ignore_epochs: bool| {
        let image = image();
        image.control.ignore_epochs(ignore_epochs);
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&image.root, Request::read(0, filled(0xee)), 1);
        assert_eq!(image.root.in_flight(), 1);
        image.free_and_allocate();
        let data = finish(&mut queue).done.buf.expect("the buffer comes back").to_aligned(1)[0];
        assert_eq!(image.root.in_flight(), 0);
        image.close();
        data
    };
    assert_eq!(check(false), 1, "a read saw what was never in its cluster");
    assert_eq!(check(true), 0x99, "the test is blind: with epochs ignored it must fail");
}

#[test]
fn qcow2_3_like_a_mapped_write_never_lands_in_another_cluster() {
    if without_ring("qcow2_3_like_a_mapped_write_never_lands_in_another_cluster") {
        return;
    }
    let check = |ignore_epochs: bool| {
        let image = image();
        image.control.ignore_epochs(ignore_epochs);
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&image.root, Request::write(0, filled(0x11), RequestFlags::empty()), 1);
        image.free_and_allocate();
        finish(&mut queue);
        let damaged = (8..16).filter(|i| image.first_byte(*i) != 0x99).count();
        image.close();
        damaged
    };
    assert_eq!(check(false), 0, "a late write landed in somebody else's cluster");
    assert_eq!(check(true), 1, "the test is blind: with epochs ignored it must fail");
}

#[test]
fn a_move_waits_for_mapped_writes_and_for_nothing_else() {
    if without_ring("a_move_waits_for_mapped_writes_and_for_nothing_else") {
        return;
    }
    let image = image();
    let mut queue = Queue::new().expect("a queue");
    queue.submit(&image.root, Request::write(0, filled(0x11), RequestFlags::empty()), 1);
    let place = image.control.place(0);
    for _ in 0..10 {
        assert_eq!(image.relocate(0), Err(IoError::BUSY));
    }
    // The mark sends later writes the slow way, and they do not wait.
    image.write(0, 0x22);
    finish(&mut queue);
    let moved = (0..10).any(|_| image.relocate(0) == Ok(()));
    assert!(moved && image.control.place(0) != place, "the cluster stays where it is");
    // The two writes overlapped in time: either may be the last, but it is one of them.
    assert!([0x11, 0x22].contains(&image.first_byte(0)));
    image.close();
}

#[test]
fn a_write_that_comes_while_a_cluster_is_copied_is_not_lost() {
    if without_ring("a_write_that_comes_while_a_cluster_is_copied_is_not_lost") {
        return;
    }
    for slow in [false, true] {
        let image = image();
        // The move has read the cluster; the filter holds its write, and lets others through.
        image.filter.set_slow(true);
        image.filter.hold_writes(true);
        let before = image.filter.counts().writes;
        let root = image.root.clone();
        let moving = image.root.home().run(async move {
            let mut result = Err(IoError::BUSY);
            while result == Err(IoError::BUSY) {
                result = root.ioctl(TOY_RELOCATE, AlignedBuf::zeroed(8, 8).into_io()).await;
            }
            result
        });
        while image.filter.counts().writes == before {
            block_on(image.root.home().run(yield_now()));
        }
        // One write on the fast path, if the image lets it, and one on the slow path.
        image.filter.set_slow(slow);
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&image.root, Request::write(0, filled(0x11), RequestFlags::empty()), 1);
        queue.kick();
        // Had it been mapped, it would be over by now.
        std::thread::yield_now();
        let mut done = Vec::new();
        queue.reap(&mut done);
        image.filter.hold_writes(false);
        assert_eq!(block_on(moving), Some(Ok(())));
        while queue.pending() > 0 {
            queue.wait(&mut done, None);
        }
        assert_eq!((done.len(), done[0].done.result), (1, Ok(())));
        assert_eq!(image.first_byte(0), 0x11, "a write was lost by a move (slow: {slow})");
        image.close();
    }
}

#[test]
fn mapped_reads_of_cleared_clusters_keep_them_only_while_they_last() {
    if without_ring("mapped_reads_of_cleared_clusters_keep_them_only_while_they_last") {
        return;
    }
    let image = image();
    let place = image.control.place(0).expect("allocated");
    let mut queue = Queue::new().expect("a queue");
    queue.submit(&image.root, Request::read(0, filled(0xee)), 1);
    image.free_and_allocate();
    finish(&mut queue);
    for i in 16..24 {
        image.write(i, 0x77);
        if image.control.place(i) == Some(place) {
            return image.close();
        }
    }
    panic!("a cluster is never used again");
}
