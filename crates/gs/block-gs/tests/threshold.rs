//! Write thresholds: told once, with the numbers that the storage daemon tells, and then forgotten.

mod common;

use block_common::RequestFlags;
use block_gs::{Event, Events};
use block_io::GateState;
use common::load::Load;
use common::{World, buffer};

/// The thresholds that were told of: by how much, and which.
fn told(events: &mut Events) -> Vec<(u64, u64)> {
    let mut told = Vec::new();
    while let Some(event) = events.try_next() {
        match event {
            Event::WriteThreshold { node, exceeded, threshold } if node == "disk" => told.push((exceeded, threshold)),
            other => panic!("{other:?}"),
        }
    }
    told
}

#[test]
fn the_write_that_passes_a_threshold_is_told_once() {
    let world = World::new();
    let mut events = world.gs.take_events().expect("nobody has them");
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "disk"}"#).await;
        let root = world.root("root", &filter).await;
        let is_observed = || disk.io().state().contains(GateState::TRACKED);
        let write = async |offset, len| {
            root.io().write(offset, buffer(len), RequestFlags::empty()).await.0.expect("it writes");
        };
        assert_eq!(world.gs.write_threshold(&disk).expect("the node is there"), 0);
        world.gs.set_write_threshold(&disk, 1000).await.expect("the node is there");
        assert_eq!(world.gs.write_threshold(&disk).expect("the node is there"), 1000);
        write(0, 512).await;
        write(488, 512).await;
        assert_eq!(told(&mut events), [], "up to it is not past it");
        root.io().discard(4096, 4096).await.expect("it does nothing");
        assert_eq!(root.io().read(4096, buffer(512)).await.0, Ok(()));
        assert_eq!(told(&mut events), [], "nothing is written");
        write(512, 512).await;
        write(1024, 512).await;
        assert_eq!(told(&mut events), [(24, 1000)]);
        assert_eq!(world.gs.write_threshold(&disk).expect("the node is there"), 0);
        world.until("nobody looks any more", || !is_observed()).await;
        world.gs.set_write_threshold(&disk, 1000).await.expect("the node is there");
        root.io().zero(2048, 512, RequestFlags::empty()).await.expect("it writes");
        assert_eq!(told(&mut events), [(1560, 1000)], "zeroes are written as well");
        // Another one in its place, and none.
        world.gs.set_write_threshold(&disk, 4096).await.expect("the node is there");
        world.gs.set_write_threshold(&disk, 8192).await.expect("the node is there");
        write(4096, 4096).await;
        assert_eq!(told(&mut events), []);
        world.gs.set_write_threshold(&disk, 0).await.expect("the node is there");
        assert!(!is_observed());
        write(8192, 512).await;
        assert_eq!(told(&mut events), []);
    });
}

#[test]
fn of_many_writes_one_is_told() {
    let world = World::new();
    let mut events = world.gs.take_events().expect("nobody has them");
    world.run_and_close(async {
        let disk = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let (one, two) = (world.root("one", &disk).await, world.root("two", &disk).await);
        let load = Load::start(&[one.io().clone(), two.io().clone()], 2);
        for _ in 0..50 {
            world.gs.set_write_threshold(&disk, 4096).await.expect("the node is there");
            world.until("it is passed", || world.gs.write_threshold(&disk).expect("the node is there") == 0).await;
            assert_eq!(told(&mut events).len(), 1);
        }
        load.finish();
        drop((one, two));
    });
}
