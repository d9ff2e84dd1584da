//! A fixed graph for programs without a graph owner: compose engines once, send requests, close.
//!
//! Nothing can be repointed, reopened or drained here, but for [`StaticGraph::run_alone`]; who needs that takes `block-gs`.

use crate::driver::Driver;
use crate::edge::{Edge, EdgeWriter};
use crate::node::{IoNode, NodeControl, NodeTarget, Req};
use crate::root::{Root, RootControl};
use crate::thread::IoThreadHandle;
use block_common::{ChildRole, IoError, IoResult, Perm, PermPair};
use std::fmt;
use std::future::Future;

/// A graph that stays as it is built. It runs on the I/O thread that it is given; dropping it without
/// [`StaticGraph::close`] looks like a power cut.
pub struct StaticGraph {
    home: IoThreadHandle,
    nodes: Vec<Entry>,
    roots: Vec<RootControl>,
}

struct Entry {
    control: NodeControl,
    _edges: Vec<EdgeWriter>,
}

/// A node of a [`StaticGraph`].
#[derive(Clone, Debug)]
pub struct StaticNode(IoNode);

impl StaticNode {
    /// The node.
    pub fn node(&self) -> &IoNode {
        &self.0
    }
}

/// A node that is being built: give it children, then its engine.
pub struct StaticShell<'a> {
    graph: &'a mut StaticGraph,
    control: NodeControl,
    edges: Vec<EdgeWriter>,
}

impl StaticGraph {
    /// An empty graph whose requests run on `home`.
    pub fn new(home: IoThreadHandle) -> Self {
        Self { home, nodes: Vec::new(), roots: Vec::new() }
    }

    /// Begin a node called `name`.
    pub fn node(&mut self, name: &str) -> StaticShell<'_> {
        StaticShell { graph: self, control: NodeControl::shell(name), edges: Vec::new() }
    }

    /// An entry to `node` that may do what `perm` says.
    pub fn root(&mut self, name: &str, node: &StaticNode, perm: Perm) -> Root {
        let control =
            RootControl::new(name, &self.home, PermPair { perm, shared: Perm::all() }, Some(&NodeTarget::to(&node.0)));
        let root = control.root();
        self.roots.push(control);
        root
    }

    /// Run `work` on the home thread with a token on `node` and nothing else in flight: what comes meanwhile waits. The node's length is asked for anew
    /// after it. `None` when the thread ended.
    ///
    /// # Errors
    /// [`IoError::CLOSED`] for a node of another graph, or the engine's error when asked for its length.
    pub async fn run_alone<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
        &mut self,
        node: &StaticNode,
        work: impl FnOnce(Req) -> F,
    ) -> IoResult<Option<T>> {
        self.quiesce().await;
        let entry = self.nodes.iter().find(|entry| entry.control.node().same(&node.0));
        let done = match entry.map(|entry| (entry.control.enter(), entry.control.enter())) {
            Some((Ok(req), Ok(after))) => {
                let work = work(req);
                let both = async move { (work.await, NodeControl::refresh_length(&after).await) };
                match self.home.run(both).await {
                    Some((done, length)) => length.map(|_| Some(done)),
                    None => Ok(None),
                }
            }
            _ => Err(IoError::CLOSED),
        };
        self.set_hurried(false);
        for root in &mut self.roots {
            root.set_quiesced(false);
        }
        done
    }

    /// Hold back what comes, and wait for what is in flight, and for nothing that time alone would bring (rule drain-5). All nodes hurry from then on.
    async fn quiesce(&mut self) {
        for root in &mut self.roots {
            root.set_quiesced(true);
        }
        self.set_hurried(true);
        for root in &self.roots {
            root.idle().await;
        }
    }

    fn set_hurried(&mut self, hurried: bool) {
        for entry in &mut self.nodes {
            entry.control.set_hurried(hurried);
        }
    }

    /// Let requests in flight finish, refuse further ones, flush and close every node, parents first.
    ///
    /// # Errors
    /// The first error; everything is closed all the same.
    pub async fn close(mut self) -> IoResult<()> {
        self.quiesce().await;
        for root in &mut self.roots {
            root.shut();
        }
        let mut result = Ok(());
        for entry in self.nodes.iter_mut().rev() {
            let req = entry.control.enter()?;
            let closed = self.home.run(async move { NodeControl::close_engine(&req).await }).await;
            result = result.and(closed.unwrap_or(Err(IoError::CANCELLED)));
            entry.control.shut();
        }
        result
    }
}

impl StaticShell<'_> {
    /// An edge to `child`, which may do what `perm` says.
    pub fn child(&mut self, role: ChildRole, perm: Perm, child: &StaticNode) -> Edge {
        let pair = PermPair { perm, shared: Perm::all() };
        let (writer, edge) = self.control.edge(role, pair, Some(&NodeTarget::to(&child.0)));
        self.edges.push(writer);
        edge
    }

    /// Run `work` on the home thread with a token on this node: to read a header before there is an engine.
    ///
    /// # Errors
    /// What `work` returns, or [`IoError::CANCELLED`] when the thread ended.
    pub async fn run<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        work: impl FnOnce(Req) -> F,
    ) -> IoResult<T> {
        let work = work(self.control.enter()?);
        self.graph.home.run(work).await.unwrap_or(Err(IoError::CANCELLED))
    }

    /// Install the engine and make the node part of the graph.
    ///
    /// # Errors
    /// The engine's error when asked for its length; the node is then gone.
    pub async fn install(self, engine: impl Driver, read_only: bool) -> IoResult<StaticNode> {
        self.control.install(Box::new(engine), 0, read_only);
        self.run(|req| async move { NodeControl::refresh_length(&req).await }).await?;
        let node = self.control.node();
        self.graph.nodes.push(Entry { control: self.control, _edges: self.edges });
        Ok(StaticNode(node))
    }
}

impl fmt::Debug for StaticGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|entry| entry.control.node())).finish()
    }
}

impl fmt::Debug for StaticShell<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StaticShell({:?})", self.control)
    }
}
