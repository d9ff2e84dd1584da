//! Nodes of which each has as many children as it is given: adding one, and removing one, while the node is used.
//!
//! Which drivers have such nodes, and whether one more or one less makes sense, is theirs to say. What the new child holds is not looked at.

use crate::driver::EngineControl;
use crate::error::{GraphError, GraphResult};
use crate::graph::{GsEdge, NodeRef, ParentEnd};
use crate::perm::Change;
use crate::state::GlobalState;
use block_common::{ChildName, ChildRole, PermPair};
use std::cell::RefMut;
use std::future::Future;

impl GlobalState {
    /// Give `parent` one more child, which has no users yet and is as long. One after the other with other changes of the graph; runs to its end even if the returned future is
    /// dropped.
    ///
    /// # Errors
    /// [`GraphError::NoMoreChildren`] for a driver that has no such nodes, [`GraphError::HasParent`], [`GraphError::OtherLength`], what the driver refuses, and as
    /// [`GlobalState::replace_child`]. Nothing has changed then.
    #[doc(alias = "bdrv_add_child")]
    pub fn add_child(
        &self,
        parent: &NodeRef,
        child: &NodeRef,
    ) -> impl Future<Output = GraphResult<()>> + 'static + use<> {
        let (parent, child) = (parent.clone(), child.clone());
        self.mutate(move |gs| async move { gs.add_child_now(&parent, &child).await })
    }

    /// Take the child at the edge called `edge` away from `parent`. Nobody gets its place, unless it was the last one. As [`GlobalState::add_child`].
    ///
    /// # Errors
    /// [`GraphError::NoSuchEdge`], [`GraphError::NoFewerChildren`], what the driver refuses, and as [`GlobalState::replace_child`]. Nothing has changed then.
    #[doc(alias = "bdrv_del_child")]
    pub fn remove_child(
        &self,
        parent: &NodeRef,
        edge: &str,
    ) -> impl Future<Output = GraphResult<()>> + 'static + use<> {
        let (parent, edge) = (parent.clone(), edge.to_owned());
        self.mutate(move |gs| async move { gs.remove_child_now(&parent, &edge).await })
    }

    fn with_engine<T>(
        &self,
        node: &NodeRef,
        with: impl FnOnce(RefMut<'_, Box<dyn EngineControl>>) -> T,
    ) -> GraphResult<T> {
        let control = self.0.graph.borrow().node(node)?.engine_control.clone();
        let control = control.try_borrow_mut().map_err(|_| GraphError::InUse(node.name().into()))?;
        Ok(with(control))
    }

    /// Where one more child would be.
    fn place_for(&self, parent: &NodeRef, child: &NodeRef) -> GraphResult<(ChildName, ChildRole)> {
        let place = self.with_engine(parent, |control| control.place_for_child())?;
        let place = place.ok_or_else(|| GraphError::NoMoreChildren(parent.name().into()))?;
        if !self.0.graph.borrow().node(child)?.parents.is_empty() {
            return Err(GraphError::HasParent(child.name().into()));
        }
        if child.io().length() != parent.io().length() {
            return Err(GraphError::OtherLength { parent: parent.name().into(), child: child.name().into() });
        }
        place
    }

    async fn add_child_now(&self, parent: &NodeRef, child: &NodeRef) -> GraphResult<()> {
        self.place_for(parent, child)?;
        let section = self.drain(parent).await;
        // It may have got a user meanwhile.
        let (name, role) = self.place_for(parent, child)?;
        let edge = {
            let mut graph = self.0.graph.borrow_mut();
            let node = graph.node_mut(parent)?;
            let at = node.edges.len();
            let (writer, edge) = node.control.edge(role, PermPair::NONE, None);
            let more = PermPair::NONE;
            node.edges.push(GsEdge {
                name,
                role,
                writer,
                child: None,
                frozen: false,
                is_inline: false,
                is_gone: false,
                more,
            });
            let changes = [Change { end: ParentEnd::Node(parent.id(), at), child: Some(child.clone()) }];
            if let Err(error) = graph.repoint_within(&changes, &[&section]) {
                graph.node_mut(parent)?.edges.truncate(at);
                return Err(error);
            }
            edge
        };
        self.with_engine(parent, |mut control| control.add_child(edge))?;
        self.look_at_limits_above(&[parent.id()]).await;
        drop(section);
        Ok(())
    }

    fn may_go(&self, parent: &NodeRef, edge: &str) -> GraphResult<usize> {
        let at = {
            let graph = self.0.graph.borrow();
            let at = graph.edge_at(parent, edge)?;
            let missing = || GraphError::NoSuchEdge { parent: parent.name().into(), edge: edge.into() };
            graph.node(parent)?.edges[at].child.as_ref().ok_or_else(missing)?;
            at
        };
        let may = self.with_engine(parent, |control| control.may_remove(edge))?;
        may.unwrap_or_else(|| Err(GraphError::NoFewerChildren(parent.name().into()))).map(|()| at)
    }

    async fn remove_child_now(&self, parent: &NodeRef, edge: &str) -> GraphResult<()> {
        self.may_go(parent, edge)?;
        let section = self.drain(parent).await;
        let at = self.may_go(parent, edge)?;
        let old = {
            let mut graph = self.0.graph.borrow_mut();
            let changes = [Change { end: ParentEnd::Node(parent.id(), at), child: None }];
            let old = graph.repoint_within(&changes, &[&section])?;
            let edges = &mut graph.node_mut(parent)?.edges;
            // Edges are known by their places: the others keep theirs.
            match at + 1 == edges.len() {
                true => drop(edges.pop()),
                false => edges[at].is_gone = true,
            }
            old
        };
        self.with_engine(parent, |mut control| control.remove_child(edge))?;
        self.look_at_limits_above(&[parent.id()]).await;
        let below = old.iter().flat_map(|old| self.0.graph.borrow().below(old.id())).collect();
        drop((section, old));
        self.closed(&below).await;
        Ok(())
    }
}
