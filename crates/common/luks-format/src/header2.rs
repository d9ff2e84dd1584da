//! LUKS2.

use crate::error::LuksError;
use crate::header1::Header1;
use crate::material;
use binary::Fields;
use block_crypt::{CipherSpec, Hash, Secret, pbkdf2};
use json::{Node, base64};
use serde_json::{Map, Value, json};
use slot::{encryption, encryption_name};
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

mod binary;
mod json;
mod slot;
#[cfg(test)]
mod tests;

pub use slot::{Kdf, KdfCost, Priority, Slot2};

/// The longest keyslots area, as cryptsetup has it: bytes.
const KEYSLOTS_MAX: u64 = 128 << 20;
/// What the places of slots' keys are multiples of: bytes.
const AREA_ALIGNMENT: u64 = 4096;
/// Bytes of a copy of a new header, and where the data is then: all between is for keys.
const NEW_SIZE: usize = 16 << 10;
const NEW_PAYLOAD: u64 = 16 << 20;
/// Bytes of salts of slots and digests.
const SALT_LEN: usize = 32;

/// One of the two copies of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderCopy {
    /// The one at the start.
    Primary,
    /// The one behind it.
    Secondary,
}

/// The disk's data, the specification's "Segments Object".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment2 {
    /// Where it begins: bytes from the start of the header, or of the file that has none.
    pub offset: u64,
    /// Its bytes; `None` is all that there are.
    pub len: Option<u64>,
    /// Bytes of a sector, each of which is encrypted by itself: 512, 1024, 2048 or 4096.
    pub sector: usize,
    /// The number of the first sector, as initialisation vectors count them: in units of 512 bytes.
    pub first: u64,
    /// How it is encrypted, as LUKS says it: `aes-xts-plain64`.
    pub encryption: String,
}

/// How a key is known to be the right one, the specification's "Digests Object".
#[derive(Clone, Debug, PartialEq, Eq)]
struct Digest2 {
    hash: Hash,
    iterations: u32,
    salt: Vec<u8>,
    digest: Vec<u8>,
}

/// A header of LUKS2. What stands in its metadata and is not known here is kept as it is: tokens, and members of whatever else.
///
/// It is a value: [`seal`](Self::seal) and [`remove`](Self::remove) make other ones. A header that is to be on a disk has two copies there, which are written one after the other, with
/// a flush between them, in the [`order`](Self::order) that leaves one of them readable at each moment:
///
/// 1. What `seal` made for the slot is written to its [place](Self::material), which no copy on the disk speaks of. Flush.
/// 2. The first copy of the order: [its bytes](Self::bytes) to [its place](Self::place). Flush. If the power fails before that is over, its checksum is wrong, and the other copy counts,
///    with what was true before; afterwards this one does, for its number is higher.
/// 3. The second copy. Flush.
/// 4. After `remove`: the slot's [area](Slot2::area) is overwritten. Flush. Not earlier: a copy that is read may still speak of it.
///
/// The same order mends a header of which one copy [is stale](Self::stale): what is written then is that copy alone.
#[derive(Clone, PartialEq, Eq)]
pub struct Header2 {
    fields: Fields,
    is_detached: bool,
    stale: Option<HeaderCopy>,
    /// The metadata as it was read, and as it is written. All else here is what it says.
    json: Map<String, Value>,
    slots: BTreeMap<u32, Slot2>,
    segment: Segment2,
    digest_name: String,
    digest: Digest2,
    keyslots_end: u64,
    /// Where slots were that are not there any more, since the header was read: a copy on the disk may still speak of them.
    given_up: Vec<Range<u64>>,
}

/// What is written to put a key into a slot.
#[derive(Debug)]
pub struct Sealed2 {
    /// The header with that slot.
    pub header: Header2,
    /// What lies at the slot's [place](Header2::material).
    pub material: Secret,
}

impl Header2 {
    /// There are so many key slots at most: they have numbers below it.
    pub const SLOTS: u32 = 32;
    /// Bytes of the longest header, with both copies.
    pub const AREA_MAX: usize = binary::AREA_MAX;

    /// How many bytes from the start of a disk, or of its detached header, [`parse`](Self::parse) has to have instead of those in `area`; `None` is for: no more than these. Whoever reads so many
    /// asks again with them. It is [`AREA_MAX`](Self::AREA_MAX) at most, which is asked for when no good copy was found at the places that the beginning speaks of. A file that is shorter is
    /// taken as it is.
    pub fn wanted(area: &[u8]) -> Option<usize> {
        binary::wanted(area)
    }

    /// What the bytes at the start of a disk, or of its detached header, say: of both copies, as many as [`wanted`](Self::wanted) wants.
    ///
    /// Of two good copies, that with the higher number counts. If the primary one is broken, the secondary one is looked for at all places where it can be.
    ///
    /// # Errors
    /// There is no good copy (what is wrong with the primary one), or it makes no sense, or has something that is not known here. The field is named.
    pub fn parse(area: &[u8], is_detached: bool) -> Result<Self, LuksError> {
        let (good, stale) = binary::find(area)?;
        Self::read(good.fields, json::parse(good.json)?, is_detached, stale)
    }

    fn read(
        fields: Fields,
        json: Map<String, Value>,
        is_detached: bool,
        stale: Option<HeaderCopy>,
    ) -> Result<Self, LuksError> {
        let keyslots_len = check_config(&Node::root(&json, "config")?, fields.size)?;
        let keyslots_start = 2 * fields.size as u64;
        let keyslots_end = keyslots_start + keyslots_len;
        let slot_nodes = Node::root(&json, "keyslots")?.numbered(Self::SLOTS)?;
        let segment_nodes = Node::root(&json, "segments")?.numbered(u32::MAX)?;
        // A disk that is being encrypted anew has more segments.
        let [(0, segment_node)] = segment_nodes.as_slice() else {
            return Err(LuksError::Metadata("segments".to_owned()));
        };
        // Tokens are kept, whatever they are, but they are for slots that are there.
        for (_, token) in Node::root(&json, "tokens")?.numbered(Self::SLOTS)? {
            token.member("keyslots")?.names_of(&slot_nodes)?;
        }
        let digests_node = Node::root(&json, "digests")?;
        let (digest_name, digest_node, slots_for_disk) = find_digest(&digests_node, &slot_nodes, &segment_nodes)?;
        let mut slots = BTreeMap::new();
        for (number, node) in &slot_nodes {
            let slot = Slot2::parse(node, slots_for_disk.contains(number))?;
            if slot.is_for_disk {
                // The disk's cipher takes such keys.
                encryption(segment_node, slot.key_len)?;
            }
            slots.insert(*number, slot);
        }
        check_areas(&slots, keyslots_start..keyslots_end)?;
        if !slots.values().any(|slot| slot.is_for_disk) {
            // Nobody says how long the key is, so the cipher has to have keys of some length.
            let tried = [16, 24, 32, 48, 64].map(|len| encryption(segment_node, len));
            let [.., last] = &tried;
            tried.iter().find(|spec| spec.is_ok()).unwrap_or(last).clone()?;
        }
        let mut lengths = slots.values().filter(|slot| slot.is_for_disk).map(|slot| slot.key_len);
        let first = lengths.next();
        if let Some(other) = lengths.find(|len| Some(*len) != first) {
            return Err(LuksError::KeyLength(other));
        }
        let segment = Segment2::parse(segment_node)?;
        if !is_detached && segment.offset < keyslots_end {
            return Err(LuksError::Range { field: "payload offset", value: segment.offset });
        }
        let digest = Digest2::parse(&digest_node)?;
        let given_up = Vec::new();
        Ok(Self { fields, is_detached, stale, json, slots, segment, digest_name, digest, keyslots_end, given_up })
    }

    /// The disk's name.
    pub fn uuid(&self) -> &str {
        &self.fields.uuid
    }

    /// What its owner calls it, or nothing.
    pub fn label(&self) -> &str {
        &self.fields.label
    }

    /// What its owner calls where it belongs, or nothing.
    pub fn subsystem(&self) -> &str {
        &self.fields.subsystem
    }

    /// How often the header was changed.
    pub fn seqid(&self) -> u64 {
        self.fields.seqid
    }

    /// The disk's data.
    pub fn segment(&self) -> &Segment2 {
        &self.segment
    }

    /// How the disk's data is encrypted. The header says how long its key is with each of its slots, so without any this is not known.
    pub fn spec(&self) -> Option<CipherSpec> {
        let slot = self.slots.values().find(|slot| slot.is_for_disk)?;
        self.spec_for(slot.key_len).ok()
    }

    /// How the disk's data is encrypted with a key of `key_len` bytes.
    ///
    /// # Errors
    /// The cipher has no such keys.
    pub fn spec_for(&self, key_len: usize) -> Result<CipherSpec, LuksError> {
        let (family, mode) = self.segment.encryption.split_once('-').unwrap_or_default();
        Ok(CipherSpec::from_luks(family, mode, key_len)?)
    }

    /// The hash by which a key is known to be the right one; new slots have the same.
    pub fn hash(&self) -> Hash {
        self.digest.hash
    }

    /// How often that is computed to know a key: iterations of PBKDF2.
    pub fn digest_iterations(&self) -> u32 {
        self.digest.iterations
    }

    /// The slots that have keys, by their numbers.
    pub fn slots(&self) -> &BTreeMap<u32, Slot2> {
        &self.slots
    }

    /// The slots that a password is tried with if none is named, in that order: those that are preferred, then those that are normal, by their numbers.
    pub fn order_to_try(&self) -> Vec<u32> {
        let with = |priority| {
            let is_it = move |slot: &Slot2| slot.is_for_disk && slot.priority == priority;
            self.slots.iter().filter(move |(_, slot)| is_it(slot)).map(|(number, _)| *number)
        };
        with(Priority::Prefer).chain(with(Priority::Normal)).collect()
    }

    /// The lowest number that no slot has.
    pub fn free_slot(&self) -> Option<u32> {
        (0..Self::SLOTS).find(|number| !self.slots.contains_key(number))
    }

    /// Where a slot's key material lies: bytes from the start of the header, whole sectors. `None` is for a slot that has none.
    pub fn material(&self, slot: u32) -> Option<Range<u64>> {
        self.slots.get(&slot).map(Slot2::material)
    }

    /// The disk's key, if `password` is the one for the slot, whose [key material](Self::material) is `material`. `None` is for another password, and for a slot that has no key, or one
    /// that is no disk's. This computes for as long as the header says, for an hour or so at most, and takes the memory that it says, but no more than `memory_max` KiB.
    ///
    /// # Errors
    /// `material` has another length than the slot's; there is not so much memory, or it is more than is allowed.
    pub fn unlock(
        &self,
        slot: u32,
        password: &[u8],
        material: &[u8],
        memory_max: u32,
    ) -> Result<Option<Secret>, LuksError> {
        let Some(it) = self.slots.get(&slot).filter(|it| it.is_for_disk) else { return Ok(None) };
        if material.len() as u64 != material::len(it.key_len) {
            return Err(LuksError::Material(slot as usize));
        }
        let memory = it.kdf.cost.memory();
        if memory > memory_max {
            return Err(LuksError::SlotMemory { slot, memory, limit: memory_max });
        }
        let derived = it.kdf.derive(password, it.spec.key_len())?;
        let key = material::open(it.spec, &derived, it.hash, material, it.key_len)?;
        Ok(self.is_key(&key)?.then_some(key))
    }

    /// Whether this is the disk's key.
    ///
    /// # Errors
    /// None: the header was checked when it was made.
    pub fn is_key(&self, key: &Secret) -> Result<bool, LuksError> {
        let Digest2 { hash, iterations, salt, digest } = &self.digest;
        Ok(pbkdf2(*hash, key.expose(), salt, *iterations, digest.len())? == Secret::new(digest.clone()))
    }

    /// The header with one more slot, by which `password` leads to `key`, and what lies at its place. That is the first where there is room, and where no slot was when the header was
    /// read: so the copies on the disk stay true until they are written, whatever was removed and sealed in between. Whether it is the disk's key is not computed.
    ///
    /// # Errors
    /// The slot is in use, or there is none of that number; there is no room for it; the key has another length than the disk's; the cost is out of range, or there is not so much memory; or
    /// there are no random numbers: what `random`, which fills what it is given, says.
    pub fn seal<E: From<LuksError>>(
        &self,
        slot: u32,
        password: &[u8],
        key: &Secret,
        cost: KdfCost,
        mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Sealed2, E> {
        if slot >= Self::SLOTS {
            return Err(LuksError::SlotNumber(slot).into());
        }
        if self.slots.contains_key(&slot) {
            return Err(LuksError::SlotInUse(slot).into());
        }
        let key_len = key.expose().len();
        if self.spec().is_some_and(|spec| spec.key_len() != key_len) {
            return Err(LuksError::KeyLength(key_len).into());
        }
        let mut salt = vec![0; SALT_LEN];
        random(&mut salt)?;
        let new = Slot2 {
            priority: Priority::Normal,
            is_for_disk: true,
            key_len,
            kdf: Kdf { cost, salt },
            spec: self.spec_for(key_len)?,
            hash: self.digest.hash,
            area: self.free_area(material::len(key_len).next_multiple_of(AREA_ALIGNMENT))?,
        };
        // The header is checked before anything is computed for it.
        let name = slot.to_string();
        let header = self.changed(|json| {
            json["keyslots"][&name] = new.json();
            let digest = &mut json["digests"][&self.digest_name]["keyslots"];
            digest.as_array_mut().into_iter().for_each(|names| names.push(name.as_str().into()));
        })?;
        let derived = new.kdf.derive(password, new.spec.key_len())?;
        let material = material::seal(new.spec, &derived, new.hash, key, random)?;
        Ok(Sealed2 { header, material })
    }

    /// The header without a slot. Tokens that were for it stay, and are for one slot less.
    ///
    /// # Errors
    /// There is no such slot.
    pub fn remove(&self, slot: u32) -> Result<Self, LuksError> {
        let gone = self.slots.get(&slot).ok_or(LuksError::SlotNumber(slot))?.area.clone();
        let name = slot.to_string();
        let mut header = self.changed(|json| {
            let objects = |value: &mut Value| value.as_object_mut().map(std::mem::take).unwrap_or_default();
            let mut slots = objects(&mut json["keyslots"]);
            slots.shift_remove(&name);
            json["keyslots"] = slots.into();
            for of in ["digests", "tokens"] {
                let users = json[of].as_object_mut().into_iter().flatten().map(|(_, user)| user);
                let names = users.filter_map(|user| user.get_mut("keyslots")?.as_array_mut());
                names.for_each(|names| names.retain(|other| other.as_str() != Some(&name)));
            }
            // What is known of a key that is nowhere is nobody's.
            let mut digests = objects(&mut json["digests"]);
            digests.retain(|_, digest| digest["keyslots"] != json!([]) || digest["segments"] != json!([]));
            json["digests"] = digests.into();
        })?;
        header.given_up.push(gone);
        Ok(header)
    }

    /// The header after a change, which is checked as one that is read.
    fn changed(&self, change: impl FnOnce(&mut Map<String, Value>)) -> Result<Self, LuksError> {
        let (mut fields, mut json) = (self.fields.clone(), self.json.clone());
        let seqid = fields.seqid.checked_add(1);
        fields.seqid = seqid.ok_or(LuksError::Range { field: "sequence number", value: fields.seqid })?;
        change(&mut json);
        let read = Self::read(fields, json, self.is_detached, self.stale)?;
        read.text()?;
        Ok(Self { given_up: self.given_up.clone(), ..read })
    }

    /// The first place of so many bytes that no slot has, or had.
    fn free_area(&self, len: u64) -> Result<Range<u64>, LuksError> {
        let slots = self.slots.values().map(|slot| &slot.area);
        let mut taken: Vec<_> = slots.chain(&self.given_up).cloned().collect();
        taken.sort_by_key(|area| area.start);
        let mut start = 2 * self.fields.size as u64;
        for area in taken {
            if start + len <= area.start {
                break;
            }
            start = start.max(area.end.next_multiple_of(AREA_ALIGNMENT));
        }
        if start + len <= self.keyslots_end { Ok(start..start + len) } else { Err(LuksError::SlotRoom) }
    }

    /// The copy that was broken or old when the header was read, so that it is to be written even if nothing was changed.
    pub fn stale(&self) -> Option<HeaderCopy> {
        self.stale
    }

    /// In which order copies are written: the one that is not good first, so that a good one is there at each moment.
    pub fn order(&self) -> [HeaderCopy; 2] {
        match self.stale {
            Some(HeaderCopy::Secondary) => [HeaderCopy::Secondary, HeaderCopy::Primary],
            _ => [HeaderCopy::Primary, HeaderCopy::Secondary],
        }
    }

    /// Where a copy lies: bytes from the start of the header.
    pub fn place(&self, copy: HeaderCopy) -> Range<u64> {
        let start = binary::offset(&self.fields, copy) as u64;
        start..start + self.fields.size as u64
    }

    /// What stands at a copy's [place](Self::place).
    ///
    /// # Errors
    /// The metadata has no room, which can be only for a header that somebody else wrote in fewer characters; or there are no random numbers: what `random`, which fills what it is given,
    /// says.
    pub fn bytes<E: From<LuksError>>(
        &self,
        copy: HeaderCopy,
        random: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<u8>, E> {
        let mut salt = [0; binary::SALT_LEN];
        random(&mut salt)?;
        Ok(binary::bytes(&self.fields, &self.text()?, copy, &salt))
    }

    /// The metadata as text, which has room for its end.
    fn text(&self) -> Result<Vec<u8>, LuksError> {
        let text = serde_json::to_vec(&self.json).map_err(|_| LuksError::MetadataRoom)?;
        if text.len() < self.fields.size - binary::LEN { Ok(text) } else { Err(LuksError::MetadataRoom) }
    }
}

impl fmt::Debug for Header2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Tokens are somebody else's, who knows what is in them.
        let Self { fields, stale, slots, segment, .. } = self;
        let mut debug = f.debug_struct("Header2");
        debug.field("fields", fields).field("stale", stale).field("slots", slots).field("segment", segment);
        debug.finish_non_exhaustive()
    }
}

/// The bytes of the keyslots area, the specification's "Config Object". What else is in it is kept, but for what has to be understood.
fn check_config(config: &Node<'_>, size: usize) -> Result<u64, LuksError> {
    let (json_size, keyslots_size) = (config.member("json_size")?, config.member("keyslots_size")?);
    let (json_len, keyslots_len) = (json_size.long()?, keyslots_size.long()?);
    if json_len != (size - binary::LEN) as u64 {
        return Err(json_size.out_of_range(json_len));
    }
    if keyslots_len > KEYSLOTS_MAX || !keyslots_len.is_multiple_of(AREA_ALIGNMENT) {
        return Err(keyslots_size.out_of_range(keyslots_len));
    }
    if let Some(requirements) = config.optional("requirements")? {
        requirements.refuse_any("mandatory")?;
    }
    Ok(keyslots_len)
}

/// The only digest that is for the segment, with its name and slots. Each slot is for one digest, whether that is it or not.
fn find_digest<'a>(
    digests: &Node<'a>,
    slots: &[(u32, Node<'a>)],
    segments: &[(u32, Node<'a>)],
) -> Result<(String, Node<'a>, Vec<u32>), LuksError> {
    let (mut found, mut seen) = (None, BTreeMap::new());
    for (number, digest) in digests.numbered(Header2::SLOTS)? {
        let keyslots = digest.member("keyslots")?;
        let names = keyslots.names_of(slots)?;
        for name in &names {
            if seen.insert(*name, number).is_some_and(|other| other != number) {
                return Err(keyslots.malformed());
            }
        }
        let is_for_segment = !digest.member("segments")?.names_of(segments)?.is_empty();
        if is_for_segment && found.replace((number.to_string(), digest, names)).is_some() {
            return Err(digests.malformed());
        }
    }
    match found {
        Some(found) if seen.len() == slots.len() => Ok(found),
        _ => Err(digests.malformed()),
    }
}

/// Whether all keys lie apart, and where they should.
fn check_areas(slots: &BTreeMap<u32, Slot2>, keyslots: Range<u64>) -> Result<(), LuksError> {
    for (number, slot) in slots {
        if slot.area.start < keyslots.start {
            return Err(LuksError::SlotOverHeader(*number as usize));
        }
        if slot.area.end > keyslots.end {
            return Err(LuksError::SlotOutside(*number as usize));
        }
        let meets = |other: &Slot2| slot.area.start < other.area.end && other.area.start < slot.area.end;
        if let Some((other, _)) = slots.range(..number).find(|(_, other)| meets(other)) {
            return Err(LuksError::SlotsOverlap(*other as usize, *number as usize));
        }
    }
    Ok(())
}

impl Segment2 {
    fn parse(node: &Node<'_>) -> Result<Self, LuksError> {
        node.member("type")?.is_one_of(&["crypt"])?;
        if let Some(integrity) = node.optional("integrity")? {
            let kind = integrity.member("type")?;
            return Err(kind.unsupported(kind.word()?));
        }
        node.refuse_any("flags")?;
        let sector_node = node.member("sector_size")?;
        let sector = sector_node.number(512..=4096)?;
        if !sector.is_power_of_two() {
            return Err(sector_node.out_of_range(sector.into()));
        }
        let whole_sectors = |node: &Node<'_>, value: u64| {
            if value.is_multiple_of(sector.into()) { Ok(value) } else { Err(node.out_of_range(value)) }
        };
        let (offset_node, size) = (node.member("offset")?, node.member("size")?);
        let offset = whole_sectors(&offset_node, offset_node.long()?)?;
        let len = match size.word()? {
            "dynamic" => None,
            "0" => return Err(size.out_of_range(0)),
            _ => Some(whole_sectors(&size, size.long()?)?),
        };
        // Nothing ends beyond what files have.
        if i64::try_from(offset).ok().and_then(|offset| offset.checked_add_unsigned(len.unwrap_or(0))).is_none() {
            return Err(offset_node.out_of_range(offset));
        }
        let encryption = node.member("encryption")?.word()?.to_owned();
        Ok(Self { offset, len, sector: sector as usize, first: node.member("iv_tweak")?.long()?, encryption })
    }
}

impl Digest2 {
    fn parse(node: &Node<'_>) -> Result<Self, LuksError> {
        node.member("type")?.is_one_of(&["pbkdf2"])?;
        Ok(Self {
            hash: node.member("hash")?.hash()?,
            iterations: node.member("iterations")?.number(1..=Header1::ITERATIONS_MAX)?,
            salt: node.member("salt")?.bytes(8..=64)?,
            // Of a header that was of LUKS1 it is as long as there: 20. A short one would fit any key.
            digest: node.member("digest")?.bytes(20..=64)?,
        })
    }
}

/// A header that is to be made.
#[derive(Clone, Debug)]
pub struct NewHeader2 {
    /// How the disk is to be encrypted.
    pub spec: CipherSpec,
    /// Bytes of a sector: 512, 1024, 2048 or 4096.
    pub sector: usize,
    /// The hash of the digest and of slots' anti-forensic splits.
    pub hash: Hash,
    /// The disk's name, 36 characters.
    pub uuid: String,
    /// What its owner calls it, 47 bytes at most, or nothing.
    pub label: String,
    /// Iterations for the digest of the key.
    pub digest_iterations: u32,
    /// Whether the data begins at the start of another file.
    pub is_detached: bool,
}

impl NewHeader2 {
    /// The header of a disk with that key, without a slot: 16 KiB for each copy, 16 MiB with all that is before the data. None of its copies is on a disk yet, so what was there before counts until
    /// both are written.
    ///
    /// # Errors
    /// A text is too long, a number is out of range, the key does not fit the cipher, or there are no random numbers: what `random`, which fills what it is given, says.
    pub fn header<E: From<LuksError>>(
        self,
        key: &Secret,
        mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Header2, E> {
        if key.expose().len() != self.spec.key_len() {
            return Err(LuksError::KeyLength(key.expose().len()).into());
        }
        let Self { spec, sector, hash, uuid, label, digest_iterations: iterations, is_detached } = self;
        let fields = Fields { size: NEW_SIZE, seqid: 1, label, uuid, subsystem: String::new() };
        fields.check()?;
        let mut salt = [0; SALT_LEN];
        random(&mut salt)?;
        let digest = pbkdf2(hash, key.expose(), &salt, iterations, hash.len()).map_err(LuksError::from)?;
        let json = json!({
            "keyslots": {},
            "tokens": {},
            "segments": { "0": {
                "type": "crypt",
                "offset": if is_detached { 0 } else { NEW_PAYLOAD }.to_string(),
                "size": "dynamic",
                "iv_tweak": "0",
                "encryption": encryption_name(&spec),
                "sector_size": sector,
            } },
            "digests": { "0": {
                "type": "pbkdf2",
                "keyslots": [],
                "segments": ["0"],
                "hash": hash.name(),
                "iterations": iterations,
                "salt": base64(&salt),
                "digest": base64(digest.expose()),
            } },
            "config": {
                "json_size": (NEW_SIZE - binary::LEN).to_string(),
                "keyslots_size": (NEW_PAYLOAD - 2 * NEW_SIZE as u64).to_string(),
            },
        });
        let json = match json {
            Value::Object(json) => json,
            _ => Map::new(),
        };
        Ok(Header2::read(fields, json, is_detached, None)?)
    }
}
