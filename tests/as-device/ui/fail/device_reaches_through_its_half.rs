// A device that lacks a method reaches for the fields behind its half. They are closed.
// (Review: opaque links that were cast and followed.)

use block_backend_io::BackendIo;
use block_io::Root;

fn reach(backend: &BackendIo, root: &Root) {
    backend.0.root.edge();
    root.0.edge.repoint();
}

fn main() {}
