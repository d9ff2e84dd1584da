//! Transactions of jobs: all of them come to a good end, or none.
//!
//! A job whose body is done waits for the others. Then all of them change the graph within one mutation: each prepares in its turn, and only when all have, all are
//! final; if one cannot, those before it take back what they prepared. One that fails, or is cancelled, at any time cancels the others.

use crate::acts::{PreparedJob, StartedJob};
use crate::error::{JobError, JobResult};
use crate::job::{Cancel, JobRef};
use crate::status::JobStatus;
use block_gs::GlobalState;
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

#[derive(Default)]
struct State {
    /// In the order of their starting, which is that of their acts.
    members: Vec<JobRef>,
    /// No more are coming.
    is_complete: bool,
    /// How many have done their work.
    waiting: usize,
    has_failed: bool,
    /// All have done their work: from then on all go on together, whatever happens.
    is_together: bool,
    /// Somebody told one of them to finalize, and so all.
    is_finalized: bool,
    has_leader: bool,
    /// They have the ticket.
    is_open: bool,
    /// Whose turn it is to prepare.
    turn: usize,
    /// How many have no further act that needs the ticket.
    done: usize,
}

impl State {
    fn look(&mut self) {
        self.is_together |= self.is_complete && self.waiting == self.members.len() && !self.has_failed;
    }
}

/// Jobs that end together. Clones are the same group.
#[derive(Clone, Default)]
#[doc(alias = "JobTxn")]
pub struct JobGroup(Rc<RefCell<State>>);

impl JobGroup {
    /// A group without jobs: [`JobRegistry::start_in`](crate::JobRegistry::start_in) adds some.
    pub fn new() -> Self {
        Self::default()
    }

    /// All jobs have been started: until this is called, none of them ends well.
    pub fn complete(&self) {
        self.change(|state| {
            state.is_complete = true;
            state.look();
        });
    }

    /// Cancel all of them, because one could not be started for example.
    pub fn cancel(&self) {
        let members = {
            let mut state = self.0.borrow_mut();
            state.has_failed = true;
            state.members.clone()
        };
        for job in members {
            // One that refuses is over, or finds out in its turn.
            let _ = job.cancel(Cancel::Force);
            job.look_again();
        }
    }

    pub(crate) fn add(&self, job: &JobRef) {
        self.0.borrow_mut().members.push(job.clone());
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let members = {
            let mut state = self.0.borrow_mut();
            change(&mut state);
            state.members.clone()
        };
        members.iter().for_each(JobRef::look_again);
    }

    /// `job` has done its work: wait for the others. Tells whether they have done theirs.
    pub(crate) async fn all_done(&self, job: &JobRef) -> bool {
        self.change(|state| {
            state.waiting += 1;
            state.look();
        });
        job.wait_until(|| self.0.borrow().is_together || self.0.borrow().has_failed || job.is_cancelled()).await;
        if job.is_cancelled() {
            self.cancel();
        }
        self.0.borrow().is_together
    }

    /// Wait until all may change the graph, or one is not going to.
    async fn finalized(&self, job: &JobRef) {
        let is_automatic = |job: &JobRef| job.options().auto_finalize;
        if self.0.borrow().members.iter().all(is_automatic) {
            return;
        }
        job.wait_until(|| {
            let state = self.0.borrow();
            state.is_finalized || state.has_failed || job.is_cancelled() || job.is_finalized()
        })
        .await;
        if job.is_cancelled() {
            self.cancel();
        } else {
            self.change(|state| state.is_finalized = true);
        }
    }

    /// Take the ticket, once for all.
    async fn open(&self, gs: &GlobalState, job: &JobRef) {
        if !std::mem::replace(&mut self.0.borrow_mut().has_leader, true) {
            let (group, first) = (self.clone(), job.clone());
            // Detached: it lasts until the last one is done.
            drop(gs.mutate(move |_| async move {
                group.change(|state| state.is_open = true);
                first.wait_until(|| group.0.borrow().done == group.0.borrow().members.len()).await;
            }));
        }
        job.wait_until(|| self.0.borrow().is_open).await;
    }

    /// Change the graph with the others, or put it back.
    pub(crate) async fn finalize<S: StartedJob>(
        &self,
        gs: &GlobalState,
        listed: &JobRef,
        job: S,
        report: S::Report,
    ) -> S::Left {
        self.finalized(listed).await;
        self.open(gs, listed).await;
        let place = self.0.borrow().members.iter().position(|member| member.same(listed));
        listed.wait_until(|| place.is_none_or(|place| self.0.borrow().turn == place)).await;
        let is_wanted = !self.0.borrow().has_failed && listed.make_final();
        let prepared = if is_wanted { job.prepare(gs, report).await } else { Err((job, JobError::CANCELLED)) };
        self.change(|state| {
            state.has_failed |= prepared.is_err();
            state.turn += 1;
        });
        listed.wait_until(|| self.0.borrow().turn == self.0.borrow().members.len()).await;
        let has_failed = self.0.borrow().has_failed;
        let left = match prepared {
            Ok(prepared) if !has_failed => prepared.commit(gs),
            Ok(prepared) => {
                abort(listed, JobError::CANCELLED);
                prepared.abort(gs).await
            }
            Err((job, error)) => {
                abort(listed, error);
                job.abort(gs).await
            }
        };
        self.change(|state| state.done += 1);
        left
    }
}

fn abort(listed: &JobRef, error: JobError) {
    listed.fail(error);
    listed.set_status(JobStatus::Aborting);
}

/// For who starts jobs that may be alone.
pub(crate) fn failed<T>(group: Option<&JobGroup>, result: &JobResult<T>) {
    if let (Some(group), Err(_)) = (group, result) {
        group.cancel();
    }
}

impl fmt::Debug for JobGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.borrow();
        write!(f, "JobGroup({} jobs, failed: {})", state.members.len(), state.has_failed)
    }
}
