//! The language of `cairn-io`, its command line, its commands, the words of its reports, and sessions that carry commands out.
//!
//! All but sessions is pure code: nothing there opens, reads or prints anything, and any bytes may be given to it. A [`Session`](session::Session) works on an image
//! that it opens, or on a node that somebody else has open, and prints to an [`Output`](output::Output).
//!
//! # Reading order
//! [`catalogue`] (which commands there are), [`command`] (what they come to), [`parse`], [`program`]; then [`getopt`],
//! [`number`] and [`report`]; then [`session`].

#![forbid(unsafe_code)]

pub mod catalogue;
pub mod command;

pub mod parse;
pub mod program;

pub mod getopt;
pub mod number;

pub mod report;

pub mod image;
pub mod output;
pub mod session;

mod requests;

pub use requests::{Failed, Outcome};
