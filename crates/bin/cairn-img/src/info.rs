//! `info`: what an image is, and the images and files below it.
//!
//! This file asks; `info/qcow2.rs` does where an image has a structure of its own; `info/tree.rs` prints.

mod luks;
mod qcow2;
mod tree;

use crate::args::{OpenArgs, OutputArgs, OutputFormat, one_image};
use crate::cli::{Command, Failure};
use crate::layer::BlockLayer;
use crate::print;
use block_common::Options;
use block_common::options::{Dialect, Dict, Value};
use block_copy::Padded;
use block_gs::{GlobalState, NodeInfo, NodeRef};
use clap::Parser;
use std::future::Future;
use std::pin::Pin;
use tree::Node;
pub(crate) use tree::{local_time, write_json};

/// Show what an image is.
#[derive(Debug, Parser)]
#[command(
    name = "info",
    bin_name = "cairn-img info",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img info [options] FILENAME"
)]
pub(crate) struct Args {
    #[command(flatten)]
    open: OpenArgs,
    /// Show the backing files, too
    #[arg(short, long)]
    backing_chain: bool,
    #[command(flatten)]
    output: OutputArgs,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.open.object.texts()
    }

    /// Print what the image is.
    ///
    /// # Errors
    /// The image cannot be opened.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let output = self.output.format("info")?;
        let name = one_image(&self.names, "info")?;
        self.open.check()?;
        let mut image = self.open.image(name);
        image.how.no_io = true;
        layer.run(|gs| async move {
            let chain = qcow2::chain(&gs, image, self.backing_chain).await?;
            print(&match output {
                OutputFormat::Human => chain.iter().map(Node::to_text).collect::<Vec<_>>().join("\n"),
                OutputFormat::Json => Node::to_json(&chain, self.backing_chain),
            })
        })
    }
}

/// What there is to tell of a node and of those below it.
fn node(gs: &GlobalState, node_ref: NodeRef) -> Pin<Box<dyn Future<Output = Result<Node, Failure>> + '_>> {
    Box::pin(async move {
        let info = gs.node_info(&node_ref).map_err(Failure::message)?;
        let mut children = Vec::new();
        for (name, child, _) in &info.children {
            if let Some(child) = child {
                let child = gs.find_node(child).map_err(Failure::message)?;
                children.push((name.clone(), node(gs, child).await?));
            }
        }
        let disk_size = match children.first() {
            // It stands for any disk, whose size is not told.
            Some(_) if info.driver == "blkdebug" => None,
            Some(_) if info.driver == "luks" => {
                // The data's, and the header's where that is a file of its own.
                let sizes = children.iter().map(|(_, child)| child.disk_size);
                sizes.reduce(|all, size| Some(all? + size?)).flatten()
            }
            Some((_, file)) => file.disk_size,
            // Where nobody can tell, nothing is.
            None => Some(gs.allocated_size(&node_ref).await.unwrap_or(0)),
        };
        Ok(Node {
            file_name: file_name(gs, &node_ref)?,
            driver: info.driver,
            is_protocol: children.is_empty(),
            length: info.length.next_multiple_of(Padded::SECTOR),
            disk_size,
            has_flags: match children.first() {
                Some((_, file)) => file.has_flags,
                None => matches!(info.driver, "file" | "host_device"),
            },
            children,
            image: luks::structure(gs, &node_ref),
        })
    })
}

/// The name under which the field's tools would open the same: a plain one if nothing but a file's name is needed.
///
/// # Errors
/// The node is gone.
pub(crate) fn file_name(gs: &GlobalState, node: &NodeRef) -> Result<String, Failure> {
    let info = gs.node_info(node).map_err(Failure::message)?;
    let own = own_options(&info);
    let plain = match (info.driver, own.as_slice()) {
        ("file" | "host_device", [(_, Value::Str(path))]) => Some(path.clone()),
        ("null-co" | "null-aio", []) => Some(format!("{}://", info.driver)),
        ("luks", []) if info.children.len() == 1 => plain_child(gs, &info)?.map(|(_, name)| name),
        ("raw", []) => plain_child(gs, &info)?.filter(|(child, _)| child.driver != "raw").map(|(_, name)| name),
        ("blkdebug", []) => plain_child(gs, &info)?.map(|(_, name)| format!("blkdebug::{name}")),
        ("blkdebug", [("config", Value::Str(config))]) => {
            plain_child(gs, &info)?.map(|(_, name)| format!("blkdebug:{config}:{name}"))
        }
        _ => None,
    };
    match plain {
        Some(name) => Ok(name),
        None => Ok(format!("json:{}", full_options(gs, node)?)),
    }
}

/// The node below this one, and its name if that is a plain one.
fn plain_child(gs: &GlobalState, info: &NodeInfo) -> Result<Option<(NodeInfo, String)>, Failure> {
    let Some((_, Some(child), _)) = info.children.first() else { return Ok(None) };
    let child = gs.find_node(child).map_err(Failure::message)?;
    let name = file_name(gs, &child)?;
    let info = gs.node_info(&child).map_err(Failure::message)?;
    Ok((!name.starts_with("json:")).then_some((info, name)))
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
    let is_child = |key: &str| info.children.iter().any(|(name, ..)| name == key);
    let options = info.options.iter().filter(|(key, value)| !OTHERS.contains(key) && **value != Value::Null);
    options.filter(|(key, _)| !is_child(key)).collect()
}

/// Keys in the order in which qemu-img 10.0.2 was seen to print them. Others come last.
const ORDER: [&str; 37] = [
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
    "image",
    "header",
    "max-transfer",
    "set-state.1.new_state",
    "offset",
    "read-zeroes",
    "throttle-group",
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
    "key-secret",
];

/// The options of a node and of those below it, as JSON: a dictionary for each node, dotted keys for what is in it.
fn full_options(gs: &GlobalState, node: &NodeRef) -> Result<String, Failure> {
    let info = gs.node_info(node).map_err(Failure::message)?;
    let mut own = Dict::new();
    for (key, value) in own_options(&info) {
        own.insert(key, value.clone()).map_err(Failure::message)?;
    }
    let mut options = vec![("driver".to_owned(), Value::from(info.driver).to_string())];
    let flat = Options::from_dict(Dialect::Legacy, own).flatten();
    options.extend(flat.into_iter().map(|(key, value)| (key, value.to_string())));
    for (name, child, _) in &info.children {
        if let Some(child) = child {
            let child = gs.find_node(child).map_err(Failure::message)?;
            options.push((name.clone(), full_options(gs, &child)?));
        }
    }
    options.sort_by_key(|(key, _)| ORDER.iter().position(|known| known == key).unwrap_or(ORDER.len()));
    let options: Vec<_> = options.into_iter().map(|(key, value)| format!("{}: {value}", Value::Str(key))).collect();
    Ok(format!("{{{}}}", options.join(", ")))
}
