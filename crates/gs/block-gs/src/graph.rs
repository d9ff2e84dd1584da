//! The graph: who is above whom, under which name, with which permissions.
//!
//! Plain data, borrowed in synchronous code only. What waits is in `drain`, `open` and `close`; what may be changed, and by whom, is said
//! there and in `perm`. Engines, requests and threads are not here.

use crate::driver::{DriverType, EngineControl};
use crate::error::{GraphError, GraphResult};
use crate::perm::{Change, Plan};
use block_common::options::Dict;
use block_common::{ChildName, ChildRole, NodeName, ParentKind, PermPair};
use block_io::{EdgeWriter, IoNode, NodeControl, RootControl};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::{Rc, Weak};
use std::task::Waker;

/// Numbers nodes, roots and drains; never used twice.
pub(crate) type Id = u64;

/// The end of an edge at which the parent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ParentEnd {
    /// A node's edge, by its place.
    Node(Id, usize),
    /// A root's only edge.
    Root(Id),
}

pub(crate) struct GsEdge {
    pub(crate) name: ChildName,
    pub(crate) role: ChildRole,
    pub(crate) writer: EdgeWriter,
    pub(crate) child: Option<NodeRef>,
    pub(crate) frozen: bool,
}

pub(crate) struct GsNode {
    pub(crate) name: NodeName,
    pub(crate) driver: Rc<dyn DriverType>,
    pub(crate) control: NodeControl,
    pub(crate) engine_control: Box<dyn EngineControl>,
    pub(crate) edges: Vec<GsEdge>,
    pub(crate) parents: BTreeSet<ParentEnd>,
    pub(crate) read_only: bool,
    pub(crate) options: Dict,
    /// The monitor's own reference, for nodes that were added by name.
    pub(crate) monitor: Option<NodeRef>,
    token: Weak<Token>,
}

pub(crate) struct GsRoot {
    pub(crate) name: String,
    pub(crate) kind: ParentKind,
    pub(crate) control: RootControl,
    pub(crate) child: Option<NodeRef>,
    pub(crate) perm: PermPair,
}

/// Below which node (or below everything) requests are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DrainTarget {
    Node(Id),
    Root(Id),
    All,
}

/// Nodes and roots whose last reference was dropped. Outside the graph's cell, so that a drop may come at any time.
#[derive(Default)]
pub(crate) struct ReapQueue {
    pub(crate) dead: RefCell<Vec<Dead>>,
    pub(crate) waker: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dead {
    Node(Id),
    Root(Id),
}

impl ReapQueue {
    pub(crate) fn push(&self, dead: Dead) {
        self.dead.borrow_mut().push(dead);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

struct Token {
    id: Id,
    queue: Rc<ReapQueue>,
}

impl Drop for Token {
    fn drop(&mut self) {
        self.queue.push(Dead::Node(self.id));
    }
}

/// A counted reference to a node: the node lives while there is one. Parents, backends and the monitor hold them.
#[derive(Clone)]
#[doc(alias = "bdrv_ref")]
#[doc(alias = "bdrv_unref")]
pub struct NodeRef {
    token: Rc<Token>,
    io: IoNode,
}

impl NodeRef {
    pub(crate) fn id(&self) -> Id {
        self.token.id
    }

    /// The node as I/O sees it.
    pub fn io(&self) -> &IoNode {
        &self.io
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        self.io.name()
    }

    /// Whether both refer to the same node.
    pub fn same(&self, other: &Self) -> bool {
        self.id() == other.id()
    }

    /// How many references there are.
    pub(crate) fn count(&self) -> usize {
        Rc::strong_count(&self.token)
    }
}

impl fmt::Debug for NodeRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.io.fmt(f)
    }
}

/// What a newly opened node brings.
pub(crate) struct NewNode {
    pub(crate) name: NodeName,
    pub(crate) driver: Rc<dyn DriverType>,
    pub(crate) control: NodeControl,
    pub(crate) engine_control: Box<dyn EngineControl>,
    pub(crate) edges: Vec<GsEdge>,
    pub(crate) read_only: bool,
    pub(crate) options: Dict,
}

#[derive(Default)]
pub(crate) struct Graph {
    next: Id,
    pub(crate) nodes: BTreeMap<Id, GsNode>,
    pub(crate) roots: BTreeMap<Id, GsRoot>,
    names: BTreeMap<String, Id>,
    pub(crate) drains: BTreeMap<Id, DrainTarget>,
    pub(crate) reap: Rc<ReapQueue>,
    pub(crate) shut: bool,
}

impl Graph {
    pub(crate) fn number(&mut self) -> Id {
        self.next += 1;
        self.next
    }

    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, node: &NodeRef) -> GraphResult<&GsNode> {
        self.nodes.get(&node.id()).ok_or_else(|| GraphError::NotFound(node.name().into()))
    }

    /// A node by its name.
    pub(crate) fn find(&self, name: &str) -> Option<NodeRef> {
        self.handle(*self.names.get(name)?)
    }

    /// A new reference to a node, unless its last one is gone.
    pub(crate) fn handle(&self, id: Id) -> Option<NodeRef> {
        let node = self.nodes.get(&id)?;
        Some(NodeRef { token: node.token.upgrade()?, io: node.control.node() })
    }

    /// A name that is free: the wanted one, or a generated one.
    pub(crate) fn name(&mut self, wanted: Option<NodeName>) -> GraphResult<NodeName> {
        match wanted {
            Some(name) if self.names.contains_key(name.as_str()) => {
                Err(GraphError::DuplicateName(name.as_str().into()))
            }
            Some(name) => Ok(name),
            None => {
                let serial = self.number();
                Ok(NodeName::generated(serial))
            }
        }
    }

    /// Make a node part of the graph: its edges' permissions are taken, or nothing happens.
    pub(crate) fn insert(&mut self, new: NewNode) -> GraphResult<NodeRef> {
        if self.names.contains_key(new.name.as_str()) {
            return Err(GraphError::DuplicateName(new.name.as_str().into()));
        }
        let id = self.number();
        let token = Rc::new(Token { id, queue: self.reap.clone() });
        let io = new.control.node();
        let node = GsNode {
            name: new.name,
            driver: new.driver,
            control: new.control,
            engine_control: new.engine_control,
            edges: new.edges,
            parents: BTreeSet::new(),
            read_only: new.read_only,
            options: new.options,
            monitor: None,
            token: Rc::downgrade(&token),
        };
        self.names.insert(node.name.as_str().into(), id);
        self.nodes.insert(id, node);
        self.link_children(id);
        match Plan::new(self, &[], &[id]) {
            Ok(plan) => plan.commit(self),
            Err(error) => {
                self.unlink_children(id);
                self.forget(id);
                return Err(error);
            }
        }
        self.apply_drains();
        Ok(NodeRef { token, io })
    }

    fn link_children(&mut self, id: Id) {
        for (end, child) in self.children(id) {
            if let Some(child) = self.nodes.get_mut(&child) {
                child.parents.insert(end);
            }
        }
    }

    /// Forget that a node is above its children. The edges go when the node does.
    pub(crate) fn unlink_children(&mut self, id: Id) {
        for (end, child) in self.children(id) {
            if let Some(child) = self.nodes.get_mut(&child) {
                child.parents.remove(&end);
            }
        }
    }

    /// A node's name is free again.
    pub(crate) fn forget_name(&mut self, id: Id) {
        self.names.retain(|_, named| *named != id);
    }

    /// Take a node out.
    pub(crate) fn forget(&mut self, id: Id) -> Option<GsNode> {
        self.forget_name(id);
        self.nodes.remove(&id)
    }

    /// The edges of a node that lead somewhere.
    pub(crate) fn children(&self, id: Id) -> Vec<(ParentEnd, Id)> {
        let Some(node) = self.nodes.get(&id) else { return Vec::new() };
        let edges = node.edges.iter().enumerate();
        edges.filter_map(|(at, edge)| Some((ParentEnd::Node(id, at), edge.child.as_ref()?.id()))).collect()
    }

    /// Where a parent's end leads.
    pub(crate) fn child_at(&self, end: ParentEnd) -> Option<Id> {
        let child = match end {
            ParentEnd::Node(id, at) => &self.nodes.get(&id)?.edges.get(at)?.child,
            ParentEnd::Root(id) => &self.roots.get(&id)?.child,
        };
        child.as_ref().map(NodeRef::id)
    }

    /// The place of a node's edge called `name`.
    pub(crate) fn edge_at(&self, node: &NodeRef, name: &str) -> GraphResult<usize> {
        let found = self.node(node)?.edges.iter().position(|edge| edge.name.as_str() == name);
        found.ok_or_else(|| GraphError::NoSuchEdge { parent: node.name().into(), edge: name.into() })
    }

    /// Whether `below` can be reached from `from`, itself included.
    #[doc(alias = "bdrv_chain_contains")]
    pub(crate) fn reaches(&self, from: Id, below: Id) -> bool {
        let (mut seen, mut stack) = (BTreeSet::new(), vec![from]);
        while let Some(id) = stack.pop() {
            if id == below {
                return true;
            }
            if seen.insert(id) {
                stack.extend(self.children(id).into_iter().map(|(_, child)| child));
            }
        }
        false
    }

    /// Repoint edges, all or none: every parent must be drained, no edge frozen, no cycle made, no permission in conflict.
    pub(crate) fn repoint(&mut self, changes: &[Change]) -> GraphResult<Vec<NodeRef>> {
        for change in changes {
            self.check_repoint(change)?;
        }
        let plan = Plan::new(self, changes, &[])?;
        let mut old = Vec::new();
        for change in changes {
            old.extend(self.repoint_one(change));
        }
        plan.commit(self);
        self.apply_drains();
        // Dropped by the caller, when the graph is no longer borrowed.
        Ok(old)
    }

    fn check_repoint(&self, change: &Change) -> GraphResult<()> {
        match change.end {
            ParentEnd::Node(id, at) => {
                let Some(parent) = self.nodes.get(&id) else { return Err(GraphError::ShuttingDown) };
                let edge = &parent.edges[at];
                if edge.frozen {
                    return Err(GraphError::Frozen {
                        edge: edge.name.as_str().into(),
                        parent: parent.name.as_str().into(),
                        child: edge.child.as_ref().map_or("", NodeRef::name).into(),
                    });
                }
                if let Some(child) = &change.child
                    && self.reaches(child.id(), id)
                {
                    let (parent, child) = (parent.name.as_str().into(), child.name().into());
                    return Err(GraphError::Cycle { parent, child });
                }
                let drained = parent.control.proof().is_some();
                drained.then_some(()).ok_or_else(|| GraphError::NotDrained(parent.name.as_str().into()))
            }
            ParentEnd::Root(id) => {
                let Some(root) = self.roots.get(&id) else { return Err(GraphError::ShuttingDown) };
                let drained = root.control.proof().is_some();
                drained.then_some(()).ok_or_else(|| GraphError::NotDrained(root.name.clone()))
            }
        }
    }

    /// Commit one change that was checked. Returns the former child.
    fn repoint_one(&mut self, change: &Change) -> Option<NodeRef> {
        let io = change.child.as_ref().map(NodeRef::io);
        let old = match change.end {
            ParentEnd::Node(id, at) => {
                let node = self.nodes.get_mut(&id)?;
                let proof = node.control.proof()?;
                let edge = &mut node.edges[at];
                edge.writer.repoint(io, &proof);
                std::mem::replace(&mut edge.child, change.child.clone())
            }
            ParentEnd::Root(id) => {
                let root = self.roots.get_mut(&id)?;
                root.control.repoint(io)?;
                std::mem::replace(&mut root.child, change.child.clone())
            }
        };
        if let Some(node) = old.as_ref().and_then(|old| self.nodes.get_mut(&old.id())) {
            node.parents.remove(&change.end);
        }
        if let Some(node) = change.child.as_ref().and_then(|new| self.nodes.get_mut(&new.id())) {
            node.parents.insert(change.end);
        }
        old
    }
}
