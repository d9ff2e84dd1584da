// The writer's half of a gate or an edge is kept a second time, somewhere that is easier to reach. There is one of
// each, and the graph has it.
// (Review: one header for everybody, so that whoever had the I/O half had the other half, too.)

use block_backend_io::BackendControl;
use block_io::{EdgeWriter, NodeControl, RootControl};

fn second_node(node: NodeControl) -> [NodeControl; 2] {
    [node.clone(), node]
}

fn second_edge(edge: EdgeWriter) -> [EdgeWriter; 2] {
    [edge.clone(), edge]
}

fn second_root(root: RootControl) -> [RootControl; 2] {
    [root.clone(), root]
}

fn second_backend(backend: BackendControl) -> [BackendControl; 2] {
    [backend.clone(), backend]
}

fn main() {}
