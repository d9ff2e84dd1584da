// "Protected by the big lock" was a comment beside each list of nodes and drivers. Here the lists are fields that
// nobody sees but the functions that keep their rules.
// (Review: eight global lists and five fields of a node, each with its own sentence on who may touch it.)

use block_gs::{GlobalState, NodeRef};

fn unlist(gs: &GlobalState, node: &NodeRef) {
    gs.0.graph.borrow_mut().nodes.remove(&node.io().id());
}

fn main() {}
