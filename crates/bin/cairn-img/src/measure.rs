//! `measure`: how large the file of a new image will be.

use crate::args::{OpenArgs, OutputArgs, OutputFormat, option_list};
use crate::cli::{Command, Failure};
use crate::convert::snapshot_refused;
use crate::image::with_block_layer;
use crate::{number, say};
use block_common::LENGTH_MAX;
use block_copy::Padded;
use block_drivers::{NewImage, check_format};
use clap::Parser;

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
    /// Measure this snapshot of FILENAME (no format of this build has any)
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
    /// Print the sizes.
    ///
    /// # Errors
    /// What is wrong with the options, or a source that cannot be opened.
    fn run(self) -> Result<(), Failure> {
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
                with_block_layer(|gs| async move {
                    let (backend, padded) = image.open_padded(&gs).await?;
                    snapshot_refused(&backend, self.snapshot.is_some())?;
                    self.tell(padded.len(), &options, output)
                })
            }
            (None, size) => self.tell(size.unwrap_or(0), &options, output),
        }
    }
}

impl Args {
    /// A raw image is as long as its content, in whole sectors, and may be allocated in full.
    fn tell(&self, size: u64, options: &str, output: OutputFormat) -> Result<(), Failure> {
        check_format(&self.target_format).map_err(Failure::message)?;
        if self.target_format != "raw" {
            let text = format!("Block driver '{}' does not support size measurement", self.target_format);
            return Err(Failure::message(text));
        }
        NewImage::imagine(&self.target_format, options)
            .map_err(|error| Failure::message(error).and(Failure::message("Invalid options for file format 'raw'")))?;
        let bytes = size.next_multiple_of(Padded::SECTOR);
        say(&match output {
            OutputFormat::Human => format!("required size: {bytes}\nfully allocated size: {bytes}"),
            OutputFormat::Json => format!("{{\n    \"required\": {bytes},\n    \"fully-allocated\": {bytes}\n}}"),
        })
    }
}
