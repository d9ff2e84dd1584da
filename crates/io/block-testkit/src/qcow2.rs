//! A second opinion on qcow2 images: what is in them and what is wrong with them, from their bytes alone, without the engine.

use block_crypt::{Cipher, CipherMode, CipherSpec, IvGen, SectorCipher};
use block_qcow2_format::{
    AutoclearFeatures, Bitmap, BitmapCluster, BitmapFlags, BitmapTableEntry, CompatibleFeatures, CompressionType,
    Geometry, Header, IncompatibleFeatures, L1Entry, L2Entry, L2Kind, RefcountBits, Snapshot, SubclusterBits,
    SubclusterState, Version, feature_names,
};
use std::collections::BTreeMap;

/// Bytes of the LUKS header, and what is in it.
const CRYPTO_BYTES: u64 = 1100;
const CRYPTO_BYTE: u8 = 0xc5;

/// A new image.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// Its version.
    pub version: Version,
    /// The size of clusters, as a power of two.
    pub cluster_bits: u32,
    /// The width of reference counts in bits, as a power of two.
    pub refcount_order: u32,
    /// Whether clusters have subclusters.
    pub extended: bool,
    /// How clusters are compressed.
    pub compression: CompressionType,
    /// How data is encrypted, as the header says it: 0 not at all, 1 as of old, 2 with LUKS. The key is always that of [`cipher`].
    pub crypt_method: u32,
    /// The length of the disk in bytes.
    pub size: u64,
}

/// The password of images that are encrypted as of old.
pub const PASSWORD: &str = "sixteen letters!";

/// What encrypts the data of an image with this header, if it is encrypted: in tests the key is no secret, and a LUKS header is there for its place only.
///
/// # Panics
/// When the ciphers are gone.
pub fn cipher(header: &Header) -> Option<SectorCipher> {
    let (cipher, mode, key) = match header.crypt_method {
        0 => return None,
        1 => (Cipher::Aes128, CipherMode::Cbc, PASSWORD.as_bytes().to_vec()),
        _ => (Cipher::Aes256, CipherMode::Xts, (0..64).collect()),
    };
    let spec = CipherSpec { cipher, mode, iv: Some(IvGen::Plain64) };
    Some(SectorCipher::new(spec, &key).expect("a cipher"))
}

impl Format {
    /// Version 3 with clusters of 64 KiB.
    pub fn new(size: u64) -> Self {
        let compression = CompressionType::Zlib;
        let (version, crypt_method) = (Version::V3, 0);
        Self { version, cluster_bits: 16, refcount_order: 4, extended: false, compression, crypt_method, size }
    }

    /// An empty image: header, table of counts, a block of counts, L1 table, and room for a LUKS header.
    ///
    /// # Panics
    /// When there is no such format.
    pub fn bytes(self) -> Vec<u8> {
        let geometry = Geometry::new(self.cluster_bits, self.extended).expect("a geometry");
        let size = geometry.cluster_size();
        let bits = RefcountBits::new(self.refcount_order).expect("a width");
        let l1_size = geometry.l1_entries_for(self.size);
        let l1_clusters = (l1_size * 8).div_ceil(size).max(1);
        let mut incompatible = IncompatibleFeatures::empty();
        incompatible.set(IncompatibleFeatures::EXTENDED_L2, self.extended);
        incompatible.set(IncompatibleFeatures::COMPRESSION, self.compression == CompressionType::Zstd);
        // Names of features do not fit beside the header into the smallest clusters.
        let features = if self.version == Version::V3 && size > 512 { feature_names() } else { Vec::new() };
        let crypto_at = (3 + l1_clusters) * size;
        let crypto = (self.crypt_method == 2).then_some((crypto_at, CRYPTO_BYTES));
        let clusters = geometry.clusters_for(crypto_at + crypto.map_or(0, |(_, len)| len));
        let header = Header {
            version: self.version,
            geometry,
            size: self.size,
            crypt_method: self.crypt_method,
            l1_size: l1_size as u32,
            l1_offset: 3 * size,
            refcount_table_offset: size,
            refcount_table_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible,
            compatible: CompatibleFeatures::empty(),
            autoclear: AutoclearFeatures::empty(),
            refcount_bits: bits,
            compression: self.compression,
            more: Vec::new(),
            backing_file: None,
            backing_format: None,
            data_file: None,
            crypto,
            features,
            bitmaps: None,
            has_stale_bitmaps: false,
            unknown: Vec::new(),
        };
        let mut bytes = header.to_bytes().expect("a header");
        bytes.resize((clusters * size) as usize, 0);
        if let Some((at, len)) = crypto {
            bytes[at as usize..][..len as usize].fill(CRYPTO_BYTE);
        }
        bytes[size as usize..size as usize + 8].copy_from_slice(&(2 * size).to_be_bytes());
        let block = &mut bytes[2 * size as usize..3 * size as usize];
        (0..clusters as usize).for_each(|cluster| bits.set(block, cluster, 1));
        bytes
    }
}

/// What was found.
#[derive(Debug, Default)]
pub struct Report {
    /// Clusters of the file that are counted more often than they are used. What is counted past the file's end takes no space, and a check does not
    /// look there either.
    pub leaks: u64,
    /// The virtual disk.
    pub guest: Vec<u8>,
    /// Compressed clusters.
    pub compressed: u64,
    /// Persistent bitmaps.
    pub bitmaps: Vec<Found>,
    /// Snapshots in the image.
    pub snapshots: Vec<FoundSnapshot>,
    /// Entries of the active tables that call a cluster shared which is counted once. [`inspect`] finds that wrong.
    pub unmarked: u64,
}

/// A snapshot in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundSnapshot {
    /// Its name.
    pub name: String,
    /// The disk as it was.
    pub guest: Vec<u8>,
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: String,
    /// Its flags.
    pub flags: BitmapFlags,
    /// How many bytes of the disk a bit stands for.
    pub granularity: u64,
    /// Its bits, the first in the lowest bit of the first byte.
    pub bits: Vec<u8>,
}

struct Inspector<'a> {
    bytes: &'a [u8],
    header: Header,
    cipher: Option<SectorCipher>,
    /// How often each cluster is used.
    uses: BTreeMap<u64, u64>,
    wrong: Vec<String>,
}

fn number(bytes: &[u8], at: u64) -> u64 {
    let mut number = [0; 8];
    for (i, byte) in number.iter_mut().enumerate() {
        *byte = bytes.get(at as usize + i).copied().unwrap_or(0);
    }
    u64::from_be_bytes(number)
}

/// Look at an image. `backing` has what it has not.
///
/// # Errors
/// Everything that is wrong with it; leaks are not.
pub fn inspect(bytes: &[u8], backing: &[u8]) -> Result<Report, String> {
    let report = inspect_torn(bytes, backing)?;
    match report.unmarked {
        0 => Ok(report),
        entries => Err(format!("{entries} entries without the COPIED bit, of clusters that are counted once")),
    }
}

/// As [`inspect`], for an image whose power failed while its snapshots were changed: an entry may call a cluster shared that no longer is, or is not
/// yet. Whoever writes to it copies it, and that is all.
///
/// # Errors
/// As [`inspect`], but for those entries.
pub fn inspect_torn(bytes: &[u8], backing: &[u8]) -> Result<Report, String> {
    let header = Header::parse(&bytes[..bytes.len().min(1 << 21)]).map_err(|error| error.to_string())?;
    let cipher = cipher(&header);
    let mut inspector = Inspector { bytes, header, cipher, uses: BTreeMap::new(), wrong: Vec::new() };
    let report = inspector.run(backing);
    if inspector.wrong.is_empty() { Ok(report) } else { Err(inspector.wrong.join("; ")) }
}

impl Inspector<'_> {
    fn uses(&mut self, offset: u64, len: u64, what: &str) {
        let geometry = self.header.geometry;
        if offset > self.bytes.len() as u64 + (64 << 20) {
            return self.wrong.push(format!("{what} at {offset:#x}, far past the end"));
        }
        for cluster in geometry.cluster(offset)..geometry.clusters_for(offset + len) {
            *self.uses.entry(cluster).or_default() += 1;
        }
    }

    fn count(&self, cluster: u64) -> u64 {
        let bits = self.header.refcount_bits;
        let block_bits = bits.block_bits(self.header.geometry.cluster_bits());
        let entries = u64::from(self.header.refcount_table_clusters) << (self.header.geometry.cluster_bits() - 3);
        if cluster >> block_bits >= entries {
            return 0;
        }
        let block = number(self.bytes, self.header.refcount_table_offset + (cluster >> block_bits) * 8) & !511;
        let from = (block as usize).min(self.bytes.len());
        if block == 0 { 0 } else { bits.get(&self.bytes[from..], (cluster & ((1 << block_bits) - 1)) as usize) }
    }

    fn run(&mut self, backing: &[u8]) -> Report {
        let geometry = self.header.geometry;
        let size = geometry.cluster_size();
        self.uses(0, size, "the header");
        self.uses(
            self.header.refcount_table_offset,
            u64::from(self.header.refcount_table_clusters) * size,
            "the table of counts",
        );
        for i in 0..u64::from(self.header.refcount_table_clusters) * size / 8 {
            let block = number(self.bytes, self.header.refcount_table_offset + i * 8) & !511;
            if block != 0 {
                self.uses(block, size, "a block of counts");
            }
        }
        if let Some((at, len)) = self.header.crypto {
            self.uses(at, len, "the LUKS header");
            let there = self.bytes.get(at as usize..(at + len) as usize);
            if there.is_none_or(|bytes| bytes.iter().any(|byte| *byte != CRYPTO_BYTE)) {
                self.wrong.push("the LUKS header was overwritten".into());
            }
        }
        let mut report = Report::default();
        let (l1, l1_size, len) = (self.header.l1_offset, self.header.l1_size, self.header.size);
        report.guest = self.disk(l1, l1_size, len, backing, true, &mut report);
        self.snapshots(backing, &mut report);
        self.bitmaps(&mut report);
        self.compare(&mut report);
        report
    }

    /// The disk of `len` bytes that an L1 table leads to. Flags are looked at if it is the active one.
    fn disk(
        &mut self,
        l1: u64,
        l1_size: u32,
        len: u64,
        backing: &[u8],
        is_active: bool,
        report: &mut Report,
    ) -> Vec<u8> {
        let geometry = self.header.geometry;
        let size = geometry.cluster_size();
        self.uses(l1, (u64::from(l1_size) * 8).max(1), "an L1 table");
        let mut guest = vec![0; len as usize];
        let there = backing.len().min(guest.len());
        guest[..there].copy_from_slice(&backing[..there]);
        for index in 0..u64::from(l1_size) {
            let entry = L1Entry::from_raw(number(self.bytes, l1 + index * 8));
            let Some(table) = entry.table() else { continue };
            if !geometry.is_aligned(table) || entry.reserved() != 0 {
                self.wrong.push(format!("L1 entry {index}: {:#x}", entry.raw()));
                continue;
            }
            self.uses(table, size, "an L2 table");
            if is_active {
                self.copied(entry.is_copied(), table, &format!("L1 entry {index}"), report);
            }
            for at in 0..geometry.l2_entries() {
                let place = table + at * geometry.l2_entry_size();
                let raw = (
                    L2Entry::from_raw(number(self.bytes, place)),
                    SubclusterBits::from_raw(number(self.bytes, place + 8)),
                );
                self.cluster(raw, (index * geometry.l2_entries() + at) * size, &mut guest, is_active, report);
            }
        }
        guest
    }

    /// The COPIED bit of an entry that leads to `host`.
    fn copied(&mut self, is_copied: bool, host: u64, entry: &str, report: &mut Report) {
        let count = self.count(self.header.geometry.cluster(host));
        match (is_copied, count) {
            (true, 1) | (false, 2..) => {}
            (false, 1) => report.unmarked += 1,
            (true, _) => self.wrong.push(format!("{entry} has the COPIED bit, and its cluster a count of {count}")),
            (false, 0) => self.wrong.push(format!("{entry} leads to a cluster that is not counted")),
        }
    }

    fn snapshots(&mut self, backing: &[u8], report: &mut Report) {
        let (count, offset) = (self.header.snapshots, self.header.snapshots_offset);
        if count == 0 {
            return;
        }
        let from = (offset as usize).min(self.bytes.len());
        let (all, len) = match Snapshot::parse_table(&self.bytes[from..], count) {
            Ok(found) => found,
            Err(error) => return self.wrong.push(format!("the table of snapshots: {error}")),
        };
        self.uses(offset, len as u64, "the table of snapshots");
        for snapshot in all {
            let len = snapshot.disk_size.unwrap_or(self.header.size);
            let guest = self.disk(snapshot.l1_offset, snapshot.l1_size, len, backing, false, report);
            report.snapshots.push(FoundSnapshot { name: String::from_utf8_lossy(&snapshot.name).into_owned(), guest });
        }
    }

    fn bitmaps(&mut self, report: &mut Report) {
        let Some(list) = self.header.bitmaps else { return };
        let (geometry, size) = (self.header.geometry, self.header.geometry.cluster_size());
        self.uses(list.directory_offset, list.directory_size, "the bitmap directory");
        let mut directory = vec![0; list.directory_size as usize];
        self.copy(list.directory_offset, &mut directory);
        let all = match Bitmap::parse_directory(&directory, &list, &geometry) {
            Ok(all) => all,
            Err(error) => return self.wrong.push(error.to_string()),
        };
        for bitmap in all {
            self.uses(bitmap.table_offset, u64::from(bitmap.table_size) * 8, "a bitmap's table");
            let mut bits = Vec::new();
            for at in 0..u64::from(bitmap.table_size) {
                let raw = number(self.bytes, bitmap.table_offset + at * 8);
                match BitmapTableEntry::from_raw(raw).cluster(&geometry) {
                    Some(BitmapCluster::Zeroes) => bits.extend(vec![0; size as usize]),
                    Some(BitmapCluster::Ones) => bits.extend(vec![0xff; size as usize]),
                    Some(BitmapCluster::Data(place)) => {
                        self.uses(place, size, "bits");
                        let mut cluster = vec![0; size as usize];
                        self.copy(place, &mut cluster);
                        bits.extend(cluster);
                    }
                    None => self.wrong.push(format!("entry {at} of a bitmap's table: {raw:#x}")),
                }
            }
            bits.truncate(self.header.size.div_ceil(bitmap.granularity()).div_ceil(8) as usize);
            let (name, flags, granularity) = (bitmap.name_text(), bitmap.flags, bitmap.granularity());
            report.bitmaps.push(Found { name, flags, granularity, bits });
        }
    }

    fn cluster(
        &mut self,
        (entry, bits): (L2Entry, SubclusterBits),
        offset: u64,
        guest: &mut [u8],
        is_active: bool,
        report: &mut Report,
    ) {
        let geometry = self.header.geometry;
        let size = geometry.cluster_size();
        // Behind the disk there may be a machine's state.
        let from = (offset as usize).min(guest.len());
        let room = (guest.len() - from).min(size as usize);
        if entry.reserved(&geometry) != 0 {
            self.wrong.push(format!("L2 entry of {offset:#x}: {:#x}", entry.raw()));
        }
        let host = match entry.kind(&geometry) {
            L2Kind::Unallocated => None,
            L2Kind::Zero => {
                guest[from..][..room].fill(0);
                None
            }
            L2Kind::ZeroAllocated(host) => {
                guest[from..][..room].fill(0);
                Some(host)
            }
            L2Kind::Data(host) => {
                if !geometry.is_extended() {
                    self.data(offset, host, &mut guest[from..][..room]);
                }
                Some(host)
            }
            L2Kind::Compressed(at, len) => {
                self.uses(at, len, "compressed data");
                report.compressed += 1;
                match self.unpack(at, len, size as usize) {
                    Some(plain) => guest[from..][..room].copy_from_slice(&plain[..room]),
                    None => self.wrong.push(format!("rubbish in the compressed cluster of {offset:#x}")),
                }
                None
            }
        };
        if let Some(host) = host {
            if !geometry.is_aligned(host) {
                self.wrong.push(format!("L2 entry of {offset:#x}: {:#x}", entry.raw()));
            }
            self.uses(host, size, "data");
            if is_active {
                self.copied(entry.is_copied(), host, &format!("the L2 entry of {offset:#x}"), report);
            }
        }
        if geometry.is_extended() && !matches!(entry.kind(&geometry), L2Kind::Compressed(..)) {
            let sub = geometry.subcluster_size() as usize;
            for i in 0..32 {
                let from = offset as usize + i * sub;
                let room = guest.len().saturating_sub(from).min(sub);
                match (bits.state(i as u32), host) {
                    (SubclusterState::Unallocated, _) => {}
                    _ if room == 0 => {}
                    (SubclusterState::Zero, _) => guest[from..][..room].fill(0),
                    (SubclusterState::Allocated, Some(host)) => {
                        self.data(from as u64, host + (i * sub) as u64, &mut guest[from..][..room]);
                    }
                    _ => self.wrong.push(format!("subclusters of {offset:#x}: {:#x}", bits.raw())),
                }
            }
        }
    }

    /// What the guest sees at `offset`, which lies at `host`.
    fn data(&self, offset: u64, host: u64, to: &mut [u8]) {
        let Some(cipher) = &self.cipher else { return self.copy(host, to) };
        let sector = SectorCipher::UNIT;
        let mut all = vec![0; to.len().next_multiple_of(sector)];
        self.copy(host, &mut all);
        if !all.is_empty() {
            let number = if self.header.crypt_method == 1 { offset } else { host } / sector as u64;
            cipher.decrypt(number, sector, &mut all);
        }
        to.copy_from_slice(&all[..to.len()]);
    }

    fn copy(&self, host: u64, to: &mut [u8]) {
        to.fill(0);
        let from = (host as usize).min(self.bytes.len());
        let there = (self.bytes.len() - from).min(to.len());
        to[..there].copy_from_slice(&self.bytes[from..from + there]);
    }

    fn unpack(&self, at: u64, len: u64, size: usize) -> Option<Vec<u8>> {
        use std::io::Read;
        let from = (at as usize).min(self.bytes.len());
        let packed = &self.bytes[from..(from + len as usize).min(self.bytes.len())];
        let mut plain = vec![0; size];
        match self.header.compression {
            CompressionType::Zlib => flate2::read::DeflateDecoder::new(packed).read_exact(&mut plain).ok()?,
            CompressionType::Zstd => zstd::Decoder::new(packed).ok()?.read_exact(&mut plain).ok()?,
        }
        Some(plain)
    }

    fn compare(&mut self, report: &mut Report) {
        let end = self
            .uses
            .keys()
            .next_back()
            .copied()
            .unwrap_or(0)
            .max(self.bytes.len() as u64 >> self.header.geometry.cluster_bits());
        for cluster in 0..=end {
            let (uses, count) = (self.uses.get(&cluster).copied().unwrap_or(0), self.count(cluster));
            if uses > count {
                self.wrong.push(format!("cluster {cluster} is used {uses} times and counted {count} times"));
            } else if cluster < self.header.geometry.clusters_for(self.bytes.len() as u64) {
                report.leaks += count - uses;
            }
        }
    }
}
