//! Callers that drop their future, after any number of polls: the request runs to its end, and nothing stays behind.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]
#![allow(unsafe_code, reason = "a guest's memory is an unsafe trait")]

mod common;

use block_common::{AlignedBuf, GuestMemory, GuestMemoryError, GuestMemoryRef, IoBuf, Limits, RequestFlags, Segment};
use block_io::{FileEngine, Request, RequestKind, Root};
use common::*;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const POLLS_MAX: usize = 6;
const NONE: RequestFlags = RequestFlags::empty();

/// Memory that tells when its last holder has let go.
struct Watched {
    memory: AlignedBuf,
    base: NonNull<u8>,
    freed: Arc<AtomicBool>,
}

// SAFETY: the pointer is into `memory`, which the value owns.
unsafe impl Send for Watched {}
// SAFETY: as above; nobody makes references into it.
unsafe impl Sync for Watched {}

// SAFETY: the segment lies in `memory`, which lives as long as the value.
unsafe impl GuestMemory for Watched {
    fn segments(&self, address: u64, len: usize, report: &mut dyn FnMut(Segment)) -> Result<(), GuestMemoryError> {
        assert!(address as usize + len <= self.memory.len());
        // SAFETY: checked just above.
        report(Segment { base: unsafe { self.base.add(address as usize) }, len });
        Ok(())
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.freed.store(true, Ordering::SeqCst);
    }
}

fn watched(len: usize, byte: u8) -> (IoBuf, Arc<AtomicBool>) {
    let freed = Arc::new(AtomicBool::new(false));
    let mut memory = AlignedBuf::zeroed(len, 4096);
    memory.fill(byte);
    let base = NonNull::new(memory.as_mut_ptr()).expect("memory has an address");
    let memory = Watched { memory, base, freed: freed.clone() };
    (GuestMemoryRef::new(Arc::new(memory)).buf(&[(0, len)]).expect("it is mapped"), freed)
}

/// One request, dropped after `polls` polls. A future that was polled once has begun, and its request is carried out in full.
fn check_dropped(stack: &Stack, polls: usize, kind: RequestKind, arrived: &dyn Fn(usize) -> bool) {
    let root = stack.root.root();
    let (before, (data, freed)) = (root.count(kind), watched(512, polls as u8 + 1));
    let request = match kind {
        RequestKind::Read => Request::read(0, data),
        _ => Request::write(polls as u64 * 512, data, NONE),
    };
    let over = poll_times(root.request(request), polls).is_some();
    let begun = u64::from(polls > 0);
    eventually("the request is counted", || root.count(kind).requests == before.requests + begun);
    eventually("nothing is in flight", || root.in_flight() == 0 && stack.node.node().in_flight() == 0);
    eventually("the buffer is free", || freed.load(Ordering::SeqCst));
    assert_eq!(root.count(kind).bytes, before.bytes + begun * 512);
    assert_eq!(root.count(kind).failed, 0);
    if kind == RequestKind::Write {
        assert_eq!(arrived(polls), polls > 0, "polled {polls} times, over: {over}");
    }
}

fn check_memory(fast: bool, yields: usize) {
    let home = thread();
    for polls in 0..POLLS_MAX {
        let state = MemState::new(1 << 16);
        state.fast.store(fast, Ordering::SeqCst);
        state.yields.store(yields, Ordering::SeqCst);
        let stack = mem(&home.handle(), &state);
        let arrived = |polls: usize| lock(&state.bytes)[polls * 512] == polls as u8 + 1;
        check_dropped(&stack, polls, RequestKind::Write, &arrived);
        check_dropped(&stack, polls, RequestKind::Read, &arrived);
    }
}

#[test]
fn drain_4_a_dropped_caller_of_a_slow_engine() {
    check_memory(false, 0);
    check_memory(false, 3);
}

#[test]
fn drain_4_a_dropped_caller_of_a_fast_engine() {
    check_memory(true, 0);
}

#[test]
fn drain_4_a_dropped_caller_of_a_host_file() {
    use std::os::unix::fs::FileExt;
    for (engine, fast) in [(FileEngine::Ring, true), (FileEngine::Ring, false), (FileEngine::Threads, true)] {
        let home = thread();
        for polls in 0..POLLS_MAX {
            let file = tempfile::tempfile().expect("a file");
            file.set_len(1 << 16).expect("room");
            let (host, _control) = host_file(file.try_clone().expect("a descriptor"), engine, 1);
            let stack = stack(&home.handle(), Host { file: host, fast, limits: Limits::NONE, length: None }, 1 << 16);
            let arrived = |polls: usize| {
                let mut byte = [0];
                file.read_exact_at(&mut byte, polls as u64 * 512).expect("it is there");
                byte == [polls as u8 + 1]
            };
            check_dropped(&stack, polls, RequestKind::Write, &arrived);
            check_dropped(&stack, polls, RequestKind::Read, &arrived);
        }
    }
}

/// As above from an I/O thread's own task, which starts requests without a hand-over.
#[test]
fn drain_4_a_dropped_caller_on_the_io_thread() {
    for fast in [false, true] {
        let home = thread();
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 16).expect("room");
        let (host, _control) = host_file(file, FileEngine::Ring, 1);
        let stack = stack(&home.handle(), Host { file: host, fast, limits: Limits::NONE, length: None }, 1 << 16);
        let root = stack.root.root();
        for polls in 0..POLLS_MAX {
            let before = root.count(RequestKind::Write).requests;
            let (data, freed) = watched(512, 1);
            let caller = root.clone();
            let work = async move {
                let mut write = Box::pin(caller.request(Request::write(0, data, NONE)));
                for _ in 0..polls {
                    let poll = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx))).await;
                    if poll.is_ready() {
                        return;
                    }
                    tokio::task::yield_now().await;
                }
            };
            assert_eq!(block_on(home.handle().run(work)), Some(()));
            let begun = u64::from(polls > 0);
            eventually("it is counted", || root.count(RequestKind::Write).requests == before + begun);
            eventually("the buffer is free", || freed.load(Ordering::SeqCst));
            eventually("nothing is in flight", || root.in_flight() == 0);
        }
    }
}

/// The kernel has a request on a pipe that nobody writes to. The caller is gone: the buffer stays until the completion.
#[test]
fn drain_4_the_kernels_buffer_outlives_the_caller() {
    use std::io::Write;
    if !block_io::ring_available() {
        return;
    }
    for fast in [false, true] {
        let home = thread();
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        let (host, _control) = host_file(reader, FileEngine::Ring, 1);
        let stack = stack(&home.handle(), Host { file: host, fast, limits: Limits::NONE, length: Some(4096) }, 4096);
        let root = stack.root.root();
        let (data, freed) = watched(4, 0);
        assert!(poll_times(root.read(0, data), 2).is_none());
        eventually("it is under way", || stack.node.node().in_flight() > 0);
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!freed.load(Ordering::SeqCst), "the kernel still writes there");
        writer.write_all(b"late").expect("the other end is open");
        eventually("the buffer is free", || freed.load(Ordering::SeqCst));
        eventually("nothing is in flight", || root.in_flight() == 0);
        assert_eq!(root.count(RequestKind::Read).requests, 1);
    }
}

/// Dropping what comes back from `at_home` calls: the work goes on.
#[test]
fn drain_4_a_dropped_truncate_is_carried_out() {
    let home = thread();
    let state = MemState::new(4096);
    let stack = mem(&home.handle(), &state);
    let root: Root = stack.root.root();
    state.valve.close();
    assert!(poll_times(root.truncate(8192, block_common::Preallocation::default()), 1).is_none());
    eventually("it is in the engine", || state.valve.begun() == 1);
    state.valve.open();
    eventually("it was carried out", || root.length() == Ok(8192) && root.in_flight() == 0);
}

/// Many requests, dropped at random: the counts come out even.
#[test]
fn drain_4_a_thousand_dropped_callers() {
    let home = thread();
    let state = MemState::new(1 << 16);
    state.yields.store(2, Ordering::SeqCst);
    let stack = mem(&home.handle(), &state);
    let root = stack.root.root();
    let mut random = Random::new();
    let freed = Arc::new(AtomicUsize::new(0));
    let mut begun = 0;
    let mut kept = Vec::new();
    let mut flags = Vec::new();
    for _ in 0..1000 {
        state.fast.store(random.next(2) == 0, Ordering::SeqCst);
        let (data, flag) = watched(512, 1);
        flags.push(flag);
        let mut write = Box::pin(root.clone_write(data));
        let polls = random.next(3);
        begun += u64::from(polls > 0);
        let mut over = false;
        for _ in 0..polls {
            over =
                over || write.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())).is_ready();
        }
        if random.next(4) == 0 && polls > 0 && !over {
            kept.push(write);
        }
    }
    kept.into_iter().for_each(block_on);
    eventually("all are over", || root.count(RequestKind::Write).requests == begun && root.in_flight() == 0);
    eventually("all buffers are free", || flags.iter().all(|flag| flag.load(Ordering::SeqCst)));
    let _ = freed;
}

trait CloneWrite {
    fn clone_write(&self, data: IoBuf) -> impl Future<Output = ()> + Send + 'static;
}

impl CloneWrite for Root {
    fn clone_write(&self, data: IoBuf) -> impl Future<Output = ()> + Send + 'static {
        let root = self.clone();
        async move { assert_eq!(root.write(0, data, NONE).await.0, Ok(())) }
    }
}
