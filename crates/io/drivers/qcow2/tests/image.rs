//! The engine on images in memory: what every driver must do, on every kind of image; power cuts; faults.

#[path = "image/bed.rs"]
mod bed;

#[path = "image/amend.rs"]
mod amend;

#[path = "image/bitmaps.rs"]
mod bitmaps;

#[path = "image/crash.rs"]
mod crash;

#[path = "image/cuts.rs"]
mod cuts;

#[path = "image/data_file.rs"]
mod data_file;

#[path = "image/discards.rs"]
mod discards;

#[path = "image/empty.rs"]
mod empty;

#[path = "image/encryption.rs"]
mod encryption;

#[path = "image/faults.rs"]
mod faults;

#[path = "image/field.rs"]
mod field;

#[path = "image/overlaps.rs"]
mod overlaps;

#[path = "image/requests.rs"]
mod requests;

#[path = "image/rules.rs"]
mod rules;

#[path = "image/snapshots.rs"]
mod snapshots;

#[path = "image/vmstate.rs"]
mod vmstate;
