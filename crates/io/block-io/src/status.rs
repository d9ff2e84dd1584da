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
    check(req, range, false).await?;
    if range.is_empty() {
        return Err(IoError::INVALID);
    }
    let blocks = within_node(req, range.align_out(req.node.request_alignment())?, 0)?;
    let mut extent = of_blocks(req, blocks).await?;
    if extent.len < blocks.len() {
        let alignment = u64::from(req.node.request_alignment());
        extent = match extent.len & !(alignment - 1) {
            // The driver knows about less than a block. What follows may be anything, and data is the safe answer.
            0 => StatusExtent::data(alignment),
            // An odd end belongs to the next answer.
            len => extent.truncated(len),
        };
    }
    // The question may begin within a block.
    let mut extent = extent.skipped(range.offset().0 - blocks.offset().0).truncated(range.len());
    // Whose end it is, only this node knows.
    extent.status.set(BlockStatus::EOF, range.slice(0, extent.len).end() == req.node.length());
    Ok(extent)
}

async fn of_blocks(req: &Req, blocks: GuestRange) -> IoResult<StatusExtent> {
    let engine = req.node.engine()?;
    if !engine.is_leaf() {
        return Ok(engine.block_status(req, blocks).await?.truncated(blocks.len()));
    }
    let at = blocks.offset().0;
    let since = match req.node.status_cache().find(at) {
        Ok(extent) => return Ok(extent.truncated(blocks.len())),
        Err(since) => since,
    };
    // A longer answer costs no more, and the next question is most likely about what follows.
    let end = req.node.length().next_multiple_of(req.node.request_alignment().into());
    let to_end = end.saturating_sub(at).max(blocks.len());
    let wide = GuestRange::new(at, to_end)?;
    let extent = engine.block_status(req, wide).await?.truncated(wide.len());
    req.node.status_cache().remember(since, at, extent);
    Ok(extent.truncated(blocks.len()))
}

/// What a chain of nodes says of the start of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStatus {
    /// The status, as the node tells it that decides the content.
    pub extent: StatusExtent,
    /// How many backing files below the top that node is; 0 is the top itself, filters above it included. `None` where no node of the
    /// chain decides, and the bytes read as zeroes.
    pub depth: Option<usize>,
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
            return Ok(ChainStatus { extent, depth: Some(depth) });
        }
        range = range.slice(0, extent.len);
        let zeroes = |len| ChainStatus { extent: StatusExtent::new(BlockStatus::ZERO, len), depth: None };
        let engine = at.node.engine()?;
        let (edge, deeper) = match (engine.filtered(), engine.backing()) {
            (Some(edge), _) => (edge, 0),
            (None, Some(edge)) if edge.is_attached() => (edge, 1),
            // Nobody is left to ask: what an image without a backing file does not have reads as zeroes.
            (None, Some(_)) => return Ok(zeroes(extent.len)),
            _ if extent.status.contains(BlockStatus::ZERO) => return Ok(ChainStatus { extent, depth: None }),
            // Who knows nothing has what nobody else has.
            (None, None) => {
                let status = extent.status | BlockStatus::DATA | BlockStatus::ALLOCATED;
                return Ok(ChainStatus { extent: StatusExtent { status, ..extent }, depth: Some(depth) });
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
async fn refreshed(req: &Req, range: GuestRange) -> IoResult<u64> {
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
