//! Comparing two images: whether they read the same.
//!
//! Several batches of pieces are read and compared at a time, where both images are files of the host each by a thread that may sleep;
//! the first difference is told all the same. Nobody writes meanwhile. Lengths, and what a difference in them means, are the
//! caller's business: see [`first_data`] for the rest of the longer one.

use crate::error::CopyAct;
use crate::padded::{Padded, STATUSES_AHEAD};
use block_common::{BlockStatus, BufPool, IoError, IoResult, StatusExtent, is_zero};
use block_io::{Access, Flight, HostRange, Root, on_host_files};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The longest piece, in bytes: both of them stay in a processor's cache until they are compared.
const CHUNK: u64 = 64 << 10;
/// Pieces that are compared together have this many bytes, or are this many.
const BATCH: u64 = 1 << 20;
const PIECES_MAX: usize = 64;
/// How many batches are compared at a time.
const DEPTH: usize = 4;

/// Where two images first differ, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// The sector that begins here.
    Content(u64),
    /// What begins here is data in one and a hole in the other, or not as long: for who compares that as well.
    Status(u64),
}

/// A request of a comparison failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{act} at offset {offset} failed: {error}")]
pub struct CompareError {
    /// What was being done.
    pub act: CopyAct,
    /// With the second image.
    pub is_second: bool,
    /// Where, in bytes.
    pub offset: u64,
    /// What the node answered.
    pub error: IoError,
}

/// An image, or zeroes of any length.
#[derive(Clone, Debug)]
struct Side {
    image: Option<Padded>,
    is_second: bool,
}

impl Side {
    fn failed(&self, act: CopyAct, offset: u64) -> impl FnOnce(IoError) -> CompareError + use<> {
        let is_second = self.is_second;
        move |error| CompareError { act, is_second, offset, error }
    }

    /// The status of all of `range`, and the work of asking for it, which is to be done beside.
    fn statuses(&self, range: Range<u64>) -> (Statuses, impl Future<Output = ()> + use<>) {
        let (tell, told) = mpsc::channel(STATUSES_AHEAD);
        let known = match self.image {
            Some(_) => StatusExtent::zero(0),
            None => StatusExtent::zero(range.end - range.start),
        };
        let image = self.image.clone();
        let work = async move {
            if let Some(image) = image {
                image.tell(range, tell).await;
            }
        };
        (Statuses { told, known }, work)
    }

    /// What [`on_host_files`] wants to know of a range.
    fn host_range(&self, range: &Range<u64>) -> Option<(Root, u64, u64, Access)> {
        let root = self.image.as_ref()?.root().clone();
        Some((root, range.start, range.end - range.start, Access::Read))
    }

    /// What there is at `range`. `None` for zeroes.
    async fn data(&self, pool: &BufPool, range: Range<u64>, zero: bool) -> Result<Option<Data>, CompareError> {
        let (Some(image), false) = (&self.image, zero) else { return Ok(None) };
        let buf = pool.take((range.end - range.start) as usize).into_io();
        let buf = image.read(range.start, buf).await.map_err(self.failed(CopyAct::Read, range.start))?;
        Ok(Some(buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(1))))
    }
}

type Data = block_common::AlignedBuf;

/// What is compared together: ranges, and whether the first and the second image are known to be zeroes there.
type Batch = Vec<(Range<u64>, (bool, bool))>;

/// What a batch has come to: the first sector in which the images differ.
type Found = Result<Option<u64>, CompareError>;

/// The images, and memory to read them into.
#[derive(Clone, Debug)]
struct Pair {
    a: Side,
    b: Side,
    pool: BufPool,
}

impl Pair {
    async fn compare(self, batch: Batch) -> Found {
        let batch = Arc::new(batch);
        match self.in_the_host(&batch).await {
            Some(found) => found,
            None => self.by_requests(&batch).await,
        }
    }

    /// Compare on a thread that may sleep. `None` where the images are no files of the host.
    async fn in_the_host(&self, batch: &Arc<Batch>) -> Option<Found> {
        let all = batch.first()?.0.start..batch.last()?.0.end;
        let sides = [&self.a, &self.b];
        let ranges = sides.iter().filter_map(|side| side.host_range(&all)).collect();
        let (pair, batch) = (self.clone(), batch.clone());
        on_host_files(ranges, move |ranges| pair.compare_here(&batch, all.start, ranges)).await.ok()
    }

    fn compare_here(&self, batch: &Batch, start: u64, ranges: &[HostRange]) -> Found {
        let mut ranges = ranges.iter();
        let sides = [&self.a, &self.b];
        let [a, b] = sides.map(|side| side.image.as_ref().and_then(|_| ranges.next()));
        let mut memory = [(); 2].map(|()| self.pool.take(CHUNK as usize));
        let [a_memory, b_memory] = &mut memory;
        for (range, (a_zero, b_zero)) in batch {
            let len = (range.end - range.start) as usize;
            let a = read_here(&self.a, a.filter(|_| !a_zero), range.start, start, &mut a_memory[..len])?;
            let b = read_here(&self.b, b.filter(|_| !b_zero), range.start, start, &mut b_memory[..len])?;
            if let Some(sector) = first_difference(a, b) {
                return Ok(Some(range.start + sector));
            }
        }
        Ok(None)
    }

    /// Compare by requests, all of which are on their way at once.
    async fn by_requests(&self, batch: &Batch) -> Found {
        let mut flight: Flight<'_, Found> = Flight::new();
        for (range, (a_zero, b_zero)) in batch {
            flight.push(async move {
                let a = self.a.data(&self.pool, range.clone(), *a_zero).await?;
                let b = self.b.data(&self.pool, range.clone(), *b_zero).await?;
                Ok(first_difference(a.as_deref(), b.as_deref()).map(|sector| range.start + sector))
            });
        }
        let (mut found, mut failed): (Option<u64>, Option<CompareError>) = (None, None);
        while let Some(one) = flight.next().await {
            match one {
                Ok(at) => found = [found, at].into_iter().flatten().min(),
                Err(error) if failed.is_none_or(|old| error.offset < old.offset) => failed = Some(error),
                Err(_) => {}
            }
        }
        match failed {
            Some(error) if found.is_none_or(|at| error.offset < at) => Err(error),
            _ => Ok(found),
        }
    }
}

/// Fill `memory` from `at` of an image, whose range begins at `start`. `None` for zeroes.
fn read_here<'a>(
    side: &Side,
    range: Option<&HostRange>,
    at: u64,
    start: u64,
    memory: &'a mut [u8],
) -> Result<Option<&'a [u8]>, CompareError> {
    let Some(range) = range else { return Ok(None) };
    range.read_at(at - start, memory).map_err(side.failed(CopyAct::Read, at))?;
    Ok(Some(memory))
}

/// The status of a side, as it comes.
struct Statuses {
    told: mpsc::Receiver<IoResult<StatusExtent>>,
    /// What is known from here on.
    known: StatusExtent,
}

impl Statuses {
    /// Know something of what begins here. `true` if that is news.
    async fn know(&mut self) -> IoResult<bool> {
        if self.known.len > 0 {
            return Ok(false);
        }
        self.known = self.told.recv().await.unwrap_or(Err(IoError::BUG))?;
        Ok(true)
    }
}

/// Where `a` and `b` first differ within `range`, which both have. `strict` compares status, too. `advance` is told how many
/// more bytes were compared. To be awaited on an I/O thread; both roots are best at home there.
///
/// # Errors
/// [`CompareError`], unless there is a difference before it.
pub async fn compare(
    a: &Padded,
    b: &Padded,
    range: Range<u64>,
    strict: bool,
    advance: impl Fn(u64),
) -> Result<Option<Difference>, CompareError> {
    let a = Side { image: Some(a.clone()), is_second: false };
    let b = Side { image: Some(b.clone()), is_second: true };
    walk(a, b, range, strict, advance).await
}

/// The first sector of `image` within `range` that is not all zeroes. `is_second` is for errors.
///
/// # Errors
/// As [`compare`].
pub async fn first_data(
    image: &Padded,
    is_second: bool,
    range: Range<u64>,
    advance: impl Fn(u64),
) -> Result<Option<Difference>, CompareError> {
    let side = Side { image: Some(image.clone()), is_second };
    walk(side, Side { image: None, is_second: !is_second }, range, false, advance).await
}

/// What decides whether two extents are the same kind of thing.
fn kind(extent: StatusExtent) -> BlockStatus {
    extent.status & (BlockStatus::DATA | BlockStatus::ZERO | BlockStatus::ALLOCATED | BlockStatus::EOF)
}

async fn walk(
    a: Side,
    b: Side,
    range: Range<u64>,
    strict: bool,
    advance: impl Fn(u64),
) -> Result<Option<Difference>, CompareError> {
    let mut search = Search { flight: Flight::new(), skipped: 0, found: None, failed: None };
    let (statuses_a, asking_a) = a.statuses(range.clone());
    let (statuses_b, asking_b) = b.statuses(range.clone());
    let comparing = search.start_all((a, statuses_a), (b, statuses_b), range, strict, &advance);
    tokio::join!(comparing, asking_a, asking_b);
    while !search.flight.is_empty() {
        search.one(&advance).await;
    }
    search.result()
}

/// Where the sector begins in which two pieces of one length differ. What is not there is zeroes.
fn first_difference(a: Option<&[u8]>, b: Option<&[u8]>) -> Option<u64> {
    let sector = Padded::SECTOR as usize;
    let found = match (a, b) {
        (None, None) => None,
        (Some(data), None) | (None, Some(data)) => {
            if is_zero(data) {
                None
            } else {
                data.chunks(sector).position(|sector| !is_zero(sector))
            }
        }
        (Some(a), Some(b)) => {
            if a == b {
                None
            } else {
                a.chunks(sector).zip(b.chunks(sector)).position(|(a, b)| a != b)
            }
        }
    };
    found.map(|at| at as u64 * Padded::SECTOR)
}

/// The pieces in flight, and what is known by now: the earliest of what they found.
struct Search {
    flight: Flight<'static, (Found, u64)>,
    /// Zeroes behind pieces that are in flight: they are told together with one of these.
    skipped: u64,
    found: Option<Difference>,
    failed: Option<CompareError>,
}

impl Search {
    /// Start to compare piece after piece, until there is a difference or there are no more.
    async fn start_all(
        &mut self,
        (a, mut of_a): (Side, Statuses),
        (b, mut of_b): (Side, Statuses),
        range: Range<u64>,
        strict: bool,
        advance: &impl Fn(u64),
    ) {
        let pair = Pair { a: a.clone(), b: b.clone(), pool: BufPool::new(4096, 16 * CHUNK as usize) };
        let mut batch = Batch::new();
        let mut bytes = 0;
        let mut at = range.start;
        while at < range.end && self.goes_on() {
            let news = match (of_a.know().await, of_b.know().await) {
                (Ok(news_a), Ok(news_b)) => news_a || news_b,
                (Err(error), _) => {
                    self.end(Err(a.failed(CopyAct::Status, at)(error)));
                    break;
                }
                (_, Err(error)) => {
                    self.end(Err(b.failed(CopyAct::Status, at)(error)));
                    break;
                }
            };
            if strict && news && kind(of_a.known) != kind(of_b.known) {
                self.end(Ok(Difference::Status(at)));
                break;
            }
            let zero = (of_a.known.is_zero(), of_b.known.is_zero());
            let both_zero = zero.0 && zero.1;
            let len = of_a.known.len.min(of_b.known.len).min(if both_zero { u64::MAX } else { CHUNK });
            if both_zero {
                self.skipped += len;
                if self.flight.is_empty() && batch.is_empty() {
                    self.tell(0, advance);
                }
            } else {
                batch.push((at..at + len, zero));
                bytes += len;
                if bytes >= BATCH || batch.len() >= PIECES_MAX {
                    if self.flight.len() >= DEPTH {
                        self.one(advance).await;
                    }
                    self.start(&pair, std::mem::take(&mut batch), std::mem::take(&mut bytes));
                }
            }
            at += len;
            of_a.known.len -= len;
            of_b.known.len -= len;
        }
        // What was found is behind it, if anything was.
        if !batch.is_empty() {
            self.start(&pair, batch, bytes);
        }
    }

    fn start(&mut self, pair: &Pair, batch: Batch, bytes: u64) {
        let pair = pair.clone();
        self.flight.push(async move { (pair.compare(batch).await, bytes) });
    }

    fn goes_on(&self) -> bool {
        self.found.is_none() && self.failed.is_none()
    }

    /// Wait for one piece.
    async fn one(&mut self, advance: &impl Fn(u64)) {
        match self.flight.next().await {
            None => {}
            Some((Ok(None), len)) => self.tell(len, advance),
            Some((Ok(Some(at)), _)) => self.end(Ok(Difference::Content(at))),
            Some((Err(error), _)) => self.end(Err(error)),
        }
    }

    fn tell(&mut self, len: u64, advance: &impl Fn(u64)) {
        advance(len + std::mem::take(&mut self.skipped));
    }

    fn end(&mut self, how: Result<Difference, CompareError>) {
        let offset = |difference: &Difference| match *difference {
            Difference::Content(at) | Difference::Status(at) => at,
        };
        match how {
            Ok(new) if self.found.is_none_or(|old| offset(&new) < offset(&old)) => self.found = Some(new),
            Err(new) if self.failed.is_none_or(|old| new.offset < old.offset) => self.failed = Some(new),
            _ => {}
        }
    }

    fn result(self) -> Result<Option<Difference>, CompareError> {
        match (self.found, self.failed) {
            (Some(Difference::Content(at) | Difference::Status(at)), Some(error)) if error.offset < at => Err(error),
            (Some(found), _) => Ok(Some(found)),
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        }
    }
}
