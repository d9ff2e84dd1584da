//! The workspace's crates and what they name, as plain data taken from `cargo metadata`. It judges nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};

/// Where in its manifest a crate names another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `[dependencies]`
    Normal,
    /// `[dev-dependencies]`
    Dev,
    /// `[build-dependencies]`
    Build,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Normal => "normal",
            Kind::Dev => "dev",
            Kind::Build => "build",
        })
    }
}

/// One crate naming another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dep {
    /// The named package's own name, whatever it was renamed to.
    pub(crate) name: String,
    /// The kind of dependency.
    pub(crate) kind: Kind,
    /// Its folder, absolute, if it is named by path.
    pub(crate) path: Option<String>,
}

/// A member of the workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Crate {
    /// The package's name.
    pub(crate) name: String,
    /// Its folder, from the workspace's root, with `/`.
    pub(crate) dir: String,
    /// What it names, in all three kinds and for every target.
    pub(crate) deps: Vec<Dep>,
    /// Names of all packages that its code can end up linked with, over any number of steps; dev-dependencies do not count.
    pub(crate) reach: BTreeSet<String>,
    /// Roots of its library and of its programs, from the workspace's root.
    pub(crate) roots: Vec<String>,
    /// The library's name as code writes it, if there is a library.
    pub(crate) lib: Option<String>,
}

/// All members of the workspace.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    /// Sorted by name.
    pub(crate) crates: Vec<Crate>,
}

impl Graph {
    /// Asks cargo about the workspace at `root`.
    ///
    /// # Errors
    /// `cargo metadata` fails.
    pub(crate) fn load(root: &Path, options: &[&str]) -> Result<Graph> {
        let mut command = MetadataCommand::new();
        command.manifest_path(root.join("Cargo.toml")).current_dir(root);
        command.other_options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>());
        let metadata = command.exec().context("cargo metadata")?;
        Graph::from_metadata(&metadata)
    }

    fn from_metadata(metadata: &Metadata) -> Result<Graph> {
        let links = links(metadata);
        let names: BTreeMap<&PackageId, &str> = metadata.packages.iter().map(|p| (&p.id, p.name.as_str())).collect();
        let mut crates = Vec::new();
        for package in metadata.workspace_packages() {
            let mut item = from_package(package, metadata.workspace_root.as_str())?;
            item.reach =
                reach(&package.id, &links).iter().filter_map(|id| names.get(id)).map(|n| (*n).into()).collect();
            crates.push(item);
        }
        crates.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Graph { crates })
    }

    /// The member with this name.
    pub(crate) fn find(&self, name: &str) -> Option<&Crate> {
        self.crates.iter().find(|item| item.name == name)
    }

    /// The member that `dep` names, if it names one.
    pub(crate) fn member(&self, dep: &Dep) -> Option<&Crate> {
        let path = dep.path.as_ref()?;
        self.find(&dep.name).filter(|item| path.ends_with(&item.dir))
    }
}

fn from_package(package: &Package, root: &str) -> Result<Crate> {
    let below = |path: &str| Some(path.strip_prefix(root)?.trim_start_matches('/').to_owned());
    let manifest = below(package.manifest_path.as_str()).context("a member lies outside the workspace")?;
    let dir = manifest.strip_suffix("Cargo.toml").unwrap_or_default().trim_end_matches('/').to_owned();
    let code = package.targets.iter().filter(|t| t.is_lib() || t.is_bin() || t.is_proc_macro());
    let lib = package.targets.iter().find(|t| t.is_lib() || t.is_proc_macro());
    Ok(Crate {
        name: package.name.to_string(),
        dir,
        deps: package.dependencies.iter().map(from_dependency).collect(),
        reach: BTreeSet::new(),
        roots: code.filter_map(|target| below(target.src_path.as_str())).collect(),
        lib: lib.map(|target| target.name.replace('-', "_")),
    })
}

fn from_dependency(dependency: &cargo_metadata::Dependency) -> Dep {
    let kind = match dependency.kind {
        DependencyKind::Development => Kind::Dev,
        DependencyKind::Build => Kind::Build,
        _ => Kind::Normal,
    };
    Dep { name: dependency.name.clone(), kind, path: dependency.path.as_ref().map(ToString::to_string) }
}

/// Every package's non-dev dependencies, as cargo resolved them.
fn links(metadata: &Metadata) -> BTreeMap<&PackageId, Vec<&PackageId>> {
    let mut links = BTreeMap::new();
    for node in metadata.resolve.iter().flat_map(|resolve| &resolve.nodes) {
        let linked =
            node.deps.iter().filter(|dep| dep.dep_kinds.iter().any(|info| info.kind != DependencyKind::Development));
        links.insert(&node.id, linked.map(|dep| &dep.pkg).collect());
    }
    links
}

fn reach<'a>(from: &'a PackageId, links: &BTreeMap<&'a PackageId, Vec<&'a PackageId>>) -> BTreeSet<&'a PackageId> {
    let mut seen = BTreeSet::new();
    let mut todo = vec![from];
    while let Some(id) = todo.pop() {
        for next in links.get(id).into_iter().flatten() {
            if seen.insert(*next) {
                todo.push(next);
            }
        }
    }
    seen
}

#[cfg(test)]
pub(crate) mod testing {
    //! Made-up workspaces for the tests of the checks.

    use super::*;

    /// A crate in a folder, without dependencies.
    pub(crate) fn krate(name: &str, dir: &str) -> Crate {
        let root = format!("{dir}/src/lib.rs");
        Crate { name: name.into(), dir: dir.into(), roots: vec![root], ..Crate::default() }
    }

    /// The folders of the made-up workspace: one crate of every place that the rules tell apart.
    pub(crate) const DIRS: [(&str, &str); 15] = [
        ("block-common", "crates/common/block-common"),
        ("nbd-proto", "crates/common/nbd-proto"),
        ("block-io", "crates/io/block-io"),
        ("block-testkit", "crates/io/block-testkit"),
        ("block-backend-io", "crates/io/block-backend-io"),
        ("block-crypt-io", "crates/io/crypt-io"),
        ("block-throttle", "crates/io/throttle"),
        ("block-nbd-export", "crates/io/exports/nbd"),
        ("block-raw", "crates/io/drivers/raw"),
        ("block-null", "crates/io/drivers/null"),
        ("block-gs", "crates/gs/block-gs"),
        ("block-drivers", "crates/gs/block-drivers"),
        ("cairn-img", "crates/bin/cairn-img"),
        ("cairn-tests", "tests"),
        ("xtask", "xtask"),
    ];

    /// The made-up workspace with these edges: who names whom, and how.
    pub(crate) fn graph(edges: &[(&str, &str, Kind)]) -> Graph {
        let mut crates: Vec<Crate> = DIRS.iter().map(|(name, dir)| krate(name, dir)).collect();
        for (from, to, kind) in edges {
            let path = DIRS.iter().find(|(name, _)| name == to).map(|(_, dir)| format!("/ws/{dir}"));
            let from = crates.iter_mut().find(|item| item.name == *from).unwrap();
            from.deps.push(Dep { name: (*to).into(), kind: *kind, path });
        }
        crates.sort_by(|a, b| a.name.cmp(&b.name));
        Graph { crates }
    }

    /// Edges of a workspace that obeys every rule.
    pub(crate) const GOOD: [(&str, &str, Kind); 16] = [
        ("block-io", "block-common", Kind::Normal),
        ("block-io", "block-testkit", Kind::Dev),
        ("block-testkit", "block-io", Kind::Normal),
        ("block-crypt-io", "block-io", Kind::Normal),
        ("block-raw", "block-crypt-io", Kind::Normal),
        ("block-raw", "block-throttle", Kind::Normal),
        ("block-backend-io", "block-throttle", Kind::Normal),
        ("block-raw", "block-io", Kind::Normal),
        ("block-raw", "nbd-proto", Kind::Build),
        ("block-raw", "block-testkit", Kind::Dev),
        ("block-gs", "block-io", Kind::Normal),
        ("block-drivers", "block-raw", Kind::Normal),
        ("block-drivers", "block-gs", Kind::Normal),
        ("cairn-img", "block-drivers", Kind::Normal),
        ("cairn-tests", "block-gs", Kind::Normal),
        ("nbd-proto", "block-common", Kind::Normal),
    ];
}
