//! Options of nodes: an ordered dictionary, the texts it is read from, and the reader that hands it out.
//!
//! Text becomes [`Options`] in one of three dialects ([`Dialect`]); an [`OptionReader`] takes values out by key and type and
//! refuses what is left, so that nothing is accepted and ignored. Sizes and depths of input are bounded ([`DEPTH_MAX`] and
//! its neighbours). What the options mean, which drivers exist, and opening anything is elsewhere; so are secrets.

mod error;
mod value;

mod flat;
mod json;
mod keyval;

mod file_name;
mod reader;

pub use error::{DriverKind, JsonError, JsonErrorKind, OptionsError};
pub use file_name::{FileName, strip_protocol};
pub use keyval::ShortForm;
pub use reader::{ChildOrNull, ChildSpec, Item, OptionReader};
pub use value::{Dict, Integer, Value};

use error::OptionPath;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// How deep options may nest: dictionaries and lists inside each other. Deeper than any backing chain that is usable.
pub const DEPTH_MAX: usize = 256;

/// How many values, containers included, one text may hold.
pub const VALUES_MAX: usize = 65536;

/// The longest key between two dots, in bytes. The field's own limit.
pub const KEY_BYTES_MAX: usize = 127;

/// The longest text that is read as options, in bytes.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// Where options come from. It decides how values are understood and how errors are worded, as it does in the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Dialect {
    /// JSON as QMP and `--blockdev '{…}'` take it: each value has its type, and a string is no number.
    #[default]
    Qmp,
    /// Dotted keys as `--blockdev driver=raw,file.driver=…` takes them: all values are text, read as the type that is asked
    /// for, and keys need a value.
    Keyval,
    /// Dotted keys of `--image-opts`, and `json:` texts: as [`Dialect::Keyval`], but sizes may have suffixes wherever the
    /// driver asks for a size, modes have their command-line names too, JSON's own types and text are mixed freely, and
    /// keys in JSON may have dots.
    Legacy,
}

/// The options of one node, in the order in which they were written. Children's options are nested dictionaries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    dialect: Dialect,
    /// Where these options stand in the text that they come from; empty for the root. For messages.
    path: OptionPath,
    dict: Dict,
}

impl Options {
    /// No options.
    pub fn new(dialect: Dialect) -> Self {
        Self::from_dict(dialect, Dict::new())
    }

    /// The entries of `dict`.
    pub fn from_dict(dialect: Dialect, dict: Dict) -> Self {
        Self { dialect, path: OptionPath::default(), dict }
    }

    /// A QMP command's argument, or part of one, that some other parser has read.
    ///
    /// # Errors
    /// Not an object; a key that cannot be an option's; nested too deep, or too many values.
    pub fn from_json_value(value: &serde_json::Value) -> Result<Self, OptionsError> {
        let value = json::convert(value)?;
        Self::from_parsed_json(Dialect::Qmp, value)
    }

    /// The JSON object in `text`, in the [`Dialect::Qmp`].
    ///
    /// # Errors
    /// As [`Options::from_json_value`], and text that is not JSON. As in QMP, strings may have single quotes, and a key that
    /// stands twice in an object is an error.
    pub fn parse_json(text: &str) -> Result<Self, OptionsError> {
        Self::from_parsed_json(Dialect::Qmp, json::parse(text)?)
    }

    /// What follows `--blockdev`: a JSON object if it starts with a brace, dotted keys otherwise. There the first value may
    /// stand alone and is the driver.
    ///
    /// # Errors
    /// As [`Options::parse_json`] and [`Options::parse_keyval`].
    pub fn parse_blockdev(text: &str) -> Result<Self, OptionsError> {
        if text.starts_with('{') { Self::parse_json(text) } else { Self::parse_keyval(text, Some("driver")) }
    }

    /// Dotted keys, in the [`Dialect::Keyval`]: `driver=raw,file.driver=file,file.filename=a,,b`. A doubled comma in a
    /// value is a comma; numbers between dots are places in a list, which has to be complete; of a key that is given twice
    /// the last value counts. With `implied_key`, a first value without a key has that one.
    ///
    /// # Errors
    /// Malformed or over-long keys, keys without a value, a key used both as a value and as a dictionary, holes in lists, or
    /// input beyond the limits.
    pub fn parse_keyval(text: &str, implied_key: Option<&str>) -> Result<Self, OptionsError> {
        let pairs = keyval::parse_strict(text, implied_key)?;
        Self::unflatten(Dialect::Keyval, pairs)
    }

    /// As [`Options::parse_keyval`], for what can be asked for help: `help` and `?` without a value are left out, and whether one of them was
    /// there comes second.
    ///
    /// # Errors
    /// As [`Options::parse_keyval`].
    pub fn parse_keyval_or_help(text: &str, implied_key: Option<&str>) -> Result<(Self, bool), OptionsError> {
        let (pairs, asks) = keyval::parse_or_help(text, implied_key)?;
        Ok((Self::unflatten(Dialect::Keyval, pairs)?, asks))
    }

    /// What follows `--image-opts`, in the [`Dialect::Legacy`]: as [`Options::parse_keyval`], but `key` alone is `key=on` and
    /// `nokey` is `key=off`. Each such use is reported, for the tools warn about them.
    ///
    /// # Errors
    /// As [`Options::parse_keyval`].
    pub fn parse_image_opts(text: &str) -> Result<(Self, Vec<ShortForm>), OptionsError> {
        let (pairs, short_forms) = keyval::parse_image_opts(text)?;
        Ok((Self::unflatten(Dialect::Legacy, pairs)?, short_forms))
    }

    /// What follows `json:` in a file name on a command line, in the [`Dialect::Legacy`]. See [`FileName`], which looks for
    /// the prefix.
    ///
    /// # Errors
    /// As [`Options::parse_json`].
    pub fn parse_json_file_name(text: &str) -> Result<Self, OptionsError> {
        let value = json::parse(text).map_err(|error| OptionsError::JsonFileName(error.into()))?;
        Self::from_parsed_json(Dialect::Legacy, value)
    }

    /// A QMP command's argument, or part of one: see [`Value::parse_json`].
    ///
    /// # Errors
    /// Not an object, or a key that cannot be an option's.
    pub fn from_value(value: Value) -> Result<Self, OptionsError> {
        Self::from_parsed_json(Dialect::Qmp, value)
    }

    fn from_parsed_json(dialect: Dialect, value: Value) -> Result<Self, OptionsError> {
        let Value::Dict(dict) = value else { return Err(OptionsError::NotAnObject) };
        if dialect == Dialect::Legacy {
            return Self::unflatten(dialect, dict);
        }
        flat::check_keys(&dict)?;
        Ok(Self::from_dict(dialect, dict))
    }

    /// Which dialect the values are in.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The entries.
    pub fn dict(&self) -> &Dict {
        &self.dict
    }

    /// The entries themselves.
    pub fn into_dict(self) -> Dict {
        self.dict
    }

    /// Where these options stand in the text that they come from, as messages say it: `file.` for a child's. Empty for the
    /// root.
    pub fn prefix(&self) -> String {
        let path = self.path.render(self.dialect);
        if path.is_empty() { path } else { path + "." }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.dict.is_empty()
    }

    /// The value at the dotted `key`, if it is there.
    pub fn lookup(&self, key: &str) -> Option<&Value> {
        let (first, rest) = split_key(key);
        let mut value = self.dict.lookup(first)?;
        for part in rest {
            value = match value {
                Value::Dict(dict) => dict.lookup(part)?,
                Value::List(list) => list.get(part.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(value)
    }

    /// Set the dotted `key` to `value`, replacing what was there. Dictionaries on the way are made.
    ///
    /// # Errors
    /// A malformed key; something on the way that is not a dictionary.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Result<(), OptionsError> {
        let (mut dict, mut here) = (&mut self.dict, key);
        let mut depth = 1;
        while let Some((part, rest)) = here.split_once('.') {
            let taken = key.len() - rest.len() - 1;
            if !dict.contains_key(part) {
                dict.insert(part, Dict::new())?;
            }
            dict = match dict.lookup_mut(part) {
                Some(Value::Dict(dict)) => dict,
                _ => return Err(OptionsError::Inconsistent { key: key[..taken].to_owned() }),
            };
            (here, depth) = (rest, depth + 1);
            if depth > DEPTH_MAX {
                return Err(OptionsError::TooDeep);
            }
        }
        dict.insert(here, value)
    }

    /// As [`Options::insert`], unless the key is there already. That is how a parent's settings reach its children.
    ///
    /// # Errors
    /// As [`Options::insert`].
    pub fn insert_default(&mut self, key: &str, value: impl Into<Value>) -> Result<(), OptionsError> {
        if self.lookup(key).is_some() { Ok(()) } else { self.insert(key, value) }
    }

    /// Every scalar and every empty dictionary or list with its dotted key, in order.
    pub fn flatten(&self) -> Vec<(String, Value)> {
        flat::flatten(self.dict.clone())
    }

    /// The options that [`Options::flatten`] gives `entries` for. Values may be containers too: they are flattened first. Of a
    /// key that stands twice the last value counts.
    ///
    /// # Errors
    /// Malformed keys, a key used both as a value and as a dictionary, holes in lists, input beyond the limits.
    pub fn unflatten(
        dialect: Dialect,
        entries: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Self, OptionsError> {
        Ok(Self::from_dict(dialect, flat::unflatten(entries)?))
    }

    /// The options as dotted keys, for [`Options::parse_keyval`]. Values lose their types. `None` if there is a value that
    /// dotted keys cannot express: null, and an empty dictionary or list.
    pub fn to_keyval(&self) -> Option<String> {
        keyval::print(&self.flatten())
    }

    /// The options as a file name that tools understand: `json:{"driver": "null-co"}`.
    pub fn to_json_file_name(&self) -> String {
        format!("json:{self}")
    }

    /// Start taking values out.
    pub fn reader(self) -> OptionReader {
        OptionReader::new(self)
    }

    /// Take values out with `read`; whatever it leaves is refused.
    ///
    /// # Errors
    /// What `read` returns, or the first key that it did not take.
    pub fn read<T, E: From<OptionsError>>(self, read: impl FnOnce(&mut OptionReader) -> Result<T, E>) -> Result<T, E> {
        let mut reader = self.reader();
        let value = read(&mut reader)?;
        reader.finish()?;
        Ok(value)
    }
}

fn split_key(key: &str) -> (&str, impl Iterator<Item = &str>) {
    let mut parts = key.split('.');
    (parts.next().unwrap_or(""), parts)
}

/// JSON, spaced as the field spaces it.
impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.dict, f)
    }
}

impl Serialize for Options {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.dict.serialize(serializer)
    }
}

/// In the [`Dialect::Qmp`]. Keys that stand twice are not noticed: [`Options::parse_json`] does.
impl<'de> Deserialize<'de> for Options {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Self::from_json_value(&value).map_err(serde::de::Error::custom)
    }
}
