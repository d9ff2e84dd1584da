//! The throttle driver, over null and over a file in the page cache: what it costs without limits, and with limits that nobody reaches.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use block_throttle::{Limit, LimitKind, LimitSettings, ThrottleLimits, VALUE_MAX};
use cairn_benches::{DataFile, Driver, FileMode, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::path::Path;

/// Limits that no machine reaches.
fn far() -> ThrottleLimits {
    let mut settings = LimitSettings::default();
    settings[LimitKind::IopsTotal] = Limit { rate: VALUE_MAX, ..Limit::default() };
    ThrottleLimits::new(settings).expect("they go together")
}

fn throttle(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let data = DataFile::create(Path::new(dir.path()), "data", 256 << 20).expect("a file");
    let mut group = c.benchmark_group("throttle");
    group.throughput(Throughput::Elements(1));
    for (below, stack) in [("null", Stack::null()), ("file", Stack::file(&data.path, FileMode::CACHED))] {
        let mut stack = stack.expect("a leaf");
        let leaf = stack.root();
        stack.throttle(ThrottleLimits::default()).expect("a throttle node");
        let unlimited = stack.root();
        stack.throttle(far()).expect("a throttle node");
        let limited = stack.root();
        for depth in [1, 32] {
            for (name, root) in [("without", &leaf), ("unlimited", &unlimited), ("limited", &limited)] {
                let mut driver = Driver::new(Shape::reads(depth)).expect("a queue");
                let mut run = |count| driver.run(root, count).expect("requests");
                group.bench_function(format!("{below}-d{depth}-{name}"), |b| b.iter_custom(&mut run));
            }
        }
        drop((leaf, unlimited, limited));
        stack.close().expect("closing");
    }
    group.finish();
}

criterion_group!(benches, throttle);
criterion_main!(benches);
