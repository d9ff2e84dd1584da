//! Between nested options and flat lists of dotted keys.
//!
//! `{"a": {"b": 1}, "c": [2]}` and `a.b=1, c.0=2` are the same options. No typing happens here.

use super::error::excerpt;
use super::{DEPTH_MAX, Dict, OptionsError, VALUES_MAX, Value, keyval};
use indexmap::IndexMap;

/// Every scalar and every empty container, with its dotted key.
pub(super) fn flatten(dict: Dict) -> Vec<(String, Value)> {
    let mut out = Vec::new();
    for (key, value) in dict {
        flatten_value(key, value, &mut out);
    }
    out
}

/// Recursion is as deep as the value, which is bounded where values are read.
pub(super) fn flatten_value(key: String, value: Value, out: &mut Vec<(String, Value)>) {
    match value {
        Value::Dict(dict) if !dict.is_empty() => {
            for (inner, value) in dict {
                flatten_value(format!("{key}.{inner}"), value, out);
            }
        }
        Value::List(list) if !list.is_empty() => {
            for (index, value) in list.into_iter().enumerate() {
                flatten_value(format!("{key}.{index}"), value, out);
            }
        }
        scalar => out.push((key, scalar)),
    }
}

/// Refuse keys that no option can have, as options that nobody knows: JSON allows any text there.
pub(super) fn check_keys(dict: &Dict) -> Result<(), OptionsError> {
    check_dict(dict, &mut String::new())
}

/// `path` names the dictionary, and is given back as it was if all is well.
fn check_dict(dict: &Dict, path: &mut String) -> Result<(), OptionsError> {
    let len = path.len();
    for (key, value) in dict.iter() {
        path.push_str(if len == 0 { "" } else { "." });
        path.push_str(key);
        match keyval::check_key_part(key) {
            Ok(()) => check_value(value, path)?,
            Err(OptionsError::InvalidKey { .. }) => return Err(OptionsError::Unexpected { key: excerpt(path) }),
            Err(error) => return Err(error),
        }
        path.truncate(len);
    }
    Ok(())
}

fn check_value(value: &Value, path: &mut String) -> Result<(), OptionsError> {
    match value {
        Value::Dict(dict) => check_dict(dict, path),
        Value::List(list) => {
            let len = path.len();
            for (index, value) in list.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                check_value(value, path)?;
                path.truncate(len);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A tree under construction: whether a branch is a list shows only when all of it is there.
enum Tree {
    Leaf(Value),
    Branch(Branch),
}

type Branch = IndexMap<String, Tree>;

/// The nested form of `entries`.
pub(super) fn unflatten(entries: impl IntoIterator<Item = (String, Value)>) -> Result<Dict, OptionsError> {
    let (mut root, mut place) = (Branch::new(), Place::default());
    for (key, value) in entries {
        graft(&mut root, &mut place, &key, value)?;
    }
    let mut dict = Dict::new();
    for (key, tree) in root {
        let value = harvest(tree, &mut key.clone())?;
        dict.insert(&key, value)?;
    }
    Ok(dict)
}

/// Where in the tree an entry is being put, and how large the tree has become.
#[derive(Default)]
struct Place {
    path: String,
    depth: usize,
    count: usize,
}

impl Place {
    fn enter(&mut self, part: &str) -> Result<(), OptionsError> {
        self.path.push_str(if self.path.is_empty() { "" } else { "." });
        self.path.push_str(part);
        self.depth += 1;
        if self.depth > DEPTH_MAX { Err(OptionsError::TooDeep) } else { Ok(()) }
    }

    /// The dictionary or list in the place just entered, made if need be.
    fn branch<'a>(&mut self, branch: &'a mut Branch, part: &str) -> Result<&'a mut Branch, OptionsError> {
        if !branch.contains_key(part) {
            self.plant(branch, part, Tree::Branch(Branch::new()))?;
        }
        match branch.get_mut(part) {
            Some(Tree::Branch(inner)) => Ok(inner),
            _ => Err(self.inconsistent()),
        }
    }

    /// The scalar in the place just entered.
    fn leaf(&mut self, branch: &mut Branch, part: &str, value: Value) -> Result<(), OptionsError> {
        match branch.get_mut(part) {
            Some(Tree::Branch(_)) => Err(self.inconsistent()),
            Some(Tree::Leaf(old)) => {
                *old = value;
                Ok(())
            }
            None => self.plant(branch, part, Tree::Leaf(value)),
        }
    }

    fn plant(&mut self, branch: &mut Branch, part: &str, tree: Tree) -> Result<(), OptionsError> {
        branch.insert(part.to_owned(), tree);
        self.count += 1;
        if self.count > VALUES_MAX { Err(OptionsError::TooMany) } else { Ok(()) }
    }

    fn inconsistent(&self) -> OptionsError {
        OptionsError::Inconsistent { key: excerpt(&self.path) }
    }
}

/// Put `value` at the dotted `key` below `branch`; a container is put there entry by entry, so that it merges with what is
/// there. Recursion is as deep as the value, which [`Place::enter`] bounds.
fn graft(branch: &mut Branch, place: &mut Place, key: &str, value: Value) -> Result<(), OptionsError> {
    let (len, depth) = (place.path.len(), place.depth);
    let (mut branch, mut rest) = (branch, key);
    while let Some((part, inner)) = rest.split_once('.') {
        let part = keyval::normalise_key_part(part, place.depth == 0, key)?;
        place.enter(part)?;
        branch = place.branch(branch, part)?;
        rest = inner;
    }
    let part = keyval::normalise_key_part(rest, place.depth == 0, key)?;
    place.enter(part)?;
    match value {
        Value::Dict(dict) if !dict.is_empty() => {
            let branch = place.branch(branch, part)?;
            for (key, value) in dict {
                graft(branch, place, &key, value)?;
            }
        }
        Value::List(list) if !list.is_empty() => {
            let branch = place.branch(branch, part)?;
            for (index, value) in list.into_iter().enumerate() {
                graft(branch, place, &index.to_string(), value)?;
            }
        }
        scalar => place.leaf(branch, part, scalar)?,
    }
    place.path.truncate(len);
    place.depth = depth;
    Ok(())
}

/// Turn a finished tree into a value. `path` names it, and is given back as it was.
fn harvest(tree: Tree, path: &mut String) -> Result<Value, OptionsError> {
    let branch = match tree {
        Tree::Leaf(value) => return Ok(value),
        Tree::Branch(branch) => branch,
    };
    let is_index = |key: &str| key.starts_with(|c: char| c.is_ascii_digit());
    match branch.keys().filter(|key| is_index(key)).count() {
        0 => harvest_dict(branch, path),
        n if n == branch.len() => harvest_list(branch, path),
        _ => Err(OptionsError::Inconsistent { key: path.clone() }),
    }
}

fn harvest_dict(branch: Branch, path: &mut String) -> Result<Value, OptionsError> {
    let mut dict = Dict::new();
    let len = path.len();
    for (key, tree) in branch {
        path.push('.');
        path.push_str(&key);
        let value = harvest(tree, path)?;
        path.truncate(len);
        dict.insert(&key, value)?;
    }
    Ok(Value::Dict(dict))
}

fn harvest_list(mut branch: Branch, path: &mut String) -> Result<Value, OptionsError> {
    let mut list = Vec::with_capacity(branch.len());
    let len = path.len();
    for index in 0..branch.len() {
        let index = index.to_string();
        path.push('.');
        path.push_str(&index);
        let Some(tree) = branch.swap_remove(&index) else {
            return Err(OptionsError::MissingElement { key: path.clone() });
        };
        list.push(harvest(tree, path)?);
        path.truncate(len);
    }
    Ok(Value::List(list))
}
