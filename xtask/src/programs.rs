//! `bench`, `compare` and `demo`: one cargo command each, after what it needs is there. The programs are packages of their own.

use anyhow::{Context, Result};

use crate::repo::Repo;
use crate::setup;
use crate::shell;

/// Criterion benches, all or one driver's.
///
/// # Errors
/// The benches do not compile or fail.
pub(crate) fn bench(repo: &Repo, driver: Option<&str>, args: &[String]) -> Result<()> {
    let mut cargo = shell::cargo(&repo.root, ["bench", "-p", "cairn-benches"]);
    if let Some(driver) = driver {
        cargo.args(["--bench", driver]);
    }
    if !args.is_empty() {
        cargo.arg("--").args(args);
    }
    shell::run(&mut cargo)
}

/// The comparison with fio and qemu-img. The tool that is compared is built beside the program that compares.
///
/// # Errors
/// fio or qemu-img are missing, or the comparison fails.
pub(crate) fn compare(repo: &Repo, case: Option<&str>, args: &[String]) -> Result<()> {
    setup::run(setup::FOR_COMPARE)?;
    shell::run(&mut shell::cargo(
        &repo.root,
        ["build", "--release", "-p", "cairn-img", "-p", "cairn-storage-daemon", "-p", "cairn-compare"],
    ))?;
    let mut cargo = shell::cargo(&repo.root, ["run", "--release", "-p", "cairn-compare", "--"]);
    shell::run(cargo.args(case).args(args))
}

/// Disk images through the tools, the block layer and the daemon. The programs are built beside the program that shows them.
///
/// # Errors
/// mke2fs is missing, or the demo fails.
pub(crate) fn demo(repo: &Repo, args: &[String]) -> Result<()> {
    setup::run(setup::FOR_DEMO)?;
    let programs = ["-p", "cairn-img", "-p", "cairn-io", "-p", "cairn-storage-daemon", "-p", "cairn-demo"];
    shell::run(shell::cargo(&repo.root, ["build", "--release"]).args(programs))?;
    // Where cargo put us it puts others; `cargo run` would build the half of it again, with fewer features.
    let ours = std::env::current_exe()?;
    let target = ours.ancestors().nth(2).context("xtask lies in a profile's folder")?;
    shell::run(shell::command(target.join("release/cairn-demo"), &repo.root).args(args))
}
