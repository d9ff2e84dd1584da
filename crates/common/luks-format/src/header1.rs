//! LUKS1.

use crate::error::LuksError;
use crate::material::{self, SECTOR, STRIPES};
use block_crypt::{CipherSpec, Hash, Secret, pbkdf2};
use std::ops::Range;

/// Section 4.1, figure 1: where fields are, and how long texts are.
const MAGIC: [u8; 6] = *b"LUKS\xba\xbe";
const VERSION_AT: usize = 6;
const CIPHER_AT: usize = 8;
const MODE_AT: usize = 40;
const HASH_AT: usize = 72;
const TEXT_LEN: usize = 32;
const PAYLOAD_AT: usize = 104;
const KEY_LEN_AT: usize = 108;
const DIGEST_AT: usize = 112;
const SALT_AT: usize = 132;
const ITERATIONS_AT: usize = 164;
const UUID_AT: usize = 168;
const UUID_LEN: usize = 40;
const SLOTS_AT: usize = 208;
const SLOT_LEN: usize = 48;

const DIGEST_LEN: usize = 20;
const SALT_LEN: usize = 32;
/// Whether a slot has a key, section 4.1, figure 2.
const ENABLED: u32 = 0x00ac_71f3;
const DISABLED: u32 = 0x0000_dead;
/// Where slots begin in new headers, and what their keys' places are multiples of: bytes.
const SLOT_ALIGNMENT: u64 = 4096;
/// The longest key of the ciphers that are known here: two of 32 bytes.
const KEY_LEN_MAX: u32 = 64;

/// A key slot: a password's way to the disk's key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot1 {
    /// Whether there is a password for it.
    pub state: SlotState,
    /// Where its key material lies: 512-byte sectors from the start of the header.
    pub offset: u32,
}

/// Whether a slot has a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// It has none.
    Disabled,
    /// It has one, for a password.
    Enabled {
        /// Iterations of PBKDF2.
        iterations: u32,
        /// PBKDF2's salt.
        salt: [u8; SALT_LEN],
    },
}

impl Slot1 {
    /// Whether it has a key.
    pub fn is_enabled(&self) -> bool {
        matches!(self.state, SlotState::Enabled { .. })
    }
}

/// A header of LUKS1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header1 {
    /// How the disk is encrypted, and the key material of slots.
    pub spec: CipherSpec,
    /// The hash of PBKDF2 and of the anti-forensic split.
    pub hash: Hash,
    /// Where the disk's data begins: 512-byte sectors from the start of the header, or of the file that has none.
    pub payload: u32,
    /// By what a key is known to be the right one: PBKDF2 of it.
    pub digest: [u8; DIGEST_LEN],
    /// The salt of that.
    pub digest_salt: [u8; SALT_LEN],
    /// The iterations of that.
    pub digest_iterations: u32,
    /// The disk's name.
    pub uuid: String,
    /// The key slots.
    pub slots: [Slot1; Header1::SLOTS],
}

/// What is written to put a key into a slot.
#[derive(Debug)]
pub struct Sealed {
    /// What the header says of it.
    pub state: SlotState,
    /// What lies at the slot's place.
    pub material: Secret,
}

impl Header1 {
    /// Bytes of a header.
    pub const LEN: usize = SLOTS_AT + Self::SLOTS * SLOT_LEN;
    /// Key slots of a header.
    pub const SLOTS: usize = 8;
    /// So many iterations are computed at most for one password: more would take hours.
    pub const ITERATIONS_MAX: u32 = 1 << 30;

    /// Whether `bytes` begin as a LUKS header of some version does, and of which.
    pub fn probe(bytes: &[u8]) -> Option<u16> {
        let version = bytes.get(VERSION_AT..CIPHER_AT)?.try_into().ok()?;
        bytes.starts_with(&MAGIC).then(|| u16::from_be_bytes(version))
    }

    /// What the bytes at the start of a disk, or of its detached header, say.
    ///
    /// # Errors
    /// They are no such header, or one that makes no sense, or that has algorithms that are not known here. The field is named.
    pub fn parse(bytes: &[u8], is_detached: bool) -> Result<Self, LuksError> {
        match Self::probe(bytes) {
            None if bytes.len() < Self::LEN => return Err(LuksError::Short(bytes.len())),
            None => return Err(LuksError::Magic),
            Some(1) => {}
            Some(version) => return Err(LuksError::Version(version)),
        }
        let bytes: &[u8; Self::LEN] = bytes.first_chunk().ok_or(LuksError::Short(bytes.len()))?;
        let key_len = number(bytes, KEY_LEN_AT);
        if !(1..=KEY_LEN_MAX).contains(&key_len) {
            return Err(LuksError::Range { field: "key length", value: key_len.into() });
        }
        let (family, mode) =
            (text(bytes, CIPHER_AT, TEXT_LEN, "cipher name")?, text(bytes, MODE_AT, TEXT_LEN, "cipher mode")?);
        let hash = text(bytes, HASH_AT, TEXT_LEN, "hash")?;
        let digest_iterations = number(bytes, ITERATIONS_AT);
        if !(1..=Self::ITERATIONS_MAX).contains(&digest_iterations) {
            return Err(LuksError::Range { field: "master key iterations", value: digest_iterations.into() });
        }
        let mut slots = [const { Slot1 { state: SlotState::Disabled, offset: 0 } }; Self::SLOTS];
        for (index, slot) in slots.iter_mut().enumerate() {
            *slot = parse_slot(bytes, index)?;
        }
        let header = Self {
            spec: CipherSpec::from_luks(&family, &mode, key_len as usize)?,
            hash: Hash::by_name(&hash)?,
            payload: number(bytes, PAYLOAD_AT),
            digest: array(bytes, DIGEST_AT),
            digest_salt: array(bytes, SALT_AT),
            digest_iterations,
            uuid: text(bytes, UUID_AT, UUID_LEN, "uuid")?,
            slots,
        };
        header.check_places(is_detached)?;
        Ok(header)
    }

    /// What stands at the start of a disk, or of its detached header.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut put = |at: usize, what: &[u8]| bytes[at..at + what.len()].copy_from_slice(what);
        put(0, &MAGIC);
        put(VERSION_AT, &1u16.to_be_bytes());
        put(CIPHER_AT, self.spec.cipher.family().as_bytes());
        put(MODE_AT, self.spec.luks_mode().as_bytes());
        put(HASH_AT, self.hash.name().as_bytes());
        put(PAYLOAD_AT, &self.payload.to_be_bytes());
        put(KEY_LEN_AT, &(self.spec.key_len() as u32).to_be_bytes());
        put(DIGEST_AT, &self.digest);
        put(SALT_AT, &self.digest_salt);
        put(ITERATIONS_AT, &self.digest_iterations.to_be_bytes());
        // A text ends with a zero, so one that is too long loses its end.
        put(UUID_AT, &self.uuid.as_bytes()[..self.uuid.len().min(UUID_LEN - 1)]);
        for (index, slot) in self.slots.iter().enumerate() {
            let at = SLOTS_AT + index * SLOT_LEN;
            match &slot.state {
                SlotState::Disabled => put(at, &DISABLED.to_be_bytes()),
                SlotState::Enabled { iterations, salt } => {
                    put(at, &ENABLED.to_be_bytes());
                    put(at + 4, &iterations.to_be_bytes());
                    put(at + 8, salt);
                }
            }
            put(at + 40, &slot.offset.to_be_bytes());
            put(at + 44, &STRIPES.to_be_bytes());
        }
        bytes
    }

    /// Where a slot's key material lies: bytes from the start of the header, whole sectors.
    ///
    /// # Panics
    /// There is no such slot: that is the caller's bug.
    pub fn material(&self, slot: usize) -> Range<u64> {
        let start = u64::from(self.slots[slot].offset) * SECTOR;
        start..start + material::len(self.spec.key_len())
    }

    /// Where the disk's data begins: bytes.
    pub fn payload_offset(&self) -> u64 {
        u64::from(self.payload) * SECTOR
    }

    /// The disk's key, if `password` is the one for the slot, whose [key material](Self::material) is `material`. `None` is for another password, and for a slot
    /// that has none. This computes for as long as the header says, up to [`Self::ITERATIONS_MAX`] iterations for each of slot and digest.
    ///
    /// # Errors
    /// `material` has another length than the slot's.
    ///
    /// # Panics
    /// As [`Header1::material`].
    pub fn unlock(&self, slot: usize, password: &[u8], material: &[u8]) -> Result<Option<Secret>, LuksError> {
        let SlotState::Enabled { iterations, salt } = &self.slots[slot].state else { return Ok(None) };
        let len = self.spec.key_len();
        if material.len() as u64 != material::len(len) {
            return Err(LuksError::Material(slot));
        }
        let derived = pbkdf2(self.hash, password, salt, *iterations, len)?;
        let key = material::open(self.spec, &derived, self.hash, material, len)?;
        Ok(self.is_key(&key)?.then_some(key))
    }

    /// Whether this is the disk's key.
    ///
    /// # Errors
    /// None: the header was checked when it was made.
    pub fn is_key(&self, key: &Secret) -> Result<bool, LuksError> {
        Ok(digest(self.hash, key, &self.digest_salt, self.digest_iterations)? == Secret::new(self.digest.to_vec()))
    }

    /// What is to be written so that `password` leads to `key` through the slot.
    ///
    /// # Errors
    /// The key has another length than the disk's, or there are no random numbers: what `random`, which fills what it is given, says.
    ///
    /// # Panics
    /// As [`Header1::material`].
    pub fn seal<E: From<LuksError>>(
        &self,
        slot: usize,
        password: &[u8],
        key: &Secret,
        iterations: u32,
        mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Sealed, E> {
        assert!(slot < Self::SLOTS, "there is no slot {slot}");
        if key.expose().len() != self.spec.key_len() {
            return Err(LuksError::Material(slot).into());
        }
        let mut salt = [0; SALT_LEN];
        random(&mut salt)?;
        let derived = pbkdf2(self.hash, password, &salt, iterations, self.spec.key_len()).map_err(LuksError::from)?;
        let material = material::seal(self.spec, &derived, self.hash, key, &mut random)?;
        Ok(Sealed { state: SlotState::Enabled { iterations, salt }, material })
    }

    /// Whether everything lies apart.
    fn check_places(&self, is_detached: bool) -> Result<(), LuksError> {
        let header_end = (Self::LEN as u64).next_multiple_of(SECTOR);
        if !is_detached && self.payload_offset() < header_end {
            return Err(LuksError::Range { field: "payload offset", value: self.payload_offset() });
        }
        for slot in 0..Self::SLOTS {
            let place = self.material(slot);
            if place.start < header_end {
                return Err(LuksError::SlotOverHeader(slot));
            }
            if !is_detached && place.end > self.payload_offset() {
                return Err(LuksError::SlotOverPayload(slot));
            }
            let meets = |other: &usize| {
                let other = self.material(*other);
                place.start < other.end && other.start < place.end
            };
            if let Some(other) = (0..slot).find(meets) {
                return Err(LuksError::SlotsOverlap(other, slot));
            }
        }
        Ok(())
    }
}

/// A header that is to be made.
#[derive(Clone, Debug)]
pub struct NewHeader1 {
    /// How the disk is to be encrypted.
    pub spec: CipherSpec,
    /// The hash of PBKDF2 and of the anti-forensic split.
    pub hash: Hash,
    /// The disk's name, 36 characters.
    pub uuid: String,
    /// Iterations for the digest of the key.
    pub digest_iterations: u32,
    /// Whether the data begins at the start of another file.
    pub is_detached: bool,
}

impl NewHeader1 {
    /// The header of a disk with that key. All slots are disabled, and have their places.
    ///
    /// # Errors
    /// The name is too long, there are no iterations, or no random numbers: what `random`, which fills what it is given, says.
    pub fn header<E: From<LuksError>>(
        self,
        key: &Secret,
        mut random: impl FnMut(&mut [u8]) -> Result<(), E>,
    ) -> Result<Header1, E> {
        if self.uuid.len() >= UUID_LEN {
            return Err(LuksError::Text("uuid").into());
        }
        let each = material::len(self.spec.key_len()).next_multiple_of(SLOT_ALIGNMENT);
        let place = |slot: usize| ((SLOT_ALIGNMENT + slot as u64 * each) / SECTOR) as u32;
        let slots = std::array::from_fn(|slot| Slot1 { state: SlotState::Disabled, offset: place(slot) });
        let mut digest_salt = [0; SALT_LEN];
        random(&mut digest_salt)?;
        let of_key = digest(self.hash, key, &digest_salt, self.digest_iterations)?;
        Ok(Header1 {
            spec: self.spec,
            hash: self.hash,
            payload: if self.is_detached { 0 } else { place(Header1::SLOTS) },
            digest: array(of_key.expose(), 0),
            digest_salt,
            digest_iterations: self.digest_iterations,
            uuid: self.uuid,
            slots,
        })
    }
}

fn digest(hash: Hash, key: &Secret, salt: &[u8], iterations: u32) -> Result<Secret, LuksError> {
    Ok(pbkdf2(hash, key.expose(), salt, iterations, DIGEST_LEN)?)
}

fn parse_slot(bytes: &[u8; Header1::LEN], slot: usize) -> Result<Slot1, LuksError> {
    let at = SLOTS_AT + slot * SLOT_LEN;
    let (offset, stripes) = (number(bytes, at + 40), number(bytes, at + 44));
    let range = |field, value: u32| LuksError::SlotRange { slot, field, value: value.into() };
    // All headers that are made have as many; others could ask for gigabytes.
    if stripes != STRIPES {
        return Err(range("stripes", stripes));
    }
    let state = match number(bytes, at) {
        DISABLED => SlotState::Disabled,
        ENABLED => {
            let iterations = number(bytes, at + 4);
            if !(1..=Header1::ITERATIONS_MAX).contains(&iterations) {
                return Err(range("iterations", iterations));
            }
            SlotState::Enabled { iterations, salt: array(bytes, at + 8) }
        }
        value => return Err(LuksError::SlotState { slot, value }),
    };
    Ok(Slot1 { state, offset })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a field lies within the header")
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}

fn text(bytes: &[u8], at: usize, len: usize, what: &'static str) -> Result<String, LuksError> {
    let field = &bytes[at..at + len];
    let end = field.iter().position(|byte| *byte == 0).ok_or(LuksError::Text(what))?;
    String::from_utf8(field[..end].to_vec()).map_err(|_| LuksError::Text(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::material::random;
    use block_crypt::{Cipher, CipherMode, IvGen};
    use proptest::prelude::*;

    fn made(spec: CipherSpec, is_detached: bool) -> (Header1, Secret) {
        let mut key = Secret::zeroed(spec.key_len());
        random(1)(key.expose_mut()).expect("it cannot fail");
        let uuid = "b9cdd2fd-9c66-4ab2-a5c4-64c4ff2c11f8".to_owned();
        let new = NewHeader1 { spec, hash: Hash::Sha256, uuid, digest_iterations: 10, is_detached };
        (new.header(&key, random(2)).expect("it can be made"), key)
    }

    const USUAL: CipherSpec = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };

    #[test]
    fn a_new_header_lies_as_the_fields_programs_lay_it() {
        let (header, _) = made(USUAL, false);
        assert_eq!(header.payload_offset(), 2_068_480);
        assert_eq!((header.material(0).start, header.material(7).start), (4096, 1_810_432));
        let (spec, uuid) = (USUAL, "0".repeat(40));
        let long = NewHeader1 { spec, hash: Hash::Sha256, uuid, digest_iterations: 1, is_detached: false };
        assert_eq!(long.header(&Secret::zeroed(64), random(2)), Err(LuksError::Text("uuid")));
        let cast = CipherSpec { cipher: Cipher::Cast5, mode: CipherMode::Cbc, iv: Some(IvGen::Plain) };
        assert_eq!(made(cast, false).0.payload, 0x408);
        assert_eq!(made(USUAL, true).0.payload, 0);
    }

    #[test]
    fn what_is_sealed_is_unlocked_with_its_password_only() {
        let ivs = [Some(IvGen::Plain64), Some(IvGen::Essiv(Hash::Sha256)), None];
        for (cipher, mode, iv) in [
            (Cipher::Aes256, CipherMode::Xts, ivs[0]),
            // A key whose material is no whole number of sectors.
            (Cipher::Aes192, CipherMode::Cbc, ivs[0]),
            (Cipher::Serpent128, CipherMode::Cbc, ivs[1]),
            (Cipher::Cast5, CipherMode::Ctr, ivs[0]),
            (Cipher::Twofish256, CipherMode::Ecb, ivs[2]),
        ] {
            let (mut header, key) = made(CipherSpec { cipher, mode, iv }, false);
            assert_eq!(header.unlock(3, b"moon", &[]), Ok(None), "it has none");
            let sealed = header.seal(3, b"moon", &key, 7, random(9)).expect("it can be sealed");
            header.slots[3].state = sealed.state;
            let header = Header1::parse(&header.bytes(), false).expect("it is one");
            let material = sealed.material.expose();
            assert_eq!(material.len() as u64, header.material(3).end - header.material(3).start);
            assert_eq!(header.unlock(3, b"moon", material), Ok(Some(key.clone())));
            assert_eq!(header.unlock(3, b"noon", material), Ok(None));
            let mut other = material.to_vec();
            other[12_345] ^= 1;
            assert_eq!(header.unlock(3, b"moon", &other), Ok(None));
            assert_eq!(header.unlock(3, b"moon", &material[1..]), Err(LuksError::Material(3)));
        }
    }

    #[test]
    fn a_header_is_read_as_it_is_written() {
        let (mut header, key) = made(USUAL, false);
        for slot in [0, 7] {
            header.slots[slot].state = header.seal(slot, b"pass", &key, 1, random(4)).expect("it can be sealed").state;
        }
        assert_eq!(Header1::parse(&header.bytes(), false), Ok(header.clone()));
        assert!(header.slots[7].is_enabled() && !header.slots[1].is_enabled());
        assert!(header.is_key(&key) == Ok(true) && header.is_key(&Secret::zeroed(64)) == Ok(false));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let told = |at: usize, bytes: &[u8], is_detached| {
            let (header, key) = made(USUAL, is_detached);
            let mut header = header;
            header.slots[2].state = header.seal(2, b"pass", &key, 5, random(4)).expect("it can be sealed").state;
            let mut all = header.bytes();
            all[at..at + bytes.len()].copy_from_slice(bytes);
            Header1::parse(&all, is_detached).expect_err("it makes no sense").to_string()
        };
        let slot = |index: usize, at: usize| SLOTS_AT + index * SLOT_LEN + at;
        let cases: [(usize, &[u8], &str); 19] = [
            (0, b"M", "Volume is not in LUKS format"),
            (6, &[0, 2], "LUKS version 2 is not supported"),
            (8, &[b'a'; 32], "LUKS header cipher name is not NUL terminated"),
            (8, &[b'a', 0xff, 0], "LUKS header cipher name is not NUL terminated"),
            (40, &[b'x'; 32], "LUKS header cipher mode is not NUL terminated"),
            (72, &[b's'; 32], "LUKS header hash is not NUL terminated"),
            (168, &[b'0'; 40], "LUKS header uuid is not NUL terminated"),
            (72, b"md5\0", "Algorithm 'md5' for a hash is not supported"),
            (108, &[0, 0, 0, 0], "LUKS header key length is out of range: 0"),
            (108, &[0xff; 4], "LUKS header key length is out of range: 4294967295"),
            (108, &[0, 0, 0, 63], "Algorithm 'aes-248' for a cipher is not supported"),
            (164, &[0; 4], "LUKS header master key iterations is out of range: 0"),
            (104, &[0; 4], "LUKS header payload offset is out of range: 0"),
            (slot(1, 0), &[1, 2, 3, 4], "Keyslot 1 state (active/disable) is corrupted: 0x1020304"),
            (slot(2, 4), &[0x7f, 0, 0, 0], "Keyslot 2 iterations is out of range: 2130706432"),
            (slot(3, 44), &[0xff; 4], "Keyslot 3 stripes is out of range: 4294967295"),
            (slot(0, 40), &[0, 0, 0, 1], "Keyslot 0 is overlapping with the LUKS header"),
            (slot(4, 40), &[0xff; 4], "Keyslot 4 is overlapping with the encrypted payload"),
            (slot(5, 40), &[0, 0, 0, 9], "Keyslots 0 and 5 are overlapping in the header"),
        ];
        for (at, bytes, text) in cases {
            assert_eq!(told(at, bytes, false), text, "at {at}");
        }
        let overlap = told(slot(5, 40), &[0, 0, 0, 9], true);
        assert_eq!(overlap, "Keyslots 0 and 5 are overlapping in the header");
        let header = made(USUAL, false).0.bytes();
        assert_eq!(Header1::parse(&header[..591], false), Err(LuksError::Short(591)));
        assert_eq!(Header1::parse(&[], false), Err(LuksError::Short(0)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(changes in prop::collection::vec((0usize..592, any::<u8>()), 0..6), is_detached: bool) {
            let mut bytes = made(USUAL, false).0.bytes();
            changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
            if let Ok(header) = Header1::parse(&bytes, is_detached) {
                prop_assert_eq!(Header1::parse(&header.bytes(), is_detached), Ok(header));
            }
        }
    }
}
