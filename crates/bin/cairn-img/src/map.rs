//! `map`: which parts of an image hold data, and where they lie.

use crate::args::{OpenArgs, OutputArgs, OutputFormat, one_image};
use crate::cli::{Command, Failure};
use crate::image::on_io_thread;
use crate::layer::BlockLayer;
use crate::{number, print};
use block_common::{BlockStatus, IoResult, LENGTH_MAX, StatusExtent};
use block_copy::Padded;
use block_drivers::file_name;
use block_gs::{GlobalState, NodeRef};
use clap::Parser;
use std::fmt::Write;

/// Show which parts of an image hold data.
#[derive(Debug, Parser)]
#[command(
    name = "map",
    bin_name = "cairn-img map",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img map [options] FILENAME"
)]
pub(crate) struct Args {
    #[command(flatten)]
    open: OpenArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Begin at this byte
    #[arg(short, long, value_name = "OFFSET", value_parser = start_offset, default_value = "0",
          allow_hyphen_values = true)]
    start_offset: u64,
    /// Look at this many bytes at most
    #[arg(short = 'l', long, value_name = "LENGTH", value_parser = max_length, allow_hyphen_values = true)]
    max_length: Option<u64>,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

/// How much of the map is asked for at a time.
const STATUSES: usize = 256;

fn start_offset(text: &str) -> Result<u64, String> {
    number::size(text, "start offset", 0..=LENGTH_MAX)
}

fn max_length(text: &str) -> Result<u64, String> {
    number::size(text, "max length", 0..=LENGTH_MAX)
}

/// Bytes that share what is printed of them.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    start: u64,
    len: u64,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
    /// How many backing files below the image it is.
    depth: usize,
}

impl Entry {
    fn new(start: u64, extent: StatusExtent, depth: usize) -> Self {
        let has = |flag| extent.status.contains(flag);
        // A file's hole is a place in it; zeroes without one are there only if the image says so.
        let is_hole = has(BlockStatus::ZERO) && extent.host_offset.is_some();
        Self {
            start,
            depth,
            len: extent.len,
            present: is_hole || extent.status.intersects(BlockStatus::ALLOCATED | BlockStatus::DATA),
            zero: has(BlockStatus::ZERO),
            data: has(BlockStatus::DATA),
            compressed: has(BlockStatus::COMPRESSED),
            // Of what nobody has there is no place.
            offset: extent.host_offset.map(|offset| offset.0),
        }
        .with_place()
    }

    fn with_place(self) -> Self {
        if self.present { self } else { Self { offset: None, ..self } }
    }

    /// Whether `next` is more of the same.
    fn goes_on_with(&self, next: &Self) -> bool {
        let kind = |entry: &Self| (entry.depth, entry.present, entry.zero, entry.data, entry.compressed);
        kind(self) == kind(next) && self.offset.map(|offset| offset + self.len) == next.offset
    }

    fn json(&self) -> String {
        let Self { start, len, present, zero, data, compressed, offset, depth } = self;
        let mut text = format!(
            "{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \"present\": {present}, \"zero\": {zero}, \
             \"data\": {data}, \"compressed\": {compressed}"
        );
        if let Some(offset) = offset {
            // A String takes whatever is written to it.
            let _ = write!(text, ", \"offset\": {offset}");
        }
        text + "}"
    }
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.open.object.texts()
    }

    /// Print the map.
    ///
    /// # Errors
    /// The image cannot be opened, or does not tell what it holds.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let output = self.output.format("map")?;
        let name = one_image(&self.names, "map")?;
        self.open.check()?;
        let image = self.open.image(name);
        let (start, max) = (self.start_offset, self.max_length);
        layer.run(|gs| async move {
            let (backend, padded) = image.open_padded(&gs).await?;
            let end = max.map_or(padded.len(), |max| padded.len().min(start.saturating_add(max)));
            match output {
                OutputFormat::Human => {
                    let files = backend.node().map(|node| bottom_names(&gs, node)).transpose()?.unwrap_or_default();
                    print(&format!("{:<16}{:<16}{:<16}File\n", "Offset", "Length", "Mapped to"))?;
                    walk(&gs, padded, start, end, move |entry, _| human(entry, &files)).await
                }
                OutputFormat::Json => {
                    walk(&gs, padded, start, end, move |entry, is_last| {
                        let open = if entry.start == start { "[" } else { "" };
                        Ok(format!("{open}{}{}\n", entry.json(), if is_last { "]" } else { "," }))
                    })
                    .await
                }
            }
        })
    }
}

/// A line of the table, for what holds data.
///
/// # Errors
/// The data lies in no file as it is: the table has no words for that.
fn human(entry: &Entry, files: &[String]) -> Result<String, Failure> {
    let file = files.get(entry.depth).map_or("", String::as_str);
    match entry.offset {
        None if entry.data => Err(Failure::message("File contains external, encrypted or compressed clusters.")),
        Some(offset) if entry.data && !entry.zero => {
            Ok(format!("{:<16}{:<16}{:<16}{file}\n", hex(entry.start), hex(entry.len), hex(offset)))
        }
        _ => Ok(String::new()),
    }
}

/// C's `%#x`: zero has no prefix.
fn hex(value: u64) -> String {
    if value == 0 { "0".into() } else { format!("{value:#x}") }
}

/// The names of the files that hold the data of the image and of each of its backing files.
fn bottom_names(gs: &GlobalState, node: NodeRef) -> Result<Vec<String>, Failure> {
    let (mut names, mut next) = (Vec::new(), Some(node));
    while let Some(node) = next.take() {
        names.push(bottom_name(gs, &node)?);
        let below = child(gs, &node, |name| name == "backing")?;
        next = below.map(|name| gs.find_node(&name).map_err(Failure::message)).transpose()?;
    }
    Ok(names)
}

/// The name of the file at the bottom.
fn bottom_name(gs: &GlobalState, node: &NodeRef) -> Result<String, Failure> {
    let below = match child(gs, node, |name| name == "data-file")? {
        Some(data) => Some(data),
        None => child(gs, node, |name| name != "backing")?,
    };
    match below {
        Some(child) => bottom_name(gs, &gs.find_node(&child).map_err(Failure::message)?),
        None => file_name(gs, node).map_err(Failure::message),
    }
}

/// The node's first child on an edge of such a name.
fn child(gs: &GlobalState, node: &NodeRef, wanted: impl Fn(&str) -> bool) -> Result<Option<String>, Failure> {
    let children = gs.node_info(node).map_err(Failure::message)?.children;
    Ok(children.into_iter().find_map(|(name, child, _)| child.filter(|_| wanted(&name))))
}

/// Print each entry from `start` to `end` as `text` has it, which gets the last one with `true`. There is always one.
async fn walk(
    gs: &GlobalState,
    padded: Padded,
    start: u64,
    end: u64,
    text: impl Fn(&Entry, bool) -> Result<String, Failure> + Send + 'static,
) -> Result<(), Failure> {
    on_io_thread(gs, async move {
        let mut current = Entry { start, ..Entry::default() };
        let mut at = start;
        while at < end {
            let told = padded.statuses(at, end - at, STATUSES).await;
            let told = told.map_err(|error| Failure::message(format!("Could not read file metadata: {error}")))?;
            let mut lines = String::new();
            let decided = entries(&padded, at, told).await;
            for next in decided.map_err(|error| Failure::message(format!("Could not read file metadata: {error}")))? {
                at += next.len;
                if current.len > 0 && current.goes_on_with(&next) {
                    current.len += next.len;
                    continue;
                }
                if current.len > 0 {
                    match text(&current, false) {
                        Ok(line) => lines += &line,
                        Err(error) => return print(&lines).and(Err(error)),
                    }
                }
                current = next;
            }
            print(&lines)?;
        }
        print(&text(&current, true)?)
    })
    .await
}

/// The entries from `at` on that `told` is, with what the image leaves to its backing files as those have it.
async fn entries(padded: &Padded, mut at: u64, told: Vec<StatusExtent>) -> IoResult<Vec<Entry>> {
    let mut entries = Vec::new();
    for extent in told {
        let end = at + extent.len;
        if extent.status.difference(BlockStatus::EOF) != BlockStatus::empty() {
            entries.push(Entry::new(at, extent, 0));
            at = end;
        }
        while at < end {
            let below = padded.root().chain_status(at, end - at).await?;
            entries.push(Entry::new(at, below.extent, below.reached));
            at += below.extent.len.max(1);
        }
    }
    Ok(entries)
}
