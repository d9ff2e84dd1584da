//! What a block layer can be asked: its nodes, with what there is to tell of the images in them; the graph; exports.

use super::Call;
use crate::error::{QmpError, QmpResult};
use block_common::{ChildName, ParentKind, PermPair, QapiEnum as _};
use block_drivers::ImageTeller;
use block_gs::{BitmapInfo, GlobalState, NodeInfo, NodeRef};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(super) async fn named_nodes(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let is_flat = call.arguments.take_bool("flat")?.unwrap_or(false);
    call.finish()?;
    let (mut all, mut teller) = (Vec::new(), ImageTeller::new(&gs));
    // Those that were opened last come first.
    for info in gs.nodes().iter().rev() {
        // It may go while another one is asked.
        let Ok(node) = gs.find_node(&info.name) else { continue };
        all.push(device_info(&mut teller, &node, is_flat).await?);
    }
    Ok(Value::Array(all))
}

/// What a node filters, or else stands on.
fn below(gs: &GlobalState, node: &NodeRef) -> Result<Option<NodeRef>, QmpError> {
    let info = gs.node_info(node)?;
    if gs.driver(info.driver)?.is_filter() {
        return Ok(gs.filtered_child(node)?);
    }
    let backing = info.children.into_iter().find(|(edge, ..)| edge == ChildName::BACKING.as_str());
    let backing = backing.and_then(|(_, child, _)| child);
    Ok(backing.map(|backing| gs.find_node(&backing)).transpose()?)
}

/// An `ImageInfo`; with those of all images below it, unless it `is_flat`. How many that are comes with it.
async fn image_info(
    teller: &mut ImageTeller<'_>,
    node: &NodeRef,
    is_flat: bool,
) -> Result<(Value, bool, usize), QmpError> {
    let mut chain = Vec::new();
    let mut next = Some(node.clone());
    while let Some(node) = next.take() {
        chain.push(teller.image(&node).await?);
        if !is_flat {
            next = below(teller.gs(), &node)?;
        }
    }
    let (is_encrypted, depth) = (chain.first().is_some_and(|image| image.is_encrypted()), chain.len() - 1);
    let mut told: Option<Map<String, Value>> = None;
    for image in chain.iter().rev() {
        let mut map = image.to_json();
        if let Some(below) = told.take() {
            map.insert("backing-image".into(), Value::Object(below));
        }
        told = Some(map);
    }
    Ok((Value::Object(told.unwrap_or_default()), is_encrypted, depth))
}

/// A `BlockDeviceInfo`. Limits are those of backends, which nodes have none of.
pub(super) async fn device_info(teller: &mut ImageTeller<'_>, node: &NodeRef, is_flat: bool) -> QmpResult {
    let (image, is_encrypted, depth) = image_info(teller, node, is_flat).await?;
    let gs = teller.gs();
    let info = gs.node_info(node)?;
    let bitmaps = gs.bitmaps(node)?;
    let mut told = json!({
        "iops_rd": 0,
        "detect_zeroes": info.common.detect_zeroes.name(),
        // Nodes are active as long as they are there.
        "active": true,
        "iops_wr": 0,
        "ro": info.read_only,
        "node-name": info.name,
        "backing_file_depth": depth,
        "drv": info.driver,
        "iops": 0,
        "bps_wr": 0,
        "write_threshold": gs.write_threshold(node)?,
        "encrypted": is_encrypted,
        "bps": 0,
        "bps_rd": 0,
        "cache": {
            "no-flush": info.common.cache_no_flush,
            "direct": info.common.cache_direct,
            // That, too, is up to backends.
            "writeback": true,
        },
        "file": image["filename"],
        "image": image,
    });
    let mut add = |key: &str, value: Value| told.as_object_mut().and_then(|told| told.insert(key.into(), value));
    if let Some((_, Some(backing), _)) = info.children.iter().find(|(edge, ..)| edge == ChildName::BACKING.as_str()) {
        add("backing_file", teller.file_name(&gs.find_node(backing)?)?.into());
    }
    if !bitmaps.is_empty() {
        // The youngest comes first.
        add("dirty-bitmaps", bitmaps.iter().rev().map(bitmap_info).collect());
    }
    Ok(told)
}

/// A `BlockDirtyInfo`.
fn bitmap_info(bitmap: &BitmapInfo) -> Value {
    let mut told = json!({
        "name": bitmap.name,
        "recording": bitmap.recording,
        "persistent": bitmap.persistent,
        "busy": bitmap.busy,
        "granularity": bitmap.granularity,
        "count": bitmap.count,
    });
    if let (true, Some(told)) = (bitmap.inconsistent, told.as_object_mut()) {
        told.insert("inconsistent".into(), true.into());
    }
    told
}

/// The nodes and whoever uses them, with numbers that are good for this answer alone, and the edges between them.
pub(super) async fn graph(call: Call) -> QmpResult {
    let gs = call.gs();
    call.finish()?;
    let (nodes, roots) = (gs.nodes(), gs.roots());
    let mut listed = Vec::new();
    let mut add = |kind: &str, name: &str| {
        listed.push(json!({ "name": name, "type": kind, "id": listed.len() + 1 }));
        listed.len()
    };
    let root_ids: Vec<_> = roots
        .iter()
        .map(|root| match root.kind {
            ParentKind::Job => add("block-job", &root.name),
            _ => add("block-backend", &root.name),
        })
        .collect();
    let ids: BTreeMap<_, _> = nodes.iter().rev().map(|node| (&node.name, add("block-driver", &node.name))).collect();
    let edge = |name: &str, parent: usize, child: &String, perm: PermPair| {
        let names = |perm: block_common::Perm| perm.qapi_names().rev().collect::<Vec<_>>();
        json!({
            "name": name,
            "parent": parent,
            "shared-perm": names(perm.shared),
            "perm": names(perm.perm),
            "child": ids[child],
        })
    };
    let of_root = |(root, id): (&block_gs::RootInfo, &usize)| Some(edge("root", *id, root.child.as_ref()?, root.perm));
    let of_node = |node: &NodeInfo| -> Vec<_> {
        let children = node.children.iter().filter_map(|(name, child, perm)| Some((name, child.as_ref()?, *perm)));
        children.map(|(name, child, perm)| edge(name, ids[&node.name], child, perm)).collect()
    };
    let edges: Vec<_> =
        roots.iter().zip(&root_ids).filter_map(of_root).chain(nodes.iter().rev().flat_map(of_node)).collect();
    Ok(json!({ "edges": edges, "nodes": listed }))
}

/// Nothing can be exported yet, so nothing is.
pub(super) async fn exports(call: Call) -> QmpResult {
    call.finish()?;
    Ok(json!([]))
}
