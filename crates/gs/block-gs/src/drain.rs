//! Draining: no request in flight, none let in, for as long as the guard lives.
//!
//! Which gates are closed is a pure function of the graph (a gate is closed when it lies above an active drain), computed
//! anew after every change. So nesting, and parents that attach to a drained node, need no counters. The guard exists before the
//! wait: giving up half-way undoes everything. Ending is synchronous and cannot fail.

use crate::error::{GraphError, GraphResult};
use crate::graph::{DrainTarget, Graph, Id, NodeRef, ParentEnd};
use crate::state::GlobalState;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// A drained section. Ends when dropped.
#[must_use = "the section ends when its guard is dropped"]
#[doc(alias = "bdrv_drained_begin")]
#[doc(alias = "bdrv_drained_end")]
pub struct DrainGuard {
    gs: GlobalState,
    id: Id,
}

impl Drop for DrainGuard {
    fn drop(&mut self) {
        let mut graph = self.gs.0.graph.borrow_mut();
        graph.drains.remove(&self.id);
        graph.apply_drains();
    }
}

impl fmt::Debug for DrainGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DrainGuard({:?})", self.gs.0.graph.borrow().drains.get(&self.id))
    }
}

impl GlobalState {
    /// Hold back new requests to `node`, at every parent all the way up, and wait until what is in flight is over.
    #[doc(alias = "bdrv_drain")]
    pub fn drain(&self, node: &NodeRef) -> impl Future<Output = DrainGuard> + use<> {
        self.begin(DrainTarget::Node(node.id()))
    }

    /// The same for every node and every root.
    #[doc(alias = "bdrv_drain_all_begin")]
    #[doc(alias = "bdrv_drain_all_end")]
    #[doc(alias = "bdrv_drain_all")]
    #[doc(alias = "blk_drain_all")]
    pub fn drain_all(&self) -> impl Future<Output = DrainGuard> + use<> {
        self.begin(DrainTarget::All)
    }

    /// Closes the gates at once, before the first poll; the future waits.
    pub(crate) fn begin(&self, target: DrainTarget) -> impl Future<Output = DrainGuard> + use<> {
        let id = {
            let mut graph = self.0.graph.borrow_mut();
            let id = graph.number();
            graph.drains.insert(id, target);
            graph.apply_drains();
            id
        };
        let guard = DrainGuard { gs: self.clone(), id };
        async move {
            guard.settle().await;
            guard
        }
    }
}

impl DrainGuard {
    /// Wait until everything that this guard covers is idle, parents before children. What attached meanwhile is waited for as well.
    async fn settle(&self) {
        loop {
            // Looked up anew after each wait: the graph may have changed (rule drain-3).
            let waiting = self.gs.0.graph.borrow().first_busy(self.id);
            match waiting {
                Some(idle) => idle.await,
                None => return,
            }
        }
    }

    /// Whether the section covers `node`: it is drained, or lies above what is.
    pub fn covers(&self, node: &NodeRef) -> bool {
        let graph = self.gs.0.graph.borrow();
        graph.drains.get(&self.id).is_some_and(|target| graph.above(*target).0.contains(&node.id()))
    }

    pub(crate) fn check(&self, gs: &GlobalState) -> GraphResult<()> {
        if std::rc::Rc::ptr_eq(&self.gs.0, &gs.0) {
            Ok(())
        } else {
            Err(GraphError::NotDrained("of another block layer".into()))
        }
    }
}

type Idle = Pin<Box<dyn Future<Output = ()>>>;

impl Graph {
    /// The nodes and roots from `target` all the way up.
    fn above(&self, target: DrainTarget) -> (BTreeSet<Id>, BTreeSet<Id>) {
        let (mut nodes, mut roots) = (BTreeSet::new(), BTreeSet::new());
        match target {
            DrainTarget::All => return (self.nodes.keys().copied().collect(), self.roots.keys().copied().collect()),
            DrainTarget::Root(id) => return (nodes, BTreeSet::from([id])),
            DrainTarget::Node(id) => {
                let mut stack = vec![id];
                while let Some(id) = stack.pop() {
                    if !nodes.insert(id) {
                        continue;
                    }
                    for parent in self.nodes.get(&id).into_iter().flat_map(|node| node.parents.iter()) {
                        match parent {
                            ParentEnd::Node(id, _) => stack.push(*id),
                            ParentEnd::Root(id) => drop(roots.insert(*id)),
                        }
                    }
                }
            }
        }
        (nodes, roots)
    }

    /// Close the gates that lie above an active drain, open the others.
    pub(crate) fn apply_drains(&mut self) {
        let (mut nodes, mut roots) = (BTreeSet::new(), BTreeSet::new());
        for target in self.drains.values() {
            let (more_nodes, more_roots) = self.above(*target);
            nodes.extend(more_nodes);
            roots.extend(more_roots);
        }
        for (id, root) in &mut self.roots {
            root.control.set_quiesced(roots.contains(id));
        }
        for (id, node) in &mut self.nodes {
            node.control.set_quiesced(nodes.contains(id));
        }
    }

    /// Something that a drain covers and that was not yet seen idle, topmost first.
    fn first_busy(&self, drain: Id) -> Option<Idle> {
        let (nodes, roots) = self.above(*self.drains.get(&drain)?);
        for id in &roots {
            let root = self.roots.get(id)?;
            if root.control.proof().is_none() {
                return Some(Box::pin(root.control.idle()));
            }
        }
        for id in self.parents_first(&nodes) {
            let node = self.nodes.get(&id)?;
            if node.control.proof().is_none() {
                return Some(Box::pin(node.control.idle()));
            }
        }
        None
    }

    /// `nodes`, every parent before its children.
    fn parents_first(&self, nodes: &BTreeSet<Id>) -> Vec<Id> {
        let (mut done, mut order) = (BTreeSet::new(), Vec::new());
        for start in nodes {
            let mut stack = vec![(*start, false)];
            while let Some((id, left)) = stack.pop() {
                if left {
                    order.push(id);
                } else if nodes.contains(&id) && done.insert(id) {
                    stack.push((id, true));
                    stack.extend(self.children(id).into_iter().map(|(_, child)| (child, false)));
                }
            }
        }
        order.reverse();
        order
    }
}
