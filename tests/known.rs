//! Wrong behaviour that is known: asserted as it is, so that whoever mends it is told here.

mod support;

use block_common::{ParentKind, Perm, PermPair, Preallocation};
use block_testkit::{MemOptions, MemStorage};
use support::{Layer, open};

// Scenario: a filter is opened above a disk, the disk grows, and then the filter is put between the disk and its users.
// They find the disk as short as it was when the filter was opened.
// FIXME: a node's length should follow its child's, or be asked anew when it gets users. `stress/churn.rs` opens a filter
// within the drained section because of it.
#[test]
fn a_filter_keeps_the_length_that_its_child_had() {
    let layer = Layer::new();
    layer.add_storage("disk", &MemStorage::new(MemOptions::new(1 << 20)));
    layer.main.run(async {
        let gs = &layer.gs;
        let disk = open(gs, "mem,storage=disk,node-name=disk").await.expect("opens");
        let filter = open(gs, "toy-filter,file=disk").await.expect("opens");
        let perm = PermPair::new(Perm::CONSISTENT_READ | Perm::RESIZE, Perm::all());
        let root = gs.new_root("export0", ParentKind::Export, perm, &gs.main_io());
        gs.attach_root(&root, Some(&disk)).await.expect("attaches");
        root.io().truncate(2 << 20, Preallocation::Off).await.expect("grows");
        let section = gs.drain(&disk).await;
        gs.replace_node(&section, &disk, &filter).expect("inserts");
        drop(section);
        assert_eq!(root.io().length(), Ok(1 << 20));
        assert_eq!(root.io().refresh_length().await, Ok(2 << 20));
        drop((root, filter, disk));
        gs.close_all().await.expect("closes");
    });
}
