//! Encrypted volumes: from the bytes of a header and a password to a cipher. Where the header lies is its driver's business; which secret it is, the user's.
//!
//! What takes long (to derive a key from a password is meant to) runs in the pool. [`new`] makes volumes, [`slots`] changes who may open one, [`told`] has words for them.

pub(crate) mod new;
pub(crate) mod slots;
pub(crate) mod told;

use block_common::IoResult;
use block_crypt::{CipherSpec, Hash, Secret, SectorCipher};
use block_gs::{GlobalState, GraphError, GraphResult, NodeRef};
use block_luks_format::{Header1, Header2, KdfCost, LuksError, Slot2, SlotState};
use block_qcow2::Qcow2Control;
use std::ops::Range;

/// Bytes that every header begins with.
const HEAD: usize = 4096;

/// What the header of an encrypted volume says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LuksHeader {
    /// LUKS1.
    V1(Header1),
    /// LUKS2.
    V2(Header2),
}

/// What is known of a key slot from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotInfo {
    /// Whether a password leads to a key through it.
    pub active: bool,
    /// How often its password is hashed, if it is active.
    pub iterations: Option<u32>,
    /// Where its key material lies in the header, in bytes, if it has a place.
    pub key_offset: Option<u64>,
    /// How a key is derived from its password, if it is active.
    pub kdf: Option<&'static str>,
    /// The memory that this takes, in KiB, if it takes much.
    pub memory: Option<u32>,
}

/// What is known of a volume from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Of LUKS.
    pub version: u32,
    /// How its data is encrypted, if that can be told.
    pub spec: Option<CipherSpec>,
    /// The hash of passwords, and of the key.
    pub hash: Hash,
    /// The volume's name.
    pub uuid: String,
    /// Where the data begins, in bytes.
    pub payload_offset: u64,
    /// Bytes of a sector.
    pub sector: u32,
    /// How often the key is hashed for its digest.
    pub key_iterations: u32,
    /// The key slots, by their numbers.
    pub slots: Vec<SlotInfo>,
}

/// A header, and the key material of the slots that have some.
#[derive(Debug)]
pub(crate) struct Volume {
    pub(crate) header: LuksHeader,
    materials: Vec<(usize, Vec<u8>)>,
}

impl LuksHeader {
    /// The header of LUKS1 that `bytes` begin with, of which the data lies elsewhere: what other formats have in them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_luks1(bytes: &[u8]) -> Result<Self, LuksError> {
        Header1::parse(bytes, true).map(Self::V1)
    }

    /// The header in the open qcow2 image that is `node`'s, if it has one.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub async fn within(gs: &GlobalState, node: &NodeRef) -> GraphResult<Option<Self>> {
        let control = gs.with_control(node, |control: &mut Qcow2Control| control.clone())?;
        if control.crypto_header().is_none() {
            return Ok(None);
        }
        let read = |req| async move { control.read_crypto(&req, 0, Header1::LEN).await };
        let bytes = gs.run_beside(node, "Could not read the LUKS header", read).await?;
        Self::parse_luks1(&bytes).map(Some).map_err(refused)
    }

    /// What is to be told of it.
    pub fn info(&self) -> VolumeInfo {
        match self {
            Self::V1(header) => VolumeInfo {
                version: 1,
                spec: Some(header.spec),
                hash: header.hash,
                uuid: header.uuid.clone(),
                payload_offset: header.payload_offset(),
                sector: self.sector(),
                key_iterations: header.digest_iterations,
                slots: (0..Header1::SLOTS).map(|slot| SlotInfo::of_header1(header, slot)).collect(),
            },
            Self::V2(header) => VolumeInfo {
                version: 2,
                spec: header.spec(),
                hash: header.hash(),
                uuid: header.uuid().to_owned(),
                payload_offset: header.segment().offset,
                sector: self.sector(),
                key_iterations: header.digest_iterations(),
                slots: (0..=header.slots().keys().last().copied().unwrap_or(0))
                    .map(|slot| header.slots().get(&slot).map(SlotInfo::of_slot2).unwrap_or_default())
                    .collect(),
            },
        }
    }

    /// How many slots there may be.
    pub(crate) fn slot_count(&self) -> usize {
        match self {
            Self::V1(_) => Header1::SLOTS,
            Self::V2(_) => Header2::SLOTS as usize,
        }
    }

    /// The slots that a password may open.
    pub(crate) fn enabled(&self) -> Vec<usize> {
        match self {
            Self::V1(header) => (0..Header1::SLOTS).filter(|slot| header.slots[*slot].is_enabled()).collect(),
            Self::V2(header) => {
                let of_disk = header.slots().iter().filter(|(_, slot)| slot.is_for_disk);
                of_disk.map(|(number, _)| *number as usize).collect()
            }
        }
    }

    /// The first slot that has nothing.
    pub(crate) fn free_slot(&self) -> Option<usize> {
        match self {
            Self::V1(header) => header.slots.iter().position(|slot| !slot.is_enabled()),
            Self::V2(header) => header.free_slot().map(|slot| slot as usize),
        }
    }

    /// Where the data begins: bytes from the start of the file.
    pub(crate) fn payload(&self) -> u64 {
        match self {
            Self::V1(header) => header.payload_offset(),
            Self::V2(header) => header.segment().offset,
        }
    }

    /// Bytes of the data, if they do not end with the file.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::V1(_) => None,
            Self::V2(header) => header.segment().len,
        }
    }

    /// Bytes of a sector.
    pub(crate) fn sector(&self) -> u32 {
        match self {
            Self::V1(_) => SectorCipher::UNIT as u32,
            Self::V2(header) => header.segment().sector as u32,
        }
    }

    /// The number of the first sector.
    pub(crate) fn first_sector(&self) -> u64 {
        match self {
            Self::V1(_) => 0,
            Self::V2(header) => header.segment().first,
        }
    }

    /// Slots in the order in which they are tried, and where their key material lies.
    fn to_try(&self) -> Vec<(usize, Range<u64>)> {
        match self {
            Self::V1(header) => self.enabled().into_iter().map(|slot| (slot, header.material(slot))).collect(),
            Self::V2(header) => {
                let all = header.order_to_try().into_iter();
                all.filter_map(|slot| Some((slot as usize, header.material(slot)?))).collect()
            }
        }
    }
}

impl SlotInfo {
    fn of_header1(header: &Header1, index: usize) -> Self {
        let iterations = match header.slots[index].state {
            SlotState::Enabled { iterations, .. } => Some(iterations),
            SlotState::Disabled => None,
        };
        let (kdf, key_offset) = (iterations.map(|_| "pbkdf2"), Some(header.material(index).start));
        Self { active: iterations.is_some(), iterations, key_offset, kdf, memory: None }
    }

    fn of_slot2(slot: &Slot2) -> Self {
        let (kdf, iterations, memory) = match slot.kdf.cost {
            KdfCost::Pbkdf2 { iterations, .. } => ("pbkdf2", iterations, None),
            KdfCost::Argon2 { kind, cost } => (kind.name(), cost.time, Some(cost.memory)),
        };
        let key_offset = Some(slot.area.start);
        Self { active: true, iterations: Some(iterations), key_offset, kdf: Some(kdf), memory }
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
        let mut area = read(0, HEAD).await?;
        let header = if Header1::probe(&area) == Some(1) {
            Header1::parse(&area, is_detached).map(LuksHeader::V1)
        } else {
            // A second copy may be good where the first is none.
            while let Some(len) = Header2::wanted(&area).filter(|len| *len > area.len()) {
                let more = read(0, len).await?;
                let is_all = more.len() < len;
                area = more;
                if is_all {
                    break;
                }
            }
            Header2::parse(&area, is_detached).map(LuksHeader::V2)
        };
        let header = match header {
            Ok(header) => header,
            Err(error) => return Ok(Err(error)),
        };
        let mut materials = Vec::new();
        for (slot, place) in header.to_try().into_iter().filter(|_| to_unlock) {
            materials.push((slot, read(place.start, (place.end - place.start) as usize).await?));
        }
        Ok(Ok(Self { header, materials }))
    }

    /// This, if it is LUKS1: other formats that have such a header in them know no other.
    ///
    /// # Errors
    /// It is not.
    pub(crate) fn only_luks1(self) -> Result<Self, LuksError> {
        match self.header {
            LuksHeader::V1(_) => Ok(self),
            LuksHeader::V2(_) => Err(LuksError::Version(2)),
        }
    }

    /// The slots that `password` opens, the first of them or all, and the key. This computes for long.
    ///
    /// # Errors
    /// None is opened, and one of them cannot be tried: its material is cut off by the file's end, or it needs more memory than there is, or than half of what the host has.
    fn try_slots(&self, password: &Secret, all: bool) -> Result<(Vec<usize>, Option<Secret>), LuksError> {
        let (mut slots, mut found) = (Vec::new(), None);
        let mut first = None;
        for (slot, material) in &self.materials {
            let password = password.expose();
            let tried = match &self.header {
                LuksHeader::V1(header) => header.unlock(*slot, password, material),
                LuksHeader::V2(header) => header.unlock(*slot as u32, password, material, memory_max()),
            };
            match tried {
                Ok(Some(key)) => {
                    slots.push(*slot);
                    found = Some(key);
                    if !all {
                        break;
                    }
                }
                Ok(None) => {}
                // Another slot may open it.
                Err(error) => first = first.or(Some(error)),
            }
        }
        match (&found, first) {
            (None, Some(error)) => Err(error),
            _ => Ok((slots, found)),
        }
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

    /// What `password` opens, the first slot or all, and the key.
    ///
    /// # Errors
    /// As [`Volume::try_slots`].
    pub(crate) async fn try_in_pool(
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
        let spec = match &self.header {
            LuksHeader::V1(header) => header.spec,
            LuksHeader::V2(header) => header.spec_for(key.expose().len()).map_err(refused)?,
        };
        SectorCipher::new(spec, key.expose()).map_err(|error| refused(error.into()))
    }
}

/// The memory that a password's hashing may take, in KiB: half of what the host has.
pub(crate) fn memory_max() -> u32 {
    let info = rustix::system::sysinfo();
    let bytes = info.totalram.saturating_mul(info.mem_unit.into());
    u32::try_from(bytes / 2 / 1024).unwrap_or(u32::MAX)
}

/// Why an image cannot be opened.
pub(crate) fn refused(error: LuksError) -> GraphError {
    GraphError::Open(error.to_string())
}
