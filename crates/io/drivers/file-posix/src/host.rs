//! What sleeps: opening, looking at, creating and resizing files. All of it runs on threads of a pool, never on an I/O
//! thread.
//!
//! Each function is plain blocking code on descriptors; nothing here knows requests.

#![allow(clippy::disallowed_methods, reason = "this file is where the file driver blocks, on threads made for it")]

use crate::FileAccess;
use crate::error::{FileError, FileKind};
use block_common::{AlignedBuf, Errno, Preallocation};
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
    /// What offsets, lengths and memory are multiples of. 1 for buffered files.
    pub(crate) alignment: u32,
    /// The file system's preferred request size, in bytes.
    pub(crate) block_size: u32,
}

fn errno(errno: rustix::io::Errno) -> Errno {
    Errno::from_raw(errno.raw_os_error())
}

fn flags(access: FileAccess, direct: bool) -> OFlags {
    let access = match access {
        FileAccess::ReadOnly => OFlags::RDONLY,
        FileAccess::ReadWrite => OFlags::RDWR,
    };
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    access | direct | OFlags::CLOEXEC | OFlags::NOCTTY
}

/// Open the regular file at `path`.
pub(crate) fn open(path: &Path, access: FileAccess, direct: bool) -> Result<Opened, FileError> {
    // Looked at first: opening a pipe waits for its other end, and opening a device may do things.
    let stat = rustix::fs::stat(path).map_err(|e| FileError::open(path, errno(e)))?;
    regular(path, stat.st_mode, access)?;
    let fd = match rustix::fs::open(path, flags(access, direct), Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::INVAL) if direct => return Err(FileError::DirectUnsupported { path: path.into() }),
        Err(e) => return Err(FileError::open(path, errno(e))),
    };
    look(path, fd, access, direct)
}

/// Use a descriptor that somebody else has opened.
pub(crate) fn adopt(path: &Path, fd: OwnedFd, access: FileAccess, direct: bool) -> Result<Opened, FileError> {
    let now = rustix::fs::fcntl_getfl(&fd).map_err(|e| FileError::open(path, errno(e)))?;
    // The access modes are numbers, not bits: read-only is zero.
    let mode = now & OFlags::ACCMODE;
    let (allowed, wanted) = match access {
        FileAccess::ReadOnly => (mode == OFlags::RDONLY || mode == OFlags::RDWR, "reading"),
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
    look(path, fd, access, direct)
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
    // Through the descriptor it is the same file by construction, also when its path is gone.
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let again = match rustix::fs::open(link, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?
        }
        Err(e) => return Err(failed(e)),
    };
    let (old, new) = (rustix::fs::fstat(fd).map_err(failed)?, rustix::fs::fstat(&again).map_err(failed)?);
    if (old.st_dev, old.st_ino) != (new.st_dev, new.st_ino) {
        return Err(FileError::Replaced { path: path.into() });
    }
    Ok(again)
}

fn regular(path: &Path, mode: u32, access: FileAccess) -> Result<(), FileError> {
    let kind = match FileType::from_raw_mode(mode) {
        FileType::RegularFile => return Ok(()),
        // The host opens directories, but not for writing.
        FileType::Directory if access == FileAccess::ReadWrite => {
            return Err(FileError::open(path, Errno::from_raw(libc::EISDIR)));
        }
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        _ => FileKind::Other,
    };
    Err(FileError::NotRegular { path: path.into(), kind })
}

/// See what kind of file it is, and how its requests must be aligned.
fn look(path: &Path, fd: OwnedFd, access: FileAccess, direct: bool) -> Result<Opened, FileError> {
    let stat = rustix::fs::fstat(&fd).map_err(|e| FileError::open(path, errno(e)))?;
    regular(path, stat.st_mode, access)?;
    let alignment = if direct { direct_alignment(path, fd.as_fd(), stat.st_size as u64)? } else { 1 };
    let block_size = u32::try_from(stat.st_blksize).unwrap_or(0);
    Ok(Opened { fd, alignment, block_size })
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
/// [`FileError`]; a file that could not get its size stays behind, empty.
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
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOCTTY;
        if preallocation == Preallocation::Metadata {
            return Err(FileError::PreallocationMode(preallocation));
        }
        let fd = rustix::fs::open(&name, flags, Mode::from_raw_mode(0o644))
            .map_err(|e| FileError::Create { path: name.clone(), errno: errno(e) })?;
        resize(fd.as_fd(), &name, size, preallocation, false)
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

/// Drop clean pages of the file from the page cache. A hint: nothing depends on it.
pub(crate) fn forget_cached(fd: BorrowedFd<'_>) {
    if let Err(error) = rustix::fs::fadvise(fd, 0, None, rustix::fs::Advice::DontNeed) {
        tracing::debug!(%error, "the page cache keeps a file's pages");
    }
}
