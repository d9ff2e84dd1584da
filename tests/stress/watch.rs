//! Sees that everything goes on: if an operation or a load stands still for too long, prints the graph and ends the
//! program.

use block_gs::GlobalState;
use block_io::Root;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing may move. Generous: the machine may be busy, a hang is for ever.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long when the host's disk stands still, which is not ours to mend: a thread of ours sleeps in the kernel and cannot be woken.
const PATIENCE_WITH_DISKS: Duration = Duration::from_secs(300);
/// How much longer the main loop gets to print the graph.
const LAST_WORDS: Duration = Duration::from_secs(10);

struct Now {
    what: String,
    since: Instant,
    /// The longest that each kind of operation took.
    longest: BTreeMap<String, Duration>,
}

/// What is going on, for whoever looks.
pub(crate) struct Watch {
    seed: u64,
    now: Mutex<Now>,
    requests: AtomicU64,
    dropped: AtomicU64,
    roots: Mutex<Vec<Root>>,
}

impl Watch {
    /// A watch whose own thread ends the program when the main loop cannot.
    pub(crate) fn start(seed: u64) -> Arc<Self> {
        let now = Now { what: "start".into(), since: Instant::now(), longest: BTreeMap::new() };
        let watch = Arc::new(Self {
            seed,
            now: Mutex::new(now),
            requests: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            roots: Mutex::default(),
        });
        let weak = Arc::downgrade(&watch);
        std::thread::spawn(move || {
            while let Some(watch) = weak.upgrade() {
                watch.check("the main loop itself stands still", PATIENCE + LAST_WORDS, String::new);
                drop(watch);
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        watch
    }

    /// Let the main loop of `gs` look, too: it can print the graph.
    pub(crate) fn look_at(self: &Arc<Self>, gs: &GlobalState) {
        let (main, gs, watch) = (gs.main().clone(), gs.clone(), Arc::downgrade(self));
        drop(gs.main().clone().spawn(async move {
            while let Some(watch) = watch.upgrade() {
                watch.check("nothing moves", PATIENCE, || describe(&gs));
                drop(watch);
                main.sleep(Duration::from_millis(200)).await;
            }
        }));
    }

    /// The entries that are in use now.
    pub(crate) fn look_at_roots(&self, roots: Vec<Root>) {
        *self.roots.lock().unwrap_or_else(PoisonError::into_inner) = roots;
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An operation of the main loop begins, and the one before it is over.
    pub(crate) fn begin(&self, what: impl Into<String>) {
        let mut now = self.now();
        let (took, what) = (now.since.elapsed(), std::mem::replace(&mut now.what, what.into()));
        now.since = Instant::now();
        let kind = what.split(':').next().unwrap_or_default().to_owned();
        let longest = now.longest.entry(kind).or_default();
        *longest = took.max(*longest);
    }

    /// Count requests that are over.
    pub(crate) fn done(&self, count: u64) {
        self.requests.fetch_add(count, Ordering::Relaxed);
    }

    /// Count a request that was started and whose future was dropped.
    pub(crate) fn dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    fn check(&self, why: &str, patience: Duration, state: impl FnOnce() -> String) {
        let (what, age) = {
            let now = self.now();
            (now.what.clone(), now.since.elapsed())
        };
        if age > patience {
            let threads = threads();
            let more = PATIENCE_WITH_DISKS.saturating_sub(PATIENCE);
            if age < patience + more && threads.iter().any(Thread::waits_for_disk) {
                return;
            }
            let requests = self.requests.load(Ordering::Relaxed);
            eprintln!("{why}: '{what}' for {age:.1?}, {requests} requests so far, CAIRN_SEED={:#x}", self.seed);
            for root in self.roots.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                eprintln!("{root:?}: {:?}, in flight {}, home {}", root.state(), root.in_flight(), root.home().name());
            }
            threads.iter().for_each(|thread| eprintln!("{thread:?}"));
            eprintln!("{}", state());
            std::process::abort();
        }
    }

    /// What was done, and which operation took longest.
    pub(crate) fn summary(&self) -> String {
        let now = self.now();
        let mut text = format!(
            "{} requests and {} dropped ones; the longest:",
            self.requests.load(Ordering::Relaxed),
            self.dropped.load(Ordering::Relaxed),
        );
        for (what, took) in &now.longest {
            let _ = write!(text, "\n  {:>6.1} ms  {what}", took.as_secs_f64() * 1000.0);
        }
        text
    }
}

/// What the kernel says of one of our threads, its own workers for our rings among them.
#[derive(Debug)]
struct Thread {
    /// As in `ps`.
    #[expect(dead_code, reason = "printed")]
    name: String,
    /// `R`: runs, `S`: sleeps, `D`: sleeps and cannot be woken.
    state: char,
    /// Where in the kernel it sleeps.
    #[expect(dead_code, reason = "printed")]
    sleeps_in: String,
}

impl Thread {
    fn waits_for_disk(&self) -> bool {
        self.state == 'D'
    }
}

fn threads() -> Vec<Thread> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return Vec::new() };
    let of = |path: &std::path::Path, what: &str| std::fs::read_to_string(path.join(what)).unwrap_or_default();
    let thread = |path: std::path::PathBuf| {
        let stat = of(&path, "stat");
        Thread {
            name: of(&path, "comm").trim_end().to_owned(),
            state: stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('?'),
            sleeps_in: of(&path, "wchan"),
        }
    };
    tasks.filter_map(|task| Some(thread(task.ok()?.path()))).collect()
}

/// The graph, a line for each node.
fn describe(gs: &GlobalState) -> String {
    let mut text = String::new();
    for node in gs.nodes() {
        let in_flight = gs.find_node(&node.name).map(|node| node.io().in_flight());
        let _ = writeln!(
            text,
            "{} ({}): {:?}, in flight {in_flight:?}, children {:?}, parents {:?}",
            node.name, node.driver, node.state, node.children, node.parents
        );
    }
    text
}
