//! `blkverify`: children `raw` and `test`; differences become events.

use async_trait::async_trait;
use block_blkverify::{Blkverify, BlkverifyControl};
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader};
use block_gs::{DriverType, EngineControl, Event, GraphResult, OpenContext, Opened};
use std::any::Any;

const RAW: ChildName = ChildName::from_static("raw");
const TEST: ChildName = ChildName::from_static("test");

/// The blkverify driver.
#[derive(Clone, Copy, Debug)]
pub struct BlkverifyType;

/// Its nodes' control is a [`BlkverifyControl`].
struct Control(BlkverifyControl);

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.0
    }
}

#[async_trait(?Send)]
impl DriverType for BlkverifyType {
    fn name(&self) -> &'static str {
        "blkverify"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Protocol
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let raw = context.require_child(options, RAW, ChildRole::FILTERED_PRIMARY).await?;
        let test = context.require_child(options, TEST, ChildRole::DATA).await?;
        let open = |req| async move { Blkverify::open(&req, test, raw) };
        let (engine, control) = context.run("Could not open the blkverify filter", open).await?;
        let (events, node) = (context.global().event_sender(), context.node_name());
        control.report_to(move |mismatch| {
            events.send(Event::VerifyFailed { node: node.clone(), message: mismatch.to_string() });
        });
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }

    fn reopens(&self) -> bool {
        false
    }
}
