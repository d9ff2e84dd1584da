//! The global-state side of the block layer: the graph of nodes, and everything that changes it.
//!
//! All of it runs on one thread, the main loop. [`GlobalState`] is the capability: it cannot leave that thread, and every function here takes it (or is a
//! method of it). Requests do not come this way: they enter through the [`Root`](block_io::Root)s that are handed out here.
//!
//! # Reading order
//! [`MainLoop`], [`GlobalState`], then [`DriverType`] (what a driver is to the graph), [`NodeRef`] and [`DrainGuard`].

#![forbid(unsafe_code)]

mod main_loop;
mod state;

mod driver;
mod error;
mod event;

mod graph;
mod perm;

mod drain;
mod mutation;

mod above;
mod ask;
mod bitmap;
mod blocker;
mod change;
mod close;
mod length;
mod members;
mod open;
mod reopen;
mod root;
mod snapshot;
mod threshold;

mod object;

pub use above::Users;
pub use bitmap::{BitmapError, BitmapInfo, BitmapLock, BitmapOptions, BitmapRef, BitmapResult};
pub use blocker::OpBlocker;
pub use change::{AskedMore, NodeInfo, Replacement, RootInfo};
pub use drain::DrainGuard;
pub use driver::{DriverType, EngineControl, KeepError, NoControl, Opened, filter_perm, format_perm};
pub use error::{GraphError, GraphResult};
pub use event::{Event, EventSender, Events};
pub use graph::NodeRef;
pub use main_loop::{JoinHandle, MainHandle, MainLoop};
pub use mutation::Ticket;
pub use object::{IoThreadInfo, IoThreadRef, ObjectError, ObjectInfo, ObjectText, PropertyInfo, ThrottleGroupRef};
pub use open::{CommonOptions, OpenContext};
pub use reopen::{LeftOut, PreparingReopen, Reopening};
pub use root::RootRef;
pub use snapshot::{BitmapAct, Step, StepError, StepResult};
pub use state::{GlobalOptions, GlobalState, WeakGlobalState};
