// A crash is answered by making the outermost function an I/O function: its parameter goes, what it calls stays as it
// is. The crash would only move. Here it does not get so far: the first callee still wants the capability.
// (Review: the assertion in the entry was commented out, while the whole tree below it still relied on the main
// thread.)

use block_common::{Perm, PermPair};
use block_gs::{GlobalState, GraphResult, RootRef};

fn blk_set_perm(root: &RootRef, perm: Perm) -> GraphResult<()> {
    GlobalState::set_root_perm(root, PermPair::new(perm, Perm::all()))
}

fn main() {}
