//! What drivers are asked before permissions change: parents before children, all or none, and how it ended (rule perm-3).

mod common;

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, ParentKind, Perm, PermPair};
use block_gs::{DriverType, EngineControl, GraphError, GraphResult, NodeRef, OpenContext, Opened, RootRef};
use block_null::{Null, NullOptions};
use common::{World, loose, message};
use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;

const READ: Perm = Perm::CONSISTENT_READ;
const WRITE: Perm = Perm::WRITE;

/// What drivers were asked and told, and who refuses.
#[derive(Default)]
struct Log {
    lines: RefCell<Vec<String>>,
    refusing: RefCell<Option<String>>,
}

impl Log {
    /// What was said since the last call.
    fn take(&self) -> Vec<String> {
        self.lines.take()
    }

    fn refuse(&self, node: Option<&str>) {
        *self.refusing.borrow_mut() = node.map(str::to_owned);
    }
}

/// A node that writes down what it is asked, with children `a` and `b` where options name them. It passes on what is asked of it.
struct Asked(Rc<Log>);

struct AskedControl {
    name: String,
    log: Rc<Log>,
}

impl AskedControl {
    fn say(&self, what: &str) {
        self.log.lines.borrow_mut().push(format!("{what} {}", self.name));
    }
}

impl EngineControl for AskedControl {
    fn as_any(&mut self) -> &mut dyn Any {
        self
    }

    fn prepare_perm(&mut self, perm: PermPair) -> GraphResult<()> {
        if self.log.refusing.borrow().as_ref() == Some(&self.name) {
            self.say("refuse");
            return Err(GraphError::Open(format!("{} has something against it", self.name)));
        }
        let unshared = !perm.shared;
        self.say(&if unshared.is_empty() {
            format!("prepare ({})", perm.perm)
        } else {
            format!("prepare ({} !{unshared})", perm.perm)
        });
        Ok(())
    }

    fn commit_perm(&mut self) {
        self.say("commit");
    }

    fn abort_perm(&mut self) {
        self.say("abort");
    }
}

#[async_trait(?Send)]
impl DriverType for Asked {
    fn name(&self) -> &'static str {
        "asked"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        for child in ["a", "b"] {
            context.optional_child(options, ChildName::from_static(child), ChildRole::DATA).await?;
        }
        let control = AskedControl { name: context.node_name(), log: self.0.clone() };
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(Null::new(NullOptions::default()).0), control: Box::new(control), read_only })
    }

    fn child_perm(&self, _role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        above
    }
}

/// A format that notes when it reads its header.
struct Reader(Rc<Log>);

#[async_trait(?Send)]
impl DriverType for Reader {
    fn name(&self) -> &'static str {
        "reader"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        context.require_child(options, ChildName::FILE, ChildRole::DATA | ChildRole::METADATA).await?;
        let control = AskedControl { name: context.node_name(), log: self.0.clone() };
        control.say("open");
        if options.take_bool("fail")?.unwrap_or(false) {
            return Err(GraphError::Open("no header".into()));
        }
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(Null::new(NullOptions::default()).0), control: Box::new(control), read_only })
    }
}

fn world() -> (World, Rc<Log>) {
    let (world, log) = (World::new(), Rc::new(Log::default()));
    world.gs.register(Rc::new(Asked(log.clone())));
    world.gs.register(Rc::new(Reader(log.clone())));
    (world, log)
}

/// `top` above `left` and `right`, both above `base`.
async fn diamond(world: &World) -> (NodeRef, NodeRef) {
    let base = world.add(r#"{"driver": "asked", "node-name": "base"}"#).await;
    world.add(r#"{"driver": "asked", "node-name": "left", "a": "base"}"#).await;
    world.add(r#"{"driver": "asked", "node-name": "right", "a": "base"}"#).await;
    let top = world.add(r#"{"driver": "asked", "node-name": "top", "a": "left", "b": "right"}"#).await;
    (top, base)
}

fn root(world: &World, perm: PermPair) -> RootRef {
    world.gs.new_root("root", ParentKind::Backend, perm, &world.gs.main_io())
}

/// The names in those lines that begin with `what`.
fn names(lines: &[String], what: &str) -> Vec<String> {
    let said = lines.iter().filter(|line| line.split(' ').next() == Some(what));
    said.filter_map(|line| line.rsplit(' ').next()).map(str::to_owned).collect()
}

#[test]
fn perm_3_drivers_are_asked_before_and_told_after() {
    let (world, log) = world();
    world.run_and_close(async {
        let (top, _base) = diamond(&world).await;
        assert_eq!(log.take(), [""; 0], "nobody needs anything yet");
        let root = root(&world, PermPair::new(READ | WRITE, !Perm::RESIZE));
        world.gs.attach_root(&root, Some(&top)).await.expect("nobody is in the way");
        let said = log.take();
        // Parents before children, each once; and all are asked before one is told.
        let asked = names(&said, "prepare");
        assert_eq!((asked[0].as_str(), asked[3].as_str(), asked.len()), ("top", "base", 4), "{said:?}");
        assert_eq!(names(&said, "commit"), asked);
        assert!(said[..4].iter().all(|line| line.starts_with("prepare (consistent read, write !resize) ")), "{said:?}");
        // The same again is no news.
        world.gs.set_root_perm(&root, PermPair::new(READ | WRITE, !Perm::RESIZE)).expect("it has that");
        assert_eq!(log.take(), [""; 0]);
        world.gs.set_root_perm(&root, loose(READ)).expect("that is less");
        let said = log.take();
        assert_eq!(names(&said, "prepare"), asked);
        assert!(said[..4].iter().all(|line| line.starts_with("prepare (consistent read) ")), "{said:?}");
        // A user that goes leaves nothing behind.
        world.gs.close_root(root).await;
        let said = log.take();
        assert!(said[..4].iter().all(|line| line.starts_with("prepare (none) ")), "{said:?}");
        assert_eq!(names(&said, "commit"), asked);
    });
}

#[test]
fn perm_3_one_refusal_takes_back_what_was_prepared_and_nothing_else() {
    let (world, log) = world();
    world.run_and_close(async {
        let (top, base) = diamond(&world).await;
        let root = root(&world, loose(READ));
        world.gs.attach_root(&root, Some(&top)).await.expect("nobody is in the way");
        let order = names(&log.take(), "prepare");
        let before = world.graph();
        for (at, name) in order.iter().enumerate() {
            log.refuse(Some(name));
            let refused = world.gs.set_root_perm(&root, loose(READ | WRITE));
            assert_eq!(message(refused), format!("{name} has something against it"));
            let said = log.take();
            assert_eq!(names(&said, "prepare"), order[..at], "{said:?}");
            assert_eq!(names(&said, "refuse"), std::slice::from_ref(name));
            let back: Vec<_> = order[..at].iter().rev().cloned().collect();
            assert_eq!(names(&said, "abort"), back, "{said:?}");
            assert_eq!((names(&said, "commit"), world.gs.root_perm(&root)), (vec![], loose(READ)));
            assert_eq!(world.graph(), before);
        }
        // Another root cannot come, a node cannot be opened above, and neither leaves anything.
        log.refuse(Some("base"));
        let other = self::root(&world, loose(WRITE));
        assert_eq!(message(world.gs.attach_root(&other, Some(&base)).await), "base has something against it");
        assert!(world.gs.root_node(&other).is_none());
        assert_eq!(world.graph(), before);
        log.refuse(None);
        log.take();
        world.gs.set_root_perm(&root, loose(READ | WRITE)).expect("nobody minds any more");
        assert_eq!(names(&log.take(), "commit"), order);
    });
}

#[test]
fn perm_3_a_node_that_comes_and_goes_asks_and_lets_go() {
    let (world, log) = world();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "asked", "node-name": "base"}"#).await;
        log.refuse(Some("base"));
        let refused = world.open(r#"{"driver": "fmt", "node-name": "image", "file": "base"}"#).await;
        assert_eq!(message(refused), "base has something against it");
        assert_eq!(log.take(), ["refuse base"]);
        assert_eq!((world.gs.nodes().len(), world.info(&base).parents.len()), (1, 0));
        log.refuse(None);
        let image =
            world.open(r#"{"driver": "fmt", "node-name": "image", "file": "base"}"#).await.expect("nobody minds");
        assert_eq!(log.take(), ["prepare (consistent read, write, resize !write, resize) base", "commit base"]);
        world.gs.close(image).await.expect("closed");
        assert_eq!(log.take(), ["prepare (none) base", "commit base"]);
    });
}

#[test]
fn perm_3_a_replacement_asks_both_sides_at_once() {
    let (world, log) = world();
    world.run_and_close(async {
        let old = world.add(r#"{"driver": "asked", "node-name": "old"}"#).await;
        let new = world.add(r#"{"driver": "asked", "node-name": "new"}"#).await;
        let root = root(&world, loose(WRITE));
        world.gs.attach_root(&root, Some(&old)).await.expect("nobody is in the way");
        log.take();
        log.refuse(Some("new"));
        let guard = world.gs.drain(&old).await;
        assert_eq!(message(world.gs.replace_node(&guard, &old, &new)), "new has something against it");
        let said = log.take();
        assert_eq!(names(&said, "abort"), names(&said, "prepare"), "what was asked first is told that it is not to be");
        assert!(world.gs.root_node(&root).is_some_and(|node| node.same(&old)));
        log.refuse(None);
        world.gs.replace_node(&guard, &old, &new).expect("nobody minds");
        let mut said = log.take();
        said.sort();
        assert_eq!(said, ["commit new", "commit old", "prepare (none) old", "prepare (write) new"]);
        drop(guard);
    });
}

#[test]
fn perm_3_of_a_node_that_is_shared_by_force_nothing_is_kept() {
    let (world, log) = world();
    world.run_and_close(async {
        let base =
            world.add(r#"{"driver": "asked", "node-name": "base", "read-only": true, "force-share": true}"#).await;
        let root = root(&world, PermPair::new(READ, READ));
        world.gs.attach_root(&root, Some(&base)).await.expect("nobody is in the way");
        assert_eq!(log.take(), ["prepare (consistent read) base", "commit base"]);
        // A format above it shares what it would not share otherwise.
        let image = world.open(r#"{"driver": "fmt", "node-name": "image", "read-only": true, "file": "base"}"#).await;
        let image = image.expect("it only reads");
        let edge = world.info(&image).children[0].2;
        assert_eq!(edge, loose(READ));
    });
}

#[test]
fn perm_3_a_change_from_inside_a_control_is_refused_not_a_panic() {
    let (world, _log) = world();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "asked", "node-name": "base"}"#).await;
        let root = root(&world, loose(READ));
        world.gs.attach_root(&root, Some(&base)).await.expect("nobody is in the way");
        let inside = world.gs.with_control(&base, |_: &mut AskedControl| world.gs.set_root_perm(&root, loose(WRITE)));
        assert_eq!(message(inside.expect("its own type")), "Block device base is in use");
        assert_eq!(world.gs.root_perm(&root), loose(READ));
    });
}

#[test]
fn perm_3_what_a_driver_reads_while_it_opens_is_its_own() {
    let (world, log) = world();
    world.run_and_close(async {
        let base = world.add(r#"{"driver": "asked", "node-name": "base"}"#).await;
        let taken = "prepare (consistent read, write, resize !write, resize) base";
        let failed = world.open(r#"{"driver": "reader", "node-name": "image", "file": "base", "fail": true}"#).await;
        assert_eq!(message(failed), "no header");
        assert_eq!(log.take(), [taken, "commit base", "open image", "prepare (none) base", "commit base"]);
        assert_eq!((world.info(&base).parents.len(), world.gs.nodes().len()), (0, 1));
        // An option that nobody knows is seen after the driver is done.
        let odd = world.open(r#"{"driver": "reader", "node-name": "image", "file": "base", "odd": true}"#).await;
        assert!(message(odd).contains("odd"));
        assert_eq!(log.take(), [taken, "commit base", "open image", "prepare (none) base", "commit base"]);
        let open = || world.open(r#"{"driver": "reader", "node-name": "image", "file": "base"}"#);
        let image = open().await.expect("nobody is in the way");
        assert_eq!(log.take(), [taken, "commit base", "open image"], "what is held goes over to the node");
        assert_eq!(world.info(&base).parents, ["node 'image' (uses node 'base' as 'file' child)"]);
        // Who is refused has read nothing, and is named as the node that it would be.
        let refused = world.open(r#"{"driver": "reader", "node-name": "other", "file": "base"}"#).await;
        let told = message(refused);
        assert!(told.contains("node 'other' (uses node 'base' as 'file' child)"), "{told}");
        assert!(told.contains("node 'image' (uses node 'base' as 'file' child)"), "{told}");
        assert_eq!(log.take(), [""; 0]);
        assert_eq!(world.info(&base).parents.len(), 1);
        // One that is on its way out is waited for.
        drop(image);
        let image = open().await.expect("it is gone");
        assert_eq!(names(&log.take(), "open"), ["image"]);
        world.gs.close(image).await.expect("closed");
    });
}
