//! Front ends, their media, and what becomes of their guests' requests.

#[path = "../../block-gs/tests/common/mod.rs"]
mod common;

use block_backend::{
    Backend, BackendOptions, Device, FrontEnd, FrontEndError, FrontEndKind, FrontEndOptions, GuestAct, IoStatus,
    MediaChange, MediaError, change_medium, close_tray, eject, insert_medium, open_tray, remove_medium,
};
use block_backend_io::{AcctKind, BackendSettings};
use block_common::{IoError, OnError, Perm, Preallocation, RequestFlags};
use block_gs::Event;
use block_io::{Request, RequestKind};
use block_throttle::{Limit, LimitKind, LimitSettings, ThrottleLimits};
use common::{World, buffer, in_time, poll_once};
use std::cell::RefCell;
use std::rc::Rc;

const EIO: IoError = IoError::host(5);
const ENOSPC: IoError = IoError::host(28);

async fn front(world: &World, kind: FrontEndKind, id: &str, medium: Option<&str>) -> FrontEnd {
    make(world, FrontEndOptions::new(kind, id), medium).await.expect("a front end")
}

async fn make(world: &World, options: FrontEndOptions, medium: Option<&str>) -> Result<FrontEnd, FrontEndError> {
    let medium = medium.map(|name| world.gs.find_node(name).expect("there is a node of this name"));
    FrontEnd::add(&world.gs, &world.gs.main_io(), options, medium.as_ref()).await
}

async fn leaf(world: &World, name: &str) {
    // The monitor holds it, as a client's nodes are held.
    let node = world.add(&format!(r#"{{"driver": "leaf", "node-name": "{name}"}}"#)).await;
    world.gs.set_monitor_owned(&node, true);
}

/// A node called `a` that fails the first request of this kind.
async fn failing(world: &World, iotype: &str, errno: i32) {
    block_drivers::register_all(&world.gs);
    let node = world
        .add(&format!(
            r#"{{"driver": "blkdebug", "node-name": "a", "image": {{"driver": "null-co", "size": 1048576}},
                "inject-error": [{{"event": "none", "iotype": "{iotype}", "errno": {errno}, "once": true}}]}}"#
        ))
        .await;
    world.gs.set_monitor_owned(&node, true);
}

fn text<T>(result: Result<T, MediaError>) -> String {
    result.map(|_| ()).expect_err("this should have failed").to_string()
}

/// The world, and everything in it, goes.
async fn end(world: &World) {
    FrontEnd::remove_all(&world.gs).await;
    for name in ["a", "b"] {
        if let Ok(node) = world.gs.find_node(name) {
            world.gs.set_monitor_owned(&node, false);
        }
    }
}

// Scenario: a CD-ROM drive, as a person uses it: nothing happens to a medium behind a closed tray, and each step can be done once.
#[test]
fn a_tray_is_opened_emptied_filled_and_closed() {
    let world = World::new();
    world.run_and_close(async {
        let mut events = world.gs.take_events().expect("nobody took them");
        leaf(&world, "a").await;
        leaf(&world, "b").await;
        let cd = front(&world, FrontEndKind::Cd, "cd0", Some("a")).await;
        let (backend, io) = (cd.backend().clone(), cd.backend().io());
        let [a, b] = ["a", "b"].map(|name| world.gs.find_node(name).expect("there is one"));
        assert!(io.is_available());
        assert_eq!(text(remove_medium(&backend).await), "Tray of device 'cd0' is not open");
        assert_eq!(text(insert_medium(&world.gs, &backend, &b).await), "Tray of the device is not open");
        open_tray(&backend, false).expect("nobody has locked it");
        open_tray(&backend, false).expect("it is open");
        assert!(!io.is_available());
        assert_eq!(io.request(Request::read(0, buffer(512))).await.result, Err(IoError::NO_MEDIUM));
        assert_eq!(text(insert_medium(&world.gs, &backend, &a).await), "Node 'a' is already in use");
        assert_eq!(text(insert_medium(&world.gs, &backend, &b).await), "There already is a medium in the device");
        remove_medium(&backend).await.expect("it is open");
        remove_medium(&backend).await.expect("it is empty");
        insert_medium(&world.gs, &backend, &b).await.expect("it is empty");
        close_tray(&backend).expect("nothing is in the way");
        close_tray(&backend).expect("it is closed");
        assert_eq!(io.request(Request::read(0, buffer(512))).await.result, Ok(()));
        eject(&backend, false).await.expect("nobody has locked it");
        assert!(backend.node().is_none() && io.is_tray_open());
        change_medium(&world.gs, &backend, &a, false).await.expect("it is open and empty");
        assert!(backend.node().is_some_and(|node| node.same(&a)) && io.is_available());
        for open in [true, false, true, false] {
            let moved = Event::TrayMoved { backend: String::new(), device: "cd0".into(), open };
            assert_eq!(events.next().await, Some(moved));
        }
        drop((backend, a, b));
        drop(cd);
        end(&world).await;
    });
    world.close();
}

#[test]
fn a_guest_that_has_locked_its_medium_is_asked_for_it() {
    let world = World::new();
    world.run_and_close(async {
        leaf(&world, "a").await;
        let cd = front(&world, FrontEndKind::Cd, "cd0", Some("a")).await;
        cd.act(GuestAct::Lock).expect("it has a lock");
        let locked = "Device 'cd0' is locked and force was not specified, wait for tray to open and try again";
        assert_eq!(text(eject(cd.backend(), false).await), locked);
        assert!(cd.is_eject_requested() && cd.backend().node().is_some());
        assert!(matches!(cd.act(GuestAct::Open), Err(FrontEndError::Locked(_))));
        cd.act(GuestAct::Unlock).expect("it has a lock");
        cd.act(GuestAct::Open).expect("it is not locked");
        assert!(!cd.is_eject_requested() && cd.backend().io().is_tray_open());
        cd.act(GuestAct::Close).expect("nothing is in the way");
        cd.act(GuestAct::Lock).expect("it has a lock");
        eject(cd.backend(), true).await.expect("by force");
        assert!(cd.backend().node().is_none() && !cd.backend().io().is_medium_locked());
        drop(cd);
        end(&world).await;
    });
    world.close();
}

#[test]
fn disks_have_nothing_to_exchange_and_floppies_no_tray() {
    let world = World::new();
    world.run_and_close(async {
        leaf(&world, "a").await;
        leaf(&world, "b").await;
        let options = FrontEndOptions::new(FrontEndKind::Disk, "hd0");
        let empty = make(&world, options.clone(), None).await.expect_err("a disk is nothing without a medium");
        assert_eq!(empty.to_string(), "drive property not set");
        let hd = front(&world, FrontEndKind::Disk, "hd0", Some("a")).await;
        let twice = make(&world, options, Some("b")).await.expect_err("there is one");
        assert_eq!(twice.to_string(), "Duplicate device ID 'hd0'");
        let b = world.gs.find_node("b").expect("there is one");
        assert_eq!(text(open_tray(hd.backend(), true)), "Device 'hd0' is not removable");
        assert_eq!(text(close_tray(hd.backend())), "Device 'hd0' is not removable");
        assert_eq!(text(remove_medium(hd.backend()).await), "Device 'hd0' is not removable");
        assert_eq!(text(insert_medium(&world.gs, hd.backend(), &b).await), "Device is not removable");
        assert!(matches!(hd.act(GuestAct::Open), Err(FrontEndError::NoTray(_))));
        let fd = front(&world, FrontEndKind::Floppy, "fd0", None).await;
        let seen = Rc::new(RefCell::new(Vec::new()));
        let list = seen.clone();
        let watch = fd.backend().watch_media(move |_, change| {
            list.borrow_mut().push(match change {
                MediaChange::Inserted(node) => format!("+{}", node.name()),
                MediaChange::Removed(node) => format!("-{}", node.name()),
            });
        });
        open_tray(fd.backend(), false).expect("there is none");
        assert!(!fd.backend().io().is_tray_open());
        insert_medium(&world.gs, fd.backend(), &b).await.expect("it is empty");
        remove_medium(fd.backend()).await.expect("it needs no tray");
        drop(watch);
        insert_medium(&world.gs, fd.backend(), &b).await.expect("it is empty");
        assert_eq!(*seen.borrow(), ["+b", "-b"]);
        assert!(Backend::find_device(&world.gs, "fd0").is_some() && Backend::find_device(&world.gs, "fd1").is_none());
        drop((hd, fd, b));
        end(&world).await;
    });
    world.close();
}

fn policy(read: OnError, write: OnError) -> BackendSettings {
    BackendSettings { on_read_error: read, on_write_error: write }
}

// Scenario: the disk is full; the machine stops; somebody makes room and lets it go on. The guest notices nothing. While the request waits, a drain ends.
#[test]
fn drain_5_a_request_that_stopped_the_machine_waits_outside_and_is_made_again() {
    let world = World::new();
    world.run_and_close(async {
        let mut events = world.gs.take_events().expect("nobody took them");
        failing(&world, "write", 28).await;
        let mut options = FrontEndOptions::new(FrontEndKind::Disk, "hd0");
        options.settings = policy(OnError::Report, OnError::Stop);
        let hd = make(&world, options, Some("a")).await.expect("a front end");
        let (backend, io) = (hd.backend().clone(), hd.backend().io());
        let mut request = Box::pin(io.request(Request::write(0, buffer(512), RequestFlags::empty())));
        assert!(poll_once(&mut request).await.is_none());
        world.until("the request waits", || io.stopped() == 1).await;
        let failed = Event::IoFailed {
            backend: String::new(),
            device: Some("hd0".into()),
            node: Some("a".into()),
            is_write: true,
            error: ENOSPC,
            action: "stop",
        };
        assert_eq!(events.next().await, Some(failed));
        assert_eq!(backend.io_status(), Some(IoStatus::Nospace));
        drop(in_time(&world.gs, backend.drain()).await);
        assert!(poll_once(&mut request).await.is_none());
        backend.resume();
        assert_eq!(in_time(&world.gs, request).await.result, Ok(()));
        assert_eq!((backend.io_status(), io.stopped()), (Some(IoStatus::Ok), 0));
        let write = *io.stats().snapshot().count(AcctKind::Write);
        assert_eq!((write.operations, write.failed, write.bytes), (1, 0, 512));
        drop((backend, hd));
        end(&world).await;
    });
    world.close();
}

#[test]
fn close_1_a_request_that_waits_ends_with_its_device() {
    let world = World::new();
    world.run_and_close(async {
        failing(&world, "read", 5).await;
        let mut options = FrontEndOptions::new(FrontEndKind::Disk, "hd0");
        options.settings = policy(OnError::Stop, OnError::Stop);
        let hd = make(&world, options, Some("a")).await.expect("a front end");
        let io = hd.backend().io();
        let mut request = Box::pin(io.request(Request::read(0, buffer(512))));
        assert!(poll_once(&mut request).await.is_none());
        world.until("the request waits", || io.stopped() == 1).await;
        hd.remove(&world.gs).await;
        let done = in_time(&world.gs, request).await;
        assert_eq!((done.result, done.buf.is_some()), (Err(IoError::CLOSED), true));
        end(&world).await;
    });
    world.close();
}

#[test]
fn errors_may_be_ignored_and_mistakes_have_no_policy() {
    let world = World::new();
    world.run_and_close(async {
        failing(&world, "read", 5).await;
        let hd = front(&world, FrontEndKind::Disk, "hd0", Some("a")).await;
        let io = hd.backend().io();
        let read = || io.request(Request::read(0, buffer(512)));
        hd.backend().set_settings(policy(OnError::Ignore, OnError::Ignore));
        assert_eq!(read().await.result, Ok(()));
        assert_eq!(io.stats().snapshot().count(AcctKind::Read).failed, 1);
        assert_eq!(read().await.result, Ok(()));
        // Nobody would stop a machine for what will never succeed.
        hd.backend().set_settings(policy(OnError::Stop, OnError::Stop));
        let past = io.request(Request::read(u64::MAX - 100, buffer(512)));
        assert_eq!(in_time(&world.gs, past).await.result, Err(IoError::OUT_OF_BOUNDS));
        let counted = *io.stats().snapshot().count(AcctKind::Read);
        assert_eq!((counted.operations, counted.failed, counted.invalid), (1, 1, 1));
        assert_eq!(hd.backend().io_status(), Some(IoStatus::Ok));
        drop(hd);
        end(&world).await;
    });
    world.close();
}

#[test]
fn without_a_write_cache_writes_are_written_through() {
    let world = World::new();
    world.run_and_close(async {
        leaf(&world, "a").await;
        let mut options = FrontEndOptions::new(FrontEndKind::Disk, "hd0");
        options.write_cache = false;
        options.settings = policy(OnError::Report, OnError::Report);
        let hd = make(&world, options, Some("a")).await.expect("a front end");
        let io = hd.backend().io();
        let write = || io.request(Request::write(0, buffer(512), RequestFlags::empty()));
        world.leaf("a").fail_flush(5);
        assert_eq!(write().await.result, Err(EIO));
        io.set_write_cache(true);
        assert_eq!(write().await.result, Ok(()));
        world.leaf("a").fail_flush(0);
        assert_eq!(io.stats().snapshot().wr_highest_offset, 512);
        drop(hd);
        end(&world).await;
    });
    world.close();
}

// Scenario: two drives share one request in a minute. The second one's request waits, no drain waits for it, and it goes when the limits do.
#[test]
fn drain_5_a_request_under_limits_waits_outside() {
    let world = World::new();
    world.run_and_close(async {
        leaf(&world, "a").await;
        let hd = front(&world, FrontEndKind::Disk, "hd0", Some("a")).await;
        let (backend, io) = (hd.backend().clone(), hd.backend().io());
        let mut settings = LimitSettings::default();
        settings[LimitKind::IopsTotal] = Limit { rate: 1, ..Limit::default() };
        backend.set_limits("group", ThrottleLimits::new(settings).expect("limits"));
        assert_eq!(backend.limits().map(|group| group.name().to_owned()).as_deref(), Some("group"));
        let read = || Box::pin(io.request(Request::read(0, buffer(512))));
        let mut waiting = Vec::new();
        for mut one in (0..20).map(|_| read()) {
            if poll_once(&mut one).await.is_none() {
                waiting.push(one);
            }
        }
        world.pause().await;
        assert!(!waiting.is_empty());
        drop(in_time(&world.gs, backend.drain()).await);
        let last = waiting.last_mut().expect("they are not empty");
        assert!(poll_once(last).await.is_none(), "nothing limits them");
        backend.remove_limits();
        for one in waiting {
            assert_eq!(in_time(&world.gs, one).await.result, Ok(()));
        }
        drop((backend, hd));
        end(&world).await;
    });
    world.close();
}

// Scenario: a machine is saved through its drive into an image that keeps states, and into one that does not; then somebody opens the tray, and takes the medium.
#[test]
fn a_machines_state_is_saved_through_a_backend() {
    let (world, dir) = (World::new(), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory"));
    world.run_and_close(async {
        block_drivers::register_all(&world.gs);
        let path = dir.path().join("disk.qcow2").display().to_string();
        let new = block_drivers::NewImage::parse(&world.gs, "qcow2", &path, "size=1M").await.expect("options");
        new.create(&world.gs).await.expect("created");
        let file = format!(r#"{{"driver": "file", "filename": "{path}"}}"#);
        let image =
            world.open(&format!(r#"{{"driver": "qcow2", "node-name": "a", "file": {file}}}"#)).await.expect("it opens");
        world.gs.set_monitor_owned(&image, true);
        let hd = front(&world, FrontEndKind::Disk, "hd0", Some("a")).await;
        let io = hd.backend().io();
        let state = buffer(1024);
        state.fill(0, 1024, 7);
        let flushes = || io.root().count(RequestKind::Flush).requests;
        assert_eq!((io.save_vmstate(100, state.clone()).await, flushes()), (Ok(()), 0));
        io.set_write_cache(false);
        assert_eq!((io.save_vmstate(4096, state).await, flushes()), (Ok(()), 1));
        let back = io.load_vmstate(0, buffer(512)).await.expect("it is there");
        let mut bytes = [1; 512];
        back.copy_to_slice(0, &mut bytes);
        assert!(bytes[..100].iter().all(|byte| *byte == 0) && bytes[100..].iter().all(|byte| *byte == 7));
        // It is not the guest's disk, and no request of his.
        assert_eq!((io.root().length(), io.stats().snapshot().count(AcctKind::Write).operations), (Ok(1 << 20), 0));
        // Whoever may not write saves nothing.
        let cd = front(&world, FrontEndKind::Cd, "cd0", None).await;
        leaf(&world, "b").await;
        let (drive, b) = (cd.backend().io(), world.gs.find_node("b").expect("it is there"));
        assert_eq!(drive.save_vmstate(0, buffer(512)).await, Err(IoError::NO_MEDIUM));
        cd.backend().insert(&b).await.expect("it is empty");
        assert_eq!(drive.save_vmstate(0, buffer(512)).await, Err(IoError::NOT_PERMITTED));
        assert_eq!(drive.load_vmstate(0, buffer(512)).await.map(drop), Err(IoError::UNSUPPORTED));
        drive.eject(true);
        assert_eq!(drive.load_vmstate(0, buffer(512)).await.map(drop), Err(IoError::NO_MEDIUM));
        drop((hd, cd, b, image));
        end(&world).await;
    });
    world.close();
}

const NOTHING: [u64; 0] = [];

/// A device that notes the lengths of its medium.
struct Notes(Rc<RefCell<Vec<u64>>>);

impl Device for Notes {
    fn id(&self) -> &str {
        "notes"
    }

    fn resized(&self, length: u64) {
        self.0.borrow_mut().push(length);
    }
}

// Scenario: a disk becomes longer and shorter, through another user and through its own device, and is exchanged for another one, taken out and put back.
#[test]
fn trunc_1_a_device_hears_of_its_mediums_length() {
    let world = World::new();
    world.run_and_close(async {
        let mut events = world.gs.take_events().expect("nobody took them");
        block_drivers::register_all(&world.gs);
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let mut nodes = Vec::new();
        for (name, size) in [("a", 1 << 20), ("b", 3 << 20), ("c", 3 << 20)] {
            let path = dir.path().join(name).display().to_string();
            let new = block_drivers::NewImage::parse(&world.gs, "raw", &path, &format!("size={size}")).await;
            new.expect("options").create(&world.gs).await.expect("created");
            let file = format!(r#"{{"driver": "file", "filename": "{path}"}}"#);
            let json = format!(r#"{{"driver": "raw", "node-name": "{name}", "file": {file}}}"#);
            nodes.push(world.open(&json).await.expect("it opens"));
        }
        let seen = Rc::new(RefCell::new(Vec::new()));
        let perm = common::loose(Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE);
        let (name, home, settings) = ("drive".into(), world.gs.main_io(), BackendSettings::default());
        let drive = Backend::new(&world.gs, BackendOptions { name, perm, home, settings }).expect("a name");
        drive.attach_device(Rc::new(Notes(seen.clone()))).expect("it is the first");
        drive.insert(&nodes[0]).await.expect("it is empty");
        let told = || {
            Backend::pass_events(&world.gs);
            std::mem::take(&mut *seen.borrow_mut())
        };
        assert_eq!(told(), NOTHING);
        let other = world.root("other", &nodes[0]).await;
        other.io().truncate(2 << 20, Preallocation::Off).await.expect("it grows");
        world.until("the device hears of it", || !seen.borrow().is_empty()).await;
        assert_eq!(told(), [2 << 20]);
        // Of two changes before the main loop looks it hears of the last; of none, nothing.
        drive.io().root().truncate(1 << 20, Preallocation::Off).await.expect("it shrinks");
        drive.io().root().truncate(4 << 20, Preallocation::Off).await.expect("it grows");
        drive.io().root().truncate(4 << 20, Preallocation::Off).await.expect("it is that long");
        assert!(told().ends_with(&[4 << 20]));
        drive.io().root().refresh_length().await.expect("it is there");
        assert_eq!(told(), NOTHING);
        // Another medium, of another length, and one that is as long.
        drive.replace(&nodes[1]).await.expect("nobody minds");
        assert_eq!(told(), [3 << 20]);
        drive.replace(&nodes[2]).await.expect("nobody minds");
        assert_eq!(told(), NOTHING);
        // The old ones are nobody's any more.
        other.io().truncate(5 << 20, Preallocation::Off).await.expect("it grows");
        assert_eq!(told(), NOTHING);
        drive.remove().await.expect("it is there");
        drive.insert(&nodes[0]).await.expect("it is empty");
        assert_eq!(told(), NOTHING, "a medium that comes is told of otherwise");
        world.gs.close_root(other).await;
        let resized = |event: Option<Event>| match event {
            Some(Event::Resized { node, length }) => (node, length),
            other => panic!("{other:?}"),
        };
        assert_eq!(resized(events.next().await), ("a".into(), 2 << 20));
        drop((drive, nodes));
    });
}
