// An engine loads a table from disk in the step that must answer at once. That step is a plain function: there is
// nothing to wait with. It answers "slow", and the slow path waits.
// (Review: callbacks that must not wait and were called from where waiting deadlocks.)

use block_common::{GuestRange, HostOffset, IoBuf};
use block_io::{Access, Edge, Mapping, Req};

struct Engine {
    file: Edge,
    table: IoBuf,
}

impl Engine {
    fn map_cached(&self, req: &Req, _access: Access, range: GuestRange) -> Mapping<'_> {
        let loaded = self.file.read(req, HostOffset(0), &self.table).await;
        match loaded {
            Ok(()) => Mapping::Child { edge: &self.file, offset: HostOffset(range.offset().0), len: range.len() },
            Err(_) => Mapping::Slow,
        }
    }
}

fn main() {}
