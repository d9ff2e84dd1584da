//! The null driver: what a request costs before any driver does anything.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use cairn_benches::{Driver, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn null(c: &mut Criterion) {
    let mut stack = Stack::null().expect("a null node");
    let root = stack.root();
    let mut group = c.benchmark_group("null");
    group.throughput(Throughput::Elements(1));
    for depth in [1, 32] {
        for write in [false, true] {
            let mut driver = Driver::new(Shape { write, ..Shape::reads(depth) }).expect("a queue");
            let name = format!("{}-d{depth}", if write { "write" } else { "read" });
            group.bench_function(name, |b| b.iter_custom(|count| driver.run(&root, count).expect("requests")));
        }
    }
    group.finish();
    stack.close().expect("closing");
}

criterion_group!(benches, null);
criterion_main!(benches);
