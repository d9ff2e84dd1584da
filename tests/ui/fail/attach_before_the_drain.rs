// The list of children is changed first, and drained afterwards. There is no value yet to change it with; and a section
// that was not waited for is not one.
// (Review: attach inserted into the list and then drained; detach ended the drain and then removed.)

use block_gs::{GlobalState, GraphResult, NodeRef};

async fn attach(gs: &GlobalState, parent: &NodeRef, child: &NodeRef) -> GraphResult<()> {
    let section = gs.drain(parent);
    gs.replace_child(&section, parent, "file", Some(child))?;
    drop(section.await);
    Ok(())
}

fn main() {}
