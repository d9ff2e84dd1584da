//! Who works on the pieces of long requests: the pool does on the processors that the I/O thread leaves free, and it does itself what the pool has no time for.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Pieces that pools have. The processors are the process's, and so is this.
static HANDED: AtomicUsize = AtomicUsize::new(0);
/// Pieces for each processor: one is worked on, and the next one is there when it is done.
const AHEAD: usize = 2;

/// A piece that the pool has.
pub(crate) struct Handed(());

impl Handed {
    /// One more, if there is a processor for it beside the calling thread's: there are `processors`.
    pub(crate) fn over(processors: usize) -> Option<Self> {
        let max = AHEAD * processors.saturating_sub(1);
        let more = |handed: usize| (handed < max).then_some(handed + 1);
        HANDED.fetch_update(Relaxed, Relaxed, more).ok().map(|_| Self(()))
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        HANDED.fetch_sub(1, Relaxed);
    }
}
