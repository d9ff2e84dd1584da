//! Roots: the graph's side of whoever sends requests from outside (backends, exports, jobs).

use crate::drain::DrainGuard;
use crate::error::{GraphError, GraphResult};
use crate::graph::{Dead, DrainTarget, GsNode, GsRoot, Id, NodeRef, ParentEnd, ReapQueue, number};
use crate::perm::{Change, Plan};
use crate::state::GlobalState;
use block_common::{ChildName, ParentKind, PermPair};
use block_io::{IoThreadHandle, Root, RootControl};
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;

/// A root entry of the graph, held by what it is for. Dropping it detaches and removes it; requests in flight finish.
pub struct RootRef {
    id: Id,
    queue: Rc<ReapQueue>,
    io: Root,
    _holder: Rc<()>,
}

impl RootRef {
    pub(crate) fn id(&self) -> Id {
        self.id
    }

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

impl GlobalState {
    /// A root entry that leads nowhere, asks for `perm`, and whose slow requests run on `home`.
    pub fn new_root(&self, name: &str, kind: ParentKind, perm: PermPair, home: &IoThreadHandle) -> RootRef {
        let (id, alive) = (number(), Rc::new(()));
        let control = RootControl::new(name, home, perm, None);
        let io = control.root();
        let holder = Rc::downgrade(&alive);
        let thread = self.io_thread_of(home);
        let root = GsRoot {
            name: name.into(),
            label: String::new(),
            kind,
            control,
            child: None,
            perm,
            edge: None,
            closing: false,
            thread,
            holder,
            stays: false,
            length: None,
            watcher: None,
        };
        let mut graph = self.0.graph.borrow_mut();
        graph.roots.insert(id, root);
        graph.apply_drains();
        RootRef { id, queue: graph.reap.clone(), io, _holder: alive }
    }

    /// A root entry that no requests come through: it has `perm` on `node` for the edge called `edge` of a node that is being opened. Users who are
    /// in the way, and on their way out, are waited for.
    ///
    /// # Errors
    /// As [`GlobalState::attach_root`].
    pub(crate) async fn hold(
        &self,
        owner: &str,
        edge: &ChildName,
        node: &NodeRef,
        perm: PermPair,
    ) -> GraphResult<RootRef> {
        let root = self.new_root(owner, ParentKind::Node, perm, &self.main_io());
        if let Some(root) = self.0.graph.borrow_mut().roots.get_mut(&root.id) {
            root.edge = Some(edge.clone());
        }
        match self.attach_root(&root, Some(node)).await {
            Ok(()) => Ok(root),
            Err(error) => {
                self.let_go(vec![root]);
                Err(error)
            }
        }
    }

    /// Take out at once what [`GlobalState::hold`] made.
    pub(crate) fn let_go(&self, held: Vec<RootRef>) {
        let gone: Vec<_> = {
            let mut graph = self.0.graph.borrow_mut();
            held.iter().filter_map(|root| graph.forget_root(root.id)).collect()
        };
        self.0.changed.notify_waiters();
        drop((gone, held));
    }

    /// Let `root` lead to `node`, or nowhere. Drains the root for it, and nothing else. Users of the node that are on their way out
    /// already, and in the way, are waited for.
    ///
    /// # Errors
    /// [`GraphError::Permission`] when the node's other users are in the way, [`GraphError::ReadOnly`]. The root is then as it was.
    #[doc(alias = "blk_insert_bs")]
    #[doc(alias = "blk_remove_bs")]
    #[doc(alias = "blk_replace_bs")]
    #[doc(alias = "bdrv_root_unref_child")]
    pub async fn attach_root(&self, root: &RootRef, node: Option<&NodeRef>) -> GraphResult<()> {
        self.attach_root_if(root, node, |_| Ok(())).await
    }

    /// As [`GlobalState::attach_root`], if `allows` has nothing against it once nothing is in the way any more: it sees the node that the root
    /// leads to then.
    ///
    /// # Errors
    /// As [`GlobalState::attach_root`], and what `allows` answers.
    pub async fn attach_root_if<E: From<GraphError>>(
        &self,
        root: &RootRef,
        node: Option<&NodeRef>,
        mut allows: impl FnMut(Option<&NodeRef>) -> Result<(), E>,
    ) -> Result<(), E> {
        let section = DrainTarget::Root(root.id);
        let guard = self.begin(section).await;
        let changes = [Change { end: ParentEnd::Root(root.id), child: node.cloned() }];
        let old = loop {
            let changed = self.0.changed.notified();
            // The wait may have been long (rule drain-3).
            if node.is_some() && self.0.graph.borrow().shut {
                return Err(GraphError::ShuttingDown.into());
            }
            allows(self.root_node(root).as_ref())?;
            let repointed = self.0.graph.borrow_mut().repoint(&changes, &[section]);
            match repointed {
                Err(error) if self.0.graph.borrow().may_pass(&error, node) => changed.await,
                other => break other?,
            }
        };
        drop(guard);
        drop(old);
        Ok(())
    }

    /// Give `root` up, and wait until its last request is over and it is detached. Dropping it does the same in its own time.
    pub async fn close_root(&self, root: RootRef) {
        let id = root.id;
        drop(root);
        self.wait_until(|graph| !graph.roots.contains_key(&id)).await;
    }

    /// The node that `root` leads to.
    #[doc(alias = "blk_bs")]
    pub fn root_node(&self, root: &RootRef) -> Option<NodeRef> {
        self.0.graph.borrow().roots.get(&root.id)?.child.clone()
    }

    /// Let messages call `root` that, if it has no name.
    pub fn set_root_label(&self, root: &RootRef, label: &str) {
        if let Some(root) = self.0.graph.borrow_mut().roots.get_mut(&root.id) {
            root.label = label.into();
        }
    }

    /// Let a name that `root` has be free for others. Messages do not name it any more.
    pub fn forget_root_name(&self, root: &RootRef) {
        if let Some(root) = self.0.graph.borrow_mut().roots.get_mut(&root.id) {
            root.name.clear();
        }
    }

    /// Whether `node` is the medium of a backend.
    #[doc(alias = "bdrv_has_blk")]
    #[doc(alias = "bdrv_is_root_node")]
    pub fn has_backend(&self, node: &NodeRef) -> bool {
        let graph = self.0.graph.borrow();
        let leads_there = |root: &GsRoot| {
            root.kind == ParentKind::Backend && root.child.as_ref().is_some_and(|child| child.same(node))
        };
        graph.roots.values().any(leads_there)
    }

    /// Whether another node uses `node`. One that nobody holds any more does not, though it may take a while until it is closed.
    pub fn has_parent_node(&self, node: &NodeRef) -> bool {
        let graph = self.0.graph.borrow();
        let uses = |end: &ParentEnd| match end {
            ParentEnd::Node(above, _) => graph.nodes.get(above).is_some_and(GsNode::is_alive),
            ParentEnd::Root(_) => false,
        };
        graph.nodes.get(&node.id()).is_some_and(|node| node.parents.iter().any(uses))
    }

    /// Set what `root` asks of its node and shares.
    ///
    /// # Errors
    /// [`GraphError::Permission`] when others are in the way, [`GraphError::Locked`] when other processes are. The root is then as it was.
    #[doc(alias = "blk_set_perm")]
    pub fn set_root_perm(&self, root: &RootRef, perm: PermPair) -> GraphResult<()> {
        let mut graph = self.0.graph.borrow_mut();
        let plan = Plan::with_roots(&graph, &[], &[], &BTreeMap::from([(root.id, perm)]))?;
        let plan = plan.prepare(&graph)?;
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
        let thread = self.io_thread_of(home);
        let before = self.0.graph.borrow_mut().roots.get_mut(&root.id).and_then(|root| {
            root.control.set_home(home);
            std::mem::replace(&mut root.thread, thread)
        });
        drop((before, guard));
    }

    /// Refuse to have the slow requests of `root` served elsewhere because its node is ([`GlobalState::set_node_home`]), or allow it, as it is at first.
    pub fn set_root_stays(&self, root: &RootRef, stays: bool) {
        if let Some(root) = self.0.graph.borrow_mut().roots.get_mut(&root.id) {
            root.stays = stays;
        }
    }

    /// Answer requests through `root` that come while it is drained with [`IoError::BUSY`](block_common::IoError::BUSY) from now on, or hold them back until the drain is over, as it
    /// is at first.
    pub fn set_root_refusing(&self, root: &RootRef, refuses: bool) {
        if let Some(root) = self.0.graph.borrow().roots.get(&root.id) {
            root.control.set_refusing(refuses);
        }
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
