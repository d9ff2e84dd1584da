//! What tests of the block layer are made of: storage that misbehaves on command, toy drivers, a conformance suite, a
//! model.
//!
//! A dev-dependency and nothing else: no program links it. The toys are stand-ins for drivers that do not exist yet;
//! they are real in what they prove (leases, edges, crash order), and simple in everything else.
//!
//! # Reading order
//! [`MemStorage`] and [`MemFile`] are leaves; [`ToyFilter`], [`ToySparse`] and [`ToyCow`] go on top. [`conformance`] checks what every
//! driver must do, [`model`] throws random requests at it, [`qcow2`] looks into images. [`bed`] has the thread and the waiting that tests need.

#![deny(unsafe_code)]

pub mod bed;
mod rng;
mod scattered;

mod mem;
mod mem_file;
mod power;

mod toy_cow;
mod toy_filter;
mod toy_sparse;

pub mod conformance;
pub mod model;
pub mod qcow2;

pub use mem::{MemDiscard, MemDriver, MemMode, MemOp, MemOpKind, MemOptions, MemRecord, MemStorage, Verdict};
pub use mem_file::MemFile;
pub use rng::{Rng, seed};
pub use scattered::scattered;
pub use toy_cow::{TOY_RELOCATE, ToyCow, ToyCowControl, ToyFormat};
pub use toy_filter::{ToyCounts, ToyFilter, ToyFilterControl};
pub use toy_sparse::ToySparse;
