//! The qcow2 driver's engine: tables, allocation, compression, durability.
//!
//! What bytes mean is `block-qcow2-format`'s business; what options users write, the graph's. This crate reads and writes an image through
//! the edges that it is given, from any thread, many requests at once. `docs/qcow2.md` has the design: who may change what, and in which
//! order changes reach the disk.
//!
//! # Reading order
//! [`Qcow2::open`]; `lookup` (where a byte lies), `cache` (tables in memory); `write` and `zero` (what allocates and frees), `refcounts` (who
//! may have which cluster); `flush` (what is durable when); `overlap` (what is not overwritten); `encryption`.

#![forbid(unsafe_code)]

pub mod check;
pub mod info;

mod backing;
mod bitmaps;
mod cache;
mod claim;
mod compress;
mod deflate;
mod discard;
mod encryption;
mod flush;
mod image;
mod locks;
mod lookup;
mod meta;
mod overlap;
mod read;
mod refcounts;
mod resize;
mod snapshot;
mod vmstate;
mod write;
mod zero;

pub use block_qcow2_format::{Header, Version};
pub use image::{Qcow2, Qcow2Children, Qcow2Control, Qcow2Error, Qcow2Options, Qcow2Reopen, WeakControl};
pub use overlap::{MetadataKind, OverlapChecks};
pub use resize::{refuse_length, resize_failure};
pub use snapshot::{NewSnapshot, SnapshotFailure, SnapshotKey};

pub use block_common::TOLD;

use async_trait::async_trait;
use block_common::{
    GuestOffset, GuestRange, IoBuf, IoError, IoResult, Limits, Preallocation, RequestFlags, StatusExtent,
};
use block_io::{Access, Clusters, Driver, Edge, Mapping, Req};

#[async_trait]
impl Driver for Qcow2 {
    fn format_name(&self) -> &'static str {
        "qcow2"
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn write_flags(&self) -> RequestFlags {
        // What is compressed is not encrypted.
        let always = RequestFlags::FUA | RequestFlags::DONT_CACHE;
        if self.0.is_encrypted() { always } else { always | RequestFlags::WRITE_COMPRESSED }
    }

    fn backing(&self) -> Option<&Edge> {
        self.0.backing.as_ref()
    }

    #[inline]
    fn map_cached(&self, access: Access, range: GuestRange) -> Mapping<'_> {
        self.0.map_cached(access, range)
    }

    fn decode(&self, at: u64, bytes: &mut [u8]) -> IoResult<()> {
        self.0.encryption.as_ref().ok_or(IoError::BUG)?.crypt()?.decrypt(at, bytes);
        Ok(())
    }

    fn encode(&self, at: u64, bytes: &mut [u8]) -> IoResult<()> {
        self.0.encryption.as_ref().ok_or(IoError::BUG)?.crypt()?.encrypt(at, bytes);
        Ok(())
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.0.length())
    }

    fn clusters(&self, _req: &Req) -> Option<Clusters> {
        let geometry = self.0.geometry;
        Some(Clusters { cluster: geometry.cluster_size(), subcluster: geometry.subcluster_size() })
    }

    async fn allocated_size(&self, req: &Req) -> IoResult<u64> {
        let own = self.0.file.allocated_size(req).await?;
        match &self.0.data {
            Some(data) => Ok(own + data.allocated_size(req).await?),
            None => Ok(own),
        }
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.read(req, offset.0, buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.claim(req).await?;
        if flags.contains(RequestFlags::WRITE_COMPRESSED) {
            self.0.write_compressed(req, offset.0, buf).await?;
        } else {
            self.0.reach(req, GuestRange::new(offset.0, buf.len() as u64)?.end()).await?;
            self.0.write(req, offset.0, buf, flags & RequestFlags::DONT_CACHE).await?;
        }
        // The data may need the tables to be found again.
        if flags.contains(RequestFlags::FUA) { self.0.flush(req).await } else { Ok(()) }
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        self.0.claim(req).await?;
        self.0.reach(req, range.end()).await?;
        self.0.zero(req, range, flags).await?;
        if flags.contains(RequestFlags::FUA) { self.0.flush(req).await } else { Ok(()) }
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        self.0.claim(req).await?;
        self.0.discard(req, range).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.0.block_status(req, range).await
    }

    async fn block_statuses(&self, req: &Req, range: GuestRange, max: usize) -> IoResult<Vec<StatusExtent>> {
        let (mut extents, mut done) = (Vec::new(), 0);
        while done < range.len() && extents.len() < max {
            let extent = self.0.block_status(req, range.slice(done, range.len() - done)).await?;
            done += extent.len;
            extents.push(extent);
        }
        Ok(extents)
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        self.0.claim(req).await?;
        self.0.resize(req, len, preallocation).await
    }

    async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.0.save_vmstate(req, offset, buf).await
    }

    async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.0.load_vmstate(req, offset, buf).await
    }

    async fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        self.0.refresh_limits(req)
    }

    async fn close(&self, req: &Req) -> IoResult<()> {
        self.0.close(req).await
    }
}
