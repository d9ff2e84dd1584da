//! Developer tasks, one subcommand each: this file parses the command line and holds no task itself.
#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_methods,
    reason = "xtask is a program without I/O threads: it may block on files and processes"
)]

mod shell;

mod repo;

mod report;

mod check;

mod test;

mod long;

mod crash;

mod fuzz;

mod mutants;

mod programs;

mod setup;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::repo::Repo;

/// Cairn's developer tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Format, lints, crate tiers and edges, unsafe allowance, file headers, api-map, docs, consumers, repository hygiene.
    Check(check::Args),
    /// Print docs/api-map.tsv with what rustdoc's aliases imply filled in; other rows already written are kept.
    ApiMap {
        /// Rewrite the file instead.
        #[arg(long)]
        write: bool,
    },
    /// All tests and the loom models, with a count of what was skipped.
    Test {
        /// Passed on to the test binaries.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// `test`, then AddressSanitizer, the long stress run, 100,000 images after power cuts, the fuzz targets and the mutants.
    Long,
    /// Power cuts under random work on qcow2 images, and a look at what they leave.
    Crash(crash::Args),
    /// Fuzz targets, all or some, for a time or for a number of executions.
    Fuzz(fuzz::Args),
    /// Criterion benches, all or one driver's.
    Bench {
        /// The bench target, which is the driver's name.
        driver: Option<String>,
        /// Passed on to criterion.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// The comparison with fio and qemu-img, all cases or one.
    Compare {
        /// The case; without one, all of them.
        case: Option<String>,
        /// Passed on to cairn-compare.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Disk images through cairn-img, beside qemu-img; one copied while it is written and its graph is changed; a daemon whose disks and media are changed
    /// while they are used.
    Demo {
        /// Passed on to cairn-demo: the acts to play (tools, copy, daemon).
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Install the programs that tests, demo and comparison call.
    Setup,
    /// Only the mutants step of `long`.
    Mutants {
        /// Patches whose file name contains this; without it, all of them.
        filter: Option<String>,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<()> {
    let repo = Repo::locate()?;
    match task {
        Task::Check(args) => check::run(&repo, &args),
        Task::ApiMap { write } => check::draft_api_map(&repo, write),
        Task::Test { args } => test::run(&repo, &args),
        Task::Long => long::run(&repo),
        Task::Crash(args) => crash::run(&repo, &args),
        Task::Fuzz(args) => fuzz::run(&repo, &args),
        Task::Bench { driver, args } => programs::bench(&repo, driver.as_deref(), &args),
        Task::Compare { case, args } => programs::compare(&repo, case.as_deref(), &args),
        Task::Demo { args } => programs::demo(&repo, &args),
        Task::Setup => setup::run(setup::ALL),
        Task::Mutants { filter } => mutants::run(&repo, filter.as_deref()),
    }
}
