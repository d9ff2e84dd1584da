//! Op blockers: reasons, put on a node by its users, why certain operations on it must not begin.
//!
//! Permissions say what requests may do; this is about operations as a whole, which whoever carries them out asks about first. What
//! was begun before a blocker came is not affected. Kept beside the graph, so that a blocker may be dropped at any time.

use crate::error::{GraphError, GraphResult};
use crate::graph::{Id, NodeRef, number};
use crate::snapshot::is_backing;
use crate::state::GlobalState;
use block_common::{OpType, QapiEnum};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

struct Block {
    node: Id,
    ops: Vec<OpType>,
    reason: String,
}

/// The blockers of one block layer, in the order of their coming.
#[derive(Clone, Default)]
pub(crate) struct Blockers(Rc<RefCell<BTreeMap<Id, Block>>>);

/// Operations on a node are blocked for as long as this lives. It does not keep the node.
#[must_use = "the operations are unblocked when it is dropped"]
#[doc(alias = "bdrv_op_unblock_all")]
#[doc(alias = "blk_op_unblock_all")]
pub struct OpBlocker {
    id: Id,
    blockers: Blockers,
}

impl OpBlocker {
    /// Block `op` no longer; the others stay blocked.
    #[doc(alias = "bdrv_op_unblock")]
    #[doc(alias = "blk_op_unblock")]
    pub fn allow(&self, op: OpType) {
        if let Some(block) = self.blockers.0.borrow_mut().get_mut(&self.id) {
            block.ops.retain(|blocked| *blocked != op);
        }
    }
}

impl Drop for OpBlocker {
    fn drop(&mut self) {
        self.blockers.0.borrow_mut().remove(&self.id);
    }
}

impl fmt::Debug for OpBlocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = self.blockers.0.borrow();
        let block = blocks.get(&self.id).map(|block| (&block.ops, &block.reason));
        write!(f, "OpBlocker({block:?})")
    }
}

impl GlobalState {
    /// Block `op` on `node`: the reason is what others are told.
    #[doc(alias = "bdrv_op_block")]
    pub fn block_op(&self, node: &NodeRef, op: OpType, reason: impl Into<String>) -> OpBlocker {
        self.block(node, vec![op], reason.into())
    }

    /// Block every operation on `node` but those in `except`.
    #[doc(alias = "bdrv_op_block_all")]
    pub fn block_all_ops(&self, node: &NodeRef, except: &[OpType], reason: impl Into<String>) -> OpBlocker {
        let ops = OpType::ALL.iter().copied().filter(|op| !except.contains(op));
        self.block(node, ops.collect(), reason.into())
    }

    fn block(&self, node: &NodeRef, ops: Vec<OpType>, reason: String) -> OpBlocker {
        let (id, blockers) = (number(), self.0.blockers.clone());
        blockers.0.borrow_mut().insert(id, Block { node: node.id(), ops, reason });
        OpBlocker { id, blockers }
    }

    /// Whether `op` may begin on `node`. To be asked by whoever is going to carry it out, and again after each wait.
    ///
    /// # Errors
    /// [`GraphError::OpBlocked`] with the reason of the first who blocked it; what an image stands on is not changed or ended either.
    #[doc(alias = "bdrv_op_is_blocked")]
    pub fn check_op(&self, node: &NodeRef, op: OpType) -> GraphResult<()> {
        let blocks = self.0.blockers.0.borrow();
        let found = blocks.values().find(|block| block.node == node.id() && block.ops.contains(&op));
        match found {
            Some(Block { reason, .. }) => {
                Err(GraphError::OpBlocked { node: node.name().into(), op, reason: reason.clone() })
            }
            None => self.check_backing(node, op),
        }
    }

    /// What an image stands on stays what it is: acts that would change it, or end it, do not begin there.
    fn check_backing(&self, node: &NodeRef, op: OpType) -> GraphResult<()> {
        use OpType::{DriveDel, ExternalSnapshot, InternalSnapshot, InternalSnapshotDelete, MirrorTarget, Resize};
        let blocked = [DriveDel, ExternalSnapshot, InternalSnapshot, InternalSnapshotDelete, MirrorTarget, Resize];
        let graph = self.0.graph.borrow();
        match graph.stands_on(node).filter(|_| blocked.contains(&op)) {
            Some(above) => Err(is_backing(node.name(), above, op)),
            None => Ok(()),
        }
    }

    /// What is blocked on `node`, each with the reason.
    #[doc(alias = "bdrv_op_blocker_is_empty")]
    pub fn blocked_ops(&self, node: &NodeRef) -> Vec<(OpType, String)> {
        let blocks = self.0.blockers.0.borrow();
        let here = blocks.values().filter(|block| block.node == node.id());
        here.flat_map(|block| block.ops.iter().map(|op| (*op, block.reason.clone()))).collect()
    }
}
