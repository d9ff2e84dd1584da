//! Takes one job from act to act, on the main loop.
//!
//! This is the only place that changes a job's status on the way, and the only one that sees the concrete job: everybody else has a
//! [`JobRef`]. Each act that changes the graph is a mutation of its own. The ways out all lead through the leftover's `clean`.

use crate::acts::{Job, JobContext, JobSetup, Leftover, PreparedJob, Start, StartedJob};
use crate::error::{JobError, JobResult};
use crate::event::JobEvent;
use crate::group::{JobGroup, failed};
use crate::job::JobRef;
use crate::registry::JobRegistry;
use crate::status::JobStatus;
use block_copy::{JobControl, JobNotes, RunError};
use block_gs::GlobalState;
use std::future::{Future, poll_fn};
use std::pin::pin;
use tokio::sync::oneshot;

pub(crate) async fn drive<J: Job>(
    gs: GlobalState,
    (listed, group): (JobRef, Option<JobGroup>),
    job: J,
    control: JobControl,
    notes: JobNotes,
    started: oneshot::Sender<JobResult<()>>,
) {
    let id = listed.id().to_owned();
    let begun = gs.mutate(move |gs| async move { job.pre_run(JobSetup::new(gs, &id)).await }).await;
    failed(group.as_ref(), &begun);
    // Whoever started the job may have lost interest.
    match begun {
        Err(error) => {
            listed.set_status(JobStatus::Null);
            JobRegistry::of(&gs).forget(&listed);
            let _ = started.send(Err(error));
        }
        Ok(start) => {
            let outcome = if listed.is_cancelled() {
                let _ = started.send(Ok(()));
                (start.job, Err(JobError::CANCELLED))
            } else {
                listed.set_status(JobStatus::Running);
                let _ = started.send(Ok(()));
                run(&gs, &listed, start, control, notes).await
            };
            conclude(&gs, &listed, group, outcome).await;
        }
    }
}

/// Run the body, and serve it meanwhile.
async fn run<S: StartedJob>(
    gs: &GlobalState,
    listed: &JobRef,
    start: Start<S>,
    control: JobControl,
    mut notes: JobNotes,
) -> (S, JobResult<S::Report>) {
    let Start { mut job, home, body } = start;
    let context = JobContext { gs: gs.clone(), job: listed.clone() };
    // The body stays where it began, also when its nodes move: until it is over, nobody deletes that thread.
    let _thread = gs.io_thread_of(&home);
    let body = home.run(body(control));
    let result = supervise(&mut job, &context, body, &mut notes).await;
    // A body that ended without a word did so where it stood.
    listed.note(block_copy::JobNote::Resumed);
    let result = match result {
        _ if listed.is_cancelled() => Err(JobError::CANCELLED),
        Some(result) => result.map_err(JobError::from),
        None => Err(JobError::Lost),
    };
    (job, result)
}

async fn supervise<S: StartedJob>(
    job: &mut S,
    context: &JobContext,
    body: impl Future<Output = Option<Result<S::Report, RunError>>>,
    notes: &mut JobNotes,
) -> Option<Result<S::Report, RunError>> {
    let (mut body, mut serve) = (pin!(body), pin!(job.serve(context)));
    let mut is_served = false;
    poll_fn(|cx| {
        // In this order: what the body told before it asked, or before it ended, is known by then.
        let ended = body.as_mut().poll(cx);
        while let std::task::Poll::Ready(Some(note)) = notes.poll_next(cx) {
            context.job.note(note);
        }
        if ended.is_pending() && !is_served {
            is_served = serve.as_mut().poll(cx).is_ready();
        }
        ended
    })
    .await
}

/// The body is over: change the graph, or put it back; then give everything back.
async fn conclude<S: StartedJob>(
    gs: &GlobalState,
    listed: &JobRef,
    group: Option<JobGroup>,
    (job, result): (S, JobResult<S::Report>),
) {
    failed(group.as_ref(), &result);
    let left = match result {
        Err(error) => abort(gs, listed, job, error).await,
        Ok(report) => {
            listed.set_status(JobStatus::Waiting);
            let is_one_of_all = match &group {
                None => true,
                Some(group) => group.all_done(listed).await,
            };
            if !is_one_of_all {
                let left = abort(gs, listed, job, JobError::CANCELLED).await;
                return end(gs, listed, left).await;
            }
            listed.set_status(JobStatus::Pending);
            if let Some(group) = group {
                if !listed.options().auto_finalize {
                    let job_type = listed.info().job_type;
                    listed.emit(JobEvent::Pending { id: listed.id().into(), job_type });
                }
                let left = group.finalize(gs, listed, job, report).await;
                return end(gs, listed, left).await;
            }
            if !listed.options().auto_finalize {
                let job_type = listed.info().job_type;
                listed.emit(JobEvent::Pending { id: listed.id().into(), job_type });
                listed.finalized().await;
            }
            finalize(gs, listed, job, report).await
        }
    };
    end(gs, listed, left).await;
}

/// Give everything back, and tell that the job is over.
async fn end<L: Leftover>(gs: &GlobalState, listed: &JobRef, left: L) {
    left.clean(gs).await;
    let info = listed.info();
    let is_cancelled = info.error.as_ref().is_some_and(|error| error.is_cancelled());
    listed.emit(if is_cancelled { JobEvent::Cancelled(info) } else { JobEvent::Completed(info) });
    listed.set_status(JobStatus::Concluded);
    if listed.options().auto_dismiss {
        // Somebody who saw it concluded may have been faster.
        let _ = listed.dismiss();
        JobRegistry::of(gs).forget(listed);
    }
}

async fn abort<S: StartedJob>(gs: &GlobalState, listed: &JobRef, job: S, error: JobError) -> S::Left {
    listed.fail(error);
    listed.set_status(JobStatus::Aborting);
    gs.mutate(move |gs| async move { job.abort(&gs).await }).await
}

async fn finalize<S: StartedJob>(gs: &GlobalState, listed: &JobRef, job: S, report: S::Report) -> S::Left {
    let listed = listed.clone();
    gs.mutate(move |gs| async move {
        let (job, error) = if listed.make_final() {
            match job.prepare(&gs, report).await {
                Ok(prepared) => return prepared.commit(&gs),
                Err(failed) => failed,
            }
        } else {
            (job, JobError::CANCELLED)
        };
        listed.fail(error);
        listed.set_status(JobStatus::Aborting);
        job.abort(&gs).await
    })
    .await
}
