// Tasks of the main loop hold the capability and nodes across their waits: they stay where they are. Only what is
// handed to an I/O thread must be able to leave.
// (The counterpart of `global_state_in_send_future`.)

use crate::support::{Layer, open};
use block_common::{AlignedBuf, ParentKind, Perm, PermPair};
use block_gs::GlobalState;
use std::rc::Rc;

async fn first_sector(gs: GlobalState, name: Rc<str>) -> Vec<u8> {
    let node = gs.find_node(&name).expect("there");
    let root = gs.new_root("", ParentKind::Backend, PermPair::new(Perm::CONSISTENT_READ, Perm::all()), &gs.main_io());
    gs.attach_root(&root, Some(&node)).await.expect("attaches");
    let (result, buf) = root.io().read(0, AlignedBuf::zeroed(512, 512).into_io()).await;
    result.expect("reads");
    let mut bytes = vec![1; 512];
    buf.expect("comes back").copy_to_slice(0, &mut bytes);
    gs.attach_root(&root, None).await.expect("detaches");
    bytes
}

#[test]
fn a_task_holds_nodes_across_its_waits() {
    let layer = Layer::new();
    layer.main.run(async {
        let gs = &layer.gs;
        let node = open(gs, "driver=null-co,node-name=disk,size=1048576,read-zeroes=on").await.expect("opens");
        let task = gs.main().spawn(first_sector(gs.clone(), "disk".into()));
        assert_eq!(task.join().await, [0; 512]);
        gs.close(node).await.expect("closes");
    });
}
