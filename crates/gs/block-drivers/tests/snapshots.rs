//! Overlays on a node that is read and written all the while: every byte is compared with a model, and the images with qemu-img afterwards.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "tests start programs and look at files")]

use block_common::{Options, ParentKind, Perm, PermPair};
use block_drivers::{NewImage, Overlay, check_snapshot, file_name_of, open_overlay, register_all};
use block_gs::{GlobalOptions, GlobalState, LeftOut, MainLoop, NodeRef, RootRef, Step};
use block_testkit::bed::io_thread;
use block_testkit::model::{self, ModelOptions};
use std::cell::Cell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

fn json(text: &str) -> Options {
    Options::parse_json(text).expect(text)
}

fn qemu_img(dir: &Path, args: &[&str]) -> bool {
    let output = Command::new("qemu-img").current_dir(dir).args(args).output().expect("qemu-img");
    output.status.success()
}

async fn root(gs: &GlobalState, node: &NodeRef) -> RootRef {
    let perm = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all());
    let root = gs.new_root("guest", ParentKind::Backend, perm, &gs.main_io());
    gs.attach_root(&root, Some(node)).await.expect("nobody is in the way");
    root
}

/// Put an overlay in a new file on what the guest uses. Every fourth time the first attempt is one of a set that fails.
async fn snapshot(gs: &GlobalState, root: &RootRef, dir: &Path, round: u32) {
    let base = gs.root_node(root).expect("it leads somewhere");
    let file = dir.join(format!("o{round}.qcow2")).display().to_string();
    let overlay = Overlay { file, format: "qcow2".into(), node_name: None, is_there: false, base_name: None };
    let top = open_overlay(gs, &base, &overlay).await.expect("it opens");
    let put = Step::Overlay { node: base.clone(), overlay: top.clone() };
    let steps = if round.is_multiple_of(4) { vec![put.clone(), put.clone()] } else { vec![put.clone()] };
    for steps in [steps, vec![put]] {
        let is_bad = steps.len() > 1;
        let changed = gs.mutate(move |gs| async move {
            let sections = gs.drain_for(&steps).await?;
            gs.change_all(&sections, &steps)
        });
        assert_eq!(changed.await.is_err(), is_bad);
        if !is_bad {
            break;
        }
        assert!(gs.root_node(root).expect("it leads somewhere").same(&base));
    }
    let read_only = json(r#"{"read-only": true}"#);
    gs.reopen(&base, read_only, LeftOut::Stays).await.expect("nobody writes below an overlay");
    assert!(file_name_of(gs, &top).is_some_and(|name| name.ends_with(&format!("o{round}.qcow2"))));
}

#[test]
fn overlays_come_under_load_and_no_byte_is_lost() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    if Command::new("qemu-img").arg("--version").output().is_err() {
        block_testkit::bed::skipped("overlays_come_under_load_and_no_byte_is_lost", "qemu-img is not installed");
        return;
    }
    assert!(qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "base.qcow2", "3M"]));
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    let threads = [io_thread(true), io_thread(false)];
    let rounds = main.run(async {
        let path = dir.path().join("base.qcow2");
        let base = format!(r#"{{"driver": "qcow2", "file": {{"driver": "file", "filename": "{}"}}}}"#, path.display());
        let base = gs.open(json(&base)).await.expect("it opens");
        let guest = root(&gs, &base).await;
        drop(base);
        let options = ModelOptions {
            requests: 6000,
            len: 3 << 20,
            threads: threads.iter().map(|thread| thread.handle()).collect(),
            ..ModelOptions::default()
        };
        let (io, is_over) = (guest.io().clone(), Rc::new(Cell::new(false)));
        let over = is_over.clone();
        let load = gs.main().spawn(async move {
            let report = model::run(&io, options).await;
            over.set(true);
            report
        });
        let mut rounds = 0;
        while !is_over.get() && rounds < 40 {
            rounds += 1;
            snapshot(&gs, &guest, dir.path(), rounds).await;
            gs.main().sleep(Duration::from_millis(2)).await;
        }
        let report = load.join().await.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.failed, 0, "{report:?}");
        assert!(rounds > 3, "the load was over after {rounds} overlays");
        gs.close_root(guest).await;
        gs.close_all().await.expect("everything closes");
        rounds
    });
    for round in 1..=rounds {
        assert!(qemu_img(dir.path(), &["check", "-q", &format!("o{round}.qcow2")]), "o{round}");
    }
    assert!(
        qemu_img(dir.path(), &["convert", "-O", "raw", &format!("o{rounds}.qcow2"), "all.raw"]),
        "the chain is whole"
    );
}

// Scenario: a filter is taken out, and a snapshot is asked for before the filter has flushed and closed. It is no user any more, so the image is still a disk by itself.
// `block-backend/tests/random` found it: "Need a root block node".
#[test]
fn a_filter_that_was_just_taken_out_is_in_nobodys_way() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    main.run(async {
        let path = dir.path().join("disk").display().to_string();
        NewImage::parse(&gs, "qcow2", &path, "size=1M").await.expect("options").create(&gs).await.expect("created");
        let disk = format!(
            r#"{{"driver": "qcow2", "node-name": "disk", "file": {{"driver": "file", "filename": "{path}"}}}}"#
        );
        let disk = gs.open(json(&disk)).await.expect("it opens");
        let filter = gs.open(json(r#"{"driver": "blkdebug", "image": "disk"}"#)).await.expect("it opens");
        assert_eq!(check_snapshot(&gs, &disk, "s").expect_err("it is used").to_string(), "Need a root block node");
        drop(filter);
        assert!(gs.nodes().iter().any(|node| node.driver == "blkdebug"), "it is not closed yet");
        check_snapshot(&gs, &disk, "s").expect("nobody uses it");
        drop(disk);
        gs.close_all().await.expect("everything closes");
    });
}
