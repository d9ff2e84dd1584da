//! The I/O side of the block layer: the driver trait, nodes and edges as requests see them, the request pipeline, I/O threads.
//!
//! Nothing in this crate opens, attaches or changes a graph by itself: what can is the *control* half of each thing, which
//! whoever makes it keeps. The graph's owner is `block-gs`; programs without one compose drivers with a [`StaticGraph`].
//!
//! # Reading order
//! [`Driver`] and [`Mapping`] say what a driver is; [`IoNode`], [`NodeControl`] and [`Req`] what a node is; [`Edge`] and [`EdgeWriter`]
//! how nodes hang together; [`Root`] and [`Queue`] where requests come in; [`IoThread`] where they run.

mod sync;

mod gate;
mod link;

mod driver;
mod edge;
mod node;
mod pad;
mod request;

mod pipeline;
mod root;

mod homed;

mod askers;
mod context;
mod copy_range;
mod copy_up;
mod file;
mod flight;
mod flush;
mod host_range;
mod pool;
mod queue;
mod registered;
mod thread;
mod track;
mod write_many;

mod bitmap;
mod static_graph;
mod status;

#[cfg(all(test, loom))]
mod model;

pub use bitmap::{DirtyBitmap, KeptBitmap, NodeBitmap};
pub use context::ring_available;
pub use copy_up::CopyUp;
pub use driver::{Access, Clusters, Driver, Mapping, NowRequest, RECODED_SHORT};
pub use edge::{Edge, EdgeWriter};
pub use file::{DeviceBlocks, DiskGeometry, FileEngine, FileExtent, HostFile, HostFileControl, HostFileOptions};
pub use flight::Flight;
pub use gate::GateState;
pub use homed::{Entered, Errand, Homed};
pub use host_range::{HostRange, on_host_files};
pub use node::{ChangeKind, IoNode, NodeControl, NodeModes, NodeTarget, Quiesced, Req, WriteObserver};
pub use pool::ThreadPool;
pub use queue::Queue;
pub use registered::RegisteredBuf;
pub use request::{Completed, Done, Request, RequestKind};
pub use root::{RequestCount, Root, RootControl};
pub use static_graph::{StaticGraph, StaticNode, StaticShell};
pub use status::ChainStatus;
pub use thread::{IoThread, IoThreadHandle, IoThreadOptions, run_beside, yield_now};
