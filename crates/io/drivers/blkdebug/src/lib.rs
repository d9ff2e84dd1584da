//! The blkdebug driver's engine: a filter that makes requests fail, stops them, and has the limits that it is told, to try out what others
//! do then.
//!
//! Those above tell it of *events* on their way ([`DebugEvent`]). Rules say what an event does: choose the error that
//! requests get, change the state in which other rules hold, or stop whoever told of it at a breakpoint. How the rules are written is
//! not known here.

#![forbid(unsafe_code)]

mod limits;
mod rules;

pub use limits::{BlkdebugLimits, LimitsError};
pub use rules::{InjectError, IoKind, Rule, SetState};

use async_trait::async_trait;
use block_common::{
    DebugEvent, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Preallocation, RequestFlags,
    StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Req, yield_now};
use rules::Rules;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Poll, Waker};

/// One who is stopped at a breakpoint.
struct Stopped {
    number: u64,
    tag: Vec<u8>,
    goes_on: bool,
    waker: Option<Waker>,
}

struct State {
    rules: Rules,
    breakpoints: Vec<(DebugEvent, Vec<u8>)>,
    stopped: VecDeque<Stopped>,
    stops: u64,
    /// Those who wait for somebody to be stopped.
    watchers: Vec<Waker>,
    /// What happened at breakpoints, for whoever wants to print it.
    report: Option<Report>,
}

type Report = Arc<dyn Fn(Stop<'_>) + Send + Sync>;

/// Something that happened at a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop<'a> {
    /// A request was stopped.
    Suspended(&'a [u8]),
    /// It goes on.
    Resuming(&'a [u8]),
}

struct Shared {
    image: Edge,
    limits: BlkdebugLimits,
    effective: RwLock<Limits>,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the rules have against a request.
    async fn check(&self, kind: IoKind, offset: u64, len: u64) -> IoResult<()> {
        let injected = self.state().rules.check(kind, offset, len);
        let Some(injected) = injected else { return Ok(()) };
        if !injected.immediately {
            // An error comes back later than the request was made, as a host's does.
            yield_now().await;
        }
        if injected.errno == 0 { Ok(()) } else { Err(IoError::host(injected.errno)) }
    }

    /// Stop at breakpoints, the newest first, until somebody has let go on from each.
    async fn stop(&self, tags: Vec<Vec<u8>>) {
        let (number, report, watchers) = {
            let mut state = self.state();
            state.stops += 1;
            let number = state.stops;
            let stopped = |tag: &Vec<u8>| Stopped { number, tag: tag.clone(), goes_on: false, waker: None };
            let places: Vec<_> = tags.iter().map(stopped).collect();
            state.stopped.extend(places);
            (number, state.report.clone(), std::mem::take(&mut state.watchers))
        };
        let _place = Place { shared: self, number };
        if let Some(report) = &report {
            tags.iter().for_each(|tag| report(Stop::Suspended(tag)));
        }
        watchers.into_iter().for_each(Waker::wake);
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let mut state = self.state();
            let mut mine = state.stopped.iter_mut().filter(|one| one.number == number);
            let Some(one) = mine.find(|one| !one.goes_on) else { return Poll::Ready(()) };
            let old = one.waker.replace(waker);
            drop(state);
            drop(old);
            Poll::Pending
        })
        .await;
    }
}

/// Somebody's place among the stopped, which goes with him.
struct Place<'a> {
    shared: &'a Shared,
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.state().stopped.retain(|one| one.number != self.number);
    }
}

/// The engine.
pub struct Blkdebug(Arc<Shared>);

/// The engine's control half: breakpoints.
#[derive(Clone)]
pub struct BlkdebugControl(Arc<Shared>);

impl Blkdebug {
    /// An engine above `image`, whose own limits are `below`, and its control.
    ///
    /// # Errors
    /// [`LimitsError`] when the wanted limits cannot be had.
    pub fn new(
        image: Edge,
        below: Limits,
        limits: BlkdebugLimits,
        rules: Vec<Rule>,
    ) -> Result<(Self, BlkdebugControl), LimitsError> {
        let effective = RwLock::new(limits.over(below)?);
        let state = State {
            rules: Rules::new(rules),
            breakpoints: Vec::new(),
            stopped: VecDeque::new(),
            stops: 0,
            watchers: Vec::new(),
            report: None,
        };
        let shared = Arc::new(Shared { image, limits, effective, state: Mutex::new(state) });
        Ok((Self(shared.clone()), BlkdebugControl(shared)))
    }
}

impl BlkdebugControl {
    /// Stop whoever tells of `event` next, under the name `tag`.
    #[doc(alias = "bdrv_debug_breakpoint")]
    pub fn set_breakpoint(&self, event: DebugEvent, tag: &[u8]) {
        self.0.state().breakpoints.push((event, tag.to_vec()));
    }

    /// Forget the breakpoints called `tag`, and let those go on that were stopped under that name. `false` when there are no such breakpoints
    /// any more: one that has stopped a request is gone.
    #[doc(alias = "bdrv_debug_remove_breakpoint")]
    pub fn remove_breakpoint(&self, tag: &[u8]) -> bool {
        let mut state = self.0.state();
        let before = state.breakpoints.len();
        state.breakpoints.retain(|(_, other)| other != tag);
        let found = state.breakpoints.len() < before;
        drop(state);
        while self.resume(tag) {}
        found
    }

    /// Let one go on that is stopped under the name `tag`, the first who came. `false` when nobody is.
    #[doc(alias = "bdrv_debug_resume")]
    pub fn resume(&self, tag: &[u8]) -> bool {
        let (waker, report) = {
            let mut state = self.0.state();
            let one = state.stopped.iter_mut().find(|one| one.tag == tag && !one.goes_on);
            let Some(one) = one else { return false };
            one.goes_on = true;
            (one.waker.take(), state.report.clone())
        };
        if let Some(report) = report {
            report(Stop::Resuming(tag));
        }
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// Whether somebody is stopped under the name `tag`.
    #[doc(alias = "bdrv_debug_is_suspended")]
    pub fn is_stopped(&self, tag: &[u8]) -> bool {
        self.0.state().stopped.iter().any(|one| one.tag == tag && !one.goes_on)
    }

    /// Wait until somebody is stopped under the name `tag`. Borrows nothing.
    pub fn stopped(&self, tag: &[u8]) -> impl Future<Output = ()> + Send + use<> {
        let (shared, tag) = (self.0.clone(), tag.to_vec());
        poll_fn(move |cx| {
            let mut state = shared.state();
            if state.stopped.iter().any(|one| one.tag == tag && !one.goes_on) {
                return Poll::Ready(());
            }
            if !state.watchers.iter().any(|watcher| watcher.will_wake(cx.waker())) {
                state.watchers.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Call `report` when somebody is stopped, on his thread, and when he is let go on, on the caller's.
    pub fn report_to(&self, report: impl Fn(Stop<'_>) + Send + Sync + 'static) {
        self.0.state().report = Some(Arc::new(report));
    }
}

#[async_trait]
impl Driver for Blkdebug {
    fn format_name(&self) -> &'static str {
        "blkdebug"
    }

    fn limits(&self) -> Limits {
        *self.0.effective.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA | RequestFlags::WRITE_UNCHANGED | RequestFlags::DONT_CACHE
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0.image)
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        // Every request meets the rules.
        Mapping::Slow
    }

    fn wants_debug_events(&self) -> bool {
        true
    }

    async fn debug_event(&self, _req: &Req, event: DebugEvent) {
        let tags: Vec<_> = {
            let mut state = self.0.state();
            state.rules.happened(event);
            let here = state.breakpoints.extract_if(.., |(of, _)| *of == event);
            here.map(|(_, tag)| tag).collect()
        };
        if !tags.is_empty() {
            self.0.stop(tags.into_iter().rev().collect()).await;
        }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.image.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.check(IoKind::Read, offset.0, buf.len() as u64).await?;
        self.0.image.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.check(IoKind::Write, offset.0, buf.len() as u64).await?;
        self.0.image.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        // A driver with a preference that is not met has no such operation: the core writes zeroes.
        if !self.0.limits.zeroes(range) {
            return Err(IoError::UNSUPPORTED);
        }
        self.0.check(IoKind::WriteZeroes, range.offset().0, range.len()).await?;
        self.0.image.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        if !self.0.limits.discards(range) {
            return Err(IoError::UNSUPPORTED);
        }
        self.0.check(IoKind::Discard, range.offset().0, range.len()).await?;
        self.0.image.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.check(IoKind::Flush, 0, 0).await?;
        self.0.image.flush(req).await
    }

    /// Limits that cannot be had any more stay as they were: a request that the child refuses for them fails.
    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        if let Ok(limits) = self.0.limits.over(self.0.image.limits(req)?) {
            *self.0.effective.write().unwrap_or_else(PoisonError::into_inner) = limits;
        }
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.check(IoKind::BlockStatus, range.offset().0, range.len()).await?;
        self.0.image.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.0.image.truncate(req, len, preallocation).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.0.image.ioctl(req, number, argument).await
    }
}

impl fmt::Debug for Blkdebug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blkdebug({:?})", self.0.limits)
    }
}

impl fmt::Debug for BlkdebugControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        write!(f, "BlkdebugControl({} breakpoints, {} stopped)", state.breakpoints.len(), state.stopped.len())
    }
}
