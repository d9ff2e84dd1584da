//! Dotted keys: the syntax of `key=value,key=value`, and of keys.
//!
//! Only pairs come out; nesting them is the neighbour's work, in `flat`.

use super::error::excerpt;
use super::{KEY_BYTES_MAX, OptionsError, TEXT_BYTES_MAX, Value};
use std::fmt;

type Pairs = Vec<(String, Value)>;

/// A use of `key` or `nokey` for `key=on` or `key=off`, which tools warn about. Displays the field's warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShortForm {
    /// What was written.
    pub written: String,
    /// What should be written.
    pub instead: String,
}

impl fmt::Display for ShortForm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "short-form boolean option '{}' deprecated\nPlease use {} instead", self.written, self.instead)
    }
}

/// Pairs of `--blockdev` and its like: every key has a value, but for the first, whose key may be implied.
pub(super) fn parse_strict(text: &str, implied_key: Option<&str>) -> Result<Pairs, OptionsError> {
    parse_with(text, implied_key, |_| false)
}

/// As [`parse_strict`], but `help` and `?` without a value are no pairs; whether one of them was there.
pub(super) fn parse_or_help(text: &str, implied_key: Option<&str>) -> Result<(Pairs, bool), OptionsError> {
    let mut asks = false;
    let pairs = parse_with(text, implied_key, |word| {
        let is_help = matches!(word, "help" | "?");
        asks |= is_help;
        is_help
    })?;
    Ok((pairs, asks))
}

/// Words without a value that `is_word` takes are left out.
fn parse_with(
    text: &str,
    implied_key: Option<&str>,
    mut is_word: impl FnMut(&str) -> bool,
) -> Result<Pairs, OptionsError> {
    check_length(text)?;
    let (mut pairs, mut rest) = (Pairs::new(), text);
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let has_value = rest[end..].starts_with('=');
        if !has_value && is_word(&rest[..end]) {
            rest = rest.get(end + 1..).unwrap_or("");
            continue;
        }
        if let Some(key) = implied_key.filter(|_| rest.len() == text.len() && end > 0 && !has_value) {
            // An implied value ends at the first comma; it cannot contain one.
            pairs.push((key.to_owned(), rest[..end].into()));
            rest = rest.get(end + 1..).unwrap_or("");
            continue;
        }
        let key = &rest[..end];
        check_key(key)?;
        if !has_value {
            return Err(OptionsError::NoValue { key: excerpt(key) });
        }
        let (value, after) = split_value(&rest[end + 1..]);
        pairs.push((key.to_owned(), value.into()));
        rest = after;
    }
    Ok(pairs)
}

/// Pairs of `--image-opts`: a key without a value is a switch.
pub(super) fn parse_image_opts(text: &str) -> Result<(Pairs, Vec<ShortForm>), OptionsError> {
    check_length(text)?;
    let (mut pairs, mut short_forms, mut rest) = (Pairs::new(), Vec::new(), text);
    while !rest.is_empty() {
        let end = rest.find(['=', ',']).unwrap_or(rest.len());
        let written = &rest[..end];
        if rest[end..].starts_with('=') {
            check_key(written)?;
            let (value, after) = split_value(&rest[end + 1..]);
            pairs.push((written.to_owned(), value.into()));
            rest = after;
        } else {
            let (key, value) = written.strip_prefix("no").map_or((written, "on"), |key| (key, "off"));
            check_key(key)?;
            short_forms.push(ShortForm { written: written.to_owned(), instead: format!("{key}={value}") });
            pairs.push((key.to_owned(), value.into()));
            rest = rest.get(end + 1..).unwrap_or("");
        }
    }
    Ok((pairs, short_forms))
}

/// The pairs as text that [`parse_strict`] reads, unless a value has no such form.
pub(super) fn print(pairs: &[(String, Value)]) -> Option<String> {
    let mut text = String::new();
    for (key, value) in pairs {
        let value = match value {
            Value::Bool(true) => "on".to_owned(),
            Value::Bool(false) => "off".to_owned(),
            Value::Str(value) => value.replace(',', ",,"),
            Value::Int(_) | Value::Float(_) => value.to_string(),
            Value::Null | Value::List(_) | Value::Dict(_) => return None,
        };
        text.push_str(if text.is_empty() { "" } else { "," });
        text.push_str(&format!("{key}={value}"));
    }
    Some(text)
}

fn check_length(text: &str) -> Result<(), OptionsError> {
    if text.len() > TEXT_BYTES_MAX { Err(OptionsError::TooLong) } else { Ok(()) }
}

/// The value at the start of `text`, up to a comma that is not doubled, and what follows that comma.
fn split_value(text: &str) -> (String, &str) {
    let (mut value, mut rest) = (String::new(), text);
    loop {
        let Some((part, after)) = rest.split_once(',') else {
            value.push_str(rest);
            return (value, "");
        };
        value.push_str(part);
        let Some(after_second) = after.strip_prefix(',') else { return (value, after) };
        value.push(',');
        rest = after_second;
    }
}

/// Refuse a dotted key that no option can have.
fn check_key(key: &str) -> Result<(), OptionsError> {
    for (i, part) in key.split('.').enumerate() {
        normalise_key_part(part, i == 0, key)?;
    }
    Ok(())
}

/// Refuse what cannot be a key between two dots: it is a letter followed by letters, digits, `-` and `_`.
pub(super) fn check_key_part(part: &str) -> Result<(), OptionsError> {
    let mut bytes = part.bytes();
    let is_name = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    match is_name {
        false => Err(OptionsError::InvalidKey { key: excerpt(part) }),
        true if part.len() > KEY_BYTES_MAX => Err(OptionsError::KeyTooLong { key: excerpt(part) }),
        true => Ok(()),
    }
}

/// A part of `key`: a name, or, but for the first part, a place in a list. Leading zeroes of a place mean nothing.
pub(super) fn normalise_key_part<'a>(part: &'a str, is_first: bool, key: &str) -> Result<&'a str, OptionsError> {
    if !is_first && !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
        if part.len() > KEY_BYTES_MAX {
            return Err(OptionsError::KeyTooLong { key: excerpt(part) });
        }
        let significant = part.trim_start_matches('0');
        return Ok(if significant.is_empty() { "0" } else { significant });
    }
    match check_key_part(part) {
        Err(OptionsError::InvalidKey { .. }) => Err(OptionsError::InvalidKey { key: excerpt(key) }),
        Err(error) => Err(error),
        Ok(()) => Ok(part),
    }
}
