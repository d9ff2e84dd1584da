//! What must compile in the crate of a device model, an export's data path or a job's `run`, and work there on any
//! thread.

#[path = "support/disk.rs"]
mod disk;

#[path = "ui/pass/cancelling_without_waiting.rs"]
mod cancelling_without_waiting;
#[path = "ui/pass/copy_engine_in_run.rs"]
mod copy_engine_in_run;
#[path = "ui/pass/error_policy_from_a_completion.rs"]
mod error_policy_from_a_completion;
#[path = "ui/pass/ioctl_from_a_device_thread.rs"]
mod ioctl_from_a_device_thread;
#[path = "ui/pass/reading_what_requests_are_bound_by.rs"]
mod reading_what_requests_are_bound_by;
#[path = "ui/pass/scsi_command_emulator.rs"]
mod scsi_command_emulator;
#[path = "ui/pass/truncate_by_an_export_that_holds_resize.rs"]
mod truncate_by_an_export_that_holds_resize;
#[path = "ui/pass/upcall_asks_for_resize.rs"]
mod upcall_asks_for_resize;
