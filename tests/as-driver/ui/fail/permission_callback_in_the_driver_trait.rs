// An engine implements a permission callback, as drivers did when one table held both kinds. The trait of engines has
// no such method: what a driver needs from its children is asked of its global-state half.
// (Review: checking, setting and aborting permissions were driver callbacks that ended in global state.)

use async_trait::async_trait;
use block_common::{BlockStatus, GuestOffset, GuestRange, IoBuf, IoResult, Perm, RequestFlags, StatusExtent};
use block_io::{Driver, Req};

struct Engine;

#[async_trait]
impl Driver for Engine {
    fn format_name(&self) -> &'static str {
        "engine"
    }

    fn set_perm(&self, _perm: Perm, _shared: Perm) {}

    async fn length(&self, _req: &Req) -> IoResult<u64> {
        Ok(0)
    }

    async fn read(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf) -> IoResult<()> {
        Ok(())
    }

    async fn write(&self, _req: &Req, _offset: GuestOffset, _buf: &IoBuf, _flags: RequestFlags) -> IoResult<()> {
        Ok(())
    }

    async fn flush(&self, _req: &Req) -> IoResult<()> {
        Ok(())
    }

    async fn block_status(&self, _req: &Req, range: GuestRange) -> IoResult<StatusExtent> {
        Ok(StatusExtent::new(BlockStatus::DATA, range.len()))
    }
}

fn main() {}
