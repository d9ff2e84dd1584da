//! Sectors.

#[cfg(target_arch = "x86_64")]
use crate::aes_xts::AesXts;
use crate::algorithm::{CipherMode, CipherSpec, CryptError};
use crate::iv::Iv;
use crate::mode::{Moded, with_cipher};
use std::fmt;

/// What encrypts and decrypts sectors with one key. Any number of threads may use it at a time.
pub struct SectorCipher {
    spec: CipherSpec,
    iv: Iv,
    code: Box<dyn Code>,
}

/// Sectors of one length, one behind the other.
trait Code: Send + Sync {
    fn encrypt(&self, iv: &Iv, places: Places, data: &mut [u8]);

    fn decrypt(&self, iv: &Iv, places: Places, data: &mut [u8]);
}

/// Numbers of sectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places {
    /// The first sector's number, and how much more each further one's is.
    pub(crate) first: u64,
    pub(crate) step: u64,
    /// Bytes of a sector.
    pub(crate) len: usize,
}

impl Places {
    pub(crate) fn number(&self, index: usize) -> u64 {
        self.first.wrapping_add(self.step.wrapping_mul(index as u64))
    }
}

macro_rules! each_sector {
    ($moded:expr, $act:ident, $iv:expr, $places:expr, $data:expr) => {
        for (index, sector) in $data.chunks_exact_mut($places.len).enumerate() {
            $moded.$act($iv.of($places.number(index)), sector);
        }
    };
}

impl<C> Code for Moded<C>
where
    C: cipher::KeyInit + cipher::BlockCipherEncrypt + cipher::BlockCipherDecrypt + Send + Sync,
{
    fn encrypt(&self, iv: &Iv, places: Places, data: &mut [u8]) {
        each_sector!(self, encrypt, iv, places, data);
    }

    fn decrypt(&self, iv: &Iv, places: Places, data: &mut [u8]) {
        each_sector!(self, decrypt, iv, places, data);
    }
}

#[cfg(target_arch = "x86_64")]
impl Code for AesXts {
    fn encrypt(&self, iv: &Iv, places: Places, data: &mut [u8]) {
        self.run::<true>(iv, places, data);
    }

    fn decrypt(&self, iv: &Iv, places: Places, data: &mut [u8]) {
        self.run::<false>(iv, places, data);
    }
}

impl SectorCipher {
    /// The unit in which sectors are numbered: 512 bytes.
    pub const UNIT: usize = 512;

    /// As `spec` says, with `key`.
    ///
    /// # Errors
    /// The key's length is wrong, or what `spec` has does not go together.
    pub fn new(spec: CipherSpec, key: &[u8]) -> Result<Self, CryptError> {
        spec.check(key.len())?;
        let iv = Iv::new(&spec, key)?;
        Ok(Self { spec, iv, code: fast(&spec, key).unwrap_or_else(|| portable(&spec, key)) })
    }

    /// The same without instructions that only some processors have, but for those that the ciphers' crates look for themselves.
    ///
    /// # Errors
    /// As [`SectorCipher::new`].
    pub fn portable(spec: CipherSpec, key: &[u8]) -> Result<Self, CryptError> {
        spec.check(key.len())?;
        Ok(Self { spec, iv: Iv::new(&spec, key)?, code: portable(&spec, key) })
    }

    /// What it was made with.
    pub fn spec(&self) -> CipherSpec {
        self.spec
    }

    /// Encrypt sectors of `sector` bytes where they are, the first of which lies [`SectorCipher::UNIT`] times `first` bytes behind where numbers begin.
    ///
    /// # Panics
    /// `sector` is no multiple of [`SectorCipher::UNIT`], or 0, or `data` is no multiple of it: that is the caller's bug.
    pub fn encrypt(&self, first: u64, sector: usize, data: &mut [u8]) {
        self.code.encrypt(&self.iv, places(first, sector, data), data);
    }

    /// Decrypt, as [`SectorCipher::encrypt`].
    ///
    /// # Panics
    /// As [`SectorCipher::encrypt`].
    pub fn decrypt(&self, first: u64, sector: usize, data: &mut [u8]) {
        self.code.decrypt(&self.iv, places(first, sector, data), data);
    }
}

fn places(first: u64, len: usize, data: &[u8]) -> Places {
    let unit = SectorCipher::UNIT;
    assert!(
        len > 0 && len.is_multiple_of(unit) && data.len().is_multiple_of(len),
        "sectors of {len} bytes in {}",
        data.len()
    );
    Places { first, step: (len / unit) as u64, len }
}

#[cfg(target_arch = "x86_64")]
fn fast(spec: &CipherSpec, key: &[u8]) -> Option<Box<dyn Code>> {
    let is_it = spec.mode == CipherMode::Xts && spec.cipher.family() == "aes";
    if is_it { Some(Box::new(AesXts::new(key)?)) } else { None }
}

#[cfg(not(target_arch = "x86_64"))]
fn fast(_: &CipherSpec, _: &[u8]) -> Option<Box<dyn Code>> {
    None
}

fn portable(spec: &CipherSpec, key: &[u8]) -> Box<dyn Code> {
    with_cipher!(spec.cipher, C => Box::new(Moded::<C>::new(spec.mode, key)))
}

impl fmt::Debug for SectorCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SectorCipher").field("spec", &self.spec).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithm::{Cipher, IvGen};
    use crate::hash::Hash;
    use proptest::prelude::*;

    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    fn specs() -> Vec<CipherSpec> {
        let ivs = [None, Some(IvGen::Plain), Some(IvGen::Plain64), Some(IvGen::Essiv(Hash::Sha256))];
        let mut specs = Vec::new();
        for cipher in Cipher::ALL {
            for mode in CipherMode::ALL {
                specs.extend(ivs.map(|iv| CipherSpec { cipher, mode, iv }));
            }
        }
        specs.retain(|spec| spec.check(spec.key_len()).is_ok());
        specs
    }

    #[test]
    fn what_is_encrypted_is_decrypted_whatever_the_algorithms() {
        let specs = specs();
        assert!(specs.len() > 100, "{}", specs.len());
        for spec in specs {
            let cipher = SectorCipher::new(spec, &noise(spec.key_len(), 1)).expect("they go together");
            let plain = noise(3 * 4096, 2);
            for sector in [512, 4096] {
                let mut data = plain.clone();
                cipher.encrypt(77, sector, &mut data);
                assert_ne!(data, plain, "{spec:?}");
                // A sector on its own is the same as among others, and each has a vector of its own.
                let mut second = plain[sector..2 * sector].to_vec();
                cipher.encrypt(77 + (sector / 512) as u64, sector, &mut second);
                assert_eq!(second, data[sector..2 * sector], "{spec:?}");
                let mut elsewhere = plain[sector..2 * sector].to_vec();
                cipher.encrypt(1000, sector, &mut elsewhere);
                let has_no_vector = spec.mode == CipherMode::Ecb || spec.iv.is_none();
                assert_eq!(elsewhere == second, has_no_vector, "{spec:?}");
                cipher.decrypt(77, sector, &mut data);
                assert_eq!(data, plain, "{spec:?}");
            }
        }
    }

    /// Vectors 4 and 10 of IEEE P1619, appendix B: as far as the first blocks, and the whole of it with another implementation below.
    #[test]
    fn aes_xts_is_that_of_p1619() {
        let hex = |text: &str| -> Vec<u8> {
            let digits: Vec<_> = text.chars().map(|c| c.to_digit(16).expect("hex") as u8).collect();
            digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
        };
        let short = "2718281828459045235360287471352631415926535897932384626433832795";
        let long = "2718281828459045235360287471352662497757247093699959574966967627\
                    3141592653589793238462643383279502884197169399375105820974944592";
        let vectors = [
            (Cipher::Aes128, short, 0, "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"),
            (Cipher::Aes256, long, 0xff, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"),
        ];
        let plain: Vec<u8> = (0..512).map(|i| i as u8).collect();
        for (cipher, key, number, start) in vectors {
            let spec = CipherSpec { cipher, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
            let start = hex(start);
            for cipher in [SectorCipher::new(spec, &hex(key)), SectorCipher::portable(spec, &hex(key))] {
                let mut data = plain.clone();
                cipher.expect("they go together").encrypt(number, 512, &mut data);
                assert_eq!(data[..start.len()], start);
            }
        }
    }

    /// The generator is what `cryptsetup`'s manual says: the sector's number, encrypted with the key's hash.
    #[test]
    fn essiv_is_the_number_encrypted_with_the_keys_hash() {
        let key = noise(16, 5);
        let cbc = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Essiv(Hash::Sha256)) };
        let ecb = |cipher, key: &[u8], block: &[u8]| {
            let spec = CipherSpec { cipher, mode: CipherMode::Ecb, iv: None };
            let mut sector = [block, &[0; 512]].concat();
            sector.truncate(512);
            SectorCipher::new(spec, key).expect("they go together").encrypt(0, 512, &mut sector);
            sector[..16].to_vec()
        };
        let iv = ecb(Cipher::Aes256, &Hash::Sha256.digest(&[&key]), &0x1234_u64.to_le_bytes());
        let plain = noise(512, 6);
        let first: Vec<u8> = plain.iter().zip(&iv).map(|(a, b)| a ^ b).collect();
        let mut data = plain.clone();
        SectorCipher::new(cbc, &key).expect("they go together").encrypt(0x1234, 512, &mut data);
        assert_eq!(data[..16], ecb(Cipher::Aes128, &key, &first));
    }

    proptest! {
        #[test]
        fn instructions_make_what_the_portable_code_makes(
            which in 0usize..3, sector in prop::sample::select(vec![512usize, 1024, 4096, 65536]), count in 1usize..70, first: u64, seed: u64,
        ) {
            let cipher = [Cipher::Aes128, Cipher::Aes192, Cipher::Aes256][which];
            let spec = CipherSpec { cipher, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
            let key = noise(spec.key_len(), seed);
            let portable = SectorCipher::portable(spec, &key).expect("they go together");
            let len = (count * sector).min(256 << 10).next_multiple_of(sector);
            let plain = noise(len, seed ^ 1);
            let (mut expected, mut back) = (plain.clone(), plain.clone());
            portable.encrypt(first, sector, &mut expected);
            portable.decrypt(first, sector, &mut back);
            let mut all = vec![SectorCipher::new(spec, &key).expect("they go together")];
            #[cfg(target_arch = "x86_64")]
            if let Some(code) = AesXts::new(&key) {
                let iv = Iv::new(&spec, &key).expect("it is known");
                all.push(SectorCipher { spec, iv, code: Box::new(code.narrow()) });
            }
            for cipher in all {
                let mut data = plain.clone();
                cipher.encrypt(first, sector, &mut data);
                prop_assert!(data == expected);
                let mut data = plain.clone();
                cipher.decrypt(first, sector, &mut data);
                prop_assert!(data == back);
            }
        }
    }

    #[test]
    fn keys_are_not_told() {
        let spec = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Xts, iv: Some(IvGen::Plain64) };
        let cipher = SectorCipher::new(spec, &[0xab; 32]).expect("they go together");
        assert_eq!(format!("{cipher:?}"), format!("SectorCipher {{ spec: {spec:?}, .. }}"));
        let told = SectorCipher::new(spec, &[0xab; 31]).expect_err("too short").to_string();
        assert_eq!(told, "A key of 31 bytes does not fit cipher 'aes-128' in mode 'xts'");
    }
}
