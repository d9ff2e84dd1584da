//! Errands: work on its way to a root's home thread, that goes on to another one when that has become the home before the work has entered.
//!
//! Who waits to enter (for a drain to end, for limits, for an operator) is not counted, so the home may change under him, and the thread that he waits on may end. An
//! errand that a thread drops goes to the root's home of that moment, if that is another thread. Who has entered *at home* is counted, and homes change only while nothing
//! is counted: he ends where he is. So an errand is lost with its thread only when that thread was the root's home to the last.
//!
//! What this does not do: take work away from a thread that lives. Who waits finds out where he belongs when he enters.

use crate::context::{IoContext, Target};
use crate::gate::Pin;
use crate::request::{Done, Request};
use crate::root::{Root, RootBody};
use crate::thread::IoThreadHandle;
use block_common::{IoError, IoResult};
use std::fmt;
use std::future::Future;
use tokio::sync::oneshot;

/// Work for a root's home thread. All that it needs to begin anew on another thread is in `Self`; what it waits for in between (timers and the like, which belong to a
/// thread) is in the future that [`Errand::carry_out`] makes, and is made again.
///
/// Dropped when there is nobody left to carry it out: whoever waits for an answer has to be told then, as the receiver of a channel is.
pub trait Errand: Send + Sized + 'static {
    /// Do it, from wherever it has got to. To end without [`Homed::enter`] is to go on: see there.
    fn carry_out(here: Homed<Self>) -> impl Future<Output = ()> + Send;
}

/// An errand that is not counted. Dropping this sends it on to the root's home, unless that is where it is.
pub struct Homed<E: Errand> {
    root: Root,
    here: IoThreadHandle,
    /// There until it enters.
    errand: Option<E>,
}

impl Root {
    /// Have `errand` carried out on the home thread.
    pub fn send_home<E: Errand>(&self, errand: E) {
        let here = self.home();
        here.clone().spawn_boxed(Box::pin(E::carry_out(Homed { root: self.clone(), here, errand: Some(errand) })));
    }
}

impl<E: Errand> Homed<E> {
    /// What it is about, to be changed while it waits.
    pub fn errand(&mut self) -> &mut E {
        self.errand.as_mut().expect("it leaves with this")
    }

    /// Enter the root, once no drain holds that back. `None`: the errand has gone on, to the thread that has become the root's home, and nothing is left to do here. Otherwise it
    /// is back in the caller's hands.
    ///
    /// # Errors
    /// Beside the errand: [`IoError::CLOSED`] after closing; [`IoError::BUSY`] where a drained root refuses ([`RootControl::set_refusing`](crate::RootControl::set_refusing)), or has too many requests in flight.
    pub async fn enter(mut self) -> Option<(E, IoResult<Entered>)> {
        let entered = match self.root.enter().await {
            // The home is looked at by who is counted: it stays what it is from here on.
            Ok(pin) if self.root.home().same(&self.here) => {
                Ok(Entered { pin, root: self.root.clone(), here: self.here.clone() })
            }
            Ok(pin) => {
                // Not by being dropped: until then, this might have become the home again.
                let errand = self.errand.take();
                drop(pin);
                errand.into_iter().for_each(|errand| self.root.send_home(errand));
                return None;
            }
            Err(error) => Err(error),
        };
        self.errand.take().map(|errand| (errand, entered))
    }

    /// Take the errand: it is over, or will not be carried out.
    pub fn end(mut self) -> Option<E> {
        self.errand.take()
    }
}

impl<E: Errand> Drop for Homed<E> {
    fn drop(&mut self) {
        if let Some(errand) = self.errand.take() {
            if self.root.home().same(&self.here) {
                tracing::debug!(root = self.root.name(), "an errand was lost with its thread");
                return;
            }
            self.root.send_home(errand);
        }
    }
}

impl<E: Errand> fmt::Debug for Homed<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Homed({}, on {:?})", self.root.name(), self.here)
    }
}

/// A root that has been entered at home: counted, so that no drain ends before this is dropped. Who has one must not wait for anything but its requests (rule drain-3).
pub struct Entered {
    pin: Pin<RootBody>,
    root: Root,
    here: IoThreadHandle,
}

impl Entered {
    /// Carry out a request here, on the home thread, whatever drains begin meanwhile.
    pub async fn request(&self, request: Request) -> Done {
        let (send, receive) = oneshot::channel();
        let slow = match IoContext::current() {
            Some(context) => self.pin.start(&context, request, Target::Channel(send)),
            None => Some((request, Target::Channel(send))),
        };
        match slow {
            Some((request, _)) => self.pin.run(request).await,
            None => receive.await.unwrap_or(Done { result: Err(IoError::CANCELLED), buf: None }),
        }
    }

    /// Not be counted any more, with `errand`: from here on it goes where the home goes.
    pub fn leave<E: Errand>(self, errand: E) -> Homed<E> {
        let Self { pin, root, here } = self;
        let homed = Homed { root, here, errand: Some(errand) };
        drop(pin);
        homed
    }

    pub(crate) fn pin(&self) -> &Pin<RootBody> {
        &self.pin
    }
}

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entered({}, on {:?})", self.root.name(), self.here)
    }
}
