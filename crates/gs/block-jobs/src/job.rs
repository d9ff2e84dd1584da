//! One job as its users see it: its status, its verbs, what is known of it.
//!
//! Verbs take effect at once where they can, and reach the body as orders. They take no ticket and never wait. What a job does is in
//! `acts`, and who makes it do so in `drive`.

use crate::acts::Completion;
use crate::error::{JobError, JobResult};
use crate::event::JobEvent;
use crate::status::{JobStatus, JobType, JobVerb};
use block_copy::{JobNote, JobOrders, JobProgress};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use tokio::sync::{Notify, mpsc};

/// How to start a job, whatever it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobOptions {
    /// Its id, well-formed and not in use.
    pub id: String,
    /// Change the graph as soon as the body is done; otherwise wait for [`JobRef::finalize`].
    pub auto_finalize: bool,
    /// Be forgotten as soon as it is over; otherwise wait for [`JobRegistry::dismiss`](crate::JobRegistry::dismiss).
    pub auto_dismiss: bool,
    /// Bytes a second at most; 0 is no limit.
    pub speed: u64,
}

impl JobOptions {
    /// A job called `id` that nobody has to look after.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), auto_finalize: true, auto_dismiss: true, speed: 0 }
    }

    /// A job called `id` that waits to be finalized and dismissed.
    pub fn manual(id: impl Into<String>) -> Self {
        Self { auto_finalize: false, auto_dismiss: false, ..Self::new(id) }
    }
}

/// Whether a job that is ready may skip its last step instead of undoing everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancel {
    /// A job that is ready ends well, without its last step.
    Soft,
    /// In any case the job ends with an error.
    Force,
}

/// What can be seen of a job.
#[derive(Clone, Debug)]
pub struct JobInfo {
    /// Its id.
    pub id: String,
    /// What kind it is.
    pub job_type: JobType,
    /// Its status.
    pub status: JobStatus,
    /// How far it is.
    pub progress: JobProgress,
    /// Bytes a second at most; 0 is no limit.
    pub speed: u64,
    /// Whether a user paused it. It is paused once its body got there.
    pub is_pausing: bool,
    /// See [`JobOptions::auto_finalize`].
    pub auto_finalize: bool,
    /// See [`JobOptions::auto_dismiss`].
    pub auto_dismiss: bool,
    /// Why it did not come to a good end.
    pub error: Option<Rc<JobError>>,
}

#[derive(Debug)]
struct State {
    status: JobStatus,
    is_pausing: bool,
    is_cancelled: bool,
    completion: Option<Completion>,
    is_finalized: bool,
    /// The graph is being changed: it is too late for anything.
    is_final: bool,
    speed: u64,
    error: Option<Rc<JobError>>,
}

pub(crate) struct Inner {
    options: JobOptions,
    job_type: JobType,
    orders: JobOrders,
    state: RefCell<State>,
    changed: Notify,
    events: Option<mpsc::UnboundedSender<JobEvent>>,
}

/// A job. Clones are the same one; it is of no use to keep one for long after the job is dismissed.
#[derive(Clone)]
#[doc(alias = "BlockJob")]
pub struct JobRef(Rc<Inner>);

impl JobRef {
    pub(crate) fn new(
        options: JobOptions,
        job_type: JobType,
        orders: JobOrders,
        events: Option<mpsc::UnboundedSender<JobEvent>>,
    ) -> Self {
        orders.set_speed(options.speed);
        let state = State {
            status: JobStatus::Created,
            is_pausing: false,
            is_cancelled: false,
            completion: None,
            is_finalized: false,
            is_final: false,
            speed: options.speed,
            error: None,
        };
        let job =
            Self(Rc::new(Inner { options, job_type, orders, state: state.into(), changed: Notify::new(), events }));
        job.emit_status(JobStatus::Created);
        job
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.0.options.id
    }

    /// Its status.
    pub fn status(&self) -> JobStatus {
        self.0.state.borrow().status
    }

    /// What can be seen of it.
    #[doc(alias = "block_job_query")]
    pub fn info(&self) -> JobInfo {
        let state = self.0.state.borrow();
        let JobOptions { id, auto_finalize, auto_dismiss, .. } = self.0.options.clone();
        JobInfo {
            id,
            job_type: self.0.job_type,
            status: state.status,
            progress: self.0.orders.progress(),
            speed: state.speed,
            is_pausing: state.is_pausing,
            auto_finalize,
            auto_dismiss,
            error: state.error.clone(),
        }
    }

    /// Stop at the next pause point, until [`JobRef::resume`].
    ///
    /// # Errors
    /// [`JobError::Verb`], [`JobError::AlreadyPaused`].
    pub fn pause(&self) -> JobResult<()> {
        self.check(JobVerb::Pause)?;
        if std::mem::replace(&mut self.0.state.borrow_mut().is_pausing, true) {
            return Err(JobError::AlreadyPaused);
        }
        self.0.orders.set_paused(true);
        Ok(())
    }

    /// Go on after [`JobRef::pause`].
    ///
    /// # Errors
    /// [`JobError::NotPaused`], [`JobError::Verb`].
    pub fn resume(&self) -> JobResult<()> {
        if !self.0.state.borrow().is_pausing {
            return Err(JobError::NotPaused);
        }
        self.check(JobVerb::Resume)?;
        self.go_on();
        Ok(())
    }

    /// Start at most so many bytes a second from now on; 0 is no limit.
    ///
    /// # Errors
    /// [`JobError::Verb`].
    #[doc(alias = "block_job_set_speed")]
    pub fn set_speed(&self, bytes_per_second: u64) -> JobResult<()> {
        self.check(JobVerb::SetSpeed)?;
        self.0.state.borrow_mut().speed = bytes_per_second;
        self.0.orders.set_speed(bytes_per_second);
        Ok(())
    }

    /// Come to an end: the job is ready. Asking twice is asking once.
    ///
    /// # Errors
    /// [`JobError::Verb`]; [`JobError::CannotComplete`] when it has been cancelled.
    pub fn complete(&self) -> JobResult<()> {
        self.check(JobVerb::Complete)?;
        if self.is_cancelled() {
            return Err(JobError::CannotComplete(self.id().into()));
        }
        self.end_as(Completion::Complete);
        Ok(())
    }

    /// End without the job's effect. A job that is ready and not paused may be cancelled softly: it ends well, without its last step.
    ///
    /// # Errors
    /// [`JobError::Verb`], also once the graph is being changed; [`JobError::Paused`] for a paused job and [`Cancel::Soft`].
    pub fn cancel(&self, cancel: Cancel) -> JobResult<()> {
        self.check(JobVerb::Cancel)?;
        let (is_final, is_pausing) = (self.0.state.borrow().is_final, self.0.state.borrow().is_pausing);
        if is_final {
            return Err(self.refusal(JobVerb::Cancel));
        }
        if cancel == Cancel::Soft && is_pausing {
            return Err(JobError::Paused(self.id().into()));
        }
        if cancel == Cancel::Soft && self.status() == JobStatus::Ready {
            self.end_as(Completion::Cancelled);
            return Ok(());
        }
        self.0.state.borrow_mut().is_cancelled = true;
        self.0.orders.cancel();
        self.go_on();
        Ok(())
    }

    /// Change the graph now: the job is pending.
    ///
    /// # Errors
    /// [`JobError::Verb`].
    pub fn finalize(&self) -> JobResult<()> {
        self.check(JobVerb::Finalize)?;
        self.0.state.borrow_mut().is_finalized = true;
        self.0.changed.notify_waiters();
        Ok(())
    }

    /// Wait until the job is over.
    ///
    /// # Errors
    /// Why it did not come to a good end.
    pub async fn ended(&self) -> Result<(), Rc<JobError>> {
        self.reached(JobStatus::is_over).await;
        self.0.state.borrow().error.clone().map_or(Ok(()), Err)
    }

    /// Wait until `wanted` holds for the job's status; the status is returned.
    pub async fn reached(&self, wanted: impl Fn(JobStatus) -> bool) -> JobStatus {
        self.wait_for(|state| wanted(state.status).then_some(state.status)).await
    }

    async fn wait_for<T>(&self, look: impl Fn(&State) -> Option<T>) -> T {
        loop {
            let changed = self.0.changed.notified();
            if let Some(seen) = look(&self.0.state.borrow()) {
                return seen;
            }
            changed.await;
        }
    }

    fn check(&self, verb: JobVerb) -> JobResult<()> {
        if verb.applies_to(self.status()) { Ok(()) } else { Err(self.refusal(verb)) }
    }

    fn refusal(&self, verb: JobVerb) -> JobError {
        JobError::Verb { id: self.id().into(), status: self.status(), verb }
    }

    fn go_on(&self) {
        self.0.state.borrow_mut().is_pausing = false;
        self.0.orders.set_paused(false);
        self.0.changed.notify_waiters();
    }

    /// The first word counts: whoever completed it gets the last step.
    fn end_as(&self, completion: Completion) {
        self.0.state.borrow_mut().completion.get_or_insert(completion);
        self.0.changed.notify_waiters();
    }
}

/// What `drive` and the job's own GS half do.
impl JobRef {
    /// The job may be forgotten.
    pub(crate) fn dismiss(&self) -> JobResult<()> {
        self.check(JobVerb::Dismiss)?;
        self.set_status(JobStatus::Null);
        Ok(())
    }

    /// Change the status.
    ///
    /// # Panics
    /// When that is no legal step: a bug of this crate.
    pub(crate) fn set_status(&self, next: JobStatus) {
        let before = std::mem::replace(&mut self.0.state.borrow_mut().status, next);
        assert!(before.may_become(next), "job '{}' went from {before} to {next}", self.id());
        tracing::debug!(job = self.id(), status = %next, "job");
        self.emit_status(next);
        self.0.changed.notify_waiters();
    }

    pub(crate) fn emit(&self, event: JobEvent) {
        if let Some(events) = &self.0.events {
            // Whoever does not want events any more has dropped the receiver.
            let _ = events.send(event);
        }
    }

    fn emit_status(&self, status: JobStatus) {
        self.emit(JobEvent::StatusChange { id: self.id().into(), status });
    }

    pub(crate) fn set_ready(&self) {
        match self.status() {
            JobStatus::Running => self.set_status(JobStatus::Ready),
            JobStatus::Paused => {
                self.set_status(JobStatus::Running);
                self.set_status(JobStatus::Ready);
                self.set_status(JobStatus::Standby);
            }
            // It was ready before.
            _ => return,
        }
        self.emit(JobEvent::Ready(self.info()));
    }

    pub(crate) async fn completion(&self) -> Completion {
        self.wait_for(|state| state.completion).await
    }

    /// The body told something.
    pub(crate) fn note(&self, note: JobNote) {
        let next = match (note, self.status()) {
            (JobNote::Paused, JobStatus::Running) => JobStatus::Paused,
            (JobNote::Paused, JobStatus::Ready) => JobStatus::Standby,
            (JobNote::Resumed, JobStatus::Paused) => JobStatus::Running,
            (JobNote::Resumed, JobStatus::Standby) => JobStatus::Ready,
            _ => return,
        };
        self.set_status(next);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.0.state.borrow().is_cancelled
    }

    pub(crate) fn is_finalized(&self) -> bool {
        self.0.state.borrow().is_finalized
    }

    /// Something that somebody waits for here may be different.
    pub(crate) fn look_again(&self) {
        self.0.changed.notify_waiters();
    }

    /// Wait for something that is looked at whenever the job, or its group, changes.
    pub(crate) async fn wait_until(&self, wanted: impl Fn() -> bool) {
        self.wait_for(|_| wanted().then_some(())).await;
    }

    /// Wait until somebody finalizes or cancels the job.
    pub(crate) async fn finalized(&self) {
        self.wait_for(|state| (state.is_finalized || state.is_cancelled).then_some(())).await;
    }

    /// From now on it is too late to cancel. Tells whether it was in time.
    pub(crate) fn make_final(&self) -> bool {
        let mut state = self.0.state.borrow_mut();
        state.is_final = !state.is_cancelled;
        state.is_final
    }

    pub(crate) fn fail(&self, error: JobError) {
        self.0.state.borrow_mut().error.get_or_insert(Rc::new(error));
    }

    pub(crate) fn options(&self) -> &JobOptions {
        &self.0.options
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for JobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobRef({} {}, {:?})", self.0.job_type, self.id(), self.0.state.try_borrow().map(|s| s.status))
    }
}
