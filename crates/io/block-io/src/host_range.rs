//! Ranges of roots that are ranges of buffered host files, and work on them by a thread that may sleep: one system call behind the
//! other, without a request for each.
//!
//! The work counts as a request of each root while it lasts: drains wait for it. Ranges that do not map down to such files at once, and
//! those whose node must hear of each write, are "unsupported", and the caller makes requests.

use crate::context::Path;
use crate::driver::{Access, Mapping};
use crate::gate::{GateState, Pin, Refused, Way};
use crate::pipeline::{self, Leaf, Route, resolve};
use crate::request::RequestKind;
use crate::root::{Root, RootBody, refused};
use block_common::{GuestRange, IoError, IoResult, RequestFlags};
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A range of a root that is one of a buffered host file, held while it is used.
pub(crate) struct Held {
    pub(crate) path: Path,
    // After the path: a drain looks from the top down.
    pub(crate) root: Pin<RootBody>,
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) pool: crate::pool::ThreadPool,
    /// Where the range begins in the file.
    pub(crate) offset: u64,
}

impl Held {
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
        let Route { leaf: Leaf::File, offset, recode: None } = resolve(access, &mut path, range, None) else {
            return Err(IoError::UNSUPPORTED);
        };
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

/// Enter all of `roots`, without waiting for one while others are held: a drain of those may have to end first (rule drain-3).
pub(crate) async fn enter(roots: &[&Root]) -> IoResult<Vec<Pin<RootBody>>> {
    'again: loop {
        let mut entered = Vec::with_capacity(roots.len());
        for root in roots {
            match root.gate().enter(GateState::QUIESCED.union(GateState::CLOSED)) {
                Ok(pin) => entered.push(pin),
                Err(Refused::State(state)) if !state.contains(GateState::CLOSED) => {
                    drop(entered);
                    drop(root.enter().await?);
                    continue 'again;
                }
                Err(why) => return Err(refused(why)),
            }
        }
        return Ok(entered);
    }
}

/// A range of a root, in a host file: what [`on_host_files`] gives to work with. Offsets are bytes from the start of the range.
pub struct HostRange {
    fd: Arc<OwnedFd>,
    offset: u64,
    len: u64,
    access: Access,
    requests: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

impl HostRange {
    /// Fill `buf` from `at`. What the file does not have is zeroes.
    ///
    /// # Errors
    /// [`IoError::OUT_OF_BOUNDS`], or what the host answered.
    #[allow(clippy::disallowed_methods, reason = "runs in the pool, whose threads may sleep")]
    pub fn read_at(&self, at: u64, buf: &mut [u8]) -> IoResult<()> {
        let mut offset = self.place(at, buf.len(), false)?;
        let mut rest = &mut buf[..];
        while !rest.is_empty() {
            match rustix::io::pread(&self.fd, &mut *rest, offset) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(count) => {
                    offset += count as u64;
                    rest = &mut rest[count..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return self.over(buf.len(), Err(IoError::host(errno.raw_os_error()))),
            }
        }
        self.over(buf.len(), Ok(()))
    }

    /// Store `buf` at `at`.
    ///
    /// # Errors
    /// As [`HostRange::read_at`]; [`IoError::NOT_PERMITTED`] for a range that was not asked for to be written.
    #[allow(clippy::disallowed_methods, reason = "runs in the pool, whose threads may sleep")]
    pub fn write_at(&self, at: u64, buf: &[u8]) -> IoResult<()> {
        let mut offset = self.place(at, buf.len(), true)?;
        let mut rest = buf;
        while !rest.is_empty() {
            match rustix::io::pwrite(&self.fd, rest, offset) {
                Ok(0) => return self.over(buf.len(), Err(IoError::host(libc::ENOSPC))),
                Ok(count) => {
                    offset += count as u64;
                    rest = &rest[count..];
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return self.over(buf.len(), Err(IoError::host(errno.raw_os_error()))),
            }
        }
        self.over(buf.len(), Ok(()))
    }

    /// Where `len` bytes at `at` are in the file.
    fn place(&self, at: u64, len: usize, write: bool) -> IoResult<u64> {
        if write && self.access != Access::Write {
            return Err(IoError::NOT_PERMITTED);
        }
        let is_inside = at.checked_add(len as u64).is_some_and(|end| end <= self.len);
        if is_inside { Ok(self.offset + at) } else { Err(IoError::OUT_OF_BOUNDS) }
    }

    fn over(&self, len: usize, result: IoResult<()>) -> IoResult<()> {
        let counter = if result.is_ok() { &self.requests } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(if result.is_ok() { len as u64 } else { 0 }, Ordering::Relaxed);
        result
    }

    fn account(&self, held: &Held) {
        let kind = if self.access.is_write() { RequestKind::Write } else { RequestKind::Read };
        let mut bytes = self.bytes.load(Ordering::Relaxed);
        for _ in 0..self.requests.load(Ordering::Relaxed) {
            held.root.account(kind, std::mem::take(&mut bytes), Ok(()));
        }
        for _ in 0..self.failed.load(Ordering::Relaxed) {
            held.root.account(kind, 0, Err(IoError::host(libc::EIO)));
        }
    }
}

impl fmt::Debug for HostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostRange({}+{}, {:?})", self.offset, self.len, self.access)
    }
}

/// Let `work` loose on `ranges`, each of a root, an offset and a length in bytes, on a thread that may sleep. It runs to its end even if the
/// returned future is dropped.
///
/// # Errors
/// [`IoError::UNSUPPORTED`] where one of them is not one of a buffered host file now: make requests then. [`IoError::NOT_PERMITTED`],
/// [`IoError::CLOSED`] and the like, as for a request.
pub async fn on_host_files<T, W>(ranges: Vec<(Root, u64, u64, Access)>, work: W) -> IoResult<T>
where
    T: Send + 'static,
    W: FnOnce(&[HostRange]) -> T + Send + 'static,
{
    let Some(home) = ranges.first().map(|(root, ..)| root.home()) else { return Err(IoError::INVALID) };
    home.run(run(ranges, work)).await.unwrap_or(Err(IoError::CANCELLED))
}

async fn run<T, W>(ranges: Vec<(Root, u64, u64, Access)>, work: W) -> IoResult<T>
where
    T: Send + 'static,
    W: FnOnce(&[HostRange]) -> T + Send + 'static,
{
    let roots: Vec<&Root> = ranges.iter().map(|(root, ..)| root).collect();
    let mut held = Vec::with_capacity(ranges.len());
    let mut there = Vec::with_capacity(ranges.len());
    for (pin, (_, offset, len, access)) in enter(&roots).await?.into_iter().zip(&ranges) {
        let range = GuestRange::new(*offset, *len).map_err(|_| IoError::OUT_OF_BOUNDS)?;
        let one = Held::new(pin, *access, range)?;
        there.push(HostRange {
            fd: one.fd.clone(),
            offset: one.offset,
            len: range.len(),
            access: *access,
            requests: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        });
        held.push(one);
    }
    let pool = held.first().ok_or(IoError::INVALID)?.pool.clone();
    let done = pool.run(move || (work(&there), there)).await;
    let written = held.iter().zip(&ranges).filter(|(_, (.., access))| access.is_write());
    written.for_each(|(one, _)| pipeline::wrote(&one.path));
    let (output, there) = done.ok_or(IoError::BUG)?;
    there.iter().zip(&held).for_each(|(range, held)| range.account(held));
    // All paths before all roots: a drain looks from the top down.
    let (paths, roots): (Vec<_>, Vec<_>) = held.into_iter().map(|one| (one.path, one.root)).unzip();
    drop(paths);
    drop(roots);
    Ok(output)
}
