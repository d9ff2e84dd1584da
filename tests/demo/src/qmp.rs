//! A daemon as a child, and conversations with it in QMP, as a management program would have them.
//!
//! The child ends with whoever started it: by `quit`, and if that does not come about, by force.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer, or the end of the daemon, may take.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(2);

/// The process that must not outlive this one. Whoever is told to end ends it first.
#[derive(Clone, Default)]
pub(crate) struct Leash(Arc<Mutex<Option<Child>>>);

impl Leash {
    fn held(&self) -> MutexGuard<'_, Option<Child>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// End the process, if there is one.
    fn kill(held: &mut Option<Child>) {
        if let Some(mut child) = held.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// End the process, because this one is about to end. Whoever starts another one, or asks for this one, waits for that.
    pub(crate) fn cut(&self) {
        let mut held = self.held();
        Self::kill(&mut held);
        std::mem::forget(held);
    }

    fn ended(&self) -> Result<Option<ExitStatus>> {
        self.held().as_mut().context("the daemon has been ended")?.try_wait().context("waiting for the daemon")
    }
}

/// A running daemon, which is killed when this is dropped.
pub(crate) struct Daemon {
    leash: Leash,
    dir: PathBuf,
    pub(crate) id: u32,
}

impl Daemon {
    /// Start `program` in `dir`, where its sockets will be.
    pub(crate) fn start(program: &Path, dir: &Path, args: &[String], leash: &Leash) -> Result<Self> {
        let mut held = leash.held();
        let started = Command::new(program).args(args).current_dir(dir).stdin(Stdio::null()).spawn();
        let child = started.with_context(|| format!("starting {}", program.display()))?;
        let id = child.id();
        *held = Some(child);
        drop(held);
        Ok(Self { leash: leash.clone(), dir: dir.to_owned(), id })
    }

    /// A conversation through the socket called `name`, which the daemon is about to make.
    pub(crate) fn connect(&self, name: &str) -> Result<Client> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.leash.ended()? {
                bail!("the daemon ended before it listened: {status}");
            }
            match UnixStream::connect(self.dir.join(name)) {
                Ok(stream) => return Client::begin(stream),
                Err(error) if begin.elapsed() > PATIENCE => return Err(error).context("the daemon does not listen"),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Wait for the end of a daemon that has been told to end.
    ///
    /// # Errors
    /// It does not, or it says that something went wrong.
    pub(crate) fn ended(self) -> Result<()> {
        let begin = Instant::now();
        loop {
            match self.leash.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("the daemon ended with {status}"),
                None if begin.elapsed() > PATIENCE => bail!("the daemon does not end"),
                None => std::thread::sleep(PAUSE),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        Leash::kill(&mut self.leash.held());
    }
}

/// One conversation.
pub(crate) struct Client {
    to: UnixStream,
    from: BufReader<UnixStream>,
    /// Those that nobody has asked for yet.
    events: Vec<Value>,
}

impl Client {
    fn begin(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        let from = BufReader::new(stream.try_clone()?);
        let mut client = Self { to: stream, from, events: Vec::new() };
        ensure!(client.line()?.get("QMP").is_some(), "the daemon does not greet");
        client.run("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        let len = self.from.read_line(&mut line).context("waiting for the daemon's answer")?;
        ensure!(len > 0, "the daemon has hung up");
        serde_json::from_str(&line).with_context(|| format!("the daemon said {line}"))
    }

    fn answer(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.to.write_all(line.as_bytes()).context("telling the daemon a command")?;
        loop {
            let line = self.line()?;
            if line.get("event").is_none() {
                return Ok(line);
            }
            self.events.push(line);
        }
    }

    /// Have a command carried out. Returns what is answered.
    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut answer = self.answer(command, &arguments)?;
        match answer.get_mut("return") {
            Some(told) => Ok(told.take()),
            None => Err(anyhow!("{command} {arguments}: {}", answer["error"]["desc"])),
        }
    }

    /// Have a command refused. Returns the reason.
    pub(crate) fn refused(&mut self, command: &str, arguments: Value) -> Result<String> {
        let answer = self.answer(command, &arguments)?;
        let why = answer["error"]["desc"].as_str();
        why.map(str::to_owned).with_context(|| format!("{command} {arguments} should have been refused"))
    }

    /// The data of the next event called `name`; those before it are forgotten.
    pub(crate) fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let next = match self.events.is_empty() {
                true => self.line()?,
                false => self.events.remove(0),
            };
            if next["event"] == name {
                return Ok(next["data"].clone());
            }
        }
    }

    /// Let the guest of `device` do `command`, one of those of cairn-io. Returns what that prints.
    pub(crate) fn guest(&mut self, device: &str, command: &str) -> Result<String> {
        let line = format!("qemu-io -d {device} \"{command}\"");
        let said = self.run("human-monitor-command", json!({ "command-line": line }))?;
        Ok(said.as_str().context("lines are answered with text")?.trim_end().to_owned())
    }
}
