// Migration's own thread inactivates every node, without the lock that the functions it calls rely on. The capability
// does not go to another thread; migration sends a message to the main loop.
// (Review: two such places were found when the assertions were added.)

use block_gs::GlobalState;

fn migrate(gs: GlobalState) {
    std::thread::spawn(move || {
        for node in gs.nodes() {
            println!("inactivating {}", node.name);
        }
    });
}

fn main() {}
