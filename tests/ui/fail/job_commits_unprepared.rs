// A job becomes final although what may fail has not been tried: there would be nothing to take back. Only a prepared
// job can be committed, and preparing is what makes one.
// (Review: a set-up hook that failed left a job that counted as started, never ran, and was never cleaned up.)

use block_gs::GlobalState;
use block_jobs::StartedJob;

fn finish<S: StartedJob>(gs: &GlobalState, job: S) -> S::Left {
    job.commit(gs)
}

fn main() {}
