//! Flushes of one node: one at a time, each for everybody who asked before it began, and none when nothing was written since the last.
//!
//! Writes are counted when they are over, by the thread that they end on. A flush covers the writes that were counted before it
//! began; only a flush that succeeded is remembered, and one that failed has failed for all who waited for it (rule flush-1).

use crate::node::{NodeBody, Req};
use crate::pipeline::debug_event;
use crate::sync::SHARDS;
use block_common::{DebugEvent, IoError, IoResult};
use crossbeam_utils::CachePadded;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Counts writes, and lets one flush run at a time.
#[derive(Debug, Default)]
pub(crate) struct Flushing {
    writes: [CachePadded<AtomicU64>; SHARDS],
    rounds: Mutex<Rounds>,
}

#[derive(Debug, Default)]
struct Rounds {
    /// How many writes are on stable storage.
    flushed: u64,
    /// How many writes the flush that is running covers.
    running: Option<u64>,
    /// Who shares its result.
    joined: Vec<oneshot::Sender<Turn>>,
    /// Who needs the next one.
    waiting: Vec<oneshot::Sender<Turn>>,
}

/// What one who waits is told.
#[derive(Debug)]
enum Turn {
    /// The flush is over.
    Over(IoResult<()>),
    /// It is his to make.
    Lead,
}

impl Flushing {
    /// A write is over, however it ended.
    #[inline]
    pub(crate) fn wrote(&self) {
        let (shard, is_own) = crate::sync::own_shard();
        let counter = &self.writes[shard];
        if is_own {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
        } else {
            counter.fetch_add(1, Ordering::Release);
        }
    }

    /// How many writes are over.
    fn written(&self) -> u64 {
        self.writes.iter().map(|counter| counter.load(Ordering::Acquire)).fold(0, u64::wrapping_add)
    }

    fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bring to stable storage what was written before this call.
pub(crate) async fn flush(req: &Req) -> IoResult<()> {
    let flushing = req.node.flushing();
    let written = flushing.written();
    let turn = {
        let mut rounds = flushing.rounds();
        if rounds.flushed >= written {
            return Ok(());
        }
        match rounds.running {
            None => {
                rounds.running = Some(0);
                None
            }
            Some(covered) => {
                let (send, receive) = oneshot::channel();
                if covered >= written {
                    rounds.joined.push(send)
                } else {
                    rounds.waiting.push(send)
                }
                Some(receive)
            }
        }
    };
    if let Some(receive) = turn {
        let mut waiter = Waiter { flushing, receive };
        match (&mut waiter.receive).await {
            Ok(Turn::Lead) => {}
            Ok(Turn::Over(result)) => return result,
            Err(_) => return Err(IoError::CANCELLED),
        }
    }
    let round = Round::begin(&req.node);
    let result = match req.node.engine() {
        Ok(engine) => {
            debug_event(req, DebugEvent::FlushToOs).await;
            debug_event(req, DebugEvent::FlushToDisk).await;
            engine.flush(req).await
        }
        Err(error) => Err(error),
    };
    round.end(result)
}

/// A flush that is running. However it ends, those who wait are told, and the next one begins.
struct Round<'a> {
    node: &'a NodeBody,
    covered: u64,
    result: IoResult<()>,
}

impl<'a> Round<'a> {
    fn begin(node: &'a NodeBody) -> Self {
        let covered = node.flushing().written();
        let mut rounds = node.flushing().rounds();
        rounds.running = Some(covered);
        // Whoever waits has seen no more writes than are covered now.
        let waiting = std::mem::take(&mut rounds.waiting);
        rounds.joined.extend(waiting);
        // Without another word the thread has ended.
        Self { node, covered, result: Err(IoError::CANCELLED) }
    }

    fn end(mut self, result: IoResult<()>) -> IoResult<()> {
        self.result = result;
        result
    }
}

impl Drop for Round<'_> {
    fn drop(&mut self) {
        let (joined, waiting) = {
            let mut rounds = self.node.flushing().rounds();
            if self.result.is_ok() {
                rounds.flushed = rounds.flushed.max(self.covered);
            }
            // Nobody joins a flush that is over, and nobody else begins one before its leader is found.
            rounds.running = Some(0);
            (std::mem::take(&mut rounds.joined), std::mem::take(&mut rounds.waiting))
        };
        for send in joined {
            drop(send.send(Turn::Over(self.result)));
        }
        hand_over(self.node.flushing(), waiting);
    }
}

/// Let one of those who wait make the next flush, or let whoever comes next.
fn hand_over(flushing: &Flushing, mut waiting: Vec<oneshot::Sender<Turn>>) {
    loop {
        let Some(next) = waiting.pop() else {
            let mut rounds = flushing.rounds();
            if rounds.waiting.is_empty() {
                rounds.running = None;
                return;
            }
            waiting = std::mem::take(&mut rounds.waiting);
            continue;
        };
        // Before he hears of it: he takes the others along.
        flushing.rounds().waiting.append(&mut waiting);
        if next.send(Turn::Lead).is_ok() {
            return;
        }
        // He has gone away meanwhile.
        waiting = std::mem::take(&mut flushing.rounds().waiting);
    }
}

/// One who waits for a flush. If he goes away just when the next one has become his to make, somebody else makes it.
struct Waiter<'a> {
    flushing: &'a Flushing,
    receive: oneshot::Receiver<Turn>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.receive.close();
        if matches!(self.receive.try_recv(), Ok(Turn::Lead)) {
            let waiting = std::mem::take(&mut self.flushing.rounds().waiting);
            hand_over(self.flushing, waiting);
        }
    }
}
