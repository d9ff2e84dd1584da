//! Jobs: work on nodes that takes long, with states and verbs, whose acts change the graph and whose bodies cannot.
//!
//! What runs for hours is a body on an I/O thread, in `block-copy`; here is what happens on the main loop before, beside and after it, in
//! the order that `docs/jobs.md` draws. Nothing here moves data.
//!
//! # Reading order
//! [`JobStatus`] and [`JobVerb`] say what a job is seen as; [`Job`] and the traits it leads to, what it does; [`JobRegistry`] starts and
//! finds jobs; a [`JobRef`] takes the verbs. [`CopyJob`] is the first real one.

#![forbid(unsafe_code)]

mod status;

mod acts;
mod error;
mod event;

mod job;

mod drive;
mod group;
mod registry;

mod copy;
mod task;

pub use acts::{Completion, Job, JobContext, JobSetup, Leftover, PreparedJob, Start, StartedJob};
pub use copy::{CopyJob, CopyLeft, PreparedCopy, StartedCopy};
pub use error::{JobError, JobResult};
pub use event::{JobEvent, JobEvents};
pub use group::JobGroup;
pub use job::{Cancel, JobInfo, JobOptions, JobRef};
pub use registry::JobRegistry;
pub use status::{JobStatus, JobType, JobVerb};
pub use task::{Amending, Creating, DoneTask, StartedTask, TaskJob, TaskKind};
