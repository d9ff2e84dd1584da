//! Which crates may contain `unsafe`; all others forbid it in their roots. The compiler enforces what the roots say.

use crate::check::graph::{Crate, Graph};
use crate::repo::RepoFile;

/// Crates that talk to the kernel or to guest memory. Each addition needs a reason in its commit.
const MAY_BE_UNSAFE: [&str; 5] = ["block-common", "block-crypt", "block-io", "block-file-posix", "block-testkit"];

/// What lifts the workspace's `deny(unsafe_code)` in a file; written in pieces so that this file does not lift it.
const LIFTED: [&str; 2] = [concat!("allow(", "unsafe_code"), concat!("expect(", "unsafe_code")];

/// Checks the roots of every crate's library and programs, and its other files for what lifts the lint.
pub(crate) fn check(graph: &Graph, files: &[RepoFile]) -> Vec<String> {
    let bound = graph.crates.iter().filter(|item| !MAY_BE_UNSAFE.contains(&item.name.as_str()));
    bound.flat_map(|item| unforbidden_roots(item, files).into_iter().chain(lifting_files(graph, item, files))).collect()
}

fn unforbidden_roots(item: &Crate, files: &[RepoFile]) -> Vec<String> {
    let forbids = |root: &str| {
        let file = files.iter().find(|file| file.path == root);
        file.is_some_and(|file| file.text().lines().any(is_forbid))
    };
    let rule = "rule unsafe: a crate outside the allowance has `#![forbid(unsafe_code)]` in its root";
    let bad = item.roots.iter().filter(|root| !forbids(root));
    bad.map(|root| format!("{} ({root}): {rule}", item.name)).collect()
}

fn is_forbid(line: &str) -> bool {
    line.trim_start().starts_with("#![forbid(") && line.contains("unsafe_code")
}

/// Tests, benches and examples are crates of their own, which the root's `forbid` does not reach.
fn lifting_files(graph: &Graph, item: &Crate, files: &[RepoFile]) -> Vec<String> {
    let own = files.iter().filter(|file| file.path.ends_with(".rs") && owner(graph, &file.path) == Some(&item.name));
    let bad = own.filter(|file| LIFTED.iter().any(|needle| file.text().contains(needle)));
    let rule = "rule unsafe: only a crate in the allowance lifts the lint";
    bad.map(|file| format!("{} ({}): {rule}", item.name, file.path)).collect()
}

/// The crate whose folder is the innermost around `path`.
fn owner<'a>(graph: &'a Graph, path: &str) -> Option<&'a String> {
    let around =
        graph.crates.iter().filter(|item| path.strip_prefix(&item.dir).is_some_and(|rest| rest.starts_with('/')));
    around.max_by_key(|item| item.dir.len()).map(|item| &item.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::graph::testing::krate;
    use crate::repo::testing::file;

    const FORBID: &str = "//! Test.\n#![forbid(unsafe_code)]\n";

    fn graph() -> Graph {
        let crates = vec![krate("block-gs", "crates/gs/block-gs"), krate("block-io", "crates/io/block-io")];
        Graph { crates }
    }

    fn check_files(gs_root: &str, other: &str) -> Vec<String> {
        let files = [
            file("crates/gs/block-gs/src/lib.rs", gs_root),
            file("crates/gs/block-gs/tests/one.rs", other),
            file("crates/io/block-io/src/lib.rs", &format!("#![{}, reason = \"kernel\")]", LIFTED[0])),
        ];
        check(&graph(), &files)
    }

    #[test]
    fn forbidding_crates_and_allowed_crates_pass() {
        assert_eq!(check_files(FORBID, "//! Test.\n"), Vec::<String>::new());
        assert_eq!(check_files("//! Test.\n#![forbid(unsafe_code, non_ascii_idents)]\n", ""), Vec::<String>::new());
    }

    #[test]
    fn a_crate_outside_the_allowance_must_forbid() {
        for root in ["//! Test.\n", "//! Test.\n// #![forbid(unsafe_code)]\n"] {
            let found = check_files(root, "");
            assert!(found[0].starts_with("block-gs (crates/gs/block-gs/src/lib.rs): rule unsafe"), "{found:?}");
        }
    }

    #[test]
    fn its_tests_must_not_lift_the_lint() {
        for needle in LIFTED {
            let found = check_files(FORBID, &format!("#![{needle})]"));
            assert!(found[0].starts_with("block-gs (crates/gs/block-gs/tests/one.rs): rule unsafe"), "{found:?}");
        }
    }
}
