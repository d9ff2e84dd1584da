// An engine asks the main loop for something and awaits the answer, while the request that it serves is in flight. If
// the answer needs a drain, each waits for the other. Engines do not see the crate that has upcalls.
// (Review: waiting for the main thread from inside a request.)

use block_backend_io::Upcalls;
use block_common::{IoError, IoResult};
use block_io::Req;

struct Engine {
    grow: Upcalls<u64, bool>,
}

impl Engine {
    async fn write_past_the_end(&self, _req: &Req, len: u64) -> IoResult<()> {
        self.grow.ask(len).await.filter(|granted| *granted).map(drop).ok_or(IoError::NOT_PERMITTED)
    }
}

fn main() {}
