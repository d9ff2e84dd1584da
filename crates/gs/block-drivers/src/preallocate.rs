//! `preallocate`: child `file`, options `prealloc-align` and `prealloc-size`; when the surplus is cut off, and who may have the file meanwhile.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, Perm, PermPair};
use block_gs::{
    DriverType, EngineControl, GraphError, GraphResult, OpenContext, Opened, PreparingReopen, Reopening,
    WeakGlobalState, filter_perm,
};
use block_io::Quiesced;
use block_preallocate::{Preallocate, PreallocateControl, PreallocateOptions};
use std::any::Any;

/// What it takes to make a file longer, and to cut it.
const GROWS: Perm = Perm::WRITE.union(Perm::RESIZE);

/// The preallocate driver.
#[derive(Clone, Copy, Debug)]
pub struct PreallocateType;

/// Its nodes' control is a [`PreallocateControl`].
struct Control {
    engine: PreallocateControl,
    gs: WeakGlobalState,
    node: String,
    /// What the node's users need, as it was prepared last.
    asked: Perm,
}

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.engine
    }

    /// Until the surplus is cut off, the file is the node's alone, whoever uses it.
    fn child_perm_more(&self) -> PermPair {
        if self.engine.has_surplus() { PermPair::new(GROWS, !GROWS) } else { PermPair::NONE }
    }

    fn prepare_perm(&mut self, perm: PermPair) -> GraphResult<()> {
        self.asked = perm.perm;
        Ok(())
    }

    /// Nobody is left who could make the file grow: it is given back as long as its data is.
    fn commit_perm(&mut self) {
        if !self.asked.contains(GROWS)
            && self.engine.has_surplus()
            && let Some(gs) = self.gs.upgrade()
        {
            let engine = self.engine.clone();
            gs.later_on_node(self.node.clone(), move |req| engine.cut(req));
        }
    }

    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let options = options_of(to.options)?;
        // Cut while that is still allowed. If the reopen fails after all, the next write past the end makes a new surplus.
        let cut = match to.common.read_only && self.engine.has_surplus() {
            true => Some(to.run("Failed to cut off what was preallocated", |req| self.engine.cut(req))?),
            false => None,
        };
        Ok(Box::pin(async move {
            if let Some(cut) = cut {
                cut.await?;
            }
            Ok(Box::new(options) as Box<dyn Any>)
        }))
    }

    fn commit_reopen(&mut self, prepared: Box<dyn Any>, proof: &Quiesced<'_>) {
        if let Ok(options) = prepared.downcast::<PreallocateOptions>() {
            self.engine.set_options(*options, proof);
        }
    }
}

fn options_of(options: &mut OptionReader) -> GraphResult<PreallocateOptions> {
    let defaults = PreallocateOptions::default();
    let wanted = PreallocateOptions {
        align: options.take_size("prealloc-align")?.unwrap_or(defaults.align),
        size: options.take_size("prealloc-size")?.unwrap_or(defaults.size),
    };
    wanted.checked().map_err(|error| GraphError::Open(error.to_string()))
}

#[async_trait(?Send)]
impl DriverType for PreallocateType {
    fn name(&self) -> &'static str {
        "preallocate"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let options = options_of(options)?;
        let open = |req| async move {
            let limits = file.limits(&req)?;
            Ok(Preallocate::new(file, limits, options))
        };
        let (engine, engine_control) = context.run("Could not open the preallocate filter", open).await?;
        let (gs, node) = (context.global().downgrade(), context.node_name());
        let control = Control { engine: engine_control, gs, node, asked: Perm::empty() };
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }

    fn reopenable(&self) -> &'static [&'static str] {
        &["prealloc-align", "prealloc-size"]
    }

    /// Where the data ends is known to the filter alone while somebody may make the file grow.
    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        let PermPair { perm, shared } = filter_perm(above);
        if perm.contains(GROWS) { PermPair::new(perm, shared.difference(GROWS)) } else { PermPair::new(perm, shared) }
    }
}
