//! What the tests of the graph are made of: a block layer on a loop of its own, drivers that misbehave on command, load from real
//! threads.

#![allow(dead_code, reason = "each test file uses another part of it")]
#![allow(unreachable_pub, reason = "the module is shared by test programs, none of which exports anything")]

pub mod drivers;
pub mod load;

use block_common::options::Dialect;
use block_common::{IoBuf, Options, ParentKind, Perm, PermPair};
use block_gs::{GlobalOptions, GlobalState, GraphError, GraphResult, MainLoop, NodeInfo, NodeRef, RootRef};
use block_io::{GateState, IoThreadOptions};
use drivers::{Leaf, Leaves};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// How long a test waits before it calls itself hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// A block layer with the test's drivers.
pub struct World {
    // Before the loop: what is dropped with the block layer may still wake tasks.
    pub gs: GlobalState,
    pub main: MainLoop,
    pub leaves: Rc<Leaves>,
}

impl World {
    pub fn new() -> Self {
        let main = MainLoop::new().expect("descriptors");
        Self::on(main)
    }

    pub fn on(main: MainLoop) -> Self {
        let options = GlobalOptions { main_io: IoThreadOptions::named("test-io"), ..GlobalOptions::default() };
        let gs = GlobalState::new(&main, options).expect("an I/O thread");
        let leaves = drivers::register(&gs);
        Self { gs, main, leaves }
    }

    /// Run a test's body on the loop.
    pub fn run<T>(&self, body: impl Future<Output = T>) -> T {
        self.main.run(in_time(&self.gs, body))
    }

    /// Run a test's body on the loop, close everything, and look whether all engines that were made have been closed, once.
    pub fn run_and_close<T>(&self, body: impl Future<Output = T>) -> T {
        let output = self.run(body);
        self.close();
        output
    }

    /// Close everything, and check that nothing is left.
    pub fn close(&self) {
        self.run(async { self.gs.close_all().await }).expect("everything closes");
        assert!(self.gs.nodes().is_empty());
        self.leaves.check_all_closed();
    }

    /// Open a node as JSON says.
    pub fn open(&self, json: &str) -> impl Future<Output = GraphResult<NodeRef>> + use<> {
        self.gs.open(json_options(json))
    }

    /// Open a node as JSON says, and let the monitor hold it.
    pub async fn add(&self, json: &str) -> NodeRef {
        let node = self.open(json).await.expect(json);
        self.gs.set_monitor_owned(&node, true);
        node
    }

    /// The engine of a leaf.
    pub fn leaf(&self, name: &str) -> Leaf {
        self.leaves.find(name)
    }

    /// A root with all permissions that shares all, leading to `node`.
    pub async fn root(&self, name: &str, node: &NodeRef) -> RootRef {
        let root = self.gs.new_root(name, ParentKind::Backend, loose(Perm::all()), &self.gs.main_io());
        self.gs.attach_root(&root, Some(node)).await.expect("the root attaches");
        root
    }

    /// Write something to `node`, so that there is something to flush.
    pub async fn write(&self, node: &NodeRef) {
        let root = self.root("writer", node).await;
        root.io().write(0, buffer(512), Default::default()).await.0.expect("it writes");
        self.gs.close_root(root).await;
    }

    /// The graph as a text that tells all that matters of it.
    pub fn graph(&self) -> Vec<String> {
        self.gs.nodes().into_iter().map(|node| show(&node)).collect()
    }

    /// What is known of a node now.
    pub fn info(&self, node: &NodeRef) -> NodeInfo {
        self.gs.node_info(node).expect("the node is there")
    }

    /// Whether requests to the node are held back.
    pub fn is_quiesced(&self, node: &NodeRef) -> bool {
        node.io().state().contains(GateState::QUIESCED)
    }

    /// Let other tasks, and other threads, go on for a while.
    pub async fn pause(&self) {
        self.gs.main().sleep(Duration::from_millis(5)).await;
    }

    /// Wait until `done`.
    pub async fn until(&self, what: &str, done: impl Fn() -> bool) {
        for _ in 0..20_000 {
            if done() {
                return;
            }
            self.gs.main().sleep(Duration::from_micros(500)).await;
        }
        panic!("waited in vain until {what}");
    }
}

/// A node with everything but its options.
pub fn show(node: &NodeInfo) -> String {
    let NodeInfo { name, driver, length, read_only, state, children, parents, monitor_owned, .. } = node;
    let mut parents = parents.clone();
    parents.sort();
    format!("{name} {driver} {length} {read_only} {state:?} {children:?} {parents:?} {monitor_owned}")
}

/// `perm`, sharing everything.
pub fn loose(perm: Perm) -> PermPair {
    PermPair::new(perm, Perm::all())
}

pub fn json_options(json: &str) -> Options {
    Options::parse_json(json).expect(json)
}

pub fn dotted(text: &str) -> Options {
    Options::parse_keyval(text, Some("driver")).expect(text)
}

pub fn image_opts(text: &str) -> Options {
    let (options, _) = Options::parse_image_opts(text).expect(text);
    assert_eq!(options.dialect(), Dialect::Legacy);
    options
}

/// A buffer of `len` bytes.
pub fn buffer(len: usize) -> IoBuf {
    block_common::AlignedBuf::zeroed(len, 512).into_io()
}

/// `future`, or a panic when it does not end.
pub async fn in_time<T>(gs: &GlobalState, future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    let mut limit = pin!(gs.main().sleep(PATIENCE));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(output);
        }
        assert!(limit.as_mut().poll(cx).is_pending(), "the test hangs");
        Poll::Pending
    })
    .await
}

/// Poll `future` once. Its output, if it has one.
pub async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The message of what failed.
pub fn message<T>(result: Result<T, GraphError>) -> String {
    match result {
        Ok(_) => panic!("this should have failed"),
        Err(error) => error.to_string(),
    }
}
