//! Whole runs of tools, from their start to their end: what somebody waits for who types the command.
//!
//! A "request" is a run here. What a run leaves behind is removed before the next one, which counts for nobody.

use crate::programs::output;
use crate::rounds::Contender;
use anyhow::{Context, Result};
use cairn_benches::fill;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A command.
#[derive(Debug)]
pub(crate) struct Whole {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
    /// A file that it makes.
    makes: Option<PathBuf>,
    /// Files that it changes: what they are copied from before each run, which counts for nobody.
    changes: Vec<(PathBuf, PathBuf)>,
}

impl Whole {
    /// `program` with `args`.
    pub(crate) fn new(name: &str, program: &Path, args: &[&dyn AsRef<std::ffi::OsStr>]) -> Self {
        let args = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        Self { name: name.to_owned(), program: program.to_owned(), args, makes: None, changes: Vec::new() }
    }

    /// The same, which makes the file `path`.
    pub(crate) fn making(mut self, path: &Path) -> Self {
        self.makes = Some(path.to_owned());
        self
    }

    /// The same, which changes the file `to`, a copy of `from` at first.
    pub(crate) fn changing(mut self, from: &Path, to: &Path) -> Self {
        self.changes.push((from.to_owned(), to.to_owned()));
        self
    }

    fn copy(&self) -> Result<()> {
        for (from, to) in &self.changes {
            let context = || format!("cannot copy {}", from.display());
            std::fs::copy(from, to).with_context(context)?;
            // Or who is measured waits for what was copied to reach the disk.
            File::open(to).and_then(|file| file.sync_all()).with_context(context)?;
        }
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        let Some(path) = &self.makes else { return Ok(()) };
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

impl Contender for Whole {
    fn name(&self) -> &str {
        &self.name
    }

    fn first(&self) -> u64 {
        1
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        let mut took = Duration::ZERO;
        for _ in 0..count {
            self.clear()?;
            self.copy()?;
            if self.makes.is_some() || !self.changes.is_empty() {
                warm_memory();
            }
            let begin = Instant::now();
            output(Command::new(&self.program).args(&self.args))?;
            took += begin.elapsed();
        }
        self.clear()?;
        Ok(took)
    }
}

/// Use as much memory as a run may write to files, and free it. A virtual machine's host takes free memory back after seconds, and gives it back page by page: whoever writes a
/// new file first would pay for that, now one and now the other.
pub(crate) fn warm_memory() {
    const BYTES: usize = 1 << 30;
    const PAGE: usize = 4096;
    let mut memory = vec![0u8; BYTES];
    memory.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
    std::hint::black_box(&memory);
}

/// Make a file of `len` bytes in which pieces of data of `shortest` to `longest` bytes take turns with holes of as much. On the disk,
/// and in the page cache, when this returns.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn sparse_file(path: &Path, len: u64, shortest: u64, longest: u64) -> Result<()> {
    const BLOCK: u64 = 4096;
    let context = || format!("cannot write {}", path.display());
    let file = File::create(path).with_context(context)?;
    file.set_len(len).with_context(context)?;
    let mut data = vec![0; longest as usize];
    let (mut at, mut state) = (0, 1u64);
    let mut next = || {
        // Numerical Recipes' generator: any will do.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223) & 0xffff_ffff;
        (shortest + (state >> 8) % (longest - shortest + 1)) / BLOCK * BLOCK
    };
    while at < len {
        let piece = next().max(BLOCK).min(len - at);
        fill(&mut data[..piece as usize], at + 1);
        file.write_all_at(&data[..piece as usize], at).with_context(context)?;
        at += piece + next().max(BLOCK);
    }
    file.sync_all().with_context(context)
}

/// Make a file of `len` bytes of words that repeat, in no order.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn text_file(path: &Path, len: u64) -> Result<()> {
    let context = || format!("cannot write {}", path.display());
    let mut state = 7u64;
    let mut next = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let words: Vec<Vec<u8>> =
        (0..2000).map(|_| (0..3 + next(8)).map(|_| b'a' + next(26) as u8).chain([b' ']).collect()).collect();
    let mut text = Vec::with_capacity(len as usize + 16);
    while (text.len() as u64) < len {
        text.extend_from_slice(&words[(next(45) * next(45)) as usize]);
    }
    text.truncate(len as usize);
    let file = File::create(path).with_context(context)?;
    file.write_all_at(&text, 0).with_context(context)?;
    file.sync_all().with_context(context)
}
