//! The error of the I/O path: small, `Copy`, without context.
//!
//! It deliberately holds no text and no chain: a coalesced flush gives the same error to everyone who waited, and
//! a request that fails at depth 32 must not allocate. Context (which node, which file) is added at the root, on
//! the control path, by that path's own error types.

use std::fmt;

/// What a request on the I/O path returns.
pub type IoResult<T> = Result<T, IoError>;

/// An error number of the host, as in `errno(3)`; always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// Operation not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file or directory.
    pub const ENOENT: Self = Self(2);
    /// Interrupted call.
    pub const EINTR: Self = Self(4);
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Bad file descriptor.
    pub const EBADF: Self = Self(9);
    /// Try again.
    pub const EAGAIN: Self = Self(11);
    /// Out of memory.
    pub const ENOMEM: Self = Self(12);
    /// Permission denied.
    pub const EACCES: Self = Self(13);
    /// Device or resource busy.
    pub const EBUSY: Self = Self(16);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// File too large.
    pub const EFBIG: Self = Self(27);
    /// No space left on device.
    pub const ENOSPC: Self = Self(28);
    /// Illegal seek.
    pub const ESPIPE: Self = Self(29);
    /// Read-only file system.
    pub const EROFS: Self = Self(30);
    /// Function not implemented.
    pub const ENOSYS: Self = Self(38);
    /// Protocol not available.
    pub const ENOTSUP: Self = Self(95);
    /// Cannot send after the endpoint was shut down.
    pub const ESHUTDOWN: Self = Self(108);
    /// Timed out.
    pub const ETIMEDOUT: Self = Self(110);
    /// No medium found.
    pub const ENOMEDIUM: Self = Self(123);
    /// Operation cancelled.
    pub const ECANCELED: Self = Self(125);

    /// The error number `raw`, or EIO when `raw` is not a positive number.
    pub const fn from_raw(raw: i32) -> Self {
        if raw > 0 { Self(raw) } else { Self::EIO }
    }

    /// The number, positive.
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({})", self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.0).to_string();
        // std appends " (os error N)", which the field's tools do not print.
        f.write_str(text.split(" (os error").next().unwrap_or(&text))
    }
}

/// Whose fault an [`IoError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IoErrorKind {
    /// The host refused: the error number is the kernel's.
    Host,
    /// The image's own bytes are wrong.
    BadImage,
    /// The caller asked for something that does not exist: out of bounds, misaligned, not writable.
    Caller,
    /// Nothing is there to ask: no medium, no child, a node that was closed.
    Gone,
    /// The request was given up before it had an effect.
    Cancelled,
    /// This driver or this build cannot do it.
    Unsupported,
    /// A bug of this program: an invariant did not hold.
    Bug,
}

/// An error on the I/O path: an error number and whose fault it is. Eight bytes, `Copy`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{errno}")]
pub struct IoError {
    errno: Errno,
    kind: IoErrorKind,
}

impl IoError {
    /// The range leaves the node, or exceeds 2^63 bytes. EINVAL to the guest as in the field, EIO for a range past the end.
    pub const OUT_OF_BOUNDS: Self = Self::new(Errno::EIO, IoErrorKind::Caller);
    /// Offset or length is not a multiple of the node's request alignment.
    pub const MISALIGNED: Self = Self::new(Errno::EINVAL, IoErrorKind::Caller);
    /// An argument makes no sense.
    pub const INVALID: Self = Self::new(Errno::EINVAL, IoErrorKind::Caller);
    /// The node was opened for reading only.
    pub const READ_ONLY: Self = Self::new(Errno::EPERM, IoErrorKind::Caller);
    /// The edge that the request came through lacks the permission.
    pub const NOT_PERMITTED: Self = Self::new(Errno::EPERM, IoErrorKind::Caller);
    /// There is no medium, or no child, behind this entry.
    pub const NO_MEDIUM: Self = Self::new(Errno::ENOMEDIUM, IoErrorKind::Gone);
    /// The node or root has been closed.
    pub const CLOSED: Self = Self::new(Errno::ESHUTDOWN, IoErrorKind::Gone);
    /// The request was dropped before it had an effect.
    pub const CANCELLED: Self = Self::new(Errno::ECANCELED, IoErrorKind::Cancelled);
    /// The driver has no such operation.
    pub const UNSUPPORTED: Self = Self::new(Errno::ENOTSUP, IoErrorKind::Unsupported);
    /// Too many requests are in flight.
    pub const BUSY: Self = Self::new(Errno::EBUSY, IoErrorKind::Caller);
    /// An invariant of this program did not hold.
    pub const BUG: Self = Self::new(Errno::EIO, IoErrorKind::Bug);

    /// An error from its two parts.
    pub const fn new(errno: Errno, kind: IoErrorKind) -> Self {
        Self { errno, kind }
    }

    /// What the kernel answered: `errno` is positive, as in `errno(3)`.
    pub const fn host(errno: i32) -> Self {
        Self::new(Errno::from_raw(errno), IoErrorKind::Host)
    }

    /// The error number.
    pub const fn errno(self) -> Errno {
        self.errno
    }

    /// Whose fault it is.
    pub const fn kind(self) -> IoErrorKind {
        self.kind
    }
}

impl fmt::Debug for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoError({:?}, {}: {})", self.kind, self.errno.0, self.errno)
    }
}

impl From<std::io::Error> for IoError {
    fn from(error: std::io::Error) -> Self {
        Self::host(error.raw_os_error().unwrap_or(Errno::EIO.raw()))
    }
}

impl From<IoError> for std::io::Error {
    fn from(error: IoError) -> Self {
        Self::from_raw_os_error(error.errno.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const _: () = assert!(size_of::<IoError>() <= 8);

    #[test]
    fn displays_the_hosts_words_alone() {
        assert_eq!(IoError::host(28).to_string(), "No space left on device");
        assert_eq!(IoError::host(-5).errno(), Errno::EIO);
    }

    #[test]
    fn survives_the_way_through_std() {
        let error = IoError::from(std::io::Error::from(IoError::host(28)));
        assert_eq!(error, IoError::host(28));
    }
}
