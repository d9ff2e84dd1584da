//! `resize`: make an image longer or shorter.

use crate::args::{ObjectArgs, exclusive};
use crate::cli::{Command, Failure};
use crate::image::Image;
use crate::layer::BlockLayer;
use crate::say;
use block_common::{Errno, IoError, IoErrorKind, LENGTH_MAX, Preallocation};
use block_drivers::{ImageOptions, NewImage, refuse_length, resize_failure};
use block_gs::BitmapError;
use clap::Parser;
use std::ffi::OsString;

/// Change an image's size.
#[derive(Debug, Parser)]
#[command(
    name = "resize",
    bin_name = "cairn-img resize",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img resize [options] FILENAME [+|-]SIZE"
)]
pub(crate) struct Args {
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// The image's format; without it, guessed from the image
    #[arg(short, long, value_name = "FMT", allow_hyphen_values = true)]
    format: Option<String>,
    /// FILENAME is a set of options that describe an image, not a file name
    #[arg(long)]
    image_opts: bool,
    /// Let the image get shorter; what is past its new end is lost
    #[arg(long)]
    shrink: bool,
    /// What to allocate of the new part: off (default), falloc, full
    #[arg(long, value_name = "MODE", value_parser = preallocation, default_value = "off", hide_default_value = true,
          allow_hyphen_values = true)]
    preallocation: Preallocation,
    #[command(flatten)]
    object: ObjectArgs,
    /// The image, and its new size in bytes, or after + or - what it gets longer or shorter by
    #[arg(value_name = "FILENAME SIZE", hide = true)]
    names: Vec<String>,
}

fn preallocation(text: &str) -> Result<Preallocation, String> {
    text.parse().map_err(|_| format!("Invalid preallocation mode '{text}'"))
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
enum Size {
    Exactly(u64),
    More(u64),
    Less(u64),
}

impl Size {
    fn parse(text: &str) -> Result<Self, Failure> {
        let (kind, number): (fn(u64) -> Self, _) = match text.as_bytes().first() {
            Some(b'+') => (Self::More, &text[1..]),
            Some(b'-') => (Self::Less, &text[1..]),
            _ => (Self::Exactly, text),
        };
        let bytes = NewImage::parse_size(number).map_err(Failure::message)?;
        Ok(kind(bytes))
    }

    /// The new length of an image that has `old` bytes, if it can have that.
    fn applied(self, old: u64) -> Option<u64> {
        let new = match self {
            Self::Exactly(bytes) => Some(bytes),
            Self::More(bytes) => old.checked_add(bytes),
            Self::Less(bytes) => old.checked_sub(bytes),
        };
        new.filter(|new| (1..=LENGTH_MAX).contains(new))
    }
}

impl Command for Args {
    /// A last word like `-1G` is what the image gets shorter by, not an option.
    fn prepare(mut words: Vec<OsString>) -> Vec<OsString> {
        let is_size = |word: &OsString| {
            let word = word.as_encoded_bytes();
            word.first() == Some(&b'-') && word.get(1).is_some_and(u8::is_ascii_digit)
        };
        if words.last().is_some_and(is_size) && !words.iter().any(|word| word == "--") {
            words.insert(words.len() - 1, "--".into());
        }
        words
    }

    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Resize the image.
    ///
    /// # Errors
    /// A size that makes no sense, an image that cannot have it, or what the host said.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let (name, size) = match self.names.as_slice() {
            [] | [_] => return Err(Failure::usage(Some("resize"), "Expecting image file name and size")),
            [name, size] => (name, size),
            _ => return Err(Failure::usage(Some("resize"), "Extra argument(s) in command line")),
        };
        exclusive(self.image_opts, self.format.is_some())?;
        let size = Size::parse(size)?;
        let how = ImageOptions { format: self.format.clone(), ..ImageOptions::default() };
        let image =
            Image { name: name.clone(), image_opts: self.image_opts, resize: true, still: false, stored: false, how };
        layer.run(|gs| async move {
            let (backend, padded) = image.open_padded(&gs).await?;
            let old = padded.len();
            let new = size.applied(old).ok_or_else(|| Failure::message("New image size must be positive"))?;
            self.check(old, new)?;
            let info = backend.node().and_then(|node| gs.node_info(&node).ok());
            let fixed = info.is_some_and(|info| info.driver == "raw" && info.options.contains_key("size"));
            if !fixed && gs.nodes().iter().any(|node| node.driver == "host_device") {
                self.check_device(padded.root().length().map_err(Failure::message)?, new)?;
            }
            let bitmaps = backend.node().and_then(|node| gs.bitmaps(&node).ok()).unwrap_or_default();
            if let Some(bitmap) = bitmaps.into_iter().find(|bitmap| bitmap.inconsistent) {
                return Err(Failure::message(BitmapError::Inconsistent(bitmap.name)));
            }
            let is_qcow2 = backend.node().is_some_and(|node| gs.skip_filters(&node).io().driver() == Some("qcow2"));
            if let Some(refused) = refuse_length(new).filter(|_| is_qcow2) {
                return Err(Failure::message(refused));
            }
            let resized = padded.root().truncate(new, self.preallocation).await;
            resized.map_err(|error| {
                Failure::message(match is_qcow2 {
                    true => resize_failure(error, old, new, self.preallocation),
                    false => words(error, self.preallocation, fixed),
                })
            })?;
            if self.quiet { Ok(()) } else { say("Image resized.") }
        })
    }
}

impl Args {
    /// A device has the length that it has.
    fn check_device(&self, old: u64, new: u64) -> Result<(), Failure> {
        match self.preallocation {
            Preallocation::Off if new == old => Ok(()),
            Preallocation::Off => Err(Failure::message("Cannot resize device files")),
            mode => Err(Failure::message(format!("Preallocation mode '{mode}' unsupported for this non-regular file"))),
        }
    }

    /// Refuse what loses data that nobody said may be lost.
    fn check(&self, old: u64, new: u64) -> Result<(), Failure> {
        if new <= old && self.preallocation != Preallocation::Off {
            return Err(Failure::message("Preallocation can only be used for growing images"));
        }
        if new < old && !self.shrink {
            let what = Failure::message("Use the --shrink option to perform a shrink operation.");
            return Err(what.and(Failure::message(
                "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing \
                 such an operation, make sure there is no important data there.",
            )));
        }
        Ok(())
    }
}

/// Why a length could not be changed; `fixed` is one that options say.
fn words(error: IoError, preallocation: Preallocation, fixed: bool) -> String {
    match (error.kind(), preallocation) {
        (IoErrorKind::Unsupported, _) if fixed => "Cannot resize fixed-size raw disks".into(),
        (IoErrorKind::Unsupported, Preallocation::Metadata) => {
            format!("Unsupported preallocation mode: {preallocation}")
        }
        (IoErrorKind::Unsupported, _) => "Image format driver does not support resize".into(),
        (_, Preallocation::Falloc) => format!("Could not preallocate new data: {error}"),
        (_, Preallocation::Full) if error.errno() != Errno::EFBIG => {
            format!("Could not write zeros for preallocation: {error}")
        }
        _ => format!("Could not resize file: {error}"),
    }
}
