//! The suite and the model are tested too: each of these drivers has one bug, and is caught by the check that is meant
//! for it.

use async_trait::async_trait;
use block_common::{
    AlignedBuf, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Limits, Perm, Preallocation,
    RequestFlags, StatusExtent,
};
use block_io::{Driver, Edge, Req, Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread, yield_now};
use block_testkit::conformance::{self, ConformanceOptions};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOptions, MemStorage};
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Long reads come from a wrong place.
    ReadShifted,
    /// Only the first segment of a buffer is stored.
    FirstSegmentOnly,
    /// Writes read, change and write whole blocks, without a lock.
    UnlockedBlocks,
    ZeroTooShort,
    ZeroTooLong,
    /// A zero write that may not unmap does nothing.
    ZeroIgnored,
    DiscardTooLong,
    /// What was discarded reads as something else.
    DiscardGarbage,
    DataCalledZero,
    /// Every answer claims to end the node.
    LengthGrows,
    FlushFails,
    /// Shrinking keeps the data for when it grows again.
    TruncateKeepsData,
    /// The last bytes of an odd end are left out of writes.
    LosesTheEnd,
}

const LENGTH: u64 = 1 << 20;
const BLOCK: u64 = 4096;
/// The length of a node that ends within a block.
const ODD_END: u64 = LENGTH - 100;

struct Broken {
    file: Edge,
    bug: Bug,
    length: AtomicU64,
}

#[async_trait]
impl Driver for Broken {
    fn format_name(&self) -> &'static str {
        "broken"
    }

    fn limits(&self) -> Limits {
        Limits { request_alignment: if self.bug == Bug::LosesTheEnd { 512 } else { 1 }, ..Limits::NONE }
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        match self.bug {
            Bug::LengthGrows => Ok(self.length.fetch_add(512, Ordering::Relaxed)),
            _ => Ok(self.length.load(Ordering::Relaxed)),
        }
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let shift = u64::from(self.bug == Bug::ReadShifted && buf.len() > 5000 && offset.0 > 0);
        self.file.read(req, HostOffset(offset.0 - shift), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        match self.bug {
            Bug::FirstSegmentOnly => {
                let first = buf.segments().first().map_or(0, |segment| segment.len);
                self.file.write(req, HostOffset(offset.0), &buf.slice(0, first), flags).await
            }
            Bug::UnlockedBlocks => {
                let range = GuestRange::new(offset.0, buf.len() as u64)?.align_out(BLOCK as u32)?;
                let whole = AlignedBuf::zeroed(range.len() as usize, 1).into_io();
                let place = HostOffset(range.offset().0);
                self.file.read(req, place, &whole).await?;
                yield_now().await;
                whole.slice((offset.0 - place.0) as usize, buf.len()).copy_from(buf);
                self.file.write(req, place, &whole, flags).await
            }
            Bug::LosesTheEnd => {
                let there = (ODD_END / 512 * 512).saturating_sub(offset.0).min(buf.len() as u64) as usize;
                self.file.write(req, HostOffset(offset.0), &buf.slice(0, there), flags).await
            }
            _ => self.file.write(req, HostOffset(offset.0), buf, flags).await,
        }
    }

    async fn zero(&self, req: &Req, range: GuestRange, flags: RequestFlags) -> IoResult<()> {
        let len = match self.bug {
            Bug::ZeroTooShort => range.len().saturating_sub(1),
            Bug::ZeroTooLong => range.len() + 1,
            Bug::ZeroIgnored if !flags.contains(RequestFlags::MAY_UNMAP) => return Ok(()),
            _ => range.len(),
        };
        self.file.zero(req, HostOffset(range.offset().0), len, flags).await
    }

    async fn discard(&self, req: &Req, range: GuestRange) -> IoResult<()> {
        let place = HostOffset(range.offset().0);
        match self.bug {
            Bug::DiscardTooLong => self.file.discard(req, place, range.len() + 1).await,
            Bug::DiscardGarbage => {
                let garbage = AlignedBuf::zeroed(range.len() as usize, 1).into_io();
                garbage.fill(0, range.len() as usize, 0xdb);
                self.file.write(req, place, &garbage, RequestFlags::empty()).await
            }
            _ => self.file.discard(req, place, range.len()).await,
        }
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        if self.bug == Bug::FlushFails { Err(IoError::host(5)) } else { self.file.flush(req).await }
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        let mut extent = self.file.block_status(req, HostOffset(range.offset().0), range.len()).await?;
        match self.bug {
            // Off by one block.
            Bug::DataCalledZero if extent.is_zero() => extent.len = (extent.len + 512).min(range.len()),
            _ => {}
        }
        Ok(extent)
    }

    async fn truncate(&self, req: &Req, len: u64, preallocation: Preallocation) -> IoResult<()> {
        let keeps = self.bug == Bug::TruncateKeepsData && len < self.length.load(Ordering::Relaxed);
        self.length.store(len, Ordering::Relaxed);
        if keeps {
            Ok(())
        } else {
            self.file.truncate(req, len.max(LENGTH), preallocation).await?;
            self.wipe(req, len).await
        }
    }
}

impl Broken {
    /// The child is longer than the node at times: what is beyond the end must be zero when it comes back.
    async fn wipe(&self, req: &Req, len: u64) -> IoResult<()> {
        if self.bug == Bug::TruncateKeepsData || len >= LENGTH {
            return Ok(());
        }
        self.file.zero(req, HostOffset(len), LENGTH - len, RequestFlags::empty()).await
    }
}

fn with(bug: Bug, work: impl FnOnce(&Root) -> Result<(), String>) -> Result<(), String> {
    let thread = io_thread(true);
    let is_odd = bug == Bug::LosesTheEnd;
    let storage = MemStorage::new(MemOptions::new(LENGTH));
    let mut graph = StaticGraph::new(thread.handle());
    let file = block_on(graph.node("mem").install(storage.driver(), false)).expect("a file");
    let mut shell = graph.node("broken");
    let file = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &file);
    let length = AtomicU64::new(if is_odd { ODD_END } else { LENGTH });
    let engine = Broken { file, bug, length };
    let node = block_on(shell.install(engine, false)).expect("a node");
    let root = graph.root("root", &node, Perm::all());
    let result = work(&root);
    // A bug may show up here as well.
    let _ = block_on(graph.close());
    result
}

fn suite(bug: Bug) -> Result<(), String> {
    with(bug, |root| {
        let (for_home, options) =
            (root.clone(), ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
        let run = root.home().run(async move { conformance::run(&for_home, &options).await });
        block_on(run).expect("no panic").map(drop)
    })
}

fn random(bug: Bug) -> Result<(), String> {
    with(bug, |root| block_on(model::run(root, ModelOptions { len: 1 << 18, ..ModelOptions::default() })).map(drop))
}

fn check(bug: Bug, caught_by: &str) {
    let error = suite(bug).expect_err(caught_by);
    assert!(error.starts_with(caught_by), "{bug:?} is caught by: {error}");
    assert!(error.contains("CAIRN_SEED="), "{error}");
}

#[test]
fn a_driver_without_a_bug_passes() {
    assert_eq!(suite(Bug::None), Ok(()));
    assert_eq!(random(Bug::None), Ok(()));
}

#[test]
fn each_bug_is_caught_by_its_check() {
    check(Bug::ReadShifted, "read_your_writes");
    check(Bug::FirstSegmentOnly, "read_your_writes");
    check(Bug::UnlockedBlocks, "concurrent_writers");
    check(Bug::ZeroTooShort, "zeroes");
    check(Bug::ZeroTooLong, "zeroes");
    check(Bug::ZeroIgnored, "zeroes");
    check(Bug::DiscardTooLong, "discards");
    check(Bug::DiscardGarbage, "discards");
    check(Bug::DataCalledZero, "status");
    check(Bug::LengthGrows, "bounds");
    check(Bug::FlushFails, "flush");
    check(Bug::TruncateKeepsData, "truncate");
    check(Bug::LosesTheEnd, "odd_end");
}

#[test]
fn the_model_finds_them_without_being_told_where_to_look() {
    for bug in [
        Bug::ReadShifted,
        Bug::FirstSegmentOnly,
        Bug::UnlockedBlocks,
        Bug::ZeroTooShort,
        Bug::ZeroTooLong,
        Bug::DiscardTooLong,
        Bug::DiscardGarbage,
        Bug::DataCalledZero,
        Bug::FlushFails,
    ] {
        let error = random(bug).expect_err("the model finds it");
        assert!(error.contains("CAIRN_SEED="), "{bug:?}: {error}");
    }
}
