//! One-way events: what the block layer tells whoever listens. Nobody waits for an answer.
//!
//! A listener that does not listen costs a stated number of events and no more: the oldest are lost then, and that is logged.

use block_common::IoError;
use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// How many events wait for their listener.
const EVENTS_MAX: usize = 4096;

/// Something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Closing a node failed: acknowledged data may be lost.
    CloseFailed {
        /// The node's name.
        node: String,
        /// What its flush or close answered.
        error: IoError,
    },
    /// A node's engine found its image damaged and refuses further writes.
    ImageCorrupted {
        /// The node's name.
        node: String,
        /// Whether the image can still be read.
        fatal: bool,
        /// What was found.
        message: String,
    },
    /// A quorum's child failed, or has other data than the others.
    QuorumReportBad {
        /// The child's name.
        node: String,
        /// What it was asked for: `read`, `write` or `flush`.
        operation: &'static str,
        /// How it failed; nothing for one that has other data.
        error: Option<IoError>,
        /// The first sector, of 512 bytes, of the request.
        sector: u64,
        /// How many sectors.
        sectors: u64,
    },
    /// Too few of a quorum's children agree.
    QuorumFailure {
        /// The name of the quorum's node.
        reference: String,
        /// The first sector, of 512 bytes, of the request.
        sector: u64,
        /// How many sectors.
        sectors: u64,
    },
    /// The children of a node that compares them do not agree.
    VerifyFailed {
        /// The node's name.
        node: String,
        /// On what.
        message: String,
    },
    /// A write went past a node's threshold.
    WriteThreshold {
        /// The node's name.
        node: String,
        /// By how many bytes.
        exceeded: u64,
        /// The threshold in bytes.
        threshold: u64,
    },
    /// A device's tray moved, by its guest's doing or ours.
    TrayMoved {
        /// The backend's name; empty for one that has none.
        backend: String,
        /// The device's name; empty without one.
        device: String,
        /// Whether it is open now.
        open: bool,
    },
    /// A device's request failed, and this is done about it.
    IoFailed {
        /// The backend's name; empty for one that has none.
        backend: String,
        /// The device's name.
        device: Option<String>,
        /// The name of the node that is the medium.
        node: Option<String>,
        /// Whether it was anything but a read.
        is_write: bool,
        /// How it failed.
        error: IoError,
        /// What is done: `report`, `ignore` or `stop`.
        action: &'static str,
    },
    /// A device was removed, and is gone.
    DeviceDeleted {
        /// The device's name.
        device: String,
    },
    /// A node that is a backend's medium has another length than before, or than the medium before it.
    Resized {
        /// The node's name.
        node: String,
        /// Its length in bytes.
        length: u64,
    },
}

#[derive(Default)]
struct Stream {
    events: VecDeque<Event>,
    lost: u64,
    listener: Option<Waker>,
    /// The listener is gone.
    is_closed: bool,
    /// The last of those who tell is gone.
    is_over: bool,
}

#[derive(Default)]
struct Shared(Mutex<Stream>);

impl Shared {
    fn stream(&self) -> MutexGuard<'_, Stream> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let (events, listener) = {
            let mut stream = self.stream();
            stream.is_closed = true;
            (std::mem::take(&mut stream.events), stream.listener.take())
        };
        drop(events);
        listener.into_iter().for_each(Waker::wake);
    }
}

/// Where events are told, from any thread. Clones tell the same listener.
#[derive(Clone)]
pub struct EventSender(Arc<Sender>);

struct Sender(Arc<Shared>);

impl Drop for Sender {
    fn drop(&mut self) {
        // What was told stays to be heard.
        let listener = {
            let mut stream = self.0.stream();
            stream.is_over = true;
            stream.listener.take()
        };
        listener.into_iter().for_each(Waker::wake);
    }
}

impl EventSender {
    /// Tell what happened. Never waits; without a listener it is forgotten.
    pub fn send(&self, event: Event) {
        let (listener, lost) = {
            let mut stream = self.0.0.stream();
            if stream.is_closed {
                return;
            }
            let lost = if stream.events.len() >= EVENTS_MAX { stream.events.pop_front() } else { None };
            stream.lost += u64::from(lost.is_some());
            stream.events.push_back(event);
            (stream.listener.take(), lost.map(|_| stream.lost))
        };
        if let Some(lost) = lost
            && lost.is_power_of_two()
        {
            tracing::warn!(lost, "nobody listens to events: the oldest are lost");
        }
        listener.into_iter().for_each(Waker::wake);
    }
}

impl fmt::Debug for EventSender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSender")
    }
}

/// The listener's end: events in their order. Dropping it makes later ones be forgotten.
pub struct Events(Arc<Shared>);

impl Events {
    /// The next event. `None` when the block layer and all who could tell something are gone.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next one, for who shares the stream with others and polls it by hand.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let waker = cx.waker().clone();
        let mut stream = self.0.stream();
        if !stream.events.is_empty() || stream.is_over {
            return Poll::Ready(stream.events.pop_front());
        }
        let old = stream.listener.replace(waker);
        drop(stream);
        drop(old);
        Poll::Pending
    }

    /// The next event, if there is one.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.stream().events.pop_front()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

/// Both ends of a stream.
pub(crate) fn events() -> (EventSender, Events) {
    let shared = Arc::new(Shared::default());
    (EventSender(Arc::new(Sender(shared.clone()))), Events(shared))
}
