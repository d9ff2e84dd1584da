//! What every driver must do, checked through a root: a list of short scenarios.
//!
//! The first bytes of the node are overwritten. Which thread the caller is on decides the way of the requests: on an
//! I/O thread the fast path, elsewhere through the home thread; [`run_everywhere`] takes both.

use crate::bed::{block_on, drop_after, join_all};
use crate::rng::{Rng, again, seed, stamp};
use crate::scattered::scattered;
use block_common::{
    AlignedBuf, BlockStatus, IoBuf, IoError, IoResult, LENGTH_MAX, Preallocation, RequestFlags, StatusExtent,
};
use block_io::Root;
use std::time::{Duration, Instant};

/// What is true of the driver at hand.
#[derive(Clone, Debug)]
pub struct ConformanceOptions {
    /// The seed of random offsets and lengths; `CAIRN_SEED` overrides it.
    pub seed: u64,
    /// Whether what is written can be read. Null keeps nothing.
    pub stores: bool,
    /// Whether the length can be changed.
    pub resizable: bool,
    /// Whether what is added reads as zeroes.
    pub zero_init: bool,
    /// How many bytes may be overwritten; clipped to the node's length.
    pub region: u64,
}

impl Default for ConformanceOptions {
    /// A driver that stores data and changes its length; the first 512 KiB.
    fn default() -> Self {
        Self { seed: seed(), stores: true, resizable: true, zero_init: true, region: 1 << 19 }
    }
}

type Check = Result<(), String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// Run the suite from this thread, which is no I/O thread, and on the root's home thread.
///
/// # Panics
/// When a check fails, with its name and the seed.
pub fn run_everywhere(root: &Root, options: &ConformanceOptions) {
    let here = block_on(run(root, options));
    here.unwrap_or_else(|error| panic!("from another thread: {error}"));
    let (for_home, home_options) = (root.clone(), options.clone());
    let at_home = block_on(root.home().run(async move { run(&for_home, &home_options).await }));
    at_home.unwrap_or_else(|| Err("the suite panicked".into())).unwrap_or_else(|error| panic!("at home: {error}"));
}

/// Run the suite through `root`, which needs all permissions, and nobody else's requests on the node.
/// Returns the names of the checks.
///
/// # Errors
/// The check that failed, why, and the seed.
pub async fn run(root: &Root, options: &ConformanceOptions) -> Result<Vec<&'static str>, String> {
    let seed = if std::env::var_os("CAIRN_SEED").is_some() { seed() } else { options.seed };
    let mut done = Vec::new();
    let mut suite = Suite::new(root, options, seed)?;
    macro_rules! checks {
        ($($name:ident)+) => {$(
            suite.$name().await.map_err(|error| format!("{}: {error} ({})", stringify!($name), again(seed)))?;
            done.push(stringify!($name));
        )+};
    }
    checks!(bounds misaligned empty_requests length);
    if suite.options.stores {
        checks!(read_your_writes zeroes discards status concurrent_writers overlapping_writers dropped_requests);
        checks!(req_1_shared_blocks odd_end);
    }
    checks!(stat_1_shape flush truncate);
    Ok(done)
}

struct Suite {
    root: Root,
    options: ConformanceOptions,
    rng: Rng,
    alignment: u64,
    /// What the region must hold.
    mirror: Vec<u8>,
    stamps: u64,
}

/// How a caller's memory lies.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Aligned,
    Odd,
    Scattered,
}

const SHAPES: [Shape; 3] = [Shape::Aligned, Shape::Odd, Shape::Scattered];

fn shaped(shape: Shape, len: usize) -> IoBuf {
    match shape {
        Shape::Aligned => AlignedBuf::zeroed(len, 4096).into_io(),
        Shape::Odd => AlignedBuf::zeroed(len + 3, 4096).into_io().slice(3, len),
        Shape::Scattered if len < 8 => AlignedBuf::zeroed(len, 4096).into_io(),
        Shape::Scattered => scattered(&[1, len / 3, 2, len - len / 3 - 3], 5),
    }
}

impl Suite {
    fn new(root: &Root, options: &ConformanceOptions, seed: u64) -> Result<Self, String> {
        let limits = root.limits().map_err(|error| format!("no limits: {error}"))?;
        let alignment = u64::from(limits.request_alignment);
        let length = root.length().map_err(|error| format!("no length: {error}"))?;
        ensure!(alignment.is_power_of_two(), "the alignment {alignment} is no power of two");
        ensure!(length >= alignment * 8, "the suite needs eight blocks, not {length} bytes");
        let region = options.region.min(length) / alignment * alignment;
        let mirror = vec![0; region as usize];
        Ok(Self { root: root.clone(), options: options.clone(), rng: Rng::new(seed), alignment, mirror, stamps: 0 })
    }

    fn region(&self) -> u64 {
        self.mirror.len() as u64
    }

    /// An aligned range of the region of at most `max` bytes.
    fn range(&mut self, max: u64) -> (u64, u64) {
        let region = self.region() / self.alignment;
        let blocks = self.rng.below(1..(max / self.alignment).clamp(1, region) + 1);
        (self.rng.below(0..region - blocks + 1) * self.alignment, blocks * self.alignment)
    }

    fn data(&mut self, offset: u64, len: u64) -> Vec<u8> {
        self.stamps += 1;
        let mut data = vec![0; len as usize];
        stamp(self.stamps, offset, &mut data);
        data
    }

    async fn try_read(&self, offset: u64, len: u64, shape: Shape) -> IoResult<Vec<u8>> {
        let (result, buf) = self.root.read(offset, shaped(shape, len as usize)).await;
        result?;
        let mut data = vec![0; len as usize];
        buf.ok_or(IoError::BUG)?.copy_to_slice(0, &mut data);
        Ok(data)
    }

    async fn read(&self, offset: u64, len: u64, shape: Shape) -> Result<Vec<u8>, String> {
        let read = self.try_read(offset, len, shape).await;
        read.map_err(|error| format!("reading {len:#x} bytes at {offset:#x} ({shape:?}): {error}"))
    }

    async fn try_write(&self, offset: u64, data: &[u8], shape: Shape, flags: RequestFlags) -> IoResult<()> {
        let buf = shaped(shape, data.len());
        buf.copy_from_slice(0, data);
        self.root.write(offset, buf, flags).await.0
    }

    async fn write(&mut self, offset: u64, len: u64, shape: Shape, flags: RequestFlags) -> Check {
        let data = self.data(offset, len);
        let written = self.try_write(offset, &data, shape, flags).await;
        written.map_err(|error| format!("writing {len:#x} bytes at {offset:#x} ({shape:?}, {flags:?}): {error}"))?;
        self.mirror[offset as usize..(offset + len) as usize].copy_from_slice(&data);
        Ok(())
    }

    /// Write the whole region.
    async fn fill(&mut self) -> Check {
        self.write(0, self.region(), Shape::Aligned, RequestFlags::empty()).await
    }

    /// Compare the whole region with the mirror; inside `loose`, a range, bytes may be zero as well. Learns which they
    /// are.
    async fn compare(&mut self, loose: (u64, u64)) -> Check {
        let data = self.read(0, self.region(), Shape::Aligned).await?;
        if data == self.mirror {
            return Ok(());
        }
        for (at, (is, should)) in data.iter().zip(&self.mirror).enumerate() {
            let may_be_zero = (loose.0..loose.0 + loose.1).contains(&(at as u64));
            ensure!(is == should || (may_be_zero && *is == 0), "byte {at:#x} is {is:#04x}, not {should:#04x}");
        }
        self.mirror = data;
        Ok(())
    }

    /// Requests past the end, or past all numbers, fail and change nothing.
    async fn bounds(&mut self) -> Check {
        let length = self.root.length().map_err(|error| error.to_string())?;
        let length = length / self.alignment * self.alignment;
        let block = self.alignment;
        let last = self.read(length - block, block, Shape::Aligned).await?;
        let all = u64::MAX / block * block;
        for (offset, len) in
            [(length, block), (length - block, 2 * block), (all, block), (LENGTH_MAX / block * block, block)]
        {
            let data = vec![0xee; len as usize];
            let flags = RequestFlags::empty();
            for (what, result) in [
                ("read", self.try_read(offset, len, Shape::Aligned).await.map(drop)),
                ("write", self.try_write(offset, &data, Shape::Aligned, flags).await),
                ("zero", self.root.zero(offset, len, flags).await),
                ("discard", self.root.discard(offset, len).await),
                ("status", self.root.block_status(offset, len).await.map(drop)),
            ] {
                ensure!(result.is_err(), "{what} of {len:#x} bytes at {offset:#x} of {length:#x} went through");
            }
        }
        ensure!(self.root.length() == Ok(length) || block > 1, "the length has changed");
        if self.options.stores {
            let after = self.read(length - block, block, Shape::Aligned).await?;
            ensure!(after == last, "a request past the end changed the last block");
        }
        Ok(())
    }

    /// What is not aligned is refused, or done right.
    async fn misaligned(&mut self) -> Check {
        if self.alignment == 1 {
            return Ok(());
        }
        let len = self.alignment + 1;
        let data = self.data(1, len);
        match self.try_write(1, &data, Shape::Odd, RequestFlags::empty()).await {
            Err(error) => ensure!(error == IoError::MISALIGNED, "a misaligned write: {error}"),
            Ok(()) if self.options.stores => {
                let read = self.read(1, len, Shape::Odd).await?;
                ensure!(read == data, "a misaligned write stored something else");
            }
            Ok(()) => {}
        }
        if let Err(error) = self.try_read(1, len, Shape::Aligned).await {
            ensure!(error == IoError::MISALIGNED, "a misaligned read: {error}");
        }
        Ok(())
    }

    async fn empty_requests(&mut self) -> Check {
        let length = self.root.length().map_err(|error| error.to_string())? / self.alignment * self.alignment;
        for offset in [0, self.alignment, length] {
            self.read(offset, 0, Shape::Aligned).await?;
            let results = [
                self.try_write(offset, &[], Shape::Aligned, RequestFlags::empty()).await,
                self.root.zero(offset, 0, RequestFlags::empty()).await,
                self.root.discard(offset, 0).await,
            ];
            ensure!(results.iter().all(IoResult::is_ok), "a request of no bytes at {offset:#x}: {results:?}");
        }
        Ok(())
    }

    async fn length(&mut self) -> Check {
        let known = self.root.length();
        let asked = self.root.refresh_length().await;
        ensure!(known == asked, "the length is {asked:?}, not {known:?}");
        Ok(())
    }

    async fn read_your_writes(&mut self) -> Check {
        self.fill().await?;
        let kinds = [RequestFlags::empty(), RequestFlags::DONT_CACHE, RequestFlags::DONT_CACHE | RequestFlags::FUA];
        for max in [self.alignment, self.alignment * 3, 5000, 70_000, self.region()] {
            for (shape, flags) in SHAPES.into_iter().zip(kinds) {
                let (offset, len) = self.range(max);
                self.write(offset, len, shape, flags).await?;
                for shape in SHAPES {
                    let data = self.read(offset, len, shape).await?;
                    let right = data == self.mirror[offset as usize..(offset + len) as usize];
                    ensure!(right, "{len:#x} bytes at {offset:#x} are not what was written ({shape:?})");
                }
            }
        }
        self.compare((0, 0)).await
    }

    async fn zeroes(&mut self) -> Check {
        self.fill().await?;
        let kinds = [
            RequestFlags::empty(),
            RequestFlags::MAY_UNMAP,
            RequestFlags::FUA,
            RequestFlags::NO_FALLBACK,
            RequestFlags::MAY_UNMAP | RequestFlags::NO_FALLBACK,
        ];
        for flags in kinds {
            for max in [self.alignment, 5000, 300_000] {
                let (offset, len) = self.range(max);
                let result = self.root.zero(offset, len, flags).await;
                let refused = flags.contains(RequestFlags::NO_FALLBACK) && result == Err(IoError::UNSUPPORTED);
                ensure!(result.is_ok() || refused, "zeroing {len:#x} bytes at {offset:#x} ({flags:?}): {result:?}");
                if refused {
                    self.compare((offset, len)).await?;
                } else {
                    self.mirror[offset as usize..(offset + len) as usize].fill(0);
                    self.compare((0, 0)).await?;
                }
                // What was zeroed can be written again.
                self.write(offset, self.alignment, Shape::Aligned, RequestFlags::empty()).await?;
            }
        }
        self.compare((0, 0)).await
    }

    async fn discards(&mut self) -> Check {
        self.fill().await?;
        for max in [self.alignment, 5000, 300_000, self.region()] {
            let (offset, len) = self.range(max);
            let result = self.root.discard(offset, len).await;
            ensure!(result.is_ok(), "discarding {len:#x} bytes at {offset:#x}: {result:?}");
            self.compare((offset, len)).await?;
            self.compare((0, 0)).await.map_err(|error| format!("discarded bytes change: {error}"))?;
            self.write(offset, self.alignment, Shape::Odd, RequestFlags::empty()).await?;
        }
        self.compare((0, 0)).await
    }

    async fn extent(&self, offset: u64, len: u64) -> Result<StatusExtent, String> {
        let extent = self.root.block_status(offset, len).await;
        let extent = extent.map_err(|error| format!("status of {len:#x} bytes at {offset:#x}: {error}"))?;
        ensure!(extent.len > 0, "the status of {offset:#x} is empty");
        ensure!(extent.len <= len, "the status of {offset:#x} leaves the question: {extent:?}");
        let end = offset + extent.len;
        ensure!(extent.len == len || end.is_multiple_of(self.alignment), "a status ends at {end:#x}: {extent:?}");
        let placed = extent.status.contains(BlockStatus::OFFSET_VALID);
        ensure!(placed == extent.host_offset.is_some(), "a place and no place: {extent:?}");
        if extent.status.contains(BlockStatus::EOF) {
            ensure!(Ok(end) == self.root.length(), "the end is called to be at {end:#x}");
        }
        Ok(extent)
    }

    /// Answers are aligned, not empty, within the range, and cover everything.
    async fn stat_1_shape(&mut self) -> Check {
        let length = self.root.length().map_err(|error| error.to_string())? / self.alignment * self.alignment;
        let mut at = 0;
        while at < length {
            let extent = self.extent(at, length - at).await?;
            self.extent(at, self.alignment).await?;
            at += extent.len;
        }
        let empty = self.root.block_status(0, 0).await;
        ensure!(empty.is_err(), "a status of no bytes: {empty:?}");
        Ok(())
    }

    /// What is called zero reads as zeroes; what holds something else is never called zero.
    async fn status(&mut self) -> Check {
        self.fill().await?;
        for _ in 0..8 {
            let (offset, len) = self.range(100_000);
            let zeroed = self.root.zero(offset, len, RequestFlags::MAY_UNMAP).await;
            ensure!(zeroed.is_ok(), "zeroing {len:#x} bytes at {offset:#x}: {zeroed:?}");
            self.mirror[offset as usize..(offset + len) as usize].fill(0);
            let (offset, len) = self.range(10_000);
            self.write(offset, len, Shape::Aligned, RequestFlags::empty()).await?;
        }
        let mut at = 0;
        while at < self.region() {
            let extent = self.extent(at, self.region() - at).await?;
            if extent.is_zero() {
                let wrong = (at..at + extent.len).find(|at| self.mirror[*at as usize] != 0);
                ensure!(wrong.is_none(), "byte {wrong:#x?} holds data and is called zero: {extent:?} at {at:#x}");
            }
            at += extent.len;
        }
        // The same from odd starting points.
        for _ in 0..50 {
            let (offset, len) = self.range(50_000);
            let extent = self.extent(offset, len).await?;
            let is_zero = |at: u64| self.mirror[at as usize] == 0;
            let wrong = extent.is_zero() && !(offset..offset + extent.len).all(is_zero);
            ensure!(!wrong, "data is called zero: {extent:?} at {offset:#x}");
        }
        self.compare((0, 0)).await
    }

    async fn flush(&mut self) -> Check {
        let flushed = self.root.flush().await;
        ensure!(flushed.is_ok(), "flush: {flushed:?}");
        let (offset, len) = self.range(10_000);
        self.write(offset, len, Shape::Odd, RequestFlags::FUA).await?;
        let both = join_all([self.root.flush(), self.root.flush()]).await;
        ensure!(both.iter().all(IoResult::is_ok), "two flushes at once: {both:?}");
        Ok(())
    }

    /// Many writers beside each other, in the same blocks and clusters.
    async fn concurrent_writers(&mut self) -> Check {
        self.fill().await?;
        for piece in [self.alignment, self.alignment * 5] {
            let count = (self.region() / piece).min(64);
            let mut writers = Vec::new();
            for i in 0..count {
                let data = self.data(i * piece, piece);
                self.mirror[(i * piece) as usize..((i + 1) * piece) as usize].copy_from_slice(&data);
                let root = self.root.clone();
                let buf = shaped(SHAPES[i as usize % 3], data.len());
                buf.copy_from_slice(0, &data);
                let write = async move { root.write(i * piece, buf, RequestFlags::empty()).await.0 };
                writers.push(self.root.home().run(write));
            }
            let results = join_all(writers).await;
            ensure!(results.iter().all(|result| *result == Some(Ok(()))), "concurrent writes: {results:?}");
            self.compare((0, 0)).await?;
            self.fill().await?;
        }
        Ok(())
    }

    /// Many writers of the same bytes: each byte is somebody's.
    async fn overlapping_writers(&mut self) -> Check {
        let len = (self.alignment * 7).min(self.region());
        let writers = (1..=16u8).map(|byte| {
            let (root, buf) = (self.root.clone(), shaped(SHAPES[byte as usize % 3], len as usize));
            buf.fill(0, len as usize, byte);
            self.root.home().run(async move { root.write(0, buf, RequestFlags::empty()).await.0 })
        });
        let results = join_all(writers).await;
        ensure!(results.iter().all(|result| *result == Some(Ok(()))), "overlapping writes: {results:?}");
        let data = self.read(0, len, Shape::Aligned).await?;
        ensure!(data.iter().all(|byte| (1..=16).contains(byte)), "bytes that nobody wrote");
        self.mirror[..len as usize].copy_from_slice(&data);
        self.compare((0, 0)).await
    }

    /// Many writers of parts of the same blocks: nobody's part is lost.
    async fn req_1_shared_blocks(&mut self) -> Check {
        self.fill().await?;
        let step = self.alignment * 2 / 3 + 1;
        let count = (self.region() / step).min(40);
        let mut writers = Vec::new();
        for i in 0..count {
            let data = self.data(i * step, step);
            self.mirror[(i * step) as usize..((i + 1) * step) as usize].copy_from_slice(&data);
            let (root, buf) = (self.root.clone(), shaped(SHAPES[i as usize % 3], data.len()));
            buf.copy_from_slice(0, &data);
            writers.push(self.root.home().run(async move { root.write(i * step, buf, RequestFlags::empty()).await.0 }));
        }
        let results = join_all(writers).await;
        if self.alignment > 1 && results.contains(&Some(Err(IoError::MISALIGNED))) {
            return self.fill().await;
        }
        ensure!(results.iter().all(|result| *result == Some(Ok(()))), "writes of parts of blocks: {results:?}");
        self.compare((0, 0)).await
    }

    /// Where the length is no multiple of the alignment, the last bytes can be read, written, zeroed and asked about, and none come behind
    /// them.
    async fn odd_end(&mut self) -> Check {
        let length = self.root.length().map_err(|error| error.to_string())?;
        let start = length / self.alignment * self.alignment;
        let tail = length - start;
        if tail == 0 {
            return Ok(());
        }
        let from = start - self.alignment;
        let len = length - from;
        for shape in SHAPES {
            let data = self.data(from, len);
            let written = self.try_write(from, &data, shape, RequestFlags::empty()).await;
            ensure!(written.is_ok(), "writing the last {len:#x} bytes ({shape:?}): {written:?}");
            let read = self.read(from, len, shape).await?;
            ensure!(read == data, "the last {len:#x} bytes are not what was written ({shape:?})");
            let read = self.read(length - 1, 1, Shape::Aligned).await?;
            ensure!(read[..] == data[data.len() - 1..], "the last byte is not what was written");
        }
        let mut at = from;
        while at < length {
            let extent = self.root.block_status(at, length - at).await;
            let extent = extent.map_err(|error| format!("status of the end, at {at:#x}: {error}"))?;
            ensure!(extent.len > 0 && !extent.is_zero(), "data at the end is called {extent:?}");
            at += extent.len;
            let is_end = extent.status.contains(BlockStatus::EOF);
            ensure!(at <= length && is_end == (at == length), "an answer about the end ends at {at:#x}: {extent:?}");
        }
        let zeroed = self.root.zero(start, tail, RequestFlags::MAY_UNMAP).await;
        ensure!(zeroed.is_ok(), "zeroing the last {tail:#x} bytes: {zeroed:?}");
        let read = self.read(start, tail, Shape::Odd).await?;
        ensure!(read.iter().all(|byte| *byte == 0), "zeroed bytes at the end are not zero");
        let discarded = self.root.discard(start, tail).await;
        ensure!(discarded.is_ok(), "discarding the last {tail:#x} bytes: {discarded:?}");
        let past = self.try_read(length, 1, Shape::Aligned).await;
        ensure!(past.is_err(), "a read past the odd end went through");
        ensure!(self.root.refresh_length().await == Ok(length), "the odd end has moved");
        Ok(())
    }

    /// Requests whose callers lose interest are carried out or not, as a whole or in part, and leave nothing behind.
    async fn dropped_requests(&mut self) -> Check {
        self.fill().await?;
        for polls in (0..20).chain([50, 200]) {
            let (offset, len) = self.range(20_000);
            let data = self.data(offset, len);
            let buf = shaped(SHAPES[polls % 3], len as usize);
            buf.copy_from_slice(0, &data);
            drop_after(self.root.write(offset, buf, RequestFlags::empty()), polls).await;
            drop_after(self.root.read(offset, shaped(SHAPES[polls % 3], len as usize)), polls).await;
            drop_after(self.root.block_status(offset, len), polls).await;
            drop_after(self.root.flush(), polls).await;
            self.quiet().await?;
            let now = self.read(offset, len, Shape::Aligned).await?;
            for (i, is) in now.iter().enumerate() {
                let at = offset as usize + i;
                let known = *is == data[i] || *is == self.mirror[at];
                ensure!(known, "byte {at:#x} is neither old nor new after a write that was dropped ({polls} polls)");
                self.mirror[at] = *is;
            }
        }
        self.compare((0, 0)).await
    }

    /// Wait until nothing is in flight.
    async fn quiet(&self) -> Check {
        let deadline = Instant::now() + Duration::from_secs(60);
        let mut seen = 0;
        // A request that was just handed over is not counted before its thread has looked at it.
        while seen < 4 {
            let home = self.root.home().run(crate::bed::yield_now()).await;
            ensure!(home.is_some(), "the home thread is gone");
            seen = if self.root.in_flight() == 0 { seen + 1 } else { 0 };
            ensure!(Instant::now() < deadline, "{} requests never end", self.root.in_flight());
        }
        Ok(())
    }

    async fn truncate(&mut self) -> Check {
        let length = self.root.length().map_err(|error| error.to_string())?;
        if !self.options.resizable {
            let result = self.root.truncate(length + self.alignment, Preallocation::Off).await;
            ensure!(result.is_err(), "a driver of fixed length changed it");
            ensure!(self.root.length() == Ok(length), "a refused truncation changed the length");
            return Ok(());
        }
        // Shrink to the middle of everything, grow again: the end comes back as zeroes, or as noise.
        let half = self.region() / 2 / self.alignment * self.alignment;
        if self.options.stores {
            self.fill().await?;
        }
        for to in [half, length, length + 3 * self.alignment, length] {
            let result = self.root.truncate(to, Preallocation::Off).await;
            ensure!(result.is_ok(), "truncating to {to:#x}: {result:?}");
            ensure!(self.root.length() == Ok(to), "the length is {:x?}, not {to:#x}", self.root.length());
            let past = self.try_read(to / self.alignment * self.alignment, self.alignment, Shape::Aligned).await;
            ensure!(past.is_err(), "a read past the new end {to:#x} went through");
            if to > length && self.options.stores {
                let new = self.read(length.next_multiple_of(self.alignment), self.alignment, Shape::Aligned).await?;
                let is_zero = new.iter().all(|byte| *byte == 0);
                ensure!(is_zero == self.options.zero_init, "new bytes at {length:#x}: zero is {is_zero}");
                let data = self.data(length, self.alignment);
                let at = length.next_multiple_of(self.alignment);
                let written = self.try_write(at, &data, Shape::Odd, RequestFlags::empty()).await;
                ensure!(written.is_ok(), "writing at the new end: {written:?}");
            }
        }
        if self.options.stores {
            if !self.options.zero_init {
                let zeroed = self.root.zero(half, length - half, RequestFlags::empty()).await;
                ensure!(zeroed.is_ok(), "zeroing what was added: {zeroed:?}");
            }
            self.mirror[half as usize..].fill(0);
            self.compare((0, 0)).await?;
            let at = length / self.alignment * self.alignment - self.alignment;
            if at >= half {
                let end = self.read(at, self.alignment, Shape::Aligned).await?;
                ensure!(end.iter().all(|byte| *byte == 0), "the last block is not zero after shrinking and growing");
            }
        }
        Ok(())
    }
}
