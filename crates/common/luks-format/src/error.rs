//! What is wrong with a header.

use block_crypt::CryptError;

/// Why bytes are not a LUKS header, or not one that can be used. No variant has anything secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LuksError {
    /// There are fewer bytes than a header has.
    #[error("LUKS header is truncated: {0} bytes")]
    Short(usize),
    /// Another magic number.
    #[error("Volume is not in LUKS format")]
    Magic,
    /// A version that is not known here.
    #[error("LUKS version {0} is not supported")]
    Version(u16),
    /// A text without an end, or one that is no text.
    #[error("LUKS header {0} is not NUL terminated")]
    Text(&'static str),
    /// A number that makes no sense, or would cost too much.
    #[error("LUKS header {field} is out of range: {value}")]
    Range {
        /// What it stands for.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// A number of a key slot that makes no sense, or would cost too much.
    #[error("Keyslot {slot} {field} is out of range: {value}")]
    SlotRange {
        /// The slot, from 0.
        slot: usize,
        /// What it stands for.
        field: &'static str,
        /// What it is.
        value: u64,
    },
    /// A slot is neither enabled nor disabled.
    #[error("Keyslot {slot} state (active/disable) is corrupted: {value:#x}")]
    SlotState {
        /// The slot, from 0.
        slot: usize,
        /// What stands there.
        value: u32,
    },
    /// A slot's key lies where the header is.
    #[error("Keyslot {0} is overlapping with the LUKS header")]
    SlotOverHeader(usize),
    /// A slot's key lies where another's is.
    #[error("Keyslots {0} and {1} are overlapping in the header")]
    SlotsOverlap(usize, usize),
    /// A slot's key lies where the disk's data is.
    #[error("Keyslot {0} is overlapping with the encrypted payload")]
    SlotOverPayload(usize),
    /// A slot's bytes are not as many as its key needs.
    #[error("Keyslot {0} key material has a wrong length")]
    Material(usize),
    /// A copy of a LUKS2 header is not as it was written.
    #[error("LUKS2 header has a wrong checksum")]
    Checksum,
    /// A member of LUKS2's metadata is missing, or is not what it should be: where it stands.
    #[error("LUKS2 metadata '{0}' is missing or malformed")]
    Metadata(String),
    /// A number in LUKS2's metadata that makes no sense, or would cost too much.
    #[error("LUKS2 metadata '{path}' is out of range: {value}")]
    MetadataRange {
        /// Where it stands.
        path: String,
        /// What it is.
        value: u64,
    },
    /// LUKS2's metadata names something that this build does not have.
    #[error("LUKS2 metadata '{path}' is '{name}', which is not supported")]
    Unsupported {
        /// Where it stands.
        path: String,
        /// What it is called.
        name: String,
    },
    /// LUKS2's metadata has more values than anyone needs, or they lie too deep.
    #[error("LUKS2 metadata has too many values, or they are nested too deeply")]
    MetadataSize,
    /// LUKS2's metadata has no room in the header.
    #[error("LUKS2 metadata does not fit in the header")]
    MetadataRoom,
    /// A slot's key lies where LUKS2 has no keys.
    #[error("Keyslot {0} is outside of the keyslots area")]
    SlotOutside(usize),
    /// There is no slot with that number, and can be none.
    #[error("There is no keyslot {0}")]
    SlotNumber(u32),
    /// The slot has a key.
    #[error("Keyslot {0} is in use")]
    SlotInUse(u32),
    /// There is no place for another slot's key.
    #[error("The keyslots area has no room for another keyslot")]
    SlotRoom,
    /// It takes more memory than the caller has to find out whether a password is right: KiB.
    #[error("Keyslot {slot} needs {memory} KiB of memory to be unlocked, and {limit} KiB are allowed")]
    SlotMemory {
        /// The slot.
        slot: u32,
        /// What it needs.
        memory: u32,
        /// What the caller allows.
        limit: u32,
    },
    /// The key is not of the length of the disk's.
    #[error("The key has {0} bytes, which is not the length of the disk's")]
    KeyLength(usize),
    /// An algorithm that is not known here, or one that does not go with another.
    #[error(transparent)]
    Crypt(#[from] CryptError),
}
