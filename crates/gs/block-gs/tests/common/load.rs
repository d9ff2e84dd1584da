//! Load: threads of their own, each with a queue of its own that it keeps full.

use super::buffer;
use block_common::{IoError, RequestFlags};
use block_io::{Queue, Request, Root};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Requests that each thread keeps in flight.
pub const DEPTH: u64 = 32;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    completed: AtomicU64,
}

/// What came of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    pub submitted: u64,
    pub completed: u64,
    /// By error number.
    pub failed: BTreeMap<i32, u64>,
    /// The longest time without a completion.
    pub longest_gap: Duration,
}

/// Threads that send requests to roots until they are told to stop.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Load {
    /// `threads` threads, each over all of `roots` in turn.
    pub fn start(roots: &[Root], threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |_| {
            let (roots, shared) = (roots.to_vec(), shared.clone());
            std::thread::spawn(move || run(&roots, &shared))
        };
        Self { threads: (0..threads).map(spawn).collect(), shared }
    }

    /// How many requests are over.
    pub fn completed(&self) -> u64 {
        self.shared.completed.load(Ordering::Relaxed)
    }

    /// Stop, wait for every request, and add up.
    pub fn stop(self) -> Outcome {
        self.shared.stop.store(true, Ordering::SeqCst);
        let mut sum = Outcome::default();
        for thread in self.threads {
            let one = thread.join().expect("a load thread panicked");
            sum.submitted += one.submitted;
            sum.completed += one.completed;
            sum.longest_gap = sum.longest_gap.max(one.longest_gap);
            for (errno, count) in one.failed {
                *sum.failed.entry(errno).or_default() += count;
            }
        }
        sum
    }

    /// Stop, and check that no request was lost and none failed.
    pub fn finish(self) -> Outcome {
        let outcome = self.stop();
        assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
        assert!(outcome.failed.is_empty(), "requests failed: {:?}", outcome.failed);
        assert!(outcome.completed > 0, "there was no load");
        outcome
    }
}

fn run(roots: &[Root], shared: &Shared) -> Outcome {
    let mut queue = Queue::new().expect("a queue");
    let (mut outcome, mut done) = (Outcome::default(), Vec::new());
    let mut spare: Vec<_> = (0..DEPTH).map(|_| buffer(4096)).collect();
    let mut last = Instant::now();
    loop {
        let stopping = shared.stop.load(Ordering::SeqCst);
        while let Some(buf) = if stopping { None } else { spare.pop() } {
            let tag = outcome.submitted;
            let offset = tag * 4096 % (512 << 10);
            let request = match tag % 3 {
                0 => Request::write(offset, buf, RequestFlags::empty()),
                _ => Request::read(offset, buf),
            };
            queue.submit(&roots[tag as usize % roots.len()], request, tag);
            outcome.submitted += 1;
        }
        if stopping && queue.pending() == 0 {
            return outcome;
        }
        queue.wait(&mut done, Some(Duration::from_millis(20)));
        assert!(last.elapsed() < Duration::from_secs(60), "a request hangs");
        for completed in done.drain(..) {
            outcome.longest_gap = outcome.longest_gap.max(last.elapsed());
            last = Instant::now();
            outcome.completed += 1;
            shared.completed.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = completed.done.result {
                *outcome.failed.entry(error.errno().raw()).or_default() += 1;
            }
            // A cancelled request keeps its buffer.
            assert!(completed.done.result != Err(IoError::CANCELLED), "a request was cancelled");
            spare.push(completed.done.buf.expect("the buffer comes back"));
        }
    }
}
