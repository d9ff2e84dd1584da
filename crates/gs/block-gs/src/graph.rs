//! The graph: who is above whom, under which name, with which permissions.
//!
//! Plain data, borrowed in synchronous code only. What waits is in `drain`, `open` and `close`; what may be changed, and by whom, is said
//! there and in `perm`. Engines, requests and threads are not here.

use crate::bitmap::BitmapRef;
use crate::driver::{DriverType, EngineControl};
use crate::error::{GraphError, GraphResult};
use crate::length::Lengths;
use crate::object::IoThreadRef;
use crate::open::CommonOptions;
use crate::perm::{Change, Plan};
use crate::threshold::Threshold;
use block_common::options::Dict;
use block_common::{ChildName, ChildRole, NodeName, ParentKind, PermPair};
use block_io::{EdgeWriter, IoNode, NodeControl, NodeTarget, RootControl};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

/// Numbers nodes, roots, drains and acts; never used twice, nor by another block layer of this process: a stranger's handle
/// names nothing here.
pub(crate) type Id = u64;

/// The longest way from the top to the bottom, in nodes. A request that no shortcut is found for takes one call for each, on an I/O thread's
/// stack.
pub(crate) const DEPTH_MAX: usize = 1024;

/// The next number. It is no state of any block layer.
pub(crate) fn number() -> Id {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

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
    /// The child was opened for this node, and takes from it what its own options do not say.
    pub(crate) is_inline: bool,
    /// It was removed: only its place is left.
    pub(crate) is_gone: bool,
    /// What is asked through it for now, beside what the driver says.
    pub(crate) more: PermPair,
}

pub(crate) struct GsNode {
    pub(crate) name: NodeName,
    pub(crate) driver: Rc<dyn DriverType>,
    pub(crate) control: NodeControl,
    /// Shared with whoever uses it, so that the graph is not borrowed meanwhile.
    pub(crate) engine_control: Rc<RefCell<Box<dyn EngineControl>>>,
    pub(crate) edges: Vec<GsEdge>,
    pub(crate) parents: BTreeSet<ParentEnd>,
    pub(crate) read_only: bool,
    /// The options that every node has; of `force_share`, its users share everything, whatever they say.
    pub(crate) common: CommonOptions,
    /// What its users need and share together, as the driver was told last.
    pub(crate) asked: PermPair,
    pub(crate) options: Dict,
    /// What its edges ask for beside what its driver says.
    pub(crate) perm_more: PermPair,
    /// In the order of their making.
    pub(crate) bitmaps: Vec<BitmapRef>,
    pub(crate) threshold: Option<Arc<Threshold>>,
    /// Where those who use it have their slow requests served, if that was said.
    pub(crate) home: Option<IoThreadRef>,
    /// The monitor's own reference, for nodes that were added by name.
    pub(crate) monitor: Option<NodeRef>,
    /// The reaper is at it: it stays quiesced.
    pub(crate) closing: bool,
    /// How many nodes the longest way down from here has, this one included.
    depth: usize,
    token: Weak<Token>,
}

impl GsNode {
    /// Whether somebody refers to it. Otherwise it is on its way out.
    pub(crate) fn is_alive(&self) -> bool {
        self.token.strong_count() > 0
    }

    /// What it filters, if it is a filter that leads somewhere.
    pub(crate) fn filtered(&self) -> Option<&NodeRef> {
        let edge = self.edges.iter().find(|edge| edge.role.contains(ChildRole::FILTERED))?;
        edge.child.as_ref().filter(|_| self.driver.is_filter())
    }
}

pub(crate) struct GsRoot {
    pub(crate) name: String,
    /// What messages call it that has no name.
    pub(crate) label: String,
    pub(crate) kind: ParentKind,
    pub(crate) control: RootControl,
    pub(crate) child: Option<NodeRef>,
    pub(crate) perm: PermPair,
    /// It stands for this edge of a node that is being opened.
    pub(crate) edge: Option<ChildName>,
    /// The reaper is at it: it stays quiesced.
    pub(crate) closing: bool,
    /// The object that its home is, if it is one: it stays as long.
    pub(crate) thread: Option<IoThreadRef>,
    /// Held by its [`RootRef`](crate::RootRef).
    pub(crate) holder: Weak<()>,
    /// It keeps its home when its node gets another one.
    pub(crate) stays: bool,
    /// The length of its node, as whoever watches it knows it; and he.
    pub(crate) length: Option<u64>,
    pub(crate) watcher: Option<Rc<dyn Fn(u64)>>,
}

impl GsRoot {
    /// What messages call it.
    pub(crate) fn shown(&self) -> &str {
        if self.name.is_empty() { &self.label } else { &self.name }
    }

    /// Whether somebody holds it. Otherwise it is on its way out.
    pub(crate) fn is_alive(&self) -> bool {
        self.holder.strong_count() > 0
    }
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
pub(crate) struct ReapQueue(RefCell<Reap>);

#[derive(Default)]
struct Reap {
    dead: VecDeque<Dead>,
    reaper: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dead {
    Node(Id),
    Root(Id),
}

impl ReapQueue {
    pub(crate) fn push(&self, dead: Dead) {
        self.0.borrow_mut().dead.push_back(dead);
        self.wake();
    }

    /// Have the reaper look.
    pub(crate) fn wake(&self) {
        let reaper = self.0.borrow_mut().reaper.take();
        reaper.into_iter().for_each(Waker::wake);
    }

    /// The next one that is dead, or whether to go on waiting: `None` when `is_over`.
    pub(crate) fn poll(&self, cx: &Context<'_>, is_over: impl FnOnce() -> bool) -> Poll<Option<Dead>> {
        let waker = cx.waker().clone();
        let mut reap = self.0.borrow_mut();
        if let Some(dead) = reap.dead.pop_front() {
            return Poll::Ready(Some(dead));
        }
        let old = reap.reaper.replace(waker);
        drop(reap);
        drop(old);
        if is_over() { Poll::Ready(None) } else { Poll::Pending }
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
    target: NodeTarget,
}

impl NodeRef {
    pub(crate) fn id(&self) -> Id {
        self.token.id
    }

    /// The node as I/O sees it.
    pub fn io(&self) -> &IoNode {
        self.target.node()
    }

    /// The node, to lead edges and entries to.
    pub(crate) fn target(&self) -> &NodeTarget {
        &self.target
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        self.io().name()
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
        self.io().fmt(f)
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
    pub(crate) common: CommonOptions,
    pub(crate) options: Dict,
}

impl NewNode {
    /// As a node of the graph, that nobody refers to yet.
    pub(crate) fn complete(self) -> Box<GsNode> {
        let Self { name, driver, mut control, engine_control, edges, read_only, common, options } = self;
        let bitmaps: Vec<_> = engine_control.kept_bitmaps().into_iter().map(BitmapRef::kept).collect();
        // Nothing is in flight yet.
        bitmaps.iter().filter(|bitmap| bitmap.records()).for_each(|bitmap| control.observe(bitmap.observer()));
        Box::new(GsNode {
            perm_more: engine_control.child_perm_more(),
            name,
            driver,
            control,
            engine_control: Rc::new(RefCell::new(engine_control)),
            edges,
            parents: BTreeSet::new(),
            read_only,
            common,
            asked: PermPair::NONE,
            options,
            bitmaps,
            threshold: None,
            home: None,
            monitor: None,
            closing: false,
            depth: 1,
            token: Weak::new(),
        })
    }
}

#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) nodes: BTreeMap<Id, GsNode>,
    pub(crate) roots: BTreeMap<Id, GsRoot>,
    /// A name may still lead to a node that is on its way out; it is free then.
    names: BTreeMap<String, Id>,
    names_made: u64,
    pub(crate) drains: BTreeMap<Id, DrainTarget>,
    /// Nodes that were told to hurry.
    pub(crate) hurried: BTreeSet<Id>,
    /// What the main loop itself is doing to nodes: reading headers through them, closing them. Each with the nodes at which its
    /// requests enter, drained or not.
    pub(crate) acts: BTreeMap<Id, Vec<Id>>,
    /// How many nodes are being opened.
    pub(crate) opening: usize,
    pub(crate) reap: Rc<ReapQueue>,
    pub(crate) lengths: Lengths,
    pub(crate) shut: bool,
}

impl Graph {
    pub(crate) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn node(&self, node: &NodeRef) -> GraphResult<&GsNode> {
        self.nodes.get(&node.id()).ok_or_else(|| GraphError::NotFound(node.name().into()))
    }

    pub(crate) fn node_mut(&mut self, node: &NodeRef) -> GraphResult<&mut GsNode> {
        self.nodes.get_mut(&node.id()).ok_or_else(|| GraphError::NotFound(node.name().into()))
    }

    /// A node by its name.
    pub(crate) fn find(&self, name: &str) -> Option<NodeRef> {
        self.handle(*self.names.get(name)?)
    }

    /// A new reference to a node, unless its last one is gone.
    pub(crate) fn handle(&self, id: Id) -> Option<NodeRef> {
        let node = self.nodes.get(&id)?;
        Some(NodeRef { token: node.token.upgrade()?, target: node.control.target() })
    }

    /// Whether the node, or what keeps it from above, is on its way out.
    pub(crate) fn is_being_freed(&self, id: Id) -> bool {
        let (nodes, roots) = self.above(DrainTarget::Node(id));
        let root_goes = |id| self.roots.get(id).is_some_and(|root| !root.is_alive());
        nodes.iter().any(|id| !self.is_closed_or_alive(*id)) || roots.iter().any(root_goes)
    }

    /// Whether a refusal to attach to `nodes` may come from users who are on their way out, so that waiting for them may help.
    pub(crate) fn may_pass<'a>(&self, error: &GraphError, nodes: impl IntoIterator<Item = &'a NodeRef>) -> bool {
        match error {
            GraphError::Permission { .. } => {
                nodes.into_iter().flat_map(|node| self.below(node.id())).any(|id| self.is_being_freed(id))
            }
            // Whoever holds the image may be another node of this graph, anywhere in it: one that has users, for others hold no lock.
            GraphError::Locked { .. } => {
                self.nodes.iter().any(|(id, node)| !node.is_alive() && !self.children(*id).is_empty())
                    || self.roots.values().any(|root| !root.is_alive() && root.child.is_some())
            }
            _ => false,
        }
    }

    /// Not on its way out: nothing is left to wait for.
    pub(crate) fn is_closed_or_alive(&self, id: Id) -> bool {
        self.nodes.get(&id).is_none_or(GsNode::is_alive)
    }

    /// Whether nothing at all is on its way out.
    pub(crate) fn is_settled(&self) -> bool {
        self.nodes.values().all(GsNode::is_alive) && self.roots.values().all(GsRoot::is_alive)
    }

    /// A name that is free: the wanted one, or a generated one.
    pub(crate) fn name(&mut self, wanted: Option<NodeName>) -> GraphResult<NodeName> {
        if let Some(name) = wanted {
            return self.check_name(name.as_str()).map(|()| name);
        }
        self.names_made += 1;
        Ok(NodeName::generated(self.names_made))
    }

    fn check_name(&self, name: &str) -> GraphResult<()> {
        let named = self.names.get(name).and_then(|id| self.nodes.get(id));
        if named.is_some_and(GsNode::is_alive) {
            return Err(GraphError::DuplicateName(name.into()));
        }
        let has_it = |root: &GsRoot| root.kind == ParentKind::Backend && root.name == name && root.is_alive();
        if self.roots.values().any(has_it) { Err(GraphError::NameOfDevice(name.into())) } else { Ok(()) }
    }

    /// Make a node part of the graph: its edges' permissions are taken, in the place of those that the roots `held` have for it. Or nothing
    /// happens, and the node comes back.
    pub(crate) fn insert(&mut self, node: Box<GsNode>, held: &[Id]) -> Result<NodeRef, (GraphError, Box<GsNode>)> {
        if self.shut {
            return Err((GraphError::ShuttingDown, node));
        }
        if let Err(error) = self.check_name(node.name.as_str()) {
            return Err((error, node));
        }
        let below = node.edges.iter().filter_map(|edge| edge.child.as_ref()).map(|child| self.depth(child.id()));
        let depth = 1 + below.max().unwrap_or(0);
        if depth > DEPTH_MAX {
            return Err((GraphError::TooDeep(node.name.as_str().into()), node));
        }
        let (id, target) = (number(), node.control.target());
        self.nodes.insert(id, GsNode { depth, ..*node });
        self.link_children(id);
        let plan = match Plan::with_roots(self, &[], &[id], &held.iter().map(|root| (*root, PermPair::NONE)).collect())
            .and_then(|plan| plan.prepare(self))
        {
            Ok(plan) => plan,
            Err(error) => {
                self.unlink_children(id);
                let back = self.nodes.remove(&id).expect("it was put there above");
                return Err((error, Box::new(back)));
            }
        };
        let token = Rc::new(Token { id, queue: self.reap.clone() });
        if let Some(node) = self.nodes.get_mut(&id) {
            node.token = Rc::downgrade(&token);
            self.names.insert(node.name.as_str().into(), id);
        }
        plan.commit(self);
        self.apply_drains();
        Ok(NodeRef { token, target })
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

    /// A node's name is free again, if it is still the node's.
    pub(crate) fn forget_name(&mut self, id: Id) {
        let Some(node) = self.nodes.get(&id) else { return };
        if self.names.get(node.name.as_str()) == Some(&id) {
            self.names.remove(node.name.as_str());
        }
    }

    /// Take a node out. What it asked of its children it asks no longer.
    pub(crate) fn forget(&mut self, id: Id) -> Option<GsNode> {
        self.forget_name(id);
        let below: Vec<_> = self.children(id).into_iter().map(|(_, child)| child).collect();
        self.unlink_children(id);
        let gone = self.nodes.remove(&id);
        self.loosen(&below);
        gone
    }

    /// Take a root out. What it asked of its node it asks no longer.
    pub(crate) fn forget_root(&mut self, id: Id) -> Option<GsRoot> {
        let gone = self.roots.remove(&id)?;
        if let Some(child) = gone.child.as_ref().map(NodeRef::id) {
            if let Some(node) = self.nodes.get_mut(&child) {
                node.parents.remove(&ParentEnd::Root(id));
            }
            self.loosen(&[child]);
        }
        Some(gone)
    }

    /// Nodes have lost users: compute anew what is asked of what is below them. Less than before, so it cannot fail; if a driver sees that
    /// differently, what was taken stays taken.
    pub(crate) fn loosen(&mut self, nodes: &[Id]) {
        match Plan::new(self, &[], nodes).and_then(|plan| plan.prepare(self)) {
            Ok(plan) => plan.commit(self),
            Err(error) => tracing::error!(%error, "a driver asks for more when it has fewer users"),
        }
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
        let found = self.node(node)?.edges.iter().position(|edge| edge.name.as_str() == name && !edge.is_gone);
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

    /// The nodes below `id`, itself included.
    pub(crate) fn below(&self, id: Id) -> BTreeSet<Id> {
        self.below_any(vec![id])
    }

    /// The nodes below any of `ids`, these included.
    pub(crate) fn below_any(&self, ids: Vec<Id>) -> BTreeSet<Id> {
        let (mut seen, mut stack) = (BTreeSet::new(), ids);
        while let Some(id) = stack.pop() {
            if seen.insert(id) {
                stack.extend(self.children(id).into_iter().map(|(_, child)| child));
            }
        }
        seen
    }

    fn depth(&self, id: Id) -> usize {
        self.nodes.get(&id).map_or(0, |node| node.depth)
    }

    /// How many nodes the longest way up from `id` has, itself included.
    fn height(&self, id: Id) -> usize {
        let mut heights = BTreeMap::new();
        for above in self.parents_first(&self.above(DrainTarget::Node(id)).0) {
            let parents = self.nodes[&above].parents.iter().filter_map(|end| match end {
                ParentEnd::Node(parent, _) => heights.get(parent).copied(),
                ParentEnd::Root(_) => None,
            });
            let height = 1 + parents.max().unwrap_or(0);
            heights.insert(above, height);
        }
        heights.get(&id).copied().unwrap_or(1)
    }

    /// Whether a node between `id` and its users would make a way too long.
    pub(crate) fn is_too_deep_with_one_more(&self, id: Id) -> bool {
        self.height(id) + self.depth(id) > DEPTH_MAX
    }

    /// The depths of `id` and of what is above it, after an edge of it was repointed.
    pub(crate) fn refresh_depths(&mut self, id: Id) {
        for above in self.parents_first(&self.above(DrainTarget::Node(id)).0).into_iter().rev() {
            let below = self.children(above).into_iter().map(|(_, child)| self.depth(child));
            let depth = 1 + below.max().unwrap_or(0);
            if let Some(node) = self.nodes.get_mut(&above) {
                node.depth = depth;
            }
        }
    }

    /// Repoint edges, all or none: every parent must be drained by one of `sections`, no edge frozen, no cycle made, no permission in conflict.
    pub(crate) fn repoint(&mut self, changes: &[Change], sections: &[DrainTarget]) -> GraphResult<Vec<NodeRef>> {
        self.check_changes(changes, sections)?;
        let plan = Plan::new(self, changes, &[])?.prepare(self)?;
        let old = changes.iter().filter_map(|change| self.repoint_one(change)).collect();
        for change in changes {
            if let ParentEnd::Node(id, _) = change.end {
                self.refresh_depths(id);
            }
        }
        plan.commit(self);
        self.apply_drains();
        // Dropped by the caller, when the graph is no longer borrowed.
        Ok(old)
    }

    /// Whether edges may be repointed, but for permissions: all of these changes together.
    pub(crate) fn check_changes(&self, changes: &[Change], sections: &[DrainTarget]) -> GraphResult<()> {
        let mut covered = (BTreeSet::new(), BTreeSet::new());
        for section in sections {
            let (nodes, roots) = self.above(*section);
            covered.0.extend(nodes);
            covered.1.extend(roots);
        }
        for change in changes {
            self.check_repoint(change, &covered)?;
        }
        let after = After { graph: self, changes };
        // What closes a circle is what comes last.
        for change in changes.iter().rev() {
            after.check_cycle(change)?;
        }
        after.check_depth()
    }

    fn check_repoint(&self, change: &Change, covered: &(BTreeSet<Id>, BTreeSet<Id>)) -> GraphResult<()> {
        if let Some(child) = &change.child {
            self.node(child)?;
        }
        match change.end {
            ParentEnd::Node(id, at) => {
                let Some(parent) = self.nodes.get(&id) else { return Err(GraphError::ShuttingDown) };
                let (edge, name) = (&parent.edges[at], parent.name.as_str());
                if edge.frozen {
                    return Err(frozen(parent, edge));
                }
                let drained = covered.0.contains(&id) && parent.control.proof().is_some() && !self.is_acted_on(id);
                drained.then_some(()).ok_or_else(|| GraphError::NotDrained(name.into()))
            }
            ParentEnd::Root(id) => {
                let Some(root) = self.roots.get(&id) else { return Err(GraphError::ShuttingDown) };
                let drained = covered.1.contains(&id) && root.control.proof().is_some();
                drained.then_some(()).ok_or_else(|| GraphError::NotDrained(root.name.clone()))
            }
        }
    }

    /// Whether requests of the main loop's own may be on a node.
    pub(crate) fn is_acted_on(&self, id: Id) -> bool {
        if self.acts.is_empty() {
            return false;
        }
        let (above, _) = self.above(DrainTarget::Node(id));
        self.acts.values().flatten().any(|entry| above.contains(entry))
    }

    /// Commit one change that was checked. Returns the former child.
    pub(crate) fn repoint_one(&mut self, change: &Change) -> Option<NodeRef> {
        let target = change.child.as_ref().map(NodeRef::target);
        let old = match change.end {
            ParentEnd::Node(id, at) => {
                let node = self.nodes.get_mut(&id)?;
                let proof = node.control.proof()?;
                let edge = &mut node.edges[at];
                edge.writer.repoint(target, &proof);
                std::mem::replace(&mut edge.child, change.child.clone())
            }
            ParentEnd::Root(id) => {
                let root = self.roots.get_mut(&id)?;
                root.control.repoint(target)?;
                let old = std::mem::replace(&mut root.child, change.child.clone());
                self.watch_length(id);
                old
            }
        };
        if let Some(node) = old.as_ref().and_then(|old| self.nodes.get_mut(&old.id())) {
            node.parents.remove(&change.end);
        }
        if let Some(node) = change.child.as_ref().and_then(|new| self.nodes.get_mut(&new.id())) {
            node.parents.insert(change.end);
        }
        if let Some(child) = &change.child {
            self.follow_length(child.id());
        }
        old
    }

    /// A filter gets new users: what is below it may have grown or shrunk since it was opened.
    fn follow_length(&self, id: Id) {
        // Down to what is no filter, and up again.
        let below = |id: &Id| self.nodes.get(id)?.filtered().map(NodeRef::id);
        let chain: Vec<_> = std::iter::successors(Some(id), below).collect();
        for pair in chain.windows(2).rev() {
            if let (Some(filter), Some(child)) = (self.nodes.get(&pair[0]), self.nodes.get(&pair[1])) {
                filter.control.set_length(child.control.node().length());
            }
        }
    }
}

/// The graph as it will be when edges have been repointed.
struct After<'a> {
    graph: &'a Graph,
    changes: &'a [Change],
}

impl After<'_> {
    fn children(&self, id: Id) -> impl Iterator<Item = Id> {
        let count = self.graph.nodes.get(&id).map_or(0, |node| node.edges.len());
        (0..count).filter_map(move |at| {
            let end = ParentEnd::Node(id, at);
            match self.changes.iter().rev().find(|change| change.end == end) {
                Some(change) => change.child.as_ref().map(NodeRef::id),
                None => self.graph.child_at(end),
            }
        })
    }

    /// Whether the node that gets a child through `change` is below that child.
    fn check_cycle(&self, change: &Change) -> GraphResult<()> {
        let (ParentEnd::Node(parent, at), Some(child)) = (change.end, &change.child) else { return Ok(()) };
        let (mut seen, mut stack) = (BTreeSet::new(), vec![child.id()]);
        while let Some(id) = stack.pop() {
            if id == parent {
                let node = &self.graph.nodes[&parent];
                let (edge, parent) = (node.edges[at].name.as_str().into(), node.name.as_str().into());
                return Err(GraphError::Cycle { parent, edge, child: child.name().into() });
            }
            if seen.insert(id) {
                stack.extend(self.children(id));
            }
        }
        Ok(())
    }

    /// Whether a way down from a node would be too long. There are no circles.
    fn check_depth(&self) -> GraphResult<()> {
        let mut above = BTreeSet::new();
        for change in self.changes {
            if let ParentEnd::Node(id, _) = change.end {
                above.extend(self.graph.above(DrainTarget::Node(id)).0);
            }
        }
        // Of all others the graph remembers how much is below them.
        let mut depths: BTreeMap<Id, usize> = BTreeMap::new();
        for top in &above {
            let mut stack = vec![(*top, false)];
            while let Some((id, left)) = stack.pop() {
                if depths.contains_key(&id) {
                    continue;
                }
                let changed = self.children(id).filter(|child| above.contains(child));
                if !left {
                    stack.push((id, true));
                    stack.extend(changed.map(|child| (child, false)));
                    continue;
                }
                let depth = |child| depths.get(&child).copied().unwrap_or_else(|| self.graph.depth(child));
                let depth = 1 + self.children(id).map(depth).max().unwrap_or(0);
                if depth > DEPTH_MAX {
                    return Err(GraphError::TooDeep(self.graph.nodes[&id].name.as_str().into()));
                }
                depths.insert(id, depth);
            }
        }
        Ok(())
    }
}

/// The error of whoever would change a frozen edge.
pub(crate) fn frozen(parent: &GsNode, edge: &GsEdge) -> GraphError {
    GraphError::Frozen {
        edge: edge.name.as_str().into(),
        parent: parent.name.as_str().into(),
        child: edge.child.as_ref().map_or("", NodeRef::name).into(),
    }
}
