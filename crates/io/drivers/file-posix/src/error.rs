//! Why a file could not be opened, created or resized: the file's name, the host's errno, the field's words.

use block_common::{Errno, IoError, Preallocation};
use std::fmt;
use std::path::{Path, PathBuf};

/// What a path leads to that is no regular file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
    /// A pipe, a socket, or what else there may be.
    Other,
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BlockDevice => " (it is a block device: use the 'host_device' driver)",
            Self::CharDevice => " (it is a character device: use the 'host_device' driver)",
            Self::Other => "",
        })
    }
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
    #[error("'file' driver requires '{}' to be a regular file{kind}", path.display())]
    NotRegular {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: FileKind,
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
            Self::Resize { errno, .. } | Self::Preallocate { errno, .. } => *errno,
            Self::DescriptorMode { .. } => Errno::EACCES,
            Self::PreallocationMode(_) | Self::PreallocationShrinks => Errno::ENOTSUP,
            Self::Replaced { .. } => Errno::ENOENT,
            Self::Bug { .. } => Errno::EIO,
            Self::NotRegular { .. } | Self::DirectUnsupported { .. } | Self::DirectAlignment { .. } => Errno::EINVAL,
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
