//! Packages outside the workspace that use the crates as a stranger would: each is built, linted, tested and run. It lifts
//! the workspace's bans for them, since a stranger has none.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::repo::Repo;
use crate::report::{Outcome, outcome_of};
use crate::shell;

/// The folder of the packages, from the repository's root.
const FOLDER: &str = "tests/consumers";

const CLIPPY: [&str; 9] = [
    "clippy",
    "--no-deps",
    "--all-targets",
    "--",
    "-Dwarnings",
    "-A",
    "clippy::disallowed_methods",
    "-A",
    "clippy::disallowed_types",
];

/// Runs every command for every consumer; a consumer's first failure ends it alone.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn check(repo: &Repo) -> Result<Outcome> {
    let folders = folders(&repo.root.join(FOLDER))?;
    if folders.is_empty() {
        return Ok(Outcome::Skipped(format!("no package in {FOLDER}")));
    }
    let failures = folders.iter().filter_map(|folder| check_one(repo, folder).err());
    let violations: Vec<String> = failures.map(|error| format!("{error:#}")).collect();
    Ok(outcome_of(&violations, format!("{} consumers", folders.len())))
}

fn folders(parent: &Path) -> Result<Vec<PathBuf>> {
    if !parent.is_dir() {
        return Ok(Vec::new());
    }
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(parent).with_context(|| format!("cannot read {}", parent.display()))? {
        let path = entry?.path();
        if path.join("Cargo.toml").is_file() {
            folders.push(path);
        }
    }
    folders.sort();
    Ok(folders)
}

fn check_one(repo: &Repo, folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let context = || format!("{name} ({FOLDER}/{name}): rule consumers: a stranger's package builds, passes and runs");
    start_lock_file(repo, folder).with_context(context)?;
    for arguments in commands(folder) {
        let mut cargo = shell::cargo(folder, &arguments);
        cargo.env("CARGO_TARGET_DIR", repo.target("consumers"));
        // They do not have the workspace's profiles, and nobody debugs them.
        cargo.env("CARGO_PROFILE_DEV_DEBUG", "none").env("CARGO_INCREMENTAL", "0");
        shell::run_streamed(&mut cargo).with_context(context)?;
    }
    Ok(())
}

/// Lets a new consumer begin with the versions that the workspace was tested with.
fn start_lock_file(repo: &Repo, folder: &Path) -> Result<()> {
    let (from, to) = (repo.root.join("Cargo.lock"), folder.join("Cargo.lock"));
    if from.is_file() && !to.exists() {
        std::fs::copy(from, to).context("cannot copy Cargo.lock")?;
    }
    Ok(())
}

fn commands(folder: &Path) -> Vec<Vec<&'static str>> {
    let mut commands = vec![vec!["fmt", "--check"], vec!["build"], CLIPPY.to_vec()];
    if has_tests(folder) {
        commands.push(vec!["test"]);
    }
    if folder.join("src/main.rs").is_file() {
        commands.push(vec!["run"]);
    }
    commands
}

fn has_tests(folder: &Path) -> bool {
    folder.join("tests").is_dir() || any_source(&folder.join("src"), &|text| text.contains("test]"))
}

fn any_source(folder: &Path, wanted: &dyn Fn(&str) -> bool) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_wanted = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| wanted(&text));
    entries.into_iter().any(|path| if path.is_dir() { any_source(&path, wanted) } else { is_wanted(&path) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::testing::write_tree;

    const MANIFEST: &str = "[package]\nname = \"guest\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n";

    fn check_source(source: &str) -> Outcome {
        let dir = tempfile::tempdir().unwrap();
        let files = [("tests/consumers/guest/Cargo.toml", MANIFEST), ("tests/consumers/guest/src/main.rs", source)];
        write_tree(dir.path(), &files);
        check(&Repo { root: dir.path().to_owned() }).unwrap()
    }

    fn check_broken(source: &str, command: &str) {
        let Outcome::Failed(why) = check_source(source) else { panic!("passed: {source}") };
        assert!(why.starts_with("guest (tests/consumers/guest): rule consumers"), "{why}");
        assert!(why.contains(&format!("cargo {command}")), "{why}");
    }

    #[test]
    fn a_consumer_that_builds_and_runs_passes() {
        let source = "//! Test.\nfn main() {\n    assert!(std::fs::read(\"/nowhere\").is_err());\n}\n";
        assert_eq!(check_source(source), Outcome::Passed("1 consumers".into()));
    }

    #[test]
    fn each_way_to_fail_is_found() {
        check_broken("fn main() {\n    nothing();\n}\n", "build");
        check_broken("fn main() {\n    let unused = 1;\n}\n", "clippy");
        check_broken("fn main() {\n    panic!(\"no\");\n}\n", "run");
        check_broken("fn main() {}\n\n#[test]\nfn fails() {\n    panic!(\"no\");\n}\n", "test");
        check_broken("fn main( ) {}\n", "fmt");
    }

    #[test]
    fn a_repository_without_consumers_skips_the_step() {
        let dir = tempfile::tempdir().unwrap();
        let outcome = check(&Repo { root: dir.path().to_owned() }).unwrap();
        assert_eq!(outcome, Outcome::Skipped("no package in tests/consumers".into()));
    }
}
