//! Checking and repairing an image: who refers to each cluster, against what the reference counts say.
//!
//! This works on the image's file alone, with nothing else in flight and without the engine's caches. [`check`] counts every reference
//! that it finds, compares, and repairs what it was asked to. It neither opens files nor prints: what there is to say goes to a
//! [`Watch`] as it is found, for an image may have more wrong with it than fits into memory.
//!
//! *What an image can cost* (rule trust-3): each table is read once, however many others refer to it; the counts are kept for those parts
//! of the file that somebody refers to, and take [`MEMORY_MAX`] bytes at most.
//!
//! When an image is too absurd for all of it to be looked at, that is an error of the check, and nothing is repaired: what nobody has seen may
//! refer to anything.
//!
//! *Order of repairs* (rule qcow2-2): an entry that is cleared reaches the disk before a count goes down; new reference counts are whole, on
//! disk and somewhere else than the old ones, before the header names them. A power cut in between leaves the old or the new ones.
//!
//! Reading order: this file, `storage`, `counts`, `walk`, `tables`, `refcounts`, `rebuild`, `snapshots`, `copied`.

mod storage;

mod counts;

mod walk;

mod tables;

mod refcounts;

mod rebuild;

mod snapshots;

mod copied;

mod amend;

pub use amend::{AmendError, Amendment, amend};
pub use storage::Storage;

use crate::bitmaps::tell_of_stale;
use block_common::IoError;
use block_qcow2_format::{AutoclearFeatures, BitmapError, FormatError, IncompatibleFeatures, Version};
use std::fmt;
pub(crate) use storage::Image;
use walk::Walk;

/// The most memory that counts and lists of tables take, in bytes.
pub const MEMORY_MAX: u64 = 4 << 30;

/// What is repaired.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repair {
    /// Nothing. The file is not written to.
    #[default]
    None,
    /// Clusters that nobody refers to are freed.
    Leaks,
    /// Whatever can be.
    All,
}

impl Repair {
    /// Whether anything is written.
    pub const fn writes(self) -> bool {
        !matches!(self, Self::None)
    }
}

/// Who looks on.
pub trait Watch: Send {
    /// A line about something that is wrong, or was; in the field's words, without its end.
    fn message(&mut self, text: fmt::Arguments<'_>);
    /// So many of so many tables were looked at.
    fn progress(&mut self, _done: u64, _total: u64) {}
}

/// What came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What kept parts of the image from being checked.
    pub check_errors: u64,
    /// What is wrong and was not repaired.
    pub corruptions: u64,
    /// Clusters that are counted more often than they are referred to, and were not repaired.
    pub leaks: u64,
    /// What was wrong and was repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Where the last cluster ends that is in use, in bytes.
    pub image_end: u64,
    /// Clusters of the virtual disk.
    pub total_clusters: u64,
    /// Those of them that have a place.
    pub allocated_clusters: u64,
    /// Those that do not follow the one before, as all compressed ones do not.
    pub fragmented_clusters: u64,
    /// Those that are compressed.
    pub compressed_clusters: u64,
}

/// Why an image cannot be checked, or not be repaired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CheckError {
    /// The header makes no sense: nobody can open the image.
    #[error(transparent)]
    Header(#[from] FormatError),
    /// The bitmap directory makes no sense: nobody can open the image.
    #[error(transparent)]
    Bitmaps(#[from] BitmapError),
    /// A bitmap's table makes no sense: nobody can open the image.
    #[error("Could not read bitmap_table table from image for bitmap '{0}': Invalid argument")]
    BitmapTable(String),
    /// A snapshot has more extra data than anybody needs. Repairing all removes it.
    #[error("Too much extra metadata in snapshot table entry {0}")]
    SnapshotExtra(u32),
    /// The snapshot table is too long.
    #[error("Snapshot table is too big")]
    SnapshotsLarge,
    /// The file could not be read or written.
    #[error("{0}")]
    Io(#[from] IoError),
    /// Reference counts are so wrong that freeing clusters by them would destroy data: only repairing all helps.
    #[error("need to rebuild refcount structures")]
    NeedsRebuild,
    /// See [`MEMORY_MAX`].
    #[error("the image refers to too many places for its check to fit into memory")]
    TooLarge,
}

impl CheckError {
    /// Whether the image could not even be opened.
    pub const fn is_open(&self) -> bool {
        matches!(self, Self::Header(_) | Self::Bitmaps(_) | Self::BitmapTable(_))
    }
}

/// Check the image in `file`, which nobody else uses meanwhile. With a repair other than [`Repair::None`] the file has to be writable, and has to
/// be allowed to grow.
///
/// # Errors
/// [`CheckError`]; what was repaired until then stays repaired.
#[doc(alias = "bdrv_co_check")]
#[doc(alias = "bdrv_check")]
pub async fn check(file: Storage<'_>, repair: Repair, watch: &mut dyn Watch) -> Result<Report, CheckError> {
    let image = Image::open(file).await?;
    let header = image.header().await?;
    if let Storage::Root(_) = file {
        // Else whoever opens the image tells of it.
        tell_of_stale(&header);
    }
    let mut walk = Walk::new(image, header, repair, watch);
    walk.run().await?;
    Ok(walk.report)
}

impl Walk<'_> {
    /// All of it, in the order in which the field's tools go about it.
    async fn run(&mut self) -> Result<(), CheckError> {
        self.report.total_clusters = self.header.geometry.clusters_for(self.header.size);
        self.load_snapshots().await?;
        self.load_bitmaps().await?;
        self.load_refcounts().await?;
        self.protect();
        self.count_all().await?;
        self.settle_refcounts().await?;
        self.store_snapshots().await?;
        self.check_copied().await?;
        self.clear_bits().await?;
        self.report.image_end = self.image_end();
        Ok(())
    }

    /// The header's bits that say that something is wrong go when nothing is any more.
    async fn clear_bits(&mut self) -> Result<(), CheckError> {
        if self.header.version == Version::V2 || !self.repair.writes() || self.report.check_errors > 0 {
            return Ok(());
        }
        let mut bits = self.header.incompatible;
        // The counts are right by now, whatever else is not.
        bits.remove(IncompatibleFeatures::DIRTY);
        if self.report.corruptions == 0 {
            bits.remove(IncompatibleFeatures::CORRUPT);
        }
        let known = AutoclearFeatures::BITMAPS | AutoclearFeatures::DATA_FILE_RAW;
        let autoclear = if self.wrote { self.header.autoclear & known } else { self.header.autoclear };
        if (bits, autoclear) == (self.header.incompatible, self.header.autoclear) {
            return Ok(());
        }
        self.image.flush().await?;
        self.image.write(72, &bits.bits().to_be_bytes()).await?;
        self.image.write(88, &autoclear.bits().to_be_bytes()).await?;
        self.image.flush().await?;
        (self.header.incompatible, self.header.autoclear) = (bits, autoclear);
        Ok(())
    }
}
