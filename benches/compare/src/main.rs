//! Compares this block layer with its peers: fio and qemu-img bench. This file is the command line.
//!
//! Everything that is compared runs alternately, in one go, at least eleven times; what counts is the median of the
//! ratios within a round, beside the same ratio of a peer against itself. `main` fails if a bar is missed.

#![forbid(unsafe_code)]
#![allow(clippy::disallowed_methods, reason = "a program that measures others: it may block on files and processes")]

mod cases;

mod rounds;
mod stats;

mod inside;
mod life;
mod programs;
mod whole;

mod report;

use anyhow::{Context, Result, bail};
use cases::{CASES, Case, Place};
use clap::Parser;
use programs::{PEERS, Peer, Tools};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// The fewest rounds that a median is taken of.
const ROUNDS_MIN: usize = 11;

/// Compare with fio and qemu-img.
#[derive(Debug, Parser)]
#[command(name = "cairn-compare")]
struct Args {
    /// Cases to run, or the beginnings of their names; all of them if none is named
    cases: Vec<String>,
    /// Rounds in each case
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// How long one run of a program lasts at least, in seconds
    #[arg(long, default_value_t = 0.4)]
    seconds: f64,
    /// MiB in the files that are read
    #[arg(long, default_value_t = 1024)]
    file_mib: u64,
    /// Print the results as JSON on standard output, and everything else on standard error
    #[arg(long)]
    json: bool,
    /// Name the cases and leave
    #[arg(long)]
    list: bool,
    /// The cairn-img to measure; without it, the one beside this program
    #[arg(long)]
    cairn_img: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cairn-compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether every bar was met.
fn run(args: &Args) -> Result<bool> {
    if args.list {
        CASES.iter().for_each(|case| println!("{:20} {}", case.name, case.what));
        return Ok(true);
    }
    let cases = select(&args.cases)?;
    if args.rounds < ROUNDS_MIN {
        bail!("{} rounds are too few for a median: at least {ROUNDS_MIN}", args.rounds);
    }
    let target = Duration::try_from_secs_f64(args.seconds).context("--seconds")?;
    let tools = Tools::find(args.cairn_img.clone())?;
    tools.check(&cases)?;
    if cfg!(debug_assertions) {
        eprintln!("This is not a release build: what it measures in itself says nothing.");
    }
    let peers = PEERS.into_iter().filter(|peer| cases.iter().any(|case| case.peers.contains(peer)));
    let versions: Vec<String> = peers.map(Peer::version).collect();
    versions.iter().for_each(|version| eprintln!("peer: {version}"));
    let place = Place::new(tools, args.rounds, target, args.file_mib << 20)?;
    let mut rows = Vec::new();
    for case in cases {
        eprintln!("== {}: {}", case.name, case.what);
        let new = case.run(&place).with_context(|| format!("case {}", case.name))?;
        new.iter().for_each(|row| eprintln!("   {}", report::line(row)));
        rows.extend(new);
    }
    place.remove()?;
    if args.json {
        println!("{}", report::json(&rows, &versions));
    } else {
        print!("{}", report::table(&rows));
    }
    Ok(rows.iter().all(|row| row.passed))
}

/// The cases whose names begin with one of `wanted`; all of them if that is empty.
fn select(wanted: &[String]) -> Result<Vec<&'static Case>> {
    let mut found = Vec::new();
    for case in &CASES {
        if wanted.is_empty() || wanted.iter().any(|name| case.name.starts_with(name.as_str())) {
            found.push(case);
        }
    }
    for name in wanted {
        if !CASES.iter().any(|case| case.name.starts_with(name.as_str())) {
            bail!("there is no case '{name}'; --list names them");
        }
    }
    Ok(found)
}
