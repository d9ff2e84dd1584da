//! Filters over a file in the page cache: what those cost that let reads pass, and what those cost that do not.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use cairn_benches::{DataFile, Driver, Live, PASSING, Shape};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::path::Path;

/// Filters that have something to do for each read.
const WORKING: [(&str, &str); 4] = [
    // Every request meets its rules.
    ("blkdebug", r#"{"driver": "blkdebug", "image": "leaf"}"#),
    ("blkverify", r#"{"driver": "blkverify", "test": "leaf", "raw": {"driver": "raw", "file": "leaf"}}"#),
    (
        "quorum",
        r#"{"driver": "quorum", "vote-threshold": 2,
            "children": [{"driver": "raw", "file": "leaf"}, {"driver": "raw", "file": "leaf"}]}"#,
    ),
    (
        "snapshot-access",
        r#"{"driver": "snapshot-access", "file": {"driver": "copy-before-write", "file": "leaf",
            "target": {"driver": "null-co", "size": 1073741824, "read-zeroes": true}}}"#,
    ),
];

fn filters(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let data = DataFile::create(Path::new(dir.path()), "data", 256 << 20).expect("a file");
    let mut group = c.benchmark_group("filters");
    group.throughput(Throughput::Elements(1));
    for (name, options) in PASSING.into_iter().chain(WORKING) {
        let live = Live::new().expect("a block layer");
        let leaf = live.leaf(&data, name).expect("a leaf");
        let filter = live.open(options).expect("a filter");
        let [with, without] = [&filter, &leaf].map(|node| live.backend(node, false).expect("a user"));
        for depth in [1, 32] {
            for (which, user) in [("with", &with), ("without", &without)] {
                let (io, mut driver) = (user.io(), Driver::new(Shape::reads(depth)).expect("a queue"));
                let mut run = |count| driver.run(io.root(), count).expect("requests");
                group.bench_function(format!("{name}-d{depth}-{which}"), |b| b.iter_custom(&mut run));
            }
        }
        drop((with, without, filter, leaf));
        live.close().expect("closing");
    }
    group.finish();
}

criterion_group!(benches, filters);
criterion_main!(benches);
