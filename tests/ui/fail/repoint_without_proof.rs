// The same one level down, where the graph itself is written: the writer's half of an edge wants the proof that its
// parent is quiesced and was seen idle.
// (Review: two writes to the child pointer in the function that replaces children, neither of them drained.)

use block_io::{EdgeWriter, IoNode, NodeControl};

fn replace_child_noperm(parent: &NodeControl, edge: &mut EdgeWriter, child: &IoNode) {
    if parent.is_quiesced() {
        edge.repoint(Some(child));
    }
}

fn main() {}
