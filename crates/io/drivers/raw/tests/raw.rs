//! The raw driver: the suite through every window, and what a window does to lengths, statuses and errors.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    AlignedBuf, BlockStatus, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Perm,
    PermPair, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{
    Access, DeviceBlocks, DiskGeometry, Driver, IoThread, Mapping, NodeControl, Req, Root, RootControl, StaticGraph,
    StaticNode, ThreadPool,
};
use block_raw::{Raw, RawControl, RawError, RawOptions};
use block_testkit::bed::{Way, block_on, io_thread, toy_cow, toy_filter};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemFile, MemMode, MemOptions, MemStorage, TOY_RELOCATE, ToyFormat};

const NONE: RequestFlags = RequestFlags::empty();
const LENGTH: u64 = 2 << 20;

async fn raw(
    graph: &mut StaticGraph,
    file: &StaticNode,
    options: RawOptions,
) -> Result<(StaticNode, RawControl), RawError> {
    let mut shell = graph.node("raw");
    let edge = shell.child(ChildRole::IMAGE, Perm::all(), file);
    let opened = shell.run(|req| async move { Ok(Raw::open(&req, edge, options).await) }).await;
    let (engine, control) = opened.map_err(RawError::Child)??;
    Ok((shell.install(engine, false).await.map_err(RawError::Child)?, control))
}

struct Window {
    graph: StaticGraph,
    root: Root,
}

fn open(thread: &IoThread, storage: &MemStorage, offset: u64, size: Option<u64>) -> Result<Window, RawError> {
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
    let (node, _) = block_on(raw(&mut graph, &file, RawOptions { offset, size }))?;
    let root = graph.root("root", &node, Perm::all());
    Ok(Window { graph, root })
}

fn storage(length: u64) -> MemStorage {
    MemStorage::with_content(MemOptions::new(0), (0..length).map(|i| (i / 512) as u8 | 1).collect())
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

#[test]
fn every_window_conforms_and_nothing_around_it_changes() {
    let thread = io_thread(true);
    let windows =
        [(0, None), (512, None), (100, None), (0, Some(1 << 20)), (65_536, Some(1 << 20)), (777, Some(600 * 512))];
    for (offset, size) in windows {
        for mode in [MemMode::Now, MemMode::Slow] {
            let storage = storage(LENGTH);
            storage.set_mode(mode);
            storage.set_logging(false);
            let window = open(&thread, &storage, offset, size).expect("a window");
            assert_eq!(window.root.length(), Ok(size.unwrap_or(LENGTH - offset)));
            let before = storage.bytes(0, LENGTH as usize);
            let options = ConformanceOptions { resizable: size.is_none(), ..ConformanceOptions::default() };
            run_everywhere(&window.root, &options);
            let second = io_thread(true);
            let threads = vec![thread.handle(), second.handle()];
            block_on(model::run(&window.root, ModelOptions { threads, ..ModelOptions::default() }))
                .expect("the model agrees");
            let end = (offset + size.unwrap_or(LENGTH - offset)) as usize;
            let after = storage.bytes(0, LENGTH as usize);
            assert_eq!(after[..offset as usize], before[..offset as usize]);
            assert!(after[end..] == before[end..]);
            block_on(window.graph.close()).expect("closed");
        }
    }
}

#[test]
fn it_conforms_over_files_every_way() {
    for way in Way::ALL {
        let thread = way.thread();
        let mut graph = StaticGraph::new(thread.handle());
        let file = MemFile::new(LENGTH, way.engine, ThreadPool::new(4)).expect("a memfd");
        let file = block_on(graph.node("file").install(file, false)).expect("a file");
        let options = RawOptions { offset: 4096, size: None };
        let (outer, _) = block_on(raw(&mut graph, &file, options)).expect("a window");
        let (node, _) = block_on(raw(&mut graph, &outer, options)).expect("a window in a window");
        let root = graph.root("root", &node, Perm::all());
        assert_eq!(root.length(), Ok(LENGTH - 8192));
        run_everywhere(&root, &ConformanceOptions::default());
        let second = way.thread();
        let threads = vec![thread.handle(), second.handle()];
        block_on(model::run(&root, ModelOptions { threads, ..ModelOptions::default() })).expect("the model agrees");
        block_on(graph.close()).expect("closed");
    }
}

#[test]
fn it_conforms_over_an_odd_end() {
    let thread = io_thread(true);
    for (alignment, offset) in [(512, 0), (512, 512), (4096, 4096)] {
        let limits = Limits { request_alignment: alignment, memory_alignment: alignment, ..Limits::NONE };
        let storage = MemStorage::new(MemOptions { limits, grows: false, ..MemOptions::new((1 << 20) - 100) });
        storage.set_logging(false);
        let window = open(&thread, &storage, offset, None).expect("a window");
        run_everywhere(&window.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
        block_on(window.graph.close()).expect("closed");
    }
}

#[test]
fn windows_that_cannot_be_are_refused_in_the_fields_words() {
    let thread = io_thread(true);
    let storage = storage(1 << 20);
    let check = |offset: u64, size: Option<u64>, words: &str| match open(&thread, &storage, offset, size) {
        Ok(_) => panic!("{offset}, {size:?} was opened"),
        Err(error) => assert_eq!(error.to_string(), words),
    };
    check(2097152, None, "Offset (2097152) cannot be greater than size of the containing file (1048576)");
    check(u64::MAX, None, "Offset (18446744073709551615) cannot be greater than size of the containing file (1048576)");
    check(
        524288,
        Some(1048576),
        "The sum of offset (524288) and size (1048576) has to be smaller or equal to the  actual size of the \
         containing file (1048576)",
    );
    check(
        1,
        Some(u64::MAX),
        "The sum of offset (1) and size (18446744073709551615) has to be smaller or equal to the  actual size of the \
         containing file (1048576)",
    );
    check(0, Some(100), "Specified size is not multiple of 512");
    for (offset, size, length) in [(1 << 20, None, 0), (1 << 20, Some(0), 0), (1 << 19, Some(1 << 19), 1 << 19)] {
        let window = open(&thread, &storage, offset, size).expect("a window");
        assert_eq!(window.root.length(), Ok(length));
        block_on(window.graph.close()).expect("closed");
    }
}

#[test]
fn the_length_follows_the_child_unless_it_is_fixed() {
    let thread = io_thread(true);
    let storage = storage(10_240);
    let open = open(&thread, &storage, 1024, None).expect("a window");
    let fixed = self::open(&thread, &storage, 1024, Some(4096)).expect("a window");
    let lengths = || (block_on(open.root.refresh_length()), block_on(fixed.root.refresh_length()));
    assert_eq!(lengths(), (Ok(9216), Ok(4096)));
    storage.set_len(3072);
    assert_eq!(lengths(), (Ok(2048), Ok(2048)));
    storage.set_len(512);
    assert_eq!(lengths(), (Ok(0), Ok(0)));
    storage.set_len(20_480);
    assert_eq!(lengths(), (Ok(19_456), Ok(4096)));

    // Resizing goes to the child, beyond the offset; a fixed window has none.
    assert_eq!(block_on(open.root.truncate(4096, Preallocation::Off)), Ok(()));
    assert_eq!((open.root.length(), storage.len()), (Ok(4096), 5120));
    assert_eq!(block_on(open.root.truncate(u64::MAX, Preallocation::Off)), Err(IoError::INVALID));
    assert_eq!(block_on(fixed.root.truncate(1024, Preallocation::Off)), Err(IoError::UNSUPPORTED));
    assert_eq!(storage.len(), 5120);
    block_on(open.graph.close()).expect("closed");
    block_on(fixed.graph.close()).expect("closed");
}

#[test]
fn stat_1_the_childs_status_is_translated() {
    let thread = io_thread(true);
    let storage = MemStorage::new(MemOptions::new(65_536));
    let window = open(&thread, &storage, 4096, Some(8192)).expect("a window");
    block_on(window.root.write(1024, filled(512, 7), NONE)).0.expect("written");
    let status = |offset, len| {
        let extent = block_on(window.root.block_status(offset, len)).expect("a status");
        let content = extent.status & (BlockStatus::DATA | BlockStatus::ZERO | BlockStatus::EOF);
        (content, extent.len, extent.host_offset)
    };
    assert_eq!(status(0, 8192), (BlockStatus::ZERO, 1024, Some(HostOffset(4096))));
    assert_eq!(status(1024, 7168), (BlockStatus::DATA, 512, Some(HostOffset(5120))));
    assert_eq!(status(1536, 6656), (BlockStatus::ZERO | BlockStatus::EOF, 6656, Some(HostOffset(5632))));
    assert_eq!(block_on(window.root.block_status(0, 8193)), Err(IoError::OUT_OF_BOUNDS));
    block_on(window.graph.close()).expect("closed");
}

/// Windows that begin and end within a block of the child, and a child that ends within one.
#[test]
fn req_1_a_window_cuts_blocks() {
    let thread = io_thread(true);
    for (length, offset, size) in
        [(65_536, 512, Some(1536)), (65_536, 777, None), (10_000, 4096, None), (10_000, 0, None)]
    {
        let limits = Limits { request_alignment: 4096, ..Limits::NONE };
        let content: Vec<u8> = (0..length).map(|i| (i / 100) as u8 | 1).collect();
        let storage = MemStorage::with_content(MemOptions { limits, ..MemOptions::new(0) }, content.clone());
        let window = open(&thread, &storage, offset, size).expect("a window");
        let len = window.root.length().expect("a length");
        assert_eq!(len, size.unwrap_or(length - offset));
        assert_eq!(block_on(window.root.write(len - 1, filled(1, 0), NONE)).0, Ok(()));
        assert_eq!(block_on(window.root.write(0, filled(1, 0), NONE)).0, Ok(()));
        assert_eq!(block_on(window.root.zero(len - 5, 3, NONE)), Ok(()));
        let (result, back) = block_on(window.root.read(0, filled(len as usize, 0xee)));
        assert_eq!(result, Ok(()));
        let mut expected = content[offset as usize..(offset + len) as usize].to_vec();
        let end = expected.len();
        (expected[0], expected[end - 1]) = (0, 0);
        expected[end - 5..end - 2].fill(0);
        assert!(back.expect("it comes back").to_aligned(1)[..] == expected);
        // A child that ends within a block has grown to its end by now, as the host's files do.
        let past: &[_] = if length == 10_000 { &[] } else { &[(len, 1), (len - 1, 2), (0, len + 1)] };
        for &(at, count) in past {
            assert_eq!(block_on(window.root.write(at, filled(count as usize, 0), NONE)).0, Err(IoError::OUT_OF_BOUNDS));
            assert_eq!(block_on(window.root.block_status(at, count)), Err(IoError::OUT_OF_BOUNDS));
        }
        let around = storage.bytes(0, length as usize);
        assert!(around[..offset as usize] == content[..offset as usize]);
        let behind = (offset + len) as usize;
        assert!(around[behind..] == content[behind..]);
        block_on(window.graph.close()).expect("closed");
    }
}

/// Whatever a guest writes, and in however many pieces, an image whose format was guessed stays one that looks raw.
#[test]
fn trust_1_no_header_comes_into_a_guessed_image() {
    let thread = io_thread(true);
    let header = b"QFI\xfb\0\0\0\x03";
    for (alignment, chance) in [(1, false), (512, false), (512, true)] {
        let limits = Limits { request_alignment: alignment, ..Limits::NONE };
        let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(65_536) });
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        let (node, mut control) = block_on(raw(&mut graph, &file, RawOptions::default())).expect("a window");
        control.guard_first_sector();
        let root = graph.root("root", &node, Perm::all());
        let write = |at: u64, bytes: &[u8]| {
            let buf = filled(bytes.len(), 0);
            buf.copy_from_slice(0, bytes);
            block_on(root.write(at, buf, NONE)).0
        };
        let mut whole = vec![0; 4096];
        whole[..8].copy_from_slice(header);
        assert_eq!(write(0, &whole), Err(IoError::NOT_PERMITTED));
        assert_eq!(write(0, header), Err(IoError::NOT_PERMITTED));
        assert_eq!(write(512, &whole), Ok(()), "it is the first sector that counts");
        // Byte by byte, forwards and backwards, and by zeroes.
        let mut order: Vec<usize> = (0..8).collect();
        if chance {
            order.reverse();
        }
        assert_eq!(write(0, &[1; 8]), Ok(()));
        let results: Vec<_> = order.iter().map(|i| write(*i as u64, &header[*i..=*i])).collect();
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1, "the last one is refused");
        assert_eq!(write(0, b"QEDx"), Ok(()));
        assert_eq!(block_on(root.zero(3, 1, NONE)), Err(IoError::NOT_PERMITTED));
        assert_eq!(block_on(root.zero(0, 4096, NONE)), Ok(()));
        // Two at once, each harmless by itself.
        for _ in 0..50 {
            assert_eq!(block_on(root.zero(0, 512, NONE)), Ok(()));
            let (a, b) = (filled(4, 0), filled(4, 0));
            a.copy_from_slice(0, &header[..4]);
            b.copy_from_slice(0, &header[4..]);
            let second = root.clone();
            let other = thread.handle().run(async move { second.write(4, b, NONE).await.0 });
            let results = [block_on(root.write(0, a, NONE)).0, block_on(other).expect("it ran")];
            assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
            assert_eq!(block_common::probe_format(&storage.bytes(0, 512)), "raw");
        }
        block_on(graph.close()).expect("closed");
    }
}

#[test]
fn the_childs_limits_hold() {
    let thread = io_thread(true);
    let limits = Limits { request_alignment: 512, memory_alignment: 512, transfer_max: 8192, ..Limits::NONE };
    let storage = MemStorage::new(MemOptions { limits, ..MemOptions::new(1 << 20) });
    let window = open(&thread, &storage, 512, None).expect("a window");
    assert_eq!(window.root.limits(), Ok(limits));
    run_everywhere(&window.root, &ConformanceOptions { region: 100_000, ..ConformanceOptions::default() });
    block_on(window.graph.close()).expect("closed");
}

#[test]
fn a_device_s_commands_pass_where_there_is_no_window() {
    let thread = io_thread(true);
    let check = |options: RawOptions| {
        let storage = MemStorage::new(MemOptions::new(0));
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        let (toy, _) = block_on(toy_cow(&mut graph, &file, None, Some(ToyFormat::new(1 << 20)))).expect("an image");
        let (node, _) = block_on(raw(&mut graph, &toy, options)).expect("a window");
        let root = graph.root("root", &node, Perm::all());
        let result = block_on(root.ioctl(TOY_RELOCATE, AlignedBuf::zeroed(8, 8).into_io()));
        block_on(graph.close()).expect("closed");
        result
    };
    assert_eq!(check(RawOptions::default()), Ok(()));
    assert_eq!(check(RawOptions { offset: 512, size: None }), Err(IoError::UNSUPPORTED));
    assert_eq!(check(RawOptions { offset: 0, size: Some(512) }), Err(IoError::UNSUPPORTED));
}

/// A disk of 1 MiB of zeroes that tells what it is made of.
struct Disk;

#[async_trait]
impl Driver for Disk {
    fn format_name(&self) -> &'static str {
        "disk"
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        Mapping::Slow
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(1 << 20)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        buf.fill(0, buf.len(), 0);
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::READ_ONLY)
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn probe_block_sizes(&self, _req: &Req) -> IoResult<DeviceBlocks> {
        Ok(BLOCKS)
    }

    async fn probe_geometry(&self, _req: &Req) -> IoResult<DiskGeometry> {
        Ok(GEOMETRY)
    }
}

const BLOCKS: DeviceBlocks = DeviceBlocks { logical: 512, physical: 4096 };
const GEOMETRY: DiskGeometry = DiskGeometry { heads: 4, sectors: 32, cylinders: 16 };

// What a device is passes filters, and windows only where it is true of them. What keeps its data elsewhere has no device.
#[test]
fn a_device_is_seen_through_filters_and_windows() {
    let thread = io_thread(true);
    let check = |options: RawOptions, is_image: bool| {
        let mut graph = StaticGraph::new(thread.handle());
        let disk = block_on(graph.node("disk").install(Disk, true)).expect("a disk");
        let (filter, _) = block_on(toy_filter(&mut graph, &disk)).expect("a filter");
        let file = match is_image {
            false => filter,
            true => block_on(graph.node("mem").install(storage(LENGTH).driver(), false)).expect("a file"),
        };
        let (node, _) = block_on(raw(&mut graph, &file, options)).expect("a window");
        let root = graph.root("root", &node, Perm::CONSISTENT_READ);
        let told = (block_on(root.probe_block_sizes()), block_on(root.probe_geometry()));
        block_on(graph.close()).expect("closed");
        told
    };
    let none = Err(IoError::UNSUPPORTED);
    assert_eq!(check(RawOptions::default(), false), (Ok(BLOCKS), Ok(GEOMETRY)));
    assert_eq!(check(RawOptions { offset: 8192, size: None }, false), (Ok(BLOCKS), none));
    assert_eq!(check(RawOptions { offset: 0, size: Some(8192) }, false), (Ok(BLOCKS), none));
    assert_eq!(check(RawOptions { offset: 512, size: None }, false), (Err(IoError::UNSUPPORTED), none));
    assert_eq!(check(RawOptions::default(), true), (Err(IoError::UNSUPPORTED), none));
}

#[test]
fn a_format_above_grows_an_open_window_and_not_a_fixed_one() {
    let thread = io_thread(true);
    let check = |size: Option<u64>| {
        let storage = MemStorage::new(MemOptions::new(16_384));
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("a file");
        let (window, _) = block_on(raw(&mut graph, &file, RawOptions { offset: 512, size })).expect("a window");
        let format = ToyFormat { length: 65_536, length_max: 65_536, cluster_size: 4096 };
        let (node, _) = block_on(toy_cow(&mut graph, &window, None, Some(format))).expect("an image");
        let root = graph.root("root", &node, Perm::all());
        let written = block_on(root.write(0, filled(65_536, 7), NONE)).0;
        block_on(graph.close()).expect("closed");
        (written, storage.len())
    };
    assert_eq!(check(None), (Ok(()), 512 + 8192 + 65_536));
    assert_eq!(check(Some(15_360)), (Err(IoError::OUT_OF_BOUNDS), 16_384));
}

#[test]
fn a_reopen_moves_the_window_when_nothing_is_in_flight() {
    let thread = io_thread(true);
    let storage = storage(1 << 20);
    let home = thread.handle();
    let pair = PermPair { perm: Perm::all(), shared: Perm::all() };
    let file = NodeControl::shell("file");
    file.install(Box::new(storage.driver()), 1 << 20, false);
    let mut node = NodeControl::shell("raw");
    let (_writer, edge) = node.edge(ChildRole::IMAGE, pair, Some(&file.target()));
    let req = node.enter().expect("a token");
    let opened = block_on(home.run(async move { Raw::open(&req, edge, RawOptions::default()).await }));
    let (engine, mut control) = opened.expect("it ran").expect("a window");
    node.install(Box::new(engine), 1 << 20, false);
    let root_control = RootControl::new("root", &home, pair, Some(&node.target()));
    let root = root_control.root();

    let prepare = |node: &NodeControl, control: &RawControl, options: RawOptions| {
        let prepared = control.prepare(node.enter().expect("a token"), None, options);
        block_on(home.run(prepared)).expect("it ran")
    };
    let too_far = RawOptions { offset: 2 << 20, size: None };
    assert!(matches!(prepare(&node, &control, too_far), Err(RawError::OffsetPastEnd { .. })));
    assert_eq!(control.options(), RawOptions::default());

    let options = RawOptions { offset: 51_200, size: Some(5120) };
    node.set_quiesced(true);
    block_on(node.idle());
    let prepared = prepare(&node, &control, options).expect("a window");
    block_on(node.idle());
    control.commit(prepared, &node.proof().expect("quiesced and idle"));
    node.refresh_limits();
    let req = node.enter().expect("a token");
    assert_eq!(block_on(home.run(async move { NodeControl::refresh_length(&req).await })), Some(Ok(5120)));
    node.set_quiesced(false);

    assert_eq!((control.options(), root.length()), (options, Ok(5120)));
    let (result, buf) = block_on(root.read(512, filled(512, 0)));
    result.expect("read");
    assert_eq!(buf.expect("the buffer comes back").to_aligned(1)[0], 101);
    drop((root_control, node, file));
}
