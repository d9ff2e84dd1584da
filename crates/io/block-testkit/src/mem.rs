//! Storage in memory that a test commands: hold requests, delay, fail, reorder, drop them; read the log; cut the power.
//!
//! [`MemStorage`] is the test's half and outlives drivers: several may be opened on it, one after the other.
//! [`MemDriver`] is a leaf. In *now* mode the core serves reads and writes where it stands, as from null; in *slow*
//! mode, and whenever there is a script, every request waits for what the script says. What survives a power cut is in
//! `power`.

use crate::power::Content;
use crate::rng::Rng;
use async_trait::async_trait;
use block_common::{
    BlockStatus, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Preallocation, RequestFlags,
    StatusExtent,
};
use block_io::{Access, Driver, Mapping, NowRequest, Req};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// What one look at the content tells of it, at most, in bytes.
const STATUS_MAX: u64 = 1 << 20;
/// A reordering device that gets no further requests moves on after this long.
const LINGER: Duration = Duration::from_millis(1);

/// Kinds of operations on storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemOpKind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Zero write.
    Zero,
    /// Discard.
    Discard,
    /// Flush.
    Flush,
    /// Change of length.
    Truncate,
    /// A question for block status, where [`MemStorage::watch_status`] asked for them.
    Status,
    /// The driver's last call.
    Close,
}

/// One operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemOp {
    /// Its place in the order in which operations arrived.
    pub seq: u64,
    /// What it is.
    pub kind: MemOpKind,
    /// First byte; the new length of a change of length.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
    /// How it is to be carried out.
    pub flags: RequestFlags,
}

impl MemOp {
    /// Whether the operation touches a byte of `len` bytes at `offset`.
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.offset < offset + len && offset < self.offset + self.len
    }
}

/// An operation that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRecord {
    /// The operation.
    pub op: MemOp,
    /// Its result.
    pub result: IoResult<()>,
}

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is carried out.
    Serve,
    /// It fails and has no effect.
    Fail(IoError),
    /// It fails after so many bytes.
    FailAfter(u64, IoError),
    /// It waits until it is released.
    Hold,
    /// It is carried out this much later.
    Delay(Duration),
    /// It is carried out when the shuffling of [`MemStorage::reorder`] comes to it.
    Reorder,
    /// It is acknowledged and not carried out.
    Drop,
}

/// Whether requests are served at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemMode {
    /// The core serves reads and writes in place.
    #[default]
    Now,
    /// Every request takes the slow path.
    Slow,
}

/// What a discard does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemDiscard {
    /// Zeroes appear.
    #[default]
    Zeroes,
    /// Nothing, successfully.
    Nothing,
    /// The driver has no such operation.
    Unsupported,
}

/// What a storage is like.
#[derive(Clone, Copy, Debug)]
pub struct MemOptions {
    /// Length in bytes.
    pub size: u64,
    /// The limits of its driver.
    pub limits: Limits,
    /// Whether zero writes are an operation of its own.
    pub zero: bool,
    /// What discards do.
    pub discard: MemDiscard,
    /// Whether writes past the end make it longer; otherwise there is no space for them.
    pub grows: bool,
    /// Remember what was not flushed, for [`MemStorage::power_cut`].
    pub journal: bool,
}

impl MemOptions {
    /// `size` bytes that can do everything and need no alignment, without a journal.
    pub const fn new(size: u64) -> Self {
        Self { size, limits: Limits::NONE, zero: true, discard: MemDiscard::Zeroes, grows: true, journal: false }
    }
}

type Script = Box<dyn FnMut(&MemOp) -> Verdict + Send>;

#[derive(Default)]
struct Control {
    mode: MemMode,
    held: Vec<(MemOp, oneshot::Sender<Verdict>)>,
    shuffle: Option<Shuffle>,
    log: Vec<MemRecord>,
}

struct Shuffle {
    rng: Rng,
    depth: usize,
    waiting: Vec<oneshot::Sender<()>>,
}

impl Shuffle {
    fn release_one(&mut self) {
        while !self.waiting.is_empty() {
            let index = self.rng.below(0..self.waiting.len() as u64) as usize;
            // A request whose thread ended does not count.
            if self.waiting.swap_remove(index).send(()).is_ok() {
                return;
            }
        }
    }
}

struct Shared {
    options: MemOptions,
    content: RwLock<Content>,
    /// Whether reads and writes take the slow path.
    slow: AtomicBool,
    logging: AtomicBool,
    /// Whether questions for block status are operations.
    watches_status: AtomicBool,
    next: AtomicU64,
    script: Mutex<Option<Script>>,
    control: Mutex<Control>,
    changed: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The storage, and the test's command of it. Clones are equal.
#[derive(Clone)]
pub struct MemStorage(Arc<Shared>);

/// A leaf on a [`MemStorage`].
pub struct MemDriver(Arc<Shared>);

impl MemStorage {
    /// Zeroes.
    pub fn new(options: MemOptions) -> Self {
        Self::with_content(options, vec![0; options.size as usize])
    }

    /// `content`, whatever `options.size` says.
    pub fn with_content(options: MemOptions, content: Vec<u8>) -> Self {
        Self(Arc::new(Shared {
            options,
            content: RwLock::new(Content::new(content, options.journal)),
            slow: AtomicBool::new(false),
            logging: AtomicBool::new(true),
            watches_status: AtomicBool::new(false),
            next: AtomicU64::new(0),
            script: Mutex::new(None),
            control: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// A driver's engine on this storage.
    pub fn driver(&self) -> MemDriver {
        MemDriver(self.0.clone())
    }

    /// Serve at once, or make every request take the slow path.
    pub fn set_mode(&self, mode: MemMode) {
        lock(&self.0.control).mode = mode;
        self.refresh_slow();
    }

    /// Ask `script` what becomes of each operation, from now on. It must not call back into the storage, but for
    /// [`MemStorage::power_cut`].
    pub fn set_script(&self, script: impl FnMut(&MemOp) -> Verdict + Send + 'static) {
        *lock(&self.0.script) = Some(Box::new(script));
        self.refresh_slow();
    }

    /// Carry out what comes from now on. What is held stays held.
    pub fn clear_script(&self) {
        *lock(&self.0.script) = None;
        self.refresh_slow();
    }

    fn refresh_slow(&self) {
        let slow = lock(&self.0.control).mode == MemMode::Slow || lock(&self.0.script).is_some();
        self.0.slow.store(slow, Ordering::Release);
    }

    /// From now on questions for block status are operations like others: scripts are asked about them, and they are logged.
    pub fn watch_status(&self) {
        self.0.watches_status.store(true, Ordering::Relaxed);
    }

    /// Hold every operation of `kind`, or every one.
    pub fn hold(&self, kind: Option<MemOpKind>) {
        self.set_script(move |op| if kind.is_none_or(|kind| kind == op.kind) { Verdict::Hold } else { Verdict::Serve });
    }

    /// Fail the `nth` operation of `kind` (or of any) from now on, counted from zero.
    pub fn fail_nth(&self, kind: Option<MemOpKind>, nth: u64, error: IoError) {
        let mut left = Some(nth);
        self.set_script(move |op| match &mut left {
            Some(left_now) if kind.is_none_or(|kind| kind == op.kind) => match left_now.checked_sub(1) {
                None => {
                    left = None;
                    Verdict::Fail(error)
                }
                rest => {
                    left = rest;
                    Verdict::Serve
                }
            },
            _ => Verdict::Serve,
        });
    }

    /// Gather up to `depth` operations and carry them out in an order that `seed` decides.
    pub fn reorder(&self, seed: u64, depth: usize) {
        lock(&self.0.control).shuffle = Some(Shuffle { rng: Rng::new(seed), depth, waiting: Vec::new() });
        self.set_script(|_| Verdict::Reorder);
    }

    /// The operations that are held, in the order in which they arrived.
    pub fn held(&self) -> Vec<MemOp> {
        let mut control = lock(&self.0.control);
        control.held.retain(|(_, release)| !release.is_closed());
        control.held.iter().map(|(op, _)| *op).collect()
    }

    /// Wait until at least `count` operations are held.
    pub async fn wait_held(&self, count: usize) {
        loop {
            let changed = self.0.changed.notified();
            if self.held().len() >= count {
                return;
            }
            changed.await;
        }
    }

    /// Let the held operation `seq` go on to `verdict`. Tells whether there was one.
    pub fn release(&self, seq: u64, verdict: Verdict) -> bool {
        let mut control = lock(&self.0.control);
        let Some(index) = control.held.iter().position(|(op, _)| op.seq == seq) else { return false };
        control.held.remove(index).1.send(verdict).is_ok()
    }

    /// Carry out everything that is held, and hold nothing more.
    pub fn release_all(&self) {
        self.clear_script();
        let held = std::mem::take(&mut lock(&self.0.control).held);
        for (_, release) in held {
            // Whoever is gone needs no answer.
            let _ = release.send(Verdict::Serve);
        }
    }

    /// Keep a log of operations, or not. On at first.
    pub fn set_logging(&self, logging: bool) {
        self.0.logging.store(logging, Ordering::Relaxed);
    }

    /// The operations that are over, in the order in which they ended.
    pub fn log(&self) -> Vec<MemRecord> {
        lock(&self.0.control).log.clone()
    }

    /// How many operations of `kind` succeeded.
    pub fn count(&self, kind: MemOpKind) -> usize {
        lock(&self.0.control).log.iter().filter(|record| record.op.kind == kind && record.result.is_ok()).count()
    }

    /// Forget the log.
    pub fn clear_log(&self) {
        lock(&self.0.control).log.clear();
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.content().len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `len` bytes at `offset`, past all drivers.
    ///
    /// # Panics
    /// When they are not all there.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        self.content().bytes()[offset as usize..offset as usize + len].to_vec()
    }

    /// Change the length past all drivers, as somebody else would who has the file too.
    pub fn set_len(&self, len: u64) {
        self.0.content.write().unwrap_or_else(PoisonError::into_inner).set_len(len);
    }

    /// What is on the medium if the power fails now: what was flushed or written with FUA, and of the rest those
    /// sectors for which `keep`, called with offset and length in bytes, says so.
    ///
    /// # Panics
    /// Without [`MemOptions::journal`].
    pub fn power_cut(&self, mut keep: impl FnMut(u64, u64) -> bool) -> Vec<u8> {
        self.content().after_power_cut(&mut keep).expect("a storage with a journal")
    }

    fn content(&self) -> std::sync::RwLockReadGuard<'_, Content> {
        self.0.content.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What to do for an operation, with what it brings along.
enum Work<'a> {
    Read(&'a IoBuf),
    Write(&'a IoBuf),
    Zero,
    Discard,
    Flush(u64),
    Truncate,
    Nothing,
}

impl Shared {
    fn op(&self, kind: MemOpKind, offset: u64, len: u64, flags: RequestFlags) -> MemOp {
        MemOp { seq: self.next.fetch_add(1, Ordering::Relaxed), kind, offset, len, flags }
    }

    fn record(&self, op: MemOp, result: IoResult<()>) {
        if self.logging.load(Ordering::Relaxed) {
            lock(&self.control).log.push(MemRecord { op, result });
        }
    }

    /// Carry out the first `len` bytes of an operation.
    fn perform(&self, op: &MemOp, work: &Work<'_>, len: u64) -> IoResult<()> {
        let durable = op.flags.contains(RequestFlags::FUA);
        if let Work::Read(buf) = work {
            self.content.read().unwrap_or_else(PoisonError::into_inner).read(op.offset, len, buf);
            return Ok(());
        }
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        if matches!(work, Work::Write(_) | Work::Zero) && op.offset + len > content.len() && !self.options.grows {
            return Err(IoError::host(rustix::io::Errno::NOSPC.raw_os_error()));
        }
        match work {
            Work::Write(buf) => content.write(op.offset, len, buf, durable),
            Work::Zero => content.fill(op.offset, len, durable),
            Work::Discard if self.options.discard == MemDiscard::Zeroes => content.fill(op.offset, len, false),
            Work::Flush(mark) => content.flushed(*mark),
            Work::Truncate => content.set_len(op.offset),
            Work::Read(_) | Work::Discard | Work::Nothing => {}
        }
        Ok(())
    }

    async fn carry_out(&self, op: MemOp, work: Work<'_>) -> IoResult<()> {
        let first = lock(&self.script).as_mut().map_or(Verdict::Serve, |script| script(&op));
        let last = match first {
            Verdict::Hold => self.hold(op).await,
            other => other,
        };
        let result = match last {
            Verdict::Drop => Ok(()),
            Verdict::Fail(error) => Err(error),
            Verdict::FailAfter(len, error) => self.perform(&op, &work, len.min(op.len)).and(Err(error)),
            Verdict::Delay(time) => {
                tokio::time::sleep(time).await;
                self.perform(&op, &work, op.len)
            }
            Verdict::Reorder => {
                self.shuffle().await;
                self.perform(&op, &work, op.len)
            }
            Verdict::Serve | Verdict::Hold => self.perform(&op, &work, op.len),
        };
        self.record(op, result);
        result
    }

    async fn hold(&self, op: MemOp) -> Verdict {
        let (release, released) = oneshot::channel();
        lock(&self.control).held.push((op, release));
        self.changed.notify_waiters();
        released.await.unwrap_or(Verdict::Serve)
    }

    async fn shuffle(&self) {
        let (release, mut released) = oneshot::channel();
        if let Some(shuffle) = &mut lock(&self.control).shuffle {
            shuffle.waiting.push(release);
            if shuffle.waiting.len() >= shuffle.depth {
                shuffle.release_one();
            }
        }
        while tokio::time::timeout(LINGER, &mut released).await.is_err() {
            if let Some(shuffle) = &mut lock(&self.control).shuffle {
                shuffle.release_one();
            }
        }
    }
}

#[async_trait]
impl Driver for MemDriver {
    fn format_name(&self) -> &'static str {
        "mem"
    }

    fn limits(&self) -> Limits {
        self.0.options.limits
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    fn map_cached(&self, access: Access, _range: GuestRange) -> Mapping<'_> {
        // What is to be durable is told apart by its flags, which a request that is served at once does not have.
        let slow = access == Access::WriteFua || self.0.slow.load(Ordering::Acquire);
        if slow { Mapping::Slow } else { Mapping::Now }
    }

    fn serve_now(&self, request: NowRequest<'_>) -> IoResult<()> {
        let none = RequestFlags::empty();
        let (op, work) = match request {
            NowRequest::Read(at, buf) => (self.0.op(MemOpKind::Read, at.0, buf.len() as u64, none), Work::Read(buf)),
            NowRequest::Write(at, buf) => (self.0.op(MemOpKind::Write, at.0, buf.len() as u64, none), Work::Write(buf)),
        };
        let result = self.0.perform(&op, &work, op.len);
        self.0.record(op, result);
        result
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.0.content.read().unwrap_or_else(PoisonError::into_inner).len())
    }

    async fn read(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let op = self.0.op(MemOpKind::Read, offset.0, buf.len() as u64, RequestFlags::empty());
        self.0.carry_out(op, Work::Read(buf)).await
    }

    async fn write(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let op = self.0.op(MemOpKind::Write, offset.0, buf.len() as u64, flags);
        self.0.carry_out(op, Work::Write(buf)).await
    }

    async fn zero(&self, _req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        if !self.0.options.zero {
            return Err(IoError::UNSUPPORTED);
        }
        let op = self.0.op(MemOpKind::Zero, range.offset().0, range.len(), flags);
        self.0.carry_out(op, Work::Zero).await
    }

    async fn discard(&self, _req: &Req, range: GuestRange) -> IoResult<()> {
        if self.0.options.discard == MemDiscard::Unsupported {
            return Err(IoError::UNSUPPORTED);
        }
        let op = self.0.op(MemOpKind::Discard, range.offset().0, range.len(), RequestFlags::empty());
        self.0.carry_out(op, Work::Discard).await
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        let mark = self.0.content.read().unwrap_or_else(PoisonError::into_inner).mark();
        let op = self.0.op(MemOpKind::Flush, 0, 0, RequestFlags::empty());
        self.0.carry_out(op, Work::Flush(mark)).await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let block = u64::from(self.0.options.limits.request_alignment).max(512);
        let offset = range.offset().0;
        if self.0.watches_status.load(Ordering::Relaxed) {
            let op = self.0.op(MemOpKind::Status, offset, range.len(), RequestFlags::empty());
            self.0.carry_out(op, Work::Nothing).await?;
        }
        let content = self.0.content.read().unwrap_or_else(PoisonError::into_inner);
        let (zero, len) = content.zero_run(offset, range.len().min(STATUS_MAX), block);
        let what = if zero { BlockStatus::ZERO } else { BlockStatus::DATA };
        Ok(StatusExtent::mapped(what | BlockStatus::ALLOCATED, len, HostOffset(offset)))
    }

    async fn truncate(&self, _req: &Req, len: u64, _preallocation: Preallocation) -> IoResult<()> {
        let op = self.0.op(MemOpKind::Truncate, len, 0, RequestFlags::empty());
        self.0.carry_out(op, Work::Truncate).await
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        let op = self.0.op(MemOpKind::Close, 0, 0, RequestFlags::empty());
        self.0.carry_out(op, Work::Nothing).await
    }
}

impl fmt::Debug for MemStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemStorage({} bytes, {} held)", self.len(), self.held().len())
    }
}

impl fmt::Debug for MemDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemDriver")
    }
}
