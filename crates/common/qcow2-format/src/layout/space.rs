//! Who has which cluster of a new image: first fit from a cursor, with reference count blocks and a table that grow beside what they count.
//!
//! The format leaves open where clusters lie. This is the order of the field's tools, found by comparing what they write, so
//! that images can be compared byte for byte.

use super::LayoutError;
use crate::{Geometry, RefcountBits};
use std::collections::BTreeMap;
use std::ops::Range;

/// Entries of the largest reference count table, which has 8 MiB.
const TABLE_MAX: u64 = (8 << 20) / 8;

/// Clusters of an image in the making. All numbers are clusters, unless they say otherwise.
#[derive(Clone, Debug)]
pub(super) struct Space {
    /// Counts of a block.
    counts: u64,
    /// Table entries of a cluster.
    entries: u64,
    /// What is in use: starts and ends.
    used: BTreeMap<u64, u64>,
    /// Where each reference count block lies; zero is nowhere.
    blocks: Vec<u64>,
    /// The reference count table.
    table: Range<u64>,
    /// Where the next search begins.
    cursor: u64,
}

/// A table that another one took over from: where it lies, and its entries as it leaves them.
pub(super) type Left = (u64, Vec<u64>);

impl Space {
    /// A header, a table and a block, in this order.
    pub(super) fn new(geometry: &Geometry, refcount: RefcountBits) -> Self {
        Self {
            counts: 1 << refcount.block_bits(geometry.cluster_bits()),
            entries: geometry.cluster_size() / 8,
            used: BTreeMap::from([(0, 3)]),
            blocks: vec![2],
            table: 1..2,
            cursor: 0,
        }
    }

    /// The reference count table.
    pub(super) fn table(&self) -> Range<u64> {
        self.table.clone()
    }

    /// Where each block lies, from the first on; zero is nowhere.
    pub(super) fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The cluster behind the last one in use.
    pub(super) fn end(&self) -> u64 {
        self.used.last_key_value().map_or(0, |(_, end)| *end)
    }

    /// What is in use of the clusters that the block at `index` counts, as ranges of its counts.
    pub(super) fn counted(&self, index: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let (first, last) = (index * self.counts, (index + 1) * self.counts);
        let before = self.used.range(..=first).next_back();
        let inside = self.used.range(first + 1..last);
        before.into_iter().chain(inside).filter_map(move |(start, end)| {
            let (start, end) = ((*start).max(first), (*end).min(last));
            (start < end).then(|| start - first..end - first)
        })
    }

    /// Give away `n` clusters in a row. Tables that had to move meanwhile are added to `left`.
    pub(super) fn take(&mut self, n: u64, left: &mut Vec<Left>) -> Result<u64, LayoutError> {
        loop {
            let at = self.search(n);
            if self.count(at, n, left)? {
                return Ok(at);
            }
        }
    }

    /// Give away `n` clusters behind all others, with every block that they and `more` others will need, and a table for just
    /// these. The old table is free then.
    pub(super) fn take_at_end(&mut self, n: u64, more: u64, left: &mut Vec<Left>) -> Result<u64, LayoutError> {
        let start = self.end();
        let count = n.checked_add(more).ok_or(LayoutError::SizeTooBig)?;
        self.move_table(start, count, None, left)?;
        let at = self.end();
        self.mark(at, n);
        Ok(at)
    }

    /// The first `n` free clusters in a row at the cursor or behind it, which moves to their end.
    fn search(&mut self, n: u64) -> u64 {
        let mut at = self.cursor;
        if let Some((_, end)) = self.used.range(..=at).next_back() {
            at = at.max(*end);
        }
        for (start, end) in self.used.range(at..) {
            if start - at >= n {
                break;
            }
            at = *end;
        }
        self.cursor = at + n;
        at
    }

    /// Count `n` clusters from `at` on as used. `false` when a block had to be made first: then a place is to be looked for anew.
    fn count(&mut self, at: u64, n: u64, left: &mut Vec<Left>) -> Result<bool, LayoutError> {
        let missing = (at / self.counts..=(at + n - 1) / self.counts).find(|index| self.block(*index) == 0);
        if let Some(index) = missing {
            self.make_block(index, left)?;
            self.cursor = self.cursor.min(at);
            return Ok(false);
        }
        self.mark(at, n);
        Ok(true)
    }

    fn block(&self, index: u64) -> u64 {
        usize::try_from(index).ok().and_then(|index| self.blocks.get(index)).copied().unwrap_or(0)
    }

    fn set_block(&mut self, index: u64, at: u64) -> Result<(), LayoutError> {
        if index >= TABLE_MAX {
            return Err(LayoutError::SizeTooBig);
        }
        let index = index as usize;
        if self.blocks.len() <= index {
            self.blocks.resize(index + 1, 0);
        }
        self.blocks[index] = at;
        Ok(())
    }

    /// Make the block at `index`, which may count itself.
    fn make_block(&mut self, index: u64, left: &mut Vec<Left>) -> Result<(), LayoutError> {
        let at = self.search(1);
        let own = at / self.counts;
        if own == index {
            self.mark(at, 1);
        } else if !self.count(at, 1, left)? {
            return Ok(());
        }
        if index < (self.table.end - self.table.start) * self.entries {
            return self.set_block(index, at);
        }
        let start = (index.max(own) + 1) * self.counts;
        self.move_table(start, 0, Some((index, at)), left)
    }

    /// Put a new table, and the blocks that count it and `count` clusters behind it, at `start`. With a block that did not fit into
    /// the old table the new one gets half as much again.
    fn move_table(
        &mut self,
        start: u64,
        count: u64,
        block: Option<(u64, u64)>,
        left: &mut Vec<Left>,
    ) -> Result<(), LayoutError> {
        let clusters = start.checked_add(count).ok_or(LayoutError::SizeTooBig)?;
        // As many blocks as count everything, themselves and a table for them included.
        let mut blocks = 0;
        loop {
            let with_them = clusters + blocks + blocks.div_ceil(self.entries);
            let needed = with_them.div_ceil(self.counts);
            if needed > TABLE_MAX {
                return Err(LayoutError::SizeTooBig);
            }
            if needed == blocks {
                break;
            }
            blocks = needed;
        }
        let entries = if block.is_some() { (blocks * 3).div_ceil(2) } else { blocks };
        let table = entries.div_ceil(self.entries);
        if table * self.entries > TABLE_MAX {
            return Err(LayoutError::SizeTooBig);
        }
        let old = self.table.clone();
        let old_len = ((old.end - old.start) * self.entries) as usize;
        let mut old_entries = self.blocks.clone();
        old_entries.resize(old_len, 0);
        if let Some((index, at)) = block {
            self.set_block(index, at)?;
        }
        let mut at = start;
        for index in start / self.counts..blocks {
            if self.block(index) == 0 {
                self.set_block(index, at)?;
                self.mark(at, 1);
                at += 1;
            }
        }
        self.mark(at, table);
        self.table = at..at + table;
        self.unmark(old.start, old.end);
        left.push((old.start, old_entries));
        Ok(())
    }

    fn mark(&mut self, at: u64, n: u64) {
        let (mut start, mut end) = (at, at + n);
        if n == 0 {
            return;
        }
        if let Some((before, before_end)) = self.used.range(..start).next_back()
            && *before_end == start
        {
            start = *before;
        }
        if let Some(after_end) = self.used.remove(&end) {
            end = after_end;
        }
        self.used.insert(start, end);
    }

    fn unmark(&mut self, from: u64, to: u64) {
        if let Some((start, end)) = self.used.range(..=from).next_back().map(|(start, end)| (*start, *end)) {
            self.used.remove(&start);
            if start < from {
                self.used.insert(start, from);
            }
            if to < end {
                self.used.insert(to, end);
            }
        }
        self.cursor = self.cursor.min(from);
    }
}
