//! Block backends: what a device is plugged into, with or without a medium.
//!
//! A [`Backend`] is the global-state half: its name, its root entry in the graph, the device that uses it. The other half, [`BackendIo`], goes
//! to the device's threads. A backend outlives its media; requests to an empty one fail cleanly.

#![forbid(unsafe_code)]

use block_backend_io::{BackendControl, BackendEvent, BackendEvents, BackendIo, BackendSettings};
use block_common::{OpType, ParentKind, PermPair};
use block_gs::{DrainGuard, Event, GlobalState, GraphError, NodeRef, OpBlocker, RootRef};
use block_io::IoThreadHandle;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
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

/// The backends of one block layer, by name.
#[derive(Default)]
struct Registry(RefCell<BTreeMap<String, Weak<Inner>>>);

struct Inner {
    gs: GlobalState,
    name: String,
    /// There until the backend goes.
    root: Option<RootRef>,
    io: BackendIo,
    control: BackendControl,
}

impl Inner {
    fn root(&self) -> &RootRef {
        self.root.as_ref().expect("only the drop of the backend takes it")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let registry = self.gs.extension::<Registry>();
        let mut registry = registry.0.borrow_mut();
        // Somebody else may have the name by now.
        if registry.get(&self.name).is_some_and(|held| held.strong_count() == 0) {
            registry.remove(&self.name);
        }
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
            if registry.0.borrow().get(&name).is_some_and(|held| held.strong_count() > 0) {
                return Err(BackendError::DuplicateName(name));
            }
            if gs.find_node(&name).is_ok() {
                return Err(BackendError::NodeHasName(name));
            }
        }
        let root = gs.new_root(&name, ParentKind::Backend, options.perm, &options.home);
        let (io, control, events) = BackendIo::new(root.io().clone(), options.settings);
        forward(gs, &name, events);
        let inner = Rc::new(Inner { gs: gs.clone(), name: name.clone(), root: Some(root), io, control });
        if !name.is_empty() {
            registry.0.borrow_mut().insert(name, Rc::downgrade(&inner));
        }
        Ok(Self(inner))
    }

    /// The backend called `name`.
    #[doc(alias = "blk_by_name")]
    pub fn find(gs: &GlobalState, name: &str) -> Option<Self> {
        gs.extension::<Registry>().0.borrow().get(name)?.upgrade().map(Self)
    }

    /// The backends that have names, in the order of these.
    #[doc(alias = "blk_next")]
    #[doc(alias = "blk_all_next")]
    pub fn all(gs: &GlobalState) -> Vec<Self> {
        let registry = gs.extension::<Registry>();
        let mut registry = registry.0.borrow_mut();
        registry.retain(|_, held| held.strong_count() > 0);
        registry.values().filter_map(Weak::upgrade).map(Self).collect()
    }

    /// The half for device threads.
    pub fn io(&self) -> BackendIo {
        self.0.io.clone()
    }

    /// Its name; empty for one that has none.
    pub fn name(&self) -> &str {
        &self.0.name
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
            Some(_) => Err(BackendError::Occupied(self.0.name.clone())),
        };
        // Not only when the wait is over: a full one need not hold its requests back.
        if_empty(self.node().as_ref())?;
        self.0.gs.attach_root_if(self.0.root(), Some(node), if_empty).await
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
        let allows = |there: Option<&NodeRef>| there.map_or(Ok(()), |there| gs.check_op(there, op));
        Ok(gs.attach_root_if(self.0.root(), node, allows).await?)
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
        let mut inner = Rc::try_unwrap(self.0).map_err(|inner| BackendError::Shared(inner.name.clone()))?;
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
    pub fn attach_device(&self, id: &str) -> Result<(), BackendError> {
        if self.0.io.device_id().is_some() {
            return Err(BackendError::DeviceAttached(self.0.name.clone()));
        }
        self.0.control.set_device_id(Some(id.into()));
        Ok(())
    }

    /// The device is gone.
    #[doc(alias = "blk_detach_dev")]
    pub fn detach_device(&self) {
        self.0.control.set_device_id(None);
    }

    /// Set what its device does about errors.
    #[doc(alias = "blk_set_on_error")]
    pub fn set_settings(&self, settings: BackendSettings) {
        self.0.control.set_settings(settings);
    }
}

/// Pass on what the device tells, until it is gone.
fn forward(gs: &GlobalState, name: &str, mut told: BackendEvents) {
    let (events, name) = (gs.event_sender(), name.to_owned());
    drop(gs.main().spawn(async move {
        while let Some(event) = told.next().await {
            // The other events are for the device's policy and for statistics, which come later.
            if let BackendEvent::TrayMoved { open } = event {
                events.send(Event::TrayMoved { backend: name.clone(), open });
            }
        }
    }));
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backend({}, {:?})", self.0.name, self.node())
    }
}
