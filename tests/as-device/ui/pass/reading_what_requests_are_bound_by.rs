// A device, an export and a job read what they need to form requests and messages: names, length, limits, permissions,
// status, counters. None of it waits for the main loop, and none of it changes anything.
// (Review: the size in sectors, the name, the transfer limit and the block status were each on the wrong side once.)

use crate::disk::{Disk, buf, on_a_device_thread};
use block_common::{Perm, RequestFlags};
use block_io::RequestKind;
use block_testkit::bed;

#[test]
fn a_thread_reads_everything() {
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    let (backend, ..) = disk.backend();
    on_a_device_thread(move || {
        let root = backend.root();
        assert_eq!((backend.name(), root.name()), ("drive0", "drive0"));
        assert!(backend.is_available() && root.is_attached() && root.is_writable());
        assert!(!root.perm().contains(Perm::RESIZE));
        assert_eq!(root.length(), Ok(1 << 20));
        assert_eq!(root.limits().map(|limits| limits.request_alignment), Ok(1));
        assert_eq!(root.in_flight(), 0);
        bed::block_on(async {
            root.write(4096, buf(4096, 1), RequestFlags::empty()).await.0.expect("writes");
            root.zero(8192, 4096, RequestFlags::MAY_UNMAP).await.expect("zeroes");
            root.flush().await.expect("flushes");
            let status = root.block_status(0, 1 << 20).await.expect("tells");
            assert!(status.is_zero() && status.len == 4096);
            assert_eq!(root.refresh_length().await, Ok(1 << 20));
        });
        assert_eq!(root.count(RequestKind::Write).bytes, 4096);
        assert_eq!(root.count(RequestKind::Flush).requests, 1);
    });
    disk.close();
}
