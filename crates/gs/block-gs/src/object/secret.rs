//! The object `secret`: a password or key, from a text or a file, perhaps encrypted with another one.
//!
//! What uses it is elsewhere.

use super::ObjectError;
use crate::error::GraphResult;
use crate::state::GlobalState;
use base64ct::{Base64, Encoding};
use block_common::{Errno, OptionReader, qapi_enum};
use block_crypt::{Secret, aes256_cbc_decrypt};
use std::fs::File;
use std::io::{self, ErrorKind, Read};

/// What is told of the type's properties.
pub(super) const HELP: &str = "secret options:
  data=<string>
  file=<string>
  format=<QCryptoSecretFormat>
  iv=<string>
  keyid=<string>
";

/// The most bytes of a file: as many as cryptsetup reads from a key file.
const FILE_BYTES_MAX: usize = 8 << 20;

qapi_enum! {
    /// How a secret is written.
    #[derive(Default)]
    pub(super) enum SecretFormat: "format of secrets" {
        /// As it is.
        #[default]
        Raw = "raw",
        /// RFC 4648, section 4.
        Base64 = "base64",
    }
}

/// Where the bytes of a secret are.
enum Content {
    Data(Secret),
    File(String),
}

/// What a secret is encrypted with.
struct Key {
    id: String,
    iv: Option<String>,
}

/// The properties, as they were written.
pub(super) struct SecretProperties {
    data: Option<Secret>,
    file: Option<String>,
    format: SecretFormat,
    keyid: Option<String>,
    iv: Option<String>,
}

impl SecretProperties {
    /// Take them out of `options`.
    ///
    /// # Errors
    /// One is of the wrong type.
    pub(super) fn read(options: &mut OptionReader) -> GraphResult<Self> {
        Ok(Self {
            data: options.take_str("data")?.map(|text| Secret::new(text.into_bytes())),
            file: options.take_str("file")?,
            format: options.take_enum("format")?.unwrap_or_default(),
            keyid: options.take_str("keyid")?,
            iv: options.take_str("iv")?,
        })
    }

    /// The bytes of the secret, which will be called `id`.
    ///
    /// # Errors
    /// The properties do not go together; the file, or the other secret, is not there or makes no sense.
    pub(super) async fn load(self, gs: &GlobalState, id: &str) -> GraphResult<Secret> {
        let content = match (self.data, self.file) {
            (Some(data), None) => Content::Data(data),
            (None, Some(file)) => Content::File(file),
            (None, None) => return Err(ObjectError::NoContent.into()),
            (Some(_), Some(_)) => return Err(ObjectError::TwoContents.into()),
        };
        let key = match (self.keyid, self.iv) {
            (None, Some(_)) => return Err(ObjectError::NoKeyId.into()),
            (keyid, iv) => keyid.map(|id| Key { id, iv }),
        };
        let written = match content {
            Content::Data(data) => data,
            Content::File(path) => read_in_pool(gs, path).await?,
        };
        let decode = || match self.format {
            SecretFormat::Raw => Ok(written),
            SecretFormat::Base64 => decode_base64(written.expose()),
        };
        match key {
            None => Ok(decode()?),
            Some(key) if key.id == id => Err(ObjectError::NoData(key.id).into()),
            Some(key) => {
                let master = gs.secret(&key.id)?;
                let master = master.expose().try_into().map_err(|_| ObjectError::KeyLength)?;
                let iv = key.iv()?;
                Ok(aes256_cbc_decrypt(master, iv, decode()?).map_err(ObjectError::from)?)
            }
        }
    }
}

impl Key {
    /// The initialisation vector.
    fn iv(&self) -> Result<[u8; 16], ObjectError> {
        let iv = decode_base64(self.iv.as_ref().ok_or(ObjectError::NoIv)?.as_bytes())?;
        iv.expose().try_into().map_err(|_| ObjectError::IvLength(iv.expose().len()))
    }
}

/// The bytes that `text` stands for; lines in it may end anywhere. It takes as long whatever the letters are.
fn decode_base64(text: &[u8]) -> Result<Secret, ObjectError> {
    let is_letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/=\n".contains(byte);
    if text.contains(&0) {
        return Err(ObjectError::Base64Nul);
    }
    if !text.iter().all(is_letter) {
        return Err(ObjectError::Base64Letter);
    }
    let mut line = Secret::zeroed(text.len());
    let mut len = 0;
    for byte in text.iter().filter(|byte| **byte != b'\n') {
        line.expose_mut()[len] = *byte;
        len += 1;
    }
    let mut bytes = Secret::zeroed(len / 4 * 3);
    let decoded = Base64::decode(&line.expose()[..len], bytes.expose_mut()).map_err(|_| ObjectError::Base64)?;
    let len = decoded.len();
    bytes.truncate(len);
    Ok(bytes)
}

/// All of a file.
async fn read_in_pool(gs: &GlobalState, path: String) -> Result<Secret, ObjectError> {
    let name = path.clone();
    let read = gs.pool().run(move || {
        #[expect(clippy::disallowed_methods, reason = "runs in the pool, whose threads may sleep")]
        let file = File::open(&path).map_err(|error| format!("Failed to open file “{path}”: {}", words(&error)))?;
        read_all(file).map_err(|error| format!("Error reading file “{path}”: {}", words(&error)))
    });
    let read = read.await.unwrap_or_else(|| Err("the thread panicked".into()));
    read.map_err(|reason| ObjectError::File { path: name, reason })
}

/// What the host calls an error.
fn words(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), |raw| Errno::from_raw(raw).to_string())
}

/// What `file` has up to its end, without leaving pieces of it in memory that is given back.
fn read_all(mut file: impl Read) -> io::Result<Secret> {
    let (mut bytes, mut len) = (Secret::zeroed(4096), 0);
    loop {
        if len == bytes.expose().len() {
            let mut larger = Secret::zeroed(2 * len);
            larger.expose_mut()[..len].copy_from_slice(bytes.expose());
            bytes = larger;
        }
        match file.read(&mut bytes.expose_mut()[len..]) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if len > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("It has more than {FILE_BYTES_MAX} bytes")));
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}
