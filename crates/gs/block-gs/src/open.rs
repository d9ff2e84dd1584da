//! Opening nodes by their options, children and all.
//!
//! Opening works beside the graph: a node under construction has a gate and edges of its own, and becomes part of the graph when it is
//! complete. If anything fails it is dropped, and so are the references to its children.

use crate::driver::{DriverType, Opened};
use crate::error::{GraphError, GraphResult};
use crate::graph::{GsEdge, NewNode, NodeRef};
use crate::state::GlobalState;
use block_common::options::Dict;
use block_common::{
    ChildName, ChildOrNull, ChildRole, ChildSpec, DetectZeroes, DiscardMode, IoResult, NodeName, OptionReader, Options,
    PermPair,
};
use block_io::{Edge, IoThreadHandle, NodeControl, NodeModes, Req, ThreadPool};
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// How deep children may nest in one set of options.
const DEPTH_MAX: usize = 200;

/// The options that every node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommonOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Open for reading where writing is not allowed.
    pub auto_read_only: bool,
    /// Let others do what they want with the image, which is then read without any promise. Only when reading.
    pub force_share: bool,
    /// Pass discards on.
    pub discard: DiscardMode,
    /// Turn written zeroes into zero writes.
    pub detect_zeroes: DetectZeroes,
    /// Bypass the host's page cache.
    pub cache_direct: bool,
    /// Leave flushes out.
    pub cache_no_flush: bool,
}

/// What a child that is opened inline takes from its parent, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default)]
struct Inherited {
    common: Option<CommonOptions>,
    depth: usize,
}

impl CommonOptions {
    fn take(options: &mut OptionReader, inherited: Inherited) -> GraphResult<Self> {
        let above = inherited.common.unwrap_or_default();
        let cache = options.take_dict("cache", |cache| {
            Ok::<_, GraphError>((cache.take_bool("direct")?, cache.take_bool("no-flush")?))
        })?;
        let (direct, no_flush) = cache.unwrap_or_default();
        let this = Self {
            read_only: options.take_bool("read-only")?.unwrap_or(above.read_only),
            auto_read_only: options.take_bool("auto-read-only")?.unwrap_or(above.auto_read_only),
            force_share: options.take_bool("force-share")?.unwrap_or(above.force_share),
            discard: options.take_enum("discard")?.unwrap_or(above.discard),
            detect_zeroes: options.take_enum("detect-zeroes")?.unwrap_or_default(),
            cache_direct: direct.unwrap_or(above.cache_direct),
            cache_no_flush: no_flush.unwrap_or(above.cache_no_flush),
        };
        if options.take_bool("active")? == Some(false) {
            return Err(GraphError::NotBuilt("active=off".into()));
        }
        if this.force_share && !this.read_only {
            return Err(GraphError::Open("force-share=on can only be used with read-only images".into()));
        }
        if !this.detect_zeroes.is_allowed_with(this.discard) {
            let message = "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap";
            return Err(GraphError::Open(message.into()));
        }
        Ok(this)
    }
}

/// A node under construction, as its driver's `open` sees it.
pub struct OpenContext<'a> {
    gs: &'a GlobalState,
    control: &'a NodeControl,
    common: CommonOptions,
    depth: usize,
    edges: Vec<GsEdge>,
}

impl OpenContext<'_> {
    /// The options that every node has.
    pub fn common(&self) -> CommonOptions {
        self.common
    }

    /// Threads for system calls that sleep.
    pub fn pool(&self) -> &ThreadPool {
        self.gs.pool()
    }

    /// The block layer.
    pub fn global(&self) -> &GlobalState {
        self.gs
    }

    /// The name that the node will have.
    pub fn node_name(&self) -> String {
        self.control.node().name().into()
    }

    /// Attach a child: an existing node, or one that is opened by `spec`. Returns the engine's half of the edge.
    ///
    /// # Errors
    /// The reference names nothing, or opening failed.
    #[doc(alias = "bdrv_open_child")]
    #[doc(alias = "bdrv_open_blockdev_ref")]
    pub async fn open_child(&mut self, name: ChildName, role: ChildRole, spec: ChildSpec) -> GraphResult<Edge> {
        let child = match spec {
            ChildSpec::Reference(name) => self.gs.find_node(&name)?,
            ChildSpec::Inline(options) => {
                let mut common = self.common;
                // A backing file is only read; what its own children do is its own business.
                common.read_only |= role.contains(ChildRole::COW);
                let inherited = Inherited { common: Some(common), depth: self.depth + 1 };
                open_boxed(self.gs, options, inherited).await?
            }
        };
        Ok(self.attach(name, role, Some(child)))
    }

    /// Take the child called `name` out of the options and attach it.
    ///
    /// # Errors
    /// As [`OpenContext::open_child`], or the option is missing.
    pub async fn require_child(
        &mut self,
        options: &mut OptionReader,
        name: ChildName,
        role: ChildRole,
    ) -> GraphResult<Edge> {
        let spec = options.require_child(name.as_str())?;
        self.open_child(name, role, spec).await
    }

    /// As [`OpenContext::require_child`], for a child that may be absent or `null`: the edge then leads nowhere.
    ///
    /// # Errors
    /// As [`OpenContext::open_child`].
    pub async fn optional_child(
        &mut self,
        options: &mut OptionReader,
        name: ChildName,
        role: ChildRole,
    ) -> GraphResult<Edge> {
        match options.take_child_or_null(name.as_str())? {
            None | Some(ChildOrNull::Null) => Ok(self.attach(name, role, None)),
            Some(ChildOrNull::Child(spec)) => self.open_child(name, role, spec).await,
        }
    }

    fn attach(&mut self, name: ChildName, role: ChildRole, child: Option<NodeRef>) -> Edge {
        let io = child.as_ref().map(NodeRef::io);
        let (writer, edge) = self.control.edge(role, PermPair::NONE, io);
        self.edges.push(GsEdge { name, role, writer, child, frozen: false });
        edge
    }

    /// Run `work` on an I/O thread with a token on the node: to read a header, say.
    ///
    /// # Errors
    /// What `work` returns.
    pub async fn run<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(Req) -> F,
    ) -> GraphResult<T> {
        run_on(&self.gs.main_io(), self.control, what, work).await
    }
}

impl fmt::Debug for OpenContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenContext({:?})", self.control)
    }
}

/// Run `work` with a token on a node, on `home`.
pub(crate) async fn run_on<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
    home: &IoThreadHandle,
    control: &NodeControl,
    what: &str,
    work: impl FnOnce(Req) -> F,
) -> GraphResult<T> {
    let req = control.enter().map_err(GraphError::io(what))?;
    let result = home.run(work(req)).await;
    result.ok_or(GraphError::ShuttingDown)?.map_err(GraphError::io(what))
}

type Opening<'a> = Pin<Box<dyn Future<Output = GraphResult<NodeRef>> + 'a>>;

fn open_boxed(gs: &GlobalState, options: Options, inherited: Inherited) -> Opening<'_> {
    Box::pin(open(gs, options, inherited))
}

async fn open(gs: &GlobalState, options: Options, inherited: Inherited) -> GraphResult<NodeRef> {
    if inherited.depth > DEPTH_MAX {
        return Err(GraphError::Open(format!("children nest deeper than {DEPTH_MAX} levels")));
    }
    let given = options.dict().clone();
    let mut options = options.reader();
    let driver = gs.driver(&options.require_str("driver")?)?;
    options.set_driver(driver.kind(), driver.name());
    let wanted = options.take_node_name("node-name")?;
    let common = CommonOptions::take(&mut options, inherited)?;
    let name = gs.0.graph.borrow_mut().name(wanted)?;
    let control = NodeControl::shell(name.as_str());
    let mut context = OpenContext { gs, control: &control, common, depth: inherited.depth, edges: Vec::new() };
    let opened = driver.open(&mut context, &mut options).await?;
    let edges = context.edges;
    options.finish()?;
    finish(gs, NewParts { name, driver, control, edges, common, given }, opened).await
}

struct NewParts {
    name: NodeName,
    driver: std::rc::Rc<dyn DriverType>,
    control: NodeControl,
    edges: Vec<GsEdge>,
    common: CommonOptions,
    given: Dict,
}

/// Install the engine and make the node part of the graph. An engine that fails here is closed again.
async fn finish(gs: &GlobalState, parts: NewParts, opened: Opened) -> GraphResult<NodeRef> {
    let NewParts { name, driver, control, edges, common, given } = parts;
    let modes = NodeModes { unmap: common.discard == DiscardMode::Unmap, detect_zeroes: common.detect_zeroes };
    control.install(opened.engine, 0, opened.read_only);
    control.set_modes(modes);
    let home = gs.main_io();
    let what = format!("Could not get the length of '{}'", name.as_str());
    run_on(&home, &control, &what, |req| async move { NodeControl::refresh_length(&req).await }).await?;
    let read_only = opened.read_only;
    let new = NewNode { name, driver, control, engine_control: opened.control, edges, read_only, options: given };
    gs.0.graph.borrow_mut().insert(new)
}

impl GlobalState {
    /// Open a node as `options` say, with every child that they describe or name. One after the other with other changes of the
    /// graph; runs to its end even if the returned future is dropped.
    ///
    /// # Errors
    /// What is wrong with the options, or what the storage answered. The graph is then as it was.
    #[doc(alias = "bdrv_new_open_driver_opts")]
    #[doc(alias = "bdrv_new_open_driver")]
    pub fn open(&self, options: Options) -> impl Future<Output = GraphResult<NodeRef>> + 'static {
        self.mutate(|gs| async move { gs.open_in_mutation(options).await })
    }

    /// As [`GlobalState::open`], for use within a mutation that holds the ticket already.
    ///
    /// # Errors
    /// As [`GlobalState::open`].
    pub async fn open_in_mutation(&self, options: Options) -> GraphResult<NodeRef> {
        if self.0.graph.borrow().shut {
            return Err(GraphError::ShuttingDown);
        }
        open(self, options, Inherited::default()).await
    }

    /// The node called `name`.
    ///
    /// # Errors
    /// [`GraphError::NotFound`].
    #[doc(alias = "bdrv_find_node")]
    #[doc(alias = "bdrv_lookup_bs")]
    pub fn find_node(&self, name: &str) -> GraphResult<NodeRef> {
        self.0.graph.borrow().find(name).ok_or_else(|| GraphError::NotFound(name.into()))
    }
}
