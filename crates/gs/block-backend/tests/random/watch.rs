//! Sees that everything moves on: what takes longer than a minute is told, with the graph and the requests under way, and ends the test.

use crate::acts::GROUPS;
use crate::board::Board;
use crate::disks::shape;
use block_gs::GlobalState;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

/// How long one operation may take. Generous: the machine may be busy, a hang is for ever.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer the main loop gets to say what hangs.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// What the main loop is doing.
pub(crate) struct Watch {
    seed: u64,
    board: Arc<Board>,
    now: Mutex<(String, Instant)>,
}

impl Watch {
    /// A watch whose own thread ends the program when the main loop itself stands still.
    pub(crate) fn start(seed: u64, board: &Arc<Board>) -> Arc<Self> {
        let watch = Arc::new(Self { seed, board: board.clone(), now: Mutex::new(("start".into(), Instant::now())) });
        let weak = Arc::downgrade(&watch);
        std::thread::spawn(move || {
            while let Some(watch) = weak.upgrade() {
                let (what, since) = watch.now.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if since.elapsed() > PATIENCE + LAST_WORDS {
                    let board = watch.board.describe();
                    eprintln!("CAIRN_SEED={:#x}: the main loop stands still in: {what}\n{board}", watch.seed);
                    std::process::exit(101);
                }
                drop(watch);
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        watch
    }

    /// `act`, or a panic when it does not end.
    pub(crate) async fn timed<T>(&self, gs: &GlobalState, what: &str, act: impl Future<Output = T>) -> T {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = (what.into(), Instant::now());
        self.beside(gs, what, act).await
    }

    /// The same of what runs beside everything else.
    pub(crate) async fn beside<T>(&self, gs: &GlobalState, what: &str, act: impl Future<Output = T>) -> T {
        let mut act = pin!(act);
        let mut limit = pin!(gs.main().sleep(PATIENCE));
        poll_fn(|cx| {
            if let Poll::Ready(output) = act.as_mut().poll(cx) {
                return Poll::Ready(output);
            }
            if limit.as_mut().poll(cx).is_ready() {
                let (graph, board) = (shape(gs).join("\n"), self.board.describe());
                let groups = GROUPS.map(|id| gs.throttle_group(id));
                panic!("CAIRN_SEED={:#x}: this hangs: {what}\n{graph}\n{board}\n{groups:?}", self.seed);
            }
            Poll::Pending
        })
        .await
    }
}
