//! Stacks: one or more nodes below one root, on an I/O thread of their own.

use anyhow::{Context, Result};
use block_common::{AlignedBuf, ChildRole, HostOffset, Perm, RequestFlags};
use block_crypt::{Cipher, CipherMode, CipherSpec, IvGen, SectorCipher};
use block_crypt_io::Crypt;
use block_file_posix::{FileAccess, FilePosix, FilePosixOptions};
use block_io::{Driver, FileEngine, IoThread, IoThreadOptions, Root, StaticGraph, StaticNode, ThreadPool};
use block_luks::{Luks, LuksOptions};
use block_null::{Null, NullOptions};
use block_qcow2::{Qcow2, Qcow2Children, Qcow2Options};
use block_qcow2_format::{Layout, NewImage, Step};
use block_raw::{Raw, RawOptions};
use block_testkit::bed::block_on;
use block_testkit::{ToyCow, ToyFilter, ToyFormat};
use block_throttle::{ThrottleGroup, ThrottleLimits};
use block_throttle_filter::Throttle;
use std::path::Path;

const ROLE: ChildRole = ChildRole::DATA.union(ChildRole::PRIMARY);

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub struct FileMode {
    /// Bypass the page cache.
    pub direct: bool,
    /// Who carries out requests.
    pub engine: FileEngine,
}

impl FileMode {
    /// Through the page cache, with io_uring.
    pub const CACHED: Self = Self { direct: false, engine: FileEngine::Ring };
    /// Around the page cache, with io_uring.
    pub const DIRECT: Self = Self { direct: true, engine: FileEngine::Ring };
    /// Through the page cache, with threads.
    pub const THREADS: Self = Self { direct: false, engine: FileEngine::Threads };
}

/// A graph whose nodes are put on top of each other. Roots may lead to any of them.
#[derive(Debug)]
pub struct Stack {
    graph: StaticGraph,
    top: StaticNode,
    pool: ThreadPool,
    thread: IoThread,
}

impl Stack {
    fn new<D: Driver>(name: &str, engine: impl Future<Output = Result<D>>, pool: ThreadPool) -> Result<Self> {
        let thread = IoThread::spawn(IoThreadOptions::named("bench-io"))?;
        let mut graph = StaticGraph::new(thread.handle());
        let top = block_on(async {
            let engine = engine.await?;
            Ok::<_, anyhow::Error>(graph.node(name).install(engine, false).await?)
        })?;
        Ok(Self { graph, top, pool, thread })
    }

    /// A null node, 1 GiB long.
    ///
    /// # Errors
    /// The host refuses a thread.
    pub fn null() -> Result<Self> {
        Self::new("null", async { Ok(Null::new(NullOptions::default()).0) }, ThreadPool::new(1))
    }

    /// A host file.
    ///
    /// # Errors
    /// It cannot be opened so.
    pub fn file(path: &Path, mode: FileMode) -> Result<Self> {
        let mut options = FilePosixOptions::new(path);
        options.access = FileAccess::ReadWrite;
        (options.direct, options.engine) = (mode.direct, mode.engine);
        let pool = ThreadPool::new(64);
        let open = FilePosix::open(options, pool.clone());
        Self::new("file", async { Ok(open.await?.0) }, pool)
    }

    /// Any engine that needs no children.
    ///
    /// # Errors
    /// It does not tell its length, or the host refuses a thread.
    pub fn leaf(engine: impl Driver) -> Result<Self> {
        Self::new("leaf", async { Ok(engine) }, ThreadPool::new(8))
    }

    /// Threads for engines that need some.
    pub fn pool(&self) -> ThreadPool {
        self.pool.clone()
    }

    /// The I/O thread.
    pub fn thread(&self) -> &IoThread {
        &self.thread
    }

    /// Put a raw node on top.
    ///
    /// # Errors
    /// The child does not tell its length.
    pub fn raw(&mut self) -> Result<()> {
        let mut shell = self.graph.node("raw");
        let edge = shell.child(ROLE, Perm::CONSISTENT_READ | Perm::WRITE, &self.top);
        self.top = block_on(async {
            let opened = shell.run(|req| async move { Ok(Raw::open(&req, edge, RawOptions::default()).await) });
            let (engine, _control) = opened.await??;
            Ok::<_, anyhow::Error>(shell.install(engine, false).await?)
        })?;
        Ok(())
    }

    /// Put a throttle in a group with `limits` on top.
    ///
    /// # Errors
    /// The child does not tell its length.
    pub fn throttle(&mut self, limits: ThrottleLimits) -> Result<()> {
        let mut shell = self.graph.node("throttle");
        let edge = shell.child(ROLE, Perm::CONSISTENT_READ | Perm::WRITE, &self.top);
        let group = ThrottleGroup::new(limits);
        self.top = block_on(async {
            let opened = shell.run(|req| async move {
                let below = edge.limits(&req)?;
                Ok(Throttle::new(edge, below, &group))
            });
            let (engine, _control) = opened.await?;
            shell.install(engine, false).await
        })?;
        Ok(())
    }

    /// Put a filter that does nothing on top.
    ///
    /// # Errors
    /// The child does not tell its length.
    pub fn filter(&mut self) -> Result<()> {
        let mut shell = self.graph.node("filter");
        let edge = shell.child(ROLE, Perm::CONSISTENT_READ | Perm::WRITE, &self.top);
        self.top = block_on(async {
            let opened = shell.run(|req| async move { ToyFilter::open(&req, edge) });
            let (engine, _control) = opened.await?;
            shell.install(engine, false).await
        })?;
        Ok(())
    }

    /// Put an empty image of the toy format on top, `len` bytes long.
    ///
    /// # Errors
    /// The child cannot be written.
    pub fn toy_format(&mut self, len: u64) -> Result<()> {
        let mut shell = self.graph.node("toy");
        let perm = Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE;
        let edge = shell.child(ROLE, perm, &self.top);
        self.top = block_on(async {
            let opened = shell.run(move |req| async move {
                ToyCow::format(&req, &edge, ToyFormat::new(len)).await?;
                ToyCow::open(&req, edge, None).await
            });
            let (engine, _control) = opened.await.context("toy image")?;
            Ok::<_, anyhow::Error>(shell.install(engine, false).await?)
        })?;
        Ok(())
    }

    /// Put an encrypted disk on top, which begins `payload` bytes behind the start: AES-256 in XTS, 512-byte sectors.
    ///
    /// # Errors
    /// The child does not tell its length.
    pub fn luks(&mut self, payload: u64) -> Result<()> {
        let spec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
        let key: Vec<u8> = (0..spec.key_len()).map(|i| i as u8).collect();
        let crypt = Crypt::new(SectorCipher::new(spec, &key)?, SectorCipher::UNIT, self.pool.clone());
        let sector = SectorCipher::UNIT as u32;
        let options = LuksOptions { payload, size: None, first: 0, crypt: Some(crypt), sector };
        let mut shell = self.graph.node("luks");
        let edge = shell.child(ROLE, Perm::CONSISTENT_READ | Perm::WRITE, &self.top);
        self.top = block_on(async {
            let opened = shell.run(|req| async move { Luks::open(&req, edge, None, options).await });
            let (engine, _control) = opened.await?;
            shell.install(engine, false).await
        })?;
        Ok(())
    }

    /// Put an empty qcow2 image on top, `len` bytes long, with subclusters if it is `extended`.
    ///
    /// # Errors
    /// The child cannot be written.
    pub fn qcow2(&mut self, len: u64, extended: bool) -> Result<()> {
        let layout = Layout::new(NewImage { size: len, extended_l2: extended, ..NewImage::default() })?;
        let mut shell = self.graph.node("qcow2");
        let perm = Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE;
        let file = shell.child(ROLE, perm, &self.top);
        let pool = self.pool.clone();
        self.top = block_on(async {
            let opened = shell.run(move |req| async move {
                for step in layout.steps() {
                    if let Step::Write { offset, bytes } = step {
                        let mut buf = AlignedBuf::zeroed(bytes.len(), 4096);
                        buf.copy_from_slice(&bytes);
                        file.write(&req, HostOffset(offset), &buf.into_io(), RequestFlags::empty()).await?;
                    }
                }
                let header = match Qcow2::read_header(&req, &file).await {
                    Ok(header) => header,
                    Err(error) => return Ok(Err(error)),
                };
                let children = Qcow2Children { file, data: None, backing: None, cipher: None };
                Ok(Qcow2::open(&req, children, header, Qcow2Options::default(), false, pool).await)
            });
            let (engine, _control) = opened.await??;
            Ok::<_, anyhow::Error>(shell.install(engine, false).await?)
        })?;
        Ok(())
    }

    /// An entry to the node that is on top now.
    pub fn root(&mut self) -> Root {
        self.graph.root("bench", &self.top, Perm::CONSISTENT_READ | Perm::WRITE)
    }

    /// Close everything.
    ///
    /// # Errors
    /// A flush or a close failed.
    pub fn close(self) -> Result<()> {
        let Self { graph, thread, .. } = self;
        block_on(graph.close())?;
        drop(thread);
        Ok(())
    }
}
