//! Copying up: a node gets for itself what it takes from its backing files, while nobody else is at work there (rule job-1).
//!
//! What can be read stays as it is, so nobody is told of a change. When it is done, and for what, is a filter's business; here are the place
//! in line, the whole units, the end of the node, and how far down data is taken from.

use crate::node::{IoNode, Req};
use crate::pad;
use crate::pipeline::{carried_out, check, debug_event, pieces, refresh_length, zero_parts};
use crate::status::{block_status, chain_status, refreshed};
use crate::track::track;
use block_common::{AlignedBuf, BlockStatus, DebugEvent, GuestRange, IoBuf, IoError, IoResult, RequestFlags, is_zero};

/// So many bytes are copied at a time, and looked at whether they are all zeroes. As QEMU does.
const PIECE_MAX: u64 = 16 << 20;

/// What is copied up, and in which units.
#[derive(Clone, Debug)]
pub struct CopyUp {
    /// Ranges are rounded to multiples of this many bytes; at least 1.
    pub unit: u64,
    /// The lowest node of the chain that data is taken from. It is asked for by what it is, not by its place: the chain may change.
    pub bottom: Option<IoNode>,
}

/// Who decides a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layer {
    /// The node itself.
    Top,
    /// A node between it and the bottom, that included.
    Between,
    /// One below the bottom, or nobody.
    Below,
}

/// See [`Edge::copy_up`](crate::Edge::copy_up). `child` is the token on the node that is to have the data.
pub(crate) async fn copy_up(child: &Req, range: GuestRange, how: &CopyUp) -> IoResult<bool> {
    check(child, range, false).await?;
    let area = units(range, how.unit, child.node.length())?;
    // Most often there is nothing to do, and then nobody has to wait.
    let (mut is_complete, mut is_done) = (true, true);
    for run in runs(child, area, how).await? {
        is_complete &= run.0 == Layer::Top;
        is_done &= run.0 != Layer::Between;
    }
    if is_done {
        return Ok(is_complete);
    }
    if child.node.is_read_only() {
        return Err(IoError::READ_ONLY);
    }
    let _alone = track(&child.node, area.align_out(child.node.request_alignment())?, true).await;
    // Those before may have moved the end, or have copied it.
    let area = units(range, how.unit, refresh_length(child).await?)?;
    let mut at = 0;
    let mut is_complete = true;
    for (layer, len) in runs(child, area, how).await? {
        is_complete &= layer != Layer::Below;
        if layer == Layer::Between {
            for (offset, len) in pieces(len, PIECE_MAX) {
                copy(child, area.slice(at + offset, len)).await?;
            }
        }
        at += len;
    }
    Ok(is_complete)
}

/// The whole units that a range touches, as far as the node goes.
fn units(range: GuestRange, unit: u64, length: u64) -> IoResult<GuestRange> {
    let unit = unit.max(1);
    let start = range.offset().0 - range.offset().0 % unit;
    let end = range.end().checked_next_multiple_of(unit).unwrap_or(u64::MAX).min(length).max(start);
    GuestRange::new(start, end - start)
}

/// Who decides the parts of a range, one behind the other.
async fn runs(child: &Req, area: GuestRange, how: &CopyUp) -> IoResult<Vec<(Layer, u64)>> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < area.len() {
        let (layer, len) = layer(child, area.slice(at, area.len() - at), how.bottom.as_ref()).await?;
        runs.push((layer, len));
        at += len;
    }
    Ok(runs)
}

/// Who decides the start of a range, and for how many bytes. Without a bottom, whoever is below the top is between.
async fn layer(child: &Req, range: GuestRange, bottom: Option<&IoNode>) -> IoResult<(Layer, u64)> {
    let (mut at, mut range, mut here) = (child.again(), range, Layer::Top);
    loop {
        let extent = block_status(&at, range).await?;
        if extent.is_allocated() {
            return Ok((here, extent.len));
        }
        range = range.slice(0, extent.len);
        let engine = at.node.engine()?;
        let below = match (engine.filtered(), engine.backing(), bottom) {
            (Some(edge), _, _) => edge.child(&at)?,
            (None, Some(edge), Some(bottom)) if edge.is_attached() => {
                if at.node.id() == bottom.id() {
                    return Ok((Layer::Below, extent.len));
                }
                here = Layer::Between;
                edge.child(&at)?
            }
            // Who knows nothing has what nobody else has.
            (None, None, _) if !extent.status.contains(BlockStatus::ZERO) => return Ok((here, extent.len)),
            (None, _, None) => return Ok((Layer::Between, extent.len)),
            (None, _, Some(_)) => return Ok((Layer::Below, extent.len)),
        };
        match refreshed(&below, range).await?.saturating_sub(range.offset().0) {
            // A file that ends before has zeroes there.
            0 => return Ok((Layer::Between, range.len())),
            there => range = range.slice(0, there.min(range.len())),
        }
        at = below;
    }
}

/// Read a range of the node, and write it back, for the node to have it.
async fn copy(child: &Req, range: GuestRange) -> IoResult<()> {
    let told = chain_status(child, range).await?.extent;
    if told.is_zero() && told.len >= range.len() {
        return store(child, range, None).await;
    }
    let limits = child.node.limits();
    let alignment = limits.memory_alignment.max(limits.request_alignment);
    let memory = AlignedBuf::try_zeroed(range.len() as usize, alignment as usize);
    let buf = memory.ok_or(IoError::host(block_common::Errno::ENOMEM.raw()))?.into_io();
    if range.is_aligned(child.node.request_alignment()) {
        pad::read_blocks(child, range, &buf).await?;
    } else {
        pad::read(child, range, &buf).await?;
    }
    let bytes = buf.into_aligned().unwrap_or_else(|shared| shared.to_aligned(alignment as usize));
    if is_zero(&bytes) {
        return store(child, range, None).await;
    }
    store(child, range, Some(bytes.into_io())).await
}

/// Write data, or zeroes, that can be read there already.
async fn store(child: &Req, range: GuestRange, data: Option<IoBuf>) -> IoResult<()> {
    let (flags, _) = carried_out(child.node.engine()?, RequestFlags::WRITE_UNCHANGED)?;
    debug_event(child, DebugEvent::CorWrite).await;
    let _wrote = Wrote(child);
    match data {
        None => {
            child.node.status_cache().forget();
            zero_parts(child, range, flags).await
        }
        Some(buf) if range.is_aligned(child.node.request_alignment()) => {
            pad::write_blocks(child, range, &buf, flags).await
        }
        Some(buf) => pad::write(child, range, &buf, flags).await,
    }
}

/// A write that is under way: it counts for the next flush, whatever becomes of it.
struct Wrote<'a>(&'a Req);

impl Drop for Wrote<'_> {
    fn drop(&mut self) {
        self.0.node.flushing().wrote();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(start: u64, end: u64, unit: u64, length: u64) -> (u64, u64) {
        let range = GuestRange::new(start, end - start).expect("a range");
        let units = units(range, unit, length).expect("within limits");
        (units.offset().0, units.end())
    }

    #[test]
    fn job_1_units_are_whole_but_for_the_last() {
        assert_eq!(area(1000, 1010, 65_536, 1 << 20), (0, 65_536));
        assert_eq!(area(65_535, 65_537, 65_536, 1 << 20), (0, 131_072));
        assert_eq!(area(65_536, 131_072, 65_536, 1 << 20), (65_536, 131_072));
        assert_eq!(area(70_000, 70_001, 65_536, 99_999), (65_536, 99_999));
        assert_eq!(area(70_000, 70_001, 65_536, 10), (65_536, 65_536));
        assert_eq!(area(3, 5, 1, 10), (3, 5));
        let end = i64::MAX as u64;
        assert_eq!(area(end - 1, end, 1 << 40, end), (end >> 40 << 40, end));
    }
}
