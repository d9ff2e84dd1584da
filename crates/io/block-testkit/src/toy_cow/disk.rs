//! What a toy image looks like on disk, and nothing else: header, table, clusters.
//!
//! ```text
//! 0      magic "CAIRNTOY"   8  version 1 (u32)   12  log2 of the cluster size (u32)
//! 16     length in bytes (u64)   24  capacity in clusters (u64)      all little-endian; the rest of 4096 bytes is zero
//! 4096   table: capacity entries of 8 bytes: 0 unallocated, 1 zero, else the cluster's place in the file
//! ...    clusters, at multiples of the cluster size
//! ```

use super::clusters::Entry;
use block_common::{AlignedBuf, Errno, HostOffset, IoError, IoErrorKind, IoResult, RequestFlags};
use block_io::{Edge, Req};
use std::collections::HashSet;

const MAGIC: &[u8; 8] = b"CAIRNTOY";
const VERSION: u32 = 1;
/// Bytes of the header, and of what is read and written of the table at once; no alignment is larger.
pub(super) const BLOCK: u64 = 4096;
/// Table entries of a block.
pub(super) const BLOCK_ENTRIES: u64 = BLOCK / 8;
const CLUSTER_BITS: std::ops::RangeInclusive<u32> = 9..=21;
/// The table is held in memory: at most 32 MiB of it.
const CAPACITY_MAX: u64 = 1 << 22;

/// An image's fixed sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    cluster_bits: u32,
    /// Clusters that the table has entries for.
    capacity: u64,
}

impl Geometry {
    fn new(cluster_bits: u32, capacity: u64) -> IoResult<Self> {
        if !CLUSTER_BITS.contains(&cluster_bits) {
            return Err(bad("cluster size"));
        }
        if capacity > CAPACITY_MAX {
            return Err(bad("capacity"));
        }
        Ok(Self { cluster_bits, capacity })
    }

    #[inline]
    pub(super) const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    #[inline]
    pub(super) const fn index(&self, offset: u64) -> u64 {
        offset >> self.cluster_bits
    }

    #[inline]
    pub(super) const fn within(&self, offset: u64) -> u64 {
        offset & (self.cluster_size() - 1)
    }

    pub(super) const fn length_max(&self) -> u64 {
        self.capacity << self.cluster_bits
    }

    const fn table_blocks(&self) -> u64 {
        self.capacity.div_ceil(BLOCK_ENTRIES)
    }

    pub(super) const fn data_start(&self) -> u64 {
        (BLOCK + self.table_blocks() * BLOCK).next_multiple_of(self.cluster_size())
    }
}

/// A new image.
#[derive(Clone, Copy, Debug)]
pub struct ToyFormat {
    /// Length in bytes.
    pub length: u64,
    /// The length that the image may grow to, in bytes.
    pub length_max: u64,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
}

impl ToyFormat {
    /// An image of `length` bytes in clusters of 64 KiB, that may grow to the double.
    pub const fn new(length: u64) -> Self {
        Self { length, length_max: length * 2, cluster_size: 1 << 16 }
    }
}

/// A header that was checked.
pub(super) struct Header {
    pub(super) geometry: Geometry,
    pub(super) length: u64,
}

/// An image's `field` cannot be what it is.
pub(super) fn bad(field: &str) -> IoError {
    tracing::warn!(field, "not a valid toy image");
    IoError::new(Errno::EINVAL, IoErrorKind::BadImage)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

async fn read_block(req: &Req, file: &Edge, offset: u64) -> IoResult<AlignedBuf> {
    let buf = AlignedBuf::zeroed(BLOCK as usize, BLOCK as usize).into_io();
    file.read(req, HostOffset(offset), &buf).await?;
    Ok(buf.to_aligned(1))
}

async fn write(req: &Req, file: &Edge, offset: u64, bytes: &[u8]) -> IoResult<()> {
    let mut buf = AlignedBuf::zeroed(BLOCK as usize, BLOCK as usize);
    buf[..bytes.len()].copy_from_slice(bytes);
    file.write(req, HostOffset(offset), &buf.into_io(), RequestFlags::empty()).await
}

pub(super) async fn format(req: &Req, file: &Edge, format: ToyFormat) -> IoResult<()> {
    let ToyFormat { length, length_max, cluster_size } = format;
    if !cluster_size.is_power_of_two() || length_max < length {
        return Err(IoError::INVALID);
    }
    let geometry = Geometry::new(cluster_size.trailing_zeros(), length_max.div_ceil(cluster_size))
        .map_err(|_| IoError::INVALID)?;
    for block in 0..geometry.table_blocks() {
        write_block(req, file, &geometry, block, &[]).await?;
    }
    write_header(req, file, &geometry, length).await?;
    file.flush(req).await
}

pub(super) async fn write_header(req: &Req, file: &Edge, geometry: &Geometry, length: u64) -> IoResult<()> {
    let mut header = Vec::with_capacity(32);
    header.extend_from_slice(MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.extend_from_slice(&geometry.cluster_bits.to_le_bytes());
    header.extend_from_slice(&length.to_le_bytes());
    header.extend_from_slice(&geometry.capacity.to_le_bytes());
    write(req, file, 0, &header).await
}

pub(super) async fn write_block(req: &Req, file: &Edge, geometry: &Geometry, block: u64, bytes: &[u8]) -> IoResult<()> {
    debug_assert!(block < geometry.table_blocks());
    write(req, file, BLOCK + block * BLOCK, bytes).await
}

pub(super) async fn read_header(req: &Req, file: &Edge) -> IoResult<Header> {
    if file.length(req)? < BLOCK {
        return Err(bad("file length"));
    }
    let bytes = read_block(req, file, 0).await?;
    if bytes[..8] != *MAGIC {
        return Err(bad("magic"));
    }
    if u32_at(&bytes, 8) != VERSION {
        return Err(bad("version"));
    }
    let geometry = Geometry::new(u32_at(&bytes, 12), u64_at(&bytes, 24))?;
    let length = u64_at(&bytes, 16);
    if length > geometry.length_max() {
        return Err(bad("length"));
    }
    // The table must be there before memory is taken for it.
    if BLOCK + geometry.table_blocks() * BLOCK > file.length(req)? {
        return Err(bad("table beyond the file's end"));
    }
    Ok(Header { geometry, length })
}

pub(super) async fn read_table(req: &Req, file: &Edge, header: &Header) -> IoResult<Vec<Entry>> {
    let geometry = header.geometry;
    let file_length = file.length(req)?;
    let mut table = Vec::new();
    let mut seen = HashSet::new();
    for block in 0..geometry.table_blocks() {
        let bytes = read_block(req, file, BLOCK + block * BLOCK).await?;
        let left = (geometry.capacity - block * BLOCK_ENTRIES).min(BLOCK_ENTRIES);
        for i in 0..left as usize {
            let raw = u64_at(&bytes, i * 8);
            let is_place = raw.is_multiple_of(geometry.cluster_size())
                && raw >= geometry.data_start()
                && raw.checked_add(geometry.cluster_size()).is_some_and(|end| end <= file_length);
            match raw {
                0 | 1 => {}
                _ if !is_place => return Err(bad("place of a cluster")),
                place if !seen.insert(place) => return Err(bad("two entries name one cluster")),
                _ => {}
            }
            table.push(Entry::from_disk(raw));
        }
    }
    Ok(table)
}
