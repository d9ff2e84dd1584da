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

/// How many counters a gate has: threads are spread over them.
#[cfg(not(loom))]
pub(crate) const SHARDS: usize = 16;
#[cfg(loom)]
pub(crate) const SHARDS: usize = 2;

/// The counter that the calling thread uses.
#[cfg(not(loom))]
#[inline]
pub(crate) fn shard() -> usize {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};
    // Numbers threads; it holds no state of any block layer.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static SHARD: Cell<usize> = const { Cell::new(usize::MAX) });
    SHARD.with(|shard| {
        if shard.get() == usize::MAX {
            shard.set(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
        }
        shard.get()
    })
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
