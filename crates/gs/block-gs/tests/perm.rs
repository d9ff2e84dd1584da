//! Permissions: every pair of users of a node gets along, over the whole affected part of the graph, or nothing changes.

mod common;

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, IoError, OptionReader, ParentKind, Perm, PermPair, RequestFlags};
use block_gs::{DriverType, GraphError, GraphResult, NoControl, NodeRef, OpenContext, Opened, RootRef};
use block_null::{Null, NullOptions};
use common::{World, buffer, loose, message};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

const READ: Perm = Perm::CONSISTENT_READ;
const WRITE: Perm = Perm::WRITE;
const RESIZE: Perm = Perm::RESIZE;

/// Reads, and lets others do anything but write and resize.
fn keeper() -> PermPair {
    PermPair::new(READ, READ | Perm::WRITE_UNCHANGED)
}

fn root(world: &World, name: &str, kind: ParentKind, perm: PermPair) -> RootRef {
    world.gs.new_root(name, kind, perm, &world.gs.main_io())
}

async fn attached(world: &World, name: &str, perm: PermPair, node: &NodeRef) -> RootRef {
    let root = root(world, name, ParentKind::Backend, perm);
    world.gs.attach_root(&root, Some(node)).await.expect("nobody is in the way");
    root
}

/// What the edge called `edge` of `node` asks and shares.
fn edge(world: &World, node: &NodeRef, edge: &str) -> PermPair {
    world.info(node).children.iter().find(|(name, ..)| name == edge).expect("there is such an edge").2
}

#[test]
fn perm_1_a_conflict_names_the_node_the_permissions_and_both_users() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let _q1 = world.add(r#"{"driver": "fmt", "node-name": "q1", "file": "base"}"#).await;
        // As the storage daemon says it of two qcow2 nodes on one file.
        assert_eq!(
            message(world.open(r#"{"driver": "fmt", "node-name": "q2", "file": "base"}"#).await),
            "Permission conflict on node 'base': permissions 'write, resize' are both required by node 'q1' (uses node 'base' as 'file' child) \
             and unshared by node 'q2' (uses node 'base' as 'file' child)."
        );
        let says = |kind, name: &str| {
            let root = root(&world, name, kind, loose(WRITE));
            let world = &world;
            let base = base.clone();
            async move { message(world.gs.attach_root(&root, Some(&base)).await) }
        };
        let expected = |who: &str| {
            format!(
                "Permission conflict on node 'base': permissions 'write' are both required by {who} (uses node 'base' as 'root' child) \
                 and unshared by node 'q1' (uses node 'base' as 'file' child)."
            )
        };
        assert_eq!(says(ParentKind::Backend, "").await, expected("an unnamed block device"));
        assert_eq!(says(ParentKind::Backend, "drive0").await, expected("block device 'drive0'"));
        assert_eq!(says(ParentKind::Job, "job0").await, expected("block job 'job0'"));
        assert_eq!(says(ParentKind::Export, "export0").await, expected("export 'export0'"));
    });
}

#[test]
fn perm_1_every_pair_is_checked_in_both_directions() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let pairs = [keeper(), loose(WRITE), loose(RESIZE), PermPair::EXCLUSIVE, PermPair::NONE, loose(READ)];
        for first in pairs {
            for second in pairs {
                let conflict = !first.denied_by(second).is_empty() || !second.denied_by(first).is_empty();
                let one = attached(&world, "one", first, &base).await;
                // Bystanders change nothing.
                let many: Vec<_> = (0..5).map(|_| root(&world, "", ParentKind::Backend, PermPair::NONE)).collect();
                for bystander in &many {
                    world.gs.attach_root(bystander, Some(&base)).await.expect("it wants nothing");
                }
                let two = root(&world, "two", ParentKind::Backend, second);
                let result = world.gs.attach_root(&two, Some(&base)).await;
                assert_eq!(result.is_err(), conflict, "{first} and {second}: {result:?}");
                if let Err(error) = result {
                    let GraphError::Permission { node, perm, user, other } = &error else { panic!("{error}") };
                    let (needs, keeps) = if user.contains("'one'") { (first, second) } else { (second, first) };
                    assert_eq!((node.as_str(), *perm), ("base", needs.denied_by(keeps)));
                    assert!(user != other && !perm.is_empty());
                    assert!(world.gs.root_node(&two).is_none());
                }
                world.gs.close_root(one).await;
                world.gs.close_root(two).await;
            }
        }
    });
}

#[test]
fn perm_1_a_user_is_not_in_its_own_way() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let alone = attached(&world, "alone", PermPair::EXCLUSIVE, &base).await;
        // Also when it is attached to where it is.
        world.gs.attach_root(&alone, Some(&base)).await.expect("nobody else is there");
        assert_eq!(world.info(&base).parents, ["block device 'alone' (uses node 'base' as 'root' child)"]);
    });
}

#[test]
fn perm_1_one_edge_of_a_node_may_be_in_the_way_of_another() {
    let world = World::new();
    world.run_and_close(async {
        world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let both = world.add(r#"{"driver": "fmt", "node-name": "both", "file": "base", "backing": "base"}"#).await;
        let before = world.graph();
        // As long as the top may be written by others, the backing edge lets the file edge write; a keeper above changes that.
        let drive = root(&world, "drive", ParentKind::Backend, keeper());
        assert_eq!(
            message(world.gs.attach_root(&drive, Some(&both)).await),
            "Permission conflict on node 'base': permissions 'write, resize' are both required by node 'both' (uses node 'base' as 'file' child) \
             and unshared by node 'both' (uses node 'base' as 'backing' child)."
        );
        assert_eq!(world.graph(), before);
    });
}

#[test]
fn perm_2_what_is_asked_at_the_top_is_asked_all_the_way_down() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let f1 = world.add(r#"{"driver": "pass", "node-name": "f1", "file": "base"}"#).await;
        let f2 = world.add(r#"{"driver": "pass", "node-name": "f2", "file": "f1"}"#).await;
        assert_eq!(edge(&world, &f1, "file"), PermPair::NONE);
        let top = attached(&world, "top", PermPair::new(WRITE, READ | WRITE), &f2).await;
        let side = attached(&world, "side", loose(READ), &f1).await;
        assert_eq!(edge(&world, &f2, "file"), PermPair::new(WRITE, READ | WRITE));
        assert_eq!(edge(&world, &f1, "file"), PermPair::new(WRITE | READ, READ | WRITE));
        world.gs.set_root_perm(&top, loose(Perm::empty())).expect("less is always allowed");
        assert_eq!(edge(&world, &f1, "file"), loose(READ));
        world.gs.attach_root(&side, None).await.expect("detaching is always allowed");
        assert_eq!(edge(&world, &f1, "file"), PermPair::NONE);
        drop(base);
    });
}

#[test]
fn perm_2_a_conflict_deep_in_the_graph_leaves_every_edge_as_it_was() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let mut chain = vec![base.clone()];
        for i in 1..20 {
            let json = format!(r#"{{"driver": "pass", "node-name": "f{i}", "file": "{}"}}"#, chain[i - 1].name());
            chain.push(world.add(&json).await);
        }
        let top = attached(&world, "top", loose(READ), &chain[19]).await;
        let keeper = attached(&world, "keeper", keeper(), &base).await;
        let before = world.graph();
        let unchanged = |what: &str, result: GraphResult<()>| {
            let expected = "Permission conflict on node 'base': permissions 'write' are both required by node 'f1' (uses node 'base' as 'file' child) \
                            and unshared by block device 'keeper' (uses node 'base' as 'root' child).";
            assert_eq!(message(result), expected, "{what}");
            assert_eq!(world.graph(), before, "{what}");
            assert_eq!(world.gs.root_perm(&top), loose(READ), "{what}");
            assert_eq!(top.io().perm(), READ, "what requests may do: {what}");
        };
        unchanged("asking for more", world.gs.set_root_perm(&top, loose(READ | WRITE)));
        let writer = root(&world, "writer", ParentKind::Backend, loose(WRITE));
        unchanged("attaching", world.gs.attach_root(&writer, Some(&chain[19])).await);
        assert!(world.gs.root_node(&writer).is_none());
        let format = world.open(r#"{"driver": "fmt", "node-name": "new", "file": "f19"}"#).await;
        assert!(matches!(format, Err(GraphError::Permission { node, .. }) if node == "base"));
        assert_eq!(world.graph(), before);
        // A format that has its file elsewhere is repointed to the chain.
        let other = world.add(r#"{"driver": "fmt", "node-name": "new", "file": {"driver": "leaf", "node-name": "own"}}"#).await;
        let before = world.graph();
        let guard = world.gs.drain(&other).await;
        let refused = world.gs.replace_child(&guard, &other, "file", Some(&chain[19]));
        drop(guard);
        assert!(matches!(refused, Err(GraphError::Permission { node, .. }) if node == "base"));
        assert_eq!(world.graph(), before);
        // And so is its user.
        let user = attached(&world, "user", loose(WRITE), &other).await;
        let before = world.graph();
        let guard = world.gs.drain(&other).await;
        assert!(world.gs.replace_node(&guard, &other, &chain[19]).is_err());
        drop(guard);
        assert_eq!(world.graph(), before);
        // Without the keeper it is allowed.
        drop((keeper, user));
        world.gs.settle().await.expect("it goes");
        world.gs.set_root_perm(&top, loose(READ | WRITE)).expect("nobody is in the way");
        assert_eq!(edge(&world, &chain[1], "file"), loose(READ | WRITE));
        assert_eq!(top.io().perm(), READ | WRITE);
    });
}

#[test]
fn perm_2_what_went_asks_for_nothing_any_more() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "base"}"#).await;
        let upper =
            world.open(r#"{"driver": "pass", "node-name": "upper", "file": "filter"}"#).await.expect("it opens");
        let writer = attached(&world, "writer", PermPair::EXCLUSIVE, &upper).await;
        assert_eq!(edge(&world, &filter, "file"), PermPair::EXCLUSIVE);
        // A root that is dropped, and a node whose last reference is.
        drop(writer);
        world.gs.settle().await.expect("it goes");
        assert_eq!(edge(&world, &filter, "file"), PermPair::NONE);
        let format = r#"{"driver": "fmt", "node-name": "fmt", "file": "upper"}"#;
        let format = world.open(format).await.expect("nobody is in the way");
        assert_eq!(edge(&world, &filter, "file").perm, READ | WRITE | RESIZE);
        drop(format);
        world.gs.settle().await.expect("it closes");
        assert_eq!(edge(&world, &filter, "file"), PermPair::NONE);
        attached(&world, "other", PermPair::EXCLUSIVE, &base).await;
        drop(upper);
    });
}

#[test]
fn who_writes_needs_a_node_that_can_be_written() {
    let world = World::new();
    world.run_and_close(async {
        let _base = world.add(r#"{"driver": "leaf", "node-name": "base", "read-only": true}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "base"}"#).await;
        let before = world.graph();
        let says = "Block node 'base' is read-only";
        assert_eq!(message(world.open(r#"{"driver": "fmt", "file": "filter"}"#).await), says);
        let reader = attached(&world, "reader", loose(READ), &filter).await;
        for perm in [WRITE, Perm::WRITE_UNCHANGED] {
            assert_eq!(message(world.gs.set_root_perm(&reader, loose(perm))), says);
        }
        drop(reader);
        world.open(r#"{"driver": "fmt", "file": "filter", "read-only": true}"#).await.expect("it only reads");
        world.gs.settle().await.expect("it closes");
        assert_eq!(world.graph(), before);
    });
}

#[test]
fn perm_4_requests_may_do_what_their_root_may() {
    let world = World::new();
    world.run_and_close(async {
        let _base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let filter = world.add(r#"{"driver": "pass", "node-name": "filter", "file": "base"}"#).await;
        let root = attached(&world, "root", loose(READ), &filter).await;
        let write = || async { root.io().write(0, buffer(512), RequestFlags::empty()).await.0 };
        assert_eq!(write().await, Err(IoError::NOT_PERMITTED));
        world.gs.set_root_perm(&root, loose(READ | WRITE)).expect("nobody is in the way");
        assert_eq!(write().await, Ok(()));
        world.gs.set_root_perm(&root, loose(READ)).expect("less is always allowed");
        assert_eq!(write().await, Err(IoError::NOT_PERMITTED));
    });
}

/// Has two children, asks both for what is asked of it, and counts how often it is asked.
struct Fork(Rc<Cell<u32>>);

#[async_trait(?Send)]
impl DriverType for Fork {
    fn name(&self) -> &'static str {
        "fork"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        for name in ["a", "b"] {
            drop(context.require_child(options, ChildName::from(name), ChildRole::DATA).await?);
        }
        let (engine, _) = Null::new(NullOptions::default());
        Ok(Opened { engine: Box::new(engine), control: Box::new(NoControl), read_only: false })
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        self.0.set(self.0.get() + 1);
        above
    }
}

#[test]
fn perm_2_diamonds_are_visited_once_and_parents_first() {
    let world = World::new();
    let asked = Rc::new(Cell::new(0));
    world.gs.register(Rc::new(Fork(asked.clone())));
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "leaf", "node-name": "base"}"#).await;
        let mut top = base.clone();
        let mut forks = Vec::new();
        for i in 0..40 {
            let below = top.name().to_owned();
            // The longer way down comes second in one, first in the next.
            let (a, b) = if i % 2 == 0 { ("x", "y") } else { ("y", "x") };
            world.add(&format!(r#"{{"driver": "pass", "node-name": "x{i}", "file": "{below}"}}"#)).await;
            world.add(&format!(r#"{{"driver": "pass", "node-name": "z{i}", "file": "{below}"}}"#)).await;
            world.add(&format!(r#"{{"driver": "pass", "node-name": "y{i}", "file": "z{i}"}}"#)).await;
            top =
                world.add(&format!(r#"{{"driver": "fork", "node-name": "t{i}", "a": "{a}{i}", "b": "{b}{i}"}}"#)).await;
            forks.push(top.clone());
        }
        asked.set(0);
        let root = attached(&world, "root", loose(READ | WRITE), &top).await;
        assert_eq!(asked.get(), 80, "twice for each fork");
        for fork in &forks {
            assert_eq!((edge(&world, fork, "a"), edge(&world, fork, "b")), (loose(READ | WRITE), loose(READ | WRITE)));
        }
        // Both ways down arrive at the bottom before it is looked at.
        let keeper = root_at(&world, keeper(), &base).await;
        assert!(matches!(keeper, Err(GraphError::Permission { node, .. }) if node == "base"));
        world.gs.set_root_perm(&root, loose(READ)).expect("less is always allowed");
        assert!(
            forks.iter().all(|fork| edge(&world, fork, "a") == loose(READ) && edge(&world, fork, "b") == loose(READ))
        );
        // A change that changes nothing goes nowhere.
        asked.set(0);
        world.gs.set_root_perm(&root, loose(READ)).expect("the same");
        assert!(asked.get() <= 2, "{}", asked.get());
    });
}

async fn root_at(world: &World, perm: PermPair, node: &NodeRef) -> GraphResult<RootRef> {
    let root = root(world, "", ParentKind::Backend, perm);
    world.gs.attach_root(&root, Some(node)).await?;
    Ok(root)
}

#[test]
fn perm_2_chains_of_a_thousand_nodes_are_fast_and_do_not_recurse() {
    let world = World::new();
    world.run_and_close(async {
        let mut node = world.add(r#"{"driver": "null-co", "node-name": "n0"}"#).await;
        let bottom = node.clone();
        for i in 1..1000 {
            let json = format!(r#"{{"driver": "pass", "node-name": "n{i}", "file": "n{}"}}"#, i - 1);
            node = world.add(&json).await;
        }
        let begin = Instant::now();
        let root = attached(&world, "root", loose(READ), &node).await;
        world.gs.set_root_perm(&root, PermPair::EXCLUSIVE).expect("nobody is in the way");
        assert!(matches!(root_at(&world, loose(READ), &bottom).await, Err(GraphError::Permission { .. })));
        assert_eq!(edge(&world, &world.gs.find_node("n1").expect("it is there"), "file"), PermPair::EXCLUSIVE);
        println!("three changes over a thousand nodes: {:?}", begin.elapsed());
    });
}

#[test]
fn perm_1_a_thousand_users_of_one_node_are_fast() {
    let world = World::new();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "null-co", "node-name": "base"}"#).await;
        let begin = Instant::now();
        let mut roots = Vec::new();
        for _ in 0..1000 {
            roots.push(root_at(&world, loose(READ), &base).await.expect("readers get along"));
        }
        roots
            .push(root_at(&world, PermPair::new(READ, READ), &base).await.expect("so does one that lets nobody write"));
        assert!(matches!(root_at(&world, loose(WRITE), &base).await, Err(GraphError::Permission { .. })));
        println!("a thousand users: {:?}", begin.elapsed());
    });
}
