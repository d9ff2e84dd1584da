//! The thread, the waiting and the skipping that tests need.
//!
//! Nothing here needs a runtime: futures are polled on the test's own thread, and a test that hangs fails with a
//! message.

use crate::{ToyCow, ToyCowControl, ToyFilter, ToyFilterControl, ToyFormat};
use block_common::{ChildRole, IoResult, Perm};
pub use block_io::yield_now;
use block_io::{FileEngine, IoThread, IoThreadOptions, StaticGraph, StaticNode};
use std::future::{Future, poll_fn};
use std::io::Write as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// How long [`block_on`] waits before it calls a test hung.
const PATIENCE: Duration = Duration::from_secs(300);

/// One way in which requests on a host file are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Whether the I/O thread has a ring.
    pub ring: bool,
    /// What the file asks for.
    pub engine: FileEngine,
}

impl Way {
    /// Every way: the thread's ring, threads on demand, and threads for want of a ring.
    pub const ALL: [Self; 3] = [
        Self { ring: true, engine: FileEngine::Ring },
        Self { ring: true, engine: FileEngine::Threads },
        Self { ring: false, engine: FileEngine::Ring },
    ];

    /// An I/O thread of this way.
    pub fn thread(self) -> IoThread {
        io_thread(self.ring)
    }
}

/// An I/O thread for a test.
///
/// # Panics
/// When the host refuses one.
pub fn io_thread(ring: bool) -> IoThread {
    IoThread::spawn(IoThreadOptions { ring, ..IoThreadOptions::named("test-io") }).expect("an I/O thread")
}

/// Put a [`ToyCow`] over `file`, newly formatted if there is a `format`, and over `backing`.
///
/// # Errors
/// Those of formatting and opening.
pub async fn toy_cow(
    graph: &mut StaticGraph,
    file: &StaticNode,
    backing: Option<&StaticNode>,
    format: Option<ToyFormat>,
) -> IoResult<(StaticNode, ToyCowControl)> {
    let mut shell = graph.node("toy-cow");
    let file = shell.child(ChildRole::IMAGE, Perm::all(), file);
    let backing = backing.map(|backing| shell.child(ChildRole::COW, Perm::CONSISTENT_READ, backing));
    let open = |req| async move {
        if let Some(format) = format {
            ToyCow::format(&req, &file, format).await?;
        }
        ToyCow::open(&req, file, backing).await
    };
    let (engine, control) = shell.run(open).await?;
    Ok((shell.install(engine, false).await?, control))
}

/// Put a [`ToyFilter`] over `file`.
///
/// # Errors
/// Those of opening.
pub async fn toy_filter(graph: &mut StaticGraph, file: &StaticNode) -> IoResult<(StaticNode, ToyFilterControl)> {
    let mut shell = graph.node("toy-filter");
    let file = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), file);
    let (engine, control) = shell.run(|req| async move { ToyFilter::open(&req, file) }).await?;
    Ok((shell.install(engine, false).await?, control))
}

/// Say that a test could not be run here, and why: on stderr, and in the file that `CAIRN_SKIP_LOG` names.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED: {test}: {reason}");
    eprintln!("{line}");
    let Some(log) = std::env::var_os("CAIRN_SKIP_LOG") else { return };
    #[allow(clippy::disallowed_methods, reason = "a test's own log")]
    let file = std::fs::OpenOptions::new().append(true).create(true).open(log);
    if let Err(error) = file.and_then(|mut file| writeln!(file, "{line}")) {
        eprintln!("the skip log cannot be written: {error}");
    }
}

struct Signal {
    woken: Mutex<bool>,
    wake: Condvar,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
    }
}

/// Poll `future` to its end on this thread.
///
/// # Panics
/// When it does not end within five minutes.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let deadline = Instant::now() + PATIENCE;
    let signal = Arc::new(Signal { woken: Mutex::new(true), wake: Condvar::new() });
    let waker = Waker::from(signal.clone());
    let mut future = pin!(future);
    loop {
        let mut woken = signal.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "a test hangs: nothing has woken it for {} s", PATIENCE.as_secs());
            woken = signal.wake.wait_timeout(woken, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *woken = false;
        drop(woken);
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
    }
}

/// Await all of `futures`, beside each other.
pub async fn join_all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut slots: Vec<(Pin<Box<F>>, Option<F::Output>)> =
        futures.into_iter().map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut all = true;
        for (future, output) in &mut slots {
            if output.is_none() {
                match future.as_mut().poll(cx) {
                    Poll::Ready(value) => *output = Some(value),
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    slots.into_iter().filter_map(|(_, output)| output).collect()
}

/// Poll `future` at most `polls` times, then drop it where it stands. Its output, if it was faster.
pub async fn drop_after<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut count = 0;
    poll_fn(move |cx| {
        if count == polls {
            return Poll::Ready(None);
        }
        count += 1;
        // Not waiting for the future's own waker: a request that is held back must be dropped as well.
        cx.waker().wake_by_ref();
        future.as_mut().poll(cx).map(Some)
    })
    .await
}
