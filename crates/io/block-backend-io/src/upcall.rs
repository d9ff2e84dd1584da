//! Upcalls: a typed question from I/O code, answered on the main loop by the global-state half of the same object.
//!
//! A job's `run`, or an export's data path, asks; its own GS half holds the other end and answers. Engines cannot ask: they do
//! not see this crate, and so nobody awaits an answer while holding a request's token (a drain that the answer needs would
//! wait for the one who asks).

use std::fmt;
use tokio::sync::{mpsc, oneshot};

/// The asking end, for I/O code. Clones ask the same GS half.
pub struct Upcalls<Q, A>(mpsc::Sender<(Q, oneshot::Sender<A>)>);

/// The answering end, for the GS half.
pub struct UpcallsOut<Q, A>(mpsc::Receiver<(Q, oneshot::Sender<A>)>);

/// Two ends for questions `Q` and answers `A`. At most `pending_max` questions wait; who asks more waits as well.
pub fn upcalls<Q, A>(pending_max: usize) -> (Upcalls<Q, A>, UpcallsOut<Q, A>) {
    let (send, receive) = mpsc::channel(pending_max.max(1));
    (Upcalls(send), UpcallsOut(receive))
}

impl<Q, A> Upcalls<Q, A> {
    /// Ask, and wait for the answer. `None` when the GS half is gone, or dropped the question.
    pub async fn ask(&self, question: Q) -> Option<A> {
        let (send, receive) = oneshot::channel();
        self.0.send((question, send)).await.ok()?;
        receive.await.ok()
    }
}

impl<Q, A> UpcallsOut<Q, A> {
    /// The next question and where its answer goes. `None` when nobody can ask any more.
    pub async fn next(&mut self) -> Option<(Q, oneshot::Sender<A>)> {
        self.0.recv().await
    }
}

impl<Q, A> Clone for Upcalls<Q, A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Q, A> fmt::Debug for Upcalls<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Upcalls")
    }
}

impl<Q, A> fmt::Debug for UpcallsOut<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UpcallsOut")
    }
}
