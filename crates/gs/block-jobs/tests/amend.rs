//! A job in the shape of amend: a permission before, keys written in I/O, the permission back on every path.
//!
//! The format keeps a key in the first bytes of its file. Its node is read-only; only while an amend job has its permit may the engine write,
//! and the body cannot be made without one.

mod common;

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    AlignedBuf, ChildName, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, OptionReader,
    ParentKind, Perm, PermPair, RequestFlags, StatusExtent,
};
use block_copy::{CopyAct, CopyError, JobControl, RunError};
use block_gs::{DriverType, GlobalState, GraphResult, NoControl, OpenContext, Opened, RootRef, format_perm};
use block_io::{Driver, Edge, IoThread, IoThreadHandle, IoThreadOptions, Req, Root};
use block_jobs::{
    Cancel, Job, JobError, JobOptions, JobRegistry, JobResult, JobSetup, JobStatus, JobType, Leftover, PreparedJob,
    Start, StartedJob,
};
use block_testkit::{MemOpKind, MemStorage};
use common::{Bed, dict, run};
use std::cell::Cell;
use std::rc::Rc;

const KEY: usize = 16;
const WRITE_KEY: u64 = 1;

/// The engine: everything behind the key, and the key through an ioctl.
struct Keyed(Edge);

#[async_trait]
impl Driver for Keyed {
    fn format_name(&self) -> &'static str {
        "keyed"
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        Ok(self.0.refresh_length(req).await? - KEY as u64)
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.read(req, HostOffset(offset.0 + KEY as u64), buf).await
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::READ_ONLY)
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.flush(req).await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn ioctl(&self, req: &Req, number: u64, key: &IoBuf) -> IoResult<()> {
        assert_eq!((number, key.len()), (WRITE_KEY, KEY));
        self.0.write(req, HostOffset(0), key, RequestFlags::FUA).await
    }
}

/// The GS half. Whether keys are being written is no public flag: only a [`Permit`] sets it.
#[derive(Default)]
struct KeyedType {
    is_updating: Cell<bool>,
}

#[async_trait(?Send)]
impl DriverType for KeyedType {
    fn name(&self) -> &'static str {
        "keyed"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::IMAGE).await?;
        Ok(Opened { engine: Box::new(Keyed(file)), control: Box::new(NoControl), read_only: true })
    }

    fn child_perm(&self, role: ChildRole, above: PermPair, read_only: bool) -> PermPair {
        let PermPair { perm, shared } = format_perm(role, above, read_only);
        let more = if self.is_updating.get() { Perm::WRITE } else { Perm::empty() };
        PermPair::new(perm | more, shared)
    }
}

/// Keys may be written. Made by `Amend::pre_run` alone, and the body cannot go without.
struct Permit(());

async fn write_key(root: &Root, _permit: &Permit, key: [u8; KEY], control: &mut JobControl) -> Result<(), RunError> {
    control.pause_point().await?;
    let mut buf = AlignedBuf::zeroed(KEY, 16);
    buf.copy_from_slice(&key);
    let written = control.until_cancelled(root.ioctl(WRITE_KEY, buf.into_io())).await?;
    written.map_err(|error| CopyError { act: CopyAct::Write, offset: 0, error }.into())
}

struct Amend {
    driver: Rc<KeyedType>,
    key: [u8; KEY],
    home: IoThreadHandle,
    fails_late: bool,
}

struct Started(Taken);
struct Prepared(Taken);

/// What the job took.
struct Taken {
    driver: Rc<KeyedType>,
    root: RootRef,
}

impl Taken {
    /// The flag first, then everybody's permissions: asked for the other way round nothing would be granted.
    fn take(gs: &GlobalState, driver: &Rc<KeyedType>, root: RootRef) -> Result<(Self, Permit), (RootRef, JobError)> {
        driver.is_updating.set(true);
        match gs.set_root_perm(&root, PermPair::NONE) {
            Ok(()) => Ok((Self { driver: driver.clone(), root }, Permit(()))),
            Err(error) => {
                driver.is_updating.set(false);
                Err((root, error.into()))
            }
        }
    }
}

impl Job for Amend {
    const TYPE: JobType = JobType::Amend;
    type Started = Started;

    async fn pre_run(self, setup: JobSetup) -> JobResult<Start<Started>> {
        let gs = setup.gs();
        let node = gs.find_node("keyed")?;
        let root = setup.root(&node, PermPair::NONE, &self.home).await?;
        let (taken, permit) = match Taken::take(gs, &self.driver, root) {
            Ok(taken) => taken,
            Err((root, error)) => {
                gs.close_root(root).await;
                return Err(error);
            }
        };
        if self.fails_late {
            taken.clean(gs).await;
            return Err(JobError::Options("no such key slot".into()));
        }
        let (root, key) = (taken.root.io().clone(), self.key);
        let body = move |mut control| async move { write_key(&root, &permit, key, &mut control).await };
        Ok(Start::new(Started(taken), &self.home, body))
    }
}

impl StartedJob for Started {
    type Report = ();
    type Prepared = Prepared;
    type Left = Taken;

    async fn prepare(self, _gs: &GlobalState, (): ()) -> Result<Prepared, (Self, JobError)> {
        Ok(Prepared(self.0))
    }

    async fn abort(self, _gs: &GlobalState) -> Taken {
        self.0
    }
}

impl PreparedJob for Prepared {
    type Left = Taken;

    fn commit(self, _gs: &GlobalState) -> Taken {
        self.0
    }

    async fn abort(self, _gs: &GlobalState) -> Taken {
        self.0
    }
}

impl Leftover for Taken {
    async fn clean(self, gs: &GlobalState) {
        self.driver.is_updating.set(false);
        // Asking for less cannot be refused; detaching the root says so to everybody below.
        gs.close_root(self.root).await;
    }
}

struct Scene {
    file: MemStorage,
    driver: Rc<KeyedType>,
    home: IoThread,
}

impl Scene {
    async fn new(bed: &Bed) -> Self {
        let driver = Rc::new(KeyedType::default());
        bed.gs.register(driver.clone());
        let file = bed.add_zeroes("file", 64 << 10).await;
        let node = bed.gs.open(dict(&[("driver", "keyed"), ("node-name", "keyed"), ("file", "file")])).await;
        bed.gs.set_monitor_owned(&node.expect("it opens"), true);
        Self { file, driver, home: IoThread::spawn(IoThreadOptions::named("amend")).expect("an I/O thread") }
    }

    fn amend(&self, byte: u8) -> Amend {
        Amend { driver: self.driver.clone(), key: [byte; KEY], home: self.home.handle(), fails_late: false }
    }

    fn key(&self) -> Vec<u8> {
        self.file.bytes(0, KEY)
    }

    /// Nobody may write keys, and the graph is as it was.
    async fn check_given_back(&self, bed: &Bed, before: &str) {
        assert!(!self.driver.is_updating.get());
        assert_eq!(bed.picture().await, before);
        let root = bed.gs.new_root("sly", ParentKind::Backend, PermPair::NONE, &bed.gs.main_io());
        let node = bed.gs.find_node("keyed").expect("keyed");
        bed.gs.attach_root(&root, Some(&node)).await.expect("nobody is in the way");
        let key = AlignedBuf::zeroed(KEY, 16).into_io();
        assert_eq!(root.io().ioctl(WRITE_KEY, key).await, Err(IoError::NOT_PERMITTED));
        bed.gs.close_root(root).await;
    }
}

#[test]
fn job_4_amend_writes_with_a_permission_of_its_own_and_gives_it_back() {
    run(|bed| async move {
        let scene = Scene::new(&bed).await;
        let before = bed.picture().await;
        scene.check_given_back(&bed, &before).await;
        let job = JobRegistry::start(&bed.gs, JobOptions::new("amend"), scene.amend(7)).await.expect("it starts");
        job.ended().await.expect("a good end");
        assert_eq!(scene.key(), [7; KEY]);
        scene.check_given_back(&bed, &before).await;
        assert_eq!(bed.statuses("amend"), "created running waiting pending concluded null");
    });
}

#[test]
fn job_4_amend_gives_its_permission_back_when_it_never_starts() {
    run(|bed| async move {
        let scene = Scene::new(&bed).await;
        let before = bed.picture().await;
        // A later step of the same act fails.
        let late = Amend { fails_late: true, ..scene.amend(7) };
        let error = JobRegistry::start(&bed.gs, JobOptions::new("amend"), late).await.expect_err("it cannot begin");
        assert_eq!(error.to_string(), "no such key slot");
        scene.check_given_back(&bed, &before).await;
        // Somebody else is in the way.
        let jealous = PermPair::new(Perm::empty(), Perm::all() - Perm::WRITE);
        let other = bed.gs.new_root("jealous", ParentKind::Backend, jealous, &bed.gs.main_io());
        let file = bed.gs.find_node("file").expect("file");
        bed.gs.attach_root(&other, Some(&file)).await.expect("nobody is in the way");
        let with_other = bed.picture().await;
        let error =
            JobRegistry::start(&bed.gs, JobOptions::new("amend"), scene.amend(7)).await.expect_err("in the way");
        assert!(
            error.to_string().starts_with("Permission conflict on node 'file': permissions 'write' are both"),
            "{error}"
        );
        scene.check_given_back(&bed, &with_other).await;
        bed.gs.close_root(other).await;
        drop(file);
        // Cancelled while it waits for its turn: begun, and never run.
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let blocker = bed.gs.main().spawn(bed.gs.mutate(|_| async move { drop(released.await) }));
        let starting = bed.gs.main().spawn(JobRegistry::start(&bed.gs, JobOptions::new("amend"), scene.amend(7)));
        bed.until(|| bed.registry().job("amend").is_ok()).await;
        let job = bed.registry().job("amend").expect("listed");
        job.cancel(Cancel::Force).expect("it is created");
        release.send(()).expect("the mutation waits");
        blocker.join().await;
        starting.join().await.expect("it began");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        scene.check_given_back(&bed, &before).await;
        assert_eq!(scene.key(), [0; KEY]);
        assert_eq!(scene.file.count(MemOpKind::Write), 0);
    });
}

#[test]
fn job_4_amend_gives_its_permission_back_when_its_body_fails() {
    run(|bed| async move {
        let mut scene = Scene::new(&bed).await;
        let before = bed.picture().await;
        scene.file.fail_nth(Some(MemOpKind::Write), 0, IoError::host(28));
        let job = JobRegistry::start(&bed.gs, JobOptions::new("amend"), scene.amend(7)).await.expect("it starts");
        let error = job.ended().await.expect_err("no space");
        assert_eq!(error.to_string(), "writing the target at offset 0 failed: No space left on device");
        scene.file.clear_script();
        scene.check_given_back(&bed, &before).await;
        // Cancelled at its pause point.
        let starting = bed.gs.main().spawn(JobRegistry::start(&bed.gs, JobOptions::new("amend"), scene.amend(7)));
        bed.until(|| bed.registry().job("amend").is_ok()).await;
        let job = bed.registry().job("amend").expect("listed");
        job.pause().expect("it is created");
        starting.join().await.expect("it starts");
        job.reached(|status| status == JobStatus::Paused).await;
        job.cancel(Cancel::Force).expect("it is paused");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        scene.check_given_back(&bed, &before).await;
        // Its thread ends.
        scene.file.hold(Some(MemOpKind::Write));
        let job = JobRegistry::start(&bed.gs, JobOptions::new("amend"), scene.amend(7)).await.expect("it starts");
        scene.file.wait_held(1).await;
        scene.home = IoThread::spawn(IoThreadOptions::named("amend")).expect("an I/O thread");
        assert!(matches!(*job.ended().await.expect_err("no body"), JobError::Lost));
        scene.file.clear_script();
        scene.check_given_back(&bed, &before).await;
        assert_eq!(scene.key(), [0; KEY]);
    });
}
