//! Requests on the slow path, in the order in which they came: which of them must wait for which.
//!
//! A *serialising* request (a write that must read what is around it first, a copy on read, a truncation) lets no other request
//! into its range: it waits for all that overlap it and came before, and those that come later wait for it. Others wait for serialising ones
//! alone. Everybody waits only for who came earlier, so there are no cycles (rule req-2). Requests on the fast path are not
//! in here: while a serialising one is, the gate's state keeps them away, and those that were under way are waited for.

use crate::gate::{GateState, Pin};
use crate::node::NodeBody;
use block_common::GuestRange;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

#[derive(Debug)]
struct Entry {
    range: GuestRange,
    serialising: bool,
    /// Who waits for its end.
    waiting: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    serialising: usize,
    entries: BTreeMap<u64, Entry>,
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
        entries.entries.insert(ticket, Entry { range, serialising, waiting: Vec::new() });
        if serialising && entries.serialising == 0 {
            node.set_detour(GateState::SERIALISING);
        }
        entries.serialising += usize::from(serialising);
        Self { node, ticket }
    }

    /// Wait for the earlier ones that this one must not run beside.
    async fn turn(&self) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let mut entries = self.node.tracker().lock();
            let Some((range, serialising)) = entries.entries.get(&self.ticket).map(|me| (me.range, me.serialising))
            else {
                return Poll::Ready(());
            };
            if entries.serialising == 0 {
                return Poll::Ready(());
            }
            let in_the_way = |entry: &&mut Entry| (serialising || entry.serialising) && entry.range.overlaps(range);
            match entries.entries.range_mut(..self.ticket).map(|(_, entry)| entry).find(in_the_way) {
                Some(other) => {
                    if !other.waiting.iter().any(|other| other.will_wake(&waker)) {
                        other.waiting.push(waker);
                    }
                    Poll::Pending
                }
                None => Poll::Ready(()),
            }
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
