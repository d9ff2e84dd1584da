//! `copy-before-write`: children `file` and `target`, a bitmap to begin with, what gives way, and in which clusters.

use async_trait::async_trait;
use block_common::options::DriverKind;
use block_common::{ChildName, ChildRole, OptionReader, Perm, PermPair};
use block_copy_before_write::{CbwControl, CbwOptions, CbwState, CopyBeforeWrite, OnCbwError};
use block_gs::{DriverType, EngineControl, GlobalState, GraphError, GraphResult, OpenContext, Opened};
use block_io::{Edge, NodeBitmap, Req};
use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

const TARGET: ChildName = ChildName::from_static("target");
/// Larger clusters are no use, and their sizes not numbers that everybody can compute with.
const CLUSTER_MAX: u64 = i64::MAX as u64;

/// The copy-before-write driver.
#[derive(Clone, Copy, Debug)]
pub struct CopyBeforeWriteType;

/// Its nodes' control is a [`CbwControl`].
struct Control(CbwControl);

impl EngineControl for Control {
    fn as_any(&mut self) -> &mut dyn Any {
        &mut self.0
    }
}

/// A refusal of what the copies would be like.
fn cannot(message: String) -> GraphError {
    GraphError::Open(format!("Cannot create block-copy-state: {message}"))
}

#[async_trait(?Send)]
impl DriverType for CopyBeforeWriteType {
    fn name(&self) -> &'static str {
        CopyBeforeWrite::NAME
    }

    fn kind(&self) -> DriverKind {
        DriverKind::Format
    }

    fn is_filter(&self) -> bool {
        true
    }

    async fn open(&self, context: &mut OpenContext<'_>, options: &mut OptionReader) -> GraphResult<Opened> {
        let on_error = options.take_enum("on-cbw-error")?.unwrap_or(OnCbwError::BreakGuestWrite);
        let timeout = options.take_u32("cbw-timeout")?.filter(|seconds| *seconds > 0);
        let timeout = timeout.map(|seconds| Duration::from_secs(seconds.into()));
        let cluster_min = options.take_u64("min-cluster-size")?.unwrap_or(0);
        let bitmap = options.take_dict("bitmap", |bitmap| {
            Ok::<_, GraphError>((bitmap.require_str("node")?, bitmap.require_str("name")?))
        })?;
        let file = context.require_child(options, ChildName::FILE, ChildRole::FILTERED_PRIMARY).await?;
        let target = context.require_child(options, TARGET, ChildRole::DATA).await?;
        let bitmap = match bitmap {
            Some((node, name)) => Some((find_bitmap(context.global(), &node, &name)?, name)),
            None => None,
        };
        check_cluster(cluster_min)?;
        let options = CbwOptions { on_error, timeout };
        let open = |req| async move { Ok(open(&req, file, target, cluster_min, bitmap, options).await) };
        let opened = context.run("Could not open the copy-before-write node", open).await?;
        let (engine, control) = opened.map_err(cannot)?;
        let read_only = context.common().read_only;
        Ok(Opened { engine: Box::new(engine), control: Box::new(Control(control)), read_only })
    }

    /// The target is written, whatever the users do. While there are users, nobody but this node writes the source: what is changed otherwise is not copied.
    fn child_perm(&self, role: ChildRole, above: PermPair, _read_only: bool) -> PermPair {
        if !role.contains(ChildRole::FILTERED) {
            return PermPair::new(Perm::WRITE, !Perm::RESIZE);
        }
        match above {
            PermPair::NONE => above,
            _ => PermPair::new(above.perm | Perm::CONSISTENT_READ, above.shared & !(Perm::WRITE | Perm::RESIZE)),
        }
    }
}

fn check_cluster(cluster_min: u64) -> GraphResult<()> {
    if cluster_min > CLUSTER_MAX {
        return Err(cannot(format!("min-cluster-size too large: {cluster_min} > {CLUSTER_MAX}")));
    }
    if cluster_min > 0 && !cluster_min.is_power_of_two() {
        return Err(cannot("min-cluster-size needs to be a power of 2".into()));
    }
    Ok(())
}

fn find_bitmap(gs: &GlobalState, node: &str, name: &str) -> GraphResult<Arc<NodeBitmap>> {
    let node = gs.find_node(node).map_err(|_| GraphError::Open(format!("Node '{node}' not found")))?;
    let bitmap = gs.bitmap(&node, name).map_err(|error| GraphError::Open(error.to_string()))?;
    // One that is inconsistent, or that a job has, says nothing.
    let lock = bitmap.lock().map_err(|error| GraphError::Open(error.to_string()))?;
    Ok(lock.bitmap().bits().clone())
}

/// Make the engine. An error is a message.
async fn open(
    req: &Req,
    file: Edge,
    target: Edge,
    cluster_min: u64,
    bitmap: Option<(Arc<NodeBitmap>, String)>,
    options: CbwOptions,
) -> Result<(CopyBeforeWrite, CbwControl), String> {
    let failed = |error: block_common::IoError| error.to_string();
    let (length, there) =
        (file.refresh_length(req).await.map_err(failed)?, target.refresh_length(req).await.map_err(failed)?);
    if there < length {
        return Err(format!("The target has {there} bytes, and the source {length}"));
    }
    let units = target.clusters(req).map_or(0, |clusters| clusters.cluster);
    let cluster = CopyBeforeWrite::CLUSTER_MIN.max(units).max(cluster_min).next_power_of_two();
    let new = |wanted: Option<&block_io::DirtyBitmap>| {
        CbwState::new(length, cluster, wanted).ok_or_else(|| "Cannot allocate memory".to_owned())
    };
    let state = match bitmap {
        None => new(None)?,
        Some((bits, name)) => bits.with(|bits| {
            if bits.length() == length {
                return new(Some(bits));
            }
            Err(format!(
                "Failed to merge bitmap '{name}' to internal copy-bitmap: Bitmaps are of different sizes \
                 (destination size is {length}, source size is {}) and can't be merged",
                bits.length()
            ))
        })?,
    };
    let limits = file.limits(req).map_err(failed)?;
    Ok(CopyBeforeWrite::new(file, target, limits, options, Arc::new(state)))
}
