// A device attaches itself to its backend and sets the error policy that it likes, on its own thread. It may read both.
// They are set through the half that the main loop has.
// (Review: the getters were asserted to be global state, too, and crashed guests that only asked.)

use block_backend_io::{BackendIo, BackendSettings};

fn realize(backend: &BackendIo) {
    backend.set_device_id(Some("scsi0-0".into()));
    backend.set_settings(BackendSettings::default());
}

fn main() {}
