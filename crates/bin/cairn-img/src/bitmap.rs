//! `bitmap`: make, remove and change the bitmaps that are kept in an image.

use crate::args::{ObjectArgs, exclusive};
use crate::cli::{Command, Failure};
use crate::image::{Image, node_of};
use crate::layer::BlockLayer;
use crate::number;
use block_common::LENGTH_MAX;
use block_drivers::ImageOptions;
use block_gs::{BitmapOptions, BitmapResult, GlobalState, NodeRef};
use clap::{Arg, ArgAction, ArgMatches, Parser};

/// Make, remove or change a bitmap that is kept in an image.
#[derive(Debug, Parser)]
#[command(
    name = "bitmap",
    bin_name = "cairn-img bitmap",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img bitmap [options] FILENAME BITMAP"
)]
pub(crate) struct Args {
    #[command(flatten)]
    acts: Acts,
    /// How many bytes of the disk a bit of a new bitmap stands for
    #[arg(short, long, value_name = "SIZE", value_parser = granularity, allow_hyphen_values = true)]
    granularity: Option<u64>,
    /// Merge bitmaps of this image instead
    #[arg(short = 'b', long, value_name = "FILENAME", allow_hyphen_values = true)]
    source_file: Option<String>,
    /// The format of that image; without it, guessed from the image
    #[arg(short = 'F', long, value_name = "FMT", allow_hyphen_values = true)]
    source_format: Option<String>,
    /// The image's format; without it, guessed from the image
    #[arg(short, long, value_name = "FMT", allow_hyphen_values = true)]
    format: Option<String>,
    /// FILENAME is a set of options that describe an image, not a file name
    #[arg(long)]
    image_opts: bool,
    #[command(flatten)]
    object: ObjectArgs,
    /// The image and the bitmap
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

fn granularity(text: &str) -> Result<u64, String> {
    number::size(text, "granularity", 0..=LENGTH_MAX)
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Act {
    const PLAIN: [(Self, &str, &str); 5] = [
        (Self::Add, "add", "Make the bitmap; it records what is written from now on"),
        (Self::Remove, "remove", "Remove the bitmap"),
        (Self::Clear, "clear", "Nothing counts as written any more"),
        (Self::Enable, "enable", "Record what is written"),
        (Self::Disable, "disable", "Record no more"),
    ];

    fn name(&self) -> &'static str {
        Self::PLAIN.iter().find(|(act, ..)| act == self).map_or("merge", |(_, name, _)| name)
    }
}

/// Everything that is to be done, in the order of the command line.
#[derive(Clone, Debug, Default)]
struct Acts(Vec<Act>);

impl clap::Args for Acts {
    fn augment_args(mut command: clap::Command) -> clap::Command {
        for (_, name, help) in Act::PLAIN {
            let arg = Arg::new(name).long(name).help(help);
            command = command.arg(arg.action(ArgAction::Append).num_args(0).default_missing_value(""));
        }
        let merge = Arg::new("merge").long("merge").value_name("SOURCE").action(ArgAction::Append);
        command.arg(
            merge.allow_hyphen_values(true).help("What counts as written in bitmap SOURCE does so in this one, too"),
        )
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Acts {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut acts = Vec::new();
        for (act, name, _) in Act::PLAIN {
            acts.extend(matches.indices_of(name).into_iter().flatten().map(|place| (place, act.clone())));
        }
        if let (Some(places), Some(sources)) = (matches.indices_of("merge"), matches.get_many::<String>("merge")) {
            acts.extend(places.zip(sources).map(|(place, source)| (place, Act::Merge(source.clone()))));
        }
        acts.sort_by_key(|(place, _)| *place);
        Ok(Self(acts.into_iter().map(|(_, act)| act).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Carry it out, one act after the other.
    ///
    /// # Errors
    /// The act that cannot be done; those before it are. An image that cannot be opened, or what the host said.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let refuse = |text: &str| Err(Failure::message(text));
        let Acts(acts) = self.acts;
        if acts.is_empty() {
            return refuse("Need at least one of --add, --remove, --clear, --enable, --disable, or --merge");
        }
        if self.granularity.is_some() && !acts.contains(&Act::Add) {
            return refuse("granularity only supported with --add");
        }
        if self.source_format.is_some() && self.source_file.is_none() {
            return refuse("-F only supported with -b");
        }
        if self.source_file.is_some() && !acts.iter().any(|act| matches!(act, Act::Merge(_))) {
            return refuse("Merge bitmap source file only supported with --merge");
        }
        let [name, bitmap] = self.names.as_slice() else { return refuse("Expecting filename and bitmap name") };
        exclusive(self.image_opts, self.format.is_some())?;
        let how = ImageOptions { format: self.format, ..ImageOptions::default() };
        let image =
            Image { name: name.clone(), image_opts: self.image_opts, resize: false, still: false, stored: false, how };
        let source = self.source_file.map(|name| {
            let how = ImageOptions { format: self.source_format, read_only: true, ..ImageOptions::default() };
            Image { name, image_opts: false, resize: false, still: false, stored: false, how }
        });
        let options = BitmapOptions {
            granularity: self.granularity.filter(|granularity| *granularity > 0),
            persistent: true,
            ..BitmapOptions::new(bitmap)
        };
        layer.run(|gs| async move {
            let backend = image.open(&gs).await?;
            let node = node_of(&backend)?;
            let other = match source {
                Some(source) => Some(source.open(&gs).await?),
                None => None,
            };
            let from = other.as_ref().map_or_else(|| Ok(node.clone()), node_of)?;
            for act in acts {
                let done = act.carry_out(&gs, (&node, &options), &from).await;
                done.map_err(|error| {
                    let (act, bitmap) = (act.name(), &options.name);
                    Failure::message(format!("Operation {act} on bitmap {bitmap} failed: {error}"))
                })?;
            }
            Ok(())
        })
    }
}

impl Act {
    async fn carry_out(
        &self,
        gs: &GlobalState,
        (node, options): (&NodeRef, &BitmapOptions),
        from: &NodeRef,
    ) -> BitmapResult<()> {
        let name = &options.name;
        match self {
            Self::Add => gs.add_bitmap(node, options.clone()).await.map(drop),
            Self::Remove => gs.remove_bitmap(node, name),
            Self::Clear => gs.clear_bitmap(node, name),
            Self::Enable => gs.enable_bitmap(node, name).await,
            Self::Disable => gs.disable_bitmap(node, name),
            Self::Merge(source) => gs.merge_bitmaps(node, name, &[(from, source)]),
        }
    }
}
