//! Putting nodes above others and taking filters away, as whole acts: opened, drained, exchanged; or everything is as it was.
//!
//! The acts drain for themselves; who has a drained section already, or nodes that are open, may use [`GlobalState::replace_node`].

use crate::drain::DrainGuard;
use crate::error::{GraphError, GraphResult};
use crate::graph::{Graph, NodeRef, ParentEnd, frozen};
use crate::perm::Change;
use crate::root::RootRef;
use crate::state::GlobalState;
use block_common::{ChildRole, Options};
use std::future::Future;

/// Which users of a node get the one that is inserted above it.
#[derive(Clone, Copy, Debug)]
pub enum Users<'a> {
    /// All of them.
    All,
    /// A node, by its edge of that name.
    Parent(&'a NodeRef, &'a str),
    /// A backend, a job or an export.
    Entry(&'a RootRef),
}

impl GlobalState {
    /// Open a node as `options` say, which name `node` as a child, and let `users` of `node` use it instead. One after the other with other
    /// changes of the graph; runs to its end even if the returned future is dropped.
    ///
    /// # Errors
    /// As [`GlobalState::open`] and [`GlobalState::replace_node`]; [`GraphError::NotUsedBy`] when the new node does not use `node` or the chosen user
    /// does not. The graph is then as it was, and what was opened is closed.
    #[doc(alias = "bdrv_insert_node")]
    #[doc(alias = "bdrv_cbw_append")]
    pub fn insert_node(
        &self,
        node: &NodeRef,
        users: Users<'_>,
        options: Options,
    ) -> impl Future<Output = GraphResult<NodeRef>> + 'static + use<> {
        let (node, end) = (node.clone(), self.0.graph.borrow().end_of(users));
        self.mutate(move |gs| async move { gs.insert(&node, end?, options).await })
    }

    /// As [`GlobalState::insert_node`], for use within a mutation that holds the ticket already.
    ///
    /// # Errors
    /// As [`GlobalState::insert_node`].
    pub async fn insert_node_in_mutation(
        &self,
        node: &NodeRef,
        users: Users<'_>,
        options: Options,
    ) -> GraphResult<NodeRef> {
        let end = self.0.graph.borrow().end_of(users)?;
        self.insert(node, end, options).await
    }

    async fn insert(&self, node: &NodeRef, end: Option<ParentEnd>, options: Options) -> GraphResult<NodeRef> {
        let new = self.open_in_mutation(options).await?;
        let section = self.drain(node).await;
        let inserted = {
            let mut graph = self.0.graph.borrow_mut();
            let changes = graph.insertion(node, &new, end);
            changes.and_then(|changes| graph.repoint_within(&changes, &[&section]))
        };
        drop(section);
        match inserted {
            Ok(old) => {
                drop(old);
                Ok(new)
            }
            Err(error) => {
                let name = new.name().to_owned();
                if let Err(why) = self.close(new).await {
                    tracing::error!(node = name, %why, "closing a node that could not be inserted failed as well");
                }
                Err(error)
            }
        }
    }

    /// Put `top` on top of `below`: its edge called `edge`, which leads nowhere yet, leads to `below` from then on, and every user of `below` uses `top`
    /// instead. Both at once, in one drained section.
    ///
    /// # Errors
    /// As [`GlobalState::replace_child`]; [`GraphError::HasChild`] when the edge leads somewhere. Nothing has changed then.
    #[doc(alias = "bdrv_append")]
    pub async fn append(&self, top: &NodeRef, edge: &str, below: &NodeRef) -> GraphResult<()> {
        let (upper, lower) = (self.drain(top).await, self.drain(below).await);
        // The one may have been left again while the other was waited for.
        while !(upper.is_settled() && lower.is_settled()) {
            upper.settled().await;
            lower.settled().await;
        }
        let old = {
            let mut graph = self.0.graph.borrow_mut();
            let changes = graph.appending(top, edge, below)?;
            graph.repoint_within(&changes, &[&upper, &lower])?
        };
        drop((upper, lower, old));
        Ok(())
    }

    /// Take `filter` out: its users use what it filters instead. It stays open for who holds it.
    ///
    /// # Errors
    /// As [`GlobalState::replace_node`]; [`GraphError::NotAFilter`]. Nothing has changed then.
    #[doc(alias = "bdrv_drop_filter")]
    #[doc(alias = "bdrv_cbw_drop")]
    pub async fn drop_filter(&self, filter: &NodeRef) -> GraphResult<()> {
        let section = self.drain(filter).await;
        let old = {
            let mut graph = self.0.graph.borrow_mut();
            let child = graph.filtered(filter)?;
            let changes = graph.replacement(filter, &child)?;
            graph.repoint_within(&changes, &[&section])?
        };
        drop((section, old));
        Ok(())
    }
}

impl Graph {
    /// The one end that is meant, or `None` for all of them.
    fn end_of(&self, users: Users<'_>) -> GraphResult<Option<ParentEnd>> {
        Ok(match users {
            Users::All => None,
            Users::Parent(parent, edge) => Some(ParentEnd::Node(parent.id(), self.edge_at(parent, edge)?)),
            Users::Entry(root) => Some(ParentEnd::Root(root.id())),
        })
    }

    fn name_of(&self, end: ParentEnd) -> String {
        match end {
            ParentEnd::Node(id, _) => self.nodes.get(&id).map(|node| node.name.as_str().to_owned()),
            ParentEnd::Root(id) => self.roots.get(&id).map(|root| root.name.clone()),
        }
        .unwrap_or_default()
    }

    /// The changes that put `new` between `node` and its user at `end`, or all of them.
    fn insertion(&self, node: &NodeRef, new: &NodeRef, end: Option<ParentEnd>) -> GraphResult<Vec<Change>> {
        let not_used_by = |user: String| GraphError::NotUsedBy { node: node.name().into(), user };
        if !self.children(new.id()).iter().any(|(_, child)| *child == node.id()) {
            return Err(not_used_by(new.name().into()));
        }
        match end {
            None => self.replacement(node, new),
            Some(end) if self.child_at(end) == Some(node.id()) => Ok(vec![Change { end, child: Some(new.clone()) }]),
            Some(end) => Err(not_used_by(self.name_of(end))),
        }
    }

    /// The changes that put `top` on top of `below`: the new edge first, so that lengths are taken over on the way up.
    fn appending(&self, top: &NodeRef, edge: &str, below: &NodeRef) -> GraphResult<Vec<Change>> {
        let at = self.edge_at(top, edge)?;
        let end = ParentEnd::Node(top.id(), at);
        if self.child_at(end).is_some() {
            return Err(GraphError::HasChild { parent: top.name().into(), edge: edge.into() });
        }
        // One node more on every way, which each change by itself does not see.
        if self.is_too_deep_with_one_more(below.id()) {
            return Err(GraphError::TooDeep(top.name().into()));
        }
        let mut changes = vec![Change { end, child: Some(below.clone()) }];
        changes.extend(self.replacement(below, top)?.into_iter().filter(|change| change.end != end));
        Ok(changes)
    }

    /// What a filter filters, if nothing forbids that its users are led past it.
    fn filtered(&self, filter: &NodeRef) -> GraphResult<NodeRef> {
        let node = self.node(filter)?;
        let edge = node.edges.iter().find(|edge| edge.role.contains(ChildRole::FILTERED));
        let Some(edge) = edge.filter(|_| node.driver.is_filter()) else {
            return Err(GraphError::NotAFilter(filter.name().into()));
        };
        if edge.frozen {
            return Err(frozen(node, edge));
        }
        let none = || GraphError::NoSuchEdge { parent: filter.name().into(), edge: edge.name.as_str().into() };
        edge.child.clone().ok_or_else(none)
    }

    pub(crate) fn repoint_within(&mut self, changes: &[Change], sections: &[&DrainGuard]) -> GraphResult<Vec<NodeRef>> {
        let targets: Vec<_> = sections.iter().filter_map(|section| self.drains.get(&section.id()).copied()).collect();
        self.repoint(changes, &targets)
    }
}
