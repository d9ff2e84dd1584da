//! Wrong behaviour that is known: asserted as it is, so that whoever mends it is told here.

mod support;

use block_common::{AlignedBuf, ParentKind, Perm, PermPair, Preallocation, RequestFlags};
use block_io::RootControl;
use block_testkit::{MemOptions, MemStorage, bed};
use support::{Layer, open};

// Scenario: a filter is opened above a disk, the disk grows, and then the filter is put between the disk and its users.
// They find the disk as short as it was when the filter was opened. FIXME: a node's length should follow its child's,
// or be asked anew when it gets users. `stress/churn.rs` opens a filter within the drained section because of it.
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

// Scenario: a thread that was given a node to look at makes itself an entry to it, with whatever permission it likes.
// The graph knows nothing of that: another user's refusal to share is no obstacle, and a drained section does not hold
// it back. FIXME: what can be attached should be more than what can be looked at, and stay on the main loop; this
// should not compile.
#[test]
fn whoever_sees_a_node_can_enter_it() {
    let layer = Layer::new();
    let storage = MemStorage::new(MemOptions::new(4096));
    layer.add_storage("disk", &storage);
    layer.main.run(async {
        let gs = &layer.gs;
        let disk = open(gs, "mem,storage=disk").await.expect("opens");
        let owner = gs.new_root("drive0", ParentKind::Backend, PermPair::EXCLUSIVE, &gs.main_io());
        gs.attach_root(&owner, Some(&disk)).await.expect("attaches");
        let section = gs.drain(&disk).await;
        let (seen, home) = (disk.io().clone(), gs.main_io());
        let smuggler = std::thread::spawn(move || {
            let control = RootControl::new("smuggler", &home, PermPair::EXCLUSIVE, Some(&seen));
            let mut data = AlignedBuf::zeroed(512, 512);
            data.fill(0x5a);
            bed::block_on(control.root().write(0, data.into_io(), RequestFlags::empty())).0
        });
        assert_eq!(smuggler.join().expect("does not panic"), Ok(()));
        drop(section);
        drop((owner, disk));
        gs.close_all().await.expect("closes");
    });
    assert_eq!(storage.bytes(0, 512), [0x5a; 512]);
}
