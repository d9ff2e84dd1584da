//! What opening a `copy-on-read` node takes and asks for. What it copies is tested beside its engine, and against qemu-io by cairn-io.

#![forbid(unsafe_code)]

use block_common::{AlignedBuf, Options, ParentKind, Perm, PermPair};
use block_drivers::register_all;
use block_gs::{GlobalOptions, GlobalState, GraphResult, MainLoop, NodeRef};

fn run(test: impl AsyncFnOnce(&GlobalState)) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    main.run(async {
        test(&gs).await;
        gs.close_all().await.expect("nobody holds a node");
    });
}

async fn add(gs: &GlobalState, json: &str) -> GraphResult<NodeRef> {
    gs.open(Options::parse_json(json).expect("options")).await
}

/// What the filter asks of `file` when its users ask for `above` of it.
async fn asked(gs: &GlobalState, filter: &NodeRef, above: PermPair) -> PermPair {
    let root = gs.new_root("root", ParentKind::Backend, above, &gs.main_io());
    gs.attach_root(&root, Some(filter)).await.expect("nobody is in the way");
    let perm = gs.node_info(filter).expect("it is there").children[0].2;
    gs.close_root(root).await;
    perm
}

#[test]
fn perm_4_it_owns_the_permission_for_its_copies() {
    run(async |gs| {
        let disk = add(gs, r#"{"driver": "null-co", "node-name": "disk", "size": 65536}"#).await.expect("opens");
        for read_only in [false, true] {
            let json = format!(r#"{{"driver": "copy-on-read", "file": "disk", "read-only": {read_only}}}"#);
            let filter = add(gs, &json).await.expect("opens");
            let own = gs.node_info(&filter).expect("it is there").children[0].2;
            assert_eq!(own, PermPair::new(Perm::WRITE_UNCHANGED, Perm::all()), "before it has users");
            let reading = PermPair::new(Perm::CONSISTENT_READ, !Perm::RESIZE);
            let expected = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED, !Perm::RESIZE);
            assert_eq!(asked(gs, &filter, reading).await, expected);
            gs.close(filter).await.expect("closed");
        }
        // Who lets nobody write, not even the same, lets no filter copy; and no filter copies into what is only read.
        let root = gs.new_root(
            "alone",
            ParentKind::Backend,
            PermPair::new(Perm::empty(), Perm::CONSISTENT_READ),
            &gs.main_io(),
        );
        gs.attach_root(&root, Some(&disk)).await.expect("nobody is in the way");
        let error =
            add(gs, r#"{"driver": "copy-on-read", "node-name": "c", "file": "disk"}"#).await.expect_err("refused");
        let told = "Permission conflict on node 'disk': permissions 'write unchanged' are both required by node 'c' (uses node 'disk' \
                    as 'file' child) and unshared by block device 'alone' (uses node 'disk' as 'root' child).";
        assert_eq!(error.to_string(), told);
        gs.close_root(root).await;
        let json = r#"{"driver": "copy-on-read", "file": {"driver": "null-co", "node-name": "ro", "read-only": true}}"#;
        let error = add(gs, json).await.expect_err("refused");
        assert_eq!(error.to_string(), "Block node 'ro' is read-only");
        drop(disk);
    });
}

#[test]
fn a_bottom_is_in_the_chain_and_no_filter() {
    run(async |gs| {
        let disk = add(gs, r#"{"driver": "null-co", "node-name": "disk", "size": 65536}"#).await.expect("opens");
        let filter =
            add(gs, r#"{"driver": "copy-on-read", "node-name": "filter", "file": "disk"}"#).await.expect("opens");
        let other = add(gs, r#"{"driver": "null-co", "node-name": "other", "size": 65536}"#).await.expect("opens");
        for (bottom, told) in [
            (r#""nope""#, "Bottom node 'nope' not found"),
            (r#""filter""#, "Bottom node 'filter' is a filter"),
            (r#""other""#, "Bottom node 'other' is not in the backing chain of 'filter'"),
            ("5", "Invalid parameter type for 'bottom', expected: string"),
        ] {
            let json = format!(r#"{{"driver": "copy-on-read", "file": "filter", "bottom": {bottom}}}"#);
            assert_eq!(add(gs, &json).await.expect_err("refused").to_string(), told);
        }
        let json = r#"{"driver": "copy-on-read", "file": "filter", "bottom": "disk"}"#;
        let low = add(gs, json).await.expect("past the filter");
        let root =
            gs.new_root("root", ParentKind::Backend, PermPair::new(Perm::CONSISTENT_READ, Perm::all()), &gs.main_io());
        gs.attach_root(&root, Some(&low)).await.expect("nobody is in the way");
        root.io().read(0, AlignedBuf::zeroed(512, 512).into_io()).await.0.expect("it can be read");
        drop((disk, filter, other, low));
    });
}
