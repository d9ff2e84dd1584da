//! The engine on images in memory: what every driver must do, on every kind of image; power cuts; faults.

#[path = "image/bed.rs"]
mod bed;

#[path = "image/disk.rs"]
mod disk;

#[path = "image/crash.rs"]
mod crash;

#[path = "image/faults.rs"]
mod faults;

#[path = "image/requests.rs"]
mod requests;
