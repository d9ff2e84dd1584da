//! `cargo xtask crash`: power cuts under random work, as many as one likes. What they do and what is looked at is a test's business; this passes on how
//! often.

use std::process::Command;

use anyhow::{Result, bail};

use crate::repo::Repo;
use crate::report::Outcome;
use crate::shell;
use crate::test;

/// Arguments of `crash`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// The first round's seed, decimal or hexadecimal after `0x`; without it, a new one. The next round has the next number.
    #[arg(long)]
    seed: Option<String>,
    /// So many rounds of random work, each of which leaves some dozens of images.
    #[arg(long, conflicts_with = "images")]
    rounds: Option<u64>,
    /// Rounds until so many images were looked at. Without either, 1000.
    #[arg(long)]
    images: Option<u64>,
}

impl Args {
    /// So many images, from a new seed.
    pub(crate) fn images(images: u64) -> Args {
        Args { images: Some(images), ..Args::default() }
    }
}

/// Runs the test.
///
/// # Errors
/// An image was wrong; the seed of its round is in the output.
pub(crate) fn run(repo: &Repo, args: &Args) -> Result<()> {
    match outcome(repo, args)? {
        Outcome::Failed(why) => bail!("{why}"),
        Outcome::Passed(_) | Outcome::Skipped(_) => Ok(()),
    }
}

/// As [`run`], as a step among others.
///
/// # Errors
/// The test could not be started.
pub(crate) fn outcome(repo: &Repo, args: &Args) -> Result<Outcome> {
    let mut images = String::new();
    let status = shell::stream(&mut command(repo, args), |line| {
        if line.contains(" images after power cuts in ") {
            images = line.to_owned();
        }
    })?;
    match (status.success(), images.is_empty()) {
        (true, false) => Ok(Outcome::Passed(images)),
        (true, true) => Ok(Outcome::Failed("no test ran".into())),
        (false, _) => Ok(Outcome::Failed(format!("an image was wrong, or the test could not run: {status}"))),
    }
}

fn command(repo: &Repo, args: &Args) -> Command {
    let test = ["test", "--release", "-p", "block-qcow2", "--test", "image", "--"];
    let mut cargo = shell::cargo(&repo.root, test);
    cargo.args(["--exact", "crash::qcow2_1_flushed_data_survives_any_power_cut", "--nocapture"]);
    for (name, number) in [("CAIRN_CRASH_ROUNDS", args.rounds), ("CAIRN_CRASH_IMAGES", args.images)] {
        match number {
            Some(number) => cargo.env(name, number.to_string()),
            None => cargo.env_remove(name),
        };
    }
    cargo.envs(args.seed.as_ref().map(|seed| ("CAIRN_SEED", seed)));
    test::checked_release(&mut cargo);
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn what_was_asked_for_is_passed_on() {
        let repo = Repo { root: PathBuf::from("/nowhere") };
        let args = Args { seed: Some("0x5".into()), rounds: Some(7), images: None };
        let line = shell::describe(&command(&repo, &args));
        assert!(line.contains("CAIRN_SEED=0x5") && line.contains("CAIRN_CRASH_ROUNDS=7"), "{line}");
        assert!(!line.contains("CAIRN_CRASH_IMAGES"), "{line}");
        assert!(shell::describe(&command(&repo, &Args::images(9))).contains("CAIRN_CRASH_IMAGES=9"));
    }
}
