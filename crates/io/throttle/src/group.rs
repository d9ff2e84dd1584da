//! A group: limits, what was served, and whose turn it is.
//!
//! Each direction has a ring of the members that wait in it, and each member a line. The first of the ring's first member is the *head*, and has the only timer
//! of that direction (`member.rs`). Whoever has the lock for a turn lets everybody go whose turn has come; whoever changes who is head wakes the new one. Nobody is woken,
//! and no waker dropped, with the lock held.

use crate::bucket::Buckets;
use crate::clock::Clock;
use crate::limits::ThrottleLimits;
use crate::member::ThrottleMember;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// Nobody sleeps longer without a look at the time, in nanoseconds.
const NAP_MAX_NS: u64 = 3600 * 1_000_000_000;

/// Which way the bytes of a request go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// They are read.
    Read,
    /// They are written, zeroed or discarded.
    Write,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Read, Self::Write];
}

/// Limits that are shared by their members. Clones are the same group; it lives as long as a clone or a member does.
#[derive(Clone)]
pub struct ThrottleGroup(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) clock: Clock,
    state: Mutex<State>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do something with the state as of now. What is returned beside its result is to be dropped when no lock is held.
    pub(crate) fn turn<T>(&self, act: impl FnOnce(&mut State, &mut After) -> T) -> (T, After) {
        let mut after = After::default();
        let mut state = self.state();
        // Read under the lock: time does not go back for whoever has it next.
        state.leak(self.clock.now_ns());
        let done = act(&mut state, &mut after);
        (done, after)
    }
}

/// Whom to wake, and what to drop, when all locks have been released: either may lead back to this group, or to its member.
#[derive(Default)]
#[must_use = "it wakes when it is dropped"]
pub(crate) struct After {
    wake: Vec<Waker>,
    drop: Vec<Waker>,
}

impl Drop for After {
    fn drop(&mut self) {
        self.wake.drain(..).for_each(Waker::wake);
        self.drop.clear();
    }
}

/// Where a request is in its member's line.
pub(crate) type Place = u64;

/// What has become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It goes.
    Goes,
    /// It waits; if it is the head, until this time and no longer.
    Waits(Place, Option<u64>),
}

pub(crate) struct State {
    limits: ThrottleLimits,
    buckets: Buckets,
    /// Until when they have leaked.
    at_ns: u64,
    members: BTreeMap<u64, Entry>,
    members_made: u64,
    lines: [Line; 2],
    turns: u64,
}

/// Who waits in one direction.
#[derive(Default)]
struct Line {
    /// Every member that waits, once.
    ring: VecDeque<u64>,
    /// Which head became one first has the smaller number.
    head_since: u64,
}

/// What a group knows of a member.
pub(crate) struct Entry {
    limited: Arc<AtomicBool>,
    hurried: bool,
    places: Place,
    waiting: [BTreeMap<Place, Waiter>; 2],
}

struct Waiter {
    bytes: u64,
    waker: Option<Waker>,
}

impl Entry {
    pub(crate) fn new(limited: Arc<AtomicBool>) -> Self {
        Self { limited, hurried: false, places: 0, waiting: Default::default() }
    }
}

impl State {
    fn leak(&mut self, now_ns: u64) {
        let waits = self.heads().map(|head| head.is_some());
        self.buckets.leak(self.limits.settings(), now_ns.saturating_sub(self.at_ns), waits);
        self.at_ns = self.at_ns.max(now_ns);
    }

    fn wait_ns(&self, direction: Direction) -> u64 {
        self.buckets.wait_ns(self.limits.settings(), direction)
    }

    fn count(&mut self, direction: Direction, bytes: u64) {
        self.buckets.add(self.limits.settings(), direction, bytes);
    }

    fn count_out_of_turn(&mut self, direction: Direction, bytes: u64) {
        self.buckets.add_out_of_turn(self.limits.settings(), direction, bytes);
    }

    /// The head of a direction: its member, and its place there.
    fn head(&self, direction: Direction) -> Option<(u64, Place)> {
        let member = *self.lines[direction as usize].ring.front()?;
        let place = self.members.get(&member)?.waiting[direction as usize].keys().next()?;
        Some((member, *place))
    }

    fn heads(&self) -> [Option<(u64, Place)>; 2] {
        Direction::BOTH.map(|direction| self.head(direction))
    }

    /// Wake those who have become heads since `before`, to set their timers. Those who stay heads have theirs.
    fn wake_new_heads(&mut self, before: [Option<(u64, Place)>; 2], after: &mut After) {
        for direction in Direction::BOTH {
            let head = self.head(direction);
            if head != before[direction as usize] {
                self.has_new_head(direction);
                self.wake(direction, head, after);
            }
        }
    }

    fn has_new_head(&mut self, direction: Direction) {
        self.turns += 1;
        self.lines[direction as usize].head_since = self.turns;
    }

    fn wake(&mut self, direction: Direction, waiter: Option<(u64, Place)>, after: &mut After) {
        let Some((member, place)) = waiter else { return };
        let waiter = self.members.get_mut(&member).and_then(|entry| entry.waiting[direction as usize].get_mut(&place));
        after.wake.extend(waiter.and_then(|waiter| waiter.waker.take()));
    }

    /// Let everybody go whose turn has come.
    fn dispatch(&mut self, after: &mut After) {
        let before = self.heads();
        let may_go =
            |state: &Self, direction: &Direction| state.head(*direction).is_some() && state.wait_ns(*direction) == 0;
        while let Some(direction) = Direction::BOTH
            .into_iter()
            .filter(|direction| may_go(self, direction))
            .min_by_key(|direction| self.lines[*direction as usize].head_since)
        {
            self.head_goes(direction, after);
            self.has_new_head(direction);
        }
        for direction in Direction::BOTH {
            let head = self.head(direction);
            if head != before[direction as usize] {
                self.wake(direction, head, after);
            }
        }
    }

    /// The head goes, and its member to the end of the ring.
    fn head_goes(&mut self, direction: Direction, after: &mut After) {
        let line = &mut self.lines[direction as usize];
        let Some(member) = line.ring.pop_front() else { return };
        let Some(entry) = self.members.get_mut(&member) else { return };
        let waiting = &mut entry.waiting[direction as usize];
        let gone = waiting.pop_first();
        if !waiting.is_empty() {
            line.ring.push_back(member);
        }
        if let Some((_, waiter)) = gone {
            self.count(direction, waiter.bytes);
            after.wake.extend(waiter.waker);
        }
    }

    /// A request has come.
    pub(crate) fn arrive(&mut self, member: u64, direction: Direction, bytes: u64, after: &mut After) -> bool {
        // The line first: nobody passes those whose timer is late.
        self.dispatch(after);
        let hurried = self.members.get(&member).is_some_and(|entry| entry.hurried);
        if hurried {
            self.count_out_of_turn(direction, bytes);
            return true;
        }
        let goes = self.lines[direction as usize].ring.is_empty() && self.wait_ns(direction) == 0;
        if goes {
            self.count(direction, bytes);
        }
        goes
    }

    /// A request gets in line, if it does not go at once.
    pub(crate) fn queue(
        &mut self,
        member: u64,
        direction: Direction,
        bytes: u64,
        waker: Waker,
        after: &mut After,
    ) -> Turn {
        if self.arrive(member, direction, bytes, after) {
            after.drop.push(waker);
            return Turn::Goes;
        }
        let before = self.heads();
        let Some(entry) = self.members.get_mut(&member) else { return Turn::Goes };
        let waiting = &mut entry.waiting[direction as usize];
        entry.places += 1;
        let place = entry.places;
        if waiting.is_empty() {
            self.lines[direction as usize].ring.push_back(member);
        }
        waiting.insert(place, Waiter { bytes, waker: None });
        // It is polled right now.
        self.wake_new_heads(before, after);
        self.stay(member, direction, place, waker, after)
    }

    /// A request that is in line is polled.
    pub(crate) fn look(
        &mut self,
        member: u64,
        direction: Direction,
        place: Place,
        waker: Waker,
        after: &mut After,
    ) -> Turn {
        if self.head(direction) == Some((member, place)) {
            // It need not be woken.
            let mine = self.waiter(member, direction, place);
            after.drop.extend(mine.and_then(|waiter| waiter.waker.take()));
            self.dispatch(after);
        }
        self.stay(member, direction, place, waker, after)
    }

    fn waiter(&mut self, member: u64, direction: Direction, place: Place) -> Option<&mut Waiter> {
        self.members.get_mut(&member)?.waiting[direction as usize].get_mut(&place)
    }

    fn stay(&mut self, member: u64, direction: Direction, place: Place, waker: Waker, after: &mut After) -> Turn {
        let until_ns = (self.head(direction) == Some((member, place)))
            .then(|| self.at_ns.saturating_add(self.wait_ns(direction).min(NAP_MAX_NS)));
        match self.waiter(member, direction, place) {
            Some(waiter) => {
                after.drop.extend(waiter.waker.replace(waker));
                Turn::Waits(place, until_ns)
            }
            None => {
                after.drop.push(waker);
                Turn::Goes
            }
        }
    }

    /// A request leaves the line and does not go.
    pub(crate) fn leave(&mut self, member: u64, direction: Direction, place: Place, after: &mut After) {
        let before = self.heads();
        let Some(entry) = self.members.get_mut(&member) else { return };
        let waiting = &mut entry.waiting[direction as usize];
        let Some(gone) = waiting.remove(&place) else { return };
        after.drop.extend(gone.waker);
        if waiting.is_empty() {
            self.lines[direction as usize].ring.retain(|other| *other != member);
        }
        self.wake_new_heads(before, after);
    }

    /// A member's requests go at once from now on, those that wait first; or not any more. They count (rule drain-5).
    pub(crate) fn hurry(&mut self, member: u64, hurried: bool, after: &mut After) {
        let before = self.heads();
        let Some(entry) = self.members.get_mut(&member) else { return };
        entry.hurried = hurried;
        if !hurried {
            return;
        }
        let waiting = std::mem::take(&mut entry.waiting);
        for (direction, waiting) in Direction::BOTH.into_iter().zip(waiting) {
            self.lines[direction as usize].ring.retain(|other| *other != member);
            for waiter in waiting.into_values() {
                self.count_out_of_turn(direction, waiter.bytes);
                after.wake.extend(waiter.waker);
            }
        }
        self.wake_new_heads(before, after);
    }

    /// A member joins, with those of its requests that wait already. Its number here.
    pub(crate) fn join(&mut self, entry: Entry, after: &mut After) -> u64 {
        let before = self.heads();
        self.members_made += 1;
        let member = self.members_made;
        entry.limited.store(!self.limits.is_unlimited(), Ordering::Release);
        for (line, waiting) in self.lines.iter_mut().zip(&entry.waiting) {
            if !waiting.is_empty() {
                line.ring.push_back(member);
            }
        }
        self.members.insert(member, entry);
        self.wake_new_heads(before, after);
        self.dispatch(after);
        member
    }

    /// A member goes, with those of its requests that wait.
    pub(crate) fn part(&mut self, member: u64, after: &mut After) -> Option<Entry> {
        let before = self.heads();
        for line in &mut self.lines {
            line.ring.retain(|other| *other != member);
        }
        let entry = self.members.remove(&member);
        self.wake_new_heads(before, after);
        entry
    }

    fn set_limits(&mut self, limits: ThrottleLimits, after: &mut After) {
        self.limits = limits;
        self.buckets = Buckets::default();
        for entry in self.members.values() {
            entry.limited.store(!limits.is_unlimited(), Ordering::Release);
        }
        self.dispatch(after);
        // The timers of the heads are about other limits.
        for direction in Direction::BOTH {
            self.wake(direction, self.head(direction), after);
        }
    }

    fn waiting(&self) -> usize {
        self.members.values().flat_map(|entry| &entry.waiting).map(BTreeMap::len).sum()
    }
}

impl ThrottleGroup {
    /// A group with `limits`, that goes by the host's clock.
    pub fn new(limits: ThrottleLimits) -> Self {
        Self::with_clock(limits, Clock::default())
    }

    /// A group that goes by `clock`.
    pub fn with_clock(limits: ThrottleLimits, clock: impl Into<Clock>) -> Self {
        let clock = clock.into();
        let state = State {
            limits,
            buckets: Buckets::default(),
            at_ns: clock.now_ns(),
            members: BTreeMap::new(),
            members_made: 0,
            lines: Default::default(),
            turns: 0,
        };
        Self(Arc::new(Shared { clock, state: Mutex::new(state) }))
    }

    /// A new member, that does not hurry.
    pub fn member(&self) -> ThrottleMember {
        ThrottleMember::of(self)
    }

    /// The limits as they are.
    pub fn limits(&self) -> ThrottleLimits {
        self.0.state().limits
    }

    /// Other limits from now on, also for those who wait. What was let through before is forgotten.
    pub fn set_limits(&self, limits: ThrottleLimits) {
        let ((), after) = self.0.turn(|state, after| state.set_limits(limits, after));
        drop(after);
    }

    /// How many members there are.
    pub fn members(&self) -> usize {
        self.0.state().members.len()
    }

    /// How many requests wait.
    pub fn waiting(&self) -> usize {
        self.0.state().waiting()
    }

    /// Whether both are the same group.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for ThrottleGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        let due = Direction::BOTH.map(|direction| state.head(direction).map(|_| state.wait_ns(direction) / 1_000_000));
        write!(
            f,
            "ThrottleGroup({} members, {} requests wait, the next ones for {due:?} ms)",
            state.members.len(),
            state.waiting()
        )
    }
}
