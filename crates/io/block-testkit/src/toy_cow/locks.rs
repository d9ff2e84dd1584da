//! A lock for each cluster that somebody changes, and none for all others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::OwnedMutexGuard;

type ClusterLock = Arc<tokio::sync::Mutex<()>>;

#[derive(Debug, Default)]
pub(super) struct ClusterLocks(Mutex<HashMap<u64, ClusterLock>>);

/// A cluster is locked while this exists. It may be held across awaits: nobody's completion needs it.
pub(super) struct ClusterGuard<'a> {
    locks: &'a ClusterLocks,
    index: u64,
    guard: Option<OwnedMutexGuard<()>>,
}

impl ClusterLocks {
    /// Wait for the cluster with this index. First come, first served.
    pub(super) async fn lock(&self, index: u64) -> ClusterGuard<'_> {
        let lock = self.map().entry(index).or_default().clone();
        ClusterGuard { locks: self, index, guard: Some(lock.lock_owned().await) }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<u64, ClusterLock>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClusterGuard<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut map = self.locks.map();
        // Whoever waits has a clone, and clones are made under the map's lock.
        if map.get(&self.index).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            map.remove(&self.index);
        }
    }
}
