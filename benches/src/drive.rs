//! A device's thread: a queue, buffers, and requests one after the other or some at once.

use anyhow::{Context, Result, bail};
use block_common::{AlignedBuf, IoBuf, RequestFlags};
use block_io::{Completed, Queue, Request, Root};
use std::time::{Duration, Instant};

const ALIGNMENT: usize = 4096;

/// What requests look like. They come in order, from the start to the end of the node and again.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// How many at once.
    pub depth: usize,
    /// Bytes of each.
    pub size: usize,
    /// Writes, not reads.
    pub write: bool,
    /// Where the first one begins, in bytes.
    pub start: u64,
    /// From the beginning of one to that of the next, in bytes.
    pub step: u64,
}

impl Shape {
    /// Reads of 4 KiB.
    pub const fn reads(depth: usize) -> Self {
        Self { depth, size: 4096, write: false, start: 0, step: 4096 }
    }

    /// Writes of `size` bytes.
    pub const fn writes(size: usize, depth: usize) -> Self {
        Self { depth, size, write: true, start: 0, step: size as u64 }
    }
}

/// Sends requests from the thread that made it.
#[derive(Debug)]
pub struct Driver {
    queue: Queue,
    shape: Shape,
    free: Vec<IoBuf>,
    done: Vec<Completed>,
    offset: u64,
}

impl Driver {
    /// A queue and buffers for requests of this shape.
    ///
    /// # Errors
    /// The host refuses descriptors.
    pub fn new(shape: Shape) -> Result<Self> {
        let queue = Queue::new().context("cannot make a queue")?;
        let buf = |_| AlignedBuf::zeroed(shape.size, ALIGNMENT).into_io();
        Ok(Self { queue, shape, free: (0..shape.depth).map(buf).collect(), done: Vec::new(), offset: shape.start })
    }

    /// As [`Driver::new`], with buffers from memory that is registered with the queue.
    ///
    /// # Errors
    /// The host refuses that.
    pub fn registered(shape: Shape) -> Result<Self> {
        let mut driver = Self::new(shape)?;
        let memory = AlignedBuf::zeroed(shape.depth * shape.size, ALIGNMENT).into_io();
        // Registered for as long as there is the queue.
        let _ = driver.queue.register(&memory).context("cannot register memory")?;
        driver.free = (0..shape.depth).map(|at| memory.slice(at * shape.size, shape.size)).collect();
        Ok(driver)
    }

    /// Send `count` requests to `root`, wait for them, and tell how long that took.
    ///
    /// # Errors
    /// A request fails.
    pub fn run(&mut self, root: &Root, count: u64) -> Result<Duration> {
        let span = root.length()?;
        let (mut unsent, mut left) = (count, count);
        let begin = Instant::now();
        while left > 0 {
            while unsent > 0
                && let Some(buf) = self.free.pop()
            {
                self.send(root, buf, span);
                unsent -= 1;
            }
            self.queue.wait(&mut self.done, None);
            let mut done = std::mem::take(&mut self.done);
            for completed in done.drain(..) {
                completed.done.result?;
                let Some(buf) = completed.done.buf else { bail!("a request kept its buffer") };
                left -= 1;
                if unsent > 0 {
                    self.send(root, buf, span);
                    unsent -= 1;
                } else {
                    self.free.push(buf);
                }
            }
            self.done = done;
        }
        Ok(begin.elapsed())
    }

    #[inline]
    fn send(&mut self, root: &Root, buf: IoBuf, span: u64) {
        if self.offset + self.shape.size as u64 > span {
            self.offset = self.shape.start;
        }
        let request = match self.shape.write {
            false => Request::read(self.offset, buf),
            true => Request::write(self.offset, buf, RequestFlags::empty()),
        };
        self.queue.submit(root, request, 0);
        self.offset += self.shape.step;
    }

    /// Write every byte of `root` once, so that a format has all of it allocated.
    ///
    /// # Errors
    /// A request fails.
    pub fn write_all(root: &Root) -> Result<()> {
        const SIZE: usize = 1 << 20;
        let mut driver = Self::new(Shape::writes(SIZE, 8))?;
        driver.run(root, root.length()? / SIZE as u64)?;
        Ok(())
    }
}
