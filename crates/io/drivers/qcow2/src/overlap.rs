//! Metadata is not overwritten with anything else, whatever a damaged image says (rule qcow2-8).
//!
//! Which places of the file hold metadata is known in memory: from the header, the tables in memory, and, if snapshots are looked at, from their
//! table. Everything that is written into the file is looked up there just before; what a cluster is handed out for, when it is. A guest's writes in place,
//! which take no lock, ask a map of bits first, one for each cluster of the file or for several: where none is set, nothing is.

use crate::image::{Qcow2Error, Shared};
use crate::meta;
use crate::snapshot::SnapshotFailure;
use block_common::{IoError, IoResult};
use block_io::Req;
use block_qcow2_format::{Geometry, Header, L1Entry, Snapshot};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Bits of the map, at least and at most.
const MAP_BITS: (u64, u64) = (1 << 12, 1 << 24);
/// L2 tables of snapshots that are kept in mind at most: 16 bytes each.
const INACTIVE_MAX: usize = 4 << 20;
/// L1 tables of snapshots that are read for them at most, in bytes: what 32 of the largest take.
const INACTIVE_L1_MAX: u64 = 1 << 30;
/// L1 tables of snapshots are read so many bytes at a time.
const PIECE: u64 = 1 << 20;

/// A kind of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataKind {
    /// The header's cluster, and the header of the encryption.
    MainHeader,
    /// The L1 table of the disk.
    ActiveL1,
    /// The L2 tables of the disk.
    ActiveL2,
    /// The table of reference counts.
    RefcountTable,
    /// The blocks of reference counts.
    RefcountBlock,
    /// The table of snapshots.
    SnapshotTable,
    /// The L1 tables of snapshots.
    InactiveL1,
    /// The L2 tables of snapshots.
    InactiveL2,
    /// The directory of bitmaps, and what it leads to.
    BitmapDirectory,
}

use MetadataKind::{
    ActiveL1, ActiveL2, BitmapDirectory, InactiveL1, InactiveL2, MainHeader, RefcountBlock, RefcountTable,
    SnapshotTable,
};

impl MetadataKind {
    /// All of them, in the order in which they are looked for.
    pub const EACH: [Self; 9] = [
        MainHeader,
        ActiveL1,
        ActiveL2,
        RefcountTable,
        RefcountBlock,
        SnapshotTable,
        InactiveL1,
        InactiveL2,
        BitmapDirectory,
    ];

    /// Its name in `overlap-check.…`.
    pub const fn name(self) -> &'static str {
        match self {
            MainHeader => "main-header",
            ActiveL1 => "active-l1",
            ActiveL2 => "active-l2",
            RefcountTable => "refcount-table",
            RefcountBlock => "refcount-block",
            SnapshotTable => "snapshot-table",
            InactiveL1 => "inactive-l1",
            InactiveL2 => "inactive-l2",
            BitmapDirectory => "bitmap-directory",
        }
    }

    /// What messages call it.
    const fn text(self) -> &'static str {
        match self {
            MainHeader => "qcow2_header",
            ActiveL1 => "active L1 table",
            ActiveL2 => "active L2 table",
            RefcountTable => "refcount table",
            RefcountBlock => "refcount block",
            SnapshotTable => "snapshot table",
            InactiveL1 => "inactive L1 table",
            InactiveL2 => "inactive L2 table",
            BitmapDirectory => "bitmap directory",
        }
    }

    const fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Kinds of metadata: those that writes are checked against, `overlap-check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlapChecks(u16);

impl OverlapChecks {
    /// None.
    pub const NONE: Self = Self(0);
    /// Those that lie where the header says.
    pub const CONSTANT: Self =
        Self(MainHeader.bit() | ActiveL1.bit() | RefcountTable.bit() | SnapshotTable.bit() | BitmapDirectory.bit());
    /// Those whose places are known without reading more of the file.
    pub const CACHED: Self = Self(Self::CONSTANT.0 | ActiveL2.bit() | RefcountBlock.bit() | InactiveL1.bit());
    /// All.
    pub const ALL: Self = Self(Self::CACHED.0 | InactiveL2.bit());

    /// The set that a value of `overlap-check` or `overlap-check.template` names.
    pub fn from_template(name: &str) -> Option<Self> {
        match name {
            "none" => Some(Self::NONE),
            "constant" => Some(Self::CONSTANT),
            "cached" => Some(Self::CACHED),
            "all" => Some(Self::ALL),
            _ => None,
        }
    }

    /// The same with this kind, or without it.
    #[must_use]
    pub const fn with(self, kind: MetadataKind, is_on: bool) -> Self {
        Self(if is_on { self.0 | kind.bit() } else { self.0 & !kind.bit() })
    }

    /// Whether the kind is one of them.
    pub const fn has(self, kind: MetadataKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// Whether the table of snapshots has to be read for them.
    pub(crate) fn needs_snapshots(self) -> bool {
        [SnapshotTable, InactiveL1, InactiveL2].into_iter().any(|kind| self.has(kind))
    }

    /// Those that are not in `others`.
    const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }
}

impl From<MetadataKind> for OverlapChecks {
    fn from(kind: MetadataKind) -> Self {
        Self(kind.bit())
    }
}

impl Default for OverlapChecks {
    fn default() -> Self {
        Self::CACHED
    }
}

/// What a cluster is used for: how many entries of the L1 table name it, and whether it is a block of counts or a bitmap's.
#[derive(Clone, Copy, Debug, Default)]
struct Uses(u32);

impl Uses {
    const BLOCK: u32 = 1 << 30;
    const BITMAP: u32 = 1 << 31;
    /// An L1 table has fewer entries than this.
    const TABLES: u32 = Self::BLOCK - 1;
}

#[derive(Debug, Default)]
struct Places {
    clusters: HashMap<u64, Uses>,
    /// Bytes of the snapshot table.
    snapshots_len: u64,
    /// Where the L1 tables of snapshots lie, in order, none over another.
    inactive_l1: Vec<Range<u64>>,
    /// Clusters of the L2 tables of snapshots.
    inactive_l2: HashSet<u64>,
}

/// Where metadata lies.
#[derive(Debug)]
pub(crate) struct Overlaps {
    checks: AtomicU16,
    /// A bit is set where a cluster with this number, modulo the number of bits, may be metadata.
    map: Box<[AtomicU64]>,
    cluster_bits: u32,
    places: Mutex<Places>,
}

impl Overlaps {
    /// For an image of which nothing is known yet, of about so many clusters.
    pub(crate) fn new(geometry: &Geometry, clusters: u64, checks: OverlapChecks) -> Self {
        let bits = clusters.clamp(MAP_BITS.0, MAP_BITS.1).next_power_of_two();
        Self {
            checks: AtomicU16::new(checks.0),
            map: std::iter::repeat_with(AtomicU64::default).take((bits / 64) as usize).collect(),
            cluster_bits: geometry.cluster_bits(),
            places: Mutex::default(),
        }
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn checks(&self) -> OverlapChecks {
        OverlapChecks(self.checks.load(Ordering::Relaxed))
    }

    /// Clusters that a place in the file touches.
    fn clusters(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len);
        if len == 0 { 0..0 } else { offset >> self.cluster_bits..((end - 1) >> self.cluster_bits) + 1 }
    }

    #[inline]
    fn bit(&self, cluster: u64) -> (&AtomicU64, u64) {
        let bit = cluster & (self.map_bits() - 1);
        (&self.map[(bit / 64) as usize], 1 << (bit % 64))
    }

    /// Whether there may be metadata in a place. `false` is certain.
    #[inline]
    pub(crate) fn may_touch(&self, offset: u64, len: u64) -> bool {
        self.clusters(offset, len).any(|cluster| {
            let (word, bit) = self.bit(cluster);
            word.load(Ordering::Acquire) & bit != 0
        })
    }

    fn map_bits(&self) -> u64 {
        self.map.len() as u64 * 64
    }

    fn mark_everything(&self) {
        self.map.iter().for_each(|word| word.store(u64::MAX, Ordering::Release));
    }

    fn mark(&self, kind: MetadataKind, clusters: Range<u64>) {
        if !self.checks().has(kind) {
            return;
        }
        if clusters.end - clusters.start >= self.map_bits() {
            return self.mark_everything();
        }
        for cluster in clusters {
            let (word, bit) = self.bit(cluster);
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Nothing is known any more, and these are the kinds that are checked from now on. Nobody writes.
    fn restart(&self, checks: OverlapChecks) {
        self.checks.store(checks.0, Ordering::Relaxed);
        self.map.iter().for_each(|word| word.store(0, Ordering::Release));
        *self.places() = Places::default();
    }

    /// There is an L2 table at `offset`, for one entry of the L1 table.
    pub(crate) fn add_table(&self, offset: u64) {
        let cluster = offset >> self.cluster_bits;
        self.places().clusters.entry(cluster).or_default().0 += 1;
        self.mark(ActiveL2, cluster..cluster + 1);
    }

    /// An entry of the L1 table does not name the table at `offset` any more.
    pub(crate) fn remove_table(&self, offset: u64) {
        let mut places = self.places();
        let cluster = offset >> self.cluster_bits;
        if let Some(uses) = places.clusters.get_mut(&cluster).filter(|uses| uses.0 & Uses::TABLES > 0) {
            uses.0 -= 1;
            if uses.0 == 0 {
                places.clusters.remove(&cluster);
            }
        }
    }

    /// There is a block of reference counts at `offset`.
    pub(crate) fn add_block(&self, offset: u64) {
        let cluster = offset >> self.cluster_bits;
        self.places().clusters.entry(cluster).or_default().0 |= Uses::BLOCK;
        self.mark(RefcountBlock, cluster..cluster + 1);
    }

    /// These clusters are bitmaps'.
    pub(crate) fn add_bitmaps(&self, clusters: impl IntoIterator<Item = u64>) {
        for cluster in clusters {
            self.places().clusters.entry(cluster).or_default().0 |= Uses::BITMAP;
            self.mark(BitmapDirectory, cluster..cluster + 1);
        }
    }

    /// The header says from now on where these tables are.
    pub(crate) fn mark_header(&self, header: &Header) {
        let cluster = 1 << self.cluster_bits;
        self.mark(MainHeader, 0..1);
        if let Some((offset, len)) = header.crypto {
            self.mark(MainHeader, self.clusters(offset, len));
        }
        self.mark(ActiveL1, self.clusters(header.l1_offset, u64::from(header.l1_size) * 8));
        let table = u64::from(header.refcount_table_clusters) * cluster;
        self.mark(RefcountTable, self.clusters(header.refcount_table_offset, table));
        if let Some(bitmaps) = &header.bitmaps {
            self.mark(BitmapDirectory, self.clusters(bitmaps.directory_offset, bitmaps.directory_size));
        }
    }

    /// What of `checks` lies in a place, if anything does.
    fn find(&self, header: &Header, checks: OverlapChecks, offset: u64, len: u64) -> Option<MetadataKind> {
        let end = offset.saturating_add(len);
        let overlaps = |at: u64, bytes: u64| bytes > 0 && at < end && offset < at.saturating_add(bytes);
        let places = self.places();
        let is_used = |bits: u32| {
            let uses = |cluster| places.clusters.get(&cluster).is_some_and(|uses| uses.0 & bits != 0);
            self.clusters(offset, len).any(uses)
        };
        let found = |kind: MetadataKind| match kind {
            MainHeader => {
                overlaps(0, 1 << self.cluster_bits) || header.crypto.is_some_and(|(at, bytes)| overlaps(at, bytes))
            }
            ActiveL1 => overlaps(header.l1_offset, u64::from(header.l1_size) * 8),
            ActiveL2 => is_used(Uses::TABLES),
            RefcountTable => {
                overlaps(header.refcount_table_offset, u64::from(header.refcount_table_clusters) << self.cluster_bits)
            }
            RefcountBlock => is_used(Uses::BLOCK),
            SnapshotTable => header.snapshots > 0 && overlaps(header.snapshots_offset, places.snapshots_len),
            InactiveL1 => {
                let first = places.inactive_l1.partition_point(|table| table.end <= offset);
                places.inactive_l1.get(first).is_some_and(|table| table.start < end)
            }
            InactiveL2 => self.clusters(offset, len).any(|cluster| places.inactive_l2.contains(&cluster)),
            BitmapDirectory => {
                let directory = header.bitmaps.as_ref();
                is_used(Uses::BITMAP)
                    || directory.is_some_and(|directory| overlaps(directory.directory_offset, directory.directory_size))
            }
        };
        MetadataKind::EACH.into_iter().find(|kind| checks.has(*kind) && found(*kind))
    }
}

/// Ranges in order, put together where they touch.
fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

impl Shared {
    /// What a write to a place of the file would overwrite that it is checked against, beside what is its `own`.
    pub(crate) fn overlap(&self, offset: u64, len: u64, own: OverlapChecks) -> Option<MetadataKind> {
        let checks = self.overlaps.checks().without(own);
        if checks == OverlapChecks::NONE || !self.overlaps.may_touch(offset, len) {
            return None;
        }
        self.overlaps.find(&self.header(), checks, offset, len)
    }

    /// Let nobody write who would overwrite metadata.
    ///
    /// # Errors
    /// It would be overwritten; the image is known to be corrupt then.
    pub(crate) async fn guard(&self, req: &Req, offset: u64, len: u64, own: impl Into<OverlapChecks>) -> IoResult<()> {
        match self.overlap(offset, len, own.into()) {
            None => Ok(()),
            Some(kind) => Err(self.overlapping(req, kind).await),
        }
    }

    /// A write would overwrite metadata of this kind.
    pub(crate) async fn overlapping(&self, req: &Req, kind: MetadataKind) -> IoError {
        let what = format!("Preventing invalid write on metadata (overlaps with {})", kind.text());
        self.corrupt(req, what).await
    }

    /// As [`Shared::guard`], for a guest's data. In a data file there is nothing else.
    pub(crate) async fn guard_data(&self, req: &Req, offset: u64, len: u64) -> IoResult<()> {
        if self.data.is_some() { Ok(()) } else { self.guard(req, offset, len, OverlapChecks::NONE).await }
    }

    /// Find out where metadata lies, to check writes against `checks`: the L1 table and blocks of counts are given, the rest is in memory or is read. Nobody
    /// writes meanwhile. Bitmaps are added when they are claimed.
    pub(crate) async fn find_metadata(
        &self,
        req: &Req,
        checks: OverlapChecks,
        blocks: impl Iterator<Item = u64>,
    ) -> Result<(), Qcow2Error> {
        self.overlaps.restart(checks);
        let header = self.header().clone();
        self.overlaps.mark_header(&header);
        let tables = self.l1.load_full();
        let tables = tables.iter().map(|entry| L1Entry::from_raw(entry.load(Ordering::SeqCst)));
        tables.filter_map(L1Entry::table).for_each(|table| self.overlaps.add_table(table));
        blocks.for_each(|block| self.overlaps.add_block(block));
        let failed = |failure: SnapshotFailure| Qcow2Error::Read {
            what: "snapshots",
            error: IoError::host(failure.errno().raw()),
        };
        self.find_inactive(req).await.map_err(failed)
    }

    /// Find out where snapshots have theirs. Nobody writes meanwhile.
    pub(crate) async fn find_inactive(&self, req: &Req) -> Result<(), SnapshotFailure> {
        let checks = self.overlaps.checks();
        {
            let mut places = self.overlaps.places();
            places.snapshots_len = 0;
            places.inactive_l1.clear();
            places.inactive_l2.clear();
        }
        if !checks.needs_snapshots() {
            return Ok(());
        }
        let snapshots = self.read_snapshots(req).await?;
        let len = snapshots.iter().map(|snapshot| snapshot.to_bytes().len() as u64).sum();
        let table = |snapshot: &Snapshot| {
            let bytes = (u64::from(snapshot.l1_size) * 8).min(Geometry::L1_BYTES_MAX);
            snapshot.l1_offset..snapshot.l1_offset.saturating_add(bytes)
        };
        let l1 = merged(snapshots.iter().map(table).collect());
        let l2 = if checks.has(InactiveL2) { self.tables_in(req, &l1).await? } else { HashSet::new() };
        self.overlaps.mark(SnapshotTable, self.overlaps.clusters(self.header().snapshots_offset, len));
        let clusters = |table: &Range<u64>| self.overlaps.clusters(table.start, table.end - table.start);
        // An image that claims more tables than it can have is not worth the time.
        if l1.iter().map(|table| clusters(table).end - clusters(table).start).sum::<u64>() >= self.overlaps.map_bits() {
            self.overlaps.mark_everything();
        } else {
            l1.iter().for_each(|table| self.overlaps.mark(InactiveL1, clusters(table)));
        }
        l2.iter().for_each(|cluster| self.overlaps.mark(InactiveL2, *cluster..*cluster + 1));
        let mut places = self.overlaps.places();
        (places.snapshots_len, places.inactive_l1, places.inactive_l2) = (len, l1, l2);
        Ok(())
    }

    /// The clusters of the L2 tables that L1 tables in these places name. What the file does not have is read as little as what is there twice (rule trust-3).
    async fn tables_in(&self, req: &Req, l1: &[Range<u64>]) -> Result<HashSet<u64>, SnapshotFailure> {
        let file_len = self.file.length(req)?;
        let there = l1.iter().map(|table| table.end.min(file_len).saturating_sub(table.start)).sum::<u64>();
        if there > INACTIVE_L1_MAX {
            return Err(SnapshotFailure::Table);
        }
        let mut found = HashSet::new();
        for table in l1 {
            let mut at = table.start;
            while at < table.end.min(file_len) {
                let len = (table.end - at).min(PIECE);
                let entries = meta::read_table(req, &self.file, at, (len / 8) as usize).await?;
                let tables = entries.into_iter().filter_map(|entry| L1Entry::from_raw(entry).table());
                found.extend(tables.map(|offset| self.geometry.cluster(offset)));
                if found.len() > INACTIVE_MAX {
                    return Err(SnapshotFailure::Table);
                }
                at += len.max(8);
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_the_fields() {
        let named = |name| OverlapChecks::from_template(name).expect("a template");
        let kinds = |checks: OverlapChecks| MetadataKind::EACH.into_iter().filter(|kind| checks.has(*kind)).count();
        assert_eq!(["none", "constant", "cached", "all"].map(|name| kinds(named(name))), [0, 5, 8, 9]);
        assert_eq!(OverlapChecks::default(), named("cached"));
        assert_eq!(OverlapChecks::from_template("some"), None);
        let one = OverlapChecks::NONE.with(InactiveL2, true);
        assert!(one.has(InactiveL2) && !one.has(InactiveL1) && one.with(InactiveL2, false) == OverlapChecks::NONE);
        assert_eq!(OverlapChecks::CACHED.with(InactiveL2, true), OverlapChecks::ALL);
    }

    #[test]
    fn places_that_touch_are_one() {
        assert_eq!(merged(vec![8..16, 100..100, 40..50, 0..8, 12..20, 45..46]), [0..20, 40..50]);
    }

    #[test]
    fn trust_3_absurd_places_cost_no_more_than_the_map() {
        let geometry = Geometry::new(9, false).expect("a geometry");
        let overlaps = Overlaps::new(&geometry, u64::MAX, OverlapChecks::ALL);
        assert_eq!(overlaps.map.len() * 64, MAP_BITS.1 as usize);
        assert!(!overlaps.may_touch(1 << 40, 1 << 20));
        overlaps.mark(InactiveL1, overlaps.clusters(0, u64::MAX));
        assert!(overlaps.may_touch(1 << 40, 1));
        overlaps.restart(OverlapChecks::NONE);
        overlaps.add_table(512);
        assert!(!overlaps.may_touch(512, 512), "what is not checked is not looked for");
    }
}
