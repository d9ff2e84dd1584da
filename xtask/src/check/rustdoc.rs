//! Items, their paths and their doc aliases, read from rustdoc's JSON output. It reads the few fields it needs (of format
//! version 57, rustc 1.95) and leaves the rest of that unstable format alone.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// Versions of the format that this reader was tried with.
const FORMATS: std::ops::RangeInclusive<u64> = 54..=57;

/// Something that has a path: a module, type, variant, field, function, method, associated item, constant or macro.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Item {
    /// Texts of its `#[doc(alias = "…")]`.
    pub(crate) aliases: BTreeSet<String>,
    /// Where it is defined and where it is exported again, such as `block_gs::graph::Graph` and `block_gs::Graph`.
    pub(crate) paths: BTreeSet<String>,
}

impl Item {
    /// The path with the fewest parts, which is the one that users write.
    pub(crate) fn shortest_path(&self) -> &str {
        let shortest = self.paths.iter().min_by_key(|path| path.matches("::").count());
        shortest.map_or("", String::as_str)
    }
}

/// All items of some crates.
#[derive(Debug, Default)]
pub(crate) struct Items {
    /// In no particular order.
    pub(crate) items: Vec<Item>,
    by_path: BTreeMap<String, Vec<usize>>,
}

impl Items {
    /// Items that stand at this path: more than one where a type, a function or a macro share a name.
    pub(crate) fn at<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a Item> + use<'a> {
        self.by_path.get(path).into_iter().flatten().map(|index| &self.items[*index])
    }

    /// Reads rustdoc's output of several crates, which may export one another's items.
    ///
    /// # Errors
    /// The output has an unknown format version or lacks a field that was relied on.
    pub(crate) fn from_json(crates: &[Value]) -> Result<Items> {
        let mut all = Items::default();
        let mut exports = Vec::new();
        for json in crates {
            let (items, foreign) = read_crate(json)?;
            items.into_iter().for_each(|item| all.add(item));
            exports.extend(foreign);
        }
        // An export of an export is found one round later.
        for _ in 0..3 {
            exports.iter().for_each(|export| all.export(export));
        }
        Ok(all)
    }

    /// Adds an item.
    pub(crate) fn add(&mut self, item: Item) {
        let index = self.items.len();
        for path in &item.paths {
            self.by_path.entry(path.clone()).or_default().push(index);
        }
        self.items.push(item);
    }

    fn export(&mut self, export: &Export) {
        let mut found = Vec::new();
        for (path, indices) in &self.by_path {
            let Some(rest) = path.strip_prefix(&export.target) else {
                continue;
            };
            if rest.starts_with("::") || (rest.is_empty() && !export.is_glob) {
                found.extend(indices.iter().map(|index| (*index, format!("{}{rest}", export.path))));
            }
        }
        for (index, path) in found {
            if self.items[index].paths.insert(path.clone()) {
                self.by_path.entry(path).or_default().push(index);
            }
        }
    }
}

/// `pub use` of another crate's item: what `target` names is also named by `path`.
#[derive(Debug)]
struct Export {
    path: String,
    target: String,
    is_glob: bool,
}

fn read_crate(json: &Value) -> Result<(Vec<Item>, Vec<Export>)> {
    let version = json["format_version"].as_u64().context("rustdoc's JSON has no format_version")?;
    if !FORMATS.contains(&version) {
        bail!("rustdoc's JSON has format {version}, xtask/src/check/rustdoc.rs knows {FORMATS:?}: compare and extend");
    }
    let index = json["index"].as_object().context("rustdoc's JSON has no index")?;
    let paths = json["paths"].as_object().context("rustdoc's JSON has no paths")?;
    let root = id_text(&json["root"]).context("rustdoc's JSON has no root")?;
    let name = index.get(&root).and_then(|item| item["name"].as_str()).context("the root has no name")?;
    let mut walk = Walk { index, paths, items: BTreeMap::new(), exports: Vec::new(), open: Vec::new() };
    walk.item(&root, name);
    walk.rest(name);
    Ok((walk.items.into_values().collect(), walk.exports))
}

/// A walk from the crate's root through everything that has a path.
struct Walk<'a> {
    index: &'a Map<String, Value>,
    paths: &'a Map<String, Value>,
    items: BTreeMap<String, Item>,
    exports: Vec<Export>,
    /// Ids that the walk is inside of, so that modules that export each other end.
    open: Vec<String>,
}

impl<'a> Walk<'a> {
    fn item(&mut self, id: &str, path: &str) {
        let Some(value) = self.index.get(id) else { return };
        if self.open.iter().any(|open| open == id) {
            return;
        }
        let item = self.items.entry(id.to_owned()).or_default();
        item.paths.insert(path.to_owned());
        item.aliases.extend(aliases(value));
        self.open.push(id.to_owned());
        self.children(value, path);
        self.open.pop();
    }

    /// What stands inside an item: the fields of `inner` that hold ids of children, whichever kind the item is.
    fn children(&mut self, value: &'a Value, path: &str) {
        let Some((_, inner)) = kind_of(value) else { return };
        let plain_fields = &inner["kind"]["plain"]["fields"];
        for list in [&inner["items"], &inner["variants"], &inner["fields"], plain_fields] {
            ids(list).iter().for_each(|id| self.named(id, path));
        }
        for id in ids(&inner["impls"]) {
            let Some((_, block)) = self.index.get(&id).and_then(kind_of) else {
                continue;
            };
            if block["blanket_impl"].is_null() && block["is_synthetic"] != true {
                ids(&block["items"]).iter().for_each(|id| self.named(id, path));
            }
        }
    }

    /// An item under its own name, or what a `use` brings in.
    fn named(&mut self, id: &str, prefix: &str) {
        let Some(value) = self.index.get(id) else { return };
        match (kind_of(value), value["name"].as_str()) {
            (Some(("use", import)), _) => self.import(import, prefix),
            (_, Some(name)) => self.item(id, &format!("{prefix}::{name}")),
            _ => {}
        }
    }

    fn import(&mut self, import: &'a Value, prefix: &str) {
        let Some(id) = id_text(&import["id"]) else { return };
        let is_glob = import["is_glob"] == true;
        let path = match import["name"].as_str() {
            Some(name) if !is_glob => format!("{prefix}::{name}"),
            _ => prefix.to_owned(),
        };
        match self.index.get(&id) {
            Some(value) if is_glob && !self.open.contains(&id) => {
                self.open.push(id);
                self.children(value, &path);
                self.open.pop();
            }
            Some(_) if !is_glob => self.item(&id, &path),
            Some(_) => {}
            None => self.foreign(&id, path, is_glob),
        }
    }

    fn foreign(&mut self, id: &str, path: String, is_glob: bool) {
        let Some(parts) = self.paths.get(id).and_then(|entry| entry["path"].as_array()) else {
            return;
        };
        let target = parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("::");
        self.exports.push(Export { path, target, is_glob });
    }

    /// Items with aliases that no path leads to (an impl for a foreign type): kept under a path that nobody can write, so
    /// that an alias there is not overlooked.
    fn rest(&mut self, crate_name: &str) {
        for (id, value) in self.index {
            let aliases: BTreeSet<String> = aliases(value).into_iter().collect();
            if value["crate_id"] == 0 && !aliases.is_empty() && !self.items.contains_key(id) {
                let path = format!("{crate_name}::?::{}", value["name"].as_str().unwrap_or("?"));
                self.items.insert(id.clone(), Item { aliases, paths: BTreeSet::from([path]) });
            }
        }
    }
}

fn kind_of(value: &Value) -> Option<(&str, &Value)> {
    value["inner"].as_object()?.iter().next().map(|(kind, inner)| (kind.as_str(), inner))
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(id_text).collect()
}

fn id_text(value: &Value) -> Option<String> {
    value.as_u64().map(|id| id.to_string())
}

/// Attributes come as the source text that the compiler prints: `#[doc(alias = "bdrv_open")]`.
fn aliases(value: &Value) -> Vec<String> {
    let attributes = value["attrs"].as_array().into_iter().flatten().filter_map(|attr| attr["other"].as_str());
    let aliases = attributes.filter(|text| text.replace(' ', "").starts_with("#[doc(alias"));
    aliases.flat_map(|text| text.split('"').skip(1).step_by(2)).map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod testing {
    //! Made-up items for the tests of the api-map.

    use super::*;

    /// Items from paths (all of one item) and aliases.
    pub(crate) fn items(list: &[(&[&str], &[&str])]) -> Items {
        let mut all = Items::default();
        let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        for (paths, aliases) in list {
            all.add(Item { paths: set(paths), aliases: set(aliases) });
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;
    use crate::repo::{Repo, testing::write_tree};

    const COMMON: &str = r#"//! Test.
mod plain {
    #[doc(alias = "t_struct")]
    pub struct S {
        #[doc(alias = "t_field")]
        pub field: u32,
    }
    impl S {
        #[doc(alias = "t_method")]
        pub fn method(&self) {}
        #[doc(alias("t_const", "t_const2"))]
        pub const C: u8 = 1;
    }
    #[doc(alias = "t_trait")]
    pub trait T {
        #[doc(alias = "t_trait_method")]
        fn act(&self);
        #[doc(alias = "t_trait_const")]
        const K: u8;
    }
    impl T for S {
        fn act(&self) {}
        const K: u8 = 2;
    }
    pub mod deep {
        #[doc(alias = "t_enum")]
        pub enum E {
            #[doc(alias = "t_variant")]
            A,
        }
        #[doc(alias = "t_private")]
        pub(crate) fn private() {}
        pub fn use_private() {
            private()
        }
    }
}
pub use plain::{S as Renamed, T, deep};
pub use plain::deep::*;
#[doc(alias = "t_function")]
pub fn function() {}
#[doc(alias = "t_macro")]
#[macro_export]
macro_rules! macro_name { () => {} }
impl T for std::sync::Arc<u32> {
    #[doc(alias = "t_lost")]
    fn act(&self) {}
    const K: u8 = 3;
}
"#;

    const UPPER: &str = "//! Test.\npub use common_one::{Renamed, deep};\npub use common_one::deep::*;\n";

    fn read(dir: &std::path::Path) -> Items {
        let manifest = |name: &str, rest: &str| {
            format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[dependencies]\n{rest}")
        };
        let workspace = "[workspace]\nresolver = \"3\"\nmembers = [\"crates/common/one\", \"crates/io/two\"]\n";
        write_tree(
            dir,
            &[
                ("Cargo.toml", workspace),
                ("crates/common/one/Cargo.toml", &manifest("common-one", "")),
                ("crates/common/one/src/lib.rs", COMMON),
                ("crates/io/two/Cargo.toml", &manifest("io-two", "common-one = { path = \"../../common/one\" }\n")),
                ("crates/io/two/src/lib.rs", UPPER),
            ],
        );
        check::rustdoc_items(&Repo { root: dir.to_owned() }).unwrap()
    }

    #[track_caller]
    fn check_alias(items: &Items, alias: &str, paths: &[&str]) {
        for path in paths {
            assert!(items.at(path).any(|item| item.aliases.contains(alias)), "no {alias} at {path}");
        }
        assert_eq!(items.items.iter().filter(|item| item.aliases.contains(alias)).count(), 1, "{alias}");
    }

    /// Scenario: two real crates, one exporting the other's items under new names, through the installed rustdoc.
    #[test]
    fn every_kind_of_item_is_found_at_its_own_path_and_where_it_is_exported() {
        let dir = tempfile::tempdir().unwrap();
        let items = read(dir.path());
        check_alias(&items, "t_struct", &["common_one::plain::S", "common_one::Renamed", "io_two::Renamed"]);
        check_alias(&items, "t_field", &["common_one::plain::S::field"]);
        check_alias(&items, "t_method", &["common_one::plain::S::method", "io_two::Renamed::method"]);
        check_alias(&items, "t_const", &["common_one::Renamed::C"]);
        check_alias(&items, "t_const2", &["common_one::Renamed::C"]);
        check_alias(&items, "t_trait", &["common_one::T", "common_one::plain::T"]);
        check_alias(&items, "t_trait_method", &["common_one::T::act"]);
        check_alias(&items, "t_trait_const", &["common_one::T::K"]);
        check_alias(&items, "t_enum", &["common_one::E", "common_one::deep::E", "io_two::E", "io_two::deep::E"]);
        check_alias(&items, "t_variant", &["common_one::plain::deep::E::A", "io_two::E::A"]);
        check_alias(&items, "t_private", &["common_one::plain::deep::private"]);
        check_alias(&items, "t_function", &["common_one::function"]);
        check_alias(&items, "t_macro", &["common_one::macro_name"]);
        check_alias(&items, "t_lost", &["common_one::?::act"]);
        assert_eq!(items.at("common_one::nothing").count(), 0);
        let shortest = items.at("common_one::plain::S").next().unwrap().shortest_path();
        assert_eq!(shortest, "common_one::Renamed");
    }

    #[test]
    fn an_unknown_format_is_refused() {
        let error = Items::from_json(&[serde_json::json!({ "format_version": 9999 })]).unwrap_err();
        assert!(error.to_string().contains("format 9999"), "{error}");
    }
}
