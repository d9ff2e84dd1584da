//! Every request of every act fails once, in every way: no panic, no hang, no silent corruption, nothing left in flight.
//!
//! Each act runs once to count its requests, questions for status among them; then once for each request and each fault.

use block_backend_io::upcalls;
use block_common::{AlignedBuf, IoError, Limits, Perm, Preallocation, RequestFlags};
use block_copy::{
    CopyOptions, Difference, JobControl, MirrorAnswer, MirrorOptions, MirrorParts, MirrorQuestion, Padded,
    SparseOptions, compare, copy, data_bytes, first_data, mirror, sparse_copy,
};
use block_io::{DirtyBitmap, IoThread, Root, StaticGraph};
use block_testkit::bed::{block_on, io_thread};
use block_testkit::{MemDiscard, MemOp, MemOpKind, MemOptions, MemStorage, Verdict};
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use tokio::sync::{Notify, oneshot};

const NONE: RequestFlags = RequestFlags::empty();
const PIECE: u64 = SparseOptions::CHUNK;
const CHUNK: u64 = 64 << 10;
/// An image: two pieces of data, a hole, some data at an odd end.
const LEN: u64 = 4 * PIECE + 1000;

type Acting = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// Something that is done with storages.
struct Case {
    name: &'static str,
    make: fn() -> Vec<MemStorage>,
    /// Panics where an answer is wrong.
    act: fn(Vec<Root>, Vec<MemStorage>) -> Acting,
    /// What holds once it has succeeded.
    right: fn(&[MemStorage]) -> bool,
    /// Whether it may succeed although this request failed.
    survives: fn(&MemOp, IoError) -> bool,
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// Nothing of it is carried out.
    Fails(i32),
    /// Half of it is carried out.
    Short(i32),
    /// The host has no such operation.
    Unsupported,
}

const EIO: i32 = 5;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;
const FAULTS: [Fault; 7] = [
    Fault::Fails(EIO),
    Fault::Fails(ENOSPC),
    Fault::Fails(EINVAL),
    Fault::Fails(EOPNOTSUPP),
    Fault::Short(EIO),
    Fault::Short(ENOSPC),
    Fault::Unsupported,
];

impl Fault {
    fn error(self) -> IoError {
        match self {
            Self::Fails(errno) | Self::Short(errno) => IoError::host(errno),
            Self::Unsupported => IoError::UNSUPPORTED,
        }
    }

    fn verdict(self, op: &MemOp) -> Verdict {
        match self {
            Self::Short(_) => Verdict::FailAfter(op.len / 2, self.error()),
            _ => Verdict::Fail(self.error()),
        }
    }
}

fn content() -> Vec<u8> {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    let make = || {
        let mut bytes: Vec<u8> = (0..LEN).map(|at| (at / 512 % 255) as u8 + 1).collect();
        // A hole that the storage knows of, and zeroes that nobody has told.
        bytes[2 * PIECE as usize..3 * PIECE as usize].fill(0);
        bytes[5000..30_000].fill(0);
        bytes
    };
    CONTENT.get_or_init(make).clone()
}

fn full() -> MemStorage {
    MemStorage::with_content(MemOptions::new(LEN), content())
}

/// Other data, in a target of `len` bytes.
fn old(len: u64) -> MemStorage {
    MemStorage::with_content(MemOptions::new(len), vec![0xee; len as usize])
}

/// A source and a target as a tool has them: its length is in whole sectors.
fn pair() -> Vec<MemStorage> {
    vec![full(), old(LEN.next_multiple_of(512))]
}

fn is_copied(storages: &[MemStorage]) -> bool {
    let [sources @ .., target] = storages else { return false };
    let mut expected = Vec::new();
    for source in sources {
        expected.extend(source.bytes(0, source.len() as usize));
        expected.resize(expected.len().next_multiple_of(512), 0);
    }
    target.bytes(0, expected.len()) == expected
}

fn fine(_: &[MemStorage]) -> bool {
    true
}

/// A zero write that the host refuses is written out.
fn falls_back(op: &MemOp, error: IoError) -> bool {
    op.kind == MemOpKind::Zero && error.errno() == IoError::UNSUPPORTED.errno()
}

fn never(_: &MemOp, _: IoError) -> bool {
    false
}

fn told<T>(result: Result<T, impl std::fmt::Display>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

fn options() -> SparseOptions {
    SparseOptions {
        offload: false,
        depth: 4,
        sparse: 4096,
        target_is_zero: false,
        in_order: true,
        salvage: false,
        speed: 0,
        flags: NONE,
    }
}

async fn converted(mut roots: Vec<Root>, options: SparseOptions) -> Result<(), String> {
    let target = roots.pop().expect("a target");
    let sources = roots.into_iter().map(Padded::new).collect::<Result<Vec<_>, _>>();
    told(data_bytes(&told(sources.clone())?, options.salvage).await)?;
    told(sparse_copy(told(sources)?, target.clone(), options, |_| {}).await)?;
    told(target.flush().await)
}

fn padded(roots: &[Root]) -> Result<[Padded; 2], String> {
    Ok([told(Padded::new(roots[0].clone()))?, told(Padded::new(roots[1].clone()))?])
}

/// Mirror with an owner that always answers. What is not dirty after a failure is equal.
async fn mirrored(roots: Vec<Root>, storages: Vec<MemStorage>) -> Result<(), String> {
    let bitmap = Arc::new(DirtyBitmap::new(storages[0].len(), CHUNK));
    bitmap.set_all();
    let (owner, mut questions) = upcalls(1);
    let parts = MirrorParts { source: roots[0].clone(), target: roots[1].clone(), bitmap: bitmap.clone(), owner };
    let copy = CopyOptions { depth: 3, chunk: CHUNK, ..CopyOptions::default() };
    let mut control = JobControl::unattended();
    let answering = async move {
        while let Some((question, answer)) = questions.next().await {
            let right = match question {
                MirrorQuestion::Ready => MirrorAnswer::Complete,
                _ => MirrorAnswer::Drained,
            };
            // A body that failed meanwhile needs no answer.
            let _ = answer.send(right);
        }
    };
    let mirroring = mirror(parts, MirrorOptions { copy, rounds_max: Some(4) }, &mut control);
    let (result, ()) = tokio::join!(mirroring, answering);
    for at in (0..storages[0].len()).step_by(CHUNK as usize).filter(|at| !bitmap.is_dirty(at / CHUNK)) {
        let len = CHUNK.min(storages[0].len() - at) as usize;
        assert!(storages[0].bytes(at, len) == storages[1].bytes(at, len), "{at:#x} is clean and differs");
    }
    told(result)
}

/// A storage whose blocks are pages, and that has no zero write of its own if `zero` is not set.
fn pages(zero: bool) -> Vec<MemStorage> {
    let limits = Limits { request_alignment: 4096, memory_alignment: 4096, ..Limits::NONE };
    let options = MemOptions { limits, zero, ..MemOptions::new(16 * 4096) };
    vec![MemStorage::with_content(options, vec![7; 16 * 4096])]
}

fn is_zero_at(storage: &MemStorage, at: usize, len: usize) -> bool {
    let mut expected = vec![7; 16 * 4096];
    expected[at..at + len].fill(0);
    storage.bytes(0, expected.len()) == expected
}

fn cases() -> Vec<Case> {
    let convert = |name, act| Case { name, make: pair, act, right: is_copied, survives: falls_back };
    vec![
        convert("convert", |roots, _| Box::pin(converted(roots, options()))),
        convert("convert -W", |roots, _| Box::pin(converted(roots, SparseOptions { in_order: false, ..options() }))),
        convert("convert -S 0", |roots, _| Box::pin(converted(roots, SparseOptions { sparse: 0, ..options() }))),
        convert("convert -m 1", |roots, _| Box::pin(converted(roots, SparseOptions { depth: 1, ..options() }))),
        convert("convert -C", |roots, _| Box::pin(converted(roots, SparseOptions { offload: true, ..options() }))),
        convert("convert -t writethrough", |roots, _| {
            Box::pin(converted(roots, SparseOptions { flags: RequestFlags::FUA, ..options() }))
        }),
        Case {
            make: || vec![full(), full(), old(2 * LEN.next_multiple_of(512))],
            ..convert("convert of two", |roots, _| Box::pin(converted(roots, options())))
        },
        Case {
            // What cannot be read once is read again.
            survives: |op, error| matches!(op.kind, MemOpKind::Read | MemOpKind::Status) || falls_back(op, error),
            ..convert("convert --salvage", |roots, _| {
                Box::pin(converted(roots, SparseOptions { salvage: true, ..options() }))
            })
        },
        Case {
            name: "compare of equal ones",
            make: || vec![full(), full()],
            act: |roots, _| {
                Box::pin(async move {
                    let [a, b] = padded(&roots)?;
                    let found = compare(&a, &b, 0..a.len(), true, |_| {}).await;
                    assert!(!matches!(found, Ok(Some(_))), "{found:?}");
                    told(found).map(drop)
                })
            },
            right: fine,
            survives: never,
        },
        Case {
            name: "compare of different ones",
            make: || {
                let mut other = content();
                other[3 * PIECE as usize + 600] ^= 1;
                vec![full(), MemStorage::with_content(MemOptions::new(LEN), other)]
            },
            act: |roots, _| {
                Box::pin(async move {
                    let [a, b] = padded(&roots)?;
                    let found = compare(&a, &b, 0..a.len(), false, |_| {}).await;
                    let right = matches!(found, Ok(Some(Difference::Content(at))) if at == 3 * PIECE + 512);
                    assert!(right || found.is_err(), "{found:?}");
                    told(found).map(drop)
                })
            },
            right: fine,
            // What comes behind a difference does not matter.
            survives: |op, _| op.offset + op.len > 3 * PIECE + 512,
        },
        Case {
            name: "the rest of the longer one",
            make: || vec![full()],
            act: |roots, _| {
                Box::pin(async move {
                    let image = told(Padded::new(roots[0].clone()))?;
                    let found = first_data(&image, false, 2 * PIECE..image.len(), |_| {}).await;
                    let right = matches!(found, Ok(Some(Difference::Content(at))) if at == 3 * PIECE);
                    assert!(right || found.is_err(), "{found:?}");
                    told(found).map(drop)
                })
            },
            right: fine,
            survives: |op, _| op.offset + op.len > 3 * PIECE + 512,
        },
        Case {
            name: "copy",
            make: || vec![full(), old(LEN)],
            act: |roots, _| {
                Box::pin(async move {
                    let options = CopyOptions { depth: 3, chunk: CHUNK, ..CopyOptions::default() };
                    told(copy(roots[0].clone(), roots[1].clone(), options, &mut JobControl::unattended()).await)
                })
            },
            right: |storages| storages[0].bytes(0, LEN as usize) == storages[1].bytes(0, LEN as usize),
            survives: falls_back,
        },
        Case {
            name: "mirror",
            make: || vec![full(), old(LEN)],
            act: |roots, storages| Box::pin(mirrored(roots, storages)),
            right: |storages| storages[0].bytes(0, LEN as usize) == storages[1].bytes(0, LEN as usize),
            survives: falls_back,
        },
        Case {
            name: "zero",
            make: || pages(true),
            act: |roots, _| Box::pin(async move { told(roots[0].zero(100, 30_000, RequestFlags::MAY_UNMAP).await) }),
            right: |storages| is_zero_at(&storages[0], 100, 30_000),
            survives: falls_back,
        },
        Case {
            name: "zero that is written",
            make: || pages(false),
            act: |roots, _| Box::pin(async move { told(roots[0].zero(4096, 30_000, RequestFlags::FUA).await) }),
            right: |storages| is_zero_at(&storages[0], 4096, 30_000),
            survives: never,
        },
        Case {
            name: "write within blocks",
            make: || pages(true),
            act: |roots, _| {
                Box::pin(async move {
                    let buf = AlignedBuf::zeroed(9000, 1).into_io();
                    told(roots[0].write(3000, buf, RequestFlags::FUA).await.0)?;
                    told(roots[0].flush().await)
                })
            },
            right: |storages| is_zero_at(&storages[0], 3000, 9000),
            survives: never,
        },
        Case {
            name: "discard",
            make: || pages(true),
            act: |roots, _| Box::pin(async move { told(roots[0].discard(4096, 8192).await) }),
            right: fine,
            survives: |_, error| error.errno() == IoError::UNSUPPORTED.errno(),
        },
        Case {
            name: "discard that nobody can do",
            make: || {
                let options = MemOptions { discard: MemDiscard::Unsupported, ..MemOptions::new(65_536) };
                vec![MemStorage::new(options)]
            },
            act: |roots, _| {
                Box::pin(async move {
                    told(roots[0].discard(0, 4096).await)?;
                    told(roots[0].flush().await)
                })
            },
            right: fine,
            survives: never,
        },
        Case {
            name: "truncate",
            make: || pages(true),
            act: |roots, _| {
                Box::pin(async move {
                    told(roots[0].truncate(8 * 4096, Preallocation::Off).await)?;
                    told(roots[0].truncate(16 * 4096, Preallocation::Off).await)?;
                    told(roots[0].flush().await)
                })
            },
            right: |storages| is_zero_at(&storages[0], 8 * 4096, 8 * 4096),
            survives: never,
        },
    ]
}

/// An act's nodes, whose requests are counted, and one of which gets a fault.
struct Stage {
    graph: StaticGraph,
    roots: Vec<Root>,
    storages: Vec<MemStorage>,
    count: Arc<AtomicU64>,
    /// The request that got it, and whose it was.
    hit: Arc<Mutex<Option<(usize, MemOp)>>>,
    happened: Arc<Notify>,
}

impl Stage {
    fn new(
        thread: &IoThread,
        case: &Case,
        nth: u64,
        verdict: impl Fn(&MemOp) -> Verdict + Copy + Send + 'static,
    ) -> Self {
        let storages = (case.make)();
        let mut graph = StaticGraph::new(thread.handle());
        let mut roots = Vec::new();
        let (count, hit, happened) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)), Arc::new(Notify::new()));
        for (at, storage) in storages.iter().enumerate() {
            let node = block_on(graph.node("image").install(storage.driver(), false)).expect("a node");
            roots.push(graph.root("image", &node, Perm::all()));
            storage.set_logging(false);
            storage.watch_status();
            let (count, hit, happened) = (count.clone(), hit.clone(), happened.clone());
            storage.set_script(move |op| {
                if op.kind == MemOpKind::Close || count.fetch_add(1, Ordering::Relaxed) != nth {
                    return Verdict::Serve;
                }
                *hit.lock().expect("nobody panicked") = Some((at, *op));
                happened.notify_one();
                verdict(op)
            });
        }
        Self { graph, roots, storages, count, hit, happened }
    }

    fn hit(&self) -> Option<(usize, MemOp)> {
        *self.hit.lock().expect("nobody panicked")
    }

    fn act(&self, case: &Case) -> Acting {
        (case.act)(self.roots.clone(), self.storages.clone())
    }

    /// Nothing is in flight, and it closes.
    fn close(self, what: &str) {
        // Requests of a copy that gave up run to their end unwatched; closing waits for them.
        let roots = self.roots.clone();
        block_on(self.graph.close()).unwrap_or_else(|error| panic!("{what}: closing: {error}"));
        assert!(roots.iter().all(|root| root.in_flight() == 0), "{what}: something is in flight");
    }
}

/// How many requests the act has.
fn requests(thread: &IoThread, case: &Case) -> u64 {
    let stage = Stage::new(thread, case, u64::MAX, |_| Verdict::Serve);
    let done = block_on(thread.handle().run(stage.act(case)));
    assert_eq!(done, Some(Ok(())), "{}", case.name);
    assert!((case.right)(&stage.storages), "{}: wrong without any fault", case.name);
    let count = stage.count.load(Ordering::Relaxed);
    stage.close(case.name);
    count
}

#[test]
fn every_request_of_every_act_may_fail() {
    let thread = io_thread(true);
    for case in cases() {
        let count = requests(&thread, &case);
        println!("{}: {count} requests", case.name);
        assert!(count > 0, "{}", case.name);
        for (nth, fault) in (0..count).flat_map(|nth| FAULTS.map(|fault| (nth, fault))) {
            let what = format!("{}, request {nth} of {count}, {fault:?}", case.name);
            let stage = Stage::new(&thread, &case, nth, move |op| fault.verdict(op));
            let done = block_on(thread.handle().run(stage.act(&case)));
            let done = done.unwrap_or_else(|| panic!("{what}: a panic"));
            match (done, stage.hit()) {
                (Ok(()), Some((_, op))) => {
                    assert!((case.survives)(&op, fault.error()), "{what}: {op:?} failed, and nobody was told");
                    assert!((case.right)(&stage.storages), "{what}: {op:?} failed, and the result is wrong");
                }
                (Ok(()), None) => assert!((case.right)(&stage.storages), "{what}: wrong"),
                (Err(text), hit) => {
                    assert!(hit.is_some(), "{what}: nothing failed, and yet {text}");
                    assert!(text.contains(&fault.error().to_string()), "{what}: {hit:?} says {text}");
                }
            }
            stage.close(&what);
        }
    }
}

/// Scenario: a request does not end until somebody lets it go. Everybody waits, and then all is right.
#[test]
fn every_request_of_every_act_may_take_for_ever() {
    let thread = io_thread(true);
    for case in cases() {
        for nth in 0..requests(&thread, &case) {
            let what = format!("{}, request {nth}", case.name);
            let stage = Stage::new(&thread, &case, nth, |_| Verdict::Hold);
            let acting = thread.handle().run(stage.act(&case));
            block_on(async {
                let mut acting = std::pin::pin!(acting);
                let done = tokio::select! {
                    done = &mut acting => done,
                    () = stage.happened.notified() => {
                        release(&stage).await;
                        acting.await
                    }
                };
                assert_eq!(done, Some(Ok(())), "{what}");
            });
            assert!((case.right)(&stage.storages), "{what}: wrong");
            stage.close(&what);
        }
    }
}

/// Scenario: a request hangs, whoever asked for it gives up, and everything is to be closed. Closing waits for the request, and for nothing
/// else; each sector of a target is old or new then.
#[test]
fn drain_5_an_act_is_dropped_at_every_request() {
    let thread = io_thread(true);
    for case in cases() {
        for nth in 0..requests(&thread, &case) {
            let what = format!("{}, request {nth}", case.name);
            let mut stage = Stage::new(&thread, &case, nth, |_| Verdict::Hold);
            let (cancel, cancelled) = oneshot::channel::<()>();
            let act = stage.act(&case);
            let acting = thread.handle().run(async move {
                tokio::select! {
                    done = act => Some(done),
                    _ = cancelled => None,
                }
            });
            block_on(async {
                let mut acting = std::pin::pin!(acting);
                tokio::select! {
                    done = &mut acting => assert_eq!(done, Some(Some(Ok(()))), "{what}"),
                    () = stage.happened.notified() => {
                        drop(cancel);
                        assert_eq!(acting.await, Some(None), "{what}");
                    }
                }
            });
            let graph = std::mem::replace(&mut stage.graph, StaticGraph::new(thread.handle()));
            let mut closing = Box::pin(graph.close());
            if stage.hit().is_some() {
                let early = block_on(async {
                    tokio::select! {
                        biased;
                        _ = &mut closing => true,
                        () = release(&stage) => false,
                    }
                });
                assert!(!early, "{what}: it closed over a request in flight");
            }
            block_on(closing).unwrap_or_else(|error| panic!("{what}: closing: {error}"));
            assert!(stage.roots.iter().all(|root| root.in_flight() == 0), "{what}: something is in flight");
        }
    }
}

/// Let the held request go on.
async fn release(stage: &Stage) {
    let (at, op) = stage.hit().expect("it happened");
    stage.storages[at].wait_held(1).await;
    assert!(stage.storages[at].release(op.seq, Verdict::Serve), "it is held");
}
