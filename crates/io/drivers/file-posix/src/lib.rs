//! The engine of the drivers for files and devices of the host, buffered or with O_DIRECT, through io_uring or threads.
//!
//! Reads and writes are the core's: the engine only says which descriptor they go to. What is left here is everything
//! else that a file can do (zero, punch, tell its holes, change its length, be synced, be locked), and opening it, which may sleep
//! and so runs on a thread pool. Sets of descriptors, and what is special about optical drives, tapes and SCSI devices, are not here.

#![forbid(unsafe_code)]

mod error;
mod host;
mod lock;

pub use error::{FileError, FileKind};
pub use host::{create, kind, remove, same_file};

use async_trait::async_trait;
use block_common::{
    BlockStatus, Errno, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoErrorKind, IoResult, Limits, OnOffAuto,
    Perm, PermPair, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{
    Access, DeviceBlocks, DiskGeometry, Driver, FileEngine, FileExtent, HostFile, HostFileControl, HostFileOptions,
    Mapping, Quiesced, Req, ThreadPool,
};
use lock::Locks;
use std::fmt;
use std::future::Future;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// What a file is opened for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FileAccess {
    /// Reading.
    #[default]
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
    /// Reading, and writing for as long as [`FilePosixControl::prepare_perm`] is told that somebody does: `auto-read-only`.
    AsNeeded,
}

/// What a path is to lead to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostKind {
    /// A regular file: the `file` driver.
    #[default]
    File,
    /// A block or character device: the `host_device` driver.
    Device,
}

/// How to open a file.
#[derive(Debug)]
pub struct FilePosixOptions {
    /// What the path is to lead to.
    pub kind: HostKind,
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
    /// Whether to lock the file against other processes: `locking`. Where it works means where locks can belong to a descriptor. Which locks, says
    /// [`FilePosixControl::prepare_perm`]; until it is called there are none.
    pub locking: OnOffAuto,
    /// Whether [`Driver::invalidate_cache`] makes the host read the file anew: `drop-cache`.
    pub drop_cache: bool,
    /// A descriptor that the caller has opened. It must allow what `access` says; O_DIRECT is set on it as needed.
    pub fd: Option<OwnedFd>,
}

impl FilePosixOptions {
    /// The file at `path`, to be read through the page cache.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            kind: HostKind::File,
            path: path.into(),
            access: FileAccess::ReadOnly,
            direct: false,
            no_flush: false,
            engine: FileEngine::Ring,
            locking: OnOffAuto::Auto,
            drop_cache: true,
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
        self.judge(file.fallocate(mode, range.offset().0, range.len()).await)
    }

    /// The same by a device's own discard, which promises nothing about what is read afterwards.
    async fn attempt_discard(&self, file: &HostFile, range: GuestRange) -> IoResult<bool> {
        if self.missing.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.judge(file.discard_blocks(range.offset().0, range.len()).await)
    }

    fn judge(&self, result: IoResult<()>) -> IoResult<bool> {
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

/// What became of the discards that the host was asked for since the file was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiscardCounts {
    /// How many were done.
    pub done: u64,
    /// How many bytes these were.
    pub done_bytes: u64,
    /// How many were not, be it that the host cannot do that.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Discards {
    done: AtomicU64,
    done_bytes: AtomicU64,
    failed: AtomicU64,
}

impl Discards {
    fn count(&self, len: u64, done: bool) {
        if done {
            self.done.fetch_add(1, Ordering::Relaxed);
            self.done_bytes.fetch_add(len, Ordering::Relaxed);
        } else {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Shared {
    file: HostFile,
    kind: FileKind,
    /// Gone when the file is closed.
    locks: Mutex<Option<Locks>>,
    path: PathBuf,
    /// Both of these and the limits change together, while nothing is in flight.
    direct: AtomicBool,
    no_flush: AtomicBool,
    limits: RwLock<Limits>,
    drop_cache: bool,
    zero_range: Offload,
    punch_hole: Offload,
    discard: Offload,
    discards: Discards,
    /// Once the kernel failed to write cached pages out it forgets that they were dirty, and the next sync succeeds:
    /// that success must not be believed. The errno, or zero.
    sync_failed: AtomicI32,
}

impl Shared {
    fn check_block_device(&self) -> IoResult<()> {
        if self.kind == FileKind::BlockDevice { Ok(()) } else { Err(IoError::UNSUPPORTED) }
    }

    fn locks(&self) -> MutexGuard<'_, Option<Locks>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn direct(&self) -> bool {
        self.direct.load(Ordering::Relaxed)
    }

    fn no_flush(&self) -> bool {
        self.no_flush.load(Ordering::Relaxed)
    }

    fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sync(&self) -> IoResult<()> {
        if self.no_flush() {
            return Ok(());
        }
        if let errno @ 1.. = self.sync_failed.load(Ordering::Relaxed) {
            return Err(IoError::host(errno));
        }
        let result = match self.file.sync().await {
            // What a device takes that has nowhere to store it, it has stored.
            Err(error) if self.kind == FileKind::CharDevice && error.errno() == Errno::EINVAL => Ok(()),
            result => result,
        };
        self.remember(result);
        result
    }

    fn remember(&self, synced: IoResult<()>) {
        if let Err(error) = synced
            && error.kind() == IoErrorKind::Host
            && !self.direct()
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
    /// Whether somebody writes to it.
    is_written: bool,
    /// Whether the descriptor of an [`FileAccess::AsNeeded`] allows writing.
    writable: bool,
    /// What is prepared: whether somebody writes, and whether the descriptor did not allow it before.
    coming: Option<(bool, bool)>,
}

/// The permissions that take a descriptor which can be written.
const WRITING: Perm = Perm::WRITE.union(Perm::WRITE_UNCHANGED).union(Perm::RESIZE);

/// What a reopen may change of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilePosixModes {
    /// What it is opened for.
    pub access: FileAccess,
    /// As [`FilePosixOptions::direct`].
    pub direct: bool,
    /// As [`FilePosixOptions::no_flush`].
    pub no_flush: bool,
}

/// A descriptor of the same file with other rights, waiting to be committed.
#[derive(Debug)]
pub struct FilePosixReopen {
    fd: OwnedFd,
    modes: FilePosixModes,
    alignment: u32,
    writable: bool,
}

impl FilePosix {
    /// Open a file. Everything that may sleep runs in `pool`, as do the requests that io_uring does not carry out.
    ///
    /// # Errors
    /// [`FileError`] names the file and keeps the host's errno.
    #[doc(alias = "bdrv_file_open")]
    pub async fn open(options: FilePosixOptions, pool: ThreadPool) -> Result<(Self, FilePosixControl), FileError> {
        let FilePosixOptions { kind, path, access, direct, no_flush, engine, locking, drop_cache, fd } = options;
        let how = host::How { kind, access, direct, locking };
        let name = path.clone();
        let opened = pool.run(move || match fd {
            Some(fd) => host::adopt(&name, fd, how),
            None => host::open(&name, how),
        });
        let opened = opened.await.unwrap_or_else(|| Err(FileError::Bug { path: path.clone() }))?;
        let alignment = opened.alignment;
        let limits = Limits {
            request_alignment: alignment,
            memory_alignment: alignment,
            zero_alignment: opened.device_block,
            discard_alignment: opened.device_block,
            transfer_optimal: opened.block_size,
            ..Limits::NONE
        };
        let options = HostFileOptions { engine, memory_alignment: alignment };
        let (file, mut control) = HostFile::new(opened.fd, options, pool);
        if opened.is_local {
            control.set_local();
        }
        let shared = Arc::new(Shared {
            file,
            kind: opened.kind,
            locks: Mutex::new(opened.locks),
            path,
            direct: AtomicBool::new(direct),
            no_flush: AtomicBool::new(no_flush),
            limits: RwLock::new(limits),
            drop_cache,
            zero_range: Offload::default(),
            punch_hole: Offload::default(),
            discard: Offload::default(),
            discards: Discards::default(),
            sync_failed: AtomicI32::new(0),
        });
        Ok((
            Self(shared.clone()),
            FilePosixControl { shared, file: control, access, is_written: false, writable: false, coming: None },
        ))
    }
}

impl FilePosixControl {
    /// What became of discards so far.
    pub fn discards(&self) -> DiscardCounts {
        let Discards { done, done_bytes, failed } = &self.shared.discards;
        let [done, done_bytes, failed] = [done, done_bytes, failed].map(|count| count.load(Ordering::Relaxed));
        DiscardCounts { done, done_bytes, failed }
    }

    /// What the file is open for.
    pub fn access(&self) -> FileAccess {
        self.access
    }

    /// The users of the file are going to need and share `perm`: lock it so that other processes see that, and see whether they let it be
    /// (rule perm-5). Locks that are there already stay until [`FilePosixControl::commit_perm`] or [`FilePosixControl::abort_perm`] says
    /// which of them are the right ones; one of the two has to follow. Locks are no matter of the file's descriptor: exchanging it
    /// leaves them as they are, closing the file releases them.
    ///
    /// # Errors
    /// [`FileError::Locked`] when somebody else is in the way, [`FileError::Lock`] when the host locks nothing. What was locked before is.
    #[doc(alias = "bdrv_check_perm")]
    pub fn prepare_perm(&mut self, perm: PermPair) -> Result<(), FileError> {
        if let Some(locks) = self.shared.locks().as_mut() {
            locks.prepare(perm)?;
        }
        let writes = perm.perm.intersects(WRITING);
        let widens = self.access == FileAccess::AsNeeded && writes && !self.writable;
        if widens && let Err(error) = self.set_writable(true) {
            self.abort_locks();
            return Err(error);
        }
        self.coming = Some((writes, widens));
        Ok(())
    }

    /// Open the file once more, for writing too or for reading only, and use that from now on. Requests need not be held back: of a file that loses its
    /// last writer, nobody writes.
    fn set_writable(&mut self, writable: bool) -> Result<(), FileError> {
        // After the close there is nothing to open, and nobody who would write.
        let Some(fd) = self.file.descriptor() else { return Ok(()) };
        let access = if writable { FileAccess::ReadWrite } else { FileAccess::ReadOnly };
        let again = host::open_again(fd.as_fd(), &self.shared.path, access, self.shared.direct())?;
        self.file.exchange(&again).map_err(|error| FileError::open(&self.shared.path, error.errno()))?;
        self.writable = writable;
        Ok(())
    }

    /// As well as it goes: a descriptor that allows too much does no harm.
    fn narrow(&mut self) {
        if let Err(error) = self.set_writable(false) {
            tracing::warn!(path = %self.shared.path.display(), %error, "a file that nobody writes stays open for writing");
        }
    }

    fn abort_locks(&self) {
        if let Some(locks) = self.shared.locks().as_mut() {
            locks.abort();
        }
    }

    /// Keep the locks that were prepared last, and no others; a descriptor that nobody writes to any more is one for reading again.
    #[doc(alias = "bdrv_set_perm")]
    pub fn commit_perm(&mut self) {
        if let Some(locks) = self.shared.locks().as_mut() {
            locks.commit();
        }
        let Some((writes, _)) = self.coming.take() else { return };
        self.is_written = writes;
        if self.writable && !writes {
            self.narrow();
        }
    }

    /// Keep the locks that there were before the last ones were prepared, and no others.
    #[doc(alias = "bdrv_abort_perm_update")]
    pub fn abort_perm(&mut self) {
        self.abort_locks();
        if let Some((_, true)) = self.coming.take() {
            self.narrow();
        }
    }

    /// As it is open now.
    pub fn modes(&self) -> FilePosixModes {
        let shared = &self.shared;
        FilePosixModes { access: self.access, direct: shared.direct(), no_flush: shared.no_flush() }
    }

    /// Open the same file in other modes. Changes nothing yet. May be awaited anywhere.
    ///
    /// # Errors
    /// [`FileError`] when the host refuses, or when the path leads to another file by now and there is no other way to
    /// this one.
    #[doc(alias = "bdrv_reopen_prepare")]
    pub fn prepare(
        &self,
        modes: FilePosixModes,
    ) -> impl Future<Output = Result<FilePosixReopen, FileError>> + Send + use<> {
        let shared = self.shared.clone();
        let FilePosixModes { access, direct, .. } = modes;
        // Whoever writes to it now will go on.
        let writable = access == FileAccess::AsNeeded && self.is_written;
        let how = if writable { FileAccess::ReadWrite } else { access };
        async move {
            let (path, kind) = (shared.path.clone(), (shared.kind, shared.limits().zero_alignment));
            let open = move |fd: BorrowedFd<'_>| {
                Ok(host::open_again(fd, &path, how, direct).and_then(|fd| {
                    let alignment = host::alignment(&path, fd.as_fd(), kind, direct)?;
                    Ok((fd, alignment))
                }))
            };
            let opened = shared.file.call(open).await;
            let (fd, alignment) = opened.map_err(|error| FileError::open(&shared.path, error.errno()))??;
            Ok(FilePosixReopen { fd, modes, alignment, writable })
        }
    }

    /// Use the prepared descriptor from now on. Whether the node takes writes is the graph owner's to say beside it, and its limits are
    /// to be refreshed after it.
    #[doc(alias = "bdrv_reopen_commit")]
    pub fn commit(&mut self, reopen: FilePosixReopen, proof: &Quiesced<'_>) {
        let FilePosixReopen { fd, modes, alignment, writable } = reopen;
        self.file.replace(fd, alignment, proof);
        self.access = modes.access;
        self.writable = writable;
        let shared = &self.shared;
        shared.direct.store(modes.direct, Ordering::Relaxed);
        shared.no_flush.store(modes.no_flush, Ordering::Relaxed);
        let mut limits = shared.limits.write().unwrap_or_else(PoisonError::into_inner);
        (limits.request_alignment, limits.memory_alignment) = (alignment, alignment);
    }
}

#[async_trait]
impl Driver for FilePosix {
    fn format_name(&self) -> &'static str {
        match self.0.kind {
            FileKind::BlockDevice | FileKind::CharDevice => "host_device",
            FileKind::Regular | FileKind::Other => "file",
        }
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn is_leaf(&self) -> bool {
        true
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA | RequestFlags::DONT_CACHE
    }

    #[inline]
    fn map_cached(&self, access: Access, _range: GuestRange) -> Mapping<'_> {
        match access {
            // The core would ask for stable storage, and nobody wants to wait for that.
            Access::WriteFua if self.0.no_flush() => Mapping::Slow,
            _ => Mapping::File(&self.0.file),
        }
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        let length = self.0.file.length().await?;
        // With O_DIRECT, a last block that the file fills in part is there as a whole: what is aligned could not reach it otherwise, and
        // what lies past the end of the file reads as zeroes.
        Ok(length.next_multiple_of(self.0.limits().request_alignment.into()))
    }

    async fn allocated_size(&self, _req: &Req) -> IoResult<u64> {
        self.0.file.look(|fd| host::allocated_size(fd).map_err(|errno| IoError::host(errno.raw_os_error()))).await
    }

    async fn read(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.read(offset, buf).await
    }

    async fn write(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let left_out = if self.0.no_flush() { RequestFlags::FUA } else { RequestFlags::empty() };
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
        let done = match shared.kind {
            FileKind::BlockDevice => shared.discard.attempt_discard(&shared.file, range).await,
            _ => shared.punch_hole.attempt(&shared.file, host::PUNCH_HOLE, range).await,
        };
        shared.discards.count(range.len(), done == Ok(true));
        if done? { Ok(()) } else { Err(IoError::UNSUPPORTED) }
    }

    async fn probe_block_sizes(&self, _req: &Req) -> IoResult<DeviceBlocks> {
        self.0.check_block_device()?;
        let errno = |errno: rustix::io::Errno| IoError::host(errno.raw_os_error());
        let sizes = move |fd: BorrowedFd<'_>| host::device::block_sizes(fd).map_err(errno);
        let (logical, physical) = self.0.file.call(sizes).await?;
        Ok(DeviceBlocks { logical, physical })
    }

    async fn probe_geometry(&self, _req: &Req) -> IoResult<DiskGeometry> {
        self.0.check_block_device()?;
        match self.0.file.geometry().await {
            // Most devices have none.
            Err(error) if error.errno().raw() == rustix::io::Errno::NOTTY.raw_os_error() => Err(IoError::UNSUPPORTED),
            Ok(DiskGeometry { heads: 0, .. } | DiskGeometry { sectors: 0, .. }) => Err(IoError::UNSUPPORTED),
            other => other,
        }
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.0.sync().await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let offset = range.offset().0;
        let (content, len) = content(self.0.file.extent(offset).await?, self.0.limits().request_alignment, range.len());
        Ok(StatusExtent::mapped(content | BlockStatus::ALLOCATED, len, HostOffset(offset)))
    }

    async fn block_statuses(&self, _req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        let extents = self.0.file.extents(range.offset().0, range.end(), max).await?;
        let mut told = Vec::with_capacity(extents.len());
        let (mut at, mut end) = (range.offset().0, range.offset().0);
        for extent in extents {
            end = end.saturating_add(extent.len);
            // A block that began in an extent before this one may have used it up.
            let extent = FileExtent { len: end.saturating_sub(at), ..extent };
            if extent.len == 0 || at >= range.end() {
                continue;
            }
            let (content, len) = content(extent, self.0.limits().request_alignment, range.end() - at);
            told.push(StatusExtent::mapped(content | BlockStatus::ALLOCATED, len, HostOffset(at)));
            at += len;
        }
        Ok(told)
    }

    async fn truncate(&self, _req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let name = self.0.path.clone();
        if self.0.kind != FileKind::Regular {
            let resize = move |fd: BorrowedFd<'_>| host::device::resize(fd, &name, len).map_err(|e| e.io());
            return self.0.file.call(resize).await;
        }
        let direct = self.0.direct();
        self.0.file.call(move |fd| host::resize(fd, &name, len, preallocation, direct).map_err(|e| e.io())).await
    }

    /// Somebody else wrote the file: what the page cache has of it may be old on a network file system.
    async fn invalidate_cache(&self, _req: &Req) -> IoResult<()> {
        if self.0.direct() || !self.0.drop_cache {
            return Ok(());
        }
        let forget = |fd: BorrowedFd<'_>| host::forget_cached(fd).map_err(|errno| IoError::host(errno.raw_os_error()));
        self.0.file.call(forget).await
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        // Everything is written by now, so others may have the file. Releasing locks sleeps where the file is another host's.
        let locks = self.0.locks().take();
        self.0.file.close_after(move || drop(locks)).await
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
