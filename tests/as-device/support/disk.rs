//! A disk on storage in memory, as a device, an export or a job finds it: a root, and the thread that it calls home.

use block_backend_io::{BackendControl, BackendEvents, BackendIo, BackendSettings};
use block_common::{AlignedBuf, IoBuf, Perm};
use block_io::{Driver, IoThread, Root, StaticGraph};
use block_testkit::{MemOptions, MemStorage, bed};
use std::thread::ScopedJoinHandle;

pub(crate) struct Disk {
    pub(crate) storage: MemStorage,
    pub(crate) root: Root,
    graph: StaticGraph,
    _thread: IoThread,
}

impl Disk {
    /// Zeroes, through an entry that may do what `perm` says.
    pub(crate) fn new(len: u64, perm: Perm) -> Self {
        let storage = MemStorage::new(MemOptions::new(len));
        Self::on(storage.clone(), storage.driver(), perm)
    }

    /// The same on an engine of the test's own.
    pub(crate) fn on(storage: MemStorage, engine: impl Driver, perm: Perm) -> Self {
        let thread = bed::io_thread(true);
        let mut graph = StaticGraph::new(thread.handle());
        let node = bed::block_on(graph.node("disk0").install(engine, false)).expect("installs");
        let root = graph.root("drive0", &node, perm);
        Self { storage, root, graph, _thread: thread }
    }

    /// Both halves of a backend around the root.
    pub(crate) fn backend(&self) -> (BackendIo, BackendControl, BackendEvents) {
        BackendIo::new(self.root.clone(), BackendSettings::default())
    }

    pub(crate) fn close(self) {
        bed::block_on(self.graph.close()).expect("closes");
    }
}

pub(crate) fn buf(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

/// Run `device` on a thread of its own and wait for it.
pub(crate) fn on_a_device_thread<T: Send>(device: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| join(scope.spawn(device)))
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
