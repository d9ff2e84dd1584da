//! Taking options out by key and type, and refusing what is left.
//!
//! Values are read as their dialect says; errors name the option from the root of the text. The reader knows no options
//! of its own: drivers ask for theirs.

use super::error::{OptionPath, excerpt};
use super::flat;
use super::{Dialect, Dict, DriverKind, Options, OptionsError, Value};
use crate::{NodeName, QapiEnum, SizeError, parse_size};
use indexmap::IndexMap;

/// A child: either a node that exists, or options to open one with.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildSpec {
    /// The name of a node, or of what else names one. Not checked: it is looked up.
    Reference(String),
    /// Options of a node that is to be opened.
    Inline(Options),
}

/// A child that may be refused expressly: `"backing": null`.
#[derive(Clone, Debug, PartialEq)]
pub enum ChildOrNull {
    /// There shall be none.
    Null,
    /// There shall be this one.
    Child(ChildSpec),
}

/// One value, with its place in the text. Each method reads it as a type; its error names the place.
#[derive(Clone, Debug)]
pub struct Item {
    value: Value,
    path: OptionPath,
    dialect: Dialect,
}

/// What text for a size should be; the hint is the field's, line breaks included.
const SIZE_HINT: &str = "a non-negative number below 2^64\nOptional suffix k, M, G, T, P or E means kilo-, mega-, giga-, \
                         tera-, peta-\nand exabytes, respectively.";

impl Item {
    /// Where the value stands, as messages say it.
    pub fn key(&self) -> String {
        self.path.render(self.dialect)
    }

    /// An error about this value. `reason` completes a sentence: `must be a multiple of 512`.
    pub fn invalid(&self, reason: impl Into<String>) -> OptionsError {
        OptionsError::Invalid { key: self.key(), reason: reason.into() }
    }

    fn is_container(&self) -> bool {
        matches!(self.value, Value::Dict(_) | Value::List(_))
    }

    fn wrong_type(&self, expected: &'static str) -> OptionsError {
        // A dictionary where dotted keys should have a scalar is one too many keys, not a type that somebody wrote.
        let is_scalar = !matches!(expected, "object" | "array") && !expected.starts_with("BlockdevRef");
        if self.dialect == Dialect::Keyval && is_scalar && self.is_container() {
            return OptionsError::UnexpectedBelow { key: self.key() };
        }
        OptionsError::WrongType { key: self.key(), expected }
    }

    fn expects(&self, expected: &'static str) -> OptionsError {
        OptionsError::Expects { key: self.key(), expected }
    }

    fn out_of_range(&self) -> OptionsError {
        let value = match &self.value {
            Value::Str(text) => excerpt(text),
            other => other.to_string(),
        };
        OptionsError::OutOfRange { key: self.key(), value }
    }

    /// The value as text: dotted keys have nothing else, and the legacy dialect makes text of JSON's own scalars.
    fn text(&self) -> Option<String> {
        match &self.value {
            Value::Str(text) => Some(text.clone()),
            Value::Bool(value) if self.dialect == Dialect::Legacy => Some(if *value { "on" } else { "off" }.to_owned()),
            Value::Int(_) | Value::Float(_) if self.dialect == Dialect::Legacy => Some(self.value.to_string()),
            _ => None,
        }
    }

    /// Text.
    ///
    /// # Errors
    /// Another type.
    pub fn into_str(self) -> Result<String, OptionsError> {
        // Moved: of a secret no copy is left behind.
        if let Value::Str(text) = self.value {
            return Ok(text);
        }
        self.text().ok_or_else(|| self.wrong_type("string"))
    }

    /// A truth value; in dotted keys `on`, `yes`, `true`, `y` or `off`, `no`, `false`, `n`.
    ///
    /// # Errors
    /// Another type or word.
    pub fn into_bool(self) -> Result<bool, OptionsError> {
        if let Value::Bool(value) = self.value {
            return Ok(value);
        }
        if self.dialect == Dialect::Qmp {
            return Err(self.wrong_type("boolean"));
        }
        match self.text().as_deref() {
            Some("on" | "yes" | "true" | "y") => Ok(true),
            Some("off" | "no" | "false" | "n") => Ok(false),
            Some(_) => Err(self.expects("'on' or 'off'")),
            None => Err(self.wrong_type("boolean")),
        }
    }

    /// A whole number. In dotted keys it may be hexadecimal (`0x10`) or octal (`020`).
    ///
    /// # Errors
    /// Another type, or a number out of range.
    pub fn into_i64(self) -> Result<i64, OptionsError> {
        let value = self.integer().and_then(|value| i64::try_from(value).ok());
        value.ok_or_else(|| self.not_an_integer(self.wrong_type("integer")))
    }

    /// A whole number that is not negative. In dotted keys it may be hexadecimal or octal.
    ///
    /// # Errors
    /// Another type, or a number out of range.
    pub fn into_u64(self) -> Result<u64, OptionsError> {
        let value = self.integer().and_then(|value| u64::try_from(value).ok());
        value.ok_or_else(|| self.not_an_integer(self.expects("uint64")))
    }

    /// As [`Item::into_u64`], below 2^32.
    ///
    /// # Errors
    /// Another type, or a number out of range.
    pub fn into_u32(self) -> Result<u32, OptionsError> {
        match self.integer() {
            Some(value) => u32::try_from(value).map_err(|_| self.expects("uint32_t")),
            None => Err(self.not_an_integer(self.expects("uint64"))),
        }
    }

    /// The whole number that the value is, if it is one.
    fn integer(&self) -> Option<i128> {
        match &self.value {
            Value::Int(value) => value.to_i64().map(i128::from).or(value.to_u64().map(i128::from)),
            Value::Str(text) if self.dialect != Dialect::Qmp => parse_c_integer(text),
            _ => None,
        }
    }

    /// The error of a value that is no whole number, or one out of range; `in_json` is what QMP says.
    fn not_an_integer(&self, in_json: OptionsError) -> OptionsError {
        match self.dialect {
            Dialect::Qmp => in_json,
            _ if self.is_container() => self.wrong_type("integer"),
            Dialect::Keyval => self.expects("integer"),
            Dialect::Legacy => self.expects("a number"),
        }
    }

    /// A size in bytes, below 2^63. In JSON it is a number; in dotted keys it may have a suffix, see
    /// [`parse_size`](crate::parse_size).
    ///
    /// # Errors
    /// Another type, or a number that is negative or too large.
    pub fn into_size(self) -> Result<u64, OptionsError> {
        let size = match (&self.value, self.dialect) {
            // C's numbers first, octal ones among them; only what cannot be one may be a size with a suffix or a fraction.
            (Value::Str(text), Dialect::Keyval) if !is_decorated(text) => match parse_c_integer(text) {
                Some(value) => bound_size(value),
                None => Err(SizeError::NotANumber),
            },
            (Value::Int(_), _) => self.integer().map_or(Err(SizeError::NotANumber), bound_size),
            (Value::Str(text), Dialect::Keyval | Dialect::Legacy) => parse_size(text),
            (Value::Bool(_) | Value::Float(_), Dialect::Legacy) => Err(SizeError::NotANumber),
            _ => return Err(self.wrong_type("integer")),
        };
        size.map_err(|error| match (error, self.dialect) {
            // Below zero are whole numbers only; with a suffix they are no numbers at all.
            (SizeError::Negative, Dialect::Legacy) if self.is_signed_and_more() => self.expects(SIZE_HINT),
            (SizeError::Negative, _) => self.out_of_range(),
            (_, Dialect::Qmp) => self.wrong_type("integer"),
            (_, Dialect::Keyval) => self.expects("integer"),
            (SizeError::TooLarge, Dialect::Legacy) => self.out_of_range(),
            (SizeError::NotANumber, Dialect::Legacy) => self.expects(SIZE_HINT),
        })
    }

    /// Whether what stands behind a sign is more than digits.
    fn is_signed_and_more(&self) -> bool {
        let Value::Str(text) = &self.value else { return false };
        let behind = text.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '-');
        !behind.bytes().all(|byte| byte.is_ascii_digit())
    }

    /// A value of an enumeration, by its QAPI name; the legacy dialect knows its other names too.
    ///
    /// # Errors
    /// Another type, or a name that is no value.
    pub fn into_enum<T: QapiEnum>(self) -> Result<T, OptionsError> {
        let Some(name) = self.text() else { return Err(self.wrong_type("string")) };
        let value = if self.dialect == Dialect::Legacy { T::from_name_or_alias(&name) } else { T::from_name(&name) };
        value.ok_or_else(|| OptionsError::BadValue { key: self.key(), value: excerpt(&name) })
    }

    /// The name of a node.
    ///
    /// # Errors
    /// Another type, or text that cannot name one.
    pub fn into_node_name(self) -> Result<NodeName, OptionsError> {
        Ok(NodeName::new(&self.into_str()?)?)
    }

    /// A child.
    ///
    /// # Errors
    /// A value that is neither text nor a dictionary.
    pub fn into_child(self) -> Result<ChildSpec, OptionsError> {
        match self.value {
            Value::Str(name) => Ok(ChildSpec::Reference(name)),
            Value::Dict(dict) => Ok(ChildSpec::Inline(Options { dialect: self.dialect, path: self.path, dict })),
            _ if self.dialect == Dialect::Legacy => Err(OptionsError::MissingChild { key: self.key() }),
            _ => Err(self.wrong_type("BlockdevRef")),
        }
    }

    /// A child or null; in the legacy dialect an empty text is null.
    ///
    /// # Errors
    /// A value of another type.
    pub fn into_child_or_null(self) -> Result<ChildOrNull, OptionsError> {
        match &self.value {
            Value::Null => Ok(ChildOrNull::Null),
            Value::Str(text) if text.is_empty() && self.dialect == Dialect::Legacy => Ok(ChildOrNull::Null),
            Value::Str(_) | Value::Dict(_) => self.into_child().map(ChildOrNull::Child),
            _ => Err(self.wrong_type("BlockdevRefOrNull")),
        }
    }

    /// Nested options, taken out by `read`; what it leaves is refused.
    ///
    /// # Errors
    /// Another type, what `read` returns, or the first key that it did not take.
    pub fn into_dict<T, E: From<OptionsError>>(
        self,
        read: impl FnOnce(&mut OptionReader) -> Result<T, E>,
    ) -> Result<T, E> {
        match self.value {
            Value::Dict(dict) => Options { dialect: self.dialect, path: self.path, dict }.read(read),
            _ => Err(self.wrong_type("object").into()),
        }
    }

    /// A list, each element read by `read`.
    ///
    /// # Errors
    /// Another type, or what `read` returns.
    pub fn into_list<T, E: From<OptionsError>>(self, mut read: impl FnMut(Item) -> Result<T, E>) -> Result<Vec<T>, E> {
        let Value::List(list) = self.value else { return Err(self.wrong_type("array").into()) };
        let (path, dialect) = (self.path, self.dialect);
        list.into_iter().enumerate().map(|(i, value)| read(Item { value, path: path.index(i), dialect })).collect()
    }

    /// The value as it is, for options whose shape depends on what is in them.
    pub fn into_value(self) -> Value {
        self.value
    }

    /// The value as it is.
    pub fn value(&self) -> &Value {
        &self.value
    }
}

/// Whether a number has a suffix or a fraction, so that only [`parse_size`] may understand it.
fn is_decorated(text: &str) -> bool {
    let is_hex = text.contains(['x', 'X']);
    text.contains('.') || (!is_hex && text.ends_with(|c: char| c.is_ascii_alphabetic()))
}

fn bound_size(value: i128) -> Result<u64, SizeError> {
    match value {
        ..0 => Err(SizeError::Negative),
        value => i64::try_from(value).map(|value| value as u64).map_err(|_| SizeError::TooLarge),
    }
}

/// A whole number as C's `strtoll` with base 0 reads it, the whole text: white space, a sign, and `0x` or `0` before
/// hexadecimal or octal digits.
fn parse_c_integer(text: &str) -> Option<i128> {
    let text = text.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return None;
    }
    // What overflows is out of every caller's range, on either side.
    let value = i128::from_str_radix(digits, radix).unwrap_or(i128::MAX);
    Some(if negative { -value } else { value })
}

/// Options from which values are taken until none is left. [`OptionReader::finish`] refuses the rest by name.
#[derive(Debug)]
#[must_use = "call finish(), which refuses the options that nobody took"]
pub struct OptionReader {
    dialect: Dialect,
    path: OptionPath,
    driver: Option<(DriverKind, String)>,
    /// In order; `None` where the value was taken.
    entries: IndexMap<String, Option<Value>>,
}

/// A family of methods: take an optional value of a type, or require it.
macro_rules! takers {
    ($($(#[$doc:meta])* $take:ident, $require:ident: $type:ty = $read:ident;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            #[doc = concat!("As [`Item::", stringify!($read), "`].")]
            pub fn $take(&mut self, key: &str) -> Result<Option<$type>, OptionsError> {
                self.take(key).map(Item::$read).transpose()
            }

            #[doc = concat!("As [`OptionReader::", stringify!($take), "`], and it has to be there.")]
            ///
            /// # Errors
            #[doc = concat!("It is absent; as [`Item::", stringify!($read), "`].")]
            pub fn $require(&mut self, key: &str) -> Result<$type, OptionsError> {
                self.$take(key)?.ok_or_else(|| self.missing(key))
            }
        )*
    };
}

impl OptionReader {
    pub(super) fn new(options: Options) -> Self {
        let Options { dialect, path, dict } = options;
        let entries = dict.into_iter().map(|(key, value)| (key, Some(value))).collect();
        Self { dialect, path, driver: None, entries }
    }

    /// Name the driver whose options these are, for messages.
    pub fn set_driver(&mut self, kind: DriverKind, name: impl Into<String>) {
        self.driver = Some((kind, name.into()));
    }

    /// Which dialect the values are in.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whether `key` is there and was not taken.
    pub fn contains(&self, key: &str) -> bool {
        self.peek(key).is_some()
    }

    /// The value of `key`, left where it is.
    pub fn peek(&self, key: &str) -> Option<&Value> {
        self.entries.get(key)?.as_ref()
    }

    /// The keys that were not taken, in order.
    pub fn remaining(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| key.as_str())
    }

    /// Take `key` as it is.
    pub fn take(&mut self, key: &str) -> Option<Item> {
        let value = self.entries.get_mut(key)?.take()?;
        Some(Item { value, path: self.path.key(key), dialect: self.dialect })
    }

    takers! {
        /// Text.
        take_str, require_str: String = into_str;
        /// A truth value.
        take_bool, require_bool: bool = into_bool;
        /// A whole number.
        take_i64, require_i64: i64 = into_i64;
        /// A whole number that is not negative.
        take_u64, require_u64: u64 = into_u64;
        /// A whole number that is not negative and below 2^32.
        take_u32, require_u32: u32 = into_u32;
        /// A size in bytes, below 2^63.
        take_size, require_size: u64 = into_size;
        /// The name of a node.
        take_node_name, require_node_name: NodeName = into_node_name;
        /// A child that may be null.
        take_child_or_null, require_child_or_null: ChildOrNull = into_child_or_null;
    }

    /// A child.
    ///
    /// # Errors
    /// As [`Item::into_child`].
    pub fn take_child(&mut self, key: &str) -> Result<Option<ChildSpec>, OptionsError> {
        self.take(key).map(Item::into_child).transpose()
    }

    /// As [`OptionReader::take_child`], and it has to be there.
    ///
    /// # Errors
    /// It is absent; as [`Item::into_child`].
    pub fn require_child(&mut self, key: &str) -> Result<ChildSpec, OptionsError> {
        self.take_child(key)?.ok_or_else(|| match self.dialect {
            Dialect::Legacy => OptionsError::MissingChild { key: self.render(key) },
            _ => self.missing(key),
        })
    }

    /// A value of an enumeration.
    ///
    /// # Errors
    /// As [`Item::into_enum`].
    pub fn take_enum<T: QapiEnum>(&mut self, key: &str) -> Result<Option<T>, OptionsError> {
        self.take(key).map(Item::into_enum).transpose()
    }

    /// As [`OptionReader::take_enum`], and it has to be there.
    ///
    /// # Errors
    /// It is absent; as [`Item::into_enum`].
    pub fn require_enum<T: QapiEnum>(&mut self, key: &str) -> Result<T, OptionsError> {
        self.take_enum(key)?.ok_or_else(|| self.missing(key))
    }

    /// Nested options, taken out by `read`; what it leaves is refused.
    ///
    /// # Errors
    /// As [`Item::into_dict`].
    pub fn take_dict<T, E: From<OptionsError>>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut OptionReader) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        self.take(key).map(|item| item.into_dict(read)).transpose()
    }

    /// A list, each element read by `read`.
    ///
    /// # Errors
    /// As [`Item::into_list`].
    pub fn take_list<T, E: From<OptionsError>>(
        &mut self,
        key: &str,
        read: impl FnMut(Item) -> Result<T, E>,
    ) -> Result<Option<Vec<T>>, E> {
        self.take(key).map(|item| item.into_list(read)).transpose()
    }

    fn render(&self, key: &str) -> String {
        self.path.key(key).render(self.dialect)
    }

    /// Whether the options are in the dialect of old, in which drivers look at everything themselves.
    pub fn is_legacy(&self) -> bool {
        self.dialect == Dialect::Legacy
    }

    /// The error that `key` is absent.
    pub fn missing(&self, key: &str) -> OptionsError {
        OptionsError::Missing { key: self.render(key) }
    }

    /// An error about the value of `key`, taken or not. `reason` completes a sentence: `must be a multiple of 512`.
    pub fn invalid(&self, key: &str, reason: impl Into<String>) -> OptionsError {
        OptionsError::Invalid { key: self.render(key), reason: reason.into() }
    }

    /// Refuse what was not taken.
    ///
    /// # Errors
    /// The first key that is left.
    pub fn finish(self) -> Result<(), OptionsError> {
        let Some((key, value)) = self.entries.iter().find_map(|(key, value)| Some((key, value.as_ref()?))) else {
            return Ok(());
        };
        match (self.dialect, &self.driver) {
            (Dialect::Legacy, Some((kind, driver))) => {
                let key = first_leaf(key, value);
                Err(OptionsError::Unsupported { kind: *kind, driver: driver.clone(), key })
            }
            (Dialect::Legacy, None) => Err(OptionsError::Unexpected { key: self.render(&first_leaf(key, value)) }),
            _ => Err(OptionsError::Unexpected { key: self.render(key) }),
        }
    }

    /// What was not taken, as options again: for whoever comes next.
    pub fn into_rest(self) -> Options {
        let mut dict = Dict::new();
        for (key, value) in self.entries {
            if let Some(value) = value {
                dict.insert_unchecked(key, value);
            }
        }
        Options { dialect: self.dialect, path: self.path, dict }
    }
}

/// The dotted key of the first scalar in `value`, which stands at `key`.
fn first_leaf(key: &str, value: &Value) -> String {
    let mut flat = Vec::new();
    flat::flatten_value(key.to_owned(), value.clone(), &mut flat);
    flat.into_iter().next().map_or_else(|| key.to_owned(), |(key, _)| key)
}
