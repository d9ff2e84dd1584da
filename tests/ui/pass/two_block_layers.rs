// Two block layers in one process, each with its own capability, nodes and names: there is no static. One's guard is no
// guard in the other.
// (Review: one main thread a process, found out by asking, with another answer in each program.)

use crate::support::{Layer, open};
use block_gs::GraphError;

#[test]
fn what_is_one_layers_is_not_the_others() {
    let layers = [Layer::new(), Layer::new()];
    let [first, second] = &layers;
    let (disk, filter) = second.main.run(async {
        let disk = open(&second.gs, "driver=null-co,node-name=disk").await.expect("opens");
        let filter = open(&second.gs, "driver=toy-filter,file=disk").await.expect("opens");
        (disk, filter)
    });
    first.main.run(async {
        let node = open(&first.gs, "driver=null-co,node-name=disk").await.expect("opens");
        let section = first.gs.drain(&node).await;
        assert!(matches!(first.gs.node_info(&disk), Err(GraphError::NotFound(_))));
        assert!(matches!(second.gs.replace_node(&section, &disk, &filter), Err(GraphError::NotDrained(_))));
        drop(section);
        first.gs.close(node).await.expect("closes");
    });
    assert!(first.gs.find_node("disk").is_err() && second.gs.find_node("disk").is_ok());
    second.main.run(async {
        second.gs.close(filter).await.expect("closes");
        second.gs.close(disk).await.expect("closes");
    });
}
