//! A member of a group, which asks before each request, and the wait for its turn.
//!
//! A member may change the group, and those of its requests that wait go with it. Its lock comes before a group's, and nobody has the locks of two groups.

use crate::clock::Sleep;
use crate::group::{After, Direction, Entry, Place, Shared, State, ThrottleGroup, Turn};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Somebody who shares a group's limits: a node, a backend. Used from any thread.
///
/// A request asks once: either [`ThrottleMember::try_admit`] said yes, or [`ThrottleMember::admit`] has returned.
pub struct ThrottleMember {
    /// Whether the group has limits: kept by it, for whoever wants to know without a lock.
    limited: Arc<AtomicBool>,
    group: Mutex<Membership>,
}

struct Membership {
    group: ThrottleGroup,
    number: u64,
}

impl ThrottleMember {
    pub(crate) fn of(group: &ThrottleGroup) -> Self {
        let limited = Arc::new(AtomicBool::new(false));
        let (number, _after) = group.0.turn(|state, after| state.join(Entry::new(limited.clone()), after));
        Self { limited, group: Mutex::new(Membership { group: group.clone(), number }) }
    }

    fn membership(&self) -> MutexGuard<'_, Membership> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do something in the group, with the member's number there. Whom it concerns is woken when no lock is held.
    fn turn<T>(&self, act: impl FnOnce(&mut State, u64, &mut After) -> T) -> (T, Arc<Shared>) {
        let at = self.membership();
        let group = at.group.0.clone();
        let (done, after) = group.turn(|state, after| act(state, at.number, after));
        drop(at);
        drop(after);
        (done, group)
    }

    /// The group.
    pub fn group(&self) -> ThrottleGroup {
        self.membership().group.clone()
    }

    /// Whether requests have to ask at all. One load from memory of the member's own.
    #[inline]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    /// Let a request of `bytes` go now, if nobody is before it and the limits allow. `false`: it was not counted, and has to wait.
    pub fn try_admit(&self, direction: Direction, bytes: u64) -> bool {
        if !self.is_limited() {
            return true;
        }
        self.turn(|state, number, after| state.arrive(number, direction, bytes, after)).0
    }

    /// Wait until a request of `bytes` may go. It has been counted when this returns; who drops the future before that has not asked. To be polled whenever it is
    /// woken, as a task of an I/O thread is: others stand behind it.
    ///
    /// # Panics
    /// By the host's clock, when polled outside a runtime of tokio with timers: an I/O thread has one.
    pub fn admit(&self, direction: Direction, bytes: u64) -> impl Future<Output = ()> + Send + '_ {
        Admission { member: self, direction, bytes, place: None, sleep: None }
    }

    /// While `on`, let requests go at once, those that wait first. They count, so that everybody pays for it afterwards. Never waits.
    pub fn hurry(&self, on: bool) {
        self.turn(|state, number, after| state.hurry(number, on, after));
    }

    /// Be a member of `group`, and of no other. Requests that wait do so there, behind others.
    pub fn join(&self, group: &ThrottleGroup) {
        let mut at = self.membership();
        if at.group.same(group) {
            return;
        }
        let (parted, left) = at.group.0.turn(|state, after| state.part(at.number, after));
        let entry = parted.unwrap_or_else(|| Entry::new(self.limited.clone()));
        let (number, joined) = group.0.turn(|state, after| state.join(entry, after));
        let old = std::mem::replace(&mut *at, Membership { group: group.clone(), number });
        drop(at);
        drop((left, joined, old));
    }
}

impl Drop for ThrottleMember {
    /// Nobody waits: whoever did borrowed it.
    fn drop(&mut self) {
        drop(self.turn(|state, number, after| state.part(number, after)));
    }
}

impl fmt::Debug for ThrottleMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.membership();
        write!(f, "ThrottleMember({} of {:?})", at.number, at.group)
    }
}

/// The wait for a turn.
struct Admission<'a> {
    member: &'a ThrottleMember,
    direction: Direction,
    bytes: u64,
    /// Where it is in line, once it is.
    place: Option<Place>,
    /// Its timer, while it is the head.
    sleep: Option<(u64, Sleep)>,
}

impl Admission<'_> {
    /// Ask the group.
    fn turn(&self, waker: Waker) -> (Turn, Arc<Shared>) {
        let (direction, bytes) = (self.direction, self.bytes);
        match self.place {
            None => self.member.turn(|state, number, after| state.queue(number, direction, bytes, waker, after)),
            Some(place) => self.member.turn(|state, number, after| state.look(number, direction, place, waker, after)),
        }
    }
}

impl Future for Admission<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.place.is_none() && !self.member.is_limited() {
            return Poll::Ready(());
        }
        loop {
            let (turn, group) = self.turn(cx.waker().clone());
            let until_ns = match turn {
                Turn::Goes => {
                    (self.place, self.sleep) = (None, None);
                    return Poll::Ready(());
                }
                Turn::Waits(place, until_ns) => {
                    self.place = Some(place);
                    until_ns
                }
            };
            let Some(until_ns) = until_ns else {
                // Whoever makes it the head wakes it.
                self.sleep = None;
                return Poll::Pending;
            };
            let sleep = match self.sleep.take() {
                Some((at_ns, sleep)) if at_ns == until_ns => sleep,
                _ => group.clock.sleep_until(until_ns),
            };
            let (_, sleep) = self.sleep.insert((until_ns, sleep));
            if sleep.poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Drop for Admission<'_> {
    /// Who waits behind it need not wait for it.
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.member.turn(|state, number, after| state.leave(number, self.direction, place, after));
        }
    }
}
