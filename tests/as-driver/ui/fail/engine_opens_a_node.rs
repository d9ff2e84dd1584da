// An engine finds a file name in its image's header and wants to open that file in the middle of a read. Opening is the
// graph's business: it looks up names, takes permissions and attaches. The engine's crate has no dependency to do it
// with.
// (Review: functions that are reached from a request and turn out to be global state.)

use block_common::{IoError, IoResult};
use block_io::Req;

struct Engine;

impl Engine {
    async fn read_from_backing_file(&self, _req: &Req, options: block_common::Options) -> IoResult<()> {
        let backing = block_gs::GlobalState::open(options).await;
        backing.map(drop).map_err(|_| IoError::BUG)
    }
}

fn main() {}
