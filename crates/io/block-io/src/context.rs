//! What a thread needs to have requests in flight: a ring of its own, slots that own what the kernel uses, an inbox.
//!
//! Each I/O thread and each [`Queue`](crate::Queue) has one context, used by that thread alone. An operation's slot owns its buffer,
//! its bounce buffer, the pins of its path or the descriptor, until the kernel's completion: whoever asked may be long gone.
//! Results leave in one of three ways: to a future of an engine on this thread, through a channel, or to a queue under a tag.
//!
//! Nothing here knows drivers; which operation to start is decided in `pipeline`.

#![allow(unsafe_code, reason = "operations are given to the kernel as raw memory, which their slots own")]

use crate::file::{FileEngine, FileOp, FileOpKind, iovecs, run_blocking, write_turn};
use crate::gate::Pin;
use crate::node::NodeBody;
use crate::pool::ThreadPool;
use crate::registered::{PIECES_MAX, Pieces, RegisteredBuf, pieces_of};
use crate::request::{Completed, Done, RequestKind};
use crate::root::RootBody;
use block_common::{AlignedBuf, BufPool, IoBuf, IoError, IoResult};
use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};
use slab::Slab;
use smallvec::SmallVec;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::pin::Pin as StdPin;
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::oneshot;

const RING_ENTRIES: u32 = 256;
/// Submit when this many operations wait, without being told to.
const BATCH_MAX: u32 = 64;
/// How often an operation is tried again that the host put off.
const RETRIES_MAX: u8 = 100;
/// What copies are aligned to, and how much memory for them is kept: bytes.
const BUFFER_ALIGNMENT: usize = 4096;
const BUFFERS_MAX: usize = 2 << 20;
/// How much task work the kernel does at a time, at least.
const TASK_WORK_AT_ONCE: u32 = 16;

pub(crate) type Path = SmallVec<[Pin<NodeBody>; 4]>;

/// What keeps an operation's target alive until it completes.
pub(crate) enum Hold {
    /// The pins of a request that was mapped down to the file.
    Path(Path),
    /// As `Path`, entered at a root, which counts it.
    Root(RequestKind, Pin<RootBody>, Path),
    /// A descriptor, for an operation that an engine asked for.
    File(#[expect(dead_code, reason = "held so that the descriptor stays open")] Arc<OwnedFd>),
}

/// Where a result goes.
pub(crate) enum Target {
    Future(Option<Waker>),
    Channel(oneshot::Sender<Done>),
    Queue(u64),
    Nobody,
}

struct Slot {
    op: FileOp,
    /// Aligned stand-in for `op.buf`, where O_DIRECT cannot take that.
    bounce: Option<Box<IoBuf>>,
    /// Bytes done so far.
    progress: usize,
    /// The vectors that the kernel reads when the entry is submitted.
    vecs: Box<[libc::iovec]>,
    pool: Option<ThreadPool>,
    hold: Option<Hold>,
    target: Target,
    result: Option<IoResult<()>>,
    /// How often the kernel said "again".
    retries: u8,
    /// The registered memory that the entry in the ring names.
    fixed: Option<u16>,
    /// The kernel did not take registered memory for it.
    plain: bool,
}

impl Slot {
    /// Whether its operation is more of a processor's work than of a device's.
    fn is_work(&self) -> bool {
        let copies = matches!(self.op.kind, FileOpKind::Write { fua: false, .. });
        self.pool.is_some() || (copies && self.op.is_buffered())
    }
}

enum Message {
    /// A thread of a pool finished an operation: slot and answer.
    Answer(usize, i32),
    /// A request that took the slow path is over.
    Completed(Completed),
}

/// Where other threads leave results for a context. Its event is signalled for them, and by the ring for its completions.
pub(crate) struct Inbox {
    messages: Mutex<Vec<Message>>,
    event: OwnedFd,
}

impl Inbox {
    fn post(&self, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.push(message);
        if messages.len() == 1 {
            self.ring_bell();
        }
    }

    /// Make the event readable.
    fn ring_bell(&self) {
        // The counter overflows only when it is never read, and then the event is readable all the same.
        let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes_for_eventfd());
    }

    pub(crate) fn complete(&self, tag: u64, done: Done) {
        self.post(Message::Completed(Completed { tag, done }));
    }

    fn take(&self) -> Vec<Message> {
        std::mem::take(&mut *self.messages.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// An eventfd's counter is in host byte order by definition of the system call, not of any format.
trait EventfdCount {
    fn to_ne_bytes_for_eventfd(self) -> [u8; 8];
}

impl EventfdCount for u64 {
    #[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in host byte order")]
    fn to_ne_bytes_for_eventfd(self) -> [u8; 8] {
        self.to_ne_bytes()
    }
}

/// One thread's means to have operations in flight.
pub(crate) struct IoContext {
    id: u64,
    use_ring: bool,
    /// Made when it is first needed: many a thread never has an operation that waits.
    ring: OnceCell<Option<RefCell<IoUring>>>,
    pieces: RefCell<Pieces>,
    slots: RefCell<Slab<Slot>>,
    ready: RefCell<VecDeque<Completed>>,
    inbox: Arc<Inbox>,
    /// Operations that found the submission queue full: they are issued as it empties.
    backlog: RefCell<VecDeque<usize>>,
    /// Entries in the submission queue.
    unsubmitted: Cell<u32>,
    /// Who calls `flush` soon after the first entry.
    flusher: RefCell<Option<Waker>>,
    /// Whether an operation was issued again since the last flush.
    reissued: Cell<bool>,
    ring_in_flight: Cell<u32>,
    pool_in_flight: Cell<u32>,
    /// How many of those in flight are a processor's work, of a thread of the pool or the kernel's: most of the time of a write to a buffered file is.
    working: Cell<u32>,
    /// Requests of a queue that run on a home thread.
    away: Cell<u32>,
    /// Memory for data that drivers encode and decode: always written over as a whole before anybody sees it.
    buffers: BufPool,
}

thread_local! {
    /// The context of the I/O thread that this is, if it is one.
    static CURRENT: RefCell<Option<Rc<IoContext>>> = const { RefCell::new(None) };
}

/// A ring with the cheapest task work that the kernel offers, or none.
fn ring() -> Option<IoUring> {
    let defer = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(RING_ENTRIES);
    let cooperative =
        |_| IoUring::builder().setup_coop_taskrun().setup_taskrun_flag().setup_submit_all().build(RING_ENTRIES);
    defer
        .or_else(cooperative)
        .or_else(|_| IoUring::new(RING_ENTRIES))
        .inspect_err(|error| {
            tracing::info!(%error, "no io_uring: host files go through threads");
        })
        .ok()
}

/// Whether this host lets us have an io_uring.
pub fn ring_available() -> bool {
    ring().is_some()
}

impl IoContext {
    pub(crate) fn new(use_ring: bool) -> std::io::Result<Rc<Self>> {
        Ok(Self::with_event(use_ring, Self::event_fd()?))
    }

    /// What [`IoContext::with_event`] needs.
    pub(crate) fn event_fd() -> std::io::Result<OwnedFd> {
        Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
    }

    pub(crate) fn with_event(use_ring: bool, event: OwnedFd) -> Rc<Self> {
        // Numbers contexts; it holds no state of any block layer.
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        Rc::new(Self {
            id: NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
            use_ring,
            ring: OnceCell::new(),
            pieces: RefCell::default(),
            slots: RefCell::default(),
            ready: RefCell::default(),
            inbox: Arc::new(Inbox { messages: Mutex::default(), event }),
            backlog: RefCell::default(),
            unsubmitted: Cell::new(0),
            flusher: RefCell::default(),
            reissued: Cell::new(false),
            ring_in_flight: Cell::new(0),
            pool_in_flight: Cell::new(0),
            working: Cell::new(0),
            away: Cell::new(0),
            buffers: BufPool::new(BUFFER_ALIGNMENT, BUFFERS_MAX),
        })
    }

    /// Memory for copies.
    pub(crate) fn buffers(&self) -> &BufPool {
        &self.buffers
    }

    /// The ring, made now if there is none yet. `None` when it is not to be used, or the host refuses it.
    pub(crate) fn ring(&self) -> Option<&RefCell<IoUring>> {
        let make = || {
            let ring = self.use_ring.then(ring).flatten()?;
            // Polling the ring's own descriptor is not enough: the kernel does not wake the pollers of a ring with deferred
            // task work when an interrupt brings a completion.
            let registered = ring.submitter().register_eventfd(self.inbox.event.as_raw_fd());
            registered.inspect_err(|error| tracing::warn!(%error, "a ring without an event is of no use")).ok()?;
            Some(RefCell::new(ring))
        };
        self.ring.get_or_init(make).as_ref()
    }

    /// The ring, if there is one already.
    fn made_ring(&self) -> Option<&RefCell<IoUring>> {
        self.ring.get().and_then(Option::as_ref)
    }

    /// The context of the calling thread, if it is an I/O thread.
    pub(crate) fn current() -> Option<Rc<Self>> {
        CURRENT.with(|current| current.borrow().clone())
    }

    pub(crate) fn set_current(context: Option<Rc<Self>>) {
        CURRENT.with(|current| *current.borrow_mut() = context);
    }

    /// A number that no other context of the process has.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    pub(crate) fn event(&self) -> BorrowedFd<'_> {
        self.inbox.event.as_fd()
    }

    pub(crate) fn ready(&self) -> &RefCell<VecDeque<Completed>> {
        &self.ready
    }

    /// How many operations the kernel or a pool has.
    pub(crate) fn in_flight(&self) -> u32 {
        self.ring_in_flight.get() + self.pool_in_flight.get()
    }

    /// Whether something in flight waits for a device. To look for what a processor works on, without sleeping, may keep one from it.
    pub(crate) fn waits_for_device(&self) -> bool {
        self.in_flight() > self.working.get()
    }

    /// Whether the ring's completions are all that can come.
    pub(crate) fn only_ring_in_flight(&self) -> bool {
        self.ring_in_flight.get() > 0 && self.pool_in_flight.get() + self.away.get() == 0
    }

    /// A request of this context's queue went to a home thread; it comes back through the inbox.
    pub(crate) fn sent_away(&self) {
        self.away.set(self.away.get() + 1);
    }

    /// Start an operation for an engine; the result comes to the returned future, on this thread.
    pub(crate) fn start_future(&self, op: FileOp, hold: Hold, pool: Option<ThreadPool>) -> SlotFuture {
        let key = self.start(op, hold, pool, Target::Future(None));
        SlotFuture { context: self.id, key, taken: false }
    }

    /// The pool, if it and not the ring is to carry out requests for `engine`. A ring's request must not count the pool's
    /// holders up and down: they are shared by all threads.
    #[inline]
    pub(crate) fn pool_for(&self, engine: FileEngine, pool: &ThreadPool) -> Option<ThreadPool> {
        (engine == FileEngine::Threads || self.ring().is_none()).then(|| pool.clone())
    }

    /// Start an operation, in `pool` or else on the ring.
    pub(crate) fn start(&self, op: FileOp, hold: Hold, pool: Option<ThreadPool>, target: Target) -> usize {
        let bounce = bounce_for(&op);
        let slot = Slot {
            op,
            bounce,
            progress: 0,
            vecs: Box::default(),
            pool,
            hold: Some(hold),
            target,
            result: None,
            retries: 0,
            fixed: None,
            plain: false,
        };
        let mut slots = self.slots.borrow_mut();
        let key = slots.insert(slot);
        self.issue(&mut slots[key], key);
        key
    }

    /// Give what is left of a slot's operation to the ring or to the pool.
    fn issue(&self, slot: &mut Slot, key: usize) {
        self.working.set(self.working.get() + u32::from(slot.is_work()));
        match &slot.pool {
            Some(pool) => self.issue_to_pool(slot, key, pool),
            None => self.issue_to_ring(slot, key),
        }
    }

    fn issue_to_pool(&self, slot: &Slot, key: usize, pool: &ThreadPool) {
        self.pool_in_flight.set(self.pool_in_flight.get() + 1);
        let (kind, fd, progress) = (slot.op.kind, slot.op.fd, slot.progress);
        let (offset, len) = (slot.op.offset + progress as u64, slot.op.len);
        let buf = slot.bounce.as_deref().or(slot.op.buf.as_ref()).cloned();
        let inbox = self.inbox.clone();
        let is_buffered = slot.op.is_buffered();
        pool.spawn(Box::new(move || {
            let _turn = if is_buffered { write_turn(kind, fd, len) } else { None };
            let answer = run_blocking(kind, fd, offset, len, buf.as_ref(), progress);
            drop(buf);
            inbox.post(Message::Answer(key, answer));
        }));
    }

    fn issue_to_ring(&self, slot: &mut Slot, key: usize) {
        if !self.push_to_ring(slot, key) {
            self.submit(0);
            if !self.push_to_ring(slot, key) {
                // The kernel takes no more before completions are taken, which cannot be done from here.
                self.backlog.borrow_mut().push_back(key);
            }
        }
        self.ring_in_flight.set(self.ring_in_flight.get() + 1);
        if self.unsubmitted.get() >= BATCH_MAX {
            self.submit(0);
        } else if self.unsubmitted.get() == 1
            && let Some(flusher) = &*self.flusher.borrow()
        {
            flusher.wake_by_ref();
        }
    }

    /// Queue the entry for what is left of a slot's operation. `false` when the submission queue is full.
    fn push_to_ring(&self, slot: &mut Slot, key: usize) -> bool {
        let Some(ring) = self.ring() else { return false };
        let fixed = self.piece_for(slot);
        let entry = entry(slot, fixed).user_data(key as u64);
        // SAFETY: the slot owns the memory that the entry names, or the pins or descriptor that keep it, and stays in
        // place until the completion; the vectors are read at submission and live in the slot as well.
        let pushed = unsafe { ring.borrow_mut().submission().push(&entry) }.is_ok();
        self.unsubmitted.set(self.unsubmitted.get() + u32::from(pushed));
        if pushed && let Some(number) = fixed {
            slot.fixed = fixed;
            self.pieces.borrow_mut().taken(number);
        }
        pushed
    }

    /// The registered memory that what is left of a slot's operation lies in. Only where the page cache is bypassed: nobody else would have pages
    /// looked up.
    #[inline]
    fn piece_for(&self, slot: &Slot) -> Option<u16> {
        if slot.plain || slot.op.options.memory_alignment <= 1 {
            return None;
        }
        let mut pieces = self.pieces.borrow_mut();
        if pieces.is_empty() {
            return None;
        }
        match slot.bounce.as_deref().or(slot.op.buf.as_ref())?.segments() {
            [segment] => pieces.find(*segment),
            _ => None,
        }
    }

    /// Register `memory` with the ring. All of it, or nothing.
    pub(crate) fn register(&self, memory: &IoBuf) -> std::io::Result<RegisteredBuf> {
        let Some(ring) = self.ring() else { return Err(std::io::ErrorKind::Unsupported.into()) };
        let mut registered = RegisteredBuf { context: self.id, pieces: Vec::new() };
        let result = {
            let (ring, mut pieces) = (ring.borrow(), self.pieces.borrow_mut());
            if !pieces.has_table {
                ring.submitter().register_buffers_sparse(PIECES_MAX)?;
                pieces.has_table = true;
            }
            pieces_of(memory).try_for_each(|segment| {
                let number = pieces.free().ok_or(std::io::ErrorKind::QuotaExceeded)?;
                let vec = libc::iovec { iov_base: segment.base.as_ptr().cast(), iov_len: segment.len };
                // SAFETY: the table keeps the memory for as long as the kernel has it: until it is unregistered, or the ring is gone.
                unsafe { ring.submitter().register_buffers_update(number.into(), &[vec], None) }?;
                pieces.insert(number, segment, memory);
                registered.pieces.push(number);
                Ok(())
            })
        };
        match result {
            Ok(()) => Ok(registered),
            Err(error) => {
                self.unregister(&registered);
                Err(error)
            }
        }
    }

    /// Take memory out of the ring, when the operations on it that the kernel has are over.
    pub(crate) fn unregister(&self, registered: &RegisteredBuf) {
        let Some(ring) = self.made_ring().filter(|_| registered.context == self.id) else { return };
        loop {
            if !self.pieces.borrow_mut().retire(&registered.pieces) {
                break;
            }
            self.flush_and_wait();
            self.reap();
        }
        let gone = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        for number in &registered.pieces {
            // SAFETY: an entry without memory makes the place in the table free.
            let freed = unsafe { ring.borrow().submitter().register_buffers_update((*number).into(), &[gone], None) };
            match freed {
                Ok(()) => self.pieces.borrow_mut().remove(*number),
                // It keeps its memory and its number, and no operation names it.
                Err(error) => tracing::warn!(%error, "memory stays registered with a ring"),
            }
        }
    }

    /// Give the kernel what is queued, and wait for `want` completions. Those that it brings at once do not signal the event, nor does task
    /// work that comes up meanwhile: so whoever submits looks for both before sleeping. `false` when the kernel could not do it now.
    fn submit(&self, want: usize) -> bool {
        self.enter(want, true)
    }

    /// As `submit`; what comes meanwhile signals the event unless it is to be done `quietly`.
    fn enter(&self, want: usize, quietly: bool) -> bool {
        let Some(ring) = self.made_ring() else { return false };
        let mut ring = ring.borrow_mut();
        if quietly {
            ring.completion().disable_eventfd();
        }
        let submitted = ring.submitter().submit_and_wait(want);
        if let Err(error) = &submitted {
            // EBUSY and EAGAIN: completions must be taken first; the entries stay queued and go with the next call.
            tracing::trace!(%error, "submission put off");
        }
        ring.completion().enable_eventfd();
        // What comes before this is seen by the look at the completions, what comes after it signals the event.
        fence(Ordering::SeqCst);
        // The kernel may have taken some of them only.
        let left = ring.submission().len() as u32;
        self.unsubmitted.set(left);
        submitted.is_ok()
    }

    /// Hand everything that waits to the kernel. Tells whether it took something: then there may be something to [reap](Self::reap) that does not
    /// signal the event.
    pub(crate) fn flush(&self) -> bool {
        let taken = self.unsubmitted.get() > 0 && self.submit(0);
        self.issue_backlog() || taken
    }

    fn issue_backlog(&self) -> bool {
        let mut taken = false;
        loop {
            let Some(key) = self.backlog.borrow_mut().pop_front() else { return taken };
            let pushed = self.push_to_ring(&mut self.slots.borrow_mut()[key], key);
            if !pushed {
                self.backlog.borrow_mut().push_front(key);
            }
            if !pushed || self.backlog.borrow().is_empty() {
                let before = self.unsubmitted.get();
                self.submit(0);
                if self.unsubmitted.get() == before {
                    return taken;
                }
                taken = true;
            }
        }
    }

    /// Flush and reap, and have `waker` woken whenever it should be done again soon.
    pub(crate) fn flush_by(&self, waker: &Waker) {
        self.flush();
        self.reap();
        let old = self.flusher.borrow_mut().replace(waker.clone());
        drop(old);
        // What the kernel did not take for now is tried again, also by a thread that never sleeps: nothing else would wake this.
        if self.is_unsubmitted() {
            waker.wake_by_ref();
        }
    }

    /// Whether something still waits to be handed to the kernel.
    fn is_unsubmitted(&self) -> bool {
        self.unsubmitted.get() > 0 || !self.backlog.borrow().is_empty()
    }

    #[cfg_attr(loom, allow(dead_code, reason = "no model runs an I/O thread"))]
    /// The kernel refused entries for now: do not sleep over it.
    pub(crate) fn wake_unless_submitted(&self) {
        if self.is_unsubmitted() {
            self.inbox.ring_bell();
        }
    }

    /// Hand everything over and sleep until something completes on the ring.
    pub(crate) fn flush_and_wait(&self) {
        self.flush();
        self.submit(1);
    }

    /// Take completions, and results that other threads left. Returns how many there were.
    pub(crate) fn reap(&self) -> usize {
        let mut count = self.reap_ring();
        // Looking at the event first would be a system call; the lock is free unless somebody posts.
        if self.pool_in_flight.get() + self.away.get() > 0 {
            count += self.reap_inbox();
        }
        count
    }

    pub(crate) fn reap_inbox(&self) -> usize {
        let messages = self.inbox.take();
        let count = messages.len();
        for message in messages {
            match message {
                Message::Answer(key, answer) => {
                    self.pool_in_flight.set(self.pool_in_flight.get() - 1);
                    self.answered(key, answer);
                }
                Message::Completed(completed) => {
                    self.away.set(self.away.get() - 1);
                    self.ready.borrow_mut().push_back(completed);
                }
            }
        }
        count
    }

    fn reap_ring(&self) -> usize {
        let Some(ring) = self.made_ring() else { return 0 };
        let (mut count, mut in_vain) = (0, 0);
        loop {
            let mut batch: SmallVec<[(u64, i32); 32]> = SmallVec::new();
            let waits_for_us = self.ring_in_flight.get() > 0 && {
                let mut ring = ring.borrow_mut();
                let queue = ring.submission();
                queue.taskrun() || queue.cq_overflow()
            };
            let entered = waits_for_us && self.enter(0, in_vain == 0);
            batch.extend(ring.borrow_mut().completion().take(32).map(|entry| (entry.user_data(), entry.result())));
            if batch.is_empty() {
                // What is left of an operation was put in the queue: nobody else knows that it waits there.
                if self.reissued.replace(false) {
                    self.flush();
                    continue;
                }
                // Task work may complete nothing (a page that is waited for next), and more may have come up quietly while it was done. That the
                // kernel says so does not mean that there is any: who adds some says so afterwards, when it may be done already. So it is asked as
                // often as the operations that there are can need, and from the second time on whatever comes up signals the event.
                if entered && in_vain <= self.ring_in_flight.get().div_ceil(TASK_WORK_AT_ONCE) {
                    in_vain += 1;
                    continue;
                }
                return count;
            }
            in_vain = 0;
            count += batch.len();
            self.ring_in_flight.set(self.ring_in_flight.get() - batch.len() as u32);
            for (key, answer) in batch {
                self.answered(key as usize, answer);
            }
        }
    }

    /// An operation was answered: bytes done, or a negative errno.
    fn answered(&self, key: usize, answer: i32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        self.working.set(self.working.get() - u32::from(slot.is_work()));
        if let Some(number) = slot.fixed.take() {
            self.pieces.borrow_mut().given_back(number);
            // Whatever it has against this way, the other one may work, or fails for a reason of its own.
            if matches!(-answer, libc::EFAULT | libc::EINVAL | libc::EOPNOTSUPP) {
                slot.plain = true;
                self.reissued.set(true);
                self.issue(slot, key);
                return;
            }
        }
        match progress(slot, answer) {
            None => {
                self.reissued.set(true);
                self.issue(slot, key);
            }
            Some(result) => {
                if let (Some(bounce), FileOpKind::Read, Some(buf)) = (&slot.bounce, slot.op.kind, &slot.op.buf) {
                    buf.copy_from(bounce);
                }
                drop(slots);
                self.finish(key, result);
            }
        }
    }

    /// Release what the operation held, then deliver its result. Foreign code runs here, in wakers and in whatever goes with the
    /// last pin of a closed node, and may come back to this context: it runs without any borrow of ours.
    fn finish(&self, key: usize, result: IoResult<()>) {
        let (hold, len, kind, recoded) = {
            let slot = &mut self.slots.borrow_mut()[key];
            let recoded = slot.op.recoded.take().map(|recoded| (*recoded, slot.op.buf.take()));
            (slot.hold.take(), slot.op.len, slot.op.kind, recoded)
        };
        let is_write = matches!(kind, FileOpKind::Write { .. });
        let mut result = result;
        if let (Some(parts), Some(Hold::Path(path) | Hold::Root(.., path))) = (recoded, &hold) {
            let (buf, decoded) = crate::pipeline::uncode(path, kind, parts, result);
            self.slots.borrow_mut()[key].op.buf = Some(buf);
            result = decoded;
        }
        if is_write && let Some(Hold::Path(path) | Hold::Root(.., path)) = &hold {
            crate::pipeline::wrote(path);
        }
        match hold {
            Some(Hold::Root(kind, root, path)) => {
                root.account(kind, len, result);
                drop(path);
            }
            hold => drop(hold),
        }
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[key];
        if let Target::Future(waker) = &mut slot.target {
            slot.result = Some(result);
            let freed = (waker.take(), slot.bounce.take());
            drop(slots);
            if let (Some(waker), _) = freed {
                waker.wake();
            }
            return;
        }
        let slot = slots.remove(key);
        drop(slots);
        let done = Done { result, buf: slot.op.buf };
        match slot.target {
            Target::Queue(tag) => self.ready.borrow_mut().push_back(Completed { tag, done }),
            // The receiver may have lost interest; the request was carried out all the same.
            Target::Channel(sender) => drop(sender.send(done)),
            Target::Future(_) | Target::Nobody => {}
        }
    }

    /// The future of this slot asks for its result.
    fn poll_slot(&self, key: usize, cx: &Context<'_>) -> Poll<IoResult<()>> {
        let waker = cx.waker().clone();
        let mut slots = self.slots.borrow_mut();
        if let Some(result) = slots[key].result {
            let slot = slots.remove(key);
            drop(slots);
            drop(slot);
            return Poll::Ready(result);
        }
        let old = std::mem::replace(&mut slots[key].target, Target::Future(Some(waker)));
        drop(slots);
        drop(old);
        Poll::Pending
    }

    /// The future of this slot was dropped: the operation goes on, its result goes nowhere.
    fn detach(&self, key: usize) {
        let mut slots = self.slots.borrow_mut();
        if slots[key].result.is_some() {
            let slot = slots.remove(key);
            drop(slots);
            drop(slot);
        } else {
            let old = std::mem::replace(&mut slots[key].target, Target::Nobody);
            drop(slots);
            drop(old);
        }
    }
}

impl Drop for IoContext {
    /// The kernel still writes into memory that the slots own: wait for it.
    fn drop(&mut self) {
        while self.in_flight() > 0 {
            self.flush();
            if self.pool_in_flight.get() == 0 {
                self.flush_and_wait();
                self.reap_ring();
            } else {
                self.wait_event(None);
                self.reap_ring();
                self.reap_inbox();
            }
        }
    }
}

impl IoContext {
    /// Sleep until the event is signalled, at most `timeout` long, and clear it.
    pub(crate) fn wait_event(&self, timeout: Option<std::time::Duration>) {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let timeout = timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        let _ = poll(&mut [PollFd::new(&self.inbox.event, PollFlags::IN)], timeout.as_ref());
        self.clear_event();
    }

    /// Reset the event, so that the next message signals it again.
    pub(crate) fn clear_event(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.inbox.event, &mut count);
    }
}

/// What an answer means for the slot: over, with this result, or `None` when a part is left to be done.
fn progress(slot: &mut Slot, answer: i32) -> Option<IoResult<()>> {
    if answer < 0 {
        // A descriptor that says so for ever is one that should not have been opened to be non-blocking.
        let again = (answer == -libc::EINTR || answer == -libc::EAGAIN) && slot.retries < RETRIES_MAX;
        slot.retries += u8::from(again);
        return if again { None } else { Some(Err(IoError::host(-answer))) };
    }
    let total = match slot.op.kind {
        FileOpKind::Read | FileOpKind::Write { .. } => slot.op.len as usize,
        FileOpKind::Sync | FileOpKind::Allocate(_) => return Some(Ok(())),
    };
    slot.progress += answer as usize;
    if slot.progress >= total {
        return Some(Ok(()));
    }
    let alignment = slot.op.options.memory_alignment as usize;
    let misaligned = slot.progress & (alignment - 1) != 0;
    match slot.op.kind {
        // Past the end of the file there are zeroes. O_DIRECT ends there with an odd length.
        FileOpKind::Read if answer == 0 || misaligned => {
            if let Some(buf) = slot.bounce.as_deref().or(slot.op.buf.as_ref()) {
                buf.fill(slot.progress, total - slot.progress, 0);
            }
            Some(Ok(()))
        }
        // Nothing, or less than a block where only blocks can be written: there is no room for more.
        FileOpKind::Write { .. } if (answer as usize) < alignment => Some(Err(IoError::host(libc::ENOSPC))),
        FileOpKind::Write { .. } if misaligned => {
            slot.progress &= !(alignment - 1);
            None
        }
        _ => None,
    }
}

/// An aligned stand-in for memory that the file cannot take.
fn bounce_for(op: &FileOp) -> Option<Box<IoBuf>> {
    let alignment = op.options.memory_alignment;
    let buf = op.buf.as_ref()?;
    if alignment <= 1 || buf.is_aligned(alignment) {
        return None;
    }
    let bounce = AlignedBuf::zeroed(buf.len(), alignment as usize).into_io();
    if matches!(op.kind, FileOpKind::Write { .. }) {
        bounce.copy_from(buf);
    }
    Some(Box::new(bounce))
}

/// The ring's entry for what is left of the slot's operation.
fn entry(slot: &mut Slot, fixed: Option<u16>) -> io_uring::squeue::Entry {
    let fd = types::Fd(slot.op.fd);
    let offset = slot.op.offset + slot.progress as u64;
    let flags = slot.op.kind.write_flags();
    match (slot.op.kind, slot.bounce.as_deref().or(slot.op.buf.as_ref())) {
        (FileOpKind::Sync, _) => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
        (FileOpKind::Allocate(mode), _) => opcode::Fallocate::new(fd, slot.op.len).offset(offset).mode(mode).build(),
        (_, None) => opcode::Nop::new().build(),
        (kind, Some(buf)) if buf.segments().len() == 1 => {
            let segment = buf.segments()[0];
            // SAFETY: `progress` is less than the length, or the operation would be over.
            let base = unsafe { segment.base.add(slot.progress) }.as_ptr();
            // The kernel moves at most 2 GiB at once; the rest follows as after any short transfer.
            let len = (segment.len - slot.progress).min(1 << 30) as u32;
            match (kind, fixed) {
                (FileOpKind::Read, None) => opcode::Read::new(fd, base, len).offset(offset).build(),
                (FileOpKind::Read, Some(number)) => {
                    opcode::ReadFixed::new(fd, base, len, number).offset(offset).build()
                }
                (_, None) => opcode::Write::new(fd, base, len).offset(offset).rw_flags(flags).build(),
                (_, Some(number)) => {
                    opcode::WriteFixed::new(fd, base, len, number).offset(offset).rw_flags(flags).build()
                }
            }
        }
        (kind, Some(buf)) => {
            let vecs = iovecs(buf, slot.progress);
            slot.vecs = vecs.into_boxed_slice();
            let (base, count) = (slot.vecs.as_ptr(), slot.vecs.len() as u32);
            match kind {
                FileOpKind::Read => opcode::Readv::new(fd, base.cast(), count).offset(offset).build(),
                _ => opcode::Writev::new(fd, base.cast(), count).offset(offset).rw_flags(flags).build(),
            }
        }
    }
}

/// The result of an operation that an engine started, to be awaited on the thread that started it.
pub(crate) struct SlotFuture {
    context: u64,
    key: usize,
    taken: bool,
}

impl SlotFuture {
    fn with<T>(&self, use_it: impl FnOnce(&IoContext) -> T) -> Option<T> {
        let current = CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()?;
        (current.id == self.context).then(|| use_it(&current))
    }
}

impl Future for SlotFuture {
    type Output = IoResult<()>;

    fn poll(mut self: StdPin<&mut Self>, cx: &mut Context<'_>) -> Poll<IoResult<()>> {
        let Some(poll) = self.with(|context| context.poll_slot(self.key, cx)) else {
            tracing::error!("a request's future was polled on another thread than the one that started it");
            self.taken = true;
            return Poll::Ready(Err(IoError::BUG));
        };
        self.taken = poll.is_ready();
        poll
    }
}

impl Drop for SlotFuture {
    fn drop(&mut self) {
        if !self.taken {
            self.with(|context| context.detach(self.key));
        }
    }
}

#[cfg(test)]
mod tests;
