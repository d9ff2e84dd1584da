//! What an encrypted image's header says.

use super::tree::Image;
use block_drivers::{LuksImage, SlotInfo, VolumeInfo};
use block_gs::{GlobalState, NodeRef};
use block_qcow2::info::InfoValue;

/// What a node's header says, if it is a luks node.
pub(super) fn structure(gs: &GlobalState, node: &NodeRef) -> Option<Box<Image>> {
    let specific = gs.with_control(node, |image: &mut LuksImage| values(image.header().info(), image.is_detached()));
    Some(Box::new(Image { specific: specific.ok()?, is_encrypted: true, qcow2: None, backing: None }))
}

/// As the field's tools name and order it.
fn values(info: VolumeInfo, is_detached: bool) -> InfoValue {
    let text = |words: &str| InfoValue::Text(words.to_owned());
    let mut map = Vec::new();
    map.extend(info.iv.map(|name| ("ivgen-alg", text(name))));
    map.push(("detached-header", InfoValue::Flag(is_detached)));
    map.push(("hash-alg", text(info.hash)));
    map.push(("cipher-alg", text(info.cipher)));
    map.push(("uuid", InfoValue::Text(info.uuid)));
    map.extend(info.iv_hash.map(|name| ("ivgen-hash-alg", text(name))));
    map.push(("cipher-mode", text(info.mode)));
    map.push(("slots", InfoValue::List(info.slots.into_iter().map(slot).collect())));
    map.push(("payload-offset", InfoValue::Number(info.payload_offset)));
    map.push(("master-key-iters", InfoValue::Number(info.key_iterations.into())));
    InfoValue::Map(map)
}

fn slot(slot: SlotInfo) -> InfoValue {
    let mut map = vec![("active", InfoValue::Flag(slot.active))];
    map.extend(slot.iterations.map(|number| ("iters", InfoValue::Number(number.into()))));
    map.push(("key-offset", InfoValue::Number(slot.key_offset)));
    map.extend(slot.stripes.map(|number| ("stripes", InfoValue::Number(number.into()))));
    InfoValue::Map(map)
}
