//! Disk image utility with the command line of qemu-img. This file finds the command; each command is a module of its
//! own.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a program without I/O threads of its own: it may block on files and threads"
)]

mod cli;

mod bench;

mod image;
mod number;
mod trace;

use cli::Failure;
use std::io::Write;
use std::process::ExitCode;

/// The name in front of every message.
const PROGRAM: &str = "cairn-img";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to be told when stderr is gone.
            let _ = write!(std::io::stderr().lock(), "{failure}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some(line) = cli::parse::<cli::CommandLine>(None, std::env::args_os())? else { return Ok(()) };
    trace::start(&line.trace)?;
    let Some(command) = line.command.first() else {
        return Err(Failure::usage(None, "Not enough arguments"));
    };
    let name = command.to_string_lossy();
    if name == "bench" {
        let args = cli::parse::<bench::Args>(Some("bench"), line.command)?;
        return args.map_or(Ok(()), bench::run);
    }
    if cli::NOT_BUILT.contains(&&*name) {
        return Err(Failure::message(format!("command '{name}' is not built yet")));
    }
    Err(Failure::usage(None, format!("Command not found: {name}")))
}

/// A line for the user. Output that cannot be written is a failure: whoever reads it would miss something.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{text}").and_then(|()| out.flush());
    written.map_err(|error| Failure::message(format!("Could not write to standard output: {error}")))
}

/// A line for the user's eyes that changes nothing.
fn warn(text: &str) {
    // As for errors.
    let _ = writeln!(std::io::stderr().lock(), "{PROGRAM}: warning: {text}");
}
