//! The file driver's engine: a regular file of the host, buffered or with O_DIRECT, through io_uring or threads.
//!
//! Reads and writes are the core's: the engine only says which descriptor they go to. What is left here is everything
//! else that a file can do (zero, punch, tell its holes, change its length, be synced), and opening it, which may sleep
//! and so runs on a thread pool. Devices and locks are not here.

#![forbid(unsafe_code)]

mod error;
mod host;

pub use error::{FileError, FileKind};
pub use host::{create, same_file};

use async_trait::async_trait;
use block_common::{
    BlockStatus, Errno, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoErrorKind, IoResult, Limits,
    Preallocation, RequestFlags, StatusExtent,
};
use block_io::{
    Access, Driver, FileEngine, FileExtent, HostFile, HostFileControl, HostFileOptions, Mapping, Quiesced, Req,
    ThreadPool,
};
use std::fmt;
use std::future::Future;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileAccess {
    /// Reading.
    #[default]
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// How to open a file.
#[derive(Debug)]
pub struct FilePosixOptions {
    /// The file's path; beside [`FilePosixOptions::fd`] it is but its name in errors.
    pub path: PathBuf,
    /// What it is opened for.
    pub access: FileAccess,
    /// Bypass the page cache: `cache.direct`.
    pub direct: bool,
    /// Let flushes do nothing: `cache.no-flush`.
    pub no_flush: bool,
    /// Who carries out requests: `aio`.
    pub engine: FileEngine,
    /// A descriptor that the caller has opened. It must allow what `access` says; O_DIRECT is set on it as needed.
    pub fd: Option<OwnedFd>,
}

impl FilePosixOptions {
    /// The file at `path`, to be read through the page cache.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            access: FileAccess::ReadOnly,
            direct: false,
            no_flush: false,
            engine: FileEngine::Ring,
            fd: None,
        }
    }
}

/// An operation that not every file system has: whether it is worth another attempt.
#[derive(Debug, Default)]
struct Offload {
    missing: AtomicBool,
}

impl Offload {
    /// Call `fallocate(2)`, unless it is known that the file system cannot do that. Tells whether it was done. What
    /// holds for good is remembered; a refusal of this one range is not (rule zero-2).
    async fn attempt(&self, file: &HostFile, mode: i32, range: GuestRange) -> IoResult<bool> {
        if self.missing.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let result = file.fallocate(mode, range.offset().0, range.len()).await;
        let (done, missing) = verdict(result)?;
        if missing {
            self.missing.store(true, Ordering::Relaxed);
        }
        Ok(done)
    }
}

/// What an answer of `fallocate(2)` means: whether it was done, and whether it never will be.
fn verdict(result: IoResult<()>) -> IoResult<(bool, bool)> {
    match result {
        Ok(()) => Ok((true, false)),
        Err(error) => match error.errno() {
            Errno::ENOTSUP | Errno::ENOSYS => Ok((false, true)),
            Errno::EINVAL => Ok((false, false)),
            _ => Err(error),
        },
    }
}

/// What an extent of the file is to those who count in blocks of `alignment` bytes and asked about `len` bytes: a hole
/// that ends inside a block is none to them (rule stat-1).
fn content(extent: FileExtent, alignment: u32, len: u64) -> (BlockStatus, u64) {
    let block = u64::from(alignment).min(len);
    match extent.is_data {
        false if extent.len >= block => (BlockStatus::ZERO, extent.len.min(len)),
        _ => (BlockStatus::DATA, extent.len.clamp(block, len)),
    }
}

struct Shared {
    file: HostFile,
    path: PathBuf,
    limits: Limits,
    direct: bool,
    no_flush: bool,
    zero_range: Offload,
    punch_hole: Offload,
    /// Once the kernel failed to write cached pages out it forgets that they were dirty, and the next sync succeeds:
    /// that success must not be believed. The errno, or zero.
    sync_failed: AtomicI32,
}

impl Shared {
    async fn sync(&self) -> IoResult<()> {
        if self.no_flush {
            return Ok(());
        }
        if let errno @ 1.. = self.sync_failed.load(Ordering::Relaxed) {
            return Err(IoError::host(errno));
        }
        let result = self.file.sync().await;
        self.remember(result);
        result
    }

    fn remember(&self, synced: IoResult<()>) {
        if let Err(error) = synced
            && error.kind() == IoErrorKind::Host
            && !self.direct
        {
            self.sync_failed.store(error.errno().raw(), Ordering::Relaxed);
            tracing::error!(path = %self.path.display(), %error, "cached data may be lost: flushes fail from now on");
        }
    }

    async fn finish(&self, flags: RequestFlags) -> IoResult<()> {
        if flags.contains(RequestFlags::FUA) { self.sync().await } else { Ok(()) }
    }
}

/// The engine.
pub struct FilePosix(Arc<Shared>);

/// The engine's control half: may exchange the descriptor.
pub struct FilePosixControl {
    shared: Arc<Shared>,
    file: HostFileControl,
    access: FileAccess,
}

/// A descriptor of the same file with other rights, waiting to be committed.
#[derive(Debug)]
pub struct FilePosixReopen {
    fd: OwnedFd,
    access: FileAccess,
}

impl FilePosix {
    /// Open a file. Everything that may sleep runs in `pool`, as do the requests that io_uring does not carry out.
    ///
    /// # Errors
    /// [`FileError`] names the file and keeps the host's errno.
    #[doc(alias = "bdrv_file_open")]
    pub async fn open(options: FilePosixOptions, pool: ThreadPool) -> Result<(Self, FilePosixControl), FileError> {
        let FilePosixOptions { path, access, direct, no_flush, engine, fd } = options;
        let name = path.clone();
        let opened = pool.run(move || match fd {
            Some(fd) => host::adopt(&name, fd, access, direct),
            None => host::open(&name, access, direct),
        });
        let opened = opened.await.unwrap_or_else(|| Err(FileError::Bug { path: path.clone() }))?;
        let alignment = opened.alignment;
        let limits = Limits {
            request_alignment: alignment,
            memory_alignment: alignment,
            transfer_optimal: opened.block_size,
            ..Limits::NONE
        };
        let options = HostFileOptions { engine, memory_alignment: alignment };
        let (file, control) = HostFile::new(opened.fd, options, pool);
        let shared = Arc::new(Shared {
            file,
            path,
            limits,
            direct,
            no_flush,
            zero_range: Offload::default(),
            punch_hole: Offload::default(),
            sync_failed: AtomicI32::new(0),
        });
        Ok((Self(shared.clone()), FilePosixControl { shared, file: control, access }))
    }
}

impl FilePosixControl {
    /// What the file is open for.
    pub fn access(&self) -> FileAccess {
        self.access
    }

    /// Open the same file for `access`. Changes nothing yet. May be awaited anywhere.
    ///
    /// # Errors
    /// [`FileError`] when the host refuses, or when the path leads to another file by now and there is no other way to
    /// this one.
    #[doc(alias = "bdrv_reopen_prepare")]
    pub fn prepare(
        &self,
        access: FileAccess,
    ) -> impl Future<Output = Result<FilePosixReopen, FileError>> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let (path, direct) = (shared.path.clone(), shared.direct);
            let opened = shared.file.call(move |fd| Ok(host::open_again(fd, &path, access, direct))).await;
            let fd = opened.map_err(|error| FileError::open(&shared.path, error.errno()))??;
            Ok(FilePosixReopen { fd, access })
        }
    }

    /// Use the prepared descriptor from now on. Whether the node takes writes is the graph owner's to say beside it.
    #[doc(alias = "bdrv_reopen_commit")]
    pub fn commit(&mut self, reopen: FilePosixReopen, proof: &Quiesced<'_>) {
        self.file.replace(reopen.fd, proof);
        self.access = reopen.access;
    }
}

#[async_trait]
impl Driver for FilePosix {
    fn format_name(&self) -> &'static str {
        "file"
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    #[inline]
    fn map_cached(&self, access: Access, _range: GuestRange) -> Mapping<'_> {
        match access {
            // The core would ask for stable storage, and nobody wants to wait for that.
            Access::WriteFua if self.0.no_flush => Mapping::Slow,
            _ => Mapping::File(&self.0.file),
        }
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        self.0.file.length().await
    }

    async fn read(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.read(offset, buf).await
    }

    async fn write(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let left_out = if self.0.no_flush { RequestFlags::FUA } else { RequestFlags::empty() };
        self.0.file.write(offset, buf, flags.difference(left_out)).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        let shared = &self.0;
        let inside = range.end() <= req.length();
        // A hole cannot move the file's end; zeroing can, and does where the caller may resize.
        if flags.contains(RequestFlags::MAY_UNMAP)
            && inside
            && shared.punch_hole.attempt(&shared.file, host::PUNCH_HOLE, range).await?
        {
            return shared.finish(flags).await;
        }
        let mode = if inside { host::ZERO_RANGE_INSIDE } else { host::ZERO_RANGE };
        if shared.zero_range.attempt(&shared.file, mode, range).await? {
            return shared.finish(flags).await;
        }
        Err(IoError::UNSUPPORTED)
    }

    async fn discard(&self, _req: &Req, range: GuestRange) -> IoResult<()> {
        let shared = &self.0;
        match shared.punch_hole.attempt(&shared.file, host::PUNCH_HOLE, range).await? {
            true => Ok(()),
            false => Err(IoError::UNSUPPORTED),
        }
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.0.sync().await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let offset = range.offset().0;
        let (content, len) = content(self.0.file.extent(offset).await?, self.0.limits.request_alignment, range.len());
        Ok(StatusExtent::mapped(content | BlockStatus::ALLOCATED, len, HostOffset(offset)))
    }

    async fn truncate(&self, _req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let name = self.0.path.clone();
        let direct = self.0.direct;
        self.0.file.call(move |fd| host::resize(fd, &name, len, preallocation, direct).map_err(|e| e.io())).await
    }

    /// Somebody else wrote the file: what the page cache has of it may be old on a network file system.
    async fn invalidate_cache(&self, _req: &Req) -> IoResult<()> {
        let forget = |fd: BorrowedFd<'_>| {
            host::forget_cached(fd);
            Ok(())
        };
        self.0.file.call(forget).await
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        self.0.file.close().await
    }
}

impl fmt::Debug for FilePosix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilePosix({}, {:?})", self.0.path.display(), self.0.file)
    }
}

impl fmt::Debug for FilePosixControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilePosixControl({}, {:?})", self.shared.path.display(), self.access)
    }
}

#[cfg(test)]
mod tests;
