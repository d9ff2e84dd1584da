//! Roots: the graph's side of whoever sends requests from outside (backends, exports, jobs).

use crate::drain::DrainGuard;
use crate::error::{GraphError, GraphResult};
use crate::graph::{Dead, DrainTarget, Graph, GsRoot, Id, NodeRef, ParentEnd, ReapQueue};
use crate::perm::{Change, Plan};
use crate::state::GlobalState;
use block_common::{ParentKind, PermPair};
use block_io::{IoThreadHandle, Root, RootControl};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// A root entry of the graph, held by what it is for. Dropping it detaches and removes it; requests in flight finish.
pub struct RootRef {
    id: Id,
    queue: Rc<ReapQueue>,
    io: Root,
}

impl RootRef {
    /// The half for device threads.
    pub fn io(&self) -> &Root {
        &self.io
    }
}

impl Drop for RootRef {
    fn drop(&mut self) {
        self.queue.push(Dead::Root(self.id));
    }
}

impl fmt::Debug for RootRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.io.fmt(f)
    }
}

impl Graph {
    /// Let roots lead nowhere; they must be drained. Returns the references that they held.
    pub(crate) fn detach_roots(&mut self, roots: &[Id]) -> Vec<NodeRef> {
        let mut released = Vec::new();
        for id in roots {
            let change = Change { end: ParentEnd::Root(*id), child: None };
            released.extend(self.repoint(&[change]).unwrap_or_default());
            if let Some(root) = self.roots.get_mut(id) {
                root.control.shut();
            }
        }
        released
    }
}

impl GlobalState {
    /// A root entry that leads nowhere, asks for `perm`, and whose slow requests run on `home`.
    pub fn new_root(&self, name: &str, kind: ParentKind, perm: PermPair, home: &IoThreadHandle) -> RootRef {
        let mut graph = self.0.graph.borrow_mut();
        let id = graph.number();
        let control = RootControl::new(name, home, perm, None);
        let io = control.root();
        graph.roots.insert(id, GsRoot { name: name.into(), kind, control, child: None, perm });
        graph.apply_drains();
        RootRef { id, queue: graph.reap.clone(), io }
    }

    /// Let `root` lead to `node`, or nowhere. Drains the root for it, and nothing else.
    ///
    /// # Errors
    /// [`GraphError::Permission`] when the node's other users are in the way. The root is then as it was.
    #[doc(alias = "blk_insert_bs")]
    #[doc(alias = "blk_remove_bs")]
    #[doc(alias = "blk_replace_bs")]
    #[doc(alias = "bdrv_root_unref_child")]
    pub async fn attach_root(&self, root: &RootRef, node: Option<&NodeRef>) -> GraphResult<()> {
        if node.is_some() && self.0.graph.borrow().shut {
            return Err(GraphError::ShuttingDown);
        }
        let guard = self.begin(DrainTarget::Root(root.id)).await;
        let change = Change { end: ParentEnd::Root(root.id), child: node.cloned() };
        let old = self.0.graph.borrow_mut().repoint(&[change])?;
        drop(guard);
        drop(old);
        Ok(())
    }

    /// The node that `root` leads to.
    #[doc(alias = "blk_bs")]
    pub fn root_node(&self, root: &RootRef) -> Option<NodeRef> {
        self.0.graph.borrow().roots.get(&root.id)?.child.clone()
    }

    /// Set what `root` asks of its node and shares.
    ///
    /// # Errors
    /// [`GraphError::Permission`] when others are in the way. The root is then as it was.
    #[doc(alias = "blk_set_perm")]
    pub fn set_root_perm(&self, root: &RootRef, perm: PermPair) -> GraphResult<()> {
        let mut graph = self.0.graph.borrow_mut();
        let plan = Plan::with_roots(&graph, &[], &[], &BTreeMap::from([(root.id, perm)]))?;
        plan.commit(&mut graph);
        Ok(())
    }

    /// What `root` asks of its node and shares.
    #[doc(alias = "blk_get_perm")]
    pub fn root_perm(&self, root: &RootRef) -> PermPair {
        self.0.graph.borrow().roots.get(&root.id).map_or(PermPair::NONE, |root| root.perm)
    }

    /// Run the slow requests of `root` on `home` from now on. The root is drained for it.
    #[doc(alias = "blk_set_aio_context")]
    pub async fn set_root_home(&self, root: &RootRef, home: &IoThreadHandle) {
        let guard = self.begin(DrainTarget::Root(root.id)).await;
        if let Some(root) = self.0.graph.borrow().roots.get(&root.id) {
            root.control.set_home(home);
        }
        drop(guard);
    }

    /// Hold back requests of `root` alone, and wait until those in flight are over.
    #[doc(alias = "blk_drain")]
    pub async fn drain_root(&self, root: &RootRef) -> DrainGuard {
        self.begin(DrainTarget::Root(root.id)).await
    }

    /// Whether the root is still part of the graph.
    ///
    /// # Errors
    /// [`GraphError::ShuttingDown`] when it is not.
    pub fn check_root(&self, root: &RootRef) -> GraphResult<()> {
        let known = self.0.graph.borrow().roots.contains_key(&root.id);
        known.then_some(()).ok_or(GraphError::ShuttingDown)
    }
}
