//! Why a file could not be opened, created or resized: the file's name, the host's errno, the field's words.

use block_common::{Errno, IoError, Perm, Preallocation};
use std::path::{Path, PathBuf};

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A regular file.
    Regular,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A pipe, a socket, or what else there may be.
    Other,
}

/// Why a file could not be opened, created or resized.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The host did not open it.
    #[error("Could not open '{}': {errno}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        errno: Errno,
    },
    /// It is no regular file.
    #[error("'file' driver requires '{}' to be a regular file", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: FileKind,
    },
    /// The device refuses writes.
    #[error("The device is not writable: {}", Errno::EACCES)]
    ReadOnlyDevice {
        /// The file.
        path: PathBuf,
    },
    /// It is no device.
    #[error("'host_device' driver requires '{}' to be either a character or block device", path.display())]
    NotDevice {
        /// The file.
        path: PathBuf,
    },
    /// The name stands for a set of descriptors that somebody has handed over.
    #[error("Could not open '{}': sets of file descriptors are not supported", path.display())]
    DescriptorSet {
        /// The name.
        path: PathBuf,
    },
    /// A descriptor that was handed in does not allow what it is to be used for.
    #[error("Could not open '{}': its file descriptor is not open for {wanted}", path.display())]
    DescriptorMode {
        /// The file.
        path: PathBuf,
        /// What it is to be used for.
        wanted: &'static str,
    },
    /// The file system has no O_DIRECT.
    #[error("Could not open '{}': file system may not support O_DIRECT", path.display())]
    DirectUnsupported {
        /// The file.
        path: PathBuf,
    },
    /// No request, however aligned, gets through with O_DIRECT.
    #[error("Could not find working O_DIRECT alignment for '{}' (try cache.direct=off)", path.display())]
    DirectAlignment {
        /// The file.
        path: PathBuf,
    },
    /// The path leads to another file than the one that is open.
    #[error("Could not reopen '{}': the path leads to another file by now", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else has a permission that is not to be shared, or does not share one that is to be had.
    #[error("Failed to get {}\"{perm}\" lock", if *shared { "shared " } else { "" })]
    Locked {
        /// The file.
        path: PathBuf,
        /// The permission.
        perm: Perm,
        /// Whether somebody else has the permission, rather than not sharing it.
        shared: bool,
    },
    /// The host did not lock it, or somebody has locked it in a way that is not ours.
    #[error("Failed to lock byte {byte}")]
    Lock {
        /// The file.
        path: PathBuf,
        /// The byte's offset.
        byte: u8,
        /// The host's reason.
        errno: Errno,
    },
    /// The host has no locks that belong to descriptors.
    #[error("Could not open '{}': locking=on needs open file description locks, which this host does not have", path.display())]
    NoLocks {
        /// The file.
        path: PathBuf,
    },
    /// The host did not create it.
    #[error("Could not create '{}': {errno}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        errno: Errno,
    },
    /// Its length did not change.
    #[error("Could not resize file '{}': {errno}", path.display())]
    Resize {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        errno: Errno,
    },
    /// There was no space for all of it.
    #[error("Could not {doing} of '{}': {errno}", path.display())]
    Preallocate {
        /// The file.
        path: PathBuf,
        /// What failed.
        doing: &'static str,
        /// The host's reason.
        errno: Errno,
    },
    /// A file has no metadata to preallocate.
    #[error("Unsupported preallocation mode: {0}")]
    PreallocationMode(Preallocation),
    /// A device has the length that it has.
    #[error("Cannot grow device files")]
    DeviceLength,
    /// There is nothing to preallocate in a file that gets shorter.
    #[error("Preallocation can't be used for shrinking files")]
    PreallocationShrinks,
    /// The code that did it panicked.
    #[error("Could not open '{}': internal error", path.display())]
    Bug {
        /// The file.
        path: PathBuf,
    },
}

impl FileError {
    pub(crate) fn open(path: &Path, errno: impl Into<Errno>) -> Self {
        Self::Open { path: path.to_owned(), errno: errno.into() }
    }

    /// The host's errno, where the host refused; else what comes nearest.
    pub fn errno(&self) -> Errno {
        match self {
            Self::Open { errno, .. } | Self::Create { errno, .. } => *errno,
            Self::Resize { errno, .. } | Self::Preallocate { errno, .. } | Self::Lock { errno, .. } => *errno,
            Self::Locked { .. } => Errno::EAGAIN,
            Self::NoLocks { .. } => Errno::ENOTSUP,
            Self::DescriptorMode { .. } | Self::ReadOnlyDevice { .. } => Errno::EACCES,
            Self::PreallocationMode(_) | Self::PreallocationShrinks => Errno::ENOTSUP,
            Self::Replaced { .. } => Errno::ENOENT,
            Self::Bug { .. } => Errno::EIO,
            Self::DescriptorSet { .. } => Errno::ENOSYS,
            Self::NotDevice { .. }
            | Self::DeviceLength
            | Self::NotRegular { .. }
            | Self::DirectUnsupported { .. }
            | Self::DirectAlignment { .. } => Errno::EINVAL,
        }
    }

    /// What a program says in a line of its own below the error, if there is anything to add.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Locked { path, .. } => Some(format!("Is another process using the image [{}]?", path.display())),
            _ => None,
        }
    }

    /// The same on the I/O path, where there is no room for words.
    pub(crate) fn io(&self) -> IoError {
        match self {
            Self::PreallocationMode(_) | Self::PreallocationShrinks => IoError::UNSUPPORTED,
            other => IoError::host(other.errno().raw()),
        }
    }
}
