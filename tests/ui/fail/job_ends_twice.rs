// A job is aborted, and then prepared all the same: two ends that each give back what the job took. Each act consumes
// the job.
// (Review: cleaning up was bound to one of two ways out, and skipped on the other.)

use block_gs::GlobalState;
use block_jobs::StartedJob;

async fn finish<S: StartedJob>(gs: &GlobalState, job: S, report: S::Report) {
    let left = job.abort(gs).await;
    let prepared = job.prepare(gs, report).await;
    drop((left, prepared));
}

fn main() {}
