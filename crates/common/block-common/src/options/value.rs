//! Values of options: JSON's, with whole numbers kept exact.
//!
//! Printing is here, reading is not.

use super::{OptionsError, keyval};
use indexmap::IndexMap;
use serde::ser::{SerializeMap, SerializeSeq};
use serde::{Serialize, Serializer};
use std::fmt::{self, Write};

/// A whole number between `i64::MIN` and `u64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Integer(i128);

impl Integer {
    pub(super) fn from_i128(value: i128) -> Option<Self> {
        (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(&value).then_some(Self(value))
    }

    /// The number, if it is at most `i64::MAX`.
    pub fn to_i64(self) -> Option<i64> {
        i64::try_from(self.0).ok()
    }

    /// The number, if it is not negative.
    pub fn to_u64(self) -> Option<u64> {
        u64::try_from(self.0).ok()
    }
}

impl From<i64> for Integer {
    fn from(value: i64) -> Self {
        Self(value.into())
    }
}

impl From<u64> for Integer {
    fn from(value: u64) -> Self {
        Self(value.into())
    }
}

impl From<u32> for Integer {
    fn from(value: u32) -> Self {
        Self(value.into())
    }
}

impl fmt::Display for Integer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The value of an option. In dotted keys all scalars are [`Value::Str`]; who asks for one says what to read it as.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// JSON's null: `"backing": null` is a backing file that shall not be.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(Integer),
    /// Any other number; finite.
    Float(f64),
    /// Text.
    Str(String),
    /// A list.
    List(Vec<Value>),
    /// Nested options.
    Dict(Dict),
}

impl Value {
    /// The one value in a JSON text of at most [`TEXT_BYTES_MAX`](super::TEXT_BYTES_MAX) bytes. Strings may stand in single quotes.
    ///
    /// # Errors
    /// [`OptionsError::Json`] says what is wrong with it; or it is too long, nests too deep, or has too many values.
    pub fn parse_json(text: &str) -> Result<Self, OptionsError> {
        super::json::parse(text)
    }
}

macro_rules! value_from {
    ($($from:ty => $make:expr),* $(,)?) => {
        $(impl From<$from> for Value {
            fn from(value: $from) -> Self {
                $make(value)
            }
        })*
    };
}

value_from! {
    bool => Value::Bool,
    i64 => |v: i64| Value::Int(v.into()),
    u64 => |v: u64| Value::Int(v.into()),
    u32 => |v: u32| Value::Int(v.into()),
    Integer => Value::Int,
    &str => |v: &str| Value::Str(v.to_owned()),
    String => Value::Str,
    Vec<Value> => Value::List,
    Dict => Value::Dict,
}

/// A dictionary that keeps the order in which keys came. Its keys are those of options: see [`Dict::insert`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dict(IndexMap<String, Value>);

impl Dict {
    /// Nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Set `key`, one without dots, to `value`. A key that is there keeps its place.
    ///
    /// # Errors
    /// A key that is not a letter followed by letters, digits, `-` and `_`, or is longer than
    /// [`KEY_BYTES_MAX`](super::KEY_BYTES_MAX).
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Result<(), OptionsError> {
        keyval::check_key_part(key)?;
        self.0.insert(key.to_owned(), value.into());
        Ok(())
    }

    /// As [`Dict::insert`] for a key that is checked later; whether it was new.
    pub(super) fn insert_unchecked(&mut self, key: String, value: Value) -> bool {
        self.0.insert(key, value).is_none()
    }

    /// The value of `key`.
    pub fn lookup(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// The value of `key`, to change.
    pub fn lookup_mut(&mut self, key: &str) -> Option<&mut Value> {
        self.0.get_mut(key)
    }

    /// Take `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        self.0.shift_remove(key)
    }

    /// Whether `key` is there.
    pub fn contains_key(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Keys and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for Dict {
    type Item = (String, Value);
    type IntoIter = indexmap::map::IntoIter<String, Value>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// JSON, spaced as the field spaces it, in ASCII.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(value) => write!(f, "{value}"),
            Self::Int(value) => write!(f, "{value}"),
            // The debug form keeps a fraction or an exponent, so that it reads back as what it is.
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Str(text) => write_json_string(f, text),
            Self::List(list) => {
                f.write_char('[')?;
                for (i, value) in list.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { ", " })?;
                    fmt::Display::fmt(value, f)?;
                }
                f.write_char(']')
            }
            Self::Dict(dict) => fmt::Display::fmt(dict, f),
        }
    }
}

impl fmt::Display for Dict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('{')?;
        for (i, (key, value)) in self.iter().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            write_json_string(f, key)?;
            write!(f, ": {value}")?;
        }
        f.write_char('}')
    }
}

fn write_json_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\u{8}' => f.write_str("\\b")?,
            '\u{c}' => f.write_str("\\f")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            ' '..='~' => f.write_char(c)?,
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(f, "\\u{unit:04X}")?;
                }
            }
        }
    }
    f.write_char('"')
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => match (value.to_u64(), value.to_i64()) {
                (Some(value), _) => serializer.serialize_u64(value),
                (None, value) => serializer.serialize_i64(value.unwrap_or(i64::MIN)),
            },
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Str(text) => serializer.serialize_str(text),
            Self::List(list) => {
                let mut seq = serializer.serialize_seq(Some(list.len()))?;
                for value in list {
                    seq.serialize_element(value)?;
                }
                seq.end()
            }
            Self::Dict(dict) => dict.serialize(serializer),
        }
    }
}

impl Serialize for Dict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
