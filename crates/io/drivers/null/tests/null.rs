//! The null driver through the suite: everything but keeping data.

#![forbid(unsafe_code)]

use block_common::{AlignedBuf, BlockStatus, IoError, Perm, Preallocation, RequestFlags};
use block_io::{Root, StaticGraph};
use block_null::{Null, NullControl, NullOptions};
use block_testkit::bed::{block_on, io_thread, join_all};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use std::time::{Duration, Instant};

fn with(options: NullOptions, work: impl FnOnce(&Root, &NullControl)) {
    let thread = io_thread(true);
    let mut graph = StaticGraph::new(thread.handle());
    let (engine, control) = Null::new(options);
    let node = block_on(graph.node("null").install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    work(&root, &control);
    block_on(graph.close()).expect("closed");
}

#[test]
fn it_conforms_but_for_storing() {
    for name in ["null-co", "null-aio"] {
        for latency in [Duration::ZERO, Duration::from_micros(10)] {
            let options = NullOptions { name, latency, size: 1 << 20, ..NullOptions::default() };
            with(options, |root, _| {
                let options = ConformanceOptions { stores: false, resizable: false, ..ConformanceOptions::default() };
                run_everywhere(root, &options);
                assert_eq!(block_on(root.truncate(1, Preallocation::Off)), Err(IoError::UNSUPPORTED));
            });
        }
    }
}

fn first_byte(root: &Root) -> u8 {
    let mut buf = AlignedBuf::zeroed(4096, 512);
    buf.fill(0x55);
    let (result, buf) = block_on(root.read(512, buf.into_io()));
    result.expect("read");
    buf.expect("the buffer comes back").to_aligned(1)[0]
}

#[test]
fn reads_give_zeroes_or_leave_the_buffer_alone() {
    with(NullOptions::default(), |root, control| {
        assert_eq!(root.length(), Ok(1 << 30));
        assert_eq!(first_byte(root), 0x55);
        assert_eq!(block_on(root.block_status(0, 512)).expect("a status").status, BlockStatus::OFFSET_VALID);
        control.set(Duration::ZERO, true);
        assert_eq!(first_byte(root), 0);
        assert!(block_on(root.block_status(0, 512)).expect("a status").is_zero());
        assert_eq!(block_on(root.write(0, AlignedBuf::zeroed(512, 1).into_io(), RequestFlags::FUA)).0, Ok(()));
    });
}

#[test]
fn requests_take_their_time_beside_each_other() {
    let latency = Duration::from_millis(20);
    with(NullOptions { latency, ..NullOptions::default() }, |root, control| {
        let begin = Instant::now();
        let reads = (0..32).map(|i| root.read(i * 512, AlignedBuf::zeroed(512, 1).into_io()));
        assert!(block_on(join_all(reads)).iter().all(|(result, _)| result.is_ok()));
        let took = begin.elapsed();
        assert!(took >= latency && took < latency * 16, "32 requests took {took:?}");
        control.set(Duration::ZERO, false);
    });
}
