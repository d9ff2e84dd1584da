// A mirror job is ready and replaces the old node with its target, in its body. Bodies are in a crate that lacks the
// graph: the job asks its global-state half, which drains and replaces.
// (Review: bodies run in the job's own context, which need not be the main loop's.)

use block_gs::{GlobalState, NodeRef};
use block_io::Root;

async fn run(gs: &GlobalState, source: &NodeRef, target: &NodeRef, root: Root) {
    let _ = root.flush().await;
    let section = gs.drain(source).await;
    let _ = gs.replace_node(&section, source, target);
}

fn main() {}
