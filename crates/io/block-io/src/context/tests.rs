//! Operations and what the kernel answers, without a kernel where one would do as it likes.

use super::*;
use crate::file::HostFileOptions;
use block_common::{GuestMemory, GuestMemoryError, GuestMemoryRef, Segment};

fn slot(kind: FileOpKind, len: usize) -> Slot {
    let buf = AlignedBuf::zeroed(len, 512).into_io();
    buf.fill(0, len, 0xff);
    let mut op = FileOp::new(kind, 4096, len as u64, Some(buf));
    op.options = HostFileOptions { engine: FileEngine::Ring, memory_alignment: 512 };
    Slot {
        op,
        bounce: None,
        progress: 0,
        vecs: Default::default(),
        pool: None,
        hold: None,
        target: Target::Nobody,
        result: None,
        retries: 0,
        fixed: None,
        plain: false,
    }
}

fn check(kind: FileOpKind, answers: &[i32], expected: Option<IoResult<()>>) -> Slot {
    let mut slot = slot(kind, 4096);
    let (last, before) = answers.split_last().expect("at least one answer");
    for answer in before {
        assert!(progress(&mut slot, *answer).is_none(), "{answer}");
    }
    assert_eq!(progress(&mut slot, *last), expected, "{answers:?}");
    slot
}

const WRITE: FileOpKind = FileOpKind::Write { fua: false, drop_behind: false };

#[test]
fn answers_of_the_kernel() {
    let over = Some(Ok(()));
    let error = |errno| Some(Err(IoError::host(errno)));
    check(FileOpKind::Read, &[4096], over);
    check(WRITE, &[4096], over);
    check(FileOpKind::Sync, &[0], over);
    check(FileOpKind::Allocate(0), &[0], over);
    check(FileOpKind::Read, &[1024, 3072], over);
    check(WRITE, &[1024, -libc::EINTR, 3072], over);
    check(WRITE, &[512, -libc::ENOSPC], error(libc::ENOSPC));
    check(WRITE, &[512, 0], error(libc::ENOSPC));
    // The slot's blocks have 512 bytes: the kernel stopped within one, which is written again from its start.
    check(WRITE, &[700, 3584], over);
    check(WRITE, &[700, 300], error(libc::ENOSPC));
    check(FileOpKind::Read, &[-libc::EIO], error(libc::EIO));
}

#[test]
fn what_is_past_the_end_is_zero() {
    for answers in [&[1024, 0][..], &[512, 500]] {
        let done: i32 = answers.iter().sum();
        let slot = check(FileOpKind::Read, answers, Some(Ok(())));
        let data = slot.op.buf.map(|buf| buf.to_aligned(1)).unwrap_or_else(|| AlignedBuf::zeroed(0, 1));
        let (read, rest) = data.split_at(done as usize);
        assert!(read.iter().all(|byte| *byte == 0xff) && rest.iter().all(|byte| *byte == 0), "{answers:?}");
    }
}

/// A host that says "again" for ever is an error in the end, not a thread that spins.
#[test]
fn trust_3_again_has_an_end() {
    let mut slot = slot(FileOpKind::Read, 4096);
    let mut answers = std::iter::repeat_with(|| progress(&mut slot, -libc::EAGAIN)).take(1000).flatten();
    assert_eq!(answers.next(), Some(Err(IoError::host(libc::EAGAIN))));
}

/// One buffer in two pieces.
struct Halves(IoBuf);

// SAFETY: the segments lie in the buffer that the value owns.
unsafe impl GuestMemory for Halves {
    fn segments(&self, _: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
        report(self.0.slice(0, len / 2).segments()[0]);
        report(self.0.slice(len / 2, len - len / 2).segments()[0]);
        Ok(())
    }
}

/// The flags of the ring's entry, as `io_uring_enter(2)` lays it out.
fn flags_of(kind: FileOpKind, in_pieces: bool) -> u32 {
    const OFFSET: usize = 28;
    let mut slot = slot(kind, 4096);
    if in_pieces {
        let halves = GuestMemoryRef::new(Arc::new(Halves(AlignedBuf::zeroed(4096, 512).into_io())));
        slot.op.buf = halves.buf(&[(0, 4096)]).ok();
    }
    let entry = entry(&mut slot, None);
    let base = std::ptr::from_ref(&entry).cast::<u8>();
    // SAFETY: an entry is 64 plain bytes, and the flags of a read or write are the four at this offset.
    unsafe { base.add(OFFSET).cast::<u32>().read_unaligned() }
}

#[test]
fn flush_2_fua_is_in_the_rings_entry() {
    for pieces in [false, true] {
        assert_eq!(flags_of(FileOpKind::Write { fua: true, drop_behind: false }, pieces), libc::RWF_DSYNC as u32);
        assert_eq!(flags_of(WRITE, pieces), 0);
        assert_eq!(flags_of(FileOpKind::Read, pieces), 0);
    }
}

/// A slot over `len` bytes at `start` of `memory`, on a file that is read around the page cache.
fn over(memory: &IoBuf, start: usize, len: usize) -> Slot {
    let mut slot = slot(FileOpKind::Read, 4096);
    slot.op.buf = Some(memory.slice(start, len));
    slot.op.len = len as u64;
    slot
}

/// Say that a test could not be run here, and why, where tests are counted. (The testkit's own is beyond a unit test.)
fn skipped(reason: &str) {
    use std::io::Write;
    eprintln!("SKIPPED: {reason}");
    let Some(log) = std::env::var_os("CAIRN_SKIP_LOG") else { return };
    #[allow(clippy::disallowed_methods, reason = "a test's own log")]
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(log).expect("the skip log");
    writeln!(file, "SKIPPED: {reason}").expect("the skip log");
}

/// A context with a ring, and memory that is registered with it; `None` where the host has no such thing.
fn registered(len: usize) -> Option<(Rc<IoContext>, IoBuf, RegisteredBuf)> {
    let context = IoContext::new(true).expect("an event");
    let memory = AlignedBuf::zeroed(len, 4096).into_io();
    match context.register(&memory) {
        Ok(registered) => Some((context, memory, registered)),
        Err(error) => {
            skipped(&format!("no memory can be registered with a ring: {error}"));
            None
        }
    }
}

/// The kernel refuses entries while it is short of memory, say. Who submits for a busy thread comes back until it has taken them.
#[test]
fn what_the_kernel_did_not_take_is_tried_again() {
    #[derive(Default)]
    struct Counted(std::sync::atomic::AtomicUsize);
    impl std::task::Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let counted = Arc::new(Counted::default());
    let waker = Waker::from(counted.clone());
    // Without a ring nothing is ever taken.
    let context = IoContext::new(false).expect("an event");
    for (unsubmitted, wakes) in [(1, 1), (2, 2), (0, 2)] {
        context.unsubmitted.set(unsubmitted);
        context.flush_by(&waker);
        assert_eq!(counted.0.load(Ordering::Relaxed), wakes);
    }
}

#[test]
fn what_lies_in_registered_memory_names_it() {
    let Some((context, memory, first)) = registered(64 << 10) else { return };
    let other = AlignedBuf::zeroed(64 << 10, 4096).into_io();
    let piece = |buf: &IoBuf, start, len| context.piece_for(&over(buf, start, len));
    assert_eq!((piece(&memory, 0, 64 << 10), piece(&memory, 60 << 10, 4096)), (Some(0), Some(0)));
    assert_eq!(piece(&other, 0, 4096), None);
    let second = context.register(&other).expect("there is room");
    assert_eq!((piece(&other, 4096, 4096), piece(&memory, 4096, 4096)), (Some(1), Some(0)));
    // Not through the page cache, nor a second time where it was refused.
    let mut cached = over(&memory, 0, 4096);
    cached.op.options.memory_alignment = 1;
    let mut refused = over(&memory, 0, 4096);
    refused.plain = true;
    assert_eq!((context.piece_for(&cached), context.piece_for(&refused)), (None, None));
    context.unregister(&first);
    assert_eq!((piece(&memory, 0, 4096), piece(&other, 0, 4096)), (None, Some(1)));
    // Its number is free again.
    assert_eq!(context.register(&memory).expect("there is room").pieces, [0]);
    // That of another ring is not ours.
    let stranger = RegisteredBuf { context: context.id + 1_000_000, pieces: second.pieces };
    context.unregister(&stranger);
    assert_eq!(piece(&other, 0, 4096), Some(1));
}

#[test]
fn memory_is_registered_as_a_whole_or_not_at_all() {
    let Some((context, memory, first)) = registered(4096) else { return };
    context.unregister(&first);
    // More pieces than a ring takes.
    let piece = memory.slice(0, 4096).segments()[0];
    struct Many {
        _memory: IoBuf,
        segment: Segment,
    }
    // SAFETY: the segment lies in the buffer beside it.
    unsafe impl GuestMemory for Many {
        fn segments(&self, _: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
            (0..len / 4096).for_each(|_| report(self.segment));
            Ok(())
        }
    }
    let many = GuestMemoryRef::new(Arc::new(Many { _memory: memory.clone(), segment: piece }));
    let too_many = many.buf(&[(0, (PIECES_MAX as usize + 1) * 4096)]).expect("it is mapped");
    assert!(context.register(&too_many).is_err());
    assert!(context.pieces.borrow().is_empty());
    assert!(context.register(&memory).is_ok(), "nothing of it is left");
    let without = IoContext::new(false).expect("an event");
    assert!(without.register(&memory).is_err(), "there is no ring");
}

/// Task work that completes nothing is done, and while the kernel is at it more comes up, which does not signal the event: it must be seen before
/// anybody sleeps. A pipe that is readable and then is not makes the first, one that stays so the second.
#[test]
#[expect(clippy::disallowed_methods, reason = "pipes have no driver")]
fn drain_5_work_that_comes_up_while_the_kernel_is_asked_is_seen() {
    // How often it comes to the worst depends on how busy the machine is.
    const ROUNDS: usize = 20_000;
    const AT_LEAST: std::time::Duration = std::time::Duration::from_secs(4);
    if !ring_available() {
        return skipped("no io_uring");
    }
    let context = IoContext::new(true).expect("an event");
    let pipe = || rustix::pipe::pipe().expect("a pipe");
    let ((lure, lure_in), (real, real_in)) = (pipe(), pipe());
    let path = format!("/proc/self/fd/{}", lure.as_raw_fd());
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let drain = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).expect("the same pipe");
    let (lure, real) = (Arc::new(lure), Arc::new(real));
    let read = |from: &Arc<OwnedFd>, tag| {
        let mut op = FileOp::read(0, AlignedBuf::zeroed(1, 1).into_io());
        op.fd = from.as_raw_fd();
        op.options = HostFileOptions { engine: FileEngine::Ring, memory_alignment: 1 };
        context.start(op, Hold::File(from.clone()), None, Target::Queue(tag));
    };
    let (ask, asked) = std::sync::mpsc::sync_channel::<usize>(0);
    let writer = std::thread::spawn(move || {
        for pause in asked {
            let _ = rustix::io::write(&lure_in, &[1]);
            let _ = rustix::io::read(&drain, &mut [0u8; 1]);
            (0..pause).for_each(|_| std::hint::spin_loop());
            let _ = rustix::io::write(&real_in, &[1]);
        }
        // Both reads end.
        drop((lure_in, real_in));
    });
    read(&lure, 0);
    let begin = std::time::Instant::now();
    for round in (0..).take_while(|round| *round < ROUNDS || begin.elapsed() < AT_LEAST) {
        read(&real, 1);
        context.flush();
        context.reap();
        ask.send(round % 97).expect("the writer lives");
        let mut over = false;
        loop {
            let done: Vec<_> = context.ready.borrow_mut().drain(..).map(|done| done.tag).collect();
            over |= done.contains(&1);
            if done.contains(&0) {
                read(&lure, 0);
                context.flush();
                context.reap();
            } else if over {
                break;
            } else {
                let before = std::time::Instant::now();
                context.wait_event(Some(std::time::Duration::from_secs(20)));
                assert!(before.elapsed().as_secs() < 20, "round {round}: nothing signals the event");
                context.reap();
            }
        }
    }
    drop(ask);
    writer.join().expect("no panic");
}

/// The word in which the kernel tells a ring's owner what waits for him, mapped once more.
struct Flags {
    page: *mut libc::c_void,
    at: usize,
}

impl Flags {
    const PAGE: usize = 4096;

    fn of(context: &IoContext) -> Self {
        // Where the word lies is the same in every ring of this host: `io_uring_params.sq_off.flags`.
        let mut params = [0u32; 30];
        // SAFETY: the parameters are 120 bytes, all of them zero but for what the kernel fills in.
        let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, 8, params.as_mut_ptr()) };
        assert!(ring >= 0, "a ring");
        // SAFETY: the descriptor is new and ours.
        drop(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(ring as i32) });
        let fd = context.made_ring().expect("a ring").borrow().as_raw_fd();
        let (rw, shared) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping where the kernel likes it.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), Self::PAGE, rw, shared, fd, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        Self { page, at: params[14] as usize }
    }

    fn set(&self, bit: u32) {
        // SAFETY: the word lies in the page, is aligned, and is changed by nobody but with atomic operations.
        let word = unsafe { &*self.page.byte_add(self.at).cast::<std::sync::atomic::AtomicU32>() };
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

impl Drop for Flags {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has a reference into it.
        unsafe { libc::munmap(self.page, Self::PAGE) };
    }
}

/// The kernel says that work waits, and there is none: it says so a moment after it has added some, which may be done by then. Nobody asks for
/// ever, and what comes later is seen.
#[test]
fn drain_5_work_that_is_announced_and_is_not_there_is_not_waited_for() {
    const TASKRUN: u32 = 1 << 2;
    if !ring_available() {
        return skipped("no io_uring");
    }
    let context = IoContext::new(true).expect("an event");
    let (from, to) = rustix::pipe::pipe().expect("a pipe");
    let mut op = FileOp::read(0, AlignedBuf::zeroed(1, 1).into_io());
    op.fd = from.as_raw_fd();
    op.options = HostFileOptions { engine: FileEngine::Ring, memory_alignment: 1 };
    context.start(op, Hold::File(Arc::new(from)), None, Target::Queue(1));
    context.flush();
    context.reap();
    let (told, returned) = std::sync::mpsc::channel();
    // Whoever does not return finds something after a while.
    let writer = std::thread::spawn(move || {
        let has_returned = returned.recv_timeout(std::time::Duration::from_secs(20)).is_ok();
        assert_eq!(rustix::io::write(&to, &[1]), Ok(1));
        has_returned
    });
    let flags = Flags::of(&context);
    flags.set(TASKRUN);
    assert_eq!(context.reap(), 0);
    flags.set(TASKRUN);
    told.send(()).expect("the writer waits");
    while context.ready.borrow().is_empty() {
        context.wait_event(None);
        context.reap();
    }
    assert!(writer.join().expect("no panic"), "the kernel was asked for ever");
    assert_eq!(context.in_flight(), 0);
    flags.set(TASKRUN);
    assert_eq!(context.reap(), 0);
}

/// The kernel knows less memory than we believe: the operation is made again without it, and nothing is lost.
#[test]
#[expect(clippy::disallowed_methods, reason = "tests prepare files behind the ring's back")]
fn what_the_kernel_refuses_is_done_the_ordinary_way() {
    let Some((context, memory, first)) = registered(8192) else { return };
    context.unregister(&first);
    let half = context.register(&memory.slice(0, 4096)).expect("it was registered before");
    context.pieces.borrow_mut().stretch(half.pieces[0], 8192);
    let file = tempfile::tempfile().expect("a file");
    assert_eq!(rustix::io::pwrite(&file, &[7; 8192], 0), Ok(8192));
    let mut op = FileOp::read(0, memory.clone());
    op.fd = file.as_raw_fd();
    op.options = HostFileOptions { engine: FileEngine::Ring, memory_alignment: 512 };
    let hold = Hold::File(Arc::new(file.into()));
    context.start(op, hold, None, Target::Queue(1));
    assert_eq!(context.slots.borrow().iter().next().expect("one").1.fixed, Some(half.pieces[0]));
    // Unregistering waits for it.
    context.unregister(&half);
    while context.ready.borrow().is_empty() {
        context.flush_and_wait();
        context.reap();
    }
    let done = context.ready.borrow_mut().pop_front().expect("one").done;
    assert_eq!(done.result, Ok(()));
    assert!(done.buf.expect("its buffer").to_aligned(1).iter().all(|byte| *byte == 7));
    assert_eq!(context.in_flight(), 0);
}
