//! Backends: their names, their media, what they ask of these, the device that uses them, and their end.

#[path = "../../block-gs/tests/common/mod.rs"]
mod common;

use block_backend::{Backend, BackendError, BackendOptions, NamedDevice};
use block_backend_io::{BackendIo, BackendSettings, ErrorAction};
use block_common::{IoError, OnError, OpType, Perm, PermPair, RequestFlags};
use block_gs::{Event, GlobalState, GraphError};
use block_io::{Request, RequestKind};
use common::{World, buffer, in_time, loose, poll_once};

/// A backend's options: reads and writes, shares everything.
fn options(gs: &GlobalState, name: &str) -> BackendOptions {
    let perm = loose(Perm::CONSISTENT_READ | Perm::WRITE);
    BackendOptions { name: name.into(), perm, home: gs.main_io(), settings: BackendSettings::default() }
}

fn backend(world: &World, name: &str) -> Backend {
    Backend::new(&world.gs, options(&world.gs, name)).expect("the name is free")
}

fn text<T>(result: Result<T, BackendError>) -> String {
    result.map(|_| ()).expect_err("this should have failed").to_string()
}

async fn read(io: &BackendIo) -> Result<(), IoError> {
    io.root().read(0, buffer(512)).await.0
}

#[test]
fn an_empty_backend_says_so() {
    let world = World::new();
    world.run_and_close(async {
        let backend = backend(&world, "drive0");
        let io = backend.io();
        assert!(backend.node().is_none() && !io.is_available() && !io.root().is_attached() && !io.root().is_writable());
        assert_eq!((io.name(), backend.name()), ("drive0", "drive0".into()));
        let root = io.entry().expect("the tray is closed");
        assert_eq!(root.read(0, buffer(512)).await.0, Err(IoError::NO_MEDIUM));
        assert_eq!(root.write(0, buffer(512), RequestFlags::empty()).await.0, Err(IoError::NO_MEDIUM));
        assert_eq!(root.flush().await, Err(IoError::NO_MEDIUM));
        assert_eq!(root.discard(0, 512).await, Err(IoError::NO_MEDIUM));
        assert_eq!((root.length(), root.limits().map(drop)), (Err(IoError::NO_MEDIUM), Err(IoError::NO_MEDIUM)));
        // A second removal is none.
        backend.remove().await.expect("there is nothing to remove");
        drop(backend.drain().await);
    });
}

#[test]
fn media_are_inserted_replaced_and_removed() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a", "size": 4096}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b", "size": 8192, "read-only": true}"#).await;
        let backend = backend(&world, "drive0");
        let io = backend.io();
        backend.insert(&a).await.expect("it is empty");
        assert!(backend.node().is_some_and(|node| node.same(&a)));
        assert!(io.is_available() && io.root().is_writable());
        assert_eq!((io.root().length(), read(&io).await), (Ok(4096), Ok(())));
        assert_eq!(text(backend.insert(&b).await), "There already is a medium in device 'drive0'");
        // One that it may not write.
        assert_eq!(text(backend.replace(&b).await), "Block node 'b' is read-only");
        assert_eq!(io.root().length(), Ok(4096));
        backend.set_perm(loose(Perm::CONSISTENT_READ)).expect("less is always allowed");
        backend.replace(&b).await.expect("now it only reads");
        assert_eq!((io.root().length(), io.root().is_writable()), (Ok(8192), false));
        backend.remove().await.expect("it is removed");
        assert_eq!(read(&io).await, Err(IoError::NO_MEDIUM));
        backend.insert(&a).await.expect("it is empty again");
        assert_eq!(read(&io).await, Ok(()));
        let count = io.root().count(RequestKind::Read);
        assert_eq!((count.requests, count.failed), (2, 1));
    });
}

#[test]
fn of_two_who_insert_at_the_same_time_one_is_refused() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let backend = backend(&world, "drive0");
        // Neither gets through while the backend has a request in flight, and both find it empty before that.
        let (mut first, mut second) = (Box::pin(backend.insert(&a)), Box::pin(backend.insert(&b)));
        let first = poll_once(&mut first).await;
        let second = poll_once(&mut second).await;
        let results = [first.expect("nothing is in flight"), second.expect("nothing is in flight")];
        assert!(results[0].is_ok() && matches!(results[1], Err(BackendError::Occupied(_))));

        let held = world.leaf("a");
        backend.remove().await.expect("it is removed");
        backend.insert(&a).await.expect("it is empty");
        held.hold(true);
        let io = backend.io();
        let request = world.gs.main().spawn(async move { read(&io).await });
        world.until("the request is in the leaf", || held.in_flight() == 1).await;
        let clone = backend.clone();
        let mut removing = Box::pin(clone.remove());
        assert!(poll_once(&mut removing).await.is_none());
        // By the time that it is empty, another one was first.
        let mut late = Box::pin(backend.replace(&b));
        assert!(poll_once(&mut late).await.is_none());
        held.hold(false);
        assert_eq!(request.join().await, Ok(()));
        removing.await.expect("it is removed");
        late.await.expect("nobody is in the way");
        assert_eq!(backend.node().expect("there is one").name(), "b");
    });
}

#[test]
fn names_are_unique_among_backends_and_nodes() {
    let world = World::new();
    world.run_and_close(async {
        let first = backend(&world, "drive0");
        assert_eq!(
            text(Backend::new(&world.gs, options(&world.gs, "drive0"))),
            "Device with id 'drive0' already exists"
        );
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        assert_eq!(
            text(Backend::new(&world.gs, options(&world.gs, "disk"))),
            "Device name 'disk' conflicts with an existing node name"
        );
        assert!(matches!(
            world.open(r#"{"driver": "leaf", "node-name": "drive0"}"#).await,
            Err(GraphError::NameOfDevice(_))
        ));
        // Any number without a name, who are not found by it.
        let unnamed = [backend(&world, ""), backend(&world, "")];
        assert!(Backend::find(&world.gs, "").is_none());
        let second = backend(&world, "cd1");
        let names = || Backend::all(&world.gs).iter().map(|backend| backend.name().to_string()).collect::<Vec<_>>();
        assert_eq!(names(), ["drive0", "cd1"]);
        assert!(Backend::find(&world.gs, "cd1").is_some() && Backend::find(&world.gs, "cd2").is_none());
        // A name is free when its backend is gone, and taken as long as there is a clone.
        let clone = first.clone();
        drop(first);
        assert!(Backend::new(&world.gs, options(&world.gs, "drive0")).is_err());
        drop((clone, second));
        assert!(names().is_empty());
        let _again = backend(&world, "drive0");
        drop((unnamed, node));
    });
}

#[test]
fn two_block_layers_have_backends_of_the_same_names() {
    let (one, two) = (World::new(), World::new());
    let (a, b) = (backend(&one, "drive0"), backend(&two, "drive0"));
    assert_eq!((Backend::all(&one.gs).len(), Backend::all(&two.gs).len()), (1, 1));
    drop(a);
    assert!(Backend::find(&one.gs, "drive0").is_none() && Backend::find(&two.gs, "drive0").is_some());
    drop(b);
    one.close();
    two.close();
}

#[test]
fn two_backends_on_one_node_get_along_or_do_not() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let (one, two) = (backend(&world, "one"), backend(&world, "two"));
        one.insert(&node).await.expect("nobody is there");
        two.insert(&node).await.expect("both share");
        assert_eq!((read(&one.io()).await, read(&two.io()).await), (Ok(()), Ok(())));
        // One wants to be the only writer: refused as long as the other one is there.
        let keeper = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::CONSISTENT_READ);
        let refusal = "Permission conflict on node 'disk': permissions 'write' are both required by block device 'two' \
                       (uses node 'disk' as 'root' child) and unshared by block device 'one' (uses node 'disk' as 'root' child).";
        assert_eq!(text(one.set_perm(keeper)), refusal);
        assert_eq!(one.perm(), loose(Perm::CONSISTENT_READ | Perm::WRITE));
        two.remove().await.expect("it is removed");
        one.set_perm(keeper).expect("nobody else is there");
        // And the other way round.
        assert_eq!(text(two.insert(&node).await), refusal);
        assert!(two.node().is_none());
        two.set_perm(loose(Perm::CONSISTENT_READ)).expect("it is empty");
        two.insert(&node).await.expect("a reader is welcome");
        assert_eq!(two.io().root().write(0, buffer(512), RequestFlags::empty()).await.0, Err(IoError::NOT_PERMITTED));
        assert_eq!(one.io().root().write(0, buffer(512), RequestFlags::empty()).await.0, Ok(()));
    });
}

#[test]
fn a_backend_that_is_dropped_lets_go_of_its_medium() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.open(r#"{"driver": "leaf", "node-name": "disk"}"#).await.expect("it opens");
        let exclusive = PermPair::EXCLUSIVE;
        let leaf = world.leaf("disk");
        let first = backend(&world, "first");
        first.set_perm(exclusive).expect("it is empty");
        first.insert(&node).await.expect("nobody is there");
        let device = first.io();
        drop(first);
        // The next one, at once.
        let second = backend(&world, "first");
        second.set_perm(exclusive).expect("it is empty");
        second.insert(&node).await.expect("the first one is gone by then");
        assert_eq!(read(&device).await, Err(IoError::CLOSED));
        assert_eq!(read(&second.io()).await, Ok(()));
        drop((second, node));
        world.gs.settle().await.expect("it closes");
        assert_eq!(leaf.closes(), 1);
        assert!(leaf.is_dropped(), "the device's half holds nothing but itself");
        assert!(!device.is_available());
    });
}

#[test]
fn closing_a_backend_waits_for_its_requests() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let leaf = world.leaf("disk");
        let drive = backend(&world, "drive0");
        drive.insert(&node).await.expect("it is empty");
        let io = drive.io();
        leaf.hold(true);
        let request = world.gs.main().spawn(async move { read(&io).await });
        world.until("the request is in the leaf", || leaf.in_flight() == 1).await;
        assert_eq!(text(drive.clone().close().await), "Device 'drive0' is held by somebody else");
        let mut closing = Box::pin(drive.close());
        assert!(poll_once(&mut closing).await.is_none());
        world.pause().await;
        assert!(poll_once(&mut closing).await.is_none());
        // The name is free, the permissions are not: the request is still under way.
        assert!(Backend::find(&world.gs, "drive0").is_none());
        assert_eq!(world.info(&node).parents.len(), 1);
        leaf.hold(false);
        closing.await.expect("nobody else holds it");
        assert!(world.info(&node).parents.is_empty());
        assert_eq!(request.join().await, Ok(()));
    });
}

#[test]
fn close_1_everything_is_closed_under_a_backend_that_stays() {
    let world = World::new();
    world.run(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let drive = backend(&world, "drive0");
        drive.insert(&node).await.expect("it is empty");
        drop(node);
        let io = drive.io();
        world.gs.close_all().await.expect("everything closes");
        assert!(drive.node().is_none());
        assert_eq!(read(&io).await, Err(IoError::CLOSED));
        io.eject(true);
        io.eject(false);
        assert!(io.entry().is_ok() && !io.is_available());
        drive.remove().await.expect("there is nothing to remove");
        drive.close().await.expect("nobody else holds it");
    });
    world.close();
}

// Scenario: a device must not wait for a drain. What it has in flight ends well, what comes during the drain is refused, and what comes later is carried out.
#[test]
fn drain_1_requests_are_refused_instead_of_held_back() {
    let world = World::new();
    world.run_and_close(async {
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let drive = backend(&world, "drive0");
        drive.insert(&node).await.expect("it is empty");
        drive.set_settings(BackendSettings { on_read_error: OnError::Stop, on_write_error: OnError::Stop });
        let (io, leaf) = (drive.io(), world.leaf("disk"));
        leaf.hold(true);
        let first = io.clone();
        let first = world.gs.main().spawn(async move { read(&first).await });
        world.until("the request is in the leaf", || leaf.in_flight() == 1).await;
        drive.set_refusing(true);
        let mut draining = Box::pin(drive.drain());
        assert!(poll_once(&mut draining).await.is_none());
        let guests = || io.request(Request::read(0, buffer(512)));
        let done = in_time(&world.gs, guests()).await;
        assert_eq!((done.result, done.buf.is_some(), io.stopped()), (Err(IoError::BUSY), true, 0));
        assert_eq!(in_time(&world.gs, read(&io)).await, Err(IoError::BUSY));
        assert_eq!(in_time(&world.gs, io.root().flush()).await, Err(IoError::BUSY));
        assert_eq!(in_time(&world.gs, io.root().refresh_length()).await, Err(IoError::BUSY));
        // What nobody holds back needs no refusal.
        assert!(io.root().length().is_ok());
        leaf.hold(false);
        let drained = draining.await;
        assert_eq!((first.join().await, in_time(&world.gs, guests()).await.result), (Ok(()), Err(IoError::BUSY)));
        assert_eq!(leaf.began(), leaf.ended());
        drop(drained);
        assert_eq!((read(&io).await, guests().await.result), (Ok(()), Ok(())));
        // And back to waiting.
        drive.set_refusing(false);
        let drained = drive.drain().await;
        let mut waiting = Box::pin(guests());
        assert!(poll_once(&mut waiting).await.is_none());
        world.pause().await;
        assert!(poll_once(&mut waiting).await.is_none());
        drop(drained);
        assert_eq!(in_time(&world.gs, waiting).await.result, Ok(()));
    });
}

#[test]
fn one_device_at_a_time_uses_a_backend() {
    let world = World::new();
    world.run_and_close(async {
        let drive = backend(&world, "drive0");
        drive.attach_device(NamedDevice::new("virtio0")).expect("none does");
        assert_eq!(drive.io().device_id().as_deref(), Some("virtio0"));
        assert_eq!(text(drive.attach_device(NamedDevice::new("ide0"))), "Device 'drive0' is in use");
        assert_eq!(drive.io().device_id().as_deref(), Some("virtio0"));
        drive.detach_device();
        assert_eq!(drive.io().device_id(), None);
        drive.attach_device(NamedDevice::new("ide0")).expect("none does");
    });
}

#[test]
fn the_guest_moves_its_tray_and_the_main_loop_hears_of_it() {
    let world = World::new();
    world.run_and_close(async {
        let mut events = world.gs.take_events().expect("nobody took them");
        let node = world.add(r#"{"driver": "leaf", "node-name": "disk"}"#).await;
        let drive = backend(&world, "cd0");
        drive.insert(&node).await.expect("it is empty");
        let io = drive.io();
        let guest = std::thread::spawn(move || {
            io.lock_medium(true);
            assert!(io.is_medium_locked() && io.is_available());
            io.eject(true);
            // Open is open.
            io.eject(true);
            assert!(io.is_tray_open() && !io.is_available());
            assert_eq!(io.entry().map(drop), Err(IoError::NO_MEDIUM));
            // Whoever is not the guest still gets through.
            assert!(io.root().is_attached());
            io.eject(false);
            io.lock_medium(false);
            assert!(io.entry().is_ok() && !io.is_medium_locked());
        });
        guest.join().expect("no panic");
        let moved = |open| Some(Event::TrayMoved { backend: "cd0".into(), device: String::new(), open });
        assert_eq!(events.next().await, moved(true));
        assert_eq!(events.next().await, moved(false));
        world.pause().await;
        assert_eq!(events.try_next(), None);
    });
}

#[test]
fn the_device_asks_what_to_do_about_errors() {
    let (eio, enospc) = (IoError::host(5), IoError::host(28));
    let world = World::new();
    world.run_and_close(async {
        let drive = backend(&world, "drive0");
        let io = drive.io();
        use ErrorAction::{Ignore, Report, Stop};
        let check = |read, write, expected: [ErrorAction; 4]| {
            drive.set_settings(BackendSettings { on_read_error: read, on_write_error: write });
            let seen = [(false, eio), (false, enospc), (true, eio), (true, enospc)].map(|(w, e)| io.error_action(w, e));
            assert_eq!(seen, expected, "{read:?} {write:?}");
        };
        check(OnError::Auto, OnError::Auto, [Report, Report, Report, Stop]);
        check(OnError::Report, OnError::Report, [Report; 4]);
        check(OnError::Ignore, OnError::Stop, [Ignore, Ignore, Stop, Stop]);
        check(OnError::Enospc, OnError::Enospc, [Report, Stop, Report, Stop]);
        check(OnError::Stop, OnError::Ignore, [Stop, Stop, Ignore, Ignore]);
    });
}

#[test]
fn what_the_guest_sees_is_kept_by_its_half() {
    let world = World::new();
    world.run_and_close(async {
        let io = backend(&world, "").io();
        assert_eq!((io.write_cache(), io.guest_block_size()), (true, 512));
        io.set_write_cache(false);
        io.set_guest_block_size(4096);
        let clone = io.clone();
        assert_eq!((clone.write_cache(), clone.guest_block_size()), (false, 4096));
    });
}

#[test]
fn a_medium_that_is_blocked_stays() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let drive = backend(&world, "drive0");
        assert!(drive.block_all_ops(&[], "nothing to block").is_none());
        drive.check_op(OpType::Eject).expect("there is no medium");
        drive.insert(&a).await.expect("it is empty");
        let blocker = drive.block_all_ops(&[OpType::Resize], "a job").expect("there is a medium");
        drive.check_op(OpType::Resize).expect("an exception");
        assert_eq!(text(drive.check_op(OpType::Change)), "Node 'a' is busy: a job (operation 'change')");
        assert_eq!(text(drive.remove().await), "Node 'a' is busy: a job (operation 'eject')");
        assert_eq!(text(drive.replace(&b).await), "Node 'a' is busy: a job (operation 'change')");
        assert!(drive.node().is_some_and(|node| node.same(&a)));
        drop(blocker);
        drive.replace(&b).await.expect("nothing is blocked");
        // Asked again when the wait for requests is over.
        let leaf = world.leaf("b");
        leaf.hold(true);
        let io = drive.io();
        let (slow, mut removal) = (read(&io), Box::pin(drive.remove()));
        let mut slow = Box::pin(slow);
        assert!(poll_once(&mut slow).await.is_none());
        world.until("the read is there", || leaf.in_flight() == 1).await;
        assert!(poll_once(&mut removal).await.is_none());
        let blocker = world.gs.block_op(&b, OpType::Eject, "a late job");
        leaf.hold(false);
        assert_eq!(text(removal.await), "Node 'b' is busy: a late job (operation 'eject')");
        assert_eq!(slow.await, Ok(()));
        drop(blocker);
        drive.remove().await.expect("nothing is blocked");
    });
}
