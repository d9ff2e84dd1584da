//! The toy format is a real one: it keeps data, survives power cuts, and holds its leases.

use block_common::{AlignedBuf, BlockStatus, IoBuf, IoError, IoErrorKind, Limits, Perm, Preallocation, RequestFlags};
use block_io::{FileEngine, IoThread, Root, StaticGraph, ThreadPool};
use block_testkit::bed::{Way, block_on, io_thread, join_all, toy_cow, toy_filter, yield_now};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{
    MemFile, MemMode, MemOp, MemOpKind, MemOptions, MemStorage, Rng, TOY_RELOCATE, ToyCowControl, ToyFormat, Verdict,
    seed,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

const NONE: RequestFlags = RequestFlags::empty();
const CLUSTER: u64 = 4096;

fn small(length: u64) -> ToyFormat {
    ToyFormat { length, length_max: length * 2, cluster_size: CLUSTER }
}

struct Image {
    graph: StaticGraph,
    root: Root,
    control: ToyCowControl,
}

/// Open the image in `storage`, over zeroes or over `backing`; format it first if told.
fn open(thread: &IoThread, storage: &MemStorage, backing: Option<&MemStorage>, format: Option<ToyFormat>) -> Image {
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let backing =
        backing.map(|storage| block_on(graph.node("backing").install(storage.driver(), true)).expect("a backing node"));
    let (node, control) = block_on(toy_cow(&mut graph, &file, backing.as_ref(), format)).expect("an image");
    let root = graph.root("root", &node, Perm::all());
    Image { graph, root, control }
}

impl Image {
    fn close(self) {
        block_on(self.graph.close()).expect("closed");
    }

    fn write(&self, offset: u64, len: u64, byte: u8) {
        assert_eq!(block_on(self.root.write(offset, filled(len, byte), NONE)).0, Ok(()));
    }

    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        block_on(read(&self.root, offset, len)).expect("read")
    }

    /// Ask for the move until nothing is in its way.
    fn relocate(&self, index: u64) {
        for _ in 0..20 {
            if block_on(relocate(&self.root, index)) == Ok(()) {
                return;
            }
        }
        panic!("cluster {index} stays busy");
    }
}

fn filled(len: u64, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len as usize, 4096);
    buf.fill(byte);
    buf.into_io()
}

async fn read(root: &Root, offset: u64, len: u64) -> Result<Vec<u8>, IoError> {
    let (result, buf) = root.read(offset, filled(len, 0xee)).await;
    result?;
    Ok(buf.expect("the buffer comes back").to_aligned(1).to_vec())
}

async fn relocate(root: &Root, index: u64) -> Result<(), IoError> {
    let mut argument = AlignedBuf::zeroed(8, 8);
    argument.copy_from_slice(&index.to_le_bytes());
    root.ioctl(TOY_RELOCATE, argument.into_io()).await
}

fn hold_first_write(storage: &MemStorage) {
    let mut first = true;
    storage.set_script(move |op: &MemOp| {
        let hold = op.kind == MemOpKind::Write && std::mem::take(&mut first);
        if hold { Verdict::Hold } else { Verdict::Serve }
    });
}

fn suite(region: u64) -> ConformanceOptions {
    ConformanceOptions { region, ..ConformanceOptions::default() }
}

#[test]
fn it_conforms_over_storage_of_every_kind() {
    let thread = io_thread(true);
    for alignment in [1, 512] {
        for cluster_size in [CLUSTER, 1 << 16] {
            let limits = Limits { request_alignment: alignment, memory_alignment: alignment, ..Limits::NONE };
            let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(0) });
            storage.set_logging(false);
            let format = ToyFormat { cluster_size, ..ToyFormat::new(2 << 20) };
            let image = open(&thread, &storage, None, Some(format));
            run_everywhere(&image.root, &suite(300_000));
            storage.set_mode(MemMode::Slow);
            run_everywhere(&image.root, &suite(300_000));
            image.close();
        }
    }
}

#[test]
fn it_conforms_over_a_backing_file_that_is_shorter() {
    let thread = io_thread(true);
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 700_000]);
    let storage = MemStorage::new(MemOptions::new(0));
    let image = open(&thread, &storage, Some(&backing), Some(small(2 << 20)));
    assert_eq!(image.read(699_998, 4), [0x55, 0x55, 0, 0]);
    run_everywhere(&image.root, &suite(900_000));
    image.close();
    assert!(backing.bytes(0, 700_000).iter().all(|byte| *byte == 0x55), "the backing file was written");
}

#[test]
fn it_conforms_over_files_every_way() {
    for way in Way::ALL {
        let thread = way.thread();
        let mut graph = StaticGraph::new(thread.handle());
        let file = MemFile::new(0, way.engine, ThreadPool::new(4)).expect("a memfd");
        let file = block_on(graph.node("file").install(file, false)).expect("a file");
        let (filter, _) = block_on(toy_filter(&mut graph, &file)).expect("a filter");
        let (node, _) = block_on(toy_cow(&mut graph, &filter, None, Some(small(2 << 20)))).expect("an image");
        let root = graph.root("root", &node, Perm::all());
        run_everywhere(&root, &suite(500_000));
        block_on(graph.close()).expect("closed");
    }
}

#[test]
fn a_model_agrees_while_clusters_move() {
    let thread = io_thread(true);
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 600_000]);
    for slow in [false, true] {
        let storage = MemStorage::new(MemOptions::new(0));
        storage.set_logging(false);
        let image = open(&thread, &storage, Some(&backing), Some(small(1 << 20)));
        let options = ModelOptions { requests: 12_000, ..ModelOptions::default() };
        if slow {
            storage.reorder(options.seed, 6);
        }
        let moved = under_model_and_moves(&image, options).expect("the model agrees");
        assert!(moved > 20, "only {moved} clusters moved");
        assert!(image.control.reused() > 20, "only {} clusters were used again", image.control.reused());
        storage.clear_script();
        image.close();
    }
}

/// Run the model while clusters move. Returns how many did.
fn under_model_and_moves(image: &Image, options: ModelOptions) -> Result<u64, String> {
    let over = Arc::new(AtomicBool::new(false));
    let (root, clusters, seed) = (image.root.clone(), options.len / CLUSTER, options.seed);
    let stop = over.clone();
    let mover = image.root.home().run(async move {
        let (mut rng, mut moved) = (Rng::new(seed), 0);
        while !stop.load(Ordering::Relaxed) {
            let index = rng.below(0..clusters);
            for _ in 0..10 {
                match relocate(&root, index).await {
                    Ok(()) => {
                        moved += 1;
                        break;
                    }
                    Err(error) => assert_eq!(error, IoError::BUSY),
                }
                yield_now().await;
            }
        }
        moved
    });
    let result = block_on(model::run(&image.root, options));
    over.store(true, Ordering::Relaxed);
    let moved = block_on(mover).expect("the mover is alive");
    result.map(|_| moved)
}

#[test]
fn what_was_closed_is_there_when_opened_again() {
    // Written, moved, freed, flushed, closed; opened on another thread.
    let storage = MemStorage::new(MemOptions::new(0));
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 1 << 20]);
    let thread = io_thread(true);
    let image = open(&thread, &storage, Some(&backing), Some(small(1 << 20)));
    image.write(100, 10_000, 1);
    image.write(500_000, 3, 2);
    block_on(image.root.zero(2 * CLUSTER, CLUSTER, RequestFlags::MAY_UNMAP)).expect("zeroed");
    image.relocate(0);
    block_on(image.root.truncate((1 << 20) + 5000, Preallocation::Off)).expect("grown");
    let before = image.read(0, (1 << 20) + 5000);
    image.close();
    drop(thread);

    let thread = io_thread(false);
    let image = open(&thread, &storage, Some(&backing), None);
    assert_eq!(image.root.length(), Ok((1 << 20) + 5000));
    assert_eq!(image.read(0, (1 << 20) + 5000), before);
    assert!(before[99..101] == [0x55, 1] && before[2 * CLUSTER as usize] == 0 && before[1 << 20] == 0);
    image.close();
}

#[test]
fn status_tells_whose_the_bytes_are() {
    let storage = MemStorage::new(MemOptions::new(0));
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 10 * CLUSTER as usize]);
    let thread = io_thread(true);
    let image = open(&thread, &storage, Some(&backing), Some(small(20 * CLUSTER)));
    image.write(CLUSTER, 3 * CLUSTER, 1);
    block_on(image.root.discard(2 * CLUSTER, CLUSTER)).expect("discarded");
    let status = |cluster: u64| block_on(image.root.block_status(cluster * CLUSTER, 20 * CLUSTER - cluster * CLUSTER));
    let check = |cluster: u64, len: u64, expected: BlockStatus| {
        let extent = status(cluster).expect("a status");
        let status = extent.status.difference(BlockStatus::OFFSET_VALID);
        assert_eq!((status, extent.len), (expected, len * CLUSTER), "cluster {cluster}");
    };
    check(0, 1, BlockStatus::empty());
    check(1, 1, BlockStatus::DATA | BlockStatus::ALLOCATED);
    check(2, 1, BlockStatus::ZERO | BlockStatus::ALLOCATED);
    check(4, 6, BlockStatus::empty());
    check(10, 10, BlockStatus::ZERO | BlockStatus::EOF);
    let place = image.control.place(1).expect("allocated");
    assert_eq!(status(1).expect("a status").host_offset.map(|offset| offset.0), Some(place));
    image.close();
}

#[test]
fn stat_1_a_chain_tells_who_decides() {
    // Storage, a filter, an image over it, and a filter on top: filters decide nothing and are no layers.
    const END: u64 = 9 * CLUSTER + 512;
    let thread = io_thread(true);
    let mut content = vec![0x55; END as usize];
    content[4 * CLUSTER as usize..5 * CLUSTER as usize].fill(0);
    let storage = MemStorage::new(MemOptions::new(0));
    let backing = MemStorage::with_content(MemOptions::new(0), content);
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let backing = block_on(graph.node("backing").install(backing.driver(), true)).expect("a backing node");
    let (filter, _) = block_on(toy_filter(&mut graph, &backing)).expect("a filter");
    let format = Some(small(20 * CLUSTER));
    let (image, control) = block_on(toy_cow(&mut graph, &file, Some(&filter), format)).expect("an image");
    let (top, _) = block_on(toy_filter(&mut graph, &image)).expect("a filter");
    let roots = [graph.root("image", &image, Perm::all()), graph.root("top", &top, Perm::all())];
    block_on(roots[0].write(CLUSTER, filled(2 * CLUSTER, 1), NONE)).0.expect("written");
    block_on(roots[0].discard(2 * CLUSTER, CLUSTER)).expect("discarded");
    let (data, zero) = (BlockStatus::DATA | BlockStatus::ALLOCATED, BlockStatus::ZERO | BlockStatus::ALLOCATED);
    for root in &roots {
        let told = |at: u64| block_on(root.chain_status(at, 20 * CLUSTER - at)).expect("a status");
        let check = |at: u64, len: u64, status: BlockStatus, depth: Option<usize>| {
            let told = told(at);
            let found = told.extent.status.difference(BlockStatus::OFFSET_VALID | BlockStatus::EOF);
            assert_eq!((found, told.extent.len, told.depth), (status, len, depth), "{}: {at:#x}", root.name());
        };
        check(0, CLUSTER, data, Some(1));
        check(CLUSTER, CLUSTER, data, Some(0));
        check(2 * CLUSTER, CLUSTER, zero, Some(0));
        check(3 * CLUSTER, CLUSTER, data, Some(1));
        check(4 * CLUSTER, CLUSTER, zero, Some(1));
        check(5 * CLUSTER, END - 5 * CLUSTER, data, Some(1));
        check(END - 512, 512, data, Some(1));
        // Past the end of the backing file nobody decides.
        check(END, 20 * CLUSTER - END, BlockStatus::ZERO, None);
        // A place is the deciding node's.
        assert_eq!(told(CLUSTER).extent.host_offset.map(|offset| offset.0), control.place(1));
        assert_eq!(told(3 * CLUSTER + 700).extent.host_offset.map(|offset| offset.0), Some(3 * CLUSTER + 700));
    }
    block_on(graph.close()).expect("closed");
}

#[test]
fn trunc_1_a_longer_backing_file_does_not_come_to_light() {
    // Grown from a whole number of clusters and from within one; cut and grown once more; closed and opened again.
    const END: u64 = 12 * CLUSTER;
    let thread = io_thread(true);
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 10 * CLUSTER as usize]);
    for length in [3 * CLUSTER, 3 * CLUSTER + 700] {
        let storage = MemStorage::new(MemOptions::new(0));
        let format = ToyFormat { length_max: END, ..small(length) };
        let mut image = open(&thread, &storage, Some(&backing), Some(format));
        for kept in [length, CLUSTER + 100] {
            block_on(image.root.truncate(kept, Preallocation::Off)).expect("cut");
            assert!(image.read(0, kept).iter().all(|byte| *byte == 0x55));
            block_on(image.root.truncate(END, Preallocation::Off)).expect("grown");
            for _ in 0..2 {
                let data = image.read(0, END);
                let shown = data.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
                assert!(shown == kept && data[..kept as usize].iter().all(|byte| *byte == 0x55), "{shown} of {kept}");
                image.close();
                image = open(&thread, &storage, Some(&backing), None);
            }
        }
        image.close();
    }
}

#[test]
fn allocating_writes_run_in_parallel_but_one_at_a_time_in_a_cluster() {
    let storage = MemStorage::new(MemOptions::new(0));
    let thread = io_thread(true);
    let image = open(&thread, &storage, None, Some(small(1 << 20)));
    storage.hold(Some(MemOpKind::Write));
    let write = |offset: u64, byte: u8| {
        let root = image.root.clone();
        thread.handle().run(async move { root.write(offset, filled(512, byte), NONE).await.0 })
    };
    // Three writes to one cluster, one to each of four others.
    let writes: Vec<_> =
        [(0, 1), (512, 2), (1024, 3), (CLUSTER, 4), (2 * CLUSTER, 5), (3 * CLUSTER, 6), (9 * CLUSTER, 7)]
            .map(|(offset, byte)| write(offset, byte))
            .into_iter()
            .collect();
    block_on(storage.wait_held(5));
    block_on(thread.handle().run(yield_now()));
    assert_eq!(storage.held().len(), 5, "two writes allocate one cluster at once");
    let first = storage.held()[0];
    storage.release(first.seq, Verdict::Serve);
    block_on(storage.wait_held(5));
    storage.release_all();
    assert!(block_on(join_all(writes)).iter().all(|result| *result == Some(Ok(()))));
    let expected: Vec<u8> = [1, 2, 3, 0].iter().flat_map(|byte| vec![*byte; 512]).collect();
    assert_eq!(image.read(0, 2048), expected);
    image.close();
}

#[test]
fn qcow2_4_like_a_failed_allocation_gives_its_cluster_back() {
    let storage = MemStorage::new(MemOptions::new(0));
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 1 << 20]);
    let thread = io_thread(true);
    let image = open(&thread, &storage, Some(&backing), Some(small(1 << 20)));
    image.write(0, 100, 1);
    for nth in 0..2 {
        storage.fail_nth(Some(MemOpKind::Write), nth, IoError::host(28));
        let result = block_on(image.root.write(5 * CLUSTER + 7, filled(CLUSTER, 9), NONE)).0;
        assert_eq!(result, Err(IoError::host(28)), "write number {nth}");
        storage.clear_script();
        // Half of it may have been written, but never half a cluster.
        assert_eq!(image.read(6 * CLUSTER, 8), [0x55; 8]);
    }
    let length = storage.len();
    image.write(5 * CLUSTER + 7, CLUSTER, 9);
    assert!(storage.len() <= length + CLUSTER, "a cluster was lost");
    assert_eq!(image.read(5 * CLUSTER + 6, 3), [0x55, 9, 9]);
    image.close();
}

#[test]
fn qcow2_1_like_flushed_data_survives_any_power_cut() {
    // Random requests, flushes among them; the power fails at a random operation of the storage, also in the middle of
    // a flush; of what was not flushed any sectors survive. Every byte must then be what it was at the last flush, or
    // what was written since.
    const CLUSTERS: u64 = 12;
    let seed = seed();
    let mut rng = Rng::new(seed);
    let thread = io_thread(true);
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 8 * CLUSTER as usize]);
    for round in 0..100 {
        let storage = MemStorage::new(MemOptions { journal: true, ..MemOptions::new(0) });
        let image = open(&thread, &storage, Some(&backing), Some(small(CLUSTERS * CLUSTER)));
        let mut left = rng.below(1..300);
        storage.set_script(move |_| {
            left = left.saturating_sub(1);
            if left == 0 { Verdict::Hold } else { Verdict::Serve }
        });
        // The values that each byte may have, one bit each: all below 128.
        let mut allowed: Vec<u128> = vec![1; (CLUSTERS * CLUSTER) as usize];
        allowed[..8 * CLUSTER as usize].fill(1 << 0x55);
        let mut current = allowed.clone();
        // No value is that of the backing file.
        for step in (1..120u8).filter(|step| *step != 0x55) {
            let (within, len) =
                if rng.chance(50) { (0, CLUSTER) } else { (rng.below(0..3) * 512, rng.below(1..12) * 512) };
            let offset = rng.below(0..CLUSTERS - 2) * CLUSTER + within;
            let range = offset as usize..(offset + len) as usize;
            let may_be =
                |allowed: &mut Vec<u128>, byte: u8| allowed[range.clone()].iter_mut().for_each(|b| *b |= 1 << byte);
            let root = &image.root;
            let over = match rng.below(0..12) {
                0 | 1 => block_on(or_held(&storage, root.flush())).map(|result| {
                    assert_eq!(result, Ok(()));
                    allowed.copy_from_slice(&current);
                }),
                2..4 => {
                    may_be(&mut allowed, 0);
                    current[range.clone()].fill(1);
                    block_on(or_held(&storage, root.zero(offset, len, RequestFlags::MAY_UNMAP))).map(drop)
                }
                4..7 => block_on(or_held(&storage, async {
                    for _ in 0..6 {
                        let _ = relocate(root, offset / CLUSTER).await;
                    }
                })),
                flags => {
                    let flags = if flags == 7 { RequestFlags::FUA } else { NONE };
                    may_be(&mut allowed, step);
                    current[range.clone()].fill(1 << step);
                    block_on(or_held(&storage, root.write(offset, filled(len, step), flags))).map(|(result, _)| {
                        assert_eq!(result, Ok(()));
                        if flags == RequestFlags::FUA {
                            allowed[range.clone()].fill(1 << step);
                        }
                    })
                }
            };
            if over.is_none() {
                break;
            }
        }
        let survivors = storage.power_cut(|_, _| rng.chance(50));
        storage.release_all();
        image.close();
        let again = MemStorage::with_content(MemOptions::new(0), survivors);
        let image = open(&thread, &again, Some(&backing), None);
        for (at, byte) in image.read(0, CLUSTERS * CLUSTER).into_iter().enumerate() {
            let possible = byte < 128 && allowed[at] & 1 << byte != 0;
            assert!(
                possible,
                "round {round}: byte {at:#x} is {byte:#x}, not of {:#x} (CAIRN_SEED={seed})",
                allowed[at]
            );
        }
        image.close();
    }
}

/// The output of `work`, unless the storage holds a request first.
async fn or_held<F: Future>(storage: &MemStorage, work: F) -> Option<F::Output> {
    let (mut work, mut held) = (Box::pin(work), Box::pin(storage.wait_held(1)));
    std::future::poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => held.as_mut().poll(cx).map(|()| None),
    })
    .await
}

#[test]
fn flush_2_fua_brings_the_table_along() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions { journal: true, ..MemOptions::new(0) });
    let image = open(&thread, &storage, None, Some(small(64 * CLUSTER)));
    // Allocated without FUA, overwritten with it: the second write must not bypass the table.
    image.write(0, 512, 1);
    block_on(image.root.write(0, filled(512, 2), RequestFlags::FUA)).0.expect("written");
    let again = MemStorage::with_content(MemOptions::new(0), storage.power_cut(|_, _| false));
    let image_again = open(&thread, &again, None, None);
    assert_eq!(image_again.read(0, 512), vec![2; 512]);
    image_again.close();
    image.close();

    // The same where the write could go straight to a host file.
    let mut graph = StaticGraph::new(thread.handle());
    let file = MemFile::new(0, FileEngine::Ring, ThreadPool::new(2)).expect("a memfd");
    let file = block_on(graph.node("file").install(file, false)).expect("a file");
    let file_root = graph.root("file", &file, Perm::all());
    let (node, control) = block_on(toy_cow(&mut graph, &file, None, Some(small(64 * CLUSTER)))).expect("an image");
    let root = graph.root("root", &node, Perm::all());
    let entry = || {
        let entry = block_on(read(&file_root, 4096, 8)).expect("read");
        u64::from_le_bytes(entry.try_into().expect("eight bytes"))
    };
    block_on(root.write(0, filled(512, 1), NONE)).0.expect("written");
    assert_eq!(entry(), 0);
    block_on(root.write(0, filled(512, 2), RequestFlags::FUA)).0.expect("written");
    assert_eq!(Some(entry()), control.place(0));
    block_on(graph.close()).expect("closed");
}

#[test]
fn flush_1_like_a_failed_flush_is_done_again_by_the_next() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions { journal: true, ..MemOptions::new(0) });
    let image = open(&thread, &storage, None, Some(small(64 * CLUSTER)));
    for (nth, kind) in [(0, MemOpKind::Flush), (1, MemOpKind::Flush), (0, MemOpKind::Write), (1, MemOpKind::Write)] {
        let at = (nth + 2 * u64::from(kind == MemOpKind::Write)) * 2 * CLUSTER;
        image.write(at, CLUSTER, 7);
        block_on(image.root.truncate(at + 64 * CLUSTER, Preallocation::Off)).expect("grown");
        storage.fail_nth(Some(kind), nth, IoError::host(5));
        assert_eq!(block_on(image.root.flush()), Err(IoError::host(5)), "{kind:?} number {nth}");
        storage.clear_script();
        assert_eq!(block_on(image.root.flush()), Ok(()));
        let again = MemStorage::with_content(MemOptions::new(0), storage.power_cut(|_, _| false));
        let image_again = open(&thread, &again, None, None);
        assert_eq!(image_again.read(at, CLUSTER), vec![7; CLUSTER as usize]);
        assert_eq!(image_again.root.length(), Ok(at + 64 * CLUSTER));
        image_again.close();
    }
    image.close();
}

#[test]
fn a_move_that_fails_leaves_the_cluster_where_it_was() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let image = open(&thread, &storage, None, Some(small(1 << 20)));
    image.write(0, CLUSTER, 1);
    block_on(image.root.flush()).expect("flushed");
    let place = image.control.place(0);
    for kind in [MemOpKind::Read, MemOpKind::Write] {
        storage.fail_nth(Some(kind), 0, IoError::host(28));
        let mut errors = Vec::new();
        while let Err(error) = block_on(relocate(&image.root, 0)) {
            errors.push(error);
            assert!(errors.len() < 20, "{errors:?}");
        }
        assert!(errors.contains(&IoError::host(28)), "{errors:?}");
        storage.clear_script();
    }
    assert_ne!(image.control.place(0), place);
    assert_eq!(image.read(0, CLUSTER), vec![1; CLUSTER as usize]);
    // A failed copy costs no space: both moves fit into one further cluster each.
    assert!(storage.len() <= place.expect("allocated") + 3 * CLUSTER);
    assert_eq!(block_on(relocate(&image.root, 200)), Ok(()), "a cluster that is not allocated has nothing to move");
    assert_eq!(block_on(relocate(&image.root, 1 << 40)), Err(IoError::OUT_OF_BOUNDS));
    image.close();
}

#[test]
fn qcow2_3_like_a_read_on_its_way_never_sees_another_clusters_data() {
    // A read is held in the storage; its cluster is freed, flushed, and others are allocated; then the read goes on.
    let check = |ignore_epochs: bool| {
        let thread = io_thread(true);
        let storage = MemStorage::new(MemOptions::new(0));
        let image = open(&thread, &storage, None, Some(small(1 << 20)));
        image.control.ignore_epochs(ignore_epochs);
        image.write(0, CLUSTER, 1);
        let place = image.control.place(0).expect("allocated");
        storage.hold(Some(MemOpKind::Read));
        let root = image.root.clone();
        let reading = thread.handle().run(async move { read(&root, 0, CLUSTER).await });
        block_on(storage.wait_held(1));
        block_on(image.root.discard(0, CLUSTER)).expect("discarded");
        block_on(image.root.flush()).expect("flushed");
        for i in 1..4 {
            image.write(i * CLUSTER, CLUSTER, 9);
        }
        let reused = (1..4).any(|i| image.control.place(i) == Some(place));
        storage.release_all();
        let data = block_on(reading).expect("it ran").expect("read");
        assert_eq!(data[0] == 9, reused);
        image.close();
        reused
    };
    assert!(!check(false), "a cluster was used again under a read");
    assert!(check(true), "the test is blind: with epochs ignored it must fail");
}

#[test]
fn qcow2_3_like_a_write_on_its_way_never_lands_in_another_cluster() {
    let check = |ignore_epochs: bool| {
        let thread = io_thread(true);
        let storage = MemStorage::new(MemOptions::new(0));
        let image = open(&thread, &storage, None, Some(small(1 << 20)));
        image.control.ignore_epochs(ignore_epochs);
        image.write(0, CLUSTER, 1);
        hold_first_write(&storage);
        let root = image.root.clone();
        let writing = thread.handle().run(async move { root.write(0, filled(CLUSTER, 2), NONE).await.0 });
        block_on(storage.wait_held(1));
        block_on(image.root.discard(0, CLUSTER)).expect("discarded");
        block_on(image.root.flush()).expect("flushed");
        for i in 1..4 {
            image.write(i * CLUSTER, CLUSTER, 9);
        }
        storage.release_all();
        assert_eq!(block_on(writing).expect("it ran"), Ok(()));
        let overwritten = (1..4).any(|i| image.read(i * CLUSTER, 1) != [9]);
        image.close();
        overwritten
    };
    assert!(!check(false), "a late write landed in a cluster that was given to somebody else");
    assert!(check(true), "the test is blind: with epochs ignored it must fail");
}

#[test]
fn a_move_never_loses_a_write_that_is_on_its_way() {
    let check = |ignore_epochs: bool| {
        let thread = io_thread(true);
        let storage = MemStorage::new(MemOptions::new(0));
        let image = open(&thread, &storage, None, Some(small(1 << 20)));
        image.write(0, CLUSTER, 1);
        image.control.ignore_epochs(ignore_epochs);
        hold_first_write(&storage);
        let root = image.root.clone();
        let writing = thread.handle().run(async move { root.write(0, filled(CLUSTER, 2), NONE).await.0 });
        block_on(storage.wait_held(1));
        let place = image.control.place(0);
        let moves: Vec<_> = (0..10).map(|_| block_on(relocate(&image.root, 0))).collect();
        assert_eq!(moves.contains(&Ok(())), ignore_epochs, "{moves:?}");
        // Meanwhile others may write: under the cluster's lock, where it lies now.
        image.write(512, 512, 3);
        storage.release_all();
        assert_eq!(block_on(writing).expect("it ran"), Ok(()));
        if !ignore_epochs {
            image.relocate(0);
            assert_ne!(image.control.place(0), place);
        }
        let lost = image.read(0, 1) != [2];
        image.close();
        lost
    };
    assert!(!check(false), "a write was lost by a move");
    assert!(check(true), "the test is blind: with epochs ignored it must fail");
}

#[test]
fn qcow2_3_like_a_reordering_device_shows_what_leases_are_for() {
    // Readers on a device that reorders, beside tasks that free clusters, flush, and allocate others. The data of every
    // cluster names its cluster: no read may see another's.
    const CLUSTERS: u64 = 16;
    let strangers = |ignore_epochs: bool, seed: u64| {
        let thread = io_thread(true);
        let storage = MemStorage::new(MemOptions::new(0));
        storage.set_logging(false);
        let image = open(&thread, &storage, None, Some(small(CLUSTERS * CLUSTER)));
        image.control.ignore_epochs(ignore_epochs);
        for i in 0..CLUSTERS {
            image.write(i * CLUSTER, CLUSTER, i as u8 + 1);
        }
        storage.reorder(seed, 8);
        // Reads take long, everything else is quick.
        storage.set_script(|op| if op.kind == MemOpKind::Read { Verdict::Reorder } else { Verdict::Serve });
        let tasks = (0..16u64).map(|task| {
            let (root, mut rng) = (image.root.clone(), Rng::new(seed ^ task));
            thread.handle().run(async move {
                let mut strangers = 0;
                for _ in 0..100 {
                    let index = rng.below(0..CLUSTERS);
                    if task < 12 {
                        let data = read(&root, index * CLUSTER, CLUSTER).await.expect("read");
                        strangers += u64::from(data.iter().any(|byte| *byte != 0 && *byte != index as u8 + 1));
                        continue;
                    }
                    root.discard(index * CLUSTER, CLUSTER).await.expect("discarded");
                    root.flush().await.expect("flushed");
                    let other = rng.below(0..CLUSTERS);
                    let buf = filled(CLUSTER, other as u8 + 1);
                    root.write(other * CLUSTER, buf, NONE).await.0.expect("written");
                    let _ = relocate(&root, rng.below(0..CLUSTERS)).await;
                }
                strangers
            })
        });
        let strangers: u64 = block_on(join_all(tasks)).into_iter().map(|count| count.expect("it ran")).sum();
        storage.clear_script();
        let reused = image.control.reused();
        image.close();
        assert!(reused > 10, "{reused} clusters were used again (CAIRN_SEED={seed})");
        strangers
    };
    let seed = seed();
    for i in 0..3 {
        assert_eq!(strangers(false, seed.wrapping_add(i)), 0, "CAIRN_SEED={seed}");
    }
    let caught = (0..20).any(|i| strangers(true, seed.wrapping_add(i)) > 0);
    assert!(caught, "the test is blind: with epochs ignored it must fail (CAIRN_SEED={seed})");
}

#[test]
fn trust_3_a_malformed_image_is_refused() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let image = open(&thread, &storage, None, Some(small(1 << 20)));
    image.write(0, 3 * CLUSTER, 1);
    image.close();
    let good = storage.bytes(0, storage.len() as usize);
    let attempt = |bytes: Vec<u8>| {
        let storage = MemStorage::with_content(MemOptions::new(0), bytes);
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        block_on(toy_cow(&mut graph, &file, None, None)).map(drop)
    };
    assert_eq!(attempt(good.clone()), Ok(()));
    let patch = |at: usize, bytes: &[u8]| {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        bad
    };
    let entry = u64::from_le_bytes(good[4096..4104].try_into().expect("eight bytes"));
    for (what, bytes) in [
        ("magic", patch(0, b"X")),
        ("version", patch(8, &[9])),
        ("cluster size", patch(12, &[63])),
        ("cluster size", patch(12, &[0])),
        ("length", patch(16, &u64::MAX.to_le_bytes())),
        ("capacity", patch(24, &u64::MAX.to_le_bytes())),
        ("capacity", patch(24, &(1u64 << 22).to_le_bytes())),
        ("entry inside the table", patch(4096, &4096u64.to_le_bytes())),
        ("odd entry", patch(4096, &(entry + 512).to_le_bytes())),
        ("entry past the end", patch(4096, &(1u64 << 40).to_le_bytes())),
        ("entry past all numbers", patch(4096, &(u64::MAX << 12).to_le_bytes())),
        ("two entries, one cluster", patch(4104, &entry.to_le_bytes())),
        ("no file", Vec::new()),
        ("half a header", good[..100].to_vec()),
        ("half a table", good[..5000].to_vec()),
    ] {
        let error = attempt(bytes).expect_err(what);
        assert_eq!(error.kind(), IoErrorKind::BadImage, "{what}");
    }
    // Any byte may be wrong: there may be an error or other data, but no panic.
    let mut rng = Rng::new(seed());
    for _ in 0..300 {
        let _ = attempt(patch(rng.below(0..8192) as usize, &[rng.next() as u8]));
    }
}

#[test]
fn dropped_requests_leave_a_drained_image() {
    // Writers that lose interest at every point, over storage that reorders; then everything closes.
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(0));
    let backing = MemStorage::with_content(MemOptions::new(0), vec![0x55; 1 << 20]);
    let image = open(&thread, &storage, Some(&backing), Some(small(1 << 20)));
    storage.reorder(seed(), 5);
    for polls in 0..60usize {
        let at = polls as u64 * 2 * CLUSTER % (1 << 19);
        block_on(block_testkit::bed::drop_after(image.root.write(at, filled(CLUSTER + 512, 7), NONE), polls));
        block_on(block_testkit::bed::drop_after(image.root.flush(), polls));
        block_on(block_testkit::bed::drop_after(relocate(&image.root, at / CLUSTER), polls));
    }
    let (for_home, root) = (thread.handle(), image.root.clone());
    let at_home = for_home.run(async move {
        for polls in 0..60usize {
            let at = (1 << 19) + polls as u64 * 2 * CLUSTER % (1 << 19);
            block_testkit::bed::drop_after(root.write(at, filled(CLUSTER + 512, 7), NONE), polls).await;
            block_testkit::bed::drop_after(root.discard(at, CLUSTER), polls / 2).await;
        }
    });
    block_on(at_home).expect("it ran");
    storage.clear_script();
    image.close();
    let image = open(&thread, &storage, Some(&backing), None);
    let data = image.read(0, 1 << 20);
    assert!(data.iter().all(|byte| [0, 7, 0x55].contains(byte)));
    image.close();
}
