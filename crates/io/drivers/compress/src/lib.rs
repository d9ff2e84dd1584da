//! The compress driver's engine: a filter that makes every write a compressed one, in whole clusters of its child.
//!
//! What is not a whole cluster is read, completed and written by the core, for the blocks of this node are the child's clusters. How data is compressed, and
//! what becomes of a cluster that is written once more, is the child's business.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, LENGTH_MAX, Limits, Preallocation, RequestFlags,
    StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::fmt;
use std::sync::{PoisonError, RwLock};

/// The engine.
pub struct Compress {
    file: Edge,
    limits: RwLock<Limits>,
}

impl Compress {
    /// A filter over `file`. `req` is a token on the node that owns the edge.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] when the child cannot compress, [`IoError::NO_MEDIUM`] when there is none.
    pub fn open(req: &Req, file: Edge) -> IoResult<Self> {
        let limits = limits_over(req, &file)?;
        if !file.compresses(req) {
            return Err(IoError::UNSUPPORTED);
        }
        Ok(Self { file, limits: RwLock::new(limits) })
    }
}

/// The child's limits, in blocks of its clusters; reads are what they are to the child.
fn limits_over(req: &Req, file: &Edge) -> IoResult<Limits> {
    let limits = file.limits(req)?;
    let cluster = file.clusters(req).and_then(|sizes| u32::try_from(sizes.cluster).ok()).unwrap_or(1);
    let request_alignment = limits.request_alignment.max(cluster);
    Ok(Limits { request_alignment, read_alignment: limits.reads(), ..limits })
}

#[async_trait]
impl Driver for Compress {
    fn format_name(&self) -> &'static str {
        "compress"
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    /// Whoever asks for a compressed write himself is refused, as in the field: he does not need this filter.
    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        if access.is_write() {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        Mapping::Child { edge: &self.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(req, HostOffset(offset.0), buf, flags | RequestFlags::WRITE_COMPRESSED).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits_over(req, &self.file)?;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.file.block_statuses(req, HostOffset(range.offset().0), range.len(), max).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.file.truncate(req, len, preallocation).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.file.ioctl(req, number, argument).await
    }
}

impl fmt::Debug for Compress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Compress({:?})", self.file)
    }
}
