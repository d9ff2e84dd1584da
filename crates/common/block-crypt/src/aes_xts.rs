//! AES-XTS with the instructions that x86-64 has for it: blocks four to a register where there are VAES and AVX-512, one to a register with AES-NI.
//!
//! The crates have AES, but not XTS: tweaks that are made apart, and added before and after, cost as much as the cipher. Here all happens in registers, and the
//! tweaks of many sectors are encrypted together.

#![allow(unsafe_code, reason = "instructions that not each processor has, and loads and stores of registers")]

use crate::iv::Iv;
use crate::sector::Places;
use std::arch::x86_64::*;
use zeroize::Zeroize;

/// Bytes of a block, and the most rounds that there are: 14 with keys of 256 bits.
const BLOCK: usize = 16;
const ROUNDS_MAX: usize = 14;
/// So many sectors' tweaks are encrypted together.
const SECTORS: usize = 32;
/// Bytes that are worked on at a time: eight registers of four blocks. All lengths of sectors are multiples of it.
const GROUP: usize = 512;

/// Keys of all rounds.
type RoundKeys = [[u8; BLOCK]; ROUNDS_MAX + 1];

/// The keys, expanded.
pub(crate) struct AesXts {
    rounds: usize,
    encrypt: RoundKeys,
    decrypt: RoundKeys,
    tweak: RoundKeys,
    /// Whether there are VAES, VPCLMULQDQ and AVX-512.
    is_wide: bool,
}

impl AesXts {
    /// For both halves of `key`, if the processor has AES.
    pub(crate) fn new(key: &[u8]) -> Option<Self> {
        if !is_x86_feature_detected!("aes") {
            return None;
        }
        let is_wide = is_x86_feature_detected!("vaes")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw");
        let (data, tweak) = key.split_at(key.len() / 2);
        let rounds = data.len() / 4 + 6;
        let mut keys = Self {
            rounds,
            encrypt: RoundKeys::default(),
            decrypt: RoundKeys::default(),
            tweak: RoundKeys::default(),
            is_wide,
        };
        // SAFETY: the processor has AES.
        unsafe {
            keys.encrypt = expand(data, rounds);
            keys.decrypt = inverse(&keys.encrypt, rounds);
            keys.tweak = expand(tweak, rounds);
        }
        Some(keys)
    }

    #[cfg(test)]
    pub(crate) fn narrow(mut self) -> Self {
        self.is_wide = false;
        self
    }

    pub(crate) fn run<const ENCRYPT: bool>(&self, iv: &Iv, places: Places, data: &mut [u8]) {
        let mut index = 0;
        for sectors in data.chunks_mut(SECTORS * places.len) {
            let mut tweaks = [[0; BLOCK]; SECTORS];
            let count = sectors.len() / places.len;
            for (i, tweak) in tweaks[..count].iter_mut().enumerate() {
                *tweak = iv.of(places.number(index + i));
            }
            index += count;
            // SAFETY: the processor has what these need; that was looked at when the keys were made.
            unsafe {
                if self.is_wide {
                    encrypt_tweaks_wide(&self.tweak, self.rounds, &mut tweaks);
                    sectors_wide::<ENCRYPT>(self, &tweaks[..count], places.len, sectors);
                } else {
                    encrypt_tweaks(&self.tweak, self.rounds, &mut tweaks[..count]);
                    sectors_narrow::<ENCRYPT>(self, &tweaks[..count], places.len, sectors);
                }
            }
        }
    }

    fn keys<const ENCRYPT: bool>(&self) -> &RoundKeys {
        if ENCRYPT { &self.encrypt } else { &self.decrypt }
    }
}

impl Drop for AesXts {
    fn drop(&mut self) {
        [&mut self.encrypt, &mut self.decrypt, &mut self.tweak]
            .into_iter()
            .for_each(|keys| keys.as_flattened_mut().zeroize());
    }
}

/// The key's schedule, FIPS 197, section 5.2. No table is looked up.
#[target_feature(enable = "aes")]
fn expand(key: &[u8], rounds: usize) -> RoundKeys {
    let words = key.len() / 4;
    let mut schedule = [0u32; 4 * (ROUNDS_MAX + 1)];
    for (word, bytes) in schedule.iter_mut().zip(key.chunks_exact(4)) {
        *word = u32::from_le_bytes(bytes.try_into().expect("four bytes"));
    }
    let mut constant = 1u32;
    for i in words..4 * (rounds + 1) {
        let mut word = schedule[i - 1];
        if i % words == 0 {
            // The first byte is the lowest, so to rotate left is to rotate right.
            word = substitute(word).rotate_right(8) ^ constant;
            constant = (constant << 1) ^ ((constant >> 7) * 0x11b);
        } else if words > 6 && i % words == 4 {
            word = substitute(word);
        }
        schedule[i] = schedule[i - words] ^ word;
    }
    let mut keys = RoundKeys::default();
    for (to, from) in keys.as_flattened_mut().chunks_exact_mut(4).zip(schedule) {
        to.copy_from_slice(&from.to_le_bytes());
    }
    schedule.zeroize();
    keys
}

/// The four bytes through the S-box: the last round does that, and shifts rows, which are all the same here.
#[target_feature(enable = "aes")]
fn substitute(word: u32) -> u32 {
    _mm_cvtsi128_si32(_mm_aesenclast_si128(_mm_set1_epi32(word as i32), _mm_setzero_si128())) as u32
}

/// The schedule for the equivalent inverse cipher, section 5.3.5.
#[target_feature(enable = "aes")]
fn inverse(keys: &RoundKeys, rounds: usize) -> RoundKeys {
    let mut inverse = RoundKeys::default();
    inverse[0] = keys[rounds];
    inverse[rounds] = keys[0];
    for round in 1..rounds {
        store(&mut inverse[round], _mm_aesimc_si128(load(&keys[rounds - round])));
    }
    inverse
}

#[inline]
#[target_feature(enable = "sse2")]
fn load(bytes: &[u8; BLOCK]) -> __m128i {
    // SAFETY: there are sixteen bytes, wherever they begin.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "sse2")]
fn store(bytes: &mut [u8; BLOCK], block: __m128i) {
    // SAFETY: there are sixteen bytes, wherever they begin.
    unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), block) }
}

#[target_feature(enable = "aes")]
fn encrypt_tweaks(keys: &RoundKeys, rounds: usize, tweaks: &mut [[u8; BLOCK]]) {
    for tweak in tweaks {
        let mut block = _mm_xor_si128(load(tweak), load(&keys[0]));
        for key in &keys[1..rounds] {
            block = _mm_aesenc_si128(block, load(key));
        }
        store(tweak, _mm_aesenclast_si128(block, load(&keys[rounds])));
    }
}

/// Eight blocks at a time: the processor works on several at once.
#[target_feature(enable = "aes")]
fn sectors_narrow<const ENCRYPT: bool>(xts: &AesXts, tweaks: &[[u8; BLOCK]], len: usize, data: &mut [u8]) {
    const LANES: usize = 8;
    let (keys, rounds) = (xts.keys::<ENCRYPT>(), xts.rounds);
    for (sector, tweak) in data.chunks_exact_mut(len).zip(tweaks) {
        let mut tweak = load(tweak);
        let (blocks, _) = sector.as_chunks_mut::<BLOCK>();
        for blocks in blocks.chunks_exact_mut(LANES) {
            let mut tweaks = [tweak; LANES];
            for lane in 1..LANES {
                tweaks[lane] = double(tweaks[lane - 1]);
            }
            tweak = double(tweaks[LANES - 1]);
            let mut state = [tweak; LANES];
            let first = load(&keys[0]);
            for lane in 0..LANES {
                tweaks[lane] = _mm_xor_si128(tweaks[lane], first);
                state[lane] = _mm_xor_si128(load(&blocks[lane]), tweaks[lane]);
            }
            for key in &keys[1..rounds] {
                let key = load(key);
                for state in &mut state {
                    *state = if ENCRYPT { _mm_aesenc_si128(*state, key) } else { _mm_aesdec_si128(*state, key) };
                }
            }
            // The tweaks have the first round's key in them: it comes out, and the last one's in.
            let last = _mm_xor_si128(load(&keys[rounds]), first);
            for lane in 0..LANES {
                let key = _mm_xor_si128(tweaks[lane], last);
                let done = if ENCRYPT {
                    _mm_aesenclast_si128(state[lane], key)
                } else {
                    _mm_aesdeclast_si128(state[lane], key)
                };
                store(&mut blocks[lane], done);
            }
        }
    }
}

/// The next block's tweak.
#[inline]
#[target_feature(enable = "sse2")]
fn double(tweak: __m128i) -> __m128i {
    // The highest bit of each half: the lower one's goes to the upper half, the upper one's comes back as x^7 + x^2 + x + 1.
    let carries = _mm_srai_epi32::<31>(_mm_shuffle_epi32::<0b00_01_00_11>(tweak));
    let carried = _mm_and_si128(carries, _mm_set_epi32(0, 1, 0, 0x87));
    _mm_xor_si128(_mm_add_epi64(tweak, tweak), carried)
}

/// Each round's key in each of the four places.
#[inline]
#[target_feature(enable = "avx512f")]
fn broadcast(keys: &RoundKeys) -> [__m512i; ROUNDS_MAX + 1] {
    let mut wide = [_mm512_setzero_si512(); ROUNDS_MAX + 1];
    for (to, key) in wide.iter_mut().zip(keys) {
        *to = _mm512_broadcast_i32x4(load(key));
    }
    wide
}

#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes")]
fn encrypt_tweaks_wide(keys: &RoundKeys, rounds: usize, tweaks: &mut [[u8; BLOCK]; SECTORS]) {
    let keys = broadcast(keys);
    let bytes = tweaks.as_flattened_mut();
    let (blocks, _) = bytes.as_chunks_mut::<64>();
    for blocks in blocks.chunks_exact_mut(4) {
        let mut state = [keys[0]; 4];
        for (state, block) in state.iter_mut().zip(&*blocks) {
            *state = _mm512_xor_si512(*state, load_wide(block));
        }
        for key in &keys[1..rounds] {
            for state in &mut state {
                *state = _mm512_aesenc_epi128(*state, *key);
            }
        }
        for (state, block) in state.into_iter().zip(blocks) {
            store_wide(block, _mm512_aesenclast_epi128(state, keys[rounds]));
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load_wide(bytes: &[u8; 64]) -> __m512i {
    // SAFETY: there are 64 bytes, wherever they begin.
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store_wide(bytes: &mut [u8; 64], blocks: __m512i) {
    // SAFETY: there are 64 bytes, wherever they begin.
    unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), blocks) }
}

/// 32 blocks at a time, four to a register.
#[target_feature(enable = "avx512f,avx512bw,vaes,vpclmulqdq,aes")]
fn sectors_wide<const ENCRYPT: bool>(xts: &AesXts, tweaks: &[[u8; BLOCK]], len: usize, data: &mut [u8]) {
    const LANES: usize = GROUP / 64;
    let (keys, rounds) = (broadcast(xts.keys::<ENCRYPT>()), xts.rounds);
    // Multiplying by x^n, n below 64, shifts both halves by n; what falls out of the lower one goes to the upper one, what falls out of that comes
    // back times x^7 + x^2 + x + 1.
    let back = _mm512_set1_epi64(0x87);
    let shifts = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
    for (sector, tweak) in data.chunks_exact_mut(len).zip(tweaks) {
        let start = _mm512_broadcast_i32x4(load(tweak));
        let mut tweaks = [start; LANES];
        for (lane, tweak) in tweaks.iter_mut().enumerate() {
            let by = _mm512_add_epi64(shifts, _mm512_set1_epi64(4 * lane as i64));
            let out = _mm512_srlv_epi64(start, _mm512_sub_epi64(_mm512_set1_epi64(64), by));
            *tweak = _mm512_ternarylogic_epi64::<0x96>(
                _mm512_sllv_epi64(start, by),
                _mm512_bslli_epi128::<8>(out),
                _mm512_clmulepi64_epi128::<0x01>(out, back),
            );
        }
        let (blocks, _) = sector.as_chunks_mut::<64>();
        for blocks in blocks.chunks_exact_mut(LANES) {
            let mut state = [keys[0]; LANES];
            for lane in 0..LANES {
                state[lane] = _mm512_ternarylogic_epi64::<0x96>(state[lane], tweaks[lane], load_wide(&blocks[lane]));
            }
            for key in &keys[1..rounds] {
                for state in &mut state {
                    *state =
                        if ENCRYPT { _mm512_aesenc_epi128(*state, *key) } else { _mm512_aesdec_epi128(*state, *key) };
                }
            }
            for lane in 0..LANES {
                let key = _mm512_xor_si512(keys[rounds], tweaks[lane]);
                let done = if ENCRYPT {
                    _mm512_aesenclast_epi128(state[lane], key)
                } else {
                    _mm512_aesdeclast_epi128(state[lane], key)
                };
                store_wide(&mut blocks[lane], done);
                // 32 blocks further on: times x^32.
                let out = _mm512_bsrli_epi128::<12>(tweaks[lane]);
                tweaks[lane] = _mm512_xor_si512(
                    _mm512_bslli_epi128::<4>(tweaks[lane]),
                    _mm512_clmulepi64_epi128::<0x00>(out, back),
                );
            }
        }
    }
}
