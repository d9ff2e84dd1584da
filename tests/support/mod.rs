//! A block layer for tests: a main loop, and drivers for the test kit's storage and toys beside those of the build.

#![allow(dead_code, reason = "each test program uses a part of it")]

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, Options, Perm, PermPair};
use block_gs::{
    DriverType, EngineControl, GlobalOptions, GlobalState, GraphError, GraphResult, MainLoop, NodeRef, OpenContext,
    Opened, filter_perm,
};
use block_io::{Driver, IoThreadHandle, StaticGraph};
use block_testkit::{MemStorage, ToyCow, ToyCowControl, ToyFilter, ToyFilterControl, ToyFormat};
use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// A main loop and a block layer on it.
pub(crate) struct Layer {
    pub(crate) main: MainLoop,
    pub(crate) gs: GlobalState,
    storages: Rc<MemType>,
}

impl Layer {
    /// With every driver of the build, `mem`, `toy-filter` and `toy-cow`.
    pub(crate) fn new() -> Self {
        let main = MainLoop::new().expect("descriptors");
        let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
        let storages = Rc::new(MemType::default());
        block_drivers::register_all(&gs);
        gs.register(storages.clone());
        gs.register(Rc::new(ToyFilterType));
        gs.register(Rc::new(ToyCowType));
        Self { main, gs, storages }
    }

    /// Let `driver=mem,storage=NAME` open this storage.
    pub(crate) fn add_storage(&self, name: &str, storage: &MemStorage) {
        self.storages.0.borrow_mut().insert(name.into(), storage.clone());
    }
}

/// Open a node by options as `--blockdev` takes them.
pub(crate) async fn open(gs: &GlobalState, options: &str) -> GraphResult<NodeRef> {
    gs.open(Options::parse_blockdev(options)?).await
}

/// A control half that drivers downcast to `C`.
pub(crate) struct Control<C>(pub(crate) C);

impl<C: 'static> EngineControl for Control<C> {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.0
    }
}

/// `mem`: option `storage`.
#[derive(Default)]
pub(crate) struct MemType(RefCell<HashMap<String, MemStorage>>);

#[async_trait(?Send)]
impl DriverType for MemType {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let name = options.require_str("storage")?;
        let storage = self.0.borrow().get(&name).cloned();
        let storage = storage.ok_or_else(|| GraphError::Open(format!("no storage '{name}'")))?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(storage.driver()), control: Box::new(Control(storage)), read_only })
    }
}

/// `toy-filter`: child `file`.
pub(crate) struct ToyFilterType;

#[async_trait(?Send)]
impl DriverType for ToyFilterType {
    fn name(&self) -> &'static str {
        "toy-filter"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let open = |req| async move { ToyFilter::open(&req, file) };
        let (engine, control): (ToyFilter, ToyFilterControl) = context.run("opening a toy filter", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        filter_perm(above)
    }
}

/// Make an empty toy image of `length` bytes on the leaf `engine`. Opening one takes no permission to write.
pub(crate) async fn format_toy_cow(engine: impl Driver, home: IoThreadHandle, length: u64) {
    let mut graph = StaticGraph::new(home);
    let file = graph.node("file").install(engine, false).await.expect("installs");
    let mut shell = graph.node("format");
    let edge = shell.child(ChildRole::IMAGE, Perm::all(), &file);
    let format = |req| async move { ToyCow::format(&req, &edge, ToyFormat::new(length)).await };
    shell.run(format).await.expect("formats");
    drop(shell);
    graph.close().await.expect("closes");
}

/// `toy-cow`: children `file` and `backing`.
pub(crate) struct ToyCowType;

#[async_trait(?Send)]
impl DriverType for ToyCowType {
    fn name(&self) -> &'static str {
        "toy-cow"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::IMAGE).await?;
        let backing = context.optional_child(options, ChildName::BACKING, ChildRole::COW).await?;
        let open = |req| async move { ToyCow::open(&req, file, Some(backing)).await };
        let (engine, control): (ToyCow, ToyCowControl) = context.run("opening a toy image", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }
}
