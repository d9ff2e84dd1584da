//! The monitor of a block layer: who is connected, what they are told of, and whether somebody wants it to end.

use crate::commands::human::HumanCommands;
use crate::events;
use block_backend::Backend;
use block_gs::{Events, GlobalState};
use block_jobs::{JobEvents, JobRegistry};
use std::cell::{Cell, OnceCell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use tokio::sync::Notify;

use crate::session::Outgoing;
use std::time::Duration;

/// How many milliseconds a client has at the end to read what it was answered.
const PATIENCE_MS: u32 = 2000;

/// What a monitor says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitorOptions {
    /// The version of QEMU whose commands these are: major, minor, micro.
    pub version: [u32; 3],
    /// Which program this is, in the place of the name of a distribution's package.
    pub package: String,
}

pub(crate) struct Inner {
    pub(crate) gs: GlobalState,
    pub(crate) options: MonitorOptions,
    /// What the program does for people.
    pub(crate) human: OnceCell<Rc<dyn HumanCommands>>,
    /// What the block layer tells; nothing, if somebody else listens.
    told: Option<Rc<RefCell<Events>>>,
    /// What jobs tell.
    told_by_jobs: Rc<RefCell<JobEvents>>,
    /// Who is connected.
    clients: RefCell<Vec<Outgoing>>,
    quit: Cell<bool>,
    quit_asked: Notify,
}

/// The monitor of a block layer. Clones are the same one.
#[derive(Clone)]
#[doc(alias = "monitor_init")]
pub struct Monitor(pub(crate) Rc<Inner>);

impl Monitor {
    /// A monitor of `gs`, which nobody else listens to from now on.
    pub fn new(gs: &GlobalState, options: MonitorOptions) -> Self {
        let told = gs.take_events().map(|told| Rc::new(RefCell::new(told)));
        let told_by_jobs = Rc::new(RefCell::new(JobRegistry::of(gs).take_events()));
        let monitor = Self(Rc::new(Inner {
            gs: gs.clone(),
            told: told.clone(),
            told_by_jobs: told_by_jobs.clone(),
            options,
            human: OnceCell::new(),
            clients: RefCell::default(),
            quit: Cell::new(false),
            quit_asked: Notify::new(),
        }));
        if let Some(told) = told {
            let inner = Rc::downgrade(&monitor.0);
            drop(gs.main().spawn(async move {
                let next = || poll_fn(|cx| told.borrow_mut().poll_next(cx));
                while let (Some(event), Some(inner)) = (next().await, inner.upgrade()) {
                    events::of_graph(event).iter().for_each(|event| inner.tell(event));
                }
            }));
        }
        let inner = Rc::downgrade(&monitor.0);
        drop(gs.main().spawn(async move {
            let next = || poll_fn(|cx| told_by_jobs.borrow_mut().poll_next(cx));
            while let (Some(event), Some(inner)) = (next().await, inner.upgrade()) {
                events::of_job(event).iter().for_each(|event| inner.tell(event));
            }
        }));
        monitor
    }

    /// Have the commands for people that the program has, from now on. The first one who says so is heard.
    pub fn set_human(&self, human: Rc<dyn HumanCommands>) {
        if self.0.human.set(human).is_err() {
            tracing::warn!("a monitor has commands for people already");
        }
    }

    /// Wait until a client has said `quit`.
    pub async fn quit_asked(&self) {
        while !self.0.quit.get() {
            self.0.quit_asked.notified().await;
        }
    }

    /// As if a client had said `quit`.
    pub fn quit(&self) {
        self.0.quit.set(true);
        self.0.quit_asked.notify_waiters();
    }

    /// Wait, but not for long, until what was answered has reached all clients: the program is about to end.
    pub async fn answers_out(&self) {
        for _ in 0..PATIENCE_MS {
            if self.0.clients.borrow().iter().all(Outgoing::is_idle) {
                return;
            }
            self.0.gs.main().sleep(Duration::from_millis(1)).await;
        }
        tracing::warn!("a monitor's client does not read what it was answered");
    }

    pub(crate) fn is_quitting(&self) -> bool {
        self.0.quit.get()
    }

    /// Tell all that has happened so far. Whoever sends an answer has this done first: what a command brought about is told before it is answered.
    pub(crate) fn tell_all(&self) {
        let inner = &self.0;
        Backend::pass_events(&inner.gs);
        let of_graph = || inner.told.as_ref().and_then(|told| told.borrow_mut().try_next());
        while let Some(event) = of_graph() {
            events::of_graph(event).iter().for_each(|event| inner.tell(event));
        }
        let of_job = || inner.told_by_jobs.borrow_mut().try_next();
        while let Some(event) = of_job() {
            events::of_job(event).iter().for_each(|event| inner.tell(event));
        }
    }

    /// The client has gone.
    pub(crate) fn forget(&self, client: &Outgoing) {
        self.0.clients.borrow_mut().retain(|known| !known.is_same(client));
    }

    pub(crate) fn connect(&self, client: Outgoing) {
        self.0.clients.borrow_mut().push(client);
    }
}

impl Inner {
    /// Tell an event to all who have negotiated.
    fn tell(&self, event: &serde_json::Value) {
        self.clients.borrow_mut().retain(|client| client.tell(event));
    }
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Monitor({} clients)", self.0.clients.borrow().len())
    }
}
