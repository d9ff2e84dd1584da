//! `copy-on-read`: child `file`, option `bottom`, and the permission that its copies need (rule perm-4).

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, Perm, PermPair};
use block_copy_on_read::CopyOnRead;
use block_gs::{DriverType, GlobalState, GraphError, GraphResult, NoControl, NodeRef, OpenContext, Opened};

/// The copy-on-read driver.
#[doc(alias = "bdrv_enable_copy_on_read")]
#[doc(alias = "bdrv_disable_copy_on_read")]
#[derive(Clone, Copy, Debug)]
pub struct CopyOnReadType;

#[async_trait(?Send)]
impl DriverType for CopyOnReadType {
    fn name(&self) -> &'static str {
        CopyOnRead::NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let bottom = options.take_str("bottom")?;
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let bottom = match bottom {
            Some(name) => Some(find_bottom(context, &name)?),
            None => None,
        };
        let bottom = bottom.map(|node| node.io().clone());
        let open = |req| async move { CopyOnRead::open(&req, file, bottom).await };
        let engine = context.run("Could not open the copy-on-read node", open).await?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only })
    }

    /// Its copies are its own, whatever its users do: also under a node that is only read, and before there are any.
    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        PermPair::new(above.perm | Perm::WRITE_UNCHANGED, above.shared)
    }
}

/// The node called `name`, which must be in the chain of backing files below the node that is being opened.
fn find_bottom(context: &OpenContext<'_>, name: &str) -> GraphResult<NodeRef> {
    let gs = context.global();
    let open = |message: String| GraphError::Open(message);
    let bottom = gs.find_node(name).map_err(|_| open(format!("Bottom node '{name}' not found")))?;
    if is_filter(gs, &bottom) {
        return Err(open(format!("Bottom node '{name}' is a filter")));
    }
    let top = context.child_name(&ChildName::FILE).map(|name| gs.find_node(&name)).transpose()?;
    let mut at = top.clone();
    while let Some(node) = at {
        if node.same(&bottom) {
            return Ok(bottom);
        }
        at = match is_filter(gs, &node) {
            true => gs.primary_child(&node)?,
            // A driver that has no backing files has no such edge.
            false => gs.child(&node, ChildName::BACKING.as_str()).unwrap_or(None),
        };
    }
    let top = top.map(|top| top.name().to_owned()).unwrap_or_default();
    Err(open(format!("Bottom node '{name}' is not in the backing chain of '{top}'")))
}

fn is_filter(gs: &GlobalState, node: &NodeRef) -> bool {
    node.io().driver().and_then(|name| gs.driver(name).ok()).is_some_and(|driver| driver.is_filter())
}
