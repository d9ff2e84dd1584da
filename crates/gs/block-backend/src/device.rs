//! What a device answers and is told on the main loop, and what is kept about the drive that it uses.

use crate::Backend;
use block_common::{DetectZeroes, IoError, Perm, PermPair};
use block_gs::{NodeInfo, NodeRef};
use std::cell::RefCell;
use std::fmt;
use std::rc::{Rc, Weak};

/// A device, as the main loop sees it. What its guest does (the tray, the lock, requests) is on the other half,
/// [`BackendIo`](block_backend_io::BackendIo). None of these may change the graph or the backend: they are called in the middle of that.
#[doc(alias = "blk_set_dev_ops")]
#[doc(alias = "BlockDevOps")]
pub trait Device {
    /// Its name, that commands call it by.
    fn id(&self) -> &str;

    /// Whether its medium can be exchanged.
    #[doc(alias = "blk_dev_has_removable_media")]
    fn has_removable_media(&self) -> bool {
        false
    }

    /// Whether the medium lies in a tray.
    #[doc(alias = "blk_dev_has_tray")]
    fn has_tray(&self) -> bool {
        false
    }

    /// The medium is there from now on and the tray closed, or the tray is open.
    ///
    /// # Errors
    /// Why the device does not take the medium; it is as if it were not there then.
    #[doc(alias = "blk_dev_change_media_cb")]
    #[doc(alias = "change_media_cb")]
    fn media_changed(&self, _is_loaded: bool) -> Result<(), String> {
        Ok(())
    }

    /// Somebody asks the guest to give the medium away. With `force` the guest's lock is over.
    #[doc(alias = "blk_dev_eject_request")]
    #[doc(alias = "eject_request_cb")]
    fn eject_requested(&self, _force: bool) {}

    /// The medium has this length in bytes now, and had another one: it was made longer or shorter, through this backend or by somebody else, or exchanged for one of another
    /// length without being taken out in between. Called on the main loop, a little after it happened; requests see the new length at once.
    #[doc(alias = "resize_cb")]
    fn resized(&self, _length: u64) {}

    /// Whether it shows whether its last request failed ([`Backend::io_status`]).
    fn has_io_status(&self) -> bool {
        false
    }

    /// What it asks of a medium, and shares, which is read-only or not. `None`: as the backend has it.
    fn perm(&self, _is_read_only: bool) -> Option<PermPair> {
        None
    }
}

/// A device of which nothing but its name is known.
#[derive(Clone, Debug)]
pub struct NamedDevice(String);

impl NamedDevice {
    /// A device called `id`.
    #[allow(clippy::new_ret_no_self, reason = "it is wanted as a device and nothing else")]
    pub fn new(id: &str) -> Rc<dyn Device> {
        Rc::new(Self(id.into()))
    }
}

impl Device for NamedDevice {
    fn id(&self) -> &str {
        &self.0
    }
}

/// What the last requests of a device came to, until somebody resets it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[doc(alias = "BlockDeviceIoStatus")]
pub enum IoStatus {
    /// None has stopped the machine.
    #[default]
    Ok,
    /// One failed and waits.
    Failed,
    /// One found no space left and waits.
    Nospace,
}

impl IoStatus {
    /// As monitors call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Nospace => "nospace",
        }
    }

    /// The status after `error`. The first one stays.
    pub(crate) fn after(self, error: IoError) -> Self {
        match self {
            Self::Ok if error.errno() == block_common::Errno::ENOSPC => Self::Nospace,
            Self::Ok => Self::Failed,
            other => other,
        }
    }
}

/// What a drive keeps of its last medium for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "blk_get_root_state")]
#[doc(alias = "blk_update_root_state")]
#[doc(alias = "blk_get_open_flags_from_root_state")]
#[doc(alias = "blk_get_detect_zeroes_from_root_state")]
pub struct RootState {
    /// Whether it was read-only.
    pub read_only: bool,
    /// What was done about written zeroes.
    pub detect_zeroes: DetectZeroes,
    /// Whether the host's cache was passed by.
    pub no_cache: bool,
    /// Whether flushes were ignored.
    pub no_flush: bool,
}

impl Default for RootState {
    fn default() -> Self {
        Self { read_only: false, detect_zeroes: DetectZeroes::Off, no_cache: false, no_flush: false }
    }
}

impl RootState {
    /// How a node is open.
    pub(crate) fn of(info: &NodeInfo) -> Self {
        let common = &info.common;
        Self {
            read_only: info.read_only,
            detect_zeroes: common.detect_zeroes,
            no_cache: common.cache_direct,
            no_flush: common.cache_no_flush,
        }
    }
}

/// A medium came or went.
#[derive(Clone, Debug)]
pub enum MediaChange {
    /// This one is there now.
    Inserted(NodeRef),
    /// This one is gone.
    Removed(NodeRef),
}

type Watcher = dyn Fn(&Backend, &MediaChange);

/// Who wants to hear of media. Dropping it ends that.
#[must_use = "nobody hears of anything once this is dropped"]
pub struct MediaWatch(#[allow(dead_code, reason = "held, and looked at by the list alone")] Rc<Box<Watcher>>);

/// All of a backend's.
#[derive(Default)]
pub(crate) struct Watchers(RefCell<Vec<Weak<Box<Watcher>>>>);

impl Watchers {
    pub(crate) fn add(&self, watcher: Box<Watcher>) -> MediaWatch {
        let watcher = Rc::new(watcher);
        self.0.borrow_mut().push(Rc::downgrade(&watcher));
        MediaWatch(watcher)
    }

    /// Tell all of them, who may come and go meanwhile.
    pub(crate) fn tell(&self, backend: &Backend, change: &MediaChange) {
        let all: Vec<_> = {
            let mut watchers = self.0.borrow_mut();
            watchers.retain(|watcher| watcher.strong_count() > 0);
            watchers.iter().filter_map(Weak::upgrade).collect()
        };
        all.iter().for_each(|watcher| watcher(backend, change));
    }
}

impl fmt::Debug for MediaWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MediaWatch")
    }
}

/// What a device asks for that reads its medium, and writes it if it may, and lets nobody else write unless told. One that `is_resizable` tells its guest of a new
/// length: others may change it.
pub(crate) fn device_perm(is_read_only: bool, shares_writes: bool, is_resizable: bool) -> PermPair {
    let mut perm = Perm::CONSISTENT_READ;
    if !is_read_only {
        perm |= Perm::WRITE;
    }
    let mut shared = Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED;
    if shares_writes {
        shared |= Perm::WRITE;
    }
    if shares_writes || is_resizable {
        shared |= Perm::RESIZE;
    }
    PermPair::new(perm, shared)
}
