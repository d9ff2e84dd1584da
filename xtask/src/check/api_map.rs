//! Where each name of the inventory went: the written map compared with the items and aliases that rustdoc sees. It does not
//! judge whether an item does its name's work.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::check::rustdoc::{Item, Items};

/// The names, from the repository's root: columns area, class, name.
pub(crate) const NAMES_FILE: &str = "docs/api-names.tsv";
/// The map, from the repository's root: columns area, name, home.
pub(crate) const MAP_FILE: &str = "docs/api-map.tsv";

const NAMES_HEADER: &str = "area\tclass\tname";
const MAP_HEADER: &str = "area\tname\thome";

/// What a draft writes where it knows nothing, and what the check does not accept.
const UNKNOWN: &str = "later: ?";

/// An area and a name: one row of either file.
type Key<'a> = (&'a str, &'a str);

/// The third column of the map.
#[derive(Debug, PartialEq, Eq)]
enum Home<'a> {
    Paths(Vec<&'a str>),
    Later,
    Never,
}

/// Compares names, map and items; one line for each disagreement.
pub(crate) fn check(names: &str, map: &str, items: &Items) -> Vec<String> {
    let mut violations = Vec::new();
    let names = read(names, NAMES_FILE, NAMES_HEADER, |columns| ((columns[0], columns[2]), ()), &mut violations);
    let map = read(map, MAP_FILE, MAP_HEADER, |columns| ((columns[0], columns[1]), columns[2]), &mut violations);
    for key in names.keys().filter(|key| !map.contains_key(*key)) {
        violations.push(complaint(*key, "has no row"));
    }
    let mut homes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (key, home) in &map {
        if !names.contains_key(key) {
            violations.push(complaint(*key, &format!("is not in {NAMES_FILE}")));
        }
        match parse_home(home) {
            Err(why) => violations.push(complaint(*key, &why)),
            Ok(Home::Paths(paths)) => {
                violations.extend(paths.iter().filter_map(|path| wrong_path(*key, path, items)));
                homes.entry(key.1).or_default().extend(paths);
            }
            Ok(_) => {}
        }
    }
    let known = names.keys().map(|key| key.1).collect();
    violations.extend(unmapped_aliases(&known, &homes, items));
    violations
}

/// The map as it could be: written rows stay, aliased items are filled in where the name stands for one area only, and a row
/// without anything says `later: ?`.
pub(crate) fn draft(names: &str, map: &str, items: &Items) -> String {
    let mut ignored = Vec::new();
    let map = read(map, MAP_FILE, MAP_HEADER, |columns| ((columns[0], columns[1]), columns[2]), &mut ignored);
    let keys: Vec<Key<'_>> = names.lines().skip(1).filter_map(name_key).collect();
    let mut text = format!("{MAP_HEADER}\n");
    for key in &keys {
        let is_only_area = keys.iter().filter(|other| other.1 == key.1).count() == 1;
        let old = map.get(key).copied();
        let home = if is_only_area || old.is_none() { draft_home(key.1, old, items) } else { None };
        let home = home.unwrap_or_else(|| old.unwrap_or(UNKNOWN).to_owned());
        let _ = writeln!(text, "{}\t{}\t{home}", key.0, key.1);
    }
    text
}

/// Paths of all items with this alias: as already written, else the shortest.
fn draft_home(name: &str, old: Option<&str>, items: &Items) -> Option<String> {
    let written = match old.map(parse_home) {
        Some(Ok(Home::Paths(paths))) => paths,
        _ => Vec::new(),
    };
    let choose = |item: &Item| {
        let kept = written.iter().find(|path| item.paths.contains(**path));
        kept.map_or_else(|| item.shortest_path().to_owned(), |path| (*path).to_owned())
    };
    let paths: BTreeSet<String> = with_alias(items, name).map(choose).collect();
    (!paths.is_empty()).then(|| paths.into_iter().collect::<Vec<_>>().join(", "))
}

/// Reads the rows of a table with three columns, complaining of what is no row of it.
fn read<'a, V>(
    text: &'a str,
    file: &str,
    header: &str,
    row: impl Fn([&'a str; 3]) -> (Key<'a>, V),
    violations: &mut Vec<String>,
) -> BTreeMap<Key<'a>, V> {
    let mut rows = BTreeMap::new();
    if text.lines().next() != Some(header) {
        violations.push(format!("{file}: rule api-map: the header is `{}`", header.replace('\t', "<tab>")));
    }
    for (line, number) in text.lines().zip(1..).skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        let Ok(columns) = <[&str; 3]>::try_from(columns) else {
            violations.push(format!("{file}:{number}: rule api-map: a row has three columns"));
            continue;
        };
        let (key, value) = row(columns);
        if rows.insert(key, value).is_some() {
            violations.push(format!("{file}:{number}: rule api-map: {} {} has two rows", key.0, key.1));
        }
    }
    rows
}

fn name_key(line: &str) -> Option<Key<'_>> {
    let mut columns = line.split('\t');
    let area = columns.next()?;
    Some((area, columns.nth(1)?))
}

fn parse_home(home: &str) -> Result<Home<'_>, String> {
    for (word, parsed) in [("later:", Home::Later), ("none:", Home::Never)] {
        if let Some(why) = home.strip_prefix(word) {
            let says_something = why.chars().any(char::is_alphanumeric);
            return says_something.then_some(parsed).ok_or_else(|| format!("`{word}` says nothing after it"));
        }
    }
    let paths: Vec<&str> = home.split(", ").collect();
    let is_part = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_alphanumeric() || c == '_');
    let is_path = |path: &&str| path.contains("::") && path.split("::").all(is_part);
    match paths.iter().find(|path| !is_path(path)) {
        Some(bad) => Err(format!("`{bad}` is neither a path nor `later: what` nor `none: why`")),
        None => Ok(Home::Paths(paths)),
    }
}

fn wrong_path((area, name): Key<'_>, path: &str, items: &Items) -> Option<String> {
    let mut found = items.at(path).peekable();
    if found.peek().is_none() {
        return Some(complaint((area, name), &format!("there is no item `{path}`")));
    }
    let has_alias = found.any(|item| item.aliases.contains(name));
    (!has_alias).then(|| complaint((area, name), &format!("`{path}` lacks `#[doc(alias = \"{name}\")]`")))
}

/// Aliased items that no row of that name names.
fn unmapped_aliases(known: &BTreeSet<&str>, homes: &BTreeMap<&str, BTreeSet<&str>>, items: &Items) -> Vec<String> {
    let mut violations = Vec::new();
    for name in known {
        let is_named = |item: &&Item| {
            homes.get(name).is_some_and(|paths| item.paths.iter().any(|path| paths.contains(path.as_str())))
        };
        for item in with_alias(items, name).filter(|item| !is_named(item)) {
            let path = item.shortest_path();
            violations.push(format!("{MAP_FILE}: rule api-map: no row of {name} names `{path}`, which has its alias"));
        }
    }
    violations
}

fn with_alias<'a>(items: &'a Items, name: &'a str) -> impl Iterator<Item = &'a Item> {
    items.items.iter().filter(move |item| item.aliases.contains(name))
}

fn complaint((area, name): Key<'_>, what: &str) -> String {
    format!("{MAP_FILE}: rule api-map: {area} {name}: {what}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::rustdoc::testing::items;

    const NAMES: &str = "area\tclass\tname\nblock\tGS\tbdrv_open\nBlockDriver\tGS\tbdrv_open\nblock\tIO\tbdrv_pread\n";
    const MAP: &str = "area\tname\thome\n\
        block\tbdrv_open\tblock_gs::GlobalState::open\n\
        BlockDriver\tbdrv_open\tblock_gs::Format::open\n\
        block\tbdrv_pread\tlater: part 2, padded reads\n";

    fn good_items() -> Items {
        items(&[
            (&["block_gs::state::GlobalState::open", "block_gs::GlobalState::open"], &["bdrv_open", "other"]),
            (&["block_gs::Format::open"], &["bdrv_open"]),
            (&["block_gs::Format::close"], &["unrelated_alias"]),
        ])
    }

    #[track_caller]
    fn check_map(map: &str, expected: &str) {
        let found = check(NAMES, map, &good_items());
        assert!(found.iter().any(|line| line.contains(expected)), "{expected:?} not in {found:?}");
        assert!(found.iter().all(|line| line.contains(": rule api-map: ")), "{found:?}");
    }

    #[test]
    fn a_map_that_agrees_passes() {
        assert_eq!(check(NAMES, MAP, &good_items()), Vec::<String>::new());
        let defining = MAP.replace("block_gs::GlobalState::open", "block_gs::state::GlobalState::open");
        assert_eq!(check(NAMES, &defining, &good_items()), Vec::<String>::new());
    }

    #[test]
    fn several_paths_may_share_a_row() {
        let both = MAP.replace("\tblock_gs::Format::open", "\tblock_gs::GlobalState::open, block_gs::Format::open");
        assert_eq!(check(NAMES, &both, &good_items()), Vec::<String>::new());
    }

    #[test]
    fn rows_are_exactly_the_names() {
        check_map(&MAP.replace("block\tbdrv_pread\tlater: part 2, padded reads\n", ""), "block bdrv_pread: has no row");
        check_map(&format!("{MAP}block\tbdrv_new\tnone: not ours\n"), "block bdrv_new: is not in docs/api-names.tsv");
        check_map(
            &format!("{MAP}block\tbdrv_pread\tnone: twice\n"),
            "api-map.tsv:5: rule api-map: block bdrv_pread has two",
        );
        check_map(&format!("{MAP}block bdrv_x\n"), "docs/api-map.tsv:5: rule api-map: a row has three columns");
        check_map(&MAP.replace("\thome", "\twhere"), "the header is `area<tab>name<tab>home`");
    }

    #[test]
    fn a_home_is_a_path_or_a_reason() {
        check_map(&MAP.replace("later: part 2, padded reads", "later:"), "bdrv_pread: `later:` says nothing");
        check_map(&MAP.replace("later: part 2, padded reads", "none: ?"), "bdrv_pread: `none:` says nothing");
        check_map(&MAP.replace("later: part 2, padded reads", "soon"), "bdrv_pread: `soon` is neither");
        check_map(&MAP.replace("later: part 2, padded reads", ""), "bdrv_pread: `` is neither");
    }

    #[test]
    fn a_path_exists_and_carries_the_alias() {
        let missing = MAP.replace("GlobalState::open", "GlobalState::gone");
        check_map(&missing, "block bdrv_open: there is no item `block_gs::GlobalState::gone`");
        let unmarked = MAP.replace("GlobalState::open", "Format::close");
        check_map(&unmarked, "block bdrv_open: `block_gs::Format::close` lacks `#[doc(alias = \"bdrv_open\")]`");
    }

    #[test]
    fn an_alias_in_the_code_has_a_row_that_names_it() {
        let missing = MAP.replace("block_gs::GlobalState::open", "none: forgotten");
        check_map(&missing, "no row of bdrv_open names `block_gs::GlobalState::open`");
    }

    #[test]
    fn a_draft_keeps_rows_fills_in_aliases_and_admits_what_it_does_not_know() {
        let reads =
            items(&[(&["block_io::Node::read"], &["bdrv_pread"]), (&["block_io::Queue::read"], &["bdrv_pread"])]);
        let map = "area\tname\thome\nblock\tbdrv_open\tnone: kept\nblock\tbdrv_pread\tlater: part 2\n";
        let text = draft(NAMES, map, &reads);
        assert_eq!(
            text,
            "area\tname\thome\nblock\tbdrv_open\tnone: kept\nBlockDriver\tbdrv_open\tlater: ?\n\
             block\tbdrv_pread\tblock_io::Node::read, block_io::Queue::read\n"
        );
        let found = check(NAMES, &text, &reads);
        assert_eq!(found, ["docs/api-map.tsv: rule api-map: BlockDriver bdrv_open: `later:` says nothing after it"]);
    }
}
