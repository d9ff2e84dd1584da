//! Initialisation vectors.

use crate::algorithm::{Cipher, CipherSpec, CryptError, IvGen, essiv_cipher};
use crate::hash::Hash;
use crate::mode::{Blocks, with_cipher};
use crate::secret::Secret;

/// The longest vector.
pub(crate) const IV_MAX: usize = 16;

/// A generator with what it needs.
pub(crate) enum Iv {
    Zero,
    Plain,
    Plain64,
    Essiv(Box<dyn Blocks>),
}

impl Iv {
    /// For sectors that are encrypted with `key`.
    pub(crate) fn new(spec: &CipherSpec, key: &[u8]) -> Result<Self, CryptError> {
        Ok(match spec.iv {
            None => Self::Zero,
            Some(IvGen::Plain) => Self::Plain,
            Some(IvGen::Plain64) => Self::Plain64,
            Some(IvGen::Essiv(hash)) => Self::Essiv(essiv(spec.cipher, hash, key)?),
        })
    }

    /// The vector of a sector; a cipher with shorter blocks takes the beginning.
    #[inline]
    pub(crate) fn of(&self, sector: u64) -> [u8; IV_MAX] {
        let mut iv = [0; IV_MAX];
        match self {
            Self::Zero => {}
            Self::Plain => iv[..4].copy_from_slice(&(sector as u32).to_le_bytes()),
            Self::Plain64 => iv[..8].copy_from_slice(&sector.to_le_bytes()),
            Self::Essiv(blocks) => {
                iv[..8].copy_from_slice(&sector.to_le_bytes());
                blocks.encrypt(&mut iv[..blocks.block_len()]);
            }
        }
        iv
    }
}

fn essiv(cipher: Cipher, hash: Hash, key: &[u8]) -> Result<Box<dyn Blocks>, CryptError> {
    let salt = Secret::new(hash.digest(&[key]));
    Ok(with_cipher!(essiv_cipher(cipher, hash)?, C => Box::new(crate::mode::keyed::<C>(salt.expose()))))
}
