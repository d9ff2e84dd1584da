//! Another backing file, and nothing left of an image's own content.

use crate::cache::Entry;
use crate::image::{Qcow2Control, Shared};
use crate::meta;
use block_common::{IoError, IoResult};
use block_io::Req;

impl Qcow2Control {
    /// Name another backing file, with its format, or none. The node's child stays what it is. `req` is a token on the node, beside which nothing is in flight.
    ///
    /// # Errors
    /// [`IoError::INVALID`] when the name does not fit into the header, else what the file answered.
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
        let _turn = self.header_turn.lock().await;
        let mut header = self.header().clone();
        let old = header.to_bytes().map_err(|_| IoError::INVALID)?.len();
        (header.backing_file, header.backing_format) = match backing {
            Some((name, format)) => (Some(name), format),
            None => (None, None),
        };
        let mut bytes = header.to_bytes().map_err(|_| IoError::INVALID)?;
        bytes.resize(bytes.len().max(old), 0);
        meta::write(req, &self.file, 0, &bytes).await?;
        self.file.flush(req).await?;
        *self.header() = header;
        Ok(())
    }

    async fn make_empty(&self, req: &Req) -> IoResult<()> {
        self.writable()?;
        let len = self.length().next_multiple_of(self.geometry.cluster_size());
        self.clear(req, 0, len, Entry::default()).await?;
        self.flush(req).await
    }
}
