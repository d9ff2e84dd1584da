//! The image that a command works on: from what the user wrote to a backend that has it, and back to nothing.
//!
//! The block layer's own calls are made here; what is done with the image is each command's.

use crate::cli::Failure;
use block_backend::{Backend, BackendOptions};
use block_backend_io::BackendSettings;
use block_common::options::{Dict, OptionsError, Value};
use block_common::{AlignedBuf, FileName, IoError, Options, PROBE_BYTES, Perm, PermPair, probe_format};
use block_copy::Padded;
use block_drivers::{ImageOptions, open_image, open_options};
use block_gs::{GlobalState, NodeRef};
use block_io::Root;
use std::future::Future;

/// An image as named on a command line.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// The file name, or the options.
    pub(crate) name: String,
    /// The name is options.
    pub(crate) image_opts: bool,
    /// Its length shall change.
    pub(crate) resize: bool,
    /// Nobody else shall change it meanwhile.
    pub(crate) still: bool,
    /// The name stands in another image, and so would the format: nobody is told that it had to be guessed.
    pub(crate) stored: bool,
    /// How to open it.
    pub(crate) how: ImageOptions,
}

/// Run `work` on the I/O thread that serves the images.
///
/// # Errors
/// What `work` returns.
pub(crate) async fn on_io_thread<T: Send + 'static>(
    gs: &GlobalState,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    let ended = || Err(Failure::message("the I/O thread has ended"));
    gs.main_io().run(work).await.unwrap_or_else(ended)
}

/// The node that a backend leads to.
///
/// # Errors
/// There is none any more.
pub(crate) fn node_of(backend: &Backend) -> Result<NodeRef, Failure> {
    backend.node().ok_or_else(|| Failure::message("the image is gone"))
}

impl Image {
    /// Open the image and put it into a backend of its own.
    ///
    /// # Errors
    /// A message that names the image and the reason.
    pub(crate) async fn open(&self, gs: &GlobalState) -> Result<Backend, Failure> {
        let node = self.open_node(gs).await?;
        self.insert(gs, node).await
    }

    pub(crate) async fn insert(&self, gs: &GlobalState, node: NodeRef) -> Result<Backend, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::message(format!("Could not open '{}': {error}", self.name));
        let writing = if self.how.read_only { Perm::empty() } else { Perm::WRITE };
        let writing = if self.resize { writing | Perm::RESIZE } else { writing };
        let shared = if self.still { !(Perm::WRITE | Perm::RESIZE) } else { Perm::all() };
        let options = BackendOptions {
            name: String::new(),
            perm: PermPair::new(Perm::CONSISTENT_READ | writing, shared),
            home: gs.main_io(),
            settings: BackendSettings::default(),
        };
        let backend = Backend::new(gs, options).map_err(|error| failed(&error.report()))?;
        backend.insert(&node).await.map_err(|error| failed(&error.report()))?;
        backend.io().set_write_cache(!self.how.cache.writethrough);
        Ok(backend)
    }

    /// What the image's options say of what it stands on.
    ///
    /// # Errors
    /// They are none.
    pub(crate) fn backing_options(&self) -> Result<Option<Dict>, OptionsError> {
        let options = match FileName::parse(&self.name) {
            _ if self.image_opts => Options::parse_image_opts(&with_implied_key(&self.name))?.0,
            Ok(FileName::Json(options)) => options,
            _ => return Ok(None),
        };
        match options.into_dict().remove("backing") {
            Some(Value::Dict(backing)) => Ok(Some(backing)),
            _ => Ok(None),
        }
    }

    /// As [`Image::open`], for who looks at whole sectors.
    pub(crate) async fn open_padded(&self, gs: &GlobalState) -> Result<(Backend, Padded), Failure> {
        let backend = self.open(gs).await?;
        let padded = Padded::new(backend.io().root().clone());
        let padded =
            padded.map_err(|error| Failure::message(format!("Could not get size of '{}': {error}", self.name)))?;
        Ok((backend, padded))
    }

    /// As [`Image::open`], but what a qcow2 image lies in instead of what it shows: for who looks at the image's own structure. The format comes with
    /// it, where one is named. Images of other formats are opened as they are.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub(crate) async fn open_under_format(&self, gs: &GlobalState) -> Result<(Backend, Option<String>), Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::message(format!("Could not open '{}': {error}", self.name));
        let options = match FileName::parse(&self.name) {
            _ if self.image_opts => {
                let parsed = Options::parse_image_opts(&with_implied_key(&self.name));
                let (options, short_forms) = parsed.map_err(|error| failed(&error))?;
                short_forms.iter().for_each(|form| crate::warn(&form.to_string()));
                Some(options)
            }
            Ok(FileName::Json(options)) => Some(options),
            _ => None,
        };
        let named = options.as_ref().and_then(|options| match options.lookup("driver") {
            Some(Value::Str(driver)) => Some(driver.clone()),
            _ => None,
        });
        let format = named.or_else(|| self.how.format.clone());
        let has_file = |options: &Options| ["file", "filename"].iter().any(|key| options.lookup(key).is_some());
        let under = match format.as_deref() {
            Some(format) => format == "qcow2",
            // What names no file is refused with the words for that.
            None => options.as_ref().is_none_or(has_file),
        };
        let how = match under {
            true => ImageOptions { format: Some("raw".into()), ..self.how.clone() },
            false => self.how.clone(),
        };
        let opened = match options {
            None => open_image(gs, &self.name, &how).await,
            Some(options) if under => {
                let options = under_qcow2(options).map_err(|error| failed(&error))?;
                open_options(gs, options, &how).await
            }
            Some(options) => open_options(gs, options, &how).await,
        };
        let node = opened.map_err(|error| failed(&error.report()))?;
        Ok((self.insert(gs, node).await?, format))
    }

    /// The format that the first bytes look like of what `root` leads to, which [`Image::open_under_format`] opened.
    ///
    /// # Errors
    /// They cannot be read.
    pub(crate) async fn guess(&self, root: &Root) -> Result<&'static str, Failure> {
        let failed = |error: IoError| {
            let text = "Could not read image for determining its format";
            Failure::message(format!("Could not open '{}': {text}: {error}", self.name))
        };
        let len = root.length().map_err(failed)?.min(PROBE_BYTES as u64) as usize;
        let (result, buf) = root.read(0, AlignedBuf::zeroed(len, PROBE_BYTES).into_io()).await;
        let bytes = result.and(buf.ok_or(IoError::CANCELLED)).map_err(failed)?.to_aligned(1);
        let format = probe_format(&bytes);
        if format == "raw" && !self.how.read_only && !self.stored {
            warn_guessed_raw(&self.name);
        }
        Ok(format)
    }

    async fn open_node(&self, gs: &GlobalState) -> Result<NodeRef, Failure> {
        let failed =
            |error: &dyn std::fmt::Display| Failure::message(format!("Could not open '{}': {error}", self.name));
        let (opened, guessed) = if self.image_opts {
            let (options, short_forms) =
                Options::parse_image_opts(&with_implied_key(&self.name)).map_err(|error| failed(&error))?;
            short_forms.iter().for_each(|form| crate::warn(&form.to_string()));
            let guessed = guessed_file(&options);
            (open_options(gs, options, &self.how).await, guessed)
        } else {
            let guessed = match FileName::parse(&self.name).map_err(|error| failed(&error))? {
                FileName::Path(path) => Some(path),
                FileName::Protocol { name, .. } => Some(name),
                FileName::Json(options) => guessed_file(&options),
            };
            (open_image(gs, &self.name, &self.how).await, guessed)
        };
        let node = opened.map_err(|error| failed(&error.report()))?;
        if let (None, false, Some(file), Some("raw")) =
            (&self.how.format, self.how.read_only || self.stored, guessed, node.io().driver())
        {
            warn_guessed_raw(&file);
        }
        Ok(node)
    }
}

/// A first value of `--image-opts` without a key names a node.
fn with_implied_key(text: &str) -> String {
    let first = text.split(',').next().unwrap_or_default();
    if text.is_empty() || first.contains('=') { text.to_owned() } else { format!("file={text}") }
}

/// The options of what a qcow2 image lies in. Other files and keys are none of its business.
fn under_qcow2(options: Options) -> Result<Options, OptionsError> {
    let dialect = options.dialect();
    let mut dict = options.into_dict();
    for key in ["backing", "data-file", "encrypt"] {
        dict.remove(key);
    }
    if dict.contains_key("driver") {
        dict.insert("driver", "raw")?;
    }
    Ok(Options::from_dict(dialect, dict))
}

/// The name of the file whose format is guessed, if these options leave it open.
fn guessed_file(options: &Options) -> Option<String> {
    if options.lookup("driver").is_some() {
        return None;
    }
    let name = options.lookup("file.filename").or_else(|| options.lookup("filename"))?;
    match name {
        Value::Str(name) => Some(name.clone()),
        _ => None,
    }
}

fn warn_guessed_raw(file: &str) {
    eprintln!(
        "WARNING: Image format was not specified for '{file}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions."
    );
}
