// An engine wants its child as a node, to keep it past the request or to give it to somebody else. Then no drain of the
// parent could say that nobody uses the child any more. An edge never hands its node out.
// (Review: looking through a link that is opaque on purpose.)

use block_io::{Edge, IoNode, Req};

struct Engine {
    file: Edge,
    kept: Option<IoNode>,
}

impl Engine {
    fn keep(&mut self, req: &Req) {
        self.kept = self.file.child(req).ok();
    }
}

fn main() {}
