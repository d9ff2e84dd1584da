//! `dd`: copy blocks of an image to a new one.

use crate::args::OpenArgs;
use crate::cli::{Command, Failure};
use crate::create::unopenable;
use crate::image::{Image, on_io_thread};
use crate::layer::BlockLayer;
use crate::number;
use block_common::{AlignedBuf, LENGTH_MAX, RequestFlags};
use block_copy::Padded;
use block_drivers::{CreateError, ImageOptions, NewImage};
use block_io::Root;
use clap::Parser;

/// Bytes of one request, at most: how large blocks are does not change what is copied.
const PIECE: u64 = 1 << 20;

/// Copy blocks of an image to another.
#[derive(Debug, Parser)]
#[command(
    name = "dd",
    bin_name = "cairn-img dd",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img dd [options] [bs=BYTES] [count=BLOCKS] [skip=BLOCKS] if=INPUT of=OUTPUT"
)]
pub(crate) struct Args {
    #[command(flatten)]
    open: OpenArgs,
    /// The output's format
    #[arg(short = 'O', long, value_name = "FMT", default_value = "raw", allow_hyphen_values = true)]
    output_format: String,
    /// if=INPUT, of=OUTPUT, bs=BYTES of a block (512), count=BLOCKS of the input, skip=BLOCKS at its start
    #[arg(value_name = "OPERANDS", hide = true)]
    operands: Vec<String>,
}

/// What the operands say.
#[derive(Debug, Default)]
struct Operands {
    input: Option<String>,
    output: Option<String>,
    block: Option<u64>,
    count: Option<u64>,
    skip: u64,
}

impl Operands {
    fn parse(words: &[String]) -> Result<Self, Failure> {
        let mut operands = Self::default();
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let blocks = |what| number::count(value, what, 0..=LENGTH_MAX).map_err(Failure::message);
            match (key, word.contains('=')) {
                ("if", true) => operands.input = Some(value.to_owned()),
                ("of", true) => operands.output = Some(value.to_owned()),
                ("bs", true) => {
                    let block = number::size(value, "bs", 1..=i32::MAX as u64).map_err(Failure::message)?;
                    operands.block = Some(block);
                }
                ("count", true) => operands.count = Some(blocks("count")?),
                ("skip", true) => operands.skip = blocks("skip")?,
                _ => return Err(Failure::message(format!("unrecognized operand {key}"))),
            }
        }
        Ok(operands)
    }

    /// The part of an input of `length` bytes that is copied, if it has one. Blocks are counted from the input's start, those
    /// that are skipped as well.
    fn range(&self, length: u64) -> Option<std::ops::Range<u64>> {
        let block = self.block.unwrap_or(Padded::SECTOR);
        let end = self.count.map_or(length, |count| length.min(count.saturating_mul(block)));
        let start = self.skip.saturating_mul(block);
        (start <= end).then_some(start..end)
    }
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.open.object.texts()
    }

    /// Copy the blocks.
    ///
    /// # Errors
    /// What is wrong with the operands, or what the images answered.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let operands = &Operands::parse(&self.operands)?;
        let format = &self.output_format;
        let (Some(input), Some(output)) = (&operands.input, &operands.output) else {
            return Err(Failure::message("Must specify both input and output files"));
        };
        self.open.check()?;
        let source = self.open.image(input);
        layer.run(|gs| async move {
            let (_input, data) = source.open_padded(&gs).await?;
            let mut image = NewImage::parse(&gs, format, output, "").await.map_err(|error| match error {
                CreateError::UnknownFormat(_) => Failure::message("Unknown file format"),
                other => Failure::message(other),
            })?;
            if let Some(text) = unopenable(&gs, format) {
                return Err(Failure::message(text));
            }
            let range = operands.range(data.len());
            if range.is_none() {
                let text = format!("{input}: cannot skip to specified offset");
                eprint!("{}", Failure::message(text));
            }
            let range = range.unwrap_or(0..0);
            image.set_size(range.end - range.start);
            let created = image.create(&gs).await;
            created
                .map_err(|error| Failure::message(format!("{output}: error while creating output image: {error}")))?;
            let how =
                ImageOptions { format: Some(format.clone()), own: image.open_options(), ..ImageOptions::default() };
            let target =
                Image { name: output.clone(), image_opts: false, resize: false, still: false, stored: false, how };
            let target = target.open(&gs).await?;
            let root = target.io().root().clone();
            on_io_thread(&gs, copy(data, range, root)).await
        })
    }
}

/// Copy `range` of the input to the start of the output, zeroes and holes too.
async fn copy(input: Padded, range: std::ops::Range<u64>, output: Root) -> Result<(), Failure> {
    let buf = AlignedBuf::zeroed(PIECE as usize, 4096).into_io();
    let mut at = range.start;
    while at < range.end {
        let len = PIECE.min(range.end - at);
        let read = input.read(at, buf.slice(0, len as usize)).await;
        let piece =
            read.map_err(|error| Failure::message(format!("error while reading from input image file: {error}")))?;
        let (written, _) = output.write(at - range.start, piece, RequestFlags::empty()).await;
        written.map_err(|error| Failure::message(format!("error while writing to output image file: {error}")))?;
        at += len;
    }
    Ok(())
}
