// Activating a backend adds a handler to the list of those who want to know when the machine runs, from an export's
// thread. The list belongs to the main loop, and its type says so.
// (Review: nobody's assertion covered it; the bug would hardly ever show and never be reproduced.)

use block_gs::GlobalState;
use block_io::IoThreadHandle;
use std::cell::RefCell;

#[derive(Default)]
struct RunStateHandlers(RefCell<Vec<Box<dyn Fn(bool)>>>);

fn blk_root_activate(gs: &GlobalState, home: &IoThreadHandle) {
    let handlers = gs.extension::<RunStateHandlers>();
    home.spawn(async move {
        handlers.0.borrow_mut().push(Box::new(|running| println!("running: {running}")));
    });
}

fn main() {}
