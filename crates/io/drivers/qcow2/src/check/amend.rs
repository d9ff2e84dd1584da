//! Another version of the format, another width of reference counts, other features: changes of an image that nobody has open.
//!
//! Each of them is one write of the header, before which everything that it names is on disk. What was checked is the image as it is: one that is not in
//! order is not changed.

use super::counts::Counts;
use super::storage::Image;
use super::walk::Walk;
use super::{CheckError, Repair, Report, Storage, Watch, check};
use block_common::IoError;
use block_qcow2_format::{
    AutoclearFeatures, CompatibleFeatures, CompressionType, Header, IncompatibleFeatures, RefcountBits, Version,
    feature_names,
};

/// What is to be different. What is `None` stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amendment {
    /// The version of the format.
    pub version: Option<Version>,
    /// The width of reference counts.
    pub refcount_bits: Option<RefcountBits>,
    /// Whether reference counts are lazy.
    pub lazy_refcounts: Option<bool>,
    /// The name of the data file that is to stand in the image; empty for none.
    pub data_file: Option<Vec<u8>>,
    /// Whether the data file is the disk, byte for byte. It cannot become so.
    pub data_file_raw: Option<bool>,
}

impl Amendment {
    /// Whether an image with this header can be amended so, as far as that shows.
    ///
    /// # Errors
    /// [`AmendError`]
    pub fn check(&self, header: &Header) -> Result<(), AmendError> {
        refuse(header, self)
    }
}

/// Why an image was not amended. The texts are the field's, where it has any.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AmendError {
    /// It could not be looked at.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// It is not in order.
    #[error("The image has errors; check and repair it first")]
    Errors,
    /// It was found to be corrupt.
    #[error("qcow2: Image is corrupt; cannot be opened read/write")]
    Corrupt,
    /// Version 2 has no lazy counts.
    #[error("Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)")]
    Lazy,
    /// Version 2 has counts of 16 bits.
    #[error("Refcount widths other than 16 bits require compatibility level 1.1 or above (use compat=1.1 or greater)")]
    Width,
    /// It would have to be 16 bits first.
    #[error("compat=0.10 requires refcount_bits=16")]
    DowngradeWidth,
    /// Version 2 has no data files.
    #[error("Cannot downgrade an image with a data file")]
    DowngradeDataFile,
    /// Version 2 has no such features.
    #[error("Cannot downgrade an image with incompatible features {0:#x} set")]
    DowngradeFeatures(u64),
    /// Version 2 does not know how long the disk was at a snapshot.
    #[error("Internal snapshots prevent downgrade of image")]
    DowngradeSnapshots,
    /// Version 2 cannot tell that bitmaps are stale.
    #[error("Cannot downgrade an image with persistent bitmaps; remove them first")]
    DowngradeBitmaps,
    /// Version 2 has no zero clusters.
    #[error("Downgrading an image whose snapshots have zero clusters is not built yet")]
    DowngradeZeroes,
    /// A count is too large.
    #[error(
        "Cannot decrease refcount entry width to {bits} bits: Cluster at offset {offset:#x} has a refcount of {count}"
    )]
    Narrow {
        /// The width that was wanted.
        bits: u32,
        /// The cluster's place.
        offset: u64,
        /// Its count.
        count: u64,
    },
    /// There is no data file whose name could be another.
    #[error("data-file can only be set for images that use an external data file")]
    NoDataFile,
    /// What is in the data file was not written there for that.
    #[error("data-file-raw cannot be set on existing images")]
    DataFileRaw,
    /// The names do not fit into the first cluster.
    #[error("Not enough space in the image header")]
    Header,
}

impl From<IoError> for AmendError {
    fn from(error: IoError) -> Self {
        Self::Check(error.into())
    }
}

/// Amend the image in `file`, which nobody else uses meanwhile, which is writable and may grow. Zero clusters of the disk itself have to be
/// [gone](crate::Qcow2Control::expand_zeroes) before the version goes down.
///
/// # Errors
/// [`AmendError`]. The image is valid then, and may have changed in part.
#[doc(alias = "bdrv_amend_options")]
pub async fn amend(file: Storage<'_>, change: &Amendment, watch: &mut dyn Watch) -> Result<(), AmendError> {
    let mut header = Image::open(file).await?.header().await?;
    refuse(&header, change)?;
    if header.incompatible.contains(IncompatibleFeatures::DIRTY) {
        in_order(&check(file, Repair::All, watch).await?)?;
        header = Image::open(file).await?.header().await?;
    }
    if change.version == Some(Version::V3) && header.version < Version::V3 {
        upgrade(file, watch).await?;
    }
    if let Some(bits) = change.refcount_bits.filter(|bits| *bits != header.refcount_bits) {
        set_width(file, bits, watch).await?;
    }
    let is_down = change.version == Some(Version::V2);
    let now = Image::open(file).await?.header().await?;
    let mut wanted = now.clone();
    if let Some(lazy) = change.lazy_refcounts {
        wanted.compatible.set(CompatibleFeatures::LAZY_REFCOUNTS, lazy);
    }
    if let Some(name) = &change.data_file {
        wanted.data_file = Some(name.clone()).filter(|name| !name.is_empty());
    }
    if change.data_file_raw == Some(false) {
        wanted.autoclear -= AutoclearFeatures::DATA_FILE_RAW;
    }
    if is_down && now.version > Version::V2 {
        let walk = walked(file, watch).await?;
        if walk.zero_clusters > 0 {
            return Err(AmendError::DowngradeZeroes);
        }
        if walk.snapshots.list.iter().any(|snapshot| snapshot.disk_size.is_some_and(|size| size != now.size)) {
            return Err(AmendError::DowngradeSnapshots);
        }
        wanted.version = Version::V2;
        wanted.features = Vec::new();
        wanted.compatible = CompatibleFeatures::empty();
    }
    if wanted != now { put_header(file, &wanted).await } else { Ok(()) }
}

/// What cannot be, before anything is changed.
fn refuse(header: &Header, change: &Amendment) -> Result<(), AmendError> {
    if header.incompatible.contains(IncompatibleFeatures::CORRUPT) {
        return Err(AmendError::Corrupt);
    }
    let version = change.version.unwrap_or(header.version);
    if version < Version::V3 && change.lazy_refcounts == Some(true) {
        return Err(AmendError::Lazy);
    }
    if version < Version::V3 && change.refcount_bits.is_some_and(|bits| bits != RefcountBits::DEFAULT) {
        return Err(AmendError::Width);
    }
    if change.data_file.is_some() && !header.incompatible.contains(IncompatibleFeatures::DATA_FILE) {
        return Err(AmendError::NoDataFile);
    }
    if change.data_file_raw == Some(true) && !header.autoclear.contains(AutoclearFeatures::DATA_FILE_RAW) {
        return Err(AmendError::DataFileRaw);
    }
    if version == header.version || version > Version::V2 {
        return Ok(());
    }
    if header.incompatible.contains(IncompatibleFeatures::DATA_FILE) {
        return Err(AmendError::DowngradeDataFile);
    }
    let features = header.incompatible - IncompatibleFeatures::DIRTY;
    if !features.is_empty() || header.compression != CompressionType::Zlib {
        return Err(AmendError::DowngradeFeatures(features.bits()));
    }
    if header.bitmaps.is_some() {
        return Err(AmendError::DowngradeBitmaps);
    }
    let bits = change.refcount_bits.unwrap_or(header.refcount_bits);
    if bits == RefcountBits::DEFAULT { Ok(()) } else { Err(AmendError::DowngradeWidth) }
}

fn in_order(report: &Report) -> Result<(), AmendError> {
    if report.corruptions + report.check_errors == 0 { Ok(()) } else { Err(AmendError::Errors) }
}

/// A walk that has counted every reference.
async fn walked<'a>(file: Storage<'a>, watch: &'a mut dyn Watch) -> Result<Walk<'a>, AmendError> {
    let image = Image::open(file).await?;
    let header = image.header().await?;
    let mut walk = Walk::new(image, header, Repair::None, watch);
    walk.load_snapshots().await?;
    walk.load_bitmaps().await?;
    walk.load_refcounts().await?;
    walk.count_all().await?;
    in_order(&walk.report)?;
    Ok(walk)
}

/// Version 3: with a table of snapshots that says how long the disk was, as version 2 had it for all of them.
async fn upgrade(file: Storage<'_>, watch: &mut dyn Watch) -> Result<(), AmendError> {
    let mut walk = walked(file, watch).await?;
    let now = walk.header.clone();
    if now.snapshots > 0 {
        for snapshot in &mut walk.snapshots.list {
            let _ = snapshot.disk_size.get_or_insert(now.size);
        }
        walk.snapshots.is_changed = true;
        walk.store_snapshots().await?;
    }
    let now = walk.header.clone();
    let features = if now.features.is_empty() { feature_names() } else { now.features.clone() };
    let mut wanted = Header { version: Version::V3, features, ..now.clone() };
    if wanted.to_bytes().is_err() {
        // Names of features are for people.
        wanted.features = Vec::new();
    }
    put_header(file, &wanted).await
}

/// Reference counts of another width, all of them new.
async fn set_width(file: Storage<'_>, bits: RefcountBits, watch: &mut dyn Watch) -> Result<(), AmendError> {
    let mut walk = walked(file, watch).await?;
    let cluster_bits = walk.geometry().cluster_bits();
    let mut counts = Counts::new(bits, cluster_bits);
    let page_bits = walk.counts.page_bits();
    for key in walk.counts.keys() {
        for cluster in key << page_bits..(key + 1) << page_bits {
            let count = walk.counts.get(cluster);
            if count > bits.max() {
                return Err(AmendError::Narrow { bits: bits.bits(), offset: cluster << cluster_bits, count });
            }
            if count > 0 {
                counts.set(cluster, count)?;
            }
        }
    }
    walk.set_width(bits, counts);
    walk.rebuild_refcounts(0).await?;
    Ok(())
}

/// Let the first cluster be what `wanted` says. Whatever happens meanwhile, it has the old header or this one.
async fn put_header(file: Storage<'_>, wanted: &Header) -> Result<(), AmendError> {
    let image = Image::open(file).await?;
    let now = image.read(0, wanted.geometry.cluster_size()).await?;
    for (offset, bytes) in wanted.rewrite(&now).map_err(|_| AmendError::Header)? {
        image.write(offset, &bytes).await?;
        image.flush().await?;
    }
    Ok(())
}
