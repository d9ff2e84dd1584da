//! Nodes as I/O sees them, and the control half that the graph's owner keeps.
//!
//! An [`IoNode`] is a counted handle: engine, length, limits, gate. The [`NodeControl`] beside it is the only way to quiesce the node,
//! to give it edges, to install its engine and to enter it while it is quiesced. Parents, names in use and permissions of
//! others are the graph's own business and are not here.

use crate::driver::Driver;
use crate::edge::{self, Edge, EdgeWriter, ParentGate};
use crate::flush::{self, Flushing};
use crate::gate::{GateState, Gated, Pin, Refused};
use crate::pipeline;
use crate::status::StatusCache;
use crate::track::Tracker;
use block_common::{ChildRole, DetectZeroes, GuestRange, IoError, IoResult, Limits, PermPair};
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

const READ_ONLY: u8 = 1;
const UNMAP: u8 = 2;
const DETECT: u8 = 4;
const DETECT_UNMAP: u8 = 8;

/// How a node treats requests, beside what its driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeModes {
    /// Pass discards on, and let zero writes deallocate. Otherwise discards have no effect.
    pub unmap: bool,
    /// Turn writes of zeroes into zero writes.
    pub detect_zeroes: DetectZeroes,
}

impl Default for NodeModes {
    /// Discards are passed on, data is not looked at.
    fn default() -> Self {
        Self { unmap: true, detect_zeroes: DetectZeroes::Off }
    }
}

/// What a node is to its requests.
pub(crate) struct NodeBody {
    name: Box<str>,
    engine: OnceLock<Box<dyn Driver>>,
    /// Bytes, as last known.
    length: AtomicU64,
    /// Whoever wants to hear of another length has heard of one and not looked yet; or nobody wants to.
    length_told: AtomicBool,
    tell_length: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// Where the highest write ends that was begun here, in bytes.
    written_to: AtomicU64,
    modes: AtomicU8,
    // The limits that each request looks at, beside their whole.
    request_alignment: AtomicU32,
    read_alignment: AtomicU32,
    transfer_max: AtomicU32,
    limits: RwLock<Limits>,
    tracker: Tracker,
    flushing: Flushing,
    status_cache: StatusCache,
    observers: RwLock<Vec<Arc<dyn WriteObserver>>>,
}

/// In which way a node's content is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Data or zeroes are written.
    Write,
    /// Content is given up.
    Discard,
    /// The end moves over it.
    Resize,
}

/// Somebody who is told of each change of a node's content: a dirty bitmap, a threshold. Called on I/O threads, and not to wait.
#[doc(alias = "bdrv_set_dirty")]
pub trait WriteObserver: Send + Sync + 'static {
    /// `range` is about to be changed. It may end past the node's end, which moves then.
    fn before(&self, kind: ChangeKind, range: GuestRange);
    /// The change of `range` is over, well or not.
    fn after(&self, kind: ChangeKind, range: GuestRange);
    /// A change of the length is over, well or not: the node has `len` bytes. Nobody is at work past the smaller of the old length and the new
    /// one while this is told.
    fn resized(&self, _len: u64) {}
}

impl NodeBody {
    pub(crate) fn engine(&self) -> IoResult<&dyn Driver> {
        self.engine.get().map(|engine| &**engine).ok_or(IoError::CLOSED)
    }

    #[inline]
    pub(crate) fn length(&self) -> u64 {
        self.length.load(Ordering::Relaxed)
    }

    fn set_length(&self, len: u64) {
        if self.length.swap(len, Ordering::Relaxed) != len {
            self.has_new_length();
        }
    }

    /// Tell whoever wants to hear of it, once until he looks: see [`NodeControl::look_at_length`].
    fn has_new_length(&self) {
        // Both swaps are read-modify-writes: who clears the flag that was set here sees the length.
        if !self.length_told.swap(true, Ordering::AcqRel)
            && let Some(tell) = self.tell_length.get()
        {
            tell();
        }
    }

    /// The length was `before` when the engine was asked for it, and it answered `len`. `false` when it was changed meanwhile:
    /// the answer may be the older one.
    pub(crate) fn update_length(&self, before: u64, len: u64) -> bool {
        let is_updated = self.length.compare_exchange(before, len, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_updated && before != len {
            self.has_new_length();
        }
        is_updated
    }

    /// A write ended at `end` bytes.
    pub(crate) fn reached(&self, end: u64) {
        if self.length.fetch_max(end, Ordering::Relaxed) < end {
            self.has_new_length();
        }
    }

    /// A write that ends at `end` bytes is begun, whatever becomes of it. It costs a look, but for those that reach higher than all before.
    #[inline]
    pub(crate) fn writes_to(&self, end: u64) {
        if self.written_to.load(Ordering::Relaxed) < end {
            self.written_to.fetch_max(end, Ordering::Relaxed);
        }
    }

    #[inline]
    pub(crate) fn request_alignment(&self) -> u32 {
        self.request_alignment.load(Ordering::Relaxed)
    }

    /// The same for reads: not more.
    #[inline]
    pub(crate) fn read_alignment(&self) -> u32 {
        self.read_alignment.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn transfer_max(&self) -> u32 {
        self.transfer_max.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn is_read_only(&self) -> bool {
        self.modes.load(Ordering::Relaxed) & READ_ONLY != 0
    }

    /// Whether writes need a look at the node's modes.
    #[inline]
    pub(crate) fn writes_slowly(&self) -> bool {
        self.modes.load(Ordering::Relaxed) & (READ_ONLY | DETECT | DETECT_UNMAP) != 0
    }

    pub(crate) fn modes(&self) -> NodeModes {
        let modes = self.modes.load(Ordering::Relaxed);
        let detect_zeroes = match modes & (DETECT | DETECT_UNMAP) {
            0 => DetectZeroes::Off,
            DETECT => DetectZeroes::On,
            _ => DetectZeroes::Unmap,
        };
        NodeModes { unmap: modes & UNMAP != 0, detect_zeroes }
    }

    #[inline]
    pub(crate) fn tracker(&self) -> &Tracker {
        &self.tracker
    }

    #[inline]
    pub(crate) fn flushing(&self) -> &Flushing {
        &self.flushing
    }

    pub(crate) fn status_cache(&self) -> &StatusCache {
        &self.status_cache
    }

    pub(crate) fn observers(&self, tell: impl Fn(&dyn WriteObserver)) {
        let observers = self.observers.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        observers.iter().for_each(|observer| tell(&**observer));
    }

    pub(crate) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn set_limits(&self, limits: Limits) {
        self.request_alignment.store(limits.request_alignment.max(1), Ordering::Relaxed);
        self.read_alignment.store(limits.reads().max(1), Ordering::Relaxed);
        self.transfer_max.store(limits.transfer_max, Ordering::Relaxed);
        *self.limits.write().unwrap_or_else(std::sync::PoisonError::into_inner) = limits;
    }
}

impl fmt::Debug for NodeBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let driver = self.engine.get().map_or("no driver", |engine| engine.format_name());
        write!(f, "{} ({driver})", self.name)
    }
}

/// A node as I/O sees it. Holding one keeps its memory, not its life: a closed node answers [`IoError::CLOSED`].
#[derive(Clone)]
pub struct IoNode(pub(crate) Gated<NodeBody>);

impl IoNode {
    /// The node's name.
    #[doc(alias = "bdrv_get_node_name")]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The driver's name, or `None` before the engine is installed.
    pub fn driver(&self) -> Option<&'static str> {
        self.0.engine.get().map(|engine| engine.format_name())
    }

    /// The length in bytes, as last known.
    #[doc(alias = "bdrv_nb_sectors")]
    #[doc(alias = "bdrv_get_geometry")]
    pub fn length(&self) -> u64 {
        self.0.length()
    }

    /// Where the highest write ends that the node was asked for since it was opened, in bytes of whole blocks: of data or of zeroes, and whether it succeeded or not.
    /// A piece of a host file that a thread has to itself ([`on_host_files`](crate::on_host_files), [`Root::copy_range`](crate::Root::copy_range)) counts up to its end.
    pub fn written_to(&self) -> u64 {
        self.0.written_to.load(Ordering::Relaxed)
    }

    /// The limits of one request.
    pub fn limits(&self) -> Limits {
        self.0.limits()
    }

    /// Whether writes are refused.
    #[doc(alias = "bdrv_is_read_only")]
    pub fn is_read_only(&self) -> bool {
        self.0.is_read_only()
    }

    /// The gate's state.
    pub fn state(&self) -> GateState {
        self.0.state()
    }

    /// How many requests hold the node, as of no particular moment.
    pub fn in_flight(&self) -> u64 {
        self.0.in_flight()
    }

    /// Whether both are the same node.
    pub fn same(&self, other: &Self) -> bool {
        self.0.same(&other.0)
    }

    /// A number that no other node of this process has or had.
    pub fn id(&self) -> u64 {
        self.0.id()
    }
}

impl fmt::Debug for IoNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.0)
    }
}

/// A node as something to lead to: what its owner gives to whoever may make an entry or an edge to it, which seeing the node
/// ([`IoNode`]) is not enough for. It stays on the owner's thread.
#[derive(Clone)]
pub struct NodeTarget {
    node: IoNode,
    here: PhantomData<Rc<()>>,
}

impl NodeTarget {
    /// For an owner that keeps its nodes otherwise.
    pub(crate) fn to(node: &IoNode) -> Self {
        Self { node: node.clone(), here: PhantomData }
    }

    /// The node as I/O sees it.
    pub fn node(&self) -> &IoNode {
        &self.node
    }
}

impl fmt::Debug for NodeTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.node.fmt(f)
    }
}

/// The token of a request on a node: counted while it exists. Only the core makes one; engines get it by reference and
/// call their children with it.
pub struct Req {
    pub(crate) node: Pin<NodeBody>,
    _control: Option<Arc<()>>,
}

impl Req {
    pub(crate) fn new(node: Pin<NodeBody>) -> Self {
        Self { node, _control: None }
    }

    /// The name of the node that the request is on.
    pub fn node_name(&self) -> &str {
        &self.node.name
    }

    /// The node's length in bytes, as last known.
    pub fn length(&self) -> u64 {
        self.node.length()
    }

    /// Whether the node was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.node.is_read_only()
    }

    /// The node's current epoch. What the engine made unreachable *before* this call may be reused once
    /// [`Req::epoch_passed`] says so: until then, requests from before may be under way to it.
    pub fn epoch(&self) -> u64 {
        self.node.epoch()
    }

    /// Whether every request from before [`Req::epoch`] returned `epoch` is over. Never waits. The asking request may itself
    /// be one of those, so "no" means "use something else".
    pub fn epoch_passed(&self, epoch: u64) -> bool {
        self.node.epoch_passed(epoch)
    }

    /// Another token on the same node, for a part of the request that runs beside it.
    pub fn again(&self) -> Self {
        Self { node: self.node.again(), _control: self._control.clone() }
    }
}

impl fmt::Debug for Req {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Req({:?})", &*self.node)
    }
}

/// Proof that a gate is quiesced and idle, for as long as it is borrowed from its control.
#[derive(Debug)]
pub struct Quiesced<'a> {
    id: u64,
    control: PhantomData<&'a ()>,
}

impl Quiesced<'_> {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn covers(&self, id: u64) -> bool {
        self.id == id
    }
}

/// The writer's half of a gate: quiescing, and the proof of it. Shared by nodes and roots.
pub(crate) struct GateControl<T> {
    pub(crate) gate: Gated<T>,
    /// Counts the times the gate was quiesced; `idle` holds the one in which it was seen idle.
    generation: Rc<Cell<u64>>,
    idle: Rc<Cell<u64>>,
    quiesced: bool,
    /// Cloned into the tokens that enter while quiesced.
    entered: Arc<()>,
}

impl<T> GateControl<T> {
    pub(crate) fn new(gate: Gated<T>) -> Self {
        let (generation, idle) = (Rc::new(Cell::new(1)), Rc::new(Cell::new(0)));
        Self { gate, generation, idle, quiesced: false, entered: Arc::new(()) }
    }

    pub(crate) fn is_quiesced(&self) -> bool {
        self.quiesced
    }

    pub(crate) fn set_quiesced(&mut self, quiesced: bool) {
        if self.quiesced == quiesced {
            return;
        }
        self.quiesced = quiesced;
        self.generation.set(self.generation.get() + 1);
        if quiesced {
            self.gate.set_state(GateState::QUIESCED);
        } else {
            self.gate.clear_state(GateState::QUIESCED);
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.gate.is_idle()
    }

    pub(crate) fn idle(&self) -> impl Future<Output = ()> + use<T> {
        let (gate, generation, idle) = (self.gate.clone(), self.generation.clone(), self.idle.clone());
        let (asked, quiesced) = (generation.get(), self.quiesced);
        async move {
            gate.idle().await;
            if quiesced && generation.get() == asked {
                idle.set(asked);
            }
        }
    }

    pub(crate) fn proof(&self) -> Option<Quiesced<'_>> {
        let idle = self.idle.get() == self.generation.get() && Arc::strong_count(&self.entered) == 1;
        // Pairs with the release of the last token: what its request did is visible to whoever holds the proof.
        std::sync::atomic::fence(Ordering::Acquire);
        (self.quiesced && idle).then(|| Quiesced { id: self.gate.id(), control: PhantomData })
    }
}

impl<T> Drop for GateControl<T> {
    /// A gate without its owner lets requests through, to be answered "closed", rather than hold them for ever.
    fn drop(&mut self) {
        self.gate.set_state(GateState::CLOSED);
        self.gate.clear_state(GateState::QUIESCED);
    }
}

/// The graph's half of a node. Not `Clone`, bound to its thread, and out of reach from an [`IoNode`].
pub struct NodeControl {
    gate: GateControl<NodeBody>,
    hurried: bool,
}

impl NodeControl {
    /// A node without an engine, to be opened: it has a gate and a name and answers [`IoError::CLOSED`].
    /// Dropping it undoes everything.
    pub fn shell(name: &str) -> Self {
        let gate = Gated::new_with(|_| NodeBody {
            name: name.into(),
            engine: OnceLock::new(),
            length: AtomicU64::new(0),
            length_told: AtomicBool::new(true),
            tell_length: OnceLock::new(),
            written_to: AtomicU64::new(0),
            modes: AtomicU8::new(READ_ONLY | UNMAP),
            request_alignment: AtomicU32::new(1),
            read_alignment: AtomicU32::new(1),
            transfer_max: AtomicU32::new(0),
            limits: RwLock::new(Limits::NONE),
            tracker: Tracker::default(),
            flushing: Flushing::default(),
            status_cache: StatusCache::default(),
            observers: RwLock::default(),
        });
        Self { gate: GateControl::new(gate), hurried: false }
    }

    /// The node.
    pub fn node(&self) -> IoNode {
        IoNode(self.gate.gate.clone())
    }

    /// The node, to lead entries and edges to.
    pub fn target(&self) -> NodeTarget {
        NodeTarget::to(&self.node())
    }

    /// Make an edge below this node. It leads to `child` from the start.
    #[doc(alias = "bdrv_attach_child")]
    pub fn edge(&self, role: ChildRole, perm: PermPair, child: Option<&NodeTarget>) -> (EdgeWriter, Edge) {
        let gate = ParentGate::Node(self.gate.gate.clone());
        edge::edge(self.gate.gate.id(), Some(gate), role, perm, child)
    }

    /// Install the engine, once, with the length in bytes that it has now.
    ///
    /// # Panics
    /// When there is one already: that is the caller's bug.
    pub fn install(&self, engine: Box<dyn Driver>, length: u64, read_only: bool) {
        let body = &*self.gate.gate;
        body.set_limits(engine.limits());
        body.set_length(length);
        self.set_read_only(read_only);
        assert!(body.engine.set(engine).is_ok(), "node {} has an engine already", body.name);
    }

    /// Enter the node from the main loop: counted, and never held back by a drain.
    ///
    /// # Errors
    /// [`IoError::CLOSED`] once the node is closed.
    pub fn enter(&self) -> IoResult<Req> {
        match self.gate.gate.enter_slowly(GateState::CLOSED) {
            Ok(node) => Ok(Req { node, _control: Some(self.gate.entered.clone()) }),
            Err(Refused::State(_)) => Err(IoError::CLOSED),
            Err(Refused::Full) => Err(IoError::BUSY),
        }
    }

    /// Hold back (or let in again) what comes from outside. Neither waits nor changes the graph (rule drain-2).
    #[doc(alias = "bdrv_do_drained_begin_quiesce")]
    pub fn set_quiesced(&mut self, quiesced: bool) {
        self.gate.set_quiesced(quiesced);
    }

    /// Whether requests from outside are held back.
    pub fn is_quiesced(&self) -> bool {
        self.gate.is_quiesced()
    }

    /// Let requests that wait in the engine for nothing but time go on at once (or not any more): a section waits for them (rule drain-5). Neither waits nor
    /// changes the graph (rule drain-2).
    pub fn set_hurried(&mut self, hurried: bool) {
        if std::mem::replace(&mut self.hurried, hurried) != hurried
            && let Ok(engine) = self.gate.gate.engine()
        {
            engine.hurry(hurried);
        }
    }

    /// Whether they are to go on at once.
    pub fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// Whether no request is on the node at this moment: for good, if the node is quiesced and so is everybody above.
    pub fn is_idle(&self) -> bool {
        self.gate.is_idle()
    }

    /// Wait until no request is on the node. Borrows nothing. Wait for the ancestors first, top down.
    #[doc(alias = "bdrv_drain_poll")]
    pub fn idle(&self) -> impl Future<Output = ()> + use<> {
        self.gate.idle()
    }

    /// The proof that the node is quiesced and was seen idle since, or `None`. While it is borrowed, nothing can open the gate.
    pub fn proof(&self) -> Option<Quiesced<'_>> {
        self.gate.proof()
    }

    /// Send requests the slow way (or not any more). What is in flight when it begins may still be on the fast path:
    /// [`NodeControl::settled`] tells when not.
    pub fn set_detour(&mut self, on: bool) {
        if on { self.gate.gate.set_state(GateState::DETOUR) } else { self.gate.gate.clear_state(GateState::DETOUR) }
    }

    /// Tell `observer` of every change of the content from now on, beside those who are told already. Changes that are under way may pass
    /// unseen: [`NodeControl::settled`] tells when they are over.
    pub fn observe(&mut self, observer: Arc<dyn WriteObserver>) {
        self.gate.gate.observers.write().unwrap_or_else(std::sync::PoisonError::into_inner).push(observer);
        self.gate.gate.set_state(GateState::TRACKED);
    }

    /// Tell `observer` no more.
    pub fn unobserve(&mut self, observer: &Arc<dyn WriteObserver>) {
        let is_last = {
            let mut observers = self.gate.gate.observers.write().unwrap_or_else(std::sync::PoisonError::into_inner);
            observers.retain(|other| !Arc::ptr_eq(other, observer));
            observers.is_empty()
        };
        if is_last {
            self.gate.gate.clear_state(GateState::TRACKED);
        }
    }

    /// Set the limits of one request.
    #[doc(alias = "bdrv_refresh_limits")]
    pub fn refresh_limits(&self) {
        let body = &*self.gate.gate;
        if let Ok(engine) = body.engine() {
            body.set_limits(engine.limits());
        }
    }

    /// Have the engine look at its children's limits again. To be awaited on an I/O thread, before [`NodeControl::refresh_limits`].
    ///
    /// # Errors
    /// The engine's error.
    pub async fn look_below(req: &Req) -> IoResult<()> {
        req.node.engine()?.refresh_limits(req).await
    }

    /// Have `tell` called, on whatever thread, when the node has another length than it had when its owner looked last: once, until he looks again. It must not wait. Only the first
    /// call for a node counts. Nothing is told before the owner has looked.
    pub fn on_new_length(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.gate.gate.tell_length.set(Box::new(tell));
    }

    /// The length in bytes. Of the next change whoever wants to hear of it is told: see [`NodeControl::on_new_length`].
    pub fn look_at_length(&self) -> u64 {
        self.gate.gate.length_told.swap(false, Ordering::AcqRel);
        self.gate.gate.length()
    }

    /// Remember the length in bytes: the owner knows that it is another one by now.
    pub fn set_length(&self, len: u64) {
        self.gate.gate.set_length(len);
    }

    /// Refuse writes, or allow them.
    pub fn set_read_only(&self, read_only: bool) {
        let modes = &self.gate.gate.modes;
        if read_only {
            modes.fetch_or(READ_ONLY, Ordering::Relaxed);
        } else {
            modes.fetch_and(!READ_ONLY, Ordering::Relaxed);
        }
    }

    /// Set how requests are treated.
    pub fn set_modes(&self, modes: NodeModes) {
        let detect = match modes.detect_zeroes {
            DetectZeroes::Off => 0,
            DetectZeroes::On => DETECT,
            DetectZeroes::Unmap => DETECT_UNMAP,
        };
        let bits = detect | if modes.unmap { UNMAP } else { 0 };
        let keep = self.gate.gate.modes.load(Ordering::Relaxed) & READ_ONLY;
        self.gate.gate.modes.store(keep | bits, Ordering::Relaxed);
    }

    /// Wait until every request that is on the node now is over, however many come meanwhile. Borrows nothing.
    pub fn settled(&self) -> impl Future<Output = ()> + use<> {
        let gate = self.gate.gate.clone();
        async move { gate.passed().await }
    }

    /// Ask the engine for its length, remember and return it, in bytes. To be awaited on an I/O thread.
    ///
    /// # Errors
    /// The engine's error.
    pub async fn refresh_length(req: &Req) -> IoResult<u64> {
        pipeline::refresh_length(req).await
    }

    /// Bring what was written to stable storage. To be awaited on an I/O thread.
    ///
    /// # Errors
    /// The engine's error.
    pub async fn flush(req: &Req) -> IoResult<()> {
        flush::flush(req).await
    }

    /// How many bytes of storage the host has given the node. To be awaited on an I/O thread.
    ///
    /// # Errors
    /// As [`Driver::allocated_size`].
    pub async fn allocated_size(req: &Req) -> IoResult<u64> {
        req.node.engine()?.allocated_size(req).await
    }

    /// Flush and close the engine. To be awaited on an I/O thread, with nothing else in flight.
    ///
    /// # Errors
    /// The first of the errors of flush and close; the engine is closed all the same.
    pub async fn close_engine(req: &Req) -> IoResult<()> {
        let Ok(engine) = req.node.engine() else { return Ok(()) };
        let flushed = if req.is_read_only() { Ok(()) } else { engine.flush(req).await };
        let closed = engine.close(req).await;
        flushed.and(closed)
    }

    /// From now on every request is answered [`IoError::CLOSED`].
    pub fn shut(&mut self) {
        self.gate.gate.set_state(GateState::CLOSED);
    }
}

impl fmt::Debug for NodeControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeControl({:?})", &*self.gate.gate)
    }
}
