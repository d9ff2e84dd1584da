//! Block backends: what a device is plugged into, with or without a medium.
//!
//! A [`Backend`] is the global-state half: its name, its root entry in the graph, the device that uses it. The other half, [`BackendIo`], goes
//! to the device's threads. A backend outlives its media; requests to an empty one fail cleanly.

#![forbid(unsafe_code)]

mod device;
mod front;
mod media;

pub use device::{Device, IoStatus, MediaChange, MediaWatch, NamedDevice, RootState};
pub use front::{FrontEnd, FrontEndError, FrontEndKind, FrontEndOptions, GuestAct};
pub use media::{MediaError, change_medium, close_tray, eject, insert_medium, open_tray, remove_medium};

use block_backend_io::{BackendControl, BackendEvent, BackendEvents, BackendIo, BackendSettings, ErrorAction};
use block_common::{OpType, ParentKind, PermPair};
use block_gs::{DrainGuard, Event, GlobalState, GraphError, NodeRef, OpBlocker, RootRef, ThrottleGroupRef};
use block_io::IoThreadHandle;
use block_throttle::ThrottleLimits;
use device::Watchers;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};

/// Why a backend could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Another backend has this name.
    #[error("Device with id '{0}' already exists")]
    DuplicateName(String),
    /// A node has this name; backends and nodes share one name space.
    #[error("Device name '{0}' conflicts with an existing node name")]
    NodeHasName(String),
    /// There is a medium in it already.
    #[error("There already is a medium in device '{0}'")]
    Occupied(String),
    /// Somebody else holds it as well.
    #[error("Device '{0}' is held by somebody else")]
    Shared(String),
    /// Another device uses it.
    #[error("Device '{0}' is in use")]
    DeviceAttached(String),
    /// The graph refused.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl BackendError {
    /// The message, and what to do about it in a line of its own: what a program writes to its user.
    pub fn report(&self) -> String {
        match self {
            Self::Graph(error) => error.report(),
            other => other.to_string(),
        }
    }
}

/// The backends of one block layer, in the order in which they were made.
#[derive(Default)]
struct Registry(RefCell<Vec<Weak<Inner>>>);

impl Registry {
    fn all(&self) -> Vec<Backend> {
        let mut held = self.0.borrow_mut();
        held.retain(|held| held.strong_count() > 0);
        held.iter().filter_map(Weak::upgrade).map(Backend).collect()
    }

    fn find(&self, is_it: impl Fn(&Backend) -> bool) -> Option<Backend> {
        self.all().into_iter().find(is_it)
    }
}

struct Inner {
    gs: GlobalState,
    /// Empty once a monitor has taken it away.
    name: RefCell<Rc<str>>,
    /// There until the backend goes.
    root: Option<RootRef>,
    io: BackendIo,
    control: BackendControl,
    device: RefCell<Option<Rc<dyn Device>>>,
    /// What its I/O half tells; a task passes it on, unless somebody is faster.
    told: Rc<RefCell<BackendEvents>>,
    root_state: Cell<RootState>,
    io_status: Cell<IoStatus>,
    watchers: Watchers,
    limits: RefCell<Option<ThrottleGroupRef>>,
}

impl Inner {
    fn root(&self) -> &RootRef {
        self.root.as_ref().expect("only the drop of the backend takes it")
    }
}

/// The global-state half of a backend. Clones are the same backend; it goes, and lets go of its medium, with the last one.
#[derive(Clone)]
pub struct Backend(Rc<Inner>);

/// How to make a backend.
#[derive(Clone, Debug)]
pub struct BackendOptions {
    /// Its name; empty for one that is not to be found by name.
    pub name: String,
    /// What it asks of its medium and shares.
    pub perm: PermPair,
    /// Where its slow requests run.
    pub home: IoThreadHandle,
    /// What its device does about errors.
    pub settings: BackendSettings,
}

impl Backend {
    /// An empty backend.
    ///
    /// # Errors
    /// The name is taken.
    #[doc(alias = "blk_new")]
    #[doc(alias = "monitor_add_blk")]
    pub fn new(gs: &GlobalState, options: BackendOptions) -> Result<Self, BackendError> {
        let registry = gs.extension::<Registry>();
        let name = options.name;
        if !name.is_empty() {
            if Self::find(gs, &name).is_some() {
                return Err(BackendError::DuplicateName(name));
            }
            if gs.find_node(&name).is_ok() {
                return Err(BackendError::NodeHasName(name));
            }
        }
        let root = gs.new_root(&name, ParentKind::Backend, options.perm, &options.home);
        let (io, control, events) = BackendIo::new(root.io().clone(), options.settings);
        let told = Rc::new(RefCell::new(events));
        let inner = Rc::new(Inner {
            told: told.clone(),
            gs: gs.clone(),
            name: RefCell::new(name.into()),
            root: Some(root),
            io,
            control,
            device: RefCell::default(),
            root_state: Cell::default(),
            io_status: Cell::default(),
            watchers: Watchers::default(),
            limits: RefCell::default(),
        });
        forward(gs, Rc::downgrade(&inner), told);
        let backend = Rc::downgrade(&inner);
        gs.watch_length(inner.root(), move |length| {
            let device = backend.upgrade().and_then(|backend| backend.device.borrow().clone());
            device.into_iter().for_each(|device| device.resized(length));
        });
        registry.0.borrow_mut().push(Rc::downgrade(&inner));
        Ok(Self(inner))
    }

    /// A backend with a medium in it.
    ///
    /// # Errors
    /// As [`Backend::new`] and [`Backend::insert`].
    #[doc(alias = "blk_new_with_bs")]
    pub async fn with_node(gs: &GlobalState, options: BackendOptions, node: &NodeRef) -> Result<Self, BackendError> {
        let backend = Self::new(gs, options)?;
        backend.insert(node).await?;
        Ok(backend)
    }

    /// The backend called `name`.
    #[doc(alias = "blk_by_name")]
    pub fn find(gs: &GlobalState, name: &str) -> Option<Self> {
        gs.extension::<Registry>().find(|backend| !name.is_empty() && *backend.name() == *name)
    }

    /// The backend whose device is called `id`.
    #[doc(alias = "blk_by_qdev_id")]
    #[doc(alias = "blk_by_dev")]
    pub fn find_device(gs: &GlobalState, id: &str) -> Option<Self> {
        let is_it = |backend: &Self| backend.device().is_some_and(|device| device.id() == id);
        gs.extension::<Registry>().find(is_it)
    }

    /// The backends that have names, in the order in which they were made.
    #[doc(alias = "blk_next")]
    pub fn all(gs: &GlobalState) -> Vec<Self> {
        let mut all = Self::everyone(gs);
        all.retain(|backend| !backend.name().is_empty());
        all
    }

    /// All backends, in the order in which they were made.
    #[doc(alias = "blk_all_next")]
    pub fn everyone(gs: &GlobalState) -> Vec<Self> {
        gs.extension::<Registry>().all()
    }

    /// Pass on what the I/O halves of all backends have told so far, and what became of their media's lengths: then it is among the block layer's events. A task does that by itself, a little later;
    /// this is for who answers and has events come before the answer to what brought them about.
    pub fn pass_events(gs: &GlobalState) {
        gs.pass_lengths();
        for backend in Self::everyone(gs) {
            loop {
                let event = backend.0.told.borrow_mut().try_next();
                let Some(event) = event else { break };
                backend.pass_on(event);
            }
        }
    }

    fn pass_on(&self, event: BackendEvent) {
        let events = self.0.gs.event_sender();
        let device = self.device().map(|device| device.id().to_owned());
        let name = self.name().to_string();
        match event {
            BackendEvent::TrayMoved { open } => {
                events.send(Event::TrayMoved { backend: name, device: device.unwrap_or_default(), open });
            }
            BackendEvent::IoError { is_write, error, action } => {
                if action == ErrorAction::Stop {
                    self.0.io_status.set(self.0.io_status.get().after(error));
                }
                let node = self.node().map(|node| node.name().to_owned());
                let action = action.name();
                events.send(Event::IoFailed { backend: name, device, node, is_write, error, action });
            }
            // A guest's lock is looked up by who wants to know.
            _ => {}
        }
    }

    /// The half for device threads.
    pub fn io(&self) -> BackendIo {
        self.0.io.clone()
    }

    /// Its name; empty for one that has none.
    pub fn name(&self) -> Rc<str> {
        self.0.name.borrow().clone()
    }

    /// Take its name away: nobody finds it by that any more, and another one may have it.
    #[doc(alias = "monitor_remove_blk")]
    pub fn forget_name(&self) {
        *self.0.name.borrow_mut() = "".into();
        self.0.gs.forget_root_name(self.0.root());
    }

    /// What messages call it: its name, or its device's.
    pub fn label(&self) -> String {
        let name = self.name();
        match self.device() {
            Some(device) if name.is_empty() => device.id().into(),
            _ => name.to_string(),
        }
    }

    /// The medium in it.
    #[doc(alias = "blk_bs")]
    pub fn node(&self) -> Option<NodeRef> {
        self.0.gs.root_node(self.0.root())
    }

    /// Put a medium into an empty backend.
    ///
    /// # Errors
    /// [`BackendError::Occupied`], or a permission conflict with the node's other users.
    #[doc(alias = "blk_insert_bs")]
    pub async fn insert(&self, node: &NodeRef) -> Result<(), BackendError> {
        let if_empty = |there: Option<&NodeRef>| match there {
            None => Ok(()),
            Some(_) => Err(BackendError::Occupied(self.label())),
        };
        // Not only when the wait is over: a full one need not hold its requests back.
        if_empty(self.node().as_ref())?;
        self.0.gs.attach_root_if(self.0.root(), Some(node), if_empty).await?;
        self.changed(None, Some(node));
        Ok(())
    }

    /// The medium was exchanged: what is kept of it, and who is told.
    fn changed(&self, old: Option<NodeRef>, new: Option<&NodeRef>) {
        if let Some(old) = old {
            self.0.watchers.tell(self, &MediaChange::Removed(old));
        }
        if let Some(new) = new {
            self.update_root_state();
            self.reset_io_status();
            self.0.watchers.tell(self, &MediaChange::Inserted(new.clone()));
        }
    }

    /// Put another medium in place of the one that is there, if any.
    ///
    /// # Errors
    /// A permission conflict with the node's other users, or [`GraphError::OpBlocked`] for a medium that must not be changed; the old one
    /// stays then.
    #[doc(alias = "blk_replace_bs")]
    pub async fn replace(&self, node: &NodeRef) -> Result<(), BackendError> {
        self.exchange(Some(node), OpType::Change).await
    }

    /// Take the medium out. Requests in flight finish first, later ones find none.
    ///
    /// # Errors
    /// The block layer is gone, or [`GraphError::OpBlocked`] for a medium that must not be ejected.
    #[doc(alias = "blk_remove_bs")]
    pub async fn remove(&self) -> Result<(), BackendError> {
        self.exchange(None, OpType::Eject).await
    }

    async fn exchange(&self, node: Option<&NodeRef>, op: OpType) -> Result<(), BackendError> {
        self.check_op(op)?;
        let gs = &self.0.gs;
        // Not only before the wait: a job may have begun meanwhile.
        let mut old = None;
        let allows = |there: Option<&NodeRef>| {
            old = there.cloned();
            there.map_or(Ok(()), |there| gs.check_op(there, op))
        };
        // As it is now: the next medium is opened as this one was.
        self.update_root_state();
        gs.attach_root_if(self.0.root(), node, allows).await?;
        self.changed(old, node);
        Ok(())
    }

    /// Hear of each medium that comes or goes, until what is returned is dropped.
    #[doc(alias = "blk_add_insert_bs_notifier")]
    #[doc(alias = "blk_add_remove_bs_notifier")]
    pub fn watch_media(&self, watcher: impl Fn(&Self, &MediaChange) + 'static) -> MediaWatch {
        self.0.watchers.add(Box::new(watcher))
    }

    /// How the medium is open that is there now, or how the last one was.
    #[doc(alias = "blk_get_flags")]
    pub fn root_state(&self) -> RootState {
        self.update_root_state();
        self.0.root_state.get()
    }

    fn update_root_state(&self) {
        let Some(info) = self.node().and_then(|node| self.0.gs.node_info(&node).ok()) else { return };
        self.0.root_state.set(RootState::of(&info));
    }

    /// Whether `op` may begin on the medium. Nothing is blocked where there is none.
    ///
    /// # Errors
    /// [`GraphError::OpBlocked`].
    #[doc(alias = "blk_op_is_blocked")]
    pub fn check_op(&self, op: OpType) -> Result<(), BackendError> {
        Ok(self.node().map_or(Ok(()), |medium| self.0.gs.check_op(&medium, op))?)
    }

    /// Block every operation on the medium that is there now but those in `except`: see [`GlobalState::block_all_ops`]. `None` where there is none.
    #[doc(alias = "blk_op_block_all")]
    pub fn block_all_ops(&self, except: &[OpType], reason: impl Into<String>) -> Option<OpBlocker> {
        self.node().map(|medium| self.0.gs.block_all_ops(&medium, except, reason))
    }

    /// Let go of the medium and of the name, and wait until the requests in flight are over. Dropping the last clone does the same in
    /// its own time. A device that still holds its half gets [`IoError::CLOSED`](block_common::IoError::CLOSED).
    ///
    /// # Errors
    /// [`BackendError::Shared`] when there are other clones: nothing has changed then.
    pub async fn close(self) -> Result<(), BackendError> {
        let mut inner = Rc::try_unwrap(self.0).map_err(|inner| BackendError::Shared(Self(inner).label()))?;
        let (gs, root) = (inner.gs.clone(), inner.root.take());
        drop(inner);
        if let Some(root) = root {
            gs.close_root(root).await;
        }
        Ok(())
    }

    /// Set what the backend asks of its medium and shares.
    ///
    /// # Errors
    /// A conflict with the node's other users; nothing has changed then.
    #[doc(alias = "blk_set_perm")]
    pub fn set_perm(&self, perm: PermPair) -> Result<(), BackendError> {
        Ok(self.0.gs.set_root_perm(self.0.root(), perm)?)
    }

    /// What the backend asks of its medium and shares.
    #[doc(alias = "blk_get_perm")]
    pub fn perm(&self) -> PermPair {
        self.0.gs.root_perm(self.0.root())
    }

    /// Run slow requests on `home` from now on.
    #[doc(alias = "blk_set_aio_context")]
    pub async fn set_home(&self, home: &IoThreadHandle) {
        self.0.gs.set_root_home(self.0.root(), home).await;
    }

    /// Whether the backend may get another home because its medium does ([`GlobalState::set_node_home`]), as it may at first. A device that has put itself on the home's
    /// thread, and would have to be told, does not allow it: moving the medium is refused then.
    #[doc(alias = "blk_set_allow_aio_context_change")]
    pub fn set_home_changes(&self, allowed: bool) {
        self.0.gs.set_root_stays(self.0.root(), !allowed);
    }

    /// Whether requests that come while the backend is drained are answered with [`IoError::BUSY`](block_common::IoError::BUSY), instead of being held back until that is over: for a device that
    /// must not wait, as one that makes its requests in the middle of a drain of its own. Also a medium is exchanged while the backend is drained. Requests in flight, and those that are held back
    /// already, are not touched; what is refused is an answer, of which no policy has a say.
    #[doc(alias = "blk_set_disable_request_queuing")]
    pub fn set_refusing(&self, refuses: bool) {
        self.0.gs.set_root_refusing(self.0.root(), refuses);
    }

    /// Hold back this backend's requests, and wait for those in flight.
    #[doc(alias = "blk_drain")]
    pub async fn drain(&self) -> DrainGuard {
        self.0.gs.drain_root(self.0.root()).await
    }

    /// A device uses the backend from now on.
    ///
    /// # Errors
    /// [`BackendError::DeviceAttached`] when another one does.
    #[doc(alias = "blk_attach_dev")]
    #[doc(alias = "blk_iostatus_enable")]
    pub fn attach_device(&self, device: Rc<dyn Device>) -> Result<(), BackendError> {
        if self.device().is_some() {
            return Err(BackendError::DeviceAttached(self.label()));
        }
        self.0.control.set_device_id(Some(device.id().into()));
        self.0.gs.set_root_label(self.0.root(), device.id());
        self.0.io_status.set(IoStatus::Ok);
        *self.0.device.borrow_mut() = Some(device);
        Ok(())
    }

    /// The device is gone.
    #[doc(alias = "blk_detach_dev")]
    #[doc(alias = "blk_iostatus_disable")]
    pub fn detach_device(&self) {
        self.0.control.set_device_id(None);
        self.0.gs.set_root_label(self.0.root(), "");
        let _gone = self.0.device.borrow_mut().take();
    }

    /// The device that uses it.
    #[doc(alias = "blk_get_attached_dev")]
    pub fn device(&self) -> Option<Rc<dyn Device>> {
        self.0.device.borrow().clone()
    }

    /// What its requests have come to, for a device that shows it.
    #[doc(alias = "blk_iostatus")]
    #[doc(alias = "blk_iostatus_set_err")]
    #[doc(alias = "blk_iostatus_is_enabled")]
    pub fn io_status(&self) -> Option<IoStatus> {
        self.device().filter(|device| device.has_io_status()).map(|_| self.0.io_status.get())
    }

    /// Forget what requests have come to.
    #[doc(alias = "blk_iostatus_reset")]
    pub fn reset_io_status(&self) {
        self.0.io_status.set(IoStatus::Ok);
    }

    /// Go on after an error: the requests that wait are made again.
    pub fn resume(&self) {
        self.reset_io_status();
        self.0.control.resume();
    }

    /// Be a member of the throttle group called `group`, which is made if there is none, and has these limits from now on. What waits already does so behind the group's others.
    #[doc(alias = "blk_set_io_limits")]
    pub fn set_limits(&self, group: &str, limits: ThrottleLimits) {
        let group = self.0.gs.throttle_group_or_new(group);
        group.group().set_limits(limits);
        self.0.control.set_limits(Some(group.group()));
        *self.0.limits.borrow_mut() = Some(group);
    }

    /// Have no limits any more.
    pub fn remove_limits(&self) {
        self.0.control.set_limits(None);
        let _left = self.0.limits.borrow_mut().take();
    }

    /// The group that it shares limits with.
    pub fn limits(&self) -> Option<ThrottleGroupRef> {
        self.0.limits.borrow().clone()
    }

    /// Set what its device does about errors.
    #[doc(alias = "blk_set_on_error")]
    pub fn set_settings(&self, settings: BackendSettings) {
        self.0.control.set_settings(settings);
    }
}

/// Pass on what the device tells, until the backend is gone.
fn forward(gs: &GlobalState, backend: Weak<Inner>, told: Rc<RefCell<BackendEvents>>) {
    drop(gs.main().spawn(async move {
        while let Some(event) = poll_fn(|cx| told.borrow_mut().poll_next(cx)).await {
            let Some(backend) = backend.upgrade().map(Backend) else { return };
            backend.pass_on(event);
        }
    }));
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({}, {:?})", self.label(), self.node())
    }
}
