//! `cargo xtask check`: every rule in order, a line for each, failing at the end. The rules themselves are pure functions
//! over data, in the modules below.

mod graph;

mod tiers;

mod edges;

mod unsafe_code;

mod headers;

mod rustdoc;

mod api_map;

mod consumers;

mod hygiene;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::repo::Repo;
use crate::report::{Outcome, Report, outcome_of};
use crate::shell;
use graph::Graph;
use rustdoc::Items;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rewrite docs/crate-edges.txt instead of comparing with it.
    #[arg(long)]
    bless: bool,
    /// Only these steps; without it, all of them.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Rule>,
}

/// The steps, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rule {
    Fmt,
    Clippy,
    Tiers,
    Edges,
    Unsafe,
    Headers,
    ApiMap,
    Docs,
    Consumers,
    Hygiene,
}

/// Runs the steps and prints the summary.
///
/// # Errors
/// Names the steps that failed.
pub(crate) fn run(repo: &Repo, args: &Args) -> Result<()> {
    let mut report = Report::default();
    for rule in Rule::value_variants() {
        if args.only.is_empty() || args.only.contains(rule) {
            let value = rule.to_possible_value().context("every rule has a name")?;
            report.step(value.get_name(), || run_rule(repo, *rule, args.bless));
        }
    }
    println!("\n{}", report.table());
    report.result()
}

fn run_rule(repo: &Repo, rule: Rule, bless: bool) -> Result<Outcome> {
    let root = &repo.root;
    match rule {
        Rule::Fmt => cargo_step(repo, &["fmt", "--all", "--check"], None),
        Rule::Clippy => {
            let args = ["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"];
            cargo_step(repo, &args, None)
        }
        Rule::Tiers => {
            let graph = Graph::load(root, &[])?;
            Ok(outcome_of(&tiers::check(&graph), format!("{} crates", graph.crates.len())))
        }
        Rule::Edges => check_edges(root, bless),
        Rule::Unsafe => Ok(outcome_of(&unsafe_code::check(&Graph::load(root, &[])?, &repo.files()?), "")),
        Rule::Headers => Ok(outcome_of(&headers::check(&repo.files()?), "")),
        Rule::ApiMap => check_api_map(repo),
        Rule::Docs => cargo_step(repo, &["doc", "--workspace", "--no-deps"], Some(("RUSTDOCFLAGS", "-D warnings"))),
        Rule::Consumers => consumers::check(repo),
        Rule::Hygiene => check_hygiene(repo),
    }
}

fn cargo_step(repo: &Repo, args: &[&str], env: Option<(&str, &str)>) -> Result<Outcome> {
    let mut cargo = shell::cargo(&repo.root, args);
    shell::run(cargo.envs(env))?;
    Ok(Outcome::Passed(String::new()))
}

fn check_edges(root: &Path, bless: bool) -> Result<Outcome> {
    let graph = Graph::load(root, &[])?;
    let path = root.join(edges::FILE);
    if bless {
        std::fs::create_dir_all(root.join("docs"))?;
        std::fs::write(&path, edges::render(&graph)).with_context(|| format!("cannot write {}", edges::FILE))?;
        return Ok(Outcome::Passed(format!("{} rewritten", edges::FILE)));
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    Ok(outcome_of(&edges::check(&graph, &written), ""))
}

fn check_hygiene(repo: &Repo) -> Result<Outcome> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let needles = hygiene::Needles::new(&repo.root, home.as_deref());
    let files = repo.files()?;
    Ok(outcome_of(&hygiene::check(&files, &needles), format!("{} files", files.len())))
}

fn check_api_map(repo: &Repo) -> Result<Outcome> {
    let names = read(repo, api_map::NAMES_FILE)?;
    let map = read(repo, api_map::MAP_FILE)?;
    let violations = api_map::check(&names, &map, &rustdoc_items(repo)?);
    Ok(outcome_of(&violations, format!("{} names", names.lines().count().saturating_sub(1))))
}

/// Prints what docs/api-map.tsv could be, or writes it there.
///
/// # Errors
/// The crates do not compile, or a file cannot be read or written.
pub(crate) fn draft_api_map(repo: &Repo, write: bool) -> Result<()> {
    let map = read(repo, api_map::MAP_FILE).unwrap_or_default();
    let draft = api_map::draft(&read(repo, api_map::NAMES_FILE)?, &map, &rustdoc_items(repo)?);
    if write {
        return std::fs::write(repo.root.join(api_map::MAP_FILE), draft).context("cannot write the map");
    }
    print!("{draft}");
    Ok(())
}

fn read(repo: &Repo, path: &str) -> Result<String> {
    std::fs::read_to_string(repo.root.join(path)).with_context(|| format!("cannot read {path}"))
}

/// Items of all libraries below `crates/`, private ones too, by running rustdoc over them.
///
/// # Errors
/// A crate does not compile, or rustdoc's output is of an unknown format.
pub(crate) fn rustdoc_items(repo: &Repo) -> Result<Items> {
    let graph = Graph::load(&repo.root, &["--no-deps"])?;
    let documented = graph.crates.iter().filter(|item| item.dir.starts_with("crates/"));
    let (packages, libs): (Vec<&str>, Vec<&str>) =
        documented.filter_map(|item| Some((item.name.as_str(), item.lib.as_deref()?))).unzip();
    let target = repo.target("rustdoc-json");
    let mut cargo = shell::cargo(&repo.root, ["doc", "--quiet", "--no-deps", "--lib", "--all-features"]);
    for package in &packages {
        cargo.args(["--package", package]);
    }
    cargo.env("CARGO_TARGET_DIR", &target);
    // JSON is unstable; the switch that a stable rustdoc needs for it is thrown for our own crates alone.
    cargo.env("RUSTC_BOOTSTRAP", libs.join(","));
    cargo.env("RUSTDOCFLAGS", "-Z unstable-options --output-format json --document-private-items");
    if !packages.is_empty() {
        shell::capture(&mut cargo)?;
    }
    let read = |lib: &&str| -> Result<serde_json::Value> {
        let path = target.join("doc").join(format!("{lib}.json"));
        let text = std::fs::read(&path).with_context(|| format!("cannot read rustdoc's output for {lib}"))?;
        serde_json::from_slice(&text).with_context(|| format!("rustdoc's output for {lib}"))
    };
    Items::from_json(&libs.iter().map(read).collect::<Result<Vec<_>>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::testing::write_tree;

    /// Scenario: a whole small repository with a new edge: the step fails, `--bless` mends it, and then it passes.
    #[test]
    fn a_new_edge_fails_until_it_is_blessed() {
        let dir = tempfile::tempdir().unwrap();
        let manifest = |name: &str, dependencies: &str| {
            format!(
                "[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\n{dependencies}"
            )
        };
        write_tree(
            dir.path(),
            &[
                ("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"crates/io/*\"]\n"),
                ("crates/io/one/Cargo.toml", &manifest("one", "")),
                ("crates/io/one/src/lib.rs", "//! Test.\n"),
                ("crates/io/two/Cargo.toml", &manifest("two", "one = { path = \"../one\" }\n")),
                ("crates/io/two/src/lib.rs", "//! Test.\n"),
            ],
        );
        let Outcome::Failed(why) = check_edges(dir.path(), false).unwrap() else { panic!("the edge was not seen") };
        assert!(why.contains("docs/crate-edges.txt: rule edges") && why.ends_with("\n+two -> one [normal]"), "{why}");
        assert_eq!(check_edges(dir.path(), true).unwrap(), Outcome::Passed("docs/crate-edges.txt rewritten".into()));
        assert_eq!(check_edges(dir.path(), false).unwrap(), Outcome::Passed(String::new()));
    }
}
