//! A block layer with storage in memory, and a throttle group `g` of ten requests a second, whose clock stands still.

use async_trait::async_trait;
use block_common::options::{DriverKind, Value};
use block_common::{AlignedBuf, IoBuf, IoError, OptionReader, Options, ParentKind, Perm, PermPair, RequestFlags};
use block_drivers::{NewImage, register_all};
use block_gs::{
    DriverType, GlobalOptions, GlobalState, GraphResult, JoinHandle, LeftOut, MainLoop, NoControl, NodeRef, ObjectText,
    OpenContext, Opened, RootRef,
};
use block_testkit::bed::join_all;
use block_testkit::{MemOptions, MemStorage};
use block_throttle::{Direction, Limit, LimitKind, LimitSettings, ManualClock, ThrottleGroup, ThrottleLimits};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// How long a test waits before it calls itself hung.
const PATIENCE: Duration = Duration::from_secs(30);

type Storages = Rc<RefCell<BTreeMap<String, MemStorage>>>;

/// The driver `mem`: the storage called as the node is.
struct MemType(Storages);

#[async_trait(?Send)]
impl DriverType for MemType {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, _options: &mut OptionReader) -> GraphResult<Opened> {
        let engine = self.0.borrow()[&context.node_name()].driver();
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

pub(crate) struct Bed {
    pub(crate) gs: GlobalState,
    pub(crate) group: ThrottleGroup,
    pub(crate) clock: ManualClock,
    storages: Storages,
}

/// Ten requests a second, and a million bytes of one request.
fn ten() -> ThrottleLimits {
    let mut settings = LimitSettings::default();
    settings[LimitKind::IopsTotal] = Limit { rate: 10, ..Limit::default() };
    settings.iops_size = 1 << 20;
    ThrottleLimits::new(settings).expect("they go together")
}

/// What `qom-set` is given to have no limits.
pub(crate) fn none() -> Value {
    let options = Options::parse_json(r#"{"l": {"iops-total": 0, "iops-size": 0}}"#).expect("options");
    options.lookup("l").expect("it stands there").clone()
}

pub(crate) fn buf(len: usize) -> IoBuf {
    AlignedBuf::zeroed(len, 4096).into_io()
}

/// Whether a stranger's request of so many millions of bytes may go.
pub(crate) fn asks(group: &ThrottleGroup, millions: u64) -> bool {
    group.member().try_admit(Direction::Read, millions << 20)
}

pub(crate) fn run(test: impl AsyncFnOnce(Rc<Bed>)) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    let storages = Storages::default();
    gs.register(Rc::new(MemType(storages.clone())));
    let clock = ManualClock::new();
    let group = ThrottleGroup::with_clock(ten(), clock.clone());
    gs.add_throttle_group("g", group.clone()).expect("it is new");
    let bed = Rc::new(Bed { gs: gs.clone(), group, clock, storages });
    main.run(async {
        let hung = gs.main().spawn({
            let gs = gs.clone();
            async move {
                gs.main().sleep(PATIENCE).await;
                eprintln!("a test hangs: {:#?}", gs.nodes());
                std::process::abort();
            }
        });
        test(bed).await;
        gs.close_all().await.expect("nobody holds a node");
        drop(hung);
    });
}

impl Bed {
    /// The limits that the group began with.
    pub(crate) fn limited(&self) {
        self.group.set_limits(ten());
    }

    /// Fill the group's buckets: for a day or two, unless those who waited have filled them.
    pub(crate) fn full(&self) {
        self.limited();
        let _ = asks(&self.group, 1_000_000);
    }

    pub(crate) async fn add_group(&self, id: &str, limits: &str) {
        let text = format!("throttle-group,id={id},limits.{limits}");
        let Ok(ObjectText::Make(options)) = ObjectText::parse(&text) else { panic!("{text}") };
        self.gs.add_object(options).await.expect("a group");
    }

    /// Storage of a MiB, and a node over it, both called `name`.
    pub(crate) async fn mem(&self, name: &str) -> NodeRef {
        self.storages.borrow_mut().insert(name.into(), MemStorage::new(MemOptions::new(1 << 20)));
        self.add(&format!(r#"{{"driver": "mem", "node-name": "{name}"}}"#)).await
    }

    pub(crate) fn storage(&self, name: &str) -> MemStorage {
        self.storages.borrow()[name].clone()
    }

    /// Storage with an empty qcow2 image of a MiB, and a node over it.
    pub(crate) async fn image(&self, name: &str) -> NodeRef {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("image");
        let path = path.to_str().expect("UTF-8");
        let image = NewImage::parse(&self.gs, "qcow2", path, "size=1M").await.expect("it makes sense");
        image.create(&self.gs).await.expect("it is made");
        #[allow(clippy::disallowed_methods, reason = "a test's own file")]
        let bytes = std::fs::read(path).expect("it is there");
        let storage = MemStorage::with_content(MemOptions::new(0), bytes);
        self.storages.borrow_mut().insert(name.into(), storage);
        self.add(&format!(r#"{{"driver": "mem", "node-name": "{name}"}}"#)).await
    }

    pub(crate) async fn add(&self, json: &str) -> NodeRef {
        let node = self.gs.open(Options::parse_json(json).expect("options")).await.expect(json);
        self.gs.set_monitor_owned(&node, true);
        node
    }

    pub(crate) async fn reopen(&self, node: &NodeRef, json: &str) -> GraphResult<()> {
        self.gs.reopen(node, Options::parse_json(json).expect("options"), LeftOut::Stays).await
    }

    /// A root with all permissions that shares all, leading to `node`.
    pub(crate) async fn root(&self, name: &str, node: &NodeRef) -> RootRef {
        self.root_with(name, node, PermPair::new(Perm::all(), Perm::all())).await
    }

    pub(crate) async fn root_with(&self, name: &str, node: &NodeRef, perm: PermPair) -> RootRef {
        let root = self.gs.new_root(name, ParentKind::Backend, perm, &self.gs.main_io());
        self.gs.attach_root(&root, Some(node)).await.expect("the root attaches");
        root
    }

    /// Five requests, under way as soon as this returns and gone whatever becomes of it.
    pub(crate) fn requests(&self, root: &RootRef) -> JoinHandle<Vec<Result<(), IoError>>> {
        let root = root.io().clone();
        let each = move |kind| {
            let root = root.clone();
            let none = RequestFlags::empty();
            async move {
                match kind {
                    0 => root.read(0, buf(4096)).await.0,
                    1 => root.write(4096, buf(4096), none).await.0,
                    2 => root.zero(8192, 4096, none).await,
                    3 => root.read(16_384, buf(4096)).await.0,
                    _ => root.write(32_768, buf(512), RequestFlags::FUA).await.0,
                }
            }
        };
        self.gs.main().spawn(join_all((0..5).map(each).collect::<Vec<_>>()))
    }

    pub(crate) fn read(&self, root: &RootRef) -> JoinHandle<Result<(), IoError>> {
        let root = root.io().clone();
        self.gs.main().spawn(async move { root.read(0, buf(4096)).await.0 })
    }

    /// Let other tasks, and other threads, go on for a while.
    pub(crate) async fn pause(&self) {
        self.gs.main().sleep(Duration::from_millis(5)).await;
    }

    /// Wait until `done`, however long this machine takes.
    pub(crate) async fn until(&self, done: impl Fn() -> bool) {
        while !done() {
            self.gs.main().sleep(Duration::from_micros(200)).await;
        }
    }
}
