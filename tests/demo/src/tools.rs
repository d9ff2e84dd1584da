//! Cairn's and QEMU's tools: running both alternately, comparing what they say and make, and the ratio of their times.

use anyhow::{Context, Result, bail, ensure};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How often each runs; the median counts.
const PAIRS: usize = 5;

/// One of the two, with a folder of its own.
struct Tool {
    name: &'static str,
    path: PathBuf,
    folder: PathBuf,
}

/// cairn-img, and qemu-img where it is installed.
pub(crate) struct Tools {
    ours: Tool,
    theirs: Option<Tool>,
}

/// A command line that both get.
pub(crate) struct Act<'a> {
    /// For the reader.
    pub(crate) title: &'a str,
    pub(crate) args: &'a [&'a str],
    /// How it must end.
    pub(crate) status: i32,
    /// The file that it makes or changes.
    pub(crate) output: Option<&'a str>,
    /// What is done in the folder before each run.
    pub(crate) before: &'a dyn Fn(&Path) -> std::io::Result<()>,
}

/// What a command said, and its time.
struct Run {
    output: Output,
    took: Duration,
}

impl Tool {
    fn run(&self, args: &[&str]) -> Result<Run> {
        let begin = Instant::now();
        let output = Command::new(&self.path).args(args).current_dir(&self.folder).stdin(Stdio::null()).output();
        let took = begin.elapsed();
        Ok(Run { output: output.with_context(|| format!("running {}", self.path.display()))?, took })
    }

    /// What it said, without its name.
    fn said(&self, run: &Run) -> String {
        let text = [&run.output.stdout[..], &run.output.stderr[..]].concat();
        String::from_utf8_lossy(&text).replace(self.name, "PROGRAM")
    }
}

/// The program `name` that was built beside this one.
pub(crate) fn built(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.exists(), "{} is not built; `cargo xtask demo` builds it", path.display());
    Ok(path)
}

impl Tools {
    /// The tools, each with a folder in `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let tool = |name: &'static str, path| {
            // Not called after its program, whose name is taken out of what it says.
            let folder = dir.join(name.trim_end_matches("-img"));
            std::fs::create_dir_all(&folder)?;
            anyhow::Ok(Tool { name, path, folder })
        };
        let ours = tool("cairn-img", built("cairn-img")?)?;
        let is_there = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status().is_ok();
        let theirs = is_there.then(|| tool("qemu-img", "qemu-img".into())).transpose()?;
        if theirs.is_none() {
            println!("qemu-img is not here: not compared\n");
        }
        Ok(Self { ours, theirs })
    }

    /// Where cairn-img's files are.
    pub(crate) fn folder(&self) -> &Path {
        &self.ours.folder
    }

    /// Do something in every folder.
    pub(crate) fn everywhere(&self, work: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
        let tools = [Some(&self.ours), self.theirs.as_ref()];
        Ok(tools.into_iter().flatten().try_for_each(|tool| work(&tool.folder))?)
    }

    /// Let both do it, compare, and print a line.
    ///
    /// # Errors
    /// It ended otherwise than it must, or the two did not do the same.
    pub(crate) fn play(&self, act: &Act<'_>) -> Result<()> {
        let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
        for _ in 0..PAIRS {
            let ours = self.one(&self.ours, act)?;
            our_times.push(ours.took);
            let status = ours.output.status;
            if status.code() != Some(act.status) {
                bail!("cairn-img {}: {status}\n{}", act.args.join(" "), self.ours.said(&ours));
            }
            if let Some(tool) = &self.theirs {
                let theirs = self.one(tool, act)?;
                their_times.push(theirs.took);
                self.check(act, &ours, tool, &theirs)?;
            }
        }
        let ours = median(&mut our_times);
        let Some(tool) = &self.theirs else {
            println!("{:<44} {ours:>9.1?}   qemu-img is not here: not compared", act.title);
            return Ok(());
        };
        let theirs = median(&mut their_times);
        let ratio = ours.as_secs_f64() / theirs.as_secs_f64();
        let what = if act.output.is_some() { "same words, same bytes" } else { "same words" };
        println!("{:<44} {ours:>9.1?}   {} {theirs:>9.1?}   ratio {ratio:.2}   {what}", act.title, tool.name);
        Ok(())
    }

    fn one(&self, tool: &Tool, act: &Act<'_>) -> Result<Run> {
        (act.before)(&tool.folder).context("preparing an act")?;
        tool.run(act.args)
    }

    fn check(&self, act: &Act<'_>, ours: &Run, tool: &Tool, theirs: &Run) -> Result<()> {
        let (said, expected) = (self.ours.said(ours), tool.said(theirs));
        if said != expected || ours.output.status != theirs.output.status {
            bail!("{}: cairn-img said\n{said}and qemu-img\n{expected}", act.args.join(" "));
        }
        act.output.map_or(Ok(()), |name| same_bytes(&self.ours.folder.join(name), &tool.folder.join(name)))
    }
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Two files are the same, byte for byte.
///
/// # Errors
/// Where they differ.
pub(crate) fn same_bytes(a: &Path, b: &Path) -> Result<()> {
    let (mut first, mut second) = (File::open(a)?, File::open(b)?);
    let (mut len, their_len) = (first.metadata()?.len(), second.metadata()?.len());
    ensure!(len == their_len, "{} has {len} bytes and {} {their_len}", a.display(), b.display());
    let (mut ours, mut theirs) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while len > 0 {
        let piece = len.min(1 << 20) as usize;
        first.read_exact(&mut ours[..piece])?;
        second.read_exact(&mut theirs[..piece])?;
        ensure!(ours == theirs, "{} and {} differ in the last {len} bytes", a.display(), b.display());
        len -= piece as u64;
    }
    Ok(())
}
