// A function of global state is called on the main loop, but its body runs as a task of an I/O thread: nobody called it
// from the wrong place, and yet it runs there. The capability cannot be carried over: not even across one await.
// (Review: a generated coroutine wrapper entered the node's own thread; the caller was right, the assertion failed all
// the same.)

use block_gs::GlobalState;
use block_io::{IoThreadHandle, Root};

async fn invalidate_and_activate(gs: &GlobalState, root: &Root) {
    drop(root.refresh_length().await);
    drop(gs.find_node(root.name()));
}

fn export_add(gs: GlobalState, root: Root, home: &IoThreadHandle) {
    home.spawn(async move { invalidate_and_activate(&gs, &root).await });
}

fn main() {}
