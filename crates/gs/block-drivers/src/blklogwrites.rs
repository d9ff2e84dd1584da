//! `blklogwrites`: children `file` and `log`, options `log-sector-size`, `log-append` and `log-super-update-interval`.

use async_trait::async_trait;
use block_blklogwrites::{Blklogwrites, LogError, LogOptions, SectorSize};
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader};
use block_gs::{DriverType, GraphError, GraphResult, NoControl, OpenContext, Opened};
use std::num::NonZeroU64;

const LOG: ChildName = ChildName::from_static("log");
/// How many entries the superblock may be behind, if nobody says otherwise.
const INTERVAL: u64 = 4096;

/// The blklogwrites driver.
#[derive(Clone, Copy, Debug)]
pub struct BlklogwritesType;

fn options_of(options: &mut OptionReader) -> GraphResult<LogOptions> {
    let open = |error: LogError| GraphError::Open(error.to_string());
    let append = options.take_bool("log-append")?.unwrap_or(false);
    let sector = options.take_size("log-sector-size")?;
    if append && sector.is_some() {
        return Err(GraphError::Open("log-append and log-sector-size are mutually exclusive".into()));
    }
    let sector = sector.map_or(Ok(SectorSize::DEFAULT), SectorSize::new).map_err(open)?;
    let interval = NonZeroU64::new(options.take_u64("log-super-update-interval")?.unwrap_or(INTERVAL));
    let super_interval = interval.ok_or_else(|| open(LogError::Interval))?;
    Ok(LogOptions { begin: (!append).then_some(sector), super_interval })
}

#[async_trait(?Send)]
impl DriverType for BlklogwritesType {
    fn name(&self) -> &'static str {
        "blklogwrites"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let log = context.require_child(options, LOG, ChildRole::METADATA).await?;
        let options = options_of(options)?;
        let open = |req| async move { Ok(Blklogwrites::open(&req, file, log, options).await) };
        let opened = context.run("Could not open the blklogwrites filter", open).await?;
        let engine = Box::new(opened.map_err(|error| GraphError::Open(error.to_string()))?);
        Ok(Opened { engine, control: Box::new(NoControl), read_only: context.common().read_only })
    }

    fn reopens(&self) -> bool {
        false
    }
}
