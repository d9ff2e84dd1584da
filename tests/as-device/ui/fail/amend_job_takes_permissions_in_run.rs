// The amend job's body takes the write permission that the keys need, calls the driver, and gives it back. Taking and
// giving back are acts of the job's global-state half, before and after this one.
// (Review: the same refresh was reached from the tool on the main loop and from the job's coroutine.)

use block_common::{IoBuf, IoResult, PermPair};
use block_io::Root;

async fn run(image: &Root, keys: IoBuf) -> IoResult<()> {
    block_gs::refresh_permissions(image, PermPair::EXCLUSIVE);
    let written = image.ioctl(1, keys).await;
    block_gs::refresh_permissions(image, PermPair::NONE);
    written
}

fn main() {}
