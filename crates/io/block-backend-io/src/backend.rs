//! [`BackendIo`]: what a device model holds.

use crate::stats::BackendStats;
use block_common::{Errno, IoError, IoResult, OnError};
use block_io::Root;
use block_throttle::{ThrottleGroup, ThrottleMember};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::sync::{mpsc, watch};

/// What a device tells its backend's GS half. One way: nobody waits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendEvent {
    /// The guest moved the tray.
    TrayMoved {
        /// Whether it is open now.
        open: bool,
    },
    /// The guest locked or unlocked the medium.
    MediumLocked(bool),
    /// A request failed and the policy was applied.
    IoError {
        /// Whether it was a write.
        is_write: bool,
        /// What it failed with.
        error: IoError,
        /// What is done about it.
        action: ErrorAction,
    },
}

/// What a device does about a failed request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// Tell the guest.
    Report,
    /// Pretend that nothing happened.
    Ignore,
    /// Stop the machine and try again when it goes on.
    Stop,
}

impl ErrorAction {
    /// As monitors call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Report => "report",
            Self::Ignore => "ignore",
            Self::Stop => "stop",
        }
    }
}

/// Error policies, with `auto` resolved by [`BackendSettings::action`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendSettings {
    /// For failed reads.
    pub on_read_error: OnError,
    /// For failed writes, flushes and discards.
    pub on_write_error: OnError,
}

impl Default for BackendSettings {
    fn default() -> Self {
        Self { on_read_error: OnError::Auto, on_write_error: OnError::Auto }
    }
}

impl BackendSettings {
    /// What the policy says about `error`.
    #[doc(alias = "blk_get_error_action")]
    #[doc(alias = "blk_get_on_error")]
    pub fn action(self, is_write: bool, error: IoError) -> ErrorAction {
        let (policy, default) = match is_write {
            true => (self.on_write_error, OnError::Enospc),
            false => (self.on_read_error, OnError::Report),
        };
        match if policy == OnError::Auto { default } else { policy } {
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::Enospc if error.errno() == Errno::ENOSPC => ErrorAction::Stop,
            OnError::Enospc | OnError::Report | OnError::Auto => ErrorAction::Report,
        }
    }
}

struct Shared {
    root: Root,
    device_id: Mutex<Option<String>>,
    tray_open: AtomicBool,
    medium_locked: AtomicBool,
    write_cache: AtomicBool,
    guest_block_size: AtomicU32,
    settings: Mutex<BackendSettings>,
    stats: BackendStats,
    /// Whether `limits` is there: most requests look at nothing else.
    is_limited: AtomicBool,
    limits: Mutex<Option<Arc<ThrottleMember>>>,
    /// Requests that failed and wait.
    waiting: AtomicU32,
    turn: watch::Sender<Turn>,
    events: mpsc::UnboundedSender<BackendEvent>,
}

/// Which time it is that requests that failed are made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Turn {
    number: u64,
    is_last: bool,
}

/// The turns that come, for a request that may have to wait for one.
pub(crate) struct Turns(watch::Receiver<Turn>);

impl Turns {
    /// Wait for the next one. `false`: there is none, for the backend is closed.
    pub(crate) async fn again(&mut self) -> bool {
        if self.0.borrow().is_last {
            return false;
        }
        self.0.changed().await.is_ok() && !self.0.borrow_and_update().is_last
    }
}

/// A request that waits, for as long as this is held.
pub(crate) struct Waiting(BackendIo);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The half of a backend for device threads. Clones are equal.
#[derive(Clone)]
#[doc(alias = "BlockBackend")]
pub struct BackendIo(Arc<Shared>);

/// The state of a [`BackendIo`] that only its GS half sets. Not `Clone`.
pub struct BackendControl(Arc<Shared>);

/// What the device tells, for its GS half to read.
#[derive(Debug)]
pub struct BackendEvents(mpsc::UnboundedReceiver<BackendEvent>);

impl BackendIo {
    /// Both halves, around the root entry that the graph made.
    pub fn new(root: Root, settings: BackendSettings) -> (Self, BackendControl, BackendEvents) {
        let (events, out) = mpsc::unbounded_channel();
        let io = Self(Arc::new(Shared {
            root,
            device_id: Mutex::default(),
            tray_open: AtomicBool::new(false),
            medium_locked: AtomicBool::new(false),
            write_cache: AtomicBool::new(true),
            guest_block_size: AtomicU32::new(512),
            settings: Mutex::new(settings),
            stats: BackendStats::default(),
            is_limited: AtomicBool::new(false),
            limits: Mutex::default(),
            waiting: AtomicU32::new(0),
            turn: watch::Sender::new(Turn::default()),
            events,
        }));
        let control = BackendControl(io.0.clone());
        (io, control, BackendEvents(out))
    }

    /// The backend's name; empty for an unnamed one.
    pub fn name(&self) -> &str {
        self.0.root.name()
    }

    /// Where this device's requests enter, as long as its guest can reach the medium.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] while the tray is open.
    pub fn entry(&self) -> IoResult<&Root> {
        if self.is_tray_open() { Err(IoError::NO_MEDIUM) } else { Ok(&self.0.root) }
    }

    /// Where requests enter, tray or no tray: for who is not the guest.
    pub fn root(&self) -> &Root {
        &self.0.root
    }

    /// Whether a guest finds a medium: there is one, and the tray is closed.
    #[doc(alias = "blk_is_available")]
    pub fn is_available(&self) -> bool {
        !self.is_tray_open() && self.0.root.is_attached()
    }

    /// Whether the tray is open.
    #[doc(alias = "blk_dev_is_tray_open")]
    pub fn is_tray_open(&self) -> bool {
        self.0.tray_open.load(Ordering::Acquire)
    }

    /// The guest opens or closes the tray. The main loop hears of it when it moved.
    #[doc(alias = "blk_eject")]
    #[doc(alias = "bdrv_eject")]
    pub fn eject(&self, open: bool) {
        if self.0.tray_open.swap(open, Ordering::AcqRel) != open {
            self.tell(BackendEvent::TrayMoved { open });
        }
    }

    /// The guest locks the medium, or unlocks it.
    #[doc(alias = "blk_lock_medium")]
    #[doc(alias = "bdrv_lock_medium")]
    pub fn lock_medium(&self, locked: bool) {
        if self.0.medium_locked.swap(locked, Ordering::AcqRel) != locked {
            self.tell(BackendEvent::MediumLocked(locked));
        }
    }

    /// Whether the guest has locked the medium.
    #[doc(alias = "blk_dev_is_medium_locked")]
    pub fn is_medium_locked(&self) -> bool {
        self.0.medium_locked.load(Ordering::Acquire)
    }

    /// Whether writes may stay in a volatile cache until a flush.
    #[doc(alias = "blk_enable_write_cache")]
    pub fn write_cache(&self) -> bool {
        self.0.write_cache.load(Ordering::Relaxed)
    }

    /// The guest switches the write cache.
    #[doc(alias = "blk_set_enable_write_cache")]
    pub fn set_write_cache(&self, on: bool) {
        self.0.write_cache.store(on, Ordering::Relaxed);
    }

    /// The size in bytes of the blocks that the guest addresses.
    pub fn guest_block_size(&self) -> u32 {
        self.0.guest_block_size.load(Ordering::Relaxed)
    }

    /// The guest addresses blocks of `bytes` bytes.
    #[doc(alias = "blk_set_guest_block_size")]
    pub fn set_guest_block_size(&self, bytes: u32) {
        self.0.guest_block_size.store(bytes, Ordering::Relaxed);
    }

    /// The id of the device that uses the backend, if one does.
    #[doc(alias = "blk_get_attached_dev_id")]
    pub fn device_id(&self) -> Option<String> {
        lock(&self.0.device_id).clone()
    }

    /// What to do about a failed request; the main loop hears of it.
    #[doc(alias = "blk_error_action")]
    pub fn error_action(&self, is_write: bool, error: IoError) -> ErrorAction {
        let action = lock(&self.0.settings).action(is_write, error);
        self.tell(BackendEvent::IoError { is_write, error, action });
        action
    }

    /// What is counted of the guest's requests. The root counts requests as well, without times, those of others included.
    #[doc(alias = "blk_get_stats")]
    pub fn stats(&self) -> &BackendStats {
        &self.0.stats
    }

    /// Whose turn it is under the backend's limits, if it has any.
    pub fn limits(&self) -> Option<Arc<ThrottleMember>> {
        self.0.is_limited.load(Ordering::Acquire).then(|| lock(&self.0.limits).clone()).flatten()
    }

    /// How many requests have failed and wait for [`BackendControl::resume`].
    pub fn stopped(&self) -> u32 {
        self.0.waiting.load(Ordering::Acquire)
    }

    pub(crate) fn turns(&self) -> Turns {
        Turns(self.0.turn.subscribe())
    }

    pub(crate) fn waits(&self) -> Waiting {
        self.0.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(self.clone())
    }

    fn tell(&self, event: BackendEvent) {
        // A backend that was closed has nobody listening.
        let _ = self.0.events.send(event);
    }
}

impl fmt::Debug for BackendIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendIo({})", self.name())
    }
}

impl BackendEvents {
    /// The next thing that the device tells. `None` when no [`BackendIo`] is left.
    pub async fn next(&mut self) -> Option<BackendEvent> {
        self.0.recv().await
    }

    /// The next one, for who shares the stream with others and polls it by hand.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<BackendEvent>> {
        self.0.poll_recv(cx)
    }

    /// The next one, if there is one already.
    pub fn try_next(&mut self) -> Option<BackendEvent> {
        self.0.try_recv().ok()
    }
}

impl BackendControl {
    /// A device uses the backend from now on, or none does.
    pub fn set_device_id(&self, id: Option<String>) {
        *lock(&self.0.device_id) = id;
    }

    /// Set the error policies.
    #[doc(alias = "blk_set_on_error")]
    pub fn set_settings(&self, settings: BackendSettings) {
        *lock(&self.0.settings) = settings;
    }

    /// Make those requests again that have failed and wait.
    pub fn resume(&self) {
        self.0.turn.send_modify(|turn| turn.number += 1);
    }

    /// Be a member of `group` from now on, or have no limits. Requests that wait already do so where they are.
    #[doc(alias = "blk_io_limits_enable")]
    #[doc(alias = "blk_io_limits_disable")]
    #[doc(alias = "blk_io_limits_update_group")]
    pub fn set_limits(&self, group: Option<&ThrottleGroup>) {
        let mut limits = lock(&self.0.limits);
        match (&*limits, group) {
            (Some(member), Some(group)) => member.join(group),
            (None, Some(group)) => *limits = Some(Arc::new(group.member())),
            (_, None) => {
                // Whoever waits goes, at once: nothing limits them any more.
                if let Some(member) = limits.take() {
                    member.hurry(true);
                }
            }
        }
        self.0.is_limited.store(limits.is_some(), Ordering::Release);
    }

    /// The error policies.
    pub fn settings(&self) -> BackendSettings {
        *lock(&self.0.settings)
    }
}

impl Drop for BackendControl {
    /// The backend is gone: requests that failed and wait have nothing to wait for.
    fn drop(&mut self) {
        self.0.turn.send_modify(|turn| turn.is_last = true);
    }
}

impl fmt::Debug for BackendControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackendControl({})", self.0.root.name())
    }
}
