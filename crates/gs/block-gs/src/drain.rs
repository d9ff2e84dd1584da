//! Draining: no request in flight, none let in, for as long as the guard lives.
//!
//! Which gates are closed is a pure function of the graph (a gate is closed when it lies above an active drain), computed
//! anew after every change. So nesting, and parents that attach to a drained node, need no counters. The guard exists before the
//! wait: giving up half-way undoes everything. Ending is synchronous and cannot fail.

use crate::graph::{DrainTarget, Graph, Id, NodeRef, ParentEnd, number};
use crate::state::GlobalState;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// A drained section. Ends when dropped.
#[must_use = "the section ends when its guard is dropped"]
#[doc(alias = "bdrv_drained_begin")]
#[doc(alias = "bdrv_drained_end")]
pub struct DrainGuard {
    gs: GlobalState,
    id: Id,
}

impl Drop for DrainGuard {
    /// Whom this wakes are the tasks of I/O threads: nothing comes back here while the graph is borrowed.
    fn drop(&mut self) {
        let mut graph = self.gs.0.graph.borrow_mut();
        graph.drains.remove(&self.id);
        graph.apply_drains();
    }
}

impl fmt::Debug for DrainGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DrainGuard({:?})", self.gs.0.graph.try_borrow().map(|graph| graph.drains.get(&self.id).copied()))
    }
}

impl GlobalState {
    /// Hold back new requests to `node`, at every parent all the way up, and wait until what is in flight is over. The gates are
    /// closed when this returns; dropping the future, or the guard, opens them. Of a node of another block layer nothing is drained.
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
        let id = number();
        {
            let mut graph = self.0.graph.borrow_mut();
            graph.drains.insert(id, target);
            graph.apply_drains();
        }
        let guard = DrainGuard { gs: self.clone(), id };
        async move {
            guard.settled().await;
            guard
        }
    }

    /// Wait until `done`. It is asked again whenever something was closed, or an act of the main loop is over.
    pub(crate) async fn wait_until(&self, mut done: impl FnMut(&Graph) -> bool) {
        loop {
            let changed = self.0.changed.notified();
            if done(&self.0.graph.borrow()) {
                return;
            }
            changed.await;
        }
    }
}

impl DrainGuard {
    /// Wait until everything that this guard covers is idle, parents before children. It was when the section began; afterwards the main
    /// loop may have sent requests of its own, which no section holds back: a node above that is being closed flushes, a node that is being opened reads
    /// its header.
    pub async fn settled(&self) {
        loop {
            // Looked up anew after each wait: the graph may have changed, and what attached meanwhile counts as well (rule drain-3).
            let changed = self.gs.0.changed.notified();
            let (waiting, is_acted_on) = {
                let graph = self.gs.0.graph.borrow();
                let busy = graph.busy(self.id);
                let is_acted_on = busy.is_empty() && graph.is_section_acted_on(self.id);
                (busy, is_acted_on)
            };
            if is_acted_on {
                changed.await;
            } else if waiting.is_empty() {
                // Those who share a throttle with what is drained are throttled again, however long the section lasts.
                self.gs.0.graph.borrow_mut().apply_hurry();
                return;
            }
            for idle in waiting {
                idle.await;
            }
        }
    }

    /// Whether there is nothing to wait for at this moment.
    pub(crate) fn is_settled(&self) -> bool {
        let graph = self.gs.0.graph.borrow();
        graph.busy(self.id).is_empty() && !graph.is_section_acted_on(self.id)
    }

    pub(crate) fn id(&self) -> Id {
        self.id
    }

    /// Whether the section covers `node`: it is drained, or lies above what is.
    pub fn covers(&self, node: &NodeRef) -> bool {
        let graph = self.gs.0.graph.borrow();
        graph.drains.get(&self.id).is_some_and(|target| graph.above(*target).0.contains(&node.id()))
    }

    /// What it drains, if it is a section of `gs`.
    pub(crate) fn target(&self, gs: &GlobalState) -> Option<DrainTarget> {
        if !Rc::ptr_eq(&self.gs.0, &gs.0) {
            return None;
        }
        gs.0.graph.borrow().drains.get(&self.id).copied()
    }
}

/// The main loop has requests of its own on nodes, for as long as this lives.
pub(crate) struct Act {
    gs: GlobalState,
    id: Id,
}

impl GlobalState {
    /// Requests of the main loop's own are going to enter at `nodes`, drained or not.
    pub(crate) fn act(&self, nodes: Vec<Id>) -> Act {
        let id = number();
        let mut graph = self.0.graph.borrow_mut();
        graph.acts.insert(id, nodes);
        graph.apply_hurry();
        Act { gs: self.clone(), id }
    }
}

impl Drop for Act {
    fn drop(&mut self) {
        let mut graph = self.gs.0.graph.borrow_mut();
        graph.acts.remove(&self.id);
        graph.apply_hurry();
        drop(graph);
        self.gs.0.changed.notify_waiters();
    }
}

type Idle = Pin<Box<dyn Future<Output = ()>>>;

impl Graph {
    /// The nodes and roots from `target` all the way up.
    pub(crate) fn above(&self, target: DrainTarget) -> (BTreeSet<Id>, BTreeSet<Id>) {
        let (mut nodes, mut roots) = (BTreeSet::new(), BTreeSet::new());
        match target {
            DrainTarget::All => return (self.nodes.keys().copied().collect(), self.roots.keys().copied().collect()),
            DrainTarget::Root(id) => return (nodes, BTreeSet::from([id])),
            DrainTarget::Node(id) => {
                let mut stack = vec![id];
                while let Some(id) = stack.pop() {
                    let Some(node) = self.nodes.get(&id) else { continue };
                    if !nodes.insert(id) {
                        continue;
                    }
                    for parent in &node.parents {
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

    /// Close the gates that lie above an active drain, open the others. Who is waited for from then on hurries.
    pub(crate) fn apply_drains(&mut self) {
        let (mut nodes, mut roots) = (BTreeSet::new(), BTreeSet::new());
        for target in self.drains.values() {
            let (more_nodes, more_roots) = self.above(*target);
            nodes.extend(more_nodes);
            roots.extend(more_roots);
        }
        for (id, root) in &mut self.roots {
            root.control.set_quiesced(root.closing || roots.contains(id));
        }
        for (id, node) in &mut self.nodes {
            node.control.set_quiesced(node.closing || nodes.contains(id));
        }
        self.apply_hurry();
    }

    /// Let requests that wait for nothing but time go on at once, in every node that one may be in which somebody waits for, and in no other (rule drain-5).
    pub(crate) fn apply_hurry(&mut self) {
        let wanted = self.below_any(self.waited_for());
        if wanted == self.hurried {
            return;
        }
        for id in wanted.symmetric_difference(&self.hurried) {
            if let Some(node) = self.nodes.get_mut(id) {
                node.control.set_hurried(wanted.contains(id));
            }
        }
        self.hurried = wanted;
    }

    /// Where requests are that somebody waits for: at gates that are closed and not idle, and where the main loop has, or is going to have, requests of its own on a node
    /// that is drained or closing. Nothing else comes to a closed gate but through one of these.
    fn waited_for(&self) -> Vec<Id> {
        let is_closed = |id: &Id| self.nodes.get(id).is_some_and(|node| node.control.is_quiesced());
        let roots = self.roots.values().filter(|root| root.control.is_quiesced() && !root.control.is_idle());
        let roots = roots.filter_map(|root| root.child.as_ref().map(NodeRef::id));
        let nodes = self.nodes.iter().filter(|(_, node)| node.control.is_quiesced() && !node.control.is_idle());
        let acts = self.acts.values().flatten().copied().filter(is_closed);
        roots.chain(nodes.map(|(id, _)| *id)).chain(acts).collect()
    }

    /// What a drain covers and was not yet seen idle, topmost first.
    fn busy(&self, drain: Id) -> Vec<Idle> {
        let Some(target) = self.drains.get(&drain) else { return Vec::new() };
        let (nodes, roots) = self.above(*target);
        let roots = roots.iter().filter_map(|id| self.roots.get(id));
        let roots = roots.filter(|root| root.control.proof().is_none());
        let mut busy: Vec<Idle> = roots.map(|root| Box::pin(root.control.idle()) as Idle).collect();
        let nodes = self.parents_first(&nodes);
        let nodes = nodes.iter().filter_map(|id| self.nodes.get(id)).filter(|node| node.control.proof().is_none());
        busy.extend(nodes.map(|node| Box::pin(node.control.idle()) as Idle));
        busy
    }

    /// Whether the main loop has requests of its own on what a drain covers.
    fn is_section_acted_on(&self, drain: Id) -> bool {
        let Some(target) = self.drains.get(&drain) else { return false };
        let (nodes, _) = self.above(*target);
        self.acts.values().flatten().any(|entry| nodes.contains(entry))
    }

    /// Every node, parents before their children.
    pub(crate) fn all_parents_first(&self) -> Vec<Id> {
        self.parents_first(&self.nodes.keys().copied().collect())
    }

    /// `nodes`, every parent before its children.
    pub(crate) fn parents_first(&self, nodes: &BTreeSet<Id>) -> Vec<Id> {
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
