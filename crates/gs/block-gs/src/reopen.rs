//! Reopening: other options for open nodes, while requests wait.
//!
//! One reopen is about nodes and those children that were opened for them: what these do not say themselves they take from their parents. All of them are
//! drained and flushed; all prepare; then the graph and its permissions are checked as they will be, and either all have their new options and children,
//! children before parents, or all have the old ones (rules reopen-1 and reopen-2). An option that cannot change is refused by name (rule reopen-3). An image may get
//! another backing file, or none, and any node another `file`; other children stay.

use crate::driver::EngineControl;
use crate::error::{GraphError, GraphResult};
use crate::graph::{DrainTarget, Graph, GsEdge, GsNode, Id, NodeRef, ParentEnd};
use crate::open::{CommonOptions, Inherited};
use crate::perm::{Change, Plan};
use crate::state::GlobalState;
use block_common::options::{Dialect, Dict, Value};
use block_common::{ChildRole, IoResult, OptionReader, Options, OptionsError, Perm, PermPair};
use block_io::{Edge, EdgeWriter, NodeControl, Req};
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
    /// Those that the node is going to have instead of others, by their edges' names.
    children: &'a mut [Coming],
}

/// A child that a node is going to have, and a way to it for whoever prepares for that.
struct Coming {
    edge: String,
    child: NodeRef,
    /// What holds the way open, and the way until somebody takes it.
    trial: (EdgeWriter, Option<Edge>),
}

impl Reopening<'_> {
    /// Where the node is.
    pub fn global(&self) -> &GlobalState {
        &self.gs
    }

    /// The way to the child that the node is going to have at the edge called `edge`, if that is another one than now. For reading, and until the reopen is
    /// over.
    pub fn take_coming_child(&mut self, edge: &str) -> Option<Edge> {
        self.children.iter_mut().find(|coming| coming.edge == edge)?.trial.1.take()
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
        let reached = self.children.iter().map(|coming| coming.child.id()).chain([self.id]).collect();
        let (gs, act, work) = (self.gs.clone(), self.gs.act(reached), work(req));
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
    /// The edges that are to lead elsewhere, by their places.
    children: Vec<(usize, Option<NodeRef>)>,
    /// Whether somebody named the node, and not only one above it.
    is_named: bool,
}

impl Step {
    /// Whether a flush of what was written before is not the same any more afterwards.
    fn has_other_modes(&self, graph: &Graph) -> bool {
        let modes = |common: CommonOptions| (common.read_only, common.cache_no_flush, common.cache_direct);
        !self.children.is_empty()
            || graph.nodes.get(&self.node.id()).is_none_or(|node| modes(node.common) != modes(self.common))
    }
}

/// The children that any node may exchange.
const EXCHANGED: [&str; 2] = ["backing", "file"];

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
        self.reopen_all(vec![(node.clone(), changes)], left_out)
    }

    /// As [`GlobalState::reopen`], for several nodes, whose changes hold together or not at all. Of a node that is there twice the last changes count.
    ///
    /// # Errors
    /// As [`GlobalState::reopen`].
    pub fn reopen_all(
        &self,
        nodes: Vec<(NodeRef, Options)>,
        left_out: LeftOut,
    ) -> impl Future<Output = GraphResult<()>> + 'static + use<> {
        self.mutate(move |gs| async move { gs.reopen_in_mutation(nodes, left_out).await })
    }

    /// As [`GlobalState::reopen_all`], for use within a mutation that holds the ticket already.
    ///
    /// # Errors
    /// As [`GlobalState::reopen`].
    pub async fn reopen_in_mutation(&self, nodes: Vec<(NodeRef, Options)>, left_out: LeftOut) -> GraphResult<()> {
        let mut plan = Planning { steps: Vec::new(), left_out };
        for (node, changes) in nodes {
            plan.add_named(&self.0.graph.borrow(), &node, changes)?;
        }
        let mut steps = plan.steps;
        // While requests go on: they would wait for it. What cannot be made safe is found before anybody is asked.
        for step in &steps {
            self.flush_before_reopen(&step.node).await?;
        }
        let mut sections = Vec::new();
        for step in &steps {
            sections.push(self.drain(&step.node).await);
        }
        // What was written meanwhile is flushed where that will not do the same later.
        for step in &steps {
            if step.has_other_modes(&self.0.graph.borrow()) {
                self.flush_before_reopen(&step.node).await?;
            }
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
        let former = self.0.graph.borrow_mut().commit_reopen(&steps, prepared)?;
        drop(former);
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
        let mut children = self.0.graph.borrow().coming(step)?;
        let preparing = {
            let busy = |_| GraphError::InUse(step.node.name().into());
            let mut control = step.control.try_borrow_mut().map_err(busy)?;
            let (common, gs, id) = (step.common, self.clone(), step.node.id());
            control.prepare_reopen(&mut Reopening {
                common,
                options: &mut step.own,
                gs,
                id,
                children: &mut children,
            })?
        };
        preparing.await
    }

    /// The nodes that were changed, and those above them, may have other limits and lengths by now. Children first.
    pub(crate) async fn look_at_limits_above(&self, changed: &[Id]) {
        let order = {
            let graph = self.0.graph.borrow();
            let mut above = std::collections::BTreeSet::new();
            for id in changed {
                above.extend(graph.above(DrainTarget::Node(*id)).0);
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
    left_out: LeftOut,
}

impl Planning {
    /// Somebody names `node`. What it does not say itself it takes from the one that it was opened for, as that will be.
    fn add_named(&mut self, graph: &Graph, node: &NodeRef, changes: Options) -> GraphResult<()> {
        let owner = graph.node(node)?.parents.iter().find_map(|end| match end {
            ParentEnd::Node(id, at) => {
                let owner = graph.nodes.get(id)?;
                let edge = owner.edges.get(*at).filter(|edge| edge.is_inline)?;
                let coming = self.steps.iter().find(|step| step.node.id() == *id);
                Some(coming.map_or(owner.common, |step| step.common).for_child(edge.role))
            }
            ParentEnd::Root(_) => None,
        });
        let dialect = changes.dialect();
        self.add(graph, node, (dialect, Some(changes.into_dict())), owner)
    }

    /// `node` is to have the options `changes`, and takes the rest from its parent's, `above`, if it was opened for one.
    fn add(
        &mut self,
        graph: &Graph,
        node: &NodeRef,
        (dialect, changes): (Dialect, Option<Dict>),
        above: Option<CommonOptions>,
    ) -> GraphResult<()> {
        let found = graph.node(node)?;
        let is_named = changes.is_some();
        if !is_named && self.steps.iter().any(|step| step.is_named && step.node.id() == node.id()) {
            return Ok(());
        }
        if !found.driver.reopens() {
            let (driver, node) = (found.driver.name().into(), found.name.as_str().into());
            return Err(GraphError::CannotReopen { driver, node });
        }
        // Of a child that is not named, everything is left as it says.
        let left_out = if is_named { self.left_out } else { LeftOut::Stays };
        let mut changes = changes.unwrap_or_default();
        let (mut below, mut children) = (Vec::new(), Vec::new());
        for (at, edge) in found.edges.iter().enumerate() {
            let own = match (changes.remove(edge.name.as_str()), left_out) {
                (None, LeftOut::Default) if needs_naming(found, edge) => {
                    let (edge, node) = (edge.name.as_str().to_owned(), node.name().to_owned());
                    return Err(GraphError::ChildLeftOut { edge, node });
                }
                (changes, _) => child_changes(graph, edge, changes)?,
            };
            let own = match own {
                Below::Same => None,
                Below::Changed(changes) => Some(changes),
                Below::Exchanged(child) => {
                    children.push((at, child));
                    continue;
                }
            };
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
        for (at, child) in &children {
            let named = child.as_ref().map_or(Value::Null, |child| Value::Str(child.name().to_owned()));
            let key = found.edges[*at].name.as_str();
            drop(options.remove(key));
            options.insert(key, named)?;
        }
        let mut own = Options::from_dict(dialect, options.clone()).reader();
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
        self.steps.retain(|step| step.node.id() != node.id());
        if common != found.common || options != *was || !children.is_empty() {
            let (node, control) = (node.clone(), found.engine_control.clone());
            self.steps.push(Step { node, control, common, options, own, children, is_named });
        }
        for (child, role, changes) in below {
            self.add(graph, child, (dialect, changes), Some(common.for_child(role)))?;
        }
        Ok(())
    }
}

/// What becomes of the child at an edge.
enum Below {
    /// It stays, and what it says of itself.
    Same,
    /// It stays, with these changes.
    Changed(Dict),
    /// Another one comes in its place, or none.
    Exchanged(Option<NodeRef>),
}

/// Whether to leave out what is at `edge` would mean something else than what is there: the image may name a backing file itself.
fn needs_naming(node: &GsNode, edge: &GsEdge) -> bool {
    let names = || node.engine_control.try_borrow().is_ok_and(|control| control.names_child(edge.name.as_str()));
    edge.role.contains(ChildRole::COW) && (edge.child.is_some() || names())
}

fn child_changes(graph: &Graph, edge: &GsEdge, changes: Option<Value>) -> GraphResult<Below> {
    let (key, is_there) = (edge.name.as_str(), edge.child.is_some());
    let exchanged = |child| match EXCHANGED.contains(&key) {
        true => Ok(Below::Exchanged(child)),
        false => Err(GraphError::CannotChange(key.into())),
    };
    match changes {
        None => Ok(Below::Same),
        Some(Value::Dict(changes)) if edge.is_inline => Ok(Below::Changed(changes)),
        Some(Value::Dict(_)) => Err(GraphError::CannotChange(format!("{key}.driver"))),
        Some(Value::Null) if !is_there => Ok(Below::Same),
        Some(Value::Null) if edge.role.contains(ChildRole::COW) => exchanged(None),
        Some(Value::Str(name)) if edge.child.as_ref().is_some_and(|child| child.name() == name) => Ok(Below::Same),
        Some(Value::Str(name)) => match graph.find(&name) {
            Some(child) => exchanged(Some(child)),
            None => Err(GraphError::Open(format!("Cannot find device='' nor node-name='{name}'"))),
        },
        Some(_) => Err(OptionsError::WrongType { key: key.into(), expected: "BlockdevRef" }.into()),
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
        match (of(&node.options), of(options)) {
            (was, is) if was == is => {}
            (Some(_), None) => return Err(GraphError::CannotReset(key)),
            _ => return Err(GraphError::CannotChange(key)),
        }
    }
    Ok(())
}

impl Graph {
    /// Ways to the children that a node is going to have.
    fn coming(&self, step: &Step) -> GraphResult<Vec<Coming>> {
        let node = self.node(&step.node)?;
        let reading = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
        let coming = |(at, child): &(usize, Option<NodeRef>)| {
            let child = child.clone()?;
            let edge = &node.edges[*at];
            let (writer, way) = node.control.edge(edge.role, reading, Some(child.target()));
            Some(Coming { edge: edge.name.as_str().into(), child, trial: (writer, Some(way)) })
        };
        Ok(step.children.iter().filter_map(coming).collect())
    }

    /// Everything is prepared: check the graph and its permissions as they will be, and then let all of `steps` have happened. Or nothing. Returns the children that are none any
    /// more, to be dropped when the graph is no longer borrowed.
    fn commit_reopen(&mut self, steps: &[Step], prepared: Vec<Box<dyn Any>>) -> GraphResult<Vec<NodeRef>> {
        let changes: Vec<_> = steps
            .iter()
            .flat_map(|step| {
                let end = |at| ParentEnd::Node(step.node.id(), at);
                step.children.iter().map(move |(at, child)| Change { end: end(*at), child: child.clone() })
            })
            .collect();
        let sections: Vec<_> = steps.iter().map(|step| DrainTarget::Node(step.node.id())).collect();
        self.check_changes(&changes, &sections)?;
        let before: Vec<_> =
            steps.iter().map(|step| self.nodes.get(&step.node.id()).map(|node| node.read_only)).collect();
        for step in steps {
            let node = self.node_mut(&step.node)?;
            node.read_only = step.common.read_only;
        }
        let ids: Vec<_> = steps.iter().map(|step| step.node.id()).collect();
        let checked = Plan::new(self, &changes, &ids).and_then(|plan| plan.prepare(self)).and_then(|plan| {
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
        let former = changes.iter().filter_map(|change| self.repoint_one(change)).collect();
        for step in steps {
            for (at, _) in &step.children {
                if let Some(node) = self.nodes.get_mut(&step.node.id()) {
                    node.edges[*at].is_inline = false;
                }
            }
            self.refresh_depths(step.node.id());
        }
        plan.commit(self);
        self.apply_drains();
        for (step, prepared) in steps.iter().zip(prepared).rev() {
            let Ok(node) = self.node(&step.node) else { continue };
            if let Some(proof) = node.control.proof() {
                step.control.borrow_mut().commit_reopen(prepared, &proof);
            }
            node.control.set_read_only(step.common.read_only);
            node.control.set_modes(step.common.modes());
        }
        Ok(former)
    }
}
