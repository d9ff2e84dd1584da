//! Dirty bitmaps by name: what they record, what is refused in the words of the storage daemon, and that they are in nobody's way.

mod common;

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{IoError, OptionReader};
use block_gs::{
    BitmapInfo, BitmapOptions, BitmapResult, DriverType, EngineControl, GraphResult, KeepError, NodeRef, OpenContext,
    Opened, RootRef,
};
use block_io::{KeptBitmap, NodeBitmap};
use block_null::{Null, NullOptions};
use common::load::Load;
use common::{World, buffer};
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

const KIB: u64 = 1 << 10;

fn refused<T>(result: BitmapResult<T>) -> String {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error.to_string(),
    }
}

fn grains(name: &str, granularity: u64) -> BitmapOptions {
    BitmapOptions { granularity: Some(granularity), ..BitmapOptions::new(name) }
}

async fn write(root: &RootRef, offset: u64, len: usize) -> Result<(), IoError> {
    root.io().write(offset, buffer(len), Default::default()).await.0
}

/// A format that keeps bitmaps, two at most, and has one from the start.
struct Keeper(Rc<RefCell<Vec<KeptBitmap>>>);

struct KeeperControl(Rc<RefCell<Vec<KeptBitmap>>>);

impl EngineControl for KeeperControl {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn kept_bitmaps(&self) -> Vec<KeptBitmap> {
        self.0.borrow().clone()
    }

    fn keep_bitmaps(&mut self, bitmaps: &[KeptBitmap]) -> Result<(), KeepError> {
        if bitmaps.len() > 2 {
            return Err(KeepError::Refused("two are enough".into()));
        }
        *self.0.borrow_mut() = bitmaps.to_vec();
        Ok(())
    }

    fn bitmap_granularity(&self) -> u64 {
        4096
    }
}

#[async_trait(?Send)]
impl DriverType for Keeper {
    fn name(&self) -> &'static str {
        "keeper"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, _options: &mut OptionReader) -> GraphResult<Opened> {
        let read_only = context.common().read_only;
        let options = NullOptions { size: 1 << 20, ..NullOptions::default() };
        let (engine, _) = Null::new(options);
        Ok(Opened { engine: Box::new(engine), control: Box::new(KeeperControl(self.0.clone())), read_only })
    }
}

#[test]
fn what_is_kept_with_the_image_is_its_drivers_business() {
    let world = World::new();
    let bits = Arc::new(NodeBitmap::try_new(1 << 20, 65536).expect("it is small"));
    let found = KeptBitmap { name: "found".into(), granularity: 65536, recording: true, bits };
    let kept = Rc::new(RefCell::new(vec![found.clone()]));
    world.gs.register(Rc::new(Keeper(kept.clone())));
    let names = || kept.borrow().iter().map(|kept| (kept.name.clone(), kept.recording)).collect::<Vec<_>>();
    let is = |name: &str, recording| (name.to_owned(), recording);
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "keeper", "node-name": "disk"}"#).await;
        assert!(world.gs.keeps_bitmaps(&disk).expect("the node is there"));
        let root = world.root("root", &disk).await;
        write(&root, 0, 512).await.expect("it writes");
        assert!(found.bits.with(|bits| bits.is_dirty(0)), "it records from the start");
        // One that is not to be kept is nobody's business.
        world.gs.add_bitmap(&disk, BitmapOptions::new("gone")).await.expect("it is new");
        let persistent = |name: &str| BitmapOptions { persistent: true, ..BitmapOptions::new(name) };
        let new = world.gs.add_bitmap(&disk, persistent("new")).await.expect("it is new");
        assert_eq!((new.info().granularity, new.info().persistent), (4096, true));
        assert_eq!(names(), [is("found", true), is("new", true)]);
        let told = "Can't make bitmap 'third' persistent in 'disk': two are enough";
        assert_eq!(refused(world.gs.add_bitmap(&disk, persistent("third")).await), told);
        assert_eq!(names(), [is("found", true), is("new", true)]);
        world.gs.disable_bitmap(&disk, "found").expect("it is there");
        world.gs.remove_bitmap(&disk, "new").expect("it is there");
        assert_eq!(names(), [is("found", false)]);
        world.gs.enable_bitmap(&disk, "found").await.expect("it is there");
        assert_eq!(names(), [is("found", true)]);
        drop(root);
        let reader = world.add(r#"{"driver": "keeper", "node-name": "reader", "read-only": true}"#).await;
        let fixed = "Bitmap 'found' is readonly and cannot be modified";
        assert_eq!(refused(world.gs.clear_bitmap(&reader, "found")), fixed);
        assert_eq!(refused(world.gs.enable_bitmap(&reader, "found").await), fixed);
        assert_eq!(refused(world.gs.disable_bitmap(&reader, "found")), fixed);
        assert_eq!(refused(world.gs.remove_bitmap(&reader, "found")), fixed);
        assert_eq!(refused(world.gs.merge_bitmaps(&reader, "found", &[])), fixed);
        let new = "Bitmap 'new' is readonly and cannot be modified";
        assert_eq!(refused(world.gs.add_bitmap(&reader, persistent("new")).await), new);
        world.gs.merge_bitmaps(&disk, "gone", &[(&disk, "gone")]).expect("one may read it");
    });
}

/// Bytes that are dirty.
fn count(world: &World, node: &NodeRef, name: &str) -> u64 {
    world.gs.bitmap(node, name).expect(name).info().count
}

#[test]
fn a_bitmap_records_what_is_written_while_it_is_enabled() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "disk"}"#).await;
        let root = world.root("root", &filter).await;
        let fine = world.gs.add_bitmap(&disk, grains("fine", 512)).await.expect("it is new");
        world.gs.add_bitmap(&disk, BitmapOptions::new("default")).await.expect("it is new");
        let off = BitmapOptions { disabled: true, ..grains("off", 4096) };
        world.gs.add_bitmap(&disk, off).await.expect("it is new");
        write(&root, 70_000, 10).await.expect("it writes");
        root.io().zero(200 * KIB, 64 * KIB, Default::default()).await.expect("it writes");
        let counts = |names: [&str; 3]| names.map(|name| count(&world, &disk, name));
        let names = ["fine", "default", "off"];
        assert_eq!(counts(names), [512 + 64 * KIB, 3 * 64 * KIB, 0]);
        world.gs.enable_bitmap(&disk, "off").await.expect("it is there");
        world.gs.enable_bitmap(&disk, "off").await.expect("it is enabled already");
        world.gs.disable_bitmap(&disk, "fine").expect("it is there");
        world.gs.disable_bitmap(&disk, "fine").expect("it is disabled already");
        write(&root, 0, 512).await.expect("it writes");
        assert_eq!(counts(names), [512 + 64 * KIB, 4 * 64 * KIB, 4 * KIB]);
        let info = |name: &str, granularity, count, recording| BitmapInfo {
            name: name.into(),
            granularity,
            count,
            recording,
            busy: false,
            persistent: false,
            inconsistent: false,
        };
        let expected = [
            info("fine", 512, 512 + 64 * KIB, false),
            info("default", 64 * KIB, 4 * 64 * KIB, true),
            info("off", 4096, 4 * KIB, true),
        ];
        assert_eq!(world.gs.bitmaps(&disk).expect("the node is there"), expected);
        fine.bits().with(|bits| {
            assert_eq!((bits.next_dirty(0, |_| true), bits.next_clean(136)), (Some(136), Some(137)));
            assert_eq!(bits.next_dirty(137, |_| true), Some(400));
        });
        world.gs.clear_bitmap(&disk, "fine").expect("it is there");
        assert_eq!(counts(names), [0, 4 * 64 * KIB, 4 * KIB]);
        world.gs.remove_bitmap(&disk, "default").expect("it is there");
        assert_eq!(refused(world.gs.bitmap(&disk, "default")), "Dirty bitmap 'default' not found");
        assert_eq!(fine.info().count, 0, "a handle may be kept");
    });
}

#[test]
fn what_is_wrong_with_a_bitmap_is_said() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let add = async |options| world.gs.add_bitmap(&disk, options).await;
        assert_eq!(refused(add(BitmapOptions::new("")).await), "Bitmap name cannot be empty");
        let long = BitmapOptions::new("x".repeat(1024));
        assert_eq!(refused(add(long).await), "Bitmap name is too long: it has 1024 bytes, and the most is 1023");
        add(BitmapOptions::new("x".repeat(1023))).await.expect("as long as may be");
        let granularity = "Granularity must be power of 2 and at least 512";
        for wrong in [0, 256, 1000, 1 << 32] {
            assert_eq!(refused(add(grains("wrong", wrong)).await), granularity);
        }
        add(grains("largest", 1 << 31)).await.expect("as large as may be");
        add(BitmapOptions::new("twice")).await.expect("it is new");
        assert_eq!(refused(add(BitmapOptions::new("twice")).await), "Bitmap already exists: twice");
        let stored = BitmapOptions { persistent: true, ..BitmapOptions::new("stored") };
        assert_eq!(refused(add(stored).await), "Can't store persistent bitmaps to disk: Operation not supported");
        let not_found = "Dirty bitmap 'no' not found";
        assert_eq!(refused(world.gs.remove_bitmap(&disk, "no")), not_found);
        assert_eq!(refused(world.gs.clear_bitmap(&disk, "no")), not_found);
        assert_eq!(refused(world.gs.enable_bitmap(&disk, "no").await), not_found);
        assert_eq!(refused(world.gs.disable_bitmap(&disk, "no")), not_found);
        let huge = world.add(r#"{"driver": "null-co", "node-name": "huge", "size": 9000000000000000000}"#).await;
        assert_eq!(
            refused(world.gs.add_bitmap(&huge, grains("fine", 512)).await),
            "Bitmap 'fine' of node 'huge' would take too much memory: choose a larger granularity"
        );
        assert_eq!(world.gs.bitmaps(&huge).expect("the node is there"), []);
    });
}

#[test]
fn bitmaps_are_merged_all_or_none() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let other = world.add(r#"{"driver": "leaf", "node-name": "other", "fast": true}"#).await;
        let small = world.add(r#"{"driver": "leaf", "node-name": "small", "size": 65536}"#).await;
        let (root, beside) = (world.root("root", &disk).await, world.root("beside", &other).await);
        for options in [grains("fine", 512), BitmapOptions::new("coarse"), grains("sum", 4096)] {
            world.gs.add_bitmap(&disk, options).await.expect("it is new");
        }
        world.gs.add_bitmap(&other, grains("there", 1024)).await.expect("it is new");
        world.gs.add_bitmap(&small, grains("small", 1024)).await.expect("it is new");
        world.gs.disable_bitmap(&disk, "sum").expect("it is there");
        write(&root, 70_000, 512).await.expect("it writes");
        write(&beside, 0, 512).await.expect("it writes");
        let sum = || count(&world, &disk, "sum");
        let merge = |target: &str, sources: &[(&NodeRef, &str)]| world.gs.merge_bitmaps(&disk, target, sources);
        let fine = (&disk, "fine");
        assert_eq!(refused(merge("sum", &[fine, (&disk, "no")])), "Dirty bitmap 'no' not found");
        assert_eq!(refused(merge("no", &[fine])), "Dirty bitmap 'no' not found");
        assert_eq!(
            refused(merge("sum", &[fine, (&small, "small")])),
            "Bitmaps are of different sizes (destination size is 1048576, source size is 65536) and can't be merged"
        );
        let lock = world.gs.bitmap(&disk, "coarse").expect("it is there").lock().expect("it is free");
        let busy = "Bitmap 'coarse' is currently in use by another operation and cannot be used";
        assert_eq!(refused(merge("sum", &[fine, (&disk, "coarse")])), busy);
        assert_eq!(refused(merge("coarse", &[fine])), busy);
        drop(lock);
        assert_eq!(sum(), 0, "nothing of those that were refused");
        merge("sum", &[]).expect("nothing to merge");
        // 70 000 lies in the second half of a chunk of 4 KiB and goes on for two of 512 bytes.
        merge("sum", &[fine, (&other, "there")]).expect("they are of one size");
        assert_eq!(sum(), 2 * 4 * KIB);
        merge("sum", &[(&disk, "coarse"), (&disk, "sum")]).expect("they are of one size");
        assert_eq!(sum(), 4 * KIB + 64 * KIB);
        merge("fine", &[(&disk, "sum")]).expect("they are of one size");
        assert_eq!(count(&world, &disk, "fine"), 4 * KIB + 64 * KIB);
    });
}

#[test]
fn a_locked_bitmap_records_and_is_left_alone() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let root = world.root("root", &disk).await;
        let bitmap = world.gs.add_bitmap(&disk, BitmapOptions::new("b")).await.expect("it is new");
        let lock = bitmap.lock().expect("it is free");
        let busy = "Bitmap 'b' is currently in use by another operation and cannot be used";
        assert_eq!(refused(bitmap.lock()), busy);
        assert_eq!(refused(world.gs.remove_bitmap(&disk, "b")), busy);
        assert_eq!(refused(world.gs.clear_bitmap(&disk, "b")), busy);
        assert_eq!(refused(world.gs.enable_bitmap(&disk, "b").await), busy);
        assert_eq!(refused(world.gs.disable_bitmap(&disk, "b")), busy);
        write(&root, 0, 512).await.expect("it writes");
        let info = lock.bitmap().info();
        assert_eq!((info.count, info.busy, info.recording), (64 * KIB, true, true));
        drop(lock);
        world.gs.clear_bitmap(&disk, "b").expect("it is free");
        // With its node it goes, whoever still holds it.
        drop(root);
        world.gs.set_monitor_owned(&disk, false);
        world.gs.close(disk.clone()).await.expect_err("it is held here");
        drop(disk);
        world.gs.settle().await.expect("it closes");
        let again = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        assert_eq!(refused(world.gs.bitmap(&again, "b")), "Dirty bitmap 'b' not found");
        drop(bitmap.lock().expect("it is free"));
    });
}

#[test]
fn bitmaps_come_and_go_under_load_and_no_request_is_lost() {
    let world = World::new();
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let (one, two) = (world.root("one", &disk).await, world.root("two", &disk).await);
        let load = Load::start(&[one.io().clone(), two.io().clone()], 2);
        for round in 0..60 {
            let seen = load.completed();
            let granularity = 512 << (round % 8);
            world.gs.add_bitmap(&disk, grains("b", granularity)).await.expect("it is new");
            world.until("it is written", || count(&world, &disk, "b") > 0).await;
            world.gs.disable_bitmap(&disk, "b").expect("it is there");
            world.gs.enable_bitmap(&disk, "b").await.expect("it is there");
            world.gs.clear_bitmap(&disk, "b").expect("it is there");
            world.gs.remove_bitmap(&disk, "b").expect("it is there");
            world.until("the load goes on", || load.completed() > seen + 20).await;
        }
        load.finish();
        drop((one, two));
    });
}
