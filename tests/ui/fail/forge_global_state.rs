// Code that was not given the capability makes itself one. It comes from a main loop, and that is bound to its thread.
// (Review: whoever may make the proof by hand vouches for himself.)

use block_gs::{DrainGuard, GlobalState};

fn for_myself() -> GlobalState {
    GlobalState(std::rc::Rc::default())
}

fn drained_for_myself(gs: &GlobalState) -> DrainGuard {
    DrainGuard { gs: gs.clone() }
}

fn main() {}
