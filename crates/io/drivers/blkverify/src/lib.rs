//! The blkverify driver's engine: a filter that makes every read and write on two children, a *test* image and a *raw* copy of it, and compares what comes of them.
//!
//! A difference in the data that was read, or in what the children answered, fails the request and is told with its place. What to do about that, and whether
//! it is the end, is for whoever is told.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    AlignedBuf, Errno, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoErrorKind, IoResult, Limits,
    Preallocation, RequestFlags, StatusExtent, TOLD,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// The error of a request on which the children do not agree.
pub const DISAGREE: IoError = IoError::new(Errno::EIO, IoErrorKind::BadImage);

/// What the children do not agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    /// The data: the first byte that differs is at this offset of the node.
    Contents(u64),
    /// The result: what the test image answered, and what the raw copy.
    Results(IoResult<()>, IoResult<()>),
}

/// A request on which the children do not agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Whether it was a write.
    pub is_write: bool,
    /// Where it began, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// What differs.
    pub difference: Difference,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { is_write, offset, len, difference } = self;
        let what = if *is_write { "write" } else { "read" };
        write!(f, "blkverify: {what} offset={offset} bytes={len} ")?;
        let number = |result: &IoResult<()>| result.map_or_else(|error| -error.errno().raw(), |()| 0);
        match difference {
            Difference::Contents(at) => write!(f, "contents mismatch at offset {at}"),
            Difference::Results(test, raw) => write!(f, "return value mismatch {} != {}", number(test), number(raw)),
        }
    }
}

type Report = Arc<dyn Fn(Mismatch) + Send + Sync>;

struct Shared {
    test: Edge,
    raw: Edge,
    limits: RwLock<Limits>,
    report: Mutex<Option<Report>>,
    /// Held together by writes, and alone by reads that have to know what no write is changing.
    writing: tokio::sync::RwLock<()>,
}

/// What both children have answered to a read.
struct Both {
    answers: (IoResult<()>, IoResult<()>),
    test: AlignedBuf,
    raw: AlignedBuf,
}

impl Both {
    /// The first byte that differs, of those that were read.
    fn difference(&self) -> Option<usize> {
        let have = self.answers == (Ok(()), Ok(()));
        have.then(|| self.test.iter().zip(self.raw.iter()).position(|(test, raw)| test != raw)).flatten()
    }
}

impl Shared {
    fn mismatch(&self, req: &Req, mismatch: Mismatch) -> IoError {
        tracing::error!(target: TOLD, node = req.node_name(), "{mismatch}");
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(report) = report {
            report(mismatch);
        }
        DISAGREE
    }

    /// The result of both, or that they do not agree.
    fn agree(
        &self,
        req: &Req,
        (is_write, range): (bool, GuestRange),
        (test, raw): (IoResult<()>, IoResult<()>),
    ) -> IoResult<()> {
        let errno = |result: IoResult<()>| result.err().map(IoError::errno);
        if errno(test) == errno(raw) {
            return test;
        }
        let difference = Difference::Results(test, raw);
        let (offset, len) = (range.offset().0, range.len());
        Err(self.mismatch(req, Mismatch { is_write, offset, len, difference }))
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn buffer(&self, len: usize) -> AlignedBuf {
        AlignedBuf::zeroed(len, self.limits().memory_alignment.max(1) as usize)
    }

    async fn read_both(&self, req: &Req, range: GuestRange) -> Both {
        let (offset, len) = (range.offset().0, range.len() as usize);
        let (test, raw) = (self.buffer(len).into_io(), self.buffer(len).into_io());
        let answers = tokio::join!(self.test.read(req, HostOffset(offset), &test), self.read_raw(req, offset, &raw));
        Both { answers, test: owned(test), raw: owned(raw) }
    }

    /// Fill `buf` from the raw copy, which may be shorter: zeroes follow.
    async fn read_raw(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let there = self.raw.refresh_length(req).await?.saturating_sub(offset).min(buf.len() as u64) as usize;
        if there == 0 { Ok(()) } else { self.raw.read(req, HostOffset(offset), &buf.slice(0, there)).await }
    }
}

/// What requests on both children may be. Their blocks are their own business: each of them pads what it is given, so that both are given what the node was.
fn limits_over(req: &Req, test: &Edge, raw: &Edge) -> IoResult<Limits> {
    Ok(Limits { request_alignment: 1, ..test.limits(req)?.and(raw.limits(req)?) })
}

/// The engine.
pub struct Blkverify(Arc<Shared>);

/// The engine's control half: tells of differences.
#[derive(Clone)]
pub struct BlkverifyControl(Arc<Shared>);

impl Blkverify {
    /// A filter that shows `test`, and compares it with `raw`. `req` is a token on the node that owns the edges.
    ///
    /// # Errors
    /// [`IoError::NO_MEDIUM`] when there is no child.
    pub fn open(req: &Req, test: Edge, raw: Edge) -> IoResult<(Self, BlkverifyControl)> {
        let limits = RwLock::new(limits_over(req, &test, &raw)?);
        let shared =
            Arc::new(Shared { test, raw, limits, report: Mutex::default(), writing: tokio::sync::RwLock::default() });
        Ok((Self(shared.clone()), BlkverifyControl(shared)))
    }
}

impl BlkverifyControl {
    /// Call `report` with each difference from now on, on the thread of the request, before that fails.
    pub fn report_to(&self, report: impl Fn(Mismatch) + Send + Sync + 'static) {
        *self.0.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(report));
    }
}

#[async_trait]
impl Driver for Blkverify {
    fn format_name(&self) -> &'static str {
        "blkverify"
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::WRITE_UNCHANGED
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0.raw)
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        // Every request is made twice.
        Mapping::Slow
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.test.refresh_length(req).await
    }

    async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        self.0.test.allocated_size(req).await
    }

    /// What is compared is what the caller gets: his memory may change under us. Children that differ may do so because a write has reached one of them and not
    /// yet the other: then they are asked once more while there are no writes, and that counts.
    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        let mut both = self.0.read_both(req, range).await;
        let _alone = match both.difference() {
            None => None,
            Some(_) => {
                let alone = self.0.writing.write().await;
                both = self.0.read_both(req, range).await;
                Some(alone)
            }
        };
        self.0.agree(req, (false, range), both.answers)?;
        if let Some(at) = both.difference() {
            let difference = Difference::Contents(offset.0 + at as u64);
            let mismatch = Mismatch { is_write: false, offset: offset.0, len: range.len(), difference };
            return Err(self.0.mismatch(req, mismatch));
        }
        buf.copy_from_slice(0, &both.test);
        Ok(())
    }

    /// Both are given the same bytes, also when the caller changes them meanwhile.
    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let range = GuestRange::new(offset.0, buf.len() as u64)?;
        let _together = self.0.writing.read().await;
        let copy = self.0.buffer(buf.len()).into_io();
        copy.copy_from(buf);
        let at = HostOffset(offset.0);
        let answers = tokio::join!(self.0.test.write(req, at, &copy, flags), self.0.raw.write(req, at, &copy, flags));
        self.0.agree(req, (true, range), answers)
    }

    /// The test image alone: the copy is only looked at.
    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.test.flush(req).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        let limits = limits_over(req, &self.0.test, &self.0.raw)?;
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    /// What the copy says, in the words of data unless the test image reads as zeroes, too.
    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let there = self.0.raw.refresh_length(req).await?.saturating_sub(range.offset().0).min(range.len());
        if there == 0 {
            return Ok(StatusExtent::data(range.len()));
        }
        let raw = self.0.raw.block_status(req, HostOffset(range.offset().0), there).await?;
        if !raw.is_zero() {
            return Ok(raw);
        }
        let test = self.0.test.block_status(req, HostOffset(range.offset().0), raw.len).await?;
        Ok(if test.is_zero() { raw.truncated(test.len) } else { StatusExtent::data(test.len) })
    }

    /// Zeroes are written to both; whether bytes that nobody has written are zero only both know.
    fn has_zero_init(&self, req: &Req) -> bool {
        self.0.test.has_zero_init(req) && self.0.raw.has_zero_init(req)
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.0.test.truncate(req, len, preallocation).await?;
        self.0.raw.truncate(req, len, preallocation).await
    }
}

/// The bytes of a buffer of our own.
fn owned(buf: IoBuf) -> AlignedBuf {
    buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(1))
}

impl fmt::Debug for Blkverify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blkverify({:?}, {:?})", self.0.test, self.0.raw)
    }
}

impl fmt::Debug for BlkverifyControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BlkverifyControl")
    }
}
