// A job's body creates its target image by opening the file as a node of its own, wherever the body happens to run.
// (Review: drivers' create functions neither refused nor handled nodes in other contexts; a lock was "not ours to
// release".)

use block_common::Options;

async fn run(options: Options) {
    let created = block_gs::GlobalState::open(options).await;
    drop(created);
}

fn main() {}
