//! Op blockers: who blocked what is told, nothing else is blocked, and they go with their guards.

mod common;

use block_common::{OpType, QapiEnum};
use block_gs::GraphError;
use common::{World, message};

#[test]
fn an_operation_is_blocked_until_its_last_blocker_goes() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let b = world.add(r#"{"driver": "leaf", "node-name": "b"}"#).await;
        let check = |op| world.gs.check_op(&a, op);
        check(OpType::Resize).expect("nobody has blocked it");
        let first = world.gs.block_op(&a, OpType::Resize, "the first job");
        let second = world.gs.block_op(&a, OpType::Resize, "the second job");
        assert_eq!(message(check(OpType::Resize)), "Node 'a' is busy: the first job (operation 'resize')");
        check(OpType::Eject).expect("another operation");
        world.gs.check_op(&b, OpType::Resize).expect("another node");
        drop(first);
        assert_eq!(message(check(OpType::Resize)), "Node 'a' is busy: the second job (operation 'resize')");
        assert_eq!(world.gs.blocked_ops(&a), [(OpType::Resize, "the second job".to_owned())]);
        drop(second);
        check(OpType::Resize).expect("nobody blocks it any more");
        assert!(world.gs.blocked_ops(&a).is_empty());
    });
}

#[test]
fn everything_is_blocked_but_the_exceptions() {
    let world = World::new();
    world.run_and_close(async {
        let a = world.add(r#"{"driver": "leaf", "node-name": "a"}"#).await;
        let blocker = world.gs.block_all_ops(&a, &[OpType::Dataplane, OpType::Stream], "a job");
        blocker.allow(OpType::Change);
        let open = [OpType::Dataplane, OpType::Stream, OpType::Change];
        for op in OpType::ALL.iter().copied() {
            match world.gs.check_op(&a, op) {
                Ok(()) => assert!(open.contains(&op), "{op}"),
                Err(GraphError::OpBlocked { op: blocked, .. }) => assert!(blocked == op && !open.contains(&op)),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(world.gs.blocked_ops(&a).len(), OpType::ALL.len() - open.len());
        drop(blocker);
        assert!(world.gs.blocked_ops(&a).is_empty());
    });
}

#[test]
fn a_blocker_outlives_its_node_and_its_block_layer() {
    let world = World::new();
    let blocker = world.run(async {
        let a = world.open(r#"{"driver": "leaf", "node-name": "a"}"#).await.expect("it opens");
        let blocker = world.gs.block_all_ops(&a, &[], "a job");
        world.gs.close(a).await.expect("a blocker is no user");
        // Its name is another node's by now.
        let a = world.open(r#"{"driver": "leaf", "node-name": "a"}"#).await.expect("it opens");
        world.gs.check_op(&a, OpType::Eject).expect("it was about another one");
        blocker
    });
    world.close();
    drop(world);
    blocker.allow(OpType::Eject);
    drop(blocker);
}
