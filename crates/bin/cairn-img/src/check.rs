//! `check`: whether an image's references and reference counts agree, and making them agree.
//!
//! An image that is damaged may be one that its driver does not open. So this opens what the image lies in, and no more: neither a backing file
//! nor a data file, and no key is needed.

use crate::args::{OpenArgs, OutputArgs, OutputFormat, one_image, source_cache};
use crate::cli::{Command, Failure};
use crate::image::{Image, on_io_thread};
use crate::info::write_json;
use crate::layer::BlockLayer;
use crate::progress::{Progress, ProgressArgs};
use crate::{PROGRAM, print};
use block_common::IoError;
use block_io::Root;
use block_qcow2::check::{CheckError, Repair, Report, Storage, Watch, check};
use clap::Parser;
use serde_json::{Map, Value};
use std::fmt::{self, Write as _};
use std::io::{BufWriter, Stderr, Write as _};

/// The image is corrupt.
const CORRUPT: u8 = 2;
/// Clusters are leaked, and nothing else is wrong.
const LEAKS: u8 = 3;
/// The format has nothing that could be checked.
const NO_CHECKS: u8 = 63;

/// Check an image, and repair it.
#[derive(Debug, Parser)]
#[command(
    name = "check",
    bin_name = "cairn-img check",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img check [options] FILENAME",
    after_help = "Exit status: 0 the image is right (now), 1 it could not be checked, 2 it is corrupt, 3 it has \
                  leaked clusters, 63 its format has no checks."
)]
pub(crate) struct Args {
    /// Say nothing but errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    open: OpenArgs,
    /// Repair what is wrong: leaks, or all
    #[arg(short, long, value_name = "WHAT", allow_hyphen_values = true)]
    repair: Option<String>,
    /// Cache mode of the image
    #[arg(
        short = 'T',
        long,
        value_name = "CACHE",
        default_value = "writeback",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cache: String,
    #[command(flatten)]
    output: OutputArgs,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.open.object.texts()
    }

    /// Check the image.
    ///
    /// # Errors
    /// Status 1 when it cannot be checked, others when something is wrong with it.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let output = self.output.format("check")?;
        let repair = self.repair()?;
        let name = one_image(&self.names, "check")?;
        self.open.check()?;
        let mut image = self.open.image(name);
        image.how.cache = source_cache(&self.cache).map_err(Failure::message)?;
        image.how.read_only = !repair.writes();
        image.resize = repair.writes();
        image.still = !image.how.force_share;
        let progress = self.progress.start(self.quiet, 1.0)?;
        layer.run(|gs| async move {
            let (backend, format) = image.open_under_format(&gs).await?;
            let root = backend.io().root().clone();
            on_io_thread(&gs, async move {
                let format = match format {
                    Some(format) => format,
                    None => image.guess(&root).await?.to_owned(),
                };
                if format != "qcow2" {
                    return Err(Failure::message("This image format does not support checks").with_status(NO_CHECKS));
                }
                let work = Work { root, image, repair, output, quiet: self.quiet, progress: Some(progress) };
                work.run().await
            })
            .await
        })
    }
}

impl Args {
    fn repair(&self) -> Result<Repair, Failure> {
        match self.repair.as_deref() {
            None => Ok(Repair::None),
            Some("leaks") => Ok(Repair::Leaks),
            Some("all") => Ok(Repair::All),
            Some(other) => {
                let text = format!("--repair (-r) expects 'leaks' or 'all' not '{other}'");
                Err(Failure::usage(Some("check"), text))
            }
        }
    }
}

/// An image to check.
struct Work {
    root: Root,
    image: Image,
    repair: Repair,
    output: OutputFormat,
    quiet: bool,
    /// Until the check is over.
    progress: Option<Progress>,
}

impl Work {
    async fn run(mut self) -> Result<(), Failure> {
        let mut report = self.check(self.repair).await?;
        let Report { leaks_fixed, corruptions_fixed, .. } = report;
        if leaks_fixed + corruptions_fixed > 0 {
            if self.output == OutputFormat::Human {
                self.tell(&format!(
                    "The following inconsistencies were found and repaired:\n\n    {leaks_fixed} leaked clusters\n    \
                     {corruptions_fixed} corruptions\n\nDouble checking the fixed image now...\n"
                ))?;
            }
            report = Report { leaks_fixed, corruptions_fixed, ..self.check(Repair::None).await? };
        }
        if let Some(progress) = self.progress.take() {
            progress.finish();
        }
        self.tell(&match self.output {
            OutputFormat::Human => human(&report),
            OutputFormat::Json => json(&report, &self.image.name),
        })?;
        match report {
            Report { check_errors: 1.., .. } => Err(Failure::message("Check failed")),
            Report { corruptions: 1.., .. } => Err(Failure::told().with_status(CORRUPT)),
            Report { leaks: 1.., .. } => Err(Failure::told().with_status(LEAKS)),
            _ => Ok(()),
        }
    }

    async fn check(&self, repair: Repair) -> Result<Report, Failure> {
        let mut eyes = Eyes { stderr: BufWriter::new(std::io::stderr()), progress: self.progress.as_ref(), done: 0 };
        let checked = check(Storage::Root(&self.root), repair, &mut eyes).await;
        // As for errors: nobody is left to be told when stderr is gone.
        let _ = eyes.stderr.flush();
        checked.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &CheckError) -> Failure {
        match error {
            error if error.is_open() => Failure::message(format!("Could not open '{}': {error}", self.image.name)),
            CheckError::NeedsRebuild => Failure::message(format!("Check failed: {}", IoError::BUG.errno())),
            CheckError::SnapshotExtra(_) => Failure::message(format!(
                "ERROR failed to read the snapshot table: {error}\nYou can force-remove this extra metadata with \
                 {PROGRAM} check -r all"
            ))
            .and(Failure::message("Check failed: File too large")),
            error => Failure::message(format!("Check failed: {error}")),
        }
    }

    fn tell(&self, text: &str) -> Result<(), Failure> {
        if self.quiet { Ok(()) } else { print(text) }
    }
}

/// Lines go to stderr, how far it is to `-p`.
struct Eyes<'a> {
    stderr: BufWriter<Stderr>,
    progress: Option<&'a Progress>,
    done: u64,
}

impl Watch for Eyes<'_> {
    fn message(&mut self, text: fmt::Arguments<'_>) {
        // As for errors.
        let _ = writeln!(self.stderr, "{text}");
    }

    fn progress(&mut self, done: u64, total: u64) {
        if let Some(progress) = self.progress {
            progress.set_total(total);
            progress.advance(done.saturating_sub(self.done));
        }
        self.done = done;
    }
}

/// For people, in the field's words.
fn human(report: &Report) -> String {
    let Report { check_errors, corruptions, leaks, image_end, .. } = *report;
    let mut text = String::new();
    if check_errors + corruptions + leaks == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    // A String takes whatever is written to it.
    if corruptions > 0 {
        let _ = writeln!(
            text,
            "\n{corruptions} errors were found on the image.\nData may be corrupted, or further writes to the image \
             may corrupt it."
        );
    }
    if leaks > 0 {
        let _ = writeln!(
            text,
            "\n{leaks} leaked clusters were found on the image.\nThis means waste of disk space, but no harm to data."
        );
    }
    if check_errors > 0 {
        let _ = writeln!(text, "\n{check_errors} internal errors have occurred during the check.");
    }
    let Report { total_clusters: total, allocated_clusters: allocated, .. } = *report;
    if total > 0 && allocated > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        let _ = writeln!(
            text,
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        );
    }
    let _ = writeln!(text, "Image end offset: {image_end}");
    text
}

/// For programs. What is nothing is left out, but errors.
fn json(report: &Report, name: &str) -> String {
    let mut map = Map::new();
    let mut add = |key: &str, value: u64, always: bool| {
        if always || value > 0 {
            map.insert(key.into(), value.into());
        }
    };
    add("image-end-offset", report.image_end, false);
    add("compressed-clusters", report.compressed_clusters, false);
    add("total-clusters", report.total_clusters, false);
    add("corruptions", report.corruptions, false);
    add("corruptions-fixed", report.corruptions_fixed, false);
    add("check-errors", report.check_errors, true);
    add("leaks-fixed", report.leaks_fixed, false);
    add("leaks", report.leaks, false);
    add("allocated-clusters", report.allocated_clusters, false);
    map.insert("filename".into(), name.into());
    map.insert("format".into(), "qcow2".into());
    if report.fragmented_clusters > 0 {
        map.insert("fragmented-clusters".into(), report.fragmented_clusters.into());
    }
    let mut text = String::new();
    write_json(&mut text, &Value::Object(map), 0);
    text + "\n"
}
