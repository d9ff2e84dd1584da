//! Write thresholds: an event when a write reaches further into a node than it should, in time to make its storage larger.
//!
//! It is told once, and the threshold is gone then; whoever heard it sets the next one. Discards and changes of the length do not count.

use crate::error::GraphResult;
use crate::event::{Event, EventSender};
use crate::graph::NodeRef;
use crate::state::{GlobalState, Inner};
use block_common::GuestRange;
use block_io::{ChangeKind, WriteObserver};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Sees the writes of one node.
pub(crate) struct Threshold {
    node: String,
    /// In bytes; 0 when it was passed.
    at: AtomicU64,
    events: EventSender,
    passed: Mutex<Option<oneshot::Sender<()>>>,
}

impl WriteObserver for Threshold {
    fn before(&self, kind: ChangeKind, range: GuestRange) {
        let at = self.at.load(Ordering::Relaxed);
        if kind != ChangeKind::Write || at == 0 || range.end() <= at {
            return;
        }
        // Of several writes one tells.
        if self.at.compare_exchange(at, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let exceeded = range.end() - at;
            self.events.send(Event::WriteThreshold { node: self.node.clone(), exceeded, threshold: at });
            let passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(passed) = passed {
                let _ = passed.send(());
            }
        }
    }

    fn after(&self, _kind: ChangeKind, _range: GuestRange) {}
}

impl GlobalState {
    /// Tell [`Event::WriteThreshold`] once when a write to `node` ends past `threshold` bytes, in the place of what was set before; 0: do not. It
    /// is about writes that begin after this returns.
    ///
    /// # Errors
    /// The node is gone.
    pub async fn set_write_threshold(&self, node: &NodeRef, threshold: u64) -> GraphResult<()> {
        let (passed, told) = oneshot::channel();
        let new = (threshold > 0).then(|| {
            Arc::new(Threshold {
                node: node.name().into(),
                at: AtomicU64::new(threshold),
                events: self.event_sender(),
                passed: Mutex::new(Some(passed)),
            })
        });
        let old = std::mem::replace(&mut self.0.graph.borrow_mut().node_mut(node)?.threshold, new.clone());
        if let Some(old) = old {
            let old: Arc<dyn WriteObserver> = old;
            self.unobserve(node, &old);
        }
        let Some(new) = new else { return Ok(()) };
        // Once it is passed, writes need not be looked at any more. Without it the sender is dropped, and the task ends.
        drop(self.main().spawn(forget_passed(Rc::downgrade(&self.0), node.id(), told)));
        self.observe(node, new).await
    }

    /// The threshold of `node` in bytes; 0 if there is none, or it was passed.
    ///
    /// # Errors
    /// The node is gone.
    pub fn write_threshold(&self, node: &NodeRef) -> GraphResult<u64> {
        let graph = self.0.graph.borrow();
        let threshold = graph.node(node)?.threshold.as_ref();
        Ok(threshold.map_or(0, |threshold| threshold.at.load(Ordering::Relaxed)))
    }
}

/// Let writes to the node with this number go the fast way again when its threshold was passed.
async fn forget_passed(state: Weak<Inner>, node: u64, passed: oneshot::Receiver<()>) {
    if passed.await.is_err() {
        return;
    }
    let Some(inner) = state.upgrade() else { return };
    let mut graph = inner.graph.borrow_mut();
    let Some(found) = graph.nodes.get_mut(&node) else { return };
    // Another one may have been set meanwhile.
    if found.threshold.as_ref().is_some_and(|threshold| threshold.at.load(Ordering::Relaxed) == 0)
        && let Some(old) = found.threshold.take()
    {
        let old: Arc<dyn WriteObserver> = old;
        found.control.unobserve(&old);
    }
}
