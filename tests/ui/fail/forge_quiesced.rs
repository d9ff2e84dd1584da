// Someone is sure that nothing is in flight and writes the proof himself. Its fields are closed.
// (Review: asserted once, assumed ever after.)

use block_io::{EdgeWriter, Quiesced};

fn detach(edge: &mut EdgeWriter) {
    edge.repoint(None, &Quiesced {});
}

fn main() {}
