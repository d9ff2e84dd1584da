//! Permissions: what every edge needs and shares, over the whole affected part of the graph, all or nothing.
//!
//! A plan computes the permissions that a change would lead to, top down, and checks every node's users against each
//! other (rule perm-1). Then the driver of each node that is asked for something else than before prepares for it, parents before children: this is where
//! files are locked (rule perm-3). Only what all of them agree to is committed, and committing cannot fail, nor can taking back what was prepared
//! (rule perm-2).

use crate::driver::EngineControl;
use crate::error::{GraphError, GraphResult};
use crate::graph::{Graph, Id, NodeRef, ParentEnd};
use block_common::{ParentKind, Perm, PermPair};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// An edge that is to lead elsewhere.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) end: ParentEnd,
    pub(crate) child: Option<NodeRef>,
}

/// The permissions of the affected edges after a change.
pub(crate) struct Plan {
    perms: BTreeMap<ParentEnd, PermPair>,
    /// The nodes whose users ask for something else than before, and what; parents before children.
    asked: Vec<(Id, PermPair)>,
}

/// A plan that every driver has agreed to. Without [`Prepared::commit`] it is taken back.
#[must_use = "a plan that is not committed is aborted"]
pub(crate) struct Prepared {
    plan: Plan,
    drivers: Vec<Rc<RefCell<Box<dyn EngineControl>>>>,
}

/// The graph as it would be.
struct Future<'a> {
    graph: &'a Graph,
    changes: BTreeMap<ParentEnd, Option<Id>>,
    perms: BTreeMap<ParentEnd, PermPair>,
    asked: Vec<(Id, PermPair)>,
}

impl Plan {
    /// The permissions after `changes`, for the nodes that these and `also` affect.
    pub(crate) fn new(graph: &Graph, changes: &[Change], also: &[Id]) -> GraphResult<Self> {
        Self::with_roots(graph, changes, also, &BTreeMap::new())
    }

    /// As [`Plan::new`], when roots ask for other permissions than before.
    pub(crate) fn with_roots(
        graph: &Graph,
        changes: &[Change],
        also: &[Id],
        roots: &BTreeMap<Id, PermPair>,
    ) -> GraphResult<Self> {
        let mut start: BTreeSet<Id> = also.iter().copied().collect();
        let mut future = Future { graph, changes: BTreeMap::new(), perms: BTreeMap::new(), asked: Vec::new() };
        for change in changes {
            let child = change.child.as_ref().map(NodeRef::id);
            future.changes.insert(change.end, child);
            start.extend(child);
            start.extend(graph.child_at(change.end));
            if let ParentEnd::Node(id, _) = change.end {
                start.insert(id);
            }
        }
        for (id, perm) in roots {
            future.perms.insert(ParentEnd::Root(*id), *perm);
            start.extend(graph.child_at(ParentEnd::Root(*id)));
        }
        // Whatever no change reaches has its permissions already.
        let mut touched = start.clone();
        for id in future.top_down(&start) {
            if touched.contains(&id) {
                touched.extend(future.visit(id)?);
            }
        }
        Ok(Self { perms: future.perms, asked: future.asked })
    }

    /// Ask the drivers (rule perm-3). All of them agree, or nothing has happened.
    ///
    /// # Errors
    /// The first refusal; [`GraphError::InUse`] when the caller is in the middle of using a node's control half.
    #[doc(alias = "bdrv_child_refresh_perms")]
    pub(crate) fn prepare(self, graph: &Graph) -> GraphResult<Prepared> {
        let mut prepared = Prepared { plan: self, drivers: Vec::new() };
        for (id, perm) in &prepared.plan.asked {
            let Some(node) = graph.nodes.get(id) else { continue };
            let control = node.engine_control.clone();
            let busy = |_| GraphError::InUse(node.name.as_str().into());
            control.try_borrow_mut().map_err(busy)?.prepare_perm(*perm)?;
            prepared.drivers.push(control);
        }
        Ok(prepared)
    }
}

impl Prepared {
    /// Make it so.
    pub(crate) fn commit(mut self, graph: &mut Graph) {
        for driver in self.drivers.drain(..) {
            driver.borrow_mut().commit_perm();
        }
        for (id, perm) in std::mem::take(&mut self.plan.asked) {
            if let Some(node) = graph.nodes.get_mut(&id) {
                node.asked = perm;
            }
        }
        for (end, perm) in std::mem::take(&mut self.plan.perms) {
            match end {
                ParentEnd::Node(id, at) => {
                    if let Some(edge) = graph.nodes.get_mut(&id).and_then(|node| node.edges.get_mut(at)) {
                        edge.writer.set_perm(perm);
                    }
                }
                ParentEnd::Root(id) => {
                    if let Some(root) = graph.roots.get_mut(&id) {
                        root.perm = perm;
                        root.control.set_perm(perm);
                    }
                }
            }
        }
    }
}

impl Drop for Prepared {
    /// The last one that prepared is the first to take it back.
    fn drop(&mut self) {
        for driver in self.drivers.drain(..).rev() {
            driver.borrow_mut().abort_perm();
        }
    }
}

impl Future<'_> {
    fn child(&self, end: ParentEnd) -> Option<Id> {
        self.changes.get(&end).copied().unwrap_or_else(|| self.graph.child_at(end))
    }

    fn ends(&self, id: Id) -> impl Iterator<Item = ParentEnd> {
        let count = self.graph.nodes.get(&id).map_or(0, |node| node.edges.len());
        (0..count).map(move |at| ParentEnd::Node(id, at))
    }

    /// The users of a node.
    fn users(&self, id: Id) -> Vec<ParentEnd> {
        let now = self.graph.nodes.get(&id).into_iter().flat_map(|node| node.parents.iter().copied());
        let coming = self.changes.iter().filter(|(_, child)| **child == Some(id)).map(|(end, _)| *end);
        let mut users: BTreeSet<_> = now.chain(coming).collect();
        users.retain(|end| self.child(*end) == Some(id));
        users.into_iter().collect()
    }

    fn perm(&self, end: ParentEnd) -> PermPair {
        self.perms.get(&end).copied().unwrap_or_else(|| match end {
            ParentEnd::Node(id, at) => self.graph.nodes[&id].edges[at].writer.perm(),
            ParentEnd::Root(id) => self.graph.roots[&id].perm,
        })
    }

    /// The nodes below `start` (themselves included), parents before children.
    fn top_down(&self, start: &BTreeSet<Id>) -> Vec<Id> {
        let (mut done, mut order) = (BTreeSet::new(), Vec::new());
        for id in start {
            self.post_order(*id, &mut done, &mut order);
        }
        order.reverse();
        order
    }

    /// Depth first without recursion: a chain of images may be long.
    fn post_order(&self, from: Id, done: &mut BTreeSet<Id>, order: &mut Vec<Id>) {
        let mut stack = vec![(from, false)];
        while let Some((id, left)) = stack.pop() {
            if left {
                order.push(id);
            } else if done.insert(id) {
                stack.push((id, true));
                stack.extend(self.ends(id).filter_map(|end| self.child(end)).map(|child| (child, false)));
            }
        }
    }

    /// Check a node's users against each other, and compute what its own edges need. Returns the children that see a change.
    fn visit(&mut self, id: Id) -> GraphResult<Vec<Id>> {
        let above = self.check_users(id)?;
        let Some(node) = self.graph.nodes.get(&id) else { return Ok(Vec::new()) };
        if node.read_only && above.perm.intersects(Perm::WRITE | Perm::WRITE_UNCHANGED) {
            return Err(GraphError::ReadOnly(node.name.as_str().into()));
        }
        // Of an image that is opened this way nothing is asked of other processes either.
        let asked = if node.common.force_share { PermPair::new(above.perm, Perm::all()) } else { above };
        if asked != node.asked {
            self.asked.push((id, asked));
        }
        let mut touched = Vec::new();
        // Who is in the middle of using the control half does not change what it asks for.
        let more = node.engine_control.try_borrow().map_or(node.perm_more, |control| control.child_perm_more());
        for (at, edge) in node.edges.iter().enumerate() {
            let end = ParentEnd::Node(id, at);
            let own = node.driver.child_perm(edge.role, above, node.read_only);
            let mut perm = own.combine(more).combine(edge.more);
            if self
                .child(end)
                .and_then(|child| self.graph.nodes.get(&child))
                .is_some_and(|child| child.common.force_share)
            {
                perm.shared = Perm::all();
            }
            if perm != self.perm(end) {
                touched.extend(self.child(end));
                self.perms.insert(end, perm);
            }
        }
        Ok(touched)
    }

    /// What a node's users ask of it together, if nobody needs what another one does not share. Every pair is checked, but in one
    /// pass: a node may have many users.
    #[doc(alias = "bdrv_get_cumulative_perm")]
    fn check_users(&self, id: Id) -> GraphResult<PermPair> {
        let users: Vec<_> = self.users(id).into_iter().map(|end| (end, self.perm(end))).collect();
        let above = users.iter().fold(PermPair::NONE, |above, (_, perm)| above.combine(*perm));
        // How many users do not share each permission.
        let keepers = |perm: Perm| users.iter().filter(|(_, pair)| !pair.shared.contains(perm)).count();
        let wanted_and_kept = above.perm & !above.shared;
        for (perm, keepers) in wanted_and_kept.iter().map(|perm| (perm, keepers(perm))) {
            let conflict = |(_, pair): &&(ParentEnd, PermPair)| {
                pair.perm.contains(perm) && keepers > usize::from(!pair.shared.contains(perm))
            };
            let Some((user, wanted)) = users.iter().find(conflict) else { continue };
            let others = users.iter().filter(|(end, pair)| end != user && !pair.shared.contains(perm));
            if let Some((other, pair)) = others.into_iter().next() {
                return Err(self.conflict(id, wanted.denied_by(*pair), *user, *other));
            }
        }
        Ok(above)
    }

    fn conflict(&self, id: Id, perm: Perm, user: ParentEnd, other: ParentEnd) -> GraphError {
        let node = self.graph.nodes.get(&id).map_or("", |node| node.name.as_str());
        GraphError::Permission {
            node: node.into(),
            perm,
            user: describe(self.graph, user, node),
            other: describe(self.graph, other, node),
        }
    }
}

/// A user of a node, as messages say it.
#[doc(alias = "bdrv_get_parent_name")]
#[doc(alias = "get_parent_desc")]
pub(crate) fn describe(graph: &Graph, end: ParentEnd, node: &str) -> String {
    let (who, edge) = match end {
        ParentEnd::Node(id, at) => match graph.nodes.get(&id) {
            Some(parent) => (format!("node '{}'", parent.name.as_str()), parent.edges[at].name.as_str().to_owned()),
            None => ("a node that is being opened".into(), "?".into()),
        },
        ParentEnd::Root(id) => {
            let who = graph.roots.get(&id).map(|root| match (&root.kind, root.shown()) {
                (ParentKind::Backend, "") => "an unnamed block device".into(),
                (ParentKind::Backend, name) => format!("block device '{name}'"),
                (ParentKind::Job, name) => format!("block job '{name}'"),
                (ParentKind::Export, name) => format!("export '{name}'"),
                (ParentKind::Node, name) => format!("node '{name}'"),
            });
            let edge = graph.roots.get(&id).and_then(|root| root.edge.as_ref()).map(|edge| edge.as_str().to_owned());
            (who.unwrap_or_default(), edge.unwrap_or_else(|| "root".into()))
        }
    };
    format!("{who} (uses node '{node}' as '{edge}' child)")
}
