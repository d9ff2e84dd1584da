//! Copying between two host files without the bytes passing through this process: `copy_file_range(2)`, which some file systems carry
//! out by sharing the blocks.
//!
//! Only for ranges that both ends map down to buffered files at once. Everything else is "unsupported", and the caller copies by
//! reading and writing.

use crate::context::Path;
use crate::driver::{Access, Mapping};
use crate::gate::{GateState, Pin, Refused, Way};
use crate::pipeline::{self, Leaf, resolve};
use crate::request::RequestKind;
use crate::root::{Root, RootBody, refused};
use block_common::{GuestRange, IoError, IoErrorKind, IoResult, RequestFlags};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One end of a copy: a range of a root that is one of a buffered host file, held while it is used.
pub(crate) struct End {
    pub(crate) path: Path,
    // After the path: a drain looks from the top down.
    pub(crate) root: Pin<RootBody>,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) pool: crate::pool::ThreadPool,
    /// Where the range begins in the file.
    pub(crate) offset: u64,
}

/// Carry out a copy. To be awaited on an I/O thread.
pub(crate) async fn copy_range(from: (&Root, GuestRange), to: (&Root, GuestRange)) -> IoResult<()> {
    let (source, target) = enter(from.0, to.0).await?;
    let source = End::new(source, Access::Read, from.1)?;
    let target = End::new(target, Access::Write, to.1)?;
    let len = from.1.len();
    let (in_fd, out_fd, pool) = (source.fd.clone(), target.fd.clone(), source.pool.clone());
    let (in_at, out_at) = (source.offset, target.offset);
    let copied = pool.run(move || copy(&in_fd, in_at, &out_fd, out_at, len)).await.unwrap_or(Err(IoError::BUG));
    pipeline::wrote(&target.path);
    // What was not even tried is nobody's failure.
    if copied != Err(IoError::UNSUPPORTED) {
        source.root.account(RequestKind::Read, len, copied);
        target.root.account(RequestKind::Write, len, copied);
    }
    // The roots last: a drain looks from the top down.
    drop((source.path, target.path));
    copied
}

/// Enter both roots, without waiting for one while the other is held: a drain of that one may have to end first (rule drain-3).
async fn enter(from: &Root, to: &Root) -> IoResult<(Pin<RootBody>, Pin<RootBody>)> {
    loop {
        let target = to.gate().enter_when_open().await.map_err(refused)?;
        match from.gate().enter(GateState::QUIESCED.union(GateState::CLOSED)) {
            Ok(source) => return Ok((source, target)),
            Err(Refused::State(state)) if !state.contains(GateState::CLOSED) => drop(target),
            Err(why) => return Err(refused(why)),
        }
        drop(from.gate().enter_when_open().await.map_err(refused)?);
    }
}

impl End {
    /// What the range leads to.
    ///
    /// # Errors
    /// [`IoError::UNSUPPORTED`] where it is no such file, or not to be had without waiting.
    pub(crate) fn new(root: Pin<RootBody>, access: Access, range: GuestRange) -> IoResult<Self> {
        if access.is_write() {
            root.edge().writable(RequestFlags::empty())?;
        }
        let mut path = Path::new();
        path.push(root.edge().follow(&root, Way::Fast)?);
        let (Leaf::File, offset) = resolve(access, &mut path, range) else { return Err(IoError::UNSUPPORTED) };
        let there = GuestRange::new(offset.0, range.len())?;
        let (fd, pool) = {
            let node = path.last().ok_or(IoError::BUG)?;
            let Mapping::File(file) = node.engine()?.map_cached(access, there) else {
                return Err(IoError::UNSUPPORTED);
            };
            file.buffered().ok_or(IoError::UNSUPPORTED)?
        };
        Ok(Self { path, root, fd, pool, offset: offset.0 })
    }
}

#[allow(clippy::disallowed_methods, reason = "runs in the pool, whose threads may sleep")]
fn copy(from: &OwnedFd, from_at: u64, to: &OwnedFd, to_at: u64, len: u64) -> IoResult<()> {
    let (mut from_at, mut to_at, mut left) = (from_at, to_at, len);
    while left > 0 {
        // The kernel moves at most 2 GiB at once.
        let step = left.min(1 << 30) as usize;
        match rustix::fs::copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), step) {
            // The source ends before; reading gives zeroes there, copying nothing.
            Ok(0) => return Err(IoError::UNSUPPORTED),
            Ok(count) => left -= count as u64,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(meaning(IoError::host(errno.raw_os_error()))),
        }
    }
    Ok(())
}

/// An error that says something of the two files, and nothing of the data.
fn meaning(error: IoError) -> IoError {
    let never = [libc::EXDEV, libc::EINVAL, libc::EOPNOTSUPP, libc::ENOSYS, libc::EPERM, libc::ETXTBSY, libc::EBADF];
    let is_host = error.kind() == IoErrorKind::Host;
    if is_host && never.contains(&error.errno().raw()) { IoError::UNSUPPORTED } else { error }
}
