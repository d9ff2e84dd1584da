//! `GlobalState`, the capability: who holds a reference to it is on the main loop and may change the graph.
//!
//! It is neither `Send` nor `Sync`, is made from a main loop, and there is no static: two of them in one process are two
//! independent block layers.

use crate::blocker::Blockers;
use crate::close::reaper;
use crate::driver::DriverType;
use crate::error::{GraphError, GraphResult};
use crate::event::{Event, EventSender, Events, events};
use crate::graph::{Graph, Id};
use crate::length::teller;
use crate::main_loop::{MainHandle, MainLoop};
use crate::mutation::Tickets;
use crate::object::Objects;
use block_io::{IoThread, IoThreadHandle, IoThreadOptions, ThreadPool};
use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::rc::{Rc, Weak};
use tokio::sync::Notify;

/// How to set up a block layer.
#[derive(Clone, Debug)]
pub struct GlobalOptions {
    /// The I/O thread that serves whoever has no other home.
    pub main_io: IoThreadOptions,
    /// The most threads for system calls that sleep.
    pub pool_threads_max: usize,
    /// Whether users may make I/O threads by name: a daemon's may, those of a tool that works through an image and ends may not.
    pub io_threads: bool,
}

impl Default for GlobalOptions {
    fn default() -> Self {
        Self { main_io: IoThreadOptions::named("cairn-io"), pool_threads_max: 64, io_threads: false }
    }
}

pub(crate) struct Inner {
    pub(crate) main: MainHandle,
    pub(crate) graph: RefCell<Graph>,
    pub(crate) tickets: Tickets,
    pub(crate) blockers: Blockers,
    pub(crate) objects: Objects,
    events: EventSender,
    events_out: Cell<Option<Events>>,
    drivers: RefCell<BTreeMap<&'static str, Rc<dyn DriverType>>>,
    extensions: RefCell<HashMap<TypeId, Rc<dyn Any>>>,
    /// Closings that failed and that nobody has been told of, oldest first.
    pub(crate) close_errors: RefCell<Vec<(Id, GraphError)>>,
    /// Told when something is closed, and when an act of the main loop on a node is over.
    pub(crate) changed: Notify,
    pool: ThreadPool,
    /// Last: engines that are dropped with the graph may still have operations on it.
    main_io: IoThread,
}

/// The right to change the graph. Made by the main loop, passed by reference; a clone is the same right.
#[derive(Clone)]
#[doc(alias = "bdrv_init")]
#[doc(alias = "qemu_in_main_thread")]
pub struct GlobalState(pub(crate) Rc<Inner>);

/// A way back to the block layer for what it owns itself, an engine's control half for example: it does not keep it alive.
#[derive(Clone)]
pub struct WeakGlobalState(Weak<Inner>);

impl WeakGlobalState {
    /// The block layer, if it is still there.
    pub fn upgrade(&self) -> Option<GlobalState> {
        self.0.upgrade().map(GlobalState)
    }
}

impl fmt::Debug for WeakGlobalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakGlobalState")
    }
}

impl GlobalState {
    /// For what the block layer owns itself.
    pub fn downgrade(&self) -> WeakGlobalState {
        WeakGlobalState(Rc::downgrade(&self.0))
    }

    /// A block layer without drivers, nodes or anything, on `main`.
    ///
    /// # Errors
    /// What the host said when it refused an I/O thread.
    pub fn new(main: &MainLoop, options: GlobalOptions) -> std::io::Result<Self> {
        let (events, events_out) = events();
        let inner = Rc::new(Inner {
            main: main.handle(),
            graph: RefCell::default(),
            tickets: Tickets::default(),
            blockers: Blockers::default(),
            objects: Objects::new(options.io_threads),
            events,
            events_out: Cell::new(Some(events_out)),
            drivers: RefCell::default(),
            extensions: RefCell::default(),
            close_errors: RefCell::default(),
            changed: Notify::new(),
            pool: ThreadPool::new(options.pool_threads_max),
            main_io: IoThread::spawn(options.main_io)?,
        });
        let queue = inner.graph.borrow().reap.clone();
        drop(inner.main.spawn(reaper(queue, Rc::downgrade(&inner))));
        drop(inner.main.spawn(teller(Rc::downgrade(&inner))));
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
        let name = driver.name();
        let old = self.0.drivers.borrow_mut().insert(name, driver);
        drop(old);
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
        let held = self.0.extensions.borrow().get(&TypeId::of::<T>()).cloned();
        // Made without a borrow: it may ask for another one.
        let held = held.unwrap_or_else(|| {
            let made: Rc<dyn Any> = Rc::new(T::default());
            self.0.extensions.borrow_mut().entry(TypeId::of::<T>()).or_insert(made).clone()
        });
        held.downcast().expect("the entry of a type is of that type")
    }

    /// What happens in the block layer, one event after the other. There is one stream; the first caller gets it.
    pub fn take_events(&self) -> Option<Events> {
        self.0.events_out.take()
    }

    /// Where I/O code sends its one-way events.
    pub fn event_sender(&self) -> EventSender {
        self.0.events.clone()
    }

    pub(crate) fn emit(&self, event: Event) {
        self.0.events.send(event);
    }
}

impl Drop for Inner {
    /// Whatever was not closed goes as in a power cut, parents before children: dropping the lowest of a long chain last keeps
    /// one drop from being inside the other.
    fn drop(&mut self) {
        let graph = self.graph.get_mut();
        if graph.node_count() > 0 {
            let names: Vec<_> = graph.nodes.values().map(|node| node.name.as_str()).collect();
            tracing::warn!(nodes = names.join(", "), "a block layer ends without having been closed");
        }
        drop(std::mem::take(&mut graph.roots));
        for id in graph.all_parents_first() {
            drop(graph.nodes.remove(&id));
        }
        // It has nothing left to wait for, and ends.
        graph.reap.wake();
    }
}

impl fmt::Debug for GlobalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GlobalState({:?})", self.0.graph.try_borrow().map(|graph| graph.node_count()))
    }
}
