//! The stress run: real threads read and write through two I/O threads and two queues while the main loop swaps edges,
//! inserts, drops, drains and closes nodes under them.
//!
//! What must hold: every byte is what a byte array says; no request is lost, not even one whose future was dropped; no
//! drain hangs; after each round everything closes and nothing is left. A watchdog prints the graph when something does
//! not move on. `CAIRN_SEED` repeats a run's choices (not its timing), `CAIRN_STRESS_SECONDS` says how long (default
//! 5).
//!
//! Reading order: `plan` says who owns which bytes, `leaves` what they lie on; `load` has the threads' side, `churn`
//! the main loop's; `watch` sees that they live.

#![allow(clippy::disallowed_methods, reason = "threads of a test sleep and wait")]

mod support;

#[path = "stress/plan.rs"]
mod plan;

#[path = "stress/leaves.rs"]
mod leaves;

#[path = "stress/load.rs"]
mod load;

#[path = "stress/churn.rs"]
mod churn;

#[path = "stress/watch.rs"]
mod watch;

use block_common::{ParentKind, Perm, PermPair};
use block_gs::{GlobalState, RootRef};
use block_io::{IoThread, IoThreadHandle};
use block_testkit::{Rng, bed, seed};
use churn::Churn;
use leaves::Leaves;
use load::Load;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::Layer;
use watch::Watch;

/// How long the load of one round lasts.
const ROUND: Duration = Duration::from_millis(1200);

fn seconds() -> Duration {
    let text = std::env::var("CAIRN_STRESS_SECONDS").unwrap_or_else(|_| "5".into());
    Duration::from_secs(text.parse().expect("CAIRN_STRESS_SECONDS is a number of seconds"))
}

/// The entries of one round, all to the same node.
struct Roots {
    /// Random requests of every kind against the test kit's model.
    model: RootRef,
    /// The two queues.
    queues: RootRef,
    /// Requests whose futures are dropped.
    drops: RootRef,
}

impl Roots {
    fn new(gs: &GlobalState, homes: [IoThreadHandle; 3]) -> Self {
        let perm = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all());
        let [model, queues, drops] = homes;
        let root = |name, home| gs.new_root(name, ParentKind::Backend, perm, &home);
        Self { model: root("model", model), queues: root("queues", queues), drops: root("drops", drops) }
    }

    fn each(&self) -> [&RootRef; 3] {
        [&self.model, &self.queues, &self.drops]
    }
}

/// One graph's life: made, loaded, changed, compared, closed.
async fn round(layer: &Layer, threads: &[IoThread; 2], rng: &mut Rng, watch: &Arc<Watch>) -> churn::Report {
    let gs = &layer.gs;
    let homes = [0, 1].map(|i| threads[i].handle());
    watch.begin("open the graph");
    let leaves = Leaves::new(layer, &homes[0], rng).await;
    let mut churn = Churn::new(gs, rng.fork(), &leaves, &homes, watch.clone()).await;
    let roots = Roots::new(gs, [homes[0].clone(), homes[1].clone(), homes[0].clone()]);
    for root in roots.each() {
        gs.attach_root(root, Some(churn.top())).await.expect("attaches");
    }
    watch.look_at_roots(roots.each().map(|root| root.io().clone()).into());

    let mut load = Load::start(&roots.each().map(|root| root.io().clone()), &homes, rng, watch);
    let until = Instant::now() + ROUND;
    while Instant::now() < until {
        churn.step(&roots.each()).await;
    }
    churn.settle(&roots.each()).await;

    watch.begin("wait for the load to end");
    load.stop();
    load.wait(gs).await;
    watch.begin("compare what dropped requests wrote");
    load.compare().await;
    let report = churn.report();

    // Everything closes while two queues still send: each of their requests is answered, if only with an error.
    watch.begin("close everything under load");
    let last = load::Last::start(roots.queues.io(), rng, watch);
    gs.main().sleep(Duration::from_millis(5)).await;
    drop(churn);
    // Devices go after the node: their entries are detached for them.
    gs.close_all().await.expect("closes");
    watch.begin("end the last load");
    last.wait(gs).await;
    drop(roots);
    gs.settle().await.expect("nothing is left to close");
    assert!(gs.nodes().is_empty(), "left after closing everything: {:#?}", gs.nodes());
    report
}

// Scenario: rounds of a second each, until the time is over; each with a block layer of its own, on the same two I/O
// threads.
#[test]
fn everything_changes_under_load() {
    let (seed, begin, limit) = (seed(), Instant::now(), seconds());
    println!("CAIRN_SEED={seed:#x} CAIRN_STRESS_SECONDS={}", limit.as_secs());
    let mut rng = Rng::new(seed);
    let watch = Watch::start(seed);
    let threads = [bed::io_thread(true), bed::io_thread(true)];
    let (mut rounds, mut total) = (0, churn::Report::default());
    while begin.elapsed() < limit || rounds == 0 {
        let layer = Layer::new();
        watch.look_at(&layer.gs);
        total += layer.main.run(round(&layer, &threads, &mut rng, &watch));
        rounds += 1;
    }
    println!("{rounds} rounds in {:.1} s: {total}", begin.elapsed().as_secs_f32());
    println!("{}", watch.summary());
}
