// Somebody else had the image: the engine forgets what it cached of it and reads it again, with a token, on an I/O
// thread. That is its whole part in activation: no permission and no parent comes into it.
// (Review: the function was split in two, and this half is what remained I/O.)

use async_trait::async_trait;
use block_common::{
    AlignedBuf, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, Perm, RequestFlags, StatusExtent,
};
use block_io::{Driver, Edge, Req, StaticGraph};
use block_testkit::{MemOptions, MemStorage, bed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A disk whose length is in the first bytes of its file.
struct Format {
    file: Edge,
    length: AtomicU64,
}

/// The tests' own share in the engine.
#[derive(Clone)]
struct Shared(Arc<Format>);

#[async_trait]
impl Driver for Shared {
    fn format_name(&self) -> &'static str {
        "format"
    }

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(self.0.length.load(Ordering::Relaxed))
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.0.file.read(req, HostOffset(offset.0 + 512), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        self.0.file.write(req, HostOffset(offset.0 + 512), buf, flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.0.file.flush(req).await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }

    async fn invalidate_cache(&self, req: &Req) -> IoResult<()> {
        let header = AlignedBuf::zeroed(8, 8).into_io();
        self.0.file.read(req, HostOffset(0), &header).await?;
        let mut length = [0; 8];
        header.copy_to_slice(0, &mut length);
        self.0.length.store(u64::from_le_bytes(length), Ordering::Relaxed);
        Ok(())
    }
}

#[test]
fn an_engine_reads_its_header_again() {
    let thread = bed::io_thread(true);
    let mut content = vec![0; 4096];
    content[..8].copy_from_slice(&2048u64.to_le_bytes());
    let storage = MemStorage::with_content(MemOptions::new(4096), content);
    bed::block_on(async {
        let mut graph = StaticGraph::new(thread.handle());
        let file = graph.node("file").install(storage.driver(), false).await.expect("installs");
        let mut shell = graph.node("format");
        let edge = shell.child(ChildRole::IMAGE, Perm::CONSISTENT_READ, &file);
        let engine = Shared(Arc::new(Format { file: edge, length: AtomicU64::new(0) }));
        let for_refresh = engine.clone();
        shell.run(|req| async move { for_refresh.invalidate_cache(&req).await }).await.expect("reads");
        let node = shell.install(engine, true).await.expect("installs");
        assert_eq!(node.node().length(), 2048);
        graph.close().await.expect("closes");
    });
}
