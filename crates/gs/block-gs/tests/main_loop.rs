//! The main loop: driven by itself and by others, timers, wakes from everywhere, and its end.

use block_gs::MainLoop;
use block_testkit::bed::yield_now;
use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

fn main_loop() -> MainLoop {
    MainLoop::new().expect("descriptors")
}

/// Run `body` on a thread of its own; a loop that sleeps for ever fails the test.
fn in_time<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || drop(send.send(body())));
    let output = receive.recv_timeout(Duration::from_secs(60)).expect("the loop sleeps for ever, or the body panicked");
    thread.join().expect("the body has sent its output");
    output
}

/// Readable within `timeout`?
fn is_readable(main: &MainLoop, timeout: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
    let mut fds = [PollFd::from_borrowed_fd(main.fd(), PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("poll") > 0
}

#[test]
fn a_future_that_wakes_itself_is_polled_again() {
    let polls = in_time(|| {
        main_loop().run(async {
            for _ in 0..1000 {
                yield_now().await;
            }
            1000
        })
    });
    assert_eq!(polls, 1000);
}

#[test]
fn no_wake_from_another_thread_is_lost() {
    let rounds = in_time(|| {
        let main = main_loop();
        let (send, receive) = mpsc::channel::<Waker>();
        let waker_thread = std::thread::spawn(move || {
            for (i, waker) in receive.into_iter().enumerate() {
                for _ in 0..i % 64 {
                    std::hint::spin_loop();
                }
                waker.wake();
            }
        });
        main.run(async {
            for _ in 0..20_000 {
                let mut sent = false;
                poll_fn(|cx| {
                    if std::mem::replace(&mut sent, true) {
                        return Poll::Ready(());
                    }
                    send.send(cx.waker().clone()).expect("the thread listens");
                    Poll::Pending
                })
                .await;
            }
            drop(send);
        });
        waker_thread.join().is_ok()
    });
    assert!(rounds);
}

#[test]
fn tasks_are_woken_from_other_threads() {
    let sum = in_time(|| {
        let main = main_loop();
        let handle = main.handle();
        main.run(async {
            let mut tasks = Vec::new();
            let mut threads = Vec::new();
            for i in 0..50u64 {
                let (send, receive) = tokio::sync::oneshot::channel();
                tasks.push(handle.spawn(receive));
                threads.push(std::thread::spawn(move || send.send(i)));
            }
            let mut sum = 0;
            for task in tasks {
                sum += task.join().await.expect("a number was sent");
            }
            threads.into_iter().for_each(|thread| assert!(thread.join().is_ok()));
            sum
        })
    });
    assert_eq!(sum, (0..50u64).sum::<u64>());
}

#[test]
fn timers_come_in_order_and_not_early() {
    let main = main_loop();
    let handle = main.handle();
    let order = Rc::new(RefCell::new(Vec::new()));
    let begin = Instant::now();
    main.run(async {
        let sleeper = |ms| {
            let (inner, order) = (handle.clone(), order.clone());
            handle.spawn(async move {
                inner.sleep(Duration::from_millis(ms)).await;
                assert!(begin.elapsed() >= Duration::from_millis(ms));
                order.borrow_mut().push(ms);
            })
        };
        for task in [60, 20, 40, 0, 20].map(sleeper) {
            task.join().await;
        }
    });
    assert_eq!(*order.borrow(), [0, 20, 20, 40, 60]);
    // One that is dropped does not keep its loop awake, one that is out of reach does not overflow.
    main.run(async {
        let long = handle.sleep(Duration::MAX);
        assert!(block_testkit::bed::drop_after(long, 2).await.is_none());
    });
    assert!(!main.turn() && !is_readable(&main, Duration::ZERO));
}

#[test]
fn a_foreign_loop_drives_it_by_its_descriptor() {
    let main = main_loop();
    let handle = main.handle();
    assert!(!is_readable(&main, Duration::ZERO), "nothing to do");
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (inner, log) = (handle.clone(), seen.clone());
    let (send, receive) = tokio::sync::oneshot::channel();
    drop(handle.spawn(async move {
        log.borrow_mut().push("begun");
        inner.sleep(Duration::from_millis(5)).await;
        log.borrow_mut().push("slept");
        let _ = receive.await;
        log.borrow_mut().push("told");
    }));
    assert!(is_readable(&main, Duration::ZERO), "a task is ready");
    assert!(!main.turn());
    assert_eq!(*seen.borrow(), ["begun"]);
    assert!(!is_readable(&main, Duration::ZERO), "it waits");
    assert!(is_readable(&main, Duration::from_secs(10)), "the timer makes it readable");
    main.turn();
    assert_eq!(*seen.borrow(), ["begun", "slept"]);
    let thread = std::thread::spawn(move || send.send(()));
    assert!(is_readable(&main, Duration::from_secs(10)), "so does another thread");
    main.turn();
    assert_eq!(seen.borrow().len(), 3);
    assert!(thread.join().is_ok());
}

#[test]
fn a_turn_is_bounded_and_says_whether_more_is_ready() {
    let main = main_loop();
    let count = Rc::new(Cell::new(0));
    for _ in 0..1000 {
        let count = count.clone();
        drop(main.handle().spawn(async move { count.set(count.get() + 1) }));
    }
    assert!(main.turn());
    assert!(count.get() < 1000 && is_readable(&main, Duration::ZERO));
    while main.turn() {}
    assert_eq!(count.get(), 1000);
}

#[test]
fn dropped_handles_detach() {
    let main = main_loop();
    let handle = main.handle();
    let done = Rc::new(Cell::new(0));
    main.run(async {
        let (one, two) = (done.clone(), done.clone());
        drop(handle.spawn(async move { one.set(one.get() + 1) }));
        // Dropping the future that joins is the same.
        let inner = handle.clone();
        let joining = handle
            .spawn(async move {
                inner.sleep(Duration::from_millis(2)).await;
                two.set(two.get() + 1);
            })
            .join();
        assert!(block_testkit::bed::drop_after(joining, 1).await.is_none());
        handle.sleep(Duration::from_millis(20)).await;
    });
    assert_eq!(done.get(), 2);
}

struct Noisy(Rc<Cell<u32>>);

impl Drop for Noisy {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn tasks_are_dropped_with_the_loop_whatever_they_wait_for() {
    let main = main_loop();
    let handle = main.handle();
    let dropped = Rc::new(Cell::new(0));
    let (send, receive) = tokio::sync::oneshot::channel::<()>();
    let noisy = || Noisy(dropped.clone());
    // Never polled; waiting for a timer; for nothing at all; for another thread; for another task.
    let first = noisy();
    drop(handle.spawn(async move { drop(first) }));
    let (inner, second) = (handle.clone(), noisy());
    drop(handle.spawn(async move {
        inner.sleep(Duration::from_secs(1000)).await;
        drop(second);
    }));
    let third = noisy();
    drop(handle.spawn(async move {
        pending::<()>().await;
        drop(third);
    }));
    let fourth = noisy();
    let task = handle.spawn(async move {
        let _ = receive.await;
        drop(fourth);
    });
    let fifth = noisy();
    drop(handle.spawn(async move {
        task.join().await;
        drop(fifth);
    }));
    main.turn();
    assert_eq!(dropped.get(), 1);
    // One that spawns another when it is dropped: that one is dropped too.
    struct Spawner(block_gs::MainHandle, Option<Noisy>);
    impl Drop for Spawner {
        fn drop(&mut self) {
            let noisy = self.1.take();
            drop(self.0.spawn(async move { drop(noisy) }));
        }
    }
    let spawner = Spawner(handle.clone(), Some(noisy()));
    drop(handle.spawn(async move {
        pending::<()>().await;
        drop(spawner);
    }));
    main.turn();
    drop(main);
    assert_eq!(dropped.get(), 6);
    // Its waker is a dead one, on whatever thread.
    assert!(std::thread::spawn(move || send.send(())).join().is_ok());
    let late = noisy();
    drop(handle.spawn(async move { drop(late) }));
    assert_eq!(dropped.get(), 7, "what is spawned later is dropped at once");
}

#[test]
fn the_end_of_a_loop_and_wakes_from_other_threads_get_along() {
    // The loop goes while other threads are just waking its tasks: the tasks are dropped here, never there.
    for round in 0..300u64 {
        let main = main_loop();
        let dropped = Rc::new(Cell::new(0));
        let mut sends = Vec::new();
        for _ in 0..8 {
            let (send, receive) = tokio::sync::oneshot::channel::<()>();
            let noisy = Noisy(dropped.clone());
            drop(main.handle().spawn(async move {
                let _ = receive.await;
                drop(noisy);
            }));
            sends.push(send);
        }
        main.turn();
        let thread = std::thread::spawn(move || {
            for _ in 0..round * 10 {
                std::hint::spin_loop();
            }
            for send in sends {
                // The task may be gone already.
                let _ = send.send(());
            }
        });
        drop(main);
        assert_eq!(dropped.get(), 8);
        assert!(thread.join().is_ok());
    }
}

#[test]
fn a_panic_comes_out_and_the_loop_goes_on() {
    let main = main_loop();
    let handle = main.handle();
    let task = handle.spawn(async { panic!("on purpose") });
    assert!(catch_unwind(AssertUnwindSafe(|| main.turn())).is_err());
    let joined = catch_unwind(AssertUnwindSafe(|| main.run(task.join())));
    let message = joined.expect_err("there is no output");
    let message = message.downcast_ref::<String>().expect("a text");
    assert!(message.contains("panicked, or was dropped"), "{message}");
    assert_eq!(main.run(async { handle.spawn(async { 4 }).join().await }), 4);
}

#[test]
fn loops_of_different_threads_are_independent() {
    let threads: Vec<_> = (0..4u64)
        .map(|i| {
            std::thread::spawn(move || {
                let main = main_loop();
                let handle = main.handle();
                main.run(async {
                    let mut sum = 0;
                    for k in 0..100 {
                        sum += handle.spawn(async move { i * k }).join().await;
                    }
                    sum
                })
            })
        })
        .collect();
    for (i, thread) in (0..).zip(threads) {
        assert_eq!(thread.join().expect("no panic"), i * 4950);
    }
}
