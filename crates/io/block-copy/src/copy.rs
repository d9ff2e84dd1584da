//! The chunk engine: copies ranges from one root to another, many at a time, and does not copy zeroes.
//!
//! [`copy`] is for a source that stands still; what follows a source that is written meanwhile is in `mirror`, on top of the same
//! chunks. A copy holds at most `depth` buffers of `chunk` bytes.

use crate::control::JobControl;
use crate::error::{CopyAct, CopyError, RunError};
use block_common::{BufPool, IoError, RequestFlags};
use block_io::{Flight, Root};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyOptions {
    /// How many chunks are in flight at a time.
    pub depth: usize,
    /// How many bytes one chunk has at most: a power of two, at most [`CopyOptions::CHUNK_MAX`].
    pub chunk: u64,
    /// Let zeroes deallocate space in the target.
    pub unmap: bool,
    /// The target reads as zeroes: zeroes of the source need not be written.
    pub target_is_zero: bool,
}

impl CopyOptions {
    /// The longest chunk, in bytes.
    pub const CHUNK_MAX: u64 = 64 << 20;
}

impl Default for CopyOptions {
    /// Sixteen chunks of 1 MiB.
    fn default() -> Self {
        Self { depth: 16, chunk: 1 << 20, unmap: true, target_is_zero: false }
    }
}

/// Copies ranges of one root to the same place in another.
pub(crate) struct Copier {
    source: Root,
    target: Root,
    pool: BufPool,
    /// Requests to both are multiples of this many bytes, but for the end.
    alignment: u64,
    unmap: bool,
}

impl Copier {
    /// Look at both nodes' limits.
    pub(crate) fn new(source: Root, target: Root, options: &CopyOptions) -> Result<Self, RunError> {
        let CopyOptions { depth, chunk, unmap, .. } = *options;
        if depth == 0 || !chunk.is_power_of_two() {
            return Err(RunError::Options(format!("cannot copy {depth} chunks of {chunk} bytes at a time")));
        }
        let limits = |root: &Root| root.limits().map_err(CopyError::at(CopyAct::Length, 0));
        let (from, to) = (limits(&source)?, limits(&target)?);
        let alignment = u64::from(from.request_alignment.max(to.request_alignment).max(1));
        let memory = from.memory_alignment.max(to.memory_alignment).max(4096);
        let pool = BufPool::new(memory as usize, depth.saturating_mul(chunk as usize));
        let this = Self { source, target, pool, alignment, unmap };
        this.check_piece(chunk)?;
        Ok(this)
    }

    /// The length that both have, asked anew.
    pub(crate) async fn length(&self) -> Result<u64, RunError> {
        let source_len = self.source.refresh_length().await.map_err(CopyError::at(CopyAct::Length, 0))?;
        let target_len = self.target.refresh_length().await.map_err(CopyError::at(CopyAct::Length, 0))?;
        if source_len == target_len { Ok(source_len) } else { Err(RunError::Sizes { source_len, target_len }) }
    }

    /// Check that pieces of `bytes` bytes can be copied.
    pub(crate) fn check_piece(&self, bytes: u64) -> Result<(), RunError> {
        if bytes <= CopyOptions::CHUNK_MAX && bytes.is_multiple_of(self.alignment) {
            return Ok(());
        }
        let (alignment, max) = (self.alignment, CopyOptions::CHUNK_MAX);
        Err(RunError::Options(format!(
            "pieces of {bytes} bytes are not multiples of {alignment} bytes up to {max} bytes"
        )))
    }

    /// Copy `range`. Zeroes are left out if `target_is_zero` there.
    pub(crate) async fn chunk(&self, range: Range<u64>, target_is_zero: bool) -> Result<(), CopyError> {
        let mut at = range.start;
        while at < range.end {
            let (is_zero, len) = self.extent(at, range.end - at).await?;
            match is_zero {
                true if target_is_zero => {}
                true => self.zero(at, len).await?,
                false => self.data(at, len).await?,
            }
            at += len;
        }
        Ok(())
    }

    /// Whether the source has zeroes at `at`, and for how many of the next `left` bytes the same holds. Only what is known to read as
    /// zeroes is: what a node has not allocated may come from below it.
    async fn extent(&self, at: u64, left: u64) -> Result<(bool, u64), CopyError> {
        let (mut is_zero, mut len) = (false, 0);
        while len < left {
            let extent = self.source.block_status(at + len, left - len).await;
            let extent = extent.map_err(CopyError::at(CopyAct::Status, at + len))?;
            // A piece that one side cannot address is copied with its neighbours.
            let whole =
                if extent.len >= left - len { left - len } else { extent.len / self.alignment * self.alignment };
            let (this_is_zero, this_len) = match whole {
                0 => (false, self.alignment.min(left - len)),
                whole => (extent.is_zero(), whole),
            };
            if len > 0 && this_is_zero != is_zero {
                break;
            }
            is_zero = this_is_zero;
            len += this_len;
        }
        Ok((is_zero, len))
    }

    async fn zero(&self, at: u64, len: u64) -> Result<(), CopyError> {
        let flags = if self.unmap { RequestFlags::MAY_UNMAP } else { RequestFlags::empty() };
        self.target.zero(at, len, flags).await.map_err(CopyError::at(CopyAct::Zero, at))
    }

    async fn data(&self, at: u64, len: u64) -> Result<(), CopyError> {
        let buf = self.pool.take(len as usize).into_io();
        let (result, buf) = self.source.read(at, buf).await;
        result.map_err(CopyError::at(CopyAct::Read, at))?;
        let buf = buf.ok_or(IoError::CANCELLED).map_err(CopyError::at(CopyAct::Read, at))?;
        let (result, _) = self.target.write(at, buf, RequestFlags::empty()).await;
        result.map_err(CopyError::at(CopyAct::Write, at))
    }

    pub(crate) async fn flush(&self) -> Result<(), CopyError> {
        self.target.flush().await.map_err(CopyError::at(CopyAct::Flush, 0))
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copier({:?} to {:?})", self.source, self.target)
    }
}

/// Copy all of `source` to `target`, which has the same length, and flush the target. Nobody writes to either meanwhile. To be awaited on
/// an I/O thread; both roots are best at home there.
///
/// # Errors
/// [`RunError`]: the first request that failed, with its offset; requests in flight then run to their end unwatched. What of the
/// target was written is not said.
pub async fn copy(source: Root, target: Root, options: CopyOptions, control: &mut JobControl) -> Result<(), RunError> {
    let copier = Arc::new(Copier::new(source, target, &options)?);
    let length = copier.length().await?;
    control.extend(length);
    let mut flight = Flight::new();
    let mut at = 0;
    while at < length || !flight.is_empty() {
        if control.is_interrupted() {
            while !control.is_cancelled()
                && let Some(done) = flight.next().await
            {
                control.advance(done?);
            }
            control.pause_point().await?;
        }
        let mut delay = control.delay();
        while at < length && flight.len() < options.depth && delay.is_zero() {
            let range = at..length.min(at + options.chunk);
            let (bytes, copier) = (range.end - range.start, copier.clone());
            control.charge(bytes);
            delay = control.delay();
            at = range.end;
            flight.push(async move { copier.chunk(range, options.target_is_zero).await.map(|()| bytes) });
        }
        tokio::select! {
            biased;
            done = flight.next(), if !flight.is_empty() => {
                if let Some(done) = done {
                    control.advance(done?);
                }
            }
            () = control.changed() => {}
            () = tokio::time::sleep(delay), if at < length && !delay.is_zero() => {}
        }
    }
    control.until_cancelled(copier.flush()).await??;
    Ok(())
}
