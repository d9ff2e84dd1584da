//! `raw`: child `file`, options `offset` and `size`.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, PermPair};
use block_gs::{
    DriverType, EngineControl, GraphError, GraphResult, OpenContext, Opened, PreparingReopen, Reopening, filter_perm,
};
use block_io::Quiesced;
use block_raw::{Raw, RawControl, RawOptions, RawReopen};
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

    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let options = window(to.options)?;
        let coming = to.take_coming_child("file");
        if options == self.0.options() && coming.is_none() {
            return Ok(Box::pin(std::future::ready(Ok(Box::new(None::<RawReopen>) as Box<dyn Any>))));
        }
        let checked = to.run("Could not open the raw image", |req| {
            let prepared = self.0.prepare(req, coming, options);
            async move { Ok(prepared.await) }
        })?;
        Ok(Box::pin(async move {
            let prepared = checked.await?.map_err(|error| GraphError::Open(error.to_string()))?;
            Ok(Box::new(Some(prepared)) as Box<dyn Any>)
        }))
    }

    fn commit_reopen(&mut self, prepared: Box<dyn Any>, proof: &Quiesced<'_>) {
        if let Ok(prepared) = prepared.downcast::<Option<RawReopen>>()
            && let Some(reopen) = *prepared
        {
            self.0.commit(reopen, proof);
        }
    }
}

fn window(options: &mut OptionReader) -> GraphResult<RawOptions> {
    Ok(RawOptions { offset: options.take_size("offset")?.unwrap_or(0), size: options.take_size("size")? })
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
        let window = window(options)?;
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

    fn reopenable(&self) -> &'static [&'static str] {
        &["offset", "size"]
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        // A raw image has no metadata: it needs what is asked of it, and can be shared as far as its users share it.
        filter_perm(above)
    }
}
