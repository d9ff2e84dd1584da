// A device moves its backend to another I/O thread, from the one where its requests are under way. Homes change
// drained, on the main loop.
// (Review: contexts moved under requests; an export moved its node first and did the rest in the wrong place.)

use block_backend_io::BackendIo;
use block_io::IoThreadHandle;

fn use_thread(backend: &BackendIo, thread: &IoThreadHandle) {
    backend.root().set_home(thread);
}

fn main() {}
