//! Which crate may name which, by folder. It sees plain data only; `graph` asks cargo.

use crate::check::graph::{Crate, Dep, Graph, Kind};

/// Packages that bring a runtime or a kernel interface: a `common/` crate reaches none of them.
const RUNTIMES: [&str; 2] = ["tokio", "io-uring"];

/// The tiers, lowest first: a crate may name its own and lower ones.
const TIERS: [&str; 4] = ["common", "io", "gs", "bin"];

/// What the rules want to know about a crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Below `crates/`: the index into `TIERS`, and the role that the name and folder give.
    Tier(usize, Role),
    /// xtask, tests, benches.
    Outside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Driver,
    BlockIo,
    /// What several drivers' engines have in common.
    Shared,
    Testkit,
    Plain,
}

/// Checks every edge of the graph; one line for each that breaks a rule.
pub(crate) fn check(graph: &Graph) -> Vec<String> {
    let mut violations = Vec::new();
    for from in &graph.crates {
        match place(from) {
            Err(why) => violations.push(format!("{}: {why}", whole_name(from))),
            Ok(Place::Outside) => {}
            Ok(at) => {
                violations.extend(from.deps.iter().filter_map(|dep| check_edge(graph, from, at, dep).err()));
                violations.extend(runtimes(from, at));
            }
        }
    }
    violations
}

fn check_edge(graph: &Graph, from: &Crate, at: Place, dep: &Dep) -> Result<(), String> {
    let named = |rule: &str, to: &str| Err(format!("{}: names {to} [{}]: {rule}", whole_name(from), dep.kind));
    let Some(to) = graph.member(dep) else {
        return match &dep.path {
            Some(path) => named("rule members: a path dependency is a member of the workspace", path),
            None => Ok(()),
        };
    };
    // A crate in a folder that is no tier is reported once, for itself.
    let Ok(target) = place(to) else { return Ok(()) };
    allowed(at, target, dep.kind).or_else(|rule| named(rule, &whole_name(to)))
}

/// The rules themselves, narrowest last; the error is the broken rule.
fn allowed(from: Place, to: Place, kind: Kind) -> Result<(), &'static str> {
    let Place::Tier(from_tier, from_role) = from else {
        return Ok(());
    };
    let Place::Tier(to_tier, to_role) = to else {
        return Err("rule outside: nothing below crates/ names xtask, tests or benches");
    };
    if to_tier > from_tier {
        return Err("rule tiers: a crate names its own tier or lower ones (common <- io <- gs <- bin)");
    }
    let common = TIERS[to_tier] == "common";
    let testkit = to_role == Role::Testkit && kind == Kind::Dev;
    let block_io = to_role == Role::BlockIo;
    let shared = to_role == Role::Shared;
    match from_role {
        Role::Driver if !(common || block_io || shared || testkit) => Err(
            "rule drivers: a driver names block-io, block-crypt-io, block-throttle and common crates only (and block-testkit in dev-dependencies)",
        ),
        Role::Shared if !(common || block_io || testkit) => Err(
            "rule shared: block-crypt-io and block-throttle name block-io and common crates only (and block-testkit in dev-dependencies)",
        ),
        Role::BlockIo if !(common || testkit) => {
            Err("rule block-io: block-io names common crates only (and block-testkit in dev-dependencies)")
        }
        Role::Testkit if !(common || block_io) => {
            Err("rule block-testkit: block-testkit names block-io and common crates only")
        }
        _ => Ok(()),
    }
}

fn place(item: &Crate) -> Result<Place, String> {
    let Some(below) = item.dir.strip_prefix("crates/") else {
        return Ok(Place::Outside);
    };
    let (tier, rest) = below.split_once('/').unwrap_or((below, ""));
    let Some(tier) = TIERS.iter().position(|name| *name == tier) else {
        return Err(format!("rule tiers: `{tier}` is no tier ({})", TIERS.join(", ")));
    };
    let role = match (TIERS[tier], rest) {
        ("io", "block-io") => Role::BlockIo,
        ("io", "block-testkit") => Role::Testkit,
        ("io", "crypt-io" | "throttle") => Role::Shared,
        ("io", rest) if rest.starts_with("drivers/") => Role::Driver,
        _ => Role::Plain,
    };
    Ok(Place::Tier(tier, role))
}

fn runtimes(from: &Crate, at: Place) -> Option<String> {
    let Place::Tier(0, _) = at else { return None };
    let direct = from.deps.iter().map(|dep| &dep.name);
    let found = direct.chain(&from.reach).find(|name| RUNTIMES.contains(&name.as_str()))?;
    let rule = "rule common: a common crate is plain data and reaches no runtime";
    Some(format!("{}: reaches {found}: {rule}", whole_name(from)))
}

fn whole_name(item: &Crate) -> String {
    format!("{} ({})", item.name, item.dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::graph::testing::{GOOD, graph, krate};
    use crate::repo::testing::write_tree;

    /// The good workspace with one more edge breaks exactly one rule, in a line that names both crates, the kind and the rule.
    fn check_broken(from: &str, to: &str, kind: Kind, rule: &str) {
        let mut edges = GOOD.to_vec();
        edges.push((from, to, kind));
        let found = check(&graph(&edges));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(&format!("{from} (crates/")), "{}", found[0]);
        for part in [format!("names {to}"), format!("[{kind}]"), format!("rule {rule}:")] {
            assert!(found[0].contains(&part), "{} lacks {part}", found[0]);
        }
    }

    #[test]
    fn a_good_workspace_passes() {
        assert_eq!(check(&graph(&GOOD)), Vec::<String>::new());
    }

    #[test]
    fn no_crate_names_a_higher_tier() {
        check_broken("block-common", "block-io", Kind::Normal, "tiers");
        check_broken("block-io", "block-gs", Kind::Dev, "tiers");
        check_broken("block-backend-io", "block-gs", Kind::Build, "tiers");
        check_broken("block-gs", "cairn-img", Kind::Normal, "tiers");
        check_broken("block-raw", "block-gs", Kind::Dev, "tiers");
    }

    #[test]
    fn a_driver_names_no_other_driver_and_nothing_else_of_io() {
        check_broken("block-raw", "block-null", Kind::Normal, "drivers");
        check_broken("block-raw", "block-null", Kind::Dev, "drivers");
        check_broken("block-raw", "block-backend-io", Kind::Normal, "drivers");
        check_broken("block-null", "block-testkit", Kind::Normal, "drivers");
        check_broken("block-null", "block-testkit", Kind::Build, "drivers");
    }

    #[test]
    fn block_io_names_neither_drivers_nor_exports_nor_backends() {
        check_broken("block-io", "block-raw", Kind::Normal, "block-io");
        check_broken("block-io", "block-raw", Kind::Dev, "block-io");
        check_broken("block-io", "block-nbd-export", Kind::Dev, "block-io");
        check_broken("block-io", "block-backend-io", Kind::Normal, "block-io");
        check_broken("block-io", "block-testkit", Kind::Normal, "block-io");
    }

    #[test]
    fn what_drivers_share_names_block_io_and_common_only() {
        check_broken("block-crypt-io", "block-raw", Kind::Normal, "shared");
        check_broken("block-crypt-io", "block-testkit", Kind::Normal, "shared");
        check_broken("block-throttle", "block-raw", Kind::Normal, "shared");
        check_broken("block-throttle", "block-crypt-io", Kind::Normal, "shared");
        check_broken("block-io", "block-crypt-io", Kind::Normal, "block-io");
    }

    #[test]
    fn block_testkit_names_block_io_and_common_only() {
        check_broken("block-testkit", "block-raw", Kind::Dev, "block-testkit");
        check_broken("block-testkit", "block-backend-io", Kind::Normal, "block-testkit");
    }

    #[test]
    fn crates_do_not_name_what_lies_outside() {
        check_broken("cairn-img", "xtask", Kind::Build, "outside");
        check_broken("block-gs", "cairn-tests", Kind::Dev, "outside");
    }

    #[test]
    fn an_unknown_folder_is_no_tier() {
        let mut graph = graph(&GOOD);
        graph.crates.push(krate("block-misc", "crates/misc/block-misc"));
        assert_eq!(
            check(&graph),
            ["block-misc (crates/misc/block-misc): rule tiers: `misc` is no tier (common, io, gs, bin)"]
        );
    }

    #[test]
    fn a_path_out_of_the_workspace_is_refused() {
        let mut graph = graph(&[]);
        let dep = Dep { name: "stranger".into(), kind: Kind::Normal, path: Some("/else/stranger".into()) };
        graph.crates.iter_mut().find(|item| item.name == "block-raw").unwrap().deps.push(dep);
        let found = check(&graph);
        assert!(found[0].contains("block-raw (crates/io/drivers/raw): names /else/stranger [normal]: rule members"));
    }

    #[test]
    fn a_common_crate_reaches_no_runtime() {
        let mut direct = graph(&GOOD);
        let dep = Dep { name: "tokio".into(), kind: Kind::Dev, path: None };
        direct.crates.iter_mut().find(|item| item.name == "nbd-proto").unwrap().deps.push(dep);
        let found = check(&direct);
        assert!(found[0].contains("nbd-proto (crates/common/nbd-proto): reaches tokio: rule common"), "{found:?}");

        let mut indirect = graph(&GOOD);
        let common = indirect.crates.iter_mut().find(|item| item.name == "block-common").unwrap();
        common.reach.insert("io-uring".into());
        assert!(
            check(&indirect)[0].contains("block-common (crates/common/block-common): reaches io-uring: rule common")
        );
    }

    fn manifest(name: &str, sections: &str) -> String {
        format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n{sections}")
    }

    /// Scenario: a real workspace whose toy driver names block-gs as a dev-dependency under another name. Cargo builds such a
    /// driver without complaint; the check, on cargo's own metadata, does not let it pass.
    #[test]
    fn a_driver_that_names_gs_as_dev_dependency_is_found_in_real_metadata() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = "[workspace]\nresolver = \"3\"\nmembers = [\"crates/io/block-io\", \"crates/io/drivers/*\", \"crates/gs/*\"]\n";
        let io = "\n[dependencies]\nblock-io = { path = \"../block-io\" }\n".replace("../", "../../");
        let gs = "[dev-dependencies]\nhandy = { package = \"block-gs\", path = \"../../../gs/block-gs\" }\n";
        write_tree(
            dir.path(),
            &[
                ("Cargo.toml", workspace),
                ("crates/io/block-io/Cargo.toml", &manifest("block-io", "")),
                ("crates/io/block-io/src/lib.rs", "//! Test.\n"),
                ("crates/io/drivers/toy/Cargo.toml", &manifest("block-toy", &format!("{io}{gs}"))),
                ("crates/io/drivers/toy/src/lib.rs", "//! Test.\n"),
                ("crates/gs/block-gs/Cargo.toml", &manifest("block-gs", "")),
                ("crates/gs/block-gs/src/lib.rs", "//! Test.\n"),
            ],
        );
        let graph = Graph::load(dir.path(), &["--offline"]).unwrap();
        assert_eq!(graph.find("block-toy").unwrap().roots, ["crates/io/drivers/toy/src/lib.rs"]);
        assert_eq!(graph.find("block-toy").unwrap().lib.as_deref(), Some("block_toy"));
        assert!(graph.find("block-toy").unwrap().reach.contains("block-io"));
        assert!(!graph.find("block-toy").unwrap().reach.contains("block-gs"));
        let found = check(&graph);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(
                "block-toy (crates/io/drivers/toy): names block-gs (crates/gs/block-gs) [dev]: rule tiers"
            ),
            "{}",
            found[0]
        );
    }
}
