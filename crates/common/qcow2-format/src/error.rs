//! What is wrong with an image.

/// Why bytes are not a qcow2 image, or not one that can be used. The texts are the field's; each names the field that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Another magic number.
    #[error("Image is not in qcow2 format")]
    Magic,
    /// A version that is neither 2 nor 3.
    #[error("Unsupported qcow2 version {0}")]
    Version(u32),
    /// The cluster size is out of 2^9 to 2^21.
    #[error("Unsupported cluster size: 2^{0}")]
    ClusterBits(u32),
    /// With subclusters, clusters are at least 16 KiB.
    #[error("Unsupported cluster size: 2^{0} is too small for extended L2 entries")]
    ClusterBitsExtended(u32),
    /// The header claims fewer bytes than version 3 has.
    #[error("qcow2 header too short")]
    HeaderShort,
    /// The header claims more than a cluster.
    #[error("qcow2 header exceeds cluster size")]
    HeaderLong,
    /// Incompatible features that nobody knows.
    #[error("Unsupported qcow2 feature(s): {0}")]
    Features(String),
    /// A compression type without its feature bit.
    #[error("qcow2: Compression type incompatible feature bit must be set")]
    CompressionBitMissing,
    /// The feature bit without a compression type.
    #[error("qcow2: Compression type incompatible feature bit must not be set")]
    CompressionBitSet,
    /// A compression type that nobody knows.
    #[error("qcow2: unknown compression type: {0}")]
    CompressionType(u8),
    /// Wider than 64 bits.
    #[error("Reference count entry width too large; may not exceed 64 bits")]
    RefcountOrder(u32),
    /// An encryption method that nobody knows.
    #[error("Unsupported encryption method {0}")]
    CryptMethod(u32),
    /// LUKS without its header.
    #[error("Missing CRYPTO header for crypt method 2")]
    CryptoMissing,
    /// A LUKS header without LUKS.
    #[error("CRYPTO header extension only expected with LUKS encryption method")]
    CryptoUnexpected,
    /// The LUKS header's extension has another length.
    #[error("CRYPTO header extension size {got}, but expected size 16")]
    CryptoLength {
        /// Its length.
        got: u32,
    },
    /// The LUKS header lies between clusters.
    #[error("Encryption header offset '{0}' is not a multiple of cluster size")]
    CryptoOffset(u64),
    /// A header extension ends past the first cluster.
    #[error("Header extension too large")]
    ExtensionLong,
    /// The backing format's name is no name.
    #[error("ERROR: ext_backing_format: len={0} too large (>=16)")]
    BackingFormatLong(u32),
    /// The bitmaps extension has another length.
    #[error("bitmaps_ext: Invalid extension length")]
    BitmapsLength,
    /// The bitmaps extension's reserved field is not zero.
    #[error("bitmaps_ext: Reserved field is not zero")]
    BitmapsReserved,
    /// No or too many bitmaps.
    #[error("bitmaps_ext: {0}")]
    BitmapsCount(&'static str),
    /// The bitmap directory cannot be there.
    #[error("bitmaps_ext: invalid bitmap directory offset")]
    BitmapsOffset,
    /// The bitmap directory is too large.
    #[error("bitmaps_ext: bitmap directory size ({0}) exceeds the maximum supported size (67043328)")]
    BitmapsSize(u64),
    /// The backing file's name does not begin in the first cluster.
    #[error("Invalid backing file offset")]
    BackingOffset,
    /// The backing file's name is no name.
    #[error("Backing file name too long")]
    BackingLong,
    /// The virtual disk is larger than the tables can describe.
    #[error("Image is too big")]
    SizeTooBig,
    /// There is no reference count table.
    #[error("Image does not contain a reference count table")]
    NoRefcountTable,
    /// A table is larger than 8 MiB.
    #[error("Reference count table too large")]
    RefcountTableLarge,
    /// A table lies between clusters, or past what can be.
    #[error("Reference count table offset invalid")]
    RefcountTableOffset,
    /// More than 65536 snapshots.
    #[error("Snapshot table too large")]
    SnapshotTableLarge,
    /// The table lies between clusters, or past what can be.
    #[error("Snapshot table offset invalid")]
    SnapshotTableOffset,
    /// A table is larger than 32 MiB.
    #[error("Active L1 table too large")]
    L1Large,
    /// The table lies between clusters, or past what can be.
    #[error("Active L1 table offset invalid")]
    L1Offset,
    /// The table does not reach the virtual disk's end.
    #[error("L1 table is too small")]
    L1Small,
}
