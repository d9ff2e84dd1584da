// After migration the image may have changed, and the engine that forgets its cached metadata also makes its node
// active: permissions, parents and all. Activation is global state; the engine's part is its metadata alone.
// (Review: one function was both, ran as a coroutine of the node's thread, and edited permissions there.)

use block_common::IoResult;
use block_io::Req;

struct Engine;

impl Engine {
    async fn invalidate_cache(&self, req: &Req) -> IoResult<()> {
        block_gs::GlobalState::activate(req.node_name()).await
    }
}

fn main() {}
