// The drained section is ended first, and then the child is removed. The guard is the section: once it is given away
// there is nothing to remove the child with.
// (Review: detach ended the subtree drain before it took the child out of the list.)

use block_gs::{GlobalState, GraphResult, NodeRef};

async fn detach(gs: &GlobalState, parent: &NodeRef) -> GraphResult<()> {
    let section = gs.drain(parent).await;
    drop(section);
    gs.replace_child(&section, parent, "file", None)
}

fn main() {}
