//! The file driver against real files.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests prepare and look at files behind the driver's back")]

mod common;
mod device;
mod locking;
mod opening;
mod requests;
