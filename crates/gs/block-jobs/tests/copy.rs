//! The copy job: equal byte for byte under load, and without a trace when it does not come to its end.

mod common;

use block_common::{IoError, ParentKind, Perm, PermPair};
use block_copy::{CopyAct, CopyError, CopyOptions, MirrorOptions, RunError};
use block_gs::{GlobalState, GraphError};
use block_io::{IoThread, IoThreadOptions};
use block_jobs::{
    Cancel, CopyJob, CopyLeft, Job, JobContext, JobError, JobEvent, JobOptions, JobRef, JobRegistry, JobResult,
    JobSetup, JobStatus, JobType, PreparedCopy, PreparedJob, Start, StartedCopy, StartedJob,
};
use block_testkit::{MemMode, MemOpKind, MemOptions, MemStorage, Verdict, seed};
use common::{Bed, difference, noise, run, write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const CHUNK: u64 = 64 << 10;
const EIO: IoError = IoError::host(5);

/// Chunk by chunk, one at a time unless `depth` says otherwise.
fn options(depth: usize) -> MirrorOptions {
    MirrorOptions { copy: CopyOptions { depth, chunk: CHUNK, ..CopyOptions::default() }, rounds_max: Some(4) }
}

/// Copies `source` to `target` and completes by itself.
fn job(depth: usize) -> CopyJob {
    CopyJob { auto_complete: true, options: options(depth), ..CopyJob::new("source", "target") }
}

/// As [`job`], and leaves the source's users where they are: the graph is the same before and after.
fn in_place(depth: usize) -> CopyJob {
    CopyJob { pivot: false, ..job(depth) }
}

async fn start(bed: &Bed, options: JobOptions, job: CopyJob) -> JobRef {
    JobRegistry::start(&bed.gs, options, job).await.expect("it starts")
}

fn node_of(bed: &Bed, device: &common::Device) -> String {
    bed.gs.root_node(&device.root).expect("attached").name().into()
}

fn check_equal(source: &MemStorage, target: &MemStorage) {
    let len = source.len();
    assert_eq!(target.len(), len);
    assert_eq!(difference(&source.bytes(0, len as usize), &target.bytes(0, len as usize)), None);
}

#[test]
fn job_2_a_copy_of_a_node_that_is_written_at_depth_32_is_equal_byte_for_byte() {
    let seed = seed();
    println!("CAIRN_SEED={seed:#x}");
    const SIZE: u64 = 4 << 20;
    for round in 0..6u64 {
        run(|bed| async move {
            let source = bed.add_noise("source", SIZE, seed).await;
            let target = bed.add_noise("target", SIZE, seed + 1).await;
            match round % 3 {
                0 => {}
                1 => source.set_mode(MemMode::Slow),
                _ => {
                    source.reorder(seed, 8);
                    target.reorder(seed + 2, 4);
                }
            }
            [&source, &target].iter().for_each(|storage| storage.set_logging(false));
            let device = bed.device("source").await;
            let mut model = noise(SIZE, seed);
            let scribbler = device.scribble(SIZE, 4096, 32, seed + round);
            bed.until(|| scribbler.writes() > 200).await;
            let home = IoThread::spawn(IoThreadOptions::named("job")).expect("an I/O thread");
            let copy = CopyJob { home: Some(home.handle()), ..job(8) };
            let job = start(&bed, JobOptions::new("copy"), copy).await;
            job.ended().await.expect("a good end");
            assert_eq!(node_of(&bed, &device), "target");
            let before = scribbler.writes();
            bed.until(|| scribbler.writes() > before + 200).await;
            let writes = scribbler.stop(&bed, &mut model).await;
            println!("round {round}: {writes} writes, {:?}", job.info().progress);
            assert_eq!(difference(&target.bytes(0, SIZE as usize), &model), None, "seed {seed:#x}, round {round}");
            let names: Vec<_> = bed.gs.nodes().into_iter().map(|node| node.name).collect();
            assert_eq!(names, ["source", "target"]);
        });
    }
}

// Scenario: a job's node gets another I/O thread while the job works. The job stays where it is, and nobody deletes that thread before it is over.
#[test]
fn the_thread_of_a_job_is_in_use_until_it_ends() {
    run(|bed| async move {
        bed.add_noise("source", 16 * CHUNK, 1).await;
        bed.add_zeroes("target", 16 * CHUNK).await;
        let object = [("qom-type", "iothread"), ("id", "io")];
        bed.gs.add_object(common::dict(&object)).await.expect("a thread");
        let node = bed.gs.find_node("source").expect("it is there");
        bed.gs
            .set_node_home(&node, Some(&bed.gs.io_thread("io").expect("it is there")), false)
            .await
            .expect("nobody minds");
        let options = JobOptions { speed: 1, ..JobOptions::new("copy") };
        let job = start(&bed, options, in_place(1)).await;
        bed.gs.set_node_home(&node, None, true).await.expect("nobody minds");
        let refused = bed.gs.remove_object("io").expect_err("the job is there").to_string();
        assert_eq!(refused, "object 'io' is in use, can not be deleted");
        job.cancel(Cancel::Force).expect("it is cancelled");
        job.ended().await.expect_err("it was cancelled");
        bed.gs.remove_object("io").expect("nobody uses it");
    });
}

#[test]
fn job_2_a_write_in_flight_when_tracking_begins_is_copied() {
    run(|bed| async move {
        let source = bed.add_noise("source", 4 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 4 * CHUNK).await;
        let device = bed.device("source").await;
        source.hold(Some(MemOpKind::Write));
        let root = device.root.io().clone();
        let writing = bed.gs.main().spawn(async move { write(&root, CHUNK, vec![7; 512]).await });
        source.wait_held(1).await;
        let starting = bed.gs.main().spawn(JobRegistry::start(&bed.gs, JobOptions::new("copy"), in_place(1)));
        bed.sleep_ms(20).await;
        // Whether it may start or not: what was in flight must not be missed.
        let status = bed.registry().job("copy").map(|job| job.status());
        source.release_all();
        writing.join().await.expect("a write");
        let job = starting.join().await.expect("it starts");
        job.ended().await.expect("a good end");
        check_equal(&source, &target);
        assert_eq!(status.expect("listed"), JobStatus::Created, "the first look came before the drain was over");
    });
}

#[test]
fn job_2_a_write_while_the_job_is_pending_waits_and_is_not_lost() {
    run(|bed| async move {
        bed.add_noise("source", 4 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 4 * CHUNK).await;
        let device = bed.device("source").await;
        let job = start(&bed, JobOptions::manual("copy"), job(2)).await;
        job.reached(|status| status == JobStatus::Pending).await;
        let root = device.root.io().clone();
        let writing = bed.gs.main().spawn(async move { write(&root, 5000, vec![9; 4096]).await });
        bed.sleep_ms(20).await;
        assert_eq!(device.root.io().in_flight(), 0);
        job.finalize().expect("it is pending");
        job.ended().await.expect("a good end");
        writing.join().await.expect("a write");
        assert_eq!(target.bytes(5000, 4096), vec![9; 4096]);
        assert_eq!(device.read(5000, 4096).await, vec![9; 4096]);
    });
}

#[test]
fn req_4_a_write_that_fails_half_way_leaves_its_chunks_dirty() {
    run(|bed| async move {
        let source = bed.add_noise("source", 4 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 4 * CHUNK).await;
        let device = bed.device("source").await;
        let copy = CopyJob { auto_complete: false, ..in_place(1) };
        let job = start(&bed, JobOptions::new("copy"), copy).await;
        job.reached(|status| status == JobStatus::Ready).await;
        source.set_script(|op| match op.kind {
            MemOpKind::Write => Verdict::FailAfter(1000, EIO),
            _ => Verdict::Serve,
        });
        write(device.root.io(), CHUNK + 512, vec![3; 4096]).await.expect_err("it fails");
        source.clear_script();
        job.complete().expect("it is ready");
        job.ended().await.expect("a good end");
        assert_eq!(source.bytes(CHUNK + 512, 1000), vec![3; 1000]);
        check_equal(&source, &target);
    });
}

#[test]
fn req_4_a_write_that_is_copied_before_it_is_over_is_copied_again() {
    run(|bed| async move {
        let source = bed.add_noise("source", 4 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 4 * CHUNK).await;
        let device = bed.device("source").await;
        let copy = CopyJob { auto_complete: false, ..in_place(1) };
        let job = start(&bed, JobOptions::new("copy"), copy).await;
        job.reached(|status| status == JobStatus::Ready).await;
        let before = target.count(MemOpKind::Write);
        source.hold(Some(MemOpKind::Write));
        let root = device.root.io().clone();
        let writing = bed.gs.main().spawn(async move { write(&root, CHUNK, vec![4; 512]).await });
        source.wait_held(1).await;
        // The bit is set before the write starts, so its chunk is copied now, with the old content.
        bed.until(|| target.count(MemOpKind::Write) > before).await;
        source.release_all();
        writing.join().await.expect("a write");
        job.complete().expect("it is ready");
        job.ended().await.expect("a good end");
        check_equal(&source, &target);
    });
}

#[test]
fn req_4_zero_writes_and_discards_are_copied_too() {
    run(|bed| async move {
        let source = bed.add_noise("source", 4 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 4 * CHUNK).await;
        let device = bed.device("source").await;
        let copy = CopyJob { auto_complete: false, ..in_place(1) };
        let job = start(&bed, JobOptions::new("copy"), copy).await;
        job.reached(|status| status == JobStatus::Ready).await;
        device.root.io().zero(100, 5000, block_common::RequestFlags::empty()).await.expect("zeroes");
        device.root.io().discard(2 * CHUNK, CHUNK).await.expect("a discard");
        device.root.io().flush().await.expect("a flush");
        job.complete().expect("it is ready");
        job.ended().await.expect("a good end");
        assert!(source.bytes(2 * CHUNK, 512).iter().all(|byte| *byte == 0));
        check_equal(&source, &target);
    });
}

/// Whether the job is paused when it is cancelled.
#[derive(Clone, Copy, PartialEq)]
enum When {
    Running,
    Paused,
}

/// Cancel a job while its `nth` operation is under way. Tells whether there was one.
async fn cancel_at(bed: &Rc<Bed>, storages: [&MemStorage; 2], nth: u64, when: When) -> bool {
    let count = Arc::new(AtomicU64::new(0));
    for storage in storages {
        let count = count.clone();
        storage.set_script(
            move |_| if count.fetch_add(1, Ordering::SeqCst) == nth { Verdict::Hold } else { Verdict::Serve },
        );
    }
    let before = bed.picture().await;
    let job = start(bed, JobOptions::new("copy"), in_place(2)).await;
    let is_held = || storages.iter().any(|storage| !storage.held().is_empty());
    bed.until(|| is_held() || job.status().is_over()).await;
    let was_held = is_held();
    if was_held && when == When::Paused {
        // Late pauses find a body that has ended, or that finishes what it began.
        let _ = job.pause();
        storages.iter().for_each(|storage| storage.release_all());
        job.reached(|status| matches!(status, JobStatus::Paused | JobStatus::Standby) || status.is_over()).await;
    }
    let accepted = job.cancel(Cancel::Force).is_ok();
    storages.iter().for_each(|storage| storage.release_all());
    let ended = job.ended().await;
    assert_eq!(ended.is_err(), accepted, "operation {nth}");
    if let Err(error) = ended {
        assert!(error.is_cancelled(), "operation {nth}: {error}");
    }
    assert_eq!(bed.picture().await, before, "operation {nth}");
    was_held
}

#[test]
fn job_4_a_cancel_at_any_operation_leaves_the_graph_as_it_was() {
    run(|bed| async move {
        let source = bed.add_noise("source", 6 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 6 * CHUNK).await;
        let device = bed.device("source").await;
        for when in [When::Running, When::Paused] {
            let mut nth = 0;
            while cancel_at(&bed, [&source, &target], nth, when).await {
                nth += 1;
            }
            assert!(nth >= 12, "{nth} operations");
        }
        device.write(0, 1, 512).await;
        start(&bed, JobOptions::new("copy"), in_place(2)).await.ended().await.expect("a good end");
        check_equal(&source, &target);
    });
}

/// Fail each operation of a kind in turn, until the job gets through; returns how many there were.
async fn fail_each(bed: &Bed, storage: &MemStorage, kind: MemOpKind, depth: usize) -> u64 {
    let before = bed.picture().await;
    for nth in 0.. {
        storage.fail_nth(Some(kind), nth, EIO);
        let job = start(bed, JobOptions::new("copy"), in_place(depth)).await;
        let ended = job.ended().await;
        storage.clear_script();
        assert_eq!(bed.picture().await, before, "{kind:?} {nth}");
        let Err(error) = ended else { return nth };
        let JobError::Run(RunError::Copy(CopyError { act, offset, error: EIO })) = *error else {
            panic!("{kind:?} {nth}: {error:?}");
        };
        if depth == 1 && act != CopyAct::Flush {
            assert_eq!(offset, nth * CHUNK, "{kind:?} {nth}: {error}");
        }
        assert!(error.to_string().ends_with("failed: Input/output error"), "{error}");
    }
    unreachable!("a job has an end")
}

#[test]
fn job_4_a_failure_of_any_request_leaves_the_graph_as_it_was() {
    run(|bed| async move {
        let source = bed.add_noise("source", 6 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 6 * CHUNK).await;
        let device = bed.device("source").await;
        for depth in [1, 4] {
            assert_eq!(fail_each(&bed, &source, MemOpKind::Read, depth).await, 6);
            assert_eq!(fail_each(&bed, &target, MemOpKind::Write, depth).await, 6);
            assert_eq!(fail_each(&bed, &target, MemOpKind::Flush, depth).await, 1);
        }
        device.root.io().zero(0, 6 * CHUNK, block_common::RequestFlags::empty()).await.expect("zeroes");
        assert_eq!(fail_each(&bed, &target, MemOpKind::Zero, 1).await, 6);
        check_equal(&source, &target);
    });
}

#[test]
fn a_target_of_another_size_is_refused() {
    run(|bed| async move {
        bed.add_noise("source", 4 * CHUNK, 1).await;
        for size in [0, CHUNK, 5 * CHUNK] {
            let target = MemStorage::new(MemOptions::new(size));
            let node = bed.add("target", &target).await;
            let before = bed.picture().await;
            let job = start(&bed, JobOptions::manual("copy"), job(1)).await;
            let error = job.ended().await.expect_err("sizes differ");
            assert_eq!(error.to_string(), "Source and target image have different sizes");
            assert_eq!(bed.picture().await, before);
            bed.registry().dismiss("copy").expect("it is over");
            bed.gs.close(node).await.expect("nobody else uses it");
        }
    });
}

/// What starting `job` is refused with; the graph is as it was.
async fn refusal(bed: &Bed, job: CopyJob) -> String {
    let before = bed.picture().await;
    let error = JobRegistry::start(&bed.gs, JobOptions::new("other"), job).await.expect_err("it cannot begin");
    assert_eq!(bed.picture().await, before);
    assert_eq!(bed.statuses("other"), "created null");
    error.to_string()
}

#[test]
fn job_4_a_job_that_cannot_begin_leaves_nothing() {
    run(|bed| async move {
        bed.add_noise("source", 4 * CHUNK, 1).await;
        bed.add_zeroes("target", 4 * CHUNK).await;
        let device = bed.device("source").await;
        let to = |target: &str| CopyJob { target: target.into(), ..job(1) };
        assert_eq!(refusal(&bed, to("source")).await, "Can't mirror node into itself");
        assert_eq!(refusal(&bed, to("nope")).await, "Cannot find device='nope' nor node-name='nope'");
        let granules = |granularity| CopyJob { granularity, ..job(1) };
        assert_eq!(refusal(&bed, granules(1536)).await, "Parameter 'granularity' expects a power of 2");
        let range = "Parameter 'granularity' expects a value in range [512B, 64MB]";
        assert_eq!(refusal(&bed, granules(256)).await, range);
        assert_eq!(refusal(&bed, granules(128 << 20)).await, range);
        let named = CopyJob { filter: Some("target".parse().expect("a name")), ..job(1) };
        assert_eq!(refusal(&bed, named).await, "Duplicate nodes with node-name='target'");

        // Somebody reads the target, or resizes the source.
        let user =
            |perm| bed.gs.new_root("other", ParentKind::Backend, PermPair::new(perm, Perm::all()), &bed.gs.main_io());
        let reader = user(Perm::CONSISTENT_READ);
        let target = bed.gs.find_node("target").expect("target");
        bed.gs.attach_root(&reader, Some(&target)).await.expect("nobody is in the way");
        let error = refusal(&bed, job(1)).await;
        assert!(
            error.starts_with("Permission conflict on node 'target': permissions 'consistent read' are both"),
            "{error}"
        );
        bed.gs.close_root(reader).await;
        let resizer = user(Perm::RESIZE);
        let source = bed.gs.find_node("source").expect("source");
        bed.gs.attach_root(&resizer, Some(&source)).await.expect("nobody is in the way");
        let error = refusal(&bed, job(1)).await;
        assert!(error.starts_with("Permission conflict on node 'source': permissions 'resize' are both"), "{error}");
        bed.gs.close_root(resizer).await;

        // A second job on the same nodes, in whatever role.
        bed.add_zeroes("third", 4 * CHUNK).await;
        let first = start(&bed, JobOptions::new("copy"), CopyJob::new("source", "target")).await;
        let busy = |node: &str, op: &str| {
            format!("Node '{node}' is busy: block device is in use by block job: copy (operation '{op}')")
        };
        assert_eq!(refusal(&bed, to("third")).await, busy("source", "mirror-source"));
        let between = |source: &str, target: &str| CopyJob { source: source.into(), ..to(target) };
        assert_eq!(refusal(&bed, between("third", "target")).await, busy("target", "mirror-target"));
        assert_eq!(refusal(&bed, between("third", "source")).await, busy("source", "mirror-target"));
        assert_eq!(refusal(&bed, between("target", "third")).await, busy("target", "mirror-source"));
        let blocked = |name: &str| bed.gs.blocked_ops(&bed.gs.find_node(name).expect(name)).len();
        let filter = node_of(&bed, &device);
        assert!(blocked(&filter) > 0 && blocked("third") == 0);
        device.write(0, 1, 512).await;
        first.reached(|status| status == JobStatus::Ready).await;
        first.complete().expect("it is ready");
        first.ended().await.expect("a good end");
        assert_eq!(node_of(&bed, &device), "target");
        assert_eq!([blocked("source"), blocked("target")], [0, 0]);
    });
}

#[test]
fn job_2_nobody_writes_to_the_source_past_the_filter() {
    run(|bed| async move {
        bed.add_noise("source", 4 * CHUNK, 1).await;
        bed.add_zeroes("target", 4 * CHUNK).await;
        let source = bed.gs.find_node("source").expect("source");
        let easygoing = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
        let user = bed.gs.new_root("disk", ParentKind::Backend, easygoing, &bed.gs.main_io());
        bed.gs.attach_root(&user, Some(&source)).await.expect("nobody is in the way");
        let job = start(&bed, JobOptions::new("copy"), CopyJob::new("source", "target")).await;
        let writer =
            bed.gs.new_root("other", ParentKind::Backend, PermPair::new(Perm::WRITE, Perm::all()), &bed.gs.main_io());
        let error = bed.gs.attach_root(&writer, Some(&source)).await.expect_err("the filter is in the way");
        assert!(
            error.to_string().starts_with("Permission conflict on node 'source': permissions 'write' are both"),
            "{error}"
        );
        // Above the filter all may write, and below it all may read.
        bed.gs.set_root_perm(&user, PermPair::new(Perm::WRITE, Perm::all())).expect("the filter passes it on");
        bed.gs.set_root_perm(&writer, easygoing).expect("it is nowhere");
        bed.gs.attach_root(&writer, Some(&source)).await.expect("nobody is in the way");
        job.cancel(Cancel::Force).expect("it runs");
        assert!(job.ended().await.is_err());
        bed.gs.set_root_perm(&writer, PermPair::new(Perm::WRITE, Perm::all())).expect("nobody is in the way");
        bed.gs.close_root(writer).await;
        bed.gs.close_root(user).await;
    });
}

#[test]
fn reopen_4_an_edge_that_a_job_relies_on_stays() {
    run(|bed| async move {
        bed.add_noise("source", 4 * CHUNK, 1).await;
        bed.add_zeroes("target", 4 * CHUNK).await;
        bed.add_zeroes("third", 4 * CHUNK).await;
        let copy = CopyJob { filter: Some("top".parse().expect("a name")), ..CopyJob::new("source", "target") };
        let job = start(&bed, JobOptions::new("copy"), copy).await;
        let [source, third, top] = ["source", "third", "top"].map(|name| bed.gs.find_node(name).expect(name));
        assert_eq!(bed.gs.node_info(&top).expect("top").driver, "mirror_top");
        let section = bed.gs.drain(&source).await;
        for error in
            [bed.gs.replace_node(&section, &source, &third), bed.gs.replace_child(&section, &top, "file", None)]
        {
            assert_eq!(
                error.expect_err("frozen").to_string(),
                "Cannot change frozen 'file' link from 'top' to 'source'"
            );
        }
        drop((section, top, third, source));
        job.cancel(Cancel::Force).expect("it runs");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        assert!(bed.gs.find_node("top").is_err());
    });
}

#[test]
fn a_paused_job_sends_no_requests_and_goes_on_where_it_was() {
    run(|bed| async move {
        let source = bed.add_noise("source", 16 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 16 * CHUNK).await;
        let device = bed.device("source").await;
        source.set_script(|_| Verdict::Delay(Duration::from_millis(2)));
        let job = start(&bed, JobOptions::new("copy"), in_place(2)).await;
        bed.until(|| job.info().progress.current > 0).await;
        job.pause().expect("it runs");
        job.reached(|status| status == JobStatus::Paused).await;
        let ops = || (source.log().len(), target.log().len());
        let (before, progress) = (ops(), job.info().progress);
        bed.sleep_ms(20).await;
        assert_eq!((ops(), job.info().progress), (before, progress));
        device.write(0, 1, 512).await;
        assert!(progress.current < progress.total);
        job.resume().expect("it is paused");
        job.ended().await.expect("a good end");
        let progress = job.info().progress;
        assert_eq!(progress.current, progress.total);
        check_equal(&source, &target);
        let statuses = bed.statuses("copy");
        assert!(statuses.starts_with("created running paused running ready waiting"), "{statuses}");
    });
}

#[test]
fn a_speed_limit_holds_and_can_be_changed() {
    run(|bed| async move {
        let source = bed.add_noise("source", 16 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 16 * CHUNK).await;
        // Fifty milliseconds a chunk.
        let options = JobOptions { speed: 20 * CHUNK, ..JobOptions::new("copy") };
        let begin = Instant::now();
        let job = start(&bed, options, in_place(4)).await;
        bed.until(|| job.info().progress.current >= 4 * CHUNK).await;
        assert!(begin.elapsed() >= Duration::from_millis(150), "{:?}", begin.elapsed());
        job.set_speed(1).expect("it runs");
        bed.sleep_ms(30).await;
        let slow = job.info().progress.current;
        bed.sleep_ms(100).await;
        assert!(job.info().progress.current <= slow + CHUNK);
        job.set_speed(0).expect("it runs");
        job.ended().await.expect("a good end");
        check_equal(&source, &target);
        // A job that waits for its turn can be cancelled at once.
        let job = start(&bed, JobOptions { speed: 1, ..JobOptions::new("copy") }, in_place(4)).await;
        bed.sleep_ms(20).await;
        job.cancel(Cancel::Force).expect("it runs");
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
    });
}

#[test]
fn drain_1_sections_begin_and_end_while_a_job_runs() {
    run(|bed| async move {
        let source = bed.add_noise("source", 32 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 32 * CHUNK).await;
        let device = bed.device("source").await;
        source.set_script(|_| Verdict::Delay(Duration::from_micros(500)));
        let job = start(&bed, JobOptions::new("copy"), in_place(4)).await;
        let scribbler = device.scribble(32 * CHUNK, 512, 4, 1);
        let nodes = ["source", "target"].map(|name| bed.gs.find_node(name).expect(name));
        for round in 0..12 {
            let section = match round % 3 {
                0 => bed.gs.drain_all().await,
                which => bed.gs.drain(&nodes[which - 1]).await,
            };
            // What the section covers stands still; the other node may get what was read before.
            let still: &[_] = match round % 3 {
                0 => &[&source, &target],
                1 => &[&source],
                _ => &[&target],
            };
            let ops: Vec<_> = still.iter().map(|storage| storage.log().len()).collect();
            bed.sleep_ms(3).await;
            assert_eq!(still.iter().map(|storage| storage.log().len()).collect::<Vec<_>>(), ops, "round {round}");
            drop(section);
            bed.sleep_ms(1).await;
        }
        let mut model = noise(32 * CHUNK, 1);
        scribbler.stop(&bed, &mut model).await;
        drop(nodes);
        job.ended().await.expect("a good end");
        assert_eq!(difference(&source.bytes(0, model.len()), &model), None);
        drop(device);
    });
}

#[test]
fn drain_3_a_job_whose_requests_are_held_back_can_be_cancelled() {
    run(|bed| async move {
        bed.add_noise("source", 8 * CHUNK, 1).await;
        bed.add_zeroes("target", 8 * CHUNK).await;
        let before = bed.picture().await;
        let target = bed.gs.find_node("target").expect("target");
        let section = bed.gs.drain(&target).await;
        let job = start(&bed, JobOptions::new("copy"), in_place(4)).await;
        bed.sleep_ms(10).await;
        assert_eq!(job.info().progress.current, 0);
        job.cancel(Cancel::Force).expect("it runs");
        bed.sleep_ms(10).await;
        drop(section);
        assert!(job.ended().await.expect_err("cancelled").is_cancelled());
        drop(target);
        assert_eq!(bed.picture().await, before);
    });
}

#[test]
fn job_4_a_job_whose_thread_ends_leaves_the_graph_as_it_was() {
    run(|bed| async move {
        let source = bed.add_noise("source", 8 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 8 * CHUNK).await;
        let device = bed.device("source").await;
        let before = bed.picture().await;
        for nth in 0..8 {
            let mut left = nth;
            target.set_script(move |_| {
                left -= 1;
                if left < 0 { Verdict::Hold } else { Verdict::Serve }
            });
            let home = IoThread::spawn(IoThreadOptions::named("job")).expect("an I/O thread");
            let copy = CopyJob { home: Some(home.handle()), ..in_place(2) };
            let job = start(&bed, JobOptions::new("copy"), copy).await;
            target.wait_held(1).await;
            drop(home);
            assert!(matches!(*job.ended().await.expect_err("no body"), JobError::Lost));
            target.clear_script();
            assert_eq!(bed.picture().await, before);
            device.write(0, 1, 512).await;
        }
        start(&bed, JobOptions::new("copy"), in_place(2)).await.ended().await.expect("a good end");
        check_equal(&source, &target);
    });
}

#[test]
fn job_4_a_soft_cancel_leaves_a_copy_and_no_trace() {
    run(|bed| async move {
        let source = bed.add_noise("source", 8 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 8 * CHUNK).await;
        let device = bed.device("source").await;
        let before = bed.picture().await;
        let job =
            start(&bed, JobOptions::new("copy"), CopyJob { options: options(2), ..CopyJob::new("source", "target") })
                .await;
        job.reached(|status| status == JobStatus::Ready).await;
        device.write(CHUNK, 1, 512).await;
        job.cancel(Cancel::Soft).expect("it is ready");
        job.ended().await.expect("a good end");
        assert_eq!(bed.picture().await, before);
        check_equal(&source, &target);
        assert_eq!(node_of(&bed, &device), "source");
        assert!(bed.events().iter().any(|event| matches!(event, JobEvent::Completed(info) if info.error.is_none())));
    });
}

#[test]
fn a_copy_that_is_told_to_complete_twice_completes_once() {
    run(|bed| async move {
        bed.add_noise("source", 8 * CHUNK, 1).await;
        let target = bed.add_zeroes("target", 8 * CHUNK).await;
        let device = bed.device("source").await;
        let job = start(
            &bed,
            JobOptions::manual("copy"),
            CopyJob { options: options(2), ..CopyJob::new("source", "target") },
        )
        .await;
        job.reached(|status| status == JobStatus::Ready).await;
        job.complete().expect("it is ready");
        job.complete().expect("twice is once");
        job.reached(|status| status == JobStatus::Pending).await;
        let error = job.complete().expect_err("it is pending");
        assert_eq!(error.to_string(), "Job 'copy' in state 'pending' cannot accept command verb 'complete'");
        job.finalize().expect("it is pending");
        job.ended().await.expect("a good end");
        device.write(0, 5, 512).await;
        assert_eq!(target.bytes(0, 512), vec![5; 512]);
        let expected = "created running ready waiting pending concluded";
        assert_eq!(bed.statuses("copy"), expected);
    });
}

#[test]
fn job_4_a_pivot_that_is_refused_leaves_the_graph_as_it_was() {
    run(|bed| async move {
        let source = bed.add_noise("source", 8 * CHUNK, 1).await;
        bed.add_zeroes("target", 8 * CHUNK).await;
        let device = bed.device("source").await;
        // Somebody who may be there while the job writes, and who lets nobody read.
        let perm = PermPair::new(Perm::WRITE_UNCHANGED, Perm::WRITE | Perm::WRITE_UNCHANGED);
        let jealous = bed.gs.new_root("jealous", ParentKind::Backend, perm, &bed.gs.main_io());
        let node = bed.gs.find_node("target").expect("target");
        bed.gs.attach_root(&jealous, Some(&node)).await.expect("nobody is in the way");
        drop(node);
        let before = bed.picture().await;
        let job = start(&bed, JobOptions::manual("copy"), job(2)).await;
        job.reached(|status| status == JobStatus::Pending).await;
        job.finalize().expect("it is pending");
        let error = job.ended().await.expect_err("it is refused");
        assert!(matches!(*error, JobError::Graph(GraphError::Permission { .. })), "{error}");
        assert_eq!(bed.statuses("copy"), "created running ready waiting pending aborting concluded");
        assert_eq!(bed.picture().await, before);
        device.write(0, 5, 512).await;
        assert_eq!(source.bytes(0, 512), vec![5; 512]);
        bed.gs.close_root(jealous).await;
    });
}

/// A copy job of a transaction whose other job cannot be prepared.
struct Doomed(CopyJob);
struct StartedDoomed(Result<StartedCopy, CopyLeft>);

impl Job for Doomed {
    const TYPE: JobType = JobType::Mirror;
    type Started = StartedDoomed;

    async fn pre_run(self, setup: JobSetup) -> JobResult<Start<StartedDoomed>> {
        Ok(self.0.pre_run(setup).await?.map(|job| StartedDoomed(Ok(job))))
    }
}

impl StartedJob for StartedDoomed {
    type Report = ();
    type Prepared = PreparedCopy;
    type Left = CopyLeft;

    async fn serve(&mut self, context: &JobContext) {
        if let Ok(job) = &mut self.0 {
            job.serve(context).await;
        }
    }

    async fn prepare(self, gs: &GlobalState, report: ()) -> Result<PreparedCopy, (Self, JobError)> {
        let Ok(job) = self.0 else { unreachable!("prepared once") };
        match job.prepare(gs, report).await {
            Ok(prepared) => {
                let users = gs.nodes().into_iter().find(|node| node.name == "target").expect("target").parents;
                assert!(users.iter().any(|user| user.contains("'disk'")), "{users:?}");
                Err((Self(Err(prepared.abort(gs).await)), JobError::Options("the other job failed".into())))
            }
            Err((job, error)) => Err((Self(Ok(job)), error)),
        }
    }

    async fn abort(self, gs: &GlobalState) -> CopyLeft {
        match self.0 {
            Ok(job) => job.abort(gs).await,
            Err(left) => left,
        }
    }
}

#[test]
fn job_4_a_pivot_is_taken_back_when_another_job_of_the_transaction_fails() {
    run(|bed| async move {
        let source = bed.add_noise("source", 8 * CHUNK, 1).await;
        bed.add_zeroes("target", 8 * CHUNK).await;
        let device = bed.device("source").await;
        let before = bed.picture().await;
        let job = JobRegistry::start(&bed.gs, JobOptions::new("copy"), Doomed(job(2))).await.expect("it starts");
        assert_eq!(job.ended().await.expect_err("doomed").to_string(), "the other job failed");
        assert_eq!(bed.picture().await, before);
        device.write(0, 5, 512).await;
        assert_eq!(source.bytes(0, 512), vec![5; 512]);
    });
}

#[test]
fn zeroes_are_not_copied_as_data() {
    run(|bed| async move {
        let mut content = vec![0; 8 * CHUNK as usize];
        content[3 * CHUNK as usize..4 * CHUNK as usize].fill(1);
        let source = MemStorage::with_content(MemOptions::new(8 * CHUNK), content);
        bed.add("source", &source).await;
        let device = bed.device("source").await;
        for target_is_zero in [false, true] {
            let name = if target_is_zero { "zeroes" } else { "noise" };
            let target = match target_is_zero {
                true => bed.add_zeroes(name, 8 * CHUNK).await,
                false => bed.add_noise(name, 8 * CHUNK, 2).await,
            };
            let mut copy = CopyJob { target: name.into(), auto_complete: false, ..in_place(1) };
            copy.options.copy.target_is_zero = target_is_zero;
            let job = start(&bed, JobOptions::new("copy"), copy).await;
            job.reached(|status| status == JobStatus::Ready).await;
            assert_eq!(target.count(MemOpKind::Write), 1);
            assert_eq!(target.count(MemOpKind::Zero), if target_is_zero { 0 } else { 7 });
            // What was copied once is zero no longer: then zeroes must be written.
            device.root.io().zero(3 * CHUNK, CHUNK, block_common::RequestFlags::empty()).await.expect("zeroes");
            job.complete().expect("it is ready");
            job.ended().await.expect("a good end");
            check_equal(&source, &target);
            device.write(3 * CHUNK, 1, CHUNK as usize).await;
        }
    });
}

#[test]
fn close_1_a_job_that_is_running_is_ended_first() {
    run(|bed| async move {
        let source = bed.add_noise("source", 8 * CHUNK, 1).await;
        bed.add_zeroes("target", 8 * CHUNK).await;
        source.set_script(|_| Verdict::Delay(Duration::from_millis(1)));
        start(&bed, JobOptions::manual("copy"), job(1)).await;
        // The bed closes everything, and finds that nothing is left.
    });
}

#[test]
fn close_1_a_job_that_nobody_ended_loses_its_nodes_and_leaves_nothing() {
    run(|bed| async move {
        let source = bed.add_noise("source", 8 * CHUNK, 1).await;
        bed.add_zeroes("target", 8 * CHUNK).await;
        source.set_script(|_| Verdict::Delay(Duration::from_millis(1)));
        let job = start(&bed, JobOptions::new("copy"), in_place(1)).await;
        // The job still holds its nodes: that is said, and they are closed as soon as it lets go of them.
        let closed = bed.gs.close_all().await;
        assert!(matches!(closed, Err(GraphError::LeftOpen(_)) | Ok(())), "{closed:?}");
        assert!(matches!(*job.ended().await.expect_err("its nodes are gone"), JobError::Run(RunError::Copy(_))));
        bed.gs.settle().await.expect("no closing failed");
        assert!(bed.gs.nodes().is_empty());
    });
}
