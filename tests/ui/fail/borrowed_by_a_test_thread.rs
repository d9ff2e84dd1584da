// A test of I/O threads calls what belongs to the main loop from a thread of its own, only for as long as the main
// thread waits for it. It passes while the check is weak, and then the check is kept weak for its sake. It does not
// compile.
// (Review: a unit test and an iotest passed by luck, and production code was bent to please them.)

use block_gs::{GlobalState, NodeRef};

fn test_invalidate_from_an_io_thread(gs: &GlobalState, node: &NodeRef) {
    std::thread::scope(|scope| {
        scope.spawn(|| drop(gs.node_info(node)));
    });
}

fn main() {}
