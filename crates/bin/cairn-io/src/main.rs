//! cairn-io.
fn main() {}
