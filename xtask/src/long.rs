//! `cargo xtask long`: what takes longer than CI has, and a table of it for a note. Each step is defined elsewhere or is one
//! command.

use anyhow::Result;

use crate::crash;
use crate::fuzz;
use crate::mutants;
use crate::repo::Repo;
use crate::report::{Outcome, Report};
use crate::shell;
use crate::test::{self, Counts};

/// Crates with `unsafe` in them.
const UNSAFE_CRATES: [&str; 5] = ["block-io", "block-common", "block-crypt", "block-file-posix", "block-testkit"];

/// What the sanitizer builds for; naming it keeps build scripts and macros uninstrumented.
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Variables through which the stable toolchain that started us would reach into the nightly one.
const TOOLCHAIN_VARIABLES: [&str; 5] = ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "LD_LIBRARY_PATH", "RUSTC_BOOTSTRAP"];

/// Runs every step, whatever becomes of the others, and prints the table.
///
/// # Errors
/// Names the steps that failed.
pub(crate) fn run(repo: &Repo) -> Result<()> {
    let mut report = Report::default();
    report.step("test", || test::run_counted(repo, &[]).map(counted));
    report.step("loom models, whole", || test::count(repo, &mut test::loom_models(repo)).map(counted));
    report.step("address sanitizer", || address_sanitizer(repo));
    report.step("stress, 120 s", || stress(repo));
    report.step("crash, 100,000 images", || crash::outcome(repo, &crash::Args::images(100_000)));
    report.step("fuzz, 60 s a target", || fuzz::outcome(repo, &fuzz::Args::seconds(60)));
    report.step("mutants", || mutants::outcome(repo, None));
    println!("\n{}", report.table());
    report.result()
}

fn counted(counts: Counts) -> Outcome {
    match counts {
        Counts { failed: 0, passed: 0, .. } => Outcome::Failed("no test ran".into()),
        Counts { failed: 0, .. } => Outcome::Passed(counts.line()),
        _ => Outcome::Failed(counts.line()),
    }
}

fn address_sanitizer(repo: &Repo) -> Result<Outcome> {
    let listing = shell::capture(shell::command("rustup", &repo.root).args(["toolchain", "list"]));
    let Some(nightly) = listing.as_deref().ok().and_then(nightly_toolchain) else {
        return Ok(Outcome::Skipped("no nightly toolchain is installed".into()));
    };
    let mut rustup = shell::command("rustup", &repo.root);
    // Doc tests would need the sanitizer a second time, for rustdoc, and hold no unsafe code.
    rustup.args(["run", nightly, "cargo", "test", "--release", "--no-fail-fast", "--tests", "--target", TRIPLE]);
    for name in UNSAFE_CRATES {
        rustup.args(["-p", name]);
    }
    for name in TOOLCHAIN_VARIABLES {
        rustup.env_remove(name);
    }
    // A nightly warns of more than the pinned compiler, which is the one that is asked.
    rustup.env("RUSTFLAGS", "-Zsanitizer=address --cap-lints=warn").env("CARGO_TARGET_DIR", repo.target("asan"));
    test::checked_release(&mut rustup);
    test::count(repo, &mut rustup).map(counted)
}

fn nightly_toolchain(listing: &str) -> Option<&str> {
    listing.lines().filter_map(|line| line.split_whitespace().next()).find(|name| name.starts_with("nightly"))
}

fn stress(repo: &Repo) -> Result<Outcome> {
    // Test drivers under the graph, and real images under drives.
    let args = ["test", "--release", "-p", "cairn-tests", "-p", "block-backend"];
    let mut cargo = shell::cargo(&repo.root, args);
    cargo.args(["--test", "stress", "--test", "random", "--", "--nocapture"]);
    test::count(repo, cargo.env("CAIRN_STRESS_SECONDS", "120")).map(counted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nightly_is_found_by_its_name() {
        let listing = "stable-x86_64-unknown-linux-gnu (default)\nnightly-x86_64-unknown-linux-gnu\n1.95.0 (active)\n";
        assert_eq!(nightly_toolchain(listing), Some("nightly-x86_64-unknown-linux-gnu"));
        assert_eq!(nightly_toolchain("stable\n"), None);
    }

    #[test]
    fn a_run_without_tests_is_a_failure() {
        assert_eq!(counted(Counts::default()), Outcome::Failed("no test ran".into()));
        let passed = Counts { passed: 2, ..Counts::default() };
        assert_eq!(counted(passed), Outcome::Passed("2 passed, 0 failed, 0 skipped".into()));
        let failed = Counts { failed: 1, ..passed };
        assert_eq!(counted(failed), Outcome::Failed("2 passed, 1 failed, 0 skipped".into()));
    }
}
