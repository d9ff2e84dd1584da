//! Keys from passwords.

use crate::algorithm::CryptError;
use crate::hash::{Hash, with_digest};
use crate::secret::Secret;
use std::time::Duration;
use zeroize::Zeroizing;

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

/// Milliseconds of computing that tell how long more takes.
const MEASURED: u64 = 20;

/// How many iterations of [`pbkdf2()`] for `len` bytes take `time` here, as `clock` says, which tells how much time was spent. It never falls.
pub fn pbkdf2_iterations(hash: Hash, len: usize, time: Duration, clock: impl Fn() -> Duration) -> u64 {
    let mut iterations = 1 << 12;
    loop {
        let start = clock();
        // What is derived does not matter.
        let derived = pbkdf2(hash, b"password", b"salt of what is measured", iterations, len.max(1));
        let taken = clock().saturating_sub(start);
        if taken >= Duration::from_millis(MEASURED) || iterations >= 1 << 30 || derived.is_err() {
            let each = taken.as_nanos().max(1);
            return u64::try_from(u128::from(iterations) * time.as_nanos() / each).unwrap_or(u64::MAX);
        }
        iterations *= 2;
    }
}

/// Which Argon2: RFC 9106 has both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Argon2Kind {
    /// Argon2i: which memory is looked at does not depend on the password.
    I,
    /// Argon2id: it does not for the first half of the first pass.
    Id,
}

impl Argon2Kind {
    /// What it is called everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::I => "argon2i",
            Self::Id => "argon2id",
        }
    }
}

/// What [`argon2()`] costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Passes over the memory.
    pub time: u32,
    /// KiB of memory.
    pub memory: u32,
    /// Lanes, which could be worked on at a time. Here they are worked on one behind the other.
    pub lanes: u32,
}

impl Argon2Cost {
    /// Fewer passes are not chosen by [`argon2_cost`].
    pub const TIME_MIN: u32 = 4;
    /// More memory is not chosen by [`argon2_cost`]: KiB.
    pub const MEMORY_MAX: u32 = 1 << 20;
    /// More lanes are not chosen by [`argon2_cost`].
    pub const LANES_MAX: u32 = 4;
    /// Less memory is not chosen for a lane: KiB. Argon2 needs 8.
    const LANE_MIN: u32 = 32;
}

/// `len` bytes from a password: Argon2 of version 0x13, RFC 9106. The memory is wiped.
///
/// # Errors
/// The numbers are out of the range that the RFC has, or there is not so much memory.
pub fn argon2(
    kind: Argon2Kind,
    password: &[u8],
    salt: &[u8],
    cost: Argon2Cost,
    len: usize,
) -> Result<Secret, CryptError> {
    let wrong = |_| CryptError::Parameters("Argon2");
    let parameters = ::argon2::Params::new(cost.memory, cost.time, cost.lanes, Some(len)).map_err(wrong)?;
    let mut memory = Zeroizing::new(Vec::new());
    memory.try_reserve_exact(parameters.block_count()).map_err(|_| CryptError::Memory(cost.memory))?;
    memory.resize(parameters.block_count(), ::argon2::Block::new());
    let algorithm = match kind {
        Argon2Kind::I => ::argon2::Algorithm::Argon2i,
        Argon2Kind::Id => ::argon2::Algorithm::Argon2id,
    };
    let argon2 = ::argon2::Argon2::new(algorithm, ::argon2::Version::V0x13, parameters);
    let mut out = Secret::zeroed(len);
    argon2.hash_password_into_with_memory(password, salt, out.expose_mut(), memory.as_mut_slice()).map_err(wrong)?;
    Ok(out)
}

/// What makes [`argon2()`] take `time` here, as `clock` says, which tells how much time was spent. It never falls.
///
/// Memory comes first: as much as can be gone over [`Argon2Cost::TIME_MIN`] times, but no more than `memory_max` KiB and [`Argon2Cost::MEMORY_MAX`]. Then there are more passes. There
/// are as many lanes as `threads`, up to [`Argon2Cost::LANES_MAX`]. What is cheaper than the least takes longer.
pub fn argon2_cost(
    kind: Argon2Kind,
    time: Duration,
    memory_max: u32,
    threads: u32,
    clock: impl Fn() -> Duration,
) -> Argon2Cost {
    let lanes = threads.clamp(1, Argon2Cost::LANES_MAX);
    let least = lanes * Argon2Cost::LANE_MIN;
    let memory_max = memory_max.clamp(least, Argon2Cost::MEMORY_MAX);
    let mut cost = Argon2Cost { time: Argon2Cost::TIME_MIN, memory: memory_max.min(1 << 10), lanes };
    loop {
        let start = clock();
        // What is derived does not matter.
        let derived = argon2(kind, b"password", b"salt of what is measured", cost, 32);
        let taken = clock().saturating_sub(start);
        if taken >= Duration::from_millis(100) || cost.time >= 1 << 20 || derived.is_err() {
            // Time is spent on each KiB of each pass.
            let steps = u128::from(cost.memory) * u128::from(cost.time) * time.as_nanos() / taken.as_nanos().max(1);
            let in_range = |steps: u128, least, most| u32::try_from(steps).unwrap_or(u32::MAX).clamp(least, most);
            cost.memory = in_range(steps / u128::from(Argon2Cost::TIME_MIN), least, memory_max);
            cost.time = in_range(steps / u128::from(cost.memory), Argon2Cost::TIME_MIN, 1 << 20);
            return cost;
        }
        if cost.memory < memory_max {
            cost.memory = memory_max.min(2 * cost.memory);
        } else {
            cost.time *= 2;
        }
    }
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
        for (time, memory) in [(0, 8), (1, 7)] {
            let cost = Argon2Cost { time, memory, lanes: 1 };
            let derived = argon2(Argon2Kind::Id, b"", b"saltsalt", cost, 32);
            assert_eq!(derived, Err(CryptError::Parameters("Argon2")));
        }
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
        // 4096 and more until 20 ms are over: 32,768 of them.
        assert_eq!(pbkdf2_iterations(Hash::Sha1, 20, Duration::from_millis(2000), clock), 2_000_000);
    }

    /// RFC 9106, section 5.3. It has a secret and associated data, which LUKS has no use for, so it is asked of the crate itself.
    #[test]
    fn the_argon2id_beneath_is_that_of_rfc_9106() {
        let data = ::argon2::AssociatedData::new(&[4; 12]).expect("it is short");
        let mut parameters = ::argon2::ParamsBuilder::new();
        parameters.m_cost(32).t_cost(3).p_cost(4).output_len(32).data(data);
        let parameters = parameters.build().expect("they are in range");
        let (algorithm, version) = (::argon2::Algorithm::Argon2id, ::argon2::Version::V0x13);
        let argon2 =
            ::argon2::Argon2::new_with_secret(&[3; 8], algorithm, version, parameters).expect("they are in range");
        let mut out = Secret::zeroed(32);
        argon2.hash_password_into(&[1; 32], &[2; 16], out.expose_mut()).expect("they are in range");
        assert_eq!(hex(&out), "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659");
    }

    /// What the authors' own program makes of `password` and `somesalt`, as published with it.
    #[test]
    fn argon2_is_that_of_its_authors() {
        for (kind, time, memory, lanes, expected) in [
            (Argon2Kind::Id, 2, 256, 1, "9dfeb910e80bad0311fee20f9c0e2b12c17987b4cac90c2ef54d5b3021c68bfe"),
            (Argon2Kind::Id, 2, 256, 2, "6d093c501fd5999645e0ea3bf620d7b8be7fd2db59c20d9fff9539da2bf57037"),
            (Argon2Kind::I, 2, 256, 1, "89e9029f4637b295beb027056a7336c414fadd43f6b208645281cb214a56452f"),
            (Argon2Kind::I, 2, 256, 2, "4ff5ce2769a1d7f4c8a491df09d41a9fbe90e5eb02155a13e4c01e20cd4eab61"),
        ] {
            let cost = Argon2Cost { time, memory, lanes };
            let derived = argon2(kind, b"password", b"somesalt", cost, 32).expect("it is in range");
            assert_eq!(hex(&derived), expected, "{} with {lanes}", kind.name());
        }
    }

    /// The cost for `time` where a pass over a KiB takes `each`, and `most` KiB and `threads` are there.
    fn chosen(time: u64, each: Duration, most: u32, threads: u32) -> (u32, u32, u32) {
        // A measurement looks twice: the clock goes on by what the first one would have taken, then by twice that, and so on.
        let looks = std::cell::Cell::new(0u32);
        let first = each * 4 * most.min(1 << 10);
        let clock = || {
            looks.set(looks.get() + 1);
            (0..looks.get() / 2).map(|i| first * (1 << i)).sum()
        };
        let cost = argon2_cost(Argon2Kind::Id, Duration::from_millis(time), most, threads, clock);
        (cost.time, cost.memory, cost.lanes)
    }

    #[test]
    fn memory_is_taken_first_and_passes_then() {
        let micros = Duration::from_micros;
        // 2 s are 200,000 passes over a KiB, or 4 over 50,000.
        assert_eq!(chosen(2000, micros(10), 1 << 20, 1), (4, 50_000, 1));
        // There is less memory, so there are more passes: the machine has 12,000 KiB for it.
        assert_eq!(chosen(2000, micros(20), 4096, 8), (24, 4096, 4));
        // No machine is too slow for the least.
        assert_eq!(chosen(1, micros(1000), 1 << 20, 0), (4, 32, 1));
        assert_eq!(chosen(1, micros(1000), 1, 2), (4, 64, 2));
        // More than a GiB is never taken.
        assert_eq!(chosen(1_000_000, micros(25), u32::MAX, 4), (38, 1 << 20, 4));
    }
}
