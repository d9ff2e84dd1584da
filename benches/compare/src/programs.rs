//! The programs: cairn-img and qemu-img, whose own time counts, and fio. Each is started anew for every run; that it
//! takes time to start does not count for any of them.

use crate::cases::Case;
use crate::rounds::Contender;
use crate::whole::warm_memory;
use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Where the programs are.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    pub(crate) cairn_img: PathBuf,
}

/// A peer, and Debian's package with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) program: &'static str,
    package: &'static str,
    /// What makes it tell its version.
    version: &'static str,
}

pub(crate) const QEMU_IMG: Peer = Peer { program: "qemu-img", package: "qemu-utils", version: "--version" };
pub(crate) const QEMU_STORAGE_DAEMON: Peer =
    Peer { program: "qemu-storage-daemon", package: "qemu-utils", version: "--version" };
pub(crate) const FIO: Peer = Peer { program: "fio", package: "fio", version: "--version" };
pub(crate) const CP: Peer = Peer { program: "cp", package: "coreutils", version: "--version" };
pub(crate) const OPENSSL: Peer = Peer { program: "openssl", package: "openssl", version: "version" };
/// All of them.
pub(crate) const PEERS: [Peer; 5] = [QEMU_IMG, QEMU_STORAGE_DAEMON, FIO, CP, OPENSSL];

impl Peer {
    fn is_there(self) -> bool {
        let version = Command::new(self.program).arg(self.version).stdout(Stdio::null()).stderr(Stdio::null()).status();
        version.is_ok_and(|status| status.success())
    }

    /// What it calls itself, with its version.
    pub(crate) fn version(self) -> String {
        let output = Command::new(self.program).arg(self.version).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or(self.program).to_owned()
    }
}

impl Tools {
    /// The tools of this build, beside this program unless `cairn_img` says otherwise.
    ///
    /// # Errors
    /// It was not built.
    pub(crate) fn find(cairn_img: Option<PathBuf>) -> Result<Self> {
        let beside = || std::env::current_exe().map(|exe| exe.with_file_name("cairn-img"));
        let cairn_img = cairn_img.map_or_else(beside, Ok)?;
        if !cairn_img.is_file() {
            bail!("{} is missing: `cargo build --release -p cairn-img` makes it", cairn_img.display());
        }
        Ok(Self { cairn_img })
    }

    /// The daemon of the same build.
    ///
    /// # Errors
    /// It was not built.
    pub(crate) fn daemon(&self) -> Result<PathBuf> {
        let daemon = self.cairn_img.with_file_name("cairn-storage-daemon");
        if !daemon.is_file() {
            bail!("{} is missing: `cargo build --release -p cairn-storage-daemon` makes it", daemon.display());
        }
        Ok(daemon)
    }

    /// See whether everything that `cases` need is there.
    ///
    /// # Errors
    /// Names what is not.
    pub(crate) fn check(&self, cases: &[&Case]) -> Result<()> {
        let mut missing = Vec::new();
        for peer in PEERS {
            if cases.iter().any(|case| case.peers.contains(&peer)) && !peer.is_there() {
                missing.push(format!("{} (package {})", peer.program, peer.package));
            }
        }
        if cases.iter().any(|case| case.ring) && !block_io::ring_available() {
            missing.push("io_uring (the host's kernel refuses it)".to_owned());
        }
        if !missing.is_empty() {
            bail!("nothing to compare with: missing {}", missing.join(", "));
        }
        Ok(())
    }
}

/// How often a program that was killed by a signal is started again.
const CRASHES_MAX: usize = 5;

/// What a command prints.
///
/// # Errors
/// It cannot be started, or fails.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let line = describe(command);
    command.stdin(Stdio::null());
    let mut output = command.output().with_context(|| format!("cannot start `{line}`"))?;
    for _ in 0..CRASHES_MAX {
        if output.status.code().is_some() {
            break;
        }
        eprintln!("   `{line}` crashed ({}), once more", output.status);
        output = command.output()?;
    }
    if !output.status.success() {
        bail!("`{line}` failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{line}`"))
}

fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// `bench` of cairn-img or qemu-img.
#[derive(Debug)]
pub(crate) struct Bench {
    name: String,
    program: PathBuf,
    args: Vec<OsString>,
}

impl Bench {
    /// Requests of `size` bytes to `image`, in order, `depth` at once: reads, unless `args` say otherwise.
    pub(crate) fn new(name: &str, program: &Path, (size, depth): (usize, usize), args: &[&str], image: &OsStr) -> Self {
        let (size, depth) = (size.to_string(), depth.to_string());
        let mut all: Vec<OsString> = ["bench", "-s", &size, "-d", &depth].iter().map(OsString::from).collect();
        all.extend(args.iter().map(OsString::from));
        all.push(image.into());
        Self { name: name.to_owned(), program: program.to_owned(), args: all }
    }
}

impl Contender for Bench {
    fn name(&self) -> &str {
        &self.name
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        // qemu-img 10.0 calls itself while requests complete at once, and runs out of 8 MiB of stack now and then.
        let mut command = Command::new("sh");
        command.args(["-c", r#"ulimit -s unlimited 2>/dev/null; exec "$0" "$@""#]).arg(&self.program);
        let text = output(command.args(&self.args).arg("-c").arg(count.to_string()))?;
        run_time(&text).with_context(|| format!("`{}` does not say how long it took", describe(&command)))
    }
}

/// How fast openssl encrypts pieces of memory, whatever the number of pieces: it goes by the clock.
#[derive(Debug)]
pub(crate) struct OpensslSpeed {
    algorithm: &'static str,
    piece: usize,
}

impl OpensslSpeed {
    /// With that algorithm, in pieces of so many bytes.
    pub(crate) fn new(algorithm: &'static str, piece: usize) -> Self {
        Self { algorithm, piece }
    }
}

impl Contender for OpensslSpeed {
    fn name(&self) -> &str {
        "openssl speed"
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        let mut command = Command::new(OPENSSL.program);
        command.args(["speed", "-mr", "-seconds", "1", "-evp", self.algorithm, "-bytes", &self.piece.to_string()]);
        let text = output(&mut command)?;
        // +F:number:name:bytes per second
        let rate = text.lines().find_map(|line| line.strip_prefix("+F:")?.rsplit(':').next()?.parse::<f64>().ok());
        let rate = rate.with_context(|| format!("`{}` does not say how fast it was", describe(&command)))?;
        Ok(Duration::from_secs_f64(count as f64 * self.piece as f64 / rate))
    }
}

/// A bench on an image that is made anew for each run, which counts for nobody.
#[derive(Debug)]
pub(crate) struct Fresh {
    bench: Bench,
    create: Vec<OsString>,
    image: PathBuf,
}

impl Fresh {
    /// `bench` on `image`, which qemu-img makes with the words `create`.
    pub(crate) fn new(bench: Bench, create: Vec<OsString>, image: &Path) -> Self {
        Self { bench, create, image: image.to_owned() }
    }
}

impl Contender for Fresh {
    fn name(&self) -> &str {
        self.bench.name()
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        output(Command::new(QEMU_IMG.program).args(&self.create))?;
        warm_memory();
        let took = self.bench.run(count);
        std::fs::remove_file(&self.image).with_context(|| format!("cannot remove {}", self.image.display()))?;
        took
    }
}

/// "Run completed in 0.123 seconds."
fn run_time(text: &str) -> Option<Duration> {
    let line = text.lines().find_map(|line| line.strip_prefix("Run completed in "))?;
    let seconds: f64 = line.strip_suffix(" seconds.")?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// fio with io_uring.
#[derive(Debug)]
pub(crate) struct Fio {
    file: PathBuf,
    size: u64,
    depth: usize,
    direct: bool,
    /// Bytes that are written at once, into a new file.
    writes: Option<usize>,
}

impl Fio {
    /// Writes of `size` bytes into a new `file`, in order, `depth` at once, through the page cache.
    pub(crate) fn writes(file: &Path, size: usize, depth: usize) -> Self {
        Self { file: file.to_owned(), size: 0, depth, direct: false, writes: Some(size) }
    }

    /// 4 KiB reads of `file`, which has `size` bytes, in order, `depth` at once.
    pub(crate) fn new(file: &Path, size: u64, depth: usize, direct: bool) -> Self {
        Self { file: file.to_owned(), size, depth, direct, writes: None }
    }
}

impl Contender for Fio {
    fn name(&self) -> &str {
        "fio"
    }

    fn run(&mut self, count: u64) -> Result<Duration> {
        let (block, rw) = self.writes.map_or((4096, "read"), |size| (size, "write"));
        let bytes = count * block as u64;
        if self.writes.is_some() {
            warm_memory();
        }
        // gtod_reduce saves fio the clock that it would look at for each request, and thread the memory that it would
        // share.
        let text = output(Command::new("fio").args([
            "--name=it".into(),
            "--ioengine=io_uring".into(),
            format!("--rw={rw}"),
            format!("--bs={block}"),
            "--invalidate=0".into(),
            "--gtod_reduce=1".into(),
            "--thread".into(),
            format!("--allow_file_create={}", u8::from(self.writes.is_some())),
            "--fallocate=none".into(),
            "--output-format=json".into(),
            format!("--direct={}", u8::from(self.direct)),
            format!("--iodepth={}", self.depth),
            format!("--size={}", if self.writes.is_some() { bytes } else { self.size }),
            format!("--io_size={bytes}"),
            format!("--filename={}", self.file.display()),
        ]))?;
        if self.writes.is_some() {
            std::fs::remove_file(&self.file).with_context(|| format!("cannot remove {}", self.file.display()))?;
        }
        fio_time(&text, rw, count).context("fio's report is not understood")
    }
}

/// The time that `count` requests would have taken, from the requests that fio says it made.
fn fio_time(text: &str, rw: &str, count: u64) -> Option<Duration> {
    // Warnings may stand in front.
    let json: serde_json::Value = serde_json::from_str(text.get(text.find('{')?..)?).ok()?;
    let part = json.get("jobs")?.get(0)?.get(rw)?;
    let (milliseconds, requests) = (part.get("runtime")?.as_f64()?, part.get("total_ios")?.as_f64()?);
    if requests <= 0.0 {
        return None;
    }
    Duration::try_from_secs_f64(milliseconds / 1000.0 / requests * count as f64).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_from_what_the_programs_print() {
        let text = "Sending 5 read requests\nRun completed in 0.250 seconds.\n";
        assert_eq!(run_time(text), Some(Duration::from_millis(250)));
        assert_eq!(run_time("Run completed in x seconds.\n"), None);
        let json = r#"note: both iodepth >= 1 {"jobs":[{"read":{"runtime":500,"total_ios":1000}}]}"#;
        assert_eq!(fio_time(json, "read", 2000), Some(Duration::from_secs(1)));
        assert_eq!(fio_time(r#"{"jobs":[{"read":{"runtime":0,"total_ios":0}}]}"#, "read", 1), None);
    }
}
