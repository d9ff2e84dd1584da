//! The luks driver, over a file in the page cache: what encryption costs a request, short ones and long ones.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use cairn_benches::{DataFile, Driver, FileMode, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::path::Path;

fn luks(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let data = DataFile::create(Path::new(dir.path()), "data", 256 << 20).expect("a file");
    let mut group = c.benchmark_group("luks");
    let mut stack = Stack::file(&data.path, FileMode::CACHED).expect("a file");
    let file = stack.root();
    stack.luks(0).expect("a luks node");
    let luks = stack.root();
    for (size, depth) in [(4 << 10, 1), (4 << 10, 32), (64 << 10, 1), (64 << 10, 32), (2 << 20, 1), (2 << 20, 8)] {
        group.throughput(Throughput::Bytes(size));
        for (kind, shape) in [("read", Shape::reads(depth)), ("write", Shape::writes(size as usize, depth))] {
            for (name, root) in [("without", &file), ("luks", &luks)] {
                let shape = Shape { size: size as usize, step: size, ..shape };
                let mut driver = Driver::new(shape).expect("a queue");
                let mut run = |count| driver.run(root, count).expect("requests");
                group.bench_function(format!("{kind}-{}k-d{depth}-{name}", size >> 10), |b| b.iter_custom(&mut run));
            }
        }
    }
    drop((file, luks));
    stack.close().expect("closing");
    group.finish();
}

criterion_group!(benches, luks);
criterion_main!(benches);
