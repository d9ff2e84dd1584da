//! What is measured within this process: two threads on one node, and what a layer adds to a read.

use crate::rounds::Contender;
use crate::whole::warm_memory;
use anyhow::{Context, Result};
use block_backend::{Backend, BackendOptions};
use block_common::options::Dialect;
use block_common::{Options, Perm, PermPair};
use block_crypt::{Cipher, CipherMode, CipherSpec, IvGen, SectorCipher};
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, MainLoop};
use block_io::Root;
use cairn_benches::{Driver, FileMode, Shape, Stack};
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Encryption of sectors in memory, a piece at a time.
pub(crate) struct Encryption {
    cipher: SectorCipher,
    piece: Vec<u8>,
}

impl Encryption {
    /// AES-256 in XTS with 512-byte sectors, in pieces of so many bytes.
    ///
    /// # Errors
    /// None: this cipher is there.
    pub(crate) fn new(piece: usize) -> Result<Self> {
        let spec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
        let key: Vec<u8> = (0..spec.key_len()).map(|i| i as u8).collect();
        Ok(Self { cipher: SectorCipher::new(spec, &key)?, piece: vec![0; piece] })
    }
}

impl Contender for Encryption {
    fn name(&self) -> &str {
        "block-crypt"
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        let start = Instant::now();
        for piece in 0..count {
            self.cipher.encrypt(piece, SectorCipher::UNIT, &mut self.piece);
        }
        Ok(start.elapsed())
    }
}

/// A backend with a null node in it.
pub(crate) struct NullBackend {
    // The backend goes before the block layer, and that before its loop.
    backend: Backend,
    gs: GlobalState,
    main: MainLoop,
}

impl NullBackend {
    /// Open it.
    ///
    /// # Errors
    /// The host refuses threads or descriptors.
    pub(crate) fn open() -> Result<Self> {
        let main = MainLoop::new()?;
        let gs = GlobalState::new(&main, GlobalOptions::default())?;
        register_all(&gs);
        let backend = main.run(async {
            let mut options = Options::new(Dialect::Qmp);
            options.insert("driver", "null-co")?;
            let node = gs.open(options).await?;
            let options = BackendOptions {
                name: String::new(),
                perm: PermPair::new(Perm::CONSISTENT_READ, Perm::all()),
                home: gs.main_io(),
                settings: Default::default(),
            };
            let backend = Backend::new(&gs, options)?;
            backend.insert(&node).await?;
            Ok::<_, anyhow::Error>(backend)
        })?;
        Ok(Self { backend, gs, main })
    }

    /// Some threads that send requests to it.
    pub(crate) fn threads(&self, threads: usize, depth: usize) -> Threads {
        Threads::new(self.backend.io().root(), threads, Shape::reads(depth))
    }

    /// Close everything.
    ///
    /// # Errors
    /// Something is still open.
    pub(crate) fn close(self) -> Result<()> {
        self.main.run(self.gs.close_all())?;
        Ok(())
    }
}

/// Threads with a queue each, on one root.
pub(crate) struct Threads {
    name: String,
    root: Root,
    threads: usize,
    shape: Shape,
}

impl Threads {
    /// So many threads, each of which makes such requests of `root`.
    pub(crate) fn new(root: &Root, threads: usize, shape: Shape) -> Self {
        let name = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
        Self { name, root: root.clone(), threads, shape }
    }
}

impl Contender for Threads {
    fn name(&self) -> &str {
        &self.name
    }

    /// All threads together make `count` requests.
    fn run(&mut self, count: u64) -> Result<Duration> {
        together(
            self.threads,
            |_| {
                let mut driver = Driver::new(self.shape)?;
                driver.run(&self.root, if self.shape.size > 4096 { 10 } else { 1000 })?;
                Ok(driver)
            },
            |driver| driver.run(&self.root, count / self.threads as u64),
        )
    }
}

/// Let so many threads `work` at once, when each has made what it needs: the time from the first one's beginning to the last one's end.
fn together<D>(
    threads: usize,
    make: impl Fn(u64) -> Result<D> + Sync,
    work: impl Fn(&mut D) -> Result<Duration> + Sync,
) -> Result<Duration> {
    let start = Barrier::new(threads);
    let one = |number| {
        let driver = make(number);
        start.wait();
        let mut driver = driver?;
        let begin = Instant::now();
        work(&mut driver)?;
        Ok((begin, Instant::now()))
    };
    let spans: Vec<Result<(Instant, Instant)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads as u64)
            .map(|number| {
                scope.spawn({
                    let one = &one;
                    move || one(number)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the thread has not panicked")).collect()
    });
    let spans: Vec<_> = spans.into_iter().collect::<Result<_>>()?;
    let begin = spans.iter().map(|(begin, _)| *begin).min().context("a thread")?;
    let end = spans.iter().map(|(_, end)| *end).max().context("a thread")?;
    Ok(end - begin)
}

/// How long the images are that are written to, in bytes.
const IMAGE: u64 = 64 << 30;

/// A new qcow2 image in each run, each of whose threads has a queue, 32 writes in flight, and a part of the image of its own. Each write allocates a cluster.
pub(crate) struct NewImage {
    name: String,
    file: PathBuf,
    threads: usize,
    size: usize,
}

impl NewImage {
    /// Threads that write `size` bytes at a time.
    pub(crate) fn new(file: &Path, threads: usize, size: usize) -> Self {
        let name = format!("{threads} thread{}", if threads == 1 { "" } else { "s" });
        Self { name, file: file.to_owned(), threads, size }
    }
}

impl Contender for NewImage {
    fn name(&self) -> &str {
        &self.name
    }

    /// All threads together make `count` requests.
    fn run(&mut self, count: u64) -> Result<Duration> {
        let file = std::fs::File::create(&self.file).with_context(|| format!("cannot make {}", self.file.display()))?;
        let mut stack = Stack::file(&self.file, FileMode::CACHED)?;
        stack.qcow2(IMAGE, false)?;
        let root = stack.root();
        let part = IMAGE / self.threads as u64;
        warm_memory();
        let took = together(
            self.threads,
            |number| {
                let shape = Shape { start: number * part, step: 64 << 10, ..Shape::writes(self.size, 32) };
                Driver::new(shape)
            },
            |driver| driver.run(&root, count / self.threads as u64),
        );
        drop(root);
        stack.close()?;
        drop(file);
        std::fs::remove_file(&self.file).with_context(|| format!("cannot remove {}", self.file.display()))?;
        took
    }
}

/// Requests in one block; short, so that whatever else the machine does meets both sides.
const BLOCK: u64 = 1000;

/// Times of three roots, each from its own series of blocks, interleaved: a layer, what is below it, and that once
/// more.
pub(crate) struct Layers {
    /// Through the layer.
    pub(crate) with: Vec<f64>,
    /// Without it.
    pub(crate) without: Vec<f64>,
    /// Without it, again: how far two equal things differ.
    pub(crate) again: Vec<f64>,
}

/// Compare `with` and `without` in `rounds` rounds of `target` each. A round's numbers are the medians of its blocks'
/// times per request, so that a block in which the machine was busy elsewhere does not count.
pub(crate) fn layers(with: &Root, without: &Root, depth: usize, rounds: usize, target: Duration) -> Result<Layers> {
    let mut driver = Driver::new(Shape::reads(depth))?;
    for root in [with, without] {
        driver.run(root, 20 * BLOCK)?;
    }
    let mut layers = Layers { with: Vec::new(), without: Vec::new(), again: Vec::new() };
    for round in 0..rounds {
        let mut blocks = [Vec::new(), Vec::new(), Vec::new()];
        let begin = Instant::now();
        let mut turn = round;
        while begin.elapsed() < target || blocks[0].len() < 10 {
            for place in 0..3 {
                let who = (place + turn) % 3;
                let took = driver.run(if who == 0 { with } else { without }, BLOCK)?;
                blocks[who].push(took.as_nanos() as f64 / BLOCK as f64);
            }
            turn += 1;
        }
        let [with, without, again] = blocks.map(|block| crate::stats::median(&block));
        layers.with.push(with);
        layers.without.push(without);
        layers.again.push(again);
    }
    Ok(layers)
}
