//! The null driver's engine: writes go nowhere, reads give zeroes or leave the buffer as it is, after a chosen time.
//!
//! It serves `null-co` and `null-aio`, which differ in name alone here: there are no coroutines to tell apart.
//! It is the yardstick of the core's own cost, and the sink of a conversion that only reads.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{BlockStatus, GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, RequestFlags, StatusExtent};
use block_io::{Access, Driver, Mapping, NowRequest, Req};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What a null node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NullOptions {
    /// The name that the node answers to: `null-co` or `null-aio`.
    pub name: &'static str,
    /// Length in bytes.
    pub size: u64,
    /// How long each request takes.
    pub latency: Duration,
    /// Whether reads give zeroes. Otherwise the buffer keeps what it held, which is faster and tells more of the caller.
    pub read_zeroes: bool,
}

impl Default for NullOptions {
    /// 1 GiB, at once, buffers untouched: the field's defaults.
    fn default() -> Self {
        Self { name: "null-co", size: 1 << 30, latency: Duration::ZERO, read_zeroes: false }
    }
}

#[derive(Debug)]
struct Shared {
    name: &'static str,
    size: u64,
    latency_ns: AtomicU64,
    read_zeroes: AtomicBool,
}

/// The engine.
#[derive(Debug)]
pub struct Null(Arc<Shared>);

/// The engine's control half: options that a reopen may change.
#[derive(Debug)]
pub struct NullControl(Arc<Shared>);

impl Null {
    /// An engine and its control.
    pub fn new(options: NullOptions) -> (Self, NullControl) {
        let shared = Arc::new(Shared {
            name: options.name,
            size: options.size,
            latency_ns: AtomicU64::new(0),
            read_zeroes: AtomicBool::new(false),
        });
        let control = NullControl(shared.clone());
        control.set(options.latency, options.read_zeroes);
        (Self(shared), control)
    }

    async fn wait(&self) {
        match self.0.latency_ns.load(Ordering::Relaxed) {
            0 => {}
            ns => tokio::time::sleep(Duration::from_nanos(ns)).await,
        }
    }

    fn fill(&self, buf: &IoBuf) {
        if self.0.read_zeroes.load(Ordering::Relaxed) {
            buf.fill(0, buf.len(), 0);
        }
    }
}

impl NullControl {
    /// Change how long requests take and whether reads give zeroes.
    pub fn set(&self, latency: Duration, read_zeroes: bool) {
        self.0.latency_ns.store(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.0.read_zeroes.store(read_zeroes, Ordering::Relaxed);
    }
}

#[async_trait]
impl Driver for Null {
    fn format_name(&self) -> &'static str {
        self.0.name
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        if self.0.latency_ns.load(Ordering::Relaxed) == 0 { Mapping::Now } else { Mapping::Slow }
    }

    fn serve_now(&self, request: NowRequest<'_>) -> IoResult<()> {
        if let NowRequest::Read(_, buf) = request {
            self.fill(buf);
        }
        Ok(())
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.0.size)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.wait().await;
        self.fill(buf);
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        self.wait().await;
        Ok(())
    }

    async fn zero(&self, _req: &Req, _range: GuestRange, _flags: RequestFlags) -> IoResult<()> {
        self.wait().await;
        Ok(())
    }

    async fn discard(&self, _req: &Req, _range: GuestRange) -> IoResult<()> {
        self.wait().await;
        Ok(())
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.wait().await;
        Ok(())
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let zeroes = self.0.read_zeroes.load(Ordering::Relaxed);
        let status = if zeroes { BlockStatus::ZERO } else { BlockStatus::empty() };
        Ok(StatusExtent::mapped(status, range.len(), HostOffset(range.offset().0)))
    }
}
