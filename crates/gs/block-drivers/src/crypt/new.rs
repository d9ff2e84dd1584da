//! New volumes: their options, and the bytes that they begin with.

use crate::create::CreateError;
use block_crypt::{Cipher, CipherMode, CipherSpec, Hash, IvGen, Secret, SectorCipher, pbkdf2_iterations};
use block_gs::GlobalState;
use block_luks_format::{Header1, LuksError, NewHeader1};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::time::Duration;

/// Milliseconds that the hashing of a password takes, unless the user says otherwise.
const ITER_TIME: u64 = 2000;
/// The hashing of the key takes so much less time than that of a password.
const DIGEST_SHARE: u64 = 8;
/// Fewer iterations are never made.
const ITERATIONS_MIN: u64 = 1000;
/// Bytes of the digest of a key.
const DIGEST_LEN: usize = 20;

/// Values that QEMU knows, beside those that there are here.
const OTHER_CIPHERS: [&str; 3] = ["3des", "des", "sm4"];
const OTHER_HASHES: [&str; 2] = ["md5", "sm3"];

/// A volume that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NewVolume {
    pub(crate) spec: CipherSpec,
    hash: Hash,
    iter_time: Duration,
    /// The name of the secret that opens it.
    secret: Option<String>,
    /// What stands before the names of options.
    prefix: &'static str,
}

impl NewVolume {
    /// What options say, which `value` has the text of; their names begin with `prefix`.
    ///
    /// # Errors
    /// Values that there are not, or that do not go together.
    pub(crate) fn parse(prefix: &'static str, value: impl Fn(&str) -> Option<String>) -> Result<Self, CreateError> {
        let text = |name: &str| value(&format!("{prefix}{name}"));
        let cipher = choice("cipher-alg", text("cipher-alg"), &OTHER_CIPHERS, Cipher::by_name)?;
        let mode = choice("cipher-mode", text("cipher-mode"), &[], CipherMode::by_name)?;
        let iv = text("ivgen-alg");
        if let Some(name) = iv.as_deref().filter(|name| !["plain", "plain64", "essiv"].contains(name)) {
            return Err(CreateError::BadChoice { name: "ivgen-alg", value: name.into() });
        }
        let iv_hash = choice("ivgen-hash-alg", text("ivgen-hash-alg"), &OTHER_HASHES, Hash::by_name)?;
        let hash = choice("hash-alg", text("hash-alg"), &OTHER_HASHES, Hash::by_name)?;
        let iv = match iv.as_deref() {
            None | Some("plain64") => IvGen::Plain64,
            Some("plain") => IvGen::Plain,
            Some(_) => IvGen::Essiv(iv_hash.unwrap_or(Hash::Sha256)),
        };
        let (cipher, mode) = (cipher.unwrap_or(Cipher::Aes256), mode.unwrap_or(CipherMode::Xts));
        let spec = CipherSpec { cipher, mode, iv: Some(iv) };
        // Whether they go together does not depend on the key.
        SectorCipher::portable(spec, Secret::zeroed(spec.key_len()).expose()).map_err(LuksError::from)?;
        // Numbers below zero are large ones, as in C.
        let time = text("iter-time").and_then(|time| time.parse::<i128>().ok()).map(|time| time as u64);
        let iter_time = Duration::from_millis(time.unwrap_or(ITER_TIME));
        Ok(Self { spec, hash: hash.unwrap_or(Hash::Sha256), iter_time, secret: text("key-secret"), prefix })
    }

    /// The password.
    ///
    /// # Errors
    /// None is named, or there is none of that name.
    pub(crate) fn password(&self, gs: &GlobalState) -> Result<Secret, CreateError> {
        let name =
            self.secret.as_deref().ok_or_else(|| CreateError::NoKeySecret(format!("{}key-secret", self.prefix)))?;
        Ok(gs.secret_text(name)?)
    }

    /// Bytes before the data.
    ///
    /// # Errors
    /// None: such a header can always be made.
    pub(crate) fn header_len(&self) -> Result<u64, CreateError> {
        let header =
            self.shape(1, String::new()).header(&Secret::zeroed(self.spec.key_len()), |_| Ok::<_, LuksError>(()))?;
        Ok(header.payload_offset())
    }

    fn shape(&self, digest_iterations: u32, uuid: String) -> NewHeader1 {
        NewHeader1 { spec: self.spec, hash: self.hash, uuid, digest_iterations, is_detached: false }
    }

    /// Make the bytes that the volume begins with: a header, and one key slot, with a key that nobody knows and `password` opens. This takes about as long as
    /// the options say.
    ///
    /// # Errors
    /// More time than anybody would wait, or the host has no random numbers.
    pub(crate) async fn make(
        self,
        gs: &GlobalState,
        password: Secret,
        is_detached: bool,
    ) -> Result<Vec<u8>, CreateError> {
        let made = gs.pool().run(move || self.make_now(&password, is_detached));
        made.await.unwrap_or(Err(CreateError::Graph(block_gs::GraphError::ShuttingDown)))
    }

    fn make_now(&self, password: &Secret, is_detached: bool) -> Result<Vec<u8>, CreateError> {
        let mut key = Secret::zeroed(self.spec.key_len());
        random(key.expose_mut())?;
        let rate = Rate::measure(self.hash);
        let slot_iterations = rate.iterations(self.spec.key_len(), self.iter_time)?;
        let digest_iterations = rate.iterations(DIGEST_LEN, self.iter_time / DIGEST_SHARE as u32)?;
        let shape = NewHeader1 { is_detached, ..self.shape(digest_iterations, uuid()?) };
        let mut header = shape.header(&key, random)?;
        let sealed = header.seal(0, password.expose(), &key, slot_iterations, random)?;
        header.slots[0].state = sealed.state;
        let place = header.material(0);
        let mut bytes = vec![0; place.end as usize];
        bytes[..Header1::LEN].copy_from_slice(&header.bytes());
        bytes[place.start as usize..].copy_from_slice(sealed.material.expose());
        Ok(bytes)
    }
}

/// How fast PBKDF2 is here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    hash: Hash,
    /// Iterations of a second, for as many bytes as the hash has.
    each_second: u64,
}

impl Rate {
    pub(crate) fn measure(hash: Hash) -> Self {
        let each_second = pbkdf2_iterations(hash, hash.len(), Duration::from_secs(1), spent);
        Self { hash, each_second }
    }

    /// The iterations that take `time` for `len` bytes.
    ///
    /// # Errors
    /// There are more than any program takes, or than this one does.
    pub(crate) fn iterations(self, len: usize, time: Duration) -> Result<u32, CreateError> {
        let each_second = self.each_second / len.div_ceil(self.hash.len()).max(1) as u64;
        let Some(scaled) = u64::try_from(time.as_millis()).ok().and_then(|time| each_second.checked_mul(time)) else {
            return Err(CreateError::IterationsScale(each_second));
        };
        let all = (scaled / 1000).max(ITERATIONS_MIN);
        if all > u32::MAX.into() {
            return Err(CreateError::Iterations(all, u32::MAX));
        }
        if all > Header1::ITERATIONS_MAX.into() {
            return Err(CreateError::Iterations(all, Header1::ITERATIONS_MAX));
        }
        Ok(all as u32)
    }
}

/// The processor time that this thread has taken.
pub(crate) fn spent() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Random bytes that nobody can foresee.
///
/// # Errors
/// The host has none.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), CreateError> {
    OsRng.try_fill_bytes(bytes).map_err(|error| CreateError::Random(error.to_string()))
}

/// A name that no other volume has: version 4 of RFC 9562.
fn uuid() -> Result<String, CreateError> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

/// The algorithm that is called `value`. `others` are known in the field, and refused by name.
fn choice<T>(
    name: &'static str,
    value: Option<String>,
    others: &[&str],
    by_name: impl Fn(&str) -> Result<T, block_crypt::CryptError>,
) -> Result<Option<T>, CreateError> {
    let Some(value) = value else { return Ok(None) };
    match by_name(&value) {
        Ok(algorithm) => Ok(Some(algorithm)),
        Err(error) if others.contains(&value.as_str()) => Err(LuksError::from(error).into()),
        Err(_) => Err(CreateError::BadChoice { name, value }),
    }
}
