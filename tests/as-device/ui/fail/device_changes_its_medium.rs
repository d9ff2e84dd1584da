// The command emulator of a CD drive ejects the medium for good, by taking it out of its backend, on the device's
// thread. The guest may open the tray; what lies in it is the main loop's.
// (Review: everything that the emulator reaches is I/O, and eject reached into the graph.)

use block_backend_io::BackendIo;
use block_io::IoNode;

fn start_stop_unit(drive: &BackendIo, next: &IoNode) {
    drive.eject(true);
    drive.remove();
    drive.insert(next);
}

fn main() {}
