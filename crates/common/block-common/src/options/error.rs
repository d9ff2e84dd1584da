//! Errors of options, and the places that they name.
//!
//! The wording is that of QEMU's tools where they show one; each error names the option with its path. It is not that of
//! `OptionsError`'s neighbours: opening a node has errors of its own.

use super::{DEPTH_MAX, Dialect, TEXT_BYTES_MAX, VALUES_MAX};
use crate::NodeNameError;
use std::fmt::Write;

/// One step into nested options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Key(String),
    Index(usize),
}

/// Where a value stands: the steps from the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct OptionPath(Vec<Step>);

impl OptionPath {
    pub(super) fn key(&self, key: &str) -> Self {
        self.with(Step::Key(key.to_owned()))
    }

    pub(super) fn index(&self, index: usize) -> Self {
        self.with(Step::Index(index))
    }

    fn with(&self, step: Step) -> Self {
        let mut steps = Vec::with_capacity(self.0.len() + 1);
        steps.extend_from_slice(&self.0);
        steps.push(step);
        Self(steps)
    }

    /// `children[0].file` where JSON was read, `children.0.file` where dotted keys were.
    pub(super) fn render(&self, dialect: Dialect) -> String {
        let mut text = String::new();
        for step in &self.0 {
            // Writing to a string cannot fail.
            let _ = match step {
                Step::Key(key) if text.is_empty() => write!(text, "{key}"),
                Step::Key(key) => write!(text, ".{key}"),
                Step::Index(index) if dialect == Dialect::Qmp => write!(text, "[{index}]"),
                Step::Index(index) => write!(text, ".{index}"),
            };
        }
        text
    }
}

/// `text`, shortened for a message.
pub(super) fn excerpt(text: &str) -> String {
    const CHARS_MAX: usize = 256;
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Whether a driver stands for a format or a protocol: messages differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DriverKind {
    /// Formats and filters: they need a child.
    Format,
    /// Protocols: they reach storage themselves.
    Protocol,
}

/// Why options cannot be read or used. `key` is a dotted path from the root of the text.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The text is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// What follows `json:` in a file name is not JSON, or is beyond the limits.
    #[error("Could not parse the JSON options: {0}")]
    JsonFileName(#[source] Box<OptionsError>),
    /// JSON, but not an object.
    #[error("Invalid JSON object given")]
    NotAnObject,
    /// A key that no option can have.
    #[error("Invalid parameter '{key}'")]
    InvalidKey {
        /// The key.
        key: String,
    },
    /// A part of a key is longer than [`KEY_BYTES_MAX`](super::KEY_BYTES_MAX).
    #[error("Parameter '{key}' is too long")]
    KeyTooLong {
        /// The key, shortened.
        key: String,
    },
    /// A dotted key without a value.
    #[error("Expected '=' after parameter '{key}'")]
    NoValue {
        /// The key.
        key: String,
    },
    /// A key is used as a value and as a dictionary, or as a dictionary and as a list.
    #[error("Parameters '{key}.*' used inconsistently")]
    Inconsistent {
        /// The key that is both.
        key: String,
    },
    /// A list has a hole.
    #[error("Parameter '{key}' missing")]
    MissingElement {
        /// The first place that is empty.
        key: String,
    },
    /// Nested deeper than [`DEPTH_MAX`].
    #[error("options nest deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// More values than [`VALUES_MAX`].
    #[error("more than {VALUES_MAX} options")]
    TooMany,
    /// Longer than [`TEXT_BYTES_MAX`].
    #[error("options are longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
    /// A required option is absent.
    #[error("Parameter '{key}' is missing")]
    Missing {
        /// Its key.
        key: String,
    },
    /// A required child is absent.
    #[error("A block device must be specified for \"{key}\"")]
    MissingChild {
        /// Its key.
        key: String,
    },
    /// A JSON value of the wrong type.
    #[error("Invalid parameter type for '{key}', expected: {expected}")]
    WrongType {
        /// Its key.
        key: String,
        /// The type that it should have had.
        expected: &'static str,
    },
    /// A value that cannot be read as what it should be.
    #[error("Parameter '{key}' expects {expected}")]
    Expects {
        /// Its key.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A number that is too small or too large.
    #[error("Value '{value}' is out of range for parameter '{key}'")]
    OutOfRange {
        /// Its key.
        key: String,
        /// The number.
        value: String,
    },
    /// A name that is none of the values that the option can have.
    #[error("Parameter '{key}' does not accept value '{value}'")]
    BadValue {
        /// Its key.
        key: String,
        /// The name, shortened.
        value: String,
    },
    /// A value that is well-formed but makes no sense.
    #[error("Parameter '{key}' {reason}")]
    Invalid {
        /// Its key.
        key: String,
        /// Why, as the rest of a sentence: `must be a multiple of 512`.
        reason: String,
    },
    /// Not a name for a node.
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    /// Nobody knows this option.
    #[error("Parameter '{key}' is unexpected")]
    Unexpected {
        /// Its key.
        key: String,
    },
    /// Dotted keys go on below an option that is no dictionary.
    #[error("Parameters '{key}.*' are unexpected")]
    UnexpectedBelow {
        /// The option's key.
        key: String,
    },
    /// The driver does not know this option.
    #[error("Block {} '{driver}' {} the option '{key}'",
        if *.kind == DriverKind::Format { "format" } else { "protocol" },
        if *.kind == DriverKind::Format { "does not support" } else { "doesn't support" })]
    Unsupported {
        /// What the driver stands for.
        kind: DriverKind,
        /// The driver.
        driver: String,
        /// The key, from the node on.
        key: String,
    },
}

/// Text is not JSON: what is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct JsonError {
    pub(super) kind: JsonErrorKind,
    pub(super) offset: usize,
}

impl JsonError {
    /// What is wrong.
    pub fn kind(&self) -> &JsonErrorKind {
        &self.kind
    }

    /// The byte of the text at which it was noticed.
    pub fn offset(&self) -> usize {
        self.offset
    }
}

/// What is wrong with a JSON text. The wording is the field's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonErrorKind {
    /// Nothing but white space.
    #[error("Expecting a JSON value")]
    Empty,
    /// Something follows the value.
    #[error("Expecting at most one JSON value")]
    Trailing,
    /// The text stops before the value does.
    #[error("JSON parse error, premature EOI")]
    Premature,
    /// Characters that begin nothing.
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    /// A word other than true, false and null.
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    /// No value where one belongs.
    #[error("JSON parse error, expecting value")]
    NoValue,
    /// An object's key is not a string.
    #[error("JSON parse error, key is not a string in object")]
    KeyType,
    /// No colon after an object's key.
    #[error("JSON parse error, missing : in object pair")]
    Colon,
    /// Neither a comma nor the end after an object's value.
    #[error("JSON parse error, expected separator in dict")]
    DictSeparator,
    /// Neither a comma nor the end after a list's value.
    #[error("JSON parse error, expected separator in list")]
    ListSeparator,
    /// A key stands twice in an object.
    #[error("JSON parse error, duplicate key")]
    DuplicateKey,
    /// A backslash and a character that it does not go with.
    #[error("JSON parse error, invalid escape sequence in string")]
    Escape,
    /// An escaped character that does not exist, such as half a surrogate pair.
    #[error("JSON parse error, {0} is not a valid Unicode character")]
    Unicode(String),
    /// A number too large for a floating-point value.
    #[error("JSON parse error, number '{0}' is out of range")]
    Number(String),
}
