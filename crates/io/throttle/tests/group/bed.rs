//! An executor of its own, a clock that it moves, and requests that tell when they went.

use block_throttle::{
    Clock, Direction, Limit, LimitKind, LimitSettings, ManualClock, ThrottleGroup, ThrottleLimits, ThrottleMember,
};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

pub(crate) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Limits from rate, burst and length of each.
pub(crate) fn limits(of: &[(LimitKind, u64, u64, u64)], iops_size: u64) -> ThrottleLimits {
    let mut settings = LimitSettings::default();
    settings.iops_size = iops_size;
    for &(kind, rate, max, max_length) in of {
        settings[kind] = Limit { rate, max, max_length };
    }
    ThrottleLimits::new(settings).expect("they go together")
}

/// The clock, and whether those whose time comes hear of it.
#[derive(Default)]
pub(crate) struct BedClock(ManualClock);

impl BedClock {
    pub(crate) fn clock(&self) -> Clock {
        self.0.clone().into()
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.0.advance(by);
    }

    /// As if the wake-ups took long: what is woken is polled at the next `run`.
    pub(crate) fn advance_silently(&self, by: Duration) {
        self.0.advance(by);
    }

    fn now_ms(&self) -> u64 {
        self.0.now().as_millis() as u64
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

struct Task {
    future: Pin<Box<dyn Future<Output = ()>>>,
    woken: Arc<Woken>,
    name: &'static str,
}

pub(crate) struct Bed {
    pub(crate) clock: BedClock,
    pub(crate) group: ThrottleGroup,
    tasks: BTreeMap<u64, Task>,
    made: u64,
    gone: Vec<(&'static str, u64)>,
    /// How often anybody was polled.
    pub(crate) polls: usize,
}

impl Bed {
    pub(crate) fn new(limits: ThrottleLimits) -> Self {
        let clock = BedClock::default();
        let group = ThrottleGroup::with_clock(limits, clock.clock());
        Self { clock, group, tasks: BTreeMap::new(), made: 0, gone: Vec::new(), polls: 0 }
    }

    pub(crate) fn member(&self) -> Arc<ThrottleMember> {
        Arc::new(self.group.member())
    }

    /// A request comes, and is polled once.
    pub(crate) fn ask(&mut self, name: &str, member: &Arc<ThrottleMember>, direction: Direction, bytes: u64) {
        let member = member.clone();
        let future = Box::pin(async move { member.admit(direction, bytes).await });
        let name = String::from(name).leak();
        self.made += 1;
        self.tasks.insert(self.made, Task { future, woken: Arc::new(Woken(AtomicBool::new(true))), name });
        self.poll(self.made);
    }

    fn poll(&mut self, number: u64) -> bool {
        let Some(task) = self.tasks.get_mut(&number) else { return false };
        if !task.woken.0.swap(false, Ordering::SeqCst) {
            return false;
        }
        self.polls += 1;
        let waker = Waker::from(task.woken.clone());
        let goes = task.future.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        if goes {
            self.gone.push((task.name, self.clock.now_ms()));
            self.tasks.remove(&number);
        }
        goes
    }

    /// Poll whoever was woken until nobody is. How many have gone.
    pub(crate) fn run(&mut self) -> usize {
        let mut gone = 0;
        loop {
            let woken = self.tasks.iter().filter(|(_, task)| task.woken.0.load(Ordering::SeqCst));
            let woken: Vec<_> = woken.map(|(number, _)| *number).collect();
            if woken.is_empty() {
                return gone;
            }
            gone += woken.into_iter().filter(|number| self.poll(*number)).count();
        }
    }

    /// Time passes, and nobody is polled.
    pub(crate) fn pass(&mut self, by: Duration) {
        self.clock.advance(by);
    }

    /// Let time pass from timer to timer until everybody has gone.
    pub(crate) fn run_all(&mut self) {
        self.run();
        while !self.tasks.is_empty() {
            let next = self.clock.0.next().expect("somebody waits, and nobody has a timer");
            self.clock.advance(next);
            self.run();
        }
    }

    /// Who has gone since this was asked last, and when, in milliseconds.
    pub(crate) fn gone(&mut self) -> Vec<(&'static str, u64)> {
        std::mem::take(&mut self.gone)
    }

    pub(crate) fn drop(&mut self, name: &str) {
        self.tasks.retain(|_, task| task.name != name);
    }

    /// Drop one of those who wait. `false` when nobody does.
    pub(crate) fn drop_one(&mut self, at: usize) -> bool {
        let Some(number) = self.tasks.keys().nth(at % self.tasks.len().max(1)).copied() else { return false };
        self.tasks.remove(&number).is_some()
    }

    pub(crate) fn drop_all(&mut self) {
        self.tasks.clear();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.tasks.len()
    }
}

/// A request that waits, whose waker drops another one when it is woken or dropped itself.
pub(crate) struct Wakes {
    first: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What a task's last waker may hold.
struct Holds(Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>);

impl Wake for Holds {
    fn wake(self: Arc<Self>) {
        let held = self.0.lock().expect("no panic").take();
        drop(held);
    }
}

impl Wakes {
    pub(crate) fn new(member: &Arc<ThrottleMember>) -> Self {
        let wait = |waker: &Waker| {
            let member = member.clone();
            let mut future: Pin<Box<dyn Future<Output = ()> + Send>> =
                Box::pin(async move { member.admit(Direction::Read, 1).await });
            assert_eq!(future.as_mut().poll(&mut Context::from_waker(waker)), Poll::Pending);
            future
        };
        // One that is dropped in a waker's wake, one in a waker's drop, and the one that has those wakers.
        let [by_wake, by_drop] = [wait(Waker::noop()), wait(Waker::noop())];
        let dropping = Waker::from(Arc::new(Holds(Mutex::new(Some(by_drop)))));
        let waking = Waker::from(Arc::new(Holds(Mutex::new(Some(by_wake)))));
        let mut first = wait(&dropping);
        drop(dropping);
        assert_eq!(first.as_mut().poll(&mut Context::from_waker(&waking)), Poll::Pending);
        Self { first }
    }
}

impl Drop for Wakes {
    fn drop(&mut self) {
        // As an executor would, before it lets go of the task.
        let _ = self.first.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
}
