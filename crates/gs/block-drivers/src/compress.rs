//! `compress`: child `file`, which has to be able to compress.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, IoError, OptionReader};
use block_compress::Compress;
use block_gs::{DriverType, GraphError, GraphResult, NoControl, OpenContext, Opened};

/// The compress driver.
#[derive(Clone, Copy, Debug)]
pub struct CompressType;

#[async_trait(?Send)]
impl DriverType for CompressType {
    fn name(&self) -> &'static str {
        "compress"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let below = context.child_driver(&ChildName::FILE).unwrap_or_default();
        let open = |req| async move {
            match Compress::open(&req, file) {
                Err(IoError::UNSUPPORTED) => Ok(None),
                other => other.map(Some),
            }
        };
        let engine = context.run("Could not open the compress filter", open).await?;
        let refused = || GraphError::Open(format!("Compression is not supported for underlying format: {below}"));
        let engine = Box::new(engine.ok_or_else(refused)?);
        Ok(Opened { engine, control: Box::new(NoControl), read_only: context.common().read_only })
    }

    fn reopens(&self) -> bool {
        false
    }
}
