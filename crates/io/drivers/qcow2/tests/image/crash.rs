//! Power cuts: concurrent requests of every kind; between them snapshots are taken, applied and deleted; at last the image is closed. At every flush
//! and at random requests in between, images are made in which any sectors of what was not flushed have survived. Each is valid but for leaks, every
//! sector has what was flushed last or was written since, and every snapshot that was there has what the disk had.
//!
//! A *round* is such a run. `CAIRN_CRASH_ROUNDS` says how many there are; without it, rounds go on until `CAIRN_CRASH_IMAGES` images were looked at (1000
//! without that). `CAIRN_SEED` is the first round's seed, the next one has the next number.

#[path = "crash/model.rs"]
mod model;

use crate::bed::{Image, NONE, buf, open, storage};
use block_common::{AlignedBuf, IoError, Perm, Preallocation, RequestFlags};
use block_io::{IoThread, KeptBitmap, NodeBitmap, Root, StaticGraph};
use block_qcow2::check::{Repair, Storage, Watch, check};
use block_qcow2::{Header, NewSnapshot, Qcow2Options};
use block_qcow2_format::{BitmapFlags, CompressionType, IncompatibleFeatures, Version};
use block_testkit::bed::{block_on, io_thread, join_all};
use block_testkit::qcow2::{Format, Found, PASSWORD, inspect, inspect_torn};
use block_testkit::{MemOp, MemOpKind, MemOptions, MemStorage, Rng, Verdict, seed};
use model::{Event, Model, Shared, State, World, filled, lock};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const SECTOR: usize = 512;
/// The disk is at least so long.
const DISK: usize = 512 << 10;
/// So much is added and taken away.
const TAIL: usize = 192 << 10;
const WORKERS: usize = 5;
/// Images that are made while everybody works, and while a snapshot is changed or the image closed, at most.
const IMAGES_TOGETHER: u64 = 10;
const IMAGES_ALONE: u64 = 8;
const SNAPSHOTS_MAX: usize = 3;

fn backing_stamp(sector: usize) -> u64 {
    0xbac0_0000_0000 + sector as u64
}

/// Sectors with stamps of their own.
fn backing_bytes(len: usize) -> Vec<u8> {
    (0..len / SECTOR).flat_map(|at| filled(backing_stamp(at))).collect()
}

/// One of those who write at the same time, each to sectors of its own: the lower half of the disk is dealt out in small pieces, the upper half in
/// large ones. The last one has the tail, which it lengthens and shortens.
struct Worker {
    number: usize,
    root: Root,
    model: Shared,
    rng: Rng,
    cluster: usize,
    /// Discards and zeroes give zeroes.
    discards: bool,
    resizes: bool,
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

    async fn run(mut self, steps: usize) -> Result<(), IoError> {
        for _ in 0..steps {
            if self.number < WORKERS { self.step().await? } else { self.resizing_step().await? }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), IoError> {
        let covered = {
            let mut model = lock(&self.model);
            model.began(Event::Flush);
            model.world.covered()
        };
        self.root.flush().await?;
        let mut model = lock(&self.model);
        model.ended(Event::Flush);
        model.world.flushed(&covered);
        Ok(())
    }

    async fn write(&mut self, area: std::ops::Range<usize>, flags: RequestFlags) -> Result<(), IoError> {
        let is_packed = flags.contains(RequestFlags::WRITE_COMPRESSED);
        let event = match (is_packed, flags.contains(RequestFlags::FUA)) {
            (true, _) => Event::Compressed,
            (_, true) => Event::Fua,
            _ => Event::Write,
        };
        let stamp = lock(&self.model).begin(event, area.clone(), None);
        let offset = (area.start * SECTOR) as u64;
        let data = || buf(&filled(stamp).repeat(area.len()));
        let mut result = self.root.write(offset, data(), flags).await.0;
        if result.is_err() && is_packed {
            // For clusters that were written before there is no such thing.
            result = self.root.write(offset, data(), NONE).await.0;
        }
        result?;
        let mut model = lock(&self.model);
        model.end(event, area.clone());
        if event == Event::Fua {
            // Everything of it is durable when it is over.
            model.world.forget_older(area);
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<(), IoError> {
        let choice = self.rng.below(0..20);
        if choice < 2 {
            return self.flush().await;
        }
        let area = if (5..9).contains(&choice) { self.clusters() } else { Some(self.area()) };
        let Some(area) = area else { return Ok(()) };
        let (offset, len) = ((area.start * SECTOR) as u64, (area.len() * SECTOR) as u64);
        match choice {
            2..=4 if self.discards => {
                lock(&self.model).begin(Event::Zero, area.clone(), Some(0));
                let flags = if choice == 2 { NONE } else { RequestFlags::MAY_UNMAP };
                self.root.zero(offset, len, flags).await?;
                lock(&self.model).end(Event::Zero, area);
                Ok(())
            }
            5..=7 if self.discards => {
                lock(&self.model).begin(Event::Discard, area.clone(), Some(0));
                self.root.discard(offset, len).await?;
                // It may have done nothing, so what was there before is not over.
                lock(&self.model).ended(Event::Discard);
                Ok(())
            }
            8 => self.write(area, RequestFlags::WRITE_COMPRESSED).await,
            9 => self.write(area, RequestFlags::FUA).await,
            _ => self.write(area, NONE).await,
        }
    }

    async fn resizing_step(&mut self) -> Result<(), IoError> {
        let (now, first) = (lock(&self.model).world.length_now(), DISK / SECTOR);
        match self.rng.below(0..6) {
            0 => self.flush().await,
            1..=2 if self.resizes => {
                let new = first + self.rng.below(0..(TAIL / SECTOR) as u64 + 1) as usize;
                self.resize(now, new).await
            }
            _ if now > first => {
                let from = first + self.rng.below(0..(now - first) as u64) as usize;
                let to = (from + self.rng.below(1..24) as usize).min(now);
                self.write(from..to, NONE).await
            }
            _ => Ok(()),
        }
    }

    async fn resize(&mut self, now: usize, new: usize) -> Result<(), IoError> {
        let (event, area) = if new > now { (Event::Grow, now..new) } else { (Event::Shrink, new..now) };
        {
            let mut model = lock(&self.model);
            // What goes is zero if it ever comes back.
            model.begin(event, area.clone(), Some(0));
            model.begin_length(new);
        }
        self.root.truncate((new * SECTOR) as u64, Preallocation::Off).await?;
        let mut model = lock(&self.model);
        model.end(event, area);
        model.world.length.end();
        Ok(())
    }
}

/// An image that a power cut may leave, and what is to be found in it.
struct Cut {
    bytes: Vec<u8>,
    model: Model,
}

/// Cuts the power, again and again, without anybody noticing.
#[derive(Clone)]
struct Cutter {
    file: MemStorage,
    model: Shared,
    cuts: Arc<Mutex<Vec<Cut>>>,
    /// Nobody works beside somebody who has the image to itself.
    is_alone: Arc<AtomicBool>,
    /// So many images may still be made.
    left: Arc<AtomicU64>,
}

impl Cutter {
    fn new(file: MemStorage, model: Shared) -> Self {
        Self { file, model, cuts: Arc::default(), is_alone: Arc::default(), left: Arc::default() }
    }

    /// From now on, somebody has the image to itself, or everybody works.
    fn phase(&self, is_alone: bool) {
        self.is_alone.store(is_alone, Ordering::SeqCst);
        self.left.store(if is_alone { IMAGES_ALONE } else { IMAGES_TOGETHER }, Ordering::SeqCst);
    }

    /// The power fails with some chance just before this request is carried out.
    fn before(&self, op: &MemOp, rng: &mut Rng) -> Verdict {
        let is_alone = self.is_alone.load(Ordering::SeqCst);
        let chance = match op.kind {
            MemOpKind::Read | MemOpKind::Status => 0,
            MemOpKind::Flush if is_alone => 60,
            MemOpKind::Flush => 35,
            _ if is_alone => 12,
            _ => 3,
        };
        if rng.chance(chance) && self.left.load(Ordering::SeqCst) > 0 {
            self.left.fetch_sub(1, Ordering::SeqCst);
            self.cut(rng);
        }
        // Who is alone waits for each of its requests: a device that waits for more of them is only slow.
        if !is_alone && rng.chance(60) { Verdict::Reorder } else { Verdict::Serve }
    }

    fn cut(&self, rng: &mut Rng) {
        let keep = [0, 100, 50, rng.below(1..100)][rng.below(0..4) as usize];
        // Nothing begins or ends meanwhile. What has just been carried out is in the image, and may be.
        let model = lock(&self.model);
        let bytes = self.file.power_cut(|_, _| rng.chance(keep));
        let cut = Cut { bytes, model: model.clone() };
        drop(model);
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).push(cut);
    }
}

/// A round: what was chosen for it.
#[derive(Clone, Copy, Debug)]
struct Round {
    seed: u64,
    format: Format,
    backing: usize,
    options: Qcow2Options,
    has_bitmap: bool,
}

impl Round {
    fn new(seed: u64) -> (Self, Rng) {
        let mut rng = Rng::new(seed);
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
        let crypt_method = if rng.chance(30) { rng.below(1..3) as u32 } else { 0 };
        let format = Format { crypt_method, ..format };
        let is_v3 = format.version == Version::V3;
        let options = Qcow2Options {
            l2_cache_size: rng.chance(50).then_some(1024),
            l2_cache_entry_size: rng.chance(50).then_some(512),
            refcount_cache_size: Some(0),
            // Of rounds one after the other, some have it for certain.
            lazy_refcounts: is_v3.then_some(seed.is_multiple_of(3)),
            pass_discard_request: rng.chance(70),
            pass_discard_other: rng.chance(50),
            pass_discard_snapshot: rng.chance(50),
            discard_no_unref: is_v3 && rng.chance(30),
            ..Qcow2Options::default()
        };
        let backing = if rng.chance(50) { DISK * 3 / 4 } else { 0 };
        (Self { seed, format, backing, options, has_bitmap: is_v3 && rng.chance(25) }, rng)
    }

    /// Run it. The images that may be left.
    fn run(self, threads: &[IoThread; 2], rng: &mut Rng) -> Vec<Cut> {
        let file = storage(self.format.bytes());
        if self.has_bitmap {
            let image = open(&threads[0], &file, None, Qcow2Options::default()).expect("opens");
            let bits = Arc::new(NodeBitmap::try_new(DISK as u64, 512).expect("it is small"));
            let kept = KeptBitmap { name: "before".into(), granularity: 512, recording: true, bits };
            image.control.keep_bitmaps(&[kept]).expect("there is room");
            image.close().expect("closes");
        }
        let below =
            (self.backing > 0).then(|| MemStorage::with_content(MemOptions::new(0), backing_bytes(self.backing)));
        let image = open(&threads[0], &file, below.as_ref(), self.options).expect("opens");
        let stamp = |at| if at < self.backing / SECTOR { backing_stamp(at) } else { 0 };
        let world = World::new((0..(DISK + TAIL) / SECTOR).map(stamp), DISK / SECTOR, 0);
        let model: Shared = Arc::new(Mutex::new(Model::new(world)));
        let cutter = Cutter::new(file.clone(), model.clone());
        file.reorder(rng.below(0..u64::MAX), rng.below(2..5) as usize);
        let (asked, mut choices) = (cutter.clone(), rng.fork());
        file.set_script(move |op| asked.before(op, &mut choices));
        block_on(self.work(image, threads, &cutter, rng));
        // Nothing waits for a flush now.
        file.clear_script();
        lock(&model).settled();
        let mut cuts = std::mem::take(&mut *cutter.cuts.lock().unwrap_or_else(PoisonError::into_inner));
        cuts.push(Cut { bytes: file.power_cut(|_, _| false), model: lock(&model).clone() });
        cuts
    }

    async fn work(self, mut image: Image, threads: &[IoThread; 2], cutter: &Cutter, rng: &mut Rng) {
        let model = &cutter.model;
        for turn in 0..rng.below(2..6) {
            cutter.phase(false);
            let has_snapshots = !lock(model).snapshots.is_empty();
            let steps = rng.below(10..40) as usize;
            let worker = |number: usize| Worker {
                number,
                root: image.root.clone(),
                model: model.clone(),
                rng: rng.fork(),
                cluster: 1 << self.format.cluster_bits,
                // A discard of version 2 brings the backing file to light.
                discards: self.format.version == Version::V3 || self.backing == 0,
                // Version 2 does not know how long a snapshot's disk was; and whoever has the bitmaps would lengthen them, too.
                resizes: !self.has_bitmap && (self.format.version == Version::V3 || !has_snapshots),
            };
            let workers: Vec<Worker> = (0..=WORKERS).map(worker).collect();
            let runs =
                workers.into_iter().enumerate().map(|(i, worker)| threads[i % 2].handle().run(worker.run(steps)));
            for done in join_all(runs.map(Box::pin)).await {
                done.expect("the thread runs").expect("nothing fails");
            }
            cutter.phase(true);
            look(&image, model).await;
            self.act(&mut image, model, turn, rng).await;
        }
        cutter.phase(true);
        if let [kept] = image.control.kept_bitmaps().as_slice() {
            let chunks = (DISK / 512) as u64;
            for _ in 0..rng.below(0..9) {
                let from = rng.below(0..chunks);
                kept.bits.with(|bits| bits.set_chunks(from..(from + rng.below(1..200)).min(chunks)));
            }
            let mut bits = vec![0; DISK / 512 / 8];
            kept.bits.with(|now| now.bits_from(0, &mut bits));
            lock(model).bitmap =
                Some(Found { name: "before".into(), flags: BitmapFlags::AUTO, granularity: 512, bits });
        }
        lock(model).began(Event::Close);
        image.close_later().await.expect("closes");
        lock(model).ended(Event::Close);
    }

    /// Change the snapshots.
    async fn act(self, image: &mut Image, model: &Shared, turn: u64, rng: &mut Rng) {
        let (there, covered) = {
            let model = lock(model);
            (model.snapshots.iter().map(|taken| taken.name.clone()).collect::<Vec<_>>(), model.world.covered())
        };
        let one = (!there.is_empty()).then(|| there[rng.below(0..there.len() as u64) as usize].clone());
        let done = match (rng.below(0..8), one) {
            (0..=1, Some(name)) => {
                lock(model).snapshot(&name).state = State::Going;
                lock(model).began(Event::Delete);
                let id = name.clone().into_bytes();
                image
                    .alone(|req, control| async move { control.delete_snapshot(&req, &id).await })
                    .await
                    .expect("goes");
                let mut model = lock(model);
                model.snapshots.retain(|taken| taken.name != name);
                model.ended(Event::Delete);
                true
            }
            (2..=3, Some(name)) if !self.has_bitmap => {
                lock(model).apply(&name);
                let id = name.into_bytes();
                let applied = image.alone(|req, control| async move { control.apply_snapshot(&req, &id).await }).await;
                lock(model).applied(applied.is_ok());
                false
            }
            (0..=6, _) if there.len() < SNAPSHOTS_MAX => {
                let name = format!("taken-{turn}");
                lock(model).take(&name);
                let new = NewSnapshot { name: name.clone().into_bytes(), ..NewSnapshot::default() };
                let taken = image.alone(|req, control| async move { control.create_snapshot(&req, new).await }).await;
                // Counts of few bits do not count so many.
                assert!(taken.is_ok() || self.format.refcount_order < 3, "{taken:?}");
                lock(model).taken(&name, taken.is_ok());
                taken.is_ok()
            }
            _ => false,
        };
        if done {
            // All of that flushes.
            lock(model).world.flushed(&covered);
        }
    }
}

/// What the disk has is known from now on, whatever discards have done.
async fn look(image: &Image, model: &Shared) {
    let len = lock(model).world.length_now() * SECTOR;
    let (result, buf) = image.root.read(0, AlignedBuf::zeroed(len, 4096).into_io()).await;
    result.expect("read");
    let guest = buf.expect("the buffer").to_aligned(1).to_vec();
    lock(model).seen(&guest);
}

/// What has happened in all rounds.
#[derive(Debug, Default)]
struct Totals {
    images: u64,
    rounds: u64,
    leaks: u64,
    dirty: u64,
    unmarked: u64,
    /// Images that were looked at by the engine, by `check`, and by qemu-img.
    reopened: u64,
    mended: u64,
    sampled: u64,
    /// For each event, images that were made while it went on, and after it.
    events: Vec<(u64, u64)>,
}

/// Looks at images.
struct Judge {
    thread: IoThread,
    has_qemu: bool,
    totals: Totals,
}

impl Judge {
    fn look(&mut self, round: &Round, below: &[u8], cut: Cut) -> Result<(), String> {
        let Cut { bytes, model } = cut;
        self.totals.images += 1;
        self.totals.events.resize(Event::ALL.len(), (0, 0));
        for (event, (during, after)) in Event::ALL.iter().zip(&mut self.totals.events) {
            *during += u64::from(model.goes_on(*event));
            *after += u64::from(model.was(*event));
        }
        let header = Header::parse(&bytes[..bytes.len().min(1 << 21)]).map_err(|error| error.to_string())?;
        let is_dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
        let bytes = if is_dirty { reopened(&self.thread, bytes, None)?.0 } else { bytes };
        let report = inspect_torn(&bytes, below)?;
        model.check(&report)?;
        self.totals.leaks += report.leaks;
        let is_closed = model.was(Event::Close);
        if report.leaks > 0 && (is_dirty || is_closed) {
            return Err(format!("{} leaks after a repair or a clean end", report.leaks));
        }
        // Only changing snapshots changes who shares what.
        let changes = [Event::Take, Event::Delete, Event::Apply].into_iter().any(|event| model.goes_on(event));
        if report.unmarked > 0 && (is_dirty || !changes) {
            return Err(format!("{} entries without the COPIED bit", report.unmarked));
        }
        self.totals.dirty += u64::from(is_dirty);
        self.totals.unmarked += u64::from(report.unmarked > 0);
        let nth = self.totals.images;
        // The LUKS headers of these images are none to others.
        let qemu_looks = self.has_qemu && nth.is_multiple_of(50) && round.format.crypt_method != 2;
        if report.unmarked > 0 || nth.is_multiple_of(10) {
            self.totals.mended += 1;
            let mended = mended(&self.thread, bytes.clone(), changes)?;
            let after = inspect(&mended, below)?;
            if after.guest != report.guest || after.snapshots != report.snapshots {
                return Err("a repair has changed what there is".into());
            }
            if after.leaks > 0 {
                return Err(format!("{} leaks after a repair", after.leaks));
            }
            if qemu_looks {
                check_with_qemu(&mended, 0)?;
            }
        }
        if qemu_looks && report.unmarked == 0 {
            self.totals.sampled += 1;
            check_with_qemu(&bytes, 3)?;
        }
        if nth % 10 == 5 {
            self.totals.reopened += 1;
            let (_, guest) = reopened(&self.thread, bytes, Some((round, below)))?;
            if guest != report.guest {
                return Err("the engine reads something else than is there".into());
            }
        }
        Ok(())
    }
}

/// The image after somebody opened, read and closed it; and what there was to read.
fn reopened(thread: &IoThread, bytes: Vec<u8>, round: Option<(&Round, &[u8])>) -> Result<(Vec<u8>, Vec<u8>), String> {
    let file = storage(bytes);
    let below = round.filter(|(round, _)| round.backing > 0);
    let below = below.map(|(_, bytes)| MemStorage::with_content(MemOptions::new(0), bytes.to_vec()));
    let options = Qcow2Options { lazy_refcounts: Some(false), ..Qcow2Options::default() };
    let image = open(thread, &file, below.as_ref(), options)?;
    let len = image.control.header().size as usize;
    let guest = if round.is_some() { image.read(0, len) } else { Vec::new() };
    image.close().map_err(|error| error.to_string())?;
    Ok((file.bytes(0, file.len() as usize), guest))
}

struct Quiet;

impl Watch for Quiet {
    fn message(&mut self, _: std::fmt::Arguments<'_>) {}
}

/// The image after a repair, which has flags to set at most.
fn mended(thread: &IoThread, bytes: Vec<u8>, may_have_flags: bool) -> Result<Vec<u8>, String> {
    let file = storage(bytes);
    let mut graph = StaticGraph::new(thread.handle());
    let node = block_on(graph.node("file").install(file.driver(), false)).map_err(|error| error.to_string())?;
    let root = graph.root("root", &node, Perm::all());
    let run = async move { check(Storage::Root(&root), Repair::All, &mut Quiet).await };
    let report = block_on(thread.handle().run(run)).ok_or("the thread has ended")?;
    let report = report.map_err(|error| error.to_string())?;
    block_on(graph.close()).map_err(|error| error.to_string())?;
    if report.check_errors + report.corruptions > 0 || (report.corruptions_fixed > 0 && !may_have_flags) {
        return Err(format!("a check finds {report:?}"));
    }
    Ok(file.bytes(0, file.len() as usize))
}

/// Nothing is wrong, or the exit status is this one.
#[allow(clippy::disallowed_methods, reason = "a test's own file")]
fn check_with_qemu(bytes: &[u8], allowed: i32) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).expect("a file");
    // What is not encrypted takes no notice of the password.
    let secret = format!("secret,id=s,data={PASSWORD}");
    let image = format!("driver=qcow2,encrypt.key-secret=s,file.filename={}", path.display());
    let arguments = ["check", "--object", &secret, "--image-opts", &image];
    let output = std::process::Command::new("qemu-img").args(arguments).output().expect("qemu-img");
    match output.status.code() {
        Some(status) if status == 0 || status == allowed => Ok(()),
        status => Err(format!("qemu-img check: {status:?}\n{}", String::from_utf8_lossy(&output.stdout))),
    }
}

fn number_in(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Tells, if a round fails, which one it was.
struct Again(Round);

impl Drop for Again {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let round = &self.0;
            eprintln!("{round:?}\nonce more: cargo xtask crash --seed {:#x} --rounds 1", round.seed);
        }
    }
}

/// Rounds one after the other, until all of them are done or `more` says that there are enough images.
fn rounds(first: u64, next: &AtomicU64, has_qemu: bool, more: &impl Fn(u64, u64) -> bool) -> Totals {
    let mut judge = Judge { thread: io_thread(false), has_qemu, totals: Totals::default() };
    let threads = [io_thread(false), io_thread(false)];
    loop {
        let number = next.fetch_add(1, Ordering::SeqCst);
        if !more(number, judge.totals.images) {
            return judge.totals;
        }
        let (round, mut rng) = Round::new(first.wrapping_add(number));
        let _told = Again(round);
        let below = backing_bytes(round.backing);
        for (nth, cut) in round.run(&threads, &mut rng).into_iter().enumerate() {
            if let Err(error) = judge.look(&round, &below, cut) {
                panic!("image {nth}: {error}");
            }
        }
        judge.totals.rounds += 1;
    }
}

#[test]
fn qcow2_1_flushed_data_survives_any_power_cut() {
    let first = seed();
    let (all_rounds, all_images) = (number_in("CAIRN_CRASH_ROUNDS"), number_in("CAIRN_CRASH_IMAGES").unwrap_or(1000));
    let has_qemu = std::process::Command::new("qemu-img").arg("--version").output().is_ok();
    if !has_qemu {
        block_testkit::bed::skipped("a sample of the images after power cuts", "qemu-img is not installed");
    }
    println!("the first seed is {first:#x}");
    let next = AtomicU64::new(0);
    // Two threads are beside each other, each with its part of the images.
    let more = |number: u64, images: u64| all_rounds.map_or(images < all_images.div_ceil(2), |all| number < all);
    let totals = std::thread::scope(|scope| {
        let runs = [(), ()].map(|()| scope.spawn(|| rounds(first, &next, has_qemu, &more)));
        runs.map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let sum = |of: fn(&Totals) -> u64| totals.iter().map(of).sum::<u64>();
    let images = sum(|totals| totals.images);
    println!(
        "{images} images after power cuts in {} rounds: {} clusters leaked; {} were dirty and repaired, {} had flags to set; {} were checked, \
         {} opened again, {} checked by qemu-img",
        sum(|totals| totals.rounds),
        sum(|totals| totals.leaks),
        sum(|totals| totals.dirty),
        sum(|totals| totals.unmarked),
        sum(|totals| totals.mended),
        sum(|totals| totals.reopened),
        sum(|totals| totals.sampled)
    );
    for (at, event) in Event::ALL.iter().enumerate() {
        let of = |part: fn(&(u64, u64)) -> u64| totals.iter().filter_map(|t| t.events.get(at)).map(part).sum::<u64>();
        let (during, after) = (of(|events| events.0), of(|events| events.1));
        println!("{event:?}: {during} images while one went on, {after} after one");
        assert!(images < 1000 || (during > 0 && after > 0), "{event:?} was not there");
    }
    assert!(images < 1000 || sum(|totals| totals.dirty) > 0, "no image was dirty");
}
