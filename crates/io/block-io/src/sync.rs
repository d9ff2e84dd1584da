//! The synchronisation primitives that the model-checked parts of this crate use: std's, or loom's under `--cfg loom`.
//!
//! Only `gate` and `link` go through here; what they promise is checked by the models in `model.rs`.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic;
#[cfg(not(loom))]
pub(crate) use std::sync::{Arc, Mutex, MutexGuard};

#[cfg(loom)]
pub(crate) use loom::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::sync::{Arc, Mutex, MutexGuard};

/// Lock `mutex`. A panic elsewhere while it was held leaves plain data behind, so poisoning is of no interest.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// How many counters of a kind there are: threads are spread over them.
#[cfg(not(loom))]
pub(crate) const SHARDS: usize = 16;
#[cfg(loom)]
pub(crate) const SHARDS: usize = 2;

/// How many of a gate's counters are those of requests on the fast path: the first ones. Those of the slow path come after them. A model has
/// one of each.
pub(crate) const FAST: usize = if cfg!(loom) { 1 } else { SHARDS };
/// How many counters a gate has in all.
pub(crate) const COUNTERS: usize = if cfg!(loom) { SHARDS } else { 2 * SHARDS };

#[cfg(not(loom))]
mod threads {
    //! Numbers for threads, the smallest that is free: few threads at a time have counters of their own, however many there
    //! have been. Holds no state of any block layer.

    use super::SHARDS;
    use std::cell::Cell;
    use std::collections::BTreeSet;
    use std::sync::{Mutex, PoisonError};

    static FREE: Mutex<(usize, BTreeSet<usize>)> = Mutex::new((0, BTreeSet::new()));

    /// Gives the thread's number back when the thread ends.
    struct Number(usize);

    impl Drop for Number {
        fn drop(&mut self) {
            // What still runs on this thread shares the last counter.
            SHARD.set(SHARDS - 1);
            FREE.lock().unwrap_or_else(PoisonError::into_inner).1.insert(self.0);
        }
    }

    thread_local!(static SHARD: Cell<usize> = const { Cell::new(usize::MAX) });
    thread_local!(static NUMBER: Number = {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = free.1.pop_first().unwrap_or_else(|| {
            free.0 += 1;
            free.0 - 1
        });
        Number(number)
    });

    /// The counter that the calling thread uses. The last one is shared by all threads that have none of their own.
    #[inline]
    pub(crate) fn shard() -> usize {
        match SHARD.get() {
            usize::MAX => assign(),
            shard => shard,
        }
    }

    #[cold]
    fn assign() -> usize {
        let number = NUMBER.try_with(|number| number.0).unwrap_or(SHARDS - 1);
        SHARD.set(number.min(SHARDS - 1));
        SHARD.get()
    }
}

#[cfg(not(loom))]
pub(crate) use threads::shard;

/// The counter that the calling thread uses for requests on the slow path. A model chooses for itself.
#[inline]
pub(crate) fn slow_shard() -> usize {
    if cfg!(loom) { shard() } else { FAST + shard() }
}

/// The counter that the calling thread uses, and whether no other thread writes it.
#[inline]
pub(crate) fn own_shard() -> (usize, bool) {
    let shard = shard();
    (shard, cfg!(not(loom)) && shard != SHARDS - 1)
}

#[cfg(loom)]
loom::thread_local!(static SHARD: std::cell::Cell<usize> = std::cell::Cell::new(0));

/// A model says which counter each of its threads uses: numbering them would only multiply the interleavings.
#[cfg(loom)]
pub(crate) fn shard() -> usize {
    SHARD.with(std::cell::Cell::get)
}

#[cfg(loom)]
pub(crate) fn use_shard(shard: usize) {
    SHARD.with(|current| current.set(shard % SHARDS));
}
