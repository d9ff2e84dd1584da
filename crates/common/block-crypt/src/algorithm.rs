//! What algorithms are called, and which go together.

use crate::hash::Hash;
use std::fmt;

/// Why something cannot be encrypted in some way. No variant has a key in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptError {
    /// A cipher, mode, generator of initialisation vectors or hash that this build does not have: what it is, and its name.
    #[error("Algorithm '{name}' for {what} is not supported")]
    Unknown {
        /// What kind of algorithm it is.
        what: &'static str,
        /// What it was called.
        name: String,
    },
    /// The key has another length than the cipher and its mode need.
    #[error("A key of {len} bytes does not fit cipher '{cipher}' in mode '{mode}'")]
    KeyLength {
        /// The cipher.
        cipher: Cipher,
        /// The mode.
        mode: CipherMode,
        /// Bytes of the key.
        len: usize,
    },
    /// XTS is for blocks of 16 bytes.
    #[error("Cipher '{0}' has blocks that are too short for mode 'xts'")]
    ShortBlocks(Cipher),
    /// No cipher of the family takes the hash of a key as its key.
    #[error("Hash '{hash}' gives no key for cipher '{cipher}' as an ESSIV generator needs it")]
    Essiv {
        /// The cipher that sectors are encrypted with.
        cipher: Cipher,
        /// The generator's hash.
        hash: Hash,
    },
    /// A derivation of keys was asked for with numbers that it does not take.
    #[error("The parameters of {0} are out of range")]
    Parameters(&'static str),
    /// A derivation of keys needs more memory than there is: KiB.
    #[error("There are no {0} KiB of memory to derive a key")]
    Memory(u32),
}

/// A block cipher with a length of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES, FIPS 197, with keys of 128 bits.
    Aes128,
    /// AES with keys of 192 bits.
    Aes192,
    /// AES with keys of 256 bits.
    Aes256,
    /// CAST-128, RFC 2144, with keys of 128 bits and blocks of 64.
    Cast5,
    /// Serpent with keys of 128 bits.
    Serpent128,
    /// Serpent with keys of 192 bits.
    Serpent192,
    /// Serpent with keys of 256 bits.
    Serpent256,
    /// Twofish with keys of 128 bits.
    Twofish128,
    /// Twofish with keys of 192 bits.
    Twofish192,
    /// Twofish with keys of 256 bits.
    Twofish256,
}

impl Cipher {
    /// All of them, in the order of their names.
    pub const ALL: [Self; 10] = [
        Self::Aes128,
        Self::Aes192,
        Self::Aes256,
        Self::Cast5,
        Self::Serpent128,
        Self::Serpent192,
        Self::Serpent256,
        Self::Twofish128,
        Self::Twofish192,
        Self::Twofish256,
    ];

    /// What QEMU calls it, as in the option `cipher-alg`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128 => "aes-128",
            Self::Aes192 => "aes-192",
            Self::Aes256 => "aes-256",
            Self::Cast5 => "cast5-128",
            Self::Serpent128 => "serpent-128",
            Self::Serpent192 => "serpent-192",
            Self::Serpent256 => "serpent-256",
            Self::Twofish128 => "twofish-128",
            Self::Twofish192 => "twofish-192",
            Self::Twofish256 => "twofish-256",
        }
    }

    /// What LUKS calls it whatever its keys' length is.
    pub const fn family(self) -> &'static str {
        match self {
            Self::Aes128 | Self::Aes192 | Self::Aes256 => "aes",
            Self::Cast5 => "cast5",
            Self::Serpent128 | Self::Serpent192 | Self::Serpent256 => "serpent",
            Self::Twofish128 | Self::Twofish192 | Self::Twofish256 => "twofish",
        }
    }

    /// The one that QEMU calls `name`.
    ///
    /// # Errors
    /// There is none here.
    pub fn by_name(name: &str) -> Result<Self, CryptError> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name).ok_or_else(|| unknown("a cipher", name))
    }

    /// The one of a family with keys of `key_len` bytes: of the cipher itself, so half of what XTS takes.
    ///
    /// # Errors
    /// There is none here.
    pub fn by_family(family: &str, key_len: usize) -> Result<Self, CryptError> {
        let is_it = |cipher: &Self| cipher.family() == family && cipher.key_len() == key_len;
        Self::ALL.into_iter().find(is_it).ok_or_else(|| unknown("a cipher", format!("{family}-{}", 8 * key_len)))
    }

    /// Bytes of a key.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128 | Self::Cast5 | Self::Serpent128 | Self::Twofish128 => 16,
            Self::Aes192 | Self::Serpent192 | Self::Twofish192 => 24,
            Self::Aes256 | Self::Serpent256 | Self::Twofish256 => 32,
        }
    }

    /// Bytes of a block.
    pub const fn block_len(self) -> usize {
        if matches!(self, Self::Cast5) { 8 } else { 16 }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a cipher is applied to more than a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CipherMode {
    /// Each block on its own: there is no initialisation vector.
    Ecb,
    /// Each block with the one before it, the first with the initialisation vector.
    Cbc,
    /// IEEE P1619: a second key makes a tweak for each block. Keys are twice as long.
    Xts,
    /// The encrypted initialisation vector, counted up as a big-endian number, is added to the data.
    Ctr,
}

impl CipherMode {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ecb, Self::Cbc, Self::Xts, Self::Ctr];

    /// What it is called everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ecb => "ecb",
            Self::Cbc => "cbc",
            Self::Xts => "xts",
            Self::Ctr => "ctr",
        }
    }

    /// The one with that name.
    ///
    /// # Errors
    /// There is none here.
    pub fn by_name(name: &str) -> Result<Self, CryptError> {
        Self::ALL.into_iter().find(|mode| mode.name() == name).ok_or_else(|| unknown("a cipher mode", name))
    }
}

impl fmt::Display for CipherMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the number of a sector becomes an initialisation vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IvGen {
    /// Its lowest 32 bits, the lowest byte first.
    Plain,
    /// 64 bits, the lowest byte first.
    Plain64,
    /// What [`IvGen::Plain64`] says, encrypted with the hash of the key.
    Essiv(Hash),
}

impl IvGen {
    /// What it is called without its hash.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Plain64 => "plain64",
            Self::Essiv(_) => "essiv",
        }
    }

    /// The one that LUKS calls `name`, with its hash behind a colon.
    ///
    /// # Errors
    /// There is none here.
    pub fn by_name(name: &str) -> Result<Self, CryptError> {
        match name.split_once(':') {
            None if name == "plain" => Ok(Self::Plain),
            None if name == "plain64" => Ok(Self::Plain64),
            Some(("essiv", hash)) => Ok(Self::Essiv(Hash::by_name(hash)?)),
            // QEMU writes a hash also where none is used.
            Some(("plain", hash)) => Hash::by_name(hash).map(|_| Self::Plain),
            Some(("plain64", hash)) => Hash::by_name(hash).map(|_| Self::Plain64),
            _ => Err(unknown("initialisation vectors", name)),
        }
    }
}

impl fmt::Display for IvGen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Essiv(hash) => write!(f, "essiv:{hash}"),
            _ => f.write_str(self.name()),
        }
    }
}

/// All that is to be known of how sectors are encrypted but for the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CipherSpec {
    /// The cipher.
    pub cipher: Cipher,
    /// Its mode.
    pub mode: CipherMode,
    /// Where initialisation vectors come from. `None` is for [`CipherMode::Ecb`]; with another mode they are zeroes.
    pub iv: Option<IvGen>,
}

impl CipherSpec {
    /// What LUKS says: the cipher's family, the mode with the generator behind a hyphen (`xts-plain64`), and the bytes of the key.
    ///
    /// # Errors
    /// One of them is not known, or they do not go together.
    pub fn from_luks(family: &str, mode: &str, key_len: usize) -> Result<Self, CryptError> {
        let (mode, iv) = match mode.split_once('-') {
            Some((mode, iv)) => (mode, Some(IvGen::by_name(iv)?)),
            None => (mode, None),
        };
        let mode = CipherMode::by_name(mode)?;
        let own = if mode == CipherMode::Xts { key_len / 2 } else { key_len };
        let spec = Self { cipher: Cipher::by_family(family, own)?, mode, iv };
        spec.check(key_len)?;
        Ok(spec)
    }

    /// The mode with its generator, as LUKS says it.
    pub fn luks_mode(&self) -> String {
        match self.iv {
            Some(iv) => format!("{}-{iv}", self.mode),
            None => self.mode.to_string(),
        }
    }

    /// Bytes of a key: of both keys with XTS.
    pub const fn key_len(&self) -> usize {
        match self.mode {
            CipherMode::Xts => 2 * self.cipher.key_len(),
            _ => self.cipher.key_len(),
        }
    }

    /// Whether these go together, and a key of that many bytes with them.
    pub(crate) fn check(&self, key_len: usize) -> Result<(), CryptError> {
        let Self { cipher, mode, iv } = *self;
        if mode == CipherMode::Xts && cipher.block_len() != 16 {
            return Err(CryptError::ShortBlocks(cipher));
        }
        if key_len != self.key_len() {
            return Err(CryptError::KeyLength { cipher, mode, len: key_len });
        }
        match iv {
            Some(IvGen::Essiv(hash)) => essiv_cipher(cipher, hash).map(|_| ()),
            _ => Ok(()),
        }
    }
}

/// The cipher for initialisation vectors: of the same family, with keys as long as the hash is.
pub(crate) fn essiv_cipher(cipher: Cipher, hash: Hash) -> Result<Cipher, CryptError> {
    Cipher::by_family(cipher.family(), hash.len()).map_err(|_| CryptError::Essiv { cipher, hash })
}

pub(crate) fn unknown(what: &'static str, name: impl Into<String>) -> CryptError {
    CryptError::Unknown { what, name: name.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_told() {
        assert!(Cipher::ALL.into_iter().all(|cipher| Cipher::by_name(cipher.name()) == Ok(cipher)));
        assert!(Cipher::ALL.into_iter().all(|c| Cipher::by_family(c.family(), c.key_len()) == Ok(c)));
        assert!(CipherMode::ALL.into_iter().all(|mode| CipherMode::by_name(mode.name()) == Ok(mode)));
        for iv in [IvGen::Plain, IvGen::Plain64, IvGen::Essiv(Hash::Sha256)] {
            assert_eq!(IvGen::by_name(&iv.to_string()), Ok(iv));
        }
    }

    #[test]
    fn what_luks_says_is_understood() {
        let spec = |family, mode, len| CipherSpec::from_luks(family, mode, len);
        let usual = CipherSpec { cipher: Cipher::Aes256, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
        assert_eq!(spec("aes", "xts-plain64", 64), Ok(usual));
        assert_eq!((usual.luks_mode().as_str(), usual.key_len()), ("xts-plain64", 64));
        let old = spec("twofish", "cbc-essiv:sha256", 16).expect("it is known");
        assert_eq!((old.cipher, old.luks_mode().as_str()), (Cipher::Twofish128, "cbc-essiv:sha256"));
        assert_eq!(spec("aes", "ecb", 16).expect("it is known").iv, None);
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let told = |family, mode, len| CipherSpec::from_luks(family, mode, len).expect_err("refused").to_string();
        assert_eq!(told("camellia", "xts-plain64", 64), "Algorithm 'camellia-256' for a cipher is not supported");
        assert_eq!(told("aes", "lrw-benbi", 48), "Algorithm 'benbi' for initialisation vectors is not supported");
        assert_eq!(told("aes", "pcbc-plain", 16), "Algorithm 'pcbc' for a cipher mode is not supported");
        assert_eq!(told("aes", "cbc-essiv:md5", 16), "Algorithm 'md5' for a hash is not supported");
        assert_eq!(told("aes", "cbc-essiv", 16), "Algorithm 'essiv' for initialisation vectors is not supported");
        assert_eq!(told("aes", "xts-plain64", 63), "Algorithm 'aes-248' for a cipher is not supported");
        assert_eq!(told("cast5", "xts-plain64", 32), "Cipher 'cast5-128' has blocks that are too short for mode 'xts'");
        let essiv = told("aes", "cbc-essiv:sha512", 32);
        assert_eq!(essiv, "Hash 'sha512' gives no key for cipher 'aes-256' as an ESSIV generator needs it");
    }
}
