//! `GlobalState`, the capability: who holds a reference to it is on the main loop and may change the graph.
//!
//! It is neither `Send` nor `Sync`, is made from a main loop, and there is no static: two of them in one process are two
//! independent block layers.

use crate::close::reaper;
use crate::driver::DriverType;
use crate::error::{GraphError, GraphResult};
use crate::event::Event;
use crate::graph::Graph;
use crate::main_loop::{MainHandle, MainLoop};
use crate::mutation::Tickets;
use block_io::{IoThread, IoThreadHandle, IoThreadOptions, ThreadPool};
use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::Rc;
use std::task::Waker;
use tokio::sync::mpsc;

/// How to set up a block layer.
#[derive(Clone, Debug)]
pub struct GlobalOptions {
    /// The I/O thread that serves whoever has no other home.
    pub main_io: IoThreadOptions,
    /// The most threads for system calls that sleep.
    pub pool_threads_max: usize,
}

impl Default for GlobalOptions {
    fn default() -> Self {
        Self { main_io: IoThreadOptions::named("cairn-io"), pool_threads_max: 64 }
    }
}

pub(crate) struct Inner {
    pub(crate) main: MainHandle,
    pub(crate) graph: RefCell<Graph>,
    pub(crate) tickets: Tickets,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    events_out: Cell<Option<mpsc::UnboundedReceiver<Event>>>,
    drivers: RefCell<BTreeMap<&'static str, Rc<dyn DriverType>>>,
    extensions: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    /// Nodes and roots that the reaper is at.
    pub(crate) closing: Cell<usize>,
    pub(crate) close_error: RefCell<Option<GraphError>>,
    pub(crate) settlers: RefCell<Vec<Waker>>,
    pool: ThreadPool,
    /// Last: engines that are dropped with the graph may still have operations on it.
    main_io: IoThread,
}

/// The right to change the graph. Made by the main loop, passed by reference; a clone is the same right.
#[derive(Clone)]
#[doc(alias = "bdrv_init")]
#[doc(alias = "qemu_in_main_thread")]
pub struct GlobalState(pub(crate) Rc<Inner>);

impl GlobalState {
    /// A block layer without drivers, nodes or anything, on `main`.
    ///
    /// # Errors
    /// What the host said when it refused an I/O thread.
    pub fn new(main: &MainLoop, options: GlobalOptions) -> std::io::Result<Self> {
        let (events, events_out) = mpsc::unbounded_channel();
        let inner = Rc::new(Inner {
            main: main.handle(),
            graph: RefCell::default(),
            tickets: Tickets::default(),
            events,
            events_out: Cell::new(Some(events_out)),
            drivers: RefCell::default(),
            extensions: RefCell::default(),
            closing: Cell::new(0),
            close_error: RefCell::default(),
            settlers: RefCell::default(),
            pool: ThreadPool::new(options.pool_threads_max),
            main_io: IoThread::spawn(options.main_io)?,
        });
        let queue = inner.graph.borrow().reap.clone();
        drop(inner.main.spawn(reaper(queue, Rc::downgrade(&inner))));
        Ok(Self(inner))
    }

    /// The loop that everything here runs on.
    pub fn main(&self) -> &MainHandle {
        &self.0.main
    }

    /// The I/O thread of whoever has no other home.
    pub fn main_io(&self) -> IoThreadHandle {
        self.0.main_io.handle()
    }

    /// Threads for system calls that sleep.
    pub fn pool(&self) -> &ThreadPool {
        &self.0.pool
    }

    /// Make a driver known. The last one with a name wins.
    #[doc(alias = "bdrv_register")]
    pub fn register(&self, driver: Rc<dyn DriverType>) {
        self.0.drivers.borrow_mut().insert(driver.name(), driver);
    }

    /// The driver called `name`.
    ///
    /// # Errors
    /// [`GraphError::UnknownDriver`].
    #[doc(alias = "bdrv_find_format")]
    pub fn driver(&self, name: &str) -> GraphResult<Rc<dyn DriverType>> {
        let found = self.0.drivers.borrow().get(name).cloned();
        found.ok_or_else(|| GraphError::UnknownDriver(name.into()))
    }

    /// The names of the drivers, in order.
    #[doc(alias = "bdrv_iterate_format")]
    pub fn driver_names(&self) -> Vec<&'static str> {
        self.0.drivers.borrow().keys().copied().collect()
    }

    /// State that a crate above this one keeps for each block layer: made when it is first asked for.
    pub fn extension<T: Default + 'static>(&self) -> Rc<T> {
        let mut extensions = self.0.extensions.borrow_mut();
        let held = extensions.entry(TypeId::of::<T>()).or_insert_with(|| Rc::new(T::default())).clone();
        held.downcast().expect("the entry of a type is of that type")
    }

    /// What happens in the block layer, one event after the other. There is one stream; the first caller gets it.
    pub fn take_events(&self) -> Option<mpsc::UnboundedReceiver<Event>> {
        self.0.events_out.take()
    }

    /// Where I/O code sends its one-way events.
    pub fn event_sender(&self) -> mpsc::UnboundedSender<Event> {
        self.0.events.clone()
    }

    pub(crate) fn emit(&self, event: Event) {
        // Whoever does not want events has dropped the receiver.
        let _ = self.0.events.send(event);
    }
}

impl fmt::Debug for GlobalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GlobalState({:?})", self.0.graph.try_borrow().map(|graph| graph.node_count()))
    }
}
