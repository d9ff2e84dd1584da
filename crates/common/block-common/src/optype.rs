//! Kinds of operations: those that a node can be blocked for, and those that are accounted.
//!
//! Who blocks what, and the counting, is elsewhere.

use crate::{QapiEnum, qapi_enum};

qapi_enum! {
    /// Something done to a node as a whole, for which a job or a user may have blocked it.
    pub enum OpType: "operation" {
        /// Being read by a backup.
        BackupSource = "backup-source",
        /// Being written by a backup.
        BackupTarget = "backup-target",
        /// Having its medium changed.
        Change = "change",
        /// Being committed into what lies below.
        CommitSource = "commit-source",
        /// Being committed into.
        CommitTarget = "commit-target",
        /// Being moved to another I/O thread.
        Dataplane = "dataplane",
        /// Having its drive deleted.
        DriveDel = "drive-del",
        /// Having its medium ejected.
        Eject = "eject",
        /// Getting an overlay.
        ExternalSnapshot = "external-snapshot",
        /// Getting a snapshot inside the image.
        InternalSnapshot = "internal-snapshot",
        /// Losing a snapshot inside the image.
        InternalSnapshotDelete = "internal-snapshot-delete",
        /// Being read by a mirror.
        MirrorSource = "mirror-source",
        /// Being written by a mirror.
        MirrorTarget = "mirror-target",
        /// Changing length.
        Resize = "resize",
        /// Being streamed into from what lies below.
        Stream = "stream",
        /// Being replaced by a node of the same content.
        Replace = "replace",
    }
}

qapi_enum! {
    /// A kind of request, as statistics count it.
    pub enum IoType: "I/O type" {
        /// Data to the caller.
        Read = "read",
        /// Data, or zeroes, from the caller.
        Write = "write",
        /// Make durable what completed before.
        Flush = "flush",
        /// Discard.
        Unmap = "unmap",
    }
}

const _: () = assert!(<IoType as QapiEnum>::ALL.len() == IoType::COUNT);

impl IoType {
    /// How many kinds there are: the length of arrays that have an element for each.
    pub const COUNT: usize = 4;

    /// The kind's place in such an array.
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_place() {
        let places: Vec<_> = IoType::ALL.iter().map(|kind| kind.index()).collect();
        assert_eq!(places, (0..IoType::COUNT).collect::<Vec<_>>());
        assert_eq!(OpType::ALL.len(), 16);
        assert_eq!(OpType::InternalSnapshotDelete.to_string(), "internal-snapshot-delete");
    }
}
