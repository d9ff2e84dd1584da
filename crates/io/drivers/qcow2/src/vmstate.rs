//! The state of a machine, which stands behind the disk in the image's own addresses: snapshots keep it with the disk.

use crate::image::Shared;
use block_common::{IoBuf, IoError, IoResult, RequestFlags};
use block_io::Req;
use std::sync::atomic::Ordering;

impl Shared {
    /// Where it begins: with the first table that has nothing of the disk.
    fn vm_state_offset(&self) -> u64 {
        self.geometry.l1_entries_for(self.length()) * self.table_bytes()
    }

    /// Bytes of addresses that one L2 table has.
    fn table_bytes(&self) -> u64 {
        self.geometry.cluster_size() * self.geometry.l2_entries()
    }

    /// Store `buf` at `offset` of the state.
    pub(crate) async fn save_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        self.claim(req).await?;
        if self.data.is_some() {
            // It would lie among the disk's data.
            return Err(IoError::UNSUPPORTED);
        }
        if buf.is_empty() {
            return Ok(());
        }
        let _turn = self.resizing.lock().await;
        let too_large = || IoError::host(block_common::Errno::EFBIG.raw());
        let at = self.vm_state_offset().checked_add(offset).ok_or_else(too_large)?;
        let end =
            at.checked_add(buf.len() as u64).filter(|end| *end <= self.geometry.size_max()).ok_or_else(too_large)?;
        let entries = self.geometry.l1_entries_for(end);
        if entries > self.l1.load().len() as u64 {
            self.grow_l1(req, entries).await?;
        }
        self.write(req, at, buf, RequestFlags::empty()).await
    }

    /// Fill `buf` from `offset` of the state. What was not stored reads as zeroes.
    pub(crate) async fn load_vmstate(&self, req: &Req, offset: u64, buf: &IoBuf) -> IoResult<()> {
        if self.data.is_some() {
            return Err(IoError::UNSUPPORTED);
        }
        let at = self.vm_state_offset().checked_add(offset);
        let at = at.filter(|at| at.checked_add(buf.len() as u64).is_some_and(|end| end <= self.geometry.size_max()));
        self.read(req, at.ok_or(IoError::INVALID)?, buf).await
    }

    /// Let go of the first `len` bytes of the state, in whole clusters. Tells whether there may have been some.
    pub(crate) async fn clear_vmstate(&self, req: &Req, len: u64) -> IoResult<bool> {
        let (from, size) = (self.vm_state_offset(), self.table_bytes());
        let end = from.saturating_add(len.checked_next_multiple_of(self.geometry.cluster_size()).unwrap_or(len));
        let (l1, mut is_any) = (self.l1.load_full(), false);
        for (at, entry) in l1.iter().enumerate().skip((from / size) as usize) {
            let start = at as u64 * size;
            if start >= end {
                break;
            }
            if entry.load(Ordering::SeqCst) != 0 {
                self.clear(req, start, end.min(start + size)).await?;
                is_any = true;
            }
        }
        Ok(is_any)
    }
}
