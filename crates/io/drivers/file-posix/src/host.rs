//! What sleeps: opening, looking at, creating and resizing files. All of it runs on threads of a pool, never on an I/O
//! thread; a file that is opened once more because somebody wants to write is opened by whoever owns the permissions.
//!
//! Each function is plain blocking code on descriptors; nothing here knows requests.

#![allow(clippy::disallowed_methods, reason = "this file is where the file driver blocks, on threads made for it")]

use crate::error::{FileError, FileKind};
use crate::lock::{self, Locks};
use crate::{FileAccess, HostKind};
use block_common::{AlignedBuf, Errno, OnOffAuto, Perm, PermPair, Preallocation};
use block_io::ThreadPool;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// `fallocate(2)` modes.
pub(crate) const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
pub(crate) const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;
pub(crate) const ZERO_RANGE_INSIDE: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;

/// The alignments that are tried where the kernel does not tell. The last one is never too small in practice.
const ALIGNMENTS: [u32; 4] = [512, 1024, 2048, ALIGNMENT_MAX];
const ALIGNMENT_MAX: u32 = 4096;
/// Zeroes are written in pieces of this many bytes.
const ZERO_PIECE: usize = 1 << 20;

/// A file that was opened and looked at.
pub(crate) struct Opened {
    pub(crate) fd: OwnedFd,
    pub(crate) kind: FileKind,
    /// To be taken as permissions are.
    pub(crate) locks: Option<Locks>,
    /// What offsets, lengths and memory are multiples of. 1 for buffered files.
    pub(crate) alignment: u32,
    /// What discards and zero writes have to be multiples of for the device to take them; 1 for files.
    pub(crate) device_block: u32,
    /// The file system's or the device's preferred request size, in bytes.
    pub(crate) block_size: u32,
    /// Whether its file system keeps lengths and the like in memory.
    pub(crate) is_local: bool,
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) kind: HostKind,
    pub(crate) access: FileAccess,
    pub(crate) direct: bool,
    pub(crate) locking: OnOffAuto,
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

fn flags(access: FileAccess, direct: bool) -> OFlags {
    let access = match access {
        FileAccess::ReadOnly | FileAccess::AsNeeded => OFlags::RDONLY,
        FileAccess::ReadWrite => OFlags::RDWR,
    };
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    access | direct | OFlags::CLOEXEC | OFlags::NOCTTY
}

/// Open the file or device at `path`.
pub(crate) fn open(path: &Path, how: How) -> Result<Opened, FileError> {
    if path.starts_with("/dev/fdset") {
        return Err(FileError::DescriptorSet { path: path.into() });
    }
    let How { kind, access, direct, .. } = how;
    // Looked at first: opening a pipe waits for its other end, and opening a device may do things.
    let stat = rustix::fs::stat(path).map_err(|e| FileError::open(path, errno(e)))?;
    if check_kind(path, stat.st_mode, kind, access)? == FileKind::BlockDevice
        && access == FileAccess::ReadWrite
        && device::is_read_only(&stat)
    {
        return Err(FileError::ReadOnlyDevice { path: path.into() });
    }
    let fd = match rustix::fs::open(path, flags(access, direct), Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::INVAL) if direct => return Err(FileError::DirectUnsupported { path: path.into() }),
        Err(e) => return Err(FileError::open(path, errno(e))),
    };
    look(path, fd, how)
}

/// Use a descriptor that somebody else has opened.
pub(crate) fn adopt(path: &Path, fd: OwnedFd, how: How) -> Result<Opened, FileError> {
    let How { access, direct, .. } = how;
    let now = rustix::fs::fcntl_getfl(&fd).map_err(|e| FileError::open(path, errno(e)))?;
    // The access modes are numbers, not bits: read-only is zero.
    let mode = now & OFlags::ACCMODE;
    let (allowed, wanted) = match access {
        FileAccess::ReadOnly | FileAccess::AsNeeded => (mode == OFlags::RDONLY || mode == OFlags::RDWR, "reading"),
        FileAccess::ReadWrite => (mode == OFlags::RDWR, "reading and writing"),
    };
    if !allowed {
        return Err(FileError::DescriptorMode { path: path.into(), wanted });
    }
    if now.contains(OFlags::DIRECT) != direct {
        let mut flags = now;
        flags.set(OFlags::DIRECT, direct);
        rustix::fs::fcntl_setfl(&fd, flags).map_err(|e| match e {
            rustix::io::Errno::INVAL => FileError::DirectUnsupported { path: path.into() },
            e => FileError::open(path, errno(e)),
        })?;
    }
    look(path, fd, how)
}

/// Open the file behind `fd` once more.
pub(crate) fn open_again(
    fd: BorrowedFd<'_>,
    path: &Path,
    access: FileAccess,
    direct: bool,
) -> Result<OwnedFd, FileError> {
    let failed = |e| FileError::open(path, errno(e));
    let flags = flags(access, direct);
    let old = rustix::fs::fstat(fd).map_err(failed)?;
    if access == FileAccess::ReadWrite
        && FileType::from_raw_mode(old.st_mode) == FileType::BlockDevice
        && device::is_read_only(&old)
    {
        return Err(FileError::ReadOnlyDevice { path: path.into() });
    }
    // Through the descriptor it is the same file by construction, also when its path is gone.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let again = match rustix::fs::open(link, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?
        }
        Err(e) => return Err(failed(e)),
    };
    let new = rustix::fs::fstat(&again).map_err(failed)?;
    if (old.st_dev, old.st_ino) != (new.st_dev, new.st_ino) {
        return Err(FileError::Replaced { path: path.into() });
    }
    Ok(again)
}

/// Whether a path leads to what is looked for, and to what.
fn check_kind(path: &Path, mode: u32, wanted: HostKind, access: FileAccess) -> Result<FileKind, FileError> {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => FileKind::Regular,
        // The host opens directories, but not for writing.
        FileType::Directory if access == FileAccess::ReadWrite => {
            return Err(FileError::open(path, Errno::from_raw(libc::EISDIR)));
        }
        // Nor sockets at all.
        FileType::Socket => return Err(FileError::open(path, Errno::from_raw(libc::ENXIO))),
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        _ => FileKind::Other,
    };
    match (wanted, kind) {
        (HostKind::File, FileKind::Regular) => Ok(kind),
        (HostKind::Device, FileKind::BlockDevice | FileKind::CharDevice) => Ok(kind),
        (HostKind::File, _) => Err(FileError::NotRegular { path: path.into(), kind }),
        (HostKind::Device, _) => Err(FileError::NotDevice { path: path.into() }),
    }
}

/// What `path` leads to, for those who choose a driver by it. A path that leads nowhere leads to a file that is not there.
pub async fn kind(path: impl Into<PathBuf>, pool: &ThreadPool) -> HostKind {
    let path = path.into();
    let looked = pool.run(move || match rustix::fs::stat(&path).map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::BlockDevice | FileType::CharacterDevice) => HostKind::Device,
        _ => HostKind::File,
    });
    looked.await.unwrap_or_default()
}

/// See what kind of file it is, and how its requests must be aligned.
fn look(path: &Path, fd: OwnedFd, how: How) -> Result<Opened, FileError> {
    let stat = rustix::fs::fstat(&fd).map_err(|e| FileError::open(path, errno(e)))?;
    let kind = check_kind(path, stat.st_mode, how.kind, how.access)?;
    let device_block = match kind {
        FileKind::BlockDevice => device::block_size(fd.as_fd()).map_err(|e| FileError::open(path, errno(e)))?,
        _ => 1,
    };
    let alignment = alignment(path, fd.as_fd(), (kind, device_block), how.direct)?;
    let block_size = match kind {
        FileKind::BlockDevice => device::optimal_size(&stat),
        _ => u32::try_from(stat.st_blksize).unwrap_or(0),
    };
    let locks = locks(path, fd.as_fd(), kind, how.locking)?;
    let is_local = rustix::fs::fstatfs(&fd).is_ok_and(|told| LOCAL.contains(&(told.f_type as u64)));
    Ok(Opened { fd, kind, locks, alignment, device_block, block_size, is_local })
}

/// The numbers of file systems that are this host's own: ext2 and its successors, XFS, Btrfs, F2FS, and tmpfs.
const LOCAL: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994];

/// What requests on a descriptor have to be aligned to.
pub(crate) fn alignment(
    path: &Path,
    fd: BorrowedFd<'_>,
    (kind, device_block): (FileKind, u32),
    direct: bool,
) -> Result<u32, FileError> {
    match (direct, kind) {
        (false, _) => Ok(1),
        (true, FileKind::BlockDevice) => Ok(device_block),
        (true, _) => {
            let stat = rustix::fs::fstat(fd).map_err(|e| FileError::open(path, errno(e)))?;
            direct_alignment(path, fd, stat.st_size as u64)
        }
    }
}

/// What holds the locks on the file behind `fd`, if it is to be locked.
fn locks(path: &Path, fd: BorrowedFd<'_>, kind: FileKind, locking: OnOffAuto) -> Result<Option<Locks>, FileError> {
    match locking {
        OnOffAuto::Off => return Ok(None),
        _ if lock::supported(fd) => {}
        OnOffAuto::Auto => return Ok(None),
        OnOffAuto::On => return Err(FileError::NoLocks { path: path.into() }),
    }
    // A description of its own: the file's may be exchanged for one with other rights. Opening a device may do things.
    let own = match kind {
        FileKind::Regular => open_again(fd, path, FileAccess::ReadOnly, false).ok(),
        _ => None,
    };
    let holder = match own {
        Some(own) => own,
        // Who was handed the descriptor may have no right to open the file.
        None => fd
            .try_clone_to_owned()
            .map_err(|e| FileError::open(path, Errno::from_raw(e.raw_os_error().unwrap_or(libc::EIO))))?,
    };
    Ok(Some(Locks::new(holder, path)))
}

/// What the host tells of block devices.
pub(crate) mod device {
    use super::{FileError, Path, errno};
    use rustix::fs::{Stat, major, minor};
    use std::os::fd::BorrowedFd;

    /// The smallest piece, in bytes, that can be read and written.
    pub(super) fn block_size(fd: BorrowedFd<'_>) -> rustix::io::Result<u32> {
        rustix::fs::ioctl_blksszget(fd)
    }

    /// That, and the smallest piece that is written without being read first.
    pub(crate) fn block_sizes(fd: BorrowedFd<'_>) -> rustix::io::Result<(u32, u32)> {
        Ok((rustix::fs::ioctl_blksszget(fd)?, rustix::fs::ioctl_blkpbszget(fd)?))
    }

    /// A number from the device's directory in sysfs.
    fn attribute(stat: &Stat, name: &str) -> Option<u64> {
        let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
        let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{name}")).ok()?;
        text.trim().parse().ok()
    }

    /// Whether the device refuses writes. Opening it for them may succeed all the same.
    pub(super) fn is_read_only(stat: &Stat) -> bool {
        attribute(stat, "ro") == Some(1)
    }

    /// The request size that the device likes best, in bytes; 0 when it does not tell. How long a request may be is no matter of ours: the
    /// kernel cuts what is too long for the device.
    pub(super) fn optimal_size(stat: &Stat) -> u32 {
        attribute(stat, "queue/optimal_io_size").and_then(|size| size.try_into().ok()).unwrap_or(0)
    }

    /// Whether a device may be said to have `len` bytes: one that is longer has them, one that is shorter cannot grow.
    pub(crate) fn resize(fd: BorrowedFd<'_>, path: &Path, len: u64) -> Result<(), FileError> {
        let end = rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))
            .map_err(|e| FileError::Resize { path: path.into(), errno: errno(e) })?;
        if len > end { Err(FileError::DeviceLength) } else { Ok(()) }
    }
}

/// What requests on an O_DIRECT descriptor must be aligned to, memory and offsets alike: the core bounces what the one
/// number does not fit, and the kernel wants segments whose lengths are whole blocks in any case.
#[doc(alias = "bdrv_probe_blocksizes")]
fn direct_alignment(path: &Path, fd: BorrowedFd<'_>, length: u64) -> Result<u32, FileError> {
    if let Ok(stat) = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        && stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0
    {
        let alignment = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align);
        return match alignment {
            0 => Err(FileError::DirectUnsupported { path: path.into() }),
            told if told.is_power_of_two() => Ok(told),
            _ => Err(FileError::DirectAlignment { path: path.into() }),
        };
    }
    probe(fd, length).ok_or_else(|| FileError::DirectAlignment { path: path.into() })
}

/// Try reads until one gets through.
fn probe(fd: BorrowedFd<'_>, length: u64) -> Option<u32> {
    // At the end of a file some kernels answer before they look at the alignment.
    if length < u64::from(ALIGNMENT_MAX) {
        return Some(ALIGNMENT_MAX);
    }
    let mut memory = AlignedBuf::zeroed(2 * ALIGNMENT_MAX as usize, 2 * ALIGNMENT_MAX as usize);
    ALIGNMENTS.into_iter().find(|&alignment| {
        let at = alignment as usize;
        rustix::io::pread(fd, &mut memory[at..2 * at], u64::from(alignment)).is_ok()
    })
}

/// Create the file at `path` (or empty the one that is there) and give it `size` bytes, in `pool`.
///
/// # Errors
/// [`FileError`]; [`FileError::Locked`] when somebody uses the file that is there, which is left alone then. A file that could not get its
/// size stays behind, empty.
#[doc(alias = "bdrv_create_file")]
pub async fn create(
    path: impl Into<PathBuf>,
    size: u64,
    preallocation: Preallocation,
    pool: &ThreadPool,
) -> Result<(), FileError> {
    let path = path.into();
    let name = path.clone();
    let done = pool.run(move || {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOCTTY;
        if preallocation == Preallocation::Metadata {
            return Err(FileError::PreallocationMode(preallocation));
        }
        let fd = rustix::fs::open(&name, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| FileError::Create { path: name.clone(), errno: errno(e) })?;
        // Emptied under nobody's hands. Others may look at it, but not count on its length.
        let mut locks = locks(&name, fd.as_fd(), FileKind::Regular, OnOffAuto::Auto)?;
        if let Some(locks) = &mut locks {
            locks.prepare(PermPair::new(Perm::WRITE | Perm::RESIZE, !Perm::RESIZE))?;
        }
        rustix::fs::ftruncate(&fd, 0).map_err(|e| FileError::Resize { path: name.clone(), errno: errno(e) })?;
        resize(fd.as_fd(), &name, size, preallocation, false)
    });
    done.await.unwrap_or(Err(FileError::Bug { path }))
}

/// Remove the file at `path`, in `pool`: one that was created and did not become what it should. What is no regular file stays.
///
/// # Errors
/// [`FileError`] says why it is still there.
#[doc(alias = "bdrv_co_delete_file")]
#[doc(alias = "bdrv_co_delete_file_noerr")]
pub async fn remove(path: impl Into<PathBuf>, pool: &ThreadPool) -> Result<(), FileError> {
    let path = path.into();
    let name = path.clone();
    let done = pool.run(move || {
        let failed = |e| FileError::open(&name, errno(e));
        let stat = rustix::fs::lstat(&name).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => rustix::fs::unlink(&name).map_err(failed),
            _ => Err(FileError::NotRegular { path: name.clone(), kind: FileKind::Other }),
        }
    });
    done.await.unwrap_or(Err(FileError::Bug { path }))
}

/// Which of `others` is the very file at `path`, under whatever name. `None` too where nothing is at `path`. The host is
/// asked in `pool`.
pub async fn same_file(path: impl Into<PathBuf>, others: Vec<PathBuf>, pool: &ThreadPool) -> Option<PathBuf> {
    let path = path.into();
    let identity = |path: &Path| rustix::fs::stat(path).ok().map(|stat| (stat.st_dev, stat.st_ino));
    let look = move || {
        let wanted = identity(&path)?;
        others.into_iter().find(|other| identity(other) == Some(wanted))
    };
    pool.run(look).await.flatten()
}

/// Give the file behind `fd` the length of `len` bytes. If the space for it cannot be had, the length stays.
pub(crate) fn resize(
    fd: BorrowedFd<'_>,
    path: &Path,
    len: u64,
    preallocation: Preallocation,
    direct: bool,
) -> Result<(), FileError> {
    let resize = |e| FileError::Resize { path: path.into(), errno: errno(e) };
    let old = u64::try_from(rustix::fs::fstat(fd).map_err(resize)?.st_size).unwrap_or(0);
    match preallocation {
        Preallocation::Metadata => return Err(FileError::PreallocationMode(preallocation)),
        Preallocation::Falloc | Preallocation::Full if len < old => return Err(FileError::PreallocationShrinks),
        Preallocation::Off => {
            rustix::fs::ftruncate(fd, len).map_err(resize)?;
            allocate_first_block(fd, old, len);
            return Ok(());
        }
        Preallocation::Falloc | Preallocation::Full if len == old => return Ok(()),
        Preallocation::Falloc | Preallocation::Full => {}
    }
    let filled = match preallocation {
        Preallocation::Falloc => rustix::fs::fallocate(fd, rustix::fs::FallocateFlags::empty(), old, len - old)
            .map_err(|e| ("preallocate new data", e)),
        _ => write_zeroes(fd, old, len, direct).map_err(|e| ("write zeros for preallocation", e)),
    };
    filled.map(|()| allocate_first_block(fd, old, len)).map_err(|(doing, e)| {
        if let Err(error) = rustix::fs::ftruncate(fd, old) {
            tracing::warn!(path = %path.display(), %error, "a file keeps a length that it was not given in full");
        }
        FileError::Preallocate { path: path.into(), doing, errno: errno(e) }
    })
}

/// Let a file that gets its first bytes have a block of storage, as the field's tools do: on some file systems reads of a
/// file without one succeed at any alignment, and whoever probes for the alignment of O_DIRECT would find a wrong one. A
/// hint: if it fails, requests that matter will tell why.
fn allocate_first_block(fd: BorrowedFd<'_>, old: u64, len: u64) {
    if old > 0 || len == 0 {
        return;
    }
    let block =
        if len < u64::from(ALIGNMENT_MAX) { len.min(u64::from(ALIGNMENTS[0])) } else { u64::from(ALIGNMENT_MAX) };
    let zeroes = AlignedBuf::zeroed(block as usize, ALIGNMENT_MAX as usize);
    if let Err(error) = rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, &zeroes, 0)) {
        tracing::debug!(%error, "a new file has no first block");
    }
}

/// Write zeroes from `from` to `to`, and see them stored.
fn write_zeroes(fd: BorrowedFd<'_>, from: u64, to: u64, direct: bool) -> rustix::io::Result<()> {
    // An odd end cannot be reached with O_DIRECT.
    let buffered = if direct {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        Some(rustix::fs::open(link, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    } else {
        None
    };
    let fd = buffered.as_ref().map_or(fd, AsFd::as_fd);
    rustix::fs::ftruncate(fd, to)?;
    let zeroes = vec![0; ZERO_PIECE];
    let mut at = from;
    while at < to {
        let piece = (to - at).min(ZERO_PIECE as u64) as usize;
        at += rustix::io::retry_on_intr(|| rustix::io::pwrite(fd, &zeroes[..piece], at))? as u64;
    }
    rustix::fs::fdatasync(fd)
}

/// How many bytes of storage the file takes. A device takes none.
pub(crate) fn allocated_size(fd: BorrowedFd<'_>) -> rustix::io::Result<u64> {
    // A block of `stat` is 512 bytes everywhere.
    Ok(u64::try_from(rustix::fs::fstat(fd)?.st_blocks).unwrap_or(0) * 512)
}

/// Drop the file's pages from the page cache, after what is dirty of them was written. The second is a hint: nothing depends on it.
pub(crate) fn forget_cached(fd: BorrowedFd<'_>) -> rustix::io::Result<()> {
    rustix::fs::fdatasync(fd)?;
    if let Err(error) = rustix::fs::fadvise(fd, 0, None, rustix::fs::Advice::DontNeed) {
        tracing::debug!(%error, "the page cache keeps a file's pages");
    }
    Ok(())
}
