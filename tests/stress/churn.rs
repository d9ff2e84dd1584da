//! What the main loop does to the graph while the load runs: one random operation after the other, each of them whole.
//!
//! ```text
//!   model  queues  drops          entries
//!        \   |   /
//!       (filters …)               0 to 3 of them, in each of the three places
//!           cow ── file ── (filters …) ── overlay
//!            └── backing ── (filters …) ── base
//! ```

use crate::leaves::Leaves;
use crate::support::open;
use crate::watch::Watch;
use block_common::{AlignedBuf, ParentKind, Perm, PermPair};
use block_gs::{DrainGuard, GlobalState, GraphError, NodeRef, RootRef};
use block_io::{IoThreadHandle, RequestKind};
use block_testkit::{MemMode, MemStorage, Rng, ToyCowControl, ToyFilterControl, bed};
use std::fmt;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

/// Filters in one place.
const FILTERS_MAX: usize = 3;

/// How often what was done.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Report {
    inserted: u64,
    dropped: u64,
    swapped: u64,
    drained: u64,
    given_up: u64,
    closed: u64,
    moved: u64,
    refused: u64,
    detoured: u64,
    /// Clusters that were used again.
    reused: u64,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.dropped += other.dropped;
        self.swapped += other.swapped;
        self.drained += other.drained;
        self.given_up += other.given_up;
        self.closed += other.closed;
        self.moved += other.moved;
        self.refused += other.refused;
        self.detoured += other.detoured;
        self.reused += other.reused;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "filters inserted {} and dropped {}, edges swapped {}, drains {} and given up {}, side nodes closed {}, \
             homes moved {}, changes refused {}, detours {}, clusters used again {}",
            self.inserted,
            self.dropped,
            self.swapped,
            self.drained,
            self.given_up,
            self.closed,
            self.moved,
            self.refused,
            self.detoured,
            self.reused,
        )
    }
}

/// A place for filters: from the top of them down to the node that they are above.
struct Place {
    filters: Vec<NodeRef>,
    below: NodeRef,
}

impl Place {
    fn top(&self) -> &NodeRef {
        self.filters.first().unwrap_or(&self.below)
    }

    /// What lies at `index`, counted from the top; past the filters, what they are above.
    fn at(&self, index: usize) -> &NodeRef {
        self.filters.get(index).unwrap_or(&self.below)
    }
}

/// The graph of one round.
pub(crate) struct Churn {
    gs: GlobalState,
    rng: Rng,
    watch: Arc<Watch>,
    /// The overlay, if it is memory: it answers as it is told to.
    storage: Option<MemStorage>,
    homes: [IoThreadHandle; 2],
    cow: NodeRef,
    /// Above `cow`, above `base`, above `overlay`.
    places: [Place; 3],
    report: Report,
    serial: u64,
}

impl Churn {
    /// Make the graph, without filters, on the leaves `base` and `overlay`.
    pub(crate) async fn new(
        gs: &GlobalState,
        rng: Rng,
        leaves: &Leaves,
        homes: &[IoThreadHandle; 2],
        watch: Arc<Watch>,
    ) -> Self {
        let base = open(gs, &format!("{},node-name=base,read-only=on", leaves.base)).await.expect("opens");
        let overlay = open(gs, &format!("{},node-name=overlay", leaves.overlay)).await.expect("opens");
        let cow = open(gs, "toy-cow,node-name=cow,file=overlay,backing=base").await.expect("opens");
        let places = [cow.clone(), base, overlay].map(|below| Place { filters: Vec::new(), below });
        let (report, storage) = (Report::default(), leaves.storage.clone());
        Self { gs: gs.clone(), rng, watch, storage, homes: homes.clone(), cow, places, report, serial: 0 }
    }

    /// The node that entries lead to at first.
    pub(crate) fn top(&self) -> &NodeRef {
        self.places[0].top()
    }

    pub(crate) fn report(&self) -> Report {
        let reused = self.gs.with_control(&self.cow, |control: &mut ToyCowControl| control.reused());
        Report { reused: reused.expect("a toy image"), ..self.report }
    }

    /// One random operation.
    pub(crate) async fn step(&mut self, roots: &[&RootRef; 3]) {
        let place = self.rng.below(0..3) as usize;
        match self.rng.below(0..100) {
            0..22 => self.insert(place).await,
            22..44 => self.drop_filter(place).await,
            44..54 => self.swap_backing().await,
            54..66 => self.drain(roots).await,
            66..72 => self.give_up_a_drain().await,
            72..78 => self.side_node().await,
            78..82 => self.move_home(roots).await,
            82..88 => self.try_what_is_refused().await,
            88..92 => self.detour(place).await,
            92..96 => self.change_the_way(place),
            _ => self.change_the_storage(),
        }
        self.watch.begin("let requests pass");
        let pause = Duration::from_micros(self.rng.below(0..2000));
        self.gs.main().sleep(pause).await;
    }

    /// Take away what would be in the way of the end: filters and slow ways.
    pub(crate) async fn settle(&mut self, roots: &[&RootRef; 3]) {
        if let Some(storage) = &self.storage {
            storage.clear_script();
            storage.set_mode(MemMode::Now);
        }
        for place in 0..3 {
            while !self.places[place].filters.is_empty() {
                self.drop_filter(place).await;
            }
        }
        self.watch.begin("the last drain");
        let section = self.gs.drain_all().await;
        self.check_quiet(&section, roots);
    }

    fn name(&mut self) -> String {
        self.serial += 1;
        format!("filter{}", self.serial)
    }

    async fn open_filter(&mut self, below: &NodeRef) -> NodeRef {
        self.watch.begin("open a filter");
        let options = format!("toy-filter,node-name={},file={}", self.name(), below.name());
        let filter = open(&self.gs, &options).await.expect("opens");
        let control = |control: &mut ToyFilterControl| {
            control.count_mapped(true);
            control.set_slow(self.rng.chance(30));
        };
        self.gs.with_control(&filter, control).expect("a toy filter");
        filter
    }

    /// Put a filter between a node and everybody above it.
    async fn insert(&mut self, place: usize) {
        if self.places[place].filters.len() == FILTERS_MAX {
            return;
        }
        let index = self.rng.below(0..self.places[place].filters.len() as u64 + 1) as usize;
        let below = self.places[place].at(index).clone();
        let opened_early = if self.rng.chance(50) { Some(self.open_filter(&below).await) } else { None };
        self.watch.begin(format!("insert a filter: above {}", below.name()));
        let section = self.gs.drain(&below).await;
        assert!(section.covers(&below));
        let filter = match opened_early {
            Some(filter) => filter,
            None => self.open_filter(&below).await,
        };
        self.gs.replace_node(&section, &below, &filter).expect("inserts");
        drop(section);
        self.places[place].filters.insert(index, filter);
        self.report.inserted += 1;
    }

    /// Take a filter away, and close it.
    async fn drop_filter(&mut self, place: usize) {
        let count = self.places[place].filters.len();
        if count == 0 {
            return;
        }
        let index = self.rng.below(0..count as u64) as usize;
        let filter = self.places[place].filters.remove(index);
        let below = self.places[place].at(index).clone();
        self.watch.begin(format!("drop a filter: {} above {}", filter.name(), below.name()));
        self.gs.drop_filter(&filter).await.expect("drops");
        self.watch.begin("close a filter");
        self.gs.close(filter).await.expect("closes");
        self.report.dropped += 1;
    }

    /// Let the image's edge to its backing file lead to another filter over the same base. The old ones go by
    /// themselves.
    async fn swap_backing(&mut self) {
        let base = self.places[1].below.clone();
        let filter = self.open_filter(&base).await;
        self.watch.begin("swap an edge");
        let section = self.gs.drain(&self.cow).await;
        self.gs.replace_child(&section, &self.cow, "backing", Some(&filter)).expect("swaps");
        let old = std::mem::replace(&mut self.places[1].filters, vec![filter]);
        if self.rng.chance(50) {
            // The last references go while everything above is still drained.
            drop(old);
            self.gs.settle().await.expect("closes");
            drop(section);
        } else {
            drop(section);
            drop(old);
            self.gs.settle().await.expect("closes");
        }
        self.report.swapped += 1;
    }

    /// Drain something, once or within another section, and see that nothing moves.
    async fn drain(&mut self, roots: &[&RootRef; 3]) {
        let place = self.rng.below(0..3) as usize;
        let index = self.rng.below(0..self.places[place].filters.len() as u64 + 1) as usize;
        let node = self.places[place].at(index).clone();
        self.watch.begin(format!("drain a node: {}", node.name()));
        let section = self.gs.drain(&node).await;
        if self.rng.chance(40) {
            self.watch.begin("drain everything");
            let all = self.gs.drain_all().await;
            drop(section);
            self.hold(&all, roots).await;
        } else {
            self.hold(&section, roots).await;
        }
        self.report.drained += 1;
    }

    async fn hold(&mut self, section: &DrainGuard, roots: &[&RootRef; 3]) {
        self.watch.begin("hold a drain");
        let before = self.check_quiet(section, roots);
        let time = Duration::from_micros(self.rng.below(0..3000));
        self.gs.main().sleep(time).await;
        assert_eq!(self.check_quiet(section, roots), before, "requests passed a drained section");
    }

    /// Every node of the section is idle. What was counted so far above it.
    fn check_quiet(&self, section: &DrainGuard, roots: &[&RootRef; 3]) -> (Vec<u64>, Vec<u64>) {
        let mut seen = Vec::new();
        for filter in self.places.iter().flat_map(|place| &place.filters).filter(|filter| section.covers(filter)) {
            let counts = self.gs.with_control(filter, |control: &mut ToyFilterControl| control.counts());
            let counts = counts.expect("a toy filter");
            seen.push(counts.mapped + counts.reads + counts.writes + counts.zeroes + counts.discards + counts.flushes);
            // Whoever enters from outside is counted for a moment before it is refused; nobody enters a node that is
            // not the top.
            if !filter.same(self.top()) {
                assert_eq!(filter.io().in_flight(), 0, "{filter:?} is drained and busy");
            }
        }
        if section.covers(&self.cow) && !self.cow.same(self.top()) {
            assert_eq!(self.cow.io().in_flight(), 0, "the image is drained and busy");
        }
        // All entries lead to the top, so that every section here covers them.
        let kinds = [RequestKind::Read, RequestKind::Write, RequestKind::Zero, RequestKind::Flush];
        let requests = roots.iter().flat_map(|root| kinds.map(|kind| root.io().count(kind).requests)).collect();
        (seen, requests)
    }

    /// Begin a drain and drop it before it is over: nothing stays closed.
    async fn give_up_a_drain(&mut self) {
        self.watch.begin("give a drain up");
        let polls = self.rng.below(0..4) as usize;
        let begun = if self.rng.chance(50) { Some(self.gs.drain(&self.cow)) } else { None };
        match begun {
            Some(drain) => drop(bed::drop_after(drain, polls).await),
            None => drop(bed::drop_after(self.gs.drain_all(), polls).await),
        }
        self.report.given_up += 1;
    }

    /// Open a node beside the others, read from it, and close it with requests still under way.
    async fn side_node(&mut self) {
        self.watch.begin("close a side node");
        let (gs, home) = (&self.gs, &self.homes[self.rng.below(0..2) as usize]);
        let node =
            open(gs, "toy-filter,file.driver=null-co,file.latency-ns=200000,file.size=1048576").await.expect("opens");
        let perm = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
        let root = gs.new_root("side", ParentKind::Backend, perm, home);
        gs.attach_root(&root, Some(&node)).await.expect("attaches");
        let io = root.io().clone();
        let reading = home.run(async move {
            let read = |at: u64| io.read(at * 4096, AlignedBuf::zeroed(4096, 512).into_io());
            bed::join_all((0..16).map(read)).await.into_iter().map(|(result, _)| result).collect::<Vec<_>>()
        });
        drop((root, node));
        self.watch.begin("settle a side node");
        gs.settle().await.expect("closes");
        let results = reading.await.expect("the thread lives");
        for result in results {
            let gone = result.is_err_and(|error| error.kind() != block_common::IoErrorKind::Gone);
            assert!(!gone, "a read of a closing node: {result:?}");
        }
        self.report.closed += 1;
    }

    async fn move_home(&mut self, roots: &[&RootRef; 3]) {
        self.watch.begin("move a home");
        let (root, home) = (self.rng.below(0..3) as usize, self.rng.below(0..2) as usize);
        self.gs.set_root_home(roots[root], &self.homes[home]).await;
        self.report.moved += 1;
    }

    /// Changes that must not happen: each is refused, and the graph is as it was.
    async fn try_what_is_refused(&mut self) {
        self.watch.begin("try what is refused");
        let gs = &self.gs;
        let before: Vec<_> = gs.nodes().iter().map(|node| (node.name.clone(), node.children.clone())).collect();
        let base = self.places[1].below.clone();
        let side = open(gs, "null-co").await.expect("opens");
        let elsewhere = gs.drain(&side).await;
        let undrained = gs.replace_child(&elsewhere, &self.cow, "backing", Some(&side));
        drop(elsewhere);
        let drained = gs.drain(&base).await;
        let cycle = gs.replace_child(&drained, &self.cow, "backing", Some(&self.cow));
        let no_such = gs.replace_child(&drained, &self.cow, "frontside", None);
        gs.set_frozen(&self.cow, "backing", true).expect("freezes");
        let frozen = gs.replace_child(&drained, &self.cow, "backing", Some(&side));
        gs.set_frozen(&self.cow, "backing", false).expect("thaws");
        drop(drained);
        gs.close(side).await.expect("closes");
        assert!(matches!(undrained, Err(GraphError::NotDrained(_))), "{undrained:?}");
        assert!(matches!(cycle, Err(GraphError::Cycle { .. })), "{cycle:?}");
        assert!(matches!(no_such, Err(GraphError::NoSuchEdge { .. })), "{no_such:?}");
        assert!(matches!(frozen, Err(GraphError::Frozen { .. })), "{frozen:?}");
        let after: Vec<_> = gs.nodes().iter().map(|node| (node.name.clone(), node.children.clone())).collect();
        assert_eq!(before, after);
        self.report.refused += 4;
    }

    /// Send a node's requests the slow way for a while.
    async fn detour(&mut self, place: usize) {
        self.watch.begin("detour a node");
        let node = self.places[place].top().clone();
        self.gs.set_detour(&node, true).await.expect("there");
        let time = Duration::from_micros(self.rng.below(0..2000));
        self.gs.main().sleep(time).await;
        self.gs.set_detour(&node, false).await.expect("there");
        self.report.detoured += 1;
    }

    /// Let a filter map requests, or not any more.
    fn change_the_way(&mut self, place: usize) {
        let slow = self.rng.chance(50);
        for filter in &self.places[place].filters {
            let control = |control: &mut ToyFilterControl| control.set_slow(slow);
            self.gs.with_control(filter, control).expect("a toy filter");
        }
    }

    /// Let the image's file answer at once, slowly, or out of order.
    fn change_the_storage(&mut self) {
        let Some(storage) = &self.storage else { return };
        storage.clear_script();
        match self.rng.below(0..3) {
            0 => storage.reorder(self.rng.next(), 8),
            1 => storage.set_mode(MemMode::Slow),
            _ => storage.set_mode(MemMode::Now),
        }
    }
}
