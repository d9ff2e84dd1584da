//! Futures in flight, awaited together by one task: a copy's chunks, the extents of a read.
//!
//! All of them are polled whenever one is woken, which is right for some dozens of them and wrong for thousands.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

/// Some futures, which are polled together. Dropping it drops them.
pub struct Flight<'a, T>(Vec<Pin<Box<dyn Future<Output = T> + Send + 'a>>>);

impl<'a, T> Flight<'a, T> {
    /// None yet.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Take a future along. It is on its way when [`Flight::next`] is polled.
    pub fn push(&mut self, future: impl Future<Output = T> + Send + 'a) {
        self.0.push(Box::pin(future));
    }

    /// As [`Flight::push`], but it is on its way when this returns. Its output, if it is over by then.
    pub async fn start(&mut self, future: impl Future<Output = T> + Send + 'a) -> Option<T> {
        let mut future = Box::pin(future);
        match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            Poll::Ready(output) => Some(output),
            Poll::Pending => {
                self.0.push(future);
                None
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The output of one that is over. `None` when nothing is in flight. May be dropped at any time.
    pub async fn next(&mut self) -> Option<T> {
        poll_fn(|cx| {
            let done = (0..self.0.len()).find_map(|at| match self.0[at].as_mut().poll(cx) {
                Poll::Ready(output) => Some((at, output)),
                Poll::Pending => None,
            });
            match done {
                Some((at, output)) => {
                    drop(self.0.swap_remove(at));
                    Poll::Ready(Some(output))
                }
                None if self.0.is_empty() => Poll::Ready(None),
                None => Poll::Pending,
            }
        })
        .await
    }
}

impl<T> Default for Flight<'_, T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Flight<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flight({})", self.len())
    }
}
