//! Threads by name: who uses a node is served where it was said of the node, moved while nothing is in flight, and a thread that somebody uses stays.

mod common;

use block_common::{ParentKind, Perm, PermPair};
use block_gs::{GlobalOptions, GlobalState, IoThreadRef, MainLoop, NodeRef, RootRef};
use block_io::IoThreadOptions;
use common::{World, drivers, json_options, message};

fn world() -> World {
    let main = MainLoop::new().expect("descriptors");
    let main_io = IoThreadOptions::named("test-io");
    let options = GlobalOptions { main_io, io_threads: true, ..GlobalOptions::default() };
    let gs = GlobalState::new(&main, options).expect("an I/O thread");
    let leaves = drivers::register(&gs);
    World { gs, main, leaves }
}

async fn thread(gs: &GlobalState, id: &str) -> IoThreadRef {
    let options = json_options(&format!(r#"{{"qom-type": "iothread", "id": "{id}"}}"#));
    gs.add_object(options).await.expect("a thread");
    gs.io_thread(id).expect("it is there")
}

async fn root(gs: &GlobalState, kind: ParentKind, node: &NodeRef) -> RootRef {
    let root = gs.new_root("r", kind, PermPair::new(Perm::empty(), Perm::all()), &gs.node_home(node));
    gs.attach_root(&root, Some(node)).await.expect("it attaches");
    root
}

#[test]
fn users_move_with_their_nodes() {
    let world = world();
    world.run_and_close(async {
        let gs = &world.gs;
        let leaf = world.add(r#"{"driver": "leaf", "node-name": "leaf"}"#).await;
        let above = world.add(r#"{"driver": "pass", "node-name": "above", "file": "leaf"}"#).await;
        let io = thread(gs, "io").await;
        let job = root(gs, ParentKind::Job, &above).await;
        assert!(job.io().home().same(&gs.main_io()));
        // Those above are joined to it, however they are.
        gs.set_node_home(&leaf, Some(&io), false).await.expect("no backend is in the way");
        assert!(job.io().home().same(&io.handle()) && gs.node_home(&above).same(&io.handle()));
        // One that comes later is there from the start, and keeps the thread.
        let late = root(gs, ParentKind::Backend, &above).await;
        assert!(late.io().home().same(&io.handle()));
        let refused = gs.set_node_home(&above, None, false).await;
        let words =
            "Node above is associated with a BlockBackend and could be in use (use force=true to override this check)";
        assert_eq!(message(refused), words);
        // Only who uses the node itself is asked for.
        gs.set_node_home(&leaf, None, false).await.expect("the backend is not the leaf's");
        gs.set_node_home(&above, Some(&io), true).await.expect("it is forced");
        assert!(late.io().home().same(&io.handle()));
        drop(io);
        assert_eq!(message(gs.remove_object("io")), "object 'io' is in use, can not be deleted");
        gs.set_node_home(&above, None, true).await.expect("it is forced");
        assert!(late.io().home().same(&gs.main_io()));
        gs.remove_object("io").expect("nobody uses it");
        gs.close_root(job).await;
        gs.close_root(late).await;
    });
}

#[test]
fn requests_go_on_where_their_users_are_moved_to() {
    let world = world();
    world.run_and_close(async {
        let gs = &world.gs;
        let leaf = world.add(r#"{"driver": "leaf", "node-name": "leaf"}"#).await;
        let threads = [thread(gs, "a").await, thread(gs, "b").await];
        let user = gs.new_root("r", ParentKind::Backend, PermPair::new(Perm::all(), Perm::all()), &gs.main_io());
        gs.attach_root(&user, Some(&leaf)).await.expect("it attaches");
        let io = user.io().clone();
        let writing = gs.main().spawn(async move {
            for at in 0..200 {
                let buf = block_common::AlignedBuf::zeroed(4096, 4096).into_io();
                io.write(at % 8 * 4096, buf, block_common::RequestFlags::empty()).await.0.expect("a write");
            }
        });
        for turn in 0..20 {
            gs.set_node_home(&leaf, Some(&threads[turn % 2]), true).await.expect("it is forced");
        }
        writing.join().await;
        gs.close_root(user).await;
    });
}
