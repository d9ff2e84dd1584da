//! A format without metadata, whose disk is longer than its file: what the file does not have reads as zeroes, and what is written there makes it grow. For
//! filters that look at where their file ends.

use async_trait::async_trait;
use block_common::{GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, RequestFlags, StatusExtent};
use block_io::{Driver, Edge, Req};

/// The engine.
#[derive(Debug)]
pub struct ToySparse {
    file: Edge,
    len: u64,
}

impl ToySparse {
    /// A disk of `len` bytes over `file`, which writes have to be allowed to resize.
    pub fn new(file: Edge, len: u64) -> Self {
        Self { file, len }
    }
}

#[async_trait]
impl Driver for ToySparse {
    fn format_name(&self) -> &'static str {
        "toy-sparse"
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.len)
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let there = self.file.refresh_length(req).await?.saturating_sub(offset.0).min(buf.len() as u64) as usize;
        if there > 0 {
            self.file.read(req, HostOffset(offset.0), &buf.slice(0, there)).await?;
        }
        buf.fill(there, buf.len() - there, 0);
        Ok(())
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.file.zero(req, HostOffset(range.offset().0), range.len(), flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let there = self.file.refresh_length(req).await?.saturating_sub(range.offset().0).min(range.len());
        match there {
            0 => Ok(StatusExtent::zero(range.len())),
            there => self.file.block_status(req, HostOffset(range.offset().0), there).await,
        }
    }
}
