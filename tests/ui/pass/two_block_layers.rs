// Two block layers in one process, each with its own capability, nodes and names: there is no static. One's guard is no
// guard in the other.
// (Review: one main thread a process, found out by asking, with another answer in each program.)

use crate::support::{Layer, open};
use block_gs::GraphError;

#[test]
fn what_is_one_layers_is_not_the_others() {
    let layers = [Layer::new(), Layer::new()];
    let [first, second] = &layers;
    first.main.run(async {
        let node = open(&first.gs, "driver=null-co,node-name=disk").await.expect("opens");
        assert!(matches!(second.gs.find_node("disk"), Err(GraphError::NotFound(_))));
        let section = first.gs.drain(&node).await;
        assert!(matches!(second.gs.replace_node(&section, &node, &node), Err(GraphError::NotDrained(_))));
        drop(section);
        first.gs.close(node).await.expect("closes");
    });
    second.main.run(async {
        let node = open(&second.gs, "driver=null-co,node-name=disk").await.expect("opens");
        second.gs.close(node).await.expect("closes");
    });
}
