//! The second act: the block layer itself. A disk image is opened as a graph, and two device threads write and read it at depth 32.
//! Meanwhile nodes are swapped, and the disk is copied to another image, which then takes the first one's place. Every byte
//! that a read returns is checked, and at the end every byte of the copy, and the file system in it.

use crate::device::Device;
use crate::disk;
use anyhow::{Context, Result, bail};
use block_backend::{Backend, BackendOptions};
use block_common::options::Dialect;
use block_common::{Options, Perm, PermPair};
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, MainLoop, NodeRef, Users};
use block_io::{IoThread, IoThreadOptions};
use block_jobs::{CopyJob, JobOptions, JobRegistry, JobStatus};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the load runs alone before and after the copy.
const BREATH: Duration = Duration::from_millis(700);
const DEVICES: usize = 2;

/// Play the act in `dir`.
///
/// # Errors
/// What was read or copied is not what was written, or something failed.
pub(crate) fn run(dir: &Path, seed: u64) -> Result<()> {
    let (source, target) = (dir.join("disk.raw"), dir.join("copy.raw"));
    let contents = disk::make(dir, &source)?;
    std::fs::File::create(&target)?.set_len(contents.len() as u64)?;
    println!("disk      {} MiB, with an ext4 file system made by mke2fs (seed {seed})", contents.len() >> 20);

    let main = MainLoop::new()?;
    let gs = GlobalState::new(&main, GlobalOptions::default())?;
    register_all(&gs);
    let contents = main.run(async {
        let result = play(&gs, &source, &target, contents, seed).await;
        let closed = JobRegistry::close_all(&gs).await;
        let contents = result?;
        closed.context("closing everything")?;
        anyhow::Ok(contents)
    })?;
    println!("closed    nothing is left open");

    disk::compare(&target, &contents)?;
    println!("verified  all {} bytes of the copy are what was written", contents.len());
    disk::check(&target)?;
    println!("verified  e2fsck finds the file system in the copy clean");
    Ok(())
}

fn image(path: &Path, name: &str) -> Result<Options> {
    let path = path.to_str().context("a path in UTF-8")?;
    let mut options = Options::new(Dialect::Qmp);
    options.insert("driver", "raw")?;
    options.insert("node-name", name)?;
    options.insert("file.driver", "file")?;
    options.insert("file.filename", path)?;
    Ok(options)
}

/// Everything that needs the graph. Returns what the disk must hold.
async fn play(gs: &GlobalState, source: &Path, target: &Path, contents: Vec<u8>, seed: u64) -> Result<Vec<u8>> {
    let disk = gs.open(image(source, "disk")?).await?;
    let copy = gs.open(image(target, "copy")?).await?;
    let home = IoThread::spawn(IoThreadOptions::named("demo-io"))?;
    let perm = Perm::CONSISTENT_READ | Perm::WRITE;
    let backend = Backend::new(
        gs,
        BackendOptions {
            name: "drive0".into(),
            perm: PermPair::new(perm, Perm::all()),
            home: home.handle(),
            settings: Default::default(),
        },
    )?;
    backend.insert(&disk).await?;
    println!("graph     drive0 -> disk (raw) -> file; copy (raw) -> file");

    let devices = Device::start(&backend.io(), contents, DEVICES, seed);
    let begin = Instant::now();
    gs.main().sleep(BREATH).await;
    let swaps = swap_for(gs, &disk, BREATH).await?;
    println!("swaps     a node inserted and dropped {} times under load, slowest {:?}", swaps.0, swaps.1);

    let job = CopyJob { options: Default::default(), ..CopyJob::new("disk", "copy") };
    let (copying, job) = (Instant::now(), JobRegistry::start(gs, JobOptions::new("copy0"), job).await?);
    let status = job.reached(|status| status == JobStatus::Ready || status.is_over()).await;
    if status != JobStatus::Ready {
        job.ended().await.map_err(|error| anyhow::anyhow!("the copy failed: {error}"))?;
        bail!("the copy ended as {status:?}");
    }
    let caught_up = copying.elapsed();
    job.complete()?;
    job.ended().await.map_err(|error| anyhow::anyhow!("the copy failed: {error}"))?;
    let now_on = backend.node().map(|node| node.name().to_owned()).unwrap_or_default();
    println!(
        "copied    while it was written: caught up after {caught_up:?} ({:.0} MiB/s), drive0 is on '{now_on}' now",
        (copy.io().length() >> 20) as f64 / caught_up.as_secs_f64()
    );
    if now_on != "copy" {
        bail!("the drive should be on the copy");
    }
    gs.main().sleep(BREATH).await;

    let elapsed = begin.elapsed();
    let totals = devices.stop()?;
    println!(
        "load      {} requests by {DEVICES} device threads at depth 32, {:.0} a second, slowest {:?}; every byte read was checked",
        totals.requests,
        totals.requests as f64 / elapsed.as_secs_f64(),
        totals.slowest
    );
    backend.io().root().flush().await.context("flushing")?;
    backend.remove().await?;
    drop((disk, copy));
    Ok(totals.contents)
}

/// Put a raw node above `disk` and take it out again, for as long as `time`. Returns how often, and the longest it took.
async fn swap_for(gs: &GlobalState, disk: &NodeRef, time: Duration) -> Result<(u32, Duration)> {
    let (begin, mut count, mut slowest) = (Instant::now(), 0, Duration::ZERO);
    while begin.elapsed() < time {
        let mut options = Options::new(Dialect::Qmp);
        options.insert("driver", "raw")?;
        options.insert("file", disk.name())?;
        let swap = Instant::now();
        let filter = gs.insert_node(disk, Users::All, options).await?;
        gs.main().sleep(Duration::from_millis(1)).await;
        let guard = gs.drain(&filter).await;
        gs.replace_node(&guard, &filter, disk)?;
        drop(guard);
        gs.close(filter).await?;
        slowest = slowest.max(swap.elapsed());
        count += 1;
    }
    Ok((count, slowest))
}
