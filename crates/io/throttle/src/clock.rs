//! What time it is, and waiting until it is later: the host's clock, or one that a test sets.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// A clock that a group goes by.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// Since when its nanoseconds count.
    Host(Instant),
    Manual(ManualClock),
}

impl Default for Clock {
    /// The host's. Who waits by it does so on a thread with a runtime of tokio, whose timers are good to a millisecond: rates are kept over many requests, for who came too
    /// late finds a bucket that is the emptier.
    fn default() -> Self {
        Self(Kind::Host(Instant::now()))
    }
}

impl Clock {
    /// The time in nanoseconds.
    pub(crate) fn now_ns(&self) -> u64 {
        match &self.0 {
            Kind::Host(base) => u64::try_from(base.elapsed().as_nanos()).unwrap_or(u64::MAX),
            Kind::Manual(manual) => manual.state().now_ns,
        }
    }

    /// To wait until `at_ns`.
    pub(crate) fn sleep_until(&self, at_ns: u64) -> Sleep {
        match &self.0 {
            Kind::Host(base) => {
                let at = *base + Duration::from_nanos(at_ns);
                Sleep(Sleeping::Host(Box::pin(tokio::time::sleep_until(at.into()))))
            }
            Kind::Manual(manual) => Sleep(Sleeping::Manual(manual.sleeper(at_ns))),
        }
    }
}

/// A clock that stands still until it is told otherwise: for tests.
#[derive(Clone, Default)]
pub struct ManualClock(Arc<Mutex<Manual>>);

#[derive(Default)]
struct Manual {
    now_ns: u64,
    sleepers: BTreeMap<(u64, u64), Waker>,
    count: u64,
}

impl From<ManualClock> for Clock {
    fn from(manual: ManualClock) -> Self {
        Self(Kind::Manual(manual))
    }
}

impl ManualClock {
    /// A clock at zero.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, Manual> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since it was made.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.state().now_ns)
    }

    /// How long it is until somebody's time comes; `None` when nobody waits.
    pub fn next(&self) -> Option<Duration> {
        let state = self.state();
        let (at_ns, _) = *state.sleepers.keys().next()?;
        Some(Duration::from_nanos(at_ns.saturating_sub(state.now_ns)))
    }

    /// It is `by` later. Those whose time has come are woken.
    pub fn advance(&self, by: Duration) {
        let due = {
            let mut state = self.state();
            state.now_ns = state.now_ns.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
            let later = match state.now_ns.checked_add(1) {
                Some(next_ns) => state.sleepers.split_off(&(next_ns, 0)),
                None => BTreeMap::new(),
            };
            std::mem::replace(&mut state.sleepers, later)
        };
        due.into_values().for_each(Waker::wake);
    }

    fn sleeper(&self, at_ns: u64) -> Sleeper {
        let mut state = self.state();
        state.count += 1;
        Sleeper { clock: self.clone(), key: (at_ns, state.count) }
    }
}

impl fmt::Debug for ManualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        write!(f, "ManualClock({} ns, {} sleep)", state.now_ns, state.sleepers.len())
    }
}

/// Somebody's wait for a moment.
pub(crate) struct Sleep(Sleeping);

enum Sleeping {
    Host(Pin<Box<tokio::time::Sleep>>),
    Manual(Sleeper),
}

struct Sleeper {
    clock: ManualClock,
    key: (u64, u64),
}

impl Sleep {
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Sleeping::Host(sleep) => sleep.as_mut().poll(cx),
            Sleeping::Manual(sleeper) => sleeper.poll(cx.waker().clone()),
        }
    }
}

impl Sleeper {
    fn poll(&self, waker: Waker) -> Poll<()> {
        let mut state = self.clock.state();
        if state.now_ns >= self.key.0 {
            return Poll::Ready(());
        }
        let old = state.sleepers.insert(self.key, waker);
        drop(state);
        // A waker may be all that holds a task, and what it holds.
        drop(old);
        Poll::Pending
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let old = self.clock.state().sleepers.remove(&self.key);
        drop(old);
    }
}
