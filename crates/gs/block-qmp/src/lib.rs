//! QMP: the monitor that other programs drive a block layer by.
//!
//! A [`Monitor`] belongs to a block layer's main loop. Each client is a [`Client`], two ends of channels that carry texts, and is served by
//! [`Monitor::serve`]; `server` connects clients to sockets. What commands do is the work of the crates below: here their arguments are read and their answers
//! written. `docs/qmp.md` has the design.

#![forbid(unsafe_code)]

mod error;
mod stream;

mod monitor;
mod session;

mod commands;
mod events;
mod schema;

mod server;

pub use commands::human::{Exercised, HumanCommands, Printed};
pub use error::{ErrorClass, QmpError};
pub use monitor::{Monitor, MonitorOptions};
pub use server::{Listener, ServerError, stdio};
pub use session::{Client, Incoming, Lines};
pub use stream::{Splitter, Text};
