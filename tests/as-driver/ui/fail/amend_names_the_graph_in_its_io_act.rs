// The same key change, by way of the function that computes permissions anew. Its crate is not among the engine's
// dependencies.
// (Review: the refresh was called from the job's coroutine. Cargo will offer to add the crate; `cargo xtask check`
// refuses that.)

use block_common::{IoError, IoResult};
use block_gs::refresh_permissions;
use block_io::{Edge, Req};

struct Luks {
    file: Edge,
    updating_keys: bool,
}

impl Luks {
    async fn amend(&mut self, _req: &Req) -> IoResult<()> {
        self.updating_keys = true;
        refresh_permissions(&self.file).map_err(|_| IoError::NOT_PERMITTED)
    }
}

fn main() {}
