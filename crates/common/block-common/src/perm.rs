//! Permissions: what the user of a node may do to it, and what it lets other users of the same node do.
//!
//! Only the vocabulary is here: names, pairs, the test whether two users get along. Who asks for what, and how a change
//! spreads through a graph, belongs to the graph's owner; an I/O crate can read permissions but has nothing to set them
//! with.

use bitflags::bitflags;
use serde::de::{self, SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

bitflags! {
    /// A set of permissions on a node. QAPI: a list of `BlockPermission`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Perm: u8 {
        /// What is read is complete and consistent: the content of a disk at one point. Intermediate nodes of a commit job
        /// cannot give this.
        const CONSISTENT_READ = 1 << 0;
        /// Change the content that is visible.
        const WRITE = 1 << 1;
        /// Write, promising that the visible content does not change. [`Perm::WRITE`] is stronger and suffices as well.
        const WRITE_UNCHANGED = 1 << 2;
        /// Change the node's length.
        const RESIZE = 1 << 3;
    }
}

/// Each permission with its name in messages and its name in QAPI.
const NAMES: [(Perm, &str, &str); 4] = [
    (Perm::CONSISTENT_READ, "consistent read", "consistent-read"),
    (Perm::WRITE, "write", "write"),
    (Perm::WRITE_UNCHANGED, "write unchanged", "write-unchanged"),
    (Perm::RESIZE, "resize", "resize"),
];

impl Perm {
    /// The permission that QAPI calls `name`, if there is one.
    #[doc(alias = "bdrv_qapi_perm_to_blk_perm")]
    pub fn from_qapi_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, _, qapi)| *qapi == name).map(|(perm, _, _)| *perm)
    }

    /// The set's QAPI names (`consistent-read`), in the order of the constants.
    pub fn qapi_names(self) -> impl DoubleEndedIterator<Item = &'static str> {
        NAMES.into_iter().filter(move |(perm, _, _)| self.contains(*perm)).map(|(_, _, qapi)| qapi)
    }

    /// The set's names as messages spell them (`consistent read`), in the order of the constants.
    #[doc(alias = "bdrv_perm_names")]
    pub fn names(self) -> impl DoubleEndedIterator<Item = &'static str> {
        NAMES.into_iter().filter(move |(perm, _, _)| self.contains(*perm)).map(|(_, name, _)| name)
    }
}

/// `write, resize`: as conflicts between users are reported. The empty set is `none`.
impl fmt::Display for Perm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, name) in self.names().enumerate() {
            f.write_str(if i == 0 { "" } else { ", " })?;
            f.write_str(name)?;
        }
        if self.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// A list of QAPI names, last constant first, as `x-debug-query-block-graph` gives it.
impl Serialize for Perm {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(None)?;
        for name in self.qapi_names().rev() {
            seq.serialize_element(name)?;
        }
        seq.end()
    }
}

impl<'de> Deserialize<'de> for Perm {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Perm;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of block permissions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Perm, A::Error> {
                let mut all = Perm::empty();
                while let Some(name) = seq.next_element::<std::borrow::Cow<'de, str>>()? {
                    all |= Perm::from_qapi_name(&name)
                        .ok_or_else(|| de::Error::custom(format_args!("'{name}' is not a block permission")))?;
                }
                Ok(all)
            }
        }
        deserializer.deserialize_seq(Names)
    }
}

/// What one user of a node needs, and what it lets the node's other users have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PermPair {
    /// Granted to this user.
    pub perm: Perm,
    /// May still be granted to others while this user is attached.
    pub shared: Perm,
}

impl PermPair {
    /// Needs nothing and minds nothing.
    pub const NONE: Self = Self { perm: Perm::empty(), shared: Perm::all() };
    /// Needs everything and lets nobody else do anything.
    pub const EXCLUSIVE: Self = Self { perm: Perm::all(), shared: Perm::empty() };

    /// Both sets at once.
    pub const fn new(perm: Perm, shared: Perm) -> Self {
        Self { perm, shared }
    }

    /// What `self` needs although `other` does not share it. Rule perm-1 asks this in both directions for every pair of
    /// users of a node.
    pub fn denied_by(self, other: Self) -> Perm {
        self.perm & !other.shared
    }

    /// What two users together need, and what both of them share: the pair that stands for both towards a third.
    pub fn combine(self, other: Self) -> Self {
        Self { perm: self.perm | other.perm, shared: self.shared & other.shared }
    }
}

/// No user at all: [`PermPair::NONE`].
impl Default for PermPair {
    fn default() -> Self {
        Self::NONE
    }
}

impl fmt::Display for PermPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "needs {}; shares {}", self.perm, self.shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_names(perm: Perm, display: &str, json: &str) {
        assert_eq!(perm.to_string(), display);
        assert_eq!(serde_json::to_string(&perm).expect("serialises"), json);
        assert_eq!(serde_json::from_str::<Perm>(json).expect("parses"), perm);
    }

    #[test]
    fn names_are_the_fields() {
        // "permissions 'write, resize' are both required by node 'bd' ... and unshared by node 'q'"
        check_names(Perm::WRITE | Perm::RESIZE, "write, resize", r#"["resize","write"]"#);
        check_names(Perm::empty(), "none", "[]");
        check_names(
            Perm::all(),
            "consistent read, write, write unchanged, resize",
            r#"["resize","write-unchanged","write","consistent-read"]"#,
        );
    }

    #[test]
    fn unknown_names_are_refused_by_name() {
        let error = serde_json::from_str::<Perm>(r#"["write","bogus"]"#).expect_err("no such permission");
        assert!(error.to_string().starts_with("'bogus' is not a block permission"), "{error}");
        assert_eq!(Perm::from_qapi_name("consistent read"), None);
    }

    #[test]
    fn perm_1_a_conflict_names_what_is_denied() {
        let writer = PermPair::new(Perm::WRITE | Perm::RESIZE, Perm::all());
        let format = PermPair::new(Perm::CONSISTENT_READ, Perm::CONSISTENT_READ | Perm::WRITE_UNCHANGED);
        assert_eq!(writer.denied_by(format), Perm::WRITE | Perm::RESIZE);
        assert_eq!(format.denied_by(writer), Perm::empty());
        assert_eq!(PermPair::EXCLUSIVE.denied_by(PermPair::NONE), Perm::empty());
        assert_eq!(PermPair::NONE.combine(format), format);
        assert_eq!(format.combine(writer).shared, format.shared);
    }
}
