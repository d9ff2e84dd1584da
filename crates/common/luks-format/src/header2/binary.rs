//! The two copies of a LUKS2 header as bytes, the specification's "Binary Header": which of them is good, and what its fields say.

use super::HeaderCopy;
use crate::error::LuksError;
use crate::header1::Header1;
use block_crypt::{CryptError, Hash};

/// Bytes of the binary part: metadata is behind it.
pub(super) const LEN: usize = 4096;
/// Where fields are, and how long texts are.
const VERSION_AT: usize = 6;
const SIZE_AT: usize = 8;
const SEQID_AT: usize = 16;
const LABEL_AT: usize = 24;
const LABEL_LEN: usize = 48;
const CHECKSUM_ALG_AT: usize = 72;
const CHECKSUM_ALG_LEN: usize = 32;
const SALT_AT: usize = 104;
pub(super) const SALT_LEN: usize = 64;
const UUID_AT: usize = 168;
const UUID_LEN: usize = 40;
const SUBSYSTEM_AT: usize = 208;
const SUBSYSTEM_LEN: usize = 48;
const OFFSET_AT: usize = 256;
const CHECKSUM_AT: usize = 448;
const CHECKSUM_LEN: usize = 64;

const VERSION: u16 = 2;
const CHECKSUM: Hash = Hash::Sha256;
/// Bytes of a copy with its metadata, and where the second copy is: the only numbers that there are.
const SIZES: [usize; 9] = [16 << 10, 32 << 10, 64 << 10, 128 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 4 << 20];
/// Bytes of the longest copies there are, both of them.
pub(super) const AREA_MAX: usize = 2 * SIZES[SIZES.len() - 1];

/// What the fields of a copy say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fields {
    /// Bytes of a copy.
    pub(super) size: usize,
    pub(super) seqid: u64,
    pub(super) label: String,
    pub(super) uuid: String,
    pub(super) subsystem: String,
}

/// A copy that is as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Good<'a> {
    pub(super) fields: Fields,
    /// The metadata's text.
    pub(super) json: &'a [u8],
}

const fn magic(copy: HeaderCopy) -> [u8; 6] {
    match copy {
        HeaderCopy::Primary => *b"LUKS\xba\xbe",
        HeaderCopy::Secondary => *b"SKUL\xba\xbe",
    }
}

/// The copy that counts, and the other one if that is not the same.
pub(super) fn find(area: &[u8]) -> Result<(Good<'_>, Option<HeaderCopy>), LuksError> {
    use HeaderCopy::{Primary, Secondary};
    check_version(area)?;
    let first = good_copy(area, 0, Primary);
    let second = match &first {
        Ok(first) => good_copy(area, first.fields.size, Secondary).ok(),
        Err(_) => SIZES.iter().find_map(|at| good_copy(area, *at, Secondary).ok()),
    };
    match (first, second) {
        (Ok(first), Some(second)) if first == second => Ok((first, None)),
        (Ok(first), Some(second)) if first.fields.seqid < second.fields.seqid => Ok((second, Some(Primary))),
        (Ok(first), _) => Ok((first, Some(Secondary))),
        (Err(_), Some(second)) => Ok((second, Some(Primary))),
        (Err(error), None) => Err(error),
    }
}

/// How many bytes have to be there instead of those of `area`, so that [`find`] sees whatever there is.
pub(super) fn wanted(area: &[u8]) -> Option<usize> {
    if area.len() < LEN {
        return Some(LEN);
    }
    // Another version has its own ways.
    check_version(area).ok()?;
    let both = size(area, HeaderCopy::Primary).map(|size| 2 * size).unwrap_or(AREA_MAX);
    let is_enough = area.len() >= both && (area.len() >= AREA_MAX || find(area).is_ok());
    let more = if area.len() < both { both } else { AREA_MAX };
    (!is_enough).then_some(more)
}

/// A header of another version is no broken one of this: what lies behind it is not looked for.
fn check_version(area: &[u8]) -> Result<(), LuksError> {
    match Header1::probe(area) {
        Some(version) if version != VERSION => Err(LuksError::Version(version)),
        _ => Ok(()),
    }
}

/// The first field that is to be known: bytes of the copy at the start of `bytes`.
fn size(bytes: &[u8], copy: HeaderCopy) -> Result<usize, LuksError> {
    if !bytes.starts_with(&magic(copy)) {
        return Err(LuksError::Magic);
    }
    if bytes.len() < LEN {
        return Err(LuksError::Short(bytes.len()));
    }
    let version = u16::from_be_bytes(array(bytes, VERSION_AT));
    if version != VERSION {
        return Err(LuksError::Version(version));
    }
    let size = u64::from_be_bytes(array(bytes, SIZE_AT));
    let known = SIZES.into_iter().find(|known| *known as u64 == size);
    known.ok_or(LuksError::Range { field: "size", value: size })
}

/// The copy at `at`, if it is one.
fn good_copy(area: &[u8], at: usize, copy: HeaderCopy) -> Result<Good<'_>, LuksError> {
    let bytes = area.get(at..).unwrap_or_default();
    let size = size(bytes, copy)?;
    let place = u64::from_be_bytes(array(bytes, OFFSET_AT));
    if place != at as u64 || (copy == HeaderCopy::Secondary && at != size) {
        return Err(LuksError::Range { field: "offset", value: place });
    }
    let bytes = bytes.get(..size).ok_or(LuksError::Short(area.len()))?;
    let algorithm = text(bytes, CHECKSUM_ALG_AT, CHECKSUM_ALG_LEN, "checksum algorithm")?;
    if algorithm != CHECKSUM.name() {
        let name = algorithm.chars().map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect();
        return Err(CryptError::Unknown { what: "a header's checksum", name }.into());
    }
    let sum = checksum(bytes);
    if bytes[CHECKSUM_AT..CHECKSUM_AT + sum.len()] != sum {
        return Err(LuksError::Checksum);
    }
    let fields = Fields {
        size,
        seqid: u64::from_be_bytes(array(bytes, SEQID_AT)),
        label: text(bytes, LABEL_AT, LABEL_LEN, "label")?,
        uuid: text(bytes, UUID_AT, UUID_LEN, "uuid")?,
        subsystem: text(bytes, SUBSYSTEM_AT, SUBSYSTEM_LEN, "subsystem")?,
    };
    let json = &bytes[LEN..];
    let end = json.iter().position(|byte| *byte == 0).ok_or(LuksError::Text("metadata"))?;
    Ok(Good { fields, json: &json[..end] })
}

/// What is written for a copy.
pub(super) fn bytes(fields: &Fields, json: &[u8], copy: HeaderCopy, salt: &[u8; SALT_LEN]) -> Vec<u8> {
    let mut bytes = vec![0; fields.size];
    let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
    put(0, &magic(copy));
    put(VERSION_AT, &VERSION.to_be_bytes());
    put(SIZE_AT, &(fields.size as u64).to_be_bytes());
    put(SEQID_AT, &fields.seqid.to_be_bytes());
    put(LABEL_AT, fields.label.as_bytes());
    put(CHECKSUM_ALG_AT, CHECKSUM.name().as_bytes());
    put(SALT_AT, salt);
    put(UUID_AT, fields.uuid.as_bytes());
    put(SUBSYSTEM_AT, fields.subsystem.as_bytes());
    put(OFFSET_AT, &(offset(fields, copy) as u64).to_be_bytes());
    put(LEN, json);
    let sum = checksum(&bytes);
    bytes[CHECKSUM_AT..CHECKSUM_AT + sum.len()].copy_from_slice(&sum);
    bytes
}

/// Where a copy begins.
pub(super) fn offset(fields: &Fields, copy: HeaderCopy) -> usize {
    match copy {
        HeaderCopy::Primary => 0,
        HeaderCopy::Secondary => fields.size,
    }
}

impl Fields {
    /// Whether texts have room for their ends.
    pub(super) fn check(&self) -> Result<(), LuksError> {
        let texts = [
            (&self.label, LABEL_LEN, "label"),
            (&self.uuid, UUID_LEN, "uuid"),
            (&self.subsystem, SUBSYSTEM_LEN, "subsystem"),
        ];
        match texts.into_iter().find(|(text, len, _)| text.len() >= *len || text.contains('\0')) {
            Some((_, _, name)) => Err(LuksError::Text(name)),
            None => Ok(()),
        }
    }
}

/// Of all the copy's bytes, with zeroes where itself may be.
fn checksum(bytes: &[u8]) -> Vec<u8> {
    let (before, behind) = (&bytes[..CHECKSUM_AT], &bytes[CHECKSUM_AT + CHECKSUM_LEN..]);
    CHECKSUM.digest(&[before, &[0; CHECKSUM_LEN], behind])
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a field lies within the binary part")
}

fn text(bytes: &[u8], at: usize, len: usize, what: &'static str) -> Result<String, LuksError> {
    let field = &bytes[at..at + len];
    let end = field.iter().position(|byte| *byte == 0).ok_or(LuksError::Text(what))?;
    String::from_utf8(field[..end].to_vec()).map_err(|_| LuksError::Text(what))
}
