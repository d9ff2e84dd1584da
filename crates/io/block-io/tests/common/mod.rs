//! Tiny engines and a runtime-free executor for the tests of this crate. The real test storage is block-testkit's.

#![allow(dead_code, unreachable_pub, missing_debug_implementations, reason = "each test program uses a part of it")]
#![allow(clippy::disallowed_methods, reason = "tests open files and sleep")]

use async_trait::async_trait;
use block_common::{
    AlignedBuf, BlockStatus, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Perm,
    PermPair, RequestFlags, StatusExtent,
};
use block_io::{
    Access, Driver, Edge, EdgeWriter, FileEngine, HostFile, HostFileControl, HostFileOptions, IoThread, IoThreadHandle,
    IoThreadOptions, Mapping, NodeControl, NowRequest, Req, RootControl, ThreadPool,
};
use std::future::Future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

pub const ALL: PermPair = PermPair { perm: Perm::all(), shared: Perm::all() };
pub const READ: PermPair = PermPair { perm: Perm::CONSISTENT_READ, shared: Perm::all() };

/// Nothing in these tests takes this long, even under a sanitizer.
pub const LONG: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Bell {
    rung: Mutex<bool>,
    condition: Condvar,
    pub count: AtomicUsize,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        *lock(&self.rung) = true;
        self.condition.notify_all();
    }
}

impl Bell {
    pub fn wait(&self, limit: Duration) -> bool {
        let (mut rung, _) = self
            .condition
            .wait_timeout_while(lock(&self.rung), limit, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *rung, false)
    }
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Run a future on this thread, without any runtime. Panics when it takes too long: a lost wake-up must not hang the suite.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let mut future = pin!(future);
    let begin = Instant::now();
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        bell.wait(LONG.saturating_sub(begin.elapsed()));
        assert!(begin.elapsed() < LONG, "the future was not woken, or is not ready after {LONG:?}");
    }
}

/// Poll a future up to `polls` times, each after a wake-up, and drop it. Whether it was over by then.
pub fn poll_times<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(bell.clone());
    let mut future = Box::pin(future);
    for _ in 0..polls {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        // Spurious polls are polls too: do not insist on the wake-up.
        bell.wait(Duration::from_millis(5));
    }
    None
}

/// Whether a future that was polled once is still waiting.
pub fn is_pending<F: Future>(future: F) -> bool {
    poll_times(future, 1).is_none()
}

pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < LONG, "not within {LONG:?}: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

pub fn thread() -> IoThread {
    IoThread::spawn(IoThreadOptions::named("home")).expect("an I/O thread")
}

pub fn thread_without_ring() -> IoThread {
    IoThread::spawn(IoThreadOptions { ring: false, ..IoThreadOptions::named("home") }).expect("an I/O thread")
}

pub fn buf(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

pub fn bytes(buf: &IoBuf) -> Vec<u8> {
    let mut bytes = vec![0; buf.len()];
    buf.copy_to_slice(0, &mut bytes);
    bytes
}

/// Holds requests until they are released, and counts them.
#[derive(Default)]
pub struct Valve {
    state: Mutex<(bool, Vec<Waker>)>,
    pub begun: AtomicUsize,
    pub ended: AtomicUsize,
}

impl Valve {
    pub fn close(&self) {
        lock(&self.state).0 = true;
    }

    pub fn open(&self) {
        let mut state = lock(&self.state);
        state.0 = false;
        let wakers = std::mem::take(&mut state.1);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    pub async fn pass(&self) {
        self.begun.fetch_add(1, Ordering::SeqCst);
        std::future::poll_fn(|cx| {
            let mut state = lock(&self.state);
            if !state.0 {
                return Poll::Ready(());
            }
            state.1.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::SeqCst)
    }

    pub fn ended(&self) -> usize {
        self.ended.load(Ordering::SeqCst)
    }
}

/// What a [`Mem`] was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Read(u64, usize),
    Write(u64, usize, RequestFlags),
    Now(u64, usize),
    Zero(u64, u64, RequestFlags),
    Discard(u64, u64),
    Flush,
    Close,
}

/// Memory as a device.
#[derive(Default)]
pub struct MemState {
    pub bytes: Mutex<Vec<u8>>,
    pub seen: Mutex<Vec<Seen>>,
    pub valve: Valve,
    /// Serve requests without waiting.
    pub fast: AtomicBool,
    /// Yield to the thread this often in each slow request.
    pub yields: AtomicUsize,
    pub zero_supported: AtomicBool,
    pub panics: AtomicBool,
    pub fails: Mutex<Option<IoError>>,
    pub dropped: AtomicBool,
    pub status: Mutex<Option<StatusExtent>>,
    pub leaf: AtomicBool,
    pub write_flags: Mutex<RequestFlags>,
}

impl MemState {
    pub fn new(len: usize) -> Arc<Self> {
        let write_flags = Mutex::new(RequestFlags::FUA);
        Arc::new(Self { bytes: Mutex::new(vec![0; len]), write_flags, ..Self::default() })
    }

    pub fn fast(len: usize) -> Arc<Self> {
        let state = Self::new(len);
        state.fast.store(true, Ordering::SeqCst);
        state
    }

    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.seen))
    }

    fn note(&self, seen: Seen) -> IoResult<()> {
        lock(&self.seen).push(seen);
        lock(&self.fails).map_or(Ok(()), Err)
    }

    async fn work(&self) {
        assert!(!self.panics.load(Ordering::SeqCst), "the engine was told to panic");
        self.valve.pass().await;
        for _ in 0..self.yields.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    }

    fn get(&self, offset: u64, buf: &IoBuf) {
        let bytes = lock(&self.bytes);
        buf.copy_from_slice(0, &bytes[offset as usize..offset as usize + buf.len()]);
    }

    fn put(&self, offset: u64, buf: &IoBuf) {
        let mut bytes = lock(&self.bytes);
        let end = offset as usize + buf.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        buf.copy_to_slice(0, &mut bytes[offset as usize..end]);
    }
}

/// The engine of [`MemState`].
pub struct Mem(pub Arc<MemState>, pub Limits);

impl Drop for Mem {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Driver for Mem {
    fn format_name(&self) -> &'static str {
        "mem"
    }

    fn limits(&self) -> Limits {
        self.1
    }

    fn map_cached(&self, access: Access, _range: GuestRange) -> Mapping<'_> {
        let fast = access != Access::WriteFua && self.0.fast.load(Ordering::SeqCst);
        if fast { Mapping::Now } else { Mapping::Slow }
    }

    fn serve_now(&self, request: NowRequest<'_>) -> IoResult<()> {
        assert!(!self.0.panics.load(Ordering::SeqCst), "the engine was told to panic");
        match request {
            NowRequest::Read(offset, buf) => {
                self.0.note(Seen::Now(offset.0, buf.len()))?;
                self.0.get(offset.0, buf);
            }
            NowRequest::Write(offset, buf) => {
                self.0.note(Seen::Now(offset.0, buf.len()))?;
                self.0.put(offset.0, buf);
            }
        }
        Ok(())
    }

    fn write_flags(&self) -> RequestFlags {
        *lock(&self.0.write_flags)
    }

    fn is_leaf(&self) -> bool {
        self.0.leaf.load(Ordering::SeqCst)
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(lock(&self.0.bytes).len() as u64)
    }

    async fn read(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.work().await;
        self.0.note(Seen::Read(offset.0, buf.len()))?;
        self.0.get(offset.0, buf);
        Ok(())
    }

    async fn write(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.work().await;
        self.0.note(Seen::Write(offset.0, buf.len(), flags))?;
        self.0.put(offset.0, buf);
        Ok(())
    }

    async fn zero(&self, _req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.0.work().await;
        self.0.note(Seen::Zero(range.offset().0, range.len(), flags))?;
        if !self.0.zero_supported.load(Ordering::SeqCst) {
            return Err(IoError::UNSUPPORTED);
        }
        self.0.put(range.offset().0, &buf(range.len() as usize, 0));
        Ok(())
    }

    async fn discard(&self, _req: &Req, range: GuestRange) -> IoResult<()> {
        self.0.work().await;
        self.0.note(Seen::Discard(range.offset().0, range.len()))
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.0.work().await;
        self.0.note(Seen::Flush)
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.work().await;
        Ok(lock(&self.0.status).unwrap_or(StatusExtent::new(BlockStatus::DATA | BlockStatus::ALLOCATED, range.len())))
    }

    async fn truncate(&self, _req: &Req, len: u64, _preallocation: block_common::Preallocation) -> IoResult<()> {
        self.0.work().await;
        lock(&self.0.bytes).resize(len as usize, 0);
        Ok(())
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        self.0.note(Seen::Close)
    }
}

/// Passes everything to its child, `shift` bytes further on.
pub struct Through {
    pub edge: Edge,
    pub shift: u64,
    pub fast: bool,
}

#[async_trait]
impl Driver for Through {
    fn format_name(&self) -> &'static str {
        "through"
    }

    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        if !self.fast {
            return Mapping::Slow;
        }
        Mapping::Child { edge: &self.edge, offset: HostOffset(range.offset().0 + self.shift), len: range.len() }
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        Ok(self.edge.refresh_length(req).await? - self.shift)
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.edge.read(req, HostOffset(offset.0 + self.shift), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.edge.write(req, HostOffset(offset.0 + self.shift), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.edge.zero(req, HostOffset(range.offset().0 + self.shift), range.len(), flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.edge.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.edge.block_status(req, HostOffset(range.offset().0 + self.shift), range.len()).await
    }
}

/// A host file as a device. `fast` requests are the core's, others the engine's own.
pub struct Host {
    pub file: HostFile,
    pub fast: bool,
    pub limits: Limits,
    pub length: Option<u64>,
}

#[async_trait]
impl Driver for Host {
    fn format_name(&self) -> &'static str {
        "host"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        if self.fast { Mapping::File(&self.file) } else { Mapping::Slow }
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        match self.length {
            Some(length) => Ok(length),
            None => self.file.length().await,
        }
    }

    async fn read(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(offset, buf).await
    }

    async fn write(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(offset, buf, flags).await
    }

    async fn zero(&self, _req: &Req, range: GuestRange, _flags: RequestFlags) -> IoResult<()> {
        self.file.fallocate(libc::FALLOC_FL_ZERO_RANGE, range.offset().0, range.len()).await
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.file.sync().await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        self.file.close().await
    }
}

pub fn host_file(fd: impl Into<OwnedFd>, engine: FileEngine, memory_alignment: u32) -> (HostFile, HostFileControl) {
    HostFile::new(fd.into(), HostFileOptions { engine, memory_alignment }, ThreadPool::new(4))
}

/// A node with an engine, and a root entry to it.
pub struct Stack {
    pub node: NodeControl,
    pub root: RootControl,
}

pub fn node(name: &str, engine: impl Driver, length: u64) -> NodeControl {
    let node = NodeControl::shell(name);
    node.install(Box::new(engine), length, false);
    node
}

pub fn stack(home: &IoThreadHandle, engine: impl Driver, length: u64) -> Stack {
    let node = node("node", engine, length);
    let root = RootControl::new("root", home, ALL, Some(&node.target()));
    Stack { node, root }
}

pub fn mem(home: &IoThreadHandle, state: &Arc<MemState>) -> Stack {
    mem_limited(home, state, Limits::NONE)
}

pub fn mem_limited(home: &IoThreadHandle, state: &Arc<MemState>, limits: Limits) -> Stack {
    let length = lock(&state.bytes).len() as u64;
    stack(home, Mem(state.clone(), limits), length)
}

/// A [`Through`] above `child`.
pub fn through(child: &NodeControl, fast: bool, shift: u64, perm: PermPair) -> (NodeControl, EdgeWriter) {
    let node = NodeControl::shell("through");
    let (writer, edge) = node.edge(ChildRole::DATA, perm, Some(&child.target()));
    node.install(Box::new(Through { edge, shift, fast }), child.node().length() - shift, false);
    (node, writer)
}

/// Random numbers that can be had again: the seed is printed.
pub struct Random(u64);

impl Random {
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |now| now.as_nanos());
        let seed = std::env::var("CAIRN_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(now as u64);
        println!("CAIRN_SEED={seed}");
        Self(seed | 1)
    }

    pub fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % below
    }
}
