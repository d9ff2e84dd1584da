//! `throttle`: child `file`, and the group that it is a member of, by name.

use async_trait::async_trait;
use block_common::options::{Dialect, DriverKind};
use block_common::{ChildName, ChildRole, OptionReader, PermPair};
use block_gs::{
    DriverType, EngineControl, GlobalState, GraphError, GraphResult, OpenContext, Opened, PreparingReopen, Reopening,
    ThrottleGroupRef, filter_perm,
};
use block_io::Quiesced;
use block_throttle_filter::{Throttle, ThrottleControl};
use std::any::Any;

const GROUP: &str = "throttle-group";

/// The throttle driver.
#[derive(Clone, Copy, Debug)]
pub struct ThrottleType;

/// Its nodes' control: the engine's, and the group, which cannot be deleted meanwhile.
struct Control {
    engine: ThrottleControl,
    group: ThrottleGroupRef,
}

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.engine
    }

    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let gs = to.global().clone();
        let group = group(&gs, to.options)?;
        Ok(Box::pin(std::future::ready(Ok(Box::new(group) as Box<dyn Any>))))
    }

    fn commit_reopen(&mut self, prepared: Box<dyn Any>, proof: &Quiesced<'_>) {
        if let Ok(group) = prepared.downcast::<ThrottleGroupRef>() {
            self.engine.join(group.group(), proof);
            self.group = *group;
        }
    }
}

/// The group that `options` name.
fn group(gs: &GlobalState, options: &mut OptionReader) -> GraphResult<ThrottleGroupRef> {
    match options.take_str(GROUP)? {
        Some(name) => gs.throttle_group(&name),
        None if options.dialect() == Dialect::Legacy => Err(GraphError::Open("Please specify a throttle group".into())),
        None => Err(options.missing(GROUP).into()),
    }
}

#[async_trait(?Send)]
impl DriverType for ThrottleType {
    fn name(&self) -> &'static str {
        Throttle::NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let group = group(context.global(), options)?;
        let shared = group.group().clone();
        let open = |req| async move {
            let limits = file.limits(&req)?;
            Ok(Throttle::new(file, limits, &shared))
        };
        let (engine, control) = context.run("Could not open the throttle node", open).await?;
        let control = Control { engine: control, group };
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }

    fn reopenable(&self) -> &'static [&'static str] {
        &[GROUP]
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        filter_perm(above)
    }
}
