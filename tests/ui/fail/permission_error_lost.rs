// Permissions are given back, the error of that goes into a variable that nobody looks at (and nobody initialised). A
// result that is not used does not pass: `deny(unused_must_use)`, as the workspace's lints have it.
// (Review: the address of an unset error pointer was passed on and forgotten.)
#![deny(unused_must_use)]

use block_common::PermPair;
use block_gs::{GlobalState, RootRef};

fn blockdev_amend_clean(gs: &GlobalState, root: &RootRef) {
    gs.set_root_perm(root, PermPair::NONE);
}

fn main() {}
