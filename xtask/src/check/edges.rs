//! The written list of edges between the workspace's crates, compared with the real ones. It says nothing about which are right.

use std::collections::BTreeSet;

use crate::check::graph::Graph;

/// The list, from the repository's root.
pub(crate) const FILE: &str = "docs/crate-edges.txt";

const HEADER: &str = "\
# Every dependency edge between crates of this workspace. `cargo xtask check` compares it with cargo's metadata;
# `cargo xtask check --bless` rewrites it. A new edge is a commit of its own, with its reason.
";

/// The whole file as it should be.
pub(crate) fn render(graph: &Graph) -> String {
    let lines: Vec<String> = edges(graph).into_iter().map(|edge| edge + "\n").collect();
    format!("{HEADER}{}", lines.concat())
}

/// Compares the file with the graph: a line for each edge that only one of them has.
pub(crate) fn check(graph: &Graph, file: &str) -> Vec<String> {
    let real = edges(graph);
    let written = file.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let written: BTreeSet<String> = written.map(str::to_owned).collect();
    let gone = written.difference(&real).map(|edge| format!("-{edge}"));
    let new = real.difference(&written).map(|edge| format!("+{edge}"));
    let mut violations: Vec<String> = gone.chain(new).collect();
    if !violations.is_empty() {
        let rule = "rule edges: the list is what cargo's metadata says (`cargo xtask check --bless` rewrites it)";
        violations.insert(0, format!("{FILE}: {rule}"));
    }
    violations
}

fn edges(graph: &Graph) -> BTreeSet<String> {
    let mut edges = BTreeSet::new();
    for from in &graph.crates {
        let internal = from.deps.iter().filter(|dep| graph.member(dep).is_some());
        edges.extend(internal.map(|dep| format!("{} -> {} [{}]", from.name, dep.name, dep.kind)));
    }
    edges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::graph::Kind;
    use crate::check::graph::testing::{GOOD, graph};

    #[test]
    fn the_rendered_list_passes() {
        let graph = graph(&GOOD);
        assert!(render(&graph).contains("\nblock-raw -> block-testkit [dev]\n"));
        assert_eq!(check(&graph, &render(&graph)), Vec::<String>::new());
    }

    /// Scenario: an edge changes its kind, so that the list has one too many and lacks one.
    #[test]
    fn a_changed_edge_shows_as_a_difference() {
        let written = render(&graph(&GOOD));
        let mut edges = GOOD.to_vec();
        edges.retain(|edge| *edge != ("block-raw", "block-testkit", Kind::Dev));
        edges.push(("block-raw", "block-testkit", Kind::Normal));
        let found = check(&graph(&edges), &written);
        assert!(found[0].starts_with("docs/crate-edges.txt: rule edges"));
        assert_eq!(found[1..], ["-block-raw -> block-testkit [dev]", "+block-raw -> block-testkit [normal]"]);
    }
}
