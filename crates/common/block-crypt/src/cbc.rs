//! Whole texts in AES-256-CBC with padding, as secrets are encrypted with a master key. Sectors are not encrypted this way.

use crate::algorithm::CipherMode;
use crate::mode::Moded;
use crate::secret::Secret;
use subtle::{Choice, ConstantTimeEq, ConstantTimeGreater};

const BLOCK: usize = 16;

/// Why a text is not what AES-256-CBC with padding makes. Says nothing of what it decrypts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CbcError {
    /// No whole number of blocks; so many bytes.
    #[error("Length {0} must be a multiple of block size 16")]
    Length(usize),
    /// No padding at the end: another key, another initialisation vector, or another text.
    #[error("Incorrect number of padding bytes found on decrypted data")]
    Padding,
}

/// Decrypt `text`, which AES-256 in CBC mode encrypted with `key` and `iv`, and take off its PKCS#7 padding (RFC 5652, section 6.3).
///
/// # Errors
/// It is no whole number of blocks, or all of its padding is not right. How long looking at the padding takes does not depend on it.
pub fn aes256_cbc_decrypt(key: &[u8; 32], iv: [u8; BLOCK], mut text: Secret) -> Result<Secret, CbcError> {
    let len = text.expose().len();
    if !len.is_multiple_of(BLOCK) {
        return Err(CbcError::Length(len));
    }
    Moded::<aes::Aes256>::new(CipherMode::Cbc, key).decrypt(iv, text.expose_mut());
    let last = text.expose().last_chunk::<BLOCK>().ok_or(CbcError::Padding)?;
    let padding = last[BLOCK - 1];
    let mut good = !padding.ct_eq(&0) & !padding.ct_gt(&(BLOCK as u8));
    for (before_end, byte) in (0u8..).zip(last.iter().rev()) {
        let is_padding: Choice = padding.ct_gt(&before_end);
        good &= !is_padding | byte.ct_eq(&padding);
    }
    if !bool::from(good) {
        return Err(CbcError::Padding);
    }
    text.truncate(len - usize::from(padding));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];
    const IV: [u8; BLOCK] = [9; BLOCK];

    /// What `text`, padding included, decrypts to when it is encrypted.
    fn check(text: &[u8], expected: Result<&[u8], CbcError>) {
        let mut bytes = text.to_vec();
        if bytes.len().is_multiple_of(BLOCK) {
            Moded::<aes::Aes256>::new(CipherMode::Cbc, &KEY).encrypt(IV, &mut bytes);
        }
        let done = aes256_cbc_decrypt(&KEY, IV, Secret::new(bytes));
        assert_eq!(done.as_ref().map(Secret::expose), expected.as_ref().map(|text| *text), "{text:?}");
    }

    #[test]
    fn the_padding_goes_and_has_to_be_all_right() {
        check(b"fifteen bytes..\x01", Ok(b"fifteen bytes.."));
        check(&[16; 16], Ok(b""));
        check(&[b"a block of bytes".as_slice(), &[16; 16]].concat(), Ok(b"a block of bytes"));
        check(b"thirteen bytes\x02\x02", Ok(b"thirteen bytes"));
        check(b"thirteen bytes\x01\x02", Err(CbcError::Padding));
        check(b"fifteen bytes..\x00", Err(CbcError::Padding));
        check(b"fifteen bytes..\x11", Err(CbcError::Padding));
        check(b"fifteen bytes..\xff", Err(CbcError::Padding));
        check(b"", Err(CbcError::Padding));
        check(b"short", Err(CbcError::Length(5)));
    }

    /// `printf letmein | openssl enc -aes-256-cbc -K 0707… -iv 0909… | xxd -p`
    #[test]
    fn openssl_encrypts_the_same() {
        let text = 0xf0ceb26d2f76dfafcabf64407ffd2633_u128.to_be_bytes();
        let plain = aes256_cbc_decrypt(&KEY, IV, Secret::new(text.to_vec())).expect("it is padded");
        assert_eq!(plain.expose(), b"letmein");
    }
}
