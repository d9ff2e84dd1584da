//! New reference counts, all of them, behind the end of the image: of its file, or of what is in use.
//!
//! Nothing that is in use is written to, and nothing that was: the new blocks and their table are whole and on disk before one write of the header
//! makes them the image's. Until then it is the image that it was.

use super::walk::Walk;
use super::{CheckError, MEMORY_MAX};
use block_qcow2_format::Version;
use std::collections::BTreeSet;

/// The longest reference count table, in bytes.
const TABLE_MAX: u64 = 8 << 20;
/// Where the header says where the table is, and how long.
const TABLE: usize = 48;
/// Where it says how wide counts are, from version 3 on; what is before that is all that version 2 has.
const WIDTH: usize = 96;

/// Where everything new lies, in clusters: first what was asked for, then the blocks, then the table.
struct Plan {
    first: u64,
    extra: u64,
    /// Numbers of the blocks that are needed.
    blocks: Vec<u64>,
    table_clusters: u64,
}

impl Plan {
    fn clusters(&self) -> u64 {
        self.extra + self.blocks.len() as u64 + self.table_clusters
    }

    fn first_block(&self) -> u64 {
        self.first + self.extra
    }

    fn table(&self) -> u64 {
        self.first_block() + self.blocks.len() as u64
    }
}

impl Walk<'_> {
    /// Write new reference counts for what was counted, and for `extra` new clusters. The first of those.
    pub(super) async fn rebuild_refcounts(&mut self, extra: u64) -> Result<u64, CheckError> {
        let places = self.places();
        let old = self.forget_own()?;
        let plan = self.place(places, extra).await?;
        let (geometry, cluster_bits) = (self.geometry(), self.geometry().cluster_bits());
        let end = plan.first + plan.clusters();
        for cluster in plan.first..end {
            self.counts.set(cluster, 1)?;
        }
        let mut table = vec![0; (plan.table_clusters << (cluster_bits - 3)) as usize];
        for (index, block) in plan.blocks.iter().enumerate() {
            let offset = (plan.first_block() + index as u64) << cluster_bits;
            table[*block as usize] = offset;
            let bytes = self.block(*block);
            self.image.write(offset, &bytes).await?;
        }
        let bytes: Vec<u8> = table.iter().flat_map(|offset| offset.to_be_bytes()).collect();
        let offset = plan.table() << cluster_bits;
        self.image.write(offset, &bytes).await?;
        self.image.flush().await?;
        // Offset, length and width lie in one sector.
        let clusters = plan.table_clusters as u32;
        let until = if self.header.version == Version::V2 { WIDTH } else { WIDTH + 4 };
        let mut fields = self.image.read(0, until as u64).await?;
        fields[TABLE..TABLE + 8].copy_from_slice(&offset.to_be_bytes());
        fields[TABLE + 8..TABLE + 12].copy_from_slice(&clusters.to_be_bytes());
        if until > WIDTH {
            fields[WIDTH..until].copy_from_slice(&self.header.refcount_bits.order().to_be_bytes());
        }
        self.image.write(TABLE as u64, &fields[TABLE..until]).await?;
        self.image.flush().await?;
        (self.header.refcount_table_offset, self.header.refcount_table_clusters) = (offset, clusters);
        self.clusters = self.clusters.max(geometry.clusters_for(self.image.len()));
        self.take_rebuilt(table, (plan.first_block()..end).collect());
        for (cluster, before) in old {
            let count = self.counts.get(cluster);
            if count != before {
                self.say(format_args!("Repairing cluster {cluster} refcount={before} reference={count}"));
            }
        }
        Ok(plan.first)
    }

    /// Where new clusters may begin: behind the file, or, where it cannot get longer, behind whatever is in use. As long as nothing names them,
    /// they are nobody's.
    pub(super) fn places(&self) -> [u64; 2] {
        [self.clusters, self.image_end() >> self.geometry().cluster_bits()]
    }

    /// A plan for the first of `places` that does, and the room for it.
    async fn place(&mut self, places: [u64; 2], extra: u64) -> Result<Plan, CheckError> {
        let mut result = Err(CheckError::TooLarge);
        for first in places {
            let plan = match self.plan(first, extra) {
                Ok(plan) => plan,
                Err(error) => {
                    result = Err(error);
                    continue;
                }
            };
            match self.image.grow((first + plan.clusters()) << self.geometry().cluster_bits()).await {
                Ok(()) => return Ok(plan),
                Err(error) => result = Err(error),
            }
        }
        result
    }

    /// How much of what is needed from the cluster `first` on: the new clusters need counts themselves.
    fn plan(&self, first: u64, extra: u64) -> Result<Plan, CheckError> {
        let block_bits = self.block_bits();
        let pages_bits = block_bits - self.counts.page_bits();
        let is_used = |key: &u64| self.counts.page(*key).is_some_and(|page| page.iter().any(|byte| *byte != 0));
        let used: BTreeSet<u64> = self.counts.keys().into_iter().filter(is_used).map(|key| key >> pages_bits).collect();
        let mut plan = Plan { first, extra, blocks: Vec::new(), table_clusters: 1 };
        loop {
            let before = plan.clusters();
            let last = plan.first + before - 1;
            let new = plan.first >> block_bits..=last >> block_bits;
            if new.end() - new.start() > MEMORY_MAX / 64 {
                return Err(CheckError::TooLarge);
            }
            let blocks: BTreeSet<u64> = used.iter().copied().chain(new).collect();
            let entries = blocks.last().map_or(1, |last| last + 1);
            plan.table_clusters = self.geometry().clusters_for(entries.saturating_mul(8));
            plan.blocks = blocks.into_iter().collect();
            if plan.table_clusters << self.geometry().cluster_bits() > TABLE_MAX {
                return Err(CheckError::TooLarge);
            }
            if plan.clusters() == before {
                return Ok(plan);
            }
        }
    }

    /// The bytes of a block.
    fn block(&self, block: u64) -> Vec<u8> {
        let pages_bits = self.block_bits() - self.counts.page_bits();
        let mut bytes = vec![0; self.cluster_size() as usize];
        for (at, to) in bytes.chunks_exact_mut(self.counts.page_bytes()).enumerate() {
            if let Some(page) = self.counts.page((block << pages_bits) + at as u64) {
                to.copy_from_slice(page);
            }
        }
        bytes
    }
}
