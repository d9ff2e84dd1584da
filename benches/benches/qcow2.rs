//! The qcow2 driver, over memory and over a file in the page cache: what it adds to a read, and what allocating costs.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use block_io::{FileEngine, ThreadPool};
use block_testkit::MemFile;
use cairn_benches::{DataFile, Driver, FileMode, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::path::Path;

const LEN: u64 = 64 << 20;

fn memory() -> Stack {
    let file = MemFile::new(4 * LEN, FileEngine::Ring, ThreadPool::new(1)).expect("a file in memory");
    Stack::leaf(file).expect("a leaf")
}

fn read(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let data = DataFile::create(Path::new(dir.path()), "image", 0).expect("a file");
    let file = Stack::file(&data.path, FileMode::CACHED).expect("a file");
    let mut group = c.benchmark_group("qcow2");
    group.throughput(Throughput::Elements(1));
    for (below, mut stack) in [("memory", memory()), ("file", file)] {
        stack.qcow2(LEN, false).expect("an image");
        let image = stack.root();
        Driver::write_all(&image).expect("writing");
        for depth in [1, 32] {
            let mut driver = Driver::new(Shape::reads(depth)).expect("a queue");
            let mut run = |count| driver.run(&image, count).expect("requests");
            group.bench_function(format!("{below}-read-d{depth}"), |b| b.iter_custom(&mut run));
        }
        drop(image);
        stack.close().expect("closing");
    }
    group.finish();
}

/// Writes each of which allocates.
fn allocate(c: &mut Criterion) {
    let mut group = c.benchmark_group("qcow2");
    group.throughput(Throughput::Bytes(LEN)).sample_size(10);
    for (name, size, extended) in [("4k", 4 << 10, false), ("64k", 64 << 10, false), ("4k-subclusters", 4 << 10, true)]
    {
        group.bench_function(format!("allocate-{name}-d32"), |b| {
            b.iter_custom(|count| {
                let mut elapsed = std::time::Duration::ZERO;
                for _ in 0..count {
                    let mut stack = memory();
                    stack.qcow2(LEN, extended).expect("an image");
                    let root = stack.root();
                    let mut driver = Driver::new(Shape::writes(size, 32)).expect("a queue");
                    elapsed += driver.run(&root, LEN / size as u64).expect("writing");
                    drop(root);
                    stack.close().expect("closing");
                }
                elapsed
            });
        });
    }
    group.finish();
}

criterion_group!(benches, read, allocate);
criterion_main!(benches);
