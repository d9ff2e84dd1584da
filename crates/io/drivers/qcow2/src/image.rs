//! An open image: what its parts share, and how it is opened.

use crate::bitmaps::Bitmaps;
use crate::cache::SliceCache;
use crate::check::{Repair, Storage, Watch, check};
use crate::discard::Emptied;
use crate::encryption::{Encryption, SECTOR};
use crate::locks::RangeLocks;
use crate::overlap::{OverlapChecks, Overlaps};
use crate::refcounts::{Class, Refcounts, Retired};
use crate::{TOLD, meta};
use arc_swap::ArcSwap;
use block_common::{BufPool, Errno, IoError, IoErrorKind, IoResult, Limits};
use block_crypt::SectorCipher;
use block_io::{Edge, Quiesced, Req, ThreadPool};
use block_qcow2_format::{
    AutoclearFeatures, BitmapError, CompatibleFeatures, CompressionType, FormatError, Geometry, Header,
    IncompatibleFeatures, L1Entry, L2Entry, L2Kind, Version,
};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// L2 tables in memory, in bytes, unless the user says otherwise: what the field's tools allow.
const L2_CACHE_MAX: u64 = 32 << 20;
/// A slice, in bytes, unless the user says otherwise.
const SLICE_BYTES: u64 = 4096;

/// Why an image cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Qcow2Error {
    /// Its header is wrong.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file did not tell what is in it.
    #[error("Could not read {what}: {error}")]
    Read {
        /// What was to be read.
        what: &'static str,
        /// What the file answered.
        error: IoError,
    },
    /// The file did not take what has to be in it while the image is open.
    #[error("Could not update {what}: {error}")]
    Update {
        /// What was to be written.
        what: &'static str,
        /// What the file answered.
        error: IoError,
    },
    /// A file that was to take the place of the image's own has something else in it.
    #[error("The new 'file' does not hold the image that is open")]
    OtherImage,
    /// The directory of bitmaps makes no sense.
    #[error(transparent)]
    Bitmaps(#[from] BitmapError),
    /// A bitmap's table makes no sense.
    #[error("Could not read bitmap_table table from image for bitmap '{name}': {error}")]
    BitmapTable {
        /// The bitmap.
        name: String,
        /// Why not.
        error: Errno,
    },
    /// A bitmap's bits could not be had.
    #[error("Could not read bitmap '{name}' from image: {error}")]
    Bitmap {
        /// The bitmap.
        name: String,
        /// Why not.
        error: Errno,
    },
    /// Somebody found it corrupt.
    #[error("qcow2: Image is corrupt; cannot be opened read/write")]
    Corrupt,
    /// It was not closed, and its reference counts could not be repaired.
    #[error("Could not repair dirty image: {0}")]
    Dirty(String),
    /// It is not the image that it was when it was opened for reading.
    #[error("The image was changed by somebody else while it was only read")]
    Changed,
    /// An option makes no sense.
    #[error("{0}")]
    Option(String),
    /// It is encrypted, and nobody has the key.
    #[error("Parameter 'encrypt.key-secret' is required for cipher")]
    Locked,
}

/// What an image's user may choose. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Room for L2 tables: `l2-cache-size`.
    pub l2_cache_size: Option<u64>,
    /// A slice of one: `l2-cache-entry-size`.
    pub l2_cache_entry_size: Option<u64>,
    /// Room for reference counts: `refcount-cache-size`.
    pub refcount_cache_size: Option<u64>,
    /// Room for both: `cache-size`.
    pub cache_size: Option<u64>,
    /// Reference counts reach the disk when there are too many changed ones, and when the image is closed; until then it is marked as dirty, and whoever
    /// opens it after a crash repairs it: `lazy-refcounts`. Without it, as the image says.
    pub lazy_refcounts: Option<bool>,
    /// Tell the host when a guest's discard frees a cluster: `pass-discard-request`.
    pub pass_discard_request: bool,
    /// The same for what snapshots had that are deleted, or the disk had before one was applied: `pass-discard-snapshot`.
    pub pass_discard_snapshot: bool,
    /// The same for what is freed because it is stored elsewhere now: `pass-discard-other`.
    pub pass_discard_other: bool,
    /// What a guest discards, or zeroes, keeps its place, for when it is written again: `discard-no-unref`. Version 3 only.
    pub discard_no_unref: bool,
    /// Which metadata a write is checked against before it: `overlap-check`.
    pub overlap_checks: OverlapChecks,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_size: None,
            lazy_refcounts: None,
            pass_discard_request: false,
            pass_discard_snapshot: true,
            pass_discard_other: false,
            discard_no_unref: false,
            overlap_checks: OverlapChecks::default(),
        }
    }
}

impl Qcow2Options {
    /// Whether counts are lazy with these options.
    fn check(&self, header: &Header) -> Result<bool, Qcow2Error> {
        let refused = |text: &str| Err(Qcow2Error::Option(text.into()));
        let lazy = self.lazy_refcounts.unwrap_or(header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS));
        if lazy && header.version < Version::V3 {
            return refused("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level");
        }
        if self.discard_no_unref && header.version < Version::V3 {
            return refused("discard-no-unref is only supported since qcow2 version 3");
        }
        Ok(lazy)
    }
}

/// What an image is made of.
#[derive(Debug)]
pub struct Qcow2Children {
    /// The image itself.
    pub file: Edge,
    /// Where guest data is, if that is not in the image.
    pub data: Option<Edge>,
    /// What has the content of unallocated clusters; the edge may lead nowhere.
    pub backing: Option<Edge>,
    /// What encrypts guest data, if the header says that it is. Without it an encrypted image can be described, and neither its data be read nor anything be written.
    pub cipher: Option<SectorCipher>,
}

/// Changes that wait for a flush.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    pub(crate) retired: Vec<Retired>,
    /// No entry on the disk names them.
    pub(crate) ripe: Vec<Retired>,
    /// Clusters that keep their places, and nothing there.
    pub(crate) emptied: Vec<Emptied>,
    /// The entries on the disk say so.
    pub(crate) emptied_ripe: Vec<Emptied>,
    pub(crate) l1_dirty: BTreeSet<u64>,
}

pub(crate) struct Shared {
    pub(crate) file: Edge,
    pub(crate) data: Option<Edge>,
    pub(crate) backing: Option<Edge>,
    pub(crate) geometry: Geometry,
    pub(crate) version: Version,
    pub(crate) compression: CompressionType,
    pub(crate) encryption: Option<Encryption>,
    /// A slice maps so many bytes of the virtual disk, as a power of two.
    slice_bits: AtomicU32,
    limits: RwLock<Limits>,
    length: AtomicU64,
    header: Mutex<Header>,
    /// One change of the header at a time.
    pub(crate) header_turn: tokio::sync::Mutex<()>,
    /// The active L1 table. Replaced and changed by who holds `tables`.
    pub(crate) l1: ArcSwap<Vec<AtomicU64>>,
    pub(crate) tables: tokio::sync::Mutex<()>,
    pub(crate) cache: SliceCache,
    /// Slices that are being read.
    pub(crate) loading: RangeLocks,
    /// Guest clusters whose entries are being changed.
    pub(crate) locks: RangeLocks,
    pub(crate) refcounts: tokio::sync::Mutex<Refcounts>,
    lists: Mutex<Lists>,
    bitmaps: Mutex<Bitmaps>,
    /// Where metadata lies.
    pub(crate) overlaps: Overlaps,
    /// One flush at a time.
    pub(crate) flushing: tokio::sync::Mutex<()>,
    /// One change of length at a time.
    pub(crate) resizing: tokio::sync::Mutex<()>,
    pub(crate) pool: ThreadPool,
    /// Memory for what is decompressed or copied.
    pub(crate) clusters: BufPool,
    options: RwLock<Qcow2Options>,
    /// Counts are not written with each flush.
    lazy: AtomicBool,
    /// It is not to be written any more.
    corrupt: AtomicBool,
    /// Whoever has it open may write to it.
    writable: AtomicBool,
    /// The image says that it is being written, and what that takes is in memory: see `claim`.
    pub(crate) claimed: AtomicBool,
    /// One claim at a time.
    pub(crate) claiming: tokio::sync::Mutex<()>,
    /// Its disk is a snapshot's, of which the header says nothing.
    pub(crate) shows_snapshot: AtomicBool,
    pub(crate) closed: AtomicBool,
}

/// The engine.
pub struct Qcow2(pub(crate) Arc<Shared>);

/// The engine's control half.
#[derive(Clone)]
pub struct Qcow2Control(pub(crate) Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Qcow2 {
    /// The header of the image in `file`: whoever opens it attaches what it names before. `req` is a token on the node that owns the edge.
    ///
    /// # Errors
    /// [`Qcow2Error`] says what is wrong with it.
    #[doc(alias = "qcow2_open")]
    pub async fn read_header(req: &Req, file: &Edge) -> Result<Header, Qcow2Error> {
        let failed = |error| Qcow2Error::Read { what: "qcow2 header", error };
        let prefix = meta::read(req, file, 0, Header::PREFIX).await.map_err(failed)?;
        let cluster_size = Header::cluster_size(&prefix)?;
        let there = file.length(req).map_err(failed)?.min(cluster_size);
        let cluster = meta::read(req, file, 0, there as usize).await.map_err(failed)?;
        Ok(Header::parse(&cluster)?)
    }

    /// Open the image with this header, for writing unless `read_only`. CPU work runs in `pool`. Reads the active L1 table and the
    /// table of reference counts, and nothing else.
    ///
    /// # Errors
    /// [`Qcow2Error`] says why it cannot be used.
    pub async fn open(
        req: &Req,
        children: Qcow2Children,
        header: Header,
        options: Qcow2Options,
        read_only: bool,
        pool: ThreadPool,
    ) -> Result<(Self, Qcow2Control), Qcow2Error> {
        let Qcow2Children { file, data, backing, cipher } = children;
        if !read_only && header.incompatible.contains(IncompatibleFeatures::CORRUPT) {
            return Err(Qcow2Error::Corrupt);
        }
        let encryption = Encryption::new(&header, cipher, read_only, &pool)?;
        let header = match header.incompatible.contains(IncompatibleFeatures::DIRTY) && !read_only {
            true => repaired(req, &file).await?,
            false => header,
        };
        let lazy = options.check(&header)?;
        let geometry = header.geometry;
        let read = |what| move |error| Qcow2Error::Read { what, error };
        let l1 =
            meta::read_table(req, &file, header.l1_offset, header.l1_size as usize).await.map_err(read("L1 table"))?;
        let caches = Caches::new(&geometry, header.size, options)?;
        let file_len = file.length(req).map_err(read("the file's length"))?;
        let clusters = file_len.max(header.size).div_ceil(geometry.cluster_size());
        let refcounts = Refcounts::new(header.refcount_bits, geometry.cluster_bits(), Vec::new(), caches.refcounts, 0);
        let entry_bytes = geometry.l2_entry_size() as usize;
        let shared = Arc::new(Shared {
            file,
            data,
            backing,
            geometry,
            version: header.version,
            compression: header.compression,
            encryption,
            slice_bits: AtomicU32::new(caches.slice_bits(&geometry)),
            limits: RwLock::new(Limits::NONE),
            length: AtomicU64::new(header.size),
            l1: ArcSwap::from_pointee(l1.into_iter().map(AtomicU64::new).collect()),
            tables: tokio::sync::Mutex::default(),
            cache: SliceCache::new(caches.slice as usize, entry_bytes, caches.l2),
            loading: RangeLocks::default(),
            locks: RangeLocks::default(),
            refcounts: tokio::sync::Mutex::new(refcounts),
            lists: Mutex::default(),
            bitmaps: Mutex::default(),
            overlaps: Overlaps::new(&geometry, clusters, options.overlap_checks),
            flushing: tokio::sync::Mutex::default(),
            resizing: tokio::sync::Mutex::default(),
            pool,
            clusters: BufPool::new(CLUSTER_ALIGNMENT as usize, CLUSTERS_MAX),
            options: RwLock::new(options),
            lazy: AtomicBool::new(lazy),
            corrupt: AtomicBool::new(header.incompatible.contains(IncompatibleFeatures::CORRUPT)),
            writable: AtomicBool::new(!read_only),
            claimed: AtomicBool::new(false),
            claiming: tokio::sync::Mutex::default(),
            shows_snapshot: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            header: Mutex::new(header),
            header_turn: tokio::sync::Mutex::default(),
        });
        shared.refresh_limits(req).map_err(read("the file's limits"))?;
        shared.load_bitmaps(req).await?;
        if !read_only {
            shared.take(req).await?;
        }
        Ok((Self(shared.clone()), Qcow2Control(shared)))
    }
}

/// A control that does not keep the image.
#[derive(Clone, Debug)]
pub struct WeakControl(Weak<Shared>);

impl WeakControl {
    /// The control, while there is an image.
    pub fn upgrade(&self) -> Option<Qcow2Control> {
        self.0.upgrade().map(Qcow2Control)
    }
}

/// Other options for an open image, which it is ready for: see [`Qcow2Control::prepare_reopen`].
#[derive(Clone, Copy, Debug)]
#[must_use = "nothing has changed yet: commit it"]
pub struct Qcow2Reopen {
    options: Qcow2Options,
    read_only: bool,
    lazy: bool,
    caches: Caches,
}

impl Qcow2Control {
    /// Get ready for other options, and for being written or only read. `req` is a token on the node, beside which nothing is in flight. What has to be on the disk
    /// by then is; nothing else has changed, and an image that goes on being written as it was needs to be told nothing.
    ///
    /// # Errors
    /// [`Qcow2Error`] says why it cannot have them, or not be written.
    pub async fn prepare_reopen(
        &self,
        req: &Req,
        options: Qcow2Options,
        read_only: bool,
    ) -> Result<Qcow2Reopen, Qcow2Error> {
        let shared = &self.0;
        let header = shared.header().clone();
        let lazy = options.check(&header)?;
        let caches = Caches::new(&header.geometry, header.size, options)?;
        let failed = |error| Qcow2Error::Update { what: "the image", error };
        if !shared.writable.load(Ordering::Relaxed) {
            if !read_only {
                shared.may_be_taken(req, options.overlap_checks).await?;
            }
        } else if read_only || shared.is_lazy() && !lazy || options.overlap_checks != shared.options().overlap_checks {
            shared.release(req).await.map_err(failed)?;
        } else if self.has_other_caches(caches) {
            shared.flush(req).await.map_err(failed)?;
        }
        Ok(Qcow2Reopen { options, read_only, lazy, caches })
    }

    fn has_other_caches(&self, caches: Caches) -> bool {
        Caches::new(&self.0.geometry, self.0.length(), self.0.options()).ok() != Some(caches)
    }

    /// Whether `file` holds the image that is open: its header is what this one's is. `req` is a token on the node, beside which nothing is in flight.
    ///
    /// # Errors
    /// [`Qcow2Error::OtherImage`] if it holds another one; [`Qcow2Error`] says why if it holds none.
    pub async fn check_same(&self, req: &Req, file: &Edge) -> Result<(), Qcow2Error> {
        let found = Qcow2::read_header(req, file).await?;
        if found == *self.0.header() { Ok(()) } else { Err(Qcow2Error::OtherImage) }
    }

    /// Have the options that were prepared.
    pub fn commit_reopen(&self, reopen: Qcow2Reopen, _proof: &Quiesced<'_>) {
        let shared = &self.0;
        let Qcow2Reopen { options, read_only, lazy, caches } = reopen;
        let was = std::mem::replace(&mut *shared.options.write().unwrap_or_else(PoisonError::into_inner), options);
        shared.writable.store(!read_only, Ordering::Relaxed);
        shared.lazy.store(lazy, Ordering::Relaxed);
        let before = Caches::new(&shared.geometry, shared.length(), was).ok();
        // Everything was flushed while it was prepared.
        if before != Some(caches) && !shared.cache.has_dirty() {
            shared.cache.reshape(caches.slice as usize, caches.l2);
            shared.slice_bits.store(caches.slice_bits(&shared.geometry), Ordering::Relaxed);
        }
        if let Ok(mut counts) = shared.refcounts.try_lock() {
            counts.set_room(caches.refcounts);
        }
    }

    /// The same, without keeping the image.
    pub fn downgrade(&self) -> WeakControl {
        WeakControl(Arc::downgrade(&self.0))
    }

    /// The header as it is now.
    pub fn header(&self) -> Header {
        self.0.header().clone()
    }

    /// Let go of tables in memory that were not used since the last time this was called: the field's `cache-clean-interval`.
    pub fn clean_cache(&self) {
        self.0.cache.clean();
    }
}

/// A number as the field writes it: nothing is nothing, whatever the base.
pub(crate) fn hex(number: u64) -> String {
    if number == 0 { "0".into() } else { format!("{number:#x}") }
}

/// The header of a dirty image, whose reference counts are right after this.
pub(crate) async fn repaired(req: &Req, file: &Edge) -> Result<Header, Qcow2Error> {
    struct Log<'a>(&'a str);
    impl Watch for Log<'_> {
        fn message(&mut self, text: fmt::Arguments<'_>) {
            tracing::warn!(target: TOLD, node = self.0, "{text}");
        }
    }
    let report = check(Storage::Edge(req, file), Repair::All, &mut Log(req.node_name())).await;
    let report = report.map_err(|error| Qcow2Error::Dirty(error.to_string()))?;
    if report.check_errors > 0 || report.corruptions > 0 {
        let left = report.check_errors + report.corruptions;
        return Err(Qcow2Error::Dirty(format!("{left} errors could not be repaired")));
    }
    Qcow2::read_header(req, file).await
}

/// At most so many bytes are kept for what is decompressed or copied while nobody uses them, at multiples of this many bytes.
pub(crate) const CLUSTER_ALIGNMENT: u32 = 4096;
const CLUSTERS_MAX: usize = 4 << 20;

/// How memory is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Caches {
    l2: u64,
    slice: u64,
    refcounts: u64,
}

impl Caches {
    /// How many bytes of the disk a slice maps, as a power of two.
    fn slice_bits(&self, geometry: &Geometry) -> u32 {
        geometry.cluster_bits() + (self.slice / geometry.l2_entry_size()).trailing_zeros()
    }

    fn new(geometry: &Geometry, size: u64, options: Qcow2Options) -> Result<Self, Qcow2Error> {
        let refused = |text: &str| Err(Qcow2Error::Option(text.into()));
        let cluster = geometry.cluster_size();
        let slice = options.l2_cache_entry_size.unwrap_or(SLICE_BYTES.min(cluster));
        if !(512..=cluster).contains(&slice) || !slice.is_power_of_two() {
            let text =
                format!("L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})");
            return Err(Qcow2Error::Option(text));
        }
        let refcounts_min = 4 * cluster;
        // All tables of the disk, and no more than that.
        let needed = (size.div_ceil(cluster) * geometry.l2_entry_size()).next_multiple_of(slice).max(slice);
        let l2_default = L2_CACHE_MAX.min(needed);
        let (l2, refcounts) = match (options.cache_size, options.l2_cache_size, options.refcount_cache_size) {
            (Some(_), Some(_), Some(_)) => {
                return refused("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time");
            }
            (Some(all), Some(l2), None) if l2 > all => return refused("l2-cache-size may not exceed cache-size"),
            (Some(all), None, Some(counts)) if counts > all => {
                return refused("refcount-cache-size may not exceed cache-size");
            }
            (Some(all), Some(l2), None) => (l2, all - l2),
            (Some(all), None, Some(counts)) => (all - counts, counts),
            (Some(all), None, None) => {
                let l2 = if all >= needed + refcounts_min { needed } else { all.saturating_sub(refcounts_min) };
                (l2, all - l2)
            }
            (None, l2, counts) => (l2.unwrap_or(l2_default), counts.unwrap_or(refcounts_min)),
        };
        Ok(Self { l2, slice, refcounts })
    }
}

impl Shared {
    pub(crate) fn limits(&self) -> Limits {
        *self.limits.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refresh_limits(&self, req: &Req) -> IoResult<()> {
        let file = self.file.limits(req)?;
        let data = self.data.as_ref().map(|data| data.limits(req)).transpose()?.unwrap_or(file);
        let size = self.geometry.cluster_size() as u32;
        let sector = if self.is_encrypted() { SECTOR as u32 } else { 1 };
        let limits = Limits {
            // Compressed data is taken apart and put together here; blocks of a backing file are its own business.
            request_alignment: file.request_alignment.max(data.request_alignment).max(sector),
            memory_alignment: file.memory_alignment.max(data.memory_alignment),
            transfer_optimal: size,
            discard_alignment: size,
            zero_alignment: self.geometry.subcluster_size() as u32,
            ..Limits::NONE
        };
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    /// Bytes of the virtual disk.
    pub(crate) fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    pub(crate) fn set_length(&self, len: u64) {
        self.length.store(len, Ordering::Release);
    }

    /// Where the guest's data is.
    #[inline]
    pub(crate) fn data_edge(&self) -> &Edge {
        self.data.as_ref().unwrap_or(&self.file)
    }

    /// These are the active L1 table's entries from now on, and what they name is known to be in use.
    pub(crate) fn replace_l1(&self, l1: Vec<u64>) {
        for entry in self.l1.load().iter().map(|entry| L1Entry::from_raw(entry.load(Ordering::SeqCst))) {
            entry.table().into_iter().for_each(|table| self.overlaps.remove_table(table));
        }
        for entry in l1.iter().map(|entry| L1Entry::from_raw(*entry)) {
            entry.table().into_iter().for_each(|table| self.overlaps.add_table(table));
        }
        self.l1.store(Arc::new(l1.into_iter().map(AtomicU64::new).collect()));
    }

    pub(crate) fn header(&self) -> MutexGuard<'_, Header> {
        lock(&self.header)
    }

    pub(crate) fn bitmaps(&self) -> MutexGuard<'_, Bitmaps> {
        lock(&self.bitmaps)
    }

    pub(crate) fn lists(&self) -> MutexGuard<'_, Lists> {
        lock(&self.lists)
    }

    /// Whether the data file is the virtual disk, byte for byte.
    pub(crate) fn data_is_raw(&self) -> bool {
        self.data.is_some() && self.header().autoclear.contains(AutoclearFeatures::DATA_FILE_RAW)
    }

    /// Whether the host is told what is freed.
    pub(crate) fn passes_discards(&self, class: Class) -> bool {
        let options = self.options();
        match class {
            Class::Request => options.pass_discard_request,
            Class::Snapshot => options.pass_discard_snapshot,
            Class::Other => options.pass_discard_other,
        }
    }

    /// Whether what a guest discards keeps its place.
    pub(crate) fn keeps_places(&self) -> bool {
        self.options().discard_no_unref
    }

    /// The options as they are now.
    pub(crate) fn options(&self) -> Qcow2Options {
        *self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether counts are not written with each flush.
    pub(crate) fn is_lazy(&self) -> bool {
        self.lazy.load(Ordering::Relaxed)
    }

    /// A slice maps so many bytes of the disk, as a power of two. That changes only while nothing is in flight.
    #[inline]
    pub(crate) fn slice_bits(&self) -> u32 {
        self.slice_bits.load(Ordering::Relaxed)
    }

    /// How long a slice is in bytes.
    pub(crate) fn slice_bytes(&self) -> u64 {
        self.geometry.l2_entry_size() << (self.slice_bits() - self.geometry.cluster_bits())
    }

    /// Whether it may be written, and is ready for it.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.claimed.load(Ordering::Acquire) && !self.corrupt.load(Ordering::Relaxed)
    }

    /// Whether it was found to be corrupt.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.corrupt.load(Ordering::Relaxed)
    }

    /// # Errors
    /// It was found to be corrupt (rule qcow2-5), or was opened for reading.
    pub(crate) fn writable(&self) -> IoResult<()> {
        match (self.writable.load(Ordering::Relaxed), self.corrupt.load(Ordering::Relaxed)) {
            (false, _) => Err(IoError::READ_ONLY),
            (true, true) => Err(IoError::new(Errno::EIO, IoErrorKind::BadImage)),
            (true, false) => Ok(()),
        }
    }

    /// Something in the image cannot be as it is: say so, and let nobody write any more. Returns the error for who found it.
    pub(crate) async fn corrupt(&self, req: &Req, what: String) -> IoError {
        let error = IoError::new(Errno::EIO, IoErrorKind::BadImage);
        if self.corrupt.swap(true, Ordering::Relaxed) {
            return error;
        }
        let node = req.node_name();
        if !self.writable.load(Ordering::Relaxed) {
            tracing::error!(
                target: TOLD,
                node,
                "qcow2: Image is corrupt: {what}; further non-fatal corruption events will be suppressed"
            );
            return error;
        }
        tracing::error!(target: TOLD, node, "qcow2: Marking image as corrupt: {what}; further corruption events will be suppressed");
        if self.version >= Version::V3 {
            let marked = self.change_header(req, |header| header.incompatible |= IncompatibleFeatures::CORRUPT).await;
            if let Err(error) = marked {
                tracing::error!(%error, "the image could not be marked as corrupt");
            }
        }
        error
    }

    /// An L2 entry that cannot be.
    pub(crate) async fn bad_entry(&self, req: &Req, offset: u64, entry: L2Entry) -> IoError {
        let index = self.geometry.cluster(offset) & (self.geometry.l2_entries() - 1);
        let place = format!("(L2 offset: {:#x}, L2 index: {})", self.l1_entry(offset).table().unwrap_or(0), hex(index));
        let what = match self.kind(entry) {
            L2Kind::Data(host) => format!("Cluster allocation offset {host:#x} unaligned {place}"),
            L2Kind::ZeroAllocated(host) => format!("Preallocated zero cluster offset {host:#x} unaligned {place}"),
            _ => format!("L2 entry {:#x} of guest offset {offset:#x} names no cluster", entry.raw()),
        };
        self.corrupt(req, what).await
    }

    /// Change the header, in memory and in the file. What stands behind its fixed fields stays as it is. It is durable with the next flush.
    pub(crate) async fn change_header(&self, req: &Req, change: impl FnOnce(&mut Header)) -> IoResult<()> {
        let _turn = self.header_turn.lock().await;
        let mut header = self.header().clone();
        change(&mut header);
        let bytes = header.to_bytes().map_err(|_| IoError::INVALID)?;
        let fixed = match header.version {
            Version::V2 => &bytes[..72],
            Version::V3 => &bytes[..104],
        };
        // The name of the backing file stays where it is.
        let mut fixed = fixed.to_vec();
        let name = meta::read(req, &self.file, 8, 12).await?;
        fixed[8..20].copy_from_slice(&name);
        if header.version == Version::V3 {
            // So do fields that a later version of the header may have.
            fixed.truncate(100);
        }
        meta::write(req, &self.file, 0, &fixed).await?;
        self.overlaps.mark_header(&header);
        *self.header() = header;
        Ok(())
    }

    /// Change the header and what stands behind its fixed fields, as `change_header` changes those. Whatever happens meanwhile, the image has
    /// the old one or the new one.
    pub(crate) async fn rewrite_header(&self, req: &Req, change: impl FnOnce(&mut Header)) -> IoResult<()> {
        let _turn = self.header_turn.lock().await;
        let mut header = self.header().clone();
        change(&mut header);
        let now = meta::read(req, &self.file, 0, self.geometry.cluster_size() as usize).await?;
        let writes = header.rewrite(&now).map_err(|_| IoError::INVALID)?;
        for (i, (offset, bytes)) in writes.iter().enumerate() {
            if i > 0 {
                self.file.flush(req).await?;
            }
            meta::write(req, &self.file, *offset, bytes).await?;
        }
        self.overlaps.mark_header(&header);
        *self.header() = header;
        Ok(())
    }

    /// Whoever writes an image clears the features that it does not keep up (rule qcow2-9).
    pub(crate) async fn clear_autoclear(&self, req: &Req) -> IoResult<()> {
        let known = AutoclearFeatures::DATA_FILE_RAW | AutoclearFeatures::BITMAPS;
        let (is_known, has_stale) = {
            let header = self.header();
            (known.contains(header.autoclear), header.has_stale_bitmaps)
        };
        match (is_known, has_stale) {
            (true, false) => return Ok(()),
            (false, false) => self.change_header(req, |header| header.autoclear &= known).await?,
            // A list that nobody reads any more goes, too.
            (_, true) => {
                let change = |header: &mut Header| {
                    header.autoclear &= known;
                    header.has_stale_bitmaps = false;
                };
                self.rewrite_header(req, change).await?;
            }
        }
        self.file.flush(req).await
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if !self.closed.load(Ordering::Relaxed) && self.cache.has_dirty() {
            tracing::warn!("a qcow2 image was dropped without being closed: what was not flushed is lost");
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {:?}", self.length(), self.geometry)
    }
}

impl fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qcow2({:?})", self.0)
    }
}

impl fmt::Debug for Qcow2Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Qcow2Control({:?})", self.0)
    }
}
