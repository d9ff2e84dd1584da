//! The copy-before-write driver's engine: a filter that keeps a point in time of the disk below it, by copying to a target what is about to be
//! changed.
//!
//! Each cluster is copied once, before the first change of it; who changes one that somebody else is copying waits. [`CbwState`] knows what
//! is where; here are the requests: the guest's, which go to the source, and those of who reads the point in time
//! ([`Driver::read_snapshot`]). Nothing is copied but for a change: whoever wants all of it copied is a job.

#![forbid(unsafe_code)]

mod copy;
mod state;

pub use state::CbwState;

use async_trait::async_trait;
use block_common::{
    BlockStatus, Errno, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, LENGTH_MAX, Limits,
    Preallocation, RequestFlags, StatusExtent, qapi_enum,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

qapi_enum! {
    /// What gives way when something cannot be copied. QAPI: `OnCbwError`.
    pub enum OnCbwError: "OnCbwError" {
        /// The guest's write fails, and changes nothing.
        BreakGuestWrite = "break-guest-write",
        /// The point in time is lost.
        BreakSnapshot = "break-snapshot",
    }
}

/// How the filter behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CbwOptions {
    /// What gives way when something cannot be copied.
    pub on_error: OnCbwError,
    /// How long a change waits for what has to be copied; without it, for as long as it takes.
    pub timeout: Option<Duration>,
}

struct Shared {
    file: Edge,
    target: Edge,
    limits: RwLock<Limits>,
    options: Mutex<CbwOptions>,
    state: Arc<CbwState>,
}

/// The engine.
pub struct CopyBeforeWrite(Arc<Shared>);

/// The engine's control half.
#[derive(Clone)]
pub struct CbwControl(Arc<Shared>);

impl CopyBeforeWrite {
    /// The name of the driver.
    pub const NAME: &'static str = "copy-before-write";
    /// The smallest cluster, in bytes.
    pub const CLUSTER_MIN: u64 = 64 << 10;

    /// A filter over `file`, whose limits are `limits`, that keeps the point in time `state` with the help of `target`.
    pub fn new(
        file: Edge,
        target: Edge,
        limits: Limits,
        options: CbwOptions,
        state: Arc<CbwState>,
    ) -> (Self, CbwControl) {
        let (limits, options) = (RwLock::new(limits), Mutex::new(options));
        let shared = Arc::new(Shared { file, target, limits, options, state });
        (Self(shared.clone()), CbwControl(shared))
    }

    /// See that the point in time has what it needs of `range`, which is about to be changed, and that nobody reads it from the source.
    async fn before_change(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        let clusters = self.0.state.clusters(range);
        if clusters.is_empty() {
            return Ok(());
        }
        let CbwOptions { on_error, timeout } = *self.0.options();
        let copied = match timeout {
            None => copy::copy(&self.0, req, &clusters).await,
            Some(limit) => {
                let copied = tokio::time::timeout(limit, copy::copy_beside(&self.0, req, &clusters)).await;
                copied.unwrap_or(Err(IoError::host(Errno::ETIMEDOUT.raw())))
            }
        };
        match (copied, on_error) {
            (Ok(()), _) => {}
            (Err(error), OnCbwError::BreakGuestWrite) => return Err(error),
            (Err(error), OnCbwError::BreakSnapshot) => {
                tracing::warn!(node = req.node_name(), %error, "the point in time is lost");
                self.0.state.break_off(error);
            }
        }
        self.0.state.source_reads_over(&clusters).await;
        Ok(())
    }
}

impl CbwControl {
    /// What is where.
    pub fn state(&self) -> &Arc<CbwState> {
        &self.0.state
    }

    /// Changes that begin from now on wait so long; without it, for as long as it takes.
    pub fn set_timeout(&self, timeout: Option<Duration>) {
        self.0.options().timeout = timeout;
    }

    /// From now on this gives way when something cannot be copied.
    pub fn set_on_error(&self, on_error: OnCbwError) {
        self.0.options().on_error = on_error;
    }
}

impl Shared {
    fn options(&self) -> std::sync::MutexGuard<'_, CbwOptions> {
        self.options.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn side(&self, of_source: bool) -> &Edge {
        if of_source { &self.file } else { &self.target }
    }
}

#[async_trait]
impl Driver for CopyBeforeWrite {
    fn format_name(&self) -> &'static str {
        Self::NAME
    }

    fn limits(&self) -> Limits {
        *self.0.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0.file)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        if access.is_write() && !self.0.state.may_change(range) {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        let len = if access.is_write() { range.len() } else { LENGTH_MAX - offset };
        Mapping::Child { edge: &self.0.file, offset: HostOffset(offset), len }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        // What changes nothing changes no point in time.
        if !flags.contains(RequestFlags::WRITE_UNCHANGED) {
            self.before_change(req, GuestRange::new(offset.0, buf.len() as u64)?).await?;
        }
        self.0.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        if !flags.contains(RequestFlags::WRITE_UNCHANGED) {
            self.before_change(req, range).await?;
        }
        self.0.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.before_change(req, range).await?;
        self.0.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    /// The target holds a point in time, and nothing that a guest was told is safe.
    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.file.flush(req).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = self.0.file.limits(req)?;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.0.file.block_statuses(req, HostOffset(range.offset().0), range.len(), max).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        // What is cut off was there at the point in time.
        if let Some(lost) = self.0.state.length().checked_sub(len) {
            self.before_change(req, GuestRange::new(len, lost)?).await?;
        }
        self.0.file.truncate(req, len, preallocation).await
    }

    async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.0.file.save_vmstate(req, offset, buf).await
    }

    async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.0.file.load_vmstate(req, offset, buf).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.0.file.ioctl(req, number, argument).await
    }

    async fn read_snapshot(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        let mut at = 0;
        while at < range.len() {
            let place = self.0.state.read(range.slice(at, range.len() - at))?;
            let part = buf.slice(at as usize, place.len as usize);
            self.0.side(place.of_source).read(req, HostOffset(offset.0 + at), &part).await?;
            at += place.len;
        }
        Ok(())
    }

    async fn snapshot_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let place = self.0.state.read(range)?;
        let side = self.0.side(place.of_source);
        let told = side.chain_status(req, HostOffset(range.offset().0), place.len).await?.extent;
        // Where it lies is no place in a child of the asker.
        let known = told.status & (BlockStatus::DATA | BlockStatus::ZERO);
        Ok(StatusExtent::new(known | BlockStatus::ALLOCATED, told.len))
    }

    async fn discard_snapshot(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        let clusters = self.0.state.forget(range).await;
        let bytes = self.0.state.bytes(&clusters);
        match bytes.end.saturating_sub(bytes.start) {
            0 => Ok(()),
            len => self.0.target.discard(req, HostOffset(bytes.start), len).await,
        }
    }
}

impl fmt::Debug for CopyBeforeWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopyBeforeWrite({:?})", self.0.state)
    }
}

impl fmt::Debug for CbwControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CbwControl({:?}, {:?})", self.0.options(), self.0.state)
    }
}
