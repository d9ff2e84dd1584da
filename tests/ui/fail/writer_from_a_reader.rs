// Whoever holds a node or a root as I/O sees it asks it for the half that can quiesce and repoint. No way leads there.
// (Review: the old header stayed and included both halves, so that the split bound nobody.)

use block_gs::{NodeRef, RootRef};
use block_io::{IoNode, Root};

fn node(node: &IoNode) {
    node.control().set_quiesced(true);
}

fn root(root: &Root) {
    root.edge().repoint(None);
}

fn through_the_graph(node: &NodeRef, root: &RootRef) {
    node.control().set_quiesced(true);
    root.control().set_quiesced(true);
}

fn main() {}
