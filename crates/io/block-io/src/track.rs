//! Requests on the slow path, in the order in which they came: which of them must wait for which.
//!
//! A *serialising* request (a write that must read what is around it first, a copy on read, a truncation) lets no other request
//! into its range: it waits for all that overlap it and are under way, and those that come later wait for it. Others wait for serialising ones
//! alone. Who waits is passed by those whose way is free, but not for ever: after [`PASSES_MAX`] of them, who comes later and is in its way
//! waits behind it. So everybody waits for requests that are under way, or for one that came earlier, and there are no cycles (rule req-2).
//! Requests on the fast path are not in here: while a serialising one is, the gate's state keeps them away, and those that were under way are
//! waited for.

use crate::gate::{GateState, Pin};
use crate::node::NodeBody;
use block_common::GuestRange;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// How many requests pass one that waits.
const PASSES_MAX: u32 = 16;

#[derive(Debug)]
struct Entry {
    range: GuestRange,
    serialising: bool,
    under_way: bool,
    /// How many have passed it.
    passes: u32,
    /// Who waits for its end.
    waiting: Vec<Waker>,
}

impl Entry {
    /// Whether both cannot be under way at a time.
    fn excludes(&self, range: GuestRange, serialising: bool) -> bool {
        (serialising || self.serialising) && self.range.overlaps(range)
    }
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    serialising: usize,
    entries: BTreeMap<u64, Entry>,
}

impl Entries {
    /// Let the request with this ticket begin. `false` if it has to wait: `waker` is woken when that may have changed.
    fn begin(&mut self, ticket: u64, waker: &Waker) -> bool {
        let is_alone = self.serialising == 0;
        let Some(me) = self.entries.get_mut(&ticket) else { return true };
        let (range, serialising) = (me.range, me.serialising);
        me.under_way |= is_alone;
        if me.under_way {
            return true;
        }
        let in_the_way = |at: u64, entry: &Entry| {
            let goes_first = entry.under_way || (at < ticket && entry.passes >= PASSES_MAX);
            at != ticket && goes_first && entry.excludes(range, serialising)
        };
        if let Some((_, other)) = self.entries.iter_mut().find(|(at, entry)| in_the_way(**at, entry)) {
            if !other.waiting.iter().any(|other| other.will_wake(waker)) {
                other.waiting.push(waker.clone());
            }
            return false;
        }
        for (_, passed) in self.entries.range_mut(..ticket).filter(|(_, entry)| entry.excludes(range, serialising)) {
            passed.passes += 1;
        }
        if let Some(me) = self.entries.get_mut(&ticket) {
            me.under_way = true;
        }
        true
    }
}

/// The slow requests of one node.
#[derive(Debug, Default)]
pub(crate) struct Tracker(Mutex<Entries>);

impl Tracker {
    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place among the others. Dropping it is the request's end.
#[derive(Debug)]
pub(crate) struct Tracked<'a> {
    node: &'a Pin<NodeBody>,
    ticket: u64,
}

/// Take a place for a request on `range` of `node`, and wait for those that must be over before it.
pub(crate) async fn track(node: &Pin<NodeBody>, range: GuestRange, serialising: bool) -> Tracked<'_> {
    let tracked = Tracked::enter(node, range, serialising);
    if serialising {
        // Whoever takes the fast path from now on sees the state and gives it up. The others wait for nobody but the host, and for the thread of
        // their queue to reap them.
        node.fast_idle().await;
    }
    tracked.turn().await;
    tracked
}

impl<'a> Tracked<'a> {
    fn enter(node: &'a Pin<NodeBody>, range: GuestRange, serialising: bool) -> Self {
        let mut entries = node.tracker().lock();
        let ticket = entries.next;
        entries.next += 1;
        entries.entries.insert(ticket, Entry { range, serialising, under_way: false, passes: 0, waiting: Vec::new() });
        if serialising && entries.serialising == 0 {
            node.set_detour(GateState::SERIALISING);
        }
        entries.serialising += usize::from(serialising);
        Self { node, ticket }
    }

    /// Wait for those that this one must not run beside.
    async fn turn(&self) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let begun = self.node.tracker().lock().begin(self.ticket, &waker);
            if begun { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Drop for Tracked<'_> {
    fn drop(&mut self) {
        let mut entries = self.node.tracker().lock();
        let Some(entry) = entries.entries.remove(&self.ticket) else { return };
        entries.serialising -= usize::from(entry.serialising);
        if entry.serialising && entries.serialising == 0 {
            self.node.clear_detour(GateState::SERIALISING);
        }
        drop(entries);
        entry.waiting.into_iter().for_each(Waker::wake);
    }
}
