//! The core's own parts: layers that are mapped through, a root without a queue, and the slow path.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use block_common::{AlignedBuf, IoBuf};
use block_io::Root;
use block_testkit::bed::block_on;
use cairn_benches::{Driver, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::time::{Duration, Instant};

/// A pin, a look at an edge and a mapping each.
fn layers(c: &mut Criterion) {
    let mut stack = Stack::null().expect("a null node");
    let mut group = c.benchmark_group("layers");
    group.throughput(Throughput::Elements(1));
    for layers in 0..=4 {
        if layers > 0 {
            stack.filter().expect("a filter");
        }
        let root = stack.root();
        for depth in [1, 32] {
            let mut driver = Driver::new(Shape::reads(depth)).expect("a queue");
            let mut run = |count| driver.run(&root, count).expect("requests");
            group.bench_function(format!("{layers}-d{depth}"), |b| b.iter_custom(&mut run));
        }
    }
    group.finish();
    stack.close().expect("closing");
}

async fn reads(root: Root, mut buf: IoBuf, count: u64) -> Duration {
    let begin = Instant::now();
    for _ in 0..count {
        let (result, back) = root.read(0, buf).await;
        result.expect("a read");
        buf = back.expect("the buffer");
    }
    begin.elapsed()
}

/// `Root::read` awaited on an I/O thread, where it takes the fast path, and from a thread that is none, which
/// forwards it.
fn futures(c: &mut Criterion) {
    let mut stack = Stack::null().expect("a null node");
    let root = stack.root();
    let buf = || AlignedBuf::zeroed(4096, 4096).into_io();
    let mut group = c.benchmark_group("future");
    group.throughput(Throughput::Elements(1));
    let home = stack.thread().handle();
    group.bench_function("at-home", |b| {
        b.iter_custom(|count| block_on(home.run(reads(root.clone(), buf(), count))).expect("the thread"));
    });
    group.bench_function("forwarded", |b| b.iter_custom(|count| block_on(reads(root.clone(), buf(), count))));
    // A flush has no fast path.
    group.bench_function("slow-at-home", |b| {
        b.iter_custom(|count| {
            let root = root.clone();
            let flushes = async move {
                let begin = Instant::now();
                for _ in 0..count {
                    root.flush().await.expect("a flush");
                }
                begin.elapsed()
            };
            block_on(home.run(flushes)).expect("the thread")
        });
    });
    group.finish();
    drop(root);
    stack.close().expect("closing");
}

criterion_group!(benches, layers, futures);
criterion_main!(benches);
