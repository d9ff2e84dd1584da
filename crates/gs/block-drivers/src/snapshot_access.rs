//! `snapshot-access`: child `file`, and no options.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, Perm, PermPair};
use block_gs::{DriverType, GraphResult, NoControl, OpenContext, Opened};
use block_snapshot_access::SnapshotAccess;

/// The snapshot-access driver.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotAccessType;

#[async_trait(?Send)]
impl DriverType for SnapshotAccessType {
    fn name(&self) -> &'static str {
        SnapshotAccess::NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::DATA | ChildRole::PRIMARY).await?;
        let open = |req| async move { SnapshotAccess::open(&req, file).await };
        let engine = context.run("Could not open the snapshot-access node", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }

    /// It reads, also before there are users: the node below is then in use, and has nobody else write its source. Who writes that node, and makes it longer or shorter,
    /// is no business of who sees another time.
    fn child_perm(&self, _role: ChildRole, _above: PermPair, _read_only: bool) -> PermPair {
        PermPair::new(Perm::CONSISTENT_READ, Perm::all())
    }
}
