//! The tests' drivers: `null-co`, and three toys.
//!
//! - `leaf`: holds its requests until they are released, fails what it is told to fail, and notices requests that come when none
//!   may come. Options: `size`, `fast` (serve at once), `held` (from the start), `fail-open`, `fail-length`, `fail-flush`, `fail-close`.
//! - `pass`: a filter. Option: `slow`.
//! - `fmt`: a format with a child `file` and, if wanted, a child `backing`. Options: `fail` (`first`, `last`, `header`), `slow`.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    BlockStatus, ChildName, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, LENGTH_MAX,
    OptionReader, RequestFlags, StatusExtent,
};
use block_gs::{
    DriverType, EngineControl, GlobalState, GraphError, GraphResult, NoControl, OpenContext, Opened, PreparingReopen,
    Reopening,
};
use block_io::{Access, Driver, Edge, Mapping, NowRequest, Quiesced, Req};
use block_null::{Null, NullOptions};
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::watch;

pub fn register(gs: &GlobalState) -> Rc<Leaves> {
    let leaves = Rc::new(Leaves::default());
    gs.register(Rc::new(NullType));
    gs.register(Rc::new(LeafType(leaves.clone())));
    gs.register(Rc::new(PassType(leaves.clone())));
    gs.register(Rc::new(FmtType));
    leaves
}

/// The engines of all leaves that were made, in order.
#[derive(Default)]
pub struct Leaves(RefCell<Vec<(String, Leaf)>>, Reopens);

/// What `pass` nodes were told of reopens.
pub type Reopens = Rc<RefCell<Vec<String>>>;

impl Leaves {
    /// The newest leaf of that name.
    pub fn find(&self, name: &str) -> Leaf {
        let leaves = self.0.borrow();
        let found = leaves.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, leaf)| leaf.clone()).expect("there is such a leaf")
    }

    /// What `pass` nodes were told of reopens since this was asked last.
    pub fn reopens(&self) -> Vec<String> {
        std::mem::take(&mut *self.1.borrow_mut())
    }

    /// How many were made.
    pub fn count(&self) -> usize {
        self.0.borrow().len()
    }

    /// How many are not closed.
    pub fn open_count(&self) -> usize {
        self.0.borrow().iter().filter(|(_, leaf)| leaf.closes() == 0).count()
    }

    pub fn check_all_closed(&self) {
        for (name, leaf) in self.0.borrow().iter() {
            assert_eq!(leaf.closes(), 1, "how often {name} was closed");
            assert_eq!(leaf.strays(), 0, "requests on {name} that came after its close, or beside it");
        }
    }
}

/// What a test sees of a leaf's engine.
#[derive(Clone)]
pub struct Leaf(Arc<LeafShared>);

struct LeafShared {
    size: u64,
    fast: bool,
    fail_length: bool,
    held: watch::Sender<bool>,
    fail_flush: AtomicU64,
    fail_close: AtomicU64,
    began: AtomicU64,
    ended: AtomicU64,
    flushes: AtomicU64,
    closes: AtomicU64,
    strays: AtomicU64,
    dropped: AtomicBool,
}

impl Leaf {
    /// Let requests (flushes and the close among them) wait, or go on.
    pub fn hold(&self, held: bool) {
        self.0.held.send_replace(held);
    }

    /// Fail flushes with this error number from now on; 0: not any more.
    pub fn fail_flush(&self, errno: u64) {
        self.0.fail_flush.store(errno, Ordering::SeqCst);
    }

    /// Fail the close with this error number.
    pub fn fail_close(&self, errno: u64) {
        self.0.fail_close.store(errno, Ordering::SeqCst);
    }

    /// Reads and writes that are being served.
    pub fn in_flight(&self) -> u64 {
        let ended = self.ended();
        self.began() - ended
    }

    pub fn began(&self) -> u64 {
        self.0.began.load(Ordering::SeqCst)
    }

    pub fn ended(&self) -> u64 {
        self.0.ended.load(Ordering::SeqCst)
    }

    pub fn flushes(&self) -> u64 {
        self.0.flushes.load(Ordering::SeqCst)
    }

    pub fn closes(&self) -> u64 {
        self.0.closes.load(Ordering::SeqCst)
    }

    /// Requests that came after the close, or were there during it.
    pub fn strays(&self) -> u64 {
        self.0.strays.load(Ordering::SeqCst)
    }

    /// Whether the engine's memory is gone.
    pub fn is_dropped(&self) -> bool {
        self.0.dropped.load(Ordering::SeqCst)
    }
}

impl LeafShared {
    fn begin(&self) {
        self.began.fetch_add(1, Ordering::SeqCst);
        self.check_not_closed();
    }

    fn end(&self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }

    fn check_not_closed(&self) {
        if self.closes.load(Ordering::SeqCst) > 0 {
            self.strays.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn released(&self) {
        // The sender lives as long as we do.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }
}

fn errno(number: &AtomicU64) -> IoResult<()> {
    match number.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(IoError::host(errno as i32)),
    }
}

struct LeafEngine(Arc<LeafShared>);

impl Drop for LeafEngine {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl Driver for LeafEngine {
    fn format_name(&self) -> &'static str {
        "leaf"
    }

    fn map_cached(&self, _access: Access, _range: GuestRange) -> Mapping<'_> {
        if self.0.fast && !*self.0.held.borrow() { Mapping::Now } else { Mapping::Slow }
    }

    fn serve_now(&self, _request: NowRequest<'_>) -> IoResult<()> {
        self.0.begin();
        self.0.end();
        Ok(())
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        if self.0.fail_length { Err(IoError::host(5)) } else { Ok(self.0.size) }
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf) -> IoResult<()> {
        self.0.begin();
        self.0.released().await;
        self.0.end();
        Ok(())
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        self.read(req, offset, buf).await
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        self.0.flushes.fetch_add(1, Ordering::SeqCst);
        self.0.check_not_closed();
        self.0.released().await;
        errno(&self.0.fail_flush)
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::mapped(BlockStatus::DATA, range.len(), HostOffset(range.offset().0)))
    }

    async fn close(&self, _req: &Req) -> IoResult<()> {
        let busy = self.0.began.load(Ordering::SeqCst) - self.0.ended.load(Ordering::SeqCst);
        self.0.strays.fetch_add(busy, Ordering::SeqCst);
        self.0.closes.fetch_add(1, Ordering::SeqCst);
        self.0.released().await;
        errno(&self.0.fail_close)
    }
}

struct LeafType(Rc<Leaves>);

/// The control half of a leaf.
pub struct LeafControl(pub Leaf);

impl EngineControl for LeafControl {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

#[async_trait(?Send)]
impl DriverType for LeafType {
    fn name(&self) -> &'static str {
        "leaf"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let size = options.take_size("size")?.unwrap_or(1 << 20);
        if options.take_bool("fail-open")?.unwrap_or(false) {
            return Err(GraphError::Open(format!("Could not open leaf '{}'", context.node_name())));
        }
        let shared = Arc::new(LeafShared {
            size,
            fast: options.take_bool("fast")?.unwrap_or(false),
            fail_length: options.take_bool("fail-length")?.unwrap_or(false),
            held: watch::Sender::new(options.take_bool("held")?.unwrap_or(false)),
            fail_flush: AtomicU64::new(options.take_u64("fail-flush")?.unwrap_or(0)),
            fail_close: AtomicU64::new(options.take_u64("fail-close")?.unwrap_or(0)),
            began: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            closes: AtomicU64::new(0),
            strays: AtomicU64::new(0),
            dropped: AtomicBool::new(false),
        });
        let leaf = Leaf(shared.clone());
        self.0.0.borrow_mut().push((context.node_name(), leaf.clone()));
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(LeafEngine(shared)), control: Box::new(LeafControl(leaf)), read_only })
    }
}

/// Passes everything to its one child.
struct Pass {
    name: &'static str,
    file: Edge,
    slow: bool,
    /// Kept, so that the edge is there: nothing reads from it.
    _backing: Option<Edge>,
}

#[async_trait]
impl Driver for Pass {
    fn format_name(&self) -> &'static str {
        self.name
    }

    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        if self.slow {
            return Mapping::Slow;
        }
        let offset = range.offset().0;
        Mapping::Child { edge: &self.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    fn filtered(&self) -> Option<&Edge> {
        Some(&self.file)
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }
}

struct PassType(Rc<Leaves>);

/// Notes what it is told. Its option `tag` may be changed, but not to `bad`.
struct PassControl {
    name: String,
    told: Reopens,
}

impl EngineControl for PassControl {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let tag = to.options.take_str("tag")?.unwrap_or_default();
        self.told.borrow_mut().push(format!("prepare {} {tag}", self.name));
        let (name, told) = (self.name.clone(), self.told.clone());
        let length = to.run("no length", |req| async move { Ok(req.length()) })?;
        Ok(Box::pin(async move {
            length.await?;
            match tag.as_str() {
                "bad" => Err(GraphError::Open(format!("{name} does not want to"))),
                _ => Ok(Box::new(Noted(name, told)) as Box<dyn Any>),
            }
        }))
    }

    fn commit_reopen(&mut self, prepared: Box<dyn Any>, _proof: &Quiesced<'_>) {
        let mut noted = prepared.downcast::<Noted>().expect("what was prepared");
        self.told.borrow_mut().push(format!("commit {}", noted.0));
        noted.0.clear();
    }
}

/// A prepared reopen; notes that it is given up.
struct Noted(String, Reopens);

impl Drop for Noted {
    fn drop(&mut self) {
        if !self.0.is_empty() {
            self.1.borrow_mut().push(format!("abort {}", self.0));
        }
    }
}

#[async_trait(?Send)]
impl DriverType for PassType {
    fn name(&self) -> &'static str {
        "pass"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    fn reopenable(&self) -> &'static [&'static str] {
        &["tag"]
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let slow = options.take_bool("slow")?.unwrap_or(false);
        drop(options.take_str("tag")?);
        let engine = Pass { name: "pass", file, slow, _backing: None };
        let read_only = context.common().read_only;
        let control = PassControl { name: context.node_name(), told: self.0.1.clone() };
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }
}

struct FmtType;

#[async_trait(?Send)]
impl DriverType for FmtType {
    fn name(&self) -> &'static str {
        "fmt"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let fail = options.take_str("fail")?;
        let failed = |when: &str| match &fail {
            Some(fail) if fail == when => Err(GraphError::Open(format!("failed as asked: {when}"))),
            _ => Ok(()),
        };
        failed("first")?;
        let file = context.require_child(options, ChildName::FILE, ChildRole::IMAGE).await?;
        let backing = context.optional_child(options, ChildName::BACKING, ChildRole::COW).await?;
        let fails = fail.as_deref() == Some("header");
        let header = context.run("Could not read the header", |req| async move {
            let buf = block_common::AlignedBuf::zeroed(512, 512).into_io();
            file.read(&req, HostOffset(0), &buf).await?;
            if fails { Err(IoError::host(5)) } else { Ok(file) }
        });
        let file = header.await?;
        failed("last")?;
        let slow = options.take_bool("slow")?.unwrap_or(false);
        let engine = Pass { name: "fmt", file, slow, _backing: Some(backing) };
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

struct NullType;

#[async_trait(?Send)]
impl DriverType for NullType {
    fn name(&self) -> &'static str {
        "null-co"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let defaults = NullOptions::default();
        let size = options.take_size("size")?.unwrap_or(defaults.size);
        let read_zeroes = options.take_bool("read-zeroes")?.unwrap_or(false);
        let (engine, _) = Null::new(NullOptions { size, read_zeroes, ..defaults });
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}
