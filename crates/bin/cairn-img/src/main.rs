//! Disk image utility.
fn main() {}
