//! Key slots of LUKS2, the specification's "Keyslots Object".

use super::json::{Node, base64};
use crate::error::LuksError;
use crate::header1::Header1;
use crate::material::{self, STRIPES};
use block_crypt::{Argon2Cost, Argon2Kind, CipherSpec, Hash, Secret, argon2, pbkdf2};
use serde_json::{Value, json};
use std::ops::Range;

/// The longest key of a slot: bytes. The ciphers here take 64 at most, but a slot may have a key that is no disk's.
const KEY_LEN_MAX: u32 = 512;
/// The most memory that Argon2 may need, as cryptsetup has it: KiB.
const MEMORY_MAX: u32 = 4 << 20;
/// The most lanes.
const LANES_MAX: u32 = 64;
/// So many KiB are gone over at most for one password, all passes together: more would take hours.
const STEPS_MAX: u64 = 1 << 32;
/// Salts, as bytes: those that are made have 32.
const SALT_MIN: usize = 8;
const SALT_MAX: usize = 64;

/// A key slot of LUKS2: a password's way to the disk's key, or to a key that is no disk's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot2 {
    /// When it is tried.
    pub priority: Priority,
    /// Whether its key is the disk's. Others can be kept here as well; nobody unlocks a disk with them.
    pub is_for_disk: bool,
    /// Bytes of its key.
    pub key_len: usize,
    /// What a key is derived from a password with.
    pub kdf: Kdf,
    /// What the derived key encrypts the material with.
    pub spec: CipherSpec,
    /// The hash of the anti-forensic split.
    pub hash: Hash,
    /// The place that is this slot's alone: bytes from the start of the header. The key material lies at its beginning.
    pub area: Range<u64>,
}

/// When a slot is tried with a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// When it is named, and not otherwise.
    Ignore,
    /// In its turn.
    Normal,
    /// Before those that are normal.
    Prefer,
}

/// How a key is derived from a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kdf {
    /// With what, and for how long.
    pub cost: KdfCost,
    /// With what salt.
    pub salt: Vec<u8>,
}

/// What derives a key from a password, and what that costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KdfCost {
    /// PBKDF2.
    Pbkdf2 {
        /// The hash.
        hash: Hash,
        /// How often; cryptsetup makes 1000 at least.
        iterations: u32,
    },
    /// Argon2.
    Argon2 {
        /// Which of them.
        kind: Argon2Kind,
        /// Its numbers; cryptsetup makes 4 passes over 32 KiB with up to 4 lanes at least.
        cost: Argon2Cost,
    },
}

impl KdfCost {
    /// The memory that it needs: KiB.
    pub fn memory(&self) -> u32 {
        match self {
            Self::Pbkdf2 { .. } => 0,
            Self::Argon2 { cost, .. } => cost.memory,
        }
    }
}

impl Kdf {
    pub(super) fn derive(&self, password: &[u8], len: usize) -> Result<Secret, LuksError> {
        Ok(match self.cost {
            KdfCost::Pbkdf2 { hash, iterations } => pbkdf2(hash, password, &self.salt, iterations, len)?,
            KdfCost::Argon2 { kind, cost } => argon2(kind, password, &self.salt, cost, len)?,
        })
    }

    /// What the member `kdf` of a slot says.
    fn parse(node: &Node<'_>) -> Result<Self, LuksError> {
        let kind = node.member("type")?;
        let argon2 = |kind| {
            let number = |name, max| node.member(name)?.number(1..=max);
            let lanes = number("cpus", LANES_MAX)?;
            let memory = node.member("memory")?;
            let cost =
                Argon2Cost { time: number("time", u32::MAX)?, memory: memory.number(8 * lanes..=MEMORY_MAX)?, lanes };
            if u64::from(cost.time) * u64::from(cost.memory) > STEPS_MAX {
                return Err(node.member("time")?.out_of_range(cost.time.into()));
            }
            Ok(KdfCost::Argon2 { kind, cost })
        };
        let cost = match kind.word()? {
            "pbkdf2" => KdfCost::Pbkdf2 {
                hash: node.member("hash")?.hash()?,
                iterations: node.member("iterations")?.number(1..=Header1::ITERATIONS_MAX)?,
            },
            "argon2i" => argon2(Argon2Kind::I)?,
            "argon2id" => argon2(Argon2Kind::Id)?,
            other => return Err(kind.unsupported(other)),
        };
        Ok(Self { cost, salt: node.member("salt")?.bytes(SALT_MIN..=SALT_MAX)? })
    }

    fn json(&self) -> Value {
        let salt = base64(&self.salt);
        match self.cost {
            KdfCost::Pbkdf2 { hash, iterations } => {
                json!({ "type": "pbkdf2", "hash": hash.name(), "iterations": iterations, "salt": salt })
            }
            KdfCost::Argon2 { kind, cost: Argon2Cost { time, memory, lanes } } => {
                json!({ "type": kind.name(), "time": time, "memory": memory, "cpus": lanes, "salt": salt })
            }
        }
    }
}

impl Slot2 {
    /// What a member of `keyslots` says.
    pub(super) fn parse(node: &Node<'_>, is_for_disk: bool) -> Result<Self, LuksError> {
        node.member("type")?.is_one_of(&["luks2"])?;
        let key_len = node.member("key_size")?.number(1..=KEY_LEN_MAX)? as usize;
        let priority = match node.optional("priority")?.map(|priority| priority.number(0..=2)).transpose()? {
            Some(0) => Priority::Ignore,
            None | Some(1) => Priority::Normal,
            Some(_) => Priority::Prefer,
        };
        let (af, area) = (node.member("af")?, node.member("area")?);
        af.member("type")?.is_one_of(&["luks1"])?;
        // All headers that are made have as many; others could ask for gigabytes.
        af.member("stripes")?.number(STRIPES..=STRIPES)?;
        area.member("type")?.is_one_of(&["raw"])?;
        let (offset, size) = (area.member("offset")?, area.member("size")?);
        let (start, len) = (offset.long()?, size.long()?);
        if !start.is_multiple_of(material::SECTOR) {
            return Err(offset.out_of_range(start));
        }
        let end =
            start.checked_add(len).filter(|_| len >= material::len(key_len)).ok_or_else(|| size.out_of_range(len))?;
        Ok(Self {
            priority,
            is_for_disk,
            key_len,
            kdf: Kdf::parse(&node.member("kdf")?)?,
            spec: encryption(&area, area.member("key_size")?.number(1..=KEY_LEN_MAX)? as usize)?,
            hash: af.member("hash")?.hash()?,
            area: start..end,
        })
    }

    /// The same as JSON.
    pub(super) fn json(&self) -> Value {
        let mut slot = json!({
            "type": "luks2",
            "key_size": self.key_len,
            "af": { "type": "luks1", "stripes": STRIPES, "hash": self.hash.name() },
            "area": {
                "type": "raw",
                "offset": self.area.start.to_string(),
                "size": (self.area.end - self.area.start).to_string(),
                "encryption": encryption_name(&self.spec),
                "key_size": self.spec.key_len(),
            },
            "kdf": self.kdf.json(),
        });
        match self.priority {
            Priority::Ignore => slot["priority"] = 0.into(),
            Priority::Normal => {}
            Priority::Prefer => slot["priority"] = 2.into(),
        }
        slot
    }

    /// Where the key material lies: bytes from the start of the header, whole sectors.
    pub fn material(&self) -> Range<u64> {
        self.area.start..self.area.start + material::len(self.key_len)
    }
}

/// What the member `encryption` of `node` says, with keys of `key_len` bytes.
pub(super) fn encryption(node: &Node<'_>, key_len: usize) -> Result<CipherSpec, LuksError> {
    let encryption = node.member("encryption")?;
    let name = encryption.word()?;
    let (family, mode) = name.split_once('-').ok_or_else(|| encryption.unsupported(name))?;
    Ok(CipherSpec::from_luks(family, mode, key_len)?)
}

/// How metadata says it.
pub(super) fn encryption_name(spec: &CipherSpec) -> String {
    format!("{}-{}", spec.cipher.family(), spec.luks_mode())
}
