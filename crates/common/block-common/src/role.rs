//! What a child is to its parent: roles, the names of edges, and what kind of parent holds one.
//!
//! Roles decide default permissions and which child a filter or a walk follows; the deciding is done by the graph's owner.
//! Nothing here holds a node.

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use std::borrow::{Borrow, Cow};
use std::fmt;

bitflags! {
    /// What a child holds for its parent. [`ChildRole::is_valid`] says which combinations make sense.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct ChildRole: u8 {
        /// Guest data, in whatever form.
        const DATA = 1 << 0;
        /// The parent's metadata.
        const METADATA = 1 << 1;
        /// The parent is a filter: what it shows at an offset is what this child shows there.
        const FILTERED = 1 << 2;
        /// What the parent has not allocated is read from this child.
        const COW = 1 << 3;
        /// The main child: the one whose file name stands for the parent's. At most one a parent.
        const PRIMARY = 1 << 4;
    }
}

impl ChildRole {
    /// The one child of a format that keeps data and metadata together.
    pub const IMAGE: Self = Self::DATA.union(Self::METADATA).union(Self::PRIMARY);
    /// The child that a filter passes requests to.
    pub const FILTERED_PRIMARY: Self = Self::FILTERED.union(Self::PRIMARY);

    /// Whether the combination makes sense: a filtered child holds nothing of the parent's own and is no backing file,
    /// and a child that is neither has some role.
    pub const fn is_valid(self) -> bool {
        let own = self.intersects(Self::DATA.union(Self::METADATA));
        let filtered = self.contains(Self::FILTERED);
        let cow = self.contains(Self::COW);
        if filtered { !own && !cow } else { own || cow }
    }
}

/// What holds the upper end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParentKind {
    /// Another node: the edge is one of its children.
    Node,
    /// A block backend: the edge is its root.
    Backend,
    /// A job: the edge is one of the nodes it works on.
    Job,
    /// An export: the edge is what it serves.
    Export,
}

/// How a parent calls an edge: `file`, `backing`, `data-file`, `children.0`, `root`, …
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChildName(Cow<'static, str>);

impl ChildName {
    /// The protocol node below a format, or what a filter filters.
    pub const FILE: Self = Self::from_static("file");
    /// The backing file of an overlay.
    pub const BACKING: Self = Self::from_static("backing");
    /// The edge from a block backend.
    pub const ROOT: Self = Self::from_static("root");

    /// A name known at compile time.
    pub const fn from_static(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The child at `index` of a list: `children.0`.
    pub fn indexed(list: &str, index: usize) -> Self {
        Self(Cow::Owned(format!("{list}.{index}")))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&'static str> for ChildName {
    fn from(name: &'static str) -> Self {
        Self::from_static(name)
    }
}

impl Borrow<str> for ChildName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChildName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_contradict_each_other_are_invalid() {
        for valid in [ChildRole::IMAGE, ChildRole::FILTERED_PRIMARY, ChildRole::COW, ChildRole::DATA] {
            assert!(valid.is_valid(), "{valid:?}");
        }
        let both = ChildRole::FILTERED | ChildRole::DATA;
        for invalid in [ChildRole::empty(), ChildRole::PRIMARY, both, ChildRole::FILTERED | ChildRole::COW] {
            assert!(!invalid.is_valid(), "{invalid:?}");
        }
    }

    #[test]
    fn children_of_a_list_are_numbered() {
        assert_eq!(ChildName::indexed("children", 3).as_str(), "children.3");
        assert_eq!(ChildName::from("file"), ChildName::FILE);
    }
}
