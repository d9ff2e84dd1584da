//! The mutation ticket: changes of the graph that wait in between happen one after the other.
//!
//! A mutation takes the ticket, gathers asynchronously, looks everything up again, prepares and commits (or aborts)
//! synchronously, cleans up asynchronously. Queries and job verbs need no ticket.

use crate::state::GlobalState;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::task::{Poll, Waker};

#[derive(Default)]
struct Line {
    last: u64,
    /// The first is being served.
    waiting: VecDeque<(u64, Option<Waker>)>,
}

#[derive(Clone, Default)]
pub(crate) struct Tickets(Rc<RefCell<Line>>);

/// The right to run a mutation; the next one's turn comes when it is dropped.
pub struct Ticket {
    line: Tickets,
    number: u64,
}

impl Tickets {
    fn take(&self) -> Ticket {
        let mut line = self.0.borrow_mut();
        line.last += 1;
        let number = line.last;
        line.waiting.push_back((number, None));
        Ticket { line: self.clone(), number }
    }

    fn advance(&self) {
        let woken = {
            let mut line = self.0.borrow_mut();
            line.waiting.front_mut().and_then(|(_, waker)| waker.take())
        };
        if let Some(waker) = woken {
            waker.wake();
        }
    }
}

impl Ticket {
    async fn turn(&self) {
        poll_fn(|cx| {
            let waker = cx.waker().clone();
            let mut line = self.line.0.borrow_mut();
            match line.waiting.iter().position(|(number, _)| *number == self.number) {
                Some(0) | None => Poll::Ready(()),
                Some(place) => {
                    let old = line.waiting[place].1.replace(waker);
                    drop(line);
                    drop(old);
                    Poll::Pending
                }
            }
        })
        .await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let gone = {
            let mut line = self.line.0.borrow_mut();
            let place = line.waiting.iter().position(|(number, _)| *number == self.number);
            place.and_then(|place| line.waiting.remove(place))
        };
        drop(gone);
        self.line.advance();
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket({})", self.number)
    }
}

impl GlobalState {
    /// Run `mutation` when its turn has come, in the order of asking. It runs to its end on the main loop even if the returned
    /// future is dropped: a caller that goes away leaves no half change behind. A mutation must not wait for another one: that one's turn
    /// comes when this one is over.
    ///
    /// # Panics
    /// A panic of `mutation` comes out of the main loop, and then out of the returned future. The next one's turn comes all the same.
    pub fn mutate<T, F, M>(&self, mutation: M) -> impl Future<Output = T> + 'static + use<T, F, M>
    where
        T: 'static,
        F: Future<Output = T> + 'static,
        M: FnOnce(GlobalState) -> F + 'static,
    {
        let ticket = self.0.tickets.take();
        let gs = self.clone();
        let task = self.0.main.spawn(async move {
            ticket.turn().await;
            let output = mutation(gs).await;
            drop(ticket);
            output
        });
        task.join()
    }
}
