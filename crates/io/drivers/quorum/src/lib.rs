//! The quorum driver's engine: every write goes to all children, and reads are put to the vote.
//!
//! What fewer children than the *threshold* agree on is an error. Children that failed or were outvoted are told of, and may be given what the others have. Versions of
//! data are compared byte by byte; what the children are, and who may add or remove one, is not known here.

#![forbid(unsafe_code)]

mod vote;

use async_trait::async_trait;
use block_common::{
    AlignedBuf, Errno, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoErrorKind, IoResult, Limits,
    RequestFlags, StatusExtent, TOLD, qapi_enum,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::Poll;
use vote::Versions;

/// The error of a read on which too few children agree.
pub const NO_QUORUM: IoError = IoError::new(Errno::EIO, IoErrorKind::BadImage);

qapi_enum! {
    /// Who answers a read. QAPI `QuorumReadPattern`.
    #[derive(Default)]
    pub enum ReadPattern: "read pattern" {
        /// All children, and then they vote.
        #[default]
        Quorum = "quorum",
        /// The first child that has not failed.
        Fifo = "fifo",
    }
}

qapi_enum! {
    /// What a child was asked for. QAPI `QuorumOpType`.
    pub enum QuorumOp: "quorum operation" {
        /// A read.
        Read = "read",
        /// A write, or a zero write.
        Write = "write",
        /// A flush.
        Flush = "flush",
    }
}

/// How votes are counted, and what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuorumOptions {
    /// How many children have to agree; at least one.
    pub threshold: usize,
    /// Who answers reads.
    pub pattern: ReadPattern,
    /// There are two children that have to agree, and where they do not is to be told.
    pub verify: bool,
    /// Give the children that are outvoted in a read what the others have.
    pub rewrite: bool,
}

/// Something that happened, for whoever watches over the children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// A child failed, or was outvoted.
    Bad {
        /// The child's node.
        node: String,
        /// What it was asked for.
        op: QuorumOp,
        /// How it failed; nothing for one that was outvoted.
        error: Option<IoError>,
        /// Where the request began, in bytes.
        offset: u64,
        /// How long it was, in bytes.
        len: u64,
    },
    /// Too few agree.
    Failure {
        /// Where the request began, in bytes.
        offset: u64,
        /// How long it was, in bytes.
        len: u64,
    },
    /// The two children that have to agree do not.
    Mismatch(String),
}

type Report = Arc<dyn Fn(Told) + Send + Sync>;
type Children = Arc<Vec<Arc<Edge>>>;

struct Shared {
    /// Each request has those that were there when it began.
    children: RwLock<Children>,
    options: QuorumOptions,
    limits: RwLock<Limits>,
    report: Mutex<Option<Report>>,
    /// Held together by writes, and alone by reads that have to know what no write is changing.
    rewriting: tokio::sync::RwLock<()>,
}

/// What children have answered, in their order.
type Answers<T> = Vec<IoResult<T>>;

/// Where a request is, as it is told.
type Place = (QuorumOp, u64, u64);

impl Shared {
    fn children(&self) -> Children {
        self.children.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tell(&self, told: Told) {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(report) = report {
            report(told);
        }
    }

    fn tell_bad(&self, req: &Req, child: &Edge, (op, offset, len): Place, error: Option<IoError>) {
        let node = child.node_name(req).unwrap_or_default();
        tracing::debug!(node, %op, offset, len, ?error, "a child of a quorum is bad");
        self.tell(Told::Bad { node, op, error, offset, len });
    }

    /// Tell of those that failed; the error that most have if too few did not.
    fn enough<T>(&self, req: &Req, children: &[Arc<Edge>], place: Place, answers: &Answers<T>) -> IoResult<()> {
        let mut good = 0;
        for (child, answer) in children.iter().zip(answers) {
            match answer {
                Ok(_) => good += 1,
                Err(error) => self.tell_bad(req, child, place, Some(*error)),
            }
        }
        if good >= self.options.threshold {
            return Ok(());
        }
        let (op, offset, len) = place;
        if op != QuorumOp::Flush {
            self.tell(Told::Failure { offset, len });
        }
        let errors = answers.iter().enumerate().filter_map(|(at, answer)| Some((at, *answer.as_ref().err()?)));
        let versions = Versions::count(errors, |one, other| one.errno() == other.errno());
        Err(versions.winner().map_or(NO_QUORUM, |(error, _)| *error))
    }

    /// Have all children do something.
    async fn all<'a, T: 'a, F: Future<Output = IoResult<T>> + Send + 'a>(
        children: &'a [Arc<Edge>],
        each: impl Fn(&'a Edge) -> F,
    ) -> Answers<T> {
        join_all(children.iter().map(|child| each(child))).await
    }

    /// What each child has from `offset` on, in buffers of our own.
    async fn read_all(&self, req: &Req, children: &[Arc<Edge>], offset: u64, len: usize) -> Answers<AlignedBuf> {
        let alignment = self.limits().memory_alignment.max(1) as usize;
        Self::all(children, |child| async move {
            let buf = AlignedBuf::zeroed(len, alignment).into_io();
            child.read(req, HostOffset(offset), &buf).await?;
            Ok(buf.into_aligned().unwrap_or_else(|buf| buf.to_aligned(1)))
        })
        .await
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Children that differ may do so because a write has reached one and not yet the other: then they are asked once more while there are no writes, and that counts.
    async fn read_voted(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let (children, place) = (self.children(), (QuorumOp::Read, offset, buf.len() as u64));
        let mut answers = self.read_all(req, &children, offset, buf.len()).await;
        let alone = match count(&answers).is_unanimous() {
            true => None,
            false => Some(self.rewriting.write().await),
        };
        if alone.is_some() {
            answers = self.read_all(req, &children, offset, buf.len()).await;
        }
        self.enough(req, &children, place, &answers)?;
        let versions = count(&answers);
        let Some((winner, voters)) = versions.winner() else { return Err(NO_QUORUM) };
        if !versions.is_unanimous() {
            if self.options.verify {
                return Err(self.mismatch(req, offset, &answers));
            }
            if voters.len() < self.options.threshold {
                self.tell(Told::Failure { offset, len: place.2 });
                return Err(NO_QUORUM);
            }
            let losers: Vec<_> = versions.losers().into_iter().filter_map(|at| children.get(at)).collect();
            losers.iter().for_each(|child| self.tell_bad(req, child, place, None));
            if self.options.rewrite && alone.is_some() {
                self.rewrite(req, &losers, offset, winner).await;
            }
        }
        buf.copy_from_slice(0, winner);
        Ok(())
    }

    fn mismatch(&self, req: &Req, offset: u64, answers: &Answers<AlignedBuf>) -> IoError {
        let mut have = answers.iter().flatten();
        let (first, second) = (have.next(), have.next());
        let both = first.into_iter().flat_map(|buf| buf.iter()).zip(second.into_iter().flat_map(|buf| buf.iter()));
        let at = offset + both.take_while(|(one, other)| one == other).count() as u64;
        let len = first.map_or(0, |buf| buf.len());
        let message = format!("quorum: offset={offset} bytes={len} contents mismatch at offset {at}");
        tracing::error!(target: TOLD, node = req.node_name(), "{message}");
        self.tell(Told::Mismatch(message));
        NO_QUORUM
    }

    /// Give the outvoted what the others have, with no write under way. Who cannot be written to stays bad.
    async fn rewrite(&self, req: &Req, losers: &[&Arc<Edge>], offset: u64, winner: &AlignedBuf) {
        let good = AlignedBuf::zeroed(winner.len(), self.limits().memory_alignment.max(1) as usize).into_io();
        good.copy_from_slice(0, winner);
        for child in losers {
            if let Err(error) = child.write(req, HostOffset(offset), &good, RequestFlags::empty()).await {
                tracing::debug!(node = ?child.node_name(req), %error, "a child of a quorum stays bad");
            }
        }
    }

    async fn read_first(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let mut last = IoError::NO_MEDIUM;
        for child in self.children().iter() {
            match child.read(req, HostOffset(offset), buf).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.tell_bad(req, child, (QuorumOp::Read, offset, buf.len() as u64), Some(error));
                    last = error;
                }
            }
        }
        Err(last)
    }
}

/// Who has which data. Those that failed have none.
fn count(answers: &Answers<AlignedBuf>) -> Versions<&AlignedBuf> {
    let votes = answers.iter().enumerate().filter_map(|(at, answer)| Some((at, answer.as_ref().ok()?)));
    Versions::count(votes, |one, other| one[..] == other[..])
}

/// Await all of `futures`, beside each other; their outputs in the same order.
async fn join_all<T, F: Future<Output = T>>(futures: impl Iterator<Item = F>) -> Vec<T> {
    let mut waiting: Vec<(Pin<Box<F>>, Option<T>)> = futures.map(|future| (Box::pin(future), None)).collect();
    poll_fn(|cx| {
        let mut all = true;
        for (future, output) in waiting.iter_mut().filter(|(_, output)| output.is_none()) {
            match future.as_mut().poll(cx) {
                Poll::Ready(value) => *output = Some(value),
                Poll::Pending => all = false,
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    waiting.into_iter().filter_map(|(_, output)| output).collect()
}

/// What requests on all children may be.
fn limits_over(req: &Req, children: &[Arc<Edge>]) -> IoResult<Limits> {
    children.iter().try_fold(Limits::NONE, |limits, child| Ok(limits.and(child.limits(req)?)))
}

/// The length that all children have.
async fn common_length(req: &Req, children: &[Arc<Edge>]) -> IoResult<u64> {
    let mut common = None;
    for child in children {
        let length = child.refresh_length(req).await?;
        if common.is_some_and(|common| common != length) {
            return Err(IoError::host(Errno::EIO.raw()));
        }
        common = Some(length);
    }
    common.ok_or(IoError::NO_MEDIUM)
}

/// The engine.
pub struct Quorum(Arc<Shared>);

/// The engine's control half: tells of children that are bad.
#[derive(Clone)]
pub struct QuorumControl(Arc<Shared>);

impl Quorum {
    /// A quorum of `children`, of which there is at least one. `req` is a token on the node that owns the edges.
    ///
    /// # Errors
    /// What a child answered; EIO when they are not equally long.
    pub async fn open(req: &Req, children: Vec<Edge>, options: QuorumOptions) -> IoResult<(Self, QuorumControl)> {
        let children: Vec<_> = children.into_iter().map(Arc::new).collect();
        common_length(req, &children).await?;
        let limits = RwLock::new(limits_over(req, &children)?);
        let shared = Arc::new(Shared {
            children: RwLock::new(Arc::new(children)),
            options,
            limits,
            report: Mutex::default(),
            rewriting: tokio::sync::RwLock::default(),
        });
        Ok((Self(shared.clone()), QuorumControl(shared)))
    }
}

impl QuorumControl {
    /// Call `report` with what happens from now on, on the thread of the request.
    pub fn report_to(&self, report: impl Fn(Told) + Send + Sync + 'static) {
        *self.0.report.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(report));
    }

    /// How many children there are.
    pub fn children(&self) -> usize {
        self.0.children().len()
    }

    /// One more child, after the others, that is as long as these. Nothing is in flight; limits are looked at afterwards ([`Driver::refresh_limits`]).
    pub fn add(&self, child: Edge) {
        let mut children = self.0.children.write().unwrap_or_else(PoisonError::into_inner);
        let more = children.iter().cloned().chain([Arc::new(child)]).collect();
        *children = Arc::new(more);
    }

    /// Forget the child at place `at` in their order. Nothing is in flight.
    pub fn remove(&self, at: usize) {
        let mut children = self.0.children.write().unwrap_or_else(PoisonError::into_inner);
        let fewer =
            children.iter().enumerate().filter(|(place, _)| *place != at).map(|(_, child)| child.clone()).collect();
        *children = Arc::new(fewer);
    }

    /// The options.
    pub fn options(&self) -> QuorumOptions {
        self.0.options
    }
}

#[async_trait]
impl Driver for Quorum {
    fn format_name(&self) -> &'static str {
        "quorum"
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::WRITE_UNCHANGED
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        // Every request is made several times, or may have to be.
        Mapping::Slow
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        common_length(req, &self.0.children()).await
    }

    async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        let mut sum = 0u64;
        for child in self.0.children().iter() {
            sum = sum.saturating_add(child.allocated_size(req).await?);
        }
        Ok(sum)
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        match self.0.options.pattern {
            ReadPattern::Quorum => self.0.read_voted(req, offset.0, buf).await,
            ReadPattern::Fifo => self.0.read_first(req, offset.0, buf).await,
        }
    }

    /// All are given the same bytes, also when the caller changes them meanwhile.
    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let _together = self.0.rewriting.read().await;
        let copy = AlignedBuf::zeroed(buf.len(), self.0.limits().memory_alignment.max(1) as usize).into_io();
        copy.copy_from(buf);
        let (children, copy) = (self.0.children(), &copy);
        let answers = Shared::all(&children, |child| child.write(req, HostOffset(offset.0), copy, flags)).await;
        self.0.enough(req, &children, (QuorumOp::Write, offset.0, buf.len() as u64), &answers)
    }

    /// What one child cannot do without writing is written there.
    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        let _together = self.0.rewriting.read().await;
        let (children, offset) = (self.0.children(), HostOffset(range.offset().0));
        let mut answers = Shared::all(&children, |child| child.zero(req, offset, range.len(), flags)).await;
        if answers.iter().all(|answer| *answer == Err(IoError::UNSUPPORTED)) {
            return Err(IoError::UNSUPPORTED);
        }
        // What some of them have done the others do as they can.
        let flags = flags.difference(RequestFlags::NO_FALLBACK);
        for (child, answer) in children.iter().zip(&mut answers) {
            if *answer == Err(IoError::UNSUPPORTED) {
                *answer = child.zero(req, offset, range.len(), flags).await;
            }
        }
        self.0.enough(req, &children, (QuorumOp::Write, offset.0, range.len()), &answers)
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        let children = self.0.children();
        let answers = Shared::all(&children, |child| child.flush(req)).await;
        self.0.enough(req, &children, (QuorumOp::Flush, 0, 0), &answers)
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        let limits = limits_over(req, &self.0.children())?;
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    /// Zeroes where every child has some (rule stat-1); data elsewhere, also where a child does not know.
    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let (children, offset) = (self.0.children(), HostOffset(range.offset().0));
        let answers = Shared::all(&children, |child| child.chain_status(req, offset, range.len())).await;
        let mut extent = StatusExtent::zero(range.len());
        for answer in answers {
            match answer {
                Ok(status) => {
                    let len = status.extent.len.min(extent.len).max(1);
                    let zero = extent.is_zero() && (status.extent.is_zero() || status.depth.is_none());
                    extent = if zero { StatusExtent::zero(len) } else { StatusExtent::data(len) };
                }
                Err(_) => extent = StatusExtent::data(extent.len),
            }
        }
        Ok(extent)
    }

    fn has_zero_init(&self, req: &Req) -> bool {
        self.0.children().iter().all(|child| child.has_zero_init(req))
    }
}

impl fmt::Debug for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Quorum({:?}, {:?})", self.0.options, self.0.children())
    }
}

impl fmt::Debug for QuorumControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuorumControl({:?})", self.0.options)
    }
}
