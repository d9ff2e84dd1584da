//! What an encrypted image's header says, in the words of the field's tools.

use super::{LuksHeader, SlotInfo, VolumeInfo};
use block_crypt::IvGen;
use block_qcow2::info::{ImageInfo, InfoValue};

/// How many times as long as the key its material is, with every program.
const STRIPES: u32 = 4000;

/// What a qcow2 image says of itself, with what the LUKS header in it says, if it has one.
pub fn qcow2_specific(info: &ImageInfo, luks: Option<&LuksHeader>) -> InfoValue {
    let mut specific = info.specific();
    if let (Some(luks), InfoValue::Map(map)) = (luks, &mut specific) {
        let encrypt = map.iter_mut().filter(|(name, _)| *name == "encrypt");
        encrypt.for_each(|(_, value)| *value = values(luks.info(), false, Some("luks")));
    }
    specific
}

/// As the field's tools name and order it, with the name of the method where a format has several. These know LUKS1 alone, so what is LUKS2's comes last.
pub(crate) fn values(info: VolumeInfo, is_detached: bool, format: Option<&str>) -> InfoValue {
    let text = |words: &str| InfoValue::Text(words.to_owned());
    let is_new = info.version > 1;
    let iv = info.spec.and_then(|spec| spec.iv);
    let mut map = Vec::new();
    map.extend(iv.map(|iv| ("ivgen-alg", text(iv.name()))));
    map.push(("detached-header", InfoValue::Flag(is_detached)));
    map.push(("hash-alg", text(info.hash.name())));
    map.extend(info.spec.map(|spec| ("cipher-alg", text(spec.cipher.name()))));
    map.push(("uuid", InfoValue::Text(info.uuid)));
    if let Some(IvGen::Essiv(hash)) = iv {
        map.push(("ivgen-hash-alg", text(hash.name())));
    }
    map.extend(format.map(|format| ("format", text(format))));
    map.extend(info.spec.map(|spec| ("cipher-mode", text(spec.mode.name()))));
    map.push(("slots", InfoValue::List(info.slots.into_iter().map(|slot| values_of(slot, is_new)).collect())));
    map.push(("payload-offset", InfoValue::Number(info.payload_offset)));
    map.push(("master-key-iters", InfoValue::Number(info.key_iterations.into())));
    if is_new {
        map.push(("version", InfoValue::Number(info.version.into())));
        map.push(("sector-size", InfoValue::Number(info.sector.into())));
    }
    InfoValue::Map(map)
}

fn values_of(slot: SlotInfo, is_new: bool) -> InfoValue {
    let number = |number: u32| InfoValue::Number(number.into());
    let mut map = vec![("active", InfoValue::Flag(slot.active))];
    map.extend(slot.iterations.map(|iterations| ("iters", number(iterations))));
    map.extend(slot.key_offset.map(|offset| ("key-offset", InfoValue::Number(offset))));
    if slot.active {
        map.push(("stripes", number(STRIPES)));
    }
    if let Some(kdf) = slot.kdf.filter(|_| is_new) {
        map.push(("kdf", InfoValue::Text(kdf.to_owned())));
    }
    map.extend(slot.memory.map(|memory| ("memory", number(memory))));
    InfoValue::Map(map)
}
