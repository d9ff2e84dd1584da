//! `rebase`: let an image stand on another backing file, or on none.
//!
//! What the image shows stays the same, unless that is not looked after (`-u`): wherever it has nothing of its own and the two backing files differ, it gets what the
//! old one has.

use crate::args::{ObjectArgs, cache, exclusive, source_cache};
use crate::chain::Alone;
use crate::cli::{Command, Failure};
use crate::image::{Image, on_io_thread};
use crate::layer::BlockLayer;
use crate::progress::{Progress, ProgressArgs};
use block_backend::Backend;
use block_common::{CacheFlags, Errno, RequestFlags};
use block_copy::{LayerOptions, Padded, SparseNote, keep_differences};
use block_drivers::ImageOptions;
use block_gs::{GlobalState, GraphError};
use clap::Parser;

/// Change the backing file of an image.
#[derive(Debug, Parser)]
#[command(
    name = "rebase",
    bin_name = "cairn-img rebase",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img rebase [options] FILENAME"
)]
pub(crate) struct Args {
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    /// The image's format; without it, guessed from the image
    #[arg(short, long, value_name = "FMT", allow_hyphen_values = true)]
    format: Option<String>,
    /// FILENAME is a set of options that describe an image, not a file name
    #[arg(long)]
    image_opts: bool,
    /// Cache mode of the image
    #[arg(
        short = 't',
        long,
        value_name = "CACHE",
        default_value = "writeback",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cache: String,
    /// The new backing file; '' for none
    #[arg(short, long = "backing", value_name = "FILENAME", allow_hyphen_values = true)]
    backing: Option<String>,
    /// Its format
    #[arg(short = 'F', long, value_name = "FMT", allow_hyphen_values = true)]
    backing_format: Option<String>,
    /// Cache mode of the backing files
    #[arg(
        short = 'T',
        long,
        value_name = "CACHE",
        default_value = "writeback",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    backing_cache: String,
    /// Change the name and nothing else: the new one shows the same as the old one
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    /// Compress what is written
    #[arg(short, long)]
    compress: bool,
    /// Let others use the backing files at the same time, in any way
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    object: ObjectArgs,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Rebase the image.
    ///
    /// # Errors
    /// What is wrong with the options, images that cannot be opened, or what they answered.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let name = match self.names.as_slice() {
            [name] => name.clone(),
            _ => return Err(Failure::usage(Some("rebase"), "Expecting one image file name")),
        };
        if self.backing.is_none() && !self.backing_unsafe {
            return Err(Failure::usage(Some("rebase"), "Must specify backing file (-b) or use unsafe mode (-u)"));
        }
        exclusive(self.image_opts, self.format.is_some())?;
        let Some(cache) = cache(&self.cache) else {
            return Err(Failure::message(format!("Invalid cache option: {}", self.cache)));
        };
        let below = source_cache(&self.backing_cache).map_err(Failure::message)?;
        let how = ImageOptions { format: self.format.clone(), cache, unmap: true, ..ImageOptions::default() };
        let image = Image { name, image_opts: self.image_opts, resize: true, still: false, stored: false, how };
        let progress = self.progress.start(self.quiet, 1.0)?;
        layer.run(|gs| async move { self.rebase(&gs, &image, below, progress).await })
    }
}

/// A backing file, if there is one.
type Below = Option<(Backend, Padded)>;

impl Args {
    async fn rebase(
        &self,
        gs: &GlobalState,
        image: &Image,
        cache: CacheFlags,
        progress: Progress,
    ) -> Result<(), Failure> {
        if let Some(format) = &self.backing_format
            && gs.driver(format).is_err()
        {
            return Err(Failure::message(format!("Invalid format name: '{format}'")));
        }
        let top = Alone::open(gs, image).await?;
        let new = self.backing.as_deref().unwrap_or("");
        let refused = |why: &str| Failure::message(format!("Could not change the backing file to '{new}': {why}"));
        let Some(control) = top.control.clone() else { return Err(refused(&Errno::ENOTSUP.to_string())) };
        if !new.is_empty() && self.backing_format.is_none() {
            return Err(refused("backing format must be specified"));
        }
        if !self.backing_unsafe {
            let old = self.open_old(gs, image, &top, cache).await?;
            let new = self.open_new(gs, new, cache).await?;
            self.keep(gs, &top, (old, new), progress).await?;
        }
        let backing = (!new.is_empty())
            .then(|| (new.as_bytes().to_vec(), self.backing_format.as_ref().map(|format| format.as_bytes().to_vec())));
        let change = |req| async move { Ok(control.change_backing(&req, backing).await) };
        match gs.run_drained(&top.node, "", change).await.map_err(Failure::message)? {
            Ok(()) => Ok(()),
            Err(error) if error.errno() == Errno::EINVAL => Err(refused("No space left on device")),
            Err(error) => Err(refused(&error.to_string())),
        }
    }

    /// What the image stands on.
    async fn open_old(
        &self,
        gs: &GlobalState,
        image: &Image,
        top: &Alone,
        cache: CacheFlags,
    ) -> Result<Below, Failure> {
        let Some((_, mut old)) = top.below.clone() else { return Ok(None) };
        (old.how.cache, old.how.force_share, old.how.unmap) = (cache, self.force_share, false);
        let in_words = |error: GraphError| {
            Failure::message(format!(
                "Could not open '{}': Could not open backing file: {}",
                image.name,
                error.report()
            ))
        };
        open(gs, &old, in_words).await.map(Some)
    }

    /// What it shall stand on.
    async fn open_new(&self, gs: &GlobalState, name: &str, cache: CacheFlags) -> Result<Below, Failure> {
        if name.is_empty() {
            return Ok(None);
        }
        let how = ImageOptions {
            format: self.backing_format.clone(),
            read_only: true,
            cache,
            force_share: self.force_share,
            ..ImageOptions::default()
        };
        let path = self.path_of(name);
        let new = Image { name: path, image_opts: false, resize: false, still: false, stored: false, how };
        let in_words = |error: GraphError| {
            Failure::message(format!("Could not open new backing file '{name}': {}", error.report()))
        };
        open(gs, &new, in_words).await.map(Some)
    }

    /// A name that counts from the folder of the image, from here.
    fn path_of(&self, name: &str) -> String {
        match self.names[0].rsplit_once('/') {
            Some((folder, _)) if !self.image_opts && !name.starts_with('/') && !name.contains(':') => {
                format!("{folder}/{name}")
            }
            _ => name.to_owned(),
        }
    }

    /// Let the image have of its own what the backing files show differently.
    async fn keep(
        &self,
        gs: &GlobalState,
        top: &Alone,
        below: (Below, Below),
        progress: Progress,
    ) -> Result<(), Failure> {
        let root = top.padded.root().clone();
        let limits = root.limits().map_err(Failure::message)?;
        // Whoever compresses does so with whole clusters.
        let unit = if self.compress { limits.transfer_optimal } else { limits.zero_alignment };
        let mut flags = if top.backend.io().write_cache() { RequestFlags::empty() } else { RequestFlags::FUA };
        flags.set(RequestFlags::WRITE_COMPRESSED, self.compress);
        let total = top.padded.len();
        let writes_zeroes = top.control.as_ref().is_none_or(|control| !control.has_zeroes());
        // The backends stay here, and open.
        let parts = (below.0.as_ref().map(|(_, part)| part.clone()), below.1.as_ref().map(|(_, part)| part.clone()));
        on_io_thread(gs, async move {
            progress.set_total(total);
            let note = |note| {
                if let SparseNote::Copied(bytes) = note {
                    progress.advance(bytes);
                }
            };
            let parts = (parts.0.as_ref(), parts.1.as_ref());
            let options = LayerOptions { speed: 0, flags, writes_zeroes };
            let kept = keep_differences(&root, parts, u64::from(unit.max(512)), options, note).await;
            kept.map_err(|error| {
                Failure::message(format!("error while {} at byte {}: {}", error.act, error.offset, error.error))
            })?;
            progress.finish();
            Ok(())
        })
        .await
    }
}

/// Open a backing file, with all that it stands on.
async fn open(
    gs: &GlobalState,
    image: &Image,
    failed: impl Fn(GraphError) -> Failure,
) -> Result<(Backend, Padded), Failure> {
    let node = block_drivers::open_image(gs, &image.name, &image.how).await.map_err(failed)?;
    let backend = image.insert(gs, node).await?;
    let padded = Padded::new(backend.io().root().clone()).map_err(Failure::message)?;
    Ok((backend, padded))
}
