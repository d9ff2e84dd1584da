//! A bed for the tests of jobs: a block layer whose leaves are `MemStorage`, devices that write, and pictures of the graph.

#![allow(dead_code, reason = "each test binary uses its own part of the bed")]

use async_trait::async_trait;
use block_common::options::{Dialect, DriverKind};
use block_common::{AlignedBuf, OptionReader, Options, ParentKind, Perm, PermPair, RequestFlags};
use block_gs::{
    DriverType, GlobalOptions, GlobalState, GraphResult, MainLoop, NoControl, NodeRef, OpenContext, Opened, RootRef,
};
use block_io::{IoThread, IoThreadOptions, Root};
use block_jobs::{JobEvent, JobEvents, JobRegistry};
use block_testkit::{MemOptions, MemStorage, Rng};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a test may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(120);

type Storages = Rc<RefCell<BTreeMap<String, MemStorage>>>;

/// The driver `mem`: option `storage` names one of the bed's.
struct MemType(Storages);

#[async_trait(?Send)]
impl DriverType for MemType {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let name = options.require_str("storage")?;
        let engine = self.0.borrow()[&name].driver();
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

/// A block layer for one test.
pub(crate) struct Bed {
    pub(crate) gs: GlobalState,
    storages: Storages,
    events: RefCell<JobEvents>,
}

/// Run `test` on a main loop of its own; afterwards everything closes, and nothing is left.
pub(crate) fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Bed>) -> F) {
    let main = MainLoop::new().expect("descriptors");
    let options = GlobalOptions { io_threads: true, ..GlobalOptions::default() };
    let gs = GlobalState::new(&main, options).expect("an I/O thread");
    let storages = Storages::default();
    gs.register(Rc::new(MemType(storages.clone())));
    let events = RefCell::new(JobRegistry::of(&gs).take_events());
    let bed = Rc::new(Bed { gs: gs.clone(), storages, events });
    let _watched = Watchdog::new();
    main.run(async {
        test(bed.clone()).await;
        JobRegistry::close_all(&gs).await.expect("nobody holds a node");
        assert!(gs.nodes().is_empty());
    });
}

/// Ends the process if the test does not end.
struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    fn new() -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let seen = done.clone();
        let begin = Instant::now();
        let name = std::thread::current().name().unwrap_or("?").to_owned();
        std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                if begin.elapsed() > PATIENCE {
                    eprintln!("{name} hangs");
                    std::process::abort();
                }
                #[allow(clippy::disallowed_methods, reason = "the test's own thread")]
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self(done)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

pub(crate) fn dict(pairs: &[(&str, &str)]) -> Options {
    let mut options = Options::new(Dialect::Qmp);
    for (key, value) in pairs {
        options.insert(key, *value).expect("a key");
    }
    options
}

impl Bed {
    /// Open the node `name`, owned by the monitor, over `storage`.
    pub(crate) async fn add(&self, name: &str, storage: &MemStorage) -> NodeRef {
        self.storages.borrow_mut().insert(name.into(), storage.clone());
        let options = dict(&[("driver", "mem"), ("node-name", name), ("storage", name), ("discard", "unmap")]);
        let node = self.gs.open(options).await.expect("it opens");
        self.gs.set_monitor_owned(&node, true);
        node
    }

    /// A node of `size` zeroes.
    pub(crate) async fn add_zeroes(&self, name: &str, size: u64) -> MemStorage {
        let storage = MemStorage::new(MemOptions::new(size));
        self.add(name, &storage).await;
        storage
    }

    /// A node of `size` bytes that are all different from their neighbours.
    pub(crate) async fn add_noise(&self, name: &str, size: u64, seed: u64) -> MemStorage {
        let storage = MemStorage::with_content(MemOptions::new(size), noise(size, seed));
        self.add(name, &storage).await;
        storage
    }

    /// A device that reads and writes `node`, with a thread of its own.
    pub(crate) async fn device(&self, node: &str) -> Device {
        let thread = IoThread::spawn(IoThreadOptions::named("device")).expect("an I/O thread");
        let perm = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all() - Perm::WRITE);
        let root = self.gs.new_root("disk", ParentKind::Backend, perm, &thread.handle());
        let node = self.gs.find_node(node).expect("the node");
        self.gs.attach_root(&root, Some(&node)).await.expect("nobody is in the way");
        Device { root, thread }
    }

    pub(crate) fn registry(&self) -> Rc<JobRegistry> {
        JobRegistry::of(&self.gs)
    }

    /// What happened to jobs since the last call.
    pub(crate) fn events(&self) -> Vec<JobEvent> {
        let mut events = self.events.borrow_mut();
        std::iter::from_fn(|| events.try_next()).collect()
    }

    /// The statuses of `id` since the last call, in order.
    pub(crate) fn statuses(&self, id: &str) -> String {
        let statuses = self.events().into_iter().filter_map(|event| match event {
            JobEvent::StatusChange { id: of, status } if of == id => Some(status.to_string()),
            _ => None,
        });
        statuses.collect::<Vec<_>>().join(" ")
    }

    /// All that can be seen of the graph: nodes, edges, permissions, options, states.
    pub(crate) async fn picture(&self) -> String {
        self.gs.settle().await.expect("no closing failed");
        let nodes = self.gs.nodes();
        nodes.iter().map(|node| format!("{node:?}\n")).collect()
    }

    pub(crate) async fn sleep_ms(&self, ms: u64) {
        self.gs.main().sleep(Duration::from_millis(ms)).await;
    }

    /// Wait until `condition`.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        while !condition() {
            self.sleep_ms(1).await;
        }
    }
}

pub(crate) fn noise(size: u64, seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = Vec::with_capacity(size as usize + 8);
    while bytes.len() < size as usize {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(size as usize);
    bytes
}

/// Somebody who uses a node.
pub(crate) struct Device {
    pub(crate) root: RootRef,
    pub(crate) thread: IoThread,
}

impl Device {
    pub(crate) async fn write(&self, offset: u64, byte: u8, len: usize) {
        write(self.root.io(), offset, vec![byte; len]).await.expect("a write");
    }

    pub(crate) async fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let buf = AlignedBuf::zeroed(len, 512).into_io();
        let (result, buf) = self.root.io().read(offset, buf).await;
        result.expect("a read");
        buf.expect("its buffer").to_aligned(1).to_vec()
    }

    /// Write to random blocks, `depth` at a time, until told to stop. Each worker has blocks of its own, so that the last
    /// acknowledged write of a block is what must be there.
    pub(crate) fn scribble(&self, size: u64, block: usize, depth: u64, seed: u64) -> Scribbler {
        let shared = Arc::new(Scribbled {
            stop: AtomicBool::new(false),
            running: AtomicU64::new(depth),
            writes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last: Mutex::new(BTreeMap::new()),
        });
        for worker in 0..depth {
            let (root, shared) = (self.root.io().clone(), shared.clone());
            let mut rng = Rng::new(seed ^ (worker << 32));
            self.thread.handle().spawn(async move {
                let blocks = size / block as u64 / depth;
                while !shared.stop.load(Ordering::Relaxed) {
                    let at = rng.below(0..blocks) * depth + worker;
                    let stamp = rng.next();
                    match write(&root, at * block as u64, stamped(stamp, block)).await {
                        Ok(()) => drop(shared.last.lock().expect("no panic").insert(at, stamp)),
                        Err(_) => drop(shared.failed.fetch_add(1, Ordering::Relaxed)),
                    }
                    shared.writes.fetch_add(1, Ordering::Relaxed);
                }
                shared.running.fetch_sub(1, Ordering::Release);
            });
        }
        Scribbler { shared, block }
    }
}

pub(crate) async fn write(root: &Root, offset: u64, bytes: Vec<u8>) -> block_common::IoResult<()> {
    let mut buf = AlignedBuf::zeroed(bytes.len(), 512);
    buf.copy_from_slice(&bytes);
    root.write(offset, buf.into_io(), RequestFlags::empty()).await.0
}

fn stamped(stamp: u64, len: usize) -> Vec<u8> {
    stamp.to_le_bytes().iter().copied().cycle().take(len).collect()
}

struct Scribbled {
    stop: AtomicBool,
    running: AtomicU64,
    writes: AtomicU64,
    failed: AtomicU64,
    last: Mutex<BTreeMap<u64, u64>>,
}

/// A device's writes under way.
pub(crate) struct Scribbler {
    shared: Arc<Scribbled>,
    block: usize,
}

impl Scribbler {
    pub(crate) fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::Relaxed)
    }

    /// Stop, and put what was acknowledged into `model`.
    pub(crate) async fn stop(self, bed: &Bed, model: &mut [u8]) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        bed.until(|| self.shared.running.load(Ordering::Acquire) == 0).await;
        assert_eq!(self.shared.failed.load(Ordering::Relaxed), 0, "writes that failed");
        for (at, stamp) in self.shared.last.lock().expect("no panic").iter() {
            let start = *at as usize * self.block;
            model[start..start + self.block].copy_from_slice(&stamped(*stamp, self.block));
        }
        self.writes()
    }
}

/// Where two contents differ first.
pub(crate) fn difference(a: &[u8], b: &[u8]) -> Option<usize> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).position(|(a, b)| a != b)
}
