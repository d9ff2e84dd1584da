//! The main loop's operations on disks: each is carried out under load, and what it did or refused is compared with what it should have.

use crate::board::{Allowed, Board, UNIT, UNITS, phase};
use crate::disks::{self, Drive, Kept, Kind, Layer, Medium, json, new_image, shape};
use crate::guest::{Fault, Guest, Habits};
use crate::watch::Watch;
use block_backend::{Backend, BackendOptions, FrontEnd};
use block_backend_io::BackendSettings;
use block_common::{ParentKind, Perm, PermPair, Preallocation};
use block_drivers::{NewImage, Overlay, delete_snapshot, open_overlay, take_snapshot};
use block_gs::{GlobalState, JoinHandle, LeftOut, NodeRef, ObjectText, Step, Users};
use block_testkit::Rng;
use block_throttle::{Limit, LimitKind, LimitSettings, ThrottleLimits};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Images of a disk; one that has them gets no more overlays.
const IMAGES_MAX: usize = 10;
const LAYERS_MAX: usize = 16;
pub(crate) const GROUPS: [&str; 2] = ["g0", "g1"];
const THREADS: [&str; 2] = ["t0", "t1"];

/// The disks of a round and everything that is done to them.
pub(crate) struct Bench {
    pub(crate) gs: GlobalState,
    pub(crate) dir: PathBuf,
    pub(crate) rng: Rng,
    pub(crate) board: Arc<Board>,
    pub(crate) fault: Arc<Fault>,
    pub(crate) watch: Arc<Watch>,
    pub(crate) media: Vec<Medium>,
    pub(crate) drives: Vec<Drive>,
    serial: u32,
    seed: u64,
    log: VecDeque<String>,
    pub(crate) done: BTreeMap<&'static str, u32>,
}

/// What is left of a round once everything is closed.
pub(crate) struct Left {
    seed: u64,
    kept: Vec<Kept>,
    /// Files that may have leaked nothing.
    images: Vec<PathBuf>,
    pub(crate) counts: (u64, u64, u64),
    pub(crate) done: BTreeMap<&'static str, u32>,
}

pub(crate) struct Drains {
    stop: Rc<Cell<bool>>,
    tasks: Vec<JoinHandle<u32>>,
}

impl Bench {
    pub(crate) async fn new(gs: &GlobalState, dir: &Path, seed: u64, rng: Rng) -> Self {
        for text in
            ["throttle-group,id=g0", "throttle-group,id=g1,x-iops-total=4000", "iothread,id=t0", "iothread,id=t1"]
        {
            let Ok(ObjectText::Make(object)) = ObjectText::parse_with_threads(text) else { panic!("{text}") };
            gs.add_object(object).await.expect(text);
        }
        let board = Arc::<Board>::default();
        let mut bench = Self {
            gs: gs.clone(),
            dir: dir.to_owned(),
            rng,
            watch: Watch::start(seed, &board),
            board,
            fault: Arc::default(),
            media: Vec::new(),
            drives: Vec::new(),
            serial: 0,
            seed,
            log: VecDeque::new(),
            done: BTreeMap::new(),
        };
        for format in ["qcow2", "raw", "qcow2", "raw", "qcow2"] {
            bench.add_medium(format).await;
        }
        bench.add_disk(0, true).await;
        bench.add_disk(1, false).await;
        bench.add_tray().await;
        bench
    }

    pub(crate) fn fresh(&mut self, prefix: &str) -> String {
        self.serial += 1;
        format!("{prefix}{}", self.serial)
    }

    async fn add_medium(&mut self, format: &'static str) {
        let units = self.rng.below(UNITS as u64 / 2..UNITS as u64) as usize;
        let name = self.fresh("image");
        let file = self.dir.join(&name);
        let layer = new_image(&self.gs, &file, format, &name, units).await;
        self.board.new_medium(units);
        self.media.push(Medium { layers: vec![layer], is_read_only: false, kept: Vec::new() });
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() { None } else { Some(from[self.rng.below(0..from.len() as u64) as usize]) }
    }

    fn medium(&mut self) -> usize {
        self.rng.below(0..self.media.len() as u64) as usize
    }

    pub(crate) fn start_guest(&mut self, drive: usize, backend: &Backend, writes: bool) -> Guest {
        let habits = Habits { drive, writes, always_simple: self.rng.chance(30) };
        Guest::start(habits, backend.io(), &self.board, &self.fault, &mut self.rng)
    }

    /// The drive whose medium this is, and that writes.
    pub(crate) fn user(&self, medium: usize) -> Option<&Drive> {
        self.drives.iter().find(|drive| drive.medium == Some(medium) && drive.writes)
    }

    pub(crate) fn note(&mut self, what: String) -> String {
        if self.log.len() > 40 {
            self.log.pop_front();
        }
        self.log.push_back(what.clone());
        what
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    pub(crate) fn story(&self) -> String {
        format!("CAIRN_SEED={:#x}\n{:#?}", self.seed, self.log)
    }

    /// The graph, once everything is closed that nobody uses any more.
    pub(crate) async fn before(&self) -> Vec<String> {
        let settled = self.watch.timed(&self.gs, "closing what nobody uses", self.gs.settle()).await;
        settled.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        shape(&self.gs)
    }

    /// What was refused has changed nothing.
    pub(crate) fn same(&self, what: &str, before: &[String]) {
        let after = shape(&self.gs);
        let changed: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
        assert!(after == before, "{what} was refused and changed something: {changed:#?}; {}", self.story());
    }

    pub(crate) async fn step(&mut self) {
        match self.rng.below(0..100) {
            0..12 => self.overlay().await,
            12..18 => self.snapshot_inside().await,
            18..22 => self.delete_snapshot().await,
            22..36 => self.reopen().await,
            36..42 => self.exchange_backing().await,
            42..52 => self.resize().await,
            52..60 => self.filter_in().await,
            60..66 => self.filter_out().await,
            66..70 => self.limits(),
            70..75 => self.move_home().await,
            75..90 => self.exchange_media().await,
            90..95 => self.reader().await,
            95..97 => self.conflict().await,
            _ => self.plug().await,
        }
        if let Some(fault) = self.fault.take() {
            panic!("{fault}\n{}", self.story());
        }
        let pause = self.rng.below(0..4);
        self.gs.main().sleep(Duration::from_millis(pause)).await;
    }

    /// An image that stands on the disk as it is, open and with nothing below it. What it stands on is named in it.
    async fn new_overlay(&mut self, medium: usize, at: usize) -> Layer {
        let base = self.media[medium].layers[at].node.clone();
        let (file, format) = self.media[medium].image_file();
        let name = self.fresh("overlay");
        let path = self.dir.join(&name);
        // As blockdev-snapshot-sync does it, or a client that makes the image itself.
        let is_there = !self.media[medium].layers[at].is_image() || self.rng.chance(50);
        if is_there {
            let mut new = NewImage::parse(&self.gs, "qcow2", &path.display().to_string(), "").await.expect("options");
            new.set_backing(Some(&file.display().to_string()), Some(format)).expect("it has one");
            new.set_size(base.io().length());
            new.create(&self.gs).await.expect("created");
        }
        let overlay = Overlay {
            file: path.display().to_string(),
            format: "qcow2".into(),
            node_name: Some(name),
            is_there,
            base_name: Some(file.display().to_string()),
        };
        let node =
            open_overlay(&self.gs, &base, &overlay).await.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        Layer { node, kind: Kind::Image { file: path, format: "qcow2" } }
    }

    async fn overlay(&mut self) {
        let mut chosen = vec![self.medium()];
        if self.rng.chance(30) {
            let other = self.medium();
            chosen.extend((other != chosen[0]).then_some(other));
        }
        chosen.retain(|m| {
            let medium = &self.media[*m];
            !medium.is_read_only && medium.images() < IMAGES_MAX && medium.layers.len() < LAYERS_MAX
        });
        let (mut steps, mut put) = (Vec::new(), Vec::new());
        for medium in chosen {
            let at = if self.rng.chance(60) { 0 } else { self.media[medium].image() };
            let layer = self.new_overlay(medium, at).await;
            steps.push(Step::Overlay { node: self.media[medium].layers[at].node.clone(), overlay: layer.node.clone() });
            put.push((medium, at, layer));
        }
        if steps.is_empty() {
            return;
        }
        if self.rng.chance(30) {
            let mut failing = steps.clone();
            failing.push(steps[0].clone());
            let before = self.before().await;
            assert!(self.change(failing).await.is_err(), "two overlays on one node; {}", self.story());
            self.same("a transaction", &before);
            self.count("overlay not put, nor the others");
        }
        let watches: Vec<_> = put.iter().map(|(medium, ..)| self.board.watch(*medium)).collect();
        self.change(steps).await.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        for ((medium, at, layer), watch) in put.into_iter().zip(watches) {
            let allowed = self.board.watched(watch);
            let (file, format) = self.media[medium].image_file();
            let base = self.media[medium].image();
            let base = self.media[medium].layers[base].node.clone();
            let units = self.board.limit(medium);
            self.media[medium].kept.push(Kept { file, format, snapshot: None, allowed, units });
            self.media[medium].layers.insert(at, layer);
            self.try_reopen(&base, r#"{"read-only": true}"#).await.expect("nobody writes below an overlay");
            self.count("overlay");
        }
    }

    async fn change(&mut self, steps: Vec<Step>) -> Result<(), String> {
        let what = self.note(format!("overlays {steps:?}"));
        let changed = self.gs.mutate(move |gs| async move {
            let sections = gs.drain_for(&steps).await?;
            gs.change_all(&sections, &steps)
        });
        self.watch.timed(&self.gs, &what, changed).await.map_err(|error| error.to_string())
    }

    async fn snapshot_inside(&mut self) {
        let medium = self.medium();
        let (file, format) = self.media[medium].image_file();
        let node = self.media[medium].top();
        let name = self.fresh("s");
        let what = self.note(format!("snapshot {name} in {}", node.name()));
        let watch = self.board.watch(medium);
        let (target, named) = (node.clone(), name.clone());
        let taken = self.gs.mutate(move |gs| async move { take_snapshot(&gs, &target, &named).await });
        let taken = self.watch.timed(&self.gs, &what, taken).await;
        let allowed = self.board.watched(watch);
        let expected = format == "qcow2" && !self.media[medium].is_read_only;
        assert_eq!(taken.is_ok(), expected, "{taken:?}; {}", self.story());
        if expected {
            let units = self.board.limit(medium);
            self.media[medium].kept.push(Kept { file, format, snapshot: Some(name), allowed, units });
            self.count("snapshot inside");
        } else {
            self.count("snapshot refused");
        }
    }

    async fn delete_snapshot(&mut self) {
        let medium = self.medium();
        let (file, _) = self.media[medium].image_file();
        let inside = |kept: &Kept| kept.file == file && kept.snapshot.is_some();
        let kept = &self.media[medium].kept;
        let all: Vec<_> = (0..kept.len()).filter(|at| inside(&kept[*at])).collect();
        let Some(at) = self.pick(&all) else { return };
        let name = self.media[medium].kept[at].snapshot.clone();
        let node = self.media[medium].top();
        let what = self.note(format!("delete snapshot {name:?} of {}", node.name()));
        let deleted = self.gs.mutate(move |gs| async move { delete_snapshot(&gs, &node, None, name).await });
        let deleted = self.watch.timed(&self.gs, &what, deleted).await;
        assert_eq!(deleted.is_ok(), !self.media[medium].is_read_only, "{deleted:?}; {}", self.story());
        if deleted.is_ok() {
            self.media[medium].kept.remove(at);
            self.count("snapshot deleted");
        }
    }

    async fn try_reopen(&mut self, node: &NodeRef, text: &str) -> Result<(), String> {
        let what = self.note(format!("reopen {} {text}", node.name()));
        let reopened = self.gs.reopen(node, json(text), LeftOut::Stays);
        self.watch.timed(&self.gs, &what, reopened).await.map_err(|error| error.report())
    }

    async fn reopen(&mut self) {
        let medium = self.medium();
        let at = self.rng.below(0..self.media[medium].layers.len() as u64) as usize;
        let node = self.media[medium].layers[at].node.clone();
        let before = self.before().await;
        let is_qcow2 = matches!(self.media[medium].layers[at].kind, Kind::Image { format: "qcow2", .. });
        let is_top = at == self.media[medium].image();
        // The change, and whether it must succeed, or must not.
        let (text, expected) = match self.rng.below(0..12) {
            _ if !self.media[medium].layers[at].is_image() => {
                let group = GROUPS[self.rng.below(0..2) as usize];
                (format!(r#"{{"throttle-group": "{group}"}}"#), Some(true))
            }
            0 => (r#"{"discard": "ignore", "detect-zeroes": "off"}"#.into(), Some(true)),
            1 => (r#"{"discard": "unmap", "detect-zeroes": "unmap"}"#.into(), Some(true)),
            2 => (r#"{"detect-zeroes": "on"}"#.into(), Some(true)),
            3 => (r#"{"cache": {"no-flush": true}}"#.into(), Some(true)),
            4 => (r#"{"cache": {"no-flush": false, "direct": false}}"#.into(), Some(true)),
            // Not every file system has it.
            5 => (r#"{"cache": {"direct": true}}"#.into(), None),
            6 if is_qcow2 => (r#"{"lazy-refcounts": true, "l2-cache-size": 65536}"#.into(), Some(true)),
            7 if is_qcow2 => (r#"{"lazy-refcounts": false}"#.into(), Some(true)),
            8 if is_top => return self.set_read_only(medium, true).await,
            9 | 10 if is_top => return self.set_read_only(medium, false).await,
            _ => (r#"{"driver": "luks"}"#.into(), Some(false)),
        };
        let answer = self.try_reopen(&node, &text).await;
        if let Some(expected) = expected {
            assert_eq!(answer.is_ok(), expected, "{answer:?}; {}", self.story());
        }
        match answer {
            Ok(()) => self.count("reopened"),
            Err(_) => {
                self.same(&text, &before);
                self.count("reopen refused");
            }
        }
    }

    /// The image that is written, if nobody writes.
    async fn set_read_only(&mut self, medium: usize, read_only: bool) {
        let at = self.media[medium].image();
        let node = self.media[medium].layers[at].node.clone();
        let is_written = self.user(medium).is_some_and(|drive| drive.backend.perm().perm.contains(Perm::WRITE));
        // A filter that was opened for writing has to go with its image.
        if at > 0 {
            return;
        }
        let before = self.before().await;
        let answer = self.try_reopen(&node, &format!(r#"{{"read-only": {read_only}}}"#)).await;
        let expected = !(read_only && is_written);
        assert_eq!(answer.is_ok(), expected, "{answer:?}; {}", self.story());
        if expected {
            self.media[medium].is_read_only = read_only;
            self.count("reopened");
        } else {
            self.same("read-only", &before);
            self.count("reopen refused");
        }
    }

    /// What an overlay stands on: a filter comes in between, or those that are there go. And it cannot stand on itself.
    async fn exchange_backing(&mut self) {
        let all: Vec<_> = (0..self.media.len()).filter(|medium| self.media[*medium].images() > 1).collect();
        let Some(medium) = self.pick(&all) else { return };
        let images = |(at, layer): (usize, &Layer)| layer.is_image().then_some(at);
        let places: Vec<_> = self.media[medium].layers.iter().enumerate().filter_map(images).collect();
        let upper = self.rng.below(0..places.len() as u64 - 1) as usize;
        let (at, next) = (places[upper], places[upper + 1]);
        let node = self.media[medium].layers[at].node.clone();
        if self.rng.chance(25) {
            let (below, before) = (self.media[medium].layers[next].node.clone(), self.before().await);
            let told = self.try_reopen(&below, &format!(r#"{{"backing": "{}"}}"#, node.name())).await;
            assert!(told.is_err(), "{}", self.story());
            self.same("a cycle", &before);
            self.count("cycle refused");
            return;
        }
        if next == at + 1 {
            if self.media[medium].layers.len() == LAYERS_MAX {
                return;
            }
            let below = self.media[medium].layers[next].node.clone();
            let filter = self.open_filter(&below).await;
            self.media[medium].layers.insert(next, Layer { node: filter, kind: Kind::Filter });
        } else {
            self.media[medium].layers.drain(at + 1..next);
        }
        let child = self.media[medium].layers[at + 1].node.clone();
        let answer = self.try_reopen(&node, &format!(r#"{{"backing": "{}"}}"#, child.name())).await;
        answer.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        self.count("backing exchanged");
    }

    fn filter_options(&mut self, below: &NodeRef) -> block_common::Options {
        let (name, group) = (self.fresh("filter"), GROUPS[self.rng.below(0..2) as usize]);
        let read_only = below.io().is_read_only();
        json(&format!(
            r#"{{"driver": "throttle", "node-name": "{name}", "throttle-group": "{group}", "file": "{}",
                "read-only": {read_only}}}"#,
            below.name()
        ))
    }

    async fn open_filter(&mut self, below: &NodeRef) -> NodeRef {
        let options = self.filter_options(below);
        let what = self.note(format!("filter above {}", below.name()));
        let opened = self.watch.timed(&self.gs, &what, self.gs.open(options)).await;
        opened.unwrap_or_else(|error| panic!("{error}; {}", self.story()))
    }

    async fn filter_in(&mut self) {
        let medium = self.medium();
        if self.media[medium].layers.len() >= LAYERS_MAX || self.media[medium].is_read_only {
            return;
        }
        let at = self.rng.below(0..self.media[medium].layers.len() as u64) as usize;
        let below = self.media[medium].layers[at].node.clone();
        let options = self.filter_options(&below);
        let what = self.note(format!("insert a filter above {}", below.name()));
        let inserted = self.gs.insert_node(&below, Users::All, options);
        let inserted = self.watch.timed(&self.gs, &what, inserted).await;
        let node = inserted.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        self.media[medium].layers.insert(at, Layer { node, kind: Kind::Filter });
        self.count("filter in");
    }

    async fn filter_out(&mut self) {
        let medium = self.medium();
        let layers = &self.media[medium].layers;
        let all: Vec<_> = (0..layers.len()).filter(|at| !layers[*at].is_image()).collect();
        let Some(at) = self.pick(&all) else { return };
        let filter = self.media[medium].layers.remove(at).node;
        let what = self.note(format!("drop {}", filter.name()));
        let dropped = self.watch.timed(&self.gs, &what, self.gs.drop_filter(&filter)).await;
        dropped.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        self.count("filter out");
    }

    fn limits(&mut self) {
        let mut settings = LimitSettings::default();
        match self.rng.below(0..4) {
            0 => settings[LimitKind::IopsTotal] = Limit { rate: self.rng.below(500..5000), ..Limit::default() },
            1 => settings[LimitKind::BpsWrite] = Limit { rate: self.rng.below(4..40) << 20, ..Limit::default() },
            _ => {}
        }
        let limits = ThrottleLimits::new(settings).expect("limits");
        let group = GROUPS[self.rng.below(0..2) as usize];
        self.note(format!("limits of {group}, unlimited {}", limits.is_unlimited()));
        let drive = self.rng.below(0..self.drives.len() as u64) as usize;
        match self.rng.below(0..4) {
            0 => self.drives[drive].backend.set_limits(group, limits),
            1 => self.drives[drive].backend.remove_limits(),
            _ => self.gs.throttle_group(group).expect("it is there").group().set_limits(limits),
        }
        self.count("limits");
    }

    async fn move_home(&mut self) {
        let thread = self.pick(&[None, Some(THREADS[0]), Some(THREADS[1])]).flatten();
        let thread = thread.map(|id| self.gs.io_thread(id).expect("it is there"));
        if self.rng.chance(50) {
            let (medium, force) = (self.medium(), self.rng.chance(80));
            let node = self.media[medium].top();
            let what = self.note(format!("move {} to {thread:?}, force {force}", node.name()));
            let has_backend = self.gs.has_backend(&node);
            let moved = self.gs.set_node_home(&node, thread.as_ref(), force);
            let moved = self.watch.timed(&self.gs, &what, moved).await;
            assert_eq!(moved.is_err(), has_backend && !force, "{moved:?}; {}", self.story());
        } else {
            let drive = self.rng.below(0..self.drives.len() as u64) as usize;
            let home = thread.map_or_else(|| self.gs.main_io(), |thread| thread.handle());
            let what = self.note(format!("move drive {drive}"));
            self.watch.timed(&self.gs, &what, self.drives[drive].backend.set_home(&home)).await;
        }
        self.count("moved");
    }

    async fn resize(&mut self) {
        let medium = self.medium();
        let node = self.media[medium].top();
        let old = self.board.limit(medium);
        let new = self.rng.below(UNITS as u64 / 4..UNITS as u64 + 1) as usize;
        let what = self.note(format!("resize {} from {old} to {new} units", node.name()));
        let gs = self.gs.clone();
        let root = gs.new_root("", ParentKind::Backend, PermPair::new(Perm::RESIZE, Perm::all()), &gs.node_home(&node));
        let attached = self.watch.timed(&gs, &what, gs.attach_root(&root, Some(&node))).await;
        assert!(attached.is_ok(), "{attached:?}; {}", self.story());
        // Nobody uses what is going to go, or is not there yet.
        self.board.set_limit(medium, old.min(new));
        let quiet = async {
            while !self.board.is_quiet_past(medium, old.min(new)) {
                gs.main().sleep(Duration::from_millis(1)).await;
            }
        };
        self.watch.timed(&gs, "requests past the new end", quiet).await;
        let truncating = root.io().truncate((new * UNIT) as u64, Preallocation::Off);
        let answer = self.watch.timed(&gs, &what, truncating).await;
        gs.close_root(root).await;
        let has_snapshots = self.media[medium].kept.iter().any(|kept| kept.snapshot.is_some());
        let is_read_only = self.media[medium].is_read_only;
        let now = match answer {
            Ok(()) => {
                assert!(!is_read_only, "a read-only image was resized; {}", self.story());
                self.board.clear_from(medium, old.min(new));
                self.restore_below(medium, old.min(new)).await;
                self.count(if new < old { "shrunk" } else { "grown" });
                new
            }
            // An image may have something against it.
            Err(error) => {
                assert!(has_snapshots || is_read_only, "{error}; {}", self.story());
                self.count("resize failed");
                old
            }
        };
        assert_eq!(node.io().length(), (now * UNIT) as u64, "{}", self.story());
        self.board.set_limit(medium, now);
    }

    /// Nothing: what was cut off comes back as zeroes, whatever lies below (rule trunc-1). Seen at once, and by guests later.
    async fn restore_below(&mut self, medium: usize, from: usize) {
        if self.rng.chance(30) {
            let bytes = disks::read_all(&self.gs, &self.media[medium].top()).await;
            let (past, zero) = (bytes.get(from * UNIT..).unwrap_or_default(), |byte: &u8| *byte == 0);
            assert!(past.iter().all(zero), "what was cut off is there again; {}", self.story());
        }
    }

    /// A reader comes, or one of those that are there goes.
    async fn reader(&mut self) {
        let readers: Vec<_> = (0..self.drives.len()).filter(|at| !self.drives[*at].writes).collect();
        if readers.len() > 1 || (!readers.is_empty() && self.rng.chance(40)) {
            let at = self.pick(&readers).expect("there are some");
            let Drive { number, backend, guest, medium, .. } = self.drives.remove(at);
            let what = self.note(format!("reader {number} goes"));
            self.board.set_phase(number, phase::GOING);
            self.watch.timed(&self.gs, &what, backend.close()).await.expect("nobody else holds it");
            self.watch.timed(&self.gs, "a reader's end", guest.stop()).await;
            medium.into_iter().for_each(|medium| self.board.leave(number, medium));
            self.count("reader detached");
            return;
        }
        let medium = self.medium();
        let home = self.pick(&[None, Some(THREADS[0]), Some(THREADS[1])]).flatten();
        let home = home.map_or_else(|| self.gs.main_io(), |id| self.gs.io_thread(id).expect("it is there").handle());
        let (name, perm) = (self.fresh("reader"), PermPair::new(Perm::CONSISTENT_READ, Perm::all()));
        let what = self.note(format!("{name} of {}", self.media[medium].top().name()));
        let options = BackendOptions { name, perm, home, settings: BackendSettings::default() };
        let node = self.media[medium].top();
        let made = self.watch.timed(&self.gs, &what, Backend::with_node(&self.gs, options, &node)).await;
        let backend = made.unwrap_or_else(|error| panic!("{error}; {}", self.story()));
        let number = self.board.new_drive(phase::PRESENT, false);
        self.board.arrive(number, medium);
        let guest = self.start_guest(number, &backend, false);
        let (front, medium, share_rw, writes) = (None, Some(medium), false, false);
        self.drives.push(Drive { number, backend, front, guest, medium, share_rw, writes });
        self.count("reader attached");
    }

    /// Somebody who wants to write beside a device that shares that with nobody, and with one that does.
    async fn conflict(&mut self) {
        let medium = self.medium();
        let node = self.media[medium].top();
        let what = self.note(format!("another writer of {}", node.name()));
        let (perm, home) = (PermPair::new(Perm::WRITE, Perm::all()), self.gs.main_io());
        let options = BackendOptions { name: String::new(), perm, home, settings: BackendSettings::default() };
        let backend = Backend::new(&self.gs, options).expect("it has no name");
        let before = self.before().await;
        let answer = self.watch.timed(&self.gs, &what, backend.insert(&node)).await;
        let is_shared = |drive: &Drive| drive.backend.perm().shared.contains(Perm::WRITE);
        let expected = !self.media[medium].is_read_only && self.user(medium).is_none_or(is_shared);
        assert_eq!(answer.is_ok(), expected, "{answer:?}; {}", self.story());
        if !expected {
            self.same(&what, &before);
            self.count("writer refused");
        }
        backend.close().await.expect("nobody else holds it");
    }

    pub(crate) fn start_drains(&mut self) -> Drains {
        let stop = Rc::new(Cell::new(false));
        let task = |mut rng: Rng| {
            let (gs, stop, watch) = (self.gs.clone(), stop.clone(), self.watch.clone());
            self.gs.main().spawn(async move {
                let mut count = 0;
                while !stop.get() {
                    gs.main().sleep(Duration::from_micros(rng.below(0..15_000))).await;
                    let nodes = gs.nodes();
                    let name = nodes[rng.below(0..nodes.len() as u64) as usize].name.clone();
                    let node = gs.find_node(&name).ok();
                    let guard = match node.filter(|_| rng.chance(75)) {
                        Some(node) => watch.beside(&gs, &format!("a drain of {name}"), gs.drain(&node)).await,
                        None => watch.beside(&gs, "a drain of everything", gs.drain_all()).await,
                    };
                    gs.main().sleep(Duration::from_micros(rng.below(0..2_000))).await;
                    drop(guard);
                    count += 1;
                }
                count
            })
        };
        let rngs = [self.rng.fork(), self.rng.fork()];
        let tasks = rngs.into_iter().map(task).collect();
        Drains { stop, tasks }
    }

    pub(crate) async fn stop_drains(&mut self, drains: Drains) -> u32 {
        drains.stop.set(true);
        let mut count = 0;
        for task in drains.tasks {
            count += self.watch.timed(&self.gs, "the last drains", task.join()).await;
        }
        count
    }

    /// Let everything end: guests, then drives, then nodes. Each disk is compared while it is still open.
    pub(crate) async fn finish(mut self) -> Left {
        let gs = self.gs.clone();
        let story = self.story();
        for drive in std::mem::take(&mut self.drives) {
            self.watch.timed(&gs, "a guest's end", drive.guest.stop()).await;
            drive.medium.into_iter().for_each(|medium| self.board.leave(drive.number, medium));
            if let Some(front) = drive.front {
                drop(drive.backend);
                self.watch.timed(&gs, "a device's end", front.remove(&gs)).await;
            } else {
                drive.backend.detach_device();
                self.watch.timed(&gs, "a backend's end", drive.backend.close()).await.expect("nobody else holds it");
            }
        }
        if let Some(fault) = self.fault.take() {
            panic!("{fault}\n{story}");
        }
        FrontEnd::remove_all(&gs).await;
        let (mut kept, mut images): (Vec<Kept>, Vec<PathBuf>) = Default::default();
        for (number, medium) in std::mem::take(&mut self.media).into_iter().enumerate() {
            let allowed: Vec<Allowed> = self.board.watched(self.board.watch(number));
            let bytes = disks::read_all(&gs, &medium.top()).await;
            assert_eq!(bytes.len(), self.board.limit(number) * UNIT, "medium {number}; {story}");
            disks::check_all(&format!("medium {number}, {story}"), &allowed, &bytes);
            let (file, format) = medium.image_file();
            kept.extend(medium.kept);
            let units = self.board.limit(number);
            kept.push(Kept { file, format, snapshot: None, allowed, units });
            let qcow2 = medium.layers.iter().filter_map(Layer::image).filter(|(_, format)| *format == "qcow2");
            images.extend(qcow2.map(|(file, _)| file.to_owned()));
        }
        self.watch.timed(&gs, "the nodes' end", gs.settle()).await.unwrap_or_else(|error| panic!("{error}; {story}"));
        assert!(gs.nodes().is_empty() && gs.roots().is_empty(), "something is left: {:?}; {story}", shape(&gs));
        for id in GROUPS.iter().chain(&THREADS) {
            gs.remove_object(id).unwrap_or_else(|error| panic!("{id}: {error}; {story}"));
        }
        self.watch.timed(&gs, "the end", gs.close_all()).await.unwrap_or_else(|error| panic!("{error}; {story}"));
        Left { seed: self.seed, kept, images, counts: self.board.counts(), done: std::mem::take(&mut self.done) }
    }
}

impl Left {
    /// What lies in the files is what was there: in the end, and when snapshots were taken.
    pub(crate) fn compare_files(&self, dir: &Path) {
        if !disks::has_qemu_img() {
            return;
        }
        for file in &self.images {
            disks::qemu_img_checks(file);
        }
        for kept in &self.kept {
            let what = format!("CAIRN_SEED={:#x}: {}, snapshot {:?}", self.seed, kept.file.display(), kept.snapshot);
            let bytes = disks::qemu_img_reads(dir, kept);
            // The tool shows a snapshot as long as the image is now: what was cut off is not shown, and what was added is not the snapshot's.
            let units = kept.units.min(bytes.len() / UNIT);
            assert!(units == kept.units || kept.snapshot.is_some(), "{what}: {} bytes", bytes.len());
            disks::check_all(&what, &kept.allowed, &bytes[..units * UNIT]);
        }
    }
}
