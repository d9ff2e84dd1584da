//! Copying images into an image as tools do: one source behind the other, holes left out, zeroes found in the data.
//!
//! Nobody writes to any of them meanwhile. Reads run ahead while earlier data is written; at most
//! [`SparseOptions::depth`] buffers of [`SparseOptions::CHUNK`] bytes are held, however long the images are. Where the target
//! comes from, its length and its last flush are the caller's business.

use crate::error::{CopyAct, CopyError};
use crate::flight::Flight;
use crate::padded::{Padded, STATUSES_AHEAD};
use crate::rate::RateLimit;
use crate::zeroes::runs;
use block_common::{BufPool, IoBuf, IoError, RequestFlags, StatusExtent};
use block_io::Root;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Instant;
use tokio::sync::{mpsc, watch};

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseOptions {
    /// How many pieces are in flight at a time; at least one.
    pub depth: usize,
    /// Zeroes in the data that are at least this many bytes long are not written; 0 writes everything, holes too.
    pub sparse: u64,
    /// The target reads as zeroes: zeroes need not be written.
    pub target_is_zero: bool,
    /// Start the writes of pieces in the order of the source.
    pub in_order: bool,
    /// Zeroes stand for what cannot be read.
    pub salvage: bool,
    /// Let the host copy the data where it can: see [`Root::copy_range`]. No zeroes are looked for in what it copies.
    pub offload: bool,
    /// Bytes a second; 0 is no limit.
    pub speed: u64,
    /// Flags of the writes.
    pub flags: RequestFlags,
}

impl SparseOptions {
    /// The longest piece, in bytes.
    pub const CHUNK: u64 = 256 << 10;
}

/// What is told while copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SparseNote {
    /// So many more bytes that are not known to be zeroes are done with.
    Copied(u64),
    /// So many more bytes that are known to be zeroes have their turn.
    Skipped(u64),
    /// This sector, at an offset of the whole, could not be read, and is zeroes in the target.
    Lost(u64, IoError),
    /// What this sector, at an offset of the whole, is could not be found out, and it is taken for data.
    Unknown(u64, IoError),
}

/// How many bytes of `sources` are not known to be zeroes: what [`SparseNote::Copied`] adds up to.
///
/// # Errors
/// The source that did not answer, unless `salvage` takes what it does not tell for data.
pub async fn data_bytes(sources: &[Padded], salvage: bool) -> Result<u64, CopyError> {
    let (mut extents, asking) = Extents::new(sources.to_vec(), salvage, |_, _| {});
    let counting = async move {
        let mut bytes = 0;
        while let Some(extent) = extents.next(u64::MAX).await? {
            bytes += if extent.zero { 0 } else { extent.len };
        }
        Ok(bytes)
    };
    tokio::join!(counting, asking).0
}

/// Copy all of `sources`, one behind the other, to the start of `target`. To be awaited on an I/O thread; all roots are best
/// at home there.
///
/// # Errors
/// The first request that failed; those in flight are over by then.
pub async fn sparse_copy(
    sources: Vec<Padded>,
    target: Root,
    options: SparseOptions,
    note: impl Fn(SparseNote) + Send + Sync + 'static,
) -> Result<(), CopyError> {
    let mut alignment = 4096;
    for root in sources.iter().map(Padded::root).chain([&target]) {
        let limits = root.limits().map_err(CopyError::at(CopyAct::Length, 0))?;
        alignment = alignment.max(limits.memory_alignment).max(limits.request_alignment);
    }
    let depth = options.depth.max(1);
    // Few are unused at a time.
    let pool = BufPool::new(alignment as usize, 4 * SparseOptions::CHUNK as usize);
    let turns = watch::Sender::new(0);
    let copier = Arc::new(Copier {
        target,
        pool,
        turns,
        options,
        note: Box::new(note),
        offloads: AtomicBool::new(options.offload),
    });
    let mut run = Run { flight: Flight::new(), rate: RateLimit::default(), number: 0 };
    run.rate.set_speed(options.speed);
    let noted = copier.clone();
    let unknown = move |at, error| (noted.note)(SparseNote::Unknown(at, error));
    let (extents, asking) = Extents::new(sources, options.salvage, unknown);
    let (copied, ()) = tokio::join!(run.start_all(&copier, extents, depth), asking);
    let ended = run.end_all().await;
    copied.and(ended)
}

/// Part of a source that is one kind of thing.
struct Extent {
    source: Padded,
    /// Where it begins in its source.
    from: u64,
    /// Where it begins in the whole.
    to: u64,
    len: u64,
    zero: bool,
}

impl Extent {
    /// The `len` bytes of it at `at`.
    fn part(&self, at: u64, len: u64) -> Self {
        Self { source: self.source.clone(), from: self.from + at, to: self.to + at, len, zero: self.zero }
    }
}

/// The extents of all sources, in order, as they come.
struct Extents {
    told: mpsc::Receiver<Result<Extent, CopyError>>,
    /// What is left of the last one.
    rest: Option<Extent>,
}

impl Extents {
    /// The extents of `sources`, and the work of asking for them, which is to be done beside. With `salvage`, a sector of which a source does not
    /// tell what it is counts as data, and `unknown` is called with its offset in the whole.
    fn new(
        sources: Vec<Padded>,
        salvage: bool,
        unknown: impl Fn(u64, IoError) + Send + Sync,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (tell, told) = mpsc::channel(STATUSES_AHEAD);
        let work = async move {
            let mut to = 0;
            for source in sources {
                if !tell_extents(&source, to, &tell, salvage, &unknown).await {
                    return;
                }
                to += source.len();
            }
        };
        (Self { told, rest: None }, work)
    }

    /// The next one; at most `data_max` bytes if it is not zeroes.
    async fn next(&mut self, data_max: u64) -> Result<Option<Extent>, CopyError> {
        let next = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.told.recv().await.transpose()?,
        };
        let Some(mut extent) = next else { return Ok(None) };
        if !extent.zero && extent.len > data_max {
            self.rest = Some(extent.part(data_max, extent.len - data_max));
            extent.len = data_max;
        }
        Ok(Some(extent))
    }
}

/// Tell the extents of `source`, which begins at `to` in the whole. `false` when nobody wants to know any more.
async fn tell_extents(
    source: &Padded,
    to: u64,
    tell: &mpsc::Sender<Result<Extent, CopyError>>,
    salvage: bool,
    unknown: &(impl Fn(u64, IoError) + Send + Sync),
) -> bool {
    let mut from = 0;
    while from < source.len() {
        let sector = Padded::SECTOR.min(source.len() - from);
        let mut status = source.status(from, source.len() - from).await;
        if salvage && status.is_err() {
            // It may be about what comes later.
            status = source.status(from, sector).await.or_else(|error| {
                unknown(to + from, error);
                Ok(StatusExtent::data(sector))
            });
        }
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                // Whoever does not want to know of it has another error.
                let _ = tell.send(Err(CopyError::at(CopyAct::Status, to + from)(error))).await;
                return false;
            }
        };
        // A tail that is shorter than a sector goes together with what is in it.
        let len = status.len.next_multiple_of(Padded::SECTOR).min(source.len() - from);
        let zero = len == status.len && status.is_zero();
        let extent = Extent { source: source.clone(), from, to: to + from, len, zero };
        from += len;
        if tell.send(Ok(extent)).await.is_err() {
            return false;
        }
    }
    true
}

/// What the pieces share.
struct Copier {
    target: Root,
    pool: BufPool,
    /// The number of the piece that may write.
    turns: watch::Sender<u64>,
    options: SparseOptions,
    note: Box<dyn Fn(SparseNote) + Send + Sync>,
    /// Whether the host is still asked to copy.
    offloads: AtomicBool,
}

impl Copier {
    /// Copy one extent, the piece of this number.
    async fn piece(&self, number: u64, extent: Extent) -> Result<(), CopyError> {
        let copied = self.copy(number, &extent).await;
        // After a failure as well: nobody shall wait for ever.
        self.pass_turn(number);
        copied
    }

    /// The piece after this one may write.
    fn pass_turn(&self, number: u64) {
        self.turns.send_if_modified(|turn| {
            let passed = *turn <= number;
            *turn = (*turn).max(number + 1);
            passed
        });
    }

    async fn copy(&self, number: u64, extent: &Extent) -> Result<(), CopyError> {
        let Extent { to, len, zero, .. } = *extent;
        if zero && self.options.sparse > 0 {
            self.turn(number).await;
            return self.zero(to, len).await;
        }
        if !zero && self.offloads.load(Ordering::Relaxed) && self.offload(number, extent).await? {
            (self.note)(SparseNote::Copied(len));
            return Ok(());
        }
        let mut buf = self.pool.take(len as usize);
        if zero {
            buf.fill(0);
            self.turn(number).await;
            self.write(to, buf.into_io()).await?;
            return Ok(());
        }
        let buf = self.read(extent, buf.into_io()).await?;
        let (buf, runs) = match (self.options.sparse, buf.into_aligned()) {
            (0, Ok(data)) => (data.into_io(), vec![(false, 0..len as usize)]),
            (0, Err(buf)) => (buf, vec![(false, 0..len as usize)]),
            (sparse, Ok(data)) => {
                let found = runs(&data, to, sparse);
                (data.into_io(), found)
            }
            (sparse, Err(buf)) => {
                let found = runs(&buf.to_aligned(1), to, sparse);
                (buf, found)
            }
        };
        self.turn(number).await;
        let last = runs.len().saturating_sub(1);
        for (index, (zero, run)) in runs.into_iter().enumerate() {
            let at = to + run.start as u64;
            let mut written = Box::pin(async {
                match zero {
                    true => self.zero(at, run.len() as u64).await,
                    false => self.write(at, buf.slice(run.start, run.len())).await,
                }
            });
            if index == last && self.options.in_order {
                // Polled once it is on its way, and the next piece may follow it.
                let first = poll_fn(|cx| Poll::Ready(written.as_mut().poll(cx))).await;
                self.pass_turn(number);
                if let Poll::Ready(done) = first {
                    done?;
                    continue;
                }
            }
            written.await?;
        }
        (self.note)(SparseNote::Copied(len));
        Ok(())
    }

    /// Let the host copy an extent. `false` when it cannot.
    async fn offload(&self, number: u64, extent: &Extent) -> Result<bool, CopyError> {
        self.turn(number).await;
        match extent.source.root().copy_range(extent.from, &self.target, extent.to, extent.len).await {
            Ok(()) => Ok(true),
            Err(error) if error == IoError::UNSUPPORTED => {
                // What ends within a sector is one thing; these two files are another.
                let is_whole = extent.source.root().length().is_ok_and(|length| extent.from + extent.len <= length);
                if is_whole {
                    self.offloads.store(false, Ordering::Relaxed);
                }
                Ok(false)
            }
            Err(error) => Err(CopyError::at(CopyAct::Write, extent.to)(error)),
        }
    }

    /// Wait until the writes of everything before this piece are on their way.
    async fn turn(&self, number: u64) {
        if self.options.in_order {
            // The sender is ours: it cannot go away.
            let _ = self.turns.subscribe().wait_for(|turn| *turn >= number).await;
        }
    }

    async fn read(&self, extent: &Extent, buf: IoBuf) -> Result<IoBuf, CopyError> {
        let kept = self.options.salvage.then(|| buf.slice(0, buf.len()));
        match (extent.source.read(extent.from, buf).await, kept) {
            (Ok(buf), _) => Ok(buf),
            (Err(_), Some(buf)) => Ok(self.salvage(extent, buf).await),
            (Err(error), None) => Err(CopyError::at(CopyAct::Read, extent.to)(error)),
        }
    }

    /// Read what can be read, sector by sector.
    async fn salvage(&self, extent: &Extent, buf: IoBuf) -> IoBuf {
        for at in (0..extent.len).step_by(Padded::SECTOR as usize) {
            let len = Padded::SECTOR.min(extent.len - at);
            let sector = buf.slice(at as usize, len as usize);
            if let Err(error) = extent.source.read(extent.from + at, sector.clone()).await {
                sector.fill(0, sector.len(), 0);
                (self.note)(SparseNote::Lost(extent.to + at, error));
            }
        }
        buf
    }

    async fn zero(&self, at: u64, len: u64) -> Result<(), CopyError> {
        if self.options.target_is_zero {
            return Ok(());
        }
        let flags = self.options.flags | RequestFlags::MAY_UNMAP;
        self.target.zero(at, len, flags).await.map_err(CopyError::at(CopyAct::Zero, at))
    }

    async fn write(&self, at: u64, buf: IoBuf) -> Result<(), CopyError> {
        let (result, _) = self.target.write(at, buf, self.options.flags).await;
        result.map_err(CopyError::at(CopyAct::Write, at))
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copier(to {:?}, {:?})", self.target, self.options)
    }
}

/// The pieces in flight.
struct Run {
    flight: Flight<Result<(), CopyError>>,
    rate: RateLimit,
    number: u64,
}

impl Run {
    /// Start a piece whenever there is room for it, until there are no more.
    async fn start_all(&mut self, copier: &Arc<Copier>, mut extents: Extents, depth: usize) -> Result<(), CopyError> {
        while let Some(extent) = extents.next(SparseOptions::CHUNK).await? {
            if extent.zero {
                (copier.note)(SparseNote::Skipped(extent.len));
            }
            for extent in self.split(extent, copier.options) {
                if self.flight.len() >= depth
                    && let Some(done) = self.flight.next().await
                {
                    done?;
                }
                self.wait_for_rate(&extent).await;
                let (copier, number) = (copier.clone(), self.number);
                self.number += 1;
                self.flight.push(async move { copier.piece(number, extent).await });
            }
        }
        Ok(())
    }

    /// The pieces that an extent is copied in: none for zeroes that nobody has to write.
    fn split(&self, extent: Extent, options: SparseOptions) -> Vec<Extent> {
        if !extent.zero || options.sparse > 0 {
            return if extent.zero && options.target_is_zero { Vec::new() } else { vec![extent] };
        }
        let piece = |at: u64| extent.part(at, SparseOptions::CHUNK.min(extent.len - at));
        (0..extent.len).step_by(SparseOptions::CHUNK as usize).map(piece).collect()
    }

    async fn wait_for_rate(&mut self, extent: &Extent) {
        let delay = self.rate.delay(Instant::now());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if !extent.zero {
            self.rate.charge(Instant::now(), extent.len);
        }
    }

    /// Wait for what is in flight. The first error.
    async fn end_all(&mut self) -> Result<(), CopyError> {
        let mut ended = Ok(());
        while let Some(done) = self.flight.next().await {
            ended = ended.and(done);
        }
        ended
    }
}
