//! Reopening: other options for open nodes, while requests wait.
//!
//! One reopen is about a node and those children that were opened for it: what these do not say themselves they take from it. All of them are drained and
//! flushed; all prepare; then permissions are checked as the nodes will be, and either all have their new options, children before parents, or all have
//! the old ones (rules reopen-1 and reopen-2). An option that cannot change is refused by name (rule reopen-3). Which nodes are children is not
//! changed here.

use crate::driver::EngineControl;
use crate::error::{GraphError, GraphResult};
use crate::graph::{Graph, GsNode, Id, NodeRef};
use crate::open::{CommonOptions, Inherited};
use crate::perm::Plan;
use crate::state::GlobalState;
use block_common::options::{Dialect, Dict, Value};
use block_common::{IoResult, OptionReader, Options};
use block_io::{NodeControl, Req};
use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;

/// What becomes of options that a reopen does not name.
#[doc(alias = "bdrv_join_options")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeftOut {
    /// They stay as they are.
    Stays,
    /// They return to their defaults; where they cannot, the reopen fails.
    Default,
}

/// What a driver's [`EngineControl::prepare_reopen`] returns.
pub type PreparingReopen = Pin<Box<dyn Future<Output = GraphResult<Box<dyn Any>>>>>;

/// The options that a node is going to have, as its driver sees them.
pub struct Reopening<'a> {
    /// Those that every node has.
    pub common: CommonOptions,
    /// The driver's own. What it leaves is checked to be as it was.
    pub options: &'a mut OptionReader,
    gs: GlobalState,
    id: Id,
}

impl Reopening<'_> {
    /// Where the node is.
    pub fn global(&self) -> &GlobalState {
        &self.gs
    }

    /// The work of running `work` on an I/O thread with a token on the node. It reaches the children, drained as they are.
    ///
    /// # Errors
    /// The node is gone. What `work` returns comes out of the future.
    pub fn run<T: Send + 'static, F: Future<Output = IoResult<T>> + Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(Req) -> F,
    ) -> GraphResult<Pin<Box<dyn Future<Output = GraphResult<T>>>>> {
        let failed = GraphError::io(what.to_owned());
        let gone = || GraphError::NotFound(format!("#{}", self.id));
        let entered = self.gs.0.graph.borrow().nodes.get(&self.id).ok_or_else(gone)?.control.enter();
        let req = entered.map_err(GraphError::io(what.to_owned()))?;
        let (gs, act, work) = (self.gs.clone(), self.gs.act(vec![self.id]), work(req));
        Ok(Box::pin(async move {
            let answer = gs.main_io().run(work).await.ok_or(GraphError::ShuttingDown)?;
            drop(act);
            answer.map_err(failed)
        }))
    }
}

impl fmt::Debug for Reopening<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reopening({:?})", self.common)
    }
}

/// A node that is going to have other options.
struct Step {
    node: NodeRef,
    control: Rc<RefCell<Box<dyn EngineControl>>>,
    common: CommonOptions,
    /// All options, as they will be shown.
    options: Dict,
    /// The driver's own.
    own: OptionReader,
}

/// The keys that every node has; the rest are the driver's own, and its children.
const COMMON: [&str; 9] = [
    "driver",
    "node-name",
    "read-only",
    "auto-read-only",
    "force-share",
    "discard",
    "detect-zeroes",
    "cache",
    "active",
];

impl GlobalState {
    /// Give `node` other options: those that `changes` name, by the keys that [`GlobalState::open`] takes; those of a child that was opened for it
    /// under the child's key. One after the other with other changes of the graph; runs to its end even if the returned future is dropped.
    ///
    /// # Errors
    /// [`GraphError::CannotChange`] names an option that stays as it is; [`GraphError::HasWriters`] where a node would become read-only under somebody
    /// who writes; what the storage answered. Everything is as it was then.
    #[doc(alias = "bdrv_reopen")]
    #[doc(alias = "bdrv_reopen_multiple")]
    #[doc(alias = "bdrv_reopen_queue")]
    #[doc(alias = "bdrv_reopen_queue_free")]
    #[doc(alias = "bdrv_reopen_set_read_only")]
    #[doc(alias = "bdrv_can_set_read_only")]
    pub fn reopen(
        &self,
        node: &NodeRef,
        changes: Options,
        left_out: LeftOut,
    ) -> impl Future<Output = GraphResult<()>> + 'static + use<> {
        let node = node.clone();
        self.mutate(move |gs| async move { gs.reopen_in_mutation(&node, changes, left_out).await })
    }

    /// As [`GlobalState::reopen`], for use within a mutation that holds the ticket already.
    ///
    /// # Errors
    /// As [`GlobalState::reopen`].
    pub async fn reopen_in_mutation(&self, node: &NodeRef, changes: Options, left_out: LeftOut) -> GraphResult<()> {
        let mut plan = Planning { steps: Vec::new(), dialect: changes.dialect(), left_out };
        plan.add(&self.0.graph.borrow(), node, Some(changes.into_dict()), None)?;
        let mut steps = plan.steps;
        let mut sections = Vec::new();
        for step in &steps {
            sections.push(self.drain(&step.node).await);
        }
        for step in &steps {
            self.flush_before_reopen(&step.node).await?;
        }
        let mut prepared = Vec::new();
        for step in &mut steps {
            prepared.push(self.prepare_reopen(step).await?);
        }
        // The requests of the preparations are over, and nobody else's have begun.
        while let Some(section) = sections.iter().find(|section| !section.is_settled()) {
            section.settled().await;
        }
        let ids: Vec<_> = steps.iter().map(|step| step.node.id()).collect();
        self.0.graph.borrow_mut().commit_reopen(&steps, prepared)?;
        for (step, id) in steps.into_iter().zip(&ids) {
            if let Some(node) = self.0.graph.borrow_mut().nodes.get_mut(id) {
                (node.common, node.options) = (step.common, step.options);
            }
        }
        self.look_at_limits_above(&ids).await;
        Ok(())
    }

    /// What was written in the old modes is safe before there are other ones.
    async fn flush_before_reopen(&self, node: &NodeRef) -> GraphResult<()> {
        if node.io().is_read_only() {
            return Ok(());
        }
        let flushed = self.on_node(node.id(), |req| async move { NodeControl::flush(&req).await }).await;
        flushed.unwrap_or(Ok(())).map_err(GraphError::io("Error flushing drive"))
    }

    async fn prepare_reopen(&self, step: &mut Step) -> GraphResult<Box<dyn Any>> {
        let preparing = {
            let busy = |_| GraphError::InUse(step.node.name().into());
            let mut control = step.control.try_borrow_mut().map_err(busy)?;
            let (common, gs, id) = (step.common, self.clone(), step.node.id());
            control.prepare_reopen(&mut Reopening { common, options: &mut step.own, gs, id })?
        };
        preparing.await
    }

    /// The nodes that were changed, and those above them, may have other limits and lengths by now. Children first.
    async fn look_at_limits_above(&self, changed: &[Id]) {
        let order = {
            let graph = self.0.graph.borrow();
            let mut above = std::collections::BTreeSet::new();
            for id in changed {
                above.extend(graph.above(crate::graph::DrainTarget::Node(*id)).0);
            }
            let mut order = graph.all_parents_first();
            order.retain(|id| above.contains(id));
            order
        };
        for id in order.into_iter().rev() {
            let look = |req| async move { NodeControl::look_below(&req).await };
            let looked = self.on_node(id, look).await;
            if let Some(node) = self.0.graph.borrow().nodes.get(&id) {
                node.control.refresh_limits();
            }
            let length = self.on_node(id, |req| async move { NodeControl::refresh_length(&req).await.map(drop) }).await;
            if let Err(error) = looked.unwrap_or(Ok(())).and(length.unwrap_or(Ok(()))) {
                // The options hold. Who makes a request next asks anew, and is told.
                tracing::warn!(%error, "a reopened node does not tell its limits or its length");
            }
        }
    }

    /// From now on the child at the edge called `edge` of `parent` takes from its parent what its own options do not say: see [`GlobalState::open_for`].
    ///
    /// # Errors
    /// [`GraphError::NoSuchEdge`].
    pub fn adopt(&self, parent: &NodeRef, edge: &str) -> GraphResult<()> {
        let mut graph = self.0.graph.borrow_mut();
        let at = graph.edge_at(parent, edge)?;
        graph.node_mut(parent)?.edges[at].is_inline = true;
        Ok(())
    }
}

/// Collects the nodes that a reopen changes, parents before children.
struct Planning {
    steps: Vec<Step>,
    dialect: Dialect,
    left_out: LeftOut,
}

impl Planning {
    /// `node` is to have the options `changes`, and takes the rest from its parent's, `above`, if it was opened for one.
    fn add(
        &mut self,
        graph: &Graph,
        node: &NodeRef,
        changes: Option<Dict>,
        above: Option<CommonOptions>,
    ) -> GraphResult<()> {
        let found = graph.node(node)?;
        if !found.driver.reopens() {
            let (driver, node) = (found.driver.name().into(), found.name.as_str().into());
            return Err(GraphError::CannotReopen { driver, node });
        }
        // Of a child that is not named, everything is left as it says.
        let left_out = if changes.is_some() { self.left_out } else { LeftOut::Stays };
        let mut changes = changes.unwrap_or_default();
        let mut below = Vec::new();
        for edge in &found.edges {
            let own = changes.remove(edge.name.as_str());
            let own = child_changes(graph, edge.name.as_str(), edge.child.as_ref(), edge.is_inline, own)?;
            below.extend(edge.child.as_ref().filter(|_| edge.is_inline).map(|child| (child, edge.role, own)));
        }
        let was = &found.options;
        let mut options = match left_out {
            LeftOut::Stays => was.clone(),
            LeftOut::Default => kept(found),
        };
        for group in
            found.driver.option_groups().iter().filter(|group| group.iter().any(|key| changes.contains_key(key)))
        {
            group.iter().for_each(|key| drop(options.remove(key)));
        }
        for (key, value) in changes.iter() {
            insert(&mut options, key, value)?;
        }
        let force_share = if found.common.force_share { "on" } else { "off" };
        let fixed = [("driver", found.driver.name()), ("node-name", found.name.as_str()), ("force-share", force_share)];
        if let Some((key, _)) =
            fixed.iter().find(|(key, is)| changes.lookup(key).is_some_and(|value| text(value) != *is))
        {
            return Err(GraphError::CannotChange((*key).into()));
        }
        let mut own = Options::from_dict(self.dialect, options.clone()).reader();
        own.set_driver(found.driver.kind(), found.driver.name());
        drop((own.take("driver"), own.take("node-name")));
        let common = CommonOptions::take(&mut own, Inherited { common: above, depth: 0 })?;
        if common.force_share != found.common.force_share {
            // Left out, or taken from a parent.
            return Err(GraphError::CannotChange("force-share".into()));
        }
        for edge in &found.edges {
            drop(own.take(edge.name.as_str()));
        }
        check_unchanged(found, &options)?;
        if common != found.common || options != *was {
            let (node, control) = (node.clone(), found.engine_control.clone());
            self.steps.push(Step { node, control, common, options, own });
        }
        for (child, role, changes) in below {
            self.add(graph, child, changes, Some(common.for_child(role)))?;
        }
        Ok(())
    }
}

/// What is to be changed of the child at an edge.
fn child_changes(
    graph: &Graph,
    edge: &str,
    child: Option<&NodeRef>,
    is_inline: bool,
    changes: Option<Value>,
) -> GraphResult<Option<Dict>> {
    match changes {
        None => Ok(None),
        Some(Value::Dict(changes)) if is_inline => Ok(Some(changes)),
        Some(Value::Str(name)) if child.is_some_and(|child| child.name() == name) => Ok(None),
        Some(Value::Str(name)) if graph.find(&name).is_none() => {
            Err(GraphError::Open(format!("Cannot find device='' nor node-name='{name}'")))
        }
        Some(_) => Err(GraphError::NotBuilt(format!("Another child '{edge}' of an open node"))),
    }
}

/// The options that a node keeps in any case: who it is, and what is below it.
fn kept(node: &GsNode) -> Dict {
    let mut kept = Dict::new();
    for (key, value) in node.options.iter() {
        let is_edge = node.edges.iter().any(|edge| edge.name.as_str() == key);
        if is_edge || key == "driver" || key == "node-name" {
            // The key stood in a dictionary, so it can.
            let _ = kept.insert(key, value.clone());
        }
    }
    kept
}

/// Put a value in; of two dictionaries, the keys.
fn insert(into: &mut Dict, key: &str, value: &Value) -> GraphResult<()> {
    if let (Some(Value::Dict(old)), Value::Dict(new)) = (into.lookup_mut(key), value) {
        for (key, value) in new.iter() {
            insert(old, key, value)?;
        }
        return Ok(());
    }
    Ok(into.insert(key, value.clone())?)
}

/// A value as a command line has it.
fn text(value: &Value) -> String {
    match value {
        Value::Str(text) => text.clone(),
        Value::Bool(true) => "on".into(),
        Value::Bool(false) => "off".into(),
        other => format!("{other:?}"),
    }
}

/// The first option of the driver's own that would be another one and cannot.
fn check_unchanged(node: &GsNode, options: &Dict) -> GraphResult<()> {
    let mut own = Options::from_dict(Dialect::Legacy, node.options.clone()).flatten();
    own.extend(Options::from_dict(Dialect::Legacy, options.clone()).flatten());
    for (key, _) in own {
        let first = key.split('.').next().unwrap_or_default();
        let is_edge = node.edges.iter().any(|edge| edge.name.as_str() == first || edge.name.as_str() == key);
        if is_edge || COMMON.contains(&first) || node.driver.reopenable().contains(&first) {
            continue;
        }
        let of = |dict: &Dict| Options::from_dict(Dialect::Legacy, dict.clone()).lookup(&key).map(text);
        if of(&node.options) != of(options) {
            return Err(GraphError::CannotChange(key));
        }
    }
    Ok(())
}

impl Graph {
    /// Everything is prepared: check permissions as they will be, and then let all of `steps` have happened. Or nothing.
    fn commit_reopen(&mut self, steps: &[Step], prepared: Vec<Box<dyn Any>>) -> GraphResult<()> {
        let before: Vec<_> =
            steps.iter().map(|step| self.nodes.get(&step.node.id()).map(|node| node.read_only)).collect();
        for step in steps {
            let node = self.node_mut(&step.node)?;
            node.read_only = step.common.read_only;
        }
        let ids: Vec<_> = steps.iter().map(|step| step.node.id()).collect();
        let checked = Plan::new(self, &[], &ids).and_then(|plan| plan.prepare(self)).and_then(|plan| {
            for step in steps {
                let node = self.node(&step.node)?;
                let is_free = step.control.try_borrow_mut().is_ok();
                if !is_free || node.control.proof().is_none() {
                    return Err(GraphError::InUse(step.node.name().into()));
                }
            }
            Ok(plan)
        });
        let plan = match checked {
            Ok(plan) => plan,
            Err(error) => {
                for (step, read_only) in steps.iter().zip(before) {
                    if let (Ok(node), Some(read_only)) = (self.node_mut(&step.node), read_only) {
                        node.read_only = read_only;
                    }
                }
                return Err(match error {
                    GraphError::ReadOnly(name) => GraphError::HasWriters(name),
                    other => other,
                });
            }
        };
        plan.commit(self);
        for (step, prepared) in steps.iter().zip(prepared).rev() {
            let Ok(node) = self.node(&step.node) else { continue };
            if let Some(proof) = node.control.proof() {
                step.control.borrow_mut().commit_reopen(prepared, &proof);
            }
            node.control.set_read_only(step.common.read_only);
            node.control.set_modes(step.common.modes());
        }
        Ok(())
    }
}
