//! Changing the graph: replacing children and nodes, freezing edges, and looking at it.

use crate::drain::DrainGuard;
use crate::error::{GraphError, GraphResult};
use crate::graph::{Graph, GsRoot, Id, NodeRef, ParentEnd, frozen};
use crate::open::CommonOptions;
use crate::perm::{Change, Plan, describe};
use crate::state::GlobalState;
use block_common::options::Dict;
use block_common::{ChildRole, ParentKind, PermPair};
use block_io::{GateState, WriteObserver};
use std::fmt;
use std::sync::Arc;

/// What can be seen of a node.
#[doc(alias = "bdrv_get_flags")]
#[derive(Clone, Debug)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its driver's name.
    pub driver: &'static str,
    /// Its length in bytes, as last known.
    pub length: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// The options that every node has.
    pub common: CommonOptions,
    /// Its gate's state.
    pub state: GateState,
    /// Its edges: name, child, permissions.
    pub children: Vec<(String, Option<String>, PermPair)>,
    /// Its users, as messages say them.
    pub parents: Vec<String>,
    /// The options that it was opened with. A child that was opened with it stands there by its name.
    pub options: Dict,
    /// Whether the monitor holds a reference.
    pub monitor_owned: bool,
}

/// What can be seen of a root: who uses a node from outside.
#[derive(Clone, Debug)]
pub struct RootInfo {
    /// Its name; there may be none, and several with the same.
    pub name: String,
    /// Who uses it.
    pub kind: ParentKind,
    /// The node that it leads to.
    pub child: Option<String>,
    /// What it needs and shares.
    pub perm: PermPair,
}

/// Which users a replacement moved. Dropping it lets the replacement stand.
#[derive(Debug)]
pub struct Replacement {
    ends: Vec<ParentEnd>,
    from: NodeRef,
    to: NodeRef,
}

impl GlobalState {
    /// Let the edge called `edge` of `parent` lead to `child`, or nowhere. `guard` covers the parent.
    ///
    /// # Errors
    /// [`GraphError::NotDrained`], [`GraphError::Frozen`], [`GraphError::Cycle`], [`GraphError::NoSuchEdge`] or
    /// [`GraphError::Permission`]; nothing has changed then.
    #[doc(alias = "bdrv_attach_child")]
    #[doc(alias = "bdrv_unref_child")]
    #[doc(alias = "bdrv_set_backing_hd")]
    pub fn replace_child(
        &self,
        guard: &DrainGuard,
        parent: &NodeRef,
        edge: &str,
        child: Option<&NodeRef>,
    ) -> GraphResult<()> {
        let at = self.0.graph.borrow().edge_at(parent, edge)?;
        let section = guard.target(self).ok_or_else(|| GraphError::NotDrained(parent.name().into()))?;
        let changes = [Change { end: ParentEnd::Node(parent.id(), at), child: child.cloned() }];
        let old = self.0.graph.borrow_mut().repoint(&changes, &[section])?;
        drop(old);
        Ok(())
    }

    /// Let every user of `from` use `to` instead, but for `to` itself and what is below it. `guard` covers `from`.
    ///
    /// # Errors
    /// As [`GlobalState::replace_child`].
    #[doc(alias = "bdrv_replace_node")]
    pub fn replace_node(&self, guard: &DrainGuard, from: &NodeRef, to: &NodeRef) -> GraphResult<()> {
        let changes = self.0.graph.borrow().replacement(from, to)?;
        let section = guard.target(self).ok_or_else(|| GraphError::NotDrained(from.name().into()))?;
        let old = self.0.graph.borrow_mut().repoint(&changes, &[section])?;
        drop(old);
        Ok(())
    }

    /// As [`GlobalState::replace_node`], for who may have to take it back.
    ///
    /// # Errors
    /// As [`GlobalState::replace_child`].
    pub fn replace_node_for_now(&self, guard: &DrainGuard, from: &NodeRef, to: &NodeRef) -> GraphResult<Replacement> {
        let changes = self.0.graph.borrow().replacement(from, to)?;
        self.replace_node(guard, from, to)?;
        let ends = changes.into_iter().map(|change| change.end).collect();
        Ok(Replacement { ends, from: from.clone(), to: to.clone() })
    }

    /// Take a replacement back: those users that it moved, and that are still where it moved them to, use the former node again. `guard`
    /// covers the node that they use now.
    ///
    /// # Errors
    /// As [`GlobalState::replace_child`]; only when the graph was changed otherwise meanwhile.
    pub fn take_back(&self, guard: &DrainGuard, replacement: Replacement) -> GraphResult<()> {
        let Replacement { ends, from, to } = replacement;
        let section = guard.target(self).ok_or_else(|| GraphError::NotDrained(to.name().into()))?;
        let old = {
            let mut graph = self.0.graph.borrow_mut();
            let still = ends.into_iter().filter(|end| graph.child_at(*end) == Some(to.id()));
            let changes: Vec<_> = still.map(|end| Change { end, child: Some(from.clone()) }).collect();
            graph.repoint(&changes, &[section])?
        };
        drop(old);
        Ok(())
    }

    /// Forbid (or allow again) that the edge called `edge` of `parent` is repointed or removed.
    ///
    /// # Errors
    /// [`GraphError::NoSuchEdge`]; [`GraphError::Frozen`] when somebody else froze it.
    #[doc(alias = "bdrv_freeze_backing_chain")]
    #[doc(alias = "bdrv_unfreeze_backing_chain")]
    pub fn set_frozen(&self, parent: &NodeRef, edge: &str, freeze: bool) -> GraphResult<()> {
        let mut graph = self.0.graph.borrow_mut();
        let at = graph.edge_at(parent, edge)?;
        let Some(node) = graph.nodes.get_mut(&parent.id()) else { return Ok(()) };
        if freeze && node.edges[at].frozen {
            return Err(frozen(node, &node.edges[at]));
        }
        node.edges[at].frozen = freeze;
        Ok(())
    }

    /// Let the edge called `edge` of `parent` ask for `more` than its driver says, until what this returns is dropped: an act of a driver's own, which is no request of
    /// a user's, may need it. One act at a time.
    ///
    /// # Errors
    /// [`GraphError::NoSuchEdge`]; [`GraphError::InUse`] during another act; [`GraphError::Permission`], [`GraphError::ReadOnly`] or [`GraphError::Locked`] if that cannot be
    /// had. Nothing has happened then.
    #[doc(alias = "bdrv_amend_pre_run")]
    #[doc(alias = "bdrv_amend_clean")]
    pub fn ask_more(&self, parent: &NodeRef, edge: &str, more: PermPair) -> GraphResult<AskedMore> {
        let mut graph = self.0.graph.borrow_mut();
        let at = graph.edge_at(parent, edge)?;
        graph.set_more(parent.id(), at, more)?;
        Ok(AskedMore { gs: self.clone(), parent: parent.clone(), at })
    }

    /// The child at the edge called `edge` of `parent`.
    ///
    /// # Errors
    /// [`GraphError::NoSuchEdge`].
    #[doc(alias = "bdrv_cow_child")]
    pub fn child(&self, parent: &NodeRef, edge: &str) -> GraphResult<Option<NodeRef>> {
        let graph = self.0.graph.borrow();
        let at = graph.edge_at(parent, edge)?;
        Ok(graph.node(parent)?.edges[at].child.clone())
    }

    /// The child that stands for `parent`: what a filter filters, the image of a format. `None` where there is none.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone.
    #[doc(alias = "bdrv_primary_child")]
    #[doc(alias = "bdrv_primary_bs")]
    pub fn primary_child(&self, parent: &NodeRef) -> GraphResult<Option<NodeRef>> {
        let graph = self.0.graph.borrow();
        let primary = graph.node(parent)?.edges.iter().find(|edge| edge.role.contains(ChildRole::PRIMARY));
        Ok(primary.and_then(|edge| edge.child.clone()))
    }

    /// What `node` filters, if it is a filter that leads somewhere.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone.
    pub fn filtered_child(&self, node: &NodeRef) -> GraphResult<Option<NodeRef>> {
        Ok(self.0.graph.borrow().node(node)?.filtered().cloned())
    }

    /// `node`, or the first node below it that is no filter. A filter that leads nowhere is itself the last one.
    #[doc(alias = "bdrv_skip_filters")]
    pub fn skip_filters(&self, node: &NodeRef) -> NodeRef {
        let graph = self.0.graph.borrow();
        let mut at = node.clone();
        while let Some(child) = graph.nodes.get(&at.id()).and_then(|node| node.filtered()) {
            at = child.clone();
        }
        at
    }

    /// Run `with` on the node's control half, downcast to the driver's own type. It may use the graph, but not this control again; a
    /// change of what is asked of this node is refused with [`GraphError::InUse`] meanwhile.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone or is another driver's.
    ///
    /// # Panics
    /// When `with` comes back here for the same node.
    pub fn with_control<C: 'static, T>(&self, node: &NodeRef, with: impl FnOnce(&mut C) -> T) -> GraphResult<T> {
        let control = self.0.graph.borrow().node(node)?.engine_control.clone();
        let mut control = control.borrow_mut();
        let found = control.as_any().downcast_mut::<C>();
        found.map(with).ok_or_else(|| GraphError::NotFound(node.name().into()))
    }

    /// Send requests on `node` the slow way (or not any more). What was in flight when this returns is over.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone.
    pub async fn set_detour(&self, node: &NodeRef, on: bool) -> GraphResult<()> {
        let idle = {
            let mut graph = self.0.graph.borrow_mut();
            let found = graph.node_mut(node)?;
            found.control.set_detour(on);
            found.control.settled()
        };
        if on {
            idle.await;
        }
        Ok(())
    }

    /// Tell `observer` of every change of `node`'s content from the moment that this returns: a dirty bitmap, say.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone.
    pub async fn observe(&self, node: &NodeRef, observer: Arc<dyn WriteObserver>) -> GraphResult<()> {
        let settled = {
            let mut graph = self.0.graph.borrow_mut();
            let found = graph.node_mut(node)?;
            found.control.observe(observer);
            found.control.settled()
        };
        settled.await;
        Ok(())
    }

    /// Tell `observer` no more. It may still be told of changes that are under way.
    pub fn unobserve(&self, node: &NodeRef, observer: &Arc<dyn WriteObserver>) {
        if let Some(found) = self.0.graph.borrow_mut().nodes.get_mut(&node.id()) {
            found.control.unobserve(observer);
        }
    }

    /// Let the monitor hold a reference to `node`, so that it stays without other users; or give it up.
    #[doc(alias = "bdrv_set_monitor_owned")]
    pub fn set_monitor_owned(&self, node: &NodeRef, owned: bool) {
        let old = {
            let mut graph = self.0.graph.borrow_mut();
            let found = graph.nodes.get_mut(&node.id());
            found.and_then(|found| std::mem::replace(&mut found.monitor, owned.then(|| node.clone())))
        };
        drop(old);
    }

    /// Every node, in the order of opening.
    #[doc(alias = "bdrv_named_nodes_list")]
    #[doc(alias = "bdrv_get_xdbg_block_graph")]
    #[doc(alias = "bdrv_next_node")]
    pub fn nodes(&self) -> Vec<NodeInfo> {
        let graph = self.0.graph.borrow();
        graph.nodes.keys().filter_map(|id| graph.info(*id)).collect()
    }

    /// The roots, in the order of their making, but for those that stand for nodes which are being opened.
    pub fn roots(&self) -> Vec<RootInfo> {
        let graph = self.0.graph.borrow();
        let seen = graph.roots.values().filter(|root| root.is_alive() && root.edge.is_none());
        let told = |root: &GsRoot| RootInfo {
            name: root.name.clone(),
            kind: root.kind,
            child: root.child.as_ref().map(|child| child.name().to_owned()),
            perm: root.perm,
        };
        seen.map(told).collect()
    }

    /// What can be seen of one node.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when it is gone.
    pub fn node_info(&self, node: &NodeRef) -> GraphResult<NodeInfo> {
        self.0.graph.borrow().info(node.id()).ok_or_else(|| GraphError::NotFound(node.name().into()))
    }
}

impl Graph {
    fn info(&self, id: u64) -> Option<NodeInfo> {
        let node = self.nodes.get(&id)?;
        let io = node.control.node();
        let name = node.name.as_str();
        Some(NodeInfo {
            name: name.into(),
            driver: node.driver.name(),
            length: io.length(),
            read_only: node.read_only,
            common: node.common,
            state: io.state(),
            children: node
                .edges
                .iter()
                .filter(|edge| !edge.is_gone)
                .map(|edge| {
                    let child = edge.child.as_ref().map(|child| child.name().to_owned());
                    (edge.name.as_str().to_owned(), child, edge.writer.perm())
                })
                .collect(),
            parents: node.parents.iter().map(|end| describe(self, *end, name)).collect(),
            options: node.options.clone(),
            monitor_owned: node.monitor.is_some(),
        })
    }

    /// The changes that give `from`'s users to `to`.
    pub(crate) fn replacement(&self, from: &NodeRef, to: &NodeRef) -> GraphResult<Vec<Change>> {
        let users = self.node(from)?.parents.iter().copied();
        let outside = users.filter(|end| match end {
            ParentEnd::Node(id, _) => !self.reaches(to.id(), *id),
            ParentEnd::Root(_) => true,
        });
        Ok(outside.map(|end| Change { end, child: Some(to.clone()) }).collect())
    }
}

/// What an edge asks for beside what its driver says: see [`GlobalState::ask_more`].
#[must_use = "it ends when this is dropped"]
pub struct AskedMore {
    gs: GlobalState,
    parent: NodeRef,
    at: usize,
}

impl Drop for AskedMore {
    fn drop(&mut self) {
        let mut graph = self.gs.0.graph.borrow_mut();
        if let Err(error) = graph.set_more(self.parent.id(), self.at, PermPair::NONE) {
            // To ask for less cannot be refused, but a driver may be busy with another question.
            tracing::warn!(node = self.parent.name(), %error, "an edge goes on asking for more than it needs");
        }
    }
}

impl fmt::Debug for AskedMore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AskedMore({})", self.parent.name())
    }
}

impl Graph {
    /// Set what the edge at `at` of a node asks for beside what its driver says, if it can be had.
    fn set_more(&mut self, id: Id, at: usize, more: PermPair) -> GraphResult<()> {
        let Some(node) = self.nodes.get_mut(&id) else { return Ok(()) };
        let edge = &mut node.edges[at];
        if edge.more != PermPair::NONE && more != PermPair::NONE {
            return Err(GraphError::InUse(node.name.as_str().into()));
        }
        let before = std::mem::replace(&mut edge.more, more);
        match Plan::new(self, &[], &[id]).and_then(|plan| plan.prepare(self)) {
            Ok(plan) => plan.commit(self),
            Err(error) => {
                self.nodes.entry(id).and_modify(|node| node.edges[at].more = before);
                return Err(error);
            }
        }
        Ok(())
    }
}
