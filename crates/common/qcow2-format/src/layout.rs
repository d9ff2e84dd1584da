//! New images: from what is asked for to the bytes of the file, piece by piece. Who writes them is not decided here.
//!
//! Tables are made while they are asked for: of an image with a terabyte of allocated clusters there is never more in memory than a
//! table of each kind. What an encrypted image's header for keys says is the caller's business; here it gets a place.

mod space;

use crate::header::{self, AutoclearFeatures, CompatibleFeatures, Header, IncompatibleFeatures, Version};
use crate::{CompressionType, FormatError, Geometry, L1Entry, L2Entry, RefcountBits};
use space::{Left, Space};
use std::collections::VecDeque;
use std::fmt;

/// Lengths of virtual disks are multiples of this many bytes.
const SECTOR: u64 = 512;
/// Up to this cluster size the names of features have no room in the first cluster.
const FEATURE_NAMES_CLUSTER_BITS: u32 = 12;
/// Bytes of tables that are written at a time.
const PIECE: u64 = 64 << 10;

/// How much of a new image is allocated from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Allocate {
    /// Nothing of the guest's.
    #[default]
    Nothing,
    /// All L2 tables, with clusters for all data; these stay holes of the file.
    Tables,
    /// The same, and the clusters have their space, in one piece.
    Space,
}

/// How a new image's data will be encrypted.
#[derive(Clone, PartialEq, Eq)]
pub enum Encryption {
    /// As of old: with a password for a key, of which the image says nothing.
    Aes,
    /// As the header says that is stored with the image.
    Luks {
        /// Bytes that the header takes, key material included.
        len: u64,
        /// What is in it at first, from its beginning on; the rest is zeroes.
        bytes: Vec<u8>,
    },
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aes => f.write_str("Aes"),
            Self::Luks { len, .. } => write!(f, "Luks({len} bytes)"),
        }
    }
}

/// What a new image shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// The version.
    pub version: Version,
    /// Bytes of the virtual disk; rounded up to whole sectors.
    pub size: u64,
    /// Bytes of a cluster.
    pub cluster_size: u64,
    /// Width of reference counts.
    pub refcount_bits: u64,
    /// L2 entries with subclusters.
    pub extended_l2: bool,
    /// How compressed clusters will be compressed.
    pub compression: CompressionType,
    /// Reference counts may be put off.
    pub lazy_refcounts: bool,
    /// The name of the file that the guest's data is in.
    pub data_file: Option<Vec<u8>>,
    /// That file is the virtual disk, byte for byte.
    pub data_file_raw: bool,
    /// The backing file's name.
    pub backing_file: Option<Vec<u8>>,
    /// The backing file's format.
    pub backing_format: Option<Vec<u8>>,
    /// What is allocated. Of an encrypted image nothing is written there, so it reads as what zeroes decrypt to.
    pub allocate: Allocate,
    /// How data is encrypted, if it is.
    pub encryption: Option<Encryption>,
}

impl Default for NewImage {
    fn default() -> Self {
        Self {
            version: Version::V3,
            size: 0,
            cluster_size: 64 << 10,
            refcount_bits: 16,
            extended_l2: false,
            compression: CompressionType::Zlib,
            lazy_refcounts: false,
            data_file: None,
            data_file_raw: false,
            backing_file: None,
            backing_format: None,
            allocate: Allocate::Nothing,
            encryption: None,
        }
    }
}

/// Why there is no such image. The texts are the field's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A cluster size that cannot be.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// With subclusters, clusters are at least 16 KiB.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ClusterSizeExtended,
    /// A width of reference counts that cannot be.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Something that only version 3 has.
    #[error("{0} compatibility level 1.1 {1} (use version=v3 or greater)")]
    Version(&'static str, &'static str),
    /// Preallocated clusters would hide the backing file.
    #[error("Backing file and preallocation can only be used at the same time if extended_l2 is on")]
    BackingPreallocated,
    /// A format without a file.
    #[error("Backing format cannot be used without backing file")]
    BackingFormatAlone,
    /// Nothing that could be raw.
    #[error("data-file-raw requires data-file")]
    DataFileRawAlone,
    /// A raw data file holds the whole disk.
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    DataFileRawBacking,
    /// The tables cannot describe so large a disk.
    #[error("The image size is too large (try using a larger cluster size)")]
    SizeTooBig,
    /// The backing file's name is none.
    #[error("Could not assign backing file '{name}' with format '{format}': Invalid argument")]
    BackingLong {
        /// The name.
        name: String,
        /// The format.
        format: String,
    },
    /// The backing file's name does not fit into the first cluster.
    #[error("Could not assign backing file '{name}' with format '{format}': No space left on device")]
    BackingNoRoom {
        /// The name.
        name: String,
        /// The format.
        format: String,
    },
    /// The header is longer than a cluster.
    #[error("Could not write the header: {0}")]
    Header(FormatError),
    /// More bytes for the encryption's header than it has.
    #[error("The encryption header has {got} bytes, and there is room for {len}")]
    EncryptionHeader {
        /// How many there are.
        got: usize,
        /// How many it has.
        len: u64,
    },
}

/// Something to do to the file of a new image, which is empty at first. Whatever is not mentioned reads as zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Let the file end here, and have its space from here on for so many bytes. Comes first if it comes.
    Space {
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Write these bytes.
    Write {
        /// Where in the file, in bytes.
        offset: u64,
        /// What.
        bytes: Vec<u8>,
    },
    /// Write zeroes, so that the file has space there.
    Zeroes {
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// The file's length in bytes. It may have it already.
    Length(u64),
}

/// A new image that can be: its header, and where everything lies.
#[derive(Clone, Debug)]
pub struct Layout {
    image: NewImage,
    geometry: Geometry,
    refcount: RefcountBits,
    header: Vec<u8>,
    length: u64,
}

impl Layout {
    /// Check what is asked for, and find a place for everything.
    ///
    /// # Errors
    /// [`LayoutError`]: the first thing that cannot be, in the order of the field's tools.
    pub fn new(mut image: NewImage) -> Result<Self, LayoutError> {
        let (geometry, refcount) = check(&image)?;
        image.size = image.size.checked_next_multiple_of(SECTOR).ok_or(LayoutError::SizeTooBig)?;
        if image.size > geometry.size_max() {
            return Err(LayoutError::SizeTooBig);
        }
        let mut layout = Self { image, geometry, refcount, header: Vec::new(), length: 0 };
        // A first time without the tables' bytes: it ends with every place known.
        let mut walk = Walk::new(&layout);
        walk.start()?;
        while walk.next_table()?.is_some() {
            walk.left.clear();
        }
        walk.take_crypto()?;
        let (length, places) = (walk.length(), walk.places());
        layout.header = layout.make_header(places)?;
        layout.length = length;
        Ok(layout)
    }

    /// Bytes of the virtual disk, in whole sectors.
    pub fn size(&self) -> u64 {
        self.image.size
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the data file, if there is one: whole clusters or subclusters, where they are allocated.
    pub fn data_length(&self) -> u64 {
        match self.has_tables() {
            true => self.image.size.next_multiple_of(self.geometry.subcluster_size()),
            false => self.image.size,
        }
    }

    /// Whether the disk reads as zeroes where nothing is below it. Data that is allocated and encrypted reads as what zeroes decrypt to; a subcluster that nobody wrote to is not
    /// there.
    pub fn is_zero(&self) -> bool {
        self.image.encryption.is_none() || !self.has_tables() || self.geometry.is_extended()
    }

    /// What is to be done, in an order in which the file is not an image until the last write.
    pub fn steps(&self) -> Steps<'_> {
        Steps { layout: self, walk: Walk::new(self), stage: Stage::Start, ready: VecDeque::new() }
    }

    /// Whether there are L2 tables from the start. A raw data file is described in full.
    fn has_tables(&self) -> bool {
        self.image.allocate != Allocate::Nothing || self.image.data_file_raw
    }

    fn bytes_of(&self, clusters: u64) -> u64 {
        clusters << self.geometry.cluster_bits()
    }

    fn l1_entries(&self) -> u64 {
        self.geometry.l1_entries_for(self.image.size)
    }

    /// Bytes of the encryption's header, if there is one.
    fn crypto_len(&self) -> Option<u64> {
        match self.image.encryption {
            Some(Encryption::Luks { len, .. }) => Some(len),
            Some(Encryption::Aes) | None => None,
        }
    }

    fn make_header(&self, Places { l1, table, crypto }: Places) -> Result<Vec<u8>, LayoutError> {
        let image = &self.image;
        let mut incompatible = IncompatibleFeatures::empty();
        incompatible.set(IncompatibleFeatures::DATA_FILE, image.data_file.is_some());
        incompatible.set(IncompatibleFeatures::COMPRESSION, image.compression != CompressionType::Zlib);
        incompatible.set(IncompatibleFeatures::EXTENDED_L2, image.extended_l2);
        let mut compatible = CompatibleFeatures::empty();
        compatible.set(CompatibleFeatures::LAZY_REFCOUNTS, image.lazy_refcounts);
        let mut autoclear = AutoclearFeatures::empty();
        autoclear.set(AutoclearFeatures::DATA_FILE_RAW, image.data_file_raw);
        // Cut as the field's tools do it: an image with a longer one cannot be opened.
        let mut backing_format = image.backing_format.clone();
        backing_format.iter_mut().for_each(|name| name.truncate(Header::BACKING_FORMAT_MAX));
        let named = self.geometry.cluster_bits() > FEATURE_NAMES_CLUSTER_BITS;
        let header = Header {
            version: image.version,
            geometry: self.geometry,
            size: image.size,
            crypt_method: match image.encryption {
                None => 0,
                Some(Encryption::Aes) => 1,
                Some(Encryption::Luks { .. }) => 2,
            },
            // At most 32 MiB of entries.
            l1_size: self.l1_entries() as u32,
            l1_offset: self.bytes_of(l1),
            refcount_table_offset: self.bytes_of(table.start),
            refcount_table_clusters: (table.end - table.start) as u32,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible,
            compatible,
            autoclear,
            refcount_bits: self.refcount,
            compression: image.compression,
            more: Vec::new(),
            backing_file: image.backing_file.clone(),
            backing_format,
            data_file: image.data_file.clone(),
            crypto: self.crypto_len().map(|len| (self.bytes_of(crypto), len)),
            features: if named { header::feature_names() } else { Vec::new() },
            bitmaps: None,
            has_stale_bitmaps: false,
            unknown: Vec::new(),
        };
        let mut bytes = header.to_bytes().map_err(|error| self.header_refused(error))?;
        bytes.resize(self.geometry.cluster_size() as usize, 0);
        Ok(bytes)
    }

    fn header_refused(&self, error: FormatError) -> LayoutError {
        let Some(name) = &self.image.backing_file else { return LayoutError::Header(error) };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let is_name = name.len() <= Header::BACKING_FILE_MAX;
        let (name, format) = (text(name), text(self.image.backing_format.as_deref().unwrap_or_default()));
        match is_name {
            true => LayoutError::BackingNoRoom { name, format },
            false => LayoutError::BackingLong { name, format },
        }
    }
}

/// In the order in which the field's tools look at it.
fn check(image: &NewImage) -> Result<(Geometry, RefcountBits), LayoutError> {
    let only_v3 = |given: bool, what, how| match given && image.version == Version::V2 {
        true => Err(LayoutError::Version(what, how)),
        false => Ok(()),
    };
    let has_backing = image.backing_file.is_some();
    only_v3(image.extended_l2, "Extended L2 entries are only supported with", "and above")?;
    let bits = image.cluster_size.checked_ilog2().filter(|_| image.cluster_size.is_power_of_two());
    let bits = bits.filter(|bits| Geometry::CLUSTER_BITS.contains(bits)).ok_or(LayoutError::ClusterSize)?;
    let geometry = Geometry::new(bits, image.extended_l2).map_err(|_| LayoutError::ClusterSizeExtended)?;
    if has_backing && image.allocate != Allocate::Nothing && !image.extended_l2 {
        return Err(LayoutError::BackingPreallocated);
    }
    if !has_backing && image.backing_format.is_some() {
        return Err(LayoutError::BackingFormatAlone);
    }
    only_v3(image.lazy_refcounts, "Lazy refcounts only supported with", "and above")?;
    let refcount = refcount_bits(image.refcount_bits)?;
    only_v3(refcount != RefcountBits::DEFAULT, "Different refcount widths than 16 bits require", "or above")?;
    if image.data_file_raw && image.data_file.is_none() {
        return Err(LayoutError::DataFileRawAlone);
    }
    if image.data_file_raw && has_backing {
        return Err(LayoutError::DataFileRawBacking);
    }
    only_v3(image.data_file.is_some(), "External data files are only supported with", "and above")?;
    if let Some(Encryption::Luks { len, bytes }) = &image.encryption
        && bytes.len() as u64 > *len
    {
        return Err(LayoutError::EncryptionHeader { got: bytes.len(), len: *len });
    }
    let zlib = image.compression == CompressionType::Zlib;
    only_v3(!zlib, "Non-zlib compression type is only supported with", "and above")?;
    Ok((geometry, refcount))
}

/// The width of `bits` bits.
pub(crate) fn refcount_bits(bits: u64) -> Result<RefcountBits, LayoutError> {
    let order = bits.checked_ilog2().filter(|_| bits.is_power_of_two());
    order.and_then(|order| RefcountBits::new(order).ok()).ok_or(LayoutError::RefcountBits)
}

/// What the header leads to, in clusters.
#[derive(Clone, Debug)]
struct Places {
    l1: u64,
    table: std::ops::Range<u64>,
    /// Means something if there is a header for keys.
    crypto: u64,
}

/// The allocations of a new image, one after the other.
#[derive(Debug)]
struct Walk<'a> {
    layout: &'a Layout,
    space: Space,
    /// The L1 table's first cluster; zero is none.
    l1: u64,
    /// Where all data begins, if it is one piece.
    data: Option<u64>,
    /// How many of the guest's clusters have a table.
    done: u64,
    /// Behind the last of the clusters that were given away table by table, in clusters.
    data_end: u64,
    /// The first cluster of the encryption's header, once it has its place.
    crypto: u64,
    /// Tables that moved, since somebody looked.
    left: Vec<Left>,
}

/// An L2 table.
#[derive(Clone, Copy, Debug)]
struct Table {
    at: u64,
    /// How many of them there are.
    count: u64,
    /// Where the first lies; in a data file, where it lies there.
    data: u64,
}

impl<'a> Walk<'a> {
    fn new(layout: &'a Layout) -> Self {
        let space = Space::new(&layout.geometry, layout.refcount);
        Self { layout, space, l1: 0, data: None, done: 0, data_end: 0, crypto: 0, left: Vec::new() }
    }

    fn clusters(&self) -> u64 {
        self.layout.geometry.clusters_for(self.layout.image.size)
    }

    fn in_data_file(&self) -> bool {
        self.layout.image.data_file.is_some()
    }

    /// The L1 table, and the data where it is one piece.
    fn start(&mut self) -> Result<(), LayoutError> {
        let entries = self.layout.l1_entries();
        if entries > 0 {
            self.l1 = self.space.take(self.layout.geometry.clusters_for(entries * 8), &mut self.left)?;
        }
        if self.layout.image.allocate == Allocate::Space && !self.in_data_file() {
            let clusters = self.clusters();
            self.data = Some(self.space.take_at_end(clusters, entries, &mut self.left)?);
        }
        Ok(())
    }

    /// The next L2 table and the clusters that it leads to.
    fn next_table(&mut self) -> Result<Option<Table>, LayoutError> {
        let first = self.done;
        let rest = self.clusters() - first;
        if !self.layout.has_tables() || rest == 0 {
            return Ok(None);
        }
        let count = rest.min(self.layout.geometry.l2_entries());
        let at = self.space.take(1, &mut self.left)?;
        let data = match self.data {
            _ if self.in_data_file() => first,
            Some(start) => start + first,
            None => {
                let data = self.space.take(count, &mut self.left)?;
                self.data_end = data + count;
                data
            }
        };
        self.done += count;
        Ok(Some(Table { at, count, data }))
    }

    /// The encryption's header, which comes last of all.
    fn take_crypto(&mut self) -> Result<(), LayoutError> {
        if let Some(len) = self.layout.crypto_len().filter(|len| *len > 0) {
            self.crypto = self.space.take(self.layout.geometry.clusters_for(len), &mut self.left)?;
        }
        Ok(())
    }

    fn places(&self) -> Places {
        Places { l1: self.l1, table: self.space.table(), crypto: self.crypto }
    }

    /// Bytes of the file, once everything has its place. An L1 table that ends the file ends it to the byte, data to the subcluster.
    fn length(&self) -> u64 {
        let entries = self.layout.l1_entries();
        let l1_end = self.l1 + self.layout.geometry.clusters_for(entries * 8);
        match self.space.end() {
            end if entries > 0 && end == l1_end => self.layout.bytes_of(self.l1) + entries * 8,
            end if end == self.data_end => {
                self.layout.bytes_of(end) - self.layout.geometry.cluster_size() + self.last()
            }
            end => self.layout.bytes_of(end),
        }
    }

    /// Bytes of the disk's last cluster, in whole subclusters.
    fn last(&self) -> u64 {
        let geometry = &self.layout.geometry;
        match geometry.within(self.layout.image.size) {
            0 => geometry.cluster_size(),
            bytes => bytes.next_multiple_of(geometry.subcluster_size()),
        }
    }
}

#[derive(Debug)]
enum Stage {
    Start,
    /// L2 tables; and the L1 entries that have not been written yet, from this one on.
    Tables(u64, Vec<u8>),
    /// The encryption's header.
    Crypto,
    /// The reference count block at this index.
    Blocks(u64),
    /// The reference count table from this entry on.
    RefcountTable(u64),
    Header,
    End,
}

/// What [`Layout::steps`] yields.
#[derive(Debug)]
pub struct Steps<'a> {
    layout: &'a Layout,
    walk: Walk<'a>,
    stage: Stage,
    ready: VecDeque<Step>,
}

impl Iterator for Steps<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        while self.ready.is_empty() {
            self.advance()?;
        }
        self.ready.pop_front()
    }
}

impl Steps<'_> {
    /// Make the next steps ready. `None` at the end.
    fn advance(&mut self) -> Option<()> {
        self.stage = match std::mem::replace(&mut self.stage, Stage::End) {
            Stage::Start => self.start()?,
            Stage::Tables(first, bytes) => self.table(first, bytes)?,
            Stage::Crypto => self.crypto()?,
            Stage::Blocks(index) => self.block(index),
            Stage::RefcountTable(from) => self.refcount_table(from),
            Stage::Header => {
                self.ready.push_back(Step::Length(self.layout.length));
                self.write(0, self.layout.header.clone());
                Stage::End
            }
            Stage::End => return None,
        };
        Some(())
    }

    fn write(&mut self, cluster: u64, bytes: Vec<u8>) {
        self.ready.push_back(Step::Write { offset: self.layout.bytes_of(cluster), bytes });
    }

    /// What was left where tables were: nobody reads it, but it is in the file.
    fn write_left(&mut self) {
        for (at, entries) in std::mem::take(&mut self.walk.left) {
            let bytes = entries.iter().flat_map(|block| self.layout.bytes_of(*block).to_be_bytes()).collect();
            self.write(at, bytes);
        }
    }

    fn start(&mut self) -> Option<Stage> {
        let layout = self.layout;
        // The same has succeeded before.
        self.walk.start().ok()?;
        if let Some(data) = self.walk.data
            && layout.image.size > 0
        {
            let len = layout.image.size.next_multiple_of(layout.geometry.cluster_size());
            self.ready.push_back(Step::Space { offset: layout.bytes_of(data), len });
        }
        self.write_left();
        if layout.has_tables() {
            return Some(Stage::Tables(0, Vec::new()));
        }
        let len = layout.l1_entries() * 8;
        if len > 0 {
            self.ready.push_back(Step::Zeroes { offset: layout.bytes_of(self.walk.l1), len });
        }
        Some(Stage::Crypto)
    }

    /// The encryption's header, in whole clusters.
    fn crypto(&mut self) -> Option<Stage> {
        let layout = self.layout;
        self.walk.take_crypto().ok()?;
        self.write_left();
        if let Some(Encryption::Luks { len, bytes }) = &layout.image.encryption {
            let (offset, given) = (layout.bytes_of(self.walk.crypto), bytes.len() as u64);
            if given > 0 {
                self.ready.push_back(Step::Write { offset, bytes: bytes.clone() });
            }
            let rest = layout.bytes_of(layout.geometry.clusters_for(*len)) - given;
            if rest > 0 {
                self.ready.push_back(Step::Zeroes { offset: offset + given, len: rest });
            }
        }
        Some(Stage::Blocks(0))
    }

    /// An L2 table, and the L1 entries for it and others before it that are not written: those from `first` on.
    fn table(&mut self, first: u64, mut l1: Vec<u8>) -> Option<Stage> {
        let layout = self.layout;
        let table = self.walk.next_table().ok()?;
        self.write_left();
        let Some(table) = table else {
            self.write_l1(first, l1);
            return Some(Stage::Crypto);
        };
        let entry_size = layout.geometry.l2_entry_size() as usize;
        let mut bytes = vec![0; layout.geometry.cluster_size() as usize];
        for (i, entry) in (0..table.count).zip(bytes.chunks_exact_mut(entry_size)) {
            let data = L2Entry::data(layout.bytes_of(table.data + i));
            entry[..8].copy_from_slice(&data.raw().to_be_bytes());
        }
        self.write(table.at, bytes);
        // What lies behind the disk's end in its last (sub)cluster is cleared, where nobody else has done it.
        let (end, last) = (layout.geometry.within(layout.image.size), self.walk.last());
        let is_last = self.walk.done == self.walk.clusters();
        if is_last && end > 0 && end < last && self.walk.data.is_none() && !self.walk.in_data_file() {
            let offset = layout.bytes_of(table.data + table.count - 1) + end;
            self.ready.push_back(Step::Zeroes { offset, len: last - end });
        }
        l1.extend(L1Entry::new(layout.bytes_of(table.at), true).raw().to_be_bytes());
        if l1.len() as u64 == PIECE {
            let next = first + PIECE / 8;
            self.write_l1(first, l1);
            return Some(Stage::Tables(next, Vec::new()));
        }
        Some(Stage::Tables(first, l1))
    }

    fn write_l1(&mut self, first: u64, bytes: Vec<u8>) {
        if !bytes.is_empty() {
            let offset = self.layout.bytes_of(self.walk.l1) + first * 8;
            self.ready.push_back(Step::Write { offset, bytes });
        }
    }

    fn block(&mut self, index: u64) -> Stage {
        let Some(at) = self.walk.space.blocks().get(index as usize).copied() else { return Stage::RefcountTable(0) };
        if at != 0 {
            let mut bytes = vec![0; self.layout.geometry.cluster_size() as usize];
            for range in self.walk.space.counted(index) {
                range.for_each(|count| self.layout.refcount.set(&mut bytes, count as usize, 1));
            }
            self.write(at, bytes);
        }
        Stage::Blocks(index + 1)
    }

    fn refcount_table(&mut self, from: u64) -> Stage {
        let layout = self.layout;
        let table = self.walk.space.table();
        let entries = layout.bytes_of(table.end - table.start) / 8;
        if from >= entries {
            return Stage::Header;
        }
        let to = entries.min(from + PIECE / 8);
        let blocks = self.walk.space.blocks();
        let entry = |index: u64| layout.bytes_of(blocks.get(index as usize).copied().unwrap_or(0)).to_be_bytes();
        let bytes = (from..to).flat_map(entry).collect();
        let offset = layout.bytes_of(table.start) + from * 8;
        self.ready.push_back(Step::Write { offset, bytes });
        Stage::RefcountTable(to)
    }
}

#[cfg(test)]
mod tests;
