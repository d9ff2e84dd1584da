//! I/O threads: one OS thread, one tokio runtime of one thread, one ring.
//!
//! Requests that cannot be answered at once run here to their end, whatever becomes of those who asked. A handle spawns
//! futures and may be held anywhere. The graph is not here, and no thread owns a node.

use crate::context::IoContext;
use crate::node::Req;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// How many new tasks a thread takes in before those that it has get their turn. The runtime comes back here after 61 of them: so
/// however fast tasks come, those that have begun go on, and what a drain waits for ends.
const TAKE_MAX: usize = 32;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Shared {
    name: String,
    tasks: Arc<Tasks>,
    /// Longest busy wait before sleeping, in nanoseconds.
    poll_max_ns: AtomicU32,
}

/// The stack of an I/O thread, in bytes. A request that takes the slow way through a chain of nodes has a frame for each; only what
/// is used takes memory.
const STACK_SIZE: usize = 16 << 20;

/// Tasks on their way to a thread. Not a channel of tokio's: a send that races with the receiver's end may leave its task in
/// there for as long as a sender lives, and who waits for that task holds one.
#[derive(Default)]
struct Tasks(Mutex<TasksState>);

#[derive(Default)]
struct TasksState {
    waiting: VecDeque<Task>,
    /// The thread, while it waits for tasks.
    thread: Option<Waker>,
    is_closed: bool,
}

impl Tasks {
    fn state(&self) -> MutexGuard<'_, TasksState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hand a task over, or give it back when the thread has ended.
    fn push(&self, task: Task) -> Result<(), Task> {
        let mut state = self.state();
        if state.is_closed {
            return Err(task);
        }
        state.waiting.push_back(task);
        let thread = state.thread.take();
        drop(state);
        thread.into_iter().for_each(Waker::wake);
        Ok(())
    }

    /// The first of them, and whether there are more.
    fn poll_take(&self, cx: &Context<'_>) -> Poll<(Vec<Task>, bool)> {
        let waker = cx.waker().clone();
        let mut state = self.state();
        if state.waiting.is_empty() {
            let old = state.thread.replace(waker);
            drop(state);
            drop(old);
            return Poll::Pending;
        }
        let some = state.waiting.len().min(TAKE_MAX);
        let some = state.waiting.drain(..some).collect();
        Poll::Ready((some, !state.waiting.is_empty()))
    }
}

/// The thread's end of its tasks. When it goes, what waits is dropped, and so is whatever comes later.
struct Receiver(Arc<Tasks>);

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.is_closed = true;
        let rest = (std::mem::take(&mut state.waiting), state.thread.take());
        drop(state);
        drop(rest);
    }
}

/// How to run an I/O thread.
#[derive(Clone, Debug)]
pub struct IoThreadOptions {
    /// The thread's name, also in `ps`.
    pub name: String,
    /// Use io_uring where the host has it; otherwise threads.
    pub ring: bool,
    /// Before sleeping with operations in flight, look for completions for up to this long. Grows to it as it pays.
    pub poll_max: Duration,
}

impl IoThreadOptions {
    /// An I/O thread called `name`, with io_uring, that polls for up to 32 microseconds, as in the field.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), ring: true, poll_max: Duration::from_micros(32) }
    }
}

/// An I/O thread. Dropping it joins the thread: tasks that still wait for something are dropped where they stand, as in a
/// power cut; operations that the kernel has are waited for.
pub struct IoThread {
    handle: IoThreadHandle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A handle to an I/O thread: spawns futures on it, from anywhere.
#[derive(Clone)]
pub struct IoThreadHandle(Arc<Shared>);

impl IoThread {
    /// Start a thread.
    ///
    /// # Errors
    /// What the host said when it refused a thread, a descriptor or memory.
    pub fn spawn(options: IoThreadOptions) -> std::io::Result<Self> {
        let tasks = Arc::new(Tasks::default());
        let receive = Receiver(tasks.clone());
        let (stop, stopped) = oneshot::channel();
        let poll_max_ns = AtomicU32::new(u32::try_from(options.poll_max.as_nanos()).unwrap_or(u32::MAX));
        let shared = Arc::new(Shared { name: options.name.clone(), tasks, poll_max_ns });
        let for_thread = Arc::downgrade(&shared);
        // All that may fail is done here, so that nobody waits for the thread.
        let event = IoContext::event_fd()?;
        let runtime = runtime(move || for_thread.upgrade().map_or(0, |s| s.poll_max_ns.load(Ordering::Relaxed)))?;
        let watched = {
            let _entered = runtime.enter();
            watch(event.as_fd())?
        };
        let body = move || {
            let context = IoContext::with_event(options.ring, event);
            IoContext::set_current(Some(context.clone()));
            runtime.block_on(serve(&context, watched, receive, stopped));
            // The tasks that still wait go first: they may detach operations from the context.
            drop(runtime);
            IoContext::set_current(None);
        };
        let thread = std::thread::Builder::new().name(shared.name.clone()).stack_size(STACK_SIZE).spawn(body)?;
        Ok(Self { handle: IoThreadHandle(shared), stop: Some(stop), thread: Some(thread) })
    }

    /// A handle to the thread.
    pub fn handle(&self) -> IoThreadHandle {
        self.handle.clone()
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic on the thread has been printed by then, and there is nobody to give it to.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for IoThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.handle.fmt(f)
    }
}

impl IoThreadHandle {
    /// The thread's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Run `future` on the thread, to its end. If the thread is gone, the future is dropped.
    #[doc(alias = "bdrv_coroutine_enter")]
    #[doc(alias = "bdrv_co_enter")]
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.spawn_boxed(Box::pin(future));
    }

    pub(crate) fn spawn_boxed(&self, task: Task) {
        if let Err(task) = self.0.tasks.push(task) {
            tracing::warn!(thread = self.0.name, "a task was given to an I/O thread that has ended");
            drop(task);
        }
    }

    /// Run `future` on the thread and return its output. It runs to its end even if the returned future is dropped.
    /// `None` when the thread ended first, or the future panicked.
    pub fn run<T, F>(&self, future: F) -> impl Future<Output = Option<T>> + Send + use<T, F>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let (send, receive) = oneshot::channel();
        self.spawn_boxed(Box::pin(async move { drop(send.send(future.await)) }));
        async move { receive.await.ok() }
    }

    /// Set how long the thread looks for completions before it sleeps.
    pub fn set_poll_max(&self, poll_max: Duration) {
        let ns = u32::try_from(poll_max.as_nanos()).unwrap_or(u32::MAX);
        self.0.poll_max_ns.store(ns, Ordering::Relaxed);
    }

    /// Whether both are the same thread.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for IoThreadHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoThread({})", self.0.name)
    }
}

/// Run a part of a request beside it, on the I/O thread that this is called on, with a token of its own: to its end, whatever becomes of who asked. `false`, and
/// nothing is run, on any other thread.
#[allow(clippy::disallowed_methods, reason = "an I/O thread's own runtime, seen from one of its requests")]
pub fn run_beside<F: Future<Output = ()> + Send + 'static>(req: &Req, work: impl FnOnce(Req) -> F) -> bool {
    let is_here = IoContext::current().is_some() && tokio::runtime::Handle::try_current().is_ok();
    if is_here {
        drop(tokio::spawn(work(req.again())));
    }
    is_here
}

/// Let the other tasks of this thread have their turn. Unlike tokio's, it does not look at the host's events first.
pub async fn yield_now() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg_attr(
    loom,
    allow(unused_variables, reason = "tokio has no such hook under loom, and no model runs an I/O thread")
)]
fn runtime(poll_max_ns: impl Fn() -> u32 + Send + Sync + 'static) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().event_interval(61);
    #[cfg(not(loom))]
    builder.on_thread_park(move || before_sleep(poll_max_ns()));
    builder.build()
}

/// The thread is about to sleep: submit, take what is there, and wait a little if that has paid lately.
#[cfg_attr(loom, allow(dead_code, reason = "see `runtime`"))]
fn before_sleep(poll_max_ns: u32) {
    thread_local!(static POLL_NS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    let Some(context) = IoContext::current() else { return };
    context.flush();
    if context.reap() > 0 || !context.waits_for_device() || poll_max_ns == 0 {
        return context.wake_unless_submitted();
    }
    let window = POLL_NS.get().min(poll_max_ns);
    let begin = Instant::now();
    while begin.elapsed().as_nanos() < u128::from(window) {
        if context.reap() > 0 {
            return context.wake_unless_submitted();
        }
        std::hint::spin_loop();
    }
    // Nothing came within the window: try a longer one until the limit has failed, then start over from none.
    POLL_NS.set(if window >= poll_max_ns { 0 } else { (window * 2).clamp(4000.min(poll_max_ns), poll_max_ns) });
    context.wake_unless_submitted();
}

/// Watch a descriptor of the context, through a duplicate of our own.
fn watch(fd: BorrowedFd<'_>) -> std::io::Result<AsyncFd<OwnedFd>> {
    let fd = fd.try_clone_to_owned()?;
    // SAFETY: the AsyncFd owns the descriptor, never gives it away, and takes it from the reactor before closing it.
    #[allow(unsafe_code, reason = "tokio asks its callers to vouch for the descriptor's lifetime")]
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
    Ok(watched)
}

#[allow(
    clippy::disallowed_methods,
    reason = "this is the I/O thread's own runtime, and the one place that spawns on it"
)]
async fn serve(context: &Rc<IoContext>, event: AsyncFd<OwnedFd>, tasks: Receiver, mut stopped: oneshot::Receiver<()>) {
    // A busy thread does not sleep: this task comes after those that were ready when an operation was queued.
    drop(tokio::spawn(poll_fn(|cx| {
        if let Some(context) = IoContext::current() {
            context.flush_by(cx.waker());
        }
        Poll::<()>::Pending
    })));
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => return,
            (tasks, more) = poll_fn(|cx| tasks.0.poll_take(cx)) => {
                tasks.into_iter().for_each(|task| drop(tokio::spawn(task)));
                // While tasks come without end, nobody gets to the event, and a drain may wait for what has completed.
                context.reap();
                if more {
                    tokio::task::yield_now().await;
                }
            }
            ready = event.readable() => if let Ok(mut ready) = ready {
                // Each signal is an edge of its own, so the event's counter need not be read.
                ready.clear_ready();
                context.reap();
            },
        }
        // However much comes in, the tasks get their turn.
        tokio::task::coop::consume_budget().await;
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    // Scenario: somebody starts requests without end while a drain holds them back. Those that have begun must not wait behind all of them.
    #[test]
    fn drain_5_a_flood_of_tasks_is_taken_in_small_portions() {
        let tasks = Tasks::default();
        for _ in 0..2 * TAKE_MAX + 1 {
            assert!(tasks.push(Box::pin(std::future::ready(()))).is_ok());
        }
        let cx = Context::from_waker(Waker::noop());
        let mut portions = Vec::new();
        while let Poll::Ready((some, more)) = tasks.poll_take(&cx) {
            portions.push((some.len(), more));
        }
        assert_eq!(portions, [(TAKE_MAX, true), (TAKE_MAX, true), (1, false)]);
    }
}
