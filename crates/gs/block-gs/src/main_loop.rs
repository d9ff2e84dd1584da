//! The main loop: one thread's executor for everything that is global state.
//!
//! It is driven by [`MainLoop::run`], or from a foreign event loop by [`MainLoop::fd`] and [`MainLoop::turn`]. It serves no node
//! I/O: requests run on I/O threads, and their results wake tasks here.

use async_task::{FallibleTask, Runnable};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::{Future, poll_fn};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// A century.
const LONG: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The longest time to wait awake.
const WINDOW_MAX: Duration = Duration::from_micros(60);
/// How many tasks one turn runs before it lets its caller look at other things.
const TURN_MAX: usize = 256;

/// What other threads reach: the run queue and the descriptor that says it is not empty.
struct Queue {
    runnable: Mutex<VecDeque<Runnable>>,
    event: OwnedFd,
    /// A turn is under way, and will look into the queue once more before it ends: no need for the descriptor.
    in_turn: AtomicBool,
}

impl Queue {
    fn push(&self, runnable: Runnable) {
        self.runnable.lock().unwrap_or_else(PoisonError::into_inner).push_back(runnable);
        self.signal();
    }

    fn pop(&self) -> Option<Runnable> {
        self.runnable.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn is_empty(&self) -> bool {
        self.runnable.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Have the loop look. What it is to see was stored before.
    fn signal(&self) {
        if !self.in_turn.load(Ordering::SeqCst) {
            // A full counter is a signalled one.
            let _ = rustix::io::write(&self.event, &event_count());
        }
    }

    /// Reset the descriptor, before looking at what is in the queue.
    fn acknowledge(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.event, &mut count);
    }
}

#[expect(clippy::host_endian_bytes, reason = "eventfd(2) counts in host byte order")]
fn event_count() -> [u8; 8] {
    1u64.to_ne_bytes()
}

/// Wakes the future that [`MainLoop::run`] runs. It has a flag of its own: the event may have been read, by a turn that began
/// before the wake, when the loop wants to sleep.
struct RunWaker {
    queue: Arc<Queue>,
    woken: AtomicBool,
}

impl Wake for RunWaker {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.queue.signal();
    }
}

/// A turn that is under way. A panic ends it as well.
struct Turn<'a>(&'a Queue);

impl<'a> Turn<'a> {
    fn begin(queue: &'a Queue) -> Self {
        queue.in_turn.store(true, Ordering::SeqCst);
        queue.acknowledge();
        Self(queue)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.in_turn.store(false, Ordering::SeqCst);
        if std::thread::panicking() {
            // Nobody looks once more.
            self.0.signal();
        }
    }
}

struct Timers {
    fd: OwnedFd,
    next: Cell<u64>,
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
}

struct Shared {
    queue: Arc<Queue>,
    timers: Timers,
    epoll: OwnedFd,
    tasks: RefCell<Tasks>,
}

/// The tasks that are not over, so that they can be dropped with the loop whoever would wake them.
#[derive(Default)]
struct Tasks {
    last: u64,
    alive: BTreeMap<u64, Waker>,
    ended: bool,
}

/// Strikes its task off the list when the task's future is dropped.
struct Alive {
    shared: Rc<Shared>,
    number: u64,
}

impl Drop for Alive {
    fn drop(&mut self) {
        let waker = self.shared.tasks.borrow_mut().alive.remove(&self.number);
        drop(waker);
    }
}

/// One thread's executor. `!Send`: what is spawned here stays here.
pub struct MainLoop(Rc<Shared>);

/// Spawns tasks on a main loop, from its own thread.
#[derive(Clone)]
pub struct MainHandle(Rc<Shared>);

impl MainLoop {
    /// A loop for this thread.
    ///
    /// # Errors
    /// What the host said when it refused a descriptor.
    pub fn new() -> std::io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &event, EventData::new_u64(0), EventFlags::IN)?;
        epoll::add(&epoll, &timer, EventData::new_u64(1), EventFlags::IN)?;
        let timers = Timers { fd: timer, next: Cell::new(0), waiting: RefCell::default() };
        let queue = Arc::new(Queue { runnable: Mutex::default(), event, in_turn: AtomicBool::new(false) });
        Ok(Self(Rc::new(Shared { queue, timers, epoll, tasks: RefCell::default() })))
    }

    /// A handle to spawn with.
    pub fn handle(&self) -> MainHandle {
        MainHandle(self.0.clone())
    }

    /// Readable when [`MainLoop::turn`] has something to do. For a foreign poll or epoll.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.epoll.as_fd()
    }

    /// Run the tasks that are ready, without waiting. Returns whether more are ready.
    pub fn turn(&self) -> bool {
        let turn = Turn::begin(&self.0.queue);
        self.0.timers.expire();
        for _ in 0..TURN_MAX {
            match self.0.queue.pop() {
                Some(runnable) => drop(runnable.run()),
                None => break,
            }
        }
        drop(turn);
        // Also what was pushed by somebody who saw the turn, and left the descriptor alone.
        let more = !self.0.queue.is_empty();
        if more {
            self.0.queue.signal();
        }
        more
    }

    /// Run until `future` is done, and return its output. A panic of a task comes out of here (and of [`MainLoop::turn`]); the
    /// loop can be run again after it.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let main = Arc::new(RunWaker { queue: self.0.queue.clone(), woken: AtomicBool::new(true) });
        let waker = Waker::from(main.clone());
        let mut cx = Context::from_waker(&waker);
        let mut window = WINDOW_MAX;
        loop {
            if main.woken.swap(false, Ordering::SeqCst)
                && let Poll::Ready(output) = future.as_mut().poll(&mut cx)
            {
                return output;
            }
            let is_woken = || main.woken.load(Ordering::SeqCst) || !self.0.queue.is_empty();
            if !self.turn() && !is_woken() {
                window = self.wait_soon(window, is_woken);
            }
        }
    }

    /// Wait, awake for as long as `window`: what was asked of another thread is often answered before this one would be asleep. Returns the
    /// next window: none if that would have been in vain.
    fn wait_soon(&self, window: Duration, is_woken: impl Fn() -> bool) -> Duration {
        let begin = Instant::now();
        while begin.elapsed() < window {
            if is_woken() {
                return window;
            }
            // Whoever answers wants the queue's lock.
            (0..50).for_each(|_| std::hint::spin_loop());
        }
        self.wait();
        if begin.elapsed() < 2 * WINDOW_MAX { WINDOW_MAX } else { Duration::ZERO }
    }

    /// Sleep until there is something to do.
    fn wait(&self) {
        let mut event = [rustix::event::PollFd::new(&self.0.epoll, rustix::event::PollFlags::IN)];
        // An interrupted wait is a short one.
        let _ = rustix::event::poll(&mut event, None);
    }
}

impl Drop for MainLoop {
    /// Tasks that still wait are dropped, whatever they wait for; each may wake others, or try to spawn.
    fn drop(&mut self) {
        self.0.tasks.borrow_mut().ended = true;
        loop {
            let alive: Vec<_> = self.0.tasks.borrow().alive.values().cloned().collect();
            // A task is dropped as what runs it is; waking it brings that into the queue, if it is not there.
            alive.into_iter().for_each(Waker::wake);
            while let Some(runnable) = self.0.queue.pop() {
                drop(runnable);
            }
            if self.0.tasks.borrow().alive.is_empty() {
                break;
            }
            // Another thread is just waking one: what runs it is on its way here.
            self.wait();
            self.0.queue.acknowledge();
        }
        let timers = std::mem::take(&mut *self.0.timers.waiting.borrow_mut());
        drop(timers);
    }
}

impl fmt::Debug for MainLoop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MainLoop")
    }
}

impl MainHandle {
    /// Run `future` on the loop. Dropping the returned handle detaches it. Once the loop is gone, the future is dropped.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> JoinHandle<T> {
        let (queue, number) = (self.0.queue.clone(), self.0.tasks.borrow_mut().number());
        let alive = Alive { shared: self.0.clone(), number };
        let listed = async move {
            let _alive = alive;
            future.await
        };
        let (runnable, task) = async_task::spawn_local(listed, move |runnable| queue.push(runnable));
        let ended = {
            let mut tasks = self.0.tasks.borrow_mut();
            tasks.alive.insert(number, runnable.waker());
            tasks.ended
        };
        if ended {
            drop(runnable)
        } else {
            runnable.schedule()
        }
        JoinHandle(Some(task.fallible()))
    }

    /// Wait for `duration`.
    pub async fn sleep(&self, duration: Duration) {
        let now = Instant::now();
        // A time that cannot be counted is later than anything that is waited for.
        let at = now.checked_add(duration).unwrap_or_else(|| now + LONG);
        let timer = Timer { shared: &self.0.timers, key: (at, self.0.timers.number()) };
        poll_fn(|cx| timer.poll(cx)).await;
    }
}

impl Tasks {
    fn number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
}

impl fmt::Debug for MainHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MainHandle")
    }
}

/// The output of a spawned task. Dropping it detaches the task: it runs on.
pub struct JoinHandle<T>(Option<FallibleTask<T>>);

impl<T> JoinHandle<T> {
    /// Wait for the task. Dropping the future detaches the task, as dropping the handle does.
    ///
    /// # Panics
    /// When there will be no output: the task panicked, or the loop is gone.
    pub async fn join(mut self) -> T {
        let output = poll_fn(|cx| match &mut self.0 {
            Some(task) => pin!(task).poll(cx),
            None => Poll::Ready(None),
        });
        output.await.expect("a task was waited for that had panicked, or was dropped with its main loop")
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl<T> fmt::Debug for JoinHandle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinHandle")
    }
}

struct Timer<'a> {
    shared: &'a Timers,
    key: (Instant, u64),
}

impl Timer<'_> {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if Instant::now() >= self.key.0 {
            return Poll::Ready(());
        }
        let old = self.shared.waiting.borrow_mut().insert(self.key, cx.waker().clone());
        drop(old);
        self.shared.arm();
        Poll::Pending
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        let waker = self.shared.waiting.borrow_mut().remove(&self.key);
        drop(waker);
    }
}

impl Timers {
    fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Wake whoever's time has come.
    fn expire(&self) {
        let mut count = [0u8; 8];
        let _ = rustix::io::read(&self.fd, &mut count);
        let now = Instant::now();
        loop {
            let due = {
                let mut waiting = self.waiting.borrow_mut();
                match waiting.first_key_value() {
                    Some((key, _)) if key.0 <= now => waiting.pop_first(),
                    _ => break,
                }
            };
            due.into_iter().for_each(|(_, waker)| waker.wake());
        }
        self.arm();
    }

    /// Set the descriptor to the earliest time.
    fn arm(&self) {
        let first = self.waiting.borrow().first_key_value().map(|(key, _)| key.0);
        // Zero would disarm it.
        let left = first.map(|at| at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1)));
        let left = left.unwrap_or_default();
        let value = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        let _ = rustix::time::timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &spec);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_run_and_outlive_their_handles() {
        let main = MainLoop::new().expect("descriptors");
        let count = Rc::new(Cell::new(0));
        let (handle, seen) = (main.handle(), count.clone());
        main.run(async {
            drop(handle.spawn(async move { seen.set(seen.get() + 1) }));
            handle.sleep(Duration::from_millis(2)).await;
            let seen = count.clone();
            assert_eq!(handle.spawn(async move { seen.replace(7) }).join().await, 1);
        });
        assert_eq!(count.get(), 7);
    }

    #[test]
    fn a_foreign_loop_sees_when_there_is_work() {
        let main = MainLoop::new().expect("descriptors");
        let done = Rc::new(Cell::new(false));
        let (handle, set) = (main.handle(), done.clone());
        let inner = handle.clone();
        drop(handle.spawn(async move {
            inner.sleep(Duration::from_millis(2)).await;
            set.set(true);
        }));
        while !done.get() {
            let mut event = [rustix::event::PollFd::from_borrowed_fd(main.fd(), rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut event, None).expect("poll");
            main.turn();
        }
    }

    #[test]
    fn wakes_from_other_threads_arrive() {
        let main = MainLoop::new().expect("descriptors");
        let (send, receive) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || send.send(3));
        let handle = main.handle();
        let got = main.run(async { handle.spawn(receive).join().await });
        assert_eq!(got, Ok(3));
        assert!(thread.join().is_ok());
    }
}
