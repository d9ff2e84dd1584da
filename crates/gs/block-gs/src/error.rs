//! What goes wrong on the control path: errors with a name and a reason.

use crate::graph::DEPTH_MAX;
use crate::object::ObjectError;
use block_common::{IoError, NodeNameError, OpType, OptionsError, Perm};

/// Why a change of the graph, or a look at it, failed. The graph is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// No node or root has this name.
    #[error("Cannot find device='{0}' nor node-name='{0}'")]
    NotFound(String),
    /// A node has this name already.
    #[error("Duplicate nodes with node-name='{0}'")]
    DuplicateName(String),
    /// A device's backend has this name already: nodes and backends share one name space.
    #[error("node-name={0} is conflicting with a device id")]
    NameOfDevice(String),
    /// Not a name for a node.
    #[error(transparent)]
    BadName(#[from] NodeNameError),
    /// No driver has this name.
    #[error("Unknown driver '{0}'")]
    UnknownDriver(String),
    /// Something is wrong with the options.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// A backend uses the node itself.
    #[error("Node {0} is associated with a BlockBackend and could be in use (use force=true to override this check)")]
    HasBackend(String),
    /// A backend does not want to be served by another I/O thread.
    #[error("Cannot change iothread of active block backend")]
    HomeFixed,
    /// A known option or feature that this build does not have.
    #[error("{0} is not supported")]
    NotBuilt(String),
    /// The driver could not open its image.
    #[error("{0}")]
    Open(String),
    /// The host or a child answered a request with an error.
    #[error("{context}: {error}")]
    Io {
        /// What was being done, to what.
        context: String,
        /// The answer.
        error: IoError,
    },
    /// An edge would need what another does not share.
    #[error(
        "Permission conflict on node '{node}': permissions '{perm}' are both required by {user} and unshared by {other}."
    )]
    Permission {
        /// The node.
        node: String,
        /// What is in conflict.
        perm: Perm,
        /// Who needs it.
        user: String,
        /// Who does not share it.
        other: String,
    },
    /// Another process, or another node of this one, holds a lock on the image.
    #[error("{message}")]
    Locked {
        /// Which lock there was no getting.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// Somebody would write to a node that was opened for reading.
    #[error("Block node '{0}' is read-only")]
    ReadOnly(String),
    /// A node that has users who write would become one for reading.
    #[error("Read-only block node '{0}' cannot support read-write users")]
    HasWriters(String),
    /// An open node keeps this option.
    #[error("Cannot change the option '{0}'")]
    CannotChange(String),
    /// Nodes of this driver keep all their options.
    #[error("Block format '{driver}' used by node '{node}' does not support reopening files")]
    CannotReopen {
        /// The driver.
        driver: String,
        /// The node.
        node: String,
    },
    /// It keeps this option, which has no default, or another one.
    #[error("Option '{0}' cannot be reset to its default value")]
    CannotReset(String),
    /// What is at this edge has to be said: it is not what would be there if nobody said anything.
    #[error("{edge} is missing for '{node}'")]
    ChildLeftOut {
        /// The edge's name.
        edge: String,
        /// The node.
        node: String,
    },
    /// A node would be below itself.
    #[error("Making '{child}' a {edge} child of '{parent}' would create a cycle")]
    Cycle {
        /// The node that would be the parent.
        parent: String,
        /// The edge's name.
        edge: String,
        /// The node that would be the child.
        child: String,
    },
    /// A chain of nodes would be longer than requests can follow.
    #[error("node '{0}' would be on top of a chain of more than {max} nodes", max = DEPTH_MAX)]
    TooDeep(String),
    /// A job relies on the edge.
    #[error("Cannot change frozen '{edge}' link from '{parent}' to '{child}'")]
    Frozen {
        /// The edge's name.
        edge: String,
        /// The parent.
        parent: String,
        /// The child.
        child: String,
    },
    /// The user that was meant does not use the node.
    #[error("'{user}' does not use node '{node}'")]
    NotUsedBy {
        /// The node.
        node: String,
        /// The node or root that does not use it.
        user: String,
    },
    /// The edge leads somewhere already.
    #[error("Node '{parent}' has a '{edge}' child already")]
    HasChild {
        /// The parent.
        parent: String,
        /// The edge's name.
        edge: String,
    },
    /// Nodes of this driver have the children that they were opened with.
    #[error("The node {0} does not support adding a child")]
    NoMoreChildren(String),
    /// The same, of one less.
    #[error("The node {0} does not support removing a child")]
    NoFewerChildren(String),
    /// A node that is to be a child has a user.
    #[error("The node {0} already has a parent")]
    HasParent(String),
    /// A node that is to be a child beside others is shorter or longer than these.
    #[error("The node {child} is not as long as '{parent}'")]
    OtherLength {
        /// The parent.
        parent: String,
        /// The node that is not as long.
        child: String,
    },
    /// Data of this node is not just what is below it.
    #[error("Node '{0}' is not a filter")]
    NotAFilter(String),
    /// There is no such edge.
    #[error("Node '{parent}' has no child '{edge}'")]
    NoSuchEdge {
        /// The parent.
        parent: String,
        /// The edge's name.
        edge: String,
    },
    /// The node is still used.
    #[error("Block device {0} is in use")]
    InUse(String),
    /// A user of the node has blocked the operation.
    #[error("Node '{node}' is busy: {reason} (operation '{op}')")]
    OpBlocked {
        /// The node.
        node: String,
        /// What was to be done.
        op: OpType,
        /// Why not.
        reason: String,
    },
    /// Somebody still refers to these nodes, by their names, after everything should have been closed.
    #[error("nodes are left open: {}", .0.join(", "))]
    LeftOpen(Vec<String>),
    /// A change was asked for outside a drained section that covers it.
    #[error("node '{0}' is not drained")]
    NotDrained(String),
    /// Something is wrong with an object that is not a part of the graph.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The thread or the block layer has ended.
    #[error("the block layer is shutting down")]
    ShuttingDown,
}

impl GraphError {
    /// The message, and the hint in a line of its own: what a program writes to its user.
    pub fn report(&self) -> String {
        match self.hint() {
            Some(hint) => format!("{self}\n{hint}"),
            None => self.to_string(),
        }
    }

    /// What to do about it, for a person at a terminal, if there is anything to add to the message.
    #[doc(alias = "error_append_hint")]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Locked { hint, .. } => Some(hint),
            Self::Object(error) => error.hint(),
            _ => None,
        }
    }

    /// A failed request, with what it was for.
    pub fn io(context: impl Into<String>) -> impl FnOnce(IoError) -> Self {
        let context = context.into();
        move |error| Self::Io { context, error }
    }
}

/// What a call on the control path returns.
pub type GraphResult<T> = Result<T, GraphError>;
