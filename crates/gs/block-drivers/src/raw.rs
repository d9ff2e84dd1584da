//! `raw`: child `file`, options `offset` and `size`.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, PermPair};
use block_gs::{DriverType, EngineControl, GraphError, GraphResult, OpenContext, Opened, filter_perm};
use block_raw::{Raw, RawControl, RawOptions};
use std::any::Any;

/// The raw driver.
#[derive(Clone, Copy, Debug)]
pub struct RawType;

/// Its nodes' control is a [`RawControl`].
struct Control(RawControl);

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.0
    }
}

#[async_trait(?Send)]
impl DriverType for RawType {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let window = RawOptions { offset: options.take_size("offset")?.unwrap_or(0), size: options.take_size("size")? };
        // Without a window it is its file, and may say so to those who look for filters; with one it is an image in it.
        let role = if window == RawOptions::default() {
            ChildRole::FILTERED_PRIMARY
        } else {
            ChildRole::DATA | ChildRole::PRIMARY
        };
        let file = context.require_child(options, ChildName::FILE, role).await?;
        let opened =
            context.run("Could not open the raw image", |req| async move { Ok(Raw::open(&req, file, window).await) });
        let (engine, control) = opened.await?.map_err(|error| GraphError::Open(error.to_string()))?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        // A raw image has no metadata: it needs what is asked of it, and can be shared as far as its users share it.
        filter_perm(above)
    }
}
