//! Lengths: who has a node for his medium hears on the main loop when it has another length than before.
//!
//! Told is what the medium itself is: a node that was exchanged for one of another length, or became longer or shorter, through whomever. Of several changes
//! before the main loop gets to look, the last is told. A filter has its length from below when it is asked, and not before.

use crate::event::Event;
use crate::graph::{Graph, Id, ParentEnd};
use crate::root::RootRef;
use crate::state::{GlobalState, Inner};
use block_common::ParentKind;
use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Nodes whose length is to be looked at: each at most once for itself, and once for each root that comes to it.
///
/// They may be told of while the graph is borrowed: should the last waker of the task that looks go with it, nothing does that is the graph's, for the task has a weak way
/// to it and the receiver, which is here as well.
pub(crate) struct Lengths {
    tell: UnboundedSender<Id>,
    told: Rc<RefCell<UnboundedReceiver<Id>>>,
}

impl Default for Lengths {
    fn default() -> Self {
        let (tell, told) = unbounded_channel();
        Self { tell, told: Rc::new(RefCell::new(told)) }
    }
}

impl fmt::Debug for Lengths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lengths")
    }
}

/// Look at lengths, for as long as there is a graph.
pub(crate) async fn teller(state: Weak<Inner>) {
    let Some(told) = state.upgrade().map(|inner| inner.graph.borrow().lengths.told.clone()) else { return };
    while let Some(id) = poll_fn(|cx| told.borrow_mut().poll_recv(cx)).await {
        let Some(inner) = state.upgrade() else { return };
        GlobalState(inner).tell_length(id);
    }
}

impl Graph {
    /// A root has come to another node, or to none: whoever watches it knows the length that he had there.
    pub(crate) fn watch_length(&mut self, root: Id) {
        let Some(root) = self.roots.get_mut(&root) else { return };
        let node = root.child.as_ref().map(|child| child.id());
        let Some((id, node)) = node.and_then(|id| Some((id, self.nodes.get(&id)?))) else {
            // What is taken out has no length; the next one is not another length of it.
            root.length = None;
            return;
        };
        if root.kind != ParentKind::Backend || root.watcher.is_none() {
            return;
        }
        // It holds nothing: a node may outlive the graph.
        let tell = self.lengths.tell.downgrade();
        node.control.on_new_length(move || {
            if let Some(tell) = tell.upgrade() {
                let _ = tell.send(id);
            }
        });
        let length = node.control.look_at_length();
        // Of another medium in the place of one that was there, he hears when nobody has the graph.
        if root.length.get_or_insert(length) != &length {
            let _ = self.lengths.tell.send(id);
        }
    }
}

impl GlobalState {
    /// Have `watcher` called on the main loop when the node that `root` leads to has another length in bytes than before, also because it is another node. Nothing is told
    /// when the root leads nowhere in between. It must not change the graph: it may spawn what does.
    #[doc(alias = "resize")]
    pub fn watch_length(&self, root: &RootRef, watcher: impl Fn(u64) + 'static) {
        let mut graph = self.0.graph.borrow_mut();
        let id = root.id();
        let before = graph.roots.get_mut(&id).and_then(|root| root.watcher.replace(Rc::new(watcher)));
        graph.watch_length(id);
        drop(graph);
        drop(before);
    }

    /// Tell at once what there is to be told of lengths. A task does that by itself, a little later; this is for who answers when all is told.
    pub fn pass_lengths(&self) {
        let told = self.0.graph.borrow().lengths.told.clone();
        loop {
            let id = told.borrow_mut().try_recv();
            let Ok(id) = id else { return };
            self.tell_length(id);
        }
    }

    fn tell_length(&self, id: Id) {
        let (name, length, watchers) = {
            let mut graph = self.0.graph.borrow_mut();
            let Some(node) = graph.nodes.get(&id) else { return };
            let (name, length) = (node.name.as_str().to_owned(), node.control.look_at_length());
            let ends: Vec<_> = node.parents.iter().copied().collect();
            let mut watchers = Vec::new();
            for end in ends {
                let ParentEnd::Root(root) = end else { continue };
                let Some(root) = graph.roots.get_mut(&root).filter(|root| root.length.is_some_and(|old| old != length))
                else {
                    continue;
                };
                root.length = Some(length);
                watchers.extend(root.watcher.clone());
            }
            (name, length, watchers)
        };
        if watchers.is_empty() {
            return;
        }
        self.event_sender().send(Event::Resized { node: name, length });
        watchers.iter().for_each(|watcher| watcher(length));
    }
}
