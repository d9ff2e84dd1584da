//! The raw driver, over null and over a file in the page cache: what a mapping of a fixed distance costs.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use cairn_benches::{DataFile, Driver, FileMode, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::path::Path;

fn raw(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let data = DataFile::create(Path::new(dir.path()), "data", 256 << 20).expect("a file");
    let mut group = c.benchmark_group("raw");
    group.throughput(Throughput::Elements(1));
    for (below, stack) in [("null", Stack::null()), ("file", Stack::file(&data.path, FileMode::CACHED))] {
        let mut stack = stack.expect("a leaf");
        let leaf = stack.root();
        stack.raw().expect("a raw node");
        let raw = stack.root();
        for depth in [1, 32] {
            for (name, root) in [("without", &leaf), ("raw", &raw)] {
                let mut driver = Driver::new(Shape::reads(depth)).expect("a queue");
                let mut run = |count| driver.run(root, count).expect("requests");
                group.bench_function(format!("{below}-d{depth}-{name}"), |b| b.iter_custom(&mut run));
            }
        }
        drop((leaf, raw));
        stack.close().expect("closing");
    }
    group.finish();
}

criterion_group!(benches, raw);
criterion_main!(benches);
