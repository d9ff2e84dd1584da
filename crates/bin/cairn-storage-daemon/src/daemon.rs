//! Going into the background, and the file that says which process it is.
//!
//! A process that has threads cannot be split, so `--daemonize` starts this program once more, with the same command line, and waits until that one says on its
//! standard output that it is ready.

use crate::cli::{CommandLine, IN_BACKGROUND, program};
use block_common::Errno;
use rustix::fs::{FlockOperation, Mode, OFlags};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Who waits for this process to be ready.
#[must_use]
pub(crate) struct Ready {
    is_waited_for: bool,
}

impl Ready {
    /// `None` when another process has taken over, and is ready.
    ///
    /// # Errors
    /// The other process could not be started; nothing is in the message when it has told by itself why it ended.
    pub(crate) fn of_this_process(line: &CommandLine) -> Result<Option<Self>, String> {
        if line.in_background {
            // A session of its own: it has no terminal. That fails for a process that leads others, which this is none.
            let _ = rustix::process::setsid();
            return Ok(Some(Self { is_waited_for: true }));
        }
        if !line.daemonize {
            return Ok(Some(Self { is_waited_for: false }));
        }
        let mut other = Command::new("/proc/self/exe");
        other.arg0(program()).arg(format!("--{IN_BACKGROUND}")).args(std::env::args_os().skip(1));
        let started = other.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut other = started.map_err(|error| format!("could not start a process in the background: {error}"))?;
        let mut said = [0];
        let is_ready = other.stdout.take().is_some_and(|mut out| out.read_exact(&mut said).is_ok());
        if is_ready {
            return Ok(None);
        }
        let _ = other.wait();
        Err(String::new())
    }

    /// Everything is set up.
    pub(crate) fn say(self) {
        if !self.is_waited_for {
            return;
        }
        let _ = std::io::stdout().write_all(b"\n").and_then(|()| std::io::stdout().flush());
        // No folder is kept busy, and nobody's terminal is written to.
        let _ = rustix::process::chdir("/");
        if let Ok(null) = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            let _ = rustix::stdio::dup2_stdin(&null);
            let _ = rustix::stdio::dup2_stdout(&null);
            let _ = rustix::stdio::dup2_stderr(&null);
        }
    }
}

/// A file with this process's number, which is locked, and goes with it.
pub(crate) struct PidFile {
    path: PathBuf,
    _locked: File,
}

impl PidFile {
    /// `None` without a path.
    pub(crate) fn create(path: Option<&Path>) -> Result<Option<Self>, String> {
        let Some(path) = path else { return Ok(None) };
        let refused = |what: &str, error: std::io::Error| {
            let error = Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO.raw()));
            format!("cannot create PID file: {what} '{}': {error}", path.display())
        };
        let open = File::options().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
        let mut file = open.map_err(|error| refused("Could not create", error))?;
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| refused("Could not lock", error.into()))?;
        let number = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all(number.as_bytes()))
            .map_err(|error| refused("Could not write", error))?;
        // The process may be elsewhere by the time that it ends.
        let path = std::path::absolute(path).map_err(|error| refused("Could not find", error))?;
        Ok(Some(Self { path, _locked: file }))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody else may have removed it.
        let _ = std::fs::remove_file(&self.path);
    }
}
