//! Inputs to begin with: images with one thing wrong each. Malformed headers, tables that lead to themselves or lie over each other, counts that are far too
//! large, places where nothing is.

use block_qcow2_format::{Header, L1Entry, Version};

/// An input.
pub struct Seed {
    /// What is wrong.
    pub name: String,
    /// What the target is given.
    pub input: Vec<u8>,
    /// Nobody can open the image.
    pub is_refused: bool,
}

/// Kinds from here on keep the sizes of tables that an input says, whatever they are. A multiple of the number of kinds.
pub const WITH_LARGE: u8 = 240;

/// The COPIED bit, and that of compressed clusters.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Far past the end of any file, and aligned.
const FAR: u64 = 1 << 50;

/// The seeds of a kind, whose images are like `good`.
pub fn all(kind: u8, good: &[u8]) -> Vec<Seed> {
    let header = Header::parse(&good[..good.len().min(1 << header_bits(good))]).expect("a good image");
    let mut seeds = vec![Seed { name: "good".into(), input: vec![kind], is_refused: false }];
    let mut add = |name: &str, is_refused: bool, patches: &[(u64, &[u8])]| {
        let is_large = name.ends_with("-large") || name.ends_with("-many");
        let mut input = vec![if is_large { WITH_LARGE + kind } else { kind }];
        patches.iter().for_each(|(at, bytes)| put(&mut input, *at, bytes));
        seeds.push(Seed { name: name.into(), input, is_refused });
    };
    headers(&header, &mut add);
    tables(&header, good, &mut add);
    seeds
}

fn header_bits(good: &[u8]) -> u8 {
    good[23]
}

/// A patch, in the target's terms.
fn put(input: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    for (i, part) in bytes.chunks(8).enumerate() {
        let at = at + i as u64 * 8;
        let (place, is_eighth) = if at < 1 << 16 { (at, 0) } else { (at / 8, 0x80) };
        input.extend((place as u16).to_le_bytes());
        input.push(part.len() as u8 | is_eighth);
        input.extend(part);
        input.resize(input.len() + 8 - part.len(), 0);
    }
}

type Add<'a> = &'a mut dyn FnMut(&str, bool, &[(u64, &[u8])]);

fn headers(header: &Header, add: Add<'_>) {
    let far = FAR.to_be_bytes();
    let odd = (header.geometry.cluster_size() + 8).to_be_bytes();
    let most = [0xff; 8];
    add("magic", true, &[(0, b"QFJ\xfb")]);
    add("version", true, &[(4, &[0, 0, 0, 9])]);
    add("backing-offset", true, &[(8, &most), (16, &[0, 0, 0, 9])]);
    add("backing-length", true, &[(8, &200u64.to_be_bytes()), (16, &most[..4])]);
    add("cluster-bits-small", true, &[(20, &[0, 0, 0, 8])]);
    add("cluster-bits-large", true, &[(20, &[0, 0, 0, 63])]);
    add("size", true, &[(24, &most)]);
    add("encryption", true, &[(32, &[0, 0, 0, 3])]);
    add("l1-size-large", true, &[(36, &most[..4])]);
    add("l1-size-none", true, &[(36, &[0; 4])]);
    add("l1-offset-odd", true, &[(40, &odd)]);
    add("l1-offset-last", true, &[(40, &most)]);
    add("l1-offset-far", false, &[(40, &far)]);
    add("table-offset-odd", true, &[(48, &odd)]);
    add("table-offset-far", false, &[(48, &far)]);
    add("table-none", true, &[(56, &[0; 4])]);
    add("table-large", true, &[(56, &most[..4])]);
    add("snapshots-many", true, &[(60, &most[..4]), (64, &far)]);
    add("snapshots-odd", true, &[(60, &[0, 0, 0, 1]), (64, &odd)]);
    add("snapshots-far", false, &[(60, &[0, 0, 0, 1]), (64, &far)]);
    add("snapshots-in-header", false, &[(60, &[0, 0, 0, 3]), (64, &[0; 8])]);
    if header.crypto.is_some() {
        // The first extension's data.
        let at = if header.version == Version::V2 { 80 } else { 120 };
        add("crypto-odd", true, &[(at, &odd)]);
        add("crypto-far", false, &[(at, &far)]);
        add("crypto-over-header", false, &[(at, &[0; 8])]);
        add("crypto-over-l1", false, &[(at, &header.l1_offset.to_be_bytes())]);
        add("crypto-over-table", false, &[(at, &header.refcount_table_offset.to_be_bytes())]);
        add("crypto-endless", false, &[(at + 8, &most)]);
        add("crypto-empty", false, &[(at + 8, &[0; 8])]);
        add("crypto-and-no-encryption", true, &[(32, &[0; 4])]);
    }
    if header.version >= Version::V3 {
        add("feature", true, &[(72, &[0x80])]);
        add("refcount-order", true, &[(96, &[0, 0, 0, 7])]);
        add("header-length-small", true, &[(100, &[0, 0, 0, 8])]);
        add("header-length-large", true, &[(100, &most[..4])]);
        add("extension-long", true, &[(u64::from(112u8), &[0x12, 0x34, 0x56, 0x78]), (116, &most[..4])]);
        add("dirty", false, &[(79, &[1 | if header.geometry.is_extended() { 16 } else { 0 }])]);
    }
}

fn tables(header: &Header, good: &[u8], add: Add<'_>) {
    let (l1, table, size) = (header.l1_offset, header.refcount_table_offset, header.geometry.cluster_size());
    let at = |place: u64| u64::from_be_bytes(good[place as usize..place as usize + 8].try_into().expect("eight bytes"));
    let l2 = L1Entry::from_raw(at(l1)).table().expect("there is data");
    let block = at(table) & !511;
    let places = [("self", l1), ("header", 0), ("table", table), ("block", block), ("odd", 520), ("far", FAR)];
    for (name, place) in places {
        add(&format!("l1-entry-{name}"), false, &[(l1, &(place | COPIED).to_be_bytes())]);
        add(&format!("l2-entry-{name}"), false, &[(l2, &(place | COPIED).to_be_bytes())]);
        add(&format!("compressed-{name}"), false, &[(l2, &(place | COMPRESSED).to_be_bytes())]);
        add(&format!("table-entry-{name}"), false, &[(table, &place.to_be_bytes())]);
        add(&format!("second-table-entry-{name}"), false, &[(table + 8, &place.to_be_bytes())]);
    }
    add("l2-entry-l2", false, &[(l2, &(l2 | COPIED).to_be_bytes())]);
    add("l2-entries-same", false, &[(l2 + 8 * header.geometry.l2_entry_size(), &at(l2).to_be_bytes())]);
    add("l1-entries-same", false, &[(l1 + 8, &at(l1).to_be_bytes())]);
    add("l1-over-table", false, &[(40, &table.to_be_bytes())]);
    add("table-over-l1", false, &[(48, &l1.to_be_bytes())]);
    add("table-over-header", false, &[(48, &[0; 8])]);
    add("snapshots-over-l1", false, &[(60, &[0, 0, 0, 1]), (64, &l1.to_be_bytes())]);
    let (full, none) = (vec![0xff; size.min(512) as usize], vec![0; size.min(512) as usize]);
    add("counts-full", false, &[(block, &full)]);
    add("counts-none", false, &[(block, &none)]);
    add("l2-full", false, &[(l2, &full)]);
}
