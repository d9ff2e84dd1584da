//! The qcow2 image format as bytes: header, tables, reference counts, snapshots, bitmaps. Pure code: it reads and writes nothing, and any thread may use it.
//!
//! What a byte means is decided here and nowhere else; where bytes come from and go to is the business of the driver's engine. Every
//! field of an image is checked on its way in, with checked arithmetic, into a type that cannot be wrong: a malformed one is
//! refused by name. `docs/formats/qcow2.md` has the byte maps; section names beside fields are those of the format's specification.
//!
//! Reading order: [`Geometry`], [`Header`], [`L2Entry`], [`RefcountBits`], [`Snapshot`], [`Bitmap`], [`Layout`].

#![forbid(unsafe_code)]

mod bitmap;
mod bytes;
mod entry;
mod error;
mod geometry;
mod header;
mod layout;
mod measure;
mod refcount;
mod rewrite;
mod snapshot;

pub use bitmap::{Bitmap, BitmapCluster, BitmapError, BitmapFlags, BitmapTableEntry};
pub use entry::{L1Entry, L2Entry, L2Kind, SUBCLUSTERS, SubclusterBits, SubclusterState};
pub use error::FormatError;
pub use geometry::Geometry;
pub use header::{
    AutoclearFeatures, BitmapsExtension, CompatibleFeatures, CompressionType, Extension, FeatureKind, FeatureName,
    Header, IncompatibleFeatures, Version, feature_names,
};
pub use layout::{Allocate, Encryption, Layout, LayoutError, NewImage, Step, Steps};
pub use measure::{MeasureOptions, Measured, UsedClusters};
pub use refcount::RefcountBits;
pub use rewrite::HeaderWrite;
pub use snapshot::{Snapshot, SnapshotError};
