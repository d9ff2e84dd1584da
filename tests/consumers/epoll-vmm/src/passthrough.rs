//! A filter of this program's own, both halves: it changes nothing, and counts what goes through.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{
    ChildName, ChildRole, GuestOffset, GuestRange, HostOffset, IoBuf, IoResult, LENGTH_MAX, Limits, OptionReader,
    RequestFlags, StatusExtent,
};
use block_gs::{DriverType, EngineControl, GraphResult, OpenContext, Opened};
use block_io::{Access, Driver, Edge, Mapping, Req};
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The half that requests see.
struct Passthrough {
    file: Edge,
    limits: Limits,
    seen: Arc<AtomicU64>,
}

/// The half that the graph keeps.
pub(crate) struct PassthroughControl {
    seen: Arc<AtomicU64>,
}

impl PassthroughControl {
    /// How many requests were mapped.
    pub(crate) fn seen(&self) -> u64 {
        self.seen.load(Ordering::Relaxed)
    }
}

impl EngineControl for PassthroughControl {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// The driver, as the graph knows it: `driver=passthrough,file=…`.
pub(crate) struct PassthroughType;

#[async_trait(?Send)]
impl DriverType for PassthroughType {
    fn name(&self) -> &'static str {
        "passthrough"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let seen = Arc::new(AtomicU64::new(0));
        let counter = seen.clone();
        let open = |req| async move {
            let limits = file.limits(&req)?;
            Ok(Passthrough { file, limits, seen: counter })
        };
        let engine = context.run("opening the filter", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(PassthroughControl { seen }), read_only })
    }
}

#[async_trait]
impl Driver for Passthrough {
    fn format_name(&self) -> &'static str {
        "passthrough"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn map_cached(&self, _access: Access, range: GuestRange) -> Mapping<'_> {
        self.seen.fetch_add(1, Ordering::Relaxed);
        let offset = range.offset().0;
        Mapping::Child { edge: &self.file, offset: HostOffset(offset), len: LENGTH_MAX - offset }
    }

    fn write_flags(&self) -> RequestFlags {
        RequestFlags::all()
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
}
