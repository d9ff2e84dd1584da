//! From what a user wrote (a file name, a format, a cache mode) to an open node.
//!
//! Guessing a format happens here and nowhere else, and only when nobody names one: the caller, or the image that stands on another.

use crate::create::NewImage;
use crate::file::driver_of_path;
use block_common::options::{Dialect, Dict, Value, strip_protocol};
use block_common::{
    AlignedBuf, CacheFlags, ChildRole, FileName, Options, PROBE_BYTES, ParentKind, Perm, PermPair, probe_format,
};
use block_gs::{CommonOptions, GlobalState, GraphError, GraphResult, NodeRef};
use block_raw::RawControl;
use std::fmt;
use std::path::Path;

const HOST_DEVICE: &str = "host_device";
/// How many blkdebug nodes one file name may describe.
const BLKDEBUG_MAX: usize = 16;

/// How a tool opens an image.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// The format, or `None` to guess it from the first bytes.
    pub format: Option<String>,
    /// Refuse writes.
    pub read_only: bool,
    /// Cache mode.
    pub cache: CacheFlags,
    /// Who carries out requests on a host file: the option `aio`.
    pub aio: Option<String>,
    /// Let others use the image in any way.
    pub force_share: bool,
    /// Pass discards on.
    pub unmap: bool,
    /// Open a qcow2 image without what it stands on, whatever its options say of that: what it has not of its own is zeroes.
    pub alone: bool,
    /// Open it only to tell what it is: its data is not read, and a key not needed.
    pub no_io: bool,
    /// Options of the format's own, by name, where the text does not say them.
    pub own: Vec<(&'static str, String)>,
}

/// Open the image that a user named.
///
/// # Errors
/// An unknown protocol or format, bad options, or what the storage answered.
#[doc(alias = "bdrv_open")]
#[doc(alias = "blk_new_open")]
#[doc(alias = "bdrv_find_protocol")]
pub async fn open_image(gs: &GlobalState, name: &str, how: &ImageOptions) -> GraphResult<NodeRef> {
    let options = match FileName::parse(name)? {
        FileName::Json(options) => return open_options(gs, options, how).await,
        _ => options_of_name(gs, name, how).await?,
    };
    open_with_format(gs, options, how).await
}

/// Open the image that a user described with options (`--image-opts`, `json:`).
///
/// # Errors
/// As [`open_image`].
pub async fn open_options(gs: &GlobalState, options: Options, how: &ImageOptions) -> GraphResult<NodeRef> {
    let mut options = Options::from_dict(options.dialect(), with_file_drivers(options.into_dict())?);
    match (options.lookup("driver"), options.lookup("filename"), options.lookup("file")) {
        (Some(_), ..) => {
            common(&mut options, how)?;
            open_node(gs, options, how).await
        }
        (None, Some(Value::Str(path)), _) => {
            let path = path.clone();
            let mut dict = options.into_dict();
            dict.remove("filename");
            let mut file = file_options(driver_of_path(gs, &path).await, &path, how)?;
            for (key, value) in dict.iter() {
                file.insert(key, value.clone())?;
            }
            open_with_format(gs, file, how).await
        }
        (None, _, Some(Value::Dict(file))) if options.dict().len() == 1 => {
            let file = Options::from_dict(options.dialect(), file.clone());
            open_with_format(gs, file, how).await
        }
        (None, _, Some(Value::Str(name))) => {
            let node = gs.find_node(name)?;
            open_on(gs, &node, how).await
        }
        _ if how.format.is_some() => Err(GraphError::Open("A block device must be specified for \"file\"".into())),
        _ => Err(GraphError::Open("Must specify either driver or file".into())),
    }
}

/// Put an empty image on top of `below`, in a file that has no name any more when this returns, in the folder that `TMPDIR` names or else in `/var/tmp`. What is
/// written goes there, unless it is `read_only`, and is gone when it is closed. The node below goes with it.
///
/// # Errors
/// The file cannot be made, or `below` does not tell its length.
#[doc(alias = "get_tmp_filename")]
pub async fn open_temporary(gs: &GlobalState, below: NodeRef, read_only: bool) -> GraphResult<NodeRef> {
    let folder = std::env::var_os("TMPDIR").filter(|folder| !folder.is_empty()).unwrap_or_else(|| "/var/tmp".into());
    let failed = |name: &Path, error: &dyn fmt::Display| {
        GraphError::Open(format!("Could not open temporary file '{}': {error}", name.display()))
    };
    let file = tempfile::Builder::new().prefix("cairn.").tempfile_in(&folder);
    let file = file.map_err(|error| {
        // The words of the host, without the path, which is said already.
        let text = error.to_string();
        let why = text.split_once(" (os error").map_or(text.as_str(), |(why, _)| why).to_owned();
        failed(&Path::new(&folder).join("cairn.XXXXXX"), &why)
    })?;
    let path = file.path().to_str().ok_or_else(|| failed(file.path(), &"it is not valid UTF-8"))?;
    let new = NewImage::parse(gs, "qcow2", &format!("file:{path}"), "").await;
    let mut new = new.map_err(|error| failed(file.path(), &error))?;
    new.set_size(below.io().length());
    new.create(gs).await.map_err(|error| failed(file.path(), &error))?;
    let cache = CacheFlags { no_flush: true, ..CacheFlags::default() };
    let how = ImageOptions { read_only, cache, ..ImageOptions::default() };
    let mut options = format_options("qcow2", Value::Dict(file_options("file", path, &how)?.into_dict()), &how)?;
    options.insert("backing", below.name())?;
    let image = gs.open(options).await?;
    gs.adopt(&image, "backing")?;
    Ok(image)
}

/// Children that are files where nothing else is said.
const FILES: [&str; 4] = ["data-file", "file", "header", "image"];

/// The options with a driver for each child that is only given by the name of a file, however deep.
fn with_file_drivers(options: Dict) -> GraphResult<Dict> {
    let mut with = Dict::new();
    for (key, value) in options {
        let value = match value {
            Value::Dict(child) => {
                let mut child = with_file_drivers(child)?;
                if FILES.contains(&key.as_str())
                    && !child.contains_key("driver")
                    && let Some(Value::Str(name)) = child.lookup("filename")
                    && let FileName::Path(path) = FileName::parse(name)?
                {
                    child.insert("filename", path)?;
                    child.insert("driver", "file")?;
                }
                Value::Dict(child)
            }
            other => other,
        };
        with.insert(&key, value)?;
    }
    Ok(with)
}

fn file_options(driver: &str, path: &str, how: &ImageOptions) -> GraphResult<Options> {
    let mut options = Options::new(Dialect::Legacy);
    options.insert("driver", driver)?;
    options.insert("filename", path)?;
    if let Some(aio) = &how.aio {
        options.insert("aio", aio.as_str())?;
    }
    Ok(options)
}

/// The options of the node that a name, which is not `json:`, leads to.
async fn options_of_name(gs: &GlobalState, name: &str, how: &ImageOptions) -> GraphResult<Options> {
    match FileName::parse(name)? {
        FileName::Json(options) => Ok(options),
        // Who writes the driver's name before the path means a regular file.
        FileName::Path(path) if name.starts_with("file:") => file_options("file", &path, how),
        FileName::Path(path) => file_options(driver_of_path(gs, &path).await, &path, how),
        FileName::Protocol { protocol, name } if protocol == HOST_DEVICE => {
            file_options(HOST_DEVICE, &strip_protocol(&name, HOST_DEVICE), how)
        }
        FileName::Protocol { protocol, name } if protocol == "blkdebug" => blkdebug_options(gs, &name, how).await,
        FileName::Protocol { protocol, name } => protocol_options(gs, &protocol, &name),
    }
}

/// `blkdebug:CONFIG:IMAGE`: the rules' file, which may be empty, and the name of the image.
async fn blkdebug_options(gs: &GlobalState, name: &str, how: &ImageOptions) -> GraphResult<Options> {
    let rest = name.strip_prefix("blkdebug:").unwrap_or_default();
    let Some((config, image)) = rest.split_once(':') else {
        return Err(GraphError::Open("blkdebug requires both config file and image path".into()));
    };
    // The image may be below another such node, and so on, but not for ever.
    if name.matches("blkdebug:").count() > BLKDEBUG_MAX {
        return Err(GraphError::Open(format!("more than {BLKDEBUG_MAX} blkdebug nodes in one file name")));
    }
    let image = Box::pin(options_of_name(gs, image, how)).await?;
    let mut options = Options::new(Dialect::Legacy);
    options.insert("driver", "blkdebug")?;
    if !config.is_empty() {
        options.insert("config", config)?;
    }
    options.insert("image", Value::Dict(image.into_dict()))?;
    Ok(options)
}

/// Protocols whose name says everything: `null-co://`.
fn protocol_options(gs: &GlobalState, protocol: &str, name: &str) -> GraphResult<Options> {
    let mut options = Options::new(Dialect::Legacy);
    if !matches!(protocol, "null-co" | "null-aio") || gs.driver(protocol).is_err() {
        return Err(GraphError::Open(format!("Unknown protocol '{protocol}'")));
    }
    if name.strip_prefix(protocol) != Some("://") {
        return Err(GraphError::Open(format!("The only allowed filename for this driver is '{protocol}://'")));
    }
    options.insert("driver", protocol)?;
    Ok(options)
}

/// The options of every node, as the caller's modes say, where the text does not.
fn common(options: &mut Options, how: &ImageOptions) -> GraphResult<()> {
    options.insert_default("read-only", how.read_only)?;
    if how.force_share {
        options.insert_default("force-share", true)?;
    }
    if how.unmap {
        options.insert_default("discard", "unmap")?;
    }
    options.insert_default("cache.direct", how.cache.direct)?;
    options.insert_default("cache.no-flush", how.cache.no_flush)?;
    if how.alone && options.lookup("driver") == Some(&Value::Str("qcow2".into())) {
        options.insert("backing", Value::Null)?;
    }
    Ok(())
}

async fn open_node(gs: &GlobalState, options: Options, how: &ImageOptions) -> GraphResult<NodeRef> {
    if how.no_io { gs.open_to_describe(options).await } else { gs.open(options).await }
}

/// What a file takes from the image that it is opened for.
fn inherited(how: &ImageOptions) -> CommonOptions {
    CommonOptions {
        read_only: how.read_only,
        force_share: how.force_share,
        cache_direct: how.cache.direct,
        cache_no_flush: how.cache.no_flush,
        no_io: how.no_io,
        ..CommonOptions::default()
    }
}

/// Open `file`, and the format on it that was named or is guessed.
async fn open_with_format(gs: &GlobalState, file: Options, how: &ImageOptions) -> GraphResult<NodeRef> {
    let mut file = file;
    if let Some(format) = &how.format {
        // The protocol itself may be asked for.
        let of_host =
            |driver: Option<&Value>| matches!(driver, Some(Value::Str(name)) if name == "file" || name == HOST_DEVICE);
        if of_host(file.lookup("driver")) && of_host(Some(&Value::Str(format.clone()))) {
            file.insert("driver", format.as_str())?;
        }
        if file.lookup("driver") == Some(&Value::Str(format.clone())) {
            common(&mut file, how)?;
            return open_node(gs, file, how).await;
        }
        return open_node(gs, format_options(format, Value::Dict(file.into_dict()), how)?, how).await;
    }
    let node = gs.open_for(file, inherited(how), ChildRole::IMAGE).await?;
    let image = open_on(gs, &node, how).await?;
    gs.adopt(&image, "file")?;
    Ok(image)
}

/// Open the format on `node` that was named or is guessed.
async fn open_on(gs: &GlobalState, node: &NodeRef, how: &ImageOptions) -> GraphResult<NodeRef> {
    let format = match &how.format {
        Some(format) => format,
        None => guess(gs, node).await?,
    };
    if gs.driver(format).is_err() {
        return Err(GraphError::NotBuilt(format!("Image format '{format}'")));
    }
    let image = open_node(gs, format_options(format, Value::Str(node.name().to_owned()), how)?, how).await?;
    if format == "raw" {
        // Anything can look raw, and what a guest writes decides what it looks like next time (rule trust-1).
        gs.with_control(&image, RawControl::guard_first_sector)?;
    }
    Ok(image)
}

fn format_options(format: &str, file: Value, how: &ImageOptions) -> GraphResult<Options> {
    let mut dict = Dict::new();
    dict.insert("driver", format)?;
    dict.insert("file", file)?;
    let mut options = Options::from_dict(Dialect::Legacy, dict);
    common(&mut options, how)?;
    for (name, value) in &how.own {
        options.insert_default(name, value.as_str())?;
    }
    Ok(options)
}

/// The format that the node's first bytes look like, which is one that there is.
pub(crate) async fn guess(gs: &GlobalState, node: &NodeRef) -> GraphResult<&'static str> {
    let perm = PermPair::new(Perm::CONSISTENT_READ, Perm::all());
    let root = gs.new_root("", ParentKind::Backend, perm, &gs.main_io());
    gs.attach_root(&root, Some(node)).await?;
    let limits = node.io().limits();
    // Whole blocks only; of a file that is shorter than one, nothing.
    let len = node.io().length().min(PROBE_BYTES.max(limits.request_alignment as usize) as u64);
    let len = len as usize / limits.request_alignment as usize * limits.request_alignment as usize;
    let buf = AlignedBuf::zeroed(len, limits.memory_alignment.max(1) as usize).into_io();
    let (result, buf) = root.io().read(0, buf).await;
    result.map_err(GraphError::io("Could not read image for determining its format"))?;
    let mut head = vec![0; len];
    if let Some(buf) = buf {
        buf.copy_to_slice(0, &mut head);
    }
    Ok(probe_format(&head))
}
