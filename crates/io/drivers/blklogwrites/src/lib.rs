//! The blklogwrites driver's engine: a filter that writes down, in a log beside the file, what is written, discarded and flushed, in the order in which that ended. Who
//! has such a log can see what would be on the disk after a power cut at any point of it.
//!
//! The log is in the format of Linux's dm-log-writes (`format`). It is not read here, but for finding its end.

#![forbid(unsafe_code)]

mod format;

pub use format::{LogError, SectorSize};

use async_trait::async_trait;
use block_common::{
    AlignedBuf, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, LENGTH_MAX, Limits, Preallocation,
    RequestFlags, StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use format::{DISCARD, ENTRY_LEN, Entry, FLUSH, SUPER_LEN};
use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// How the log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// Begin a new log with sectors of this size; or go on with the one that is there, which may be an empty file.
    pub begin: Option<SectorSize>,
    /// After how many entries the superblock tells of them, beside flushes.
    pub super_interval: NonZeroU64,
}

/// Why there is no logging.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Something is wrong with the log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log does not answer.
    #[error("Could not read log superblock: {0}")]
    Io(#[from] IoError),
}

#[derive(Debug)]
struct State {
    /// Where the next entry goes, in bytes.
    end: u64,
    /// How many entries there are, those included that are being written.
    entries: u64,
    /// The numbers of these.
    pending: BTreeSet<u64>,
    /// Something was changed since the last flush.
    is_dirty: bool,
}

impl State {
    /// How many entries the superblock may tell of: those before the first that is not written yet.
    fn complete(&self) -> u64 {
        self.pending.first().copied().unwrap_or(self.entries)
    }
}

/// A place in the log, for one entry and its data.
struct Place<'a> {
    log: &'a Blklogwrites,
    number: u64,
    at: u64,
}

impl Drop for Place<'_> {
    /// Written or not, others need not wait for it.
    fn drop(&mut self) {
        self.log.state().pending.remove(&self.number);
    }
}

/// The engine.
pub struct Blklogwrites {
    file: Edge,
    log: Edge,
    sector: SectorSize,
    interval: NonZeroU64,
    limits: RwLock<Limits>,
    state: Mutex<State>,
    /// Superblocks are written one after the other: none tells of less than the one before.
    superblock: tokio::sync::Mutex<()>,
}

/// What an entry has behind it.
enum Data<'a> {
    Nothing,
    /// A sector for the entry, and then the bytes.
    Bytes(&'a IoBuf),
    Zeroes(u64),
}

impl Blklogwrites {
    /// A filter over `file` that logs to `log`. `req` is a token on the node that owns the edges.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(req: &Req, file: Edge, log: Edge, options: LogOptions) -> Result<Self, OpenError> {
        let (sector, entries, end) = match options.begin {
            Some(sector) => (sector, 0, sector.bytes()),
            None => find_end(req, &log).await?,
        };
        let limits = RwLock::new(limits_over(req, &file, sector)?);
        let state = Mutex::new(State { end, entries, pending: BTreeSet::new(), is_dirty: false });
        let (interval, superblock) = (options.super_interval, tokio::sync::Mutex::default());
        Ok(Self { file, log, sector, interval, limits, state, superblock })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something is going to be changed. Returns whether something was before, and is not flushed.
    fn soil(&self) -> bool {
        std::mem::replace(&mut self.state().is_dirty, true)
    }

    /// A place for the next entry, with `len` bytes behind it.
    fn reserve(&self, len: u64) -> IoResult<Place<'_>> {
        let mut state = self.state();
        let (at, number) = (state.end, state.entries);
        let end = len.checked_add(self.sector.bytes()).and_then(|len| len.checked_add(at));
        state.end = end.filter(|end| *end <= LENGTH_MAX).ok_or(IoError::INVALID)?;
        state.entries += 1;
        state.pending.insert(number);
        Ok(Place { log: self, number, at })
    }

    /// A sector that begins with `bytes`, and `len` bytes behind it.
    fn buffer(&self, bytes: &[u8], len: usize) -> IoBuf {
        let buf = AlignedBuf::zeroed(self.sector.bytes() as usize + len, 4096).into_io();
        buf.copy_from_slice(0, bytes);
        buf
    }

    /// Write an entry to its place; and the superblock, when it is time.
    async fn put(&self, req: &Req, place: Place<'_>, entry: Entry, data: Data<'_>) -> IoResult<()> {
        let (at, none) = (HostOffset(place.at), RequestFlags::empty());
        let encoded = entry.encode();
        match data {
            Data::Nothing => self.log.write(req, at, &self.buffer(&encoded, 0), none).await?,
            Data::Bytes(buf) => {
                buf.copy_from_slice(0, &encoded);
                self.log.write(req, at, buf, none).await?;
            }
            Data::Zeroes(len) => {
                self.log.write(req, at, &self.buffer(&encoded, 0), none).await?;
                self.log.zero(req, HostOffset(place.at + self.sector.bytes()), len, none).await?;
            }
        }
        let is_time = entry.flags & FLUSH != 0 || (place.number + 1).is_multiple_of(self.interval.get());
        drop(place);
        if is_time { self.tell(req).await } else { Ok(()) }
    }

    /// Let the superblock tell of the entries, on stable storage.
    async fn tell(&self, req: &Req) -> IoResult<()> {
        let _superblock = self.superblock.lock().await;
        let complete = self.state().complete();
        let superblock = self.buffer(&format::superblock(complete, self.sector), 0);
        self.log.write(req, HostOffset(0), &superblock, RequestFlags::empty()).await?;
        self.log.flush(req).await
    }

    fn entry(&self, range: GuestRange, flags: u64) -> Entry {
        let sector = self.sector.bytes();
        // A disk may end within a sector.
        Entry { sector: range.offset().0 / sector, count: range.len().div_ceil(sector), flags }
    }

    /// A flush, and the mark for what came before it: nothing that ends while it is under way. One that fails marks nothing.
    async fn flush_and_mark(&self, req: &Req) -> IoResult<()> {
        let place = {
            let place = self.reserve(0)?;
            self.state().is_dirty = false;
            place
        };
        let flushed = self.file.flush(req).await;
        let flags = if flushed.is_ok() { FLUSH } else { 0 };
        let marked = self.put(req, place, Entry { sector: 0, count: 0, flags }, Data::Nothing).await;
        let result = flushed.and(marked);
        if result.is_err() {
            self.soil();
        }
        result
    }

    /// A change is over and logged. If it has to be on stable storage, what came before it is marked as being there, too: QEMU makes its marks at these places.
    async fn finish(&self, req: &Req, flags: RequestFlags, was_dirty: bool, result: IoResult<()>) -> IoResult<()> {
        result?;
        if flags.contains(RequestFlags::FUA) && was_dirty {
            self.flush_and_mark(req).await?;
            self.soil();
        }
        Ok(())
    }
}

/// The limits of a node that is made of the log's sectors; reads, which are not logged, are what they are to the child.
fn limits_over(req: &Req, file: &Edge, sector: SectorSize) -> IoResult<Limits> {
    let limits = file.limits(req)?;
    let request_alignment = limits.request_alignment.max(sector.bytes() as u32);
    Ok(Limits { request_alignment, read_alignment: limits.reads(), ..limits })
}

/// Read from a log, behind whose end there are zeroes.
async fn read_log<const LEN: usize>(req: &Req, log: &Edge, at: u64, end: u64) -> IoResult<[u8; LEN]> {
    let (buf, mut bytes) = (AlignedBuf::zeroed(LEN, 4096).into_io(), [0; LEN]);
    let there = end.saturating_sub(at).min(LEN as u64) as usize;
    log.read(req, HostOffset(at), &buf.slice(0, there)).await?;
    buf.copy_to_slice(0, &mut bytes);
    Ok(bytes)
}

/// The sectors of the log that is there, how many entries it has, and where they end.
async fn find_end(req: &Req, log: &Edge) -> Result<(SectorSize, u64, u64), OpenError> {
    let length = log.refresh_length(req).await?;
    if length == 0 {
        // Nobody has logged anything yet.
        return Ok((SectorSize::DEFAULT, 0, SectorSize::DEFAULT.bytes()));
    }
    let (entries, sector) = format::parse_superblock(&read_log::<SUPER_LEN>(req, log, 0, length).await?)?;
    let mut end = sector.bytes();
    for number in 0..entries {
        // Each of them is in the log, so there are not more than fit into it.
        if end >= length {
            return Err(LogError::Ends(number).into());
        }
        let entry = read_log::<ENTRY_LEN>(req, log, end, length).await?;
        let len = Entry::len_of(&entry, sector).and_then(|len| end.checked_add(len));
        end = len.filter(|end| *end <= LENGTH_MAX).ok_or(LogError::Ends(number + 1))?;
    }
    Ok((sector, entries, end))
}

#[async_trait]
impl Driver for Blklogwrites {
    fn format_name(&self) -> &'static str {
        "blklogwrites"
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        if access.is_write() {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        Mapping::Child { edge: &self.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    /// File and log are given the same copy. What fails is logged as well: some of it may have been written.
    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        let (was_dirty, sector) = (self.soil(), self.sector.bytes() as usize);
        let entry = self.entry(range, 0);
        let copy = self.buffer(&[], entry.count as usize * sector);
        let data = copy.slice(sector, buf.len());
        data.copy_from(buf);
        let written = self.file.write(req, HostOffset(offset.0), &data, flags).await;
        let place = self.reserve(entry.count * sector as u64)?;
        let logged = self.put(req, place, entry, Data::Bytes(&copy)).await;
        self.finish(req, flags, was_dirty, written.and(logged)).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        let was_dirty = self.soil();
        if flags.contains(RequestFlags::NO_FALLBACK) {
            // The log has to have the zeroes, whatever they cost.
            return Err(IoError::UNSUPPORTED);
        }
        let zeroed = self.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await;
        let entry = self.entry(range, 0);
        let len = entry.count * self.sector.bytes();
        let place = self.reserve(len)?;
        let logged = self.put(req, place, entry, Data::Zeroes(len)).await;
        self.finish(req, flags, was_dirty, zeroed.and(logged)).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.soil();
        let discarded = self.file.discard(req, HostOffset(range.offset().0), range.len()).await;
        let place = self.reserve(0)?;
        let logged = self.put(req, place, self.entry(range, DISCARD), Data::Nothing).await;
        discarded.and(logged)
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        let is_dirty = self.state().is_dirty;
        if is_dirty { self.flush_and_mark(req).await } else { self.file.flush(req).await }
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        let limits = limits_over(req, &self.file, self.sector)?;
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.file.block_statuses(req, HostOffset(range.offset().0), range.len(), max).await
    }

    /// The log has no word for it.
    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.soil();
        self.file.truncate(req, len, preallocation).await
    }
}

impl fmt::Debug for Blklogwrites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blklogwrites({:?}, {:?})", self.sector, self.state())
    }
}
