//! What an encrypted image's header says.

use super::tree::Image;
use block_drivers::LuksImage;
use block_gs::{GlobalState, NodeRef};

/// What a node's header says, if it is a luks node.
pub(super) fn structure(gs: &GlobalState, node: &NodeRef) -> Option<Box<Image>> {
    let specific = gs.with_control(node, |image: &mut LuksImage| image.specific());
    Some(Box::new(Image { specific: specific.ok()?, is_encrypted: true, qcow2: None, backing: None }))
}
