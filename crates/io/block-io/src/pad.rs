//! Requests that do not fill whole blocks: what is missing around them is read, and written back.
//!
//! Whoever calls this has checked the bounds and has his place among the other requests: a write that is padded serialises, or
//! it would write back what somebody else has changed meanwhile (rule req-1).

use crate::node::Req;
use crate::pipeline::{debug_event, pieces, transfer_max};
use block_common::{AlignedBuf, DebugEvent, GuestRange, IoBuf, IoResult, RequestFlags};

/// Requests of at most this many bytes are carried out in one piece, in memory of their own; of longer ones, only the first
/// and the last block are.
const WHOLE_MAX: u64 = 64 << 10;

/// The range cut at the first and at the last multiple of `alignment`, any number, inside it: what lies before, between and after, without the
/// empty ones.
pub(crate) fn parts(range: GuestRange, alignment: u32) -> impl Iterator<Item = GuestRange> {
    let alignment = u64::from(alignment.max(1));
    let (start, end) = (range.offset().0, range.end());
    let first = start.checked_next_multiple_of(alignment).map_or(end, |up| up.min(end));
    let last = (end - end % alignment).max(first);
    let cuts = [start, first, last, end];
    let part = move |i: usize| range.slice(cuts[i] - start, cuts[i + 1] - cuts[i]);
    (0..3).map(part).filter(|part| !part.is_empty())
}

/// The whole blocks inside the range, if there are any.
pub(crate) fn whole_blocks(range: GuestRange, alignment: u32) -> Option<GuestRange> {
    parts(range, alignment).find(|part| part.is_aligned(alignment))
}

/// Whole blocks, without what lies past the end of the node, or past `end` if that is later. A leaf takes whole blocks to its last one; others
/// have a child whose blocks may be smaller, and which has nothing there.
pub(crate) fn within_node(req: &Req, blocks: GuestRange, end: u64) -> IoResult<GuestRange> {
    let end = req.node.length().max(end);
    let is_cut = blocks.end() > end && end > blocks.offset().0 && !req.node.engine()?.is_leaf();
    Ok(if is_cut { blocks.slice(0, end - blocks.offset().0) } else { blocks })
}

/// Read whole blocks, as many at a time as the node allows. What lies past the end of a node that is no leaf is left as it is.
pub(crate) async fn read_blocks(req: &Req, range: GuestRange, buf: &IoBuf) -> IoResult<()> {
    let engine = req.node.engine()?;
    let range = within_node(req, range, 0)?;
    for (at, len) in pieces(range.len(), transfer_max(req)) {
        let part = buf.slice(at as usize, len as usize);
        engine.read(req, range.slice(at, len).offset(), &part).await?;
    }
    Ok(())
}

/// Write whole blocks, as many at a time as the node allows.
pub(crate) async fn write_blocks(req: &Req, range: GuestRange, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
    let engine = req.node.engine()?;
    for (at, len) in pieces(range.len(), transfer_max(req)) {
        let part = buf.slice(at as usize, len as usize);
        engine.write(req, range.slice(at, len).offset(), &part, flags).await?;
        req.node.reached(range.slice(at, len).end());
    }
    Ok(())
}

fn memory(req: &Req, len: u64) -> IoBuf {
    let limits = req.node.limits();
    let alignment = limits.memory_alignment.max(limits.request_alignment);
    AlignedBuf::zeroed(len as usize, alignment as usize).into_io()
}

/// The part of `buf`, which belongs to `whole`, that belongs to `part`.
fn part_of(buf: &IoBuf, whole: GuestRange, part: GuestRange) -> IoBuf {
    buf.slice((part.offset().0 - whole.offset().0) as usize, part.len() as usize)
}

/// The pieces in which a range that is not made of blocks is carried out.
fn steps(range: GuestRange, blocks: GuestRange, alignment: u32) -> impl Iterator<Item = GuestRange> {
    let whole = (blocks.len() <= WHOLE_MAX).then_some(range);
    let cut = whole.is_none().then(|| parts(range, alignment));
    whole.into_iter().chain(cut.into_iter().flatten())
}

/// Read a range that is not made of blocks.
pub(crate) async fn read(req: &Req, range: GuestRange, buf: &IoBuf) -> IoResult<()> {
    let alignment = req.node.read_alignment();
    for step in steps(range, range.align_out(alignment)?, alignment) {
        let data = part_of(buf, range, step);
        let blocks = step.align_out(alignment)?;
        if blocks == step {
            read_blocks(req, step, &data).await?;
            continue;
        }
        let bounce = memory(req, blocks.len());
        read_blocks(req, blocks, &bounce).await?;
        data.copy_from(&part_of(&bounce, blocks, step));
    }
    Ok(())
}

/// Write a range that is not made of blocks.
pub(crate) async fn write(req: &Req, range: GuestRange, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
    let alignment = req.node.request_alignment();
    let block = u64::from(alignment);
    for step in steps(range, range.align_out(alignment)?, alignment) {
        let data = part_of(buf, range, step);
        let blocks = step.align_out(alignment)?;
        if blocks == step {
            write_blocks(req, step, &data, flags).await?;
            continue;
        }
        let bounce = memory(req, blocks.len());
        let first = blocks.slice(0, block);
        let last = blocks.slice(blocks.len() - block, block);
        let head = (first.offset() != step.offset()).then_some(first);
        let tail = (last.end() != step.end()).then_some(last);
        match (head, tail) {
            // All of it is read: one request does it.
            (Some(_), Some(_)) if blocks.len() <= 2 * block && last.offset().0 < req.node.length() => {
                debug_event(req, DebugEvent::PwritevRmwHead).await;
                debug_event(req, DebugEvent::PwritevRmwTail).await;
                fill(req, blocks, &bounce).await?;
                debug_event(req, DebugEvent::PwritevRmwAfterHead).await;
                debug_event(req, DebugEvent::PwritevRmwAfterTail).await;
            }
            _ => {
                if let Some(head) = head {
                    debug_event(req, DebugEvent::PwritevRmwHead).await;
                    fill(req, head, &part_of(&bounce, blocks, head)).await?;
                    debug_event(req, DebugEvent::PwritevRmwAfterHead).await;
                }
                if let Some(tail) = tail {
                    debug_event(req, DebugEvent::PwritevRmwTail).await;
                    fill(req, tail, &part_of(&bounce, blocks, tail)).await?;
                    debug_event(req, DebugEvent::PwritevRmwAfterTail).await;
                }
            }
        }
        part_of(&bounce, blocks, step).copy_from(&data);
        debug_event(req, DebugEvent::Pwritev).await;
        // Padding makes nothing longer.
        let there = within_node(req, blocks, step.end())?;
        write_blocks(req, there, &part_of(&bounce, blocks, there), flags).await?;
    }
    Ok(())
}

/// Read a block that is to be written back. Past the end of the node there are zeroes.
async fn fill(req: &Req, block: GuestRange, into: &IoBuf) -> IoResult<()> {
    if block.offset().0 >= req.node.length() { Ok(()) } else { read_blocks(req, block, into).await }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> GuestRange {
        GuestRange::new(start, end - start).expect("a range")
    }

    fn cut(start: u64, end: u64) -> Vec<(u64, u64)> {
        parts(range(start, end), 512).map(|part| (part.offset().0, part.end())).collect()
    }

    #[test]
    fn ranges_are_cut_at_blocks() {
        assert_eq!(cut(0, 512), [(0, 512)]);
        assert_eq!(cut(1, 2), [(1, 2)]);
        assert_eq!(cut(1, 512), [(1, 512)]);
        assert_eq!(cut(512, 513), [(512, 513)]);
        assert_eq!(cut(511, 513), [(511, 512), (512, 513)]);
        assert_eq!(cut(100, 2000), [(100, 512), (512, 1536), (1536, 2000)]);
        assert_eq!(cut(0, 2000), [(0, 1536), (1536, 2000)]);
        assert_eq!(cut(100, 1536), [(100, 512), (512, 1536)]);
        assert_eq!(cut(700, 700), []);
        let thirds: Vec<_> = parts(range(1, 8), 3).map(|part| (part.offset().0, part.end())).collect();
        assert_eq!(thirds, [(1, 3), (3, 6), (6, 8)]);
        let end = i64::MAX as u64;
        assert_eq!(cut(end - 1, end), [(end - 1, end)]);
    }

    #[test]
    fn whole_blocks_are_those_inside() {
        assert_eq!(whole_blocks(range(100, 2000), 512), Some(range(512, 1536)));
        assert_eq!(whole_blocks(range(512, 1536), 512), Some(range(512, 1536)));
        assert_eq!(whole_blocks(range(1, 1023), 512), None);
    }
}
