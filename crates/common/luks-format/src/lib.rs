//! The LUKS formats as bytes: what a header says, whether that makes sense, and how the key of a disk comes out of a slot. Pure code: it reads and writes
//! nothing, and any thread may use it.
//!
//! Every field is checked on its way in: a malformed one is refused by name, and what a header asks for is bounded, so that nobody computes for hours or needs
//! gigabytes because of it. `docs/luks.md` has the byte maps; section names beside fields are those of the LUKS1 On-Disk Format Specification, version 1.2.3;
//! words for what LUKS2 has are those of the LUKS2 On-Disk Format Specification.
//!
//! Reading order: [`Header1`], [`Slot1`], [`Header1::unlock`], [`Header1::seal`], [`NewHeader1`]; [`Header2`], [`Slot2`], [`Header2::unlock`], [`Header2::seal`],
//! [`Header2::bytes`], [`NewHeader2`].

#![forbid(unsafe_code)]

mod error;
mod header1;
mod header2;
mod material;

pub use error::LuksError;
pub use header1::{Header1, NewHeader1, Sealed, Slot1, SlotState};
pub use header2::{Header2, HeaderCopy, Kdf, KdfCost, NewHeader2, Priority, Sealed2, Segment2, Slot2};
