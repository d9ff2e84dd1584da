//! The header and its extensions, in both directions (specification: "Header", "Header extensions").

use crate::bytes::{u8_at, u32_at, u64_at};
use crate::{FormatError, Geometry, RefcountBits};
use bitflags::bitflags;
use std::ops::Range;

const MAGIC: u32 = 0x5146_49fb;
/// Bytes of a version 2 header.
const LEN_V2: usize = 72;
/// Bytes of the first version 3 headers.
const LEN_V3_MIN: u32 = 104;
/// Bytes of a version 3 header as this project writes it.
const LEN_V3: u32 = 112;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_FEATURES: u32 = 0x6803_f857;
const EXT_BITMAPS: u32 = 0x2385_2875;
const EXT_CRYPTO: u32 = 0x0537_be77;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// A backing file's name, in bytes.
const BACKING_MAX: u32 = 1023;
/// A backing format's name, in bytes, and one more.
const BACKING_FORMAT_MAX: u32 = 16;
const REFCOUNT_TABLE_MAX: u64 = 8 << 20;
const SNAPSHOTS_MAX: u32 = 65536;

/// Which of the two versions of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// Version 2, called 0.10 by the field's tools: no features, no zero clusters, counts of 16 bits.
    V2,
    /// Version 3, called 1.1.
    V3,
}

bitflags! {
    /// Features without which an image cannot be read. Unknown ones refuse the image (rule qcow2-9).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IncompatibleFeatures: u64 {
        /// Reference counts may be wrong: it was not closed.
        const DIRTY = 1 << 0;
        /// Somebody found the image to be corrupt: it is not to be written.
        const CORRUPT = 1 << 1;
        /// Guest data lies in a file of its own.
        const DATA_FILE = 1 << 2;
        /// The compression type is not deflate.
        const COMPRESSION = 1 << 3;
        /// L2 entries have subclusters.
        const EXTENDED_L2 = 1 << 4;
    }

    /// Features that may be ignored. Unknown ones are kept.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CompatibleFeatures: u64 {
        /// Reference counts may be put off.
        const LAZY_REFCOUNTS = 1 << 0;
        /// Whatever else is set.
        const _ = !0;
    }

    /// Features that whoever writes the image and does not know them clears.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AutoclearFeatures: u64 {
        /// The bitmaps are as of the last write.
        const BITMAPS = 1 << 0;
        /// The data file is the virtual disk, byte for byte.
        const DATA_FILE_RAW = 1 << 1;
        /// Whatever else is set.
        const _ = !0;
    }
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate with a window of 4 KiB.
    #[default]
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// Where the bitmaps are listed (specification: "Bitmaps extension").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// How many there are; at least one.
    pub count: u32,
    /// Bytes of their directory.
    pub directory_size: u64,
    /// Where it lies in the file.
    pub directory_offset: u64,
}

impl BitmapsExtension {
    /// The most bitmaps of an image.
    pub const COUNT_MAX: u32 = 65535;
    /// The longest directory, in bytes.
    pub const DIRECTORY_MAX: u64 = 65535 * 1023;
}

/// An extension that this project has no field for. Kept as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its number.
    pub kind: u32,
    /// Its content.
    pub data: Vec<u8>,
}

/// Which of the three groups a feature is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FeatureKind {
    /// See [`IncompatibleFeatures`].
    Incompatible,
    /// See [`CompatibleFeatures`].
    Compatible,
    /// See [`AutoclearFeatures`].
    Autoclear,
}

/// A row of the table that tells other programs what a feature bit they do not know is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureName {
    /// Its group.
    pub kind: FeatureKind,
    /// Its bit.
    pub bit: u8,
    /// Its name.
    pub name: String,
}

/// The table that the field's tools write into new images.
pub fn feature_names() -> Vec<FeatureName> {
    use FeatureKind::{Autoclear, Compatible, Incompatible};
    let row = |kind, bit, name: &str| FeatureName { kind, bit, name: name.into() };
    vec![
        row(Incompatible, 0, "dirty bit"),
        row(Incompatible, 1, "corrupt bit"),
        row(Incompatible, 2, "external data file"),
        row(Incompatible, 3, "compression type"),
        row(Incompatible, 4, "extended L2 entries"),
        row(Compatible, 0, "lazy refcounts"),
        row(Autoclear, 0, "bitmaps"),
        row(Autoclear, 1, "raw external data"),
    ]
}

/// A header whose every field was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The version.
    pub version: Version,
    /// Cluster size and kind of L2 entries.
    pub geometry: Geometry,
    /// Bytes of the virtual disk.
    pub size: u64,
    /// 0: not encrypted; 1: AES, as of old; 2: LUKS.
    pub crypt_method: u32,
    /// Entries of the active L1 table.
    pub l1_size: u32,
    /// Where it lies.
    pub l1_offset: u64,
    /// Where the reference count table lies.
    pub refcount_table_offset: u64,
    /// Its length in clusters.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Where their table lies.
    pub snapshots_offset: u64,
    /// Feature bits.
    pub incompatible: IncompatibleFeatures,
    /// Feature bits.
    pub compatible: CompatibleFeatures,
    /// Feature bits.
    pub autoclear: AutoclearFeatures,
    /// Width of reference counts.
    pub refcount_bits: RefcountBits,
    /// How compressed clusters are compressed.
    pub compression: CompressionType,
    /// What stands behind the fields that this project knows, within the header's own length.
    pub more: Vec<u8>,
    /// The backing file's name, as bytes.
    pub backing_file: Option<Vec<u8>>,
    /// Its format's name.
    pub backing_format: Option<Vec<u8>>,
    /// The data file's name.
    pub data_file: Option<Vec<u8>>,
    /// Offset and length in bytes of the LUKS header.
    pub crypto: Option<(u64, u64)>,
    /// Names of features, for others. Empty: there is no table.
    pub features: Vec<FeatureName>,
    /// The bitmaps.
    pub bitmaps: Option<BitmapsExtension>,
    /// There is a list of bitmaps that are not as of the last write, and not in `bitmaps`. Not written.
    pub has_stale_bitmaps: bool,
    /// Other extensions, in their order.
    pub unknown: Vec<Extension>,
}

impl Header {
    /// Whoever has so many bytes of an image knows how long its first cluster is.
    pub const PREFIX: usize = LEN_V3 as usize;
    /// The longest name of a backing file, in bytes.
    pub const BACKING_FILE_MAX: usize = BACKING_MAX as usize;
    /// The longest name of its format, in bytes.
    pub const BACKING_FORMAT_MAX: usize = BACKING_FORMAT_MAX as usize - 1;

    /// Bytes of the first cluster, which has to be read in whole to parse the header.
    ///
    /// # Errors
    /// Another magic number, version or cluster size than can be.
    pub fn cluster_size(prefix: &[u8]) -> Result<u64, FormatError> {
        if u32_at(prefix, 0) != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = u32_at(prefix, 4);
        if !(2..=3).contains(&version) {
            return Err(FormatError::Version(version));
        }
        Geometry::new(u32_at(prefix, 20), false).map(|geometry| geometry.cluster_size())
    }

    /// The header in the first cluster of an image. What is missing of the cluster counts as zeroes.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(cluster: &[u8]) -> Result<Self, FormatError> {
        let cluster_size = Self::cluster_size(cluster)?;
        let version = if u32_at(cluster, 4) == 2 { Version::V2 } else { Version::V3 };
        let mut header = Self::fixed(cluster, version)?;
        let length = match version {
            Version::V2 => LEN_V2 as u32,
            Version::V3 => u32_at(cluster, 100),
        };
        if version == Version::V3 {
            if length < LEN_V3_MIN {
                return Err(FormatError::HeaderShort);
            }
            if u64::from(length) > cluster_size {
                return Err(FormatError::HeaderLong);
            }
            header.more = cluster.get(LEN_V3 as usize..length as usize).unwrap_or_default().to_vec();
        }
        let (name_at, name_len) = (u64_at(cluster, 8), u32_at(cluster, 16));
        if name_at > cluster_size {
            return Err(FormatError::BackingOffset);
        }
        // Extensions end where the name begins, at the latest.
        let end = if name_at == 0 { cluster_size } else { name_at };
        header.take_extensions(cluster, u64::from(length), end)?;
        header.check_features()?;
        header.compression =
            compression(header.incompatible, if length > LEN_V3_MIN { u8_at(cluster, 104) } else { 0 })?;
        let extended = header.incompatible.contains(IncompatibleFeatures::EXTENDED_L2);
        header.geometry = Geometry::new(header.geometry.cluster_bits(), extended)?;
        if version == Version::V3 {
            header.refcount_bits = RefcountBits::new(u32_at(cluster, 96))?;
        }
        header.check_crypto()?;
        header.check_tables()?;
        if name_at != 0 {
            let max = u64::from(BACKING_MAX).min(cluster_size - name_at);
            if u64::from(name_len) > max {
                return Err(FormatError::BackingLong);
            }
            let name = cluster.get(name_at as usize..name_at as usize + name_len as usize).unwrap_or_default();
            header.backing_file = (!name.is_empty()).then(|| name.to_vec());
        }
        Ok(header)
    }

    /// The fields at fixed places, most of them unchecked yet.
    fn fixed(bytes: &[u8], version: Version) -> Result<Self, FormatError> {
        let features = |at| if version == Version::V3 { u64_at(bytes, at) } else { 0 };
        Ok(Self {
            version,
            geometry: Geometry::new(u32_at(bytes, 20), false)?,
            size: u64_at(bytes, 24),
            crypt_method: u32_at(bytes, 32),
            l1_size: u32_at(bytes, 36),
            l1_offset: u64_at(bytes, 40),
            refcount_table_offset: u64_at(bytes, 48),
            refcount_table_clusters: u32_at(bytes, 56),
            snapshots: u32_at(bytes, 60),
            snapshots_offset: u64_at(bytes, 64),
            incompatible: IncompatibleFeatures::from_bits_retain(features(72)),
            compatible: CompatibleFeatures::from_bits_retain(features(80)),
            autoclear: AutoclearFeatures::from_bits_retain(features(88)),
            refcount_bits: RefcountBits::DEFAULT,
            compression: CompressionType::Zlib,
            more: Vec::new(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            crypto: None,
            features: Vec::new(),
            bitmaps: None,
            has_stale_bitmaps: false,
            unknown: Vec::new(),
        })
    }

    fn take_extensions(&mut self, bytes: &[u8], from: u64, end: u64) -> Result<(), FormatError> {
        let mut at = from;
        while at < end {
            let (kind, len) = (u32_at(bytes, at as usize), u32_at(bytes, at as usize + 4));
            at += 8;
            // The name of the backing file may begin where the next extension's header would end.
            if at > end || u64::from(len) > end - at {
                return Err(FormatError::ExtensionLong);
            }
            let data = bytes.get(at as usize..at as usize + len as usize).unwrap_or_default();
            if kind == EXT_END {
                return Ok(());
            }
            self.take_extension(kind, len, data)?;
            at += u64::from(len).next_multiple_of(8);
        }
        Ok(())
    }

    fn take_extension(&mut self, kind: u32, len: u32, data: &[u8]) -> Result<(), FormatError> {
        match kind {
            EXT_BACKING_FORMAT if len >= BACKING_FORMAT_MAX => return Err(FormatError::BackingFormatLong(len)),
            EXT_BACKING_FORMAT => self.backing_format = Some(data.to_vec()),
            EXT_DATA_FILE => self.data_file = Some(data.to_vec()),
            EXT_FEATURES => self.features = data.chunks_exact(48).filter_map(feature_name).collect(),
            EXT_CRYPTO if self.crypt_method != 2 => return Err(FormatError::CryptoUnexpected),
            EXT_CRYPTO if len != 16 => return Err(FormatError::CryptoLength { got: len }),
            EXT_CRYPTO => self.crypto = Some((u64_at(data, 0), u64_at(data, 8))),
            EXT_BITMAPS if len != 24 => return Err(FormatError::BitmapsLength),
            // Somebody wrote to the image who knows nothing of bitmaps: they are stale, and so is their list.
            EXT_BITMAPS if !self.autoclear.contains(AutoclearFeatures::BITMAPS) => self.has_stale_bitmaps = true,
            EXT_BITMAPS => self.bitmaps = Some(self.bitmaps_extension(data)?),
            _ => self.unknown.push(Extension { kind, data: data.to_vec() }),
        }
        Ok(())
    }

    fn bitmaps_extension(&self, data: &[u8]) -> Result<BitmapsExtension, FormatError> {
        let (count, reserved) = (u32_at(data, 0), u32_at(data, 4));
        let (directory_size, directory_offset) = (u64_at(data, 8), u64_at(data, 16));
        if reserved != 0 {
            return Err(FormatError::BitmapsReserved);
        }
        match count {
            0 => return Err(FormatError::BitmapsCount("found bitmaps extension with zero bitmaps")),
            1..=BitmapsExtension::COUNT_MAX => {}
            _ => return Err(FormatError::BitmapsCount("too many bitmaps")),
        }
        if !self.geometry.is_aligned(directory_offset) || directory_offset == 0 {
            return Err(FormatError::BitmapsOffset);
        }
        if directory_size > BitmapsExtension::DIRECTORY_MAX {
            return Err(FormatError::BitmapsSize(directory_size));
        }
        Ok(BitmapsExtension { count, directory_size, directory_offset })
    }

    /// Rule qcow2-9.
    fn check_features(&self) -> Result<(), FormatError> {
        let unknown = self.incompatible.bits() & !IncompatibleFeatures::all().bits();
        if unknown == 0 {
            return Ok(());
        }
        let (mut told, mut rest) = (Vec::new(), unknown);
        for feature in self.features.iter().filter(|feature| feature.kind == FeatureKind::Incompatible) {
            if rest >> feature.bit.min(63) & 1 != 0 {
                rest &= !(1 << feature.bit.min(63));
                told.push(feature.name.clone());
            }
        }
        if rest != 0 {
            told.push(format!("Unknown incompatible feature: {rest:x}"));
        }
        Err(FormatError::Features(told.join(", ")))
    }

    fn check_crypto(&self) -> Result<(), FormatError> {
        match (self.crypt_method, self.crypto) {
            (0 | 1, _) => Ok(()),
            (2, None) => Err(FormatError::CryptoMissing),
            (2, Some((offset, _))) if !self.geometry.is_aligned(offset) => Err(FormatError::CryptoOffset(offset)),
            (2, Some(_)) => Ok(()),
            (other, _) => Err(FormatError::CryptMethod(other)),
        }
    }

    fn check_tables(&self) -> Result<(), FormatError> {
        let geometry = &self.geometry;
        let fits = |offset: u64, bytes: u64| {
            geometry.is_aligned(offset) && offset.checked_add(bytes).is_some_and(|end| end <= i64::MAX as u64)
        };
        if self.size > geometry.size_max() {
            return Err(FormatError::SizeTooBig);
        }
        let table_bytes = u64::from(self.refcount_table_clusters) << geometry.cluster_bits();
        if self.refcount_table_clusters == 0 {
            return Err(FormatError::NoRefcountTable);
        }
        if table_bytes > REFCOUNT_TABLE_MAX {
            return Err(FormatError::RefcountTableLarge);
        }
        if !fits(self.refcount_table_offset, table_bytes) {
            return Err(FormatError::RefcountTableOffset);
        }
        if self.snapshots > SNAPSHOTS_MAX {
            return Err(FormatError::SnapshotTableLarge);
        }
        // The smallest entry has 40 bytes.
        if self.snapshots > 0 && !fits(self.snapshots_offset, u64::from(self.snapshots) * 40) {
            return Err(FormatError::SnapshotTableOffset);
        }
        let l1_bytes = u64::from(self.l1_size) * 8;
        if l1_bytes > Geometry::L1_BYTES_MAX {
            return Err(FormatError::L1Large);
        }
        if !fits(self.l1_offset, l1_bytes) {
            return Err(FormatError::L1Offset);
        }
        if u64::from(self.l1_size) < geometry.l1_entries_for(self.size) {
            return Err(FormatError::L1Small);
        }
        Ok(())
    }

    /// The bytes of the first cluster up to the end of the backing file's name. Whoever writes them fills the rest of what was there before with
    /// zeroes.
    ///
    /// # Errors
    /// [`FormatError::BackingLong`] when it does not fit into a cluster.
    pub fn to_bytes(&self) -> Result<Vec<u8>, FormatError> {
        let mut bytes = self.head(true);
        if let Some(name) = &self.backing_file {
            let at = bytes.len();
            Self::put_name(&mut bytes, at, name.len());
            bytes.extend(name);
        }
        let fits = bytes.len() as u64 <= self.geometry.cluster_size();
        let is_name = self.backing_file.as_ref().is_none_or(|name| name.len() <= BACKING_MAX as usize);
        if fits && is_name { Ok(bytes) } else { Err(FormatError::BackingLong) }
    }

    /// Let the header lead to a backing file's name of `len` bytes at `at`.
    pub(crate) fn put_name(head: &mut [u8], at: usize, len: usize) {
        head[8..16].copy_from_slice(&(at as u64).to_be_bytes());
        head[16..20].copy_from_slice(&(len as u32).to_be_bytes());
    }

    /// Where the backing file's name lies in a cluster whose header is in order.
    pub(crate) fn name_range(cluster: &[u8]) -> Range<usize> {
        let (at, len) = (u64_at(cluster, 8) as usize, u32_at(cluster, 16) as usize);
        if at == 0 { 0..0 } else { at..at + len }
    }

    /// Where the extensions end in a cluster whose header is in order.
    pub(crate) fn extensions_end(cluster: &[u8]) -> usize {
        let mut at = if u32_at(cluster, 4) == 2 { LEN_V2 } else { u32_at(cluster, 100) as usize };
        let name = Self::name_range(cluster);
        let end = if name.start == 0 { cluster.len() } else { name.start };
        while at < end {
            let (kind, len) = (u32_at(cluster, at), u32_at(cluster, at + 4) as usize);
            at += 8 + len.next_multiple_of(8);
            if kind == EXT_END {
                break;
            }
        }
        at
    }

    /// The fields at fixed places and the extensions, without a backing file's name.
    pub(crate) fn head(&self, with_feature_names: bool) -> Vec<u8> {
        let mut bytes = vec![0; LEN_V2];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC.to_be_bytes());
        put(4, &(if self.version == Version::V2 { 2u32 } else { 3 }).to_be_bytes());
        put(20, &self.geometry.cluster_bits().to_be_bytes());
        put(24, &self.size.to_be_bytes());
        put(32, &self.crypt_method.to_be_bytes());
        put(36, &self.l1_size.to_be_bytes());
        put(40, &self.l1_offset.to_be_bytes());
        put(48, &self.refcount_table_offset.to_be_bytes());
        put(56, &self.refcount_table_clusters.to_be_bytes());
        put(60, &self.snapshots.to_be_bytes());
        put(64, &self.snapshots_offset.to_be_bytes());
        if self.version == Version::V3 {
            bytes.extend(self.incompatible.bits().to_be_bytes());
            bytes.extend(self.compatible.bits().to_be_bytes());
            bytes.extend(self.autoclear.bits().to_be_bytes());
            bytes.extend(self.refcount_bits.order().to_be_bytes());
            bytes.extend((LEN_V3 + self.more.len() as u32).to_be_bytes());
            bytes.extend([u8::from(self.compression == CompressionType::Zstd), 0, 0, 0, 0, 0, 0, 0]);
            bytes.extend(&self.more);
        }
        self.put_extensions(&mut bytes, with_feature_names);
        bytes
    }

    /// In the order in which the field's tools write them to new images. What only tells people something comes last.
    fn put_extensions(&self, bytes: &mut Vec<u8>, with_feature_names: bool) {
        let mut put = |kind: u32, data: &[u8]| {
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        };
        if let Some(name) = &self.backing_format {
            put(EXT_BACKING_FORMAT, name);
        }
        if let Some(name) = &self.data_file {
            put(EXT_DATA_FILE, name);
        }
        if let Some((offset, len)) = self.crypto {
            put(EXT_CRYPTO, &[offset.to_be_bytes(), len.to_be_bytes()].concat());
        }
        if let Some(BitmapsExtension { count, directory_size, directory_offset }) = self.bitmaps {
            let numbers = u64::from(count) << 32;
            put(EXT_BITMAPS, &[numbers, directory_size, directory_offset].map(u64::to_be_bytes).concat());
        }
        for Extension { kind, data } in &self.unknown {
            put(*kind, data);
        }
        if with_feature_names && self.version == Version::V3 && !self.features.is_empty() {
            put(EXT_FEATURES, &self.features.iter().flat_map(feature_row).collect::<Vec<_>>());
        }
        put(EXT_END, &[]);
    }
}

fn compression(incompatible: IncompatibleFeatures, number: u8) -> Result<CompressionType, FormatError> {
    let is_told = incompatible.contains(IncompatibleFeatures::COMPRESSION);
    match (number, is_told) {
        (0, false) => Ok(CompressionType::Zlib),
        (0, true) => Err(FormatError::CompressionBitSet),
        (1, true) => Ok(CompressionType::Zstd),
        (1, false) => Err(FormatError::CompressionBitMissing),
        (other, _) => Err(FormatError::CompressionType(other)),
    }
}

/// A row of 48 bytes: group, bit, name.
fn feature_name(row: &[u8]) -> Option<FeatureName> {
    let kind = match u8_at(row, 0) {
        0 => FeatureKind::Incompatible,
        1 => FeatureKind::Compatible,
        2 => FeatureKind::Autoclear,
        _ => return None,
    };
    let name = row.get(2..)?.split(|byte| *byte == 0).next().unwrap_or_default();
    Some(FeatureName { kind, bit: u8_at(row, 1), name: String::from_utf8_lossy(name).into_owned() })
}

fn feature_row(feature: &FeatureName) -> [u8; 48] {
    let mut row = [0; 48];
    row[0] = match feature.kind {
        FeatureKind::Incompatible => 0,
        FeatureKind::Compatible => 1,
        FeatureKind::Autoclear => 2,
    };
    row[1] = feature.bit;
    let name = &feature.name.as_bytes()[..feature.name.len().min(46)];
    row[2..2 + name.len()].copy_from_slice(name);
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> Header {
        Header {
            version: Version::V3,
            geometry: Geometry::new(16, false).expect("64 KiB"),
            size: 64 << 20,
            crypt_method: 0,
            l1_size: 1,
            l1_offset: 0x30000,
            refcount_table_offset: 0x10000,
            refcount_table_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: IncompatibleFeatures::empty(),
            compatible: CompatibleFeatures::empty(),
            autoclear: AutoclearFeatures::empty(),
            refcount_bits: RefcountBits::DEFAULT,
            compression: CompressionType::Zlib,
            more: Vec::new(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            crypto: None,
            features: feature_names(),
            bitmaps: None,
            has_stale_bitmaps: false,
            unknown: Vec::new(),
        }
    }

    fn changed(change: impl FnOnce(&mut Vec<u8>)) -> Result<Header, FormatError> {
        let mut bytes = header().to_bytes().expect("it fits");
        bytes.resize(65536, 0);
        change(&mut bytes);
        Header::parse(&bytes)
    }

    fn put32(at: usize, value: u32) -> impl FnOnce(&mut Vec<u8>) {
        move |bytes| bytes[at..at + 4].copy_from_slice(&value.to_be_bytes())
    }

    fn put64(at: usize, value: u64) -> impl FnOnce(&mut Vec<u8>) {
        move |bytes| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut all = header();
        all.backing_file = Some(b"base.qcow2".to_vec());
        all.backing_format = Some(b"qcow2".to_vec());
        all.incompatible = IncompatibleFeatures::DATA_FILE | IncompatibleFeatures::COMPRESSION;
        all.compression = CompressionType::Zstd;
        all.data_file = Some(b"data".to_vec());
        all.autoclear = AutoclearFeatures::BITMAPS;
        all.bitmaps = Some(BitmapsExtension { count: 3, directory_size: 96, directory_offset: 0x50000 });
        all.unknown = vec![Extension { kind: 0x1234_5678, data: vec![1, 2, 3] }];
        all.more = vec![7; 8];
        for header in [header(), all] {
            let bytes = header.to_bytes().expect("it fits");
            assert_eq!(Header::parse(&bytes), Ok(header));
        }
    }

    /// Scenario: each field in turn is what it cannot be, in the words that qemu-img 10.0.2 has for it.
    #[test]
    fn trust_3_each_wrong_field_is_named() {
        let refused = |change: Box<dyn FnOnce(&mut Vec<u8>)>| changed(change).expect_err("refused").to_string();
        let cases: Vec<(Box<dyn FnOnce(&mut Vec<u8>)>, &str)> = vec![
            (Box::new(put32(0, 0x5146_49fa)), "Image is not in qcow2 format"),
            (Box::new(put32(4, 4)), "Unsupported qcow2 version 4"),
            (Box::new(put32(20, 22)), "Unsupported cluster size: 2^22"),
            (Box::new(put32(36, 0)), "L1 table is too small"),
            (Box::new(put32(36, 5 << 20)), "Active L1 table too large"),
            (Box::new(put64(40, 0x30001)), "Active L1 table offset invalid"),
            (Box::new(put64(24, 1 << 60)), "Image is too big"),
            (Box::new(put32(32, 2)), "Missing CRYPTO header for crypt method 2"),
            (Box::new(put32(32, 3)), "Unsupported encryption method 3"),
            (Box::new(put32(56, 0)), "Image does not contain a reference count table"),
            (Box::new(put32(56, 129)), "Reference count table too large"),
            (Box::new(put64(48, 0x10001)), "Reference count table offset invalid"),
            (Box::new(put32(60, 70000)), "Snapshot table too large"),
            (Box::new(put64(72, 8)), "qcow2: Compression type incompatible feature bit must not be set"),
            (Box::new(|bytes| bytes[104] = 1), "qcow2: Compression type incompatible feature bit must be set"),
            (
                Box::new(put64(72, 1 << 63 | 32)),
                "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000020",
            ),
            (Box::new(put32(96, 7)), "Reference count entry width too large; may not exceed 64 bits"),
            (Box::new(put32(100, 100)), "qcow2 header too short"),
            (Box::new(put32(100, 70000)), "qcow2 header exceeds cluster size"),
            (Box::new(put32(0x74, 0x20000)), "Header extension too large"),
            (Box::new(put64(8, 0x20000)), "Invalid backing file offset"),
            (
                Box::new(|bytes| {
                    put64(8, 0x200)(bytes);
                    put32(16, 2000)(bytes)
                }),
                "Backing file name too long",
            ),
        ];
        for (change, words) in cases {
            assert_eq!(refused(change), words);
        }
    }

    #[test]
    fn qcow2_9_an_unknown_feature_is_refused_by_its_name() {
        let mut named = header();
        named.features.push(FeatureName { kind: FeatureKind::Incompatible, bit: 40, name: "time travel".into() });
        named.incompatible = IncompatibleFeatures::from_bits_retain(1 << 40 | 1 << 41);
        let error = Header::parse(&named.to_bytes().expect("it fits")).expect_err("refused").to_string();
        assert_eq!(error, "Unsupported qcow2 feature(s): time travel, Unknown incompatible feature: 20000000000");
        // Others are kept.
        let kept = changed(put64(80, 1 << 50)).expect("compatible");
        assert_eq!(kept.compatible.bits(), 1 << 50);
    }

    #[test]
    fn a_stale_list_of_bitmaps_is_left() {
        let mut stale = header();
        stale.bitmaps = Some(BitmapsExtension { count: 1, directory_size: 32, directory_offset: 0x50000 });
        let parsed = Header::parse(&stale.to_bytes().expect("it fits")).expect("a header");
        assert_eq!((parsed.bitmaps, parsed.has_stale_bitmaps), (None, true));
    }

    proptest! {
        #[test]
        fn trust_3_no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..700), at in 0usize..600) {
            let _ = Header::parse(&bytes);
            if let Ok(good) = header().to_bytes() {
                let n = bytes.len().min(good.len());
                let at = at.min(n);
                bytes[..at].copy_from_slice(&good[..at]);
                let _ = Header::parse(&bytes);
                bytes[..n].copy_from_slice(&good[..n]);
                if at < n { bytes[at] ^= 0x55; }
                let _ = Header::parse(&bytes);
            }
        }
    }
}
