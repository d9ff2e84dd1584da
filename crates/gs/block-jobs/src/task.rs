//! Jobs without a node of their own to copy: some work of the main loop's, with an id, a status and an end that can be looked at. Creating an image is one, changing key slots
//! another.
//!
//! The work may change the graph, so it is served, and the body waits for it. It is not interrupted: a job that is cancelled ends with the work, as one that was cancelled.

use crate::acts::{Job, JobContext, JobSetup, Leftover, PreparedJob, Start, StartedJob};
use crate::error::{JobError, JobResult};
use crate::status::JobType;
use block_copy::{JobControl, RunError};
use block_gs::GlobalState;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use tokio::sync::oneshot;

/// What kind of work it is.
pub trait TaskKind: 'static {
    /// What the job is called.
    const TYPE: JobType;
}

/// An image is created.
#[derive(Debug)]
pub struct Creating;

impl TaskKind for Creating {
    const TYPE: JobType = JobType::Create;
}

/// The options of an image are changed.
#[derive(Debug)]
pub struct Amending;

impl TaskKind for Amending {
    const TYPE: JobType = JobType::Amend;
}

type Working = Pin<Box<dyn Future<Output = Result<(), String>>>>;
type Work = Box<dyn FnOnce(GlobalState) -> Working>;

/// A job that is some work of the main loop's. It has one step of progress.
pub struct TaskJob<K> {
    work: Work,
    kind: PhantomData<K>,
}

impl<K> TaskJob<K> {
    /// A job that does `work`, which answers why it failed. Not within a mutation: it may begin some of its own.
    pub fn new<F>(work: impl FnOnce(GlobalState) -> F + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + 'static,
    {
        Self { work: Box::new(|gs| Box::pin(work(gs))), kind: PhantomData }
    }
}

impl<K> fmt::Debug for TaskJob<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskJob")
    }
}

impl<K: TaskKind> Job for TaskJob<K> {
    const TYPE: JobType = K::TYPE;
    type Started = StartedTask;

    async fn pre_run(self, setup: JobSetup) -> JobResult<Start<StartedTask>> {
        let (done, is_done) = oneshot::channel();
        let job = StartedTask { work: Some((self.work, done)) };
        Ok(Start::new(job, &setup.gs().main_io(), move |control| wait(control, is_done)))
    }
}

/// The body: it waits.
async fn wait(mut control: JobControl, is_done: oneshot::Receiver<Result<(), String>>) -> Result<(), RunError> {
    control.pause_point().await?;
    control.extend(1);
    let result = is_done.await;
    control.advance(1);
    match result {
        Ok(result) => result.map_err(RunError::Other),
        Err(_) => Err(RunError::Other("the job's work ended without a result".into())),
    }
}

/// A task that runs, or has run.
pub struct StartedTask {
    work: Option<(Work, oneshot::Sender<Result<(), String>>)>,
}

impl fmt::Debug for StartedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartedTask(begun: {})", self.work.is_none())
    }
}

/// Nothing is left to be done, or to be undone.
#[derive(Debug)]
pub struct DoneTask;

impl StartedJob for StartedTask {
    type Report = ();
    type Prepared = DoneTask;
    type Left = DoneTask;

    async fn serve(&mut self, context: &JobContext) {
        if let Some((work, done)) = self.work.take() {
            // Nobody waits for the answer if the body is gone.
            let _ = done.send(work(context.gs().clone()).await);
        }
    }

    async fn prepare(self, _gs: &GlobalState, (): ()) -> Result<DoneTask, (Self, JobError)> {
        Ok(DoneTask)
    }

    async fn abort(self, _gs: &GlobalState) -> DoneTask {
        DoneTask
    }
}

impl PreparedJob for DoneTask {
    type Left = Self;

    fn commit(self, _gs: &GlobalState) -> Self {
        self
    }

    async fn abort(self, _gs: &GlobalState) -> Self {
        self
    }
}

impl Leftover for DoneTask {
    async fn clean(self, _gs: &GlobalState) {}
}
