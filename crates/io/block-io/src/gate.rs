//! Gates and pins: counting what is in flight without sharing a cache line, and stopping it.
//!
//! A [`Gated<T>`] is a counted handle like an `Arc<T>`; a [`Pin<T>`] is one request's hold on the same value. Pins are
//! counted in one word a thread group (a *shard*), and the same word carries the gate's state bits: one atomic addition
//! both counts the request and tells whether the gate was open, so there is no window between the two.
//!
//! ```text
//!  63   62  61..........48  47........24  23.........0
//! DEAD WAIT     state        pins of       pins of
//!               bits         odd epochs    even epochs
//! ```
//!
//! - Requests on the fast path and those on the slow path are counted in different shards, so that one of the latter can wait for all of
//!   the former ([`Gated::fast_idle`]).
//! - Setting a state bit is an atomic OR on every shard: a pin either comes before it (and is seen in the count), or
//!   after it (and sees the bit).
//! - `WAIT` asks those who unpin to take the slow way: lock the gate's cell, count down, wake whoever waits.
//! - `DEAD` means that the last handle is gone; the last pin then frees the value. Pins so keep the value alive, and no
//!   handle is cloned for a request.
//! - Epochs let an engine reuse what leases may still refer to: something cleared in epoch *e* is unreachable once the
//!   epoch is *e + 3* ([`Gated::epoch_passed`]). A pin joins the epoch it loads; going on requires that no pin of the other parity is
//!   left, so every pin that was there when the thing was cleared is gone by then, late comers to an old parity included.
//!
//! What this file does not know: nodes, drains, requests. The loom models of it are in `model.rs`.

#![allow(unsafe_code, reason = "a sharded reference count is made of raw pointers; each block says why it may")]

use crate::sync::atomic::{AtomicU64, Ordering, fence};
use crate::sync::{Arc, COUNTERS, FAST, Mutex, lock, shard, slow_shard};
use crossbeam_utils::CachePadded;
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::ops::Deref;
use std::ptr::NonNull;
use std::task::{Context, Poll, Waker};

const UNITS: [u64; 2] = [1, 1 << 24];
const COUNT_MASK: u64 = (1 << 48) - 1;
const PARITY_MASK: [u64; 2] = [(1 << 24) - 1, ((1 << 24) - 1) << 24];
/// A shard refuses entries from outside at half of what its counters hold; inner pins have the other half.
const ENTRIES_MAX: u64 = 1 << 22;
/// How many epochs after a clearing nothing can refer to what was cleared. Two would do if nobody could be between his
/// scan and his step while it is cleared; the third pays for taking no lock.
const EPOCHS: u64 = 3;
const WAIT: u64 = 1 << 62;
const DEAD: u64 = 1 << 63;

bitflags::bitflags! {
    /// The state bits of a gate.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct GateState: u64 {
        /// Entry from outside waits: the node lies above an active drain.
        const QUIESCED = 1 << 48;
        /// Nothing enters any more: the node or root was closed.
        const CLOSED = 1 << 49;
        /// A serialising request is active: nothing may take the fast path.
        const SERIALISING = 1 << 50;
        /// Writes are tracked (a dirty bitmap, a write threshold): they may not take the fast path.
        const TRACKED = 1 << 51;
        /// The engine asked for the slow path, for a reason of its own.
        const DETOUR = 1 << 52;
    }
}

impl GateState {
    /// Any of these keeps a read off the fast path.
    pub(crate) const SLOW_READ: Self = Self::CLOSED.union(Self::SERIALISING).union(Self::DETOUR);
    /// Any of these keeps a write off the fast path.
    pub(crate) const SLOW_WRITE: Self = Self::SLOW_READ.union(Self::TRACKED);
}

pub(crate) struct Inner<T> {
    shards: [CachePadded<AtomicU64>; COUNTERS],
    core: CachePadded<Core>,
    value: T,
}

struct Core {
    id: u64,
    epoch: AtomicU64,
    cell: Arc<Cell>,
}

/// What those who wait share with those who unpin slowly; it outlives the gate for as long as one of them holds it.
struct Cell {
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    next: u64,
    /// By number, for each [`Interest`]. While a node is drained, any number may wait for it to open: nobody who comes or goes looks at
    /// them all.
    wakers: [BTreeMap<u64, Waker>; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Interest {
    Idle,
    Open,
}

impl Waiting {
    /// Take out the waker registered under `key`. To be dropped without the lock: with the last waker of a task, some executors
    /// drop the task, and pins of this gate with it.
    fn remove(&mut self, key: u64) -> Option<Waker> {
        self.wakers.iter_mut().find_map(|wakers| wakers.remove(&key))
    }

    fn of(&mut self, interest: Interest) -> &mut BTreeMap<u64, Waker> {
        &mut self.wakers[interest as usize]
    }
}

impl<T> Inner<T> {
    fn word(&self, shard: usize) -> &AtomicU64 {
        &self.shards[shard]
    }

    fn set(&self, bits: u64) {
        for word in &self.shards {
            word.fetch_or(bits, Ordering::AcqRel);
        }
    }

    fn clear(&self, bits: u64) {
        for word in &self.shards {
            word.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    fn set_state(&self, state: GateState) {
        self.set(state.bits());
        if state.contains(GateState::CLOSED) {
            self.wake(Interest::Open);
        }
    }

    fn clear_state(&self, state: GateState) {
        self.clear(state.bits());
        self.wake(Interest::Open);
    }

    fn wake(&self, interest: Interest) {
        let mut woken = Vec::new();
        {
            let mut waiting = lock(&self.core.cell.waiting);
            woken.extend(std::mem::take(waiting.of(interest)).into_values());
        }
        woken.into_iter().for_each(Waker::wake);
    }

    async fn fast_idle(&self) {
        let mut wait = Wait { inner: self, key: None };
        let mut seen_idle = 0;
        poll_fn(|cx| {
            wait.register(Interest::Idle, cx);
            let words = &self.shards[..FAST];
            while words.get(seen_idle).is_some_and(|word| word.load(Ordering::SeqCst) & COUNT_MASK == 0) {
                seen_idle += 1;
            }
            if seen_idle == FAST { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn count(&self, mask: u64) -> u64 {
        self.shards.iter().map(|word| word.load(Ordering::Acquire) & mask).sum()
    }

    fn state(&self) -> GateState {
        GateState::from_bits_truncate(self.word(0).load(Ordering::Acquire))
    }

    fn epoch_passed(&self, epoch: u64) -> bool {
        loop {
            let now = self.core.epoch.load(Ordering::Acquire);
            if now >= epoch.saturating_add(EPOCHS) {
                return true;
            }
            // Pairs with the fences in `Core::epoch` and `pinned`: a scan that starts in a later epoch than the clearing
            // sees every pin that may have missed it.
            fence(Ordering::SeqCst);
            if self.count(PARITY_MASK[(now as usize + 1) & 1]) != 0 {
                return false;
            }
            // Losing the race means that somebody else moved on by one: look again.
            let _ = self.core.epoch.compare_exchange(now, now + 1, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl Core {
    fn epoch(&self) -> u64 {
        fence(Ordering::SeqCst);
        self.epoch.load(Ordering::Acquire)
    }
}

/// Order the counting of a pin before the look-ups that it protects, against the fence in [`Core::epoch`]: either the look-up
/// sees the clearing, or every later scan sees the pin.
#[inline]
fn pinned() {
    // On x86 the locked addition that counts the pin is such a fence already, and a second one would double the pin's
    // cost; only the compiler has to be told. (crossbeam-epoch relies on the same.)
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    crate::sync::atomic::compiler_fence(Ordering::SeqCst);
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    fence(Ordering::SeqCst);
}

/// A counted handle to a value behind a gate. Clones are equal; the value lives while a handle or a pin does.
pub(crate) struct Gated<T>(Arc<Owner<T>>);

struct Owner<T>(NonNull<Inner<T>>);

// SAFETY: an owner is a counted pointer to an `Inner<T>`, whose own parts are all synchronised.
unsafe impl<T: Send + Sync> Send for Owner<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Owner<T> {}

impl<T> Drop for Owner<T> {
    fn drop(&mut self) {
        // SAFETY: this is the last handle, and the value is freed here or, if pins are left, by the last of them.
        let inner = unsafe { self.0.as_ref() };
        let cell = inner.core.cell.clone();
        let free = {
            let _waiting = lock(&cell.waiting);
            inner.set(DEAD | GateState::CLOSED.bits());
            inner.count(COUNT_MASK) == 0
        };
        if free {
            // SAFETY: no handle and no pin is left, and new ones come only from those. The lock was released before,
            // and it belongs to `cell`, which is our own.
            drop(unsafe { Box::from_raw(self.0.as_ptr()) });
        }
    }
}

impl<T> Clone for Gated<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Gated<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.inner().value
    }
}

impl<T> Gated<T> {
    /// A new gate, open, around what `make` returns for the gate's id (unique within the process).
    pub(crate) fn new_with(make: impl FnOnce(u64) -> T) -> Self {
        // Numbers gates; it holds no state of any block layer. Not under loom: an id synchronises nothing.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let inner = Box::new(Inner {
            shards: std::array::from_fn(|_| CachePadded::new(AtomicU64::new(0))),
            core: CachePadded::new(Core {
                id,
                epoch: AtomicU64::new(0),
                cell: Arc::new(Cell { waiting: Mutex::new(Waiting::default()) }),
            }),
            value: make(id),
        });
        Self(Arc::new(Owner(NonNull::from(Box::leak(inner)))))
    }

    fn inner(&self) -> &Inner<T> {
        // SAFETY: the owner is alive, so the value is.
        unsafe { self.0.0.as_ref() }
    }

    /// The gate's id.
    pub(crate) fn id(&self) -> u64 {
        self.inner().core.id
    }

    /// The address of the value, for [`Pin::from_raw`].
    pub(crate) fn as_raw(&self) -> *mut Inner<T> {
        self.0.0.as_ptr()
    }

    /// Whether both are handles to the same value.
    pub(crate) fn same(&self, other: &Self) -> bool {
        self.id() == other.id()
    }

    /// The state bits.
    pub(crate) fn state(&self) -> GateState {
        self.inner().state()
    }

    /// How many pins there are, as of no particular moment.
    pub(crate) fn in_flight(&self) -> u64 {
        let inner = self.inner();
        inner.shards.iter().map(|word| pins(word.load(Ordering::Acquire))).sum()
    }

    /// Pin unless one of `refuse` is set; tells the state that was in the way.
    #[inline]
    pub(crate) fn enter(&self, refuse: GateState) -> Result<Pin<T>, Refused> {
        self.enter_at(shard(), refuse)
    }

    /// As [`Gated::enter`], for a request on the slow path.
    pub(crate) fn enter_slowly(&self, refuse: GateState) -> Result<Pin<T>, Refused> {
        self.enter_at(slow_shard(), refuse)
    }

    #[inline]
    fn enter_at(&self, shard: usize, refuse: GateState) -> Result<Pin<T>, Refused> {
        let (pin, word) = Pin::new(self.0.0, shard);
        if word & refuse.bits() != 0 {
            return Err(Refused::State(GateState::from_bits_truncate(word)));
        }
        if pins(word) >= ENTRIES_MAX {
            return Err(Refused::Full);
        }
        Ok(pin)
    }

    /// As [`Gated::enter`], and wait while the gate is quiesced. The caller is not counted while it waits.
    pub(crate) async fn enter_when_open(&self) -> Result<Pin<T>, Refused> {
        let mut wait = Wait { inner: self.inner(), key: None };
        poll_fn(|cx| {
            match self.enter(GateState::QUIESCED.union(GateState::CLOSED)) {
                Err(Refused::State(state)) if !state.contains(GateState::CLOSED) => {}
                other => return Poll::Ready(other),
            }
            wait.register(Interest::Open, cx);
            // The gate may have opened between the attempt and the registration; whoever opens it after that wakes us.
            match self.enter(GateState::QUIESCED.union(GateState::CLOSED)) {
                Err(Refused::State(state)) if !state.contains(GateState::CLOSED) => Poll::Pending,
                other => Poll::Ready(other),
            }
        })
        .await
    }

    /// Set state bits. Whatever pinned before is in the count from now on; whatever pins later sees them.
    pub(crate) fn set_state(&self, state: GateState) {
        self.inner().set_state(state);
    }

    /// Clear state bits, and wake whoever waited for it.
    pub(crate) fn clear_state(&self, state: GateState) {
        self.inner().clear_state(state);
    }

    /// Wait until no pin is left. Meaningful while entries are refused; otherwise it waits for a lucky moment.
    pub(crate) async fn idle(&self) {
        let mut wait = Wait { inner: self.inner(), key: None };
        poll_fn(|cx| {
            wait.register(Interest::Idle, cx);
            if self.is_idle() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Wait until every pin from before this call is gone, however many came since.
    pub(crate) async fn passed(&self) {
        let mut wait = Wait { inner: self.inner(), key: None };
        let epoch = self.epoch();
        poll_fn(|cx| {
            wait.register(Interest::Idle, cx);
            if self.epoch_passed(epoch) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether each shard was seen without a pin.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner().count(COUNT_MASK) == 0
    }

    /// The current epoch: what is cleared before this call is out of reach once [`Gated::epoch_passed`] says so.
    pub(crate) fn epoch(&self) -> u64 {
        self.inner().core.epoch()
    }

    /// Whether every pin from before [`Gated::epoch`] returned `epoch` is gone. Never waits; moves the epoch on as far
    /// as the pins allow. A caller that holds a pin of its own on this gate may have to ask again after releasing it.
    pub(crate) fn epoch_passed(&self, epoch: u64) -> bool {
        self.inner().epoch_passed(epoch)
    }
}

impl<T> fmt::Debug for Gated<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gated(#{}, {:?}, {} in flight)", self.id(), self.state(), self.in_flight())
    }
}

/// How a request takes its way through the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It maps and starts, and never waits for another request.
    Fast,
    /// It may wait for others while it is counted.
    Slow,
}

/// Why a gate let nobody in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    State(GateState),
    Full,
}

/// Millions of pins in one counter are a leak of pins, and one that runs over would free what others use.
#[cold]
fn overflow() -> ! {
    tracing::error!("a gate's counter is about to overflow: pins were leaked");
    std::process::abort()
}

fn pins(word: u64) -> u64 {
    (word & PARITY_MASK[0]) + ((word & PARITY_MASK[1]) >> 24)
}

/// Somebody who waits at a gate; unregisters when dropped.
struct Wait<'a, T> {
    inner: &'a Inner<T>,
    key: Option<u64>,
}

impl<T> Wait<'_, T> {
    fn register(&mut self, interest: Interest, cx: &Context<'_>) {
        let inner = self.inner;
        let waker = cx.waker().clone();
        let mut waiting = lock(&inner.core.cell.waiting);
        let key = *self.key.get_or_insert_with(|| {
            waiting.next += 1;
            waiting.next
        });
        let old = waiting.remove(key);
        waiting.of(interest).insert(key, waker);
        if interest == Interest::Idle {
            inner.set(WAIT);
        }
        drop(waiting);
        drop(old);
    }
}

impl<T> Drop for Wait<'_, T> {
    fn drop(&mut self) {
        let Some(key) = self.key else { return };
        let inner = self.inner;
        let mut waiting = lock(&inner.core.cell.waiting);
        let old = waiting.remove(key);
        if waiting.of(Interest::Idle).is_empty() {
            inner.clear(WAIT);
        }
        drop(waiting);
        drop(old);
    }
}

/// One request's hold on a gated value: counted, and keeping the value alive. It may be dropped on any thread.
pub(crate) struct Pin<T> {
    inner: NonNull<Inner<T>>,
    shard: u16,
    seen: u16,
    parity: u8,
}

// SAFETY: a pin is a counted pointer to an `Inner<T>`, whose own parts are all synchronised.
unsafe impl<T: Send + Sync> Send for Pin<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Pin<T> {}

impl<T> Pin<T> {
    /// Count a pin and return it with the word as it was. The caller holds a handle, or a pin that keeps one alive.
    #[inline]
    fn new(inner: NonNull<Inner<T>>, shard: usize) -> (Self, u64) {
        // SAFETY: the caller's handle keeps the value alive.
        let gate = unsafe { inner.as_ref() };
        let parity = (gate.core.epoch.load(Ordering::Relaxed) & 1) as u8;
        Self::counted(inner, gate, shard, parity)
    }

    #[inline]
    fn counted(inner: NonNull<Inner<T>>, gate: &Inner<T>, shard: usize, parity: u8) -> (Self, u64) {
        let word = gate.word(shard).fetch_add(UNITS[parity as usize], Ordering::SeqCst);
        pinned();
        let pin = Self { inner, shard: shard as u16, seen: (word >> 48) as u16, parity };
        if word & PARITY_MASK[parity as usize] >= PARITY_MASK[parity as usize] / 2 {
            overflow();
        }
        (pin, word)
    }

    /// Pin what [`Gated::as_raw`] returned, for a request on the fast path or on the slow one.
    ///
    /// # Safety
    /// A handle or a pin keeps the value alive throughout the call.
    #[inline]
    pub(crate) unsafe fn from_raw(raw: NonNull<Inner<T>>, way: Way) -> Self {
        let shard = match way {
            Way::Fast => shard(),
            Way::Slow => slow_shard(),
        };
        Self::new(raw, shard).0
    }

    /// A pin on the same value for an attempt at the fast path. What this one protects, it does not: it looks for itself.
    #[inline]
    pub(crate) fn fast(&self) -> Self {
        Self::new(self.inner, shard()).0
    }

    /// Another pin on the same value, for what this one protects. It is counted where this one is, whatever thread this is
    /// and whatever the epoch is by now: a lease handed from pin to pin is never out of the count, not even for a scan
    /// that looks at one counter after the other.
    pub(crate) fn again(&self) -> Self {
        Self::counted(self.inner, self.gate(), self.shard as usize, self.parity).0
    }

    /// The gate's id.
    #[inline]
    pub(crate) fn id(&self) -> u64 {
        self.gate().core.id
    }

    /// Set a state that nobody waits for the end of.
    pub(crate) fn set_detour(&self, state: GateState) {
        self.gate().set(state.bits());
    }

    /// See [`Pin::set_detour`].
    pub(crate) fn clear_detour(&self, state: GateState) {
        self.gate().clear(state.bits());
    }

    /// Wait until every request is gone that was on the fast path when this was called. Those that come later see the state that
    /// was set before, and are not waited for.
    pub(crate) async fn fast_idle(&self) {
        self.gate().fast_idle().await;
    }

    /// The state bits at the moment at which this pin was counted.
    #[inline]
    pub(crate) fn seen(&self) -> GateState {
        GateState::from_bits_truncate(u64::from(self.seen) << 48)
    }

    #[inline]
    fn gate(&self) -> &Inner<T> {
        // SAFETY: the pin is counted, so the value has not been freed.
        unsafe { self.inner.as_ref() }
    }

    /// See [`Gated::epoch`].
    pub(crate) fn epoch(&self) -> u64 {
        self.gate().core.epoch()
    }

    /// See [`Gated::epoch_passed`].
    pub(crate) fn epoch_passed(&self, epoch: u64) -> bool {
        self.gate().epoch_passed(epoch)
    }

    /// Count down under the lock, wake those who wait, free the value if this was the last hold on it.
    #[cold]
    fn unpin_slowly(&self) {
        let gate = self.gate();
        // Cloned while still counted: after counting down, the value may be freed by somebody else.
        let cell = gate.core.cell.clone();
        let (wakers, free) = {
            let mut waiting = lock(&cell.waiting);
            let word = gate.word(self.shard as usize).fetch_sub(UNITS[self.parity as usize], Ordering::AcqRel);
            let wakers: Vec<_> = waiting.of(Interest::Idle).values().cloned().collect();
            (wakers, word & DEAD != 0 && gate.count(COUNT_MASK) == 0)
        };
        if free {
            // SAFETY: the last handle is gone (DEAD) and no pin is left; the count was taken under the lock under which
            // every late unpinning happens, so exactly one thread sees it reach zero.
            drop(unsafe { Box::from_raw(self.inner.as_ptr()) });
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl<T> Deref for Pin<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        &self.gate().value
    }
}

impl<T> Drop for Pin<T> {
    #[inline]
    fn drop(&mut self) {
        let word = self.gate().word(self.shard as usize);
        let unit = UNITS[self.parity as usize];
        let mut seen = word.load(Ordering::Relaxed);
        while seen & (WAIT | DEAD) == 0 {
            match word.compare_exchange_weak(seen, seen - unit, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
        self.unpin_slowly();
    }
}

impl<T> fmt::Debug for Pin<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pin(#{})", self.id())
    }
}
