//! Hashes.

use crate::algorithm::{CryptError, unknown};
use sha1::digest::Digest;
use std::fmt;

/// A hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-1.
    Sha1,
    /// SHA-224, a SHA-2.
    Sha224,
    /// SHA-256, a SHA-2.
    Sha256,
    /// SHA-384, a SHA-2.
    Sha384,
    /// SHA-512, a SHA-2.
    Sha512,
    /// RIPEMD-160.
    Ripemd160,
}

/// `$run` with the type of the hash that `$hash` is.
macro_rules! with_digest {
    ($hash:expr, $digest:ident => $run:expr) => {
        match $hash {
            Hash::Sha1 => {
                type $digest = sha1::Sha1;
                $run
            }
            Hash::Sha224 => {
                type $digest = sha2::Sha224;
                $run
            }
            Hash::Sha256 => {
                type $digest = sha2::Sha256;
                $run
            }
            Hash::Sha384 => {
                type $digest = sha2::Sha384;
                $run
            }
            Hash::Sha512 => {
                type $digest = sha2::Sha512;
                $run
            }
            Hash::Ripemd160 => {
                type $digest = ripemd::Ripemd160;
                $run
            }
        }
    };
}
pub(crate) use with_digest;

impl Hash {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha384, Self::Sha512, Self::Ripemd160];

    /// What it is called everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha512 => "sha512",
            Self::Ripemd160 => "ripemd160",
        }
    }

    /// The one with that name.
    ///
    /// # Errors
    /// There is none here.
    pub fn by_name(name: &str) -> Result<Self, CryptError> {
        Self::ALL.into_iter().find(|hash| hash.name() == name).ok_or_else(|| unknown("a hash", name))
    }

    /// Bytes of a hash.
    #[expect(clippy::len_without_is_empty, reason = "none is empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha1 | Self::Ripemd160 => 20,
            Self::Sha224 => 28,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    /// The hash of `parts`, one behind the other.
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        with_digest!(self, D => {
            let mut hash = D::new();
            parts.iter().for_each(|part| hash.update(part));
            hash.finalize().to_vec()
        })
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The hashes of "abc": FIPS 180-2, appendix A to C, its change notice, and the page of RIPEMD-160's authors.
    #[test]
    fn abc_is_hashed_as_published() {
        let starts = [
            (Hash::Sha1, "a9993e364706816aba3e25717850c26c9cd0d89d"),
            (Hash::Sha224, "23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7"),
            (Hash::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (Hash::Sha384, "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded163"),
            (Hash::Sha512, "ddaf35a193617abacc417349ae204131"),
            (Hash::Ripemd160, "8eb208f7e05d987a9b044a8e98c6b087f15a0bfc"),
        ];
        for (hash, start) in starts {
            let whole = hash.digest(&[b"a", b"", b"bc"]);
            assert!(whole.len() == hash.len() && hex(&whole).starts_with(start), "{hash}");
            assert_eq!(Hash::by_name(hash.name()), Ok(hash));
        }
    }
}
