// A job's set-up, which is global state, hands the capability to the body that it makes. The body is spawned on the
// job's home thread, and what it captures must be able to go there.
// (Review: whether a body runs in the main loop was assumed, asserted and taken back.)

use block_gs::GlobalState;
use block_io::IoThreadHandle;
use block_jobs::{Start, StartedJob};

fn pre_run<S: StartedJob<Report = ()>>(gs: GlobalState, job: S, home: &IoThreadHandle) -> Start<S> {
    Start::new(job, home, move |_control| async move {
        drop(gs.find_node("disk"));
        Ok(())
    })
}

fn main() {}
