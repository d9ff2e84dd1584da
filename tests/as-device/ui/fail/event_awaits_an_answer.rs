// A device tells the main loop that its tray moved and waits for the new medium. What a device tells is one-way: there
// is nothing to wait for. Questions are upcalls, and those are asked without a request in hand.
// (Review: waiting for the main thread from inside a device's command.)

use block_backend_io::BackendIo;

async fn load(drive: &BackendIo) {
    drive.eject(false).await;
}

fn main() {}
