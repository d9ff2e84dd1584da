//! Host files: short transfers, scattered and misaligned memory, errors of the host, closing and exchanging descriptors, on the
//! ring and on threads, started by the core and by the engine.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]
#![allow(unsafe_code, reason = "a guest's memory is an unsafe trait")]

mod common;

use block_common::{
    AlignedBuf, GuestMemory, GuestMemoryError, GuestMemoryRef, GuestOffset, IoBuf, IoError, IoErrorKind, IoResult,
    Limits, RequestFlags, Segment,
};
use block_io::{FileEngine, FileExtent, HostFile, IoThread, NodeControl, Queue, Request};
use common::*;
use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr::NonNull;
use std::sync::Arc;

const NONE: RequestFlags = RequestFlags::empty();
const ENGINES: [FileEngine; 2] = [FileEngine::Ring, FileEngine::Threads];

/// A named file, outside of /tmp, which may be a tmpfs that knows no O_DIRECT.
struct Named(tempfile::TempDir);

impl Named {
    fn new(content: &[u8]) -> Self {
        let named = Self(tempfile::tempdir_in("/var/tmp").expect("a folder"));
        std::fs::write(named.path(), content).expect("room");
        named
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("file")
    }

    fn open(&self, flags: i32) -> File {
        std::fs::OpenOptions::new().read(true).write(true).custom_flags(flags).open(self.path()).expect("it is there")
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(self.path()).expect("it is there")
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 + i / 256) as u8).collect()
}

/// Memory of many pieces, each away from the others by a byte that must stay as it is.
struct Scattered {
    memory: AlignedBuf,
    base: NonNull<u8>,
    piece: usize,
}

// SAFETY: the pointer is into `memory`, which the value owns.
unsafe impl Send for Scattered {}
// SAFETY: as above; nobody makes references into it.
unsafe impl Sync for Scattered {}

// SAFETY: the segments lie in `memory`, which lives as long as the value.
unsafe impl GuestMemory for Scattered {
    fn segments(&self, _address: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
        assert!(len.is_multiple_of(self.piece) && len / self.piece * (self.piece + 1) <= self.memory.len());
        for i in 0..len / self.piece {
            // SAFETY: checked just above.
            report(Segment { base: unsafe { self.base.add(i * (self.piece + 1)) }, len: self.piece });
        }
        Ok(())
    }
}

fn scattered(pieces: usize, piece: usize) -> IoBuf {
    let mut memory = AlignedBuf::zeroed(pieces * (piece + 1), 4096);
    memory.fill(0xee);
    let base = NonNull::new(memory.as_mut_ptr()).expect("memory has an address");
    GuestMemoryRef::new(Arc::new(Scattered { memory, base, piece })).buf(&[(0, pieces * piece)]).expect("it is mapped")
}

fn copy_of(data: &[u8]) -> IoBuf {
    let copy = AlignedBuf::zeroed(data.len(), 4096).into_io();
    copy.copy_from_slice(0, data);
    copy
}

fn host(home: &IoThread, file: impl Into<OwnedFd>, engine: FileEngine, fast: bool, align: u32, length: u64) -> Stack {
    let (file, _control) = host_file(file, engine, align);
    stack(&home.handle(), Host { file, fast, limits: Limits::NONE, length: Some(length) }, length)
}

/// Run `check` for each engine, for requests that the core starts and for those that the driver does.
fn everywhere(check: impl Fn(&IoThread, FileEngine, bool)) {
    let (ring, threads) = (thread(), thread_without_ring());
    for fast in [true, false] {
        for engine in ENGINES {
            check(&ring, engine, fast);
        }
        check(&threads, FileEngine::Ring, fast);
    }
}

fn on<T: Send + 'static>(home: &IoThread, work: impl Future<Output = T> + Send + 'static) -> T {
    block_on(home.handle().run(work)).expect("no panic")
}

// Transfers.

/// Past the end of the file there are zeroes, whatever the memory held before.
#[test]
fn reads_past_the_end_give_zeroes() {
    for (flags, align) in [(0, 1), (libc::O_DIRECT, 512), (libc::O_DIRECT, 4096)] {
        for len in [0, 1, 4096, 5000, 8191] {
            let named = Named::new(&pattern(len));
            everywhere(|home, engine, fast| {
                let stack = host(home, named.open(flags), engine, fast, align, 16384);
                let (result, back) = block_on(stack.root.root().read(0, buf(16384, 0xff)));
                assert_eq!(result, Ok(()), "{engine:?}, a file of {len} bytes");
                let expected = [pattern(len), vec![0; 16384 - len]].concat();
                assert!(bytes(&back.expect("it comes back")) == expected, "{engine:?}, a file of {len} bytes");
                let (result, back) = block_on(stack.root.root().read(8192, buf(512, 0xff)));
                assert_eq!((result, bytes(&back.expect("it comes back"))), (Ok(()), vec![0; 512]));
            });
        }
    }
}

/// What the page cache holds is read as it is asked for: nobody has to hand anything over. What it does not hold comes the
/// ordinary way, and either way the bytes are right.
#[test]
fn cached_reads_are_answered_at_once() {
    let named = Named::new(&pattern(1 << 20));
    let home = thread();
    let file = named.open(0);
    file.sync_all().expect("it is stored");
    let stack = host(&home, named.open(0), FileEngine::Ring, true, 1, 1 << 20);
    let root = stack.root.root();
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    let is_cached = |at: u64| {
        let mut byte = [0];
        let flags = rustix::io::ReadWriteFlags::NOWAIT;
        rustix::io::preadv2(&file, &mut [std::io::IoSliceMut::new(&mut byte)], at, flags).is_ok_and(|read| read == 1)
    };
    for round in 0..200u64 {
        if round == 100 {
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("it takes advice");
        }
        let at = round % 16 * 65536;
        let cached = is_cached(at);
        let data = if round % 2 == 0 { buf(4096, 0xff) } else { scattered(16, 256) };
        queue.submit(&root, Request::read(at, data), round);
        let at_once = queue.reap(&mut done) == 1;
        assert!(at_once || round >= 100 || !cached, "round {round}");
        if !at_once {
            assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
        }
        let done = done.pop().expect("one").done;
        assert_eq!(done.result, Ok(()));
        let expected = &pattern(1 << 20)[at as usize..][..4096];
        assert!(bytes(&done.buf.expect("it comes back")) == expected, "round {round}");
    }
}

/// Scenario: a device thread keeps requests in flight around the page cache, from memory of which half is registered with its queue, and
/// registers and unregisters that meanwhile. Every byte is what it should be, and every buffer comes back.
#[test]
fn registered_memory_comes_and_goes_beside_requests() {
    const DEPTH: u64 = 32;
    const BLOCK: usize = 8192;
    let named = Named::new(&pattern(DEPTH as usize * BLOCK));
    let home = thread();
    let stack = host(&home, named.open(libc::O_DIRECT), FileEngine::Ring, true, 4096, DEPTH * BLOCK as u64);
    let root = stack.root.root();
    let (mut queue, mut done) = (Queue::new().expect("a queue"), Vec::new());
    let memory = AlignedBuf::zeroed(DEPTH as usize * BLOCK, 4096).into_io();
    let region = memory.slice(0, memory.len() / 2);
    // What each block holds, and what is being done to it: a write of this byte, or a read.
    let mut model: Vec<_> = pattern(DEPTH as usize * BLOCK).chunks(BLOCK).map(<[u8]>::to_vec).collect();
    let mut writing: Vec<Option<u8>> = vec![None; DEPTH as usize];
    let mut free: Vec<_> = (0..DEPTH).map(|at| memory.slice(at as usize * BLOCK, BLOCK)).collect();
    let mut registered = None;
    for round in 0..400u64 {
        for at in 0..DEPTH {
            let buf = free.pop().expect("one for each block");
            let byte = (round + at) as u8 | 1;
            writing[at as usize] = ((round + at) % 3 == 0).then_some(byte);
            let request = match writing[at as usize] {
                Some(byte) => {
                    buf.fill(0, BLOCK, byte);
                    Request::write(at * BLOCK as u64, buf, NONE)
                }
                None => Request::read(at * BLOCK as u64, buf),
            };
            queue.submit(&root, request, at);
        }
        // In flight, or still in the queue.
        registered = match registered {
            None => queue.register(&region).inspect_err(|error| println!("nothing is registered: {error}")).ok(),
            Some(old) => {
                queue.unregister(old);
                None
            }
        };
        while queue.pending() > 0 {
            queue.wait(&mut done, Some(LONG));
        }
        for completed in done.drain(..) {
            assert_eq!(completed.done.result, Ok(()), "round {round}");
            let (at, buf) = (completed.tag as usize, completed.done.buf.expect("it comes back"));
            match writing[at] {
                Some(byte) => model[at].fill(byte),
                None => assert!(bytes(&buf) == model[at], "round {round}, block {at}"),
            }
            free.push(buf);
        }
        assert_eq!(free.len() as u64, DEPTH);
    }
    assert!(named.content() == model.concat());
    // A queue that goes with registered memory and with requests in flight.
    let _registered = queue.register(&memory);
    queue.submit(&root, Request::read(0, free.pop().expect("one")), 0);
    drop(queue);
}

/// More pieces of memory than one system call takes.
#[test]
fn req_3_thousands_of_segments() {
    const PIECES: usize = 3000;
    const PIECE: usize = 24;
    let data = pattern(PIECES * PIECE);
    for (flags, align, padding) in [(0, 1, 0), (libc::O_DIRECT, 512, 0)] {
        everywhere(|home, engine, fast| {
            // O_DIRECT wants whole blocks: as many pieces as make up some.
            let pieces = if align == 1 { PIECES } else { PIECES / 64 * 64 };
            let len = pieces * PIECE;
            let named = Named::new(&vec![9; len + padding]);
            let stack = host(home, named.open(flags), engine, fast, align, len as u64);
            let source = scattered(pieces, PIECE);
            assert_eq!(source.segments().len(), pieces);
            source.copy_from_slice(0, &data[..len]);
            assert_eq!(block_on(stack.root.root().write(0, source, NONE)).0, Ok(()), "{engine:?}");
            assert!(named.content() == data[..len], "{engine:?}: what was written is not what was given");
            let (result, back) = block_on(stack.root.root().read(0, scattered(pieces, PIECE)));
            assert_eq!(result, Ok(()), "{engine:?}");
            assert!(bytes(&back.expect("it comes back")) == data[..len], "{engine:?}: what was read is not there");
        });
    }
}

/// A read into scattered memory leaves the bytes between the pieces alone.
#[test]
fn a_read_stays_within_its_segments() {
    everywhere(|home, engine, fast| {
        let named = Named::new(&pattern(4096));
        let stack = host(home, named.open(0), engine, fast, 1, 4096);
        let (result, back) = block_on(stack.root.root().read(0, scattered(64, 64)));
        let back = back.expect("it comes back");
        assert_eq!(result, Ok(()));
        for segment in back.segments() {
            // SAFETY: each piece is followed by one byte of the same allocation, which `back` keeps.
            assert_eq!(unsafe { segment.base.add(segment.len).read() }, 0xee);
        }
    });
}

/// Memory that O_DIRECT cannot take is bounced, on the way in and on the way out.
#[test]
fn misaligned_memory_is_bounced() {
    let data = pattern(8192);
    everywhere(|home, engine, fast| {
        let named = Named::new(&[0; 8192]);
        let stack = host(home, named.open(libc::O_DIRECT), engine, fast, 4096, 8192);
        let whole = buf(8192 + 100, 0);
        let odd = whole.slice(3, 8192);
        odd.copy_from_slice(0, &data);
        assert_eq!(block_on(stack.root.root().write(0, odd, NONE)).0, Ok(()));
        assert!(named.content() == data);
        whole.fill(0, whole.len(), 0x55);
        let (result, back) = block_on(stack.root.root().read(0, whole.slice(5, 8192)));
        assert_eq!(result, Ok(()));
        assert!(bytes(&back.expect("it comes back")) == data);
        let after = bytes(&whole);
        assert!(after[..5].iter().chain(&after[5 + 8192..]).all(|byte| *byte == 0x55), "it wrote beside the buffer");
    });
}

#[test]
fn transfers_without_a_byte() {
    everywhere(|home, engine, fast| {
        for (flags, align) in [(0, 1), (libc::O_DIRECT, 512)] {
            let named = Named::new(&pattern(512));
            let stack = host(home, named.open(flags), engine, fast, align, 512);
            let root = stack.root.root();
            let empty = GuestMemoryRef::new(Arc::new(Scattered {
                memory: AlignedBuf::zeroed(1, 1),
                base: NonNull::dangling(),
                piece: 1,
            }))
            .buf(&[])
            .expect("nothing is mapped");
            for data in [buf(0, 0), buf(16, 0).slice(3, 0), empty] {
                assert_eq!(block_on(root.read(512, data.clone())).0, Ok(()));
                assert_eq!(block_on(root.write(512, data, NONE)).0, Ok(()));
            }
            assert_eq!(named.content(), pattern(512));
        }
    });
}

// Errors of the host.

#[test]
fn a_full_disk_says_so() {
    everywhere(|home, engine, fast| {
        let full =
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/full").expect("a device of every host");
        let stack = host(home, full, engine, fast, 1, 1 << 20);
        let (result, back) = block_on(stack.root.root().write(0, buf(4096, 1), NONE));
        assert_eq!((result, back.map(|back| back.len())), (Err(IoError::host(libc::ENOSPC)), Some(4096)));
        assert_eq!(result.expect_err("no room").kind(), IoErrorKind::Host);
        let (result, back) = block_on(stack.root.root().read(0, buf(4096, 1)));
        assert_eq!((result, bytes(&back.expect("it comes back"))), (Ok(()), vec![0; 4096]));
    });
}

#[test]
fn errors_of_the_host_keep_their_number() {
    everywhere(|home, engine, fast| {
        // Nothing is mapped at this process's address zero.
        let stack = host(home, File::open("/proc/self/mem").expect("our own"), engine, fast, 1, 4096);
        assert_eq!(block_on(stack.root.root().read(0, buf(512, 0))).0, Err(IoError::host(libc::EIO)));
        let named = Named::new(&[1; 4096]);
        let stack = host(home, File::open(named.path()).expect("it is there"), engine, fast, 1, 4096);
        assert_eq!(block_on(stack.root.root().write(0, buf(512, 0), NONE)).0, Err(IoError::host(libc::EBADF)));
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let stack = host(home, reader, engine, fast, 1, 4096);
        assert!(block_on(stack.root.root().write(0, buf(512, 0), NONE)).0.is_err());
        assert_eq!(block_on(stack.root.root().flush()), Err(IoError::host(libc::EINVAL)), "a pipe has no disk");
        drop(writer);
    });
}

/// FUA is a flag of the system call: a file whose writes take no flags refuses it.
#[test]
fn flush_2_fua_is_asked_of_the_host() {
    let home = thread();
    for fast in [true, false] {
        let named = Named::new(&[0; 4096]);
        for engine in ENGINES {
            let stack = host(&home, named.open(0), engine, fast, 1, 4096);
            assert_eq!(block_on(stack.root.root().write(0, buf(512, 7), RequestFlags::FUA)).0, Ok(()));
            assert_eq!(block_on(stack.root.root().flush()), Ok(()));
        }
        assert_eq!(named.content()[..512], [7; 512]);
        // The kernel's ring ignores the flag here, so this tells about threads only; the ring's entry has a test in `context`.
        let score = std::fs::read("/proc/self/oom_score_adj").expect("our own");
        let file = std::fs::OpenOptions::new().write(true).open("/proc/self/oom_score_adj").expect("our own");
        let stack = host(&home, file, FileEngine::Threads, fast, 1, 4096);
        assert_eq!(block_on(stack.root.root().write(0, copy_of(&score), NONE)).0, Ok(()));
        let refused = block_on(stack.root.root().write(0, copy_of(&score), RequestFlags::FUA)).0;
        assert_eq!(refused, Err(IoError::host(libc::EOPNOTSUPP)));
    }
}

// The other calls.

#[test]
fn zero_2_what_a_file_system_cannot_do_is_not_supported() {
    for home in [thread(), thread_without_ring()] {
        for engine in ENGINES {
            let memory = rustix::fs::memfd_create("cairn", rustix::fs::MemfdFlags::CLOEXEC).expect("memory");
            let (file, _control) = host_file(memory, engine, 1);
            let results = on(&home, async move {
                (
                    file.fallocate(libc::FALLOC_FL_ZERO_RANGE, 0, 4096).await,
                    file.fallocate(0, 0, 8192).await,
                    file.length().await,
                )
            });
            assert_eq!(results, (Err(IoError::host(libc::EOPNOTSUPP)), Ok(()), Ok(8192)), "{engine:?}");
        }
    }
}

#[test]
fn holes_are_found_and_made() {
    for engine in ENGINES {
        let home = thread();
        let named = Named::new(&[1; 65536]);
        let (file, _control) = host_file(named.open(0), engine, 1);
        let results: IoResult<_> = on(&home, async move {
            file.sync().await?;
            file.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, 16384, 16384).await?;
            let extents = [file.extent(0).await?, file.extent(20000).await?, file.extent(40000).await?];
            let past = file.extent(1 << 20).await?;
            file.set_length(4096).await?;
            Ok((extents, past.is_data, file.length().await?))
        });
        let expected = [(true, 16384), (false, 32768 - 20000), (true, 65536 - 40000)]
            .map(|(is_data, len)| FileExtent { is_data, len });
        assert_eq!(results, Ok((expected, false, 4096)));
    }
}

/// A file that knows nothing of holes is all data.
#[test]
fn stat_1_what_cannot_be_told_is_data() {
    let home = thread();
    let (file, _control) = host_file(File::open("/dev/null").expect("a device of every host"), FileEngine::Ring, 1);
    let extent = on(&home, async move { file.extent(0).await });
    assert!(extent.is_ok_and(|extent| extent.is_data && extent.len > 0) || extent.is_err(), "{extent:?}");
}

#[test]
fn a_host_file_is_of_io_threads() {
    let named = Named::new(&[1; 4096]);
    let (file, _control) = host_file(named.open(0), FileEngine::Ring, 1);
    let result = block_on(file.read(GuestOffset(0), &buf(512, 0)));
    assert_eq!(result.map_err(IoError::kind), Err(IoErrorKind::Bug));
    // What goes to the pool has no need of one.
    assert_eq!(block_on(file.length()), Ok(4096));
    assert_eq!(block_on(file.call(|_| -> IoResult<()> { panic!("told to") })), Err(IoError::BUG));
}

// Closing and exchanging.

async fn all_calls(file: &HostFile) -> Vec<IoResult<()>> {
    let data = buf(512, 0);
    vec![
        file.read(GuestOffset(0), &data).await,
        file.write(GuestOffset(0), &data, NONE).await,
        file.sync().await,
        file.fallocate(0, 0, 512).await,
        file.set_length(512).await,
        file.length().await.map(drop),
        file.extent(0).await.map(drop),
        file.call(|_| Ok(())).await,
    ]
}

#[test]
fn close_1_a_closed_file_answers_closed() {
    for engine in ENGINES {
        let home = thread();
        let named = Named::new(&[1; 4096]);
        let (file, _control) = host_file(named.open(0), engine, 1);
        let (open, closed, again) = on(&home, async move {
            let open = all_calls(&file).await;
            let closed = file.close().await;
            assert_eq!(closed, Ok(()));
            (open, all_calls(&file).await, file.close().await)
        });
        assert_eq!((open, again), (vec![Ok(()); 8], Ok(())));
        assert_eq!(closed, vec![Err(IoError::CLOSED); 8]);
    }
}

/// A node whose file was closed below it: the core's own requests are refused as well, and their buffers come back.
#[test]
fn close_1_a_closed_file_is_not_used_by_the_core() {
    everywhere(|home, engine, fast| {
        let named = Named::new(&[1; 4096]);
        let stack = host(home, named.open(0), engine, fast, 1, 4096);
        let root = stack.root.root();
        let req = stack.node.enter().expect("open");
        assert_eq!(on(home, async move { NodeControl::close_engine(&req).await }), Ok(()));
        let (result, back) = block_on(root.read(0, buf(512, 0)));
        assert_eq!((result, back.map(|back| back.len())), (Err(IoError::CLOSED), Some(512)));
        let mut queue = Queue::new().expect("a queue");
        queue.submit(&root, Request::write(0, buf(512, 0), NONE), 1);
        let mut done = Vec::new();
        assert_eq!(queue.wait(&mut done, Some(LONG)), 1);
        assert_eq!((done[0].done.result, done[0].done.buf.is_some()), (Err(IoError::CLOSED), true));
        assert_eq!(root.count(block_io::RequestKind::Write).failed, 1);
    });
}

/// A descriptor is exchanged in a drained section; the old one is closed, the new one used.
#[test]
fn reopen_1_a_descriptor_is_exchanged() {
    let home = thread();
    for fast in [true, false] {
        for engine in ENGINES {
            let (reader, mut writer) = std::io::pipe().expect("a pipe");
            let (file, mut control) = host_file(reader, engine, 1);
            let host = Host { file, fast, limits: Limits::NONE, length: Some(4096) };
            let mut stack = stack(&home.handle(), host, 4096);
            stack.node.set_quiesced(true);
            block_on(stack.node.idle());
            let named = Named::new(&[7; 4096]);
            control.replace(named.open(0).into(), 1, &stack.node.proof().expect("it is idle"));
            stack.node.set_quiesced(false);
            assert!(writer.write_all(b"x").is_err(), "the old descriptor is still open");
            let (result, back) = block_on(stack.root.root().read(0, buf(512, 0)));
            assert_eq!((result, bytes(&back.expect("it comes back"))), (Ok(()), vec![7; 512]));
        }
    }
}

/// The engine's own call is in the kernel when the file is closed: the descriptor stays until it is over.
#[test]
fn close_1_a_call_in_the_kernel_keeps_its_descriptor() {
    if !block_io::ring_available() {
        return;
    }
    let home = thread();
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let (file, _control) = host_file(reader, FileEngine::Ring, 1);
    let file = Arc::new(file);
    let other = file.clone();
    let (started, is_started) = std::sync::mpsc::channel();
    let read = home.handle().run(async move {
        let data = buf(4, 0);
        let mut read = Box::pin(other.read(GuestOffset(0), &data));
        let first = std::future::poll_fn(|cx| std::task::Poll::Ready(read.as_mut().poll(cx).is_pending())).await;
        started.send(first).expect("the test waits");
        let result = read.await;
        (result, bytes(&data))
    });
    assert_eq!(is_started.recv_timeout(LONG), Ok(true));
    on(&home, async move { file.close().await }).expect("it closes");
    writer.write_all(b"late").expect("the other end is still open");
    assert_eq!(block_on(read), Some((Ok(()), b"late".to_vec())));
    eventually("the descriptor is closed", || writer.write_all(b"x").is_err());
}

// Copying within the host.

/// The bytes go from one file to the other; what the host cannot do is told apart from what failed.
#[test]
fn ranges_are_copied_by_the_host() {
    let home = thread();
    let (from, to) = (Named::new(&pattern(1 << 20)), Named::new(&vec![0xee; 1 << 20]));
    let source = host(&home, from.open(0), FileEngine::Ring, true, 1, 1 << 20);
    let target = host(&home, to.open(0), FileEngine::Ring, true, 1, 1 << 20);
    let (root, target_root) = (source.root.root(), target.root.root());
    let copy = |at, to_at, len| block_on(root.copy_range(at, &target_root, to_at, len));
    assert_eq!(copy(4096, 100, 500_000), Ok(()));
    let content = to.content();
    assert!(content[100..500_100] == pattern(1 << 20)[4096..504_096]);
    assert!(content[..100].iter().chain(&content[500_100..]).all(|byte| *byte == 0xee));
    assert_eq!(copy(0, 0, 0), Ok(()));
    assert_eq!(target_root.count(block_io::RequestKind::Write).bytes, 500_000);
    // It counts as a write: there is something to flush.
    assert_eq!(block_on(target_root.flush()), Ok(()));
    let sealed = Named::new(&[1; 4096]);
    let sealed = host(&home, File::open(sealed.path()).expect("it is there"), FileEngine::Ring, true, 1, 4096);
    let refused = [
        // Past either end.
        block_on(root.copy_range((1 << 20) - 1, &target_root, 0, 2)),
        block_on(root.copy_range(0, &target_root, (1 << 20) - 1, 2)),
        // Onto itself.
        block_on(root.copy_range(0, &root, 1, 4096)),
        // A descriptor that is not for writing.
        block_on(root.copy_range(0, &sealed.root.root(), 0, 512)),
    ];
    assert_eq!(refused, [Err(IoError::UNSUPPORTED); 4]);
    assert_eq!(block_on(root.copy_range(u64::MAX, &target_root, 0, 2)), Err(IoError::OUT_OF_BOUNDS));
    let slow = host(&home, to.open(0), FileEngine::Ring, false, 1, 1 << 20);
    assert_eq!(block_on(root.copy_range(0, &slow.root.root(), 0, 512)), Err(IoError::UNSUPPORTED));
    let direct = host(&home, to.open(libc::O_DIRECT), FileEngine::Ring, true, 512, 1 << 20);
    assert_eq!(block_on(root.copy_range(0, &direct.root.root(), 0, 512)), Err(IoError::UNSUPPORTED));
}

/// A copy waits for both ends, and holds neither while it waits for the other.
#[test]
fn drain_3_a_copy_waits_for_one_end_without_holding_the_other() {
    let home = thread();
    let (from, to) = (Named::new(&pattern(4096)), Named::new(&[0; 4096]));
    let mut source = host(&home, from.open(0), FileEngine::Ring, true, 1, 4096);
    let mut target = host(&home, to.open(0), FileEngine::Ring, true, 1, 4096);
    let (root, target_root) = (source.root.root(), target.root.root());
    for first in [true, false] {
        let held = if first { &mut source.root } else { &mut target.root };
        held.set_quiesced(true);
        let (from, to) = (root.clone(), target_root.clone());
        let copy = home.handle().run(async move { from.copy_range(0, &to, 0, 4096).await });
        std::thread::sleep(std::time::Duration::from_millis(10));
        // The other one can be drained meanwhile.
        let other = if first { &mut target.root } else { &mut source.root };
        other.set_quiesced(true);
        block_on(other.idle());
        other.set_quiesced(false);
        let held = if first { &mut source.root } else { &mut target.root };
        held.set_quiesced(false);
        assert_eq!(block_on(copy), Some(Ok(())));
    }
    assert!(to.content() == pattern(4096));
}

#[test]
fn files_of_random_requests_hold_what_was_written() {
    let home = thread();
    let mut random = Random::new();
    for (flags, align) in [(0, 1), (libc::O_DIRECT, 512)] {
        for engine in ENGINES {
            let named = Named::new(&[0; 65536]);
            let mut model = vec![0; 65536];
            let stacks = [true, false].map(|fast| host(&home, named.open(flags), engine, fast, align, 65536));
            for i in 0..300 {
                let root = stacks[random.next(2) as usize].root.root();
                let unit = u64::from(align);
                let offset = random.next(65536 / unit) * unit;
                let len = (random.next(8192 / unit) * unit).min(65536 - offset) as usize;
                let range = offset as usize..offset as usize + len;
                // Sometimes misaligned, sometimes in pieces.
                let data = match random.next(3) {
                    0 => buf(len, i as u8),
                    1 => buf(len + 8, i as u8).slice(random.next(8) as usize, len),
                    _ => scattered(len.div_ceil(16), 16).slice(0, len),
                };
                if random.next(2) == 0 {
                    data.fill(0, len, i as u8);
                    assert_eq!(block_on(root.write(offset, data, NONE)).0, Ok(()));
                    model[range].fill(i as u8);
                } else {
                    let (result, back) = block_on(root.read(offset, data));
                    assert_eq!(result, Ok(()));
                    assert!(bytes(&back.expect("it comes back")) == model[range], "{offset:#x}+{len:#x}");
                }
            }
            let file = named.open(0);
            let mut content = vec![0; 65536];
            file.read_exact_at(&mut content, 0).expect("it is there");
            assert!(content == model);
        }
    }
}
