//! Points of a request's way at which something may be waiting: to make it fail, or to stop it.

use crate::qapi_enum;

qapi_enum! {
    /// A point that drivers and the core tell of, by its name in QAPI.
    pub enum DebugEvent: "debug event" {
        /// Formats: l1 update.
        L1Update = "l1_update",
        /// Formats: l1 grow alloc table.
        L1GrowAllocTable = "l1_grow_alloc_table",
        /// Formats: l1 grow write table.
        L1GrowWriteTable = "l1_grow_write_table",
        /// Formats: l1 grow activate table.
        L1GrowActivateTable = "l1_grow_activate_table",
        /// Formats: l2 load.
        L2Load = "l2_load",
        /// Formats: l2 update.
        L2Update = "l2_update",
        /// Formats: l2 update compressed.
        L2UpdateCompressed = "l2_update_compressed",
        /// Formats: l2 alloc cow read.
        L2AllocCowRead = "l2_alloc_cow_read",
        /// Formats: l2 alloc write.
        L2AllocWrite = "l2_alloc_write",
        /// A format reads guest data from its file.
        ReadAio = "read_aio",
        /// A format reads guest data from its backing file.
        ReadBackingAio = "read_backing_aio",
        /// Formats: read compressed.
        ReadCompressed = "read_compressed",
        /// A format writes guest data to its file.
        WriteAio = "write_aio",
        /// Formats: write compressed.
        WriteCompressed = "write_compressed",
        /// A machine state is read.
        VmstateLoad = "vmstate_load",
        /// A machine state is written.
        VmstateSave = "vmstate_save",
        /// Data around an allocating write is read.
        CowRead = "cow_read",
        /// Data around an allocating write is written.
        CowWrite = "cow_write",
        /// Formats: reftable load.
        ReftableLoad = "reftable_load",
        /// Formats: reftable grow.
        ReftableGrow = "reftable_grow",
        /// Formats: reftable update.
        ReftableUpdate = "reftable_update",
        /// Formats: refblock load.
        RefblockLoad = "refblock_load",
        /// Formats: refblock update.
        RefblockUpdate = "refblock_update",
        /// Formats: refblock update part.
        RefblockUpdatePart = "refblock_update_part",
        /// Formats: refblock alloc.
        RefblockAlloc = "refblock_alloc",
        /// Formats: refblock alloc hookup.
        RefblockAllocHookup = "refblock_alloc_hookup",
        /// Formats: refblock alloc write.
        RefblockAllocWrite = "refblock_alloc_write",
        /// Formats: refblock alloc write blocks.
        RefblockAllocWriteBlocks = "refblock_alloc_write_blocks",
        /// Formats: refblock alloc write table.
        RefblockAllocWriteTable = "refblock_alloc_write_table",
        /// Formats: refblock alloc switch table.
        RefblockAllocSwitchTable = "refblock_alloc_switch_table",
        /// Formats: cluster alloc.
        ClusterAlloc = "cluster_alloc",
        /// Formats: cluster alloc bytes.
        ClusterAllocBytes = "cluster_alloc_bytes",
        /// Formats: cluster free.
        ClusterFree = "cluster_free",
        /// Cached data goes to the host.
        FlushToOs = "flush_to_os",
        /// Data goes to stable storage.
        FlushToDisk = "flush_to_disk",
        /// A padded write is about to read its first block.
        PwritevRmwHead = "pwritev_rmw_head",
        /// It has read it.
        PwritevRmwAfterHead = "pwritev_rmw_after_head",
        /// A padded write is about to read its last block.
        PwritevRmwTail = "pwritev_rmw_tail",
        /// It has read it.
        PwritevRmwAfterTail = "pwritev_rmw_after_tail",
        /// A write goes to the driver.
        Pwritev = "pwritev",
        /// A zero write goes to the driver.
        PwritevZero = "pwritev_zero",
        /// A write or zero write is over.
        PwritevDone = "pwritev_done",
        /// Formats: empty image prepare.
        EmptyImagePrepare = "empty_image_prepare",
        /// Formats: l1 shrink write table.
        L1ShrinkWriteTable = "l1_shrink_write_table",
        /// Formats: l1 shrink free l2 clusters.
        L1ShrinkFreeL2Clusters = "l1_shrink_free_l2_clusters",
        /// What was copied on read is about to be written.
        CorWrite = "cor_write",
        /// Formats: cluster alloc space.
        ClusterAllocSpace = "cluster_alloc_space",
        /// Nothing: rules for it hold from the start.
        None = "none",
    }
}
