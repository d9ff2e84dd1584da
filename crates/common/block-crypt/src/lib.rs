//! Encryption of the sectors of disks: ciphers, modes, initialisation vectors, hashes, derivation of keys, and the anti-forensic split. Pure code: it
//! reads and writes nothing, and any thread may use it.
//!
//! What a format calls an algorithm, and where its keys come from, is the format's business; here is what the words mean. All algorithms are those of
//! well-kept crates; what is written here is how they are applied to sectors, and AES-XTS for processors that have instructions for it.
//!
//! Nothing secret is in an error or in the output of `Debug`. A [`Secret`] and the keys of a [`SectorCipher`] are wiped when they go; copies that the compiler made
//! in registers and on the stack, and the states of hashes, are not.
//!
//! Reading order: [`Cipher`], [`CipherMode`], [`IvGen`], [`CipherSpec`], [`SectorCipher`]; [`enum@Hash`], [`pbkdf2()`], [`argon2id`]; [`af_split`]; [`Secret`], [`aes256_cbc_decrypt`].

#[cfg(target_arch = "x86_64")]
mod aes_xts;
mod algorithm;
mod anti_forensic;
mod cbc;
mod hash;
mod iv;
mod kdf;
mod mode;
mod secret;
mod sector;

pub use algorithm::{Cipher, CipherMode, CipherSpec, CryptError, IvGen};
pub use anti_forensic::{af_merge, af_split};
pub use cbc::{CbcError, aes256_cbc_decrypt};
pub use hash::Hash;
pub use kdf::{Argon2Cost, argon2id, pbkdf2, pbkdf2_iterations};
pub use secret::Secret;
pub use sector::SectorCipher;
