//! Guests: each has an I/O thread of its own and keeps several requests in flight on its drive, against the model.

use crate::board::{Act, Board, End, UNIT, bytes_of};
use block_backend_io::BackendIo;
use block_common::{AlignedBuf, Errno, IoError, RequestFlags};
use block_io::{Done, IoThread, Request};
use block_testkit::Rng;
use block_testkit::bed::io_thread;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Requests that a guest keeps in flight.
const DEPTH: usize = 6;

/// The first thing that a guest saw and should not have.
#[derive(Debug, Default)]
pub(crate) struct Fault(Mutex<Option<String>>);

impl Fault {
    pub(crate) fn tell(&self, fault: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
    }

    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// How a guest behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Habits {
    pub(crate) drive: usize,
    pub(crate) writes: bool,
    /// Whether requests take the way of a device that does everything by itself, and not that of a simple one. Otherwise they take turns.
    pub(crate) always_simple: bool,
}

struct Shared {
    habits: Habits,
    io: BackendIo,
    board: Arc<Board>,
    fault: Arc<Fault>,
    stop: AtomicBool,
}

/// A guest that runs.
pub(crate) struct Guest {
    shared: Arc<Shared>,
    tasks: Vec<Pin<Box<dyn Future<Output = Option<()>>>>>,
    _thread: IoThread,
}

impl Guest {
    pub(crate) fn start(habits: Habits, io: BackendIo, board: &Arc<Board>, fault: &Arc<Fault>, rng: &mut Rng) -> Self {
        let (board, fault) = (board.clone(), fault.clone());
        let shared = Arc::new(Shared { habits, io, board, fault, stop: AtomicBool::new(false) });
        let thread = io_thread(rng.chance(70));
        let task = |_| {
            let (shared, rng) = (shared.clone(), rng.fork());
            Box::pin(thread.handle().run(async move { shared.task(rng).await })) as Pin<Box<dyn Future<Output = _>>>
        };
        let tasks = (0..DEPTH).map(task).collect();
        Self { tasks, shared, _thread: thread }
    }

    /// Send no more requests, and wait for those in flight.
    pub(crate) async fn stop(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            if task.await.is_none() {
                self.shared.fault.tell("a guest's task has panicked".into());
            }
        }
    }
}

impl Shared {
    async fn task(&self, mut rng: Rng) {
        while !self.stop.load(Ordering::SeqCst) {
            match self.one(&mut rng).await {
                Ok(End::Done) => {}
                Ok(End::Closed) => return,
                // A guest does not try again that soon.
                Ok(_) => tokio::time::sleep(Duration::from_micros(300)).await,
                Err(fault) => {
                    self.fault.tell(fault);
                    return;
                }
            }
        }
    }

    /// One request, or a glance at a disk that is busy where it would have been.
    async fn one(&self, rng: &mut Rng) -> Result<End, String> {
        if rng.chance(2) {
            return self.outside(rng).await;
        }
        let (long, percent) = (rng.chance(15), rng.below(0..100));
        let (first, second) = (rng.next() as usize, rng.next() as usize);
        let choose = |limit: usize| {
            let count = 1 + first % if long { 160 } else { 16 };
            let count = count.min(limit);
            (second % (limit - count + 1), count)
        };
        let writes = self.habits.writes;
        let act = |number| match percent {
            0..40 if writes => Act::Write(number),
            40..46 if writes => Act::Zero,
            46..52 if writes => Act::Discard,
            52..55 => Act::Flush,
            _ => Act::Read,
        };
        let Some((id, act, at, count)) = self.board.begin(self.habits.drive, choose, act) else {
            tokio::task::yield_now().await;
            return Ok(End::Done);
        };
        let request = request(rng.chance(5), act, at, count);
        let done = self.send(rng, request).await;
        let end = end_of(done.result);
        let mut bytes = vec![0; if act == Act::Read { count * UNIT } else { 0 }];
        match done.buf {
            Some(buf) if act == Act::Read => buf.copy_to_slice(0, &mut bytes),
            None if matches!(act, Act::Read | Act::Write(_)) => return Err("a buffer did not come back".into()),
            _ => {}
        }
        let told = self.board.end(id, end, &bytes);
        told.map_err(|why| format!("drive {}, request {id}, {:?}: {why}", self.habits.drive, done.result))?;
        Ok(end)
    }

    /// Past the end of every disk: refused, and not by a panic.
    async fn outside(&self, rng: &mut Rng) -> Result<End, String> {
        let request = match rng.chance(50) && self.habits.writes {
            true => Request::write(1 << 40, buffer(UNIT), RequestFlags::empty()),
            false => Request::read(1 << 40, buffer(UNIT)),
        };
        match self.send(rng, request).await.result {
            Ok(()) => Err(format!("drive {}: there is no such place", self.habits.drive)),
            Err(error) => Ok(end_of(Err(error))),
        }
    }

    async fn send(&self, rng: &mut Rng, request: Request) -> Done {
        if self.habits.always_simple || rng.chance(50) {
            return self.io.request(request).await;
        }
        match self.io.entry() {
            Ok(root) => root.request(request).await,
            Err(error) => Done { result: Err(error), buf: request.into_buf() },
        }
    }
}

fn buffer(len: usize) -> block_common::IoBuf {
    AlignedBuf::zeroed(len, 4096).into_io()
}

fn request(is_sync: bool, act: Act, at: usize, count: usize) -> Request {
    let (offset, len) = ((at * UNIT) as u64, (count * UNIT) as u64);
    let flags = if is_sync { RequestFlags::FUA } else { RequestFlags::empty() };
    match act {
        Act::Read => Request::read(offset, buffer(count * UNIT)),
        Act::Write(content) => {
            let buf = buffer(count * UNIT);
            buf.copy_from_slice(0, &bytes_of(content, at, count));
            Request::write(offset, buf, flags)
        }
        Act::Zero => Request::zero(offset, len, if is_sync { flags } else { RequestFlags::MAY_UNMAP }),
        Act::Discard => Request::discard(offset, len),
        Act::Flush => Request::flush(),
    }
}

fn end_of(result: Result<(), IoError>) -> End {
    match result {
        Ok(()) => End::Done,
        Err(IoError::NO_MEDIUM) => End::NoMedium,
        Err(IoError::CLOSED) => End::Closed,
        Err(error) if error == IoError::OUT_OF_BOUNDS => End::Outside,
        Err(error) if error.errno() == Errno::EPERM => End::Refused,
        Err(_) => End::Failed,
    }
}
