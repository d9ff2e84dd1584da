//! Image files between graphs: what one holds, another one (or another node of the same one) does not get, and it ends when the users go.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "tests prepare files behind the driver's back")]

use block_common::{AlignedBuf, Options, ParentKind, Perm, PermPair, RequestFlags};
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, GraphError, GraphResult, MainLoop, NodeRef, RootRef};
use std::path::{Path, PathBuf};

const READ: Perm = Perm::CONSISTENT_READ;
const WRITE: Perm = Perm::WRITE;

/// Reads and writes, and does not let others do that.
fn writer() -> PermPair {
    PermPair::new(READ | WRITE, READ)
}

/// Two block layers on one main loop, as two processes would have them, and an image.
struct Bench {
    one: GlobalState,
    two: GlobalState,
    main: MainLoop,
    image: PathBuf,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        let image = dir.path().join("image");
        std::fs::File::create(&image).and_then(|file| file.set_len(1 << 20)).expect("an image");
        let main = MainLoop::new().expect("descriptors");
        let new = || {
            let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
            register_all(&gs);
            gs
        };
        Self { one: new(), two: new(), main, image, _dir: dir }
    }

    /// Run a test's body, and close both.
    fn run(&self, body: impl Future<Output = ()>) {
        self.main.run(async {
            body.await;
            self.one.close_all().await.expect("closed");
            self.two.close_all().await.expect("closed");
        });
    }

    /// What another process would be told that wants to write to the image.
    fn refused(&self) -> String {
        format!("Failed to get \"write\" lock\nIs another process using the image [{}]?", self.image.display())
    }
}

async fn file(gs: &GlobalState, image: &Path, more: &str) -> GraphResult<NodeRef> {
    let json = format!(r#"{{"driver": "raw", "file": {{"driver": "file", "filename": "{}"{more}}}}}"#, image.display());
    gs.open(Options::parse_json(&json).expect("options")).await
}

async fn read_only(gs: &GlobalState, image: &Path, more: &str) -> NodeRef {
    let path = image.display();
    let json = format!(r#"{{"driver": "file", "filename": "{path}", "read-only": true{more}}}"#);
    gs.open(Options::parse_json(&json).expect("options")).await.expect("opened")
}

async fn attach(gs: &GlobalState, node: &NodeRef, perm: PermPair) -> GraphResult<RootRef> {
    let root = gs.new_root("root", ParentKind::Backend, perm, &gs.main_io());
    gs.attach_root(&root, Some(node)).await.map(|()| root)
}

fn report<T>(result: GraphResult<T>) -> String {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error.report(),
    }
}

#[test]
fn perm_5_an_image_that_one_writes_the_other_cannot_have() {
    let bench = Bench::new();
    bench.run(async {
        let (one, two) = (&bench.one, &bench.two);
        let mine = file(one, &bench.image, "").await.expect("opened");
        let yours = file(two, &bench.image, "").await.expect("a node without users asks for nothing");
        let root = attach(one, &mine, writer()).await.expect("nobody is in the way");
        assert_eq!(report(attach(two, &yours, writer()).await), bench.refused());
        // Nor another node of the same graph.
        let again = file(one, &bench.image, "").await.expect("opened");
        let error = attach(one, &again, PermPair::new(WRITE, Perm::all())).await;
        assert!(matches!(error, Err(GraphError::Locked { .. })));
        assert_eq!(report(error), bench.refused());
        // Who only wants to read does not let others write either, unless that is what he wants.
        assert!(
            report(attach(two, &yours, PermPair::new(READ, READ)).await)
                .starts_with("Failed to get shared \"write\" lock")
        );
        let reader = attach(two, &yours, PermPair::new(READ, Perm::all())).await.expect("reading is shared");
        one.close_root(root).await;
        two.set_root_perm(&reader, writer()).expect("it is free by now");
        assert_eq!(report(attach(one, &mine, writer()).await), bench.refused());
        two.set_root_perm(&reader, PermPair::NONE).expect("that is less");
        attach(one, &mine, writer()).await.expect("it is free again");
    });
}

#[test]
fn perm_5_readers_share_and_force_share_shares_everything() {
    let bench = Bench::new();
    bench.run(async {
        let (one, two) = (&bench.one, &bench.two);
        let alone = PermPair::new(READ, READ);
        let mine = read_only(one, &bench.image, "").await;
        let yours = read_only(two, &bench.image, "").await;
        let first = attach(one, &mine, alone).await.expect("nobody is in the way");
        let _second = attach(two, &yours, alone).await.expect("both only read");
        drop((first, _second));
        let written = file(one, &bench.image, "").await.expect("opened");
        one.settle().await.expect("settled");
        two.settle().await.expect("settled");
        let _writer = attach(one, &written, PermPair::new(READ | WRITE, READ)).await.expect("nobody is in the way");
        assert!(attach(two, &yours, alone).await.is_err());
        let forced = read_only(two, &bench.image, r#", "force-share": true"#).await;
        attach(two, &forced, alone).await.expect("it does not mind");
    });
}

#[test]
fn perm_5_locking_can_be_left_out() {
    let bench = Bench::new();
    bench.run(async {
        let (one, two) = (&bench.one, &bench.two);
        let mine = file(one, &bench.image, r#", "locking": "on""#).await.expect("opened");
        let _root = attach(one, &mine, PermPair::EXCLUSIVE).await.expect("nobody is in the way");
        let yours = file(two, &bench.image, r#", "locking": "off""#).await.expect("opened");
        attach(two, &yours, PermPair::EXCLUSIVE).await.expect("it looks at no locks");
        let third = file(two, &bench.image, r#", "locking": "auto""#).await.expect("opened");
        assert!(attach(two, &third, PermPair::EXCLUSIVE).await.is_err());
        let wrong = file(two, &bench.image, r#", "locking": "sometimes""#).await;
        assert!(report(wrong).contains("locking"));
    });
}

#[test]
fn perm_5_an_image_can_be_opened_again_at_once() {
    // What was just dropped is waited for, as long as it is on its way out.
    let bench = Bench::new();
    bench.run(async {
        let nodes = [
            file(&bench.one, &bench.image, "").await.expect("opened"),
            file(&bench.one, &bench.image, "").await.expect("opened"),
        ];
        for node in nodes.iter().cycle().take(50) {
            let root = attach(&bench.one, node, writer()).await.expect("whoever had it is on his way out");
            let other = nodes.iter().find(|other| !other.same(node)).expect("there are two");
            assert!(attach(&bench.one, other, writer()).await.is_err(), "nobody is waited for who stays");
            drop(root);
        }
    });
}

#[test]
fn perm_3_auto_read_only_opens_for_writing_when_somebody_writes() {
    let bench = Bench::new();
    bench.run(async {
        let gs = &bench.one;
        let node = file(gs, &bench.image, r#", "auto-read-only": true"#).await.expect("opened");
        let zeroes = || AlignedBuf::zeroed(512, 512).into_io();
        let root = attach(gs, &node, PermPair::new(READ, Perm::all())).await.expect("nobody is in the way");
        assert!(root.io().write(0, zeroes(), RequestFlags::empty()).await.0.is_err());
        for _ in 0..3 {
            gs.set_root_perm(&root, writer()).expect("the file may be written");
            root.io().write(0, zeroes(), RequestFlags::empty()).await.0.expect("written");
            gs.set_root_perm(&root, PermPair::new(READ, Perm::all())).expect("that is less");
        }
        // A file that may not be written can be opened, and read; who would write hears why not.
        let this = std::env::current_exe().expect("a path");
        let busy = file(gs, &this, r#", "auto-read-only": true"#).await.expect("opened");
        let reader = attach(gs, &busy, PermPair::new(READ, Perm::all())).await.expect("it can be read");
        let told = format!("Could not open '{}': Text file busy", this.display());
        assert_eq!(report(gs.set_root_perm(&reader, writer())), told);
        assert_eq!(report(file(gs, &this, "").await), told);
    });
}

#[test]
fn perm_1_what_blkdebug_is_told_to_take_counts_as_any_users_permissions() {
    let bench = Bench::new();
    bench.run(async {
        let gs = &bench.one;
        let image = gs.open(Options::parse_blockdev("null-co,node-name=image").expect("options")).await.expect("opened");
        let open = async |more: &str| {
            let text = format!("blkdebug,node-name=debug,image=image{more}");
            gs.open(Options::parse_blockdev(&text).expect("options")).await
        };
        let user = attach(gs, &image, PermPair::new(READ | WRITE, READ | WRITE | Perm::WRITE_UNCHANGED)).await;
        let user = user.expect("nobody is there");
        // Others may not resize while the user is there, and the user writes.
        let conflict = |perm: &str, by: &str, keeper: &str| {
            format!("Permission conflict on node 'image': permissions '{perm}' are both required by {by} and unshared by {keeper}.")
        };
        let (node, root) = ("node 'debug' (uses node 'image' as 'image' child)", "block device 'root' (uses node 'image' as 'root' child)");
        assert_eq!(report(open(",take-child-perms.0=resize").await), conflict("resize", node, root));
        assert_eq!(report(open(",unshare-child-perms.0=write").await), conflict("write", root, node));
        let wrong = report(open(",take-child-perms.0=bogus").await);
        assert_eq!(wrong, "Parameter 'take-child-perms.0' does not accept value 'bogus'");
        let debug = open(",take-child-perms.0=write,unshare-child-perms.0=resize").await.expect("nobody is in the way");
        let perm = |gs: &GlobalState| gs.node_info(&debug).expect("there").children[0].2;
        assert_eq!(perm(gs), PermPair::new(WRITE, !Perm::RESIZE));
        // Its users' permissions come on top.
        let above = attach(gs, &debug, PermPair::new(READ, !Perm::WRITE_UNCHANGED)).await.expect("nobody is in the way");
        assert_eq!(perm(gs), PermPair::new(READ | WRITE, !(Perm::RESIZE | Perm::WRITE_UNCHANGED)));
        drop(above);
        gs.settle().await.expect("closed");
        assert_eq!(perm(gs), PermPair::new(WRITE, !Perm::RESIZE));
        drop((debug, user));
    });
}
