//! Whether requests flow: many of them by every way there is. Prints what it measured and asserts no time; numbers that
//! mean something come from `benches/`.

#![allow(clippy::disallowed_methods, reason = "tests make files and sleep")]

mod common;

use block_common::Limits;
use block_io::{FileEngine, Queue, Request, Root};
use common::*;
use std::time::Instant;

fn report(what: &str, count: u64, run: impl FnOnce()) {
    let begin = Instant::now();
    run();
    let elapsed = begin.elapsed();
    println!("{what:40} {count:7} requests, {:6} ns each", elapsed.as_nanos() as u64 / count);
}

fn by_queue(root: &Root, count: u64, depth: usize) {
    let mut queue = Queue::new().expect("a queue");
    let mut free: Vec<_> = (0..depth).map(|_| buf(4096, 1)).collect();
    let (mut done, mut sent) = (Vec::new(), 0);
    while sent < count || queue.pending() > 0 {
        while sent < count
            && let Some(buf) = free.pop()
        {
            queue.submit(root, Request::read(sent % 16 * 4096, buf), sent);
            sent += 1;
        }
        queue.wait(&mut done, Some(LONG));
        for one in done.drain(..) {
            assert_eq!(one.done.result, Ok(()));
            free.push(one.done.buf.expect("the buffer comes back"));
        }
    }
    assert_eq!(free.len(), depth);
}

async fn by_await(root: Root, count: u64) {
    let mut data = buf(4096, 1);
    for i in 0..count {
        let (result, back) = root.read(i % 16 * 4096, data).await;
        assert_eq!(result, Ok(()));
        data = back.expect("the buffer comes back");
    }
}

#[test]
fn requests_flow() {
    let home = thread();
    for fast in [true, false] {
        let state = MemState::new(1 << 16);
        state.fast.store(fast, std::sync::atomic::Ordering::SeqCst);
        let stack = mem(&home.handle(), &state);
        let root = stack.root.root();
        let name = if fast { "memory, fast" } else { "memory, slow" };
        report(&format!("{name}, queue"), 20_000, || by_queue(&root, 20_000, 32));
        report(&format!("{name}, own thread"), 20_000, || {
            block_on(home.handle().run(by_await(root.clone(), 20_000))).expect("it ended");
        });
        report(&format!("{name}, foreign thread"), 5_000, || block_on(by_await(root.clone(), 5_000)));
    }
    for (engine, fast) in [(FileEngine::Ring, true), (FileEngine::Ring, false), (FileEngine::Threads, true)] {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(1 << 16).expect("room");
        let (file, _control) = host_file(file, engine, 1);
        let stack = stack(&home.handle(), Host { file, fast, limits: Limits::NONE, length: None }, 1 << 16);
        let root = stack.root.root();
        let name = format!("{engine:?}, {}", if fast { "fast" } else { "slow" });
        report(&format!("{name}, queue of 1"), 5_000, || by_queue(&root, 5_000, 1));
        report(&format!("{name}, queue of 32"), 20_000, || by_queue(&root, 20_000, 32));
        report(&format!("{name}, own thread"), 5_000, || {
            block_on(home.handle().run(by_await(root.clone(), 5_000))).expect("it ended");
        });
        report(&format!("{name}, foreign thread"), 5_000, || block_on(by_await(root.clone(), 5_000)));
        eventually("idle", || root.in_flight() == 0);
    }
}
