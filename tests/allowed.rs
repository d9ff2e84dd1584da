//! What must compile on the main loop, and work there: what the reviews took for a mistake and was none.

mod support;

#[path = "ui/pass/export_creation_is_global_state.rs"]
mod export_creation_is_global_state;
#[path = "ui/pass/main_loop_tasks_need_no_send.rs"]
mod main_loop_tasks_need_no_send;
#[path = "ui/pass/repoint_with_guard.rs"]
mod repoint_with_guard;
#[path = "ui/pass/two_block_layers.rs"]
mod two_block_layers;
