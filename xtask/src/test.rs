//! `cargo xtask test`: all tests, the loom models, and how many of each outcome. It decides nothing about single tests.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, bail};

use crate::repo::Repo;
use crate::setup;
use crate::shell;

/// Names the file to which a test that cannot run appends a line `SKIPPED: why`.
const SKIP_LOG: &str = "CAIRN_SKIP_LOG";

/// Sums over many test programs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Tests that ran and passed; libtest also counts here those that skipped themselves.
    pub(crate) passed: u64,
    /// Tests, or whole commands, that failed.
    pub(crate) failed: u64,
    /// Tests that were ignored or skipped themselves.
    pub(crate) skipped: u64,
}

impl Counts {
    /// Adds what a `test result:` line says; other lines add nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some((_, numbers)) = line.split_once("test result: ").and_then(|(_, rest)| rest.split_once(". ")) else {
            return;
        };
        for part in numbers.split("; ") {
            match part.split_once(' ').map(|(number, what)| (number.parse::<u64>(), what)) {
                Some((Ok(number), "passed")) => self.passed += number,
                Some((Ok(number), "failed")) => self.failed += number,
                Some((Ok(number), "ignored")) => self.skipped += number,
                _ => {}
            }
        }
    }

    /// Takes tests that skipped themselves from the passed ones.
    fn move_to_skipped(&mut self, number: u64) {
        self.passed = self.passed.saturating_sub(number);
        self.skipped += number;
    }

    /// The sums of both.
    fn plus(self, other: Counts) -> Counts {
        Counts {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }

    /// The closing line.
    pub(crate) fn line(self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// Runs everything, prints the counts as the last line.
///
/// # Errors
/// A test failed, or something could not be run.
pub(crate) fn run(repo: &Repo, args: &[String]) -> Result<()> {
    let counts = run_counted(repo, args)?;
    println!("{}", counts.line());
    if counts.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// Runs everything: the workspace's tests, then the loom models. `args` go to the test programs, and leave out the models.
///
/// # Errors
/// A needed program is missing, or a command could not be started; failed tests are in the counts.
pub(crate) fn run_counted(repo: &Repo, args: &[String]) -> Result<Counts> {
    setup::run(setup::FOR_TESTS)?;
    let mut workspace = shell::cargo(&repo.root, ["test", "--workspace", "--all-features", "--no-fail-fast"]);
    if !args.is_empty() {
        workspace.arg("--").args(args);
        return count(repo, &mut workspace);
    }
    let tests = count(repo, &mut workspace)?;
    let mut models = count(repo, loom_models(repo).env("CAIRN_LOOM_QUICK", "1"))?;
    if models.passed + models.failed == 0 {
        println!("loom: no model ran");
        models.failed += 1;
    }
    Ok(tests.plus(models))
}

/// Models need optimised code to end in time, and their debug assertions all the same.
pub(crate) fn loom_models(repo: &Repo) -> Command {
    let mut cargo = shell::cargo(&repo.root, ["test", "--release", "-p", "block-io", "--lib", "loom"]);
    cargo.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", repo.target("loom"));
    checked_release(&mut cargo);
    cargo
}

/// The release profile without its slow linking and with debug assertions, for tests that need speed and checks.
pub(crate) fn checked_release(cargo: &mut Command) {
    cargo.env("CARGO_PROFILE_RELEASE_LTO", "off");
    cargo.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
}

/// Runs a test command and sums its result lines; failed tests and reasons for skipping are repeated at its end. A command
/// that fails without a failed test (it did not compile, it aborted) counts as one failure.
///
/// # Errors
/// The command could not be started.
pub(crate) fn count(repo: &Repo, command: &mut Command) -> Result<Counts> {
    let log = SkipLog::new(repo)?;
    let mut counts = Counts::default();
    let mut remarks = Vec::new();
    let status = shell::stream(log.told_to(command), |line| {
        counts.add_line(line);
        if line.starts_with("test ") && line.ends_with("... FAILED") {
            remarks.push(line.to_owned());
        }
    })?;
    if !status.success() && counts.failed == 0 {
        remarks.push(format!("`{}` failed: {status}", shell::describe(command)));
        counts.failed = 1;
    }
    let skipped = log.lines();
    counts.move_to_skipped(skipped.len() as u64);
    remarks.iter().chain(&skipped).for_each(|line| println!("{line}"));
    Ok(counts)
}

/// The file in which tests leave the reason why they did not run.
struct SkipLog(PathBuf);

impl SkipLog {
    fn new(repo: &Repo) -> Result<SkipLog> {
        let path = repo.target("skipped-tests.txt");
        std::fs::create_dir_all(repo.target(""))?;
        std::fs::write(&path, "")?;
        Ok(SkipLog(path))
    }

    fn told_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env(SKIP_LOG, &self.0)
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().filter(|line| line.starts_with("SKIPPED:")).map(str::to_owned).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(lines: &[&str], passed: u64, failed: u64, skipped: u64) {
        let mut counts = Counts::default();
        lines.iter().for_each(|line| counts.add_line(line));
        assert_eq!(counts, Counts { passed, failed, skipped });
    }

    #[test]
    fn result_lines_are_summed_and_others_are_not() {
        check_lines(
            &[
                "running 3 tests",
                "test a ... ok",
                "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
                "test result: FAILED. 2 passed; 5 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s",
                "7 passed; 7 failed",
            ],
            5,
            5,
            1,
        );
    }

    #[test]
    fn the_closing_line_counts_a_skipping_test_as_skipped_only() {
        let mut counts = Counts { passed: 10, failed: 1, skipped: 2 };
        counts.move_to_skipped(3);
        assert_eq!(counts.line(), "7 passed, 1 failed, 5 skipped");
    }

    fn check_command(script: &str, passed: u64, failed: u64, skipped: u64) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let counts = count(&Repo { root }, shell::command("sh", dir.path()).args(["-c", script])).unwrap();
        let expected = Counts { passed, failed, skipped };
        assert_eq!(counts, expected, "{script}");
    }

    #[test]
    fn a_command_that_fails_without_a_result_is_a_failure() {
        check_command("exit 101", 0, 1, 0);
        check_command("echo 'test result: FAILED. 0 passed; 2 failed; 0 ignored'; exit 101", 0, 2, 0);
        check_command("echo 'test result: ok. 4 passed; 0 failed'", 4, 0, 0);
    }

    /// Scenario: of four tests two could not run and said why; something else got into the file too.
    #[test]
    fn tests_that_skip_themselves_are_not_counted_as_passed() {
        let script = "for why in 'no io_uring' 'no mke2fs'; do echo \"SKIPPED: $why\" >>\"$CAIRN_SKIP_LOG\"; done; \
            echo noise >>\"$CAIRN_SKIP_LOG\"; echo 'test result: ok. 4 passed; 0 failed; 1 ignored'";
        check_command(script, 2, 0, 3);
    }
}
