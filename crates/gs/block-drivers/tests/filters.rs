//! Filters in a graph: what they ask of what is below them, what reopening and going away do.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests look at files behind the driver's back")]

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    AlignedBuf, ChildName, ChildRole, IoBuf, OptionReader, Options, ParentKind, Perm, PermPair, RequestFlags,
};
use block_drivers::register_all;
use block_gs::{
    DriverType, Event, Events, GlobalOptions, GlobalState, GraphResult, LeftOut, MainLoop, NoControl, NodeRef,
    OpenContext, Opened, RootRef,
};
use block_testkit::ToySparse;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// A format whose disk of 1 MiB is longer than its file.
struct SparseType;

#[async_trait(?Send)]
impl DriverType for SparseType {
    fn name(&self) -> &'static str {
        "sparse"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::IMAGE).await?;
        let engine = Box::new(ToySparse::new(file, 1 << 20));
        Ok(Opened { engine, control: Box::new(NoControl), read_only: context.common().read_only })
    }
}

struct Bed {
    gs: GlobalState,
    dir: tempfile::TempDir,
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(Rc<Bed>) -> F) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    gs.register(Rc::new(SparseType));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    main.run(async {
        test(Rc::new(Bed { gs: gs.clone(), dir })).await;
        gs.close_all().await.expect("nobody holds a node");
    });
}

impl Bed {
    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(len)).expect("a file");
        path
    }

    async fn open(&self, json: &str) -> GraphResult<NodeRef> {
        self.gs.open(Options::parse_json(json).expect("options")).await
    }

    async fn attach(&self, node: &NodeRef, perm: PermPair) -> GraphResult<RootRef> {
        let root = self.gs.new_root("root", ParentKind::Backend, perm, &self.gs.main_io());
        self.gs.attach_root(&root, Some(node)).await.map(|()| root)
    }

    async fn reopen(&self, node: &NodeRef, json: &str) -> GraphResult<()> {
        self.gs.reopen(node, Options::parse_json(json).expect("options"), LeftOut::Stays).await
    }

    /// Wait until a file is `len` bytes long.
    async fn until_long(&self, path: &Path, len: u64) {
        for _ in 0..500 {
            if length(path) == len {
                return;
            }
            let sleep = || std::thread::sleep(Duration::from_millis(10));
            self.gs.pool().run(sleep).await.expect("it sleeps");
        }
        panic!("the file is {} bytes long, not {len}", length(path));
    }
}

fn length(path: &Path) -> u64 {
    std::fs::metadata(path).expect("a file").len()
}

fn filled(len: usize, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len, 4096);
    buf.fill(byte);
    buf.into_io()
}

const WRITER: PermPair = PermPair { perm: Perm::CONSISTENT_READ.union(Perm::WRITE), shared: Perm::all() };
const NONE: RequestFlags = RequestFlags::empty();

async fn write(root: &RootRef, offset: u64, len: usize) {
    root.io().write(offset, filled(len, 7), NONE).await.0.expect("written");
}

/// A preallocate node `p` over the file node `f`, which the monitor holds.
async fn preallocate(bed: &Bed, path: &Path) -> (NodeRef, NodeRef) {
    let file = format!(r#"{{"driver": "file", "node-name": "f", "filename": "{}"}}"#, path.display());
    let file = bed.open(&file).await.expect("a file");
    let filter =
        r#"{"driver": "preallocate", "node-name": "p", "file": "f", "prealloc-size": 65536, "prealloc-align": 4096}"#;
    (bed.open(filter).await.expect("a filter"), file)
}

/// Scenario: as a user of qemu-storage-daemon saw it: the filter alone asks for nothing; with a writing format above, others neither write nor resize; when that goes, the file
/// is cut, and is free again.
#[test]
fn perm_4_the_file_is_the_filters_alone_until_it_is_cut() {
    run(|bed| async move {
        let path = bed.file("image", 10_000);
        let (filter, file) = preallocate(&bed, &path).await;
        let other = bed.attach(&file, WRITER).await.expect("the filter asks for nothing");
        let json = r#"{"driver": "sparse", "node-name": "s", "file": "p"}"#;
        let refused = bed.open(json).await.expect_err("a format writes, and the filter shares no writing");
        assert!(refused.to_string().contains("both required by"), "{refused}");
        bed.gs.close_root(other).await;
        let above = bed.open(json).await.expect("the file is free");
        let unshared = PermPair::new(Perm::CONSISTENT_READ, Perm::CONSISTENT_READ);
        let root = bed.attach(&above, WRITER).await.expect("a disk");
        write(&root, 20_000, 100).await;
        assert_eq!(length(&path), 86_016, "20100 + 65536, in pages");
        assert_eq!(filter.io().length(), 20_100);
        for perm in [WRITER, unshared] {
            let refused = bed.attach(&file, perm).await.expect_err("the filter has it");
            assert!(refused.to_string().contains("both required by"), "{refused}");
        }
        // Without a user, but with a format that could write, nothing changes.
        bed.gs.close_root(root).await;
        assert_eq!(length(&path), 86_016);
        drop(above);
        bed.until_long(&path, 20_100).await;
        bed.gs.settle().await.expect("closed");
        let mut free = bed.attach(&file, unshared).await;
        for _ in 0..100 {
            if free.is_ok() {
                break;
            }
            // The file is short, and given up a moment later.
            bed.gs.pool().run(|| std::thread::sleep(Duration::from_millis(5))).await.expect("it sleeps");
            free = bed.attach(&file, unshared).await;
        }
        free.expect("the file is free");
        drop(filter);
    });
}

#[test]
fn a_reopen_for_reading_and_a_close_cut_the_surplus() {
    run(|bed| async move {
        let path = bed.file("image", 0);
        let json = format!(
            r#"{{"driver": "sparse", "file": {{"driver": "preallocate", "prealloc-size": 65536, "prealloc-align": 4096,
            "file": {{"driver": "file", "filename": "{}"}}}}}}"#,
            path.display()
        );
        let disk = bed.open(&json).await.expect("a disk");
        let root = bed.attach(&disk, WRITER).await.expect("it is free");
        write(&root, 0, 1000).await;
        assert_eq!(length(&path), 69_632);
        let refused = bed.reopen(&disk, r#"{"file": {"prealloc-align": 3}}"#).await.expect_err("3 is odd");
        assert_eq!(refused.to_string(), "prealloc-align parameter of preallocate filter is not aligned to 512");
        bed.reopen(&disk, r#"{"file": {"prealloc-size": 0, "prealloc-align": 512}}"#).await.expect("these are not");
        assert_eq!(length(&path), 69_632, "what is there stays");
        write(&root, 100_000, 100).await;
        assert_eq!(length(&path), 100_352);
        bed.gs.set_root_perm(&root, PermPair::new(Perm::CONSISTENT_READ, Perm::all())).expect("that is less");
        bed.reopen(&disk, r#"{"read-only": true}"#).await.expect("nobody writes");
        assert_eq!(length(&path), 100_100, "before the reopen is over");
        bed.reopen(&disk, r#"{"read-only": false}"#).await.expect("it is a file");
        bed.gs.set_root_perm(&root, WRITER).expect("it is free");
        write(&root, 100_100, 1).await;
        assert_eq!(length(&path), 100_352);
        bed.gs.close_root(root).await;
        bed.gs.close(disk).await.expect("closed");
        assert_eq!(length(&path), 100_101);
    });
}

/// Scenario: the block layer is dropped while a control half could still come back to it.
#[test]
fn close_1_a_control_half_keeps_nothing_alive() {
    run(|bed| async move {
        let path = bed.file("image", 0);
        let (filter, file) = preallocate(&bed, &path).await;
        let above = bed.open(r#"{"driver": "sparse", "file": "p"}"#).await.expect("a disk");
        let root = bed.attach(&above, WRITER).await.expect("it is free");
        write(&root, 0, 1000).await;
        // Everything goes at once: the cut comes with the close, not after it.
        bed.gs.close_root(root).await;
        drop((above, filter, file));
        bed.gs.settle().await.expect("closed");
        assert_eq!(length(&path), 1000);
    });
}

/// Make a byte of a file another one.
fn spoil(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().write(true).open(path).expect("a file");
    file.write_all_at(b"X", at).expect("room");
}

fn child(node: &str, path: &Path) -> String {
    format!(r#"{{"driver": "file", "node-name": "{node}", "filename": "{}"}}"#, path.display())
}

/// The events since the last look.
fn heard(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

/// Scenario: one of three files has another byte, and then a second one as well. The events are QMP's, in sectors and with names of nodes.
#[test]
fn a_quorum_tells_of_its_children() {
    run(|bed| async move {
        let mut events = bed.gs.take_events().expect("nobody else listens");
        let paths = ["a", "b", "c"].map(|name| bed.file(name, 65_536));
        spoil(&paths[1], 5000);
        let children: Vec<_> = paths.iter().zip(["f0", "f1", "f2"]).map(|(path, node)| child(node, path)).collect();
        let json = format!(
            r#"{{"driver": "quorum", "node-name": "q", "vote-threshold": 2, "children": [{}]}}"#,
            children.join(", ")
        );
        let quorum = bed.open(&json).await.expect("a quorum");
        let root = bed.attach(&quorum, WRITER).await.expect("it is free");
        let read = || async { root.io().read(4990, filled(700, 1)).await.0 };
        read().await.expect("two agree");
        let bad = Event::QuorumReportBad { node: "f1".into(), operation: "read", error: None, sector: 9, sectors: 3 };
        assert_eq!(heard(&mut events), [bad]);
        spoil(&paths[2], 5001);
        assert!(read().await.is_err());
        assert_eq!(heard(&mut events), [Event::QuorumFailure { reference: "q".into(), sector: 9, sectors: 3 }]);
        let below = bed.gs.child(&quorum, "children.1").expect("an edge").expect("a node");
        let refused = bed.attach(&below, WRITER).await.expect_err("the quorum's alone");
        assert!(refused.to_string().contains("as 'children.1' child"), "{refused}");
        let refused = bed.reopen(&quorum, r#"{"vote-threshold": 1}"#).await.expect_err("not this one");
        assert_eq!(refused.to_string(), "Block format 'quorum' used by node 'q' does not support reopening files");
    });
}

/// Scenario: with `rewrite-corrupted` a quorum writes although its user only reads, and so it has asked for that.
#[test]
fn perm_4_a_quorum_that_rewrites_asks_for_it() {
    run(|bed| async move {
        let paths = ["a", "b", "c"].map(|name| bed.file(name, 65_536));
        spoil(&paths[1], 5000);
        let children: Vec<_> = paths.iter().zip(["f0", "f1", "f2"]).map(|(path, node)| child(node, path)).collect();
        let json = format!(
            r#"{{"driver": "quorum", "vote-threshold": 2, "rewrite-corrupted": true, "children": [{}]}}"#,
            children.join(", ")
        );
        let quorum = bed.open(&json).await.expect("a quorum");
        let root = bed.attach(&quorum, PermPair::new(Perm::CONSISTENT_READ, Perm::all())).await.expect("it is free");
        root.io().read(4096, filled(4096, 1)).await.0.expect("two agree");
        assert_eq!(std::fs::read(&paths[1]).expect("a file"), vec![0; 65_536]);
    });
}

#[test]
fn a_difference_is_an_event() {
    run(|bed| async move {
        let mut events = bed.gs.take_events().expect("nobody else listens");
        let paths = ["a", "b"].map(|name| bed.file(name, 65_536));
        spoil(&paths[1], 5000);
        let json = format!(
            r#"{{"driver": "blkverify", "node-name": "v", "test": {}, "raw": {}}}"#,
            child("t", &paths[0]),
            child("r", &paths[1])
        );
        let verify = bed.open(&json).await.expect("a filter");
        let root = bed.attach(&verify, WRITER).await.expect("it is free");
        assert!(root.io().read(4096, filled(4096, 1)).await.0.is_err());
        let message = "blkverify: read offset=4096 bytes=4096 contents mismatch at offset 5000".into();
        assert_eq!(heard(&mut events), [Event::VerifyFailed { node: "v".into(), message }]);
    });
}
