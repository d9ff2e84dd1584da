//! `create`: make a new image.

use crate::args::{ObjectArgs, asks_for_help, option_list};
use crate::cli::{Command, Failure};
use crate::layer::BlockLayer;
use crate::{number, print, say};
use block_common::LENGTH_MAX;
use block_drivers::{CreateError, CreateOption, CreateOptionKind, NewImage, check_format, creation_options};
use block_gs::GlobalState;
use clap::Parser;

/// Create an image, or empty the one that is there.
#[derive(Debug, Parser)]
#[command(
    name = "create",
    bin_name = "cairn-img create",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img create [options] FILENAME [SIZE]"
)]
pub(crate) struct Args {
    /// Say nothing
    #[arg(short, long)]
    quiet: bool,
    /// The image's format
    #[arg(short, long, value_name = "FMT", default_value = "raw", allow_hyphen_values = true)]
    format: String,
    /// The format's and the protocol's options; -o help lists them
    #[arg(short, long = "options", value_name = "OPTIONS", allow_hyphen_values = true)]
    options: Vec<String>,
    /// The image that what is not in this one is read from; only qcow2 images can have one
    #[arg(short, long, value_name = "FILENAME", allow_hyphen_values = true)]
    backing: Option<String>,
    /// The format of that image
    #[arg(short = 'F', long, value_name = "FMT", allow_hyphen_values = true)]
    backing_format: Option<String>,
    /// Do not look at that image
    #[arg(short = 'u', long)]
    backing_unsafe: bool,
    #[command(flatten)]
    object: ObjectArgs,
    /// The image, and its size in bytes; suffixes k, M, G, T, P and E count in 1024
    #[arg(value_name = "FILENAME [SIZE]", hide = true)]
    names: Vec<String>,
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Create the image.
    ///
    /// # Errors
    /// What is wrong with the options, or what the host said.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let options = option_list(&self.options)?;
        let mut names = self.names.iter().map(String::as_str);
        let name = names.next();
        if asks_for_help(&options) {
            return layer.run(|gs| async move { list_options(&gs, &self.format, name).await });
        }
        let Some(name) = name else {
            return Err(Failure::usage(Some("create"), "Expecting image file name"));
        };
        let size = names.next().map(|text| number::size(text, "image size", 0..=LENGTH_MAX));
        let size = size.transpose().map_err(Failure::message)?;
        if let Some(more) = names.next() {
            return Err(Failure::usage(Some("create"), format!("Unexpected argument: {more}")));
        }
        let failed = |error: &dyn std::fmt::Display| Failure::message(format!("{name}: {error}"));
        let this = &self;
        layer.run(|gs| async move {
            let image = this.image(&gs, name, &options, size).await.map_err(|text| failed(&text))?;
            if !this.quiet {
                say(&format!("Formatting '{name}', fmt={} {image}", this.format))?;
            }
            let created = image.create(&gs).await;
            created.map_err(|error| match error.is_too_large() {
                true => {
                    let hint = if image.has_clusters() { " (try using a larger cluster size)" } else { "" };
                    failed(&format!("The image size is too large for file format '{}'{hint}", this.format))
                }
                false => failed(&error),
            })
        })
    }
}

impl Args {
    /// What is to be created, or what is wrong with it.
    async fn image(&self, gs: &GlobalState, name: &str, options: &str, size: Option<u64>) -> Result<NewImage, String> {
        let mut image = NewImage::parse(gs, &self.format, name, options).await.map_err(|error| error.to_string())?;
        match (size, image.size()) {
            (Some(_), Some(_)) => return Err("The image size must be specified only once".into()),
            (Some(size), None) => image.set_size(size),
            (None, _) => {}
        }
        let backing = (self.backing.as_deref(), self.backing_format.as_deref());
        image.set_backing(backing.0, backing.1).map_err(|error| error.to_string())?;
        image.check_backing(gs, !self.backing_unsafe).await.map_err(|error| error.to_string())?;
        match image.size() {
            Some(_) => Ok(image),
            None => Err(CreateError::NoSize.to_string()),
        }
    }
}

/// Why an image of `format` cannot be written after it was created, if so: this build has no driver that opens it.
pub(crate) fn unopenable(gs: &GlobalState, format: &str) -> Option<String> {
    gs.driver(format).is_err().then(|| format!("Image format '{format}' is not supported"))
}

/// `-o help`: the options of `format`, and of the protocol if a name tells it.
///
/// # Errors
/// What cannot be created has none.
pub(crate) async fn list_options(gs: &GlobalState, format: &str, name: Option<&str>) -> Result<(), Failure> {
    check_format(format).map_err(Failure::message)?;
    let options = creation_options(gs, format, name).await.map_err(Failure::message)?;
    let title = match name {
        None => format!("Supported {format} options:\n"),
        Some(_) => "Supported options:\n".to_owned(),
    };
    print(&title)?;
    say_options(&options)?;
    if name.is_none() {
        say(
            "\nThe protocol level may support further options.\nSpecify the target filename to include those options.",
        )?;
    }
    Ok(())
}

/// Tell what there is to choose.
///
/// # Errors
/// Nobody listens.
pub(crate) fn say_options(options: &[CreateOption]) -> Result<(), Failure> {
    for option in options {
        let kind = match option.kind {
            CreateOptionKind::Size => "<size>",
            CreateOptionKind::Bool => "<bool (on/off)>",
            CreateOptionKind::Number => "<num>",
            CreateOptionKind::Str => "<str>",
        };
        say(&format!("  {:<22} - {}", format!("{}={kind}", option.name), option.help))?;
    }
    Ok(())
}
