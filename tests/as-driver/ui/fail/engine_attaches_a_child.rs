// An engine outgrows its file and wants to attach a second one to the node that it serves. The shell that makes edges
// stays with the graph's owner; neither the request's token nor the edge leads to it.
// (Review: attaching children is asserted to be global state, but only at run time.)

use block_common::{ChildRole, PermPair};
use block_io::{Edge, Req};

struct Engine {
    file: Edge,
}

impl Engine {
    fn add_extent_file(&mut self, req: &Req) {
        let (_writer, edge) = req.edge(ChildRole::DATA, PermPair::NONE, None);
        self.file.attach(edge);
    }
}

fn main() {}
