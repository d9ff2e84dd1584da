//! The copy-before-write engine under a guest alone: it is the disk that it filters. What it keeps is tested with who reads that (`block-drivers`).

use block_common::{AlignedBuf, ChildRole, IoError, Limits, Perm, RequestFlags};
use block_copy_before_write::{CbwControl, CbwOptions, CbwState, CopyBeforeWrite, OnCbwError};
use block_io::{IoThread, Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemOpKind, MemOptions, MemStorage, Verdict};
use std::sync::Arc;

const SIZE: u64 = 1 << 20;

struct Bed {
    graph: StaticGraph,
    root: Root,
    control: CbwControl,
}

fn bed(thread: &IoThread, source: &MemStorage, target: &MemStorage, on_error: OnCbwError) -> Bed {
    let mut graph = StaticGraph::new(thread.handle());
    block_on(async {
        let below = graph.node("source").install(source.driver(), false).await.expect("storage");
        let aside = graph.node("target").install(target.driver(), false).await.expect("storage");
        let mut shell = graph.node("filter");
        let file = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), &below);
        let target = shell.child(ChildRole::DATA, Perm::WRITE, &aside);
        let state = CbwState::new(source.len(), CopyBeforeWrite::CLUSTER_MIN, None).expect("it is small");
        let options = CbwOptions { on_error, timeout: None };
        let open = |req| async move {
            let limits = file.limits(&req)?;
            Ok(CopyBeforeWrite::new(file, target, limits, options, Arc::new(state)))
        };
        let (engine, control) = shell.run(open).await.expect("it opens");
        let node = shell.install(engine, false).await.expect("a node");
        let root = graph.root("root", &node, Perm::all());
        Bed { graph, root, control }
    })
}

fn conforms(bed: Bed) {
    let second = io_thread(true);
    let threads = vec![bed.root.home(), second.handle()];
    let options = ModelOptions { threads, requests: 2000, ..ModelOptions::default() };
    block_on(model::run(&bed.root, options)).expect("the model agrees");
    run_everywhere(&bed.root, &ConformanceOptions { region: 300_000, ..ConformanceOptions::default() });
    block_on(bed.graph.close()).expect("closed");
}

#[test]
fn it_conforms_and_agrees_with_the_model() {
    let thread = io_thread(true);
    for align in [1, 512, 4096] {
        let limits = Limits { request_alignment: align, memory_alignment: align, ..Limits::NONE };
        let source = MemStorage::new(MemOptions { limits, ..MemOptions::new(SIZE) });
        let target = MemStorage::new(MemOptions {
            limits: Limits { request_alignment: 512, ..limits },
            ..MemOptions::new(SIZE)
        });
        source.set_logging(false);
        target.set_logging(false);
        conforms(bed(&thread, &source, &target, OnCbwError::BreakGuestWrite));
    }
}

/// Scenario: the target fails now and then. What the guest is told of its writes is true.
#[test]
fn the_guest_is_told_the_truth_by_a_bad_target() {
    let thread = io_thread(true);
    for on_error in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        let (source, target) = (MemStorage::new(MemOptions::new(SIZE)), MemStorage::new(MemOptions::new(SIZE)));
        source.set_logging(false);
        let mut count = 0;
        target.set_script(move |op| {
            count += u64::from(matches!(op.kind, MemOpKind::Write | MemOpKind::Zero));
            if count % 3 == 1 { Verdict::Fail(IoError::host(28)) } else { Verdict::Serve }
        });
        let bed = bed(&thread, &source, &target, on_error);
        let may_fail = on_error == OnCbwError::BreakGuestWrite;
        let options = ModelOptions { requests: 500, may_fail, discards: false, ..ModelOptions::default() };
        let report = block_on(model::run(&bed.root, options)).expect("the model agrees");
        assert_eq!(report.failed > 0, may_fail);
        assert_eq!(bed.control.state().broken().is_some(), !may_fail);
        target.release_all();
        block_on(bed.graph.close()).expect("closed");
    }
}

/// What writes the same as was there keeps the point in time as it is.
#[test]
fn what_changes_nothing_is_not_copied() {
    let thread = io_thread(true);
    let (source, target) = (MemStorage::new(MemOptions::new(SIZE)), MemStorage::new(MemOptions::new(SIZE)));
    let bed = bed(&thread, &source, &target, OnCbwError::BreakGuestWrite);
    let buf = || AlignedBuf::zeroed(512, 512).into_io();
    block_on(bed.root.write(0, buf(), RequestFlags::WRITE_UNCHANGED)).0.expect("written");
    assert!(target.log().is_empty());
    block_on(bed.root.write(0, buf(), RequestFlags::empty())).0.expect("written");
    assert_eq!(bed.control.state().bytes_copied(), CopyBeforeWrite::CLUSTER_MIN);
    block_on(bed.graph.close()).expect("closed");
}
