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
    /// An algorithm that is not known here, or one that does not go with another.
    #[error(transparent)]
    Crypt(#[from] CryptError),
}
