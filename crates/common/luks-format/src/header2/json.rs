//! The metadata of LUKS2 as JSON: read within bounds, and asked for by name. What a value is for, [`super`] knows.

use crate::error::LuksError;
use base64ct::{Base64, Encoding};
use block_crypt::Hash;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// How deep values lie in each other at most: metadata itself needs four, the rest is for tokens.
const DEPTH_MAX: usize = 32;
/// Members and elements, counted by the marks between them. 32 slots with all they have are a thousand.
const MARKS_MAX: usize = 1 << 16;
/// Bytes of a word: longer ones are nobody's names.
const WORD_MAX: usize = 64;

/// The object that `text` is.
pub(super) fn parse(text: &[u8]) -> Result<Map<String, Value>, LuksError> {
    check_size(text)?;
    serde_json::from_slice(text).map_err(|_| LuksError::Metadata("the JSON text".to_owned()))
}

/// Whether it is not too deep, and not of too many values, whatever else it is: it costs memory once it is parsed.
fn check_size(text: &[u8]) -> Result<(), LuksError> {
    let (mut depth, mut marks) = (0usize, 0usize);
    let (mut in_string, mut is_escaped) = (false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => (depth, marks) = (depth + 1, marks + 1),
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => marks += 1,
            _ => {}
        }
        if depth > DEPTH_MAX || marks > MARKS_MAX {
            return Err(LuksError::MetadataSize);
        }
    }
    Ok(())
}

/// A value, and where it stands, as errors say it.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    value: &'a Value,
    path: String,
}

impl<'a> Node<'a> {
    /// A member of the outermost object.
    pub(super) fn root(json: &'a Map<String, Value>, name: &str) -> Result<Self, LuksError> {
        let value = json.get(name).ok_or_else(|| LuksError::Metadata(name.to_owned()))?;
        Ok(Self { value, path: name.to_owned() })
    }

    /// It is not what it should be.
    pub(super) fn malformed(&self) -> LuksError {
        LuksError::Metadata(self.path.clone())
    }

    /// It names something that is not known here.
    pub(super) fn unsupported(&self, name: &str) -> LuksError {
        LuksError::Unsupported { path: self.path.clone(), name: name.to_owned() }
    }

    /// It is a number that makes no sense.
    pub(super) fn out_of_range(&self, value: u64) -> LuksError {
        LuksError::MetadataRange { path: self.path.clone(), value }
    }

    fn object(&self) -> Result<&'a Map<String, Value>, LuksError> {
        self.value.as_object().ok_or_else(|| self.malformed())
    }

    pub(super) fn optional(&self, name: &str) -> Result<Option<Self>, LuksError> {
        let member = self.object()?.get(name);
        Ok(member.map(|value| Self { value, path: format!("{}.{name}", self.path) }))
    }

    pub(super) fn member(&self, name: &str) -> Result<Self, LuksError> {
        self.optional(name)?.ok_or_else(|| LuksError::Metadata(format!("{}.{name}", self.path)))
    }

    /// Members whose names are numbers below `end`, written as numbers are.
    pub(super) fn numbered(&self, end: u32) -> Result<Vec<(u32, Self)>, LuksError> {
        let members = self.object()?.iter().map(|(name, value)| {
            let number = number(name).filter(|number| *number < end).ok_or_else(|| self.malformed())?;
            Ok((number, Self { value, path: format!("{}.{number}", self.path) }))
        });
        members.collect()
    }

    /// The numbers that are names in this array, each of which is the name of one of `known`.
    pub(super) fn names_of(&self, known: &[(u32, Self)]) -> Result<Vec<u32>, LuksError> {
        let is_known = |name: &u32| known.iter().any(|(number, _)| number == name);
        let name = |item: Self| number(item.word()?).filter(is_known).ok_or_else(|| item.malformed());
        self.items()?.map(name).collect()
    }

    pub(super) fn items(&self) -> Result<impl Iterator<Item = Self>, LuksError> {
        let items = self.value.as_array().ok_or_else(|| self.malformed())?;
        let path = &self.path;
        Ok(items.iter().map(move |value| Self { value, path: path.clone() }))
    }

    /// A name: some printable characters of ASCII, so it can stand in an error.
    pub(super) fn word(&self) -> Result<&'a str, LuksError> {
        let is_word = |text: &&str| text.len() <= WORD_MAX && text.bytes().all(|byte| byte.is_ascii_graphic());
        self.value.as_str().filter(is_word).ok_or_else(|| self.malformed())
    }

    /// That it is a word of those: there are types that nobody here knows.
    pub(super) fn is_one_of(&self, known: &[&str]) -> Result<(), LuksError> {
        let word = self.word()?;
        if known.contains(&word) { Ok(()) } else { Err(self.unsupported(word)) }
    }

    /// That the member `name`, if there is one, is an array without anything: each word in it would have to be understood, and none is.
    pub(super) fn refuse_any(&self, name: &str) -> Result<(), LuksError> {
        let Some(member) = self.optional(name)? else { return Ok(()) };
        let first = member.items()?.next();
        first.map_or(Ok(()), |first| Err(first.unsupported(first.word()?)))
    }

    /// A number that is a JSON number.
    pub(super) fn number(&self, range: RangeInclusive<u32>) -> Result<u32, LuksError> {
        let number = self.value.as_u64().ok_or_else(|| self.malformed())?;
        let in_range = u32::try_from(number).ok().filter(|number| range.contains(number));
        in_range.ok_or_else(|| self.out_of_range(number))
    }

    /// A number that is a string, as those are that may have 64 bits.
    pub(super) fn long(&self) -> Result<u64, LuksError> {
        let digits = self.word()?;
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten().ok_or_else(|| self.malformed())
    }

    /// Bytes, as many as `range` says.
    pub(super) fn bytes(&self, range: RangeInclusive<usize>) -> Result<Vec<u8>, LuksError> {
        // Three bytes are four characters.
        let is_short = |text: &&str| text.len() <= range.end().div_ceil(3) * 4;
        let text = self.value.as_str().filter(is_short).ok_or_else(|| self.malformed())?;
        let bytes = Base64::decode_vec(text).map_err(|_| self.malformed())?;
        if range.contains(&bytes.len()) { Ok(bytes) } else { Err(self.malformed()) }
    }

    pub(super) fn hash(&self) -> Result<Hash, LuksError> {
        Ok(Hash::by_name(self.word()?)?)
    }
}

/// A number as names have it: in one way only.
fn number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|number: &u32| number.to_string() == name)
}

/// Bytes as they stand in metadata.
pub(super) fn base64(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}
