//! Closing: a node goes when its last reference does, and its flush's error is told.
//!
//! The last reference's drop only queues the node. One reaper takes them from there: the name is free at once; then requests
//! drain away, the engine flushes and closes on an I/O thread, the node leaves the graph and lets go of its children.

use crate::error::{GraphError, GraphResult};
use crate::event::Event;
use crate::graph::{Dead, DrainTarget, Id, NodeRef, ReapQueue};
use crate::state::{GlobalState, Inner};
use block_common::IoError;
use block_io::NodeControl;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::Poll;

/// Take the dead out of the graph, for as long as there is one.
pub(crate) async fn reaper(queue: Rc<ReapQueue>, state: Weak<Inner>) {
    loop {
        let dead = poll_fn(|cx| {
            let mut dead = queue.dead.borrow_mut();
            if dead.is_empty() {
                queue.waker.set(Some(cx.waker().clone()));
                return Poll::Pending;
            }
            Poll::Ready(dead.remove(0))
        })
        .await;
        let Some(inner) = state.upgrade() else { return };
        let gs = GlobalState(inner);
        gs.0.closing.set(gs.0.closing.get() + 1);
        match dead {
            Dead::Node(id) => gs.close_node(id).await,
            Dead::Root(id) => gs.forget_root(id),
        }
        gs.0.closing.set(gs.0.closing.get() - 1);
        gs.wake_settlers();
    }
}

impl GlobalState {
    async fn close_node(&self, id: Id) {
        let (idle, name) = {
            let mut graph = self.0.graph.borrow_mut();
            graph.forget_name(id);
            let Some(node) = graph.nodes.get(&id) else { return };
            (node.control.idle(), node.name.as_str().to_owned())
        };
        idle.await;
        // Entered as the main loop, never held back: the node may lie below a drain.
        let entered = self.0.graph.borrow().nodes.get(&id).map(|node| node.control.enter());
        if let Some(Ok(req)) = entered {
            let closed = self.main_io().run(async move { NodeControl::close_engine(&req).await }).await;
            if let Err(error) = closed.unwrap_or(Err(IoError::CANCELLED)) {
                tracing::error!(node = name, %error, "closing failed");
                self.emit(Event::CloseFailed { node: name.clone(), error });
                let error = GraphError::Io { context: format!("Closing node '{name}' failed"), error };
                self.0.close_error.borrow_mut().get_or_insert(error);
            }
        }
        let gone = {
            let mut graph = self.0.graph.borrow_mut();
            graph.unlink_children(id);
            graph.drains.retain(|_, target| *target != DrainTarget::Node(id));
            let gone = graph.forget(id);
            graph.apply_drains();
            gone
        };
        // Its edges let go of its children here, outside the borrow: they may be next.
        if let Some(mut gone) = gone {
            gone.control.shut();
        }
    }

    fn forget_root(&self, id: Id) {
        let gone = {
            let mut graph = self.0.graph.borrow_mut();
            let gone = graph.roots.remove(&id);
            if let Some(node) = gone.as_ref().and_then(|root| root.child.as_ref()).map(NodeRef::id)
                && let Some(node) = graph.nodes.get_mut(&node)
            {
                node.parents.remove(&crate::graph::ParentEnd::Root(id));
            }
            graph.apply_drains();
            gone
        };
        if let Some(mut gone) = gone {
            gone.control.shut();
        }
    }

    fn wake_settlers(&self) {
        for waker in self.0.settlers.take() {
            waker.wake();
        }
    }

    /// Wait until every node whose last reference is gone is closed, and return the first error of those closings since
    /// the last call.
    ///
    /// # Errors
    /// What a flush or a close answered.
    pub async fn settle(&self) -> GraphResult<()> {
        poll_fn(|cx| {
            let idle = self.0.closing.get() == 0 && self.0.graph.borrow().reap.dead.borrow().is_empty();
            if idle {
                return Poll::Ready(());
            }
            self.0.settlers.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await;
        self.0.close_error.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Give `node` up and wait until it is closed, with everything below it that nobody else uses.
    ///
    /// # Errors
    /// [`GraphError::InUse`] when somebody else holds it, or what its flush or close answered.
    #[doc(alias = "bdrv_close")]
    pub async fn close(&self, node: NodeRef) -> GraphResult<()> {
        let monitor = self.0.graph.borrow_mut().nodes.get_mut(&node.id()).and_then(|node| node.monitor.take());
        if node.count() > 1 + usize::from(monitor.is_some()) {
            let name = node.name().to_owned();
            if let Some(gs_node) = self.0.graph.borrow_mut().nodes.get_mut(&node.id()) {
                gs_node.monitor = monitor;
            }
            return Err(GraphError::InUse(name));
        }
        drop((monitor, node));
        self.settle().await
    }

    /// Close everything: refuse new requests and nodes, detach every root, drop what the monitor holds, close each node as its last user
    /// leaves. A device that still holds its half gets errors.
    ///
    /// # Errors
    /// The first error of a closing; or [`GraphError::InUse`] names the nodes that somebody still refers to (they stay open).
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
            released.extend(graph.nodes.values_mut().filter_map(|node| node.monitor.take()));
            released
        };
        drop(guard);
        drop(released);
        let closed = self.settle().await;
        let left: Vec<_> = self.0.graph.borrow().nodes.values().map(|node| node.name.as_str().to_owned()).collect();
        closed?;
        if left.is_empty() { Ok(()) } else { Err(GraphError::InUse(left.join(", "))) }
    }
}
