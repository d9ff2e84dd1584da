// An engine has work to do outside of any request, and makes the token that calls to children want by itself. A token
// counts the request that it belongs to, so only the core makes one: nobody else can fill in its fields.
// (Review: whoever may make the proof by hand vouches for himself.)

use block_common::IoResult;
use block_io::{Edge, Req};

struct Engine {
    file: Edge,
}

impl Engine {
    async fn write_back(&self) -> IoResult<()> {
        let req = Req {};
        self.file.flush(&req).await
    }
}

fn main() {}
