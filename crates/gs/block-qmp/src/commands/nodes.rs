//! Nodes: adding, reopening and removing them, their children, their lengths, their write thresholds.

use super::Call;
use super::snapshots::of_two;
use crate::error::{QmpError, QmpResult};
use block_common::options::{Item, Value};
use block_common::{Options, OptionsError, ParentKind, Perm, PermPair, Preallocation};
use block_drivers::{refuse_length, resize_failure};
use block_gs::{GlobalState, LeftOut, NodeRef};
use serde_json::json;

/// The node called `name`, as commands about nodes alone say it.
pub(super) fn find(gs: &GlobalState, name: &str) -> Result<NodeRef, QmpError> {
    let missing = |_| QmpError::new(format!("Failed to find node with node-name='{name}'"));
    gs.find_node(name).map_err(missing)
}

pub(super) async fn add(call: Call) -> QmpResult {
    let gs = call.gs();
    let options = call.arguments.into_rest();
    if !options.dict().contains_key("node-name") && options.dict().contains_key("driver") {
        return Err(QmpError::new("'node-name' must be specified for the root node"));
    }
    let node = gs.open(options).await?;
    gs.set_monitor_owned(&node, true);
    Ok(json!({}))
}

/// A node's name, and the options that it is to have.
fn reopened(item: Item) -> Result<(Option<String>, Options), OptionsError> {
    let key = item.key();
    let options = match item.into_value() {
        Value::Dict(options) => options,
        _ => return Err(OptionsError::WrongType { key, expected: "object" }),
    };
    if !options.contains_key("driver") {
        return Err(OptionsError::Missing { key: format!("{key}.driver") });
    }
    let name = match options.lookup("node-name") {
        Some(Value::Str(name)) => Some(name.clone()),
        Some(_) => return Err(OptionsError::WrongType { key: format!("{key}.node-name"), expected: "string" }),
        None => None,
    };
    Ok((name, Options::from_value(Value::Dict(options))?))
}

pub(super) async fn reopen(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let listed = call.arguments.take_list("options", reopened)?;
    let listed = listed.ok_or_else(|| call.arguments.missing("options"))?;
    call.finish()?;
    let named = |(name, options): (Option<String>, Options)| {
        let name = name.ok_or_else(|| QmpError::new("node-name not specified"))?;
        Ok((find(&gs, &name)?, options))
    };
    let nodes = listed.into_iter().map(named).collect::<Result<_, QmpError>>()?;
    gs.reopen_all(nodes, LeftOut::Default).await?;
    Ok(json!({}))
}

pub(super) async fn delete(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let name = call.arguments.require_str("node-name")?;
    call.finish()?;
    let node = find(&gs, &name)?;
    gs.check_op(&node, block_common::OpType::DriveDel)?;
    super::devices::check_unused(&gs, &name)?;
    let info = gs.node_info(&node)?;
    if !info.monitor_owned {
        return Err(QmpError::new(format!("Node {name} is not owned by the monitor")));
    }
    if !info.parents.is_empty() {
        return Err(QmpError::new(format!("Block device {name} is in use")));
    }
    gs.close(node).await?;
    Ok(json!({}))
}

pub(super) async fn set_write_threshold(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let name = call.arguments.require_str("node-name")?;
    let threshold = call.arguments.require_u64("write-threshold")?;
    call.finish()?;
    let node = gs.find_node(&name).map_err(|_| QmpError::new(format!("Device '{name}' not found")))?;
    gs.set_write_threshold(&node, threshold).await?;
    Ok(json!({}))
}

pub(super) async fn resize(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let device = call.arguments.take_str("device")?;
    let name = call.arguments.take_str("node-name")?;
    let size = call.arguments.require_i64("size")?;
    call.finish()?;
    let node = of_two(&gs, device.as_deref(), name.as_deref())?;
    gs.check_op(&node, block_common::OpType::Resize)?;
    let size = u64::try_from(size).map_err(|_| QmpError::new("Parameter 'size' expects a >0 size"))?;
    let is_qcow2 = gs.skip_filters(&node).io().driver() == Some("qcow2");
    if let Some(refused) = refuse_length(size).filter(|_| is_qcow2) {
        return Err(QmpError::new(refused));
    }
    let root = gs.new_root("", ParentKind::Backend, PermPair::new(Perm::RESIZE, Perm::all()), &gs.node_home(&node));
    let old = node.io().length();
    let resized = match gs.attach_root(&root, Some(&node)).await {
        Ok(()) => root.io().truncate(size, Preallocation::Off).await.map_err(|error| {
            QmpError::new(match is_qcow2 {
                true => resize_failure(error, old, size, Preallocation::Off),
                false => format!("Could not resize: {error}"),
            })
        }),
        Err(error) => Err(error.into()),
    };
    gs.close_root(root).await;
    resized.map(|()| json!({}))
}

/// The name of a thread, or that there is to be none.
fn thread(item: Item) -> Result<Option<String>, OptionsError> {
    match item.value() {
        Value::Null => Ok(None),
        Value::Str(_) => item.into_str().map(Some),
        _ => Err(OptionsError::WrongType { key: item.key(), expected: "StrOrNull" }),
    }
}

pub(super) async fn set_iothread(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let name = call.arguments.require_str("node-name")?;
    let thread = match call.arguments.take("iothread") {
        Some(item) => thread(item)?,
        None => return Err(call.arguments.missing("iothread").into()),
    };
    let force = call.arguments.take_bool("force")?.unwrap_or(false);
    call.finish()?;
    let node = find(&gs, &name)?;
    let thread = thread.map(|id| gs.io_thread(&id)).transpose()?;
    gs.set_node_home(&node, thread.as_ref(), force).await?;
    Ok(json!({}))
}

/// What a node's children are to be from now on.
enum Members {
    Add(NodeRef),
    Remove(String),
}

pub(super) async fn change(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let parent = call.arguments.require_str("parent")?;
    let child = call.arguments.take_str("child")?;
    let node = call.arguments.take_str("node")?;
    call.finish()?;
    let parent = of_two(&gs, Some(&parent), Some(&parent))?;
    let missing = |child: &str| QmpError::new(format!("Node '{}' does not have child '{child}'", parent.name()));
    let members = match (child, node) {
        (None, None) => return Err(QmpError::new("Either child or node must be specified")),
        (Some(_), Some(_)) => return Err(QmpError::new("The parameters child and node are in conflict")),
        (Some(child), None) => match gs.child(&parent, &child) {
            Ok(Some(_)) => Members::Remove(child),
            _ => return Err(missing(&child)),
        },
        (None, Some(node)) => {
            Members::Add(gs.find_node(&node).map_err(|_| QmpError::new(format!("Node '{node}' not found")))?)
        }
    };
    match members {
        Members::Add(node) => gs.add_child(&parent, &node).await?,
        Members::Remove(child) => gs.remove_child(&parent, &child).await?,
    }
    Ok(json!({}))
}
