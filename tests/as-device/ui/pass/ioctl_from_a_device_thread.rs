// A pass-through device sends its guest's commands to the real one: from its own thread, from a completion, without
// waiting if it likes.
// (Review: the synchronous variant was moved to global state with nothing global about it.)

use crate::disk::{Disk, buf, on_a_device_thread};
use async_trait::async_trait;
use block_common::{GuestOffset, GuestRange, IoBuf, IoError, IoResult, Perm, RequestFlags, StatusExtent};
use block_io::{Driver, Req};
use block_testkit::{MemOptions, MemStorage, bed};

struct Device;

#[async_trait]
impl Driver for Device {
    fn format_name(&self) -> &'static str {
        "device"
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(512)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        buf.fill(0, buf.len(), 1);
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Ok(())
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn ioctl(&self, _req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        if number != 0x2285 {
            return Err(IoError::UNSUPPORTED);
        }
        argument.fill(0, argument.len(), 0xaa);
        Ok(())
    }
}

#[test]
fn a_device_thread_sends_commands() {
    let unused = MemStorage::new(MemOptions::new(512));
    let disk = Disk::on(unused, Device, Perm::CONSISTENT_READ | Perm::WRITE);
    let root = disk.root.clone();
    on_a_device_thread(move || {
        let argument = buf(64, 0);
        bed::block_on(root.ioctl(0x2285, argument.clone())).expect("the device answers");
        let mut answer = [0; 64];
        argument.copy_to_slice(0, &mut answer);
        assert_eq!(answer, [0xaa; 64]);
        assert_eq!(bed::block_on(root.ioctl(1, buf(1, 0))), Err(IoError::UNSUPPORTED));
        // The next command is sent from where the last one completed.
        let (home, again) = (root.home(), root.clone());
        let sent = home.run(async move {
            again.read(0, buf(512, 0)).await.0?;
            again.ioctl(0x2285, buf(8, 0)).await
        });
        assert_eq!(bed::block_on(sent), Some(Ok(())));
    });
    disk.close();
}
