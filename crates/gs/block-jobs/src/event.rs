//! What jobs tell whoever listens. One way: nobody waits for an answer.

use crate::job::JobInfo;
use crate::status::{JobStatus, JobType};
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// Something happened to a job.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum JobEvent {
    /// It has another status.
    StatusChange {
        /// The job.
        id: String,
        /// Its status from now on.
        status: JobStatus,
    },
    /// It could complete.
    Ready(JobInfo),
    /// It waits to be finalized.
    Pending {
        /// The job.
        id: String,
        /// What kind it is.
        job_type: JobType,
    },
    /// It came to its end; or it failed, and `error` says why.
    Completed(JobInfo),
    /// It was cancelled.
    Cancelled(JobInfo),
}

/// The events of all jobs of a block layer, in order.
#[derive(Debug)]
pub struct JobEvents(pub(crate) mpsc::UnboundedReceiver<JobEvent>);

impl JobEvents {
    /// The next event. `None` when the block layer is gone.
    pub async fn next(&mut self) -> Option<JobEvent> {
        self.0.recv().await
    }

    /// The next one, for who shares the stream with others and polls it by hand.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<JobEvent>> {
        self.0.poll_recv(cx)
    }

    /// The next event, if there is one already.
    pub fn try_next(&mut self) -> Option<JobEvent> {
        self.0.try_recv().ok()
    }
}
