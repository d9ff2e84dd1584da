//! From what a user wrote (a name, options, a format) to a backend with the image in it.
//!
//! Opening and guessing formats is `block-drivers`' work; here names and options are put together.

use crate::command::Open;
use crate::output::Output;
use block_backend::{Backend, BackendError, BackendOptions};
use block_backend_io::BackendSettings;
use block_common::options::{Dialect, DriverKind, Value, strip_protocol};
use block_common::{CacheFlags, DiscardMode, FileName, Options, OptionsError, Perm, PermPair, QapiEnum};
use block_drivers::{ImageOptions, driver_of_path, open_image, open_options, open_temporary};
use block_gs::{GlobalState, GraphError, GraphResult, NodeRef};

/// An image to be opened.
#[derive(Debug)]
pub struct Image {
    /// Its name as the user wrote it. Messages say it.
    pub name: Option<String>,
    /// Its options.
    pub options: Options,
    /// Its format.
    pub format: Option<String>,
    /// How to open it.
    pub how: Open,
}

/// An open image.
pub(crate) struct File {
    /// What has it.
    pub(crate) backend: Backend,
    /// How it is cached.
    pub(crate) cache: CacheFlags,
    /// Whether the topmost node is a copy-on-read filter that no options described: nobody is told of it.
    pub(crate) copies: bool,
}

/// Bytes as text, for names and options.
///
/// # Errors
/// They are not UTF-8.
pub fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.into()).map_err(|error| {
        let shown = String::from_utf8_lossy(error.as_bytes()).into_owned();
        format!("'{shown}' is not valid UTF-8")
    })
}

/// Options from the texts of `-o` or `--image-opts`. Later ones win.
///
/// # Errors
/// They are none.
pub fn parse_options(texts: &[Vec<u8>], out: &Output) -> Result<Options, String> {
    let mut all = Vec::new();
    for bytes in texts {
        let (options, short_forms) = Options::parse_image_opts(&text(bytes)?).map_err(|error| error.to_string())?;
        short_forms.iter().for_each(|form| out.fail(format!("warning: {form}")));
        all.extend(options.flatten());
    }
    Options::unflatten(Dialect::Legacy, all).map_err(|error| error.to_string())
}

impl Image {
    /// Open it and put it into a backend.
    ///
    /// # Errors
    /// A message that names the image, if it has a name, and the reason.
    pub(crate) async fn open(self, gs: &GlobalState, out: &Output) -> Result<File, String> {
        let unnamed = self.failure("");
        self.open_file(gs, out).await.map_err(|reason| unnamed + &reason)
    }

    /// The message that says why it was not opened.
    pub(crate) fn failure(&self, reason: &str) -> String {
        match &self.name {
            Some(name) => format!("can't open device {name}: {reason}"),
            None => format!("can't open: {reason}"),
        }
    }

    async fn open_file(self, gs: &GlobalState, out: &Output) -> Result<File, String> {
        if self.how.copy_on_read && self.how.read_only {
            return Err("Can't use copy-on-read on read-only device".into());
        }
        if self.name.as_deref() == Some("") {
            return Err("The 'file' block driver requires a file name".into());
        }
        let (read_only, cache, is_temporary) = (self.how.read_only, self.how.cache.0, self.how.snapshot);
        let copy_on_read = self.how.copy_on_read;
        let opened = match self.open_node(gs, out).await {
            Ok(node) if is_temporary => open_temporary(gs, node, read_only).await,
            opened => opened,
        };
        let node = match opened {
            Ok(node) if copy_on_read => copy_on_read_above(gs, node).await,
            opened => opened,
        };
        let node = node.map_err(|error| error.report())?;
        if node.io().is_read_only() && !read_only {
            return Err("Block node is read-only".into());
        }
        let writing = if read_only { Perm::empty() } else { Perm::WRITE };
        let options = BackendOptions {
            name: String::new(),
            perm: PermPair::new(Perm::CONSISTENT_READ | writing, Perm::all()),
            home: gs.main_io(),
            settings: BackendSettings::default(),
        };
        let failed = |error: BackendError| error.report();
        let backend = Backend::new(gs, options).map_err(failed)?;
        backend.insert(&node).await.map_err(failed)?;
        backend.io().set_write_cache(!cache.writethrough);
        Ok(File { backend, cache, copies: copy_on_read })
    }

    async fn open_node(mut self, gs: &GlobalState, out: &Output) -> GraphResult<NodeRef> {
        let how = ImageOptions {
            format: self.format.take(),
            // What is written goes into the temporary image.
            read_only: self.how.read_only || self.how.snapshot,
            cache: self.how.cache.0,
            aio: self.how.aio.map(|mode| mode.name().to_owned()),
            force_share: self.how.force_share,
            unmap: self.how.discard.0 == DiscardMode::Unmap,
            ..ImageOptions::default()
        };
        let parsed = match &self.name {
            Some(name) => Some(FileName::parse(name)?),
            None => None,
        };
        match (parsed, self.name.take()) {
            (Some(FileName::Json(mut options)), _) => {
                if let Some(format) = &how.format {
                    options.insert("driver", format.as_str())?;
                }
                for (key, value) in self.options.flatten() {
                    options.insert(&key, value)?;
                }
                open_described(gs, options, &how, out).await
            }
            (Some(FileName::Path(_)), Some(_)) if how.format.as_ref().is_some_and(|format| is_null(format)) => {
                Err(only_name(how.format.as_deref().unwrap_or_default()))
            }
            (Some(FileName::Path(shown) | FileName::Protocol { name: shown, .. }), Some(name))
                if self.options.is_empty() =>
            {
                let node = open_image(gs, &name, &how).await?;
                if how.format.is_none() {
                    warn_if_raw(&node, &shown, out);
                }
                Ok(node)
            }
            (Some(parsed), _) => open_described(gs, with_name(gs, self.options, parsed).await?, &how, out).await,
            (None, _) => open_described(gs, self.options, &how, out).await,
        }
    }
}

/// A filter above an open node that has it keep what is read from its backing files.
async fn copy_on_read_above(gs: &GlobalState, node: NodeRef) -> GraphResult<NodeRef> {
    let mut options = Options::new(Dialect::Qmp);
    options.insert("driver", "copy-on-read")?;
    options.insert("file", node.name())?;
    // As one with its own options would inherit them.
    options.insert("discard", "unmap")?;
    gs.open(options).await
}

/// The options of an image that has a name besides.
async fn with_name(gs: &GlobalState, mut options: Options, name: FileName) -> GraphResult<Options> {
    // A protocol has the name itself, a format's file has it.
    let is_protocol = match options.lookup("driver") {
        Some(Value::Str(driver)) => gs.driver(driver)?.kind() == DriverKind::Protocol,
        _ => false,
    };
    let prefix = if is_protocol { "" } else { "file." };
    if let (true, Some(Value::Str(driver))) = (is_protocol, options.lookup("driver"))
        && is_null(driver)
        && name != (FileName::Protocol { protocol: driver.clone(), name: format!("{driver}://") })
    {
        return Err(only_name(driver));
    }
    if !is_protocol && matches!(options.lookup("file"), Some(Value::Str(_))) {
        let message = "Cannot reference an existing block device with additional options or a new filename";
        return Err(GraphError::Open(message.into()));
    }
    let (driver, filename) = match name {
        FileName::Path(path) => (driver_of_path(gs, &path).await.to_owned(), Some(path)),
        FileName::Protocol { protocol, name } if protocol == "host_device" => {
            let path = strip_protocol(&name, &protocol);
            (protocol, Some(path))
        }
        FileName::Protocol { protocol, .. } if gs.driver(&protocol).is_err() => {
            return Err(GraphError::Open(format!("Unknown protocol '{protocol}'")));
        }
        FileName::Protocol { protocol, name } if name.strip_prefix(&protocol) == Some("://") => (protocol, None),
        FileName::Protocol { protocol, .. } => return Err(only_name(&protocol)),
        FileName::Json(_) => return Err(GraphError::Open("the name is a description already".into())),
    };
    options.insert_default(&format!("{prefix}driver"), driver)?;
    if let Some(filename) = filename {
        let key = format!("{prefix}filename");
        if options.lookup(&key).is_some() {
            let message = "Can't specify 'file' and 'filename' options at the same time";
            return Err(GraphError::Open(message.into()));
        }
        options.insert(&key, filename)?;
    }
    Ok(options)
}

/// Open the image that `options` describe, whose format they may leave to be guessed.
async fn open_described(
    gs: &GlobalState,
    mut options: Options,
    how: &ImageOptions,
    out: &Output,
) -> GraphResult<NodeRef> {
    name_drivers(gs, &mut options).await?;
    set_aio(&mut options, how)?;
    if options.lookup("driver").is_some() {
        return open_options(gs, options, how).await;
    }
    let below = match options.lookup("file").cloned() {
        Some(below @ Value::Dict(_)) => below,
        Some(Value::Str(name)) => return Err(GraphError::NotFound(name)),
        _ => return Err(GraphError::Open("Must specify either driver or file".into())),
    };
    let filename = match options.lookup("file.filename") {
        Some(Value::Str(name)) => name.clone(),
        _ => String::new(),
    };
    if options.dict().len() == 1 {
        let node = open_options(gs, options, how).await?;
        warn_if_raw(&node, &filename, out);
        return Ok(node);
    }
    let mut alone = Options::new(options.dialect());
    alone.insert("file", below)?;
    let node = open_options(gs, alone, how).await?;
    // Its format is known now; the other options are that format's.
    options.insert("driver", node.io().driver().unwrap_or("raw"))?;
    gs.close(node).await?;
    let opened = open_options(gs, options, how).await;
    match &opened {
        Ok(node) => warn_if_raw(node, &filename, out),
        Err(GraphError::Options(OptionsError::Unsupported { driver, .. })) if driver == "raw" => warn(&filename, out),
        Err(_) => {}
    }
    opened
}

/// Files that are only named are what their names say.
async fn name_drivers(gs: &GlobalState, options: &mut Options) -> GraphResult<()> {
    let mut key = "file".to_owned();
    while let Some(Value::Dict(file)) = options.lookup(&key) {
        if let (false, Some(Value::Str(filename))) = (file.contains_key("driver"), file.lookup("filename")) {
            let driver = match FileName::parse(filename)? {
                FileName::Protocol { protocol, .. } => protocol,
                FileName::Path(path) if !filename.starts_with("file:") => driver_of_path(gs, &path).await.into(),
                _ => "file".into(),
            };
            options.insert(&format!("{key}.driver"), driver)?;
        }
        key += ".file";
    }
    Ok(())
}

fn is_null(format: &str) -> bool {
    matches!(format, "null-co" | "null-aio")
}

fn only_name(protocol: &str) -> GraphError {
    GraphError::Open(format!("The only allowed filename for this driver is '{protocol}://'"))
}

/// The asynchronous mode of the command line, where the options describe the file that it is for.
fn set_aio(options: &mut Options, how: &ImageOptions) -> Result<(), GraphError> {
    let Some(aio) = &how.aio else { return Ok(()) };
    let is_file =
        |key: &str| matches!(options.lookup(key), Some(Value::Str(name)) if name == "file" || name == "host_device");
    let key = match (is_file("driver"), is_file("file.driver")) {
        (true, _) => "aio",
        (_, true) => "file.aio",
        _ => return Ok(()),
    };
    Ok(options.insert_default(key, aio.as_str())?)
}

/// Warn about an image called `name` whose format was guessed, if it may be a trap.
fn warn_if_raw(node: &NodeRef, name: &str, out: &Output) {
    if node.io().driver() == Some("raw") && !node.io().is_read_only() {
        warn(name, out);
    }
}

fn warn(name: &str, out: &Output) {
    out.complain(format!(
        "WARNING: Image format was not specified for '{name}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions."
    ));
}
