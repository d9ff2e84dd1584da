//! A filter that changes nothing: what the core makes of filters, without what filters do. It can hold writes.

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, LENGTH_MAX, Limits, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::watch;

#[derive(Debug, Default)]
struct Counters {
    mapped: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    zeroes: AtomicU64,
    discards: AtomicU64,
    flushes: AtomicU64,
    status: AtomicU64,
    truncates: AtomicU64,
    closes: AtomicU64,
}

/// How often each method of a [`ToyFilter`] was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are the methods")]
pub struct ToyCounts {
    /// Times that a mapping was given (counted while [`ToyFilterControl::count_mapped`] is on).
    pub mapped: u64,
    pub reads: u64,
    pub writes: u64,
    pub zeroes: u64,
    pub discards: u64,
    pub flushes: u64,
    pub status: u64,
    pub truncates: u64,
    pub closes: u64,
}

#[derive(Debug)]
struct Shared {
    file: Edge,
    limits: Limits,
    slow: AtomicBool,
    count_mapped: AtomicBool,
    writes_held: watch::Sender<bool>,
    counters: Counters,
}

/// The engine.
#[derive(Debug)]
pub struct ToyFilter(Arc<Shared>);

/// The engine's control half: the way that requests take, and counters.
#[derive(Clone, Debug)]
pub struct ToyFilterControl(Arc<Shared>);

impl ToyFilter {
    /// A filter over `file`, whose limits are `limits`.
    pub fn new(file: Edge, limits: Limits) -> (Self, ToyFilterControl) {
        let shared = Arc::new(Shared {
            file,
            limits,
            slow: AtomicBool::new(false),
            count_mapped: AtomicBool::new(false),
            writes_held: watch::Sender::new(false),
            counters: Counters::default(),
        });
        (Self(shared.clone()), ToyFilterControl(shared))
    }

    /// As [`ToyFilter::new`], with the limits that the child has now.
    ///
    /// # Errors
    /// [`block_common::IoError::NO_MEDIUM`] when there is no child.
    pub fn open(req: &Req, file: Edge) -> IoResult<(Self, ToyFilterControl)> {
        let limits = file.limits(req)?;
        Ok(Self::new(file, limits))
    }
}

impl ToyFilterControl {
    /// Send every request the slow way, or those that can through the mapping. May be switched at any time.
    pub fn set_slow(&self, slow: bool) {
        self.0.slow.store(slow, Ordering::Relaxed);
    }

    /// Let writes that take the slow way wait, or go on.
    pub fn hold_writes(&self, hold: bool) {
        self.0.writes_held.send_replace(hold);
    }

    /// Count mappings too. Off at first: a shared counter is not what a filter costs.
    pub fn count_mapped(&self, count: bool) {
        self.0.count_mapped.store(count, Ordering::Relaxed);
    }

    /// How often each method was called.
    pub fn counts(&self) -> ToyCounts {
        let c = &self.0.counters;
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ToyCounts {
            mapped: of(&c.mapped),
            reads: of(&c.reads),
            writes: of(&c.writes),
            zeroes: of(&c.zeroes),
            discards: of(&c.discards),
            flushes: of(&c.flushes),
            status: of(&c.status),
            truncates: of(&c.truncates),
            closes: of(&c.closes),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

#[async_trait]
impl Driver for ToyFilter {
    fn format_name(&self) -> &'static str {
        "toy-filter"
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0.file)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    #[inline]
    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        if self.0.slow.load(Ordering::Relaxed) {
            return Mapping::Slow;
        }
        if self.0.count_mapped.load(Ordering::Relaxed) {
            count(&self.0.counters.mapped);
        }
        let offset = range.offset().0;
        Mapping::Child { edge: &self.0.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        count(&self.0.counters.reads);
        self.0.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        count(&self.0.counters.writes);
        let mut held = self.0.writes_held.subscribe();
        // The sender is ours: it cannot be gone.
        let _ = held.wait_for(|held| !held).await;
        self.0.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        count(&self.0.counters.zeroes);
        self.0.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        count(&self.0.counters.discards);
        self.0.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        count(&self.0.counters.flushes);
        self.0.file.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        count(&self.0.counters.status);
        self.0.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        count(&self.0.counters.truncates);
        self.0.file.truncate(req, len, preallocation).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.0.file.ioctl(req, number, argument).await
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        count(&self.0.counters.closes);
        Ok(())
    }
}
