// An engine decides by walking up to its parents, through the link that each of them holds. Parents are known to the
// graph's owner only; from below there is nothing to walk along, and the token's own fields are closed.
// (Review: a test for "is this node active" cast the opaque parent pointer and recursed upwards.)

use block_io::Req;

fn is_active(req: &Req) -> bool {
    req.node.parents().iter().any(|parent| parent.is_active())
}

fn main() {}
