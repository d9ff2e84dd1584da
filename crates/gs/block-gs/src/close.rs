//! Closing: a node goes when its last reference does, and its flush's error is told.
//!
//! The last reference's drop only queues the node, and its name is free from then on. The reaper takes nodes from there, each on its
//! way beside the others, so that one whose storage hangs holds up nobody else: its requests drain away, the engine flushes and closes on
//! an I/O thread, the node leaves the graph and lets go of its children. So parents close before their children. Roots go the same way,
//! with nothing to flush.

use crate::error::{GraphError, GraphResult};
use crate::event::Event;
use crate::graph::{Dead, Graph, Id, NodeRef, ParentEnd, ReapQueue};
use crate::perm::Change;
use crate::state::{GlobalState, Inner};
use block_common::IoError;
use block_io::NodeControl;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::rc::{Rc, Weak};

/// How many failed closings are remembered until somebody asks.
const CLOSE_ERRORS_MAX: usize = 256;

/// Take the dead out of the graph, for as long as there is one.
pub(crate) async fn reaper(queue: Rc<ReapQueue>, state: Weak<Inner>) {
    while let Some(dead) = poll_fn(|cx| queue.poll(cx, || state.strong_count() == 0)).await {
        let Some(inner) = state.upgrade() else { return };
        let gs = GlobalState(inner);
        let main = gs.main().clone();
        drop(main.spawn(async move {
            match dead {
                Dead::Node(id) => gs.reap_node(id).await,
                Dead::Root(id) => gs.reap_root(id).await,
            }
            gs.0.changed.notify_waiters();
        }));
    }
}

impl GlobalState {
    async fn reap_node(&self, id: Id) {
        let (idle, name) = {
            let mut graph = self.0.graph.borrow_mut();
            graph.forget_name(id);
            let Some(node) = graph.nodes.get_mut(&id) else { return };
            node.closing = true;
            node.control.set_quiesced(true);
            let waiting = (node.control.idle(), node.name.as_str().to_owned());
            graph.apply_hurry();
            waiting
        };
        idle.await;
        // Entered as the main loop, never held back: the node may lie below a drain.
        let entered = self.0.graph.borrow().nodes.get(&id).map(|node| node.control.enter());
        if let Some(Ok(req)) = entered {
            let act = self.act(vec![id]);
            let closed = self.main_io().run(async move { NodeControl::close_engine(&req).await }).await;
            drop(act);
            if let Err(error) = closed.unwrap_or(Err(IoError::CANCELLED)) {
                self.closing_failed(id, name, error);
            }
        }
        let (released, gone) = {
            let mut graph = self.0.graph.borrow_mut();
            let released = graph.let_go_of_children(id);
            let gone = graph.forget(id);
            graph.loosen(&released.iter().map(NodeRef::id).collect::<Vec<_>>());
            graph.apply_drains();
            (released, gone)
        };
        // Dropped here, outside the borrow: the children may be next.
        if let Some(mut gone) = gone {
            gone.control.shut();
        }
        drop(released);
    }

    fn closing_failed(&self, id: Id, node: String, error: IoError) {
        tracing::error!(node, %error, "closing failed");
        self.emit(Event::CloseFailed { node: node.clone(), error });
        let mut errors = self.0.close_errors.borrow_mut();
        if errors.len() < CLOSE_ERRORS_MAX {
            errors.push((id, GraphError::Io { context: format!("Closing node '{node}' failed"), error }));
        }
    }

    /// A request that entered before this must have left before the node may close.
    async fn reap_root(&self, id: Id) {
        let idle = {
            let mut graph = self.0.graph.borrow_mut();
            let Some(root) = graph.roots.get_mut(&id) else { return };
            root.closing = true;
            root.control.shut();
            root.control.set_quiesced(true);
            let idle = root.control.idle();
            graph.apply_hurry();
            idle
        };
        idle.await;
        let (released, gone) = {
            let mut graph = self.0.graph.borrow_mut();
            let released = graph.detach_roots(&[id]);
            let gone = graph.forget_root(id);
            graph.apply_drains();
            (released, gone)
        };
        drop((gone, released));
    }

    /// The first error among the closings of `nodes`, which are then forgotten.
    fn take_close_error(&self, nodes: impl Fn(Id) -> bool) -> GraphResult<()> {
        let mut errors = self.0.close_errors.borrow_mut();
        let (taken, kept) = std::mem::take(&mut *errors).into_iter().partition::<Vec<_>, _>(|(id, _)| nodes(*id));
        *errors = kept;
        taken.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Wait until those of `nodes` are closed that nobody refers to any more.
    pub(crate) async fn closed(&self, nodes: &BTreeSet<Id>) {
        self.wait_until(|graph| nodes.iter().all(|id| graph.is_closed_or_alive(*id))).await;
    }

    /// Wait until every node and root whose last reference is gone is closed, and return the first error of those closings since
    /// the last call, if [`GlobalState::close`] has not returned it.
    ///
    /// # Errors
    /// What a flush or a close answered.
    pub async fn settle(&self) -> GraphResult<()> {
        self.wait_until(|graph| graph.is_settled()).await;
        self.take_close_error(|_| true)
    }

    /// Give `node` up and wait until it is closed, with everything below it that nobody else uses. Users that are on their way out already
    /// are waited for.
    ///
    /// # Errors
    /// [`GraphError::InUse`] when somebody else holds it, or the first thing that a flush or a close among these nodes answered.
    #[doc(alias = "bdrv_close")]
    pub async fn close(&self, node: NodeRef) -> GraphResult<()> {
        self.0.graph.borrow().node(&node)?;
        self.wait_until(|graph| !is_in_use(graph, &node) || !graph.is_being_freed(node.id())).await;
        let (monitor, below) = {
            let mut graph = self.0.graph.borrow_mut();
            if is_in_use(&graph, &node) {
                return Err(GraphError::InUse(node.name().into()));
            }
            let below = graph.below(node.id());
            (graph.nodes.get_mut(&node.id()).and_then(|node| node.monitor.take()), below)
        };
        drop((monitor, node));
        self.closed(&below).await;
        self.take_close_error(|id| below.contains(&id))
    }

    /// Close everything: refuse new requests and nodes, detach every root, drop what the monitor holds, close each node as its last user
    /// leaves. A device that still holds its half gets errors. Nodes that are being opened fail.
    ///
    /// # Errors
    /// The first error of a closing; or [`GraphError::LeftOpen`] names the nodes that somebody still refers to (they stay open).
    #[doc(alias = "bdrv_close_all")]
    #[doc(alias = "blk_remove_all_bs")]
    #[doc(alias = "blockdev_close_all_bdrv_states")]
    pub async fn close_all(&self) -> GraphResult<()> {
        self.0.graph.borrow_mut().shut = true;
        let guard = self.drain_all().await;
        let released = {
            let mut graph = self.0.graph.borrow_mut();
            let roots: Vec<Id> = graph.roots.keys().copied().collect();
            let mut released = graph.detach_roots(&roots);
            for root in graph.roots.values_mut() {
                root.control.shut();
            }
            released.extend(graph.nodes.values_mut().filter_map(|node| node.monitor.take()));
            released
        };
        drop(guard);
        drop(released);
        self.wait_until(|graph| graph.opening == 0).await;
        let closed = self.settle().await;
        let left: Vec<_> = self.nodes().into_iter().map(|node| node.name).collect();
        if left.is_empty() {
            return closed;
        }
        tracing::error!(
            nodes = left.join(", "),
            "somebody still refers to nodes after everything should have been closed"
        );
        closed.and(Err(GraphError::LeftOpen(left)))
    }
}

/// Whether anybody but the caller and the monitor refers to `node`.
fn is_in_use(graph: &Graph, node: &NodeRef) -> bool {
    let monitor = graph.nodes.get(&node.id()).is_some_and(|node| node.monitor.is_some());
    node.count() > 1 + usize::from(monitor)
}

impl Graph {
    /// Let the edges of a closed node lead nowhere, so that whoever still holds its engine does not hold all that was below. Returns the
    /// references that they held.
    fn let_go_of_children(&mut self, id: Id) -> Vec<NodeRef> {
        let ends = self.children(id).into_iter();
        ends.filter_map(|(end, _)| self.repoint_one(&Change { end, child: None })).collect()
    }

    /// Let roots lead nowhere; they must be drained. Returns the references that they held.
    fn detach_roots(&mut self, roots: &[Id]) -> Vec<NodeRef> {
        let ends = roots.iter().map(|id| ParentEnd::Root(*id));
        let released: Vec<_> = ends.filter_map(|end| self.repoint_one(&Change { end, child: None })).collect();
        self.loosen(&released.iter().map(NodeRef::id).collect::<Vec<_>>());
        released
    }
}
