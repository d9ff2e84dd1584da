// An engine wants to know whether its node was opened for reading only, in the middle of a request. Flags are plain
// data that any thread may read.
// (Review: the driver's lock handling read one flag through an accessor that asserted the main thread, and crash 1 came
// of it.)

use async_trait::async_trait;
use block_common::{GuestOffset, GuestRange, IoBuf, IoError, IoResult, Perm, RequestFlags, StatusExtent};
use block_io::{Driver, Req, StaticGraph};
use block_testkit::bed;

/// Reads as its own flags.
struct Mirror;

#[async_trait]
impl Driver for Mirror {
    fn format_name(&self) -> &'static str {
        "mirror"
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(512)
    }

    async fn read(&self, req: &Req, _offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        buf.fill(0, buf.len(), u8::from(req.is_read_only()));
        buf.copy_from_slice(1, req.node_name().as_bytes());
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Err(IoError::UNSUPPORTED)
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len().min(req.length())))
    }
}

#[test]
fn an_engine_reads_its_nodes_flags_and_name() {
    let thread = bed::io_thread(true);
    bed::block_on(async {
        let mut graph = StaticGraph::new(thread.handle());
        let node = graph.node("looking-glass").install(Mirror, true).await.expect("installs");
        assert!(node.node().is_read_only());
        let root = graph.root("disk", &node, Perm::CONSISTENT_READ);
        let (result, buf) = root.read(0, block_common::AlignedBuf::zeroed(512, 512).into_io()).await;
        result.expect("reads");
        let mut bytes = [0; 14];
        buf.expect("comes back").copy_to_slice(0, &mut bytes);
        assert_eq!(bytes, *b"\x01looking-glass");
        graph.close().await.expect("closes");
    });
}
