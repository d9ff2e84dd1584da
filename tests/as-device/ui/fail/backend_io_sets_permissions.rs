// A device model wants to write to its medium although it was plugged in for reading, and takes the permission when the
// first write comes. The device's half of a backend has no such verb.
// (Review: set and get of a backend's permissions were declared I/O while everything below was not.)

use block_backend_io::BackendIo;
use block_common::{Perm, PermPair};

fn first_write(backend: &BackendIo) {
    backend.set_perm(PermPair::new(Perm::WRITE, Perm::all()));
}

fn main() {}
