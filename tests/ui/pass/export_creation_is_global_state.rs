// Creating an export looks nodes up, makes an entry, takes permissions and sets a home thread: on the main loop. It was
// once marked as running elsewhere. Its signature settles that; what it returns for the data path goes anywhere.
// (Review: a false alarm. It takes RESIZE here, once, so that the data path may truncate: see `as-device`.)

use crate::support::{Layer, open};
use block_common::{IoResult, ParentKind, Perm, PermPair, Preallocation};
use block_gs::{GlobalState, GraphResult, RootRef};
use block_io::{IoThreadHandle, Root};
use block_testkit::{MemOptions, MemStorage, bed};

/// The export's global-state half.
struct FuseExport {
    root: RootRef,
}

impl FuseExport {
    async fn create(gs: &GlobalState, node: &str, writable: bool, home: &IoThreadHandle) -> GraphResult<Self> {
        let node = gs.find_node(node)?;
        let writing = if writable { Perm::WRITE | Perm::RESIZE } else { Perm::empty() };
        let root = gs.new_root(
            "export0",
            ParentKind::Export,
            PermPair::new(Perm::CONSISTENT_READ | writing, Perm::all()),
            home,
        );
        gs.attach_root(&root, Some(&node)).await?;
        Ok(Self { root })
    }

    fn data_path(&self) -> Root {
        self.root.io().clone()
    }
}

async fn setattr_size(export: Root, len: u64) -> IoResult<()> {
    export.truncate(len, Preallocation::Off).await
}

#[test]
fn an_export_is_created_on_the_main_loop_and_truncates_elsewhere() {
    let (layer, thread) = (Layer::new(), bed::io_thread(true));
    let storage = MemStorage::new(MemOptions::new(1 << 20));
    layer.add_storage("disk", &storage);
    layer.main.run(async {
        let gs = &layer.gs;
        let node = open(gs, "driver=mem,storage=disk,node-name=disk").await.expect("opens");
        let export = FuseExport::create(gs, "disk", true, &thread.handle()).await.expect("creates");
        let reader = FuseExport::create(gs, "disk", false, &thread.handle()).await.expect("creates");
        let truncated = thread.handle().run(setattr_size(export.data_path(), 2 << 20));
        assert_eq!(truncated.await, Some(Ok(())));
        let refused = thread.handle().run(setattr_size(reader.data_path(), 1 << 20));
        assert!(refused.await.is_some_and(|result| result.is_err()));
        drop((export, reader, node));
        gs.close_all().await.expect("closes");
    });
    assert_eq!(storage.len(), 2 << 20);
}
