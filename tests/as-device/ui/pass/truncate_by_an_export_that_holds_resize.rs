// A writable FUSE export takes RESIZE once, at its start, on the main loop; its data path may then truncate as often as
// it is asked to, from its own thread. One that does not hold it answers EPERM.
// (Review: this is what replaced taking the permission for each truncate.)

use crate::disk::{Disk, buf, on_a_device_thread};
use block_common::{IoError, Perm, Preallocation, RequestFlags};
use block_io::Root;
use block_testkit::bed;

fn fuse_setattr_size(export: &Root, len: u64) -> Result<(), i32> {
    let truncated = bed::block_on(export.truncate(len, Preallocation::Off));
    truncated.map_err(|error| -error.errno().raw())
}

#[test]
fn an_export_truncates() {
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE | Perm::RESIZE);
    on_a_device_thread(|| {
        let export = disk.root.clone();
        assert_eq!(fuse_setattr_size(&export, 2 << 20), Ok(()));
        assert_eq!(export.length(), Ok(2 << 20));
        assert_eq!(bed::block_on(export.write((2 << 20) - 512, buf(512, 9), RequestFlags::empty())).0, Ok(()));
        assert_eq!(fuse_setattr_size(&export, 1 << 20), Ok(()));
    });
    assert_eq!(disk.storage.len(), 1 << 20);
    disk.close();
}

#[test]
fn an_export_without_resize_is_refused() {
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    on_a_device_thread(|| {
        let refused = fuse_setattr_size(&disk.root, 2 << 20);
        assert_eq!(refused, Err(-IoError::NOT_PERMITTED.errno().raw()));
    });
    assert_eq!(disk.storage.len(), 1 << 20);
    disk.close();
}
