//! Bodies of jobs: what moves data for hours on an I/O thread and cannot name the graph.
//!
//! A body holds [`Root`](block_io::Root)s, a [`JobControl`] with its orders, and the asking end of an upcall if it has something to ask.
//! Permissions, filters being inserted, the decision what becomes of the nodes: that is the job's other half, in `block-jobs`.
//!
//! # Reading order
//! [`JobControl`] is what every body looks at. [`copy`](fn@copy) copies what stands still. [`MirrorTop`] and [`mirror`](fn@mirror)
//! copy what is written meanwhile. [`sparse_copy`] is what tools do with images that nobody uses, [`packed_copy`] the same for compressed ones.

#![forbid(unsafe_code)]

mod control;
mod rate;

mod copy;
mod error;

mod compare;
mod layers;
mod packed;
mod padded;
mod sparse;
mod zeroes;

mod mirror;
mod mirror_top;

pub use compare::{CompareError, Difference, compare, first_data};
pub use control::{Cancelled, JobControl, JobNote, JobNotes, JobOrders, JobProgress, job_control};
pub use copy::{CopyOptions, copy};
pub use error::{CopyAct, CopyError, RunError};
pub use layers::{LayerOptions, commit, keep_differences};
pub use mirror::{MirrorAnswer, MirrorOptions, MirrorParts, MirrorQuestion, mirror};
pub use mirror_top::{MirrorTop, MirrorTopControl};
pub use packed::packed_copy;
pub use padded::Padded;
pub use rate::RateLimit;
pub use sparse::{SparseNote, SparseOptions, data_bytes, sparse_copy};
