// A pass-through device's commands go down through a filter, asynchronously, with the request's own token.
// (Review: the synchronous ioctl was called global state and the asynchronous one I/O, for the same call.)

use async_trait::async_trait;
use block_common::{
    ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Perm, RequestFlags, StatusExtent,
};
use block_io::{Driver, Edge, Req, StaticGraph};
use block_testkit::bed;

/// Tells its number plus one.
struct Device;

/// Passes everything on.
struct Filter {
    file: Edge,
}

#[async_trait]
impl Driver for Device {
    fn format_name(&self) -> &'static str {
        "device"
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(512)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn ioctl(&self, _req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        argument.copy_from_slice(0, &(number + 1).to_le_bytes());
        Ok(())
    }
}

#[async_trait]
impl Driver for Filter {
    fn format_name(&self) -> &'static str {
        "filter"
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.file.write(req, HostOffset(offset.0), buf, flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }

    async fn ioctl(&self, req: &Req, number: u64, argument: &IoBuf) -> IoResult<()> {
        self.file.ioctl(req, number, argument).await
    }
}

#[test]
fn a_filter_passes_a_command_to_its_device() {
    let thread = bed::io_thread(true);
    bed::block_on(async {
        let mut graph = StaticGraph::new(thread.handle());
        let device = graph.node("device").install(Device, false).await.expect("installs");
        let mut shell = graph.node("filter");
        let file = shell.child(ChildRole::FILTERED_PRIMARY, Perm::CONSISTENT_READ, &device);
        let filter = shell.install(Filter { file }, true).await.expect("installs");
        let root = graph.root("scsi-generic", &filter, Perm::CONSISTENT_READ);
        let argument = block_common::AlignedBuf::zeroed(8, 8).into_io();
        root.ioctl(0x2285, argument.clone()).await.expect("the device answers");
        let mut answer = [0; 8];
        argument.copy_to_slice(0, &mut answer);
        assert_eq!(u64::from_le_bytes(answer), 0x2286);
        graph.close().await.expect("closes");
    });
}
