//! What goes wrong with jobs, in the field's words where it has some.

use crate::status::{JobStatus, JobVerb};
use block_copy::{Cancelled, RunError};
use block_gs::GraphError;

/// Why a verb was refused, or a job did not come to a good end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// There is no such job.
    #[error("Job not found")]
    NotFound,
    /// Not an id for a job.
    #[error("Invalid job ID '{0}'")]
    InvalidId(String),
    /// A job has this id already.
    #[error("Job ID '{0}' already in use")]
    IdInUse(String),
    /// The job's state does not allow the verb.
    #[error("Job '{id}' in state '{status}' cannot accept command verb '{verb}'")]
    Verb {
        /// The job.
        id: String,
        /// Its state.
        status: JobStatus,
        /// What was asked of it.
        verb: JobVerb,
    },
    /// A user paused it before.
    #[error("Job is already paused")]
    AlreadyPaused,
    /// No user paused it.
    #[error("Can't resume a job that was not paused")]
    NotPaused,
    /// It is paused, and was asked for something that it would have to run for.
    #[error("The block job for device '{0}' is currently paused")]
    Paused(String),
    /// It was cancelled already.
    #[error("The active block job '{0}' cannot be completed")]
    CannotComplete(String),
    /// Something is wrong with its options.
    #[error("{0}")]
    Options(String),
    /// The graph refused a change.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// Its body failed, or was cancelled.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its body is gone: the I/O thread ended, or it panicked.
    #[error("the job's body ended without a result: its I/O thread is gone, or it panicked")]
    Lost,
}

impl JobError {
    /// The job was told to end.
    pub(crate) const CANCELLED: Self = Self::Run(RunError::Cancelled(Cancelled));

    /// Whether the job did not fail by itself.
    pub const fn is_cancelled(&self) -> bool {
        matches!(self, Self::Run(RunError::Cancelled(_)))
    }
}

/// What a call about a job returns.
pub type JobResult<T> = Result<T, JobError>;
