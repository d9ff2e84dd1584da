// The guard of a raw disk whose format was guessed: a guest must not write an image header into its first sector.
// Probing is a pure function over bytes, so the write path may call it, on any thread.
// (Review: the guard called the prober, which asserted the main thread. The list's first demand.)

use async_trait::async_trait;
use block_common::{
    AlignedBuf, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoError, IoResult, Perm, RequestFlags,
    StatusExtent, probe_format,
};
use block_io::{Driver, Edge, Req, StaticGraph};
use block_testkit::{MemOptions, MemStorage, bed};

struct GuessedRaw {
    file: Edge,
}

#[async_trait]
impl Driver for GuessedRaw {
    fn format_name(&self) -> &'static str {
        "guessed-raw"
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        self.file.read(req, HostOffset(offset.0), buf).await
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        // A guest changes its memory while we look: what is probed is what is written.
        let copy = buf.to_aligned(512);
        if offset == GuestOffset(0) && probe_format(&copy) != "raw" {
            return Err(IoError::NOT_PERMITTED);
        }
        self.file.write(req, HostOffset(offset.0), &copy.into_io(), flags).await
    }

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn block_status(&self, req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        self.file.block_status(req, HostOffset(range.offset().0), range.len()).await
    }
}

#[test]
fn a_guest_cannot_write_a_header_into_a_guessed_raw_disk() {
    let thread = bed::io_thread(true);
    let storage = MemStorage::new(MemOptions::new(1 << 16));
    bed::block_on(async {
        let mut graph = StaticGraph::new(thread.handle());
        let file = graph.node("file").install(storage.driver(), false).await.expect("installs");
        let mut shell = graph.node("raw");
        let edge = shell.child(ChildRole::FILTERED_PRIMARY, Perm::CONSISTENT_READ | Perm::WRITE, &file);
        let raw = shell.install(GuessedRaw { file: edge }, false).await.expect("installs");
        let root = graph.root("disk", &raw, Perm::CONSISTENT_READ | Perm::WRITE);

        let mut sector = AlignedBuf::zeroed(512, 512);
        sector[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        let (refused, buf) = root.write(0, sector.into_io(), RequestFlags::empty()).await;
        assert_eq!(refused, Err(IoError::NOT_PERMITTED));
        let (elsewhere, _) = root.write(512, buf.expect("comes back"), RequestFlags::empty()).await;
        assert_eq!(elsewhere, Ok(()));
        assert_eq!(storage.bytes(0, 4), [0; 4]);
        assert_eq!(storage.bytes(512, 4), *b"QFI\xfb");
        graph.close().await.expect("closes");
    });
}
