// A writable FUSE export that does not grow gets a truncate in its I/O thread, takes RESIZE, truncates, and drops it
// again. Its half of the entry can see permissions and cannot set them. It asks its own global-state half, or was given
// RESIZE at its start.
// (Review: the storage daemon aborted on a plain `truncate -s 1M`.)

use block_common::{IoResult, Perm, PermPair, Preallocation};
use block_io::Root;

async fn fuse_setattr_size(export: &Root, len: u64) -> IoResult<()> {
    let before = export.perm();
    export.set_perm(PermPair::new(before | Perm::RESIZE, Perm::all()));
    let truncated = export.truncate(len, Preallocation::Off).await;
    export.set_perm(PermPair::new(before, Perm::all()));
    truncated
}

fn main() {}
