//! Objects that users make by name beside the graph, as `--object` and `object-add` do: secrets, throttle groups and I/O threads.
//!
//! This file has the registry and what is common to all types; what a type's properties mean is a module of its own below this one. What
//! a property holds is in no error, no list and no `Debug` output.

mod iothread;
mod secret;
mod throttle;

mod properties;

pub use iothread::{IoThreadInfo, IoThreadRef};
pub use properties::PropertyInfo;
pub use throttle::ThrottleGroupRef;

use crate::error::{GraphError, GraphResult};
use crate::state::GlobalState;
use block_common::options::JsonErrorKind;
use block_common::{OptionReader, Options, OptionsError, is_wellformed_id};
use block_crypt::{CbcError, Secret};
use block_throttle::{LimitsError, ThrottleGroup};
use iothread::{IoThreadObject, IoThreadProperties};
use secret::SecretProperties;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use throttle::{GroupObject, ThrottleProperties, Unowned};

/// The property that names the type.
const TYPE: &str = "qom-type";

/// Types that QEMU's tools have and this build does not.
const NOT_BUILT: [&str; 10] = [
    "authz-list",
    "authz-listfile",
    "authz-simple",
    "main-loop",
    "pr-manager-helper",
    "secret_keyring",
    "thread-context",
    "tls-creds-anon",
    "tls-creds-psk",
    "tls-creds-x509",
];

/// Types that QEMU has for machines, and its tools have not.
const FOR_MACHINES: [&str; 36] = [
    "acpi-generic-initiator",
    "acpi-generic-port",
    "authz-pam",
    "can-bus",
    "can-host-socketcan",
    "colo-compare",
    "cryptodev-backend",
    "cryptodev-backend-builtin",
    "cryptodev-backend-lkcf",
    "cryptodev-vhost-user",
    "dbus-vmstate",
    "filter-buffer",
    "filter-dump",
    "filter-mirror",
    "filter-redirector",
    "filter-replay",
    "filter-rewriter",
    "input-barrier",
    "input-linux",
    "iommufd",
    "memory-backend-epc",
    "memory-backend-file",
    "memory-backend-memfd",
    "memory-backend-ram",
    "memory-backend-shm",
    "pef-guest",
    "qtest",
    "rng-builtin",
    "rng-egd",
    "rng-random",
    "s390-pv-guest",
    "sev-guest",
    "sev-snp-guest",
    "tls-cipher-suites",
    "x-remote-object",
    "x-vfio-user-server",
];

/// Why an object cannot be made, found or removed. No variant has what a property holds, but for names of files and of objects.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObjectError {
    /// The text is not JSON; what stands there may be secret, and is not told.
    #[error("JSON parse error at byte {0}")]
    Json(usize),
    /// What follows `data=` in a text makes no sense, and may belong to it.
    #[error("What follows the comma in the value of 'data' is no parameter")]
    AfterData,
    /// A type that QEMU's tools do not have either.
    #[error("invalid object type: {0}")]
    ForMachines(String),
    /// A text that cannot name an object.
    #[error("Parameter 'id' expects an identifier")]
    BadId,
    /// An object has this id already.
    #[error("attempt to add duplicate property '{0}' to object (type 'container')")]
    Duplicate(String),
    /// There is no object of this id.
    #[error("object '{0}' not found")]
    NotFound(String),
    /// Somebody needs it.
    #[error("object '{0}' is in use, can not be deleted")]
    InUse(String),
    /// There is no I/O thread of this id.
    #[error("Cannot find iothread {0}")]
    NoIoThread(String),
    /// A property of an I/O thread is below zero.
    #[error("{0} value must be in range [0, {max}]", max = i64::MAX)]
    NotInRange(String),
    /// A pool without room for the threads that it is to have.
    #[error("bad thread-pool-min/thread-pool-max values")]
    ThreadPool,
    /// There is nothing at this path.
    #[error("Device '{0}' not found")]
    NoPath(String),
    /// There is much at this path.
    #[error("Path '{0}' is ambiguous")]
    AmbiguousPath(String),
    /// An object has no such property.
    #[error("Property '{of}.{property}' not found")]
    NoProperty {
        /// The object's type.
        of: &'static str,
        /// The property.
        property: String,
    },
    /// A property that is only read.
    #[error("Property '{of}.{property}' is not writable")]
    NotWritable {
        /// The object's type.
        of: &'static str,
        /// The property.
        property: String,
    },
    /// A property that is set when an object is made, and not later.
    #[error("Property cannot be set after initialization")]
    Initialized,
    /// A property that may be a secret.
    #[error("Property '{of}.{property}' is not told")]
    Untold {
        /// The object's type.
        of: &'static str,
        /// The property.
        property: String,
    },
    /// There is no throttle group of this name.
    #[error("Throttle group '{0}' does not exist")]
    NoThrottleGroup(String),
    /// There is a throttle group of this name, which is no object.
    #[error("A group with this name already exists")]
    GroupExists,
    /// A limit is below zero.
    #[error("Property values cannot be negative")]
    Negative,
    /// The length of a burst is out of range; what it is called.
    #[error("{0} value must be in the range [0, {max}]", max = u32::MAX)]
    BurstLength(String),
    /// Limits do not go together.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// There is no object of this id, and it would have to be a secret.
    #[error("No secret with id '{0}'")]
    NoSecret(String),
    /// A secret that is encrypted with itself.
    #[error("Secret with id '{0}' has no data")]
    NoData(String),
    /// What should be text is none, or ends with a zero byte before its end.
    #[error("Data from secret {0} is not valid UTF-8")]
    NotText(String),
    /// A secret without content.
    #[error("Either 'file' or 'data' must be provided")]
    NoContent,
    /// A secret with two contents.
    #[error("'file' and 'data' are mutually exclusive")]
    TwoContents,
    /// The file with a secret cannot be read.
    #[error("Unable to read {path}: {reason}")]
    File {
        /// Its name.
        path: String,
        /// What went wrong.
        reason: String,
    },
    /// A letter that base64 (RFC 4648, section 4) does not have.
    #[error("Base64 data contains invalid characters")]
    Base64Letter,
    /// A zero byte in base64.
    #[error("Base64 data contains embedded NUL characters")]
    Base64Nul,
    /// Letters of base64 that are not what bytes are written as.
    #[error("Base64 data is incomplete, or goes on behind its end")]
    Base64,
    /// A secret that others are encrypted with has another length than AES-256 needs.
    #[error("Key should be 32 bytes in length")]
    KeyLength,
    /// An encrypted secret without an initialisation vector.
    #[error("IV is required to decrypt secret")]
    NoIv,
    /// An initialisation vector for a secret that is not encrypted.
    #[error("'iv' is given without 'keyid'")]
    NoKeyId,
    /// An initialisation vector of another length than AES has blocks.
    #[error("IV should be 16 bytes in length not {0}")]
    IvLength(usize),
    /// An encrypted secret cannot be decrypted.
    #[error(transparent)]
    Decrypt(#[from] CbcError),
}

impl ObjectError {
    /// What to add to the message for a person at a terminal.
    pub(crate) fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BadId => Some("Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."),
            Self::AfterData => Some("A comma in a value is written twice."),
            _ => None,
        }
    }
}

/// What can be seen of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ObjectInfo {
    /// Its id.
    pub id: String,
    /// Its type, as in `qom-type`.
    pub qom_type: &'static str,
}

/// What a text that follows `--object` asks for.
pub enum ObjectText {
    /// To be told this, lines with ends.
    Help(String),
    /// To make an object, with [`GlobalState::add_object`].
    Make(Options),
}

impl ObjectText {
    /// Read a JSON object, or `type,id=…,property=value`, where `help` may stand among the properties.
    ///
    /// # Errors
    /// As [`Options::parse_json`] and [`Options::parse_keyval`] say it, but for what could be a part of a secret; help for a type that is not built.
    pub fn parse(text: &str) -> GraphResult<Self> {
        Self::parse_for(text, false)
    }

    /// The same where [`GlobalOptions::io_threads`](crate::GlobalOptions::io_threads) is set.
    ///
    /// # Errors
    /// As [`ObjectText::parse`].
    pub fn parse_with_threads(text: &str) -> GraphResult<Self> {
        Self::parse_for(text, true)
    }

    fn parse_for(text: &str, io_threads: bool) -> GraphResult<Self> {
        if text.starts_with('{') {
            return Ok(Self::Make(Options::parse_json(text).map_err(without_text)?));
        }
        let parsed = Options::parse_keyval_or_help(text, Some(TYPE));
        let (options, asks) = parsed.map_err(|error| without_data(text, error))?;
        match asks {
            true => Ok(Self::Help(help(options, io_threads)?)),
            false => Ok(Self::Make(options)),
        }
    }
}

/// Properties may be secret.
impl fmt::Debug for ObjectText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Help(_)) { "Help(..)" } else { "Make(..)" })
    }
}

/// The error of a JSON text, which cites nothing from it but keys.
fn without_text(error: OptionsError) -> GraphError {
    match &error {
        OptionsError::Json(json) => match json.kind() {
            JsonErrorKind::Stray(_)
            | JsonErrorKind::Keyword(_)
            | JsonErrorKind::Unicode(_)
            | JsonErrorKind::Number(_) => ObjectError::Json(json.offset()).into(),
            _ => error.into(),
        },
        _ => error.into(),
    }
}

/// The error of keys and values in `text`; what a comma cuts off from a secret reads like a key without a value, or like none.
fn without_data(text: &str, error: OptionsError) -> GraphError {
    let key = match &error {
        OptionsError::NoValue { key } | OptionsError::InvalidKey { key } | OptionsError::KeyTooLong { key } => key,
        _ => return error.into(),
    };
    let place = |is_it: &dyn Fn(&str) -> bool| text.split(',').position(is_it);
    let data = place(&|item| item.starts_with("data="));
    let found = place(&|item| item.split('=').next() == Some(key));
    match (data, found) {
        (None, _) => error.into(),
        (Some(data), Some(found)) if found < data => error.into(),
        _ => ObjectError::AfterData.into(),
    }
}

/// What there is to know of a type, or which types there are.
fn help(options: Options, io_threads: bool) -> GraphResult<String> {
    let name = options.reader().take_str(TYPE)?;
    match name.map(|name| Kind::of(&name)) {
        Some(Ok(Kind::IoThread)) if io_threads => Ok(iothread::HELP.into()),
        Some(Ok(Kind::Secret)) => Ok(secret::HELP.into()),
        Some(Ok(Kind::ThrottleGroup)) => Ok(throttle::HELP.into()),
        Some(Ok(Kind::NotBuilt(name))) => Err(not_built(name)),
        _ => {
            let thread = if io_threads { "  iothread\n" } else { "" };
            Ok(format!("List of user creatable objects:\n{thread}  secret\n  throttle-group\n"))
        }
    }
}

fn not_built(name: &str) -> GraphError {
    GraphError::NotBuilt(format!("Object type '{name}'"))
}

/// A type's name that somebody knows.
enum Kind {
    IoThread,
    Secret,
    ThrottleGroup,
    NotBuilt(&'static str),
    ForMachines(&'static str),
}

impl Kind {
    fn of(name: &str) -> GraphResult<Self> {
        let among = |names: &[&'static str]| names.iter().copied().find(|known| *known == name);
        match (among(&NOT_BUILT), among(&FOR_MACHINES)) {
            (Some(name), _) => Ok(Self::NotBuilt(name)),
            (_, Some(name)) => Ok(Self::ForMachines(name)),
            _ if name == "iothread" => Ok(Self::IoThread),
            _ if name == "secret" => Ok(Self::Secret),
            _ if name == "throttle-group" => Ok(Self::ThrottleGroup),
            _ => Err(OptionsError::BadValue { key: TYPE.into(), value: name.chars().take(100).collect() }.into()),
        }
    }
}

/// An object, whatever it is.
enum Object {
    IoThread(IoThreadObject),
    Secret(Secret),
    ThrottleGroup(GroupObject),
}

impl Object {
    fn qom_type(&self) -> &'static str {
        match self {
            Self::IoThread(_) => "iothread",
            Self::Secret(_) => "secret",
            Self::ThrottleGroup(_) => "throttle-group",
        }
    }

    fn is_in_use(&self) -> bool {
        match self {
            Self::IoThread(thread) => thread.is_in_use(),
            Self::Secret(_) => false,
            Self::ThrottleGroup(group) => group.is_in_use(),
        }
    }
}

/// An object's properties, which make sense by themselves.
enum Properties {
    IoThread(IoThreadProperties),
    Secret(SecretProperties),
    ThrottleGroup(ThrottleProperties),
}

impl Properties {
    /// Take them out of `options`.
    fn read(kind: Kind, options: &mut OptionReader) -> GraphResult<Self> {
        match kind {
            Kind::IoThread => Ok(Self::IoThread(IoThreadProperties::read(options)?)),
            Kind::Secret => Ok(Self::Secret(SecretProperties::read(options)?)),
            Kind::ThrottleGroup => Ok(Self::ThrottleGroup(ThrottleProperties::read(options)?)),
            Kind::NotBuilt(name) => Err(not_built(name)),
            Kind::ForMachines(name) => Err(ObjectError::ForMachines(name.into()).into()),
        }
    }
}

/// The objects of one block layer.
pub(crate) struct Objects {
    /// Whether I/O threads may be among them.
    io_threads: bool,
    all: RefCell<BTreeMap<String, Object>>,
    /// Throttle groups that are no objects.
    unowned: RefCell<Unowned>,
}

impl Objects {
    pub(crate) fn new(io_threads: bool) -> Self {
        Self { io_threads, all: RefCell::default(), unowned: RefCell::default() }
    }

    fn check_new(&self, id: &str) -> GraphResult<()> {
        match self.all.borrow().contains_key(id) {
            true => Err(ObjectError::Duplicate(id.into()).into()),
            false => Ok(()),
        }
    }

    fn put(&self, id: &str, object: Object) {
        self.all.borrow_mut().insert(id.into(), object);
    }
}

impl GlobalState {
    /// Make an object: `options` have its type (`qom-type`), its `id`, and what the type takes. Files are read in the pool. Of two calls with one id at
    /// the same time the first that is done has it.
    ///
    /// | type | property | |
    /// | --- | --- | --- |
    /// | `iothread` | `poll-max-ns` | how long it looks for completions before it sleeps, at most |
    /// | | `poll-grow`, `poll-shrink`, `aio-max-batch`, `thread-pool-min`, `thread-pool-max` | what they are without being said; all else would be without effect, and is refused |
    /// | `secret` | `data`, `file` | the content, or where it is; one of them, 8 MiB at most |
    /// | | `format` | `raw` (as it is) or `base64` |
    /// | | `keyid` | the secret of 32 bytes that this one is encrypted with: AES-256-CBC with PKCS#7 padding |
    /// | | `iv` | the initialisation vector, 16 bytes in base64 |
    /// | `throttle-group` | `limits` | a dictionary: `iops-total`, `iops-read`, `iops-write`, `bps-total`, `bps-read`, `bps-write` (0: no limit), each with `-max` and `-max-length` (seconds), and `iops-size` (bytes) |
    /// | | `x-iops-total`, … | the same by their old names; those among `limits` count |
    ///
    /// # Errors
    /// An unknown type, or one that is not built; a property that is missing, unknown or makes no sense; an id that is none, or is taken; a file that
    /// cannot be read; a secret that cannot be decrypted.
    pub async fn add_object(&self, options: Options) -> GraphResult<()> {
        let mut reader = options.reader();
        let kind = match Kind::of(&reader.require_str(TYPE)?)? {
            Kind::IoThread if !self.0.objects.io_threads => Kind::ForMachines("iothread"),
            kind => kind,
        };
        let id = reader.require_str("id")?;
        let properties = Properties::read(kind, &mut reader)?;
        reader.finish()?;
        if !is_wellformed_id(&id) {
            return Err(ObjectError::BadId.into());
        }
        let object = match properties {
            Properties::IoThread(properties) => {
                self.0.objects.check_new(&id)?;
                Object::IoThread(IoThreadObject::start(&id, properties).await?)
            }
            Properties::Secret(properties) => {
                self.0.objects.check_new(&id)?;
                Object::Secret(properties.load(self, &id).await?)
            }
            Properties::ThrottleGroup(properties) => {
                // What is wrong with one number is told before the id is looked at, and what is wrong with all of them afterwards.
                let settings = properties.settings()?;
                self.0.objects.check_new(&id)?;
                let limits = self.new_limits(&id, settings)?;
                Object::ThrottleGroup(GroupObject::new(&id, ThrottleGroup::new(limits)))
            }
        };
        self.0.objects.check_new(&id)?;
        self.0.objects.put(&id, object);
        Ok(())
    }

    /// Remove an object. Who has taken a secret from it keeps that.
    ///
    /// # Errors
    /// [`ObjectError::NotFound`]; [`ObjectError::InUse`] for a throttle group or a thread that somebody uses.
    pub fn remove_object(&self, id: &str) -> GraphResult<()> {
        let removed = {
            let mut all = self.0.objects.all.borrow_mut();
            match all.get(id) {
                None => return Err(ObjectError::NotFound(id.into()).into()),
                Some(object) if object.is_in_use() => return Err(ObjectError::InUse(id.into()).into()),
                Some(_) => all.remove(id),
            }
        };
        drop(removed);
        Ok(())
    }

    /// The objects, by id.
    pub fn objects(&self) -> Vec<ObjectInfo> {
        let objects = self.0.objects.all.borrow();
        objects.iter().map(|(id, object)| ObjectInfo { id: id.clone(), qom_type: object.qom_type() }).collect()
    }

    /// The bytes of the secret called `id`.
    ///
    /// # Errors
    /// [`ObjectError::NoSecret`].
    pub fn secret(&self, id: &str) -> GraphResult<Secret> {
        match self.0.objects.all.borrow().get(id) {
            Some(Object::Secret(secret)) => Ok(secret.clone()),
            _ => Err(ObjectError::NoSecret(id.into()).into()),
        }
    }

    /// As [`GlobalState::secret`], for passwords that QEMU takes for text: UTF-8 without zero bytes.
    ///
    /// # Errors
    /// [`ObjectError::NoSecret`], [`ObjectError::NotText`].
    pub fn secret_text(&self, id: &str) -> GraphResult<Secret> {
        let secret = self.secret(id)?;
        let is_text = std::str::from_utf8(secret.expose()).is_ok_and(|text| !text.contains('\0'));
        if is_text { Ok(secret) } else { Err(ObjectError::NotText(id.into()).into()) }
    }
}
