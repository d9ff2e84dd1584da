//! The snapshot-access driver's engine: the point in time that the node below keeps, as a disk that is only read.
//!
//! It knows nothing of how that is done: the node below answers ([`Edge::read_snapshot`] and its kin), and one that keeps none says so with each
//! request. A discard says that nobody will ask again. Nothing is mapped: every read has a place among the changes of the source.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, RequestFlags, StatusExtent};
use block_io::{Driver, Edge, Req};
use std::sync::{PoisonError, RwLock};

/// The engine.
#[derive(Debug)]
pub struct SnapshotAccess {
    file: Edge,
    limits: RwLock<Limits>,
    /// The node below may become longer or shorter; its point in time does not.
    length: u64,
}

impl SnapshotAccess {
    /// The name of the driver.
    pub const NAME: &'static str = "snapshot-access";

    /// The point in time that `file` keeps, of as many bytes as that has now.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn open(req: &Req, file: Edge) -> IoResult<Self> {
        let (limits, length) = (file.limits(req)?, file.refresh_length(req).await?);
        Ok(Self { file, limits: RwLock::new(limits), length })
    }
}

#[async_trait]
impl Driver for SnapshotAccess {
    fn format_name(&self) -> &'static str {
        Self::NAME
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.length)
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read_snapshot(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.file.discard_snapshot(req, HostOffset(range.offset().0), range.len()).await
    }

    /// There is nothing to bring anywhere.
    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = self.file.limits(req)?;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.snapshot_status(req, HostOffset(range.offset().0), range.len()).await
    }
}
