//! The names under which the field's tools would open the nodes of a graph.
//!
//! A plain name stands for a node if whoever opens that gets the same; otherwise the name has all the options that say which image it is.

use crate::qcow2::file_of;
use block_common::options::{Dialect, Dict, Value};
use block_common::{ChildName, FileName, Options};
use block_gs::{GlobalState, GraphResult, NodeInfo, NodeRef};
use block_qcow2::Qcow2Control;
use std::collections::HashMap;

/// Bytes that a name with options may have.
const NAME_MAX: usize = 4095;

/// The name under which the field's tools would open the same: a plain one if nothing but a file's name is needed.
///
/// # Errors
/// The node is gone.
#[doc(alias = "bdrv_refresh_filename")]
pub fn file_name(gs: &GlobalState, node: &NodeRef) -> GraphResult<String> {
    name_of(gs, node, &mut Names::new())
}

/// Names of nodes that were found on the way, by node name: that of an image is asked for several times by those above it.
pub(super) type Names = HashMap<String, String>;

pub(super) fn name_of(gs: &GlobalState, node: &NodeRef, names: &mut Names) -> GraphResult<String> {
    if let Some(known) = names.get(node.name()) {
        return Ok(known.clone());
    }
    let name = find_name(gs, node, names)?;
    names.insert(node.name().to_owned(), name.clone());
    Ok(name)
}

fn find_name(gs: &GlobalState, node: &NodeRef, names: &mut Names) -> GraphResult<String> {
    let info = gs.node_info(node)?;
    let own = own_options(&info);
    let plain = match (info.driver, own.as_slice()) {
        ("file" | "host_device", [(_, Value::Str(path))]) => Some(path.clone()),
        ("null-co" | "null-aio", []) => Some(format!("{}://", info.driver)),
        ("luks", []) if info.children.len() == 1 => plain_child(gs, &info, names)?.map(|(_, name)| name),
        ("raw", []) if !is_over_raw(gs, &info)? => plain_child(gs, &info, names)?.map(|(_, name)| name),
        ("qcow2", []) if !is_over_raw(gs, &info)? && other_backing(gs, node, &info, names)?.is_none() => {
            plain_child(gs, &info, names)?.map(|(_, name)| name)
        }
        ("blkdebug", []) => plain_child(gs, &info, names)?.map(|(_, name)| format!("blkdebug::{name}")),
        ("blkdebug", [("config", Value::Str(config))]) => {
            plain_child(gs, &info, names)?.map(|(_, name)| format!("blkdebug:{config}:{name}"))
        }
        // What is looked at through them is the image itself.
        ("copy-before-write" | "snapshot-access", _) => match first_child(gs, &info)? {
            Some(child) => Some(name_of(gs, &child, names)?),
            None => None,
        },
        _ => None,
    };
    match plain {
        Some(name) => Ok(name),
        None => {
            let mut name = "json:".to_owned();
            full_options(gs, node, names, &mut name)?;
            Ok(shortened(name))
        }
    }
}

/// `name`, or as much of it as the field's tools show.
fn shortened(mut name: String) -> String {
    const MORE: &str = "...";
    if name.len() > NAME_MAX {
        name.truncate(name.floor_char_boundary(NAME_MAX - MORE.len()));
        name.push_str(MORE);
    }
    name
}

/// The name `backing`, which stands in the image that `node` is, as it is from here.
#[doc(alias = "bdrv_get_full_backing_filename")]
pub fn full_backing_name(gs: &GlobalState, node: &NodeRef, backing: &str) -> String {
    let is_relative = matches!(FileName::parse(backing), Ok(FileName::Path(_))) && !backing.starts_with('/');
    let file = file_of(gs, node.name()).filter(|_| is_relative);
    let from_there = file.as_deref().and_then(|file| Some(file.parent()?.join(backing)));
    from_there.map_or_else(|| backing.to_owned(), |path| path.to_string_lossy().into_owned())
}

/// Whether the node below is raw: with a plain name it would be left out.
fn is_over_raw(gs: &GlobalState, info: &NodeInfo) -> GraphResult<bool> {
    let child = first_child(gs, info)?;
    Ok(child.map(|child| gs.node_info(&child)).transpose()?.is_some_and(|child| child.driver == "raw"))
}

fn first_child(gs: &GlobalState, info: &NodeInfo) -> GraphResult<Option<NodeRef>> {
    let Some((_, Some(child), _)) = info.children.first() else { return Ok(None) };
    gs.find_node(child).map(Some)
}

/// The node below this one, and its name if that is a plain one.
fn plain_child(gs: &GlobalState, info: &NodeInfo, names: &mut Names) -> GraphResult<Option<(NodeInfo, String)>> {
    let Some(child) = first_child(gs, info)? else { return Ok(None) };
    let name = name_of(gs, &child, names)?;
    let info = gs.node_info(&child)?;
    Ok((!name.starts_with("json:")).then_some((info, name)))
}

/// What a qcow2 node stands on, if that is not what its image says.
fn other_backing(
    gs: &GlobalState,
    node: &NodeRef,
    info: &NodeInfo,
    names: &mut Names,
) -> GraphResult<Option<Option<NodeRef>>> {
    let Ok(header) = gs.with_control(node, |control: &mut Qcow2Control| control.header()) else { return Ok(None) };
    let edge = info.children.iter().find(|(edge, ..)| edge == ChildName::BACKING.as_str());
    let backing = edge.and_then(|(_, child, _)| child.as_deref()).map(|child| gs.find_node(child)).transpose()?;
    match (backing, header.backing_file) {
        (None, None) => Ok(None),
        (Some(backing), Some(named)) => {
            let named = full_backing_name(gs, node, &String::from_utf8_lossy(&named));
            let is_it = name_of(gs, &gs.skip_filters(&backing), names)? == named;
            Ok((!is_it).then_some(Some(backing)))
        }
        (backing, _) => Ok(Some(backing)),
    }
}

/// The options that say which image it is: not every node's, nor those about how it is used.
fn own_options(info: &NodeInfo) -> Vec<(&str, &Value)> {
    const OTHERS: [&str; 14] = [
        "active",
        "aio",
        "auto-read-only",
        "cache",
        "detect-zeroes",
        "discard",
        "driver",
        "drop-cache",
        "force-share",
        "latency-ns",
        "locking",
        "node-name",
        "read-only",
        "x-check-cache-dropped",
    ];
    let is_child = |key: &str| info.children.iter().any(|(name, ..)| name.split('.').next() == Some(key));
    // How a qcow2 image is used is up to whoever opens it; what it cannot be read without is not.
    let is_own = |key: &str| info.driver != "qcow2" || key == "encrypt";
    let options = info.options.iter().filter(|(key, value)| !OTHERS.contains(key) && **value != Value::Null);
    options.filter(|(key, _)| !is_child(key) && is_own(key)).collect()
}

/// Keys in the order in which qemu-img 10.0.2 was seen to print them. Others come last.
const ORDER: [&str; 42] = [
    "set-state.1.event",
    "inject-error.1.state",
    "inject-error.0.state",
    "opt-write-zero",
    "inject-error.1.immediately",
    "inject-error.0.immediately",
    "set-state.0.event",
    "inject-error.1.once",
    "inject-error.0.once",
    "max-write-zero",
    "encrypt.key-secret",
    "backing",
    "test",
    "image",
    "header",
    "max-transfer",
    "set-state.1.new_state",
    "offset",
    "read-zeroes",
    "throttle-group",
    "children",
    "driver",
    "set-state.1.state",
    "config",
    "inject-error.1.iotype",
    "inject-error.0.iotype",
    "set-state.0.new_state",
    "inject-error.1.errno",
    "inject-error.1.event",
    "inject-error.0.errno",
    "inject-error.0.event",
    "opt-discard",
    "set-state.0.state",
    "inject-error.1.sector",
    "inject-error.0.sector",
    "max-discard",
    "align",
    "size",
    "filename",
    "file",
    "raw",
    "key-secret",
];

/// A value of a node's option: as it is printed, or the options of nodes below.
enum Part {
    Printed(String),
    Node(NodeRef),
    Nodes(Vec<NodeRef>),
}

/// Print the options of a node and of those below it to `out`, as JSON: a dictionary for each node, dotted keys for what is in it. What is past [`NAME_MAX`] is left out, so that
/// long chains cost no more than short ones.
fn full_options(gs: &GlobalState, node: &NodeRef, names: &mut Names, out: &mut String) -> GraphResult<()> {
    let info = gs.node_info(node)?;
    let mut own = Dict::new();
    for (key, value) in own_options(&info) {
        own.insert(key, value.clone())?;
    }
    let mut options = vec![("driver".to_owned(), Part::Printed(Value::from(info.driver).to_string()))];
    let flat = Options::from_dict(Dialect::Legacy, own).flatten().into_iter();
    // The image itself says how it is encrypted.
    let flat = flat.filter(|(key, _)| key != "encrypt.format");
    options.extend(flat.map(|(key, value)| (key, Part::Printed(value.to_string()))));
    let other_backing = other_backing(gs, node, &info, names)?;
    if let Some(None) = other_backing {
        options.push((ChildName::BACKING.as_str().to_owned(), Part::Printed("null".to_owned())));
    }
    let mut listed = Vec::new();
    for (name, child, _) in &info.children {
        let is_known = info.driver == "qcow2" && name == ChildName::BACKING.as_str() && other_backing.is_none();
        let Some(child) = child.as_deref().filter(|_| !is_known) else { continue };
        let below = gs.find_node(child)?;
        match name.strip_prefix("children.") {
            Some(_) => listed.push(below),
            None => options.push((name.clone(), Part::Node(below))),
        }
    }
    if !listed.is_empty() {
        options.push(("children".to_owned(), Part::Nodes(listed)));
    }
    options.sort_by_key(|(key, _)| ORDER.iter().position(|known| known == key).unwrap_or(ORDER.len()));
    let mut separator = "{";
    for (key, part) in options {
        out.push_str(&format!("{separator}{}: ", Value::Str(key)));
        separator = ", ";
        match part {
            Part::Printed(value) => out.push_str(&value),
            Part::Node(node) if out.len() <= NAME_MAX => full_options(gs, &node, names, out)?,
            Part::Node(_) => {}
            Part::Nodes(nodes) => {
                let mut separator = "[";
                for node in &nodes {
                    out.push_str(separator);
                    separator = ", ";
                    if out.len() <= NAME_MAX {
                        full_options(gs, node, names, out)?;
                    }
                }
                out.push(']');
            }
        }
    }
    out.push('}');
    Ok(())
}
