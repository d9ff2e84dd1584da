//! Plain data that both sides of the block layer share: flags, permissions, limits, options, buffers, errors.
//!
//! What is here does no I/O, knows no runtime and no graph, and any thread may use it. It deliberately holds nothing that
//! only one side needs: drivers and their traits are in `block-io`, the graph in `block-gs`.
//!
//! Reading order: offsets and ranges, the I/O error, buffers and limits (the I/O path); permissions, roles, status (what
//! edges and nodes say about themselves); names, sizes, modes and options (what users write).

#![deny(unsafe_code)]

mod error;
mod range;

mod buf;
mod debug_event;
mod flags;
mod limits;
#[cfg(feature = "vm-memory")]
mod vm_memory;

mod perm;
mod role;
mod status;

mod name;
mod size;
mod zero;

mod qapi;

mod mode;
mod optype;
mod probe;

pub mod options;

pub use buf::*;
pub use debug_event::*;
pub use error::*;
pub use flags::*;
pub use limits::*;
pub use mode::*;
pub use name::*;
pub use options::{ChildOrNull, ChildSpec, Dialect, FileName, OptionReader, Options, OptionsError};
pub use optype::*;
pub use perm::*;
pub use probe::*;
pub use qapi::*;
pub use range::*;
pub use role::*;
pub use size::*;
pub use status::*;
#[cfg(feature = "vm-memory")]
pub use vm_memory::*;
pub use zero::*;

/// The target of those events (see `tracing`) whose words are for whoever uses a tool, as the field has them.
pub const TOLD: &str = "block_common::told";
