//! Requests on files: buffered and with O_DIRECT, through the ring and through threads.

use crate::common::{create, dir, filled, graph, open, open_or_skip, options, read};
use block_common::{BlockStatus, HostOffset, IoError, Perm, Preallocation, RequestFlags};
use block_file_posix::FilePosixOptions;
use block_io::{Access, Driver, RequestKind, on_host_files, ring_available};
use block_testkit::bed::{Way, block_on, skipped, toy_cow, toy_filter, yield_now};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{Rng, TOY_RELOCATE, ToyFormat};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;

const NONE: RequestFlags = RequestFlags::empty();

/// Every way, buffered and direct.
fn everywhere(test: &str, dir: &Path, mut work: impl FnMut(Way, FilePosixOptions)) {
    if !ring_available() {
        skipped(test, "no io_uring: its requests went through threads");
    }
    for direct in [false, true] {
        for way in Way::ALL {
            let path = dir.join(format!("image-{direct}-{way:?}"));
            create(&path, 2 << 20);
            work(way, FilePosixOptions { engine: way.engine, ..options(&path, direct) });
        }
    }
}

#[test]
fn files_conform_every_way() {
    let dir = dir();
    everywhere("files_conform_every_way", dir.path(), |way, options| {
        let Some((engine, _)) = open_or_skip("files_conform_every_way", options) else { return };
        let opened = graph(way, engine);
        run_everywhere(&opened.root, &ConformanceOptions::default());
        opened.close();
    });
}

#[test]
fn files_in_memory_conform_too() {
    // Another file system has other answers to fallocate and other alignments.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return skipped("files_in_memory_conform_too", "no /dev/shm");
    };
    everywhere("files_in_memory_conform_too", dir.path(), |way, options| {
        let Some((engine, _)) = open_or_skip("files_in_memory_conform_too", options) else { return };
        let opened = graph(way, engine);
        let region = 300_000;
        run_everywhere(&opened.root, &ConformanceOptions { region, ..ConformanceOptions::default() });
        opened.close();
    });
}

#[test]
fn a_model_agrees_from_two_threads_every_way() {
    let dir = dir();
    everywhere("a_model_agrees_from_two_threads_every_way", dir.path(), |way, options| {
        let Some((engine, _)) = open_or_skip("a_model_agrees_from_two_threads_every_way", options) else { return };
        let opened = graph(way, engine);
        let second = way.thread();
        let threads = vec![opened.thread.handle(), second.handle()];
        let options = ModelOptions { threads, requests: 3000, ..ModelOptions::default() };
        let report = block_on(model::run(&opened.root, options)).expect("the model agrees");
        assert_eq!(report.failed, 0);
        opened.close();
    });
}

#[test]
fn a_format_and_a_filter_over_files_agree_with_the_model_while_clusters_move() {
    let dir = dir();
    let test = "a_format_and_a_filter_over_files_agree_with_the_model_while_clusters_move";
    // How often a cluster was moved, and one used again: whether it happens in one run is a matter of luck.
    let (mut moved, mut reused) = (0, 0);
    everywhere(test, dir.path(), |way, options| {
        let Some((engine, _)) = open_or_skip(test, options) else { return };
        let mut opened = graph(way, engine);
        let (filter, _) = block_on(toy_filter(&mut opened.graph, &opened.node)).expect("a filter");
        let format = ToyFormat { length: 1 << 20, length_max: 1 << 20, cluster_size: 16_384 };
        let (node, control) = block_on(toy_cow(&mut opened.graph, &filter, None, Some(format))).expect("an image");
        let root = opened.graph.root("toy", &node, Perm::all());
        let second = way.thread();
        let threads = vec![opened.thread.handle(), second.handle()];
        let options = ModelOptions { threads, requests: 4000, ..ModelOptions::default() };
        let (mover_root, seed) = (root.clone(), options.seed);
        let mover = second.handle().run(async move {
            let (mut rng, mut moved) = (Rng::new(seed), 0);
            for _ in 0..2000 {
                let argument = filled(8, 0);
                argument.copy_from_slice(0, &rng.below(0..64).to_le_bytes());
                moved += u32::from(mover_root.ioctl(TOY_RELOCATE, argument).await == Ok(()));
                yield_now().await;
            }
            moved
        });
        let report = block_on(model::run(&root, options)).expect("the model agrees");
        assert_eq!(report.failed, 0);
        moved += block_on(mover).expect("it ran");
        reused += control.reused();
        opened.close();
    });
    assert!(moved > 0 && reused > 0);
}

#[test]
fn buffers_that_o_direct_cannot_take_are_bounced() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 1 << 20);
    let test = "buffers_that_o_direct_cannot_take_are_bounced";
    let Some((engine, _)) = open_or_skip(test, options(&path, true)) else { return };
    let opened = graph(Way::ALL[0], engine);
    let limits = opened.root.limits().expect("limits");
    assert!(limits.request_alignment >= 512 && limits.memory_alignment >= limits.request_alignment, "{limits:?}");
    for skew in [1, 3, 8, 511] {
        let buf = filled(8192 + skew, skew as u8).slice(skew, 8192);
        block_on(opened.root.write(4096, buf, NONE)).0.expect("written");
        assert_eq!(std::fs::read(&path).expect("read")[4096..12_288], vec![skew as u8; 8192]);
        let (result, buf) = block_on(opened.root.read(4096, filled(8192 + skew, 0).slice(skew, 8192)));
        result.expect("read");
        let expected = vec![skew as u8; 8192];
        assert_eq!(buf.expect("the buffer comes back").to_aligned(1)[..], expected[..]);
    }
    opened.close();
}

#[test]
fn a_file_that_shrank_reads_as_zeroes_past_its_end() {
    let dir = dir();
    let test = "a_file_that_shrank_reads_as_zeroes_past_its_end";
    everywhere(test, dir.path(), |way, options| {
        let path = options.path.clone();
        let Some((engine, _)) = open_or_skip(test, options) else { return };
        let alignment = u64::from(engine.limits().request_alignment);
        let opened = graph(way, engine);
        block_on(opened.root.write(0, filled(1 << 20, 7), NONE)).0.expect("written");
        block_on(opened.root.flush()).expect("flushed");
        // Somebody else cuts it, at an odd place.
        std::fs::OpenOptions::new().write(true).open(&path).expect("opened").set_len(10_000).expect("cut");
        let data = read(&opened.root, 8192, 8192);
        assert_eq!((data[1807], data[1808], data[8191]), (7, 0, 0));
        assert_eq!(read(&opened.root, 65_536, 4096), vec![0; 4096]);
        assert!(block_on(opened.root.block_status(65_536, 4096)).expect("a status").is_zero());
        // With O_DIRECT its last block counts as a whole.
        assert_eq!(block_on(opened.root.refresh_length()), Ok(10_000_u64.next_multiple_of(alignment)));
        assert_eq!(block_on(opened.root.read(65_536, filled(4096, 0))).0, Err(IoError::OUT_OF_BOUNDS));
        opened.close();
    });
}

#[test]
fn stat_1_holes_are_found_where_they_are() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 1 << 20);
    std::fs::OpenOptions::new().write(true).open(&path).expect("opened").write_at(&[1; 4096], 65_536).expect("written");
    let (engine, _) = open(options(&path, false)).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    let mut at = 0;
    let mut data = 0;
    while at < 1 << 20 {
        let extent = block_on(opened.root.block_status(at, (1 << 20) - at)).expect("a status");
        assert_eq!(extent.host_offset, Some(HostOffset(at)));
        assert!(extent.is_allocated() && extent.is_zero() != extent.status.contains(BlockStatus::DATA), "{extent:?}");
        if !extent.is_zero() {
            data += extent.len;
        }
        at += extent.len;
    }
    // A file system without holes calls everything data.
    assert!(data == 4096 || data == 1 << 20 || data.is_multiple_of(4096), "{data} bytes of data");
    opened.close();
}

/// Asked for many at a time, extents are those that are told one by one, wherever the question begins and ends.
#[test]
fn stat_1_many_extents_are_those_of_single_questions() {
    let test = "stat_1_many_extents_are_those_of_single_questions";
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 1 << 20);
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    let mut rng = Rng::new(block_testkit::seed());
    for at in 0..256 {
        if rng.chance(50) {
            file.write_at(&[1; 4096], at * 4096).expect("written");
        }
    }
    for direct in [false, true] {
        let Some((engine, _)) = open_or_skip(test, options(&path, direct)) else { continue };
        let opened = graph(Way::ALL[0], engine);
        let step = u64::from(opened.root.limits().expect("limits").request_alignment);
        for _ in 0..100 {
            let start = rng.below(0..1 << 20) / step * step;
            let (len, max) = (rng.below(1..(1 << 20) - start + 1), rng.below(1..40) as usize);
            let told = block_on(opened.root.block_statuses(start, len, max)).expect("statuses");
            assert!((1..=max).contains(&told.len()), "{} of {max}", told.len());
            let mut at = start;
            for extent in told {
                let alone = block_on(opened.root.block_status(at, start + len - at)).expect("a status");
                assert_eq!(extent, alone, "at {at}, asked about {start}+{len}");
                at += extent.len;
            }
            assert!(at <= start + len);
        }
        opened.close();
    }
}

/// Many writes at once are what as many requests are, every way.
#[test]
fn many_writes_are_as_many_requests() {
    let dir = dir();
    everywhere("many_writes_are_as_many_requests", dir.path(), |way, options| {
        let path = options.path.clone();
        let Some((engine, _)) = open_or_skip("many_writes_are_as_many_requests", options) else { return };
        let opened = graph(way, engine);
        let mut rng = Rng::new(block_testkit::seed());
        let mut model = vec![0; 2 << 20];
        for _ in 0..20 {
            let (mut writes, mut at) = (Vec::new(), 0);
            while writes.len() < 100 {
                at += rng.below(0..9000) as usize;
                let len = rng.below(1..5000) as usize;
                if at + len > model.len() {
                    break;
                }
                let byte = rng.next() as u8;
                model[at..at + len].fill(byte);
                writes.push((at as u64, filled(len, byte)));
                at += len;
            }
            let (before, count) = (opened.root.count(RequestKind::Write).requests, writes.len() as u64);
            assert_eq!(block_on(opened.root.write_many(writes, NONE)), Ok(()));
            assert_eq!(opened.root.count(RequestKind::Write).requests, before + count);
        }
        assert!(read(&opened.root, 0, model.len()) == model);
        // The first that fails is named, and what is before it was carried out.
        let failing = vec![(0, filled(512, 1)), (2 << 20, filled(512, 1))];
        assert_eq!(block_on(opened.root.write_many(failing, NONE)), Err((1, IoError::OUT_OF_BOUNDS)));
        assert_eq!(read(&opened.root, 0, 512), [1; 512]);
        assert_eq!(block_on(opened.root.write_many(Vec::new(), NONE)), Ok(()));
        opened.close();
        assert!(std::fs::read(path).expect("the file")[512..] == model[512..]);
    });
}

/// How much of `len` bytes at `at` the page cache has, from their first one on, or why that cannot be told.
fn cached(file: &std::fs::File, at: u64, len: usize) -> Result<usize, rustix::io::Errno> {
    let mut buf = vec![0; len];
    let vec = std::io::IoSliceMut::new(&mut buf);
    match rustix::io::preadv2(file, &mut [vec], at, rustix::io::ReadWriteFlags::NOWAIT) {
        Err(rustix::io::Errno::AGAIN) => Ok(0),
        other => other,
    }
}

/// What is not needed again soon leaves the host's cache when it is on the disk, where the host can do that, and is written all the same where it
/// cannot.
#[test]
fn the_host_need_not_keep_what_is_written() {
    let test = "the_host_need_not_keep_what_is_written";
    let memory = tempfile::tempdir_in("/dev/shm").map_err(|_| skipped(test, "no /dev/shm")).ok();
    let disk = dir();
    let len = 1 << 20;
    for (number, place) in [Some(&disk), memory.as_ref()].into_iter().flatten().enumerate() {
        for way in Way::ALL {
            let path = place.path().join(format!("{way:?}"));
            create(&path, 2 * len as u64);
            let (engine, _) = open(options(&path, false)).expect("opened");
            let opened = graph(way, engine);
            for byte in 1..4 {
                let written = block_on(opened.root.write(0, filled(len, byte), RequestFlags::DONT_CACHE));
                assert_eq!(written.0, Ok(()));
                assert!(read(&opened.root, 0, len) == vec![byte; len]);
            }
            // Where nobody has read: what somebody else has in the cache stays there.
            let at = len as u64;
            assert_eq!(block_on(opened.root.write(at, filled(len, 4), RequestFlags::DONT_CACHE)).0, Ok(()));
            assert_eq!(block_on(opened.root.flush()), Ok(()));
            opened.close();
            let file = std::fs::File::open(&path).expect("opened");
            if number == 0 && drops_behind(place.path()) {
                let left = (0..100).find(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    cached(&file, at, len).expect("the file system tells") < len
                });
                assert!(left.is_some(), "{way:?}: all of it is still in the cache");
            } else if number == 0 {
                skipped(test, "this file system keeps in the cache what was written");
            }
            let expected = [vec![3; len], vec![4; len]].concat();
            assert!(std::fs::read(&path).expect("read") == expected);
        }
    }
}

/// Whether the file system of `dir` knows such writes.
fn drops_behind(dir: &Path) -> bool {
    let file = tempfile::tempfile_in(dir).expect("a file");
    let flag = rustix::io::ReadWriteFlags::from_bits_retain(0x80);
    rustix::io::pwritev2(&file, &[std::io::IoSlice::new(&[1; 4096])], 0, flag).is_ok()
}

/// Work on a host file is a request while it lasts, keeps to its range, and is done for those alone who may.
#[test]
fn drain_4_work_on_a_host_file_is_in_flight() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 1 << 20);
    let (engine, _) = open(options(&path, false)).expect("opened");
    let mut opened = graph(Way::ALL[0], engine);
    let reader = opened.graph.root("reader", &opened.node, Perm::CONSISTENT_READ);
    let (tell, told) = std::sync::mpsc::channel();
    let (let_go, go) = std::sync::mpsc::channel();
    let ranges = vec![(opened.root.clone(), 4096, 4096, Access::Write), (reader.clone(), 0, 8192, Access::Read)];
    let work = on_host_files(ranges, move |ranges| {
        tell.send(()).expect("somebody waits");
        go.recv().expect("somebody lets go");
        let mut back = [0; 8192];
        let answers = [
            ranges[0].write_at(0, &[7; 4096]),
            ranges[0].write_at(4095, &[8; 2]),
            ranges[0].read_at(u64::MAX, &mut [0; 2]),
            ranges[1].write_at(0, &[9; 1]),
            ranges[1].read_at(0, &mut back),
        ];
        (answers, back)
    });
    let working = std::thread::spawn(move || block_on(work));
    told.recv().expect("it begins");
    assert_eq!((opened.root.in_flight(), reader.in_flight()), (1, 1));
    let_go.send(()).expect("it waits");
    let (answers, back) = working.join().expect("no panic").expect("both are files");
    let outside = Err(IoError::OUT_OF_BOUNDS);
    assert_eq!(answers, [Ok(()), outside, outside, Err(IoError::NOT_PERMITTED), Ok(())]);
    assert!(back[..4096] == [0; 4096] && back[4096..] == [7; 4096]);
    assert_eq!((opened.root.in_flight(), reader.in_flight()), (0, 0));
    assert_eq!((opened.root.count(RequestKind::Write).bytes, reader.count(RequestKind::Read).bytes), (4096, 8192));
    let refused = |root: &block_io::Root, len, access| {
        block_on(on_host_files(vec![(root.clone(), 0, len, access)], |_| ())).expect_err("refused")
    };
    assert_eq!(refused(&reader, 512, Access::Write), IoError::NOT_PERMITTED);
    assert_eq!(refused(&reader, 2 << 20, Access::Read), IoError::UNSUPPORTED);
    assert_eq!(refused(&reader, u64::MAX, Access::Read), IoError::OUT_OF_BOUNDS);
    opened.close();
}

/// What the host refuses is told of the first of many writes.
#[test]
fn many_writes_that_the_host_refuses_are_told() {
    use rustix::fs::{MemfdFlags, SealFlags};
    let memory = rustix::fs::memfd_create("image", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).expect("a file");
    rustix::fs::ftruncate(&memory, 1 << 20).expect("resized");
    let fd = memory.try_clone().expect("a duplicate");
    let (engine, _) = open(FilePosixOptions { fd: Some(fd), ..options(Path::new("memory"), false) }).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    let writes = || (0..10).map(|at| (at * 8192, filled(4096, 1))).collect::<Vec<_>>();
    assert_eq!(block_on(opened.root.write_many(writes(), NONE)), Ok(()));
    rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE).expect("sealed");
    assert_eq!(block_on(opened.root.write_many(writes(), NONE)), Err((0, IoError::host(1))));
    let count = opened.root.count(RequestKind::Write);
    assert_eq!((count.requests, count.failed), (10, 1), "those behind the first were not tried");
    opened.close();
}

#[test]
fn zero_1_zeroes_that_may_unmap_give_space_back_and_others_keep_it() {
    let dir = dir();
    let path = dir.path().join("image");
    create(&path, 4 << 20);
    let (engine, _) = open(options(&path, false)).expect("opened");
    let opened = graph(Way::ALL[0], engine);
    let blocks = || {
        block_on(opened.root.flush()).expect("flushed");
        std::fs::metadata(&path).expect("looked at").blocks() * 512
    };
    block_on(opened.root.write(0, filled(4 << 20, 7), NONE)).0.expect("written");
    let full = blocks();
    assert!(full >= 4 << 20);
    block_on(opened.root.zero(0, 1 << 20, NONE)).expect("zeroed");
    assert!(blocks() >= 4 << 20, "a zero write that may not unmap gave space back");
    block_on(opened.root.zero(1 << 20, 1 << 20, RequestFlags::MAY_UNMAP)).expect("zeroed");
    let unmapped = blocks();
    block_on(opened.root.discard(2 << 20, 1 << 20)).expect("discarded");
    let discarded = blocks();
    if discarded == full {
        skipped("zero_1_zeroes_that_may_unmap_give_space_back_and_others_keep_it", "a file system without holes");
    } else {
        assert!(unmapped <= full - (1 << 20) && discarded <= unmapped - (1 << 20), "{full} {unmapped} {discarded}");
    }
    assert_eq!(read(&opened.root, 0, 2 << 20), vec![0; 2 << 20]);
    assert_eq!(read(&opened.root, 3 << 20, 1 << 20), vec![7; 1 << 20]);
    opened.close();
}

#[test]
fn truncation_allocates_what_it_is_told_to() {
    let dir = dir();
    for direct in [false, true] {
        let path = dir.path().join(format!("image-{direct}"));
        create(&path, 0);
        let Some((engine, _)) = open_or_skip("truncation_allocates_what_it_is_told_to", options(&path, direct)) else {
            continue;
        };
        let alignment = u64::from(engine.limits().request_alignment);
        let aligned = |len: u64| Ok(len.next_multiple_of(alignment));
        let opened = graph(Way::ALL[0], engine);
        let truncate = |len, mode| block_on(opened.root.truncate(len, mode));
        let allocated = || std::fs::metadata(&path).expect("looked at").blocks() * 512;
        assert_eq!(truncate(1000, Preallocation::Off), Ok(()));
        assert_eq!(opened.root.length(), aligned(1000));
        assert!(allocated() > 0, "a file that gets its first bytes gets its first block");
        assert_eq!(truncate(300_000, Preallocation::Falloc), Ok(()));
        assert!(allocated() >= 294_912, "{} bytes are allocated", allocated());
        assert_eq!(truncate(600_001, Preallocation::Full), Ok(()));
        assert!(allocated() >= 598_016, "{} bytes are allocated", allocated());
        assert_eq!(opened.root.length(), aligned(600_001));
        assert_eq!(truncate(700_000, Preallocation::Metadata), Err(IoError::UNSUPPORTED));
        assert_eq!(truncate(100, Preallocation::Falloc), Err(IoError::UNSUPPORTED));
        assert_eq!(truncate(u64::MAX / 2, Preallocation::Off).map_err(|error| error.errno().raw()), Err(libc_efbig()));
        assert_eq!(opened.root.length(), aligned(600_001));
        assert_eq!(truncate(4096, Preallocation::Off), Ok(()));
        assert_eq!(read(&opened.root, 0, 4096), vec![0; 4096]);
        opened.close();
    }
}

fn libc_efbig() -> i32 {
    block_common::Errno::EFBIG.raw()
}

#[test]
fn writes_past_the_end_need_a_parent_that_may_resize() {
    let dir = dir();
    let test = "writes_past_the_end_need_a_parent_that_may_resize";
    everywhere(test, dir.path(), |way, options| {
        let path = options.path.clone();
        let Some((engine, _)) = open_or_skip(test, options) else { return };
        let mut opened = graph(way, engine);
        let write = block_on(opened.root.write(2 << 20, filled(4096, 7), NONE)).0;
        assert_eq!(write, Err(IoError::OUT_OF_BOUNDS));
        let format = ToyFormat { length: 4 << 20, length_max: 4 << 20, cluster_size: 65_536 };
        let (node, _) = block_on(toy_cow(&mut opened.graph, &opened.node, None, Some(format))).expect("an image");
        let root = opened.graph.root("toy", &node, Perm::all());
        block_on(root.write(0, filled(4 << 20, 7), NONE)).0.expect("written");
        assert_eq!(read(&root, 0, 4 << 20), vec![7; 4 << 20]);
        assert_eq!(std::fs::metadata(&path).expect("looked at").len(), (4 << 20) + 65_536);
        opened.close();
    });
}

#[test]
fn a_thread_that_ends_with_requests_in_flight_leaves_nothing_behind() {
    // The requests' callers are dropped, then the thread, then the file: the kernel must not write into freed memory.
    let dir = dir();
    let test = "a_thread_that_ends_with_requests_in_flight_leaves_nothing_behind";
    everywhere(test, dir.path(), |way, options| {
        for polls in 0..4 {
            let copy =
                FilePosixOptions { engine: options.engine, ..crate::common::options(&options.path, options.direct) };
            let Some((engine, _)) = open_or_skip(test, copy) else { return };
            let opened = graph(way, engine);
            for i in 0..32u64 {
                let write = opened.root.write(i * 8192, filled(8192, 7), NONE);
                block_on(block_testkit::bed::drop_after(write, polls));
                let read = opened.root.read(i * 8192, filled(8193, 0).slice(1, 8192));
                block_on(block_testkit::bed::drop_after(read, polls));
            }
            let root = opened.root.clone();
            drop(opened.thread);
            assert_eq!(root.in_flight(), 0);
            assert_eq!(block_on(root.flush()), Err(IoError::CANCELLED));
        }
    });
}

/// Names the file that the child process of the next test writes to, and how.
const LIMITED: &str = "CAIRN_TEST_LIMITED_FILE";

#[test]
fn req_4_a_write_that_fails_half_way_says_so() {
    // A process may not write past its file size limit: the kernel shortens the write that crosses it, and refuses the
    // rest.
    if let Ok(path) = std::env::var(LIMITED) {
        return in_the_limited_process(Path::new(&path));
    }
    let dir = dir();
    let path = dir.path().join("limited");
    create(&path, 1 << 20);
    let this = std::env::current_exe().expect("a path");
    let script = "trap '' XFSZ; ulimit -f 128 && exec \"$@\"";
    let status = std::process::Command::new("sh")
        .args(["-c", script, "sh"])
        .arg(this)
        .args(["--exact", "requests::req_4_a_write_that_fails_half_way_says_so", "--nocapture"])
        .env(LIMITED, &path)
        .status();
    assert!(status.expect("a shell").success());
}

fn in_the_limited_process(path: &Path) {
    // `ulimit -f` counts blocks of 512 bytes in sh, and of 1024 in some others: find the limit itself.
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opened");
    let limit = [1u64 << 16, 1 << 17].into_iter().find(|limit| file.write_at(&[0], *limit).is_err());
    let limit = limit.expect("a limit");
    std::io::stdout().flush().expect("flushed");
    for direct in [false, true] {
        for way in Way::ALL {
            let options = FilePosixOptions { engine: way.engine, ..options(path, direct) };
            let Some((engine, _)) = open_or_skip("req_4_a_write_that_fails_half_way_says_so", options) else {
                continue;
            };
            let opened = graph(way, engine);
            let before = read(&opened.root, limit, 16_384);
            let fill = |byte| block_on(opened.root.write(limit - 32_768, filled(32_768, byte), NONE)).0;
            fill(1).expect("written");
            // Some kernels and file systems write the part that fits, others nothing: never more, and never success.
            let result = block_on(opened.root.write(limit - 16_384, filled(32_768, 2), NONE)).0;
            assert_eq!(result.map_err(|error| error.errno().raw()), Err(libc_efbig()), "{way:?}, direct: {direct}");
            assert_eq!(opened.root.count(RequestKind::Write).failed, 1);
            assert_eq!(read(&opened.root, limit - 32_768, 16_384), vec![1; 16_384]);
            let rest = read(&opened.root, limit - 16_384, 16_384);
            assert!(rest.iter().all(|byte| [1, 2].contains(byte)));
            assert_eq!(read(&opened.root, limit, 16_384), before);
            opened.close();
        }
    }
}
