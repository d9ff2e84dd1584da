//! `bench`: a simple benchmark, requests of one size at regular distances, some of them at once.
//!
//! This file is its command line and its words; the requests are in `load`.

mod load;

use crate::args::cache;
use crate::cli::{Command, Failure};
use crate::image::Image;
use crate::layer::BlockLayer;
use crate::{number, say};
use block_common::{AioMode, CacheFlags, LENGTH_MAX};
use block_drivers::ImageOptions;
use clap::Parser;
use load::{Flushes, Load, Outcome};

/// The largest count, depth, buffer and step.
const INT_MAX: u64 = i32::MAX as u64;

/// Run a simple sequential I/O benchmark on an image: reads, or with -w writes.
#[derive(Debug, Parser)]
#[command(
    name = "bench",
    bin_name = "cairn-img bench",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img bench [options] FILENAME"
)]
pub(crate) struct Args {
    /// Quiet operations; bench has nothing to leave out
    #[arg(short, long)]
    quiet: bool,
    /// The image's format; without it, guessed from the image
    #[arg(short, long, value_name = "FMT", allow_hyphen_values = true)]
    format: Option<String>,
    /// FILENAME is a set of options that describe an image, not a file name
    #[arg(long)]
    image_opts: bool,
    /// Cache mode: writeback (default), none, off, directsync, writethrough, unsafe
    #[arg(short = 't', long, value_name = "CACHE", value_parser = cache_mode, default_value = "writeback",
          hide_default_value = true, allow_hyphen_values = true)]
    cache: CacheFlags,
    /// How many requests in all
    #[arg(short, long, value_parser = count, default_value = "75000", allow_hyphen_values = true)]
    count: u64,
    /// How many bytes each request has
    #[arg(short = 's', long, value_parser = buffer_size, default_value = "4096", allow_hyphen_values = true)]
    buffer_size: u64,
    /// How many requests are in flight at once
    #[arg(short, long, value_parser = depth, default_value = "64", allow_hyphen_values = true)]
    depth: u64,
    /// Where the first request starts
    #[arg(short, long, value_parser = offset, default_value = "0", allow_hyphen_values = true)]
    offset: u64,
    /// How far each request is from the one before; 0: the buffer size
    #[arg(short = 'S', long, value_parser = step_size, default_value = "0", allow_hyphen_values = true)]
    step_size: u64,
    /// Who carries out requests on host files: threads, native, io_uring (default)
    #[arg(short = 'i', long, value_name = "AIO", value_parser = aio, allow_hyphen_values = true)]
    aio: Option<AioMode>,
    /// As -i native, whatever -i says
    #[arg(short, long)]
    native: bool,
    /// Write instead of reading
    #[arg(short, long)]
    write: bool,
    /// Write this byte instead of zero
    #[arg(long, value_parser = pattern, default_value = "0", allow_hyphen_values = true)]
    pattern: u64,
    /// Flush after this many requests
    #[arg(long, value_parser = flush_interval, default_value = "0", allow_hyphen_values = true)]
    flush_interval: u64,
    /// Do not wait for requests in flight before a flush
    #[arg(long)]
    no_drain: bool,
    /// Let others use the image at the same time, in any way
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    #[arg(value_name = "FILENAME")]
    file_names: Vec<String>,
}

fn cache_mode(text: &str) -> Result<CacheFlags, String> {
    cache(text).ok_or_else(|| "Invalid cache mode".to_owned())
}

fn aio(text: &str) -> Result<AioMode, String> {
    text.parse().map_err(|_| format!("Invalid aio option: {text}"))
}

fn count(text: &str) -> Result<u64, String> {
    number::count(text, "request count", 1..=INT_MAX)
}

fn depth(text: &str) -> Result<u64, String> {
    number::count(text, "queue depth", 1..=INT_MAX)
}

fn pattern(text: &str) -> Result<u64, String> {
    number::count(text, "pattern byte", 0..=u64::from(u8::MAX))
}

fn flush_interval(text: &str) -> Result<u64, String> {
    number::count(text, "flush interval", 0..=INT_MAX)
}

fn buffer_size(text: &str) -> Result<u64, String> {
    number::size(text, "buffer size", 1..=INT_MAX)
}

fn step_size(text: &str) -> Result<u64, String> {
    number::size(text, "step size", 0..=INT_MAX)
}

fn offset(text: &str) -> Result<u64, String> {
    number::size(text, "offset", 0..=LENGTH_MAX)
}

impl Command for Args {
    /// Run the benchmark.
    ///
    /// # Errors
    /// The options contradict each other, the image cannot be opened, a request failed, or closing did.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let name = self.check()?;
        let image = self.image(name);
        let load = self.load();
        layer.run(|gs| async move {
            let backend = image.open(&gs).await?;
            self.announce()?;
            let outcome = load.run(backend.io()).await.map_err(failed)?;
            say(&format!("Run completed in {:.3} seconds.", outcome.elapsed.as_secs_f64()))?;
            let Outcome { last_flush, .. } = outcome;
            last_flush.map_err(failed)
        })
    }
}

fn failed(failure: load::LoadError) -> Failure {
    Failure::message(failure)
}

impl Args {
    /// Refuse what makes no sense together. Returns the name of the image.
    fn check(&self) -> Result<String, Failure> {
        let [name] = self.file_names.as_slice() else {
            return Err(Failure::usage(Some("bench"), "Expecting one image file name"));
        };
        if !self.write && self.flush_interval > 0 {
            return Err(Failure::message("--flush-interval is only available in write tests"));
        }
        if self.flush_interval > 0 && self.flush_interval < self.depth {
            return Err(Failure::message("Flush interval can't be smaller than depth"));
        }
        if self.image_opts && self.format.is_some() {
            return Err(Failure::message("--image-opts and --format are mutually exclusive"));
        }
        Ok(name.clone())
    }

    fn image(&self, name: String) -> Image {
        let aio = if self.native { Some(AioMode::Native) } else { self.aio };
        let how = ImageOptions {
            format: self.format.clone(),
            read_only: !self.write,
            cache: self.cache,
            aio: aio.map(|mode| mode.to_string()),
            force_share: self.force_share,
            unmap: false,
            ..ImageOptions::default()
        };
        Image { name, image_opts: self.image_opts, resize: false, still: false, stored: false, how }
    }

    fn load(&self) -> Load {
        Load {
            count: self.count,
            depth: self.depth,
            size: self.buffer_size as usize,
            step: self.step(),
            offset: self.offset,
            pattern: self.write.then_some(self.pattern as u8),
            flushes: (self.flush_interval > 0)
                .then_some(Flushes { interval: self.flush_interval, drain: !self.no_drain }),
        }
    }

    fn step(&self) -> u64 {
        if self.step_size == 0 { self.buffer_size } else { self.step_size }
    }

    fn announce(&self) -> Result<(), Failure> {
        say(&format!(
            "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})",
            self.count,
            if self.write { "write" } else { "read" },
            self.buffer_size,
            self.depth,
            self.offset,
            self.step(),
        ))?;
        if self.flush_interval == 0 {
            return Ok(());
        }
        say(&format!("Sending flush every {} requests", self.flush_interval))
    }
}
