// An engine hands the token that it borrowed to a task that goes on after the request. A drain would see an idle node
// while that task still writes. The token is lent for the request; work beside it counts for itself (`Req::again`).
// (Review: between entering and leaving, a coroutine is counted; outside, it is not.)

use block_common::IoResult;
use block_io::{Edge, IoThreadHandle, Req};
use std::sync::Arc;

struct Engine {
    file: Arc<Edge>,
    home: IoThreadHandle,
}

impl Engine {
    fn flush_some_time(&self, req: &Req) -> IoResult<()> {
        let file = self.file.clone();
        self.home.spawn(async move { drop(file.flush(req).await) });
        Ok(())
    }
}

fn main() {}
