//! The commands that work on images, given to cairn-img and to the installed qemu-img: same output, same errors, same exit
//! status, same bytes and holes in every file afterwards. One file of tables a command; where the two differ on purpose,
//! `differences.rs` says so, with the reason in docs/differences.md.

#![allow(clippy::disallowed_methods, reason = "tests run programs and look at files")]

mod support;

mod amend;
mod beds;
mod bitmap;
mod check;
mod compare;
mod convert;
mod create;
mod cryptsetup;
mod dd;
mod faults;
mod info;
mod luks;
mod map;
mod measure;
mod memory;
mod objects;
mod qcow2;
mod resize;
mod snapshot;
mod surroundings;

mod differences;
mod own;
mod qcow2_chain;
mod qcow2_convert;
mod qcow2_encryption;
