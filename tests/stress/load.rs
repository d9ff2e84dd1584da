//! The load: tasks on two I/O threads, two queues on threads of their own, and requests whose futures are dropped.

use crate::plan::{self, BLOCK, BlockModel, DISK, MODEL, OnceBlocks, SECTOR, ZEROES};
use crate::watch::Watch;
use block_common::{AlignedBuf, IoBuf, IoError, IoErrorKind, RequestFlags};
use block_gs::GlobalState;
use block_io::{Completed, IoThreadHandle, Queue, Request, RequestKind, Root};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{Rng, TOY_RELOCATE, bed};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Requests in flight of each thread.
const DEPTH: usize = 32;
/// The most polls after which a future is dropped.
const POLLS_MAX: u64 = 30;
/// Bytes of a cluster of the overlay.
const CLUSTER: u64 = 64 << 10;

type Outcome = Result<(), String>;
type Task = Pin<Box<dyn Future<Output = Option<Outcome>>>>;

/// What the parts of a load share.
struct Shared {
    stop: AtomicBool,
    stamps: AtomicU64,
    blocks: OnceBlocks,
    /// Requests on the entry of dropped ones that were polled at least once.
    started: AtomicU64,
    /// Queues that were told that the node is gone.
    told: AtomicU64,
    watch: Arc<Watch>,
}

impl Shared {
    fn new(watch: &Arc<Watch>) -> Arc<Self> {
        Arc::new(Self {
            stop: AtomicBool::new(false),
            stamps: AtomicU64::new(plan::FIRST),
            blocks: OnceBlocks::new(),
            started: AtomicU64::new(0),
            told: AtomicU64::new(0),
            watch: watch.clone(),
        })
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn stamp(&self) -> u64 {
        self.stamps.fetch_add(1, Ordering::Relaxed)
    }
}

fn buf(bytes: &[u8]) -> IoBuf {
    let buf = AlignedBuf::zeroed(bytes.len(), 4096).into_io();
    buf.copy_from_slice(0, bytes);
    buf
}

fn bytes(buf: Option<IoBuf>) -> Result<Vec<u8>, String> {
    let buf = buf.ok_or("a buffer did not come back")?;
    let mut bytes = vec![0; buf.len()];
    buf.copy_to_slice(0, &mut bytes);
    Ok(bytes)
}

fn thread(name: &str, body: impl FnOnce() -> Outcome + Send + 'static) -> JoinHandle<Outcome> {
    std::thread::Builder::new().name(name.into()).spawn(body).expect("a thread")
}

/// Wait for threads without holding up the main loop; what they say is what the test says.
async fn join(gs: &GlobalState, threads: Vec<JoinHandle<Outcome>>) {
    for thread in threads {
        while !thread.is_finished() {
            gs.main().sleep(Duration::from_millis(1)).await;
        }
        let name = thread.thread().name().unwrap_or_default().to_owned();
        match thread.join() {
            Ok(outcome) => outcome.unwrap_or_else(|error| panic!("{name}: {error}")),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

/// A running load.
pub(crate) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Outcome>>,
    tasks: Vec<(&'static str, Task)>,
    drops: Root,
}

impl Load {
    /// Start everything, on the entries `[model, queues, drops]`.
    pub(crate) fn start(roots: &[Root; 3], homes: &[IoThreadHandle; 2], rng: &mut Rng, watch: &Arc<Watch>) -> Self {
        let shared = Shared::new(watch);
        let [model, queues, drops] = roots;
        let mut load = Self { shared, threads: Vec::new(), tasks: Vec::new(), drops: drops.clone() };
        load.task("model", &homes[0], random_requests(load.shared.clone(), model.clone(), homes.to_vec(), rng.fork()));
        for home in homes {
            load.task("relocate", home, relocate(load.shared.clone(), model.clone(), rng.fork()));
            for _ in 0..3 {
                load.task("drop", home, drop_requests(load.shared.clone(), drops.clone(), rng.fork()));
            }
        }
        for number in 0..2 {
            let (shared, root, rng) = (load.shared.clone(), queues.clone(), rng.fork());
            load.threads.push(thread("queue", move || QueueLoad::new(number, shared, root, rng, false)?.run()));
        }
        let (shared, root, rng) = (load.shared.clone(), drops.clone(), rng.fork());
        load.threads.push(thread("drop", move || bed::block_on(drop_requests(shared, root, rng))));
        load
    }

    fn task(
        &mut self,
        name: &'static str,
        home: &IoThreadHandle,
        body: impl Future<Output = Outcome> + Send + 'static,
    ) {
        self.tasks.push((name, Box::pin(home.run(body))));
    }

    pub(crate) fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// Wait until all of it has ended, and every request that was started is over.
    pub(crate) async fn wait(&mut self, gs: &GlobalState) {
        join(gs, std::mem::take(&mut self.threads)).await;
        for (name, task) in self.tasks.drain(..) {
            let outcome = task.await.unwrap_or_else(|| Err("the I/O thread is gone, or the task panicked".into()));
            outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let started = self.shared.started.load(Ordering::Relaxed);
        loop {
            let (done, failed) = self.over();
            assert_eq!(failed, 0, "requests failed whose futures were dropped");
            assert!(done <= started, "{done} requests are over, and {started} were started");
            if done == started {
                return;
            }
            gs.main().sleep(Duration::from_millis(1)).await;
        }
    }

    fn over(&self) -> (u64, u64) {
        let kinds =
            [RequestKind::Read, RequestKind::Write, RequestKind::Zero, RequestKind::Discard, RequestKind::Flush];
        let counts = kinds.map(|kind| self.drops.count(kind));
        (counts.iter().map(|count| count.requests).sum(), counts.iter().map(|count| count.failed).sum())
    }

    /// Whoever was polled once has written all of it; whoever was not, nothing.
    pub(crate) async fn compare(&self) {
        for (offset, stamp) in self.shared.blocks.expected() {
            let (result, buf) = self.drops.read(offset, self::buf(&[0; BLOCK as usize])).await;
            result.expect("reads");
            let bytes = bytes(buf).expect("comes back");
            let what = || plan::what(offset, &bytes);
            assert!(bytes == plan::filled(stamp, offset, BLOCK), "block {offset:#x}, not stamp {stamp}: {}", what());
        }
    }
}

/// The test kit's model, again and again, on both I/O threads.
async fn random_requests(shared: Arc<Shared>, root: Root, threads: Vec<IoThreadHandle>, mut rng: Rng) -> Outcome {
    while !shared.is_stopped() {
        let options = ModelOptions {
            seed: rng.next(),
            requests: 1000,
            depth: DEPTH * threads.len(),
            len: MODEL,
            threads: threads.clone(),
            ..ModelOptions::default()
        };
        shared.watch.done(model::run(&root, options).await?.done);
    }
    Ok(())
}

/// Move clusters to other places of the file, any of them at any time.
async fn relocate(shared: Arc<Shared>, root: Root, mut rng: Rng) -> Outcome {
    while !shared.is_stopped() {
        let index = rng.below(0..DISK / CLUSTER);
        match root.ioctl(TOY_RELOCATE, buf(&index.to_le_bytes())).await {
            Ok(()) | Err(IoError::BUSY) => shared.watch.done(1),
            Err(error) => return Err(format!("moving cluster {index}: {error:?}")),
        }
    }
    Ok(())
}

/// Start requests and drop their futures after some polls, or none.
async fn drop_requests(shared: Arc<Shared>, root: Root, mut rng: Rng) -> Outcome {
    let mut left = 0;
    while !shared.is_stopped() {
        // Now and then one is waited for, so that no crowd gathers before a closed gate.
        let polls = if left == 0 { usize::MAX } else { rng.below(0..POLLS_MAX + 1) as usize };
        left = if left == 0 { rng.below(1..9) } else { left - 1 };
        let started = u64::from(polls > 0);
        let block = if rng.chance(60) { shared.blocks.take() } else { None };
        let result = match block {
            Some(offset) if rng.chance(80) => {
                let stamp = shared.stamp();
                shared.blocks.note(offset, (polls > 0).then_some(stamp));
                let data = buf(&plan::filled(stamp, offset, BLOCK));
                let flags = if rng.chance(20) { RequestFlags::FUA } else { RequestFlags::empty() };
                bed::drop_after(root.write(offset, data, flags), polls).await.map(|(result, _)| result)
            }
            Some(offset) => {
                shared.blocks.note(offset, (polls > 0).then_some(ZEROES));
                bed::drop_after(root.zero(offset, BLOCK, RequestFlags::MAY_UNMAP), polls).await
            }
            None if rng.chance(70) => {
                let offset = rng.below(0..DISK / BLOCK) * BLOCK;
                bed::drop_after(root.read(offset, buf(&[0; BLOCK as usize])), polls).await.map(|(result, _)| result)
            }
            None => bed::drop_after(root.flush(), polls).await,
        };
        shared.started.fetch_add(started, Ordering::Relaxed);
        match result {
            Some(result) => result.map_err(|error| format!("a request failed: {error:?}"))?,
            None if polls > 0 => shared.watch.dropped(),
            None => {}
        }
        shared.watch.done(started);
    }
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Read,
    Write(u64),
    Flush,
}

/// A request of a queue, by the slot that its tag names.
#[derive(Clone, Copy, Debug)]
struct Flying {
    op: Op,
    block: usize,
    first: u64,
    sectors: u64,
}

/// One thread with a queue of its own, always full.
struct QueueLoad {
    queue: Queue,
    shared: Arc<Shared>,
    root: Root,
    rng: Rng,
    blocks: Vec<BlockModel>,
    slots: Vec<Option<Flying>>,
    /// Whether the node may go away underneath.
    tolerant: bool,
    told: bool,
}

impl QueueLoad {
    fn new(number: u64, shared: Arc<Shared>, root: Root, rng: Rng, tolerant: bool) -> Result<Self, String> {
        let queue = Queue::new().map_err(|error| error.to_string())?;
        let blocks = plan::queue_blocks(number).into_iter().map(BlockModel::new).collect();
        Ok(Self { queue, shared, root, rng, blocks, slots: vec![None; DEPTH], tolerant, told: false })
    }

    /// Until the load is stopped, and everything that was submitted has come back.
    fn run(mut self) -> Outcome {
        let mut completed = Vec::new();
        loop {
            if !self.shared.is_stopped() {
                self.fill();
            }
            if self.queue.pending() == 0 && self.shared.is_stopped() {
                break;
            }
            self.queue.wait(&mut completed, Some(Duration::from_millis(20)));
            self.shared.watch.done(completed.len() as u64);
            for completed in completed.drain(..) {
                self.end(completed)?;
            }
        }
        match self.slots.iter().flatten().next() {
            Some(lost) => Err(format!("{lost:?} did not come back")),
            None => Ok(()),
        }
    }

    /// Each slot has blocks of its own, so that what they hold is certain.
    fn fill(&mut self) {
        for slot in 0..DEPTH {
            if self.slots[slot].is_none() {
                let per_slot = (self.blocks.len() / DEPTH) as u64;
                let block = self.rng.below(0..per_slot) as usize * DEPTH + slot;
                let first = self.rng.below(0..BLOCK / SECTOR);
                let sectors = self.rng.below(1..BLOCK / SECTOR - first + 1);
                self.submit(slot, block, first, sectors);
                if self.rng.chance(20) {
                    self.queue.kick();
                }
            }
        }
    }

    fn submit(&mut self, slot: usize, block: usize, first: u64, sectors: u64) {
        let offset = self.blocks[block].offset + first * SECTOR;
        let (op, request) = match self.rng.below(0..100) {
            0..50 => (Op::Read, Request::read(offset, buf(&vec![0; (sectors * SECTOR) as usize]))),
            50..88 => {
                let stamp = self.shared.stamp();
                let data = buf(&plan::filled(stamp, offset, sectors * SECTOR));
                (Op::Write(stamp), Request::write(offset, data, RequestFlags::empty()))
            }
            88..98 => (Op::Write(ZEROES), Request::zero(offset, sectors * SECTOR, RequestFlags::MAY_UNMAP)),
            _ => (Op::Flush, Request::flush()),
        };
        self.slots[slot] = Some(Flying { op, block, first, sectors });
        self.queue.submit(&self.root, request, slot as u64);
    }

    fn end(&mut self, Completed { tag, done }: Completed) -> Outcome {
        let flying = self.slots.get_mut(tag as usize).and_then(Option::take);
        let Some(flying) = flying else { return Err(format!("tag {tag} came back, which was not in flight")) };
        match done.result {
            Err(error) if self.tolerant && error.kind() == IoErrorKind::Gone => {
                let told = u64::from(!std::mem::replace(&mut self.told, true));
                self.shared.told.fetch_add(told, Ordering::Relaxed);
                return Ok(());
            }
            result => result.map_err(|error| format!("{flying:?}: {error:?}"))?,
        }
        let block = &mut self.blocks[flying.block];
        match flying.op {
            Op::Write(stamp) => block.set(flying.first, flying.sectors, stamp),
            Op::Read if !self.tolerant => block.check(flying.first, &bytes(done.buf)?)?,
            Op::Read | Op::Flush => {}
        }
        Ok(())
    }
}

/// Two queues that go on while the node is closed.
pub(crate) struct Last {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Outcome>>,
}

impl Last {
    pub(crate) fn start(root: &Root, rng: &mut Rng, watch: &Arc<Watch>) -> Self {
        let shared = Shared::new(watch);
        let queue = |number| {
            let (shared, root, rng) = (shared.clone(), root.clone(), rng.fork());
            thread("last queue", move || QueueLoad::new(number, shared, root, rng, true)?.run())
        };
        let threads = [0, 1].map(queue).into();
        Self { shared, threads }
    }

    /// Let each of them hear that the node is gone, stop, and see that every request has come back.
    pub(crate) async fn wait(self, gs: &GlobalState) {
        while self.shared.told.load(Ordering::Relaxed) < self.threads.len() as u64 {
            gs.main().sleep(Duration::from_millis(1)).await;
        }
        self.shared.stop.store(true, Ordering::Relaxed);
        join(gs, self.threads).await;
    }
}
