//! Bytes that nobody is to see.

use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

/// A password or a key: it is wiped when it is dropped, has no content in the output of `Debug`, and comparing it takes as long whatever it is.
#[derive(Clone, Default)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// These bytes.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// `len` zeroes, to be written over.
    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    /// The bytes. Whoever copies them wipes the copy.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, to be written.
    pub fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Keep the first `len` bytes; the others are wiped.
    pub fn truncate(&mut self, len: usize) {
        self.0.iter_mut().skip(len).for_each(Zeroize::zeroize);
        self.0.truncate(len);
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Secret {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_told() {
        let secret = Secret::new(b"moon".to_vec());
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        assert!(secret == Secret::new(b"moon".to_vec()) && secret != Secret::new(b"noon".to_vec()));
        assert_ne!(secret, Secret::zeroed(4));
        assert_ne!(secret, Secret::default());
    }

    #[test]
    fn what_is_cut_off_is_gone() {
        let mut secret = Secret::new(b"moonlight".to_vec());
        secret.truncate(20);
        assert_eq!(secret.expose(), b"moonlight");
        secret.truncate(4);
        assert_eq!(secret.expose(), b"moon");
    }
}
