//! Names of nodes: checked once, then passed around.
//!
//! Whether a name is taken is the graph's business; devices and jobs have ids of their own, for which
//! [`is_wellformed_id`] alone applies.

use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The longest name of a node, in bytes.
pub const NODE_NAME_BYTES_MAX: usize = 31;

/// Whether `id` starts with an ASCII letter and goes on with letters, digits, `-`, `.` and `_`: the rule for the ids of all
/// objects that users name.
pub fn is_wellformed_id(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}

/// Why a text cannot name a node. The wording is the field's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeNameError {
    /// Not an id: see [`is_wellformed_id`].
    #[error("Invalid node-name: '{0}'")]
    Malformed(String),
    /// Longer than [`NODE_NAME_BYTES_MAX`].
    #[error("Node name too long")]
    TooLong,
}

/// The name of a node: an id that a user chose, at most [`NODE_NAME_BYTES_MAX`] bytes long, or `#block<n>` that the graph
/// made up. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// The name that a user chose.
    ///
    /// # Errors
    /// [`NodeNameError`] when the name is not an id, or is too long.
    pub fn new(name: &str) -> Result<Self, NodeNameError> {
        if !is_wellformed_id(name) {
            return Err(NodeNameError::Malformed(name.chars().take(100).collect()));
        }
        if name.len() > NODE_NAME_BYTES_MAX {
            return Err(NodeNameError::TooLong);
        }
        Ok(Self(name.into()))
    }

    /// A name for a node that its user did not name: `#block` and `serial`. The graph alone makes these, and counts; no
    /// text that a user writes becomes one.
    pub fn generated(serial: u64) -> Self {
        Self(format!("#block{serial:03}").into())
    }

    /// Whether the graph made the name up.
    pub fn is_generated(&self) -> bool {
        self.0.starts_with('#')
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(name: &str) -> Result<Self, NodeNameError> {
        Self::new(name)
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for NodeName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeName({})", self.0)
    }
}

impl Serialize for NodeName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_refused(name: &str, message: &str) {
        assert_eq!(NodeName::new(name).expect_err(name).to_string(), message);
    }

    #[test]
    fn refuses_what_qemu_refuses_in_its_words() {
        // From `qemu-storage-daemon --blockdev driver=null-co,node-name=…`, 10.0.2.
        check_refused("1a", "Invalid node-name: '1a'");
        check_refused("", "Invalid node-name: ''");
        check_refused("#block1", "Invalid node-name: '#block1'");
        check_refused("a b", "Invalid node-name: 'a b'");
        check_refused("ä", "Invalid node-name: 'ä'");
        check_refused("a\0", "Invalid node-name: 'a\0'");
        check_refused("a2345678901234567890123456789012", "Node name too long");
        // The characters are checked before the length.
        check_refused(
            "12345678901234567890123456789012345",
            "Invalid node-name: '12345678901234567890123456789012345'",
        );
    }

    #[test]
    fn takes_what_qemu_takes() {
        for name in ["a", "a.b_c-d", "Z9", "a234567890123456789012345678901"] {
            assert_eq!(NodeName::new(name).expect(name).as_str(), name);
        }
    }

    #[test]
    fn generated_names_cannot_be_written_by_users() {
        let name = NodeName::generated(7);
        assert_eq!(name.to_string(), "#block007");
        assert!(name.is_generated() && NodeName::new(name.as_str()).is_err());
        assert!(NodeName::generated(u64::MAX).as_str().len() <= NODE_NAME_BYTES_MAX);
        assert!(serde_json::from_str::<NodeName>("\"#block007\"").is_err());
        assert_eq!(serde_json::to_string(&name).expect("serialises"), "\"#block007\"");
    }
}
