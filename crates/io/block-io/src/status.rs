//! Block status: what a node says of a range, made safe to rely on; and what a whole chain of nodes says.
//!
//! Of nodes that reach storage themselves the last range of data is remembered, for asking the host costs more than reading would. Only
//! data: forgetting is needed before what makes data of nothing into less, never after a write (rule stat-2).

use crate::node::Req;
use crate::pad::within_node;
use crate::pipeline::check;
use block_common::{BlockStatus, GuestRange, HostOffset, IoError, IoResult, StatusExtent};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A range of data that was told before.
#[derive(Debug, Default)]
pub(crate) struct StatusCache(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    /// How often everything was forgotten: an answer from before is not remembered afterwards.
    forgotten: u64,
    data: Option<(GuestRange, StatusExtent)>,
}

impl StatusCache {
    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something that may not be data any more is about to be changed.
    pub(crate) fn forget(&self) {
        let mut cached = self.lock();
        cached.forgotten += 1;
        cached.data = None;
    }

    fn find(&self, at: u64) -> Result<StatusExtent, u64> {
        let cached = self.lock();
        let Some((range, extent)) = &cached.data else { return Err(cached.forgotten) };
        if (range.offset().0..range.end()).contains(&at) {
            Ok(extent.skipped(at - range.offset().0))
        } else {
            Err(cached.forgotten)
        }
    }

    fn remember(&self, since: u64, at: u64, extent: StatusExtent) {
        let is_data = extent.status.contains(BlockStatus::DATA) && !extent.status.contains(BlockStatus::ZERO);
        let Ok(range) = GuestRange::new(at, extent.len) else { return };
        let mut cached = self.lock();
        if is_data && cached.forgotten == since {
            cached.data = Some((range, extent));
        }
    }
}

/// The status of the start of `range`, made to be aligned, not empty and within the range (rule stat-1).
pub(crate) async fn block_status(req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
    block_statuses(req, range, 1).await?.pop().ok_or(IoError::BUG)
}

/// The status of one extent of `range` behind the other, from its start on: at least one, at most `max`.
pub(crate) async fn block_statuses(req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
    check(req, range, false).await?;
    if range.is_empty() {
        return Err(IoError::INVALID);
    }
    let blocks = within_node(req, range.align_out(req.node.request_alignment())?, 0)?;
    let mut told = of_blocks(req, blocks, max).await?;
    told.truncate(max.max(1));
    make_sound(&mut told, blocks.len(), req.node.request_alignment().into());
    // The question may begin and end within a block.
    if let Some(first) = told.first_mut() {
        *first = first.skipped(range.offset().0 - blocks.offset().0);
    }
    let mut at = range.offset().0;
    for extent in &mut told {
        *extent = extent.truncated(range.end() - at);
        at += extent.len;
        // Whose end it is, only this node knows.
        extent.status.set(BlockStatus::EOF, at == req.node.length());
    }
    Ok(told)
}

/// Make what a driver said of `len` bytes into whole blocks of `alignment` bytes, but for the last one, none of them empty or past the end.
fn make_sound(told: &mut Vec<StatusExtent>, len: u64, alignment: u64) {
    let mut at = 0;
    for index in 0..told.len() {
        let extent = told[index].truncated(len - at);
        told[index] = extent;
        if extent.len > 0 && (extent.len.is_multiple_of(alignment) || at + extent.len == len) {
            at += extent.len;
            if at < len {
                continue;
            }
        } else {
            match extent.len & !(alignment - 1) {
                // The driver knows about less than a block. What follows may be anything, and data is the safe answer.
                0 => told[index] = StatusExtent::data(alignment),
                // An odd end belongs to the next answer.
                whole => told[index] = extent.truncated(whole),
            }
        }
        return told.truncate(index + 1);
    }
    if told.is_empty() {
        told.push(StatusExtent::data(alignment));
    }
}

/// What the driver says, or what is remembered of it.
async fn of_blocks(req: &Req, blocks: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
    let engine = req.node.engine()?;
    if !engine.is_leaf() {
        return ask(req, blocks, max).await;
    }
    let at = blocks.offset().0;
    let since = match req.node.status_cache().find(at) {
        Ok(extent) => return Ok(vec![extent]),
        Err(since) => since,
    };
    // A longer answer costs no more, and the next question is most likely about what follows.
    let end = req.node.length().next_multiple_of(req.node.request_alignment().into());
    let to_end = end.saturating_sub(at).max(blocks.len());
    let wide = if max > 1 { blocks } else { GuestRange::new(at, to_end)? };
    let told = ask(req, wide, max).await?;
    if let Some(first) = told.first() {
        req.node.status_cache().remember(since, at, first.truncated(wide.len()));
    }
    Ok(told)
}

async fn ask(req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
    let engine = req.node.engine()?;
    if max > 1 {
        return engine.block_statuses(req, range, max).await;
    }
    Ok(vec![engine.block_status(req, range).await?])
}

/// What a chain of nodes says of the start of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStatus {
    /// The status, as the node tells it that decides the content.
    pub extent: StatusExtent,
    /// How many backing files below the top that node is; 0 is the top itself, filters above it included. `None` where no node of the
    /// chain decides, and the bytes read as zeroes.
    pub depth: Option<usize>,
    /// How far below the top the last node is that was asked.
    pub reached: usize,
}

/// The status of the start of `range`, asked down the chain of backing files to the first node that decides.
pub(crate) async fn chain_status(req: &Req, range: GuestRange) -> IoResult<ChainStatus> {
    let mut told = down_the_chain(req, range).await?;
    // The end that counts is that of the node that was asked.
    let end = range.slice(0, told.extent.len).end();
    told.extent.status.set(BlockStatus::EOF, end == req.node.length());
    Ok(told)
}

async fn down_the_chain(req: &Req, range: GuestRange) -> IoResult<ChainStatus> {
    let mut at = req.again();
    let mut range = range;
    let mut depth = 0;
    loop {
        let extent = block_status(&at, range).await?;
        if extent.status.contains(BlockStatus::ALLOCATED) {
            return Ok(ChainStatus { extent, depth: Some(depth), reached: depth });
        }
        range = range.slice(0, extent.len);
        let zeroes =
            |len| ChainStatus { extent: StatusExtent::new(BlockStatus::ZERO, len), depth: None, reached: depth };
        let engine = at.node.engine()?;
        let (edge, deeper) = match (engine.filtered(), engine.backing()) {
            (Some(edge), _) => (edge, 0),
            (None, Some(edge)) if edge.is_attached() => (edge, 1),
            // Nobody is left to ask: what an image without a backing file does not have reads as zeroes.
            (None, Some(_)) => return Ok(zeroes(extent.len)),
            _ if extent.status.contains(BlockStatus::ZERO) => {
                return Ok(ChainStatus { extent, depth: None, reached: depth });
            }
            // Who knows nothing has what nobody else has.
            (None, None) => {
                let status = extent.status | BlockStatus::DATA | BlockStatus::ALLOCATED;
                return Ok(ChainStatus {
                    extent: StatusExtent { status, ..extent },
                    depth: Some(depth),
                    reached: depth,
                });
            }
        };
        let below = edge.child(&at)?;
        let offset = range.offset().0;
        match refreshed(&below, range).await?.saturating_sub(offset) {
            // The backing file ends before.
            0 => return Ok(zeroes(range.len())),
            there => range = range.slice(0, there),
        }
        depth += deeper;
        at = below;
    }
}

/// The length of a node, asked anew if the range does not lie within what is remembered.
pub(crate) async fn refreshed(req: &Req, range: GuestRange) -> IoResult<u64> {
    let length = req.node.length();
    if range.end() <= length { Ok(length) } else { crate::pipeline::refresh_length(req).await }
}

/// An extent without its first bytes.
trait Skipped {
    fn skipped(self, bytes: u64) -> Self;
}

impl Skipped for StatusExtent {
    fn skipped(mut self, bytes: u64) -> Self {
        self.len = self.len.saturating_sub(bytes);
        self.host_offset = self.host_offset.map(|offset| HostOffset(offset.0 + bytes));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound(lens: &[u64], len: u64, alignment: u64) -> Vec<u64> {
        let mut told: Vec<_> = lens.iter().map(|len| StatusExtent::zero(*len)).collect();
        make_sound(&mut told, len, alignment);
        assert!(told.iter().all(|extent| extent.is_zero() || extent.len == alignment), "{told:?}");
        told.iter().map(|extent| extent.len).collect()
    }

    #[test]
    fn stat_1_what_a_driver_says_is_made_sound() {
        assert_eq!(sound(&[512, 1024], 4096, 512), [512, 1024]);
        // No more than was asked about.
        assert_eq!(sound(&[512, 1024], 1024, 512), [512, 512]);
        assert_eq!(sound(&[512, 1024], 512, 512), [512]);
        // What ends within a block ends before it, and what follows has to be asked for anew.
        assert_eq!(sound(&[512, 1000, 24], 4096, 512), [512, 512]);
        // Less than a block, and nothing, is a block of data.
        assert_eq!(sound(&[100, 412], 4096, 512), [512]);
        assert_eq!(sound(&[512, 0, 512], 4096, 512), [512, 512]);
        assert_eq!(sound(&[0], 4096, 512), [512]);
        assert_eq!(sound(&[], 4096, 512), [512]);
        assert_eq!(sound(&[u64::MAX, 1], 4096, 1), [4096]);
        // A node may end within a block.
        assert_eq!(sound(&[512, 1000], 700, 512), [512, 188]);
    }
}
