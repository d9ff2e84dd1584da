//! What must compile in the crate of a driver's engine, and work there: the other half of the boundary.

#[path = "ui/pass/ioctl_in_an_engine.rs"]
mod ioctl_in_an_engine;
#[path = "ui/pass/metadata_refresh.rs"]
mod metadata_refresh;
#[path = "ui/pass/probing_a_header.rs"]
mod probing_a_header;
#[path = "ui/pass/reading_flags.rs"]
mod reading_flags;
#[path = "ui/pass/work_beside_a_request.rs"]
mod work_beside_a_request;
