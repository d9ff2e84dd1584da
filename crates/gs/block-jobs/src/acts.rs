//! The acts of a job, as types that turn into each other: what is described becomes started, then prepared, then a leftover.
//!
//! Every act but [`StartedJob::serve`] consumes its job, so an act out of order or done twice does not compile:
//!
//! ```compile_fail,E0382
//! # use block_jobs::*;
//! # use block_gs::GlobalState;
//! async fn twice<S: StartedJob>(gs: &GlobalState, job: S, report: S::Report) {
//!     let _ = job.abort(gs).await;
//!     let _ = job.prepare(gs, report).await;
//! }
//! ```
//! ```compile_fail,E0599
//! # use block_jobs::*;
//! # use block_gs::GlobalState;
//! fn commit_what_was_not_prepared<S: StartedJob>(gs: &GlobalState, job: S) {
//!     job.commit(gs);
//! }
//! ```
//! A body cannot take the graph along:
//! ```compile_fail,E0277
//! # use block_jobs::*;
//! # use block_gs::GlobalState;
//! # use block_io::IoThreadHandle;
//! fn smuggle<S: StartedJob<Report = ()>>(gs: GlobalState, job: S, home: &IoThreadHandle) -> Start<S> {
//!     Start::new(job, home, move |_control| async move {
//!         gs.find_node("disk").ok();
//!         Ok(())
//!     })
//! }
//! ```

use crate::JobError;
use crate::error::JobResult;
use crate::job::JobRef;
use crate::status::JobType;
use block_common::{OpType, ParentKind, PermPair};
use block_copy::{JobControl, RunError};
use block_gs::{GlobalState, NodeRef, OpBlocker, RootRef};
use block_io::IoThreadHandle;
use std::fmt;
use std::future::Future;
use std::pin::Pin;

/// A job that has been described and holds nothing yet.
#[doc(alias = "JobDriver")]
#[doc(alias = "pre_run")]
pub trait Job: Sized + 'static {
    /// What kind of job it is.
    const TYPE: JobType;

    /// The job once it has begun.
    type Started: StartedJob;

    /// Take what the job needs (permissions, filters, frozen edges) and make its body. Within a mutation.
    ///
    /// # Errors
    /// Why the job cannot begin. Everything is as it was then: no other act follows.
    fn pre_run(self, setup: JobSetup) -> impl Future<Output = JobResult<Start<Self::Started>>>;
}

/// A job whose body runs, or has run. It owns what [`Job::pre_run`] took.
#[doc(alias = "prepare")]
pub trait StartedJob: Sized + 'static {
    /// What the body returns when it has done its work.
    type Report: Send + 'static;
    /// The job once it is prepared.
    type Prepared: PreparedJob<Left = Self::Left>;
    /// What is left of it afterwards.
    type Left: Leftover;

    /// Answer the body's upcalls, for as long as it runs. Dropped where it stands when the body ends. Takes no ticket.
    fn serve(&mut self, context: &JobContext) -> impl Future<Output = ()> {
        let _ = context;
        std::future::ready(())
    }

    /// The body has done its work: do everything that may fail, so that it can still be taken back. Within a mutation.
    ///
    /// # Errors
    /// The job itself, to be aborted, and why. Nothing has changed then.
    fn prepare(
        self,
        gs: &GlobalState,
        report: Self::Report,
    ) -> impl Future<Output = Result<Self::Prepared, (Self, JobError)>>;

    /// The body failed, was cancelled, or is gone; or preparing failed: put everything back. Within a mutation.
    fn abort(self, gs: &GlobalState) -> impl Future<Output = Self::Left>;
}

/// A job that is ready to become final, or to be taken back (by another job of its transaction, once there are transactions).
#[doc(alias = "commit")]
#[doc(alias = "abort")]
pub trait PreparedJob: Sized + 'static {
    /// What is left of it afterwards.
    type Left: Leftover;

    /// Make it final. Follows [`StartedJob::prepare`] within the same mutation; neither waits nor fails.
    fn commit(self, gs: &GlobalState) -> Self::Left;

    /// Take back what preparing did, and all the rest. Within the same mutation.
    fn abort(self, gs: &GlobalState) -> impl Future<Output = Self::Left>;
}

/// What a job still holds when the graph is as it should be.
#[doc(alias = "clean")]
pub trait Leftover: 'static {
    /// Give it back. Not within a mutation: this may wait for requests.
    fn clean(self, gs: &GlobalState) -> impl Future<Output = ()>;
}

/// What [`Job::pre_run`] has at hand.
#[derive(Clone, Debug)]
pub struct JobSetup {
    gs: GlobalState,
    id: String,
}

impl JobSetup {
    pub(crate) fn new(gs: GlobalState, id: &str) -> Self {
        Self { gs, id: id.into() }
    }

    /// The block layer.
    pub fn gs(&self) -> &GlobalState {
        &self.gs
    }

    /// The job's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Make sure that `op` may begin on `node`, and keep every operation that could get in the job's way from beginning there.
    ///
    /// # Errors
    /// [`GraphError::OpBlocked`](block_gs::GraphError::OpBlocked) when somebody else keeps this one.
    pub fn claim(&self, node: &NodeRef, op: OpType) -> JobResult<OpBlocker> {
        self.gs.check_op(node, op)?;
        Ok(self.block_ops(node))
    }

    /// As [`JobSetup::claim`], for a node of the job's own.
    pub fn block_ops(&self, node: &NodeRef) -> OpBlocker {
        // Nodes have no thread: moving their users is nothing to a job.
        self.gs.block_all_ops(node, &[OpType::Dataplane], format!("block device is in use by block job: {}", self.id))
    }

    /// An entry to `node` for the body, with permissions of the job's own. The job gives it back with [`GlobalState::close_root`].
    ///
    /// # Errors
    /// Other users of the node are in the way, or it is read-only; nothing is left then.
    pub async fn root(&self, node: &NodeRef, perm: PermPair, home: &IoThreadHandle) -> JobResult<RootRef> {
        let root = self.gs.new_root(&self.id, ParentKind::Job, perm, home);
        match self.gs.attach_root(&root, Some(node)).await {
            Ok(()) => Ok(root),
            Err(error) => {
                self.gs.close_root(root).await;
                Err(error.into())
            }
        }
    }
}

type BodyFuture<R> = Pin<Box<dyn Future<Output = Result<R, RunError>> + Send>>;
pub(crate) type Body<R> = Box<dyn FnOnce(JobControl) -> BodyFuture<R> + Send>;

/// What [`Job::pre_run`] hands over: the job's GS half, and its body with the thread that it runs on.
#[doc(alias = "run")]
pub struct Start<S: StartedJob> {
    pub(crate) job: S,
    pub(crate) home: IoThreadHandle,
    pub(crate) body: Body<S::Report>,
}

impl<S: StartedJob> Start<S> {
    /// A job whose `body` runs on `home`.
    pub fn new<F>(job: S, home: &IoThreadHandle, body: impl FnOnce(JobControl) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<S::Report, RunError>> + Send + 'static,
    {
        Self { job, home: home.clone(), body: Box::new(move |control| Box::pin(body(control))) }
    }

    /// The same body for a job that is built on this one.
    pub fn map<T: StartedJob<Report = S::Report>>(self, wrap: impl FnOnce(S) -> T) -> Start<T> {
        let Self { job, home, body } = self;
        Start { job: wrap(job), home, body }
    }
}

impl<S: StartedJob> fmt::Debug for Start<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Start(on {:?})", self.home)
    }
}

/// How a job that is ready was told to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// With its last step.
    Complete,
    /// Without it: cancelled, and not by force.
    Cancelled,
}

/// What a job's GS half can do while its body runs.
#[derive(Clone, Debug)]
pub struct JobContext {
    pub(crate) gs: GlobalState,
    pub(crate) job: JobRef,
}

impl JobContext {
    /// The block layer.
    pub fn gs(&self) -> &GlobalState {
        &self.gs
    }

    /// The job can complete from now on.
    pub fn ready(&self) {
        self.job.set_ready();
    }

    /// Wait until somebody tells the job to complete.
    pub async fn completion(&self) -> Completion {
        self.job.completion().await
    }
}
