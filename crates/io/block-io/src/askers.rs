//! Which threads ask for much that has to be recoded.
//!
//! One thread's long requests are worked on by all processors. When as many threads ask as there are processors, each does better to work on its own: nothing
//! then goes from one processor's cache to another's, and nobody is woken. The processors are the process's, and so is what is counted here.

use crossbeam_utils::CachePadded;
use std::num::NonZero;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// A thread counts for so many microseconds after it asked.
const LATELY: u64 = 1000;
/// Threads that are told apart. More of them than this many share places, and then work for each other oftener than they need.
const PLACES: usize = 64;

/// When the threads asked last: microseconds since [`BEGIN`].
static ASKED: [CachePadded<AtomicU64>; PLACES] = [const { CachePadded::new(AtomicU64::new(0)) }; PLACES];
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
static PROCESSORS: LazyLock<usize> = LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZero::get));

/// The thread of context `id` asks: whether there are enough that do for all processors.
#[cold]
pub(crate) fn are_enough(id: u64) -> bool {
    enough(&ASKED, id, BEGIN.elapsed().as_micros() as u64, *PROCESSORS)
}

/// The thread of context `id` works on what it asked for, for as long as there is this.
pub(crate) struct Working(u64);

impl Working {
    pub(crate) fn new(id: u64) -> Self {
        place(&ASKED, id).store(u64::MAX - LATELY, Relaxed);
        Self(id)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        place(&ASKED, self.0).store(BEGIN.elapsed().as_micros() as u64 + LATELY, Relaxed);
    }
}

fn place(asked: &[CachePadded<AtomicU64>], id: u64) -> &AtomicU64 {
    &asked[id as usize % asked.len()]
}

fn enough(asked: &[CachePadded<AtomicU64>], id: u64, now: u64, processors: usize) -> bool {
    // What was never asked is as if it was long ago.
    let now = now + LATELY;
    place(asked, id).store(now, Relaxed);
    asked.iter().filter(|asked| now < asked.load(Relaxed) + LATELY).nth(processors - 1).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn askers_count_for_a_while() {
        let asked: [CachePadded<AtomicU64>; 4] = Default::default();
        let ask = |id, now| enough(&asked, id, now, 3);
        assert!(!ask(0, 0) && !ask(1, 1) && !ask(0, 2), "two threads are fewer than three processors");
        assert!(ask(2, 3) && ask(0, LATELY) && ask(1, LATELY + 2), "three are enough");
        assert!(!ask(1, LATELY + 3), "the third one has not asked for long");
        assert!(enough(&asked, 7, 0, 1), "one processor is always busy");
    }
}
