//! I/O threads: one OS thread, one tokio runtime of one thread, one ring.
//!
//! Requests that cannot be answered at once run here to their end, whatever becomes of those who asked. A handle spawns
//! futures and may be held anywhere. The graph is not here, and no thread owns a node.

use crate::context::IoContext;
use std::fmt;
use std::future::Future;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Shared {
    name: String,
    tasks: mpsc::UnboundedSender<Task>,
    /// Longest busy wait before sleeping, in nanoseconds.
    poll_max_ns: AtomicU32,
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
        let (tasks, receive) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let (started, start) = std::sync::mpsc::channel();
        let poll_max_ns = AtomicU32::new(u32::try_from(options.poll_max.as_nanos()).unwrap_or(u32::MAX));
        let shared = Arc::new(Shared { name: options.name.clone(), tasks, poll_max_ns });
        let for_thread = Arc::downgrade(&shared);
        let body = move || {
            let poller = move || for_thread.upgrade().map_or(0, |s| s.poll_max_ns.load(Ordering::Relaxed));
            run(options.ring, poller, receive, stopped, &started);
        };
        let thread = std::thread::Builder::new().name(shared.name.clone()).spawn(body)?;
        // A thread that ends without a word could not start its runtime.
        start.recv().unwrap_or_else(|_| Err(std::io::Error::other("the I/O thread did not start")))?;
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
        if self.0.tasks.send(task).is_err() {
            tracing::warn!(thread = self.0.name, "a task was given to an I/O thread that has ended");
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

fn run(
    use_ring: bool,
    poll_max_ns: impl Fn() -> u32 + Send + Sync + 'static,
    tasks: mpsc::UnboundedReceiver<Task>,
    stopped: oneshot::Receiver<()>,
    started: &std::sync::mpsc::Sender<std::io::Result<()>>,
) {
    let set_up = || {
        let context = IoContext::new(use_ring)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(61)
            .on_thread_park(move || before_sleep(poll_max_ns()))
            .build()?;
        Ok((context, runtime))
    };
    let (context, runtime) = match set_up() {
        Ok(both) => both,
        Err(error) => return drop(started.send(Err(error))),
    };
    IoContext::set_current(Some(context.clone()));
    let _ = started.send(Ok(()));
    runtime.block_on(serve(&context, tasks, stopped));
    // The tasks that still wait go first: they may detach operations from the context.
    drop(runtime);
    IoContext::set_current(None);
}

/// The thread is about to sleep: submit, take what is there, and wait a little if that has paid lately.
fn before_sleep(poll_max_ns: u32) {
    thread_local!(static POLL_NS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
    let Some(context) = IoContext::current() else { return };
    context.flush();
    if context.reap() > 0 || context.in_flight() == 0 || poll_max_ns == 0 {
        return;
    }
    let window = POLL_NS.get().min(poll_max_ns);
    let begin = Instant::now();
    while begin.elapsed().as_nanos() < u128::from(window) {
        if context.reap() > 0 {
            return;
        }
        std::hint::spin_loop();
    }
    // Nothing came within the window: try a longer one until the limit has failed, then start over from none.
    POLL_NS.set(if window >= poll_max_ns { 0 } else { (window * 2).clamp(4000.min(poll_max_ns), poll_max_ns) });
}

/// Watch a descriptor of the context, through a duplicate of our own.
fn watch(fd: Option<BorrowedFd<'_>>) -> std::io::Result<Option<AsyncFd<OwnedFd>>> {
    let Some(fd) = fd else { return Ok(None) };
    let fd = fd.try_clone_to_owned()?;
    // SAFETY: the AsyncFd owns the descriptor, never gives it away, and takes it from the reactor before closing it.
    #[allow(unsafe_code, reason = "tokio asks its callers to vouch for the descriptor's lifetime")]
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE)? };
    Ok(Some(watched))
}

async fn serve(context: &Rc<IoContext>, mut tasks: mpsc::UnboundedReceiver<Task>, mut stopped: oneshot::Receiver<()>) {
    let event = watch(Some(context.event()));
    let ring = watch(context.ring_fd());
    let (Ok(Some(event)), Ok(ring)) = (event, ring) else {
        tracing::error!("an I/O thread cannot watch its descriptors");
        return;
    };
    loop {
        tokio::select! {
            biased;
            _ = &mut stopped => return,
            task = tasks.recv() => match task {
                Some(task) => drop(tokio::spawn(task)),
                None => return,
            },
            ready = event.readable() => if let Ok(mut ready) = ready {
                ready.clear_ready();
                context.clear_event();
                context.reap_inbox();
            },
            ready = readable(ring.as_ref()) => if let Some(mut ready) = ready {
                ready.clear_ready();
                context.reap();
            },
        }
    }
}

async fn readable(ring: Option<&AsyncFd<OwnedFd>>) -> Option<tokio::io::unix::AsyncFdReadyGuard<'_, OwnedFd>> {
    match ring {
        Some(ring) => ring.readable().await.ok(),
        None => std::future::pending().await,
    }
}
