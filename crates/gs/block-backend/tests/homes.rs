//! A backend's home moves, and the thread that it was on ends, while requests wait there: none is lost.

#![allow(clippy::disallowed_methods, reason = "tests make files")]

#[path = "../../block-gs/tests/common/mod.rs"]
mod common;

use block_backend::{Backend, BackendOptions};
use block_backend_io::{AcctKind, BackendIo, BackendSettings};
use block_common::{IoBuf, OnError, Perm, RequestFlags};
use block_gs::NodeRef;
use block_io::{Done, IoThread, IoThreadOptions, Request, RequestKind};
use block_throttle::{Limit, LimitKind, LimitSettings, ThrottleLimits};
use common::{World, buffer, in_time, loose, poll_once};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn thread(name: &str) -> IoThread {
    IoThread::spawn(IoThreadOptions::named(name)).expect("an I/O thread")
}

/// A file of 1 MiB in `dir`, behind a node that fails the first requests of this kind as `options` say, and a backend on `home` that stops at errors.
async fn drive(world: &World, dir: &tempfile::TempDir, home: &IoThread, fails: &str) -> Backend {
    block_drivers::register_all(&world.gs);
    let path = dir.path().join("disk");
    std::fs::write(&path, vec![0; 1 << 20]).expect("room");
    let node = world
        .open(&format!(
            r#"{{"driver": "blkdebug", "image": {{"driver": "file", "filename": "{}"}}, "inject-error": [{fails}]}}"#,
            path.display()
        ))
        .await
        .expect("it opens");
    backend(world, &node, home).await
}

async fn backend(world: &World, node: &NodeRef, home: &IoThread) -> Backend {
    let options = BackendOptions {
        name: "drive0".into(),
        perm: loose(Perm::CONSISTENT_READ | Perm::WRITE),
        home: home.handle(),
        settings: BackendSettings { on_read_error: OnError::Stop, on_write_error: OnError::Stop },
    };
    Backend::with_node(&world.gs, options, node).await.expect("nobody else is there")
}

fn filled(byte: u8) -> IoBuf {
    let buf = buffer(512);
    buf.fill(0, 512, byte);
    buf
}

fn write(at: u64, byte: u8) -> Request {
    Request::write(at, filled(byte), RequestFlags::empty())
}

async fn byte_at(io: &BackendIo, offset: u64) -> u8 {
    let done = io.root().request(Request::read(offset, buffer(512))).await;
    done.result.expect("it reads");
    let mut byte = [0];
    done.buf.expect("it comes back").copy_to_slice(0, &mut byte);
    byte[0]
}

fn one_in_a_second() -> ThrottleLimits {
    let mut settings = LimitSettings::default();
    settings[LimitKind::IopsTotal] = Limit { rate: 1, ..Limit::default() };
    ThrottleLimits::new(settings).expect("limits")
}

type Asked<'a> = Pin<Box<dyn Future<Output = Done> + 'a>>;

async fn ask<'a>(io: &'a BackendIo, request: Request) -> Asked<'a> {
    let mut asked: Asked<'a> = Box::pin(io.request(request));
    assert!(poll_once(&mut asked).await.is_none());
    asked
}

const FULL: &str = r#"{"event": "none", "iotype": "write", "errno": 28, "once": true}"#;

// Scenario: the disk is full and the machine stops. Somebody gives the disk another thread, deletes the one that it had, makes room and lets the machine go on.
#[test]
fn a_request_that_stopped_the_machine_goes_where_its_home_goes() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a directory"));
    let [first, second, third] = ["first", "second", "third"].map(thread);
    world.run_and_close(async {
        let drive = drive(&world, &dir, &first, FULL).await;
        let io = drive.io();
        let request = ask(&io, write(4096, 7)).await;
        world.until("the request waits", || io.stopped() == 1).await;
        drive.set_home(&second.handle()).await;
        drop(first);
        assert_eq!(io.stopped(), 1);
        // And once more, without having been there when it was wanted.
        drive.set_home(&third.handle()).await;
        drop(second);
        drive.resume();
        let done = in_time(&world.gs, request).await;
        assert_eq!((done.result, done.buf.is_some(), io.stopped()), (Ok(()), true, 0));
        assert_eq!(byte_at(&io, 4096).await, 7);
        let counted = *io.stats().snapshot().count(AcctKind::Write);
        assert_eq!((counted.operations, counted.failed, counted.bytes), (1, 0, 512));
        drive.close().await.expect("nobody else holds it");
    });
    drop(third);
}

// Scenario: the machine goes on before the thread is deleted: the request, on the old thread still, has to find out that it does not belong there.
#[test]
fn a_request_that_goes_on_does_so_at_home() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a directory"));
    for round in 0..40_u8 {
        let [first, second] = ["first", "second"].map(thread);
        world.run(async {
            let drive = drive(&world, &dir, &first, FULL).await;
            let io = drive.io();
            let request = ask(&io, write(0, round + 1)).await;
            world.until("the request waits", || io.stopped() == 1).await;
            drive.set_home(&second.handle()).await;
            drive.resume();
            (0..u32::from(round) * 200).for_each(|_| std::hint::spin_loop());
            drop(first);
            assert_eq!(in_time(&world.gs, request).await.result, Ok(()));
            assert_eq!(byte_at(&io, 0).await, round + 1);
            drive.close().await.expect("nobody else holds it");
            world.gs.settle().await.expect("it closes");
        });
    }
    world.close();
}

// Scenario: the same, and the medium is slow: the thread ends while the request is in flight, which would be the end of both if it were there.
#[test]
fn drain_4_a_request_that_goes_on_is_in_flight_at_home() {
    let world = World::new();
    let [first, second] = ["first", "second"].map(thread);
    world.run_and_close(async {
        block_drivers::register_all(&world.gs);
        let image = r#"{"driver": "leaf", "node-name": "slow"}"#;
        let node =
            world.open(&format!(r#"{{"driver": "blkdebug", "image": {image}, "inject-error": [{FULL}]}}"#)).await;
        let drive = backend(&world, &node.expect("it opens"), &first).await;
        let (io, leaf) = (drive.io(), world.leaf("slow"));
        let mut request = ask(&io, write(0, 1)).await;
        world.until("the request waits", || io.stopped() == 1).await;
        leaf.hold(true);
        drive.set_home(&second.handle()).await;
        drive.resume();
        world.until("the request is in the leaf", || leaf.in_flight() == 1).await;
        drop(first);
        assert!(poll_once(&mut request).await.is_none());
        leaf.hold(false);
        assert_eq!(in_time(&world.gs, request).await.result, Ok(()));
        drive.close().await.expect("nobody else holds it");
    });
    drop(second);
}

// Scenario: twenty requests of which one goes in a second, on a thread that ends. They go when the limits do.
#[test]
fn requests_under_limits_go_where_their_home_goes() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a directory"));
    let [first, second] = ["first", "second"].map(thread);
    world.run_and_close(async {
        let drive = drive(&world, &dir, &first, "").await;
        let io = drive.io();
        drive.set_limits("group", one_in_a_second());
        let ask = |i: u64| {
            let io = io.clone();
            world.gs.main().spawn(async move { io.request(write(i * 512, i as u8 + 1)).await })
        };
        let asked: Vec<_> = (0..20).map(ask).collect();
        let group = drive.limits().expect("it has some");
        world.until("all but a few wait", || group.group().waiting() >= 10).await;
        drive.set_home(&second.handle()).await;
        drop(first);
        world.until("they wait again", || group.group().waiting() >= 5).await;
        drop(group);
        drive.remove_limits();
        for one in asked {
            assert_eq!(in_time(&world.gs, one.join()).await.result, Ok(()));
        }
        for i in 0..20 {
            assert_eq!(byte_at(&io, i * 512).await, i as u8 + 1);
        }
        drive.close().await.expect("nobody else holds it");
    });
    drop(second);
}

// Scenario: requests of all kinds of callers come while the backend is drained, and its home moves meanwhile.
#[test]
fn requests_that_a_drain_holds_back_go_where_their_home_goes() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a directory"));
    let [first, second] = ["first", "second"].map(thread);
    world.run_and_close(async {
        let drive = drive(&world, &dir, &first, "").await;
        let io = drive.io();
        let drained = drive.drain().await;
        let mut guests = ask(&io, write(0, 1)).await;
        let mut direct = Box::pin(io.root().request(write(512, 2)));
        let mut length = Box::pin(io.root().refresh_length());
        assert!(poll_once(&mut direct).await.is_none() && poll_once(&mut length).await.is_none());
        let mut queue = block_io::Queue::new().expect("a queue");
        queue.submit(io.root(), write(1024, 3), 9);
        world.pause().await;
        drive.set_home(&second.handle()).await;
        drop(first);
        assert!(poll_once(&mut guests).await.is_none() && poll_once(&mut direct).await.is_none());
        drop(drained);
        assert_eq!(
            (in_time(&world.gs, guests).await.result, in_time(&world.gs, direct).await.result),
            (Ok(()), Ok(()))
        );
        assert_eq!(in_time(&world.gs, length).await, Ok(1 << 20));
        let mut done = Vec::new();
        while done.is_empty() {
            queue.wait(&mut done, None);
        }
        assert_eq!((done[0].tag, done[0].done.result), (9, Ok(())));
        drop(queue);
        for (offset, byte) in [(0, 1), (512, 2), (1024, 3)] {
            assert_eq!(byte_at(&io, offset).await, byte);
        }
        drive.close().await.expect("nobody else holds it");
    });
    drop(second);
}

// Scenario: a guest that never stops, under limits, beside one whose request fails whenever it is made; its thread is exchanged again and again, and each old one ends at
// once. Every request is answered, with what it asked for.
#[test]
fn drain_4_no_request_is_lost_when_threads_end_under_load() {
    let (world, dir) = (World::new(), tempfile::tempdir().expect("a directory"));
    let mut home = thread("home");
    world.run_and_close(async {
        let drive =
            drive(&world, &dir, &home, r#"{"event": "none", "iotype": "write", "errno": 28, "sector": 4}"#).await;
        let io = drive.io();
        let mut settings = LimitSettings::default();
        settings[LimitKind::IopsTotal] = Limit { rate: 3000, ..Limit::default() };
        drive.set_limits("group", ThrottleLimits::new(settings).expect("limits"));
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let guests: Vec<_> = (0..4_u64)
            .map(|guest| {
                let (io, stop, answered) = (io.clone(), stop.clone(), answered.clone());
                world.gs.main().spawn(async move {
                    let mut n = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let at = (guest * 64 + n % 64) * 4096;
                        let byte = (n % 250) as u8 + 1;
                        assert_eq!(io.request(write(at, byte)).await.result, Ok(()), "request {n} of guest {guest}");
                        let direct = io.root().request(Request::read(at, buffer(512))).await;
                        let mut read = [0];
                        direct.buf.expect("it comes back").copy_to_slice(0, &mut read);
                        assert_eq!((direct.result, read[0]), (Ok(()), byte));
                        answered.fetch_add(1, Ordering::Relaxed);
                        n += 1;
                    }
                })
            })
            .collect();
        // One whose sector always fails: it stops the machine over and over.
        let mut stuck = ask(&io, write(4 * 512, 99)).await;
        for round in 0..300_u32 {
            let next = thread("home");
            if round % 2 == 0 {
                drive.resume();
            }
            drive.set_home(&next.handle()).await;
            drop(std::mem::replace(&mut home, next));
            if round % 10 == 0 {
                let seen = answered.load(Ordering::Relaxed);
                world.until("the guests go on", || answered.load(Ordering::Relaxed) > seen + 8).await;
            }
        }
        stop.store(true, Ordering::Relaxed);
        for guest in guests {
            in_time(&world.gs, guest.join()).await;
        }
        world.until("it has failed again", || io.stopped() == 1).await;
        assert!(poll_once(&mut stuck).await.is_none());
        assert_eq!(io.root().count(RequestKind::Write).requests, answered.load(Ordering::Relaxed));
        let closing = drive.close();
        assert!(in_time(&world.gs, closing).await.is_ok());
        let done = in_time(&world.gs, stuck).await;
        assert_eq!((done.result, done.buf.is_some()), (Err(block_common::IoError::CLOSED), true));
    });
}

// Scenario: a device lives on its home's thread. Whoever moves its medium, or what that is joined to, is refused, unless the device would stay where it is.
#[test]
fn a_backend_that_stays_keeps_its_medium_from_moving() {
    let main = block_gs::MainLoop::new().expect("descriptors");
    let options = block_gs::GlobalOptions { io_threads: true, ..block_gs::GlobalOptions::default() };
    let gs = block_gs::GlobalState::new(&main, options).expect("an I/O thread");
    let leaves = common::drivers::register(&gs);
    let world = World { gs, main, leaves };
    world.run_and_close(async {
        let gs = &world.gs;
        gs.add_object(common::json_options(r#"{"qom-type": "iothread", "id": "io"}"#)).await.expect("a thread");
        let io = gs.io_thread("io").expect("it is there");
        let leaf = world.open(r#"{"driver": "leaf", "node-name": "leaf"}"#).await.expect("it opens");
        let above = world.open(r#"{"driver": "pass", "node-name": "above", "file": "leaf"}"#).await.expect("it opens");
        let options = BackendOptions {
            name: "drive0".into(),
            perm: loose(Perm::CONSISTENT_READ),
            home: gs.main_io(),
            settings: BackendSettings::default(),
        };
        let drive = Backend::with_node(gs, options, &above).await.expect("nobody minds");
        drive.set_home_changes(false);
        for (node, force) in [(&leaf, false), (&leaf, true), (&above, true)] {
            let refused = gs.set_node_home(node, Some(&io), force).await.expect_err("it stays");
            assert_eq!(refused.to_string(), "Cannot change iothread of active block backend");
            assert!(drive.io().root().home().same(&gs.main_io()) && gs.node_home(node).same(&gs.main_io()));
        }
        // It is where everybody else goes, and goes itself where it wants.
        gs.set_node_home(&leaf, None, false).await.expect("nobody moves");
        drive.set_home(&io.handle()).await;
        gs.set_node_home(&leaf, Some(&io), false).await.expect("the others come");
        drive.set_home_changes(true);
        gs.set_node_home(&above, None, true).await.expect("it is allowed");
        assert!(drive.io().root().home().same(&gs.main_io()));
        drop((drive, io, leaf, above));
    });
}
