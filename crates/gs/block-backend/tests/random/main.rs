//! Random operations on real images under load, against a model that stays with each medium.
//!
//! Guests read and write four drives from threads of their own: a qcow2 disk, a raw disk, a drive with a tray, and readers that come and go. Meanwhile the main loop
//! puts overlays on disks (alone, and several in one transaction of which one step fails), takes and deletes snapshots inside images, reopens nodes, resizes
//! disks, puts throttle filters in and takes them out, changes their limits, exchanges media, plugs a disk in and out, and moves everything between I/O threads; beside all
//! that, nodes are drained at random. What a guest reads is what was written last, to that medium; what cannot be is refused and changes nothing; no operation
//! hangs. In the end everything closes, and each image and snapshot is compared byte by byte, with QEMU's tools as well where they are installed.
//!
//! `CAIRN_SEED` repeats a run's choices (not its timing), `CAIRN_STRESS_SECONDS` says how long (default 8).
//!
//! Reading order: `board` is the model, `guest` the load, `disks` what the disks are made of, `acts` and `media` the operations, `watch` sees that they end.

#![allow(clippy::disallowed_methods, reason = "tests start programs, look at files, and have threads that sleep")]

mod board;

mod guest;

mod disks;

mod acts;
mod media;

mod watch;

use acts::Bench;
use block_gs::{GlobalOptions, GlobalState, MainLoop};
use block_testkit::{Rng, seed};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long one set of disks is used.
const ROUND: Duration = Duration::from_secs(4);

fn seconds() -> Duration {
    let text = std::env::var("CAIRN_STRESS_SECONDS").unwrap_or_else(|_| "8".into());
    Duration::from_secs(text.parse().expect("CAIRN_STRESS_SECONDS is a number of seconds"))
}

/// Files in `dir` that this process has open.
fn open_files(dir: &Path) -> Vec<String> {
    let all = std::fs::read_dir("/proc/self/fd").expect("there is one");
    let names = all.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    names.filter(|name| name.starts_with(dir)).map(|name| name.display().to_string()).collect()
}

/// Which operations a run must have come across.
const MUST: [&str; 20] = [
    "overlay",
    "overlay not put, nor the others",
    "snapshot inside",
    "snapshot deleted",
    "reopened",
    "reopen refused",
    "backing exchanged",
    "grown",
    "shrunk",
    "filter in",
    "filter out",
    "limits",
    "moved",
    "tray opened",
    "tray closed",
    "medium removed",
    "medium inserted",
    "medium changed",
    "reader attached",
    "plugged out and in",
];

#[test]
fn random_operations_on_images_under_load_agree_with_the_model() {
    let test = "random_operations_on_images_under_load_agree_with_the_model";
    let seed = seed();
    println!("CAIRN_SEED={seed:#x}");
    if !disks::has_qemu_img() {
        block_testkit::bed::skipped(test, "qemu-img is not installed: images are compared by us alone");
    }
    let end = Instant::now() + seconds();
    let mut rng = Rng::new(seed);
    let mut total: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut rounds, mut requests, mut bytes, mut drains) = (0, 0, 0, 0);
    while rounds == 0 || Instant::now() < end {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let main = MainLoop::new().expect("descriptors");
        let gs = GlobalState::new(&main, GlobalOptions { io_threads: true, ..GlobalOptions::default() });
        let gs = gs.expect("an I/O thread");
        block_drivers::register_all(&gs);
        let bench = main.run(async {
            let mut bench = Bench::new(&gs, dir.path(), seed, rng.fork()).await;
            let round_end = Instant::now() + ROUND;
            let drainers = bench.start_drains();
            while Instant::now() < round_end {
                bench.step().await;
            }
            drains += bench.stop_drains(drainers).await;
            bench.finish().await
        });
        assert_eq!(open_files(dir.path()), [] as [String; 0], "CAIRN_SEED={seed:#x}: files are left open");
        bench.compare_files(dir.path());
        let (done, compared, refused) = bench.counts;
        requests += done;
        bytes += compared;
        total.entry("requests refused").and_modify(|count| *count += refused as u32).or_insert(refused as u32);
        for (what, count) in bench.done {
            *total.entry(what).or_default() += count;
        }
        rounds += 1;
    }
    println!("{rounds} rounds, {requests} requests, {bytes} bytes compared, {drains} drains, {total:?}");
    // On a slow machine a short run does not come by everything.
    if total.values().sum::<u32>() - total["requests refused"] > 1500 {
        for what in MUST {
            assert!(total.get(what).is_some_and(|count| *count > 0), "CAIRN_SEED={seed:#x}: {what} never came about");
        }
    }
}
