//! The graph's life: what changing a graph costs the requests under way, what filters add to those that pass, and what a daemon takes for many nodes.

use crate::rounds::Contender;
use anyhow::{Context, Result, bail};
use block_common::{AlignedBuf, Options, RequestFlags};
use block_drivers::{Overlay, open_overlay};
use block_gs::{LeftOut, NodeRef, Step};
use block_io::{Queue, Request, Root};
use cairn_benches::{Driver, Live};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is done to a node under load.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// It is drained.
    Drain,
    /// It gets an overlay, which is made, opened and put on it.
    Snapshot,
    /// It is reopened with other options.
    Reopen,
}

/// From one act to the next.
const PAUSE: Duration = Duration::from_millis(20);
/// The length of the image, in bytes, and of a request.
const IMAGE: u64 = 64 << 20;
const SIZE: usize = 4096;
const DEPTH: usize = 32;

/// The slowest of the requests that are made for so long, half of them writes, 32 at once, on a qcow2 image in `dir`: beside an act if `acts`, or as they are without. Where an act
/// puts an empty image on top, the image is empty in either case; otherwise all of it is allocated.
///
/// # Errors
/// A request or an act fails.
pub(crate) fn slowest(dir: &Path, act: Act, acts: bool, how_long: Duration) -> Result<Duration> {
    let dir = tempfile::tempdir_in(dir)?;
    let live = Live::new()?;
    let image = dir.path().join("image");
    live.create(&image, IMAGE)?;
    let file = format!(r#"{{"driver": "file", "filename": "{}"}}"#, image.display());
    let mut top = live.open(&format!(r#"{{"driver": "qcow2", "node-name": "top", "file": {file}}}"#))?;
    let user = live.backend(&top, true)?;
    if !matches!(act, Act::Snapshot) {
        Driver::write_all(user.io().root())?;
    }
    let (root, stop) = (user.io().root().clone(), AtomicBool::new(false));
    let slowest = std::thread::scope(|scope| {
        let load = scope.spawn(|| load(&root, &stop));
        let begin = Instant::now();
        let mut acted = Ok(0);
        while begin.elapsed() < how_long && !load.is_finished() {
            live.run(live.gs().main().sleep(PAUSE));
            acted = acted.and_then(|count: u32| {
                if acts {
                    top = live.run(act.carry_out(&live, dir.path(), &top, count))?;
                }
                Ok(count + 1)
            });
        }
        stop.store(true, Ordering::SeqCst);
        let slowest = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        acted.and(slowest)
    })?;
    drop((user, top, root));
    live.close()?;
    Ok(slowest)
}

impl Act {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Drain => "with drains",
            Self::Snapshot => "with snapshots",
            Self::Reopen => "with reopens",
        }
    }

    /// The node that is on top afterwards.
    async fn carry_out(self, live: &Live, dir: &Path, top: &NodeRef, count: u32) -> Result<NodeRef> {
        let gs = live.gs();
        match self {
            Self::Drain => drop(gs.drain(top).await),
            Self::Reopen => {
                let (lazy, discard) = if count.is_multiple_of(2) { ("true", "unmap") } else { ("false", "ignore") };
                let text = format!(r#"{{"lazy-refcounts": {lazy}, "discard": "{discard}"}}"#);
                gs.reopen(top, Options::parse_json(&text)?, LeftOut::Stays).await?;
            }
            Self::Snapshot => {
                let overlay = Overlay {
                    file: dir.join(format!("overlay{count}")).display().to_string(),
                    format: "qcow2".into(),
                    node_name: None,
                    is_there: false,
                    base_name: None,
                };
                let overlay = open_overlay(gs, top, &overlay).await?;
                let steps = [Step::Overlay { node: top.clone(), overlay: overlay.clone() }];
                let changed = gs.mutate(move |gs| async move {
                    let sections = gs.drain_for(&steps).await?;
                    gs.change_all(&sections, &steps)
                });
                changed.await?;
                return Ok(overlay);
            }
        }
        Ok(top.clone())
    }
}

/// Make requests until it is told to stop: the slowest.
fn load(root: &Root, stop: &AtomicBool) -> Result<Duration> {
    let mut queue = Queue::new().context("cannot make a queue")?;
    let (mut begun, mut slowest) = (vec![Instant::now(); DEPTH], Duration::ZERO);
    let (mut state, mut done, mut left) = (1u64, Vec::new(), DEPTH);
    let mut send = |queue: &mut Queue, tag: usize, buf| {
        // Numerical Recipes' generator: any will do.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & 0xffff_ffff;
        let offset = (state >> 8) % (IMAGE / SIZE as u64) * SIZE as u64;
        let request = match state & 128 {
            0 => Request::read(offset, buf),
            _ => Request::write(offset, buf, RequestFlags::empty()),
        };
        queue.submit(root, request, tag as u64);
    };
    for (tag, begun) in begun.iter_mut().enumerate() {
        *begun = Instant::now();
        send(&mut queue, tag, AlignedBuf::zeroed(SIZE, SIZE).into_io());
    }
    while left > 0 {
        queue.wait(&mut done, None);
        for completed in done.drain(..) {
            completed.done.result?;
            let tag = completed.tag as usize;
            slowest = slowest.max(begun[tag].elapsed());
            let Some(buf) = completed.done.buf else { bail!("a request kept its buffer") };
            if stop.load(Ordering::Relaxed) {
                left -= 1;
            } else {
                begun[tag] = Instant::now();
                send(&mut queue, tag, buf);
            }
        }
    }
    Ok(slowest)
}

/// How the nodes of a large graph lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lie {
    /// Beside each other.
    Wide,
    /// Each on another.
    Chain,
}

/// A daemon that opens so many nodes, is asked about them, and closes them one after the other, from its start to its end.
#[derive(Debug)]
pub(crate) struct ManyNodes {
    name: String,
    program: PathBuf,
    script: String,
    answers: usize,
}

impl ManyNodes {
    /// `program`, with nodes that lie so.
    pub(crate) fn new(name: &str, program: &Path, nodes: usize, lie: Lie) -> Self {
        let call = |command: &str, arguments: String| {
            format!("{{\"execute\": \"{command}\", \"arguments\": {{{arguments}}}}}\n")
        };
        let add = |node| match node {
            1.. if lie == Lie::Chain => format!(r#""driver": "raw", "file": "n{}""#, node - 1),
            _ => r#""driver": "null-co", "size": 1048576"#.to_owned(),
        };
        let mut script = call("qmp_capabilities", String::new());
        script.extend((0..nodes).map(|node| call("blockdev-add", format!(r#""node-name": "n{node}", {}"#, add(node)))));
        script.push_str(&call("query-named-block-nodes", String::new()));
        script.extend((0..nodes).rev().map(|node| call("blockdev-del", format!(r#""node-name": "n{node}""#))));
        script.push_str(&call("quit", String::new()));
        let answers = script.lines().count();
        Self { name: name.to_owned(), program: program.to_owned(), script, answers }
    }

    fn once(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--chardev", "stdio,id=c", "--monitor", "chardev=c"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.name))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let (mut stdin, mut stdout) = (stdin.context("its input")?, stdout.context("its output")?);
        let told = std::thread::scope(|scope| {
            let said = scope.spawn(move || stdin.write_all(self.script.as_bytes()));
            let mut told = String::new();
            let heard = stdout.read_to_string(&mut told);
            said.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
            heard?;
            Ok::<_, anyhow::Error>(told)
        })?;
        let status = child.wait()?;
        let answers = told.lines().filter(|line| line.contains("\"return\":")).count();
        if !status.success() || answers != self.answers {
            bail!("{}: {status}, {answers} answers to {} commands", self.name, self.answers);
        }
        Ok(())
    }
}

impl Contender for ManyNodes {
    fn name(&self) -> &str {
        &self.name
    }

    fn first(&self) -> u64 {
        1
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        let begin = Instant::now();
        (0..count).try_for_each(|_| self.once())?;
        Ok(begin.elapsed())
    }
}
