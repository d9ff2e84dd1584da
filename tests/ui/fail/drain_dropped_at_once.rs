// A drained section is begun and its guard not kept, so that it ends where it begins; or its wait is left out, so that
// requests are still under way. Both leave something unused that must be used.
// (Review: the quiesced half of "the graph may be changed here" was left out, as callers did not drain.)
#![deny(unused_must_use)]

use block_gs::{GlobalState, NodeRef};

async fn change(gs: &GlobalState, node: &NodeRef) {
    gs.drain(node);
    gs.drain(node).await;
}

fn main() {}
