//! Power cuts: concurrent requests of every kind, the power fails at any request of the engine to its file, any sectors of what was not
//! flushed survive. Then the image is valid but for leaks, and every sector has what was flushed last or was written since.
//!
//! `CAIRN_CRASH_IMAGES` says how many images are looked at (default 1000), `CAIRN_SEED` repeats the choices.

use crate::bed::{NONE, buf, open, storage};
use block_common::{IoError, RequestFlags};
use block_io::{IoThread, KeptBitmap, NodeBitmap, Root};
use block_qcow2::{Header, Qcow2Options};
use block_qcow2_format::{BitmapFlags, CompressionType, IncompatibleFeatures, Version};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::qcow2::{Format, Found, inspect};
use block_testkit::{MemStorage, Rng, Verdict, seed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;
const DISK: usize = 512 << 10;
const WORKERS: usize = 5;
/// Images made of one state of the storage.
const CUTS: usize = 4;

/// A value of a sector: what it was filled with, and whether that is over.
#[derive(Clone, Copy, Debug)]
struct Value {
    stamp: u64,
    /// Counts requests: zeroes all have the same stamp.
    id: u64,
    done: bool,
}

/// What each sector may hold after a power cut.
#[derive(Clone, Debug)]
struct Model {
    sectors: Vec<Vec<Value>>,
    next: u64,
}

type Shared = Arc<Mutex<Model>>;

fn lock(model: &Shared) -> MutexGuard<'_, Model> {
    model.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    /// The disk of zeroes over a backing file whose sectors have stamps of their own.
    fn new(backing: usize) -> Self {
        let value =
            |at: usize| Value { stamp: if at < backing / SECTOR { backing_stamp(at) } else { 0 }, id: 0, done: true };
        Self { sectors: (0..DISK / SECTOR).map(|at| vec![value(at)]).collect(), next: 1 }
    }

    fn begin(&mut self, range: std::ops::Range<usize>, stamp: u64) {
        let id = self.next;
        range.for_each(|at| self.sectors[at].push(Value { stamp, id, done: false }));
    }

    fn end(&mut self, range: std::ops::Range<usize>) {
        for at in range {
            if let Some(value) = self.sectors[at].last_mut() {
                value.done = true;
            }
        }
    }

    /// For each sector, which of its values a flush that begins now covers.
    fn covered(&self) -> Vec<u64> {
        self.sectors
            .iter()
            .map(|values| values.iter().rposition(|value| value.done).map_or(0, |at| values[at].id))
            .collect()
    }

    /// A flush is over: what came before these values is gone.
    fn flushed(&mut self, covered: &[u64]) {
        for (values, id) in self.sectors.iter_mut().zip(covered) {
            if let Some(at) = values.iter().position(|value| value.id == *id) {
                values.drain(..at);
            }
        }
    }

    fn check(&self, guest: &[u8]) -> Result<(), String> {
        for (at, values) in self.sectors.iter().enumerate() {
            let sector = &guest[at * SECTOR..(at + 1) * SECTOR];
            if !values.iter().any(|value| sector == filled(value.stamp)) {
                let stamp = u64::from_be_bytes(sector[..8].try_into().expect("eight bytes"));
                return Err(format!("sector {at} begins with {stamp:#x}, which is none of {values:?}"));
            }
        }
        Ok(())
    }
}

fn backing_stamp(sector: usize) -> u64 {
    0xbac0_0000_0000 + sector as u64
}

fn filled(stamp: u64) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    for (i, bytes) in sector.chunks_exact_mut(8).enumerate() {
        // Every word tells where it is, and the first bytes compress.
        bytes.copy_from_slice(&(if stamp == 0 { 0 } else { stamp + ((i as u64 & 3) << 56) }).to_be_bytes());
    }
    sector
}

/// One of those who write at the same time, each to sectors of its own: the lower half of the disk is dealt out in small pieces, the upper half in
/// large ones.
struct Worker {
    number: usize,
    root: Root,
    model: Shared,
    rng: Rng,
    cluster: usize,
    /// Discards and zeroes give zeroes.
    discards: bool,
}

impl Worker {
    fn area(&mut self) -> std::ops::Range<usize> {
        let (half, whole) = (DISK / SECTOR / 2, DISK / SECTOR);
        if self.rng.chance(50) {
            let piece = 3;
            let pieces = half / (piece * WORKERS);
            let first = (self.rng.below(0..pieces as u64) as usize * WORKERS + self.number) * piece;
            first..first + self.rng.below(1..piece as u64 + 1) as usize
        } else {
            let each = (whole - half) / WORKERS;
            let base = half + self.number * each;
            let from = base + self.rng.below(0..each as u64) as usize;
            from..(from + self.rng.below(1..64) as usize).min(base + each)
        }
    }

    /// Whole clusters of the worker's own, if there are any.
    fn clusters(&mut self) -> Option<std::ops::Range<usize>> {
        let per = (self.cluster / SECTOR).max(1);
        let area = self.area();
        let (from, to) = (area.start.next_multiple_of(per), area.end / per * per);
        (from < to).then_some(from..to)
    }

    async fn run(mut self) -> Result<(), IoError> {
        for _ in 0..60 {
            self.step().await?;
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), IoError> {
        let choice = self.rng.below(0..20);
        if choice < 2 {
            let covered = lock(&self.model).covered();
            self.root.flush().await?;
            lock(&self.model).flushed(&covered);
            return Ok(());
        }
        let is_zero = (2..8).contains(&choice) && self.discards;
        let is_packed = choice == 8;
        let area = if (5..9).contains(&choice) { self.clusters() } else { Some(self.area()) };
        let Some(area) = area else { return Ok(()) };
        let stamp = {
            let mut model = lock(&self.model);
            model.next += 1;
            let stamp = if is_zero { 0 } else { model.next };
            model.begin(area.clone(), stamp);
            stamp
        };
        let (offset, len) = ((area.start * SECTOR) as u64, (area.len() * SECTOR) as u64);
        let data = || buf(&filled(stamp).repeat(area.len()));
        let result = match choice {
            2..=4 if is_zero => {
                self.root.zero(offset, len, if choice == 2 { NONE } else { RequestFlags::MAY_UNMAP }).await
            }
            5..=7 if is_zero => self.root.discard(offset, len).await,
            _ if is_packed => match self.root.write(offset, data(), RequestFlags::WRITE_COMPRESSED).await.0 {
                // For clusters that were written before there is no such thing.
                Err(_) => self.root.write(offset, data(), NONE).await.0,
                written => written,
            },
            9 => {
                // Everything of it is durable when it is over.
                let result = self.root.write(offset, data(), RequestFlags::FUA).await.0;
                if result.is_ok() {
                    let mut model = lock(&self.model);
                    model.end(area.clone());
                    area.for_each(|at| {
                        let values = &mut model.sectors[at];
                        values.drain(..values.len() - 1);
                    });
                    return Ok(());
                }
                result
            }
            _ => self.root.write(offset, data(), NONE).await.0,
        };
        // A discard may have done nothing.
        if !(5..=7).contains(&choice) || !is_zero {
            lock(&self.model).end(area);
        }
        result
    }
}

/// Requests until the power fails, and the images that may be left then.
fn run(format: Format, backing: usize, rng: &mut Rng) -> (Model, Vec<Vec<u8>>) {
    let threads = [io_thread(true), io_thread(true)];
    let file = storage(format.bytes());
    if format.version == Version::V3 && rng.chance(30) {
        let image = open(&threads[0], &file, None, Qcow2Options::default()).expect("opens");
        let bits = Arc::new(NodeBitmap::try_new(DISK as u64, 512).expect("it is small"));
        let kept = KeptBitmap { name: "before".into(), granularity: 512, recording: true, bits };
        image.control.keep_bitmaps(&[kept]).expect("there is room");
        image.close().expect("closes");
    }
    let below = (backing > 0).then(|| {
        let bytes = (0..backing / SECTOR).flat_map(|at| filled(backing_stamp(at))).collect();
        MemStorage::with_content(block_testkit::MemOptions::new(0), bytes)
    });
    let options = Qcow2Options {
        l2_cache_size: rng.chance(50).then_some(1024),
        l2_cache_entry_size: rng.chance(50).then_some(512),
        refcount_cache_size: Some(0),
        lazy_refcounts: (format.version == Version::V3).then(|| rng.chance(30)),
        pass_discard_request: rng.chance(70),
        pass_discard_other: rng.chance(50),
        discard_no_unref: format.version == Version::V3 && rng.chance(30),
        ..Qcow2Options::default()
    };
    let image = open(&threads[0], &file, below.as_ref(), options).expect("opens");
    let mut left = rng.below(1..1500);
    file.reorder(rng.below(0..u64::MAX), 4);
    file.set_script(move |_| {
        left = left.saturating_sub(1);
        if left == 0 { Verdict::Hold } else { Verdict::Reorder }
    });
    let model: Shared = Arc::new(Mutex::new(Model::new(backing)));
    let workers: Vec<_> = (0..WORKERS)
        .map(|number| {
            let worker = Worker {
                number,
                root: image.root.clone(),
                model: model.clone(),
                rng: rng.fork(),
                cluster: 1 << format.cluster_bits,
                // A discard of version 2 brings the backing file to light.
                discards: format.version == Version::V3 || backing == 0,
            };
            Box::pin(threads[number % 2].handle().run(worker.run()))
        })
        .collect();
    let mut all = Box::pin(block_testkit::bed::join_all(workers));
    let mut held = Box::pin(file.wait_held(1));
    // Either everybody is through or the power fails.
    block_on(std::future::poll_fn(|cx| {
        use std::future::Future;
        match all.as_mut().poll(cx) {
            std::task::Poll::Ready(_) => std::task::Poll::Ready(()),
            std::task::Poll::Pending => held.as_mut().poll(cx),
        }
    }));
    let (model_now, images) = {
        let model = lock(&model);
        let cuts = (0..CUTS).map(|cut| {
            let keep = [0, 100, 50, rng.below(1..100)][cut % 4];
            file.power_cut(|_, _| rng.chance(keep))
        });
        let images = cuts.collect();
        (model.clone(), images)
    };
    file.release_all();
    drop((all, held));
    let _ = image.close();
    (model_now, images)
}

#[test]
fn qcow2_1_flushed_data_survives_any_power_cut() {
    let wanted = std::env::var("CAIRN_CRASH_IMAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    let seed = seed();
    let mut rng = Rng::new(seed);
    let has_qemu = std::process::Command::new("qemu-img").arg("--version").output().is_ok();
    if !has_qemu {
        block_testkit::bed::skipped("a sample of the images after power cuts", "qemu-img is not installed");
    }
    let thread = io_thread(true);
    let (mut looked, mut leaks, mut sampled) = (0, 0, 0);
    while looked < wanted {
        let new = Format::new(DISK as u64);
        let format = match rng.below(0..6) {
            0 => Format { cluster_bits: 9, ..new },
            1 => Format { version: Version::V2, cluster_bits: 12, ..new },
            2 => Format { cluster_bits: 14, extended: true, ..new },
            3 => Format {
                cluster_bits: 10,
                refcount_order: rng.below(0..7) as u32,
                compression: CompressionType::Zstd,
                ..new
            },
            4 => new,
            _ => Format { cluster_bits: 12, ..new },
        };
        let backing = if rng.chance(50) { DISK * 3 / 4 } else { 0 };
        let (model, images) = run(format, backing, &mut rng);
        let below: Vec<u8> = (0..backing / SECTOR).flat_map(|at| filled(backing_stamp(at))).collect();
        for bytes in images {
            looked += 1;
            let bytes = repaired(&thread, bytes);
            let told = |error: String| format!("image {looked}: {error} ({format:?}, CAIRN_SEED={seed})");
            let report = inspect(&bytes, &below).map_err(told).unwrap_or_else(|error| panic!("{error}"));
            model.check(&report.guest).map_err(told).unwrap_or_else(|error| panic!("{error}"));
            leaks += report.leaks;
            // Rule qcow2-6.
            let stale = |found: &Found| found.flags.contains(BitmapFlags::IN_USE);
            assert!(report.bitmaps.iter().all(stale), "{}", told("a bitmap is not in use".into()));
            if has_qemu && looked % 50 == 0 {
                sampled += 1;
                check_with_qemu(&bytes);
            }
        }
    }
    println!("{looked} images after power cuts, {leaks} clusters leaked, {sampled} looked at by qemu-img");
}

/// An image with lazy reference counts is right after somebody opened it.
fn repaired(thread: &IoThread, bytes: Vec<u8>) -> Vec<u8> {
    let header = Header::parse(&bytes[..bytes.len().min(1 << 21)]).expect("a header");
    if !header.incompatible.contains(IncompatibleFeatures::DIRTY) {
        return bytes;
    }
    let file = storage(bytes);
    let options = Qcow2Options { lazy_refcounts: Some(false), ..Qcow2Options::default() };
    open(thread, &file, None, options).expect("it is repaired").close().expect("closes");
    file.bytes(0, file.len() as usize)
}

/// Leaks at most.
#[allow(clippy::disallowed_methods, reason = "a test's own file")]
fn check_with_qemu(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).expect("a file");
    let output =
        std::process::Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().expect("qemu-img");
    let status = output.status.code();
    assert!(matches!(status, Some(0 | 3)), "qemu-img check: {status:?}\n{}", String::from_utf8_lossy(&output.stdout));
}
