//! Persistent bitmaps (specification: "Bitmaps"): their directory, and the entries of each one's table.

use crate::bytes::{take, u8_at, u32_at, u64_at};
use crate::{BitmapsExtension, Geometry};
use bitflags::bitflags;

/// Bytes of a directory entry before its extra data.
const FIXED: usize = 24;
/// The only kind of bitmap there is: one that tracks writes.
const TYPE_DIRTY: u8 = 1;
/// Bits 9 to 55: a place in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 0: all of the bits are set. Only where there is no offset.
const ALL_ONES: u64 = 1;

bitflags! {
    /// What the directory says of a bitmap beside its place.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct BitmapFlags: u32 {
        /// Somebody had it open for writing and did not close it: it may be stale (rule qcow2-6).
        const IN_USE = 1 << 0;
        /// It tracks whatever is written from the moment the image is opened.
        const AUTO = 1 << 1;
        /// Whoever does not know the extra data may use the bitmap all the same.
        const EXTRA_DATA_COMPATIBLE = 1 << 2;
    }
}

/// An entry of the bitmap directory. Its every field was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bitmap {
    /// Where its table lies: a whole number of clusters.
    pub table_offset: u64,
    /// Entries of that table: one a cluster of bits.
    pub table_size: u32,
    /// Flags.
    pub flags: BitmapFlags,
    /// The binary logarithm of how many bytes of the disk a bit stands for.
    pub granularity_bits: u8,
    /// Its name: not empty, unique within the image.
    pub name: Vec<u8>,
}

/// Why bytes are no bitmap directory. The texts are the field's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// Entries do not end where the directory does.
    #[error("Broken bitmap directory")]
    Directory,
    /// A field that cannot be what it is.
    #[error("Bitmap '{0}' doesn't satisfy the constraints")]
    Constraints(String),
    /// Nobody knows any extra data.
    #[error("Bitmap extra data is not supported")]
    ExtraData,
    /// The header has a larger number.
    #[error("Less bitmaps found than specified in header extension")]
    Less,
    /// The header has a smaller number.
    #[error("More bitmaps found than specified in header extension")]
    More,
    /// Two have one name.
    #[error("Bitmap already exists: {0}")]
    Duplicate(String),
}

impl Bitmap {
    /// Granularities, as binary logarithms: 512 bytes to 2 GiB.
    pub const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
    /// The longest name, in bytes.
    pub const NAME_MAX: usize = 1023;
    /// The longest table, in entries.
    pub const TABLE_MAX: u32 = 0x800_0000;
    /// The most that the bits of one bitmap may take, in bytes.
    pub const BITS_MAX: u64 = 0x2000_0000;

    /// All entries of a directory, which is what `bytes` are, as long and as many as the header says.
    ///
    /// # Errors
    /// What is wrong with the first wrong one.
    pub fn parse_directory(
        bytes: &[u8],
        extension: &BitmapsExtension,
        geometry: &Geometry,
    ) -> Result<Vec<Self>, BitmapError> {
        if bytes.len() as u64 != extension.directory_size {
            return Err(BitmapError::Directory);
        }
        let (mut bitmaps, mut rest) = (Vec::new(), bytes);
        let mut names = std::collections::HashSet::new();
        while !rest.is_empty() {
            if bitmaps.len() as u64 == u64::from(extension.count) {
                return Err(BitmapError::More);
            }
            let (bitmap, len) = Self::parse(rest, geometry)?;
            if !names.insert(bitmap.name.clone()) {
                return Err(BitmapError::Duplicate(bitmap.name_text()));
            }
            bitmaps.push(bitmap);
            rest = rest.get(len..).ok_or(BitmapError::Directory)?;
        }
        if bitmaps.len() as u64 == u64::from(extension.count) { Ok(bitmaps) } else { Err(BitmapError::Less) }
    }

    /// The entry that `bytes` begin with, and how many bytes it takes, those up to the next one included.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8], geometry: &Geometry) -> Result<(Self, usize), BitmapError> {
        let (name_size, extra_size) = (usize::from(u16::from_be_bytes(take(bytes, 18))), u32_at(bytes, 20));
        let name_at = FIXED.checked_add(extra_size as usize).ok_or(BitmapError::Directory)?;
        let end = name_at.checked_add(name_size).ok_or(BitmapError::Directory)?;
        let len = end.checked_next_multiple_of(8).ok_or(BitmapError::Directory)?;
        if bytes.len() < len {
            return Err(BitmapError::Directory);
        }
        if extra_size != 0 {
            return Err(BitmapError::ExtraData);
        }
        let bitmap = Self {
            table_offset: u64_at(bytes, 0),
            table_size: u32_at(bytes, 8),
            flags: BitmapFlags::from_bits_retain(u32_at(bytes, 12)),
            granularity_bits: u8_at(bytes, 17),
            name: bytes[name_at..end].to_vec(),
        };
        let is_dirty_bitmap = u8_at(bytes, 16) == TYPE_DIRTY;
        if is_dirty_bitmap && bitmap.is_possible(geometry) {
            Ok((bitmap, len))
        } else {
            Err(BitmapError::Constraints(bitmap.name_text()))
        }
    }

    fn is_possible(&self, geometry: &Geometry) -> bool {
        BitmapFlags::all().contains(self.flags)
            && (1..=Self::NAME_MAX).contains(&self.name.len())
            && self.table_offset != 0
            && geometry.is_aligned(self.table_offset)
            && (1..=Self::TABLE_MAX).contains(&self.table_size)
            && u64::from(self.table_size) << geometry.cluster_bits() <= Self::BITS_MAX
            && Self::GRANULARITY_BITS.contains(&self.granularity_bits)
    }

    /// Its name, for people.
    pub fn name_text(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }

    /// Bytes of the disk that a bit stands for.
    pub const fn granularity(&self) -> u64 {
        1 << self.granularity_bits
    }

    /// How many entries a table needs for a disk of `size` bytes.
    pub const fn table_entries_for(size: u64, granularity_bits: u8, geometry: &Geometry) -> u64 {
        let bits = size.div_ceil(1 << granularity_bits);
        geometry.clusters_for(bits.div_ceil(8))
    }

    /// How many bytes the entry of a bitmap takes whose name has so many.
    pub const fn entry_len(name: usize) -> u64 {
        (FIXED + name).next_multiple_of(8) as u64
    }

    /// The bytes of the entry, up to where the next one begins.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.table_offset.to_be_bytes().to_vec();
        bytes.extend(self.table_size.to_be_bytes());
        bytes.extend(self.flags.bits().to_be_bytes());
        bytes.extend([TYPE_DIRTY, self.granularity_bits]);
        bytes.extend((self.name.len().min(Self::NAME_MAX) as u16).to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.name.iter().take(Self::NAME_MAX));
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }
}

/// An entry of a bitmap's table (specification: "Bitmap table").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BitmapTableEntry(u64);

/// What a cluster of bits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapCluster {
    /// All of its bits are 0.
    Zeroes,
    /// All of its bits are 1.
    Ones,
    /// It lies there.
    Data(u64),
}

impl BitmapTableEntry {
    /// The number as it stands in the table.
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The entry that says so.
    pub const fn new(cluster: BitmapCluster) -> Self {
        match cluster {
            BitmapCluster::Zeroes => Self(0),
            BitmapCluster::Ones => Self(ALL_ONES),
            BitmapCluster::Data(offset) => Self(offset),
        }
    }

    /// The number as it stands in the table.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// What it says, or `None` if that cannot be: reserved bits, or an offset between clusters.
    pub const fn cluster(self, geometry: &Geometry) -> Option<BitmapCluster> {
        match (self.0 & OFFSET, self.0 & !OFFSET) {
            (0, 0) => Some(BitmapCluster::Zeroes),
            (0, ALL_ONES) => Some(BitmapCluster::Ones),
            (offset, 0) if geometry.is_aligned(offset) => Some(BitmapCluster::Data(offset)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometry() -> Geometry {
        Geometry::new(16, false).expect("64 KiB")
    }

    fn bitmap(name: &str) -> Bitmap {
        Bitmap {
            table_offset: 0xd0000,
            table_size: 1,
            flags: BitmapFlags::AUTO,
            granularity_bits: 16,
            name: name.into(),
        }
    }

    fn parse(bytes: &[u8], count: u32) -> Result<Vec<Bitmap>, BitmapError> {
        let extension = BitmapsExtension { count, directory_size: bytes.len() as u64, directory_offset: 0x100000 };
        Bitmap::parse_directory(bytes, &extension, &geometry())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let all = vec![bitmap("a"), Bitmap { flags: BitmapFlags::IN_USE, ..bitmap("another one") }];
        let bytes: Vec<u8> = all.iter().flat_map(Bitmap::to_bytes).collect();
        assert_eq!(bytes.len(), 32 + 40);
        assert_eq!(parse(&bytes, 2), Ok(all));
        // Scenario: the entry that qemu-img 10.0.2 wrote for `bitmap --add … a`.
        let theirs = [&[0, 0, 0, 0, 0, 0x0d, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 1, 16, 0, 1, 0, 0, 0, 0, b'a'][..], &[0; 7]];
        assert_eq!(theirs.concat(), bitmap("a").to_bytes());
    }

    /// Scenario: each field in turn is what it cannot be, in the words that qemu-img 10.0.2 has for it.
    #[test]
    fn trust_3_each_wrong_field_is_named() {
        let bytes = bitmap("a").to_bytes();
        let wrong = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            parse(&bytes, 1).expect_err("refused").to_string()
        };
        let constraints = "Bitmap 'a' doesn't satisfy the constraints";
        for (at, value) in [(6, 2), (5, 0), (8, 0x10), (11, 0), (15, 0xff), (16, 2), (17, 99), (17, 8)] {
            assert_eq!(wrong(at, value), constraints, "byte {at} is {value}");
        }
        assert_eq!(wrong(18, 7), "Broken bitmap directory");
        assert_eq!(wrong(19, 0), "Bitmap '' doesn't satisfy the constraints");
        assert_eq!(wrong(20, 0x10), "Broken bitmap directory");
        assert_eq!(wrong(23, 4), "Bitmap extra data is not supported");
        let two = [bitmap("a").to_bytes(), bitmap("a").to_bytes()].concat();
        assert_eq!(parse(&two, 1), Err(BitmapError::More));
        assert_eq!(parse(&two, 2), Err(BitmapError::Duplicate("a".into())));
        assert_eq!(parse(&bytes, 2), Err(BitmapError::Less));
        assert_eq!(parse(&bytes[..24], 1), Err(BitmapError::Directory));
    }

    #[test]
    fn table_entries_say_where_bits_lie() {
        let cluster = |raw| BitmapTableEntry::from_raw(raw).cluster(&geometry());
        assert_eq!(cluster(0), Some(BitmapCluster::Zeroes));
        assert_eq!(cluster(1), Some(BitmapCluster::Ones));
        assert_eq!(cluster(0xc0000), Some(BitmapCluster::Data(0xc0000)));
        for raw in [2, 0xc0001, 0xc0200, 1 << 56, 0xc0000 | 1 << 63] {
            assert_eq!(cluster(raw), None, "{raw:#x}");
        }
        for cluster in [BitmapCluster::Zeroes, BitmapCluster::Ones, BitmapCluster::Data(0x10000)] {
            assert_eq!(BitmapTableEntry::new(cluster).cluster(&geometry()), Some(cluster));
        }
        assert_eq!(Bitmap::entry_len(11), bitmap("another one").to_bytes().len() as u64);
        // 64 MiB at a bit for 64 KiB are 128 bytes of bits.
        assert_eq!(Bitmap::table_entries_for(64 << 20, 16, &geometry()), 1);
        assert_eq!(Bitmap::table_entries_for(u64::MAX, 9, &geometry()), 1 << 36);
    }

    proptest! {
        #[test]
        fn trust_3_no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..32, n in 0u32..4) {
            let _ = parse(&bytes, n);
            let mut good = bitmap("a").to_bytes();
            for (to, from) in good[at..].iter_mut().zip(&bytes) { *to = *from; }
            let _ = parse(&good, n);
            let _ = parse(&[good, bytes].concat(), n);
        }
    }
}
