//! The copy-on-read driver's engine: a filter that has the image below it keep what is read from its backing files.
//!
//! Copying is the core's work ([`Edge::copy_up`]), which knows who else is at work in the image. Here is known what was copied already: reads of that are
//! mapped through, and so is every write. How far down data is copied from is decided once, by who opens the node.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, LENGTH_MAX, Limits, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{Access, CopyUp, DirtyBitmap, Driver, Edge, IoNode, Mapping, Req};
use std::fmt;
use std::sync::{PoisonError, RwLock};

/// There is a bit for each unit, or for as many units as leave at most so many bits: 8 MiB of memory.
const BITS_MAX: u64 = 1 << 26;

/// Of what the image has, so many bytes are asked for at once: who reads on need not ask again.
const LOOK_AHEAD: u64 = 64 << 20;

/// The engine.
pub struct CopyOnRead {
    file: Edge,
    limits: RwLock<Limits>,
    how: CopyUp,
    /// What the image is known to have itself. Dirty means that it has it; being wrong the other way costs a look, and being wrong this way a copy that is not made:
    /// somebody else may discard what was copied. Of what the image grows by, nothing is known.
    has: DirtyBitmap,
}

impl CopyOnRead {
    /// The name of the driver.
    pub const NAME: &'static str = "copy-on-read";

    /// A filter over `file` that copies what is not below `bottom`, if there is one.
    ///
    /// # Errors
    /// [`block_common::IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn open(req: &Req, file: Edge, bottom: Option<IoNode>) -> IoResult<Self> {
        let (limits, length) = (file.limits(req)?, file.refresh_length(req).await?);
        let unit = file.clusters(req).map_or(1, |clusters| clusters.subcluster);
        let has = known(length, unit.max(limits.request_alignment.into()));
        Ok(Self { file, limits: RwLock::new(limits), how: CopyUp { unit, bottom }, has })
    }

    /// Whether the image is known to have all of a range.
    fn has(&self, range: GuestRange) -> bool {
        let size = self.has.granularity();
        let chunks = range.offset().0 / size..range.end().div_ceil(size);
        range.end() <= self.has.length() && chunks.into_iter().all(|chunk| self.has.is_dirty(chunk))
    }

    /// The image has all of a range now.
    fn learn(&self, range: GuestRange) {
        let size = self.has.granularity();
        // The last chunk may be a part of one, and nothing is known of what the image grows by.
        let end = if range.end() >= self.has.length() { self.has.chunks() } else { range.end() / size };
        let start = range.offset().0.div_ceil(size);
        if start < end {
            self.has.set_chunks(start..end);
        }
    }

    /// The image may give up a range.
    fn forget(&self, range: GuestRange) {
        let size = self.has.granularity();
        for chunk in range.offset().0 / size..range.end().div_ceil(size).min(self.has.chunks()) {
            self.has.clear(chunk);
        }
    }

    /// Have the image keep what it takes from below within the whole units that a range touches.
    async fn copy_up(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        let length = self.file.length(req)?.min(self.has.length());
        let ahead = length.saturating_sub(range.offset().0).min(LOOK_AHEAD).max(range.len());
        let extent = self.file.block_status(req, HostOffset(range.offset().0), ahead).await?;
        if extent.is_allocated() && extent.len >= range.len() {
            self.learn(GuestRange::new(range.offset().0, extent.len)?);
            return Ok(());
        }
        if self.file.copy_up(req, HostOffset(range.offset().0), range.len(), &self.how).await? {
            let unit = self.how.unit;
            let start = range.offset().0 - range.offset().0 % unit;
            let end = range.end().checked_next_multiple_of(unit).unwrap_or(range.end());
            self.learn(GuestRange::new(start, end - start)?);
        }
        Ok(())
    }
}

/// An empty map of what an image of `length` bytes has, in chunks of at least `unit` bytes.
fn known(length: u64, unit: u64) -> DirtyBitmap {
    let mut size = unit.checked_next_power_of_two().unwrap_or(1 << 62).max(512);
    while length.div_ceil(size) > BITS_MAX {
        size *= 2;
    }
    // Without memory for it, nothing is ever known.
    DirtyBitmap::try_new(length, size).unwrap_or_else(|| DirtyBitmap::new(0, size))
}

#[async_trait]
impl Driver for CopyOnRead {
    fn format_name(&self) -> &'static str {
        Self::NAME
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        if !access.is_write() && !self.has(range) {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        // Of a read, what comes behind the range may have to be copied.
        let len = if access.is_write() { LENGTH_MAX - offset } else { range.len() };
        Mapping::Child { edge: &self.file, offset: HostOffset(offset), len }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    /// A copy that fails fails the read: a guest is not told of a disk that is full by what it reads later, when the source is gone.
    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        if !self.has(range) {
            self.copy_up(req, range).await?;
        }
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.forget(range);
        self.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.forget(range);
        self.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = self.file.limits(req)?;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.file.block_statuses(req, HostOffset(range.offset().0), range.len(), max).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        if let Some(lost) = self.has.length().checked_sub(len).filter(|lost| *lost > 0) {
            self.forget(GuestRange::new(len, lost)?);
        }
        self.file.truncate(req, len, preallocation).await
    }

    async fn invalidate_cache(&self, _req: &Req) -> IoResult<()> {
        self.has.clear_all();
        Ok(())
    }

    async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.file.save_vmstate(req, offset, buf).await
    }

    async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.file.load_vmstate(req, offset, buf).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.has.clear_all();
        self.file.ioctl(req, number, argument).await
    }
}

impl fmt::Debug for CopyOnRead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CopyOnRead({:?}, has {:?})", self.how, self.has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_of_a_large_image_is_coarse() {
        assert_eq!(known(1 << 30, 65_536).granularity(), 65_536);
        assert_eq!(known(1 << 50, 4096).granularity(), 1 << 24);
        assert_eq!(known(LENGTH_MAX, 1).chunks(), BITS_MAX);
        assert_eq!(known(0, 1).chunks(), 0);
    }
}
