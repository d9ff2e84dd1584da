//! Another backing file, and nothing left of an image's own content.

use crate::cache::Entry;
use crate::image::{Qcow2Control, Shared};
use block_common::IoResult;
use block_io::Req;
use block_qcow2_format::{Header, Version};

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
    pub async fn make_empty(&self, req: &Req) -> IoResult<()> {
        self.0.make_empty(req).await
    }
}

impl Shared {
    async fn change_backing(&self, req: &Req, backing: Option<(Vec<u8>, Option<Vec<u8>>)>) -> IoResult<()> {
        self.writable()?;
        let (name, format) = match backing {
            Some((name, format)) => (Some(name), format),
            None => (None, None),
        };
        let named = |header: &mut Header| (header.backing_file, header.backing_format) = (name, format);
        self.rewrite_header(req, named).await?;
        self.file.flush(req).await
    }

    async fn make_empty(&self, req: &Req) -> IoResult<()> {
        self.writable()?;
        let len = self.length().next_multiple_of(self.geometry.cluster_size());
        self.clear(req, 0, len, Entry::default()).await?;
        self.flush(req).await
    }
}
