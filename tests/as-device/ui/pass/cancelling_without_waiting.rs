// A guest resets its device: the device gives up what it waits for and goes on, on its own thread, without waiting and
// without an event loop. What was started is carried out all the same.
// (Review: cancelling without waiting is I/O; the kind that waits is not.)

use crate::disk::{Disk, buf, on_a_device_thread};
use block_common::{Perm, RequestFlags};
use block_io::RequestKind;
use block_testkit::{MemOpKind, bed};

#[test]
fn a_device_gives_up_its_requests() {
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    disk.storage.hold(Some(MemOpKind::Write));
    on_a_device_thread(|| {
        let root = disk.root.clone();
        let written = bed::drop_after(root.write(0, buf(4096, 3), RequestFlags::empty()), 1);
        assert!(bed::block_on(written).is_none(), "the storage holds writes");
        assert_eq!(bed::block_on(root.read(4096, buf(512, 1))).0, Ok(()));
    });
    bed::block_on(disk.storage.wait_held(1));
    disk.storage.release_all();
    while disk.root.count(RequestKind::Write).requests == 0 {
        std::thread::yield_now();
    }
    assert_eq!(disk.storage.bytes(0, 4096), [3; 4096]);
    disk.close();
}
