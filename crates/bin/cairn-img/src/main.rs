//! Disk image utility with the command line of qemu-img. This file finds the command; each command is a module of its
//! own.

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "a program without I/O threads of its own: it may block on files and threads"
)]

mod args;
mod cli;

mod amend;
mod bench;
mod bitmap;
mod chain;
mod check;
mod commit;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod map;
mod measure;
mod rebase;
mod resize;
mod snapshot;

mod image;
mod layer;
mod number;
mod progress;
mod trace;

use cli::Failure;
use layer::BlockLayer;
use std::ffi::OsString;
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
            ExitCode::from(failure.status())
        }
    }
}

fn run() -> Result<(), Failure> {
    let Some(line) = cli::parse::<cli::CommandLine>(None, std::env::args_os())? else { return Ok(()) };
    trace::start(&line.trace)?;
    let Some(command) = line.command.first() else {
        return Err(Failure::usage(None, "Not enough arguments"));
    };
    let name = command.to_string_lossy().into_owned();
    let run: fn(&str, Vec<OsString>) -> Result<(), Failure> = match name.as_str() {
        "amend" => run_command::<amend::Args>,
        "bench" => run_command::<bench::Args>,
        "bitmap" => run_command::<bitmap::Args>,
        "check" => run_command::<check::Args>,
        "commit" => run_command::<commit::Args>,
        "compare" => run_command::<compare::Args>,
        "convert" => run_command::<convert::Args>,
        "create" => run_command::<create::Args>,
        "dd" => run_command::<dd::Args>,
        "info" => run_command::<info::Args>,
        "map" => run_command::<map::Args>,
        "measure" => run_command::<measure::Args>,
        "rebase" => run_command::<rebase::Args>,
        "resize" => run_command::<resize::Args>,
        "snapshot" => run_command::<snapshot::Args>,
        _ => return Err(unknown(&name)),
    };
    run(&name, line.command)
}

/// Parse the words of the command called `name`, and carry it out.
fn run_command<T: cli::Command>(name: &str, words: Vec<OsString>) -> Result<(), Failure> {
    let Some(command) = cli::parse::<T>(Some(name), T::prepare(words))? else { return Ok(()) };
    let layer = BlockLayer::with_objects(command.objects());
    let layer = layer.map_err(|failure| failure.with_status(T::REFUSED_OBJECT))?;
    layer.map_or(Ok(()), |layer| command.run(layer))
}

fn unknown(name: &str) -> Failure {
    Failure::usage(None, format!("Command not found: {name}"))
}

/// A line for the user. Output that cannot be written is a failure: whoever reads it would miss something.
fn say(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// As [`say`], without an end of line.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| Failure::message(format!("Could not write to standard output: {error}")))
}

/// A line for the user's eyes that changes nothing.
fn warn(text: &str) {
    // As for errors.
    let _ = writeln!(std::io::stderr().lock(), "{PROGRAM}: warning: {text}");
}
