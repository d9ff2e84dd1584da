//! The command line of `convert`, and which of its options exclude each other.

use crate::args::{ObjectArgs, exclusive};
use crate::cli::Failure;
use crate::number;
use crate::progress::ProgressArgs;
use block_common::LENGTH_MAX;
use block_copy::Padded;
use clap::Parser;

/// The longest run of zeroes that `-S` can ask for.
const SPARSE_MAX: u64 = 16 << 20;
/// `-S` where it is not given.
const SPARSE_DEFAULT: u64 = 4096;

/// Copy images, one behind the other, to another.
#[derive(Debug, Parser)]
#[command(
    name = "convert",
    bin_name = "cairn-img convert",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img convert [options] FILENAME [FILENAME...] TARGET"
)]
pub(crate) struct Args {
    /// No progress, whatever -p says
    #[arg(short, long)]
    pub(super) quiet: bool,
    #[command(flatten)]
    pub(super) progress: ProgressArgs,
    /// The sources' format; without it, guessed from each
    #[arg(short = 'f', long, value_name = "FMT", allow_hyphen_values = true)]
    pub(super) source_format: Option<String>,
    /// The sources' names are sets of options that describe images, not file names
    #[arg(long, alias = "image-opts")]
    pub(super) source_image_opts: bool,
    /// Copy this snapshot of the source: its id or name, or snapshot.id=ID,snapshot.name=NAME
    #[arg(short = 'l', long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    pub(super) source_snapshot: Option<String>,
    /// Cache mode of the sources
    #[arg(
        short = 'T',
        long,
        value_name = "CACHE",
        default_value = "writeback",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(super) source_cache: String,
    /// The target's format: raw (default)
    #[arg(short = 'O', long, value_name = "FMT", allow_hyphen_values = true)]
    pub(super) target_format: Option<String>,
    /// The target's name is a set of options; needs -n
    #[arg(long)]
    pub(super) target_image_opts: bool,
    /// The options of the new image, as for create
    #[arg(short = 'o', long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(super) target_options: Vec<String>,
    /// Compress the data
    #[arg(short, long)]
    pub(super) compress: bool,
    /// Cache mode of the target
    #[arg(
        short = 't',
        long,
        value_name = "CACHE",
        default_value = "unsafe",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub(super) target_cache: String,
    /// The image that the target shall be on top of
    #[arg(short = 'B', long, value_name = "FILENAME", allow_hyphen_values = true)]
    pub(super) backing: Option<String>,
    /// The format of that image
    #[arg(short = 'F', long, value_name = "FMT", allow_hyphen_values = true)]
    pub(super) backing_format: Option<String>,
    /// The target is there already: do not create it
    #[arg(short, long)]
    pub(super) no_create: bool,
    /// The target that is there reads as zeroes
    #[arg(long)]
    pub(super) target_is_zero: bool,
    /// Leave out zeroes that are at least so many bytes long (4k); 0: write everything
    #[arg(short = 'S', long, value_name = "BYTES", value_parser = sparse_size, allow_hyphen_values = true)]
    sparse_size: Option<u64>,
    /// Copy the bitmaps that are kept in the source, too
    #[arg(long)]
    pub(super) bitmaps: bool,
    /// Leave out bitmaps that are not in order
    #[arg(long)]
    pub(super) skip_broken_bitmaps: bool,
    /// Let others use the sources at the same time, in any way
    #[arg(short = 'U', long)]
    pub(super) force_share: bool,
    /// At most so many bytes a second
    #[arg(short, long, value_parser = rate, default_value = "0", hide_default_value = true, allow_hyphen_values = true)]
    pub(super) rate: u64,
    /// How many pieces are in flight at once
    #[arg(short = 'm', long, value_name = "COUNT", value_parser = parallel, default_value = "8",
          allow_hyphen_values = true)]
    pub(super) parallel: u64,
    /// Let the host copy
    #[arg(short = 'C', long)]
    pub(super) copy_range_offloading: bool,
    /// Write zeroes for what cannot be read, and go on
    #[arg(long)]
    pub(super) salvage: bool,
    /// Write in any order, whatever comes first
    #[arg(short = 'W', long)]
    pub(super) oob_writes: bool,
    #[command(flatten)]
    pub(super) object: ObjectArgs,
    /// The sources and the target
    #[arg(value_name = "FILENAME", hide = true)]
    pub(super) names: Vec<String>,
}

fn sparse_size(text: &str) -> Result<u64, String> {
    let size = number::size(text, "buffer size for sparse output", 0..=LENGTH_MAX)?;
    if size.is_multiple_of(Padded::SECTOR) && size <= SPARSE_MAX {
        return Ok(size);
    }
    Err(format!(
        "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to {SPARSE_MAX}. Select 0 \
         to disable sparse detection (fully allocates output)."
    ))
}

fn rate(text: &str) -> Result<u64, String> {
    number::size(text, "rate limit", 0..=LENGTH_MAX)
}

fn parallel(text: &str) -> Result<u64, String> {
    number::count(text, "number of coroutines", 1..=16)
}

impl Args {
    /// Zeroes that are at least so many bytes long are left out; 0: none are.
    pub(super) fn sparse(&self) -> u64 {
        self.sparse_size.unwrap_or(SPARSE_DEFAULT)
    }

    /// Refuse what makes no sense together.
    pub(super) fn check(&self) -> Result<(), Failure> {
        exclusive(self.source_image_opts, self.source_format.is_some())?;
        let refuse = |text: &str| Err(Failure::message(text));
        if self.skip_broken_bitmaps && !self.bitmaps {
            return refuse("Use of --skip-broken-bitmaps requires --bitmaps");
        }
        if self.copy_range_offloading {
            if self.compress {
                return refuse("Cannot enable copy offloading when -c is used");
            }
            if self.sparse_size.is_some() {
                return refuse("Cannot enable copy offloading when -S is used");
            }
            if self.salvage {
                return refuse("Cannot use copy offloading in salvaging mode");
            }
        }
        if self.target_is_zero && !self.no_create {
            return refuse("--target-is-zero requires use of -n flag");
        }
        if self.target_image_opts && !self.no_create {
            return refuse("--target-image-opts requires use of -n flag");
        }
        exclusive(self.target_image_opts, self.target_format.is_some())?;
        if self.no_create && !self.target_options.is_empty() {
            return refuse("-o has no effect when skipping image creation");
        }
        if self.source_snapshot.is_some() && self.names.len() > 2 {
            return refuse("No support for concatenating multiple snapshot");
        }
        Ok(())
    }
}
