//! Moving data between an image and what it stands on: into its backing file (commit), and out of it before it gets another one
//! (rebase). Nobody else uses the images.
//!
//! What an image has of its own is told by block status, so it is opened without what it stands on; that is opened beside it.

use crate::error::{CopyAct, CopyError};
use crate::padded::Padded;
use crate::sparse::{Extent, Extents, SparseNote, SparseOptions, copy_extents};
use block_common::{AlignedBuf, IoResult, RequestFlags, is_zero};
use block_io::Root;
use std::ops::Range;

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

/// How many pieces of what is committed are in flight.
const DEPTH: usize = 8;

/// Write what `layers` have of their own, the topmost first, into `base`, which is as long as the topmost. Writes are begun in the order of the disk. To be
/// awaited on an I/O thread.
///
/// # Errors
/// The first request that failed. What was written is what is shown there anyway.
#[doc(alias = "bdrv_commit")]
pub async fn commit(
    layers: &[Root],
    base: &Root,
    options: LayerOptions,
    note: impl Fn(SparseNote) + Send + Sync + 'static,
) -> Result<(), CopyError> {
    let padded = layers.iter().map(|layer| Padded::new(layer.clone())).collect::<IoResult<Vec<_>>>();
    let padded = padded.map_err(CopyError::at(CopyAct::Length, 0))?;
    let total = match layers.first() {
        Some(top) => top.length().map_err(CopyError::at(CopyAct::Length, 0))?,
        None => 0,
    };
    let (tell, extents) = Extents::channel();
    let asking = async move {
        let mut at = 0;
        while at < total {
            let told = layer_extent(&padded, at, total - at).await;
            // After an error nobody asks on.
            at = told.as_ref().map_or(total, |extent| at + extent.len);
            if tell.send(told).await.is_err() {
                return;
            }
        }
    };
    let options = SparseOptions {
        depth: DEPTH,
        sparse: SparseOptions::TOLD,
        target_is_zero: false,
        in_order: true,
        salvage: false,
        offload: false,
        speed: options.speed,
        // All of it has to be on the disk at the end.
        flags: options.flags | RequestFlags::DONT_CACHE,
    };
    copy_extents(layers, (extents, asking), base.clone(), options, note).await?;
    base.flush().await.map_err(CopyError::at(CopyAct::Flush, 0))
}

/// What begins at `at`, and whose it is: the topmost layer's that has something there. Where a layer has nothing, the next one counts; past the end of one that
/// is not the topmost there are zeroes.
async fn layer_extent(layers: &[Padded], at: u64, len: u64) -> Result<Extent, CopyError> {
    let mut len = len;
    let extent = |number: usize, len, zero, left| {
        let source = layers[number].clone();
        Extent { source, number, from: at, to: at, len, zero, left, is_buffered: !zero && !left }
    };
    for (number, layer) in layers.iter().enumerate() {
        let root = layer.root();
        let there = root.length().map_err(CopyError::at(CopyAct::Length, at))?.saturating_sub(at);
        if there == 0 {
            return Ok(extent(number, len, true, false));
        }
        let told = root.block_status(at, len.min(there)).await.map_err(CopyError::at(CopyAct::Status, at))?;
        if told.is_allocated() {
            return Ok(extent(number, told.len, told.is_zero(), false));
        }
        len = told.len;
    }
    Ok(extent(0, len, false, true))
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
