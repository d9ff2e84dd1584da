//! The filter above a source that is being copied: it passes everything through, and notes what is written.
//!
//! Reads are mapped through, writes go the slow way while the filter tracks: the bit is set before the write starts, and once
//! more when it is over, whatever became of it (rule req-4). What the bitmap is good for is not known here.

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, LENGTH_MAX, Limits, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{Access, DirtyBitmap, Driver, Edge, Mapping, Req};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

struct Shared {
    file: Edge,
    limits: RwLock<Limits>,
    bitmap: Arc<DirtyBitmap>,
    tracking: AtomicBool,
}

/// The engine.
pub struct MirrorTop(Arc<Shared>);

/// The engine's control half: ends the tracking.
pub struct MirrorTopControl(Arc<Shared>);

impl MirrorTop {
    /// The name of the driver.
    pub const NAME: &'static str = "mirror_top";

    /// A filter over `file`, whose limits are `limits`, that tracks writes in `bitmap` from the start.
    pub fn new(file: Edge, limits: Limits, bitmap: Arc<DirtyBitmap>) -> (Self, MirrorTopControl) {
        let shared = Arc::new(Shared { file, limits: RwLock::new(limits), bitmap, tracking: AtomicBool::new(true) });
        (Self(shared.clone()), MirrorTopControl(shared))
    }

    fn mark(&self, offset: GuestOffset, len: u64) -> IoResult<Mark<'_>> {
        let range = GuestRange::new(offset.0, len)?;
        Ok(Mark::new(&self.0, range))
    }
}

impl MirrorTopControl {
    /// Track no more: writes may take the fast way again.
    pub fn stop(&mut self) {
        self.0.tracking.store(false, Ordering::Release);
    }
}

/// A write that is under way. Dirty when it begins and when this is dropped: also if it fails, or its thread ends.
struct Mark<'a>(&'a Shared, GuestRange);

impl<'a> Mark<'a> {
    fn new(shared: &'a Shared, range: GuestRange) -> Self {
        let mark = Self(shared, range);
        mark.set();
        mark
    }

    fn set(&self) {
        if self.0.tracking.load(Ordering::Acquire) {
            self.0.bitmap.set(self.1);
        }
    }
}

impl Drop for Mark<'_> {
    fn drop(&mut self) {
        self.set();
    }
}

#[async_trait]
impl Driver for MirrorTop {
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
        if access.is_write() && self.0.tracking.load(Ordering::Acquire) {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        Mapping::Child { edge: &self.0.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let _mark = self.mark(offset, buf.len() as u64)?;
        self.0.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        let _mark = Mark::new(&self.0, range);
        self.0.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        let _mark = Mark::new(&self.0, range);
        self.0.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

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

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.0.file.truncate(req, len, preallocation).await
    }

    async fn invalidate_cache(&self, _req: &Req) -> IoResult<()> {
        // Nothing is cached, but somebody else may have written anything.
        self.0.bitmap.set_all();
        Ok(())
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.0.file.ioctl(req, number, argument).await
    }
}

impl fmt::Debug for MirrorTop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MirrorTop({:?})", self.0.bitmap)
    }
}

impl fmt::Debug for MirrorTopControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MirrorTopControl({:?})", self.0.bitmap)
    }
}
