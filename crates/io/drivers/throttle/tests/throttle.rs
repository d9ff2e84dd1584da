//! The throttle engine over storage in memory: that it passes everything on, what it makes wait, and what ends the wait.
//!
//! Groups go by a clock that stands still, or that a thread moves on whenever somebody waits: no test depends on how fast this machine is.

use block_common::{AlignedBuf, ChildRole, IoBuf, IoError, Limits, Perm, Preallocation, RequestFlags};
use block_io::{IoThread, Queue, Request, Root, StaticGraph, StaticNode};
use block_testkit::bed::{Way, block_on, drop_after, io_thread, join_all, yield_now};
use block_testkit::conformance::{ConformanceOptions, run_everywhere};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemFile, MemMode, MemOpKind, MemOptions, MemStorage};
use block_throttle::LimitKind::{self, *};
use block_throttle::{Direction, Limit, LimitSettings, ManualClock, ThrottleGroup, ThrottleLimits};
use block_throttle_filter::Throttle;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const NONE: RequestFlags = RequestFlags::empty();

fn limits(of: &[(LimitKind, u64)]) -> ThrottleLimits {
    let mut settings = LimitSettings::default();
    for &(kind, rate) in of {
        settings[kind] = Limit { rate, ..Limit::default() };
    }
    ThrottleLimits::new(settings).expect("they go together")
}

/// A group that goes by a clock of its own.
fn group(of: &[(LimitKind, u64)]) -> (ThrottleGroup, ManualClock) {
    let clock = ManualClock::new();
    (ThrottleGroup::with_clock(limits(of), clock.clone()), clock)
}

/// Put a throttle above `file`.
fn above(graph: &mut StaticGraph, name: &str, file: &StaticNode, group: &ThrottleGroup) -> StaticNode {
    let mut shell = graph.node(name);
    let edge = shell.child(ChildRole::FILTERED_PRIMARY, Perm::all(), file);
    let group = group.clone();
    let open = |req| async move {
        let limits = edge.limits(&req)?;
        Ok(Throttle::new(edge, limits, &group))
    };
    let (engine, _) = block_on(shell.run(open)).expect("it opens");
    block_on(shell.install(engine, false)).expect("a node")
}

struct Opened {
    graph: StaticGraph,
    root: Root,
    node: StaticNode,
}

impl Opened {
    fn on(thread: &IoThread, storage: &MemStorage, group: &ThrottleGroup) -> Self {
        let mut graph = StaticGraph::new(thread.handle());
        let file = block_on(graph.node("file").install(storage.driver(), false)).expect("storage");
        let node = above(&mut graph, "throttle", &file, group);
        let root = graph.root("root", &node, Perm::all());
        Self { graph, root, node }
    }

    fn suites(self, may_fail: bool) {
        if !may_fail {
            run_everywhere(&self.root, &ConformanceOptions { region: 200_000, ..ConformanceOptions::default() });
        }
        let second = io_thread(true);
        let threads = vec![self.root.home(), second.handle()];
        let options = ModelOptions { threads, requests: 2000, may_fail, ..ModelOptions::default() };
        block_on(model::run(&self.root, options)).expect("the model agrees");
        block_on(self.graph.close()).expect("closed");
    }
}

fn storage(size: u64) -> MemStorage {
    let storage = MemStorage::new(MemOptions::new(size));
    storage.set_logging(false);
    storage
}

/// Runs beside `work`: moves the clock on to the next one whose time comes, over and over; and does `more` now and then.
fn beside<T>(clock: &ManualClock, mut more: impl FnMut(u64) + Send, work: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    struct Ends<'a>(&'a AtomicBool);
    impl Drop for Ends<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0;
            while !over.load(Ordering::SeqCst) {
                match clock.next() {
                    Some(next) => clock.advance(next),
                    None => std::thread::yield_now(),
                }
                count += 1;
                more(count);
            }
        });
        let _ends = Ends(&over);
        work()
    })
}

fn buf(len: usize) -> IoBuf {
    AlignedBuf::zeroed(len, 4096).into_io()
}

/// Wait until `done`, however long this machine takes.
async fn until(done: impl Fn() -> bool) {
    while !done() {
        yield_now().await;
    }
}

#[test]
fn it_conforms_without_limits() {
    let thread = io_thread(true);
    for mode in [MemMode::Now, MemMode::Slow] {
        let storage = storage(1 << 20);
        storage.set_mode(mode);
        Opened::on(&thread, &storage, &ThrottleGroup::new(ThrottleLimits::default())).suites(false);
    }
    for way in Way::ALL {
        let thread = way.thread();
        let mut graph = StaticGraph::new(thread.handle());
        let file = MemFile::new(1 << 20, way.engine, block_io::ThreadPool::new(4)).expect("a memfd");
        let file = block_on(graph.node("file").install(file, false)).expect("a file");
        let node = above(&mut graph, "throttle", &file, &ThrottleGroup::new(ThrottleLimits::default()));
        let root = graph.root("root", &node, Perm::all());
        Opened { graph, root, node }.suites(false);
    }
}

#[test]
fn it_conforms_with_limits() {
    let thread = io_thread(true);
    let blocks = Limits { request_alignment: 512, transfer_max: 65_536, ..Limits::NONE };
    for (of, below) in [
        (vec![(IopsTotal, 50)], Limits::NONE),
        (vec![(BpsRead, 100_000), (BpsWrite, 300_000)], Limits::NONE),
        (vec![(IopsRead, 7), (BpsTotal, 1 << 20)], blocks),
    ] {
        let storage = MemStorage::new(MemOptions { limits: below, ..MemOptions::new(1 << 20) });
        storage.set_logging(false);
        let (group, clock) = group(&of);
        let opened = Opened::on(&thread, &storage, &group);
        beside(&clock, |_| {}, || opened.suites(false));
        assert!(clock.now() > Duration::from_secs(1), "nobody has waited");
    }
}

/// Scenario: limits come, change and go while requests run.
#[test]
fn it_agrees_with_the_model_while_limits_change() {
    let thread = io_thread(true);
    let (group, clock) = group(&[]);
    let changing = group.clone();
    let change = move |count: u64| {
        if count.is_multiple_of(50) {
            changing.set_limits(match count / 50 % 4 {
                0 => ThrottleLimits::default(),
                1 => limits(&[(IopsTotal, 30)]),
                2 => limits(&[(BpsWrite, 100_000)]),
                _ => limits(&[(BpsTotal, 1 << 20), (IopsRead, 100)]),
            });
        }
    };
    let opened = Opened::on(&thread, &storage(1 << 20), &group);
    beside(&clock, change, || opened.suites(false));
}

/// Scenario: what is below fails, at random and when it is full.
#[test]
fn errors_from_below_are_told_and_nothing_else_breaks() {
    let thread = io_thread(true);
    let (group, clock) = group(&[(IopsTotal, 500)]);
    let storage = storage(1 << 20);
    let mut count = 0;
    storage.set_script(move |op| {
        count += 1;
        let fails = op.kind != MemOpKind::Close && count % 7 == 0;
        if fails { block_testkit::Verdict::Fail(IoError::host(5)) } else { block_testkit::Verdict::Serve }
    });
    let mut opened = Opened::on(&thread, &storage, &group);
    let root = opened.root.clone();
    let second = io_thread(true);
    beside(
        &clock,
        |_| {},
        || {
            let threads = vec![opened.root.home(), second.handle()];
            let options = ModelOptions { threads, requests: 1500, may_fail: true, ..ModelOptions::default() };
            let report = block_on(model::run(&root, options)).expect("the model agrees");
            assert!(report.failed > 0);
            storage.clear_script();
            // No space behind the end.
            storage.set_script(|op| match op.kind {
                MemOpKind::Write => block_testkit::Verdict::Fail(IoError::host(28)),
                _ => block_testkit::Verdict::Serve,
            });
            assert_eq!(block_on(root.write(0, buf(4096), NONE)).0, Err(IoError::host(28)));
            assert_eq!(block_on(root.read(0, buf(4096))).0, Ok(()));
            storage.clear_script();
            let alone = block_on(opened.graph.run_alone(&opened.node, |_| async {}));
            assert_eq!(alone, Ok(Some(())));
        },
    );
    block_on(opened.graph.close()).expect("closed");
}

/// One request of each kind that is limited, beside each other. Runs on the root's home, whether somebody asks for the result or not.
fn one_of_each(root: &Root) -> impl Future<Output = Vec<Result<(), IoError>>> + use<> {
    let each = |kind| {
        let root = root.clone();
        async move {
            match kind {
                0 => root.read(0, buf(4096)).await.0,
                1 => root.write(4096, buf(4096), NONE).await.0,
                2 => root.zero(8192, 4096, NONE).await,
                3 => root.discard(16_384, 4096).await,
                _ => root.write(32_768, buf(512), RequestFlags::FUA).await.0,
            }
        }
    };
    let running = root.home().run(join_all((0..5).map(each).collect::<Vec<_>>()));
    async move { running.await.expect("the thread goes on") }
}

/// Fill the buckets of `group`, so that nothing goes for a long time.
fn fill(group: &ThrottleGroup) {
    assert!(group.member().try_admit(Direction::Write, 1 << 30));
}

#[test]
fn reads_and_writes_wait_and_flushes_do_not() {
    let thread = io_thread(true);
    for of in [[(IopsTotal, 1), (BpsTotal, 1 << 20)], [(BpsTotal, 1), (IopsTotal, 1)]] {
        let (group, clock) = group(&of);
        let storage = MemStorage::new(MemOptions::new(1 << 20));
        let opened = Opened::on(&thread, &storage, &group);
        let root = &opened.root;
        fill(&group);
        let limited = one_of_each(root);
        block_on(async {
            until(|| group.waiting() == 5).await;
            root.flush().await.expect("it flushes");
            root.block_status(0, 4096).await.expect("it tells");
            root.truncate(2 << 20, Preallocation::Off).await.expect("it grows");
            assert_eq!(root.refresh_length().await, Ok(2 << 20));
        });
        for kind in [MemOpKind::Read, MemOpKind::Write, MemOpKind::Zero, MemOpKind::Discard] {
            assert_eq!(storage.count(kind), 0, "{kind:?}");
        }
        assert_eq!((group.waiting(), clock.now()), (5, Duration::ZERO));
        group.set_limits(ThrottleLimits::default());
        assert_eq!(block_on(limited), [Ok(()); 5]);
        assert_eq!((storage.count(MemOpKind::Zero), storage.count(MemOpKind::Discard)), (1, 1));
        block_on(opened.graph.close()).expect("closed");
    }
}

/// What somebody asked for and no longer waits for is carried out all the same, when its turn comes.
#[test]
fn a_dropped_caller_stops_nothing() {
    let thread = io_thread(true);
    let (group, clock) = group(&[(IopsTotal, 10)]);
    let storage = MemStorage::new(MemOptions::new(1 << 20));
    let opened = Opened::on(&thread, &storage, &group);
    assert!(group.member().try_admit(Direction::Write, 1) && group.member().try_admit(Direction::Write, 1));
    block_on(async {
        for at in 0..3 {
            assert!(drop_after(opened.root.write(at * 4096, buf(4096), NONE), 5).await.is_none());
        }
        until(|| group.waiting() == 3).await;
        for left in [2, 1, 0] {
            until(|| clock.next() == Some(Duration::from_millis(100))).await;
            clock.advance(Duration::from_millis(100));
            until(|| group.waiting() == left && storage.count(MemOpKind::Write) == 3 - left).await;
        }
    });
    block_on(opened.graph.close()).expect("closed");
}

/// Scenario: two nodes in one group, on a thread each, and one thread ends with requests that wait.
#[test]
fn the_end_of_an_io_thread_stops_nobody_elsewhere() {
    let [ends, stays] = [io_thread(true), io_thread(true)];
    let (group, clock) = group(&[(IopsTotal, 10)]);
    let storages = [storage(1 << 20), storage(1 << 20)];
    let [first, second] = [Opened::on(&ends, &storages[0], &group), Opened::on(&stays, &storages[1], &group)];
    fill(&group);
    assert!(group.member().try_admit(Direction::Read, 1));
    let lost = one_of_each(&first.root);
    block_on(until(|| group.waiting() == 5));
    let kept = one_of_each(&second.root);
    block_on(until(|| group.waiting() == 10));
    drop(ends);
    drop(lost);
    assert_eq!(group.waiting(), 5);
    assert_eq!(beside(&clock, |_| {}, || block_on(kept)), [Ok(()); 5]);
    assert_eq!(clock.now(), Duration::from_millis(500), "nobody waited for those who are gone");
    let Opened { graph, root, node } = second;
    block_on(graph.close()).expect("closed");
    drop((first, root, node));
    assert_eq!(group.members(), 0);
}

/// Scenario: the graph is closed with requests that would wait for a very long time.
#[test]
fn drain_5_closing_does_not_wait_for_limits() {
    let thread = io_thread(true);
    let (group, clock) = group(&[(BpsTotal, 1)]);
    let storage = MemStorage::new(MemOptions::new(1 << 20));
    let opened = Opened::on(&thread, &storage, &group);
    fill(&group);
    let waiting = one_of_each(&opened.root);
    block_on(until(|| group.waiting() == 5));
    block_on(opened.graph.close()).expect("closed");
    assert_eq!(block_on(waiting), [Ok(()); 5]);
    assert_eq!((clock.now(), storage.count(MemOpKind::Write)), (Duration::ZERO, 2));
}

/// Scenario: work that wants a node for itself, while requests wait: they go, and are paid for afterwards.
#[test]
fn drain_5_limits_hold_again_when_a_section_is_over() {
    let thread = io_thread(true);
    let (group, clock) = group(&[(IopsTotal, 10)]);
    let mut opened = Opened::on(&thread, &storage(1 << 20), &group);
    assert!(group.member().try_admit(Direction::Read, 1) && group.member().try_admit(Direction::Read, 1));
    let waiting = one_of_each(&opened.root);
    block_on(until(|| group.waiting() == 5));
    let root = opened.root.clone();
    let alone = opened.graph.run_alone(&opened.node, move |_| async move { root.in_flight() });
    // The request that comes meanwhile waits for the section, and then for the limits.
    assert_eq!(block_on(alone), Ok(Some(0)));
    assert_eq!(block_on(waiting), [Ok(()); 5]);
    let after = one_of_each(&opened.root);
    block_on(until(|| group.waiting() == 5));
    assert_eq!(clock.now(), Duration::ZERO);
    beside(&clock, |_| {}, || block_on(after));
    // Seven before them, in a bucket of one.
    assert_eq!(clock.now(), Duration::from_millis(1000));
    block_on(opened.graph.close()).expect("closed");
}

/// A device's own queue: mapped through without limits, through the home thread with them.
#[test]
fn a_queue_gets_its_answers_either_way() {
    let thread = io_thread(true);
    let (group, clock) = group(&[]);
    let opened = Opened::on(&thread, &storage(1 << 20), &group);
    let root = opened.root.clone();
    let run = || {
        let mut queue = Queue::new().expect("a queue");
        for tag in 0..8 {
            queue.submit(&root, Request::read(tag * 4096, buf(4096)), tag);
        }
        queue.kick();
        let mut done = Vec::new();
        while done.len() < 8 {
            queue.wait(&mut done, None);
        }
        assert!(done.iter().all(|one| one.done.result.is_ok()));
    };
    run();
    assert_eq!(clock.next(), None);
    group.set_limits(limits(&[(IopsRead, 10)]));
    beside(&clock, |_| {}, run);
    assert_eq!(clock.now(), Duration::from_millis(600));
    block_on(opened.graph.close()).expect("closed");
}
