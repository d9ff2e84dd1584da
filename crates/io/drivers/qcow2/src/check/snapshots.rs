//! The snapshot table: read entry by entry, and written anew, elsewhere, when entries lack what they have to have.

use super::walk::Walk;
use super::{CheckError, Repair};
use block_qcow2_format::{Snapshot, SnapshotError};

/// The table is read in pieces of at least this many bytes.
const PIECE: u64 = 64 << 10;

/// The table's content.
#[derive(Default)]
pub(super) struct Snapshots {
    pub(super) list: Vec<Snapshot>,
    /// Bytes of the table.
    pub(super) bytes: u64,
    /// It is to be written anew.
    pub(super) is_changed: bool,
}

impl Walk<'_> {
    /// Read the table.
    pub(super) async fn load_snapshots(&mut self) -> Result<(), CheckError> {
        let (mut bytes, mut at) = (Vec::new(), 0);
        for index in 0..self.header.snapshots {
            let (snapshot, len) = self.load_snapshot(index, &mut bytes, at).await?;
            at += len;
            self.snapshots.list.push(snapshot);
        }
        let repairs = self.repair == Repair::All;
        for index in 0..self.snapshots.list.len() {
            if self.snapshots.list[index].is_complete(self.header.version) {
                continue;
            }
            let verb = if repairs { "Repairing" } else { "ERROR" };
            self.say(format_args!("{verb} snapshot table entry {index} is incomplete"));
            if repairs {
                self.report.corruptions_fixed += 1;
                self.snapshots.is_changed = true;
                self.snapshots.list[index].disk_size = Some(self.header.size);
            } else {
                self.report.corruptions += 1;
            }
        }
        self.snapshots.bytes = at as u64;
        Ok(())
    }

    /// The entry at `at` of the table, of which `bytes` were read so far.
    async fn load_snapshot(
        &mut self,
        index: u32,
        bytes: &mut Vec<u8>,
        at: usize,
    ) -> Result<(Snapshot, usize), CheckError> {
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let needs = match Snapshot::parse(rest) {
                Ok(found) => return Ok(found),
                Err(SnapshotError::Short(needs)) => needs,
                Err(SnapshotError::Extra(size)) if self.repair == Repair::All => match Snapshot::parse_any(rest) {
                    Ok(found) => {
                        let max = Snapshot::EXTRA_MAX;
                        self.say(format_args!(
                            "Discarding too much extra metadata in snapshot table entry {index} ({size} > {max})"
                        ));
                        self.report.corruptions_fixed += 1;
                        self.snapshots.is_changed = true;
                        return Ok(found);
                    }
                    Err(SnapshotError::Short(needs)) => needs,
                    Err(_) => return Err(CheckError::SnapshotsLarge),
                },
                Err(SnapshotError::Extra(_)) => return Err(CheckError::SnapshotExtra(index)),
                Err(_) => return Err(CheckError::SnapshotsLarge),
            };
            let read = bytes.len() as u64;
            let end = (at as u64 + needs as u64).max(read + PIECE);
            if at as u64 + needs as u64 > Snapshot::TABLE_MAX {
                return Err(CheckError::SnapshotsLarge);
            }
            let offset = self.header.snapshots_offset.saturating_add(read);
            bytes.extend_from_slice(&self.image.read(offset, end - read).await?);
        }
    }

    /// Write the table, if a repair changed it: to new clusters, which the header names when they are on disk.
    pub(super) async fn store_snapshots(&mut self) -> Result<(), CheckError> {
        if !self.snapshots.is_changed {
            return Ok(());
        }
        let bytes: Vec<u8> = self.snapshots.list.iter().flat_map(Snapshot::to_bytes).collect();
        let (geometry, old) = (self.geometry(), (self.header.snapshots_offset, self.snapshots.bytes));
        let clusters = geometry.clusters_for(bytes.len() as u64);
        let mut counted = None;
        for first in self.places() {
            let end = (first + clusters) << geometry.cluster_bits();
            if counted.is_none() && self.image.grow(end).await.is_ok() && self.count_new(first, clusters).await? {
                counted = Some(first);
            }
        }
        let first = match counted {
            Some(first) => first,
            None => self.rebuild_refcounts(clusters).await?,
        };
        self.clusters = self.clusters.max(first + clusters);
        let offset = first << geometry.cluster_bits();
        self.image.write(offset, &bytes).await?;
        self.image.flush().await?;
        // The count stays as it is. It and the offset lie beside each other, in one sector.
        let fields = [&self.header.snapshots.to_be_bytes()[..], &offset.to_be_bytes()].concat();
        self.image.write(60, &fields).await?;
        self.image.flush().await?;
        self.header.snapshots_offset = offset;
        self.snapshots.bytes = bytes.len() as u64;
        // What lay past the end was not counted.
        if old.0.saturating_add(old.1) <= self.image.len().min(first << geometry.cluster_bits()) {
            self.forget(old.0, old.1).await?;
        }
        Ok(())
    }
}
