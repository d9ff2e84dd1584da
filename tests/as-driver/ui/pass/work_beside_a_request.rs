// An engine splits a request into parts that run beside each other, on other threads. Each part takes a token of its
// own from the request's, so that whoever drains waits for all of them.
// (Review: a coroutine is counted between entering and leaving, and only there.)

use async_trait::async_trait;
use block_common::{
    ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Perm, RequestFlags, StatusExtent,
};
use block_io::{Driver, Edge, IoThreadHandle, Req, StaticGraph};
use block_testkit::{MemOptions, MemStorage, bed};
use std::sync::Arc;

struct Twice {
    children: Arc<[Edge; 2]>,
    helper: IoThreadHandle,
}

#[async_trait]
impl Driver for Twice {
    fn format_name(&self) -> &'static str {
        "twice"
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.children[0].refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.children[0].read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let at = HostOffset(offset.0);
        let (children, own, data) = (self.children.clone(), req.again(), buf.clone());
        let second = self.helper.run(async move { children[1].write(&own, at, &data, flags).await });
        self.children[0].write(req, at, buf, flags).await?;
        second.await.unwrap_or(Err(IoError::CANCELLED))
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.children[0].flush(req).await?;
        self.children[1].flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.children[0].block_status(req, HostOffset(range.offset().0), range.len()).await
    }
}

#[test]
fn both_children_have_what_was_written() {
    let (thread, helper) = (bed::io_thread(true), bed::io_thread(true));
    let storages = [1, 2].map(|_| MemStorage::new(MemOptions::new(1 << 16)));
    bed::block_on(async {
        let mut graph = StaticGraph::new(thread.handle());
        let first = graph.node("first").install(storages[0].driver(), false).await.expect("installs");
        let second = graph.node("second").install(storages[1].driver(), false).await.expect("installs");
        let mut shell = graph.node("twice");
        let perm = Perm::CONSISTENT_READ | Perm::WRITE;
        let children = [&first, &second].map(|child| shell.child(ChildRole::DATA, perm, child));
        let engine = Twice { children: Arc::new(children), helper: helper.handle() };
        let node = shell.install(engine, false).await.expect("installs");
        let root = graph.root("disk", &node, perm);
        let mut data = block_common::AlignedBuf::zeroed(4096, 512);
        data.fill(0x5a);
        root.write(8192, data.into_io(), RequestFlags::empty()).await.0.expect("writes");
        for storage in &storages {
            assert_eq!(storage.bytes(8192, 4096), [0x5a; 4096]);
        }
        graph.close().await.expect("closes");
    });
}
