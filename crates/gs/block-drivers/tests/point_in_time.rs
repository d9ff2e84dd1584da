//! `copy-before-write` and `snapshot-access` together, over storage in memory: whatever the guest does meanwhile, what is read is the point in time, or an error.

#![forbid(unsafe_code)]

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    AlignedBuf, Errno, IoBuf, IoError, IoResult, OptionReader, Options, ParentKind, Perm, PermPair, Preallocation,
    RequestFlags,
};
use block_drivers::{CbwControl, OnCbwError, register_all};
use block_gs::{
    BitmapOptions, DriverType, GlobalOptions, GlobalState, GraphResult, MainLoop, NoControl, NodeRef, OpenContext,
    Opened, RootRef,
};
use block_io::{IoThread, Root};
use block_testkit::bed::{drop_after, io_thread, join_all, yield_now};
use block_testkit::model::{self, ModelOptions};
use block_testkit::{MemMode, MemOpKind, MemOptions, MemStorage, Rng, Verdict, seed};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

const CLUSTER: u64 = 64 << 10;
const SIZE: u64 = 20 * CLUSTER - 1024;
const NONE: RequestFlags = RequestFlags::empty();
const LOST: i32 = 13;

type Storages = Rc<RefCell<BTreeMap<String, MemStorage>>>;

/// The driver `mem`: option `storage` names one of the bed's.
struct MemType(Storages);

#[async_trait(?Send)]
impl DriverType for MemType {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let engine = self.0.borrow()[&options.require_str("storage")?].driver();
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}

struct Bed {
    gs: GlobalState,
    source: MemStorage,
    target: MemStorage,
    /// What the source has at first.
    content: Arc<Vec<u8>>,
}

/// What a test works with: the guest's disk, its past, and the control of what keeps that.
struct Open {
    guest: RootRef,
    past: RootRef,
    control: CbwControl,
    cbw: NodeRef,
    _access: NodeRef,
}

/// Run `test` on a source with data everywhere but in every seventh cluster, which is a hole of zeroes.
fn run<F: Future<Output = ()>>(target: MemOptions, test: impl FnOnce(Rc<Bed>) -> F) {
    let main = MainLoop::new().expect("descriptors");
    let gs = GlobalState::new(&main, GlobalOptions::default()).expect("an I/O thread");
    register_all(&gs);
    let byte = |at: u64| if at / CLUSTER % 7 == 3 { 0 } else { (at / 512 % 255) as u8 + 1 };
    let content: Vec<u8> = (0..SIZE).map(byte).collect();
    let source = MemStorage::with_content(MemOptions::new(SIZE), content.clone());
    let target = MemStorage::new(target);
    for storage in [&source, &target] {
        storage.set_mode(MemMode::Slow);
    }
    let storages = BTreeMap::from([("source".to_owned(), source.clone()), ("target".to_owned(), target.clone())]);
    gs.register(Rc::new(MemType(Rc::new(RefCell::new(storages)))));
    main.run(async {
        test(Rc::new(Bed { gs: gs.clone(), source, target, content: Arc::new(content) })).await;
        gs.close_all().await.expect("nobody holds a node");
    });
}

fn plain() -> MemOptions {
    MemOptions::new(SIZE)
}

fn filled(len: u64, byte: u8) -> IoBuf {
    let mut buf = AlignedBuf::zeroed(len as usize, 4096);
    buf.fill(byte);
    buf.into_io()
}

async fn read(root: &Root, at: u64, len: u64) -> IoResult<Vec<u8>> {
    let (result, buf) = root.read(at, filled(len, 0xee)).await;
    result?;
    let mut bytes = vec![0; len as usize];
    buf.expect("it comes back").copy_to_slice(0, &mut bytes);
    Ok(bytes)
}

async fn write(root: &Root, at: u64, len: u64, byte: u8) -> IoResult<()> {
    root.write(at, filled(len, byte), NONE).await.0
}

/// Poll once.
async fn is_ready<F: Future + Unpin>(future: &mut F) -> bool {
    poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx).is_ready())).await
}

impl Bed {
    async fn add(&self, json: &str) -> GraphResult<NodeRef> {
        self.gs.open(Options::parse_json(json).expect("options")).await
    }

    /// The error of opening.
    async fn refused(&self, json: &str) -> String {
        match self.add(json).await {
            Ok(node) => format!("opened: {node:?}"),
            Err(error) => error.to_string(),
        }
    }

    async fn root(&self, node: &NodeRef, perm: Perm) -> GraphResult<RootRef> {
        let pair = PermPair::new(perm, Perm::all());
        let root = self.gs.new_root("root", ParentKind::Backend, pair, &self.gs.main_io());
        self.gs.attach_root(&root, Some(node)).await.map(|()| root)
    }

    async fn open(&self, more: &str) -> Open {
        self.open_over(r#"{"driver": "mem", "storage": "source", "discard": "unmap"}"#, more).await
    }

    async fn open_over(&self, source: &str, more: &str) -> Open {
        let cbw = self
            .add(&format!(
                r#"{{"driver": "copy-before-write", "node-name": "c", "discard": "unmap", "file": {source},
                "target": {{"driver": "mem", "storage": "target", "discard": "unmap"}}{more}}}"#
            ))
            .await
            .expect("it opens");
        let access =
            self.add(r#"{"driver": "snapshot-access", "file": "c", "discard": "unmap"}"#).await.expect("opens");
        let guest = self.root(&cbw, Perm::WRITE | Perm::CONSISTENT_READ | Perm::RESIZE).await.expect("free");
        let past = self.root(&access, Perm::CONSISTENT_READ | Perm::WRITE).await.expect("free");
        let control = self.gs.with_control(&cbw, |control: &mut CbwControl| control.clone()).expect("its control");
        Open { guest, past, control, cbw, _access: access }
    }

    /// Whoever can go on without further ado has done so when this returns.
    async fn let_run(&self) {
        let many = async {
            for _ in 0..200 {
                yield_now().await;
            }
        };
        self.gs.main_io().run(many).await.expect("the thread is there");
    }

    fn was(&self, at: u64, len: u64) -> Vec<u8> {
        self.content[at as usize..(at + len) as usize].to_vec()
    }

    /// Everything, read through the snapshot, is as it was.
    async fn check_all(&self, past: &Root) {
        for at in (0..SIZE).step_by(300_000) {
            let len = (SIZE - at).min(300_000);
            assert_eq!(read(past, at, len).await, Ok(self.was(at, len)), "{at:#x}");
        }
    }
}

/// Read `past` at random until `stop`, and compare with what was; or let it `forget`, and compare what is kept. Returns how many reads there were.
async fn read_the_past(past: Root, content: Arc<Vec<u8>>, mut rng: Rng, stop: Arc<AtomicBool>, forget: bool) -> u64 {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) || count == 0 {
        let at = rng.below(0..SIZE);
        let len = rng.below(1..(SIZE - at).min(3 * CLUSTER) + 1);
        if forget && rng.chance(10) {
            past.discard(at, len).await.expect("forgotten");
        }
        let kept = |error: IoError| assert!(forget && error.errno().raw() == LOST, "{error:?}");
        if rng.chance(20) {
            match past.block_status(at, len).await {
                Ok(told) => {
                    let all_zero = content[at as usize..(at + told.len) as usize].iter().all(|byte| *byte == 0);
                    assert!(!told.is_zero() || all_zero, "{told:?} at {at:#x}");
                }
                Err(error) => kept(error),
            }
        }
        match read(&past, at, len).await {
            Ok(bytes) => assert!(
                bytes == content[at as usize..(at + len) as usize],
                "{len:#x} bytes at {at:#x} are not what they were"
            ),
            Err(error) => kept(error),
        }
        count += 1;
        yield_now().await;
    }
    count
}

/// Scenario: a guest writes, zeroes and discards from two threads, storage carries out nothing in order, and two readers look at the past all the time; in
/// some rounds they say what they need no more.
#[test]
fn job_3_every_read_is_the_point_in_time() {
    let seed = seed();
    println!("CAIRN_SEED={seed}");
    let threads: [IoThread; 2] = [io_thread(true), io_thread(true)];
    for round in 0..8 {
        let (seed, forget) = (seed.wrapping_add(round), round % 4 == 3);
        run(plain(), |bed| {
            let threads = &threads;
            async move {
                let open = bed.open("").await;
                for storage in [&bed.source, &bed.target] {
                    storage.set_logging(false);
                    storage.reorder(seed, 4);
                }
                // Or the source takes at once what reaches it.
                if round % 2 == 1 {
                    bed.source.clear_script();
                    bed.source.set_mode(MemMode::Now);
                }
                let stop = Arc::new(AtomicBool::new(false));
                let readers = threads.iter().enumerate().map(|(index, thread)| {
                    let rng = Rng::new(seed ^ (index as u64 + 1) << 40);
                    let (past, content) = (open.past.io().clone(), bed.content.clone());
                    thread.handle().run(read_the_past(past, content, rng, stop.clone(), forget))
                });
                let readers: Vec<_> = readers.collect();
                let handles = threads.iter().map(IoThread::handle).collect();
                let options = ModelOptions { threads: handles, requests: 400, seed, ..ModelOptions::default() };
                let agrees = model::run(open.guest.io(), options).await;
                stop.store(true, Ordering::Relaxed);
                for reader in join_all(readers).await {
                    reader.expect("every read is the point in time");
                }
                agrees.expect("the guest has its disk");
                for storage in [&bed.source, &bed.target] {
                    storage.release_all();
                }
                if !forget {
                    bed.check_all(open.past.io()).await;
                }
            }
        });
    }
}

/// Scenario: somebody reads the past from the source, slowly; the guest writes there. It copies, and waits for the reader.
#[test]
fn job_3_a_write_waits_for_a_reader_of_the_source() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        let mut held = false;
        bed.source.set_script(move |op| match op.kind {
            MemOpKind::Read if !std::mem::replace(&mut held, true) => Verdict::Hold,
            _ => Verdict::Serve,
        });
        let mut reading = Box::pin(read(open.past.io(), 512, 1024));
        assert!(!is_ready(&mut reading).await);
        bed.source.wait_held(1).await;
        let mut writing = Box::pin(write(open.guest.io(), 0, CLUSTER, 0xaa));
        assert!(!is_ready(&mut writing).await);
        // Others are not held up, and it has copied.
        write(open.guest.io(), CLUSTER, CLUSTER, 0xaa).await.expect("written");
        while open.control.state().bytes_copied() < 2 * CLUSTER {
            yield_now().await;
        }
        assert!(!is_ready(&mut writing).await, "the reader is not done");
        assert_eq!(bed.source.bytes(0, 1024), bed.was(0, 1024));
        // A second write there waits as well, though there is nothing to copy any more, and the source would take it at once.
        bed.source.clear_script();
        bed.source.set_mode(MemMode::Now);
        let mut second = Box::pin(write(open.guest.io(), 512, 512, 0xbb));
        assert!(!is_ready(&mut second).await);
        bed.let_run().await;
        assert!(!is_ready(&mut second).await);
        bed.source.release_all();
        assert_eq!(reading.await, Ok(bed.was(512, 1024)));
        writing.await.expect("written");
        second.await.expect("written");
        bed.check_all(open.past.io()).await;
    });
}

#[test]
fn each_cluster_is_copied_once_and_zeroes_as_zeroes() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        let (guest, state) = (open.guest.io(), open.control.state());
        assert_eq!((state.cluster_size(), state.length(), state.bytes_copied()), (CLUSTER, SIZE, 0));
        write(guest, 100, 1, 1).await.expect("written");
        write(guest, 5000, 100, 2).await.expect("written");
        guest.zero(CLUSTER, 10, NONE).await.expect("zeroed");
        guest.discard(2 * CLUSTER, CLUSTER).await.expect("discarded");
        write(guest, 3 * CLUSTER, CLUSTER, 4).await.expect("written");
        write(guest, SIZE - 1, 1, 5).await.expect("written");
        // Of the clusters from 0 to 3 and the last one, that at 3 is zeroes.
        let of = |kind| -> Vec<(u64, u64)> {
            let log = bed.target.log();
            log.iter().filter(|record| record.op.kind == kind).map(|record| (record.op.offset, record.op.len)).collect()
        };
        let last = 19 * CLUSTER;
        let data = [(0, CLUSTER), (CLUSTER, CLUSTER), (2 * CLUSTER, CLUSTER), (last, SIZE - last)];
        assert_eq!(of(MemOpKind::Write), data);
        assert!(of(MemOpKind::Zero).is_empty() || of(MemOpKind::Zero) == [(3 * CLUSTER, CLUSTER)]);
        assert_eq!((state.bytes_copied(), state.bytes_to_copy()), (5 * CLUSTER, 15 * CLUSTER));
        bed.check_all(open.past.io()).await;
        assert_eq!(read(guest, 5000, 100).await, Ok(vec![2; 100]));
        // What is copied is written at once.
        bed.target.clear_log();
        write(guest, 0, CLUSTER, 6).await.expect("written");
        assert!(bed.target.log().is_empty());
    });
}

/// Scenario: a cluster that is larger than anything.
#[test]
fn one_cluster_may_be_all() {
    run(plain(), |bed| async move {
        let open = bed.open(r#", "min-cluster-size": 4611686018427387904"#).await;
        write(open.guest.io(), SIZE - 1, 1, 1).await.expect("written");
        assert_eq!(open.control.state().bytes_to_copy(), 0);
        bed.check_all(open.past.io()).await;
        open.past.io().discard(0, SIZE).await.expect("forgotten");
        assert_eq!(read(open.past.io(), 0, 1).await.expect_err("forgotten").errno().raw(), LOST);
    });
}

/// Scenario: two guest writes to one cluster, while its copy is under way.
#[test]
fn writers_of_a_cluster_wait_for_its_copy() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        bed.target.hold(Some(MemOpKind::Write));
        let mut first = Box::pin(write(open.guest.io(), 0, 512, 1));
        let mut second = Box::pin(write(open.guest.io(), 4096, 512, 2));
        assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
        bed.target.wait_held(1).await;
        assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
        bed.let_run().await;
        assert!(!is_ready(&mut first).await && !is_ready(&mut second).await);
        assert_eq!(bed.target.held().len(), 1, "one copies");
        assert_eq!(bed.source.bytes(0, 8192), bed.was(0, 8192));
        // The past is read from the source meanwhile.
        assert_eq!(read(open.past.io(), 0, 8192).await, Ok(bed.was(0, 8192)));
        bed.target.release_all();
        first.await.expect("written");
        second.await.expect("written");
        assert_eq!(bed.target.count(MemOpKind::Write), 1);
        bed.check_all(open.past.io()).await;
    });
}

/// Scenario: the target is full, or the source cannot be read.
#[test]
fn a_copy_that_fails_breaks_what_it_is_told_to() {
    for breaks in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        for source_fails in [false, true] {
            run(MemOptions { grows: false, ..plain() }, |bed| async move {
                let open = bed.open(&format!(r#", "on-cbw-error": "{breaks}""#)).await;
                let (guest, past) = (open.guest.io(), open.past.io());
                write(guest, 5 * CLUSTER, 512, 9).await.expect("there is room for one");
                let (storage, kind) = match source_fails {
                    true => (&bed.source, MemOpKind::Read),
                    false => (&bed.target, MemOpKind::Write),
                };
                storage.set_script(move |op| {
                    if op.kind == kind { Verdict::FailAfter(1000, IoError::host(28)) } else { Verdict::Serve }
                });
                let written = [
                    write(guest, 0, 512, 1).await,
                    guest.zero(CLUSTER, 512, NONE).await,
                    guest.discard(2 * CLUSTER, CLUSTER).await,
                ];
                bed.source.clear_script();
                bed.target.clear_script();
                if breaks == OnCbwError::BreakGuestWrite {
                    assert_eq!(written, [Err(IoError::host(28)); 3]);
                    bed.check_all(past).await;
                    write(guest, 0, 512, 1).await.expect("there is room again");
                    bed.check_all(past).await;
                    assert_eq!(read(guest, 0, 512).await, Ok(vec![1; 512]));
                    return;
                }
                assert_eq!(written, [Ok(()); 3]);
                assert_eq!(read(guest, 0, 512).await, Ok(vec![1; 512]));
                for at in [0, 5 * CLUSTER, 10 * CLUSTER] {
                    let error = read(past, at, 512).await.expect_err("all of it is lost");
                    assert_eq!(error.errno().raw(), LOST);
                    assert_eq!(past.block_status(at, 512).await.expect_err("lost").errno().raw(), LOST);
                }
                assert_eq!(open.control.state().broken(), Some(IoError::host(28)));
                // Nothing is copied any more.
                bed.target.clear_log();
                write(guest, 10 * CLUSTER, CLUSTER, 1).await.expect("written");
                assert!(bed.target.log().is_empty());
            });
        }
    }
}

/// Scenario: the target stands still. What was begun goes on after the guest was answered.
#[test]
fn a_copy_that_takes_too_long_breaks_what_it_is_told_to() {
    for breaks in [OnCbwError::BreakGuestWrite, OnCbwError::BreakSnapshot] {
        run(plain(), |bed| async move {
            let open = bed.open(&format!(r#", "cbw-timeout": 45, "on-cbw-error": "{breaks}""#)).await;
            let (guest, past) = (open.guest.io(), open.past.io());
            write(guest, 5 * CLUSTER, 512, 9).await.expect("it does not take that long");
            open.control.set_timeout(Some(Duration::from_millis(5)));
            bed.target.hold(Some(MemOpKind::Write));
            let written = [write(guest, 0, 512, 1).await, write(guest, 512, 512, 1).await];
            assert_eq!(bed.target.held().len(), 1);
            let is_lost = breaks == OnCbwError::BreakSnapshot;
            if is_lost {
                assert_eq!(written, [Ok(()); 2]);
                assert_eq!(read(past, 5 * CLUSTER, 512).await.expect_err("lost").errno().raw(), LOST);
            } else {
                assert_eq!(written, [Err(IoError::host(Errno::ETIMEDOUT.raw())); 2]);
                assert_eq!(read(past, 0, 1024).await, Ok(bed.was(0, 1024)));
            }
            // A section waits for the copy, which nobody else does.
            let mut drained = Box::pin(bed.gs.drain(&open.cbw));
            assert!(!is_ready(&mut drained).await);
            bed.let_run().await;
            assert!(!is_ready(&mut drained).await);
            open.control.set_timeout(None);
            bed.target.release_all();
            drop(drained.await);
            if !is_lost {
                assert_eq!(open.control.state().bytes_copied(), 2 * CLUSTER);
                write(guest, 0, 512, 1).await.expect("it was copied");
                bed.check_all(past).await;
            }
        });
    }
}

/// Scenario: a section begins while a guest's write waits for its copy, and while a reader of the past waits for the source.
#[test]
fn drain_1_copies_and_readers_are_waited_for() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        bed.target.hold(Some(MemOpKind::Write));
        bed.source.set_script(|op| if op.offset >= 5 * CLUSTER { Verdict::Hold } else { Verdict::Serve });
        let mut writing = Box::pin(write(open.guest.io(), 0, 512, 1));
        let mut reading = Box::pin(read(open.past.io(), 5 * CLUSTER, 512));
        assert!(!is_ready(&mut writing).await && !is_ready(&mut reading).await);
        bed.target.wait_held(1).await;
        bed.source.wait_held(1).await;
        let mut drained = Box::pin(bed.gs.drain(&open.cbw));
        assert!(!is_ready(&mut drained).await);
        bed.target.release_all();
        assert!(!is_ready(&mut drained).await);
        bed.let_run().await;
        assert!(!is_ready(&mut drained).await);
        bed.source.release_all();
        let section = drained.await;
        let mut late = Box::pin(write(open.guest.io(), 512, 512, 1));
        assert!(!is_ready(&mut late).await, "it is held back");
        drop(section);
        late.await.expect("written");
        writing.await.expect("written");
        assert_eq!(reading.await, Ok(bed.was(5 * CLUSTER, 512)));
        bed.check_all(open.past.io()).await;
    });
}

/// Scenario: guests and readers stop waiting at every point of the way.
#[test]
fn dropped_requests_leave_nothing_behind() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        for storage in [&bed.source, &bed.target] {
            storage.reorder(5, 2);
        }
        for polls in 0..40 {
            let at = polls % 20 * CLUSTER;
            let _ = drop_after(write(open.guest.io(), at, 512, 7), polls as usize).await;
            drop(drop_after(read(open.past.io(), at, 1024), polls as usize).await);
            let _ = drop_after(open.guest.io().discard(at, 512), polls as usize).await;
        }
        for storage in [&bed.source, &bed.target] {
            storage.release_all();
        }
        drop(bed.gs.drain(&open.cbw).await);
        bed.check_all(open.past.io()).await;
        for cluster in 0..20 {
            write(open.guest.io(), cluster * CLUSTER, 512, 8).await.expect("nothing is in its way");
        }
        bed.check_all(open.past.io()).await;
    });
}

#[test]
fn what_is_forgotten_is_not_kept() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        let (guest, past) = (open.guest.io(), open.past.io());
        write(guest, 0, 2 * CLUSTER, 1).await.expect("written");
        bed.target.clear_log();
        // Whole clusters alone: the second, not the first; and the end.
        past.discard(1, 2 * CLUSTER - 1).await.expect("forgotten");
        past.discard(18 * CLUSTER + 1, SIZE - 18 * CLUSTER - 1).await.expect("forgotten");
        let told: Vec<_> =
            bed.target.log().iter().map(|record| (record.op.kind, record.op.offset, record.op.len)).collect();
        let last = 19 * CLUSTER;
        assert_eq!(told, [(MemOpKind::Discard, CLUSTER, CLUSTER), (MemOpKind::Discard, last, SIZE - last)]);
        assert_eq!(read(past, 0, CLUSTER).await, Ok(bed.was(0, CLUSTER)));
        assert_eq!(read(past, 18 * CLUSTER, CLUSTER).await, Ok(bed.was(18 * CLUSTER, CLUSTER)));
        for at in [CLUSTER - 1, CLUSTER, SIZE - 1] {
            assert_eq!(read(past, at, 1 + u64::from(at < CLUSTER)).await.expect_err("forgotten").errno().raw(), LOST);
        }
        bed.target.clear_log();
        write(guest, SIZE - 512, 512, 1).await.expect("written");
        assert!(bed.target.log().is_empty(), "it need not be copied");
        assert_eq!(write(past, 0, 512, 1).await, Err(IoError::UNSUPPORTED));
        assert_eq!(past.zero(0, 512, NONE).await, Err(IoError::UNSUPPORTED));
        assert_eq!(past.truncate(0, Preallocation::Off).await, Err(IoError::NOT_PERMITTED));
        past.flush().await.expect("there is nothing to flush");
    });
}

/// Scenario: the disk becomes shorter, then longer. The past does not.
#[test]
fn what_is_cut_off_is_copied() {
    run(plain(), |bed| async move {
        let open = bed.open("").await;
        open.guest.io().truncate(CLUSTER + 5, Preallocation::Off).await.expect("shorter");
        assert_eq!(open.guest.io().length(), Ok(CLUSTER + 5));
        bed.check_all(open.past.io()).await;
        open.guest.io().truncate(2 * SIZE, Preallocation::Off).await.expect("longer");
        write(open.guest.io(), 2 * SIZE - 512, 512, 1).await.expect("written");
        assert_eq!(open.past.io().length(), Ok(SIZE));
        assert_eq!(read(open.past.io(), SIZE - 1, 2).await, Err(IoError::OUT_OF_BOUNDS));
        bed.check_all(open.past.io()).await;
    });
}

#[test]
fn a_bitmap_says_what_is_kept() {
    run(plain(), |bed| async move {
        let source = bed.add(r#"{"driver": "mem", "storage": "source", "node-name": "s"}"#).await.expect("opens");
        let bitmap = BitmapOptions { granularity: Some(512), ..BitmapOptions::new("b") };
        bed.gs.add_bitmap(&source, bitmap).await.expect("added");
        let root = bed.root(&source, Perm::WRITE).await.expect("free");
        write(root.io(), 3 * CLUSTER - 1, 2, 1).await.expect("written");
        bed.gs.close_root(root).await;
        let was = bed.source.bytes(2 * CLUSTER, 2 * CLUSTER as usize);
        let open = bed.open_over(r#""s""#, r#", "bitmap": {"node": "s", "name": "b"}"#).await;
        assert_eq!(open.control.state().bytes_to_copy(), 2 * CLUSTER);
        // What becomes of the bitmap makes no difference.
        bed.gs.clear_bitmap(&source, "b").expect("cleared");
        write(open.guest.io(), 0, 10 * CLUSTER, 9).await.expect("written");
        assert_eq!(read(open.past.io(), 2 * CLUSTER, 2 * CLUSTER).await, Ok(was));
        for (at, len) in [(0, 512), (2 * CLUSTER - 1, 2), (4 * CLUSTER, 1)] {
            assert_eq!(read(open.past.io(), at, len).await.expect_err("not kept").errno().raw(), LOST);
        }
        assert_eq!(open.control.state().bytes_copied(), 2 * CLUSTER);
    });
}

/// Scenario: while somebody sees the past, nobody writes the source but through the filter; before that, others may.
#[test]
fn perm_4_nobody_writes_the_source_past_the_filter() {
    run(plain(), |bed| async move {
        let source = bed.add(r#"{"driver": "mem", "storage": "source", "node-name": "s"}"#).await.expect("opens");
        let target = r#"{"driver": "mem", "storage": "target", "node-name": "t"}"#;
        let target = bed.add(target).await.expect("opens");
        let cbw = r#"{"driver": "copy-before-write", "node-name": "c", "file": "s", "target": "t"}"#;
        let cbw = bed.add(cbw).await.expect("opens");
        drop(bed.root(&source, Perm::WRITE).await.expect("the filter has no users"));
        let access = bed.add(r#"{"driver": "snapshot-access", "node-name": "a", "file": "c"}"#).await.expect("opens");
        let error = bed.root(&source, Perm::WRITE).await.expect_err("it is used now").to_string();
        assert_eq!(
            error,
            "Permission conflict on node 's': permissions 'write' are both required by block device 'root' (uses node \
             's' as 'root' child) and unshared by node 'c' (uses node 's' as 'file' child)."
        );
        let info = bed.gs.node_info(&cbw).expect("it is there");
        let perms: Vec<_> = info.children.iter().map(|(name, _, perm)| (name.as_str(), *perm)).collect();
        let share = Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED;
        let expected = [
            ("file", PermPair::new(Perm::CONSISTENT_READ, share)),
            ("target", PermPair::new(Perm::WRITE, share | Perm::WRITE)),
        ];
        assert_eq!(perms, expected);
        drop((access, target));
    });
}

#[test]
fn mistakes_are_told() {
    run(MemOptions::new(CLUSTER), |bed| async move {
        let source = r#""file": {"driver": "null-co", "size": 65536}"#;
        let target = r#""target": {"driver": "mem", "storage": "target"}"#;
        let cbw = |more: &str| format!(r#"{{"driver": "copy-before-write"{more}}}"#);
        for (more, told) in [
            (String::new(), "Parameter 'file' is missing"),
            (format!(", {source}"), "Parameter 'target' is missing"),
            (
                format!(r#", {source}, {target}, "on-cbw-error": "x""#),
                "Parameter 'on-cbw-error' does not accept value 'x'",
            ),
            (format!(r#", {source}, {target}, "cbw-timeout": -1"#), "Parameter 'cbw-timeout' expects uint32_t"),
            (format!(r#", {source}, {target}, "cbw-timeout": 4294967296"#), "Parameter 'cbw-timeout' expects uint32_t"),
            (
                format!(r#", {source}, {target}, "min-cluster-size": 3"#),
                "Cannot create block-copy-state: min-cluster-size needs to be a power of 2",
            ),
            (
                format!(r#", {source}, {target}, "min-cluster-size": 9223372036854775808"#),
                "Cannot create block-copy-state: min-cluster-size too large: 9223372036854775808 > 9223372036854775807",
            ),
            (format!(r#", {source}, {target}, "bitmap": {{"node": "x"}}"#), "Parameter 'bitmap.name' is missing"),
            (format!(r#", {source}, {target}, "bitmap": {{"node": "x", "name": "y"}}"#), "Node 'x' not found"),
            (
                format!(r#", {source}, {target}, "bitmap": "x""#),
                "Invalid parameter type for 'bitmap', expected: object",
            ),
            (
                format!(r#", "file": {{"driver": "null-co", "size": 65537}}, {target}"#),
                "Cannot create block-copy-state: The target has 65536 bytes, and the source 65537",
            ),
        ] {
            assert_eq!(bed.refused(&cbw(&more)).await, told);
        }
        let disk = bed.add(r#"{"driver": "null-co", "node-name": "n", "size": 65536}"#).await.expect("opens");
        let short = bed.add(r#"{"driver": "null-co", "node-name": "m", "size": 1024}"#).await.expect("opens");
        bed.gs.add_bitmap(&short, BitmapOptions::new("b")).await.expect("added");
        for (name, node, told) in [
            ("nope", "n", "Dirty bitmap 'nope' not found"),
            (
                "b",
                "m",
                "Cannot create block-copy-state: Failed to merge bitmap 'b' to internal copy-bitmap: Bitmaps are of \
                different sizes (destination size is 65536, source size is 1024) and can't be merged",
            ),
        ] {
            let more = format!(r#", "file": "n", {target}, "bitmap": {{"node": "{node}", "name": "{name}"}}"#);
            assert_eq!(bed.refused(&cbw(&more)).await, told);
        }
        // One that keeps nothing has nothing to show.
        let access = bed.add(r#"{"driver": "snapshot-access", "file": "n"}"#).await.expect("it opens");
        let root = bed.root(&access, Perm::CONSISTENT_READ).await.expect("free");
        assert_eq!(read(root.io(), 0, 512).await, Err(IoError::UNSUPPORTED));
        assert_eq!(root.io().block_status(0, 512).await.err(), Some(IoError::UNSUPPORTED));
        drop((disk, short));
    });
}
