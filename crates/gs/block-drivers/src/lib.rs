//! The global-state half of each driver, one file a driver: its options, how it is opened, what it asks of its children.
//!
//! The engines are crates of their own under `io/drivers`, usable without this one. Which image format a file has is asked of
//! [`block_common::probe_format`], and only where the caller allows guessing.

#![forbid(unsafe_code)]

mod blkdebug;
mod blklogwrites;
mod blkverify;
mod compress;
mod copy_before_write;
mod copy_on_read;
mod crypt;
mod file;
mod luks;
mod null;
mod preallocate;
mod qcow2;
mod quorum;
mod raw;
mod snapshot_access;
mod throttle;
mod told;

mod create;
mod image;
mod info;
mod snapshots;

pub use blkdebug::BlkdebugType;
pub use blklogwrites::BlklogwritesType;
pub use blkverify::BlkverifyType;
pub use block_blkdebug::{BlkdebugControl, Stop};
pub use block_blkverify::BlkverifyControl;
pub use block_copy_before_write::{CbwControl, CbwState, OnCbwError};
pub use block_file_posix::DiscardCounts;
pub use block_qcow2::{Qcow2Control, refuse_length, resize_failure};
pub use block_qcow2_format::Measured;
pub use compress::CompressType;
pub use copy_before_write::CopyBeforeWriteType;
pub use copy_on_read::CopyOnReadType;
pub use create::{
    Amend, CreateError, CreateJobOptions, CreateOption, CreateOptionKind, Measuring, MeasuringOf, NewImage,
    SlotOptions, amend_options, check_format, check_not_open, creation_options,
};
pub use crypt::slots::{SlotChange, SlotError};
pub use crypt::told::qcow2_specific;
pub use crypt::{LuksHeader, SlotInfo, VolumeInfo};
pub use file::{FileType, discard_counts, driver_of_path};
pub use image::{ImageOptions, open_image, open_options, open_temporary};
pub use info::{ImageTeller, ImageTold, Structure, file_name, full_backing_name, json_of};
pub use luks::{LuksImage, LuksType, change_slots};
pub use null::NullType;
pub use preallocate::PreallocateType;
pub use qcow2::{DATA_FILE, Qcow2Type, StoredNames, file_of};
pub use quorum::QuorumType;
pub use raw::RawType;
pub use snapshot_access::SnapshotAccessType;
pub use snapshots::{
    LiveError, Overlay, RenameError, SnapshotInfo, change_backing_file, check_device, check_snapshot, delete_snapshot,
    file_name_of, open_overlay, take_snapshot,
};
pub use throttle::ThrottleType;
pub use told::{TOLD, print_told};

use block_gs::GlobalState;
use std::rc::Rc;

/// Make every driver of this build known to `gs`.
#[doc(alias = "bdrv_init")]
pub fn register_all(gs: &GlobalState) {
    gs.register(Rc::new(NullType::COROUTINE));
    gs.register(Rc::new(NullType::CALLBACK));
    gs.register(Rc::new(FileType::FILE));
    gs.register(Rc::new(FileType::HOST_DEVICE));
    gs.register(Rc::new(RawType));
    gs.register(Rc::new(Qcow2Type(StoredNames::Open)));
    gs.register(Rc::new(LuksType));
    gs.register(Rc::new(BlkdebugType));
    gs.register(Rc::new(CopyOnReadType));
    gs.register(Rc::new(CopyBeforeWriteType));
    gs.register(Rc::new(SnapshotAccessType));
    gs.register(Rc::new(ThrottleType));
    gs.register(Rc::new(BlklogwritesType));
    gs.register(Rc::new(BlkverifyType));
    gs.register(Rc::new(CompressType));
    gs.register(Rc::new(PreallocateType));
    gs.register(Rc::new(QuorumType));
}
