// An export on an I/O thread finds its node inactive when the first client comes, and activates it there.
// (Review: the export moved the node to its own thread and activated it afterwards. Nodes have no thread, and
// activation is global state: this crate cannot name it.)

use block_gs::GlobalState;
use block_io::Root;

async fn first_client(gs: &GlobalState, export: &Root) {
    gs.activate(export.name()).await;
}

fn main() {}
