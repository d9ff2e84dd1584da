// Whoever sees a node makes himself an entry to it, with the permissions that he likes: no drain holds it back and no
// other user's refusal to share is asked. What can be seen is not what can be led to.

use block_common::PermPair;
use block_gs::{GlobalState, NodeRef};
use block_io::RootControl;

fn smuggle(gs: &GlobalState, node: &NodeRef) -> RootControl {
    RootControl::new("smuggler", &gs.main_io(), PermPair::EXCLUSIVE, Some(node.io()))
}

fn main() {}
