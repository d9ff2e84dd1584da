//! `commit`: write what an image has of its own into its backing file, or one further down.

use crate::args::{ObjectArgs, cache, exclusive};
use crate::chain::Alone;
use crate::cli::{Command, Failure};
use crate::image::{Image, on_io_thread};
use crate::layer::BlockLayer;
use crate::progress::{Progress, ProgressArgs};
use crate::{number, say};
use block_common::{LENGTH_MAX, RequestFlags};
use block_copy::{LayerOptions, SparseNote, commit};
use block_drivers::ImageOptions;
use block_gs::GlobalState;
use clap::Parser;
use std::sync::Arc;

/// Commit an image to its backing file.
#[derive(Debug, Parser)]
#[command(
    name = "commit",
    bin_name = "cairn-img commit",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img commit [options] FILENAME"
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
    /// Cache mode of what is written
    #[arg(
        short = 't',
        long,
        value_name = "CACHE",
        default_value = "writeback",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cache: String,
    /// Leave what was committed in the image as well
    #[arg(short, long)]
    drop: bool,
    /// Commit to this image of the chain, not to the next one (implies -d)
    #[arg(short, long, value_name = "BASE_IMG", allow_hyphen_values = true)]
    base: Option<String>,
    /// Bytes a second
    #[arg(short, long, value_parser = rate, default_value = "0", hide_default_value = true, allow_hyphen_values = true)]
    rate: u64,
    #[command(flatten)]
    object: ObjectArgs,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

fn rate(text: &str) -> Result<u64, String> {
    number::size(text, "rate limit", 0..=LENGTH_MAX)
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Commit the image.
    ///
    /// # Errors
    /// An image without a backing file, or what the images answered.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let name = match self.names.as_slice() {
            [name] => name.clone(),
            _ => return Err(Failure::usage(Some("commit"), "Expecting one image file name")),
        };
        exclusive(self.image_opts, self.format.is_some())?;
        let Some(cache) = cache(&self.cache) else {
            return Err(Failure::message(format!("Invalid cache option: {}", self.cache)));
        };
        let how = ImageOptions { format: self.format.clone(), cache, unmap: true, ..ImageOptions::default() };
        let image = Image { name, image_opts: self.image_opts, resize: true, still: false, stored: false, how };
        let progress = self.progress.start(self.quiet, 1.0)?;
        layer.run(|gs| async move { self.commit(&gs, &image, progress).await })
    }
}

impl Args {
    async fn commit(&self, gs: &GlobalState, image: &Image, progress: Progress) -> Result<(), Failure> {
        let top = Alone::open(gs, image).await?;
        let mut layers = top.open_below(gs).await?;
        let to = match &self.base {
            None if layers.is_empty() => return Err(Failure::message("Image does not have a backing file")),
            None => 0,
            Some(base) => layers.iter().position(|(name, _)| name == base).ok_or_else(|| {
                Failure::message(format!("Did not find '{base}' in the backing chain of '{}'", image.name))
            })?,
        };
        // It is opened for writing, on what it stands on: what is written to a part of a cluster leaves the rest as it shows.
        let (base_name, old) = layers.swap_remove(to);
        layers.truncate(to);
        let mut base = match layers.last() {
            Some((_, above)) => above.below.clone(),
            None => top.below.clone(),
        }
        .map(|(_, image)| image)
        .ok_or_else(|| Failure::message(format!("Could not open '{base_name}'")))?;
        drop(old);
        gs.settle().await.map_err(Failure::message)?;
        base.how.read_only = false;
        base.resize = true;
        let (base, padded) = base.open_padded(gs).await?;
        let total = top.padded.len();
        let into = padded.root().clone();
        if padded.len() < total {
            let grown = into.grow_zeroed(total).await;
            grown.map_err(|error| Failure::message(format!("Could not resize '{base_name}': {error}")))?;
        }
        let roots: Vec<_> = std::iter::once(top.padded.root().clone())
            .chain(layers.iter().map(|(_, layer)| layer.padded.root().clone()))
            .collect();
        let flags = if base.io().write_cache() { RequestFlags::empty() } else { RequestFlags::FUA };
        let options = LayerOptions { speed: self.rate, flags, writes_zeroes: false };
        on_io_thread(gs, async move {
            progress.set_total(total);
            let progress = Arc::new(progress);
            let done = progress.clone();
            let note = move |note| {
                if let SparseNote::Copied(bytes) | SparseNote::Skipped(bytes) = note {
                    done.advance(bytes);
                }
            };
            let done = commit(&roots, &into, options, note).await;
            done.map_err(|error| Failure::message(format!("Block job failed: {}", error.error)))?;
            progress.finish();
            Ok(())
        })
        .await?;
        if !self.drop && self.base.is_none() {
            self.empty(gs, &top).await?;
        }
        if self.quiet { Ok(()) } else { say("Image committed.") }
    }

    /// What was committed need not be in the image as well.
    async fn empty(&self, gs: &GlobalState, top: &Alone) -> Result<(), Failure> {
        let Some(control) = top.control.clone() else { return Ok(()) };
        let what = format!("Could not empty {}", self.names[0]);
        let emptied = gs.run_drained(&top.node, &what, |req| async move { control.make_empty(&req).await });
        emptied.await.map_err(Failure::message)
    }
}
