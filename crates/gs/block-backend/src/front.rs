//! Front ends that stand for a guest's device: a disk, a CD-ROM drive with a tray and a lock, a floppy drive. A daemon without a machine has them, so that there
//! is something that commands about media act on. What a guest would do, [`FrontEnd::act`] does.

use crate::device::device_perm;
use crate::{Backend, BackendError, BackendOptions, Device};
use block_backend_io::{AcctSettings, BackendIo, BackendSettings};
use block_common::{OptionReader, OptionsError, PermPair};
use block_gs::{GlobalState, NodeRef};
use block_io::IoThreadHandle;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// What a front end stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEndKind {
    /// A disk, which is there as long as its device is.
    Disk,
    /// A CD-ROM drive: a tray, which the guest can lock, and media that are only read.
    Cd,
    /// A floppy drive: media come and go, without a tray.
    Floppy,
}

impl FrontEndKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disk, Self::Cd, Self::Floppy];

    /// As users call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Cd => "cd",
            Self::Floppy => "floppy",
        }
    }

    /// The one with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// What a guest does with its drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestAct {
    /// It locks the medium in its tray.
    Lock,
    /// It unlocks it.
    Unlock,
    /// It opens the tray, if it has not locked it.
    Open,
    /// It closes the tray.
    Close,
}

/// How to make a front end.
#[derive(Clone, Debug)]
pub struct FrontEndOptions {
    /// Its name, of which there may be no second one.
    pub id: String,
    /// What it stands for.
    pub kind: FrontEndKind,
    /// Whether others may write to its medium.
    pub share_rw: bool,
    /// What it does about errors.
    pub settings: BackendSettings,
    /// Whether writes may stay in a volatile cache until a flush.
    pub write_cache: bool,
    /// The size in bytes of the blocks that the guest addresses.
    pub logical_block_size: u32,
    /// What counts for statistics.
    pub accounting: AcctSettings,
    /// Intervals that latencies are kept of.
    pub stats_intervals: Vec<Duration>,
}

impl FrontEndOptions {
    /// A front end of which nothing was said but this.
    pub fn new(kind: FrontEndKind, id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            kind,
            share_rw: false,
            settings: BackendSettings::default(),
            write_cache: true,
            logical_block_size: if kind == FrontEndKind::Cd { 2048 } else { 512 },
            accounting: AcctSettings::default(),
            stats_intervals: Vec::new(),
        }
    }

    /// What it asks of its medium, and shares. A disk may get another length while it is used: it asks for its length with each request.
    fn perm(&self, is_read_only: bool) -> PermPair {
        let is_disk = self.kind == FrontEndKind::Disk;
        device_perm(is_read_only || self.kind == FrontEndKind::Cd, self.share_rw, is_disk)
    }
}

/// Why a front end could not be made, or does not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontEndError {
    /// Another one has this name.
    #[error("Duplicate device ID '{0}'")]
    Duplicate(String),
    /// A disk has its medium from the beginning.
    #[error("drive property not set")]
    NeedsMedium,
    /// A disk has no tray, and no lock.
    #[error("Device '{0}' has no tray")]
    NoTray(String),
    /// What it was asked for is not for somebody who has locked it.
    #[error("The guest has locked the medium in device '{0}'")]
    Locked(String),
    /// No front end has this name as its driver.
    #[error("'{0}' is not a valid device model name")]
    NoSuchKind(String),
    /// What was named as its medium is nothing.
    #[error("Property '{kind}.drive' can't find value '{name}'")]
    NoSuchDrive {
        /// The front end's kind.
        kind: &'static str,
        /// What was named.
        name: String,
    },
    /// There is no such option.
    #[error("Property '{kind}.{key}' not found")]
    NoSuchProperty {
        /// The front end's kind.
        kind: &'static str,
        /// The option.
        key: String,
    },
    /// An option is missing, or of the wrong type.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A block size that is none.
    #[error("parameter logical_block_size must be a power of 2 between 512 and 2097152")]
    BlockSize(u32),
    /// An interval without a length.
    #[error("interval length must be greater than 0")]
    ZeroInterval,
    /// The backend refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
}

/// The front ends of one block layer, by name.
#[derive(Default)]
struct FrontEnds(RefCell<BTreeMap<String, FrontEnd>>);

/// A device that nobody drives.
struct Stand {
    options: FrontEndOptions,
    io: BackendIo,
    eject_requested: Cell<bool>,
}

impl Device for Stand {
    fn id(&self) -> &str {
        &self.options.id
    }

    fn has_removable_media(&self) -> bool {
        self.options.kind != FrontEndKind::Disk
    }

    fn has_tray(&self) -> bool {
        self.options.kind == FrontEndKind::Cd
    }

    fn media_changed(&self, is_loaded: bool) -> Result<(), String> {
        self.eject_requested.set(false);
        if self.has_tray() {
            self.io.eject(!is_loaded);
        }
        Ok(())
    }

    fn eject_requested(&self, force: bool) {
        self.eject_requested.set(true);
        if force {
            self.io.lock_medium(false);
        }
    }

    fn has_io_status(&self) -> bool {
        self.options.kind != FrontEndKind::Floppy
    }

    fn perm(&self, is_read_only: bool) -> Option<PermPair> {
        Some(self.options.perm(is_read_only))
    }
}

/// A front end, with its backend. It stays until it is removed.
#[derive(Clone)]
pub struct FrontEnd {
    backend: Backend,
    stand: Rc<Stand>,
}

impl FrontEnd {
    /// A front end whose backend's slow requests run on `home`, with `medium` in it.
    ///
    /// # Errors
    /// [`FrontEndError::Duplicate`], [`FrontEndError::NeedsMedium`] for a disk without one, a permission conflict with the medium's other users.
    pub async fn add(
        gs: &GlobalState,
        home: &IoThreadHandle,
        options: FrontEndOptions,
        medium: Option<&NodeRef>,
    ) -> Result<Self, FrontEndError> {
        let all = gs.extension::<FrontEnds>();
        if all.0.borrow().contains_key(&options.id) {
            return Err(FrontEndError::Duplicate(options.id));
        }
        if medium.is_none() && options.kind == FrontEndKind::Disk {
            return Err(FrontEndError::NeedsMedium);
        }
        if !options.logical_block_size.is_power_of_two() || !(512..=2 << 20).contains(&options.logical_block_size) {
            return Err(FrontEndError::BlockSize(options.logical_block_size));
        }
        let is_read_only = medium.is_some_and(|medium| gs.node_info(medium).is_ok_and(|info| info.read_only));
        let backend = BackendOptions {
            name: String::new(),
            perm: options.perm(is_read_only),
            home: home.clone(),
            settings: options.settings,
        };
        let backend = Backend::new(gs, backend)?;
        let io = backend.io();
        io.set_write_cache(options.write_cache);
        io.set_guest_block_size(options.logical_block_size);
        io.stats().set_settings(options.accounting);
        io.stats().set_intervals(&options.stats_intervals);
        let id = options.id.clone();
        let stand = Rc::new(Stand { options, io, eject_requested: Cell::new(false) });
        backend.attach_device(stand.clone())?;
        if let Some(medium) = medium {
            backend.insert(medium).await?;
        }
        let made = Self { backend, stand };
        // Inserting the medium took a while: somebody else may have been faster.
        if all.0.borrow().contains_key(&id) {
            return Err(FrontEndError::Duplicate(id));
        }
        all.0.borrow_mut().insert(id, made.clone());
        Ok(made)
    }

    /// A front end as options say it: `driver` (`disk`, `cd`, `floppy`), `id`, `drive` (a node's name), `rerror`, `werror`, `share-rw`, `write-cache`,
    /// `logical_block_size` (bytes), `account-invalid`, `account-failed`, `stats-intervals` (a list of seconds), `iothread` (whose thread serves slow
    /// requests; without it, the one that the medium was put on).
    ///
    /// # Errors
    /// As [`FrontEnd::add`]; options that are missing, unknown or of the wrong type.
    #[doc(alias = "qmp_device_add")]
    pub async fn open(gs: &GlobalState, mut options: OptionReader) -> Result<Self, FrontEndError> {
        let kind = options.require_str("driver")?;
        let kind = FrontEndKind::from_name(&kind).ok_or(FrontEndError::NoSuchKind(kind))?;
        let id = options.require_str("id")?;
        let drive = options.take_str("drive")?;
        let mut made = FrontEndOptions::new(kind, &id);
        let settings = &mut made.settings;
        settings.on_read_error = options.take_enum("rerror")?.unwrap_or(settings.on_read_error);
        settings.on_write_error = options.take_enum("werror")?.unwrap_or(settings.on_write_error);
        made.share_rw = options.take_bool("share-rw")?.unwrap_or(made.share_rw);
        made.write_cache = options.take_bool("write-cache")?.unwrap_or(made.write_cache);
        made.logical_block_size = options.take_u32("logical_block_size")?.unwrap_or(made.logical_block_size);
        let accounting = &mut made.accounting;
        accounting.account_invalid = options.take_bool("account-invalid")?.unwrap_or(accounting.account_invalid);
        accounting.account_failed = options.take_bool("account-failed")?.unwrap_or(accounting.account_failed);
        let seconds = options.take_list("stats-intervals", |item| match item.into_u32()? {
            0 => Err(FrontEndError::ZeroInterval),
            seconds => Ok(Duration::from_secs(seconds.into())),
        })?;
        made.stats_intervals = seconds.unwrap_or_default();
        let thread = options.take_str("iothread")?;
        if let Some(key) = options.remaining().next() {
            return Err(FrontEndError::NoSuchProperty { kind: kind.name(), key: key.to_owned() });
        }
        let medium = match drive {
            None => None,
            Some(name) => match gs.find_node(&name) {
                Ok(node) => Some(node),
                Err(_) => return Err(FrontEndError::NoSuchDrive { kind: kind.name(), name }),
            },
        };
        let home = match (&thread, &medium) {
            (Some(thread), _) => gs.io_thread(thread).map_err(BackendError::from)?.handle(),
            (None, Some(medium)) => gs.node_home(medium),
            (None, None) => gs.main_io(),
        };
        Self::add(gs, &home, made, medium.as_ref()).await
    }

    /// The one called `id`.
    pub fn find(gs: &GlobalState, id: &str) -> Option<Self> {
        gs.extension::<FrontEnds>().0.borrow().get(id).cloned()
    }

    /// All of them, in the order of their names.
    pub fn all(gs: &GlobalState) -> Vec<Self> {
        gs.extension::<FrontEnds>().0.borrow().values().cloned().collect()
    }

    /// Remove it. Requests in flight finish; those that failed and wait end.
    pub async fn remove(self, gs: &GlobalState) {
        let known = gs.extension::<FrontEnds>().0.borrow_mut().remove(self.id());
        let Self { backend, stand } = self;
        drop((known, stand));
        backend.detach_device();
        // Others may hold the backend for a moment; it goes with them.
        let _ = backend.close().await;
    }

    /// Remove all of them.
    pub async fn remove_all(gs: &GlobalState) {
        for one in Self::all(gs) {
            one.remove(gs).await;
        }
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.stand.options.id
    }

    /// What it stands for.
    pub fn kind(&self) -> FrontEndKind {
        self.stand.options.kind
    }

    /// Its backend.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Whether the guest has been asked for the medium, and has not given it away yet.
    pub fn is_eject_requested(&self) -> bool {
        self.stand.eject_requested.get()
    }

    /// Do what a guest would do.
    ///
    /// # Errors
    /// [`FrontEndError::NoTray`] for a device without one, [`FrontEndError::Locked`].
    pub fn act(&self, act: GuestAct) -> Result<(), FrontEndError> {
        if !self.stand.has_tray() {
            return Err(FrontEndError::NoTray(self.id().into()));
        }
        let io = &self.stand.io;
        match act {
            GuestAct::Lock => io.lock_medium(true),
            GuestAct::Unlock => io.lock_medium(false),
            GuestAct::Open if io.is_medium_locked() => return Err(FrontEndError::Locked(self.id().into())),
            GuestAct::Open | GuestAct::Close => {
                self.stand.eject_requested.set(false);
                io.eject(act == GuestAct::Open);
            }
        }
        Ok(())
    }
}

impl fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrontEnd({}, {:?}, {:?})", self.id(), self.kind(), self.backend)
    }
}
