//! New qcow2 images: their options, their files, and how large those will be.
//!
//! What stands where in the file is decided in `block-qcow2-format`; here it is written.

use super::{
    CreateError, CreateOption, CreateOptionKind, NewImage, SIZE, Target, backing, check_path, luks, option,
    protocol_of, take_over, text,
};
use crate::crypt::new::NewVolume;
use block_common::options::Value;
use block_common::{AlignedBuf, Errno, IoError, Preallocation, RequestFlags};
use block_file_posix::{HostKind, create, remove};
use block_gs::{GlobalState, NodeRef};
use block_io::Root;
use block_qcow2_format::{
    Allocate, CompressionType, Encryption, Layout, MeasureOptions, Measured, NewImage as Spec, RefcountBits, Step,
    UsedClusters, Version,
};
use std::collections::BTreeMap;
use std::ops::Range;

pub(super) const NAME: &str = "qcow2";

/// Zeroes are written in pieces of this many bytes.
const ZEROES: u64 = 1 << 20;

/// In the order in which they are told after they were read.
pub(super) const OPTIONS: [CreateOption; 21] = {
    use CreateOptionKind::{Bool, Number, Size, Str};
    [
        option("encryption", Bool, "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"),
        option("encrypt.format", Str, "Encrypt the image, format choices: 'aes', 'luks'"),
        option("encrypt.key-secret", Str, "ID of secret providing qcow AES key or LUKS passphrase"),
        option("encrypt.cipher-alg", Str, "Name of encryption cipher algorithm"),
        option("encrypt.cipher-mode", Str, "Name of encryption cipher mode"),
        option("encrypt.ivgen-alg", Str, "Name of IV generator algorithm"),
        option("encrypt.ivgen-hash-alg", Str, "Name of IV generator hash algorithm"),
        option("encrypt.hash-alg", Str, "Name of encryption hash algorithm"),
        option("encrypt.iter-time", Number, "Time to spend in PBKDF in milliseconds"),
        option("cluster_size", Size, "qcow2 cluster size"),
        option("extended_l2", Bool, "Extended L2 tables"),
        option("preallocation", Str, "Preallocation mode (allowed values: off, metadata, falloc, full)"),
        option("compression_type", Str, "Compression method used for image cluster compression"),
        SIZE,
        option("compat", Str, "Compatibility level (v2 [0.10] or v3 [1.1])"),
        option(backing::FILE, Str, "File name of a base image"),
        option(backing::FORMAT, Str, "Image format of the base image"),
        option("data_file", Str, "File name of an external data file"),
        option("data_file_raw", Bool, "The external data file must stay valid as a raw image"),
        option("lazy_refcounts", Bool, "Postpone refcount updates"),
        option("refcount_bits", Number, "Width of a reference count entry in bits"),
    ]
};

/// Names that may stand in an image as its backing file's format: every driver of the field's.
const DRIVERS: [&str; 42] = [
    "blkdebug",
    "blklogwrites",
    "blkreplay",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "file",
    "ftp",
    "ftps",
    "gluster",
    "host_cdrom",
    "host_device",
    "http",
    "https",
    "iscsi",
    "luks",
    "nbd",
    "nfs",
    "null-aio",
    "null-co",
    "nvme",
    "parallels",
    "preallocate",
    "qcow",
    "qcow2",
    "qed",
    "quorum",
    "raw",
    "rbd",
    "replication",
    "snapshot-access",
    "ssh",
    "throttle",
    "vdi",
    "vhdx",
    "vmdk",
    "vpc",
    "vvfat",
];

/// The values of options that have one without being given.
pub(super) fn defaults() -> BTreeMap<&'static str, Value> {
    let text = |value: &str| Value::Str(value.to_owned());
    BTreeMap::from([
        ("cluster_size", 65536u64.into()),
        ("extended_l2", text("off")),
        ("compression_type", text("zlib")),
        ("lazy_refcounts", text("off")),
        ("refcount_bits", text("16")),
    ])
}

impl NewImage {
    fn value(&self, name: &str) -> Option<String> {
        self.options.get(name).map(text)
    }

    fn is_on(&self, name: &str) -> bool {
        self.value(name).as_deref() == Some("on")
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        self.value(name).and_then(|value| value.parse().ok())
    }

    /// Whether its data is to be encrypted.
    pub fn is_encrypted(&self) -> bool {
        match self.format.as_str() {
            NAME => self.is_on("encryption") || self.options.contains_key("encrypt.format"),
            format => format == luks::NAME,
        }
    }

    /// How its data is to be encrypted, if it is.
    fn encryption(&self) -> Result<Option<NewEncryption>, CreateError> {
        let format = if self.is_on("encryption") { Some("aes".into()) } else { self.value("encrypt.format") };
        let given = OPTIONS.iter().map(|option| option.name).filter(|name| self.options.contains_key(*name));
        let mut more = given.filter(|name| name.starts_with("encrypt.") && *name != "encrypt.format");
        match format.as_deref() {
            None if more.next().is_some() => Err(CreateError::Missing("encrypt.format")),
            None => Ok(None),
            Some("luks") => Ok(Some(NewEncryption::Luks(NewVolume::parse("encrypt.", |name| self.value(name))?))),
            Some("aes") => match more.find(|name| *name != "encrypt.key-secret") {
                Some(name) => Err(CreateError::Unexpected(name)),
                None => Ok(Some(NewEncryption::Aes(self.value("encrypt.key-secret")))),
            },
            Some(other) => Err(CreateError::BadChoice { name: "format", value: other.into() }),
        }
    }

    /// What the options say, in the order in which the field's tools look at them.
    fn spec(&self, size: u64) -> Result<(Spec, Preallocation, Option<NewEncryption>), CreateError> {
        let refused = |name, value: &str| Err(CreateError::BadChoice { name, value: value.into() });
        let version = match self.value("compat").as_deref() {
            None | Some("1.1" | "v3") => Version::V3,
            Some("0.10" | "v2") => Version::V2,
            Some(other) => return refused("version", other),
        };
        let backing_format = self.value(backing::FORMAT);
        if let Some(format) = backing_format.as_deref().filter(|format| !DRIVERS.contains(format)) {
            return refused("backing-fmt", format);
        }
        let encryption = self.encryption()?;
        let preallocation = self.value("preallocation").unwrap_or_else(|| "off".into());
        let Ok(preallocation) = preallocation.parse() else { return refused("preallocation", &preallocation) };
        let refcount_bits = self.number::<i128>("refcount_bits").unwrap_or_default();
        if refcount_bits > i64::MAX.into() {
            return Err(CreateError::BadInteger("refcount-bits"));
        }
        let compression = match self.value("compression_type").as_deref() {
            None | Some("zlib") => CompressionType::Zlib,
            Some("zstd") => CompressionType::Zstd,
            Some(other) => return refused("compression-type", other),
        };
        let allocate = match preallocation {
            Preallocation::Off => Allocate::Nothing,
            Preallocation::Metadata => Allocate::Tables,
            _ => Allocate::Space,
        };
        let spec = Spec {
            version,
            size,
            cluster_size: self.number("cluster_size").unwrap_or_default(),
            refcount_bits: u64::try_from(refcount_bits).unwrap_or_default(),
            extended_l2: self.is_on("extended_l2"),
            compression,
            lazy_refcounts: self.is_on("lazy_refcounts"),
            data_file: self.value("data_file").map(String::into_bytes),
            data_file_raw: self.is_on("data_file_raw"),
            backing_file: self.value(backing::FILE).map(String::into_bytes),
            backing_format: backing_format.map(String::into_bytes),
            allocate,
            encryption: match &encryption {
                None => None,
                Some(NewEncryption::Aes(_)) => Some(Encryption::Aes),
                // What is in it takes long to be made.
                Some(NewEncryption::Luks(volume)) => {
                    Some(Encryption::Luks { len: volume.header_len()?, bytes: Vec::new() })
                }
            },
        };
        Ok((spec, preallocation, encryption))
    }

    /// Create the image, and its data file if it has one. If that fails, neither is left.
    pub(super) async fn create_qcow2(&self, gs: &GlobalState, size: u64) -> Result<(), CreateError> {
        if self.is_on("encryption") && self.options.contains_key("encrypt.format") {
            return Err(CreateError::TwoEncryptions);
        }
        let (mut spec, preallocation, encryption) = self.spec(size)?;
        let data = match self.value("data_file") {
            Some(name) => Some(data_protocol(gs, &name).await?),
            None => None,
        };
        // A path and nothing else, whatever a user may write.
        spec.data_file = data.as_ref().map(|(_, path)| path.clone().into_bytes());
        let mut layout = Layout::new(spec.clone())?;
        self.refuse_unbuilt()?;
        match encryption {
            None => {}
            // Nothing of it is in the image, but it is to be there.
            Some(NewEncryption::Aes(secret)) => {
                let none = || CreateError::NoKeySecret("encrypt.key-secret".into());
                gs.secret_text(&secret.ok_or_else(none)?)?;
            }
            Some(NewEncryption::Luks(volume)) => {
                let password = volume.password(gs)?;
                let (len, bytes) = (volume.header_len()?, volume.make(gs, password, false).await?);
                layout = Layout::new(Spec { encryption: Some(Encryption::Luks { len, bytes }), ..spec })?;
            }
        }
        if self.kind == HostKind::Device && preallocation != Preallocation::Off {
            return Err(CreateError::NoMode(preallocation));
        }
        let mut made = Vec::new();
        let done = self.create_files(gs, (&layout, preallocation), data, &mut made).await;
        if done.is_err() {
            for path in made {
                // The error that led here is the one to be told.
                let _ = remove(path, gs.pool()).await;
            }
        }
        done
    }

    /// Create the image in a node, which is empty before. A data file that is the disk as it is keeps what it has.
    pub(super) async fn create_qcow2_in(
        &self,
        gs: &GlobalState,
        node: &NodeRef,
        data: Option<&NodeRef>,
        size: u64,
    ) -> Result<(), CreateError> {
        let (spec, preallocation, encryption) = self.spec(size)?;
        let mut layout = Layout::new(spec.clone())?;
        match encryption {
            None => {}
            Some(NewEncryption::Aes(secret)) => {
                let none = || CreateError::NoKeySecret("encrypt.key-secret".into());
                gs.secret_text(&secret.ok_or_else(none)?)?;
            }
            Some(NewEncryption::Luks(volume)) => {
                let password = volume.password(gs)?;
                let (len, bytes) = (volume.header_len()?, volume.make(gs, password, false).await?);
                layout = Layout::new(Spec { encryption: Some(Encryption::Luks { len, bytes }), ..spec })?;
            }
        }
        let Some(data) = data else {
            let target = Target::on(gs, node).await?;
            let written = write_on(&target, &layout, preallocation).await;
            target.leave(gs).await;
            return written;
        };
        let target = Target::of_two(gs, node).await?;
        let written = match Target::of_two(gs, data).await {
            Ok(data) => {
                let how = (preallocation, self.is_on("data_file_raw"));
                let sized = size_node(data.root.io(), &layout, how).await;
                data.leave(gs).await;
                match sized {
                    Ok(()) => write_on(&target, &layout, preallocation).await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error.into()),
        };
        target.leave(gs).await;
        written
    }

    /// Files that were created are added to `made`.
    async fn create_files(
        &self,
        gs: &GlobalState,
        (layout, preallocation): (&Layout, Preallocation),
        data: Option<(HostKind, String)>,
        made: &mut Vec<String>,
    ) -> Result<(), CreateError> {
        make(gs, (self.kind, &self.path), layout.length(), made).await?;
        let image = Target::open(gs, self.kind, &self.path).await?;
        let done = async {
            if let Some((kind, path)) = data {
                make(gs, (kind, &path), layout.data_length(), made).await?;
                let file = Target::open(gs, kind, &path).await?;
                let sized = match kind {
                    HostKind::Device => Ok(()),
                    HostKind::File => size_data(file.root.io(), layout, preallocation).await,
                };
                let closed = file.close(gs).await;
                sized.and(closed)?;
            }
            write_image(image.root.io(), layout, preallocation, self.kind).await
        };
        let done = done.await;
        let closed = image.close(gs).await;
        done.and(closed)
    }

    /// Begin to measure the file of such a qcow2 image.
    pub(super) fn measuring_qcow2(&self, gs: &GlobalState) -> Result<Measuring, CreateError> {
        let cluster_size = self.number("cluster_size").unwrap_or_default();
        let extended = self.is_on("extended_l2");
        let default = RefcountBits::DEFAULT.bits().into();
        MeasureOptions::new(cluster_size, extended, default)?;
        let is_v2 = match self.value("compat").as_deref() {
            None | Some("1.1") => false,
            Some("0.10") => true,
            Some(other) => return Err(CreateError::BadLevel(other.into())),
        };
        let bits = self.number("refcount_bits").unwrap_or_default();
        let options = MeasureOptions::new(cluster_size, extended, bits)?;
        if is_v2 && options.refcount() != RefcountBits::DEFAULT {
            return Err(CreateError::MeasureWidth);
        }
        let mode = self.value("preallocation").unwrap_or_else(|| "off".into());
        let mode: Preallocation = mode.parse().map_err(|_| CreateError::BadMode(mode))?;
        let options = match self.encryption()? {
            Some(NewEncryption::Luks(volume)) => {
                volume.password(gs)?;
                options.with_encryption_header(volume.header_len()?)?
            }
            Some(NewEncryption::Aes(_)) | None => options,
        };
        Ok(Measuring {
            used: options.used_clusters(),
            options,
            has_space: matches!(mode, Preallocation::Falloc | Preallocation::Full),
            has_backing: self.options.contains_key(backing::FILE),
            has_bitmaps: !is_v2,
        })
    }
}

/// How a new image's data is to be encrypted.
enum NewEncryption {
    /// As of old, with the password of this name.
    Aes(Option<String>),
    /// With a header.
    Luks(NewVolume),
}

/// The size of a file that is not there yet.
#[derive(Clone, Debug)]
pub struct Measuring {
    options: MeasureOptions,
    used: UsedClusters,
    has_space: bool,
    has_backing: bool,
    has_bitmaps: bool,
}

impl Measuring {
    /// Whether such an image may have bitmaps.
    pub fn has_bitmaps(&self) -> bool {
        self.has_bitmaps
    }

    /// What bitmaps of these names and granularities take, in bytes, for a disk of `size` bytes.
    pub fn bitmaps(&self, size: u64, bitmaps: &[(String, u64)]) -> u64 {
        self.options.bitmaps(size, bitmaps.iter().map(|(name, granularity)| (name.len(), *granularity)))
    }

    /// The source has data at these bytes. Ranges come in their order.
    pub fn add(&mut self, range: Range<u64>) {
        self.used.add(range);
    }

    /// The file of an image of `size` bytes, with the data that was told. With a backing file, everything of a `source` is copied.
    ///
    /// # Errors
    /// A disk that is too large.
    pub fn finish(self, size: u64, source: bool) -> Result<Measured, CreateError> {
        let measured = self.options.measure(size, self.used.count())?;
        match self.has_space || (source && self.has_backing) {
            true => Ok(Measured { required: measured.fully_allocated, ..measured }),
            false => Ok(measured),
        }
    }
}

/// What the name of a data file is for.
async fn data_protocol(gs: &GlobalState, name: &str) -> Result<(HostKind, String), CreateError> {
    protocol_of(gs, name).await.map_err(|error| match error {
        CreateError::ProtocolCreatesNothing(protocol) => CreateError::DataFileCreatesNothing(protocol),
        other => other,
    })
}

/// Make an empty file, or take over a device of at least `len` bytes.
async fn make(
    gs: &GlobalState,
    (kind, path): (HostKind, &str),
    len: u64,
    made: &mut Vec<String>,
) -> Result<(), CreateError> {
    if kind == HostKind::Device {
        return take_over(gs, path, len, Preallocation::Off).await;
    }
    check_path(gs, path).await?;
    create(path, 0, Preallocation::Off, gs.pool()).await?;
    made.push(path.to_owned());
    Ok(())
}

/// Give the data file, which is empty, its length and its space.
async fn size_data(file: &Root, layout: &Layout, preallocation: Preallocation) -> Result<(), CreateError> {
    let (size, len) = (layout.size(), layout.data_length());
    match preallocation {
        Preallocation::Off | Preallocation::Metadata => {
            resize(file, len, Preallocation::Off).await?;
            // What lies behind the disk's end in its last cluster has its space.
            zero(file, size, len - size).await
        }
        mode => resize(file, len, mode).await,
    }
}

/// Give a data file that was there before, and may be long enough, its length and its space.
async fn size_node(
    file: &Root,
    layout: &Layout,
    (preallocation, is_raw): (Preallocation, bool),
) -> Result<(), CreateError> {
    if !is_raw {
        resize(file, 0, Preallocation::Off).await?;
    } else if file.length().map_err(failed)? >= layout.data_length() {
        return Ok(());
    }
    size_data(file, layout, preallocation).await
}

/// Empty a node that is there, and make it the image. Nothing of what was there may show through where the image has nothing yet.
async fn write_on(target: &Target, layout: &Layout, preallocation: Preallocation) -> Result<(), CreateError> {
    target.empty().await?;
    write_image(target.root.io(), layout, preallocation, HostKind::File).await
}

/// Carry out the steps of a layout. What they leave out reads as zeroes in a file, and is not looked at on a device.
async fn write_image(
    root: &Root,
    layout: &Layout,
    preallocation: Preallocation,
    kind: HostKind,
) -> Result<(), CreateError> {
    let (mut is_sized, mut is_first) = (kind == HostKind::Device, true);
    for step in layout.steps() {
        // A write does not make a node longer.
        if !is_sized && !matches!(step, Step::Space { .. }) {
            grow(root, layout.length()).await?;
            is_sized = true;
        }
        match step {
            Step::Space { offset, len } => {
                resize(root, offset, Preallocation::Off).await?;
                resize(root, offset + len, preallocation).await?;
            }
            Step::Write { offset, bytes } => {
                let mut buf = memory(bytes.len())?;
                buf.copy_from_slice(&bytes);
                let written = write(root, offset, buf).await;
                written.map_err(|error| told_of(error, is_first || offset == 0, preallocation))?;
                is_first = false;
            }
            Step::Zeroes { offset, len } => {
                let zeroed = zero(root, offset, len).await;
                zeroed.map_err(|error| told_of(error, is_first, preallocation))?;
                is_first = false;
            }
            Step::Length(len) => {
                if kind == HostKind::File {
                    grow(root, len).await?;
                }
            }
        }
    }
    Ok(())
}

fn memory(len: usize) -> Result<AlignedBuf, CreateError> {
    AlignedBuf::try_zeroed(len, 4096).ok_or(failed(IoError::host(Errno::ENOMEM.raw())))
}

async fn write(root: &Root, offset: u64, buf: AlignedBuf) -> Result<(), CreateError> {
    let (written, _) = root.write(offset, buf.into_io(), RequestFlags::empty()).await;
    written.map_err(failed)
}

/// Write zeroes, so that the file has space for them.
async fn zero(root: &Root, offset: u64, len: u64) -> Result<(), CreateError> {
    let mut at = offset;
    while at < offset + len {
        let piece = ZEROES.min(offset + len - at);
        write(root, at, memory(piece as usize)?).await?;
        at += piece;
    }
    Ok(())
}

/// Make the file at least `len` bytes long.
async fn grow(root: &Root, len: u64) -> Result<(), CreateError> {
    match root.length().map_err(failed)? < len {
        true => resize(root, len, Preallocation::Off).await,
        false => Ok(()),
    }
}

async fn resize(root: &Root, len: u64, preallocation: Preallocation) -> Result<(), CreateError> {
    root.truncate(len, preallocation).await.map_err(|error| CreateError::Resize(error.errno()))
}

/// What is said of an image that cannot be written: the field begins with the header, which is written last here, so who cannot begin is told of that one, too.
fn told_of(error: CreateError, is_header: bool, preallocation: Preallocation) -> CreateError {
    let CreateError::Device { error, .. } = error else { return error };
    let doing = match preallocation {
        _ if is_header => "write qcow2 header",
        Preallocation::Off => "write refcount table",
        Preallocation::Metadata => "resize image: Allocating clusters failed",
        Preallocation::Falloc | Preallocation::Full => "resize image: Failed to resize refcount structures",
    };
    CreateError::Device { doing, error }
}

fn failed(error: IoError) -> CreateError {
    match error.errno() {
        Errno::EFBIG => CreateError::Resize(Errno::EFBIG),
        _ => CreateError::Device { doing: "write the image", error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(options: &str) -> String {
        let image = NewImage::imagine(NAME, options).expect("options");
        let made = image.spec(1 << 20).and_then(|(spec, ..)| Ok(Layout::new(spec)?));
        made.expect_err(options).to_string()
    }

    #[test]
    fn values_are_looked_at_in_the_fields_order() {
        let version = "Parameter 'version' does not accept value 'x'";
        assert_eq!(refused("cluster_size=100,refcount_bits=3,compat=x,preallocation=x"), version);
        assert_eq!(refused("backing_fmt=x,preallocation=x"), "Parameter 'backing-fmt' does not accept value 'x'");
        assert_eq!(
            refused("preallocation=x,compression_type=x"),
            "Parameter 'preallocation' does not accept value 'x'"
        );
        assert_eq!(refused("compression_type=lzo"), "Parameter 'compression-type' does not accept value 'lzo'");
        assert_eq!(refused("refcount_bits=18446744073709551615"), "Parameter 'refcount-bits' expects integer");
        let width = "Refcount width must be a power of two and may not exceed 64 bits";
        assert_eq!(refused("refcount_bits=-1"), width);
    }

    #[test]
    fn values_are_told_in_the_fields_order() {
        let shown = |options| NewImage::imagine(NAME, options).expect("options").to_string();
        assert_eq!(
            shown("size=1k"),
            "cluster_size=65536 extended_l2=off compression_type=zlib size=1024 lazy_refcounts=off refcount_bits=16"
        );
        assert_eq!(
            shown("refcount_bits=0x8,backing_file=a,,b,nocow=off,compat=v3"),
            "cluster_size=65536 extended_l2=off compression_type=zlib compat=v3 backing_file=a,,b lazy_refcounts=off \
             refcount_bits=8 nocow=off"
        );
    }
}
