//! The request pipeline: what happens between a caller and a driver, once, for every driver.
//!
//! Two ways lead through it. The fast way ([`resolve`]) follows cached mappings down to a leaf without waiting and starts the
//! operation there. The slow way checks, splits to the node's limits, and awaits the engine. Calls to children come
//! here as well, so that a slow driver's children are still reached the fast way.
//!
//! In order: bounds, permission to write, the place among other requests (`track`), padding to whole blocks and splitting to
//! limits (`pad`), the driver, fallbacks of zero writes, the length that a write reached, flags that the driver left. Flushes and
//! block status are in files of their own.

use crate::askers;
use crate::context::{Hold, IoContext, Path, SlotFuture};
use crate::driver::{Access, Driver, Mapping, NowRequest, RECODED_SHORT};
use crate::file::{FileOp, FileOpKind, HostFile, Recoded};
use crate::flush::flush;
use crate::gate::{GateState, Pin, Way};
use crate::node::{ChangeKind, NodeBody, Req};
use crate::pad;
use crate::pool::ThreadPool;
use crate::track::track;
use block_common::{
    AlignedBuf, DebugEvent, DetectZeroes, GuestOffset, GuestRange, IoBuf, IoError, IoResult, LENGTH_MAX, Preallocation,
    RequestFlags, is_zero,
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

/// Where a range is, after its mappings were followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// What is there.
    pub(crate) leaf: Leaf,
    /// The offset there.
    pub(crate) offset: GuestOffset,
    /// The node on the path that encodes and decodes what is there, and what it is told.
    pub(crate) recode: Option<(usize, u64)>,
}

impl Route {
    const SLOW: Self = Self { leaf: Leaf::Slow, offset: GuestOffset(0), recode: None };

    fn to(leaf: Leaf, offset: GuestOffset, recode: Option<(usize, u64)>) -> Self {
        // Bytes that nobody has in hand cannot be decoded.
        if recode.is_some() && leaf != Leaf::File { Self::SLOW } else { Self { leaf, offset, recode } }
    }
}

/// Follow the mappings of `range` from the one node in `path` down, pinning each node before asking it.
///
/// `asker` is the context of whose own a request is: one on behalf of others finds no long bytes to recode here.
#[inline]
pub(crate) fn resolve(access: Access, path: &mut Path, mut range: GuestRange, asker: Option<&IoContext>) -> Route {
    let mut recode = None;
    let slow = match access {
        Access::Read => GateState::SLOW_READ,
        Access::Write | Access::WriteFua => GateState::SLOW_WRITE,
    };
    while let Some(node) = path.last() {
        if node.seen().intersects(slow) || !fits(node, access, range) || path.len() > DEPTH_MAX {
            break;
        }
        if access.is_write() {
            node.writes_to(range.end());
        }
        let Ok(engine) = node.engine() else { break };
        let (edge, offset) = match engine.map_cached(access, range) {
            Mapping::Child { edge, offset, len } if len >= range.len() => (edge, offset),
            Mapping::Recoded { edge, offset, len, at }
                if len >= range.len() && recode.is_none() && recodes_here(range.len(), asker) =>
            {
                recode = Some((path.len() - 1, at));
                (edge, offset)
            }
            Mapping::Zeroes { len } if len >= range.len() && access == Access::Read => {
                return Route::to(Leaf::Zeroes, range.offset(), recode);
            }
            Mapping::File(_) => return Route::to(Leaf::File, range.offset(), recode),
            Mapping::Now => return Route::to(Leaf::Now, range.offset(), recode),
            Mapping::Child { .. } | Mapping::Recoded { .. } | Mapping::Zeroes { .. } | Mapping::Slow => break,
        };
        if access.is_write() && edge.writable(RequestFlags::empty()).is_err() {
            break;
        }
        let Ok(child) = edge.follow(node, Way::Fast) else { break };
        let offset = crate::edge::Edge::descend(offset);
        let Ok(next) = GuestRange::new(offset.0, range.len()) else { break };
        range = next;
        path.push(child);
    }
    Route::SLOW
}

/// Whether so many bytes are recoded by the thread that asks for them.
#[inline]
fn recodes_here(len: u64, asker: Option<&IoContext>) -> bool {
    len <= RECODED_SHORT || asker.is_some_and(|asker| askers::are_enough(asker.id()))
}

/// Whether one request on the node may be this.
#[inline]
fn fits(node: &NodeBody, access: Access, range: GuestRange) -> bool {
    let transfer_max = node.transfer_max();
    let alignment = if access.is_write() { node.request_alignment() } else { node.read_alignment() };
    range.end() <= node.length()
        && range.is_aligned(alignment)
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
    /// It is over: the page cache had what was to be read, or it cannot be begun.
    Done(FileOp, IoResult<()>),
    /// It is to be started, by this pool or else the ring.
    At(FileOp, Option<ThreadPool>),
    /// The file is not there any more.
    Gone(FileOp),
}

/// Let `op` have a copy of its own of what is to be written, or read.
///
/// # Errors
/// What is to be written cannot be encoded; `op` is then as it was.
fn recode(context: &IoContext, path: &Path, op: &mut FileOp, (node, at): (usize, u64)) -> IoResult<()> {
    let buf = op.buf.as_ref().ok_or(IoError::BUG)?;
    let mut copy = context.buffers().take(buf.len());
    if matches!(op.kind, FileOpKind::Write { .. }) {
        buf.copy_to_slice(0, &mut copy);
        path.get(node).ok_or(IoError::BUG)?.engine()?.encode(at, &mut copy)?;
    }
    let buf = op.buf.replace(copy.into_io()).ok_or(IoError::BUG)?;
    op.recoded = Some(Box::new(Recoded { buf, node, at }));
    Ok(())
}

/// Carry out a long read of bytes to be decoded, if the page cache has all of them: piece by piece, so that each is in the processor's cache still when it is decoded.
fn read_in_pieces(
    context: &IoContext,
    path: &Path,
    file: &HostFile,
    op: &FileOp,
    (node, at): (usize, u64),
) -> Option<IoResult<()>> {
    const PIECE: usize = 32 << 10;
    if op.kind != FileOpKind::Read || op.len <= RECODED_SHORT {
        return None;
    }
    let buf = op.buf.as_ref()?;
    let _working = askers::Working::new(context.id());
    for done in (0..buf.len()).step_by(PIECE) {
        let part = buf.slice(done, PIECE.min(buf.len() - done));
        let copy = context.buffers().take(part.len()).into_io();
        let mut piece = FileOp::read(op.offset + done as u64, copy);
        (piece.fd, piece.options) = (op.fd, op.options);
        if !file.read_at_once(&piece) {
            return None;
        }
        let recoded = Recoded { buf: part, node, at: at + done as u64 / 512 };
        if let (_, Err(error)) = uncode(path, op.kind, (recoded, piece.buf), Ok(())) {
            return Some(Err(error));
        }
    }
    Some(Ok(()))
}

/// An operation that had a copy of its own is over: `op` has the caller's buffer again, with what was read if it was.
///
/// # Errors
/// `result`; or what was read cannot be decoded.
pub(crate) fn uncode(
    path: &Path,
    kind: FileOpKind,
    parts: (Recoded, Option<IoBuf>),
    result: IoResult<()>,
) -> (IoBuf, IoResult<()>) {
    let (Recoded { buf, node, at }, copy) = parts;
    if result.is_err() || kind != FileOpKind::Read {
        return (buf, result);
    }
    let decoded = (|| {
        // The kernel is done with it, so nobody else has it.
        let mut copy = copy.ok_or(IoError::BUG)?.into_aligned().unwrap_or_else(|copy| copy.to_aligned(1));
        path.get(node).ok_or(IoError::BUG)?.engine()?.decode(at, &mut copy)?;
        buf.copy_from_slice(0, &copy);
        Ok(())
    })();
    (buf, decoded)
}

/// Make `op` an operation of the host file at the end of the path.
pub(crate) fn aim(context: &IoContext, path: &Path, mut op: FileOp, recode_by: Option<(usize, u64)>) -> Aimed {
    let access = match op.kind {
        FileOpKind::Read => Access::Read,
        FileOpKind::Write { fua: true, .. } => Access::WriteFua,
        _ => Access::Write,
    };
    let engine = path.last().and_then(|node| node.engine().ok());
    if let (Some(engine), Ok(range)) = (engine, GuestRange::new(op.offset, op.len))
        && let Mapping::File(file) = engine.map_cached(access, range)
        && let Some(pool) = file.target(&mut op)
    {
        if let Some(by) = recode_by {
            if let Some(result) = read_in_pieces(context, path, file, &op, by) {
                return Aimed::Done(op, result);
            }
            if let Err(error) = recode(context, path, &mut op, by) {
                return Aimed::Done(op, Err(error));
            }
        }
        if file.read_at_once(&op) {
            let mut result = Ok(());
            if let Some(of) = op.recoded.take() {
                let (buf, decoded) = uncode(path, op.kind, (*of, op.buf.take()), result);
                (op.buf, result) = (Some(buf), decoded);
            }
            return Aimed::Done(op, result);
        }
        let pool = context.pool_for(op.options.engine, pool);
        return Aimed::At(op, pool);
    }
    Aimed::Gone(op)
}

/// A write on the fast path is over: it counts for the next flush of each node that it went through.
#[inline]
pub(crate) fn wrote(path: &Path) {
    path.iter().for_each(|node| node.flushing().wrote());
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
    path.push(node.fast());
    let Route { leaf, offset, recode } = resolve(access, &mut path, range, None);
    match leaf {
        Leaf::Slow => Started::Slow,
        Leaf::File => {
            let op = match access {
                Access::Read => FileOp::read(offset.0, buf.clone()),
                Access::Write | Access::WriteFua => FileOp::write(offset.0, buf.clone(), access == Access::WriteFua),
            };
            match aim(&context, &path, op, recode) {
                Aimed::Done(_, result) => Started::Over(result),
                Aimed::At(op, pool) => Started::Waits(context.start_future(op, Hold::Path(path), pool)),
                Aimed::Gone(_) => Started::Slow,
            }
        }
        Leaf::Now | Leaf::Zeroes => {
            let result = serve_now(leaf, &path, offset, access, buf);
            if access.is_write() {
                wrote(&path);
            }
            Started::Over(result)
        }
    }
}

/// Whether the range lies inside the node. A node that was made of blocks by somebody above counts up to the end of its last one.
pub(crate) async fn check(req: &Req, range: GuestRange, may_extend: bool) -> IoResult<()> {
    let block = u64::from(req.node.request_alignment());
    let is_inside = |length: u64| range.end() <= length.next_multiple_of(block);
    // What is below may have grown through somebody else's hands: ask before refusing.
    if may_extend || is_inside(req.node.length()) || is_inside(refresh_length(req).await?) {
        return Ok(());
    }
    Err(IoError::OUT_OF_BOUNDS)
}

/// Whether a range that comes from outside lies inside the node, to the byte.
pub(crate) async fn check_entry(req: &Req, range: GuestRange) -> IoResult<()> {
    if range.end() <= req.node.length() || range.end() <= refresh_length(req).await? {
        return Ok(());
    }
    Err(IoError::OUT_OF_BOUNDS)
}

async fn check_write(req: &Req, range: GuestRange, may_extend: bool) -> IoResult<()> {
    if req.node.is_read_only() {
        return Err(IoError::READ_ONLY);
    }
    check(req, range, may_extend).await
}

/// The pieces of `len` bytes that a limit of `max` bytes (0: none) allows: offsets and lengths.
pub(crate) fn pieces(len: u64, max: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = if max == 0 { len.max(1) } else { max };
    (0..len.div_ceil(step)).map(move |i| (i * step, step.min(len - i * step)))
}

/// A limit of `max` bytes (0: none) in whole blocks of the node's request alignment; at least one.
fn aligned_max(req: &Req, max: u64) -> u64 {
    let alignment = u64::from(req.node.request_alignment());
    if max == 0 { 0 } else { (max & !(alignment - 1)).max(alignment) }
}

pub(crate) fn transfer_max(req: &Req) -> u64 {
    aligned_max(req, u64::from(req.node.transfer_max()))
}

pub(crate) async fn read(req: Req, range: GuestRange, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
    if flags.is_empty() {
        match start(&req.node, Access::Read, range, buf) {
            Started::Over(result) => return result,
            Started::Waits(future) => return future.await,
            Started::Slow => {}
        }
    }
    check(&req, range, false).await?;
    if range.is_empty() {
        return Ok(());
    }
    let blocks = range.align_out(req.node.read_alignment())?;
    let _tracked = track(&req.node, blocks, flags.contains(RequestFlags::SERIALISING)).await;
    // Those before may have moved the end.
    check(&req, range, false).await?;
    if blocks == range { pad::read_blocks(&req, range, buf).await } else { pad::read(&req, range, buf).await }
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
    if range.is_empty() {
        return Ok(());
    }
    if let Some(zeroes) = detected_zeroes(&req, buf, flags) {
        return zero(req, range, zeroes, may_extend).await;
    }
    let (given, then_flush) = carried_out(req.node.engine()?, flags)?;
    let blocks = range.align_out(req.node.request_alignment())?;
    // What reads the blocks that it writes a part of lets nobody in between (rule req-1).
    let serialising = blocks != range || flags.contains(RequestFlags::SERIALISING);
    let tracked = track(&req.node, blocks, serialising).await;
    check(&req, range, may_extend).await?;
    req.node.writes_to(blocks.end());
    let change = Change::begin(&req, ChangeKind::Write, range);
    if blocks == range {
        debug_event(&req, DebugEvent::Pwritev).await;
        pad::write_blocks(&req, range, buf, given).await?;
    } else {
        pad::write(&req, range, buf, given).await?;
    }
    debug_event(&req, DebugEvent::PwritevDone).await;
    drop((change, tracked));
    if then_flush { flush(&req).await } else { Ok(()) }
}

/// The flags of a write that the engine is given, and whether the core must flush in the place of one that it is not.
pub(crate) fn carried_out(engine: &dyn Driver, flags: RequestFlags) -> IoResult<(RequestFlags, bool)> {
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
    is_zero(&copy).then(|| flags | more)
}

pub(crate) async fn zero(req: Req, range: GuestRange, flags: RequestFlags, may_extend: bool) -> IoResult<()> {
    check_write(&req, range, may_extend).await?;
    if range.is_empty() {
        return Ok(());
    }
    // Deallocating is for nodes that were opened for it (rule zero-1).
    let flags = if req.node.modes().unmap { flags } else { flags.difference(RequestFlags::MAY_UNMAP) };
    let (given, then_flush) = carried_out(req.node.engine()?, flags)?;
    let given = given | flags & (RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK);
    let blocks = range.align_out(req.node.request_alignment())?;
    if blocks != range && flags.contains(RequestFlags::NO_FALLBACK) {
        return Err(IoError::UNSUPPORTED);
    }
    let serialising = blocks != range || flags.contains(RequestFlags::SERIALISING);
    let tracked = track(&req.node, blocks, serialising).await;
    check(&req, range, may_extend).await?;
    req.node.writes_to(blocks.end());
    let change = Change::begin(&req, ChangeKind::Write, range);
    req.node.status_cache().forget();
    debug_event(&req, DebugEvent::PwritevZero).await;
    zero_parts(&req, range, given).await?;
    debug_event(&req, DebugEvent::PwritevDone).await;
    drop((change, tracked));
    if then_flush { flush(&req).await } else { Ok(()) }
}

/// Zero what lies between multiples of the driver's alignment at once, and what is left before and after by itself.
pub(crate) async fn zero_parts(req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
    let limits = req.node.limits();
    let engine = req.node.engine()?;
    let max = aligned_max(req, limits.zero_max);
    for part in pad::parts(range, req.node.request_alignment().max(limits.zero_alignment)) {
        if !part.is_aligned(req.node.request_alignment()) {
            write_zeroes(req, part, flags).await?;
            continue;
        }
        for (at, len) in pieces(part.len(), max) {
            let piece = part.slice(at, len);
            match engine.zero(req, piece, flags).await {
                Err(error) if is_unsupported(error) && !flags.contains(RequestFlags::NO_FALLBACK) => {
                    write_zeroes(req, piece, flags).await?;
                }
                other => other?,
            }
            req.node.reached(piece.end());
        }
    }
    Ok(())
}

/// Whether there is no such operation, be it the driver that says so or the host (rule zero-2).
fn is_unsupported(error: IoError) -> bool {
    error.errno() == IoError::UNSUPPORTED.errno()
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
    let flags = flags & (RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED);
    for (at, len) in pieces(range.len(), max) {
        let (part, data) = (range.slice(at, len), zeroes.slice(0, len as usize));
        if part.is_aligned(req.node.request_alignment()) {
            pad::write_blocks(req, part, &data, flags).await?;
        } else {
            pad::write(req, part, &data, flags).await?;
        }
    }
    Ok(())
}

pub(crate) async fn discard(req: Req, range: GuestRange) -> IoResult<()> {
    check_write(&req, range, false).await?;
    if !req.node.modes().unmap {
        return Ok(());
    }
    let limits = req.node.limits();
    // A part of a block cannot be discarded, and a discard is but a hint.
    let Some(range) = pad::whole_blocks(range, req.node.request_alignment()) else { return Ok(()) };
    let _tracked = track(&req.node, range, false).await;
    check(&req, range, false).await?;
    let _change = Change::begin(&req, ChangeKind::Discard, range);
    req.node.status_cache().forget();
    let engine = req.node.engine()?;
    let max = aligned_max(&req, limits.discard_max);
    for part in pad::parts(range, req.node.request_alignment().max(limits.discard_alignment)) {
        for (at, len) in pieces(part.len(), max) {
            match engine.discard(&req, part.slice(at, len)).await {
                Err(error) if is_unsupported(error) => break,
                other => other?,
            }
        }
    }
    Ok(())
}

/// Change the length. Nobody is in the area that comes or goes meanwhile, and what comes reads as zeroes from the first moment
/// (rule trunc-1).
pub(crate) async fn truncate(req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
    if req.node.is_read_only() {
        return Err(IoError::READ_ONLY);
    }
    let all = GuestRange::new(0, len)?;
    loop {
        // Up to where no request can be, so that all truncations meet.
        let start = len.min(req.node.length());
        let tracked = track(&req.node, GuestRange::new(start, LENGTH_MAX - start)?, true).await;
        // The wait may have been long, and somebody else may have made the node shorter than what is locked.
        let old = refresh_length(req).await?;
        if old >= start {
            let resized = resize(req, old, all, preallocation).await;
            if req.node.seen().contains(GateState::TRACKED) {
                req.node.observers(|observer| observer.resized(req.node.length()));
            }
            return resized;
        }
        drop(tracked);
    }
}

/// Change the length from `old` bytes to that of `all`, with nobody else beyond the smaller of the two.
async fn resize(req: &Req, old: u64, all: GuestRange, preallocation: Preallocation) -> IoResult<()> {
    let len = all.len();
    let engine = req.node.engine()?;
    let below = match engine.backing() {
        Some(backing) if backing.is_attached() && len > old => backing.refresh_length(req).await?,
        _ => 0,
    };
    let area = GuestRange::new(old.min(len), old.abs_diff(len))?;
    let _change = Change::begin(req, ChangeKind::Resize, area);
    req.node.status_cache().forget();
    engine.truncate(req, len, preallocation).await?;
    // What the backing file has there must not come to light.
    if below > old {
        let hidden = all.slice(old, below.min(len) - old);
        if let Err(error) = zero_parts(req, hidden, RequestFlags::empty()).await {
            if let Err(second) = engine.truncate(req, old, Preallocation::Off).await {
                tracing::warn!(node = req.node_name(), %second, "an image stays longer than it was meant to be");
            }
            // Some of it had been reached.
            let _ = refresh_length(req).await;
            return Err(error);
        }
    }
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

/// Tell the node's driver of an event, if it wants to know.
#[inline]
pub(crate) async fn debug_event(req: &Req, event: DebugEvent) {
    if let Ok(engine) = req.node.engine()
        && engine.wants_debug_events()
    {
        engine.debug_event(req, event).await;
    }
}

/// Store part of a machine's state. It is no part of the disk: nothing waits for it, and no bitmap hears of it.
pub(crate) async fn save_vmstate(req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
    if req.node.is_read_only() {
        return Err(IoError::READ_ONLY);
    }
    let result = req.node.engine()?.save_vmstate(req, offset, buf).await;
    req.node.flushing().wrote();
    result
}

/// Pass an ioctl on. It may change anything.
pub(crate) async fn ioctl(req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
    let result = req.node.engine()?.ioctl(req, number, argument).await;
    req.node.status_cache().forget();
    req.node.flushing().wrote();
    result
}

/// A change of a range that is under way. Observers are told before it begins and once more when it is over, whatever became of
/// it (rule req-4); only then does it count for a flush.
struct Change<'a> {
    req: &'a Req,
    kind: ChangeKind,
    range: GuestRange,
}

impl<'a> Change<'a> {
    fn begin(req: &'a Req, kind: ChangeKind, range: GuestRange) -> Self {
        if req.node.seen().contains(GateState::TRACKED) {
            req.node.observers(|observer| observer.before(kind, range));
        }
        Self { req, kind, range }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        self.req.node.flushing().wrote();
        if self.req.node.seen().contains(GateState::TRACKED) {
            self.req.node.observers(|observer| observer.after(self.kind, self.range));
        }
    }
}
