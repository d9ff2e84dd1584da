//! `qcow2`: children `file`, `backing` and `data-file`, caches, and what of discards the host is told.
//!
//! An image names its backing file and its data file. Such a name opens something only if whoever registered the driver allows it
//! ([`StoredNames`]), is a plain file name whatever it looks like, and counts from the folder of the image.

use crate::crypt::{Volume, refused};
use crate::image::guess;
use async_trait::async_trait;
use block_common::options::{Dialect, Dict, DriverKind, Value};
use block_common::{ChildName, ChildOrNull, ChildRole, ChildSpec, DiscardMode, OptionReader, Options};
use block_crypt::{Cipher, CipherMode, CipherSpec, IvGen, Secret, SectorCipher};
use block_gs::{
    DriverType, EngineControl, GlobalState, GraphError, GraphResult, KeepError, OpenContext, Opened, PreparingReopen,
    Reopening,
};
use block_io::{Edge, KeptBitmap, Quiesced};
use block_qcow2::{
    Header, MetadataKind, OverlapChecks, Qcow2, Qcow2Children, Qcow2Control, Qcow2Error, Qcow2Options, Qcow2Reopen,
    WeakControl,
};
use block_qcow2_format::IncompatibleFeatures;
use block_raw::RawControl;
use std::any::Any;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

/// The edge to what keeps the data of an image that has its data elsewhere.
pub const DATA_FILE: ChildName = ChildName::from_static("data-file");
/// Tables that were not used for so long leave the memory, unless the user says otherwise.
const CLEAN_INTERVAL: u64 = 600;
/// How deep the search for an image's file goes.
const DEPTH_MAX: usize = 16;

/// What becomes of the names of other files that stand in an image (rule trust-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredNames {
    /// They are opened, unless options say what to take instead.
    Open,
    /// An image that has one, and no option instead of it, is refused.
    Refuse,
}

/// The qcow2 driver.
#[doc(alias = "bdrv_open_backing_file")]
#[derive(Clone, Copy, Debug)]
pub struct Qcow2Type(pub StoredNames);

/// Its nodes' control is a [`Qcow2Control`].
struct Control {
    engine: Qcow2Control,
    cleaning: Cleaning,
}

/// What a reopen has prepared.
struct Prepared {
    engine: Qcow2Reopen,
    clean_interval: u64,
    gs: GlobalState,
}

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.engine
    }

    fn kept_bitmaps(&self) -> Vec<KeptBitmap> {
        self.engine.kept_bitmaps()
    }

    fn keep_bitmaps(&mut self, bitmaps: &[KeptBitmap]) -> Result<(), KeepError> {
        self.engine.keep_bitmaps(bitmaps).map_err(KeepError::Refused)
    }

    fn bitmap_granularity(&self) -> u64 {
        self.engine.header().geometry.cluster_size().clamp(4 << 10, 64 << 10)
    }

    fn names_child(&self, edge: &str) -> bool {
        edge == ChildName::BACKING.as_str() && self.engine.header().backing_file.is_some()
    }

    fn prepare_reopen(&mut self, to: &mut Reopening<'_>) -> GraphResult<PreparingReopen> {
        let own = Own::take(to.options, to.common.discard)?;
        let (engine, read_only, gs) = (self.engine.clone(), to.common.read_only, to.global().clone());
        let coming = to.take_coming_child("file");
        let preparing = to.run("Could not reopen the qcow2 image", move |req| async move {
            let prepared = engine.prepare_reopen(&req, own.engine, read_only).await;
            match (prepared, coming) {
                (Ok(prepared), Some(file)) => Ok(engine.check_same(&req, &file).await.map(|()| prepared)),
                (prepared, _) => Ok(prepared),
            }
        })?;
        Ok(Box::pin(async move {
            let engine = preparing.await?.map_err(|error| GraphError::Open(error.to_string()))?;
            Ok(Box::new(Prepared { engine, clean_interval: own.clean_interval, gs }) as Box<dyn Any>)
        }))
    }

    fn commit_reopen(&mut self, prepared: Box<dyn Any>, proof: &Quiesced<'_>) {
        if let Ok(prepared) = prepared.downcast::<Prepared>() {
            let Prepared { engine, clean_interval, gs } = *prepared;
            self.engine.commit_reopen(engine, proof);
            self.cleaning.start(&gs, &self.engine, clean_interval);
        }
    }
}

/// What the driver's own options say.
struct Own {
    engine: Qcow2Options,
    clean_interval: u64,
}

impl Own {
    fn take(options: &mut OptionReader, discard: DiscardMode) -> GraphResult<Self> {
        let engine = Qcow2Options {
            l2_cache_size: options.take_size("l2-cache-size")?,
            l2_cache_entry_size: options.take_size("l2-cache-entry-size")?,
            refcount_cache_size: options.take_size("refcount-cache-size")?,
            cache_size: options.take_size("cache-size")?,
            lazy_refcounts: options.take_bool("lazy-refcounts")?,
            pass_discard_request: options.take_bool("pass-discard-request")?.unwrap_or(discard == DiscardMode::Unmap),
            pass_discard_snapshot: options.take_bool("pass-discard-snapshot")?.unwrap_or(true),
            pass_discard_other: options.take_bool("pass-discard-other")?.unwrap_or(false),
            discard_no_unref: options.take_bool("discard-no-unref")?.unwrap_or(false),
            overlap_checks: overlap_checks(options)?,
        };
        let clean_interval = options.take_u64("cache-clean-interval")?.unwrap_or(CLEAN_INTERVAL);
        if clean_interval > u32::MAX.into() {
            return Err(GraphError::Open("Cache clean interval too big".into()));
        }
        Ok(Self { engine, clean_interval })
    }
}

/// Which writes are checked against metadata: a template's name, or one and what differs from it.
fn overlap_checks(options: &mut OptionReader) -> GraphResult<OverlapChecks> {
    let template = |name: Option<String>| {
        match name {
        None => Ok(OverlapChecks::default()),
        Some(name) => OverlapChecks::from_template(&name).ok_or_else(|| {
            GraphError::Open(format!(
                "Unsupported value '{name}' for qcow2 option 'overlap-check'. Allowed are any of the following: none, constant, cached, all"
            ))
        }),
    }
    };
    if !matches!(options.peek("overlap-check"), Some(Value::Dict(_))) {
        return template(options.take_str("overlap-check")?);
    }
    let checks = options.take_dict("overlap-check", |flags| {
        let mut checks = template(flags.take_str("template")?)?;
        for kind in MetadataKind::EACH {
            if let Some(is_on) = flags.take_bool(kind.name())? {
                checks = checks.with(kind, is_on);
            }
        }
        if let Some(key) = flags.remaining().next() {
            let message = format!("Block format 'qcow2' does not support the option 'overlap-check.{key}'");
            return Err(GraphError::Open(message));
        }
        Ok(checks)
    })?;
    Ok(checks.unwrap_or_default())
}

/// A name that stands in an image, from the folder of the file that the image is in.
fn stored_path(image: Option<&Path>, name: &[u8]) -> GraphResult<String> {
    let name = PathBuf::from(std::ffi::OsString::from_vec(name.to_vec()));
    let path = match image.and_then(Path::parent) {
        Some(folder) if name.is_relative() => folder.join(name),
        _ => name,
    };
    path.into_os_string()
        .into_string()
        .map_err(|name| GraphError::Open(format!("The name '{}' in the image is no text", name.to_string_lossy())))
}

/// The file that a node's bytes are in, if it is one.
pub fn file_of(gs: &GlobalState, node: &str) -> Option<PathBuf> {
    let mut name = node.to_owned();
    for _ in 0..DEPTH_MAX {
        let info = gs.find_node(&name).and_then(|node| gs.node_info(&node)).ok()?;
        if let Some(Value::Str(path)) = info.options.lookup("filename") {
            return Some(path.into());
        }
        let mut children = info.children.into_iter();
        let is_file = |(edge, ..): &(String, _, _)| edge == ChildName::FILE.as_str();
        let file = children.clone().find(is_file).or_else(|| children.next());
        name = file?.1?;
    }
    None
}

/// What a name that stands in an image is the name of.
#[derive(Clone, Copy, Debug)]
enum Stored<'a> {
    /// A file.
    File,
    /// An image in a file, and its format, if that stands there, too.
    Image(Option<&'a [u8]>),
}

/// The format that the first bytes of a file look like, which is opened for them alone.
async fn guessed(context: &OpenContext<'_>, file: Dict) -> GraphResult<&'static str> {
    let (gs, common) = (context.global(), context.common());
    let mut options = Options::from_dict(Dialect::Legacy, file);
    options.insert("read-only", true)?;
    options.insert("force-share", common.force_share)?;
    options.insert("cache.direct", common.cache_direct)?;
    let node = gs.open_in_mutation(options).await?;
    let format = guess(gs, &node).await;
    gs.close(node).await?;
    format
}

/// The options of a file.
fn file_options(path: String) -> GraphResult<Dict> {
    let mut file = Dict::new();
    file.insert("driver", "file")?;
    file.insert("filename", path)?;
    Ok(file)
}

impl Qcow2Type {
    /// Attach what `option` says, or what the image says if it says nothing.
    async fn named_child(
        self,
        context: &mut OpenContext<'_>,
        (name, role): (ChildName, ChildRole),
        option: Option<ChildOrNull>,
        stored: Option<(&[u8], Stored<'_>)>,
    ) -> GraphResult<Option<Edge>> {
        let key = name.as_str().to_owned();
        // Options that do not say what to open are about what the image names: a key for it, say.
        let says_what = |options: &Options| {
            options.dialect() != Dialect::Legacy
                || ["driver", "file", "filename"].iter().any(|key| options.dict().contains_key(key))
        };
        let (option, more) = match option {
            Some(ChildOrNull::Child(ChildSpec::Inline(more))) if stored.is_some() && !says_what(&more) => {
                (None, more.into_dict())
            }
            other => (other, Dict::new()),
        };
        match (option, stored) {
            (Some(ChildOrNull::Child(spec)), _) => context.open_child(name, role, spec).await.map(Some),
            (Some(ChildOrNull::Null), _) | (None, None) => Ok(None),
            (None, Some(_)) if self.0 == StoredNames::Refuse => Err(GraphError::Open(format!(
                "The image names another file, which nobody allowed to be opened: give the option '{key}'"
            ))),
            (None, Some((stored, format))) => {
                let image = context.child_name(&ChildName::FILE).and_then(|file| file_of(context.global(), &file));
                let file = file_options(stored_path(image.as_deref(), stored)?)?;
                let driver = match format {
                    Stored::File => None,
                    Stored::Image(Some(format)) => Some(String::from_utf8_lossy(format).into_owned()),
                    Stored::Image(None) => Some(guessed(context, file.clone()).await?.to_owned()),
                };
                let is_guessed = matches!(format, Stored::Image(None));
                let mut options = match &driver {
                    None => file,
                    Some(format) => {
                        let mut image = Dict::new();
                        image.insert("driver", format.as_str())?;
                        image.insert("file", Value::Dict(file))?;
                        image
                    }
                };
                for (key, value) in more {
                    options.insert(&key, value)?;
                }
                let spec = ChildSpec::Inline(Options::from_dict(Dialect::Legacy, options));
                let edge = context.open_child(name.clone(), role, spec).await?;
                if is_guessed
                    && driver.as_deref() == Some("raw")
                    && let Some(node) = context.child_name(&name)
                {
                    // As for any image whose format is guessed (rule trust-1): it may be written one day, by commit.
                    let gs = context.global();
                    gs.with_control(&gs.find_node(&node)?, RawControl::guard_first_sector)?;
                }
                Ok(Some(edge))
            }
        }
    }

    async fn backing(
        self,
        context: &mut OpenContext<'_>,
        option: Option<ChildOrNull>,
        header: &Header,
    ) -> GraphResult<Edge> {
        let format = Stored::Image(header.backing_format.as_deref());
        let stored = header.backing_file.as_deref().map(|name| (name, format));
        let edge = self.named_child(context, (ChildName::BACKING, ChildRole::COW), option, stored).await;
        let edge = edge.map_err(|error| match (header.backing_file.as_deref(), error) {
            (Some(_), error @ GraphError::NotBuilt(_)) => error,
            (Some(_), error) => GraphError::Open(format!("Could not open backing file: {}", error.report())),
            (None, error) => error,
        })?;
        match edge {
            Some(edge) => Ok(edge),
            // A reopen may put one there.
            None => context.no_child(ChildName::BACKING, ChildRole::COW).await,
        }
    }

    async fn data_file(
        self,
        context: &mut OpenContext<'_>,
        option: Option<ChildOrNull>,
        header: &Header,
    ) -> GraphResult<Option<Edge>> {
        if !header.incompatible.contains(IncompatibleFeatures::DATA_FILE) {
            return match option {
                None | Some(ChildOrNull::Null) => Ok(None),
                Some(_) => {
                    Err(GraphError::Open("'data-file' can only be set for images with an external data file".into()))
                }
            };
        }
        let stored = header.data_file.as_deref().map(|name| (name, Stored::File));
        let edge = self.named_child(context, (DATA_FILE, ChildRole::DATA), option, stored).await?;
        edge.map(Some).ok_or_else(|| GraphError::Open("'data-file' is required for this image".into()))
    }
}

#[async_trait(?Send)]
impl DriverType for Qcow2Type {
    fn name(&self) -> &'static str {
        "qcow2"
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn reopenable(&self) -> &'static [&'static str] {
        &[
            "cache-clean-interval",
            "cache-size",
            "discard-no-unref",
            "l2-cache-entry-size",
            "l2-cache-size",
            "lazy-refcounts",
            "overlap-check",
            "pass-discard-other",
            "pass-discard-request",
            "pass-discard-snapshot",
            "refcount-cache-size",
        ]
    }

    fn option_groups(&self) -> &'static [&'static [&'static str]] {
        &[&["cache-size", "l2-cache-size", "refcount-cache-size"]]
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let common = context.common();
        let own = Own::take(options, common.discard)?;
        let file = context.require_child(options, ChildName::FILE, ChildRole::IMAGE).await?;
        let read = |req| async move { Ok((Qcow2::read_header(&req, &file).await, file)) };
        let (header, file) = context.run("Could not read the qcow2 header", read).await?;
        let header = header.map_err(|error| GraphError::Open(error.to_string()))?;
        let (cipher, file) = unlock(context, Encrypted::take(options)?, &header, file).await?;
        let option = options.take_child_or_null(DATA_FILE.as_str())?;
        let data = self.data_file(context, option, &header).await?;
        let option = options.take_child_or_null(ChildName::BACKING.as_str())?;
        let backing = self.backing(context, option, &header).await?;
        let children = Qcow2Children { file, data, backing: Some(backing), cipher };
        let (pool, read_only) = (context.pool().clone(), common.read_only);
        let open = move |req| async move { Ok(Qcow2::open(&req, children, header, own.engine, read_only, pool).await) };
        let opened = context.run("Could not open the qcow2 image", open).await?;
        let (engine, control) = opened.map_err(|error| GraphError::Open(error.to_string()))?;
        let mut cleaning = Cleaning::default();
        cleaning.start(context.global(), &control, own.clean_interval);
        let control = Control { engine: control, cleaning };
        Ok(Opened { engine: Box::new(engine), control: Box::new(control), read_only })
    }
}

/// What options say of an image's encryption.
struct Encrypted {
    format: Option<String>,
    secret: Option<String>,
}

impl Encrypted {
    fn take(options: &mut OptionReader) -> GraphResult<Self> {
        let taken = options.take_dict("encrypt", |encrypt| {
            let this = Self { format: encrypt.take_str("format")?, secret: encrypt.take_str("key-secret")? };
            match encrypt.remaining().next() {
                Some(key) => Err(GraphError::Open(format!("Parameter '{key}' is unexpected"))),
                None => Ok(this),
            }
        })?;
        Ok(taken.unwrap_or(Self { format: None, secret: None }))
    }

    /// Whether the header says the same.
    fn check(&self, method: &'static str) -> GraphResult<()> {
        match &self.format {
            Some(format) if method.is_empty() => {
                Err(GraphError::Open(format!("No encryption in image header, but options specified format '{format}'")))
            }
            Some(format) if format != method => Err(GraphError::Open(format!(
                "Header reported '{method}' encryption format but options specify '{format}'"
            ))),
            _ => Ok(()),
        }
    }
}

/// What encrypts the data of the image in `file`, if it is encrypted and somebody is going to read it.
async fn unlock(
    context: &OpenContext<'_>,
    options: Encrypted,
    header: &Header,
    file: Edge,
) -> GraphResult<(Option<SectorCipher>, Edge)> {
    options.check(match header.crypt_method {
        0 => "",
        1 => "aes",
        _ => "luks",
    })?;
    if header.crypt_method == 0 || context.common().no_io {
        return Ok((None, file));
    }
    let secret = options.secret.ok_or_else(|| GraphError::Open(Qcow2Error::Locked.to_string()))?;
    let gs = context.global();
    if header.crypt_method == 1 {
        return Ok((Some(old_cipher(&gs.secret_text(&secret)?)?), file));
    }
    let of = header.clone();
    let read = context.run("Could not read the LUKS header", |req| async move {
        let volume = Volume::read(|at, len| Qcow2::read_crypto_header(&req, &file, &of, at, len), true, true).await?;
        Ok((volume, file))
    });
    let (volume, file) = read.await?;
    let volume = volume.and_then(Volume::only_luks1).map_err(refused)?;
    let (volume, key) = volume.unlock(gs, gs.secret_text(&secret)?).await?;
    Ok((Some(volume.cipher(&key)?), file))
}

/// The method of old: the password is the key, in AES-128, and nobody knows whether it is right.
fn old_cipher(password: &Secret) -> GraphResult<SectorCipher> {
    let spec = CipherSpec { cipher: Cipher::Aes128, mode: CipherMode::Cbc, iv: Some(IvGen::Plain64) };
    let mut key = Secret::zeroed(spec.key_len());
    for (to, from) in key.expose_mut().iter_mut().zip(password.expose()) {
        *to = *from;
    }
    SectorCipher::new(spec, key.expose()).map_err(|error| refused(error.into()))
}

/// Who lets tables go that were not used.
#[derive(Default)]
struct Cleaning {
    interval: u64,
    /// The task goes on for as long as there is this.
    running: Option<Rc<()>>,
}

impl Cleaning {
    /// Do it every so many seconds from now on; never with an interval of 0.
    fn start(&mut self, gs: &GlobalState, control: &Qcow2Control, interval: u64) {
        if self.running.is_some() && self.interval == interval {
            return;
        }
        self.interval = interval;
        self.running = (interval > 0).then(Rc::default);
        if let Some(running) = &self.running {
            let clean = clean(gs.clone(), control.downgrade(), Rc::downgrade(running), interval);
            drop(gs.main().spawn(clean));
        }
    }
}

/// Let tables go that were not used, every so many seconds, as long as there is the image.
async fn clean(gs: GlobalState, control: WeakControl, running: std::rc::Weak<()>, interval: u64) {
    let main = gs.main().clone();
    // The task is no reason for the block layer to stay.
    drop(gs);
    loop {
        main.sleep(Duration::from_secs(interval)).await;
        let (Some(control), Some(_)) = (control.upgrade(), running.upgrade()) else { return };
        control.clean_cache();
    }
}
