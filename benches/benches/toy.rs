//! The toy format over memory: leases and allocation without a disk. It is no format that anybody stores data in.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use block_io::{FileEngine, ThreadPool};
use block_testkit::MemFile;
use cairn_benches::{Driver, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const LEN: u64 = 64 << 20;

fn stack() -> Stack {
    let file = MemFile::new(4 * LEN, FileEngine::Ring, ThreadPool::new(1)).expect("a file in memory");
    Stack::leaf(file).expect("a leaf")
}

fn toy(c: &mut Criterion) {
    let mut group = c.benchmark_group("toy");
    group.throughput(Throughput::Elements(1));
    let mut stack = stack();
    let leaf = stack.root();
    stack.toy_format(LEN).expect("a toy image");
    let toy = stack.root();
    Driver::write_all(&toy).expect("writing");
    for depth in [1, 32] {
        for (name, root) in [("without", &leaf), ("toy", &toy)] {
            let mut driver = Driver::new(Shape::reads(depth)).expect("a queue");
            let mut run = |count| driver.run(root, count).expect("requests");
            group.bench_function(format!("read-d{depth}-{name}"), |b| b.iter_custom(&mut run));
        }
    }
    drop((leaf, toy));
    stack.close().expect("closing");
    group.finish();
}

/// Writes of 64 KiB, each of which allocates a cluster.
fn allocate(c: &mut Criterion) {
    let mut group = c.benchmark_group("toy");
    group.throughput(Throughput::Bytes(LEN)).sample_size(10);
    group.bench_function("allocate-d8", |b| {
        b.iter_custom(|count| {
            let mut elapsed = std::time::Duration::ZERO;
            for _ in 0..count {
                let mut stack = stack();
                stack.toy_format(LEN).expect("a toy image");
                let root = stack.root();
                let shape = Shape::writes(64 << 10, 8);
                let mut driver = Driver::new(shape).expect("a queue");
                elapsed += driver.run(&root, LEN / (64 << 10)).expect("writing");
                drop(root);
                stack.close().expect("closing");
            }
            elapsed
        });
    });
    group.finish();
}

criterion_group!(benches, toy, allocate);
criterion_main!(benches);
