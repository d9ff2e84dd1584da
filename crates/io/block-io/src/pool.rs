//! A small pool of threads for system calls that may sleep: the engine of `aio=threads`, and of calls that have no
//! asynchronous form (`lseek`, `fstat`, opening files). And for computing, which never sleeps: as many threads do that at a time as there are
//! processors, since more would only take the caches from each other.
//!
//! Threads start when work comes and leave after ten idle seconds. Results go back to whoever asked through a channel or an inbox;
//! nothing here knows nodes or requests.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::num::NonZero;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    threads_max: usize,
    compute_max: usize,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// Jobs that compute, and how many of these threads have in hand.
    to_compute: VecDeque<Job>,
    computing: usize,
    threads: usize,
    /// Threads that have no job, those among them that are only beginning.
    idle: usize,
    closed: bool,
}

impl State {
    /// Jobs that a thread may take.
    fn ready(&self, compute_max: usize) -> usize {
        self.jobs.len() + self.to_compute.len().min(compute_max - self.computing)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to a pool; the threads leave when the last one is dropped.
#[derive(Clone)]
pub struct ThreadPool(Arc<Handle>);

struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.work.notify_all();
    }
}

impl ThreadPool {
    /// A pool of at most `threads_max` threads (at least one). None is started yet.
    pub fn new(threads_max: usize) -> Self {
        let threads_max = threads_max.max(1);
        let compute_max = std::thread::available_parallelism().map_or(1, NonZero::get).min(threads_max);
        let shared = Shared { state: Mutex::default(), work: Condvar::new(), threads_max, compute_max };
        Self(Arc::new(Handle(Arc::new(shared))))
    }

    /// Run `work` on a thread of the pool and return what it returns. It runs whether or not the future is polled.
    ///
    /// # Errors
    /// `None` when `work` panicked.
    pub fn run<T, W>(&self, work: W) -> impl Future<Output = Option<T>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let (send, receive) = oneshot::channel();
        self.spawn(Box::new(move || drop(send.send(work()))));
        async move { receive.await.ok() }
    }

    /// As [`ThreadPool::run`], for `work` that keeps a processor busy and waits for nothing: no more of it runs at a time than there are processors.
    ///
    /// # Errors
    /// `None` when `work` panicked.
    pub fn compute<T, W>(&self, work: W) -> impl Future<Output = Option<T>> + Send + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let (send, receive) = oneshot::channel();
        let shared = &self.0.0;
        let mut state = shared.state();
        state.to_compute.push_back(Box::new(move || drop(send.send(work()))));
        if state.computing < shared.compute_max {
            self.call(state);
        }
        async move { receive.await.ok() }
    }

    pub(crate) fn spawn(&self, job: Job) {
        let mut state = self.0.0.state();
        state.jobs.push_back(job);
        self.call(state);
    }

    /// Have somebody take a job that there is now.
    fn call(&self, mut state: MutexGuard<'_, State>) {
        let shared = &self.0.0;
        if state.idle >= state.ready(shared.compute_max) || state.threads == shared.threads_max {
            shared.work.notify_one();
            return;
        }
        let for_thread = shared.clone();
        let spawned = std::thread::Builder::new().name("cairn-pool".into()).spawn(move || worker(&for_thread));
        match spawned {
            Ok(_) => {
                state.threads += 1;
                state.idle += 1;
            }
            Err(error) if state.threads == 0 => {
                tracing::error!(%error, "no thread for blocking work: doing it in place");
                let job = state.jobs.pop_back().or_else(|| state.to_compute.pop_back());
                drop(state);
                job.into_iter().for_each(|job| job());
            }
            Err(error) => tracing::warn!(%error, threads = state.threads, "no further thread for blocking work"),
        }
    }
}

fn worker(shared: &Shared) {
    let mut state = shared.state();
    state.idle -= 1;
    loop {
        let may_compute = state.computing < shared.compute_max;
        let job = state.jobs.pop_front().map(|job| (job, false));
        let job = job.or_else(|| state.to_compute.pop_front_if(|_| may_compute).map(|job| (job, true)));
        if let Some((job, computes)) = job {
            state.computing += usize::from(computes);
            drop(state);
            // A job that panics has reported it to its own channel by dropping it; the thread serves others.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            state = shared.state();
            state.computing -= usize::from(computes);
            continue;
        }
        if state.closed {
            break;
        }
        state.idle += 1;
        let (guard, waited) = shared.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = guard;
        state.idle -= 1;
        if waited.timed_out() && state.ready(shared.compute_max) == 0 {
            break;
        }
    }
    state.threads -= 1;
}

impl fmt::Debug for ThreadPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThreadPool({} threads)", self.0.0.state().threads)
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests sleep where they please")]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    // Scenario: much to compute, some of which panics, beside calls that sleep. What computes is never more than there are processors, and everything is done.
    #[test]
    fn computing_takes_no_more_threads_than_there_are_processors() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        let pool = ThreadPool::new(processors + 8);
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let compute = |number: usize| {
            let (now, most) = (now.clone(), most.clone());
            pool.compute(move || {
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(200));
                now.fetch_sub(1, Ordering::Relaxed);
                assert!(number % 50 != 7, "what panics");
                number
            })
        };
        let (mut computed, mut slept) = (Vec::new(), Vec::new());
        for number in 0..400 {
            computed.push(compute(number));
            if number % 10 == 0 {
                slept.push(pool.run(|| std::thread::sleep(Duration::from_millis(1))));
            }
        }
        for (number, done) in computed.into_iter().enumerate() {
            assert_eq!(runtime.block_on(done), (number % 50 != 7).then_some(number));
        }
        assert!(slept.into_iter().all(|done| runtime.block_on(done).is_some()));
        let most = most.load(Ordering::Relaxed);
        assert!((1..=processors).contains(&most), "{most} threads computed at a time");
    }
}
