//! The options that an image that is there can be given: which there are, and what a list of them (`-o`) asks for.

use super::{CreateError, CreateOption, CreateOptionKind, SECTOR, luks, number_of, options_of, qcow2, size_of, text};
use crate::crypt::slots::SlotChange;
use block_common::Options;
use block_qcow2::Version;
use block_qcow2::check::Amendment;
use block_qcow2_format::RefcountBits;

/// What of the options of a new image an image that is there may be given; and some of its own.
const AMENDABLE: [&str; 9] = [
    "backing_file",
    "backing_fmt",
    "compat",
    "data_file",
    "data_file_raw",
    "encrypt.iter-time",
    "lazy_refcounts",
    "refcount_bits",
    "size",
];
/// The options of an encrypted image that change its key slots, in the order of their names.
const LUKS: [CreateOption; 5] = [
    luks::OPTIONS[7],
    CreateOption { name: "keyslot", ..OWN[0] },
    CreateOption { name: "new-secret", ..OWN[1] },
    CreateOption { name: "old-secret", ..OWN[2] },
    CreateOption { name: "state", ..OWN[3] },
];
const OWN: [CreateOption; 4] = [
    CreateOption {
        name: "encrypt.keyslot",
        kind: CreateOptionKind::Number,
        help: "Select a single keyslot to modify explicitly",
    },
    CreateOption {
        name: "encrypt.new-secret",
        kind: CreateOptionKind::Str,
        help: "New secret to set in the matching keyslots. Empty string to erase",
    },
    CreateOption {
        name: "encrypt.old-secret",
        kind: CreateOptionKind::Str,
        help: "Select all keyslots that match this password",
    },
    CreateOption {
        name: "encrypt.state",
        kind: CreateOptionKind::Str,
        help: "Select new state of affected keyslots (active/inactive)",
    },
];

/// What is to be different about an image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amend {
    /// About its format.
    pub change: Amendment,
    /// Its length in bytes.
    pub size: Option<u64>,
    /// Who may open it, if it is encrypted.
    pub slots: Option<SlotOptions>,
}

/// What options say of key slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotOptions(Vec<(&'static str, String)>);

/// The options that an image of `format` can be given, in the order of their names.
///
/// # Errors
/// It has none.
#[doc(alias = "bdrv_amend_options")]
pub fn amend_options(format: &str) -> Result<Vec<CreateOption>, CreateError> {
    match format {
        qcow2::NAME => {}
        luks::NAME => return Ok(LUKS.to_vec()),
        _ => return Err(CreateError::NoAmending(format.into())),
    }
    let mut all: Vec<_> = qcow2::OPTIONS.into_iter().filter(|option| AMENDABLE.contains(&option.name)).collect();
    all.extend(OWN);
    all.sort_by_key(|option| option.name);
    Ok(all)
}

impl Amend {
    /// What a list of options asks for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(format: &str, list: &str) -> Result<Self, CreateError> {
        let known = amend_options(format)?;
        let (given, _) = Options::parse_image_opts(list)?;
        let mut values = Vec::new();
        for (key, value) in given.flatten() {
            let Some(option) = known.iter().find(|option| option.name == key) else {
                let is_known = options_of(format, None).iter().any(|option| option.name == key);
                return Err(if is_known { CreateError::NotAmendable(key) } else { CreateError::UnknownOption(key) });
            };
            let value = text(&value);
            match option.kind {
                CreateOptionKind::Size => drop(size_of(option.name, &value)?),
                CreateOptionKind::Number => drop(number_of(option.name, &value)?),
                CreateOptionKind::Bool if value != "on" && value != "off" => {
                    return Err(CreateError::BadSwitch(option.name));
                }
                CreateOptionKind::Bool | CreateOptionKind::Str => {}
            }
            values.push((option.name, value));
        }
        if format == luks::NAME {
            let slots = Some(SlotOptions(values));
            return Ok(Self { slots, ..Self::default() });
        }
        let mut amend = Self::default();
        for (name, value) in values {
            let change = &mut amend.change;
            match name {
                "compat" => change.version = Some(version(value)?),
                "size" => amend.size = Some(length(&value)?),
                "lazy_refcounts" => change.lazy_refcounts = Some(value == "on"),
                "refcount_bits" => change.refcount_bits = Some(width(&value)?),
                "data_file" => change.data_file = Some(value.into_bytes()),
                "data_file_raw" => change.data_file_raw = Some(value == "on"),
                "backing_file" | "backing_fmt" => return Err(CreateError::AmendBacking),
                name => match name.strip_prefix("encrypt.") {
                    Some(name) => amend.slots.get_or_insert_default().0.push((name, value)),
                    None => return Err(CreateError::NotAmendable(name.into())),
                },
            }
        }
        Ok(amend)
    }
}

impl SlotOptions {
    /// The change that they say.
    ///
    /// # Errors
    /// The state is missing, or a value is none.
    pub fn change(&self) -> Result<SlotChange, CreateError> {
        let value = |name: &str| self.0.iter().rfind(|(known, _)| *known == name).map(|(_, value)| value);
        let number = |name: &'static str| {
            // Numbers below zero are large ones, as in C.
            let number = value(name).map(|value| number_of(name, value)).transpose()?;
            Ok::<_, CreateError>(number.map(|number| number as u64))
        };
        let active = match value("state").map(String::as_str) {
            None => return Err(CreateError::Missing("state")),
            Some("active") => true,
            Some("inactive") => false,
            Some(other) => return Err(CreateError::BadChoice { name: "state", value: other.into() }),
        };
        Ok(SlotChange {
            active,
            new_secret: value("new-secret").cloned(),
            old_secret: value("old-secret").cloned(),
            keyslot: number("keyslot")?,
            iter_time: number("iter-time")?,
        })
    }
}

fn version(value: String) -> Result<Version, CreateError> {
    match value.as_str() {
        "0.10" | "v2" => Ok(Version::V2),
        "1.1" | "v3" => Ok(Version::V3),
        _ => Err(CreateError::AmendLevel(value)),
    }
}

fn length(value: &str) -> Result<u64, CreateError> {
    let size = size_of("size", value)?;
    if size > i64::MAX as u64 {
        return Err(CreateError::AmendSize("Image size cannot be negative"));
    }
    if size.is_multiple_of(SECTOR) {
        Ok(size)
    } else {
        Err(CreateError::AmendSize("The new size must be a multiple of 512"))
    }
}

fn width(value: &str) -> Result<RefcountBits, CreateError> {
    let bits = u32::try_from(number_of("refcount_bits", value)?).ok();
    let bits = bits.filter(|bits| bits.is_power_of_two()).and_then(|bits| RefcountBits::new(bits.ilog2()).ok());
    bits.ok_or(CreateError::AmendSize("Refcount width must be a power of two and may not exceed 64 bits"))
}
