//! Locks against other processes: which bytes of a file say what its users need and share (rule perm-5).
//!
//! The scheme is QEMU's, so that it and Cairn refuse each other's images. Each permission has two bytes of the file. A read lock on the
//! first says that somebody has the permission, one on the second that somebody does not share it. Read locks never get in each other's way:
//! the refusal is a look at the opposite byte, after one's own lock is there for others to see. The locks belong to a descriptor of their
//! own, so neither an exchange of the file's descriptor nor a close elsewhere in the process loses them. What other programs do without
//! asking for locks is not prevented.

use crate::error::FileError;
use block_common::{Errno, Perm, PermPair};
use nix::fcntl::{FcntlArg, fcntl};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// The first of the bytes that say which permissions somebody has.
const TAKEN: u8 = 100;
/// The first of the bytes that say which permissions somebody does not share.
const KEPT: u8 = 200;

/// The byte that stands for each permission, counted from the first. Written down, because it is a protocol.
const BYTES: [(Perm, u8); 4] =
    [(Perm::CONSISTENT_READ, 0), (Perm::WRITE, 1), (Perm::WRITE_UNCHANGED, 2), (Perm::RESIZE, 3)];

/// What a descriptor's locks say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claims {
    taken: Perm,
    kept: Perm,
}

impl Claims {
    fn of(perm: PermPair) -> Self {
        Self { taken: perm.perm, kept: !perm.shared }
    }

    fn without(self, other: Self) -> Self {
        Self { taken: self.taken & !other.taken, kept: self.kept & !other.kept }
    }

    /// The bytes to be locked.
    fn bytes(self) -> impl Iterator<Item = u8> {
        let bytes = |set: Perm, first| {
            BYTES.into_iter().filter(move |(perm, _)| set.contains(*perm)).map(move |(_, at)| first + at)
        };
        bytes(self.taken, TAKEN).chain(bytes(self.kept, KEPT))
    }

    /// The bytes that nobody else may have locked, with the permission that it is about, and whether that is to be shared rather than to be had.
    fn opposite(self) -> impl Iterator<Item = (u8, Perm, bool)> {
        let bytes = |set: Perm, first, shared| {
            let wanted = BYTES.into_iter().filter(move |(perm, _)| set.contains(*perm));
            wanted.map(move |(perm, at)| (first + at, perm, shared))
        };
        bytes(self.taken, KEPT, false).chain(bytes(self.kept, TAKEN, true))
    }
}

/// The locks on one file.
#[derive(Debug)]
pub(crate) struct Locks {
    fd: OwnedFd,
    path: PathBuf,
    /// What holds.
    held: Claims,
    /// What was asked for and is neither committed nor aborted.
    coming: Option<Claims>,
}

impl Locks {
    /// No locks yet, to be held by `fd`, a description of the file that nothing else locks.
    pub(crate) fn new(fd: OwnedFd, path: &Path) -> Self {
        Self { fd, path: path.into(), held: Claims::default(), coming: None }
    }

    /// Lock what `perm` takes beside what is held already. On an error, what was held before is.
    pub(crate) fn prepare(&mut self, perm: PermPair) -> Result<(), FileError> {
        let claims = Claims::of(perm);
        self.coming = Some(claims);
        let locked = self.lock(claims.without(self.held)).and_then(|()| self.check(claims));
        if locked.is_err() {
            self.abort();
        }
        locked
    }

    /// What was prepared holds; whatever else is locked is let go.
    pub(crate) fn commit(&mut self) {
        let Some(coming) = self.coming.take() else { return };
        self.unlock(self.held.without(coming));
        self.held = coming;
    }

    /// What was prepared is let go, but for what was held before.
    pub(crate) fn abort(&mut self) {
        let Some(coming) = self.coming.take() else { return };
        self.unlock(coming.without(self.held));
    }

    fn lock(&self, claims: Claims) -> Result<(), FileError> {
        for byte in claims.bytes() {
            let failed = |errno| FileError::Lock { path: self.path.clone(), byte, errno };
            fcntl(&self.fd, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte))).map_err(errno).map_err(failed)?;
        }
        Ok(())
    }

    /// Whether nobody else stands against `claims`.
    fn check(&self, claims: Claims) -> Result<(), FileError> {
        for (byte, perm, shared) in claims.opposite() {
            // A write lock would meet everybody's read locks, but for those of this description.
            let mut found = range(libc::F_WRLCK, byte);
            let failed = |errno| FileError::Lock { path: self.path.clone(), byte, errno };
            fcntl(&self.fd, FcntlArg::F_OFD_GETLK(&mut found)).map_err(errno).map_err(failed)?;
            if i32::from(found.l_type) != libc::F_UNLCK {
                return Err(FileError::Locked { path: self.path.clone(), perm, shared });
            }
        }
        Ok(())
    }

    fn unlock(&self, claims: Claims) {
        for byte in claims.bytes() {
            // Nothing to be done about it: the lock goes with the descriptor at last.
            if let Err(error) = fcntl(&self.fd, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, byte))) {
                tracing::warn!(path = %self.path.display(), byte, %error, "a lock on a file was not released");
            }
        }
    }
}

/// Whether the host has locks that belong to descriptions.
pub(crate) fn supported(fd: impl AsFd) -> bool {
    let mut whole = range(libc::F_WRLCK, 0);
    whole.l_len = 0;
    fcntl(fd.as_fd(), FcntlArg::F_OFD_GETLK(&mut whole)).is_ok()
}

fn errno(errno: nix::errno::Errno) -> Errno {
    Errno::from_raw(errno as i32)
}

/// A lock on one byte.
fn range(kind: i32, byte: u8) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte.into(),
        l_len: 1,
        l_pid: 0,
    }
}
