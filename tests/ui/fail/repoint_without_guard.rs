// A node gets another child, and only the lock is held: other writers are kept out, requests are not. Repointing wants
// the drained section's guard.
// (Review: the assertion should have been "lock held and quiesced"; the second half failed everywhere and was left for
// later.)

use block_gs::{GlobalState, GraphResult, NodeRef};

fn set_backing(gs: &GlobalState, overlay: &NodeRef, backing: &NodeRef) -> GraphResult<()> {
    gs.replace_child(overlay, "backing", Some(backing))
}

fn insert_filter(gs: &GlobalState, node: &NodeRef, filter: &NodeRef) -> GraphResult<()> {
    gs.replace_node(node, filter)
}

fn main() {}
