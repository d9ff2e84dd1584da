//! Lengths of nodes that lie above one that grows and shrinks through somebody else's hands, and of bitmaps on it.

mod support;

use block_common::{AlignedBuf, IoError, ParentKind, Perm, PermPair, Preallocation, RequestFlags};
use block_gs::BitmapOptions;
use block_testkit::{MemOpKind, MemOptions, MemStorage};
use support::{Layer, open};

const GRAIN: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

fn perm() -> PermPair {
    PermPair::new(Perm::CONSISTENT_READ | Perm::RESIZE, Perm::all())
}

/// Scenario: filters are opened above a disk, the disk grows, and then they are put between the disk and its users. The guest
/// is told the new length at once.
#[test]
fn a_filter_has_the_length_of_what_it_is_inserted_above() {
    let layer = Layer::new();
    layer.add_storage("disk", &MemStorage::new(MemOptions::new(MIB)));
    layer.main.run(async {
        let gs = &layer.gs;
        let disk = open(gs, "mem,storage=disk,node-name=disk").await.expect("opens");
        let lower = open(gs, "toy-filter,file=disk,node-name=lower").await.expect("opens");
        let filter = open(gs, "toy-filter,file=lower").await.expect("opens");
        let root = gs.new_root("export0", ParentKind::Export, perm(), &gs.main_io());
        gs.attach_root(&root, Some(&disk)).await.expect("attaches");
        for len in [2 * MIB, MIB / 2] {
            root.io().truncate(len, Preallocation::Off).await.expect("changes");
            let section = gs.drain(&disk).await;
            gs.replace_node(&section, &disk, &filter).expect("inserts");
            assert_eq!((root.io().length(), lower.io().length()), (Ok(len), len));
            drop(section);
            let section = gs.drain(&filter).await;
            gs.replace_node(&section, &filter, &disk).expect("removes");
            drop(section);
        }
        drop((root, filter, lower, disk));
        gs.close_all().await.expect("closes");
    });
}

/// Scenario: two users, one through a filter, the other one grows the disk. The first one's next request past the old end
/// finds the new one; where the disk ends indeed, it is refused.
#[test]
fn a_request_past_the_end_asks_where_the_end_is() {
    let layer = Layer::new();
    layer.add_storage("disk", &MemStorage::new(MemOptions::new(MIB)));
    layer.main.run(async {
        let gs = &layer.gs;
        let disk = open(gs, "mem,storage=disk,node-name=disk").await.expect("opens");
        let filter = open(gs, "toy-filter,file=disk").await.expect("opens");
        let above = gs.new_root("above", ParentKind::Export, perm(), &gs.main_io());
        let beside = gs.new_root("beside", ParentKind::Export, perm(), &gs.main_io());
        gs.attach_root(&above, Some(&filter)).await.expect("attaches");
        gs.attach_root(&beside, Some(&disk)).await.expect("attaches");
        let read = |at| above.io().read(at, AlignedBuf::zeroed(4096, 4096).into_io());
        assert_eq!(read(MIB).await.0, Err(IoError::OUT_OF_BOUNDS));
        beside.io().truncate(2 * MIB, Preallocation::Off).await.expect("grows");
        assert_eq!(read(MIB).await.0, Ok(()));
        assert_eq!(above.io().length(), Ok(2 * MIB));
        assert_eq!(read(2 * MIB).await.0, Err(IoError::OUT_OF_BOUNDS));
        beside.io().truncate(MIB, Preallocation::Off).await.expect("shrinks");
        assert_eq!(read(MIB).await.0, Err(IoError::OUT_OF_BOUNDS));
        assert_eq!(read(MIB - 4096).await.0, Ok(()));
        drop((above, beside, filter, disk));
        gs.close_all().await.expect("closes");
    });
}

/// Scenario: a disk with two bitmaps, one of which records, shrinks and grows, and fails to grow. The bitmaps are as long as the disk
/// whatever happens, and what came and went is dirty in the one that records.
#[test]
fn trunc_1_bitmaps_follow_the_length() {
    let layer = Layer::new();
    let storage = MemStorage::new(MemOptions::new(MIB));
    layer.add_storage("disk", &storage);
    layer.main.run(async {
        let gs = &layer.gs;
        let disk = open(gs, "mem,storage=disk,node-name=disk").await.expect("opens");
        let writing = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE, Perm::all());
        let root = gs.new_root("export0", ParentKind::Export, writing, &gs.main_io());
        gs.attach_root(&root, Some(&disk)).await.expect("attaches");
        let on = gs.add_bitmap(&disk, BitmapOptions::new("on")).await.expect("is new");
        let off = BitmapOptions { disabled: true, ..BitmapOptions::new("off") };
        gs.add_bitmap(&disk, off).await.expect("is new");
        // The dirty chunks of 64 KiB, and how long it is.
        let look = |name: &str| {
            // One is told; the other is brought up to date when somebody asks for it.
            let bitmap = if name == "on" { on.clone() } else { gs.bitmap(&disk, name).expect("there") };
            bitmap.bits().with(|bits| {
                let dirty: Vec<_> = (0..bits.chunks()).filter(|chunk| bits.is_dirty(*chunk)).collect();
                (dirty, bits.length())
            })
        };
        let write = |at| root.io().write(at, AlignedBuf::zeroed(512, 512).into_io(), RequestFlags::empty());
        let truncate = |len| root.io().truncate(len, Preallocation::Off);
        write(15 * GRAIN).await.0.expect("writes");
        gs.merge_bitmaps(&disk, "off", &[(&disk, "on")]).expect("of one size");
        assert_eq!((look("on"), look("off")), ((vec![15], MIB), (vec![15], MIB)));
        truncate(14 * GRAIN + 100).await.expect("shrinks");
        assert_eq!((look("on"), look("off")), ((vec![14], 14 * GRAIN + 100), (vec![], 14 * GRAIN + 100)));
        truncate(MIB).await.expect("grows");
        assert_eq!((look("on"), look("off")), ((vec![14, 15], MIB), (vec![], MIB)));
        gs.clear_bitmap(&disk, "on").expect("there");
        storage.fail_nth(Some(MemOpKind::Truncate), 0, IoError::host(28));
        assert_eq!(truncate(2 * MIB).await, Err(IoError::host(28)));
        assert_eq!(look("on"), (vec![], MIB));
        drop((root, disk));
        gs.close_all().await.expect("closes");
    });
}
