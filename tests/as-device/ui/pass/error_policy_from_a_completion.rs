// A request fails on an I/O thread, and the device asks there what to do about it: report, ignore or stop, by the
// policy that the main loop set. The main loop hears of it, one way.
// (Review: recording the status asserted the main thread, two calls below a function that was declared I/O.)

use crate::disk::{Disk, buf};
use block_backend_io::{BackendEvent, BackendSettings, ErrorAction};
use block_common::{Errno, IoError, OnError, Perm, RequestFlags};
use block_testkit::{MemOpKind, bed};

#[test]
fn a_full_disk_stops_the_machine() {
    let disk = Disk::new(1 << 20, Perm::CONSISTENT_READ | Perm::WRITE);
    let (backend, control, mut events) = disk.backend();
    control.set_settings(BackendSettings { on_read_error: OnError::Ignore, on_write_error: OnError::Auto });
    let full = IoError::host(Errno::ENOSPC.raw());
    disk.storage.fail_nth(Some(MemOpKind::Write), 0, full);
    let device = backend.clone();
    let action = backend.root().home().run(async move {
        let (result, _) = device.root().write(0, buf(512, 1), RequestFlags::empty()).await;
        result.map_err(|error| device.error_action(true, error))
    });
    assert_eq!(bed::block_on(action), Some(Err(ErrorAction::Stop)));
    assert_eq!(backend.error_action(false, IoError::host(Errno::EIO.raw())), ErrorAction::Ignore);
    let told = bed::block_on(events.next());
    assert_eq!(told, Some(BackendEvent::IoError { is_write: true, error: full, action: ErrorAction::Stop }));
    disk.close();
}
