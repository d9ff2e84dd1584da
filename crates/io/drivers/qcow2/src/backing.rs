//! Another backing file, and nothing left of an image's own content.

use crate::image::{Qcow2Control, Shared};
use block_common::{AlignedBuf, BlockStatus, GuestRange, IoResult, RequestFlags};
use block_io::Req;
use block_qcow2_format::{Header, Version};

/// Zeroes are written so many bytes at a time.
const EXPAND: u64 = 2 << 20;

impl Qcow2Control {
    /// Whether the image can say of a cluster that it is zeroes, whatever is below it.
    pub fn has_zeroes(&self) -> bool {
        self.0.version >= Version::V3
    }

    /// Name another backing file, with its format, or none. The node's child stays what it is. `req` is a token on the node, beside which nothing is in flight.
    ///
    /// # Errors
    /// [`block_common::IoError::INVALID`] when the name does not fit into the header, else what the file answered.
    #[doc(alias = "bdrv_change_backing_file")]
    pub async fn change_backing(&self, req: &Req, backing: Option<(Vec<u8>, Option<Vec<u8>>)>) -> IoResult<()> {
        self.0.change_backing(req, backing).await
    }

    /// Let go of everything that the image has of its own: it shows what it stands on. `req` is as for [`Qcow2Control::change_backing`].
    ///
    /// # Errors
    /// What the file answered.
    #[doc(alias = "bdrv_make_empty")]
    #[doc(alias = "blk_make_empty")]
    pub async fn make_empty(&self, req: &Req) -> IoResult<()> {
        self.0.make_empty(req).await
    }
}

impl Qcow2Control {
    /// Let no cluster of the disk say that it is zeroes whatever is below it, as version 2 of the format cannot: it has zeroes of its own then, or nothing where nothing
    /// is below. `req` is as for [`Qcow2Control::change_backing`].
    ///
    /// # Errors
    /// What the file answered.
    pub async fn expand_zeroes(&self, req: &Req) -> IoResult<()> {
        self.0.expand_zeroes(req).await
    }
}

impl Shared {
    async fn expand_zeroes(&self, req: &Req) -> IoResult<()> {
        self.claim(req).await?;
        let (mut at, len, size) = (0, self.length(), self.geometry.cluster_size());
        let has_backing = self.header().backing_file.is_some();
        let zeroes = AlignedBuf::zeroed(EXPAND as usize, 4096).into_io();
        while at < len {
            let extent = self.block_status(req, GuestRange::new(at, len - at)?).await?;
            let end = at + extent.len.max(1);
            if extent.status.contains(BlockStatus::ZERO | BlockStatus::ALLOCATED) {
                if has_backing {
                    let mut from = at;
                    while from < end {
                        let piece = (end - from).min(EXPAND);
                        self.write(req, from, &zeroes.slice(0, piece as usize), RequestFlags::empty()).await?;
                        from += piece;
                    }
                } else {
                    self.clear(req, at, end.next_multiple_of(size)).await?;
                }
            }
            at = end;
        }
        self.flush(req).await
    }

    async fn change_backing(&self, req: &Req, backing: Option<(Vec<u8>, Option<Vec<u8>>)>) -> IoResult<()> {
        self.claim(req).await?;
        let (name, format) = match backing {
            Some((name, format)) => (Some(name), format),
            None => (None, None),
        };
        let named = |header: &mut Header| (header.backing_file, header.backing_format) = (name, format);
        self.rewrite_header(req, named).await?;
        self.file.flush(req).await
    }

    async fn make_empty(&self, req: &Req) -> IoResult<()> {
        if self.data.is_some() {
            self.claim(req).await?;
            let len = self.length().next_multiple_of(self.geometry.cluster_size());
            self.clear(req, 0, len).await?;
            return self.flush(req).await;
        }
        self.drop_tables(req).await
    }
}
