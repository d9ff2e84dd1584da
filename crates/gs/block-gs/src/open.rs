//! Opening nodes by their options, children and all.
//!
//! Opening works beside the graph: a node under construction has a gate and edges of its own, and becomes part of the graph when it is
//! complete. What its driver needs of a child for itself is taken when the child is attached, so that nobody changes what the driver reads. If anything fails, its engine is closed, if there is one, and so are the children that were opened with it, before
//! the caller hears of it.

use crate::driver::{DriverType, Opened};
use crate::error::{GraphError, GraphResult};
use crate::graph::{GsEdge, GsNode, Id, NewNode, NodeRef};
use crate::root::RootRef;
use crate::state::GlobalState;
use block_common::options::{Dialect, Dict, Value};
use block_common::{
    ChildName, ChildOrNull, ChildRole, ChildSpec, DetectZeroes, DiscardMode, IoError, IoResult, NodeName, OptionReader,
    Options, OptionsError, PermPair, QapiEnum,
};
use block_io::{Edge, NodeControl, NodeModes, Req, ThreadPool};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::rc::Rc;

/// How deep children may nest in one set of options.
const DEPTH_MAX: usize = 200;

/// The options that every node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommonOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Storage need not be open for writing until somebody writes, and whether it can be is seen only then.
    #[doc(alias = "bdrv_apply_auto_read_only")]
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
    /// The node is only described: nobody reads or writes its data, and what only that takes, a password for example, is not asked for. No option of a node's,
    /// but [of whoever opens it](GlobalState::open_to_describe).
    pub no_io: bool,
}

/// What a child that is opened inline takes from its parent, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inherited {
    pub(crate) common: Option<CommonOptions>,
    pub(crate) depth: usize,
}

impl CommonOptions {
    /// How requests are treated.
    pub(crate) fn modes(self) -> NodeModes {
        NodeModes { unmap: self.discard == DiscardMode::Unmap, detect_zeroes: self.detect_zeroes }
    }

    /// What a child in `role` takes from this node.
    #[doc(alias = "inherit_options")]
    pub(crate) fn for_child(mut self, role: ChildRole) -> Self {
        // A backing file is only read; what its own children do is its own business.
        if role.contains(ChildRole::COW) {
            self.read_only = true;
            self.auto_read_only = false;
        }
        // What reaches a child was let through above, or is the driver's own.
        self.discard = DiscardMode::Unmap;
        self
    }

    pub(crate) fn take(options: &mut OptionReader, inherited: Inherited) -> GraphResult<Self> {
        let above = inherited.common.unwrap_or_default();
        let cache = options.take_dict("cache", |cache| {
            Ok::<_, GraphError>((cache.take_bool("direct")?, cache.take_bool("no-flush")?))
        })?;
        let (direct, no_flush) = cache.unwrap_or_default();
        let this = Self {
            read_only: options.take_bool("read-only")?.unwrap_or(above.read_only),
            auto_read_only: options.take_bool("auto-read-only")?.unwrap_or(above.auto_read_only),
            force_share: options.take_bool("force-share")?.unwrap_or(above.force_share),
            discard: mode(options, "discard", |_| "Invalid discard option".into())?.unwrap_or(above.discard),
            detect_zeroes: mode(options, "detect-zeroes", |value| format!("invalid parameter value: {value}"))?
                .unwrap_or_default(),
            cache_direct: direct.unwrap_or(above.cache_direct),
            cache_no_flush: no_flush.unwrap_or(above.cache_no_flush),
            no_io: above.no_io,
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

/// Take a mode. What is said of one that does not exist depends on the dialect.
fn mode<T: QapiEnum>(options: &mut OptionReader, key: &str, unknown: fn(&str) -> String) -> GraphResult<Option<T>> {
    let dialect = options.dialect();
    options.take_enum(key).map_err(|error| match error {
        OptionsError::BadValue { value, .. } if dialect == Dialect::Legacy => GraphError::Open(unknown(&value)),
        other => other.into(),
    })
}

/// A node under construction, as its driver's `open` sees it.
pub struct OpenContext<'a> {
    gs: &'a GlobalState,
    driver: &'a Rc<dyn DriverType>,
    control: &'a NodeControl,
    common: CommonOptions,
    depth: usize,
    edges: Vec<GsEdge>,
    /// What holds permissions on children until the node is part of the graph: what its driver reads while it opens, nobody else changes.
    held: Vec<RootRef>,
    /// The options as the node will show them.
    shown: Dict,
    opened: Rc<RefCell<BTreeSet<Id>>>,
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
        let is_inline = matches!(spec, ChildSpec::Inline(_));
        let child = match spec {
            ChildSpec::Reference(name) => self.gs.find_node(&name)?,
            ChildSpec::Inline(options) => {
                let inherited = Inherited { common: Some(self.common.for_child(role)), depth: self.depth + 1 };
                // A task of its own: however deep children nest, the stack does not.
                let opening = open(self.gs.clone(), options, inherited, self.opened.clone());
                let child = self.gs.main().spawn(opening).join().await?;
                show_child(&mut self.shown, name.as_str(), child.name());
                child
            }
        };
        self.attach(name, role, Some(child), is_inline).await
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
            None | Some(ChildOrNull::Null) => self.no_child(name, role).await,
            Some(ChildOrNull::Child(spec)) => self.open_child(name, role, spec).await,
        }
    }

    /// An edge that leads nowhere, until a reopen gives the node a child there.
    ///
    /// # Errors
    /// None today.
    pub async fn no_child(&mut self, name: ChildName, role: ChildRole) -> GraphResult<Edge> {
        self.attach(name, role, None, false).await
    }

    /// The name of the node that was attached as `name`.
    pub fn child_name(&self, name: &ChildName) -> Option<String> {
        let edge = self.edges.iter().find(|edge| edge.name == *name)?;
        edge.child.as_ref().map(|child| child.name().to_owned())
    }

    /// The driver of the node that was attached as `name`.
    pub fn child_driver(&self, name: &ChildName) -> Option<&'static str> {
        let edge = self.edges.iter().find(|edge| edge.name == *name)?;
        edge.child.as_ref()?.io().driver()
    }

    async fn attach(
        &mut self,
        name: ChildName,
        role: ChildRole,
        child: Option<NodeRef>,
        is_inline: bool,
    ) -> GraphResult<Edge> {
        // What the node asks for itself; what its users ask is added when it has some.
        let perm = self.driver.child_perm(role, PermPair::NONE, self.common.read_only);
        if let Some(child) = &child
            && perm != PermPair::NONE
        {
            let owner = self.node_name();
            self.held.push(self.gs.hold(&owner, &name, child, perm).await?);
        }
        let target = child.as_ref().map(NodeRef::target);
        let (writer, edge) = self.control.edge(role, perm, target);
        self.edges.push(GsEdge {
            name,
            role,
            writer,
            child,
            frozen: false,
            is_inline,
            is_gone: false,
            more: PermPair::NONE,
        });
        Ok(edge)
    }

    /// Run `work` on an I/O thread with a token on the node: to read a header, say. Its requests reach the children even where these are
    /// drained: they are the main loop's own.
    ///
    /// # Errors
    /// What `work` returns.
    pub async fn run<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(Req) -> F,
    ) -> GraphResult<T> {
        run(self.gs, self.control, &self.edges, work).await.map_err(named(what))
    }
}

impl fmt::Debug for OpenContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpenContext({:?})", self.control)
    }
}

/// The error of a request of the main loop's own; `None` when the I/O thread is gone.
fn named(what: &str) -> impl FnOnce(Option<IoError>) -> GraphError {
    move |error| error.map_or(GraphError::ShuttingDown, GraphError::io(what))
}

/// Run `work` on an I/O thread with a token on a node that is not part of the graph and has `edges`.
async fn run<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
    gs: &GlobalState,
    control: &NodeControl,
    edges: &[GsEdge],
    work: impl FnOnce(Req) -> F,
) -> Result<T, Option<IoError>> {
    let req = control.enter()?;
    let act = gs.act(edges.iter().filter_map(|edge| edge.child.as_ref()).map(NodeRef::id).collect());
    let result = gs.main_io().run(work(req)).await;
    drop(act);
    Ok(result.ok_or(None)??)
}

/// `dict` without the options of children that it describes: what was opened with them shows its own.
fn without_children(dict: &Dict) -> Dict {
    let mut shown = Dict::new();
    for (key, value) in dict.iter() {
        let value = match value {
            Value::List(list) => Value::List(list.iter().map(without_child).collect()),
            other => without_child(other),
        };
        // The key stood in a dictionary, so it can.
        let _ = shown.insert(key, value);
    }
    shown
}

fn without_child(value: &Value) -> Value {
    match value {
        Value::Dict(child) if child.contains_key("driver") => Value::Null,
        other => other.clone(),
    }
}

/// Put a child's name where its options stood: at `file`, or at `children.0`.
fn show_child(shown: &mut Dict, place: &str, name: &str) {
    let name = Value::Str(name.to_owned());
    match place.split_once('.') {
        None => {
            let _ = shown.insert(place, name);
        }
        Some((list, at)) => {
            if let (Some(Value::List(list)), Ok(at)) = (shown.lookup_mut(list), at.parse::<usize>())
                && let Some(element) = list.get_mut(at)
            {
                *element = name;
            }
        }
    }
}

async fn open(
    gs: GlobalState,
    options: Options,
    inherited: Inherited,
    opened: Rc<RefCell<BTreeSet<Id>>>,
) -> GraphResult<NodeRef> {
    let gs = &gs;
    if gs.0.graph.borrow().shut {
        return Err(GraphError::ShuttingDown);
    }
    if inherited.depth > DEPTH_MAX {
        return Err(GraphError::Open(format!("children nest deeper than {DEPTH_MAX} levels")));
    }
    let shown = without_children(options.dict());
    let mut options = options.reader();
    let driver = take_driver(gs, &mut options)?;
    options.set_driver(driver.kind(), driver.name());
    let wanted = options.take_node_name("node-name")?;
    let common = CommonOptions::take(&mut options, inherited)?;
    let name = gs.0.graph.borrow_mut().name(wanted)?;
    let control = NodeControl::shell(name.as_str());
    let depth = inherited.depth;
    let (edges, held) = (Vec::new(), Vec::new());
    let mut context = OpenContext { gs, driver: &driver, control: &control, common, depth, edges, held, shown, opened };
    let made = driver.open(&mut context, &mut options).await;
    let OpenContext { edges, held, shown, opened, .. } = context;
    let made = match made {
        Ok(made) => made,
        Err(error) => {
            gs.let_go(held);
            return Err(error);
        }
    };
    let Opened { engine, control: engine_control, read_only } = made;
    control.install(engine, 0, read_only);
    control.set_modes(common.modes());
    let node = NewNode { name, driver, control, engine_control, edges, read_only, common, options: shown }.complete();
    let node = finish(gs, node, options, held).await?;
    opened.borrow_mut().insert(node.id());
    Ok(node)
}

/// The driver that `options` ask for.
fn take_driver(gs: &GlobalState, options: &mut OptionReader) -> GraphResult<Rc<dyn DriverType>> {
    let name = options.require_str("driver")?;
    gs.driver(&name).map_err(|error| match options.dialect() {
        Dialect::Legacy => error,
        // To QMP, the drivers are the values of an enumeration.
        _ => OptionsError::BadValue { key: "driver".into(), value: name }.into(),
    })
}

/// Make a node with an engine part of the graph. If that fails, the engine is closed again. Users of the children that are on their way
/// out, and in the way, are waited for.
async fn finish(
    gs: &GlobalState,
    mut node: Box<GsNode>,
    options: OptionReader,
    held: Vec<RootRef>,
) -> GraphResult<NodeRef> {
    let roots: Vec<_> = held.iter().map(RootRef::id).collect();
    let ready = match options.finish() {
        Ok(()) => refresh_length(gs, &node).await,
        Err(error) => Err(error.into()),
    };
    let error = match ready {
        Ok(()) => loop {
            let changed = gs.0.changed.notified();
            let inserted = gs.0.graph.borrow_mut().insert(node, &roots);
            let (error, back) = match inserted {
                Ok(inserted) => {
                    gs.let_go(held);
                    return Ok(inserted);
                }
                Err(refused) => refused,
            };
            node = back;
            let children = node.edges.iter().filter_map(|edge| edge.child.as_ref());
            if !gs.0.graph.borrow().may_pass(&error, children) {
                break error;
            }
            changed.await;
        },
        Err(error) => error,
    };
    let closed = run(gs, &node.control, &node.edges, |req| async move { NodeControl::close_engine(&req).await }).await;
    if let Err(why) = closed {
        let node = node.name.as_str();
        tracing::error!(node, ?why, "closing a node that could not be opened failed as well");
    }
    gs.let_go(held);
    Err(error)
}

async fn refresh_length(gs: &GlobalState, node: &GsNode) -> GraphResult<()> {
    let asked = run(gs, &node.control, &node.edges, |req| async move { NodeControl::refresh_length(&req).await }).await;
    asked.map(drop).map_err(named("Could not refresh total sector count"))
}

/// Counts a node that is being opened.
struct Counted(GlobalState);

impl Counted {
    fn new(gs: &GlobalState) -> Self {
        gs.0.graph.borrow_mut().opening += 1;
        Self(gs.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.graph.borrow_mut().opening -= 1;
        self.0.0.changed.notify_waiters();
    }
}

impl GlobalState {
    /// Open a node as `options` say, with every child that they describe or name. One after the other with other changes of the
    /// graph; runs to its end even if the returned future is dropped.
    ///
    /// # Errors
    /// What is wrong with the options, or what the storage answered. The graph is then as it was.
    #[doc(alias = "bdrv_new_open_driver_opts")]
    #[doc(alias = "bdrv_new_open_driver")]
    pub fn open(&self, options: Options) -> impl Future<Output = GraphResult<NodeRef>> + 'static + use<> {
        self.mutate(|gs| async move { gs.open_in_mutation(options).await })
    }

    /// As [`GlobalState::open`], for who looks at what the node is, and not at its data: see [`CommonOptions::no_io`].
    ///
    /// # Errors
    /// As [`GlobalState::open`].
    pub fn open_to_describe(&self, options: Options) -> impl Future<Output = GraphResult<NodeRef>> + 'static + use<> {
        let common = CommonOptions { no_io: true, ..CommonOptions::default() };
        let inherited = Inherited { common: Some(common), depth: 0 };
        self.mutate(move |gs| async move { gs.open_inheriting(options, inherited).await })
    }

    /// As [`GlobalState::open`], for use within a mutation that holds the ticket already.
    ///
    /// # Errors
    /// As [`GlobalState::open`].
    pub async fn open_in_mutation(&self, options: Options) -> GraphResult<NodeRef> {
        self.open_inheriting(options, Inherited::default()).await
    }

    /// As [`GlobalState::open`], for a node that is going to be a child in `role` of one with these options, from which it takes what its own do not
    /// say: a file that is looked at before its format is known. Let the parent be opened with a reference to it, and then
    /// [adopt](GlobalState::adopt) it.
    ///
    /// # Errors
    /// As [`GlobalState::open`].
    pub fn open_for(
        &self,
        options: Options,
        parent: CommonOptions,
        role: ChildRole,
    ) -> impl Future<Output = GraphResult<NodeRef>> + 'static + use<> {
        let inherited = Inherited { common: Some(parent.for_child(role)), depth: 0 };
        self.mutate(move |gs| async move { gs.open_inheriting(options, inherited).await })
    }

    async fn open_inheriting(&self, options: Options, inherited: Inherited) -> GraphResult<NodeRef> {
        let _counted = Counted::new(self);
        let opened = Rc::default();
        let result = open(self.clone(), options, inherited, Rc::clone(&opened)).await;
        if result.is_err() {
            let opened = opened.take();
            self.closed(&opened).await;
        }
        result
    }

    /// Add a node that no options describe, a job's filter for example: `children` are attached in order, and `build` makes the engine from the
    /// edges to them. Within a mutation; a drained section does not hold it up.
    ///
    /// # Errors
    /// As [`GlobalState::open`].
    pub async fn add_node(
        &self,
        name: Option<NodeName>,
        driver: Rc<dyn DriverType>,
        children: &[(ChildName, ChildRole, &NodeRef)],
        build: impl FnOnce(Vec<Edge>) -> Opened,
    ) -> GraphResult<NodeRef> {
        let _counted = Counted::new(self);
        let name = self.0.graph.borrow_mut().name(name)?;
        let control = NodeControl::shell(name.as_str());
        let (mut edges, mut ends) = (Vec::new(), Vec::new());
        for (name, role, child) in children {
            let (writer, edge) = control.edge(*role, PermPair::NONE, Some(child.target()));
            let child = Some((*child).clone());
            edges.push(GsEdge {
                name: name.clone(),
                role: *role,
                writer,
                child,
                frozen: false,
                is_inline: false,
                is_gone: false,
                more: PermPair::NONE,
            });
            ends.push(edge);
        }
        let Opened { engine, control: engine_control, read_only } = build(ends);
        control.install(engine, 0, read_only);
        control.set_modes(NodeModes::default());
        let options = Dict::new();
        let node = NewNode {
            name,
            driver,
            control,
            engine_control,
            edges,
            read_only,
            common: CommonOptions::default(),
            options,
        }
        .complete();
        finish(self, node, Options::default().reader(), Vec::new()).await
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
