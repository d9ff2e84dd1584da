//! Tests of cairn-io: against qemu-io, by itself, and of its language alone.

#![allow(clippy::disallowed_methods, reason = "tests may block")]

mod support;

mod differential;
mod filter_scripts;
mod filters;
mod locking;
mod luks;
mod own;
mod parser;
mod qcow2;
