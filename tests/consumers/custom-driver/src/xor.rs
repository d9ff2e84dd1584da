//! `xor`: a driver that hides its data behind a key that repeats. A stand-in for encryption, and no encryption.
//!
//! Everything takes the slow path: the mapping's default answer is "slow". A guest may look into its buffers and change
//! them at any time, so data is transformed in memory of our own, and only the result goes into a buffer.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    AlignedBuf, ChildName, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, Limits, OptionReader,
    RequestFlags, StatusExtent,
};
use block_gs::{DriverType, GraphResult, NoControl, OpenContext, Opened};
use block_io::{Driver, Edge, Req};

/// Hide `bytes`, which stand at `offset`, or find them again.
pub(crate) fn apply(key: &[u8], offset: u64, bytes: &mut [u8]) {
    let start = (offset % key.len() as u64) as usize;
    for (byte, key) in bytes.iter_mut().zip(key.iter().cycle().skip(start)) {
        *byte ^= key;
    }
}

/// The engine. Its key is a value by the time that it is made.
struct Xor {
    file: Edge,
    key: Vec<u8>,
    limits: Limits,
}

#[async_trait]
impl Driver for Xor {
    fn format_name(&self) -> &'static str {
        "xor"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::FUA
    }

    async fn length(&self, req: &Req) -> IoResult<u64> {
        self.file.refresh_length(req).await
    }

    async fn read(&self, req: &Req, offset: GuestOffset, buf: &IoBuf) -> IoResult<()> {
        let alignment = self.limits.memory_alignment.max(1) as usize;
        let hidden = AlignedBuf::zeroed(buf.len(), alignment).into_io();
        self.file.read(req, HostOffset(offset.0), &hidden).await?;
        let mut plain = hidden.to_aligned(alignment);
        apply(&self.key, offset.0, &mut plain);
        buf.copy_from_slice(0, &plain);
        Ok(())
    }

    async fn write(&self, req: &Req, offset: GuestOffset, buf: &IoBuf, flags: RequestFlags) -> IoResult<()> {
        let mut hidden = buf.to_aligned(self.limits.memory_alignment.max(1) as usize);
        apply(&self.key, offset.0, &mut hidden);
        self.file.write(req, HostOffset(offset.0), &hidden.into_io(), flags).await
    }

    // No `zero`: zeroes below are not zeroes here, so the core writes them out. No `discard` for the same reason.

    async fn flush(&self, req: &Req) -> IoResult<()> {
        self.file.flush(req).await
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::data(range.len()))
    }
}

/// The driver, as the graph knows it: `driver=xor,key=…,file=…`.
pub(crate) struct XorType;

#[async_trait(?Send)]
impl DriverType for XorType {
    fn name(&self) -> &'static str {
        "xor"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let key = options.require_str("key")?.into_bytes();
        if key.is_empty() {
            return Err(options.invalid("key", "an empty key hides nothing").into());
        }
        let file = context.require_child(options, ChildName::FILE, ChildRole::DATA | ChildRole::PRIMARY).await?;
        let open = |req| async move {
            let limits = file.limits(&req)?;
            Ok(Xor { file, key, limits })
        };
        let engine = context.run("Could not open the hidden disk", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }
}
