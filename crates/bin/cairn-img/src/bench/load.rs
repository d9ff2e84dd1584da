//! The requests of a benchmark: one thread with a queue of its own, as a device would have it.
//!
//! Which requests come when is the field's: see [`Runner::completed`] for flushes. What is printed is not here.

use block_backend_io::BackendIo;
use block_common::{AlignedBuf, IoBuf, IoError, RequestFlags};
use block_io::{Completed, Queue, Request};
use std::fmt;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Buffers begin at a multiple of this many bytes: enough for O_DIRECT anywhere.
const ALIGNMENT: usize = 4096;
/// All buffers together have at most this many bytes.
const BUFFERS_MAX: u64 = i32::MAX as u64;

/// When to flush.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flushes {
    /// After this many requests; at least the depth.
    pub(crate) interval: u64,
    /// Let requests in flight finish before a flush, and the flush before further ones.
    pub(crate) drain: bool,
}

/// What to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// How many requests.
    pub(crate) count: u64,
    /// How many at once.
    pub(crate) depth: u64,
    /// Bytes of each.
    pub(crate) size: usize,
    /// Bytes from one to the next.
    pub(crate) step: u64,
    /// Where the first one starts, in bytes.
    pub(crate) offset: u64,
    /// Write this byte; `None` for reads.
    pub(crate) pattern: Option<u8>,
    /// When to flush, if at all.
    pub(crate) flushes: Option<Flushes>,
}

/// Why a run ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LoadError {
    /// A read or write failed, or the flush that others waited for.
    Request(IoError),
    /// A flush failed that ran beside writes.
    Flush(IoError),
    /// The host has no memory for so many buffers of that size.
    Buffers(u64, usize),
    /// The host refused a thread or a descriptor.
    Host(IoError),
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => write!(f, "Failed request: {error}"),
            Self::Flush(error) => write!(f, "Failed flush request: {error}"),
            Self::Buffers(count, size) => write!(f, "Could not allocate {count} buffers of {size} bytes"),
            Self::Host(error) => write!(f, "Could not start the benchmark: {error}"),
        }
    }
}

/// A run that came to its end.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// From the first request to the end of the last.
    pub(crate) elapsed: Duration,
    /// How the flush after the last request went, which is not part of that time.
    pub(crate) last_flush: Result<(), LoadError>,
}

impl Load {
    /// Send the requests from a thread made for it.
    ///
    /// # Errors
    /// [`LoadError`]; requests in flight are over by then.
    pub(crate) async fn run(self, backend: BackendIo) -> Result<Outcome, LoadError> {
        let (send, receive) = oneshot::channel();
        let body = move || drop(send.send(Runner::new(self, &backend).and_then(Runner::run)));
        let host = |error: std::io::Error| LoadError::Host(error.into());
        let thread = std::thread::Builder::new().name("bench".into()).spawn(body).map_err(host)?;
        let result = receive.await.unwrap_or(Err(LoadError::Host(IoError::BUG)));
        // It has sent its result, and so is about to end; a panic was printed by then.
        let _ = thread.join();
        result
    }

    fn buffers(&self) -> Result<Vec<IoBuf>, LoadError> {
        let count = self.depth.min(self.count);
        let failed = LoadError::Buffers(count, self.size);
        if count.saturating_mul(self.size as u64) > BUFFERS_MAX {
            return Err(failed);
        }
        let one = || {
            let mut buf = AlignedBuf::try_zeroed(self.size, ALIGNMENT)?;
            if let Some(pattern) = self.pattern.filter(|pattern| *pattern != 0) {
                buf.fill(pattern);
            }
            Some(buf.into_io())
        };
        (0..count).map(|_| one().ok_or(failed)).collect()
    }
}

const REQUEST: u64 = 0;
const FLUSH: u64 = 1;

/// One run, on its thread.
struct Runner<'a> {
    load: Load,
    backend: &'a BackendIo,
    flags: RequestFlags,
    length: u64,
    queue: Queue,
    free: Vec<IoBuf>,
    /// Where the next request starts.
    offset: u64,
    /// Requests that were not sent yet.
    unsent: u64,
    /// Requests that are not over yet, sent or not.
    left: u64,
    /// No request is sent until a flush is over, which waits for those in flight.
    draining: bool,
    flushes_in_flight: u64,
}

impl<'a> Runner<'a> {
    fn new(load: Load, backend: &'a BackendIo) -> Result<Self, LoadError> {
        let durable = load.pattern.is_some() && !backend.write_cache();
        Ok(Self {
            load,
            backend,
            flags: if durable { RequestFlags::FUA } else { RequestFlags::empty() },
            length: backend.root().length().map_err(LoadError::Request)?,
            queue: Queue::new().map_err(|error| LoadError::Host(error.into()))?,
            free: load.buffers()?,
            offset: load.offset,
            unsent: load.count,
            left: load.count,
            draining: false,
            flushes_in_flight: 0,
        })
    }

    fn run(mut self) -> Result<Outcome, LoadError> {
        let mut done = Vec::with_capacity(self.free.len() + 1);
        let begin = Instant::now();
        let mut result = self.send();
        while result.is_ok() && self.left > 0 {
            self.queue.wait(&mut done, None);
            result = done.drain(..).try_for_each(|completed| self.completed(completed));
        }
        let elapsed = begin.elapsed();
        let last_flush = self.finish(&mut done);
        result.map(|()| Outcome { elapsed, last_flush })
    }

    /// Send requests until the depth is reached.
    fn send(&mut self) -> Result<(), LoadError> {
        while self.unsent > 0 {
            let Some(buf) = self.free.pop() else { break };
            self.send_one(buf)?;
        }
        Ok(())
    }

    #[inline]
    fn send_one(&mut self, buf: IoBuf) -> Result<(), LoadError> {
        let root = self.backend.entry().map_err(LoadError::Request)?;
        let request = match self.load.pattern {
            None => Request::read(self.offset, buf),
            Some(_) => Request::write(self.offset, buf, self.flags),
        };
        self.queue.submit(root, request, REQUEST);
        self.unsent -= 1;
        self.offset += self.load.step;
        if self.offset >= self.length && self.length > 0 {
            self.offset %= self.length;
        }
        Ok(())
    }

    /// A request or a flush is over. With draining, no request is sent once the number of those that were not sent is
    /// a multiple of the interval: what is in flight ends, a flush runs, then it goes on. Without, a flush runs
    /// beside them whenever the number of those that are not over is a multiple. Either way the last requests are
    /// followed by a flush.
    #[inline]
    fn completed(&mut self, completed: Completed) -> Result<(), LoadError> {
        if completed.tag == FLUSH {
            return self.flushed(completed);
        }
        completed.done.result.map_err(LoadError::Request)?;
        self.left -= 1;
        let Some(buf) = completed.done.buf else { return Err(LoadError::Request(IoError::BUG)) };
        let Some(Flushes { interval, drain }) = self.load.flushes else {
            if self.unsent > 0 {
                return self.send_one(buf);
            }
            self.free.push(buf);
            return Ok(());
        };
        self.free.push(buf);
        if drain {
            self.draining |= self.unsent.is_multiple_of(interval);
            if self.draining && self.left == self.unsent {
                return self.flush();
            }
        } else if self.left.is_multiple_of(interval) {
            self.flush()?;
        }
        if self.draining { Ok(()) } else { self.send() }
    }

    fn flush(&mut self) -> Result<(), LoadError> {
        let root = self.backend.entry().map_err(LoadError::Request)?;
        self.queue.submit(root, Request::flush(), FLUSH);
        self.flushes_in_flight += 1;
        Ok(())
    }

    fn flushed(&mut self, completed: Completed) -> Result<(), LoadError> {
        self.flushes_in_flight -= 1;
        if !self.draining {
            return completed.done.result.map_err(LoadError::Flush);
        }
        completed.done.result.map_err(LoadError::Request)?;
        self.draining = false;
        self.send()
    }

    /// Wait for what is still in flight: the last flush, or what an error left behind. Returns the first error of a
    /// flush.
    fn finish(mut self, done: &mut Vec<Completed>) -> Result<(), LoadError> {
        let mut result = Ok(());
        self.unsent = 0;
        while self.queue.pending() > 0 {
            self.queue.wait(done, None);
            for completed in done.drain(..).filter(|completed| completed.tag == FLUSH) {
                result = result.and(self.flushed(completed));
            }
        }
        result
    }
}
