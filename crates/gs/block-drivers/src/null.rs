//! `null-co` and `null-aio`: options `size`, `latency-ns`, `read-zeroes`.

use async_trait::async_trait;
use block_common::OptionReader;
use block_common::options::DriverKind;
use block_gs::{DriverType, EngineControl, GraphResult, OpenContext, Opened};
use block_null::{Null, NullControl, NullOptions};
use std::any::Any;
use std::time::Duration;

/// The null driver, under one of its two names.
#[derive(Clone, Copy, Debug)]
pub struct NullType(&'static str);

impl NullType {
    /// `null-co`.
    pub const COROUTINE: Self = Self("null-co");
    /// `null-aio`.
    pub const CALLBACK: Self = Self("null-aio");
}

struct Control(#[expect(dead_code, reason = "reopen changes the latency through it")] NullControl);

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

#[async_trait(?Send)]
impl DriverType for NullType {
    fn name(&self) -> &'static str {
        self.0
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let defaults = NullOptions::default();
        let latency = options.take_u64("latency-ns")?.map_or(defaults.latency, Duration::from_nanos);
        let null = NullOptions {
            name: self.0,
            size: options.take_size("size")?.unwrap_or(defaults.size),
            latency,
            read_zeroes: options.take_bool("read-zeroes")?.unwrap_or(defaults.read_zeroes),
        };
        let (engine, control) = Null::new(null);
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }
}
