//! COPIED flags: set where the count is exactly one, and nowhere else. Snapshots' tables have them as they were, and nobody asks.

use super::storage::entry;
use super::walk::Walk;
use super::{CheckError, Repair};
use block_qcow2_format::{L1Entry, L2Entry, L2Kind};
use std::collections::HashMap;

impl Walk<'_> {
    /// Compare the flags in the active tables with the counts on disk, and repair them.
    pub(super) async fn check_copied(&mut self) -> Result<(), CheckError> {
        let report = &self.report;
        let is_sound = report.check_errors == 0 && report.corruptions == 0 && report.leaks == 0;
        // By counts that are right the flags can be set right, whatever else is asked for.
        let repairs = match self.repair {
            Repair::None => false,
            Repair::Leaks => is_sound,
            Repair::All => true,
        };
        if repairs {
            // A flag says that nobody else refers to a cluster: the count that says so comes first.
            self.image.flush().await?;
        }
        // The walk knows which tables have a flag that is wrong, unless counts have changed since.
        let all = self.refcounts.changed;
        let l1 = std::mem::take(&mut self.tables.active_l1);
        let may_write_l1 = repairs && self.may_write_l1();
        let active = self.tables.list.iter().filter(|table| table.active > 0 && (all || table.suspect));
        let mut suspects: HashMap<u64, u64> = active.map(|table| (table.offset, table.active)).collect();
        let mut l1_changed = Vec::new();
        for (index, raw) in l1.into_iter().enumerate() {
            let l1_entry = L1Entry::from_raw(raw);
            let Some(table) = l1_entry.table() else { continue };
            if let Some(count) = self.count_on_disk(self.geometry().cluster(table)) {
                let copied = count == 1;
                if copied != l1_entry.is_copied() {
                    self.wrong_flag(
                        (may_write_l1, 1),
                        format_args!("L2 cluster: l1_index={index} l1_entry={raw:x} refcount={count}"),
                    );
                    l1_changed.push((index as u64, raw ^ 1 << 63));
                }
            }
            // However many entries lead to it, it is looked at once.
            if let Some(times) = suspects.remove(&table).filter(|_| table < self.image.len()) {
                self.check_copied_in(table, times, repairs).await?;
            }
        }
        if may_write_l1 {
            for (index, raw) in l1_changed {
                self.wrote = true;
                self.image.write(self.header.l1_offset + index * 8, &raw.to_be_bytes()).await?;
            }
        }
        if repairs && self.wrote { self.image.flush().await } else { Ok(()) }
    }

    /// The same for the entries of one L2 table.
    async fn check_copied_in(&mut self, table: u64, times: u64, repairs: bool) -> Result<(), CheckError> {
        let geometry = self.geometry();
        let bytes = self.image.read(table, geometry.cluster_size()).await?;
        let step = (geometry.l2_entry_size() / 8) as usize;
        let repairs = repairs && self.may_write_table(table);
        let mut changed = Vec::new();
        for at in (0..bytes.len() / 8).step_by(step) {
            let raw = entry(&bytes, at);
            let l2_entry = L2Entry::from_raw(raw);
            let (L2Kind::Data(offset) | L2Kind::ZeroAllocated(offset)) = l2_entry.kind(&geometry) else { continue };
            let Some(count) = self.data_count(offset) else { continue };
            if (count == 1) != l2_entry.is_copied() {
                self.wrong_flag((repairs, times), format_args!("data cluster: l2_entry={raw:x} refcount={count}"));
                changed.push((at, l2_entry.with_copied(count == 1).raw()));
            }
        }
        if repairs { self.put_entries(table, bytes, &changed).await } else { Ok(()) }
    }

    /// How often the cluster of guest data at `offset` is counted on disk, if that can be read. In a data file nobody shares any.
    #[inline]
    pub(super) fn data_count(&mut self, offset: u64) -> Option<u64> {
        if self.has_data_file() { Some(1) } else { self.count_on_disk(self.geometry().cluster(offset)) }
    }

    fn wrong_flag(&mut self, (repairs, times): (bool, u64), text: std::fmt::Arguments<'_>) {
        let verb = if repairs { "Repairing" } else { "ERROR" };
        self.say(format_args!("{verb} OFLAG_COPIED {text}"));
        if repairs {
            self.report.corruptions_fixed += 1;
        } else {
            self.report.corruptions += times;
        }
    }
}
