//! The jobs of a block layer: starting them, finding them by their ids, ending them all.

use crate::acts::Job;
use crate::drive::drive;
use crate::error::{JobError, JobResult};
use crate::event::{JobEvent, JobEvents};
use crate::group::{JobGroup, failed};
use crate::job::{Cancel, JobInfo, JobOptions, JobRef};
use block_common::is_wellformed_id;
use block_copy::job_control;
use block_gs::{GlobalState, GraphResult};
use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Every job of a block layer that was not dismissed.
#[derive(Default)]
pub struct JobRegistry {
    /// In the order of their creation.
    jobs: RefCell<Vec<JobRef>>,
    events: RefCell<Option<mpsc::UnboundedSender<JobEvent>>>,
}

impl JobRegistry {
    /// The registry of `gs`.
    pub fn of(gs: &GlobalState) -> Rc<Self> {
        gs.extension()
    }

    /// Start `job`. It is listed at once; the future is done when it has its permissions and runs. The job goes its way even if the
    /// future is dropped.
    ///
    /// # Errors
    /// [`JobError::InvalidId`], [`JobError::IdInUse`], or why the job could not begin; it is not listed then, and the graph is as it was.
    #[doc(alias = "block_job_create")]
    pub fn start<J: Job>(
        gs: &GlobalState,
        options: JobOptions,
        job: J,
    ) -> impl Future<Output = JobResult<JobRef>> + 'static + use<J> {
        Self::start_with(gs, options, job, None)
    }

    /// As [`JobRegistry::start`], for a job that ends together with the others of `group`.
    ///
    /// # Errors
    /// As [`JobRegistry::start`]; the others are cancelled then.
    pub fn start_in<J: Job>(
        gs: &GlobalState,
        options: JobOptions,
        job: J,
        group: &JobGroup,
    ) -> impl Future<Output = JobResult<JobRef>> + 'static + use<J> {
        Self::start_with(gs, options, job, Some(group.clone()))
    }

    fn start_with<J: Job>(
        gs: &GlobalState,
        options: JobOptions,
        job: J,
        group: Option<JobGroup>,
    ) -> impl Future<Output = JobResult<JobRef>> + 'static + use<J> {
        let started = Self::create(gs, options, job, group.clone());
        failed(group.as_ref(), &started);
        async move {
            let (listed, started) = started?;
            started.await.unwrap_or(Err(JobError::Lost)).map(|()| listed)
        }
    }

    fn create<J: Job>(
        gs: &GlobalState,
        options: JobOptions,
        job: J,
        group: Option<JobGroup>,
    ) -> JobResult<(JobRef, oneshot::Receiver<JobResult<()>>)> {
        let registry = Self::of(gs);
        if !is_wellformed_id(&options.id) {
            return Err(JobError::InvalidId(options.id));
        }
        if registry.job(&options.id).is_ok() {
            return Err(JobError::IdInUse(options.id));
        }
        let (control, orders, notes) = job_control();
        let listed = JobRef::new(options, J::TYPE, orders, registry.events.borrow().clone());
        registry.jobs.borrow_mut().push(listed.clone());
        group.iter().for_each(|group| group.add(&listed));
        let (started, on_start) = oneshot::channel();
        drop(gs.main().spawn(drive(gs.clone(), (listed.clone(), group), job, control, notes, started)));
        Ok((listed, on_start))
    }

    /// The job called `id`.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    #[doc(alias = "block_job_get")]
    pub fn job(&self, id: &str) -> JobResult<JobRef> {
        self.jobs.borrow().iter().find(|job| job.id() == id).cloned().ok_or(JobError::NotFound)
    }

    /// Every job, the oldest first.
    #[doc(alias = "block_job_next")]
    pub fn jobs(&self) -> Vec<JobRef> {
        self.jobs.borrow().clone()
    }

    /// What can be seen of every job, the oldest first.
    pub fn query(&self) -> Vec<JobInfo> {
        self.jobs.borrow().iter().map(JobRef::info).collect()
    }

    /// Forget a job that is over.
    ///
    /// # Errors
    /// [`JobError::NotFound`], [`JobError::Verb`].
    pub fn dismiss(&self, id: &str) -> JobResult<()> {
        let job = self.job(id)?;
        job.dismiss()?;
        self.forget(&job);
        Ok(())
    }

    /// The events of jobs that are started from now on. There is one stream; who calls this again ends the former one.
    pub fn take_events(&self) -> JobEvents {
        let (send, receive) = mpsc::unbounded_channel();
        *self.events.borrow_mut() = Some(send);
        JobEvents(receive)
    }

    /// Cancel every job by force, wait until all are over, and forget them. Those that are too late to cancel come to their good end.
    pub async fn cancel_all(&self) {
        // Jobs may be started meanwhile.
        while let Some(job) = self.jobs().pop() {
            // A job that refuses is over, or about to be.
            let _ = job.cancel(Cancel::Force);
            let _ = job.ended().await;
            // With auto-dismiss it has gone by itself.
            let _ = job.dismiss();
            self.forget(&job);
        }
    }

    /// End every job, then close everything: see [`GlobalState::close_all`]. What limits hold back of the jobs' requests is let go.
    ///
    /// # Errors
    /// Those of [`GlobalState::close_all`].
    pub async fn close_all(gs: &GlobalState) -> GraphResult<()> {
        let registry = Self::of(gs);
        tokio::select! {
            biased;
            () = registry.cancel_all() => {}
            never = hurry(gs) => match never {},
        }
        gs.close_all().await
    }

    pub(crate) fn forget(&self, job: &JobRef) {
        self.jobs.borrow_mut().retain(|listed| !listed.same(job));
    }
}

/// How long requests of jobs that are to end may be held back.
const HELD_BACK: Duration = Duration::from_millis(1);

/// Jobs that are to end may wait for requests that limits hold back for as long as they like: drained sections, one after the other, in which nothing is.
async fn hurry(gs: &GlobalState) -> Infallible {
    loop {
        drop(gs.drain_all().await);
        gs.main().sleep(HELD_BACK).await;
    }
}

impl fmt::Debug for JobRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.jobs()).finish()
    }
}
