//! Locks on ranges of guest clusters, for what changes their entries; those that nobody changes have none.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

#[derive(Debug, Default)]
pub(crate) struct RangeLocks(Mutex<Vec<Held>>);

#[derive(Debug)]
struct Held {
    range: Range<u64>,
    waiters: Vec<oneshot::Sender<()>>,
}

/// The range is locked while this exists. It may be held across awaits: nobody's completion needs it.
#[derive(Debug)]
pub(crate) struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: Range<u64>,
}

impl RangeLocks {
    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wait until nobody holds any of `range`, and hold it.
    pub(crate) async fn lock(&self, range: Range<u64>) -> RangeGuard<'_> {
        loop {
            let wait = {
                let mut held = self.held();
                match held.iter_mut().find(|held| held.range.start < range.end && range.start < held.range.end) {
                    None => {
                        held.push(Held { range: range.clone(), waiters: Vec::new() });
                        return RangeGuard { locks: self, range };
                    }
                    Some(other) => {
                        let (send, wait) = oneshot::channel();
                        other.waiters.push(send);
                        wait
                    }
                }
            };
            // The sender is dropped or used when the other is over: either way it is time to look again.
            let _ = wait.await;
        }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held();
        if let Some(at) = held.iter().position(|held| held.range == self.range) {
            let over = held.swap_remove(at);
            drop(held);
            drop(over);
        }
    }
}
