//! The half of a block backend that device threads hold, and the questions that I/O code may ask of global state.
//!
//! A device model on any thread needs this crate and no other: requests, the state that a guest sees (tray, lock, write cache, block
//! sizes), and what it tells the block layer. What changes the medium, the permissions or the graph is not here: it is in
//! `block-backend`, on the main loop.

#![forbid(unsafe_code)]

mod stats;

mod backend;
mod guest;
mod upcall;

pub use backend::{BackendControl, BackendEvent, BackendEvents, BackendIo, BackendSettings, ErrorAction};
pub use stats::{
    ACCT_KINDS, Accounting, AcctCount, AcctKind, AcctSettings, BOUNDARIES_MAX, BackendStats, BadBoundaries, Histogram,
    IntervalStats, Latency, StatsSnapshot,
};
pub use upcall::{Upcalls, UpcallsOut, upcalls};
