//! Ciphers, and how they are applied to a sector.

use crate::algorithm::CipherMode;
use cipher::{Array, Block, BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit};

/// So many blocks are worked on together: the code for processors with wide registers takes as many.
const TOGETHER: usize = 32;
/// The longest block.
const BLOCK_MAX: usize = 16;

/// `$run` with the type of the cipher that `$cipher` is.
macro_rules! with_cipher {
    ($cipher:expr, $type:ident => $run:expr) => {{
        use $crate::algorithm::Cipher as Which;
        match $cipher {
            Which::Aes128 => {
                type $type = aes::Aes128;
                $run
            }
            Which::Aes192 => {
                type $type = aes::Aes192;
                $run
            }
            Which::Aes256 => {
                type $type = aes::Aes256;
                $run
            }
            Which::Cast5 => {
                type $type = cast5::Cast5;
                $run
            }
            Which::Serpent128 | Which::Serpent192 | Which::Serpent256 => {
                type $type = serpent::Serpent;
                $run
            }
            Which::Twofish128 | Which::Twofish192 | Which::Twofish256 => {
                type $type = twofish::Twofish;
                $run
            }
        }
    }};
}
pub(crate) use with_cipher;

/// The cipher with a key whose length was checked before.
pub(crate) fn keyed<C: KeyInit>(key: &[u8]) -> C {
    C::new_from_slice(key).expect("the key has the cipher's length")
}

/// Single blocks, whatever the cipher.
pub(crate) trait Blocks: Send + Sync {
    fn block_len(&self) -> usize;

    /// Encrypt a block.
    fn encrypt(&self, block: &mut [u8]);
}

impl<C: BlockCipherEncrypt + Send + Sync> Blocks for C {
    fn block_len(&self) -> usize {
        C::block_size()
    }

    fn encrypt(&self, block: &mut [u8]) {
        self.encrypt_block(block.try_into().expect("a block"));
    }
}

/// A cipher in a mode.
pub(crate) struct Moded<C> {
    data: C,
    /// XTS has another one for tweaks.
    tweak: Option<C>,
    mode: CipherMode,
}

impl<C: KeyInit + BlockCipherEncrypt + BlockCipherDecrypt> Moded<C> {
    /// With a key whose length was checked before.
    pub(crate) fn new(mode: CipherMode, key: &[u8]) -> Self {
        match mode {
            CipherMode::Xts => {
                let (data, tweak) = key.split_at(key.len() / 2);
                Self { data: keyed(data), tweak: Some(keyed(tweak)), mode }
            }
            _ => Self { data: keyed(key), tweak: None, mode },
        }
    }

    /// Encrypt a sector, which is whole blocks.
    pub(crate) fn encrypt(&self, iv: [u8; BLOCK_MAX], sector: &mut [u8]) {
        let blocks = as_blocks::<C>(sector);
        match (self.mode, &self.tweak) {
            (CipherMode::Ecb, _) => self.data.encrypt_blocks(blocks),
            (CipherMode::Cbc, _) => {
                let mut last = first::<C>(iv);
                for block in blocks {
                    add(block, &last);
                    self.data.encrypt_block(block);
                    last.clone_from(block);
                }
            }
            (CipherMode::Ctr, _) => self.count(iv, blocks),
            (CipherMode::Xts, tweak) => tweaked(tweak.as_ref(), iv, blocks, |blocks| self.data.encrypt_blocks(blocks)),
        }
    }

    /// Decrypt a sector, which is whole blocks.
    pub(crate) fn decrypt(&self, iv: [u8; BLOCK_MAX], sector: &mut [u8]) {
        let blocks = as_blocks::<C>(sector);
        match (self.mode, &self.tweak) {
            (CipherMode::Ecb, _) => self.data.decrypt_blocks(blocks),
            (CipherMode::Cbc, _) => {
                let mut last = first::<C>(iv);
                let mut kept: [Block<C>; TOGETHER] = std::array::from_fn(|_| Block::<C>::default());
                for blocks in blocks.chunks_mut(TOGETHER) {
                    let kept = &mut kept[..blocks.len()];
                    kept.clone_from_slice(blocks);
                    self.data.decrypt_blocks(blocks);
                    add(&mut blocks[0], &last);
                    blocks[1..].iter_mut().zip(&*kept).for_each(|(block, before)| add(block, before));
                    last.clone_from(&kept[kept.len() - 1]);
                }
            }
            (CipherMode::Ctr, _) => self.count(iv, blocks),
            (CipherMode::Xts, tweak) => tweaked(tweak.as_ref(), iv, blocks, |blocks| self.data.decrypt_blocks(blocks)),
        }
    }

    /// Add what the counter, encrypted, makes.
    fn count(&self, iv: [u8; BLOCK_MAX], blocks: &mut [Block<C>]) {
        let mut counter = first::<C>(iv);
        for blocks in blocks.chunks_mut(TOGETHER) {
            let mut stream: [Block<C>; TOGETHER] = std::array::from_fn(|_| {
                let now = counter.clone();
                // The last byte is the lowest.
                for byte in counter.iter_mut().rev() {
                    *byte = byte.wrapping_add(1);
                    if *byte != 0 {
                        break;
                    }
                }
                now
            });
            self.data.encrypt_blocks(&mut stream[..blocks.len()]);
            blocks.iter_mut().zip(&stream).for_each(|(block, with)| add(block, with));
        }
    }
}

/// The tweaks of a sector's blocks, IEEE P1619, section 5.2.
struct Tweaks(u128);

impl Tweaks {
    fn new<C: BlockCipherEncrypt>(cipher: Option<&C>, iv: [u8; BLOCK_MAX]) -> Self {
        let mut tweak = first::<C>(iv);
        if let Some(cipher) = cipher {
            cipher.encrypt_block(&mut tweak);
        }
        let mut bytes = [0; BLOCK_MAX];
        bytes[..tweak.len()].copy_from_slice(&tweak);
        Self(u128::from_le_bytes(bytes))
    }

    fn next<C: BlockSizeUser>(&mut self) -> [Block<C>; TOGETHER] {
        std::array::from_fn(|_| {
            let bytes = self.0.to_le_bytes();
            // Doubled in the field of 2^128 elements that x^128 + x^7 + x^2 + x + 1 makes.
            self.0 = (self.0 << 1) ^ ((self.0 >> 127) * 0x87);
            first::<C>(bytes)
        })
    }
}

/// XTS: what `act` does with blocks, between their tweaks.
fn tweaked<C: BlockCipherEncrypt>(
    cipher: Option<&C>,
    iv: [u8; BLOCK_MAX],
    blocks: &mut [Block<C>],
    act: impl Fn(&mut [Block<C>]),
) {
    let mut tweaks = Tweaks::new(cipher, iv);
    for blocks in blocks.chunks_mut(TOGETHER) {
        let tweaks = tweaks.next::<C>();
        let add_all = |blocks: &mut [Block<C>]| blocks.iter_mut().zip(&tweaks).for_each(|(to, tweak)| add(to, tweak));
        add_all(blocks);
        act(blocks);
        add_all(blocks);
    }
}

/// The beginning of `iv`.
fn first<C: BlockSizeUser>(iv: [u8; BLOCK_MAX]) -> Block<C> {
    let mut block = Block::<C>::default();
    let len = block.len();
    block.copy_from_slice(&iv[..len]);
    block
}

fn add<N: cipher::array::ArraySize>(block: &mut Array<u8, N>, with: &Array<u8, N>) {
    block.iter_mut().zip(with).for_each(|(to, from)| *to ^= from);
}

/// The blocks that a sector is.
fn as_blocks<C: BlockSizeUser>(sector: &mut [u8]) -> &mut [Block<C>] {
    let (blocks, rest) = Array::slice_as_chunks_mut(sector);
    debug_assert!(rest.is_empty(), "a sector is whole blocks");
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<_> =
            hex.chars().filter(|c| !c.is_whitespace()).map(|c| c.to_digit(16).expect("hex") as u8).collect();
        digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn is_as_published(mode: CipherMode, key: &str, iv: &str, plain: &str, encrypted: &str) {
        let (key, iv, plain, encrypted) = (bytes(key), bytes(iv), bytes(plain), bytes(encrypted));
        let iv: [u8; BLOCK_MAX] = iv.try_into().expect("a block");
        let cipher = Moded::<aes::Aes128>::new(mode, &key);
        let mut data = plain.clone();
        cipher.encrypt(iv, &mut data);
        assert_eq!(data, encrypted, "{mode}");
        cipher.decrypt(iv, &mut data);
        assert_eq!(data, plain, "{mode}");
    }

    const KEY: &str = "2b7e151628aed2a6abf7158809cf4f3c";
    const PLAIN: &str = "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51";

    /// NIST SP 800-38A, F.1.1, F.2.1 and F.5.1.
    #[test]
    fn modes_are_those_of_sp_800_38a() {
        let none = "00000000000000000000000000000000";
        let ecb = "3ad77bb40d7a3660a89ecaf32466ef97 f5d3d58503b9699de785895a96fdbaaf";
        is_as_published(CipherMode::Ecb, KEY, none, PLAIN, ecb);
        let cbc = "7649abac8119b246cee98e9b12e9197d 5086cb9b507219ee95db113a917678b2";
        is_as_published(CipherMode::Cbc, KEY, "000102030405060708090a0b0c0d0e0f", PLAIN, cbc);
        let ctr = "874d6191b620e3261bef6864990db6ce 9806f66b7970fdff8617187bb9fffdff";
        is_as_published(CipherMode::Ctr, KEY, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff", PLAIN, ctr);
    }

    /// IEEE P1619, appendix B, vectors 1 and 2.
    #[test]
    fn xts_is_that_of_p1619() {
        let zeroes = "0".repeat(64);
        let one = "917cf69ebd68b2ec9b9fe9a3eadda692 cd43d2f59598ed858c02c2652fbf922e";
        is_as_published(CipherMode::Xts, &zeroes, &"0".repeat(32), &zeroes, one);
        let key = format!("{}{}", "11".repeat(16), "22".repeat(16));
        let number = "33333333330000000000000000000000";
        let two = "c454185e6a16936e39334038acef838b fb186fff7480adc4289382ecd6d394f0";
        is_as_published(CipherMode::Xts, &key, number, &"44".repeat(32), two);
    }

    #[test]
    fn counters_carry() {
        let cipher = Moded::<aes::Aes128>::new(CipherMode::Ctr, &bytes(KEY));
        let (mut long, mut short) = (vec![0; 16 * 40], vec![0; 16]);
        cipher.encrypt([0xff; BLOCK_MAX], &mut long);
        cipher.encrypt([0; BLOCK_MAX], &mut short);
        assert_eq!(long[16..32], short[..], "all ones are followed by zero");
    }
}
