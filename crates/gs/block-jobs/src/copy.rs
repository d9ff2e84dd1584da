//! The copy job (a mirror of everything): its acts. Its body is [`block_copy::mirror`].
//!
//! What it holds on the way: a root on the target, the filter above the source, a root on the source below the filter; while it
//! switches, a drained section. All of it is given back by `clean`, whatever happened.

use crate::acts::{Completion, Job, JobContext, JobSetup, Leftover, PreparedJob, Start, StartedJob};
use crate::error::{JobError, JobResult};
use crate::status::JobType;
use async_trait::async_trait;
use block_backend_io::{UpcallsOut, upcalls};
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, NodeName, OpType, OptionReader, Perm, PermPair};
use block_copy::{MirrorAnswer, MirrorOptions, MirrorParts, MirrorQuestion, MirrorTop, MirrorTopControl, mirror};
use block_gs::{
    DrainGuard, DriverType, EngineControl, GlobalState, GraphError, GraphResult, NodeRef, OpBlocker, OpenContext,
    Opened, Replacement, RootRef, filter_perm,
};
use block_io::{DirtyBitmap, IoThreadHandle};
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;

/// The body reads, and nobody may change the length; writes are what the job is there for.
const SOURCE: PermPair = PermPair::new(Perm::CONSISTENT_READ, Perm::all().difference(Perm::RESIZE));
/// Until the copy is complete there is nothing to read in the target, and nobody else may write.
const TARGET: PermPair = PermPair::new(Perm::WRITE, Perm::WRITE_UNCHANGED);

/// The filter's edge.
const FILE: &str = "file";

const GRANULARITY_MIN: u64 = 512;
const GRANULARITY_MAX: u64 = 64 << 20;

/// Copies a node to another while it is written, and then puts the other in its place.
#[derive(Clone, Debug)]
pub struct CopyJob {
    /// The node to copy, by name.
    pub source: String,
    /// The node to copy to, by name. As long as the source.
    pub target: String,
    /// The filter's name, or a generated one.
    pub filter: Option<NodeName>,
    /// Where the body runs, or the main I/O thread.
    pub home: Option<IoThreadHandle>,
    /// How much a write dirties at least, in bytes.
    pub granularity: u64,
    /// Let the source's users use the target when the job completes.
    pub pivot: bool,
    /// Complete as soon as the job is ready.
    pub auto_complete: bool,
    /// How to copy.
    pub options: MirrorOptions,
}

impl CopyJob {
    /// Copy `source` to `target`, in granules of 64 KiB; pivot when told to complete.
    pub fn new(source: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
            filter: None,
            home: None,
            granularity: 64 << 10,
            pivot: true,
            auto_complete: false,
            options: MirrorOptions::default(),
        }
    }

    fn check(&self) -> JobResult<()> {
        let why = if !(GRANULARITY_MIN..=GRANULARITY_MAX).contains(&self.granularity) {
            "Parameter 'granularity' expects a value in range [512B, 64MB]"
        } else if !self.granularity.is_power_of_two() {
            "Parameter 'granularity' expects a power of 2"
        } else if self.source == self.target {
            "Can't mirror node into itself"
        } else {
            return Ok(());
        };
        Err(JobError::Options(why.into()))
    }
}

impl Job for CopyJob {
    const TYPE: JobType = JobType::Mirror;
    type Started = StartedCopy;

    async fn pre_run(self, setup: JobSetup) -> JobResult<Start<StartedCopy>> {
        self.check()?;
        let gs = setup.gs();
        let (source, target) = (gs.find_node(&self.source)?, gs.find_node(&self.target)?);
        let claims = [setup.claim(&source, OpType::MirrorSource)?, setup.claim(&target, OpType::MirrorTarget)?];
        let home = self.home.clone().unwrap_or_else(|| gs.node_home(&source));
        let bitmap = DirtyBitmap::try_new(source.io().length(), self.granularity);
        let too_fine = || JobError::Options("Parameter 'granularity' is too small for a node of this length".into());
        let bitmap = Arc::new(bitmap.ok_or_else(too_fine)?);
        bitmap.set_all();
        let target_root = setup.root(&target, TARGET, &home).await?;
        let filter = match Filter::insert(gs, source.clone(), self.filter, bitmap.clone()).await {
            Ok(filter) => filter,
            Err(error) => {
                gs.close_root(target_root).await;
                return Err(error.into());
            }
        };
        let source_root = match setup.root(&source, SOURCE, &home).await {
            Ok(root) => root,
            Err(error) => {
                filter.take_out(gs).await;
                filter.close(gs).await;
                gs.close_root(target_root).await;
                return Err(error);
            }
        };
        let (owner, questions) = upcalls(1);
        let parts = MirrorParts { source: source_root.io().clone(), target: target_root.io().clone(), bitmap, owner };
        let [source_claim, target_claim] = claims;
        let claims = [source_claim, target_claim, setup.block_ops(&filter.node)];
        let left = CopyLeft { source_root, target_root, filter, claims };
        let (pivot, auto_complete, options) = (self.pivot, self.auto_complete, self.options);
        let job = StartedCopy { left, questions, pivot, auto_complete, section: None };
        Ok(Start::new(job, &home, move |mut control| async move { mirror(parts, options, &mut control).await }))
    }
}

/// A copy job whose body runs, or has run.
pub struct StartedCopy {
    left: CopyLeft,
    questions: UpcallsOut<MirrorQuestion, MirrorAnswer>,
    pivot: bool,
    auto_complete: bool,
    /// Nobody writes to the source while the body copies the last of it, and until the graph has changed.
    section: Option<DrainGuard>,
}

impl StartedJob for StartedCopy {
    type Report = ();
    type Prepared = PreparedCopy;
    type Left = CopyLeft;

    async fn serve(&mut self, context: &JobContext) {
        while let Some((question, answer)) = self.questions.next().await {
            let reply = match question {
                MirrorQuestion::Ready => {
                    context.ready();
                    if !self.auto_complete {
                        self.pivot &= context.completion().await == Completion::Complete;
                    }
                    MirrorAnswer::Complete
                }
                MirrorQuestion::Switch => {
                    self.section = Some(context.gs().drain(&self.left.filter.node).await);
                    MirrorAnswer::Drained
                }
                // Dropped unanswered, which the body takes for a cancel.
                _ => continue,
            };
            // A body that was cancelled meanwhile does not wait.
            let _ = answer.send(reply);
        }
    }

    async fn prepare(self, gs: &GlobalState, (): ()) -> Result<PreparedCopy, (Self, JobError)> {
        // The target may have been replaced since the job began.
        let target = match gs.root_node(&self.left.target_root) {
            Some(target) if self.pivot => target,
            Some(_) => {
                let above = gs.drain(&self.left.filter.node).await;
                return Ok(PreparedCopy { job: self, pivoted: None, above });
            }
            None => return Err((self, GraphError::ShuttingDown.into())),
        };
        let below = gs.drain(&target).await;
        let above = gs.drain(&self.left.filter.node).await;
        match self.pivot(gs, &above, &target) {
            Ok(replacement) => Ok(PreparedCopy { job: self, pivoted: Some((replacement, below)), above }),
            Err(error) => Err((self, error.into())),
        }
    }

    async fn abort(self, gs: &GlobalState) -> CopyLeft {
        let Self { left, section, .. } = self;
        left.filter.take_out(gs).await;
        drop(section);
        left
    }
}

impl StartedCopy {
    /// Let the filter's users use the target, with the permissions that they had: the job's own are in their way, and go first.
    fn pivot(&self, gs: &GlobalState, above: &DrainGuard, target: &NodeRef) -> GraphResult<Replacement> {
        let CopyLeft { target_root, filter, .. } = &self.left;
        let own = gs.root_perm(target_root);
        gs.set_root_perm(target_root, PermPair::NONE)?;
        gs.replace_node_for_now(above, &filter.node, target).inspect_err(|_| {
            // What was granted a moment ago, in the same graph.
            if let Err(error) = gs.set_root_perm(target_root, own) {
                tracing::error!(%error, "a job could not take its permissions back");
            }
        })
    }
}

impl fmt::Debug for StartedCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StartedCopy({:?})", self.left)
    }
}

/// A copy job whose graph is as it will be. Nobody's requests have gone there yet.
pub struct PreparedCopy {
    job: StartedCopy,
    /// The users that were moved to the target, and what keeps them still; `None` if they stay with the source.
    pivoted: Option<(Replacement, DrainGuard)>,
    /// Keeps still what is above the filter.
    above: DrainGuard,
}

impl PreparedJob for PreparedCopy {
    type Left = CopyLeft;

    fn commit(self, gs: &GlobalState) -> CopyLeft {
        let Self { job, pivoted, above } = self;
        // All of its users if there was no pivot; else the target itself, if it is an overlay of the source.
        job.left.filter.take_out_within(gs, &above);
        drop((pivoted, above, job.section));
        job.left
    }

    async fn abort(self, gs: &GlobalState) -> CopyLeft {
        let Self { job, pivoted, above } = self;
        if let Some((replacement, below)) = pivoted
            && let Err(error) = gs.take_back(&below, replacement)
        {
            tracing::error!(%error, "a pivot could not be taken back");
        }
        drop(above);
        job.abort(gs).await
    }
}

impl fmt::Debug for PreparedCopy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PreparedCopy({:?})", self.job.left)
    }
}

/// What a copy job still holds at its end.
#[derive(Debug)]
pub struct CopyLeft {
    source_root: RootRef,
    target_root: RootRef,
    filter: Filter,
    /// Source, target and filter: nobody else begins anything there.
    claims: [OpBlocker; 3],
}

impl Leftover for CopyLeft {
    async fn clean(self, gs: &GlobalState) {
        drop(self.claims);
        gs.close_root(self.source_root).await;
        gs.close_root(self.target_root).await;
        self.filter.close(gs).await;
    }
}

/// The filter above the source, and how it comes and goes.
struct Filter {
    node: NodeRef,
    source: NodeRef,
    driver: Rc<MirrorTopType>,
}

impl Filter {
    /// Put a filter that tracks writes above `source`, for all its users, between one request and the next (rule job-2).
    async fn insert(
        gs: &GlobalState,
        source: NodeRef,
        name: Option<NodeName>,
        bitmap: Arc<DirtyBitmap>,
    ) -> GraphResult<Self> {
        let section = gs.drain(&source).await;
        let driver = Rc::new(MirrorTopType { is_only_writer: Cell::new(false) });
        let (limits, read_only) = (source.io().limits(), source.io().is_read_only());
        let children = [(ChildName::FILE, ChildRole::FILTERED_PRIMARY, &source)];
        let build = |mut edges: Vec<_>| {
            let file = edges.pop().expect("an edge for the one child");
            let (engine, control) = MirrorTop::new(file, limits, bitmap);
            Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only }
        };
        let node = gs.add_node(name, driver.clone(), &children, build).await?;
        let this = Self { node, source, driver };
        section.settled().await;
        // Frozen as of now, and every user of the source moves above it.
        this.driver.is_only_writer.set(true);
        let inserted = gs.set_frozen(&this.node, FILE, true);
        let inserted = inserted.and_then(|()| gs.replace_node(&section, &this.source, &this.node));
        drop(section);
        match inserted {
            Ok(()) => Ok(this),
            Err(error) => {
                this.driver.is_only_writer.set(false);
                this.close(gs).await;
                Err(error)
            }
        }
    }

    /// Let the filter's users use the source again.
    async fn take_out(&self, gs: &GlobalState) {
        let section = gs.drain(&self.node).await;
        self.take_out_within(gs, &section);
    }

    /// As [`Filter::take_out`], within a section. A filter passes permissions through as they are, so its users cannot be in anybody's way
    /// below it; only an edge that another job froze can. The filter then stays, and tracks nothing any more.
    fn take_out_within(&self, gs: &GlobalState, section: &DrainGuard) {
        self.driver.is_only_writer.set(false);
        let stopped = gs.with_control(&self.node, |control: &mut Control| control.0.stop());
        let thawed = gs.set_frozen(&self.node, FILE, false);
        let moved = stopped.and(thawed).and_then(|()| gs.replace_node(section, &self.node, &self.source));
        if let Err(error) = moved {
            tracing::error!(filter = self.node.name(), %error, "a job's filter stays in the graph");
        }
    }

    async fn close(self, gs: &GlobalState) {
        let name = self.node.name().to_owned();
        if let Err(error) = gs.close(self.node).await {
            tracing::error!(filter = name, %error, "a job's filter was not closed");
        }
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({:?} over {:?})", self.node, self.source)
    }
}

/// The filter's driver, one for each job. Not registered: no options describe it.
struct MirrorTopType {
    /// Nobody may write to the source past the filter, which would not notice. Not yet, and no longer, while writers are moved.
    is_only_writer: Cell<bool>,
}

struct Control(MirrorTopControl);

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

#[async_trait(?Send)]
impl DriverType for MirrorTopType {
    fn name(&self) -> &'static str {
        MirrorTop::NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        let PermPair { perm, shared } = filter_perm(above);
        let denied = if self.is_only_writer.get() { Perm::WRITE } else { Perm::empty() };
        PermPair { perm, shared: shared - denied }
    }

    async fn open(&self, _context: &mut OpenContext<'_>, _options: &mut OptionReader) -> GraphResult<Opened> {
        Err(GraphError::UnknownDriver(MirrorTop::NAME.into()))
    }
}
