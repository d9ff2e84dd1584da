//! `snapshot`: list, take, go back to, and delete the snapshots that are in an image.

use crate::args::{ObjectArgs, exclusive};
use crate::cli::{Command, Failure};
use crate::image::{Image, node_of};
use crate::info::local_time;
use crate::layer::BlockLayer;
use crate::print;
use block_backend::Backend;
use block_drivers::{ImageOptions, Qcow2Control};
use block_gs::{GlobalState, NodeRef};
use block_io::Req;
use block_qcow2::{NewSnapshot, SnapshotFailure, info};
use clap::Parser;
use std::future::Future;
use std::time::{SystemTime, UNIX_EPOCH};

/// List the snapshots in an image, or take, apply or delete one.
#[derive(Debug, Parser)]
#[command(
    name = "snapshot",
    bin_name = "cairn-img snapshot",
    infer_long_args = true,
    args_override_self = true,
    override_usage = "cairn-img snapshot [options] FILENAME"
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
    /// Let others use the image at the same time, in any way; for listing only
    #[arg(short = 'U', long)]
    force_share: bool,
    #[command(flatten)]
    object: ObjectArgs,
    /// List the snapshots (what is done without -a, -c and -d)
    #[arg(short, long)]
    list: bool,
    /// Let the disk be as it was when this snapshot was taken
    #[arg(short, long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    apply: Option<String>,
    /// Take a snapshot with this name
    #[arg(short, long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    create: Option<String>,
    /// Delete this snapshot
    #[arg(short, long, value_name = "SNAPSHOT", allow_hyphen_values = true)]
    delete: Option<String>,
    /// The image
    #[arg(value_name = "FILENAME", hide = true)]
    names: Vec<String>,
}

/// What is to be done.
enum Act {
    List,
    Apply(String),
    Create(String),
    Delete(String),
}

impl Command for Args {
    fn objects(&self) -> &[String] {
        self.object.texts()
    }

    /// Carry it out.
    ///
    /// # Errors
    /// An image that cannot be opened or has no snapshots, one that is not there, or what the host said.
    fn run(self, layer: BlockLayer) -> Result<(), Failure> {
        let name = match self.names.as_slice() {
            [name] => name.clone(),
            _ => return Err(Failure::usage(Some("snapshot"), "Expecting one image file name")),
        };
        exclusive(self.image_opts, self.format.is_some())?;
        let acts = [
            self.list.then_some(Act::List),
            self.apply.map(Act::Apply),
            self.create.map(Act::Create),
            self.delete.map(Act::Delete),
        ];
        let mut acts = acts.into_iter().flatten();
        let act = acts.next().unwrap_or(Act::List);
        if acts.next().is_some() {
            return Err(Failure::usage(Some("snapshot"), "Cannot mix '-l', '-a', '-c', '-d'"));
        }
        let read_only = matches!(act, Act::List);
        let how = ImageOptions {
            format: self.format,
            read_only,
            force_share: self.force_share,
            unmap: true,
            ..ImageOptions::default()
        };
        let image = Image { name, image_opts: self.image_opts, resize: !read_only, still: false, stored: false, how };
        layer.run(|gs| async move {
            let backend = image.open(&gs).await?;
            act.carry_out(&gs, &backend).await
        })
    }
}

impl Act {
    async fn carry_out(self, gs: &GlobalState, backend: &Backend) -> Result<(), Failure> {
        let node = node_of(backend)?;
        let control = gs.with_control(&node, |control: &mut Qcow2Control| control.clone()).ok();
        match (self, control) {
            // Other formats have none to list.
            (Self::List, None) => Ok(()),
            (Self::List, Some(control)) => {
                let read = move |req: Req| async move {
                    Ok(control.snapshots(&req).await.map(|found| (control.header(), found)))
                };
                let found =
                    gs.run_drained(&node, "Could not read the snapshots", read).await.map_err(Failure::message)?;
                let (header, snapshots) = found.map_err(Failure::message)?;
                if snapshots.is_empty() {
                    return Ok(());
                }
                let info = info::ImageInfo { header, snapshots, bitmaps: Vec::new() };
                print(&format!("Snapshot list:\n{}", info.snapshot_table(local_time)))
            }
            (Self::Create(name), None) => {
                Err(Failure::message(format!("Could not create snapshot '{name}': Operation not supported")))
            }
            (Self::Apply(name), None) => Err(Failure::message(format!(
                "Could not apply snapshot '{name}': Block driver does not support snapshots"
            ))),
            (Self::Delete(name), None) => {
                Err(Failure::message(format!("Could not delete snapshot '{name}': snapshot not found")))
            }
            (Self::Create(name), Some(control)) => {
                // As the field's tool, which counts none.
                let icount = Some(0);
                let new =
                    NewSnapshot { name: name.clone().into_bytes(), date: now(), icount, ..NewSnapshot::default() };
                let done = drained(gs, &node, |req| async move { control.create_snapshot(&req, new).await }).await?;
                done.map_err(|error| Failure::message(format!("Could not create snapshot '{name}': {}", error.errno())))
            }
            (Self::Apply(name), Some(control)) => {
                let wanted = name.clone().into_bytes();
                let done = drained(gs, &node, |req| async move { control.apply_snapshot(&req, &wanted).await }).await?;
                done.map_err(|error| {
                    let why = match error {
                        SnapshotFailure::Bitmaps => error.to_string(),
                        error => format!("Failed to load snapshot: {}", error.errno()),
                    };
                    Failure::message(format!("Could not apply snapshot '{name}': {why}"))
                })
            }
            (Self::Delete(name), Some(control)) => {
                let wanted = name.clone().into_bytes();
                let done =
                    drained(gs, &node, |req| async move { control.delete_snapshot(&req, &wanted).await }).await?;
                done.map_err(|error| Failure::message(format!("Could not delete snapshot '{name}': {error}")))
            }
        }
    }
}

/// Run `work` with nothing else in flight.
async fn drained<F: Future<Output = Result<(), SnapshotFailure>> + Send + 'static>(
    gs: &GlobalState,
    node: &NodeRef,
    work: impl FnOnce(Req) -> F,
) -> Result<Result<(), SnapshotFailure>, Failure> {
    let run = |req| {
        let work = work(req);
        async move { Ok(work.await) }
    };
    gs.run_drained(node, "Could not change the snapshots", run).await.map_err(Failure::message)
}

/// Seconds and nanoseconds since 1970.
fn now() -> (u32, u32) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos())
}
