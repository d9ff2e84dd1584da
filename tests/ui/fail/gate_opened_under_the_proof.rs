// The same one level down: the gate is opened while the proof that it is closed is still to be used. The proof borrows
// from the gate's control, so nothing can open it meanwhile.
// (Review: as above.)

use block_io::{EdgeWriter, NodeControl};

fn detach(parent: &mut NodeControl, edge: &mut EdgeWriter) {
    let Some(proof) = parent.proof() else { return };
    parent.set_quiesced(false);
    edge.repoint(None, &proof);
}

fn main() {}
