// An engine quiesces its child before it moves clusters about. It runs in a request, so the drain would wait for the
// engine's own request and never end. A token cannot start a drain, nor can an edge.
// (Review: draining between entering and leaving a node waits for oneself.)

use block_io::{Edge, Req};

struct Engine {
    file: Edge,
}

impl Engine {
    async fn move_clusters(&self, req: &Req) {
        let _section = req.drain().await;
        let _below = self.file.drain().await;
    }
}

fn main() {}
