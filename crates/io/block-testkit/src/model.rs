//! Random requests against a byte array that knows what must come back.
//!
//! Several tasks send requests through a root at once. Two that touch the same bytes never run together unless both
//! read, so every byte has one right value at any time (or two, after a discard or a failed write); neighbours do run
//! together, in the same cluster and block. A run prints its seed when it fails; `CAIRN_SEED` overrides it.

use crate::bed::join_all;
use crate::rng::{Rng, again, seed, stamp};
use crate::scattered::scattered;
use block_common::{AlignedBuf, IoBuf, IoResult, RequestFlags};
use block_io::{IoThreadHandle, Root};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What to throw at a root.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// The seed; `CAIRN_SEED` overrides it.
    pub seed: u64,
    /// How many requests.
    pub requests: u64,
    /// How many at once.
    pub depth: usize,
    /// The first byte that requests may touch, a multiple of the root's alignment.
    pub start: u64,
    /// How many bytes they may touch; clipped to the node's length.
    pub len: u64,
    /// The longest request, in bytes.
    pub request_max: u64,
    /// Whether requests may fail, as on storage that was told to.
    pub may_fail: bool,
    /// Whether to send discards.
    pub discards: bool,
    /// The threads that the tasks run on, in turn. Without any: the root's home.
    pub threads: Vec<IoThreadHandle>,
}

impl Default for ModelOptions {
    /// 4000 requests at depth 32 of up to 128 KiB on the first MiB.
    fn default() -> Self {
        Self {
            seed: seed(),
            requests: 4000,
            depth: 32,
            start: 0,
            len: 1 << 20,
            request_max: 128 << 10,
            may_fail: false,
            discards: true,
            threads: Vec::new(),
        }
    }
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModelReport {
    /// The seed that it ran with.
    pub seed: u64,
    /// Requests that succeeded.
    pub done: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes that were compared.
    pub compared: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
    Status,
}

/// How sure the model is of a byte.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Certainty {
    One,
    Two,
    None,
}

/// A byte array that is not sure of every byte, and who is busy where.
struct Board {
    value: Vec<u8>,
    /// The other value that a byte may have, where there are two.
    other: Vec<u8>,
    certainty: Vec<Certainty>,
    /// Ranges with a request on them, and whether it may change them.
    busy: Vec<(u64, u64, bool)>,
}

impl Board {
    /// Keep others off a range, unless one of them is there already.
    fn claim(&mut self, at: u64, len: u64, change: bool) -> bool {
        let conflicts =
            |&(b_at, b_len, b_change): &(u64, u64, bool)| (change || b_change) && at < b_at + b_len && b_at < at + len;
        let free = !self.busy.iter().any(conflicts);
        if free {
            self.busy.push((at, len, change));
        }
        free
    }

    fn release(&mut self, at: u64, len: u64, change: bool) {
        if let Some(index) = self.busy.iter().position(|busy| *busy == (at, len, change)) {
            self.busy.swap_remove(index);
        }
    }

    fn set(&mut self, at: u64, bytes: &[u8]) {
        let range = at as usize..at as usize + bytes.len();
        self.value[range.clone()].copy_from_slice(bytes);
        self.certainty[range].fill(Certainty::One);
    }

    /// Each byte is what it was, or that of `bytes`.
    fn blur(&mut self, at: u64, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            let at = at as usize + i;
            match self.certainty[at] {
                Certainty::One if self.value[at] == *byte => {}
                Certainty::Two if self.value[at] == *byte || self.other[at] == *byte => {}
                Certainty::One => {
                    self.other[at] = *byte;
                    self.certainty[at] = Certainty::Two;
                }
                Certainty::Two | Certainty::None => self.certainty[at] = Certainty::None,
            }
        }
    }

    /// Whether the byte may have this value.
    fn allows(&self, at: usize, byte: u8) -> bool {
        match self.certainty[at] {
            Certainty::One => self.value[at] == byte,
            Certainty::Two => self.value[at] == byte || self.other[at] == byte,
            Certainty::None => true,
        }
    }

    fn check(&self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let from = at as usize;
        // Most ranges are certain and right.
        if self.value[from..from + bytes.len()] == *bytes {
            return Ok(());
        }
        let wrong: Vec<usize> = (0..bytes.len()).filter(|i| !self.allows(from + i, bytes[*i])).collect();
        let Some(&first) = wrong.first() else { return Ok(()) };
        Err(format!(
            "{} of {} bytes are wrong, the first at {:#x}: {:#04x} instead of {:#04x}",
            wrong.len(),
            bytes.len(),
            from + first,
            bytes[first],
            self.value[from + first],
        ))
    }
}

struct Run {
    root: Root,
    options: ModelOptions,
    alignment: u64,
    memory_alignment: usize,
    board: Mutex<Board>,
    left: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    compared: AtomicU64,
}

/// Throw requests at `root` and check every byte that comes back, and all of them in the end.
///
/// # Errors
/// What went wrong, with the seed.
pub async fn run(root: &Root, options: ModelOptions) -> Result<ModelReport, String> {
    let mut options = options;
    if std::env::var_os("CAIRN_SEED").is_some() {
        options.seed = seed();
    }
    let seed = options.seed;
    work(root, options).await.map_err(|error| format!("{error} ({})", again(seed)))
}

async fn work(root: &Root, mut options: ModelOptions) -> Result<ModelReport, String> {
    let limits = root.limits().map_err(|error| format!("no limits: {error}"))?;
    let alignment = u64::from(limits.request_alignment);
    let length = root.length().map_err(|error| format!("no length: {error}"))?;
    options.len = options.len.min(length.saturating_sub(options.start)) / alignment * alignment;
    options.request_max = options.request_max.min(options.len).max(alignment);
    assert!(options.len >= alignment, "a model needs at least one block");
    let mut rng = Rng::new(options.seed);
    let size = options.len as usize;
    let board =
        Board { value: vec![0; size], other: vec![0; size], certainty: vec![Certainty::None; size], busy: Vec::new() };
    let threads = if options.threads.is_empty() { vec![root.home()] } else { options.threads.clone() };
    let depth = options.depth;
    let run = Arc::new(Run {
        root: root.clone(),
        left: AtomicU64::new(options.requests),
        alignment,
        memory_alignment: (limits.memory_alignment as usize).max(alignment as usize),
        options,
        board: Mutex::new(board),
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        compared: AtomicU64::new(0),
    });
    run.learn().await?;
    let tasks = (0..depth).map(|i| {
        let (run, rng) = (run.clone(), rng.fork());
        threads[i % threads.len()].run(async move { run.task(rng).await })
    });
    for result in join_all(tasks).await {
        result.unwrap_or_else(|| Err("a task panicked".into()))?;
    }
    run.compare_all().await?;
    Ok(ModelReport {
        seed: run.options.seed,
        done: run.done.load(Ordering::Relaxed),
        failed: run.failed.load(Ordering::Relaxed),
        compared: run.compared.load(Ordering::Relaxed),
    })
}

impl Run {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take what is there at first for right.
    async fn learn(&self) -> Result<(), String> {
        for at in (0..self.options.len).step_by(1 << 20) {
            let len = (self.options.len - at).min(1 << 20);
            let bytes = self.read_surely(at, len).await.map_err(|error| format!("first read: {error}"))?;
            self.board().set(at, &bytes);
        }
        Ok(())
    }

    async fn compare_all(&self) -> Result<(), String> {
        for at in (0..self.options.len).step_by(1 << 20) {
            let len = (self.options.len - at).min(1 << 20);
            let bytes = self.read_surely(at, len).await.map_err(|error| format!("last read: {error}"))?;
            self.board().check(at, &bytes).map_err(|error| format!("in the end, {error}"))?;
            self.compared.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    }

    fn plain(&self, len: u64) -> IoBuf {
        AlignedBuf::zeroed(len as usize, self.memory_alignment).into_io()
    }

    /// A buffer as callers may have them: aligned, at an odd address, or in pieces.
    fn buf(&self, rng: &mut Rng, len: u64) -> IoBuf {
        let len = len as usize;
        match rng.below(0..4) {
            0 => AlignedBuf::zeroed(len + 64, 4096).into_io().slice(rng.below(1..64) as usize, len),
            1 if len > 3 => {
                let first = rng.below(1..len as u64 - 1) as usize;
                let second = rng.below(1..(len - first) as u64) as usize;
                scattered(&[first, second, len - first - second], rng.below(0..8) as usize)
            }
            _ => self.plain(len as u64),
        }
    }

    async fn read(&self, at: u64, buf: IoBuf) -> IoResult<Vec<u8>> {
        let (result, buf) = self.root.read(self.options.start + at, buf).await;
        result?;
        let buf = buf.ok_or(block_common::IoError::BUG)?;
        let mut bytes = vec![0; buf.len()];
        buf.copy_to_slice(0, &mut bytes);
        Ok(bytes)
    }

    /// Where requests may fail, some attempt gets through.
    async fn read_surely(&self, at: u64, len: u64) -> IoResult<Vec<u8>> {
        let mut attempts = if self.options.may_fail { 50 } else { 1 };
        loop {
            attempts -= 1;
            match self.read(at, self.plain(len)).await {
                Err(_) if attempts > 0 => {}
                result => return result,
            }
        }
    }

    async fn task(&self, mut rng: Rng) -> Result<(), String> {
        while self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            let op = self.choose(&mut rng);
            let change = matches!(op, Op::Write | Op::Zero | Op::Discard);
            let (at, len) = loop {
                let (at, len) = self.place(&mut rng);
                if self.board().claim(at, len, change) {
                    break (at, len);
                }
                crate::bed::yield_now().await;
            };
            let result = self.request(&mut rng, op, at, len).await;
            self.board().release(at, len, change);
            result.map_err(|error| format!("{op:?} of {len:#x} bytes at {at:#x}: {error}"))?;
        }
        Ok(())
    }

    fn choose(&self, rng: &mut Rng) -> Op {
        match rng.below(0..100) {
            0..40 => Op::Read,
            40..75 => Op::Write,
            75..83 => Op::Zero,
            83..90 if self.options.discards => Op::Discard,
            83..95 => Op::Status,
            _ => Op::Flush,
        }
    }

    /// Mostly short ranges, some long ones, all aligned.
    fn place(&self, rng: &mut Rng) -> (u64, u64) {
        let max = if rng.chance(80) { self.options.request_max.min(16 << 10) } else { self.options.request_max };
        let blocks = rng.below(1..(max / self.alignment).max(1) + 1);
        let last = self.options.len / self.alignment - blocks;
        (rng.below(0..last + 1) * self.alignment, blocks * self.alignment)
    }

    async fn request(&self, rng: &mut Rng, op: Op, at: u64, len: u64) -> Result<(), String> {
        let offset = self.options.start + at;
        let result = match op {
            Op::Read => match self.read(at, self.buf(rng, len)).await {
                Ok(bytes) => {
                    self.board().check(at, &bytes)?;
                    self.compared.fetch_add(len, Ordering::Relaxed);
                    Ok(())
                }
                Err(error) => Err(error),
            },
            Op::Write => {
                let mut data = vec![0; len as usize];
                stamp(rng.next(), at, &mut data);
                let buf = self.buf(rng, len);
                buf.copy_from_slice(0, &data);
                let flags = if rng.chance(5) { RequestFlags::FUA } else { RequestFlags::empty() };
                let (result, _) = self.root.write(offset, buf, flags).await;
                self.changed(at, &data, result.is_ok());
                result
            }
            Op::Zero => {
                let flags = if rng.chance(50) { RequestFlags::MAY_UNMAP } else { RequestFlags::empty() };
                let result = self.root.zero(offset, len, flags).await;
                self.changed(at, &vec![0; len as usize], result.is_ok());
                result
            }
            Op::Discard => {
                let result = self.root.discard(offset, len).await;
                self.changed(at, &vec![0; len as usize], false);
                result
            }
            Op::Flush => self.root.flush().await,
            Op::Status => self.status(at, len).await?,
        };
        match result {
            Ok(()) => self.done.fetch_add(1, Ordering::Relaxed),
            Err(_) if self.options.may_fail => self.failed.fetch_add(1, Ordering::Relaxed),
            Err(error) => return Err(error.to_string()),
        };
        Ok(())
    }

    fn changed(&self, at: u64, bytes: &[u8], certain: bool) {
        let mut board = self.board();
        if certain { board.set(at, bytes) } else { board.blur(at, bytes) }
    }

    /// What is called zero must be able to be zero (rule stat-1).
    async fn status(&self, at: u64, len: u64) -> Result<IoResult<()>, String> {
        let extent = match self.root.block_status(self.options.start + at, len).await {
            Ok(extent) => extent,
            Err(error) => return Ok(Err(error)),
        };
        if extent.len == 0 || extent.len > len {
            return Err(format!("a status of {:#x} bytes", extent.len));
        }
        if extent.is_zero() {
            let board = self.board();
            let zeroes = |i: &u64| !board.allows((at + i) as usize, 0);
            if let Some(wrong) = (0..extent.len).find(zeroes) {
                return Err(format!("byte {:#x} is called zero", at + wrong));
            }
        }
        Ok(Ok(()))
    }
}
