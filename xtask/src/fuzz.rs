//! `cargo xtask fuzz`: the fuzz targets, for a time or for a number of executions. What a target does is its own business, and how it is built that of
//! `fuzz/run.sh`.

use std::process::Command;

use anyhow::Result;
use clap::ValueEnum;

use crate::repo::Repo;
use crate::report::Outcome;
use crate::shell;

/// What `fuzz/run.sh` builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Target {
    IoCommand,
    LuksHeader,
    Luks2Header,
    Options,
    Qcow2,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Self::IoCommand => "io_command",
            Self::LuksHeader => "luks_header",
            Self::Luks2Header => "luks2_header",
            Self::Options => "options",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Arguments of `fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only these targets; without one, all of them.
    #[arg(value_enum)]
    targets: Vec<Target>,
    /// So many executions of each.
    #[arg(long)]
    runs: Option<u64>,
    /// So many seconds for each; without either, 60.
    #[arg(long, conflicts_with = "runs")]
    seconds: Option<u64>,
}

impl Args {
    /// So many seconds for each target.
    pub(crate) fn seconds(seconds: u64) -> Args {
        Args { targets: Vec::new(), runs: None, seconds: Some(seconds) }
    }

    fn targets(&self) -> &[Target] {
        if self.targets.is_empty() { Target::value_variants() } else { &self.targets }
    }
}

/// Runs the targets, one after the other.
///
/// # Errors
/// One of them found something, or could not be built.
pub(crate) fn run(repo: &Repo, args: &Args) -> Result<()> {
    outcome(repo, args).map(drop)
}

/// As [`run`], as a step among others.
///
/// # Errors
/// As [`run`].
pub(crate) fn outcome(repo: &Repo, args: &Args) -> Result<Outcome> {
    for target in args.targets() {
        shell::run(&mut command(repo, args, *target))?;
    }
    let names: Vec<_> = args.targets().iter().map(|target| target.name()).collect();
    Ok(Outcome::Passed(format!("nothing found in {}", names.join(", "))))
}

fn command(repo: &Repo, args: &Args, target: Target) -> Command {
    let how_long = match args.runs {
        Some(runs) => format!("-runs={runs}"),
        None => format!("-max_total_time={}", args.seconds.unwrap_or(60)),
    };
    let mut run = shell::command(repo.root.join("fuzz/run.sh"), &repo.root);
    // An execution that takes so many seconds, or so many MiB of memory, is a finding.
    run.args([target.name(), &how_long, "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]);
    // It builds where the script expects it.
    run.env_remove("CARGO_TARGET_DIR");
    run
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn a_target_is_run_for_a_time_or_for_a_number_of_executions() {
        let repo = Repo { root: PathBuf::from("/nowhere") };
        let line = |args: &Args| shell::describe(&command(&repo, args, args.targets()[0]));
        assert!(line(&Args::seconds(30)).contains("run.sh io_command -max_total_time=30"));
        let args = Args { targets: vec![Target::Qcow2], runs: Some(1_000_000), seconds: None };
        assert!(line(&args).contains("run.sh qcow2 -runs=1000000"), "{}", line(&args));
    }
}
