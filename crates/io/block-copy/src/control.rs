//! A job's orders and its reports: the half that the body holds, and the halves that its owner keeps.
//!
//! Orders are a state, not a queue: a body that looks late sees the latest. They take effect where the body looks, which is at its
//! [pause points](JobControl::pause_point). What a verb means, and when it is allowed, is not known here.

use crate::rate::RateLimit;
use block_common::Errno;
use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Orders {
    paused: bool,
    cancelled: bool,
    bytes_per_second: u64,
}

#[derive(Debug, Default)]
struct Counters {
    current: AtomicU64,
    total: AtomicU64,
}

/// How far a job is, in a unit of its own (bytes, for jobs that copy).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// What is done.
    pub current: u64,
    /// What there is to do, as far as is known. May grow.
    pub total: u64,
}

/// The job was told to stop, or its owner is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Errno::ECANCELED)]
pub struct Cancelled;

/// What a body tells its owner. Nobody waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobNote {
    /// It waits at a pause point, and has no request in flight.
    Paused,
    /// It goes on.
    Resumed,
}

/// The body's half: what it has to look at.
pub struct JobControl {
    orders: watch::Receiver<Orders>,
    /// Held by a body that nobody owns, so that its orders never end.
    _own: Option<watch::Sender<Orders>>,
    notes: mpsc::UnboundedSender<JobNote>,
    counters: Arc<Counters>,
    limit: RateLimit,
}

/// The owner's half: gives orders, and sees how far the job is. Dropping it cancels the body.
pub struct JobOrders {
    orders: watch::Sender<Orders>,
    counters: Arc<Counters>,
}

/// What the body tells, for its owner to read.
#[derive(Debug)]
pub struct JobNotes(mpsc::UnboundedReceiver<JobNote>);

/// All halves of a job's control, for a job that is neither paused nor limited.
pub fn job_control() -> (JobControl, JobOrders, JobNotes) {
    let (send, orders) = watch::channel(Orders::default());
    let (notes, notes_out) = mpsc::unbounded_channel();
    let counters = Arc::new(Counters::default());
    let limit = RateLimit::default();
    let owner = JobOrders { orders: send, counters: counters.clone() };
    (JobControl { orders, _own: None, notes, counters, limit }, owner, JobNotes(notes_out))
}

impl JobControl {
    /// For a body that nobody owns: it runs unless it is dropped.
    pub fn unattended() -> Self {
        let (control, owner, _) = job_control();
        let JobOrders { orders, .. } = owner;
        Self { _own: Some(orders), ..control }
    }

    /// Where the body can stop: waits while the job is paused. The body must have no request in flight.
    ///
    /// # Errors
    /// [`Cancelled`] when the job is to end.
    #[doc(alias = "pause")]
    #[doc(alias = "resume")]
    pub async fn pause_point(&mut self) -> Result<(), Cancelled> {
        let mut told = false;
        let result = loop {
            let orders = self.look();
            if orders.cancelled || !orders.paused {
                break if orders.cancelled { Err(Cancelled) } else { Ok(()) };
            }
            if !std::mem::replace(&mut told, true) {
                self.tell(JobNote::Paused);
            }
            self.changed().await;
        };
        if told {
            self.tell(JobNote::Resumed);
        }
        result
    }

    /// Whether the next pause point will not let the body pass at once.
    pub fn is_interrupted(&self) -> bool {
        let orders = *self.orders.borrow();
        orders.paused || self.is_cancelled()
    }

    /// Whether the job is to end.
    pub fn is_cancelled(&self) -> bool {
        self.orders.borrow().cancelled || self.orders.has_changed().is_err()
    }

    /// Wait until there are other orders than when the body looked last. May be dropped at any time.
    pub async fn changed(&mut self) {
        // An owner that is gone is a change, which every look finds again.
        let _ = self.orders.changed().await;
    }

    /// Await `future`, unless the job is cancelled first.
    ///
    /// # Errors
    /// [`Cancelled`]; the future is then dropped.
    pub async fn until_cancelled<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Cancelled> {
        let mut future = pin!(future);
        loop {
            if self.look().cancelled {
                return Err(Cancelled);
            }
            tokio::select! {
                biased;
                output = &mut future => return Ok(output),
                () = self.changed() => {}
            }
        }
    }

    /// How long to wait before the next piece of work may start.
    pub fn delay(&mut self) -> Duration {
        let speed = self.orders.borrow().bytes_per_second;
        self.limit.set_speed(speed);
        self.limit.delay(Instant::now())
    }

    /// A piece of work of `bytes` bytes starts, and counts against the speed limit.
    pub fn charge(&mut self, bytes: u64) {
        self.limit.charge(Instant::now(), bytes);
    }

    /// There is `more` to do than was known.
    pub fn extend(&self, more: u64) {
        self.counters.total.fetch_add(more, Ordering::Relaxed);
    }

    /// So much of it `done` since the last time.
    pub fn advance(&self, done: u64) {
        self.counters.current.fetch_add(done, Ordering::Relaxed);
    }

    fn look(&mut self) -> Orders {
        let mut orders = *self.orders.borrow_and_update();
        orders.cancelled |= self.orders.has_changed().is_err();
        orders
    }

    fn tell(&self, note: JobNote) {
        // A body that nobody owns has nobody to tell.
        let _ = self.notes.send(note);
    }
}

impl fmt::Debug for JobControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobControl({:?})", *self.orders.borrow())
    }
}

impl JobOrders {
    /// Let the body stop at its next pause point, or go on.
    pub fn set_paused(&self, paused: bool) {
        self.set(|orders| orders.paused = paused);
    }

    /// Let the body end, paused or not. For good.
    pub fn cancel(&self) {
        self.set(|orders| orders.cancelled = true);
    }

    /// Work of at most so many bytes is to start in a second; 0 is no limit.
    pub fn set_speed(&self, bytes_per_second: u64) {
        self.set(|orders| orders.bytes_per_second = bytes_per_second);
    }

    /// How far the job is.
    pub fn progress(&self) -> JobProgress {
        // In this order, so that what is done never exceeds what there was to do.
        let current = self.counters.current.load(Ordering::Acquire);
        JobProgress { current, total: self.counters.total.load(Ordering::Acquire).max(current) }
    }

    fn set(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_if_modified(|orders| {
            let before = *orders;
            change(orders);
            before != *orders
        });
    }
}

impl fmt::Debug for JobOrders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobOrders({:?}, {:?})", *self.orders.borrow(), self.progress())
    }
}

impl JobNotes {
    /// The next note. `None` when the body is gone.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<JobNote>> {
        self.0.poll_recv(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    /// Poll `future` once.
    fn poll<T>(future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn next(notes: &mut JobNotes) -> Option<JobNote> {
        match notes.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(note) => note,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_pause_point_waits_and_tells_of_it() {
        let (mut control, orders, mut notes) = job_control();
        assert_eq!(poll(control.pause_point()), Poll::Ready(Ok(())));
        assert_eq!(next(&mut notes), None);
        orders.set_paused(true);
        assert!(control.is_interrupted() && !control.is_cancelled());
        let mut point = Box::pin(control.pause_point());
        assert!(poll(&mut point).is_pending());
        assert_eq!(next(&mut notes), Some(JobNote::Paused));
        orders.set_speed(7);
        assert!(poll(&mut point).is_pending());
        assert_eq!(next(&mut notes), None);
        orders.set_paused(false);
        assert_eq!(poll(&mut point), Poll::Ready(Ok(())));
        assert_eq!(next(&mut notes), Some(JobNote::Resumed));
    }

    #[test]
    fn cancelling_ends_a_pause_and_a_wait() {
        let (mut control, orders, mut notes) = job_control();
        orders.set_paused(true);
        let mut point = Box::pin(control.pause_point());
        assert!(poll(&mut point).is_pending());
        orders.cancel();
        assert_eq!(poll(&mut point), Poll::Ready(Err(Cancelled)));
        drop(point);
        assert_eq!((next(&mut notes), next(&mut notes)), (Some(JobNote::Paused), Some(JobNote::Resumed)));
        assert_eq!(poll(control.until_cancelled(std::future::pending::<()>())), Poll::Ready(Err(Cancelled)));
        assert_eq!(Cancelled.to_string(), "Operation canceled");
    }

    #[test]
    fn a_wait_goes_on_through_other_orders() {
        let (mut control, orders, _notes) = job_control();
        let mut wait = Box::pin(control.until_cancelled(std::future::pending::<()>()));
        assert!(poll(&mut wait).is_pending());
        orders.set_paused(true);
        assert!(poll(&mut wait).is_pending());
        orders.cancel();
        assert_eq!(poll(&mut wait), Poll::Ready(Err(Cancelled)));
    }

    #[test]
    fn an_owner_that_is_gone_cancels() {
        let (mut control, orders, _notes) = job_control();
        orders.set_paused(true);
        drop(orders);
        assert!(control.is_cancelled());
        assert_eq!(poll(control.pause_point()), Poll::Ready(Err(Cancelled)));
        let mut control = JobControl::unattended();
        assert_eq!(poll(control.pause_point()), Poll::Ready(Ok(())));
    }

    #[test]
    fn progress_and_speed_go_through() {
        let (mut control, orders, _notes) = job_control();
        control.extend(10);
        control.advance(4);
        assert_eq!(orders.progress(), JobProgress { current: 4, total: 10 });
        assert_eq!(control.delay(), Duration::ZERO);
        orders.set_speed(1);
        assert_eq!(control.delay(), Duration::ZERO);
        control.charge(100);
        assert!(control.delay() > Duration::from_secs(90));
        orders.set_speed(0);
        assert_eq!(control.delay(), Duration::ZERO);
    }
}
