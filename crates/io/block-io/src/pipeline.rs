//! The request pipeline: what happens between a caller and a driver, once, for every driver.
//!
//! Two ways lead through it. The fast way ([`resolve`]) follows cached mappings down to a leaf without waiting and starts the
//! operation there. The slow way checks, splits to the node's limits, and awaits the engine. Calls to children come
//! here as well, so that a slow driver's children are still reached the fast way.
//!
//! In order: bounds, alignment, permission to write, (padding and serialisation: part 2), splitting to limits, the
//! driver, fallbacks of zero writes, the length that a write reached.

use crate::context::{Hold, IoContext, Path, SlotFuture};
use crate::driver::{Access, Driver, Mapping, NowRequest};
use crate::file::{FileOp, FileOpKind};
use crate::gate::{GateState, Pin};
use crate::node::{NodeBody, Req};
use crate::pool::ThreadPool;
use block_common::{
    AlignedBuf, BlockStatus, DetectZeroes, GuestOffset, GuestRange, IoBuf, IoError, IoResult, Preallocation,
    RequestFlags, StatusExtent,
};

/// Deeper graphs than this take the slow path.
const DEPTH_MAX: usize = 32;
/// Zeroes are written out in pieces of this many bytes.
const ZERO_BOUNCE_MAX: u64 = 1 << 20;

/// Where following the mappings of a range ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaf {
    /// At a host file: that of the last node on the path.
    File,
    /// At a node that serves at once: the last one on the path.
    Now,
    /// At bytes that read as zeroes.
    Zeroes,
    /// At a node that has to think about it.
    Slow,
}

/// Follow the mappings of `range` from the one node in `path` down, pinning each node before asking it. Returns where that
/// ended, and the offset there.
#[inline]
pub(crate) fn resolve(access: Access, path: &mut Path, mut range: GuestRange) -> (Leaf, GuestOffset) {
    let slow = match access {
        Access::Read => GateState::SLOW_READ,
        Access::Write | Access::WriteFua => GateState::SLOW_WRITE,
    };
    while let Some(node) = path.last() {
        if node.seen().intersects(slow) || !fits(node, access, range) || path.len() > DEPTH_MAX {
            break;
        }
        let Ok(engine) = node.engine() else { break };
        let (child, offset) = match engine.map_cached(access, range) {
            Mapping::Child { edge, offset, len } if len >= range.len() => {
                if access.is_write() && edge.writable(RequestFlags::empty()).is_err() {
                    break;
                }
                let Ok(child) = edge.follow(node) else { break };
                (child, crate::edge::Edge::descend(offset))
            }
            Mapping::Zeroes { len } if len >= range.len() && access == Access::Read => {
                return (Leaf::Zeroes, range.offset());
            }
            Mapping::File(_) => return (Leaf::File, range.offset()),
            Mapping::Now => return (Leaf::Now, range.offset()),
            Mapping::Child { .. } | Mapping::Zeroes { .. } | Mapping::Slow => break,
        };
        let Ok(next) = GuestRange::new(offset.0, range.len()) else { break };
        range = next;
        path.push(child);
    }
    (Leaf::Slow, range.offset())
}

/// Whether one request on the node may be this.
#[inline]
fn fits(node: &NodeBody, access: Access, range: GuestRange) -> bool {
    let transfer_max = node.transfer_max();
    range.end() <= node.length()
        && range.is_aligned(node.request_alignment())
        && (transfer_max == 0 || range.len() <= u64::from(transfer_max))
        && !(access.is_write() && node.writes_slowly())
}

/// Serve a resolved request that needs no waiting.
pub(crate) fn serve_now(leaf: Leaf, path: &Path, offset: GuestOffset, access: Access, buf: &IoBuf) -> IoResult<()> {
    match (leaf, access) {
        (Leaf::Zeroes, Access::Read) => {
            buf.fill(0, buf.len(), 0);
            Ok(())
        }
        (Leaf::Now, access) => {
            let node = path.last().ok_or(IoError::BUG)?;
            let request = match access {
                Access::Read => NowRequest::Read(offset, buf),
                Access::Write | Access::WriteFua => NowRequest::Write(offset, buf),
            };
            node.engine()?.serve_now(request)
        }
        _ => Err(IoError::BUG),
    }
}

/// What has become of an operation on the host file at the end of a path.
pub(crate) enum Aimed {
    /// It is done: the page cache had what was to be read.
    Done(FileOp),
    /// It is to be started, by this pool or else the ring.
    At(FileOp, Option<ThreadPool>),
    /// The file is not there any more.
    Gone(FileOp),
}

/// Make `op` an operation of the host file at the end of the path.
pub(crate) fn aim(context: &IoContext, path: &Path, mut op: FileOp) -> Aimed {
    let access = match op.kind {
        FileOpKind::Read => Access::Read,
        FileOpKind::Write { fua: true } => Access::WriteFua,
        _ => Access::Write,
    };
    let engine = path.last().and_then(|node| node.engine().ok());
    if let (Some(engine), Ok(range)) = (engine, GuestRange::new(op.offset, op.len))
        && let Mapping::File(file) = engine.map_cached(access, range)
        && let Some(pool) = file.target(&mut op)
    {
        if file.read_at_once(&op) {
            return Aimed::Done(op);
        }
        let pool = context.pool_for(op.options.engine, pool);
        return Aimed::At(op, pool);
    }
    Aimed::Gone(op)
}

enum Started {
    Over(IoResult<()>),
    Waits(SlotFuture),
    Slow,
}

/// Try the fast way from `node` on, for an engine's call to its child.
fn start(node: &Pin<NodeBody>, access: Access, range: GuestRange, buf: &IoBuf) -> Started {
    let Some(context) = IoContext::current() else { return Started::Slow };
    let mut path = Path::new();
    path.push(node.again());
    match resolve(access, &mut path, range) {
        (Leaf::Slow, _) => Started::Slow,
        (Leaf::File, offset) => {
            let op = match access {
                Access::Read => FileOp::read(offset.0, buf.clone()),
                Access::Write | Access::WriteFua => FileOp::write(offset.0, buf.clone(), access == Access::WriteFua),
            };
            match aim(&context, &path, op) {
                Aimed::Done(_) => Started::Over(Ok(())),
                Aimed::At(op, pool) => Started::Waits(context.start_future(op, Hold::Path(path), pool)),
                Aimed::Gone(_) => Started::Slow,
            }
        }
        (leaf, offset) => Started::Over(serve_now(leaf, &path, offset, access, buf)),
    }
}

async fn check(req: &Req, range: GuestRange, may_extend: bool) -> IoResult<()> {
    if range.end() > req.node.length() && !may_extend {
        // What is below may have grown through somebody else's hands: ask before refusing.
        if range.end() > refresh_length(req).await? {
            return Err(IoError::OUT_OF_BOUNDS);
        }
    }
    if range.is_aligned(req.node.request_alignment()) { Ok(()) } else { Err(IoError::MISALIGNED) }
}

async fn check_write(req: &Req, range: GuestRange, may_extend: bool) -> IoResult<()> {
    if req.node.is_read_only() {
        return Err(IoError::READ_ONLY);
    }
    check(req, range, may_extend).await
}

/// The pieces of `len` bytes that a limit of `max` bytes (0: none) allows: offsets and lengths.
fn pieces(len: u64, max: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = if max == 0 { len.max(1) } else { max };
    (0..len.div_ceil(step)).map(move |i| (i * step, step.min(len - i * step)))
}

/// A limit of `max` bytes (0: none) in whole blocks of the node's request alignment; at least one.
fn aligned_max(req: &Req, max: u64) -> u64 {
    let alignment = u64::from(req.node.request_alignment());
    if max == 0 { 0 } else { (max & !(alignment - 1)).max(alignment) }
}

fn transfer_max(req: &Req) -> u64 {
    aligned_max(req, u64::from(req.node.transfer_max()))
}

pub(crate) async fn read(req: Req, range: GuestRange, buf: &IoBuf) -> IoResult<()> {
    match start(&req.node, Access::Read, range, buf) {
        Started::Over(result) => return result,
        Started::Waits(future) => return future.await,
        Started::Slow => {}
    }
    check(&req, range, false).await?;
    let engine = req.node.engine()?;
    for (at, len) in pieces(range.len(), transfer_max(&req)) {
        let part = buf.slice(at as usize, len as usize);
        engine.read(&req, range.slice(at, len).offset(), &part).await?;
    }
    Ok(())
}

pub(crate) async fn write(
    req: Req,
    range: GuestRange,
    buf: &IoBuf,
    flags: RequestFlags,
    may_extend: bool,
) -> IoResult<()> {
    if let Some(access) = Access::write(flags) {
        match start(&req.node, access, range, buf) {
            Started::Over(result) => return result,
            Started::Waits(future) => return future.await,
            Started::Slow => {}
        }
    }
    check_write(&req, range, may_extend).await?;
    if let Some(zeroes) = detected_zeroes(&req, buf, flags) {
        return zero(req, range, zeroes, may_extend).await;
    }
    let engine = req.node.engine()?;
    let (flags, then_flush) = carried_out(engine, flags)?;
    for (at, len) in pieces(range.len(), transfer_max(&req)) {
        let part = buf.slice(at as usize, len as usize);
        engine.write(&req, range.slice(at, len).offset(), &part, flags).await?;
        req.node.reached(range.slice(at, len).end());
    }
    if then_flush { engine.flush(&req).await } else { Ok(()) }
}

/// The flags of a write that the engine is given, and whether the core must flush in the place of one that it is not.
fn carried_out(engine: &dyn Driver, flags: RequestFlags) -> IoResult<(RequestFlags, bool)> {
    let supported = engine.write_flags();
    if flags.difference(supported).contains(RequestFlags::WRITE_COMPRESSED) {
        return Err(IoError::UNSUPPORTED);
    }
    Ok((flags & supported, flags.difference(supported).contains(RequestFlags::FUA)))
}

/// The flags of the zero write that a write is, if the node looks for such and the data is all zeroes. The data is looked
/// at in a private copy: a guest may change it meanwhile.
fn detected_zeroes(req: &Req, buf: &IoBuf, flags: RequestFlags) -> Option<RequestFlags> {
    let modes = req.node.modes();
    if modes.detect_zeroes == DetectZeroes::Off || flags.contains(RequestFlags::WRITE_COMPRESSED) {
        return None;
    }
    let copy = buf.to_aligned(64);
    let unmap = modes.detect_zeroes == DetectZeroes::Unmap && modes.unmap;
    let more = if unmap { RequestFlags::MAY_UNMAP } else { RequestFlags::empty() };
    copy.iter().all(|byte| *byte == 0).then(|| flags | more)
}

pub(crate) async fn zero(req: Req, range: GuestRange, flags: RequestFlags, may_extend: bool) -> IoResult<()> {
    check_write(&req, range, may_extend).await?;
    let engine = req.node.engine()?;
    let limits = req.node.limits();
    // Deallocating is for nodes that were opened for it (rule zero-1).
    let flags = if req.node.modes().unmap { flags } else { flags.difference(RequestFlags::MAY_UNMAP) };
    let (given, then_flush) = carried_out(engine, flags)?;
    let given = given | flags & (RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK);
    for (at, len) in pieces(range.len(), aligned_max(&req, limits.zero_max)) {
        let part = range.slice(at, len);
        match engine.zero(&req, part, given).await {
            Err(error) if error == IoError::UNSUPPORTED && !flags.contains(RequestFlags::NO_FALLBACK) => {
                write_zeroes(&req, part, given).await?;
            }
            other => other?,
        }
        req.node.reached(part.end());
    }
    if then_flush { engine.flush(&req).await } else { Ok(()) }
}

/// The fallback of a zero write: zeroes, written.
async fn write_zeroes(req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
    let limits = req.node.limits();
    let max = match transfer_max(req) {
        0 => ZERO_BOUNCE_MAX,
        max => max.min(ZERO_BOUNCE_MAX),
    };
    let alignment = limits.memory_alignment.max(limits.request_alignment).max(1);
    let zeroes = AlignedBuf::zeroed(range.len().min(max) as usize, alignment as usize).into_io();
    let flags = flags & RequestFlags::FUA;
    for (at, len) in pieces(range.len(), max) {
        let part = zeroes.slice(0, len as usize);
        req.node.engine()?.write(req, range.slice(at, len).offset(), &part, flags).await?;
    }
    Ok(())
}

pub(crate) async fn discard(req: Req, range: GuestRange) -> IoResult<()> {
    check_write(&req, range, false).await?;
    if !req.node.modes().unmap {
        return Ok(());
    }
    let engine = req.node.engine()?;
    for (at, len) in pieces(range.len(), aligned_max(&req, req.node.limits().discard_max)) {
        match engine.discard(&req, range.slice(at, len)).await {
            Err(error) if error == IoError::UNSUPPORTED => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

pub(crate) async fn flush(req: &Req) -> IoResult<()> {
    req.node.engine()?.flush(req).await
}

/// The status of the start of `range`, made to be aligned, not empty and within the range (rule stat-1).
pub(crate) async fn block_status(req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
    check(req, range, false).await?;
    if range.is_empty() {
        return Err(IoError::INVALID);
    }
    let mut extent = req.node.engine()?.block_status(req, range).await?.truncated(range.len());
    if extent.len < range.len() {
        let alignment = u64::from(req.node.request_alignment());
        extent = match extent.len & !(alignment - 1) {
            // The driver knows about less than a block. What follows may be anything, and data is the safe answer.
            0 => StatusExtent::data(alignment.min(range.len())),
            // An odd end belongs to the next answer.
            len => extent.truncated(len),
        };
    }
    // Whose end it is, only this node knows.
    extent.status.set(BlockStatus::EOF, range.slice(0, extent.len).end() == req.node.length());
    Ok(extent)
}

pub(crate) async fn truncate(req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
    if req.node.is_read_only() {
        return Err(IoError::READ_ONLY);
    }
    GuestRange::new(0, len)?;
    req.node.engine()?.truncate(req, len, preallocation).await?;
    refresh_length(req).await?;
    Ok(())
}

pub(crate) async fn refresh_length(req: &Req) -> IoResult<u64> {
    loop {
        let before = req.node.length();
        let len = req.node.engine()?.length(req).await?;
        if req.node.update_length(before, len) {
            return Ok(len);
        }
    }
}
