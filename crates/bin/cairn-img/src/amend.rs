//! `amend`: give an image that is there other options of its format.
//!
//! What changes tables as a whole is done on what the image lies in, while nobody has the image itself open; its length, and zeroes that the older version has
//! no words for, are its driver's business. Each step leaves an image that is right.

use crate::args::{ObjectArgs, asks_for_help, cache, exclusive, option_list};
use crate::cli::{Command, Failure};
use crate::create::say_options;
use crate::image::{Image, node_of, on_io_thread};
use crate::layer::BlockLayer;
use crate::progress::ProgressArgs;
use crate::{PROGRAM, print};
use block_common::{Errno, Preallocation};
use block_drivers::{Amend, CreateError, ImageOptions, Qcow2Control, amend_options, change_slots};
use block_gs::{BitmapError, GlobalState};
use block_qcow2::check::{Amendment, Storage, Watch, amend};
use block_qcow2::{Header, Version};
use clap::Parser;
use std::fmt;

/// Change options of an image's format.
#[derive(Debug, Parser)]
#[command(
    name = "amend",
    bin_name = "cairn-img amend",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img amend [options] FILENAME"
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
    /// Allow what may make the image unreadable: to erase the last key slot, to overwrite one
    #[arg(long)]
    force: bool,
    /// The options: -o help lists them
    #[arg(short, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    #[command(flatten)]
    object: ObjectArgs,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

/// What is found on the way is told in the end, if it is in the way.
struct Silent;

impl Watch for Silent {
    fn message(&mut self, _: fmt::Arguments<'_>) {}
}

fn refused(error: CreateError) -> Failure {
    match error {
        CreateError::AmendBacking => Failure::message(format!("{error}\nYou can use '{PROGRAM} rebase' instead.")),
        error => Failure::message(error),
    }
}

fn list(format: &str) -> Result<(), Failure> {
    let options = amend_options(format).map_err(refused)?;
    print(&format!("Amend options for '{format}':\n"))?;
    say_options(&options)
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Amend the image.
    ///
    /// # Errors
    /// Options that make no sense or that the image cannot have, or what the host said.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        if self.options.is_empty() {
            return Err(Failure::usage(Some("amend"), "Must specify options (-o)"));
        }
        let options = option_list(&self.options)?;
        let wants_help = asks_for_help(&options);
        if let (true, Some(format)) = (wants_help, &self.format) {
            return list(format);
        }
        let [name] = self.names.as_slice() else { return Err(Failure::message("Expecting one image file name")) };
        exclusive(self.image_opts, self.format.is_some())?;
        let cache =
            cache(&self.cache).ok_or_else(|| Failure::message(format!("Invalid cache option: {}", self.cache)))?;
        let progress = self.progress.start(self.quiet, 1.0)?;
        let how = ImageOptions { format: self.format.clone(), cache, ..ImageOptions::default() };
        let image =
            Image { name: name.clone(), image_opts: self.image_opts, resize: true, still: false, stored: false, how };
        layer.run(|gs| async move {
            let Some((header, wanted)) = image.look(&gs, &options, wants_help, self.force).await? else {
                return Ok(());
            };
            let Amend { change, size, .. } = wanted;
            change.check(&header).map_err(Failure::message)?;
            let is_down = change.version == Some(Version::V2) && header.version > Version::V2;
            let first = Amendment { version: change.version.filter(|_| !is_down), ..change };
            if first != Amendment::default() {
                image.amend(&gs, first).await?;
            }
            if let Some(size) = size {
                image.set_size(&gs, size).await?;
            }
            if is_down {
                image.expand_zeroes(&gs).await?;
                image.amend(&gs, Amendment { version: Some(Version::V2), ..Amendment::default() }).await?;
            }
            progress.finish();
            Ok(())
        })
    }
}

/// Each of these opens the image, and waits until it is closed again.
impl Image {
    /// The image's header, and what the options ask for; nothing when the user only wants to know which there are, or when it is done already.
    async fn look(
        &self,
        gs: &GlobalState,
        options: &str,
        wants_help: bool,
        force: bool,
    ) -> Result<Option<(Header, Amend)>, Failure> {
        let backend = self.open(gs).await?;
        let node = node_of(&backend)?;
        let driver = node.io().driver().unwrap_or("none");
        if wants_help {
            return list(driver).map(|()| None);
        }
        let wanted = Amend::parse(driver, options).map_err(refused)?;
        if let (Some(slots), "luks") = (&wanted.slots, driver) {
            let change = slots.change().map_err(Failure::message)?;
            let changed = change_slots(gs, &node, &change, force).await;
            return changed.map(|()| None).map_err(|error| Failure::message(error.report()));
        }
        let header = gs.with_control(&node, |control: &mut Qcow2Control| control.header());
        let header = header.map_err(Failure::message)?;
        if let Some(slots) = &wanted.slots {
            let method = header.crypt_method;
            let missing = [CreateError::AmendEncryption, CreateError::AmendOld];
            if let Some(error) = missing.into_iter().nth(method as usize) {
                return Err(Failure::message(error));
            }
            wanted.change.check(&header).map_err(Failure::message)?;
            let change = slots.change().map_err(Failure::message)?;
            let changed = change_slots(gs, &node, &change, force).await;
            changed.map_err(|error| Failure::message(error.report()))?;
        }
        let bitmaps = gs.bitmaps(&node).map_err(Failure::message)?;
        let stale = bitmaps.into_iter().find(|bitmap| bitmap.inconsistent && wanted.size.is_some());
        if let Some(stale) = stale {
            return Err(Failure::message(BitmapError::Inconsistent(stale.name)));
        }
        drop((backend, node));
        closed(gs).await?;
        Ok(Some((header, wanted)))
    }

    async fn amend(&self, gs: &GlobalState, change: Amendment) -> Result<(), Failure> {
        let (backend, _) = self.open_under_format(gs).await?;
        let root = backend.io().root().clone();
        on_io_thread(
            gs,
            async move { amend(Storage::Root(&root), &change, &mut Silent).await.map_err(Failure::message) },
        )
        .await?;
        drop(backend);
        closed(gs).await
    }

    async fn set_size(&self, gs: &GlobalState, size: u64) -> Result<(), Failure> {
        let backend = self.open(gs).await?;
        let resized = backend.io().root().truncate(size, Preallocation::Off).await;
        resized.map_err(|error| match error.errno() {
            Errno::EFBIG => Failure::message(format!("Failed to grow the L1 table: {error}")),
            _ => Failure::message(format!("Could not resize image: {error}")),
        })?;
        drop(backend);
        closed(gs).await
    }

    async fn expand_zeroes(&self, gs: &GlobalState) -> Result<(), Failure> {
        let backend = self.open(gs).await?;
        let node = node_of(&backend)?;
        let control = gs.with_control(&node, |control: &mut Qcow2Control| control.clone());
        let control = control.map_err(Failure::message)?;
        let expand = |req| async move { control.expand_zeroes(&req).await };
        let what = "Failed to turn zero into data clusters";
        gs.run_drained(&node, what, expand).await.map_err(Failure::message)?;
        drop((backend, node));
        closed(gs).await
    }
}

/// Nobody refers to the image any more: wait until it is closed.
async fn closed(gs: &GlobalState) -> Result<(), Failure> {
    gs.settle().await.map_err(Failure::message)
}
