// An engine was opened read-only, gets a write and wants to reopen itself for writing. Reopening goes through the
// control half, which the constructor gave to the graph's owner; the engine's own half has no such verb and no crate
// that has.
// (Review: the driver's permission callback reached the graph's accessors only because they could be named.)

use block_gs::GlobalState;
use block_io::Req;

struct Engine;

impl Engine {
    fn become_writable(&self, gs: &GlobalState, req: &Req) {
        gs.reopen(req.node_name(), false);
        req.set_read_only(false);
    }
}

fn main() {}
