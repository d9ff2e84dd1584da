//! Creating images: from a format, a name and a list of options (`-o`) to a file that is there, or to a device that is taken over as it is.
//!
//! Options are checked by name in [`NewImage::parse`], before anything is touched; their values where the driver looks at them,
//! in [`NewImage::create`]. What there is to say about single formats is in `create/`. Opening what was created is not here.

mod amend;
mod backing;
mod error;
mod luks;
mod node;
mod qcow2;

pub use amend::{Amend, SlotOptions, amend_options};
pub use error::CreateError;
pub use node::CreateJobOptions;
pub use qcow2::Measuring;

use block_common::options::Value;
use block_common::options::{Dialect, strip_protocol};
use block_common::{
    AlignedBuf, FileName, LENGTH_MAX, Options, ParentKind, Perm, PermPair, Preallocation, RequestFlags, SizeError,
    parse_size_64,
};
use block_file_posix::{FileError, HostKind, create, kind, same_file};
use block_gs::{GlobalState, GraphResult, NodeRef, RootRef};
use block_io::Root;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

const HOST_DEVICE: &str = "host_device";

/// Lengths of new images are multiples of this many bytes.
const SECTOR: u64 = 512;

/// Formats of the field that can be created there and not by this build.
const NOT_BUILT: [&str; 7] = ["parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"];

/// Drivers of the field that create nothing.
const NOT_CREATABLE: [&str; 22] = [
    "blkdebug",
    "blklogwrites",
    "blkverify",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "host_cdrom",
    "ftp",
    "ftps",
    "http",
    "https",
    "null-aio",
    "null-co",
    "nvme",
    "preallocate",
    "quorum",
    "snapshot-access",
    "throttle",
    "vvfat",
];

/// Those of them that no name of a file begins with.
const NO_PROTOCOLS: [&str; 12] = [
    "blklogwrites",
    "bochs",
    "cloop",
    "compress",
    "copy-before-write",
    "copy-on-read",
    "dmg",
    "preallocate",
    "quorum",
    "snapshot-access",
    "throttle",
    "vvfat",
];

/// What a creation option takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateOptionKind {
    /// A number of bytes, suffixes allowed.
    Size,
    /// `on` or `off`.
    Bool,
    /// A whole number.
    Number,
    /// Text.
    Str,
}

/// An option that a driver takes when it creates an image.
#[derive(Clone, Copy, Debug)]
pub struct CreateOption {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub kind: CreateOptionKind,
    /// What it means.
    pub help: &'static str,
}

const fn option(name: &'static str, kind: CreateOptionKind, help: &'static str) -> CreateOption {
    CreateOption { name, kind, help }
}

const SIZE: CreateOption = CreateOption { name: "size", kind: CreateOptionKind::Size, help: "Virtual disk size" };

/// In the order in which they are told after they were read.
const FILE_OPTIONS: [CreateOption; 4] = [
    SIZE,
    CreateOption { name: "nocow", kind: CreateOptionKind::Bool, help: "Turn off copy-on-write (valid only on btrfs)" },
    CreateOption {
        name: "preallocation",
        kind: CreateOptionKind::Str,
        help: "Preallocation mode (allowed values: off, falloc, full)",
    },
    CreateOption {
        name: "extent_size_hint",
        kind: CreateOptionKind::Size,
        help: "Extent size hint for the image file, 0 to disable",
    },
];

/// What a device can be told, which has its length already.
const DEVICE_OPTIONS: [CreateOption; 2] = [
    SIZE,
    CreateOption {
        name: "preallocation",
        kind: CreateOptionKind::Str,
        help: "Preallocation mode (allowed values: off)",
    },
];

/// An image that is to be created.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// Its format's name.
    format: String,
    /// The driver that creates its file.
    kind: HostKind,
    /// The name that it was given.
    name: String,
    /// The path in that name.
    path: String,
    /// By their names.
    options: BTreeMap<&'static str, Value>,
    size: Option<u64>,
}

/// How the size of a file that is not there yet is found out.
#[derive(Clone, Debug)]
pub enum MeasuringOf {
    /// The whole of its content, and so many bytes before it.
    Content(u64),
    /// It depends on what of the content is data.
    Clusters(Measuring),
}

/// The options of images of `format`, alone or together with those of the protocol of `name`, by name.
///
/// # Errors
/// [`CreateError`] says what cannot be created.
pub async fn creation_options(
    gs: &GlobalState,
    format: &str,
    name: Option<&str>,
) -> Result<Vec<CreateOption>, CreateError> {
    check_format(format)?;
    let mut options = match name {
        None => options_of(format, None),
        Some(name) => options_of(format, Some(protocol_of(gs, name).await?.0)),
    };
    options.sort_by_key(|option| option.name);
    Ok(options)
}

/// The options of a format and those that a protocol adds to them.
fn options_of(format: &str, protocol: Option<HostKind>) -> Vec<CreateOption> {
    let of_kind = |kind: Option<HostKind>| match kind {
        Some(HostKind::File) => FILE_OPTIONS.to_vec(),
        Some(HostKind::Device) => DEVICE_OPTIONS.to_vec(),
        None => vec![SIZE],
    };
    let mut options = match format {
        qcow2::NAME => qcow2::OPTIONS.to_vec(),
        luks::NAME => luks::OPTIONS.to_vec(),
        _ => of_kind(kind_of_format(format)),
    };
    for option in of_kind(protocol) {
        if options.iter().all(|known| known.name != option.name) {
            options.push(option);
        }
    }
    options
}

/// The protocol that a format is, if it is one.
fn kind_of_format(format: &str) -> Option<HostKind> {
    match format {
        "file" => Some(HostKind::File),
        HOST_DEVICE => Some(HostKind::Device),
        _ => None,
    }
}

/// Whether images of `format` can be created.
///
/// # Errors
/// [`CreateError`] says why they cannot.
pub fn check_format(format: &str) -> Result<(), CreateError> {
    match format {
        "raw" | "file" | HOST_DEVICE | qcow2::NAME | luks::NAME => Ok(()),
        other if NOT_CREATABLE.contains(&other) => Err(CreateError::FormatCreatesNothing(other.into())),
        other if NOT_BUILT.contains(&other) => Err(CreateError::NotBuilt(format!("Image format '{other}'"))),
        other => Err(CreateError::UnknownFormat(other.into())),
    }
}

/// Whether `name` is for a file or a device, and its path.
async fn protocol_of(gs: &GlobalState, name: &str) -> Result<(HostKind, String), CreateError> {
    if name.starts_with("json:") {
        return Err(CreateError::UnknownProtocol("json".into()));
    }
    match FileName::parse(name)? {
        // Who writes the driver's name before the path means a regular file.
        FileName::Path(path) if name.starts_with("file:") => Ok((HostKind::File, path)),
        FileName::Path(path) => Ok((kind(&path, gs.pool()).await, path)),
        FileName::Protocol { protocol, name } if protocol == HOST_DEVICE => {
            Ok((HostKind::Device, strip_protocol(&name, HOST_DEVICE)))
        }
        FileName::Protocol { protocol, .. }
            if NOT_CREATABLE.contains(&protocol.as_str()) && !NO_PROTOCOLS.contains(&protocol.as_str()) =>
        {
            Err(CreateError::ProtocolCreatesNothing(protocol))
        }
        FileName::Protocol { protocol, .. } => Err(CreateError::UnknownProtocol(protocol)),
        FileName::Json(_) => Err(CreateError::UnknownProtocol("json".into())),
    }
}

/// A size option's value. Unlike other sizes it may be as large as any 64 bits, which nobody has: who is asked for it says so.
fn size_of(name: &'static str, value: &str) -> Result<u64, CreateError> {
    let number = value.trim_start_matches(|c: char| c.is_ascii_whitespace());
    match (number.strip_prefix('-'), parse_size_64(value)) {
        (Some(digits), _) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(CreateError::SizeRange { name, value: value.into() })
        }
        (Some(_), _) => Err(CreateError::BadSize(name.into())),
        (None, Ok(size)) => Ok(size),
        (None, Err(SizeError::TooLarge)) => Err(CreateError::SizeRange { name, value: value.into() }),
        (None, Err(_)) => Err(CreateError::BadSize(name.into())),
    }
}

/// A number option's value. Negative ones are large, as in C.
fn number_of(name: &'static str, value: &str) -> Result<i128, CreateError> {
    let number = value.trim_start_matches(|c: char| c.is_ascii_whitespace());
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (radix, digits) = match digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    if digits.is_empty() || !digits.chars().all(|c| c.is_digit(radix)) {
        return Err(CreateError::BadNumber(name));
    }
    match u64::from_str_radix(digits, radix) {
        Ok(number) if negative => Ok(-i128::from(number)),
        Ok(number) => Ok(number.into()),
        Err(_) => Err(CreateError::NumberRange { name, value: value.into() }),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

impl NewImage {
    /// The image of `format` that `name` is for, with options as on a command line: `preallocation=full,size=1G`.
    ///
    /// # Errors
    /// What cannot be created, options that do not exist, and values of the wrong type.
    #[doc(alias = "bdrv_img_create")]
    pub async fn parse(gs: &GlobalState, format: &str, name: &str, options: &str) -> Result<Self, CreateError> {
        check_format(format)?;
        let (protocol, path) = protocol_of(gs, name).await?;
        Ok(Self { name: name.into(), ..Self::new(format, protocol, path, options)? })
    }

    /// As [`NewImage::parse`], for a file that nobody is going to create.
    ///
    /// # Errors
    /// As [`NewImage::parse`].
    pub fn imagine(format: &str, options: &str) -> Result<Self, CreateError> {
        check_format(format)?;
        Self::new(format, HostKind::File, String::new(), options)
    }

    fn new(format: &str, protocol: HostKind, path: String, options: &str) -> Result<Self, CreateError> {
        let known = options_of(format, Some(protocol));
        let (given, _) = Options::parse_image_opts(options)?;
        let kind = kind_of_format(format).unwrap_or(protocol);
        let (name, format) = (String::new(), format.to_owned());
        let mut image = Self { format, kind, name, path, options: BTreeMap::new(), size: None };
        if image.format == qcow2::NAME {
            image.options = qcow2::defaults();
        }
        for (key, value) in given.flatten() {
            let option = known.iter().find(|option| option.name == key);
            let option = option.ok_or_else(|| CreateError::UnknownOption(key.clone()))?;
            let value = text(&value);
            let value = match option.kind {
                CreateOptionKind::Str => Value::Str(value),
                CreateOptionKind::Size => size_of(option.name, &value)?.into(),
                // As text, for it may be larger than a number of options can be.
                CreateOptionKind::Number => Value::Str(number_of(option.name, &value)?.to_string()),
                CreateOptionKind::Bool if value == "on" || value == "off" => Value::Str(value),
                CreateOptionKind::Bool => return Err(CreateError::BadSwitch(option.name)),
            };
            match (option.name, &value) {
                ("size", Value::Int(size)) => image.size = size.to_u64(),
                _ => drop(image.options.insert(option.name, value)),
            }
        }
        Ok(image)
    }

    /// Whether what was created reads as zeroes: a device holds what it held before.
    pub fn is_zero(&self) -> bool {
        match self.format.as_str() {
            qcow2::NAME => {
                // What is allocated and was not written decrypts to noise.
                let is_noise = self.is_encrypted() && self.is_preallocated();
                !self.options.contains_key(backing::FILE) && !is_noise
            }
            luks::NAME => false,
            _ => self.kind == HostKind::File,
        }
    }

    /// Whether it has a backing file of which nobody said what format it has.
    pub fn lacks_backing_format(&self) -> bool {
        self.options.contains_key(backing::FILE) && !self.options.contains_key(backing::FORMAT)
    }

    /// What it takes to open the image once it is there, beside its format and its file: the options by name.
    pub fn open_options(&self) -> Vec<(&'static str, String)> {
        let key = match self.format.as_str() {
            luks::NAME => "key-secret",
            qcow2::NAME if self.is_encrypted() => "encrypt.key-secret",
            _ => return Vec::new(),
        };
        let secret = self.options.get(key).map(text);
        secret.map(|secret| (key, secret)).into_iter().collect()
    }

    /// Whether clusters, or space, are allocated from the start.
    pub fn is_preallocated(&self) -> bool {
        self.options.get("preallocation").is_some_and(|mode| text(mode) != "off")
    }

    /// Whether it has clusters, so that larger ones may help where it is too large.
    pub fn has_clusters(&self) -> bool {
        self.format == qcow2::NAME
    }

    /// Begin to measure the file of such an image.
    ///
    /// # Errors
    /// Options that make no sense, or no password for what is encrypted.
    #[doc(alias = "bdrv_measure")]
    pub fn measuring(&self, gs: &GlobalState) -> Result<MeasuringOf, CreateError> {
        match self.format.as_str() {
            qcow2::NAME => self.measuring_qcow2(gs).map(MeasuringOf::Clusters),
            luks::NAME => self.luks_header_len(gs).map(MeasuringOf::Content),
            _ => Ok(MeasuringOf::Content(0)),
        }
    }

    /// A size as the option `size` takes it.
    ///
    /// # Errors
    /// [`CreateError::BadSize`] and [`CreateError::SizeRange`].
    pub fn parse_size(value: &str) -> Result<u64, CreateError> {
        size_of(SIZE.name, value)
    }

    /// Its size in bytes, if the options say it.
    pub fn size(&self) -> Option<u64> {
        // A header is as long as it is.
        self.size.or(self.is_detached_header().then_some(0))
    }

    /// It shall have `bytes` bytes, whatever the options say.
    pub fn set_size(&mut self, bytes: u64) {
        self.size = Some(bytes);
    }

    /// Create it, or empty the one that is there. Its length is rounded up to whole sectors. A device stays as long as it is, which must be
    /// enough; its first sector is zeroed, so that it does not look like what it was.
    ///
    /// # Errors
    /// A file that could not get its size stays behind, empty; one that could not get a format's tables is removed.
    #[doc(alias = "bdrv_create")]
    #[doc(alias = "bdrv_co_create")]
    #[doc(alias = "bdrv_co_create_opts")]
    #[doc(alias = "bdrv_co_create_opts_simple")]
    pub async fn create(&self, gs: &GlobalState) -> Result<(), CreateError> {
        let size = self.size().ok_or(CreateError::NoSize)?;
        if self.format == qcow2::NAME {
            return self.create_qcow2(gs, size).await;
        }
        if self.format == luks::NAME {
            return self.create_luks(gs, size).await;
        }
        let preallocation = match self.options.get("preallocation").map(text) {
            None => Preallocation::Off,
            Some(mode) => mode.parse().map_err(|_| CreateError::BadMode(mode))?,
        };
        self.refuse_unbuilt()?;
        if self.kind == HostKind::Device {
            return take_over(gs, &self.path, size, preallocation).await;
        }
        check_path(gs, &self.path).await?;
        // More than that is no length of a file, and the host would say so.
        let whole = size.checked_next_multiple_of(SECTOR).filter(|whole| *whole <= LENGTH_MAX);
        let size = whole.ok_or(CreateError::Resize(block_common::Errno::EINVAL))?;
        Ok(create(&self.path, size, preallocation, gs.pool()).await?)
    }

    /// Options that would change what happens: refused rather than ignored.
    fn refuse_unbuilt(&self) -> Result<(), CreateError> {
        let off = [("nocow", "off"), ("extent_size_hint", "0")];
        for (name, value) in off {
            if self.options.get(name).is_some_and(|given| text(given) != value) {
                return Err(CreateError::NotBuilt(format!("Option '{name}' of driver 'file'")));
            }
        }
        Ok(())
    }
}

/// Take over the device at `path`.
async fn take_over(gs: &GlobalState, path: &str, size: u64, preallocation: Preallocation) -> Result<(), CreateError> {
    if kind(path, gs.pool()).await == HostKind::Device {
        let free = check_path(gs, path).await;
        free.map_err(|error| CreateError::NoDevice(error.to_string()))?;
    }
    let target = Target::open(gs, HostKind::Device, path).await;
    let target = target.map_err(|error| CreateError::NoDevice(error.report()))?;
    let cleared = match preallocation {
        Preallocation::Off => clear(target.root.io(), size).await,
        other => Err(CreateError::NoMode(other)),
    };
    target.close(gs).await.and(cleared)
}

/// A file or device that is being written.
struct Target {
    node: NodeRef,
    root: RootRef,
}

impl Target {
    async fn open(gs: &GlobalState, kind: HostKind, path: &str) -> GraphResult<Self> {
        let mut options = Options::new(Dialect::Legacy);
        options.insert("driver", if kind == HostKind::Device { HOST_DEVICE } else { "file" })?;
        options.insert("filename", path)?;
        let node = gs.open(options).await?;
        let perm = PermPair::new(Perm::WRITE | Perm::RESIZE, Perm::all());
        let root = gs.new_root("", ParentKind::Backend, perm, &gs.main_io());
        gs.attach_root(&root, Some(&node)).await?;
        Ok(Self { node, root })
    }

    /// It is closed whatever it answers.
    async fn close(self, gs: &GlobalState) -> Result<(), CreateError> {
        gs.close_root(self.root).await;
        Ok(gs.close(self.node).await?)
    }
}

/// Let a device of at least `size` bytes begin with a sector of zeroes.
async fn clear(device: &Root, size: u64) -> Result<(), CreateError> {
    let failed = |doing| move |error| CreateError::Device { doing, error };
    let length = device.length().map_err(failed("get the device's length"))?;
    if length < size {
        return Err(FileError::DeviceLength.into());
    }
    let sector = AlignedBuf::zeroed(length.min(SECTOR) as usize, SECTOR as usize).into_io();
    let (written, _) = device.write(0, sector, RequestFlags::empty()).await;
    written.map_err(failed("clear the device's first sector"))
}

/// Whether the file that `name` is for may be written as a whole: no node of this block layer has it open.
///
/// # Errors
/// [`CreateError::InUse`], or a name that is none.
pub async fn check_not_open(gs: &GlobalState, name: &str) -> Result<(), CreateError> {
    match FileName::parse(name)? {
        FileName::Path(path) => check_path(gs, &path).await,
        FileName::Protocol { .. } | FileName::Json(_) => Ok(()),
    }
}

async fn check_path(gs: &GlobalState, path: &str) -> Result<(), CreateError> {
    match same_file(path, open_files(gs), gs.pool()).await {
        Some(_) => Err(CreateError::InUse(PathBuf::from(path))),
        None => Ok(()),
    }
}

/// The files of all nodes.
fn open_files(gs: &GlobalState) -> Vec<PathBuf> {
    let files = gs.nodes().into_iter().filter(|node| matches!(node.driver, "file" | "host_device"));
    files.filter_map(|node| node.options.lookup("filename").map(text)).map(PathBuf::from).collect()
}

/// Displays the options with their values: `size=1048576 preallocation=full`.
impl fmt::Display for NewImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let own = match self.format.as_str() {
            qcow2::NAME => &qcow2::OPTIONS[..],
            luks::NAME => &luks::OPTIONS,
            _ => &[],
        };
        let file = FILE_OPTIONS.iter().filter(|option| own.iter().all(|known| known.name != option.name));
        let mut space = "";
        for option in own.iter().chain(file) {
            let value = match option.name {
                "size" => self.size.map(|size| size.to_string()),
                // As they would be written in a list.
                name => self.options.get(name).map(|value| text(value).replace(',', ",,")),
            };
            if let Some(value) = value {
                write!(f, "{space}{}={value}", option.name)?;
                space = " ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(options: &str, expected: Result<&str, &str>) {
        let shown = NewImage::imagine("raw", options).map(|image| image.to_string());
        let shown = shown.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned());
        assert_eq!(shown.as_deref().map_err(String::as_str), expected, "{options:?}");
    }

    #[test]
    fn options_are_known_by_name() {
        check("", Ok(""));
        check("preallocation=full,size=1k", Ok("size=1024 preallocation=full"));
        check("size=1k,size=2k", Ok("size=2048"));
        check("preallocation=bogus", Ok("preallocation=bogus"));
        check("foo=1", Err("Invalid parameter 'foo'"));
        check("nocow", Err("Invalid parameter 'cow'"));
        check("a.b=1", Err("Invalid parameter 'a.b'"));
        check("size=x", Err("Parameter 'size' expects a non-negative number below 2^64"));
    }

    #[test]
    fn what_cannot_be_created_is_told_apart() {
        let refusal = |format| NewImage::imagine(format, "").expect_err("refused").to_string();
        assert_eq!(refusal("bogus"), "Unknown file format 'bogus'");
        assert_eq!(refusal("vmdk"), "Image format 'vmdk' is not supported");
        assert_eq!(refusal("null-co"), "Format driver 'null-co' does not support image creation");
    }

    #[test]
    fn protocols_are_told_apart() {
        let main = block_gs::MainLoop::new().expect("descriptors");
        let gs = GlobalState::new(&main, block_gs::GlobalOptions::default()).expect("an I/O thread");
        main.run(async {
            let refused = |name: &'static str| NewImage::parse(&gs, "raw", name, "");
            let refusal = |error: Result<NewImage, CreateError>| error.expect_err("refused").to_string();
            let null = "Protocol driver 'null-co' does not support image creation";
            assert_eq!(refusal(refused("null-co://").await), null);
            assert_eq!(refusal(refused("json:{}").await), "Unknown protocol 'json'");
            let zero = |name| NewImage::parse(&gs, "raw", name, "");
            assert!(zero("a.raw").await.expect("a file").is_zero());
            assert!(zero("file:/dev/null").await.expect("a file by its name").is_zero());
            assert!(!zero("/dev/null").await.expect("a device").is_zero());
            assert!(!zero("host_device:a.raw").await.expect("a device by its name").is_zero());
            let words = refusal(NewImage::parse(&gs, "raw", "/dev/null", "nocow=off").await);
            assert_eq!(words, "Invalid parameter 'nocow'");
            gs.close_all().await.expect("closed");
        });
    }
}
