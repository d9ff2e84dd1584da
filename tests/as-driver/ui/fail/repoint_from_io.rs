// An engine wants to let its child edge lead to another node, from within a request. The engine's half of an edge can
// be followed and nothing else: repointing is a method of the writer's half, which the graph keeps.
// (Review: children replaced while readers follow the pointer; the lock keeps writers out, nothing keeps readers out.)

use block_io::{Edge, IoNode, Req};

struct Engine {
    backing: Edge,
}

impl Engine {
    async fn collapse(&mut self, _req: &Req, below: &IoNode) {
        self.backing.repoint(Some(below));
    }
}

fn main() {}
