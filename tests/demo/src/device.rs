//! The load: threads that use a backend as a device model would, with a queue each, and know what every byte must be.
//!
//! Each thread writes a part of the disk of its own, so it knows what is there; all of them read the file system, which nobody writes.

use crate::disk::FILE_SYSTEM;
use anyhow::{Result, anyhow, bail};
use block_backend_io::BackendIo;
use block_common::{AlignedBuf, IoBuf, RequestFlags};
use block_io::{Completed, Queue, Request};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const DEPTH: usize = 32;

/// The running threads.
pub(crate) struct Devices {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Report>>>,
    contents: Arc<Vec<u8>>,
}

/// What the load did, and what the disk must hold after it.
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) slowest: Duration,
    pub(crate) contents: Vec<u8>,
}

/// One thread.
pub(crate) struct Device {
    backend: BackendIo,
    queue: Queue,
    random: StdRng,
    /// What was on the disk before the load.
    original: Arc<Vec<u8>>,
    /// Where this thread's part begins, and what it holds.
    start: usize,
    part: Vec<u8>,
    flying: Vec<Option<Flight>>,
    idle: Vec<IoBuf>,
    report: Report,
}

struct Report {
    start: usize,
    part: Vec<u8>,
    requests: u64,
    slowest: Duration,
}

/// A request under way: the place on the disk, and whether it is a write.
struct Flight {
    offset: usize,
    is_write: bool,
    begin: Instant,
}

impl Device {
    /// Start `count` threads on `backend`, whose disk holds `contents` now.
    pub(crate) fn start(backend: &BackendIo, contents: Vec<u8>, count: usize, seed: u64) -> Devices {
        let (stop, contents) = (Arc::new(AtomicBool::new(false)), Arc::new(contents));
        let scratch = contents.len() - FILE_SYSTEM as usize;
        let len = scratch / count / BLOCK * BLOCK;
        let threads = (0..count).map(|number| {
            let (stop, original, backend) = (stop.clone(), contents.clone(), backend.clone());
            let start = FILE_SYSTEM as usize + number * len;
            std::thread::spawn(move || {
                let part = original[start..start + len].to_vec();
                let device = Self {
                    backend,
                    queue: Queue::new()?,
                    random: StdRng::seed_from_u64(seed.wrapping_add(number as u64)),
                    original,
                    start,
                    part,
                    flying: (0..DEPTH).map(|_| None).collect(),
                    idle: (0..DEPTH).map(|_| AlignedBuf::zeroed(BLOCK, BLOCK).into_io()).collect(),
                    report: Report { start, part: Vec::new(), requests: 0, slowest: Duration::ZERO },
                };
                device.run(&stop)
            })
        });
        let threads = threads.collect();
        Devices { stop, threads, contents }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Report> {
        let mut done = Vec::new();
        while !stop.load(Ordering::Relaxed) || self.queue.pending() > 0 {
            if !stop.load(Ordering::Relaxed) {
                for tag in 0..DEPTH {
                    if self.flying[tag].is_none() {
                        self.send(tag)?;
                    }
                }
            }
            self.queue.wait(&mut done, None);
            for completed in done.drain(..) {
                self.finish(completed)?;
            }
        }
        self.report.part = self.part;
        Ok(self.report)
    }

    /// A block that no request of this thread is at.
    fn free_block(&mut self) -> usize {
        loop {
            let offset = self.start + self.random.random_range(0..self.part.len() / BLOCK) * BLOCK;
            if !self.flying.iter().flatten().any(|flight| flight.offset == offset) {
                return offset;
            }
        }
    }

    fn send(&mut self, tag: usize) -> Result<()> {
        let buf = self.idle.pop().ok_or_else(|| anyhow!("a buffer for every tag"))?;
        let what = self.random.random_range(0..10);
        let offset = if what < 3 {
            self.random.random_range(0..FILE_SYSTEM as usize / BLOCK) * BLOCK
        } else {
            self.free_block()
        };
        let is_write = what >= 6;
        let request = if is_write {
            let mut block = [0u8; BLOCK];
            self.random.fill(&mut block[..]);
            buf.copy_from_slice(0, &block);
            let at = offset - self.start;
            self.part[at..at + BLOCK].copy_from_slice(&block);
            Request::write(offset as u64, buf, RequestFlags::empty())
        } else {
            Request::read(offset as u64, buf)
        };
        self.flying[tag] = Some(Flight { offset, is_write, begin: Instant::now() });
        self.queue.submit(self.backend.entry()?, request, tag as u64);
        Ok(())
    }

    fn finish(&mut self, completed: Completed) -> Result<()> {
        let flight = self.flying.get_mut(completed.tag as usize).and_then(Option::take);
        let flight = flight.ok_or_else(|| anyhow!("tag {} came back twice", completed.tag))?;
        completed.done.result.map_err(|error| anyhow!("a request at {:#x} failed: {error}", flight.offset))?;
        let buf = completed.done.buf.ok_or_else(|| anyhow!("the buffer comes back"))?;
        if !flight.is_write {
            self.check(flight.offset, &buf)?;
        }
        self.idle.push(buf);
        self.report.requests += 1;
        self.report.slowest = self.report.slowest.max(flight.begin.elapsed());
        Ok(())
    }

    fn check(&self, offset: usize, buf: &IoBuf) -> Result<()> {
        let mut is = [0u8; BLOCK];
        buf.copy_to_slice(0, &mut is);
        let should = match offset.checked_sub(self.start) {
            Some(at) if at < self.part.len() => &self.part[at..at + BLOCK],
            _ => &self.original[offset..offset + BLOCK],
        };
        if is != should { bail!("a read at {offset:#x} returned something else than what was written") } else { Ok(()) }
    }
}

impl Devices {
    /// Let the threads finish what is in flight, and collect what they know.
    pub(crate) fn stop(self) -> Result<Totals> {
        self.stop.store(true, Ordering::Relaxed);
        let mut contents = self.contents.to_vec();
        let (mut requests, mut slowest) = (0, Duration::ZERO);
        for thread in self.threads {
            let report = thread.join().map_err(|_| anyhow!("a device thread panicked"))??;
            contents[report.start..report.start + report.part.len()].copy_from_slice(&report.part);
            requests += report.requests;
            slowest = slowest.max(report.slowest);
        }
        Ok(Totals { requests, slowest, contents })
    }
}
