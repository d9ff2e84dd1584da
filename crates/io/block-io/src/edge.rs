//! Edges: a parent's way to a child, made as two halves.
//!
//! The engine keeps the [`Edge`], which can only be followed, and only with a request on the parent in hand. The graph's
//! owner keeps the [`EdgeWriter`], which can repoint it and set its permissions, and only with the proof that the parent
//! is quiesced. An edge never hands out its node.
//!
//! Memory safety does not rest on that proof: a child that was repointed away from is kept until every pin on the parent from
//! before is gone (see `link`). The proof is about requests: none may run half on the old child and half on the new.

use crate::copy_up::{self, CopyUp};
use crate::driver::Clusters;
use crate::file::{DeviceBlocks, DiskGeometry};
use crate::gate::{GateState, Gated, Pin, Way};
use crate::link::{Epochs, Link};
use crate::node::{IoNode, NodeBody, NodeTarget, Quiesced, Req};
use crate::pipeline;
use crate::root::RootBody;
use crate::status::ChainStatus;
use crate::{flush, status};
use block_common::{
    ChildRole, DebugEvent, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Perm, PermPair,
    Preallocation, RequestFlags, StatusExtent,
};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct EdgeShared {
    role: ChildRole,
    /// Permissions in the low half, what is shared in the high half.
    perm: AtomicU32,
    link: Link<NodeBody>,
}

fn pack(perm: PermPair) -> u32 {
    u32::from(perm.perm.bits()) | u32::from(perm.shared.bits()) << 16
}

/// The parent whose pins protect an edge.
#[derive(Clone)]
pub(crate) enum ParentGate {
    Node(Gated<NodeBody>),
    Root(Gated<RootBody>),
}

impl Epochs for ParentGate {
    fn epoch(&self) -> u64 {
        match self {
            Self::Node(gate) => gate.epoch(),
            Self::Root(gate) => gate.epoch(),
        }
    }

    fn epoch_passed(&self, epoch: u64) -> bool {
        match self {
            Self::Node(gate) => gate.epoch_passed(epoch),
            Self::Root(gate) => gate.epoch_passed(epoch),
        }
    }
}

/// Make both halves of an edge below the parent with gate id `parent`.
pub(crate) fn edge(
    parent: u64,
    gate: Option<ParentGate>,
    role: ChildRole,
    perm: PermPair,
    child: Option<&NodeTarget>,
) -> (EdgeWriter, Edge) {
    let link = Link::new(parent, child.map(|child| &child.node().0));
    let shared = Arc::new(EdgeShared { role, perm: AtomicU32::new(pack(perm)), link });
    (EdgeWriter { shared: shared.clone(), gate }, Edge(shared))
}

/// The graph's half of an edge. Not `Clone`; no way leads to it from the engine's half.
pub struct EdgeWriter {
    shared: Arc<EdgeShared>,
    gate: Option<ParentGate>,
}

impl EdgeWriter {
    /// Say whose pins protect the edge, for a parent that did not exist yet when the edge was made.
    pub(crate) fn belongs_to(&mut self, gate: ParentGate) {
        self.gate = Some(gate);
    }

    /// Where the edge leads.
    pub fn child(&self) -> Option<IoNode> {
        self.shared.link.child().map(IoNode)
    }

    /// What the edge is for.
    pub fn role(&self) -> ChildRole {
        self.shared.role
    }

    /// Let the edge lead to `child`, or nowhere.
    ///
    /// # Panics
    /// When `proof` is not the proof of this edge's parent. Types cannot say which edge a guard covers.
    #[doc(alias = "bdrv_replace_child_bs")]
    #[doc(alias = "assert_bdrv_graph_writable")]
    pub fn repoint(&mut self, child: Option<&NodeTarget>, proof: &Quiesced<'_>) {
        let parent = self.shared.link.parent();
        assert!(proof.covers(parent), "repointing an edge of gate #{parent} with the proof of gate #{}", proof.id());
        self.shared.link.repoint(child.map(|child| &child.node().0), self.gate.as_ref());
        self.collect();
    }

    /// Let go of former children that no request can still reach. Repointing does it by itself when the parent is idle.
    pub fn collect(&mut self) {
        if let Some(gate) = &self.gate {
            self.shared.link.collect(gate);
        }
    }

    /// The permissions that requests through this edge have, and what it shares with others.
    #[doc(alias = "bdrv_child_try_set_perm")]
    pub fn set_perm(&mut self, perm: PermPair) {
        self.shared.perm.store(pack(perm), Ordering::Release);
    }

    /// See [`EdgeWriter::set_perm`].
    pub fn perm(&self) -> PermPair {
        self.shared.perm()
    }
}

impl fmt::Debug for EdgeWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EdgeWriter({:?}, {:?})", self.shared.role, self.child())
    }
}

impl EdgeShared {
    fn perm(&self) -> PermPair {
        let bits = self.perm.load(Ordering::Acquire);
        PermPair { perm: Perm::from_bits_truncate(bits as u8), shared: Perm::from_bits_truncate((bits >> 16) as u8) }
    }
}

/// The engine's half of an edge: requests go down it, and nothing else. Offsets are the child's own, in bytes.
pub struct Edge(Arc<EdgeShared>);

impl Edge {
    /// Whether a child is there.
    pub fn is_attached(&self) -> bool {
        self.0.link.is_attached()
    }

    /// What requests through this edge may do. May change whenever the parent is quiesced.
    pub fn perm(&self) -> Perm {
        self.0.perm().perm
    }

    /// Pin the child, for a request that holds `parent`.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, [`IoError::CLOSED`] when it was closed.
    #[inline]
    pub(crate) fn follow<P>(&self, parent: &Pin<P>, way: Way) -> IoResult<Pin<NodeBody>> {
        let child = self.0.link.follow(parent, way).map_err(|edge| {
            tracing::error!(edge, request = parent.id(), "an edge was used with another node's request");
            IoError::BUG
        })?;
        let child = child.ok_or(IoError::NO_MEDIUM)?;
        if child.seen().contains(GateState::CLOSED) { Err(IoError::CLOSED) } else { Ok(child) }
    }

    pub(crate) fn child(&self, req: &Req) -> IoResult<Req> {
        self.follow(&req.node, Way::Slow).map(Req::new)
    }

    /// The name of the child's node.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child.
    pub fn node_name(&self, req: &Req) -> IoResult<String> {
        Ok(self.child(req)?.node_name().into())
    }

    /// The child's length in bytes, as last known.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child.
    pub fn length(&self, req: &Req) -> IoResult<u64> {
        Ok(self.child(req)?.node.length())
    }

    /// The child's length in bytes, asked anew.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn refresh_length(&self, req: &Req) -> IoResult<u64> {
        pipeline::refresh_length(&self.child(req)?).await
    }

    /// The child's limits.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child.
    pub fn limits(&self, req: &Req) -> IoResult<block_common::Limits> {
        Ok(self.child(req)?.node.limits())
    }

    /// Fill `buf` from `offset` of the child.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, [`IoError::OUT_OF_BOUNDS`], or the child's error.
    #[doc(alias = "bdrv_pread")]
    #[doc(alias = "bdrv_co_pread")]
    pub async fn read(&self, req: &Req, offset: HostOffset, buf: &IoBuf) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        pipeline::read(self.child(req)?, range, buf, RequestFlags::empty()).await
    }

    /// Store `buf` at `offset` of the child. With the resize permission it may grow the child.
    ///
    /// # Errors
    /// As [`Edge::read`], and [`IoError::NOT_PERMITTED`] without the write permission.
    #[doc(alias = "bdrv_pwrite")]
    #[doc(alias = "bdrv_co_pwrite")]
    #[doc(alias = "bdrv_pwrite_sync")]
    pub async fn write(&self, req: &Req, offset: HostOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        self.writable(flags)?;
        pipeline::write(self.child(req)?, range, buf, flags, self.extends()).await
    }

    /// Make `len` bytes at `offset` of the child read as zeroes.
    ///
    /// # Errors
    /// As [`Edge::write`].
    #[doc(alias = "bdrv_pwrite_zeroes")]
    #[doc(alias = "bdrv_co_pwrite_zeroes")]
    pub async fn zero(&self, req: &Req, offset: HostOffset, len: u64, flags: RequestFlags) -> IoResult<()> {
        let range = GuestRange::new(offset.0, len)?;
        self.writable(flags)?;
        pipeline::zero(self.child(req)?, range, flags, self.extends()).await
    }

    /// The child's `len` bytes at `offset` are no longer needed.
    ///
    /// # Errors
    /// As [`Edge::write`].
    #[doc(alias = "bdrv_pdiscard")]
    #[doc(alias = "bdrv_co_pdiscard")]
    pub async fn discard(&self, req: &Req, offset: HostOffset, len: u64) -> IoResult<()> {
        let range = GuestRange::new(offset.0, len)?;
        self.writable(RequestFlags::empty())?;
        pipeline::discard(self.child(req)?, range).await
    }

    /// Flush the child. Nothing to do where there is none.
    ///
    /// # Errors
    /// The child's error.
    #[doc(alias = "bdrv_flush")]
    pub async fn flush(&self, req: &Req) -> IoResult<()> {
        if !self.is_attached() {
            return Ok(());
        }
        flush::flush(&self.child(req)?).await
    }

    /// The block status of the child's `len` bytes at `offset`: see [`Driver::block_status`](crate::Driver::block_status).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, [`IoError::OUT_OF_BOUNDS`], or the child's error.
    #[doc(alias = "bdrv_block_status")]
    pub async fn block_status(&self, req: &Req, offset: HostOffset, len: u64) -> IoResult<StatusExtent> {
        let range = GuestRange::new(offset.0, len)?;
        status::block_status(&self.child(req)?, range).await
    }

    /// The same for what follows as well: see [`Driver::block_statuses`](crate::Driver::block_statuses).
    ///
    /// # Errors
    /// As [`Edge::block_status`].
    pub async fn block_statuses(
        &self,
        req: &Req,
        offset: HostOffset,
        len: u64,
        max: usize,
    ) -> IoResult<Vec<StatusExtent>> {
        let range = GuestRange::new(offset.0, len)?;
        status::block_statuses(&self.child(req)?, range, max).await
    }

    /// What the child and the backing files below it say of its `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Edge::block_status`].
    #[doc(alias = "bdrv_block_status_above")]
    #[doc(alias = "bdrv_is_allocated_above")]
    #[doc(alias = "bdrv_co_is_zero_fast")]
    pub async fn chain_status(&self, req: &Req, offset: HostOffset, len: u64) -> IoResult<ChainStatus> {
        let range = GuestRange::new(offset.0, len)?;
        status::chain_status(&self.child(req)?, range).await
    }

    /// In what units the child allocates storage: see [`Driver::clusters`](crate::Driver::clusters). `None` also where there is no child.
    pub fn clusters(&self, req: &Req) -> Option<Clusters> {
        let child = self.child(req).ok()?;
        child.node.engine().ok()?.clusters(&child)
    }

    /// Have the child hold for itself what it takes from its backing files within `len` bytes at `offset`, rounded to whole units. Nobody else is at work there
    /// meanwhile, and what can be read stays as it is. Returns whether the child holds all of it now: there may be what is not to be copied.
    ///
    /// # Errors
    /// As [`Edge::read`], and [`IoError::NOT_PERMITTED`] without the permission to write what does not change. Some of it may have been copied.
    pub async fn copy_up(&self, req: &Req, offset: HostOffset, len: u64, how: &CopyUp) -> IoResult<bool> {
        let range = GuestRange::new(offset.0, len)?;
        self.writable(RequestFlags::WRITE_UNCHANGED)?;
        copy_up::copy_up(&self.child(req)?, range, how).await
    }

    /// Fill `buf` with what the child had from `offset` on at the point in time that it keeps: see
    /// [`Driver::read_snapshot`](crate::Driver::read_snapshot).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn read_snapshot(&self, req: &Req, offset: HostOffset, buf: &IoBuf) -> IoResult<()> {
        let child = self.child(req)?;
        child.node.engine()?.read_snapshot(&child, Self::descend(offset), buf).await
    }

    /// The block status of the point in time that the child keeps: see [`Driver::snapshot_status`](crate::Driver::snapshot_status).
    ///
    /// # Errors
    /// As [`Edge::read_snapshot`].
    pub async fn snapshot_status(&self, req: &Req, offset: HostOffset, len: u64) -> IoResult<StatusExtent> {
        let child = self.child(req)?;
        child.node.engine()?.snapshot_status(&child, GuestRange::new(offset.0, len)?).await
    }

    /// The child need not keep these bytes of its point in time: see [`Driver::discard_snapshot`](crate::Driver::discard_snapshot).
    ///
    /// # Errors
    /// As [`Edge::read_snapshot`].
    pub async fn discard_snapshot(&self, req: &Req, offset: HostOffset, len: u64) -> IoResult<()> {
        let child = self.child(req)?;
        child.node.engine()?.discard_snapshot(&child, GuestRange::new(offset.0, len)?).await
    }

    /// Whether bytes of the child that nobody has written read as zeroes: see [`Driver::has_zero_init`](crate::Driver::has_zero_init). Not where there is no child.
    pub fn has_zero_init(&self, req: &Req) -> bool {
        self.child(req).is_ok_and(|child| child.node.engine().is_ok_and(|engine| engine.has_zero_init(&child)))
    }

    /// Whether writes of the child can be compressed: see [`Driver::compresses`](crate::Driver::compresses). Not where there is no child.
    pub fn compresses(&self, req: &Req) -> bool {
        self.child(req).is_ok_and(|child| child.node.engine().is_ok_and(|engine| engine.compresses(&child)))
    }

    /// Change the child's length to `len` bytes.
    ///
    /// # Errors
    /// [`IoError::NOT_PERMITTED`] without the resize permission, or the child's error.
    #[doc(alias = "bdrv_truncate")]
    pub async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        if !self.extends() {
            return Err(IoError::NOT_PERMITTED);
        }
        pipeline::truncate(&self.child(req)?, len, preallocation).await
    }

    /// How many bytes of storage the host has given the child: see [`Driver::allocated_size`](crate::Driver::allocated_size).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        let child = self.child(req)?;
        child.node.engine()?.allocated_size(&child).await
    }

    /// Store part of the machine's state that the child keeps: see [`Driver::save_vmstate`](crate::Driver::save_vmstate).
    ///
    /// # Errors
    /// [`IoError::NOT_PERMITTED`] without the write permission, or the child's error.
    pub async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.writable(RequestFlags::empty())?;
        pipeline::save_vmstate(&self.child(req)?, offset, buf).await
    }

    /// Read part of the machine's state that the child keeps: see [`Driver::load_vmstate`](crate::Driver::load_vmstate).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let child = self.child(req)?;
        child.node.engine()?.load_vmstate(&child, offset, buf).await
    }

    /// Tell the child that a request has come to `event`: see [`Driver::debug_event`](crate::Driver::debug_event).
    #[doc(alias = "bdrv_co_debug_event")]
    #[doc(alias = "bdrv_debug_event")]
    pub async fn debug_event(&self, req: &Req, event: DebugEvent) {
        if let Ok(child) = self.child(req) {
            pipeline::debug_event(&child, event).await;
        }
    }

    /// In what pieces the child's device works: see [`Driver::probe_block_sizes`](crate::Driver::probe_block_sizes).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn probe_block_sizes(&self, req: &Req) -> IoResult<DeviceBlocks> {
        let child = self.child(req)?;
        child.node.engine()?.probe_block_sizes(&child).await
    }

    /// How the child's device is counted: see [`Driver::probe_geometry`](crate::Driver::probe_geometry).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn probe_geometry(&self, req: &Req) -> IoResult<DiskGeometry> {
        let child = self.child(req)?;
        child.node.engine()?.probe_geometry(&child).await
    }

    /// Pass an ioctl to the child: see [`Driver::ioctl`](crate::Driver::ioctl).
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child, or the child's error.
    pub async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        pipeline::ioctl(&self.child(req)?, number, argument).await
    }

    fn extends(&self) -> bool {
        self.perm().contains(Perm::RESIZE)
    }

    /// Whether writes may go through: every write needs a permission on its edge (rule perm-4).
    pub(crate) fn writable(&self, flags: RequestFlags) -> IoResult<()> {
        let perm = self.perm();
        let unchanged = flags.contains(RequestFlags::WRITE_UNCHANGED) && perm.contains(Perm::WRITE_UNCHANGED);
        if perm.contains(Perm::WRITE) || unchanged { Ok(()) } else { Err(IoError::NOT_PERMITTED) }
    }

    /// The offset as the child counts it.
    pub(crate) fn descend(offset: HostOffset) -> GuestOffset {
        offset.descend()
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edge({:?}, {:?})", self.0.role, self.perm())
    }
}
