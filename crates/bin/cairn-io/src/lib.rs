//! The language of `cairn-io`: its command line, its commands, and the words of its reports.
//!
//! Pure code: nothing here opens, reads or prints anything, and any bytes may be given to it. What the commands do is
//! in the program.
//!
//! # Reading order
//! [`catalogue`] (which commands there are), [`command`] (what they come to), [`parse`], [`program`]; then [`getopt`],
//! [`number`] and [`report`].

#![forbid(unsafe_code)]

pub mod catalogue;
pub mod command;

pub mod parse;
pub mod program;

pub mod getopt;
pub mod number;

pub mod report;
