//! The global-state half of a driver: how its nodes are opened, what they need from their children, how they change.

use crate::error::GraphResult;
use crate::open::OpenContext;
use crate::reopen::{PreparingReopen, Reopening};
use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, Perm, PermPair};
use block_io::{Driver, Edge, KeptBitmap, Quiesced};
use std::any::Any;
use std::fmt;

/// A driver, as the graph knows it. One value serves all its nodes.
#[async_trait(?Send)]
pub trait DriverType: 'static {
    /// The name in `driver=…`.
    fn name(&self) -> &'static str;

    /// Whether it reaches storage itself or needs a child that does.
    fn kind(&self) -> DriverKind;

    /// Whether its nodes pass their data through unchanged.
    #[doc(alias = "bdrv_filter_child")]
    fn is_filter(&self) -> bool {
        false
    }

    /// Open a node: take the driver's options, attach children, read headers, make the engine. Options that are left
    /// over are refused by the caller. On an error everything that was attached is detached again.
    ///
    /// # Errors
    /// Bad options, missing children, or what the storage answered.
    #[doc(alias = "bdrv_open")]
    #[doc(alias = "bdrv_file_open")]
    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened>;

    /// Whether its nodes can be reopened at all.
    fn reopens(&self) -> bool {
        true
    }

    /// The options of its own that a reopen may change; all others it refuses by name.
    fn reopenable(&self) -> &'static [&'static str] {
        &[]
    }

    /// Options of its own that only make sense together: a reopen that names one of a group leaves none of the others of it as they were.
    #[doc(alias = "bdrv_join_options")]
    fn option_groups(&self) -> &'static [&'static [&'static str]] {
        &[]
    }

    /// What an edge in `role` asks of its child and shares, when the node's own users ask `above` of it together.
    #[doc(alias = "bdrv_child_perm")]
    fn child_perm(&self, role: ChildRole, above: PermPair, read_only: bool) -> PermPair {
        if role.contains(ChildRole::FILTERED) { filter_perm(above) } else { format_perm(role, above, read_only) }
    }
}

/// A filter asks for what is asked of it.
#[doc(alias = "bdrv_default_perms")]
pub fn filter_perm(above: PermPair) -> PermPair {
    above
}

/// A format needs its image consistent, writes and grows it when it is written itself, and lets nobody else write it;
/// of a backing file it needs that it stays the same.
pub fn format_perm(role: ChildRole, above: PermPair, read_only: bool) -> PermPair {
    let reading = Perm::CONSISTENT_READ;
    if role.contains(ChildRole::COW) {
        let writers = if above.shared.contains(Perm::WRITE) { Perm::WRITE | Perm::RESIZE } else { Perm::empty() };
        return PermPair::new(above.perm & reading, reading | Perm::WRITE_UNCHANGED | writers);
    }
    let writing = if read_only { Perm::empty() } else { Perm::WRITE | Perm::RESIZE };
    let shared = if read_only { reading | Perm::WRITE_UNCHANGED | (above.shared & Perm::WRITE) } else { reading };
    PermPair::new(reading | writing, shared | Perm::WRITE_UNCHANGED)
}

/// What opening a node made.
pub struct Opened {
    /// The I/O half.
    pub engine: Box<dyn Driver>,
    /// The half that stays with the graph.
    pub control: Box<dyn EngineControl>,
    /// Whether writes are refused.
    pub read_only: bool,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opened({})", self.engine.format_name())
    }
}

/// The control half of one node's engine, kept by the graph. Drivers downcast it to their own type.
///
/// # Permissions
/// Before what a node's users together need and share changes, its driver is asked (rule perm-3): a file takes its locks then. A change
/// asks every node that it affects, parents before children, and then tells each of them either that it holds or that it does not.
/// Nothing comes between the question and the end of it, and a node is asked once for each change.
///
/// The graph is borrowed meanwhile: these methods neither come back to it nor drop what belongs to it, nor do they wait for anything but
/// short system calls.
pub trait EngineControl: Any {
    /// For downcasting.
    fn as_any(&mut self) -> &mut dyn Any;

    /// What each edge of the node asks of its child, and does not share, beside what the driver says of all its nodes. Asked when the node is
    /// complete, and whenever the permissions of its edges are computed anew.
    fn child_perm_more(&self) -> PermPair {
        PermPair::NONE
    }

    /// The bitmaps that are kept with the node's image, as they were found when it was opened. Asked once, when the node is complete.
    fn kept_bitmaps(&self) -> Vec<KeptBitmap> {
        Vec::new()
    }

    /// These bitmaps, and no others, are to be kept with the image when it is closed.
    ///
    /// # Errors
    /// Why that cannot be; those of before are kept then.
    #[doc(alias = "bdrv_can_store_new_dirty_bitmap")]
    #[doc(alias = "bdrv_co_can_store_new_dirty_bitmap")]
    #[doc(alias = "bdrv_co_remove_persistent_dirty_bitmap")]
    fn keep_bitmaps(&mut self, _bitmaps: &[KeptBitmap]) -> Result<(), KeepError> {
        Err(KeepError::Unsupported)
    }

    /// The granularity in bytes of a bitmap of the node, if nobody says otherwise.
    fn bitmap_granularity(&self) -> u64 {
        64 << 10
    }

    /// The node's users are going to need and share `perm` together. Get hold of what that takes, and let go of nothing yet.
    ///
    /// # Errors
    /// Why that cannot be; what there was before still holds, and no call of the other two methods follows.
    #[doc(alias = "bdrv_check_perm")]
    fn prepare_perm(&mut self, _perm: PermPair) -> GraphResult<()> {
        Ok(())
    }

    /// What was prepared last holds from now on: let go of what it does not take.
    #[doc(alias = "bdrv_set_perm")]
    fn commit_perm(&mut self) {}

    /// What was prepared last is not going to be: let go of what it took.
    #[doc(alias = "bdrv_abort_perm_update")]
    fn abort_perm(&mut self) {}

    /// Where one more child would be, for a driver whose nodes may have more than they were opened with; or why not this one. `None` where that is not so.
    fn place_for_child(&self) -> Option<GraphResult<(ChildName, ChildRole)>> {
        None
    }

    /// There is one more child, at the place that was told last. Nothing is in flight.
    fn add_child(&mut self, _edge: Edge) {}

    /// Whether the child at the edge called `edge` may be removed; `None` for a driver whose nodes keep those that they were opened with.
    fn may_remove(&self, _edge: &str) -> Option<GraphResult<()>> {
        None
    }

    /// The edge called `edge`, which might be removed, leads nowhere any more: forget it. Nothing is in flight.
    fn remove_child(&mut self, _edge: &str) {}

    /// Whether the image names itself what is to be at the edge called `edge`: who leaves the option out then means that.
    fn names_child(&self, _edge: &str) -> bool {
        false
    }

    /// The node is going to have other options: take from `to` those of the driver's own, and get ready. Changes nothing; what the future returns comes
    /// back with [`EngineControl::commit_reopen`], or is dropped.
    ///
    /// # Errors
    /// Why that cannot be.
    #[doc(alias = "bdrv_reopen_prepare")]
    fn prepare_reopen(&mut self, _to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        Ok(Box::pin(std::future::ready(Ok(Box::new(()) as Box<dyn Any>))))
    }

    /// The node has the options that were prepared from now on. Nothing is in flight; limits and lengths are asked for anew after it.
    #[doc(alias = "bdrv_reopen_commit")]
    fn commit_reopen(&mut self, _prepared: Box<dyn Any>, _proof: &Quiesced<'_>) {}
}

/// Why bitmaps are not kept with an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// The format has no place for any.
    #[error("Operation not supported")]
    Unsupported,
    /// The image has no place for these.
    #[error("{0}")]
    Refused(String),
}

/// The control of an engine that has nothing to control.
#[derive(Debug)]
pub struct NoControl;

impl EngineControl for NoControl {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
