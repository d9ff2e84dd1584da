// A LUKS key change needs a write permission that the node does not have yet, and the function that writes the key slot
// takes it by itself, before and after. That function runs on an I/O thread. Permissions are the graph's: the edge
// shows what it may do and cannot be told.
// (Review: one function served both the tool, on the main loop, and the job's I/O body.)

use block_common::{HostOffset, IoBuf, IoResult, Perm, PermPair, RequestFlags};
use block_io::{Edge, Req};

struct Luks {
    file: Edge,
}

impl Luks {
    async fn amend(&self, req: &Req, slot: &IoBuf) -> IoResult<()> {
        self.file.set_perm(PermPair::new(Perm::WRITE, Perm::all()));
        let written = self.file.write(req, HostOffset(4096), slot, RequestFlags::FUA).await;
        self.file.set_perm(PermPair::NONE);
        written
    }
}

fn main() {}
