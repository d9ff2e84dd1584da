// A job's body is written as if it ran in the main loop, holding a node of the graph across its copying. Bodies run on
// the job's home thread: they take roots to read and write through, and nothing of the graph.
// (Review: the author of the split himself took back an assertion that had this wrong.)

use block_common::AlignedBuf;
use block_gs::NodeRef;
use block_io::{IoThreadHandle, Root};

async fn run(target: NodeRef, root: Root) {
    let (result, _) = root.read(0, AlignedBuf::zeroed(512, 512).into_io()).await;
    println!("{}: {result:?}", target.name());
}

fn start(home: &IoThreadHandle, target: NodeRef, root: Root) {
    home.spawn(run(target, root));
}

fn main() {}
