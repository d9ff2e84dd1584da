//! A queue for callers with an event loop of their own: submit with a tag, kick, reap; an event descriptor says when.
//!
//! The calling thread does the work that an I/O thread would do, on a ring of the queue's own; only requests that cannot be
//! mapped at once go to their root's home thread. No runtime is needed. A queue belongs to one thread.

use crate::context::{Inbox, IoContext, Target};
use crate::registered::RegisteredBuf;
use crate::request::{Completed, Done, Request};
use crate::root::{Answer, Root, Sent};
use block_common::{IoBuf, IoError};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// One thread's queue of requests, on any number of roots.
///
/// A request holds its nodes until it is reaped: a drain waits for a queue that is not, and so may a write that does not fill whole blocks. A thread
/// that has a queue does not block on other requests while its own are not reaped.
pub struct Queue {
    context: Rc<IoContext>,
    /// Requests that were submitted and not yet reaped.
    pending: usize,
}

impl Queue {
    /// A queue for this thread.
    ///
    /// # Errors
    /// What the host said when it refused a descriptor.
    pub fn new() -> std::io::Result<Self> {
        let context = IoContext::new(true)?;
        // Now, for a device's first request should not pay for it.
        context.ring();
        Ok(Self { context, pending: 0 })
    }

    /// Take a request. It may start at once, at the latest with [`Queue::kick`]; its result is [`Queue::reap`]ed under `tag`.
    #[inline]
    #[doc(alias = "bdrv_io_plug")]
    #[doc(alias = "blk_io_plug")]
    pub fn submit(&mut self, root: &Root, request: Request, tag: u64) {
        let slow = root.start(&self.context, request, Target::Queue(tag));
        self.pending += 1;
        if let Some((request, _)) = slow {
            self.context.sent_away();
            let answer = Answering { inbox: self.context.inbox().clone(), tag, done: None };
            root.send_home(Sent { request, answer });
        }
    }

    /// Hand over everything that was submitted. Some of it may be complete when this returns: reap before sleeping.
    #[inline]
    #[doc(alias = "bdrv_io_unplug")]
    #[doc(alias = "blk_io_unplug")]
    pub fn kick(&mut self) {
        self.context.flush();
    }

    /// Move what is complete to `into`; never waits. Returns how many that was.
    #[inline]
    pub fn reap(&mut self, into: &mut Vec<Completed>) -> usize {
        self.context.reap();
        let mut ready = self.context.ready().borrow_mut();
        let count = ready.len();
        into.extend(ready.drain(..));
        drop(ready);
        self.pending -= count;
        count
    }

    /// Reset the event. To be called when [`Queue::event`] was readable, *before* [`Queue::reap`].
    pub fn acknowledge(&mut self) {
        self.context.clear_event();
    }

    /// Kick, sleep until something completes or `timeout` is over, and reap. For threads that have nothing else to wait for.
    pub fn wait(&mut self, into: &mut Vec<Completed>, timeout: Option<Duration>) -> usize {
        self.kick();
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let count = self.reap(into);
            if count > 0 || self.pending == 0 {
                return count;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return 0;
            }
            if self.context.flush() {
                continue;
            }
            if left.is_none() && self.context.only_ring_in_flight() {
                self.context.flush_and_wait();
            } else {
                self.context.wait_event(left);
            }
        }
    }

    /// Have the host hold the pages of `memory`, so that requests of this queue on files around the page cache do not look them up each time. Buffers
    /// that lie within one piece of it profit; all others work as before. The memory is kept for as long as it is registered.
    ///
    /// While it is, its pages must stay where they are: memory that is given back to the host by `madvise` or mapped anew would no longer
    /// be what requests read and write.
    ///
    /// # Errors
    /// What the host said: it has no io_uring or an old one, or a limit (of locked memory, of pieces) is reached. Nothing is registered then, and
    /// requests work as before.
    #[doc(alias = "bdrv_register_buf")]
    #[doc(alias = "blk_register_buf")]
    pub fn register(&mut self, memory: &IoBuf) -> std::io::Result<RegisteredBuf> {
        self.context.register(memory)
    }

    /// Let go of what [`Queue::register`] of this queue registered. Waits for those requests in flight that use it; they are reaped as ever. Dropping the queue
    /// does the same.
    #[doc(alias = "bdrv_unregister_buf")]
    #[doc(alias = "blk_unregister_buf")]
    pub fn unregister(&mut self, memory: RegisteredBuf) {
        self.context.unregister(&memory);
    }

    /// How many requests were submitted and not yet reaped.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Readable when [`Queue::reap`] is worth a call. Level-triggered; [`Queue::acknowledge`] resets it.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.context.event()
    }
}

/// A request that runs elsewhere. However it ends, its tag comes back.
struct Answering {
    inbox: Arc<Inbox>,
    tag: u64,
    done: Option<Done>,
}

impl Answer for Answering {
    fn give(mut self, done: Done) {
        self.done = Some(done);
    }
}

impl Drop for Answering {
    /// Without a result, the driver panicked or the home thread ended before the request did.
    fn drop(&mut self) {
        let done = self.done.take().unwrap_or(Done { result: Err(IoError::CANCELLED), buf: None });
        self.inbox.complete(self.tag, done);
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} pending)", self.pending)
    }
}
