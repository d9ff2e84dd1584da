//! A toy copy-on-write format: clusters that are allocated, freed and moved while requests run, over a file and a
//! backing child.
//!
//! It has what qcow2 needs of the core and nothing else: a table in memory that the fast path reads without a lock, a
//! lock per cluster for what changes it, leases, and an order of writes that survives a power cut. No snapshots, no
//! compression, no reference counts, one table.
//!
//! # How it holds
//! - *Leases.* An entry is cleared or repointed first, then its old cluster is retired with the epoch, and handed out
//!   again only when that epoch has passed **and** the table without it is on stable storage. Nothing waits for an
//!   epoch: who needs a cluster takes another one.
//! - *Moving.* A move first marks the entry, which sends new writes to the slow path and under the cluster's lock; once
//!   the mark's epoch has passed, no write from before is on its way, and the data may be copied. Until then the answer
//!   is "busy, ask again".
//! - *Flush.* The changed parts of the table are copied, then the data is flushed, then they are written, then flushed.
//!   An entry that is not stored yet keeps writes with FUA off the fast path, where they would bypass the table.

mod clusters;
mod disk;
mod locks;

pub use disk::ToyFormat;

use async_trait::async_trait;
use block_common::{
    AlignedBuf, BlockStatus, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Preallocation,
    RequestFlags, StatusExtent,
};
use block_io::{Access, Driver, Edge, Mapping, Req};
use clusters::{Clusters, Entry};
use disk::Geometry;
use locks::ClusterLocks;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The number of the [`Driver::ioctl`] that moves a cluster; the argument is its index, eight bytes little-endian.
/// [`IoError::BUSY`] says that requests from before are still under way to it: ask again.
pub const TOY_RELOCATE: u64 = 0x7071;

struct Shared {
    file: Edge,
    backing: Option<Edge>,
    geometry: Geometry,
    limits: Limits,
    length: AtomicU64,
    clusters: Clusters,
    locks: ClusterLocks,
    /// One flush at a time.
    flushing: tokio::sync::Mutex<()>,
    /// One change of length at a time.
    resizing: tokio::sync::Mutex<()>,
    closed: AtomicBool,
}

/// The engine.
pub struct ToyCow(Arc<Shared>);

/// The engine's control half.
#[derive(Clone)]
pub struct ToyCowControl(Arc<Shared>);

/// A part of a request that lies in one cluster.
#[derive(Clone, Copy, Debug)]
struct Piece {
    /// The cluster's index.
    index: u64,
    /// First byte inside the cluster.
    within: u64,
    /// Length in bytes.
    len: u64,
    /// Where it begins in the request, in bytes.
    at: u64,
}

impl ToyCow {
    /// Write an empty image into `file`, whatever was in there. `req` is a token on the node that owns the edge.
    ///
    /// # Errors
    /// [`IoError::INVALID`] for a geometry that cannot be, else the file's error.
    pub async fn format(req: &Req, file: &Edge, format: ToyFormat) -> IoResult<()> {
        disk::format(req, file, format).await
    }

    /// Open the image in `file`. What it has not allocated is read from `backing`, or is zero.
    ///
    /// # Errors
    /// An error of kind [`block_common::IoErrorKind::BadImage`] for an image that cannot be, else the file's error.
    pub async fn open(req: &Req, file: Edge, backing: Option<Edge>) -> IoResult<(Self, ToyCowControl)> {
        let header = disk::read_header(req, &file).await?;
        let table = disk::read_table(req, &file, &header).await?;
        let file_limits = file.limits(req)?;
        let backing_alignment = match &backing {
            Some(backing) if backing.is_attached() => backing.limits(req)?.request_alignment,
            _ => 1,
        };
        let geometry = header.geometry;
        let alignment = file_limits.request_alignment.max(backing_alignment);
        if u64::from(alignment) > geometry.cluster_size() {
            return Err(disk::bad("cluster size below the file's alignment"));
        }
        let limits = Limits {
            request_alignment: alignment,
            memory_alignment: file_limits.memory_alignment,
            transfer_optimal: geometry.cluster_size() as u32,
            discard_alignment: geometry.cluster_size() as u32,
            zero_alignment: geometry.cluster_size() as u32,
            ..Limits::NONE
        };
        let shared = Arc::new(Shared {
            clusters: Clusters::new(geometry, table),
            file,
            backing,
            geometry,
            limits,
            length: AtomicU64::new(header.length),
            locks: ClusterLocks::default(),
            flushing: tokio::sync::Mutex::default(),
            resizing: tokio::sync::Mutex::default(),
            closed: AtomicBool::new(false),
        });
        Ok((Self(shared.clone()), ToyCowControl(shared)))
    }
}

impl ToyCowControl {
    /// Move the cluster with this index to another place of the file. Tells whether it was allocated.
    ///
    /// # Errors
    /// [`IoError::BUSY`] while requests from before the first attempt are under way to it, else the file's error.
    pub async fn relocate(&self, req: &Req, index: u64) -> IoResult<bool> {
        self.0.relocate(req, index).await
    }

    /// Where the cluster with this index lies in the file, in bytes, if it is allocated.
    pub fn place(&self, index: u64) -> Option<u64> {
        self.0.clusters.get(index).and_then(Entry::host)
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.0.geometry.cluster_size()
    }

    /// How often a cluster was handed out that had been in use before.
    pub fn reused(&self) -> u64 {
        self.0.clusters.reused()
    }

    /// Hand clusters out again without waiting for anything that may be under way to them. A bug, on command: a test of
    /// leases that passes with this on tests nothing.
    pub fn ignore_epochs(&self, ignore: bool) {
        self.0.clusters.ignore_epochs(ignore);
    }
}

/// Where the bytes of a piece come from.
enum Source<'a> {
    File(u64),
    Zeroes,
    Backing(&'a Edge),
}

impl Shared {
    fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    fn pieces(&self, range: GuestRange) -> impl Iterator<Item = Piece> + Send + use<> {
        let size = self.geometry.cluster_size();
        let (mut at, begin, len) = (0, range.offset().0, range.len());
        std::iter::from_fn(move || {
            let within = (begin + at) % size;
            let piece = Piece { index: (begin + at) / size, within, len: (size - within).min(len - at), at };
            at += piece.len;
            (piece.len > 0).then_some(piece)
        })
    }

    /// Whether the piece is all of its cluster, or of what the image has of it.
    fn is_whole(&self, piece: Piece) -> bool {
        let size = self.geometry.cluster_size();
        piece.within == 0 && (piece.len == size || piece.index * size + piece.len >= self.length())
    }

    fn entry(&self, index: u64) -> IoResult<Entry> {
        self.clusters.get(index).ok_or(IoError::OUT_OF_BOUNDS)
    }

    fn backing(&self) -> Option<&Edge> {
        self.backing.as_ref().filter(|backing| backing.is_attached())
    }

    fn source(&self, entry: Entry) -> Source<'_> {
        match (entry.host(), self.backing()) {
            (Some(host), _) => Source::File(host),
            (None, Some(backing)) if !entry.is_zero() => Source::Backing(backing),
            (None, _) => Source::Zeroes,
        }
    }

    /// Read from the backing child, which may be shorter than the image: the rest is zero.
    async fn read_backing(&self, req: &Req, backing: &Edge, offset: u64, buf: &IoBuf) -> IoResult<()> {
        let there = backing.length(req)?.saturating_sub(offset).min(buf.len() as u64) as usize;
        buf.fill(there, buf.len() - there, 0);
        if there == 0 {
            return Ok(());
        }
        backing.read(req, HostOffset(offset), &buf.slice(0, there)).await
    }

    async fn read_piece(&self, req: &Req, piece: Piece, buf: &IoBuf) -> IoResult<()> {
        // The request's token is the lease: whatever the entry says stays readable until it is gone.
        match self.source(self.entry(piece.index)?) {
            Source::File(host) => self.file.read(req, HostOffset(host + piece.within), buf).await,
            Source::Zeroes => {
                buf.fill(0, buf.len(), 0);
                Ok(())
            }
            Source::Backing(backing) => {
                let offset = piece.index * self.geometry.cluster_size() + piece.within;
                self.read_backing(req, backing, offset, buf).await
            }
        }
    }

    async fn write_piece(&self, req: &Req, piece: Piece, buf: &IoBuf) -> IoResult<()> {
        let none = RequestFlags::empty();
        let entry = self.entry(piece.index)?;
        if let (Some(host), false) = (entry.host(), entry.is_moving()) {
            // A move that begins now waits for our token before it copies.
            return self.file.write(req, HostOffset(host + piece.within), buf, none).await;
        }
        let _lock = self.locks.lock(piece.index).await;
        let entry = self.entry(piece.index)?;
        if let Some(host) = entry.host() {
            return self.file.write(req, HostOffset(host + piece.within), buf, none).await;
        }
        let host = self.clusters.allocate(req);
        match self.fill_cluster(req, host, entry, piece, buf).await {
            Ok(()) => {
                self.clusters.set(piece.index, Entry::data(host));
                Ok(())
            }
            Err(error) => {
                self.clusters.give_back(host);
                Err(error)
            }
        }
    }

    /// Write the whole new cluster at `host`: what was there before, and `buf` over it.
    async fn fill_cluster(&self, req: &Req, host: u64, old: Entry, piece: Piece, buf: &IoBuf) -> IoResult<()> {
        let size = self.geometry.cluster_size();
        if piece.len == size {
            return self.file.write(req, HostOffset(host), buf, RequestFlags::empty()).await;
        }
        let cluster = self.cluster_buf();
        if let Source::Backing(backing) = self.source(old) {
            self.read_backing(req, backing, piece.index * size, &cluster).await?;
        }
        cluster.slice(piece.within as usize, piece.len as usize).copy_from(buf);
        self.file.write(req, HostOffset(host), &cluster, RequestFlags::empty()).await
    }

    fn cluster_buf(&self) -> IoBuf {
        let alignment = self.limits.memory_alignment.max(self.limits.request_alignment);
        AlignedBuf::zeroed(self.geometry.cluster_size() as usize, alignment as usize).into_io()
    }

    async fn write(&self, req: &Req, range: GuestRange, buf: &IoBuf) -> IoResult<()> {
        self.reach(req, range.end()).await?;
        for piece in self.pieces(range) {
            self.write_piece(req, piece, &buf.slice(piece.at as usize, piece.len as usize)).await?;
        }
        Ok(())
    }

    async fn zero_piece(&self, req: &Req, piece: Piece, flags: RequestFlags) -> IoResult<()> {
        let lock = self.locks.lock(piece.index).await;
        let entry = self.entry(piece.index)?;
        let whole = self.is_whole(piece);
        match self.source(entry) {
            // Nothing of ours to keep: the cluster goes back, or was none.
            _ if whole && (entry.host().is_none() || flags.contains(RequestFlags::MAY_UNMAP)) => {
                self.clear(req, piece.index, entry);
                Ok(())
            }
            Source::File(host) => {
                let flags = flags & RequestFlags::NO_FALLBACK;
                self.file.zero(req, HostOffset(host + piece.within), piece.len, flags).await
            }
            Source::Zeroes => Ok(()),
            Source::Backing(_) if flags.contains(RequestFlags::NO_FALLBACK) => Err(IoError::UNSUPPORTED),
            Source::Backing(_) => {
                drop(lock);
                let alignment = self.limits.memory_alignment.max(self.limits.request_alignment);
                let zeroes = AlignedBuf::zeroed(piece.len as usize, alignment as usize).into_io();
                self.write_piece(req, piece, &zeroes).await
            }
        }
    }

    /// Let a cluster read as zeroes, and give its place back. The caller holds its lock.
    fn clear(&self, req: &Req, index: u64, entry: Entry) {
        if entry.is_zero() {
            return;
        }
        // First out of reach, then retired.
        self.clusters.set(index, Entry::ZERO);
        if let Some(host) = entry.host() {
            self.clusters.retire(req, host);
        }
    }

    async fn discard_piece(&self, req: &Req, piece: Piece) -> IoResult<()> {
        let _lock = self.locks.lock(piece.index).await;
        let entry = self.entry(piece.index)?;
        if self.is_whole(piece) && entry.host().is_some() {
            self.clear(req, piece.index, entry);
        }
        Ok(())
    }

    async fn relocate(&self, req: &Req, index: u64) -> IoResult<bool> {
        if req.is_read_only() {
            return Err(IoError::READ_ONLY);
        }
        let _lock = self.locks.lock(index).await;
        let Some(old) = self.entry(index)?.host() else { return Ok(false) };
        if !self.clusters.may_move(req, index) {
            return Err(IoError::BUSY);
        }
        let new = self.clusters.allocate(req);
        let copied = self.copy_cluster(req, old, new).await;
        if let Err(error) = copied {
            self.clusters.give_back(new);
            self.clusters.stay(index);
            return Err(error);
        }
        self.clusters.set(index, Entry::data(new));
        self.clusters.retire(req, old);
        Ok(true)
    }

    async fn copy_cluster(&self, req: &Req, from: u64, to: u64) -> IoResult<()> {
        let cluster = self.cluster_buf();
        self.file.read(req, HostOffset(from), &cluster).await?;
        self.file.write(req, HostOffset(to), &cluster, RequestFlags::empty()).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        let _turn = self.flushing.lock().await;
        let Some(changes) = self.clusters.take_changes(self.length()) else { return self.file.flush(req).await };
        let stored = self.store(req, &changes).await;
        self.clusters.stored(changes, stored.is_ok());
        stored
    }

    async fn store(&self, req: &Req, changes: &clusters::Changes) -> IoResult<()> {
        // Data before what points to it.
        self.file.flush(req).await?;
        for (block, bytes) in &changes.blocks {
            disk::write_block(req, &self.file, &self.geometry, *block, bytes).await?;
        }
        if let Some(length) = changes.length {
            disk::write_header(req, &self.file, &self.geometry, length).await?;
        }
        self.file.flush(req).await
    }

    /// Make the image reach `end`, if it does not yet: a write whose parent may resize ends there.
    async fn reach(&self, req: &Req, end: u64) -> IoResult<()> {
        if end <= self.length() {
            return Ok(());
        }
        let _turn = self.resizing.lock().await;
        if end > self.length() { self.grow(req, end).await } else { Ok(()) }
    }

    async fn resize(&self, req: &Req, len: u64) -> IoResult<()> {
        let _turn = self.resizing.lock().await;
        let old = self.length();
        if len >= old {
            return self.grow(req, len).await;
        }
        self.set_length(len);
        let size = self.geometry.cluster_size();
        for index in len.div_ceil(size)..old.div_ceil(size) {
            let _lock = self.locks.lock(index).await;
            let entry = self.entry(index)?;
            self.clear(req, index, entry);
        }
        Ok(())
    }

    /// What comes into view must be zero before it does (rule trunc-1): the rest of the last cluster, then whole ones.
    async fn grow(&self, req: &Req, len: u64) -> IoResult<()> {
        if len > self.geometry.length_max() {
            return Err(IoError::host(rustix::io::Errno::FBIG.raw_os_error()));
        }
        let (old, size) = (self.length(), self.geometry.cluster_size());
        let tail = old.next_multiple_of(size).min(len) - old;
        if tail > 0 {
            let piece = Piece { index: old / size, within: old % size, len: tail, at: 0 };
            self.zero_piece(req, piece, RequestFlags::empty()).await?;
        }
        for index in old.div_ceil(size)..len.div_ceil(size) {
            let _lock = self.locks.lock(index).await;
            let entry = self.entry(index)?;
            self.clear(req, index, entry);
        }
        self.set_length(len);
        Ok(())
    }

    fn set_length(&self, len: u64) {
        self.length.store(len, Ordering::Release);
        self.clusters.length_changed();
    }

    /// For how many bytes from `range` on all clusters are of the same kind, and follow each other in the file if they
    /// are in it.
    #[inline]
    fn run(&self, access: Access, first: Entry, range: GuestRange) -> u64 {
        let size = self.geometry.cluster_size();
        let offset = range.offset().0;
        let mut len = size - offset % size;
        let mut index = offset / size;
        let mut expected = first;
        while len < range.len() {
            index += 1;
            expected = expected.next(size);
            match self.clusters.get(index) {
                Some(entry) if entry.continues(expected) && entry.takes(access) => {
                    len += size;
                }
                _ => break,
            }
        }
        len
    }
}

#[async_trait]
impl Driver for ToyCow {
    fn format_name(&self) -> &'static str {
        "toy-cow"
    }

    fn limits(&self) -> Limits {
        self.0.limits
    }

    fn backing(&self) -> Option<&Edge> {
        self.0.backing.as_ref()
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    fn clusters(&self, _req: &Req) -> Option<block_io::Clusters> {
        let size = self.0.geometry.cluster_size();
        Some(block_io::Clusters { cluster: size, subcluster: size })
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        let shared = &*self.0;
        let offset = range.offset().0;
        let Some(entry) = shared.clusters.get(shared.geometry.index(offset)) else { return Mapping::Slow };
        if !entry.takes(access) {
            return Mapping::Slow;
        }
        let len = shared.run(access, entry, range);
        match shared.source(entry) {
            Source::File(host) => {
                let offset = HostOffset(host + shared.geometry.within(offset));
                Mapping::Child { edge: &shared.file, offset, len }
            }
            Source::Zeroes => Mapping::Zeroes { len },
            // The core sees by itself where the backing child ends.
            Source::Backing(edge) => Mapping::Child { edge, offset: HostOffset(offset), len },
        }
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.0.length())
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        for piece in self.0.pieces(GuestRange::new(offset.0, buf.len() as u64)?) {
            self.0.read_piece(req, piece, &buf.slice(piece.at as usize, piece.len as usize)).await?;
        }
        Ok(())
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.write(req, GuestRange::new(offset.0, buf.len() as u64)?, buf).await?;
        // The data may need the table to be found again.
        if flags.contains(RequestFlags::FUA) { self.0.flush(req).await } else { Ok(()) }
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.0.reach(req, range.end()).await?;
        for piece in self.0.pieces(range) {
            self.0.zero_piece(req, piece, flags).await?;
        }
        if flags.contains(RequestFlags::FUA) { self.0.flush(req).await } else { Ok(()) }
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        for piece in self.0.pieces(range) {
            self.0.discard_piece(req, piece).await?;
        }
        Ok(())
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let shared = &*self.0;
        let offset = range.offset().0;
        let entry = shared.entry(shared.geometry.index(offset))?;
        let len = shared.run(Access::Read, entry, range).min(range.len());
        Ok(match shared.source(entry) {
            Source::File(host) => {
                let place = HostOffset(host + shared.geometry.within(offset));
                StatusExtent::mapped(BlockStatus::DATA | BlockStatus::ALLOCATED, len, place)
            }
            Source::Zeroes if entry.is_zero() => StatusExtent::zero(len),
            Source::Zeroes => StatusExtent::new(BlockStatus::ZERO, len),
            Source::Backing(backing) => match backing.length(req)?.saturating_sub(offset) {
                0 => StatusExtent::new(BlockStatus::ZERO, len),
                there => StatusExtent::unallocated(len.min(there)),
            },
        })
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        match preallocation {
            Preallocation::Off => self.0.resize(req, len).await,
            _ => Err(IoError::UNSUPPORTED),
        }
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        if number != TOY_RELOCATE {
            return Err(IoError::UNSUPPORTED);
        }
        if argument.len() != 8 {
            return Err(IoError::INVALID);
        }
        let mut index = [0; 8];
        argument.copy_to_slice(0, &mut index);
        self.0.relocate(req, u64::from_le_bytes(index)).await.map(drop)
    }

    async fn close(&self, req: &Req) -> IoResult<()> {
        self.0.closed.store(true, Ordering::Relaxed);
        if req.is_read_only() { Ok(()) } else { self.0.flush(req).await }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Relaxed) && self.clusters.has_changes() {
            tracing::warn!("a toy image was dropped without being closed: what was not flushed is lost");
        }
    }
}

impl fmt::Debug for ToyCow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToyCow({} bytes, {:?})", self.0.length(), self.0.geometry)
    }
}

impl fmt::Debug for ToyCowControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ToyCowControl({} clusters reused)", self.reused())
    }
}
