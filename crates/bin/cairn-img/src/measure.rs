//! `measure`: how large the file of a new image will be.

use crate::args::{OpenArgs, OutputArgs, OutputFormat, option_list};
use crate::cli::{Command, Failure};
use crate::convert::show_snapshot;
use crate::image::on_io_thread;
use crate::layer::BlockLayer;
use crate::{number, say};
use block_backend::Backend;
use block_common::{BlockStatus, LENGTH_MAX};
use block_copy::Padded;
use block_drivers::{Measured, Measuring, MeasuringOf, NewImage, check_format};
use block_gs::GlobalState;
use clap::Parser;

/// How many extents are asked for at a time.
const EXTENTS: usize = 256;

/// Calculate the file size that a new image needs.
#[derive(Debug, Parser)]
#[command(
    name = "measure",
    bin_name = "cairn-img measure",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img measure [options] --size SIZE | FILENAME"
)]
pub(crate) struct Args {
    #[command(flatten)]
    open: OpenArgs,
    /// The new image's format
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw", allow_hyphen_values = true)]
    target_format: String,
    /// The new image's options, as for create
    #[arg(short, long, value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// Measure an image of this many bytes
    #[arg(short, long, value_parser = size, allow_hyphen_values = true)]
    size: Option<u64>,
    /// Measure this snapshot of FILENAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    snapshot: Option<String>,
    #[command(flatten)]
    output: OutputArgs,
    /// Measure what it takes to convert this image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

fn size(text: &str) -> Result<u64, String> {
    number::size(text, "image size", 0..=LENGTH_MAX)
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.open.object.texts()
    }

    /// Print the sizes.
    ///
    /// # Errors
    /// What is wrong with the options, or a source that cannot be opened.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let output = self.output.format("measure")?;
        let options = option_list(&self.options)?;
        let name = match self.names.as_slice() {
            [] => None,
            [name] => Some(name.as_str()),
            _ => return Err(Failure::message("At most one filename argument is allowed.")),
        };
        match (name, self.size) {
            (None, None) => return Err(Failure::message("Either --size N or one filename must be specified.")),
            (Some(_), Some(_)) => return Err(Failure::message("--size N cannot be used together with a filename.")),
            _ => {}
        }
        if name.is_none() && (self.open.image_opts || self.open.format.is_some() || self.snapshot.is_some()) {
            return Err(Failure::message("--image-opts, -f, and -l require a filename argument."));
        }
        self.open.check()?;
        match (name, self.size) {
            (Some(name), _) => {
                let image = self.open.image(name);
                layer.run(|gs| async move {
                    let (backend, padded) = image.open_padded(&gs).await?;
                    let padded = match &self.snapshot {
                        Some(snapshot) => show_snapshot(&gs, &backend, snapshot).await?,
                        None => padded,
                    };
                    let size = padded.len();
                    let mut bitmaps = None;
                    let measured = match self.measuring(&gs, &options)? {
                        MeasuringOf::Content(before) => content(before, size),
                        MeasuringOf::Clusters(measuring) => {
                            if measuring.has_bitmaps() {
                                bitmaps = bitmaps_of(&gs, &backend, &measuring, size)?;
                            }
                            let measuring = on_io_thread(&gs, look(padded, measuring)).await?;
                            measuring.finish(size, true).map_err(Failure::message)?
                        }
                    };
                    tell(measured, bitmaps, output)
                })
            }
            (None, size) => {
                let size = size.unwrap_or(0);
                layer.run(|gs| async move {
                    let measured = match self.measuring(&gs, &options)? {
                        MeasuringOf::Content(before) => content(before, size),
                        MeasuringOf::Clusters(measuring) => measuring.finish(size, false).map_err(Failure::message)?,
                    };
                    tell(measured, None, output)
                })
            }
        }
    }
}

impl Args {
    /// What measures such an image.
    fn measuring(&self, gs: &GlobalState, options: &str) -> Result<MeasuringOf, Failure> {
        let format = &self.target_format;
        check_format(format).map_err(Failure::message)?;
        if !["raw", "qcow2", "luks"].contains(&format.as_str()) {
            return Err(Failure::message(format!("Block driver '{format}' does not support size measurement")));
        }
        let image = NewImage::imagine(format, options).map_err(|error| {
            Failure::message(error).and(Failure::message(format!("Invalid options for file format '{format}'")))
        })?;
        image.measuring(gs).map_err(Failure::message)
    }
}

/// An image that is as long as its content, with so many bytes before that, and may be allocated in full. Without any, it has whole sectors.
fn content(before: u64, size: u64) -> Measured {
    let bytes = if before == 0 { size.next_multiple_of(Padded::SECTOR) } else { before.saturating_add(size) };
    Measured { required: bytes, fully_allocated: bytes }
}

/// Tell of all data of the source.
async fn look(source: Padded, mut measuring: Measuring) -> Result<Measuring, Failure> {
    let mut at = 0;
    while at < source.len() {
        let extents = source.decided(at, source.len() - at, EXTENTS).await;
        let extents = extents.map_err(|error| Failure::message(format!("Unable to get block status: {error}")))?;
        for extent in extents {
            if extent.status.contains(BlockStatus::DATA) && !extent.status.contains(BlockStatus::ZERO) {
                measuring.add(at..at + extent.len);
            }
            at += extent.len;
        }
    }
    Ok(measuring)
}

/// What the bitmaps of the source take in an image that has them as well.
fn bitmaps_of(gs: &GlobalState, backend: &Backend, to: &Measuring, size: u64) -> Result<Option<u64>, Failure> {
    let Some(node) = backend.node() else { return Ok(None) };
    if !gs.keeps_bitmaps(&node).map_err(Failure::message)? {
        return Ok(None);
    }
    let all = gs.bitmaps(&node).map_err(Failure::message)?;
    let kept: Vec<_> = all.into_iter().filter(|all| all.persistent).map(|all| (all.name, all.granularity)).collect();
    Ok(Some(to.bitmaps(size, &kept)))
}

/// `bitmaps`: bytes that bitmaps of the source take, where that is told.
fn tell(measured: Measured, bitmaps: Option<u64>, output: OutputFormat) -> Result<(), Failure> {
    let Measured { required, fully_allocated: full, .. } = measured;
    say(&match (output, bitmaps) {
        (OutputFormat::Human, None) => format!("required size: {required}\nfully allocated size: {full}"),
        (OutputFormat::Human, Some(bitmaps)) => {
            format!("required size: {required}\nfully allocated size: {full}\nbitmaps size: {bitmaps}")
        }
        (OutputFormat::Json, None) => format!("{{\n    \"required\": {required},\n    \"fully-allocated\": {full}\n}}"),
        (OutputFormat::Json, Some(bitmaps)) => format!(
            "{{\n    \"bitmaps\": {bitmaps},\n    \"required\": {required},\n    \"fully-allocated\": {full}\n}}"
        ),
    })
}
