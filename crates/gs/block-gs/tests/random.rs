//! Random changes of the graph, under load, against a model that computes everything by brute force.
//!
//! `CAIRN_SEED` repeats a run's choices (not its timing), `CAIRN_STRESS_SECONDS` says how long (default 10).

mod common;

use block_common::{ChildRole, IoError, ParentKind, Perm, PermPair};
use block_gs::{DrainGuard, GraphError, GraphResult, NodeRef, RootRef, filter_perm, format_perm};
use block_testkit::{Rng, seed};
use common::World;
use common::load::Load;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Nodes that the model lets there be; more are not added.
const NODES_MAX: usize = 16;
const SECTIONS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Leaf,
    Pass,
    Format,
}

#[derive(Clone, Debug)]
struct ModelEdge {
    name: &'static str,
    role: ChildRole,
    child: Option<String>,
    frozen: bool,
}

#[derive(Clone, Debug)]
struct ModelNode {
    kind: Kind,
    edges: Vec<ModelEdge>,
    monitor: bool,
}

#[derive(Clone, Debug)]
struct ModelRoot {
    perm: PermPair,
    node: Option<String>,
}

/// The graph as it should be: who is above whom, who holds whom. All else is computed from that.
#[derive(Clone, Debug, Default)]
struct Model {
    nodes: BTreeMap<String, ModelNode>,
    roots: Vec<ModelRoot>,
}

/// A user of a node: a root by its place, or a node's edge.
#[derive(Clone, Debug, PartialEq)]
enum User {
    Root(usize),
    Edge(String, usize),
}

impl Model {
    fn users(&self, node: &str) -> Vec<User> {
        let roots = self.roots.iter().enumerate().filter(|(_, root)| root.node.as_deref() == Some(node));
        let mut users: Vec<_> = roots.map(|(at, _)| User::Root(at)).collect();
        for (name, above) in &self.nodes {
            let edges = above.edges.iter().enumerate().filter(|(_, edge)| edge.child.as_deref() == Some(node));
            users.extend(edges.map(|(at, _)| User::Edge(name.clone(), at)));
        }
        users
    }

    /// By walking all the way up, again and again.
    fn perm(&self, user: &User) -> PermPair {
        match user {
            User::Root(at) => self.roots[*at].perm,
            User::Edge(node, at) => {
                let users = self.users(node);
                let above = users.iter().fold(PermPair::NONE, |above, user| above.combine(self.perm(user)));
                match self.nodes[node].kind {
                    Kind::Format => format_perm(self.nodes[node].edges[*at].role, above, false),
                    _ => filter_perm(above),
                }
            }
        }
    }

    fn has_conflict(&self) -> bool {
        self.nodes.keys().any(|node| {
            let perms: Vec<_> = self.users(node).iter().map(|user| self.perm(user)).collect();
            (0..perms.len()).any(|a| (0..perms.len()).any(|b| a != b && !perms[a].denied_by(perms[b]).is_empty()))
        })
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let children = || self.nodes[from].edges.iter().filter_map(|edge| edge.child.as_deref());
        from == to || children().any(|child| self.reaches(child, to))
    }

    /// Nodes go when nobody holds them, and then those that they held.
    fn reap(&mut self) {
        while let Some(dead) = self.nodes.iter().find(|(name, node)| !node.monitor && self.users(name).is_empty()) {
            let dead = dead.0.clone();
            self.nodes.remove(&dead);
        }
    }

    fn is_above(&self, node: &str, target: &str) -> bool {
        self.nodes.contains_key(target) && self.reaches(node, target)
    }

    /// One line a node: what must be the same.
    fn lines(&self) -> BTreeSet<String> {
        let line = |(name, node): (&String, &ModelNode)| {
            let edge = |(at, edge): (usize, &ModelEdge)| {
                let perm = edge.child.as_ref().map(|_| self.perm(&User::Edge(name.clone(), at)));
                format!("{}={:?} {:?}", edge.name, edge.child, perm)
            };
            let edges: Vec<_> = node.edges.iter().enumerate().map(edge).collect();
            format!("{name} {edges:?} users {} monitor {}", self.users(name).len(), node.monitor)
        };
        self.nodes.iter().map(line).collect()
    }
}

fn lines(world: &World) -> BTreeSet<String> {
    let line = |node: block_gs::NodeInfo| {
        let edge = |(name, child, perm): &(String, Option<String>, PermPair)| {
            format!("{name}={child:?} {:?}", child.as_ref().map(|_| perm))
        };
        let edges: Vec<_> = node.children.iter().map(edge).collect();
        format!("{} {edges:?} users {} monitor {}", node.name, node.parents.len(), node.monitor_owned)
    };
    world.gs.nodes().into_iter().map(line).collect()
}

struct Run<'a> {
    world: &'a World,
    rng: Rng,
    model: Model,
    roots: Vec<RootRef>,
    /// Sections that are held for a while, and the nodes that they drain (none: everything).
    sections: Vec<(Option<String>, DrainGuard)>,
    made: u32,
    done: BTreeMap<&'static str, u32>,
    log: Vec<String>,
}

impl Run<'_> {
    fn pick(&mut self) -> Option<String> {
        let names: Vec<_> = self.model.nodes.keys().cloned().collect();
        if names.is_empty() { None } else { Some(names[self.rng.below(0..names.len() as u64) as usize].clone()) }
    }

    fn node(&self, name: &str) -> NodeRef {
        self.world.gs.find_node(name).unwrap_or_else(|error| panic!("{error}; {:?}", self.log))
    }

    fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    /// The answer is what the model says, and if it is a refusal, nothing has changed.
    fn answered(&mut self, what: &'static str, result: GraphResult<()>, expected: Result<(), &'static str>) {
        let kind = match &result {
            Ok(()) => Ok(()),
            Err(GraphError::Permission { .. }) => Err("permission"),
            Err(GraphError::Cycle { .. }) => Err("cycle"),
            Err(GraphError::Frozen { .. }) => Err("frozen"),
            Err(GraphError::InUse(_)) => Err("in use"),
            Err(other) => panic!("{what}: {other}; {:?}", self.log),
        };
        assert_eq!(kind, expected, "{what}: {result:?}\n{:#?}\n{:?}", self.model, self.log);
        self.count(match kind {
            Ok(()) => what,
            Err(refusal) => refusal,
        });
    }

    /// The answer to a change that makes the model `after`.
    fn judge(&self, after: &Model) -> Result<(), &'static str> {
        if after.has_conflict() { Err("permission") } else { Ok(()) }
    }

    async fn add(&mut self) {
        if self.model.nodes.len() >= NODES_MAX {
            return;
        }
        self.made += 1;
        let name = format!("n{}", self.made);
        let file = self.pick();
        let (kind, json, edges) = match (self.rng.below(0..6), file) {
            (0 | 1, _) | (_, None) => {
                let fast = self.rng.chance(70);
                (Kind::Leaf, format!(r#""driver": "leaf", "fast": {fast}"#), vec![])
            }
            (2..=4, Some(file)) => {
                let edges = vec![ModelEdge {
                    name: "file",
                    role: ChildRole::FILTERED_PRIMARY,
                    child: Some(file.clone()),
                    frozen: false,
                }];
                let slow = self.rng.chance(30);
                (Kind::Pass, format!(r#""driver": "pass", "slow": {slow}, "file": "{file}""#), edges)
            }
            (_, Some(file)) => {
                let backing = if self.rng.chance(70) { self.pick() } else { None };
                let shown = backing.as_ref().map_or("null".into(), |name| format!("\"{name}\""));
                let edges = vec![
                    ModelEdge { name: "file", role: ChildRole::IMAGE, child: Some(file.clone()), frozen: false },
                    ModelEdge { name: "backing", role: ChildRole::COW, child: backing, frozen: false },
                ];
                (Kind::Format, format!(r#""driver": "fmt", "file": "{file}", "backing": {shown}"#), edges)
            }
        };
        let mut after = self.model.clone();
        after.nodes.insert(name.clone(), ModelNode { kind, edges, monitor: true });
        let expected = self.judge(&after);
        let json = format!(r#"{{"node-name": "{name}", {json}}}"#);
        self.log.push(json.clone());
        let opened = self.world.open(&json).await;
        let result = opened.map(|node| self.world.gs.set_monitor_owned(&node, true));
        self.answered("add", result, expected);
        if expected.is_ok() {
            self.model = after;
        }
    }

    async fn attach(&mut self) {
        let at = self.rng.below(0..self.roots.len() as u64) as usize;
        let node = if self.rng.chance(80) { self.pick() } else { None };
        let mut after = self.model.clone();
        after.roots[at].node = node.clone();
        let expected = self.judge(&after);
        self.log.push(format!("attach {at} {node:?}"));
        let node = node.map(|node| self.node(&node));
        let result = self.world.gs.attach_root(&self.roots[at], node.as_ref()).await;
        self.answered(if node.is_some() { "attach" } else { "detach" }, result, expected);
        if expected.is_ok() {
            self.model = after;
        }
    }

    async fn set_perm(&mut self) {
        // The first two carry the load.
        let at = self.rng.below(2..self.roots.len() as u64) as usize;
        let bits = |rng: &mut Rng| Perm::from_bits_truncate(rng.next() as u8);
        let shared = if self.rng.chance(60) { Perm::all() } else { bits(&mut self.rng) };
        let perm = PermPair::new(bits(&mut self.rng), shared);
        let mut after = self.model.clone();
        after.roots[at].perm = perm;
        let expected = self.judge(&after);
        self.log.push(format!("perm {at} {perm:?}"));
        let result = self.world.gs.set_root_perm(&self.roots[at], perm);
        self.answered("perm", result, expected);
        if expected.is_ok() {
            self.model = after;
        }
    }

    async fn replace_child(&mut self) {
        let Some(parent) = self.pick() else { return };
        let edges = self.model.nodes[&parent].edges.len() as u64;
        if edges == 0 {
            return;
        }
        let at = self.rng.below(0..edges) as usize;
        let edge = self.model.nodes[&parent].edges[at].clone();
        // Without a file, nothing could be opened above it any more.
        let child = if edge.name == "file" || self.rng.chance(70) { self.pick() } else { None };
        let mut after = self.model.clone();
        let expected = if edge.frozen {
            Err("frozen")
        } else if child.as_ref().is_some_and(|child| self.model.reaches(child, &parent)) {
            Err("cycle")
        } else {
            after.nodes.get_mut(&parent).expect("it was picked").edges[at].child = child.clone();
            self.judge(&after)
        };
        self.log.push(format!("replace_child {parent} {} {child:?}", edge.name));
        let (node, child) = (self.node(&parent), child.map(|child| self.node(&child)));
        let guard = self.world.gs.drain(&node).await;
        let result = self.world.gs.replace_child(&guard, &node, edge.name, child.as_ref());
        drop(guard);
        self.answered("replace_child", result, expected);
        if expected.is_ok() {
            self.model = after;
        }
    }

    async fn replace_node(&mut self) {
        let (Some(from), Some(to)) = (self.pick(), self.pick()) else { return };
        let mut movers = self.model.users(&from);
        movers.retain(|user| match user {
            User::Root(_) => true,
            User::Edge(node, _) => !self.model.reaches(&to, node),
        });
        let mut after = self.model.clone();
        let mut frozen = false;
        for user in &movers {
            match user {
                User::Root(at) => after.roots[*at].node = Some(to.clone()),
                User::Edge(node, at) => {
                    let edge = &mut after.nodes.get_mut(node).expect("it is a user").edges[*at];
                    frozen |= edge.frozen;
                    edge.child = Some(to.clone());
                }
            }
        }
        let expected = if frozen { Err("frozen") } else { self.judge(&after) };
        self.log.push(format!("replace_node {from} {to}"));
        let (from, to) = (self.node(&from), self.node(&to));
        let guard = self.world.gs.drain(&from).await;
        let result = self.world.gs.replace_node(&guard, &from, &to);
        drop(guard);
        self.answered("replace_node", result, expected);
        if expected.is_ok() {
            self.model = after;
        }
    }

    fn freeze(&mut self) {
        let Some(node) = self.pick() else { return };
        let handle = self.node(&node);
        let Some(edge) = self.model.nodes.get_mut(&node).expect("it was picked").edges.first_mut() else { return };
        // Seldom for long.
        let freeze = self.rng.chance(25);
        if freeze != edge.frozen {
            edge.frozen = freeze;
            self.log.push(format!("freeze {node} {freeze}"));
            self.world.gs.set_frozen(&handle, edge.name, freeze).expect("nobody else froze it");
            self.count("freeze");
        }
    }

    async fn close(&mut self) {
        let Some(node) = self.pick() else { return };
        let expected = if self.model.users(&node).is_empty() { Ok(()) } else { Err("in use") };
        self.log.push(format!("close {node}"));
        let handle = self.node(&node);
        let result = self.world.gs.close(handle).await;
        self.answered("close", result, expected);
        if expected.is_ok() {
            self.model.nodes.remove(&node);
        }
    }

    fn disown(&mut self) {
        let Some(node) = self.pick() else { return };
        self.log.push(format!("disown {node}"));
        self.world.gs.set_monitor_owned(&self.node(&node), false);
        self.model.nodes.get_mut(&node).expect("it was picked").monitor = false;
        self.count("disown");
    }

    async fn section(&mut self) {
        if self.sections.len() == SECTIONS_MAX || (!self.sections.is_empty() && self.rng.chance(60)) {
            let at = self.rng.below(0..self.sections.len() as u64) as usize;
            let (target, guard) = self.sections.swap_remove(at);
            self.log.push(format!("end {target:?}"));
            drop(guard);
            return;
        }
        let target = if self.rng.chance(80) { self.pick() } else { None };
        self.log.push(format!("drain {target:?}"));
        let begin = Instant::now();
        let guard = match &target {
            Some(node) => self.world.gs.drain(&self.node(node)).await,
            None => self.world.gs.drain_all().await,
        };
        assert!(begin.elapsed() < Duration::from_secs(20), "a drain hung");
        self.sections.push((target, guard));
        self.count("drain");
    }

    /// Look at everything.
    async fn compare(&mut self) {
        self.model.reap();
        self.world.gs.settle().await.expect("nothing fails");
        assert_eq!(lines(self.world), self.model.lines(), "{:?}", self.log);
        for name in self.model.nodes.keys() {
            let covered = self.sections.iter().any(|(target, _)| match target {
                Some(target) => self.model.is_above(name, target),
                None => true,
            });
            assert_eq!(self.world.is_quiesced(&self.node(name)), covered, "{name}; {:?}", self.log);
        }
        for (model, root) in self.model.roots.iter().zip(&self.roots) {
            assert_eq!(self.world.gs.root_node(root).map(|node| node.name().to_owned()), model.node);
            assert_eq!(self.world.gs.root_perm(root), model.perm);
        }
    }

    async fn step(&mut self) {
        if self.log.len() > 60 {
            self.log.drain(..30);
        }
        match self.rng.below(0..100) {
            0..22 => self.add().await,
            22..40 => self.attach().await,
            40..46 => self.set_perm().await,
            46..60 => self.replace_child().await,
            60..72 => self.replace_node().await,
            72..78 => self.freeze(),
            78..84 => self.close().await,
            84..90 => self.disown(),
            _ => self.section().await,
        }
        self.compare().await;
    }
}

fn seconds() -> u64 {
    let text = std::env::var("CAIRN_STRESS_SECONDS").unwrap_or_else(|_| "10".into());
    text.parse().expect("CAIRN_STRESS_SECONDS is a number of seconds")
}

#[test]
fn random_changes_under_load_agree_with_the_model() {
    let seed = seed();
    println!("CAIRN_SEED={seed:#x}");
    let end = Instant::now() + Duration::from_secs(seconds());
    let mut rng = Rng::new(seed);
    let mut total: BTreeMap<&str, u32> = BTreeMap::new();
    let (mut rounds, mut requests) = (0, 0);
    while rounds == 0 || Instant::now() < end {
        let world = World::new();
        // Not `World::run`: a round's patience is its own.
        world.main.run(async {
            let perm = PermPair::new(Perm::CONSISTENT_READ | Perm::WRITE, Perm::all());
            let roots: Vec<_> = (0..5)
                .map(|i| world.gs.new_root(&format!("r{i}"), ParentKind::Backend, perm, &world.gs.main_io()))
                .collect();
            let load = Load::start(&[roots[0].io().clone(), roots[1].io().clone()], 2);
            let model = Model { nodes: BTreeMap::new(), roots: vec![ModelRoot { perm, node: None }; roots.len()] };
            let mut run = Run {
                world: &world,
                rng: rng.fork(),
                model,
                roots,
                sections: Vec::new(),
                made: 0,
                done: BTreeMap::new(),
                log: Vec::new(),
            };
            for _ in 0..400 {
                run.step().await;
            }
            let Run { done, roots, sections, .. } = run;
            drop(sections);
            let outcome = load.stop();
            assert_eq!(outcome.submitted, outcome.completed, "requests were lost");
            let allowed = [IoError::NO_MEDIUM.errno().raw(), IoError::NOT_PERMITTED.errno().raw()];
            assert!(outcome.failed.keys().all(|errno| allowed.contains(errno)), "{:?}", outcome.failed);
            requests += outcome.completed - outcome.failed.values().sum::<u64>();
            for (what, count) in done {
                *total.entry(what).or_default() += count;
            }
            drop(roots);
        });
        world.close();
        rounds += 1;
    }
    println!("{rounds} rounds, {requests} requests served, {total:?}");
    for what in [
        "add",
        "attach",
        "detach",
        "perm",
        "replace_child",
        "replace_node",
        "close",
        "drain",
        "permission",
        "cycle",
        "frozen",
        "in use",
    ] {
        assert!(total.get(what).is_some_and(|count| *count > 0), "{what} never came about");
    }
}
