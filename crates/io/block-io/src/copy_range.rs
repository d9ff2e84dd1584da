//! Copying between two host files without the bytes passing through this process: `copy_file_range(2)`, which some file systems carry
//! out by sharing the blocks.
//!
//! Only for ranges that both ends map down to buffered files at once. Everything else is "unsupported", and the caller copies by
//! reading and writing.

use crate::driver::Access;
use crate::host_range::{Held, enter};
use crate::pipeline;
use crate::request::RequestKind;
use crate::root::Root;
use block_common::{GuestRange, IoError, IoErrorKind, IoResult};
use std::os::fd::OwnedFd;

/// Carry out a copy. To be awaited on an I/O thread.
pub(crate) async fn copy_range(from: (&Root, GuestRange), to: (&Root, GuestRange)) -> IoResult<()> {
    let mut entered = enter(&[from.0, to.0]).await?.into_iter();
    let (Some(source), Some(target)) = (entered.next(), entered.next()) else { return Err(IoError::BUG) };
    let source = Held::new(source, Access::Read, from.1)?;
    let target = Held::new(target, Access::Write, to.1)?;
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
