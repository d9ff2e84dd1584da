// A device drains its backend from its own thread when the guest resets it, and so waits there for requests that this
// very thread must complete. A device answers what it has in flight; sections are the main loop's.
// (Review: "I/O" drain functions that turned an event loop and let the graph change meanwhile.)

use block_backend_io::BackendIo;

async fn reset(backend: &BackendIo) {
    let _section = backend.drain().await;
    let _other = backend.root().drain().await;
}

fn main() {}
