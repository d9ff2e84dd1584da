//! Backends under load from two threads: media come and go, homes move, and no request is lost.

#[path = "../../block-gs/tests/common/mod.rs"]
mod common;

use block_backend::{Backend, BackendOptions};
use block_backend_io::BackendSettings;
use block_common::{IoError, Perm};
use block_io::{IoThread, IoThreadOptions};
use common::load::Load;
use common::{World, loose};
use std::time::Duration;

fn backend(world: &World, name: &str) -> Backend {
    let perm = loose(Perm::CONSISTENT_READ | Perm::WRITE);
    let settings = BackendSettings::default();
    let options = BackendOptions { name: name.into(), perm, home: world.gs.main_io(), settings };
    Backend::new(&world.gs, options).expect("the name is free")
}

#[test]
fn media_are_replaced_under_load_and_the_old_ones_close() {
    let world = World::new();
    world.run_and_close(async {
        let drive = backend(&world, "drive0");
        let first = world.open(r#"{"driver": "leaf", "node-name": "m0", "fast": true}"#).await.expect("it opens");
        drive.insert(&first).await.expect("it is empty");
        drop(first);
        let load = Load::start(&[drive.io().root().clone()], 2);
        for round in 1..150 {
            let json = format!(r#"{{"driver": "leaf", "node-name": "m{round}", "fast": {}}}"#, round % 3 > 0);
            let next = world.open(&json).await.expect("it opens");
            let old = world.leaf(drive.node().expect("there is one").name());
            drive.replace(&next).await.expect("nobody is in the way");
            let seen = old.began();
            world.gs.settle().await.expect("the old one closes");
            assert_eq!((old.began(), old.ended(), old.closes()), (seen, seen, 1));
            if round % 10 == 0 {
                let seen = load.completed();
                world.until("the load goes on", || load.completed() > seen + 20).await;
            }
        }
        load.finish();
        drop(drive);
    });
}

#[test]
fn media_are_removed_and_inserted_under_load() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let drive = backend(&world, "drive0");
        let load = Load::start(&[drive.io().root().clone()], 2);
        for round in 0..150 {
            drive.insert(&node).await.expect("it is empty");
            if round % 30 == 0 {
                world.until("requests find the medium", || world.leaf("disk").ended() > round).await;
            }
            drive.remove().await.expect("it is removed");
            assert_eq!(world.leaf("disk").in_flight(), 0, "a request is left on the medium");
        }
        let seen = load.completed();
        world.until("requests find no medium", || load.completed() > seen + 100).await;
        let outcome = load.stop();
        assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
        let errors: Vec<_> = outcome.failed.keys().copied().collect();
        assert_eq!(errors, [IoError::NO_MEDIUM.errno().raw()]);
        assert!(world.leaf("disk").ended() > 0);
    });
}

#[test]
fn homes_move_under_load() {
    let world = World::new();
    let threads: Vec<_> =
        (0..2).map(|i| IoThread::spawn(IoThreadOptions::named(format!("home{i}"))).expect("an I/O thread")).collect();
    world.run_and_close(async {
        // Slow, so that each request runs on the home.
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let drive = backend(&world, "drive0");
        drive.insert(&node).await.expect("it is empty");
        let load = Load::start(&[drive.io().root().clone()], 2);
        for round in 0..200 {
            let home = if round % 3 == 2 { world.gs.main_io() } else { threads[round % 3].handle() };
            drive.set_home(&home).await;
            assert!(drive.io().root().home().same(&home));
            if round % 20 == 0 {
                let seen = load.completed();
                world.until("the load goes on", || load.completed() > seen + 20).await;
            }
        }
        load.finish();
    });
    drop(threads);
}

#[test]
fn the_device_goes_on_while_its_backend_is_drained_and_closed() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk", "fast": true}"#).await;
        let drive = backend(&world, "drive0");
        drive.insert(&node).await.expect("it is empty");
        let load = Load::start(&[drive.io().root().clone()], 2);
        world.until("the load is there", || load.completed() > 100).await;
        for _ in 0..50 {
            let guard = drive.drain().await;
            let seen = world.leaf("disk").began();
            world.gs.main().sleep(Duration::from_micros(200)).await;
            assert_eq!(world.leaf("disk").began(), seen);
            drop(guard);
        }
        drive.close().await.expect("nobody else holds it");
        let outcome = load.stop();
        assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
        assert!(outcome.failed.keys().all(|errno| *errno == IoError::CLOSED.errno().raw()), "{:?}", outcome.failed);
    });
}
