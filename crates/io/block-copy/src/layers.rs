//! Moving data between an image and what it stands on: into its backing file (commit), and out of it before it gets another one
//! (rebase). Nobody else uses the images.
//!
//! What an image has of its own is told by block status, so it is opened without what it stands on; that is opened beside it.

use crate::error::{CopyAct, CopyError};
use crate::padded::Padded;
use crate::rate::RateLimit;
use crate::sparse::SparseNote;
use block_common::{AlignedBuf, IoBuf, RequestFlags, StatusExtent, is_zero};
use block_io::Root;
use std::ops::Range;
use std::time::Instant;

/// The longest piece that is moved at a time, in bytes.
const PIECE: u64 = 1 << 20;

/// How data is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerOptions {
    /// Bytes a second; 0 is no limit.
    pub speed: u64,
    /// Flags of the writes.
    pub flags: RequestFlags,
    /// Zeroes are written like other data: an image that was opened without what it stands on may have no other way to say "zeroes, whatever is
    /// below".
    pub writes_zeroes: bool,
}

/// Write what `layers` have of their own, the topmost first, into `base`, which is as long as the topmost. To be awaited on an I/O thread.
///
/// # Errors
/// The first request that failed. What was written is what is shown there anyway.
#[doc(alias = "bdrv_commit")]
pub async fn commit(
    layers: &[Root],
    base: &Root,
    options: LayerOptions,
    note: impl Fn(SparseNote) + Send + Sync,
) -> Result<(), CopyError> {
    let total = match layers.first() {
        Some(top) => top.length().map_err(CopyError::at(CopyAct::Length, 0))?,
        None => 0,
    };
    let mut rate = RateLimit::default();
    rate.set_speed(options.speed);
    let mut at = 0;
    while at < total {
        let (owner, extent) = owner(layers, at, total - at).await?;
        let len = extent.len.min(PIECE);
        if let Some(root) = owner {
            pay(&mut rate, len).await;
            if extent.is_zero() {
                let flags = options.flags | RequestFlags::MAY_UNMAP;
                base.zero(at, len, flags).await.map_err(CopyError::at(CopyAct::Zero, at))?;
            } else {
                let buf = read(root, at, len).await?;
                base.write(at, buf, options.flags).await.0.map_err(CopyError::at(CopyAct::Write, at))?;
            }
        }
        note(SparseNote::Copied(len));
        at += len;
    }
    base.flush().await.map_err(CopyError::at(CopyAct::Flush, 0))
}

/// The topmost layer that has the bytes at `at`, and for how many that holds. Where a layer has nothing, the next one counts; past a layer's end there is
/// nothing of its own.
async fn owner(layers: &[Root], at: u64, len: u64) -> Result<(Option<&Root>, StatusExtent), CopyError> {
    let mut len = len;
    for (number, root) in layers.iter().enumerate() {
        let there = root.length().map_err(CopyError::at(CopyAct::Length, at))?.saturating_sub(at);
        if there == 0 {
            // A layer that ends shows zeroes from there on, whatever is below it.
            return Ok((if number > 0 { Some(root) } else { None }, StatusExtent::zero(len)));
        }
        let extent = root.block_status(at, len.min(there)).await.map_err(CopyError::at(CopyAct::Status, at))?;
        if extent.is_allocated() {
            return Ok((Some(root), extent));
        }
        len = extent.len;
    }
    Ok((None, StatusExtent::unallocated(len)))
}

/// Write into `image`, wherever it has nothing of its own, what `old` shows there and `new` does not, in whole pieces of `unit` bytes. Without an image there
/// are zeroes. To be awaited on an I/O thread.
///
/// # Errors
/// The first request that failed. What was written is what is shown there anyway.
pub async fn keep_differences(
    image: &Root,
    (old, new): (Option<&Padded>, Option<&Padded>),
    unit: u64,
    options: LayerOptions,
    note: impl Fn(SparseNote) + Send + Sync,
) -> Result<(), CopyError> {
    let total = image.length().map_err(CopyError::at(CopyAct::Length, 0))?;
    let piece = PIECE.max(unit) / unit * unit;
    let mut at = 0;
    while at < total {
        let extent = image.block_status(at, total - at).await.map_err(CopyError::at(CopyAct::Status, at))?;
        let len = if extent.is_allocated() { extent.len } else { extent.len.min(piece) };
        if !extent.is_allocated() {
            let (before, after) = (shown(old, at, len).await?, shown(new, at, len).await?);
            for part in different(&before, &after, unit as usize) {
                store(image, at, &before, part, options).await?;
            }
        }
        note(SparseNote::Copied(len));
        at += len;
    }
    image.flush().await.map_err(CopyError::at(CopyAct::Flush, 0))
}

/// What `image` shows of `len` bytes at `at`: zeroes past its end, or without it.
async fn shown(image: Option<&Padded>, at: u64, len: u64) -> Result<AlignedBuf, CopyError> {
    let buf = AlignedBuf::zeroed(len as usize, 4096).into_io();
    if let Some(image) = image {
        let there = image.len().saturating_sub(at).min(len) as usize;
        if there > 0 {
            image.read(at, buf.slice(0, there)).await.map_err(CopyError::at(CopyAct::Read, at))?;
        }
    }
    Ok(buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(4096)))
}

/// The parts, in whole units, in which two pieces of equal length differ.
fn different(one: &[u8], other: &[u8], unit: usize) -> Vec<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    for (number, (one, other)) in one.chunks(unit).zip(other.chunks(unit)).enumerate() {
        if one == other {
            continue;
        }
        let start = number * unit;
        match parts.last_mut() {
            Some(part) if part.end == start => part.end += one.len(),
            _ => parts.push(start..start + one.len()),
        }
    }
    parts
}

async fn store(
    image: &Root,
    at: u64,
    shown: &[u8],
    part: Range<usize>,
    options: LayerOptions,
) -> Result<(), CopyError> {
    let (place, bytes) = (at + part.start as u64, &shown[part]);
    if is_zero(bytes) && !options.writes_zeroes {
        let flags = (options.flags | RequestFlags::MAY_UNMAP) - RequestFlags::WRITE_COMPRESSED;
        return image.zero(place, bytes.len() as u64, flags).await.map_err(CopyError::at(CopyAct::Zero, place));
    }
    let mut buf = AlignedBuf::zeroed(bytes.len(), 4096);
    buf.copy_from_slice(bytes);
    image.write(place, buf.into_io(), options.flags).await.0.map_err(CopyError::at(CopyAct::Write, place))
}

async fn read(root: &Root, at: u64, len: u64) -> Result<IoBuf, CopyError> {
    let (result, buf) = root.read(at, AlignedBuf::zeroed(len as usize, 4096).into_io()).await;
    result.and(buf.ok_or(block_common::IoError::CANCELLED)).map_err(CopyError::at(CopyAct::Read, at))
}

async fn pay(rate: &mut RateLimit, bytes: u64) {
    let delay = rate.delay(Instant::now());
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    rate.charge(Instant::now(), bytes);
}

#[cfg(test)]
mod tests {
    use super::different;

    #[test]
    fn differences_are_whole_units() {
        assert_eq!(different(&[0, 1, 2, 3, 4, 5, 6], &[0, 1, 2, 9, 4, 5, 9], 2), [2..4, 6..7]);
        assert_eq!(different(&[0; 4], &[1; 4], 2).len(), 1);
        assert_eq!(different(&[1, 1, 1, 1], &[1, 1, 1, 1], 2), []);
    }
}
