//! A pointer from a parent to a child that can be repointed while requests follow it.
//!
//! Whoever follows a [`Link`] holds a pin on the parent and gets a pin on the child. Whoever repoints it keeps the former child
//! until every pin on the parent from before is gone (the parent's epochs). The pointer is all there is here: whose link
//! it is, permissions and roles are in `edge`, and the loom models of it in `model.rs`.

#![allow(unsafe_code, reason = "following a link pins the child through a raw pointer; the block says why it is alive")]

use crate::gate::{Gated, Inner, Pin, Way};
use crate::sync::atomic::{AtomicPtr, Ordering};
use crate::sync::{Mutex, lock};
use std::ptr::NonNull;

/// What a link asks of its parent's gate.
pub(crate) trait Epochs {
    /// See [`Gated::epoch`].
    fn epoch(&self) -> u64;
    /// See [`Gated::epoch_passed`].
    fn epoch_passed(&self, epoch: u64) -> bool;
}

impl<T> Epochs for Gated<T> {
    fn epoch(&self) -> u64 {
        self.epoch()
    }

    fn epoch_passed(&self, epoch: u64) -> bool {
        self.epoch_passed(epoch)
    }
}

pub(crate) struct Link<T> {
    /// The gate id of the parent whose pins protect the child.
    parent: u64,
    child: AtomicPtr<Inner<T>>,
    slot: Mutex<Slot<T>>,
}

struct Slot<T> {
    current: Option<Gated<T>>,
    /// Former children, each with the parent's epoch in which it was retired.
    retired: Vec<(u64, Gated<T>)>,
}

fn raw<T>(child: Option<&Gated<T>>) -> *mut Inner<T> {
    child.map_or(std::ptr::null_mut(), Gated::as_raw)
}

impl<T> Link<T> {
    /// A link to `child`, below the parent with gate id `parent`.
    pub(crate) fn new(parent: u64, child: Option<&Gated<T>>) -> Self {
        let slot = Slot { current: child.cloned(), retired: Vec::new() };
        Self { parent, child: AtomicPtr::new(raw(child)), slot: Mutex::new(slot) }
    }

    pub(crate) fn parent(&self) -> u64 {
        self.parent
    }

    /// Whether it leads anywhere.
    pub(crate) fn is_attached(&self) -> bool {
        !self.child.load(Ordering::Acquire).is_null()
    }

    /// Where it leads.
    pub(crate) fn child(&self) -> Option<Gated<T>> {
        lock(&self.slot).current.clone()
    }

    /// Pin the child, if there is one, for somebody who holds `parent`.
    ///
    /// # Errors
    /// The link's parent's id, when `parent` is a pin on another gate.
    #[inline]
    pub(crate) fn follow<P>(&self, parent: &Pin<P>, way: Way) -> Result<Option<Pin<T>>, u64> {
        if parent.id() != self.parent {
            return Err(self.parent);
        }
        // SeqCst, as is the store in `repoint`: between them, the pin's count and the epoch's scan, there must be one order.
        let child = NonNull::new(self.child.load(Ordering::SeqCst));
        // SAFETY: `parent` is pinned, so a child that the link led to since then is either current, and held by the
        // slot, or retired in an epoch that cannot pass before that pin is gone. The slot itself is borrowed.
        Ok(child.map(|child| unsafe { Pin::from_raw(child, way) }))
    }

    /// Lead to `child`, or nowhere. The former child is kept for as long as a pin on `parent` may lead to it.
    pub(crate) fn repoint(&self, child: Option<&Gated<T>>, parent: Option<&impl Epochs>) {
        let mut slot = lock(&self.slot);
        self.child.store(raw(child), Ordering::SeqCst);
        if let Some(old) = std::mem::replace(&mut slot.current, child.cloned()) {
            // Read after the store: the store is what makes the child unreachable.
            let epoch = parent.map_or(0, Epochs::epoch);
            slot.retired.push((epoch, old));
        }
    }

    /// Let go of the former children that no pin on `parent` can lead to any more.
    pub(crate) fn collect(&self, parent: &impl Epochs) {
        let free: Vec<_> = {
            let mut slot = lock(&self.slot);
            let (free, keep) = slot.retired.drain(..).partition(|(epoch, _)| parent.epoch_passed(*epoch));
            slot.retired = keep;
            free
        };
        // Not under the lock: a child that goes takes its engine and its own edges with it.
        drop(free);
    }
}
