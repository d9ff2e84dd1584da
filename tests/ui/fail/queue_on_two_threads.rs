// A queue of requests is shared by two device threads, to spare one of them. It is one thread's, with that thread's
// ring; the root that requests go to is what may be shared.
// (No mistake of the reviews: the boundary between two I/O threads.)

use block_io::{Queue, Request, Root};

fn two_threads(queue: &mut Queue, root: &Root) {
    std::thread::scope(|scope| {
        scope.spawn(|| queue.submit(root, Request::flush(), 1));
    });
}

fn main() {}
