//! Encrypted volumes: from the bytes of a header and a password to a cipher. Where the header lies is its driver's business; which secret it is, the user's.
//!
//! What takes long (to derive a key from a password is meant to) runs in the pool. [`new`] makes volumes, [`slots`] changes who may open one.

pub(crate) mod new;
pub(crate) mod slots;

use block_common::IoResult;
use block_crypt::{Hash, Secret, SectorCipher};
use block_gs::{GlobalState, GraphError, GraphResult};
use block_luks_format::{Header1, LuksError, SlotState};

/// What the options of an encrypted volume say of it, and its header.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LuksHeader {
    /// LUKS1.
    V1(Header1),
}

/// What is known of a key slot from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// Whether a password leads to the key through it.
    pub active: bool,
    /// How often its password is hashed, if it is active.
    pub iterations: Option<u32>,
    /// Where its key material lies in the header, in bytes.
    pub key_offset: u64,
    /// How many times as long as the key the material is, if it is active.
    pub stripes: Option<u32>,
}

/// What is known of a volume from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// The cipher with its length of keys: `aes-256`.
    pub cipher: &'static str,
    /// Its mode.
    pub mode: &'static str,
    /// Where initialisation vectors come from, if there are any.
    pub iv: Option<&'static str>,
    /// The hash that they take.
    pub iv_hash: Option<&'static str>,
    /// The hash of passwords.
    pub hash: &'static str,
    /// The volume's name.
    pub uuid: String,
    /// Where the data begins, in bytes.
    pub payload_offset: u64,
    /// How often the key is hashed for its digest.
    pub key_iterations: u32,
    /// The key slots.
    pub slots: Vec<SlotInfo>,
}

/// A header, and the key material of the slots that have some.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) header: LuksHeader,
    materials: Vec<(usize, Vec<u8>)>,
}

impl LuksHeader {
    /// What is to be told of it.
    pub fn info(&self) -> VolumeInfo {
        let Self::V1(header) = self;
        let spec = header.spec;
        let slots = header.slots.iter().enumerate().map(|(index, slot)| {
            let iterations = match slot.state {
                SlotState::Enabled { iterations, .. } => Some(iterations),
                SlotState::Disabled => None,
            };
            let key_offset = header.material(index).start;
            let stripes = iterations.map(|_| Header1::STRIPES);
            SlotInfo { active: slot.is_enabled(), iterations, key_offset, stripes }
        });
        VolumeInfo {
            cipher: spec.cipher.name(),
            mode: spec.mode.name(),
            iv: spec.iv.map(|iv| iv.name()),
            iv_hash: match spec.iv {
                Some(block_crypt::IvGen::Essiv(hash)) => Some(Hash::name(hash)),
                _ => None,
            },
            hash: header.hash.name(),
            uuid: header.uuid.clone(),
            payload_offset: header.payload_offset(),
            key_iterations: header.digest_iterations,
            slots: slots.collect(),
        }
    }

    /// Where the data begins: bytes from the start of the file.
    pub(crate) fn payload(&self) -> u64 {
        let Self::V1(header) = self;
        header.payload_offset()
    }

    /// Bytes of the data, if they do not end with the file.
    pub(crate) fn size(&self) -> Option<u64> {
        let Self::V1(_) = self;
        None
    }

    /// Bytes of a sector.
    pub(crate) fn sector(&self) -> u32 {
        let Self::V1(_) = self;
        SectorCipher::UNIT as u32
    }

    /// The number of the first sector.
    pub(crate) fn first_sector(&self) -> u64 {
        let Self::V1(_) = self;
        0
    }
}

impl Volume {
    /// The header that `read` finds (from an offset, so many bytes, or fewer where the file ends), and the material of its slots if it is going to be unlocked.
    ///
    /// # Errors
    /// What `read` answered; or what is wrong with the header.
    pub(crate) async fn read<F: Future<Output = IoResult<Vec<u8>>>>(
        read: impl Fn(u64, usize) -> F,
        is_detached: bool,
        to_unlock: bool,
    ) -> IoResult<Result<Self, LuksError>> {
        let header = match Header1::parse(&read(0, Header1::LEN).await?, is_detached) {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let mut materials = Vec::new();
        for slot in (0..Header1::SLOTS).filter(|slot| to_unlock && header.slots[*slot].is_enabled()) {
            let place = header.material(slot);
            materials.push((slot, read(place.start, (place.end - place.start) as usize).await?));
        }
        Ok(Ok(Self { header: LuksHeader::V1(header), materials }))
    }

    /// The slots that `password` opens, the first of them or all, and the key. This computes for long.
    ///
    /// # Errors
    /// A slot's material is cut off by the file's end.
    fn try_slots(&self, password: &Secret, all: bool) -> Result<(Vec<usize>, Option<Secret>), LuksError> {
        let LuksHeader::V1(header) = &self.header;
        let (mut slots, mut found) = (Vec::new(), None);
        for (slot, material) in &self.materials {
            if let Some(key) = header.unlock(*slot, password.expose(), material)? {
                slots.push(*slot);
                found = Some(key);
                if !all {
                    break;
                }
            }
        }
        Ok((slots, found))
    }

    /// The key that `password` leads to.
    ///
    /// # Errors
    /// It leads to none.
    pub(crate) async fn unlock(self, gs: &GlobalState, password: Secret) -> GraphResult<(Self, Secret)> {
        let (this, tried) = self.try_in_pool(gs, password, false).await?;
        match tried {
            (_, Some(key)) => Ok((this, key)),
            (_, None) => Err(GraphError::Open("Invalid password, cannot unlock any keyslot".into())),
        }
    }

    async fn try_in_pool(
        self,
        gs: &GlobalState,
        password: Secret,
        all: bool,
    ) -> GraphResult<(Self, (Vec<usize>, Option<Secret>))> {
        let tried = gs.pool().run(move || {
            let tried = self.try_slots(&password, all);
            (self, tried)
        });
        let (this, tried) = tried.await.ok_or(GraphError::ShuttingDown)?;
        Ok((this, tried.map_err(refused)?))
    }

    /// What encrypts and decrypts the data with `key`.
    ///
    /// # Errors
    /// The key has a length that does not fit, which is no key that was unlocked.
    pub(crate) fn cipher(&self, key: &Secret) -> GraphResult<SectorCipher> {
        let LuksHeader::V1(header) = &self.header;
        SectorCipher::new(header.spec, key.expose()).map_err(|error| refused(error.into()))
    }
}

/// Why an image cannot be opened.
pub(crate) fn refused(error: LuksError) -> GraphError {
    GraphError::Open(error.to_string())
}
