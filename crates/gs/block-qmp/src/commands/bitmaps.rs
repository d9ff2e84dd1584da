//! Dirty bitmaps of nodes.

use super::Call;
use super::snapshots::{device_or_node, lookup};
use crate::error::{QmpError, QmpResult};
use block_common::options::{Item, Value};
use block_common::{OptionReader, OptionsError};
use block_gs::{BitmapOptions, GlobalState, NodeRef};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The node of a bitmap, which may be called by its device.
pub(super) fn find(gs: &GlobalState, name: &str) -> Result<NodeRef, QmpError> {
    lookup(gs, name).unwrap_or_else(|| Err(QmpError::new(format!("Node '{name}' not found"))))
}

/// What most of these commands are about.
struct Which {
    gs: GlobalState,
    node: NodeRef,
    name: String,
}

impl Which {
    fn take(mut call: Call) -> Result<Self, QmpError> {
        let gs = call.gs();
        let node = call.arguments.require_str("node")?;
        let name = call.arguments.require_str("name")?;
        call.finish()?;
        Ok(Self { node: find(&gs, &node)?, gs, name })
    }
}

/// A new bitmap, without its node.
pub(super) fn options(arguments: &mut OptionReader) -> Result<BitmapOptions, OptionsError> {
    Ok(BitmapOptions {
        name: arguments.require_str("name")?,
        granularity: arguments.take_u32("granularity")?.map(u64::from),
        persistent: arguments.take_bool("persistent")?.unwrap_or(false),
        disabled: arguments.take_bool("disabled")?.unwrap_or(false),
    })
}

pub(super) async fn add(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let node = call.arguments.require_str("node")?;
    let options = options(&mut call.arguments)?;
    call.finish()?;
    if options.name.is_empty() {
        return Err(block_gs::BitmapError::NoName.into());
    }
    gs.add_bitmap(&device_or_node(&gs, &node)?, options).await?;
    Ok(json!({}))
}

pub(super) async fn remove(call: Call) -> QmpResult {
    let Which { gs, node, name } = Which::take(call)?;
    gs.remove_bitmap(&node, &name)?;
    Ok(json!({}))
}

pub(super) async fn clear(call: Call) -> QmpResult {
    let Which { gs, node, name } = Which::take(call)?;
    gs.clear_bitmap(&node, &name)?;
    Ok(json!({}))
}

pub(super) async fn enable(call: Call) -> QmpResult {
    let Which { gs, node, name } = Which::take(call)?;
    gs.enable_bitmap(&node, &name).await?;
    Ok(json!({}))
}

pub(super) async fn disable(call: Call) -> QmpResult {
    let Which { gs, node, name } = Which::take(call)?;
    gs.disable_bitmap(&node, &name)?;
    Ok(json!({}))
}

/// A bitmap to be merged: of the target's node, or of another one.
fn source(item: Item) -> Result<(Option<String>, String), OptionsError> {
    match item.value() {
        Value::Str(_) => Ok((None, item.into_str()?)),
        Value::Dict(_) => item.into_dict(|named| Ok((Some(named.require_str("node")?), named.require_str("name")?))),
        _ => Err(OptionsError::WrongType { key: item.key(), expected: "BlockDirtyBitmapOrStr" }),
    }
}

/// A bitmap's node, its name, and what is to be merged into it.
pub(super) type Merged = (String, String, Vec<(Option<String>, String)>);

/// The arguments of a merge.
pub(super) fn merged(arguments: &mut OptionReader) -> Result<Merged, OptionsError> {
    let (node, target) = (arguments.require_str("node")?, arguments.require_str("target")?);
    let bitmaps = arguments.take_list("bitmaps", source)?;
    let bitmaps = bitmaps.ok_or_else(|| arguments.missing("bitmaps"))?;
    Ok((node, target, bitmaps))
}

pub(super) async fn merge(mut call: Call) -> QmpResult {
    let gs = call.gs();
    let (node, target, bitmaps) = merged(&mut call.arguments)?;
    call.finish()?;
    let node = find(&gs, &node)?;
    let mut sources = Vec::new();
    for (of, name) in bitmaps {
        sources.push((of.map_or_else(|| Ok(node.clone()), |of| find(&gs, &of))?, name));
    }
    let sources: Vec<_> = sources.iter().map(|(node, name)| (node, name.as_str())).collect();
    gs.merge_bitmaps(&node, &target, &sources)?;
    Ok(json!({}))
}

/// The hash of a bitmap's bits, each for a granule, as the field's tools have them in memory: in whole words of 64, lowest first.
pub(super) async fn sha256(call: Call) -> QmpResult {
    const PIECE: usize = 64 << 10;
    let Which { gs, node, name } = Which::take(call)?;
    let bitmap = gs.bitmap(&node, &name)?;
    let hash = bitmap.bits().with(|bits| {
        let (mut hash, mut at, mut bytes) = (Sha256::new(), 0, vec![0; PIECE]);
        let mut left = bits.chunks().div_ceil(64) * 8;
        while left > 0 {
            let piece = left.min(PIECE as u64);
            let bytes = &mut bytes[..piece as usize];
            bits.bits_from(at, bytes);
            hash.update(&*bytes);
            (at, left) = (at + piece * 8, left - piece);
        }
        hash.finalize()
    });
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(json!({ "sha256": hash }))
}
