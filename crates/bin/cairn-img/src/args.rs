//! Options that several commands have.

use crate::cli::Failure;
use crate::image::Image;
use block_common::{CacheFlags, CacheMode};
use block_drivers::ImageOptions;
use clap::Args;
use std::fmt;

/// How to open an image that is read.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// The image's format; without it, guessed from the image
    #[arg(short, long, value_name = "FMT", allow_hyphen_values = true)]
    pub(crate) format: Option<String>,
    /// FILENAME is a set of options that describe an image, not a file name
    #[arg(long)]
    pub(crate) image_opts: bool,
    /// Let others use the image at the same time, in any way
    #[arg(short = 'U', long)]
    pub(crate) force_share: bool,
    #[command(flatten)]
    pub(crate) object: ObjectArgs,
}

/// Objects that images may refer to.
#[derive(Args)]
pub(crate) struct ObjectArgs {
    /// Make an object that images refer to: a password, for example (--object help lists the types)
    #[arg(long, value_name = "OBJDEF", allow_hyphen_values = true)]
    object: Vec<String>,
}

impl ObjectArgs {
    /// What describes them, in the order of the command line.
    pub(crate) fn texts(&self) -> &[String] {
        &self.object
    }
}

/// There may be passwords in them.
impl fmt::Debug for ObjectArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ObjectArgs({} objects)", self.object.len())
    }
}

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    Human,
    Json,
}

/// `--output`
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// How to print it: human (default) or json
    #[arg(long, value_name = "FORMAT", default_value = "human", hide_default_value = true, allow_hyphen_values = true)]
    output: String,
}

impl OutputArgs {
    /// The format; `command` is the one that was asked for it.
    ///
    /// # Errors
    /// There is no such format.
    pub(crate) fn format(&self, command: &str) -> Result<OutputFormat, Failure> {
        match self.output.as_str() {
            "human" => Ok(OutputFormat::Human),
            "json" => Ok(OutputFormat::Json),
            other => {
                let text = format!("--output expects 'human' or 'json' not '{other}'");
                Err(Failure::usage(Some(command), text))
            }
        }
    }
}

impl OpenArgs {
    /// Refuse a format for what names it itself.
    ///
    /// # Errors
    /// Both were given.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        exclusive(self.image_opts, self.format.is_some())
    }

    /// The image called `name`, to be read.
    pub(crate) fn image(&self, name: &str) -> Image {
        Image {
            name: name.to_owned(),
            image_opts: self.image_opts,
            resize: false,
            still: false,
            stored: false,
            how: ImageOptions {
                format: self.format.clone(),
                read_only: true,
                force_share: self.force_share,
                ..ImageOptions::default()
            },
        }
    }
}

/// Refuse `--image-opts` beside a format.
pub(crate) fn exclusive(image_opts: bool, format: bool) -> Result<(), Failure> {
    if image_opts && format {
        return Err(Failure::message("--image-opts and --format are mutually exclusive"));
    }
    Ok(())
}

/// The only one of `names`.
///
/// # Errors
/// There is none, or more than one.
pub(crate) fn one_image<'a>(names: &'a [String], command: &str) -> Result<&'a str, Failure> {
    match names {
        [name] => Ok(name),
        _ => Err(Failure::usage(Some(command), "Expecting one image file name")),
    }
}

/// What a cache mode's name stands for.
pub(crate) fn cache(text: &str) -> Option<CacheFlags> {
    text.parse::<CacheMode>().map(CacheFlags::from).ok()
}

/// The value of `-T`: how sources are cached.
pub(crate) fn source_cache(text: &str) -> Result<CacheFlags, String> {
    cache(text).ok_or_else(|| format!("Invalid source cache option: {text}"))
}

/// Several `-o` are one list. A comma too many at either end is refused, for a value may be lost with it.
///
/// # Errors
/// The list that makes no sense.
pub(crate) fn option_list(lists: &[String]) -> Result<String, Failure> {
    for list in lists {
        let commas = list.len() - list.trim_end_matches(',').len();
        if list.is_empty() || list.starts_with(',') || commas % 2 == 1 {
            return Err(Failure::message(format!("Invalid option list: {list}")));
        }
    }
    Ok(lists.join(","))
}

/// Whether a list of options asks which there are.
pub(crate) fn asks_for_help(list: &str) -> bool {
    list.split(',').any(|item| item == "help" || item == "?")
}
