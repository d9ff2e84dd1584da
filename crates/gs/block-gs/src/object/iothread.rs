//! The object `iothread`: an I/O thread by name, for whoever is to have his requests served by a thread of his own.
//!
//! Nodes have no thread; what is said of a node is about those who use it: where the slow requests of its users run, and of those who will use it.

use super::{Object, ObjectError};
use crate::error::{GraphError, GraphResult};
use crate::graph::{DrainTarget, Graph, GsRoot, Id, NodeRef, ParentEnd};
use crate::state::GlobalState;
use block_common::{OptionReader, ParentKind};
use block_io::{IoThread, IoThreadHandle, IoThreadOptions};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// What is told of the type's properties.
pub(super) const HELP: &str = "iothread options:
  aio-max-batch=<int>
  poll-grow=<int>
  poll-max-ns=<int>
  poll-shrink=<int>
  thread-pool-max=<int>
  thread-pool-min=<int>
";

/// How long a thread looks for completions before it sleeps, in nanoseconds, unless the user says otherwise.
const POLL_MAX_NS: i64 = 32768;
/// How many threads the pool has at most, unless the user says otherwise.
const POOL_MAX: i64 = 64;

/// The properties, with the values that can be had for those that this build has only one for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IoThreadProperties {
    poll_max_ns: i64,
}

/// The names of the properties, with the value that each has unless the user says otherwise, and the other values that come to the same.
const PROPERTIES: [(&str, i64, &[i64]); 6] = [
    ("thread-pool-min", 0, &[]),
    ("aio-max-batch", 0, &[]),
    ("thread-pool-max", POOL_MAX, &[]),
    ("poll-max-ns", POLL_MAX_NS, &[]),
    // Windows become twice as long as they were.
    ("poll-grow", 0, &[2]),
    ("poll-shrink", 0, &[]),
];

impl IoThreadProperties {
    /// Take them out of `options`.
    ///
    /// # Errors
    /// One is of the wrong type, makes no sense, or would be without effect.
    pub(super) fn read(options: &mut OptionReader) -> GraphResult<Self> {
        let mut given = Vec::new();
        for (name, ..) in PROPERTIES {
            given.extend(options.take_i64(name)?.map(|value| (name, value)));
        }
        for (name, value) in &given {
            check_range(name, *value)?;
        }
        let pool = |name: &str, otherwise| {
            given.iter().find(|(of, _)| *of == name).map_or(otherwise, |(_, value): &(_, i64)| *value)
        };
        if pool("thread-pool-min", 0) > pool("thread-pool-max", POOL_MAX) || pool("thread-pool-max", POOL_MAX) < 1 {
            return Err(ObjectError::ThreadPool.into());
        }
        let mut this = Self { poll_max_ns: POLL_MAX_NS };
        given.into_iter().try_for_each(|(name, value)| this.set(name, value))?;
        Ok(this)
    }

    fn set(&mut self, name: &str, value: i64) -> GraphResult<()> {
        if name == "poll-max-ns" {
            self.poll_max_ns = value;
            return Ok(());
        }
        let property = PROPERTIES.iter().find(|(known, ..)| *known == name);
        match property.is_some_and(|(_, only, alike)| value == *only || alike.contains(&value)) {
            true => Ok(()),
            false => Err(GraphError::NotBuilt(format!("Property '{name}' with the value {value}"))),
        }
    }

    fn value(&self, name: &str) -> Option<i64> {
        let (_, only, _) = PROPERTIES.iter().find(|(known, ..)| *known == name)?;
        Some(if name == "poll-max-ns" { self.poll_max_ns } else { *only })
    }
}

fn check_range(name: &str, value: i64) -> Result<(), ObjectError> {
    if value >= 0 { Ok(()) } else { Err(ObjectError::NotInRange(name.into())) }
}

struct Named {
    id: String,
    thread: IoThread,
    /// The number that the host knows the thread by.
    number: u32,
    properties: Cell<IoThreadProperties>,
}

/// An I/O thread that somebody uses: as long as there is one of these, its object cannot be deleted.
#[derive(Clone)]
pub struct IoThreadRef(Rc<Named>);

impl IoThreadRef {
    /// The object's id.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The thread.
    pub fn handle(&self) -> IoThreadHandle {
        self.0.thread.handle()
    }

    /// What can be seen of it.
    pub fn info(&self) -> IoThreadInfo {
        let value = |name| self.property(name).unwrap_or_default();
        IoThreadInfo {
            id: self.0.id.clone(),
            number: self.0.number,
            poll_max_ns: value("poll-max-ns"),
            poll_grow: value("poll-grow"),
            poll_shrink: value("poll-shrink"),
            aio_max_batch: value("aio-max-batch"),
        }
    }

    fn property(&self, name: &str) -> Option<i64> {
        self.0.properties.get().value(name)
    }

    fn set(&self, name: &str, value: i64) -> GraphResult<()> {
        check_range(name, value)?;
        let mut properties = self.0.properties.get();
        properties.set(name, value)?;
        self.0.properties.set(properties);
        self.0.thread.handle().set_poll_max(poll_max(properties));
        Ok(())
    }
}

impl fmt::Debug for IoThreadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoThreadRef({})", self.id())
    }
}

/// What can be seen of an I/O thread: QAPI's `IOThreadInfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoThreadInfo {
    /// The object's id.
    pub id: String,
    /// The number that the host knows the thread by.
    pub number: u32,
    /// How long it looks for completions before it sleeps, at most, in nanoseconds.
    pub poll_max_ns: i64,
    /// How many times as long it looks when that has paid; 0: as is usual, which is twice.
    pub poll_grow: i64,
    /// Into how many parts that time is cut when it has not paid; 0: it does not look at all then.
    pub poll_shrink: i64,
    /// How many requests go to the host together at most; 0: as is usual.
    pub aio_max_batch: i64,
}

fn poll_max(properties: IoThreadProperties) -> Duration {
    Duration::from_nanos(u64::try_from(properties.poll_max_ns).unwrap_or_default())
}

/// A thread that is an object.
pub(super) struct IoThreadObject(IoThreadRef);

impl IoThreadObject {
    /// Start a thread.
    ///
    /// # Errors
    /// What the host said when it refused one.
    pub(super) async fn start(id: &str, properties: IoThreadProperties) -> GraphResult<Self> {
        let refused = |why: String| GraphError::Open(format!("Could not start the I/O thread '{id}': {why}"));
        let options = IoThreadOptions { poll_max: poll_max(properties), ..IoThreadOptions::named(id) };
        let thread = IoThread::spawn(options).map_err(|error| refused(error.to_string()))?;
        let number = thread.handle().run(async { rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs() });
        let number = number.await.ok_or_else(|| refused("it has ended".into()))?;
        let properties = Cell::new(properties);
        Ok(Self(IoThreadRef(Rc::new(Named { id: id.into(), thread, number, properties }))))
    }

    pub(super) fn is_in_use(&self) -> bool {
        Rc::strong_count(&self.0.0) > 1
    }

    pub(super) fn properties() -> impl Iterator<Item = &'static str> {
        PROPERTIES.iter().map(|(name, ..)| *name)
    }

    pub(super) fn property(&self, name: &str) -> Option<i64> {
        self.0.property(name)
    }

    pub(super) fn set(&self, name: &str, value: i64) -> GraphResult<()> {
        self.0.set(name, value)
    }
}

impl GlobalState {
    /// The I/O thread called `id`, for somebody who uses it.
    ///
    /// # Errors
    /// [`ObjectError::NoIoThread`].
    pub fn io_thread(&self, id: &str) -> GraphResult<IoThreadRef> {
        match self.0.objects.all.borrow().get(id) {
            Some(Object::IoThread(thread)) => Ok(thread.0.clone()),
            _ => Err(ObjectError::NoIoThread(id.into()).into()),
        }
    }

    /// The object that a thread belongs to, if it is one: for somebody who uses it, and was given no more than the handle.
    pub fn io_thread_of(&self, handle: &IoThreadHandle) -> Option<IoThreadRef> {
        let objects = self.0.objects.all.borrow();
        objects.values().find_map(|object| match object {
            Object::IoThread(thread) if thread.0.handle().same(handle) => Some(thread.0.clone()),
            _ => None,
        })
    }

    /// What can be seen of the I/O threads that are objects, by id.
    #[doc(alias = "qmp_query_iothreads")]
    pub fn io_threads(&self) -> Vec<IoThreadInfo> {
        let objects = self.0.objects.all.borrow();
        let threads = objects.values().filter_map(|object| match object {
            Object::IoThread(thread) => Some(thread.0.info()),
            _ => None,
        });
        threads.collect()
    }

    /// Let everybody who uses `node`, or a node that it is joined to by edges, have his slow requests served by `thread`, or by the main I/O thread; and those
    /// who will. They are drained for it. A node that a backend uses itself is left alone, unless by `force`: whoever has the backend may rely on where it is.
    ///
    /// # Errors
    /// [`GraphError::NotFound`] when the node is gone; [`GraphError::HasBackend`]; [`GraphError::HomeFixed`] for a user who wants to stay where he is, and would have to move. Nobody
    /// has moved then.
    #[doc(alias = "bdrv_try_set_aio_context")]
    pub async fn set_node_home(&self, node: &NodeRef, thread: Option<&IoThreadRef>, force: bool) -> GraphResult<()> {
        let home = thread.map_or_else(|| self.main_io(), IoThreadRef::handle);
        let joined = {
            let graph = self.0.graph.borrow();
            let has_backend = graph.node(node)?.parents.iter().any(|end| graph.is_backend(*end));
            if has_backend && !force {
                return Err(GraphError::HasBackend(node.name().into()));
            }
            let joined = graph.joined(node.id());
            graph.check_movable(&joined, &home)?;
            joined
        };
        let mut guards = Vec::new();
        let drained = joined.roots;
        for root in &drained {
            guards.push(self.begin(DrainTarget::Root(*root)).await);
        }
        // Who has gone meanwhile is past caring, and who has come has requests in flight where he was put.
        let joined = self.0.graph.borrow().joined(node.id());
        self.0.graph.borrow().check_movable(&joined, &home)?;
        let mut before = Vec::new();
        {
            let mut graph = self.0.graph.borrow_mut();
            for id in joined.nodes {
                before.extend(graph.nodes.get_mut(&id).map(|node| std::mem::replace(&mut node.home, thread.cloned())));
            }
            for id in joined.roots.intersection(&drained) {
                if let Some(root) = graph.roots.get_mut(id) {
                    root.control.set_home(&home);
                    before.push(std::mem::replace(&mut root.thread, thread.cloned()));
                }
            }
        }
        drop((before, guards));
        Ok(())
    }

    /// Where the slow requests of those run who use `node` without a thread of their own, as [`GlobalState::set_node_home`] said it of the node or of one below it.
    #[doc(alias = "bdrv_get_aio_context")]
    pub fn node_home(&self, node: &NodeRef) -> IoThreadHandle {
        let graph = self.0.graph.borrow();
        let mut below = vec![node.id()];
        let mut seen = BTreeSet::new();
        while let Some(id) = below.pop() {
            let Some(found) = graph.nodes.get(&id).filter(|_| seen.insert(id)) else { continue };
            if let Some(thread) = &found.home {
                return thread.handle();
            }
            below.extend(graph.children(id).into_iter().map(|(_, child)| child));
        }
        self.main_io()
    }
}

/// Nodes that are joined by edges, and the roots above them.
struct Joined {
    nodes: BTreeSet<Id>,
    roots: BTreeSet<Id>,
}

impl Graph {
    fn is_backend(&self, end: ParentEnd) -> bool {
        match end {
            ParentEnd::Root(id) => {
                self.roots.get(&id).is_some_and(|root| root.kind == ParentKind::Backend && root.is_alive())
            }
            ParentEnd::Node(..) => false,
        }
    }

    /// Whether all of them may have their requests served by `home`.
    fn check_movable(&self, joined: &Joined, home: &IoThreadHandle) -> GraphResult<()> {
        let stays = |root: &GsRoot| root.stays && root.is_alive() && !root.control.root().home().same(home);
        match joined.roots.iter().filter_map(|id| self.roots.get(id)).any(stays) {
            true => Err(GraphError::HomeFixed),
            false => Ok(()),
        }
    }

    fn joined(&self, node: Id) -> Joined {
        let mut joined = Joined { nodes: BTreeSet::new(), roots: BTreeSet::new() };
        let mut next = vec![node];
        while let Some(id) = next.pop() {
            let Some(found) = self.nodes.get(&id).filter(|_| joined.nodes.insert(id)) else { continue };
            next.extend(self.children(id).into_iter().map(|(_, child)| child));
            for parent in &found.parents {
                match parent {
                    ParentEnd::Node(parent, _) => next.push(*parent),
                    ParentEnd::Root(root) => drop(joined.roots.insert(*root)),
                }
            }
        }
        joined
    }
}
