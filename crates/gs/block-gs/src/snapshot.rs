//! Overlays on live nodes, and changes of bitmaps, several at once and all or nothing.
//!
//! The caller has done what waits: the nodes are open, drained and flushed (`docs/snapshots.md`). Here everything is looked at again, and then happens, or does not, without waiting. Overlays
//! are one change of the graph together: permissions are computed once, for the graph with all of them. What bitmaps had is kept until nothing can fail any more. Making
//! overlays' files, snapshots inside images and jobs are not here.

use crate::bitmap::{BitmapError, BitmapOptions, BitmapUndo};
use crate::drain::DrainGuard;
use crate::error::GraphError;
use crate::graph::{Graph, Id, NodeRef, ParentEnd};
use crate::perm::Change;
use crate::state::GlobalState;
use block_common::{ChildName, OpType, ParentKind};
use block_io::NodeControl;

/// One of several changes that happen together.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Step {
    /// `overlay` stands on `node` from then on, and who used `node` uses `overlay`.
    Overlay {
        /// What is overlaid.
        node: NodeRef,
        /// What is put on top: it can have a backing file, has none, and nobody reads or writes it.
        overlay: NodeRef,
    },
    /// A node gets a bitmap.
    AddBitmap {
        /// The node.
        node: NodeRef,
        /// What the bitmap is like.
        options: BitmapOptions,
    },
    /// A bitmap does something.
    Bitmap {
        /// Its node.
        node: NodeRef,
        /// Its name.
        name: String,
        /// What it does.
        act: BitmapAct,
    },
}

/// What happens to a bitmap.
#[derive(Clone, Debug)]
pub enum BitmapAct {
    /// It goes when all is done; until then nobody may use it.
    Remove,
    /// Nothing is dirty any more.
    Clear,
    /// It records.
    Enable,
    /// It records no more.
    Disable,
    /// What is dirty in these, bitmaps of nodes by name, is dirty in it.
    Merge(Vec<(NodeRef, String)>),
}

/// Why none of several changes has happened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// Somebody reads or writes the overlay.
    #[error("The overlay is already in use")]
    InUse,
    /// The overlay stands on another node.
    #[error("The overlay already has a backing image")]
    HasBacking,
    /// Nodes of its driver stand on nothing.
    #[error("The overlay does not support backing images")]
    NoBacking,
    /// What was written to the node before could not be made durable.
    #[error("An IO error has occurred")]
    Flush,
    /// The graph has something against it.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// A bitmap has.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
}

/// What a call about several changes returns.
pub type StepResult<T> = Result<T, StepError>;

impl Step {
    /// The nodes that have to be drained for it.
    fn nodes(&self) -> Vec<&NodeRef> {
        match self {
            Self::Overlay { node, overlay } => vec![node, overlay],
            Self::AddBitmap { node, .. } => vec![node],
            Self::Bitmap { node, act: BitmapAct::Merge(sources), .. } => {
                sources.iter().map(|(source, _)| source).chain([node]).collect()
            }
            Self::Bitmap { node, .. } => vec![node],
        }
    }
}

impl GlobalState {
    /// Whether `overlay` may be put on `node`, as far as can be said before both are drained: who makes other things ready first is told early.
    ///
    /// # Errors
    /// As [`GlobalState::change_all`].
    pub fn check_overlay(&self, node: &NodeRef, overlay: &NodeRef) -> StepResult<()> {
        self.check_op(node, OpType::ExternalSnapshot)?;
        self.0.graph.borrow().check_overlay(overlay)
    }

    /// Hold back the requests of everybody who uses the nodes that `steps` are about, until what is in flight is over on all of them, and make durable what was
    /// written to those that are going to be overlaid.
    ///
    /// # Errors
    /// [`StepError::Flush`].
    pub async fn drain_for(&self, steps: &[Step]) -> StepResult<Vec<DrainGuard>> {
        let mut drained: Vec<&NodeRef> = Vec::new();
        let mut sections = Vec::new();
        for node in steps.iter().flat_map(Step::nodes) {
            if !drained.iter().any(|other| other.same(node)) {
                drained.push(node);
                sections.push(self.drain(node).await);
            }
        }
        for step in steps {
            if let Step::Overlay { node, .. } = step
                && !node.io().is_read_only()
            {
                let flushed = self.on_node(node.id(), |req| async move { NodeControl::flush(&req).await }).await;
                flushed.unwrap_or(Ok(())).map_err(|_| StepError::Flush)?;
            }
        }
        // One section may have been left for a moment while another one was waited for.
        while let Some(section) = sections.iter().find(|section| !section.is_settled()) {
            section.settled().await;
        }
        Ok(sections)
    }

    /// Carry out all of `steps`, in their order, or none of them. Does not wait: `sections` are those of [`GlobalState::drain_for`], and cover every node that the steps
    /// name. Within a mutation.
    ///
    /// # Errors
    /// Why one of them cannot be. Nothing has changed then.
    pub fn change_all(&self, sections: &[DrainGuard], steps: &[Step]) -> StepResult<()> {
        let changes = self.overlay_changes(steps)?;
        let mut undo = Vec::new();
        let done = steps.iter().try_for_each(|step| {
            match step {
                Step::Overlay { .. } => {}
                Step::AddBitmap { node, options } => undo.push(self.add_bitmap_now(node, options)?),
                Step::Bitmap { node, name, act } => undo.push(self.change_bitmap_now(node, name, act)?),
            }
            Ok(())
        });
        // What may fail in a driver comes last: it cannot be asked whether it would allow to go back.
        let done = done.and_then(|()| {
            let targets: Vec<_> = sections.iter().filter_map(|section| section.target(self)).collect();
            Ok(self.0.graph.borrow_mut().repoint(&changes, &targets)?)
        });
        match done {
            Ok(old) => {
                undo.into_iter().for_each(|undo: BitmapUndo| undo.keep(self));
                drop(old);
                Ok(())
            }
            Err(error) => {
                undo.into_iter().rev().for_each(|undo| undo.take_back(self));
                Err(error)
            }
        }
    }

    /// The edges that lead elsewhere when every overlay is where it is to be. A later overlay finds the graph as the earlier ones leave it.
    fn overlay_changes(&self, steps: &[Step]) -> StepResult<Vec<Change>> {
        let mut changes = Vec::new();
        let mut based: Vec<(&NodeRef, &NodeRef)> = Vec::new();
        for step in steps {
            let Step::Overlay { node, overlay } = step else { continue };
            if let Some((_, above)) = based.iter().find(|(below, _)| below.same(node)) {
                return Err(is_backing(node.name(), above.name(), OpType::ExternalSnapshot).into());
            }
            if based.iter().any(|(_, above)| above.same(overlay)) {
                return Err(StepError::HasBacking);
            }
            self.check_overlay(node, overlay)?;
            self.0.graph.borrow().add_overlay(&mut changes, node, overlay)?;
            based.push((node, overlay));
        }
        Ok(changes)
    }
}

/// The refusal of an act on a node that another one stands on.
pub(crate) fn is_backing(node: &str, above: &str, op: OpType) -> GraphError {
    GraphError::OpBlocked { node: node.into(), op, reason: format!("node is used as backing hd of '{above}'") }
}

impl Graph {
    fn check_overlay(&self, overlay: &NodeRef) -> StepResult<()> {
        let found = self.node(overlay)?;
        if !found.asked.perm.is_empty() {
            return Err(StepError::InUse);
        }
        match found.edges.iter().find(|edge| edge.name == ChildName::BACKING) {
            None => Err(StepError::NoBacking),
            Some(edge) if edge.child.is_some() => Err(StepError::HasBacking),
            Some(_) => Ok(()),
        }
    }

    /// Add what it takes to put `overlay` on `node` to `changes`.
    fn add_overlay(&self, changes: &mut Vec<Change>, node: &NodeRef, overlay: &NodeRef) -> StepResult<()> {
        let edge = ParentEnd::Node(overlay.id(), self.edge_at(overlay, ChildName::BACKING.as_str())?);
        // One node more on every way, which each change by itself does not see.
        if self.is_too_deep_with_one_more(node.id()) {
            return Err(GraphError::TooDeep(overlay.name().into()).into());
        }
        let child = |id: Id| move |change: &Change| change.child.as_ref().is_some_and(|child| child.id() == id);
        let mut users: Vec<_> = changes.iter().filter(|change| child(node.id())(change)).map(|c| c.end).collect();
        let now = self.node(node)?.parents.iter().copied();
        users.extend(now.filter(|end| changes.iter().all(|change| change.end != *end)));
        set(changes, edge, node);
        for end in users {
            if end != edge && self.moves(end, overlay) {
                set(changes, end, overlay);
            }
        }
        Ok(())
    }

    /// Whether who uses a node there is to use `overlay` instead.
    fn moves(&self, end: ParentEnd, overlay: &NodeRef) -> bool {
        match end {
            ParentEnd::Node(id, _) => !self.reaches(overlay.id(), id),
            // A job's entry is to the node that it was begun on.
            ParentEnd::Root(id) => self.roots.get(&id).is_some_and(|root| root.kind != ParentKind::Job),
        }
    }

    /// The node that stands on this one, if there is one.
    pub(crate) fn stands_on(&self, node: &NodeRef) -> Option<&str> {
        let parents = self.nodes.get(&node.id())?.parents.iter();
        parents.into_iter().find_map(|end| match end {
            ParentEnd::Node(id, at) => {
                // One that nobody holds any more is as good as gone.
                let above = self.nodes.get(id).filter(|above| above.is_alive())?;
                (above.edges.get(*at)?.name == ChildName::BACKING).then(|| above.name.as_str())
            }
            ParentEnd::Root(_) => None,
        })
    }
}

/// Let the edge at `end` lead to `child`. New edges first, so that lengths are taken over on the way up.
fn set(changes: &mut Vec<Change>, end: ParentEnd, child: &NodeRef) {
    match changes.iter_mut().find(|change| change.end == end) {
        Some(change) => change.child = Some(child.clone()),
        None => changes.push(Change { end, child: Some(child.clone()) }),
    }
}
