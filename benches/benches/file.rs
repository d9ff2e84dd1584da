//! The file driver: io_uring and threads, through the page cache and around it.

#![allow(missing_docs, reason = "criterion's macros make public functions")]

use cairn_benches::{DataFile, Driver, FileMode, Shape, Stack};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn file(c: &mut Criterion) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let data = DataFile::create(dir.path(), "data", 256 << 20).expect("a file");
    let mut group = c.benchmark_group("file");
    group.throughput(Throughput::Elements(1));
    let modes = [("cached", FileMode::CACHED), ("threads", FileMode::THREADS), ("direct", FileMode::DIRECT)];
    for (name, mode) in modes {
        let mut stack = match Stack::file(&data.path, mode) {
            Ok(stack) => stack,
            Err(error) => {
                println!("file/{name}: left out: {error:#}");
                continue;
            }
        };
        let root = stack.root();
        for depth in [1, 32] {
            for write in [false, true] {
                let mut driver = Driver::new(Shape { write, ..Shape::reads(depth) }).expect("a queue");
                let kind = if write { "write" } else { "read" };
                let mut run = |count| driver.run(&root, count).expect("requests");
                group.bench_function(format!("{name}-{kind}-d{depth}"), |b| b.iter_custom(&mut run));
            }
        }
        if mode.direct {
            for (size, depth) in [(4096, 32), (65536, 32), (65536, 1)] {
                let shape = Shape { size, step: size as u64, ..Shape::reads(depth) };
                let drivers = [("", Driver::new(shape)), ("-registered", Driver::registered(shape))];
                for (how, driver) in drivers {
                    let Ok(mut driver) = driver.inspect_err(|error| println!("left out: {error:#}")) else { continue };
                    let mut run = |count| driver.run(&root, count).expect("requests");
                    let name = format!("{name}-read-{}k-d{depth}{how}", size >> 10);
                    group.bench_function(name, |b| b.iter_custom(&mut run));
                }
            }
        }
        drop(root);
        stack.close().expect("closing");
    }
    group.finish();
}

criterion_group!(benches, file);
criterion_main!(benches);
