//! Descriptors to wait for: doorbells, a timer, and the epoll that waits. Nothing of Cairn's is here.

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// An eventfd: whoever has it rings, one thread listens.
pub(crate) struct Doorbell(OwnedFd);

impl Doorbell {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(crate) fn ring(&self) {
        // A counter that is full is a bell that rings.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// How often it was rung since the last time.
    pub(crate) fn clear(&self) -> std::io::Result<u64> {
        read_counter(&self.0)
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn read_counter(fd: &OwnedFd) -> std::io::Result<u64> {
    let mut count = [0; 8];
    match rustix::io::read(fd, &mut count) {
        Ok(_) => Ok(u64::from_ne_bytes(count)),
        Err(rustix::io::Errno::AGAIN) => Ok(0),
        Err(error) => Err(error.into()),
    }
}

/// A descriptor that is readable once every `period`.
pub(crate) fn ticker(period: Duration) -> std::io::Result<OwnedFd> {
    let fd = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
    let period = Timespec { tv_sec: period.as_secs() as i64, tv_nsec: period.subsec_nanos().into() };
    let spec = Itimerspec { it_interval: period, it_value: period };
    rustix::time::timerfd_settime(&fd, TimerfdTimerFlags::empty(), &spec)?;
    Ok(fd)
}

/// How often a ticker's period has passed since the last time.
pub(crate) fn expirations(ticker: &OwnedFd) -> std::io::Result<u64> {
    read_counter(ticker)
}

/// An epoll descriptor, level-triggered.
pub(crate) struct Poller(OwnedFd);

impl Poller {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: u64) -> std::io::Result<()> {
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Sleep until a descriptor is readable; the tokens of those that are.
    pub(crate) fn wait(&self) -> std::io::Result<Vec<u64>> {
        let mut events = Vec::with_capacity(8);
        match epoll::wait(&self.0, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(events.iter().map(|event| event.data.u64()).collect()),
            Err(error) => Err(error.into()),
        }
    }
}
