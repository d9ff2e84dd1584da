//! Many writes as one: where all of them go to one buffered file, one thread carries them out, one system call behind the other, which
//! costs a fraction of what as many requests do. Everywhere else they are ordinary requests, all started at once.

use crate::driver::Access;
use crate::file::{FileOpKind, run_blocking, write_turn};
use crate::host_range::Held;
use crate::pipeline;
use crate::request::{Request, RequestKind};
use crate::root::Root;
use block_common::{GuestRange, IoBuf, IoError, IoResult, RequestFlags};
use std::os::fd::AsRawFd;

/// A write that failed: its place among the writes, and why.
pub(crate) type Failed = (usize, IoError);

/// Carry out `writes`. To be awaited on an I/O thread.
pub(crate) async fn write_many(root: &Root, writes: Vec<(u64, IoBuf)>, flags: RequestFlags) -> Result<(), Failed> {
    if writes.len() > 1 && flags.is_empty() {
        let pin = root.enter().await.map_err(|error| (0, error))?;
        if let Some(end) =
            covering(&writes).and_then(|range| Held::new(pin, Access::Write, range).ok().zip(Some(range)))
        {
            return in_the_host(end, writes).await;
        }
    }
    let start = |(offset, buf)| root.channel(Request::write(offset, buf, flags));
    let started: Vec<_> = writes.into_iter().map(start).collect();
    let mut ended = Ok(());
    for (index, one) in started.into_iter().enumerate() {
        let result = one.await.map_or(Err(IoError::CANCELLED), |done| done.result);
        ended = ended.and(result.map_err(|error| (index, error)));
    }
    ended
}

/// What lies between the first byte that is written and the last.
fn covering(writes: &[(u64, IoBuf)]) -> Option<GuestRange> {
    let start = writes.iter().map(|(offset, _)| *offset).min()?;
    let ends: Option<Vec<u64>> = writes.iter().map(|(offset, buf)| offset.checked_add(buf.len() as u64)).collect();
    GuestRange::new(start, ends?.into_iter().max()? - start).ok()
}

async fn in_the_host((end, range): (Held, GuestRange), writes: Vec<(u64, IoBuf)>) -> Result<(), Failed> {
    let (fd, at) = (end.fd.clone(), end.offset);
    let lens: Vec<u64> = writes.iter().map(|(_, buf)| buf.len() as u64).collect();
    let work = move || {
        for (index, (offset, buf)) in writes.iter().enumerate() {
            write(fd.as_raw_fd(), at + (offset - range.offset().0), buf).map_err(|error| (index, error))?;
        }
        Ok(())
    };
    let written = end.pool.run(work).await.unwrap_or(Err((0, IoError::BUG)));
    pipeline::wrote(&end.path);
    for (index, len) in lens.into_iter().enumerate() {
        let result = match written {
            Err((failed, error)) if index >= failed => Err(error),
            _ => Ok(()),
        };
        end.root.account(RequestKind::Write, len, result);
        if result.is_err() {
            // Those behind it were not tried.
            break;
        }
    }
    drop(end);
    written
}

/// All of `buf` to `offset` of the file.
fn write(fd: i32, offset: u64, buf: &IoBuf) -> IoResult<()> {
    let mut done = 0;
    while done < buf.len() {
        let kind = FileOpKind::Write { fua: false, drop_behind: false };
        let rest = (buf.len() - done) as u64;
        let _turn = write_turn(kind, fd, rest);
        match run_blocking(kind, fd, offset + done as u64, rest, Some(buf), done) {
            0 => return Err(IoError::host(libc::ENOSPC)),
            count @ 1.. => done += count as usize,
            error if -error == libc::EINTR => {}
            error => return Err(IoError::host(-error)),
        }
    }
    Ok(())
}
