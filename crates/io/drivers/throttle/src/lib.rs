//! The throttle driver's engine: a filter whose requests wait until the group that it is a member of lets them go.
//!
//! Reads, writes, zero writes and discards are limited, as the field does it; flushes, block status and lengths are not. Without limits the filter is not there: requests are
//! mapped through it. What limits mean, and whose turn it is, is `block-throttle`'s business.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, LENGTH_MAX, Limits, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Quiesced, Req};
use block_throttle::{Direction, ThrottleGroup, ThrottleMember};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

struct Shared {
    file: Edge,
    limits: RwLock<Limits>,
    member: ThrottleMember,
}

/// The engine.
pub struct Throttle(Arc<Shared>);

/// The engine's control half: exchanges the group.
pub struct ThrottleControl(Arc<Shared>);

impl Throttle {
    /// The name of the driver.
    pub const NAME: &'static str = "throttle";

    /// A filter over `file`, whose limits are `limits`, that is a member of `group`; and its control.
    pub fn new(file: Edge, limits: Limits, group: &ThrottleGroup) -> (Self, ThrottleControl) {
        let shared = Arc::new(Shared { file, limits: RwLock::new(limits), member: group.member() });
        (Self(shared.clone()), ThrottleControl(shared))
    }

    /// Wait until a request may go.
    async fn turn(&self, direction: Direction, bytes: u64) {
        if self.0.member.is_limited() {
            self.0.member.admit(direction, bytes).await;
        }
    }
}

impl ThrottleControl {
    /// The group.
    pub fn group(&self) -> ThrottleGroup {
        self.0.member.group()
    }

    /// Be a member of `group` from now on.
    pub fn join(&mut self, group: &ThrottleGroup, _proof: &Quiesced<'_>) {
        self.0.member.join(group);
    }
}

#[async_trait]
impl Driver for Throttle {
    fn format_name(&self) -> &'static str {
        Self::NAME
    }

    fn limits(&self) -> Limits {
        *self.0.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.0.file)
    }

    #[inline]
    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        if self.0.member.is_limited() {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        Mapping::Child { edge: &self.0.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.0.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.turn(Direction::Read, buf.len() as u64).await;
        self.0.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.turn(Direction::Write, buf.len() as u64).await;
        self.0.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.turn(Direction::Write, range.len()).await;
        self.0.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.turn(Direction::Write, range.len()).await;
        self.0.file.discard(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.file.flush(req).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        *self.0.limits.write().unwrap_or_else(PoisonError::into_inner) = self.0.file.limits(req)?;
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        self.0.file.block_statuses(req, HostOffset(range.offset().0), range.len(), max).await
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.0.file.truncate(req, len, preallocation).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.0.file.ioctl(req, number, argument).await
    }

    fn hurry(&self, on: bool) {
        self.0.member.hurry(on);
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Throttle({:?})", self.0.member)
    }
}

impl fmt::Debug for ThrottleControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ThrottleControl({:?})", self.0.member)
    }
}
