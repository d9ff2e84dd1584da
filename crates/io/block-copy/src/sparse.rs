//! Copying images into an image as tools do: one source behind the other, holes left out, zeroes found in the data.
//!
//! Nobody writes to any of them meanwhile. Reads run ahead while earlier data is written; at most
//! [`SparseOptions::depth`] buffers of four times [`SparseOptions::CHUNK`] bytes are held, however long the images are. Where the target
//! comes from, its length and its last flush are the caller's business.

use crate::error::{CopyAct, CopyError};
use crate::padded::{Padded, STATUSES_AHEAD};
use crate::rate::RateLimit;
use crate::zeroes::runs;
use block_common::{AlignedBuf, BufPool, IoBuf, IoError, RequestFlags, StatusExtent};
use block_io::{Access, Flight, HostRange, Root, on_host_files};
use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, watch};

/// How many pieces are copied by threads that may sleep at a time: one is read while another one is written.
const HOSTED_MAX: usize = 2;
/// How long such a thread waits for the piece before its own to be written.
const PATIENCE: Duration = Duration::from_millis(20);
/// Shorter writes stay in the cache until many can go to the disk together.
const DROP_BEHIND_MIN: usize = 64 << 10;

/// How to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseOptions {
    /// How many pieces are in flight at a time; at least one.
    pub depth: usize,
    /// Zeroes in the data that are at least this many bytes long are not written; 0 writes everything, holes too. With [`SparseOptions::TOLD`]
    /// what sources tell to be zeroes is all that counts.
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
    /// No zeroes are looked for in data.
    pub const TOLD: u64 = u64::MAX;
}

/// What is told while copying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SparseNote {
    /// So many more bytes that are not known to be zeroes are done with.
    Copied(u64),
    /// So many more bytes that are known to be zeroes, or to be in the target already, have their turn.
    Skipped(u64),
    /// This sector, at an offset of the whole, could not be read, and is zeroes in the target.
    Lost(u64, IoError),
    /// What this sector, at an offset of the whole, is could not be found out, and it is taken for data.
    Unknown(u64, IoError),
}

/// How many bytes of `sources` are to be read: what [`SparseNote::Copied`] adds up to.
///
/// # Errors
/// The source that did not answer, unless `salvage` takes what it does not tell for data.
pub async fn data_bytes(sources: &[Padded], salvage: bool) -> Result<u64, CopyError> {
    let (mut extents, asking) = Extents::new(sources.to_vec(), Asking { salvage, all_buffered: false }, |_, _| {});
    let counting = async move {
        let mut bytes = 0;
        while let Some(extent) = extents.next(u64::MAX).await? {
            bytes += if extent.zero || extent.left { 0 } else { extent.len };
        }
        Ok(bytes)
    };
    tokio::join!(counting, asking).0
}

/// Copy all of `sources`, or their [upper](Padded::upper) images, one behind the other, to the start of `target`. To be awaited on an I/O thread; all roots are best
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
    let note = Arc::new(note);
    let noted = note.clone();
    let unknown = move |at, error| noted(SparseNote::Unknown(at, error));
    let asking = Asking { salvage: options.salvage, all_buffered: options.sparse == 0 };
    let roots: Vec<_> = sources.iter().map(|source| source.root().clone()).collect();
    let (extents, asking) = Extents::new(sources, asking, unknown);
    copy_extents(&roots, (extents, asking), target, options, move |said| note(said)).await
}

/// Copy `extents`, which come of some work to be done beside, and belong to `roots`.
pub(crate) async fn copy_extents(
    roots: &[Root],
    (extents, asking): (Extents, impl Future<Output = ()> + Send),
    target: Root,
    options: SparseOptions,
    note: impl Fn(SparseNote) + Send + Sync + 'static,
) -> Result<(), CopyError> {
    let mut alignment = 4096;
    for root in roots.iter().chain([&target]) {
        let limits = root.limits().map_err(CopyError::at(CopyAct::Length, 0))?;
        alignment = alignment.max(limits.memory_alignment).max(limits.request_alignment);
    }
    // As many as are used at a time: memory that comes from the system anew costs more than what is copied to it.
    let pool = BufPool::new(alignment as usize, options.depth.max(1) * Piece::LEN_MAX as usize);
    let turns = watch::Sender::new(0);
    let copier = Arc::new(Copier {
        target,
        pool,
        turns,
        turn_to_sleepers: Mutex::new(0),
        turn_passed: Condvar::new(),
        options,
        note: Box::new(note),
        offloads: AtomicBool::new(options.offload),
        hosted: Semaphore::new(HOSTED_MAX),
    });
    let mut flow = Flow { flight: Flight::new(), rate: RateLimit::default(), number: 0, depth: options.depth.max(1) };
    flow.rate.set_speed(options.speed);
    let (copied, ()) = tokio::join!(flow.start_all(&copier, extents), asking);
    let ended = flow.end_all().await;
    earlier(copied, ended)
}

/// The error of the two that is about what comes first in the whole.
pub(crate) fn earlier(one: Result<(), CopyError>, other: Result<(), CopyError>) -> Result<(), CopyError> {
    match (one, other) {
        (Err(one), Err(other)) => Err(if other.offset < one.offset { other } else { one }),
        (one, other) => one.and(other),
    }
}

/// Part of a source that is one kind of thing.
pub(crate) struct Extent {
    pub(crate) source: Padded,
    /// Which of the sources that is.
    pub(crate) number: usize,
    /// Where it begins in its source.
    pub(crate) from: u64,
    /// Where it begins in the whole.
    pub(crate) to: u64,
    pub(crate) len: u64,
    pub(crate) zero: bool,
    /// The target shows it already: nothing is written.
    pub(crate) left: bool,
    /// Whether it goes through a buffer.
    pub(crate) is_buffered: bool,
}

impl Extent {
    /// The `len` bytes of it at `at`.
    fn part(&self, at: u64, len: u64) -> Self {
        Self { source: self.source.clone(), from: self.from + at, to: self.to + at, len, ..*self }
    }
}

/// How sources are asked.
#[derive(Clone, Copy)]
struct Asking {
    /// What they do not tell is data.
    salvage: bool,
    /// Zeroes go through buffers, too.
    all_buffered: bool,
}

/// The extents of all sources, in order, as they come.
pub(crate) struct Extents {
    told: mpsc::Receiver<Result<Extent, CopyError>>,
    /// What is left of the last one.
    rest: Option<Extent>,
}

impl Extents {
    /// Those that are sent to the other end.
    pub(crate) fn channel() -> (mpsc::Sender<Result<Extent, CopyError>>, Self) {
        let (tell, told) = mpsc::channel(STATUSES_AHEAD);
        (tell, Self { told, rest: None })
    }

    /// The extents of `sources`, and the work of asking for them, which is to be done beside. With `salvage`, a sector of which a source does not
    /// tell what it is counts as data, and `unknown` is called with its offset in the whole.
    fn new(
        sources: Vec<Padded>,
        how: Asking,
        unknown: impl Fn(u64, IoError) + Send + Sync,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (tell, extents) = Self::channel();
        let work = async move {
            let mut to = 0;
            for (number, source) in sources.into_iter().enumerate() {
                if !tell_extents((number, &source), to, how, &tell, &unknown).await {
                    return;
                }
                to += source.len();
            }
        };
        (extents, work)
    }

    /// The next one; at most `data_max` bytes if it goes through a buffer.
    async fn next(&mut self, data_max: u64) -> Result<Option<Extent>, CopyError> {
        let next = match self.rest.take() {
            Some(rest) => Some(rest),
            None => self.told.recv().await.transpose()?,
        };
        let Some(mut extent) = next else { return Ok(None) };
        if extent.is_buffered && extent.len > data_max {
            self.rest = Some(extent.part(data_max, extent.len - data_max));
            extent.len = data_max;
        }
        Ok(Some(extent))
    }
}

/// Tell the extents of `source`, which begins at `to` in the whole. `false` when nobody wants to know any more.
async fn tell_extents(
    (number, source): (usize, &Padded),
    to: u64,
    how: Asking,
    tell: &mpsc::Sender<Result<Extent, CopyError>>,
    unknown: &(impl Fn(u64, IoError) + Send + Sync),
) -> bool {
    let mut from = 0;
    while from < source.len() {
        let sector = Padded::SECTOR.min(source.len() - from);
        let mut told = source.decided(from, source.len() - from, STATUSES_AHEAD).await;
        if how.salvage && told.is_err() {
            // It may be about what comes later.
            told = source.decided(from, sector, 1).await.or_else(|error| {
                unknown(to + from, error);
                Ok(vec![StatusExtent::data(sector)])
            });
        }
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                // Whoever does not want to know of it has another error.
                let _ = tell.send(Err(CopyError::at(CopyAct::Status, to + from)(error))).await;
                return false;
            }
        };
        for status in told {
            // A tail that is shorter than a sector goes together with what is in it.
            let len = status.len.next_multiple_of(Padded::SECTOR).min(source.len() - from);
            let is_whole = len == status.len;
            let zero = is_whole && status.is_zero();
            let left = status.status.is_empty();
            let is_buffered = !left && (!zero || how.all_buffered);
            let extent = Extent { source: source.clone(), number, from, to: to + from, len, zero, left, is_buffered };
            from += len;
            if tell.send(Ok(extent)).await.is_err() {
                return false;
            }
            if !is_whole {
                // What follows begins elsewhere than was told.
                break;
            }
        }
    }
    true
}

/// Extents of one source that are copied together: with many small ones in a row, what a request costs by itself is paid once.
#[derive(Default)]
struct Piece {
    extents: Vec<Extent>,
    /// Bytes of them that a buffer is needed for.
    len: u64,
}

impl Piece {
    /// More extents, or bytes in buffers, are not copied together. A processor's cache has room for them.
    const EXTENTS_MAX: usize = 64;
    const LEN_MAX: u64 = 4 * SparseOptions::CHUNK;

    fn push(&mut self, extent: Extent) {
        self.len += if extent.is_buffered { extent.len } else { 0 };
        self.extents.push(extent);
    }

    /// How many bytes of it are not known to be zeroes.
    fn data(&self) -> u64 {
        self.extents.iter().filter(|extent| !extent.zero).map(|extent| extent.len).sum()
    }

    fn is_full(&self) -> bool {
        self.len >= Self::LEN_MAX || self.extents.len() >= Self::EXTENTS_MAX
    }

    /// The extents that are in the buffer, and where they are there.
    fn places(&self) -> impl Iterator<Item = (&Extent, Range<usize>)> {
        let buffered = self.extents.iter().filter(|extent| extent.is_buffered);
        buffered.scan(0, |at, extent| {
            let start = std::mem::replace(at, *at + extent.len as usize);
            Some((extent, start..*at))
        })
    }

    /// What belongs into the target, in order.
    fn runs(&self, data: &[u8], sparse: u64) -> Vec<Run> {
        let mut places = self.places();
        let mut all = Vec::new();
        for extent in &self.extents {
            let place = if extent.is_buffered { places.next().map(|(_, place)| place) } else { None };
            let Some(place) = place else {
                push(&mut all, (extent.to, extent.len, None));
                continue;
            };
            if matches!(sparse, 0 | SparseOptions::TOLD) {
                push(&mut all, (extent.to, extent.len, Some(place.start)));
                continue;
            }
            for (zero, run) in runs(&data[place.clone()], extent.to, sparse) {
                let start = (!zero).then_some(place.start + run.start);
                push(&mut all, (extent.to + run.start as u64, run.len() as u64, start));
            }
        }
        all
    }
}

/// Part of a piece that is one kind of thing: its offset in the whole, its length, and where it is in the buffer. `None` for zeroes.
type Run = (u64, u64, Option<usize>);

/// Add a run, or make the last one longer if it goes on there and does not get longer than a chunk.
fn push(all: &mut Vec<Run>, (at, len, place): Run) {
    if let Some((last_at, last_len, last_place)) = all.last_mut()
        && *last_at + *last_len == at
        && last_place.map(|place| place + *last_len as usize) == place
        && (place.is_none() || *last_len + len <= SparseOptions::CHUNK)
    {
        *last_len += len;
    } else {
        all.push((at, len, place));
    }
}

/// What has become of a piece that was to be copied in the host.
enum Hosted {
    Copied,
    /// It is read, but cannot be written yet, or not by that thread.
    Read(AlignedBuf, Vec<Run>),
    /// It has to be copied by requests.
    No,
}

/// What is done to the target.
enum Act {
    /// So many bytes at an offset.
    Zero(u64, u64),
    /// Buffers at offsets.
    Write(Vec<(u64, IoBuf)>),
}

/// What the pieces share.
struct Copier {
    target: Root,
    pool: BufPool,
    /// The number of the piece that may write.
    turns: watch::Sender<u64>,
    /// The same, for threads that may sleep.
    turn_to_sleepers: Mutex<u64>,
    turn_passed: Condvar,
    options: SparseOptions,
    note: Box<dyn Fn(SparseNote) + Send + Sync>,
    /// Whether the host is still asked to copy.
    offloads: AtomicBool,
    /// For pieces that are copied by a thread that may sleep.
    hosted: Semaphore,
}

impl Copier {
    /// Copy the piece of this number.
    async fn piece(self: &Arc<Self>, number: u64, piece: Piece) -> Result<(), CopyError> {
        let copied = self.copy(number, piece).await;
        // After a failure as well: nobody shall wait for ever.
        self.pass_turn(number);
        copied
    }

    /// Wait a little, on a thread that may sleep, for the turn of a piece. Whoever is before it may need that thread.
    fn turn_here(&self, number: u64) -> bool {
        if !self.options.in_order {
            return true;
        }
        let turn = self.turn_to_sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.turn_passed.wait_timeout_while(turn, PATIENCE, |turn| *turn < number);
        *waited.unwrap_or_else(PoisonError::into_inner).0 >= number
    }

    /// The piece after this one may write.
    fn pass_turn(&self, number: u64) {
        {
            let mut turn = self.turn_to_sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            *turn = (*turn).max(number + 1);
        }
        self.turn_passed.notify_all();
        self.turns.send_if_modified(|turn| {
            let passed = *turn <= number;
            *turn = (*turn).max(number + 1);
            passed
        });
    }

    async fn copy(self: &Arc<Self>, number: u64, piece: Piece) -> Result<(), CopyError> {
        if self.offloads.load(Ordering::Relaxed)
            && let [extent] = piece.extents.as_slice()
            && !extent.zero
            && self.offload(number, extent).await?
        {
            (self.note)(SparseNote::Copied(extent.len));
            return Ok(());
        }
        let piece = Arc::new(piece);
        let (buf, runs) = match self.in_the_host(number, &piece).await? {
            Hosted::Copied => {
                self.copied(&piece);
                return Ok(());
            }
            Hosted::Read(data, runs) => (data.into_io(), runs),
            Hosted::No => {
                let buf = self.fill(&piece).await?;
                self.runs(&piece, buf)
            }
        };
        let acts = self.acts(buf, runs);
        self.turn(number).await;
        let last = acts.len().saturating_sub(1);
        for (index, act) in acts.into_iter().enumerate() {
            let mut carried_out = Box::pin(self.carry_out(act));
            if index == last && self.options.in_order {
                // Polled once it is on its way, and the next piece may follow it.
                let first = poll_fn(|cx| Poll::Ready(carried_out.as_mut().poll(cx))).await;
                self.pass_turn(number);
                if let Poll::Ready(done) = first {
                    done?;
                    continue;
                }
            }
            carried_out.await?;
        }
        self.copied(&piece);
        Ok(())
    }

    fn copied(&self, piece: &Piece) {
        let data = piece.data();
        if data > 0 {
            (self.note)(SparseNote::Copied(data));
        }
    }

    /// Copy a piece on a thread that may sleep, where both ends are files of the host. That needs half of the time: what was read is still in that
    /// processor's cache when it is written.
    async fn in_the_host(self: &Arc<Self>, number: u64, piece: &Arc<Piece>) -> Result<Hosted, CopyError> {
        let (Some(first), Some(last)) = (piece.extents.first(), piece.extents.last()) else { return Ok(Hosted::No) };
        if self.options.salvage || !self.options.flags.is_empty() {
            return Ok(Hosted::No);
        }
        let len = last.to + last.len - first.to;
        let source = (first.source.root().clone(), first.from, len, Access::Read);
        let target = (self.target.clone(), first.to, len, Access::Write);
        let (copier, piece, start) = (self.clone(), piece.clone(), first.to);
        // Not to be closed, so there is always a permit to wait for.
        let _permit = self.hosted.acquire().await;
        let work = move |ranges: &[HostRange]| match ranges {
            [source, target] => copier.copy_here(number, &piece, start, (source, target)),
            _ => Ok(Hosted::No),
        };
        match on_host_files(vec![source, target], work).await {
            Ok(copied) => copied,
            // Whatever it is, requests find out.
            Err(_) => Ok(Hosted::No),
        }
    }

    /// The work of [`Copier::in_the_host`] on a piece that begins at `start` of the whole.
    fn copy_here(
        &self,
        number: u64,
        piece: &Piece,
        start: u64,
        (source, target): (&HostRange, &HostRange),
    ) -> Result<Hosted, CopyError> {
        let mut data = self.pool.take(piece.len as usize);
        for (extent, place) in piece.places() {
            if extent.zero {
                data[place].fill(0);
            } else {
                let read = source.read_at(extent.to - start, &mut data[place]);
                read.map_err(CopyError::at(CopyAct::Read, extent.to))?;
            }
        }
        let runs = piece.runs(&data, self.options.sparse);
        let has_zeroes = !self.options.target_is_zero && runs.iter().any(|(.., place)| place.is_none());
        if has_zeroes || !self.turn_here(number) {
            return Ok(Hosted::Read(data, runs));
        }
        let last = runs.iter().rposition(|(.., place)| place.is_some());
        for (index, (at, len, place)) in runs.into_iter().enumerate() {
            let Some(place) = place else { continue };
            if Some(index) == last {
                self.pass_turn(number);
            }
            let written = target.write_at(at - start, &data[place..place + len as usize]);
            written.map_err(CopyError::at(CopyAct::Write, at))?;
        }
        Ok(Hosted::Copied)
    }

    /// A buffer with what a piece has in it.
    async fn fill(&self, piece: &Piece) -> Result<IoBuf, CopyError> {
        let buf = self.pool.take(piece.len as usize).into_io();
        let mut reads = Flight::new();
        let mut filled = Ok(());
        let mut places = piece.places().peekable();
        while let Some((extent, mut place)) = places.next() {
            if extent.zero {
                buf.fill(place.start, place.len(), 0);
                continue;
            }
            let mut len = extent.len;
            let goes_on = |next: &Extent, len| {
                !next.zero && next.from == extent.from + len && len + next.len <= SparseOptions::CHUNK
            };
            while let Some((_, more)) = places.next_if(|(next, _)| goes_on(next, len)) {
                place.end = more.end;
                len += more.len() as u64;
            }
            let part = buf.slice(place.start, place.len());
            if let Some(read) = reads.start(self.read(extent.part(0, len), part)).await {
                filled = filled.and(read);
            }
        }
        while let Some(read) = reads.next().await {
            filled = filled.and(read);
        }
        filled.map(|()| buf)
    }

    /// What there is in the buffer of a piece.
    fn runs(&self, piece: &Piece, buf: IoBuf) -> (IoBuf, Vec<Run>) {
        let sparse = self.options.sparse;
        match buf.into_aligned() {
            Ok(data) => {
                let runs = piece.runs(&data, sparse);
                (data.into_io(), runs)
            }
            Err(buf) => {
                let runs = piece.runs(&buf.to_aligned(1), sparse);
                (buf, runs)
            }
        }
    }

    /// What is to be done to the target for these runs, whose data is in `buf`.
    fn acts(&self, buf: IoBuf, runs: Vec<Run>) -> Vec<Act> {
        let mut acts = Vec::new();
        for (at, len, place) in runs {
            match (place, acts.last_mut()) {
                (None, _) if self.options.target_is_zero => {}
                (None, _) => acts.push(Act::Zero(at, len)),
                (Some(place), Some(Act::Write(writes))) => writes.push((at, buf.slice(place, len as usize))),
                (Some(place), _) => acts.push(Act::Write(vec![(at, buf.slice(place, len as usize))])),
            }
        }
        acts
    }

    async fn carry_out(&self, act: Act) -> Result<(), CopyError> {
        match act {
            Act::Zero(at, len) => {
                let flags = self.options.flags | RequestFlags::MAY_UNMAP;
                self.target.zero(at, len, flags).await.map_err(CopyError::at(CopyAct::Zero, at))
            }
            Act::Write(writes) => {
                let places: Vec<u64> = writes.iter().map(|(at, _)| *at).collect();
                let mut flags = self.options.flags;
                if writes.iter().any(|(_, buf)| buf.len() < DROP_BEHIND_MIN) {
                    flags.remove(RequestFlags::DONT_CACHE);
                }
                let written = self.target.write_many(writes, flags).await;
                written.map_err(|(index, error)| CopyError::at(CopyAct::Write, places[index])(error))
            }
        }
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

    async fn read(&self, extent: Extent, buf: IoBuf) -> Result<(), CopyError> {
        let kept = self.options.salvage.then(|| buf.slice(0, buf.len()));
        match (extent.source.read(extent.from, buf).await, kept) {
            (Ok(_), _) => Ok(()),
            (Err(_), Some(buf)) => {
                self.salvage(&extent, buf).await;
                Ok(())
            }
            (Err(error), None) => Err(CopyError::at(CopyAct::Read, extent.to)(error)),
        }
    }

    /// Read what can be read, sector by sector.
    async fn salvage(&self, extent: &Extent, buf: IoBuf) {
        for at in (0..extent.len).step_by(Padded::SECTOR as usize) {
            let len = Padded::SECTOR.min(extent.len - at);
            let sector = buf.slice(at as usize, len as usize);
            if let Err(error) = extent.source.read(extent.from + at, sector.clone()).await {
                sector.fill(0, sector.len(), 0);
                (self.note)(SparseNote::Lost(extent.to + at, error));
            }
        }
    }
}

impl fmt::Debug for Copier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copier(to {:?}, {:?})", self.target, self.options)
    }
}

/// The pieces in flight.
struct Flow {
    flight: Flight<'static, Result<(), CopyError>>,
    rate: RateLimit,
    number: u64,
    depth: usize,
}

impl Flow {
    /// Start a piece whenever there is room for it, until there are no more.
    async fn start_all(&mut self, copier: &Arc<Copier>, mut extents: Extents) -> Result<(), CopyError> {
        let options = copier.options;
        let mut piece = Piece::default();
        while let Some(extent) = extents.next(SparseOptions::CHUNK.min(Piece::LEN_MAX - piece.len)).await? {
            if extent.zero || extent.left {
                (copier.note)(SparseNote::Skipped(extent.len));
                if extent.left || options.target_is_zero && options.sparse > 0 {
                    continue;
                }
            }
            if piece.extents.first().is_some_and(|first| first.number != extent.number) {
                self.start(copier, std::mem::take(&mut piece)).await?;
            }
            piece.push(extent);
            // What the host is to copy, it copies extent by extent.
            if piece.is_full() || options.offload {
                self.start(copier, std::mem::take(&mut piece)).await?;
            }
        }
        if piece.extents.is_empty() { Ok(()) } else { self.start(copier, piece).await }
    }

    async fn start(&mut self, copier: &Arc<Copier>, piece: Piece) -> Result<(), CopyError> {
        if self.flight.len() >= self.depth
            && let Some(done) = self.flight.next().await
        {
            done?;
        }
        self.wait_for_rate(&piece).await;
        let (copier, number) = (copier.clone(), self.number);
        self.number += 1;
        self.flight.push(async move { copier.piece(number, piece).await });
        Ok(())
    }

    async fn wait_for_rate(&mut self, piece: &Piece) {
        let delay = self.rate.delay(Instant::now());
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let data = piece.data();
        if data > 0 {
            self.rate.charge(Instant::now(), data);
        }
    }

    /// Wait for what is in flight. The error that is about the earliest piece.
    async fn end_all(&mut self) -> Result<(), CopyError> {
        let mut ended = Ok(());
        while let Some(done) = self.flight.next().await {
            ended = earlier(ended, done);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_of_two_errors_is_told() {
        let failed = |at| Err(CopyError::at(CopyAct::Write, at)(IoError::host(28)));
        assert_eq!(earlier(failed(5), failed(7)), failed(5));
        assert_eq!(earlier(failed(7), failed(5)), failed(5));
        assert_eq!((earlier(Ok(()), failed(7)), earlier(failed(7), Ok(()))), (failed(7), failed(7)));
        assert_eq!(earlier(Ok(()), Ok(())), Ok(()));
    }
}
