//! Root entries: where requests come in from outside (a backend, an export, a job, a stranger's program).
//!
//! A [`Root`] is the half that device threads hold: any number of clones, on any thread. Its requests are checked here once; then they
//! take the fast way on the calling thread if that is an I/O thread, else they go to the root's home thread, where they
//! run to their end whatever becomes of the caller. The [`RootControl`] belongs to the graph's owner.

use crate::context::{Hold, IoContext, Path, Target};
use crate::driver::Access;
use crate::edge::{self, Edge, EdgeWriter, ParentGate};
use crate::file::{DeviceBlocks, DiskGeometry, FileOp};
use crate::gate::{GateState, Gated, Pin, Refused, Way};
use crate::homed::{Errand, Homed};
use crate::node::{GateControl, NodeBody, NodeTarget, Quiesced, Req};
use crate::pipeline::{self, Aimed, Leaf, Route};
use crate::request::{Done, Request, RequestKind};
use crate::status::ChainStatus;
use crate::thread::IoThreadHandle;
use crate::{copy_range, flush, status, write_many};
use block_common::{
    ChildRole, GuestRange, IoBuf, IoError, IoResult, Limits, Perm, PermPair, Preallocation, RequestFlags, StatusExtent,
};
use crossbeam_utils::CachePadded;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::sync::oneshot;

const KINDS: usize = 5;
/// The most that is looked at in one go when all of a node is zeroed, in bytes.
const MAKE_ZERO_MAX: u64 = 1 << 30;

#[derive(Default)]
struct StatsShard {
    requests: [AtomicU64; KINDS],
    bytes: [AtomicU64; KINDS],
    failed: [AtomicU64; KINDS],
}

/// What a root entry is to its requests.
pub(crate) struct RootBody {
    name: Box<str>,
    edge: Edge,
    home: Mutex<IoThreadHandle>,
    /// Whether requests that come while it is drained are refused, and not held back.
    refuses: AtomicBool,
    stats: [CachePadded<StatsShard>; crate::sync::SHARDS],
}

impl RootBody {
    #[inline]
    pub(crate) fn account(&self, kind: RequestKind, bytes: u64, result: IoResult<()>) {
        let (shard, is_own) = crate::sync::own_shard();
        let shard = &self.stats[shard];
        let add = |counter: &AtomicU64, n| {
            if is_own {
                // Nobody else writes here: no need to lock the cache line.
                counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
            } else {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        };
        if result.is_ok() {
            add(&shard.requests[kind as usize], 1);
            add(&shard.bytes[kind as usize], bytes);
        } else {
            add(&shard.failed[kind as usize], 1);
        }
    }

    pub(crate) fn edge(&self) -> &Edge {
        &self.edge
    }

    fn home(&self) -> IoThreadHandle {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How many requests of one kind there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCount {
    /// Requests that succeeded.
    pub requests: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Requests that failed.
    pub failed: u64,
}

/// An entry into the graph, for requests. Clones are equal.
#[derive(Clone)]
pub struct Root(Gated<RootBody>);

impl Root {
    /// The name that the entry was made with.
    #[doc(alias = "blk_name")]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The thread on which slow requests run.
    #[doc(alias = "blk_get_aio_context")]
    pub fn home(&self) -> IoThreadHandle {
        self.0.home()
    }

    /// The gate's state.
    pub fn state(&self) -> GateState {
        self.0.state()
    }

    /// How many requests are in flight, as of no particular moment.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight()
    }

    /// What this entry may do.
    pub fn perm(&self) -> Perm {
        self.0.edge.perm()
    }

    /// The node's length in bytes, as last known.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when no node is attached, [`IoError::CLOSED`] after closing.
    #[doc(alias = "blk_getlength")]
    #[doc(alias = "blk_nb_sectors")]
    #[doc(alias = "blk_get_geometry")]
    pub fn length(&self) -> IoResult<u64> {
        Ok(self.look()?.length())
    }

    /// The limits of one request.
    ///
    /// # Errors
    /// As [`Root::length`].
    #[doc(alias = "blk_get_request_alignment")]
    #[doc(alias = "blk_get_max_transfer")]
    pub fn limits(&self) -> IoResult<Limits> {
        Ok(self.look()?.limits())
    }

    /// Whether requests find a node.
    #[doc(alias = "blk_is_inserted")]
    pub fn is_attached(&self) -> bool {
        self.look().is_ok()
    }

    /// Whether writes can succeed: the node is writable and this entry may write.
    #[doc(alias = "blk_is_writable")]
    pub fn is_writable(&self) -> bool {
        self.perm().contains(Perm::WRITE) && self.look().is_ok_and(|node| !node.is_read_only())
    }

    /// Requests of `kind` so far.
    #[doc(alias = "blk_get_stats")]
    pub fn count(&self, kind: RequestKind) -> RequestCount {
        let sum = |of: fn(&StatsShard, usize) -> &AtomicU64| {
            self.0.stats.iter().map(|shard| of(shard, kind as usize).load(Ordering::Relaxed)).sum()
        };
        RequestCount {
            requests: sum(|shard, kind| &shard.requests[kind]),
            bytes: sum(|shard, kind| &shard.bytes[kind]),
            failed: sum(|shard, kind| &shard.failed[kind]),
        }
    }

    /// The node, for a look that no drain holds back.
    fn look(&self) -> IoResult<Pin<NodeBody>> {
        let root = self.0.enter(GateState::CLOSED).map_err(refused)?;
        root.edge.follow(&root, Way::Slow)
    }

    /// Read into `buf` from `offset` bytes.
    ///
    /// # Errors
    /// [`IoError::OUT_OF_BOUNDS`], [`IoError::NO_MEDIUM`], or the driver's error. The buffer comes back in any case, but
    /// [`IoError::CANCELLED`] when the home thread ended first, and the buffer with it.
    #[doc(alias = "blk_co_preadv")]
    #[doc(alias = "blk_co_pread")]
    #[doc(alias = "blk_aio_preadv")]
    #[doc(alias = "blk_pread")]
    #[doc(alias = "bdrv_co_preadv")]
    pub async fn read(&self, offset: u64, buf: IoBuf) -> (IoResult<()>, Option<IoBuf>) {
        let done = self.request(Request::read(offset, buf)).await;
        (done.result, done.buf)
    }

    /// Write `buf` at `offset` bytes.
    ///
    /// # Errors
    /// As [`Root::read`], and [`IoError::NOT_PERMITTED`] or [`IoError::READ_ONLY`].
    #[doc(alias = "blk_co_pwritev")]
    #[doc(alias = "blk_co_pwritev_part")]
    #[doc(alias = "blk_co_pwrite")]
    #[doc(alias = "blk_aio_pwritev")]
    #[doc(alias = "blk_pwrite")]
    #[doc(alias = "bdrv_co_pwritev")]
    #[doc(alias = "blk_pwrite_compressed")]
    pub async fn write(&self, offset: u64, buf: IoBuf, flags: RequestFlags) -> (IoResult<()>, Option<IoBuf>) {
        let done = self.request(Request::write(offset, buf, flags)).await;
        (done.result, done.buf)
    }

    /// Carry out several writes that do not overlap: each of these buffers to its offset in bytes. For small ones to a buffered file that is
    /// many times faster than as many requests.
    ///
    /// # Errors
    /// As [`Root::write`], with the place of the first write that failed; those behind it may have been carried out or not.
    pub async fn write_many(&self, writes: Vec<(u64, IoBuf)>, flags: RequestFlags) -> Result<(), (usize, IoError)> {
        let root = self.clone();
        let run = self.home().run(async move { write_many::write_many(&root, writes, flags).await });
        run.await.unwrap_or(Err((0, IoError::CANCELLED)))
    }

    /// Make `len` bytes at `offset` read as zeroes.
    ///
    /// # Errors
    /// As [`Root::write`].
    #[doc(alias = "blk_co_pwrite_zeroes")]
    #[doc(alias = "blk_aio_pwrite_zeroes")]
    #[doc(alias = "blk_pwrite_zeroes")]
    pub async fn zero(&self, offset: u64, len: u64, flags: RequestFlags) -> IoResult<()> {
        self.request(Request::zero(offset, len, flags)).await.result
    }

    /// Make all of the node read as zeroes. What is known to do so is left alone.
    ///
    /// # Errors
    /// As [`Root::write`]. A part of it may have been zeroed then.
    #[doc(alias = "bdrv_make_zero")]
    #[doc(alias = "blk_make_zero")]
    pub async fn make_zero(&self, flags: RequestFlags) -> IoResult<()> {
        let (mut at, len) = (0, self.refresh_length().await?);
        while at < len {
            let extent = self.chain_status(at, (len - at).min(MAKE_ZERO_MAX)).await?.extent;
            if !extent.is_zero() {
                self.zero(at, extent.len, flags).await?;
            }
            at += extent.len;
        }
        Ok(())
    }

    /// The `len` bytes at `offset` are no longer needed.
    ///
    /// # Errors
    /// As [`Root::write`].
    #[doc(alias = "blk_co_pdiscard")]
    #[doc(alias = "blk_aio_pdiscard")]
    #[doc(alias = "blk_pdiscard")]
    pub async fn discard(&self, offset: u64, len: u64) -> IoResult<()> {
        self.request(Request::discard(offset, len)).await.result
    }

    /// Bring everything that was acknowledged to stable storage.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when no node is attached, or the driver's error.
    #[doc(alias = "blk_co_flush")]
    #[doc(alias = "blk_aio_flush")]
    #[doc(alias = "blk_flush")]
    #[doc(alias = "bdrv_co_flush")]
    pub async fn flush(&self) -> IoResult<()> {
        self.request(Request::flush()).await.result
    }

    /// The block status of `len` bytes at `offset`: see [`Driver::block_status`](crate::Driver::block_status).
    ///
    /// # Errors
    /// As [`Root::read`].
    #[doc(alias = "bdrv_is_allocated")]
    pub async fn block_status(&self, offset: u64, len: u64) -> IoResult<StatusExtent> {
        let range = GuestRange::new(offset, len).map_err(|_| IoError::OUT_OF_BOUNDS)?;
        let ask = move |req: Req| async move {
            pipeline::check_entry(&req, range).await?;
            status::block_status(&req, range).await
        };
        self.at_home(ask).await
    }

    /// The same for what follows as well: see [`Driver::block_statuses`](crate::Driver::block_statuses).
    ///
    /// # Errors
    /// As [`Root::read`].
    pub async fn block_statuses(&self, offset: u64, len: u64, max: usize) -> IoResult<Vec<StatusExtent>> {
        let range = GuestRange::new(offset, len).map_err(|_| IoError::OUT_OF_BOUNDS)?;
        let ask = move |req: Req| async move {
            pipeline::check_entry(&req, range).await?;
            status::block_statuses(&req, range, max).await
        };
        self.at_home(ask).await
    }

    /// What the node and the backing files below it say of `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub async fn chain_status(&self, offset: u64, len: u64) -> IoResult<ChainStatus> {
        let range = GuestRange::new(offset, len).map_err(|_| IoError::OUT_OF_BOUNDS)?;
        let ask = move |req: Req| async move {
            pipeline::check_entry(&req, range).await?;
            status::chain_status(&req, range).await
        };
        self.at_home(ask).await
    }

    /// Copy `len` bytes at `offset` to `to_offset` of `to` by the host, without their passing through this process.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where that cannot be done: copy by reading and writing then. Otherwise as [`Root::write`], and
    /// part of it may have been copied.
    #[doc(alias = "blk_co_copy_range")]
    #[doc(alias = "bdrv_co_copy_range")]
    #[doc(alias = "bdrv_co_copy_range_from")]
    #[doc(alias = "bdrv_co_copy_range_to")]
    pub async fn copy_range(&self, offset: u64, to: &Self, to_offset: u64, len: u64) -> IoResult<()> {
        let range = |offset| GuestRange::new(offset, len).map_err(|_| IoError::OUT_OF_BOUNDS);
        let (from_range, to_range) = (range(offset)?, range(to_offset)?);
        let (from, to) = (self.clone(), to.clone());
        let run = self.home().run(async move { copy_range::copy_range((&from, from_range), (&to, to_range)).await });
        run.await.unwrap_or(Err(IoError::CANCELLED))
    }

    pub(crate) fn gate(&self) -> &Gated<RootBody> {
        &self.0
    }

    /// Enter, once no drain holds that back; or be refused, where that is what the root does.
    pub(crate) async fn enter(&self) -> IoResult<Pin<RootBody>> {
        if !self.0.refuses.load(Ordering::Relaxed) {
            return self.0.enter_when_open().await.map_err(refused);
        }
        self.0.enter(GateState::QUIESCED.union(GateState::CLOSED)).map_err(|why| match why {
            Refused::State(state) if !state.contains(GateState::CLOSED) => IoError::BUSY,
            why => refused(why),
        })
    }

    /// Change the node's length to `len` bytes. The resize permission must have been taken before, by the graph's owner.
    ///
    /// # Errors
    /// [`IoError::NOT_PERMITTED`] without that permission, or the driver's error.
    #[doc(alias = "blk_truncate")]
    pub async fn truncate(&self, len: u64, preallocation: Preallocation) -> IoResult<()> {
        if !self.perm().contains(Perm::RESIZE) {
            return Err(IoError::NOT_PERMITTED);
        }
        self.at_home(move |req| async move { pipeline::truncate(&req, len, preallocation).await }).await
    }

    /// Make the node longer, if it has less than `len` bytes, with zeroes behind what it had.
    ///
    /// # Errors
    /// As [`Root::truncate`]. The node may then be longer than it was.
    #[doc(alias = "bdrv_has_zero_init_1")]
    pub async fn grow_zeroed(&self, len: u64) -> IoResult<()> {
        let old = self.refresh_length().await?;
        if old >= len {
            return Ok(());
        }
        self.truncate(len, Preallocation::Off).await?;
        let is_zero = self.at_home(|req| async move { Ok(req.node.engine()?.has_zero_init(&req)) }).await?;
        if is_zero { Ok(()) } else { self.zero(old, len - old, RequestFlags::empty()).await }
    }

    /// Ask the driver for the length in bytes anew.
    ///
    /// # Errors
    /// As [`Root::read`].
    pub async fn refresh_length(&self) -> IoResult<u64> {
        self.at_home(move |req| async move { pipeline::refresh_length(&req).await }).await
    }

    /// Store `buf` at byte `offset` of a machine's state, which the node keeps beside its disk until a snapshot takes it.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where it keeps none; otherwise as [`Root::write`].
    #[doc(alias = "blk_save_vmstate")]
    #[doc(alias = "bdrv_save_vmstate")]
    #[doc(alias = "bdrv_writev_vmstate")]
    pub async fn save_vmstate(&self, offset: u64, buf: IoBuf) -> IoResult<()> {
        self.0.edge.writable(RequestFlags::empty())?;
        self.at_home(move |req| async move { pipeline::save_vmstate(&req, offset, &buf).await }).await
    }

    /// Fill `buf` from byte `offset` of the machine's state, and give it back. What was not stored reads as zeroes.
    ///
    /// # Errors
    /// As [`Root::save_vmstate`].
    #[doc(alias = "blk_load_vmstate")]
    #[doc(alias = "bdrv_load_vmstate")]
    #[doc(alias = "bdrv_readv_vmstate")]
    pub async fn load_vmstate(&self, offset: u64, buf: IoBuf) -> IoResult<IoBuf> {
        let load = move |req: Req| async move {
            req.node.engine()?.load_vmstate(&req, offset, &buf).await?;
            Ok(buf)
        };
        self.at_home(load).await
    }

    /// In what pieces the host's block device works that the disk is.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where it is none, [`IoError::NO_MEDIUM`], [`IoError::CLOSED`], or what the host answered.
    #[doc(alias = "blk_probe_blocksizes")]
    pub async fn probe_block_sizes(&self) -> IoResult<DeviceBlocks> {
        self.at_home(|req| async move { req.node.engine()?.probe_block_sizes(&req).await }).await
    }

    /// How the host counts the disk in heads, sectors and cylinders.
    ///
    /// # Errors
    /// As [`Root::probe_block_sizes`].
    #[doc(alias = "blk_probe_geometry")]
    pub async fn probe_geometry(&self) -> IoResult<DiskGeometry> {
        self.at_home(|req| async move { req.node.engine()?.probe_geometry(&req).await }).await
    }

    /// Pass an ioctl to the device behind the node.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where there is none, or the device's error.
    #[doc(alias = "blk_ioctl")]
    #[doc(alias = "blk_aio_ioctl")]
    pub async fn ioctl(&self, number: u64, argument: IoBuf) -> IoResult<()> {
        self.at_home(move |req| async move { pipeline::ioctl(&req, number, &argument).await }).await
    }

    /// Carry out one request.
    pub async fn request(&self, request: Request) -> Done {
        let receive = self.channel(request);
        receive.await.unwrap_or(Done { result: Err(IoError::CANCELLED), buf: None })
    }

    /// Start `request`; the result comes through the channel.
    pub(crate) fn channel(&self, request: Request) -> oneshot::Receiver<Done> {
        let (send, receive) = oneshot::channel();
        let slow = match IoContext::current() {
            Some(context) => self.start(&context, request, Target::Channel(send)),
            // The attempt is made there, on the home thread's ring.
            None => Some((request, Target::Channel(send))),
        };
        if let Some((request, Target::Channel(send))) = slow {
            self.send_home(Sent { request, answer: send });
        }
        receive
    }

    /// Start `request` the fast way and deliver it to `target`, or give both back for the slow way.
    #[inline]
    pub(crate) fn start(&self, context: &IoContext, request: Request, target: Target) -> Option<(Request, Target)> {
        let Some(access) = fast_access(&request) else { return Some((request, target)) };
        match self.0.enter(GateState::QUIESCED.union(GateState::CLOSED)) {
            Ok(root) => start_in(root, access, context, request, target),
            Err(_) => Some((request, target)),
        }
    }
}

/// How a request that may take the fast way wants its nodes.
#[inline]
fn fast_access(request: &Request) -> Option<Access> {
    match request.kind {
        RequestKind::Read => Some(Access::Read),
        RequestKind::Write => Access::write(request.flags),
        _ => None,
    }
}

/// As [`Root::start`], of who has entered: `root` is his token, and is the request's from here on.
#[inline]
fn start_in(
    root: Pin<RootBody>,
    access: Access,
    context: &IoContext,
    mut request: Request,
    target: Target,
) -> Option<(Request, Target)> {
    let (Ok(node), Ok(range)) = (root.edge.follow(&root, Way::Fast), GuestRange::new(request.offset, request.len))
    else {
        return Some((request, target));
    };
    if access.is_write() && root.edge.writable(request.flags).is_err() {
        return Some((request, target));
    }
    let mut path = Path::new();
    path.push(node);
    let Route { leaf, offset, recode } = pipeline::resolve(access, &mut path, range, Some(context));
    if leaf == Leaf::Slow {
        return Some((request, target));
    }
    let kind = request.kind;
    if leaf == Leaf::File {
        let buf = match request.buf.take() {
            Some(buf) => buf,
            None => return Some((request, target)),
        };
        let op = match access {
            Access::Read => FileOp::read(offset.0, buf),
            Access::Write | Access::WriteFua => FileOp::write(offset.0, buf, access == Access::WriteFua),
        };
        match pipeline::aim(context, &path, op, recode) {
            Aimed::Done(op, result) => over(context, root, path, (kind, op.len), target, Done { result, buf: op.buf }),
            Aimed::At(op, pool) => drop(context.start(op, Hold::Root(kind, root, path), pool, target)),
            Aimed::Gone(op) => {
                request.buf = op.buf;
                return Some((request, target));
            }
        }
        return None;
    }
    let Some(buf) = request.buf.take() else { return Some((request, target)) };
    let result = pipeline::serve_now(leaf, &path, offset, access, &buf);
    over(context, root, path, (kind, request.len), target, Done { result, buf: Some(buf) });
    None
}

impl Pin<RootBody> {
    /// Start `request` the fast way, as one of who has this pin, or give both back.
    pub(crate) fn start(&self, context: &IoContext, request: Request, target: Target) -> Option<(Request, Target)> {
        match fast_access(&request) {
            Some(access) => start_in(self.again(), access, context, request, target),
            None => Some((request, target)),
        }
    }

    /// Carry out `request` the slow way, to its end, whatever drains begin meanwhile. To be awaited on an I/O thread.
    pub(crate) async fn run(&self, request: Request) -> Done {
        let result = dispatch(self, &request).await;
        self.account(request.kind, request.len, result);
        Done { result, buf: request.buf }
    }
}

/// A request on its way to the home thread.
pub(crate) struct Sent<A> {
    pub(crate) request: Request,
    pub(crate) answer: A,
}

/// Where the answer to a request goes. Dropped without one, it says that the request was lost.
pub(crate) trait Answer: Send + 'static {
    /// Start the request the fast way, if what comes of it is to come here; or give both back.
    fn start(self, _pin: &Pin<RootBody>, request: Request) -> Option<(Request, Self)>
    where
        Self: Sized,
    {
        Some((request, self))
    }

    fn give(self, done: Done);
}

impl Answer for oneshot::Sender<Done> {
    fn start(self, pin: &Pin<RootBody>, request: Request) -> Option<(Request, Self)> {
        let Some(context) = IoContext::current() else { return Some((request, self)) };
        match pin.start(&context, request, Target::Channel(self)) {
            Some((request, Target::Channel(answer))) => Some((request, answer)),
            _ => None,
        }
    }

    fn give(self, done: Done) {
        drop(self.send(done));
    }
}

impl<A: Answer> Errand for Sent<A> {
    async fn carry_out(here: Homed<Self>) {
        let Some((Self { request, answer }, entered)) = here.enter().await else { return };
        let entered = match entered {
            Ok(entered) => entered,
            Err(error) => return answer.give(Done { result: Err(error), buf: request.into_buf() }),
        };
        let Some((request, answer)) = answer.start(entered.pin(), request) else { return };
        let done = entered.pin().run(request).await;
        // Who has his answer finds nothing in flight; and no thread ends between the two.
        drop(entered);
        answer.give(done);
    }
}

/// Work with a token on the node, on its way to the home thread.
struct Ask<T, F, W> {
    work: W,
    answer: oneshot::Sender<IoResult<T>>,
    makes: PhantomData<fn() -> F>,
}

impl<T, F, W> Errand for Ask<T, F, W>
where
    T: Send + 'static,
    F: Future<Output = IoResult<T>> + Send + 'static,
    W: FnOnce(Req) -> F + Send + 'static,
{
    async fn carry_out(here: Homed<Self>) {
        let Some((ask, entered)) = here.enter().await else { return };
        let work = async move {
            let entered = entered?;
            let node = entered.pin().edge.follow(entered.pin(), Way::Slow)?;
            (ask.work)(Req::new(node)).await
        };
        // Who has his answer finds nothing in flight; and no thread ends between the two.
        let answer = work.await;
        drop(ask.answer.send(answer));
    }
}

impl Root {
    /// Run `work` with a token on the node, on the home thread, once no drain holds it back.
    fn at_home<T, F, W>(&self, work: W) -> impl Future<Output = IoResult<T>> + Send + use<T, F, W>
    where
        T: Send + 'static,
        F: Future<Output = IoResult<T>> + Send + 'static,
        W: FnOnce(Req) -> F + Send + 'static,
    {
        let (answer, receive) = oneshot::channel();
        self.send_home(Ask { work, answer, makes: PhantomData });
        async move { receive.await.unwrap_or(Err(IoError::CANCELLED)) }
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({})", self.0.name)
    }
}

pub(crate) fn refused(why: Refused) -> IoError {
    match why {
        Refused::State(_) => IoError::CLOSED,
        Refused::Full => IoError::BUSY,
    }
}

/// A request of so many bytes is over at once: count it, let go of its path, deliver it.
#[inline]
fn over(
    context: &IoContext,
    root: Pin<RootBody>,
    path: Path,
    (kind, len): (RequestKind, u64),
    target: Target,
    done: Done,
) {
    root.account(kind, len, done.result);
    if kind == RequestKind::Write {
        pipeline::wrote(&path);
    }
    // The root last: a drain looks from the top down, and what it has seen idle must stay so.
    drop((path, root));
    deliver(context, target, done);
}

pub(crate) fn deliver(context: &IoContext, target: Target, done: Done) {
    match target {
        Target::Queue(tag) => context.ready().borrow_mut().push_back(crate::request::Completed { tag, done }),
        // The receiver may have lost interest; the request was carried out all the same.
        Target::Channel(send) => drop(send.send(done)),
        Target::Future(_) | Target::Nobody => {}
    }
}

async fn dispatch(root: &Pin<RootBody>, request: &Request) -> IoResult<()> {
    let req = Req::new(root.edge.follow(root, Way::Slow)?);
    if request.kind == RequestKind::Flush {
        return if req.is_read_only() { Ok(()) } else { flush::flush(&req).await };
    }
    let range = GuestRange::new(request.offset, request.len).map_err(|_| IoError::OUT_OF_BOUNDS)?;
    pipeline::check_entry(&req, range).await?;
    if request.is_write() {
        root.edge.writable(request.flags)?;
    }
    match (request.kind, &request.buf) {
        (RequestKind::Read, Some(buf)) => pipeline::read(req, range, buf, request.flags).await,
        (RequestKind::Write, Some(buf)) => pipeline::write(req, range, buf, request.flags, false).await,
        (RequestKind::Zero, _) => pipeline::zero(req, range, request.flags, false).await,
        (RequestKind::Discard, _) => pipeline::discard(req, range).await,
        _ => Err(IoError::BUG),
    }
}

/// The graph's half of a root entry. Not `Clone`, bound to its thread, and out of reach from a [`Root`].
pub struct RootControl {
    gate: GateControl<RootBody>,
    edge: EdgeWriter,
}

impl RootControl {
    /// An entry called `name` whose slow requests run on `home`, leading to `child` with `perm`.
    #[doc(alias = "bdrv_root_attach_child")]
    pub fn new(name: &str, home: &IoThreadHandle, perm: PermPair, child: Option<&NodeTarget>) -> Self {
        let mut writer = None;
        let gate = Gated::new_with(|id| {
            let (edge_writer, edge) = edge::edge(id, None, ChildRole::DATA | ChildRole::PRIMARY, perm, child);
            writer = Some(edge_writer);
            RootBody {
                name: name.into(),
                edge,
                home: Mutex::new(home.clone()),
                refuses: AtomicBool::new(false),
                stats: std::array::from_fn(|_| CachePadded::default()),
            }
        });
        let mut edge = writer.expect("the closure ran");
        edge.belongs_to(ParentGate::Root(gate.clone()));
        Self { gate: GateControl::new(gate), edge }
    }

    /// The half for device threads.
    pub fn root(&self) -> Root {
        Root(self.gate.gate.clone())
    }

    /// The edge to the node.
    pub fn edge(&self) -> &EdgeWriter {
        &self.edge
    }

    /// Let the entry lead to `child`, or nowhere. `None` unless the entry is quiesced and idle.
    pub fn repoint(&mut self, child: Option<&NodeTarget>) -> Option<()> {
        let proof = self.gate.proof()?;
        self.edge.repoint(child, &proof);
        Some(())
    }

    /// Set what requests through this entry may do.
    pub fn set_perm(&mut self, perm: PermPair) {
        self.edge.set_perm(perm);
    }

    /// Run slow requests on `home` from now on.
    #[doc(alias = "blk_set_aio_context")]
    pub fn set_home(&self, home: &IoThreadHandle) {
        *self.gate.gate.home.lock().unwrap_or_else(PoisonError::into_inner) = home.clone();
    }

    /// Answer requests that come while the root is drained with [`IoError::BUSY`] from now on, or hold them back until the drain is over, as it is at first. Those that are
    /// held back already stay so.
    pub fn set_refusing(&self, refuses: bool) {
        self.gate.gate.refuses.store(refuses, Ordering::Relaxed);
    }

    /// See [`NodeControl::set_quiesced`](crate::NodeControl::set_quiesced).
    pub fn set_quiesced(&mut self, quiesced: bool) {
        self.gate.set_quiesced(quiesced);
    }

    /// Whether requests are held back.
    pub fn is_quiesced(&self) -> bool {
        self.gate.is_quiesced()
    }

    /// Whether no request is in flight at this moment: for good, if the entry is quiesced.
    pub fn is_idle(&self) -> bool {
        self.gate.is_idle()
    }

    /// Wait until no request is in flight. Borrows nothing.
    pub fn idle(&self) -> impl Future<Output = ()> + use<> {
        self.gate.idle()
    }

    /// See [`NodeControl::proof`](crate::NodeControl::proof).
    pub fn proof(&self) -> Option<Quiesced<'_>> {
        self.gate.proof()
    }

    /// From now on every request is answered [`IoError::CLOSED`].
    pub fn shut(&mut self) {
        self.gate.gate.set_state(GateState::CLOSED);
    }
}

impl fmt::Debug for RootControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootControl({}, {:?})", self.gate.gate.name, self.edge)
    }
}
