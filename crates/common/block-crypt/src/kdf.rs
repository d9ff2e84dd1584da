//! Keys from passwords.

use crate::algorithm::CryptError;
use crate::hash::{Hash, with_digest};
use crate::secret::Secret;
use std::time::Duration;

/// `len` bytes from a password: PBKDF2, RFC 8018, with HMAC.
///
/// # Errors
/// There is to be no iteration, or no output.
pub fn pbkdf2(hash: Hash, password: &[u8], salt: &[u8], iterations: u32, len: usize) -> Result<Secret, CryptError> {
    if iterations == 0 || len == 0 {
        return Err(CryptError::Parameters("PBKDF2"));
    }
    let mut out = Secret::zeroed(len);
    with_digest!(hash, D => ::pbkdf2::pbkdf2_hmac::<D>(password, salt, iterations, out.expose_mut()));
    Ok(out)
}

/// How many iterations of [`pbkdf2()`] for `len` bytes take `time` here, as `clock` says, which tells how much time was spent. It never falls.
pub fn pbkdf2_iterations(hash: Hash, len: usize, time: Duration, clock: impl Fn() -> Duration) -> u64 {
    let mut iterations = 1 << 12;
    loop {
        let start = clock();
        // What is derived does not matter.
        let derived = pbkdf2(hash, b"password", b"salt of what is measured", iterations, len.max(1));
        let taken = clock().saturating_sub(start);
        if taken >= Duration::from_millis(100) || iterations >= 1 << 30 || derived.is_err() {
            let each = taken.as_nanos().max(1);
            return u64::try_from(u128::from(iterations) * time.as_nanos() / each).unwrap_or(u64::MAX);
        }
        iterations *= 2;
    }
}

/// What [`argon2id`] costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Passes over the memory.
    pub time: u32,
    /// KiB of memory.
    pub memory: u32,
    /// Lanes, which could be worked on at a time.
    pub lanes: u32,
}

/// `len` bytes from a password: Argon2id of version 0x13, RFC 9106.
///
/// # Errors
/// The numbers are out of the range that the RFC has.
pub fn argon2id(password: &[u8], salt: &[u8], cost: Argon2Cost, len: usize) -> Result<Secret, CryptError> {
    let wrong = |_| CryptError::Parameters("Argon2id");
    let parameters = argon2::Params::new(cost.memory, cost.time, cost.lanes, Some(len)).map_err(wrong)?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, parameters);
    let mut out = Secret::zeroed(len);
    argon2.hash_password_into(password, salt, out.expose_mut()).map_err(wrong)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(secret: &Secret) -> String {
        secret.expose().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn pbkdf2_with_sha1_is_that_of_rfc_6070() {
        let told = |password: &[u8], salt: &[u8], count, len| {
            hex(&pbkdf2(Hash::Sha1, password, salt, count, len).expect("it is in range"))
        };
        assert_eq!(told(b"password", b"salt", 1, 20), "0c60c80f961f0e71f3a9b524af6012062fe037a6");
        assert_eq!(told(b"password", b"salt", 2, 20), "ea6c014dc72d6f8ccd1ed92ace1d41f0d8de8957");
        assert_eq!(told(b"password", b"salt", 4096, 20), "4b007901b765489abead49d926f721d065a429c1");
        let long = told(b"passwordPASSWORDpassword", b"saltSALTsaltSALTsaltSALTsaltSALTsalt", 4096, 25);
        assert_eq!(long, "3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038");
        assert_eq!(told(b"pass\0word", b"sa\0lt", 4096, 16), "56fa6aa75548099dcc37d7f03425e0c3");
    }

    /// RFC 7914, section 11.
    #[test]
    fn pbkdf2_with_sha256_is_that_of_rfc_7914() {
        let one = pbkdf2(Hash::Sha256, b"passwd", b"salt", 1, 64).expect("it is in range");
        assert!(hex(&one).starts_with("55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc"));
    }

    /// What is asked for without any is refused.
    #[test]
    fn nothing_is_derived_from_nothing() {
        assert_eq!(pbkdf2(Hash::Sha1, b"", b"", 0, 20), Err(CryptError::Parameters("PBKDF2")));
        assert_eq!(pbkdf2(Hash::Sha1, b"", b"", 1, 0), Err(CryptError::Parameters("PBKDF2")));
        let cost = Argon2Cost { time: 0, memory: 8, lanes: 1 };
        assert_eq!(argon2id(b"", b"saltsalt", cost, 32), Err(CryptError::Parameters("Argon2id")));
        let cost = Argon2Cost { time: 1, memory: 7, lanes: 1 };
        assert_eq!(argon2id(b"", b"saltsalt", cost, 32), Err(CryptError::Parameters("Argon2id")));
    }

    #[test]
    fn iterations_are_as_many_as_the_time_allows() {
        // A clock by which an iteration takes a microsecond, but for the first two looks at it.
        let (looks, iterations) = (std::cell::Cell::new(0u64), 1 << 12);
        let clock = || {
            looks.set(looks.get() + 1);
            // Each measurement looks twice, and has twice as many iterations.
            let measured: u64 = (0..looks.get() / 2).map(|i| iterations << i).sum();
            Duration::from_micros(measured)
        };
        // 4096 and more until 100 ms are over: 131,072 of them.
        assert_eq!(pbkdf2_iterations(Hash::Sha1, 20, Duration::from_millis(2000), clock), 2_000_000);
    }
}
