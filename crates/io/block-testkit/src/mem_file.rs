//! A leaf on a host file in memory: for what only host files have, the mapping that the core starts requests on by
//! itself.
//!
//! It stands in for the file driver where a driver's tests may not name another driver. Nothing here is held, delayed
//! or failed; [`MemStorage`](crate::MemStorage) does that.

#![allow(clippy::disallowed_methods, reason = "the file is memory: making it does not block")]

use async_trait::async_trait;
use block_common::{
    BlockStatus, GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{Access, Driver, FileEngine, HostFile, HostFileControl, HostFileOptions, Mapping, Req, ThreadPool};
use rustix::fs::{FallocateFlags, MemfdFlags, ftruncate, memfd_create};
use std::os::fd::OwnedFd;

/// The engine.
#[derive(Debug)]
pub struct MemFile {
    file: HostFile,
    _control: HostFileControl,
}

impl MemFile {
    /// A file of `len` zero bytes, buffered, whose requests go through `engine`.
    ///
    /// # Errors
    /// What the host answered.
    pub fn new(len: u64, engine: FileEngine, pool: ThreadPool) -> std::io::Result<Self> {
        let fd = memfd_create("cairn-test", MemfdFlags::CLOEXEC)?;
        Self::over(fd, len, engine, pool)
    }

    /// As [`MemFile::new`], with an open file of the caller's: one on a disk has what memory has not, a cache that can be asked what it holds.
    ///
    /// # Errors
    /// As [`MemFile::new`].
    pub fn over(fd: OwnedFd, len: u64, engine: FileEngine, pool: ThreadPool) -> std::io::Result<Self> {
        ftruncate(&fd, len)?;
        let (file, control) = HostFile::new(fd, HostFileOptions { engine, memory_alignment: 1 }, pool);
        Ok(Self { file, _control: control })
    }

    async fn punch(&self, range: GuestRange) -> IoResult<()> {
        let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.file.fallocate(mode.bits() as i32, range.offset().0, range.len()).await
    }
}

#[async_trait]
impl Driver for MemFile {
    fn format_name(&self) -> &'static str {
        "mem-file"
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        Mapping::File(&self.file)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        self.file.length().await
    }

    async fn read(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(offset, buf).await
    }

    async fn write(&self, _req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(offset, buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, _flags: RequestFlags) -> IoResult<()> {
        if range.end() > req.length() {
            self.file.set_length(range.end()).await?;
        }
        self.punch(range).await
    }

    async fn discard(&self, _req: &Req, range: GuestRange) -> IoResult<()> {
        self.punch(range).await
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.file.sync().await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let extent = self.file.extent(range.offset().0).await?;
        let content = if extent.is_data { BlockStatus::DATA } else { BlockStatus::ZERO };
        let place = HostOffset(range.offset().0);
        Ok(StatusExtent::mapped(content | BlockStatus::ALLOCATED, extent.len.min(range.len()), place))
    }

    async fn truncate(&self, _req: &Req, len: u64, _preallocation: Preallocation) -> IoResult<()> {
        self.file.set_length(len).await
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        self.file.close().await
    }
}
