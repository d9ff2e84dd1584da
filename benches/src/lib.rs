//! What is measured: stacks of real nodes, and a thread that sends them requests as a device would.
//!
//! Nothing is left out that a request meets in earnest: root, gates, pipeline, accounting. How often and against what
//! is the business of the benches and of `cairn-compare`.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "the set-up of a benchmark blocks on files; what is measured does not")]

mod data;

mod stack;

mod live;

mod drive;

pub use data::{DataFile, fill, warm};
pub use drive::{Driver, Shape};
pub use live::{Live, PASSING};
pub use stack::{FileMode, Stack};
