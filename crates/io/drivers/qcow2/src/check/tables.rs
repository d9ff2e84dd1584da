//! L1 and L2 tables: which clusters they refer to, and what of their entries cannot be.
//!
//! Snapshots share most of their L2 tables with each other and with the disk as it is. Each table is walked once, and counts as often as L1 tables
//! refer to it.

use super::storage::{Bytes, entry};
use super::walk::{PIECE, Walk};
use super::{CheckError, MEMORY_MAX, Repair};
use block_qcow2_format::{Geometry, L1Entry, L2Entry, L2Kind, SubclusterBits};
use std::collections::HashMap;

/// L2 tables are read so many bytes at a time.
const BATCH: u64 = 8 << 20;
/// More tables than this are not kept track of.
const TABLES_MAX: usize = (MEMORY_MAX / 4 / 64) as usize;

/// An L2 table.
#[derive(Clone, Copy)]
pub(super) struct Table {
    pub(super) offset: u64,
    /// L1 entries that refer to it.
    times: u64,
    /// Those of the active L1 table.
    pub(super) active: u64,
    /// A COPIED flag in it differs from what the counts on disk say.
    pub(super) suspect: bool,
}

/// Every L1 entry that leads somewhere.
#[derive(Default)]
pub(super) struct Tables {
    /// The active L1 table.
    pub(super) active_l1: Vec<u64>,
    pub(super) list: Vec<Table>,
    index: HashMap<u64, u32>,
    /// Bytes of snapshots' L1 tables.
    l1_bytes: u64,
}

impl Tables {
    fn note(&mut self, offset: u64, is_active: bool) -> Result<(), CheckError> {
        let next = self.list.len();
        let at = *self.index.entry(offset).or_insert(next as u32) as usize;
        if at == next {
            if next >= TABLES_MAX {
                return Err(CheckError::TooLarge);
            }
            self.list.push(Table { offset, times: 0, active: 0, suspect: false });
        }
        self.list[at].times += 1;
        self.list[at].active += u64::from(is_active);
        Ok(())
    }
}

impl Walk<'_> {
    /// The active L1 table, and what it refers to.
    pub(super) async fn count_active_l1(&mut self) -> Result<(), CheckError> {
        let (offset, entries) = (self.header.l1_offset, self.header.l1_size);
        let mut l1 = Vec::with_capacity(entries as usize);
        self.count_l1(offset, entries, Some(&mut l1)).await?;
        self.tables.active_l1 = l1;
        Ok(())
    }

    /// The L1 tables of all snapshots, and what they refer to.
    pub(super) async fn count_snapshot_l1s(&mut self) -> Result<(), CheckError> {
        let l1_max = Geometry::L1_BYTES_MAX / 8;
        for index in 0..self.snapshots.list.len() {
            let snapshot = &self.snapshots.list[index];
            let (offset, entries) = (snapshot.l1_offset, snapshot.l1_size);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let name = || format!("snapshot {} ({})", text(&snapshot.id), text(&snapshot.name));
            let wrong = if !self.geometry().is_aligned(offset) {
                format!("{} l1_offset={offset:#x}: L1 table is not cluster aligned", name())
            } else if u64::from(entries) > l1_max {
                format!("{} l1_size={entries:#x}: L1 table is too large", name())
            } else {
                // Tables do not lie over each other: there cannot be much more of them than there is file.
                self.tables.l1_bytes += u64::from(entries) * 8;
                if self.tables.l1_bytes > self.image.len().saturating_add(2 * Geometry::L1_BYTES_MAX) {
                    self.not_seen(format_args!("L1 tables are larger than the image"));
                    return Ok(());
                }
                self.count_l1(offset, entries, None).await?;
                continue;
            };
            self.corrupt(1, format_args!("ERROR {wrong}; snapshot table entry corrupted"));
        }
        Ok(())
    }

    /// An L1 table: its own clusters, and the L2 tables. The active one is copied to `active`.
    async fn count_l1(
        &mut self,
        offset: u64,
        entries: u32,
        mut active: Option<&mut Vec<u64>>,
    ) -> Result<(), CheckError> {
        let bytes = u64::from(entries) * 8;
        self.refer(offset, bytes, 1)?;
        // Past the file's end all entries are zeroes.
        let there = bytes.min(self.image.len().saturating_sub(offset)).next_multiple_of(8);
        let mut at = 0;
        while at < there {
            let len = (there - at).min(PIECE);
            let table = self.image.read(offset.saturating_add(at), len).await?;
            for index in 0..table.len() / 8 {
                let raw = entry(&table, index);
                if let Some(active) = &mut active {
                    active.push(raw);
                }
                self.count_l1_entry(L1Entry::from_raw(raw), active.is_some())?;
            }
            at += len;
        }
        if let Some(active) = active {
            active.resize(entries as usize, 0);
        }
        Ok(())
    }

    fn count_l1_entry(&mut self, entry: L1Entry, is_active: bool) -> Result<(), CheckError> {
        if entry.raw() == 0 {
            return Ok(());
        }
        // One with flags and no place claims that the header is a table.
        let table = entry.table().unwrap_or(0);
        if entry.reserved() != 0 {
            self.corrupt(1, format_args!("ERROR found L1 entry with reserved bits set: {:x}", entry.raw()));
        }
        self.refer(table, self.cluster_size(), 1)?;
        if !self.geometry().is_aligned(table) {
            self.corrupt(
                1,
                format_args!("ERROR l2_offset={table:x}: Table is not cluster aligned; L1 entry corrupted"),
            );
        }
        self.tables.note(table, is_active)
    }

    /// Everything that L2 tables refer to.
    pub(super) async fn count_l2(&mut self) -> Result<(), CheckError> {
        let (cluster_size, end) = (self.cluster_size(), self.image.len());
        let mut tables = std::mem::take(&mut self.tables.list);
        self.tables.index = HashMap::new();
        let (mut done, total) = (0, tables.len() as u64);
        // Aligned tables do not lie over each other; of those that are not there may be any number.
        let mut unaligned = 0;
        let some = (BATCH / cluster_size).max(1) as usize;
        for batch in tables.chunks_mut(some) {
            done += batch.len() as u64;
            let there: Vec<_> = batch.iter_mut().filter(|table| table.offset < end).collect();
            unaligned += there.iter().filter(|table| !self.geometry().is_aligned(table.offset)).count() as u64;
            if unaligned > self.clusters {
                self.not_seen(format_args!("L2 tables that are not cluster aligned are larger than the image"));
                break;
            }
            let offsets: Vec<_> = there.iter().map(|table| table.offset).collect();
            let read = self.image.read_many(&offsets, cluster_size).await?;
            for (table, bytes) in there.into_iter().zip(read) {
                let changed = self.count_table(table, &bytes)?;
                self.put_entries(table.offset, bytes, &changed).await?;
            }
            self.progress(done, total);
        }
        self.tables.list = tables;
        Ok(())
    }

    /// The entries of one table. Those that a repair changes come back, by their place in 64-bit numbers.
    fn count_table(&mut self, table: &mut Table, bytes: &Bytes) -> Result<Vec<(usize, u64)>, CheckError> {
        let step = (self.geometry().l2_entry_size() / 8) as usize;
        let (mut changed, mut next) = (Vec::new(), 0);
        for index in 0..bytes.len() / 8 / step {
            let at = index * step;
            let (raw, bits) = (entry(bytes, at), if step == 2 { entry(bytes, at + 1) } else { 0 });
            if (raw, bits) == (0, 0) {
                continue;
            }
            let bits = SubclusterBits::from_raw(bits);
            if let Some(repaired) = self.count_entry(table, (index, L2Entry::from_raw(raw), bits), &mut next)? {
                changed.push((at, repaired.raw()));
            }
        }
        Ok(changed)
    }

    /// One entry; `next` is where its data lies if it follows that of the entry before. What it is repaired to, if it is.
    #[inline]
    fn count_entry(
        &mut self,
        table: &mut Table,
        (index, entry, bits): (usize, L2Entry, SubclusterBits),
        next: &mut u64,
    ) -> Result<Option<L2Entry>, CheckError> {
        let geometry = self.geometry();
        // Bit 0 means nothing with subclusters, and nobody minds it there.
        if entry.reserved(&geometry) & !1 != 0 {
            let raw = entry.raw();
            self.corrupt(table.times, format_args!("ERROR found l2 entry with reserved bits set: {raw:x}"));
        }
        let kind = if self.has_data_file() { entry.kind_in_data_file(&geometry) } else { entry.kind(&geometry) };
        self.zero_clusters += u64::from(matches!(kind, L2Kind::Zero | L2Kind::ZeroAllocated(_)));
        match kind {
            L2Kind::Compressed(offset, len) => {
                self.count_compressed(table, (index, entry, bits), offset, len).map(|()| None)
            }
            L2Kind::Data(offset) => {
                let is_data = !geometry.is_extended() || bits.any_allocated();
                self.count_data(table, (entry, bits), (offset, is_data), next)
            }
            L2Kind::ZeroAllocated(offset) => self.count_data(table, (entry, bits), (offset, false), next),
            L2Kind::Unallocated | L2Kind::Zero => {
                if bits.any_allocated() {
                    let text = "ERROR: Unallocated cluster has non-zero subcluster allocation map";
                    self.corrupt(table.times, format_args!("{text}"));
                }
                Ok(None)
            }
        }
    }

    fn count_compressed(
        &mut self,
        table: &Table,
        (index, entry, bits): (usize, L2Entry, SubclusterBits),
        offset: u64,
        len: u64,
    ) -> Result<(), CheckError> {
        let (times, raw) = (table.times, entry.with_copied(false).raw());
        if entry.is_copied() {
            let text = "copied flag must never be set for compressed clusters";
            self.corrupt(times, format_args!("ERROR: coffset={offset:#x}: {text}"));
        }
        if self.has_data_file() {
            self.corrupt(times, format_args!("ERROR compressed cluster {index} with data file, entry={raw:#x}"));
            return Ok(());
        }
        if bits.raw() != 0 {
            let text = "with non-zero subcluster allocation bitmap";
            self.corrupt(times, format_args!("ERROR compressed cluster {index} {text}, entry={raw:#x}"));
            return Ok(());
        }
        self.report.allocated_clusters += table.active;
        self.report.compressed_clusters += table.active;
        self.report.fragmented_clusters += table.active;
        self.refer(offset, len, times)
    }

    #[inline]
    fn count_data(
        &mut self,
        table: &mut Table,
        (entry, bits): (L2Entry, SubclusterBits),
        (offset, is_data): (u64, bool),
        next: &mut u64,
    ) -> Result<Option<L2Entry>, CheckError> {
        let (geometry, times) = (self.geometry(), table.times);
        if geometry.is_extended() && bits.is_invalid() {
            let text = "Allocated cluster has corrupted subcluster allocation bitmap";
            self.corrupt(times, format_args!("ERROR offset={offset:x}: {text}"));
        }
        if !geometry.is_aligned(offset) {
            let repairs = self.repair == Repair::All && !is_data && self.may_write_table(table.offset);
            let (verb, kind) =
                (if repairs { "Repairing" } else { "ERROR" }, if is_data { "Data" } else { "Preallocated" });
            let text = "cluster is not properly aligned; L2 entry corrupted.";
            self.say(format_args!("{verb} offset={offset:x}: {kind} {text}"));
            if repairs {
                // It has no data: what it reads as does not change.
                self.report.corruptions_fixed += 1;
                return Ok(Some(if geometry.is_extended() { L2Entry::EMPTY } else { L2Entry::ZERO }));
            }
            self.report.corruptions += times;
        }
        if table.active > 0 {
            self.report.allocated_clusters += table.active;
            if *next != 0 && *next != offset {
                self.report.fragmented_clusters += table.active;
            }
            *next = offset.wrapping_add(geometry.cluster_size());
        }
        if table.active > 0 && (self.data_count(offset) == Some(1)) != entry.is_copied() {
            table.suspect = true;
        }
        if self.has_data_file() {
            return Ok(None);
        }
        self.refer(offset, geometry.cluster_size(), times)?;
        Ok(None)
    }

    /// Write the changed ones of the 64-bit numbers of the L2 table at `offset`, whose content is `bytes`.
    pub(super) async fn put_entries(
        &mut self,
        offset: u64,
        mut bytes: Bytes,
        changed: &[(usize, u64)],
    ) -> Result<(), CheckError> {
        let (Some((first, _)), Some((last, _))) = (changed.first(), changed.last()) else { return Ok(()) };
        let span = first * 8..last * 8 + 8;
        for (at, raw) in changed {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&raw.to_be_bytes());
        }
        self.wrote = true;
        self.image.write(offset + span.start as u64, &bytes[span]).await
    }
}
