//! Taking an image to write to it, and letting go of it again.
//!
//! Who writes to an image has let it say so before: what the image says of itself that a write would make wrong is gone, its bitmaps are in use, what was not closed
//! is repaired. An image that is opened for writing is taken at once. One that is reopened for writing is taken by its first write, so that a reopen
//! changes nothing on the disk that would have to be taken back when it fails.

use crate::encryption::Encryption;
use crate::image::{Qcow2Error, Shared, repaired};
use crate::overlap::OverlapChecks;
use crate::refcounts::Refcounts;
use crate::{Qcow2, meta};
use block_common::{Errno, IoError, IoResult};
use block_io::Req;
use block_qcow2_format::{Header, IncompatibleFeatures};
use std::sync::atomic::Ordering;

impl Shared {
    /// Be ready for changes: whoever is the first takes the image.
    ///
    /// # Errors
    /// It is only read, or corrupt, or could not be taken; nothing has changed then.
    pub(crate) async fn claim(&self, req: &Req) -> IoResult<()> {
        self.writable()?;
        if self.claimed.load(Ordering::Acquire) {
            return Ok(());
        }
        let _turn = self.claiming.lock().await;
        self.writable()?;
        if self.claimed.load(Ordering::Acquire) {
            return Ok(());
        }
        let taken = match self.look_again(req).await {
            Ok(()) => self.take(req).await,
            Err(error) => Err(error),
        };
        taken.map_err(|error| {
            tracing::error!(node = req.node_name(), %error, "the image cannot be written");
            match error {
                Qcow2Error::Read { error, .. } | Qcow2Error::Update { error, .. } => error,
                _ => IoError::host(Errno::EIO.raw()),
            }
        })
    }

    /// Take the image, whose header and L1 table are in memory as they are on the disk. Nobody writes yet.
    pub(crate) async fn take(&self, req: &Req) -> Result<(), Qcow2Error> {
        let header = self.header().clone();
        let read = |what| move |error| Qcow2Error::Read { what, error };
        let entries = (u64::from(header.refcount_table_clusters) << self.geometry.cluster_bits()) / 8;
        let table = meta::read_table(req, &self.file, header.refcount_table_offset, entries as usize).await;
        let table = table.map_err(read("refcount table"))?;
        let file_len = self.file.length(req).map_err(read("the file's length"))?;
        self.find_metadata(req, self.options().overlap_checks, Refcounts::places(&table)).await?;
        let fresh_from = file_len.next_multiple_of(self.geometry.cluster_size());
        self.refcounts.lock().await.restart(header.refcount_bits, table, fresh_from);
        let cleared = self.clear_autoclear(req).await;
        cleared.map_err(|error| Qcow2Error::Update { what: "the header", error })?;
        self.claim_bitmaps(req).await?;
        self.claimed.store(true, Ordering::Release);
        Ok(())
    }

    /// What is on the disk may not be what it was when it was read last; others may only read meanwhile.
    async fn look_again(&self, req: &Req) -> Result<(), Qcow2Error> {
        // Slices that were read before are not what counts after this.
        let _nothing_is_read = self.loading.lock(0..u64::MAX).await;
        let header = self.same_header(req).await?;
        let header = match header.incompatible.contains(IncompatibleFeatures::DIRTY) {
            true => repaired(req, &self.file).await?,
            false => header,
        };
        let l1 = meta::read_table(req, &self.file, header.l1_offset, header.l1_size as usize).await;
        let l1 = l1.map_err(|error| Qcow2Error::Read { what: "L1 table", error })?;
        *self.header() = header;
        self.replace_l1(l1);
        self.cache.clear();
        Ok(())
    }

    /// The header on the disk, if the image is still the one that was opened, and may be written.
    async fn same_header(&self, req: &Req) -> Result<Header, Qcow2Error> {
        let header = Qcow2::read_header(req, &self.file).await?;
        let what = |header: &Header| {
            let encryption = (header.crypt_method, header.crypto);
            (header.version, header.geometry, header.size, header.bitmaps, encryption)
        };
        if what(&header) != what(&self.header()) || self.shows_snapshot.load(Ordering::Relaxed) {
            return Err(Qcow2Error::Changed);
        }
        if header.incompatible.contains(IncompatibleFeatures::CORRUPT) || self.is_corrupt() {
            return Err(Qcow2Error::Corrupt);
        }
        Ok(header)
    }

    /// Whether an image that was only read can be written with these checks, as far as that can be seen without writing. Changes nothing.
    pub(crate) async fn may_be_taken(&self, req: &Req, checks: OverlapChecks) -> Result<(), Qcow2Error> {
        self.same_header(req).await?;
        if self.encryption.as_ref().is_some_and(Encryption::is_locked) {
            return Err(Qcow2Error::Locked);
        }
        if checks.needs_snapshots() {
            let failed = |error: IoError| Qcow2Error::Read { what: "snapshots", error };
            let snapshots = self.read_snapshots(req).await;
            snapshots.map_err(|failure| failed(IoError::host(failure.errno().raw())))?;
        }
        Ok(())
    }

    /// Let go of the image: it is on the disk as a whole, and the next write takes it again. Nothing is in flight.
    ///
    /// # Errors
    /// What the file answered; the image is still taken then.
    pub(crate) async fn release(&self, req: &Req) -> IoResult<()> {
        let _turn = self.claiming.lock().await;
        if !self.claimed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.writable()?;
        self.store_everything(req).await?;
        self.claimed.store(false, Ordering::Release);
        Ok(())
    }
}
