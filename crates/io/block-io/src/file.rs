//! Host files as leaves: a descriptor with what the core must know to start requests on it.
//!
//! The core starts reads and writes of a mapped range by itself ([`Mapping::File`](crate::Mapping::File)); everything else goes through the methods
//! here. Nothing blocks: io_uring where it can, threads where it must. Opening a file, choosing its flags and naming its
//! errors is the file driver's work, not this file's.

#![allow(unsafe_code, reason = "system calls on raw memory and descriptors; each block names what keeps them alive")]

use crate::context::{Hold, IoContext, SlotFuture};
use crate::node::Quiesced;
use crate::pool::ThreadPool;
use block_common::{GuestOffset, IoBuf, IoError, IoResult, RequestFlags};
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who carries out reads and writes of a host file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileEngine {
    /// The I/O thread's ring, or threads on a host without io_uring.
    Ring,
    /// Threads.
    Threads,
}

/// How requests on a host file are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFileOptions {
    /// Who carries them out.
    pub engine: FileEngine,
    /// Buffers begin at, and are multiples of, this many bytes; others are bounced. 1 for buffered files.
    pub memory_alignment: u32,
}

/// Reads of at most this many bytes are tried at once; what is longer is worth a thread's or the ring's trouble.
const AT_ONCE_MAX: u64 = 64 << 10;
/// Reads go round the attempt for this many requests at most before it is made again.
const MISSES_MAX: u32 = 256;
/// The attempt is not made any more.
const NEVER: u32 = u32::MAX;

/// Whether it pays to ask for what the page cache has before asking for it in earnest. A read that is answered at once costs
/// one system call and no bookkeeping; one that is not has paid for a call in vain, so misses make the attempts rare.
#[derive(Debug, Default)]
struct AtOnce {
    /// Requests that go by before the next attempt, or `NEVER`.
    skip: AtomicU32,
    /// How many requests the last miss let go by.
    missed: AtomicU32,
}

impl AtOnce {
    /// Whether this request makes the attempt. Threads may miscount; nothing depends on it.
    #[inline]
    fn attempt(&self) -> bool {
        match self.skip.load(Ordering::Relaxed) {
            0 => true,
            NEVER => false,
            n => {
                self.skip.store(n - 1, Ordering::Relaxed);
                false
            }
        }
    }

    #[inline]
    fn hit(&self) {
        if self.missed.load(Ordering::Relaxed) != 0 {
            self.missed.store(0, Ordering::Relaxed);
        }
    }

    #[cold]
    fn missed(&self, errno: i32) {
        match errno {
            libc::EAGAIN => {
                let missed = (self.missed.load(Ordering::Relaxed) * 2).clamp(2, MISSES_MAX);
                self.missed.store(missed, Ordering::Relaxed);
                self.skip.store(missed, Ordering::Relaxed);
            }
            libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ESPIPE => self.skip.store(NEVER, Ordering::Relaxed),
            // Whatever it is, the request meets it again and reports it.
            _ => {}
        }
    }
}

pub(crate) struct FileShared {
    fd: AtomicI32,
    at_once: AtOnce,
    owned: Mutex<Option<Arc<OwnedFd>>>,
    engine: FileEngine,
    /// Of the descriptor. Both change together, while nothing is in flight.
    memory_alignment: AtomicU32,
    /// What the host knows of the file is in its memory: asking does not sleep.
    is_local: AtomicBool,
    /// The host cannot write without keeping what it wrote in its cache.
    keeps_cached: AtomicBool,
    pool: ThreadPool,
}

impl FileShared {
    #[inline]
    fn options(&self) -> HostFileOptions {
        HostFileOptions { engine: self.engine, memory_alignment: self.memory_alignment.load(Ordering::Relaxed) }
    }

    /// Whether writes may ask that what they wrote goes to the disk, and then out of the cache. O_DIRECT has no use for it.
    fn may_drop_behind(&self) -> bool {
        self.options().memory_alignment <= 1 && !self.keeps_cached.load(Ordering::Relaxed)
    }
}

/// A host file, as an engine holds it.
pub struct HostFile(Arc<FileShared>);

/// The other half of a [`HostFile`]: may exchange the descriptor.
pub struct HostFileControl(Arc<FileShared>);

/// What a range of a host file is, as the file system tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileExtent {
    /// Whether it is data; otherwise it is a hole.
    pub is_data: bool,
    /// For how many bytes from the asked offset.
    pub len: u64,
}

/// A disk as old firmware counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskGeometry {
    /// Heads.
    pub heads: u8,
    /// Sectors of a track.
    pub sectors: u8,
    /// Cylinders; 16 bits of them.
    pub cylinders: u16,
}

/// In what pieces a block device works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(alias = "BlockSizes")]
pub struct DeviceBlocks {
    /// The smallest piece that can be read and written, in bytes.
    pub logical: u32,
    /// The smallest piece that is written without being read first, in bytes.
    pub physical: u32,
}

impl HostFile {
    /// Requests on `fd`, which was opened as `options` says. System calls that may sleep run in `pool`.
    pub fn new(fd: OwnedFd, options: HostFileOptions, pool: ThreadPool) -> (Self, HostFileControl) {
        let shared = Arc::new(FileShared {
            fd: AtomicI32::new(fd.as_raw_fd()),
            at_once: AtOnce::default(),
            owned: Mutex::new(Some(Arc::new(fd))),
            engine: options.engine,
            memory_alignment: AtomicU32::new(options.memory_alignment.max(1)),
            is_local: AtomicBool::new(false),
            keeps_cached: AtomicBool::new(false),
            pool,
        });
        (Self(shared.clone()), HostFileControl(shared))
    }

    /// Fill `buf` from `offset`. What lies past the end of the file reads as zeroes.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn read(&self, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.start(FileOp::read(offset.0, buf.clone()))?.await
    }

    /// Store `buf` at `offset`, on stable storage if `flags` say so.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn write(&self, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let fua = flags.contains(RequestFlags::FUA);
        if flags.contains(RequestFlags::DONT_CACHE) && self.0.may_drop_behind() {
            let kind = FileOpKind::Write { fua, drop_behind: true };
            match self.start(FileOp::new(kind, offset.0, buf.len() as u64, Some(buf.clone())))?.await {
                Err(error) if error.errno() == IoError::UNSUPPORTED.errno() => {
                    self.0.keeps_cached.store(true, Ordering::Relaxed)
                }
                done => return done,
            }
        }
        self.start(FileOp::write(offset.0, buf.clone(), fua))?.await
    }

    /// Bring the data that was written to stable storage, and the metadata that is needed to read it back.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn sync(&self) -> IoResult<()> {
        self.start(FileOp::new(FileOpKind::Sync, 0, 0, None))?.await
    }

    /// `fallocate(2)` with `mode` on `len` bytes at `offset`.
    ///
    /// # Errors
    /// What the host answered: ENOTSUP where the file system cannot do it.
    pub async fn fallocate(&self, mode: i32, offset: u64, len: u64) -> IoResult<()> {
        self.start(FileOp::new(FileOpKind::Allocate(mode), offset, len, None))?.await
    }

    /// Tell the block device that it need not keep `len` bytes at `offset`. What is read there afterwards is anything.
    ///
    /// # Errors
    /// What the host answered: ENOTSUP where the device cannot do it, EINVAL where the range is not aligned to its blocks.
    pub async fn discard_blocks(&self, offset: u64, len: u64) -> IoResult<()> {
        self.call(move |fd| discard_blocks(fd, [offset, len])).await
    }

    /// How the host counts the disk in heads, sectors and cylinders.
    ///
    /// # Errors
    /// What the host answered: ENOTTY where the device has no such thing.
    pub async fn geometry(&self) -> IoResult<DiskGeometry> {
        self.call(geometry).await
    }

    /// Set the file's length in bytes.
    ///
    /// # Errors
    /// What the host answered.
    #[allow(clippy::disallowed_methods, reason = "runs in the pool, whose threads may sleep")]
    pub async fn set_length(&self, len: u64) -> IoResult<()> {
        self.call(move |fd| rustix::fs::ftruncate(fd, len).map_err(host)).await
    }

    /// The length in bytes: the file's size, or a device's.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn length(&self) -> IoResult<u64> {
        self.look(|fd| rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0)).map_err(host)).await
    }

    /// Ask the host for something that a local file system keeps in memory: at once where [`HostFileControl::set_local`] says that it is one, else
    /// as [`HostFile::call`].
    ///
    /// # Errors
    /// As [`HostFile::call`].
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(BorrowedFd<'_>) -> IoResult<T> + Send + 'static,
    ) -> IoResult<T> {
        use std::os::fd::AsFd;
        match self.0.is_local.load(Ordering::Relaxed) {
            true => look(self.owned()?.as_fd()),
            false => self.call(look).await,
        }
    }

    /// Whether the byte at `offset` is data or a hole, and for how long. Past the end it is a hole.
    /// A file system that cannot tell says data.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn extent(&self, offset: u64) -> IoResult<FileExtent> {
        self.call(move |fd| extent(fd, offset)).await
    }

    /// The same from `offset` up to `end` at least, at most `max` extents, one behind the other. There is at least one.
    ///
    /// # Errors
    /// What the host answered.
    pub async fn extents(&self, offset: u64, end: u64, max: usize) -> IoResult<Vec<FileExtent>> {
        self.call(move |fd| extents(fd, offset, end, max)).await
    }

    /// Run `call` with the descriptor on a thread that may sleep.
    ///
    /// # Errors
    /// [`IoError::CLOSED`] after [`HostFile::close`], or the call's own error.
    pub async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(BorrowedFd<'_>) -> IoResult<T> + Send + 'static,
    ) -> IoResult<T> {
        use std::os::fd::AsFd;
        let fd = self.owned()?;
        self.0.pool.run(move || call(fd.as_fd())).await.unwrap_or(Err(IoError::BUG))
    }

    /// Let go of the descriptor; it is closed when the calls that use it are over.
    ///
    /// # Errors
    /// None today; the descriptor of a file that was written is synced before, by the engine's flush.
    pub async fn close(&self) -> IoResult<()> {
        self.close_after(|| ()).await
    }

    /// As [`HostFile::close`], with `first` run before it on the same thread, which may sleep.
    ///
    /// # Errors
    /// As [`HostFile::close`].
    pub async fn close_after(&self, first: impl FnOnce() + Send + 'static) -> IoResult<()> {
        self.0.fd.store(-1, Ordering::Release);
        let fd = self.0.owned.lock().unwrap_or_else(PoisonError::into_inner).take();
        // close(2) may sleep.
        let close = move || {
            first();
            drop(fd);
        };
        self.0.pool.run(close).await.ok_or(IoError::BUG)
    }

    fn owned(&self) -> IoResult<Arc<OwnedFd>> {
        self.0.owned.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(IoError::CLOSED)
    }

    /// Start `op` on the calling I/O thread. The slot holds the descriptor.
    fn start(&self, mut op: FileOp) -> IoResult<SlotFuture> {
        let fd = self.owned()?;
        op.fd = fd.as_raw_fd();
        op.options = self.0.options();
        let context = IoContext::current().ok_or_else(|| {
            tracing::error!("a host file was used outside an I/O thread");
            IoError::BUG
        })?;
        let pool = context.pool_for(self.0.engine, &self.0.pool);
        Ok(context.start_future(op, Hold::File(fd), pool))
    }

    /// As `start`, for the fast path: the caller's pins keep the engine and so the descriptor. `None` after
    /// [`HostFile::close`].
    #[inline]
    pub(crate) fn target(&self, op: &mut FileOp) -> Option<&ThreadPool> {
        op.fd = self.0.fd.load(Ordering::Acquire);
        op.options = self.0.options();
        (op.fd >= 0).then_some(&self.0.pool)
    }

    /// The descriptor of a buffered file, and threads for calls on it.
    pub(crate) fn buffered(&self) -> Option<(Arc<OwnedFd>, ThreadPool)> {
        let is_buffered = self.0.options().memory_alignment <= 1;
        self.owned().ok().filter(|_| is_buffered).map(|fd| (fd, self.0.pool.clone()))
    }

    /// Carry out a read of the descriptor that [`HostFile::target`] found, if the page cache has all of it: nothing is waited for.
    #[inline]
    pub(crate) fn read_at_once(&self, op: &FileOp) -> bool {
        // With O_DIRECT there is no cache to ask, and the kernel would wait for the disk all the same.
        if op.kind != FileOpKind::Read || op.options.memory_alignment > 1 || op.len > AT_ONCE_MAX {
            return false;
        }
        let Some(buf) = op.buf.as_ref().filter(|_| self.0.at_once.attempt()) else { return false };
        let answer = match buf.segments() {
            [one] => read_cached(op.fd, op.offset, &[vec_of(one)]),
            [] => return true,
            _ => read_cached(op.fd, op.offset, &iovecs(buf, 0)),
        };
        match answer {
            // A part of it may be cached, or the file may end there: the ordinary way finds out.
            Ok(read) => {
                self.0.at_once.hit();
                read as u64 == op.len
            }
            Err(errno) => {
                self.0.at_once.missed(errno);
                false
            }
        }
    }
}

impl fmt::Debug for HostFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostFile(fd {}, {:?})", self.0.fd.load(Ordering::Relaxed), self.0.options())
    }
}

impl HostFileControl {
    /// Use `fd`, whose requests need memory at multiples of `memory_alignment` bytes, from now on: a reopen. The old descriptor is closed with its
    /// last call.
    pub fn replace(&mut self, fd: OwnedFd, memory_alignment: u32, _proof: &Quiesced<'_>) {
        self.0.memory_alignment.store(memory_alignment.max(1), Ordering::Relaxed);
        self.0.fd.store(fd.as_raw_fd(), Ordering::Release);
        self.0.at_once.skip.store(0, Ordering::Relaxed);
        let mut owned = self.0.owned.lock().unwrap_or_else(PoisonError::into_inner);
        *owned = Some(Arc::new(fd));
    }
}

impl HostFileControl {
    /// The file is on a file system that keeps lengths and the like in memory: they may be asked for on any thread.
    pub fn set_local(&mut self) {
        self.0.is_local.store(true, Ordering::Relaxed);
    }

    /// The descriptor, or `None` after [`HostFile::close`].
    pub fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.0.owned.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Let the descriptor stand for what `fd` stands for: the same file, opened with other rights. Nobody needs to be held back for that: its
    /// number stays, and a request uses either what it stood for before or what it stands for then.
    ///
    /// # Errors
    /// What the host answered; [`IoError::CLOSED`] after [`HostFile::close`].
    pub fn exchange(&mut self, fd: &OwnedFd) -> IoResult<()> {
        let own = self.descriptor().ok_or(IoError::CLOSED)?;
        // SAFETY: both descriptors are open for the length of the call. The number of the second still belongs to its owner
        // afterwards, and still to an open file: the kernel puts one in the other's place in one step.
        let answer = unsafe { libc::dup3(fd.as_raw_fd(), own.as_raw_fd(), libc::O_CLOEXEC) };
        if answer >= 0 {
            self.0.at_once.skip.store(0, Ordering::Relaxed);
            return Ok(());
        }
        Err(IoError::host(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl fmt::Debug for HostFileControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostFileControl(fd {})", self.0.fd.load(Ordering::Relaxed))
    }
}

fn host(errno: rustix::io::Errno) -> IoError {
    IoError::host(errno.raw_os_error())
}

/// The ioctl HDIO_GETGEO.
fn geometry(fd: BorrowedFd<'_>) -> IoResult<DiskGeometry> {
    use rustix::ioctl::{Getter, ioctl};
    #[repr(C)]
    struct HdGeometry {
        heads: u8,
        sectors: u8,
        cylinders: u16,
        start: libc::c_ulong,
    }
    const HDIO_GETGEO: rustix::ioctl::Opcode = 0x0301;
    // SAFETY: the request fills a structure of this layout, all of whose bit patterns are valid, and keeps no pointer to it. On what is
    // no disk the number means nothing to anybody.
    let told = unsafe { ioctl(fd, Getter::<HDIO_GETGEO, HdGeometry>::new()) }.map_err(host)?;
    let HdGeometry { heads, sectors, cylinders, start: _ } = told;
    Ok(DiskGeometry { heads, sectors, cylinders })
}

/// The ioctl BLKDISCARD: offset and length in bytes.
fn discard_blocks(fd: BorrowedFd<'_>, range: [u64; 2]) -> IoResult<()> {
    use rustix::ioctl::{Setter, ioctl, opcode};
    const BLKDISCARD: rustix::ioctl::Opcode = opcode::none(0x12, 119);
    // SAFETY: the request reads two 64-bit numbers, which is what it is given, and keeps no pointer to them. On what is no block
    // device the number means nothing to anybody.
    unsafe { ioctl(fd, Setter::<BLKDISCARD, [u64; 2]>::new(range)) }.map_err(host)
}

/// `lseek(2)` with SEEK_DATA and SEEK_HOLE. The file position is shared by nobody: all other calls are positional.
fn extent(fd: BorrowedFd<'_>, offset: u64) -> IoResult<FileExtent> {
    match seek_data(fd, offset)? {
        Some(data) if data > offset => Ok(FileExtent { is_data: false, len: data - offset }),
        Some(_) => data_at(fd, offset),
        None => Ok(FileExtent { is_data: false, len: u64::MAX - offset }),
    }
}

/// The extents from `offset` on; where one ends the other kind begins, so one call tells each after the first.
fn extents(fd: BorrowedFd<'_>, offset: u64, end: u64, max: usize) -> IoResult<Vec<FileExtent>> {
    let mut found = vec![extent(fd, offset)?];
    let mut at = offset + found[0].len;
    while at < end && found.len() < max {
        let next = match found.last() {
            // What the file has become meanwhile, the next question tells.
            Some(FileExtent { is_data: true, .. }) => match seek_data(fd, at)? {
                Some(data) if data > at => FileExtent { is_data: false, len: data - at },
                Some(_) => break,
                None => FileExtent { is_data: false, len: u64::MAX - at },
            },
            _ => data_at(fd, at)?,
        };
        at += next.len;
        found.push(next);
    }
    Ok(found)
}

/// Where there is data, at `offset` or after it. `None` when there is none any more. A file system that cannot tell has data
/// everywhere.
fn seek_data(fd: BorrowedFd<'_>, offset: u64) -> IoResult<Option<u64>> {
    match rustix::fs::seek(fd, rustix::fs::SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
        Err(errno) => Err(host(errno)),
    }
}

/// The data at `offset`, where there was some a moment ago.
fn data_at(fd: BorrowedFd<'_>, offset: u64) -> IoResult<FileExtent> {
    let len = match rustix::fs::seek(fd, rustix::fs::SeekFrom::Hole(offset)) {
        Ok(hole) if hole > offset => hole - offset,
        // The file changed under us: data is the safe answer.
        Ok(_) | Err(rustix::io::Errno::NXIO) => 1,
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => u64::MAX - offset,
        Err(errno) => return Err(host(errno)),
    };
    Ok(FileExtent { is_data: true, len })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileOpKind {
    Read,
    Write {
        fua: bool,
        /// What was written is on its way to the disk, and leaves the cache when it is there.
        drop_behind: bool,
    },
    Sync,
    Allocate(i32),
}

impl FileOpKind {
    /// What the kernel is told of a write (`RWF_*`).
    pub(crate) fn write_flags(self) -> i32 {
        let Self::Write { fua, drop_behind } = self else { return 0 };
        // Linux 6.14; before that, and on file systems that have no such thing, writes are refused.
        const RWF_DONTCACHE: i32 = 0x80;
        (if fua { libc::RWF_DSYNC } else { 0 }) | if drop_behind { RWF_DONTCACHE } else { 0 }
    }
}

/// One operation on a host file.
#[derive(Debug)]
pub(crate) struct FileOp {
    pub(crate) kind: FileOpKind,
    pub(crate) fd: RawFd,
    pub(crate) options: HostFileOptions,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) buf: Option<IoBuf>,
    /// `buf` is a copy, and this what it stands for.
    pub(crate) recoded: Option<Box<Recoded>>,
}

/// What a copy that a driver encodes or decodes stands for.
#[derive(Debug)]
pub(crate) struct Recoded {
    /// The caller's buffer.
    pub(crate) buf: IoBuf,
    /// Which node of the path does it.
    pub(crate) node: usize,
    /// What it is told.
    pub(crate) at: u64,
}

impl FileOp {
    /// Whether it goes through the host's page cache.
    pub(crate) fn is_buffered(&self) -> bool {
        self.options.memory_alignment == 1
    }

    pub(crate) fn new(kind: FileOpKind, offset: u64, len: u64, buf: Option<IoBuf>) -> Self {
        let options = HostFileOptions { engine: FileEngine::Ring, memory_alignment: 1 };
        Self { kind, fd: -1, options, offset, len, buf, recoded: None }
    }

    pub(crate) fn read(offset: u64, buf: IoBuf) -> Self {
        let len = buf.len() as u64;
        Self::new(FileOpKind::Read, offset, len, Some(buf))
    }

    pub(crate) fn write(offset: u64, buf: IoBuf, fua: bool) -> Self {
        let len = buf.len() as u64;
        Self::new(FileOpKind::Write { fua, drop_behind: false }, offset, len, Some(buf))
    }
}

fn vec_of(segment: &block_common::Segment) -> libc::iovec {
    libc::iovec { iov_base: segment.base.as_ptr().cast(), iov_len: segment.len }
}

/// Read what the page cache has at `offset`: bytes, or the errno. The vectors describe memory that the caller holds.
fn read_cached(fd: RawFd, offset: u64, vecs: &[libc::iovec]) -> Result<usize, i32> {
    let (low, high) = (offset as libc::c_long, (offset >> 32) as libc::c_long);
    // SAFETY: the caller's pins keep the descriptor open, and its buffer the memory. Not libc's own function, which prepares
    // for the thread to be cancelled: that is a tenth of the time here.
    let answer =
        unsafe { libc::syscall(libc::SYS_preadv2, fd, vecs.as_ptr(), vecs.len(), low, high, libc::RWF_NOWAIT) };
    usize::try_from(answer).map_err(|_| std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

/// The `iovec`s of `buf` from `skip` bytes on; at most IOV_MAX of them.
pub(crate) fn iovecs(buf: &IoBuf, mut skip: usize) -> Vec<libc::iovec> {
    let mut vecs = Vec::with_capacity(buf.segments().len());
    for segment in buf.segments() {
        if skip >= segment.len {
            skip -= segment.len;
            continue;
        }
        if vecs.len() == libc::UIO_MAXIOV as usize {
            break;
        }
        // SAFETY: `skip < segment.len`, so the pointer stays inside the segment.
        let base = unsafe { segment.base.add(skip) };
        vecs.push(libc::iovec { iov_base: base.as_ptr().cast(), iov_len: segment.len - skip });
        skip = 0;
    }
    vecs
}

/// Writes to the page cache from this many bytes on wait for each other.
const TURN_MIN: u64 = 128 << 10;

/// Wait until no other long write to the file is under way. The kernel lets one in at a time anyway, and who waits there keeps a processor busy that others have
/// use for. Each descriptor has a turn of its own, so that nobody waits for another file, which may hang; the highest have none.
pub(crate) fn write_turn(kind: FileOpKind, fd: RawFd, len: u64) -> Option<MutexGuard<'static, ()>> {
    static TURNS: [Mutex<()>; 4096] = [const { Mutex::new(()) }; 4096];
    let is_long = matches!(kind, FileOpKind::Write { .. }) && len >= TURN_MIN;
    let turn = usize::try_from(fd).ok().filter(|_| is_long).and_then(|fd| TURNS.get(fd))?;
    Some(turn.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Carry out one operation on this thread; the answer is as a ring's completion: bytes done, or a negative errno.
pub(crate) fn run_blocking(
    kind: FileOpKind,
    fd: RawFd,
    offset: u64,
    len: u64,
    buf: Option<&IoBuf>,
    skip: usize,
) -> i32 {
    let offset = offset as libc::off_t;
    let vecs = buf.map(|buf| iovecs(buf, skip)).unwrap_or_default();
    let (base, count) = (vecs.as_ptr(), vecs.len() as i32);
    // SAFETY: the descriptor is open for as long as the operation's slot exists, and so is the memory that the iovecs
    // describe, which belongs to the buffer that the caller holds.
    let answer = unsafe {
        match kind {
            FileOpKind::Read => libc::preadv(fd, base, count, offset) as i64,
            FileOpKind::Write { fua: false, drop_behind: false } => libc::pwritev(fd, base, count, offset) as i64,
            FileOpKind::Write { .. } => libc::pwritev2(fd, base, count, offset, kind.write_flags()) as i64,
            FileOpKind::Sync => i64::from(libc::fdatasync(fd)),
            FileOpKind::Allocate(mode) => i64::from(libc::fallocate(fd, mode, offset, len as libc::off_t)),
        }
    };
    if answer >= 0 { answer as i32 } else { -std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests go by until the next attempt.
    fn until_attempt(at_once: &AtOnce) -> u32 {
        (0..2 * MISSES_MAX).find(|_| at_once.attempt()).unwrap_or(NEVER)
    }

    #[test]
    fn misses_make_attempts_rare_and_a_hit_frequent() {
        let at_once = AtOnce::default();
        assert_eq!(until_attempt(&at_once), 0);
        for expected in [2, 4, 8, 16, 32, 64, 128, 256, 256, 256] {
            at_once.missed(libc::EAGAIN);
            assert_eq!(until_attempt(&at_once), expected);
        }
        at_once.hit();
        assert_eq!(until_attempt(&at_once), 0);
        at_once.missed(libc::EAGAIN);
        assert_eq!(until_attempt(&at_once), 2);
    }

    #[test]
    fn what_the_host_cannot_do_is_not_tried_again() {
        for errno in [libc::EOPNOTSUPP, libc::ENOSYS, libc::ESPIPE] {
            let at_once = AtOnce::default();
            at_once.missed(libc::EIO);
            assert_eq!(until_attempt(&at_once), 0);
            at_once.missed(errno);
            assert_eq!(until_attempt(&at_once), NEVER);
        }
    }
}
