//! What the main loop asks of nodes by itself, without a root of its own: flushes, and what their storage is like.
//!
//! Such requests reach a node whether it is drained or not: a section that covers it waits for them.

use crate::error::{GraphError, GraphResult};
use crate::graph::{Id, NodeRef};
use crate::state::GlobalState;
use block_common::IoResult;
use block_io::{NodeControl, Req};
use std::future::Future;

impl GlobalState {
    /// Run `work` on an I/O thread with a token on the node. `None` when the node is gone, or about to be: nothing may come after its close.
    pub(crate) async fn on_node<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        id: Id,
        work: impl FnOnce(Req) -> F,
    ) -> Option<IoResult<T>> {
        let entered = self.0.graph.borrow().nodes.get(&id).filter(|node| !node.closing)?.control.enter();
        let act = self.act(vec![id]);
        let answer = match entered {
            Ok(req) => self.main_io().run(work(req)).await,
            Err(error) => Some(Err(error)),
        };
        drop(act);
        answer
    }

    /// Have `work` done on an I/O thread with a token on the node called `name`, once the changes of the graph that have begun are over, and then compute anew
    /// what the node asks of its children. For a control half that was told something and cannot wait for what follows from it: may be called while the
    /// graph is borrowed. Nothing happens if there is no such node by then.
    pub fn later_on_node<F: Future<Output = IoResult<()>> + Send + 'static>(
        &self,
        name: String,
        work: impl FnOnce(Req) -> F + 'static,
    ) {
        // Detached, it runs to its end.
        drop(self.mutate(move |gs| async move {
            let found = gs.0.graph.borrow().find(&name);
            let Some(id) = found.as_ref().map(NodeRef::id) else { return };
            // Nobody is to see that we use it.
            drop(found);
            if let Some(Err(error)) = gs.on_node(id, work).await {
                tracing::warn!(node = name, %error, "what was to be done when a node's users went has failed");
            }
            gs.0.graph.borrow_mut().loosen(&[id]);
        }));
    }

    /// Run `work` on an I/O thread with a token on `node`, while nothing else is in flight on it.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone, [`GraphError::Io`] with what `work` returns.
    pub async fn run_drained<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        node: &NodeRef,
        what: &str,
        work: impl FnOnce(Req) -> F,
    ) -> GraphResult<T> {
        let drained = self.drain(node).await;
        let answer = self.on_node(node.id(), work).await;
        drop(drained);
        answer.ok_or_else(|| GraphError::NotFound(node.name().into()))?.map_err(GraphError::io(what.to_owned()))
    }

    /// Run `work` on an I/O thread with a token on `node`, beside whatever is in flight on it: for looking, which waits for nobody.
    ///
    /// # Errors
    /// As [`GlobalState::run_drained`].
    pub async fn run_beside<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        node: &NodeRef,
        what: &str,
        work: impl FnOnce(Req) -> F,
    ) -> GraphResult<T> {
        let answer = self.on_node(node.id(), work).await;
        answer.ok_or_else(|| GraphError::NotFound(node.name().into()))?.map_err(GraphError::io(what.to_owned()))
    }

    /// Flush every node that can be written, parents before children. All of them are flushed, whatever becomes of one.
    ///
    /// # Errors
    /// The first error.
    #[doc(alias = "bdrv_flush_all")]
    pub async fn flush_all(&self) -> GraphResult<()> {
        let nodes: Vec<_> = {
            let graph = self.0.graph.borrow();
            let order = graph.all_parents_first().into_iter();
            order
                .filter_map(|id| Some((id, graph.nodes.get(&id).filter(|node| !node.read_only)?.name.clone())))
                .collect()
        };
        let mut first = Ok(());
        for (id, name) in nodes {
            // One that closes meanwhile flushes by itself, and says so if it cannot.
            let flushed = self.on_node(id, |req| async move { NodeControl::flush(&req).await }).await;
            if let Some(Err(error)) = flushed {
                let failed = GraphError::io(format!("Could not flush '{}'", name.as_str()))(error);
                first = first.and(Err(failed));
            }
        }
        first
    }

    /// How many bytes of storage the host has given `node`, data and metadata together.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when it is gone; [`GraphError::Io`] where nobody can tell.
    #[doc(alias = "bdrv_get_allocated_file_size")]
    pub async fn allocated_size(&self, node: &NodeRef) -> GraphResult<u64> {
        let asked = self.on_node(node.id(), |req| async move { NodeControl::allocated_size(&req).await }).await;
        let answer = asked.ok_or_else(|| GraphError::NotFound(node.name().into()))?;
        answer.map_err(GraphError::io(format!("Could not get the allocated size of '{}'", node.name())))
    }
}
