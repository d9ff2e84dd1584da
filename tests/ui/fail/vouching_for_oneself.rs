// A flag says that the caller is allowed to touch permissions, and nothing checks it. There is no such flag: the
// capability itself is the permission, and `true` is not one.
// (Review: `bool under_bql` told a shared function whether it ran on the main thread.)

use block_common::{Perm, PermPair};
use block_gs::{GlobalState, GraphResult, RootRef};

fn update_keys(root: &RootRef, under_bql: bool) -> GraphResult<()> {
    if under_bql {
        GlobalState::set_root_perm(under_bql, root, PermPair::new(Perm::WRITE, Perm::all()))?;
    }
    Ok(())
}

fn main() {}
