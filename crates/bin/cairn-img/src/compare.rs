//! `compare`: whether two images read the same.

use crate::args::{ObjectArgs, exclusive, source_cache};
use crate::cli::{Command, Failure};
use crate::image::{Image, on_io_thread};
use crate::layer::BlockLayer;
use crate::progress::{Progress, ProgressArgs};
use crate::say;
use block_common::CacheFlags;
use block_copy::{CompareError, CopyAct, Difference, Padded, compare, first_data};
use block_drivers::ImageOptions;
use clap::Parser;

/// Exit status for whatever kept the images from being compared.
const NOT_OPENED: u8 = 2;
/// An image does not tell what it holds.
const NO_STATUS: u8 = 3;
/// An image cannot be read.
const NOT_READ: u8 = 4;

/// Check if two images have the same contents.
#[derive(Debug, Parser)]
#[command(
    name = "compare",
    bin_name = "cairn-img compare",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img compare [options] FILENAME1 FILENAME2"
)]
pub(crate) struct Args {
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    /// The first image's format; without it, guessed from the image
    #[arg(short = 'f', long, value_name = "FMT", allow_hyphen_values = true)]
    a_format: Option<String>,
    /// The second image's format
    #[arg(short = 'F', long, value_name = "FMT", allow_hyphen_values = true)]
    b_format: Option<String>,
    /// The names are sets of options that describe images, not file names
    #[arg(long)]
    image_opts: bool,
    /// Sizes and holes must be the same, too
    #[arg(short, long)]
    strict: bool,
    /// Cache mode of the images
    #[arg(
        short = 'T',
        long,
        value_name = "CACHE",
        default_value = "writeback",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cache: String,
    /// Let others use the images at the same time, in any way
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    object: ObjectArgs,
    /// The images
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

impl Command for Args {
    const REFUSED_OBJECT: u8 = NOT_OPENED;

    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Compare the images.
    ///
    /// # Errors
    /// Status 1 when they differ, 2 and more when they cannot be compared.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let [first, second] = self.names.as_slice() else {
            return Err(Failure::usage(Some("compare"), "Expecting two image file names"));
        };
        let not_opened = |failure: Failure| failure.with_status(NOT_OPENED);
        let both = self.a_format.is_some() || self.b_format.is_some();
        exclusive(self.image_opts, both).map_err(not_opened)?;
        let progress = self.progress.start(self.quiet, 2.0)?;
        let cache = source_cache(&self.cache).map_err(|text| not_opened(Failure::message(text)))?;
        let (a, b) = (self.image(first, &self.a_format, cache), self.image(second, &self.b_format, cache));
        layer.run(|gs| async move {
            let (_a, a_data) = a.open_padded(&gs).await.map_err(not_opened)?;
            let (_b, b_data) = b.open_padded(&gs).await.map_err(not_opened)?;
            let names = [a.name, b.name];
            let (quiet, strict) = (self.quiet, self.strict);
            on_io_thread(&gs, async move {
                let tell = |text: &str| if quiet { Ok(()) } else { say(text) };
                let work = Work { a: a_data, b: b_data, names, strict, progress };
                work.run(tell).await
            })
            .await
        })
    }
}

impl Args {
    fn image(&self, name: &str, format: &Option<String>, cache: CacheFlags) -> Image {
        let how = ImageOptions {
            format: format.clone(),
            read_only: true,
            cache,
            force_share: self.force_share,
            ..ImageOptions::default()
        };
        Image { name: name.to_owned(), image_opts: self.image_opts, resize: false, still: false, stored: false, how }
    }
}

/// Two open images.
struct Work {
    a: Padded,
    b: Padded,
    names: [String; 2],
    strict: bool,
    progress: Progress,
}

impl Work {
    /// Compare them; `tell` what comes out.
    async fn run(self, tell: impl Fn(&str) -> Result<(), Failure>) -> Result<(), Failure> {
        let Self { a, b, names, strict, progress } = &self;
        let (common, whole) = (a.len().min(b.len()), a.len().max(b.len()));
        progress.set_total(whole);
        if *strict && common < whole {
            tell("Strict mode: Image size mismatch!")?;
            return Err(Failure::told());
        }
        let advance = |bytes| progress.advance(bytes);
        let mut found = compare(a, b, 0..common, *strict, advance).await.map_err(|error| failed(error, names))?;
        if found.is_none() && common < whole {
            tell("Warning: Image size mismatch!")?;
            let is_second = b.len() > a.len();
            let longer = if is_second { b } else { a };
            let rest = first_data(longer, is_second, common..whole, advance).await;
            found = rest.map_err(|error| failed(error, names))?;
        }
        let text = match found {
            None => return tell("Images are identical."),
            Some(Difference::Content(at)) => format!("Content mismatch at offset {at}!"),
            Some(Difference::Status(at)) => format!("Strict mode: Offset {at} block status mismatch!"),
        };
        tell(&text)?;
        Err(Failure::told())
    }
}

fn failed(error: CompareError, names: &[String; 2]) -> Failure {
    let CompareError { act, is_second, offset, error } = error;
    let name = &names[usize::from(is_second)];
    match act {
        CopyAct::Read => {
            Failure::message(format!("Error while reading offset {offset} of {name}: {error}")).with_status(NOT_READ)
        }
        _ => {
            let text = format!("Sector allocation test failed for {name} at offset {offset}: {error}");
            Failure::message(text).with_status(NO_STATUS)
        }
    }
}
